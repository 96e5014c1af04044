//! The node runs Pods, and leaves nothing behind however it ends. `.ci/node` runs these.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{LogParams, PostParams};
use testbed::ControlPlane;
use testbed::image::Image;
use testbed::node::{Node, Plan, traces};

/// What the victim says when it may be killed.
const STARTED: &str = "victim started";
const IMAGE: &str = "docker.io/library/tools:1";

async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn start() -> Result<(Node, ControlPlane)> {
    let plan = Plan::new()?;
    let plane = ControlPlane::start(plan.control_plane()).await?;
    let node = Node::start(plan, &plane).await?;
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("tools.tar");
    Image::of_busybox(IMAGE)?.write(&archive)?;
    node.import(&archive)?;
    Ok((node, plane))
}

/// Runs it to its end, and gives what it printed.
async fn run(plane: &ControlPlane, name: &str, script: &str) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(plane.client().await?, "default");
    let pod = serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "c", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-euc", script],
                "securityContext": {"runAsUser": 1001, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            }],
        },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    let phase = until("the Pod ends", async || {
        let phase = pods.get(name).await?.status.and_then(|s| s.phase);
        Ok(phase.filter(|p| p == "Succeeded" || p == "Failed"))
    })
    .await?;
    let printed = pods.logs(name, &LogParams::default()).await?;
    ensure!(phase == "Succeeded", "the Pod failed: {printed}");
    Ok(printed)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, containerd, runc and CNI plugins: .ci/node"]
async fn a_pod_runs_reaches_the_api_server_and_nothing_stays() -> Result<()> {
    let (node, plane) = start().await?;
    let port = plane.port();
    let script = format!(
        "id -u; gateway=$(ip route | grep default | cut -d' ' -f3); nc -w 5 $gateway {port} </dev/null && echo reached"
    );
    let printed = run(&plane, "one", &script).await.with_context(|| node.logs())?;
    ensure!(printed == "1001\nreached\n", "{printed}");
    node.stop()?;
    until("everything is gone", async || Ok(traces().is_empty().then_some(()))).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, containerd, runc and CNI plugins: .ci/node"]
async fn a_killed_run_leaves_nothing_either() -> Result<()> {
    if std::env::var_os("TESTBED_NODE_VICTIM").is_some() {
        let (node, plane) = start().await?;
        run(&plane, "one", "true").await?;
        println!("\n{STARTED} {}", node.name());
        std::future::pending::<()>().await;
    }
    let mut victim = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "a_killed_run_leaves_nothing_either",
            "--ignored",
            "--nocapture",
        ])
        .env("TESTBED_NODE_VICTIM", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(victim.stdout.take().context("a pipe")?).lines();
    ensure!(
        lines.any(|line| line.is_ok_and(|line| line.starts_with(STARTED))),
        "the victim did not get that far"
    );
    ensure!(!traces().is_empty(), "a node leaves traces while it runs");
    victim.kill()?;
    victim.wait()?;
    until("everything is gone", async || Ok(traces().is_empty().then_some(()))).await
}
