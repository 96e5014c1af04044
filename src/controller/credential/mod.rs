//! One credential at a time: observed, planned, acted on, reported.

pub mod act;
mod consumers;
pub mod follow;
pub mod followers;
pub mod observe;
pub mod reconcile;
pub mod recovery;
