//! Examples that users copy: the API server takes each, and each mounts its Secret as it should be mounted.

use std::collections::BTreeSet;
use std::fs;

use chittyconnect_operator::ops::metrics::Metrics;
use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

use crate::support::{Cluster, documents, helm, read, repository, succeed};

/// The manifests and the values among the examples, by file name.
fn examples() -> (Vec<String>, Vec<String>) {
    let mut names: Vec<String> = fs::read_dir(repository("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.rsplit_once('.').is_some_and(|(_, kind)| kind == "yaml"))
        .collect();
    names.sort();
    names.into_iter().partition(|name| !name.ends_with(".values.yaml"))
}

/// What a chart would see of a file of values, read as Helm reads it.
fn values(name: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("templates")).unwrap();
    fs::write(
        dir.path().join("Chart.yaml"),
        "{apiVersion: v2, name: values, version: 0.0.0}",
    )
    .unwrap();
    fs::write(dir.path().join("templates/values.yaml"), "{{ toJson .Values }}").unwrap();
    let file = repository("examples").join(name);
    let arguments = [
        "template",
        "x",
        dir.path().to_str().unwrap(),
        "--values",
        file.to_str().unwrap(),
    ];
    documents(&succeed(&mut helm(&arguments))).remove(0)
}

/// Every example's rules: the token as a file, in a directory that follows rotations, for a Pod that waits
/// until it is there and does not run as root.
fn check_mounts(file: &str, spec: &Value, secrets: &BTreeSet<String>) {
    let pod: PodSpec = serde_json::from_value(spec.clone()).unwrap_or_else(|e| panic!("{file}: {e}"));
    let volumes = pod.volumes.unwrap_or_default();
    let mut mounted = 0;
    for volume in &volumes {
        let Some(secret) = &volume.secret else { continue };
        let name = secret.secret_name.as_deref().unwrap_or_default();
        assert!(
            secrets.contains(name),
            "{file}: Secret {name} comes from no example's credential"
        );
        assert_eq!(secret.default_mode, Some(0o440), "{file}");
        assert_eq!(secret.optional, None, "{file}: a Pod must wait for its Secret");
        let uses = |mounts: &Option<Vec<k8s_openapi::api::core::v1::VolumeMount>>| {
            mounts
                .iter()
                .flatten()
                .filter(|m| m.name == volume.name)
                .cloned()
                .collect::<Vec<_>>()
        };
        for container in &pod.containers {
            let own = container.security_context.as_ref().and_then(|c| c.run_as_non_root);
            for mount in uses(&container.volume_mounts) {
                assert_eq!((mount.sub_path, mount.read_only), (None, Some(true)), "{file}");
                let pods = pod.security_context.as_ref().and_then(|c| c.run_as_non_root);
                assert_eq!(own.or(pods), Some(true), "{file}");
                mounted += 1;
            }
        }
    }
    assert!(mounted > 0, "{file} mounts no Secret");
    let context = pod.security_context.expect("a security context");
    assert!(context.fs_group.is_some(), "{file}: 0440 is for the group");
    for env in pod.containers.iter().flat_map(|c| c.env.iter().flatten()) {
        let from_secret = env.value_from.as_ref().is_some_and(|v| v.secret_key_ref.is_some());
        assert!(!from_secret, "{file}: a variable does not follow rotations");
    }
}

fn pod_spec(document: &Value) -> Option<&Value> {
    match document["kind"].as_str()? {
        "Job" | "Deployment" => Some(&document["spec"]["template"]["spec"]),
        "CronJob" => Some(&document["spec"]["jobTemplate"]["spec"]["template"]["spec"]),
        "Pod" => Some(&document["spec"]),
        _ => None,
    }
}

/// The Secrets that an object of any kind names where Kubernetes, Tekton and Argo name them.
fn secret_names(object: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    match object {
        Value::Object(map) => {
            for (key, value) in map {
                let name = match key.as_str() {
                    "secretName" => value.as_str(),
                    "usernameSecret" | "passwordSecret" => value["name"].as_str(),
                    _ => None,
                };
                names.extend(name.map(str::to_owned));
                if matches!(key.as_str(), "imagePullSecrets" | "secrets") && object["kind"] == "ServiceAccount" {
                    let listed = value.as_array().into_iter().flatten();
                    names.extend(listed.filter_map(|s| s["name"].as_str().map(str::to_owned)));
                }
                names.extend(secret_names(value));
            }
        }
        Value::Array(items) => names.extend(items.iter().flat_map(secret_names)),
        _ => {}
    }
    names
}

#[test]
fn the_api_server_takes_every_example_without_a_warning() {
    let cluster = Cluster::start();
    for (_, crd) in chittyconnect_operator::api::crd_files().unwrap() {
        cluster.apply(&crd);
    }
    cluster.serve_foreign_kinds();
    let (manifests, values_files) = examples();
    assert!(manifests.len() >= 16 && values_files.len() >= 4);
    // What names no namespace is applied to this one.
    let text = |file: &String| read(&repository("examples").join(file));
    let named_in = manifests.iter().flat_map(|file| documents(&text(file)));
    let named_in = named_in.filter_map(|d| Some(d["metadata"]["namespace"].as_str()?.to_owned()));
    let namespaces: BTreeSet<String> = named_in.chain(["examples".to_owned()]).collect();
    for namespace in namespaces {
        let labels = json!({"pod-security.kubernetes.io/warn": "restricted"});
        let manifest =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}});
        cluster.apply(&manifest.to_string());
    }
    let dry = |manifest: &str, of: &str| -> Vec<Value> {
        // As it is written: a mode such as 0440 is a number to kubectl, and text to others.
        let parts = manifest.split("\n---\n").flat_map(|part| {
            let namespace = documents(part)
                .first()
                .and_then(|d| Some(d["metadata"]["namespace"].as_str()?.to_owned()));
            let namespace = format!("--namespace={}", namespace.as_deref().unwrap_or("examples"));
            let mut apply = cluster.kubectl(&["apply", "--dry-run=server", "--validate=strict", &namespace]);
            let output = Cluster::with_input(apply.args(["--output=json", "-f", "-"]), part);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{of}: {said}");
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            answer["items"].as_array().cloned().unwrap_or_else(|| vec![answer])
        });
        parts.collect()
    };
    let mut secrets = BTreeSet::new();
    let mut pods = Vec::new();
    let mut named = Vec::new();
    for file in manifests {
        for object in dry(&read(&repository("examples").join(&file)), &file) {
            if object["kind"] == "EphemeralCredential" {
                let listed = object["spec"]["secrets"].as_array().cloned().unwrap_or_default();
                secrets.extend(listed.iter().map(|s| s["name"].as_str().unwrap().to_owned()));
                if listed.is_empty() {
                    secrets.insert(object["metadata"]["name"].as_str().unwrap().to_owned());
                }
            } else if let Some(spec) = pod_spec(&object) {
                pods.push((file.clone(), spec.clone()));
            } else {
                named.extend(secret_names(&object).into_iter().map(|name| (file.clone(), name)));
            }
        }
    }
    assert!(!pods.is_empty());
    for (file, spec) in &pods {
        check_mounts(file, spec, &secrets);
    }

    for (file, name) in named {
        assert!(
            secrets.contains(&name),
            "{file}: Secret {name} comes from no example's credential"
        );
    }
    let template = documents(&read(&repository("examples/arc-kubernetes-mode.yaml"))).remove(0);
    let template = &documents(template["data"]["template.yaml"].as_str().unwrap())[0];
    assert_eq!(template["spec"]["containers"][0]["name"], "$job");
    check_mounts("arc-kubernetes-mode.yaml", &template["spec"], &secrets);

    let buildkite = values("buildkite.values.yaml");
    check_mounts(
        "buildkite.values.yaml",
        &buildkite["config"]["pod-spec-patch"],
        &secrets,
    );
    let checkout = &buildkite["config"]["default-checkout-params"]["gitCredentialsSecret"]["secretName"];
    assert!(secrets.contains(checkout.as_str().unwrap()));

    let arc = values("arc-runner-set.values.yaml");
    let spec = &arc["template"]["spec"];
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runner"}, "spec": spec});
    check_mounts(
        "arc-runner-set.values.yaml",
        &dry(&pod.to_string(), "the runner")[0]["spec"],
        &secrets,
    );
    assert!(
        spec["containers"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["name"] == "runner")
    );

    let dind = values("arc-dind.values.yaml");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "dind", "namespace": "privileged"}, "spec": dind["template"]["spec"]});
    cluster.apply(r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "privileged"}}"#);
    let spec = &dry(&pod.to_string(), "docker in docker")[0]["spec"];
    check_mounts("arc-dind.values.yaml", spec, &secrets);
    // The daemon, whom a job can ask for anything, has no tokens.
    let daemon = spec["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "dind");
    let mounts = daemon.unwrap()["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().all(|m| m["name"] != "credentials"));

    let gitlab = values("gitlab-runner.values.yaml");
    let config = gitlab["runners"]["config"].as_str().expect("runners.config");
    let (_, volume) = config
        .split_once("[[runners.kubernetes.volumes.secret]]")
        .expect("a Secret volume");
    let setting = |name: &str| {
        let lines = volume.lines().skip(1).take_while(|l| !l.trim_start().starts_with('['));
        let mut pairs = lines.filter_map(|l| l.split_once('='));
        let (_, value) = pairs
            .find(|(n, _)| n.trim() == name)
            .unwrap_or_else(|| panic!("no {name}"));
        value.trim().trim_matches('"').to_owned()
    };
    assert!(secrets.contains(&setting("name")));
    assert_eq!(setting("read_only"), "true");
    assert!(config.contains("[runners.kubernetes.pod_security_context]") && config.contains("fs_group"));
    assert!(
        config.contains(&format!(". {}/.env", setting("mount_path"))),
        "the build reads what is mounted"
    );
}

#[test]
fn what_a_shell_reads_is_exported_to_what_it_starts() {
    let text = read(&repository("docs/templates.md"));
    let (_, variables) = text.split_once(".env: |\n").expect("a file for a shell");
    let variables: Vec<&str> = variables
        .lines()
        .map(str::trim)
        .take_while(|l| l.contains("{{"))
        .collect();
    assert!(!variables.is_empty());
    for line in variables {
        assert!(line.starts_with("export ") && line.ends_with('\''), "{line}");
    }
}

#[test]
fn the_runners_hook_in_the_examples_is_the_one_that_is_tested() {
    let manifest = documents(&read(&repository("examples/runner-credential.yaml")));
    let map = manifest.iter().find(|d| d["kind"] == "ConfigMap").expect("the hook");
    let script = map["data"]["job-started.sh"].as_str().unwrap();
    assert_eq!(script, read(&repository("actions/getchitty-creds/job-started.sh")));
}

#[test]
fn each_example_begins_with_when_to_take_it() {
    for entry in fs::read_dir(repository("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let text = read(&path);
        let comments = text
            .lines()
            .skip_while(|l| l.starts_with("#!"))
            .take_while(|l| l.starts_with('#'));
        let comments: Vec<&str> = comments.collect();
        let file = path.display();
        assert!(
            comments.len() >= 3,
            "{file} has {} lines that say when to take it",
            comments.len()
        );
        assert!(comments[0].starts_with("# Take it "), "{file}: {}", comments[0]);
    }
}

#[test]
fn the_teams_alerts_ask_for_what_is_measured() {
    let known: BTreeSet<String> = Metrics::new().described().into_iter().map(|m| m.name).collect();
    let rules = documents(&read(&repository("examples/alerts.yaml"))).remove(0);
    let rules = rules["spec"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert_eq!(rules.len(), 2);
    for rule in rules {
        let (_, name) = rule["expr"]
            .as_str()
            .unwrap()
            .split_once('(')
            .unwrap()
            .1
            .split_once('(')
            .unwrap();
        let (name, labels) = name.split_once('{').unwrap();
        assert!(known.contains(name), "{name}");
        assert!(labels.starts_with("namespace=\"runners-web\""), "{labels}");
    }
}
