//! Many runs: which, several at once, and what they came to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::gate::{Fault, Target, WATCH, is_request};
use super::lab::{Install, Lab};
use super::run::{Baseline, Outcome, Perturbation, baseline, perturbed};
use super::scenario::{Kill, Scenario};

/// Which runs there are.
#[derive(Clone, Debug)]
pub struct Plan {
    pub scenarios: Vec<Scenario>,
    pub faults: Vec<Fault>,
    pub kills: Vec<Kill>,
    /// Only calls that contain one of these; all where there is none.
    pub calls: Vec<String>,
    /// Only every so manieth run.
    pub every: usize,
    /// These alone, where there are any.
    pub chosen: Vec<(Scenario, Perturbation)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            scenarios: Scenario::ALL.to_vec(),
            faults: Fault::all().collect(),
            kills: Kill::ALL.to_vec(),
            calls: Vec::new(),
            every: 1,
            chosen: Vec::new(),
        }
    }
}

/// The runs that tell most, for those who have a minute: what a process does first after each step of a mint, an answer
/// that does not come, and what is held up until its sender is gone.
const QUICK: &[(Scenario, &str, Fault, Kill)] = {
    use Fault::{AnswerLost, Down, Gone, Lost, Slow, Stale, Status};
    use Kill::{Freeze, No, Restart, Takeover};
    use Scenario::{Delete, Deny, Heal, Issue, Paged, Renew, Revoke, Rotate};
    &[
        (Renew, "connect POST /api/credentials/provision #1", Down, No),
        (Rotate, "api PUT secrets/one #1", Lost, Freeze),
        (Rotate, "api WATCH secrets #1", Stale, Takeover),
        (Heal, "api WATCH ephemeralcredentials #1", Gone, No),
        (
            Rotate,
            "connect POST /api/credentials/provision #1",
            AnswerLost,
            Takeover,
        ),
        (
            Rotate,
            "connect POST /api/credentials/provision #1",
            AnswerLost,
            Restart,
        ),
        (Issue, "connect POST /api/credentials/provision #1", Slow, No),
        (Paged, "api PUT configmaps/page #1", Lost, Restart),
        (Paged, "api PUT configmaps/head #2", Lost, Restart),
        (Issue, "api POST configmaps/head #1", AnswerLost, Restart),
        (Issue, "api POST configmaps/index #1", Lost, Restart),
        (Issue, "api POST secrets/two #1", Lost, Restart),
        (Issue, "api PUT ephemeralcredentials/a/status #1", Status(500), No),
        (Rotate, "api PUT configmaps/head #1", AnswerLost, Restart),
        (Rotate, "api PUT secrets/one #1", Lost, Restart),
        (Rotate, "api PUT secrets/two #1", AnswerLost, Restart),
        (Rotate, "api PUT configmaps/head #2", Status(409), No),
        (Rotate, "api PUT configmaps/head #2", Lost, Restart),
        (Rotate, "chronicle POST /api/entries #1", Lost, No),
        (Rotate, "chronicle POST /api/entries #1", Status(500), Restart),
        (Rotate, "chronicle POST /api/entries #1", AnswerLost, Restart),
        (Heal, "api DELETE secrets/one #1", Slow, Restart),
        (Heal, "api DELETE secrets/one #1", AnswerLost, Restart),
        (Heal, "api PUT configmaps/head #1", AnswerLost, Restart),
        (Deny, "api PUT ephemeralcredentials/a/status #1", Status(500), No),
        (Revoke, "api DELETE secrets/one #1", AnswerLost, Restart),
        (Revoke, "connect DELETE /api/credentials/revoke #1", AnswerLost, Restart),
        (
            Delete,
            "connect DELETE /api/credentials/revoke #1",
            Status(500),
            Restart,
        ),
        (Delete, "api PUT configmaps/head #1", AnswerLost, Restart),
    ]
};

/// Which of them finds a planted bug, if the others do not find it first: that one is made first.
const FINDS: &[(&str, &str)] = &[
    (
        "MintBeforeClaim",
        "rotate | connect POST /api/credentials/provision #1 | answer-lost | restart",
    ),
    ("StatusTrusted", "rotate | api PUT secrets/one #1 | lost | restart"),
    ("DeleteUnguarded", "heal | api DELETE secrets/one #1 | slow | restart"),
    (
        "RequeueLost",
        "issue | api PUT ephemeralcredentials/a/status #1 | 500 | nobody",
    ),
    (
        "PreviousForgotten",
        "rotate | api PUT configmaps/head #2 | 409 | nobody",
    ),
    (
        "AckBeforeDelivery",
        "rotate | chronicle POST /api/entries #1 | lost | nobody",
    ),
    ("PageAfterHead", "paged | api PUT configmaps/page #1 | lost | restart"),
    (
        "RenewalUnprojected",
        "renew | connect POST /api/credentials/provision #1 | down | nobody",
    ),
];

