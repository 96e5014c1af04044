//! The rate limits, each as its API accounts for it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::call::Call;

/// Whom a limit counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each service, whatever the key.
    Service,
    /// Each API key, whatever the service.
    Key,
}

/// The deploy API's documented limit: so many in any window of that length.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeployLimit {
    pub(super) limit: u32,
    pub(super) window: Duration,
    pub(super) scope: Scope,
}

/// The provision API's accounting: per UTC clock hour and the key's own service. What fails is charged, too, but for
/// requests that are not complete.
#[derive(Clone, Copy, Debug)]
pub struct ProvisionLimit {
    /// So many charges an hour.
    pub limit: u32,
    /// What one request is charged.
    pub charges: u32,
    /// Requests at the same time do not see each other's charges.
    pub racy: bool,
}

impl ProvisionLimit {
    /// As a real one was seen to count: each request twice, and requests at once not at all.
    #[must_use]
    pub const fn observed() -> Self {
        Self {
            limit: 10,
            charges: 2,
            racy: true,
        }
    }
}

impl Default for ProvisionLimit {
    fn default() -> Self {
        Self {
            limit: 10,
            charges: 1,
            racy: false,
        }
    }
}

/// The limiter in front of everything a key does. It is the one that talks in headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyLimit {
    pub(super) limit: u32,
    pub(super) window: Duration,
}

/// What the `X-RateLimit-*` headers say.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    pub(super) limit: u32,
    pub(super) remaining: u32,
    pub(super) reset_in: Duration,
}

#[derive(Default)]
pub(super) struct Counters {
    deploy: BTreeMap<String, Sliding>,
    key: BTreeMap<String, Sliding>,
    events: BTreeMap<String, Sliding>,
    provision: BTreeMap<(String, i64), u32>,
}

#[derive(Default)]
struct Sliding(VecDeque<Instant>);

impl Sliding {
    fn take(&mut self, limit: u32, window: Duration, now: Instant) -> bool {
        while self.0.front().is_some_and(|at| now - *at >= window) {
            self.0.pop_front();
        }
        let free = self.0.len() < limit as usize;
        if free {
            self.0.push_back(now);
        }
        free
    }
}

impl Counters {
    pub(super) fn deploy(&mut self, limit: DeployLimit, call: &Call, now: Instant) -> bool {
        let whose = match limit.scope {
            Scope::Service => call.service.clone(),
            Scope::Key => call.key.clone(),
        };
        self.deploy
            .entry(whose.unwrap_or_default())
            .or_default()
            .take(limit.limit, limit.window, now)
    }

    pub(super) fn key(&mut self, limit: KeyLimit, call: &Call, now: Instant) -> (bool, Standing) {
        let sliding = self.key.entry(call.key.clone().unwrap_or_default()).or_default();
        let granted = sliding.take(limit.limit, limit.window, now);
        let used = u32::try_from(sliding.0.len()).unwrap_or(u32::MAX);
        let standing = Standing {
            limit: limit.limit,
            remaining: limit.limit.saturating_sub(used),
            reset_in: sliding
                .0
                .front()
                .map_or(Duration::ZERO, |first| limit.window.saturating_sub(now - *first)),
        };
        (granted, standing)
    }

    pub(super) fn events(&mut self, call: &Call, now: Instant) -> bool {
        self.events
            .entry(call.key.clone().unwrap_or_default())
            .or_default()
            .take(60, Duration::from_secs(60), now)
    }

    pub(super) fn provision_has_room(&self, limit: ProvisionLimit, owner: &str, now: DateTime<Utc>) -> bool {
        self.provision
            .get(&(owner.to_owned(), clock_hour(now)))
            .is_none_or(|charged| *charged < limit.limit)
    }

    pub(super) fn charge_provision(&mut self, limit: ProvisionLimit, owner: &str, now: DateTime<Utc>) {
        *self.provision.entry((owner.to_owned(), clock_hour(now))).or_default() += limit.charges;
    }

    /// Forgets everything that was counted.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

fn clock_hour(now: DateTime<Utc>) -> i64 {
    now.timestamp().div_euclid(3600)
}
