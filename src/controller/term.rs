//! What a leader adds: the journals, the reconcile loop, and all that goes on beside it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::background::{owed, status};
use super::credential::reconcile::{ReconcileError, reconcile};
use super::state::context::Context;
use super::state::work_queue::WorkQueue;
use crate::cluster::journal::{Entry, JournalError};
use crate::core::ids::ObjectName;
use crate::core::journal::Scope;
use crate::core::schedule::spread;
use crate::ops::health::Health;
use crate::planted::{Bug, is_planted};

/// How often a journal that cannot be read is looked at again.
const MENDED_EVERY: Duration = Duration::from_secs(5);
/// A credential that cannot be seen through is looked at again after a second, then two, up to two to this power.
const LONGEST_BACKOFF: u32 = 6;

/// Does all there is to do until the term is over.
pub(super) async fn serve(
    context: Arc<Context>,
    triggered: mpsc::UnboundedReceiver<ObjectName>,
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
    context.spawn("what is owed", owed::work_off_for_ever(Arc::clone(&context)));
    context.spawn("status of connections", status::report_for_ever(Arc::clone(&context)));
    context.spawn("first looks", Arc::clone(&context).look_at_all());
    drive(context, triggered, concurrency).await;
}

/// The reconcile loop. The watches belong to the process: what they tell comes by `triggered`. Ends when the term is
/// over and what is looked at was seen through.
async fn drive(context: Arc<Context>, mut triggered: mpsc::UnboundedReceiver<ObjectName>, concurrency: u16) {
    let mut queue = WorkQueue::default();
    let mut failures: HashMap<ObjectName, u32> = HashMap::new();
    let (done, mut passes) = mpsc::channel::<(ObjectName, Outcome)>(concurrency.into());
    let mut running = 0;
    loop {
        while running < concurrency
            && !context.stop.is_cancelled()
            && let Some((name, waited)) = queue.next(Instant::now())
        {
            running += 1;
            let (context, done) = (Arc::clone(&context), done.clone());
            let supervisor = context.supervisor.clone();
            supervisor.see_through("pass over a credential", async move {
                let outcome = reconcile(&name, &context, waited).await;
                // The receiver goes when all passes are done.
                let _ = done.send((name, outcome)).await;
            });
        }
        if running == 0 && context.stop.is_cancelled() {
            return;
        }
        context.queued.store(queue.waiting(), Ordering::Relaxed);
        let next_due = queue.next_due();
        tokio::select! {
            () = context.stop.cancelled(), if running == 0 => {}
            Some(name) = triggered.recv() => {
                let now = Instant::now();
                queue.trigger(name, now);
                while let Ok(name) = triggered.try_recv() {
                    queue.trigger(name, now);
                }
            }
            Some((name, outcome)) = passes.recv() => {
                running -= 1;
                let wait = after(&name, outcome, &mut failures);
                let now = Instant::now();
                queue.done(&name, wait.map(|wait| now + wait), now);
            }
            () = due(next_due), if running < concurrency => {}
        }
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

type Outcome = Result<Option<Duration>, ReconcileError>;

/// How soon a credential is looked at again. Nothing was minted by a pass that failed, and nothing will be by the next
/// but through the journal: a spread wait is all it takes, longer each time.
fn after(name: &ObjectName, outcome: Outcome, failures: &mut HashMap<ObjectName, u32>) -> Option<Duration> {
    let error = match outcome {
        Ok(wait) => {
            failures.remove(name);
            return wait;
        }
        Err(error) => error,
    };
    let count = failures.entry(name.clone()).or_default();
    let wait =
        Duration::from_secs(1 << (*count).min(LONGEST_BACKOFF)) + Duration::from_millis(spread(&name.name).into());
    *count += 1;
    if is_planted(Bug::RequeueLost) {
        return None;
    }
    if *count == 1 {
        tracing::warn!(%name, %error, "failed to see a credential through; it is looked at again");
    } else {
        tracing::debug!(%name, %error, count, "failed again to see a credential through");
    }
    Some(wait)
}

impl Context {
    /// Looks at every credential there is; newcomers are let in when all were looked at.
    async fn look_at_all(self: Arc<Self>) {
        let all = self.caches.credentials.names_where(|_, _| true);
        if all.is_empty() {
            self.finish_initial_sync();
            return;
        }
        *self.unreconciled.lock() = Some(all.iter().cloned().collect());
        for name in &all {
            self.trigger(name);
        }
        // A credential that can never be looked at must not keep newcomers out for ever.
        tokio::time::sleep(Duration::from_secs(30)).await;
        self.finish_initial_sync();
    }

    /// Opens every journal that is there, and learns from it who has records where and which keys
    /// are refused.
    async fn open_journals(self: &Arc<Self>, stop: &CancellationToken) {
        let mut listing = self.journals.begin_listing();
        while !stop.is_cancelled() {
            match self.journals.next(&mut listing).await {
                Ok(Some(entries)) => {
                    for entry in entries {
                        self.open_journal(entry, stop).await;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "failed to list the journals; trying again");
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    listing = self.journals.begin_listing();
                }
            }
        }
    }

    async fn open_journal(self: &Arc<Self>, entry: Entry, stop: &CancellationToken) {
        let Entry::Scope(scope) = entry else {
            self.spawn("journal to be mended", Arc::clone(self).await_mended(entry));
            return;
        };
        while !stop.is_cancelled() {
            match self.learn(&scope).await {
                Ok(()) => return,
                // Until it is mended nobody knows who is in it; its own scope stands still meanwhile.
                Err(JournalError::Broken { .. }) => {
                    let mended = Arc::clone(self).await_mended(Entry::Scope(scope));
                    self.spawn("journal to be mended", mended);
                    return;
                }
                Err(JournalError::Unavailable(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// Learns from a journal that cannot be read now as soon as it can be.
    async fn await_mended(self: Arc<Self>, mut found: Entry) {
        loop {
            tokio::time::sleep(MENDED_EVERY).await;
            match &found {
                Entry::Scope(scope) => {
                    if self.learn(scope).await.is_ok() {
                        return;
                    }
                }
                Entry::Illegible(name) => match self.journals.find(name).await {
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
        let records = journal
            .credentials
            .iter()
            .map(|(uid, r)| (uid, &*r.namespace, &*r.name));
        let claims = journal
            .claims
            .iter()
            .map(|(uid, c)| (uid, c.namespace.as_str(), c.name.as_str()));
        {
            let mut index = self.index.lock();
            for (uid, namespace, name) in records.chain(claims) {
                let name = ObjectName::new(namespace, name);
                index.add_record(uid.as_str(), &name, scope);
            }
        }
        if let Some(until) = journal.others_may_write_until(&self.identity, self.now()) {
            self.outlived.lock().insert(scope.clone(), until);
        }
        if let Some(refused) = &journal.unauthorized {
            self.unauthorized.lock().insert(refused.key.clone(), refused.probe_at);
        }
        Ok(())
    }
}
