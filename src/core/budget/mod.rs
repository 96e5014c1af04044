//! Who may mint now, and who waits how long.
//!
//! The rule: a mint is admitted only if, with the renewals of every live credential projected at
//! their latest safe times, no sliding window that it takes part in exceeds the limit. Renewals at their
//! latest safe time need only a free slot now, which that rule has kept for them. Newcomers share what is
//! left, namespace by namespace, and a tenth is kept for retries where the limit allows.
//!
//! A [`Budget`] is fed facts (what was sent, what is live, who wants to mint) and keeps all sums that
//! follow from them, so that a look at it, [`Budget::select`], costs what it admits and not what there is.

mod conclude;
mod demand;
mod follow;
mod limits;
mod line;
mod nanos;
mod projection;
mod queue;
mod search;
mod select;
mod sent;
mod series;
mod shares;
mod slots;
mod spare;
#[cfg(test)]
mod tests;
mod text;
mod timeline;
mod tree;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::TimeDelta;

use crate::api::Reason;
use crate::core::Time;
use crate::core::ids::Uid;
use crate::core::outage::Spare;

use conclude::Spending;
use demand::{CredentialState, standing_of};
use nanos::{instant, nanos};
use projection::Projection;
use queue::Queue;
use search::Memo;
use select::Pass;
use sent::Sent;
use series::Series;
use shares::Shares;
use spare::OwnTries;

pub use demand::Demand;
pub use follow::{Decision, Follower, Renews, Terms, is_untouched};
pub use limits::{Limit, effective, learn};
pub use select::{Admitted, Rate};
pub use series::{Held, Open};

/// More than so many tries to spare are not told apart.
const SPARED: u32 = 16;
/// How many renewals, and how many newcomers, read their exact place; all others one text.
pub const FRONT: usize = 20;

/// What keeps a scope from minting, beside its limits.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "facts, independent of each other")]
pub struct Stops {
    /// Until when the server asked to be left alone: stops everybody who has had its own try.
    pub blocked_until: Option<Time>,
    /// It did not say so long: past half of its runway nobody waits for that.
    pub guessed: bool,
    /// How much of what may wait for audit does, in percent: 80 stop newcomers, 100 renewals too.
    pub backlog_percent: usize,
    /// Until when it is not known what was spent: stops newcomers.
    pub lost_until: Option<Time>,
    /// Whether newcomers are considered at all: not before all are known who wait.
    pub newcomers: bool,
    /// Nobody knows yet how long tokens live: one request at a time, until one is answered.
    pub teaching: bool,
    /// The last wait for the server is over, and nobody was granted a token since: before half of their runways one
    /// tries for all.
    pub probing: bool,
}

impl Default for Stops {
    fn default() -> Self {
        Self {
            blocked_until: None,
            guessed: false,
            backlog_percent: 0,
            lost_until: None,
            newcomers: true,
            teaching: false,
            probing: false,
        }
    }
}

/// Why somebody is not admitted now.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// `RateLimited` or `AuditBacklog`.
    pub reason: Reason,
    /// Place among the newcomers, from 1 to [`FRONT`], and one more for all behind; 0 for renewals.
    pub position: usize,
    /// When the next slot frees, as far as that can be told.
    pub next_slot: Option<Time>,
    /// How the budget stands, for a person.
    pub message: String,
}

/// Who may mint now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Whom to admit, in order.
    pub admitted: Vec<Uid>,
    /// What they were admitted with.
    pub rates: HashMap<Uid, Admitted>,
    /// The first of the others, whose wait is told exactly: at most [`FRONT`] renewals, then as many
    /// newcomers in order.
    pub front: Vec<Uid>,
    /// When to look again, unless facts change before.
    pub wake: Option<Time>,
    /// How the budget stands.
    pub usage: Usage,
}

/// How a budget stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The limit in force, the tightest where there are several.
    pub limit: u32,
    /// Requests in its window now, those just admitted included.
    pub used: u32,
    /// Kept for renewals, and for retries.
    pub kept: u32,
    /// Newcomers in line.
    pub waiting: u32,
    /// When the next newcomer can be admitted.
    pub next_slot: Option<Time>,
    /// Until when the server asked to be left alone.
    pub blocked_until: Option<Time>,
}

/// What was found at the last look.
#[derive(Clone, Debug, Default)]
struct Last {
    admitted: HashSet<Uid>,
    front: HashMap<Uid, Waiting>,
    newcomers: Option<Waiting>,
    renewals: Option<Waiting>,
    /// Where not all newcomers were looked at: it may be the turn of those who came after this in a moment.
    young_after: Option<Time>,
}

