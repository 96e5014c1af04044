//! What a plan asks for, done.

use std::sync::Arc;

use crate::api::{EphemeralCredential, Reason};
use crate::cluster::secrets::WriteError;
use crate::controller::mint::publish::metadata;
use crate::controller::state::context::Context;
use crate::core::Time;
use crate::core::audit::{AuditEvent, EventType};
use crate::core::ids::ObjectName;
use crate::core::journal::{ActiveToken, Journal};
use crate::core::plan::Action;
use crate::core::spec::Asked;

use crate::controller::credential::consumers::secrets;
use crate::controller::credential::observe::Snapshot;
use crate::controller::credential::reconcile::ReconcileError;
use crate::controller::credential::recovery::{adopt, give_up, rebuild};

/// Does one thing; true where the credential should be looked at anew at once.
pub(crate) async fn act(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    action: &Action,
    credential: &EphemeralCredential,
) -> Result<bool, ReconcileError> {
    match action {
        Action::Delete { secret } => {
            remove(context, snapshot, secret).await?;
            Ok(false)
        }
        Action::DeleteUnknown { secret, claim } => delete_unknown(context, snapshot, secret, claim).await,
        Action::DeleteTampered { secret } => delete_tampered(context, snapshot, credential, secret).await,
        Action::Restore { secret } => {
            let at = ObjectName::new(snapshot.owner.namespace.as_str(), secret.as_str());
            if !context.may_restore(&at) {
                tracing::warn!(namespace = %at.namespace, secret = %at.name, "somebody undoes what is restored on a managed Secret");
                return Ok(false);
            }
            restore(context, snapshot, secret).await?;
            context.caches.inspection_cache.lock().remove(&snapshot.owner.uid);
            Ok(true)
        }
        Action::Release { reason } => release(context, snapshot, credential, *reason).await,
        Action::Revoke { asked } => revoke(context, snapshot, *asked).await,
        Action::Adopt => adopt(context, snapshot).await,
        Action::GiveUp => give_up(context, snapshot, credential).await,
        Action::Rebuild => rebuild(context, snapshot).await,
    }
}

async fn delete_unknown(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    secret: &str,
    claim: &str,
) -> Result<bool, ReconcileError> {
    let owner = &snapshot.owner;
    // Wherever it may have been made: the credential can have moved meanwhile.
    let mut scopes = context.index.lock().records_of(&owner.uid);
    scopes.extend(snapshot.scope.clone());
    for scope in scopes {
        let (uid, claim) = (owner.uid.clone(), claim.to_owned());
        let journal = &context.scheduler(&scope).journal;
        if journal.fresh(move |journal| journal.knows(&uid, &claim)).await? {
            return Ok(true);
        }
    }
    remove(context, snapshot, secret).await?;
    Ok(false)
}

async fn delete_tampered(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    credential: &EphemeralCredential,
    secret: &str,
) -> Result<bool, ReconcileError> {
    let (uid, tampered) = (snapshot.owner.uid.clone(), Reason::Tampered);
    let first = record(
        context,
        snapshot,
        EventType::Tampered,
        tampered,
        move |journal, live, _| {
            let claim = Some(live.claim.clone());
            let record = journal.credentials.get(uid.as_str());
            let first = record.is_some_and(|record| record.tampered != claim);
            first && journal.edit(&uid, |record| record.tampered = claim).is_some()
        },
    )
    .await?;
    // Asked of the journal first: a view that is behind is found out by that, and deletes nothing.
    if first == Recorded::Behind {
        return Ok(true);
    }
    remove(context, snapshot, secret).await?;
    if first == Recorded::Yes {
        let note = format!("Secret {secret} was changed by somebody else; it is removed and made anew");
        let events = &context.events;
        events.publish(credential, true, tampered, "Heal", &note).await;
    }
    Ok(true)
}

/// Lets go of the live token, whose Secrets are gone.
async fn release(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    credential: &EphemeralCredential,
    reason: Reason,
) -> Result<bool, ReconcileError> {
    let event = if reason == Reason::Expired {
        EventType::Expired
    } else {
        EventType::Released
    };
    let uid = snapshot.owner.uid.clone();
    let live = snapshot.observed.record.as_ref().and_then(|r| r.live.as_ref());
    // One without ids ends by itself, whoever has read it: nobody needs to be asked.
    let ends_by_itself = live.is_some_and(|live| live.token_ids.is_empty());
    let read = reason == Reason::Idle && (ends_by_itself || is_read(context, credential).await);
    let released = record(context, snapshot, event, reason, move |journal, _, now| {
        // An expired token has no life left to revoke, but its broker may not agree.
        let released = journal.live_of(&uid).is_some();
        match reason {
            Reason::NotPermitted => journal.revoke_all(&uid, now, reason),
            Reason::Idle => journal.let_go(&uid, read, now),
            _ => drop(journal.release(&uid, now, reason)),
        }
        journal.edit(&uid, |record| record.expired = reason == Reason::Expired);
        released
    })
    .await?;
    if reason == Reason::NotPermitted {
        let elsewhere = snapshot.live_scope.as_ref();
        context.revoke_elsewhere(&snapshot.owner.uid, elsewhere, reason).await;
    }
    if released != Recorded::Yes {
        return Ok(false);
    }
    let note = match reason {
        Reason::Idle if read => "no Pod needs a token after this one, which lives to its end; its Secrets are removed",
        Reason::Idle => "no Pod uses the token any more: its Secrets are removed, and it is revoked where that can be",
        Reason::Expired => "the token reached its end without a successor; its Secrets are removed",
        _ => "the connection does not allow this request any more; its Secrets are removed",
    };
    // One that nobody needs has done what it was for: no reason to worry anybody.
    let warning = reason != Reason::Idle;
    let events = &context.events;
    events.publish(credential, warning, reason, "Release", note).await;
    Ok(true)
}

