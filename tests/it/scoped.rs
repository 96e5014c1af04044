//! An installation that serves some namespaces, with Roles there and no right to any Secret elsewhere.

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::support::*;

/// Whether nobody has said anything of a credential.
async fn is_untouched(case: &Case, namespace: &str, name: &str) -> bool {
    let credentials: Api<chittyconnect_operator::api::EphemeralCredential> =
        Api::namespaced(case.client.clone(), namespace);
    let there = credentials.get(name).await.unwrap();
    let status = there.status.unwrap_or_default();
    status.conditions.is_empty() && status.observed_generation == Some(-1)
}

/// A credential like those of `case`, elsewhere.
async fn ask_from(case: &Case, namespace: &str, name: &str, over: Value) {
    let mut manifest = case.manifest(name, over);
    manifest["metadata"]["namespace"] = json!(namespace);
    let credentials: Api<chittyconnect_operator::api::EphemeralCredential> =
        Api::namespaced(case.client.clone(), namespace);
    apply(&credentials, &manifest).await;
}

#[tokio::test]
async fn with_roles_alone_tokens_are_issued_rotated_healed_revoked_and_refused_and_others_are_left_alone() {
    let reach = Reach {
        namespaces: &["team-a", "team-b"],
        connections: &["team-a"],
        ..Reach::default()
    };
    let world = World::of_reach("scoped", reach).await;
    world.start_controller();
    let rule = json!({"services": ["*"], "purposes": ["worker-deploy"], "repos": ["*"], "types": ["*"]});
    let mut named = rule.clone();
    merge(&mut named, json!({"namespaces": ["team-a", "outside"]}));
    let mut selected = rule;
    merge(
        &mut selected,
        json!({"namespaceSelector": {"matchLabels": {"purpose": "test"}}}),
    );
    let access = json!([named, selected]);
    let case = Setup::within(world.clone(), generous())
        .connection(json!({"api": "Provision", "access": access}))
        .case_in("team-a".to_owned())
        .await;
    let typed = || json!({"type": "cloudflare_workers_deploy"});

    case.issued("a", typed()).await;
    let first = case.value("a", "cloudflare_token").await.unwrap();
    case.rotate("a", "1").await;
    case.until_revision("a", 2).await;
    let second = case.value("a", "cloudflare_token").await.unwrap();
    assert_ne!(first, second);

    case.secrets().delete("a", &DeleteParams::default()).await.unwrap();
    case.until_revision("a", 3).await;
    assert_ne!(case.value("a", "cloudflare_token").await.unwrap(), second);

    let mut refused = typed();
    merge(&mut refused, json!({"purpose": "account-admin"}));
    case.apply("refused", refused).await;
    case.until_ready_is("refused", "False", "NotPermitted").await;

    // Its labels are read, and it is not watched.
    ask_from(&case, "team-b", "b", typed()).await;
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(case.client.clone(), "team-b");
    wait_for("the Secret of the other namespace", || async {
        secrets.get_opt("b").await.ok()?
    })
    .await;

    // Neither another namespace nor another connection is its business.
    create_namespace(&case.client, "outside", &json!({"purpose": "test"})).await;
    ask_from(&case, "outside", "c", typed()).await;
    let mut elsewhere = typed();
    merge(&mut elsewhere, json!({"connection": "default"}));
    case.apply("elsewhere", elsewhere).await;

    case.delete("a").await;
    wait_for("all tokens of a to be revoked", || async {
        let mints = case.broker.ledger().mints;
        let all = mints.iter().filter(|mint| mint.revoked_at.is_some()).count();
        (all == 3 && case.secret("a").await.is_none()).then_some(())
    })
    .await;
    assert!(is_untouched(&case, "outside", "c").await);
    assert!(is_untouched(&case, "team-a", "elsewhere").await);
    assert_eq!(case.posts(), 4);

    assert!(!world.log().contains("is forbidden"));

    // A namespace goes, and the rights in it: its token is revoked, and whoever starts anew serves the others.
    let namespaces: Api<Namespace> = Api::all(case.client.clone());
    namespaces.delete("team-b", &DeleteParams::default()).await.unwrap();
    wait_for("the token of the deleted namespace to be revoked", || async {
        case.broker
            .ledger()
            .mints
            .iter()
            .all(|mint| mint.revoked_at.is_some())
            .then_some(())
    })
    .await;
    wait_for("the namespace to be gone", || async {
        namespaces.get_opt("team-b").await.unwrap().is_none().then_some(())
    })
    .await;
    world.kill_controller();
    world.start_controller();
    case.issued("d", typed()).await;
    assert_eq!(case.posts(), 5);
}

#[tokio::test]
async fn where_namespaces_may_not_be_read_a_selector_matches_none_and_the_status_says_so() {
    let reach = Reach {
        namespaces: &["team-a", "team-b"],
        connections: &["team-a"],
        unread: true,
        ..Reach::default()
    };
    let world = World::of_reach("unread", reach).await;
    world.start_controller();
    let rule = json!({"services": ["*"], "purposes": ["*"], "repos": ["*"]});
    let mut selected = rule.clone();
    merge(
        &mut selected,
        json!({"namespaceSelector": {"matchLabels": {"purpose": "test"}}}),
    );
    let case = Setup::within(world.clone(), generous())
        .connection(json!({"access": [selected]}))
        .case_in("team-a".to_owned())
        .await;
    case.apply("a", json!({})).await;
    let refused = case.until_ready_is("a", "False", "NotPermitted").await;
    let said = condition(&refused, "Ready").2;
    assert!(said.contains("may not read the labels of this namespace"), "{said}");
    assert_eq!(case.posts(), 0);

    let mut named = rule;
    merge(&mut named, json!({"namespaces": ["team-a"]}));
    case.connect(json!({"access": [named]})).await;
    case.until_ready_is("a", "True", "Issued").await;
    case.rotate("a", "1").await;
    case.until_revision("a", 2).await;
    case.delete("a").await;
    wait_for("the Secret to go", || async {
        case.secret("a").await.is_none().then_some(())
    })
    .await;
}
