//! The future of a budget: every live credential renewed at its latest safe times.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;

use crate::api::Reason;
use crate::core::journal::{Claim, Journal};
use crate::core::schedule::runway;
use crate::core::{Time, clock};

use super::{
    ASSUMED_LIFETIME, Demand, Guests, Limit, MAX_EVENTS, Selection, Usage, Waiting, live_latest, rebuilt_until,
};

/// The time from one renewal to the next, if each is made at its latest safe time.
///
/// Ends are whole seconds, answers are not: lifetimes that differ by such a fraction are the same, or
/// renewals that will stay in step would be projected to drift into each other.
pub(super) fn period(lifetime: TimeDelta, renew_before: Option<TimeDelta>) -> TimeDelta {
    let lifetime = whole_seconds(lifetime);
    (lifetime - runway(lifetime, renew_before)).max(TimeDelta::milliseconds(100))
}

pub(super) fn whole_seconds(lifetime: TimeDelta) -> TimeDelta {
    TimeDelta::seconds((lifetime.num_milliseconds() + 999).div_euclid(1000))
}

/// Requests in order, with whether each is only planned.
type Requests = Vec<(Time, bool)>;

pub(super) struct Projection<'a> {
    title: &'a str,
    limits: &'a [Limit],
    typical: Option<TimeDelta>,
    /// Requests that count, oldest first.
    sent: Vec<Time>,
    /// Next latest safe renewal and period of everybody who holds or gets a token, by uid.
    renewals: BTreeMap<String, (Time, TimeDelta)>,
}

impl<'a> Projection<'a> {
    pub(super) fn new(journal: &'a Journal, guests: &Guests, limits: &'a [Limit], now: Time) -> Self {
        let typical = journal.typical_lifetime.map(TimeDelta::seconds);
        let sent = journal.sent().into_iter();
        let sent: Vec<Time> = sent
            .flat_map(|(at, count)| std::iter::repeat_n(at, count as usize))
            .collect();
        let mut renewals = BTreeMap::new();
        for (uid, guest) in guests.iter().filter(|(_, g)| g.ends_at > now) {
            let period = period(guest.ends_at - guest.issued_at, guest.renew_before);
            renewals.insert(uid.clone(), (guest.latest().max(now), period));
        }
        for (uid, record) in &journal.credentials {
            if let Some(live) = record.live.as_ref().filter(|l| l.ends_at > now) {
                let period = period(live.ends_at - live.issued_at, live.renew_before());
                renewals.insert(uid.to_string(), (live_latest(live).max(now), period));
            }
        }
        for (uid, claim) in &journal.claims {
            let period = period(typical.unwrap_or(ASSUMED_LIFETIME), claim_renew_before(claim));
            renewals.insert(uid.to_string(), (claim.at + period, period));
        }
        Self {
            title: journal.scope.title(),
            limits,
            typical,
            sent,
            renewals,
        }
    }

    pub(super) fn period_of(&self, demand: &Demand) -> TimeDelta {
        let lifetime = self.typical.unwrap_or(ASSUMED_LIFETIME);
        let lifetime = demand.max_lifetime.map_or(lifetime, |max| max.min(lifetime));
        period(lifetime, demand.renew_before)
    }

    pub(super) fn used(&self, limit: Limit, now: Time) -> usize {
        self.sent.iter().filter(|at| **at + limit.counts_for() > now).count()
    }

    pub(super) fn free_now(&self, now: Time) -> bool {
        self.limits.iter().all(|l| self.used(*l, now) < l.limit as usize)
    }

    /// When a slot is free at all.
    pub(super) fn next_free(&self, now: Time) -> Option<Time> {
        self.limits
            .iter()
            .filter_map(|l| {
                let counted = l.counts_for();
                let used: Vec<Time> = self.sent.iter().copied().filter(|at| *at + counted > now).collect();
                let limit = l.limit as usize;
                (used.len() >= limit).then(|| used[used.len() - limit] + counted)
            })
            .max()
    }

    pub(super) fn admits(&self, demand: &Demand, due: bool, now: Time) -> bool {
        self.free_now(now) && (due || self.limits.iter().all(|l| self.fits(*l, demand, now, now)))
    }

    /// Whether `demand`, minted at `at`, leaves every window within the limit.
    pub(super) fn fits(&self, limit: Limit, demand: &Demand, at: Time, now: Time) -> bool {
        if self.fits_in_any_phase(limit, demand, at) {
            return true;
        }
        let until = self.horizon(limit, demand, now);
        let others = self.events(until, Some(&demand.uid));
        if others.len() >= MAX_EVENTS {
            // More than any limit has room for.
            return false;
        }
        let with = self.excess_with(&others, limit, demand, at, until);
        // What others have come to need (a limit turned out smaller, an end was rounded down) is not
        // the newcomer's doing; adding to it would be.
        let standing = if demand.kind.is_newcomer() {
            excess(&others, limit)
        } else {
            // A renewal may go early where that makes nothing worse than its latest safe time would.
            excess(&self.events(until, None), limit)
        };
        with <= standing
    }

