//! What is recorded: conditions, Events, audit entries; and tokens nowhere but in Secrets.

use std::time::Duration;

use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn a_credential_tells_its_life_in_a_few_events() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    case.rotate("a", "1").await;
    case.until_revision("a", 2).await;
    let events = wait_for("both Events", || async {
        let events = case.events("a").await;
        (events.len() >= 2).then_some(events)
    })
    .await;
    let reasons: Vec<&str> = events.iter().map(|(r, _)| r.as_str()).collect();
    assert!(
        reasons.contains(&"Issued") && reasons.contains(&"Rotated"),
        "{events:?}"
    );
    assert!(events.len() <= 6, "{events:?}");
}

/// Invariant 10.
#[tokio::test]
async fn every_outcome_reaches_chittychronicle_once_and_in_order() {
    let case = Case::new().await;
    let (chronicle, field) = chronicle(&case).await;
    case.connect_seen(field).await;
    case.issued("a", json!({})).await;
    case.rotate("a", "1").await;
    case.until_revision("a", 2).await;
    case.delete("a").await;
    let entries = wait_for("three entries", || async {
        let entries = chronicle.entries();
        (entries.len() >= 3).then_some(entries)
    })
    .await;
    let types: Vec<&str> = entries.iter().map(|e| e.event_type.as_str()).collect();
    assert_eq!(
        types,
        ["credential.provisioned", "credential.rotated", "credential.released"]
    );
    let numbers: Vec<u64> = entries.iter().map(|e| e.data["seq"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert!(entries.iter().all(|e| e.entity_id == "chittyid"));
    assert_eq!(entries[0].data["purpose"], "worker-deploy");
    assert_eq!(entries[0].data["namespace"], case.namespace);
}

/// Invariant 10.
#[tokio::test]
async fn an_outage_of_chittychronicle_loses_no_event_and_stops_no_mint() {
    let case = Case::new().await;
    let (chronicle, field) = chronicle(&case).await;
    case.connect_seen(field).await;
    chronicle.go_down().unwrap();
    for name in ["a", "b", "c"] {
        case.issued(name, json!({})).await;
    }
    assert!(chronicle.entries().is_empty());
    chronicle.come_back().unwrap();
    let entries = wait_for("three entries", || async {
        let entries = chronicle.entries();
        (entries.len() >= 3).then_some(entries)
    })
    .await;
    let mut ids: Vec<String> = entries
        .iter()
        .map(|e| e.data["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

/// Invariant 1.
#[tokio::test]
async fn tokens_are_found_in_secrets_and_nowhere_else() {
    let world = World::start("canary").await;
    let case = Setup::within(world.clone(), generous().ttl(Duration::from_secs(6)))
        .case()
        .await;
    let (_chronicle, field) = chronicle(&case).await;
    case.connect_seen(field).await;
    case.issued("a", json!({})).await;
    case.issued(
        "b",
        json!({"secrets": [{"name": "shaped", "data": {"x": "{{ npm_token }}"}}]}),
    )
    .await;
    case.broker
        .on(testbed::chittyconnect::Match::any().service("odd"))
        .fault(testbed::chittyconnect::Fault::TruncatedJson);
    case.apply("odd", json!({"service": "odd"})).await;
    case.until("a", |c| c.status.as_ref().and_then(|s| s.revision) >= Some(3))
        .await;
    let mut tokens = case.broker.ledger().secret_values();
    tokens.push(case.broker.api_key().to_owned());
    assert!(tokens.len() > 10);
    let log = world.log();
    assert!(log.len() > 10_000, "the log is expected to be talkative");
    let dump = world.plane.etcd_dump().await.unwrap();
    for token in &tokens {
        assert!(!log.contains(token), "a token is in the log");
        for (key, value) in &dump {
            let found = value.windows(token.len()).any(|w| w == token.as_bytes())
                || value.windows(token.len()).any(|w| w == base64(token).as_bytes());
            assert!(!found || key.contains("/secrets/"), "a token is in {key}");
        }
    }
}

#[tokio::test]
async fn events_whose_destination_was_taken_away_go_to_the_dead_letters_and_block_nobody() {
    let case = Case::new().await;
    let (chronicle, field) = chronicle(&case).await;
    case.connect_seen(field).await;
    chronicle.go_down().unwrap();
    case.issued("a", json!({})).await;
    case.patch_connection(json!({"spec": {"audit": null}})).await;
    let uid = case.credentials().get("a").await.unwrap().metadata.uid.unwrap();
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::namespaced(case.client.clone(), SYSTEM);
    wait_for("the event among the dead letters", || async {
        let letters = maps.get("chittyconnect-audit-dead-letters").await.ok()?.data?;
        letters.keys().any(|id| id.starts_with(&uid)).then_some(())
    })
    .await;
    wait_for("the journal to let go of it", || async {
        (case.journal_facts().await.events == 0).then_some(())
    })
    .await;
    case.issued("b", json!({})).await;
}

#[tokio::test]
async fn events_survive_an_outage_in_which_the_controller_is_killed() {
    let world = World::start("audit").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    let (chronicle, field) = chronicle(&case).await;
    case.connect_seen(field).await;
    case.issued("a", json!({})).await;
    wait_for("the first entry", || async {
        (chronicle.entries().len() == 1).then_some(())
    })
    .await;
    chronicle.go_down().unwrap();
    for i in 0..6 {
        case.issued(&format!("c{i}"), json!({})).await;
        if i % 2 == 0 {
            world.kill_controller();
            world.start_controller();
        }
    }
    chronicle.come_back().unwrap();
    // At least once: what was delivered right before a kill comes again, and must be the same.
    wait_for("every event", || async {
        let mut by_id = std::collections::BTreeMap::new();
        for entry in chronicle.entries() {
            let id = entry.data["id"].as_str()?.to_owned();
            let known = by_id.insert(id, entry.data.clone());
            assert!(
                known.is_none_or(|before| before == entry.data),
                "delivered twice with different content"
            );
        }
        (by_id.len() == 7).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_refused_event_goes_to_the_dead_letters_and_blocks_nobody() {
    let case = Case::new().await;
    let (chronicle, field) = chronicle(&case).await;
    let namespace = case.namespace.clone();
    chronicle
        .on(move |e| e.data["namespace"] == namespace && e.data["name"] == "bad")
        .trouble(testbed::chronicle::Trouble::Status(400));
    case.connect_seen(field).await;
    case.issued("bad", json!({})).await;
    case.issued("good", json!({})).await;
    wait_for("the good one's entry", || async {
        chronicle
            .entries()
            .iter()
            .any(|e| e.data["name"] == "good")
            .then_some(())
    })
    .await;
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::namespaced(case.client.clone(), SYSTEM);
    wait_for("the dead letter", || async {
        let letters = maps.get_opt("chittyconnect-audit-dead-letters").await.ok()??;
        letters
            .data?
            .values()
            .any(|v| v.contains(&case.namespace) && v.contains("\"bad\""))
            .then_some(())
    })
    .await;
    assert!(chronicle.entries().iter().all(|e| e.data["name"] != "bad"));
}

#[tokio::test]
async fn events_go_through_chittyconnect_where_the_connection_says_so() {
    let case = Case::new().await;
    case.connect_seen(json!({"audit": {"throughConnect": {}}})).await;
    case.issued("a", json!({})).await;
    let event = wait_for("the event", || async { case.broker.ledger().events.first().cloned() }).await;
    let text = format!("{event:?}");
    assert!(text.contains("credential.provisioned"), "{text}");
}
