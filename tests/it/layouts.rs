//! Layouts: what presets write, which types take them, and what is told before and after a mint.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testbed::chittyconnect::Outputs;

use crate::support::*;

#[tokio::test]
async fn one_mint_fills_every_preset_and_every_type_of_secret() {
    let case = Case::new().await;
    let layout = json!({"secrets": [
        {"name": "variables", "presets": ["env"]},
        {"name": "files", "presets": ["dotenv", "npmrc", "netrc", "gitCredentials", "gitconfig", "dockerConfig"],
         "options": {"npm": {"registry": "https://npm.example.com", "scopes": ["chittyos"]}, "git": {"hosts": ["git.example.com"]}}},
        {"name": "basic", "type": "kubernetes.io/basic-auth", "presets": ["basicAuth"], "options": {"git": {"username": "ci"}}},
        {"name": "pull", "type": "kubernetes.io/dockerconfigjson", "presets": ["dockerConfig"]},
        {"name": "ssh", "type": "kubernetes.io/ssh-auth", "data": {"ssh-privatekey": "{{ github_token }}"}},
        {"name": "tls", "type": "kubernetes.io/tls", "data": {"tls.crt": "{{ account_id }}", "tls.key": "{{ github_token }}"}},
        {"name": "jenkins", "presets": ["jenkins"], "data": {"text": "{{ cloudflare_token }}"}},
        {"name": "mixed", "presets": ["outputs"], "data": {"npm_token": "mine"}},
    ]});
    case.issued("a", layout).await;
    assert_eq!(case.posts_for("chittyid"), 1);
    let ledger = case.broker.ledger();
    let minted: &BTreeMap<String, String> = &ledger.mints_for("chittyid")[0].secrets;
    let (npm, github) = (&minted["npm_token"], &minted["github_token"]);
    let value = async |secret, key| case.value(secret, key).await.unwrap_or_default();
    assert_eq!(&value("variables", "GH_TOKEN").await, github);
    assert_eq!(
        value("files", ".npmrc").await,
        format!("@chittyos:registry=https://npm.example.com/\n//npm.example.com/:_authToken={npm}\n")
    );
    assert!(
        value("files", ".env")
            .await
            .contains(&format!("export NPM_TOKEN='{npm}'\n"))
    );
    assert_eq!(
        value("files", ".git-credentials").await,
        format!("https://x-access-token:{github}@git.example.com\n")
    );
    assert_eq!(&value("basic", "password").await, github);
    assert_eq!(value("basic", "username").await, "ci");
    for (secret, key) in [("pull", ".dockerconfigjson"), ("files", "config.json")] {
        let config: Value = serde_json::from_str(&value(secret, key).await).unwrap();
        assert_eq!(config["auths"]["ghcr.io"]["password"], **github);
    }
    assert_eq!(&value("ssh", "ssh-privatekey").await, github);
    assert_eq!(&value("tls", "tls.key").await, github);
    assert_eq!(value("mixed", "npm_token").await, "mine");
    let jenkins = case.secret("jenkins").await.unwrap();
    let labels = jenkins.metadata.labels.unwrap();
    assert_eq!(labels["jenkins.io/credentials-type"], "secretText");
}

