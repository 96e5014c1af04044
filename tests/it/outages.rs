//! A ChittyConnect that does not answer: what is spent on it, what is told, and how it ends.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use testbed::chittyconnect::{Canned, Match};

use crate::support::*;

/// What the connection says of whether ChittyConnect answers.
async fn available(case: &Case) -> Option<(String, String)> {
    let connection = case.connections().get(&case.connection).await.unwrap();
    let conditions = connection.status.unwrap_or_default().conditions;
    let available = conditions.into_iter().find(|c| c.type_ == "Available")?;
    Some((available.status, available.message))
}

async fn until_available_is(case: &Case, status: &str) -> String {
    wait_for(&format!("Available to be {status}"), || async {
        let (now, message) = available(case).await?;
        (now == status).then_some(message)
    })
    .await
}

#[tokio::test]
async fn while_nothing_can_be_sent_nothing_is_claimed_and_all_who_wait_say_the_same() {
    let case = Case::new().await;
    case.issued("first", json!({"service": "first"})).await;
    until_available_is(&case, "True").await;
    case.broker.go_down().unwrap();
    case.apply("a", json!({"service": "a"})).await;
    case.until_ready_is("a", "False", "BrokerUnavailable").await;
    let told = until_available_is(&case, "False").await;
    assert!(told.contains("nothing is spent on that"), "{told}");
    let names: Vec<String> = (0..10).map(|i| format!("b{i}")).collect();
    for name in &names {
        case.apply(name, json!({"service": name})).await;
    }
    let mut messages = Vec::new();
    for name in &names {
        let waiting = case.until_ready_is(name, "False", "BrokerUnavailable").await;
        messages.push(condition(&waiting, "Ready").2);
        assert!(case.journal(name).await.is_none(), "nothing was claimed for {name}");
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!(case.posts(), 1);
    case.broker.come_back().unwrap();
    for name in &names {
        case.until_ready_is(name, "True", "Issued").await;
        assert_eq!(case.posts_for(name), 1);
    }
    until_available_is(&case, "True").await;
}

/// Invariant 16.
#[tokio::test]
async fn while_nothing_is_answered_one_tries_for_all_and_an_answer_lets_all_go_on() {
    let case = Case::new().await;
    case.broker
        .on(Match::any())
        .fault(Canned::status(500).json(&json!({"error": "boom"})));
    for name in ["a", "b"] {
        case.apply(name, json!({"service": name})).await;
        case.until_ready_is(name, "False", "BrokerUnavailable").await;
    }
    until_available_is(&case, "False").await;
    let before = case.posts();
    let names: Vec<String> = (0..10).map(|i| format!("c{i}")).collect();
    for name in &names {
        case.apply(name, json!({"service": name})).await;
    }
    for name in &names {
        let waiting = case.until_ready_is(name, "False", "BrokerUnavailable").await;
        let message = condition(&waiting, "Ready").2;
        assert!(message.contains("one request tries for all"), "{message}");
    }
    assert!(case.posts() <= before + 1, "{} and {before}", case.posts());
    case.broker.clear_faults();
    for name in &names {
        case.until_ready_is(name, "True", "Issued").await;
    }
    until_available_is(&case, "True").await;
}

/// A live credential, and another one that was answered with `refusal`; then the live one's own try at half of its runway.
async fn until_its_own_try(refusal: Canned, reason: &str) -> Case {
    // Due after 30 s; half of the runway has passed after 37.5 s.
    let case = Case::with_ttl(Duration::from_secs(45)).await;
    case.issued("live", json!({})).await;
    case.broker.on(Match::any()).times(1).fault(refusal);
    case.apply("other", json!({})).await;
    case.until_ready_is("other", "False", reason).await;
    case.until_revision("live", 2).await;
    let posts: Vec<Duration> = case.broker.ledger().posts.iter().map(|p| p.since_start).collect();
    let waited = posts[2].saturating_sub(posts[0]);
    assert!(
        waited > Duration::from_secs(36),
        "asked after {waited:?}, though it was told to wait"
    );
    case
}

/// Invariant 16.
#[tokio::test]
async fn a_refused_key_holds_a_live_credential_up_to_half_of_its_runway_and_no_longer() {
    let refusal = Canned::status(401).json(&json!({"error": "API key is inactive"}));
    let case = until_its_own_try(refusal, "Unauthorized").await;
    case.until_ready_is("other", "True", "Issued").await;
}

/// Invariant 16.
#[tokio::test]
async fn a_429_holds_a_live_credential_up_to_half_of_its_runway_and_no_longer() {
    let limited = Canned::status(429).header("Retry-After", "1800");
    let limited = limited.json(&json!({"error": "Rate limit exceeded"}));
    let case = until_its_own_try(limited, "RateLimited").await;
    // Whoever has no token waits for as long as was asked.
    assert_eq!(case.posts(), 3);
    case.until_ready_is("other", "False", "RateLimited").await;
}

#[tokio::test]
async fn a_leader_that_lost_the_lease_and_won_it_again_learns_that_requests_can_be_sent_again() {
    let world = World::start("outages").await;
    let case = Setup::within(world, generous()).case().await;
    case.broker.go_down().unwrap();
    case.apply("a", json!({})).await;
    case.until_ready_is("a", "False", "BrokerUnavailable").await;
    let leases: Api<Lease> = Api::namespaced(case.client.clone(), SYSTEM);
    let holder = || async {
        let lease = leases.get("chittyconnect-operator").await.unwrap();
        lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default()
    };
    let before = holder().await;
    let taken = json!({"spec": {"holderIdentity": "another", "leaseDurationSeconds": 5}});
    leases
        .patch("chittyconnect-operator", &PatchParams::default(), &Patch::Merge(&taken))
        .await
        .unwrap();
    wait_for("the Lease to be won again", || async {
        (holder().await == before).then_some(())
    })
    .await;
    case.broker.come_back().unwrap();
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts(), 1);
}
