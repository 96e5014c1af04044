//! Numbers that are read back, cut to what times can be computed with: whatever is stored, no decision overflows.

use serde::{Deserialize, Deserializer};

use crate::core::Time;

/// The longest span, in seconds or milliseconds: 31 years, or a thousand times that, which no clock overflows by.
const MOST: i64 = 1_000_000_000_000;
/// The end of the year 9999, in milliseconds.
const LATEST: i64 = 253_402_300_799_999;

/// A span.
pub(super) fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    i64::deserialize(deserializer).map(|span| span.clamp(-MOST, MOST))
}

/// A span, where there is one.
pub(super) fn maybe_span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let span = Option::<i64>::deserialize(deserializer)?;
    Ok(span.map(|span| span.clamp(-MOST, MOST)))
}

/// A moment, in milliseconds since 1970.
pub(super) fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
    let ms = i64::deserialize(deserializer)?.clamp(-LATEST / 4, LATEST);
    Ok(Time::from_timestamp_millis(ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use crate::core::journal::tests_support::claim;
    use crate::core::journal::{Claim, MintReason};
    use crate::core::testing::t;

    #[test]
    fn a_stored_claim_of_any_length_at_any_time_is_computed_with() {
        let stored = serde_json::to_value(claim("a", "n", MintReason::First, t(0), 1)).unwrap();
        for extreme in [i64::MIN, i64::MAX] {
            let mut stored = stored.clone();
            for field in ["at", "timeoutSeconds", "renewBeforeMs"] {
                stored[field] = extreme.into();
            }
            let claim: Claim = serde_json::from_value(stored).unwrap();
            assert_eq!(claim.answered_by() > t(0), extreme > 0);
        }
    }
}
