//! Tests of the budget: single rules, and 48 virtual hours of a hundred credentials.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::core::clock::{Reading, SteadyClock};
use crate::core::journal::tests_support::{claim, live, scope};
use crate::core::journal::{AUDIT_CAPACITY, Ending};
use crate::core::testing::{s, t};

/// A scope as the controller drives it, in virtual time: admitted mints succeed at once.
struct World {
    journal: Journal,
    limits: Vec<Limit>,
    demands: BTreeMap<String, Demand>,
    lifetimes: BTreeMap<String, TimeDelta>,
    posts: Vec<Time>,
    lost: Vec<String>,
    newcomer_slots: BTreeMap<String, usize>,
    starved: Vec<String>,
    wake: Time,
}

impl World {
    fn new(limit: u32, window: TimeDelta) -> Self {
        Self {
            journal: Journal::new(scope()),
            limits: vec![Limit { limit, window }],
            demands: BTreeMap::new(),
            lifetimes: BTreeMap::new(),
            posts: Vec::new(),
            lost: Vec::new(),
            newcomer_slots: BTreeMap::new(),
            starved: Vec::new(),
            wake: t(0),
        }
    }

    fn want(&mut self, uid: &str, namespace: &str, lifetime: TimeDelta, now: Time) {
        self.lifetimes.insert(uid.to_owned(), lifetime);
        self.demands
            .insert(uid.to_owned(), demand(uid, namespace, Kind::First, now));
        self.wake = now;
    }

    /// Runs from wake to wake, as the controller does.
    fn run(&mut self, from: Time, until: Time) {
        let mut now = from;
        while now < until {
            if now >= self.wake {
                self.step(now);
            }
            now = self.wake.max(now + s(1));
        }
    }

    /// One pass of the controller at `now`.
    fn step(&mut self, now: Time) {
        self.journal.compact(now);
        let mut due = Vec::new();
        for (uid, record) in &self.journal.credentials {
            let Some(live) = &record.live else { continue };
            if live.ends_at <= now {
                self.lost.push(uid.to_string());
                due.push((uid.to_string(), record.namespace.clone(), Kind::First));
            } else if crate::core::schedule::renew_at(live.issued_at, live.ends_at, None, uid.as_str()) <= now {
                due.push((uid.to_string(), record.namespace.clone(), Kind::Renewal));
            }
        }
        for (uid, namespace, kind) in due {
            if kind == Kind::First {
                self.journal.release(&uid, now);
            }
            let entry = self
                .demands
                .entry(uid.clone())
                .or_insert_with(|| demand(&uid, &namespace, kind, now));
            entry.kind = kind;
        }
        let demands: Vec<Demand> = self.demands.values().cloned().collect();
        let selection = select(&self.journal, &Guests::new(), &demands, &self.limits, now);
        if let Some(uid) = selection.admitted.first().cloned() {
            let d = self.demands.remove(&uid).unwrap();
            if d.kind.is_newcomer() {
                self.note_fairness(&d);
            }
            self.mint(&d, now);
            self.wake = now;
            return;
        }
        let renewals = self.journal.credentials.iter().filter_map(|(uid, r)| {
            let live = r.live.as_ref().filter(|_| !self.demands.contains_key(uid.as_str()))?;
            Some(crate::core::schedule::renew_at(
                live.issued_at,
                live.ends_at,
                None,
                uid.as_str(),
            ))
        });
        let ends = self
            .journal
            .credentials
            .values()
            .filter_map(|r| r.live.as_ref())
            .map(|l| l.ends_at);
        self.wake = renewals
            .chain(ends)
            .chain(selection.wake)
            .min()
            .unwrap_or(now + s(3600));
    }

    fn note_fairness(&mut self, d: &Demand) {
        let k = self.newcomer_slots.get(&d.namespace).copied().unwrap_or(0);
        for waiting in self
            .demands
            .values()
            .filter(|w| w.kind.is_newcomer() && w.namespace != d.namespace)
        {
            if self.newcomer_slots.get(&waiting.namespace).copied().unwrap_or(0) < k {
                self.starved
                    .push(format!("{} before {}", d.namespace, waiting.namespace));
            }
        }
        *self.newcomer_slots.entry(d.namespace.clone()).or_default() += 1;
    }

