//! Journals as `ConfigMaps`: a head and pages, committed by compare-and-swap, many decisions in one write.
//!
//! Each scope has one writer task: it takes every decision that waits, applies them in order to the
//! state they will be committed to, and writes what changed, in the order of a [`Flush`](crate::core::journal::pages::Flush). After a write whose
//! fate is unknown it lists what is there: while nobody else has written, the same commit goes on where it was.

mod store;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::SubsecRound;
use k8s_openapi::api::core::v1::ConfigMap;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Cluster, Error};
use crate::core::Time;
use crate::core::ids::PageId;
use crate::core::journal::pages::Layout;
use crate::core::journal::{Journal, Scope};
use crate::core::seal::SealKey;
use crate::core::spec::digest;

use store::{Listing, Step, Store};

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
    /// Listed, and not opened yet.
    listed: Mutex<HashMap<String, Vec<ConfigMap>>>,
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
            listed: Mutex::default(),
        }
    }

    /// The journal of `scope`; created with its first commit.
    pub fn of(&self, scope: &Scope) -> ScopeJournal {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        open.entry(scope.clone())
            .or_insert_with(|| {
                let store = Store::new(&self.cluster, &self.seal, scope.clone());
                let mut listed = self.listed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let listed = listed.remove(&scope.journal_name());
                Writer::start(self.cluster.clone(), store, listed)
            })
            .clone()
    }

    /// Every journal that is there. What was listed is what [`Self::of`] begins with.
    ///
    /// # Errors
    /// Where they cannot be listed.
    pub async fn list(&self) -> Result<Vec<Found>, Error> {
        let mut found = Vec::new();
        let mut listed = HashMap::new();
        for (name, maps) in store::list_all(&self.cluster).await? {
            let scope = maps.iter().find_map(|map| store::scope_of(map, &name));
            found.push(scope.map_or_else(|| Found::Illegible(name.clone()), Found::Scope));
            listed.insert(name, maps);
        }
        *self.listed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = listed;
        Ok(found)
    }

    /// The journal called `name`, where there is one.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn find(&self, name: &str) -> Result<Option<Found>, Error> {
        let head = store::head(&self.cluster, name).await?;
        Ok(head.map(|map| store::scope_of(&map, name).map_or_else(|| Found::Illegible(name.to_owned()), Found::Scope)))
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
    /// It does not even tell of which: the name of its head.
    Illegible(String),
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

/// What this process last read or wrote.
struct Known {
    journal: Journal,
    layout: Layout,
    versions: Versions,
}

/// The resource version of each object; absent for those that are not there.
#[derive(Clone, Default)]
struct Versions {
    head: Option<String>,
    pages: BTreeMap<PageId, String>,
}

struct Writer {
    cluster: Cluster,
    store: Store,
    known: Option<Known>,
    /// How many pauses of this process the journal has outlasted.
    outlasted: usize,
    /// It was there and could not be used: if it goes, what it knew is lost.
    broken: bool,
    /// The last commit may have been written in part.
    unsure: bool,
    view: watch::Sender<Option<Result<Arc<Journal>, JournalError>>>,
}

/// A commit that was decided, and how far it is written. As long as nobody else writes, an earlier try of a step may
/// still arrive, and must be the same.
struct Commit {
    id: String,
    journal: Journal,
    layout: Layout,
    steps: Vec<Step>,
    versions: Versions,
    outlasted: usize,
}

impl Writer {
    fn start(cluster: Cluster, store: Store, listed: Option<Vec<ConfigMap>>) -> ScopeJournal {
        let (queue, pending) = mpsc::unbounded_channel::<Pending>();
        let (view, seen) = watch::channel(None);
        // Those before it was opened are of no concern: it was written by whoever led then.
        let outlasted = cluster.now_and_pauses(0).1.len();
        let writer = Self {
            cluster,
            store,
            known: None,
            outlasted,
            broken: false,
            unsure: false,
            view,
        };
        tokio::spawn(writer.run(pending, listed));
        ScopeJournal { queue, view: seen }
    }

