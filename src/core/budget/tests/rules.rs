//! Single rules of who is admitted.

use super::world::World;
use super::*;
use crate::core::journal::Journal;
use crate::core::journal::tests_support::{claim, scope};

#[test]
fn the_first_answer_of_a_scope_is_awaited_before_a_second_newcomer_is_admitted() {
    let mut budget = budget(&[hourly(10)]);
    budget.set_typical_lifetime(None);
    budget.enqueue(newcomer("a", "n", t(0)));
    budget.enqueue(newcomer("b", "n", t(0)));
    let stops = Stops {
        teaching: true,
        ..Stops::default()
    };
    let selection = budget.select(t(0), 48, &stops);
    assert_eq!(names(&selection.admitted), ["a"]);
    assert!(budget.waiting(&"b".into()).is_none(), "a moment is nothing to tell of");
    budget.dequeue(&"a".into());
    let open = Open {
        namespace: "n".into(),
        at: t(0),
        renew_before: None,
        max_lifetime: None,
        once: false,
    };
    budget.open(&"a".into(), &open);
    assert!(budget.select(t(1), 48, &stops).admitted.is_empty());
    assert!(budget.waiting(&"b".into()).is_none(), "a moment is nothing to tell of");
    budget.hold(&"a".into(), &held("n", t(1), t(3601)));
    assert_eq!(names(&admitted(&mut budget, t(2))), ["b"]);
}

#[test]
fn after_a_429_one_tries_for_all_and_whoever_is_past_half_of_its_runway_by_itself() {
    let mut budget = budget(&[hourly(30)]);
    let stops = Stops {
        probing: true,
        ..Stops::default()
    };
    for (uid, issued) in [("half", 0), ("a", 600), ("b", 610), ("c", 620)] {
        budget.hold(&uid.into(), &held("n", t(issued), t(issued + 3600)));
        budget.enqueue(demand(uid, "n", MintReason::Renewal, t(2900)));
    }
    budget.enqueue(newcomer("new", "m", t(2900)));
    assert_eq!(names(&budget.select(t(3010), 48, &stops).admitted), ["half"]);
    budget.dequeue(&"half".into());
    assert_eq!(names(&budget.select(t(3030), 48, &stops).admitted), ["a"]);
    budget.dequeue(&"a".into());
    let open = Open {
        namespace: "n".into(),
        at: t(3030),
        renew_before: None,
        max_lifetime: None,
        once: false,
    };
    budget.open(&"a".into(), &open);
    let selection = budget.select(t(3031), 48, &stops);
    assert!(selection.admitted.is_empty());
    assert_eq!(
        selection.wake,
        Some(t(3610)),
        "when the first comes to half of its runway"
    );
    assert!(budget.waiting(&"b".into()).is_none(), "a moment is nothing to tell of");
    let granted = admitted(&mut budget.clone(), t(3031));
    assert_eq!(names(&granted), ["b", "c", "new"], "once a token was granted");
    assert_eq!(names(&budget.select(t(3611), 48, &stops).admitted), ["b"], "past half");
}

/// Invariant 16.
#[test]
fn a_wait_that_was_but_guessed_stops_nobody_past_half_of_its_runway_and_one_that_was_asked_for_does() {
    let mut budget = budget(&[hourly(30)]);
    let tried = Held {
        tried_at: Some(t(3005)),
        ..held("n", t(0), t(3600))
    };
    budget.hold(&"a".into(), &tried);
    budget.enqueue(demand("a", "n", MintReason::Renewal, t(2400)));
    let stops = |guessed| Stops {
        blocked_until: Some(t(3300)),
        guessed,
        ..Stops::default()
    };
    assert!(budget.select(t(2990), 48, &stops(true)).admitted.is_empty());
    assert!(budget.select(t(3020), 48, &stops(false)).admitted.is_empty());
    assert_eq!(names(&budget.select(t(3020), 48, &stops(true)).admitted), ["a"]);
}

