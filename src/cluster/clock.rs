//! Where the clocks are read: the machine's, and the API server's.

use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use http::Request;
use http::header::DATE;
use kube::client::Body;

use super::{Cluster, bounded};
use crate::core::Time;
use crate::core::clock::{Checked, Reading, SteadyClock};

/// The middle of the second that a `Date` header names.
const HALF_A_SECOND: TimeDelta = TimeDelta::milliseconds(500);
/// How closely the beginning of a second is looked for, in milliseconds, and for how long.
const TICK: u64 = 20;
const SECOND: u64 = 1500;

/// The machine's wall clock.
#[expect(clippy::disallowed_methods, reason = "the one place it is read")]
pub(super) fn wall() -> Time {
    chrono::Utc::now()
}

/// Since the machine was started, its suspension included.
#[cfg(target_os = "linux")]
pub(super) fn elapsed() -> Duration {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(at.tv_sec).unwrap_or_default(),
        u32::try_from(at.tv_nsec).unwrap_or_default(),
    )
}

/// Since the first call.
#[cfg(not(target_os = "linux"))]
pub(super) fn elapsed() -> Duration {
    static FIRST: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    FIRST.get_or_init(std::time::Instant::now).elapsed()
}

impl Cluster {
    /// Takes over the API server's time; waits until it tells.
    pub async fn set_clock(&self) {
        let mut reading = loop {
            if let Some(reading) = self.read_clocks().await {
                break reading;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        if !reading.wall_agrees() {
            // Then the seconds must be told from each other: the moment at which the next one begins is known well.
            for _ in 0..SECOND / TICK {
                tokio::time::sleep(Duration::from_millis(TICK)).await;
                let Some(next) = self.read_clocks().await else {
                    continue;
                };
                let begun = next.reference - reading.reference > HALF_A_SECOND;
                reading = next;
                if begun {
                    reading.reference -= HALF_A_SECOND;
                    break;
                }
            }
        }
        let clock = SteadyClock::start(&reading);
        let off = reading.wall - clock.now(reading.elapsed);
        if !off.is_zero() {
            tracing::warn!(
                "this machine's clock is {} s off the API server's, which is gone by",
                off.num_seconds()
            );
        }
        self.time().steady = clock;
    }

    /// Compares the time with the API server's; nothing where that does not tell.
    pub async fn check_clock(&self) -> Option<Checked> {
        let reading = self.read_clocks().await?;
        let mut time = self.time();
        let checked = time.steady.check(&reading);
        if let Checked::Paused(pause) = checked {
            time.pauses.push(pause);
        }
        Some(checked)
    }

    async fn read_clocks(&self) -> Option<Reading> {
        let request = Request::get("/version").body(Body::empty()).ok()?;
        let asked = elapsed();
        let answer = bounded(self.client.send(request)).await.ok()?;
        let reference = answer.headers().get(DATE)?.to_str().ok()?;
        let reference = DateTime::parse_from_rfc2822(reference).ok()?.to_utc();
        let elapsed = elapsed();
        Some(Reading {
            elapsed,
            wall: wall(),
            // It was told somewhere between question and answer, in the middle of a second for all that is known.
            reference: reference + HALF_A_SECOND + elapsed.saturating_sub(asked) / 2,
        })
    }
}
