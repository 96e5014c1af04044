//! The machine's clock is stepped under the controller.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::*;

/// Where Debian and Ubuntu put it.
const LIBFAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// A wall clock that this test sets, for processes started with its environment.
struct WallClock(PathBuf);

impl WallClock {
    fn step(&self, offset: &str) {
        std::fs::write(&self.0, offset).unwrap();
    }

    /// Clocks that only count are left as they are: no step moves them.
    fn environment(&self, library: &Path) -> Vec<String> {
        vec![
            format!("LD_PRELOAD={}", library.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.0.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ]
    }
}

#[tokio::test]
async fn stepped_back_and_forth_by_an_hour_and_killed_meanwhile_it_exceeds_no_limit_and_loses_nothing() {
    let Some(library) = LIBFAKETIME.iter().map(Path::new).find(|p| p.exists()) else {
        assert!(
            std::env::var_os("REQUIRE_LIBFAKETIME").is_none(),
            "libfaketime is not installed"
        );
        eprintln!("left out: it needs the package libfaketime");
        return;
    };
    let world = World::without_controller("clock").await;
    // The window is three hundred times shorter than in life; what a clock's second is uncertain by is not.
    let storm = Storm::within(world.clone(), Duration::from_millis(11_700)).await;
    let clock = WallClock(world.file("wall-clock"));
    let environment = clock.environment(library);
    let start = || world.spawn_with(&environment, "stepped", &world.controller_kubeconfig());
    clock.step("+0");
    let mut controller = Some(start());
    let until = Instant::now() + Duration::from_secs(45);
    for (round, offset) in ["+3600", "-3600", "+0", "-3600", "+3600"].iter().cycle().enumerate() {
        if Instant::now() >= until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1900)).await;
        clock.step(offset);
        if round % 3 == 2 {
            drop(controller.take());
            controller = Some(start());
        }
    }
    let log = world.log();
    assert!(log.contains("s off the API server's"), "the clock was never stepped");
    storm.assert_weathered(16).await;
    drop(controller);
}
