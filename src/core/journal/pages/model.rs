//! Every order in which two controllers write one journal of two pages, look at it as it was a while ago, and die
//! between any two of their writes, while credentials are deleted and clocks jump. Both take themselves for the leader all the
//! time: what either decides, and how it is written, is the real code; the API server is a map with compare-and-swap.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use chrono::TimeDelta;
use parking_lot::Mutex;
use stateright::{Checker, Model, Property};

use super::*;
use crate::api::Reason;
use crate::core::audit::{AuditEvent, EventType};
use crate::core::budget::Limit;
use crate::core::clock::Suspension;
use crate::core::journal::tests_support::{claim, live, scope};
use crate::core::journal::{ActiveToken, Claim, MintReason};
use crate::core::outcome::{self, Asked, Refused};
use crate::core::schedule::CLAIM_FRESH;
use crate::core::testing::{s, t};

/// One for each page.
const UIDS: [&str; 2] = ["u0", "u1"];
/// The claim that made the token which the first of them holds in the beginning; the next is the other's.
const FIRST: usize = 900;
const NAMES: [&str; 2] = ["one", "two"];

/// A part of the journal; the head where there is no page.
type Part = Option<PageId>;

/// What the API server has. A text stands for its version: every write counts up in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Objects(BTreeMap<Part, Arc<str>>);

impl Objects {
    fn read(&self, now: Time) -> Stored {
        let head = self.0.get(&None).map(|text| serde_json::from_str(text).unwrap());
        let pages = self.0.iter().filter(|(part, _)| part.is_some());
        let pages = pages.map(|(_, text)| serde_json::from_str(text).unwrap());
        Layout::read(&scope(), head, pages.collect(), now)
    }
}

/// A write that remains to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Write {
    part: Part,
    /// Nothing to delete it.
    text: Option<Arc<str>>,
    over: Option<Arc<str>>,
}

/// What a process read last, or wrote: what is decided on it follows from it.
#[derive(Clone)]
struct Known {
    objects: Objects,
    journal: Journal,
    layout: Layout,
}

impl Known {
    fn of(objects: &Objects, now: Time) -> Self {
        let Stored { journal, layout, .. } = objects.read(now);
        Self {
            objects: objects.clone(),
            journal,
            layout,
        }
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.objects == other.objects
    }
}

impl Eq for Known {}

impl Hash for Known {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.objects.hash(state);
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

/// How far a process is with a mint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// The claim is committed, or is being.
    Claimed,
    /// The request has left.
    Posted,
    /// It was answered.
    Answered,
    /// The Secret is written.
    Written,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    known: Option<Known>,
    /// Writes that are left of a commit, and what is known once they are done.
    commit: Option<(Vec<Write>, Known)>,
    phase: Phase,
    uid: usize,
    claim: usize,
    /// When that was claimed.
    at: Time,
    /// It ends with this commit.
    ends: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    objects: Objects,
    processes: [Process; 2],
    secrets: [Option<usize>; 2],
    /// Credentials that are deleted.
    gone: [bool; 2],
    now: Time,
    /// By how much all clocks were stepped, and when: each process takes that for a pause.
    stepped: Option<(Time, TimeDelta)>,
    /// Claims whose request left, and when by a clock that nobody steps; those that were answered.
    posts: BTreeMap<usize, Time>,
    tokens: BTreeSet<usize>,
    /// Claims whose process died before it was done with them.
    orphans: BTreeSet<usize>,
    claims: usize,
    crashes: usize,
    jumps: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Read(usize),
    Claim(usize, usize),
    Write(usize),
    Post(usize),
    Answer(usize),
    Publish(usize),
    Outcome(usize),
    /// Closes a claim that another process, or an earlier one, made.
    Settle(usize, usize),
    /// Lets go of all that a deleted credential has.
    Sweep(usize, usize),
    Delete(usize),
    Crash(usize),
    /// Time goes by.
    Wait,
    /// All clocks jump, and no time has gone by.
    Step,
}

const WINDOW: TimeDelta = TimeDelta::hours(1);

