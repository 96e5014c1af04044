//! Credentials that follow another: the same tokens in Secrets of their own, by their owner's word alone, and for no more
//! mints than one credential makes.

use std::sync::Arc;
use std::time::Duration;

use chittyconnect_operator::api::EphemeralCredential;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PropagationPolicy};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::on_demand::{Pods, mounting};
use crate::support::*;

static WORLD: OnceCell<Arc<World>> = OnceCell::const_new();

/// One whose tests have namespaces besides their own.
async fn world() -> Arc<World> {
    WORLD.get_or_init(|| World::start("sharing")).await.clone()
}

/// A namespace beside that of a case.
struct Beside {
    name: String,
    credentials: Api<EphemeralCredential>,
    secrets: Api<Secret>,
}

impl Beside {
    async fn new(case: &Case, suffix: &str, labels: Value) -> Self {
        let name = format!("{}-{suffix}", case.namespace);
        create_namespace(&case.client, &name, &labels).await;
        Self {
            credentials: Api::namespaced(case.client.clone(), &name),
            secrets: Api::namespaced(case.client.clone(), &name),
            name,
        }
    }

    /// A credential here that follows `source` of the case, with `over` merged over its spec.
    async fn follow(&self, case: &Case, name: &str, source: &str, over: Value) -> EphemeralCredential {
        self.follow_in(&case.namespace, name, source, over).await
    }

    async fn follow_in(&self, namespace: &str, name: &str, source: &str, over: Value) -> EphemeralCredential {
        let mut spec = json!({"from": {"namespace": namespace, "name": source}});
        merge(&mut spec, over);
        let manifest = json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
            "metadata": {"name": name, "namespace": self.name}, "spec": spec,
        });
        apply(&self.credentials, &manifest).await
    }

    async fn until(
        &self,
        case: &Case,
        name: &str,
        holds: impl Fn(&EphemeralCredential) -> bool,
    ) -> EphemeralCredential {
        let mut last = None;
        for _ in 0..1500 {
            last = self.credentials.get_opt(name).await.unwrap();
            if let Some(credential) = last.as_ref().filter(|c| holds(c)) {
                return credential.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "waited in vain for {}/{name}; it is {:#?}\nlog:\n{}",
            self.name,
            last.and_then(|c| c.status),
            case.world.log_of(&self.name)
        );
    }

    async fn until_ready_is(&self, case: &Case, name: &str, status: &str, reason: &str) -> EphemeralCredential {
        self.until(case, name, |c| {
            let (is, why, _) = condition(c, "Ready");
            let observed = c.status.as_ref().and_then(|s| s.observed_generation);
            is == status && why == reason && observed == c.metadata.generation
        })
        .await
    }

    async fn until_revision(&self, case: &Case, name: &str, revision: u64) -> EphemeralCredential {
        self.until(case, name, |c| {
            c.status.as_ref().and_then(|s| s.revision) == Some(revision) && condition(c, "Ready").0 == "True"
        })
        .await
    }

    async fn value(&self, secret: &str, key: &str) -> Option<String> {
        value_of(&self.secrets.get_opt(secret).await.unwrap()?, key)
    }

    async fn until_gone(&self, secret: &str) {
        wait_for("a Secret to go", || async {
            let there = self.secrets.get_opt(secret).await.unwrap();
            there.is_none().then_some(())
        })
        .await;
    }
}

fn value_of(secret: &Secret, key: &str) -> Option<String> {
    let value = secret.data.as_ref()?.get(key)?;
    Some(String::from_utf8(value.0.clone()).unwrap())
}

/// A case whose connection allows what `chittyid` needs to every namespace that begins with its name.
async fn case() -> Case {
    case_within(world().await, generous()).await
}

async fn case_within(world: Arc<World>, builder: testbed::chittyconnect::Builder) -> Case {
    let case = Setup::within(world, builder).case().await;
    let mine = format!("{}*", case.namespace);
    let rule = json!([{"namespaces": [mine], "services": ["chittyid", "probe"], "purposes": ["*"], "repos": ["*"]}]);
    case.connect_seen(json!({"access": rule})).await;
    case
}

fn shared_with(beside: &[&Beside]) -> Value {
    let names: Vec<&str> = beside.iter().map(|b| b.name.as_str()).collect();
    json!({"sharedWith": {"namespaces": names}})
}