/// Invariant 16.
#[test]
fn however_long_a_server_asks_for_the_budget_looks_when_the_first_comes_to_half_of_its_runway() {
    let mut budget = budget(&[hourly(30)]);
    for (uid, issued) in [("a", 0), ("b", 60)] {
        budget.hold(&uid.into(), &held("n", t(issued), t(issued + 3600)));
        budget.enqueue(demand(uid, "n", MintReason::Renewal, t(2460)));
    }
    let stops = Stops {
        blocked_until: Some(t(9000)),
        ..Stops::default()
    };
    assert_eq!(budget.select(t(2500), 48, &stops).wake, Some(t(3000)));
    assert_eq!(names(&budget.select(t(3000), 48, &stops).admitted), ["a"]);
    budget.dequeue(&"a".into());
    assert_eq!(budget.select(t(3001), 48, &stops).wake, Some(t(3060)));
}

/// Invariant 16.
#[test]
fn behind_however_many_who_wait_for_the_server_whoever_has_its_own_try_makes_it() {
    let mut budget = budget(&[hourly(100)]);
    for i in 0..30 {
        let short = Some(s(300));
        let uid = format!("u{i}");
        let held = Held {
            renew_before: short,
            ..held("n", t(0), t(3600))
        };
        budget.hold(&uid.as_str().into(), &held);
        budget.enqueue(Demand {
            renew_before: short,
            ..demand(&uid, "n", MintReason::Renewal, t(3300))
        });
    }
    // It ends last, and has come to half of its runway.
    budget.hold(&"own".into(), &held("n", t(100), t(3700)));
    budget.enqueue(demand("own", "n", MintReason::Renewal, t(2500)));
    for guessed in [true, false] {
        let stops = Stops {
            blocked_until: Some(t(3500)),
            guessed,
            ..Stops::default()
        };
        assert_eq!(names(&budget.select(t(3310), 48, &stops).admitted), ["own"]);
    }
}

/// Invariant 16.
#[test]
fn a_newcomer_leaves_a_slot_for_the_own_try_of_each_whose_renewal_is_under_way() {
    let mut budget = budget(&[hourly(10)]);
    budget.set_sent([(t(0), 5)]);
    for uid in ["a", "b", "c"] {
        budget.hold(&uid.into(), &held("n", t(0), t(3600)));
        budget.enqueue(demand(uid, "n", MintReason::Renewal, t(2450)));
    }
    budget.enqueue(newcomer("new", "m", t(2450)));
    // Should both fail, what is left is for the halves of all three at 3000 s: what was sent first frees later.
    assert_eq!(names(&admitted(&mut budget, t(2450))), ["a", "b"]);
    let told = budget.waiting(&"new".into());
    assert!(told.is_none(), "a moment is nothing to tell of");
    let open = Open {
        namespace: "n".into(),
        at: t(2450),
        renew_before: None,
        max_lifetime: None,
        once: false,
    };
    for uid in ["a", "b"] {
        budget.dequeue(&uid.into());
        budget.open(&uid.into(), &open);
    }
    budget.set_sent([(t(0), 5), (t(2450), 2)]);
    assert!(admitted(&mut budget, t(2451)).is_empty());
    for uid in ["a", "b"] {
        budget.hold(&uid.into(), &held("n", t(2452), t(6052)));
    }
    let granted = admitted(&mut budget, t(2452));
    assert_eq!(names(&granted), ["c", "new"], "once both are answered");
}

/// Invariant 16.
#[test]
fn whoever_is_due_keeps_slots_as_if_renewed_now_and_no_sooner() {
    let mut budget = budget(&[hourly(5)]);
    budget.set_sent([(t(1895), 1), (t(1896), 1), (t(2450), 1)]);
    // Due since 2400 s, with its own try at 3000 s. Renewed now, its next one has one at 5900 s: slots free before.
    budget.hold(&"due".into(), &held("n", t(0), t(3600)));
    let failed = Held {
        tried_at: Some(t(2450)),
        ..held("n", t(-600), t(3000))
    };
    budget.hold(&"a".into(), &failed);
    budget.enqueue(demand("a", "n", MintReason::Renewal, t(2450)));
    assert_eq!(names(&admitted(&mut budget.clone(), t(2900))), ["a"]);
    budget.set_sent([(t(2300), 1), (t(2301), 1), (t(2450), 1)]);
    assert!(admitted(&mut budget, t(2900)).is_empty(), "none frees by then");
}

