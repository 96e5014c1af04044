//! Every answer of ChittyConnect, on the real API server: one reason, one retry rule.

use std::time::Duration;

use serde_json::json;
use testbed::chittyconnect::{Canned, Denial, Expiry, Fault, Match};

use crate::support::*;

/// One answer, what the user reads, and whether it is asked again within seconds.
struct Row {
    name: &'static str,
    fault: Fault,
    reason: &'static str,
}

fn row(name: &'static str, fault: impl Into<Fault>, reason: &'static str) -> Row {
    Row {
        name,
        fault: fault.into(),
        reason,
    }
}

fn error(status: u16, message: &str) -> Canned {
    Canned::status(status).json(&json!({"success": false, "error": {"code": "PROVISION_FAILED", "message": message, "details": "Error: at line 1"}}))
}

/// An upstream's refusal, in words that ChittyConnect passes on.
fn upstream(status: u16) -> Fault {
    Fault::Upstream(status, "boom at the edge".to_owned())
}

#[tokio::test]
async fn every_answer_has_its_reason_and_publishes_nothing() {
    let case = Case::new().await;
    let rows = [
        row("e400", error(400, "service is required"), "BrokerRejected"),
        row("e403", error(403, "Request DENIED by policy"), "Denied"),
        row(
            "e404",
            Canned::status(404).body("text/plain", "404 Not Found"),
            "BrokerRejected",
        ),
        row(
            "e429",
            Canned::status(429)
                .header("Retry-After", "60")
                .json(&json!({"error": "Rate limit exceeded"})),
            "RateLimited",
        ),
        row("e500", error(500, "boom"), "BrokerUnavailable"),
        row("risk500", error(500, "Risk score too high: 80"), "Denied"),
        row("e503", error(503, "not configured"), "BrokerUnavailable"),
        row("up401", upstream(401), "BrokerRejected"),
        row("up429", upstream(429), "RateLimited"),
        row("up502", upstream(502), "BrokerUnavailable"),
        row("hang", Fault::HangBefore, "OutcomeUnknown"),
        row("hang-minted", Fault::HangAfter, "OutcomeUnknown"),
        row("cut", Fault::CutBefore, "OutcomeUnknown"),
        row("cut-minted", Fault::CutAfter, "OutcomeUnknown"),
        row("truncated", Fault::TruncatedJson, "InvalidResponse"),
        row("huge", Fault::HugeBody, "InvalidResponse"),
        row(
            "redirect",
            Fault::Redirect("http://127.0.0.1:9/".to_owned()),
            "InvalidResponse",
        ),
        row("html", Fault::Html, "InvalidResponse"),
        row("unsuccessful", Fault::Unsuccessful, "InvalidResponse"),
        row("wrong-types", Fault::WrongTypes, "InvalidResponse"),
        row("no-expiry", Fault::ExpiresAt(Expiry::Missing), "InvalidResponse"),
        row("past-expiry", Fault::ExpiresAt(Expiry::Past), "InvalidResponse"),
        row("odd-expiry", Fault::ExpiresAt(Expiry::Unparsable), "InvalidResponse"),
    ];
    for row in &rows {
        case.broker.on(Match::any().service(row.name)).fault(row.fault.clone());
        case.apply(row.name, json!({"service": row.name})).await;
    }
    for row in &rows {
        let credential = case
            .until(row.name, |c| {
                condition(c, "Ready").0 == "False" && condition(c, "Ready").1 == row.reason
            })
            .await;
        let message = condition(&credential, "Ready").2;
        assert!(
            !message.contains("boom") && !message.contains("at line 1"),
            "{}: {message}",
            row.name
        );
        assert!(case.secret(row.name).await.is_none(), "{}", row.name);
        assert_eq!(condition(&credential, "Issued").0, "False", "{}", row.name);
        let stalled = condition(&credential, "Stalled").0 == "True";
        assert_eq!(stalled, row.reason == "Denied", "{}", row.name);
    }
    // Each was asked once: what backs off does so for ten seconds at least.
    for row in &rows {
        let posts = case.posts_for(row.name);
        assert!(posts <= 2, "{}: {posts} requests", row.name);
    }
}

#[tokio::test]
async fn a_token_that_lives_for_a_year_is_published() {
    let case = Case::new().await;
    case.broker.on(Match::any()).fault(Fault::ExpiresAt(Expiry::InAYear));
    let credential = case.issued("a", json!({"rotation": {"maxLifetime": "10m"}})).await;
    let status = credential.status.unwrap();
    let life = status.expires_at.unwrap() - status.issued_at.unwrap();
    assert!(life.num_seconds() <= 601, "{life}");
}

