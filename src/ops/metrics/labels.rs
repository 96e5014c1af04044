//! What metrics are told apart by.

use std::collections::HashSet;

use prometheus_client::encoding::EncodeLabelSet;

use crate::api::RateScope;

/// Budgets that have series of their own, at most.
pub const MOST_SCOPES: usize = 1000;

#[derive(Clone, Debug, Default, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct NoLabels {}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct EventLabels {
    pub(super) event: String,
    pub(super) reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct StateLabels {
    pub(super) ready: String,
    pub(super) reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ConnectionLabels {
    pub(super) connection: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct CredentialLabels {
    pub(super) namespace: String,
    pub(super) name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ResultLabels {
    pub(super) result: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ApiLabels {
    pub(super) verb: String,
    pub(super) code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct MintLabels {
    pub(super) connection: String,
    pub(super) scope: String,
    pub(super) service: String,
    pub(super) outcome: String,
}

/// A budget. A connection counts in one way only, so no two budgets of it share these three.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub struct ScopeLabels {
    /// The connection: of several that share the budget, the first by name.
    pub connection: String,
    /// `Service` or `Key`.
    pub scope: String,
    /// The service, or `*`.
    pub service: String,
}

impl ScopeLabels {
    /// The budget that `connection`, which counts by `kind`, asks for `service` by.
    #[must_use]
    pub fn new(connection: &str, kind: RateScope, service: &str) -> Self {
        let (scope, service) = match kind {
            RateScope::Service => ("Service", service),
            RateScope::Key => ("Key", "*"),
        };
        Self {
            connection: connection.to_owned(),
            scope: scope.to_owned(),
            service: service.to_owned(),
        }
    }

    /// All that have no series of their own. No budget has this `scope`.
    fn other() -> Self {
        Self {
            connection: "other".to_owned(),
            scope: "other".to_owned(),
            service: "other".to_owned(),
        }
    }
}

/// The budgets with series of their own.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<ScopeLabels>);

impl Names {
    /// The labels of its series: those of a budget that was among the first, or that of all others. Once given, they
    /// stay: a counter must not move.
    pub(super) fn named(&mut self, scope: ScopeLabels) -> ScopeLabels {
        if self.0.contains(&scope) {
            return scope;
        }
        if self.0.len() >= MOST_SCOPES {
            return ScopeLabels::other();
        }
        self.0.insert(scope.clone());
        scope
    }
}
