//! What goes wrong does so as announced, and the ledger knows what was minted all the same.

mod common;

use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use serde_json::json;
use testbed::ChittyConnect;
use testbed::chittyconnect::{Canned, Expiry, Fault, Match, Route};

use common::{deploy, deploy_body, http, post, provision, read};

/// For answers that never come.
const SHORT: Duration = Duration::from_millis(300);
/// For answers that come, however busy the machine.
const LONG: Duration = Duration::from_secs(30);

#[derive(Debug, PartialEq)]
enum Seen {
    Status(u16),
    Broken,
    Nothing,
}

async fn ask(sim: &ChittyConnect, patience: Duration) -> Result<Seen> {
    let request = http(sim.ca_pem())?
        .post(format!("{}/credentials/deploy", sim.url()))
        .bearer_auth(sim.api_key())
        .timeout(patience)
        .json(&deploy_body("chittyid"));
    Ok(match read(request).await {
        Ok(answer) => Seen::Status(answer.status),
        Err(error) if error.is_timeout() => Seen::Nothing,
        Err(_) => Seen::Broken,
    })
}

#[tokio::test]
async fn each_fault_is_seen_as_announced_and_mints_as_announced() -> Result<()> {
    let long = 2 * LONG;
    let elsewhere = "http://127.0.0.1:1/".to_owned();
    // fault, what the client sees, minted, delivered
    let table = [
        (Fault::from(Canned::status(503)), Seen::Status(503), false, false),
        (Fault::FailAfter(500), Seen::Status(500), true, true),
        (Fault::DelayBefore(long), Seen::Nothing, false, false),
        (Fault::DelayAfter(long), Seen::Nothing, true, false),
        (Fault::HangBefore, Seen::Nothing, false, false),
        (Fault::HangAfter, Seen::Nothing, true, false),
        (Fault::CutBefore, Seen::Broken, false, false),
        (Fault::CutAfter, Seen::Broken, true, false),
        (Fault::CutMidway, Seen::Broken, true, false),
        (Fault::TruncatedJson, Seen::Status(200), true, true),
        (Fault::HugeBody, Seen::Status(200), false, false),
        (Fault::Redirect(elsewhere), Seen::Status(302), false, false),
        (Fault::Html, Seen::Status(200), false, false),
        (Fault::Unsuccessful, Seen::Status(200), false, false),
        (Fault::WrongTypes, Seen::Status(200), false, false),
        (Fault::NoValue, Seen::Status(200), true, true),
        (Fault::ExpiresAt(Expiry::Past), Seen::Status(200), true, true),
    ];
    for (fault, seen, minted, delivered) in table {
        let sim = ChittyConnect::start()?;
        let rule = sim.on(Match::route(Route::Deploy)).times(1).fault(fault.clone());
        let patience = if seen == Seen::Nothing { SHORT } else { LONG };
        assert_eq!(ask(&sim, patience).await?, seen, "{fault:?}");
        assert_eq!(sim.hits(rule), 1);
        let ledger = sim.ledger();
        assert_eq!(ledger.posts(), 1);
        assert_eq!(ledger.mints.len(), usize::from(minted), "{fault:?}");
        assert_eq!(ledger.posts[0].mint, minted.then_some(0));
        assert_eq!(ledger.mints.iter().any(|mint| mint.delivered), delivered, "{fault:?}");

        let next = deploy(&sim, "chittyid").await?;
        assert_eq!(next.status, 200, "after {fault:?}");
        assert!(sim.ledger().mints.last().is_some_and(|mint| mint.delivered));
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_the_mint() -> Result<()> {
    let sim = ChittyConnect::start()?;
    let later = 3 * SHORT;
    sim.on(Match::minting()).fault(Fault::DelayBefore(later));
    assert_eq!(ask(&sim, SHORT).await?, Seen::Nothing);
    assert!(sim.ledger().mints.is_empty());
    let deadline = Instant::now() + Duration::from_secs(10);
    while sim.ledger().mints.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ledger = sim.ledger();
    assert_eq!(ledger.mints.len(), 1);
    assert!(!ledger.mints[0].delivered);
    Ok(())
}

#[tokio::test]
async fn spoilt_answers_say_what_was_asked_for() -> Result<()> {
    let sim = ChittyConnect::builder().without_limits().start()?;
    let once = |fault: Fault| sim.on(Match::minting()).times(1).fault(fault);

    once(Fault::ExpiresAt(Expiry::Missing));
    assert!(deploy(&sim, "s").await?.json().get("expires_at").is_none());
    once(Fault::ExpiresAt(Expiry::Unparsable));
    assert_eq!(deploy(&sim, "s").await?.json()["expires_at"], "soon");
    for (expiry, least, most) in [(Expiry::Past, -2, 0), (Expiry::InAYear, 364 * 24, 366 * 24)] {
        once(Fault::ExpiresAt(expiry));
        let body = deploy(&sim, "s").await?.json();
        let end = body["expires_at"].as_str().unwrap_or_default();
        let end = chrono::DateTime::parse_from_rfc3339(end)?.to_utc();
        let hours = (end - Utc::now()).num_hours();
        assert!((least..=most).contains(&hours), "{expiry:?}: {hours} h");
    }
    let honest = sim.now() + TimeDelta::hours(2);
    assert!(sim.ledger().live_tokens(honest).is_empty(), "the truth is unimpressed");

    once(Fault::NoValue);
    let github = provision(&sim, "github_deploy_token", json!({"repository": "r"})).await?;
    assert_eq!(github.status, 200);
    assert!(github.json()["credential"].get("value").is_none());

    once(Fault::FailAfter(500));
    let failed = deploy(&sim, "s").await?;
    let secrets = sim.ledger().mints.last().map(|mint| mint.secrets.clone());
    for secret in secrets.unwrap_or_default().values() {
        assert!(failed.text.contains(secret), "its details repeat the secret");
    }

    once(Fault::HugeBody);
    assert!(deploy(&sim, "s").await?.text.len() > 10_000_000);
    once(Canned::status(429).header("Retry-After", "7").into());
    assert_eq!(deploy(&sim, "s").await?.header("retry-after"), Some("7"));
    once(Canned::status(200).body("text/plain", "hello").into());
    assert_eq!(deploy(&sim, "s").await?.text, "hello");
    Ok(())
}

#[tokio::test]
async fn a_fault_hits_what_matches_after_so_many_and_so_often() -> Result<()> {
    let sim = ChittyConnect::start()?;
    let fault = sim
        .on(Match::route(Route::Deploy).service("a").run_id("12345"))
        .skip(1)
        .times(2)
        .fault(Canned::status(500));
    let mut seen = Vec::new();
    for service in ["a", "b", "a", "b", "a", "a"] {
        seen.push(deploy(&sim, service).await?.status);
    }
    assert_eq!(seen, [200, 200, 500, 200, 500, 200]);
    assert_eq!(sim.hits(fault), 2);

    sim.on(Match::any()).fault(Canned::status(503));
    let event = json!({"service": "s", "action": "a", "status": "success"});
    let events = "/api/chittychronicle/events";
    assert_eq!(post(&sim, events, &event).await?.status, 503);
    sim.clear_faults();
    assert_eq!(post(&sim, events, &event).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn an_outage_refuses_connections_and_ends_on_the_same_port() -> Result<()> {
    let sim = ChittyConnect::start()?;
    sim.go_down()?;
    assert_eq!(ask(&sim, LONG).await?, Seen::Broken);
    assert_eq!(sim.ledger().posts(), 0);
    sim.come_back()?;
    assert_eq!(ask(&sim, LONG).await?, Seen::Status(200));
    Ok(())
}

#[tokio::test]
async fn the_ledger_debugs_without_a_secret() -> Result<()> {
    let sim = ChittyConnect::start()?;
    let request = http(None)?
        .post(format!("{}/credentials/deploy", sim.url()))
        .header("Idempotency-Key", "claim-1")
        .bearer_auth(sim.api_key())
        .json(&deploy_body("chittyid"));
    assert_eq!(read(request).await?.status, 200);
    let ledger = sim.ledger();
    assert_eq!(ledger.posts[0].idempotency_key.as_deref(), Some("claim-1"));
    let shown = format!("{ledger:?} {sim:?}");
    assert!(shown.contains("chittyid") && !shown.contains(sim.api_key()));
    assert!(ledger.secret_values().iter().all(|secret| !shown.contains(secret)));
    Ok(())
}
