//! On demand: a token while a Pod uses it. There is no kubelet here: Pods are bound to a node, run and end by hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chittyconnect_operator::api::EphemeralCredential;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use testbed::Options;
use testbed::chittyconnect::Scope;

use crate::support::*;

const NODE: &str = "by-hand";

/// The Pods of a namespace.
pub struct Pods {
    client: kube::Client,
    namespace: String,
    api: Api<Pod>,
}

fn container(over: Value) -> Value {
    let mut container = json!({"name": "c", "image": "none"});
    merge(&mut container, over);
    container
}

/// Reads a Secret as a volume.
pub fn mounting(secret: &str) -> Value {
    json!({
        "containers": [container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}))],
        "volumes": [{"name": "v", "secret": {"secretName": secret}}],
    })
}

/// Reads a Secret as environment variables.
fn importing(secret: &str) -> Value {
    json!({"containers": [container(json!({"envFrom": [{"secretRef": {"name": secret}}]}))]})
}

impl Pods {
    /// Those of a case.
    async fn of(case: &Case) -> Self {
        Self::within(case.client.clone(), &case.namespace).await
    }

    /// Those of a namespace that was just made.
    pub async fn within(client: kube::Client, namespace: &str) -> Self {
        // Pods of a node that is not there are collected.
        let nodes: Api<Node> = Api::all(client.clone());
        apply(
            &nodes,
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}),
        )
        .await;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        wait_for("the service account of Pods", || async {
            accounts.get_opt("default").await.unwrap()
        })
        .await;
        Self {
            api: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            client,
        }
    }

    /// A Pod that is bound to no node yet.
    async fn create(&self, name: &str, spec: Value) {
        let mut whole = json!({"automountServiceAccountToken": false, "schedulerName": NODE});
        merge(&mut whole, spec);
        apply(
            &self.api,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": self.namespace}, "spec": whole,
            }),
        )
        .await;
    }

    /// As the scheduler does.
    async fn bind(&self, name: &str) {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        });
        let _: Value = self
            .api
            .create_subresource("binding", name, &PostParams::default(), &binding)
            .await
            .unwrap();
    }

    pub async fn bound(&self, name: &str, spec: Value) {
        self.create(name, spec).await;
        self.bind(name).await;
    }

    /// As the kubelet does once all containers run.
    async fn run(&self, name: &str) {
        let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let running = json!({"name": "c", "image": "none", "imageID": "", "ready": true, "restartCount": 0,
                             "state": {"running": {"startedAt": now}}});
        self.status(name, json!({"phase": "Running", "containerStatuses": [running]}))
            .await;
    }

    async fn status(&self, name: &str, status: Value) {
        self.api
            .patch_status(name, &PatchParams::default(), &Patch::Merge(json!({"status": status})))
            .await
            .unwrap();
    }

    async fn finish(&self, name: &str) {
        self.status(name, json!({"phase": "Succeeded"})).await;
    }

    async fn delete(&self, name: &str) {
        self.api
            .delete(name, &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
    }

    /// The Events about a Pod, by reason: type and note.
    async fn events(&self, name: &str, reason: &str) -> Vec<(String, String)> {
        let uid = self.api.get(name).await.unwrap().metadata.uid;
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let all = events.list(&ListParams::default()).await.unwrap().items.into_iter();
        all.filter(|e| e.regarding.as_ref().is_some_and(|r| r.uid == uid) && e.reason.as_deref() == Some(reason))
            .map(|e| (e.type_.unwrap_or_default(), e.note.unwrap_or_default()))
            .collect()
    }

    async fn until_event(&self, name: &str, reason: &str) -> (String, String) {
        wait_for("an Event on the Pod", || async {
            self.events(name, reason).await.into_iter().next()
        })
        .await
    }
}

fn on_demand() -> Value {
    json!({"activation": "OnDemand"})
}

/// Idle, and nothing there.
async fn idle(case: &Case, name: &str) -> EphemeralCredential {
    case.until(name, |c| {
        let ready = condition(c, "Ready");
        ready.0 == "True" && ready.1 == "Idle" && condition(c, "Issued").0 == "False"
    })
    .await
}

