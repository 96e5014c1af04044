//! What Argo CD and Flux make of our objects: the documented health checks, run on objects as they really are.

use std::path::Path;

use mlua::{Lua, LuaSerdeExt};
use serde::Serialize;
use serde_json::{Value, json};

use crate::support::*;

/// What the documented check says of an object.
fn argo(object: &impl Serialize) -> String {
    let object = serde_json::to_value(object).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/argocd-cm.yaml");
    let map: Value = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let kind = object["kind"].as_str().unwrap();
    let key = format!("resource.customizations.health.connect.chitty.cc_{kind}");
    let script = map["data"][&key].as_str().unwrap();
    let lua = Lua::new();
    // Absent is nil there, as it is for Argo CD.
    let options = mlua::serde::SerializeOptions::new()
        .serialize_none_to_null(false)
        .serialize_unit_to_null(false);
    lua.globals()
        .set("obj", lua.to_value_with(&object, options).unwrap())
        .unwrap();
    let health: mlua::Table = lua.load(script).eval().unwrap();
    assert!(!health.get::<String>("message").unwrap().is_empty());
    health.get("status").unwrap()
}

/// As kstatus has it for kinds it does not know, and Flux and Helm after it.
fn kstatus(object: &impl Serialize) -> &'static str {
    let object = serde_json::to_value(object).unwrap();
    let status = &object["status"];
    let generation = &object["metadata"]["generation"];
    if status["observedGeneration"].is_number() && status["observedGeneration"] != *generation {
        return "InProgress";
    }
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let is = |kind: &str, wanted: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == wanted);
    if is("Reconciling", "True") {
        return "InProgress";
    }
    if is("Stalled", "True") {
        return "Failed";
    }
    if is("Ready", "True") {
        return "Current";
    }
    if is("Ready", "False") || is("Ready", "Unknown") {
        return "InProgress";
    }
    // Nothing is said: it is taken for done.
    "Current"
}

fn told(object: &impl Serialize) -> (String, &'static str) {
    (argo(object), kstatus(object))
}

fn pair(argo: &str, kstatus: &'static str) -> (String, &'static str) {
    (argo.to_owned(), kstatus)
}

#[tokio::test]
async fn argo_and_flux_tell_credentials_that_are_new_ready_denied_waiting_and_suspended_apart() {
    let case = Case::new().await;
    case.broker.deny(
        testbed::chittyconnect::Match::minting().purpose("account-admin"),
        testbed::chittyconnect::Denial::Forbidden,
    );
    // As it was created: nobody has looked at it.
    let new = case.apply("a", json!({})).await;
    assert_eq!(told(&new), pair("Progressing", "InProgress"));
    let issued = case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(told(&issued), pair("Healthy", "Current"));

    case.apply("denied", json!({"purpose": "account-admin"})).await;
    let denied = case.until_ready_is("denied", "False", "Denied").await;
    assert_eq!(told(&denied), pair("Degraded", "Failed"));

    case.apply("invalid", json!({"type": "cloudflare_workers_deploy"}))
        .await;
    let invalid = case.until_ready_is("invalid", "False", "InvalidSpec").await;
    assert_eq!(told(&invalid), pair("Degraded", "Failed"));

    // Somebody may be about to write that connection.
    case.apply("early", json!({"connection": "not-there-yet"})).await;
    let early = case.until_ready_is("early", "False", "ConnectionNotFound").await;
    assert_eq!(told(&early), pair("Progressing", "InProgress"));

    case.apply("suspended", json!({"suspend": true})).await;
    let suspended = case.until_ready_is("suspended", "False", "Suspended").await;
    assert_eq!(argo(&suspended), "Suspended");

    // An edit that was not looked at yet is not up to date, whatever the status says.
    let mut edited = serde_json::to_value(&issued).unwrap();
    edited["metadata"]["generation"] = json!(7);
    assert_eq!(told(&edited), pair("Progressing", "InProgress"));
}

#[tokio::test]
async fn argo_and_flux_tell_connections_that_can_be_used_from_others() {
    let case = Case::new().await;
    let ready = async |reason: &'static str| {
        wait_for(reason, || async {
            let connection = case.connections().get(&case.connection).await.ok()?;
            let status = connection.status.clone()?;
            let told = status
                .conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.reason == reason);
            (told && status.observed_generation == connection.metadata.generation).then_some(connection)
        })
        .await
    };
    assert_eq!(told(&ready("Ready").await), pair("Healthy", "Current"));
    case.connect(json!({"suspend": true})).await;
    assert_eq!(argo(&ready("Suspended").await), "Suspended");
    case.connect(json!({"auth": {"apiKeySecretRef": {"name": "not-there", "key": "api-key"}}}))
        .await;
    assert_eq!(told(&ready("ConnectionNotReady").await), pair("Degraded", "InProgress"));
}
