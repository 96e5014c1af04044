//! What the API server refuses, and the CRDs in the repository.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::*;

#[test]
fn the_crds_in_the_repository_are_those_the_binary_prints() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    for (name, yaml) in chittyconnect_operator::api::crd_files().unwrap() {
        let file = dir.join(name);
        if std::env::var_os("UPDATE_CRDS").is_some() {
            std::fs::write(&file, &yaml).unwrap();
        }
        let stored = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            stored == yaml,
            "{} is out of date: run the tests once with UPDATE_CRDS=1",
            file.display()
        );
    }
}

async fn try_credential(case: &Case, over: Value) -> Result<(), String> {
    let params = PatchParams::apply("tests").force().dry_run();
    let manifest = case.manifest("a", over);
    case.credentials()
        .patch("a", &params, &Patch::Apply(&manifest))
        .await
        .map(|_| ())
        .map_err(|e| e.to_string())
}

async fn try_connection(case: &Case, spec: Value) -> Result<(), String> {
    let params = PatchParams::apply("tests").force().dry_run();
    let manifest = json!({
        "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "ChittyConnection",
        "metadata": {"name": "dry"}, "spec": spec,
    });
    case.connections()
        .patch("dry", &params, &Patch::Apply(&manifest))
        .await
        .map(|_| ())
        .map_err(|e| e.to_string())
}

#[tokio::test]
async fn the_api_server_refuses_bad_credentials_and_says_why() {
    let case = Case::new().await;
    let refused: [(Value, &str); 30] = [
        (
            json!({"secrets": [{"name": "a", "data": {"x": "{% for i in range(9) %}"}}]}),
            "spec.secrets[0].data.x",
        ),
        (
            json!({"secrets": [{"name": "a", "data": {"x": "a {{# comment #}"}}]}),
            "spec.secrets[0].data.x",
        ),
        (json!({"activation": "Sometimes"}), "spec.activation"),
        (
            json!({"consumers": {"warnBefore": "25h"}}),
            "warnBefore must be between 0s and 24h",
        ),
        (json!({"consumers": {"warnBefore": "soon"}}), "warnBefore"),
        (json!({"service": ""}), "spec.service"),
        (json!({"service": "x".repeat(51)}), "spec.service"),
        (json!({"service": "a b"}), "spec.service"),
        (json!({"purpose": null}), "spec.purpose"),
        (json!({"repo": "no-slash"}), "spec.repo"),
        (json!({"runId": "a b"}), "spec.runId"),
        (
            json!({"rotation": {"renewBefore": "0s"}}),
            "renewBefore must be between 1s and 24h",
        ),
        (json!({"rotation": {"renewBefore": "soon"}}), "renewBefore"),
        (
            json!({"rotation": {"maxLifetime": "1s"}}),
            "maxLifetime must be between 5s and 24h",
        ),
        (
            json!({"rotation": {"renewBefore": "1h", "maxLifetime": "1h"}}),
            "renewBefore must be shorter than maxLifetime",
        ),
        (
            json!({"secrets": [{"name": "a", "data": {"expires_at": "x"}}]}),
            "expires_at is reserved",
        ),
        (
            json!({"secrets": [{"name": "a", "data": {"a/b": "x"}}]}),
            "keys of data consist of",
        ),
        (
            json!({"secrets": [{"name": "a", "labels": {"pod-security.kubernetes.io/enforce": "x"}}]}),
            "make other controllers act",
        ),
        (
            json!({"secrets": [{"name": "a", "labels": {"a b": "x"}}]}),
            "keys of labels are names",
        ),
        (
            json!({"secrets": [{"name": "a", "annotations": {"argocd.argoproj.io/sync-options": "x"}}]}),
            "make other controllers act",
        ),
        (
            json!({"secrets": [{"name": "a", "annotations": {"bare": "x"}}]}),
            "keys of annotations are names with a prefix",
        ),
        (
            json!({"secrets": [{"name": "a", "annotations": {"tekton.dev/git-0": "x".repeat(1025)}}]}),
            "spec.secrets[0].annotations",
        ),
        (
            json!({"secrets": [{"name": "a", "presets": ["npmrc", "npmrc"]}]}),
            "duplicate entries",
        ),
        (
            json!({"secrets": [{"name": "a", "presets": ["yarnrc"]}]}),
            "Unsupported value",
        ),
        (
            json!({"secrets": [{"name": "a", "options": {"npm": {"registry": "http://npm.example.com/"}}}]}),
            "options.npm.registry",
        ),
        (
            json!({"secrets": [{"name": "a", "options": {"npm": {"scopes": ["a/b"]}}}]}),
            "options.npm.scopes[0]",
        ),
        (
            json!({"secrets": [{"name": "a", "options": {"git": {"hosts": ["https://github.com"]}}}]}),
            "options.git.hosts[0]",
        ),
        (
            json!({"secrets": [{"name": "a", "options": {"git": {"username": "a:b"}}}]}),
            "options.git.username",
        ),
        (
            json!({"secrets": [{"name": "a", "options": {"docker": {"registries": ["ghcr.io\"x"]}}}]}),
            "options.docker.registries[0]",
        ),
        (
            json!({"secrets": [{"name": "a", "type": "kubernetes.io/service-account-token"}]}),
            "Unsupported value",
        ),
    ];
    for (over, why) in refused {
        let error = try_credential(&case, over.clone()).await.expect_err(&over.to_string());
        assert!(error.contains(why), "{over}: {error}");
    }
    let admitted = [
        json!({}),
        json!({"repo": null, "runId": "gh/123:4"}),
        json!({"rotation": {"renewBefore": "20m", "maxLifetime": "1h"}}),
        json!({"secrets": [{"name": "a", "data": {".npmrc": "//r/:_authToken={{ npm_token }}\n", "config.json": "{\"a\": {\"b\": {{ npm_token | tojson }}}}"}, "labels": {"app": "x", "example.com/team": "y"}}]}),
        json!({"secrets": [{"name": "a", "annotations": {"tekton.dev/git-0": "https://github.com"}, "presets": ["npmrc", "gitconfig", "dockerConfig"],
            "options": {"npm": {"registry": "http://verdaccio.npm.svc:4873/", "scopes": ["@chittyos", "other"]},
                "git": {"hosts": ["github.com", "git.example.com:8443"], "username": "oauth2"}, "docker": {"registries": ["https://index.docker.io/v1/", "ghcr.io"]}}}]}),
    ];
    for over in admitted {
        try_credential(&case, over.clone())
            .await
            .unwrap_or_else(|e| panic!("{over}: {e}"));
    }
}

