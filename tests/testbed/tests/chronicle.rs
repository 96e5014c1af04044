//! ChittyChronicle keeps what it takes, and has the bad days it is told to have.

mod common;

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use testbed::Chronicle;
use testbed::chronicle::Trouble;

use common::{http, read};

fn entry(service: &str) -> Value {
    json!({"eventType": "credential.provisioned", "entityId": service, "data": {"id": "1"}})
}

/// The status, or `None` where there was no answer.
async fn send(chronicle: &Chronicle, body: &Value) -> Result<Option<u16>> {
    let request = http(chronicle.ca_pem())?
        .post(format!("{}/api/entries", chronicle.url()))
        .bearer_auth(chronicle.token())
        .json(body);
    Ok(read(request).await.ok().map(|answer| answer.status))
}

#[tokio::test]
async fn entries_are_kept_in_order_from_those_who_may() -> Result<()> {
    let chronicle = Chronicle::builder().tls(["localhost"]).start()?;
    assert_eq!(send(&chronicle, &entry("a")).await?, Some(200));
    assert_eq!(send(&chronicle, &entry("b")).await?, Some(200));
    assert_eq!(send(&chronicle, &json!({"entityId": "c"})).await?, Some(400));
    let stranger = http(chronicle.ca_pem())?
        .post(format!("{}/api/entries", chronicle.url()))
        .bearer_auth("wrong")
        .json(&entry("d"));
    assert_eq!(read(stranger).await?.status, 401);
    let entries = chronicle.entries();
    let services: Vec<_> = entries.iter().map(|entry| entry.entity_id.as_str()).collect();
    assert_eq!(services, ["a", "b"]);
    assert_eq!(entries[0].event_type, "credential.provisioned");
    assert_eq!(entries[0].data, json!({"id": "1"}));
    assert_eq!(chronicle.requests(), 4);
    Ok(())
}

#[tokio::test]
async fn trouble_hits_matching_entries_and_passes() -> Result<()> {
    let chronicle = Chronicle::start()?;
    for status in [400, 429, 500] {
        let trouble = chronicle
            .on(|entry| entry.entity_id == "a")
            .times(1)
            .trouble(Trouble::Status(status));
        assert_eq!(send(&chronicle, &entry("b")).await?, Some(200));
        assert_eq!(send(&chronicle, &entry("a")).await?, Some(status));
        assert_eq!(send(&chronicle, &entry("a")).await?, Some(200));
        assert_eq!(chronicle.hits(trouble), 1);
    }
    assert_eq!(chronicle.entries().len(), 6);
    Ok(())
}

#[tokio::test]
async fn an_answer_can_get_lost_with_or_without_the_entry() -> Result<()> {
    let chronicle = Chronicle::start()?;
    chronicle.on(|_| true).times(1).trouble(Trouble::Cut);
    assert_eq!(send(&chronicle, &entry("a")).await?, None);
    assert!(chronicle.entries().is_empty());
    chronicle.on(|_| true).times(1).trouble(Trouble::AnswerLost);
    assert_eq!(send(&chronicle, &entry("a")).await?, None);
    assert_eq!(chronicle.entries().len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_outage_refuses_connections_and_ends_on_the_same_port() -> Result<()> {
    let chronicle = Chronicle::start()?;
    let url = chronicle.url();
    chronicle.go_down()?;
    assert_eq!(send(&chronicle, &entry("a")).await?, None);
    chronicle.come_back()?;
    assert_eq!(chronicle.url(), url);
    assert_eq!(send(&chronicle, &entry("a")).await?, Some(200));
    assert_eq!(chronicle.requests(), 1);
    Ok(())
}

#[tokio::test]
async fn slowness_is_felt() -> Result<()> {
    let chronicle = Chronicle::start()?;
    let slow = Duration::from_millis(200);
    chronicle.set_latency(slow);
    let started = Instant::now();
    assert_eq!(send(&chronicle, &entry("a")).await?, Some(200));
    assert!(started.elapsed() >= slow);
    Ok(())
}

#[test]
fn a_simulator_outlives_any_runtime() -> Result<()> {
    let chronicle = Chronicle::start()?;
    for _ in 0..2 {
        let runtime = tokio::runtime::Runtime::new()?;
        assert_eq!(runtime.block_on(send(&chronicle, &entry("a")))?, Some(200));
    }
    assert_eq!(chronicle.entries().len(), 2);
    Ok(())
}
