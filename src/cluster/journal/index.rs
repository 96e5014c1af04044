//! Which journals there are: what tells at a start that one was deleted.
//!
//! Sixteen `ConfigMaps` name every head. A head is created with its first claim, and named before the request of that
//! claim leaves; it is dropped from its index before it is deleted. So one that is named and missing is lost, and what it counted is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex as Locked, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::store::{DATA_KEY, PART_LABEL, SIGNATURE_ANNOTATION, signed};
use crate::api::{MANAGED_BY_LABEL, MANAGER};
use crate::cluster::{Cluster, Error, bounded};
use crate::core::journal::Scope;
use crate::core::seal::SealKey;

/// How many objects share the names: by the first digit of the hash in them.
const SHARDS: usize = 16;
const TRIES: u32 = 5;
/// How long a name waits for others: where one service is new, often more are.
const LINGER: Duration = Duration::from_millis(10);

/// As it is stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Names {
    /// Every journal, by the name of its head.
    journals: BTreeMap<String, Scope>,
}

/// The index of all journals.
pub(super) struct Index {
    cluster: Cluster,
    seal: SealKey,
    shards: [Shard; SHARDS],
}

#[derive(Default)]
struct Shard {
    /// What waits to be written: names to add, and to drop. The next write takes all of it.
    desired: Locked<BTreeMap<String, Option<Scope>>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    names: Names,
    version: Option<String>,
    read: bool,
}

impl Index {
    pub(super) fn new(cluster: &Cluster, seal: &SealKey) -> Self {
        Self {
            cluster: cluster.clone(),
            seal: seal.clone(),
            shards: Default::default(),
        }
    }

    /// Reads what was listed; returns every scope that is named. An index that was edited names what it still does,
    /// and those of the journals that are there.
    pub(super) async fn take(&self, maps: Vec<ConfigMap>) -> BTreeSet<Scope> {
        for shard in &self.shards {
            shard.known.lock().await.read = true;
        }
        for map in maps {
            let name = map.metadata.name.clone().unwrap_or_default();
            if let Some(number) = (0..SHARDS).find(|n| shard_name(*n) == name) {
                *self.shards[number].known.lock().await = self.read(map);
            }
        }
        let mut scopes = BTreeSet::new();
        for shard in &self.shards {
            scopes.extend(shard.known.lock().await.names.journals.values().cloned());
        }
        scopes
    }

    fn read(&self, map: ConfigMap) -> Known {
        let name = map.metadata.name.unwrap_or_default();
        let text = map.data.and_then(|mut data| data.remove(DATA_KEY)).unwrap_or_default();
        let signature = map
            .metadata
            .annotations
            .and_then(|mut a| a.remove(SIGNATURE_ANNOTATION));
        let signature = signature.unwrap_or_default();
        if self.seal.verify_text(&signed(&name, &text), &signature) == Some(false) {
            tracing::error!(%name, "the index of journals was edited; it is written anew from the journals that are there");
        }
        Known {
            names: serde_json::from_str(&text).unwrap_or_default(),
            version: map.metadata.resource_version,
            read: true,
        }
    }

    /// Has `scope` named.
    ///
    /// # Errors
    /// Where that could not be written.
    pub(super) async fn add(&self, scope: &Scope) -> Result<(), Error> {
        self.set(&scope.journal_name(), Some(scope.clone())).await
    }

    /// Has `scope` named no more.
    ///
    /// # Errors
    /// Where that could not be written.
    pub(super) async fn remove(&self, scope: &Scope) -> Result<(), Error> {
        self.set(&scope.journal_name(), None).await
    }

    async fn set(&self, name: &str, scope: Option<Scope>) -> Result<(), Error> {
        let number = shard_of(name);
        let shard = &self.shards[number];
        desired(shard).insert(name.to_owned(), scope.clone());
        let mut known = shard.known.lock().await;
        if known.read && known.names.journals.get(name) == scope.as_ref() {
            desired(shard).remove(name);
            return Ok(());
        }
        if desired(shard).contains_key(name) {
            tokio::time::sleep(LINGER).await;
        }
        let mut last = Error::Timeout;
        for _ in 0..TRIES {
            if !known.read {
                let map = bounded(self.api().get_opt(&shard_name(number))).await?;
                *known = map.map_or_else(Known::default, |map| self.read(map));
                known.read = true;
            }
            // Whoever was before us may have written ours too.
            let changes = std::mem::take(&mut *desired(shard));
            let mut names = known.names.clone();
            for (name, scope) in &changes {
                match scope {
                    Some(scope) => names.journals.insert(name.clone(), scope.clone()),
                    None => names.journals.remove(name),
                };
            }
            if names == known.names {
                return Ok(());
            }
            match self.write(number, &names, known.version.clone()).await {
                Ok(version) => {
                    known.names = names;
                    known.version = version;
                    return Ok(());
                }
                Err(error) => {
                    known.read = false;
                    let mut desired = desired(shard);
                    for (name, scope) in changes {
                        desired.entry(name).or_insert(scope);
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn write(&self, number: usize, names: &Names, version: Option<String>) -> Result<Option<String>, Error> {
        let name = shard_name(number);
        // Serialising these types cannot fail: no maps with keys other than strings, no fallible impls.
        let text = serde_json::to_string(names).unwrap_or_default();
        let signature = self.seal.sign_text(&signed(&name, &text));
        let labels = [(MANAGED_BY_LABEL, MANAGER), (PART_LABEL, "index")];
        let replaces = version.is_some();
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                resource_version: version,
                labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                annotations: Some(BTreeMap::from([(SIGNATURE_ANNOTATION.to_owned(), signature)])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(DATA_KEY.to_owned(), text)])),
            ..ConfigMap::default()
        };
        let post = PostParams::default();
        let written = if replaces {
            bounded(self.api().replace(&name, &post, &map)).await?
        } else {
            bounded(self.api().create(&post, &map)).await?
        };
        Ok(written.metadata.resource_version)
    }

    fn api(&self) -> Api<ConfigMap> {
        Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace)
    }
}

fn desired(shard: &Shard) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<Scope>>> {
    shard.desired.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shard_name(number: usize) -> String {
    format!("chitty-journal-index-{number:x}")
}

fn shard_of(journal: &str) -> usize {
    let digit = journal.trim_start_matches("chitty-journal-").chars().next();
    digit.and_then(|c| c.to_digit(16)).unwrap_or_default() as usize % SHARDS
}
