//! What a tenant with nothing but `edit` in its namespace may try, and somebody who may edit connections
//! but read no Secrets. Each is refused with a message that says what to do.

use chittyconnect_operator::api::{ChittyConnection, EphemeralCredential};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding};
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use testbed::ChittyConnect;

use crate::support::*;

/// A case whose connection allows `chittyid` alone, and a client that has `edit` in its namespace.
async fn tenant() -> (Case, Client) {
    let case = Case::new().await;
    let rule = json!([{"namespaces": [case.namespace], "services": ["chittyid", "probe"], "purposes": ["*"], "repos": ["CHITTYOS/*"]}]);
    case.connect_seen(json!({"access": rule})).await;
    let user = format!("tenant-{}", case.namespace);
    let bindings: Api<RoleBinding> = Api::namespaced(case.client.clone(), &case.namespace);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "tenant"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    apply(&bindings, &binding).await;
    let client = case.world.plane.client_as(&user, &["tenants"]).await.unwrap();
    let mine: Api<EphemeralCredential> = Api::namespaced(client.clone(), &case.namespace);
    wait_for("edit to include credentials", || async {
        mine.list(&ListParams::default()).await.ok()
    })
    .await;
    (case, client)
}

async fn create(client: &Client, case: &Case, name: &str, over: Value) -> Result<(), String> {
    let resource = ApiResource::erase::<EphemeralCredential>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &case.namespace, &resource);
    let credential: DynamicObject = serde_json::from_value(case.manifest(name, over)).unwrap();
    api.create(&PostParams::default(), &credential)
        .await
        .map(|_| ())
        .map_err(|e| e.to_string())
}

#[tokio::test]
async fn a_tenant_gets_what_is_allowed_and_nobody_elses_service_or_repo() {
    let (case, client) = tenant().await;
    create(&client, &case, "mine", json!({})).await.unwrap();
    case.until_ready_is("mine", "True", "Issued").await;
    for (name, over) in [
        ("service", json!({"service": "payments"})),
        ("repo", json!({"repo": "EVIL/chittyid"})),
        ("no-repo", json!({"repo": null})),
    ] {
        create(&client, &case, name, over).await.unwrap();
        let refused = case.until_ready_is(name, "False", "NotPermitted").await;
        let message = condition(&refused, "Ready").2;
        assert!(
            message.contains("an administrator can add one to its spec.access"),
            "{message}"
        );
        assert!(case.secret(name).await.is_none());
    }
    assert_eq!(case.posts_for("payments"), 0);
    assert_eq!(case.posts_for("chittyid"), 1);
}

#[tokio::test]
async fn a_spec_edited_to_somebody_elses_service_loses_even_what_it_had() {
    let (case, client) = tenant().await;
    create(&client, &case, "a", json!({})).await.unwrap();
    case.until_ready_is("a", "True", "Issued").await;
    let mine: Api<EphemeralCredential> = Api::namespaced(client, &case.namespace);
    let edit = json!({"spec": {"service": "payments"}});
    mine.patch("a", &PatchParams::default(), &Patch::Merge(edit))
        .await
        .unwrap();
    case.until_ready_is("a", "False", "NotPermitted").await;
    wait_for("the Secret to go", || async {
        case.secret("a").await.is_none().then_some(())
    })
    .await;
    assert_eq!(case.posts_for("payments"), 0);
}

#[tokio::test]
async fn context_types_secret_types_and_labels_that_reach_further_are_refused_at_admission() {
    let (case, client) = tenant().await;
    for (over, why) in [
        (
            json!({"context": {"service": "payments"}}),
            "are set by the fields of the spec",
        ),
        (json!({"context": {"run_id": "1"}}), "are set by the fields of the spec"),
        (
            json!({"secrets": [{"name": "a", "type": "kubernetes.io/service-account-token"}]}),
            "Unsupported value",
        ),
        (
            json!({"secrets": [{"name": "a", "type": "bootstrap.kubernetes.io/token"}]}),
            "Unsupported value",
        ),
        (
            json!({"secrets": [{"name": "a", "labels": {"argocd.argoproj.io/secret-type": "cluster"}}]}),
            "make other controllers act",
        ),
        (
            json!({"secrets": [{"name": "a", "labels": {"kubernetes.io/legacy-token-last-used": "x"}}]}),
            "make other controllers act",
        ),
    ] {
        let refused = create(&client, &case, "a", over.clone())
            .await
            .expect_err(&over.to_string());
        assert!(refused.contains(why), "{over}: {refused}");
    }
    create(&client, &case, "typed", json!({"type": "cloudflare_workers_deploy"}))
        .await
        .unwrap();
    case.until_ready_is("typed", "False", "InvalidSpec").await;
    assert_eq!(case.posts(), 0);
}

