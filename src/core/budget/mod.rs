//! Who may mint now, and who waits how long.
//!
//! The rule: a mint is admitted only if, with the renewals of every live credential projected at
//! their latest safe times, no sliding window exceeds the limit. Renewals at their latest safe time
//! need only a free slot now, which that rule has kept for them. Newcomers share what is left,
//! namespace by namespace, and one slot is kept for a retry where the limit allows.

mod projection;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use chrono::TimeDelta;

use crate::api::Reason;
use crate::core::Time;
use crate::core::journal::{Journal, Kind, Live, MARGIN};
use crate::core::schedule::latest_safe;

use projection::Projection;

/// A lifetime to plan with before `ChittyConnect` has shown one: what it documents.
const ASSUMED_LIFETIME: TimeDelta = TimeDelta::hours(1);
/// Bounds the work of one projection.
const MAX_EVENTS: usize = 20_000;
/// Bounds how often a pass looks for somebody's next slot, whatever is asked for.
const MAX_SEARCHES: usize = 32;
/// Claims that may be open at once: each takes room in the journal until its outcome is known. Newcomers leave
/// some to renewals.
const MAX_OPEN: usize = 64;
const MAX_OPEN_NEWCOMERS: usize = 48;

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

    /// How long a request counts: its window and a little more, for the clocks of two leaders, and of
    /// `ChittyConnect`, may differ by that, and no request is answered the instant it is planned for.
    fn counts_for(self) -> TimeDelta {
        self.window + (self.window / 100).min(MARGIN)
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
    /// [`Wanted::digest`](crate::core::spec::Wanted::digest) of the spec that this was decided on.
    pub asks: String,
    /// Number of the credential's last audit event in this journal when this was decided: where there is
    /// a later one, something has happened since, and it is to be decided anew.
    pub seq: u64,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
    /// Longest use of a token.
    pub max_lifetime: Option<TimeDelta>,
    /// A Pod waits for the Secret.
    pub pod_waits: bool,
}

/// Live tokens that other scopes' journals hold and whose renewals count here, by uid.
pub type Guests = BTreeMap<String, Guest>;

/// A live token whose credential has moved here: its connection's key or URL changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    /// Namespace and name of the credential.
    pub name: (String, String),
    /// When it was issued.
    pub issued_at: Time,
    /// When it ends for us.
    pub ends_at: Time,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
}

impl Guest {
    /// The guest that `live`, of the credential `name`, is.
    #[must_use]
    pub fn of(live: &Live, name: (String, String)) -> Self {
        Self {
            name,
            issued_at: live.issued_at,
            ends_at: live.ends_at,
            renew_before: live.renew_before(),
        }
    }

    fn latest(&self) -> Time {
        latest_safe(self.issued_at, self.ends_at, self.renew_before)
    }
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
    /// Whose demand was decided on a view that is behind: neither admitted nor in line.
    pub outdated: Vec<String>,
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
                Some((learnt, at)) => limit.min(tried_upward(learnt, limit, window, now - at)),
                None => limit,
            },
            window,
        })
        .collect()
}

/// What was learnt, and a tenth of what is configured more for each window since: nobody says when a limit
/// was raised again.
fn tried_upward(learnt: u32, configured: u32, window: TimeDelta, since: TimeDelta) -> u32 {
    let windows = since.num_milliseconds() / window.num_milliseconds().max(1);
    let step = (configured / 10).max(1);
    let more = u32::try_from(windows.max(0)).unwrap_or(u32::MAX).saturating_mul(step);
    learnt.max(1).saturating_add(more)
}

/// What a 429 by the broker's own limit teaches: it allows no more than what it answered before. Never less than
/// half of what was known to be allowed, since part of what was granted may be forgotten.
pub fn learn(journal: &mut Journal, limits: &[Limit], now: Time) {
    let Some(tightest) = effective(limits, journal, now).into_iter().min() else {
        return;
    };
    let sent = journal.sent().into_iter().filter(|(at, _)| *at + tightest.window > now);
    // The refused one is among them.
    let granted = sent.map(|(_, count)| count).sum::<u32>().saturating_sub(1);
    if granted < tightest.limit {
        journal.throttle.learnt = Some((granted.max(tightest.limit / 2).max(1), now));
    }
}

