//! Breaking it on purpose: every call that changes anything meets every fault, with and without the end of the process
//! that made it, and what is there afterwards is what would have been there anyway.
//!
//! A [`Scenario`] is run once without faults, to learn which calls it makes and where it ends. Then it is run once more
//! for each call, fault and kill. Whatever happened, it has to come to the same end, and what happened on the way is held
//! against what ChittyConnect and ChittyChronicle saw.

mod gate;
mod lab;
mod proxy;
mod run;
mod scenario;
mod soak;
mod state;
mod suite;

pub use self::gate::{Call, Fault, Gate, Peer, Target};
pub use self::lab::{Install, Lab, Scene};
pub use self::run::{Baseline, Outcome, Perturbation, baseline, perturbed};
pub use self::scenario::{Kill, Scenario};
pub use self::soak::{Soak, soak};
pub use self::suite::{Found as FoundBug, Plan, Progress, Suite, Totals};