struct Journals {
    limit: u32,
    claims: usize,
    crashes: usize,
    /// How many of the credentials mint.
    minting: usize,
    deletes: bool,
    jumps: usize,
    /// What was found of what is stored: it is the same in many states.
    recovered: Mutex<HashMap<u64, Option<&'static str>>>,
}

fn claim_id(n: usize) -> String {
    format!("claim-{n}")
}

fn token(n: usize) -> String {
    format!("token-of-claim-{n}")
}

fn made(n: usize, who: usize, uid: usize, journal: &Journal, at: Time) -> Claim {
    let mut claim = claim(UIDS[uid], "n", MintReason::Rotate, at, n);
    claim.revision = journal.credentials.get(UIDS[uid]).map_or(1, |r| r.revision + 1);
    claim.holder = NAMES[who].into();
    claim.request.run_id = claim_id(n);
    claim
}

fn minted(claim: &Claim) -> ActiveToken {
    let mut live = live(&claim.id, claim.at, claim.at + WINDOW);
    live.revision = claim.revision;
    live.request = claim.request.clone();
    live.token_ids = vec![format!("token-of-{}", claim.id)];
    live
}

/// The number of a claim.
fn number(id: &str) -> usize {
    id.trim_start_matches("claim-").parse().unwrap()
}

impl State {
    /// What a commit on `known` begins with: as it was, and as it is changed.
    fn begun(&self, known: &Journal) -> (Journal, Journal) {
        let pauses = self.stepped.map(|(at, lasted)| Suspension { at, lasted });
        known.begin(pauses.as_slice(), self.now)
    }

    /// The time that nobody steps.
    fn true_time(&self) -> Time {
        self.now - self.stepped.map_or(TimeDelta::zero(), |(_, by)| by)
    }

    /// Begins a commit of what `decide` does to what the process knows; false where that changes nothing.
    fn begin(&mut self, who: usize, decide: impl FnOnce(&mut Journal)) -> bool {
        let known = self.processes[who].known.clone().unwrap();
        let (before, mut journal) = self.begun(&known.journal);
        decide(&mut journal);
        let mut hasher = DefaultHasher::new();
        (who, &known.objects, self.claims).hash(&mut hasher);
        let fresh = format!("p{:x}", hasher.finish());
        let Some(flush) = known
            .layout
            .flush(&before, &mut journal, self.now, || fresh.as_str().into())
        else {
            return false;
        };
        let page = |page: &Page| (Some(page.page.clone()), Some(serde_json::to_string(page).unwrap()));
        let head = |head: &Head| (None, Some(serde_json::to_string(head).unwrap()));
        let all = flush.fresh.iter().chain(&flush.pages).map(page);
        let all = all
            .chain(flush.head.iter().map(head))
            .chain(flush.named.iter().map(page));
        let all = all.chain(flush.dropped.iter().map(|id| (Some(id.clone()), None)));
        let mut after = known.objects.clone();
        let writes = all.map(|(part, text)| {
            let text: Option<Arc<str>> = text.map(Into::into);
            let over = match &text {
                Some(text) => after.0.insert(part.clone(), Arc::clone(text)),
                None => after.0.remove(&part),
            };
            Write { part, text, over }
        });
        let writes: Vec<Write> = writes.collect();
        let known = Known {
            objects: after,
            journal,
            layout: flush.layout,
        };
        self.processes[who].commit = Some((writes, known));
        true
    }

    /// The next write of a commit; where somebody else was faster, it is read anew and decided anew.
    fn write(&mut self, who: usize) {
        let process = &mut self.processes[who];
        let Some((writes, known)) = &mut process.commit else {
            return;
        };
        let write = writes.remove(0);
        if self.objects.0.get(&write.part) == write.over.as_ref() {
            match write.text {
                Some(text) => self.objects.0.insert(write.part, text),
                None => self.objects.0.remove(&write.part),
            };
        } else if write.text.is_some() {
            process.commit = None;
            process.known = None;
            process.ends = false;
            if process.phase == Phase::Claimed {
                process.phase = Phase::Idle;
            }
            return;
        }
        if writes.is_empty() {
            process.known = Some(known.clone());
            process.commit = None;
            if process.ends {
                process.ends = false;
                process.phase = Phase::Idle;
            }
        }
    }

