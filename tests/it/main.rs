//! The operator on a real API server, against the simulators. One control plane and one controller
//! serve most tests; those that kill or starve things have their own.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

mod answers;
mod attacks;
mod budget;
mod clock;
mod crash;
mod gitops;
mod installs;
mod journal;
mod layouts;
mod lifecycle;
mod network;
mod on_demand;
mod outages;
mod perturb;
mod plugin;
mod prometheus;
mod provision;
mod records;
mod revoke;
mod runs;
mod scale;
mod schema;
mod scoped;
mod secrets;
mod sharing;
mod soak;
mod support;
mod tenants;
mod traces;
mod walk;
