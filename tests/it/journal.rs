//! The journal's compare-and-swap: the fence that everything else stands behind.

use std::sync::{Arc, Mutex};

use chittyconnect_operator::api::RateScope;
use chittyconnect_operator::cluster::Cluster;
use chittyconnect_operator::cluster::journal::Journals;
use chittyconnect_operator::core::journal::Scope;
use chittyconnect_operator::core::seal::SealKey;
use http::{Method, Request};
use kube::Client;
use kube::client::Body;

use crate::support::*;

fn scope(name: &str) -> Scope {
    Scope {
        origin: "https://broker.example".to_owned(),
        kind: RateScope::Service,
        of: name.to_owned(),
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
