//! What tests of decisions share.

use chrono::{TimeDelta, TimeZone};
use proptest::prelude::ProptestConfig;

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

/// A property's cases: so many, or as many times more as `PROPERTY_TIMES` says, for a long run.
///
/// # Panics
/// Where that is no number.
#[must_use]
pub fn cases(n: u32) -> ProptestConfig {
    let times = std::env::var("PROPERTY_TIMES").map_or(1, |times| times.parse().expect("PROPERTY_TIMES is a number"));
    ProptestConfig::with_cases(n * times)
}
