use serde_json::{Value, json};

use super::*;
use crate::core::ids::ObjectName;
use crate::core::testing::t;

/// A Pod that is bound to a node at 100 s, as it would be kept.
fn pod(spec: Value, status: Value) -> Option<Pod> {
    let mut whole = json!({"nodeName": "node"});
    let Value::Object(spec) = spec else { return None };
    whole.as_object_mut().unwrap().extend(spec);
    let about = About {
        name: ObjectName::new("n", "p"),
        uid: "u",
        created: Some(t(100)),
        leaving: false,
        owner: None,
    };
    let (spec, status) = (serde_json::from_value(whole), serde_json::from_value(status));
    Pod::of(about, &spec.unwrap(), &status.unwrap())
}

fn reads_as(spec: Value, status: Value) -> Vec<(String, Ways)> {
    let reads = pod(spec, status).map(|pod| pod.reads).unwrap_or_default();
    reads.iter().map(|(name, ways)| (name.to_string(), *ways)).collect()
}

fn mounts(mounts: &Value) -> Value {
    json!({"name": "c", "volumeMounts": mounts})
}

fn running() -> Value {
    json!({"phase": "Running", "containerStatuses": [{"state": {"running": {"startedAt": "2023-11-14T22:20:00Z"}}}]})
}

#[test]
fn a_volume_is_read_whole_or_by_a_sub_path_and_not_at_all_where_nobody_mounts_it() {
    let volumes = json!([
        {"name": "v", "secret": {"secretName": "a", "optional": true}},
        {"name": "p", "projected": {"sources": [{"configMap": {"name": "x"}}, {"secret": {"name": "b"}}]}},
        {"name": "unused", "secret": {"secretName": "c"}},
        {"name": "other", "emptyDir": {}},
    ]);
    let mounts = json!([
        {"name": "v", "mountPath": "/v"}, {"name": "other", "mountPath": "/o"},
        {"name": "p", "mountPath": "/p", "subPath": "key"}, {"name": "p", "mountPath": "/q", "subPathExpr": "$(X)"},
    ]);
    let spec = json!({"containers": [self::mounts(&mounts)], "volumes": volumes});
    let expected = [
        ("a".to_owned(), Ways::VOLUME | Ways::OPTIONAL),
        ("b".to_owned(), Ways::SUB_PATH),
    ];
    assert_eq!(reads_as(spec, running()), expected);
}

#[test]
fn variables_one_by_one_or_all_of_a_secret_and_pull_secrets_count_as_use() {
    let spec = json!({
        "containers": [
            {"name": "c", "env": [
                {"name": "PLAIN", "value": "x"},
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "k"}}},
                {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]},
            {"name": "d", "envFrom": [{"configMapRef": {"name": "x"}}, {"secretRef": {"name": "b", "optional": true}}]},
        ],
        "imagePullSecrets": [{"name": "c"}, {}],
    });
    let expected = [
        ("a".to_owned(), Ways::ENV),
        ("b".to_owned(), Ways::ENV | Ways::OPTIONAL),
        ("c".to_owned(), Ways::IMAGE_PULL),
    ];
    assert_eq!(reads_as(spec, running()), expected);
}

#[test]
fn init_containers_use_a_secret_until_the_pod_has_started_sidecars_and_ephemeral_ones_after_that_too() {
    let env = |name: &str| json!([{"secretRef": {"name": name}}]);
    let spec = json!({
        "initContainers": [
            {"name": "i", "envFrom": env("init")},
            {"name": "s", "envFrom": env("sidecar"), "restartPolicy": "Always"},
        ],
        "containers": [{"name": "c"}],
        "ephemeralContainers": [{"name": "e", "envFrom": env("debug")}],
    });
    let names = |status| -> Vec<String> {
        reads_as(spec.clone(), status)
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    };
    assert_eq!(names(json!({"phase": "Pending"})), ["debug", "init", "sidecar"]);
    let mut started = running();
    started["ephemeralContainerStatuses"] = json!([{"state": {"running": {}}}]);
    assert_eq!(names(started), ["debug", "sidecar"]);
    assert!(
        pod(spec, running()).unwrap().starting,
        "one was added that does not run yet"
    );
}