impl Plan {
    /// A quick subset.
    #[must_use]
    pub fn quick() -> Self {
        let scenarios: BTreeSet<Scenario> = QUICK.iter().map(|(scenario, ..)| *scenario).collect();
        let chosen = QUICK.iter().map(|(scenario, target, fault, kill)| {
            let what = Perturbation {
                target: target.parse().expect("a call and its number"),
                fault: *fault,
                kill: *kill,
            };
            (*scenario, what)
        });
        Self {
            scenarios: scenarios.into_iter().collect(),
            chosen: chosen.collect(),
            ..Self::default()
        }
    }
}

impl Plan {
    fn takes(&self, target: &Target) -> bool {
        self.calls.is_empty() || self.calls.iter().any(|call| target.to_string().contains(call))
    }

    /// All runs, in order.
    fn runs(&self, baselines: &BTreeMap<Scenario, Baseline>) -> Vec<(Scenario, Perturbation)> {
        if !self.chosen.is_empty() {
            return self.chosen.clone();
        }
        let mut all = Vec::new();
        for scenario in &self.scenarios {
            let targets = baselines.get(scenario).map(|baseline| &baseline.targets);
            let targets: Vec<&Target> = targets.into_iter().flatten().collect();
            let meet = |target: &&Target, faults: &'static [Fault]| (Target::clone(target), faults);
            let calls = targets.iter().map(|target| meet(target, &Fault::OF_CALLS));
            let requests = targets.iter().filter(|target| is_request(&target.call));
            let calls = calls.chain(requests.map(|target| meet(target, &Fault::OF_REQUESTS)));
            let watches = scenario.watches().iter().map(|kind| {
                let call = format!("{WATCH}{kind}");
                (Target { call, nth: 1 }, Fault::OF_WATCHES.as_slice())
            });
            for (target, faults) in calls.chain(watches).filter(|(target, _)| self.takes(target)) {
                for fault in faults.iter().filter(|fault| self.faults.contains(fault)) {
                    for kill in self.kills.iter().filter(|kill| scenario.kills().contains(kill)) {
                        let what = Perturbation {
                            target: target.clone(),
                            fault: *fault,
                            kill: *kill,
                        };
                        all.push((*scenario, what));
                    }
                }
            }
        }
        all.into_iter().step_by(self.every.max(1)).collect()
    }
}

/// How often a run is made that has to be perturbed.
const TRIES: usize = 3;

/// A run that has to be perturbed: where its scene was not set in time, or its call was not made, it says nothing, and is
/// made once more.
async fn insist(
    install: &Arc<Install>,
    scenario: Scenario,
    what: &Perturbation,
    baseline: &Baseline,
    environment: &[String],
) -> anyhow::Result<Outcome> {
    let mut tries = 0;
    loop {
        tries += 1;
        let made = perturbed(install, scenario, what, baseline, environment).await;
        let says = made.as_ref().is_ok_and(|o| o.perturbed || !o.violations.is_empty());
        if says || tries == TRIES {
            return made;
        }
    }
}

/// What runs came to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub scenarios: BTreeMap<Scenario, Row>,
}

/// What the runs of a scenario came to.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Mutating calls of the run without faults.
    pub calls: usize,
    pub runs: usize,
    /// Runs in which what was to go wrong did.
    pub perturbed: usize,
    /// Mutating calls of all runs.
    pub made: usize,
    /// What was found, by the run.
    pub violations: Vec<(String, Vec<String>)>,
    /// Calls that were made in no run again.
    pub missed: BTreeSet<String>,
}

impl Totals {
    #[must_use]
    pub fn sum(&self, of: impl Fn(&Row) -> usize) -> usize {
        self.scenarios.values().map(of).sum()
    }

