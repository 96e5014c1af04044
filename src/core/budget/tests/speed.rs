//! How long a look takes where a scope is large, or somebody tries to make it slow. Run with
//! `cargo test --release --lib budget -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use super::*;

/// The time `look` takes, and what comes of it.
fn timed<T>(name: &str, look: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = look();
    let took = start.elapsed();
    println!("{name}: {took:?}");
    (result, took)
}

#[test]
#[ignore = "a measurement"]
fn twenty_thousand_newcomers_and_three_slots() {
    for (namespaces, limit) in [(12, 12), (20_000, 12)] {
        let mut budget = budget(&[hourly(limit)]);
        let _ = timed(&format!("{namespaces} namespaces: 20,000 enqueued"), || {
            for i in 0..20_000 {
                budget.enqueue(newcomer(&format!("u{i:05}"), &format!("ns{:05}", i % namespaces), t(0)));
            }
        });
        for i in 0..3 {
            budget.hold(
                &format!("h{i}").as_str().into(),
                &held("n", t(i * 700), t(i * 700 + 3600)),
            );
        }
        budget.set_sent((0..3).map(|i| (t(i * 700), 1)));
        let (selection, first) = timed("first look", || budget.select(t(2100), 48, &Stops::default()));
        assert_eq!(selection.admitted.len(), 3);
        for uid in &selection.admitted {
            budget.dequeue(uid);
            budget.hold(uid, &held("n", t(2100), t(5700)));
        }
        budget.set_sent((0..3).map(|i| (t(i * 700), 1)).chain([(t(2100), 3)]));
        let (selection, changed) = timed("nobody fits, facts changed", || {
            budget.select(t(2101), 48, &Stops::default())
        });
        assert!(selection.admitted.is_empty() && selection.front.len() == FRONT);
        let (_, same) = timed("nothing changed", || budget.select(t(2102), 48, &Stops::default()));
        assert!(first.max(changed).max(same) < Duration::from_millis(50));
    }
}

#[test]
#[ignore = "a measurement"]
fn ten_thousand_live_of_a_limit_of_ten_thousand_in_ten_seconds() {
    let limit = Limit {
        limit: 10_000,
        window: s(10),
    };
    live_and_admitting(limit, 1);
}

#[test]
#[ignore = "a measurement"]
fn ten_thousand_live_of_a_limit_of_eighteen_thousand_an_hour() {
    live_and_admitting(hourly(18_000), 1);
    let minute = Limit {
        limit: 340,
        window: s(60),
    };
    live_and_admitting(minute, 1);
}

/// Ten thousand live for an hour each, and 48 at a time are admitted besides.
fn live_and_admitting(limit: Limit, seed: u64) {
    println!("limit {} in {}", limit.limit, limit.window);
    let mut budget = budget(&[limit]);
    let mut random = seed;
    let mut sent = Vec::new();
    let _ = timed("10,000 held", || {
        for i in 0..10_000_i64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let jitter = i64::try_from(random >> 56).unwrap();
            let at = t(0) + TimeDelta::milliseconds(i * 240 + jitter);
            budget.hold(&format!("h{i}").as_str().into(), &held("n", at, at + s(3600)));
            if at + limit.counts_for() > t(2400) {
                sent.push((at, 1));
            }
        }
    });
    budget.set_sent(sent.iter().rev().take(600).rev().copied());
    for i in 0..5_000_usize {
        budget.enqueue(newcomer(&format!("u{i:05}"), &namespace(i, 50), t(0)));
    }
    let mut worst = Duration::ZERO;
    for round in 0..8 {
        let now = t(2400) - s(1) + TimeDelta::milliseconds(round * 100);
        let (selection, took) = timed("look", || budget.select(now, 48, &Stops::default()));
        worst = worst.max(took);
        let admitted = selection.admitted;
        let _ = timed(&format!("{} admitted become open, then held", admitted.len()), || {
            for uid in &admitted {
                budget.dequeue(uid);
                let open = Open {
                    namespace: "n".into(),
                    at: now,
                    renew_before: None,
                    max_lifetime: None,
                    once: false,
                };
                budget.open(uid, &open);
            }
            for uid in &admitted {
                budget.hold(uid, &held("n", now + s(1), now + s(3601)));
            }
        });
    }
    let _ = timed("nothing changed", || budget.select(t(2400), 48, &Stops::default()));
    let (_, later) = timed("1,000 overdue", || budget.select(t(2640), 48, &Stops::default()));
    for i in 1000..2000 {
        let uid = format!("h{i}");
        budget.enqueue(demand(&uid, "n", MintReason::Renewal, t(2640)));
    }
    let (selection, early) = timed("1,000 early", || budget.select(t(2641), 48, &Stops::default()));
    println!("  {} go early", selection.admitted.len());
    println!("worst look {worst:?}, overdue {later:?}, early {early:?}");
    assert!(worst < Duration::from_millis(100));
}

