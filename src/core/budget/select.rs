//! One look at the line: who may mint now, and what everybody else waits for.

use std::collections::{HashMap, HashSet};

use chrono::TimeDelta;

use crate::core::Time;
use crate::core::ids::Uid;
use crate::planted::{Bug, is_planted};

use super::demand::Group;
use super::line::Line;
use super::nanos::{instant, nanos};
use super::projection::Projection;
use super::queue::Queue;
use super::search::{Memo, Search};
use super::series::{ONCE, Series, expected_period};
use super::shares::Shares;
use super::slots::Slot;
use super::spare::OwnTries;
use super::text::Why;
use super::{FRONT, Stops};

/// Claims that may be open at once: each takes room in the journal until its outcome is known. Newcomers leave
/// some to renewals.
const MAX_OPEN: usize = 64;
pub(super) const MAX_OPEN_NEWCOMERS: usize = 48;
/// As many: what a pass admits of newcomers at most.
const MOST_IN_A_PASS: i64 = 48;
/// Periods that differ by less, in nanoseconds, are the same: ends are whole seconds.
const ROUNDING: i64 = 2_000_000_000;
/// Tokens that live shorter than planned by such a part at most are as planned.
const ABOUT: i64 = 20;
/// How long an answer takes where the server is slow, in nanoseconds.
const ANSWER: i64 = 6_000_000_000;
/// Renewals that are looked at before they are due, in one pass.
const EARLY: usize = 32;

/// What one look is about.
pub(super) struct Pass<'a> {
    pub(super) queue: &'a Queue,
    pub(super) own_tries: &'a OwnTries,
    pub(super) shares: &'a Shares,
    pub(super) stops: &'a Stops,
    pub(super) now: Time,
    /// How many may be admitted.
    pub(super) most: usize,
}

/// Whether the token of `uid` lives about as long as was planned for it: then its renewal can go on at that rate.
fn keeps_its_rate(projection: &Projection, uid: &Uid) -> bool {
    let live = projection.get(uid.as_str());
    live.is_some_and(|live| live.period + live.keeps / ABOUT + ROUNDING >= live.keeps)
}

/// Whether somebody asks, or is about to.
fn is_under_way(search: &Search, outcome: &Outcome) -> bool {
    search.projection.open_claims() > 0 || !outcome.admitted.is_empty()
}

/// How often a token is renewed that is about to be minted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// As its spec asks.
    AsAsked,
    /// As often as the token that it replaces: for more there is no room.
    AsBefore,
}

/// What somebody was admitted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Time from one renewal to the next, where it is known how long tokens live.
    pub period: Option<TimeDelta>,
    /// Whether that is what was asked for.
    pub rate: Rate,
}

/// What it led to.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) admitted: Vec<Uid>,
    pub(super) rates: HashMap<Uid, Admitted>,
    pub(super) newcomers: usize,
    /// The renewals that come first, and why they wait,
    pub(super) renewals: Vec<(Uid, Why)>,
    /// and why those behind do.
    pub(super) other_renewals: Option<Why>,
    /// The newcomers that come first, in order,
    pub(super) front: Vec<(Uid, Why)>,
    /// and why those behind wait. `None` where they wait but for a moment, which is nothing to tell of.
    pub(super) behind: Option<Why>,
    /// When the first in line gets a slot.
    pub(super) next_slot: Option<Time>,
    /// When to go on, where not all were looked at.
    pub(super) again: Option<Time>,
    /// What was planned before for those who are tried out.
    pub(super) undo: Vec<(Uid, Option<Series>)>,
}

