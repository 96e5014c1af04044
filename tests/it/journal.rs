//! The journal's compare-and-swap: the fence that everything else stands behind.

use std::future::ready;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chittyconnect_operator::api::{RateScope, SecretType};
use chittyconnect_operator::cluster::Cluster;
use chittyconnect_operator::cluster::journal::{Journals, ScopeJournal};
use chittyconnect_operator::cluster::secrets::{Owner, SecretMetadata, Write, WriteError};
use chittyconnect_operator::core::Time;
use chittyconnect_operator::core::ids::SpecDigest;
use chittyconnect_operator::core::journal::{ActiveToken, Claim, Outcome, Scope};
use chittyconnect_operator::core::layout::OwnMetadata;
use chittyconnect_operator::core::seal::SealKey;
use chrono::TimeDelta;
use http::{Method, Request};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::client::Body;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use zeroize::Zeroizing;

use crate::support::*;

fn scope(name: &str) -> Scope {
    Scope {
        origin: "https://broker.example".into(),
        kind: RateScope::Service,
        of: name.into(),
    }
}

fn journals(client: Client) -> Journals {
    let seal = SealKey::new(vec![7; 32]).unwrap();
    Journals::new(Cluster::new(client, SYSTEM.to_owned()), seal)
}

#[tokio::test]
async fn two_writers_lose_none_of_each_others_decisions() {
    let world = World::without_controller("writers").await;
    let scope = scope("two-writers");
    let one = journals(world.client().await).of(&scope);
    let two = journals(world.client().await).of(&scope);
    for _ in 0..20 {
        let (a, b) = tokio::join!(
            one.commit(|journal, _| journal.throttle.count += 1),
            two.commit(|journal, _| journal.throttle.count += 1),
        );
        a.unwrap();
        b.unwrap();
    }
    let count = one.fresh(|journal| journal.throttle.count).await.unwrap();
    assert_eq!(count, 40);
}

/// What becomes of the next write.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    /// It arrives, and its answer does not.
    AnswerLost,
    /// It is held up, and arrives right before the one after it.
    Late,
}

/// A client of the same API server whose writes meet trouble.
fn troubled(client: Client) -> (Client, Arc<Mutex<Trouble>>) {
    let next = Arc::new(Mutex::new(Trouble::None));
    let late: Arc<Mutex<Option<Request<Vec<u8>>>>> = Arc::default();
    let service = {
        let next = Arc::clone(&next);
        tower::service_fn(move |request: Request<Body>| {
            let (client, next, late) = (client.clone(), Arc::clone(&next), Arc::clone(&late));
            async move {
                if ![Method::PUT, Method::POST].contains(request.method()) {
                    return Ok(client.send(request).await?);
                }
                let (parts, body) = request.into_parts();
                let request = Request::from_parts(parts, body.collect_bytes().await?.to_vec());
                let trouble = std::mem::replace(&mut *next.lock().unwrap(), Trouble::None);
                if trouble == Trouble::Late {
                    *late.lock().unwrap() = Some(request);
                    return Err("no answer in time".into());
                }
                let before = late.lock().unwrap().take();
                if let Some(before) = before {
                    client.send(before.map(Body::from)).await?;
                }
                let answer = client.send(request.map(Body::from)).await?;
                if trouble == Trouble::AnswerLost {
                    return Err("the connection was cut before the answer".into());
                }
                Ok::<_, tower::BoxError>(answer)
            }
        })
    };
    (Client::new(service, "default"), next)
}

