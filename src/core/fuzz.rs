//! Whatever is written around the schema, or into what the controller reads back: nothing panics, and no value is in
//! any text.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::budget::{Demand, Follower, Limit, Terms};
use super::ids::{ObjectName, PageId, Uid};
use super::journal::pages::{Head, Layout, Page};
use super::journal::tests_support::{claim, live, scope};
use super::journal::{Attempt, Journal, MintReason, Outcome, Throttle};
use super::render::{self, MOST_RENDERED, Outputs};
use super::seal::{Seal, SealKey};
use super::spec;
use super::testing::{cases, s, t};
use crate::api::{BrokerApi, EphemeralCredential, SecretType};

/// What no text may repeat.
const CANARY: &str = "cf_canary_0123456789";

fn key() -> SealKey {
    SealKey::new(vec![7; SealKey::LENGTH]).unwrap()
}

fn outputs() -> Outputs {
    ["cloudflare_token", "npm_token"]
        .map(|name| (name.to_owned(), SecretString::from(CANARY)))
        .into()
}

/// Any JSON, of the sizes that hurt.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(json!(i64::MAX)),
        Just(json!(i64::MIN)),
        Just(json!(u64::MAX)),
        Just(json!(-1)),
        Just(json!("9999999999h")),
        Just(json!("1970-01-01T00:00:00Z")),
        Just(json!("9999-12-31T23:59:59Z")),
        Just(json!("+262142-12-31T23:59:59Z")),
        Just(json!("-262143-01-01T00:00:00Z")),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,8}", inner, 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Every place in `value`, as pointers to it.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                places(
                    member,
                    &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")),
                    all,
                );
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{i}"), all);
            }
        }
        _ => {}
    }
}

/// `value` with some of its parts replaced.
fn changed(value: &Value, changes: &[(prop::sample::Index, Value)]) -> Value {
    let mut value = value.clone();
    for (index, new) in changes {
        let mut all = Vec::new();
        places(&value, "", &mut all);
        if let Some(place) = value.pointer_mut(&all[index.index(all.len())]) {
            place.clone_from(new);
        }
    }
    value
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, Value)>> {
    prop::collection::vec((any::<prop::sample::Index>(), values()), 1..4)
}

/// A journal with something of everything, as it is stored.
fn stored() -> (Value, Vec<Value>) {
    let mut journal = Journal::new(scope());
    journal.claim("a", claim("a", "n", MintReason::First, t(0), 1), s(3600));
    journal.end(
        "a",
        "claim-1",
        Outcome::Published(Box::new(live("claim-1", t(1), t(3600)))),
        t(1),
    );
    journal.claim("a", claim("a", "n", MintReason::Renewal, t(2400), 2), s(3600));
    journal.claim("b", claim("b", "m", MintReason::First, t(2400), 3), s(3600));
    journal.attempts.push(Attempt {
        at: t(2),
        count: 3,
        namespace: Some("n".into()),
    });
    journal.throttle = Throttle {
        blocked_until: Some(t(2500)),
        guessed: true,
        count: 2,
        learnt: Some((5, t(100))),
    };
    journal.lost_at = Some(t(0));
    let mut pages = 0;
    let fresh = || {
        pages += 1;
        PageId::from(format!("p{pages}"))
    };
    let flush = Layout::default()
        .flush(&Journal::new(scope()), &mut journal, t(2400), fresh)
        .unwrap();
    let pages = flush.fresh.iter().chain(&flush.pages).chain(&flush.named);
    let pages = pages.map(|page| serde_json::to_value(page).unwrap()).collect();
    (serde_json::to_value(flush.head).unwrap(), pages)
}

fn credential() -> Value {
    json!({
        "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
        "metadata": {"name": "a", "namespace": "n", "uid": "a", "annotations": {"connect.chitty.cc/rotate": "1"}},
        "spec": {
            "connection": "c", "service": "svc", "purpose": "p", "repo": "o/r", "runId": "1",
            "type": "neon_database_connection",
            "context": {"database": "d", "readonly": "true", "ttl": "60", "zones": "a, b"},
            "rotation": {"renewBefore": "20m", "maxLifetime": "1h"},
            "secrets": [{"name": "s", "type": "Opaque", "labels": {"a": "b"}, "presets": ["outputs"],
                "data": {"npmrc": "//r/:_authToken={{ npm_token | tojson }}", "k": "{{ cloudflare_token }}"}}],
            "suspend": false,
        },
    })
}

/// What the targets of `fuzz/` begin with: an object, a journal and a seal as they are written.
fn seeds() -> Vec<(&'static str, String)> {
    let (head, pages) = stored();
    let lines: Vec<String> = std::iter::once(&head).chain(&pages).map(Value::to_string).collect();
    let seal = Seal::new("a", "n", "s", &live("claim-1", t(0), t(3600)));
    vec![
        ("objects/credential", format!("\u{1}{}", credential())),
        ("journals/stored", lines.join("\n")),
        ("seals/seal", serde_json::to_string(&seal).unwrap()),
    ]
}

