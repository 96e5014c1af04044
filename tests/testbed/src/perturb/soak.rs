//! Hours of trouble: hundreds of credentials of every kind, and something that goes wrong all the time. Afterwards nothing
//! must be missing, left over, or larger than before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Secret};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::gate::Fault;
use super::lab::{Lab, Scene};
use super::run::{Controllers, Events, LEADER, STANDBY, events};
use super::state::Journal;
use crate::ChittyConnect;
use crate::chittyconnect::{Canned, Fault as Broken, Match, Scope};

/// How many requests of a service a window allows, and how long that is.
const LIMIT: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// How long tokens live, and how much of that is their runway.
const LIFETIME: Duration = Duration::from_secs(240);
const RUNWAY: &str = "80s";
const SERVICES: usize = 30;
/// How long after the last trouble everything is as it should be again.
const CALMS_WITHIN: Duration = Duration::from_secs(420);
/// For how long nothing that keeps a leader from its work must have happened before a Secret that outlived its token counts.
const UNDISTURBED: Duration = Duration::from_secs(45);
/// How much a Secret may be late then.
const LATE: chrono::TimeDelta = chrono::TimeDelta::seconds(5);
/// How long the API server is away once, where there is time for it.
const LONG_OUTAGE: Duration = Duration::from_secs(300);
const EXPIRES_AT: &str = "connect.chitty.cc/expires-at";
/// Where Debian and Ubuntu put what steps a process's clock.
const LIBFAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    BrokerDown,
    BrokerFails,
    ChronicleDown,
    Kill,
    Freeze,
    ApiServer,
    Etcd,
    Namespace,
    Flaky,
    Watch,
    Clock,
    Edits,
}

impl Trouble {
    const ALL: [Self; 12] = [
        Self::BrokerDown,
        Self::BrokerFails,
        Self::ChronicleDown,
        Self::Kill,
        Self::Freeze,
        Self::ApiServer,
        Self::Etcd,
        Self::Namespace,
        Self::Flaky,
        Self::Watch,
        Self::Clock,
        Self::Edits,
    ];

    /// Whether a leader may be kept from its work by it.
    const fn disturbs(self) -> bool {
        !matches!(
            self,
            Self::BrokerDown | Self::BrokerFails | Self::ChronicleDown | Self::Edits
        )
    }
}

/// What a soak came to.
#[derive(Clone, Debug, Default)]
pub struct Soak {
    pub credentials: usize,
    pub took: Duration,
    /// How often what went wrong.
    troubles: BTreeMap<String, usize>,
    pub posts: usize,
    pub mints: usize,
    pub unknown: usize,
    /// The most requests in a window.
    pub densest: usize,
    pub revocations: usize,
    pub events: usize,
    /// How many minutes old the processes were and what they had resident, in KiB; and the bytes of the journal: over time.
    pub memory: Vec<(u64, u64)>,
    pub journal: Vec<usize>,
    pub violations: Vec<String>,
}

/// The most in the second and in the last third.
fn thirds<T: Copy + Ord + Default>(all: &[T]) -> (T, T) {
    let most = |part: &[T]| part.iter().copied().max().unwrap_or_default();
    let third = all.len() / 3;
    (most(&all[third..2 * third]), most(&all[2 * third..]))
}

/// The age in minutes of the oldest that were seen in both the second and the last third, and their most in each: what a
/// process has just after it started says nothing of one that is old.
fn alike(memory: &[(u64, u64)]) -> Option<(u64, u64, u64)> {
    let third = memory.len() / 3;
    let (before, after) = (&memory[third..2 * third], &memory[2 * third..]);
    let most = |part: &[(u64, u64)], age| part.iter().filter(|(a, _)| *a == age).map(|(_, kib)| *kib).max();
    let ages: BTreeSet<u64> = before.iter().map(|(age, _)| *age).collect();
    let mut oldest = ages.into_iter().rev();
    oldest.find_map(|age| Some((age, most(before, age)?, most(after, age)?)))
}

