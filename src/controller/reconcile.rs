//! One credential at a time: observe -> plan -> act -> record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::runtime::controller::Action as Requeue;

use super::changes::name_of;
use super::context::{Context, WATCH_BEHIND};
use crate::api::{EphemeralCredential, Reason};
use crate::cluster::Error;
use crate::cluster::journal::JournalError;
use crate::cluster::secrets::WriteError;
use crate::core::budget::{Demand, Held};
use crate::core::ids::ObjectName;
use crate::core::journal::Kind;
use crate::core::plan::{self, Action};
use crate::core::status;

use super::act::act;
use super::observe::{Scene, observe};
use super::wishes::Wish;

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
    let Some(scene) = observe(credential, context).await? else {
        return Ok(Requeue::requeue(Duration::from_secs(1)));
    };
    let holds = scene.live_home == scene.scope && scene.observed.record.as_ref().is_some_and(|r| r.live.is_some());
    if let (Some(home), None, true) = (&scene.live_home, &scene.observed.claim, holds) {
        // What a crash kept from being superseded is so now.
        context.supersede(&scene.owner.uid, home).await;
    }
    let now = context.now();
    let plan = plan::plan(&scene.observed, now);
    let mut again = false;
    for action in &plan.actions {
        again |= act(context, &scene, action, credential).await?;
    }
    queue(context, &scene, plan.demand, credential);
    if again {
        return Ok(Requeue::requeue(Duration::from_millis(1)));
    }
    if let Some(verdict) = &plan.verdict {
        context.tell(&scene.owner, verdict, scene.observed.told);
        let wanted = scene.observed.wanted.as_ref().ok();
        let next = status::status(
            verdict,
            scene.observed.record.as_ref(),
            wanted,
            &scene.owner.uid,
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
    if scene.unconfirmed {
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

fn queue(context: &Arc<Context>, scene: &Scene, demand: Option<Kind>, credential: &EphemeralCredential) {
    let uid = &scene.owner.uid;
    let name = ObjectName::new(scene.owner.namespace.as_str(), scene.owner.name.as_str());
    let runner = scene.scope.as_ref().map(|scope| context.runner(scope));
    context.leave_line(uid, runner.as_ref().map(|runner| (&runner.scope, &name)));
    let (Some(scope), Some(runner)) = (&scene.scope, runner) else {
        return;
    };
    let Ok(wanted) = &scene.observed.wanted else {
        runner.forget(uid);
        runner.reserve(uid, None);
        return;
    };
    // A key or a URL that an administrator changed moves the token's renewals here; somebody's edit of the
    // request does not.
    let live = scene.observed.record.as_ref().and_then(|r| r.live.as_ref());
    let moved = live.filter(|l| scene.live_home.as_ref() != Some(scope) && wanted.is_served_by(&l.request));
    runner.reserve(uid, moved.map(|l| (name.clone(), Held::of(&name.namespace, l))));
    let Some(reason) = demand else {
        runner.forget(uid);
        return;
    };
    // A credential that never had a token waits since it was created, restarts or not.
    let since = match reason {
        Kind::First => credential
            .creation_timestamp()
            .and_then(|t| chrono::DateTime::from_timestamp(t.0.as_second(), 0))
            .unwrap_or_else(|| context.now()),
        _ => context.now(),
    };
    runner.want(Wish {
        demand: Demand {
            uid: uid.as_str().into(),
            name,
            reason,
            since,
            renew_before: wanted.renew_before,
            max_lifetime: wanted.max_lifetime,
            pod_waits: false,
        },
        asks: wanted.digest(),
        seq: scene.seq,
        connection: wanted.connection.clone(),
    });
}
