//! One run: a scenario, one thing that goes wrong or nothing, and what is there in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;
use tokio::sync::oneshot;

use super::gate::{Armed, Fault, Target, is_request};
use super::lab::{Install, Scene};
use super::scenario::{Kill, Scenario};
use super::state::Found;
use crate::chittyconnect::Scope;
use crate::process::Process;

/// How long nothing is written by one that has come to rest.
const REST: Duration = Duration::from_millis(500);
/// The same, where nobody knows yet what it comes to: acknowledgements take a second.
const LONG_REST: Duration = Duration::from_millis(2500);
/// How long it is looked at what a token that comes of age does while nothing is answered: past its end.
const OUTAGE_LASTS: Duration = Duration::from_secs(28);
/// How long a leader that is gone leads.
const LEASE: Duration = Duration::from_secs(5);
/// How long it may take to come to the end that it comes to when nothing goes wrong.
const CONVERGES_WITHIN: Duration = Duration::from_secs(75);

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Perturbation {
    pub target: Target,
    pub fault: Fault,
    pub kill: Kill,
}

/// What a run without faults came to.
#[derive(Clone, Debug)]
pub struct Baseline {
    pub end: Value,
    pub targets: Vec<Target>,
    posts: usize,
    events: BTreeMap<(String, String), usize>,
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Whether what was to go wrong did: its call may never have been made.
    pub perturbed: bool,
    /// What must not be.
    pub violations: Vec<String>,
    /// Mutating calls.
    pub calls: usize,
    /// For whoever looks into it.
    pub report: String,
}

/// The controllers of a run.
pub(super) struct Controllers {
    scene: Arc<Scene>,
    environment: Vec<String>,
    running: Mutex<BTreeMap<&'static str, Process>>,
}

pub(super) const LEADER: &str = "one";
pub(super) const STANDBY: &str = "two";

impl Controllers {
    pub(super) fn new(scene: Arc<Scene>, environment: Vec<String>) -> Self {
        Self {
            scene,
            environment,
            running: Mutex::default(),
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<&'static str, Process>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn start(&self, identity: &'static str) -> anyhow::Result<()> {
        let process = self.scene.spawn(identity, &self.environment)?;
        self.running().insert(identity, process);
        Ok(())
    }

    /// SIGKILL.
    pub(super) fn kill(&self, identity: &str) {
        let process = self.running().remove(identity);
        tokio::task::block_in_place(|| drop(process));
    }

    pub(super) fn signal(&self, identity: &str, signal: &str) -> anyhow::Result<()> {
        let pid = self.running().get(identity).map(Process::pid);
        let pid = pid.context("it does not run")?.to_string();
        let sent = std::process::Command::new("kill")
            .args([format!("-{signal}"), pid])
            .status()?;
        anyhow::ensure!(sent.success(), "kill -{signal}");
        Ok(())
    }

    /// How many minutes old each is, and what it has resident, in KiB.
    pub(super) fn memory(&self) -> Vec<(u64, u64)> {
        let running = self.running();
        let statuses = running.values().filter_map(|process| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            let resident = line.trim().trim_end_matches(" kB").parse().ok()?;
            Some((process.age().as_secs() / 60, resident))
        });
        statuses.collect()
    }

    pub(super) fn stop(&self) {
        let all = std::mem::take(&mut *self.running());
        tokio::task::block_in_place(|| drop(all));
    }
}

/// Runs a scenario without faults.
pub async fn baseline(install: &Arc<Install>, scenario: Scenario) -> anyhow::Result<Baseline> {
    let scene = Arc::new(install.scene(scenario.broker()?).await?);
    let controllers = begin(&scene, scenario, &[], Kill::No, None).await?;
    scenario.act(&scene).await?;
    let began = Instant::now();
    let at_rest = || scene.gate.quiet_for().is_some_and(|quiet| quiet > LONG_REST);
    let found = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if at_rest() && !scene.gate.calls().is_empty() {
            let looked = Instant::now();
            let found = Found::look(&scene, scenario).await?;
            if found.end["journal"]["undelivered"] == 0 && scene.gate.is_quiet_since(looked) {
                break found;
            }
        }
        anyhow::ensure!(
            began.elapsed() < CONVERGES_WITHIN,
            "{scenario} does not come to rest:\n{}",
            scene.logged()
        );
    };
    let calls = scene.gate.calls();
    controllers.stop();
    let events = events(&scene);
    let mut targets: Vec<Target> = calls.into_iter().map(|call| call.target).collect();
    // It is renewed for ever.
    targets.retain(|target| !target.call.contains("leases") || target.nth <= 2);
    targets.retain(|target| scenario.perturbs(target));
    Ok(Baseline {
        end: found.end,
        targets,
        posts: scene.broker.ledger().posts(),
        events: events.counts,
    })
}

