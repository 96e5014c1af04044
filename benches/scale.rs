//! Many credentials on a real control plane: how long, how many calls, how much memory.
//!
//! ```console
//! $ cargo bench --bench scale -- --objects 1000 --services 125
//! $ cargo bench --bench scale -- --objects 10000 --services 1250 --json after.json
//! $ cargo bench --bench scale -- --objects 1000 --binary target/before/chittyconnect-operator
//! ```
//!
//! etcd, the API server and the controller share this machine, and a simulated ChittyConnect answers at once, so
//! what is measured is the controller against what the API server can take. Phases, in order:
//!
//! - **api**: Secrets the API server creates a second, 32 in flight: the limit of everything that follows.
//! - **bulk**: from the controller's start, with all credentials there, until every one is Ready.
//! - **idle**: what it costs to have them.
//! - **restart**: killed and started again with everything valid, until it makes no more calls.
//!
//! Calls are counted by the API server itself; the bench's own are made outside of what is measured, but for
//! one watch. Reads of credentials include the garbage collector's, about ten a second. These machines are noisy: compare two builds side by side, and quote ratios.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chittyconnect_operator::api::{ChittyConnection, EphemeralCredential};
use clap::Parser;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use testbed::process::Process;
use testbed::{Binaries, ChittyConnect, ControlPlane, Options, Tool};

const SYSTEM: &str = "chittyconnect-system";
const NAMESPACES: usize = 20;
const IN_FLIGHT: usize = 32;

/// Measures the controller with many credentials.
#[derive(Parser)]
struct Arguments {
    /// Credentials.
    #[arg(long, default_value_t = 1000)]
    objects: usize,
    /// Services they are spread over: each has a budget of its own.
    #[arg(long, default_value_t = 125)]
    services: usize,
    /// Provisions a window allows.
    #[arg(long, default_value_t = 10_000)]
    limit: u32,
    /// That window. Tokens minted together are renewed together, and need two slots of a long one: for thousands in
    /// one service name a short one, such as 10s.
    #[arg(long, default_value = "1h")]
    window: String,
    /// How long a phase may take, in seconds; what was reached by then is told.
    #[arg(long, default_value_t = 300)]
    phase_timeout: u64,
    /// How long it is watched idling, in seconds.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Keeps one core busy meanwhile.
    #[arg(long)]
    busy_core: bool,
    /// Another build to measure.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_chittyconnect-operator"))]
    binary: PathBuf,
    /// Where the figures are written, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tokio::runtime::Runtime::new()?.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let client = plane.client().await?;
    install(&plane, &client).await?;
    let broker = ChittyConnect::builder()
        .ttl(Duration::from_secs(3600))
        .without_limits()
        .start()?;
    connect(&client, &broker, arguments).await?;
    let mut report = Vec::new();
    report.push(("api", api_limit(&client).await?));
    create(&client, arguments).await?;
    let bench = Bench {
        arguments,
        plane: &plane,
        client: &client,
        broker: &broker,
    };
    let busy = arguments
        .busy_core
        .then(|| Command::new("sh").args(["-c", "while :; do :; done"]).spawn())
        .transpose()?;
    let (mut controller, bulk) = bench.bulk().await?;
    report.push(("bulk", bulk));
    if let Some(mut busy) = busy {
        busy.kill()?;
        busy.wait()?;
    }
    bench.until_quiet().await?;
    report.push(("idle", bench.idle(&controller).await?));
    controller.kill();
    report.push(("restart", bench.restart().await?));
    for (phase, figures) in &report {
        print(phase, figures);
    }
    if let Some(file) = &arguments.json {
        let all: BTreeMap<_, _> = report.into_iter().collect();
        std::fs::write(file, serde_json::to_string_pretty(&all)?)?;
    }
    plane.stop();
    Ok(())
}

struct Bench<'a> {
    arguments: &'a Arguments,
    plane: &'a ControlPlane,
    client: &'a Client,
    broker: &'a ChittyConnect,
}

