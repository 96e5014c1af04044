//! What is free in the projected future: now, and next.

use super::projection::Projection;
use super::search::WORK;
use super::timeline::{PARTS, Timeline};

/// How many times a series is moved on, past the next window that has no room for it.
const STEPS: usize = 96;

/// When a slot frees for a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// At this moment, which may be now.
    At(i64),
    /// Not while the live credentials are renewed.
    Never,
    /// Finding out takes more work than may be spent now.
    Unknown,
}

impl Projection {
    /// Requests that count in `timeline` at `now`, those that are tried included.
    pub(super) fn used(&self, timeline: &Timeline) -> i64 {
        let sent = self.sent.after(self.now - timeline.counts_for);
        i64::try_from(sent).unwrap_or(i64::MAX) + i64::from(self.tried)
    }

    /// Whether one request more may be sent now, whatever is planned.
    pub(super) fn is_free_now(&self) -> bool {
        self.timelines.iter().all(|t| self.used(t) < t.cap(true))
    }

    /// When one request more may be sent, whatever is planned.
    pub(super) fn next_free(&self) -> i64 {
        let frees = self.timelines.iter().map(|t| {
            let Some(room) = u32::try_from(t.cap(true)).unwrap_or(0).checked_sub(self.tried) else {
                return self.now + t.counts_for;
            };
            if room == 0 {
                return self.now + t.counts_for;
            }
            self.sent
                .nth_last(u64::from(room))
                .map_or(self.now, |at| at + t.counts_for)
        });
        frees.max().unwrap_or(self.now).max(self.now)
    }

    /// When the first of the requests that count does so no more.
    pub(super) fn next_freed(&self) -> Option<i64> {
        let freed = self.timelines.iter().filter_map(|t| {
            let counting = self.sent.iter().map(|(at, _)| at + t.counts_for);
            counting.into_iter().find(|at| *at > self.now)
        });
        freed.min()
    }

    /// Whether a newcomer of this period would ask for more than there is, whatever the phases.
    pub(super) fn is_too_dense(&self, period: i64) -> bool {
        self.timelines
            .iter()
            .any(|t| t.load.counted + t.load_of(period).counted > t.cap(false) * PARTS)
    }

    /// Whether a series of this period may begin now.
    ///
    /// Ranges that are looked at cost `work`; where none is left, it may not.
    pub(super) fn fits_now(&mut self, period: i64, renewal: bool, work: &mut usize) -> bool {
        if !self.is_free_now() {
            return false;
        }
        if self.fits_in_any_phase(period, renewal) {
            return true;
        }
        self.look_ahead();
        self.timelines
            .iter()
            .all(|t| t.conflict(self.now, period, t.cap(renewal), work).is_none())
    }

    /// Whether a newcomer's series of this period may begin at `first`.
    pub(super) fn fits_from(&mut self, first: i64, period: i64) -> bool {
        if self.is_too_dense(period) || self.fits_in_any_phase(period, false) {
            return !self.is_too_dense(period);
        }
        self.look_ahead();
        let (first, mut work) = (first.max(self.now), WORK);
        self.timelines
            .iter()
            .all(|t| t.conflict(first, period, t.cap(false), &mut work).is_none())
    }

    /// Enough, whatever the phases of the renewals: what every window can hold at most.
    fn fits_in_any_phase(&self, period: i64, renewal: bool) -> bool {
        self.timelines
            .iter()
            .all(|t| self.used(t) + t.load.most + t.load_of(period).most <= t.cap(renewal))
    }

    /// When the series of a newcomer of this period may begin.
    pub(super) fn slot(&mut self, period: i64, work: &mut usize) -> Slot {
        if self.is_too_dense(period) {
            return Slot::Never;
        }
        let mut at = self.next_free();
        if at == self.now && self.fits_in_any_phase(period, false) {
            return Slot::At(at);
        }
        self.look_ahead();
        let window = self.timelines.iter().map(|t| t.window).max().unwrap_or(0);
        let until = self.now + window * 2 + self.longest();
        for _ in 0..STEPS {
            let mut next = at;
            for timeline in &self.timelines {
                let Some(moved) = timeline.conflict(at, period, timeline.cap(false), work) else {
                    continue;
                };
                if *work == 0 {
                    return Slot::Unknown;
                }
                // What is planned is not known to the end: where a window is full up to there, it stays so.
                if moved > until.min(timeline.horizon() - timeline.window * 2) {
                    return Slot::Never;
                }
                next = next.max(moved).max(at + 1);
            }
            if next == at {
                return Slot::At(at);
            }
            at = next;
        }
        Slot::Never
    }

    /// Renewals planned within `timeline`'s next window.
    pub(super) fn planned(&self, timeline: &Timeline) -> i64 {
        let until = self.now + timeline.window;
        if let Some(requests) = timeline.in_window_until(until) {
            let sent = self.sent.after(timeline.window_start(until) - 1);
            return requests - i64::try_from(sent).unwrap_or(i64::MAX) - i64::from(self.tried);
        }
        let until = timeline.bucket_end(until);
        let due = self.series.iter().map(|(uid, series)| {
            let run = self.run(uid.as_str(), series);
            if run.first <= until {
                (until - run.first) / run.period + 1
            } else {
                0
            }
        });
        due.sum()
    }
}
