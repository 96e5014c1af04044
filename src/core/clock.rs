//! A clock that no step of the machine's clock moves: budgets are counted in elapsed time.

use std::time::Duration;

use chrono::TimeDelta;

use super::Time;

/// Differences up to this are drift, and followed.
const DRIFT: TimeDelta = TimeDelta::seconds(2);
/// A step is believed once it has stood for this long: by then what was counted before it has left
/// the usual window.
const BELIEVED_AFTER: Duration = Duration::from_secs(3600);

/// The machine's wall clock, steadied by its monotonic one.
#[derive(Clone, Debug)]
pub struct SteadyClock {
    /// The time when `elapsed` was zero.
    base: Time,
    /// Since when the wall clock disagrees.
    stepped_at: Option<Duration>,
}

impl SteadyClock {
    /// Starts at `wall`.
    #[must_use]
    pub const fn new(wall: Time) -> Self {
        Self {
            base: wall,
            stepped_at: None,
        }
    }

    /// The time, where the wall clock says `wall` and `elapsed` has passed since the start.
    pub fn read(&mut self, wall: Time, elapsed: Duration) -> Time {
        let steady = self.base + elapsed;
        let off = wall - steady;
        if off.abs() > DRIFT {
            let since = *self.stepped_at.get_or_insert(elapsed);
            if elapsed.saturating_sub(since) < BELIEVED_AFTER {
                return steady;
            }
        }
        self.base += off;
        self.stepped_at = None;
        wall
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    fn t(seconds: i64) -> Time {
        chrono::Utc.timestamp_opt(1_700_000_000 + seconds, 0).unwrap()
    }
    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_stepped_back_and_forth_by_an_hour_moves_nothing() {
        let mut clock = SteadyClock::new(t(0));
        for (elapsed, step) in [(10, 3600), (20, -3600), (30, 0), (40, 3600), (50, 7200)] {
            let wall = t(i64::try_from(elapsed).unwrap() + step);
            assert_eq!(clock.read(wall, s(elapsed)), t(i64::try_from(elapsed).unwrap()));
        }
    }

    #[test]
    fn drift_is_followed_and_a_lasting_step_believed_after_an_hour() {
        let mut clock = SteadyClock::new(t(0));
        assert_eq!(clock.read(t(101), s(100)), t(101));
        assert_eq!(clock.read(t(202), s(200)), t(202));
        assert_eq!(clock.read(t(1300), s(300)), t(302));
        assert_eq!(clock.read(t(4899), s(3899)), t(3901));
        assert_eq!(clock.read(t(4900), s(3900)), t(4900));
        assert_eq!(clock.read(t(4901), s(3901)), t(4901));
    }
}