#[tokio::test]
async fn a_write_whose_fate_was_unknown_counts_once_and_returns_what_was_decided() {
    let world = World::without_controller("fate").await;
    for trouble in [Trouble::AnswerLost, Trouble::Late] {
        let (client, next) = troubled(world.client().await);
        let name = if trouble == Trouble::Late { "late" } else { "lost" };
        let journal = journals(client).of(&scope(name));
        // The first write creates it, the others replace it.
        for n in 1..=3 {
            *next.lock().unwrap() = trouble;
            let mut decisions = 0;
            let decided = journal
                .commit(move |journal, _| {
                    decisions += 1;
                    journal.throttle.count += 1;
                    journal.typical_lifetime = Some(decisions);
                    decisions
                })
                .await
                .unwrap();
            assert!(*next.lock().unwrap() == Trouble::None, "no write met trouble");
            let (count, written) = journal
                .fresh(|journal| (journal.throttle.count, journal.typical_lifetime))
                .await
                .unwrap();
            assert_eq!((count, written), (n, Some(decided)), "{name}");
        }
    }
}

/// A claim of `uid`, as it is stored.
fn claim(uid: &str, at: Time) -> Claim {
    serde_json::from_value(json!({
        "id": format!("claim-of-{uid}"), "namespace": "team", "name": uid, "revision": 1,
        "at": at.timestamp_millis(), "holder": "me", "timeoutSeconds": 10, "kind": "First",
        "request": {"connection": "c", "service": "s", "purpose": "p", "runId": "r"},
        "endpoint": {"url": "https://broker.example", "api": "Deploy", "key": {"name": "k", "key": "k"}},
        "digest": SpecDigest::default(), "secrets": [uid],
    }))
    .unwrap()
}

/// The token that a claim brought.
fn live(claim: &Claim, at: Time) -> ActiveToken {
    serde_json::from_value(json!({
        "claim": claim.id, "revision": 1, "request": claim.request, "endpoint": claim.endpoint,
        "digest": SpecDigest::default(), "issuedAt": at, "endsAt": at + TimeDelta::hours(1),
        "tokenIds": [], "outputs": ["cloudflare_token", "account_id", "npm_token", "github_token"],
        "secrets": {claim.name.clone(): {"keys": [], "fingerprint": "f".repeat(43)}},
    }))
    .unwrap()
}

/// Claims and outcomes for all of these, 40 at a time.
async fn publish(journal: &ScopeJournal, range: std::ops::Range<usize>) {
    for chunk in range.collect::<Vec<_>>().chunks(40) {
        let uids: Vec<String> = chunk.iter().map(|n| format!("uid-{n:05}")).collect();
        let claimed = uids.clone();
        journal
            .commit(move |journal, now| {
                for uid in &claimed {
                    journal.claim(uid, claim(uid, now), TimeDelta::seconds(60));
                }
            })
            .await
            .unwrap();
        journal
            .commit(move |journal, now| {
                for uid in &uids {
                    let claim = journal.claims.get(uid.as_str()).cloned().unwrap();
                    let ending = Outcome::Published(Box::new(live(&claim, now)));
                    assert!(journal.end(uid, &claim.id, ending, now));
                }
            })
            .await
            .unwrap();
    }
}

async fn parts(world: &World, part: &str) -> Vec<ConfigMap> {
    let api: Api<ConfigMap> = Api::namespaced(world.client().await, SYSTEM);
    let labels = format!("connect.chitty.cc/journal={part}");
    let all = api.list(&ListParams::default().labels(&labels)).await.unwrap();
    all.items
}

async fn delete(world: &World, map: &ConfigMap) {
    let api: Api<ConfigMap> = Api::namespaced(world.client().await, SYSTEM);
    api.delete(&map.name_any(), &DeleteParams::default()).await.unwrap();
}

/// What a process that starts now reads: how many records, and whether something is lost.
async fn read(world: &World, scope: &Scope) -> (usize, bool) {
    let journal = journals(world.client().await).of(scope).view().await.unwrap();
    (journal.credentials.len(), journal.lost_at.is_some())
}