#[tokio::test]
async fn a_template_reaches_nothing_but_its_own_outputs() {
    let (case, client) = tenant().await;
    let templates = [
        ("debug", "{{ debug() }}"),
        ("env", "{{ env.KUBERNETES_SERVICE_HOST }}"),
        ("other", "{{ other_token }}"),
    ];
    for (name, template) in templates {
        let over = json!({"secrets": [{"name": name, "data": {"x": template}}]});
        create(&client, &case, name, over).await.unwrap();
        case.until_ready_is(name, "False", "InvalidTemplate").await;
        assert!(case.secret(name).await.is_none(), "{name}");
    }
    let include = json!({"secrets": [{"name": "include", "data": {"x": "{% include '/etc/passwd' %}"}}]});
    create(&client, &case, "include", include)
        .await
        .expect_err("a statement, refused at admission");
}

const BOMBS: usize = 1000;

/// Invariant 13.
#[tokio::test]
async fn templates_made_to_cost_much_are_refused_cost_little_and_hold_nobody_up() {
    let world = World::start("bombs").await;
    let case = Setup::within(world.clone(), generous()).case().await;
    let other = format!("{}-other", case.namespace);
    create_namespace(&case.client, &other, &json!({})).await;
    let rule =
        json!([{"namespaces": [case.namespace, other], "services": ["chittyid"], "purposes": ["*"], "repos": ["*"]}]);
    case.connect_seen(json!({"access": rule})).await;
    case.issued("before", json!({})).await;
    let bombs = [
        "{{ (1,)*20000000 }}".to_owned(),
        "{{ 'a' * 100000000 }}".to_owned(),
        format!("{}x{}", "{{ (".repeat(1000), ")".repeat(1000)),
        format!("{{{{ npm_token {} }}}}", "| tojson ".repeat(800)),
        "{{ npm_token | tojson }}".repeat(300),
        format!("{{{{ x | default(\"{}", "\\\\".repeat(3000)),
        format!("{{{{ missing | default(\"{}\") }}}}", "x".repeat(8000)),
    ];
    let before = world.controller_memory();
    // Half of them permitted; meanwhile another namespace asks.
    let (case, bombs, others) = (&case, &bombs, &Api::namespaced(case.client.clone(), &other));
    let throwing = futures::stream::iter(0..BOMBS).for_each_concurrent(8, |i| async move {
        let service = if i % 2 == 0 { "chittyid" } else { "payments" };
        let data = json!({"x": bombs[(i / 2) % bombs.len()]});
        case.apply(
            &format!("bomb-{i}"),
            json!({"service": service, "suspend": true, "secrets": [{"name": format!("s{i}"), "data": data}]}),
        )
        .await;
    });
    let asking = async {
        for i in 0..5 {
            let name = format!("other-{i}");
            let mut manifest = case.manifest(&name, json!({}));
            manifest["metadata"]["namespace"] = json!(other);
            apply::<EphemeralCredential>(others, &manifest).await;
            wait_for("another namespace's credential", || async {
                let now = others.get(&name).await.ok()?;
                (condition(&now, "Ready").0 == "True").then_some(())
            })
            .await;
        }
    };
    tokio::join!(throwing, asking);
    case.issued("after", json!({})).await;
    let last = BOMBS - 2;
    for (name, reason) in [
        ("bomb-0", "InvalidTemplate"),
        ("bomb-1", "NotPermitted"),
        (&format!("bomb-{last}"), "InvalidTemplate"),
    ] {
        case.until_ready_is(name, "False", reason).await;
    }
    let grown = world.controller_memory().saturating_sub(before);
    println!("{BOMBS} templates made to cost much: {grown} KiB");
    assert!(grown < 16 * 1024, "{grown} KiB");
    assert_eq!(case.posts(), 7);
}

#[tokio::test]
async fn a_secret_of_somebody_else_or_of_another_credential_cannot_be_taken_by_name() {
    let (case, client) = tenant().await;
    let foreign = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "prod"}, "stringData": {"k": "v"}});
    apply(&case.secrets(), &foreign).await;
    create(&client, &case, "first", json!({"secrets": [{"name": "shared"}]}))
        .await
        .unwrap();
    case.until_ready_is("first", "True", "Issued").await;
    let before = case.secret("shared").await.unwrap();
    for (name, secret) in [("second", "shared"), ("third", "prod")] {
        create(&client, &case, name, json!({"secrets": [{"name": secret}]}))
            .await
            .unwrap();
        let refused = case.until_ready_is(name, "False", "SecretConflict").await;
        assert!(condition(&refused, "Ready").2.contains("name another in spec.secrets"));
    }
    assert_eq!(
        case.secret("shared").await.unwrap().metadata.resource_version,
        before.metadata.resource_version
    );
    assert_eq!(case.value("prod", "k").await.as_deref(), Some("v"));
    assert_eq!(case.posts_for("chittyid"), 1);
}