/// Invariant 3.
#[test]
fn a_due_renewal_takes_the_last_slot_before_any_newcomer() {
    let mut world = World::new(3, s(3600));
    world.want(newcomer("old", "n", t(0)), s(3600), t(0));
    world.step(t(0));
    world.budget.set_sent([(t(0), 1), (t(1), 1)]);
    // At half of its runway.
    let due = t(3000);
    world.budget.enqueue(newcomer("new", "m", t(1)));
    world.budget.enqueue(demand("old", "n", MintReason::Renewal, due));
    assert_eq!(names(&admitted(&mut world.budget, due)), ["old"]);
    assert_eq!(world.budget.waiting(&"new".into()).unwrap().position, 1);
}

#[test]
fn renewals_go_by_their_ends_and_only_as_early_as_nobody_else_is_harmed() {
    let mut budget = budget(&[hourly(2)]);
    budget.hold(&"late".into(), &held("n", t(0), t(3600)));
    budget.hold(&"first".into(), &held("n", t(-60), t(3540)));
    budget.set_sent([(t(-60), 1), (t(0), 1)]);
    for uid in ["late", "first"] {
        budget.enqueue(demand(uid, "n", MintReason::Renewal, t(2300)));
    }
    assert!(admitted(&mut budget, t(2350)).is_empty(), "both slots are used");
    let mut roomy = budget.clone();
    roomy.set_limits(&[hourly(6)]);
    assert_eq!(names(&admitted(&mut roomy, t(2350))), ["first", "late"]);
    // With less to spare, one more has to wait until the first is answered.
    roomy.set_limits(&[hourly(5)]);
    assert_eq!(names(&admitted(&mut roomy, t(2390))), ["first"]);
}

#[test]
fn the_next_in_line_is_admitted_the_moment_a_slot_frees() {
    let mut world = World::new(3, s(10));
    for uid in ["a", "b"] {
        world.want(newcomer(uid, "n", t(0)), s(3600), t(0));
        world.step(t(0));
    }
    world.budget.enqueue(newcomer("c", "n", t(1)));
    assert!(admitted(&mut world.budget, t(1)).is_empty());
    let next = world.budget.waiting(&"c".into()).unwrap().next_slot.unwrap();
    let free = t(10) + TimeDelta::milliseconds(100);
    assert!(
        next >= free && next <= free + s(10) / 256,
        "within two buckets of a 512th: {next}"
    );
    assert_eq!(names(&admitted(&mut world.budget, next)), ["c"]);
}

#[test]
fn whoever_can_never_fit_waits_and_holds_nobody_up() {
    let mut budget = budget(&[hourly(5)]);
    budget.enqueue(Demand {
        max_lifetime: Some(s(5)),
        ..newcomer("a-greedy", "n", t(0))
    });
    budget.enqueue(newcomer("b", "m", t(1)));
    assert_eq!(names(&admitted(&mut budget, t(2))), ["b"]);
    let waiting = budget.waiting(&"a-greedy".into()).unwrap();
    assert!(waiting.message.contains("no slot frees"), "{waiting:?}");
}

#[test]
fn a_live_token_of_another_scope_that_is_renewed_here_keeps_its_slot_from_newcomers() {
    let mut budget = budget(&[hourly(2)]);
    budget.set_typical_lifetime(Some(s(36_000)));
    budget.enqueue(newcomer("new", "m", t(0)));
    assert_eq!(names(&admitted(&mut budget, t(0))), ["new"]);
    for uid in ["moved-a", "moved-b"] {
        budget.hold(&uid.into(), &held("n", t(-1800), t(1800)));
    }
    assert!(admitted(&mut budget, t(0)).is_empty());
    // They themselves renew, the one that ends first before the other, and newcomers after both.
    budget.enqueue(demand("moved-a", "n", MintReason::Renewal, t(600)));
    assert!(
        admitted(&mut budget, t(600)).is_empty(),
        "nothing is to spare if it fails"
    );
    assert_eq!(names(&admitted(&mut budget, t(1200))), ["moved-a"]);
    // Gone without a renewal, they hold nothing up.
    budget.dequeue(&"moved-a".into());
    assert_eq!(names(&admitted(&mut budget, t(1801))), ["new"]);
}

