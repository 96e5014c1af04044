//! Install, use, upgrade and uninstall, with the controller running under the release's own rights.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::ChittyConnect;

use crate::support::{Cluster, RELEASE, SYSTEM, chart, notes, read, repository, succeed, wait_for};

fn broker() -> ChittyConnect {
    let hour = Duration::from_secs(3600);
    ChittyConnect::builder()
        .ttl(hour)
        .without_limits()
        .start()
        .expect("a broker")
}

/// As `--set-json` takes it.
fn connection(broker: &ChittyConnect, rules: &Value) -> String {
    let spec = json!({"url": broker.url(), "allowInsecure": true, "access": rules});
    format!("--set-json=connection.spec={spec}")
}

#[test]
fn the_notes_of_a_bare_install_lead_to_a_secret_when_pasted() {
    let cluster = Cluster::start();
    let broker = broker();
    // The URL alone differs from what a user has: nobody asks the real ChittyConnect here.
    let url = connection(&broker, &json!([]));
    let printed = succeed(&mut cluster.release("install", &[&url]));
    let controller = cluster.controller();
    let commands = notes(&printed);
    assert_eq!(commands.len(), 3, "{printed}");
    for command in &commands {
        cluster.paste(command, broker.api_key());
    }
    let secret = cluster
        .get(&["secret", "example", "--namespace=default"])
        .expect("a Secret");
    assert!(secret["data"]["cloudflare_token"].is_string());
    assert_eq!(broker.ledger().posts(), 1);
    assert!(!controller.log().contains("forbidden"), "{}", controller.log());
}

