//! One claim, seen through: POST -> Secrets -> outcome, committed with its audit event.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio::sync::OwnedSemaphorePermit;

use crate::api::Reason;
use crate::broker::{MintRequest, Provision, Refusal, Sent};
use crate::cluster::journal::ScopeJournal;
use crate::cluster::secrets::rfc3339;
use crate::controller::mint::outage::{self, never_left};
use crate::controller::mint::publish::{Published, publish};
use crate::controller::state::connections::Usable;
use crate::controller::state::context::Context;
use crate::core::Time;
use crate::core::ids::ObjectName;
use crate::core::journal::{Claim, Journal, Scope};
use crate::core::outage::is_no_answer;
use crate::core::outcome::{self, Asked, PROBE_EVERY, Pace, Refused};
use crate::core::schedule::CLAIM_FRESH;
use crate::core::spec::Desired;
use crate::ops::traces::Stage;

use crate::controller::mint::prepare::Prepared;

/// How long a mint keeps its turn at most: one whose answer or whose Secret takes longer holds up no others.
const KEEPS_ITS_TURN: Duration = Duration::from_secs(1);

/// Sees one claim through.
pub(crate) async fn mint(
    context: &Arc<Context>,
    journal: &ScopeJournal,
    scope: &Scope,
    p: Prepared,
    claim: Claim,
    turn: Option<OwnedSemaphorePermit>,
) {
    let uid = p.owner.uid.clone();
    if context.now() - claim.at >= CLAIM_FRESH || !context.leading() {
        let id = claim.id.clone();
        let owner = uid.clone();
        commit_with_retry(journal, move |journal, _| journal.withdraw(&owner, &id)).await;
    } else {
        let mut posting = pin!(post(context, journal, scope, &p, &claim));
        let in_its_turn = tokio::time::timeout(KEEPS_ITS_TURN, &mut posting).await;
        drop(turn);
        let ended = match in_its_turn {
            Ok(ended) => ended,
            Err(_) => posting.await,
        };
        let name = ObjectName::new(p.owner.namespace.as_str(), p.owner.name.as_str());
        let ended = ended.map_err(|reason| reason.to_string());
        context
            .traces
            .end(&uid, name, &claim.request, claim.revision, ended, context.now());
    }
    context.working.lock().remove(&uid);
    context.trigger(&p.owner.object_name());
    context.scheduler(scope).wake();
}

async fn post(
    context: &Arc<Context>,
    journal: &ScopeJournal,
    scope: &Scope,
    p: &Prepared,
    claim: &Claim,
) -> Result<(), Reason> {
    let traced = |stage, from, failed: Option<Reason>| {
        let failed = failed.map(Reason::as_str);
        context.traces.stage(&p.owner.uid, stage, from, context.now(), failed);
    };
    let request = request_of(claim, &p.desired);
    let (started, asked) = (Instant::now(), context.now());
    let answer = p.usable.broker.mint(&request, asked).await;
    let failed = answer.as_ref().err().map(|refusal| refusal.reason);
    traced(Stage::Request, asked, failed);
    let up = !failed.is_some_and(is_no_answer);
    let connection = &p.desired.connection;
    context.metrics.answered(connection, started.elapsed(), failed, up);
    outage::note(context, scope, p, answer.as_ref().err());
    let answered = context.now();
    match answer {
        Ok(answer) => {
            let published = publish(context, journal, &p.owner, &p.desired, claim, &answer).await;
            let failed = match &published {
                Published::Yes(_) => None,
                Published::No(problem) => Some(problem.reason),
                Published::Dropped => Some(Reason::Deleted),
            };
            traced(Stage::Publish, answered, failed);
            let written = context.now();
            match published {
                Published::Yes(live) => succeed(context, journal, scope, p, claim, *live).await,
                Published::No(problem) => {
                    let refusal = Refusal {
                        reason: problem.reason,
                        message: problem.message,
                        sent: Sent::Yes,
                        retry_after: None,
                        own_limit: false,
                        token_ids: answer.token_ids,
                    };
                    fail(context, journal, p, claim, &refusal).await;
                }
                Published::Dropped => {
                    let (uid, claim, ids) = (p.owner.uid.clone(), claim.clone(), answer.token_ids);
                    commit_with_retry(journal, move |journal, now| {
                        journal.revoke_unpublished(&uid, &claim, &ids, now);
                    })
                    .await;
                }
            }
            traced(Stage::Outcome, written, None);
            failed.map_or(Ok(()), Err)
        }
        Err(refusal) => {
            if never_left(&refusal) {
                let (uid, id) = (p.owner.uid.clone(), claim.id.clone());
                commit_with_retry(journal, move |journal, _| journal.withdraw(&uid, &id)).await;
            } else {
                fail(context, journal, p, claim, &refusal).await;
            }
            traced(Stage::Outcome, answered, None);
            if refusal.reason == Reason::OutcomeUnknown {
                look_for_orphans(context, journal, &p.usable, &p.owner.uid, &p.desired, claim).await;
            }
            Err(refusal.reason)
        }
    }
}

