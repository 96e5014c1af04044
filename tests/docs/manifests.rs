//! YAML on the pages: manifests, and parts of them that say behind their fence what they are part of.

use serde_json::{Value, json};

use crate::pages::Block;
use crate::story::Story;
use crate::support::{Cluster, chart, documents, helm};

/// What a block of YAML may be a part of, by the second word behind its fence.
const PARTS: [(&str, &str); 6] = [
    ("credential", "an EphemeralCredential"),
    ("connection", "a ChittyConnection"),
    ("secret", "an item of spec.secrets"),
    ("pod", "the spec of a Pod"),
    ("values", "the chart's values"),
    ("fragment", "anything else, and only parsed"),
];

fn part(block: &Block) -> Option<&str> {
    block.info.get(1).map(String::as_str)
}

fn is_manifest(document: &Value) -> bool {
    document["apiVersion"].is_string() && document["kind"].is_string()
}

fn yaml(blocks: &[Block]) -> impl Iterator<Item = &Block> {
    blocks.iter().filter(|block| block.is_yaml())
}

/// Blocks of which nobody can tell what they are.
pub fn unmarked(blocks: &[Block]) -> impl Iterator<Item = String> {
    yaml(blocks).filter_map(|block| {
        let whole = || {
            let documents = documents(&block.text);
            !documents.is_empty() && documents.iter().all(is_manifest)
        };
        let known = part(block).map_or_else(whole, |part| PARTS.iter().any(|(known, _)| *known == part));
        let Block { page, line, .. } = block;
        (!known).then(|| {
            let parts = PARTS.map(|(part, of)| format!("`yaml {part}` ({of})")).join(", ");
            format!("{page}:{line}: no manifest; say behind its fence of what it is a part: {parts}")
        })
    })
}

/// Where there is YAML that is only parsed.
pub fn only_parsed(blocks: &[Block]) -> impl Iterator<Item = String> {
    let parsed = yaml(blocks).filter(|block| part(block) == Some("fragment"));
    parsed.map(|block| {
        let first = block.text.lines().next().unwrap_or_default();
        format!("{}, from `{first}` on", block.page)
    })
}

fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// A mode such as 0440 is a number to kubectl, and text to others.
fn modes(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let mode = value
                    .as_str()
                    .filter(|_| key.ends_with("ode"))
                    .map(|text| u32::from_str_radix(text, 8));
                match mode {
                    Some(Ok(mode)) => *value = json!(mode),
                    _ => modes(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(modes),
        _ => {}
    }
}

/// The smallest object that a part makes whole.
fn whole(part: &str, piece: Value) -> Value {
    let (mut object, piece) = match part {
        "connection" => (
            json!({"kind": "ChittyConnection", "metadata": {"name": "part"}, "spec": {}}),
            piece,
        ),
        "pod" => {
            // A Pod may say what runs in it elsewhere.
            let mut pod = piece;
            modes(&mut pod);
            for container in pod["containers"].as_array_mut().into_iter().flatten() {
                container["image"] = json!("part");
            }
            let spec = json!({"containers": [{"name": "part", "image": "part"}]});
            (
                json!({"kind": "Pod", "metadata": {"name": "part"}, "spec": spec}),
                json!({"spec": pod}),
            )
        }
        _ => {
            let spec = json!({"service": "chittyid", "purpose": "part"});
            let credential = json!({"kind": "EphemeralCredential", "metadata": {"name": "part"}, "spec": spec});
            let piece = match part {
                "secret" => {
                    let mut item = json!({"name": "part"});
                    merge(&mut item, piece);
                    json!({"spec": {"secrets": [item]}})
                }
                _ => piece,
            };
            (credential, piece)
        }
    };
    object["apiVersion"] = json!(if part == "pod" {
        "v1"
    } else {
        "connect.chitty.cc/v1alpha1"
    });
    merge(&mut object, piece);
    object
}

/// What the API server, or the chart, has against what the pages show.
pub fn refused(story: &Story, blocks: &[Block]) -> Vec<String> {
    let mut namespaces: Vec<String> = yaml(blocks)
        .filter(|block| part(block).is_none())
        .flat_map(|block| documents(&block.text))
        .filter_map(|document| Some(document["metadata"]["namespace"].as_str()?.to_owned()))
        .collect();
    namespaces.sort();
    namespaces.dedup();
    for name in namespaces {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        story.cluster.apply(&namespace.to_string());
    }
    story.cluster.serve_foreign_kinds();
    let complaint = |block: &Block| {
        let said = match part(block) {
            Some("fragment") => {
                documents(&block.text);
                String::new()
            }
            Some("values") => rendered(&block.text),
            None => dry(story, &block.text),
            Some(part) => dry(story, &whole(part, documents(&block.text).remove(0)).to_string()),
        };
        (!said.is_empty()).then(|| format!("{}:{}: {said}", block.page, block.line))
    };
    yaml(blocks).filter_map(complaint).collect()
}

fn dry(story: &Story, manifest: &str) -> String {
    let mut apply = story
        .cluster
        .kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"]);
    let output = Cluster::with_input(&mut apply, manifest);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || !said.is_empty());
    said
}

fn rendered(values: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    std::fs::write(&file, values).unwrap();
    let output = helm(&["template", "x"])
        .arg(chart())
        .arg("--values")
        .arg(&file)
        .output()
        .unwrap();
    if output.status.success() {
        String::new()
    } else {
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