#[tokio::test]
async fn those_who_follow_have_the_same_tokens_in_secrets_of_their_own_and_cost_no_mint() {
    let case = case().await;
    let (a, b) = (
        Beside::new(&case, "a", json!({})).await,
        Beside::new(&case, "b", json!({})).await,
    );
    // One is there before the other, and one comes later: neither waits for a mint.
    a.follow(&case, "early", "deploy", json!({})).await;
    a.until_ready_is(&case, "early", "False", "NotShared").await;
    case.issued("deploy", shared_with(&[&a, &b])).await;
    let early = a.until_revision(&case, "early", 1).await;
    let layout = json!({"secrets": [
        {"name": "npm", "presets": ["npmrc"]},
        {"name": "own", "data": {"TOKEN": "{{ npm_token | upper }}"}, "labels": {"team": "b"}},
    ]});
    b.follow(&case, "late", "deploy", layout).await;
    let late = b.until_revision(&case, "late", 1).await;

    let token = case.value("deploy", "npm_token").await.unwrap();
    assert_eq!(a.value("early", "npm_token").await.as_ref(), Some(&token));
    assert_eq!(
        b.value("npm", ".npmrc").await,
        Some(format!("//registry.npmjs.org/:_authToken={token}\n"))
    );
    assert_eq!(b.value("own", "TOKEN").await, Some(token.to_uppercase()));
    assert_eq!(case.posts_for("chittyid"), 1);

    let source = case.until_revision("deploy", 1).await.status.unwrap();
    for follower in [early, late] {
        let (status, namespace) = (follower.status.clone().unwrap(), follower.namespace().unwrap());
        assert_eq!(
            (status.expires_at, status.issued_at, status.renew_at, &status.outputs),
            (source.expires_at, source.issued_at, source.renew_at, &source.outputs)
        );
        let api: Api<Secret> = Api::namespaced(case.client.clone(), &namespace);
        for name in &status.secrets {
            let secret = api.get(name).await.unwrap();
            let ends = value_of(&secret, "expires_at").unwrap();
            assert_eq!(ends, case.value("deploy", "expires_at").await.unwrap());
            let owner = &secret.owner_references()[0];
            assert_eq!(Some(&owner.uid), follower.metadata.uid.as_ref());
            assert_eq!(
                secret.labels()["app.kubernetes.io/managed-by"],
                "chittyconnect-operator"
            );
            assert_eq!(secret.annotations()["connect.chitty.cc/expires-at"], ends);
        }
        let message = condition(&follower, "Ready").2;
        let says = format!(
            "revision 1 of EphemeralCredential {}/deploy is valid until ",
            case.namespace
        );
        assert!(message.starts_with(&says), "{message}");
    }

    // One mint replaces all of them.
    case.rotate("deploy", "1").await;
    case.until_revision("deploy", 2).await;
    a.until_revision(&case, "early", 2).await;
    b.until_revision(&case, "late", 2).await;
    let token = case.value("deploy", "npm_token").await.unwrap();
    assert_eq!(a.value("early", "npm_token").await.as_ref(), Some(&token));
    assert_eq!(b.value("own", "TOKEN").await, Some(token.to_uppercase()));
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn whoever_leaves_takes_the_followers_secret_along_at_once_and_nothing_is_revoked() {
    let case = case().await;
    let a = Beside::new(&case, "a", json!({"team": "x"})).await;
    case.issued("deploy", shared_with(&[&a])).await;
    a.follow(&case, "f", "deploy", json!({})).await;
    a.until_revision(&case, "f", 1).await;

    // The owner of the tokens.
    case.patch("deploy", json!({"spec": {"sharedWith": null}})).await;
    a.until_gone("f").await;
    let refused = a.until_ready_is(&case, "f", "False", "NotShared").await;
    assert!(condition(&refused, "Ready").2.contains("its owner can change that"));
    assert_eq!(refused.status.unwrap().secrets, Vec::<String>::new());
    case.patch("deploy", json!({"spec": shared_with(&[&a])})).await;
    a.until_revision(&case, "f", 1).await;

    // The administrator.
    let only = json!([{"namespaces": [case.namespace], "services": ["*"], "purposes": ["*"], "repos": ["*"]}]);
    case.patch_connection(json!({"spec": {"access": only}})).await;
    a.until_gone("f").await;
    let refused = a.until_ready_is(&case, "f", "False", "NotPermitted").await;
    let message = condition(&refused, "Ready").2;
    assert!(message.contains(&format!("lets namespace {}", a.name)), "{message}");
    let both = json!([{"namespaces": [case.namespace, a.name], "services": ["*"], "purposes": ["*"], "repos": ["*"]}]);
    case.patch_connection(json!({"spec": {"access": both}})).await;
    a.until_revision(&case, "f", 1).await;

    // Who follows: by name, and orphaned, so that garbage collection has no part in it.
    a.credentials.delete("f", &DeleteParams::default()).await.unwrap();
    a.until_gone("f").await;
    a.follow(&case, "orphan", "deploy", json!({})).await;
    a.until_revision(&case, "orphan", 1).await;
    a.credentials.delete("orphan", &orphaning()).await.unwrap();
    a.until_gone("orphan").await;

    let (ledger, now) = (case.broker.ledger(), case.broker.now());
    assert_eq!(ledger.posts_for("chittyid").len(), 1);
    let token = case.value("deploy", "npm_token").await.unwrap();
    assert!(ledger.mint_of(&token).is_some_and(|mint| mint.is_live(now)));

    // The source itself.
    a.follow(&case, "last", "deploy", json!({})).await;
    a.until_revision(&case, "last", 1).await;
    case.delete("deploy").await;
    a.until_gone("last").await;
    a.until_ready_is(&case, "last", "False", "SourceNotFound").await;
    case.apply("deploy", shared_with(&[&a])).await;
    a.until(&case, "last", |c| condition(c, "Ready").0 == "True").await;
    let token = case.value("deploy", "npm_token").await;
    assert_eq!(a.value("last", "npm_token").await, token);
}

#[tokio::test]
async fn a_follower_ends_with_the_token_it_follows() {
    let case = case_within(world().await, generous().ttl(Duration::from_secs(12))).await;
    let a = Beside::new(&case, "a", json!({})).await;
    case.issued("deploy", shared_with(&[&a])).await;
    a.follow(&case, "f", "deploy", json!({})).await;
    a.until_revision(&case, "f", 1).await;
    case.patch("deploy", json!({"spec": {"suspend": true}})).await;
    let end = case
        .until_ready_is("deploy", "True", "Suspended")
        .await
        .status
        .unwrap()
        .expires_at
        .unwrap();
    a.until_gone("f").await;
    let late = chrono::Utc::now() - end;
    assert!(
        late < chrono::TimeDelta::seconds(3) && late > chrono::TimeDelta::seconds(-2),
        "{late}"
    );
    a.until(&case, "f", |c| condition(c, "Issued").0 == "False").await;
}

#[tokio::test]
async fn one_whose_secret_cannot_be_written_holds_up_neither_the_source_nor_the_others() {
    let case = case().await;
    let (a, b, full) = (
        Beside::new(&case, "a", json!({})).await,
        Beside::new(&case, "b", json!({})).await,
        Beside::new(&case, "full", json!({})).await,
    );
    let taken = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "f"}, "stringData": {"k": "v"}});
    apply(&a.secrets, &taken).await;
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"secrets": "0"}},
    });
    apply::<k8s_openapi::api::core::v1::ResourceQuota>(&Api::namespaced(case.client.clone(), &full.name), &quota).await;
    wait_for("the quota to hold", || async {
        let quotas: Api<k8s_openapi::api::core::v1::ResourceQuota> = Api::namespaced(case.client.clone(), &full.name);
        quotas.get("none").await.ok()?.status?.hard.map(|_| ())
    })
    .await;
    for beside in [&a, &b, &full] {
        beside.follow(&case, "f", "deploy", json!({})).await;
    }
    case.issued("deploy", shared_with(&[&a, &b, &full])).await;
    a.until_ready_is(&case, "f", "False", "SecretConflict").await;
    let refused = full.until_ready_is(&case, "f", "False", "SecretRefused").await;
    assert!(condition(&refused, "Ready").2.contains("quota"), "{refused:?}");
    b.until_revision(&case, "f", 1).await;
    for n in 2..5 {
        case.rotate("deploy", &n.to_string()).await;
        case.until_revision("deploy", n).await;
        b.until_revision(&case, "f", n).await;
    }
    assert_eq!(a.value("f", "k").await.as_deref(), Some("v"));
    assert_eq!(case.posts_for("chittyid"), 4);
    // Out of the way, it is given the token without a mint.
    a.secrets.delete("f", &DeleteParams::default()).await.unwrap();
    a.until_revision(&case, "f", 4).await;
    assert_eq!(case.posts_for("chittyid"), 4);
}

