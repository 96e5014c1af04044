//! Tokens that are not renewed, for nobody needs that now.

use super::*;
use crate::core::journal::tests_support::{claim, live, scope};
use crate::core::journal::{Journal, Outcome};

fn once(uid: &str, since: Time) -> Demand {
    Demand {
        renews: false,
        ..newcomer(uid, "n", since)
    }
}

/// So many tokens that were issued at 0, of which each is renewed 1.5 times an hour.
fn journal(tokens: usize) -> Journal {
    let mut journal = Journal::new(scope());
    journal.typical_lifetime = Some(3600);
    for i in 0..tokens {
        let (uid, id) = (format!("u{i}"), format!("claim-{i}"));
        journal.claim(&uid, claim(&uid, "n", MintReason::First, t(0), i), s(3600));
        let token = live(&id, t(0), t(3600));
        assert!(journal.end(&uid, &id, Outcome::Published(Box::new(token)), t(0)));
    }
    journal
}

/// A budget of twenty an hour that follows `journal`.
fn follower(journal: &Arc<Journal>, now: Time) -> Follower {
    let mut follower = Follower::new("svc");
    follower.follow(journal, &[hourly(20)], now);
    follower
}

fn decide(follower: &mut Follower, journal: &Arc<Journal>, now: Time) -> Vec<Uid> {
    let terms = Terms {
        limits: vec![hourly(20)],
        newcomers: true,
    };
    follower.decide(journal, &terms, now).0.admitted
}

/// Invariant 3.
#[test]
fn a_token_that_is_not_renewed_takes_one_slot_of_what_renewals_leave_over_and_no_more() {
    // Eight requests and eight renewals in one hour, of eighteen that newcomers may take.
    let journal = Arc::new(journal(8));
    let both = |demands: [Demand; 3]| {
        let mut follower = follower(&journal, t(1));
        for demand in demands {
            follower.budget.enqueue(demand);
        }
        decide(&mut follower, &journal, t(1)).len()
    };
    assert_eq!(both(["a", "b", "c"].map(|uid| newcomer(uid, "n", t(0)))), 1);
    assert_eq!(both(["a", "b", "c"].map(|uid| once(uid, t(0)))), 2);
}

#[test]
fn what_nobody_uses_reserves_nothing() {
    let journal = Arc::new(journal(9));
    let mut follower = follower(&journal, t(1));
    follower.budget.enqueue(newcomer("new", "n", t(0)));
    assert!(decide(&mut follower, &journal, t(1)).is_empty());
    for i in 0..9 {
        follower.renew(&format!("u{i}").as_str().into(), Renews::No, t(1));
    }
    assert_eq!(names(&decide(&mut follower, &journal, t(1))), ["new"]);
    assert!(!follower.keeps("u0") && follower.keeps("new"));
}

/// Invariant 3.
#[test]
fn what_is_read_again_is_renewed_where_nobody_else_loses_by_that_and_else_waits_for_room() {
    let mut journal = journal(8);
    let mut follower = follower(&Arc::new(journal.clone()), t(1));
    let first: Uid = "u0".into();
    follower.renew(&first, Renews::No, t(1));
    follower.renew(&first, Renews::Yes(None), t(2));
    assert!(follower.keeps("u0"), "nobody came meanwhile");
    // Two did, and have what it had.
    follower.renew(&first, Renews::No, t(3));
    for (uid, n) in [("new", 8), ("newer", 9)] {
        journal.claim(uid, claim(uid, "n", MintReason::First, t(3), n), s(3600));
    }
    let with = Arc::new(journal.clone());
    decide(&mut follower, &with, t(4));
    follower.renew(&first, Renews::Yes(None), t(5));
    assert!(!follower.keeps("u0"));
    decide(&mut follower, &with, t(6));
    assert!(!follower.keeps("u0"));
    // One goes, and so it has room.
    journal.withdraw("newer", "claim-9");
    decide(&mut follower, &Arc::new(journal), t(7));
    assert!(follower.keeps("u0"));
}

#[test]
fn a_request_that_was_admitted_with_its_renewals_has_them_planned() {
    let mut journal = journal(1);
    let mut follower = follower(&Arc::new(journal.clone()), t(1));
    follower.renew(&"u0".into(), Renews::No, t(1));
    let mut asked = claim("u0", "n", MintReason::First, t(2), 9);
    asked.once = true;
    journal.claim("u0", asked.clone(), s(3600));
    decide(&mut follower, &Arc::new(journal.clone()), t(2));
    assert!(!follower.keeps("u0"));
    asked.once = false;
    journal.withdraw("u0", "claim-9");
    asked.id = "claim-10".into();
    journal.claim("u0", asked, s(3600));
    decide(&mut follower, &Arc::new(journal), t(3));
    assert!(follower.keeps("u0"));
}

#[test]
fn what_is_read_again_keeps_within_what_its_namespace_may_take() {
    let journal = Arc::new(journal(2));
    let mut follower = follower(&journal, t(1));
    follower.renew(&"u0".into(), Renews::No, t(1));
    follower.renew(&"u0".into(), Renews::Yes(Some(2)), t(2));
    assert!(!follower.keeps("u0"), "both together would take three");
    follower.renew(&"u0".into(), Renews::Yes(Some(3)), t(2));
    assert!(follower.keeps("u0"));
}
