//! One sliding window, counted at every moment of the foreseeable future.
//!
//! Time is cut into buckets. For every bucket the timeline knows how many requests a window that ends
//! anywhere in it holds at most: all of the bucket itself and of as many before it as a window can
//! touch. A window is thus taken to be up to two buckets longer than it is, never shorter.

use super::limits::Limit;
use super::nanos::length;
use super::tree::Tree;

/// How many buckets a window is cut into.
const BUCKETS: i64 = 512;
/// Buckets that are looked ahead at most: 128 windows.
const MOST_BUCKETS: i64 = 65_536;
/// How many rounds of the slowest renewal are looked ahead.
const ROUNDS: i64 = 12;
/// A series with more requests than this is spread evenly: what each window can hold of it at most.
const MOST_REQUESTS: i64 = 2048;
/// More of one series in a window is as bad: above any limit, and still summed without overflow.
const MOST_TIMES: i64 = 100_000;
/// Counts that are worth less than this are not kept: an eighth of the raises and counts they are made
/// of, which takes a fraction of a millisecond. Tests keep all.
const KEPT_FROM: i64 = if cfg!(test) { 0 } else { 4_096 };
/// The parts of one in which rates are kept.
pub(super) const PARTS: i64 = 1_000_000;

/// Requests at `first`, and one every `period` from then on; in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: i64,
    pub(super) period: i64,
    /// Each may be up to a bucket later than planned.
    pub(super) loose: bool,
}

/// What all series together ask of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Requests that a window counts on average, in parts of one.
    pub(super) counted: i64,
    /// Requests in a plain window on average, in parts of one.
    pub(super) plain: i64,
    /// Requests that a window counts at most, whatever the phases.
    pub(super) most: i64,
}

impl Load {
    pub(super) fn add(&mut self, other: Self, times: i64) {
        self.counted += other.counted * times;
        self.plain += other.plain * times;
        self.most += other.most * times;
    }
}

/// The window of one limit.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    pub(super) limit: Limit,
    /// Length of the window.
    pub(super) window: i64,
    /// How long a request counts.
    pub(super) counts_for: i64,
    /// Length of a bucket.
    pub(super) bucket: i64,
    /// How many buckets before its own a window touches at most.
    span: i64,
    pub(super) load: Load,
    /// The bucket up to which is looked, counted from 1970.
    until: i64,
    ahead: Option<Ahead>,
}

/// The counts, as far as they were worked out.
#[derive(Clone, Debug)]
struct Ahead {
    /// The first bucket, counted from 1970.
    base: i64,
    counts: Tree,
    /// Raises that would cost what working all out anew does,
    worth: i64,
    /// and those that were made.
    raises: i64,
}

impl Timeline {
    pub(super) fn new(limit: Limit) -> Self {
        let (window, counts_for) = (length(limit.window), length(limit.counts_for()));
        let bucket = ceil(window, BUCKETS);
        Self {
            limit,
            window,
            counts_for,
            bucket,
            span: ceil(counts_for, bucket),
            load: Load::default(),
            until: 0,
            ahead: None,
        }
    }

    /// Requests that a window may hold: all for renewals, fewer for newcomers.
    pub(super) fn cap(&self, renewal: bool) -> i64 {
        i64::from(if renewal {
            self.limit.limit
        } else {
            self.limit.for_newcomers()
        })
    }

    /// What one series of this period asks.
    pub(super) fn load_of(&self, period: i64) -> Load {
        let rate = |of: i64| i64::try_from(i128::from(of) * i128::from(PARTS) / i128::from(period)).unwrap_or(i64::MAX);
        Load {
            counted: rate(self.counts_for),
            plain: rate(self.window),
            most: ceil(self.counts_for, period),
        }
    }

    fn bucket_of(&self, at: i64) -> i64 {
        at.div_euclid(self.bucket)
    }

    /// Forgets the counts if they are soon worked out anew: thousands of small scopes hold none between
    /// two looks.
    pub(super) fn settle(&mut self) {
        if self.ahead.as_ref().is_some_and(|a| a.worth < KEPT_FROM) {
            self.ahead = None;
        }
    }

