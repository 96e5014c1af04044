//! A budget that follows a journal, and decisions that hold only for what they were taken on.

use proptest::prelude::*;

use super::*;
use crate::core::budget::select::MAX_OPEN_NEWCOMERS;
use crate::core::clock::Suspension;
use crate::core::ids::SpecDigest;
use crate::core::journal::tests_support::{claim, live, scope};
use crate::core::journal::{Failure, Journal, Outcome};
use crate::core::testing::cases;

fn terms() -> Terms {
    Terms {
        limits: vec![hourly(8)],
        newcomers: true,
    }
}

fn uid(i: usize) -> String {
    format!("u{i:02}")
}

/// What happens to a journal, or to whom its budget counts besides.
#[derive(Clone, Debug)]
enum Event {
    Claim(usize, bool),
    Issued(usize, i64),
    Failed(usize, bool),
    Withdrawn(usize),
    Released(usize),
    Forgotten(usize),
    Foreign(usize, Option<i64>),
    Outlasts(i64),
    Learns(u32),
    Compact,
    /// The budget looks, so many seconds later.
    Look(i64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let who = 0_usize..10;
    let event = prop_oneof![
        5 => (who.clone(), any::<bool>()).prop_map(|(i, renewal)| Event::Claim(i, renewal)),
        5 => (who.clone(), 600_i64..9000).prop_map(|(i, life)| Event::Issued(i, life)),
        1 => (who.clone(), any::<bool>()).prop_map(|(i, counted)| Event::Failed(i, counted)),
        1 => who.clone().prop_map(Event::Withdrawn),
        1 => who.clone().prop_map(Event::Released),
        1 => who.clone().prop_map(Event::Forgotten),
        1 => (who, prop::option::of(600_i64..9000)).prop_map(|(i, life)| Event::Foreign(i, life)),
        1 => (1_i64..900).prop_map(Event::Outlasts),
        1 => (1_u32..8).prop_map(Event::Learns),
        1 => Just(Event::Compact),
        6 => (0_i64..1500).prop_map(Event::Look),
    ];
    prop::collection::vec(event, 1..80)
}

fn failure(at: Time) -> Failure {
    Failure {
        reason: Reason::BrokerUnavailable,
        message: String::new(),
        at,
        asked_at: None,
        count: 1,
        retry_at: Some(at),
        digest: SpecDigest::default(),
    }
}

/// A journal, and what its budget is told besides.
struct Model {
    journal: Journal,
    foreign: HashMap<Uid, Held>,
    claims: usize,
}

impl Model {
    fn end(&mut self, i: usize, ending: impl FnOnce(&str) -> Outcome, now: Time) {
        if let Some(id) = self.journal.claims.get(uid(i).as_str()).map(|c| c.id.clone()) {
            self.journal.end(&uid(i), &id, ending(&id), now);
        }
    }

    fn take(&mut self, kept: &mut Follower, event: &Event, now: Time) {
        let journal = &mut self.journal;
        match *event {
            Event::Claim(i, renewal) if !journal.claims.contains_key(uid(i).as_str()) => {
                self.claims += 1;
                let kind = if renewal {
                    MintReason::Renewal
                } else {
                    MintReason::First
                };
                journal.claim(
                    &uid(i),
                    claim(&uid(i), &namespace(i, 3), kind, now, self.claims),
                    s(3600),
                );
            }
            Event::Issued(i, life) => {
                self.end(i, |id| Outcome::Published(Box::new(live(id, now, now + s(life)))), now);
            }
            Event::Failed(i, counted) => {
                let failure = failure(now);
                self.end(i, |_| Outcome::Failed { failure, counted }, now);
            }
            Event::Withdrawn(i) => {
                if let Some(id) = journal.claims.get(uid(i).as_str()).map(|c| c.id.clone()) {
                    journal.withdraw(&uid(i), &id);
                }
            }
            Event::Released(i) => drop(journal.release(&uid(i), now, crate::api::Reason::Expired)),
            Event::Forgotten(i) => drop(journal.forget(&uid(i), now)),
            Event::Foreign(i, life) => {
                let held = life.map(|life| held(&namespace(i, 3), now, now + s(life)));
                kept.reserve(&uid(i).as_str().into(), held.clone(), now);
                match held {
                    Some(held) => self.foreign.insert(uid(i).as_str().into(), held),
                    None => self.foreign.remove(uid(i).as_str()),
                };
            }
            Event::Outlasts(seconds) => journal.shift_after_suspend(Suspension {
                at: now,
                lasted: s(seconds),
            }),
            Event::Learns(limit) => journal.throttle.learnt = Some((limit, now)),
            Event::Compact => journal.compact(now),
            Event::Claim(..) | Event::Look(_) => {}
        }
    }

