//! A credential's life: issued, renewed, changed, suspended, gone.

use std::time::{Duration, Instant};

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn a_credential_is_ready_within_a_second_of_being_applied() {
    let case = Case::new().await;
    case.issued("first", json!({"service": "warm"})).await;
    let started = Instant::now();
    case.issued("a", json!({})).await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let minted = case.broker.ledger().mints_for("chittyid").len();
    assert_eq!(minted, 1);
}

#[tokio::test]
async fn the_secret_holds_what_the_broker_issued_and_its_end() {
    let case = Case::new().await;
    let credential = case.issued("a", json!({})).await;
    let ledger = case.broker.ledger();
    let mint = &ledger.mints_for("chittyid")[0];
    for (key, value) in &mint.secrets {
        assert_eq!(case.value("a", key).await.as_ref(), Some(value), "{key}");
    }
    let status = credential.status.unwrap();
    let end = status
        .expires_at
        .unwrap()
        .to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    assert_eq!(case.value("a", "expires_at").await, Some(end));
    assert_eq!(
        status.outputs,
        ["account_id", "cloudflare_token", "github_token", "npm_token"]
    );
    assert_eq!(status.revision, Some(1));
    assert_eq!(status.secrets, ["a"]);
}

#[tokio::test]
async fn the_request_carries_the_spec_and_a_run_id_of_its_own() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    case.issued("b", json!({"service": "other", "runId": "12345", "repo": null}))
        .await;
    let ledger = case.broker.ledger();
    let first = ledger.posts_for("chittyid")[0].clone();
    assert_eq!(first.purpose.as_deref(), Some("worker-deploy"));
    assert_eq!(first.repo.as_deref(), Some("CHITTYOS/chittyid"));
    assert_eq!(first.run_id, first.idempotency_key);
    let second = ledger.posts_for("other")[0].clone();
    assert_eq!(second.run_id.as_deref(), Some("12345"));
    assert_eq!(second.repo, None);
}

#[tokio::test]
async fn a_token_is_renewed_before_its_end_again_and_again() {
    let case = Case::with_ttl(Duration::from_secs(9)).await;
    case.issued("a", json!({})).await;
    let credential = case.until_revision("a", 3).await;
    assert_eq!(condition(&credential, "Ready").1, "Rotated");
    let ledger = case.broker.ledger();
    let mints = ledger.mints_for("chittyid");
    for pair in mints.windows(2) {
        let left = pair[0].expires_at.unwrap() - pair[1].issued_at;
        assert!(left.num_milliseconds() > 2500, "renewed with {left} left");
    }
}

#[tokio::test]
async fn irrelevant_edits_never_mint() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    case.patch(
        "a",
        json!({"metadata": {"labels": {"team": "x"}, "annotations": {"note": "y"}}}),
    )
    .await;
    case.patch("a", json!({"spec": {"rotation": {"renewBefore": "10m"}}}))
        .await;
    case.patch(
        "a",
        json!({"spec": {"secrets": [{"name": "a", "labels": {"app": "z"}}]}}),
    )
    .await;
    let status = json!({"status": {"revision": 99, "conditions": []}});
    case.credentials()
        .patch_status("a", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    wait_for("the label on the Secret", || async {
        let labels = case.secret("a").await?.metadata.labels?;
        (labels.get("app").map(String::as_str) == Some("z")).then_some(())
    })
    .await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

#[tokio::test]
async fn a_changed_request_mints_once_and_the_old_secret_stays_until_then() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    let before = case.value("a", "npm_token").await.unwrap();
    case.apply("a", json!({"purpose": "package-publish"})).await;
    case.until_revision("a", 2).await;
    assert_ne!(case.value("a", "npm_token").await.unwrap(), before);
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn a_changed_service_moves_to_another_budget_and_counts_on() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    case.apply("a", json!({"service": "chittyauth"})).await;
    let moved = case.until_revision("a", 2).await;
    assert_eq!(condition(&moved, "Ready").0, "True");
    case.settle().await;
    assert_eq!((case.posts_for("chittyid"), case.posts_for("chittyauth")), (1, 1));
}

#[tokio::test]
async fn a_new_rotate_annotation_mints_once() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    let annotate = json!({"metadata": {"annotations": {"connect.chitty.cc/rotate": "now"}}});
    case.patch("a", annotate.clone()).await;
    case.until_revision("a", 2).await;
    case.patch("a", annotate).await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn suspended_nothing_is_minted_and_resumed_it_is() {
    let case = Case::new().await;
    case.apply("a", json!({"suspend": true})).await;
    case.until_ready_is("a", "False", "Suspended").await;
    assert_eq!(case.posts(), 0);
    case.apply("a", json!({"suspend": false})).await;
    case.until_ready_is("a", "True", "Issued").await;
    case.apply("a", json!({"suspend": true})).await;
    case.until_ready_is("a", "True", "Suspended").await;
    assert!(case.secret("a").await.is_some());
}

