//! The control plane behaves as a cluster's does, and leaves nothing behind.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use testbed::{ControlPlane, Options, Tool};
use tokio::sync::OnceCell;

/// One for all tests that do not break it, though each has a runtime of its own.
async fn shared() -> &'static ControlPlane {
    static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
    SHARED
        .get_or_init(async || {
            ControlPlane::start(Options::default())
                .await
                .expect("the control plane starts")
        })
        .await
}

async fn eventually<F>(what: &str, mut check: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = bool>,
{
    let deadline = Instant::now() + Duration::from_secs(60);
    while !check().await {
        ensure!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        ..ObjectMeta::default()
    }
}

async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace = Namespace {
        metadata: named(name),
        ..Namespace::default()
    };
    Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await?;
    Ok(())
}

fn secret(name: &str, value: &str) -> Secret {
    Secret {
        metadata: named(name),
        data: Some(BTreeMap::from([("token".into(), ByteString(value.into()))])),
        ..Secret::default()
    }
}

#[tokio::test]
async fn a_secret_in_a_new_namespace_is_stored_and_goes_with_the_namespace() -> Result<()> {
    let cluster = shared().await;
    let client = cluster.client().await?;
    create_namespace(&client, "stored").await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "stored");
    secrets
        .create(&PostParams::default(), &secret("s", "canary-4711"))
        .await?;

    let in_etcd = cluster.etcd_dump().await?;
    let (_, value) = in_etcd
        .iter()
        .find(|(key, _)| key == "/registry/secrets/stored/s")
        .context("the Secret is in etcd")?;
    assert!(value.windows(11).any(|bytes| bytes == b"canary-4711"));

    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete("stored", &DeleteParams::default()).await?;
    eventually("the namespace is gone", async || {
        namespaces.get_opt("stored").await.is_ok_and(|n| n.is_none())
    })
    .await
}

#[tokio::test]
async fn a_deleted_owner_takes_its_secret_along() -> Result<()> {
    let client = shared().await.client().await?;
    create_namespace(&client, "owned").await?;
    let owners: Api<ConfigMap> = Api::namespaced(client.clone(), "owned");
    let secrets: Api<Secret> = Api::namespaced(client, "owned");
    let owner = ConfigMap {
        metadata: named("owner"),
        ..ConfigMap::default()
    };
    let owner = owners.create(&PostParams::default(), &owner).await?;
    let mut dependent = secret("s", "x");
    dependent.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: "owner".into(),
        uid: owner.metadata.uid.context("it has a UID")?,
        ..OwnerReference::default()
    }]);
    secrets.create(&PostParams::default(), &dependent).await?;

    owners.delete("owner", &DeleteParams::default()).await?;
    eventually("the Secret is gone", async || {
        secrets.get_opt("s").await.is_ok_and(|s| s.is_none())
    })
    .await
}

const CRD_AND_OBJECT: [&str; 2] = [
    r#"{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.testbed.dev"},
        "spec": {"group": "testbed.dev", "scope": "Namespaced",
          "names": {"plural": "things", "singular": "thing", "kind": "Thing"},
          "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]}}"#,
    r#"{"apiVersion": "testbed.dev/v1", "kind": "Thing",
        "metadata": {"name": "owner", "namespace": "default"}}"#,
];

#[tokio::test]
async fn controllers_that_start_over_collect_what_new_kinds_own_without_delay() -> Result<()> {
    let cluster = ControlPlane::start(Options::default()).await?;
    let [crd, thing] = CRD_AND_OBJECT;
    kubectl(&cluster, &["apply", "-f", "-"], crd)?;
    kubectl(
        &cluster,
        &["wait", "--for=condition=Established", "crd/things.testbed.dev"],
        "",
    )?;
    cluster.restart_controller_manager()?;
    kubectl(&cluster, &["apply", "-f", "-"], thing)?;
    let uid = kubectl(&cluster, &["get", "thing/owner", "-o=jsonpath={.metadata.uid}"], "")?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client().await?, "default");
    let mut dependent = secret("s", "x");
    dependent.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "testbed.dev/v1".into(),
        kind: "Thing".into(),
        name: "owner".into(),
        uid,
        ..OwnerReference::default()
    }]);
    secrets.create(&PostParams::default(), &dependent).await?;

    let deleted = Instant::now();
    kubectl(&cluster, &["delete", "thing/owner"], "")?;
    eventually("the Secret is gone", async || {
        secrets.get_opt("s").await.is_ok_and(|s| s.is_none())
    })
    .await?;
    // It learns of new kinds every 30 s otherwise.
    assert!(deleted.elapsed() < Duration::from_secs(20));
    Ok(())
}

fn kubectl(cluster: &ControlPlane, args: &[&str], input: &str) -> Result<String> {
    let mut child = cluster
        .kubectl()?
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "kubectl {args:?} failed");
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn a_client_is_who_its_certificate_says_and_may_do_no_more() -> Result<()> {
    let client = shared().await.client_as("alice", &["dev", "ops"]).await?;
    let user = whoami(&client).await?;
    assert_eq!(user.0, "alice");
    for group in ["dev", "ops", "system:authenticated"] {
        assert!(user.1.iter().any(|g| g == group), "not in {group}");
    }
    let secrets: Api<Secret> = Api::namespaced(client, "default");
    let Err(kube::Error::Api(status)) = secrets.get("any").await else {
        bail!("alice may read Secrets");
    };
    assert_eq!(status.code, 403);
    Ok(())
}

