//! How many requests a scope may send in which windows, and what a refusal teaches about that.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use crate::core::Time;
use crate::core::journal::{Journal, MARGIN};

/// So many requests in any window of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit {
    /// Requests.
    pub limit: u32,
    /// Length of the sliding window.
    pub window: TimeDelta,
}

impl Limit {
    /// Requests that newcomers may fill: a tenth, at least one, is kept for retries where the limit
    /// allows.
    #[must_use]
    pub fn for_newcomers(self) -> u32 {
        if self.limit >= 3 {
            self.limit - (self.limit / 10).max(1)
        } else {
            self.limit
        }
    }

    /// How long a request counts: its window and a little more, for the clocks of two leaders, and of
    /// `ChittyConnect`, may differ by that, and no request is answered the instant it is planned for.
    #[must_use]
    pub fn counts_for(self) -> TimeDelta {
        self.window + (self.window / 100).min(MARGIN)
    }
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