#[tokio::test]
async fn an_upstreams_429_blocks_for_a_minute_and_teaches_nothing_of_the_limit() {
    let case = Case::new().await;
    case.issued("before", json!({})).await;
    case.broker.on(Match::any()).times(1).fault(upstream(429));
    case.apply("a", json!({})).await;
    case.until_ready_is("a", "False", "RateLimited").await;
    let scope = wait_for("the connection to tell of it", || async {
        let connection = case.connections().get(&case.connection).await.ok()?;
        let scopes = connection.status?.scopes;
        scopes
            .get("chittyid")
            .filter(|scope| scope.blocked_until.is_some())
            .cloned()
    })
    .await;
    assert_eq!(scope.limit, 10_000, "{scope:?}");
    let left = scope.blocked_until.unwrap() - chrono::Utc::now();
    assert!(left <= chrono::TimeDelta::seconds(62), "{left}");
}

/// Invariant 11.
#[tokio::test]
async fn a_denial_stands_until_the_spec_or_the_annotation_changes() {
    let case = Case::new().await;
    case.broker
        .deny(Match::any().purpose("worker-deploy"), Denial::Forbidden);
    case.apply("a", json!({})).await;
    let denied = case.until_ready_is("a", "False", "Denied").await;
    assert_eq!(condition(&denied, "Stalled").0, "True");
    case.settle_with("package-publish").await;
    assert_eq!(case.posts_for("chittyid"), 1);
    case.rotate("a", "again").await;
    wait_for("a second request", || async {
        (case.posts_for("chittyid") == 2).then_some(())
    })
    .await;
    case.broker.clear_denials();
    case.apply("a", json!({"purpose": "package-publish"})).await;
    case.until_ready_is("a", "True", "Issued").await;
}

#[tokio::test]
async fn a_denied_renewal_keeps_its_secret_to_the_end_and_tries_once_more() {
    let case = Setup::new(generous().ttl(Duration::from_secs(12)))
        .await
        .connection(json!({"timeout": "1s"}))
        .case()
        .await;
    case.issued("a", json!({})).await;
    case.broker.deny(Match::any(), Denial::Forbidden);
    let denied = case.until_ready_is("a", "True", "Denied").await;
    assert_eq!(condition(&denied, "Stalled").0, "");
    case.until("a", |c| condition(c, "Ready").0 == "False").await;
    assert!(case.secret("a").await.is_none());
    assert_eq!(case.posts_for("chittyid"), 3);
}

#[tokio::test]
async fn what_failed_for_a_while_is_tried_again_and_issued() {
    let case = Case::new().await;
    case.broker.on(Match::any()).times(1).fault(error(500, "boom"));
    case.apply("a", json!({})).await;
    let waiting = case.until_ready_is("a", "False", "BrokerUnavailable").await;
    assert!(condition(&waiting, "Ready").2.contains("asked again at"));
    assert!(waiting.status.unwrap().next_attempt_at.is_some());
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn a_renewal_that_fails_leaves_the_credential_ready_and_is_tried_until_the_end() {
    let case = Case::with_ttl(Duration::from_secs(12)).await;
    case.issued("a", json!({})).await;
    case.broker
        .on(Match::any())
        .times(2)
        .fault(error(503, "not configured"));
    case.until_ready_is("a", "True", "BrokerUnavailable").await;
    let renewed = case.until_revision("a", 2).await;
    assert_eq!(condition(&renewed, "Ready").1, "Rotated");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_a_closed_port_and_a_plain_port_for_tls_are_told_apart_from_answers() {
    let case = Case::new().await;
    case.write_key_for("broker.invalid").await;
    case.connect(json!({"url": "https://broker.invalid", "allowInsecure": false}))
        .await;
    case.apply("a", json!({})).await;
    let unresolved = case.until_ready_is("a", "False", "BrokerUnavailable").await;
    assert!(
        condition(&unresolved, "Ready").2.contains("resolve"),
        "{:?}",
        condition(&unresolved, "Ready")
    );
    let plain = case.broker.authority();
    case.write_key_for(&plain).await;
    case.connect(json!({"url": format!("https://{plain}"), "allowInsecure": false}))
        .await;
    case.until("a", |c| condition(c, "Ready").2.contains("TLS")).await;
    case.broker.go_down().unwrap();
    case.connect(json!({})).await;
    case.until("a", |c| condition(c, "Ready").2.contains("no connection"))
        .await;
    assert_eq!(case.posts(), 0);
    case.broker.come_back().unwrap();
    case.until_ready_is("a", "True", "Issued").await;
}

#[tokio::test]
async fn a_private_ca_is_trusted_where_the_connection_names_it() {
    let setup = Setup::new(generous().tls(["127.0.0.1"])).await;
    let pem = setup.broker.ca_pem().unwrap().to_owned();
    let case = setup.case().await;
    case.apply("a", json!({})).await;
    let untrusted = case.until_ready_is("a", "False", "BrokerUnavailable").await;
    assert!(condition(&untrusted, "Ready").2.contains("caBundleRef"));
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::namespaced(case.client.clone(), SYSTEM);
    apply(
        &maps,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": case.connection}, "data": {"ca.crt": pem}}),
    )
    .await;
    case.connect(json!({"caBundleRef": {"name": case.connection, "key": "ca.crt"}}))
        .await;
    case.until_ready_is("a", "True", "Issued").await;
}