#[test]
fn a_pod_that_is_not_bound_or_has_finished_or_reads_nothing_is_not_kept() {
    let env = json!({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "a"}}]}]});
    assert!(pod(env.clone(), json!({})).is_some());
    let mut unbound = env.clone();
    unbound["nodeName"] = json!("");
    assert!(pod(unbound, json!({})).is_none());
    for phase in ["Succeeded", "Failed"] {
        assert!(pod(env.clone(), json!({"phase": phase})).is_none(), "{phase}");
    }
    assert!(pod(json!({"containers": [{"name": "c"}]}), json!({})).is_none());
}

/// Invariant 13.
#[test]
fn of_a_pod_that_names_thousands_of_secrets_a_bounded_number_is_kept() {
    let env: Vec<Value> = (0..5000)
        .map(|i| json!({"secretRef": {"name": format!("s{i}")}}))
        .collect();
    let spec = json!({"containers": [{"name": "c", "envFrom": env}]});
    assert_eq!(reads_as(spec, running()).len(), 128);
}

#[test]
fn the_kubelet_tells_which_secret_a_container_lacks() {
    let spec = json!({
        "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "a"}}, {"secretRef": {"name": "b"}}]}],
        "imagePullSecrets": [{"name": "p"}],
    });
    let waiting = |reason: &str, message: &str| {
        let state = json!({"waiting": {"reason": reason, "message": message}});
        json!({"phase": "Pending", "containerStatuses": [{"state": state}]})
    };
    let lacked = |status| -> Vec<String> {
        let all = reads_as(spec.clone(), status).into_iter();
        all.filter(|(_, ways)| ways.has(Ways::LACKS))
            .map(|(name, _)| name)
            .collect()
    };
    assert_eq!(
        lacked(waiting("CreateContainerConfigError", "secret \"a\" not found")),
        ["a"]
    );
    let key = "couldn't find key k in Secret n/b";
    assert_eq!(lacked(waiting("CreateContainerConfigError", key)), ["b"]);
    assert!(lacked(waiting("CreateContainerConfigError", "configmap \"x\" not found")).is_empty());
    assert_eq!(lacked(waiting("ImagePullBackOff", "unauthorized")), ["p"]);
    assert!(lacked(waiting("ContainerCreating", "")).is_empty());
}

#[test]
fn a_pod_that_is_set_up_again_after_it_ran_needs_all_that_it_needed_to_start() {
    let spec = json!({
        "containers": [{"name": "c"}], "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "a"}}]}],
    });
    let again = |phase: &str| {
        let waits = json!([{"state": {"waiting": {"reason": "PodInitializing"}}}]);
        reads_as(spec.clone(), json!({"phase": phase, "containerStatuses": waits}))
    };
    assert_eq!(again("Running"), [("a".to_owned(), Ways::ENV | Ways::LACKS)]);
    assert_eq!(
        again("Pending"),
        [("a".to_owned(), Ways::ENV)],
        "it starts for the first time"
    );
}

#[test]
fn the_time_of_a_pod_is_that_of_its_binding_and_of_its_first_container() {
    let spec = json!({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "a"}}]}]});
    let mut status = running();
    status["conditions"] = json!([
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2023-11-14T22:15:00Z"},
        {"type": "Ready", "status": "True", "lastTransitionTime": "2023-11-14T22:16:00Z"},
    ]);
    let running = pod(spec.clone(), status).unwrap();
    assert_eq!(running.bound.to_rfc3339(), "2023-11-14T22:15:00+00:00");
    assert_eq!(running.started.unwrap().to_rfc3339(), "2023-11-14T22:20:00+00:00");
    assert!(!running.starting);
    let waiting = pod(spec, json!({})).unwrap();
    assert_eq!((waiting.bound, waiting.started, waiting.starting), (t(100), None, true));
}

