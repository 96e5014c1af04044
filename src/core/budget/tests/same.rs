//! What is kept from fact to fact is what the facts alone come to.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::core::testing::cases;

/// What can be told a budget, or asked of it.
#[derive(Clone, Debug)]
enum Fact {
    Limits(u32, bool),
    Typical(Option<i64>),
    Sent(Vec<i64>),
    Spent(usize, u32),
    Hold(usize, i64, i64),
    Open(usize),
    Release(usize),
    Enqueue(usize, bool, i64),
    Dequeue(usize),
    Rest(usize, i64),
    Pass(i64),
}

fn facts() -> impl Strategy<Value = Vec<Fact>> {
    let who = 0_usize..24;
    let fact = prop_oneof![
        1 => (1_u32..20, any::<bool>()).prop_map(|(n, two)| Fact::Limits(n, two)),
        1 => prop::option::of(600_i64..9000).prop_map(Fact::Typical),
        2 => prop::collection::vec(0_i64..4000, 0..12).prop_map(Fact::Sent),
        1 => (who.clone(), 0_u32..9).prop_map(|(i, n)| Fact::Spent(i, n)),
        4 => (who.clone(), 0_i64..2000, 300_i64..9000).prop_map(|(i, ago, life)| Fact::Hold(i, ago, life)),
        2 => who.clone().prop_map(Fact::Open),
        2 => who.clone().prop_map(Fact::Release),
        5 => (who.clone(), any::<bool>(), 300_i64..9000).prop_map(|(i, r, life)| Fact::Enqueue(i, r, life)),
        1 => who.clone().prop_map(Fact::Dequeue),
        1 => (who, 0_i64..1000).prop_map(|(i, n)| Fact::Rest(i, n)),
        4 => (1_i64..1500).prop_map(Fact::Pass),
    ];
    prop::collection::vec(fact, 1..80)
}

/// The facts alone.
#[derive(Clone, Default)]
struct Model {
    limits: Vec<Limit>,
    typical: Option<TimeDelta>,
    sent: Vec<(Time, u32)>,
    spent: BTreeMap<Arc<str>, u32>,
    held: BTreeMap<Uid, Held>,
    open: BTreeMap<Uid, Open>,
    demands: BTreeMap<Uid, (Demand, Option<Time>)>,
}

impl Model {
    fn tell(&mut self, budget: &mut Budget, fact: &Fact, now: Time) {
        let uid = |i: usize| Uid::from(format!("u{i:02}"));
        match fact {
            Fact::Limits(n, two) => {
                self.limits = vec![hourly(*n)];
                if *two {
                    let window = s(600);
                    self.limits.insert(0, Limit { limit: 3, window });
                }
                budget.set_limits(&self.limits);
            }
            Fact::Typical(life) => {
                self.typical = life.map(s);
                budget.set_typical_lifetime(self.typical);
            }
            Fact::Sent(ago) => {
                let mut ago = ago.clone();
                ago.sort_unstable_by_key(|n| -n);
                self.sent = ago.iter().map(|n| (now - s(*n), 1)).collect();
                budget.set_sent(self.sent.clone());
            }
            Fact::Spent(i, n) => {
                self.spent.insert(namespace(*i, 4), *n);
                budget.set_spent(self.spent.clone());
            }
            Fact::Hold(i, ago, life) => {
                let token = held(&namespace(*i, 4), now - s(*ago), now - s(*ago) + s(*life));
                budget.hold(&uid(*i), &token);
                self.open.remove(&uid(*i));
                self.held.insert(uid(*i), token);
            }
            Fact::Open(i) => {
                let open = Open {
                    namespace: namespace(*i, 4),
                    at: now,
                    renew_before: None,
                    max_lifetime: Some(s(1800)),
                    once: false,
                };
                budget.open(&uid(*i), &open);
                // What it holds keeps its own try: the request may fail.
                self.open.insert(uid(*i), open);
            }
            Fact::Release(i) => {
                budget.release(&uid(*i));
                self.held.remove(&uid(*i));
                self.open.remove(&uid(*i));
            }
            Fact::Enqueue(..) => self.enqueue(budget, fact, now),
            Fact::Dequeue(i) => {
                assert_eq!(budget.dequeue(&uid(*i)), self.demands.remove(&uid(*i)).is_some());
            }
            Fact::Rest(i, n) => {
                budget.set_aside(&uid(*i), now + s(*n));
                if let Some((_, rest)) = self.demands.get_mut(&uid(*i)) {
                    *rest = Some(now + s(*n));
                }
            }
            Fact::Pass(_) => {}
        }
    }

    fn enqueue(&mut self, budget: &mut Budget, fact: &Fact, now: Time) {
        let Fact::Enqueue(i, renewal, life) = fact else { return };
        let reason = if *renewal {
            MintReason::Renewal
        } else {
            MintReason::First
        };
        let mut wish = Demand {
            max_lifetime: Some(s(*life)).filter(|_| life % 3 == 0),
            pod_waits: life % 4 == 0,
            renews: true,
            ..demand(&format!("u{i:02}"), &namespace(*i, 4), reason, now)
        };
        budget.enqueue(wish.clone());
        let old = self.demands.remove(&wish.uid);
        let rest = old.as_ref().and_then(|(_, rest)| *rest);
        if let Some((old, _)) = old
            && old.reason.is_newcomer() == wish.reason.is_newcomer()
        {
            wish.since = old.since;
        }
        self.demands.insert(wish.uid.clone(), (wish, rest));
    }

    fn scratch(&self, now: Time) -> Budget {
        let mut budget = Budget::new("svc");
        budget.set_limits(&self.limits);
        budget.set_typical_lifetime(self.typical);
        budget.set_sent(self.sent.clone());
        budget.set_spent(self.spent.clone());
        for (uid, held) in self.held.iter().filter(|(_, h)| h.ends_at > now) {
            budget.hold(uid, held);
        }
        for (uid, open) in &self.open {
            budget.open(uid, open);
        }
        for (uid, (demand, rest)) in &self.demands {
            budget.enqueue(demand.clone());
            if let Some(until) = rest.filter(|at| *at > now) {
                budget.set_aside(uid, until);
            }
        }
        budget
    }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn after_any_facts_the_budget_is_what_one_from_scratch_is(facts in facts()) {
        let mut model = Model { limits: vec![hourly(5)], ..Model::default() };
        let mut kept = model.scratch(t(0));
        let mut now = t(0);
        for fact in facts {
            model.tell(&mut kept, &fact, now);
            let Fact::Pass(seconds) = fact else { continue };
            now += s(seconds);
            // What is remembered of a search was found from where time was then.
            kept.memo.clear();
            let mut fresh = model.scratch(now);
            let (a, b) = (kept.select(now, 4, &Stops::default()), fresh.select(now, 4, &Stops::default()));
            prop_assert_eq!(a, b);
            for uid in model.demands.keys() {
                prop_assert_eq!(kept.waiting(uid), fresh.waiting(uid));
            }
            prop_assert_eq!(&kept.queue.index, &fresh.queue.index);
            for (a, b) in kept.projection.timelines.iter().zip(&fresh.projection.timelines) {
                prop_assert_eq!(a.load, b.load);
            }
            for (a, b) in kept.projection.counts().iter().zip(fresh.projection.counts()) {
                prop_assert!(a.len() > 512 && *a == b);
            }
        }
    }
}
