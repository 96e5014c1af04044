//! One budget at a time: who wants a mint, who gets one, and seeing it through.
//!
//! Claim (compare-and-swap) -> POST -> Secrets -> outcome (compare-and-swap) -> status. The claim is
//! committed only for what was prepared on fresh reads; the POST leaves only while the claim is fresh.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::broker::{Api as BrokerApi, Probe};
use crate::cluster::journal::ScopeJournal;
use crate::controller::mint::mint_queue::{MintQueue, QueueEntry};
use crate::controller::state::connections::Usable;
use crate::controller::state::context::Context;
use crate::core::Time;
use crate::core::budget::{
    Admitted, Decision, Demand, Follower, Held, Limit, Rate, Renews, Terms, Usage, Waiting, is_untouched,
};
use crate::core::ids::{ObjectName, SpecDigest, Uid};
use crate::core::journal::{Claim, Journal, Scope};
use crate::core::outage::{Asker, Bar, But, Spare};
use crate::core::outcome::PROBE_EVERY;
use crate::core::schedule::spread;
use crate::ops::traces::Stage;

use crate::controller::mint::execute::mint;
use crate::controller::mint::prepare::{NotPrepared, Prepared, new_claim, prepare};

/// How long a credential rests whose preparation was overtaken.
const REST: TimeDelta = TimeDelta::milliseconds(300);
/// How soon more of those who wait are told why.
const TELL_ON: TimeDelta = TimeDelta::milliseconds(250);
/// How long it rests at least where the API server could not be asked.
const LATER: TimeDelta = TimeDelta::seconds(1);
/// How often a scope is looked at of which there is no news: figures that are told move with time.
const LONGEST: Duration = Duration::from_secs(300);
/// How many mints of a scope are prepared at once.
const PREPARE: usize = 16;
/// How many mints of a scope begin in one pass.
const MOST_IN_A_PASS: usize = 48;
/// How often a commit decides anew, before it decides nothing.
const DECIDE_ANEW: usize = 3;

/// The budget task of one scope. Where both are held, its budget is locked before its wishes.
pub struct BudgetScheduler {
    /// What it is of.
    pub scope: Scope,
    /// Its journal.
    pub journal: ScopeJournal,
    queue: Mutex<MintQueue>,
    budget: Mutex<Follower>,
    usage: Mutex<Usage>,
    notify: Notify,
    /// When somebody asked for it last.
    used: Mutex<Instant>,
    /// Whether a task brings its audit events to where they go.
    pub delivering: AtomicBool,
}

/// A claim that lacks only its commit.
struct Draft {
    uid: String,
    /// What was decided about: it is so no more if anything has happened since.
    seq: u64,
    asks: SpecDigest,
    gone: bool,
    claim: Claim,
    window: TimeDelta,
}

impl BudgetScheduler {
    /// Starts the task.
    pub fn start(context: &Arc<Context>, scope: Scope) -> Arc<Self> {
        let scheduler = Arc::new(Self {
            journal: context.journals.of(&scope),
            queue: Mutex::default(),
            budget: Mutex::new(Follower::new(scope.title())),
            scope,
            usage: Mutex::default(),
            notify: Notify::new(),
            used: Mutex::new(Instant::now()),
            delivering: AtomicBool::new(false),
        });
        let (task, context) = (Arc::clone(&scheduler), Arc::clone(context));
        let supervisor = Arc::clone(&context);
        supervisor.spawn("budget", async move { task.run(&context).await });
        scheduler
    }

    /// Notes that somebody asks for it.
    pub fn used(&self) {
        *self.used.lock() = Instant::now();
    }

    /// Whether nobody has asked for it that long, or waits for anything of it, and nothing of it matters any more.
    #[must_use]
    pub fn is_idle(&self, unused: Duration) -> bool {
        self.used.lock().elapsed() >= unused && self.journal.is_closed() && self.queue.lock().is_idle()
    }

    /// Looks at the line anew.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    /// Puts a credential in line, or updates its place.
    pub fn want(&self, entry: QueueEntry) {
        if self.queue.lock().put(entry) {
            self.notify.notify_one();
        }
    }

