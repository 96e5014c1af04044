//! A credential that follows another: the same passes, and no mint. The values are taken from a Secret of the other, as its
//! seal vouches for them, by each pass that needs them, and are kept by none.
//!
//! So whoever follows is nothing to the mint that it gets its token from: that one is published, told and recorded before
//! anybody here hears of it, and nobody's Secret that cannot be written holds it up.

mod copy;
mod observe;

use std::sync::Arc;
use std::time::Duration;

use crate::api::{EphemeralCredential, Reason, Source};
use crate::controller::state::context::Context;
use crate::controller::state::credentials::Seen;
use crate::core::plan::{self, Action};

use crate::controller::credential::act;
use crate::controller::credential::observe::Snapshot;
use crate::controller::credential::reconcile::{ReconcileError, report};

use copy::{Stopped, copy};
use observe::{Following, observe};

/// How soon to look again at what is about to be otherwise.
const SOON: Duration = Duration::from_secs(1);

/// Looks at a credential that follows `source`, and does what is due; returns how soon to look again.
pub(crate) async fn pass(seen: &Seen, source: &Source, context: &Arc<Context>) -> Result<Duration, ReconcileError> {
    let following = match Box::pin(observe(seen, source, context)).await? {
        Ok(following) => following,
        Err(wait) => return Ok(wait),
    };
    let Following {
        snapshot,
        facts,
        followed,
    } = &following;
    let now = context.now();
    let plan = plan::follow(&snapshot.observed, facts.as_ref(), now);
    let mut again = false;
    for action in &plan.actions {
        again |= act(context, snapshot, action, &seen.credential).await?;
    }
    context.dequeue(&snapshot.owner.uid, None);
    if let (Some(why), Some(followed), Some(facts)) = (plan.demand, followed, facts) {
        match copy(context, snapshot, followed, facts, why, seen).await {
            Ok(()) => {}
            Err(Stopped::Changed) => return Ok(SOON),
            Err(Stopped::No(problem, retry)) => {
                let entry = (problem, context.now() + retry, seen.credential.metadata.generation);
                context.unprepared.lock().insert(snapshot.owner.uid.clone(), entry);
            }
            Err(Stopped::Failed(error)) => return Err(error),
        }
        return Ok(Duration::ZERO);
    }
    if again {
        return Ok(Duration::ZERO);
    }
    report(context, seen, snapshot, plan, now).await
}

/// Does one thing; true where the credential should be looked at anew at once.
async fn act(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    action: &Action,
    credential: &EphemeralCredential,
) -> Result<bool, ReconcileError> {
    let owner = &snapshot.owner;
    match action {
        Action::Delete { .. } | Action::Restore { .. } => act::act(context, snapshot, action, credential).await,
        Action::Release { reason } => {
            let mut held = false;
            let scopes = context.index.lock().records_of(&owner.uid);
            for scope in scopes {
                let (uid, why) = (owner.uid.clone(), *reason);
                let journal = &context.scheduler(&scope).journal;
                held |= journal.commit(move |journal, _| journal.unfollow(&uid, why)).await?;
            }
            if held {
                let note = match reason {
                    Reason::Expired => {
                        "the token that was followed is no more; it is removed from this credential's Secrets"
                    }
                    Reason::Idle => {
                        "nobody uses the token that was followed, and it was let go of; it is removed from this credential's Secrets"
                    }
                    _ => "this credential does not follow any more; its Secrets are removed",
                };
                context
                    .events
                    .publish(credential, *reason != Reason::Idle, *reason, "Release", note)
                    .await;
            }
            Ok(held)
        }
        // What a plan for one that follows has nothing of.
        _ => Ok(false),
    }
}
