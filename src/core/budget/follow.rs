//! A budget that follows its scope's journal: it is told what differs between two views, and a decision is taken
//! on a view and holds for the commit only while nothing it depends on has changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use chrono::TimeDelta;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::limits::{Limit, effective};
use super::{Admitted, Budget, Held, Open, Selection, Stops};
use crate::core::Time;
use crate::core::ids::Uid;
use crate::core::journal::{ActiveToken, Claim, Journal, Record};

/// How long a decision may wait for its commit.
const DECISION_HOLDS: TimeDelta = TimeDelta::seconds(1);

/// What a decision depends on besides its journal.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The configured limits of all connections that use the scope.
    pub limits: Vec<Limit>,
    /// Whether newcomers are considered: not before all are known who wait.
    pub newcomers: bool,
}

/// Who was admitted, and when.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Whom to admit, in order.
    pub admitted: Vec<Uid>,
    /// What they were admitted with.
    pub rates: HashMap<Uid, Admitted>,
    at: Time,
    terms: Terms,
}

/// What is known of a token whose renewals are not planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lapse {
    /// Nobody needs any.
    Unused,
    /// They are planned as soon as there is room, where a namespace may take so many mints a window.
    Resumes(Option<u32>),
}

/// Whether tokens are renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renews {
    /// They are, by a namespace that may take so many mints a window.
    Yes(Option<u32>),
    /// Nobody needs that.
    No,
}

/// How many who wait for room are looked at in one pass.
const RESUMED_AT_ONCE: usize = 16;

/// The budget of one scope, and the view of its journal that it was last told of.
#[derive(Debug)]
pub struct Follower {
    /// What it is told, and asked.
    pub budget: Budget,
    seen: Option<Arc<Journal>>,
    /// Tokens that other scopes' journals hold and whose renewals count here.
    foreign: HashMap<Uid, Held>,
    /// Whose tokens are not renewed, or are again as soon as there is room for that.
    unrenewed: HashMap<Uid, Lapse>,
    /// Those of them that wait for room, and maybe some that did.
    resuming: VecDeque<Uid>,
    longest: TimeDelta,
    /// When the first newcomer's request leaves the window that shares are counted in.
    spent_until: Time,
}