const NAMESPACES: usize = 20;

/// Invariant 2.
#[tokio::test]
async fn twenty_namespaces_that_share_one_credential_make_no_more_mints_than_one() {
    let world = World::start("twenty").await;
    let case = case_within(world.clone(), generous().ttl(Duration::from_secs(15))).await;
    let mut all = Vec::new();
    for n in 0..NAMESPACES {
        all.push(Beside::new(&case, &n.to_string(), json!({})).await);
    }
    let chosen: Vec<&Beside> = all.iter().collect();
    case.issued("deploy", shared_with(&chosen)).await;
    for beside in &all {
        beside.follow(&case, "f", "deploy", json!({})).await;
    }
    for beside in &all {
        beside.until(&case, "f", |c| condition(c, "Ready").0 == "True").await;
    }
    // Three rotations that are due by themselves, and a controller that is killed in between.
    let start = case.posts_for("chittyid");
    case.until("deploy", |c| c.status.as_ref().and_then(|s| s.revision) >= Some(3))
        .await;
    world.kill_controller();
    world.start_controller();
    case.until("deploy", |c| c.status.as_ref().and_then(|s| s.revision) >= Some(5))
        .await;
    case.patch("deploy", json!({"spec": {"suspend": true}})).await;
    let last = case
        .until_ready_is("deploy", "True", "Suspended")
        .await
        .status
        .unwrap()
        .revision
        .unwrap();
    let token = case.value("deploy", "npm_token").await.unwrap();
    for beside in &all {
        wait_for("the last token", || async {
            (beside.value("f", "npm_token").await.as_ref() == Some(&token)).then_some(())
        })
        .await;
    }
    let ledger = case.broker.ledger();
    let posts = ledger.posts_for("chittyid").len();
    println!("{NAMESPACES} namespaces: revision {last}, {posts} requests, {start} of them for the first");
    assert_eq!(
        ledger.mints.len(),
        usize::try_from(last).unwrap(),
        "a mint for each revision, and no other"
    );
    assert_eq!(posts, ledger.mints.len());
}

#[tokio::test]
async fn a_restart_reads_and_writes_nothing_of_those_who_follow() {
    let world = World::start("sharing-restart").await;
    let case = case_within(world.clone(), generous()).await;
    let a = Beside::new(&case, "a", json!({})).await;
    case.issued("deploy", shared_with(&[&a])).await;
    for n in 0..40 {
        a.follow(&case, &format!("f{n}"), "deploy", json!({})).await;
    }
    for n in 0..40 {
        a.until_revision(&case, &format!("f{n}"), 1).await;
    }
    let versions = async || {
        let all = a.secrets.list(&ListParams::default()).await.unwrap();
        let credentials = a.credentials.list(&ListParams::default()).await.unwrap();
        let secrets = all.items.iter().map(|s| s.resource_version().unwrap());
        let credentials = credentials.items.iter().map(|c| c.resource_version().unwrap());
        secrets.chain(credentials).collect::<Vec<_>>()
    };
    case.settle().await;
    let before = versions().await;
    world.kill_controller();
    let reads = world.secrets_read().await;
    world.start_controller();
    case.settle().await;
    a.follow(&case, "f-after", "deploy", json!({})).await;
    a.until_revision(&case, "f-after", 1).await;
    let read = world.secrets_read().await - reads;
    // The keys, the probes, the one that came, and what this test itself reads while it waits: none for each of the forty.
    assert!(read < 30, "{read} Secrets were read");
    a.credentials.delete("f-after", &DeleteParams::default()).await.unwrap();
    a.until_gone("f-after").await;
    assert_eq!(versions().await, before);
    assert_eq!(case.posts_for("chittyid"), 1);
}

fn orphaning() -> DeleteParams {
    DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        ..DeleteParams::default()
    }
}