impl Last {
    /// Whether somebody waits but for a moment, unless it is known for what.
    fn is_moment(&self, demand: &Demand) -> bool {
        demand.reason.is_newcomer() && self.young_after.is_some_and(|at| demand.since > at)
    }
}

/// The budget of one scope.
#[derive(Clone, Debug)]
pub struct Budget {
    title: String,
    limits: Vec<Limit>,
    projection: Projection,
    own_tries: OwnTries,
    shares: Shares,
    queue: Queue,
    memo: Memo,
    last: Last,
}

impl Budget {
    /// The budget of a scope that people call `title`. Nobody is admitted before it has limits.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            limits: Vec::new(),
            projection: Projection::default(),
            own_tries: OwnTries::default(),
            shares: Shares::default(),
            queue: Queue::default(),
            memo: Memo::default(),
            last: Last::default(),
        }
    }

    /// Sets the limits in force, one for each window: see [`effective`].
    pub fn set_limits(&mut self, limits: &[Limit]) {
        if self.limits == limits {
            return;
        }
        limits.clone_into(&mut self.limits);
        self.projection.set_limits(limits);
        self.shares.set_windows(&self.projection.timelines);
        for (_, series) in self.projection.iter() {
            self.shares.add(&series.namespace, series.period);
        }
        self.queue.all_shares_changed(&self.shares);
        self.memo.clear();
    }

    /// Sets how long tokens live, as the last answer showed: what newcomers are expected to need.
    pub fn set_typical_lifetime(&mut self, lifetime: Option<TimeDelta>) {
        if self.projection.typical() != lifetime {
            for (uid, open) in self.projection.set_typical(lifetime) {
                self.open(&uid, &open);
            }
            self.memo.clear();
        }
    }

    /// Sets which requests count: when, ascending, and how many. All of them, unanswered ones too.
    pub fn set_sent(&mut self, sent: impl IntoIterator<Item = (Time, u32)>) {
        let sent = Sent::of(sent.into_iter().map(|(at, count)| (nanos(at), count)));
        if self.projection.set_sent(sent) {
            self.memo.clear();
        }
    }

    /// Sets how many newcomers' requests each namespace sent within the longest window.
    pub fn set_spent(&mut self, spent: impl IntoIterator<Item = (Arc<str>, u32)>) {
        for namespace in self.shares.set_spent(spent) {
            self.queue.share_changed(&namespace, &self.shares);
        }
    }

    /// Notes the live token of `uid`, in place of what was noted before. It is forgotten by itself when it
    /// ends.
    pub fn hold(&mut self, uid: &Uid, held: &Held) {
        let series = Series::of_held(held);
        self.own_tries.hold(uid, held);
        if self.projection.get(uid.as_str()) != Some(&series) {
            let before = self.projection.hold(uid, series);
            self.planned(uid, before);
        }
    }

    /// Whether the renewals of that token can be planned too, in a namespace that may take `most` mints a window: what is
    /// planned for others, and what newcomers leave over, stays theirs.
    pub fn has_room_for(&mut self, held: &Held, most: Option<u32>, now: Time) -> bool {
        self.move_to(now);
        let series = Series::of_held(held);
        let share = self.shares.with(&held.namespace, self.shares.rate_of(series.period), 0);
        most.is_none_or(|most| share <= u64::from(most) * 1000)
            && self.projection.fits_from(series.first, series.period)
    }

    /// Notes a request of `uid` that is under way, in place of what was noted before.
    pub fn open(&mut self, uid: &Uid, open: &Open) {
        let before = self.projection.open(uid, open);
        self.planned(uid, before);
    }

    /// Forgets what `uid` holds.
    pub fn release(&mut self, uid: &Uid) {
        self.own_tries.release(uid.as_str());
        let before = self.projection.release(uid.as_str());
        if before.is_some() {
            self.planned(uid, before);
        }
    }

    /// Follows up a change of what is planned for `uid`.
    fn planned(&mut self, uid: &Uid, before: Option<Series>) {
        if let Some(old) = before {
            self.shares.remove(&old.namespace, old.period);
            self.queue.share_changed(&old.namespace, &self.shares);
        }
        if let Some(new) = self.projection.get(uid.as_str()) {
            self.shares.add(&new.namespace, new.period);
            self.queue.share_changed(&new.namespace, &self.shares);
        }
        let credential_state = self.credential_state(uid.as_str());
        self.queue.set_standing(uid.as_str(), credential_state, &self.shares);
        self.memo.clear();
    }

    fn credential_state(&self, uid: &str) -> CredentialState {
        let series = self.projection.get(uid);
        series.map_or_else(CredentialState::default, |s| standing_of(s.first, s.ends))
    }

    /// Puts somebody in line, or updates what they want: whoever stays a newcomer, or a renewal, has waited
    /// since they first asked. Says whether anything changed.
    pub fn enqueue(&mut self, demand: Demand) -> bool {
        let credential_state = self.credential_state(demand.uid.as_str());
        self.queue.put(demand, credential_state, &self.shares)
    }

    /// Takes somebody out of the line. Says whether they were in it.
    pub fn dequeue(&mut self, uid: &Uid) -> bool {
        self.queue.take(uid.as_str(), &self.shares)
    }

    /// Does not consider somebody in line before `until`: they rest, or are being worked on.
    pub fn set_aside(&mut self, uid: &Uid, until: Time) {
        self.queue.rest(uid.as_str(), Some(nanos(until)), &self.shares);
    }

    /// Half of the runway of the live token of `uid`, where there is one: from then on it asks whoever waits.
    #[must_use]
    pub fn half_of_runway(&self, uid: &Uid) -> Option<Time> {
        self.own_tries.half(uid.as_str()).map(instant)
    }

    /// Whether `uid` has yet to make the try that its live token keeps a slot for.
    #[must_use]
    pub fn owes_own_try(&self, uid: &Uid) -> bool {
        self.own_tries.is_owed(uid.as_str())
    }

    /// What is to spare for tries that may fail, as of the last look; more than 16 are not told apart.
    #[must_use]
    pub fn spare(&self, now: Time) -> Spare {
        let affords = |more: &u32| self.own_tries.afford(&self.projection, i64::from(*more));
        Spare {
            tries: (1..=SPARED).take_while(affords).last().unwrap_or(0),
            until: self.own_tries.first_after(nanos(now)).map(instant),
        }
    }

    /// What all are told who wait behind those at the front: newcomers, or renewals.
    #[must_use]
    pub fn behind(&self, newcomers: bool) -> Option<&Waiting> {
        if newcomers {
            self.last.newcomers.as_ref()
        } else {
            self.last.renewals.as_ref()
        }
    }

    /// How many are in line, those who are set aside included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nobody is in line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Says who may mint at `now`, at most `most`, and no more than there is room for in a journal. Nothing is
    /// noted as sent or open by that: the caller does so for what it commits.
    pub fn select(&mut self, now: Time, most: usize, stops: &Stops) -> Selection {
        self.last = Last::default();
        if self.limits.is_empty() {
            return Selection::default();
        }
        self.move_to(now);
        let pass = Pass {
            queue: &self.queue,
            own_tries: &self.own_tries,
            shares: &self.shares,
            stops,
            now,
            most,
        };
        let mut outcome = pass.run(&mut self.projection, &mut self.memo);
        let spending = Spending::of(&self.projection);
        self.projection.take_back(std::mem::take(&mut outcome.undo));
        self.projection.settle();
        self.conclude(outcome, spending, now, stops)
    }

    /// Lets go of the room that whoever was in line took, once nobody is: there may be thousands of budgets, and in most
    /// of them nobody waits most of the time.
    pub fn shed(&mut self) {
        if self.queue.len() == 0 {
            self.queue = Queue::default();
            self.memo = Memo::default();
            self.last = Last::default();
            self.projection.shed();
        }
    }

    /// Brings everything to `now`.
    fn move_to(&mut self, now: Time) {
        let now = nanos(now);
        let (ended, moved) = self.projection.move_to(now);
        for (uid, series) in ended {
            self.own_tries.release(uid.as_str());
            self.planned(&uid, Some(series));
        }
        if moved {
            self.memo.clear();
        }
        let shortest = self.projection.timelines.iter().map(|t| t.window).min();
        self.memo.move_to(now, shortest.unwrap_or(0) / 16);
        self.queue.move_to(now, &self.shares);
    }

    /// Why `uid`, which is in line, was not admitted at the last look. `None` where it was, or waits but for
    /// a moment.
    #[must_use]
    pub fn waiting(&self, uid: &Uid) -> Option<Waiting> {
        let demand = self.queue.in_line(uid.as_str())?;
        if self.last.admitted.contains(uid) {
            return None;
        }
        if let Some(waiting) = self.last.front.get(uid) {
            return Some(waiting.clone());
        }
        if self.last.is_moment(demand) {
            return None;
        }
        self.behind(demand.reason.is_newcomer()).cloned()
    }
}
