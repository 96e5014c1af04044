//! A scope as the controller drives it, in virtual time: admitted mints succeed at once.

use std::collections::BTreeMap;

use super::*;
use crate::core::schedule::renew_at;

pub struct World {
    pub budget: Budget,
    pub limits: Vec<Limit>,
    pub demands: BTreeMap<Uid, Demand>,
    pub live: BTreeMap<Uid, Held>,
    lifetimes: BTreeMap<Uid, TimeDelta>,
    typical: Option<TimeDelta>,
    pub posts: Vec<Time>,
    pub lost: Vec<Uid>,
    newcomers: BTreeMap<Arc<str>, usize>,
    starved: Vec<String>,
    pub wake: Time,
}

impl World {
    pub fn new(limit: u32, window: TimeDelta) -> Self {
        let limits = vec![Limit { limit, window }];
        let mut budget = Budget::new("svc");
        budget.set_limits(&limits);
        Self {
            budget,
            limits,
            demands: BTreeMap::new(),
            live: BTreeMap::new(),
            lifetimes: BTreeMap::new(),
            typical: None,
            posts: Vec::new(),
            lost: Vec::new(),
            newcomers: BTreeMap::new(),
            starved: Vec::new(),
            wake: t(0),
        }
    }

    /// A hundred credentials in twelve namespaces, for ten requests an hour.
    pub fn of_a_hundred() -> Self {
        let mut world = Self::new(10, s(3600));
        for i in 0..100 {
            world.want(newcomer(&format!("u{i:03}"), &namespace(i, 12), t(0)), s(3600), t(0));
        }
        world
    }

    pub fn want(&mut self, demand: Demand, lifetime: TimeDelta, now: Time) {
        self.lifetimes.insert(demand.uid.clone(), lifetime);
        self.enqueue(demand);
        self.wake = now;
    }

    fn enqueue(&mut self, demand: Demand) {
        if self.budget.enqueue(demand.clone()) {
            self.demands.insert(demand.uid.clone(), demand);
        }
    }

    /// Runs from wake to wake, as the controller does.
    pub fn run(&mut self, from: Time, until: Time) {
        let mut now = from;
        while now < until {
            if now >= self.wake {
                self.step(now);
            }
            now = self.wake.max(now + s(1));
        }
    }

    /// One pass of the controller at `now`.
    pub fn step(&mut self, now: Time) {
        for (uid, live) in self.live.clone() {
            if live.ends_at <= now {
                self.lost.push(uid.clone());
                self.live.remove(&uid);
                self.budget.release(&uid);
                self.enqueue(newcomer(uid.as_str(), &live.namespace, now));
            } else if renew_at(live.issued_at, live.ends_at, None, uid.as_str()) <= now {
                self.enqueue(demand(uid.as_str(), &live.namespace, MintReason::Renewal, now));
            }
        }
        let stops = Stops {
            teaching: self.typical.is_none(),
            ..Stops::default()
        };
        let selection = self.budget.select(now, 5, &stops);
        for uid in &selection.admitted {
            self.budget.dequeue(uid);
            let demand = self.demands.remove(uid).unwrap();
            if demand.reason.is_newcomer() {
                self.note_fairness(&demand);
            }
            self.mint(&demand, now);
        }
        let renewals = self.live.iter().filter(|(uid, _)| !self.demands.contains_key(*uid));
        let renewals = renewals.map(|(uid, l)| renew_at(l.issued_at, l.ends_at, None, uid.as_str()));
        let ends = self.live.values().map(|l| l.ends_at);
        let next = renewals.chain(ends).chain(selection.wake).min();
        self.wake = if selection.admitted.is_empty() {
            next.unwrap_or(now + s(3600))
        } else {
            now
        };
    }

    fn note_fairness(&mut self, d: &Demand) {
        let had = |world: &Self, namespace: &str| world.newcomers.get(namespace).copied().unwrap_or(0);
        let own = &d.name.namespace;
        for waiting in self.demands.values().filter(|w| w.reason.is_newcomer()) {
            let other = &waiting.name.namespace;
            if other != own && had(self, other) < had(self, own) {
                self.starved.push(format!("{own} before {other}"));
            }
        }
        *self.newcomers.entry(Arc::clone(own)).or_default() += 1;
    }

    pub fn mint(&mut self, d: &Demand, now: Time) {
        let lifetime = self.lifetimes[&d.uid];
        self.posts.push(now);
        self.tell_sent(now);
        let token = held(&d.name.namespace, now, now + lifetime);
        self.budget.hold(&d.uid, &token);
        self.live.insert(d.uid.clone(), token);
        self.typical = Some(lifetime);
        self.budget.set_typical_lifetime(self.typical);
    }

    fn tell_sent(&mut self, now: Time) {
        let oldest = now - self.limits[0].counts_for();
        let counted = self.posts.iter().filter(|at| **at > oldest);
        self.budget.set_sent(counted.map(|at| (*at, 1)));
    }

    pub fn is_fair_and_within_ten(&self) {
        assert!(self.most_in_a_window() <= 10, "{}", self.most_in_a_window());
        assert!(self.lost.is_empty(), "{:?}", self.lost);
        assert_eq!(self.starved, Vec::<String>::new());
        assert!(self.live.len() >= 4, "only {} are live", self.live.len());
    }

    pub fn most_in_a_window(&self) -> usize {
        let window = self.limits[0].window;
        let within = |from: Time| self.posts.iter().filter(|p| **p >= from && **p < from + window).count();
        self.posts.iter().map(|from| within(*from)).max().unwrap_or(0)
    }
}
