//! What really happened at ChittyConnect, whatever clients were told: tests hold claims against it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::limits::Scope;
use super::matching::Route;

/// Everything that happened until the moment the ledger was asked for.
///
/// All times but [`Post::since_start`] are by the simulator's clock, skew included.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Every request to a route that mints, in the order of arrival.
    pub posts: Vec<Post>,
    /// Every credential that was minted.
    pub mints: Vec<Mint>,
    /// Every request to revoke.
    pub revocations: Vec<Revocation>,
    /// Every audit event that was accepted.
    pub events: Vec<AuditEvent>,
    /// How often each route was called, those that mint included.
    pub calls: BTreeMap<Route, usize>,
}

/// A request to a route that mints.
#[derive(Clone, Debug)]
pub struct Post {
    /// When it arrived.
    pub at: DateTime<Utc>,
    /// When it arrived, by a clock that nobody sets.
    pub since_start: Duration,
    /// Where it arrived.
    pub route: Route,
    /// The service it names (`source_service` where there is no other).
    pub service: Option<String>,
    /// The purpose it names.
    pub purpose: Option<String>,
    /// The repository it names.
    pub repo: Option<String>,
    /// The run id it names.
    pub run_id: Option<String>,
    /// The type it asks for (provision only).
    pub credential_type: Option<String>,
    /// Its `Idempotency-Key` header.
    pub idempotency_key: Option<String>,
    /// Whose API key it came with, if that was accepted.
    pub key_owner: Option<String>,
    /// What it was answered; nothing yet, or never.
    pub status: Option<u16>,
    /// The credential that was minted for it: an index into [`Ledger::mints`].
    pub mint: Option<usize>,
}

/// A credential that was minted. Its `Debug` shows no secret.
#[derive(Clone)]
pub struct Mint {
    /// The request it was minted for: an index into [`Ledger::posts`].
    pub post: usize,
    /// The API that minted it.
    pub route: Route,
    /// The type that was asked for (provision only).
    pub credential_type: Option<String>,
    /// The id it can be revoked by.
    pub token_id: Option<String>,
    /// The service it was minted for.
    pub service: Option<String>,
    /// The purpose it was minted for.
    pub purpose: Option<String>,
    /// The repository it was minted for.
    pub repo: Option<String>,
    /// The run id it was minted for.
    pub run_id: Option<String>,
    /// Whose API key asked for it.
    pub key_owner: String,
    /// When it was minted.
    pub issued_at: DateTime<Utc>,
    /// When it ends by itself, whatever the answer said.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// Whether the answer that carries it went out to a client that was still there.
    pub delivered: bool,
    /// Its secrets by output name (`value` with provision).
    pub secrets: BTreeMap<String, String>,
}

/// A request to revoke.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// When it arrived.
    pub at: DateTime<Utc>,
    /// The id it names.
    pub token_id: Option<String>,
    /// What it was answered.
    pub status: u16,
}

/// An audit event sent through ChittyConnect.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    /// When it arrived.
    pub at: DateTime<Utc>,
    /// Whose API key it came with.
    pub key_owner: String,
    /// The event.
    pub body: Value,
}

impl Ledger {
    /// How many requests to routes that mint there were.
    #[must_use]
    pub fn posts(&self) -> usize {
        self.posts.len()
    }

    /// The most requests that any one service (or key owner) made in any window of that length,
    /// whatever they were answered.
    #[must_use]
    pub fn max_posts_in_any_window(&self, window: Duration, scope: Scope) -> usize {
        let mut times: BTreeMap<Option<&str>, Vec<Duration>> = BTreeMap::new();
        for post in &self.posts {
            let whose = match scope {
                Scope::Service => post.service.as_deref(),
                Scope::Key => post.key_owner.as_deref(),
            };
            times.entry(whose).or_default().push(post.since_start);
        }
        times.values().map(|times| densest(times, window)).max().unwrap_or(0)
    }

    /// The credentials somebody could use at `at`.
    #[must_use]
    pub fn live_tokens(&self, at: DateTime<Utc>) -> Vec<&Mint> {
        self.mints.iter().filter(|mint| mint.is_live(at)).collect()
    }

    /// Every secret ever minted. Account ids are none.
    #[must_use]
    pub fn secret_values(&self) -> Vec<String> {
        self.mints
            .iter()
            .flat_map(|mint| mint.secrets.values().cloned())
            .collect()
    }

    /// The credentials minted for a service.
    #[must_use]
    pub fn mints_for(&self, service: &str) -> Vec<&Mint> {
        self.mints
            .iter()
            .filter(|mint| mint.service.as_deref() == Some(service))
            .collect()
    }

    /// The requests made for a service.
    #[must_use]
    pub fn posts_for(&self, service: &str) -> Vec<&Post> {
        self.posts
            .iter()
            .filter(|post| post.service.as_deref() == Some(service))
            .collect()
    }

    /// The credential that carries this secret.
    #[must_use]
    pub fn mint_of(&self, secret: &str) -> Option<&Mint> {
        self.mints
            .iter()
            .find(|mint| mint.secrets.values().any(|value| value == secret))
    }

    /// How often `route` was called.
    #[must_use]
    pub fn calls(&self, route: Route) -> usize {
        self.calls.get(&route).copied().unwrap_or(0)
    }
}

impl Mint {
    /// Whether somebody could use it at `at`.
    #[must_use]
    pub fn is_live(&self, at: DateTime<Utc>) -> bool {
        self.issued_at <= at && self.expires_at.is_none_or(|end| at < end) && self.revoked_at.is_none_or(|end| at < end)
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mint")
            .field("post", &self.post)
            .field("service", &self.service)
            .field("purpose", &self.purpose)
            .field("run_id", &self.run_id)
            .field("token_id", &self.token_id)
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .field("revoked_at", &self.revoked_at)
            .field("delivered", &self.delivered)
            .field("outputs", &self.secrets.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// The most of `times`, which are in order, that any half-open window of that length holds.
fn densest(times: &[Duration], window: Duration) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, time) in times.iter().enumerate() {
        while time.saturating_sub(times[first]) >= window {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_densest_window_is_found_wherever_it_lies() {
        let times: Vec<_> = [0, 10, 11, 12, 20, 21].map(Duration::from_secs).to_vec();
        for (window, most) in [(1, 1), (2, 2), (3, 3), (10, 3), (11, 4), (12, 5), (22, 6)] {
            assert_eq!(densest(&times, Duration::from_secs(window)), most, "{window} s");
        }
        assert_eq!(densest(&[], Duration::from_secs(1)), 0);
    }
}
