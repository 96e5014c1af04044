//! Managed Secrets: laid out as asked, healed when changed, and nobody else's touched.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn one_mint_fills_several_secrets_each_laid_out_as_asked() {
    let case = Case::new().await;
    let layout = json!({"secrets": [
        {"name": "plain"},
        {"name": "shaped", "labels": {"app": "ci"}, "data": {".npmrc": "//registry.npmjs.org/:_authToken={{ npm_token }}\n"}},
        {"name": "both", "presets": ["outputs"], "data": {"CF": "{{ cloudflare_token }}"}},
        {"name": "pull", "type": "kubernetes.io/dockerconfigjson",
         "data": {".dockerconfigjson": "{\"auths\":{\"ghcr.io\":{\"password\":\"{{ github_token }}\"}}}"}},
    ]});
    case.issued("a", layout).await;
    assert_eq!(case.posts_for("chittyid"), 1);
    let ledger = case.broker.ledger();
    let minted = &ledger.mints_for("chittyid")[0].secrets;
    let npm = &minted["npm_token"];
    assert_eq!(
        case.value("shaped", ".npmrc").await.unwrap(),
        format!("//registry.npmjs.org/:_authToken={npm}\n")
    );
    assert_eq!(case.value("plain", "npm_token").await.as_ref(), Some(npm));
    assert_eq!(
        case.value("both", "CF").await.as_ref(),
        Some(&minted["cloudflare_token"])
    );
    assert!(case.value("both", "github_token").await.is_some());
    assert!(case.value("shaped", "github_token").await.is_none());
    let pull = case.secret("pull").await.unwrap();
    assert_eq!(pull.type_.as_deref(), Some("kubernetes.io/dockerconfigjson"));
    let labels = case.secret("shaped").await.unwrap().metadata.labels.unwrap();
    assert_eq!(labels.get("app").map(String::as_str), Some("ci"));
    for name in ["plain", "shaped", "both", "pull"] {
        assert!(case.value(name, "expires_at").await.is_some(), "{name}");
    }
    assert!(case.secret("a").await.is_none());
}

#[tokio::test]
async fn items_come_and_go_with_one_mint_and_what_is_dropped_is_removed() {
    let case = Case::new().await;
    case.issued("a", json!({"secrets": [{"name": "one"}, {"name": "two"}]}))
        .await;
    case.apply("a", json!({"secrets": [{"name": "two"}, {"name": "three"}]}))
        .await;
    case.until_revision("a", 2).await;
    wait_for("the dropped Secret to go", || async {
        case.secret("one").await.is_none().then_some(())
    })
    .await;
    assert!(case.secret("three").await.is_some());
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn a_changed_value_is_removed_and_healed_once_then_it_stalls() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    let forge = json!({"stringData": {"npm_token": "forged"}});
    case.secrets()
        .patch("a", &PatchParams::default(), &Patch::Merge(forge.clone()))
        .await
        .unwrap();
    case.until_revision("a", 2).await;
    assert_ne!(case.value("a", "npm_token").await.as_deref(), Some("forged"));
    case.until_ready_is("a", "True", "Rotated").await;
    case.secrets()
        .patch("a", &PatchParams::default(), &Patch::Merge(forge))
        .await
        .unwrap();
    let stalled = case.until_ready_is("a", "False", "Tampered").await;
    assert_eq!(condition(&stalled, "Stalled").0, "True");
    assert!(case.secret("a").await.is_none());
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn a_removed_secret_is_healed() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    case.secrets().delete("a", &DeleteParams::default()).await.unwrap();
    case.until_revision("a", 2).await;
    assert!(case.secret("a").await.is_some());
}

#[tokio::test]
async fn what_is_not_a_value_is_restored_without_a_mint() {
    let case = Case::new().await;
    let credential = case.issued("a", json!({})).await;
    let edit = json!({
        "metadata": {
            "labels": {"app.kubernetes.io/managed-by": null, "mine": "stays"},
            "annotations": {"connect.chitty.cc/seal": "forged", "connect.chitty.cc/expires-at": "2099-01-01T00:00:00Z"},
            "ownerReferences": null,
        },
        "stringData": {"extra": "key"},
    });
    // In two steps: without owner and seal at once it would be nobody's.
    let mut first = edit.clone();
    first["metadata"]["annotations"]
        .as_object_mut()
        .unwrap()
        .remove("connect.chitty.cc/seal");
    case.secrets()
        .patch("a", &PatchParams::default(), &Patch::Merge(first))
        .await
        .unwrap();
    let restored = || async {
        let secret = case.secret("a").await?;
        let owner = secret.metadata.owner_references.as_ref()?.first()?;
        let labels = secret.metadata.labels.clone()?;
        let annotations = secret.metadata.annotations.clone()?;
        (Some(&owner.uid) == credential.metadata.uid.as_ref()
            && labels.contains_key("app.kubernetes.io/managed-by")
            && labels.contains_key("mine")
            && !annotations["connect.chitty.cc/expires-at"].starts_with("2099")
            && annotations["connect.chitty.cc/seal"] != "forged"
            && !secret.data?.contains_key("extra"))
        .then_some(())
    };
    wait_for("owner, label, annotations and keys to be restored", restored).await;
    let forged = json!({"metadata": {"annotations": edit["metadata"]["annotations"]}});
    case.secrets()
        .patch("a", &PatchParams::default(), &Patch::Merge(forged))
        .await
        .unwrap();
    wait_for("the seal to be restored", restored).await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

/// Invariant 6.
#[tokio::test]
async fn a_secret_of_somebody_else_is_left_alone_and_nothing_is_minted() {
    let case = Case::new().await;
    let foreign = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "stringData": {"mine": "value"},
    });
    apply(&case.secrets(), &foreign).await;
    case.apply("a", json!({})).await;
    let refused = case.until_ready_is("a", "False", "SecretConflict").await;
    assert_eq!(condition(&refused, "Stalled").0, "True");
    assert_eq!(case.posts(), 0);
    assert_eq!(case.value("a", "mine").await.as_deref(), Some("value"));
    case.secrets().delete("a", &DeleteParams::default()).await.unwrap();
    case.until_ready_is("a", "True", "Issued").await;
}

