//! The objects that one journal is stored in.

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectList, ObjectMeta, PostParams, Preconditions};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::JournalError;
use super::writer::{Commit, Versions};
use crate::api::{MANAGED_BY_LABEL, MANAGER};
use crate::cluster::{Cluster, Error, bounded};
use crate::core::ids::PageId;
use crate::core::journal::Scope;
use crate::core::journal::pages::{Flush, Head, Page, VERSION};
use crate::core::seal::SealKey;
use crate::planted::{Bug, is_planted};

pub(super) const DATA_KEY: &str = "journal.json";
const COMMIT_ANNOTATION: &str = "connect.chitty.cc/commit";
pub(super) const SIGNATURE_ANNOTATION: &str = "connect.chitty.cc/signature";
const TITLE_ANNOTATION: &str = "connect.chitty.cc/budget-of";
/// What part of a journal an object is: `head` or `page`; or `index`.
pub(super) const PART_LABEL: &str = "connect.chitty.cc/journal";
/// The name of its head.
const OF_LABEL: &str = "connect.chitty.cc/journal-of";
/// Objects in one answer to a list of all journals.
const LISTED_AT_ONCE: u32 = 50;

/// One scope's objects.
pub(super) struct Store {
    cluster: Cluster,
    seal: SealKey,
    scope: Scope,
    name: String,
}

/// A part of a journal that is there.
pub(super) struct Stored<T> {
    pub(super) document: T,
    pub(super) version: String,
    /// The commit that wrote it.
    commit: String,
    /// How much it takes as it is stored.
    pub(super) bytes: usize,
}

/// All parts of a journal that are there.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) head: Option<Stored<Head>>,
    pub(super) pages: Vec<Stored<Page>>,
}

/// One write of a commit.
pub(super) struct Step {
    /// Steps of one wave may be made at once, each wave after the one before.
    wave: u8,
    /// `None` for the head.
    page: Option<PageId>,
    /// `None` where the object is to be deleted.
    map: Option<ConfigMap>,
    /// The version that it replaces.
    over: Option<String>,
    done: bool,
}

impl Step {
    /// What it writes, and how much that takes; nothing where it deletes.
    pub(super) fn size(&self) -> (Option<PageId>, Option<usize>) {
        let text = self.map.as_ref().and_then(|map| map.data.as_ref()?.get(DATA_KEY));
        (self.page.clone(), text.map(String::len))
    }

    /// Whether nobody else has written what this step writes. Notes where it has arrived.
    pub(super) fn stands(&mut self, listing: &Listing, commit: &str, versions: &mut Versions) -> bool {
        if self.map.is_none() {
            return true;
        }
        let found = match &self.page {
            None => listing.head.as_ref().map(|s| (&s.version, &s.commit)),
            Some(id) => {
                let page = listing.pages.iter().find(|s| s.document.page == *id);
                page.map(|s| (&s.version, &s.commit))
            }
        };
        match found {
            Some((version, by)) if by == commit => {
                self.done = true;
                versions.set(self.page.as_ref(), version.clone());
                true
            }
            found => !self.done && found.map(|(version, _)| version) == self.over.as_ref(),
        }
    }
}

impl Versions {
    fn get(&self, page: Option<&PageId>) -> Option<&String> {
        page.map_or(self.head.as_ref(), |id| self.pages.get(id))
    }

    fn set(&mut self, page: Option<&PageId>, version: String) {
        match page {
            None => self.head = Some(version),
            Some(id) => {
                self.pages.insert(id.clone(), version);
            }
        }
    }
}

impl Store {
    pub(super) fn new(cluster: &Cluster, seal: &SealKey, scope: Scope) -> Self {
        Self {
            cluster: cluster.clone(),
            seal: seal.clone(),
            name: scope.journal_name(),
            scope,
        }
    }

    pub(super) const fn scope(&self) -> &Scope {
        &self.scope
    }

    fn api(&self) -> Api<ConfigMap> {
        api(&self.cluster)
    }

    /// Lists all parts of the journal, as they were at one moment.
    pub(super) async fn list(&self) -> Result<Result<Listing, JournalError>, JournalError> {
        let of = ListParams::default().labels(&format!("{OF_LABEL}={}", self.name));
        let list = bounded(self.api().list(&of)).await;
        let list = list.map_err(|e| JournalError::Unavailable(e.brief()))?;
        Ok(self.sort(list.items))
    }