#[test]
fn a_release_with_a_connection_lives_through_upgrade_uninstall_and_reinstall_without_a_second_mint() {
    let cluster = Cluster::start();
    let broker = broker();
    let rule = |purpose: &str| json!([{"namespaces": ["runners-*"], "services": ["*"], "purposes": [purpose], "repos": ["*"]}]);
    let create = "--set=connection.create=true";
    let printed = succeed(&mut cluster.release("install", &[create, &connection(&broker, &rule("ci-*"))]));
    let controller = cluster.controller();
    let commands = notes(&printed);
    assert_eq!(commands.len(), 3, "{printed}");
    for command in &commands {
        cluster.paste(command, broker.api_key());
    }
    let get = |what: &[&str]| cluster.get(what).unwrap_or_else(|| panic!("{what:?} is gone"));
    let made = || get(&["chittyconnection", "default"]);
    let token = || get(&["secret", "example", "--namespace=runners-example"])["data"]["cloudflare_token"].clone();
    let (uid, first) = (made()["metadata"]["uid"].clone(), token());

    // From the first upgrade on the connection is the release's like everything else, and stays the same object.
    for purpose in ["ci-*", "*"] {
        succeed(&mut cluster.release("upgrade", &[create, &connection(&broker, &rule(purpose))]));
        assert_eq!(made()["metadata"]["uid"], uid);
        assert_eq!(made()["spec"]["access"][0]["purposes"], json!([purpose]));
    }
    let back = ["rollback", RELEASE, "2", "--namespace", SYSTEM];
    succeed(&mut cluster.helm(&back));
    assert_eq!(made()["metadata"]["uid"], uid);
    assert_eq!(made()["spec"]["access"][0]["purposes"], json!(["ci-*"]));
    succeed(&mut cluster.release("upgrade", &[create, &connection(&broker, &rule("*"))]));
    wait_for("the controller to see the change", || {
        let status = made()["status"].clone();
        (status["observedGeneration"] == made()["metadata"]["generation"]).then_some(())
    });
    assert_eq!(token(), first);
    assert_eq!(broker.ledger().posts(), 1);

    // A rotation, a healing and a deletion: all of it with the chart's rights alone.
    let example = ["ephemeralcredential/example", "--namespace=runners-example"];
    succeed(&mut cluster.kubectl(&["annotate", example[0], example[1], "connect.chitty.cc/rotate=1"]));
    let second = wait_for("the rotation", || Some(token()).filter(|t| *t != first));
    succeed(&mut cluster.kubectl(&["label", example[0], example[1], "a=b"]));
    assert_eq!(broker.ledger().posts(), 2);

    drop(controller);
    succeed(&mut cluster.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout=60s"]));
    assert!(cluster.get(&["deployment", RELEASE, "--namespace", SYSTEM]).is_none());
    assert!(
        cluster
            .get(&["validatingadmissionpolicy", "chittyconnect-operator-credentials"])
            .is_none()
    );
    assert!(cluster.get(&["clusterrole", RELEASE]).is_none());
    assert_eq!(made()["metadata"]["uid"], uid);
    assert_eq!(token(), second);

    succeed(&mut cluster.release("install", &[create, &connection(&broker, &rule("*"))]));
    let controller = cluster.controller();
    wait_for("the controller to look at everything", || {
        controller.log().contains("starting").then_some(())?;
        cluster.paste(
            "kubectl annotate --overwrite chittyconnection/default seen=again &&
             kubectl wait chittyconnection/default --for=condition=Ready --timeout=60s",
            "",
        );
        Some(())
    });
    let other = r#"{"apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
        "metadata": {"name": "other", "namespace": "runners-example"},
        "spec": {"service": "other", "purpose": "ci"}}"#;
    cluster.apply(other);
    cluster.paste(
        "kubectl wait ephemeralcredential --all --namespace runners-example --for=condition=Ready --timeout=60s",
        "",
    );
    assert_eq!(token(), second);
    assert_eq!(
        (broker.ledger().posts(), broker.ledger().posts_for("other").len()),
        (3, 1)
    );
    assert!(!controller.log().contains("forbidden"), "{}", controller.log());

    // Everything goes, in the order of the chart's README, and nothing hangs.
    cluster.paste(
        "kubectl delete ephemeralcredentials --all --all-namespaces --timeout=60s",
        "",
    );
    succeed(&mut cluster.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout=60s"]));
    cluster.paste(
        "kubectl delete crd ephemeralcredentials.connect.chitty.cc chittyconnections.connect.chitty.cc --timeout=60s &&
         kubectl delete namespace chittyconnect-system runners-example --timeout=60s",
        "",
    );
}

/// The shell commands that a page gives, block by block.
fn blocks(page: &str) -> Vec<String> {
    let text = read(&repository(page));
    let blocks = text.split("```sh\n").skip(1);
    blocks
        .map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn an_installation_moves_to_another_namespace_by_the_documented_commands_and_mints_nothing() {
    const NEW: &str = "tokens";
    let cluster = Cluster::start();
    let broker = broker();
    let rule = json!([{"namespaces": ["*"], "services": ["*"], "purposes": ["*"], "repos": ["*"]}]);
    let values = ["--set=connection.create=true", &connection(&broker, &rule)];
    let printed = succeed(&mut cluster.release("install", &values));
    let controller = cluster.controller();
    for command in &notes(&printed) {
        cluster.paste(command, broker.api_key());
    }
    let get = |what: &[&str]| cluster.get(what).unwrap_or_else(|| panic!("{what:?} is gone"));
    let secret = || get(&["secret", "example", "--namespace=default"]);
    let made = || get(&["chittyconnection", "default"]);
    let (first, version) = (
        secret()["data"].clone(),
        secret()["metadata"]["resourceVersion"].clone(),
    );
    assert_eq!(made()["status"]["heldBy"]["namespace"], SYSTEM);

    drop(controller);
    succeed(&mut cluster.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout=60s"]));
    let commands = blocks("docs/installations.md");
    assert_eq!(commands.len(), 1);
    cluster.paste(&commands[0], "");
    let path = chart();
    let mut install = cluster.helm(&[
        "install",
        RELEASE,
        path.to_str().unwrap(),
        "--namespace",
        NEW,
        "--take-ownership",
    ]);
    succeed(install.args(values));
    let controller = cluster.controller_in(NEW);
    wait_for("the new installation to hold the connection", || {
        (made()["status"]["heldBy"]["namespace"] == NEW).then_some(())
    });
    succeed(&mut cluster.kubectl(&["delete", "namespace", SYSTEM, "--timeout=60s"]));

    // What the old one minted stays as it is, counts, and is renewed by the new one.
    cluster.paste("kubectl annotate ec/example seen=again && sleep 2", "");
    assert_eq!(broker.ledger().posts(), 1);
    assert_eq!(secret()["data"], first);
    assert_eq!(secret()["metadata"]["resourceVersion"], version);
    cluster.paste("kubectl annotate ec/example connect.chitty.cc/rotate=1", "");
    wait_for("the rotation", || (secret()["data"] != first).then_some(()));
    assert_eq!(broker.ledger().posts(), 2);
    wait_for("the budget to tell of both", || {
        (made()["status"]["used"] == "2/10").then_some(())
    });
    assert!(!controller.log().contains("is forbidden"), "{}", controller.log());
}

#[test]
fn an_api_key_that_is_turned_is_used_from_the_next_request_on_by_the_same_process() {
    let cluster = Cluster::start();
    let broker = broker();
    let printed = succeed(&mut cluster.release("install", &[&connection(&broker, &json!([]))]));
    let controller = cluster.controller();
    for command in &notes(&printed) {
        cluster.paste(command, broker.api_key());
    }
    let secret = || cluster.get(&["secret", "example", "--namespace=default"]).unwrap()["data"].clone();
    let first = secret();
    let new = "a-new-key";
    broker.add_key(new, "the operator");
    broker.remove_key(broker.api_key());
    let turn = r#"kubectl create secret generic chittyconnect-api-key --from-literal=api-key="$CHITTYCONNECT_API_KEY" \
        --dry-run=client --output=json |
        kubectl --namespace chittyconnect-system patch secret chittyconnect-api-key --type=merge --patch-file=/dev/stdin"#;
    cluster.paste(turn, new);
    cluster.paste("kubectl annotate ec/example connect.chitty.cc/rotate=1", "");
    wait_for("a token by the new key", || (secret() != first).then_some(()));
    assert_eq!(controller.log().matches("starting version").count(), 1);
}