    fn mint(&mut self, d: &Demand, now: Time) {
        let claim = claim(&d.uid, &d.namespace, d.kind, now, self.posts.len());
        let id = claim.id.clone();
        self.journal.claim(&d.uid, claim, self.limits[0].window);
        self.posts.push(now);
        let live = live(&id, now, now + self.lifetimes[&d.uid]);
        assert!(self.journal.end(&d.uid, &id, Ending::Published(Box::new(live)), now));
    }

    /// A hundred credentials in twelve namespaces, for ten requests an hour.
    fn of_a_hundred() -> Self {
        let mut world = Self::new(10, s(3600));
        for i in 0..100 {
            world.want(&format!("u{i:03}"), &format!("ns{:02}", i % 12), s(3600), t(0));
        }
        world
    }

    fn is_fair_and_within_ten(&self) {
        assert!(self.most_in_a_window() <= 10, "{}", self.most_in_a_window());
        assert_eq!(self.lost, Vec::<String>::new());
        assert_eq!(self.starved, Vec::<String>::new());
        let live = self.journal.credentials.values().filter(|r| r.live.is_some()).count();
        assert!(live >= 4, "only {live} are live");
    }

    fn most_in_a_window(&self) -> usize {
        let window = self.limits[0].window;
        self.posts
            .iter()
            .map(|from| {
                self.posts
                    .iter()
                    .filter(|p| **p >= *from && **p < *from + window)
                    .count()
            })
            .max()
            .unwrap_or(0)
    }
}

fn demand(uid: &str, namespace: &str, kind: Kind, since: Time) -> Demand {
    Demand {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        name: uid.to_owned(),
        kind,
        since,
        asks: String::new(),
        seq: 0,
        renew_before: None,
        max_lifetime: None,
        pod_waits: false,
    }
}

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
        world.want(&format!("u{i:03}"), &format!("ns{:02}", i % 5), lifetime, t(i * 7));
    }
    world.run(t(0), t(48 * 3600));
    assert!(world.most_in_a_window() <= 10);
    assert_eq!(world.lost, Vec::<String>::new());
}

#[test]
fn the_first_answer_of_a_scope_is_awaited_before_a_second_newcomer_is_admitted() {
    let world = World::new(10, s(3600));
    let demands = [demand("a", "n", Kind::First, t(0)), demand("b", "n", Kind::First, t(0))];
    let selection = select(&world.journal, &Guests::new(), &demands, &world.limits, t(0));
    assert_eq!(selection.admitted, ["a"]);
    assert!(selection.waiting.is_empty(), "a moment is nothing to tell of");
}

#[test]
fn a_due_renewal_takes_the_last_slot_before_any_newcomer() {
    let mut world = World::new(3, s(3600));
    world.want("old", "n", s(3600), t(0));
    world.step(t(0));
    let due = t(2400);
    let demands = [
        demand("new", "m", Kind::First, t(1)),
        demand("old", "n", Kind::Renewal, due),
    ];
    let selection = select(&world.journal, &Guests::new(), &demands, &world.limits, due);
    assert_eq!(selection.admitted, ["old"]);
    assert_eq!(selection.waiting["new"].position, 1);
}

#[test]
fn whoever_waits_reads_the_budget_the_next_slot_and_the_place_in_line() {
    let mut world = World::new(10, s(3600));
    for i in 0..12 {
        world.want(&format!("u{i:02}"), "n", s(3600), t(0));
    }
    for i in 0..20 {
        world.step(t(i));
    }
    let demands: Vec<Demand> = world.demands.values().cloned().collect();
    let selection = select(&world.journal, &Guests::new(), &demands, &world.limits, t(30));
    let first = selection.waiting.values().find(|w| w.position == 1).unwrap();
    assert!(
        first.message.starts_with("svc may mint 10 times in an hour: "),
        "{}",
        first.message
    );
    assert!(first.message.contains("position 1"), "{}", first.message);
    assert!(
        first.message.contains("not all can be live at once"),
        "{}",
        first.message
    );
}

