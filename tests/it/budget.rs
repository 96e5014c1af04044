//! The budget as users meet it.

use std::time::Duration;

use chittyconnect_operator::api::{EphemeralCredential, RateScope};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{DeleteParams, ListParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use testbed::chittyconnect::{Canned, Match, Scope};

use crate::support::*;

const WINDOW: Duration = Duration::from_secs(10);

async fn tight(limit: u32, ttl: u64) -> Case {
    Setup::new(
        generous()
            .ttl(Duration::from_secs(ttl))
            .limit(limit, WINDOW, Scope::Service),
    )
    .await
    .connection(json!({"rateLimit": {"limit": limit, "window": "10s"}}))
    .case()
    .await
}

#[tokio::test]
async fn whoever_does_not_fit_waits_and_reads_why_and_until_when() {
    let case = tight(4, 3600).await;
    for i in 0..6 {
        case.apply(&format!("c{i}"), json!({})).await;
    }
    let waiting = case.until_any("RateLimited").await;
    let message = condition(&waiting, "Ready").2;
    assert!(
        message.contains("chittyid may mint 4 times in 10 seconds:"),
        "{message}"
    );
    assert!(message.contains("next slot"), "{message}");
    assert!(message.contains("position"), "{message}");
    for i in 0..6 {
        case.until_ready_is(&format!("c{i}"), "True", "Issued").await;
    }
    let most = case.broker.ledger().max_posts_in_any_window(WINDOW, Scope::Service);
    assert!(most <= 4, "{most}");
}

/// Invariant 2.
#[tokio::test]
async fn deleting_and_recreating_in_a_loop_buys_no_extra_mint() {
    let case = tight(4, 3600).await;
    for round in 0..12 {
        case.apply("a", json!({"runId": format!("r{round}")})).await;
        let _ = tokio::time::timeout(Duration::from_millis(700), case.until_ready_is("a", "True", "Issued")).await;
        case.delete("a").await;
    }
    let most = case.broker.ledger().max_posts_in_any_window(WINDOW, Scope::Service);
    assert!(most <= 4, "{most}");
    assert!(case.broker.ledger().posts.iter().all(|p| p.status == Some(200)));
}

/// Invariant 2.
#[tokio::test]
async fn deleting_and_recreating_the_namespace_in_a_loop_buys_no_extra_mint() {
    let case = tight(3, 3600).await;
    let namespace = format!("{}-loop", case.namespace);
    let rule = json!([{"namespaces": [namespace], "services": ["*"], "purposes": ["*"], "repos": ["*"]}]);
    case.patch_connection(json!({"spec": {"access": rule}})).await;
    let credentials: Api<EphemeralCredential> = Api::namespaced(case.client.clone(), &namespace);
    let namespaces: Api<Namespace> = Api::all(case.client.clone());
    for round in 0..6 {
        create_namespace(&case.client, &namespace, &json!({})).await;
        for name in ["a", "b"] {
            let mut manifest = case.manifest(name, json!({"runId": format!("{name}{round}")}));
            manifest["metadata"]["namespace"] = json!(namespace);
            apply(&credentials, &manifest).await;
        }
        // Issued, or told to wait: either way it was looked at.
        wait_for("both to be looked at", || async {
            let all = credentials.list(&ListParams::default()).await.ok()?;
            all.items
                .iter()
                .all(|c| !condition(c, "Ready").1.is_empty())
                .then_some(())
        })
        .await;
        namespaces.delete(&namespace, &DeleteParams::default()).await.unwrap();
        wait_for("the namespace to go", || async {
            namespaces.get_opt(&namespace).await.ok()?.is_none().then_some(())
        })
        .await;
    }
    let ledger = case.broker.ledger();
    let most = ledger.max_posts_in_any_window(WINDOW, Scope::Service);
    assert!(most <= 3, "{most}");
    assert!(ledger.posts() >= 3, "only {} were asked for", ledger.posts());
    assert!(ledger.posts.iter().all(|p| p.status == Some(200)));
}

/// Invariant 2.
#[tokio::test]
async fn two_connections_to_one_broker_share_a_budget_and_the_smaller_limit_wins() {
    share_one_budget(RateScope::Service, Scope::Service).await;
}

/// Invariant 2.
#[tokio::test]
async fn two_connections_with_one_key_share_its_budget_and_the_smaller_limit_wins() {
    share_one_budget(RateScope::Key, Scope::Key).await;
}

async fn share_one_budget(scope: RateScope, at_broker: Scope) {
    let limit = json!({"limit": 3, "window": "10s", "scope": scope});
    let case = Setup::new(generous().limit(3, WINDOW, at_broker))
        .await
        .connection(json!({"rateLimit": limit}))
        .case()
        .await;
    let twin = format!("{}-twin", case.connection);
    let mut spec = serde_json::to_value(&case.connections().get(&case.connection).await.unwrap().spec).unwrap();
    spec["rateLimit"]["limit"] = json!(100);
    apply(
        &case.connections(),
        &json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "ChittyConnection",
            "metadata": {"name": twin}, "spec": spec,
        }),
    )
    .await;
    for i in 0..6 {
        let connection = if i % 2 == 0 { &case.connection } else { &twin };
        case.apply(&format!("c{i}"), json!({"connection": connection})).await;
    }
    for i in 0..6 {
        case.until_ready_is(&format!("c{i}"), "True", "Issued").await;
    }
    let ledger = case.broker.ledger();
    let most = ledger.max_posts_in_any_window(WINDOW, at_broker);
    assert!(most <= 3, "{most}");
    assert!(ledger.posts.iter().all(|p| p.status == Some(200)));
}

