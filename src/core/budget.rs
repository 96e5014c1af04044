//! Who may mint now, and who waits how long.
//!
//! The rule: a mint is admitted only if, with the renewals of every live credential projected at
//! their latest safe times, no sliding window exceeds the limit. Renewals at their latest safe time
//! need only a free slot now, which that rule has kept for them. Newcomers share what is left,
//! namespace by namespace, and one slot is kept for a retry where the limit allows.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;

use super::journal::{AUDIT_CAPACITY, Claim, Journal, Kind, Live, SIZE_LIMIT};
use super::schedule::{latest_safe, runway};
use super::{Time, clock};
use crate::api::Reason;

/// A lifetime to plan with before `ChittyConnect` has shown one: what it documents.
const ASSUMED_LIFETIME: TimeDelta = TimeDelta::hours(1);
/// How many windows a limit learnt from a 429 is remembered.
const LEARNT_FOR_WINDOWS: i32 = 24;
/// Bounds the work of one projection.
const MAX_EVENTS: usize = 20_000;

/// So many requests in any window of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit {
    /// Requests.
    pub limit: u32,
    /// Length of the sliding window.
    pub window: TimeDelta,
}

impl Limit {
    /// What newcomers may fill: one slot is kept for a retry where the limit allows.
    fn for_newcomers(self) -> usize {
        let limit = self.limit as usize;
        if limit >= 3 { limit - 1 } else { limit }
    }

    /// A projected request is answered a little after it is planned; the next one must not be
    /// planned for the instant its slot frees.
    fn pad(self) -> TimeDelta {
        (self.window / 100).min(TimeDelta::seconds(5))
    }
}

/// Somebody who wants to mint.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// The credential.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub kind: Kind,
    /// Since when.
    pub since: Time,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
    /// Longest use of a token.
    pub max_lifetime: Option<TimeDelta>,
    /// A Pod waits for the Secret.
    pub pod_waits: bool,
}

/// Why somebody is not admitted now.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// `RateLimited` or `AuditBacklog`.
    pub reason: Reason,
    /// Place in the queue, from 1; 0 for renewals.
    pub position: usize,
    /// When the next slot frees, as far as that can be told.
    pub next_slot: Option<Time>,
    /// How the budget stands, for a person.
    pub message: String,
}

/// Who may mint now, and what everybody else waits for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Uids to admit, in order.
    pub admitted: Vec<String>,
    /// The others.
    pub waiting: BTreeMap<String, Waiting>,
    /// When to look again.
    pub wake: Option<Time>,
    /// How the budget stands.
    pub usage: Usage,
}

/// How a budget stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The limit in force.
    pub limit: u32,
    /// Requests in the window now.
    pub used: u32,
    /// Kept for renewals, and for a retry.
    pub kept: u32,
    /// Newcomers waiting.
    pub waiting: u32,
    /// When the next newcomer can be admitted.
    pub next_slot: Option<Time>,
    /// Until when the server asked to be left alone.
    pub blocked_until: Option<Time>,
}

/// The limits in force: the smallest for each window, and what the server taught.
#[must_use]
pub fn effective(limits: &[Limit], journal: &Journal, now: Time) -> Vec<Limit> {
    let mut by_window: BTreeMap<TimeDelta, u32> = BTreeMap::new();
    for l in limits {
        by_window
            .entry(l.window)
            .and_modify(|least| *least = (*least).min(l.limit))
            .or_insert(l.limit);
    }
    by_window
        .into_iter()
        .map(|(window, limit)| Limit {
            limit: match journal.throttle.learnt {
                Some((learnt, at)) if at + window * LEARNT_FOR_WINDOWS > now => limit.min(learnt.max(1)),
                _ => limit,
            },
            window,
        })
        .collect()
}

