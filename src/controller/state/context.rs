//! What every part of the shell shares.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::{EphemeralCredential, Reason};
use crate::cluster::config::MOST_CALLS;
use crate::cluster::journal::Journals;
use crate::cluster::lease::Leading;
use crate::cluster::records::Events;
use crate::cluster::secrets::{InspectedSecret, Owner};
use crate::cluster::{Cluster, Error, bounded};
use crate::controller::mint::budget_scheduler::BudgetScheduler;
use crate::controller::state::caches::Caches;
use crate::controller::state::credential_index::CredentialIndex;
use crate::controller::state::credentials::{Facts, Look, Seen};
use crate::controller::state::pods_told::PodsTold;
use crate::controller::state::shared::Shared;
use crate::controller::supervisor::Supervisor;
use crate::core::audit::AuditEvent;
use crate::core::ids::ObjectName;
use crate::core::journal::{ActiveToken, Journal, Scope};
use crate::core::layout::{AnnotationPolicy, OwnMetadata};
use crate::core::plan::Verdict;
use crate::core::render::MOST_RENDERED;
use crate::core::seal::SealKey;
use crate::core::status::Told;
use crate::core::{Problem, Time};
use crate::ops::metrics::{Metrics, ScopeLabels};
use crate::ops::traces::Traces;

/// How many times as long as its journal a scope is kept that nobody asks for: longer than from one look at a credential to
/// the next.
const UNUSED: u32 = 3;

/// Why a mint could not be prepared, until when that holds, and for which generation.
pub type Unprepared = (Problem, Time, Option<i64>);

/// What every part of the shell shares.
pub struct Context {
    /// The API server.
    pub cluster: Cluster,
    /// This process, as claims, Events and the lease name it.
    pub identity: String,
    /// How long past its timeout a claim of another process is left alone.
    pub claim_grace: TimeDelta,
    /// What users may annotate their Secrets with.
    pub annotations: AnnotationPolicy,
    /// The seal key.
    pub seal: SealKey,
    /// The journals.
    pub journals: Journals,
    /// What the watches tell.
    pub caches: Arc<Caches>,
    /// Where each credential's records are, and in whose line it is.
    pub index: Mutex<CredentialIndex>,
    /// The scopes with a budget task.
    pub scopes: Mutex<HashMap<Scope, Arc<BudgetScheduler>>>,
    /// Requests this process has under way, by uid; with what holds their publication up.
    pub working: Arc<Mutex<HashMap<String, Option<Problem>>>>,
    /// [`MINTS_AT_ONCE`] mints begin at once, in all scopes together: what they hold in memory is bounded, and none is
    /// prepared long before it is claimed.
    pub minting: Arc<Semaphore>,
    /// So many bytes of what tokens were written into are in memory at once.
    pub rendering: Rendering,
    /// Why a mint could not be prepared, by uid.
    pub unprepared: Mutex<HashMap<String, Unprepared>>,
    /// What each credential that is not ready waits for, and since when; with its uid, by name.
    pub told: Mutex<HashMap<ObjectName, (String, Reason, Time)>>,
    /// What Pods were told, and what was told of them.
    pub pods_told: Mutex<PodsTold>,
    /// Whether workloads are restarted that ask for it.
    pub restart_workloads: bool,
    /// Namespaces as last read.
    pub fresh_namespaces: Shared<Option<ObjectMeta>>,
    /// Whether this installation serves a connection, as last read.
    pub fresh_holds: Shared<bool>,
    /// Credentials that others follow, as last read.
    pub fresh_sources: Shared<Option<Arc<EphemeralCredential>>>,
    /// What those who follow a credential go by, by its name.
    pub offers: Mutex<HashMap<ObjectName, u64>>,
    /// When each Secret of a credential was last restored, and how often in a row.
    pub restored: Mutex<HashMap<ObjectName, (Instant, u32)>>,
    /// Journals that a process of before this term may yet write to, and until when: it tells nobody that it has.
    pub outlived: Mutex<HashMap<Scope, Time>>,
    /// When a key that was refused may be tried again, by its digest.
    pub unauthorized: Mutex<HashMap<String, Time>>,
    /// Wakes the reconciler for a credential.
    pub triggers: mpsc::UnboundedSender<ObjectName>,
    /// Kubernetes Events.
    pub events: Events,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Whether this process leads.
    pub leads: Arc<Leading>,
    /// Credentials that were there at the start and were not looked at yet; unknown before the first list.
    pub unreconciled: Mutex<Option<HashSet<ObjectName>>>,
    /// Where the time of mints goes.
    pub traces: Traces,
    /// Whether each credential has series of its own.
    pub credential_metrics: bool,
    /// How many credentials wait to be looked at.
    pub queued: AtomicUsize,
    /// Whether all of those were: only then is it known who waits.
    pub initial_sync_done: AtomicBool,
    /// Fires when the term is over.
    pub stop: CancellationToken,
    /// Ends the process where a task panics.
    pub supervisor: Supervisor,
}

