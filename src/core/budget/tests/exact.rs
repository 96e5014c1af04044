//! The budget against exact arithmetic over all that is planned.

use proptest::prelude::*;

use super::*;
use crate::core::schedule::latest_safe;
use crate::core::testing::cases;

/// How far the exact plan reaches.
#[derive(Clone, Copy)]
enum Reach {
    /// As far as the budget surely looks: a dozen rounds of the slowest, at most 96 windows.
    InspectedSecret,
    /// Further than that.
    Beyond,
}

/// All facts, as they are.
struct Facts {
    sent: Vec<Time>,
    live: Vec<(Uid, Held)>,
}

fn period(lifetime: TimeDelta) -> TimeDelta {
    lifetime - lifetime / 3
}

impl Facts {
    /// Everything sent and planned, but for `uid`'s.
    fn others(&self, uid: &Uid, now: Time, until: Time) -> Vec<Time> {
        let mut all = self.sent.clone();
        for (_, held) in self.live.iter().filter(|(u, h)| u != uid && h.ends_at > now) {
            let first = latest_safe(held.issued_at, held.ends_at, None).max(now);
            all.extend(series(first, period(held.ends_at - held.issued_at), until));
        }
        all
    }

    /// Whether all windows that hold a request of `uid`, once from now on, have at most `cap` in a length.
    fn fits(&self, uid: &Uid, lifetime: TimeDelta, now: Time, cap: u32, length: TimeDelta, reach: Reach) -> bool {
        let lifetimes = self.live.iter().map(|(_, h)| h.ends_at - h.issued_at);
        let longest = period(lifetimes.chain([lifetime]).max().unwrap());
        let until = match reach {
            Reach::InspectedSecret => now + ((length + longest) * 12).min(length * 95),
            Reach::Beyond => now + length * 100,
        };
        let own: Vec<Time> = series(now, period(lifetime), until).collect();
        let mut all = self.others(uid, now, until);
        all.extend(&own);
        all.sort_unstable();
        let within = |list: &[Time], end: Time| {
            list.partition_point(|at| *at <= end) - list.partition_point(|at| *at <= end - length)
        };
        all.iter()
            .filter(|end| within(&own, **end) > 0)
            .all(|end| within(&all, *end) <= cap as usize)
    }

    /// Whether what all need is no more than `limit` allows in the long run.
    fn is_sustainable(&self, uid: &Uid, lifetime: TimeDelta, now: Time, limit: Limit) -> bool {
        let others = self.live.iter().filter(|(u, h)| u != uid && h.ends_at > now);
        let lifetimes = others.map(|(_, h)| h.ends_at - h.issued_at).chain([lifetime]);
        let milli = |delta: TimeDelta| delta.num_milliseconds();
        let parts: i64 = lifetimes
            .map(|l| milli(limit.counts_for()) * 1_000_000 / milli(period(l)))
            .sum();
        parts <= i64::from(limit.for_newcomers()) * 1_000_000
    }
}

fn series(first: Time, period: TimeDelta, until: Time) -> impl Iterator<Item = Time> {
    std::iter::successors(Some(first), move |at| Some(*at + period)).take_while(move |at| *at <= until)
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// Somebody asks, with a lifetime in windows / 60.
    Ask(i64),
    /// One of the live goes.
    Go(usize),
    /// So many thousandths of a window pass.
    Pass(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (6_i64..240).prop_map(Step::Ask),
        1 => (0_usize..20).prop_map(Step::Go),
        3 => (1_i64..700).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..60)
}

fn check(limits: &[Limit], steps: &[Step]) -> Result<(), TestCaseError> {
    let longest = limits.iter().map(|l| l.window).max().unwrap();
    let mut budget = budget(limits);
    budget.set_typical_lifetime(Some(longest * 10));
    let mut facts = Facts {
        sent: Vec::new(),
        live: Vec::new(),
    };
    let (mut now, mut count) = (t(0), 0);
    for step in steps {
        match step {
            Step::Ask(life) => {
                count += 1;
                let lifetime = s((longest * i32::try_from(*life).unwrap() / 60).num_seconds().max(3));
                let uid: Uid = format!("u{count:03}").into();
                let wish = Demand {
                    max_lifetime: Some(lifetime / 3 * 3),
                    ..newcomer(uid.as_str(), &namespace(count, 3), now)
                };
                ask(&mut budget, &mut facts, limits, wish, now)?;
            }
            Step::Go(i) => {
                if !facts.live.is_empty() {
                    let (uid, _) = facts.live.remove(i % facts.live.len());
                    budget.release(&uid);
                }
            }
            Step::Pass(thousandths) => {
                now += longest * i32::try_from(*thousandths).unwrap() / 1000;
                facts.live.retain(|(_, h)| h.ends_at > now);
                renew(&mut budget, &mut facts, limits, now)?;
            }
        }
    }
    Ok(())
}

