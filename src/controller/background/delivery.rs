//! Audit events on their way: at least once, in order per credential, whatever fails in between.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};

use crate::api::{MANAGED_BY_LABEL, MANAGER};
use crate::chronicle::{Chronicle, NotDelivered};
use crate::cluster::bounded;
use crate::controller::mint::budget_scheduler::BudgetScheduler;
use crate::controller::state::context::Context;
use crate::core::audit::AuditEvent;
use crate::core::ids::Uid;
use crate::core::journal::Journal;
use crate::planted::{Bug, is_planted};

/// An event refused this often goes to the dead letters.
const TRIES: u32 = 5;
/// Acknowledgements are committed together: so many, or so late.
const BATCH: usize = 50;
const ACKNOWLEDGE_AFTER: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The wait for what this process cannot tell to have changed.
const NOT_NOW: Duration = Duration::from_secs(2);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// The `ConfigMap` that keeps what `ChittyChronicle` refuses.
const DEAD_LETTERS: &str = "chittyconnect-audit-dead-letters";
const MOST_DEAD_LETTERS: usize = 500;

/// Delivers what the journal of a scope holds until nothing is left, or the term is over; where that is not under way.
pub fn start(context: &Arc<Context>, scheduler: &Arc<BudgetScheduler>) {
    if scheduler.delivering.swap(true, Ordering::AcqRel) {
        return;
    }
    let mut delivery = Delivery::new(Arc::clone(context), Arc::clone(scheduler));
    context.spawn("audit delivery", async move { delivery.run().await });
}

/// What a round leaves to do.
enum Next {
    /// Nothing before this has passed.
    Rest(Duration),
    /// Whatever the journal tells next; something is left to do after this at the latest.
    News(Option<Duration>),
}

/// Where an event goes.
enum Destination {
    /// There.
    Chronicle(Chronicle),
    /// Nowhere any more: its connection sends events to nobody.
    Nowhere,
    /// Its connection is gone or cannot be used now.
    Unknown,
}

/// How it went with one event.
enum Brought {
    /// It is where it goes, or where a person finds it.
    Done,
    /// It is tried again, after this at the earliest.
    NotYet(Option<Duration>),
    /// No other one would be taken now either.
    Unavailable {
        message: String,
        retry_after: Option<Duration>,
    },
}

impl Brought {
    const fn kept(kept: bool, again: Option<Duration>) -> Self {
        if kept { Self::Done } else { Self::NotYet(again) }
    }
}

struct Delivery {
    context: Arc<Context>,
    scheduler: Arc<BudgetScheduler>,
    /// Delivered, and not yet acknowledged in the journal.
    delivered: HashSet<(Uid, u64)>,
    since: Instant,
    /// Refusals of each event, counted here too: a crash only tries again.
    refused: HashMap<String, u32>,
    backoff: Duration,
}

impl Delivery {
    fn new(context: Arc<Context>, scheduler: Arc<BudgetScheduler>) -> Self {
        Self {
            context,
            scheduler,
            delivered: HashSet::new(),
            since: Instant::now(),
            refused: HashMap::new(),
            backoff: FIRST_BACKOFF,
        }
    }

    async fn run(&mut self) {
        loop {
            let view = self.scheduler.journal.view().await;
            let (Ok(journal), true) = (view, self.context.leading()) else {
                tokio::time::sleep(NOT_NOW).await;
                continue;
            };
            let news = self.scheduler.journal.changed_since(&journal);
            // Boxed: there is one of these for each scope, and it mostly waits.
            match Box::pin(self.round(&journal)).await {
                Next::Rest(rest) => tokio::time::sleep(rest).await,
                Next::News(None) => {
                    self.scheduler.delivering.store(false, Ordering::Release);
                    // Whoever came meanwhile took it to be under way.
                    if self.is_behind(&journal).await && !self.scheduler.delivering.swap(true, Ordering::AcqRel) {
                        continue;
                    }
                    return;
                }
                Next::News(Some(longest)) => {
                    let _ = tokio::time::timeout(longest, news).await;
                }
            }
        }
    }

    /// Whether there is something to deliver that `seen` did not show.
    async fn is_behind(&self, seen: &Arc<Journal>) -> bool {
        let now = self.scheduler.journal.view().await;
        now.is_ok_and(|now| !Arc::ptr_eq(&now, seen) && !now.audit.is_empty())
    }

    /// Delivers what can be delivered now.
    async fn round(&mut self, journal: &Journal) -> Next {
        let mut held: HashSet<&str> = HashSet::new();
        let mut rest = None;
        // In the order in which they happened: that of their numbers, within a credential.
        let mut waiting: Vec<&Arc<AuditEvent>> = journal.audit.values().collect();
        waiting.sort_by_key(|event| event.seq);
        for event in waiting {
            if self.delivered.contains(&key(event)) || held.contains(event.uid.as_str()) {
                continue;
            }
            if is_planted(Bug::AckBeforeDelivery) {
                self.note(event);
            }
            match self.bring(event).await {
                Brought::Done => self.note(event),
                // Its credential's later events wait too.
                Brought::NotYet(again) => {
                    held.insert(&event.uid);
                    rest = again.or(rest);
                }
                Brought::Unavailable { message, retry_after } => {
                    let (scope, waiting) = (self.scheduler.scope.title(), journal.audit.len());
                    tracing::warn!(scope, waiting, "{message}");
                    rest = Some(retry_after.unwrap_or(self.backoff));
                    self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
                    break;
                }
            }
            if self.delivered.len() >= BATCH {
                self.acknowledge().await;
            }
        }
        if !self.delivered.is_empty() && self.since.elapsed() >= ACKNOWLEDGE_AFTER {
            self.acknowledge().await;
        }
        match rest {
            Some(rest) => Next::Rest(rest.min(LONGEST_BACKOFF)),
            None if !self.delivered.is_empty() => Next::News(Some(ACKNOWLEDGE_AFTER)),
            // Its connection may come back.
            None if !held.is_empty() => Next::News(Some(NOT_NOW)),
            None => Next::News(None),
        }
    }

