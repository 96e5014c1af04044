//! What `helm template` and `helm lint` make of the chart.

use std::collections::BTreeSet;
use std::path::Path;

use chittyconnect_operator::api;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Map, Value, json};

use crate::support::{chart, documents, fail, helm, of_kind, read, render, repository, succeed};

/// Set, drift is written away instead of complained of.
const UPDATE: &str = "UPDATE_CHART";
const HOW: &str = "run `UPDATE_CHART=1 cargo test --test chart` and commit what it wrote";

/// Every option that adds an object or a field, at once.
const EVERYTHING: &[&str] = &[
    "--set=connection.create=true,admission.requireUse=true,admission.protectSecrets=true,networkPolicy.enabled=true",
    "--set=metrics.prometheusRule.enabled=true,metrics.dashboard.enabled=true",
    "--set=metrics.serviceMonitor.enabled=true,priorityClassName=system-cluster-critical,image.registry=r.example",
    "--set-json=connection.spec={\"access\":[{\"namespaces\":[\"ci-*\"],\"services\":[\"*\"],\"purposes\":[\"*\"],\"repos\":[\"*\"]}]}",
    "--set-json=extraEnv=[{\"name\":\"A\",\"value\":\"b\"}]",
    "--set-json=extraArgs=[\"--log=debug\"]",
    "--set-json=nodeSelector={\"kubernetes.io/os\":\"linux\"}",
    "--set-json=tolerations=[{\"operator\":\"Exists\"}]",
    "--set-json=affinity={\"nodeAffinity\":{}}",
    "--set-json=imagePullSecrets=[{\"name\":\"pull\"}]",
    "--set-json=podAnnotations={\"a\":\"b\"}",
    "--set-json=podLabels={\"team\":\"ci\"}",
    "--set-json=commonLabels={\"owner\":\"platform\"}",
    "--set-json=serviceAccount.annotations={\"a\":\"b\"}",
    "--set-json=metrics.service.annotations={\"a\":\"b\"}",
    "--set-json=rbac.connectionReaders=[{\"kind\":\"Group\",\"name\":\"developers\"},{\"kind\":\"ServiceAccount\",\"name\":\"a\",\"namespace\":\"b\"}]",
    "--set-json=extraVolumes=[{\"name\":\"v\",\"emptyDir\":{}}]",
    "--set-json=extraVolumeMounts=[{\"name\":\"v\",\"mountPath\":\"/v\"}]",
    "--set-json=extraObjects=[{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"{{ .Release.Name }}-extra\",\"namespace\":\"{{ .Release.Namespace }}\"}}]",
    "--set-json=strategy={\"type\":\"Recreate\"}",
    "--set-json=dnsConfig={\"options\":[{\"name\":\"ndots\",\"value\":\"1\"}]}",
    "--set-json=hostAliases=[{\"ip\":\"10.0.0.1\",\"hostnames\":[\"broker.example\"]}]",
    "--set-json=networkPolicy.extraEgress=[{\"ports\":[{\"port\":3128}]}]",
    "--set=scope.namespaces={ci-a,ci-b},scope.connections={default},metrics.perCredential=true,consumers.restart=true,tracing.otlpEndpoint=http://collector.monitoring:4318",
    "--set=dnsPolicy=Default,proxy.httpsProxy=http://proxy.example:3128,leaderElection.leaseDuration=30s,connection.existingSecret=key",
    "--set-json=networkPolicy.metricsFrom=[{\"namespaceSelector\":{}}]",
];

fn same_or_written(path: &Path, wanted: &str) {
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == wanted, "{} is out of date: {HOW}", path.display());
}

#[test]
fn the_chart_carries_the_crds_as_they_are_byte_for_byte() {
    let mut names = BTreeSet::new();
    for (name, yaml) in api::crd_files().unwrap() {
        same_or_written(&chart().join("files/crds").join(name), &yaml);
        names.insert(name.to_owned());
    }
    let files = |dir: &Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(files(&chart().join("files/crds")), names);
    assert_eq!(files(&repository("crds")), names);
}