async fn until_secret(case: &Case, name: &str, there: bool) {
    wait_for("the Secret to come or go", || async {
        (case.secret(name).await.is_some() == there).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_is_served_within_a_second_of_being_bound_and_the_next_ones_reuse_the_token() {
    let case = Case::new().await;
    let pods = Pods::of(&case).await;
    case.apply("a", on_demand()).await;
    idle(&case, "a").await;
    pods.create("first", mounting("a")).await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 0, "it is bound to no node");
    pods.bind("first").await;
    let started = Instant::now();
    until_secret(&case, "a", true).await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let credential = case.until_ready_is("a", "True", "Issued").await;
    assert!(credential.status.unwrap().renew_at.is_some());
    pods.bound("second", importing("a")).await;
    pods.finish("first").await;
    pods.finish("second").await;
    let rests = case.until_ready_is("a", "True", "Idle").await;
    assert_eq!(condition(&rests, "Issued").0, "True");
    assert_eq!(rests.status.unwrap().renew_at, None);
    pods.bound("third", mounting("a")).await;
    case.until_ready_is("a", "True", "Issued").await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

#[tokio::test]
async fn whatever_way_a_pod_reads_the_secret_it_gets_a_first_token() {
    let case = Case::new().await;
    let pods = Pods::of(&case).await;
    let mount = |over: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/v"});
        merge(&mut mount, over);
        container(json!({"volumeMounts": [mount]}))
    };
    let volume = |secret: &str| json!([{"name": "v", "secret": {"secretName": secret}}]);
    let plain = || json!([container(json!({}))]);
    let ways = [
        ("volume", mounting("volume")),
        ("env-from", importing("env-from")),
        (
            "env",
            json!({"containers": [container(json!({
                "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "env", "key": "npm_token"}}}],
            }))]}),
        ),
        (
            "projected",
            json!({
                "containers": [mount(json!({}))],
                "volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "projected"}}]}}],
            }),
        ),
        (
            "sub-path",
            json!({"containers": [mount(json!({"subPath": "npm_token"}))], "volumes": volume("sub-path")}),
        ),
        (
            "pull",
            json!({"containers": plain(), "imagePullSecrets": [{"name": "pull"}]}),
        ),
        (
            "init",
            json!({"containers": plain(), "initContainers": [{
                "name": "i", "image": "none", "envFrom": [{"secretRef": {"name": "init", "optional": true}}],
            }]}),
        ),
    ];
    for (name, _) in &ways {
        case.apply(name, on_demand()).await;
        idle(&case, name).await;
    }
    for (name, spec) in &ways {
        pods.bound(name, spec.clone()).await;
        case.until_ready_is(name, "True", "Issued").await;
    }
    assert_eq!(case.posts(), ways.len());
}

#[tokio::test]
async fn who_reads_by_a_volume_has_it_renewed_and_who_has_read_it_once_does_not() {
    let case = Case::with_ttl(Duration::from_secs(9)).await;
    let pods = Pods::of(&case).await;
    for name in ["volume", "env"] {
        let mut spec = on_demand();
        merge(&mut spec, json!({"service": name}));
        case.apply(name, spec).await;
    }
    pods.bound("volume", mounting("volume")).await;
    pods.bound("env", importing("env")).await;
    case.until_ready_is("volume", "True", "Issued").await;
    case.until_ready_is("env", "True", "Issued").await;
    pods.run("volume").await;
    pods.run("env").await;
    until_secret(&case, "env", false).await;
    let ledger = case.broker.ledger();
    let token = ledger.mints_for("env")[0];
    assert!(
        token.is_live(case.broker.now()),
        "the Pod has it for as long as it lives"
    );
    idle(&case, "env").await;
    case.until_revision("volume", 3).await;
    assert_eq!(case.posts_for("env"), 1);
    pods.finish("volume").await;
    // Nothing is renewed after the last of them.
    until_secret(&case, "volume", false).await;
    let posts = case.posts_for("volume");
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(case.posts_for("volume"), posts);
    idle(&case, "volume").await;
}

/// The spec of a credential of the API that revokes, whose tokens are used so long.
fn revocable(seconds: u32) -> Value {
    let mut spec = on_demand();
    let of = json!({"type": "cloudflare_workers_deploy", "rotation": {"maxLifetime": format!("{seconds}s")}});
    merge(&mut spec, of);
    spec
}

async fn provision() -> Case {
    let access = json!([{"namespaces": ["*"], "services": ["*"], "purposes": ["*"], "repos": ["*"], "types": ["*"]}]);
    Setup::new(generous())
        .await
        .connection(json!({"api": "Provision", "access": access}))
        .case()
        .await
}

#[tokio::test]
async fn unused_it_is_removed_and_revoked_once_less_than_its_runway_is_left_and_the_next_pod_waits_for_a_new_one() {
    let case = provision().await;
    let pods = Pods::of(&case).await;
    case.apply("a", revocable(12)).await;
    idle(&case, "a").await;
    pods.bound("first", mounting("a")).await;
    let issued = case.until_ready_is("a", "True", "Issued").await;
    let end = issued.status.unwrap().expires_at.unwrap();
    pods.finish("first").await;
    until_secret(&case, "a", false).await;
    let left = (end - chrono::Utc::now()).num_milliseconds();
    assert!((2000..=4100).contains(&left), "{left} ms were left");
    wait_for("the token to be revoked", || async {
        case.broker.ledger().mints[0].revoked_at.map(drop)
    })
    .await;
    assert!(chrono::Utc::now() < end);
    idle(&case, "a").await;
    pods.bound("second", mounting("a")).await;
    case.until_revision("a", 2).await;
    assert_eq!(case.posts(), 2);
}

#[tokio::test]
async fn a_token_is_not_revoked_while_a_pod_has_what_it_read_of_it() {
    let case = provision().await;
    let pods = Pods::of(&case).await;
    case.apply("a", revocable(12)).await;
    pods.bound("p", importing("a")).await;
    let issued = case.until_ready_is("a", "True", "Issued").await;
    let end = issued.status.unwrap().expires_at.unwrap();
    pods.run("p").await;
    until_secret(&case, "a", false).await;
    assert!(chrono::Utc::now() < end);
    case.settle_as(json!({"type": "cloudflare_workers_deploy"})).await;
    assert!(case.broker.ledger().mints[0].revoked_at.is_none());
    wait_for("its end, and its revocation", || async {
        case.broker.ledger().mints[0].revoked_at.map(drop)
    })
    .await;
    assert!(chrono::Utc::now() >= end);
}

/// Invariant 8.
#[tokio::test]
async fn a_token_is_not_revoked_either_while_a_pod_has_what_it_read_of_a_followers_secret() {
    let case = provision().await;
    let beside = format!("{}-beside", case.namespace);
    create_namespace(&case.client, &beside, &json!({})).await;
    let pods = Pods::within(case.client.clone(), &beside).await;
    let mut shared = revocable(12);
    merge(&mut shared, json!({"sharedWith": {"namespaces": [beside]}}));
    case.apply("a", shared).await;
    let followers: Api<EphemeralCredential> = Api::namespaced(case.client.clone(), &beside);
    let follower = json!({
        "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential", "metadata": {"name": "f"},
        "spec": {"from": {"namespace": case.namespace, "name": "a"}},
    });
    apply(&followers, &follower).await;
    pods.bound("p", importing("f")).await;
    wait_for("the follower's Secret", || async {
        let found = followers.get("f").await.unwrap();
        (condition(&found, "Issued").0 == "True").then_some(())
    })
    .await;
    let end = case
        .until_ready_is("a", "True", "Issued")
        .await
        .status
        .unwrap()
        .expires_at
        .unwrap();
    pods.run("p").await;
    until_secret(&case, "a", false).await;
    assert!(chrono::Utc::now() < end);
    wait_for("its end, and its revocation", || async {
        case.broker.ledger().mints[0].revoked_at.map(drop)
    })
    .await;
    assert!(chrono::Utc::now() >= end, "it was revoked before its end");
}

#[tokio::test]
async fn edits_of_an_unused_credential_mint_nothing_and_take_a_token_away_that_is_not_what_is_asked_for() {
    let case = Case::new().await;
    let pods = Pods::of(&case).await;
    case.apply("a", on_demand()).await;
    idle(&case, "a").await;
    pods.bound("p", mounting("a")).await;
    case.until_ready_is("a", "True", "Issued").await;
    pods.finish("p").await;
    case.until_ready_is("a", "True", "Idle").await;
    case.rotate("a", "now").await;
    until_secret(&case, "a", false).await;
    idle(&case, "a").await;
    case.patch("a", json!({"spec": {"purpose": "package-publish"}})).await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 1);
    // Always is always.
    case.patch("a", json!({"spec": {"activation": "Always"}})).await;
    case.until_ready_is("a", "True", "Rotated").await;
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn a_controller_that_is_killed_meanwhile_mints_nothing_more_and_misses_nobody() {
    let world = World::start("on-demand-killed").await;
    let case = Setup::within(world, generous().ttl(Duration::from_secs(30)))
        .case()
        .await;
    let pods = Pods::of(&case).await;
    for name in ["used", "idle", "late"] {
        case.apply(name, on_demand()).await;
    }
    pods.bound("used", mounting("used")).await;
    pods.bound("idle", mounting("idle")).await;
    case.until_ready_is("used", "True", "Issued").await;
    case.until_ready_is("idle", "True", "Issued").await;
    case.world.kill_controller();
    pods.finish("idle").await;
    pods.bound("late", importing("late")).await;
    case.world.start_controller();
    case.until_ready_is("late", "True", "Issued").await;
    case.until_ready_is("idle", "True", "Idle").await;
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 3);
    assert!(case.secret("used").await.is_some() && case.secret("idle").await.is_some());
    case.world.kill_controller();
    case.world.start_controller();
    until_secret(&case, "idle", false).await;
    case.until_revision("used", 2).await;
    assert_eq!(case.posts_for("chittyid"), 4);
}

#[tokio::test]
async fn a_pod_that_waits_for_the_budget_reads_of_the_next_slot_and_comes_before_others() {
    let window = Duration::from_secs(3600);
    let case = Setup::new(generous().limit(1, window, Scope::Service))
        .await
        .connection(json!({"rateLimit": {"limit": 1, "window": "1h"}}))
        .case()
        .await;
    let pods = Pods::of(&case).await;
    case.apply("a", on_demand()).await;
    case.apply("b", on_demand()).await;
    pods.bound("first", importing("a")).await;
    case.until_ready_is("a", "True", "Issued").await;
    pods.bound("second", importing("b")).await;
    let (kind, note) = pods.until_event("second", "RateLimited").await;
    assert_eq!(kind, "Warning");
    assert!(
        note.contains("EphemeralCredential b") && note.contains("next slot"),
        "{note}"
    );
    let waits = case.until_ready_is("b", "False", "RateLimited").await;
    assert!(condition(&waits, "Ready").2.contains("position 1"));
    // It comes before those of which nobody knows whether anybody waits, and is told of once.
    case.apply("always", json!({})).await;
    let other = case.until_ready_is("always", "False", "RateLimited").await;
    assert!(condition(&other, "Ready").2.contains("position 2"), "{other:?}");
    assert_eq!(pods.events("second", "RateLimited").await.len(), 1);
    assert!(pods.events("first", "RateLimited").await.is_empty());
}

#[tokio::test]
async fn idle_credentials_take_nothing_from_a_budget() {
    // Nine of ten are for newcomers, and who is renewed takes two of them in its first hour.
    let window = Duration::from_secs(3600);
    let case = Setup::new(generous().limit(10, window, Scope::Service))
        .await
        .connection(json!({"rateLimit": {"limit": 10, "window": "1h"}}))
        .case()
        .await;
    let pods = Pods::of(&case).await;
    for i in 0..4 {
        let name = format!("a{i}");
        case.apply(&name, on_demand()).await;
        pods.bound(&name, mounting(&name)).await;
        case.until_ready_is(&name, "True", "Issued").await;
        pods.finish(&name).await;
        case.until_ready_is(&name, "True", "Idle").await;
    }
    // Four once and two twice are eight; were the first renewed, there would be room for no other.
    for i in 0..2 {
        case.issued(&format!("b{i}"), json!({})).await;
    }
    case.apply("b2", json!({})).await;
    case.until_ready_is("b2", "False", "RateLimited").await;
    assert_eq!(case.posts_for("chittyid"), 6);
}

#[tokio::test]
async fn who_has_read_a_token_once_is_warned_before_it_ends() {
    let case = Case::with_ttl(Duration::from_secs(30)).await;
    let pods = Pods::of(&case).await;
    let warned = json!({"consumers": {"warnBefore": "24s"}});
    case.issued("a", warned).await;
    pods.bound("env", importing("a")).await;
    pods.bound("volume", mounting("a")).await;
    pods.run("env").await;
    pods.run("volume").await;
    let end = case
        .credentials()
        .get("a")
        .await
        .unwrap()
        .status
        .unwrap()
        .expires_at
        .unwrap();
    let (kind, note) = pods.until_event("env", "Expired").await;
    assert_eq!(kind, "Warning");
    let ends = format!("ends at {}", end.format("%H:%M:%SZ"));
    assert!(note.contains(&ends), "{note}: {ends}");
    let left = (end - chrono::Utc::now()).num_seconds();
    assert!((18..=24).contains(&left), "{left} s were left");
    // Once, rotated or not; and nobody who sees the next one.
    case.until_revision("a", 2).await;
    assert_eq!(pods.events("env", "Expired").await.len(), 1);
    assert!(pods.events("volume", "Expired").await.is_empty());
}

#[tokio::test]
async fn of_a_token_that_was_replaced_meanwhile_it_is_warned_too_whoever_leads_by_then() {
    let world = World::start("warned").await;
    let case = Setup::within(world, generous().ttl(Duration::from_secs(30)))
        .case()
        .await;
    let pods = Pods::of(&case).await;
    let issued = case.issued("a", json!({"consumers": {"warnBefore": "6s"}})).await;
    let end = issued.status.unwrap().expires_at.unwrap();
    pods.bound("env", importing("a")).await;
    pods.run("env").await;
    case.until_revision("a", 2).await;
    assert!(pods.events("env", "Expired").await.is_empty());
    case.world.kill_controller();
    case.world.start_controller();
    let (_, note) = pods.until_event("env", "Expired").await;
    assert!(note.contains(&format!("ends at {}", end.format("%H:%M:%SZ"))), "{note}");
    let left = (end - chrono::Utc::now()).num_seconds();
    assert!((1..=6).contains(&left), "{left} s were left");
}

#[tokio::test]
async fn the_status_counts_who_reads_and_how_and_is_not_written_for_each_of_them() {
    let case = Case::new().await;
    let pods = Pods::of(&case).await;
    let credential = case.issued("a", json!({"consumers": {}})).await;
    assert_eq!(
        serde_json::to_value(credential.status.unwrap().in_use).unwrap()["volume"],
        0
    );
    let version = || async { case.credentials().get("a").await.unwrap().resource_version() };
    let before = version().await;
    let started = Instant::now();
    pods.bound("volume", mounting("a")).await;
    pods.bound("env", importing("a")).await;
    let sub_path = container(json!({
        "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "npm_token"}],
        "envFrom": [{"secretRef": {"name": "a", "optional": true}}],
    }));
    let volumes = json!([{"name": "v", "secret": {"secretName": "a"}}]);
    pods.bound("both", json!({"containers": [sub_path], "volumes": volumes}))
        .await;
    case.settle().await;
    if started.elapsed() < Duration::from_secs(20) {
        assert_eq!(version().await, before, "written at most every half minute");
    }
    let expected = json!({"volume": 1, "env": 2, "subPath": 1, "optional": 1, "imagePull": 0});
    case.until("a", |c| {
        let told = c.status.as_ref().and_then(|s| s.in_use);
        serde_json::to_value(told).unwrap() == expected
    })
    .await;
    // Without being asked to, nobody looks after Pods.
    case.patch("a", json!({"spec": {"consumers": null}})).await;
    case.until("a", |c| c.status.as_ref().is_some_and(|s| s.in_use.is_none()))
        .await;
}

#[tokio::test]
async fn the_audit_of_a_mint_names_the_job_that_waits_for_it() {
    let case = Case::new().await;
    let (chronicle, audit) = chronicle(&case).await;
    case.connect_seen(audit).await;
    let pods = Pods::of(&case).await;
    case.apply("a", on_demand()).await;
    idle(&case, "a").await;
    let jobs: Api<Job> = Api::namespaced(case.client.clone(), &case.namespace);
    let mut spec = mounting("a");
    merge(&mut spec, json!({"restartPolicy": "Never", "schedulerName": NODE}));
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "nightly"},
        "spec": {"template": {"spec": spec}},
    });
    apply(&jobs, &job).await;
    let pod = wait_for("the Pod of the Job", || async {
        let of_job = ListParams::default().labels("job-name=nightly");
        pods.api.list(&of_job).await.unwrap().items.into_iter().next()
    })
    .await;
    pods.bind(&pod.name_any()).await;
    case.until_ready_is("a", "True", "Issued").await;
    let entry = wait_for("the audit event", || async {
        let entries = chronicle.entries().into_iter();
        entries.into_iter().find(|e| e.event_type == "credential.provisioned")
    })
    .await;
    assert_eq!(entry.data["consumer"], "Job/nightly");
}