fn attempts(count: usize, until: i64) -> Journal {
    let mut journal = Journal::new(scope());
    for i in 0..count {
        let uid = format!("u{i}");
        let at = t(i64::try_from(i).unwrap().min(until));
        journal.claim(&uid, claim(&uid, "n", MintReason::First, at, i), s(3600));
    }
    journal
}

#[test]
fn a_limit_seen_to_be_smaller_is_honoured_and_tried_upward_window_by_window() {
    let limits = [hourly(10)];
    let mut journal = attempts(6, 5);
    learn(&mut journal, &limits, t(6));
    for (at, limit) in [(7, 5), (3700, 6), (90_000, 10)] {
        assert_eq!(effective(&limits, &journal, t(at)), [hourly(limit)]);
    }
}

#[test]
fn one_early_429_takes_no_more_than_half_of_a_limit() {
    let limits = [hourly(1000)];
    let mut journal = attempts(4, 0);
    learn(&mut journal, &limits, t(1));
    assert_eq!(effective(&limits, &journal, t(2)), [hourly(500)]);
    learn(&mut journal, &limits, t(2));
    assert_eq!(effective(&limits, &journal, t(3)), [hourly(250)]);
}

#[test]
fn two_connections_with_one_scope_share_the_smallest_limit_of_each_window() {
    let minute = Limit {
        limit: 2,
        window: s(60),
    };
    assert_eq!(
        effective(&[hourly(10), hourly(4), minute], &Journal::new(scope()), t(0)),
        [minute, hourly(4)]
    );
}

#[test]
fn of_three_thousand_newcomers_no_more_are_admitted_at_once_than_a_journal_can_claim() {
    let mut budget = budget(&[Limit {
        limit: 10_000,
        window: s(10),
    }]);
    for i in 0..3000 {
        budget.enqueue(newcomer(&format!("u{i:04}"), &namespace(i, 20), t(0)));
    }
    let selection = budget.select(t(0), usize::MAX, &Stops::default());
    assert_eq!(selection.admitted.len(), select::MAX_OPEN_NEWCOMERS);
    assert!(
        selection.front.is_empty() && budget.waiting(&"u2999".into()).is_none(),
        "a moment is nothing to tell of"
    );
    for uid in &selection.admitted {
        budget.dequeue(uid);
        let open = Open {
            namespace: "n".into(),
            at: t(0),
            renew_before: None,
            max_lifetime: None,
            once: false,
        };
        budget.open(uid, &open);
    }
    assert!(admitted(&mut budget, t(0)).is_empty());
    for uid in ["a", "b"] {
        budget.hold(&uid.into(), &held("n", t(-3000), t(600)));
        budget.enqueue(demand(uid, "n", MintReason::Renewal, t(0)));
    }
    assert_eq!(
        names(&admitted(&mut budget, t(0))),
        ["a", "b"],
        "renewals have room left"
    );
}

#[test]
fn every_window_of_a_shared_scope_is_kept() {
    let minute = Limit {
        limit: 2,
        window: s(60),
    };
    let mut budget = budget(&[minute, hourly(20)]);
    for i in 0..6 {
        budget.enqueue(newcomer(&format!("u{i}"), "n", t(0)));
    }
    assert_eq!(admitted(&mut budget, t(0)).len(), 2);
    budget.set_sent([(t(0), 2)]);
    assert!(admitted(&mut budget, t(30)).is_empty());
    assert_eq!(admitted(&mut budget, t(62)).len(), 2);
    budget.set_sent([(t(0), 18)]);
    let selection = budget.select(t(62), 48, &Stops::default());
    assert!(selection.admitted.is_empty());
    let next = selection.usage.next_slot.unwrap();
    assert!(
        next >= t(3605) && next <= t(3620),
        "when the hour has passed, not the minute: {next}"
    );
}