#[test]
#[ignore = "a measurement"]
fn twelve_hundred_hopeless_demands_with_rising_periods_do_not_make_a_look_slow() {
    for (name, namespaces) in [("one namespace", 1), ("1,200 namespaces", 1200)] {
        let mut budget = budget(&[hourly(100)]);
        budget.set_typical_lifetime(Some(s(36_000)));
        // Every four hours one that is full: a series that drifts finds no way past it, one in step does.
        for i in 0..90_i64 {
            let live = Held {
                renew_before: Some(s(1)),
                ..held("n", t(i), t(i + 14_400))
            };
            budget.hold(&format!("h{i}").as_str().into(), &live);
        }
        for i in 0..1200 {
            budget.enqueue(Demand {
                max_lifetime: Some(s(5_000 + i * 7)),
                pod_waits: true,
                renews: true,
                ..newcomer(&format!("u{i:04}"), &format!("bad{:04}", i % namespaces), t(0))
            });
        }
        budget.enqueue(Demand {
            max_lifetime: Some(s(14_400)),
            renew_before: Some(s(1)),
            ..newcomer("honest", "good", t(1))
        });
        let mut worst = Duration::ZERO;
        for look in 0..6 {
            // The first looks find changed facts, so that nothing is remembered.
            budget.set_sent([(t(look.min(3)), 1)]);
            let now = t(7300 + look);
            let (selection, took) = timed(name, || budget.select(now, 48, &Stops::default()));
            worst = worst.max(took);
            assert_eq!(names(&selection.admitted), ["honest"]);
        }
        println!("worst {worst:?}");
        assert!(worst < Duration::from_millis(50));
    }
}

/// Invariant 14.
#[test]
#[ignore = "a measurement"]
fn a_journal_of_ten_thousand_is_followed_and_checked() {
    use crate::core::journal::tests_support::{live, scope};
    use crate::core::journal::{Attempt, Journal};
    let mut journal = Journal::new(scope());
    for i in 0..10_000 {
        let at = t(i64::from(i) / 4);
        let (uid, id) = (format!("u{i:05}"), format!("c{i}"));
        journal.adopt_lost(
            &uid,
            (&format!("ns{:02}", i % 50), &uid),
            live(&id, at, at + s(3600)),
            at,
        );
        journal.attempts.push(Attempt {
            at,
            count: 1,
            namespace: Some(format!("ns{:02}", i % 50).into()),
        });
    }
    (journal.lost_at, journal.typical_lifetime) = (None, Some(3600));
    let mut follower = Follower::new("svc");
    for i in 0..20_000 {
        follower
            .budget
            .enqueue(newcomer(&format!("w{i:05}"), &namespace(i, 60), t(0)));
    }
    let terms = Terms {
        limits: vec![hourly(17_000)],
        newcomers: true,
    };
    let (_, first) = timed("from scratch", || {
        follower.decide(&Arc::new(journal.clone()), &terms, t(2500))
    });
    journal.release("u00000", t(2500), Reason::Expired);
    journal.attempts.pop();
    let after = Arc::new(journal);
    let ((decision, _), next) = timed("one commit later", || follower.decide(&after, &terms, t(2501)));
    println!("  {} admitted", decision.admitted.len());
    let (stands, check) = timed("checked", || follower.stands(&decision, &after, t(2501)));
    assert!(stands && first.max(next).max(check) < Duration::from_millis(200));
}