#[test]
fn rendered_crds_differ_from_the_files_in_labels_and_annotations_alone() {
    let wanted: Vec<Value> = api::crd_files()
        .unwrap()
        .iter()
        .flat_map(|(_, yaml)| documents(yaml))
        .collect();
    for (keep, policy) in [("true", json!("keep")), ("false", Value::Null)] {
        let rendered = render(&[&format!("--set=crds.keep={keep}")]);
        let mut found: Vec<Value> = of_kind(&rendered, "CustomResourceDefinition")
            .into_iter()
            .cloned()
            .collect();
        for crd in &mut found {
            let metadata = crd["metadata"].as_object_mut().unwrap();
            assert!(metadata.remove("labels").is_some());
            let annotations = metadata.remove("annotations").unwrap_or_default();
            assert_eq!(annotations["helm.sh/resource-policy"], policy);
        }
        let name = |crd: &Value| crd["metadata"]["name"].to_string();
        found.sort_by_key(name);
        assert_eq!(found, wanted);
    }
    assert!(of_kind(&render(&["--set=crds.enabled=false"]), "CustomResourceDefinition").is_empty());
}

#[test]
fn the_chart_has_the_version_of_the_program() {
    let about = &documents(&read(&chart().join("Chart.yaml")))[0];
    assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn helm_lint_has_no_complaint_with_any_option_on() {
    let path = chart();
    for values in [&[][..], EVERYTHING] {
        succeed(helm(&["lint", "--strict", path.to_str().unwrap()]).args(values));
    }
}

#[test]
fn a_value_nobody_reads_is_refused() {
    let path = chart();
    for (value, named) in [
        ("--set=replicas=3", "replicas"),
        ("--set=image.repo=x", "repo"),
        ("--set=replicaCount=two", "replicaCount"),
        ("--set=log.format=xml", "format"),
        ("--set=image.digest=sha256:12", "digest"),
        ("--set=connection.spec.acess=x", "acess"),
        ("--set=proxy.httpProxy=http://p:1", "httpProxy"),
        ("--set=proxy.httpsProxy=http://user:password@p:1", "httpsProxy"),
        ("--set=leaderElection.leaseDuration=4s", "leaseDuration"),
        ("--set=strategy.typ=Recreate", "typ"),
        ("--set=networkPolicy.egres=x", "egres"),
        ("--set=metrics.prometheusRule.disabled={ChittyTypo}", "disabled"),
        ("--set=rbac.connectionReaders[0].kind=Team", "connectionReaders"),
        (
            "--set-json=connection.spec.access=[{\"namespace\":[\"a\"],\"services\":[\"a\"],\"purposes\":[\"a\"],\"repos\":[\"a\"]}]",
            "namespace",
        ),
        ("--set=connection.spec.rateLimit.scope=service", "scope"),
    ] {
        let complaint = fail(&mut helm(&["template", path.to_str().unwrap(), value]));
        assert!(
            complaint.contains(named) && complaint.contains("schema"),
            "{value}: {complaint}"
        );
    }
}

#[test]
fn the_schema_knows_the_values_and_connection_spec_as_the_kind_has_it() {
    let path = chart().join("values.schema.json");
    let mut schema: Value = serde_json::from_str(&read(&path)).unwrap();
    let crds = api::crd_files().unwrap();
    let (_, yaml) = crds
        .iter()
        .find(|(name, _)| name.contains("chittyconnections"))
        .unwrap();
    let crd = &documents(yaml)[0];
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    schema["definitions"]["connectionSpec"] = as_json_schema(spec);
    same_or_written(&path, &format!("{schema:#}\n"));

    let values = &documents(&read(&chart().join("values.yaml")))[0];
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let mut known = names(&schema["properties"]);
    assert!(known.remove("global"));
    assert_eq!(known, names(values));
}

/// An `OpenAPI` schema of a CRD as JSON Schema that refuses unknown fields. CEL rules stay the API server's.
fn as_json_schema(openapi: &Value) -> Value {
    let mut schema = Map::new();
    for (key, value) in openapi.as_object().unwrap() {
        let converted = match key.as_str() {
            "properties" => value
                .as_object()
                .unwrap()
                .iter()
                .map(|(k, v)| (k.clone(), as_json_schema(v)))
                .collect(),
            "items" | "additionalProperties" if value.is_object() => as_json_schema(value),
            "type" if openapi["nullable"] == true => json!([value, "null"]),
            // Formats are Kubernetes' own, and defaults are the API server's to set.
            "nullable" | "format" | "default" => continue,
            name if name.starts_with("x-kubernetes-") => continue,
            // As CRDs print them, limits are floating-point numbers.
            "minimum" | "maximum" => value.as_f64().map_or(value.clone(), whole),
            _ => value.clone(),
        };
        schema.insert(key.clone(), converted);
    }
    if schema.contains_key("properties") {
        schema.insert("additionalProperties".to_owned(), json!(false));
    }
    Value::Object(schema)
}

#[expect(clippy::cast_possible_truncation, reason = "limits are small whole numbers")]
fn whole(number: f64) -> Value {
    json!(number as i64)
}

#[test]
fn every_rule_of_every_role_says_why_it_is_there() {
    for file in ["rbac.yaml", "rbac-users.yaml", "_helpers.tpl"] {
        let text = read(&chart().join("templates").join(file));
        let lines: Vec<_> = text.lines().collect();
        let rules: Vec<_> = (0..lines.len())
            .filter(|i| lines[*i].starts_with("- apiGroups:"))
            .collect();
        assert!(!rules.is_empty());
        for rule in rules {
            // Two rules may share a reason; the second then follows the first at once.
            let before = &lines[..rule];
            let reason = before
                .iter()
                .rev()
                .find(|l| !l.starts_with("  ") && !l.starts_with("- "));
            assert!(
                reason.is_some_and(|l| l.starts_with("# ")),
                "{file}:{}: no reason",
                rule + 1
            );
        }
    }
}

/// What a role grants, a line for each resource.
fn rights(role: &Value) -> Vec<String> {
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        let list = |field: &str| -> Vec<&str> {
            let values = rule[field].as_array().into_iter().flatten();
            values.map(|v| v.as_str().unwrap()).collect()
        };
        for resource in list("resources") {
            let named = list("resourceNames").join(",");
            rights.push(format!("{resource} {named}: {}", list("verbs").join(" ")));
        }
    }
    rights.sort();
    rights
}

