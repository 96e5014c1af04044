//! Days of a scope in virtual time.

use proptest::prelude::*;

use super::world::World;
use super::*;
use crate::core::clock::{Reading, SteadyClock};
use crate::core::testing::cases;

/// Invariant 3.
#[test]
fn a_hundred_credentials_in_twelve_namespaces_never_exceed_the_limit_lose_none_and_starve_nobody() {
    let mut world = World::of_a_hundred();
    world.run(t(0), t(48 * 3600));
    world.is_fair_and_within_ten();
}

#[test]
fn a_clock_stepped_by_an_hour_and_restarts_meanwhile_buy_no_request_and_lose_nothing() {
    let mut world = World::of_a_hundred();
    let reading = |at: i64, step: i64| Reading {
        elapsed: std::time::Duration::from_secs(at.cast_unsigned()),
        wall: t(at + step),
        reference: t(at),
    };
    let mut clock = SteadyClock::start(&reading(0, 0));
    let mut posts = Vec::new();
    for at in 0..24 * 3600 {
        let step = [0, 3600, -3600, 0, -3600, 3600][usize::try_from(at / 700).unwrap() % 6];
        if at % 1900 == 0 {
            clock = SteadyClock::start(&reading(at, step));
        } else if at % 10 == 0 {
            clock.check(&reading(at, step));
        }
        let now = clock.now(reading(at, step).elapsed);
        let before = world.posts.len();
        if now >= world.wake || before == 0 {
            world.step(now);
        }
        posts.resize(world.posts.len(), t(at));
    }
    world.posts = posts;
    world.is_fair_and_within_ten();
}

#[test]
fn mixed_lifetimes_lose_no_live_credential_over_two_days() {
    let mut world = World::new(10, s(3600));
    for i in 0..40_i64 {
        let lifetime = s(1800 + 977 * (i % 9));
        let wish = newcomer(&format!("u{i:03}"), &format!("ns{:02}", i % 5), t(i * 7));
        world.want(wish, lifetime, t(i * 7));
    }
    world.run(t(0), t(48 * 3600));
    assert!(world.most_in_a_window() <= 10);
    assert!(world.lost.is_empty(), "{:?}", world.lost);
}

#[test]
fn a_projection_of_many_renewals_and_one_very_long_life_lets_nobody_in_by_mistake() {
    let mut world = World::new(100, s(3600));
    world.want(newcomer("long", "n", t(0)), s(24 * 3600), t(0));
    world.step(t(0));
    // As many renewals an hour as newcomers may fill.
    let last = i64::from(world.limits[0].for_newcomers());
    for i in 0..last {
        let wish = newcomer(&format!("u{i:02}"), "n", t(0));
        world.want(wish.clone(), s(5400), t(0));
        world.budget.dequeue(&wish.uid);
        world.mint(&wish, t(1 + i * 36));
    }
    let now = t(3605);
    world.budget.enqueue(newcomer("new", "m", now));
    assert!(admitted(&mut world.budget, now).is_empty());
    let waiting = world.budget.waiting(&"new".into()).unwrap();
    assert!(waiting.message.contains("no slot frees"), "{waiting:?}");
}

proptest! {
    #![proptest_config(cases(24))]

    /// Invariant 3.
    #[test]
    fn no_arrival_pattern_exceeds_the_limit_or_loses_a_live_credential(
        limit in 3_u32..24,
        lifetimes in prop::collection::vec(900_i64..7200, 1..30),
        gaps in prop::collection::vec(0_i64..900, 30),
    ) {
        let mut world = World::new(limit, s(3600));
        let mut now = t(0);
        for (i, lifetime) in lifetimes.iter().enumerate() {
            // ChittyConnect's lifetimes are alike in a scope; what differs is known from the spec.
            let wish = Demand {
                max_lifetime: Some(s(*lifetime)),
                ..newcomer(&format!("u{i}"), &namespace(i, 4), now)
            };
            world.want(wish, s(*lifetime), now);
            let next = now + s(gaps[i]);
            world.run(now, next);
            now = next;
        }
        world.run(now, t(8 * 3600));
        let most = world.most_in_a_window();
        prop_assert!(most <= limit as usize, "{} POSTs in a window of {}", most, limit);
        prop_assert!(world.lost.is_empty(), "{:?}", world.lost);
    }
}
