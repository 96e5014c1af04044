//! One credential at a time: observe -> plan -> act -> record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::runtime::controller::Action as Requeue;

use crate::api::{EphemeralCredential, Reason};
use crate::cluster::Error;
use crate::cluster::journal::JournalError;
use crate::cluster::secrets::WriteError;
use crate::controller::state::changes::name_of;
use crate::controller::state::context::{Context, WATCH_BEHIND};
use crate::core::budget::{Demand, Held};
use crate::core::ids::ObjectName;
use crate::core::journal::MintReason;
use crate::core::plan::{self, Action};
use crate::core::status;

use crate::controller::credential::act::act;
use crate::controller::credential::observe::{Snapshot, observe};
use crate::controller::mint::mint_queue::QueueEntry;

/// Deadlines are looked at again at least this often: a requeue runs on another clock than the wall's.
const LONGEST: Duration = Duration::from_secs(600);

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

/// Looks at one credential and does what is due.
///
/// # Errors
/// Where it could not be seen through; nothing was minted then.
pub async fn reconcile(credential: Arc<EphemeralCredential>, context: Arc<Context>) -> Result<Requeue, ReconcileError> {
    let name = name_of(&*credential);
    let led = context.leading();
    let started = Instant::now();
    let outcome = pass(&credential, &context).await;
    if led {
        context.metrics.reconciled(outcome.is_ok(), started.elapsed());
        context.seen(&name);
    }
    outcome
}

async fn pass(credential: &EphemeralCredential, context: &Arc<Context>) -> Result<Requeue, ReconcileError> {
    if !context.leading() {
        // The term may be over, or its renewal late.
        return Ok(Requeue::requeue(Duration::from_secs(1)));
    }
    if context
        .caches
        .connections
        .get(&credential.spec.connection)
        .is_some_and(|r| r.held.is_err())
    {
        // Another installation's: not even its status is ours. That it becomes ours is told.
        return Ok(Requeue::requeue(LONGEST));
    }
    if credential.metadata.deletion_timestamp.is_some() {
        // Somebody's finalizer keeps it; what it held goes all the same.
        let name = name_of(credential);
        context.sweep_name(&name).await;
    }
    let Some(snapshot) = observe(credential, context).await? else {
        return Ok(Requeue::requeue(Duration::from_secs(1)));
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
    queue(context, &snapshot, plan.demand, credential);
    if again {
        return Ok(Requeue::requeue(Duration::from_millis(1)));
    }
    if let Some(verdict) = &plan.verdict {
        context.tell(&snapshot.owner, verdict, snapshot.observed.told);
        let desired = snapshot.observed.desired.as_ref().ok();
        let next = status::status(
            verdict,
            snapshot.observed.record.as_ref(),
            desired,
            &snapshot.owner.uid,
            credential.metadata.generation,
            credential.status.as_ref(),
            now,
        );
        if credential.status.as_ref() != Some(&next) {
            match context.cluster.write_status(credential, &next).await {
                Ok(()) => tell_of_change(context, credential, verdict).await,
                // It is gone, or another of that name is there.
                Err(e) if e.is_not_found() || e.is_conflict() => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    let now = context.now();
    let mut wait = plan.wake.map_or(LONGEST, |at| (at - now).to_std().unwrap_or_default());
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
    Ok(Requeue::requeue(wait.clamp(least, LONGEST)))
}

/// An Event for each new objection; outcomes of mints have Events of their own.
async fn tell_of_change(context: &Context, credential: &EphemeralCredential, verdict: &plan::Verdict) {
    use Reason::{
        AuditBacklog, ConnectionNotFound, ConnectionNotReady, InvalidSpec, InvalidTemplate, NotPermitted, RateLimited,
        SecretConflict, SecretRefused, Suspended, Tampered,
    };
    let told = matches!(
        verdict.reason,
        AuditBacklog
            | ConnectionNotFound
            | ConnectionNotReady
            | InvalidSpec
            | InvalidTemplate
            | NotPermitted
            | RateLimited
            | SecretConflict
            | SecretRefused
            | Suspended
            | Tampered
    );
    let before = credential
        .status
        .as_ref()
        .and_then(|s| s.conditions.iter().find(|c| c.type_ == "Ready"))
        .map(|c| c.reason.as_str());
    if told && before != Some(verdict.reason.as_str()) {
        let warning = verdict.reason != Suspended;
        context
            .events
            .publish(credential, warning, verdict.reason, "Plan", &verdict.message)
            .await;
    }
}

fn queue(context: &Arc<Context>, snapshot: &Snapshot, demand: Option<MintReason>, credential: &EphemeralCredential) {
    let uid = &snapshot.owner.uid;
    let name = ObjectName::new(snapshot.owner.namespace.as_str(), snapshot.owner.name.as_str());
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
    let Some(reason) = demand else {
        scheduler.forget(uid);
        return;
    };
    // A credential that never had a token waits since it was created, restarts or not.
    let since = match reason {
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
            pod_waits: false,
            most: snapshot.most,
        },
        asks: desired.digest(),
        seq: snapshot.seq,
        connection: desired.connection.clone(),
    });
}