#[test]
fn the_controller_may_do_this_and_no_more() {
    let rendered = render(&[]);
    let rights = |kind: &str, name: &str| -> Vec<String> {
        let role = of_kind(&rendered, kind)
            .into_iter()
            .find(|r| r["metadata"]["name"] == name)
            .unwrap();
        rights(role)
    };
    assert_eq!(
        rights("ClusterRole", "chittyconnect-operator"),
        [
            "chittyconnections : get list watch",
            "chittyconnections/status : patch",
            "ephemeralcredentials : get list watch",
            "ephemeralcredentials/status : update",
            "events : create",
            "namespaces : get list watch",
            "pods : list watch",
            "secrets : get list watch create update delete",
        ]
    );
    assert_eq!(
        rights("Role", "chittyconnect-operator"),
        [
            "configmaps : get list watch create update patch delete",
            "leases : create",
            "leases chittyconnect-operator: get update",
            "secrets : get list watch create",
        ]
    );
    assert_eq!(
        rights("ClusterRole", "chittyconnect-operator-edit"),
        ["ephemeralcredentials : create update patch delete deletecollection"]
    );
    assert_eq!(
        rights("ClusterRole", "chittyconnect-operator-view"),
        ["ephemeralcredentials : get list watch"]
    );
    assert_eq!(
        rights("ClusterRole", "chittyconnect-operator-connections-view"),
        ["chittyconnections : get list watch"]
    );
    assert_eq!(
        of_kind(&rendered, "ClusterRole").len() + of_kind(&rendered, "Role").len(),
        5
    );
}

