//! One scope through simulated time: credentials come, change and go, the broker fails, processes die. Decisions are the
//! core's; this is the shell around them, and what it acts on.

mod answers;
mod judge;
mod mint;
mod tenants;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta};

use crate::api::{EphemeralCredential, RateScope, Reason};
use crate::core::Time;
use crate::core::budget::{Demand, Follower};
use crate::core::clock::{Reading, SteadyClock};
use crate::core::consumers::Users;
use crate::core::ids::SpecDigest;
use crate::core::ids::{ObjectName, PageId, Uid};
use crate::core::journal::pages::{Layout, Page};
use crate::core::journal::{ActiveToken, Claim, Journal, MintReason, Scope};
use crate::core::outage::{Bar, Gate};
use crate::core::plan::{Action, Connection, Content, Observed, SecretState, plan};
use crate::core::schedule::CLAIM_GRACE;
use crate::core::seal::Seal;
use crate::core::spec::{Asked, Desired};

use super::broker::{Broker, Fault};
use super::oracle::History;
use super::random::Random;
use super::{Faults, Report, Settings};

const WINDOW: i64 = 3_600_000;
/// How long the broker has tokens live.
const LIFETIME: i64 = 3_600;
const TIMEOUT: i64 = 10;
const KEY: &str = "key";
/// How often the process compares clocks.
const EVERY: i64 = 30_000;
/// How long the process looks at its budget at least once in.
const LOOK: i64 = 300_000;
/// How late a renewal may be where nothing fails.
const LATE: i64 = 60_000;
/// How many mints begin in one pass.
const MOST_IN_A_PASS: usize = 48;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    Edit(usize),
    Delete(usize),
    Look(usize),
    Answer(usize, String, u32),
    Pass,
    Check,
    Reach,
    Crash,
    Start,
}

struct Entry {
    demand: Demand,
    asks: SpecDigest,
    seq: u64,
    barred: Option<Time>,
    /// Since when it waits, in milliseconds.
    since: i64,
}

struct Credential {
    name: ObjectName,
    uid: Uid,
    object: EphemeralCredential,
    desired: Desired,
    /// What its Secret holds.
    secret: Option<ActiveToken>,
    /// When it is looked at next.
    wake: i64,
    /// Requests for it fail for a reason of their own.
    poison: Option<Reason>,
    pod_waits: bool,
    gone: bool,
}

/// What dies with the process.
struct Process {
    follower: Follower,
    gate: Gate,
    refused_until: Option<Time>,
    entries: BTreeMap<usize, Entry>,
    changed: BTreeMap<usize, bool>,
    working: BTreeMap<usize, (Claim, Option<Fault>)>,
    bar: Option<Bar>,
    clock: SteadyClock,
    started: i64,
    drift_ppm: i64,
    holder: String,
    synced: bool,
    next_pass: i64,
}

pub struct World {
    settings: Settings,
    random: Random,
    now: i64,
    events: BinaryHeap<Reverse<(i64, u64, Event)>>,
    numbered: u64,
    credentials: Vec<Credential>,
    journal: Arc<Journal>,
    process: Option<Process>,
    epoch: u32,
    wall_off: i64,
    down_since: i64,
    broker: Broker,
    history: History,
    fits_since: Option<i64>,
    last_admission: i64,
    minted: u64,
    pub report: Report,
}

fn instant(ms: i64) -> Time {
    DateTime::from_timestamp_millis(1_700_000_000_000 + ms).unwrap_or_default()
}

fn ms_of(at: Time) -> i64 {
    at.timestamp_millis() - 1_700_000_000_000
}

/// Which credential has this uid.
fn number_of(uid: &Uid) -> usize {
    uid.as_str().trim_start_matches('u').parse().unwrap_or_default()
}

fn scope() -> Scope {
    Scope {
        origin: "https://connect.chitty.cc".into(),
        kind: RateScope::Service,
        of: "svc".into(),
    }
}

