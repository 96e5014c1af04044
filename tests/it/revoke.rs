//! The revoke annotation: tokens revoked, Secrets deleted, and nothing minted before the next rotation.

use serde_json::json;

use crate::support::*;

fn revoked(case: &Case) -> usize {
    let mints = case.broker.ledger().mints;
    mints.iter().filter(|mint| mint.revoked_at.is_some()).count()
}

async fn revoke(case: &Case, name: &str, value: &str) {
    let annotations = json!({"connect.chitty.cc/revoke": value});
    case.patch(name, json!({"metadata": {"annotations": annotations}}))
        .await;
}

async fn until_gone(case: &Case, secret: &str) {
    wait_for("the Secret to go", || async {
        case.secret(secret).await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn all_tokens_are_revoked_and_neither_an_edit_nor_a_restart_but_a_rotation_has_another_minted() {
    let world = World::start("revoke").await;
    let rule = json!([{"namespaces": ["*"], "services": ["*"], "purposes": ["*"], "repos": ["*"], "types": ["*"]}]);
    let case = Setup::within(world.clone(), generous())
        .connection(json!({"api": "Provision", "access": rule}))
        .case()
        .await;
    case.issued("a", json!({"type": "cloudflare_workers_deploy"})).await;
    // The one before would live to its own end.
    case.rotate("a", "1").await;
    case.until_revision("a", 2).await;
    assert_eq!((case.posts(), revoked(&case)), (2, 0));

    revoke(&case, "a", "leaked").await;
    let told = case.until_ready_is("a", "False", "Revoked").await;
    assert_eq!(condition(&told, "Stalled").0, "True");
    until_gone(&case, "a").await;
    wait_for("both to be revoked", || async { (revoked(&case) == 2).then_some(()) }).await;

    case.patch("a", json!({"spec": {"purpose": "another"}})).await;
    case.until_ready_is("a", "False", "Revoked").await;
    case.patch(
        "a",
        json!({"metadata": {"annotations": {"connect.chitty.cc/rotate": null}}}),
    )
    .await;
    world.kill_controller();
    world.start_controller();
    case.settle_as(json!({"type": "cloudflare_workers_deploy"})).await;
    assert_eq!(case.broker.ledger().posts_for("chittyid").len(), 2);
    assert!(case.secret("a").await.is_none());

    case.rotate("a", "2").await;
    case.until_ready_is("a", "True", "Rotated").await;
    world.kill_controller();
    world.start_controller();
    case.settle_as(json!({"type": "cloudflare_workers_deploy"})).await;
    let status = case.credentials().get("a").await.unwrap().status.unwrap();
    assert_eq!(
        status.revision,
        Some(3),
        "what was asked before the mint is not asked again"
    );
    assert!(case.secret("a").await.is_some());

    revoke(&case, "a", "leaked again").await;
    case.until_ready_is("a", "False", "Revoked").await;
    until_gone(&case, "a").await;
    wait_for("the third to be revoked", || async {
        let mints = case
            .broker
            .ledger()
            .mints_for("chittyid")
            .into_iter()
            .cloned()
            .collect::<Vec<_>>();
        mints.iter().all(|mint| mint.revoked_at.is_some()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn of_tokens_that_cannot_be_revoked_it_is_told_when_they_end_and_what_never_had_one_gets_none() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    revoke(&case, "a", "1").await;
    let told = case.until_ready_is("a", "False", "Revoked").await;
    let said = condition(&told, "Ready").2;
    assert!(
        said.contains("its last tokens cannot be revoked, for ChittyConnect gave no id of them: a copy works until"),
        "{said}"
    );
    until_gone(&case, "a").await;

    case.connect_seen(json!({"suspend": true})).await;
    case.apply("b", json!({})).await;
    case.until_ready_is("b", "False", "Suspended").await;
    revoke(&case, "b", "1").await;
    case.until_ready_is("b", "False", "Revoked").await;
    case.connect_seen(json!({"suspend": false})).await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 1);
    case.rotate("b", "1").await;
    case.until_ready_is("b", "True", "Issued").await;
}