#[test]
fn pods_are_watched_and_workloads_restarted_only_where_the_values_say_so() {
    let of = |values: &[&str]| {
        let rendered = render(values);
        let roles = of_kind(&rendered, "ClusterRole");
        let ours = roles.iter().find(|r| r["metadata"]["name"] == "chittyconnect-operator");
        let arguments =
            of_kind(&rendered, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["args"].clone();
        let restarts = arguments.as_array().unwrap().contains(&"--restart-workloads".into());
        (rights(ours.unwrap()), restarts)
    };
    let named = |rights: &[String], what: &str| rights.iter().any(|right| right.starts_with(what));
    let (rights, restarts) = of(&["--set=rbac.pods=false"]);
    assert!(!named(&rights, "pods") && !named(&rights, "deployments") && !restarts);
    let (rights, restarts) = of(&["--set=consumers.restart=true"]);
    for granted in [
        "pods : list watch",
        "replicasets : get",
        "deployments : get patch",
        "statefulsets : get patch",
        "daemonsets : get patch",
    ] {
        assert!(rights.iter().any(|right| right == granted), "{granted}: {rights:?}");
    }
    assert!(restarts);
}

#[test]
fn with_a_scope_nothing_is_cluster_wide_but_the_connections_it_names() {
    let scope = "--set=scope.namespaces={team-a,team-b},scope.connections={team,other}";
    let rendered = render(&[scope]);
    let roles = of_kind(&rendered, "Role");
    let of = |namespace: &str, name: &str| {
        let meant = |r: &&&Value| r["metadata"]["namespace"] == namespace && r["metadata"]["name"] == name;
        rights(roles.iter().find(meant).unwrap())
    };
    let cluster_wide = |rendered: &[Value]| {
        let roles = of_kind(rendered, "ClusterRole");
        let ours = roles.iter().find(|r| r["metadata"]["name"] == "chittyconnect-operator");
        rights(ours.unwrap())
    };
    let connections = [
        "chittyconnections team,other: get list watch",
        "chittyconnections/status team,other: patch",
    ];
    assert_eq!(
        cluster_wide(&rendered),
        [&connections[..], &["namespaces team-a,team-b: get"]].concat()
    );
    assert_eq!(
        cluster_wide(&render(&[scope, "--set=scope.readNamespaces=false"])),
        connections
    );
    for namespace in ["team-a", "team-b"] {
        assert_eq!(
            of(namespace, "chittyconnect-operator-credentials"),
            [
                "ephemeralcredentials : get list watch",
                "ephemeralcredentials/status : update",
                "events : create",
                "pods : list watch",
                "secrets : get list watch create update delete",
            ]
        );
    }
    assert_eq!(
        of("chittyconnect-system", "chittyconnect-operator"),
        [
            "configmaps : get list watch create update patch delete",
            "leases : create",
            "leases chittyconnect-operator: get update",
            "namespaces : get",
            "secrets : get list watch create",
        ]
    );
    // Nobody else's namespaces are subject to its policies.
    let bindings = of_kind(&rendered, "ValidatingAdmissionPolicyBinding");
    assert_eq!(
        bindings[0]["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"][0]["values"],
        serde_json::json!(["team-a", "team-b"])
    );
}

#[test]
fn a_scope_that_would_serve_everybodys_connections_is_refused() {
    let refused = |values: &str| {
        let path = chart();
        fail(&mut helm(&["template", "a", path.to_str().unwrap(), values]))
    };
    assert!(refused("--set=scope.namespaces={team-a}").contains("needs scope.connections"));
    let created = "--set=scope.namespaces={a},scope.connections={team},connection.create=true";
    assert!(refused(created).contains("has to name default"));
}

fn deployment(arguments: &[&str]) -> Deployment {
    let rendered = render(arguments);
    let found = of_kind(&rendered, "Deployment");
    assert_eq!(found.len(), 1);
    serde_json::from_value(found[0].clone()).unwrap()
}

#[test]
fn two_replicas_run_with_no_privilege_by_default() {
    let spec = deployment(&[]).spec.unwrap();
    assert_eq!(spec.replicas, Some(2));
    let pod = spec.template.spec.unwrap();
    let whole = pod.security_context.unwrap();
    assert_eq!((whole.run_as_non_root, whole.run_as_user), (Some(true), Some(65532)));
    assert_eq!(whole.seccomp_profile.unwrap().type_, "RuntimeDefault");
    let container = &pod.containers[0];
    let own = container.security_context.as_ref().unwrap();
    assert_eq!(own.read_only_root_filesystem, Some(true));
    assert_eq!(own.allow_privilege_escalation, Some(false));
    assert_eq!(own.capabilities.as_ref().unwrap().drop, Some(vec!["ALL".to_owned()]));
    let names: Vec<_> = container.env.iter().flatten().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["POD_NAME", "POD_NAMESPACE"]);
    assert!(container.liveness_probe.is_some() && container.readiness_probe.is_some());
    assert!(container.resources.as_ref().unwrap().requests.is_some());
    let spread = &pod.topology_spread_constraints.unwrap()[0];
    assert_eq!(
        spread.label_selector.as_ref().unwrap().match_labels,
        spec.selector.match_labels
    );
}

