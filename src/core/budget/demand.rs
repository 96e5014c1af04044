//! Somebody who wants to mint, and what decides about their place.

use std::sync::Arc;

use chrono::TimeDelta;

use crate::core::Time;
use crate::core::ids::{ObjectName, Uid};
use crate::core::journal::MintReason;

use super::series::{ONCE, expected_period};

/// Somebody who wants to mint.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// The credential.
    pub uid: Uid,
    /// Its namespace and name.
    pub name: ObjectName,
    /// Why.
    pub reason: MintReason,
    /// Since when.
    pub since: Time,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
    /// Longest use of a token.
    pub max_lifetime: Option<TimeDelta>,
    /// A Pod waits for the Secret.
    pub pod_waits: bool,
    /// Whoever gets the token has it renewed: otherwise it takes one mint, and no more.
    pub renews: bool,
    /// Mints a window that its namespace may take, live and new ones together; `None` for as many as there are.
    pub most: Option<u32>,
}

impl Demand {
    pub(super) fn lane(&self) -> LaneId {
        LaneId {
            no_pod: !self.pod_waits,
            namespace: Arc::clone(&self.name.namespace),
        }
    }

    pub(super) fn place(&self) -> Place {
        (self.since, Arc::clone(&self.name.name), self.uid.clone())
    }

    pub(super) fn group(&self, credential_state: CredentialState) -> Group {
        Group {
            renew_before: self.renew_before,
            max_lifetime: self.max_lifetime,
            holds: credential_state.holds,
            renews: self.renews,
            most: self.most,
        }
    }
}

/// What a credential that wants to mint holds already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CredentialState {
    /// Renewals are planned for it.
    pub(super) holds: bool,
    /// When its token ends, in nanoseconds; at once where it has none.
    pub(super) end: i64,
    /// When it has to be renewed at the latest; at once where it has none.
    pub(super) latest: i64,
}

/// What decides about how much somebody asks of the budget: equal for all of a group, unless they hold
/// something already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) renew_before: Option<TimeDelta>,
    pub(super) max_lifetime: Option<TimeDelta>,
    /// Renewals are planned for it.
    pub(super) holds: bool,
    /// Its token is to be renewed.
    pub(super) renews: bool,
    /// What its namespace may take.
    pub(super) most: Option<u32>,
}

impl Group {
    /// From one mint to the next, where tokens live as long as the last one did.
    pub(super) fn period(&self, typical: Option<TimeDelta>) -> i64 {
        if self.renews {
            expected_period(typical, self.renew_before, self.max_lifetime)
        } else {
            ONCE
        }
    }
}

/// Since when, name and uid: the order within a lane.
pub(super) type Place = (Time, Arc<str>, Uid);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaneId {
    pub(super) no_pod: bool,
    pub(super) namespace: Arc<str>,
}

/// Where somebody stands among all newcomers: waiting Pods first, then the namespace with the smallest
/// share, then by time, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) no_pod: bool,
    /// In thousandths of a mint a window.
    pub(super) share: u64,
    pub(super) since: Time,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) uid: Uid,
}

impl Key {
    pub(super) fn new(lane: &LaneId, share: u64, (since, name, uid): &Place) -> Self {
        Self {
            no_pod: lane.no_pod,
            share,
            since: *since,
            namespace: Arc::clone(&lane.namespace),
            name: Arc::clone(name),
            uid: uid.clone(),
        }
    }

    pub(super) fn lane(&self) -> LaneId {
        LaneId {
            no_pod: self.no_pod,
            namespace: Arc::clone(&self.namespace),
        }
    }

    pub(super) fn place(&self) -> Place {
        (self.since, Arc::clone(&self.name), self.uid.clone())
    }
}

/// The standing of somebody for whom this is planned.
pub(super) fn standing_of(first: i64, ends: Option<i64>) -> CredentialState {
    CredentialState {
        holds: true,
        end: ends.unwrap_or(first),
        latest: first,
    }
}
