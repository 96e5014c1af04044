//! Traces of mints, as a collector gets them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use testbed::Collector;
use testbed::chittyconnect::{Denial, Match};
use testbed::collector::{Span, Value, text};

use crate::support::*;

fn attributes(span: &Span) -> BTreeMap<String, String> {
    let told = |value: &Option<Value>| value.as_ref().and_then(text).unwrap_or_default();
    let pairs = span.attributes.iter();
    pairs.map(|pair| (pair.key.clone(), told(&pair.value))).collect()
}

#[tokio::test]
async fn one_mint_is_one_trace_from_the_watch_to_the_secret_and_holds_no_token() {
    let world = World::without_controller("traces").await;
    let collector = Collector::start().unwrap();
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT={}", collector.url());
    let _controller = world.spawn_with(&[endpoint], "traced", &world.controller_kubeconfig());
    let case = Setup::within(world.clone(), generous()).case().await;
    case.broker.set_latency(Duration::from_millis(300));
    case.broker
        .deny(Match::minting().purpose("account-admin"), Denial::Forbidden);
    case.issued("a", json!({})).await;
    case.apply("denied", json!({"purpose": "account-admin"})).await;
    case.until_ready_is("denied", "False", "Denied").await;

    let roots = || {
        let all = collector.spans().into_iter();
        all.filter(|span| span.parent_span_id.is_empty()).collect::<Vec<_>>()
    };
    wait_for("both traces", || async { (roots().len() == 2).then_some(()) }).await;
    let of = |name: &str| {
        let root = roots()
            .into_iter()
            .find(|span| attributes(span)["chittyconnect.credential"] == name);
        let root = root.unwrap();
        let all = collector.spans().into_iter();
        let rest = all.filter(|span| span.trace_id == root.trace_id && !span.parent_span_id.is_empty());
        (root.clone(), rest.collect::<Vec<_>>())
    };
    let (root, stages) = of("a");
    let names: Vec<_> = stages.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "queue",
            "reconcile",
            "wait for the budget",
            "prepare",
            "commit the claim",
            "ask ChittyConnect",
            "write the Secrets",
            "commit the outcome",
        ]
    );
    let told = attributes(&root);
    assert_eq!(told["k8s.namespace.name"], case.namespace);
    assert_eq!(told["chittyconnect.service"], "chittyid");
    assert_eq!(told["chittyconnect.revision"], "1");
    assert_eq!(told["chittyconnect.outcome"], "Published");
    for span in &stages {
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        assert_eq!(span.parent_span_id, root.span_id);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert!(span.start_time_unix_nano >= root.start_time_unix_nano, "{}", span.name);
        assert!(span.end_time_unix_nano <= root.end_time_unix_nano, "{}", span.name);
    }
    // The broker took 300 ms.
    let asked = &stages[5];
    assert!(asked.end_time_unix_nano - asked.start_time_unix_nano >= 300_000_000);

    let (root, stages) = of("denied");
    assert_eq!(attributes(&root)["chittyconnect.outcome"], "Denied");
    assert_eq!(root.status.as_ref().unwrap().message, "Denied");
    assert!(stages.iter().all(|span| span.name != "write the Secrets"));

    let token = case.value("a", "cloudflare_token").await.unwrap();
    assert!(!format!("{:?}", collector.requests()).contains(&token));
    let resource = collector.requests()[0].resource_spans[0].resource.clone().unwrap();
    let tells = |key: &str| resource.attributes.iter().any(|pair| pair.key == key);
    assert!(tells("service.instance.id") && tells("service.version"));
}

#[tokio::test]
async fn a_collector_that_is_not_there_holds_nothing_up_and_is_told_of_once() {
    let world = World::without_controller("uncollected").await;
    let endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:9".to_owned();
    let _controller = world.spawn_with(&[endpoint], "traced", &world.controller_kubeconfig());
    let case = Setup::within(world.clone(), generous()).case().await;
    case.issued("a", json!({})).await;
    let told = || world.log().matches("traces cannot be sent").count();
    wait_for("it to be told", || async { (told() == 1).then_some(()) }).await;
    case.rotate("a", "1").await;
    case.until_revision("a", 2).await;
    // The second batch goes within two seconds.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(told(), 1);
}