#[tokio::test]
async fn a_tenant_writes_neither_status_nor_connections_and_reads_no_keys() {
    let (case, client) = tenant().await;
    create(&client, &case, "a", json!({})).await.unwrap();
    case.until_ready_is("a", "True", "Issued").await;
    let mine: Api<EphemeralCredential> = Api::namespaced(client.clone(), &case.namespace);
    let status = json!({"status": {"revision": 99}});
    let refused = mine
        .patch_status("a", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("forbidden"), "{refused}");
    let connections: Api<ChittyConnection> = Api::all(client.clone());
    assert!(connections.list(&ListParams::default()).await.is_err());
    let allow = json!({"spec": {"access": []}});
    assert!(
        connections
            .patch(&case.connection, &PatchParams::default(), &Patch::Merge(allow))
            .await
            .is_err()
    );
    let keys: Api<Secret> = Api::namespaced(client, SYSTEM);
    assert!(keys.get(&case.connection).await.is_err());
}

#[tokio::test]
async fn another_secrets_seal_is_no_seal_and_a_forged_one_costs_no_mint() {
    let (case, client) = tenant().await;
    for name in ["a", "b"] {
        create(&client, &case, name, json!({})).await.unwrap();
        case.until_ready_is(name, "True", "Issued").await;
    }
    let secrets: Api<Secret> = Api::namespaced(client, &case.namespace);
    let annotation = |secret: &Secret| secret.metadata.annotations.clone().unwrap()["connect.chitty.cc/seal"].clone();
    let (own, other) = (
        annotation(&secrets.get("a").await.unwrap()),
        annotation(&secrets.get("b").await.unwrap()),
    );
    for forged in [other.as_str(), "v1.e30.AAAA", ""] {
        let edit = json!({"metadata": {"annotations": {"connect.chitty.cc/seal": forged}}});
        secrets
            .patch("a", &PatchParams::default(), &Patch::Merge(edit))
            .await
            .unwrap();
        wait_for("the seal to be restored", || async {
            (annotation(&secrets.get("a").await.ok()?) == own).then_some(())
        })
        .await;
    }
    case.settle().await;
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn who_may_not_create_secrets_may_not_create_credentials() {
    let (case, _) = tenant().await;
    let user = format!("reader-{}", case.namespace);
    let roles: Api<ClusterRole> = Api::all(case.client.clone());
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": user},
        "rules": [{"apiGroups": ["connect.chitty.cc"], "resources": ["ephemeralcredentials"], "verbs": ["*"]}],
    });
    apply(&roles, &role).await;
    let bindings: Api<ClusterRoleBinding> = Api::all(case.client.clone());
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    apply(&bindings, &binding).await;
    let client = case.world.plane.client_as(&user, &["readers"]).await.unwrap();
    let refused = wait_for("the policy to refuse", || async {
        let error = create(&client, &case, "a", json!({})).await.err()?;
        error.contains("may not create Secrets").then_some(error)
    })
    .await;
    assert!(refused.contains("ask for a role there that allows it"), "{refused}");
    assert_eq!(case.posts(), 0);
}

#[tokio::test]
async fn whoever_may_edit_a_connection_cannot_send_its_key_elsewhere() {
    let (case, _) = tenant().await;
    let thief = ChittyConnect::builder().without_limits().start().unwrap();
    case.issued("a", json!({})).await;
    case.connect(json!({"url": thief.url()})).await;
    case.until_ready_is("a", "True", "ConnectionNotReady").await;
    case.apply("b", json!({})).await;
    let refused = case.until_ready_is("b", "False", "ConnectionNotReady").await;
    let message = condition(&refused, "Ready").2;
    assert!(
        message.contains("is for another host, as its annotation says") && message.contains("annotate"),
        "{message}"
    );
    let audit = json!({
        "url": case.broker.url(),
        "audit": {"chronicle": {"url": thief.url(), "tokenSecretRef": {"name": case.connection, "key": "api-key"}}},
    });
    case.connect_seen(audit).await;
    case.until("b", |c| condition(c, "Ready").2.contains("is for another host"))
        .await;
    assert_eq!(thief.ledger().posts(), 0);
    assert_eq!(thief.ledger().calls(testbed::chittyconnect::Route::Unknown), 0);
}
