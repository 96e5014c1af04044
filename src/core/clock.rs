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
/// What a `Date` header alone tells: whoever is further off is off indeed.
const TELLS: TimeDelta = TimeDelta::seconds(1);

/// What the clocks say at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// What a clock that only counts says, the suspension of the machine included.
    pub elapsed: Duration,
    /// The machine's wall clock.
    pub wall: Time,
    /// The API server's, as far as the `Date` header of an answer tells (RFC 9110, 6.6.1): to half a second, or
    /// better.
    pub reference: Time,
}

impl Reading {
    fn wall_ahead(&self) -> TimeDelta {
        self.wall - self.reference
    }

    /// Whether the machine's clock is good enough to be gone by.
    #[must_use]
    pub fn wall_agrees(&self) -> bool {
        self.wall_ahead().abs() <= AGREES
    }

    /// The API server's time: told by the wall clock where that agrees, for it is finer.
    fn time(&self) -> Time {
        if self.wall_agrees() { self.wall } else { self.reference }
    }
}

/// What a comparison with the API server's clock led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// They agree, give or take the drift of a clock.
    Agrees,
    /// The API server's clock was stepped by this much. It is not gone by: no time has passed.
    Doubted(TimeDelta),
    /// Both other clocks went on by this much, and this one did not: the machine stood still, and tokens have
    /// aged meanwhile. (Or both were stepped: the two look alike.) The time was moved.
    Paused(Suspension),
}

/// A time in which the machine stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspension {
    /// When it began, by the time as it was then.
    pub at: Time,
    /// How long it was.
    pub lasted: TimeDelta,
}

/// A time that goes on as elapsed time does.
#[derive(Clone, Debug)]
pub struct SteadyClock {
    /// The time when `elapsed` was zero.
    base: Time,
    /// By how much the wall clock was ahead of the API server's when that last agreed with this one.
    wall_ahead: TimeDelta,
}

impl SteadyClock {
    /// Starts from a wall clock that nothing was compared with.
    #[must_use]
    pub fn unverified(wall: Time, elapsed: Duration) -> Self {
        Self {
            base: wall - elapsed,
            wall_ahead: TimeDelta::zero(),
        }
    }

    /// Starts from the API server's time.
    #[must_use]
    pub fn start(reading: &Reading) -> Self {
        Self {
            wall_ahead: reading.wall_ahead(),
            ..Self::unverified(reading.time(), reading.elapsed)
        }
    }

    /// The time when `elapsed` has passed.
    #[must_use]
    pub fn now(&self, elapsed: Duration) -> Time {
        self.base + elapsed
    }

    /// Compares with the API server's clock: follows its drift, and notices where this one stood still.
    pub fn check(&mut self, reading: &Reading) -> Checked {
        let now = self.now(reading.elapsed);
        let off = reading.time() - now;
        if off.abs() <= AGREES {
            self.wall_ahead = reading.wall_ahead();
            // A header tells less than a clock: followed only as far as it is sure of, or nothing would follow the drift
            // of a machine whose clock is set wrong.
            self.base += if reading.wall_agrees() {
                off
            } else {
                off - off.clamp(-TELLS, TELLS)
            };
            return Checked::Agrees;
        }
        let wall_went_along = (reading.wall_ahead() - self.wall_ahead).abs() <= AGREES;
        if wall_went_along && off > TimeDelta::zero() {
            self.base += off;
            return Checked::Paused(Suspension { at: now, lasted: off });
        }
        Checked::Doubted(off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::t;
    const HOUR: i64 = 3600;

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
            assert_eq!(clock.now(s(100)), t(100));
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
    fn drift_is_followed_where_the_machines_clock_is_an_hour_off() {
        for ppm in [-200, 200] {
            let at = |ms: i64| Reading {
                elapsed: Duration::from_millis((ms + ms * ppm / 1_000_000).unsigned_abs()),
                wall: t(HOUR) + TimeDelta::milliseconds(ms),
                reference: t(ms / 1000) + TimeDelta::milliseconds(500),
            };
            let mut clock = SteadyClock::start(&at(0));
            for ms in (0..3 * 24 * HOUR * 1000).step_by(10_370) {
                assert_eq!(clock.check(&at(ms)), Checked::Agrees, "{ppm} ppm, {ms} ms");
                let off = clock.now(at(ms).elapsed) - (t(0) + TimeDelta::milliseconds(ms));
                assert!(off.abs() <= AGREES, "{off} off");
            }
        }
    }

    #[test]
    fn after_a_pause_of_the_machine_the_time_is_right_at_once_whatever_its_wall_clock_says() {
        for ahead in [0, -HOUR] {
            let mut clock = SteadyClock::start(&reading(0, ahead, 0));
            let at = clock.now(s(10));
            let Checked::Paused(pause) = clock.check(&reading(10, ahead + 2 * HOUR, 2 * HOUR)) else {
                panic!("it stood still");
            };
            assert_eq!(pause.at, at);
            assert!((pause.lasted - TimeDelta::hours(2)).abs() < TimeDelta::seconds(1));
            assert!((clock.now(s(10)) - t(10 + 2 * HOUR)).abs() < TimeDelta::seconds(1));
            assert_eq!(clock.check(&reading(20, ahead + 2 * HOUR, 2 * HOUR)), Checked::Agrees);
        }
    }

    #[test]
    fn a_step_of_the_api_servers_clock_moves_nothing() {
        for (wall, step) in [(0, HOUR), (0, -HOUR), (-HOUR, -HOUR)] {
            let mut clock = SteadyClock::start(&reading(0, 0, 0));
            for at in [10, 3600, 7200] {
                assert!(matches!(clock.check(&reading(at, wall, step)), Checked::Doubted(_)));
                assert_eq!(clock.now(s(at.into())), t(at.into()));
            }
            assert_eq!(clock.check(&reading(7210, 0, 0)), Checked::Agrees);
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
