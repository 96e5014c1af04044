//! Calls that meet faults, and processes that end at the worst moment: a few of the runs that `perturb --all` makes.

use std::path::Path;

use testbed::perturb::{Plan, Suite};

/// How many runs go on at once: they mostly wait.
const AT_ONCE: usize = 8;

async fn suite() -> Suite {
    let program = Path::new(env!("CARGO_BIN_EXE_chittyconnect-operator"));
    Suite::start(program, AT_ONCE).await.expect("a control plane")
}

/// Invariant 4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_call_fails_and_whoever_dies_of_it_the_end_is_the_same_and_nothing_is_minted_twice() {
    let plan = Plan::quick();
    let totals = suite().await.run(&plan, |_| {}).await.unwrap();
    println!("{totals}");
    assert!(totals.violations().is_empty(), "{:#?}", totals.violations());
    let perturbed = totals.sum(|row| row.perturbed);
    assert_eq!(perturbed, plan.chosen.len(), "not all calls were made: {totals:#?}");
}

/// What the runs are worth: each of these bugs is found by one of them.
#[cfg(feature = "planted-bugs")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_planted_bug_is_found() {
    use chittyconnect_operator::planted::Bug;

    let names = Bug::ALL.map(|bug| format!("{bug:?}"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let found = suite().await.hunt(&Plan::quick(), &names).await.unwrap();
    for (bug, by) in &found {
        println!("{bug}: {by:#?}");
    }
    let missed: Vec<&String> = found
        .iter()
        .filter(|(_, by)| by.is_none())
        .map(|(bug, _)| bug)
        .collect();
    assert!(missed.is_empty(), "no run finds {missed:?}");
}
