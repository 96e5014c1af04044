//! Two installations in one cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use testbed::process::Process;

use crate::support::*;

const SECOND: &str = "second-system";

/// A controller of a second installation, with every right there is.
fn second(world: &World) -> (Process, PathBuf) {
    let log = world.file("second.log");
    let arguments = [
        format!("KUBECONFIG={}", world.plane.kubeconfig().display()),
        env!("CARGO_BIN_EXE_chittyconnect-operator").to_owned(),
        "--identity=second".to_owned(),
        format!("--namespace={SECOND}"),
        "--metrics-addr=127.0.0.1:0".to_owned(),
        "--health-addr=127.0.0.1:0".to_owned(),
        "--log=debug,tower=info".to_owned(),
    ];
    let process = Process::spawn(Path::new("/usr/bin/env"), &arguments, &log).expect("a controller");
    (process, log)
}

async fn holder(case: &Case) -> Option<String> {
    let connection = case.connections().get(&case.connection).await.unwrap();
    connection.status.and_then(|s| s.held_by).map(|h| h.namespace)
}

/// The API key, where the second installation looks for it.
async fn copy_key(case: &Case) {
    let key = case.keys().get(&case.connection).await.unwrap();
    let copy = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": key.name_any(), "annotations": key.annotations()}, "data": key.data,
    });
    let keys: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(case.client.clone(), SECOND);
    apply(&keys, &copy).await;
}

#[tokio::test]
async fn a_second_installation_is_refused_says_why_and_mints_nothing_until_the_first_is_gone() {
    let world = World::start("installs").await;
    let case = Setup::within(world.clone(), generous().ttl(Duration::from_secs(20)))
        .case()
        .await;
    create_namespace(&case.client, SECOND, &json!({})).await;
    case.issued("a", json!({})).await;
    assert_eq!(holder(&case).await.as_deref(), Some(SYSTEM));
    copy_key(&case).await;

    let (_second, log) = second(&world);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let refusal = format!("is served by the installation in namespace {SYSTEM}");
    wait_for("the second installation to be refused", || async {
        said().contains(&refusal).then_some(())
    })
    .await;
    wait_for("it to lead all the same", || async {
        said().contains("leading").then_some(())
    })
    .await;
    // Renewals and a newcomer are the first one's, once each.
    case.issued("b", json!({})).await;
    let renewed = case.until_revision("a", 2).await;
    assert_eq!(condition(&renewed, "Ready").0, "True");
    case.settle().await;
    let journals = |namespace: &str| {
        let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(case.client.clone(), namespace);
        async move { maps.list(&kube::api::ListParams::default()).await.unwrap().items.len() }
    };
    let heads = case.journal("chittyid").await;
    assert!(heads.is_some() && journals(SYSTEM).await > 0);
    assert!(
        !said().contains("credential.provisioned") && !said().contains("credential.rotated"),
        "{}",
        said()
    );

    // The first one stands still: that alone hands nothing over.
    world.kill_controller();
    let posts = case.posts();
    case.apply("c", json!({"service": "other"})).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((case.posts(), holder(&case).await.as_deref()), (posts, Some(SYSTEM)));
    let unseen = case.credentials().get("c").await.unwrap();
    assert_eq!(
        serde_json::to_value(&unseen.status).unwrap()["observedGeneration"],
        json!(-1)
    );

    // Its namespace is gone: now it is.
    let namespaces: Api<Namespace> = Api::all(case.client.clone());
    namespaces.delete(SYSTEM, &DeleteParams::default()).await.unwrap();
    wait_for("the second installation to take over", || async {
        (holder(&case).await? == SECOND).then_some(())
    })
    .await;
    case.until_ready_is("c", "True", "Issued").await;
    assert!(said().contains("credential.provisioned"));
}

#[tokio::test]
async fn a_hold_that_is_cleared_by_hand_is_taken_anew_by_whoever_runs() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    let cleared: Value = json!({"status": {"heldBy": null}});
    let params = kube::api::PatchParams::default();
    let patch = kube::api::Patch::Merge(&cleared);
    case.connections()
        .patch_status(&case.connection, &params, &patch)
        .await
        .unwrap();
    wait_for("the hold", || async { (holder(&case).await? == SYSTEM).then_some(()) }).await;
    case.rotate("a", "1").await;
    case.until_revision("a", 2).await;
}
