//! What a journal says after a pause of the machine.

use std::sync::Arc;

use chrono::TimeDelta;

use super::Journal;
use crate::core::Time;
use crate::core::clock::Suspension;

/// A request under way counts from when it must have been answered: up to so long ahead of its time.
const AHEAD: TimeDelta = TimeDelta::minutes(1);

impl Journal {
    /// Begins a commit at `now`, after `pauses` that no commit has taken in yet: as it was, and as it is to be changed.
    #[must_use]
    pub fn begin(&self, pauses: &[Suspension], now: Time) -> (Self, Self) {
        let mut before = self.clone();
        before.compact(now);
        if pauses.is_empty() {
            return (before.clone(), before);
        }
        let mut after = self.clone();
        // First: what is put off would be dropped as too old.
        for pause in pauses {
            after.shift_after_suspend(*pause);
        }
        after.compact(now);
        (before, after)
    }

    /// The process stood still, or all clocks were stepped: which of both cannot be told. Tokens are taken to
    /// have aged; that requests have left the window, and what a server asked to wait for is over, is not
    /// certain, and is put off. What is later is of a successor, whose clock was right.
    pub fn shift_after_suspend(&mut self, pause: Suspension) {
        let until = pause.at + (pause.lasted / 2).min(AHEAD);
        let put_off = |at: &mut Time| {
            if *at <= until {
                *at += pause.lasted;
            }
        };
        self.attempts.iter_mut().for_each(|a| put_off(&mut a.at));
        for uid in self.claims.keys().cloned().collect::<Vec<_>>() {
            if let Some(claim) = self.claims.get_mut(&uid) {
                let known = claim.counted_from();
                let mut from = known;
                put_off(&mut from);
                if from != known {
                    Arc::make_mut(claim).counts_from = Some(from);
                }
            }
        }
        self.lost_at.iter_mut().for_each(put_off);
        if let Some(at) = self.throttle.blocked_until.as_mut().filter(|at| **at > pause.at) {
            *at += pause.lasted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::core::budget::{Demand, Follower, Limit, Terms};
    use crate::core::ids::ObjectName;
    use crate::core::journal::tests_support::{claim, live, scope};
    use crate::core::journal::{MintReason, Outcome};
    use crate::core::testing::{s, t};

    fn an_hour_at(seconds: i64) -> Suspension {
        Suspension {
            at: t(seconds),
            lasted: s(3600),
        }
    }

    /// Ten requests in the last ten minutes: the budget is spent.
    fn spent() -> Journal {
        let mut journal = Journal::new(scope());
        for i in 0..10 {
            let uid = format!("u{i}");
            let at = t(60 * i);
            let claim = claim(&uid, "n", MintReason::First, at, usize::try_from(i).unwrap());
            let id = claim.id.clone();
            journal.claim(&uid, claim, s(3600));
            let live = live(&id, at, at + s(3600));
            assert!(journal.end(&uid, &id, Outcome::Published(Box::new(live)), at));
        }
        journal
    }

    fn admits(journal: &Journal, kind: MintReason, now: Time) -> bool {
        let mut follower = Follower::new("svc");
        follower.budget.enqueue(Demand {
            uid: "new".into(),
            name: ObjectName::new("n", "new"),
            reason: kind,
            since: now,
            renew_before: None,
            max_lifetime: None,
            pod_waits: false,
            renews: true,
            most: None,
        });
        let terms = Terms {
            limits: vec![Limit {
                limit: 10,
                window: s(3600),
            }],
            newcomers: true,
        };
        let (decision, _) = follower.decide(&Arc::new(journal.clone()), &terms, now);
        !decision.admitted.is_empty()
    }

    #[test]
    fn what_was_spent_counts_on_and_tokens_have_aged() {
        let (_, journal) = spent().begin(&[an_hour_at(600)], t(4200));
        assert_eq!(journal.attempts.len(), 10);
        assert!(!admits(&journal, MintReason::Renewal, t(4200)));
        assert!(admits(&journal, MintReason::Renewal, t(7206)), "a window later");
        assert_eq!(journal.credentials["u0"].live.as_ref().unwrap().ends_at, t(3600));
    }

    #[test]
    fn newcomers_still_wait_a_window_after_a_loss_and_for_as_long_as_a_server_asked() {
        let mut lost = Journal::new(scope());
        lost.lost_at = Some(t(0));
        lost.shift_after_suspend(an_hour_at(600));
        assert!(!admits(&lost, MintReason::First, t(7000)));
        assert!(admits(&lost, MintReason::First, t(7206)));
        let mut blocked = Journal::new(scope());
        blocked.throttle.blocked_until = Some(t(700));
        blocked.shift_after_suspend(an_hour_at(600));
        assert!(!admits(&blocked, MintReason::First, t(4299)));
        assert!(admits(&blocked, MintReason::First, t(4300)));
    }

    #[test]
    fn a_newcomers_request_under_way_is_its_namespaces_for_as_long_as_it_counts() {
        let mut journal = Journal::new(scope());
        journal.claim("u", claim("u", "n", MintReason::First, t(0), 0), s(3600));
        journal.shift_after_suspend(an_hour_at(600));
        let sent: Vec<_> = journal.sent().iter().map(|(at, _)| *at).collect();
        let newcomers: Vec<_> = journal.newcomers().map(|(at, _)| at).collect();
        assert_eq!(newcomers, sent);
        assert!(sent[0] > t(3600));
    }

    #[test]
    fn requests_of_a_successor_whose_clock_was_right_are_not_moved() {
        let mut journal = spent();
        journal.shift_after_suspend(an_hour_at(130));
        let moved = journal.attempts.iter().filter(|a| a.at >= t(3600)).count();
        assert_eq!(moved, 4, "at 0, 60, 120 and 180 s");
    }
}
