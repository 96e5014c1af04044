//! What operators of the controller look at: metrics, health, logs.

pub mod health;
pub mod metrics;
pub mod telemetry;