impl Bench<'_> {
    fn start(&self) -> anyhow::Result<Process> {
        let user = format!("system:serviceaccount:{SYSTEM}:chittyconnect-operator");
        let group = format!("system:serviceaccounts:{SYSTEM}");
        let kubeconfig = self.plane.kubeconfig_as(&user, &["system:serviceaccounts", &group])?;
        let arguments = [
            format!("KUBECONFIG={}", kubeconfig.display()),
            self.arguments.binary.display().to_string(),
            "--identity=bench".to_owned(),
            format!("--namespace={SYSTEM}"),
            "--metrics-addr=127.0.0.1:0".to_owned(),
            "--health-addr=127.0.0.1:0".to_owned(),
        ];
        Process::spawn(Path::new("/usr/bin/env"), &arguments, &self.log())
    }

    fn log(&self) -> PathBuf {
        self.plane.kubeconfig().with_file_name("controller.log")
    }

    async fn bulk(&self) -> anyhow::Result<(Process, Value)> {
        let before = calls(self.client).await?;
        let controller = self.start()?;
        let begun = Instant::now();
        let timeout = Duration::from_secs(self.arguments.phase_timeout);
        let mut ready = 0;
        // Whoever is not there in time is told of, and no failure of the bench.
        let _ = tokio::time::timeout(timeout, self.watch_ready(&mut ready)).await;
        let seconds = begun.elapsed().as_secs_f64();
        let usage = Usage::of(&controller)?;
        let after = calls(self.client).await?;
        let mut figures = self.figures(&before, &after, seconds);
        figures["ready"] = json!(ready);
        figures["of"] = json!(self.arguments.objects);
        figures["readyPerSecond"] = json!(f64::from(u32::try_from(ready)?) / seconds);
        figures["mints"] = json!(self.broker.ledger().mints.len());
        usage.note(&mut figures);
        self.note_lease(&mut figures);
        Ok((controller, figures))
    }

    async fn watch_ready(&self, ready: &mut usize) {
        let api: Api<EphemeralCredential> = Api::all(self.client.clone());
        let mut events = watcher(api, watcher::Config::default())
            .default_backoff()
            .touched_objects()
            .boxed();
        let mut names = std::collections::HashSet::new();
        while let Some(event) = events.next().await {
            let Ok(credential) = event else { continue };
            let conditions = credential.status.iter().flat_map(|s| &s.conditions);
            if conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True") {
                names.insert(credential.uid());
            }
            *ready = names.len();
            if names.len() >= self.arguments.objects {
                return;
            }
        }
    }

    /// Waits until nothing is written any more but the Lease.
    async fn until_quiet(&self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let mut before = calls(self.client).await?;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let after = calls(self.client).await?;
            let mut made = of_controller(&before, &after);
            // The garbage collector looks up owners now and then, for as long as there are any.
            made.remove("GET ephemeralcredentials");
            let busy: u64 = made.values().sum();
            if busy == 0 || begun.elapsed() > Duration::from_secs(self.arguments.phase_timeout) {
                return Ok((begun.elapsed().as_secs_f64() - 1.0).max(0.0));
            }
            before = after;
        }
    }

    async fn idle(&self, controller: &Process) -> anyhow::Result<Value> {
        let (before, from) = (calls(self.client).await?, Usage::of(controller)?);
        tokio::time::sleep(Duration::from_secs(self.arguments.idle)).await;
        let (after, to) = (calls(self.client).await?, Usage::of(controller)?);
        let seconds = f64::from(u32::try_from(self.arguments.idle)?);
        let mut figures = self.figures(&before, &after, seconds);
        to.note(&mut figures);
        figures["cpuPercent"] = json!((to.cpu_seconds - from.cpu_seconds) / seconds * 100.0);
        Ok(figures)
    }

    async fn restart(&self) -> anyhow::Result<Value> {
        let (before, mints) = (calls(self.client).await?, self.broker.ledger().mints.len());
        let controller = self.start()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let seconds = self.until_quiet().await? + 1.0;
        let after = calls(self.client).await?;
        let mut figures = self.figures(&before, &after, seconds);
        figures["mints"] = json!(self.broker.ledger().mints.len() - mints);
        Usage::of(&controller)?.note(&mut figures);
        self.note_lease(&mut figures);
        Ok(figures)
    }

    fn figures(&self, before: &Calls, after: &Calls, seconds: f64) -> Value {
        let made = of_controller(before, after);
        let total = |which: fn(&str) -> bool| -> u64 { made.iter().filter(|(k, _)| which(k)).map(|(_, n)| n).sum() };
        let objects = u32::try_from(self.arguments.objects).unwrap_or(u32::MAX);
        let each = |n: u64| f64::from(u32::try_from(n).unwrap_or(u32::MAX)) / f64::from(objects);
        json!({
            "seconds": seconds,
            "writesPerCredential": each(total(is_write)),
            "readsPerCredential": each(total(|call| call.starts_with("GET ") || call.starts_with("LIST "))),
            "dryRunsPerCredential": each(total(|call| call.ends_with("(dry run)"))),
            "calls": made,
        })
    }

    fn note_lease(&self, figures: &mut Value) {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        figures["steppedDown"] = json!(log.matches("stepping down").count());
    }
}

