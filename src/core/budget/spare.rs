//! What a try may cost that could fail.
//!
//! Nobody knows beforehand whether a request will be answered. So every live token keeps a slot for a try at half of
//! its runway, and before that a try takes only what is to spare: what could be spent now with each of those tries
//! still made in time, earliest first, in the slots that free earliest.

use std::collections::{BTreeSet, HashMap};

use crate::core::ids::Uid;

use super::nanos::nanos;
use super::projection::Projection;
use super::series::Held;
use super::timeline::Timeline;

/// When the token of a credential has its own try, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnTry {
    /// Half of the runway.
    half: i64,
    /// From a token's issue to half of its runway.
    after: i64,
    /// From one renewal to the next.
    period: i64,
    ends: i64,
    /// It was made: what comes after it takes what is to spare, as before.
    made: bool,
}

/// The tries that every live token keeps a slot for.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnTries {
    by_uid: HashMap<Uid, OwnTry>,
    /// Those that were not made yet.
    by_half: BTreeSet<(i64, Uid)>,
}

impl OwnTries {
    /// Notes a live token. Says whether anything changed.
    pub(super) fn hold(&mut self, uid: &Uid, held: &Held) -> bool {
        let half = held.half();
        let own = OwnTry {
            half: nanos(half),
            after: nanos(half) - nanos(held.issued_at),
            period: held.period(),
            ends: nanos(held.ends_at),
            made: held.tried_at.is_some_and(|at| at >= half),
        };
        if self.by_uid.get(uid.as_str()) == Some(&own) {
            return false;
        }
        self.release(uid.as_str());
        self.by_uid.insert(uid.clone(), own);
        if !own.made {
            self.by_half.insert((own.half, uid.clone()));
        }
        true
    }

    pub(super) fn release(&mut self, uid: &str) -> bool {
        let Some((uid, own)) = self.by_uid.remove_entry(uid) else {
            return false;
        };
        self.by_half.remove(&(own.half, uid));
        true
    }

    /// Half of the runway of `uid`, unless that has come.
    pub(super) fn half_after(&self, uid: &str, now: i64) -> Option<i64> {
        let own = self.by_uid.get(uid)?;
        Some(own.half).filter(|half| *half > now)
    }

    /// Whether `uid` has come to half of its runway.
    pub(super) fn is_past_half(&self, uid: &str, now: i64) -> bool {
        self.half(uid).is_some_and(|half| half <= now)
    }

    pub(super) fn half(&self, uid: &str) -> Option<i64> {
        self.by_uid.get(uid).map(|own| own.half)
    }

    pub(super) fn is_owed(&self, uid: &str) -> bool {
        self.by_uid.get(uid).is_some_and(|own| !own.made)
    }

    /// When the first of the tries after `now` is made.
    pub(super) fn first_after(&self, now: i64) -> Option<i64> {
        let mut later = self.by_half.range((now.saturating_add(1), Uid::from(""))..);
        later.next().map(|(half, _)| *half)
    }

    /// Whether it is time for the try that `uid` keeps a slot for.
    pub(super) fn is_due(&self, uid: &str, now: i64) -> bool {
        let own = self.by_uid.get(uid);
        own.is_some_and(|own| !own.made && own.half <= now && own.ends > now)
    }

    /// Whether it is time for anybody's.
    pub(super) fn is_any_due(&self, now: i64) -> bool {
        self.by_half.first().is_some_and(|(half, _)| *half <= now)
    }

    /// Whether so many requests more may be sent now and fail.
    pub(super) fn afford(&self, projection: &Projection, more: i64) -> bool {
        projection.timelines.iter().all(|t| self.fit(projection, t, more))
    }

    /// Whether all fit one window's limit, if so many requests more are sent now: the first to be made at the latest
    /// gets the slot that frees first, and so on.
    fn fit(&self, projection: &Projection, timeline: &Timeline, more: i64) -> bool {
        let now = projection.now;
        let free = timeline.cap(true) - projection.used(timeline) - more;
        if free < 0 {
            return false;
        }
        // What is sent now is free again then, for whoever comes later.
        let until = now + timeline.counts_for;
        let most = usize::try_from(timeline.cap(true)).unwrap_or(usize::MAX);
        let mut halves = Vec::new();
        for (half, uid) in self.by_half.range(..(until, Uid::from(""))) {
            let Some(own) = self.by_uid.get(uid.as_str()).filter(|own| own.ends > now) else {
                continue;
            };
            let mut at = (*half).max(now);
            // Whoever is due is renewed now at the earliest.
            let mut next = (*half + own.period).max(now + own.after);
            while at < until && halves.len() <= most {
                halves.push(at);
                (at, next) = (next, next.saturating_add(own.period));
            }
        }
        if halves.len() > most {
            return false;
        }
        halves.sort_unstable();
        let sent = projection.sent.iter().filter(|(at, _)| *at + timeline.counts_for > now);
        let mut freed = sent.flat_map(|(at, count)| (0..count).map(move |_| at + timeline.counts_for));
        let kept = usize::try_from(free).unwrap_or(0);
        halves
            .iter()
            .skip(kept)
            .all(|half| freed.next().is_some_and(|at| at <= *half))
    }
}
