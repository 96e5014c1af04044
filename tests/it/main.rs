//! The operator on a real API server, against the simulators. One control plane and one controller
//! serve most tests; those that kill or starve things have their own.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

mod answers;
mod attacks;
mod budget;
mod clock;
mod crash;
mod installs;
mod journal;
mod lifecycle;
mod network;
mod outages;
mod provision;
mod records;
mod scale;
mod schema;
mod secrets;
mod soak;
mod support;
mod tenants;