#[test]
fn a_tenth_of_the_limit_is_kept_for_retries_where_it_allows() {
    let kept = |limit| limit - hourly(limit).for_newcomers();
    assert_eq!([1, 2, 3, 10, 19, 20, 100].map(kept), [0, 0, 1, 1, 1, 2, 10]);
}

#[test]
fn a_namespace_that_needs_many_mints_an_hour_goes_after_one_that_needs_few() {
    let mut budget = budget(&[hourly(30)]);
    let greedy = Held {
        renew_before: Some(s(2400)),
        ..held("greedy", t(0), t(3600))
    };
    budget.hold(&"g".into(), &greedy);
    for uid in ["m1", "m2"] {
        budget.hold(&uid.into(), &held("modest", t(0), t(36_000)));
    }
    budget.enqueue(newcomer("a", "greedy", t(1)));
    budget.enqueue(newcomer("b", "modest", t(2)));
    assert_eq!(names(&budget.select(t(3), 1, &Stops::default()).admitted), ["b"]);
    // Creating and deleting counts as well as holding.
    budget.set_spent([("modest".into(), 4)]);
    assert_eq!(names(&budget.select(t(3), 1, &Stops::default()).admitted), ["a"]);
    budget.set_spent([]);
    assert_eq!(names(&budget.select(t(3), 1, &Stops::default()).admitted), ["b"]);
}

#[test]
fn a_thousand_of_one_namespace_delay_the_first_of_another_by_one_turn() {
    let mut budget = budget(&[hourly(10)]);
    for i in 0..1000 {
        budget.enqueue(newcomer(&format!("u{i:03}"), "many", t(0)));
    }
    budget.enqueue(newcomer("other", "one", t(60)));
    let selection = budget.select(t(61), 48, &Stops::default());
    assert_eq!(names(&selection.admitted)[..2], ["u000", "other"]);
}

#[test]
fn waiting_pods_go_first() {
    let mut budget = budget(&[hourly(10)]);
    budget.hold(&"h".into(), &held("rich", t(0), t(3600)));
    budget.enqueue(newcomer("a", "poor", t(1)));
    budget.enqueue(Demand {
        pod_waits: true,
        renews: true,
        ..newcomer("b", "rich", t(2))
    });
    assert_eq!(names(&admitted(&mut budget, t(3))), ["b", "a"]);
}

#[test]
fn whoever_stays_in_line_keeps_the_time_since_when_they_wait() {
    let mut budget = budget(&[hourly(10)]);
    assert!(budget.enqueue(newcomer("a", "n", t(5))));
    assert!(budget.enqueue(newcomer("b", "n", t(6))));
    assert!(!budget.enqueue(newcomer("a", "n", t(7))), "nothing has changed");
    assert!(budget.enqueue(demand("a", "n", MintReason::Change, t(8))));
    assert_eq!(names(&admitted(&mut budget, t(9))), ["a", "b"]);
    // Who renews was not in that line.
    budget.enqueue(demand("a", "n", MintReason::Renewal, t(9)));
    budget.enqueue(newcomer("a", "n", t(10)));
    assert_eq!(names(&admitted(&mut budget, t(11))), ["b", "a"]);
    assert!(budget.dequeue(&"a".into()) && !budget.dequeue(&"a".into()));
    assert_eq!((budget.len(), budget.is_empty()), (1, false));
}

#[test]
fn whoever_rests_is_not_considered_and_goes_on_by_itself() {
    let mut budget = budget(&[hourly(10)]);
    for uid in ["a", "b"] {
        budget.enqueue(newcomer(uid, "n", t(0)));
    }
    budget.set_aside(&"a".into(), t(10));
    let selection = budget.select(t(1), 48, &Stops::default());
    assert_eq!(names(&selection.admitted), ["b"]);
    assert_eq!(selection.wake, Some(t(10)));
    budget.enqueue(demand("a", "n", MintReason::Change, t(2)));
    assert_eq!(names(&admitted(&mut budget, t(9))), ["b"]);
    assert_eq!(names(&admitted(&mut budget, t(10))), ["a", "b"]);
}

