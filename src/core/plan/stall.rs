//! When a wait is a standstill: what tools that go by conditions should give up on.

use chrono::TimeDelta;

use crate::api::Reason;
use crate::core::Time;

/// How long something is waited for that may be about to be created: manifests are often applied all at once, and an
/// administrator's part of them by somebody else.
const PATIENCE: TimeDelta = TimeDelta::minutes(2);

/// When a wait for `reason` that began at `since` is a standstill. `None` where it may end by itself.
#[must_use]
pub fn stalls_at(reason: Reason, since: Time) -> Option<Time> {
    match reason {
        Reason::Revoked | Reason::InvalidSpec | Reason::InvalidTemplate | Reason::Denied | Reason::SecretConflict => {
            Some(since)
        }
        Reason::NotPermitted | Reason::SourceNotFound | Reason::NotShared | Reason::ConnectionNotFound => {
            Some(since + PATIENCE)
        }
        _ => None,
    }
}
