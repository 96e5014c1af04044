//! Leadership: a Lease, judged by this process's own monotonic clock.
//!
//! The fence on minting is the journal's compare-and-swap; leading only avoids wasted work. So this
//! needs no more than: at most one leader most of the time, no trust in anybody's wall clock, and a
//! leader that stops when it cannot renew.
//!
//! Renewing has a thread and a connection of its own: work that fills the process' threads, or waits in
//! its connections, must not cost it the Lease, or the next leader would begin the same work anew.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Config};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::clock::elapsed;
use super::{Cluster, Error, bounded};

/// Name of the Lease.
pub const LEASE: &str = "chittyconnect-operator";
/// How long a Lease lasts where nothing else is asked for.
pub const DURATION: Duration = Duration::from_secs(10);
/// A standby looks this often: a released Lease is taken over within two seconds.
const LOOK_EVERY: Duration = Duration::from_millis(700);

/// The times of a Lease, all from how long one lasts: they cannot contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    /// A leader that has not renewed for this long is not one any more.
    duration: Duration,
    /// A leader renews this often.
    renew_every: Duration,
    /// A leader that could not renew for this long steps down, well before others may take over.
    renew_within: Duration,
}

impl Times {
    fn of(duration: Duration) -> Self {
        Self {
            duration,
            renew_every: duration / 5,
            renew_within: duration * 7 / 10,
        }
    }
}

/// Stands for election, and leads.
pub struct Election {
    candidate: Arc<Candidate>,
    thread: Option<Runtime>,
}

struct Candidate {
    cluster: Cluster,
    api: Api<Lease>,
    identity: String,
    times: Times,
    /// The Lease as this process wrote it last: renewing it needs no read.
    held: Mutex<Option<Lease>>,
}

/// One term of leadership: it holds only for so long after the last renewal, also for a process that
/// was frozen meanwhile and does not know yet.
#[derive(Debug, Default)]
pub struct Leading {
    /// In milliseconds of the clock that only counts.
    until: AtomicU64,
}

impl Leading {
    /// Whether this process leads now.
    #[must_use]
    pub fn holds(&self) -> bool {
        milliseconds(elapsed()) < self.until.load(Ordering::Acquire)
    }

    /// It leads no more, and never again in this term.
    pub fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    fn remaining(&self) -> Duration {
        Duration::from_millis(
            self.until
                .load(Ordering::Acquire)
                .saturating_sub(milliseconds(elapsed())),
        )
    }

    fn renewed(&self, asked: Duration, within: Duration) {
        self.until.store(milliseconds(asked + within), Ordering::Release);
    }
}