    async fn run(mut self, mut pending: mpsc::UnboundedReceiver<Pending>, listed: Option<Vec<ConfigMap>>) {
        let mut read = match listed {
            Some(maps) => {
                let listing = self.store.sort(maps);
                self.take(listing)
            }
            None => self.read().await,
        };
        self.publish(&read);
        loop {
            let first = if read.is_err() {
                // A journal that cannot be used is looked at again, so that mending it is enough.
                if let Ok(first) = tokio::time::timeout(Duration::from_secs(2), pending.recv()).await {
                    first
                } else {
                    read = self.read().await;
                    self.publish(&read);
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
            read = self.write(&mut batch).await;
            self.publish(&read);
            for waiting in batch {
                // Whoever asked may have gone.
                let _ = waiting.done.send(read.clone());
            }
        }
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
        let listing = self.store.list().await;
        listing.and_then(|listing| self.take(listing))
    }

    /// Takes over what was listed.
    fn take(&mut self, listing: Result<Listing, JournalError>) -> Result<(), JournalError> {
        self.broken |= listing.is_err();
        let Listing { head, pages } = listing?;
        let (now, scope) = (self.cluster.now(), self.store.scope());
        let versions = Versions {
            head: head.as_ref().map(|stored| stored.version.clone()),
            pages: pages
                .iter()
                .map(|stored| (stored.document.page.clone(), stored.version.clone()))
                .collect(),
        };
        let pages = pages.into_iter().map(|stored| stored.document).collect();
        let read = Layout::read(scope, head.map(|stored| stored.document), pages, now);
        let (mut journal, mut layout) = (read.journal, read.layout);
        for what in &read.lost {
            tracing::error!(journal = %scope.journal_name(), "part of a journal is lost: {what}");
        }
        match self.known.take() {
            // What was deleted, or put back, while it is held is written anew, and nothing is lost.
            Some(known) if !read.lost.is_empty() || versions.head.is_none() && known.versions.head.is_some() => {
                journal = known.journal;
                layout.store_anew(&known.layout);
            }
            Some(_) => {}
            None => {
                if self.broken && versions.head.is_none() {
                    journal.lost_at = Some(now);
                }
            }
        }
        self.broken = false;
        self.unsure = false;
        self.known = Some(Known {
            journal,
            layout,
            versions,
        });
        Ok(())
    }

    async fn write(&mut self, batch: &mut [Pending]) -> Result<(), JournalError> {
        let mut wait = Duration::from_millis(50);
        let mut last = JournalError::Unavailable("the API server refused every try".to_owned());
        let mut commit: Option<Commit> = None;
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            let must_read = attempt > 0 || self.unsure || batch.iter().any(|pending| pending.fresh);
            if self.known.is_none() || must_read {
                match self.store.list().await {
                    // Nobody else has written: it goes on where it was.
                    Ok(Ok(listing)) if commit.as_mut().is_some_and(|c| c.goes_on(&listing)) => {}
                    Ok(listing) => {
                        commit = None;
                        self.take(listing)?;
                    }
                    Err(error) => {
                        last = error;
                        continue;
                    }
                }
            }
            if commit.is_none() {
                commit = self.decide(batch);
            }
            let Some(mut decided) = commit.take() else {
                return Ok(());
            };
            match self.store.carry_out(&mut decided).await {
                Ok(()) => {
                    self.outlasted = decided.outlasted;
                    self.known = Some(Known {
                        journal: decided.journal,
                        layout: decided.layout,
                        versions: decided.versions,
                    });
                    return Ok(());
                }
                Err(error) => {
                    if !error.is_conflict() {
                        let journal = self.store.scope().journal_name();
                        tracing::warn!(%journal, error = %error.brief(), "failed to write a journal");
                    }
                    last = JournalError::Unavailable(error.brief());
                    commit = Some(decided);
                }
            }
        }
        self.unsure = true;
        Err(last)
    }

    /// Applies all decisions to what is known; `None` where that changes nothing.
    fn decide(&mut self, batch: &mut [Pending]) -> Option<Commit> {
        let known = self.known.as_ref()?;
        let (now, pauses) = self.cluster.now_and_pauses(self.outlasted);
        let now = now.trunc_subsecs(3);
        let mut before = known.journal.clone();
        before.compact(now);
        let mut journal = before.clone();
        let outlasted = self.outlasted + pauses.len();
        for pause in pauses {
            journal.outlast(pause);
        }
        for pending in &mut *batch {
            (pending.decide)(&mut journal, now);
        }
        let fresh_id = || PageId::from(&digest([rand::random::<[u8; 16]>()])[..10]);
        let before = if known.layout.is_anew() {
            &Journal::new(self.store.scope().clone())
        } else {
            &before
        };
        let Some(flush) = known.layout.flush(before, &mut journal, now, fresh_id) else {
            self.outlasted = outlasted;
            return None;
        };
        let id = digest([rand::random::<[u8; 16]>()]);
        let layout = flush.layout.clone();
        let steps = self.store.steps(flush, &id, &known.versions);
        Some(Commit {
            id,
            journal,
            layout,
            steps,
            versions: known.versions.clone(),
            outlasted,
        })
    }
}

impl Commit {
    /// Whether this commit is the only one that touched what it writes; notes which of its steps have arrived.
    fn goes_on(&mut self, listing: &Listing) -> bool {
        self.steps
            .iter_mut()
            .all(|step| step.stands(listing, &self.id, &mut self.versions))
    }
}
