//! Owed revocations: a durable list, worked off whatever became of credential, namespace and connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget_scheduler::BudgetScheduler;
use super::connections::remembered;
use super::context::Context;
use crate::api::Reason;
use crate::broker::{Broker, Refusal};
use crate::core::audit::{AuditEvent, EventType, Subject};
use crate::core::journal::{EndpointRef, Journal, Revocation};
use crate::core::{Problem, Time};

/// How often the lists are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The wait after a failed try doubles from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Works off what every scope owes.
pub async fn revoke_for_ever(context: Arc<Context>) {
    // When each token may be tried again, and how often it was; a restart tries at once, which is as well.
    let mut waits: HashMap<String, (Instant, u32)> = HashMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !context.leading() {
            continue;
        }
        let schedulers: Vec<Arc<BudgetScheduler>> = context.scopes.lock().values().cloned().collect();
        for scheduler in schedulers {
            let Ok(journal) = scheduler.journal.view().await else {
                continue;
            };
            let now = context.now();
            let mut brokers: HashMap<String, Result<Broker, Problem>> = HashMap::new();
            for owed in journal.revocations.values().filter(|r| r.due <= now) {
                if waits.get(&owed.token_id).is_some_and(|(at, _)| *at > Instant::now()) {
                    continue;
                }
                let key = format!("{:?}", owed.endpoint);
                if !brokers.contains_key(&key) {
                    let broker = reach(&context, owed).await;
                    brokers.insert(key.clone(), broker);
                }
                if revoke_one(&context, &scheduler, owed, &brokers[&key]).await {
                    waits.remove(&owed.token_id);
                } else {
                    let (next, tries) = waits.entry(owed.token_id.clone()).or_insert((Instant::now(), 0));
                    let doubled = FIRST_WAIT * (1_u32 << (*tries).min(10));
                    *next = Instant::now() + doubled.min(LONGEST_WAIT);
                    *tries = tries.saturating_add(1);
                }
            }
        }
    }
}

/// The connection's own client while it still asks the same `ChittyConnect` with the same key.
async fn reach(context: &Context, owed: &Revocation) -> Result<Broker, Problem> {
    let same = |at: &EndpointRef| *at == owed.endpoint;
    let known = context
        .caches
        .connections
        .get(&owed.request.connection)
        .filter(|r| same(&r.endpoint()));
    match known.and_then(|r| r.usable.ok()) {
        Some(usable) => Ok(usable.broker.clone()),
        None => remembered(&context.cluster, &owed.endpoint).await,
    }
}

/// Tries one revocation; true once it is done.
async fn revoke_one(
    context: &Context,
    scheduler: &BudgetScheduler,
    owed: &Revocation,
    broker: &Result<Broker, Problem>,
) -> bool {
    let outcome = match broker {
        Ok(broker) => broker.revoke(&owed.token_id, context.now()).await.map(|_| ()),
        Err(problem) => Err(Refusal::from_problem(problem)),
    };
    let deliver = context
        .caches
        .connections
        .get(&owed.request.connection)
        .and_then(|r| r.usable.ok())
        .is_some_and(|u| u.chronicle.is_some());
    let (owed, done, uid) = (owed.clone(), outcome.is_ok(), owed.uid.clone());
    // Asked of the wrong API, it will never be done.
    let hopeless = outcome
        .as_ref()
        .is_err_and(|refusal| refusal.reason == Reason::InvalidSpec);
    if let Err(refusal) = &outcome {
        tracing::warn!(token_id = %owed.token_id, "failed to revoke a token; it is tried again: {}", refusal.message);
    }
    let committed = scheduler
        .journal
        .commit(move |journal: &mut Journal, now| {
            let mut events = Vec::new();
            if done || hopeless {
                if journal.revoked(&owed.uid, &owed.token_id).is_some() {
                    events.push(event(journal, &owed, done, deliver, now));
                }
            } else if journal.told_of(&owed.uid, &owed.token_id) {
                events.push(event(journal, &owed, false, deliver, now));
            }
            (events, journal.prune(&owed.uid))
        })
        .await;
    let Ok((events, buried)) = committed else {
        // Not noted, it is tried again: what is revoked already counts as done.
        return false;
    };
    for event in &events {
        context.log_event(event);
    }
    if buried {
        context.index.lock().remove_record(&uid, &scheduler.scope);
    }
    done || hopeless
}

fn event(journal: &mut Journal, owed: &Revocation, done: bool, deliver: bool, now: Time) -> AuditEvent {
    let (namespace, name) = journal
        .credentials
        .get(owed.uid.as_str())
        .map(|r| (r.namespace.clone(), r.name.clone()))
        .unwrap_or_default();
    let subject = Subject {
        uid: &owed.uid,
        namespace: &namespace,
        name: &name,
        request: &owed.request,
        revision: owed.revision,
    };
    let (kind, reason) = if done {
        (EventType::Revoked, Reason::Rotated)
    } else {
        (EventType::Failed, Reason::BrokerUnavailable)
    };
    let mut event = AuditEvent::new(kind, reason, &subject, now, deliver);
    event.token_ids = vec![owed.token_id.clone()];
    journal.record_event(&owed.uid, event)
}
