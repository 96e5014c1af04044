//! What metrics tell of a leader's world.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use futures::FutureExt;
use kube::ResourceExt;

use crate::api::{Activation, EphemeralCredential, Reason};
use crate::controller::state::context::Context;
use crate::core::Time;
use crate::core::journal::MintReason;
use crate::core::status::Told;
use crate::ops::metrics::{CredentialFigures, ScopeFigures, ScopeLabels, Snapshot};

/// How often.
pub(crate) const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// A renewal that is due for longer is overdue.
const OVERDUE: TimeDelta = TimeDelta::minutes(1);

/// Where the renewal of a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Renewal {
    overdue: bool,
    /// Half of the time between when it was due and the token's end has passed.
    at_risk: bool,
}

fn renewal(told: &Told, now: Time) -> Option<Renewal> {
    let (due, end) = (told.renew_at?, told.expires_at?);
    let late = now - due;
    Some(Renewal {
        overdue: late > OVERDUE.min((end - due) / 2),
        at_risk: late > (end - due) / 2,
    })
}

impl Context {
    /// Sets all that only a leader knows.
    pub(crate) fn measure_all(&self) {
        let now = self.now();
        let mut snapshot = Snapshot::default();
        let mut counts: BTreeMap<(bool, Option<Reason>), i64> = BTreeMap::new();
        self.caches.credentials.for_each(|name, facts| {
            let told = &facts.told;
            let (ready, reason) = told.ready().unwrap_or_default();
            *counts.entry((ready, reason)).or_default() += 1;
            let end = told.expires_at.map(|at| at.timestamp());
            if self.credential_metrics {
                snapshot.each.push(CredentialFigures {
                    namespace: name.namespace.to_string(),
                    name: name.name.to_string(),
                    ready,
                    expires_at: end,
                });
            }
            snapshot.nearest_expiry = snapshot.nearest_expiry.into_iter().chain(end).min();
            if let Some(renewal) = renewal(told, now) {
                snapshot.overdue += i64::from(renewal.overdue);
                snapshot.at_risk += i64::from(renewal.at_risk);
            }
        });
        let counts = counts.into_iter().map(|((ready, reason), count)| {
            let reason = reason.map_or("Unknown", Reason::as_str).to_owned();
            ((ready, reason), count)
        });
        snapshot.credentials = counts.collect();
        snapshot.queued = i64::try_from(self.queued.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        snapshot.in_flight = i64::try_from(self.working.lock().len()).unwrap_or(i64::MAX);
        let connections = self.caches.connections.all();
        snapshot.connections = connections
            .iter()
            .filter(|r| !r.connection.spec.suspend)
            .map(|r| (r.connection.name_any(), r.usable.is_ok() && r.held.is_ok()))
            .collect();
        let schedulers: Vec<_> = self.scopes.lock().values().cloned().collect();
        for scheduler in schedulers {
            let scope = &scheduler.scope;
            // The names are in order: of several that share a budget it is always the same.
            let Some(resolved) = connections.iter().find(|r| r.scope(&scope.of).as_ref() == Some(scope)) else {
                continue;
            };
            let labels = ScopeLabels::new(&resolved.connection.name_any(), scope.kind, &scope.of);
            let usage = scheduler.usage();
            // What is not read yet is not waited for.
            let journal = scheduler.journal.view().now_or_never().and_then(Result::ok);
            let figures = ScopeFigures {
                limit: usage.limit,
                used: usage.used,
                kept: usage.kept,
                waiting: usage.waiting,
                backlog: journal.as_ref().map_or(0, |j| j.audit.len()),
                backlog_percent: journal.as_ref().map_or(0, |j| j.backlog()),
                owed: journal
                    .as_ref()
                    .map_or(0, |j| j.revocations.values().filter(|r| r.due <= now).count()),
                journal_bytes: scheduler.journal.bytes(),
            };
            snapshot.scopes.push((labels, figures));
        }
        snapshot.scopes.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.metrics.observe(&snapshot);
    }

    /// Notes how long a token that was just published was waited for, by what its credential said before.
    pub(crate) fn measure(&self, credential: &EphemeralCredential, kind: MintReason) {
        let since = match kind {
            // It was wanted when a Pod came.
            MintReason::First if credential.spec.activation == Activation::OnDemand => None,
            MintReason::First => credential
                .creation_timestamp()
                .and_then(|at| Time::from_timestamp(at.0.as_second(), 0)),
            MintReason::Renewal => credential.status.as_ref().and_then(|status| status.renew_at),
            _ => None,
        };
        let Some(since) = since else { return };
        let waited = (self.now() - since).to_std().unwrap_or_default();
        if kind == MintReason::First {
            self.metrics.first_token(waited);
        } else {
            self.metrics.rotated(waited);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EphemeralCredentialStatus;
    use crate::core::testing::t;

    fn at(renews: i64, ends: i64, now: i64) -> (bool, bool) {
        let status = EphemeralCredentialStatus {
            renew_at: Some(t(renews)),
            expires_at: Some(t(ends)),
            ..EphemeralCredentialStatus::default()
        };
        let renewal = renewal(&Told::of(Some(&status)), t(now)).unwrap();
        (renewal.overdue, renewal.at_risk)
    }

    #[test]
    fn a_renewal_is_overdue_after_a_minute_and_at_risk_after_half_of_the_runway() {
        assert_eq!(at(2400, 3600, 2400), (false, false));
        assert_eq!(at(2400, 3600, 2460), (false, false));
        assert_eq!(at(2400, 3600, 2461), (true, false));
        assert_eq!(at(2400, 3600, 3001), (true, true));
        // A runway shorter than two minutes has no minute to wait.
        assert_eq!(at(0, 60, 31), (true, true));
        assert_eq!(renewal(&Told::default(), t(0)), None);
    }
}
