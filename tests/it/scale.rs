//! What a change costs does not grow: the bench's figures in a smaller form, on an API server of their own.

use std::time::Duration;

use futures::StreamExt;
use serde_json::json;

use crate::support::*;

const IN_ONE: usize = 200;
const SERVICES: usize = 20;
const IN_EACH: usize = 10;

/// Invariant 14.
#[tokio::test]
async fn hundreds_in_one_budget_and_over_many_are_each_minted_once_with_few_calls_and_a_restart_reads_no_secret() {
    let world = World::start("scale").await;
    let wide = json!({"rateLimit": {"limit": 2000, "window": "1h"}});
    let case = Setup::within(world.clone(), generous()).connection(wide).case().await;
    case.issued("first", json!({"service": "warm"})).await;
    let before = Calls::of(&world).await;
    let over_many = (0..SERVICES * IN_EACH).map(|i| (format!("m{i:03}"), format!("s{:02}", i % SERVICES)));
    let in_one = (0..IN_ONE).map(|i| (format!("o{i:03}"), "one".to_owned()));
    let all: Vec<(String, String)> = over_many.chain(in_one).collect();
    let case = &case;
    futures::stream::iter(&all)
        .for_each_concurrent(16, |(name, service)| async move {
            case.apply(name, json!({"service": service})).await;
        })
        .await;
    for (name, _) in &all {
        case.until_ready_is(name, "True", "Issued").await;
    }
    let minted = || case.posts() - case.posts_for("warm");
    assert_eq!(minted(), all.len(), "each once");
    let after = Calls::of(&world).await;
    let for_ten = |calls: fn(&Calls) -> u64| (calls(&after) - calls(&before)) * 10 / all.len() as u64;
    // Dry run and write; one create of the credential is this test's own.
    assert_eq!(
        for_ten(|calls| calls.secrets),
        20,
        "writes of Secrets for ten credentials"
    );
    // The bench counts 26 on a quiet machine: a status and an Event each, and journals. The less time there is to spare, the
    // fewer outcomes share a commit, and the more wait for so long that they are told so.
    let rest = for_ten(|calls| calls.journals + calls.credentials + calls.events) - 10;
    eprintln!("{rest} writes of journals, statuses and Events for ten credentials");
    assert!(
        rest <= 40,
        "{rest} writes of journals, statuses and Events for ten credentials"
    );
    let reads = for_ten(|calls| calls.secrets_read);
    assert!(reads <= 2, "{reads} reads of Secrets for ten credentials");

    let before = world.secrets_read().await;
    world.kill_controller();
    world.start_controller();
    // A newcomer goes after all were looked at.
    case.issued("last", json!({"service": "warm"})).await;
    let read = world.secrets_read().await - before;
    assert!(read <= 5, "{read} Secrets were read after a restart");
    assert_eq!(minted(), all.len());
}

/// Invariant 13.
#[tokio::test]
async fn a_budget_in_which_nothing_matters_any_more_is_let_go_of_and_begun_anew_when_it_is_needed() {
    let world = World::without_controller("idle-budgets").await;
    let soon = ["CLOSE_IDLE_AFTER=1".to_owned()];
    let kubeconfig = world.controller_kubeconfig();
    let _running = world.spawn_with(&soon, "idle", &kubeconfig);
    let short = json!({"rateLimit": {"limit": 20, "window": "5s"}});
    let case = Setup::within(world.clone(), generous().ttl(Duration::from_secs(20)))
        .connection(short)
        .case()
        .await;
    for round in 1..=2 {
        case.issued("x", json!({"service": "of-a-day"})).await;
        case.delete("x").await;
        wait_for("its journal to go, and then all that is kept of its budget", || async {
            let let_go = world.log().matches("a budget is let go of").count();
            (let_go == round && case.journal("of-a-day").await.is_none()).then_some(())
        })
        .await;
        assert_eq!(case.posts_for("of-a-day"), round);
    }
}

/// How often objects of the controller's concern were written so far, dry runs included, and Secrets read.
struct Calls {
    secrets: u64,
    events: u64,
    journals: u64,
    credentials: u64,
    secrets_read: u64,
}

impl Calls {
    async fn of(world: &World) -> Self {
        let verbs = ["POST", "PUT", "PATCH", "DELETE", "APPLY"];
        let of = |resource: &'static str| {
            world.requests(move |line| {
                line.contains(&format!("resource=\"{resource}\""))
                    && verbs.iter().any(|verb| line.contains(&format!("verb=\"{verb}\"")))
            })
        };
        Self {
            secrets: of("secrets").await,
            events: of("events").await,
            journals: of("configmaps").await,
            credentials: of("ephemeralcredentials").await,
            secrets_read: world.secrets_read().await,
        }
    }
}
