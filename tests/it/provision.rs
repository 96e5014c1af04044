//! The Provision API: types, their context, tokens made for a year, and revoking them.

use kube::api::DeleteParams;
use serde_json::{Value, json};
use testbed::ChittyConnect;
use testbed::chittyconnect::{Canned, Fault, Match, Route};

use crate::support::*;

async fn provisioning() -> Case {
    let rule = json!([{
        "namespaces": ["*"], "services": ["*"], "purposes": ["*"], "repos": ["*"], "types": ["*"],
        "context": {"database": ["*"], "bucket": ["*"], "readonly": ["*"], "repository": ["*"], "zones": ["*"],
                    "source_service": ["*"], "target_service": ["*"]},
    }]);
    Setup::new(generous())
        .await
        .connection(json!({"api": "Provision", "access": rule}))
        .case()
        .await
}

fn live(case: &Case) -> Vec<String> {
    let ledger = case.broker.ledger();
    let now = case.broker.now();
    ledger
        .mints
        .iter()
        .filter(|m| m.is_live(now))
        .filter_map(|m| m.token_id.clone())
        .collect()
}

#[tokio::test]
async fn every_type_is_issued_under_the_names_that_layouts_use() {
    let case = provisioning().await;
    let rows: [(&str, Value, &str); 8] = [
        ("cloudflare_workers_deploy", json!({}), "cloudflare_token"),
        ("cloudflare_workers_read", json!({}), "cloudflare_token"),
        ("cloudflare_r2_access", json!({"bucket": "b"}), "cloudflare_token"),
        ("cloudflare_d1_access", json!({"database": "d"}), "cloudflare_token"),
        (
            "github_deploy_token",
            json!({"repository": "CHITTYOS/chittyid"}),
            "github_token",
        ),
        (
            "chittyos_service_token",
            json!({"source_service": "a", "target_service": "b"}),
            "service_token",
        ),
        (
            "neon_database_connection",
            json!({"database": "d", "readonly": "true"}),
            "neon_database_url",
        ),
        ("neon_api_key", json!({}), "neon_token"),
    ];
    for (type_, context, output) in rows {
        let name = type_.replace('_', "-");
        let credential = case
            .issued(&name, json!({"type": type_, "context": context, "service": name}))
            .await;
        let outputs = credential.status.unwrap().outputs;
        assert!(outputs.contains(&output.to_owned()), "{type_}: {outputs:?}");
        assert!(
            case.value(&name, output).await.is_some_and(|v| !v.is_empty()),
            "{type_}"
        );
    }
}

#[tokio::test]
async fn what_does_not_fit_the_api_or_the_type_is_invalid_and_nothing_is_minted() {
    let case = provisioning().await;
    case.apply("untyped", json!({})).await;
    let refused = case.until_ready_is("untyped", "False", "InvalidSpec").await;
    assert!(condition(&refused, "Ready").2.contains("spec.type is required"));
    case.apply("incomplete", json!({"type": "cloudflare_d1_access"})).await;
    let refused = case.until_ready_is("incomplete", "False", "InvalidSpec").await;
    assert!(
        condition(&refused, "Ready")
            .2
            .contains("needs database in spec.context")
    );
    assert_eq!(case.posts(), 0);
    let deploy = Case::new().await;
    deploy
        .apply("typed", json!({"type": "cloudflare_workers_deploy"}))
        .await;
    deploy.until_ready_is("typed", "False", "InvalidSpec").await;
    assert_eq!(deploy.posts(), 0);
}

#[tokio::test]
async fn a_token_that_lacks_what_a_preset_needs_is_published_nowhere_and_revoked() {
    let case = provisioning().await;
    let layout = json!([{"name": "plain"}, {"name": "npm", "presets": ["npmrc"]}]);
    case.apply("a", json!({"type": "cloudflare_workers_deploy", "secrets": layout}))
        .await;
    let refused = case.until_ready_is("a", "False", "InvalidTemplate").await;
    let message = condition(&refused, "Ready").2;
    assert!(message.contains("preset npmrc needs npm_token"), "{message}");
    wait_for("the token to be revoked", || async {
        live(&case).is_empty().then_some(())
    })
    .await;
    assert!(case.secret("plain").await.is_none());
    assert_eq!(case.posts(), 1);
}

