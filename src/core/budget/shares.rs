//! How much of a budget each namespace has.

use std::collections::HashMap;
use std::sync::Arc;

use super::nanos::length;
use super::timeline::Timeline;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    /// Mints a window that the namespace's live credentials need, in thousandths.
    rate: u64,
    /// Newcomers' requests it sent within the window.
    spent: u32,
}

/// What each namespace has of the longest window: the mints that its live credentials need, or those it
/// spent, whichever are more. Who deletes and creates, or fails, all the time does not look poor.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    by_namespace: HashMap<Arc<str>, Share>,
    /// Length of the longest window, in nanoseconds.
    window: i64,
}

impl Shares {
    /// Begins anew with the longest of these windows: rates are to be added again.
    pub(super) fn set_windows(&mut self, timelines: &[Timeline]) {
        self.window = timelines.iter().map(|t| length(t.limit.window)).max().unwrap_or(0);
        for share in self.by_namespace.values_mut() {
            share.rate = 0;
        }
    }

    /// Mints a window that a credential with this period needs, in thousandths.
    pub(super) fn rate_of(&self, period: i64) -> u64 {
        u64::try_from(i128::from(self.window) * 1000 / i128::from(period)).unwrap_or(u64::MAX / 4)
    }

    /// The share of a namespace, in thousandths of a mint a window.
    pub(super) fn of(&self, namespace: &str) -> u64 {
        self.with(namespace, 0, 0)
    }

    /// Its share, had it so much more.
    pub(super) fn with(&self, namespace: &str, rate: u64, spent: u64) -> u64 {
        let share = self.by_namespace.get(namespace).copied().unwrap_or_default();
        share
            .rate
            .saturating_add(rate)
            .max((u64::from(share.spent) + spent) * 1000)
    }

    pub(super) fn add(&mut self, namespace: &Arc<str>, period: i64) {
        let rate = self.rate_of(period);
        let share = self.by_namespace.entry(Arc::clone(namespace)).or_default();
        share.rate = share.rate.saturating_add(rate);
    }

    pub(super) fn remove(&mut self, namespace: &Arc<str>, period: i64) {
        let rate = self.rate_of(period);
        if let Some(share) = self.by_namespace.get_mut(namespace) {
            share.rate = share.rate.saturating_sub(rate);
            if *share == Share::default() {
                self.by_namespace.remove(namespace);
            }
        }
    }

    /// Notes what was spent by whom; returns those for whom that is news.
    pub(super) fn set_spent(&mut self, spent: impl IntoIterator<Item = (Arc<str>, u32)>) -> Vec<Arc<str>> {
        let mut spent: HashMap<Arc<str>, u32> = spent.into_iter().collect();
        let mut news = Vec::new();
        self.by_namespace.retain(|namespace, share| {
            let now = spent.remove(namespace).unwrap_or(0);
            if share.spent != now {
                share.spent = now;
                news.push(Arc::clone(namespace));
            }
            *share != Share::default()
        });
        for (namespace, spent) in spent.into_iter().filter(|(_, n)| *n > 0) {
            news.push(Arc::clone(&namespace));
            self.by_namespace.insert(namespace, Share { rate: 0, spent });
        }
        news
    }
}
