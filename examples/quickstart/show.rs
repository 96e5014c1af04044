//! The show itself, on whichever cluster: simulators, controller, manifests, and the table.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chittyconnect_operator::api::{EphemeralCredential, Reason};
use chittyconnect_operator::cluster::reach::Reach;
use chittyconnect_operator::controller::{self, Settings};
use chittyconnect_operator::core::layout::AnnotationPolicy;
use kube::api::ListParams;
use kube::{Api, Client};
use testbed::chittyconnect::{Denial, Match, Scope};
use testbed::{ChittyConnect, Chronicle};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::manifests::{self, FASTER, Manifest, Simulators};
use crate::table::{Row, Screen};
use crate::{Ending, done};

const HOUR: Duration = Duration::from_secs(3600);
/// Where keys and the journal live, as the manifests have it.
const SYSTEM_NAMESPACE: &str = "chittyconnect-system";
/// Those that get no token, and why. All others are healthy.
const EXPECTED: [(&str, Reason); 3] = [
    ("demo-web/account-admin", Reason::Denied),
    ("demo-other/site-deploy", Reason::NotPermitted),
    ("demo-web/score-2", Reason::RateLimited),
];
/// The API server delays objects of a kind it has just learnt of by up to this.
const CRDS_SETTLE: Duration = Duration::from_secs(2);
const REDRAW_EVERY: Duration = Duration::from_millis(500);
const FIRST_TOKEN_WITHIN: Duration = Duration::from_secs(20);
/// How long the controller may take to finish what it is doing.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// The show itself, on whichever cluster.
pub struct Show {
    pub client: Client,
    /// How the controller reaches the same API server.
    pub config: kube::Config,
    /// What a person types in another terminal.
    pub look_around: Vec<String>,
    /// Where the controller logs.
    pub log: PathBuf,
    /// After how many rotations it ends; never by itself without.
    pub rotations: Option<u32>,
}

/// What runs in this process beside the table.
struct Running {
    connect: ChittyConnect,
    chronicle: Chronicle,
    controller: Option<JoinHandle<anyhow::Result<()>>>,
    stop_controller: CancellationToken,
}

impl Running {
    /// Fails if the controller does not run any more.
    async fn check(&mut self) -> anyhow::Result<()> {
        if let Some(controller) = self.controller.take_if(|controller| controller.is_finished()) {
            controller
                .await
                .context("the controller failed")?
                .context("the controller ended")?;
            bail!("the controller ended by itself");
        }
        Ok(())
    }

    async fn stop(&mut self) {
        self.stop_controller.cancel();
        if let Some(mut controller) = self.controller.take()
            && tokio::time::timeout(STOP_WITHIN, &mut controller).await.is_err()
        {
            controller.abort();
        }
    }
}