    /// Notes that the token of `uid`, which another scope holds, is renewed here; or that none is.
    pub fn reserve(&self, uid: &str, held: Option<(ObjectName, Held)>) {
        self.queue.lock().reserve(uid, held);
    }

    /// Notes whether the tokens of `uid` are renewed, or forgets that.
    pub fn renew(&self, uid: &str, renews: Option<Renews>) {
        if self.queue.lock().renew(uid, renews) {
            self.notify.notify_one();
        }
    }

    /// Whether the budget keeps the renewals of the token of `uid`, where it has one.
    #[must_use]
    pub fn keeps(&self, uid: &str) -> bool {
        self.budget.lock().keeps(uid)
    }

    /// Takes a credential out of the line.
    pub fn forget(&self, uid: &str) {
        if self.queue.lock().remove(uid) {
            self.notify.notify_one();
        }
    }

    /// Looks at all who ask by `connection` anew: there is news of it.
    pub fn tell_line(&self, context: &Context, connection: &str) {
        for name in self.queue.lock().line(connection) {
            context.trigger(&name);
        }
        self.wake();
    }

    /// What is to spare for tries that may fail.
    #[must_use]
    pub fn spare(&self, now: Time) -> Spare {
        self.budget.lock().budget.spare(now)
    }

    /// Why a credential waits, as it was last told.
    #[must_use]
    pub fn verdict(&self, uid: &str) -> Option<Waiting> {
        self.queue.lock().told(uid)
    }

