//! A journal whose time axis moves: what the clock went by turned out to be off.

use chrono::TimeDelta;

use super::Journal;
use crate::core::Time;

impl Journal {
    /// This process stood still for `off` and did not notice, or the clock was stepped: which of both cannot
    /// be told. Tokens have aged, if so; but that requests have left the window is not certain, and they
    /// go on counting. Those after `until` are of somebody whose clock was right.
    pub fn outlast(&mut self, off: TimeDelta, until: Time) {
        for attempt in self.attempts.iter_mut().filter(|a| a.at <= until) {
            attempt.at += off;
        }
    }

    /// The clock goes by another time from now on, and no time has passed: every point of it moves by `off`.
    pub fn translate(&mut self, off: TimeDelta) {
        let shift = |at: &mut Time| *at += off;
        self.attempts.iter_mut().for_each(|a| shift(&mut a.at));
        for claim in self.claims.values_mut() {
            shift(&mut claim.at);
            if let Some(minted) = &mut claim.minted {
                shift(&mut minted.issued_at);
                shift(&mut minted.ends_at);
            }
        }
        for record in self.credentials.values_mut() {
            if let Some(live) = &mut record.live {
                shift(&mut live.issued_at);
                shift(&mut live.ends_at);
            }
            if let Some(failure) = &mut record.failure {
                shift(&mut failure.at);
                failure.retry_at.iter_mut().for_each(shift);
            }
            record.heals.iter_mut().for_each(shift);
        }
        self.revocations.iter_mut().for_each(|r| shift(&mut r.due));
        self.throttle.blocked_until.iter_mut().for_each(shift);
        self.throttle.learnt.iter_mut().for_each(|(_, at)| shift(at));
        self.unauthorized.iter_mut().for_each(|u| shift(&mut u.probe_at));
        self.lost_at.iter_mut().for_each(shift);
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;
    use crate::core::budget::{Demand, Guests, Limit, select};
    use crate::core::journal::tests_support::{claim, live, scope};
    use crate::core::journal::{Ending, Kind, Throttle};

    fn t(seconds: i64) -> Time {
        chrono::Utc.timestamp_opt(1_700_000_000 + seconds, 0).unwrap()
    }
    fn s(seconds: i64) -> TimeDelta {
        TimeDelta::seconds(seconds)
    }

    /// Ten requests in the last ten minutes: the budget is spent.
    fn spent() -> Journal {
        let mut journal = Journal::new(scope());
        for i in 0..10 {
            let uid = format!("u{i}");
            let at = t(60 * i);
            let claim = claim(&uid, "n", Kind::First, at, usize::try_from(i).unwrap());
            let id = claim.id.clone();
            journal.claim(&uid, claim, s(3600));
            let live = live(&id, at, at + s(3600));
            assert!(journal.end(&uid, &id, Ending::Published(Box::new(live)), at));
        }
        journal.throttle = Throttle {
            blocked_until: Some(t(700)),
            ..Throttle::default()
        };
        journal
    }

    fn admits(journal: &Journal, now: Time) -> bool {
        let demand = Demand {
            uid: "u0".into(),
            namespace: "n".into(),
            name: "u0".into(),
            kind: Kind::Renewal,
            since: now,
            asks: String::new(),
            seq: 0,
            renew_before: None,
            max_lifetime: None,
            pod_waits: false,
        };
        let limits = [Limit {
            limit: 10,
            window: s(3600),
        }];
        !select(journal, &Guests::new(), &[demand], &limits, now)
            .admitted
            .is_empty()
    }

    #[test]
    fn after_a_standstill_what_was_spent_counts_on_and_tokens_have_aged() {
        let (mut journal, hour) = (spent(), s(3600));
        journal.outlast(hour, t(600));
        journal.compact(t(600) + hour);
        assert_eq!(journal.attempts.len(), 10);
        assert!(!admits(&journal, t(600) + hour));
        assert!(
            admits(&journal, t(3606) + hour),
            "a window after the first of them by its own count"
        );
        assert_eq!(journal.credentials["u0"].live.as_ref().unwrap().ends_at, t(3600));
    }

    #[test]
    fn requests_of_a_successor_whose_clock_was_right_are_not_moved() {
        let mut journal = spent();
        journal.outlast(s(3600), t(200));
        let moved = journal.attempts.iter().filter(|a| a.at >= t(3600)).count();
        assert_eq!(moved, 4);
    }

    #[test]
    fn by_another_clock_everything_is_as_far_away_as_before() {
        for off in [s(3600), s(-3600)] {
            let (before, mut after) = (spent(), spent());
            after.translate(off);
            for at in [690, 2400, 3605, 3606] {
                assert_eq!(admits(&after, t(at) + off), admits(&before, t(at)), "{at} {off}");
            }
            assert_eq!(after.credentials["u0"].live.as_ref().unwrap().ends_at, t(3600) + off);
            after.translate(-off);
            assert_eq!(after, before);
        }
    }
}