    /// Reads what was listed.
    pub(super) fn sort(&self, maps: Vec<ConfigMap>) -> Result<Listing, JournalError> {
        let mut listing = Listing {
            head: None,
            pages: Vec::new(),
        };
        for map in maps {
            if map.metadata.name.as_ref() == Some(&self.name) {
                let head = self.read(map, |head: &Head| (head.version, &head.scope))?;
                listing.head = Some(head);
            } else {
                let page = self.read(map, |page: &Page| (page.version, &page.scope))?;
                listing.pages.push(page);
            }
        }
        Ok(listing)
    }

    fn read<T: DeserializeOwned>(
        &self,
        map: ConfigMap,
        claims_to_be: impl Fn(&T) -> (u32, &Scope),
    ) -> Result<Stored<T>, JournalError> {
        let name = map.metadata.name.unwrap_or_default();
        let mut annotations = map.metadata.annotations.unwrap_or_default();
        let text = map.data.and_then(|mut data| data.remove(DATA_KEY)).unwrap_or_default();
        let signature = annotations.remove(SIGNATURE_ANNOTATION);
        let bytes = text.len();
        let read = self.verify(&name, &text, signature.as_deref()).and_then(|()| {
            let document: T = serde_json::from_str(&text).map_err(|e| format!("it cannot be read: {e}"))?;
            let (version, scope) = claims_to_be(&document);
            if version != VERSION {
                return Err(format!(
                    "it has version {version}, and this controller reads version {VERSION}"
                ));
            }
            if *scope != self.scope {
                return Err("it is of another scope".to_owned());
            }
            Ok(document)
        });
        let document = read.map_err(|why| JournalError::Broken {
            name,
            namespace: self.cluster.namespace.clone(),
            why,
        })?;
        Ok(Stored {
            document,
            version: map.metadata.resource_version.unwrap_or_default(),
            commit: annotations.remove(COMMIT_ANNOTATION).unwrap_or_default(),
            bytes,
        })
    }

    /// A signature under an earlier seal key says nothing; under this one it must fit.
    fn verify(&self, name: &str, text: &str, signature: Option<&str>) -> Result<(), String> {
        let Some(signature) = signature else {
            return Err("it carries no signature".to_owned());
        };
        match self.seal.verify_text(&signed(name, text), signature) {
            Some(true) | None => Ok(()),
            Some(false) => Err("it was edited by hand".to_owned()),
        }
    }