    /// Forgets the counts: they are worked out anew when they are needed.
    pub(super) fn forget(&mut self) {
        self.ahead = None;
    }

    /// Sees to it that enough of the future after `now` is counted, where the slowest renewals are
    /// `longest` apart.
    pub(super) fn look_ahead(
        &mut self,
        now: i64,
        longest: i64,
        runs: impl Iterator<Item = Run>,
        sent: impl Iterator<Item = (i64, u32)>,
    ) {
        let desired = ceil((self.window + longest).saturating_mul(ROUNDS), self.bucket).min(MOST_BUCKETS / 4 * 3);
        let base = self.bucket_of(now);
        self.until = base + desired;
        let reaches = |a: &Ahead| a.base <= base && self.until <= a.base + size(a.counts.len());
        if self.ahead.as_ref().is_some_and(reaches) {
            return;
        }
        let len = usize::try_from(desired / 4 * 5).unwrap_or(0).next_power_of_two().max(2);
        let mut steps = vec![0; len + 1];
        let mut raises = 0;
        let mut step = |first: usize, last: usize, by: i32| {
            steps[first] += by;
            steps[last + 1] -= by;
            raises += 1;
        };
        for run in runs {
            self.spans(base, size(len), run, &mut step);
        }
        for (at, count) in sent {
            self.span_of(size(len), self.bucket_of(at) - base, 0, |l, r| {
                step(l, r, i32::try_from(count).unwrap_or(i32::MAX));
            });
        }
        let mut sum = 0;
        for count in &mut steps {
            sum += *count;
            *count = sum;
        }
        self.ahead = Some(Ahead {
            base,
            counts: Tree::of(&steps[..len]),
            worth: raises / 8 + size(len) / 8,
            raises: 0,
        });
    }

    /// Adds a series (`by` 1), or takes it out again (-1).
    pub(super) fn plan(&mut self, run: Run, by: i32) {
        self.change(|timeline, base, len, counts| {
            let mut raises = 0;
            timeline.spans(base, len, run, |first, last, times| {
                counts.raise(first, last, by * times);
                raises += 1;
            });
            raises
        });
    }

    /// Counts so many requests more at `at`.
    pub(super) fn count(&mut self, at: i64, by: i32) {
        self.change(|timeline, base, len, counts| {
            timeline.span_of(len, timeline.bucket_of(at) - base, 0, |first, last| {
                counts.raise(first, last, by);
            });
            1
        });
    }

    /// Makes a change to the counts, unless it is cheaper to work them out anew.
    fn change(&mut self, make: impl FnOnce(&Self, i64, i64, &mut Tree) -> i64) {
        let Some(mut ahead) = self.ahead.take() else { return };
        let len = size(ahead.counts.len());
        ahead.raises += make(self, ahead.base, len, &mut ahead.counts);
        if ahead.raises <= ahead.worth {
            self.ahead = Some(ahead);
        }
    }

    /// The ranges of buckets in which windows end that hold a request of `run`, and how many of it.
    fn spans(&self, base: i64, len: i64, run: Run, mut each: impl FnMut(usize, usize, i32)) {
        if self.is_even(run.period) {
            let first = self.bucket_of(run.first) - base;
            let times = count(ceil(self.counts_for, run.period).min(MOST_TIMES));
            if first < len {
                each(index(first), index(len - 1), times);
            }
            return;
        }
        // Carried on from one request to the next: divisions are most of what this costs.
        let (buckets, rest) = (run.period / self.bucket, run.period % self.bucket);
        let (mut of, mut within) = (self.bucket_of(run.first) - base, run.first.rem_euclid(self.bucket));
        while of < len {
            self.span_of(len, of, i64::from(run.loose), |l, r| each(l, r, 1));
            (of, within) = (of + buckets, within + rest);
            if within >= self.bucket {
                (of, within) = (of + 1, within - self.bucket);
            }
        }
    }

    /// The buckets in which windows end that hold a request of bucket `of`, or of one up to `later` after.
    fn span_of(&self, len: i64, of: i64, later: i64, each: impl FnOnce(usize, usize)) {
        let last = of + self.span + later;
        if of < len && last >= 0 {
            each(index(of), index(last.min(len - 1)));
        }
    }

