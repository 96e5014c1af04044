//! What the chart lets whom do, on a real API server.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::rendered::everything;
use crate::support::{Cluster, RELEASE, SYSTEM, chart, fail, helm, read, succeed, wait_for};

/// A cluster with the release, every policy on, and no controller that could interfere.
static INSTALLED: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = Cluster::start();
    let policies = "--set=admission.requireUse=true,admission.protectSecrets=true";
    succeed(&mut cluster.release("install", &[policies]));
    // The garbage collector learns of new kinds slowly, and at once when it starts.
    cluster.plane.restart_controller_manager().unwrap();
    cluster.apply(&use_of_default());
    cluster
});

/// What the chart's README tells administrators to apply, for everybody.
fn use_of_default() -> String {
    let readme = read(&chart().join("README.md"));
    let (_, after) = readme.split_once("```yaml\n").expect("a manifest in the README");
    let (manifest, _) = after.split_once("```").unwrap();
    assert!(manifest.contains("name: ci\n"));
    manifest.replace("name: ci\n", "name: system:authenticated\n")
}

/// A namespace in which alice has `edit`, bob `view`, and carol may do everything with credentials and
/// nothing else. Policies are in force when it is handed out.
fn team(name: &str) -> &'static Cluster {
    let cluster = &*INSTALLED;
    succeed(&mut cluster.kubectl(&["create", "namespace", name]));
    let bind = |binding: &str, role: &str, user: &str| {
        let (role, user) = (format!("--{role}"), format!("--user={user}"));
        succeed(&mut cluster.kubectl(&["create", "rolebinding", binding, &role, &user, "--namespace", name]));
    };
    bind("edit", "clusterrole=edit", "alice");
    bind("view", "clusterrole=view", "bob");
    succeed(&mut cluster.kubectl(&[
        "create",
        "role",
        "credentials",
        "--verb=*",
        "--resource=ephemeralcredentials.connect.chitty.cc",
        "--namespace",
        name,
    ]));
    bind("credentials", "role=credentials", "carol");
    let probe = credential(name, "probe", "default");
    wait_for("the roles to be aggregated and the policies to be in force", || {
        let dry = |user: &str| {
            let mut command = cluster.kubectl_as(user, &["create", "--dry-run=server", "-f", "-"]);
            Cluster::with_input(&mut command, &probe)
        };
        let refused = String::from_utf8(dry("carol").stderr).unwrap();
        (dry("alice").status.success() && refused.contains("ValidatingAdmissionPolicy")).then_some(())
    });
    cluster
}

fn credential(namespace: &str, name: &str, connection: &str) -> String {
    json!({
        "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"connection": connection, "service": "chittyid", "purpose": "worker-deploy"},
    })
    .to_string()
}