    /// Ends the mint of a process: as it went, or where somebody closed its claim, with a revocation.
    fn end(&mut self, who: usize) {
        let Process { uid, claim, at, .. } = self.processes[who];
        let known = self.processes[who].known.clone().unwrap();
        let now = self.now;
        let claim = made(claim, who, uid, &known.journal, at);
        let committed = known
            .journal
            .pending(UIDS[uid])
            .filter(|c| c.id == claim.id)
            .map(|c| Claim::clone(c));
        let claim = committed.unwrap_or(claim);
        let token = minted(&claim);
        self.processes[who].ends = true;
        let begun = self.begin(who, |journal| {
            if outcome::succeed(journal, &claim.subject(UIDS[uid]), &token, true, now).is_none() {
                journal.revoke_unpublished(UIDS[uid], &claim, &token.token_ids, now);
            }
        });
        if !begun {
            self.processes[who].ends = false;
            self.processes[who].phase = Phase::Idle;
        }
    }

    /// Closes what nobody works on any more: what is in the Secret is adopted.
    fn settle(&mut self, who: usize, uid: usize) {
        let (known, now) = (self.processes[who].known.clone().unwrap(), self.now);
        let Some(claim) = known.journal.pending(UIDS[uid]).cloned() else {
            return;
        };
        let written = self.secrets[uid] == Some(number(&claim.id));
        self.begin(who, |journal| {
            let subject = claim.subject(UIDS[uid]);
            if written {
                outcome::succeed(journal, &subject, &minted(&claim), true, now);
            } else {
                let refused = Refused {
                    reason: Reason::OutcomeUnknown,
                    message: String::new(),
                    counted: true,
                    retry_after: None,
                    own_limit: false,
                };
                outcome::fail(journal, &subject, &claim, &refused, &Asked::default(), true, now);
            }
        });
    }

    /// Lets go of all that a deleted credential has, as the sweep does.
    fn sweep(&mut self, who: usize, uid: usize) -> bool {
        let now = self.now;
        self.begin(who, |journal| {
            let lost = journal.give_up(UIDS[uid], now);
            if let Some(claim) = lost {
                let (kind, why) = (EventType::OutcomeUnknown, Reason::OutcomeUnknown);
                let event = AuditEvent::new(kind, why, &claim.subject(UIDS[uid]), now, true);
                journal.record_event(UIDS[uid], event);
            }
            journal.forget(UIDS[uid], now);
        })
    }

    /// What one process that starts now makes of it, alone: claims are closed, and then there is nothing to write.
    fn recovered(&self) -> Self {
        let mut state = self.clone();
        for process in &mut state.processes {
            *process = Process::new();
        }
        for uid in 0..UIDS.len() {
            state.processes[0].known = Some(Known::of(&state.objects, state.now));
            if state.gone[uid] {
                state.sweep(0, uid);
            } else {
                state.settle(0, uid);
            }
            while state.processes[0].commit.is_some() {
                state.write(0);
            }
        }
        state
    }

    /// Whoever starts alone comes to rest, and then every request is told of.
    fn recovers(&self) -> Result<(), &'static str> {
        let mut state = self.recovered();
        let journal = state.objects.read(state.now).journal;
        let told_of = |n: &usize| UIDS.iter().any(|uid| told(&journal, uid, &claim_id(*n)) == 1);
        if UIDS.iter().any(|uid| journal.pending(uid).is_some()) {
            return Err("a claim stays open");
        }
        let due = |uid: &str| journal.owed_of(uid).all(|owed| owed.due <= state.now);
        let gone = |uid: &str| journal.live_of(uid).is_none() && due(uid);
        if (0..UIDS.len()).any(|uid| self.gone[uid] && !gone(UIDS[uid])) {
            return Err("a deleted credential keeps a token");
        }
        if !self.posts.keys().all(told_of) {
            return Err("a request is never told of");
        }
        if state.has_more_to_write() {
            return Err("it does not come to rest");
        }
        Ok(())
    }

    /// Whether it goes on writing though nothing happens: what it wrote last is read back, and nothing is missing then.
    fn has_more_to_write(&mut self) -> bool {
        for _ in 0..2 {
            self.processes[0].known = Some(Known::of(&self.objects, self.now));
            if !self.begin(0, |_| {}) {
                return false;
            }
            while self.processes[0].commit.is_some() {
                self.write(0);
            }
        }
        true
    }

    /// Whether somebody still knows of a token: a process, the record, what is owed; of one whose process died, the event
    /// that says that nobody does.
    fn accounts_for(&self, journal: &Journal, n: usize) -> bool {
        let id = claim_id(n);
        let held = self
            .processes
            .iter()
            .any(|p| p.claim == n && matches!(p.phase, Phase::Posted | Phase::Answered | Phase::Written));
        held || UIDS.iter().any(|uid| {
            journal.knows(uid, &id)
                || journal.owed_of(uid).any(|owed| owed.token_id == token(n))
                || self.orphans.contains(&n) && told(journal, uid, &id) > 0
        })
    }
}