    /// All violations, by the run.
    #[must_use]
    pub fn violations(&self) -> Vec<&(String, Vec<String>)> {
        self.scenarios.values().flat_map(|row| &row.violations).collect()
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, numbers: [usize; 6]| {
            let [calls, runs, perturbed, missed, made, wrong] = numbers;
            writeln!(
                f,
                "{name:<14}{calls:>8}{runs:>8}{perturbed:>11}{missed:>8}{made:>12}{wrong:>12}"
            )
        };
        writeln!(
            f,
            "{:<14}{:>8}{:>8}{:>11}{:>8}{:>12}{:>12}",
            "scenario", "calls", "runs", "perturbed", "missed", "calls made", "violations"
        )?;
        let numbers = |row: &Row| {
            let wrong = row.violations.len();
            [
                row.calls,
                row.runs,
                row.perturbed,
                row.runs - row.perturbed,
                row.made,
                wrong,
            ]
        };
        let mut sum = [0; 6];
        for (scenario, row) in &self.scenarios {
            let row = numbers(row);
            line(f, &scenario.to_string(), row)?;
            sum.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
        }
        line(f, "all", sum)
    }
}

/// Several installations that runs are spread over.
pub struct Suite {
    installs: Vec<Arc<Install>>,
    /// What ran before, and where what runs is noted.
    journal: Option<Journal>,
    /// Where reports of violations go.
    reports: Option<PathBuf>,
}

struct Journal {
    done: BTreeMap<String, Value>,
    file: Mutex<File>,
}

/// What a run is known by.
fn key(scenario: Scenario, what: &Perturbation) -> String {
    format!("{scenario} | {} | {} | {}", what.target, what.fault, what.kill)
}

impl Suite {
    /// With so many runs at once.
    pub async fn start(program: &Path, at_once: usize) -> anyhow::Result<Self> {
        let lab = Lab::start(program).await?;
        let mut installs = Vec::new();
        for n in 0..at_once {
            installs.push(lab.install(n).await?);
        }
        Ok(Self {
            installs,
            journal: None,
            reports: None,
        })
    }

    /// Goes on where `file` ends, and notes there what runs.
    pub fn resuming(mut self, file: &Path) -> anyhow::Result<Self> {
        let known = fs::read_to_string(file).unwrap_or_default();
        let lines = known
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let done = lines.filter_map(|line| Some((line["run"].as_str()?.to_owned(), line)));
        self.journal = Some(Journal {
            done: done.collect(),
            file: Mutex::new(OpenOptions::new().create(true).append(true).open(file)?),
        });
        Ok(self)
    }

    /// Writes reports of violations there.
    pub fn reporting(mut self, dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        self.reports = Some(dir.to_owned());
        Ok(self)
    }

