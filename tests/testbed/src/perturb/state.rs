//! What there is after a run, without what differs from run to run.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Secret};
use kube::ResourceExt;
use kube::api::{DynamicObject, ListParams};
use serde_json::{Map, Value, json};

use super::lab::Scene;
use super::scenario::Scenario;

/// What was found.
pub struct Found {
    /// What must be the same in every run of a scenario.
    pub end: Value,
    /// The values in Secrets.
    pub held: BTreeSet<String>,
    /// The tokens that are owed a revocation.
    pub owed: BTreeSet<String>,
    /// All that is not a Secret, as text: no value belongs there.
    pub text: String,
}

impl Found {
    /// Looks at everything there is.
    pub async fn look(scene: &Scene, scenario: Scenario) -> anyhow::Result<Self> {
        let (install, all) = (&scene.install, ListParams::default());
        let connection = install.connections().get_opt(&install.connection).await?;
        let maps = install.of_system::<ConfigMap>().list(&all).await?.items;
        let (mut credentials, mut secrets, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for namespace in scenario.namespaces(scene) {
            credentials.extend(install.credentials_of(namespace).list(&all).await?.items);
            secrets.extend(install.of::<Secret>(namespace).list(&all).await?.items);
            events.extend(install.of::<Event>(namespace).list(&all).await?.items);
        }
        let journal = Journal::of(&maps);
        let ledger = scene.broker.ledger();
        let now = scene.broker.now();

        // One that a process asked for when it woke, and gave back, is none of them.
        let newest = ledger.mints.iter().rposition(|mint| {
            let owed = mint.token_id.as_ref().is_some_and(|id| journal.owed.contains_key(id));
            mint.revoked_at.is_none() && !owed
        });

        let mut held = BTreeSet::new();
        let mut shown = Map::new();
        for secret in &secrets {
            let data = secret.data.iter().flatten();
            let values: Vec<String> = data.map(|(_, v)| String::from_utf8_lossy(&v.0).into_owned()).collect();
            // Files hold tokens among other text.
            let mints = ledger.mints.iter().enumerate().filter(|(_, mint)| {
                let mut tokens = mint.secrets.values();
                tokens.any(|token| values.iter().any(|value| value.contains(token)))
            });
            let mints: Vec<_> = mints.collect();
            for (_, mint) in &mints {
                held.extend(mint.secrets.values().cloned());
            }
            let entry = json!({
                "type": secret.type_,
                "keys": secret.data.iter().flatten().map(|(k, _)| k).collect::<Vec<_>>(),
                "labels": secret.labels(),
                "annotations": secret.annotations().keys().collect::<Vec<_>>(),
                "owners": secret.owner_references().iter().map(|o| &o.name).collect::<Vec<_>>(),
                "tokens": mints.len(),
                "live": mints.iter().all(|(_, mint)| mint.is_live(now)),
                "newest": mints.iter().all(|(n, _)| Some(*n) == newest) || scenario.has_many_tokens(),
            });
            shown.insert(secret.name_any(), entry);
        }
        let end = json!({
            "credentials": credentials.iter().map(|c| (c.name_any(), credential(c))).collect::<BTreeMap<_, _>>(),
            // Whether it answers is known by the process that asked it, and by no other.
            "connection": connection.as_ref().map(|c| conditions(c).remove("Ready")),
            "secrets": shown,
            "journal": {
                "claims": journal.claims,
                "records": journal.records,
                "undelivered": journal.undelivered,
                "due": journal.owed.values().filter(|due| **due <= now).count(),
            },
        });
        let text = [
            serde_json::to_string(&credentials)?,
            serde_json::to_string(&connection)?,
            serde_json::to_string(&maps)?,
            serde_json::to_string(&events)?,
        ];
        Ok(Self {
            end,
            held,
            owed: journal.owed.into_keys().collect(),
            text: text.join("\n"),
        })
    }
}

fn conditions(object: &DynamicObject) -> BTreeMap<String, String> {
    let all = object.data["status"]["conditions"].as_array();
    let text = |c: &Value, field: &str| c[field].as_str().unwrap_or_default().to_owned();
    all.into_iter()
        .flatten()
        .map(|c| (text(c, "type"), format!("{} {}", text(c, "status"), text(c, "reason"))))
        .collect()
}

fn credential(object: &DynamicObject) -> Value {
    let status = &object.data["status"];
    json!({
        "conditions": conditions(object),
        "outputs": status["outputs"],
        "secrets": status["secrets"],
        "current": status["observedGeneration"].as_i64() == object.metadata.generation,
        "renews": status["renewAt"].is_string(),
        "tries": status["nextAttemptAt"].is_string(),
        "labels": object.labels(),
        "finalizers": object.finalizers(),
    })
}

/// What the stored parts of all journals hold.
#[derive(Default)]
pub(super) struct Journal {
    claims: usize,
    records: usize,
    pub(super) undelivered: usize,
    /// Tokens, and when each is to be revoked.
    pub(super) owed: BTreeMap<String, DateTime<Utc>>,
}

impl Journal {
    pub(super) fn of(maps: &[ConfigMap]) -> Self {
        let mut found = Self::default();
        let parts = maps
            .iter()
            .filter(|m| m.labels().contains_key("connect.chitty.cc/journal"));
        let texts = parts.filter_map(|m| m.data.as_ref()?.get("journal.json"));
        let parts: Vec<Value> = texts.filter_map(|text| serde_json::from_str(text).ok()).collect();
        // What a process wrote that was dead by then is no page of a head: nobody reads it, and the next start removes it.
        let named: BTreeSet<&String> = parts
            .iter()
            .filter_map(|part| part["pages"].as_object())
            .flat_map(Map::keys)
            .collect();
        let counts = |part: &&Value| {
            part["page"]
                .as_str()
                .is_none_or(|page| named.contains(&page.to_owned()))
        };
        for part in parts.iter().filter(counts) {
            found.claims += part["claims"].as_object().map_or(0, Map::len);
            for slot in part["slots"].as_object().into_iter().flat_map(Map::values) {
                found.records += usize::from(slot["record"].is_object());
                found.undelivered += slot["events"].as_array().map_or(0, Vec::len);
                for owed in slot["owed"].as_array().into_iter().flatten() {
                    let due = owed["due"]
                        .as_str()
                        .and_then(|due| due.parse().ok())
                        .unwrap_or_default();
                    found
                        .owed
                        .insert(owed["tokenId"].as_str().unwrap_or_default().to_owned(), due);
                }
            }
        }
        found
    }
}