#[test]
fn the_next_in_line_is_admitted_the_moment_a_slot_frees() {
    let mut world = World::new(3, s(10));
    world.want("a", "n", s(3600), t(0));
    world.step(t(0));
    world.want("b", "n", s(3600), t(0));
    world.step(t(0));
    let demands = [demand("c", "n", Kind::First, t(1))];
    let waiting = select(&world.journal, &Guests::new(), &demands, &world.limits, t(1));
    let next = t(10) + TimeDelta::milliseconds(100);
    assert_eq!(waiting.waiting["c"].next_slot, Some(next));
    assert_eq!(
        select(&world.journal, &Guests::new(), &demands, &world.limits, next).admitted,
        ["c"]
    );
}

#[test]
fn a_projection_of_many_renewals_and_one_very_long_life_lets_nobody_in_by_mistake() {
    let mut world = World::new(100, s(3600));
    world.want("long", "n", s(24 * 3600), t(0));
    world.step(t(0));
    for i in 0..99_i64 {
        let uid = format!("u{i:02}");
        world.lifetimes.insert(uid.clone(), s(5400));
        world.mint(&demand(&uid, "n", Kind::First, t(0)), t(1 + i * 36));
    }
    // Ninety-nine renewals an hour, and a slot is kept for a retry.
    let now = t(3605);
    let newcomer = [demand("new", "m", Kind::First, now)];
    let selection = select(&world.journal, &Guests::new(), &newcomer, &world.limits, now);
    assert_eq!(selection.admitted, Vec::<String>::new());
    assert!(
        selection.waiting["new"].message.contains("no slot frees"),
        "{:?}",
        selection.waiting
    );
}

#[test]
fn whoever_can_never_fit_waits_and_holds_nobody_up() {
    let mut world = World::new(5, s(3600));
    world.journal.typical_lifetime = Some(3600);
    let mut greedy = demand("a-greedy", "n", Kind::First, t(0));
    greedy.max_lifetime = Some(s(5));
    let demands = [greedy, demand("b", "m", Kind::First, t(1))];
    let selection = select(&world.journal, &Guests::new(), &demands, &world.limits, t(2));
    assert_eq!(selection.admitted, ["b"]);
    assert!(selection.waiting["a-greedy"].message.contains("no slot frees"));
}

#[test]
fn a_live_token_of_another_scope_that_is_renewed_here_keeps_its_slot_from_newcomers() {
    let mut world = World::new(2, s(3600));
    world.journal.typical_lifetime = Some(36_000);
    let guest = |uid: &str| {
        let token = live(uid, t(-1800), t(1800));
        (uid.to_owned(), Guest::of(&token, ("n".into(), uid.into())))
    };
    let guests = Guests::from([guest("moved-a"), guest("moved-b")]);
    let newcomer = [demand("new", "m", Kind::First, t(0))];
    assert_eq!(
        select(&world.journal, &Guests::new(), &newcomer, &world.limits, t(0)).admitted,
        ["new"]
    );
    assert!(
        select(&world.journal, &guests, &newcomer, &world.limits, t(0))
            .admitted
            .is_empty()
    );
    // They themselves renew, the one that ends first before the other, and newcomers after both.
    let demands = [newcomer[0].clone(), demand("moved-a", "n", Kind::Renewal, t(600))];
    let selection = select(&world.journal, &guests, &demands, &world.limits, t(600));
    assert_eq!(selection.admitted, ["moved-a"]);
    // Gone without a renewal, they hold nothing up.
    assert_eq!(
        select(&world.journal, &guests, &newcomer, &world.limits, t(1801)).admitted,
        ["new"]
    );
}

#[test]
fn a_block_by_the_server_stops_everybody_until_it_ends() {
    let mut world = World::new(10, s(3600));
    world.journal.typical_lifetime = Some(3600);
    world.journal.throttle.blocked_until = Some(t(60));
    let demands = [
        demand("a", "n", Kind::First, t(0)),
        demand("b", "n", Kind::Renewal, t(0)),
    ];
    let blocked = select(&world.journal, &Guests::new(), &demands, &world.limits, t(59));
    assert!(blocked.admitted.is_empty());
    assert_eq!(blocked.wake, Some(t(60)));
    assert_eq!(
        select(&world.journal, &Guests::new(), &demands, &world.limits, t(60))
            .admitted
            .len(),
        2
    );
}