#[tokio::test]
async fn after_a_changed_key_live_tokens_keep_their_renewals_from_newcomers() {
    let world = World::start("moved").await;
    let ttl = Duration::from_secs(18);
    let case = Setup::within(world.clone(), generous().ttl(ttl).limit(3, WINDOW, Scope::Key))
        .connection(json!({"rateLimit": {"limit": 3, "window": "10s", "scope": "Key"}}))
        .case()
        .await;
    case.issued("old", json!({"runId": "old"})).await;
    let issued_at = case.broker.ledger().mints[0].issued_at;
    case.broker.add_key("the-second-key", "second");
    // Its renewal at 12 s falls into one window with whatever is minted now.
    wait_for("a third of its period to pass", || async {
        (case.broker.now() > issued_at + chrono::TimeDelta::seconds(4)).then_some(())
    })
    .await;
    case.write_key("the-second-key").await;
    // Started anew it goes by the new key, and must learn of the old one's tokens before it admits anybody.
    world.kill_controller();
    world.start_controller();
    case.issued("n1", json!({"runId": "n1"})).await;
    case.apply("n2", json!({"runId": "n2"})).await;
    case.until_ready_is("n2", "False", "RateLimited").await;
    case.until_revision("old", 3).await;
    let ledger = case.broker.ledger();
    let of = |run: &str| ledger.mints.iter().filter(|m| m.run_id.as_deref() == Some(run)).count();
    assert_eq!((of("old"), of("n2")), (3, 0));
    assert_eq!(
        ledger
            .posts
            .iter()
            .filter(|p| p.key_owner.as_deref() == Some("second"))
            .count(),
        ledger.posts() - 1
    );
}

