//! The budget as users meet it.

use std::time::Duration;

use kube::api::DeleteParams;
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

#[tokio::test]
async fn two_connections_to_one_broker_share_a_budget_and_the_smaller_limit_wins() {
    let case = tight(3, 3600).await;
    let twin = format!("{}-twin", case.connection);
    let mut spec = serde_json::to_value(&case.connections().get(&case.connection).await.unwrap().spec).unwrap();
    spec["rateLimit"] = json!({"limit": 100, "window": "10s"});
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
    let most = case.broker.ledger().max_posts_in_any_window(WINDOW, Scope::Service);
    assert!(most <= 3, "{most}");
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