#[test]
fn a_limit_seen_to_be_smaller_is_honoured_and_tried_upward_window_by_window() {
    let mut world = World::new(10, s(3600));
    for i in 0..5 {
        let c = claim(&format!("u{i}"), "n", Kind::First, t(i), usize::try_from(i).unwrap());
        world.journal.claim(&format!("u{i}"), c, s(3600));
    }
    world
        .journal
        .claim("u5", claim("u5", "n", Kind::First, t(5), 5), s(3600));
    learn(&mut world.journal, &world.limits, t(6));
    assert_eq!(effective(&world.limits, &world.journal, t(7))[0].limit, 5);
    assert_eq!(effective(&world.limits, &world.journal, t(3700))[0].limit, 6);
    assert_eq!(effective(&world.limits, &world.journal, t(90_000))[0].limit, 10);
}

#[test]
fn one_early_429_takes_no_more_than_half_of_a_limit() {
    let mut world = World::new(1000, s(3600));
    for i in 0..4 {
        let uid = format!("u{i}");
        let c = claim(&uid, "n", Kind::First, t(0), i);
        world.journal.claim(&uid, c, s(3600));
    }
    learn(&mut world.journal, &world.limits, t(1));
    assert_eq!(effective(&world.limits, &world.journal, t(2))[0].limit, 500);
    learn(&mut world.journal, &world.limits, t(2));
    assert_eq!(effective(&world.limits, &world.journal, t(3))[0].limit, 250);
}

#[test]
fn two_connections_with_one_scope_share_the_smallest_limit_of_each_window() {
    let limits = [
        Limit {
            limit: 10,
            window: s(3600),
        },
        Limit {
            limit: 4,
            window: s(3600),
        },
        Limit {
            limit: 2,
            window: s(60),
        },
    ];
    let journal = World::new(1, s(1)).journal;
    assert_eq!(
        effective(&limits, &journal, t(0)),
        [
            Limit {
                limit: 2,
                window: s(60)
            },
            Limit {
                limit: 4,
                window: s(3600)
            }
        ]
    );
}

#[test]
fn with_the_audit_backlog_at_four_fifths_newcomers_stop_and_at_capacity_renewals_do() {
    let mut world = World::new(10, s(3600));
    world.journal.typical_lifetime = Some(3600);
    let c = claim("x", "n", Kind::First, t(0), 0);
    let subject = crate::core::audit::Subject {
        uid: "x",
        namespace: "n",
        name: "x",
        request: &c.request,
        revision: 1,
    };
    let event = crate::core::audit::AuditEvent::new(
        crate::core::audit::EventType::Provisioned,
        Reason::Issued,
        &subject,
        t(0),
        true,
    );
    let demands = [
        demand("a", "n", Kind::First, t(0)),
        demand("b", "n", Kind::Renewal, t(0)),
    ];
    let events = |count: usize| {
        let event = std::sync::Arc::new(event.clone());
        (0..count).map(|i| (("x".into(), i as u64), event.clone())).collect()
    };
    world.journal.audit = events(AUDIT_CAPACITY * 4 / 5);
    assert_eq!(
        select(&world.journal, &Guests::new(), &demands, &world.limits, t(0)).admitted,
        ["b"]
    );
    world.journal.audit = events(AUDIT_CAPACITY);
    let full = select(&world.journal, &Guests::new(), &demands, &world.limits, t(0));
    assert!(full.admitted.is_empty());
    assert!(full.waiting.values().all(|w| w.reason == Reason::AuditBacklog));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_arrival_pattern_exceeds_the_limit_or_loses_a_live_credential(
        limit in 3_u32..14,
        lifetimes in prop::collection::vec(900_i64..7200, 1..30),
        gaps in prop::collection::vec(0_i64..900, 30),
    ) {
        let mut world = World::new(limit, s(3600));
        let mut arrivals = Vec::new();
        let mut at = 0_i64;
        for (i, lifetime) in lifetimes.iter().enumerate() {
            arrivals.push((at, i, *lifetime));
            at += gaps[i];
        }
        let mut now = t(0);
        for (when, i, lifetime) in arrivals {
            world.run(now, t(when));
            now = t(when);
            world.want(&format!("u{i}"), &format!("ns{}", i % 4), s(lifetime), now);
            // ChittyConnect's lifetimes are alike in a scope; what differs is known from the spec.
            world.demands.get_mut(&format!("u{i}")).unwrap().max_lifetime = Some(s(lifetime));
        }
        world.run(now, t(8 * 3600));
        let most = world.most_in_a_window();
        prop_assert!(most <= limit as usize, "{} POSTs in a window of {}", most, limit);
        prop_assert_eq!(&world.lost, &Vec::<String>::new());
    }
}