#[tokio::test]
async fn a_service_account_token_makes_a_kubeconfig() -> Result<()> {
    let cluster = shared().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client().await?, "default");
    let request = TokenRequest {
        spec: TokenRequestSpec::default(),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request("default", &PostParams::default(), &request)
        .await?;
    let token = answer.status.context("a token")?.token;

    let path = cluster.kubeconfig_with_token(&token)?;
    let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await?;
    let user = whoami(&Client::try_from(config)?).await?;
    assert_eq!(user.0, "system:serviceaccount:default:default");
    Ok(())
}

async fn whoami(client: &Client) -> Result<(String, Vec<String>)> {
    let review: SelfSubjectReview = Api::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    let user = review.status.and_then(|status| status.user_info).context("a user")?;
    Ok((user.username.unwrap_or_default(), user.groups.unwrap_or_default()))
}

#[tokio::test]
async fn kubectl_speaks_for_the_administrator_whose_kubeconfig_is_private() -> Result<()> {
    let cluster = shared().await;
    let output = cluster.kubectl()?.args(["auth", "can-i", "*", "*"]).output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "yes");
    let mode = std::fs::metadata(cluster.kubeconfig())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}

#[tokio::test]
async fn a_killed_apiserver_comes_back_on_its_port_with_everything_and_gone_controllers_too() -> Result<()> {
    let cluster = ControlPlane::start(Options::default()).await?;
    let client = cluster.client().await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    secrets.create(&PostParams::default(), &secret("kept", "x")).await?;
    let pid = cluster.pid(Tool::KubeApiserver);

    cluster.kill_apiserver();
    assert!(cluster.pid(Tool::KubeApiserver).is_none());
    assert!(secrets.get("kept").await.is_err());

    cluster.start_apiserver().await?;
    assert_ne!(cluster.pid(Tool::KubeApiserver), pid);
    secrets.get("kept").await?;

    cluster.restart_controller_manager()?;
    create_namespace(&client, "later").await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "later");
    eventually("a controller makes the service account", async || {
        accounts.get("default").await.is_ok()
    })
    .await
}

#[tokio::test]
async fn others_reach_it_at_the_addresses_its_certificate_names() -> Result<()> {
    let options = Options::default()
        .bind_address(Ipv4Addr::UNSPECIFIED)
        .san_ip(Ipv4Addr::new(127, 1, 2, 3))
        .apiserver_arg("--max-requests-inflight=123")
        .scheduler();
    let cluster = ControlPlane::start(options).await?;
    assert!(cluster.url().starts_with("https://127.0.0.1:"));
    assert!(cluster.pid(Tool::KubeScheduler).is_some());
    let pid = cluster.pid(Tool::KubeApiserver).context("it runs")?;
    let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    assert!(arguments.contains("--max-requests-inflight=123"));

    let http = common::http(Some(&cluster.ca_pem()))?;
    let port = cluster.port();
    let readyz = |ip: &str| http.get(format!("https://{ip}:{port}/readyz"));
    assert_eq!(common::read(readyz("127.1.2.3")).await?.text, "ok");
    assert!(common::read(readyz("127.3.2.1")).await.is_err());
    Ok(())
}

#[tokio::test]
async fn stopping_is_quick_and_leaves_neither_processes_nor_files() -> Result<()> {
    let cluster = ControlPlane::start(Options::default()).await?;
    let pids =
        [Tool::Etcd, Tool::KubeApiserver, Tool::KubeControllerManager].map(|tool| cluster.pid(tool).expect("it runs"));
    let dir = directory(cluster.kubeconfig());

    let started = Instant::now();
    cluster.stop();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(pids.iter().all(|pid| !runs(*pid)));
    assert!(!cluster.logs(Tool::KubeApiserver).is_empty());
    drop(cluster);
    assert!(!dir.exists());
    Ok(())
}

#[tokio::test]
async fn nothing_outlives_a_test_process_that_is_killed() -> Result<()> {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BTreeMap::new();
    for line in BufReader::new(holder.stdout.take().context("a pipe")?).lines() {
        let line = line?;
        let (name, value) = line.split_once('=').context("NAME=value")?;
        said.insert(name.to_owned(), value.to_owned());
        if name == "PIDS" {
            break;
        }
    }
    let pids: Vec<u32> = said["PIDS"].split(',').map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| runs(*pid)));
    let dir = directory(Path::new(&said["KUBECONFIG"]));
    assert!(dir.exists());

    holder.kill()?;
    holder.wait()?;
    eventually("all processes are gone", async || !pids.iter().any(|pid| runs(*pid))).await?;
    eventually("all files are gone", async || !dir.exists()).await
}

fn directory(kubeconfig: &Path) -> PathBuf {
    kubeconfig.parent().expect("a directory").to_owned()
}

/// A zombie does not run any more; who reaps it is another's affair.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}
