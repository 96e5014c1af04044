//! What Pods were told, and what was told of them: neither is written again and again.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::api::Reason;
use crate::core::Time;
use crate::core::ids::Uid;

/// How often it is written at most how many Pods read a credential's Secrets.
pub const IN_USE_EVERY: Duration = Duration::from_secs(30);
/// How often a Pod is told that it still waits.
const WAITS_EVERY: Duration = Duration::from_secs(300);
/// Before that many nothing is forgotten.
const LEAST: usize = 1024;

/// What was told lately.
#[derive(Default)]
pub struct PodsTold {
    in_use: Lately<Uid, Instant>,
    waits: Lately<Uid, (Reason, Instant)>,
    ends: Lately<(Uid, Uid), Time>,
}

/// What is forgotten by and by: all is looked through only when there is twice as much as was left the last time.
struct Lately<K, V> {
    all: HashMap<K, V>,
    full_at: usize,
}

impl<K, V> Default for Lately<K, V> {
    fn default() -> Self {
        Self {
            all: HashMap::new(),
            full_at: LEAST,
        }
    }
}

impl<K: Eq + Hash, V> Lately<K, V> {
    /// Notes `value`, and returns what was noted before; forgets what does not matter any more.
    fn note(&mut self, key: K, value: V, matters: impl Fn(&V) -> bool) -> Option<V> {
        if self.all.len() >= self.full_at {
            self.all.retain(|_, value| matters(value));
            self.full_at = LEAST.max(self.all.len() * 2);
        }
        self.all.insert(key, value)
    }
}

impl PodsTold {
    /// How long it is put off to write how many Pods read the Secrets of `uid`; where it is not, it is noted as written.
    pub fn put_off(&mut self, uid: &str, now: Instant) -> Option<Duration> {
        let since = |at: &Instant| now.saturating_duration_since(*at);
        let lately = self
            .in_use
            .all
            .get(uid)
            .map(since)
            .filter(|since| *since < IN_USE_EVERY);
        if let Some(since) = lately {
            return Some(IN_USE_EVERY.saturating_sub(since));
        }
        self.in_use.note(uid.into(), now, |at| since(at) < IN_USE_EVERY);
        None
    }

    /// Whether a Pod is to be told that it waits, and why.
    pub fn waits(&mut self, pod: &Uid, reason: Reason, now: Instant) -> bool {
        let since = |at: &Instant| now.saturating_duration_since(*at);
        let told = self.waits.all.get(pod);
        if told.is_some_and(|(why, at)| *why == reason && since(at) < WAITS_EVERY) {
            return false;
        }
        self.waits
            .note(pod.clone(), (reason, now), |(_, at)| since(at) < WAITS_EVERY);
        true
    }

    /// Whether a Pod is to be told that what it read of the credential `uid` ends at `end`.
    pub fn ends(&mut self, uid: &str, pod: &Uid, end: Time, now: Time) -> bool {
        let before = self.ends.note((uid.into(), pod.clone()), end, |end| *end > now);
        before != Some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::t;

    #[test]
    fn how_many_read_is_written_at_most_every_half_minute() {
        let (mut told, start) = (PodsTold::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(told.put_off("a", at(0)), None);
        assert_eq!(told.put_off("a", at(10)), Some(Duration::from_secs(20)));
        assert_eq!(told.put_off("b", at(10)), None);
        assert_eq!(told.put_off("a", at(30)), None);
    }

    #[test]
    fn a_pod_is_told_why_it_waits_once_and_again_after_minutes_or_for_another_reason() {
        let (mut told, start, pod) = (PodsTold::default(), Instant::now(), Uid::from("p"));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(told.waits(&pod, Reason::RateLimited, at(0)));
        assert!(!told.waits(&pod, Reason::RateLimited, at(299)));
        assert!(told.waits(&pod, Reason::BrokerUnavailable, at(299)));
        assert!(told.waits(&pod, Reason::BrokerUnavailable, at(599)));
    }

    #[test]
    fn of_each_end_a_pod_is_told_once() {
        let (mut told, pod) = (PodsTold::default(), Uid::from("p"));
        assert!(told.ends("a", &pod, t(3600), t(3000)));
        assert!(!told.ends("a", &pod, t(3600), t(3100)));
        assert!(told.ends("b", &pod, t(3600), t(3100)));
        assert!(told.ends("a", &pod, t(7200), t(6600)));
    }

    #[test]
    fn what_was_told_of_those_that_are_gone_is_forgotten() {
        let (mut told, start) = (PodsTold::default(), Instant::now());
        for n in 0..10 * u32::try_from(LEAST).unwrap() {
            let at = start + Duration::from_secs(n.into());
            told.put_off(&format!("u{n}"), at);
            told.waits(&format!("p{n}").as_str().into(), Reason::RateLimited, at);
            told.ends("a", &format!("p{n}").as_str().into(), t(n.into()), t(n.into()));
        }
        let most = [told.in_use.all.len(), told.waits.all.len(), told.ends.all.len()];
        assert!(most.iter().all(|kept| *kept <= 2 * LEAST), "{most:?}");
    }
}