impl World {
    pub fn new(settings: Settings) -> Self {
        let mut random = Random::new(settings.seed);
        let until = settings.hours * 3_600_000;
        let broker = match settings.faults {
            Faults::Never => Broker::new(WINDOW, Vec::new()),
            Faults::Mixed => Broker::troubled(WINDOW, until, &mut random),
            Faults::Sweep(fault, flaps) => Broker::swept(WINDOW, until, fault, flaps),
        };
        let mut world = Self {
            random,
            now: 0,
            events: BinaryHeap::new(),
            numbered: 0,
            credentials: Vec::new(),
            journal: Arc::new(Journal::new(scope())),
            process: None,
            epoch: 0,
            wall_off: 0,
            down_since: 0,
            broker,
            history: History::default(),
            fits_since: None,
            last_admission: 0,
            minted: 0,
            report: Report::of(&settings),
            settings,
        };
        for _ in 0..world.settings.credentials {
            let at = world.random.below(7_200_000);
            world.at(at, Event::Arrive);
        }
        if world.dies() {
            let at = world.random.between(600_000, 10_800_000);
            world.at(at, Event::Crash);
        }
        world.at(EVERY, Event::Check);
        world.at(0, Event::Start);
        world
    }

    fn at(&mut self, at: i64, event: Event) {
        self.numbered += 1;
        self.events.push(Reverse((at.max(self.now), self.numbered, event)));
    }

