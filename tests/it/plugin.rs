//! `kubectl chitty` on a real API server, with the controller running.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use testbed::chittyconnect::Scope;

use crate::support::*;

/// Somebody who uses the plugin.
struct User {
    kubeconfig: PathBuf,
    namespace: String,
}

impl User {
    fn administrator(case: &Case) -> Self {
        Self {
            kubeconfig: case.world.plane.kubeconfig().to_path_buf(),
            namespace: case.namespace.clone(),
        }
    }

    /// Somebody who has a role in the namespace of `case`, and nothing elsewhere.
    async fn with_role(case: &Case, role: &str) -> Self {
        let name = format!("{role}-{}", case.namespace);
        let bindings: Api<k8s_openapi::api::rbac::v1::RoleBinding> =
            Api::namespaced(case.client.clone(), &case.namespace);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
        });
        apply(&bindings, &binding).await;
        let user = Self {
            kubeconfig: case.world.plane.kubeconfig_as(&name, &[]).unwrap(),
            namespace: case.namespace.clone(),
        };
        wait_for("the role to be in force", || async {
            user.run(&["status"]).status.success().then_some(())
        })
        .await;
        user
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_anywhere(&[arguments, &["--namespace", &self.namespace]].concat())
    }

    /// Where the kubeconfig says, or the arguments.
    fn run_anywhere(&self, arguments: &[&str]) -> Output {
        // Another build of it may be named, to be measured.
        let named = std::env::var_os("KUBECTL_CHITTY");
        Command::new(named.unwrap_or_else(|| env!("CARGO_BIN_EXE_kubectl-chitty").into()))
            .env("KUBECONFIG", &self.kubeconfig)
            .args(arguments)
            .output()
            .unwrap()
    }

    /// What it prints; panics where it does not end well.
    fn told(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}\n{error}");
        assert!(!out.contains('\x1b'), "colours, and nobody looks: {out}");
        out
    }

    fn data(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.told(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    /// What it says where it does not end well, and with which code.
    fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        (output.status.code().unwrap(), text(&output.stderr))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn status_and_why_tell_of_what_is_there_what_waits_and_what_is_refused() {
    let builder = generous().limit(2, Duration::from_secs(3600), Scope::Service);
    let case = Setup::new(builder)
        .await
        .connection(json!({"rateLimit": {"limit": 2}, "access": [
            {"namespaces": ["t*"], "services": ["*"], "purposes": ["worker-deploy"], "repos": ["*"]},
        ]}))
        .case()
        .await;
    case.issued("a", json!({})).await;
    case.apply("b", json!({})).await;
    case.until_ready_is("b", "False", "RateLimited").await;
    case.apply("c", json!({"purpose": "account-admin"})).await;
    case.until_ready_is("c", "False", "NotPermitted").await;
    wait_for("the connection's status to tell of the budget", || async {
        let told = case.connections().get(&case.connection).await.ok()?.status?;
        told.scopes
            .get("chittyid")
            .filter(|scope| scope.waiting == 1)
            .map(|_| ())
    })
    .await;

    let user = User::administrator(&case);
    let table = user.told(&["status"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..4], ["NAME", "SERVICE", "READY", "REASON"], "{table}");
    assert_eq!(lines[1][..4], ["a", "chittyid", "True", "Issued"], "{table}");
    assert_eq!(lines[2][..4], ["b", "chittyid", "False", "RateLimited"], "{table}");
    assert_eq!(lines[3][..4], ["c", "chittyid", "False", "NotPermitted"], "{table}");
    let one = user.told(&["status", "a"]);
    assert!(one.contains("revision 1, issued") && one.contains("used #"), "{one}");
    assert_eq!(user.data(&["status", "a"])["budget"]["limit"], 2);

    let why = user.told(&["why", "b"]);
    for part in ["b is not ready", "RateLimited", "$ kubectl chitty budget chittyid"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    let sums = user.data(&["why", "b"])["arithmetic"].to_string();
    assert!(
        sums.contains("2 credentials count in it, 1 of them with a token"),
        "{sums}"
    );
    let why = user.told(&["why", "c"]);
    for part in [
        "Rule 1: purpose account-admin is not in worker-deploy.",
        "purposes: [\"account-admin\"]",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert_eq!(user.data(&["why", "a"])["credential"]["reason"], "Issued");
    let (code, said) = user.refused(&["why", "nobody"]);
    assert_eq!(code, 1);
    assert!(
        said.contains(&format!(
            "there is no EphemeralCredential nobody in namespace {}",
            case.namespace
        )),
        "{said}"
    );
    assert_eq!(user.refused(&["why"]).0, 2);
}

#[tokio::test]
async fn whoever_may_view_a_namespace_alone_is_told_what_it_may_see_and_what_it_may_not() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    case.apply("c", json!({"connection": "nowhere"})).await;
    case.until_ready_is("c", "False", "ConnectionNotFound").await;
    let viewer = User::with_role(&case, "view").await;
    let output = viewer.run(&["status"]);
    assert!(text(&output.stdout).contains("Issued"));
    assert!(
        text(&output.stderr).contains("Not shown: you may not read ChittyConnections"),
        "{}",
        text(&output.stderr)
    );
    let why = viewer.told(&["why", "c"]);
    assert!(
        why.contains("spec.connection names a ChittyConnection that does not exist"),
        "{why}"
    );
    assert!(why.contains("Not shown: you may not read ChittyConnections"), "{why}");
    assert!(viewer.told(&["status", "a"]).contains("no Pod"));
    assert!(
        viewer
            .told(&["audit", "a"])
            .contains("Not shown: you may not read the journals")
    );
    assert!(viewer.told(&["consumers", "a"]).contains("No Pod"));

    for act in ["rotate", "revoke", "suspend", "resume"] {
        let (code, said) = viewer.refused(&[act, "a"]);
        assert_eq!(code, 1, "{act}");
        assert!(
            said.contains("you may not change EphemeralCredential a"),
            "{act}: {said}"
        );
    }
    let output = viewer.run(&["budget"]);
    let (told, said) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success() && told.contains("Of your own, 1 with a token need 1.5 mints"),
        "{told}\n{said}"
    );
    assert!(said.contains("you may not read ChittyConnections"), "{said}");
    let (code, said) = viewer.refused(&["status", "-A"]);
    assert_eq!(code, 1);
    assert!(
        said.contains("you may not read the EphemeralCredentials of all namespaces"),
        "{said}"
    );
    // It looks at what it may, and does not call the rest bad.
    let (_, examined) = (viewer.run(&["doctor"]).status, text(&viewer.run(&["doctor"]).stdout));
    assert!(
        examined.contains("you may not read Leases in namespace chittyconnect-system"),
        "{examined}"
    );
}

#[tokio::test]
async fn what_is_asked_for_is_waited_for_and_told() {
    let case = Case::new().await;
    case.issued("a", json!({})).await;
    let editor = User::with_role(&case, "edit").await;
    let told = editor.told(&["rotate", "a"]);
    assert!(told.contains("/a: revision 2, valid until"), "{told}");
    let named = format!("{}/a", case.namespace);
    let output = editor.run_anywhere(&["rotate", &named]);
    assert!(text(&output.stdout).contains("/a: revision 3"), "{output:?}");
    let output = editor.run_anywhere(&["rotate", &named, "-n", "elsewhere"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = editor.told(&["suspend", "a"]);
    assert!(told.contains("nothing is minted; its token lives until"), "{told}");
    let told = editor.told(&["resume", "a"]);
    assert!(told.contains("it has a token, valid until"), "{told}");
    let told = editor.told(&["revoke", "a"]);
    assert!(told.contains("its last tokens cannot be revoked"), "{told}");
    assert!(case.secret("a").await.is_none());
    let why = editor.told(&["why", "a"]);
    assert!(
        why.contains("Revoked, and will not be until somebody changes something"),
        "{why}"
    );
    let told = editor.told(&["rotate", "a", "--wait=false"]);
    assert!(told.contains("/a: rotate is asked for"), "{told}");
    case.until_revision("a", 4).await;

    case.broker.go_down().unwrap();
    let output = editor.run(&["rotate", "a", "--timeout", "2s"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        text(&output.stderr).contains("not done in time, and still asked for"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn of_a_budget_it_is_told_who_holds_it_and_when_places_free() {
    let case = Setup::new(generous())
        .await
        .connection(json!({"rateLimit": {"limit": 10}}))
        .case()
        .await;
    case.issued("a", json!({})).await;
    case.issued("b", json!({"rotation": {"renewBefore": "30m"}})).await;
    let user = User::administrator(&case);
    let told = wait_for("the budget to be told", || async {
        let all = user.data(&["budget", "chittyid"]);
        let own = |held: &&Value| held["connection"] == json!(case.connection) && held["used"] == json!(2);
        all.as_array()?.iter().find(own).cloned()
    })
    .await;
    let names: Vec<&str> = told["holders"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|h| h["name"].as_str())
        .collect();
    assert_eq!(names, ["b", "a"], "who takes most comes first");
    assert_eq!(told["holders"][0]["periodSeconds"], 1800);
    let frees: u64 = told["frees"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|free| free["count"].as_u64())
        .sum();
    assert_eq!(frees, 2);
    let text = user.told(&["budget", "chittyid"]);
    assert!(
        text.contains("2 with a token need 3.5 mints in 60m") || text.contains("2 with a token need 3.5 mints in 1h"),
        "{text}"
    );
    assert!(text.contains("Places free at"), "{text}");
}

#[tokio::test]
async fn of_a_credentials_past_events_are_told_and_what_chittychronicle_has_yet_to_take() {
    let case = Case::new().await;
    let (chronicle, audit) = chronicle(&case).await;
    chronicle.go_down().unwrap();
    case.connect_seen(audit).await;
    case.issued("a", json!({})).await;
    let user = User::administrator(&case);
    let told = wait_for("both to be told", || async {
        let told = user.told(&["audit", "a"]);
        (told.contains("Event ") && told.contains("credential.provisioned")).then_some(told)
    })
    .await;
    assert!(told.contains("1 audit event of it waits for ChittyChronicle"), "{told}");
    assert!(told.contains("has the rest"), "{told}");
}

#[tokio::test]
async fn the_doctor_finds_nothing_where_all_is_well_and_what_is_wrong_where_something_is() {
    let world = World::start("doctor").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    case.issued("a", json!({})).await;
    let user = User::administrator(&case);
    let told = examined(&user, |code, _| code == 0).await;
    for part in [
        "both kinds are served",
        "the controller may do what it must",
        "name ok, route ok",
        "dead letters",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    case.write_key("wrong").await;
    case.rotate("a", "1").await;
    let told = examined(&user, |code, told| code == 3 && told.contains("Unauthorized")).await;
    assert!(told.contains("BAD"), "{told}");
    world.kill_controller();
    examined(&user, |code, told| {
        code == 3 && told.contains("has not renewed its Lease")
    })
    .await;
}

/// What the doctor says once that is as expected.
async fn examined(user: &User, as_expected: impl Fn(i32, &str) -> bool) -> String {
    let started = Instant::now();
    loop {
        let output = user.run(&["doctor"]);
        let told = text(&output.stdout);
        if as_expected(output.status.code().unwrap(), &told) {
            return told;
        }
        assert!(started.elapsed() < PATIENCE, "{told}\n{}", text(&output.stderr));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_credential_is_rendered_with_made_up_values_from_a_file_and_nobody_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("credential.yaml");
    std::fs::write(&file, include_str!("../../examples/quickstart/files-for-tools.yaml")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-chitty"))
        .env("KUBECONFIG", "/nowhere")
        .args(["template", "-f", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains("made-up-npm-token"),
        "{}",
        text(&output.stdout)
    );
}

#[tokio::test]
#[ignore = "takes minutes: run by name"]
async fn at_ten_thousand_credentials_every_command_takes_a_second() {
    let world = World::without_controller("ten-thousand").await;
    let case = Setup::within(world, generous()).case().await;
    let credentials = case.credentials();
    let all: Vec<Value> = (0..10_000)
        .map(|i| case.manifest(&format!("c{i:05}"), json!({"service": format!("s{}", i % 100)})))
        .collect();
    for chunk in all.chunks(50) {
        let made = chunk.iter().map(|manifest| {
            let (api, object) = (credentials.clone(), serde_json::from_value(manifest.clone()).unwrap());
            async move { api.create(&PostParams::default(), &object).await.unwrap().name_any() }
        });
        futures::future::join_all(made).await;
    }
    let user = User::administrator(&case);
    let commands: [&[&str]; 6] = [
        &["status"],
        &["status", "-A"],
        &["status", "c00000"],
        &["why", "c00000"],
        &["consumers", "c00000"],
        &["budget", "s1"],
    ];
    for arguments in commands {
        user.told(arguments);
        let started = Instant::now();
        user.told(arguments);
        println!("{arguments:?}: {} ms", started.elapsed().as_millis());
    }
    // No controller runs, which is bad.
    let started = Instant::now();
    let output = user.run(&["doctor"]);
    println!("doctor: {} ms", started.elapsed().as_millis());
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("10000 of 10000 are not well"), "{told}");
}