#[tokio::test]
async fn a_thousand_records_are_spread_over_pages_and_a_lost_part_is_noticed_or_written_anew() {
    let world = World::without_controller("pages").await;
    let scope = scope("many");
    let journal = journals(world.client().await).of(&scope);
    publish(&journal, 0..1000).await;
    assert_eq!(read(&world, &scope).await, (1000, false));
    let pages = parts(&world, "page").await;
    assert!(pages.len() > 5, "{} pages", pages.len());
    for map in pages.iter().chain(&parts(&world, "head").await) {
        let size = serde_json::to_string(map).unwrap().len();
        assert!(size < 256 * 1024, "{} takes {size} bytes", map.name_any());
    }
    // Its own process has lost nothing: what it knows is written anew.
    delete(&world, &pages[0]).await;
    let (known, lost) = read(&world, &scope).await;
    assert!(lost && known < 1000, "{known}");
    publish(&journal, 0..1000).await;
    assert_eq!(read(&world, &scope).await, (1000, false));
    delete(&world, &parts(&world, "head").await[0]).await;
    assert_eq!(
        read(&world, &scope).await,
        (1000, true),
        "what the head knew is lost, what pages hold is not"
    );
    publish(&journal, 1000..1001).await;
    assert_eq!(read(&world, &scope).await, (1001, false));
    let named = parts(&world, "page").await;
    publish(&journal, 1001..1002).await;
    assert!(
        parts(&world, "page").await.len() <= named.len(),
        "pages that nobody names stay"
    );
}

#[tokio::test]
async fn a_process_that_dies_between_page_and_head_leaves_the_outcome_and_one_successor_closes_the_claim() {
    let world = World::without_controller("between").await;
    let scope = scope("between");
    let first = journals(world.client().await).of(&scope);
    publish(&first, 0..100).await;
    assert!(!parts(&world, "page").await.is_empty());
    first
        .commit(|journal, now| journal.claim("uid-00007", claim("uid-00007", now), TimeDelta::seconds(60)))
        .await
        .unwrap();
    // The page is written, the head never is.
    let (client, dead) = dying_at(world.client().await, "head");
    let dying = journals(client).of(&scope);
    dying.view().await.unwrap();
    dead.store(true, Ordering::SeqCst);
    let ended = dying.commit(|journal, now| {
        let claim = journal.claims.get("uid-00007").cloned().unwrap();
        let mut live = live(&claim, now);
        live.revision = 2;
        journal.end("uid-00007", &claim.id, Outcome::Published(Box::new(live)), now)
    });
    assert!(ended.await.is_err());
    let successor = journals(world.client().await).of(&scope);
    let view = successor.view().await.unwrap();
    assert!(view.claims.is_empty());
    assert_eq!(view.credentials.get("uid-00007").unwrap().revision, 2);
    assert_eq!(view.sent().iter().map(|(_, n)| n).sum::<u32>(), 101);
    // Whoever comes later finds it closed, and the head follows.
    successor.commit(|journal, _| journal.throttle.count = 1).await.unwrap();
    let head = &parts(&world, "head").await[0];
    let text = &head.data.as_ref().unwrap()["journal.json"];
    assert!(!text.contains("claim-of-uid-00007"), "{text}");
    let late = first.commit(|journal, now| {
        let claim = claim("uid-00007", now);
        journal.end(
            "uid-00007",
            &claim.id,
            Outcome::Published(Box::new(live(&claim, now))),
            now,
        )
    });
    assert!(!late.await.unwrap(), "closed twice");
}

/// A client whose writes to parts of this kind fail, once it is said to.
fn dying_at(client: Client, part: &'static str) -> (Client, Arc<AtomicBool>) {
    let dead = Arc::new(AtomicBool::new(false));
    let service = {
        let dead = Arc::clone(&dead);
        tower::service_fn(move |request: Request<Body>| {
            let (client, dead) = (client.clone(), Arc::clone(&dead));
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await?.to_vec();
                let label = format!("\"connect.chitty.cc/journal\":\"{part}\"");
                let is_write = [Method::PUT, Method::POST].contains(&parts.method);
                if dead.load(Ordering::SeqCst) && is_write && String::from_utf8_lossy(&body).contains(&label) {
                    return Err(tower::BoxError::from("the process is dead"));
                }
                Ok(client.send(Request::from_parts(parts, Body::from(body))).await?)
            }
        })
    };
    (Client::new(service, "default"), dead)
}