impl Pass<'_> {
    /// Looks at everybody whose turn comes. Those it admits are tried out in `projection`, until they are
    /// taken back.
    pub(super) fn run(&self, projection: &mut Projection, memo: &mut Memo) -> Outcome {
        let mut search = Search::new(projection, memo, nanos(self.now));
        let mut outcome = Outcome::default();
        self.renewals(&mut search, &mut outcome);
        self.newcomers(&mut search, &mut outcome);
        outcome.undo = search.undo;
        outcome
    }

    /// What somebody in line is expected to need from now on.
    fn period(&self, projection: &Projection, uid: &Uid) -> Option<i64> {
        let demand = self.queue.in_line(uid.as_str())?;
        if !demand.renews {
            return Some(ONCE);
        }
        let expected = expected_period(projection.typical(), demand.renew_before, demand.max_lifetime);
        let live = projection.get(uid.as_str()).filter(|_| !demand.reason.is_newcomer());
        // What is renewed lives no longer than before, whatever others do.
        Some(live.map_or(expected, |series| series.period.min(expected)))
    }

    /// Whether no more may be admitted now, where so many claims may be open at once.
    fn is_full(&self, search: &Search, outcome: &mut Outcome, open: usize) -> bool {
        let room = open.saturating_sub(search.projection.open_claims()).min(self.most);
        let full = outcome.admitted.len() >= room;
        if full {
            outcome.again = Why::NotYet.until(self.now);
        }
        full
    }

    fn admit(&self, search: &mut Search, outcome: &mut Outcome, uid: &Uid, rate: Rate) {
        let live = search.projection.get(uid.as_str());
        let periods = match rate {
            Rate::AsAsked => self.period(search.projection, uid).map(|asked| (asked, asked)),
            Rate::AsBefore => live.map(|live| (live.period, live.keeps)),
        };
        if let (Some(demand), Some((period, keeps))) = (self.queue.in_line(uid.as_str()), periods) {
            // Before any token was seen it is but assumed how long they live.
            let known = search.projection.typical().filter(|_| period < ONCE);
            let known = known.map(|_| TimeDelta::nanoseconds(keeps));
            outcome.rates.insert(uid.clone(), Admitted { period: known, rate });
            search.admit(uid, &demand.name.namespace, period);
            outcome.admitted.push(uid.clone());
        }
    }

    fn blocked(&self) -> Option<Why> {
        let until = self.stops.blocked_until.filter(|at| *at > self.now);
        until.map(Why::Blocked)
    }

    /// Those that are due and can be kept, by end, then those that end first, then those that may go early, by end.
    fn renewals(&self, search: &mut Search, outcome: &mut Outcome) {
        let backlog = (self.stops.backlog_percent >= 100).then_some(Why::Backlog);
        let stopped = backlog.or_else(|| self.blocked());
        let mut left = EARLY;
        let now = nanos(self.now);
        // Whoever ends before an answer can be had is not kept by one, and leaves the slot to those whom it does keep.
        let in_time = (now.saturating_add(ANSWER), Uid::from(""));
        let due = self.queue.due.range(in_time.clone()..);
        let due = due.chain(self.queue.due.range(..in_time)).map(|(_, uid)| (true, uid));
        let early = self.queue.early.iter().map(|(_, uid)| (false, uid));
        // As of the last one who was admitted.
        let (mut spare, mut known) = (true, false);
        for (is_due, uid) in due.chain(early) {
            let own = self.own_tries.is_due(uid.as_str(), now);
            // What a server asks for ends at half of the runway; what it did not ask for does for all tries after that.
            let past_half = self.own_tries.is_past_half(uid.as_str(), now);
            let unasked = self.stops.guessed && past_half;
            let mut why = if own || unasked { backlog } else { stopped };
            if why.is_none() && !past_half && self.stops.probing && is_under_way(search, outcome) {
                // Its answer is awaited: a moment, and nothing to tell of; up to half of the runway at most.
                if is_due {
                    let half = self.own_tries.half_after(uid.as_str(), now).map(instant);
                    outcome.again = [outcome.again, half].into_iter().flatten().min();
                    continue;
                }
                return;
            }
            if why.is_none() {
                let free = search.projection.is_free_now();
                let faster = self.is_faster(search.projection, uid);
                if free && !own && spare && !known {
                    spare = self.own_tries.afford(search.projection, 1);
                    known = true;
                }
                let free = free && (own || spare) || is_due && is_planted(Bug::RenewalUnprojected);
                let may = free && (is_due && !faster || left > 0 && self.fits(search, &mut left, uid, !faster));
                let keeps = free && !may && is_due && keeps_its_rate(search.projection, uid);
                if may || keeps {
                    if self.is_full(search, outcome, MAX_OPEN) {
                        return;
                    }
                    let rate = if may { Rate::AsAsked } else { Rate::AsBefore };
                    self.admit(search, outcome, uid, rate);
                    known = false;
                    continue;
                }
                let latest = if is_due {
                    0
                } else {
                    self.queue.credential_state(uid.as_str()).latest
                };
                let mut slot = search.projection.next_free().max(latest);
                if !spare && !own {
                    let half = self.own_tries.half_after(uid.as_str(), now);
                    let freed = search.projection.next_freed();
                    slot = slot.max([half, freed].into_iter().flatten().min().unwrap_or(slot));
                }
                let slot = instant(slot);
                why = Some(Why::NoSlot(Some(slot).filter(|_| !free || !is_due)));
            }
            let Some(why) = why else { continue };
            if outcome.renewals.len() < FRONT {
                outcome.renewals.push((uid.clone(), why));
                continue;
            }
            outcome.other_renewals = Some(why);
            if !search.projection.is_free_now() {
                return;
            }
            if is_due && (self.stops.guessed || self.stops.probing || self.own_tries.is_any_due(now)) {
                continue;
            }
            if stopped.is_some() || left == 0 && !is_due || !spare {
                return;
            }
        }
    }

    /// Whether a token of `uid` now would be renewed more often than is planned for the one it replaces, since its
    /// spec says so: what that takes more it asks for like a newcomer.
    fn is_faster(&self, projection: &Projection, uid: &Uid) -> bool {
        let asked = self.queue.in_line(uid.as_str()).zip(projection.get(uid.as_str()));
        asked.is_some_and(|(demand, live)| live.period_of_next(demand) + ROUNDING < live.keeps)
    }

    fn fits(&self, search: &mut Search, left: &mut usize, uid: &Uid, renewal: bool) -> bool {
        *left -= 1;
        self.period(search.projection, uid)
            .filter(|period| renewal || self.is_within_its_most(search.projection, uid, *period))
            .is_some_and(|period| search.may_renew(uid, period, renewal))
    }

    /// Whether a namespace keeps within what it may take where its token `uid` is renewed at another rate.
    fn is_within_its_most(&self, projection: &Projection, uid: &Uid, period: i64) -> bool {
        let asked = self.queue.in_line(uid.as_str()).zip(projection.get(uid.as_str()));
        let Some((most, live)) = asked.and_then(|(demand, live)| Some((demand.most?, live))) else {
            return true;
        };
        let more = self
            .shares
            .rate_of(period)
            .saturating_sub(self.shares.rate_of(live.period));
        self.shares.with(&live.namespace, more, 0) <= u64::from(most) * 1000
    }

    /// What keeps all newcomers waiting.
    fn stopped(&self) -> Option<Why> {
        let stops = self.stops;
        self.blocked()
            .or_else(|| (stops.backlog_percent >= 80).then_some(Why::Backlog))
            .or_else(|| stops.lost_until.filter(|at| *at > self.now).map(Why::Lost))
    }

    fn newcomers(&self, search: &mut Search, outcome: &mut Outcome) {
        if !self.stops.newcomers {
            return;
        }
        // Why all wait, once the first in line does.
        let mut closed = self.stopped();
        let mut line = Line::new(self.queue, self.shares);
        let mut settled = HashSet::new();
        let (all, mut plenty) = (MOST_IN_A_PASS, None);
        while let Some(candidate) = line.next() {
            let listed = outcome.front.len() < FRONT;
            if !listed && (closed.is_some() || search.is_spent()) {
                break;
            }
            let Some(period) = self.period(search.projection, candidate.uid()) else {
                continue;
            };
            let Group { holds, .. } = candidate.group;
            let rate = if holds { 0 } else { self.shares.rate_of(period) };
            let (has, would) = line.share_with(&candidate, rate);
            if let Some(most) = candidate.group.most.filter(|most| would > u64::from(*most) * 1000) {
                // Nor may the others of its group: they are passed over.
                if listed {
                    let needs = rate.max(1000);
                    outcome
                        .front
                        .push((candidate.uid().clone(), Why::Capped { most, has, needs }));
                }
                continue;
            }
            if let Some(why) = closed {
                outcome.front.push((candidate.uid().clone(), why));
                line.placed(&candidate, rate);
                continue;
            }
            if self.is_moment(search, outcome) {
                return;
            }
            let why = match search.slot(candidate.uid(), candidate.namespace(), period, holds) {
                Slot::At(at) if at <= nanos(self.now) => {
                    // The projection takes what is under way to be answered: should it fail, each live token still has
                    // its own try. That is known in a moment.
                    if is_under_way(search, outcome) {
                        // Asked once for all that a pass may admit: that there is plenty is most often the answer.
                        let plenty = *plenty.get_or_insert_with(|| self.own_tries.afford(search.projection, all));
                        if !plenty && !self.own_tries.afford(search.projection, 1) {
                            return;
                        }
                    }
                    self.admit(search, outcome, candidate.uid(), Rate::AsAsked);
                    outcome.newcomers += 1;
                    line.placed(&candidate, rate);
                    continue;
                }
                Slot::At(at) => {
                    // Whoever is first in line is not overtaken; those behind share its next slot.
                    outcome.next_slot = Some(instant(at));
                    let why = Why::NoSlot(outcome.next_slot);
                    closed = Some(why);
                    why
                }
                Slot::Never => Why::NoSlot(None),
                Slot::Unknown => {
                    outcome.again = Why::NotYet.until(self.now);
                    Why::NotYet
                }
            };
            if listed {
                outcome.front.push((candidate.uid().clone(), why));
            }
            if closed.is_some() {
                line.placed(&candidate, rate);
            } else if listed || holds {
                line.go_on(&candidate);
            } else if settled.insert(candidate.group) && self.is_hopeless(search) {
                break;
            }
        }
        outcome.behind = Some(closed.unwrap_or(Why::NoSlot(None)));
    }

    /// Whether newcomers go on as soon as what was admitted is under way, or the first one is answered.
    fn is_moment(&self, search: &Search, outcome: &mut Outcome) -> bool {
        // The first answer of a scope teaches how long tokens live; until then one newcomer is enough.
        (self.stops.teaching || self.stops.probing) && is_under_way(search, outcome)
            || self.is_full(search, outcome, MAX_OPEN_NEWCOMERS)
    }

    /// Whether nobody in line has anything to hope for, as far as that can be told with little work.
    fn is_hopeless(&self, search: &Search) -> bool {
        self.queue.groups.len() <= 64
            && self.queue.groups.keys().all(|group| {
                let period = group.period(search.projection.typical());
                !group.holds && search.is_hopeless(period)
            })
    }
}