#[tokio::test]
async fn what_was_decided_while_nobody_looked_is_done_at_the_start() {
    let world = World::start("sharing-down").await;
    let case = case_within(world.clone(), generous()).await;
    let (a, b) = (
        Beside::new(&case, "a", json!({})).await,
        Beside::new(&case, "b", json!({})).await,
    );
    case.issued("deploy", shared_with(&[&a, &b])).await;
    a.follow(&case, "orphan", "deploy", json!({})).await;
    a.follow(&case, "stays", "deploy", json!({})).await;
    b.follow(&case, "refused", "deploy", json!({})).await;
    a.until_revision(&case, "orphan", 1).await;
    a.until_revision(&case, "stays", 1).await;
    b.until_revision(&case, "refused", 1).await;
    world.kill_controller();
    a.credentials.delete("orphan", &orphaning()).await.unwrap();
    case.patch("deploy", json!({"spec": shared_with(&[&a])})).await;
    world.start_controller();
    a.until_gone("orphan").await;
    b.until_gone("refused").await;
    b.until_ready_is(&case, "refused", "False", "NotShared").await;
    let token = case.value("deploy", "npm_token").await;
    assert_eq!(a.value("stays", "npm_token").await, token);

    // The journal is lost, and with it who follows: what they have stays, and is known again.
    world.kill_controller();
    let maps: Api<ConfigMap> = Api::namespaced(case.client.clone(), SYSTEM);
    let journals = ListParams::default().labels("connect.chitty.cc/journal");
    maps.delete_collection(&DeleteParams::default(), &journals)
        .await
        .unwrap();
    let before = a.secrets.get("stays").await.unwrap();
    world.start_controller();
    let uid = a.credentials.get("stays").await.unwrap().uid().unwrap();
    wait_for("the follower to be known again", || async {
        let parts = case.journal_parts("chittyid").await;
        let known = |map: &ConfigMap| {
            let text = map.data.as_ref().map(|d| d["journal.json"].clone()).unwrap_or_default();
            text.contains(&uid) && text.contains("\"followed\"")
        };
        parts.iter().any(known).then_some(())
    })
    .await;
    let after = a.secrets.get("stays").await.unwrap();
    assert_eq!((after.uid(), &after.data), (before.uid(), &before.data));
    a.credentials.delete("stays", &orphaning()).await.unwrap();
    a.until_gone("stays").await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

#[tokio::test]
async fn a_changed_layout_and_another_source_cost_no_mint_and_leave_nothing_behind() {
    let case = case().await;
    let a = Beside::new(&case, "a", json!({})).await;
    case.issued("deploy", shared_with(&[&a])).await;
    case.issued("other", shared_with(&[&a])).await;
    a.follow(
        &case,
        "f",
        "deploy",
        json!({"secrets": [{"name": "one"}, {"name": "two"}]}),
    )
    .await;
    a.until_revision(&case, "f", 1).await;
    a.follow(
        &case,
        "f",
        "deploy",
        json!({"secrets": [{"name": "two", "presets": ["dotenv"]}, {"name": "three"}]}),
    )
    .await;
    a.until_gone("one").await;
    let now = a.until_ready_is(&case, "f", "True", "Issued").await;
    assert_eq!(now.status.unwrap().secrets, ["three", "two"]);
    assert!(a.value("two", ".env").await.is_some() && a.value("two", "npm_token").await.is_none());
    let of = async |name: &str| case.value(name, "npm_token").await;
    assert_eq!(a.value("three", "npm_token").await, of("deploy").await);

    a.follow(&case, "f", "other", json!({"secrets": [{"name": "three"}]}))
        .await;
    a.until_gone("two").await;
    let now = a.until_ready_is(&case, "f", "True", "Issued").await;
    assert!(condition(&now, "Ready").2.contains("/other is valid until"));
    assert_eq!(a.value("three", "npm_token").await, of("other").await);
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn what_somebody_did_to_a_followers_secret_is_undone_without_a_mint() {
    let case = case().await;
    let a = Beside::new(&case, "a", json!({})).await;
    case.issued("deploy", shared_with(&[&a])).await;
    a.follow(&case, "f", "deploy", json!({})).await;
    a.until_revision(&case, "f", 1).await;
    let token = case.value("deploy", "npm_token").await.unwrap();
    for edit in [
        json!({"stringData": {"npm_token": "forged"}}),
        json!({"stringData": {"more": "x"}}),
        json!({"metadata": {"annotations": {"connect.chitty.cc/expires-at": "2099-01-01T00:00:00Z"}}}),
        json!({"metadata": {"ownerReferences": null}}),
    ] {
        a.secrets
            .patch("f", &PatchParams::default(), &Patch::Merge(edit))
            .await
            .unwrap();
        wait_for("it to be undone", || async {
            let secret = a.secrets.get_opt("f").await.unwrap()?;
            let ends = value_of(&secret, "expires_at")?;
            let good = value_of(&secret, "npm_token").as_ref() == Some(&token)
                && value_of(&secret, "more").is_none()
                && secret.annotations()["connect.chitty.cc/expires-at"] == ends
                && secret.owner_references().len() == 1;
            good.then_some(())
        })
        .await;
    }
    a.secrets.delete("f", &DeleteParams::default()).await.unwrap();
    wait_for("it to be there again", || async { a.value("f", "npm_token").await }).await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

#[tokio::test]
async fn values_are_taken_only_from_where_they_are_exactly_as_they_came() {
    let case = case().await;
    let a = Beside::new(&case, "a", json!({})).await;
    let layout =
        json!({"secrets": [{"name": "deploy", "presets": ["outputs"], "data": {"npm_token": "{{ account_id }}"}}]});
    let mut over = shared_with(&[&a]);
    merge(&mut over, layout);
    case.issued("deploy", over).await;
    a.follow(&case, "f", "deploy", json!({})).await;
    let waits = a.until_ready_is(&case, "f", "False", "Issuing").await;
    let message = condition(&waits, "Ready").2;
    assert!(message.contains("do not hold its outputs as they came"), "{message}");
    assert!(a.value("f", "npm_token").await.is_none());
    case.patch(
        "deploy",
        json!({"spec": {"secrets": [
            {"name": "deploy", "presets": ["outputs"], "data": {"npm_token": "{{ account_id }}"}}, {"name": "raw"},
        ]}}),
    )
    .await;
    a.until(&case, "f", |c| condition(c, "Ready").0 == "True").await;
    assert_eq!(a.value("f", "npm_token").await, case.value("raw", "npm_token").await);
    assert_eq!(case.posts_for("chittyid"), 2);
}

#[tokio::test]
async fn whoever_needs_an_output_that_did_not_come_is_told_so_and_harms_nobody() {
    let case = case().await;
    let (a, b) = (
        Beside::new(&case, "a", json!({})).await,
        Beside::new(&case, "b", json!({})).await,
    );
    case.issued("deploy", shared_with(&[&a, &b])).await;
    a.follow(
        &case,
        "f",
        "deploy",
        json!({"secrets": [{"name": "f", "data": {"x": "{{ no_such }}"}}]}),
    )
    .await;
    b.follow(&case, "f", "deploy", json!({})).await;
    let told = a.until_ready_is(&case, "f", "False", "InvalidTemplate").await;
    assert!(condition(&told, "Ready").2.contains("key x needs no_such"));
    assert!(a.secrets.get_opt("f").await.unwrap().is_none());
    b.until_revision(&case, "f", 1).await;
    case.until_ready_is("deploy", "True", "Issued").await;
}

#[tokio::test]
async fn what_contradicts_itself_is_refused_by_the_api_server() {
    let case = case().await;
    let from = json!({"namespace": "a", "name": "b"});
    let none = json!({"connection": null, "service": null, "purpose": null, "repo": null, "from": from});
    let with = |over: Value| {
        let mut spec = none.clone();
        merge(&mut spec, over);
        spec
    };
    let params = PatchParams::apply("tests").force().dry_run();
    let attempt = async |over: Value| {
        let manifest = case.manifest("x", over);
        let patch = Patch::Apply(&manifest);
        case.credentials()
            .patch("x", &params, &patch)
            .await
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    attempt(none.clone()).await.unwrap();
    for over in [
        json!({"connection": "another"}),
        json!({"service": "s"}),
        json!({"purpose": "p"}),
        json!({"repo": "o/r"}),
        json!({"runId": "1"}),
        json!({"type": "t"}),
        json!({"context": {"a": "b"}}),
        json!({"rotation": {"renewBefore": "5m"}}),
        json!({"rotation": {"maxLifetime": "5m"}}),
        json!({"activation": "OnDemand"}),
        json!({"sharedWith": {"namespaces": ["a"]}}),
    ] {
        let refused = attempt(with(over.clone())).await.expect_err(&over.to_string());
        assert!(
            refused.contains("spec.from follows another credential"),
            "{over}: {refused}"
        );
    }
    for (over, why) in [
        (json!({"service": null}), "spec.service and spec.purpose are required"),
        (
            json!({"service": null, "from": null}),
            "spec.service and spec.purpose are required",
        ),
        (
            json!({"sharedWith": {}}),
            "name namespaces, a namespaceSelector, or both",
        ),
        (json!({"sharedWith": {"namespaces": ["*"]}}), "sharedWith.namespaces[0]"),
        (
            json!({"sharedWith": {"namespaces": ["team-*"]}}),
            "sharedWith.namespaces[0]",
        ),
        (
            json!({"sharedWith": {"namespaceSelector": {}}}),
            "would choose every namespace",
        ),
        (
            json!({"sharedWith": {"namespaceSelector": {"matchLabels": {}}}}),
            "would choose every namespace",
        ),
        (
            json!({"sharedWith": {"namespaces": ["a"]}, "secrets": [{"name": "a", "presets": ["dotenv"]}]}),
            "needs a Secret with the preset outputs",
        ),
        (
            json!({"sharedWith": {"namespaces": ["a"]}, "secrets": [{"name": "a", "data": {"x": "y"}}]}),
            "needs a Secret with the preset outputs",
        ),
    ] {
        let refused = attempt(over.clone()).await.expect_err(&over.to_string());
        assert!(refused.contains(why), "{over}: {refused}");
    }
    attempt(json!({"sharedWith": {"namespaces": ["a"]}, "secrets": [{"name": "a"}]}))
        .await
        .unwrap();
    // And neither becomes the other.
    case.apply("x", json!({})).await;
    let api = case.credentials();
    let turn = json!({"spec": none});
    let refused = api
        .patch("x", &PatchParams::default(), &Patch::Merge(turn))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("delete it, and make another"), "{refused}");
}

#[tokio::test]
async fn a_pod_that_uses_a_followers_secret_asks_for_the_token_of_a_source_on_demand() {
    let case = case().await;
    let a = Beside::new(&case, "a", json!({})).await;
    let mut over = shared_with(&[&a]);
    merge(&mut over, json!({"activation": "OnDemand"}));
    case.apply("deploy", over).await;
    case.until_ready_is("deploy", "True", "Idle").await;
    a.follow(&case, "f", "deploy", json!({})).await;
    a.until_ready_is(&case, "f", "True", "Idle").await;
    assert_eq!(case.posts_for("chittyid"), 0);

    let pods = Pods::within(case.client.clone(), &a.name).await;
    pods.bound("p", mounting("f")).await;
    a.until_revision(&case, "f", 1).await;
    assert_eq!(a.value("f", "npm_token").await, case.value("deploy", "npm_token").await);
    assert_eq!(case.posts_for("chittyid"), 1);
    // Whoever may not follow asks for nothing.
    let b = Beside::new(&case, "b", json!({})).await;
    case.apply(
        "other",
        json!({"activation": "OnDemand", "sharedWith": {"namespaces": [a.name]}}),
    )
    .await;
    b.follow(&case, "g", "other", json!({})).await;
    b.until_ready_is(&case, "g", "False", "NotShared").await;
    let pods = Pods::within(case.client.clone(), &b.name).await;
    pods.bound("p", mounting("g")).await;
    case.settle().await;
    case.until_ready_is("other", "True", "Idle").await;
    assert_eq!(case.posts_for("chittyid"), 1);
}

/// A thousand who follow one credential: how long a rotation takes to reach all of them, and what it costs.
#[tokio::test]
#[ignore = "takes minutes; prints its figures"]
async fn soak_a_thousand_followers_of_one_credential() {
    const FOLLOWERS: usize = 1000;
    let world = World::start("thousand").await;
    let case = case_within(world.clone(), generous()).await;
    let mut all = Vec::new();
    for n in 0..NAMESPACES {
        all.push(Beside::new(&case, &n.to_string(), json!({})).await);
    }
    let chosen: Vec<&Beside> = all.iter().collect();
    case.issued("deploy", shared_with(&chosen)).await;
    let (case, all) = (&case, &all);
    futures::stream::iter(0..FOLLOWERS)
        .for_each_concurrent(16, |n| async move {
            let beside = &all[n % NAMESPACES];
            beside.follow(case, &format!("f{n}"), "deploy", json!({})).await;
        })
        .await;
    let reached = async |revision: u64| {
        wait_for("all followers", || async {
            let mut ready = 0;
            for beside in all {
                let there = beside.credentials.list(&ListParams::default()).await.ok()?;
                let at = |c: &EphemeralCredential| c.status.as_ref().and_then(|s| s.revision) == Some(revision);
                ready += there.items.iter().filter(|c| at(c)).count();
            }
            (ready == FOLLOWERS).then_some(())
        })
        .await;
    };
    reached(1).await;
    let writes = async || {
        world
            .requests(|l| {
                ["POST", "PUT", "PATCH"]
                    .iter()
                    .any(|v| l.contains(&format!("verb=\"{v}\"")))
            })
            .await
    };
    let reads = async || world.requests(|l| l.contains("verb=\"GET\"")).await;
    let (wrote, read) = (writes().await, reads().await);
    case.rotate("deploy", "1").await;
    case.until_revision("deploy", 2).await;
    let began = std::time::Instant::now();
    reached(2).await;
    let took = began.elapsed();
    let (wrote, read) = (writes().await - wrote, reads().await - read);
    let memory = world.controller_memory();
    println!(
        "{FOLLOWERS} followers: {took:?} from the rotation to the last; {wrote} writes, {read} reads; {memory} KiB resident"
    );
    assert_eq!(case.posts_for("chittyid"), 2);
}

/// What somebody with `edit` in a namespace of its own may try, to read the tokens of another.
mod attacks {
    use kube::Client;
    use kube::api::{ApiResource, DynamicObject, PostParams};

    use super::*;

    /// A case whose credential `deploy` is shared with `friend`, and a tenant beside them that has `edit` in `enemy`.
    struct Siege {
        case: Case,
        friend: Beside,
        enemy: Beside,
        client: Client,
    }

    async fn siege() -> Siege {
        siege_within(world().await).await
    }

    async fn siege_within(world: Arc<World>) -> Siege {
        let case = case_within(world, generous()).await;
        let friend = Beside::new(&case, "friend", json!({"team": "friend"})).await;
        let enemy = Beside::new(&case, "enemy", json!({})).await;
        case.issued("deploy", shared_with(&[&friend])).await;
        friend.follow(&case, "f", "deploy", json!({})).await;
        friend.until_revision(&case, "f", 1).await;
        let user = format!("enemy-of-{}", case.namespace);
        let bindings = Api::namespaced(case.client.clone(), &enemy.name);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "tenant"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        });
        apply::<k8s_openapi::api::rbac::v1::RoleBinding>(&bindings, &binding).await;
        let client = case.world.plane.client_as(&user, &["tenants"]).await.unwrap();
        let mine: Api<EphemeralCredential> = Api::namespaced(client.clone(), &enemy.name);
        wait_for("edit to include credentials", || async {
            mine.list(&ListParams::default()).await.ok()
        })
        .await;
        Siege {
            case,
            friend,
            enemy,
            client,
        }
    }

    impl Siege {
        /// The enemy asks, as itself.
        async fn follow(&self, name: &str, namespace: &str, source: &str, over: Value) {
            let mut spec = json!({"from": {"namespace": namespace, "name": source}});
            merge(&mut spec, over);
            let manifest = json!({
                "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
                "metadata": {"name": name, "namespace": self.enemy.name}, "spec": spec,
            });
            let resource = ApiResource::erase::<EphemeralCredential>(&());
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.enemy.name, &resource);
            let credential: DynamicObject = serde_json::from_value(manifest).unwrap();
            api.create(&PostParams::default(), &credential).await.unwrap();
        }

        /// No object that the enemy can read holds any token that was ever made, and none was made for it.
        async fn assert_held(&self) {
            self.case.settle().await;
            let tokens: Vec<String> = {
                let ledger = self.case.broker.ledger();
                ledger.mints.iter().flat_map(|m| m.secrets.values().cloned()).collect()
            };
            assert!(tokens.len() > 1);
            let secrets = self.enemy.secrets.list(&ListParams::default()).await.unwrap();
            let credentials = self.enemy.credentials.list(&ListParams::default()).await.unwrap();
            let events: Api<k8s_openapi::api::core::v1::Event> =
                Api::namespaced(self.case.client.clone(), &self.enemy.name);
            let events = events.list(&ListParams::default()).await.unwrap();
            let read = [
                serde_json::to_string(&secrets.items).unwrap(),
                serde_json::to_string(&credentials.items).unwrap(),
                serde_json::to_string(&events.items).unwrap(),
            ]
            .concat();
            for token in &tokens {
                let encoded = base64(token);
                assert!(
                    !read.contains(token.as_str()) && !read.contains(encoded.trim_end_matches('=')),
                    "a token leaked"
                );
            }
            assert_eq!(self.case.posts_for("chittyid"), 1);
            assert!(self.friend.value("f", "npm_token").await.is_some());
        }
    }

    #[tokio::test]
    async fn a_source_that_does_not_share_and_one_that_is_not_there_are_told_alike() {
        let siege = siege().await;
        siege.case.issued("unshared", json!({"service": "probe"})).await;
        let namespace = siege.case.namespace.as_str();
        let friend = siege.friend.name.as_str();
        let mut told = Vec::new();
        for (name, namespace, source) in [
            ("chosen-others", namespace, "deploy"),
            ("unshared", namespace, "unshared"),
            ("absent", namespace, "absent"),
            ("nowhere", "no-such-namespace", "deploy"),
            ("of-a-follower", friend, "f"),
        ] {
            siege.follow(name, namespace, source, json!({})).await;
            let refused = siege
                .enemy
                .until_ready_is(&siege.case, name, "False", "NotShared")
                .await;
            let message = condition(&refused, "Ready").2;
            told.push(message.replace(&format!("{namespace}/{source}"), "X"));
        }
        told.dedup();
        assert_eq!(told.len(), 1, "{told:#?}");
        siege.assert_held().await;
        // What is in its own namespace it may know of.
        let own = siege.enemy.name.as_str();
        siege.follow("own", own, "nothing", json!({})).await;
        siege
            .enemy
            .until_ready_is(&siege.case, "own", "False", "SourceNotFound")
            .await;
        siege.follow("itself", own, "itself", json!({})).await;
        siege
            .enemy
            .until_ready_is(&siege.case, "itself", "False", "NotShared")
            .await;
        // And not what it asks next.
        let edit = json!({"spec": {"from": {"namespace": namespace, "name": "absent"}}});
        let api = &siege.enemy.credentials;
        api.patch("own", &PatchParams::default(), &Patch::Merge(edit))
            .await
            .unwrap();
        siege
            .enemy
            .until_ready_is(&siege.case, "own", "False", "NotShared")
            .await;
    }

    #[tokio::test]
    async fn an_owners_word_alone_is_not_enough_where_the_connection_does_not_allow_the_namespace() {
        let siege = siege().await;
        let (case, enemy, friend) = (&siege.case, &siege.enemy, &siege.friend);
        let but = json!([{"namespaces": [case.namespace, friend.name], "services": ["*"], "purposes": ["*"], "repos": ["*"]}]);
        case.patch_connection(json!({"spec": {"access": but}})).await;
        case.patch("deploy", json!({"spec": shared_with(&[friend, enemy])}))
            .await;
        siege.follow("f", &case.namespace, "deploy", json!({})).await;
        enemy.until_ready_is(case, "f", "False", "NotPermitted").await;
        siege.assert_held().await;
        // Nor is a rule that allows it something else.
        let other = json!([
            {"namespaces": [case.namespace, friend.name], "services": ["*"], "purposes": ["*"], "repos": ["*"]},
            {"namespaces": [enemy.name], "services": ["another"], "purposes": ["*"], "repos": ["*"]},
            {"namespaces": [enemy.name], "services": ["*"], "purposes": ["another"], "repos": ["*"]},
            {"namespaces": [enemy.name], "services": ["*"], "purposes": ["*"], "repos": ["CHITTYOS/another"]},
        ]);
        case.patch_connection(json!({"spec": {"access": other}})).await;
        enemy.until_ready_is(case, "f", "False", "NotPermitted").await;
        siege.assert_held().await;
    }

    #[tokio::test]
    async fn a_follower_hands_on_nothing_and_a_source_that_lost_its_permission_neither() {
        let siege = siege().await;
        let (case, enemy, friend) = (&siege.case, &siege.enemy, &siege.friend);
        // The API server lets nobody share what it follows.
        let share = json!({"spec": {"sharedWith": {"namespaces": [enemy.name]}}});
        let api = &friend.credentials;
        let refused = api
            .patch("f", &PatchParams::default(), &Patch::Merge(share))
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("spec.from follows another credential"),
            "{refused}"
        );
        siege.follow("f", &friend.name, "f", json!({})).await;
        enemy.until_ready_is(case, "f", "False", "NotShared").await;
        siege.assert_held().await;
        let but =
            json!([{"namespaces": [friend.name, enemy.name], "services": ["*"], "purposes": ["*"], "repos": ["*"]}]);
        case.patch_connection(json!({"spec": {"access": but}})).await;
        friend.until_gone("f").await;
        friend.until_ready_is(case, "f", "False", "NotPermitted").await;
    }

    #[tokio::test]
    async fn templates_and_names_of_secrets_reach_nothing_of_others() {
        let siege = siege().await;
        let (case, enemy) = (&siege.case, &siege.enemy);
        let foreign =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "prod"}, "stringData": {"k": "v"}});
        apply(&enemy.secrets, &foreign).await;
        case.patch("deploy", json!({"spec": shared_with(&[&siege.friend, enemy])}))
            .await;
        for (name, secret, data, reason) in [
            ("debug", "a", json!({"x": "{{ debug() }}"}), "InvalidTemplate"),
            ("other", "b", json!({"x": "{{ secrets.prod.k }}"}), "InvalidTemplate"),
            ("taken", "prod", json!({"x": "{{ npm_token }}"}), "SecretConflict"),
        ] {
            let over = json!({"secrets": [{"name": secret, "data": data}]});
            siege.follow(name, &case.namespace, "deploy", over).await;
            enemy.until_ready_is(case, name, "False", reason).await;
        }
        assert_eq!(enemy.value("prod", "k").await.as_deref(), Some("v"));
        siege.assert_held().await;
    }

    #[tokio::test]
    async fn a_label_chooses_as_long_as_it_is_there_and_tenants_may_not_set_it() {
        let siege = siege().await;
        let (case, enemy) = (&siege.case, &siege.enemy);
        let selector = json!({"spec": {"sharedWith": {"namespaces": null, "namespaceSelector": {"matchLabels": {"team": "friend"}}}}});
        case.patch("deploy", selector).await;
        siege.follow("f", &case.namespace, "deploy", json!({})).await;
        enemy.until_ready_is(case, "f", "False", "NotShared").await;
        let label = json!({"metadata": {"labels": {"team": "friend"}}});
        let theirs: Api<Namespace> = Api::all(siege.client.clone());
        let refused = theirs
            .patch(&enemy.name, &PatchParams::default(), &Patch::Merge(&label))
            .await;
        assert!(refused.unwrap_err().to_string().contains("forbidden"));
        siege.assert_held().await;
        // An administrator may.
        let all: Api<Namespace> = Api::all(case.client.clone());
        all.patch(&enemy.name, &PatchParams::default(), &Patch::Merge(&label))
            .await
            .unwrap();
        enemy.until_revision(case, "f", 1).await;
        let without = json!({"metadata": {"labels": {"team": null}}});
        all.patch(&enemy.name, &PatchParams::default(), &Patch::Merge(&without))
            .await
            .unwrap();
        enemy.until_gone("f").await;
        enemy.until_ready_is(case, "f", "False", "NotShared").await;
        siege.assert_held().await;
    }

    #[tokio::test]
    async fn a_namespace_that_is_made_anew_has_what_its_name_has_and_nothing_of_before() {
        let siege = siege().await;
        let (case, friend) = (&siege.case, &siege.friend);
        let all: Api<Namespace> = Api::all(case.client.clone());
        all.delete(&friend.name, &DeleteParams::default()).await.unwrap();
        wait_for("the namespace to go", || async {
            all.get_opt(&friend.name).await.unwrap().is_none().then_some(())
        })
        .await;
        // By name it is chosen still, by label not any more.
        let selector = json!({"spec": {"sharedWith": {"namespaceSelector": {"matchLabels": {"team": "friend"}}}}});
        case.patch("deploy", selector).await;
        create_namespace(&case.client, &friend.name, &json!({})).await;
        friend.follow(case, "f", "deploy", json!({})).await;
        friend.until_ready_is(case, "f", "False", "NotShared").await;
        let label = json!({"metadata": {"labels": {"team": "friend"}}});
        all.patch(&friend.name, &PatchParams::default(), &Patch::Merge(&label))
            .await
            .unwrap();
        friend.until_revision(case, "f", 1).await;
        siege.assert_held().await;
    }

    #[tokio::test]
    async fn what_the_owner_of_a_source_forges_in_its_secret_reaches_nobody() {
        let siege = siege_within(World::start("forged").await).await;
        let (case, enemy, friend) = (&siege.case, &siege.enemy, &siege.friend);
        let old = case.secret("deploy").await.unwrap();
        let token = case.value("deploy", "npm_token").await.unwrap();
        // Values other than those that are sealed, with a seal that is forged, another's, or of another time: none is
        // handed on, whatever its revision.
        case.patch("deploy", json!({"spec": shared_with(&[friend, enemy])}))
            .await;
        case.world.kill_controller();
        for (seal, value) in [
            (None, "forged"),
            (Some("v1.e30.AAAA"), token.as_str()),
            (Some("v1.e30.AAAA"), "forged"),
        ] {
            let mut edit = json!({"stringData": {"npm_token": value}});
            if let Some(seal) = seal {
                merge(
                    &mut edit,
                    json!({"metadata": {"annotations": {"connect.chitty.cc/seal": seal}}}),
                );
            }
            case.secrets()
                .patch("deploy", &PatchParams::default(), &Patch::Merge(edit))
                .await
                .unwrap();
        }
        enemy.follow(case, "f", "deploy", json!({})).await;
        case.world.start_controller();
        enemy.until(case, "f", |c| condition(c, "Ready").0 == "True").await;
        case.until_ready_is("deploy", "True", "Rotated").await;
        let healed = case.value("deploy", "npm_token").await.unwrap();
        assert!(healed != token && healed != "forged");
        assert_eq!(enemy.value("f", "npm_token").await.as_ref(), Some(&healed));
        friend.until_revision(case, "f", 2).await;
        // A Secret of before, put back with its own seal, is not what the journal says is live.
        case.world.kill_controller();
        let back = json!({"data": old.data, "metadata": {"annotations": old.metadata.annotations}});
        case.secrets()
            .patch("deploy", &PatchParams::default(), &Patch::Merge(back))
            .await
            .unwrap();
        enemy.credentials.delete("f", &DeleteParams::default()).await.unwrap();
        enemy.follow(case, "g", "deploy", json!({})).await;
        case.world.start_controller();
        let told = enemy.until(case, "g", |c| !condition(c, "Ready").0.is_empty()).await;
        let (ready, _, message) = condition(&told, "Ready");
        if ready == "False" {
            assert!(
                message.contains("is as it was written") || message.contains("has no token now"),
                "{message}"
            );
        }
        assert_ne!(enemy.value("g", "npm_token").await.as_ref(), Some(&token));
        assert_ne!(friend.value("f", "npm_token").await.as_ref(), Some(&token));
    }
}
