//! What tests of decisions share.

use chrono::{TimeDelta, TimeZone};

use super::Time;

/// So many seconds after the moment at which tests begin.
#[must_use]
pub fn t(seconds: i64) -> Time {
    chrono::Utc.timestamp_opt(1_700_000_000 + seconds, 0).unwrap()
}

/// So many seconds.
#[must_use]
pub fn s(seconds: i64) -> TimeDelta {
    TimeDelta::seconds(seconds)
}