pub(crate) fn request_of(claim: &Claim, desired: &Desired) -> MintRequest {
    MintRequest {
        service: claim.request.service.to_string(),
        purpose: claim.request.purpose.to_string(),
        repo: claim.request.repo.clone(),
        run_id: claim.request.run_id.clone(),
        idempotency_key: claim.id.clone(),
        provision: claim.request.type_.clone().map(|type_| Provision {
            type_,
            context: desired.context.clone(),
        }),
    }
}

/// Asks which tokens a request whose answer was lost may have made, and notes their ids.
pub async fn look_for_orphans(
    context: &Context,
    journal: &ScopeJournal,
    usable: &Usable,
    uid: &str,
    desired: &Desired,
    claim: &Claim,
) {
    // The server's clock may differ a little from ours.
    let since = claim.at - TimeDelta::seconds(5);
    let request = request_of(claim, desired);
    if let Ok(candidates) = usable.broker.candidates(&request, since, context.now()).await
        && !candidates.is_empty()
    {
        let uid = uid.to_owned();
        if let Err(error) = journal
            .commit(move |journal, _| journal.orphaned(&uid, candidates.clone()))
            .await
        {
            tracing::warn!(%error, "candidates for a lost answer could not be noted");
        }
    }
}

pub(crate) async fn succeed(
    context: &Arc<Context>,
    journal: &ScopeJournal,
    scope: &Scope,
    p: &Prepared,
    claim: &Claim,
    live: crate::core::journal::ActiveToken,
) {
    let deliver = p.usable.chronicle.is_some();
    let (claimed, owner) = (claim.clone(), p.owner.clone());
    let (reason, ends_at, kind) = (outcome::published(live.revision), live.ends_at, claim.kind);
    let key = p.usable.key_digest.clone();
    let committed = commit_with_retry(journal, move |journal, now| {
        let subject = owner.subject(&live.request, live.revision);
        let event = outcome::succeed(journal, &subject, &live, deliver, now);
        if event.is_none() {
            journal.revoke_unpublished(&owner.uid, &claimed, &live.token_ids, now);
        }
        event
    })
    .await;
    context.accepted(&key).await;
    context.supersede(&p.owner.uid, scope).await;
    let Some(Some(event)) = committed else { return };
    context.measure(&p.credential, kind);
    context.log_event(&event);
    let note = format!(
        "revision {} ({kind:?}) is valid until {}; run_id {}",
        event.revision,
        rfc3339(ends_at),
        event.request.run_id
    );
    context
        .events
        .publish(&p.credential, false, reason, "Mint", &note)
        .await;
}

pub(crate) async fn fail(
    context: &Arc<Context>,
    journal: &ScopeJournal,
    p: &Prepared,
    claim: &Claim,
    refusal: &Refusal,
) {
    let (owner, claimed, token_ids) = (p.owner.clone(), claim.clone(), refusal.token_ids.clone());
    let deliver = p.usable.chronicle.is_some();
    let limits = context
        .caches
        .connections
        .get(&p.desired.connection)
        .map(|r| vec![r.limit])
        .unwrap_or_default();
    let asked = Asked {
        key: p.usable.key_digest.clone(),
        limits,
        pace: Pace {
            window: p.window,
            timeout: p.usable.timeout,
            renew_before: p.desired.renew_before,
        },
    };
    let refused = Refused {
        reason: refusal.reason,
        message: refusal.message.clone(),
        counted: refusal.sent != Sent::No,
        retry_after: refusal.retry_after,
        own_limit: refusal.own_limit,
    };
    let event = commit_with_retry(journal, move |journal, now| {
        let subject = owner.subject(&claimed.request, claimed.revision);
        let event = outcome::fail(journal, &subject, &claimed, &refused, &asked, deliver, now);
        journal.revoke_unpublished(&owner.uid, &claimed, &token_ids, now);
        event
    })
    .await;
    if refusal.reason == Reason::Unauthorized {
        let probe_at = context.now() + PROBE_EVERY;
        context
            .unauthorized
            .lock()
            .insert(p.usable.key_digest.clone(), probe_at);
        let connection = p.desired.connection.clone();
        context.trigger_where(|_, facts| *facts.connection == *connection);
    }
    if let Some(Some(event)) = event {
        context.log_event(&event);
        context
            .events
            .publish(&p.credential, true, refusal.reason, "Mint", &refusal.message)
            .await;
    }
}

/// Commits an outcome, however long that takes: it happened, and the journal must say so.
pub async fn commit_with_retry<R: Send + 'static>(
    journal: &ScopeJournal,
    decide: impl FnMut(&mut Journal, Time) -> R + Send + Clone + 'static,
) -> Option<R> {
    let mut wait = Duration::from_millis(200);
    loop {
        match journal.commit_together(decide.clone()).await {
            Ok(outcome) => return Some(outcome),
            Err(error) => {
                tracing::warn!(%error, "an outcome waits to be committed");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(10));
            }
        }
    }
}