impl fmt::Display for Soak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} credentials, {:.0?}", self.credentials, self.took)?;
        writeln!(f, "troubles: {:?}", self.troubles)?;
        writeln!(
            f,
            "{} requests, {} mints, {} unknown; {} at most in a window of {LIMIT}; {} revocations, {} events",
            self.posts, self.mints, self.unknown, self.densest, self.revocations, self.events
        )?;
        if let Some((age, before, after)) = alike(&self.memory) {
            writeln!(
                f,
                "memory of a process {age} minutes old: {before} KiB at most in the second third, {after} in the last"
            )?;
        }
        let most = self.memory.iter().map(|(_, kib)| kib).max();
        writeln!(f, "memory of any process: {} KiB at most", most.unwrap_or(&0))?;
        let (before, after) = thirds(&self.journal);
        writeln!(
            f,
            "journal: {before} bytes at most in the second third, {after} in the last"
        )?;
        write!(f, "{} violations", self.violations.len())?;
        for violation in &self.violations {
            write!(f, "\n- {violation}")?;
        }
        Ok(())
    }
}

/// What is seen while it goes on.
#[derive(Default)]
struct Watched {
    memory: Vec<(u64, u64)>,
    journal: Vec<usize>,
    violations: BTreeSet<String>,
    /// When a leader was last kept from its work.
    disturbed: Option<Instant>,
    /// Whether it still is.
    under_way: bool,
}

struct Soaking {
    lab: Arc<Lab>,
    scene: Arc<Scene>,
    controllers: Arc<Controllers>,
    credentials: usize,
    clock: Option<PathBuf>,
    watched: Mutex<Watched>,
}

