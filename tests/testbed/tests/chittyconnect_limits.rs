//! The simulator counts as each API does, and its ledger as it really was.

mod common;

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{TimeDelta, Timelike, Utc};
use serde_json::json;
use testbed::ChittyConnect;
use testbed::chittyconnect::{Fault, Match, ProvisionLimit, Route, Scope};

use common::{Answer, deploy, get, provision};

const SECOND: Duration = Duration::from_secs(1);

async fn statuses(sim: &ChittyConnect, services: &[&str]) -> Result<Vec<u16>> {
    let mut statuses = Vec::new();
    for service in services {
        statuses.push(deploy(sim, service).await?.status);
    }
    Ok(statuses)
}

#[tokio::test]
async fn deploy_takes_ten_an_hour_per_service_and_says_no_when_to_come_back() -> Result<()> {
    let sim = ChittyConnect::start()?;
    assert_eq!(statuses(&sim, &["a"; 10]).await?, [200; 10]);
    let refused = deploy(&sim, "a").await?;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.message(), "Rate limit exceeded for a");
    assert_eq!(refused.header("retry-after"), None);
    assert_eq!(deploy(&sim, "b").await?.status, 200);
    sim.reset_limits();
    assert_eq!(deploy(&sim, "a").await?.status, 200);
    let ledger = sim.ledger();
    assert_eq!((ledger.posts(), ledger.mints.len()), (13, 12));
    Ok(())
}

#[tokio::test]
async fn the_window_slides_and_the_scope_may_be_the_key() -> Result<()> {
    let sim = ChittyConnect::builder()
        .limit(2, 2 * SECOND, Scope::Key)
        .retry_after(SECOND)
        .start()?;
    assert_eq!(statuses(&sim, &["a", "b", "c"]).await?, [200, 200, 429]);
    assert_eq!(deploy(&sim, "d").await?.header("retry-after"), Some("1"));
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(statuses(&sim, &["a"]).await?, [200]);
    Ok(())
}

#[tokio::test]
async fn the_ledger_finds_the_densest_window_per_service_and_per_key() -> Result<()> {
    let sim = ChittyConnect::builder().without_limits().start()?;
    statuses(&sim, &["a", "a", "b"]).await?;
    tokio::time::sleep(SECOND).await;
    statuses(&sim, &["a"]).await?;
    let ledger = sim.ledger();
    for (window, scope, most) in [
        (Duration::from_millis(900), Scope::Service, 2),
        (Duration::from_secs(60), Scope::Service, 3),
        (Duration::from_millis(900), Scope::Key, 3),
        (Duration::from_secs(60), Scope::Key, 4),
    ] {
        assert_eq!(
            ledger.max_posts_in_any_window(window, scope),
            most,
            "{window:?} {scope:?}"
        );
    }
    assert_eq!(ledger.posts_for("a").len(), 3);
    assert_eq!(ledger.mints_for("b").len(), 1);
    assert_eq!(ledger.calls(Route::Deploy), 4);
    Ok(())
}

async fn read_token(sim: &ChittyConnect) -> Result<Answer> {
    provision(sim, "cloudflare_workers_read", json!({"service": "s"})).await
}

/// Far from the clock hour's end, so that no test straddles it.
fn mid_hour(sim: &ChittyConnect) {
    let minute = i64::from(Utc::now().minute());
    sim.set_clock_skew(TimeDelta::minutes(20 - minute));
}

#[tokio::test]
async fn provision_counts_per_clock_hour_and_key_what_fails_too_but_nothing_that_is_not_complete() -> Result<()> {
    let sim = ChittyConnect::builder()
        .api_key("k", "ci")
        .provision_limit(ProvisionLimit {
            limit: 3,
            ..ProvisionLimit::default()
        })
        .start()?;
    mid_hour(&sim);
    assert_eq!(
        provision(&sim, "cloudflare_workers_read", json!({})).await?.status,
        400,
        "not charged"
    );
    assert_eq!(provision(&sim, "nonsense", json!({})).await?.status, 400);
    let busy = sim
        .on(Match::minting())
        .times(1)
        .fault(Fault::Upstream(502, "bad gateway".to_owned()));
    assert_eq!(read_token(&sim).await?.status, 500);
    assert_eq!(sim.hits(busy), 1);
    assert_eq!(read_token(&sim).await?.status, 200);
    let refused = read_token(&sim).await?;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.message(), "Rate limit exceeded for ci");
    assert_eq!(refused.header("retry-after"), None);
    sim.set_clock_skew(sim.now() - Utc::now() + TimeDelta::hours(1));
    assert_eq!(read_token(&sim).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn provision_may_charge_twice_and_may_be_racy() -> Result<()> {
    let sim = ChittyConnect::builder()
        .provision_limit(ProvisionLimit {
            charges: 2,
            ..ProvisionLimit::default()
        })
        .start()?;
    mid_hour(&sim);
    for expected in [200, 200, 200, 200, 200, 429] {
        assert_eq!(read_token(&sim).await?.status, expected);
    }

    let sim = ChittyConnect::builder()
        .provision_limit(ProvisionLimit {
            limit: 1,
            racy: true,
            ..ProvisionLimit::default()
        })
        .start()?;
    mid_hour(&sim);
    let both = tokio::try_join!(read_token(&sim), read_token(&sim))?;
    assert_eq!((both.0.status, both.1.status), (200, 200));
    assert_eq!(read_token(&sim).await?.status, 429);
    Ok(())
}

#[tokio::test]
async fn as_observed_it_charges_twice_and_its_answers_have_no_date() -> Result<()> {
    let sim = ChittyConnect::builder().as_observed().start()?;
    mid_hour(&sim);
    for _ in 0..5 {
        let answer = read_token(&sim).await?;
        assert_eq!((answer.status, answer.header("date")), (200, None));
    }
    assert_eq!(read_token(&sim).await?.status, 429);
    Ok(())
}

#[tokio::test]
async fn an_upstreams_refusal_shines_through() -> Result<()> {
    let sim = ChittyConnect::builder().without_limits().start()?;
    for (status, answered, said) in [
        (401, 400, "Authentication required"),
        (429, 429, "Rate limit exceeded"),
        (502, 500, "Failed to create token: 502 - at the edge"),
        (403, 403, "Failed to create token: 403 - ACCESS_DENIED"),
    ] {
        let text = if status == 403 { "ACCESS_DENIED" } else { "at the edge" };
        sim.on(Match::minting())
            .times(2)
            .fault(Fault::Upstream(status, text.to_owned()));
        for answer in [read_token(&sim).await?, deploy(&sim, "a").await?] {
            assert_eq!((answer.status, answer.message().as_str()), (answered, said));
        }
    }
    assert_eq!(sim.ledger().mints.len(), 0);
    Ok(())
}

#[tokio::test]
async fn the_limiter_per_key_talks_in_headers_and_milliseconds() -> Result<()> {
    let sim = ChittyConnect::builder().key_limit(2, Duration::from_secs(60)).start()?;
    let first = deploy(&sim, "a").await?;
    assert_eq!(first.header("x-ratelimit-limit"), Some("2"));
    assert_eq!(first.header("x-ratelimit-remaining"), Some("1"));
    let reset: i64 = first.header("x-ratelimit-reset").context("a time")?.parse()?;
    let ahead = reset - Utc::now().timestamp_millis();
    assert!((50_000..=60_000).contains(&ahead), "{ahead}");

    assert_eq!(get(&sim, "/api/health").await?.status, 200);
    let refused = deploy(&sim, "a").await?;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), Some("60"));
    assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    assert_eq!(sim.ledger().mints.len(), 1);
    Ok(())
}