#[test]
fn a_rotation_asks_only_for_what_its_credential_does_not_have_already() {
    // Five are live, and a sixth would need more than newcomers may fill.
    let mut budget = budget(&[hourly(10)]);
    for i in 0..5 {
        budget.hold(
            &format!("u{i}").as_str().into(),
            &held("n", t(i * 400), t(i * 400 + 3600)),
        );
    }
    let now = t(2300);
    budget.set_sent((0..5).map(|i| (t(i * 400), 1)));
    budget.enqueue(newcomer("new", "n", t(0)));
    assert!(admitted(&mut budget, now).is_empty());
    budget.enqueue(demand("u0", "n", MintReason::Rotate, t(1)));
    assert_eq!(names(&admitted(&mut budget, now)), ["u0"]);
}

#[test]
fn a_look_changes_no_facts() {
    let mut budget = budget(&[hourly(10)]);
    for i in 0..30 {
        budget.enqueue(newcomer(&format!("u{i:02}"), &namespace(i, 4), t(0)));
    }
    let first = budget.select(t(0), 48, &Stops::default());
    assert!(first.admitted.len() > 3);
    assert_eq!(budget.select(t(0), 48, &Stops::default()), first);
}

/// Invariant 13.
#[test]
fn many_without_hope_whatever_they_ask_delay_nobody_behind_them() {
    let mut budget = budget(&[hourly(100)]);
    budget.set_typical_lifetime(Some(s(36_000)));
    // Every four hours one that is full: a series that drifts finds no way past it, one in step does.
    for i in 0..90 {
        let live = Held {
            renew_before: Some(s(1)),
            ..held("n", t(i), t(i + 14_400))
        };
        budget.hold(&format!("h{i}").as_str().into(), &live);
    }
    for i in 0..300 {
        budget.enqueue(Demand {
            max_lifetime: Some(s(5_000 + i * 28)),
            pod_waits: true,
            renews: true,
            ..newcomer(&format!("u{i:03}"), &namespace(usize::try_from(i).unwrap(), 60), t(0))
        });
    }
    budget.enqueue(Demand {
        max_lifetime: Some(s(14_400)),
        renew_before: Some(s(1)),
        ..newcomer("honest", "good", t(1))
    });
    assert_eq!(names(&admitted(&mut budget, t(7300))), ["honest"]);
}

/// Invariant 15.
#[test]
fn a_spec_that_asks_for_shorter_lives_takes_nobody_elses_slots() {
    let hold_five = |budget: &mut Budget| {
        for i in 0..5 {
            let uid = format!("u{i}");
            budget.hold(&uid.as_str().into(), &held("n", t(i * 100), t(i * 100 + 3600)));
        }
        budget.set_sent((0..5).map(|i| (t(i * 100), 1)));
    };
    let edited = Demand {
        max_lifetime: Some(s(900)),
        ..demand("u0", "n", MintReason::Renewal, t(2400))
    };
    let mut crowded = budget(&[hourly(12)]);
    hold_five(&mut crowded);
    crowded.enqueue(edited.clone());
    crowded.enqueue(demand("u1", "n", MintReason::Renewal, t(2500)));
    let selection = crowded.select(
        t(2500),
        usize::MAX,
        &Stops {
            newcomers: true,
            ..Stops::default()
        },
    );
    let rate = |uid: &str| selection.rates.get(uid).map(|a| (a.rate, a.period));
    assert_eq!(
        rate("u0"),
        Some((Rate::AsBefore, Some(s(2400)))),
        "no room for more: the old rate goes on"
    );
    assert_eq!(rate("u1"), Some((Rate::AsAsked, Some(s(2400)))));
    let mut roomy = budget(&[hourly(20)]);
    hold_five(&mut roomy);
    roomy.enqueue(edited);
    let selection = roomy.select(
        t(2500),
        usize::MAX,
        &Stops {
            newcomers: true,
            ..Stops::default()
        },
    );
    assert_eq!(
        selection.rates.get("u0").map(|a| (a.rate, a.period)),
        Some((Rate::AsAsked, Some(s(600))))
    );
}

