//! What a credential holds, and the renewals that follow from it.

use std::sync::Arc;

use chrono::TimeDelta;

use crate::core::Time;
use crate::core::journal::{ActiveToken, Claim};
use crate::core::schedule::{half_of_runway, latest_safe, runway};

use super::demand::Demand;
use super::nanos::{length, nanos};

/// A lifetime to plan with before `ChittyConnect` has shown one: what it documents.
pub(super) const ASSUMED_LIFETIME: TimeDelta = TimeDelta::hours(1);

/// The period of a token that is not renewed: a hundred years, in nanoseconds.
pub(super) const ONCE: i64 = 100 * 365 * 86_400 * 1_000_000_000;

/// A live token whose renewals count here, whoever holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Namespace of its credential.
    pub namespace: Arc<str>,
    /// When it was issued.
    pub issued_at: Time,
    /// When it ends for us.
    pub ends_at: Time,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
    /// When a try to replace it began last that failed, or is under way.
    pub tried_at: Option<Time>,
    /// Time from one renewal to the next that it was admitted with.
    pub admitted: Option<TimeDelta>,
}

impl Held {
    /// Half of its runway: from then on it has a try of its own.
    #[must_use]
    pub fn half(&self) -> Time {
        half_of_runway(self.issued_at, self.ends_at, self.renew_before)
    }

    pub(super) fn period(&self) -> i64 {
        period(self.ends_at - self.issued_at, self.renew_before)
    }

    /// What `live` of a credential in `namespace` comes to.
    #[must_use]
    pub fn of(namespace: &str, live: &ActiveToken) -> Self {
        Self {
            namespace: namespace.into(),
            issued_at: live.issued_at,
            ends_at: live.ends_at,
            renew_before: live.renew_before(),
            tried_at: None,
            admitted: live.period_ms.map(TimeDelta::milliseconds),
        }
    }

    /// What the claim of a token that waits for its Secrets comes to.
    pub(super) fn unpublished(claim: &Claim) -> Option<Self> {
        let minted = claim.minted.as_ref()?;
        Some(Self {
            namespace: claim.namespace.as_str().into(),
            issued_at: minted.issued_at,
            ends_at: minted.ends_at,
            renew_before: claim.renew_before_ms.map(TimeDelta::milliseconds),
            tried_at: None,
            admitted: claim.period_ms.map(TimeDelta::milliseconds),
        })
    }
}

/// A request under way: what it brings is not known yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// Namespace of its credential.
    pub namespace: Arc<str>,
    /// When it was claimed.
    pub at: Time,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
    /// Longest use of a token; of a renewal, at most as long as the token that it replaces.
    pub max_lifetime: Option<TimeDelta>,
    /// It is not renewed.
    pub once: bool,
}

/// Renewals at their latest safe times, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) namespace: Arc<str>,
    /// The next one.
    pub(super) first: i64,
    /// From one to the next.
    pub(super) period: i64,
    /// From one to the next as it was admitted, or longer where it lives longer: what its renewals may take for sure.
    pub(super) keeps: i64,
    /// When the token ends: afterwards nothing is renewed. `None` for a claim.
    pub(super) ends: Option<i64>,
}

impl Series {
    pub(super) fn of_held(held: &Held) -> Self {
        let period = held.period();
        Self {
            namespace: Arc::clone(&held.namespace),
            first: nanos(latest_safe(held.issued_at, held.ends_at, held.renew_before)),
            period,
            keeps: held.admitted.map_or(period, |admitted| length(admitted).max(period)),
            ends: Some(nanos(held.ends_at)),
        }
    }

    pub(super) fn of_open(open: &Open, typical: Option<TimeDelta>) -> Self {
        let period = if open.once {
            ONCE
        } else {
            expected_period(typical, open.renew_before, open.max_lifetime)
        };
        Self {
            namespace: Arc::clone(&open.namespace),
            first: nanos(open.at).saturating_add(period),
            period,
            keeps: period,
            ends: None,
        }
    }
}

impl Series {
    /// The period of the token that replaces this one, if the server has it live as long: what `demand` asks for.
    pub(super) fn period_of_next(&self, demand: &Demand) -> i64 {
        let Some(ends) = self.ends else { return self.period };
        let lifetime = TimeDelta::nanoseconds(self.period.saturating_add(ends - self.first));
        expected_period(Some(lifetime), demand.renew_before, demand.max_lifetime)
    }
}

/// The time from one renewal to the next, if each is made at its latest safe time; in nanoseconds.
///
/// Ends are whole seconds, answers are not: lifetimes that differ by such a fraction are the same, or
/// renewals that will stay in step would be projected to drift into each other.
pub(super) fn period(lifetime: TimeDelta, renew_before: Option<TimeDelta>) -> i64 {
    let lifetime = TimeDelta::seconds((lifetime.num_milliseconds() + 999).div_euclid(1000));
    length((lifetime - runway(lifetime, renew_before)).max(TimeDelta::milliseconds(100)))
}

/// The period of a token that is not there yet, where tokens live as long as the last one did.
pub(super) fn expected_period(
    typical: Option<TimeDelta>,
    renew_before: Option<TimeDelta>,
    max_lifetime: Option<TimeDelta>,
) -> i64 {
    let lifetime = typical.unwrap_or(ASSUMED_LIFETIME);
    period(max_lifetime.map_or(lifetime, |max| max.min(lifetime)), renew_before)
}