/// A world whose chart was given more values, without a controller.
async fn world_with(name: &str, more: &'static [&'static str]) -> Arc<World> {
    let reach = Reach {
        more,
        ..Reach::default()
    };
    World::of_reach(name, reach).await
}

#[tokio::test]
async fn where_pods_may_not_be_watched_it_is_said_and_once_they_may_it_goes_on() {
    let world = world_with("no-pods", &["--set=rbac.pods=false"]).await;
    world.start_controller();
    let case = Setup::within(world, generous()).case().await;
    case.apply("a", on_demand()).await;
    let refused = case.until_ready_is("a", "False", "NotPermitted").await;
    let said = condition(&refused, "Ready").2;
    assert!(
        said.contains("may not watch the Pods") && said.contains("rbac.pods"),
        "{said}"
    );
    let counted = case.issued("b", json!({"consumers": {}})).await;
    let said = condition(&counted, "Ready").2;
    assert!(said.contains("may not watch Pods"), "{said}");
    assert_eq!(counted.status.unwrap().in_use, None);
    assert_eq!(case.posts_for("chittyid"), 1);
    case.world.grant(&[]);
    idle(&case, "a").await;
    case.until("b", |c| c.status.as_ref().is_some_and(|s| s.in_use.is_some()))
        .await;
}