    /// How the budget stood when it was last looked at.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage.lock().clone()
    }

    async fn run(self: &Arc<Self>, context: &Arc<Context>) {
        loop {
            // Boxed: there is one of these for each scope, and it mostly waits.
            let wait = match Box::pin(self.pass(context)).await {
                Some(at) => (at - context.now()).to_std().unwrap_or_default(),
                None => LONGEST,
            };
            if context.close_idle(self) {
                return;
            }
            let longest = LONGEST.min(context.journals.close_after());
            let wait = wait.clamp(Duration::from_millis(10), longest);
            tokio::select! {
                () = self.notify.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Admits whom the budget allows; returns when to look again.
    async fn pass(self: &Arc<Self>, context: &Arc<Context>) -> Option<Time> {
        let mut turns: Option<OwnedSemaphorePermit> = None;
        loop {
            let now = context.now();
            let Ok(journal) = self.journal.view().await else {
                return Some(now + TimeDelta::seconds(2));
            };
            let terms = Terms {
                limits: context.caches.connections.limits(&self.scope),
                newcomers: context.initial_sync_done.load(Ordering::Acquire),
            };
            if terms.limits.is_empty() {
                return None;
            }
            let (mut decision, wake) = self.look(context, &journal, &terms, now);
            if !context.leading() {
                return Some(now + TimeDelta::seconds(1));
            }
            if decision.admitted.is_empty() {
                return wake;
            }
            let Some(turns) = turns.take() else {
                let most = decision.admitted.len().min(MOST_IN_A_PASS);
                turns = context.turns(most).await;
                // That may have taken a while: decided anew.
                continue;
            };
            decision.admitted.truncate(turns.num_permits());
            let admitted = self.fit(context, &journal, &decision.admitted, now);
            let prepared = self.prepare(context, admitted, &terms.limits).await;
            if !prepared.is_empty() {
                // Detached: a term that ends between claim and mint must not leave either unattended.
                let (scheduler, context) = (Arc::clone(self), Arc::clone(context));
                let supervisor = context.supervisor.clone();
                let claiming = async move { scheduler.claim(&context, prepared, turns, &terms).await };
                // It fails in no way that the supervisor does not see.
                let _ = supervisor.spawn("claim", &CancellationToken::new(), claiming).await;
            }
            return Some(now);
        }
    }

    /// Tells the budget what has changed, decides, and wakes those for whom their wait is news.
    fn look(
        &self,
        context: &Arc<Context>,
        journal: &Arc<Journal>,
        terms: &Terms,
        now: Time,
    ) -> (Decision, Option<Time>) {
        let mut follower = self.budget.lock();
        // Who may ask all the same goes by their tokens.
        follower.follow(journal, &terms.limits, now);
        let barred = |connection: &str| barred(context, &self.scope, connection, now);
        self.queue.lock().update(&mut follower, barred, now);
        let (decision, selection) = follower.decide(journal, terms, now);
        *self.usage.lock() = selection.usage;
        let (news, soon) = {
            let mut queue = self.queue.lock();
            let told = queue.tell(&follower.budget, selection.front, now);
            queue.shed();
            told
        };
        follower.budget.shed();
        for name in news {
            context.trigger(&name);
        }
        let more = soon.then(|| now + TELL_ON);
        (decision, selection.wake.into_iter().chain(more).min())
    }

    /// What those who are admitted want, where that is what was decided about. All others rest a moment: their
    /// request is under way, or they are looked at anew.
    fn fit(&self, context: &Context, journal: &Journal, admitted: &[Uid], now: Time) -> Vec<QueueEntry> {
        let mut follower = self.budget.lock();
        let queue = self.queue.lock();
        let working = context.working.lock();
        let mut fit = Vec::new();
        for uid in admitted {
            let Some(entry) = queue.get(uid.as_str()) else { continue };
            if working.contains_key(uid.as_str()) || !is_untouched(journal, uid.as_str(), entry.seq) {
                follower.budget.set_aside(uid, now + REST);
                context.trigger(&entry.demand.name);
                continue;
            }
            let past_half = follower.budget.half_of_runway(uid).is_some_and(|half| half <= now);
            match ask(context, &self.scope, entry, past_half, now) {
                Ok(()) => fit.push(entry.clone()),
                Err(turn) => follower.budget.set_aside(uid, turn),
            }
        }
        fit
    }

    async fn prepare(
        &self,
        context: &Arc<Context>,
        admitted: Vec<QueueEntry>,
        limits: &[Limit],
    ) -> Vec<(QueueEntry, Prepared)> {
        let window = limits.iter().map(|l| l.window).max().unwrap_or_default();
        futures::stream::iter(admitted)
            .map(|entry| async move {
                let from = context.now();
                let outcome = Box::pin(prepare(context, &self.scope, &entry, window)).await;
                let failed = outcome.as_ref().err().map(NotPrepared::brief);
                let uid = entry.demand.uid.as_str();
                context.traces.stage(uid, Stage::Prepare, from, context.now(), failed);
                (entry, outcome)
            })
            .buffered(PREPARE)
            .filter_map(|(entry, outcome)| async move {
                match outcome {
                    Ok(prepared) => return Some((entry, prepared)),
                    Err(NotPrepared::Changed) => {
                        // What is watched may be behind what was read: no faster than this.
                        let mut follower = self.budget.lock();
                        follower.budget.set_aside(&entry.demand.uid, context.now() + REST);
                    }
                    Err(NotPrepared::Later(error)) => {
                        let (uid, name) = (&entry.demand.uid, &entry.demand.name);
                        tracing::debug!(%name, error = %error.brief(), "a mint is prepared a little later");
                        let until = context.now() + LATER + TimeDelta::milliseconds(spread(uid.as_str()).into());
                        self.budget.lock().budget.set_aside(uid, until);
                        return None;
                    }
                    Err(NotPrepared::Problem(problem, generation)) => {
                        let until = context.now() + TimeDelta::seconds(15);
                        let uid = entry.demand.uid.to_string();
                        self.queue.lock().remove(&uid);
                        context.unprepared.lock().insert(uid, (problem, until, generation));
                    }
                }
                context.trigger(&entry.demand.name);
                None
            })
            .collect()
            .await
    }

    async fn claim(
        self: &Arc<Self>,
        context: &Arc<Context>,
        mut prepared: Vec<(QueueEntry, Prepared)>,
        mut turns: OwnedSemaphorePermit,
        terms: &Terms,
    ) {
        let probes = self.choose_probes(context, &mut prepared);
        {
            // Marked first: a claim in the journal that nobody works on would be judged lost.
            let mut working = context.working.lock();
            let mut index = context.index.lock();
            for (_, p) in &prepared {
                working.insert(p.owner.uid.clone(), None);
                let name = p.owner.object_name();
                index.add_record(&p.owner.uid, &name, &self.scope);
            }
        }
        let from = context.now();
        let mut claims = self.commit(context, &prepared, terms).await;
        let committed = context.now();
        for (_, p) in prepared {
            let uid = p.owner.uid.clone();
            let failed = (!claims.contains_key(&uid)).then_some("it is not admitted any more");
            context.traces.stage(&uid, Stage::Claim, from, committed, failed);
            if let Some(claim) = claims.remove(&uid) {
                self.queue.lock().remove(&uid);
                let (context, scope, journal) = (Arc::clone(context), self.scope.clone(), self.journal.clone());
                let turn = turns.split(1);
                let supervisor = context.supervisor.clone();
                supervisor.see_through("mint", async move {
                    mint(&context, &journal, &scope, p, claim, turn).await;
                });
            } else {
                context.working.lock().remove(&uid);
                if let Some((key, was_due)) = probes.get(&uid)
                    && let Some(probe_at) = context.unauthorized.lock().get_mut(key)
                {
                    // It was not asked after all.
                    *probe_at = *was_due;
                }
            }
        }
    }

    /// Of those who would ask with a refused key one tries it again, whatever the scope, and only when that is due:
    /// the others are taken out, but for those who have come to half of their runway and have not tried since. Returns
    /// who that is, with the key and since when it was due.
    fn choose_probes(
        &self,
        context: &Context,
        prepared: &mut Vec<(QueueEntry, Prepared)>,
    ) -> HashMap<String, (String, Time)> {
        let now = context.now();
        let mut probes = HashMap::new();
        let follower = self.budget.lock();
        let mut unauthorized = context.unauthorized.lock();
        prepared.retain(|(entry, p)| match unauthorized.get_mut(&p.usable.key_digest) {
            None => true,
            Some(probe_at) if *probe_at <= now => {
                probes.insert(p.owner.uid.clone(), (p.usable.key_digest.clone(), *probe_at));
                *probe_at = now + PROBE_EVERY;
                true
            }
            Some(_) => {
                let (budget, uid) = (&follower.budget, &entry.demand.uid);
                budget.owes_own_try(uid) && budget.half_of_runway(uid).is_some_and(|half| half <= now)
            }
        });
        probes
    }

    /// Decides on the newest view, and commits what still holds then; returns the claims.
    async fn commit(
        self: &Arc<Self>,
        context: &Arc<Context>,
        prepared: &[(QueueEntry, Prepared)],
        terms: &Terms,
    ) -> HashMap<String, Claim> {
        let Ok(view) = self.journal.view().await else {
            return HashMap::new();
        };
        let (mut decision, _) = self.budget.lock().decide(&view, terms, context.now());
        let drafts: Vec<Draft> = prepared
            .iter()
            .map(|(w, p)| draft(w, p, &view, &context.identity))
            .collect();
        let (scheduler, clock) = (Arc::clone(self), Arc::clone(context));
        let mut anew = 0;
        let committed = self.journal.commit(move |journal, now| {
            if !scheduler.still_holds(&mut decision, &mut anew, journal, now) {
                return HashMap::new();
            }
            let queue = scheduler.queue.lock();
            // Deciding took its time, and a claim is fresh for seconds only.
            let at = clock.now().max(now);
            let mut claims = HashMap::new();
            for draft in &drafts {
                let admitted = decision.rates.get(draft.uid.as_str()).copied();
                let desired = queue
                    .get(&draft.uid)
                    .is_some_and(|w| w.asks == draft.asks && w.seq == draft.seq);
                if let Some(admitted) = admitted
                    && desired
                    && draft.is_current(journal)
                {
                    claims.insert(draft.uid.clone(), draft.enter(journal, admitted, at));
                }
            }
            claims
        });
        committed.await.unwrap_or_else(|error| {
            // Whether it was committed is unknown: unmarked, it is judged like any other claim.
            tracing::warn!(scope = self.scope.title(), %error, "failed to claim");
            HashMap::new()
        })
    }

    /// Whether `decision` holds for a commit to `journal`, or was taken anew on it.
    fn still_holds(&self, decision: &mut Decision, anew: &mut usize, journal: &Journal, now: Time) -> bool {
        let mut follower = self.budget.lock();
        if follower.stands(decision, journal, now) {
            return true;
        }
        *anew += 1;
        if *anew > DECIDE_ANEW {
            return false;
        }
        follower.decide_anew(decision, journal, now);
        true
    }
}

fn draft(entry: &QueueEntry, p: &Prepared, journal: &Journal, identity: &str) -> Draft {
    let uid = p.owner.uid.clone();
    Draft {
        seq: entry.seq,
        asks: entry.asks,
        gone: journal.credentials.get(uid.as_str()).is_some_and(|r| r.gone),
        claim: Claim {
            once: !entry.demand.renews,
            consumer: entry.consumer.clone(),
            ..new_claim(p, identity)
        },
        window: p.window,
        uid,
    }
}

impl Draft {
    /// Whether nothing has happened to the credential since its mint was decided on.
    fn is_current(&self, journal: &Journal) -> bool {
        let gone = journal.credentials.get(self.uid.as_str()).is_some_and(|r| r.gone);
        is_untouched(journal, &self.uid, self.seq) && (self.gone || !gone)
    }

    fn enter(&self, journal: &mut Journal, admitted: Admitted, at: Time) -> Claim {
        let mut claim = Claim {
            at,
            period_ms: admitted.period.map(|period| period.num_milliseconds()),
            ..self.claim.clone()
        };
        if let (Rate::AsBefore, Some(live)) = (admitted.rate, journal.live_of(&self.uid)) {
            claim.keep_rate_of(live);
        }
        journal.claim(&self.uid, claim.clone(), self.window);
        claim
    }
}

/// Until when nobody of `scope` can ask by `connection`: nothing is answered there, or its key was refused. Then one of
/// those whom the budget admits tries again, or where that costs nothing, it is asked whether the key is accepted.
fn barred(context: &Arc<Context>, scope: &Scope, connection: &str, now: Time) -> Option<Bar> {
    let Some(usable) = context.caches.connections.get(connection).and_then(|r| r.usable.ok()) else {
        return Some(Bar {
            until: Time::MAX_UTC,
            but: But::Nobody,
        });
    };
    let closed = usable.gate.lock().bar(scope);
    refused(context, connection, &usable, now).or(closed)
}

fn refused(context: &Arc<Context>, connection: &str, usable: &Arc<Usable>, now: Time) -> Option<Bar> {
    let mut unauthorized = context.unauthorized.lock();
    let probe_at = unauthorized.get_mut(&usable.key_digest)?;
    if *probe_at <= now {
        if usable.broker.api() != BrokerApi::Provision {
            return None;
        }
        *probe_at = now + PROBE_EVERY;
        let probing = probe(Arc::clone(context), Arc::clone(usable), connection.to_owned());
        context.spawn("probe of a refused key", probing);
    }
    Some(Bar {
        until: *probe_at,
        but: But::OwnTries,
    })
}

/// Asks whether the one in line may ask the broker now; where not, when.
fn ask(context: &Context, scope: &Scope, entry: &QueueEntry, past_half: bool, now: Time) -> Result<(), Time> {
    let Some(usable) = context
        .caches
        .connections
        .get(&entry.connection)
        .and_then(|r| r.usable.ok())
    else {
        return Ok(());
    };
    let Demand { uid, name, reason, .. } = &entry.demand;
    let asker = Asker { uid, name, scope };
    let how = (reason.is_newcomer(), past_half);
    usable.gate.lock().ask(asker, how, usable.timeout, now)
}

/// Asks whether a refused key is accepted by now.
async fn probe(context: Arc<Context>, usable: Arc<Usable>, connection: String) {
    if matches!(usable.broker.probe(context.now()).await, Ok(Probe::Accepted)) {
        context.accepted(&usable.key_digest).await;
        context.trigger_where(|_, facts| *facts.connection == *connection);
        for scheduler in context.scopes.lock().values() {
            scheduler.wake();
        }
    }
}
