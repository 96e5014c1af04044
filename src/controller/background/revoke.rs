//! Owed revocations: a durable list, worked off whatever became of credential, namespace and connection.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::api::Reason;
use crate::broker::{Broker, Refusal};
use crate::controller::mint::budget_scheduler::BudgetScheduler;
use crate::controller::state::connections::remembered;
use crate::controller::state::context::Context;
use crate::core::audit::{AuditEvent, EventType, Subject};
use crate::core::journal::{EndpointRef, Journal, Revocation, Scope};
use crate::core::{Problem, Time};

/// The wait after a failed try doubles from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// When it is forgotten that something failed: longer than any wait.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(900);
/// How many tokens one `ChittyConnect` is asked to revoke at once.
const AT_ONCE: usize = 8;

/// What is owed, and how it went so far. Each `ChittyConnect` is asked by a task of its own: one that does not answer
/// delays the others by nothing, and is tried with one token at a time until it does.
#[derive(Default)]
pub struct Revocations {
    waits: Arc<Mutex<Waits>>,
    /// When the first one of each scope is due.
    first_due: HashMap<Scope, Time>,
    due: HashMap<String, Vec<Owed>>,
}

impl Revocations {
    /// The scopes of which something is due.
    pub fn due(&self, now: Time) -> impl Iterator<Item = &Scope> {
        self.first_due
            .iter()
            .filter(move |(_, at)| **at <= now)
            .map(|(scope, _)| scope)
    }

    /// Notes what `journal`, that of `scheduler`, says is owed.
    pub fn note(&mut self, scheduler: &Arc<BudgetScheduler>, journal: &Journal, now: Time) {
        match journal.revocations.values().map(|r| r.due).min() {
            Some(at) => self.first_due.insert(scheduler.scope.clone(), at),
            None => self.first_due.remove(&scheduler.scope),
        };
        for revocation in journal.revocations.values().filter(|r| r.due <= now) {
            let owed = Owed {
                scheduler: Arc::clone(scheduler),
                revocation: Arc::clone(revocation),
            };
            let endpoint = format!("{:?}", revocation.endpoint);
            self.due.entry(endpoint).or_default().push(owed);
        }
    }

    /// Tries what is due, of what was noted since this was asked last.
    pub fn start(&mut self, context: &Arc<Context>) {
        for (endpoint, mut owed) in self.due.drain() {
            let token = |owed: &Owed| owed.revocation.token_id.clone();
            if !self.waits.lock().begin(&endpoint, &mut owed, token, Instant::now()) {
                continue;
            }
            let (all, waits) = (Arc::clone(context), Arc::clone(&self.waits));
            context.spawn("revocation", async move {
                revoke_all(&all, &endpoint, owed, &waits).await;
                waits.lock().busy.remove(&endpoint);
            });
        }
    }
}

/// A token to revoke, and whose journal says so.
struct Owed {
    scheduler: Arc<BudgetScheduler>,
    revocation: Arc<Revocation>,
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    /// There is nothing left to do.
    Done,
    /// This token is not revoked; others may be.
    Refused,
    /// No token will be now.
    Unavailable,
}

/// When an endpoint, or a token, may be tried again, and how often it was; a restart tries at once, which is as well.
#[derive(Default)]
struct Waits {
    busy: HashSet<String>,
    next: HashMap<String, (Instant, u32)>,
}

impl Waits {
    /// Whether `endpoint` may be asked now, by whoever asks this; leaves of `owed` what may be tried.
    fn begin<T>(&mut self, endpoint: &str, owed: &mut Vec<T>, token: impl Fn(&T) -> String, now: Instant) -> bool {
        self.next.retain(|_, (at, _)| now < *at + FORGOTTEN_AFTER);
        let waits = |of: &str| self.next.get(of).is_some_and(|(at, _)| *at > now);
        if self.busy.contains(endpoint) || waits(endpoint) {
            return false;
        }
        owed.retain(|o| !waits(&token(o)));
        if self.next.contains_key(endpoint) {
            // It did not answer last time. Whoever was tried then waits longer than it: another one is tried now.
            owed.truncate(1);
        }
        !owed.is_empty() && self.busy.insert(endpoint.to_owned())
    }

    fn failed(&mut self, of: &str, now: Instant) {
        let (next, tries) = self.next.entry(of.to_owned()).or_insert((now, 0));
        let doubled = FIRST_WAIT * (1_u32 << (*tries).min(10));
        *next = now + doubled.min(LONGEST_WAIT);
        *tries = tries.saturating_add(1);
    }

    fn succeeded(&mut self, of: &str) {
        self.next.remove(of);
    }
}

