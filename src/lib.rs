//! chittyconnect-operator.
#![forbid(unsafe_code)]
pub mod api;
pub mod broker;
pub mod chronicle;
pub mod cluster;
pub mod controller;
pub mod core;
pub mod ops;