fn patch(cluster: &Cluster, user: &str, what: &[&str], change: &Value) -> Result<String, String> {
    let change = change.to_string();
    let mut command = cluster.kubectl_as(user, &["patch", "--type=merge", "--patch", &change]);
    let output = command.args(what).output().unwrap();
    if output.status.success() {
        Ok(String::new())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn who_may_not_create_secrets_may_not_ask_for_tokens() {
    let cluster = team("asks");
    let refused = cluster
        .apply_as("carol", &credential("asks", "mine", "default"))
        .unwrap_err();
    assert!(
        refused.contains("user carol may not create Secrets in namespace asks") && refused.contains("such as edit"),
        "{refused}"
    );
    cluster
        .apply_as("alice", &credential("asks", "hers", "default"))
        .unwrap();
    let hers = ["ephemeralcredential/hers", "--namespace=asks"];
    for change in [
        json!({"spec": {"purpose": "other"}}),
        json!({"metadata": {"annotations": {"connect.chitty.cc/rotate": "1"}}}),
    ] {
        let refused = patch(cluster, "carol", &hers, &change).unwrap_err();
        assert!(refused.contains("may not create Secrets"), "{refused}");
        patch(cluster, "alice", &hers, &change).unwrap();
    }
    // What leads to no token is nobody's business here.
    patch(cluster, "carol", &hers, &json!({"metadata": {"labels": {"a": "b"}}})).unwrap();
    patch(
        cluster,
        "carol",
        &hers,
        &json!({"metadata": {"annotations": {"a": "b"}}}),
    )
    .unwrap();
}

#[test]
fn who_may_not_use_a_connection_may_not_name_it() {
    let cluster = team("uses");
    let refused = cluster
        .apply_as("alice", &credential("uses", "other", "other"))
        .unwrap_err();
    assert!(
        refused.contains("user alice may not use ChittyConnection other") && refused.contains("the verb use"),
        "{refused}"
    );
    // Left out, it is the default one.
    let unnamed = credential("uses", "unnamed", "default").replace(r#""connection":"default","#, "");
    assert!(!unnamed.contains("\"connection\""));
    cluster.apply_as("alice", &unnamed).unwrap();
    let moved = patch(
        cluster,
        "alice",
        &["ephemeralcredential/unnamed", "--namespace=uses"],
        &json!({"spec": {"connection": "other"}}),
    );
    assert!(moved.unwrap_err().contains("may not use ChittyConnection other"));
}

#[test]
fn edit_writes_credentials_and_view_reads_them_and_neither_touches_status_or_connections() {
    let cluster = team("roles");
    let may = |user: &str, verb: &str, resource: &str| {
        let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
        let part = format!("--subresource={part}");
        let mut command = cluster.kubectl_as(user, &["auth", "can-i", verb, resource, &part, "--namespace=roles"]);
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim() == "yes"
    };
    for verb in ["get", "list", "watch"] {
        assert!(
            may("alice", verb, "ephemeralcredentials") && may("bob", verb, "ephemeralcredentials"),
            "{verb}"
        );
    }
    for verb in ["create", "update", "patch", "delete", "deletecollection"] {
        assert!(may("alice", verb, "ephemeralcredentials"), "{verb}");
        assert!(!may("bob", verb, "ephemeralcredentials"), "{verb}");
    }
    for user in ["alice", "bob"] {
        for verb in ["update", "patch"] {
            assert!(!may(user, verb, "ephemeralcredentials/status"), "{user} {verb}");
        }
        for verb in ["get", "create", "update", "patch", "delete", "use"] {
            let connections = "chittyconnections.connect.chitty.cc";
            assert!(!may(user, verb, connections), "{user} {verb}");
        }
    }
    // `admin` takes in what `edit` may.
    succeed(&mut cluster.kubectl(&[
        "create",
        "rolebinding",
        "admin",
        "--clusterrole=admin",
        "--user=dora",
        "--namespace=roles",
    ]));
    wait_for("admin to be bound", || {
        may("dora", "create", "ephemeralcredentials").then_some(())
    });
}

#[test]
fn whom_the_chart_names_may_read_connections_and_do_nothing_else_with_them() {
    let cluster = team("readers");
    let path = chart();
    let mut template = helm(&["template", "other", path.to_str().unwrap(), "--namespace", SYSTEM]);
    cluster.apply(&succeed(template.args([
        "--show-only=templates/rbac-users.yaml",
        "--set=rbac.aggregate=false",
        "--set-json=rbac.connectionReaders=[{\"kind\":\"User\",\"name\":\"erin\"}]",
    ])));
    let may = |user: &str, verb: &str| {
        let mut command = cluster.kubectl_as(user, &["auth", "can-i", verb, "chittyconnections.connect.chitty.cc"]);
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim() == "yes"
    };
    wait_for("the binding", || may("erin", "list").then_some(()));
    assert!(!may("bob", "list"));
    for verb in ["create", "update", "patch", "delete", "use"] {
        assert!(!may("erin", verb), "{verb}");
    }
}

#[test]
fn only_the_controller_changes_the_data_of_a_managed_secret() {
    let cluster = team("managed");
    cluster
        .apply_as(
            "alice",
            r#"{"apiVersion": "v1", "kind": "Secret", "stringData": {"token": "a"},
                "metadata": {"name": "s", "namespace": "managed",
                             "labels": {"app.kubernetes.io/managed-by": "chittyconnect-operator"}}}"#,
        )
        .unwrap();
    let secret = ["secret/s", "--namespace=managed"];
    for (change, because) in [
        (
            json!({"data": {"token": "Yg=="}}),
            "only the controller changes its data",
        ),
        (
            json!({"stringData": {"more": "b"}}),
            "only the controller changes its data",
        ),
        (json!({"data": null}), "only the controller changes its data"),
        (
            json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}}),
            "its label app.kubernetes.io/managed-by stays",
        ),
    ] {
        let refused = wait_for("the policy to be in force", || {
            patch(
                cluster,
                "alice",
                &[&secret[..], &["--dry-run=server"]].concat(),
                &change,
            )
            .err()
        });
        assert!(refused.contains(because), "{change}: {refused}");
    }
    patch(
        cluster,
        "alice",
        &secret,
        &json!({"metadata": {"annotations": {"a": "b"}}}),
    )
    .unwrap();
    let controller = format!("system:serviceaccount:{SYSTEM}:{RELEASE}");
    let whole = r#"{"apiVersion": "v1", "kind": "Secret", "data": {"token": "Yg=="},
                    "metadata": {"name": "s", "namespace": "managed",
                                 "labels": {"app.kubernetes.io/managed-by": "chittyconnect-operator"}}}"#;
    // It replaces; it has no right to patch.
    let mut replace = cluster.kubectl_as(&controller, &["replace", "-f", "-"]);
    let output = Cluster::with_input(&mut replace, whole);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    succeed(&mut cluster.kubectl_as("alice", &["delete", secret[0], secret[1]]));
    // Somebody else's Secret is not looked at.
    succeed(&mut cluster.kubectl_as(
        "alice",
        &[
            "create",
            "secret",
            "generic",
            "own",
            "--from-literal=a=b",
            "--namespace=managed",
        ],
    ));
    patch(
        cluster,
        "alice",
        &["secret/own", "--namespace=managed"],
        &json!({"data": {"a": "Yw=="}}),
    )
    .unwrap();
}