/// Asks one `ChittyConnect` to revoke what is owed there, until it does not answer.
async fn revoke_all(context: &Context, endpoint: &str, owed: Vec<Owed>, waits: &Mutex<Waits>) {
    let Some(first) = owed.first() else { return };
    let broker = reach(context, &first.revocation).await;
    for some in owed.chunks(AT_ONCE) {
        let asked = some
            .iter()
            .map(|o| revoke_one(context, &o.scheduler, &o.revocation, &broker));
        let tried = futures::future::join_all(asked).await;
        let (now, mut waits) = (Instant::now(), waits.lock());
        for (owed, tried) in some.iter().zip(&tried) {
            match tried {
                Tried::Done => waits.succeeded(&owed.revocation.token_id),
                Tried::Refused | Tried::Unavailable => waits.failed(&owed.revocation.token_id, now),
            }
        }
        // Where others are revoked, it is down for none.
        if tried.contains(&Tried::Unavailable) && !tried.contains(&Tried::Done) {
            waits.failed(endpoint, now);
            return;
        }
        waits.succeeded(endpoint);
    }
}

/// The connection's own client while it still asks the same `ChittyConnect` with the same key.
async fn reach(context: &Context, owed: &Revocation) -> Result<Broker, Problem> {
    let same = |at: &EndpointRef| *at == *owed.endpoint;
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

/// Tries one revocation.
async fn revoke_one(
    context: &Context,
    scheduler: &BudgetScheduler,
    owed: &Revocation,
    broker: &Result<Broker, Problem>,
) -> Tried {
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
    let tried = match &outcome {
        Ok(()) => Tried::Done,
        Err(_) if hopeless => Tried::Done,
        Err(refusal) if speaks_for_all(refusal.reason) => Tried::Unavailable,
        Err(_) => Tried::Refused,
    };
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
        return Tried::Refused;
    };
    for event in &events {
        context.log_event(event);
    }
    if buried {
        context.index.lock().remove_record(&uid, &scheduler.scope);
    }
    tried
}

/// Whether a failure is not this token's: no other would be revoked now either.
const fn speaks_for_all(reason: Reason) -> bool {
    use Reason::{BrokerUnavailable, ConnectionNotReady, OutcomeUnknown, RateLimited, Unauthorized};
    matches!(
        reason,
        BrokerUnavailable | ConnectionNotReady | OutcomeUnknown | RateLimited | Unauthorized
    )
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
        (EventType::Revoked, owed.why)
    } else {
        (EventType::Failed, Reason::BrokerUnavailable)
    };
    let mut event = AuditEvent::new(kind, reason, &subject, now, deliver);
    event.token_ids = vec![owed.token_id.clone()];
    journal.record_event(&owed.uid, event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(waits: &mut Waits, now: Instant) -> Vec<&'static str> {
        let mut owed = vec!["a", "b", "c"];
        let begun = waits.begin("broker", &mut owed, |id| (*id).to_owned(), now);
        assert!(begun || !waits.busy.contains("other"));
        if begun { owed } else { Vec::new() }
    }

    #[test]
    fn one_that_does_not_answer_is_tried_with_another_token_each_time_and_with_all_once_it_does() {
        let (mut waits, start) = (Waits::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(begin(&mut waits, at(0)), ["a", "b", "c"]);
        assert!(begin(&mut waits, at(0)).is_empty(), "one task at a time");
        waits.busy.clear();
        waits.failed("broker", at(0));
        for token in ["a", "b", "c"] {
            waits.failed(token, at(0));
        }
        assert!(begin(&mut waits, at(1)).is_empty());
        assert_eq!(begin(&mut waits, at(2)), ["a"]);
        waits.busy.clear();
        waits.failed("broker", at(2));
        waits.failed("a", at(2));
        assert!(begin(&mut waits, at(5)).is_empty(), "its wait has doubled");
        assert_eq!(begin(&mut waits, at(6)), ["a"]);
        waits.busy.clear();
        waits.failed("a", at(6));
        assert_eq!(
            begin(&mut waits, at(7)),
            ["b"],
            "a token that always fails is not the probe for ever"
        );
        waits.busy.clear();
        waits.succeeded("broker");
        waits.succeeded("b");
        assert_eq!(begin(&mut waits, at(8)), ["b", "c"]);
    }

    #[test]
    fn waits_end_and_are_forgotten() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        for _ in 0..40 {
            waits.failed("broker", now);
        }
        assert_eq!(waits.next["broker"].0, now + LONGEST_WAIT);
        assert_eq!(begin(&mut waits, now + LONGEST_WAIT), ["a"]);
        waits.busy.clear();
        assert_eq!(begin(&mut waits, now + LONGEST_WAIT + FORGOTTEN_AFTER).len(), 3);
    }
}