/// `FUZZ_SEEDS=write cargo test --lib seeds_of_fuzz` writes them anew.
#[test]
fn the_seeds_of_fuzz_are_what_is_written_today() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, text) in seeds() {
        let path = folder.join(name);
        if std::env::var_os("FUZZ_SEEDS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == text,
            "{name} is not as it is written today: set FUZZ_SEEDS=write"
        );
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn no_stored_journal_makes_a_decision_panic(head in changes(), page in changes(), which in 0..3_u8) {
        let (stored_head, stored_pages) = stored();
        let stored_head = if which == 1 { stored_head } else { changed(&stored_head, &head) };
        let change = |stored: &Value| if which == 0 { stored.clone() } else { changed(stored, &page) };
        let Ok(head) = serde_json::from_value::<Option<Head>>(stored_head) else { return Ok(()) };
        let pages: Vec<Page> = stored_pages.iter().map(change).filter_map(|p| serde_json::from_value(p).ok()).collect();
        let mut journal = Layout::read(&scope(), head, pages, t(2400)).journal;
        journal.compact(t(2400));
        journal.compact_record("a", t(2400));
        let mut follower = Follower::new("svc");
        let terms = Terms { limits: vec![Limit { limit: 10, window: s(3600) }], newcomers: true };
        for uid in ["a", "b", "c"] {
            follower.budget.enqueue(Demand {
                uid: uid.into(),
                name: ObjectName::new("n", uid),
                reason: if uid == "a" { MintReason::Renewal } else { MintReason::First },
                since: t(0),
                renew_before: None,
                max_lifetime: None,
                pod_waits: false,
                renews: true,
                most: None,
            });
        }
        let journal = Arc::new(journal);
        follower.decide(&journal, &terms, t(2400));
        follower.decide(&journal, &terms, t(9000));
    }

    #[test]
    fn no_annotation_passes_for_a_seal_and_none_makes_it_panic(text in ".{0,80}", place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let seal = Seal::new("a", "n", "s", &live("claim-1", t(0), t(3600)));
        prop_assert_eq!(key().verify(&text), None);
        prop_assert_eq!(key().verify(&format!("v1.{text}.{text}")), None);
        prop_assert_eq!(key().verify_text("text", &text).unwrap_or(false), false);
        let signed = key().sign(&seal);
        let mut bytes = signed.clone().into_bytes();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        let other = String::from_utf8_lossy(&bytes);
        prop_assert!(other == signed || key().verify(&other).is_none());
    }

    #[test]
    fn no_object_written_around_the_schema_makes_it_panic_or_shows_a_value(changes in changes(), provision in any::<bool>()) {
        let Ok(object) = serde_json::from_value::<EphemeralCredential>(changed(&credential(), &changes)) else {
            return Ok(());
        };
        let api = if provision { BrokerApi::Provision } else { BrokerApi::Deploy };
        let desired = match spec::desired(&object, Some(api), &super::layout::AnnotationPolicy::default()) {
            Ok(desired) => desired,
            Err(problem) => {
                prop_assert!(!problem.message.contains(CANARY));
                return Ok(());
            }
        };
        let checked = desired.check_templates();
        let mut follower = Follower::new("svc");
        follower.budget.enqueue(Demand {
            uid: Uid::from("a"),
            name: ObjectName::new("n", "a"),
            reason: MintReason::First,
            since: t(0),
            renew_before: desired.renew_before,
            max_lifetime: desired.max_lifetime,
            pod_waits: false,
            renews: true,
            most: Some(1),
        });
        let terms = Terms { limits: vec![Limit { limit: 10, window: s(3600) }], newcomers: true };
        follower.decide(&Arc::new(Journal::new(scope())), &terms, t(0));
        for secret in &desired.secrets {
            match render::render(&secret.name, secret.type_, &secret.layout, &outputs(), t(3600), MOST_RENDERED) {
                Ok(data) => prop_assert!(render::size(&data) <= MOST_RENDERED),
                Err(problem) => prop_assert!(!problem.message.contains(CANARY), "{}", problem.message),
            }
        }
        if let Err(problem) = checked {
            prop_assert!(!problem.message.contains(CANARY));
        }
    }

    #[test]
    fn no_template_shows_a_value_in_its_errors_or_renders_to_more_than_may_be(
        source in r#"(\{\{|\}\}|\{%|\||"|\\|\(|\)|npm_token|cloudflare_token|missing|tojson|default|b64encode|urlencode|[ -~ü\n]){0,60}"#,
        most in 0_usize..400,
    ) {
        let layout = super::layout::Layout { data: BTreeMap::from([("k".to_owned(), source)]), ..super::layout::Layout::default() };
        match render::render("s", SecretType::Opaque, &layout, &outputs(), t(3600), most) {
            Ok(data) => prop_assert!(render::size(&data) <= most),
            Err(problem) => prop_assert!(!problem.message.contains(CANARY), "{}", problem.message),
        }
    }
}