/// Decides for every demand of a scope at once.
#[must_use]
pub fn select(journal: &Journal, guests: &Guests, demands: &[Demand], limits: &[Limit], now: Time) -> Selection {
    let limits = effective(limits, journal, now);
    let mut plan = Projection::new(journal, guests, &limits, now);
    let held = |uid: &str| {
        let own = journal.live_of(uid);
        own.map(|l| (l.ends_at, live_latest(l)))
            .or_else(|| guests.get(uid).map(|g| (g.ends_at, g.latest())))
    };
    let mut selection = Selection::default();
    let (demands, outdated): (Vec<&Demand>, Vec<&Demand>) = demands
        .iter()
        .partition(|d| journal.credentials.get(d.uid.as_str()).map_or(0, |r| r.seq) == d.seq);
    selection.outdated = outdated.into_iter().map(|d| d.uid.clone()).collect();
    let blocked_until = journal.throttle.blocked_until.filter(|at| *at > now);
    let backlog = journal.backlog();

    let mut renewals: Vec<&Demand> = demands.iter().copied().filter(|d| !d.kind.is_newcomer()).collect();
    renewals.sort_by_key(|d| (held(&d.uid).map(|(end, _)| end), d.uid.as_str()));
    for demand in renewals {
        if journal.claims.len() + selection.admitted.len() >= MAX_OPEN {
            // A moment, and nothing to tell.
            break;
        }
        let latest = held(&demand.uid).map(|(_, latest)| latest);
        let due = latest.is_none_or(|at| at <= now);
        let verdict = if backlog >= 100 {
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

    let mut line = Line::new(
        demands.iter().copied().filter(|d| d.kind.is_newcomer()),
        &slots_by_namespace(journal, now, &limits),
    );
    let stopped = blocked_until
        .map(|at| (Reason::RateLimited, Some(at)))
        .or_else(|| (backlog >= 80).then_some((Reason::AuditBacklog, None)))
        .or_else(|| {
            rebuilt_until(journal, &limits)
                .filter(|at| *at > now)
                .map(|at| (Reason::RateLimited, Some(at)))
        });
    // The first answer of a scope teaches how long tokens live; until then one newcomer is enough.
    let teaching = journal.typical_lifetime.is_none();
    let mut position = 0;
    let mut hopeless: Option<TimeDelta> = None;
    let mut unfitting = 0;
    let mut searches = 0;
    let mut head_slot = None;
    while let Some(demand) = line.next() {
        if journal.claims.len() + selection.admitted.len() >= MAX_OPEN_NEWCOMERS && stopped.is_none() && position == 0 {
            break;
        }
        let verdict = if let Some((reason, until)) = stopped {
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
                searches += 1;
                head_slot = if searches > MAX_SEARCHES {
                    None
                } else {
                    plan.next_for_newcomer(demand, now)
                };
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
    plan.explain_excess(&demands, &mut selection);
    selection.usage = plan.usage(now, position + unfitting, head_slot, blocked_until);
    selection
}

/// Newcomers, one namespace after the other: next is who has a Pod waiting, then whose namespace holds least,
/// then who waits longest.
struct Line<'a> {
    /// Each namespace's own, in order, with the slots it holds.
    namespaces: BTreeMap<&'a str, (usize, std::vec::IntoIter<&'a Demand>)>,
    /// The first of each, in order.
    heads: BTreeMap<Turn<'a>, &'a Demand>,
}

/// No Pod waits; slots held; since when; namespace and name.
type Turn<'a> = (bool, usize, Time, &'a str, &'a str);

impl<'a> Line<'a> {
    fn new(newcomers: impl Iterator<Item = &'a Demand>, held: &BTreeMap<&'a str, usize>) -> Self {
        let mut by_namespace: BTreeMap<&str, Vec<&Demand>> = BTreeMap::new();
        for demand in newcomers {
            by_namespace.entry(&demand.namespace).or_default().push(demand);
        }
        let mut line = Self {
            namespaces: BTreeMap::new(),
            heads: BTreeMap::new(),
        };
        for (namespace, mut own) in by_namespace {
            own.sort_unstable_by_key(|d| (!d.pod_waits, d.since, d.name.as_str()));
            let slots = held.get(namespace).copied().unwrap_or(0);
            line.namespaces.insert(namespace, (slots, own.into_iter()));
            line.advance(namespace);
        }
        line
    }

    fn advance(&mut self, namespace: &'a str) {
        if let Some((slots, own)) = self.namespaces.get_mut(namespace)
            && let Some(demand) = own.next()
        {
            let turn = (!demand.pod_waits, *slots, demand.since, namespace, demand.name.as_str());
            self.heads.insert(turn, demand);
        }
    }

    /// The next in line; its namespace holds one more then, whether it is admitted or waits.
    fn next(&mut self) -> Option<&'a Demand> {
        let (_, demand) = self.heads.pop_first()?;
        if let Some((slots, _)) = self.namespaces.get_mut(demand.namespace.as_str()) {
            *slots += 1;
        }
        self.advance(&demand.namespace);
        Some(demand)
    }
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

/// When all that a lost journal forgot has left the window.
fn rebuilt_until(journal: &Journal, limits: &[Limit]) -> Option<Time> {
    let longest = limits.iter().map(|l| l.counts_for()).max()?;
    Some(journal.lost_at? + longest)
}

fn backlog_full(now: Time) -> Waiting {
    Waiting {
        reason: Reason::AuditBacklog,
        position: 0,
        next_slot: Some(now + TimeDelta::seconds(5)),
        message: "too many audit events wait for ChittyChronicle; minting goes on once they are delivered".to_owned(),
    }
}

fn live_latest(live: &Live) -> Time {
    latest_safe(live.issued_at, live.ends_at, live.renew_before())
}

/// Slots each namespace holds: its live credentials, and the newcomers it had in the window beyond.
fn slots_by_namespace<'a>(journal: &'a Journal, now: Time, limits: &[Limit]) -> BTreeMap<&'a str, usize> {
    let window = limits.iter().map(|l| l.window).max().unwrap_or_default();
    let mut slots: BTreeMap<&str, usize> = BTreeMap::new();
    for record in journal.credentials.values().filter(|r| r.live.is_some()) {
        *slots.entry(&record.namespace).or_default() += 1;
    }
    let mut spent: BTreeMap<&str, usize> = BTreeMap::new();
    for namespace in journal.spent_since(now - window) {
        *spent.entry(namespace).or_default() += 1;
    }
    for (namespace, count) in spent {
        let held = slots.entry(namespace).or_default();
        *held = (*held).max(count);
    }
    slots
}