/// Invariant 5.
#[tokio::test]
async fn where_the_secret_cannot_be_written_nothing_is_minted() {
    let case = Case::new().await;
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-secrets"},
        "spec": {"hard": {"secrets": "0"}},
    });
    let quotas: kube::Api<k8s_openapi::api::core::v1::ResourceQuota> =
        kube::Api::namespaced(case.client.clone(), &case.namespace);
    apply(&quotas, &quota).await;
    wait_for("the quota to be in force", || async {
        quotas
            .get("no-secrets")
            .await
            .ok()?
            .status?
            .hard?
            .contains_key("secrets")
            .then_some(())
    })
    .await;
    case.apply("a", json!({})).await;
    let refused = case.until_ready_is("a", "False", "SecretRefused").await;
    let message = condition(&refused, "Ready").2;
    assert!(
        message.contains("nothing is minted") && message.contains("quota"),
        "{message}"
    );
    assert_eq!(case.posts(), 0);
    quotas.delete("no-secrets", &DeleteParams::default()).await.unwrap();
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts(), 1);
}

#[tokio::test]
async fn a_template_that_does_not_compile_is_told_and_nothing_is_minted() {
    let case = Case::new().await;
    case.apply("a", json!({"secrets": [{"name": "a", "data": {"x": "{{ oops"}}]}))
        .await;
    let refused = case.until_ready_is("a", "False", "InvalidTemplate").await;
    assert_eq!(condition(&refused, "Stalled").0, "True");
    assert_eq!(case.posts(), 0);
    case.apply(
        "a",
        json!({"secrets": [{"name": "a", "data": {"x": "{{ npm_token }}"}}]}),
    )
    .await;
    case.until_ready_is("a", "True", "Issued").await;
}

#[tokio::test]
async fn a_template_that_needs_a_missing_output_names_both_lists_and_does_not_ask_again() {
    let case = Case::new().await;
    case.broker.set_outputs(
        "chittyid",
        testbed::chittyconnect::Outputs::default().without("npm_token"),
    );
    case.apply(
        "a",
        json!({"secrets": [{"name": "a", "data": {"x": "{{ npm_token }}"}}]}),
    )
    .await;
    let refused = case.until_ready_is("a", "False", "InvalidTemplate").await;
    let message = condition(&refused, "Ready").2;
    assert!(
        message.contains("needs npm_token; ChittyConnect gave account_id"),
        "{message}"
    );
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

#[tokio::test]
async fn an_unknown_extra_output_is_passed_through() {
    let case = Case::new().await;
    case.broker.set_outputs(
        "chittyid",
        testbed::chittyconnect::Outputs::default().with("vercel_token"),
    );
    case.issued("a", json!({})).await;
    let ledger = case.broker.ledger();
    let minted: &BTreeMap<String, String> = &ledger.mints_for("chittyid")[0].secrets;
    assert_eq!(
        case.value("a", "vercel_token").await.as_ref(),
        Some(&minted["vercel_token"])
    );
}

#[tokio::test]
async fn what_the_api_server_says_of_a_token_it_refuses_is_repeated_nowhere() {
    let case = Case::new().await;
    case.refuse_secrets().await;
    case.apply("a", json!({})).await;
    let held_up = case.until_ready_is("a", "False", "SecretRefused").await;
    let message = condition(&held_up, "Ready").2;
    assert!(
        message.contains("a token was made, but Secret a cannot be written"),
        "{message}"
    );
    let status = serde_json::to_string(&held_up).unwrap();
    let events = format!("{:?}", case.events("a").await);
    let told = [status, events, case.world.log()].concat();
    let tokens = case.broker.ledger().secret_values();
    assert!(!tokens.is_empty());
    for token in tokens {
        assert!(
            !told.contains(&token) && !told.contains(&base64(&token)),
            "a token was repeated"
        );
    }
    case.take_secrets();
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts(), 1);
}

