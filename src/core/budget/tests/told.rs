//! What those who wait are told, and what stops them.

use super::world::World;
use super::*;

fn crowded(count: usize) -> World {
    let mut world = World::new(10, s(3600));
    for i in 0..count {
        world.want(newcomer(&format!("u{i:03}"), &namespace(i, 3), t(0)), s(3600), t(0));
    }
    for i in 0..20 {
        world.step(t(i));
    }
    world
}

#[test]
fn whoever_waits_reads_the_budget_the_next_slot_and_the_place_in_line() {
    let mut world = crowded(12);
    let selection = world.budget.select(t(30), 48, &Stops::default());
    let first = world.budget.waiting(&selection.front[0]).unwrap();
    assert_eq!(first.position, 1);
    assert!(
        first.message.starts_with("svc may mint 10 times in an hour: "),
        "{}",
        first.message
    );
    assert!(first.message.contains("position 1"), "{}", first.message);
    assert!(
        first.message.contains(
            "; 12 credentials of svc have about 1.5 renewals in an hour each: together they need 18 of its 10, so that not all can be live at once"
        ),
        "{}",
        first.message
    );
    let places: Vec<usize> = selection
        .front
        .iter()
        .map(|uid| world.budget.waiting(uid).unwrap().position)
        .collect();
    assert_eq!(places, (1..=selection.front.len()).collect::<Vec<_>>());
    assert_eq!(selection.usage.waiting as usize, selection.front.len());
}

#[test]
fn who_alone_needs_more_than_there_is_reads_what_to_change() {
    let mut budget = budget(&[hourly(10)]);
    budget.set_typical_lifetime(Some(s(60)));
    budget.enqueue(newcomer("a", "n", t(1)));
    budget.select(t(10), 48, &Stops::default());
    let message = budget.waiting(&"a".into()).unwrap().message;
    assert!(
        message.ends_with(
            "; with about 90 renewals in an hour it can never be live: a longer maxLifetime or a shorter renewBefore needs fewer"
        ),
        "{message}"
    );
}

#[test]
fn a_slot_that_will_free_is_told_to_the_second() {
    let mut budget = budget(&[hourly(3)]);
    budget.set_typical_lifetime(Some(s(36_000)));
    budget.set_sent([(t(0), 2)]);
    budget.enqueue(newcomer("a", "n", t(1)));
    budget.enqueue(newcomer("b", "n", t(2)));
    let selection = budget.select(t(10), 48, &Stops::default());
    let next = selection.usage.next_slot.unwrap();
    assert_eq!(selection.wake, Some(next));
    let text = format!(
        "svc may mint 3 times in an hour: 2 used, 1 kept for renewals; next slot {}, position 2",
        crate::core::clock(next, t(10))
    );
    assert_eq!(budget.waiting(&"b".into()).unwrap().message, text);
}

#[test]
fn behind_the_first_twenty_all_read_one_text_that_stays_as_it_is() {
    let mut world = crowded(100);
    let last: Vec<Uid> = world.demands.keys().cloned().collect();
    let mut texts = Vec::new();
    for now in [30, 300, 900] {
        let selection = world.budget.select(t(now), 48, &Stops::default());
        assert_eq!(selection.front.len(), FRONT);
        let behind = last.iter().filter(|uid| !selection.front.contains(uid));
        texts.extend(behind.map(|uid| world.budget.waiting(uid).unwrap()));
    }
    assert!(texts.len() > 200);
    assert!(texts.iter().all(|w| *w == texts[0]));
    assert_eq!(
        texts[0].message,
        "svc may mint 10 times in an hour, and at least 20 others wait before this one: not all can be live at once; \
         `kubectl describe cconn` tells how the budget stands"
    );
    assert_eq!(texts[0].position, FRONT + 1);
}

#[test]
fn of_the_renewals_that_wait_the_first_twenty_read_the_figures() {
    let mut budget = budget(&[hourly(30)]);
    for i in 0..30 {
        let uid = format!("u{i:02}");
        budget.hold(&uid.as_str().into(), &held("n", t(i), t(i + 3600)));
        budget.enqueue(demand(&uid, "n", MintReason::Renewal, t(2500)));
    }
    budget.set_sent([(t(2000), 30)]);
    let selection = budget.select(t(2500), 48, &Stops::default());
    assert_eq!((selection.admitted.len(), selection.front.len()), (0, FRONT));
    let text = |uid: &str| budget.waiting(&uid.into()).unwrap().message;
    let free = crate::core::clock(t(5605), t(2500));
    assert_eq!(
        text("u19"),
        format!("svc may mint 30 times in an hour: 30 used, 0 kept for renewals; next slot {free}")
    );
    assert_eq!(
        text("u20"),
        "svc may mint 30 times in an hour, and at least 20 other renewals come before this one; \
         `kubectl describe cconn` tells how the budget stands"
    );
    assert_eq!(selection.wake, Some(t(3600)), "when the first of them ends");
}

