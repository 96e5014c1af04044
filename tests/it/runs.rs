//! Credentials that are bound to a run: what they hold goes with the object that owns them, however that goes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::ResourceExt;
use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::support::*;

/// A connection whose tokens can be revoked.
async fn case(world: std::sync::Arc<World>) -> Case {
    let rule = json!([{"namespaces": ["*"], "services": ["*"], "purposes": ["*"], "repos": ["*"], "types": ["*"]}]);
    Setup::within(world, generous())
        .connection(json!({"api": "Provision", "access": rule}))
        .case()
        .await
}

/// A credential that `owner` owns, with its run's id.
async fn bound(case: &Case, name: &str, kind: &ApiResource, owner: &DynamicObject) {
    let mut manifest = case.manifest(name, json!({"type": "cloudflare_workers_deploy", "runId": name}));
    manifest["metadata"]["ownerReferences"] = json!([{
        "apiVersion": kind.api_version, "kind": kind.kind, "name": owner.name_any(), "uid": owner.uid().unwrap(),
    }]);
    apply(&case.credentials(), &manifest).await;
    case.until_ready_is(name, "True", "Issued").await;
}

fn pod() -> Value {
    json!({"restartPolicy": "Never", "containers": [{"name": "run", "image": "busybox:1.36"}]})
}

#[tokio::test]
async fn what_a_run_was_given_is_revoked_when_its_job_pod_or_runner_goes() {
    let world = World::start("runs").await;
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "ephemeralrunners.actions.github.com"},
        "spec": {
            "group": "actions.github.com", "scope": "Namespaced",
            "names": {"kind": "EphemeralRunner", "plural": "ephemeralrunners"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": {"openAPIV3Schema": any}}],
        },
    });
    world.kubectl(&["apply", "-f", "-"], &crd.to_string());
    world.kubectl(
        &["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"],
        "",
    );
    // It learns of new kinds slowly; restarted it knows them at once.
    world.plane.restart_controller_manager().unwrap();
    let case = case(world).await;
    let runner = GroupVersionKind::gvk("actions.github.com", "v1alpha1", "EphemeralRunner");
    let owners = [
        (
            "job",
            ApiResource::erase::<Job>(&()),
            json!({"template": {"spec": pod()}}),
        ),
        ("pod", ApiResource::erase::<Pod>(&()), pod()),
        (
            "runner",
            ApiResource::from_gvk(&runner),
            json!({"githubConfigUrl": "https://github.com/CHITTYOS"}),
        ),
    ];
    for (name, kind, spec) in owners {
        let api: Api<DynamicObject> = Api::namespaced_with(case.client.clone(), &case.namespace, &kind);
        let manifest = json!({
            "apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name}, "spec": spec,
        });
        let owner: DynamicObject = serde_json::from_value(manifest).unwrap();
        let owner = api.create(&PostParams::default(), &owner).await.unwrap();
        bound(&case, name, &kind, &owner).await;
        let (token, run) = {
            let ledger = case.broker.ledger();
            let mint = ledger.mints.last().unwrap();
            (mint.token_id.clone().unwrap(), mint.run_id.clone())
        };
        assert_eq!(run.as_deref(), Some(name), "the audit names the run");
        api.delete(name, &DeleteParams::background().grace_period(0))
            .await
            .unwrap();
        wait_for("the token to be revoked", || async {
            let ledger = case.broker.ledger();
            let mint = ledger.mints.iter().find(|m| m.token_id.as_ref() == Some(&token))?;
            mint.revoked_at.map(|_| ())
        })
        .await;
        wait_for("credential and Secret to go", || async {
            let gone = case.credentials().get_opt(name).await.unwrap().is_none() && case.secret(name).await.is_none();
            gone.then_some(())
        })
        .await;
    }
    assert_eq!(case.posts(), 3, "each run has one mint");
}

#[tokio::test]
async fn the_example_gives_each_run_its_own_credential_which_goes_with_its_job() {
    let case = Case::new().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/run-bound.sh");
    let kubectl = case.world.plane.kubectl().unwrap();
    let program = Path::new(kubectl.get_program()).to_path_buf();
    let run = async |id: &str| {
        let mut command = Command::new("sh");
        command
            .arg(&script)
            .env("RUN_ID", id)
            .env("CONNECTION", &case.connection);
        command.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // As a pipeline has it: a kubectl that knows its namespace.
        let config = case.world.plane.kubeconfig();
        let text = std::fs::read_to_string(config).unwrap();
        let mut parsed: Value = serde_yaml::from_str(&text).unwrap();
        parsed["contexts"][0]["context"]["namespace"] = json!(case.namespace);
        let file = case.world.file(&format!("{}-{id}.json", case.namespace));
        std::fs::write(&file, parsed.to_string()).unwrap();
        command.env("KUBECONFIG", file);
        // Discovery is cached by address, and ports come back with other servers behind them.
        command.env("HOME", case.world.file("home"));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", program.parent().unwrap().display()));
        command.output().unwrap()
    };
    for id in ["4711", "4712"] {
        let output = run(id).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        case.until_ready_is(&format!("deploy-{id}"), "True", "Issued").await;
    }
    assert!(!run("4711").await.status.success(), "a run is not made twice");
    let runs: Vec<Option<String>> = {
        let ledger = case.broker.ledger();
        ledger.mints.iter().map(|m| m.run_id.clone()).collect()
    };
    assert_eq!(runs, [Some("4711".to_owned()), Some("4712".to_owned())]);
    let jobs: Api<Job> = Api::namespaced(case.client.clone(), &case.namespace);
    let job = jobs.get("deploy-4711").await.unwrap();
    let mounted = &job.spec.unwrap().template.spec.unwrap().volumes.unwrap()[0];
    assert_eq!(
        mounted.secret.as_ref().unwrap().secret_name.as_deref(),
        Some("deploy-4711")
    );
    jobs.delete("deploy-4711", &DeleteParams::background()).await.unwrap();
    wait_for("the first run's to go", || async {
        case.secret("deploy-4711").await.is_none().then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(case.secret("deploy-4712").await.is_some());
}
