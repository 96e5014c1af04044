use super::*;
use crate::api::RateScope;

fn scope(connection: &str, service: &str, used: u32) -> (ScopeLabels, ScopeFigures) {
    let figures = ScopeFigures {
        limit: 10,
        used,
        ..ScopeFigures::default()
    };
    (ScopeLabels::new(connection, RateScope::Service, service), figures)
}

fn one(name: &str) -> CredentialFigures {
    CredentialFigures {
        namespace: "n".to_owned(),
        name: name.to_owned(),
        ready: true,
        expires_at: Some(7),
    }
}

fn leading(snapshot: &Snapshot) -> Metrics {
    let metrics = Metrics::new();
    metrics.begin_term();
    metrics.observe(snapshot);
    metrics
}

#[test]
fn the_reference_page_is_that_of_this_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let desired = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &desired).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == desired,
        "docs/metrics.md is out of date: UPDATE_DOCS=1 cargo test --lib metrics"
    );
}

#[test]
fn every_metric_is_scraped_under_the_name_and_type_that_the_reference_gives() {
    let snapshot = Snapshot {
        credentials: vec![((true, "Issued".into()), 1)],
        nearest_expiry: Some(7),
        scopes: vec![scope("default", "a", 1)],
        connections: vec![("default".into(), true)],
        each: vec![one("a")],
        ..Snapshot::default()
    };
    let metrics = leading(&snapshot);
    metrics.committed(Duration::ZERO, true);
    metrics.event("credential.denied", Reason::Denied);
    metrics.minted(ScopeLabels::new("default", RateScope::Key, "a"), Reason::Issued);
    metrics.answered("default", Duration::from_secs(1), None, true);
    metrics.reconciled(true, Duration::ZERO);
    metrics.called("get", 200);
    let text = metrics.text();
    for metric in metrics.described() {
        let family = metric.name.trim_end_matches("_total").trim_end_matches("_info");
        assert!(
            text.contains(&format!("# TYPE {family} {}\n", metric.kind)),
            "{}: {text}",
            metric.name
        );
        assert!(text.contains(&format!("\n{}", metric.name)), "{}: {text}", metric.name);
        for label in metric.labels {
            let series = text
                .lines()
                .find(|line| line.starts_with(&metric.name))
                .unwrap_or_default();
            assert!(series.contains(&format!("{label}=\"")), "{label}: {series}");
        }
    }
    // Nothing is served that is not described.
    let types = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(types, metrics.described().len());
}

#[test]
fn what_an_alert_counts_is_there_before_it_has_happened() {
    let text = Metrics::new().text();
    for series in [
        r#"audit_events_total{event="credential.expired",reason="Expired"} 0"#,
        "audit_dead_letters_total 0",
        "leader_terms_total 0",
    ] {
        assert!(text.contains(series), "{series}: {text}");
    }
}

#[test]
fn names_are_those_of_the_naming_guide() {
    for metric in Metrics::new().described() {
        let name = &metric.name;
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert_eq!(metric.kind == "counter", name.ends_with("_total"), "{name}");
        if metric.kind == "histogram" {
            assert!(name.ends_with("_seconds"), "{name}");
        }
        assert!(!metric.help.ends_with('.'), "{name}");
    }
}

#[test]
fn equal_services_of_two_connections_and_the_budgets_of_two_keys_are_told_apart() {
    let key = |connection: &str, used| {
        let (_, figures) = scope(connection, "", used);
        (ScopeLabels::new(connection, RateScope::Key, "chittyid"), figures)
    };
    let scopes = vec![
        scope("a", "chittyid", 1),
        scope("b", "chittyid", 2),
        key("c", 3),
        key("d", 4),
    ];
    let text = leading(&Snapshot {
        scopes,
        ..Snapshot::default()
    })
    .text();
    for series in [
        r#"budget_used{connection="a",scope="Service",service="chittyid"} 1"#,
        r#"budget_used{connection="b",scope="Service",service="chittyid"} 2"#,
        r#"budget_used{connection="c",scope="Key",service="*"} 3"#,
        r#"budget_used{connection="d",scope="Key",service="*"} 4"#,
    ] {
        assert!(text.contains(series), "{series}: {text}");
    }
}

#[test]
fn a_thousand_budgets_have_series_of_their_own_and_the_rest_are_one() {
    let scopes: Vec<_> = (0..1005).map(|i| scope("default", &format!("s{i}"), 2)).collect();
    let metrics = leading(&Snapshot {
        scopes: scopes.clone(),
        ..Snapshot::default()
    });
    metrics.minted(scopes[1003].0.clone(), Reason::Issued);
    metrics.minted(scopes[3].0.clone(), Reason::Issued);
    let text = metrics.text();
    assert_eq!(text.matches("chittyconnect_budget_used{").count(), 1001);
    let other = r#"connection="other",scope="other",service="other""#;
    assert!(text.contains(&format!("chittyconnect_budget_used{{{other}}} 10\n")));
    assert!(text.contains(&format!("chittyconnect_mints_total{{{other},outcome=\"Issued\"}} 1\n")));
    assert!(text.contains(
        r#"chittyconnect_mints_total{connection="default",scope="Service",service="s3",outcome="Issued"} 1"#
    ));
    // What went is gone, and no name passes to another.
    metrics.observe(&Snapshot {
        scopes: scopes[1000..].to_vec(),
        ..Snapshot::default()
    });
    assert_eq!(metrics.text().matches("chittyconnect_budget_used{").count(), 1);
}

#[test]
fn what_only_a_leader_knows_goes_with_its_term_and_does_not_come_back() {
    let snapshot = Snapshot {
        credentials: vec![((false, "Denied".into()), 3)],
        nearest_expiry: Some(7),
        scopes: vec![scope("default", "a", 1)],
        connections: vec![("default".into(), true)],
        each: vec![one("a")],
        ..Snapshot::default()
    };
    let metrics = leading(&snapshot);
    metrics.answered("default", Duration::from_secs(1), None, true);
    metrics.minted(snapshot.scopes[0].0.clone(), Reason::Issued);
    metrics.end_term();
    // A task that is a little late.
    metrics.observe(&snapshot);
    metrics.answered("default", Duration::from_secs(1), None, true);
    let text = metrics.text();
    for metric in metrics.described() {
        let there = text.lines().any(|line| line.starts_with(&metric.name));
        assert!(!(metric.leader && there), "{}: {text}", metric.name);
    }
    assert!(text.contains("chittyconnect_leader 0\n"));
    // Counters count on.
    assert!(text.contains("chittyconnect_mints_total{"));
}
