//! Killed, cut off, or with its memory damaged: nothing is minted twice, nothing valid is minted anew.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use testbed::chittyconnect::{Fault, Match};

use crate::support::*;

/// Invariant 9.
#[tokio::test]
async fn killed_and_restarted_it_mints_nothing_for_what_is_still_valid() {
    let world = World::start("restart").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    for i in 0..8 {
        case.issued(&format!("c{i}"), json!({"service": format!("s{}", i % 3)}))
            .await;
    }
    let minted = case.posts();
    let read = world.secrets_read().await;
    for _ in 0..3 {
        world.kill_controller();
        world.start_controller();
        case.settle_with("any").await;
    }
    assert_eq!(case.posts() - minted, 3, "only the three probes are minted");
    // At each start the keys are; of eight Secrets and more that are as they were written none.
    let read = world.secrets_read().await - read;
    assert!(read < 3 * 8, "{read} Secrets were read though none had changed");
}

/// Invariant 4.
#[tokio::test]
async fn a_request_in_flight_when_it_was_killed_is_told_stays_counted_and_is_repeated_only_later() {
    let world = World::start("in-flight").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    case.broker
        .on(Match::any().service("chittyid"))
        .times(1)
        .fault(Fault::DelayAfter(Duration::from_secs(5)));
    case.apply("a", json!({})).await;
    wait_for("the request to arrive", || async {
        (case.posts_for("chittyid") == 1).then_some(())
    })
    .await;
    world.kill_controller();
    world.start_controller();
    let unknown = case.until_ready_is("a", "False", "OutcomeUnknown").await;
    assert!(condition(&unknown, "Ready").2.contains("stays counted"));
    assert_eq!(case.journal_facts().await.sent, 1);
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn a_secret_written_but_not_recorded_when_it_was_killed_is_adopted() {
    let world = World::start("adopt").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    // The API server takes claims, and refuses outcomes: as if the process died right before them.
    let policy = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-outcomes}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [UPDATE, CREATE], resources: [configmaps]}]
  validations: [{expression: "!has(object.data) || !('journal.json' in object.data) || !object.data['journal.json'].contains('\"live\":')"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-outcomes}
spec: {policyName: no-outcomes, validationActions: [Deny]}
"#;
    world.kubectl(&["apply", "-f", "-"], policy);
    let maps: Api<ConfigMap> = Api::namespaced(case.client.clone(), SYSTEM);
    wait_for("the policy to be in force", || async {
        let probe = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}, "data": {"journal.json": "\"live\":"}});
        let params = PatchParams::apply("tests").force().dry_run();
        maps.patch("probe", &params, &Patch::Apply(&probe)).await.is_err().then_some(())
    })
    .await;
    case.apply("a", json!({})).await;
    let written = wait_for("the Secret", || case.secret("a")).await;
    world.kill_controller();
    world.kubectl(
        &[
            "delete",
            "validatingadmissionpolicybinding,validatingadmissionpolicy",
            "no-outcomes",
        ],
        "",
    );
    world.start_controller();
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts_for("chittyid"), 1);
    assert_eq!(case.secret("a").await.unwrap().data, written.data);
}

/// Invariant 2.
#[tokio::test]
async fn killed_every_second_it_never_exceeds_the_limit_and_loses_no_live_credential() {
    let world = World::start("storm").await;
    let storm = Storm::within(world.clone(), Duration::from_secs(12)).await;
    let until = Instant::now() + Duration::from_secs(40);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1700)).await;
        world.kill_controller();
        world.start_controller();
    }
    storm.assert_weathered(8).await;
}

#[tokio::test]
async fn a_standby_takes_over_after_a_kill_and_at_once_after_a_sigterm() {
    let world = World::without_controller("leaders").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    let first = world.spawn_controller("one", &world.controller_kubeconfig());
    case.issued("a", json!({})).await;
    let second = world.spawn_controller("two", &world.controller_kubeconfig());
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(first);
    let killed = Instant::now();
    case.issued("b", json!({})).await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?} after a kill");
    let third = world.spawn_controller("three", &world.controller_kubeconfig());
    tokio::time::sleep(Duration::from_secs(2)).await;
    signal(&second, "TERM");
    let stopped = Instant::now();
    case.issued("c", json!({})).await;
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?} after a SIGTERM");
    drop(third);
    assert_eq!(case.posts_for("chittyid"), 3);
}