impl Follower {
    /// The budget of a scope that people call `title`.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self {
            budget: Budget::new(title),
            seen: None,
            foreign: HashMap::new(),
            unrenewed: HashMap::new(),
            resuming: VecDeque::new(),
            longest: TimeDelta::zero(),
            spent_until: Time::MIN_UTC,
        }
    }

    /// Counts the renewals of a token that another scope's journal holds and that are made here; or stops to.
    pub fn reserve(&mut self, uid: &Uid, held: Option<Held>, now: Time) {
        match held {
            Some(held) => self.foreign.insert(uid.clone(), held),
            None => self.foreign.remove(uid),
        };
        if let Some(seen) = self.seen.clone() {
            self.plan(uid.as_str(), &seen, now);
        }
    }

    /// Notes whether the tokens of `uid` are renewed. What was not, and is again, keeps its place only if there is room
    /// for that, as a newcomer would: nobody else lost any by it.
    pub fn renew(&mut self, uid: &Uid, renews: Renews, now: Time) {
        let before = self.unrenewed.get(uid.as_str()).copied();
        let after = match renews {
            Renews::No => Some(Lapse::Unused),
            Renews::Yes(most) => before.map(|_| Lapse::Resumes(most)),
        };
        match after.filter(|_| before != after) {
            Some(lapse) => self.unrenewed.insert(uid.clone(), lapse),
            None => return,
        };
        if after == Some(Lapse::Unused) {
            self.plan_again(uid, now);
        } else {
            self.resume(uid.clone(), now);
        }
    }

    /// Whether the renewals of the live token of `uid` are planned, where it has one.
    #[must_use]
    pub fn keeps(&self, uid: &str) -> bool {
        !self.unrenewed.contains_key(uid)
    }

    /// Forgets that the tokens of `uid` are not renewed.
    pub fn forget(&mut self, uid: &Uid, now: Time) {
        if self.unrenewed.remove(uid.as_str()).is_some() {
            self.plan_again(uid, now);
        }
    }

    fn plan_again(&mut self, uid: &Uid, now: Time) {
        if let Some(seen) = self.seen.clone() {
            self.plan(uid.as_str(), &seen, now);
        }
    }

    /// Plans the renewals of `uid` again, if there is room.
    fn resume(&mut self, uid: Uid, now: Time) {
        let (Some(Lapse::Resumes(most)), Some(seen)) = (self.unrenewed.get(uid.as_str()), &self.seen) else {
            return;
        };
        let held = self.held(uid.as_str(), seen, now);
        if held.is_none_or(|held| self.budget.has_room_for(&held, *most, now)) {
            self.forget(&uid, now);
        } else if !self.resuming.contains(&uid) {
            self.resuming.push_back(uid);
        }
    }

    /// Takes in what differs between the view it saw last and `journal`.
    pub fn follow(&mut self, journal: &Arc<Journal>, limits: &[Limit], now: Time) {
        self.budget.set_limits(&effective(limits, journal, now));
        let typical = journal.typical_lifetime.map(TimeDelta::seconds);
        self.budget.set_typical_lifetime(typical);
        self.foreign.retain(|_, held| held.ends_at > now);
        let before = self.seen.replace(Arc::clone(journal));
        let unseen = before.is_none();
        let before = before.unwrap_or_else(|| Arc::new(Journal::new(journal.scope.clone())));
        let longest = limits.iter().map(|l| l.window).max().unwrap_or_default();
        let is_new = !Arc::ptr_eq(&before, journal) && before.sent() != journal.sent();
        if unseen || longest != self.longest || now >= self.spent_until || is_new {
            self.longest = longest;
            self.count(journal, now);
        }
        if Arc::ptr_eq(&before, journal) {
            return;
        }
        for uid in planned_anew(&before, journal) {
            self.plan(uid, journal, now);
        }
        if unseen {
            for uid in self.foreign.keys().cloned().collect::<Vec<_>>() {
                self.plan(uid.as_str(), journal, now);
            }
        }
    }

    /// Tells the budget which requests count, and which namespace's newcomers sent them.
    fn count(&mut self, journal: &Journal, now: Time) {
        self.budget.set_sent(journal.sent());
        let mut by_namespace: BTreeMap<&str, u32> = BTreeMap::new();
        self.spent_until = Time::MAX_UTC;
        for (at, namespace) in journal.newcomers() {
            let until = at + self.longest;
            if until > now {
                *by_namespace.entry(namespace).or_default() += 1;
                self.spent_until = self.spent_until.min(until);
            }
        }
        self.budget
            .set_spent(by_namespace.into_iter().map(|(n, count)| (n.into(), count)));
    }

    /// The token of `uid` whose renewals count here: one that waits for its Secrets takes over from the one in them.
    fn held(&self, uid: &str, journal: &Journal, now: Time) -> Option<Held> {
        let record = journal.credentials.get(uid);
        let unpublished = record.and_then(|r| Held::unpublished(r.unpublished.as_ref()?));
        let here = record.and_then(|r| Some(held_of(r, r.live.as_ref()?)));
        let held = unpublished.or(here).filter(|held| held.ends_at > now);
        held.or_else(|| self.foreign.get(uid).filter(|h| h.ends_at > now).cloned())
    }

    /// Tells the budget what is planned for `uid`: of a claim, of its token here, or of one elsewhere.
    fn plan(&mut self, uid: &str, journal: &Journal, now: Time) {
        let uid = Uid::from(uid);
        if journal.claims.get(uid.as_str()).is_some_and(|claim| !claim.once) {
            // It was admitted with its renewals.
            self.unrenewed.remove(uid.as_str());
        }
        let keeps = self.keeps(uid.as_str());
        let record = journal.credentials.get(uid.as_str());
        let live = record.and_then(|r| Some((r, r.live.as_ref()?)));
        let held_here = live.map(|(record, live)| held_of(record, live));
        let held_elsewhere = self.foreign.get(uid.as_str()).filter(|h| h.ends_at > now).cloned();
        if let Some(claim) = journal.claims.get(uid.as_str()) {
            match held_here.or(held_elsewhere).filter(|_| keeps) {
                Some(mut held) => {
                    // Its own try is not over while it may still fail.
                    held.tried_at = held.tried_at.max(Some(claim.at));
                    self.budget.hold(&uid, &held);
                }
                None => self.budget.release(&uid),
            }
            self.budget.open(&uid, &open_of(claim, live.map(|(_, live)| live)));
            return;
        }
        match self.held(uid.as_str(), journal, now).filter(|_| keeps) {
            Some(held) => self.budget.hold(&uid, &held),
            None => self.budget.release(&uid),
        }
    }

    /// Decides on the newest view.
    pub fn decide(&mut self, journal: &Arc<Journal>, terms: &Terms, now: Time) -> (Decision, Selection) {
        self.follow(journal, &terms.limits, now);
        for _ in 0..self.resuming.len().min(RESUMED_AT_ONCE) {
            if let Some(uid) = self.resuming.pop_front() {
                self.resume(uid, now);
            }
        }
        let selection = self.budget.select(now, usize::MAX, &stops(journal, terms));
        let decision = Decision {
            admitted: selection.admitted.clone(),
            rates: selection.rates.clone(),
            at: now,
            terms: terms.clone(),
        };
        (decision, selection)
    }

    /// Whether `decision` holds for a commit to `journal` at `now`: it is not old, and nothing that the budget counts
    /// is other than in the view it was taken on.
    #[must_use]
    pub fn stands(&self, decision: &Decision, journal: &Journal, now: Time) -> bool {
        let fresh = now - decision.at <= DECISION_HOLDS;
        fresh
            && self
                .seen
                .as_deref()
                .is_some_and(|seen| is_same(seen, journal, &decision.terms, now))
    }

    /// Takes `decision` anew, on the state that is about to be committed.
    pub fn decide_anew(&mut self, decision: &mut Decision, journal: &Journal, now: Time) {
        let terms = decision.terms.clone();
        *decision = self.decide(&Arc::new(journal.clone()), &terms, now).0;
    }
}