/// Sets the scene: what follows is counted.
async fn begin(
    scene: &Arc<Scene>,
    scenario: Scenario,
    environment: &[String],
    kill: Kill,
    armed: Option<Armed>,
) -> anyhow::Result<Arc<Controllers>> {
    let usual = [
        format!("LEASE_DURATION={}s", LEASE.as_secs()),
        "CLAIM_GRACE=1s".to_owned(),
    ];
    let controllers = Arc::new(Controllers::new(Arc::clone(scene), [&usual, environment].concat()));
    if scenario.begins_running() {
        controllers.start(LEADER)?;
        scenario.set(scene).await?;
        if kill.has_standby() || scenario.hands_over() {
            controllers.start(STANDBY)?;
            // It has nothing to write: that it is there shows in its log alone.
            scene
                .until("a standby", async || {
                    Ok(scene.logged().matches(": starting ").count() > 1)
                })
                .await?;
        }
        scene
            .until("it to come to rest", async || {
                let quiet = scene.gate.quiet_for();
                Ok(quiet.is_some_and(|quiet| quiet > scenario.rests_for()))
            })
            .await?;
        scene.gate.begin(armed);
        if scenario.hands_over() {
            controllers.signal(LEADER, "TERM")?;
        }
    } else {
        scenario.set(scene).await?;
        scene.gate.begin(armed);
        controllers.start(LEADER)?;
    }
    Ok(controllers)
}

/// Runs a scenario in which one thing goes wrong; `environment` is added to the controllers'.
pub async fn perturbed(
    install: &Arc<Install>,
    scenario: Scenario,
    what: &Perturbation,
    baseline: &Baseline,
    environment: &[String],
) -> anyhow::Result<Outcome> {
    let scene = Arc::new(install.scene(scenario.broker()?).await?);
    let (kill, to_kill) = oneshot::channel::<oneshot::Sender<()>>();
    let armed = Armed {
        target: what.target.clone(),
        fault: what.fault,
        kill: (what.kill != Kill::No).then_some(kill),
    };
    let controllers = begin(&scene, scenario, environment, what.kill, Some(armed)).await?;
    let killer = tokio::spawn({
        let (controllers, how) = (Arc::clone(&controllers), what.kill);
        let victim = if scenario.hands_over() { STANDBY } else { LEADER };
        async move {
            let Ok(done) = to_kill.await else { return Ok(()) };
            match how {
                Kill::No => {}
                Kill::Restart | Kill::Takeover => controllers.kill(victim),
                Kill::Freeze => controllers.signal(victim, "STOP")?,
            }
            let _ = done.send(());
            if how == Kill::Restart {
                controllers.start(victim)
            } else {
                Ok(())
            }
        }
    });
    let mut outcome = Outcome::default();
    let storm = tokio::spawn({
        let gate = scene.gate.clone();
        async move { gate.storm().await }
    });
    // After an outage it may be minutes until it is tried again: what is of interest is what it costs.
    let outage = what.fault == Fault::Down;
    let acted = if outage {
        let act = tokio::time::timeout(OUTAGE_LASTS, scenario.act(&scene));
        act.await.unwrap_or(Ok(()))
    } else {
        scenario.act(&scene).await
    };
    let end = (!outage).then_some(&baseline.end);
    let mut found = converged(&scene, scenario, end, &mut outcome).await?;
    outcome.perturbed = scene.gate.is_spent();
    scene.gate.disarm();
    storm.await?;
    if outcome.perturbed {
        killer.await??;
    } else {
        killer.abort();
    }
    if outcome.perturbed && what.kill == Kill::Freeze && outcome.violations.is_empty() {
        controllers.signal(LEADER, "CONT")?;
        // As long as it may take it to learn that it does not lead any more.
        tokio::time::sleep(LEASE / 2).await;
        found = converged(&scene, scenario, end, &mut outcome).await?;
    }
    controllers.stop();
    if let Err(error) = acted {
        outcome.violations.push(format!("{error:#}"));
    }
    outcome.calls = scene.gate.calls().len();
    outcome
        .violations
        .extend(judge(&scene, scenario, what, baseline, &found));
    if !outcome.violations.is_empty() {
        outcome.report = report(&scene, scenario, what, &outcome.violations);
    }
    Ok(outcome)
}