/// Revokes all tokens, as somebody asked. What is noted of that stands in the way of the next mint, tokens or none.
async fn revoke(context: &Arc<Context>, snapshot: &Snapshot, asked: Asked) -> Result<bool, ReconcileError> {
    let owner = snapshot.owner.clone();
    let has_token = snapshot.observed.record.as_ref().is_some_and(|r| r.live.is_some());
    let note = move |journal: &mut Journal, now| {
        journal.revoke_as_asked(&owner.uid, (&owner.namespace, &owner.name), asked, now)
    };
    if has_token {
        let change = move |journal: &mut Journal, _: &ActiveToken, now| note(journal, now);
        record(context, snapshot, EventType::Released, Reason::Revoked, change).await?;
    } else if let Some(scope) = &snapshot.owning_scope {
        context.scheduler(scope).journal.commit(note).await?;
    } else {
        // Whose spec counts nowhere is given nothing.
        return Ok(false);
    }
    let elsewhere = snapshot.live_scope.as_ref();
    context
        .revoke_elsewhere(&snapshot.owner.uid, elsewhere, Reason::Revoked)
        .await;
    Ok(true)
}

/// Whether a Pod has read what its Secrets held: the API server's own word, or else it is taken to be so. They are gone by
/// now, and whoever has not read them does not any more; those of whoever follows are still there, and may be read.
async fn is_read(context: &Context, credential: &EphemeralCredential) -> bool {
    if !context.followers_of(credential).is_empty() {
        return true;
    }
    let read = context.cluster.are_read(&secrets(credential)).await;
    read.unwrap_or_else(|error| {
        tracing::debug!(error = %error.brief(), "failed to make sure that no Pod reads a Secret");
        true
    })
}

/// Removes a Secret as it was when looked at.
async fn remove(context: &Context, snapshot: &Snapshot, secret: &str) -> Result<(), ReconcileError> {
    let guard = snapshot.seen.get(secret).and_then(|s| s.guard.clone());
    let cluster = &context.cluster;
    cluster.delete_secret(&snapshot.owner.namespace, secret, guard).await?;
    context.caches.inspection_cache.lock().remove(&snapshot.owner.uid);
    Ok(())
}

/// What became of a change and its audit event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// Both are committed.
    Yes,
    /// There was nothing to change.
    No,
    /// It was decided about a token that is not the live one any more.
    Behind,
}

/// Commits `change` with an audit event about the live token, if `change` says that it did something.
async fn record(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    event: EventType,
    reason: Reason,
    mut change: impl FnMut(&mut Journal, &ActiveToken, Time) -> bool + Send + 'static,
) -> Result<Recorded, ReconcileError> {
    let live = snapshot.observed.record.as_ref().and_then(|r| r.live.clone());
    let (Some(live), Some(owning_scope)) = (live, &snapshot.live_scope) else {
        return Ok(Recorded::Behind);
    };
    let (owner, deliver) = (snapshot.owner.clone(), snapshot.deliver);
    let committed = context
        .scheduler(owning_scope)
        .journal
        .commit(move |journal, now| {
            let now_live = journal.live_of(&owner.uid);
            if now_live.is_none_or(|l| l.claim != live.claim) {
                return Err(Recorded::Behind);
            }
            if !change(journal, &live, now) {
                return Err(Recorded::No);
            }
            let subject = owner.subject(&live.request, live.revision);
            let event = AuditEvent::new(event, reason, &subject, now, deliver).token(live.ends_at, &live.token_ids);
            Ok(journal.record_event(&owner.uid, event))
        })
        .await?;
    Ok(match committed {
        Ok(event) => {
            context.log_event(&event);
            Recorded::Yes
        }
        Err(why) => why,
    })
}

async fn restore(context: &Arc<Context>, snapshot: &Snapshot, secret: &str) -> Result<(), ReconcileError> {
    let live = snapshot.observed.record.as_ref().and_then(|r| r.live.as_ref());
    let desired = snapshot.observed.desired.as_ref().ok();
    let (Some(live), Some(desired)) = (live, desired) else {
        return Ok(());
    };
    let template = desired.secrets.iter().find(|s| s.name == secret);
    let (Some(template), Some(seen)) = (template, snapshot.seen.get(secret)) else {
        return Ok(());
    };
    let mut live = live.clone();
    if let Some(written) = live.secrets.get_mut(secret) {
        written.keys.clone_from(&seen.keys);
    }
    let metadata = metadata(context, &snapshot.owner, template, &live);
    match context
        .cluster
        .restore_secret(&snapshot.owner, &metadata, &seen.keys, &context.seal)
        .await
    {
        // Changed since: the next look decides.
        Err(WriteError::Api(e)) if e.is_conflict() => Ok(()),
        other => Ok(other?),
    }
}