#[tokio::test]
async fn pods_are_watched_only_while_a_credential_needs_it() {
    // None of Kubernetes' own controllers that watch Pods, too.
    let options = Options::default().controllers("serviceaccount-controller");
    let world = World::of_options("pods-watched", options, Reach::default()).await;
    // The API server's own, from before it is ready.
    let others = world.watches_of("pods").await;
    world.start_controller();
    let case = Setup::within(world, generous()).case().await;
    let watched_by = |many: u64| {
        let world = &case.world;
        wait_for("a watch of Pods to begin or to end", move || async move {
            (world.watches_of("pods").await == others + many).then_some(())
        })
    };
    case.issued("a", json!({})).await;
    assert_eq!(case.world.watches_of("pods").await, others);
    case.apply("b", on_demand()).await;
    idle(&case, "b").await;
    watched_by(1).await;
    case.patch("b", json!({"spec": {"activation": "Always"}})).await;
    case.until_ready_is("b", "True", "Issued").await;
    watched_by(0).await;
}

#[tokio::test]
async fn a_workload_that_asks_for_it_is_restarted_before_the_token_ends_that_its_pods_have_read() {
    let world = world_with("restarts", &["--set=consumers.restart=true"]).await;
    let kubeconfig = world.controller_kubeconfig();
    let _controller = world.spawn_with(&["RESTART_WORKLOADS=true".to_owned()], "restarts", &kubeconfig);
    let case = Setup::within(world, generous().ttl(Duration::from_secs(30)))
        .case()
        .await;
    let pods = Pods::of(&case).await;
    case.issued("a", json!({"consumers": {"warnBefore": "24s"}})).await;
    let deployments: Api<Deployment> = Api::namespaced(case.client.clone(), &case.namespace);
    for (name, asks) in [("asks", "true"), ("other", "false")] {
        let mut spec = importing("a");
        merge(&mut spec, json!({"schedulerName": NODE}));
        let labels = json!({"app": name});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "annotations": {"connect.chitty.cc/restart": asks}},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
        });
        apply(&deployments, &deployment).await;
        let pod = wait_for("the Pod of the Deployment", || async {
            let of_it = ListParams::default().labels(&format!("app={name}"));
            pods.api.list(&of_it).await.unwrap().items.into_iter().next()
        })
        .await
        .name_any();
        pods.bind(&pod).await;
        pods.run(&pod).await;
        let (_, note) = pods.until_event(&pod, "Expired").await;
        assert_eq!(
            note.contains("is restarted") || note.contains("and is"),
            asks == "true",
            "{note}"
        );
    }
    let restarted = |name: &'static str| {
        let deployments = deployments.clone();
        async move {
            let template = deployments.get(name).await.unwrap().spec.unwrap().template;
            let annotations = template.metadata.and_then(|m| m.annotations).unwrap_or_default();
            annotations.contains_key("connect.chitty.cc/restarted-for")
        }
    };
    assert!(restarted("asks").await && !restarted("other").await);
}