/// Invariant 8.
#[tokio::test]
async fn a_broker_that_charges_twice_and_tells_no_time_is_asked_no_more_once_it_refuses() {
    let access = json!([{"namespaces": ["*"], "services": ["*"], "purposes": ["*"], "repos": ["*"], "types": ["*"]}]);
    let case = Setup::new(ChittyConnect::builder().as_observed())
        .await
        .connection(json!({"api": "Provision", "access": access, "rateLimit": {"limit": 100, "scope": "Key"}}))
        .case()
        .await;
    // Far from the end of its clock hour.
    let minute = i64::from(chrono::Timelike::minute(&chrono::Utc::now()));
    case.broker.set_clock_skew(chrono::TimeDelta::minutes(20 - minute));
    let names: Vec<String> = (0..12).map(|i| format!("c{i:02}")).collect();
    // One after the other: what it is asked at once it does not count.
    for name in &names {
        case.apply(name, json!({"type": "cloudflare_workers_read", "service": name}))
            .await;
        case.until(name, |c| {
            let (is, why, _) = condition(c, "Ready");
            is == "True" || why == "RateLimited"
        })
        .await;
    }
    let ledger = case.broker.ledger();
    let refused = ledger.posts.iter().filter(|p| p.status == Some(429)).count();
    assert_eq!((ledger.mints.len(), refused), (5, 1));
    let last = case.until_ready_is(&names[11], "False", "RateLimited").await;
    assert!(last.status.unwrap().next_attempt_at.is_some());
}