    /// Brings one event to where it goes.
    async fn bring(&mut self, event: &AuditEvent) -> Brought {
        let chronicle = match self.destination(event) {
            Destination::Chronicle(chronicle) => chronicle,
            // Waiting for nobody, it would fill the backlog until minting stops.
            Destination::Nowhere => {
                let why = "its connection has no spec.audit any more";
                return Brought::kept(self.keep_as_dead_letter(event, why).await, None);
            }
            Destination::Unknown => return Brought::NotYet(None),
        };
        match chronicle.deliver(event).await {
            Ok(()) => {
                self.context.metrics.delivered();
                self.backoff = FIRST_BACKOFF;
                Brought::Done
            }
            Err(NotDelivered::Refused { status }) => {
                self.context.metrics.undelivered();
                let tries = self.refused.entry(event.id.clone()).or_default();
                *tries += 1;
                let given_up = *tries >= TRIES && {
                    let why = format!("ChittyChronicle refuses it with {status}");
                    self.keep_as_dead_letter(event, &why).await
                };
                Brought::kept(given_up, Some(FIRST_BACKOFF))
            }
            Err(NotDelivered::Unavailable { message, retry_after }) => {
                self.context.metrics.undelivered();
                let retry_after = retry_after.and_then(|d| d.to_std().ok());
                Brought::Unavailable { message, retry_after }
            }
        }
    }

    fn note(&mut self, event: &AuditEvent) {
        if self.delivered.is_empty() {
            self.since = Instant::now();
        }
        self.delivered.insert(key(event));
        self.refused.remove(&event.id);
    }

    async fn acknowledge(&mut self) {
        let done = self.delivered.clone();
        let committed = self
            .scheduler
            .journal
            .commit(move |journal, _| {
                for key in &done {
                    journal.audit.remove(key);
                }
            })
            .await;
        if committed.is_ok() {
            self.delivered.clear();
        }
    }

    /// Where an event goes: to its connection's `ChittyChronicle`, else to that of another one of the scope.
    fn destination(&self, event: &AuditEvent) -> Destination {
        let connections = &self.context.caches.connections;
        let of = |r: &crate::controller::state::connections::Resolved| {
            r.usable.as_ref().ok().and_then(|u| u.chronicle.clone())
        };
        let own = connections.get(&event.request.connection);
        let scope = &self.scheduler.scope;
        let mut others = connections.all();
        others.retain(|r| r.scope(&scope.of).as_ref() == Some(scope));
        match own.iter().chain(&others).find_map(of) {
            Some(chronicle) => Destination::Chronicle(chronicle),
            None if own.is_some_and(|r| r.usable.is_ok()) => Destination::Nowhere,
            None => Destination::Unknown,
        }
    }

    /// Keeps an event that cannot be delivered where a person finds it. False where that failed: it is tried again.
    async fn keep_as_dead_letter(&self, event: &AuditEvent, why: &str) -> bool {
        let cluster = &self.context.cluster;
        let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        tracing::error!(id = %event.id, "an audit event cannot be delivered: {why}; it is kept in ConfigMap {DEAD_LETTERS}");
        self.context.metrics.dead_letter();
        let entry = event.entry().to_string();
        let Ok(known) = bounded(api.get_opt(DEAD_LETTERS)).await else {
            return false;
        };
        let Some(known) = known else {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(DEAD_LETTERS.to_owned()),
                    labels: Some(BTreeMap::from([(MANAGED_BY_LABEL.to_owned(), MANAGER.to_owned())])),
                    ..ObjectMeta::default()
                },
                data: Some(BTreeMap::from([(event.id.clone(), entry)])),
                ..ConfigMap::default()
            };
            return bounded(api.create(&PostParams::default(), &map)).await.is_ok();
        };
        let mut data: BTreeMap<String, Option<String>> = BTreeMap::from([(event.id.clone(), Some(entry))]);
        let letters = known.data.unwrap_or_default();
        if letters.len() >= MOST_DEAD_LETTERS
            && let Some(oldest) = letters
                .iter()
                .min_by_key(|(_, entry)| written_at(entry))
                .map(|(id, _)| id)
        {
            data.insert(oldest.clone(), None);
        }
        let patch = serde_json::json!({"data": data});
        bounded(api.patch(DEAD_LETTERS, &PatchParams::default(), &Patch::Merge(patch)))
            .await
            .is_ok()
    }
}

fn key(event: &AuditEvent) -> (Uid, u64) {
    (event.uid.as_str().into(), event.seq)
}

/// When an event that is kept as text happened.
fn written_at(entry: &str) -> Option<String> {
    let entry: serde_json::Value = serde_json::from_str(entry).ok()?;
    entry["data"]["at"].as_str().map(str::to_owned)
}