    /// Runs to the end.
    pub fn run(mut self) -> Report {
        let until = self.settings.hours * 3_600_000;
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            if at >= until {
                break;
            }
            self.now = at;
            self.take(event);
        }
        self.report.mints = self.broker.requests;
        self.report.most = self.broker.most;
        self.report
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive(),
            Event::Edit(i) => self.edit(i),
            Event::Delete(i) => self.delete(i),
            Event::Look(i) if self.credentials[i].wake == self.now => self.look(i),
            Event::Look(_) => {}
            Event::Answer(i, id, epoch) => {
                if epoch == self.epoch {
                    self.answer(i, &id);
                }
            }
            Event::Pass => {
                if self.process.as_ref().is_some_and(|p| p.next_pass == self.now) {
                    self.pass();
                }
            }
            Event::Check => self.check(),
            Event::Reach => self.reach(),
            Event::Crash => {
                self.crash();
                let at = self.now + self.random.between(600_000, 14_400_000);
                self.at(at, Event::Crash);
            }
            Event::Start => self.start(),
        }
    }

    fn reading(&self, process: &Process) -> Reading {
        let elapsed = (self.now - process.started) * (1_000_000 + process.drift_ppm) / 1_000_000;
        Reading {
            elapsed: Duration::from_millis(elapsed.max(0).unsigned_abs()),
            wall: instant(self.now + self.wall_off),
            reference: instant(self.now - self.now.rem_euclid(1000) + 500),
        }
    }

    /// What the process takes the time to be.
    fn time(&self) -> Time {
        let Some(process) = &self.process else {
            return instant(self.now);
        };
        process.clock.now(self.reading(process).elapsed)
    }

    fn when(&self, at: Time) -> i64 {
        let wait = (at - self.time()).num_milliseconds();
        self.now.saturating_add(wait.clamp(0, WINDOW * 48)) + 1
    }

    fn start(&mut self) {
        if self.process.is_some() {
            return;
        }
        if self.down_since < self.now {
            self.history.downs.push((self.down_since, self.now));
        }
        let same = self.random.below(2) == 0;
        let drift_ppm = self.random.between(-100, 101);
        let mut process = Process {
            follower: Follower::new("svc"),
            gate: Gate::default(),
            refused_until: None,
            entries: BTreeMap::new(),
            changed: BTreeMap::new(),
            working: BTreeMap::new(),
            bar: None,
            clock: SteadyClock::unverified(instant(self.now), Duration::ZERO),
            started: self.now,
            drift_ppm,
            holder: if same {
                "pod".into()
            } else {
                format!("pod-{}", self.epoch)
            },
            synced: false,
            next_pass: 0,
        };
        process.clock = SteadyClock::start(&self.reading(&process));
        self.journal = Arc::new(stored_and_read(&self.journal, instant(self.now)));
        process.refused_until = self.journal.unauthorized.as_ref().map(|u| u.probe_at);
        self.process = Some(process);
        for i in 0..self.credentials.len() {
            self.look(i);
        }
        if let Some(process) = &mut self.process {
            process.synced = true;
        }
        self.wake_pass(self.now);
    }

    fn crash(&mut self) {
        if self.process.take().is_some() {
            self.epoch += 1;
            self.down_since = self.now;
            let longest = *self.random.pick(&[3_000, 15_000, 60_000, 300_000]);
            let at = self.now + self.random.between(1_000, longest);
            self.at(at, Event::Start);
        }
    }

    fn check(&mut self) {
        if self.random.below(200) == 0 {
            self.wall_off = *self.random.pick(&[0, 0, 900, -900, 3_600_000, -3_600_000]);
        }
        if let Some(mut process) = self.process.take() {
            let reading = self.reading(&process);
            process.clock.check(&reading);
            self.process = Some(process);
        }
        let live = self.journal.credentials.values().filter(|r| r.live.is_some()).count();
        self.report.live = self.report.live.max(live);
        self.arithmetic();
        self.history.prune(self.now - 3 * WINDOW);
        self.at(self.now + EVERY, Event::Check);
    }
    fn commit<R>(&mut self, uid: &str, act: impl FnOnce(&mut Journal, Time) -> R) -> R {
        let now = self.time();
        let mut journal = (*self.journal).clone();
        journal.compact(now);
        let result = act(&mut journal, now);
        journal.compact_record(uid, now);
        self.journal = Arc::new(journal);
        result
    }

    fn observe(&self, i: usize, process: &Process) -> Observed {
        let credential = &self.credentials[i];
        let record = self.journal.credentials.get(credential.uid.as_str());
        let live = record.and_then(|r| r.live.as_ref());
        let state = match &credential.secret {
            None => SecretState::Absent,
            Some(token) => SecretState::Ours {
                seal: live.is_none_or(|l| l.claim != token.claim).then(|| {
                    let name = &credential.name;
                    Box::new(Seal::new(credential.uid.as_str(), &name.namespace, &name.name, token))
                }),
                content: Content::Intact,
                metadata_matches: true,
            },
        };
        let window = TimeDelta::milliseconds(WINDOW);
        let connection = match (process.refused_until, process.gate.outage()) {
            (Some(probe_at), _) => Connection::Unauthorized {
                probe_at,
                message: String::new(),
            },
            (None, Some(_)) => Connection::Down {
                window,
                message: String::new(),
            },
            _ => Connection::Ready { window },
        };
        Observed {
            users: Users::Anybody,
            kept: true,
            uid: credential.uid.to_string(),
            terminating: false,
            suspended: false,
            desired: Ok(credential.desired.clone()),
            asked: Asked {
                rotate: credential.desired.digest.rotate,
                ..Asked::default()
            },
            permitted: Ok(()),
            connection,
            secrets: [(credential.name.name.to_string(), state)].into(),
            record: record.map(|r| (**r).clone()),
            claim: self.journal.pending(credential.uid.as_str()).map(|c| (**c).clone()),
            working: process.working.contains_key(&i),
            held_up: None,
            journal_unavailable: false,
            told: None,
            holder: process.holder.clone(),
            claim_grace: CLAIM_GRACE,
            waiting: None,
            unprepared: None,
        }
    }

    /// Plans, and acts, until there is nothing to do.
    fn look(&mut self, i: usize) {
        for _ in 0..5 {
            let Some(process) = self.process.as_ref().filter(|_| !self.credentials[i].gone) else {
                return;
            };
            let now = self.time();
            let plan = plan(&self.observe(i, process), now);
            for action in &plan.actions {
                self.act(i, action);
            }
            if !plan.actions.is_empty() {
                continue;
            }
            match plan.demand {
                Some(reason) => self.want(i, reason, now),
                None => self.forget(i),
            }
            if let Some(at) = plan.wake {
                let at = self.when(at);
                self.credentials[i].wake = at;
                self.at(at, Event::Look(i));
            }
            return;
        }
        self.report.restless += 1;
    }

    fn act(&mut self, i: usize, action: &Action) {
        let uid = self.credentials[i].uid.clone();
        match action {
            Action::Delete { .. } | Action::DeleteTampered { .. } => self.credentials[i].secret = None,
            Action::DeleteUnknown { claim, .. } => {
                if !self.journal.knows(uid.as_str(), claim) {
                    self.credentials[i].secret = None;
                }
            }
            Action::Restore { .. } => {}
            Action::Release { .. } => {
                let released = self.commit(uid.as_str(), |j, now| {
                    let due = j.live_of(uid.as_str()).is_some_and(|l| l.ends_at <= now);
                    due && j.release(uid.as_str(), now, crate::api::Reason::Expired).is_some()
                });
                if released {
                    self.ends(i, true);
                    self.wake_pass(self.now);
                }
            }
            Action::Adopt => {
                let claim = self.journal.pending(uid.as_str()).map(|c| c.id.clone());
                if let (Some(id), Some(token)) = (claim, self.credentials[i].secret.clone()) {
                    self.publish(i, &id, &token);
                }
            }
            Action::GiveUp => {
                if let Some(claim) = self.journal.pending(uid.as_str()).map(|c| (**c).clone()) {
                    self.refuse(i, &claim, Reason::OutcomeUnknown, None);
                }
            }
            Action::Rebuild | Action::Revoke { .. } => self.report.restless += 1,
        }
    }

    fn want(&mut self, i: usize, reason: MintReason, now: Time) {
        let credential = &self.credentials[i];
        let seq = self
            .journal
            .credentials
            .get(credential.uid.as_str())
            .map_or(0, |r| r.seq);
        let mut demand = Demand {
            uid: credential.uid.clone(),
            name: credential.name.clone(),
            reason,
            since: now,
            renew_before: credential.desired.renew_before,
            max_lifetime: credential.desired.max_lifetime,
            pod_waits: credential.pod_waits && credential.secret.is_none(),
            renews: true,
            most: None,
        };
        let asks = credential.desired.digest;
        let at = self.now;
        let Some(process) = &mut self.process else { return };
        let mut since = at;
        if let Some(old) = process.entries.get(&i) {
            if old.demand.reason.is_newcomer() == reason.is_newcomer() {
                demand.since = old.demand.since;
                since = old.since;
            }
            if old.demand == demand && old.asks == asks && old.seq == seq {
                return;
            }
        }
        let barred = process.entries.get(&i).and_then(|e| e.barred);
        process.entries.insert(
            i,
            Entry {
                demand,
                asks,
                seq,
                barred,
                since,
            },
        );
        process.changed.entry(i).or_default();
        self.wake_pass(at);
    }

    fn forget(&mut self, i: usize) {
        if let Some(process) = &mut self.process
            && process.entries.remove(&i).is_some()
        {
            process.changed.insert(i, true);
            self.wake_pass(self.now);
        }
    }

    fn wake_pass(&mut self, at: i64) {
        let Some(process) = &mut self.process else { return };
        if process.next_pass <= self.now || at < process.next_pass {
            process.next_pass = at + 10;
            self.at(at + 10, Event::Pass);
        }
    }
}

/// The journal as it is after it was written to objects and read again.
fn stored_and_read(journal: &Journal, now: Time) -> Journal {
    let mut after = journal.clone();
    let blank = Journal::new(journal.scope.clone());
    let mut pages = 0;
    let fresh = || {
        pages += 1;
        PageId::from(format!("page-{pages}"))
    };
    let Some(flush) = Layout::default().flush(&blank, &mut after, now, fresh) else {
        return blank;
    };
    let read = |page: &Page| serde_json::from_str(&serde_json::to_string(page).ok()?).ok();
    let pages = flush.fresh.iter().chain(&flush.pages).chain(&flush.named);
    let pages = pages.filter_map(read).collect();
    let head = serde_json::to_string(&flush.head).unwrap_or_default();
    Layout::read(
        &journal.scope,
        serde_json::from_str(&head).unwrap_or_default(),
        pages,
        now,
    )
    .journal
}