    /// Whether a series of this period is spread evenly.
    fn is_even(&self, period: i64) -> bool {
        MOST_BUCKETS * self.bucket / period > MOST_REQUESTS
    }

    /// The moment up to which is looked.
    pub(super) fn horizon(&self) -> i64 {
        self.until * self.bucket
    }

    /// Requests, planned and sent, in a window that ends at `at`.
    pub(super) fn in_window_until(&self, at: i64) -> Option<i64> {
        let ahead = self.ahead.as_ref()?;
        let bucket = self.bucket_of(at) - ahead.base;
        (bucket < size(ahead.counts.len())).then(|| i64::from(ahead.counts.get(index(bucket))))
    }

    /// The last moment of the bucket that `at` lies in.
    pub(super) fn bucket_end(&self, at: i64) -> i64 {
        (self.bucket_of(at) + 1) * self.bucket - 1
    }

    /// The first moment that a window which ends at `at` touches.
    pub(super) fn window_start(&self, at: i64) -> i64 {
        (self.bucket_of(at) - self.span) * self.bucket
    }

    /// Whether a series from `at` on would leave a window with more than `cap`: when it has to begin, at
    /// the earliest, for the last such window to be well.
    ///
    /// Only windows that hold a request of the series are looked at. Each range asked for costs one of
    /// `work`; the answer is `Some(at)` where none is left.
    pub(super) fn conflict(&self, at: i64, period: i64, cap: i64, work: &mut usize) -> Option<i64> {
        let Some(ahead) = &self.ahead else { return Some(at) };
        let (counts, base) = (&ahead.counts, ahead.base);
        let len = size(counts.len()).min(self.until - base);
        let bucket = |at: i64| self.bucket_of(at) - base;
        let end_of = |i: usize| (size(i) + 1 + base) * self.bucket;
        let most = ceil((self.span + 1) * self.bucket, period);
        if self.is_even(period) {
            let over = counts.last_above(
                index(bucket(at)),
                index(len - 1),
                count(cap - ceil(self.counts_for, period)),
            );
            return over.map(end_of);
        }
        counts.last_above(index(bucket(at)), index(len - 1), count(cap - most))?;
        // Its requests that have come into the window, and those that have left it, as its end moves on.
        let (mut come, mut left) = (0, 0);
        let mut from = bucket(at);
        while from < len {
            while bucket(at + come * period) <= from {
                come += 1;
            }
            while bucket(at + left * period) + self.span < from {
                left += 1;
            }
            let to = bucket(at + come * period)
                .min(bucket(at + left * period) + self.span + 1)
                .min(len);
            let own = come - left;
            *work = work.saturating_sub(1);
            if own == 0 {
                from = to.max(bucket(at + come * period));
                continue;
            }
            if *work == 0 {
                return Some(at);
            }
            if let Some(over) = counts.last_above(index(from), index(to - 1), count(cap - own)) {
                let room = (cap - i64::from(counts.get(over))).max(0);
                let least = (self.span + 1) * self.bucket / period;
                return Some(if least > room {
                    // It is never in a full window fewer times: its first have to be the last ones in there.
                    end_of(over) - room * period
                } else {
                    at + end_of(over) - (at + (come - 1) * period)
                });
            }
            from = to;
        }
        None
    }

    /// The counts of the buckets from `at` on, for tests.
    #[cfg(test)]
    pub(super) fn counts_from(&self, at: i64) -> Vec<i32> {
        self.ahead.as_ref().map_or_else(Vec::new, |a| {
            let from = index(self.bucket_of(at) - a.base);
            (from..index(self.until - a.base)).map(|i| a.counts.get(i)).collect()
        })
    }
}

/// `a / b`, rounded up; `b` is positive.
pub(super) fn ceil(a: i64, b: i64) -> i64 {
    a.div_euclid(b) + i64::from(a.rem_euclid(b) != 0)
}

fn size(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

fn index(bucket: i64) -> usize {
    usize::try_from(bucket).unwrap_or(0)
}

fn count(n: i64) -> i32 {
    i32::try_from(n).unwrap_or(if n < 0 { i32::MIN / 2 } else { i32::MAX / 2 })
}
