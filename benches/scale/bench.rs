//! What is measured.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chittyconnect_operator::api::EphemeralCredential;
use chittyconnect_operator::core::Time;
use chittyconnect_operator::core::schedule::renew_at;
use futures::StreamExt;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use testbed::process::Process;
use testbed::{ChittyConnect, ControlPlane, Tool};

use crate::calls::{Calls, Usage, calls, is_write, of_controller};
use crate::setup::{create_all, name_of, namespace_of};
use crate::{Arguments, SYSTEM};

/// Wherever there is a free port.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(crate) struct Bench<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) plane: &'a ControlPlane,
    pub(crate) client: &'a Client,
    pub(crate) broker: &'a ChittyConnect,
    /// Where the first controller serves its metrics.
    pub(crate) metrics: SocketAddr,
}

impl Bench<'_> {
    /// Starts the controller, which shows who it is as a Pod does: certificates are verified with each call and take
    /// the API server a tenth more.
    async fn start(&self, identity: &str, metrics: SocketAddr) -> anyhow::Result<Process> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(24 * 3600),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request("chittyconnect-operator", &PostParams::default(), &request)
            .await?;
        let token = answer.status.context("a token")?.token;
        let kubeconfig = self.plane.kubeconfig_with_token(&token)?;
        let arguments = [
            format!("KUBECONFIG={}", kubeconfig.display()),
            self.arguments.binary.display().to_string(),
            format!("--identity={identity}"),
            format!("--namespace={SYSTEM}"),
            format!("--metrics-addr={metrics}"),
            "--health-addr=127.0.0.1:0".to_owned(),
        ];
        Process::spawn(Path::new("/usr/bin/env"), &arguments, &self.log())
    }

    fn log(&self) -> PathBuf {
        self.plane.kubeconfig().with_file_name("controller.log")
    }

    pub(crate) async fn bulk(&self) -> anyhow::Result<(Process, Value)> {
        let before = calls(self.client).await?;
        let plane = self.plane_cpu_seconds()?;
        let controller = self.start("bench-1", self.metrics).await?;
        let begun = Instant::now();
        let timeout = Duration::from_secs(self.arguments.phase_timeout);
        let mut ready = 0;
        // Whoever is not there in time is told of, and no failure of the bench.
        let _ = tokio::time::timeout(timeout, self.watch_ready(&mut ready)).await;
        let seconds = begun.elapsed().as_secs_f64();
        let usage = Usage::of(&controller)?;
        let after = calls(self.client).await?;
        let mut figures = self.figures(&before, &after, seconds);
        for ((name, from), (_, to)) in plane.iter().zip(self.plane_cpu_seconds()?) {
            figures[*name] = json!(to - from);
        }
        figures["ready"] = json!(ready);
        figures["of"] = json!(self.arguments.objects);
        figures["readyPerSecond"] = json!(f64::from(u32::try_from(ready)?) / seconds);
        figures["mints"] = json!(self.broker.ledger().mints.len());
        usage.note(&mut figures);
        self.note_lease(&mut figures);
        Ok((controller, figures))
    }

    /// What the control plane has used so far: most of what a bulk costs.
    fn plane_cpu_seconds(&self) -> anyhow::Result<[(&'static str, f64); 2]> {
        let of = |tool| {
            let pid = self.plane.pid(tool).context("the control plane runs")?;
            Usage::of_pid(pid).map(|usage| usage.cpu_seconds)
        };
        Ok([
            ("apiServerCpuSeconds", of(Tool::KubeApiserver)?),
            ("etcdCpuSeconds", of(Tool::Etcd)?),
        ])
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
    pub(crate) async fn until_quiet(&self) -> anyhow::Result<f64> {
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

    pub(crate) async fn idle(&self, controller: &Process) -> anyhow::Result<Value> {
        let (before, from) = (calls(self.client).await?, Usage::of(controller)?);
        tokio::time::sleep(Duration::from_secs(self.arguments.idle)).await;
        let (after, to) = (calls(self.client).await?, Usage::of(controller)?);
        let seconds = f64::from(u32::try_from(self.arguments.idle)?);
        let mut figures = self.figures(&before, &after, seconds);
        to.note(&mut figures);
        figures["cpuPercent"] = json!((to.cpu_seconds - from.cpu_seconds) / seconds * 100.0);
        Ok(figures)
    }

    /// Reads `/metrics` as Prometheus does.
    pub(crate) async fn scrape(&self) -> anyhow::Result<Value> {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
        let begun = Instant::now();
        let text = client
            .get(format!("http://{}/metrics", self.metrics))
            .send()
            .await?
            .text()
            .await?;
        let seconds = begun.elapsed().as_secs_f64();
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        Ok(json!({"series": series, "bytes": text.len(), "milliseconds": seconds * 1000.0}))
    }

    pub(crate) async fn restart(&self) -> anyhow::Result<(Process, Value)> {
        let (before, mints) = (calls(self.client).await?, self.broker.ledger().mints.len());
        let controller = self.start("bench-1", ANY).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let seconds = self.until_quiet().await? + 1.0;
        let after = calls(self.client).await?;
        let mut figures = self.figures(&before, &after, seconds);
        figures["mints"] = json!(self.broker.ledger().mints.len() - mints);
        Usage::of(&controller)?.note(&mut figures);
        self.note_lease(&mut figures);
        Ok((controller, figures))
    }

    /// A second replica stands by until it is quiet; the leader is killed, and one credential asked to rotate.
    pub(crate) async fn takeover(&self, mut leader: Process) -> anyhow::Result<(Process, Value)> {
        let before = calls(self.client).await?;
        let standby = self.start("bench-2", ANY).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let warm = self.until_quiet().await? + 1.0;
        let after = calls(self.client).await?;
        let mut figures = self.figures(&before, &after, warm);
        Usage::of(&standby)?.note(&mut figures);
        let mints = self.broker.minted();
        let before = calls(self.client).await?;
        leader.kill();
        let killed = Instant::now();
        self.ask_to_rotate(0, "takeover").await?;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), SYSTEM);
        let won = loop {
            let lease = leases.get("chittyconnect-operator").await?;
            if lease.spec.and_then(|s| s.holder_identity).as_deref() == Some("bench-2") {
                break Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let timeout = Duration::from_secs(self.arguments.phase_timeout);
        while self.broker.minted() == mints && won.elapsed() < timeout {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        figures["leaseWonAfterSeconds"] = json!((won - killed).as_secs_f64());
        figures["mintedAfterWinningSeconds"] = json!(won.elapsed().as_secs_f64());
        let made = of_controller(&before, &calls(self.client).await?);
        let lists: u64 = made
            .iter()
            .filter(|(call, _)| call.starts_with("LIST"))
            .map(|(_, n)| n)
            .sum();
        figures["listsOfTheTerm"] = json!(lists);
        Ok((standby, figures))
    }

    async fn ask_to_rotate(&self, number: usize, value: &str) -> anyhow::Result<()> {
        let api: Api<EphemeralCredential> = Api::namespaced(self.client.clone(), &namespace_of(number));
        let patch = json!({"metadata": {"annotations": {"connect.chitty.cc/rotate": value}}});
        api.patch(&name_of(number), &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Until every token was renewed once: how long after it was due the broker heard of each.
    pub(crate) async fn rotate(&self, controller: &Process) -> anyhow::Result<Value> {
        let api: Api<EphemeralCredential> = Api::all(self.client.clone());
        let mut due: HashMap<String, Time> = HashMap::new();
        let all = api.list(&ListParams::default()).await?;
        let asked: HashMap<String, (String, Option<chrono::TimeDelta>)> = all
            .iter()
            .map(|c| {
                let runway = c.spec.rotation.renew_before.map(Duration::from);
                let runway = runway.and_then(|d| chrono::TimeDelta::from_std(d).ok());
                (c.name_any(), (c.uid().unwrap_or_default(), runway))
            })
            .collect();
        let first = self.broker.ledger().mints;
        for mint in &first {
            let (Some(repo), Some(end)) = (&mint.repo, mint.expires_at) else {
                continue;
            };
            let name = repo.trim_start_matches("CHITTYOS/");
            let (uid, runway) = asked.get(name).cloned().unwrap_or_default();
            due.insert(repo.clone(), renew_at(mint.issued_at, end, runway, &uid));
        }
        let (before, from, begun) = (calls(self.client).await?, Usage::of(controller)?, Instant::now());
        let (mut known, mut late) = (first.len(), Vec::new());
        let last = due.values().max().copied().unwrap_or_default();
        while !due.is_empty() && self.broker.now() < last + chrono::TimeDelta::seconds(60) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            for mint in self.broker.mints_after(known) {
                known += 1;
                if let Some(at) = mint.repo.as_ref().and_then(|repo| due.remove(repo)) {
                    late.push((mint.issued_at - at).as_seconds_f64());
                }
            }
        }
        late.sort_by(f64::total_cmp);
        let at = |part: usize| late.get((late.len() * part / 1000).min(late.len().saturating_sub(1)));
        let mut figures = self.figures(&before, &calls(self.client).await?, begun.elapsed().as_secs_f64());
        let to = Usage::of(controller)?;
        to.note(&mut figures);
        figures["cpuSeconds"] = json!(to.cpu_seconds - from.cpu_seconds);
        figures["rotated"] = json!(late.len());
        figures["neverRotated"] = json!(due.len());
        figures["latenessP50"] = json!(at(500));
        figures["latenessP99"] = json!(at(990));
        figures["latenessMax"] = json!(late.last());
        self.note_lease(&mut figures);
        Ok(figures)
    }

    /// The broker refuses connections while every credential is asked to rotate, and comes back.
    pub(crate) async fn outage(&self, controller: &Process) -> anyhow::Result<Value> {
        let from = (self.journal_bytes().await?, Usage::of(controller)?);
        self.broker.go_down()?;
        create_all(self.arguments.objects, |number| async move {
            let asked = self.ask_to_rotate(number, "outage").await;
            asked.map_err(|e| kube::Error::Service(e.into()))
        })
        .await?;
        let (before, lines) = (calls(self.client).await?, self.log_lines());
        tokio::time::sleep(Duration::from_secs(self.arguments.outage)).await;
        let after = calls(self.client).await?;
        let seconds = f64::from(u32::try_from(self.arguments.outage)?);
        let mut figures = self.figures(&before, &after, seconds);
        let made: u64 = of_controller(&before, &after).values().sum();
        figures["callsPerSecond"] = json!(f64::from(u32::try_from(made)?) / seconds);
        let more = u32::try_from(self.log_lines() - lines)?;
        figures["logLinesPerSecond"] = json!(f64::from(more) / seconds);
        let to = (self.journal_bytes().await?, Usage::of(controller)?);
        figures["journalBytesBefore"] = json!(from.0);
        figures["journalBytesAfter"] = json!(to.0);
        figures["residentMiBBefore"] = json!(from.1.resident_mib);
        to.1.note(&mut figures);
        figures["cpuSeconds"] = json!(to.1.cpu_seconds - from.1.cpu_seconds);
        let known = self.broker.minted();
        self.broker.come_back()?;
        let back = Instant::now();
        let timeout = Duration::from_secs(self.arguments.phase_timeout);
        while self.broker.minted() < known + self.arguments.objects && back.elapsed() < timeout {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        figures["mintedAfterwards"] = json!(self.broker.minted() - known);
        figures["secondsAfterwards"] = json!(back.elapsed().as_secs_f64());
        self.note_lease(&mut figures);
        Ok(figures)
    }

    async fn journal_bytes(&self) -> anyhow::Result<usize> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
        let all = maps
            .list(&ListParams::default().labels("connect.chitty.cc/journal"))
            .await?;
        let bytes = all
            .iter()
            .flat_map(|map| map.data.iter().flatten().map(|(_, text)| text.len()));
        Ok(bytes.sum())
    }

    fn log_lines(&self) -> usize {
        std::fs::read_to_string(self.log()).unwrap_or_default().lines().count()
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