#[tokio::test]
async fn what_a_policy_says_of_a_renewed_token_is_told_in_its_own_words() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    case.judge_secrets(
        r#"{expression: "'cost-center' in object.metadata.labels", message: "every Secret needs a cost-center"}"#,
    );
    let canary = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "canary", "labels": {"a": "b"}}});
    wait_for("the policy to be in force", || async {
        let params = PatchParams::apply("tests").force();
        case.secrets()
            .patch("canary", &params, &Patch::Apply(&canary))
            .await
            .err()
    })
    .await;
    case.rotate("a", "1").await;
    case.until("a", |c| {
        let (_, _, message) = condition(c, "Ready");
        message.contains("Secret a cannot be written") && message.contains("every Secret needs a cost-center")
    })
    .await;
}

fn is_empty(secret: &Secret) -> bool {
    let mut values = secret.data.iter().flatten();
    values.all(|(_, value)| value.0.is_empty() || value.0 == b"{}")
}

#[tokio::test]
async fn a_secret_that_a_finalizer_holds_is_emptied_at_the_tokens_end() {
    let case = Case::with_ttl(Duration::from_secs(6)).await;
    case.issued("a", json!({})).await;
    let hold = json!({"metadata": {"finalizers": ["tests.example/hold"]}});
    let hold = Patch::Merge(hold);
    case.secrets().patch("a", &PatchParams::default(), &hold).await.unwrap();
    case.broker.go_down().unwrap();
    let empty = wait_for("the Secret to be emptied", || async {
        let secret = case.secret("a").await?;
        is_empty(&secret).then_some(secret)
    })
    .await;
    assert!(empty.metadata.deletion_timestamp.is_some());
    // One that its user deleted, and something holds, is emptied then too.
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    case.secrets()
        .patch("a", &PatchParams::default(), &release)
        .await
        .unwrap();
    case.broker.come_back().unwrap();
    case.until_revision("a", 2).await;
    case.secrets().patch("a", &PatchParams::default(), &hold).await.unwrap();
    case.secrets().delete("a", &DeleteParams::default()).await.unwrap();
    wait_for("the Secret to be emptied", || async {
        is_empty(&case.secret("a").await?).then_some(())
    })
    .await;
    case.secrets()
        .patch("a", &PatchParams::default(), &release)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_a_finalizer_holds_of_a_deleted_credential_is_emptied_whatever_its_type() {
    let case = Case::new().await;
    let docker = r#"{"auths":{"ghcr.io":{"username":"x","password":"{{ github_token }}"}}}"#;
    let secrets = json!([
        {"name": "opaque", "data": {"token": "{{ npm_token }}"}},
        {"name": "basic", "type": "kubernetes.io/basic-auth", "data": {"username": "x", "password": "{{ npm_token }}"}},
        {"name": "docker", "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": docker}},
    ]);
    case.issued("a", json!({"secrets": secrets})).await;
    let names = ["opaque", "basic", "docker"];
    for name in names {
        let hold = Patch::Merge(json!({"metadata": {"finalizers": ["tests.example/hold"]}}));
        case.secrets()
            .patch(name, &PatchParams::default(), &hold)
            .await
            .unwrap();
    }
    case.delete("a").await;
    for name in names {
        wait_for("the Secret to be emptied", || async {
            is_empty(&case.secret(name).await?).then_some(())
        })
        .await;
        let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        case.secrets()
            .patch(name, &PatchParams::default(), &release)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_secret_changed_in_a_loop_is_recorded_once_a_token() {
    let case = Case::new().await;
    let (chronicle, field) = chronicle(&case).await;
    case.connect_seen(field).await;
    case.issued("a", json!({})).await;
    let tamper = |secret: Secret| {
        let mut secret = secret;
        secret.metadata.resource_version = None;
        secret.metadata.uid = None;
        secret.metadata.managed_fields = None;
        let data = secret.data.get_or_insert_default();
        data.insert("npm_token".into(), k8s_openapi::ByteString(b"junk".to_vec()));
        secret
    };
    let mut made = tamper(case.secret("a").await.unwrap());
    for _ in 0..6 {
        // Somebody who may write Secrets puts it back, changed, whenever it is removed.
        wait_for("the junk to go", || async {
            let there = case.secret("a").await;
            let junk = there
                .as_ref()
                .is_some_and(|s| s.data.as_ref().unwrap()["npm_token"].0 == b"junk");
            (!junk).then_some(())
        })
        .await;
        if let Some(healed) = case.secret("a").await {
            made = tamper(healed);
            let _ = case.secrets().replace("a", &PostParams::default(), &made).await;
        } else {
            made.metadata.name = Some("a".into());
            let _ = case.secrets().create(&PostParams::default(), &made).await;
        }
    }
    case.settle().await;
    wait_for("every event to be delivered", || async {
        (case.journal_facts().await.events == 0 && !chronicle.entries().is_empty()).then_some(())
    })
    .await;
    let entries = chronicle.entries();
    let tampered = entries.iter().filter(|e| e.event_type == "credential.tampered").count();
    assert!((1..=2).contains(&tampered), "{tampered} events for two tokens");
    assert!(case.posts_for("chittyid") <= 2, "healed more than once");
}