/// How many outcomes are told of a request.
fn told(journal: &Journal, uid: &str, id: &str) -> usize {
    journal
        .events_of(uid)
        .filter(|event| event.request.run_id == id && event.event != EventType::Released)
        .count()
}

impl Process {
    fn new() -> Self {
        Self {
            known: None,
            commit: None,
            phase: Phase::Idle,
            uid: 0,
            claim: usize::MAX,
            at: t(0),
            ends: false,
        }
    }
}

impl Model for Journals {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut objects = Objects::default();
        let mut pages = BTreeMap::new();
        for (n, uid) in UIDS.iter().enumerate() {
            // Each holds a token, in a page of its own.
            let mut journal = Journal::new(scope());
            let first = made(FIRST + n, 0, n, &journal, t(0));
            journal.claim(uid, first.clone(), WINDOW);
            assert!(outcome::succeed(&mut journal, &first.subject(uid), &minted(&first), false, t(0)).is_some());
            let record = journal.credentials.get(*uid).cloned();
            let slot = stored::Slot {
                record,
                ..stored::Slot::default()
            };
            let page = Page {
                version: VERSION,
                scope: scope(),
                page: format!("page-{n}").as_str().into(),
                commit: 1,
                head: 1,
                slots: [((*uid).into(), slot)].into(),
            };
            pages.insert(page.page.clone(), 1);
            let text = serde_json::to_string(&page).unwrap();
            objects.0.insert(Some(page.page), text.into());
        }
        let head = Head {
            version: VERSION,
            scope: scope(),
            commit: 1,
            window_seconds: 3600,
            attempts: Vec::new(),
            claims: BTreeMap::new(),
            throttle: crate::core::journal::Throttle::default(),
            unauthorized: None,
            typical_lifetime: None,
            lost_at: None,
            pages,
            slots: BTreeMap::new(),
        };
        let text = serde_json::to_string(&head).unwrap();
        objects.0.insert(None, text.into());
        vec![State {
            objects,
            processes: [Process::new(), Process::new()],
            secrets: [None, None],
            gone: [false, false],
            now: t(0),
            stepped: None,
            posts: BTreeMap::new(),
            tokens: (FIRST..FIRST + UIDS.len()).collect(),
            orphans: BTreeSet::new(),
            claims: 0,
            crashes: 0,
            jumps: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.jumps < self.jumps {
            actions.push(Action::Wait);
            if state.stepped.is_none() {
                actions.push(Action::Step);
            }
        }
        // Which of them goes makes no difference.
        if self.deletes && !state.gone[0] {
            actions.push(Action::Delete(0));
        }
        for (who, process) in state.processes.iter().enumerate() {
            // Who starts after clocks were stepped knows of no pause: it trusts the control plane's clock.
            let crashes = state.crashes < self.crashes && state.stepped.is_none();
            if crashes && *process != Process::new() {
                actions.push(Action::Crash(who));
            }
            if process.commit.is_some() {
                actions.push(Action::Write(who));
                continue;
            }
            match process.phase {
                Phase::Claimed => actions.push(Action::Post(who)),
                Phase::Posted => actions.push(Action::Answer(who)),
                Phase::Answered => actions.push(Action::Publish(who)),
                Phase::Idle | Phase::Written => {}
            }
            let Some(known) = &process.known else {
                actions.push(Action::Read(who));
                continue;
            };
            if known.objects != state.objects {
                actions.push(Action::Read(who));
            }
            if process.phase == Phase::Written {
                actions.push(Action::Outcome(who));
            }
            for (uid, name) in UIDS.iter().enumerate() {
                let pending = known.journal.pending(name);
                if pending.is_some_and(|claim| process.phase == Phase::Idle || number(&claim.id) != process.claim) {
                    actions.push(Action::Settle(who, uid));
                }
                if state.gone[uid] && known.journal.credentials.contains_key(*name) {
                    actions.push(Action::Sweep(who, uid));
                }
                let counts_for = self.limit().counts_for();
                let sent = state.begun(&known.journal).1.sent().into_iter();
                let sent: u32 = sent
                    .filter(|(at, _)| *at + counts_for > state.now)
                    .map(|(_, n)| n)
                    .sum();
                let room = sent < self.limit && state.claims < self.claims && uid < self.minting && !state.gone[uid];
                // Who begins, and with which of them, makes no difference.
                let room = room && (state.claims > 0 || state.gone[0] || (who, uid) == (0, 0));
                if pending.is_none() && process.phase == Phase::Idle && room {
                    actions.push(Action::Claim(who, uid));
                }
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Read(who) => state.processes[who].known = Some(Known::of(&state.objects, state.now)),
            Action::Claim(who, uid) => {
                let (n, at, process) = (state.claims, state.now, &mut state.processes[who]);
                state.claims += 1;
                (process.phase, process.uid, process.claim, process.at) = (Phase::Claimed, uid, n, at);
                state.begin(who, |journal| {
                    let claim = made(n, who, uid, journal, at);
                    journal.claim(UIDS[uid], claim, WINDOW);
                });
            }
            Action::Write(who) => state.write(who),
            Action::Post(who) => {
                let Process { uid, claim, at, .. } = state.processes[who];
                if state.now - at < CLAIM_FRESH {
                    state.processes[who].phase = Phase::Posted;
                    state.posts.insert(claim, state.true_time());
                } else {
                    state.processes[who].ends = true;
                    if !state.begin(who, |journal| journal.withdraw(UIDS[uid], &claim_id(claim))) {
                        state.processes[who].ends = false;
                        state.processes[who].phase = Phase::Idle;
                    }
                }
            }
            Action::Answer(who) => {
                state.processes[who].phase = Phase::Answered;
                state.tokens.insert(state.processes[who].claim);
            }
            Action::Publish(who) => {
                let Process { uid, claim, .. } = state.processes[who];
                state.processes[who].phase = Phase::Written;
                // A process that is late asks whether its claim is still open; this one never knows that it is late.
                let stored = state.objects.read(state.now).journal;
                if stored.pending(UIDS[uid]).is_some_and(|open| open.id == claim_id(claim)) {
                    state.secrets[uid] = Some(claim);
                }
            }
            Action::Outcome(who) => state.end(who),
            Action::Settle(who, uid) => state.settle(who, uid),
            Action::Sweep(who, uid) => {
                // Nothing of it remains to be let go.
                if !state.sweep(who, uid) {
                    return None;
                }
            }
            Action::Delete(uid) => (state.gone[uid], state.secrets[uid]) = (true, None),
            Action::Wait => {
                state.jumps += 1;
                state.now += WINDOW + s(10);
            }
            Action::Step => {
                state.jumps += 1;
                state.stepped = Some((state.now, WINDOW * 2));
                state.now += WINDOW * 2;
            }
            Action::Crash(who) => {
                state.crashes += 1;
                state.orphans.insert(state.processes[who].claim);
                state.processes[who] = Process::new();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(ALWAYS, |model: &Self, state: &State| {
            model.broken(state).is_none()
        })]
    }
}

/// What is checked of each state, all of it at once: most of the time goes into reading what is stored.
const ALWAYS: &str = "what always holds";

impl Journals {
    const fn limit(&self) -> Limit {
        Limit {
            limit: self.limit,
            window: WINDOW,
        }
    }

    /// What does not hold of a state.
    fn broken(&self, state: &State) -> Option<&'static str> {
        let Stored { journal, lost, .. } = state.objects.read(state.now);
        let posts = || state.posts.values();
        let within = |from: &Time| posts().filter(|at| (*from..*from + WINDOW).contains(at)).count();
        let most = posts().map(within).max().unwrap_or(0);
        let (now, true_time) = (state.now, state.true_time());
        let left = posts().filter(|at| **at + WINDOW > true_time).count();
        let sent = state.begun(&journal).1.sent().into_iter();
        let sent: u32 = sent.filter(|(at, _)| *at + WINDOW > now).map(|(_, n)| n).sum();
        let revoked = |uid: &&str| {
            let due_now = |id: &String| journal.owed_of(uid).any(|owed| owed.token_id == *id && owed.due <= now);
            let live = journal.live_of(uid);
            live.is_some_and(|live| live.token_ids.iter().any(due_now))
        };
        let twice = |uid: &&str| (0..state.claims).any(|n| told(&journal, uid, &claim_id(n)) > 1);
        let broken = [
            (most > self.limit as usize, "more requests than allowed"),
            (left > sent as usize, "a request is not counted"),
            (!lost.is_empty(), "something is taken for lost"),
            (
                !state.tokens.iter().all(|n| state.accounts_for(&journal, *n)),
                "a token is forgotten",
            ),
            (UIDS.iter().any(revoked), "what is live is revoked"),
            (UIDS.iter().any(twice), "an outcome is told twice"),
        ];
        let broken = broken.into_iter().find_map(|(is, what)| is.then_some(what));
        broken.or_else(|| {
            let mut hasher = DefaultHasher::new();
            (&state.objects, state.secrets, &state.posts, state.gone, state.now).hash(&mut hasher);
            let key = hasher.finish();
            if let Some(known) = self.recovered.lock().get(&key) {
                return *known;
            }
            let found = state.recovers().err();
            self.recovered.lock().insert(key, found);
            found
        })
    }
}

fn check(model: Journals) -> usize {
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = model.checker().threads(threads).spawn_bfs().join();
    let (states, model) = (checker.unique_state_count(), checker.model());
    println!(
        "{states} states: limit {}, {} claims, {} deaths, deletions: {}, {} jumps of clocks, in {:.1?}",
        model.limit,
        model.claims,
        model.crashes,
        model.deletes,
        model.jumps,
        began.elapsed()
    );
    if let Some(path) = checker.discovery(ALWAYS) {
        let what = checker.model().broken(path.last_state());
        panic!("{what:?} after {:?}", path.into_actions());
    }
    states
}

fn journals(limit: u32, claims: usize, crashes: usize) -> Journals {
    Journals {
        limit,
        claims,
        crashes,
        minting: UIDS.len(),
        deletes: false,
        jumps: 0,
        recovered: Mutex::default(),
    }
}

// Invariants 2, 4, 8 and 10.
#[test]
fn two_controllers_that_both_lead_and_die_anywhere_lose_no_request_and_no_token() {
    let states = check(journals(1, 2, 1));
    assert!(states > 2_000, "{states}");
}

// Invariants 2, 8 and 12.
#[test]
fn nor_do_they_while_a_credential_is_deleted() {
    let states = check(Journals {
        deletes: true,
        minting: 1,
        ..journals(1, 1, 0)
    });
    assert!(states > 1_000, "{states}");
}

// Invariant 2.
#[test]
fn nor_do_they_while_time_goes_by_or_all_clocks_are_stepped() {
    let states = check(Journals {
        jumps: 1,
        minting: 1,
        ..journals(1, 2, 0)
    });
    assert!(states > 1_000, "{states}");
}

/// The same with one more request, and one more death: minutes.
#[test]
#[ignore = "minutes: cargo test --release --lib journal::pages::model -- --ignored --nocapture"]
fn the_same_in_a_larger_space() {
    check(Journals {
        deletes: true,
        jumps: 1,
        minting: 1,
        ..journals(2, 2, 0)
    });
    check(journals(2, 3, 2));
}