#[test]
fn the_program_takes_the_arguments_it_is_given() {
    let pod = deployment(EVERYTHING).spec.unwrap().template.spec.unwrap();
    let arguments = pod.containers[0].args.clone().unwrap();
    // With `--help` at the end it reads all others and does nothing.
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_chittyconnect-operator"));
    let known = arguments.iter().filter(|a| *a != "--log=debug");
    succeed(program.args(known).arg("--help"));
}

#[test]
fn an_image_may_be_named_by_tag_or_digest_in_any_registry() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let version = env!("CARGO_PKG_VERSION");
    for (values, image) in [
        ("image.tag=", format!("chittyconnect-operator:{version}")),
        (
            "image.registry=r.example:5000,image.repository=a/b,image.tag=c",
            "r.example:5000/a/b:c".to_owned(),
        ),
        (
            &format!("image.tag=c,image.digest={digest}"),
            format!("chittyconnect-operator@{digest}"),
        ),
    ] {
        let pod = deployment(&["--set", values]).spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.containers[0].image.as_deref(), Some(image.as_str()));
    }
}

#[test]
fn a_single_replica_has_no_disruption_budget() {
    let budgets = |values: &[&str]| of_kind(&render(values), "PodDisruptionBudget").len();
    assert_eq!(budgets(&[]), 1);
    assert_eq!(budgets(&["--set=replicaCount=1"]), 0);
    assert_eq!(budgets(&["--set=podDisruptionBudget.enabled=false"]), 0);
}

#[test]
fn a_connection_is_a_hook_only_where_its_kind_is_not_served_yet() {
    let annotations = |arguments: &[&str]| -> Value {
        let rendered = render(arguments);
        of_kind(&rendered, "ChittyConnection")[0]["metadata"]["annotations"].clone()
    };
    let first = annotations(&["--set=connection.create=true"]);
    assert_eq!(first["helm.sh/hook"], "post-install,post-upgrade");
    let later = annotations(&[
        "--set=connection.create=true",
        "--api-versions=connect.chitty.cc/v1alpha1/ChittyConnection",
    ]);
    assert_eq!(later["helm.sh/hook"], Value::Null);
    for of in [&first, &later] {
        assert_eq!(of["helm.sh/resource-policy"], "keep");
        assert_eq!(of["meta.helm.sh/release-name"], "chittyconnect-operator");
    }
}

/// For the tests with an API server: everything the chart can render.
pub fn everything() -> Vec<Value> {
    render(EVERYTHING)
}