/// A Secret as it was looked at.
#[derive(Clone)]
pub struct CachedInspection {
    /// Its resource version then.
    pub resource_version: String,
    /// What the look compared it with.
    pub against: String,
    /// The result.
    pub seen: InspectedSecret,
    /// When it was written, if that is where this comes from: the watch may not have told of it yet.
    pub written: Option<Instant>,
}

impl CachedInspection {
    /// The result of a look, or of a write, that compared the Secret with `live` and `own`.
    #[must_use]
    pub fn new(
        seen: InspectedSecret,
        live: Option<&ActiveToken>,
        own: Option<&OwnMetadata>,
        written: Option<Instant>,
    ) -> Self {
        Self {
            resource_version: seen.version().unwrap_or_default().to_owned(),
            against: Self::against(live, own),
            seen,
            written,
        }
    }

    /// What a look at a Secret depends on besides the Secret.
    #[must_use]
    pub fn against(live: Option<&ActiveToken>, own: Option<&OwnMetadata>) -> String {
        format!("{} {own:?}", live.map_or("", |l| l.claim.as_str()))
    }

    /// Whether it holds still, where the watch tells of this version of the Secret, or of none. What was just written
    /// is taken for what is there while the watch may be behind.
    #[must_use]
    pub fn holds(&self, listed: Option<&str>, against: &str) -> bool {
        self.against == against && (listed == Some(&self.resource_version) || self.is_ahead_of(listed))
    }

    fn is_ahead_of(&self, listed: Option<&str>) -> bool {
        let version = |text: &str| text.parse::<u64>().ok();
        let later = match listed {
            None => true,
            // Versions of one kind of object are numbers that grow.
            Some(listed) => version(&self.resource_version)
                .zip(version(listed))
                .is_some_and(|(ours, theirs)| ours > theirs),
        };
        later && self.written.is_some_and(|at| at.elapsed() < WATCH_BEHIND)
    }
}

/// Twice what the API server is asked at the same time: each also waits for `ChittyConnect` and for its journal.
pub const MINTS_AT_ONCE: usize = MOST_CALLS * 2;
/// How many credentials of the greatest length are rendered at once; of shorter ones as many more.
const RENDERED_AT_ONCE: usize = 8;
/// How far the watch of Secrets may be behind a write whose answer is taken for what is there.
pub const WATCH_BEHIND: Duration = Duration::from_secs(3);
/// So many restorations in a row, each within this time of the one before; then a rest as long.
const RESTORES: u32 = 5;
const RESTORE_MEMORY: Duration = Duration::from_secs(30);

/// What is rendered, and not yet written.
pub struct Rendering(Semaphore);

impl Default for Rendering {
    fn default() -> Self {
        Self(Semaphore::new(RENDERED_AT_ONCE * MOST_RENDERED))
    }
}

impl Rendering {
    /// Waits until so many bytes more may be rendered: as much as [`RENDERED_AT_ONCE`] of the longest credentials are in
    /// memory at once. Nobody holds that for longer than one write takes.
    pub async fn room_for(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let bytes = u32::try_from(bytes.min(MOST_RENDERED)).unwrap_or(u32::MAX);
        // Fails only where it was closed, which nobody does.
        self.0.acquire_many(bytes).await.ok()
    }
}

