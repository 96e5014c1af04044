//! The chart: what it renders, and what that does on a real API server. Neither needs a node.

mod admission;
mod examples;
mod install;
mod rendered;
mod support;