#[tokio::test]
async fn many_decisions_share_one_write_of_the_journal() {
    let case = Case::new().await;
    case.issued("first", json!({})).await;
    let journal = case.journal("chittyid").await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(case.client.clone(), SYSTEM);
    let config = WatchParams::default().fields(&format!("metadata.name={}", journal.name_any()));
    let from = journal.resource_version().unwrap();
    let mut writes = maps.watch(&config, &from).await.unwrap().boxed();
    for i in 0..40 {
        case.apply(&format!("c{i:02}"), json!({})).await;
    }
    for i in 0..40 {
        case.until_ready_is(&format!("c{i:02}"), "True", "Issued").await;
    }
    let last = case.journal("chittyid").await.unwrap().resource_version().unwrap();
    let mut count = 0;
    while let Some(event) = writes.next().await {
        count += 1;
        if let WatchEvent::Modified(map) = event.unwrap()
            && map.resource_version().as_ref() == Some(&last)
        {
            break;
        }
    }
    // Each of the forty commits a claim and an outcome.
    println!("{count} writes for 80 decisions");
    assert!(count < 40, "{count} writes for 80 decisions");
}

#[tokio::test]
async fn a_connection_that_counts_the_same_broker_otherwise_is_refused() {
    let case = Case::new().await;
    let other = format!("{}-other", case.connection);
    let mut spec = serde_json::to_value(&case.connections().get(&case.connection).await.unwrap().spec).unwrap();
    spec["rateLimit"] = json!({"limit": 100, "window": "10s", "scope": "Key"});
    // Creation times tell whole seconds; of two in the same one the name decides.
    apply(
        &case.connections(),
        &json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "ChittyConnection",
            "metadata": {"name": other}, "spec": spec,
        }),
    )
    .await;
    case.apply("a", json!({"connection": other})).await;
    let refused = case.until_ready_is("a", "False", "ConnectionNotReady").await;
    assert!(condition(&refused, "Ready").2.contains("rateLimit.scope must be as in"));
    case.issued("b", json!({})).await;
}

#[tokio::test]
async fn one_budget_for_a_whole_key_is_shared_by_its_services() {
    let case = Setup::new(generous().limit(3, WINDOW, Scope::Key))
        .await
        .connection(json!({"rateLimit": {"limit": 3, "window": "10s", "scope": "Key"}}))
        .case()
        .await;
    for i in 0..5 {
        case.apply(&format!("c{i}"), json!({"service": format!("s{i}")})).await;
    }
    for i in 0..5 {
        case.until_ready_is(&format!("c{i}"), "True", "Issued").await;
    }
    let most = case.broker.ledger().max_posts_in_any_window(WINDOW, Scope::Key);
    assert!(most <= 3, "{most}");
    assert!(case.broker.ledger().posts.iter().all(|p| p.status == Some(200)));
}

#[tokio::test]
async fn a_429_stops_its_scope_for_as_long_as_the_server_says_and_no_other() {
    let case = Case::new().await;
    let busy = Canned::status(429)
        .header("Retry-After", "4")
        .json(&json!({"error": "Rate limit exceeded"}));
    case.broker.on(Match::any().service("chittyid")).times(1).fault(busy);
    case.apply("a", json!({})).await;
    let limited = case.until_ready_is("a", "False", "RateLimited").await;
    assert!(
        condition(&limited, "Ready")
            .2
            .contains("asked to leave chittyid alone until")
    );
    case.issued("b", json!({"service": "other"})).await;
    let first = case.broker.ledger().posts_for("chittyid")[0].since_start;
    case.until_ready_is("a", "True", "Issued").await;
    let second = case.broker.ledger().posts_for("chittyid")[1].since_start;
    assert!(
        second.checked_sub(first).unwrap() >= Duration::from_secs(4),
        "{:?}",
        second.checked_sub(first).unwrap()
    );
}

#[tokio::test]
async fn the_connection_tells_how_its_budget_stands() {
    let case = tight(4, 3600).await;
    case.issued("a", json!({})).await;
    let status = wait_for("the figures", || async {
        // Written now and then: a touched connection is written at once.
        let note = format!("{}", rand::random::<u32>());
        case.connect(
            json!({"rateLimit": {"limit": 4, "window": "10s"}, "timeout": format!("{}ms", 2000 + note.len())}),
        )
        .await;
        let status = case.connections().get(&case.connection).await.ok()?.status?;
        (status.scopes.get("chittyid")?.used >= 1).then_some(status)
    })
    .await;
    assert_eq!(status.conditions[0].status, "True");
    assert_eq!(status.scopes["chittyid"].limit, 4);
}

