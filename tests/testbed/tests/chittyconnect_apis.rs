//! The simulator answers as the wire contract says.

mod common;

use std::collections::HashSet;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use testbed::ChittyConnect;
use testbed::chittyconnect::{ACCOUNT_ID, Denial, KeyState, Match, Outputs, Route};

use common::{deploy, deploy_body, get, http, post, provision, read, time};

#[tokio::test]
async fn deploy_answers_as_documented_and_never_the_same_twice() -> Result<()> {
    let sim = ChittyConnect::start()?;
    let mut seen = HashSet::new();
    for _ in 0..3 {
        let answer = deploy(&sim, "chittyid").await?;
        assert_eq!(answer.status, 200);
        let body = answer.json();
        for (output, prefix) in [
            ("cloudflare_token", "cf_ephemeral_"),
            ("npm_token", "npm_"),
            ("github_token", "ghs_"),
        ] {
            let token = body[output].as_str().context("a token")?;
            let random = token.strip_prefix(prefix).context("its prefix")?;
            assert!(random.len() >= 24 && random.chars().all(char::is_alphanumeric));
            assert!(seen.insert(token.to_owned()));
        }
        assert_eq!(body["account_id"], ACCOUNT_ID);
        let life = time(&body["expires_at"]) - Utc::now();
        assert!((3590..=3600).contains(&life.num_seconds()), "{life}");
    }
    let secrets: HashSet<_> = sim.ledger().secret_values().into_iter().collect();
    assert_eq!(secrets, seen);
    Ok(())
}

#[tokio::test]
async fn outputs_can_be_left_out_and_added_per_service() -> Result<()> {
    let sim = ChittyConnect::start()?;
    let outputs = Outputs::default().without("npm_token").with("vercel_token");
    sim.set_outputs("chittyid", outputs);
    let body = deploy(&sim, "chittyid").await?.json();
    assert!(body.get("npm_token").is_none());
    assert!(
        sim.ledger()
            .mint_of(body["vercel_token"].as_str().context("extra")?)
            .is_some()
    );
    let other = deploy(&sim, "chittyauth").await?.json();
    assert!(other.get("npm_token").is_some() && other.get("vercel_token").is_none());
    Ok(())
}

#[tokio::test]
async fn keys_are_taken_in_both_headers_and_refused_in_words() -> Result<()> {
    let sim = ChittyConnect::start()?;
    sim.add_key("sleeping", "chittyid");
    sim.set_key_state("sleeping", KeyState::Inactive);
    let good = sim.api_key();
    let bearer = |key: &str| vec![("authorization", format!("Bearer {key}"))];
    let own = |key: &str| vec![("x-chittyos-api-key", key.to_owned())];
    for (headers, status, error) in [
        (bearer(good), 200, ""),
        (own(good), 200, ""),
        (vec![], 401, "Missing API key"),
        (bearer("wrong"), 401, "Invalid API key"),
        (own("wrong"), 401, "Invalid API key"),
        (bearer("sleeping"), 401, "API key is inactive"),
    ] {
        for path in ["/api/health", "/api/credentials/health"] {
            let mut request = http(None)?.get(format!("{}{path}", sim.url()));
            for (name, value) in &headers {
                request = request.header(*name, value);
            }
            let answer = read(request).await?;
            assert_eq!(answer.status, status, "{path} {error}");
            if status == 401 {
                assert_eq!(answer.json(), json!({"error": error}));
            }
        }
    }
    let unkeyed = http(None)?
        .post(format!("{}/credentials/deploy", sim.url()))
        .json(&deploy_body("chittyid"));
    assert_eq!(read(unkeyed).await?.status, 401);
    for path in ["/health", "/api/v1/status"] {
        let answer = read(http(None)?.get(format!("{}{path}", sim.url()))).await?;
        assert_eq!(answer.status, 200, "{path}");
    }
    sim.remove_key(good);
    assert_eq!(get(&sim, "/api/health").await?.message(), "Invalid API key");
    Ok(())
}

