//! What one tenant can cost all others: with every right in its namespace, first without any permission in a connection,
//! then with permission for one service. Figures of the long form: `cargo test --test it -- --ignored --nocapture tenant`.

use std::path::Path;
use std::time::{Duration, Instant};

use chittyconnect_operator::api::EphemeralCredential;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testbed::process::Process;

use crate::support::*;

/// How hard it tries.
#[derive(Clone, Copy)]
struct Effort {
    objects: usize,
    seconds: u64,
}

/// What it came to, for the controller.
#[derive(Debug)]
struct Cost {
    /// How often the tenant wrote.
    writes: u64,
    /// Calls that the API server answered beside: of the controller, and of the control plane itself.
    calls: u64,
    /// How long that took, in milliseconds.
    lasted: u64,
    /// More KiB resident than before.
    resident: u64,
    /// Lines it logged, as it does unless told otherwise.
    lines: usize,
    /// More series it exports.
    series: usize,
    /// More bytes of journals.
    journal: usize,
    /// The longest that another namespace's new credential waited, in milliseconds.
    delay: u128,
    /// Processor time it took, in hundredths of a second.
    processor: u64,
}

/// A controller as it is installed: at its usual log level, with metrics to be read.
struct Running {
    process: Process,
    log: std::path::PathBuf,
    metrics: String,
}

impl Running {
    fn start(world: &World) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let log = world.file("tenants.log");
        let arguments = [
            format!("KUBECONFIG={}", world.controller_kubeconfig().display()),
            env!("CARGO_BIN_EXE_chittyconnect-operator").to_owned(),
            "--identity=tenants".to_owned(),
            format!("--namespace={SYSTEM}"),
            format!("--metrics-addr={address}"),
            "--health-addr=127.0.0.1:0".to_owned(),
        ];
        let process = Process::spawn(Path::new("/usr/bin/env"), &arguments, &log).expect("a controller");
        Self {
            process,
            log,
            metrics: format!("http://{address}/metrics"),
        }
    }

    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("a Linux");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn processor(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    fn lines(&self) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().count()
    }

    async fn series(&self) -> usize {
        let text = reqwest::get(&self.metrics).await.unwrap().text().await.unwrap();
        text.lines().filter(|l| !l.starts_with('#')).count()
    }
}

/// One who has `edit` in its namespace, and others beside.
struct Scene {
    world: std::sync::Arc<World>,
    case: Case,
    running: Running,
    hostile: String,
}

impl Scene {
    /// `allowed`: the tenant may ask for its own service.
    async fn set(name: &str, allowed: bool) -> Self {
        let world = World::without_controller(name).await;
        let running = Running::start(&world);
        let case = Setup::within(world.clone(), generous()).case().await;
        let hostile = format!("{}-hostile", case.namespace);
        create_namespace(&case.client, &hostile, &json!({})).await;
        let mut rules =
            vec![json!({"namespaces": [case.namespace], "services": ["*"], "purposes": ["*"], "repos": ["*"]})];
        if allowed {
            rules.push(json!({"namespaces": [hostile], "services": ["evil"], "purposes": ["*"], "repos": ["*"]}));
        }
        case.connect_seen(json!({"access": rules, "rateLimit": {"limit": 1000, "window": "1h"}}))
            .await;
        case.issued("warm", json!({})).await;
        Self {
            world,
            case,
            running,
            hostile,
        }
    }

    fn mine(&self) -> Api<EphemeralCredential> {
        Api::namespaced(self.case.client.clone(), &self.hostile)
    }

    /// One that asks for much: half for a service it may have in the better case, half for one nobody may have.
    fn manifest(&self, i: usize, round: u64) -> Value {
        let service = if i.is_multiple_of(2) {
            "evil".to_owned()
        } else {
            format!("made-up-{round}-{i}")
        };
        let template = format!("{{{{ npm_token {} }}}}{round}", "| tojson ".repeat(100));
        let mut manifest = self.case.manifest(
            &format!("x{i:04}"),
            json!({
                "service": service, "purpose": format!("p{round}"),
                "rotation": {"maxLifetime": "1m", "renewBefore": "40s"},
                "secrets": [{"name": format!("s{i:04}"), "data": {"x": template}}],
            }),
        );
        manifest["metadata"]["namespace"] = json!(self.hostile);
        manifest["metadata"]["annotations"] = json!({"connect.chitty.cc/rotate": round.to_string()});
        manifest
    }

