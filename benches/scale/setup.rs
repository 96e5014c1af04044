//! What is measured on.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chittyconnect_operator::api::{ChittyConnection, EphemeralCredential};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use testbed::{Binaries, ChittyConnect, ControlPlane, Tool};

use crate::{Arguments, IN_FLIGHT, NAMESPACES, SYSTEM};

/// Name of the n-th credential; also of its repository.
pub(crate) fn name_of(number: usize) -> String {
    format!("c{number:05}")
}

pub(crate) fn namespace_of(number: usize) -> String {
    format!("bench-{:02}", number % NAMESPACES)
}

pub(crate) async fn install(plane: &ControlPlane, client: &Client) -> anyhow::Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (_, yaml) in chittyconnect_operator::api::crd_files()? {
        let crd: CustomResourceDefinition = serde_yaml::from_str(&yaml)?;
        crds.create(&PostParams::default(), &crd).await?;
    }
    let names = (0..NAMESPACES).map(|i| format!("bench-{i:02}"));
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in names.chain([SYSTEM.to_owned(), "bench-api".to_owned()]) {
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        namespaces.create(&PostParams::default(), &namespace).await?;
    }
    let binaries = Binaries::find_or_build(&[Tool::Helm], |line| eprintln!("{line}"))?;
    let helm = binaries.path(Tool::Helm)?;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/chittyconnect-operator");
    let rendered = Command::new(helm)
        .args(["template", "chittyconnect-operator"])
        .arg(chart)
        .args(["--namespace", SYSTEM, "--set", "crds.enabled=false"])
        .args(["--kube-version", "1.35.0"])
        .args(["serviceaccount", "rbac", "admission"].map(|t| format!("--show-only=templates/{t}.yaml")))
        .output()?;
    anyhow::ensure!(
        rendered.status.success(),
        "helm: {}",
        String::from_utf8_lossy(&rendered.stderr)
    );
    let mut apply = plane
        .kubectl()?
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    std::io::Write::write_all(&mut apply.stdin.take().expect("a pipe"), &rendered.stdout)?;
    anyhow::ensure!(apply.wait()?.success(), "kubectl apply failed");
    // Creates of a kind are delayed until it has been there for two seconds.
    tokio::time::sleep(Duration::from_secs(4)).await;
    Ok(())
}

pub(crate) async fn connect(client: &Client, broker: &ChittyConnect, arguments: &Arguments) -> anyhow::Result<()> {
    let keys: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    let key = json!({
        "metadata": {"name": "chittyconnect-api-key", "annotations": {"connect.chitty.cc/host": broker.authority()}},
        "stringData": {"api-key": broker.api_key()},
    });
    keys.create(&PostParams::default(), &serde_json::from_value(key)?)
        .await?;
    let connections: Api<ChittyConnection> = Api::all(client.clone());
    let connection = json!({
        "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "ChittyConnection", "metadata": {"name": "default"},
        "spec": {
            "url": broker.url(), "allowInsecure": true,
            "rateLimit": {"limit": arguments.limit, "window": arguments.window},
            "access": [{"namespaces": ["bench-*"], "services": ["*"], "purposes": ["*"], "repos": ["*"]}],
        },
    });
    connections
        .create(&PostParams::default(), &serde_json::from_value(connection)?)
        .await?;
    Ok(())
}

/// Creates what `each` makes of `0..count`, [`IN_FLIGHT`] at a time.
pub(crate) async fn create_all<F>(count: usize, each: impl Fn(usize) -> F) -> anyhow::Result<()>
where
    F: Future<Output = kube::Result<()>>,
{
    futures::stream::iter(0..count)
        .map(each)
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

pub(crate) async fn api_limit(client: &Client) -> anyhow::Result<Value> {
    const SECRETS: usize = 2000;
    let api: Api<Secret> = Api::namespaced(client.clone(), "bench-api");
    let begun = Instant::now();
    create_all(SECRETS, |i| {
        let api = api.clone();
        async move {
            let secret = json!({"metadata": {"name": format!("s{i}")}, "stringData": {"token": "x".repeat(400)}});
            let secret = serde_json::from_value(secret).map_err(kube::Error::SerdeError)?;
            api.create(&PostParams::default(), &secret).await.map(|_| ())
        }
    })
    .await?;
    let each = begun.elapsed().as_secs_f64() / f64::from(u32::try_from(SECRETS)?);
    api.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    Ok(json!({"secretsPerSecond": 1.0 / each}))
}

pub(crate) async fn create(client: &Client, arguments: &Arguments) -> anyhow::Result<()> {
    create_all(arguments.objects, |i| {
        let api: Api<EphemeralCredential> = Api::namespaced(client.clone(), &namespace_of(i));
        let mut credential = json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
            "metadata": {"name": name_of(i)},
            "spec": {"service": format!("s{}", i % arguments.services), "purpose": "worker-deploy", "repo": format!("CHITTYOS/{}", name_of(i))},
        });
        if let Some(runway) = arguments.runway(i) {
            credential["spec"]["rotation"] = json!({"renewBefore": format!("{}ms", runway.as_millis())});
        }
        async move {
            let credential = serde_json::from_value(credential).map_err(kube::Error::SerdeError)?;
            api.create(&PostParams::default(), &credential).await.map(|_| ())
        }
    })
    .await
}
