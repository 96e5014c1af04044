//! When a token is replaced, and when a failed try is repeated.

use chrono::TimeDelta;

use super::Time;
use crate::api::Reason;

/// Nothing is planned closer together than this.
const TICK: TimeDelta = TimeDelta::seconds(1);
/// The longest wait between tries where no live token sets a deadline.
const MAX_BACKOFF: TimeDelta = TimeDelta::minutes(10);
/// A claim older than this is never `POSTed`.
pub const CLAIM_FRESH: TimeDelta = TimeDelta::seconds(5);
/// How long past its timeout a claim of another process is left alone.
pub const CLAIM_GRACE: TimeDelta = TimeDelta::seconds(15);

/// The part of a token's life that is its runway: `renewBefore`, else a third; clamped so that at
/// least a third of the life passes before the next mint.
#[must_use]
pub fn runway(lifetime: TimeDelta, renew_before: Option<TimeDelta>) -> TimeDelta {
    let third = lifetime / 3;
    renew_before.map_or(third, |desired| desired.clamp(TimeDelta::zero(), third * 2))
}

/// The latest time at which a renewal still leaves the runway whole.
#[must_use]
pub fn latest_safe(issued_at: Time, ends_at: Time, renew_before: Option<TimeDelta>) -> Time {
    let lifetime = (ends_at - issued_at).max(TICK);
    ends_at - runway(lifetime, renew_before)
}

/// Half of the runway: until then a renewal may wait for others, then it is tried whoever waits.
#[must_use]
pub fn half_of_runway(issued_at: Time, ends_at: Time, renew_before: Option<TimeDelta>) -> Time {
    let lifetime = (ends_at - issued_at).max(TICK);
    ends_at - runway(lifetime, renew_before) / 2
}

/// When a renewal is first tried: up to 5 % of the period before [`latest_safe`], spread by `uid`
/// so that credentials issued together are not renewed together.
#[must_use]
pub fn renew_at(issued_at: Time, ends_at: Time, renew_before: Option<TimeDelta>, uid: &str) -> Time {
    let latest = latest_safe(issued_at, ends_at, renew_before);
    let period_ms = (latest - issued_at).num_milliseconds().max(0);
    let spread_ms = period_ms / 20 * i64::from(spread(uid)) / 1000;
    latest - TimeDelta::milliseconds(spread_ms)
}

/// A stable number below 1000 from a uid (FNV-1a).
#[must_use]
pub fn spread(uid: &str) -> u16 {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    u16::try_from(hash % 1000).unwrap_or(0)
}

/// What a failed try was.
#[derive(Clone, Copy, Debug)]
pub struct Try {
    /// Why it failed.
    pub reason: Reason,
    /// How many tries in a row failed, this one included.
    pub count: u32,
    /// Whether the request may have reached `ChittyConnect`, and so was counted.
    pub counted: bool,
}

/// What bounds the next try.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The budget's window.
    pub window: TimeDelta,
    /// The connection's timeout.
    pub timeout: TimeDelta,
    /// End and runway of the live token, where there is one.
    pub live: Option<(Time, TimeDelta)>,
}

/// The last moment at which a try can still be answered before the live token ends: twice the
/// timeout and 5 s before it, though at most half the runway.
#[must_use]
pub fn last_try(ends_at: Time, runway: TimeDelta, timeout: TimeDelta) -> Time {
    ends_at - (timeout * 2 + TimeDelta::seconds(5)).min(runway / 2)
}

