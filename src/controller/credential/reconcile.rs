//! One credential at a time: observe -> plan -> act -> record.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kube::ResourceExt;

use crate::api::{EphemeralCredential, EphemeralCredentialStatus, Reason};
use crate::cluster::Error;
use crate::cluster::journal::JournalError;
use crate::cluster::secrets::WriteError;
use crate::controller::state::context::{Context, WATCH_BEHIND};
use crate::controller::state::credentials::Seen;
use crate::core::budget::{Demand, Held, Renews};
use crate::core::consumers::{Users, consumer};
use crate::core::ids::ObjectName;
use crate::core::journal::MintReason;
use crate::core::plan::{self, Action, Plan};
use crate::core::{Time, status};

use crate::controller::credential::act::act;
use crate::controller::credential::consumers::{self, Reader};
use crate::controller::credential::follow;
use crate::controller::credential::followers::tell_followers;
use crate::controller::credential::observe::{Snapshot, observe};
use crate::controller::mint::mint_queue::QueueEntry;
use crate::planted::{Bug, is_planted};

/// Deadlines are looked at again at least this often: a requeue runs on another clock than the wall's.
pub(crate) const LONGEST: Duration = Duration::from_secs(600);
/// How soon a credential is looked at again that has changed since it was read: the watch tells of that in a moment.
const BEHIND: Duration = Duration::from_millis(100);