/// Invariant 9.
#[tokio::test]
async fn labels_and_annotations_follow_the_spec_without_a_mint_and_others_stay() {
    let case = Case::new().await;
    let spec = |labels: Value, annotations: Value| json!({"secrets": [{"name": "a", "labels": labels, "annotations": annotations}]});
    case.issued(
        "a",
        spec(
            json!({"team": "web"}),
            json!({"tekton.dev/git-0": "https://github.com"}),
        ),
    )
    .await;
    let somebodys = json!({"metadata": {"labels": {"theirs": "x"}, "annotations": {"theirs": "y"}}});
    case.secrets()
        .patch(
            "a",
            &kube::api::PatchParams::default(),
            &kube::api::Patch::Merge(somebodys),
        )
        .await
        .unwrap();
    case.apply(
        "a",
        spec(json!({"tier": "ci"}), json!({"tekton.dev/docker-0": "https://ghcr.io"})),
    )
    .await;
    wait_for("the metadata to be what the spec says", || async {
        let metadata = case.secret("a").await?.metadata;
        let (labels, annotations) = (metadata.labels?, metadata.annotations?);
        let keys = |map: &BTreeMap<String, String>| map.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
        (keys(&labels) == "app.kubernetes.io/managed-by theirs tier"
            && keys(&annotations)
                == "connect.chitty.cc/expires-at connect.chitty.cc/own-metadata connect.chitty.cc/seal tekton.dev/docker-0 theirs")
            .then_some(())
    })
    .await;
    case.apply("a", json!({"secrets": [{"name": "a"}]})).await;
    wait_for("nothing of the spec's to be left", || async {
        let metadata = case.secret("a").await?.metadata;
        let (labels, annotations) = (metadata.labels?, metadata.annotations?);
        (labels.len() == 2 && annotations.len() == 3 && !annotations.contains_key("connect.chitty.cc/own-metadata"))
            .then_some(())
    })
    .await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

/// Invariant 5.
#[tokio::test]
async fn a_layout_that_cannot_be_written_is_told_before_anything_is_minted() {
    let case = Case::new().await;
    let refused = [
        (
            json!({"presets": ["npmrc"], "data": {".npmrc": "x"}}),
            "writes the key .npmrc",
        ),
        (json!({"presets": ["jenkins"]}), "Jenkins wants the key text"),
        (
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "x"}}),
            "needs the keys tls.crt and tls.key",
        ),
        (
            json!({"annotations": {"example.com/x": "y"}}),
            "allowed are those that begin with tekton.dev/ or reloader.stakater.com/",
        ),
        (
            json!({"annotations": {"reflector.v1.k8s.emberstack.com/reflection-allowed": "true"}}),
            "is never allowed",
        ),
    ];
    for (at, (mut secret, why)) in refused.into_iter().enumerate() {
        let name = format!("a{at}");
        merge(&mut secret, json!({"name": name}));
        case.apply(&name, json!({"secrets": [secret]})).await;
        let told = case.until_ready_is(&name, "False", "InvalidSpec").await;
        let message = condition(&told, "Ready").2;
        assert!(message.contains(why), "{message}");
        assert_eq!(condition(&told, "Stalled").0, "True");
    }
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 0);
}

/// An annotation that is not allowed must not reach a Secret that is there already, either.
#[tokio::test]
async fn an_annotation_that_is_not_allowed_never_reaches_a_secret() {
    let case = Case::new().await;
    case.issued("a", json!({"secrets": [{"name": "a"}]})).await;
    let copied = json!({"replicator.v1.mittwald.de/replicate-to": "*"});
    case.apply("a", json!({"secrets": [{"name": "a", "annotations": copied}]}))
        .await;
    case.until("a", |c| condition(c, "Ready").1 == "InvalidSpec").await;
    case.settle().await;
    let annotations = case
        .secret("a")
        .await
        .map(|s| s.metadata.annotations.unwrap_or_default());
    assert!(annotations.is_none_or(|a| a.keys().all(|key| !key.contains("mittwald"))));
    assert_eq!(case.posts_for("chittyid"), 1);
}

#[tokio::test]
async fn outputs_that_did_not_come_are_all_named_at_once_and_nothing_is_published() {
    let case = Case::new().await;
    let poor = Outputs::default().without("npm_token").without("github_token");
    case.broker.set_outputs("chittyid", poor);
    let layout = json!({"secrets": [
        {"name": "plain"},
        {"name": "npm", "presets": ["npmrc"]},
        {"name": "git", "presets": ["netrc", "gitconfig"], "data": {"x": "{{ vercel_token }}"}},
    ]});
    case.apply("a", layout).await;
    let refused = case.until_ready_is("a", "False", "InvalidTemplate").await;
    let message = condition(&refused, "Ready").2;
    let named = "Secret git, key x needs vercel_token; Secret git, preset gitconfig needs github_token; \
                 Secret git, preset netrc needs github_token; Secret npm, preset npmrc needs npm_token; \
                 ChittyConnect gave account_id, cloudflare_token";
    assert!(message.contains(named), "{message}");
    case.settle().await;
    for secret in ["plain", "npm", "git"] {
        assert!(case.secret(secret).await.is_none(), "{secret}");
    }
    assert_eq!(case.posts_for("chittyid"), 1, "one try a window");
}

#[tokio::test]
async fn changed_options_mint_once_and_those_that_no_preset_takes_do_not() {
    let case = Case::new().await;
    let spec = |options: Value| json!({"secrets": [{"name": "a", "presets": ["npmrc"], "options": options}]});
    case.issued("a", spec(json!({}))).await;
    case.apply(
        "a",
        spec(json!({"docker": {"registries": ["a.example"]}, "git": {"hosts": ["b.example"]}})),
    )
    .await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 1);
    case.apply("a", spec(json!({"npm": {"scopes": ["chittyos"]}}))).await;
    case.until_revision("a", 2).await;
    let npmrc = case.value("a", ".npmrc").await.unwrap();
    assert!(npmrc.starts_with("@chittyos:registry="), "{npmrc}");
}
