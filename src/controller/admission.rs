//! One budget at a time: who wants a mint, who gets one, and seeing it through.
//!
//! Claim (compare-and-swap) -> POST -> Secrets -> outcome (compare-and-swap) -> status. The claim is
//! committed only for what was prepared on fresh reads; the POST leaves only while the claim is fresh.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use futures::StreamExt;
use tokio::sync::Notify;

use super::context::{Context, Locked, Name};
use crate::broker::{Api as BrokerApi, Probe};
use crate::cluster::journal::ScopeJournal;
use crate::controller::connections::Usable;
use crate::core::Time;
use crate::core::budget::{self, Demand, Guest, Guests, Limit, Usage, Waiting};
use crate::core::journal::{Claim, Scope};
use crate::core::schedule::spread;

use super::mint::mint;
use super::prepare::{NotPrepared, Prepared, new_claim, prepare};

/// How often a refused key is tried again.
pub(super) const PROBE_EVERY: TimeDelta = TimeDelta::minutes(15);
/// How often whoever waits is told how the line moved.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How long a credential rests whose preparation was overtaken.
const REST: TimeDelta = TimeDelta::milliseconds(300);
/// How long it rests at least where the API server could not be asked.
const LATER: TimeDelta = TimeDelta::seconds(1);
/// How many mints of a scope are prepared at once.
const PREPARE: usize = 16;

/// Somebody in line.
#[derive(Clone)]
struct Wish {
    demand: Demand,
    connection: String,
    verdict: Option<Waiting>,
    told: Option<Instant>,
}

/// The budget task of one scope.
pub struct ScopeRunner {
    /// What it is of.
    pub scope: Scope,
    /// Its journal.
    pub journal: ScopeJournal,
    wishes: Locked<HashMap<String, Wish>>,
    guests: Locked<Guests>,
    /// Who is not considered before when: what was prepared for them turned out to have changed.
    rests: Locked<HashMap<String, Time>>,
    usage: Locked<Usage>,
    notify: Notify,
}

impl ScopeRunner {
    /// Starts the task.
    pub fn start(context: &Arc<Context>, scope: Scope) -> Arc<Self> {
        let runner = Arc::new(Self {
            journal: context.journals.of(&scope),
            scope,
            wishes: Locked::default(),
            guests: Locked::default(),
            rests: Locked::default(),
            usage: Locked::default(),
            notify: Notify::new(),
        });
        let (task, context) = (Arc::clone(&runner), Arc::clone(context));
        let supervisor = Arc::clone(&context);
        supervisor.spawn("budget", async move { task.run(&context).await });
        runner
    }

    /// Looks at the line anew.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    /// Puts a credential in line, or updates its place.
    pub fn want(&self, demand: Demand, connection: &str) {
        let mut wishes = self.wishes.lock();
        if let Some(wish) = wishes.get_mut(&demand.uid) {
            let since = wish.demand.since;
            let same_line = wish.demand.kind.is_newcomer() == demand.kind.is_newcomer();
            let next = Demand {
                since: if same_line { since } else { demand.since },
                ..demand
            };
            if wish.demand == next && wish.connection == connection {
                return;
            }
            wish.demand = next;
            connection.clone_into(&mut wish.connection);
        } else {
            wishes.insert(
                demand.uid.clone(),
                Wish {
                    demand,
                    connection: connection.to_owned(),
                    verdict: None,
                    told: None,
                },
            );
        }
        drop(wishes);
        self.notify.notify_one();
    }

    /// Notes that the token of `uid`, which another scope holds, is renewed here; or that none is.
    pub fn host(&self, uid: &str, guest: Option<Guest>) {
        let mut guests = self.guests.lock();
        match guest {
            Some(guest) => guests.insert(uid.to_owned(), guest),
            None => guests.remove(uid),
        };
    }

    /// Takes a credential out of the line.
    pub fn forget(&self, uid: &str) {
        if self.wishes.lock().remove(uid).is_some() {
            self.notify.notify_one();
        }
    }

    /// Takes a credential out of the line by its name.
    pub fn forget_name(&self, (namespace, name): &Name) {
        self.guests
            .lock()
            .retain(|_, g| g.name.0 != *namespace || g.name.1 != *name);
        let mut wishes = self.wishes.lock();
        let before = wishes.len();
        wishes.retain(|_, w| w.demand.namespace != *namespace || w.demand.name != *name);
        if wishes.len() != before {
            self.notify.notify_one();
        }
    }

    /// Why a credential waits, as it was last told.
    #[must_use]
    pub fn verdict(&self, uid: &str) -> Option<Waiting> {
        self.wishes.lock().get(uid)?.verdict.clone()
    }