#[tokio::test]
async fn a_deleted_pod_leaves_nothing_to_renew() {
    let case = Case::with_ttl(Duration::from_secs(9)).await;
    let pods = Pods::of(&case).await;
    case.apply("a", on_demand()).await;
    idle(&case, "a").await;
    case.broker.set_latency(Duration::from_millis(700));
    pods.bound("p", mounting("a")).await;
    wait_for("the request", || async {
        (case.posts_for("chittyid") == 1).then_some(())
    })
    .await;
    // While it is under way.
    pods.delete("p").await;
    until_secret(&case, "a", true).await;
    until_secret(&case, "a", false).await;
    idle(&case, "a").await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

#[tokio::test]
async fn with_roles_alone_the_pods_of_each_namespace_are_watched_that_may_be() {
    let reach = Reach {
        namespaces: &["team-a", "team-b"],
        connections: &["team-a"],
        ..Reach::default()
    };
    let world = World::of_reach("on-demand-scoped", reach).await;
    // The right to watch Pods is the last of them.
    let patch = r#"--patch=[{"op":"remove","path":"/rules/4"}]"#;
    let role = [
        "patch",
        "role/chittyconnect-operator-credentials",
        "--namespace=team-b",
        "--type=json",
        patch,
    ];
    world.kubectl(&role, "");
    world.start_controller();
    let access = json!([{"namespaces": ["team-*"], "services": ["*"], "purposes": ["*"], "repos": ["*"]}]);
    let case = Setup::within(world, generous())
        .connection(json!({"access": access}))
        .case_in("team-a".to_owned())
        .await;
    let pods = Pods::of(&case).await;
    case.apply("a", on_demand()).await;
    let mut other = case.manifest("b", on_demand());
    other["metadata"]["namespace"] = json!("team-b");
    let elsewhere: Api<EphemeralCredential> = Api::namespaced(case.client.clone(), "team-b");
    apply(&elsewhere, &other).await;
    idle(&case, "a").await;
    pods.bound("p", mounting("a")).await;
    case.until_ready_is("a", "True", "Issued").await;
    let refused = wait_for("what keeps the other from being issued", || async {
        let ready = condition(&elsewhere.get("b").await.unwrap(), "Ready");
        (ready.1 == "NotPermitted").then_some(ready.2)
    })
    .await;
    assert!(
        refused.contains("may not watch the Pods of namespace team-b"),
        "{refused}"
    );
}
