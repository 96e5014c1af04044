//! One time for every replica: the API server's, kept by a clock that no step moves.
//!
//! Budgets count elapsed time and tokens end at points of it. A node whose clock is an hour off, or is
//! stepped back and forth, must move neither, and a restart or another leader must go on in the same
//! time. So the time is the API server's at the start, and is carried on by a clock that only counts.

use std::time::Duration;

use chrono::TimeDelta;

use super::Time;

/// Clocks that differ by no more agree: the `Date` header tells whole seconds, and takes a moment.
const AGREES: TimeDelta = TimeDelta::seconds(2);
/// The middle of the second that a `Date` header names.
const HALF_A_SECOND: TimeDelta = TimeDelta::milliseconds(500);
/// A step of the API server's clock is believed once it has stood for this long: nobody mends it any more.
const BELIEVED_AFTER: Duration = Duration::from_secs(3600);

/// What the clocks say at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// What a clock that only counts says, the suspension of the machine included.
    pub elapsed: Duration,
    /// The machine's wall clock.
    pub wall: Time,
    /// The API server's, to the second: the `Date` header of an answer (RFC 9110, 6.6.1).
    pub reference: Time,
}

impl Reading {
    fn wall_agrees(&self) -> bool {
        (self.wall - self.reference - HALF_A_SECOND).abs() <= AGREES
    }

    /// The API server's time: told by the wall clock where that agrees, for it is finer.
    fn time(&self) -> Time {
        if self.wall_agrees() {
            self.wall
        } else {
            self.reference + HALF_A_SECOND
        }
    }
}

/// What a comparison with the API server's clock led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// They agree, give or take the drift of a clock.
    Agrees,
    /// The API server's clock is off by this much, and is not believed yet.
    Doubted(TimeDelta),
    /// Both other clocks went on by this much, and this one did not: the machine stood still, and tokens have
    /// aged meanwhile. (Or both were stepped: the two look alike.) To be moved at once.
    Paused(TimeDelta),
    /// The API server's clock has been off by this much for so long that it is gone by. To be moved.
    Stepped(TimeDelta),
}

/// A time that goes on as elapsed time does.
#[derive(Clone, Debug)]
pub struct SteadyClock {
    /// The time when `elapsed` was zero.
    base: Time,
    /// Since when the API server's clock disagrees.
    doubted_since: Option<Duration>,
}

impl SteadyClock {
    /// Starts from a wall clock that nothing was compared with.
    #[must_use]
    pub fn unverified(wall: Time, elapsed: Duration) -> Self {
        Self {
            base: wall - elapsed,
            doubted_since: None,
        }
    }

    /// Starts from the API server's time.
    #[must_use]
    pub fn start(reading: &Reading) -> Self {
        Self::unverified(reading.time(), reading.elapsed)
    }

    /// The time when `elapsed` has passed.
    #[must_use]
    pub fn now(&self, elapsed: Duration) -> Time {
        self.base + elapsed
    }

    /// Moves the time, once whoever goes by it has been told.
    pub fn move_by(&mut self, off: TimeDelta) {
        self.base += off;
        self.doubted_since = None;
    }

    /// Compares with the API server's clock, and follows its drift.
    pub fn check(&mut self, reading: &Reading) -> Checked {
        let off = reading.time() - self.now(reading.elapsed);
        if off.abs() <= AGREES {
            self.doubted_since = None;
            if reading.wall_agrees() {
                self.base += off;
            }
            return Checked::Agrees;
        }
        if reading.wall_agrees() && off > TimeDelta::zero() {
            return Checked::Paused(off);
        }
        let since = *self.doubted_since.get_or_insert(reading.elapsed);
        if reading.elapsed.saturating_sub(since) >= BELIEVED_AFTER {
            return Checked::Stepped(off);
        }
        Checked::Doubted(off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    const HOUR: i64 = 3600;

    fn t(seconds: i64) -> Time {
        chrono::Utc.timestamp_opt(1_700_000_000 + seconds, 0).unwrap()
    }
    /// At `at` seconds, with the wall clock and the API server's off by so many.
    fn reading(at: u32, wall: i64, reference: i64) -> Reading {
        Reading {
            elapsed: Duration::from_secs(at.into()),
            wall: t(i64::from(at) + wall),
            reference: t(i64::from(at) + reference),
        }
    }
    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_wall_clock_stepped_back_and_forth_by_an_hour_moves_nothing_however_long_it_stands() {
        let mut clock = SteadyClock::start(&reading(0, 0, 0));
        for (at, step) in [(10, HOUR), (20, -HOUR), (30, 0), (40, HOUR), (9000, HOUR)] {
            assert_eq!(clock.check(&reading(at, step, 0)), Checked::Agrees);
            assert_eq!(clock.now(s(at.into())), t(at.into()));
        }
    }

    #[test]
    fn a_start_with_a_stepped_wall_clock_goes_on_in_the_api_servers_time() {
        for step in [-HOUR, HOUR] {
            let clock = SteadyClock::start(&reading(100, step, 0));
            assert_eq!(clock.now(s(100)), t(100) + HALF_A_SECOND);
        }
    }

    #[test]
    fn drift_is_followed() {
        let mut clock = SteadyClock::start(&reading(0, 0, 0));
        assert_eq!(clock.check(&reading(100, 1, 1)), Checked::Agrees);
        assert_eq!(clock.now(s(100)), t(101));
        assert_eq!(clock.check(&reading(200, 2, 2)), Checked::Agrees);
        assert_eq!(clock.now(s(200)), t(202));
    }

    #[test]
    fn after_a_pause_of_the_machine_the_time_is_right_at_once() {
        let mut clock = SteadyClock::start(&reading(0, 0, 0));
        let two_hours = TimeDelta::hours(2);
        assert_eq!(
            clock.check(&reading(10, 2 * HOUR, 2 * HOUR)),
            Checked::Paused(two_hours)
        );
        clock.move_by(two_hours);
        assert_eq!(clock.now(s(10)), t(10 + 2 * HOUR));
    }

    #[test]
    fn a_step_of_the_api_servers_clock_is_believed_after_an_hour() {
        for (wall, step) in [(0, HOUR), (0, -HOUR), (-HOUR, -HOUR)] {
            let mut clock = SteadyClock::start(&reading(0, 0, 0));
            assert!(matches!(clock.check(&reading(10, wall, step)), Checked::Doubted(_)));
            assert!(matches!(clock.check(&reading(3600, wall, step)), Checked::Doubted(_)));
            assert_eq!(clock.now(s(3600)), t(3600));
            let Checked::Stepped(off) = clock.check(&reading(3610, wall, step)) else {
                panic!("it is believed by now");
            };
            clock.move_by(off);
            assert!((clock.now(s(3610)) - t(3610 + step)).abs() < TimeDelta::seconds(1));
        }
    }

    #[test]
    fn one_api_server_of_several_with_a_wrong_clock_moves_nothing() {
        let mut clock = SteadyClock::start(&reading(0, 0, 0));
        for at in (10..9000).step_by(20) {
            assert!(matches!(clock.check(&reading(at, 0, HOUR)), Checked::Doubted(_)));
            assert_eq!(clock.check(&reading(at + 10, 0, 0)), Checked::Agrees);
        }
    }
}
