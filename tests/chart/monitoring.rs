//! What operators watch it by: alerts, dashboard, monitors.

use std::collections::BTreeSet;
use std::process::Command;

use chittyconnect_operator::ops::metrics::Metrics;
use serde_json::{Value, json};

use crate::support::{chart, documents, fail, helm, of_kind, read, render, repository, succeed};

const RULES: &str = "files/rules.yaml";

fn alerts() -> Vec<Value> {
    let rules = &documents(&read(&chart().join(RULES)))[0];
    rules["groups"][0]["rules"].as_array().unwrap().clone()
}

/// The names of our metrics in a query.
fn names(query: &str) -> Vec<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let ours = query.split(word).filter(|name| name.starts_with("chittyconnect_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn alerts_and_dashboard_ask_for_nothing_that_is_not_there() {
    let known: BTreeSet<String> = Metrics::new().described().into_iter().map(|m| m.name).collect();
    let dashboard: Value = serde_json::from_str(&read(&chart().join("files/dashboard.json"))).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|p| p["targets"].as_array().unwrap());
    let queries = targets.map(|t| t["expr"].as_str().unwrap().to_owned());
    let alerts = alerts().into_iter().map(|a| a["expr"].as_str().unwrap().to_owned());
    let mut asked = BTreeSet::new();
    for query in queries.chain(alerts) {
        let found = names(&query);
        assert!(!found.is_empty(), "{query}");
        for name in found {
            let family = name.trim_end_matches("_bucket").to_owned();
            assert!(known.contains(&family), "{name} in {query}");
            asked.insert(family);
        }
    }
    // What is measured is also shown, but for figures that stand for themselves.
    let ours = known.iter().filter(|name| name.starts_with("chittyconnect_"));
    let missing: Vec<_> = ours.filter(|name| !asked.contains(*name)).collect();
    assert_eq!(missing, ["chittyconnect_build_info"]);
}

#[test]
fn panels_lie_side_by_side_and_every_one_has_an_id_of_its_own() {
    let dashboard: Value = serde_json::from_str(&read(&chart().join("files/dashboard.json"))).unwrap();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{panel}");
            }
        }
    }
}

#[test]
fn every_panel_is_as_grafanas_schema_has_it_and_asks_the_data_source_that_is_chosen() {
    let dashboard: Value = serde_json::from_str(&read(&chart().join("files/dashboard.json"))).unwrap();
    let text = |value: &Value, field: &str| {
        let found = value[field].as_str().unwrap_or_default().to_owned();
        assert!(!found.is_empty(), "{field} of {value}");
        found
    };
    let chosen = json!({"type": "prometheus", "uid": "${datasource}"});
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert!(
        variables
            .iter()
            .any(|v| v["name"] == "datasource" && v["type"] == "datasource" && v["query"] == "prometheus")
    );
    assert!(dashboard["schemaVersion"].is_u64() && !text(&dashboard, "uid").is_empty());
    let mut titles = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(
            ["stat", "timeseries"].contains(&text(panel, "type").as_str()),
            "{panel}"
        );
        assert!(titles.insert(text(panel, "title")), "{panel}");
        assert_eq!(panel["datasource"], chosen);
        assert!(panel["id"].is_u64() && panel["options"].is_object(), "{panel}");
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string() && panel["fieldConfig"]["overrides"].is_array(),
            "{panel}"
        );
        for field in ["h", "w"] {
            assert!(panel["gridPos"][field].as_u64() > Some(0), "{panel}");
        }
        let targets = panel["targets"].as_array().unwrap();
        let mut ids = BTreeSet::new();
        for target in targets {
            assert_eq!(target["datasource"], chosen);
            assert!(
                !text(target, "expr").is_empty() && ids.insert(text(target, "refId")),
                "{panel}"
            );
        }
        // Nobody could tell one line from another.
        assert!(
            !targets.is_empty() && (targets.len() == 1 || targets.iter().all(|t| !text(t, "legendFormat").is_empty()))
        );
    }
}

#[test]
fn every_alert_has_a_section_that_says_what_to_do_and_no_section_is_left_over() {
    let page = read(&repository("docs/alerts.md"));
    let sections: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let alerts = alerts();
    let names: Vec<_> = alerts.iter().map(|alert| alert["alert"].as_str().unwrap()).collect();
    assert_eq!(sections, names);
    for section in page.split("\n## ").skip(1) {
        assert!(section.contains("\n1. "), "{section}");
    }
}