    fn scratch(&self, now: Time) -> Follower {
        let mut fresh = follower();
        for (uid, held) in &self.foreign {
            fresh.reserve(uid, Some(held.clone()), now);
        }
        fresh
    }
}

/// One with ten in line that nobody takes out.
fn follower() -> Follower {
    let mut follower = Follower::new("svc");
    for i in 0..10 {
        let wish = newcomer(&uid(i), &namespace(i, 3), t(i64::try_from(i).unwrap()));
        follower.budget.enqueue(wish);
    }
    follower
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn whoever_follows_a_journal_knows_what_one_knows_who_reads_it_at_once(events in events()) {
        let mut model = Model {
            journal: Journal::new(scope()),
            foreign: HashMap::new(),
            claims: 0,
        };
        let (mut kept, mut now) = (follower(), t(0));
        for event in events {
            model.take(&mut kept, &event, now);
            let Event::Look(seconds) = event else { continue };
            now += s(seconds);
            kept.budget.memo.clear();
            let journal = Arc::new(model.journal.clone());
            // Its own token ends, and what another scope holds is told again when its credential is looked at.
            for (uid, held) in &model.foreign {
                kept.reserve(uid, Some(held.clone()), now);
            }
            let mut fresh = model.scratch(now);
            let (decision, selection) = kept.decide(&journal, &terms(), now);
            let (_, expected) = fresh.decide(&journal, &terms(), now);
            prop_assert_eq!(selection, expected);
            prop_assert!(kept.stands(&decision, &journal, now));
            prop_assert_eq!(&kept.budget.queue.index, &fresh.budget.queue.index);
            let (a, b) = (&mut kept.budget.projection, &mut fresh.budget.projection);
            prop_assert_eq!(a.series.clone(), b.series.clone());
            prop_assert_eq!(a.open_claims(), b.open_claims());
            prop_assert_eq!(a.counts(), b.counts());
        }
    }
}

/// A journal that knows how long tokens live, and a decision of `follower` on it.
fn decided(follower: &mut Follower) -> (Journal, Decision) {
    let mut journal = Journal::new(scope());
    journal.typical_lifetime = Some(3600);
    let (decision, _) = follower.decide(&Arc::new(journal.clone()), &terms(), t(10));
    assert_eq!(names(&decision.admitted), ["u00", "u01", "u02"]);
    (journal, decision)
}

#[test]
fn a_decision_holds_for_a_second_and_only_while_nothing_it_counts_on_has_changed() {
    let mut follower = follower();
    let (journal, decision) = decided(&mut follower);
    assert!(follower.stands(&decision, &journal, t(11)));
    assert!(!follower.stands(&decision, &journal, t(12)));
    let changes: [fn(&mut Journal); 7] = [
        |j| j.claim("x", claim("x", "n", MintReason::First, t(10), 1), s(3600)),
        |j| j.adopt_lost("x", ("n", "x"), live("c", t(10), t(3610)), t(10)),
        |j| j.typical_lifetime = Some(1800),
        |j| j.throttle.blocked_until = Some(t(60)),
        |j| j.throttle.learnt = Some((3, t(10))),
        |j| j.throttle.count = 1,
        |j| j.lost_at = Some(t(0)),
    ];
    for change in changes {
        let mut other = journal.clone();
        change(&mut other);
        assert!(!follower.stands(&decision, &other, t(10)), "{other:?}");
    }
    let mut unchanged = journal;
    unchanged.orphaned("x", vec![]);
    unchanged.throttle.blocked_until = Some(t(9));
    assert!(
        follower.stands(&decision, &unchanged, t(10)),
        "what is over, or owed, stops nobody"
    );
}

/// Invariant 16.
#[test]
fn a_wait_of_the_journal_that_was_guessed_is_told_from_one_that_was_asked_for() {
    let mut journal = Journal::new(scope());
    journal.claim("a", claim("a", "n", MintReason::First, t(0), 0), s(3600));
    let token = Outcome::Published(Box::new(live("claim-0", t(0), t(3600))));
    assert!(journal.end("a", "claim-0", token, t(0)));
    // Its own try, at half of its runway, was refused.
    journal.claim("a", claim("a", "n", MintReason::Renewal, t(3005), 1), s(3600));
    let failed = Outcome::Failed {
        failure: failure(t(3005)),
        counted: true,
    };
    assert!(journal.end("a", "claim-1", failed, t(3005)));
    journal.throttle.count = 1;
    journal.throttle.blocked_until = Some(t(3300));
    for guessed in [true, false] {
        journal.throttle.guessed = guessed;
        let mut follower = Follower::new("svc");
        let renewal = demand("a", "n", MintReason::Renewal, t(3006));
        follower.budget.enqueue(renewal);
        let (decision, _) = follower.decide(&Arc::new(journal.clone()), &terms(), t(3020));
        assert_eq!(decision.admitted.len(), usize::from(guessed), "{decision:?}");
    }
}

/// Invariant 16.
#[test]
fn a_request_under_way_is_the_own_try_where_it_was_made_since_half_of_the_runway() {
    for (asked, owes) in [(2500, true), (3005, false)] {
        let mut journal = Journal::new(scope());
        journal.claim("a", claim("a", "n", MintReason::First, t(0), 0), s(3600));
        let token = Outcome::Published(Box::new(live("claim-0", t(0), t(3600))));
        assert!(journal.end("a", "claim-0", token, t(0)));
        journal.claim("a", claim("a", "n", MintReason::Renewal, t(asked), 1), s(3600));
        let mut follower = Follower::new("svc");
        follower.follow(&Arc::new(journal), &terms().limits, t(asked + 1));
        assert_eq!(follower.budget.owes_own_try(&"a".into()), owes, "{asked}");
    }
}

#[test]
fn what_another_leader_claimed_meanwhile_is_not_admitted_again() {
    let mut follower = follower();
    let (mut journal, mut decision) = decided(&mut follower);
    for i in 0..3 {
        journal.claim(&uid(i), claim(&uid(i), "n", MintReason::First, t(10), i), s(3600));
    }
    assert!(!follower.stands(&decision, &journal, t(10)));
    follower.decide_anew(&mut decision, &journal, t(10));
    assert!(follower.stands(&decision, &journal, t(10)));
    let again = decision
        .admitted
        .iter()
        .filter(|uid| is_untouched(&journal, uid.as_str(), 0));
    assert_eq!(again.count(), 0, "{decision:?}");
}

#[test]
fn a_request_under_way_is_planned_by_what_its_spec_asks_for() {
    let mut follower = follower();
    let (mut journal, mut decision) = decided(&mut follower);
    let mut short = claim("x", "n", MintReason::First, t(10), 1);
    short.max_lifetime_ms = Some(900_000);
    journal.claim("x", short, s(3600));
    follower.decide_anew(&mut decision, &journal, t(10));
    // Six renewals an hour, of seven that newcomers may fill.
    assert!(decision.admitted.is_empty(), "{decision:?}");
}

#[test]
fn tokens_that_wait_for_their_secrets_keep_nobody_from_minting_and_stay_planned_for() {
    let mut follower = follower();
    let (mut journal, mut decision) = decided(&mut follower);
    let terms = Terms {
        limits: vec![hourly(10_000)],
        newcomers: true,
    };
    for i in 0..MAX_OPEN_NEWCOMERS {
        let uid = format!("held-{i}");
        journal.claim(&uid, claim(&uid, "n", MintReason::First, t(10), i), s(3600));
    }
    assert!(
        follower
            .decide(&Arc::new(journal.clone()), &terms, t(10))
            .0
            .admitted
            .is_empty()
    );
    let minted = crate::core::journal::Minted {
        issued_at: t(10),
        ends_at: t(3610),
        token_ids: vec![],
    };
    for i in 0..MAX_OPEN_NEWCOMERS {
        assert!(journal.minted(&format!("held-{i}"), &format!("claim-{i}"), &minted, t(10)));
    }
    let (next, selection) = follower.decide(&Arc::new(journal.clone()), &terms, t(10));
    assert_eq!(next.admitted.len(), 10);
    assert!(selection.usage.used as usize >= MAX_OPEN_NEWCOMERS);
    // Where there is room for few only, those who hold a token nobody can see yet come first.
    follower.decide_anew(&mut decision, &journal, t(10));
    assert!(decision.admitted.is_empty(), "{decision:?}");
}