/// What a 429 without advice teaches: the server allowed no more than what it answered before.
pub fn learn(journal: &mut Journal, limits: &[Limit], refused_claim: &str, now: Time) {
    let Some(tightest) = effective(limits, journal, now).into_iter().min() else {
        return;
    };
    let granted = journal
        .attempts
        .iter()
        .filter(|a| a.claim != refused_claim && a.at + tightest.window > now)
        .count();
    if let Ok(granted) = u32::try_from(granted)
        && granted < tightest.limit
    {
        journal.throttle.learnt = Some((granted.max(1), now));
    }
}

/// Decides for every demand of a scope at once.
#[must_use]
pub fn select(journal: &Journal, demands: &[Demand], limits: &[Limit], now: Time) -> Selection {
    let limits = effective(limits, journal, now);
    let mut plan = Projection::new(journal, &limits, now);
    let mut selection = Selection::default();
    let blocked_until = journal.throttle.blocked_until.filter(|at| *at > now);
    let backlog = journal.audit.len();

    let mut renewals: Vec<&Demand> = demands.iter().filter(|d| !d.kind.is_newcomer()).collect();
    renewals.sort_by_key(|d| (live_end(journal, &d.uid), d.uid.as_str()));
    for demand in renewals {
        let latest = journal
            .credentials
            .get(&demand.uid)
            .and_then(|r| r.live.as_ref())
            .map(live_latest);
        let due = latest.is_none_or(|at| at <= now);
        let verdict = if backlog >= AUDIT_CAPACITY {
            Err(backlog_full(now))
        } else if let Some(at) = blocked_until {
            Err(plan.wait(Reason::RateLimited, 0, Some(at), now, journal))
        } else if plan.admits(demand, due, now) {
            Ok(())
        } else {
            let slot = plan.next_free(now);
            let next = if due { slot } else { slot.max(latest) };
            Err(plan.wait(Reason::RateLimited, 0, next, now, journal))
        };
        selection.take(demand, verdict, &mut plan, now);
    }

    let mut newcomers: Vec<&Demand> = demands.iter().filter(|d| d.kind.is_newcomer()).collect();
    let mut slots = slots_by_namespace(journal, now, &limits);
    let held = blocked_until
        .map(|at| (Reason::RateLimited, Some(at)))
        .or_else(|| (backlog * 5 >= AUDIT_CAPACITY * 4).then_some((Reason::AuditBacklog, None)))
        .or_else(|| (journal.weight() >= SIZE_LIMIT).then(|| (Reason::RateLimited, Some(now + TimeDelta::minutes(1)))))
        .or_else(|| {
            journal
                .newcomers_after
                .filter(|at| *at > now)
                .map(|at| (Reason::RateLimited, Some(at)))
        });
    // The first answer of a scope teaches how long tokens live; until then one newcomer is enough.
    let teaching = journal.typical_lifetime.is_none();
    let mut position = 0;
    let mut hopeless: Option<TimeDelta> = None;
    let mut unfitting = 0;
    let mut head_slot = None;
    while !newcomers.is_empty() {
        let Some(index) = (0..newcomers.len()).min_by_key(|i| {
            let d = newcomers[*i];
            let taken = slots.get(d.namespace.as_str()).copied().unwrap_or(0);
            (!d.pod_waits, taken, d.since, d.namespace.as_str(), d.name.as_str())
        }) else {
            break;
        };
        let demand = newcomers.swap_remove(index);
        *slots.entry(demand.namespace.as_str()).or_default() += 1;
        let verdict = if let Some((reason, until)) = held {
            position += 1;
            Err(match reason {
                Reason::AuditBacklog => backlog_full(now),
                _ => plan.wait(reason, position, until, now, journal),
            })
        } else if teaching && (!journal.claims.is_empty() || !selection.admitted.is_empty()) {
            // A moment, and nothing to tell.
            continue;
        } else if position == 0 && hopeless.is_some_and(|period| plan.period_of(demand) <= period) {
            unfitting += 1;
            Err(plan.wait(Reason::RateLimited, 1, None, now, journal))
        } else if position == 0 && plan.admits(demand, false, now) {
            Ok(())
        } else {
            // Whoever is first in line is not overtaken, unless nothing would ever come of the wait;
            // those behind share its next slot.
            if position == 0 {
                head_slot = plan.next_for_newcomer(demand, now);
                if head_slot.is_none() {
                    let verdict = Err(plan.wait(Reason::RateLimited, 1, None, now, journal));
                    selection.take(demand, verdict, &mut plan, now);
                    unfitting += 1;
                    // Nor is there a slot for whoever needs as many.
                    hopeless = Some(plan.period_of(demand));
                    continue;
                }
            }
            position += 1;
            Err(plan.wait(Reason::RateLimited, position, head_slot, now, journal))
        };
        selection.take(demand, verdict, &mut plan, now);
    }
    plan.explain_excess(demands, &mut selection);
    selection.usage = plan.usage(now, position + unfitting, head_slot, blocked_until);
    selection
}