#[tokio::test]
async fn a_long_name_and_a_changed_secret_type_are_refused() {
    let case = Case::new().await;
    let name = "n".repeat(64);
    let error = case
        .credentials()
        .patch(
            &name,
            &PatchParams::apply("tests"),
            &Patch::Apply(&case.manifest(&name, json!({}))),
        )
        .await
        .expect_err("64 characters")
        .to_string();
    assert!(error.contains("at most 63 characters"), "{error}");
    case.issued("a", json!({"secrets": [{"name": "s"}]})).await;
    let error = try_credential(
        &case,
        json!({"secrets": [{"name": "s", "type": "kubernetes.io/basic-auth", "data": {"password": "x"}}]}),
    )
    .await
    .expect_err("another type");
    assert!(error.contains("type is immutable"), "{error}");
    let other = json!({"secrets": [{"name": "t", "type": "kubernetes.io/basic-auth", "data": {"password": "x"}}]});
    try_credential(&case, other).await.unwrap();
}

#[tokio::test]
async fn the_api_server_refuses_bad_connections_and_says_why() {
    let case = Case::new().await;
    let rule = json!([{"namespaces": ["*"], "services": ["*"], "purposes": ["*"], "repos": ["*"]}]);
    let refused: [(Value, &str); 13] = [
        (json!({"url": "ftp://connect.chitty.cc"}), "url must be an https URL"),
        (
            json!({"url": "https://user@connect.chitty.cc"}),
            "url must be an https URL",
        ),
        (
            json!({"url": "https://connect.chitty.cc/?x=1"}),
            "url must be an https URL",
        ),
        (json!({"url": "not a url"}), "url must be an https URL"),
        (json!({"url": "http://127.0.0.1:1"}), "http is for loopback"),
        (
            json!({"url": "http://connect.chitty.cc", "allowInsecure": true}),
            "http is for loopback",
        ),
        (
            json!({"url": "http://127.0.0.1.evil.example", "allowInsecure": true}),
            "http is for loopback",
        ),
        (json!({"timeout": "0s"}), "timeout must be between"),
        (json!({"timeout": "2m"}), "timeout must be between"),
        (json!({"rateLimit": {"limit": 0}}), "spec.rateLimit.limit"),
        (json!({"rateLimit": {"window": "25h"}}), "window must be between"),
        (
            json!({"access": [{"services": ["*"], "purposes": ["*"], "repos": ["*"]}]}),
            "name namespaces",
        ),
        (
            json!({"access": [{"namespaces": ["*"], "services": [], "purposes": ["*"], "repos": ["*"]}]}),
            "services",
        ),
    ];
    for (spec, why) in refused {
        let error = try_connection(&case, spec.clone()).await.expect_err(&spec.to_string());
        assert!(error.contains(why), "{spec}: {error}");
    }
    let admitted = [
        json!({}),
        json!({"access": rule}),
        json!({"url": "https://broker.example:8443/base"}),
        json!({"url": "http://localhost:8080", "allowInsecure": true}),
        json!({"url": "http://[::1]:8080", "allowInsecure": true}),
        json!({"url": "http://connect.chitty.svc:8080", "allowInsecure": true}),
        json!({"url": "http://connect.chitty.svc.cluster.local", "allowInsecure": true}),
        json!({"access": [{"namespaceSelector": {"matchLabels": {"a": "b"}}, "services": ["*"], "purposes": ["*"], "repos": ["*"]}]}),
        json!({"audit": {"chronicle": {"tokenSecretRef": {"name": "t", "key": "token"}}}}),
    ];
    for spec in admitted {
        try_connection(&case, spec.clone())
            .await
            .unwrap_or_else(|e| panic!("{spec}: {e}"));
    }
}

