//! Days of one budget in simulated time: the core as it is, between a broker that fails in every way, tenants who come,
//! edit and go, clocks that drift, and processes that die and find what the journal says.
//!
//! Oracles work out from what happened, and not from what the budget says, whether a promise was broken. The tests and
//! `benches/budget` run the same simulation; it uses what the crate makes public.

pub mod broker;
pub mod oracle;
mod random;
mod world;

use std::collections::BTreeMap;

pub use broker::{FAULTS, Fault};
pub use oracle::Excuse;
use world::World;

/// When the broker fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// Never.
    Never,
    /// At times that are drawn, in ways that are drawn; and processes die.
    Mixed,
    /// In one way, every three hours, for minutes, each time later in the life of the tokens; up and down again where
    /// it flaps.
    Sweep(Fault, bool),
}

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests an hour.
    pub limit: u32,
    /// Credentials at a time.
    pub credentials: usize,
    /// Namespaces they are in; the first has half of them.
    pub namespaces: usize,
    /// For how long.
    pub hours: i64,
    /// What decides about all that is random.
    pub seed: u64,
    /// When the broker fails.
    pub faults: Faults,
}

impl Settings {
    /// More credentials than a limit has room for, with all that may happen to them.
    pub fn full(limit: u32, hours: i64, seed: u64) -> Self {
        Self {
            limit,
            credentials: usize::try_from(limit).unwrap_or(1) * 5 / 4 + 3,
            namespaces: 6,
            hours,
            seed,
            faults: Faults::Mixed,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What decided about all that was random.
    pub seed: u64,
    /// Requests an hour.
    pub limit: u32,
    /// For how long.
    pub hours: i64,
    /// Credentials that were live at once, at most.
    pub live: usize,
    /// Requests that reached the broker.
    pub mints: usize,
    /// Requests in the fullest window.
    pub most: usize,
    /// Live credentials lost though that was promised not to happen.
    pub lost: usize,
    /// Others that could have been kept, as it was when the broker answered again.
    pub missed: usize,
    /// Others that were lost, by why no order of tries could have kept all.
    pub beyond: BTreeMap<Excuse, usize>,
    /// Requests that failed and took what was kept for the tries of others.
    pub wasted: usize,
    /// Newcomers admitted before those of a namespace that had less by more than one credential's rate.
    pub starved: usize,
    /// Renewals that waited for something to spare though nothing failed, up to half of their runway,
    pub put_off: usize,
    /// and those that waited longer.
    pub late: usize,
    /// Newcomers who waited longer than the arithmetic says.
    pub waited: usize,
    /// Credentials that did not come to rest when they were looked at.
    pub restless: usize,
    /// The longest that a newcomer waited until it was admitted, where nothing failed, in milliseconds.
    pub longest_wait: i64,
    /// What was broken, for a person.
    pub stories: Vec<String>,
}

impl Report {
    fn of(settings: &Settings) -> Self {
        Self {
            seed: settings.seed,
            limit: settings.limit,
            hours: settings.hours,
            ..Self::default()
        }
    }

    /// How many promises were broken.
    pub fn broken(&self) -> usize {
        let over = self
            .most
            .saturating_sub(usize::try_from(self.limit).unwrap_or(usize::MAX));
        over + self.lost + self.missed + self.wasted + self.starved + self.late + self.waited + self.restless
    }
}

/// Simulates.
pub fn simulate(settings: Settings) -> Report {
    World::new(settings).run()
}