impl Show {
    /// Runs it to its end, or to that of `stop`. `after_crds` is called once they are there.
    pub async fn run(
        &self,
        manifests: Vec<Manifest>,
        after_crds: impl FnOnce() -> anyhow::Result<()>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Ending> {
        log_to(&self.log)?;
        let mut running = Running {
            connect: start_chittyconnect()?,
            chronicle: Chronicle::start()?,
            controller: None,
            stop_controller: CancellationToken::new(),
        };
        let played = stop
            .run_until_cancelled(self.play(&mut running, manifests, after_crds))
            .await;
        running.stop().await;
        match played {
            Some(Ok(())) => Ok(Ending::Done),
            Some(Err(error)) => {
                eprintln!("{}", self.end_of_log());
                Err(error)
            }
            // Without --rotations there is no other way to end it.
            None => {
                println!();
                Ok(if self.rotations.is_some() {
                    Ending::Interrupted
                } else {
                    Ending::Done
                })
            }
        }
    }

    /// Returns when every rotation that was asked for was seen; without that, never.
    async fn play(
        &self,
        running: &mut Running,
        mut manifests: Vec<Manifest>,
        after_crds: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        manifests::install_crds(&self.client).await?;
        let established = Instant::now();
        after_crds()?;
        tokio::time::sleep(CRDS_SETTLE.saturating_sub(established.elapsed())).await;
        done("CRDs", "served, as in crds/", begun);
        println!("simulators     of ChittyConnect and ChittyChronicle, on loopback");
        let simulators = Simulators {
            connect_url: running.connect.url(),
            api_key: running.connect.api_key().to_owned(),
            chronicle_url: running.chronicle.url(),
            chronicle_token: running.chronicle.token().to_owned(),
        };
        let mut order = Vec::new();
        for manifest in &mut manifests {
            manifest.adapt(&simulators)?;
            for object in &manifest.objects {
                order.extend(self.apply(running, object).await?);
            }
            // Its own namespace is there now, and comes first, as in any cluster.
            if running.controller.is_none() {
                let run = controller::run(self.config.clone(), settings(), running.stop_controller.clone());
                running.controller = Some(tokio::spawn(run));
                println!("controller     in this process; its log:");
                println!("               {}", self.log.display());
            }
        }
        println!("manifests      examples/quickstart/*.yaml; their hours are minutes here");
        self.watch(running, &order).await
    }

    /// A credential that will get a token is waited for: who comes first is served first. Returns
    /// the name of a credential.
    async fn apply(&self, running: &mut Running, object: &serde_json::Value) -> anyhow::Result<Option<String>> {
        manifests::apply(&self.client, object).await?;
        if object["kind"] != "EphemeralCredential" {
            return Ok(None);
        }
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let full_name = format!("{namespace}/{name}");
        if expected(&full_name).is_none() {
            let api: Api<EphemeralCredential> = Api::namespaced(self.client.clone(), namespace);
            let begun = Instant::now();
            while begun.elapsed() < FIRST_TOKEN_WITHIN && Row::from(&api.get(name).await?).ready != Some(true) {
                running.check().await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(Some(full_name))
    }

    async fn watch(&self, running: &mut Running, order: &[String]) -> anyhow::Result<()> {
        let mut screen = Screen::new(self.look_around.clone());
        let begun = Instant::now();
        let api: Api<EphemeralCredential> = Api::all(self.client.clone());
        let mut ticks = tokio::time::interval(REDRAW_EVERY);
        loop {
            ticks.tick().await;
            running.check().await?;
            let list = api.list(&ListParams::default()).await;
            let mut credentials = list.context("failed to list credentials")?.items;
            credentials.sort_by_key(kube::ResourceExt::creation_timestamp);
            let mut rows: Vec<Row> = credentials.iter().map(Row::from).collect();
            rows.sort_by_key(|row| order.iter().position(|name| *name == row.name).unwrap_or(order.len()));
            let summary = summary(running, begun);
            let footer = [
                summary.clone(),
                match self.rotations {
                    None => "Ctrl-C ends it and leaves nothing behind.".to_owned(),
                    Some(n) => format!("Rotations of each healthy credential until it ends: {n}. Ctrl-C ends it now."),
                },
            ];
            screen.show(&rows, &footer, running.connect.now())?;
            let Some(rotations) = self.rotations else { continue };
            let missing = missing(&rows, rotations);
            if missing.is_empty() {
                if !screen.is_live() {
                    println!("{summary}");
                }
                let times = if rotations == 1 {
                    "once".to_owned()
                } else {
                    format!("{rotations} times")
                };
                println!("every healthy credential was rotated {times} or more, and no other got a token");
                return Ok(());
            }
            // A token lives a minute, and is replaced in two thirds of it.
            let bound = HOUR / FASTER * (rotations + 1);
            if begun.elapsed() > bound {
                bail!("not within {} s: {}", bound.as_secs(), missing.join("; "));
            }
        }
    }

    fn end_of_log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(20)..];
        format!("\nthe end of the controller's log:\n{}", last.join("\n"))
    }
}

fn settings() -> Settings {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Settings {
        namespace: SYSTEM_NAMESPACE.to_owned(),
        identity: "quickstart".to_owned(),
        concurrency: 8,
        metrics_addr: any_port,
        health_addr: any_port,
        lease_duration: chittyconnect_operator::cluster::lease::DURATION,
        claim_grace: chittyconnect_operator::core::schedule::CLAIM_GRACE,
        annotations: AnnotationPolicy::default(),
        log: None,
        otlp_endpoint: None,
        credential_metrics: false,
        restart_workloads: false,
        reach: Reach::default(),
        close_idle_after: Duration::from_secs(300),
    }
}

fn start_chittyconnect() -> anyhow::Result<ChittyConnect> {
    let simulator = ChittyConnect::builder()
        .ttl(HOUR / FASTER)
        .limit(10, HOUR / FASTER, Scope::Service)
        .start()?;
    simulator.deny(Match::minting().purpose("account-admin"), Denial::Forbidden);
    Ok(simulator)
}

/// The controller's log, as the binary writes it; never whole responses, which hold Secrets.
fn log_to(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("failed to write {}", path.display()))?;
    let mut filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env()?;
    for directive in ["kube_client::client=off", "hyper=off"] {
        filter = filter.add_directive(directive.parse()?);
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Mutex::new(file))
        .init();
    Ok(())
}

fn expected(name: &str) -> Option<Reason> {
    EXPECTED
        .into_iter()
        .find(|(known, _)| *known == name)
        .map(|(_, reason)| reason)
}

/// What is still to come, for a person.
fn missing(rows: &[Row], rotations: u32) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, reason) in EXPECTED {
        let row = rows.iter().find(|row| row.name == name);
        if row.is_none_or(|row| row.reason != reason.as_str() || row.revision > 0) {
            let is = row.map_or("missing", |row| row.reason.as_str());
            missing.push(format!("{name} should be {reason} and is {is}"));
        }
    }
    let healthy: Vec<&Row> = rows.iter().filter(|row| expected(&row.name).is_none()).collect();
    if healthy.is_empty() {
        missing.push("no credential is there".to_owned());
    }
    for row in healthy {
        let rotated = row.revision.saturating_sub(1);
        if rotated < u64::from(rotations) || row.ready != Some(true) {
            missing.push(format!(
                "{} was rotated {rotated} times and is {}",
                row.name, row.reason
            ));
        }
    }
    missing
}

fn summary(running: &Running, begun: Instant) -> String {
    let ledger = running.connect.ledger();
    format!(
        "{} s: {} POSTs to ChittyConnect so far, {} live tokens, {} audit events delivered",
        begun.elapsed().as_secs(),
        ledger.posts(),
        ledger.live_tokens(running.connect.now()).len(),
        running.chronicle.entries().len(),
    )
}