impl Selection {
    fn take(&mut self, demand: &Demand, verdict: Result<(), Waiting>, plan: &mut Projection, now: Time) {
        match verdict {
            Ok(()) => {
                plan.add(demand, now);
                self.admitted.push(demand.uid.clone());
            }
            Err(waiting) => {
                if let Some(at) = waiting.next_slot.filter(|at| *at > now) {
                    self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
                }
                self.waiting.insert(demand.uid.clone(), waiting);
            }
        }
    }
}

fn backlog_full(now: Time) -> Waiting {
    Waiting {
        reason: Reason::AuditBacklog,
        position: 0,
        next_slot: Some(now + TimeDelta::seconds(5)),
        message: "too many audit events wait for ChittyChronicle; minting goes on once they are delivered".to_owned(),
    }
}

fn live_end(journal: &Journal, uid: &str) -> Option<Time> {
    journal
        .credentials
        .get(uid)
        .and_then(|r| r.live.as_ref())
        .map(|l| l.ends_at)
}

fn live_latest(live: &Live) -> Time {
    latest_safe(live.issued_at, live.ends_at, live.renew_before())
}

/// Slots each namespace holds: its live credentials, and the newcomers it had in the window beyond.
fn slots_by_namespace<'a>(journal: &'a Journal, now: Time, limits: &[Limit]) -> BTreeMap<&'a str, usize> {
    let window = limits.iter().map(|l| l.window).max().unwrap_or_default();
    let mut slots: BTreeMap<&str, usize> = BTreeMap::new();
    let mut live: BTreeSet<&str> = BTreeSet::new();
    for (uid, record) in &journal.credentials {
        if record.live.is_some() {
            live.insert(uid);
            *slots.entry(&record.namespace).or_default() += 1;
        }
    }
    for attempt in journal
        .attempts
        .iter()
        .filter(|a| a.at + window > now && a.kind.is_newcomer())
    {
        // The first mint of a live credential is the slot that is counted above.
        if attempt.kind != Kind::First || !live.remove(attempt.uid.as_str()) {
            *slots.entry(&attempt.namespace).or_default() += 1;
        }
    }
    slots
}

/// The time from one renewal to the next, if each is made at its latest safe time.
///
/// Ends are whole seconds, answers are not: lifetimes that differ by such a fraction are the same, or
/// renewals that will stay in step would be projected to drift into each other.
fn period(lifetime: TimeDelta, renew_before: Option<TimeDelta>) -> TimeDelta {
    let lifetime = whole_seconds(lifetime);
    (lifetime - runway(lifetime, renew_before)).max(TimeDelta::milliseconds(100))
}

fn whole_seconds(lifetime: TimeDelta) -> TimeDelta {
    TimeDelta::seconds((lifetime.num_milliseconds() + 999).div_euclid(1000))
}

struct Projection<'a> {
    title: &'a str,
    limits: &'a [Limit],
    typical: Option<TimeDelta>,
    /// Requests that count, oldest first.
    sent: Vec<Time>,
    /// Next latest safe renewal and period of everybody who holds or gets a token, by uid.
    renewals: BTreeMap<String, (Time, TimeDelta)>,
}

