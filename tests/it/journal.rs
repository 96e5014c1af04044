//! The journal's compare-and-swap: the fence that everything else stands behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_not_made_again() {
    let world = World::without_controller("lost-answer").await;
    let client = world.client().await;
    let lose = Arc::new(AtomicBool::new(false));
    let flaky = {
        let (client, lose) = (client.clone(), Arc::clone(&lose));
        tower::service_fn(move |request: Request<Body>| {
            let (client, lose) = (client.clone(), Arc::clone(&lose));
            async move {
                let writes = [Method::PUT, Method::POST].contains(request.method());
                let answer = client.send(request).await?;
                if writes && lose.swap(false, Ordering::SeqCst) {
                    return Err("the connection was cut before the answer".into());
                }
                Ok::<_, tower::BoxError>(answer)
            }
        })
    };
    let journal = journals(Client::new(flaky, "default")).of(&scope("lost-answer"));
    // The first write creates it, the others replace it.
    for n in 1..=3 {
        lose.store(true, Ordering::SeqCst);
        journal.commit(|journal, _| journal.throttle.count += 1).await.unwrap();
        assert!(!lose.load(Ordering::SeqCst), "no answer was lost");
        assert_eq!(journal.fresh(|journal| journal.throttle.count).await.unwrap(), n);
    }
}
