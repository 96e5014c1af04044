//! The shell: watches, the reconcile loop, budgets, audit delivery, leadership.

mod act;
mod budget_scheduler;
mod caches;
mod changes;
mod claims;
pub mod connections;
pub mod context;
mod credential_index;
mod delivery;
mod measure;
mod mint;
mod mint_queue;
mod observe;
mod outage;
mod prepare;
mod publish;
mod reconcile;
mod revoke;
mod secret_index;
mod shared;
mod supervisor;
mod sweep;
mod time;
mod watches;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::Controller;
use kube::runtime::controller::{Action as Requeue, Config as ControllerConfig, Error as ControllerError};
use kube::runtime::reflector::ObjectRef;
use kube::{Config, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::EphemeralCredential;
use crate::cluster::Cluster;
use crate::cluster::config::client;
use crate::cluster::journal::{Found, JournalError, Journals, Spawn};
use crate::cluster::lease::Election;
use crate::cluster::records::Events;
use crate::core::ids::ObjectName;
use crate::core::journal::Scope;
use crate::core::render::MOST_RENDERED;
use crate::core::schedule::spread;
use crate::core::seal::SealKey;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use caches::Caches;
use context::Context;
use supervisor::Supervisor;

/// How long a stopping process finishes what it minted.
const FINISH_WITHIN: Duration = Duration::from_secs(20);
/// How often a journal that cannot be read is looked at again.
const MENDED_EVERY: Duration = Duration::from_secs(5);

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
    let health = Health::default();
    crate::ops::health::serve(settings.health_addr, health.clone(), stop.clone()).await?;
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
    let term = Arc::new(time::Term::default());
    supervisor.spawn("clock", &stop, time::sync_clock(cluster.clone(), Arc::clone(&term)));
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
    let events = Events::new(&cluster, &settings.identity);
    let election = Election::new(config, &cluster, &settings.identity, settings.lease_duration)?;
    // Requests in flight outlive a term: the next must not take them for lost.
    let working = Arc::new(Mutex::default());
    let supervised = supervisor.clone();
    let writers: Spawn = Arc::new(move |writer| supervised.see_through("journal", writer));
    while !stop.is_cancelled() {
        // A standby is as ready as can be.
        health.ready();
        let Some(leads) = stop.run_until_cancelled(election.win()).await else {
            break;
        };
        tracing::info!("leading");
        metrics.begin_term();
        let over = stop.child_token();
        let (triggers, triggered) = mpsc::unbounded_channel();
        let context = Arc::new(Context {
            journals: Journals::new(cluster.clone(), seal.clone()).spawning(Arc::clone(&writers)),
            events: events.clone(),
            cluster: cluster.clone(),
            identity: settings.identity.clone(),
            seal: seal.clone(),
            caches: Arc::clone(&caches),
            index: Mutex::default(),
            scopes: Mutex::default(),
            working: Arc::clone(&working),
            unprepared: Mutex::default(),
            minting: Arc::new(Semaphore::new(context::MINTS_AT_ONCE)),
            rendering: Semaphore::new(context::RENDERED_AT_ONCE * MOST_RENDERED),
            told: Mutex::default(),
            fresh_namespaces: shared::Shared::default(),
            fresh_holds: shared::Shared::default(),
            restored: Mutex::default(),
            unauthorized: Mutex::default(),
            triggers,
            metrics: metrics.clone(),
            leads: Arc::clone(&leads),
            unreconciled: Mutex::default(),
            initial_sync_done: AtomicBool::new(false),
            stop: over.clone(),
            supervisor: supervisor.clone(),
        });
        *term.lock() = Some(Arc::clone(&context));
        let work = serve(Arc::clone(&context), triggered, settings.concurrency, health.clone());
        // It ends by itself when the term is over: what is under way is seen through.
        let work = supervisor.spawn("reconciler", &CancellationToken::new(), work);
        election.lead(&leads, &stop).await;
        leads.end();
        *term.lock() = None;
        metrics.end_term();
        over.cancel();
        work.await?;
        election.release().await;
    }
    // What was minted is written and recorded before the process goes, as far as its grace allows.
    let patience = tokio::time::Instant::now() + FINISH_WITHIN;
    while !working.lock().is_empty() && tokio::time::Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    supervisor.outcome()
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

/// Does all there is to do until the term is over.
async fn serve(
    context: Arc<Context>,
    triggered: mpsc::UnboundedReceiver<ObjectRef<EphemeralCredential>>,
    concurrency: u16,
    health: Health,
) {
    let stop = context.stop.clone();
    health.waiting_for("the journals to be read");
    context.open_journals(&stop).await;
    if stop.is_cancelled() {
        return;
    }
    health.ready();
    context.spawn("sweep", Arc::clone(&context).sweep_for_ever());
    context.spawn("revocation", revoke::revoke_for_ever(Arc::clone(&context)));
    context.spawn("status of connections", watches::report_for_ever(Arc::clone(&context)));
    context.spawn("first looks", Arc::clone(&context).look_at_all());
    drive(context, triggered, concurrency).await;
}

/// The reconcile loop. The watches belong to the process: what they tell comes by `triggered`.
async fn drive(
    context: Arc<Context>,
    triggered: mpsc::UnboundedReceiver<ObjectRef<EphemeralCredential>>,
    concurrency: u16,
) {
    let store = context.caches.credentials.clone();
    let triggered = futures::stream::unfold(
        triggered,
        |mut rx| async move { rx.recv().await.map(|item| (item, rx)) },
    );
    let stop = context.stop.clone();
    Controller::for_stream(futures::stream::pending(), store)
        .with_config(ControllerConfig::default().concurrency(concurrency))
        .reconcile_on(triggered)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile::reconcile, retry, Arc::clone(&context))
        .for_each(|outcome| {
            let context = Arc::clone(&context);
            async move {
                match outcome {
                    Ok(_) => {}
                    Err(ControllerError::ObjectNotFound(gone)) => {
                        let name = ObjectName::new(gone.namespace.clone().unwrap_or_default(), gone.name.clone());
                        context.seen(&name);
                        context.told.lock().remove(&name);
                        let supervisor = context.supervisor.clone();
                        supervisor.see_through("sweep of a name", async move { context.sweep_name(&name).await });
                    }
                    Err(ControllerError::ReconcilerFailed(error, object)) => {
                        tracing::warn!(
                            namespace = object.namespace.as_deref().unwrap_or_default(),
                            name = %object.name,
                            %error,
                            "failed to see a credential through; it is looked at again"
                        );
                    }
                    Err(ControllerError::QueueError(error)) => {
                        tracing::warn!(%error, "failed to watch credentials; the watch is tried again");
                    }
                    Err(ControllerError::RunnerError(error)) => tracing::error!(%error, "the work queue failed"),
                }
            }
        })
        .await;
}