fn milliseconds(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

/// What a standby last saw, and since when by its own clock.
struct Watched {
    version: String,
    since: Instant,
}

impl Election {
    /// A candidate, which reaches the API server as `config` says.
    ///
    /// # Errors
    /// Where its thread or its client cannot be made.
    pub fn new(config: Config, cluster: &Cluster, identity: &str, duration: Duration) -> anyhow::Result<Self> {
        let thread = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("lease")
            .enable_all()
            .build()?;
        // A client keeps a task where it was made.
        let client = {
            let _inside = thread.enter();
            Client::try_from(config)?
        };
        let candidate = Candidate {
            api: Api::namespaced(client, &cluster.namespace),
            cluster: cluster.clone(),
            identity: identity.to_owned(),
            times: Times::of(duration),
            held: Mutex::default(),
        };
        Ok(Self {
            candidate: Arc::new(candidate),
            thread: Some(thread),
        })
    }

    /// Waits until this process leads.
    pub async fn win(&self) -> Arc<Leading> {
        let candidate = Arc::clone(&self.candidate);
        self.on_thread(async move { candidate.win().await }).await
    }

    /// Renews until that fails for too long, somebody else leads, or `stop` fires.
    pub async fn lead(&self, leading: &Arc<Leading>, stop: &CancellationToken) {
        let (candidate, leading, stop) = (Arc::clone(&self.candidate), Arc::clone(leading), stop.clone());
        self.on_thread(async move { candidate.lead(&leading, &stop).await })
            .await;
    }

    /// Lets go of the Lease, if it still is ours: its version is the precondition.
    pub async fn release(&self) {
        let candidate = Arc::clone(&self.candidate);
        self.on_thread(async move { candidate.release().await }).await;
    }

    /// Runs `task` there; one that nobody waits for any more ends.
    async fn on_thread<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        let Some(thread) = &self.thread else {
            unreachable!("the thread goes when this does")
        };
        match AbortOnDropHandle::new(thread.spawn(task)).await {
            Ok(outcome) => outcome,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime goes when this does, so nobody else ends it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl Drop for Election {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Waiting for it is not allowed where tasks run.
            thread.shutdown_background();
        }
    }
}

impl Candidate {
    async fn win(&self) -> Arc<Leading> {
        let mut watched: Option<Watched> = None;
        loop {
            let asked = elapsed();
            match self.try_take(&mut watched).await {
                Ok(Some(lease)) => {
                    self.hold(Some(lease));
                    let leading = Leading::default();
                    leading.renewed(asked, self.times.renew_within);
                    return Arc::new(leading);
                }
                Ok(None) => {}
                Err(error) if error.is_conflict() => {}
                Err(error) => tracing::warn!(error = %error.brief(), "failed to stand for election; trying again"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn hold(&self, lease: Option<Lease>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    async fn try_take(&self, watched: &mut Option<Watched>) -> Result<Option<Lease>, Error> {
        let Some(lease) = bounded(self.api.get_opt(LEASE)).await? else {
            let created = bounded(self.api.create(&PostParams::default(), &self.lease(None))).await?;
            return Ok(Some(created));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() {
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            let seen = watched.get_or_insert_with(|| Watched {
                version: version.clone(),
                since: Instant::now(),
            });
            if seen.version != version {
                *seen = Watched {
                    version,
                    since: Instant::now(),
                };
            }
            let seconds = spec
                .lease_duration_seconds
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or(self.times.duration.as_secs());
            if seen.since.elapsed() < Duration::from_secs(seconds) {
                return Ok(None);
            }
        }
        Ok(Some(self.write(&lease).await?))
    }

    async fn write(&self, over: &Lease) -> Result<Lease, Error> {
        let lease = self.lease(Some(over));
        bounded(self.api.replace(LEASE, &PostParams::default(), &lease)).await
    }

    async fn lead(&self, leading: &Leading, stop: &CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(self.times.renew_every))
            .await
            .is_some()
        {
            let asked = elapsed();
            // A slow API server has all the time that is left.
            match tokio::time::timeout(leading.remaining(), self.renew()).await {
                Ok(Ok(true)) => leading.renewed(asked, self.times.renew_within),
                Ok(Ok(false)) => {
                    tracing::warn!("somebody else leads; stepping down");
                    return;
                }
                Ok(Err(error)) => tracing::warn!(error = %error.brief(), "failed to renew the Lease"),
                Err(_) => tracing::warn!("failed to renew the Lease in time"),
            }
            if !leading.holds() {
                tracing::warn!(
                    "the Lease could not be renewed for {} s; stepping down",
                    self.times.renew_within.as_secs()
                );
                return;
            }
        }
    }

    /// Writes over what this process wrote last; reads only where that is not what is there any more, for an
    /// earlier write may have arrived though its answer did not.
    async fn renew(&self) -> Result<bool, Error> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(held) = held {
            match self.write(&held).await {
                Ok(lease) => {
                    self.hold(Some(lease));
                    return Ok(true);
                }
                Err(e) if e.is_conflict() => {}
                Err(e) => return Err(e),
            }
        }
        let lease = bounded(self.api.get(LEASE)).await?;
        if lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) != Some(&self.identity) {
            return Ok(false);
        }
        match self.write(&lease).await {
            Ok(lease) => {
                self.hold(Some(lease));
                Ok(true)
            }
            Err(e) if e.is_conflict() => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn release(&self) {
        let Ok(lease) = bounded(self.api.get(LEASE)).await else {
            return;
        };
        if lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) != Some(&self.identity) {
            return;
        }
        let mut free = lease;
        if let Some(spec) = &mut free.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        if let Err(error) = bounded(self.api.replace(LEASE, &PostParams::default(), &free)).await {
            tracing::debug!(error = %error.brief(), "failed to release the Lease; it runs out");
        }
    }

    fn lease(&self, before: Option<&Lease>) -> Lease {
        let now = Timestamp::from_microsecond(self.cluster.now().timestamp_micros()).unwrap_or_default();
        let now = MicroTime(now);
        let spec = before.and_then(|l| l.spec.clone()).unwrap_or_default();
        let ours = spec.holder_identity.as_deref() == Some(&self.identity);
        let metadata = before.map_or_else(
            || ObjectMeta {
                name: Some(LEASE.to_owned()),
                ..ObjectMeta::default()
            },
            |l| l.metadata.clone(),
        );
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(self.times.duration.as_secs()).ok(),
                acquire_time: if ours {
                    spec.acquire_time.clone()
                } else {
                    Some(now.clone())
                },
                renew_time: Some(now),
                lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(!ours)),
                ..spec
            }),
        }
    }
}