impl<'a> Projection<'a> {
    fn new(journal: &'a Journal, limits: &'a [Limit], now: Time) -> Self {
        let typical = journal.typical_lifetime.map(TimeDelta::seconds);
        let mut sent: Vec<Time> = journal.attempts.iter().map(|a| a.at).collect();
        sent.sort_unstable();
        let mut renewals = BTreeMap::new();
        for (uid, record) in &journal.credentials {
            if let Some(live) = record.live.as_ref().filter(|l| l.ends_at > now) {
                let period = period(live.ends_at - live.issued_at, live.renew_before());
                renewals.insert(uid.clone(), (live_latest(live).max(now), period));
            }
        }
        for (uid, claim) in &journal.claims {
            let period = period(typical.unwrap_or(ASSUMED_LIFETIME), claim_renew_before(claim));
            renewals.insert(uid.clone(), (claim.at + period, period));
        }
        Self {
            title: journal.scope.title(),
            limits,
            typical,
            sent,
            renewals,
        }
    }

    fn period_of(&self, demand: &Demand) -> TimeDelta {
        let lifetime = self.typical.unwrap_or(ASSUMED_LIFETIME);
        let lifetime = demand.max_lifetime.map_or(lifetime, |max| max.min(lifetime));
        period(lifetime, demand.renew_before)
    }

    fn used(&self, limit: Limit, now: Time) -> usize {
        self.sent.iter().filter(|at| **at + limit.window > now).count()
    }

    fn free_now(&self, now: Time) -> bool {
        self.limits.iter().all(|l| self.used(*l, now) < l.limit as usize)
    }

    /// When a slot is free at all.
    fn next_free(&self, now: Time) -> Option<Time> {
        self.limits
            .iter()
            .filter_map(|l| {
                let used: Vec<Time> = self.sent.iter().copied().filter(|at| *at + l.window > now).collect();
                let limit = l.limit as usize;
                (used.len() >= limit).then(|| used[used.len() - limit] + l.window)
            })
            .max()
    }

    fn admits(&self, demand: &Demand, due: bool, now: Time) -> bool {
        self.free_now(now) && (due || self.limits.iter().all(|l| self.fits(*l, demand, now, now)))
    }

    /// Whether `demand`, minted at `at`, leaves every window within the limit.
    fn fits(&self, limit: Limit, demand: &Demand, at: Time, now: Time) -> bool {
        if self.fits_in_any_phase(limit, demand, at) {
            return true;
        }
        let others = self.events(limit, Some(&demand.uid), now);
        let with = self.excess_with(&others, limit, demand, at, now);
        // What others have come to need (a limit turned out smaller, an end was rounded down) is not
        // the newcomer's doing; adding to it would be.
        let standing = if demand.kind.is_newcomer() {
            excess(&others, limit)
        } else {
            // A renewal may go early where that makes nothing worse than its latest safe time would.
            excess(&self.events(limit, None, now), limit)
        };
        with <= standing
    }

    fn excess_with(&self, others: &[(Time, bool)], limit: Limit, demand: &Demand, at: Time, now: Time) -> usize {
        let period = self.period_of(demand);
        let mut with = others.to_vec();
        push_series(&mut with, (at, period), self.horizon(limit, now));
        // Two sorted runs: the sort merges them.
        with.sort();
        excess(&with, limit)
    }