/// `minutes` of trouble for so many credentials; `told` learns what goes wrong.
pub async fn soak(
    program: &Path,
    credentials: usize,
    minutes: u64,
    seed: u64,
    told: impl Fn(&str),
) -> anyhow::Result<Soak> {
    let lab = Lab::start(program).await?;
    let install = lab.install(0).await?;
    let broker = ChittyConnect::builder()
        .provision_limit(None)
        .limit(LIMIT, WINDOW, Scope::Service)
        .ttl(LIFETIME)
        .start()?;
    let scene = Arc::new(install.scene(broker).await?);
    let library = LIBFAKETIME.iter().map(Path::new).find(|path| path.exists());
    let clock = library.map(|_| scene.file("wall-clock"));
    let mut environment = vec!["LEASE_DURATION=5s".to_owned(), "RUST_LOG=info".to_owned()];
    if let (Some(library), Some(clock)) = (library, &clock) {
        fs::write(clock, "+0")?;
        environment.extend([
            format!("LD_PRELOAD={}", library.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ]);
    }
    let soaking = Soaking {
        controllers: Arc::new(Controllers::new(Arc::clone(&scene), environment)),
        lab,
        scene,
        credentials,
        clock,
        watched: Mutex::default(),
    };
    soaking.controllers.start(LEADER)?;
    soaking.controllers.start(STANDBY)?;
    soaking.connect().await?;
    for n in 0..credentials {
        soaking.write(n).await?;
    }
    soaking.settled(CALMS_WITHIN).await?;
    told("everything is issued");

    let began = Instant::now();
    let mut troubles = BTreeMap::new();
    let until = began + Duration::from_secs(60 * minutes);
    let mut rng = StdRng::seed_from_u64(seed);
    let trouble = async {
        let mut long = minutes >= 20;
        while Instant::now() < until {
            let what = *Trouble::ALL.choose(&mut rng).expect("some");
            if what == Trouble::Clock && soaking.clock.is_none() {
                continue;
            }
            *troubles.entry(format!("{what:?}")).or_insert(0) += 1;
            told(&format!("{what:?}"));
            let long_one = long && what == Trouble::ApiServer && began.elapsed() > Duration::from_secs(20 * minutes);
            long &= !long_one;
            soaking.trouble(what, long_one, &mut rng).await?;
            let rest = if rng.random_ratio(1, 6) { 60..90 } else { 2..12 };
            tokio::time::sleep(Duration::from_secs(rng.random_range(rest))).await;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = trouble => done?,
        () = soaking.watch() => {}
    }
    told("no more trouble");
    if let Some(clock) = &soaking.clock {
        fs::write(clock, "+0")?;
    }
    let settled = tokio::select! {
        settled = soaking.settled(CALMS_WITHIN) => settled,
        () = soaking.watch() => Ok(()),
    };
    if let Err(error) = settled {
        soaking.violation(error.to_string());
    }
    let mut soak = soaking.judge().await?;
    soak.took = began.elapsed();
    soak.troubles = troubles;
    soaking.controllers.stop();
    Ok(soak)
}

impl Soaking {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn violation(&self, text: String) {
        self.watched().violations.insert(text);
    }

    async fn connect(&self) -> anyhow::Result<()> {
        let install = &self.scene.install;
        let namespaces = [&install.team, &install.guests];
        let mut rule = json!({"namespaces": namespaces, "services": ["*"], "purposes": ["*"], "repos": ["*"]});
        let limit = json!({"limit": LIMIT, "window": format!("{}s", WINDOW.as_secs())});
        let deploy = json!({"api": "Deploy", "rateLimit": limit, "access": [rule]});
        self.scene.connect_as(&install.deploys(), &deploy).await?;
        rule["types"] = json!(["*"]);
        self.scene
            .connect(&json!({"api": "Provision", "rateLimit": limit, "access": [rule]}))
            .await
    }

    /// Writes the n-th credential: every tenth is of the same kind.
    async fn write(&self, n: usize) -> anyhow::Result<()> {
        let install = &self.scene.install;
        let name = format!("c{n}");
        let lifetime = format!("{}s", LIFETIME.as_secs());
        let mut spec = json!({
            "connection": install.connection, "type": "cloudflare_workers_deploy",
            "service": format!("s{}", n % SERVICES), "purpose": "deploy", "repo": "CHITTYOS/chittyid",
            "rotation": {"maxLifetime": lifetime, "renewBefore": RUNWAY},
        });
        match n % 10 {
            4 => spec["secrets"] = json!([{"name": name}, {"name": format!("{name}-env"), "presets": ["env"]}]),
            5 => {
                spec["connection"] = json!(install.deploys());
                // Of a service of its own: two connections share a budget, and one of them has no ids to revoke by.
                spec["service"] = json!(format!("d{}", n % SERVICES));
                spec.as_object_mut().expect("an object").remove("type");
            }
            6 | 7 => spec["activation"] = json!("OnDemand"),
            8 => spec["sharedWith"] = json!({"namespaces": [install.guests]}),
            9 => {
                let from = json!({"namespace": install.team, "name": format!("c{}", n - 1)});
                let spec = json!({"from": from});
                return self.scene.apply_in(&install.guests, &name, &spec).await;
            }
            _ => {}
        }
        self.scene.apply(&name, &spec).await?;
        if n % 10 == 6 {
            // What is there already is there.
            let _ = self.scene.mount(&name, &name).await;
        }
        Ok(())
    }

    /// Whether that API call is to be made again: the API server comes and goes.
    async fn insist<T>(&self, mut ask: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let began = Instant::now();
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) if began.elapsed() > Duration::from_secs(60) => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
    }

    /// Waits until every credential is as it should be.
    async fn settled(&self, within: Duration) -> anyhow::Result<()> {
        let install = &self.scene.install;
        let began = Instant::now();
        loop {
            let all = self
                .insist(async || {
                    let mut all = Vec::new();
                    for namespace in [&install.team, &install.guests] {
                        all.extend(
                            install
                                .credentials_of(namespace)
                                .list(&ListParams::default())
                                .await?
                                .items,
                        );
                    }
                    Ok(all)
                })
                .await?;
            let unready: Vec<String> = all.iter().filter(|c| !is_ready(c)).map(state).collect();
            let undelivered = self.insist(async || Ok(self.journal().await?.undelivered)).await?;
            if all.len() == self.credentials && unready.is_empty() && undelivered == 0 {
                return Ok(());
            }
            anyhow::ensure!(
                began.elapsed() < within,
                "{} of {} credentials are there, {undelivered} events are not delivered, and not ready are {unready:#?}",
                all.len(),
                self.credentials
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn journal(&self) -> anyhow::Result<Journal> {
        let maps = self
            .scene
            .install
            .of_system::<ConfigMap>()
            .list(&ListParams::default())
            .await?;
        Ok(Journal::of(&maps.items))
    }

    async fn trouble(&self, what: Trouble, long: bool, rng: &mut StdRng) -> anyhow::Result<()> {
        let (scene, controllers) = (&self.scene, &self.controllers);
        let for_seconds = |rng: &mut StdRng, range| Duration::from_secs(rng.random_range(range));
        let disturbed = |under_way: bool| {
            if what.disturbs() {
                let mut watched = self.watched();
                watched.under_way = under_way;
                watched.disturbed = Some(Instant::now());
            }
        };
        disturbed(true);
        match what {
            Trouble::BrokerDown => {
                scene.broker.go_down()?;
                tokio::time::sleep(for_seconds(rng, 5..40)).await;
                scene.broker.come_back()?;
            }
            Trouble::BrokerFails => {
                let faults = [
                    Broken::CutBefore,
                    Broken::CutAfter,
                    Broken::HangAfter,
                    Broken::FailAfter(502),
                    Broken::TruncatedJson,
                    Broken::Answer(Canned::status(500)),
                    Broken::Answer(Canned::status(429)),
                ];
                for _ in 0..4 {
                    let fault = faults.choose(rng).expect("some").clone();
                    scene
                        .broker
                        .on(Match::minting())
                        .times(rng.random_range(1..6))
                        .fault(fault);
                }
            }
            Trouble::ChronicleDown => {
                scene.chronicle.go_down()?;
                tokio::time::sleep(for_seconds(rng, 5..60)).await;
                scene.chronicle.come_back()?;
            }
            Trouble::Kill => {
                let who = *[LEADER, STANDBY].choose(rng).expect("some");
                controllers.kill(who);
                tokio::time::sleep(for_seconds(rng, 0..8)).await;
                controllers.start(who)?;
            }
            Trouble::Freeze => {
                let who = *[LEADER, STANDBY].choose(rng).expect("some");
                controllers.signal(who, "STOP")?;
                tokio::time::sleep(for_seconds(rng, 2..25)).await;
                controllers.signal(who, "CONT")?;
            }
            Trouble::ApiServer | Trouble::Etcd => {
                let plane = self.lab.plane();
                tokio::task::block_in_place(|| {
                    plane.kill_apiserver();
                    if what == Trouble::Etcd {
                        plane.kill_etcd();
                    }
                });
                let away = if long { LONG_OUTAGE } else { for_seconds(rng, 0..15) };
                tokio::time::sleep(away).await;
                if what == Trouble::Etcd {
                    plane.start_etcd().await?;
                }
                plane.start_apiserver().await?;
            }
            Trouble::Namespace => self.replace_guests().await?,
            Trouble::Flaky => {
                scene.gate.flake(rng.random_range(0.01..0.1));
                tokio::time::sleep(for_seconds(rng, 5..30)).await;
                scene.gate.flake(0.0);
            }
            Trouble::Watch => {
                let kinds = ["secrets", "ephemeralcredentials", "chittyconnections", "pods"];
                let fault = *Fault::OF_WATCHES.choose(rng).expect("some");
                scene.gate.blow(kinds.choose(rng).expect("some"), fault, None).await;
            }
            Trouble::Clock => {
                let offset = ["+3600", "-3600", "+45", "-45", "+0"].choose(rng).expect("some");
                if let Some(clock) = &self.clock {
                    fs::write(clock, offset)?;
                }
            }
            Trouble::Edits => self.edit(rng).await?,
        }
        disturbed(false);
        Ok(())
    }

    /// Deletes the namespace of those who follow, and makes it anew.
    async fn replace_guests(&self) -> anyhow::Result<()> {
        let install = &self.scene.install;
        let namespaces: Api<Namespace> = Api::all(self.lab.client());
        let name = &install.guests;
        self.insist(async || match namespaces.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            done => Ok(done.map(drop)?),
        })
        .await?;
        let began = Instant::now();
        while self
            .insist(async || Ok(namespaces.get_opt(name).await?))
            .await?
            .is_some()
        {
            anyhow::ensure!(began.elapsed() < CALMS_WITHIN, "namespace {name} does not go");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.insist(async || install.restore(name).await).await?;
        for n in (9..self.credentials).step_by(10) {
            self.insist(async || self.write(n).await).await?;
        }
        Ok(())
    }

    /// A few edits of users.
    async fn edit(&self, rng: &mut StdRng) -> anyhow::Result<()> {
        let credentials = self.scene.install.credentials();
        let merge = PatchParams::default();
        for _ in 0..5 {
            let n = rng.random_range(0..self.credentials);
            if n % 10 == 9 {
                continue;
            }
            let name = format!("c{n}");
            let mark = rng.random_range(0..1_000_000).to_string();
            let patch = match rng.random_range(0..4) {
                0 | 1 => json!({"metadata": {"annotations": {"connect.chitty.cc/rotate": mark}}}),
                2 => json!({"spec": {"consumers": {"warnBefore": "1m"}}}),
                _ => {
                    self.insist(
                        async || match credentials.delete(&name, &DeleteParams::default()).await {
                            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                            done => Ok(done.map(drop)?),
                        },
                    )
                    .await?;
                    self.insist(async || self.write(n).await).await?;
                    continue;
                }
            };
            let patch = Patch::Merge(patch);
            self.insist(async || Ok(credentials.patch(&name, &merge, &patch).await.map(drop)?))
                .await?;
        }
        Ok(())
    }

    /// Looks again and again, for ever.
    async fn watch(&self) {
        let install = &self.scene.install;
        for round in 0_u64.. {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if round % 5 == 0 {
                let memory = self.controllers.memory();
                self.watched().memory.extend(memory);
                if let Ok(maps) = install.of_system::<ConfigMap>().list(&ListParams::default()).await {
                    let data = maps
                        .items
                        .iter()
                        .filter_map(|map| map.data.as_ref()?.get("journal.json"));
                    self.watched().journal.push(data.map(String::len).sum());
                }
            }
            let calm =
                |watched: &Watched| !watched.under_way && watched.disturbed.is_none_or(|at| at.elapsed() > UNDISTURBED);
            if !calm(&self.watched()) {
                continue;
            }
            let now = Utc::now();
            for namespace in [&install.team, &install.guests] {
                let Ok(secrets) = install
                    .of::<Secret>(namespace)
                    .list_metadata(&ListParams::default())
                    .await
                else {
                    continue;
                };
                let late = secrets.items.iter().filter(|secret| {
                    let end = secret.annotations().get(EXPIRES_AT);
                    let end = end.and_then(|end| end.parse::<DateTime<Utc>>().ok());
                    end.is_some_and(|end| end + LATE < now)
                });
                let late: Vec<String> = late.map(ResourceExt::name_any).collect();
                if calm(&self.watched()) {
                    for name in late {
                        self.violation(format!("Secret {name} outlived its token"));
                    }
                }
            }
        }
    }

    async fn judge(&self) -> anyhow::Result<Soak> {
        let (scene, install, all) = (&self.scene, &self.scene.install, ListParams::default());
        let ledger = scene.broker.ledger();
        let Events {
            counts,
            outcomes,
            problems,
        } = events(scene);
        let mut wrong: Vec<String> = problems;
        wrong.extend(self.watched().violations.iter().cloned());
        for post in &ledger.posts {
            let told = post
                .run_id
                .as_ref()
                .and_then(|id| outcomes.get(id))
                .copied()
                .unwrap_or(0);
            if told != 1 {
                wrong.push(format!("{told} outcomes are told of request {:?}", post.run_id));
            }
        }
        let densest = ledger.max_posts_in_any_window(WINDOW, Scope::Service);
        if densest > LIMIT as usize {
            wrong.push(format!("{densest} requests in a window"));
        }
        let unknown: usize = counts
            .iter()
            .filter(|((kind, _), _)| kind == "outcome_unknown")
            .map(|(_, n)| n)
            .sum();

        let (mut values, mut text) = (BTreeSet::new(), String::new());
        for namespace in [&install.team, &install.guests] {
            for secret in install.of::<Secret>(namespace).list(&all).await?.items {
                let data = secret.data.into_iter().flatten();
                values.extend(data.map(|(_, value)| String::from_utf8_lossy(&value.0).into_owned()));
            }
            text += &serde_json::to_string(&install.credentials_of(namespace).list(&all).await?.items)?;
            text += &serde_json::to_string(&install.of::<Event>(namespace).list(&all).await?.items)?;
        }
        let maps = install.of_system::<ConfigMap>().list(&all).await?.items;
        let owed = Journal::of(&maps).owed;
        text += &serde_json::to_string(&maps)?;
        text += &scene.logged();
        // Who was told of a token holds it, or owes its revocation.
        let entries = scene.chronicle.entries();
        let published = entries.iter().filter(|entry| {
            let kind = entry.event_type.trim_start_matches("credential.");
            kind == "provisioned" || kind == "rotated"
        });
        let published: BTreeSet<&str> = published.filter_map(|entry| entry.data["runId"].as_str()).collect();
        let lost = ledger.live_tokens(scene.broker.now()).into_iter().filter(|mint| {
            let (Some(id), Some(run)) = (&mint.token_id, &mint.run_id) else {
                return false;
            };
            let held = mint.secrets.values().any(|token| values.contains(token));
            published.contains(run.as_str()) && !held && !owed.contains_key(id)
        });
        let lost = lost.count();
        if lost > 0 {
            wrong.push(format!(
                "{lost} live tokens are in no Secret and are not owed a revocation"
            ));
        }
        let shown = ledger
            .secret_values()
            .iter()
            .filter(|value| text.contains(value.as_str()))
            .count();
        if shown > 0 {
            wrong.push(format!("{shown} tokens are where none belongs"));
        }
        if text.contains("panicked at") {
            wrong.push("something panicked".to_owned());
        }
        let (memory, journal) = {
            let watched = self.watched();
            (watched.memory.clone(), watched.journal.clone())
        };
        if let Some((age, before, after)) = alike(&memory)
            && after > before + before / 2
        {
            wrong.push(format!(
                "memory of a process {age} minutes old grew from {before} KiB to {after}"
            ));
        }
        let (before, after) = thirds(&journal);
        if after > before + before / 2 {
            wrong.push(format!("the journal grew from {before} bytes to {after}"));
        }
        Ok(Soak {
            credentials: self.credentials,
            posts: ledger.posts(),
            mints: ledger.mints.len(),
            unknown,
            densest,
            revocations: ledger.revocations.len(),
            events: counts.values().sum(),
            memory,
            journal,
            violations: wrong,
            ..Soak::default()
        })
    }
}

fn conditions(credential: &DynamicObject) -> impl Iterator<Item = &Value> {
    credential.data["status"]["conditions"].as_array().into_iter().flatten()
}

fn is_ready(credential: &DynamicObject) -> bool {
    let current = credential.data["status"]["observedGeneration"].as_i64() == credential.metadata.generation;
    current && conditions(credential).any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn state(credential: &DynamicObject) -> String {
    let ready = conditions(credential).find(|c| c["type"] == "Ready");
    let told = ready.map(|c| format!("{}: {}", c["reason"], c["message"]));
    format!("{}: {}", credential.name_any(), told.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_processes_is_compared_at_the_greatest_age_that_both_thirds_have() {
        let first = [(0, 9), (1, 9), (2, 9), (3, 9)];
        let second = [(0, 10), (1, 20), (1, 21), (2, 30)];
        let last = [(0, 11), (0, 12), (1, 25), (1, 24)];
        assert_eq!(alike(&[first, second, last].concat()), Some((1, 21, 25)));
        assert_eq!(alike(&[first, second, [(3, 1); 4]].concat()), None);
    }
}