fn is_write(call: &str) -> bool {
    let verb = ["POST ", "PUT ", "APPLY ", "PATCH ", "DELETE "];
    verb.iter().any(|v| call.starts_with(v)) && !call.ends_with("(dry run)")
}

/// What the process has used so far.
struct Usage {
    cpu_seconds: f64,
    resident_mib: f64,
    peak_mib: f64,
}

impl Usage {
    fn of(process: &Process) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid()))?;
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // utime and stime, in hundredths of a second.
        let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
        let mib = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
            let kib = line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
            kib.unwrap_or_default() / 1024.0
        };
        Ok(Self {
            cpu_seconds: (ticks(11) + ticks(12)) / 100.0,
            resident_mib: mib("VmRSS:"),
            peak_mib: mib("VmHWM:"),
        })
    }

    fn note(&self, figures: &mut Value) {
        figures["cpuSeconds"] = json!(self.cpu_seconds);
        figures["residentMiB"] = json!(self.resident_mib);
        figures["peakMiB"] = json!(self.peak_mib);
    }
}

/// Calls the API server answered, by verb and resource.
type Calls = BTreeMap<String, u64>;

async fn calls(client: &Client) -> anyhow::Result<Calls> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(request).await?;
    let mut calls = Calls::new();
    for line in text.lines() {
        let Some((labels, count)) = line
            .strip_prefix("apiserver_request_total{")
            .and_then(|rest| rest.rsplit_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value).filter(|v| !v.is_empty())
        };
        let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else {
            continue;
        };
        let part = label("subresource").map(|s| format!("/{s}")).unwrap_or_default();
        let dry = label("dry_run").map_or("", |_| " (dry run)");
        *calls.entry(format!("{verb} {resource}{part}{dry}")).or_default() += count.parse::<u64>()?;
    }
    Ok(calls)
}

/// What was called between the two, without the Lease, watches and what the control plane itself asks for.
fn of_controller(before: &Calls, after: &Calls) -> Calls {
    const RESOURCES: [&str; 6] = [
        "configmaps",
        "ephemeralcredentials",
        "chittyconnections",
        "secrets",
        "events",
        "namespaces",
    ];
    let mut made = Calls::new();
    for (call, count) in after {
        let resource = call.split([' ', '/']).nth(1).unwrap_or_default();
        let more = count.saturating_sub(before.get(call).copied().unwrap_or(0));
        if more > 0 && RESOURCES.contains(&resource) && !call.starts_with("WATCH") {
            made.insert(call.clone(), more);
        }
    }
    made
}

fn print(phase: &str, figures: &Value) {
    println!("\n{phase}");
    for (name, value) in figures.as_object().into_iter().flatten() {
        match value {
            Value::Object(calls) => {
                for (call, count) in calls {
                    println!("    {count:>8}  {call}");
                }
            }
            Value::Number(n) if n.is_f64() => println!("  {name:<22}{:>10.2}", n.as_f64().unwrap_or_default()),
            other => println!("  {name:<22}{other:>10}"),
        }
    }
}

async fn install(plane: &ControlPlane, client: &Client) -> anyhow::Result<()> {
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

async fn connect(client: &Client, broker: &ChittyConnect, arguments: &Arguments) -> anyhow::Result<()> {
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
async fn create_all<F>(count: usize, each: impl Fn(usize) -> F) -> anyhow::Result<()>
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

async fn api_limit(client: &Client) -> anyhow::Result<Value> {
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

async fn create(client: &Client, arguments: &Arguments) -> anyhow::Result<()> {
    create_all(arguments.objects, |i| {
        let api: Api<EphemeralCredential> = Api::namespaced(client.clone(), &format!("bench-{:02}", i % NAMESPACES));
        let credential = json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
            "metadata": {"name": format!("c{i:05}")},
            "spec": {"service": format!("s{}", i % arguments.services), "purpose": "worker-deploy", "repo": "CHITTYOS/bench"},
        });
        async move {
            let credential = serde_json::from_value(credential).map_err(kube::Error::SerdeError)?;
            api.create(&PostParams::default(), &credential).await.map(|_| ())
        }
    })
    .await
}
