//! A broker that does not answer: who tries next, and when.
//!
//! While it is known to be down one credential tries for all that share its budget, another one after each failure,
//! another namespace first: no request that fails for reasons of its own is the probe for ever. Whoever has come to
//! half of its runway tries by itself, whatever is said here.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::{Time, clock};
use crate::api::Reason;

/// Failures in a row that make an outage known: one alone may be the request's own.
const KNOWN_AFTER: u32 = 2;
/// The shortest wait between two tries, and the longest.
const FIRST_WAIT: TimeDelta = TimeDelta::seconds(10);
const LONGEST_WAIT: TimeDelta = TimeDelta::minutes(5);
/// How much later those try who tried last, whoever is of their namespace, and newcomers.
const AFTER_OTHERS: TimeDelta = TimeDelta::seconds(1);

/// What is to spare while a broker is down, and for how long it has to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// Tries that may fail.
    pub tries: u32,
    /// When the first live token comes to half of its runway.
    pub until: Option<Time>,
}

/// Failures in a row of one budget's requests, with no answer between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Outage {
    /// The first of them.
    pub since: Time,
    /// When the next try for all is made.
    pub next_try: Time,
    failures: u32,
    /// Who tried, and their namespaces: when last.
    tried: BTreeMap<String, Time>,
    namespaces: BTreeMap<String, Time>,
}

/// Whether a failure says that the broker does not answer; anything else it says is an answer.
#[must_use]
pub fn is_no_answer(reason: Reason) -> bool {
    matches!(reason, Reason::BrokerUnavailable | Reason::OutcomeUnknown)
}

impl Outage {
    /// Notes that a request of `uid` failed at `now`. A server may ask to be left alone until `asked`.
    pub fn failed(
        outage: &mut Option<Self>,
        (uid, namespace): (&str, &str),
        spare: Spare,
        asked: Option<Time>,
        now: Time,
    ) {
        let outage = outage.get_or_insert_with(|| Self {
            since: now,
            next_try: now,
            failures: 0,
            tried: BTreeMap::new(),
            namespaces: BTreeMap::new(),
        });
        outage.failures = outage.failures.saturating_add(1);
        outage.tried.insert(uid.to_owned(), now);
        outage.namespaces.insert(namespace.to_owned(), now);
        let doubled = FIRST_WAIT * (1_i32 << outage.failures.saturating_sub(1).min(5));
        // Half of what is to spare, at least one, spread over the time in which nobody has to try.
        let may_go = i32::try_from((spare.tries / 2).max(1)).unwrap_or(i32::MAX);
        let spread = spare
            .until
            .map_or(TimeDelta::zero(), |at| (at - now).max(TimeDelta::zero()) / (may_go + 1));
        let next = now + doubled.max(spread).min(LONGEST_WAIT);
        outage.next_try = asked.map_or(next, |at| at.max(next));
    }

    /// Whether it is known to be down: one failure alone may be the request's own.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.failures >= KNOWN_AFTER
    }

    /// From when on `uid` may try for all. One who tried, or another of its namespace, lets others go before.
    #[must_use]
    pub fn turn(&self, uid: &str, namespace: &str, newcomer: bool) -> Time {
        let last = self.namespaces.values().max();
        let again = i32::from(self.tried.contains_key(uid));
        let same = i32::from(self.namespaces.get(namespace) == last);
        self.next_try + AFTER_OTHERS * (same + again + 4 * i32::from(newcomer))
    }

    /// Somebody tries for all: nobody else does before their answer is in, at most `timeout` later.
    pub fn begin(&mut self, timeout: TimeDelta, now: Time) {
        self.next_try = self.next_try.max(now + timeout + FIRST_WAIT);
    }

    /// What all who wait are told.
    #[must_use]
    pub fn message(&self, now: Time) -> String {
        format!(
            "ChittyConnect has not answered since {}; one request tries for all, next at {}",
            clock(self.since, now),
            clock(self.next_try, now)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{s, t};

    const PLENTY: Spare = Spare {
        tries: 100,
        until: None,
    };

    #[test]
    fn one_failure_is_no_outage_and_two_are() {
        let mut outage = None;
        Outage::failed(&mut outage, ("a", "n"), PLENTY, None, t(0));
        assert!(!outage.as_ref().unwrap().is_known());
        Outage::failed(&mut outage, ("b", "n"), PLENTY, None, t(1));
        assert!(outage.unwrap().is_known());
    }

    #[test]
    fn after_each_failure_another_one_tries_of_another_namespace_first() {
        let mut outage = None;
        Outage::failed(&mut outage, ("a", "n"), PLENTY, None, t(0));
        Outage::failed(&mut outage, ("b", "n"), PLENTY, None, t(10));
        let outage = outage.unwrap();
        let turns = [("x", "other"), ("c", "n"), ("a", "n")].map(|(uid, ns)| outage.turn(uid, ns, false));
        assert!(turns[0] < turns[1] && turns[1] < turns[2], "{turns:?}");
        assert!(turns[2] < outage.turn("y", "other", true), "newcomers come last");
    }

    #[test]
    fn little_to_spare_is_spread_over_the_time_in_which_nobody_has_to_try() {
        let mut outage = None;
        let spare = Spare {
            tries: 2,
            until: Some(t(400)),
        };
        Outage::failed(&mut outage, ("a", "n"), spare, None, t(0));
        assert_eq!(outage.as_ref().unwrap().next_try, t(200));
        Outage::failed(&mut outage, ("a", "n"), PLENTY, Some(t(900)), t(200));
        assert_eq!(outage.unwrap().next_try, t(900), "the server asked for that");
    }

    #[test]
    fn nobody_else_tries_before_the_one_who_does_is_answered() {
        let mut outage = None;
        Outage::failed(&mut outage, ("a", "n"), PLENTY, None, t(0));
        let mut outage = outage.unwrap();
        outage.begin(s(10), t(10));
        assert!(outage.turn("b", "m", false) > t(20));
    }
}
