//! Tests of the budget: single rules, days of a hundred credentials, exact arithmetic, and its speed.

use std::sync::Arc;

use chrono::TimeDelta;

use super::*;
use crate::core::ids::ObjectName;
use crate::core::journal::MintReason;
use crate::core::testing::{s, t};

mod days;
mod exact;
mod follow;
mod on_demand;
mod outages;
mod rules;
mod same;
mod speed;
mod told;
mod world;

/// Somebody without special wishes.
fn demand(uid: &str, namespace: &str, reason: MintReason, since: Time) -> Demand {
    Demand {
        uid: uid.into(),
        name: ObjectName::new(namespace, uid),
        reason,
        since,
        renew_before: None,
        max_lifetime: None,
        pod_waits: false,
        renews: true,
        most: None,
    }
}

fn newcomer(uid: &str, namespace: &str, since: Time) -> Demand {
    demand(uid, namespace, MintReason::First, since)
}

fn held(namespace: &str, issued_at: Time, ends_at: Time) -> Held {
    Held {
        namespace: namespace.into(),
        issued_at,
        ends_at,
        renew_before: None,
        tried_at: None,
        admitted: None,
    }
}

fn hourly(limit: u32) -> Limit {
    Limit { limit, window: s(3600) }
}

/// A budget of `svc` whose tokens live for an hour.
fn budget(limits: &[Limit]) -> Budget {
    let mut budget = Budget::new("svc");
    budget.set_limits(limits);
    budget.set_typical_lifetime(Some(s(3600)));
    budget
}

fn names(uids: &[Uid]) -> Vec<&str> {
    uids.iter().map(Uid::as_str).collect()
}

/// Whom `budget` admits at `now` if nothing stops it.
fn admitted(budget: &mut Budget, now: Time) -> Vec<Uid> {
    budget.select(now, 48, &Stops::default()).admitted
}

/// The number of the namespace that the `i`th of some credentials lives in.
fn namespace(i: usize, of: usize) -> Arc<str> {
    format!("ns{:02}", i % of).into()
}