    /// How the budget stood when it was last looked at.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage.lock().clone()
    }

    async fn run(self: &Arc<Self>, context: &Arc<Context>) {
        loop {
            let wait = match self.pass(context).await {
                Some(at) => (at - context.now()).to_std().unwrap_or_default(),
                None => Duration::from_secs(30),
            };
            let wait = wait.clamp(Duration::from_millis(10), Duration::from_secs(30));
            tokio::select! {
                () = self.notify.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Admits whom the budget allows; returns when to look again.
    async fn pass(self: &Arc<Self>, context: &Arc<Context>) -> Option<Time> {
        let now = context.now();
        let Ok(journal) = self.journal.view().await else {
            return Some(now + TimeDelta::seconds(2));
        };
        let limits = context.caches.connections.limits(&self.scope);
        if limits.is_empty() {
            return None;
        }
        let demands = self.admissible(context, now);
        let guests = {
            let mut guests = self.guests.lock();
            guests.retain(|_, g| g.ends_at > now);
            guests.clone()
        };
        let selection = budget::select(&journal, &guests, &demands, &limits, now);
        *self.usage.lock() = selection.usage.clone();
        self.tell(context, &selection.waiting, now);
        self.reconsider(context, &selection.outdated, now);
        if !context.leading() {
            return Some(now + TimeDelta::seconds(1));
        }
        if selection.admitted.is_empty() {
            let rested = self.rests.lock().values().min().copied();
            return selection.wake.into_iter().chain(rested).min();
        }
        let prepared = self.prepare(context, &selection.admitted, &limits).await;
        if !prepared.is_empty() {
            // Detached: a term that ends between claim and mint must not leave either unattended.
            let (runner, context) = (Arc::clone(self), Arc::clone(context));
            let claiming = tokio::spawn(async move { runner.claim(&context, prepared, guests, demands, limits).await });
            if claiming.await.is_err() {
                tracing::error!(scope = self.scope.title(), "a claim ended in a panic");
            }
        }
        Some(now)
    }

    /// Who may be considered: nobody with a request under way, no newcomers before all are known
    /// who wait, and of a refused key's users nobody before it is tried again: then one of those whom
    /// the budget admits is the probe.
    fn admissible(&self, context: &Arc<Context>, now: Time) -> Vec<Demand> {
        let wishes = self.wishes.lock();
        let working = context.working.lock();
        let warm = context.warm.load(Ordering::Acquire);
        let mut rests = self.rests.lock();
        rests.retain(|_, until| *until > now);
        let mut unauthorized = context.unauthorized.lock();
        let mut demands: Vec<&Wish> = wishes
            .values()
            .filter(|w| !working.contains_key(&w.demand.uid) && !rests.contains_key(&w.demand.uid))
            .filter(|w| warm || !w.demand.kind.is_newcomer())
            .collect();
        demands.sort_by_key(|w| (w.demand.since, w.demand.uid.clone()));
        demands
            .into_iter()
            .filter(|w| {
                let usable = context
                    .caches
                    .connections
                    .get(&w.connection)
                    .and_then(|r| r.usable.ok());
                let Some(usable) = usable else {
                    return false;
                };
                match unauthorized.get_mut(&usable.key_digest) {
                    None => true,
                    Some(probe_at) if *probe_at <= now && usable.broker.api() == BrokerApi::Provision => {
                        // This API can be asked without a mint.
                        *probe_at = now + PROBE_EVERY;
                        tokio::spawn(probe(Arc::clone(context), usable, w.connection.clone()));
                        false
                    }
                    Some(probe_at) => *probe_at <= now,
                }
            })
            .map(|w| w.demand.clone())
            .collect()
    }

    /// Has those looked at anew whose demand was decided on a view that is behind.
    fn reconsider(&self, context: &Context, outdated: &[String], now: Time) {
        let wishes = self.wishes.lock();
        for uid in outdated {
            if let Some(wish) = wishes.get(uid) {
                self.rests.lock().insert(uid.clone(), now + REST);
                context.trigger(&wish.demand.namespace, &wish.demand.name);
            }
        }
    }

    /// Keeps verdicts, and wakes those whose wait is news: at once the first time, later once a minute.
    fn tell(&self, context: &Context, waiting: &BTreeMap<String, Waiting>, now: Time) {
        let mut wishes = self.wishes.lock();
        for (uid, wish) in wishes.iter_mut() {
            let Some(verdict) = waiting.get(uid) else {
                continue;
            };
            let news = wish.verdict.as_ref().is_none_or(|old| {
                let passed = old.next_slot.is_some_and(|at| at <= now);
                let due = wish.told.is_none_or(|t| t.elapsed() >= TELL_EVERY);
                old.reason != verdict.reason || (old != verdict && (passed || due))
            });
            if news {
                wish.verdict = Some(verdict.clone());
                wish.told = Some(Instant::now());
                context.trigger(&wish.demand.namespace, &wish.demand.name);
            }
        }
    }

    async fn prepare(&self, context: &Arc<Context>, admitted: &[String], limits: &[Limit]) -> Vec<Prepared> {
        let window = limits.iter().map(|l| l.window).max().unwrap_or_default();
        let wishes: Vec<Wish> = {
            let all = self.wishes.lock();
            admitted.iter().filter_map(|uid| all.get(uid).cloned()).collect()
        };
        futures::stream::iter(wishes)
            .map(|wish| async move {
                // Never closed.
                let _turn = context.preparing.acquire().await;
                let outcome = prepare(context, &self.scope, &wish.demand, window).await;
                (wish, outcome)
            })
            .buffered(PREPARE)
            .filter_map(|(wish, outcome)| async move {
                let uid = &wish.demand.uid;
                match outcome {
                    Ok(prepared) => return Some(prepared),
                    Err(NotPrepared::Changed) => {
                        // What is watched may be behind what was read: no faster than this.
                        self.rests.lock().insert(uid.clone(), context.now() + REST);
                    }
                    Err(NotPrepared::Later(error)) => {
                        tracing::debug!(namespace = %wish.demand.namespace, name = %wish.demand.name, error = %error.brief(), "a mint is prepared a little later");
                        let until = context.now() + LATER + TimeDelta::milliseconds(spread(uid).into());
                        self.rests.lock().insert(uid.clone(), until);
                        return None;
                    }
                    Err(NotPrepared::Problem(problem, generation)) => {
                        let until = context.now() + TimeDelta::seconds(15);
                        context
                            .unprepared
                            .lock()
                            .insert(uid.clone(), (problem, until, generation));
                    }
                }
                self.wishes.lock().remove(uid);
                context.trigger(&wish.demand.namespace, &wish.demand.name);
                None
            })
            .collect()
            .await
    }

    async fn claim(
        &self,
        context: &Arc<Context>,
        mut prepared: Vec<Prepared>,
        guests: Guests,
        demands: Vec<Demand>,
        limits: Vec<Limit>,
    ) {
        let now = context.now();
        // Who tries a refused key again, and since when that was due.
        let mut probes: HashMap<String, (String, Time)> = HashMap::new();
        prepared.retain(|p| match context.unauthorized.lock().get_mut(&p.usable.key_digest) {
            None => true,
            // One request tries a refused key again, whatever the scope.
            Some(probe_at) if *probe_at <= now => {
                probes.insert(p.owner.uid.clone(), (p.usable.key_digest.clone(), *probe_at));
                *probe_at = now + PROBE_EVERY;
                true
            }
            Some(_) => false,
        });
        {
            // Marked first: a claim in the journal that nobody works on would be judged lost.
            let mut working = context.working.lock();
            let mut homes = context.homes.lock();
            for p in &prepared {
                working.insert(p.owner.uid.clone(), None);
                let name: Name = (p.owner.namespace.clone(), p.owner.name.clone());
                homes.add(&p.owner.uid, name, &self.scope);
            }
        }
        let templates: Vec<(String, Claim, TimeDelta, (u64, u64))> = prepared
            .iter()
            .map(|p| (p.owner.uid.clone(), new_claim(p, &context.identity), p.window, p.floor))
            .collect();
        let committed = self
            .journal
            .commit(move |journal, now| {
                let selection = budget::select(journal, &guests, &demands, &limits, now);
                let mut claims = HashMap::new();
                for (uid, template, window, floor) in &templates {
                    if !selection.admitted.contains(uid) || journal.claims.contains_key(uid) {
                        continue;
                    }
                    let mut claim = template.clone();
                    claim.at = now;
                    journal.claim(uid, claim.clone(), *window);
                    journal.raise(uid, *floor);
                    claims.insert(uid.clone(), claim);
                }
                claims
            })
            .await;
        let mut claims = match committed {
            Ok(claims) => claims,
            Err(error) => {
                // Whether it was committed is unknown: unmarked, it is judged like any other claim.
                tracing::warn!(scope = self.scope.title(), %error, "failed to claim");
                HashMap::new()
            }
        };
        for p in prepared {
            let uid = p.owner.uid.clone();
            if let Some(claim) = claims.remove(&uid) {
                self.wishes.lock().remove(&uid);
                let (context, scope, journal) = (Arc::clone(context), self.scope.clone(), self.journal.clone());
                tokio::spawn(async move {
                    mint(&context, &journal, &scope, p, claim).await;
                });
            } else {
                context.working.lock().remove(&uid);
                if let Some((key, was_due)) = probes.remove(&uid)
                    && let Some(probe_at) = context.unauthorized.lock().get_mut(&key)
                {
                    // It was not asked after all.
                    *probe_at = was_due;
                }
            }
        }
    }
}

/// Asks whether a refused key is accepted by now.
async fn probe(context: Arc<Context>, usable: Arc<Usable>, connection: String) {
    if matches!(usable.broker.probe(context.now()).await, Ok(Probe::Accepted)) {
        context.accepted(&usable.key_digest).await;
        context.trigger_where(|c| c.spec.connection == connection);
        for runner in context.scopes.lock().values() {
            runner.wake();
        }
    }
}
