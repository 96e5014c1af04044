//! Days of a budget, simulated through the real core: outages of every kind, edits, deletions, restarts and clocks that
//! drift, for limits from 5 to 1000 requests an hour and as many live credentials as they have room for.
//!
//! ```console
//! $ cargo bench --bench budget
//! $ cargo bench --bench budget -- --limit 10 --days 30 --seed 7 --json budget.json
//! ```
//!
//! For each limit runs are made in which nothing fails, in which everything does at times that are drawn, and in which
//! one thing does every three hours, at every phase of the tokens' lives. A promise that is broken is told with its
//! seed and with what happened before, and the exit status says so.

#[path = "../../src/core/simulation/mod.rs"]
mod simulation;

// Where the simulation finds what it simulates.
use chittyconnect_operator::{api, core};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::json;

use simulation::{Excuse, FAULTS, Faults, Report, Settings, simulate};

/// Limits, and how many hours of each are simulated in one run: what takes about as long.
const LIMITS: [(u32, i64); 5] = [(5, 144), (10, 96), (30, 36), (100, 12), (1000, 7)];
const EXCUSES: [Excuse; 6] = [
    Excuse::Unanswered,
    Excuse::ToldToWait,
    Excuse::NoRoom,
    Excuse::Kept,
    Excuse::Foresight,
    Excuse::ShortRunway,
];

/// Simulates days of a budget.
#[derive(Parser)]
struct Arguments {
    /// Days of each run; by default fewer for larger limits.
    #[arg(long)]
    days: Option<i64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs for each limit in which nothing fails, and in which everything does.
    #[arg(long, default_value_t = 2)]
    runs: u64,
    /// This limit alone.
    #[arg(long)]
    limit: Option<u32>,
    /// Where to write all figures.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let started = Instant::now();
    println!(
        "                                                                      beyond what is promised: lost for\n\
         limit what fails            hours live   mints fullest lost missed wasted   no answer  told  no room  kept  unknowable \
         short  starved put off late waited restless  longest wait  worst seed"
    );
    let (mut all, mut broken, mut simulated) = (Vec::new(), 0, 0);
    let limits = arguments.limit.map_or(LIMITS.to_vec(), |limit| {
        let hours = LIMITS
            .iter()
            .find(|(of, _)| *of >= limit)
            .map_or(7, |(_, hours)| *hours);
        vec![(limit, hours)]
    });
    for (limit, hours) in limits {
        let hours = arguments.days.map_or(hours, |days| days * 24);
        // A run of these takes as long as all of another limit.
        let large = limit > 100;
        let sweeps = FAULTS
            .into_iter()
            .flat_map(|f| [false, true].map(|flaps| Faults::Sweep(f, flaps)))
            .filter(|sweep| !large || !matches!(sweep, Faults::Sweep(_, true)));
        for faults in [Faults::Never, Faults::Mixed].into_iter().chain(sweeps) {
            let runs = if large || matches!(faults, Faults::Sweep(..)) {
                1
            } else {
                arguments.runs
            };
            let run = |seed| {
                simulate(Settings {
                    faults,
                    ..Settings::full(limit, hours, seed)
                })
            };
            let reports: Vec<Report> = (arguments.seed..arguments.seed + runs).map(run).collect();
            broken += row(limit, faults, &reports);
            simulated += reports.iter().map(|r| r.hours).sum::<i64>();
            all.extend(reports.iter().map(|r| figures(r, faults)));
        }
    }
    println!("{simulated} hours in {:.0} s", started.elapsed().as_secs_f64());
    if let Some(path) = &arguments.json {
        let text = json!({ "runs": all }).to_string();
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn name(faults: Faults) -> String {
    match faults {
        Faults::Never => "nothing".to_owned(),
        Faults::Mixed => "everything".to_owned(),
        Faults::Sweep(fault, false) => format!("{fault:?}"),
        Faults::Sweep(fault, true) => format!("{fault:?}, flapping"),
    }
}

fn row(limit: u32, faults: Faults, reports: &[Report]) -> usize {
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>();
    let most = |of: fn(&Report) -> usize| reports.iter().map(of).max().unwrap_or(0);
    let hours: i64 = reports.iter().map(|r| r.hours).sum();
    let wait = reports.iter().map(|r| r.longest_wait / 60_000).max().unwrap_or(0);
    let worst = reports
        .iter()
        .max_by_key(|r| (r.broken(), r.beyond.values().sum::<usize>()));
    let beyond = EXCUSES.map(|why| reports.iter().filter_map(|r| r.beyond.get(&why)).sum::<usize>());
    println!(
        "{limit:5} {:21} {hours:5} {:4} {:7} {:7} {:4} {:6} {:6} {:11} {:5} {:8} {:5} {:11} {:6} {:8} {:7} {:4} {:6} {:8} {:>9} min {:11}",
        name(faults),
        most(|r| r.live),
        sum(|r| r.mints),
        most(|r| r.most),
        sum(|r| r.lost),
        sum(|r| r.missed),
        sum(|r| r.wasted),
        beyond[0],
        beyond[1],
        beyond[2],
        beyond[3],
        beyond[4],
        beyond[5],
        sum(|r| r.starved),
        sum(|r| r.put_off),
        sum(|r| r.late),
        sum(|r| r.waited),
        sum(|r| r.restless),
        wait,
        worst.map_or(0, |r| r.seed),
    );
    for report in reports {
        for story in report.stories.iter().take(3) {
            println!("      seed {}: {story}", report.seed);
        }
    }
    sum(Report::broken)
}

fn figures(r: &Report, faults: Faults) -> serde_json::Value {
    let beyond: BTreeMap<String, usize> = r.beyond.iter().map(|(why, n)| (format!("{why:?}"), *n)).collect();
    json!({
        "limit": r.limit, "faults": name(faults), "seed": r.seed, "hours": r.hours, "live": r.live, "mints": r.mints,
        "fullest": r.most, "lost": r.lost, "missed": r.missed, "wasted": r.wasted, "beyond": beyond, "starved": r.starved, "putOff": r.put_off, "late": r.late,
        "waited": r.waited, "restless": r.restless, "longestWaitMs": r.longest_wait, "stories": r.stories,
    })
}
