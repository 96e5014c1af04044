//! Breaks the controller on purpose, and says what came of it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use testbed::perturb::{Fault, Kill, Plan, Scenario, Suite, soak};

/// Has every call of the controller that changes anything meet every fault, with and without its end, and looks whether
/// it comes to where it would have come anyway.
#[derive(Parser)]
struct Arguments {
    /// Every call, every fault, with and without a kill.
    #[arg(long)]
    all: bool,
    /// The few runs that tell most.
    #[arg(long)]
    quick: bool,
    /// Which of the quick runs find these bugs: `src/planted.rs` has them, and the controller is built with them.
    #[arg(long, value_delimiter = ',')]
    planted: Vec<String>,
    /// So many minutes of trouble of every kind, for hundreds of credentials.
    #[arg(long)]
    soak: Option<u64>,
    /// How many credentials are in that.
    #[arg(long, default_value_t = 300)]
    credentials: usize,
    /// What makes its chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Every so manieth of them.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// These scenarios alone.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// These faults alone: lost, answer-lost, 409, 429, 500, slow; of requests down; of watches stale, cut, gone, unseen.
    #[arg(long, value_delimiter = ',')]
    fault: Vec<Fault>,
    /// Calls alone that contain this, such as `configmaps/head` or `connect`.
    #[arg(long)]
    call: Vec<String>,
    /// Only where these happen to the controller: nobody, restart, takeover, freeze.
    #[arg(long, value_delimiter = ',')]
    kill: Vec<Kill>,
    /// So many runs at once.
    #[arg(long, default_value_t = 8)]
    jobs: usize,
    /// Goes on where this file ends: what ran is noted there.
    #[arg(long)]
    resume: Option<PathBuf>,
    /// The controller; by default the one beside this program, which is built first.
    #[arg(long)]
    controller: Option<PathBuf>,
    /// Where reports of violations go.
    #[arg(long, default_value = "target/perturb")]
    reports: PathBuf,
    /// Says what would be called, and runs nothing else.
    #[arg(long)]
    list: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(
        arguments.all
            || arguments.quick
            || !arguments.scenario.is_empty()
            || !arguments.planted.is_empty()
            || arguments.soak.is_some(),
        "say --all, --quick, which --scenario, how long to --soak, or which bugs are --planted"
    );
    let program = match &arguments.controller {
        Some(program) => program.clone(),
        None => build(!arguments.planted.is_empty())?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments.soak {
        Some(minutes) => runtime.block_on(soaked(&arguments, minutes, &program)),
        None => runtime.block_on(run(&arguments, &program)),
    }
}

/// The controller, built as this program was.
fn build(planted: bool) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().context("a directory")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--package",
        "chittyconnect-operator",
        "--bin",
        "chittyconnect-operator",
    ]);
    if planted {
        command.arg("--features=planted-bugs");
    }
    if dir.ends_with("release") {
        command.arg("--release");
    }
    ensure!(command.status()?.success(), "the controller does not build");
    Ok(dir.join("chittyconnect-operator"))
}

async fn soaked(arguments: &Arguments, minutes: u64, program: &Path) -> anyhow::Result<ExitCode> {
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{elapsed_precise} {msg}")?);
    let told = |what: &str| bar.set_message(what.to_owned());
    let soak = soak(program, arguments.credentials, minutes, arguments.seed, told).await?;
    bar.finish_and_clear();
    println!("{soak}");
    Ok(if soak.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn run(arguments: &Arguments, program: &Path) -> anyhow::Result<ExitCode> {
    let which = if arguments.quick {
        Plan::quick()
    } else {
        Plan::default()
    };
    let mut plan = Plan {
        calls: arguments.call.clone(),
        every: arguments.every,
        ..which
    };
    if !arguments.scenario.is_empty() {
        plan.scenarios.clone_from(&arguments.scenario);
    }
    if !arguments.fault.is_empty() {
        plan.faults.clone_from(&arguments.fault);
    }
    if !arguments.kill.is_empty() {
        plan.kills.clone_from(&arguments.kill);
    }
    let mut suite = Suite::start(program, arguments.jobs)
        .await?
        .reporting(&arguments.reports)?;
    if let Some(file) = &arguments.resume {
        suite = suite.resuming(file)?;
    }
    if !arguments.planted.is_empty() {
        let bugs: Vec<&str> = arguments.planted.iter().map(String::as_str).collect();
        let found = suite.hunt(&Plan::quick(), &bugs).await?;
        for (bug, found) in &found {
            match found {
                Some(found) => println!(
                    "{bug}: run {}: {}\n  {}",
                    found.after,
                    found.run,
                    found.violations.join("\n  ")
                ),
                None => println!("{bug}: not found"),
            }
        }
        let all = found.values().all(Option::is_some);
        return Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if arguments.list {
        for (scenario, baseline) in suite.learn(&plan).await? {
            println!("{scenario}: {} calls", baseline.targets.len());
            for target in &baseline.targets {
                println!("  {target}");
            }
            println!("{:#}", baseline.end);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{elapsed_precise} [{bar:40}] {pos}/{len} runs, {msg} (about {eta} left)",
    )?);
    let totals = suite
        .run(&plan, |progress| {
            bar.set_length(progress.runs as u64);
            bar.set_position(progress.done as u64);
            bar.set_message(format!("{} violations", progress.violations));
        })
        .await?;
    bar.finish_and_clear();
    for (run, violations) in totals.violations() {
        println!("{run}");
        for violation in violations {
            println!("  - {violation}");
        }
    }
    for (scenario, row) in &totals.scenarios {
        for call in &row.missed {
            println!("{scenario}: {call} was not made again in some runs");
        }
    }
    println!("{totals}in {:.0?}", bar.elapsed());
    Ok(if totals.violations().is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("reports are in {}", arguments.reports.display());
        ExitCode::FAILURE
    })
}
