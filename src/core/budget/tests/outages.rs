//! Outages in virtual time: a broker that fails every request for a while, and live tokens that outlast it.

use std::collections::BTreeMap;

use super::*;
use crate::api::Reason;
use crate::core::schedule::{Bounds, Try, renew_at, retry_at, runway};

const TIMEOUT: i64 = 10;

/// How requests fail during an outage.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// At once, and counted.
    ServerError,
    /// At once, and not counted.
    Refused,
    /// After the timeout, and counted.
    Hang,
}

#[derive(Clone, Default)]
struct Credential {
    live: Option<(Time, Time)>,
    tried_at: Option<Time>,
    failures: u32,
    retry_at: Option<Time>,
    /// When its request left, and when it is answered.
    under_way: Option<(Time, Time)>,
}

struct World {
    budget: Budget,
    limit: Limit,
    credentials: BTreeMap<Uid, Credential>,
    sent: Vec<Time>,
    lost: usize,
}

impl World {
    /// As many as the projection admits of tokens that live for an hour, issued `apart` seconds.
    fn full(limit: u32, live: i64, apart: i64) -> Self {
        let mut world = Self {
            budget: budget(&[hourly(limit)]),
            limit: hourly(limit),
            credentials: BTreeMap::new(),
            sent: Vec::new(),
            lost: 0,
        };
        for i in 0..live {
            let (uid, at) = (Uid::from(format!("u{i:03}")), t(i * apart));
            let credential = Credential {
                live: Some((at, at + s(3600))),
                ..Credential::default()
            };
            world.sent.push(at);
            world.credentials.insert(uid.clone(), credential);
            world.hold(&uid);
        }
        world
    }

    fn hold(&mut self, uid: &Uid) {
        let credential = &self.credentials[uid];
        match credential.live {
            Some((issued_at, ends_at)) => self.budget.hold(
                uid,
                &Held {
                    tried_at: credential.tried_at,
                    ..held("n", issued_at, ends_at)
                },
            ),
            None => self.budget.release(uid),
        }
    }

    /// Runs second by second; requests answered within `outage` fail.
    fn run(&mut self, until: i64, outage: std::ops::Range<i64>, fault: Fault) {
        for second in 0..until {
            let now = t(second);
            let down = outage.contains(&second);
            for uid in self.credentials.keys().cloned().collect::<Vec<_>>() {
                self.answer(&uid, down, fault, now);
                self.ask(&uid, now);
            }
            let counts_for = self.limit.counts_for();
            self.sent.sort_unstable();
            self.budget
                .set_sent(self.sent.iter().filter(|at| **at + counts_for > now).map(|at| (*at, 1)));
            let admitted = self.budget.select(now, 48, &Stops::default()).admitted;
            for uid in admitted {
                self.budget.dequeue(&uid);
                let wait = if down && fault == Fault::Hang { TIMEOUT } else { 1 };
                self.credentials.get_mut(&uid).unwrap().under_way = Some((now, now + s(wait)));
                self.sent.push(now + s(wait));
                let open = Open {
                    namespace: "n".into(),
                    at: now,
                    renew_before: None,
                    max_lifetime: None,
                    once: false,
                };
                self.budget.open(&uid, &open);
            }
            let window = self.limit.window;
            let used = self.sent.iter().filter(|at| **at > now - window).count();
            assert!(used <= self.limit.limit as usize, "{used} requests at {now}");
        }
    }

    fn answer(&mut self, uid: &Uid, down: bool, fault: Fault, now: Time) {
        let credential = self.credentials.get_mut(uid).unwrap();
        let Some((asked, _)) = credential.under_way.filter(|(_, at)| *at <= now) else {
            return;
        };
        credential.under_way = None;
        if down {
            credential.failures += 1;
            credential.tried_at = Some(asked);
            let counted = fault != Fault::Refused;
            if !counted {
                let place = self.sent.iter().position(|at| *at == now).unwrap();
                self.sent.remove(place);
            }
            let failed = Try {
                reason: Reason::BrokerUnavailable,
                count: credential.failures,
                counted,
            };
            let bounds = Bounds {
                window: self.limit.window,
                timeout: s(TIMEOUT),
                live: credential.live.map(|(from, to)| (to, runway(to - from, None))),
            };
            credential.retry_at = retry_at(failed, bounds, uid.as_str(), now);
        } else {
            *credential = Credential {
                live: Some((now, now + s(3600))),
                ..Credential::default()
            };
        }
        self.hold(uid);
    }

    fn ask(&mut self, uid: &Uid, now: Time) {
        let credential = self.credentials.get_mut(uid).unwrap();
        if credential.live.is_some_and(|(_, ends)| ends <= now) {
            self.lost += 1;
            *credential = Credential::default();
            self.hold(uid);
            return;
        }
        let Some((issued_at, ends_at)) = credential.live else {
            return;
        };
        let waits = credential.under_way.is_some() || credential.retry_at.is_some_and(|at| at > now);
        if waits || renew_at(issued_at, ends_at, None, uid.as_str()) > now {
            self.budget.dequeue(uid);
        } else {
            self.budget.enqueue(demand(uid.as_str(), "n", MintReason::Renewal, now));
        }
    }
}

/// Whether no live token is lost to an outage of so many seconds that ends before anybody is at half of the runway,
/// whenever it begins.
fn outlasts(live: i64, apart: i64, seconds: i64, fault: Fault) {
    for begin in (2250..=2990 - seconds).step_by(61) {
        let mut world = World::full(10, live, apart);
        world.run(6000, begin..begin + seconds, fault);
        assert_eq!(
            world.lost, 0,
            "{live} {apart} s apart, {fault:?} for {seconds} s from {begin}"
        );
    }
}

// As many as newcomers may fill: four that were issued at once, six that are spread.
const FULL: [(i64, i64); 3] = [(4, 1), (4, 60), (6, 400)];

/// Invariant 16.
#[test]
fn minutes_of_500s_before_half_of_a_runway_lose_no_live_token() {
    for (live, apart) in FULL {
        for seconds in [120, 300, 600] {
            outlasts(live, apart, seconds, Fault::ServerError);
        }
    }
}

/// Invariant 16.
#[test]
fn minutes_without_a_connection_or_an_answer_before_half_of_a_runway_lose_no_live_token() {
    for fault in [Fault::Refused, Fault::Hang] {
        for (live, apart) in FULL {
            outlasts(live, apart, 300, fault);
        }
    }
}

#[test]
fn who_is_due_together_tries_no_more_than_leaves_each_its_own_try() {
    let mut world = World::full(10, 4, 1);
    world.run(2990, 2250..3200, Fault::ServerError);
    let failures: u32 = world.credentials.values().map(|c| c.failures).sum();
    assert!(
        (1..=2).contains(&failures),
        "{failures} of ten, four are used and four are kept"
    );
}
