//! The process: what lives as long as it does, a standby's too, and the terms in which it leads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use chrono::TimeDelta;
use kube::Config;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::background::clock;
use super::state::caches::Caches;
use super::state::context::{Context, MINTS_AT_ONCE, Rendering};
use super::state::{shared, watches};
use super::supervisor::Supervisor;
use super::term::serve;
use crate::cluster::Cluster;
use crate::cluster::config::client;
use crate::cluster::journal::{Journals, Spawn, Timed};
use crate::cluster::lease::{Election, Leading};
use crate::cluster::reach::Reach;
use crate::cluster::records::Events;
use crate::core::Problem;
use crate::core::ids::ObjectName;
use crate::core::layout::AnnotationPolicy;
use crate::core::seal::SealKey;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::telemetry::LogLevel;
use crate::ops::traces::Traces;

/// How long a stopping process finishes what it minted.
const FINISH_WITHIN: Duration = Duration::from_secs(20);

/// What the controller is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where keys, journals and the lease live.
    pub namespace: String,
    /// This process, as claims, Events and the lease name it.
    pub identity: String,
    /// How many credentials are looked at at once.
    pub concurrency: u16,
    /// Where `/metrics` is served.
    pub metrics_addr: SocketAddr,
    /// Where `/livez` and `/readyz` are served.
    pub health_addr: SocketAddr,
    /// How long the Lease lasts.
    pub lease_duration: Duration,
    /// How long past its timeout a claim of another process is left alone.
    pub claim_grace: TimeDelta,
    /// What users may annotate their Secrets with.
    pub annotations: AnnotationPolicy,
    /// What is logged, where that can be changed.
    pub log: Option<LogLevel>,
    /// Where traces go, if anywhere.
    pub otlp_endpoint: Option<Url>,
    /// Whether each credential has series of its own.
    pub credential_metrics: bool,
    /// Whether workloads are restarted that ask for it, before a token ends that their Pods have read once.
    pub restart_workloads: bool,
    /// What of the cluster it serves.
    pub reach: Reach,
    /// When a budget is let go of in which nothing matters any more.
    pub close_idle_after: Duration,
}

/// Runs the controller until `stop` fires.
///
/// # Errors
/// Where it cannot start: the namespace or the seal key, an address that is taken.
pub async fn run(config: Config, settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::new();
    let calls = metrics.clone();
    let called = move |verb: &str, code| calls.called(verb, code);
    let cluster = Cluster::new(client(config.clone(), called)?, settings.namespace.clone());
    let cluster = cluster.reaching(settings.reach.clone());
    let health = Health::default();
    crate::ops::health::serve(settings.health_addr, health.clone(), settings.log.clone(), stop.clone()).await?;
    crate::ops::metrics::serve(settings.metrics_addr, metrics.clone(), stop.clone()).await?;
    health.waiting_for("the CRDs ephemeralcredentials and chittyconnections to be installed");
    watches::await_kinds(&cluster, &stop).await;
    if stop.is_cancelled() {
        return Ok(());
    }
    health.waiting_for("the API server to tell the time");
    if stop.run_until_cancelled(cluster.set_clock()).await.is_none() {
        return Ok(());
    }
    // A task that panics ends all that follows.
    let stop = stop.child_token();
    let supervisor = Supervisor::new(stop.clone());
    let term = Arc::new(clock::Term::default());
    supervisor.spawn("clock", &stop, clock::sync_clock(cluster.clone(), Arc::clone(&term)));
    health.waiting_for("the seal key");
    let Some(seal) = stop.run_until_cancelled(await_seal_key(&cluster)).await else {
        return Ok(());
    };
    health.waiting_for("credentials, connections, namespaces and Secrets to be read");
    let (caches, writers) = Caches::new(cluster.clone(), seal.clone());
    watches::start(&caches, writers, &term, &supervisor, &stop);
    if stop.run_until_cancelled(watches::await_synced(&caches)).await.is_none() {
        return supervisor.outcome();
    }
    let election = Election::new(config, &cluster, &settings.identity, settings.lease_duration)?;
    let traces = match &settings.otlp_endpoint {
        Some(endpoint) => Traces::start(endpoint, &settings.identity, stop.clone())?,
        None => Traces::default(),
    };
    let process = Process {
        events: Events::new(&cluster, &settings.identity),
        working: Arc::new(Mutex::default()),
        settings,
        cluster,
        seal,
        caches,
        metrics,
        traces,
        supervisor,
    };
    while !stop.is_cancelled() {
        // A standby is as ready as can be.
        health.ready();
        let Some(leads) = stop.run_until_cancelled(election.win()).await else {
            break;
        };
        tracing::info!("leading");
        process.metrics.begin_term();
        let over = stop.child_token();
        let (triggers, triggered) = mpsc::unbounded_channel();
        let context = process.begin_term(&leads, triggers, over.clone());
        *term.lock() = Some(Arc::clone(&context));
        let work = serve(context, triggered, process.settings.concurrency, health.clone());
        // It ends by itself when the term is over: what is under way is seen through.
        let work = process.supervisor.spawn("reconciler", &CancellationToken::new(), work);
        election.lead(&leads, &stop).await;
        leads.end();
        *term.lock() = None;
        process.metrics.end_term();
        over.cancel();
        work.await?;
        election.release().await;
    }
    // What was minted is written and recorded before the process goes, as far as its grace allows.
    let patience = tokio::time::Instant::now() + FINISH_WITHIN;
    while !process.working.lock().is_empty() && tokio::time::Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process.supervisor.outcome()
}