/// When to try again after a failure at `now`, or `None` for never by itself.
///
/// Denials are final but for one more try for a live token; rejections get one try a window;
/// everything else backs off exponentially, spread by `uid` and capped by the life that is left.
#[must_use]
pub fn retry_at(failed: Try, bounds: Bounds, uid: &str, now: Time) -> Option<Time> {
    let deadline = bounds
        .live
        .map(|(ends_at, runway)| last_try(ends_at, runway, bounds.timeout));
    match failed.reason {
        Reason::Denied => deadline.filter(|at| *at > now && failed.count <= 1),
        Reason::BrokerRejected | Reason::InvalidTemplate => {
            let next = now + bounds.window;
            Some(match deadline {
                Some(at) if at > now && failed.count <= 1 => next.min(at),
                _ => next,
            })
        }
        _ => {
            let base = if failed.counted {
                TimeDelta::seconds(10)
            } else {
                TimeDelta::seconds(1)
            };
            let doubled = base * (1_i32 << failed.count.saturating_sub(1).min(10));
            let wait = doubled.min(MAX_BACKOFF);
            let jittered = wait + wait * i32::from(spread(uid)) / 5000;
            let next = now + jittered;
            Some(match bounds.live {
                // Own waits end at half of the runway.
                Some((ends_at, runway)) if ends_at - runway / 2 > now => next.min(ends_at - runway / 2),
                // A third of what is left gives several tries before the end, and never spins.
                Some((ends_at, _)) if ends_at > now => next.min(now + ((ends_at - now) / 3).max(TICK)),
                _ => next,
            })
        }
    }
}

/// How long to leave a scope alone after a 429 without `Retry-After`: 60 s, doubling, at most a window.
#[must_use]
pub fn unadvised_block(count: u32, window: TimeDelta) -> TimeDelta {
    (TimeDelta::seconds(60) * (1_i32 << count.saturating_sub(1).min(6))).min(window.max(TICK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{s, t};
    fn bounds(live: Option<(Time, TimeDelta)>) -> Bounds {
        Bounds {
            window: s(3600),
            timeout: s(10),
            live,
        }
    }

    #[test]
    fn a_token_is_renewed_with_a_third_of_its_life_left_by_default() {
        assert_eq!(latest_safe(t(0), t(3600), None), t(2400));
    }

    #[test]
    fn renewals_are_spread_over_the_last_twentieth_of_the_period_and_never_late() {
        for uid in ["a", "b", "c", "d1f0", "e2"] {
            let at = renew_at(t(0), t(3600), None, uid);
            assert!(at <= t(2400) && at >= t(2280), "{uid}: {at}");
        }
    }

    #[test]
    fn no_renew_before_and_no_lifetime_makes_renewals_spin() {
        for lifetime in [1, 2, 5, 30, 3600] {
            for before in [0, 1, 5, 3600, 86_400] {
                let at = latest_safe(t(0), t(lifetime), Some(s(before)));
                assert!((at - t(0)) * 3 >= s(lifetime), "{lifetime} {before}: {at}");
                assert!(at <= t(lifetime));
            }
        }
    }

    #[test]
    fn a_denial_is_never_retried_without_a_live_token() {
        let denied = Try {
            reason: Reason::Denied,
            count: 1,
            counted: true,
        };
        assert_eq!(retry_at(denied, bounds(None), "u", t(0)), None);
    }

    #[test]
    fn a_denied_renewal_gets_one_more_try_at_its_latest_safe_time() {
        let live = Some((t(1200), s(1200)));
        let denied = |count| Try {
            reason: Reason::Denied,
            count,
            counted: true,
        };
        assert_eq!(retry_at(denied(1), bounds(live), "u", t(0)), Some(t(1175)));
        assert_eq!(retry_at(denied(2), bounds(live), "u", t(1175)), None);
    }

    #[test]
    fn a_rejection_is_retried_once_a_window() {
        let rejected = Try {
            reason: Reason::BrokerRejected,
            count: 1,
            counted: true,
        };
        assert_eq!(retry_at(rejected, bounds(None), "u", t(0)), Some(t(3600)));
    }

    #[test]
    fn retries_back_off_and_are_capped_by_the_life_that_is_left() {
        let failed = |count| Try {
            reason: Reason::BrokerUnavailable,
            count,
            counted: true,
        };
        let wait = |count, live| retry_at(failed(count), bounds(live), "u", t(0)).unwrap() - t(0);
        assert!(wait(1, None) >= s(10) && wait(1, None) <= s(12));
        assert!(wait(3, None) >= s(40) && wait(3, None) <= s(48));
        assert!(wait(30, None) <= s(720));
        assert!(
            wait(9, Some((t(30), s(10)))) <= s(25),
            "own waits end at half of the runway"
        );
        assert!(wait(9, Some((t(4), s(10)))) <= s(2));
    }
}