#[tokio::test]
async fn services_and_connections_can_be_selected_by_field() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    case.issued("b", json!({"service": "other"})).await;
    let of = kube::api::ListParams::default().fields("spec.service=other");
    let found = case.credentials().list(&of).await.unwrap();
    assert_eq!(found.items.len(), 1);
    let of = kube::api::ListParams::default().fields(&format!("spec.connection={}", case.connection));
    assert_eq!(case.credentials().list(&of).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn what_no_controller_has_looked_at_says_so_from_the_first_moment() {
    // Without a controller: nobody writes a status here.
    let world = World::without_controller("unseen").await;
    let client = world.client().await;
    create_namespace(&client, "unseen", &json!({})).await;
    let credentials: kube::Api<kube::core::DynamicObject> = kube::Api::namespaced_with(
        client.clone(),
        "unseen",
        &kube::api::ApiResource::erase::<chittyconnect_operator::api::EphemeralCredential>(&()),
    );
    let connections: kube::Api<kube::core::DynamicObject> = kube::Api::all_with(
        client,
        &kube::api::ApiResource::erase::<chittyconnect_operator::api::ChittyConnection>(&()),
    );
    let object = |kind: &str, spec: Value| -> kube::core::DynamicObject {
        let object = json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": kind,
            "metadata": {"name": "a"}, "spec": spec,
            // The API server drops this; and the default is there all the same.
            "status": {"observedGeneration": 1},
        });
        serde_json::from_value(object).unwrap()
    };
    let params = kube::api::PostParams::default();
    let asked = object("EphemeralCredential", json!({"service": "s", "purpose": "p"}));
    credentials.create(&params, &asked).await.unwrap();
    connections
        .create(&params, &object("ChittyConnection", json!({})))
        .await
        .unwrap();
    for stored in [credentials.get("a").await.unwrap(), connections.get("a").await.unwrap()] {
        let status = &stored.data["status"];
        assert_eq!(status["observedGeneration"], -1);
        assert_eq!(status["conditions"], json!([]));
        assert_eq!(stored.metadata.generation, Some(1));
    }
}