/// What a refused or refunded try leaves.
fn failed(world: &mut World, uid: &str, retry_at: Option<Time>, now: Time) {
    let c = claim(uid, "n", Kind::First, now, world.posts.len());
    let id = c.id.clone();
    world.journal.claim(uid, c, s(3600));
    let failure = crate::core::journal::Failure {
        reason: Reason::BrokerUnavailable,
        message: String::new(),
        at: now,
        count: 1,
        retry_at,
        request_hash: String::new(),
        layout_hash: String::new(),
        rotate: String::new(),
    };
    let ending = Ending::Failed {
        failure,
        counted: false,
    };
    assert!(world.journal.end(uid, &id, ending, now));
}

#[test]
fn failures_are_forgotten_once_they_delay_nothing_and_so_lock_nobody_out() {
    let mut world = World::new(10, s(3600));
    for i in 0..2000 {
        failed(&mut world, &format!("u{i}"), Some(t(60)), t(0));
    }
    failed(&mut world, "denied", None, t(0));
    let uids: Vec<_> = world.journal.credentials.keys().cloned().collect();
    let mut left_at = |now| {
        for uid in &uids {
            world.journal.compact_record(uid.as_str(), now);
        }
        world.journal.credentials.len()
    };
    assert_eq!(left_at(t(61)), 2001);
    assert_eq!(left_at(t(60 + 15 * 60)), 1);
    assert!(world.journal.credentials.contains_key("denied"));
}

#[test]
fn of_three_thousand_newcomers_no_more_are_admitted_at_once_than_a_journal_can_claim() {
    let mut world = World::new(10_000, s(10));
    world.journal.typical_lifetime = Some(3600);
    let demands: Vec<Demand> = (0..3000)
        .map(|i| demand(&format!("u{i:04}"), &format!("ns{}", i % 20), Kind::First, t(0)))
        .collect();
    let selection = select(&world.journal, &Guests::new(), &demands, &world.limits, t(0));
    assert_eq!(selection.admitted.len(), MAX_OPEN_NEWCOMERS);
    assert!(selection.waiting.is_empty(), "a moment is nothing to tell of");
    for uid in &selection.admitted {
        let c = claim(uid, "n", Kind::First, t(0), 0);
        world.journal.claim(uid, c, s(10));
    }
    let next = select(&world.journal, &Guests::new(), &demands, &world.limits, t(0));
    assert_eq!(next.admitted, Vec::<String>::new());
}

#[test]
fn a_pass_over_thousands_who_can_never_fit_searches_for_few_of_them() {
    let mut world = World::new(5, s(3600));
    world.journal.typical_lifetime = Some(3600);
    let mut demands: Vec<Demand> = (0..1200)
        .map(|i| {
            let mut greedy = demand(&format!("g{i:04}"), "n", Kind::First, t(0));
            greedy.max_lifetime = Some(TimeDelta::milliseconds(5000 + i));
            greedy
        })
        .collect();
    demands.push(demand("modest", "n", Kind::First, t(9)));
    let selection = select(&world.journal, &Guests::new(), &demands, &world.limits, t(10));
    assert_eq!(selection.admitted, ["modest"]);
    assert_eq!(selection.waiting.len(), 1200);
}