/// Whether nothing has happened to `uid` since its audit event `seq`, and nothing is under way for it.
#[must_use]
pub fn is_untouched(journal: &Journal, uid: &str, seq: u64) -> bool {
    journal.pending(uid).is_none() && journal.credentials.get(uid).map_or(0, |r| r.seq) == seq
}

fn held_of(record: &Record, live: &ActiveToken) -> Held {
    Held {
        tried_at: tried_at(record),
        ..Held::of(&record.namespace, live)
    }
}

/// When the last try began that failed.
fn tried_at(record: &Record) -> Option<Time> {
    record.failure.as_ref().map(|f| f.asked_at.unwrap_or(f.at))
}

/// What is known of a request under way; a renewal brings nothing that lives longer than what it replaces.
fn open_of(claim: &Claim, live: Option<&ActiveToken>) -> Open {
    let replaced = live.filter(|_| !claim.kind.is_newcomer());
    let asked = claim.max_lifetime_ms.map(TimeDelta::milliseconds);
    Open {
        namespace: claim.namespace.as_str().into(),
        at: claim.at,
        renew_before: claim.renew_before_ms.map(TimeDelta::milliseconds),
        max_lifetime: [asked, replaced.map(|l| l.ends_at - l.issued_at)]
            .into_iter()
            .flatten()
            .min(),
        once: claim.once,
    }
}

fn stops(journal: &Journal, terms: &Terms) -> Stops {
    let longest = terms.limits.iter().map(|l| l.counts_for()).max().unwrap_or_default();
    Stops {
        blocked_until: journal.throttle.blocked_until,
        guessed: journal.throttle.guessed,
        backlog_percent: journal.backlog(),
        // All that a lost journal forgot has left the window then.
        lost_until: journal.lost_at.map(|at| at + longest),
        newcomers: terms.newcomers,
        teaching: journal.typical_lifetime.is_none(),
        probing: journal.throttle.count > 0,
    }
}

/// Whether both come to the same for the budget.
fn is_same(a: &Journal, b: &Journal, terms: &Terms, now: Time) -> bool {
    let longest = terms.limits.iter().map(|l| l.counts_for()).max().unwrap_or_default();
    let stops_of = |journal: &Journal| {
        let stops = stops(journal, terms);
        Stops {
            // What is over stops nobody, whether that was noted already or not.
            blocked_until: stops.blocked_until.filter(|at| *at > now),
            guessed: stops.guessed && stops.blocked_until.is_some_and(|at| at > now),
            lost_until: stops.lost_until.filter(|at| *at > now),
            backlog_percent: usize::from(stops.backlog_percent >= 80) + usize::from(stops.backlog_percent >= 100),
            ..stops
        }
    };
    let counted = |journal: &Journal| {
        let counts = |at: Time| at + longest > now;
        let sent = journal.sent().into_iter();
        sent.filter(|(at, _)| counts(*at)).collect::<Vec<_>>()
    };
    a.typical_lifetime == b.typical_lifetime
        && a.throttle.learnt == b.throttle.learnt
        && stops_of(a) == stops_of(b)
        && counted(a) == counted(b)
        && planned_anew(a, b).is_empty()
}

/// For whom something else is planned `after` than `before`.
fn planned_anew<'a>(before: &'a Journal, after: &'a Journal) -> BTreeSet<&'a str> {
    let live = |r: &Record| {
        r.live
            .as_ref()
            .map(|l| (l.issued_at, l.ends_at, l.renew_before_ms, l.period_ms))
    };
    let plan = |r: &Record| {
        (
            live(r),
            tried_at(r).filter(|_| r.live.is_some()),
            r.unpublished.as_ref().map(|c| c.id.clone()),
        )
    };
    let mut changed = BTreeSet::new();
    differences(
        &before.credentials,
        &after.credentials,
        |a, b| match (a, b) {
            (Some(a), Some(b)) => plan(a) == plan(b),
            (one, other) => one
                .or(other)
                .is_none_or(|r| r.live.is_none() && r.unpublished.is_none()),
        },
        &mut changed,
    );
    differences(
        &before.claims,
        &after.claims,
        |a, b| match (a, b) {
            (Some(a), Some(b)) => a.id == b.id,
            _ => false,
        },
        &mut changed,
    );
    changed
}

/// The keys of two maps whose values are not the `same`.
fn differences<'a, V: PartialEq>(
    before: &'a OrdMap<Uid, Arc<V>>,
    after: &'a OrdMap<Uid, Arc<V>>,
    same: impl Fn(Option<&V>, Option<&V>) -> bool,
    keys: &mut BTreeSet<&'a str>,
) {
    for change in before.diff(after) {
        let (key, was, is) = match change {
            DiffItem::Add(key, is) => (key, None, Some(is)),
            DiffItem::Remove(key, was) => (key, Some(was), None),
            DiffItem::Update { old, new } => (new.0, Some(old.1), Some(new.1)),
        };
        if !same(was.map(|v| &**v), is.map(|v| &**v)) {
            keys.insert(key.as_str());
        }
    }
}