    pub(super) fn excess_with(
        &self,
        others: &[(Time, bool)],
        limit: Limit,
        demand: &Demand,
        at: Time,
        until: Time,
    ) -> usize {
        let period = self.period_of(demand);
        let mut with = others.to_vec();
        push_series(&mut with, (at, period), until);
        // Two sorted runs: the sort merges them.
        with.sort();
        excess(&with, limit)
    }

    /// Enough, whatever the phases of the renewals: what every window can hold at most.
    pub(super) fn fits_in_any_phase(&self, limit: Limit, demand: &Demand, at: Time) -> bool {
        let most = |period: TimeDelta| {
            let window = limit.counts_for().num_milliseconds();
            let period = period.num_milliseconds().max(1);
            usize::try_from((window + period - 1) / period).unwrap_or(usize::MAX)
        };
        let others: usize = self
            .renewals
            .iter()
            .filter(|(uid, _)| **uid != demand.uid)
            .map(|(_, (_, period))| most(*period))
            .sum();
        self.used(limit, at) + others + most(self.period_of(demand)) < limit.for_newcomers()
    }

    /// How far is looked ahead: a dozen rounds of the slowest, as far as the renewals of all, `demand`'s too,
    /// are not too many until then; in two windows they are only where no limit has room for them.
    pub(super) fn horizon(&self, limit: Limit, demand: &Demand, now: Time) -> Time {
        const HOUR: i64 = 3_600_000;
        let periods = || self.renewals.values().map(|(_, p)| *p).chain([self.period_of(demand)]);
        let longest = periods().max().unwrap_or(ASSUMED_LIFETIME);
        let wanted = (limit.window + longest) * 12;
        let an_hour: i64 = periods().map(|p| HOUR / p.num_milliseconds().max(1) + 1).sum();
        let hours = i64::try_from(MAX_EVENTS / 2).unwrap_or(i64::MAX) / an_hour;
        let room = TimeDelta::milliseconds(hours.saturating_mul(HOUR).min(i64::MAX / 2));
        now + wanted.min(room).max(limit.window * 2)
    }

    /// Everything sent, and the projected renewals of everybody but `without` until then, in order.
    pub(super) fn events(&self, until: Time, without: Option<&str>) -> Requests {
        let mut events: Vec<(Time, bool)> = self.sent.iter().map(|at| (*at, false)).collect();
        for (uid, series) in &self.renewals {
            if without != Some(uid) {
                push_series(&mut events, *series, until);
            }
            if events.len() > MAX_EVENTS {
                break;
            }
        }
        events.sort();
        events
    }

    /// The first time at which a slot frees that `demand` may take; `None` while the others live.
    pub(super) fn next_for_newcomer(&self, demand: &Demand, now: Time) -> Option<Time> {
        let longest = self.renewals.values().map(|(_, p)| *p).max().unwrap_or_default();
        let per_limit: Vec<(Limit, Time, Requests)> = self
            .limits
            .iter()
            .map(|l| {
                let until = self.horizon(*l, demand, now);
                (*l, until, self.events(until, Some(&demand.uid)))
            })
            .collect();
        if per_limit.iter().any(|(_, _, events)| events.len() >= MAX_EVENTS) {
            return None;
        }
        let mut candidates: BTreeSet<Time> = BTreeSet::new();
        for (l, _, events) in &per_limit {
            let until = now + l.window * 2 + longest;
            let frees = events.iter().map(|(event, _)| *event + l.counts_for());
            candidates.extend(frees.filter(|at| *at > now && *at <= until));
        }
        candidates.into_iter().take(96).find(|at| {
            per_limit
                .iter()
                .all(|(l, until, events)| self.excess_with(events, *l, demand, *at, *until) <= excess(events, *l))
        })
    }

    pub(super) fn add(&mut self, demand: &Demand, now: Time) {
        let period = self.period_of(demand);
        // Unanswered it counts from its timeout on; that only postpones others.
        self.sent.push(now);
        self.renewals.insert(demand.uid.clone(), (now + period, period));
    }

    pub(super) fn tightest(&self) -> Option<Limit> {
        self.limits.iter().copied().min()
    }

    pub(super) fn kept(&self, limit: Limit, now: Time) -> usize {
        let used = self.used(limit, now);
        let mut due = Vec::new();
        for series in self.renewals.values() {
            push_series(&mut due, *series, now + limit.window);
        }
        let due = due.len();
        let retry = limit.limit as usize - limit.for_newcomers();
        (due + retry).min((limit.limit as usize).saturating_sub(used))
    }

