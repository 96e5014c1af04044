//! Journals as `ConfigMaps`, committed by compare-and-swap, many decisions in one write.
//!
//! Each scope has one writer task: it takes every decision that waits, applies them in order to the
//! state they will be committed to, and writes once. After a write whose fate is unknown it reads
//! back whether its commit id is there.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, ObjectMeta, PostParams};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Cluster, Error, bounded};
use crate::api::{MANAGED_BY_LABEL, MANAGER};
use crate::core::Time;
use crate::core::journal::{Journal, Scope};
use crate::core::seal::SealKey;
use crate::core::spec::digest;

const DATA_KEY: &str = "journal.json";
const COMMIT_ANNOTATION: &str = "connect.chitty.cc/commit";
const SIGNATURE_ANNOTATION: &str = "connect.chitty.cc/signature";
const TITLE_ANNOTATION: &str = "connect.chitty.cc/budget-of";
const JOURNAL_LABEL: &str = "connect.chitty.cc/journal";
const TRIES: u32 = 6;

/// Why a journal cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum JournalError {
    /// The API server did not take it; try again.
    #[error("the journal could not be written: {0}")]
    Unavailable(String),
    /// It must be mended by a person.
    #[error(
        "journal {name} in namespace {namespace} is not as the controller wrote it ({why}); nothing is minted from it. \
         Restore it, or delete it: it is then rebuilt from the Secrets, and new credentials wait one window"
    )]
    Broken {
        /// The `ConfigMap`.
        name: String,
        /// Its namespace.
        namespace: String,
        /// What is wrong.
        why: String,
    },
}

type Decision = Box<dyn FnMut(&mut Journal, Time) + Send>;

struct Pending {
    decide: Decision,
    /// Decides on what the API server holds now, not on what this process last saw.
    fresh: bool,
    done: oneshot::Sender<Result<(), JournalError>>,
}

/// All journals of this controller.
pub struct Journals {
    cluster: Cluster,
    seal: SealKey,
    open: Mutex<HashMap<Scope, ScopeJournal>>,
}

/// One scope's journal. Cheap to clone.
#[derive(Clone)]
pub struct ScopeJournal {
    queue: mpsc::UnboundedSender<Pending>,
    view: watch::Receiver<Option<Result<Arc<Journal>, JournalError>>>,
}

impl Journals {
    /// The journals in the controller's namespace.
    #[must_use]
    pub fn new(cluster: Cluster, seal: SealKey) -> Self {
        Self {
            cluster,
            seal,
            open: Mutex::default(),
        }
    }

    /// The journal of `scope`; created with its first commit.
    pub fn of(&self, scope: &Scope) -> ScopeJournal {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        open.entry(scope.clone())
            .or_insert_with(|| Writer::start(self.cluster.clone(), self.seal.clone(), scope.clone()))
            .clone()
    }

    /// Every journal that is there.
    ///
    /// # Errors
    /// Where they cannot be listed.
    pub async fn list(&self) -> Result<Vec<Found>, Error> {
        let list = bounded(self.api().list(&ListParams::default().labels(JOURNAL_LABEL))).await?;
        Ok(list.items.into_iter().map(found).collect())
    }

    /// The journal in the `ConfigMap` called `name`, where there is one.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn find(&self, name: &str) -> Result<Option<Found>, Error> {
        Ok(bounded(self.api().get_opt(name)).await?.map(found))
    }

    fn api(&self) -> Api<ConfigMap> {
        Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace)
    }

    /// The scopes whose journals were opened.
    #[must_use]
    pub fn opened(&self) -> Vec<Scope> {
        let open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        open.keys().cloned().collect()
    }
}

/// A journal that is there.
#[derive(Debug)]
pub enum Found {
    /// Of this scope; whether all of it can be read is another question.
    Scope(Scope),
    /// It does not even tell of which: the `ConfigMap`'s name.
    Illegible(String),
}

fn found(map: ConfigMap) -> Found {
    let scope = map.data.and_then(|mut data| {
        let text = data.remove(DATA_KEY)?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        serde_json::from_value(value.get("scope")?.clone()).ok()
    });
    let name = map.metadata.name.unwrap_or_default();
    scope.map_or(Found::Illegible(name), Found::Scope)
}

impl ScopeJournal {
    /// The journal as last read or written by this process.
    ///
    /// # Errors
    /// Where it cannot be read, or must be mended.
    pub async fn view(&self) -> Result<Arc<Journal>, JournalError> {
        let mut view = self.view.clone();
        let known = view
            .wait_for(Option::is_some)
            .await
            .map_err(|_| JournalError::Unavailable("the controller is stopping".to_owned()))?;
        known
            .clone()
            .unwrap_or_else(|| Err(JournalError::Unavailable("not read yet".to_owned())))
    }