#[test]
fn each_alert_fires_for_its_cause_and_is_silent_before_and_after() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("rules");
    std::fs::create_dir_all(&dir).unwrap();
    let tests = read(&repository("tests/chart/rules.test.yaml"));
    for alert in alerts() {
        assert!(
            tests.contains(&format!("- name: {}\n", alert["alert"].as_str().unwrap())),
            "{alert}"
        );
    }
    std::fs::write(dir.join("rules.yaml"), read(&chart().join(RULES))).unwrap();
    std::fs::write(dir.join("rules.test.yaml"), tests).unwrap();
    let promtool = |arguments: &[&str]| {
        let mut command = Command::new("promtool");
        command.args(arguments).current_dir(&dir);
        command
    };
    if promtool(&["--version"]).output().is_err() {
        assert!(
            std::env::var_os("REQUIRE_PROMTOOL").is_none(),
            "promtool is not installed: it is in Debian's package prometheus"
        );
        eprintln!("LEFT OUT: promtool is not installed (Debian has it in the package prometheus)");
        return;
    }
    succeed(&mut promtool(&["check", "rules", "rules.yaml"]));
    succeed(&mut promtool(&["test", "rules", "rules.test.yaml"]));
}

#[test]
fn nothing_that_needs_another_operators_kinds_is_there_unless_asked_for() {
    let rendered = render(&[]);
    for kind in ["ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"] {
        assert_eq!(of_kind(&rendered, kind).len(), 0, "{kind}");
    }
}

#[test]
fn rules_and_dashboard_are_rendered_as_they_are_in_the_files() {
    let rendered = render(&["--set=metrics.prometheusRule.enabled=true,metrics.dashboard.enabled=true"]);
    assert_eq!(
        of_kind(&rendered, "PrometheusRule")[0]["spec"]["groups"][0]["rules"],
        json!(alerts())
    );
    let map = of_kind(&rendered, "ConfigMap")[0];
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let shown = map["data"]["chittyconnect-operator.json"].as_str().unwrap();
    assert_eq!(shown.trim(), read(&chart().join("files/dashboard.json")).trim());

    let some = render(&[
        "--set=metrics.prometheusRule.enabled=true,metrics.prometheusRule.runbooks=https://docs.example/alerts",
        "--set-json=metrics.prometheusRule.disabled=[\"ChittyNoLeader\"]",
    ]);
    let rules = of_kind(&some, "PrometheusRule")[0]["spec"]["groups"][0]["rules"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(rules.len(), alerts().len() - 1);
    assert_eq!(
        rules[0]["annotations"]["runbook_url"],
        "https://docs.example/alerts#chittycredentialatrisk"
    );
}

#[test]
fn monitors_may_stand_in_another_namespace_and_relabel() {
    for (kind, value, endpoints) in [
        ("ServiceMonitor", "metrics.serviceMonitor", "endpoints"),
        ("PodMonitor", "metrics.podMonitor", "podMetricsEndpoints"),
    ] {
        let rendered = render(&[
            &format!("--set={value}.enabled=true,{value}.namespace=monitoring"),
            &format!("--set-json={value}.relabelings=[{{\"targetLabel\":\"cluster\",\"replacement\":\"one\"}}]"),
        ]);
        let monitor = of_kind(&rendered, kind)[0];
        assert_eq!(monitor["metadata"]["namespace"], "monitoring");
        assert_eq!(
            monitor["spec"]["namespaceSelector"]["matchNames"],
            json!(["chittyconnect-system"])
        );
        let endpoint = &monitor["spec"][endpoints][0];
        assert_eq!(
            (&endpoint["port"], &endpoint["interval"]),
            (&json!("metrics"), &json!("30s"))
        );
        assert_eq!(endpoint["relabelings"][0]["targetLabel"], "cluster");
    }
    let path = chart();
    let both = "--set=metrics.serviceMonitor.enabled=true,metrics.podMonitor.enabled=true";
    let complaint = fail(&mut helm(&["template", path.to_str().unwrap(), both]));
    assert!(complaint.contains("scraped twice"), "{complaint}");
}
