//! The chart: what it renders, and what that does on a real API server. Neither needs a node.

mod admission;
mod examples;
mod install;
mod monitoring;
mod rendered;
mod support;