    /// Writes, edits and deletes as fast as it can, while others ask for credentials.
    async fn storm(&self, effort: Effort) -> Cost {
        let (case, mine) = (&self.case, self.mine());
        let before = self.world.requests(|_| true).await;
        let (resident, lines) = (self.running.resident(), self.running.lines());
        let (series, journal) = (self.running.series().await, self.journal().await);
        let processor = self.running.processor();
        let begun = Instant::now();
        let writing = async {
            let (mut writes, mut round) = (0_u64, 0);
            while begun.elapsed() < Duration::from_secs(effort.seconds) || round == 0 {
                let each = futures::stream::iter(0..effort.objects).map(|i| {
                    let (mine, manifest) = (mine.clone(), self.manifest(i, round));
                    async move {
                        let params = PatchParams::apply("tenant").force();
                        let name = format!("x{i:04}");
                        if round % 3 == 2 && i % 5 == 0 {
                            return mine.delete(&name, &DeleteParams::default()).await.map(|_| ());
                        }
                        mine.patch(&name, &params, &Patch::Apply(manifest)).await.map(|_| ())
                    }
                });
                let done: Vec<_> = each.buffer_unordered(8).collect().await;
                writes += done.len() as u64;
                round += 1;
            }
            (writes, begun.elapsed())
        };
        // Those whose turn it is beside that: one after the other, each timed.
        let others = async {
            let (mut worst, mut asked, mut i) = (0, 0_u64, 0);
            while begun.elapsed() < Duration::from_secs(effort.seconds) || i == 0 {
                let since = Instant::now();
                let name = format!("good-{i}");
                case.apply(&name, json!({})).await;
                loop {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    asked += 1;
                    let now = case.credentials().get(&name).await.unwrap();
                    if condition(&now, "Ready").0 == "True" {
                        break;
                    }
                    assert!(since.elapsed() < PATIENCE, "{name} waits for ever");
                }
                asked += 1;
                worst = worst.max(since.elapsed().as_millis());
                i += 1;
            }
            (worst, asked)
        };
        let ((writes, lasted), (delay, asked)) = tokio::join!(writing, others);
        let after = self.world.requests(|_| true).await;
        Cost {
            writes,
            calls: (after - before).saturating_sub(writes + asked),
            lasted: u64::try_from(lasted.as_millis()).unwrap(),
            resident: self.running.resident().saturating_sub(resident),
            lines: self.running.lines() - lines,
            series: self.running.series().await.saturating_sub(series),
            journal: self.journal().await.saturating_sub(journal),
            delay,
            processor: self.running.processor() - processor,
        }
    }

    /// Bytes of all journals.
    async fn journal(&self) -> usize {
        let maps: Api<ConfigMap> = Api::namespaced(self.case.client.clone(), SYSTEM);
        let labelled = ListParams::default().labels("connect.chitty.cc/journal");
        let all = maps.list(&labelled).await.unwrap().items;
        let data = all.iter().flat_map(|m| m.data.iter().flatten());
        data.map(|(_, text)| text.len()).sum()
    }
}

const SHORT: Effort = Effort {
    objects: 60,
    seconds: 4,
};
const LONG: Effort = Effort {
    objects: 1000,
    seconds: 60,
};

fn told(what: &str, effort: Effort, cost: &Cost) {
    let tenths = |count: u64| count * 10_000 / cost.lasted;
    println!(
        "{what}, {} objects, {} writes in {} ms: {} calls in 10 s, {} KiB more resident, {} lines, {} series, \
         {} journal bytes, {} ms of processor in 10 s, another's credential after {} ms at most",
        effort.objects,
        cost.writes,
        cost.lasted,
        tenths(cost.calls),
        cost.resident,
        cost.lines,
        cost.series,
        cost.journal,
        tenths(cost.processor * 10),
        cost.delay,
    );
}

/// Invariant 13.
#[tokio::test]
async fn a_tenant_without_any_permission_costs_no_mint_no_journal_no_series_and_delays_nobody() {
    let scene = Scene::set("hostile", false).await;
    let cost = scene.storm(SHORT).await;
    told("no permission", SHORT, &cost);
    assert_eq!(scene.case.posts_for("evil"), 0);
    assert!(cost.journal < 64 * 1024, "{cost:?}");
    assert!(cost.series < 40 && cost.lines < 100, "{cost:?}");
    // One status for each that is new; what changes after that is told again.
    assert!(cost.calls <= cost.writes * 3 + cost.lasted / 20, "{cost:?}");
    assert!(cost.resident < 16 * 1024 && cost.delay < 5_000, "{cost:?}");
}

#[tokio::test]
#[ignore = "four minutes, for its figures"]
async fn what_a_tenant_can_cost() {
    for (what, allowed) in [("no permission", false), ("permission for one service", true)] {
        let scene = Scene::set("cost", allowed).await;
        let cost = scene.storm(LONG).await;
        told(what, LONG, &cost);
    }
}