/// Why a pass over one credential came to nothing; it is repeated.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server.
    #[error("{0}")]
    Api(#[from] Error),
    /// A managed Secret.
    #[error("failed to write a Secret: {0}")]
    Secret(#[from] WriteError),
    /// The journal.
    #[error("{0}")]
    Journal(#[from] JournalError),
}

/// Looks at the credential of that name and does what is due; returns how soon it is to be looked at again, unless
/// it is gone. It `waited` so long for its turn.
///
/// # Errors
/// Where it could not be seen through; nothing was minted then.
pub async fn reconcile(
    name: &ObjectName,
    context: &Arc<Context>,
    waited: Duration,
) -> Result<Option<Duration>, ReconcileError> {
    let led = context.leading();
    if led {
        context.metrics.waited_in_queue(waited);
    }
    let started = Instant::now();
    let outcome = match context.credential(name).await {
        Ok(Some(seen)) => pass(name, &seen, context, waited).await.map(Some),
        Ok(None) => {
            context.told.lock().remove(name);
            tell_followers(context, name, None);
            context.sweep_name(name).await;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    };
    if led {
        context.metrics.reconciled(outcome.is_ok(), started.elapsed());
        context.seen(name);
    }
    outcome
}

async fn pass(
    name: &ObjectName,
    seen: &Seen,
    context: &Arc<Context>,
    waited: Duration,
) -> Result<Duration, ReconcileError> {
    let began = context.now();
    let credential = &seen.credential;
    if !context.leading() {
        // The term may be over, or its renewal late.
        return Ok(Duration::from_secs(1));
    }
    let synced = context.initial_sync_done.load(Ordering::Acquire);
    if is_planted(Bug::StatusTrusted) && !synced && seen.told.ready().is_some_and(|(is, _)| is) {
        return Ok(LONGEST);
    }
    if credential.metadata.deletion_timestamp.is_some() {
        // Somebody's finalizer keeps it; what it held goes all the same.
        context.sweep_name(name).await;
    }
    if let Some(source) = &credential.spec.from {
        return Box::pin(follow::pass(seen, source, context)).await;
    }
    let connection = &credential.spec.connection;
    let held = context.caches.connections.get(connection).map(|r| r.held);
    if !context.cluster.reach.serves(connection) || held.is_some_and(|held| held.is_err()) {
        // Another installation's: not even its status is ours. That it becomes ours is told.
        return Ok(LONGEST);
    }
    let Some(snapshot) = observe(seen, context).await? else {
        return Ok(Duration::from_secs(1));
    };
    let holds =
        snapshot.live_scope == snapshot.scope && snapshot.observed.record.as_ref().is_some_and(|r| r.live.is_some());
    if let (Some(owning_scope), None, true) = (&snapshot.live_scope, &snapshot.observed.claim, holds) {
        // What a crash kept from being superseded is so now.
        context.supersede(&snapshot.owner.uid, owning_scope).await;
    }
    let now = context.now();
    let plan = plan::plan(&snapshot.observed, now);
    let mut again = false;
    for action in &plan.actions {
        again |= act(context, &snapshot, action, credential).await?;
    }
    if plan.demand.is_some() {
        context.traces.wanted(&snapshot.owner.uid, waited, began, context.now());
    } else if !snapshot.observed.working {
        context.traces.forget(&snapshot.owner.uid);
    }
    queue(context, &snapshot, plan.demand, credential);
    tell_followers(context, name, Some((credential, &snapshot)));
    if again {
        return Ok(Duration::ZERO);
    }
    report(context, seen, &snapshot, plan, now).await
}

/// Writes the status that a plan comes to, where that is news, and tells Pods what they are to know; returns how soon to look
/// again.
pub(crate) async fn report(
    context: &Arc<Context>,
    seen: &Seen,
    snapshot: &Snapshot,
    mut plan: Plan,
    now: Time,
) -> Result<Duration, ReconcileError> {
    let mut soon: Vec<Duration> = Vec::new();
    if let Some(verdict) = &mut plan.verdict {
        consumers::tell_unseen(&snapshot.readers, &snapshot.observed.users, verdict);
        context.tell(&snapshot.owner, verdict, snapshot.observed.told);
        let (observed, record) = (&snapshot.observed, snapshot.observed.record.as_ref());
        let renewal = status::renewal(record, observed.desired.as_ref().ok(), snapshot.renewed_by());
        let mut next = status::status(
            verdict,
            record,
            renewal.filter(|_| observed.users.renew() != Some(false)),
            seen.credential.metadata.generation,
            &seen.told,
            now,
        );
        next.in_use = consumers::in_use(&snapshot.readers, &seen.told);
        let put_off = consumers::put_off(context, snapshot, &seen.told, &next);
        if put_off.is_none() && !seen.told.tells(&next) && !write_status(context, seen, verdict, &next).await? {
            return Ok(BEHIND);
        }
        soon.extend(put_off);
    }
    soon.extend(consumers::look_after(context, snapshot, plan.verdict.as_ref()).await);
    let now = context.now();
    soon.extend(plan.wake.map(|at| (at - now).to_std().unwrap_or_default()));
    let mut wait = soon.into_iter().min().unwrap_or(LONGEST);
    if plan.actions.iter().any(|a| matches!(a, Action::Restore { .. })) {
        // A restoration that was put off is due when the rest is over.
        wait = wait.min(Duration::from_secs(30));
    }
    if snapshot.unconfirmed {
        wait = wait.min(WATCH_BEHIND);
    }
    // Due already, and yet nothing was done: not again at once.
    let least = if wait.is_zero() {
        Duration::from_millis(500)
    } else {
        Duration::from_millis(20)
    };
    Ok(wait.clamp(least, LONGEST))
}

/// Writes a status that is news; false where it is not about the object that is there by now.
async fn write_status(
    context: &Context,
    seen: &Seen,
    verdict: &plan::Verdict,
    status: &EphemeralCredentialStatus,
) -> Result<bool, ReconcileError> {
    match context.cluster.write_status(&seen.credential, status).await {
        Ok(written) => {
            // What was answered is known before the watch tells of it.
            if let Some(news) = context.caches.credentials.put_answer(written) {
                context.trigger(&news);
            }
            tell_of_change(context, seen, verdict).await;
            Ok(true)
        }
        // It is gone; the watch tells.
        Err(e) if e.is_not_found() => Ok(true),
        Err(e) if e.is_conflict() => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// An Event for each new objection; outcomes of mints have Events of their own.
async fn tell_of_change(context: &Context, seen: &Seen, verdict: &plan::Verdict) {
    use Reason::{
        AuditBacklog, ConnectionNotFound, ConnectionNotReady, InvalidSpec, InvalidTemplate, NotPermitted, NotShared,
        RateLimited, Revoked, SecretConflict, SecretRefused, SourceNotFound, Suspended, Tampered,
    };
    let told = matches!(
        verdict.reason,
        AuditBacklog
            | ConnectionNotFound
            | ConnectionNotReady
            | InvalidSpec
            | InvalidTemplate
            | NotPermitted
            | NotShared
            | RateLimited
            | Revoked
            | SecretConflict
            | SecretRefused
            | SourceNotFound
            | Suspended
            | Tampered
    );
    let before = seen.told.ready().and_then(|(_, reason)| reason);
    if told && before != Some(verdict.reason) {
        let warning = verdict.reason != Suspended;
        context
            .events
            .publish(&seen.credential, warning, verdict.reason, "Plan", &verdict.message)
            .await;
    }
}

fn queue(context: &Arc<Context>, snapshot: &Snapshot, demand: Option<MintReason>, credential: &EphemeralCredential) {
    let uid = &snapshot.owner.uid;
    let name = snapshot.owner.object_name();
    let scheduler = snapshot.scope.as_ref().map(|scope| context.scheduler(scope));
    context.dequeue(uid, scheduler.as_ref().map(|scheduler| (&scheduler.scope, &name)));
    let (Some(scope), Some(scheduler)) = (&snapshot.scope, scheduler) else {
        return;
    };
    let Ok(desired) = &snapshot.observed.desired else {
        scheduler.forget(uid);
        scheduler.reserve(uid, None);
        return;
    };
    // A key or a URL that an administrator changed moves the token's renewals here; somebody's edit of the
    // request does not.
    let live = snapshot.observed.record.as_ref().and_then(|r| r.live.as_ref());
    let moved = live.filter(|l| snapshot.live_scope.as_ref() != Some(scope) && desired.is_served_by(&l.request));
    scheduler.reserve(uid, moved.map(|l| (name.clone(), Held::of(&name.namespace, l))));
    let renews = match (&snapshot.observed.users, snapshot.observed.users.renew()) {
        (_, None) => None,
        (_, Some(false)) => Some(Renews::No),
        (Users::Anybody, Some(true)) => Some(Renews::Always(snapshot.most)),
        (_, Some(true)) => Some(Renews::Used(snapshot.most)),
    };
    if let Some(renews) = renews {
        scheduler.renew(uid, Some(renews));
    }
    let Some(reason) = demand else {
        scheduler.forget(uid);
        return;
    };
    let readers = snapshot.readers.as_ref().map_or(&[][..], Vec::as_slice);
    let starts = |(pod, _): &Reader| pod.starting && !pod.leaving;
    // A credential that never had a token waits since it was created, restarts or not.
    let since = match reason {
        // One on demand does so since its Pods do.
        MintReason::First if snapshot.observed.users != Users::Anybody => {
            let waiting = readers.iter().filter(|reader| starts(reader));
            waiting.map(|(pod, _)| pod.bound).min().unwrap_or_else(|| context.now())
        }
        MintReason::First => credential
            .creation_timestamp()
            .and_then(|t| chrono::DateTime::from_timestamp(t.0.as_second(), 0))
            .unwrap_or_else(|| context.now()),
        _ => context.now(),
    };
    scheduler.want(QueueEntry {
        demand: Demand {
            uid: uid.as_str().into(),
            name,
            reason,
            since,
            renew_before: desired.renew_before,
            max_lifetime: desired.max_lifetime,
            pod_waits: readers.iter().any(starts),
            renews: snapshot.observed.users.renew() != Some(false),
            most: snapshot.most,
        },
        consumer: consumer(readers.iter().filter(|reader| starts(reader)).map(|(pod, _)| pod)).map(|c| c.to_string()),
        asks: desired.digest,
        seq: snapshot.seq,
        connection: desired.connection.clone(),
    });
}