/// Invariant 4.
#[tokio::test]
async fn a_leader_frozen_with_a_request_in_flight_changes_nothing_when_it_wakes() {
    let world = World::without_controller("frozen").await;
    let case = Setup::within(world.clone(), generous().ttl(Duration::from_secs(30)))
        .case()
        .await;
    let first = world.spawn_controller("one", &world.controller_kubeconfig());
    case.issued("a", json!({"runId": "a"})).await;
    let _second = world.spawn_controller("two", &world.controller_kubeconfig());
    case.broker
        .on(Match::any().purpose("slow"))
        .times(1)
        .fault(Fault::DelayAfter(Duration::from_secs(1)));
    case.apply("b", json!({"purpose": "slow"})).await;
    wait_for("the request to arrive", || async {
        (case.posts_for("chittyid") == 2).then_some(())
    })
    .await;
    signal(&first, "STOP");
    // Its successor renews what falls due, and waits until nobody can be working on that claim.
    case.until_revision("a", 2).await;
    case.until_ready_is("b", "False", "OutcomeUnknown").await;
    let renewals = |case: &Case| {
        let posts = case.broker.ledger().posts;
        posts.iter().filter(|p| p.run_id.as_deref() == Some("a")).count()
    };
    assert_eq!(renewals(&case), 2);
    signal(&first, "CONT");
    wait_for("it to learn that somebody else leads", || async {
        world.log().contains("stepping down").then_some(())
    })
    .await;
    case.until_ready_is("b", "True", "Issued").await;
    assert_eq!(renewals(&case), 2, "renewed again by a leader that was none any more");
    let ledger = case.broker.ledger();
    let newest = ledger.mints_for("chittyid").into_iter().last().unwrap();
    assert_eq!(
        case.value("b", "npm_token").await.as_ref(),
        newest.secrets.get("npm_token")
    );
    let sent = case.journal_facts().await.sent;
    assert_eq!(sent, ledger.posts() as u64, "each request stays counted");
}

#[tokio::test]
async fn a_leader_frozen_while_its_secret_was_refused_overwrites_nothing_when_it_wakes() {
    let world = World::without_controller("frozen-late").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    let first = world.spawn_controller("one", &world.controller_kubeconfig());
    case.refuse_secrets().await;
    case.apply("a", json!({})).await;
    case.until_ready_is("a", "False", "SecretRefused").await;
    let _second = world.spawn_controller("two", &world.controller_kubeconfig());
    signal(&first, "STOP");
    case.take_secrets();
    // Its successor gives that token up, and asks for another.
    case.until("a", |c| condition(c, "Ready").0 == "True").await;
    let written = case.secret("a").await.unwrap().data;
    assert_eq!(case.posts_for("chittyid"), 2);
    signal(&first, "CONT");
    wait_for("it to learn that somebody else leads", || async {
        world.log().contains("stepping down").then_some(())
    })
    .await;
    case.settle().await;
    assert_eq!(case.secret("a").await.unwrap().data, written);
    assert_eq!(case.posts_for("chittyid"), 2);
}