    /// Enough, whatever the phases of the renewals: what every window can hold at most.
    fn fits_in_any_phase(&self, limit: Limit, demand: &Demand, at: Time) -> bool {
        let most = |period: TimeDelta| {
            let window = (limit.window + limit.pad()).num_milliseconds();
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

    fn horizon(&self, limit: Limit, now: Time) -> Time {
        let longest = self
            .renewals
            .values()
            .map(|(_, p)| *p)
            .max()
            .unwrap_or(ASSUMED_LIFETIME);
        now + (limit.window + longest) * 12
    }

    /// Everything sent, and the projected renewals of everybody but `without`, in order.
    fn events(&self, limit: Limit, without: Option<&str>, now: Time) -> Vec<(Time, bool)> {
        let until = self.horizon(limit, now);
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
    fn next_for_newcomer(&self, demand: &Demand, now: Time) -> Option<Time> {
        let longest = self.renewals.values().map(|(_, p)| *p).max().unwrap_or_default();
        let per_limit: Vec<(Limit, Vec<(Time, bool)>)> = self
            .limits
            .iter()
            .map(|l| (*l, self.events(*l, Some(&demand.uid), now)))
            .collect();
        let mut candidates: BTreeSet<Time> = BTreeSet::new();
        for (l, events) in &per_limit {
            let until = now + l.window * 2 + longest;
            for (event, projected) in events {
                // The moment it frees, and the moment after which even the renewals stay apart.
                let known = (!projected).then_some(*event + l.window);
                let apart = *event + l.window + l.pad();
                candidates.extend(known.into_iter().chain([apart]).filter(|at| *at > now && *at <= until));
            }
        }
        candidates.into_iter().take(96).find(|at| {
            per_limit
                .iter()
                .all(|(l, events)| self.excess_with(events, *l, demand, *at, now) <= excess(events, *l))
        })
    }

    fn add(&mut self, demand: &Demand, now: Time) {
        let period = self.period_of(demand);
        // Unanswered it counts from its timeout on; that only postpones others.
        self.sent.push(now);
        self.renewals.insert(demand.uid.clone(), (now + period, period));
    }

    fn tightest(&self) -> Option<Limit> {
        self.limits.iter().copied().min()
    }

    fn kept(&self, limit: Limit, now: Time) -> usize {
        let used = self.used(limit, now);
        let mut due = Vec::new();
        for series in self.renewals.values() {
            push_series(&mut due, *series, now + limit.window);
        }
        let due = due.len();
        let retry = limit.limit as usize - limit.for_newcomers();
        (due + retry).min((limit.limit as usize).saturating_sub(used))
    }

    fn wait(&self, reason: Reason, position: usize, next_slot: Option<Time>, now: Time, journal: &Journal) -> Waiting {
        let message = if position > 0 && journal.weight() >= SIZE_LIMIT {
            format!(
                "the journal of {} is full: new credentials wait until others are deleted or their window has passed",
                self.title
            )
        } else if let Some(until) = journal.throttle.blocked_until.filter(|at| *at > now) {
            format!(
                "ChittyConnect asked to leave {} alone until {}; it is asked again then",
                self.title,
                clock(until, now)
            )
        } else if let Some(until) = journal.newcomers_after.filter(|at| *at > now && position > 0) {
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
    fn explain_excess(&self, demands: &[Demand], selection: &mut Selection) {
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

    fn usage(&self, now: Time, waiting: usize, next_slot: Option<Time>, blocked_until: Option<Time>) -> Usage {
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

fn claim_renew_before(claim: &Claim) -> Option<TimeDelta> {
    claim.renew_before_ms.map(TimeDelta::milliseconds)
}

fn push_series(events: &mut Vec<(Time, bool)>, (first, period): (Time, TimeDelta), until: Time) {
    let mut at = first;
    while at <= until && events.len() <= MAX_EVENTS {
        events.push((at, true));
        at += period;
    }
}

/// How many requests are too many: those that follow the ones before them too closely.
fn excess(events: &[(Time, bool)], limit: Limit) -> usize {
    let cap = limit.for_newcomers();
    events
        .windows(cap + 1)
        // What was sent was sent; only what is planned can be too much.
        .filter(|w| {
            let ((first, first_planned), (last, planned)) = (w[0], w[cap]);
            // When a slot that was used frees is known; when a planned one does, nearly.
            let slack = if first_planned { limit.pad() } else { TimeDelta::zero() };
            planned && last - first < limit.window + slack
        })
        .count()
}

fn window_text(window: TimeDelta) -> String {
    match window.num_seconds() {
        3600 => "an hour".to_owned(),
        s if s % 3600 == 0 => format!("{} hours", s / 3600),
        60 => "a minute".to_owned(),
        s if s % 60 == 0 => format!("{} minutes", s / 60),
        s => format!("{s} seconds"),
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
