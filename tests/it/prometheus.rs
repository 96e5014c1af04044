//! What a real Prometheus makes of a real controller: the dashboard's queries, and the alerts by what causes them.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use testbed::chittyconnect::{Canned, KeyState, Match, Route};
use testbed::chronicle::Trouble;
use testbed::process::Process;

use crate::support::*;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/chittyconnect-operator/files");

/// A Prometheus that scrapes one controller each second.
struct Prometheus {
    url: String,
    http: reqwest::Client,
    /// Where the controller is to serve its metrics.
    target: SocketAddr,
    /// Alerts that did not do in time what they were to do.
    failures: Mutex<Vec<String>>,
    _process: Process,
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind((testbed::loopback(), 0)).unwrap();
    listener.local_addr().unwrap()
}

impl Prometheus {
    /// With these rules. None where Prometheus is not installed and need not be.
    async fn start(world: &World, rules: &Value) -> Option<Self> {
        if Command::new("prometheus").arg("--version").output().is_err() {
            assert!(
                std::env::var_os("REQUIRE_PROMTOOL").is_none(),
                "prometheus is not installed: it is in Debian's package prometheus"
            );
            eprintln!("LEFT OUT: prometheus is not installed (Debian has it in the package prometheus)");
            return None;
        }
        let (target, own) = (free(), free());
        let write = |name: &str, content: &Value| {
            let path = world.file(name);
            std::fs::write(&path, content.to_string()).unwrap();
            path
        };
        let rules = write("rules.yaml", rules);
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            // As the ServiceMonitor's relabelings leave them.
            "scrape_configs": [{"job_name": "chittyconnect-operator", "static_configs": [
                {"targets": [target.to_string()], "labels": {"pod": "chittyconnect-operator-0"}},
            ]}],
        });
        let config = write("prometheus.yaml", &config);
        let arguments = [
            "prometheus".to_owned(),
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", world.file("prometheus").display()),
            format!("--web.listen-address={own}"),
        ];
        let process = Process::spawn(Path::new("/usr/bin/env"), &arguments, &world.file("prometheus.log")).unwrap();
        testbed::install_crypto_provider();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .unwrap();
        let prometheus = Self {
            url: format!("http://{own}"),
            http,
            target,
            failures: Mutex::default(),
            _process: process,
        };
        wait_for("Prometheus", || async {
            let ready = prometheus
                .http
                .get(format!("{}/-/ready", prometheus.url))
                .send()
                .await
                .ok()?;
            ready.status().is_success().then_some(())
        })
        .await;
        Some(prometheus)
    }

    /// A controller that it scrapes.
    fn controller(&self, world: &World) -> Process {
        let environment = [
            format!("METRICS_ADDR={}", self.target),
            "CREDENTIAL_METRICS=true".to_owned(),
        ];
        world.spawn_with(&environment, "watched", &world.controller_kubeconfig())
    }

    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/{path}", self.url), query).ok()?;
        let answer: Value = self.http.get(url).send().await.ok()?.json().await.ok()?;
        assert_eq!(answer["status"], "success", "{query:?}: {answer}");
        Some(answer["data"].clone())
    }

    /// The series that a query gives.
    async fn query(&self, query: &str) -> Vec<Value> {
        let data = self.ask("query", &[("query", query)]).await.unwrap_or_default();
        data["result"].as_array().cloned().unwrap_or_default()
    }

    /// The alerts that fire now.
    async fn firing(&self) -> Vec<String> {
        let data = self.ask("alerts", &[]).await.unwrap_or_default();
        let all = data["alerts"].as_array().cloned().unwrap_or_default();
        let firing = all.iter().filter(|alert| alert["state"] == "firing");
        firing
            .map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn until(&self, alert: &str, fires: bool) {
        let started = Instant::now();
        loop {
            let firing = self.firing().await;
            if firing.iter().any(|name| name == alert) == fires {
                println!(
                    "{alert} {} after {:?}",
                    if fires { "fires" } else { "is over" },
                    started.elapsed()
                );
                return;
            }
            if started.elapsed() > Duration::from_secs(180) {
                println!("{alert}: fires: {}, and {firing:?} do", !fires);
                self.failures.lock().unwrap().push(alert.to_owned());
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

fn rules() -> Value {
    serde_yaml::from_str(&std::fs::read_to_string(format!("{CHART}/rules.yaml")).unwrap()).unwrap()
}

/// The same rules, in seconds instead of minutes and hours.
fn hurried() -> Value {
    let mut rules = rules();
    for rule in rules["groups"][0]["rules"].as_array_mut().unwrap() {
        if rule.get("for").is_some() {
            rule["for"] = json!("2s");
        }
        // Terms begin no faster than a Lease runs out.
        let window = if rule["alert"] == "ChittyLeaseFlapping" {
            "[90s]"
        } else {
            "[20s]"
        };
        let expression = rule["expr"].as_str().unwrap();
        rule["expr"] = json!(expression.replace("[15m]", window).replace("[1h]", window));
    }
    rules
}

fn dashboard_queries() -> Vec<String> {
    let text = std::fs::read_to_string(format!("{CHART}/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn every_query_of_the_dashboard_has_an_answer_and_no_alert_fires_where_all_is_well() {
    let world = World::without_controller("dashboard").await;
    let Some(prometheus) = Prometheus::start(&world, &rules()).await else {
        return;
    };
    let _controller = prometheus.controller(&world);
    let case = Setup::within(world.clone(), generous().ttl(Duration::from_secs(12)))
        .case()
        .await;
    let (_chronicle, field) = chronicle(&case).await;
    case.connect_seen(field).await;
    // A scrape before anything was counted, and some after it.
    wait_for("a first scrape", || async {
        (!prometheus.query("chittyconnect_leader == 1").await.is_empty()).then_some(())
    })
    .await;
    case.issued("a", json!({})).await;
    case.apply("waits", json!({"connection": "not-there"})).await;
    case.until_ready_is("waits", "False", "ConnectionNotFound").await;
    case.until_revision("a", 3).await;
    let queries = dashboard_queries();
    assert!(queries.len() > 20);
    let mut left: Vec<&String> = queries.iter().collect();
    let started = Instant::now();
    while !left.is_empty() {
        let mut unanswered = Vec::new();
        for query in left {
            if prometheus.query(query).await.is_empty() {
                unanswered.push(query);
            }
        }
        assert!(started.elapsed() < PATIENCE, "no answer: {unanswered:#?}");
        left = unanswered;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The first request of a series is no increase, and is shown all the same.
    let mints = queries.iter().find(|query| query.contains("mints_total")).unwrap();
    let shown = prometheus.query(mints).await;
    let issued = shown.iter().find(|series| series["metric"]["outcome"] == "Issued");
    assert_eq!(issued.unwrap()["value"][1], "1", "{shown:?}");
    // What the rules say of Prometheus' own view: none is broken, none fires.
    let groups = prometheus.ask("rules", &[]).await.unwrap();
    let rules = groups["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
    assert_eq!(prometheus.firing().await, Vec::<String>::new());
    if let Some(dir) = std::env::var_os("KEEP_PROMETHEUS") {
        // For whoever wants to look at the graphs.
        std::fs::write(Path::new(&dir).join("url"), &prometheus.url).unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
    }
}

/// Rotates `names` once each, and waits for that.
async fn rotate_all(case: &Case, names: &[String], round: u64) {
    for name in names {
        case.rotate(name, &round.to_string()).await;
    }
    for name in names {
        case.until_revision(name, round + 1).await;
    }
}

#[tokio::test]
#[ignore = "takes minutes: cargo test --test it alerts_by_their -- --ignored --nocapture"]
async fn each_of_the_alerts_by_their_real_cause_fires_and_is_over_when_that_is_mended() {
    let world = World::without_controller("alerts").await;
    let Some(prometheus) = Prometheus::start(&world, &hurried()).await else {
        return;
    };
    let controller = prometheus.controller(&world);
    let rules = hurried();
    let all = rules["groups"][0]["rules"].as_array().unwrap().iter();
    let mut left: BTreeSet<&str> = all.map(|rule| rule["alert"].as_str().unwrap()).collect();
    let mut told = |alert: &'static str| {
        assert!(left.remove(alert), "{alert}");
        alert
    };
    let start = async |builder| Setup::within(world.clone(), builder).case().await;
    let merge_spec = |case: &Case, spec: Value| {
        let (connections, name) = (case.connections(), case.connection.clone());
        async move {
            let patch = Patch::Merge(json!({"spec": spec}));
            connections.patch(&name, &PatchParams::default(), &patch).await.unwrap();
        }
    };

    // Nobody leads before somebody does.
    drop(controller);
    prometheus.until(told("ChittyNoLeader"), true).await;
    let _controller = prometheus.controller(&world);
    prometheus.until("ChittyNoLeader", false).await;

    // ChittyConnect goes away while a token is due, until that token has ended.
    let outage = start(generous().ttl(Duration::from_secs(120))).await;
    outage.issued("a", json!({"rotation": {"renewBefore": "80s"}})).await;
    outage.broker.go_down().unwrap();
    for alert in [
        "ChittyConnectDown",
        "ChittyRenewalsOverdue",
        "ChittyCredentialAtRisk",
        "ChittyCredentialExpired",
    ] {
        prometheus.until(told(alert), true).await;
    }
    outage.broker.come_back().unwrap();
    for alert in [
        "ChittyConnectDown",
        "ChittyRenewalsOverdue",
        "ChittyCredentialAtRisk",
        "ChittyCredentialExpired",
    ] {
        prometheus.until(alert, false).await;
    }
    outage.delete("a").await;

    // Somebody changes a Secret, and changes it again once it is healed.
    let tampered = start(generous()).await;
    tampered.issued("a", json!({})).await;
    let forge = async || {
        let forged = Patch::Merge(json!({"stringData": {"npm_token": "forged"}}));
        let params = PatchParams::default();
        tampered.secrets().patch("a", &params, &forged).await.unwrap();
    };
    forge().await;
    tampered.until_revision("a", 2).await;
    tampered.until_ready_is("a", "True", "Rotated").await;
    forge().await;
    prometheus.until(told("ChittySecretsTampered"), true).await;
    tampered.rotate("a", "1").await;
    tampered.until_revision("a", 3).await;
    prometheus.until("ChittySecretsTampered", false).await;

    // A budget of one, and two who want of it.
    let narrow = start(generous()).await;
    merge_spec(&narrow, json!({"rateLimit": {"limit": 1, "window": "1h"}})).await;
    narrow.issued("a", json!({})).await;
    narrow.apply("b", json!({})).await;
    prometheus.until(told("ChittyBudgetExhausted"), true).await;
    narrow.delete("b").await;
    prometheus.until("ChittyBudgetExhausted", false).await;

    // A key that is not there, and one that is refused.
    let keyless = start(generous()).await;
    keyless.issued("a", json!({})).await;
    keyless
        .keys()
        .delete(&keyless.connection, &DeleteParams::default())
        .await
        .unwrap();
    prometheus.until(told("ChittyConnectionNotReady"), true).await;
    keyless.write_key(keyless.broker.api_key()).await;
    prometheus.until("ChittyConnectionNotReady", false).await;
    keyless
        .broker
        .set_key_state(keyless.broker.api_key(), KeyState::Inactive);
    keyless.rotate("a", "1").await;
    keyless.apply("b", json!({})).await;
    prometheus.until(told("ChittyKeyUnauthorized"), true).await;
    keyless.broker.add_key("another-key", "the operator");
    keyless.write_key("another-key").await;
    prometheus.until("ChittyKeyUnauthorized", false).await;

    // Tokens that cannot be revoked.
    let rule = json!([{"namespaces": ["*"], "services": ["*"], "purposes": ["*"], "repos": ["*"], "types": ["*"]}]);
    let owing = Setup::within(world.clone(), generous())
        .connection(json!({"api": "Provision", "access": rule}))
        .case()
        .await;
    owing.issued("a", json!({"type": "cloudflare_workers_deploy"})).await;
    let down = Canned::status(503).json(&json!({"error": "not configured"}));
    let _ = owing.broker.on(Match::route(Route::Revoke)).fault(down);
    owing.delete("a").await;
    prometheus.until(told("ChittyRevocationsOwed"), true).await;
    owing.broker.clear_faults();
    prometheus.until("ChittyRevocationsOwed", false).await;

    // ChittyChronicle refuses an event, and then does not answer at all.
    let audited = start(generous()).await;
    let (chronicle, field) = chronicle(&audited).await;
    audited.connect_seen(field).await;
    let refuses = chronicle
        .on(|entry| entry.data["name"] == "refused")
        .trouble(Trouble::Status(400));
    audited.issued("refused", json!({"service": "refused"})).await;
    prometheus.until(told("ChittyAuditDeadLetters"), true).await;
    assert!(chronicle.hits(refuses) > 0);
    prometheus.until("ChittyAuditDeadLetters", false).await;
    chronicle.go_down().unwrap();
    let names: Vec<String> = (0..60).map(|i| format!("a{i}")).collect();
    for name in &names {
        audited.apply(name, json!({})).await;
    }
    for name in &names {
        audited.until_ready_is(name, "True", "Issued").await;
    }
    // More than half of the 2,000 that may wait.
    for round in 1..18 {
        rotate_all(&audited, &names, round).await;
    }
    prometheus.until(told("ChittyAuditBacklog"), true).await;
    chronicle.come_back().unwrap();
    prometheus.until("ChittyAuditBacklog", false).await;

    // Somebody takes the Lease again and again.
    let leases: Api<Lease> = Api::namespaced(world.client().await, SYSTEM);
    for _ in 0..5 {
        let led = async || {
            let lease = leases.get("chittyconnect-operator").await.ok()?;
            (lease.spec?.holder_identity? == "watched").then_some(())
        };
        wait_for("the controller to lead", &led).await;
        let thief = json!({"spec": {"holderIdentity": "somebody-else"}});
        let params = PatchParams::default();
        leases
            .patch("chittyconnect-operator", &params, &Patch::Merge(thief))
            .await
            .unwrap();
    }
    prometheus.until(told("ChittyLeaseFlapping"), true).await;
    prometheus.until("ChittyLeaseFlapping", false).await;
    assert!(left.is_empty(), "never caused: {left:?}");
    assert_eq!(*prometheus.failures.lock().unwrap(), Vec::<String>::new());
}
