//! Claims that nobody works on any more, and tokens that only their sealed Secrets tell of.

use std::sync::Arc;

use crate::api::{EphemeralCredential, Reason};
use crate::controller::mint::execute::look_for_orphans;
use crate::controller::state::context::Context;
use crate::core::journal::{ActiveToken, Claim};
use crate::core::outcome::{self, Asked, Pace, Refused};
use crate::core::plan::SecretState;
use crate::core::seal::{Seal, live_of};

use crate::controller::credential::observe::Snapshot;
use crate::controller::credential::reconcile::ReconcileError;

pub(crate) fn seals<'a>(snapshot: &'a Snapshot, claim: Option<&str>) -> Vec<&'a Seal> {
    snapshot
        .observed
        .secrets
        .values()
        .filter_map(|state| match state {
            SecretState::Ours { seal: Some(seal), .. } if claim.is_none_or(|c| seal.live.claim == c) => Some(&**seal),
            _ => None,
        })
        .collect()
}

pub(crate) async fn adopt(context: &Arc<Context>, snapshot: &Snapshot) -> Result<bool, ReconcileError> {
    let (Some(claim), Some(owning_scope)) = (&snapshot.observed.claim, &snapshot.owning_scope) else {
        return Ok(false);
    };
    let Some(live) = live_of(&seals(snapshot, Some(&claim.id))) else {
        return Ok(false);
    };
    let (owner, deliver) = (snapshot.owner.clone(), snapshot.deliver);
    let event = context
        .scheduler(owning_scope)
        .journal
        .commit(move |journal, now| {
            let subject = owner.subject(&live.request, live.revision);
            outcome::succeed(journal, &subject, &live, deliver, now)
        })
        .await?;
    if let Some(event) = event {
        tracing::info!(namespace = %snapshot.owner.namespace, name = %snapshot.owner.name, "adopted a finished mint");
        context.log_event(&event);
        context.supersede(&snapshot.owner.uid, owning_scope).await;
    }
    Ok(true)
}

/// What is told of a claim whose holder went before it was over.
fn gave_up(claim: &Claim) -> Refused {
    let (reason, message) = if claim.minted.is_some() {
        (
            Reason::SecretRefused,
            "a token was made, and its Secrets could not be written before its holder went: it is revoked where that \
             can be; it stays counted",
        )
    } else {
        (
            Reason::OutcomeUnknown,
            "a request was sent and its answer never came: a token may have been made that nobody holds; it stays counted",
        )
    };
    Refused {
        reason,
        message: message.to_owned(),
        counted: true,
        retry_after: None,
        own_limit: false,
    }
}

pub(crate) async fn give_up(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    credential: &EphemeralCredential,
) -> Result<bool, ReconcileError> {
    let (Some(claim), Some(owning_scope)) = (&snapshot.observed.claim, &snapshot.owning_scope) else {
        return Ok(false);
    };
    let (owner, deliver) = (snapshot.owner.clone(), snapshot.deliver);
    let known = claim.minted.is_some();
    let refused = gave_up(claim);
    let (reason, message) = (refused.reason, refused.message.clone());
    // Written to some of its Secrets, a token has ids that are known.
    let sealed = seals(snapshot, Some(&claim.id));
    let written: Vec<String> = sealed.iter().flat_map(|s| s.live.token_ids.clone()).collect();
    let (claim, window, timeout) = (claim.clone(), snapshot.window, snapshot.timeout);
    let event = context
        .scheduler(owning_scope)
        .journal
        .commit(move |journal, now| {
            let pace = Pace {
                window,
                timeout,
                renew_before: journal.live_of(&owner.uid).and_then(ActiveToken::renew_before),
            };
            let subject = owner.subject(&claim.request, claim.revision);
            let asked = Asked {
                pace,
                ..Asked::default()
            };
            let event = outcome::fail(journal, &subject, &claim, &refused, &asked, deliver, now)?;
            journal.revoke_unpublished(&owner.uid, &claim, &written, now);
            Some(event)
        })
        .await?;
    let usable = context
        .caches
        .connections
        .get(&credential.spec.connection)
        .and_then(|r| r.usable.ok());
    if let (Some(usable), Ok(desired), Some(claim), false) =
        (usable, &snapshot.observed.desired, &snapshot.observed.claim, known)
    {
        look_for_orphans(
            context,
            &context.scheduler(owning_scope).journal,
            &usable,
            &snapshot.owner.uid,
            desired,
            claim,
        )
        .await;
    }
    if let Some(event) = event {
        context.log_event(&event);
        context.events.publish(credential, true, reason, "Mint", &message).await;
    }
    Ok(true)
}

pub(crate) async fn rebuild(context: &Arc<Context>, snapshot: &Snapshot) -> Result<bool, ReconcileError> {
    let Some(scope) = &snapshot.scope else { return Ok(false) };
    let seals = seals(snapshot, None);
    let Some(live) = live_of(&seals) else { return Ok(false) };
    let owner = snapshot.owner.clone();
    context
        .scheduler(scope)
        .journal
        .commit(move |journal, now| {
            let name = (owner.namespace.as_str(), owner.name.as_str());
            journal.adopt_lost(&owner.uid, name, live.clone(), now);
        })
        .await?;
    let name = snapshot.owner.object_name();
    context.index.lock().add_record(&snapshot.owner.uid, &name, scope);
    tracing::warn!(
        namespace = %snapshot.owner.namespace,
        name = %snapshot.owner.name,
        scope = scope.title(),
        "the journal knew nothing of a live token; it was rebuilt from the sealed Secrets"
    );
    Ok(true)
}