#[test]
fn policies_hinder_neither_the_garbage_collector_nor_the_end_of_a_namespace() {
    let cluster = team("goes");
    let owned = |credential_name: &str, secret: &str| {
        cluster
            .apply_as("alice", &credential("goes", credential_name, "default"))
            .unwrap();
        let owner = cluster
            .get(&["ephemeralcredential", credential_name, "--namespace=goes"])
            .unwrap();
        let manifest = json!({
            "apiVersion": "v1", "kind": "Secret", "stringData": {"token": "a"},
            "metadata": {
                "name": secret, "namespace": "goes",
                "labels": {"app.kubernetes.io/managed-by": "chittyconnect-operator"},
                "ownerReferences": [{
                    "apiVersion": owner["apiVersion"], "kind": owner["kind"], "controller": true,
                    "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
                }],
            },
        });
        cluster.apply(&manifest.to_string());
    };
    let delete = |name: &str, how: &str| {
        let what = format!("ephemeralcredential/{name}");
        succeed(&mut cluster.kubectl(&["delete", &what, how, "--namespace=goes", "--timeout=60s"]));
    };
    owned("deleted", "deleted");
    delete("deleted", "--cascade=foreground");
    assert!(cluster.get(&["secret", "deleted", "--namespace=goes"]).is_none());
    owned("orphaning", "orphaned");
    delete("orphaning", "--cascade=orphan");
    let orphan = wait_for("the Secret to lose its owner", || {
        cluster
            .get(&["secret", "orphaned", "--namespace=goes"])
            .filter(|s| s["metadata"]["ownerReferences"].is_null())
    });
    assert_eq!(orphan["data"]["token"], "YQ==");
    owned("last", "last");
    succeed(&mut cluster.kubectl(&["delete", "namespace", "goes", "--timeout=60s"]));
}

#[test]
fn the_api_server_takes_everything_the_chart_can_render() {
    let cluster = Cluster::start();
    // Those of the scope are there before.
    for namespace in [SYSTEM, "ci-a", "ci-b"] {
        succeed(&mut cluster.kubectl(&["create", "namespace", namespace]));
    }
    let (crds, others): (Vec<_>, Vec<_>) = everything()
        .into_iter()
        .partition(|d| d["kind"] == "CustomResourceDefinition");
    let list = |items: Vec<Value>| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    cluster.apply(&list(crds));
    succeed(&mut cluster.kubectl(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]));
    // The Prometheus operator's kinds are not there.
    let others = others
        .into_iter()
        .filter(|d| d["apiVersion"] != "monitoring.coreos.com/v1")
        .collect();
    let mut apply = cluster.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"]);
    let output = Cluster::with_input(&mut apply, &list(others));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_controllers_pod_meets_the_restricted_level_of_pod_security() {
    let cluster = &*INSTALLED;
    succeed(&mut cluster.kubectl(&["create", "namespace", "restricted"]));
    succeed(&mut cluster.kubectl(&[
        "label",
        "namespace",
        "restricted",
        "pod-security.kubernetes.io/enforce=restricted",
    ]));
    let deployment = cluster.get(&["deployment", RELEASE, "--namespace", SYSTEM]).unwrap();
    let template = &deployment["spec"]["template"];
    let mut spec = template["spec"].clone();
    // Its account is in another namespace.
    spec.as_object_mut().unwrap().remove("serviceAccountName");
    spec.as_object_mut().unwrap().remove("serviceAccount");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "restricted"}, "spec": spec,
    });
    wait_for("the namespace's service account", || {
        cluster.get(&["serviceaccount", "default", "--namespace=restricted"])
    });
    let create = || cluster.kubectl(&["create", "--dry-run=server", "-f", "-"]);
    let output = Cluster::with_input(&mut create(), &pod.to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // And the level is in force.
    let root = pod
        .to_string()
        .replace("\"runAsNonRoot\":true", "\"runAsNonRoot\":false");
    assert!(!Cluster::with_input(&mut create(), &root).status.success());
    drop(fail(&mut cluster.kubectl(&[
        "get",
        "pod",
        "p",
        "--namespace=restricted",
    ])));
}