#[tokio::test]
async fn a_deleted_credential_leaves_the_line() {
    let case = tight(3, 3600).await;
    for i in 0..5 {
        case.apply(&format!("c{i}"), json!({})).await;
    }
    case.until_any("RateLimited").await;
    for i in 0..5 {
        case.credentials()
            .delete(&format!("c{i}"), &DeleteParams::default())
            .await
            .unwrap();
    }
    let posts = case.posts();
    tokio::time::sleep(WINDOW + Duration::from_secs(1)).await;
    assert!(
        case.posts() <= posts + 1,
        "{} requests for deleted credentials",
        case.posts() - posts
    );
}

/// Invariant 15.
#[tokio::test]
async fn an_edit_to_shorter_lives_without_room_costs_nobody_a_token_and_says_when_it_begins() {
    // Two that are renewed every 10 s fill it: a slot is kept, and some windows have two renewals of each. Every window
    // had three of one that is renewed every 3 s.
    let case = tight(5, 15).await;
    for name in ["a", "b"] {
        case.issued(name, json!({})).await;
    }
    case.patch("a", json!({"spec": {"rotation": {"maxLifetime": "5s"}}}))
        .await;
    let told = |c: &EphemeralCredential| condition(c, "Ready").2.contains("instead of every");
    case.until("a", told).await;
    for name in ["a", "b"] {
        let renewed = case
            .until(name, |c| c.status.as_ref().and_then(|s| s.revision) >= Some(3))
            .await;
        assert_eq!(condition(&renewed, "Ready").0, "True");
    }
    let still = case.until("a", told).await;
    let life = still.status.and_then(|s| Some(s.expires_at? - s.issued_at?)).unwrap();
    assert!(life.num_seconds() > 10, "{life}");
    for name in ["a", "b"] {
        let lost = case
            .events(name)
            .await
            .into_iter()
            .find(|(reason, _)| reason == "Expired");
        assert_eq!(lost, None, "{name}");
    }
    let most = case.broker.ledger().max_posts_in_any_window(WINDOW, Scope::Service);
    assert!(most <= 5, "{most}");
}

#[tokio::test]
async fn a_namespace_takes_no_more_mints_than_its_rule_says_reads_why_and_holds_nobody_up() {
    let case = Case::new().await;
    let other = format!("{}-other", case.namespace);
    create_namespace(&case.client, &other, &json!({})).await;
    let rules = |most: u32| {
        let rule = |namespace: &str, most: u32| json!({"namespaces": [namespace], "services": ["*"], "purposes": ["*"], "repos": ["*"], "maxMintsPerWindow": most});
        json!({"access": [rule(&case.namespace, most), rule(&other, 100)]})
    };
    case.connect_seen(rules(2)).await;
    // Each is renewed once and a half in an hour.
    case.issued("a", json!({})).await;
    case.apply("b", json!({})).await;
    let waiting = case.until_ready_is("b", "False", "RateLimited").await;
    let message = condition(&waiting, "Ready").2;
    assert!(
        message.contains("may take 2 of the mints of chittyid in an hour (maxMintsPerWindow"),
        "{message}"
    );
    assert!(
        message.contains("it takes 1.5, and this one needs 1.5 more"),
        "{message}"
    );
    let mut manifest = case.manifest("c", json!({}));
    manifest["metadata"]["namespace"] = json!(other);
    let others: Api<EphemeralCredential> = Api::namespaced(case.client.clone(), &other);
    apply(&others, &manifest).await;
    wait_for("the other namespace's", || async {
        let now = others.get("c").await.ok()?;
        (condition(&now, "Ready").0 == "True").then_some(())
    })
    .await;
    case.connect_seen(rules(3)).await;
    case.until_ready_is("b", "True", "Issued").await;
}
