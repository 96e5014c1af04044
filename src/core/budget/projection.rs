//! The future of a budget: every live credential renewed at its latest safe times.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::TimeDelta;

use crate::core::ids::Uid;

use super::limits::Limit;
use super::nanos::length;
use super::sent::Sent;
use super::series::{ASSUMED_LIFETIME, ONCE, Open, Series};
use super::timeline::{Run, Timeline};

/// What was sent, and what the live credentials will send.
#[derive(Clone, Debug, Default)]
pub(super) struct Projection {
    pub(super) timelines: Vec<Timeline>,
    /// Of everybody who holds or gets a token.
    pub(super) series: HashMap<Uid, Series>,
    /// Claims among them: their period changes with the typical lifetime.
    opens: HashMap<Uid, Open>,
    /// Series by their first request, but for those that are overdue.
    by_first: BTreeSet<(i64, Uid)>,
    /// Series whose first request should have been made: it is planned for now.
    overdue: BTreeSet<Uid>,
    by_end: BTreeSet<(i64, Uid)>,
    /// How many series have each period.
    periods: BTreeMap<i64, usize>,
    pub(super) sent: Sent,
    /// Requests that are tried at [`Self::now`].
    pub(super) tried: u32,
    typical: Option<TimeDelta>,
    /// The moment up to which everything has been brought.
    pub(super) now: i64,
    /// The beginning of the smallest bucket that `now` lies in: what is overdue is planned from there on.
    anchor: i64,
}

impl Projection {
    /// Begins anew with these limits.
    pub(super) fn set_limits(&mut self, limits: &[Limit]) {
        self.timelines = limits.iter().map(|l| Timeline::new(*l)).collect();
        for timeline in &mut self.timelines {
            for (period, count) in &self.periods {
                let load = timeline.load_of(*period);
                timeline.load.add(load, i64::try_from(*count).unwrap_or(i64::MAX));
            }
        }
        self.anchor = self.anchor_of(self.now);
    }

    fn anchor_of(&self, now: i64) -> i64 {
        let step = self.timelines.iter().map(|t| t.bucket).min().unwrap_or(1);
        now - now.rem_euclid(step)
    }

    /// How long tokens live, as far as that was seen.
    pub(super) fn typical(&self) -> Option<TimeDelta> {
        self.typical
    }

    /// Notes how long tokens live; returns the claims, for what is planned for them changes.
    pub(super) fn set_typical(&mut self, typical: Option<TimeDelta>) -> HashMap<Uid, Open> {
        self.typical = typical;
        self.opens.clone()
    }

    /// Whether anything has changed.
    pub(super) fn set_sent(&mut self, sent: Sent) -> bool {
        let changes = sent.changes_from(&self.sent);
        for (at, by) in &changes {
            self.count(*at, *by);
        }
        self.sent = sent;
        !changes.is_empty()
    }

    fn count(&mut self, at: i64, by: i32) {
        for timeline in &mut self.timelines {
            timeline.count(at, by);
        }
    }

    pub(super) fn get(&self, uid: &str) -> Option<&Series> {
        self.series.get(uid)
    }

    /// Lets go of the room of claims that are not open any more.
    pub(super) fn shed(&mut self) {
        if self.opens.is_empty() {
            self.opens = HashMap::new();
        }
    }

    /// How many claims are open.
    pub(super) fn open_claims(&self) -> usize {
        self.opens.len()
    }

    /// How many credentials hold or get a token.
    pub(super) fn len(&self) -> usize {
        self.series.len()
    }

    /// When the next live token ends.
    pub(super) fn next_end(&self) -> Option<i64> {
        self.by_end.first().map(|(at, _)| *at)
    }

