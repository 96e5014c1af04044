//! The shell: everything that is watched, asked, written or waited for.
//!
//! [`run`] is the process, `term` what a leader adds to it; `state` is what is known, each piece with one owner and one
//! lock. Locks are held for no longer than it takes to look or to note something. Where two are held, that of a budget is
//! taken before that of its queue, and what the context or a connection holds after both.

mod background;
mod credential;
mod mint;
mod run;
mod state;
mod supervisor;
mod term;

pub use run::{Settings, run};