/// Waits until everything is as it was without faults; where that is not to be waited for, until nothing is under way.
async fn converged(
    scene: &Scene,
    scenario: Scenario,
    end: Option<&Value>,
    outcome: &mut Outcome,
) -> anyhow::Result<Found> {
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let quiet = scene.gate.quiet_for().is_some_and(|quiet| quiet > REST);
        let late = began.elapsed() > CONVERGES_WITHIN;
        if !quiet && !late {
            continue;
        }
        let looked = Instant::now();
        let found = Found::look(scene, scenario).await?;
        // What is written while it is looked at is seen by halves.
        let quiet = quiet && scene.gate.is_quiet_since(looked);
        let journal = &found.end["journal"];
        let same = match end {
            Some(end) => found.end == *end,
            None => journal["claims"] == 0 && journal["undelivered"] == 0,
        };
        let never = same && scene.gate.quiet_for().is_some_and(|quiet| quiet > LONG_REST);
        if same && quiet && (scene.gate.is_spent() || never) {
            return Ok(found);
        }
        if late {
            outcome.violations.push(match end {
                Some(end) if quiet => format!("it came to rest elsewhere:\n{}", difference(end, &found.end)),
                _ => "it does not come to rest".to_owned(),
            });
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

/// The events that ChittyChronicle has.
pub(super) struct Events {
    /// How many there are of each type and reason, repeats left out.
    pub(super) counts: BTreeMap<(String, String), usize>,
    /// How many outcomes are told of each request.
    pub(super) outcomes: BTreeMap<String, usize>,
    pub(super) problems: Vec<String>,
}

pub(super) fn events(scene: &Scene) -> Events {
    let mut known: BTreeMap<String, Value> = BTreeMap::new();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    let mut events = Events {
        counts: BTreeMap::new(),
        outcomes: BTreeMap::new(),
        problems: Vec::new(),
    };
    for entry in scene.chronicle.entries() {
        let text = |field: &str| entry.data[field].as_str().unwrap_or_default().to_owned();
        let id = text("id");
        if let Some(before) = known.get(&id) {
            if *before != entry.data {
                events.problems.push(format!("two events have the id {id}"));
            }
            continue;
        }
        known.insert(id.clone(), entry.data.clone());
        let seq = entry.data["seq"].as_u64().unwrap_or_default();
        let before = last.insert(text("uid"), seq);
        if before.is_some_and(|before| before >= seq) {
            events
                .problems
                .push(format!("event {id} came out of order: {seq} after {before:?}"));
        }
        let kind = entry.event_type.trim_start_matches("credential.").to_owned();
        let of_a_token = entry.data["tokenIds"].as_array().is_some_and(|ids| !ids.is_empty());
        let is_outcome = match kind.as_str() {
            "provisioned" | "rotated" | "denied" | "rate_limited" | "outcome_unknown" => true,
            // A failed revocation is told by the same name.
            "failed" => !of_a_token,
            _ => false,
        };
        if is_outcome {
            *events.outcomes.entry(text("runId")).or_default() += 1;
        }
        *events.counts.entry((kind, text("reason"))).or_default() += 1;
    }
    events
}

/// Holds what happened against what must always be.
fn judge(scene: &Scene, scenario: Scenario, what: &Perturbation, baseline: &Baseline, found: &Found) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut ledger = scene.broker.ledger();
    // Its port may have been another run's a moment ago, whose controller asks there with that run's key, and is refused.
    ledger.posts.retain(|post| post.key_owner.is_some());
    let events = events(scene);
    wrong.extend(events.problems.iter().cloned());

    // Every request is told of, once.
    for (request, told) in &events.outcomes {
        if *told > 1 {
            wrong.push(format!("request {request} has {told} outcomes"));
        }
    }
    let asked: Vec<&str> = ledger.posts.iter().filter_map(|post| post.run_id.as_deref()).collect();
    for request in &asked {
        if !events.outcomes.contains_key(*request) {
            wrong.push(format!("nothing is told of request {request}"));
        }
    }
    let distinct: BTreeSet<&str> = asked.iter().copied().collect();
    if distinct.len() < asked.len() {
        wrong.push("a request was repeated".to_owned());
    }
    let mut unknown = 0;
    let mut failed = 0;
    for ((kind, reason), told) in &events.counts {
        let usual = baseline
            .events
            .get(&(kind.clone(), reason.clone()))
            .copied()
            .unwrap_or(0);
        let more = told.saturating_sub(usual);
        match kind.as_str() {
            "outcome_unknown" => unknown += more,
            "failed" | "rate_limited" | "denied" => failed += more,
            // Of a token that nobody was told of.
            "revoked" => {}
            // While nothing is answered tokens come to their end.
            "expired" if what.fault == Fault::Down => {}
            _ if more > 0 => wrong.push(format!("{more} events more than usual tell of {kind} ({reason})")),
            _ => {}
        }
    }
    for ((kind, reason), usual) in &baseline.events {
        let told = events.counts.get(&(kind.clone(), reason.clone())).copied().unwrap_or(0);
        if told < *usual && what.fault != Fault::Down {
            wrong.push(format!("{told} events tell of {kind} ({reason}), and {usual} should"));
        }
    }

    // No more requests than usual, but for those whose failure is told.
    let more = ledger.posts().saturating_sub(baseline.posts);
    if more > unknown + failed {
        wrong.push(format!("{} requests instead of {}", ledger.posts(), baseline.posts));
    }
    let of_connect = what.target.call.starts_with("connect ");
    if what.kill == Kill::No && !of_connect && (more > 0 || unknown > 0 || failed > 0) {
        wrong.push(format!(
            "ChittyConnect was not disturbed, and yet {more} requests are too many, {unknown} unknown, {failed} failed"
        ));
    }
    let (limit, window) = scenario.budget();
    // Whether or not they arrived.
    let calls = scene.gate.calls();
    let sent: Vec<Instant> = calls
        .iter()
        .filter(|call| is_request(&call.target.call))
        .map(|call| call.at)
        .collect();
    let most = sent
        .iter()
        .map(|from| sent.iter().filter(|at| **at >= *from && **at - *from < window).count());
    let densest = most
        .max()
        .unwrap_or(0)
        .max(ledger.max_posts_in_any_window(window, Scope::Service));
    if densest > limit as usize {
        wrong.push(format!("{densest} requests in a window"));
    }

    // Whatever lives is in a Secret, or owed a revocation, or nobody was told of it.
    if scenario.revocable() {
        let live = ledger.live_tokens(scene.broker.now());
        let lost = live.iter().filter(|mint| {
            let held = mint.secrets.values().any(|token| found.held.contains(token));
            let owed = mint.token_id.as_ref().is_some_and(|id| found.owed.contains(id));
            !held && !owed
        });
        let lost = lost.count();
        if lost > unknown {
            wrong.push(format!(
                "{lost} live tokens are in no Secret and are not owed a revocation"
            ));
        }
    }

    let log = scene.logged();
    for secret in ledger.secret_values() {
        let places = [("the log", &log), ("objects or Events", &found.text)];
        let shown = places.iter().filter(|(_, text)| text.contains(&secret));
        wrong.extend(shown.map(|(place, _)| format!("a token is in {place}")));
        if scene
            .chronicle
            .entries()
            .iter()
            .any(|e| e.data.to_string().contains(&secret))
        {
            wrong.push("a token is in the audit log".to_owned());
        }
    }
    if log.contains("panicked at") {
        wrong.push("something panicked".to_owned());
    }
    wrong
}

/// Where two values differ.
fn difference(wanted: &Value, is: &Value) -> String {
    let mut lines = String::new();
    compare("", wanted, is, &mut lines);
    lines
}

fn compare(at: &str, wanted: &Value, is: &Value, lines: &mut String) {
    if wanted == is {
        return;
    }
    if let (Value::Object(wanted), Value::Object(is)) = (wanted, is) {
        let keys: BTreeSet<&String> = wanted.keys().chain(is.keys()).collect();
        for key in keys {
            let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
            compare(&format!("{at}/{key}"), &of(wanted), &of(is), lines);
        }
    } else {
        let _ = writeln!(lines, "  {at}: {is} instead of {wanted}");
    }
}

/// All there is to know of a run.
fn report(scene: &Scene, scenario: Scenario, what: &Perturbation, wrong: &[String]) -> String {
    let mut text = format!("{scenario}: {} {} {}\n", what.target, what.fault, what.kill);
    for line in wrong {
        let _ = writeln!(text, "- {line}");
    }
    text.push_str("\ncalls:\n");
    let calls = scene.gate.calls();
    let first = calls.first().map(|call| call.at);
    for call in &calls {
        let at = first.map_or(0, |first| (call.at - first).as_millis());
        let fault = call.fault.map(|fault| format!(" <- {fault}")).unwrap_or_default();
        let _ = writeln!(text, "{at:>6} {} {}{fault}", call.target, call.status.unwrap_or(0));
    }
    let _ = writeln!(text, "\nrequests: {:#?}", scene.broker.ledger().posts);
    for entry in scene.chronicle.entries() {
        let _ = writeln!(text, "{} {}", entry.event_type, entry.data);
    }
    text.push_str("\nlog:\n");
    text.push_str(&scene.logged());
    text
}