    /// All series.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Uid, &Series)> {
        self.series.iter()
    }

    /// Notes a claim whose token is not known yet.
    pub(super) fn open(&mut self, uid: &Uid, open: &Open) -> Option<Series> {
        let old = self.put(uid, Series::of_open(open, self.typical));
        self.opens.insert(uid.clone(), open.clone());
        old
    }

    /// Notes a live token, in place of what was there.
    pub(super) fn hold(&mut self, uid: &Uid, series: Series) -> Option<Series> {
        self.opens.remove(uid.as_str());
        self.put(uid, series)
    }

    pub(super) fn release(&mut self, uid: &str) -> Option<Series> {
        self.opens.remove(uid);
        self.take(uid)
    }

    /// Plans `series` for `uid`, in place of what was there.
    pub(super) fn put(&mut self, uid: &Uid, series: Series) -> Option<Series> {
        let old = self.take(uid.as_str());
        if series.first < self.now {
            self.overdue.insert(uid.clone());
        } else {
            self.by_first.insert((series.first, uid.clone()));
        }
        if let Some(end) = series.ends {
            self.by_end.insert((end, uid.clone()));
        }
        *self.periods.entry(series.period).or_default() += 1;
        let run = self.run(uid.as_str(), &series);
        for timeline in &mut self.timelines {
            timeline.load.add(timeline.load_of(series.period), 1);
            timeline.plan(run, 1);
        }
        self.series.insert(uid.clone(), series);
        old
    }

    /// Takes out what is planned for `uid`.
    pub(super) fn take(&mut self, uid: &str) -> Option<Series> {
        let (uid, series) = self.series.remove_entry(uid)?;
        let run = self.run(uid.as_str(), &series);
        for timeline in &mut self.timelines {
            timeline.load.add(timeline.load_of(series.period), -1);
            timeline.plan(run, -1);
        }
        if let Some(count) = self.periods.get_mut(&series.period) {
            *count -= 1;
            if *count == 0 {
                self.periods.remove(&series.period);
            }
        }
        self.overdue.remove(uid.as_str());
        self.by_first.remove(&(series.first, uid.clone()));
        if let Some(end) = series.ends {
            self.by_end.remove(&(end, uid));
        }
        Some(series)
    }

    pub(super) fn run(&self, uid: &str, series: &Series) -> Run {
        if self.overdue.contains(uid) {
            return overdue_run(self.anchor, series.period);
        }
        Run {
            first: series.first,
            period: series.period,
            loose: false,
        }
    }

    /// Brings everything to `now`: what has ended is dropped and returned, what is overdue is planned for
    /// now. Says whether anything that is planned has moved.
    pub(super) fn move_to(&mut self, now: i64) -> (Vec<(Uid, Series)>, bool) {
        if now < self.now {
            self.begin_again();
        }
        self.now = now;
        let mut ended = Vec::new();
        while let Some((_, uid)) = self.by_end.first().filter(|(at, _)| *at <= now).cloned() {
            ended.extend(self.take(uid.as_str()).map(|series| (uid, series)));
        }
        let (was, anchor) = (self.anchor, self.anchor_of(now));
        let mut moves = Vec::new();
        if anchor != was {
            moves.extend(self.overdue.iter().filter_map(|uid| {
                let period = self.series.get(uid.as_str())?.period;
                Some((overdue_run(was, period), overdue_run(anchor, period)))
            }));
        }
        self.anchor = anchor;
        while let Some((_, uid)) = self.by_first.first().filter(|(at, _)| *at < now).cloned() {
            self.by_first.pop_first();
            if let Some(series) = self.series.get(uid.as_str()) {
                moves.push((self.run(uid.as_str(), series), overdue_run(anchor, series.period)));
            }
            self.overdue.insert(uid);
        }
        for timeline in &mut self.timelines {
            for (old, new) in &moves {
                timeline.plan(*old, -1);
                timeline.plan(*new, 1);
            }
        }
        let changed = !moves.is_empty() || !ended.is_empty();
        (ended, changed)
    }

    /// The clock went back: nothing is overdue any more, as far as is known.
    fn begin_again(&mut self) {
        for timeline in &mut self.timelines {
            timeline.forget();
        }
        for uid in std::mem::take(&mut self.overdue) {
            if let Some(series) = self.series.get(uid.as_str()) {
                self.by_first.insert((series.first, uid));
            }
        }
    }

    /// Sees to it that all timelines are worked out.
    pub(super) fn look_ahead(&mut self) {
        let typical = length(self.typical.unwrap_or(ASSUMED_LIFETIME));
        let longest = self.longest().max(typical);
        let mut timelines = std::mem::take(&mut self.timelines);
        for timeline in &mut timelines {
            let runs = self.series.iter().map(|(uid, s)| self.run(uid.as_str(), s));
            let sent = self.sent.iter().chain([(self.now, self.tried)]);
            timeline.look_ahead(self.now, longest, runs, sent);
        }
        self.timelines = timelines;
    }

    pub(super) fn longest(&self) -> i64 {
        let renewed = self.periods.range(..ONCE).next_back();
        renewed.map_or(0, |(period, _)| *period)
    }

    /// Plans what admitting `uid` now would lead to; returns what was planned for it before.
    pub(super) fn try_out(&mut self, uid: &Uid, series: Series) -> Option<Series> {
        self.tried += 1;
        self.count(self.now, 1);
        self.put(uid, series)
    }

    /// Takes back what [`Self::try_out`] did: who was tried out in order, and what it returned.
    pub(super) fn take_back(&mut self, tried: Vec<(Uid, Option<Series>)>) {
        for (uid, before) in tried.into_iter().rev() {
            self.tried -= 1;
            self.count(self.now, -1);
            match before {
                Some(series) => drop(self.put(&uid, series)),
                None => drop(self.take(uid.as_str())),
            }
        }
    }

    /// Keeps of what was worked out only what would take long to work out anew.
    pub(super) fn settle(&mut self) {
        for timeline in &mut self.timelines {
            timeline.settle();
        }
    }

    /// Works out all timelines, for tests.
    #[cfg(test)]
    pub(super) fn counts(&mut self) -> Vec<Vec<i32>> {
        self.look_ahead();
        self.timelines.iter().map(|t| t.counts_from(self.now)).collect()
    }
}

/// A series whose first request is planned for some moment from `anchor` to a bucket later.
fn overdue_run(anchor: i64, period: i64) -> Run {
    Run {
        first: anchor,
        period,
        loose: true,
    }
}
