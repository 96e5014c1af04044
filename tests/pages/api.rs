//! `docs/api.md`: every field of the kinds, written from their schema.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use chittyconnect_operator::api::crd_files;
use serde_json::Value;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Text within a cell of a table.
fn cell(text: &str) -> String {
    let text = text.replace('|', "\\|").replace("\n\n", " ").replace(['\n'], " ");
    // Nothing in a description is HTML.
    text.replace('<', "&lt;")
}

/// A schema's type, in a word or two.
fn kind_of(schema: &Value) -> String {
    if schema["x-kubernetes-int-or-string"] == true {
        return "integer or string".to_owned();
    }
    match (text(schema, "type"), text(schema, "format")) {
        ("array", _) => format!("list of {}", kind_of(&schema["items"])),
        ("object", _) if schema["additionalProperties"].is_object() => {
            format!("map of {}", kind_of(&schema["additionalProperties"]))
        }
        ("string", "date-time") => "time".to_owned(),
        (kind, _) => kind.to_owned(),
    }
}

fn number(value: &Value) -> Option<String> {
    value.as_f64().map(|number| number.to_string())
}

/// What the API server holds values to, besides their type.
fn limits(schema: &Value) -> Vec<String> {
    let mut limits = Vec::new();
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values
            .iter()
            .filter_map(Value::as_str)
            .map(|v| format!("`{v}`"))
            .collect();
        limits.push(format!("one of {}", values.join(", ")));
    }
    let between = |least: &str, most: &str, what: &str| match (number(&schema[least]), number(&schema[most])) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}{what}")),
        (None, Some(most)) => Some(format!("at most {most}{what}")),
        (Some(least), None) if least != "0" => Some(format!("at least {least}{what}")),
        _ => None,
    };
    limits.extend(between("minLength", "maxLength", " characters"));
    limits.extend(between("minimum", "maximum", ""));
    limits.extend(between("minItems", "maxItems", " items"));
    limits.extend(between("minProperties", "maxProperties", " entries"));
    limits
}

/// A row for this field, and rows for all below it.
fn rows(page: &mut String, path: &str, schema: &Value, required: bool) {
    let mut said = cell(text(schema, "description"));
    let items = if schema["items"].is_object() {
        &schema["items"]
    } else {
        &schema["additionalProperties"]
    };
    let mut notes = limits(schema);
    // Of items that are values; what holds for those with fields stands with their fields.
    notes.extend(limits(items).into_iter().map(|limit| format!("each {limit}")));
    let default = &schema["default"];
    if !(default.is_null() || *default == serde_json::json!({}) || *default == serde_json::json!([])) {
        notes.push(format!("default `{default}`").replace("`\"", "`").replace("\"`", "`"));
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        notes.push(cell(text(rule, "message")));
    }
    for rule in items["x-kubernetes-validations"].as_array().into_iter().flatten() {
        notes.push(cell(text(rule, "message")));
    }
    if !notes.is_empty() {
        let _ = write!(said, " *{}*", notes.join("; ").replace('*', "\\*"));
    }
    let required = if required { "**yes**" } else { "" };
    let _ = writeln!(
        page,
        "| `{path}` | {} | {required} | {} |",
        kind_of(schema),
        said.trim()
    );
    if path.ends_with("conditions[]") || path.ends_with("conditions") {
        // Kubernetes' own, the same everywhere.
        return;
    }
    fields(page, path, schema);
    if items.is_object() {
        let suffix = if schema["items"].is_object() { "[]" } else { ".*" };
        fields(page, &format!("{path}{suffix}"), items);
    }
}

fn fields(page: &mut String, path: &str, schema: &Value) {
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rows(
            page,
            &format!("{path}.{name}"),
            field,
            required.contains(&name.as_str()),
        );
    }
}

fn reference() -> String {
    let mut page = String::from(
        "# API\n\n\
         Generated from the schema of the CRDs (`UPDATE_DOCS=1 cargo test --test pages`); edit nothing here.\n\n\
         Every field of the two kinds, with what the API server holds it to. `kubectl explain ec.spec --recursive` has the same. Durations\n\
         are texts such as `90s`, `20m` and `1h30m`. What stands in *italics* is refused where it does not hold, or is the default.\n",
    );
    for (file, yaml) in crd_files().unwrap() {
        let crd: Value = serde_yaml::from_str(&yaml).unwrap();
        let names = &crd["spec"]["names"];
        let version = &crd["spec"]["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        let short: Vec<&str> = names["shortNames"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n`{}/{}`, {}; short name `{}`. The CRD is [crds/{file}](../crds/{file}).\n",
            text(names, "kind"),
            text(schema, "description"),
            text(&crd["spec"], "group"),
            text(version, "name"),
            if text(&crd["spec"], "scope") == "Cluster" {
                "cluster-scoped"
            } else {
                "namespaced"
            },
            short.join("`, `"),
        );
        for part in ["spec", "status"] {
            let schema = &schema["properties"][part];
            let _ = write!(
                page,
                "\n### {} {part}\n\n{}\n",
                text(names, "kind"),
                text(schema, "description")
            );
            let rules = schema["x-kubernetes-validations"].as_array();
            for (index, rule) in rules.into_iter().flatten().enumerate() {
                let _ = writeln!(
                    page,
                    "{}- {}",
                    if index == 0 { "\n" } else { "" },
                    text(rule, "message").replace('*', "\\*")
                );
            }
            page.push_str("\n| field | type | required | |\n| --- | --- | --- | --- |\n");
            fields(&mut page, part, schema);
        }
    }
    page
}

#[test]
fn the_reference_of_the_kinds_is_that_of_their_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md");
    let desired = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &desired).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == desired,
        "docs/api.md is out of date: UPDATE_DOCS=1 cargo test --test pages"
    );
}

#[test]
fn the_reference_has_every_field_that_the_schema_has() {
    fn count(schema: &Value) -> usize {
        let fields = schema["properties"].as_object().into_iter().flatten();
        let below = [&schema["items"], &schema["additionalProperties"]];
        fields
            .map(|(name, field)| 1 + if name == "conditions" { 0 } else { count(field) })
            .sum::<usize>()
            + below.into_iter().filter(|s| s.is_object()).map(count).sum::<usize>()
    }
    let mut fields = 0;
    for (_, yaml) in crd_files().unwrap() {
        let crd: Value = serde_yaml::from_str(&yaml).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        fields += count(&schema["spec"]) + count(&schema["status"]);
    }
    let rows = reference().lines().filter(|line| line.starts_with("| `")).count();
    assert!(fields > 80, "{fields}");
    assert_eq!(rows, fields);
}
