//! What Pods were told, and what was told of them: neither is written again and again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::api::Reason;
use crate::core::Time;
use crate::core::ids::Uid;

/// How often it is written at most how many Pods read a credential's Secrets.
pub const IN_USE_EVERY: Duration = Duration::from_secs(30);
/// How often a Pod is told that it still waits.
const WAITS_EVERY: Duration = Duration::from_secs(300);
/// How long anything is remembered.
const REMEMBERED: Duration = Duration::from_secs(900);
/// Before that many nothing is forgotten.
const LEAST: usize = 1024;

/// What was told lately.
#[derive(Default)]
pub struct PodsTold {
    in_use: HashMap<Uid, Instant>,
    waits: HashMap<Uid, (Reason, Instant)>,
    ends: HashMap<(Uid, Uid), Time>,
    full_at: usize,
}

impl PodsTold {
    /// How long it is put off to write how many Pods read the Secrets of `uid`; where it is not, it is noted as written.
    pub fn put_off(&mut self, uid: &str, now: Instant) -> Option<Duration> {
        self.in_use
            .retain(|_, at| now.saturating_duration_since(*at) < IN_USE_EVERY);
        if let Some(at) = self.in_use.get(uid) {
            return Some(IN_USE_EVERY.saturating_sub(now.saturating_duration_since(*at)));
        }
        self.in_use.insert(uid.into(), now);
        None
    }

    /// Whether a Pod is to be told that it waits, and why.
    pub fn waits(&mut self, pod: &Uid, reason: Reason, now: Instant) -> bool {
        if self.waits.len() >= self.full_at.max(LEAST) {
            self.waits
                .retain(|_, (_, at)| now.saturating_duration_since(*at) < REMEMBERED);
            self.full_at = self.waits.len() * 2;
        }
        let told = self.waits.get(pod);
        if told.is_some_and(|(why, at)| *why == reason && now.saturating_duration_since(*at) < WAITS_EVERY) {
            return false;
        }
        self.waits.insert(pod.clone(), (reason, now));
        true
    }

    /// Whether a Pod is to be told that what it read of the credential `uid` ends at `end`.
    pub fn ends(&mut self, uid: &str, pod: &Uid, end: Time, now: Time) -> bool {
        if self.ends.len() >= self.full_at.max(LEAST) {
            self.ends.retain(|_, end| *end > now);
            self.full_at = self.ends.len() * 2;
        }
        self.ends.insert((uid.into(), pod.clone()), end) != Some(end)
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
}
