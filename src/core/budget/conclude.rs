//! What a look at the line comes to: whom to tell what, and when to look again.

use chrono::TimeDelta;

use crate::core::Time;

use super::nanos::{instant, nanos};
use super::projection::Projection;
use super::select::Outcome;
use super::text::{Figures, Why};
use super::timeline::Timeline;
use super::{Budget, Last, Selection, Stops, Usage};

/// How long a newcomer is told nothing that was not looked at yet.
const MOMENT: TimeDelta = TimeDelta::seconds(10);

/// How much of the tightest limit is spoken for.
#[derive(Clone, Copy, Default)]
pub(super) struct Spending {
    used: i64,
    kept: i64,
}

impl Spending {
    /// What is spoken for now, by those who are tried out too.
    pub(super) fn of(projection: &Projection) -> Self {
        let Some(tightest) = tightest(projection) else {
            return Self::default();
        };
        let (all, used) = (tightest.cap(true), projection.used(tightest));
        let retries = all - tightest.cap(false);
        Self {
            used,
            kept: (projection.planned(tightest) + retries).min((all - used).max(0)),
        }
    }
}

fn tightest(projection: &Projection) -> Option<&Timeline> {
    projection.timelines.iter().min_by_key(|t| t.limit)
}

impl Budget {
    /// Notes what everybody is told, and says what was decided.
    pub(super) fn conclude(&mut self, outcome: Outcome, spending: Spending, now: Time, stops: &Stops) -> Selection {
        let Some(figures) = self.figures(spending, now) else {
            return Selection::default();
        };
        let unseen = outcome.front.iter().any(|(_, why)| *why == Why::NotYet);
        let mut last = Last {
            young_after: unseen.then(|| now - MOMENT),
            ..Last::default()
        };
        let (mut front, mut wakes) = (Vec::new(), Vec::new());
        let renewals = outcome.renewals.iter().map(|(uid, why)| (uid, *why, 0));
        let newcomers = (1..).zip(&outcome.front).map(|(place, (uid, why))| (uid, *why, place));
        for (uid, why, place) in renewals.chain(newcomers) {
            let young = || {
                self.queue
                    .in_line(uid.as_str())
                    .is_some_and(|demand| last.is_moment(demand))
            };
            if why != Why::NotYet || !young() {
                last.front.insert(uid.clone(), figures.waiting(why, place));
            }
            front.push(uid.clone());
            wakes.extend(why.until(now).filter(|at| *at > now));
        }
        last.newcomers = outcome.behind.map(|why| figures.behind(why, false));
        last.renewals = outcome.other_renewals.map(|why| figures.behind(why, true));
        last.admitted = outcome.admitted.iter().cloned().collect();
        let count = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
        let waiting = self.queue.newcomers().saturating_sub(outcome.newcomers);
        let usage = Usage {
            limit: figures.limit.limit,
            used: count(figures.used),
            kept: count(figures.kept),
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            next_slot: outcome.next_slot,
            blocked_until: stops.blocked_until.filter(|at| *at > now),
        };
        let next_end = self.projection.next_end().filter(|_| !front.is_empty());
        // Whoever comes to half of its runway then does not wait for a server any longer.
        let blocked = usage.blocked_until.is_some();
        let next_half = self.own_tries.first_after(nanos(now)).filter(|_| blocked);
        let later = [next_end, next_half, self.queue.next_due(), self.queue.next_rested()];
        wakes.extend(later.into_iter().flatten().map(instant));
        wakes.extend(outcome.again);
        self.last = last;
        Selection {
            admitted: outcome.admitted,
            rates: outcome.rates,
            front,
            wake: wakes.into_iter().min(),
            usage,
        }
    }

    fn figures(&self, spending: Spending, now: Time) -> Option<Figures<'_>> {
        let tightest = tightest(&self.projection)?;
        let (mut credentials, mut needed) = (self.projection.len(), tightest.load.plain);
        for (group, count) in self.queue.groups.iter().filter(|(g, _)| !g.holds) {
            let period = group.period(self.projection.typical());
            credentials += count;
            needed += tightest.load_of(period).plain * i64::try_from(*count).unwrap_or(0);
        }
        Some(Figures {
            title: &self.title,
            limit: tightest.limit,
            used: spending.used,
            kept: spending.kept,
            credentials,
            needed,
            now,
        })
    }
}