/// Invariant 7.
#[tokio::test]
async fn at_its_end_an_unrenewed_secret_is_gone_broker_up_or_down() {
    let case = Case::with_ttl(Duration::from_secs(6)).await;
    let credential = case.issued("a", json!({})).await;
    let end = credential.status.unwrap().expires_at.unwrap();
    case.broker.go_down().unwrap();
    let gone = case
        .until("a", |c| {
            condition(c, "Issued").0 == "False" && condition(c, "Ready").1 == "BrokerUnavailable"
        })
        .await;
    let late = chrono::Utc::now() - end;
    assert!(late.num_milliseconds() < 1500, "noticed {late} late");
    assert!(case.secret("a").await.is_none());
    assert_eq!(condition(&gone, "Ready").0, "False");
    case.broker.come_back().unwrap();
    case.until("a", |c| condition(c, "Ready").0 == "True").await;
}

/// Invariant 12.
#[tokio::test]
async fn deletion_takes_the_secret_and_its_record_along_and_hangs_on_nothing() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    case.delete("a").await;
    wait_for("the Secret to go", || async {
        case.secret("a").await.is_none().then_some(())
    })
    .await;
    wait_for("the journal to forget it", || async {
        case.journal_facts().await.uids.is_empty().then_some(())
    })
    .await;
    // The request stays counted.
    assert_eq!(case.journal_facts().await.sent, 1);
}

#[tokio::test]
async fn a_recreated_credential_waits_for_its_predecessors_secret_and_gets_its_own() {
    let case = Case::new().await;
    let first = case.issued("a", json!({})).await;
    case.delete("a").await;
    let second = case.issued("a", json!({})).await;
    assert_ne!(first.metadata.uid, second.metadata.uid);
    let owner = case
        .secret("a")
        .await
        .unwrap()
        .metadata
        .owner_references
        .unwrap()
        .remove(0);
    assert_eq!(Some(owner.uid), second.metadata.uid);
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn a_connection_that_comes_late_goes_and_returns_is_followed() {
    let case = Case::new().await;
    case.connections()
        .delete(&case.connection, &DeleteParams::default())
        .await
        .unwrap();
    case.apply("a", json!({})).await;
    case.until_ready_is("a", "False", "ConnectionNotFound").await;
    case.connect(json!({})).await;
    case.until_ready_is("a", "True", "Issued").await;
    case.connections()
        .delete(&case.connection, &DeleteParams::default())
        .await
        .unwrap();
    case.until_ready_is("a", "True", "ConnectionNotFound").await;
    assert!(case.secret("a").await.is_some());
    case.connect(json!({})).await;
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

/// Invariant 11.
#[tokio::test]
async fn a_refused_key_stops_the_connection_until_it_changes() {
    let case = Case::new().await;
    case.write_key("wrong").await;
    case.apply("a", json!({})).await;
    case.apply("b", json!({"service": "other"})).await;
    case.until_ready_is("a", "False", "Unauthorized").await;
    case.until_ready_is("b", "False", "Unauthorized").await;
    let asked = case.posts();
    assert!(asked <= 2, "{asked} requests with a refused key");
    case.until_connection_is("False", "Unauthorized").await;
    case.write_key(case.broker.api_key()).await;
    case.until_ready_is("a", "True", "Issued").await;
    case.until_ready_is("b", "True", "Issued").await;
    case.until_connection_is("True", "Ready").await;
}

#[tokio::test]
async fn a_missing_key_is_told_and_picked_up_at_once() {
    let case = Case::new().await;
    case.keys()
        .delete(&case.connection, &DeleteParams::default())
        .await
        .unwrap();
    case.apply("a", json!({})).await;
    let waiting = case.until_ready_is("a", "False", "ConnectionNotReady").await;
    let message = condition(&waiting, "Ready").2;
    assert!(
        message.contains("does not exist") && message.contains(SYSTEM),
        "{message}"
    );
    case.write_key(case.broker.api_key()).await;
    case.until_ready_is("a", "True", "Issued").await;
}

/// Invariant 12.
#[tokio::test]
async fn a_namespace_that_is_deleted_goes_and_what_it_held_is_let_go() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> = kube::Api::all(case.client.clone());
    namespaces
        .delete(&case.namespace, &DeleteParams::default())
        .await
        .unwrap();
    wait_for("the namespace to go", || async {
        namespaces
            .get_opt(&case.namespace)
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert_eq!(case.posts_for("chittyid"), 1);
}