    /// Runs everything; `told` learns how far it is.
    pub async fn run(&self, plan: &Plan, told: impl Fn(&Progress) + Sync) -> anyhow::Result<Totals> {
        let began = Instant::now();
        let progress = Mutex::new(Progress::default());
        let tell = |change: &dyn Fn(&mut Progress)| {
            let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut progress);
            progress.took = began.elapsed();
            told(&progress);
        };
        let baselines = self.baselines(plan, &tell).await?;
        let queue: VecDeque<(Scenario, Perturbation)> = plan.runs(&baselines).into();
        tell(&|p| p.runs = queue.len());
        let queue = Mutex::new(queue);
        let totals = Mutex::new(Totals::default());
        for (scenario, baseline) in &baselines {
            let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
            totals.scenarios.entry(*scenario).or_default().calls = baseline.targets.len();
        }
        let work = self.installs.iter().map(|install| async {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some((scenario, what)) = next else {
                    return anyhow::Ok(());
                };
                let outcome = match self.remembered(scenario, &what) {
                    Some(outcome) => outcome,
                    None => {
                        let must = !plan.chosen.is_empty();
                        self.one(install, scenario, &what, &baselines[&scenario], must).await?
                    }
                };
                let mut all = totals.lock().unwrap_or_else(PoisonError::into_inner);
                let row = all.scenarios.entry(scenario).or_default();
                row.runs += 1;
                row.perturbed += usize::from(outcome.perturbed);
                row.made += outcome.calls;
                if !outcome.perturbed {
                    row.missed.insert(what.target.to_string());
                }
                let wrong = !outcome.violations.is_empty();
                if wrong {
                    row.violations.push((key(scenario, &what), outcome.violations));
                }
                drop(all);
                tell(&|p| {
                    p.done += 1;
                    p.violations += usize::from(wrong);
                });
            }
        });
        futures_util::future::try_join_all(work).await?;
        Ok(totals.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs each scenario without faults.
    pub async fn learn(&self, plan: &Plan) -> anyhow::Result<BTreeMap<Scenario, Baseline>> {
        self.baselines(plan, &|_| {}).await
    }

    /// For each of these bugs, the first run that finds it; none where no run does.
    pub async fn hunt(&self, plan: &Plan, bugs: &[&str]) -> anyhow::Result<BTreeMap<String, Option<Found>>> {
        let baselines = self.learn(plan).await?;
        let runs = plan.runs(&baselines);
        let queue: Mutex<VecDeque<&str>> = Mutex::new(bugs.iter().copied().collect());
        let found = Mutex::new(BTreeMap::new());
        let work = self.installs.iter().map(|install| async {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(bug) = next else { return anyhow::Ok(()) };
                let planted = [format!("PLANTED_BUG={bug}")];
                let mut by = None;
                let first = FINDS.iter().find(|(of, _)| *of == bug);
                let is_first = |(scenario, what): &&(Scenario, Perturbation)| {
                    first.is_some_and(|(_, run)| *run == key(*scenario, what))
                };
                let (likely, others): (Vec<_>, Vec<_>) = runs.iter().partition(is_first);
                for (n, (scenario, what)) in likely.into_iter().chain(others).enumerate() {
                    let outcome = insist(install, *scenario, what, &baselines[scenario], &planted).await;
                    let violations = outcome.map(|outcome| outcome.violations).unwrap_or_default();
                    if !violations.is_empty() {
                        by = Some(Found {
                            run: key(*scenario, what),
                            after: n + 1,
                            violations,
                        });
                        break;
                    }
                }
                found
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(bug.to_owned(), by);
            }
        });
        futures_util::future::try_join_all(work).await?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn baselines(
        &self,
        plan: &Plan,
        tell: &(impl Fn(&dyn Fn(&mut Progress)) + Sync),
    ) -> anyhow::Result<BTreeMap<Scenario, Baseline>> {
        let queue: Mutex<VecDeque<Scenario>> = Mutex::new(plan.scenarios.iter().copied().collect());
        let found = Mutex::new(BTreeMap::new());
        let work = self.installs.iter().map(|install| async {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(scenario) = next else { return anyhow::Ok(()) };
                let baseline = baseline(install, scenario).await?;
                found
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(scenario, baseline);
                tell(&|p| p.scenarios += 1);
            }
        });
        futures_util::future::try_join_all(work).await?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn remembered(&self, scenario: Scenario, what: &Perturbation) -> Option<Outcome> {
        let line = self.journal.as_ref()?.done.get(&key(scenario, what))?;
        let violations: Vec<String> = serde_json::from_value(line["violations"].clone()).ok()?;
        // Whatever was found is tried again.
        violations.is_empty().then(|| Outcome {
            perturbed: line["perturbed"] == true,
            calls: line["calls"].as_u64().and_then(|n| n.try_into().ok()).unwrap_or(0),
            ..Outcome::default()
        })
    }

    async fn one(
        &self,
        install: &Arc<Install>,
        scenario: Scenario,
        what: &Perturbation,
        baseline: &Baseline,
        must_be_perturbed: bool,
    ) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        let outcome = if must_be_perturbed {
            insist(install, scenario, what, baseline, &[]).await?
        } else {
            perturbed(install, scenario, what, baseline, &[]).await?
        };
        let key = key(scenario, what);
        if let Some(journal) = &self.journal {
            let line = json!({
                "run": key, "perturbed": outcome.perturbed, "calls": outcome.calls,
                "violations": outcome.violations, "ms": u64::try_from(began.elapsed().as_millis())?,
            });
            let mut file = journal.file.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(file, "{line}")?;
        }
        if let (Some(dir), false) = (&self.reports, outcome.violations.is_empty()) {
            let name: String = key
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .collect();
            fs::write(dir.join(format!("{name}.txt")), &outcome.report)?;
        }
        Ok(outcome)
    }
}

/// How a bug was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The run.
    pub run: String,
    /// How many there were, this one included.
    pub after: usize,
    pub violations: Vec<String>,
}

/// How far it is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Scenarios that were run without faults.
    pub scenarios: usize,
    /// All runs there will be; 0 while that is not known.
    pub runs: usize,
    pub done: usize,
    pub violations: usize,
    pub took: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_a_planted_bug_is_one_of_the_quick_runs() {
        let quick = Plan::quick().chosen;
        let keys: BTreeSet<String> = quick.iter().map(|(scenario, what)| key(*scenario, what)).collect();
        for (bug, run) in FINDS {
            assert!(keys.contains(*run), "{bug}: {run}");
        }
    }
}