#[test]
fn an_owner_that_stands_for_a_run_is_told_and_no_other() {
    for kind in ["Job", "EphemeralRunner", "Workflow", "TaskRun"] {
        assert_eq!(Consumer::of(kind, "x").unwrap().to_string(), format!("{kind}/x"));
    }
    assert!(Consumer::of("ReplicaSet", "x").is_none());
    assert_eq!(Consumer::of("Job", &"x".repeat(253)).unwrap().to_string().len(), 80);
}

fn uses(pods: &[(bool, bool, Ways)]) -> Uses {
    let mut uses = Uses::default();
    for (starting, leaving, ways) in pods {
        let mut pod = pod(
            json!({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "a"}}]}]}),
            json!({}),
        )
        .unwrap();
        (pod.starting, pod.leaving) = (*starting, *leaving);
        uses.add(&pod, *ways);
    }
    uses
}

fn let_go(at: i64) -> LetGo {
    LetGo {
        at: t(at),
        issued_at: t(0),
        ends_at: t(3600),
    }
}

#[test]
fn only_who_reads_by_a_volume_asks_for_renewals() {
    assert!(uses(&[(false, false, Ways::VOLUME)]).renews());
    for once in [Ways::ENV, Ways::SUB_PATH, Ways::IMAGE_PULL, Ways::ENV | Ways::OPTIONAL] {
        assert!(!uses(&[(true, false, once), (false, false, once)]).renews());
    }
}

#[test]
fn who_reads_once_asks_for_a_token_until_it_has_started_and_once() {
    let (waits, runs) = (uses(&[(true, false, Ways::ENV)]), uses(&[(false, false, Ways::ENV)]));
    assert!(waits.asks(None) && !runs.asks(None));
    // It was there while the last one was, and what keeps it from starting is something else.
    assert!(!waits.asks(Some(&let_go(2400))));
    assert!(waits.asks(Some(&let_go(50))), "that was before it came");
    assert!(waits.asks(Some(&let_go(101))), "just when it came");
    // Unless the kubelet says that this is what it lacks.
    assert!(uses(&[(false, false, Ways::ENV | Ways::LACKS)]).asks(Some(&let_go(2400))));
}

#[test]
fn a_pod_that_leaves_starts_nothing_and_keeps_what_it_reads() {
    assert!(!uses(&[(true, true, Ways::VOLUME)]).asks(None));
    assert!(uses(&[(false, true, Ways::VOLUME)]).renews());
}

#[test]
fn a_pod_counts_once_in_each_way_that_it_reads() {
    let uses = uses(&[
        (false, false, Ways::VOLUME | Ways::ENV),
        (false, false, Ways::SUB_PATH | Ways::OPTIONAL),
        (true, false, Ways::IMAGE_PULL),
    ]);
    let expected = InUse {
        volume: 1,
        env: 1,
        sub_path: 1,
        optional: 1,
        image_pull: 1,
    };
    assert_eq!((uses.counts, uses.pods), (expected, 3));
}

#[test]
fn what_was_read_at_a_time_ends_with_the_token_that_was_the_newest_then() {
    let span = |issued: i64, ends: i64| Span {
        issued_at: t(issued),
        ends_at: t(ends),
    };
    let tokens = [span(0, 3600), span(2400, 6000)];
    assert_eq!(end_of_token_read_at(t(100), tokens), Some(t(3600)));
    assert_eq!(end_of_token_read_at(t(2500), tokens), Some(t(6000)));
    assert_eq!(end_of_token_read_at(t(7000), tokens), None);
}

#[test]
fn while_it_is_not_known_who_uses_a_token_none_is_asked_for_and_nothing_is_decided_about_renewals() {
    let unknown = Users::Unknown(None);
    assert!(!unknown.ask(MintReason::First, None) && !unknown.ask(MintReason::Renewal, None));
    assert_eq!(unknown.renew(), None);
    assert!(Users::Anybody.ask(MintReason::First, None) && Users::Anybody.renew() == Some(true));
}
