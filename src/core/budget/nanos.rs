//! Times and lengths as whole nanoseconds: what windows are counted in.

use chrono::{DateTime, TimeDelta};

use crate::core::Time;

/// The last point in time that is told from later ones: in the year 2116.
const FAR: i64 = i64::MAX / 2;
/// The longest length that is told from longer ones: four and a half years.
const LONG: i64 = i64::MAX / 64;

/// Nanoseconds since 1970.
pub(super) fn nanos(at: Time) -> i64 {
    let beyond = if at.timestamp() < 0 { -FAR } else { FAR };
    at.timestamp_nanos_opt().map_or(beyond, |n| n.clamp(-FAR, FAR))
}

/// Nanoseconds from one point to another, at least one.
pub(super) fn length(delta: TimeDelta) -> i64 {
    let beyond = if delta < TimeDelta::zero() { 1 } else { LONG };
    delta.num_nanoseconds().map_or(beyond, |n| n.clamp(1, LONG))
}

/// The point in time that is so many nanoseconds after 1970.
pub(super) fn instant(nanos: i64) -> Time {
    DateTime::from_timestamp_nanos(nanos)
}
