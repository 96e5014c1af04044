//! How many requests a scope may send in which windows, and what a refusal teaches about that.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use crate::core::Time;

/// What a request counts beyond its window at most.
pub const MARGIN: TimeDelta = TimeDelta::seconds(5);
/// How many windows a limit learnt from a 429 is remembered.
const LEARNT_FOR_WINDOWS: i32 = 24;

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

/// The limits in force at `now`: the smallest for each window, by window, and where less was `learnt`
/// (requests a window, and when that was seen), that.
#[must_use]
pub fn effective(limits: &[Limit], learnt: Option<(u32, Time)>, now: Time) -> Vec<Limit> {
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
            limit: match learnt {
                Some((learnt, at)) if at + window * LEARNT_FOR_WINDOWS > now => limit.min(learnt.max(1)),
                _ => limit,
            },
            window,
        })
        .collect()
}

/// What a 429 without advice teaches at `now`: the server allowed no more than what it answered before.
///
/// `in_force` is what [`effective`] says, `others` are the times of all requests but the refused one.
/// `None` where that is nothing new.
#[must_use]
pub fn learn(in_force: &[Limit], others: impl IntoIterator<Item = Time>, now: Time) -> Option<(u32, Time)> {
    let tightest = in_force.iter().min()?;
    let granted = others.into_iter().filter(|at| *at + tightest.window > now).count();
    let granted = u32::try_from(granted).ok().filter(|n| *n < tightest.limit)?;
    Some((granted.max(1), now))
}