fn signal(process: &testbed::process::Process, name: &str) {
    let sent = std::process::Command::new("kill")
        .args([format!("-{name}"), process.pid().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[tokio::test]
async fn after_an_outage_of_the_api_server_work_resumes_and_nothing_is_minted_twice() {
    let world = World::start("outage").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    case.issued("a", json!({})).await;
    world.plane.kill_apiserver();
    wait_for("the leader to step down", || async {
        world.log().contains("stepping down").then_some(())
    })
    .await;
    world.plane.start_apiserver().await.unwrap();
    let back = Instant::now();
    wait_for("the API server", || async {
        case.credentials().get("a").await.ok().map(|_| ())
    })
    .await;
    case.issued("b", json!({})).await;
    let took = back.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn an_edited_or_unsigned_journal_stops_minting_and_says_how_to_mend_it() {
    let world = World::start("edited").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    case.issued("a", json!({})).await;
    let maps: Api<ConfigMap> = Api::namespaced(case.client.clone(), SYSTEM);
    let patch = async |name: &str, patch: Value| {
        let params = PatchParams::default();
        maps.patch(name, &params, &Patch::Merge(patch)).await.unwrap();
    };
    for (name, says) in [("b", "edited by hand"), ("c", "no signature")] {
        let posts = case.posts_for("chittyid");
        let journal = case.journal("chittyid").await.unwrap();
        let text = journal.data.clone().unwrap()["journal.json"].replace("\"attempts\":[", "\"attempts\": [");
        let edit = match name {
            "b" => json!({"data": {"journal.json": text}}),
            _ => json!({"metadata": {"annotations": {"connect.chitty.cc/signature": null}}}),
        };
        world.kill_controller();
        patch(&journal.name_any(), edit).await;
        world.start_controller();
        case.apply(name, json!({})).await;
        let stopped = case.until_ready_is(name, "False", "ConnectionNotReady").await;
        let message = condition(&stopped, "Ready").2;
        for part in [journal.name_any().as_str(), says, "Restore it, or delete it"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(case.secret("a").await.is_some());
        assert_eq!(case.posts_for("chittyid"), posts);
        let annotations = journal.metadata.annotations.clone();
        let restore = json!({"data": journal.data, "metadata": {"annotations": annotations}});
        patch(&journal.name_any(), restore).await;
        case.until_ready_is(name, "True", "Issued").await;
        assert_eq!(case.posts_for("chittyid"), posts + 1);
    }
}

#[tokio::test]
async fn a_lost_journal_is_rebuilt_from_sealed_secrets_and_newcomers_wait_a_window() {
    let world = World::start("lost").await;
    let case = Setup::within(world.clone(), generous())
        .connection(json!({"rateLimit": {"limit": 100, "window": "10s"}}))
        .case()
        .await;
    case.issued("a", json!({})).await;
    world.kill_controller();
    let maps: Api<ConfigMap> = Api::namespaced(case.client.clone(), SYSTEM);
    let journal = case.journal("chittyid").await.unwrap();
    maps.delete(&journal.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    case.apply("b", json!({})).await;
    world.start_controller();
    let waiting = case.until_ready_is("b", "False", "RateLimited").await;
    assert!(
        condition(&waiting, "Ready").2.contains("was lost and rebuilt"),
        "{:?}",
        condition(&waiting, "Ready")
    );
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts_for("chittyid"), 1);
    case.until_ready_is("b", "True", "Issued").await;
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn a_lost_seal_key_is_made_anew_and_costs_no_mint() {
    let world = World::start("seal").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    case.issued("a", json!({})).await;
    let before = case.secret("a").await.unwrap();
    world.kill_controller();
    case.keys()
        .delete("chittyconnect-operator-seal", &DeleteParams::default())
        .await
        .unwrap();
    world.start_controller();
    wait_for("a new seal", || async {
        let now = case.secret("a").await?;
        (now.annotations().get("connect.chitty.cc/seal") != before.annotations().get("connect.chitty.cc/seal"))
            .then_some(())
    })
    .await;
    case.settle_with("any").await;
    assert_eq!(case.posts_for("chittyid"), 1);
    assert_eq!(case.secret("a").await.unwrap().data, before.data);
}

/// Invariant 7.
#[tokio::test]
async fn a_secret_past_its_end_is_removed_first_thing_after_a_standstill() {
    let world = World::start("standstill").await;
    let case = Setup::within(world.clone(), generous().ttl(Duration::from_secs(5)))
        .case()
        .await;
    case.issued("a", json!({})).await;
    world.kill_controller();
    case.broker.go_down().unwrap();
    let end = case.broker.ledger().mints[0].expires_at.unwrap();
    wait_for("the token's end", || async { (case.broker.now() > end).then_some(()) }).await;
    let secrets: Api<Secret> = case.secrets();
    assert_eq!(secrets.list(&ListParams::default()).await.unwrap().items.len(), 1);
    world.start_controller();
    let started = Instant::now();
    wait_for("the Secret to go", || async {
        case.secret("a").await.is_none().then_some(())
    })
    .await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_journal_that_was_illegible_at_the_start_is_worked_off_once_it_is_mended() {
    let world = World::start("illegible").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    let uid = case.issued("a", json!({})).await.uid().unwrap();
    let journal = case.journal("chittyid").await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(case.client.clone(), SYSTEM);
    let write = |data: serde_json::Value| {
        let (maps, name) = (maps.clone(), journal.name_any());
        async move {
            let data = Patch::Merge(json!({"data": data}));
            maps.patch(&name, &PatchParams::default(), &data).await.unwrap()
        }
    };
    world.kill_controller();
    write(json!({"journal.json": "{ not what it was"})).await;
    case.delete("a").await;
    world.start_controller();
    case.issued("b", json!({"service": "other"})).await;
    write(json!(journal.data)).await;
    wait_for("the deleted credential to be let go", || async {
        let text = maps.get(&journal.name_any()).await.ok()?.data?.remove("journal.json")?;
        (!text.contains(&format!("\"{uid}\":"))).then_some(())
    })
    .await;
}