    /// The writes that `flush` consists of.
    pub(super) fn steps(&self, flush: Flush, commit: &str, versions: &Versions) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut put = |wave, page: Option<PageId>, map| {
            let over = versions.get(page.as_ref()).cloned();
            steps.push(Step {
                wave,
                page,
                map: Some(map),
                over,
                done: false,
            });
        };
        let before_head = if is_planted(Bug::PageAfterHead) { 2 } else { 0 };
        for page in flush.fresh.iter().chain(&flush.pages) {
            put(before_head, Some(page.page.clone()), self.page(page, commit));
        }
        if let Some(head) = &flush.head {
            put(1, None, self.map(&self.name, "head", head, commit));
        }
        for page in &flush.named {
            put(2, Some(page.page.clone()), self.page(page, commit));
        }
        steps.extend(flush.dropped.into_iter().map(|page| Step {
            wave: 3,
            over: versions.get(Some(&page)).cloned(),
            page: Some(page),
            map: None,
            done: false,
        }));
        steps
    }

    fn page(&self, page: &Page, commit: &str) -> ConfigMap {
        self.map(&self.page_name(&page.page), "page", page, commit)
    }

    fn page_name(&self, page: &PageId) -> String {
        format!("{}-{page}", self.name)
    }

    fn map(&self, name: &str, part: &str, document: &impl Serialize, commit: &str) -> ConfigMap {
        // Serialising these types cannot fail: no maps with keys other than strings, no fallible impls.
        let text = serde_json::to_string(document).unwrap_or_default();
        let annotations = [
            (COMMIT_ANNOTATION, commit.to_owned()),
            (SIGNATURE_ANNOTATION, self.seal.sign_text(&signed(name, &text))),
            (
                TITLE_ANNOTATION,
                format!("{} at {}", self.scope.title(), self.scope.origin),
            ),
        ];
        let labels = [
            (MANAGED_BY_LABEL, MANAGER),
            (PART_LABEL, part),
            (OF_LABEL, self.name.as_str()),
        ];
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                annotations: Some(annotations.map(|(k, v)| (k.to_owned(), v)).into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(DATA_KEY.to_owned(), text)])),
            ..ConfigMap::default()
        }
    }

    /// Deletes the head, as it was at `version`.
    ///
    /// # Errors
    /// Where it is another one, or the API server does not.
    pub(super) async fn delete_head(&self, version: &str) -> Result<(), Error> {
        bounded(self.api().delete(&self.name, &at_version(version))).await?;
        Ok(())
    }

    /// Makes the steps of `commit` that are left.
    ///
    /// # Errors
    /// Where one failed; the same may be tried again, as long as nobody else has written.
    pub(super) async fn carry_out(&self, commit: &mut Commit) -> Result<(), Error> {
        for wave in 0..3 {
            let versions = &mut commit.versions;
            let left = commit.steps.iter_mut().filter(|step| step.wave == wave && !step.done);
            let mut writes: FuturesUnordered<_> = left.map(|step| async { (self.put(step).await, step) }).collect();
            let mut failed = None;
            while let Some((written, step)) = writes.next().await {
                match written {
                    Ok(version) => {
                        step.done = true;
                        versions.set(step.page.as_ref(), version);
                    }
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        for step in commit.steps.iter().filter(|step| step.map.is_none()) {
            self.delete(step).await;
            if let Some(page) = &step.page {
                commit.versions.pages.remove(page);
            }
        }
        Ok(())
    }

    async fn put(&self, step: &Step) -> Result<String, Error> {
        let Some(mut map) = step.map.clone() else {
            return Ok(String::new());
        };
        let written = if step.over.is_some() {
            map.metadata.resource_version.clone_from(&step.over);
            let name = map.metadata.name.clone().unwrap_or_default();
            bounded(self.api().replace(&name, &PostParams::default(), &map)).await?
        } else {
            bounded(self.api().create(&PostParams::default(), &map)).await?
        };
        Ok(written.metadata.resource_version.unwrap_or_default())
    }

    /// Deletes a page that no head names. One that stays is found at the next start.
    async fn delete(&self, step: &Step) {
        let (Some(page), Some(version)) = (&step.page, &step.over) else {
            return;
        };
        let name = self.page_name(page);
        if let Err(error) = bounded(self.api().delete(&name, &at_version(version))).await {
            tracing::debug!(page = %name, error = %error.brief(), "failed to delete a page that is not needed any more");
        }
    }
}

fn at_version(version: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            resource_version: Some(version.to_owned()),
            uid: None,
        }),
        ..DeleteParams::default()
    }
}

/// What a signature is of: a page cannot be put in the place of another.
pub(super) fn signed(name: &str, text: &str) -> String {
    format!("{name}\n{text}")
}

fn api(cluster: &Cluster) -> Api<ConfigMap> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

/// Some of the parts of all journals, by name.
///
/// # Errors
/// Where they cannot be listed.
pub(super) async fn list_page(cluster: &Cluster, token: Option<String>) -> Result<ObjectList<ConfigMap>, Error> {
    let params = ListParams {
        continue_token: token,
        ..ListParams::default().labels(PART_LABEL).limit(LISTED_AT_ONCE)
    };
    bounded(api(cluster).list(&params)).await
}

/// The name of the head that a part of a journal belongs to; `None` for a part of the index.
pub(super) fn part_of(map: &ConfigMap) -> Option<String> {
    let label = |key| map.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    if label(PART_LABEL).is_some_and(|part| part == "index") {
        return None;
    }
    let of = label(OF_LABEL).or(map.metadata.name.as_ref());
    Some(of.cloned().unwrap_or_default())
}

/// The head called `name`.
///
/// # Errors
/// Where it cannot be read.
pub(super) async fn head(cluster: &Cluster, name: &str) -> Result<Option<ConfigMap>, Error> {
    bounded(api(cluster).get_opt(name)).await
}

/// Whether a part of a journal was signed by a key that is not `seal`.
pub(super) fn is_of_another_key(map: &ConfigMap, seal: &SealKey) -> bool {
    let text = map.data.as_ref().and_then(|data| data.get(DATA_KEY));
    let signature = map
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(SIGNATURE_ANNOTATION));
    let name = map.metadata.name.as_deref().unwrap_or_default();
    text.zip(signature)
        .is_some_and(|(text, signature)| seal.verify_text(&signed(name, text), signature).is_none())
}

/// The scope that a part of the journal `name` tells of, whether or not the rest of it can be read.
pub(super) fn scope_of(map: &ConfigMap, name: &str) -> Option<Scope> {
    let text = map.data.as_ref()?.get(DATA_KEY)?;
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let scope: Scope = serde_json::from_value(value.get("scope")?.clone()).ok()?;
    (scope.journal_name() == name).then_some(scope)
}
