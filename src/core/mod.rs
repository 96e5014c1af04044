//! Decisions: plain functions of what was observed and `now`.
//!
//! Nothing here is async, does IO, reads a clock or knows the kube client.

pub mod access;
pub mod audit;
pub mod budget;
pub mod clock;
pub mod consumers;
#[cfg(test)]
mod fuzz;
pub mod hold;
pub mod ids;
pub mod journal;
pub mod layout;
pub mod outage;
pub mod outcome;
pub mod plan;
pub mod render;
pub mod schedule;
pub mod seal;
pub mod sharing;
#[cfg(test)]
mod simulation;
#[cfg(test)]
#[path = "simulation/tests.rs"]
mod simulation_tests;
pub mod spec;
pub mod status;
pub mod template;
#[cfg(test)]
pub mod testing;
pub mod text;

/// The one type of points in time.
pub type Time = chrono::DateTime<chrono::Utc>;

/// A problem that keeps a credential from being issued: its reason, and what a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One of the vocabulary.
    pub reason: crate::api::Reason,
    /// What happened, what it means, what comes next.
    pub message: String,
}

impl Problem {
    /// A problem with this reason and message.
    #[must_use]
    pub fn new(reason: crate::api::Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// Times as people read them in messages: `12:34:10Z`, with the date where it is another day's than `said`.
#[must_use]
pub fn clock(at: Time, said: Time) -> String {
    if at.date_naive() == said.date_naive() {
        at.format("%H:%M:%SZ").to_string()
    } else {
        at.format("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}