#[tokio::test]
async fn a_journal_that_was_deleted_while_nobody_ran_is_missed_and_one_that_is_empty_lets_go_of_its_name() {
    let world = World::without_controller("index").await;
    let (kept, lost, empty) = (scope("kept"), scope("lost"), scope("empty"));
    let first = journals(world.client().await).closing_after(Duration::from_millis(200));
    publish(&first.of(&kept), 0..2).await;
    publish(&first.of(&lost), 0..2).await;
    let journal = first.of(&empty);
    journal
        .commit(|journal, now| journal.claim("a", claim("a", now), TimeDelta::seconds(60)))
        .await
        .unwrap();
    journal
        .commit(|journal, _| journal.withdraw("a", "claim-of-a"))
        .await
        .unwrap();
    wait_for("an empty journal to go", || async {
        (parts(&world, "head").await.len() == 2).then_some(())
    })
    .await;
    let head = parts(&world, "head")
        .await
        .into_iter()
        .find(|m| m.name_any() == lost.journal_name());
    delete(&world, &head.unwrap()).await;

    let second = journals(world.client().await);
    let mut listing = second.begin_listing();
    let found = second.next(&mut listing).await.unwrap().unwrap().len();
    assert_eq!(found, 2, "those that are there, and the one that is missed");
    assert!(second.next(&mut listing).await.unwrap().is_none());
    assert!(second.of(&lost).view().await.unwrap().lost_at.is_some());
    assert!(second.of(&kept).view().await.unwrap().lost_at.is_none());
    assert_eq!(second.of(&kept).view().await.unwrap().credentials.len(), 2);
    // An empty one is begun anew as if it had never been.
    publish(&second.of(&empty), 0..1).await;
    assert_eq!(read(&world, &empty).await, (1, false));
}

/// Invariant 5.
#[tokio::test]
async fn a_secret_that_somebody_else_wrote_meanwhile_is_not_written_over_unasked() {
    let case = Case::new().await;
    let credential = case.issued("a", json!({})).await;
    let (secrets, seal) = (case.secrets(), SealKey::new(vec![7; 32]).unwrap());
    // A successor writes right before the first write of a process that was frozen.
    let slow = {
        let (client, secrets) = (case.client.clone(), secrets.clone());
        tower::service_fn(move |request: Request<Body>| {
            let (client, secrets) = (client.clone(), secrets.clone());
            async move {
                if request.method() == Method::PUT {
                    let written = json!({"stringData": {"npm_token": "of the successor"}});
                    secrets
                        .patch("a", &PatchParams::default(), &Patch::Merge(written))
                        .await?;
                }
                Ok::<_, tower::BoxError>(client.send(request).await?)
            }
        })
    };
    let cluster = Cluster::new(Client::new(slow, "default"), SYSTEM.to_owned());
    let now = chrono::Utc::now();
    let live = live(&claim("a", now), now);
    let metadata = SecretMetadata {
        name: "a".to_owned(),
        type_: SecretType::Opaque,
        own: OwnMetadata::default(),
        seal: String::new(),
        expires_at: String::new(),
    };
    let known = Write {
        live: Some(&live),
        absent: false,
    };
    let asked = AtomicUsize::new(0);
    let may = |contended: bool| {
        asked.fetch_add(1, Ordering::SeqCst);
        ready(!contended)
    };
    let data = [("npm_token".to_owned(), Zeroizing::new(b"late".to_vec()))].into();
    let owner = Owner::of(&credential);
    let wrote = cluster.write_secret(&owner, &metadata, &data, &seal, known, may).await;
    assert!(matches!(wrote, Err(WriteError::Withheld)), "{wrote:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_ne!(case.value("a", "npm_token").await.as_deref(), Some("late"));
}