/// The rows that values.yaml's comments make: value, default, and what it is for.
fn rows(values: &str) -> Vec<[String; 3]> {
    let mut rows: Vec<[String; 3]> = Vec::new();
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut comment = String::new();
    for line in values.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(said) = text.strip_prefix("# ") {
            comment += if comment.is_empty() { "" } else { " " };
            comment += said;
            continue;
        }
        let Some((key, value)) = text
            .split_once(':')
            .filter(|(key, _)| !key.starts_with('-') && !key.is_empty())
        else {
            comment.clear();
            continue;
        };
        path.retain(|(at, _)| *at < indent);
        path.push((indent, key.to_owned()));
        let names: Vec<&str> = path.iter().map(|(_, name)| name.as_str()).collect();
        let value = value.trim();
        let said = std::mem::take(&mut comment).replace('|', "\\|");
        if !value.is_empty() || !said.is_empty() {
            let default = if value.is_empty() {
                String::new()
            } else {
                format!("`{value}`")
            };
            rows.push([format!("`{}`", names.join(".")), default, said]);
        }
    }
    rows
}

#[test]
fn the_readme_lists_every_value_with_what_values_yaml_says_of_it() {
    let path = chart().join("README.md");
    let readme = read(&path);
    let (before, rest) = readme.split_once("<!-- values:").unwrap();
    let (how, rest) = rest.split_once("-->\n").unwrap();
    let (_, after) = rest.split_once("<!-- /values -->").unwrap();
    let values = read(&chart().join("values.yaml"));
    let mut table = "| value | default | |\n| --- | --- | --- |\n".to_owned();
    for [name, default, said] in rows(&values) {
        table += &["| ", &name, " | ", &default, " | ", &said, " |\n"].concat();
    }
    same_or_written(
        &path,
        &format!("{before}<!-- values:{how}-->\n{table}<!-- /values -->{after}"),
    );
    // Every leaf of the values is there.
    let values = &documents(&values)[0];
    let mut left = vec![(String::new(), values)];
    while let Some((at, value)) = left.pop() {
        match value.as_object().filter(|map| !map.is_empty()) {
            Some(map) => left.extend(map.iter().map(|(key, value)| (format!("{at}.{key}"), value))),
            None => assert!(table.contains(&format!("| `{}` |", at.trim_start_matches('.'))), "{at}"),
        }
    }
}

#[test]
fn a_proxy_goes_to_the_environment_and_an_existing_secret_to_the_connection() {
    let pod = deployment(&["--set=proxy.httpsProxy=http://p:1,proxy.noProxy=a\\,b"])
        .spec
        .unwrap();
    let env = pod.template.spec.unwrap().containers[0].env.clone().unwrap();
    let value = |name: &str| env.iter().find(|e| e.name == name).and_then(|e| e.value.clone());
    assert_eq!(value("HTTPS_PROXY").as_deref(), Some("http://p:1"));
    assert_eq!(value("NO_PROXY").as_deref(), Some("a,b"));

    let auth = |arguments: &[&str]| of_kind(&render(arguments), "ChittyConnection")[0]["spec"]["auth"].clone();
    let existing = "--set=connection.create=true,connection.existingSecret=mine";
    assert_eq!(
        auth(&[existing])["apiKeySecretRef"],
        json!({"name": "mine", "key": "api-key"})
    );
    let both = auth(&[existing, "--set=connection.spec.auth.clientCertSecretRef.name=cert"]);
    assert_eq!(both["apiKeySecretRef"]["name"], "mine");
    assert_eq!(both["clientCertSecretRef"]["name"], "cert");
}

#[test]
fn on_openshift_user_and_group_are_left_to_it() {
    let nulls = "--set=podSecurityContext.runAsUser=null,podSecurityContext.runAsGroup=null";
    let context = deployment(&[nulls])
        .spec
        .unwrap()
        .template
        .spec
        .unwrap()
        .security_context
        .unwrap();
    assert_eq!((context.run_as_user, context.run_as_group), (None, None));
    assert_eq!(context.run_as_non_root, Some(true));
}