/// One look admits sixteen of a namespace, eight by a search and eight by a test, and does not come to the others.
#[test]
fn newcomers_that_were_not_looked_at_yet_are_told_nothing_for_ten_seconds() {
    let mut budget = budget(&[hourly(1000)]);
    for i in 0..60 {
        budget.enqueue(newcomer(&format!("u{i:02}"), "n", t(0)));
    }
    let selection = budget.select(t(9), 48, &Stops::default());
    let waits = |i: usize| Uid::from(format!("u{i:02}").as_str());
    let left: Vec<Uid> = (0..60)
        .map(waits)
        .filter(|uid| !selection.admitted.contains(uid))
        .collect();
    assert!(left.len() > FRONT, "{}", left.len());
    assert!(left.iter().all(|uid| budget.waiting(uid).is_none()));
    assert_eq!(selection.wake, Some(t(10)));

    // It is told where it takes longer.
    let selection = budget.select(t(10), 48, &Stops::default());
    let told = budget.waiting(&selection.front[0]).unwrap();
    assert!(told.message.ends_with("position 1"), "{told:?}");
    assert!(budget.waiting(&left[left.len() - 1]).is_some());
}

#[test]
fn those_who_are_admitted_or_gone_are_told_nothing() {
    let mut budget = budget(&[hourly(10)]);
    budget.enqueue(newcomer("a", "n", t(0)));
    assert_eq!(names(&admitted(&mut budget, t(1))), ["a"]);
    assert!(budget.waiting(&"a".into()).is_none());
    assert!(budget.waiting(&"b".into()).is_none());
}

#[test]
fn a_block_by_the_server_stops_everybody_until_it_ends() {
    let mut budget = budget(&[hourly(10)]);
    budget.enqueue(newcomer("a", "n", t(0)));
    budget.enqueue(demand("b", "n", MintReason::Renewal, t(0)));
    let stops = Stops {
        blocked_until: Some(t(60)),
        ..Stops::default()
    };
    let blocked = budget.select(t(59), 48, &stops);
    assert!(blocked.admitted.is_empty());
    assert_eq!(blocked.wake, Some(t(60)));
    for uid in ["a", "b"] {
        let text = &budget.waiting(&uid.into()).unwrap().message;
        assert!(
            text.starts_with("ChittyConnect asked to leave svc alone until "),
            "{text}"
        );
    }
    assert_eq!(budget.select(t(60), 48, &stops).admitted.len(), 2);
}

/// Invariant 10.
#[test]
fn with_the_audit_backlog_at_four_fifths_newcomers_stop_and_at_capacity_renewals_do() {
    let mut budget = budget(&[hourly(10)]);
    budget.enqueue(newcomer("a", "n", t(0)));
    budget.enqueue(demand("b", "n", MintReason::Renewal, t(0)));
    let backlog = |backlog_percent| Stops {
        backlog_percent,
        ..Stops::default()
    };
    assert_eq!(budget.select(t(0), 48, &backlog(79)).admitted.len(), 2);
    assert_eq!(names(&budget.select(t(0), 48, &backlog(80)).admitted), ["b"]);
    let full = budget.select(t(0), 48, &backlog(100));
    assert!(full.admitted.is_empty());
    assert_eq!(full.wake, Some(t(5)));
    for uid in ["a", "b"] {
        assert_eq!(budget.waiting(&uid.into()).unwrap().reason, Reason::AuditBacklog);
    }
}

#[test]
fn a_lost_journal_stops_newcomers_only() {
    let mut budget = budget(&[hourly(10)]);
    budget.enqueue(newcomer("a", "n", t(0)));
    budget.enqueue(demand("b", "n", MintReason::Renewal, t(0)));
    let lost = Stops {
        lost_until: Some(t(50)),
        ..Stops::default()
    };
    assert_eq!(names(&budget.select(t(1), 48, &lost).admitted), ["b"]);
    let waiting = budget.waiting(&"a".into()).unwrap();
    assert!(waiting.message.contains("was lost and rebuilt"), "{waiting:?}");
    assert_eq!(budget.select(t(50), 48, &lost).admitted.len(), 2);
}

#[test]
fn nobody_is_told_anything_before_it_is_known_who_waits() {
    let mut budget = budget(&[hourly(10)]);
    budget.enqueue(newcomer("a", "n", t(0)));
    let cold = Stops {
        newcomers: false,
        ..Stops::default()
    };
    assert!(budget.select(t(1), 48, &cold).admitted.is_empty());
    assert!(budget.waiting(&"a".into()).is_none());
}

#[test]
fn the_figures_count_those_who_are_admitted() {
    let mut world = World::of_a_hundred();
    world.step(t(0));
    let selection = world.budget.select(t(1), 48, &Stops::default());
    let (count, usage) = (selection.admitted.len(), selection.usage);
    assert!(count > 2, "{usage:?}");
    assert_eq!((usage.limit, usage.used as usize), (10, 1 + count));
    // All of them renew within the hour, and one request is kept for a retry.
    assert_eq!(usage.kept as usize, (2 + count).min(9 - count));
    assert_eq!(usage.waiting as usize, 99 - count);
}
