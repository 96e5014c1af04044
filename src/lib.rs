//! Short-lived credentials from ChittyConnect for every Kubernetes workload.
//!
//! API calls are cheap; **mints are scarce** and cannot be undone or repeated. So a mint is treated
//! like a payment: permitted, budgeted, claimed in a durable journal, made once, published, audited.
//! Everything else is an ordinary level-triggered controller.
//!
//! Imports point one way, down this list:
//!
//! - [`controller`], the shell: watches; `observe -> plan -> act -> record` for one credential
//!   at a time; a budget task for each scope, which admits, claims, asks and publishes; delivery of
//!   audit events; owed revocations; what deletion leaves to do; one leader, one time. [`ops`] is what is looked
//!   at from outside: metrics, health, logs.
//! - [`broker`], [`chronicle`] and [`cluster`]: ChittyConnect, ChittyChronicle and Kubernetes. Calls
//!   are timed out, writes guarded by what they were decided on, errors told apart by whose fault they are.
//! - [`core`]: every decision, as a function of what was observed and `now`. [`core::plan`] says what
//!   to do about a credential, [`core::budget`] who may mint, and [`core::journal`] is the only durable
//!   truth that both decide on. No async, no IO, no client; no clock is read.
//! - [`api`]: the kinds, conditions and reasons that users write and read.
//!
//! `kubectl chitty` (`src/bin/kubectl-chitty`) stands beside the controller: it calls [`core`] and [`api`], and takes the
//! names of the Lease and of what Pods are asked for from [`cluster`]. [`planted`] names bugs that tests put in on purpose;
//! there are none where they are not built in.
//!
//! A mint, in order: claim and place in the budget (one compare-and-swap of the journal) -> POST ->
//! Secrets, sealed -> outcome and audit event (another) -> status and Event -> delivery. Whatever stops
//! it in between is found by comparing the journal with what exists.
#![forbid(unsafe_code)]

pub mod api;
pub mod broker;
pub mod chronicle;
pub mod cluster;
pub mod controller;
pub mod core;
pub mod ops;
pub mod planted;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    fn sources(dir: &Path, all: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, all);
            } else if path.extension().is_some_and(|e| e == "rs") {
                all.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn every_invariant_of_the_design_has_a_test_that_names_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let design = fs::read_to_string(root.join("docs/design.md")).unwrap();
        let numbers = (1..).take_while(|n| design.contains(&format!("\n{n}. ")));
        let mut all = String::new();
        sources(&root.join("src"), &mut all);
        sources(&root.join("tests/it"), &mut all);
        let proved = |n: &u32| all.contains(&format!("/// Invariant {n}.\n"));
        let numbers: Vec<u32> = numbers.collect();
        assert!(numbers.len() >= 16, "{numbers:?}");
        let without: Vec<&u32> = numbers.iter().filter(|n| !proved(n)).collect();
        assert!(without.is_empty(), "{without:?}");
    }
}