impl Context {
    /// Runs `task` until it ends or the term is over.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.supervisor.spawn(name, &self.stop, task);
    }

    /// Waits for its turn with so many mints, [`MINTS_AT_ONCE`] at most. They are taken together: whoever holds some
    /// waits for no more.
    pub async fn turns(&self, mints: usize) -> Option<OwnedSemaphorePermit> {
        let mints = u32::try_from(mints.min(MINTS_AT_ONCE)).unwrap_or(1);
        // Fails only where it was closed, which nobody does.
        Arc::clone(&self.minting).acquire_many_owned(mints).await.ok()
    }

    /// Has a credential looked at.
    pub fn trigger(&self, name: &ObjectName) {
        // The receiver goes only when the process does.
        let _ = self.triggers.send(name.clone());
    }

    /// Has every credential looked at that `which` picks.
    pub fn trigger_where(&self, which: impl Fn(&ObjectName, &Facts) -> bool) {
        for name in self.caches.credentials.names_where(which) {
            let _ = self.triggers.send(name);
        }
    }

    /// The credential of that name as it was last read, where there is one.
    ///
    /// # Errors
    /// Where it is too long to be kept, and cannot be read now.
    pub async fn credential(&self, name: &ObjectName) -> Result<Option<Seen>, Error> {
        match self.caches.credentials.look(name) {
            Look::There(seen) => Ok(Some(*seen)),
            Look::Gone => Ok(None),
            Look::TooLong => {
                let api: Api<EphemeralCredential> = Api::namespaced(self.cluster.client.clone(), &name.namespace);
                Ok(bounded(api.get_opt(&name.name)).await?.map(Seen::from))
            }
        }
    }

    /// Whether this process leads now.
    #[must_use]
    pub fn leading(&self) -> bool {
        self.leads.holds()
    }

    /// The budget task of `scope`, started where there is none yet.
    pub fn scheduler(self: &Arc<Self>, scope: &Scope) -> Arc<BudgetScheduler> {
        let mut scopes = self.scopes.lock();
        let start = || BudgetScheduler::start(self, scope.clone());
        let scheduler = Arc::clone(scopes.entry(scope.clone()).or_insert_with(start));
        scheduler.used();
        scheduler
    }

    /// Lets go of a scope of which nothing matters any more. Says whether it did: then its task is to end. One that a
    /// credential belongs to is asked for by each look at that: to close it would be to read its journal anew next time.
    pub fn close_idle(&self, scheduler: &Arc<BudgetScheduler>) -> bool {
        let mut scopes = self.scopes.lock();
        // One is held here and one by its task: whoever has another is about to use it.
        let idle = Arc::strong_count(scheduler) <= 2 && scheduler.is_idle(UNUSED * self.journals.close_after());
        if idle {
            scopes.remove(&scheduler.scope);
            self.journals.forget(&scheduler.scope);
            tracing::debug!(
                scope = scheduler.scope.title(),
                "a budget is let go of: nothing in it matters any more"
            );
        }
        idle
    }

    /// Takes a credential out of the line it is in, and its renewals out of that budget, unless that is
    /// that of `now`, where it belongs under this name.
    pub fn dequeue(&self, uid: &str, now: Option<(&Scope, &ObjectName)>) {
        let before = self.index.lock().set_queue(uid, now);
        let left = before.filter(|b| now.is_none_or(|(scope, _)| b != scope));
        if let Some(scheduler) = left.and_then(|left| self.scopes.lock().get(&left).cloned()) {
            scheduler.forget(uid);
            scheduler.reserve(uid, None);
            scheduler.renew(uid, None);
        }
    }

    /// A key that was refused is accepted by now: no journal may say otherwise to the next leader.
    pub async fn accepted(&self, key: &str) {
        if self.unauthorized.lock().remove(key).is_none() {
            return;
        }
        let schedulers: Vec<Arc<BudgetScheduler>> = self.scopes.lock().values().cloned().collect();
        for scheduler in schedulers {
            scheduler.wake();
            let marked = |j: &Journal| j.unauthorized.as_ref().is_some_and(|refused| refused.key == key);
            if !scheduler.journal.view().await.is_ok_and(|j| marked(&j)) {
                continue;
            }
            let key = key.to_owned();
            let cleared = scheduler
                .journal
                .commit(move |journal, _| journal.unauthorized.take_if(|refused| refused.key == key).is_some());
            if let Err(error) = cleared.await {
                tracing::warn!(scope = scheduler.scope.title(), %error, "failed to note that a key is accepted");
            }
        }
    }

    /// Notes that a credential was looked at; once all were, newcomers may be admitted.
    pub fn seen(&self, name: &ObjectName) {
        if self.initial_sync_done.load(Ordering::Acquire) {
            return;
        }
        let all_seen = self.unreconciled.lock().as_mut().is_some_and(|unreconciled| {
            unreconciled.remove(name);
            unreconciled.is_empty()
        });
        if all_seen {
            self.finish_initial_sync();
        }
    }

    /// Lets newcomers in.
    pub fn finish_initial_sync(&self) {
        self.initial_sync_done.store(true, Ordering::Release);
        for scheduler in self.scopes.lock().values() {
            scheduler.wake();
        }
    }

    /// Whether a Secret may be restored now. Somebody who undoes it each time (a mutating webhook, another
    /// controller) must not make two of us spin.
    pub fn may_restore(&self, at: &ObjectName) -> bool {
        let mut restored = self.restored.lock();
        restored.retain(|_, (last, _)| last.elapsed() < RESTORE_MEMORY);
        let (last, count) = restored.entry(at.clone()).or_insert_with(|| (Instant::now(), 0));
        if *count >= RESTORES {
            return false;
        }
        *last = Instant::now();
        *count += 1;
        true
    }

    /// Why the last try to prepare a mint came to nothing, and until when that holds: no longer than for this generation,
    /// for a changed spec deserves another try at once.
    pub fn unprepared_of(&self, uid: &str, generation: Option<i64>) -> Option<(Problem, Time)> {
        let mut all = self.unprepared.lock();
        let (problem, until, of) = all.get(uid)?;
        if of.is_some() && *of != generation {
            all.remove(uid);
            return None;
        }
        Some((problem.clone(), *until))
    }

    /// What a credential waits for, and since when.
    pub fn told_of(&self, owner: &Owner, told: &Told) -> Option<(Reason, Time)> {
        let name = owner.object_name();
        let known = self
            .told
            .lock()
            .get(&name)
            .filter(|(uid, ..)| *uid == owner.uid)
            .cloned();
        let known = known.map(|(_, reason, since)| (reason, since));
        known.or_else(|| told.waits())
    }

    /// Notes what a credential is told after what it was told `before`.
    pub fn tell(&self, owner: &Owner, verdict: &Verdict, before: Option<(Reason, Time)>) {
        let name = owner.object_name();
        if verdict.ready {
            let mut told = self.told.lock();
            told.remove(&name);
            if told.is_empty() {
                *told = HashMap::new();
            }
            return;
        }
        let goes_on = before.filter(|(reason, _)| *reason == verdict.reason);
        let (reason, since) = goes_on.unwrap_or((verdict.reason, self.now()));
        self.told.lock().insert(name, (owner.uid.clone(), reason, since));
    }

    /// Logs a committed audit event: the record that is there whatever becomes of `ChittyChronicle`.
    pub fn log_event(&self, event: &AuditEvent) {
        self.metrics.event(event.event.as_str(), event.reason);
        if event.event.ends_mint() {
            let connection = &event.request.connection;
            let kind = self
                .caches
                .connections
                .get(connection)
                .map(|r| r.connection.spec.rate_limit.scope);
            let scope = ScopeLabels::new(connection, kind.unwrap_or_default(), &event.request.service);
            self.metrics.minted(scope, event.reason);
        }
        tracing::info!(
            target: "audit",
            id = %event.id,
            event = event.event.as_str(),
            reason = %event.reason,
            namespace = %event.namespace,
            name = %event.name,
            service = %event.request.service,
            purpose = %event.request.purpose,
            run_id = %event.request.run_id,
            revision = event.revision,
        );
    }

    /// Now.
    pub fn now(&self) -> Time {
        self.cluster.now()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn look(version: &str, written: Option<Instant>) -> CachedInspection {
        CachedInspection {
            resource_version: version.to_owned(),
            against: "claim".to_owned(),
            seen: InspectedSecret::absent(),
            written,
        }
    }

    #[tokio::test]
    async fn at_most_eight_of_the_longest_credentials_are_rendered_at_once_or_as_much_of_shorter_ones() {
        let rendering = Rendering::default();
        let room = |bytes| rendering.room_for(bytes).now_or_never().flatten();
        // One that claims to be longer takes no more than the longest can.
        let mut longest: Vec<_> = (0..8).filter_map(|_| room(MOST_RENDERED * 2)).collect();
        assert_eq!(longest.len(), 8);
        assert!(room(1).is_none());
        longest.pop();
        let shorter: Vec<_> = (0..2).filter_map(|_| room(MOST_RENDERED / 2)).collect();
        assert!(shorter.len() == 2 && room(1).is_none());
        drop(longest);
        assert!(room(MOST_RENDERED).is_some());
    }

    fn holds(look: &CachedInspection, listed: Option<&str>) -> bool {
        look.holds(listed, "claim")
    }

    #[test]
    fn a_look_holds_for_the_version_that_the_watch_tells_of() {
        assert!(holds(&look("9", None), Some("9")));
        assert!(!holds(&look("9", None), Some("8")));
        assert!(!holds(&look("9", None), None));
        assert!(!look("9", None).holds(Some("9"), "another claim"));
    }

    #[test]
    fn what_was_just_written_holds_until_the_watch_tells_of_something_later() {
        let now = look("10", Some(Instant::now()));
        assert!(holds(&now, None) && holds(&now, Some("9")) && holds(&now, Some("10")));
        assert!(!holds(&now, Some("11")) && !holds(&now, Some("not a number")));
        let long_ago = Instant::now().checked_sub(WATCH_BEHIND);
        assert!(!holds(&look("10", long_ago), None) || long_ago.is_none());
    }
}