    /// Waits until there is another view than `seen`.
    pub fn changed_since(&self, seen: &Arc<Journal>) -> impl Future<Output = ()> + Send + 'static {
        let (mut view, seen) = (self.view.clone(), Arc::clone(seen));
        async move {
            let other = |now: &Option<Result<Arc<Journal>, JournalError>>| !matches!(now, Some(Ok(now)) if Arc::ptr_eq(now, &seen));
            // Fails where the writer is gone: nothing changes any more.
            if view.wait_for(other).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Commits what `decide` does to the journal, or nothing. It may be called more than once, each
    /// time with the state that would be committed; what it returned last is what holds.
    ///
    /// # Errors
    /// Where it could not be committed; then nothing of it holds, unless the API server has not
    /// answered at all.
    pub async fn commit<R: Send + 'static>(
        &self,
        decide: impl FnMut(&mut Journal, Time) -> R + Send + 'static,
    ) -> Result<R, JournalError> {
        self.ask(false, decide).await
    }

    /// What `question` says of the journal as the API server holds it now.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn fresh<R: Send + 'static>(
        &self,
        mut question: impl FnMut(&Journal) -> R + Send + 'static,
    ) -> Result<R, JournalError> {
        self.ask(true, move |journal, _| question(journal)).await
    }

    async fn ask<R: Send + 'static>(
        &self,
        fresh: bool,
        mut decide: impl FnMut(&mut Journal, Time) -> R + Send + 'static,
    ) -> Result<R, JournalError> {
        let slot = Arc::new(Mutex::new(None));
        let result = Arc::clone(&slot);
        let (done, committed) = oneshot::channel();
        let decide: Decision = Box::new(move |journal, now| {
            let outcome = decide(journal, now);
            *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(outcome);
        });
        let stopping = || JournalError::Unavailable("the controller is stopping".to_owned());
        self.queue
            .send(Pending { decide, fresh, done })
            .map_err(|_| stopping())?;
        committed.await.map_err(|_| stopping())??;
        result
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
            .ok_or_else(stopping)
    }
}

struct Known {
    journal: Journal,
    /// Absent while there is no `ConfigMap`.
    resource_version: Option<String>,
    commit: String,
}

struct Writer {
    cluster: Cluster,
    api: Api<ConfigMap>,
    namespace: String,
    seal: SealKey,
    scope: Scope,
    known: Option<Known>,
    /// How many pauses of this process the journal has outlasted.
    outlasted: usize,
    /// It was there and could not be used: if it goes, what it knew is lost.
    broken: bool,
    view: watch::Sender<Option<Result<Arc<Journal>, JournalError>>>,
}

impl Writer {
    fn start(cluster: Cluster, seal: SealKey, scope: Scope) -> ScopeJournal {
        let (queue, mut pending) = mpsc::unbounded_channel::<Pending>();
        let (view, seen) = watch::channel(None);
        let outlasted = cluster.now_and_pauses(0).1.len();
        let mut writer = Self {
            api: Api::namespaced(cluster.client.clone(), &cluster.namespace),
            namespace: cluster.namespace.clone(),
            cluster,
            seal,
            scope,
            known: None,
            // Those before it was opened are of no concern: it was written by whoever led then.
            outlasted,
            broken: false,
            view,
        };
        tokio::spawn(async move {
            let mut read = writer.read().await;
            writer.publish(&read);
            loop {
                let first = if read.is_err() {
                    // A journal that cannot be used is looked at again, so that mending it is enough.
                    if let Ok(first) = tokio::time::timeout(Duration::from_secs(2), pending.recv()).await {
                        first
                    } else {
                        read = writer.read().await;
                        writer.publish(&read);
                        continue;
                    }
                } else {
                    pending.recv().await
                };
                let Some(first) = first else { return };
                let mut batch = vec![first];
                while let Ok(more) = pending.try_recv() {
                    batch.push(more);
                }
                read = writer.write(&mut batch).await;
                writer.publish(&read);
                for waiting in batch {
                    // Whoever asked may have gone.
                    let _ = waiting.done.send(read.clone());
                }
            }
        });
        ScopeJournal { queue, view: seen }
    }

    fn publish(&self, read: &Result<(), JournalError>) {
        let next = match (read, &self.known) {
            (Ok(()), Some(known)) => Ok(Arc::new(known.journal.clone())),
            (Err(error), _) => Err(error.clone()),
            (Ok(()), None) => return,
        };
        self.view.send_replace(Some(next));
    }

