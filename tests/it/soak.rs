//! Long runs, printing their figures: `cargo test --test it -- --ignored --nocapture soak`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use testbed::chittyconnect::Scope;

use crate::support::*;

/// Seconds from the environment, so that a longer run needs no edit.
fn seconds(name: &str, default: u64) -> Duration {
    let given = std::env::var(name).ok().and_then(|v| v.parse().ok());
    Duration::from_secs(given.unwrap_or(default))
}

#[tokio::test]
#[ignore = "ten minutes: SOAK_SECONDS sets how long"]
async fn twenty_tokens_of_thirty_seconds_are_never_missing_stale_or_late() {
    let world = World::start("soak").await;
    let ttl = Duration::from_secs(30);
    let case = Setup::within(world, generous().ttl(ttl)).case().await;
    let names: Vec<String> = (0..20).map(|i| format!("c{i:02}")).collect();
    for name in &names {
        case.apply(name, json!({"runId": name})).await;
    }
    for name in &names {
        case.until_ready_is(name, "True", "Issued").await;
    }
    let until = Instant::now() + seconds("SOAK_SECONDS", 600);
    let (mut samples, mut bad) = (0_u64, Vec::new());
    while Instant::now() < until {
        let ready: Vec<String> = case
            .credentials()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .iter()
            .filter(|c| condition(c, "Ready").0 == "True")
            .map(ResourceExt::name_any)
            .collect();
        let secrets = case.secrets().list(&ListParams::default()).await.unwrap().items;
        let now = case.broker.now();
        let ledger = case.broker.ledger();
        let mut latest = BTreeMap::new();
        for mint in &ledger.mints {
            latest.insert(mint.run_id.clone().unwrap_or_default(), mint);
        }
        for name in &ready {
            samples += 1;
            let secret = secrets.iter().find(|s| s.name_any() == *name);
            let token = secret.and_then(|s| s.data.as_ref()?.get("npm_token").cloned());
            let Some(token) = token.and_then(|v| String::from_utf8(v.0).ok()) else {
                bad.push(format!("{name}: its Secret is missing"));
                continue;
            };
            let newest = latest[name];
            let current = newest.secrets["npm_token"] == token;
            let just_rotated = now - newest.issued_at < chrono::TimeDelta::seconds(1);
            if !current && !just_rotated {
                bad.push(format!("{name}: not what was issued last"));
            }
            let held = ledger.mint_of(&token).expect("a token of this broker");
            if held.expires_at.is_some_and(|at| at <= now) {
                bad.push(format!("{name}: expired"));
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ledger = case.broker.ledger();
    let mut last = BTreeMap::new();
    let (mut rotations, mut worst) = (0, chrono::TimeDelta::MAX);
    for mint in &ledger.mints {
        if let Some(before) = last.insert(mint.run_id.clone(), mint) {
            let before: &testbed::chittyconnect::Mint = before;
            rotations += 1;
            worst = worst.min(before.expires_at.unwrap() - mint.issued_at);
        }
    }
    // A third of the life is the runway; the server's whole seconds cost up to one of it.
    let late = chrono::TimeDelta::seconds(10) - worst;
    println!(
        "{samples} samples of ready credentials, {} bad; {rotations} rotations, the latest {} ms after its runway began",
        bad.len(),
        late.num_milliseconds()
    );
    assert!(bad.is_empty(), "{bad:?}");
    assert!(rotations >= 20);
    assert!(late <= chrono::TimeDelta::seconds(1), "{late} late");
}

#[tokio::test]
#[ignore = "five minutes: SOAK_SECONDS sets how long"]
async fn a_hundred_credentials_against_ten_mints_a_window_with_a_kill_every_few_seconds() {
    let world = World::start("hundred").await;
    let window = Duration::from_secs(36);
    let builder = generous()
        .ttl(Duration::from_secs(36))
        .limit(10, window, Scope::Service);
    let case = Setup::within(world.clone(), builder).case().await;
    let namespaces: Vec<String> = (0..12).map(|i| format!("{}-{i:02}", case.namespace)).collect();
    for namespace in &namespaces {
        create_namespace(&case.client, namespace, &json!({})).await;
    }
    let rule = json!([{"namespaces": [format!("{}-*", case.namespace)], "services": ["*"], "purposes": ["*"], "repos": ["*"]}]);
    case.connect(json!({"rateLimit": {"limit": 10, "window": "36s"}, "access": rule}))
        .await;
    for i in 0..100 {
        let namespace = &namespaces[i % 12];
        let mut manifest = case.manifest(&format!("c{i:03}"), json!({"runId": format!("{}.{i}", i % 12)}));
        manifest["metadata"]["namespace"] = json!(namespace);
        let api = kube::Api::namespaced(case.client.clone(), namespace);
        apply::<chittyconnect_operator::api::EphemeralCredential>(&api, &manifest).await;
    }
    let until = Instant::now() + seconds("SOAK_SECONDS", 300);
    let mut kills = 0;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(3300)).await;
        world.kill_controller();
        world.start_controller();
        kills += 1;
    }
    let ledger = case.broker.ledger();
    let most = ledger.max_posts_in_any_window(window, Scope::Service);
    let refused = ledger.posts.iter().filter(|p| p.status == Some(429)).count();
    let (mut first, mut slots, mut starved) = (BTreeMap::new(), BTreeMap::<String, usize>::new(), 0);
    let mut lost = 0;
    for mint in &ledger.mints {
        let run = mint.run_id.clone().unwrap();
        let namespace = run.split('.').next().unwrap().to_owned();
        let before: Option<&testbed::chittyconnect::Mint> = first.insert(run, mint);
        match before {
            None => {
                let mine = slots.get(&namespace).copied().unwrap_or(0);
                // Every namespace has more credentials than ever get a slot: all of them wait.
                let behind = (0..12)
                    .filter(|n| slots.get(&n.to_string()).copied().unwrap_or(0) < mine)
                    .count();
                starved += behind;
                *slots.entry(namespace).or_default() += 1;
            }
            Some(before) => lost += usize::from(before.expires_at.unwrap() <= mint.issued_at),
        }
    }
    println!(
        "{kills} kills; {} requests, {most} at most in a window of 10, {refused} refused; {} credentials served, {lost} lost, {starved} starved",
        ledger.posts(),
        first.len(),
    );
    assert!(most <= 10 && refused == 0 && starved == 0 && lost == 0);
}