#[tokio::test]
async fn broken_requests_are_500_with_a_stack() -> Result<()> {
    let sim = ChittyConnect::start()?;
    for (path, body) in [
        ("/credentials/deploy", ""),
        ("/credentials/deploy", "{"),
        ("/api/credentials/provision", "[]"),
        ("/api/credentials/provision", ""),
    ] {
        let request = http(None)?
            .post(format!("{}{path}", sim.url()))
            .bearer_auth(sim.api_key())
            .body(body);
        let answer = read(request).await?;
        assert_eq!(answer.status, 500, "{path} {body:?}");
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "PROVISION_FAILED");
        assert!(error["details"].as_str().context("details")?.contains("\n    at "));
    }
    Ok(())
}

#[tokio::test]
async fn an_api_that_is_not_served_is_a_plain_404() -> Result<()> {
    let sim = ChittyConnect::builder().without(Route::Provision).start()?;
    for path in ["/api/credentials/provision", "/api/credentials/batch"] {
        let answer = post(&sim, path, &json!({})).await?;
        assert_eq!(answer.status, 404);
        assert_eq!(answer.text, "404 Not Found");
        assert!(
            answer
                .header("content-type")
                .context("a type")?
                .starts_with("text/plain")
        );
    }
    Ok(())
}

#[tokio::test]
async fn denials_come_as_403_or_in_the_clothes_of_a_500() -> Result<()> {
    let sim = ChittyConnect::start()?;
    sim.deny(Match::any().service("evil"), Denial::Forbidden);
    sim.deny(Match::any().purpose("risky"), Denial::RiskScore);
    let denied = deploy(&sim, "evil").await?;
    assert_eq!(denied.status, 403);
    assert_eq!(denied.json()["error"]["code"], "PROVISION_FAILED");
    assert!(denied.message().contains("DENIED"));
    let risky = json!({"service": "s", "purpose": "risky"});
    let denied = provision(&sim, "cloudflare_workers_deploy", risky).await?;
    assert_eq!(denied.status, 500);
    assert!(denied.message().contains("Risk score too high: 80"));
    assert_eq!(deploy(&sim, "good").await?.status, 200);
    sim.clear_denials();
    assert_eq!(deploy(&sim, "evil").await?.status, 200);
    assert_eq!(sim.ledger().mints.len(), 2);
    Ok(())
}

#[tokio::test]
async fn audit_events_are_kept_checked_and_limited_to_60_a_minute() -> Result<()> {
    let sim = ChittyConnect::start()?;
    let path = "/api/chittychronicle/events";
    let event = json!({"service": "chittyid", "action": "credential.provisioned", "status": "success"});
    let answer = post(&sim, path, &event).await?;
    assert_eq!(answer.status, 200);
    assert!(answer.json()["id"].is_string() && answer.json()["timestamp"].is_string());

    let mut long = event.clone();
    long["service"] = "x".repeat(51).into();
    assert_eq!(post(&sim, path, &long).await?.status, 500);
    for _ in 2..60 {
        assert_eq!(post(&sim, path, &event).await?.status, 200);
    }
    let refused = post(&sim, path, &event).await?;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json(), json!({"error": "Rate limit exceeded"}));
    assert_eq!(sim.ledger().events.len(), 59);
    Ok(())
}

#[tokio::test]
async fn every_answer_tells_the_simulators_own_time() -> Result<()> {
    let sim = ChittyConnect::start()?;
    sim.set_clock_skew(TimeDelta::hours(-3));
    let answer = deploy(&sim, "chittyid").await?;
    let date = DateTime::parse_from_rfc2822(answer.header("date").context("a Date")?)?;
    let behind = Utc::now() - date.to_utc();
    assert_eq!((behind + TimeDelta::minutes(1)).num_hours(), 3);
    let life = time(&answer.json()["expires_at"]) - date.to_utc();
    assert!((3595..=3600).contains(&life.num_seconds()), "{life}");
    for path in ["/health", "/nowhere"] {
        assert!(get(&sim, path).await?.header("date").is_some(), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn it_speaks_tls_to_those_who_trust_its_authority() -> Result<()> {
    let sim = ChittyConnect::builder().tls(["localhost"]).start()?;
    assert_eq!(sim.url(), format!("https://127.0.0.1:{}", sim.port()));
    assert_eq!(deploy(&sim, "chittyid").await?.status, 200);
    let by_name = http(sim.ca_pem())?.get(format!("https://localhost:{}/health", sim.port()));
    assert_eq!(read(by_name).await?.status, 200);
    assert!(read(http(None)?.get(sim.url())).await.is_err());
    Ok(())
}