fn mint(budget: &mut Budget, facts: &mut Facts, uid: &Uid, namespace: &str, lifetime: TimeDelta, now: Time) {
    budget.dequeue(uid);
    let token = held(namespace, now, now + lifetime);
    budget.hold(uid, &token);
    facts.live.retain(|(u, _)| u != uid);
    facts.live.push((uid.clone(), token));
    facts.sent.push(now);
    budget.set_sent(facts.sent.iter().map(|at| (*at, 1)));
}

/// One newcomer, alone in line: admitted only if it fits exactly, and surely if it fits with three
/// buckets to spare.
fn ask(budget: &mut Budget, facts: &mut Facts, limits: &[Limit], wish: Demand, now: Time) -> Result<(), TestCaseError> {
    let lifetime = wish.max_lifetime.unwrap();
    let (uid, namespace) = (wish.uid.clone(), wish.name.namespace.to_string());
    budget.enqueue(wish);
    let is_admitted = !budget.select(now, 1, &Stops::default()).admitted.is_empty();
    let fits = |buckets: i32, reach: Reach| {
        limits.iter().all(|l| {
            let length = l.counts_for() + l.window / 512 * buckets;
            facts.fits(&uid, lifetime, now, l.for_newcomers(), length, reach)
        })
    };
    if is_admitted {
        prop_assert!(fits(0, Reach::InspectedSecret), "{} of {} at {}", uid, lifetime, now);
        mint(budget, facts, &uid, &namespace, lifetime, now);
    } else {
        let sustainable = limits.iter().all(|l| facts.is_sustainable(&uid, lifetime, now, *l));
        prop_assert!(
            !(fits(3, Reach::Beyond) && sustainable),
            "{} of {} is kept out at {}",
            uid,
            lifetime,
            now
        );
        budget.dequeue(&uid);
    }
    Ok(())
}

/// All who are due, or nearly: they get a free slot, and those that go early harm nobody.
fn renew(budget: &mut Budget, facts: &mut Facts, limits: &[Limit], now: Time) -> Result<(), TestCaseError> {
    for (uid, token) in facts.live.clone() {
        let lifetime = token.ends_at - token.issued_at;
        let latest = latest_safe(token.issued_at, token.ends_at, None);
        if latest - lifetime / 10 > now {
            continue;
        }
        budget.enqueue(Demand {
            max_lifetime: Some(lifetime),
            ..demand(uid.as_str(), &token.namespace, MintReason::Renewal, now)
        });
        let is_admitted = !budget.select(now, 1, &Stops::default()).admitted.is_empty();
        let free = limits.iter().all(|l| {
            let counted = facts.sent.iter().filter(|at| **at > now - l.counts_for()).count();
            counted < l.limit as usize
        });
        if latest <= now {
            // Before half of the runway a try takes only what is to spare, from then on its own slot.
            prop_assert!(free || !is_admitted);
            if token.half() <= now {
                prop_assert_eq!(is_admitted, free);
            }
        } else if is_admitted {
            for l in limits {
                let fits = facts.fits(&uid, lifetime, now, l.limit, l.counts_for(), Reach::InspectedSecret);
                prop_assert!(fits, "{} early", uid);
            }
        }
        if is_admitted {
            mint(budget, facts, &uid, &token.namespace, lifetime, now);
        }
        budget.dequeue(&uid);
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn what_is_admitted_fits_exactly_and_what_fits_with_room_to_spare_is_admitted(
        limit in 1_u32..9,
        window in prop::sample::select(vec![60_i64, 600, 3600, 86_400]),
        steps in steps(),
    ) {
        check(&[Limit { limit, window: s(window) }], &steps)?;
    }

    #[test]
    fn two_windows_are_both_kept_exactly(
        limit in 3_u32..9,
        short in 1_u32..3,
        steps in steps(),
    ) {
        check(&[Limit { limit: short, window: s(300) }, hourly(limit)], &steps)?;
    }
}