/// Nothing was minted by a pass that failed, and nothing will be by the next but through the journal:
/// a short, spread wait is all it takes.
#[expect(clippy::needless_pass_by_value, reason = "the signature of error policies")]
fn retry(credential: Arc<EphemeralCredential>, _: &reconcile::ReconcileError, _: Arc<Context>) -> Requeue {
    let spread = u64::from(spread(credential.uid().as_deref().unwrap_or_default()));
    Requeue::requeue(Duration::from_millis(1000 + spread))
}

impl Context {
    /// Looks at every credential there is; newcomers are let in when all were looked at.
    async fn look_at_all(self: Arc<Self>) {
        let all = self.caches.credentials.state();
        if all.is_empty() {
            self.finish_initial_sync();
            return;
        }
        let names = all.iter().map(|c| changes::name_of(&**c));
        *self.unreconciled.lock() = Some(names.collect());
        self.trigger_where(|_| true);
        // A credential that can never be looked at must not keep newcomers out for ever.
        tokio::time::sleep(Duration::from_secs(30)).await;
        self.finish_initial_sync();
    }

    /// Opens every journal that is there, and learns from it who has records where and which keys
    /// are refused.
    async fn open_journals(self: &Arc<Self>, stop: &CancellationToken) {
        let found = loop {
            match self.journals.list().await {
                Ok(found) => break found,
                Err(error) => {
                    tracing::warn!(%error, "failed to list the journals; trying again");
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
            }
            if stop.is_cancelled() {
                return;
            }
        };
        for found in found {
            let Found::Scope(scope) = found else {
                self.spawn("journal to be mended", Arc::clone(self).await_mended(found));
                continue;
            };
            loop {
                match self.learn(&scope).await {
                    Ok(()) => break,
                    // Until it is mended nobody knows who is in it; its own scope stands still meanwhile.
                    Err(JournalError::Broken { .. }) => {
                        let mended = Arc::clone(self).await_mended(Found::Scope(scope));
                        self.spawn("journal to be mended", mended);
                        break;
                    }
                    Err(JournalError::Unavailable(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
                }
                if stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    /// Learns from a journal that cannot be read now as soon as it can be.
    async fn await_mended(self: Arc<Self>, mut found: Found) {
        loop {
            tokio::time::sleep(MENDED_EVERY).await;
            match &found {
                Found::Scope(scope) => {
                    if self.learn(scope).await.is_ok() {
                        return;
                    }
                }
                Found::Illegible(name) => match self.journals.find(name).await {
                    Ok(Some(now)) => found = now,
                    // Deleted: what it knew is rebuilt from the Secrets.
                    Ok(None) => return,
                    Err(_) => {}
                },
            }
        }
    }

    async fn learn(self: &Arc<Self>, scope: &Scope) -> Result<(), JournalError> {
        let journal = self.scheduler(scope).journal.view().await?;
        let records = journal.credentials.iter().map(|(uid, r)| (uid, &r.namespace, &r.name));
        let claims = journal.claims.iter().map(|(uid, c)| (uid, &c.namespace, &c.name));
        {
            let mut index = self.index.lock();
            for (uid, namespace, name) in records.chain(claims) {
                let name = ObjectName::new(namespace.as_str(), name.as_str());
                index.add_record(uid.as_str(), &name, scope);
            }
        }
        if let Some(refused) = &journal.unauthorized {
            self.unauthorized.lock().insert(refused.key.clone(), refused.probe_at);
        }
        Ok(())
    }
}
