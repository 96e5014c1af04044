//! What operators of the controller look at: metrics, health, logs, traces.

pub mod health;
pub mod metrics;
pub mod telemetry;
pub mod traces;