/// Invariant 15.
#[test]
fn a_token_that_lives_shorter_than_it_was_admitted_with_takes_nobody_elses_slots() {
    let mut budget = budget(&[hourly(12)]);
    for i in 0..5 {
        let uid = format!("u{i}");
        let mut held = held("n", t(i * 100), t(i * 100 + 3600));
        held.admitted = Some(s(2400));
        if i == 0 {
            held.ends_at = t(900);
        }
        budget.hold(&uid.as_str().into(), &held);
    }
    budget.set_sent((0..5).map(|i| (t(i * 100), 1)));
    budget.enqueue(demand("u0", "n", MintReason::Renewal, t(600)));
    assert!(
        admitted(&mut budget, t(610)).is_empty(),
        "it is a newcomer for the difference"
    );
    let mut roomy = super::budget(&[hourly(40)]);
    let mut held = held("n", t(0), t(900));
    held.admitted = Some(s(2400));
    roomy.hold(&"u0".into(), &held);
    roomy.enqueue(demand("u0", "n", MintReason::Renewal, t(600)));
    assert_eq!(names(&admitted(&mut roomy, t(610))), ["u0"]);
}

#[test]
fn a_namespace_takes_no_more_than_its_access_rules_allow_and_holds_nobody_up() {
    let mut budget = budget(&[hourly(30)]);
    let capped = |i: usize| Demand {
        most: Some(4),
        ..newcomer(&format!("a{i:04}"), "a", t(0))
    };
    for i in 0..1000 {
        budget.enqueue(capped(i));
    }
    for i in 0..3 {
        budget.enqueue(newcomer(&format!("b{i}"), "b", t(1)));
    }
    // An hour's token is renewed one and a half times an hour.
    let (mut got, now) = (admitted_newcomers(&mut budget, t(2)), t(2));
    got.sort();
    assert_eq!(names(&got), ["a0000", "a0001", "b0", "b1", "b2"]);
    for uid in &got {
        budget.dequeue(uid);
        budget.hold(uid, &held(&uid.as_str()[..1], now, now + s(3600)));
    }
    budget.set_sent([(now, 5)]);
    assert!(admitted_newcomers(&mut budget, t(3)).is_empty());
    let told = budget.waiting(&"a0002".into()).unwrap().message;
    assert!(
        told.contains("may take 4 of the mints of svc in an hour")
            && told.contains("it takes 3.0, and this one needs 1.5"),
        "{told}"
    );
    // What is live goes on, though no more often than before.
    budget.enqueue(Demand {
        max_lifetime: Some(s(900)),
        most: Some(4),
        ..demand("a0000", "a", MintReason::Renewal, t(2500))
    });
    let selection = budget.select(t(2500), 48, &Stops::default());
    assert_eq!(selection.rates.get("a0000").map(|a| a.rate), Some(Rate::AsBefore));
}

fn admitted_newcomers(budget: &mut Budget, now: Time) -> Vec<Uid> {
    let stops = Stops {
        newcomers: true,
        ..Stops::default()
    };
    budget.select(now, 48, &stops).admitted
}

/// Invariant 16.
#[test]
fn who_ends_before_an_answer_can_be_had_leaves_the_last_slot_to_one_whom_it_keeps() {
    for (now, first) in [(3590, "a"), (3597, "b")] {
        let mut budget = budget(&[hourly(30)]);
        for (uid, issued) in [("a", 0), ("b", 100)] {
            let tried = Held {
                tried_at: Some(t(issued + 3001)),
                ..held("n", t(issued), t(issued + 3600))
            };
            budget.hold(&uid.into(), &tried);
            budget.enqueue(demand(uid, "n", MintReason::Renewal, t(issued + 2400)));
        }
        budget.set_sent([(t(1000), 29)]);
        let selection = budget.select(t(now), 48, &Stops::default());
        assert_eq!(names(&selection.admitted), [first], "{now}");
    }
}