    async fn read(&mut self) -> Result<(), JournalError> {
        let name = self.scope.journal_name();
        let map = bounded(self.api.get_opt(&name))
            .await
            .map_err(|e| JournalError::Unavailable(e.brief()))?;
        let Some(mut map) = map else {
            // Deleted while we hold it: what we hold is written back, and nothing is lost.
            let journal = self.known.take().map_or_else(
                || Journal {
                    lost_at: self.broken.then(|| self.cluster.now()),
                    ..Journal::new(self.scope.clone())
                },
                |known| known.journal,
            );
            self.known = Some(Known {
                journal,
                resource_version: None,
                commit: String::new(),
            });
            return Ok(());
        };
        let annotations = map.metadata.annotations.take().unwrap_or_default();
        let text = map.data.and_then(|mut data| data.remove(DATA_KEY)).unwrap_or_default();
        let read = self
            .verify(&text, annotations.get(SIGNATURE_ANNOTATION).map(String::as_str))
            .and_then(|()| Journal::parse(&text, &self.scope));
        self.broken = read.is_err();
        let journal = read.map_err(|why| JournalError::Broken {
            name: name.clone(),
            namespace: self.namespace.clone(),
            why,
        })?;
        self.known = Some(Known {
            journal,
            resource_version: map.metadata.resource_version,
            commit: annotations.get(COMMIT_ANNOTATION).cloned().unwrap_or_default(),
        });
        Ok(())
    }

    async fn write(&mut self, batch: &mut [Pending]) -> Result<(), JournalError> {
        let commit = digest([rand::random::<[u8; 16]>()]);
        let mut wait = Duration::from_millis(50);
        let mut last = JournalError::Unavailable("the API server refused every try".to_owned());
        // What was decided, and on which version: while that stands, an earlier try may still arrive, and
        // must be the same.
        let mut decided: Option<(Option<String>, Journal)> = None;
        let mut outlasted = self.outlasted;
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            let must_read = attempt > 0 || batch.iter().any(|pending| pending.fresh);
            if (self.known.is_none() || must_read)
                && let Err(e) = self.read().await
            {
                if matches!(e, JournalError::Broken { .. }) {
                    return Err(e);
                }
                last = e;
                continue;
            }
            let Some(known) = &self.known else { continue };
            // An earlier try whose answer was lost did arrive.
            if known.commit == commit {
                self.outlasted = outlasted;
                return Ok(());
            }
            let journal = match decided.take() {
                Some((version, journal)) if version == known.resource_version => journal,
                _ => {
                    let (now, pauses) = self.cluster.now_and_pauses(self.outlasted);
                    let mut journal = known.journal.clone();
                    outlasted = self.outlasted + pauses.len();
                    for pause in pauses {
                        journal.outlast(pause);
                    }
                    journal.compact(now);
                    for pending in &mut *batch {
                        (pending.decide)(&mut journal, now);
                    }
                    journal
                }
            };
            if journal == known.journal {
                self.outlasted = outlasted;
                return Ok(());
            }
            let (map, stored) = self.config_map(&journal, &commit, known.resource_version.clone());
            let written = match &known.resource_version {
                Some(_) => {
                    bounded(
                        self.api
                            .replace(&self.scope.journal_name(), &PostParams::default(), &map),
                    )
                    .await
                }
                None => bounded(self.api.create(&PostParams::default(), &map)).await,
            };
            match written {
                Ok(map) => {
                    let journal = Journal { stored, ..journal };
                    self.known = Some(Known {
                        journal,
                        resource_version: map.metadata.resource_version,
                        commit,
                    });
                    self.outlasted = outlasted;
                    return Ok(());
                }
                Err(e) => {
                    decided = Some((known.resource_version.clone(), journal));
                    if !e.is_conflict() {
                        tracing::warn!(journal = %self.scope.journal_name(), error = %e.brief(), "failed to write a journal");
                    }
                    last = JournalError::Unavailable(e.brief());
                }
            }
        }
        Err(last)
    }

    fn config_map(&self, journal: &Journal, commit: &str, resource_version: Option<String>) -> (ConfigMap, usize) {
        // Serialising these types cannot fail: no maps with keys other than strings, no fallible impls.
        let text = serde_json::to_string(journal).unwrap_or_default();
        let annotations = [
            (COMMIT_ANNOTATION, commit.to_owned()),
            (SIGNATURE_ANNOTATION, self.seal.sign_text(&text)),
            (
                TITLE_ANNOTATION,
                format!("{} at {}", self.scope.title(), self.scope.origin),
            ),
        ];
        let stored = text.len();
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.scope.journal_name()),
                resource_version,
                labels: Some(BTreeMap::from([
                    (MANAGED_BY_LABEL.to_owned(), MANAGER.to_owned()),
                    (JOURNAL_LABEL.to_owned(), "v1".to_owned()),
                ])),
                annotations: Some(annotations.map(|(k, v)| (k.to_owned(), v)).into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(DATA_KEY.to_owned(), text)])),
            ..ConfigMap::default()
        };
        (map, stored)
    }

    /// A signature under an earlier seal key says nothing; under this one it must fit.
    fn verify(&self, text: &str, signature: Option<&str>) -> Result<(), String> {
        match self.seal.verify_text(text, signature.unwrap_or_default()) {
            Some(true) | None => Ok(()),
            Some(false) => Err("it was edited by hand".to_owned()),
        }
    }
}