#[tokio::test]
async fn a_year_long_token_is_replaced_and_revoked_at_its_own_end_and_at_once_on_deletion() {
    let case = provisioning().await;
    let spec = json!({"type": "cloudflare_workers_deploy", "rotation": {"maxLifetime": "6s", "renewBefore": "3s"}});
    case.issued("a", spec).await;
    case.until("a", |c| c.status.as_ref().and_then(|s| s.revision) >= Some(6))
        .await;
    // The newest one lives, and of the others only those whose own end has not come; a revocation that
    // is due leaves within two seconds.
    let (ledger, now) = (case.broker.ledger(), case.broker.now());
    let (newest, others) = ledger.mints.split_last().unwrap();
    assert!(newest.is_live(now));
    for mint in others.iter().filter(|m| m.is_live(now)) {
        let age = now - mint.issued_at;
        assert!(age < chrono::TimeDelta::seconds(6 + 2), "a token of {age} still lives");
    }
    for (mint, revoked_at) in others.iter().filter_map(|m| Some((m, m.revoked_at?))) {
        let age = revoked_at - mint.issued_at;
        assert!(
            age >= chrono::TimeDelta::seconds(6),
            "revoked after {age}: a job may still have used it"
        );
    }
    assert!(ledger.mints.len() >= 6);
    case.delete("a").await;
    wait_for("every token to be revoked", || async {
        live(&case).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_deleted_credential_leaves_none_of_its_older_tokens_either() {
    let case = provisioning().await;
    case.issued("a", json!({"type": "cloudflare_workers_deploy"})).await;
    for round in 2..=3 {
        case.rotate("a", &format!("{round}")).await;
        case.until_revision("a", round).await;
    }
    assert_eq!(live(&case).len(), 3, "each has its hour");
    case.delete("a").await;
    wait_for("every token to be revoked", || async {
        live(&case).is_empty().then_some(())
    })
    .await;
}

/// Invariant 8.
#[tokio::test]
async fn revocations_survive_an_outage_of_the_broker_the_connection_and_the_controller() {
    let world = World::start("owed").await;
    let rule = json!([{"namespaces": ["*"], "services": ["*"], "purposes": ["*"], "repos": ["*"], "types": ["*"]}]);
    let case = Setup::within(world.clone(), generous())
        .connection(json!({"api": "Provision", "access": rule}))
        .case()
        .await;
    case.issued("a", json!({"type": "cloudflare_workers_deploy"})).await;
    assert_eq!(live(&case).len(), 1);
    let down = Canned::status(503).json(&json!({"error": "not configured"}));
    let rule = case.broker.on(Match::route(Route::Revoke)).fault(down);
    case.delete("a").await;
    wait_for("a try", || async { (case.broker.hits(rule) > 0).then_some(()) }).await;
    case.broker.clear_faults();
    case.broker.go_down().unwrap();
    case.connections()
        .delete(&case.connection, &DeleteParams::default())
        .await
        .unwrap();
    world.kill_controller();
    let tries = || world.log().matches("failed to revoke a token").count();
    let before = tries();
    world.start_controller();
    wait_for("another try", || async { (tries() > before).then_some(()) }).await;
    assert_eq!(live(&case).len(), 1);
    case.broker.come_back().unwrap();
    wait_for("the token to be revoked", || async {
        live(&case).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn permission_that_goes_takes_secret_and_token_along_within_seconds() {
    let case = provisioning().await;
    case.issued("a", json!({"type": "cloudflare_workers_deploy"})).await;
    case.connect(json!({"api": "Provision", "access": []})).await;
    let refused = case.until_ready_is("a", "False", "NotPermitted").await;
    // It may be a change of rules that is under way: a standstill is told of after two minutes.
    assert_eq!(condition(&refused, "Reconciling").0, "True");
    wait_for("the Secret to go", || async {
        case.secret("a").await.is_none().then_some(())
    })
    .await;
    wait_for("the token to be revoked", || async {
        live(&case).is_empty().then_some(())
    })
    .await;
    assert_eq!(case.posts(), 1);
}

#[tokio::test]
async fn a_token_without_value_is_an_invalid_response_and_what_was_made_is_revoked() {
    let case = provisioning().await;
    case.broker.on(Match::minting()).times(1).fault(Fault::NoValue);
    case.apply("a", json!({"type": "cloudflare_workers_deploy"})).await;
    case.until_ready_is("a", "False", "InvalidResponse").await;
    wait_for("the token to be revoked", || async {
        live(&case).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_was_lost_leaves_its_candidates_in_the_status() {
    let case = provisioning().await;
    case.broker.on(Match::minting()).times(1).fault(Fault::CutAfter);
    case.apply("a", json!({"type": "cloudflare_workers_deploy"})).await;
    let unknown = case
        .until("a", |c| {
            c.status.as_ref().is_some_and(|s| !s.orphans.is_empty()) && condition(c, "Ready").1 == "OutcomeUnknown"
        })
        .await;
    assert_eq!(unknown.status.unwrap().orphans, live(&case));
}

#[tokio::test]
async fn permission_withdrawn_while_a_secret_cannot_be_written_revokes_what_was_minted() {
    let case = provisioning().await;
    case.refuse_secrets().await;
    case.apply("a", json!({"type": "cloudflare_workers_deploy"})).await;
    case.until_ready_is("a", "False", "SecretRefused").await;
    assert_eq!(live(&case).len(), 1);
    case.connect(json!({"api": "Provision", "access": []})).await;
    case.until_ready_is("a", "False", "NotPermitted").await;
    wait_for("the token to be revoked", || async {
        live(&case).is_empty().then_some(())
    })
    .await;
    case.take_secrets();
    assert_eq!(case.posts(), 1);
}

/// Invariant 5.
#[tokio::test]
async fn deleted_while_its_secret_cannot_be_written_what_was_minted_is_revoked_and_told() {
    let case = provisioning().await;
    let (chronicle, field) = chronicle(&case).await;
    case.patch_connection(json!({"spec": field})).await;
    case.refuse_secrets().await;
    case.apply("a", json!({"type": "cloudflare_workers_deploy"})).await;
    case.until_ready_is("a", "False", "SecretRefused").await;
    case.delete("a").await;
    wait_for("the token to be revoked", || async {
        live(&case).is_empty().then_some(())
    })
    .await;
    let told = wait_for("both events", || async {
        let told: Vec<String> = chronicle.entries().iter().map(|e| e.event_type.clone()).collect();
        (told.len() >= 2).then_some(told)
    })
    .await;
    assert_eq!(told, ["credential.released", "credential.revoked"]);
    case.take_secrets();
}

#[tokio::test]
async fn audit_says_why_a_token_was_released_and_revoked() {
    let case = provisioning().await;
    let (chronicle, field) = chronicle(&case).await;
    case.patch_connection(json!({"spec": field})).await;
    for name in ["deleted", "forbidden"] {
        case.issued(name, json!({"type": "cloudflare_workers_deploy", "purpose": name}))
            .await;
    }
    case.delete("deleted").await;
    let allowed = json!([{"namespaces": [case.namespace], "services": ["*"], "purposes": ["deleted"], "repos": ["*"], "types": ["*"]}]);
    case.patch_connection(json!({"spec": {"access": allowed}})).await;
    let told = wait_for("all events", || async {
        let mut told: Vec<(String, String, String)> = Vec::new();
        for entry in chronicle.entries() {
            let text = |field: &str| entry.data[field].as_str().unwrap_or_default().to_owned();
            told.push((text("purpose"), entry.event_type.clone(), text("reason")));
        }
        told.retain(|(_, event, _)| event != "credential.provisioned");
        told.sort();
        (told.len() >= 4).then_some(told)
    })
    .await;
    let row = |purpose: &str, event: &str, reason: &str| (purpose.to_owned(), event.to_owned(), reason.to_owned());
    assert_eq!(
        told,
        [
            row("deleted", "credential.released", "Deleted"),
            row("deleted", "credential.revoked", "Deleted"),
            row("forbidden", "credential.released", "NotPermitted"),
            row("forbidden", "credential.revoked", "NotPermitted"),
        ]
    );
}

#[tokio::test]
async fn a_deleted_credential_that_a_finalizer_keeps_gives_up_its_secret_and_its_token_at_once() {
    let case = provisioning().await;
    case.issued("a", json!({"type": "cloudflare_workers_deploy"})).await;
    case.patch("a", json!({"metadata": {"finalizers": ["tests.example/hold"]}}))
        .await;
    case.delete("a").await;
    wait_for("the Secret to go", || async {
        case.secret("a").await.is_none().then_some(())
    })
    .await;
    wait_for("the token to be revoked", || async {
        live(&case).is_empty().then_some(())
    })
    .await;
    case.patch("a", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(case.posts(), 1);
}