/// What outlives a term.
struct Process {
    settings: Settings,
    cluster: Cluster,
    seal: SealKey,
    caches: Arc<Caches>,
    events: Events,
    /// Requests in flight: the next term must not take them for lost.
    working: Arc<Mutex<HashMap<String, Option<Problem>>>>,
    metrics: Metrics,
    traces: Traces,
    supervisor: Supervisor,
}

impl Process {
    /// What a term begins with.
    fn begin_term(
        &self,
        leads: &Arc<Leading>,
        triggers: mpsc::UnboundedSender<ObjectName>,
        over: CancellationToken,
    ) -> Arc<Context> {
        let supervisor = self.supervisor.clone();
        let writers: Spawn = Arc::new(move |writer| supervisor.see_through("journal", writer));
        let metrics = self.metrics.clone();
        let commits: Timed = Arc::new(move |took, ok| metrics.committed(took, ok));
        Arc::new(Context {
            journals: Journals::new(self.cluster.clone(), self.seal.clone())
                .closing_after(self.settings.close_idle_after)
                .spawning(writers)
                .timing(commits),
            events: self.events.clone(),
            cluster: self.cluster.clone(),
            identity: self.settings.identity.clone(),
            claim_grace: self.settings.claim_grace,
            annotations: self.settings.annotations.clone(),
            seal: self.seal.clone(),
            caches: Arc::clone(&self.caches),
            index: Mutex::default(),
            scopes: Mutex::default(),
            working: Arc::clone(&self.working),
            unprepared: Mutex::default(),
            minting: Arc::new(Semaphore::new(MINTS_AT_ONCE)),
            rendering: Rendering::default(),
            told: Mutex::default(),
            pods_told: Mutex::default(),
            restart_workloads: self.settings.restart_workloads,
            fresh_namespaces: shared::Shared::default(),
            fresh_holds: shared::Shared::default(),
            fresh_sources: shared::Shared::default(),
            offers: Mutex::default(),
            restored: Mutex::default(),
            outlived: Mutex::default(),
            unauthorized: Mutex::default(),
            triggers,
            metrics: self.metrics.clone(),
            leads: Arc::clone(leads),
            unreconciled: Mutex::default(),
            queued: AtomicUsize::new(0),
            credential_metrics: self.settings.credential_metrics,
            traces: self.traces.clone(),
            initial_sync_done: AtomicBool::new(false),
            stop: over,
            supervisor: self.supervisor.clone(),
        })
    }
}

/// Waits for the seal key: for its namespace to be there, and for the right to read and create it.
async fn await_seal_key(cluster: &Cluster) -> SealKey {
    let mut told = None;
    loop {
        match cluster.seal_key().await {
            Ok(seal) => return seal,
            Err(error) => {
                let problem = error.to_string();
                if told.as_ref() != Some(&problem) {
                    tracing::warn!("waiting for the seal key: {problem}");
                    told = Some(problem);
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