    pub(super) fn wait(
        &self,
        reason: Reason,
        position: usize,
        next_slot: Option<Time>,
        now: Time,
        journal: &Journal,
    ) -> Waiting {
        let message = if let Some(until) = journal.throttle.blocked_until.filter(|at| *at > now) {
            format!(
                "ChittyConnect asked to leave {} alone until {}; it is asked again then",
                self.title,
                clock(until, now)
            )
        } else if let Some(until) = rebuilt_until(journal, self.limits).filter(|at| *at > now && position > 0) {
            format!(
                "the journal of {} was lost and rebuilt; new credentials wait until {}, when all that it forgot has left the window",
                self.title,
                clock(until, now)
            )
        } else if let Some(limit) = self.tightest() {
            let mut text = format!(
                "{} may mint {} times in {}: {} used, {} kept for renewals",
                self.title,
                limit.limit,
                window_text(limit.window),
                self.used(limit, now),
                self.kept(limit, now),
            );
            match next_slot {
                Some(at) => text = format!("{text}; next slot {}", clock(at, now)),
                None => text.push_str("; no slot frees while the live credentials are renewed"),
            }
            if position > 0 {
                text = format!("{text}, position {position}");
            }
            text
        } else {
            String::new()
        };
        Waiting {
            reason,
            position,
            next_slot,
            message,
        }
    }

    /// Tells everybody who waits when all of them together can never be live.
    pub(super) fn explain_excess(&self, demands: &[&Demand], selection: &mut Selection) {
        let Some(limit) = self.tightest() else { return };
        if selection.waiting.is_empty() {
            return;
        }
        let mut periods: BTreeMap<&str, TimeDelta> =
            self.renewals.iter().map(|(uid, (_, p))| (uid.as_str(), *p)).collect();
        for demand in demands {
            periods.entry(&demand.uid).or_insert_with(|| self.period_of(demand));
        }
        // Tenths, so that "1.5 renewals" is exact enough to read and nothing is a float.
        let window = limit.window.num_milliseconds();
        let tenths: i64 = periods
            .values()
            .map(|p| window * 10 / p.num_milliseconds().max(1))
            .sum();
        if tenths <= i64::from(limit.limit) * 10 {
            return;
        }
        let each = tenths / i64::try_from(periods.len()).unwrap_or(1).max(1);
        let text = format!(
            "; {} of {} with about {}.{} renewals in {} each need {} of its {}: not all can be live at once",
            if periods.len() == 1 {
                "1 credential".to_owned()
            } else {
                format!("{} credentials", periods.len())
            },
            self.title,
            each / 10,
            each % 10,
            window_text(limit.window),
            (tenths + 9) / 10,
            limit.limit
        );
        for waiting in selection
            .waiting
            .values_mut()
            .filter(|w| w.reason == Reason::RateLimited && w.position > 0)
        {
            waiting.message.push_str(&text);
        }
    }

    pub(super) fn usage(
        &self,
        now: Time,
        waiting: usize,
        next_slot: Option<Time>,
        blocked_until: Option<Time>,
    ) -> Usage {
        let Some(limit) = self.tightest() else {
            return Usage::default();
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Usage {
            limit: limit.limit,
            used: count(self.used(limit, now)),
            kept: count(self.kept(limit, now)),
            waiting: count(waiting),
            next_slot,
            blocked_until,
        }
    }
}

pub(super) fn claim_renew_before(claim: &Claim) -> Option<TimeDelta> {
    claim.renew_before_ms.map(TimeDelta::milliseconds)
}

pub(super) fn push_series(events: &mut Requests, (first, period): (Time, TimeDelta), until: Time) {
    let mut at = first;
    while at <= until && events.len() <= MAX_EVENTS {
        events.push((at, true));
        at += period;
    }
}

/// How many requests are too many: those that follow the ones before them too closely.
pub(super) fn excess(events: &[(Time, bool)], limit: Limit) -> usize {
    let cap = limit.for_newcomers();
    events
        .windows(cap + 1)
        // What was sent was sent; only what is planned can be too much.
        .filter(|w| {
            let ((first, _), (last, planned)) = (w[0], w[cap]);
            planned && last - first < limit.counts_for()
        })
        .count()
}

pub(super) fn window_text(window: TimeDelta) -> String {
    match window.num_seconds() {
        3600 => "an hour".to_owned(),
        s if s % 3600 == 0 => format!("{} hours", s / 3600),
        60 => "a minute".to_owned(),
        s if s % 60 == 0 => format!("{} minutes", s / 60),
        s => format!("{s} seconds"),
    }
}
