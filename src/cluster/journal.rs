//! Journals as `ConfigMaps`: a head and pages, committed by compare-and-swap, many decisions in one write.
//!
//! Each scope has one writer task: it takes every decision that waits, applies them in order to the
//! state they will be committed to, and writes what changed, in the order of a [`Flush`](crate::core::journal::pages::Flush). After a write whose
//! fate is unknown it lists what is there: while nobody else has written, the same commit goes on where it was.

mod index;
mod store;
mod writer;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Cluster, Error};
use crate::api::RateScope;
use crate::core::Time;
use crate::core::journal::{Journal, Scope};
use crate::core::seal::SealKey;

use index::Index;
use store::Store;
use writer::Writer;

/// How long a journal without records is kept before it is looked whether anything of it matters still.
const CLOSE_AFTER: Duration = Duration::from_secs(300);

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

/// Starts the task that writes a journal.
pub type Spawn = Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>;

/// Told how long each commit took, and whether it was written.
pub type Timed = Arc<dyn Fn(Duration, bool) + Send + Sync>;

type Decision = Box<dyn FnMut(&mut Journal, Time) + Send>;

struct Pending {
    decide: Decision,
    /// Decides on what the API server holds now, not on what this process last saw.
    fresh: bool,
    /// May wait for others as long as a write takes.
    patient: bool,
    done: oneshot::Sender<Result<(), JournalError>>,
}

/// How a decision is asked for.
#[derive(Clone, Copy, PartialEq)]
enum Ask {
    Now,
    Together,
    Fresh,
}

/// All journals of this controller.
pub struct Journals {
    cluster: Cluster,
    seal: SealKey,
    open: Mutex<HashMap<Scope, ScopeJournal>>,
    index: Arc<Index>,
    close_after: Duration,
    spawn: Spawn,
    timed: Timed,
    changed: Changed,
    /// What was listed, where it was.
    listed: Mutex<Option<Found>>,
}

/// One scope's journal. Cheap to clone.
#[derive(Clone)]
pub struct ScopeJournal {
    queue: mpsc::UnboundedSender<Pending>,
    view: watch::Receiver<Option<Result<Arc<Journal>, JournalError>>>,
    bytes: Arc<AtomicUsize>,
}

impl Journals {
    /// The journals in the controller's namespace.
    #[must_use]
    pub fn new(cluster: Cluster, seal: SealKey) -> Self {
        Self {
            index: Arc::new(Index::new(&cluster, &seal)),
            cluster,
            seal,
            open: Mutex::default(),
            close_after: CLOSE_AFTER,
            spawn: Arc::new(|task| {
                tokio::spawn(task);
            }),
            timed: Arc::new(|_, _| {}),
            changed: Changed::default(),
            listed: Mutex::new(None),
        }
    }

    /// When journals are let go of in which nothing matters any more.
    #[must_use]
    pub const fn close_after(&self) -> Duration {
        self.close_after
    }

    /// Lets go of journals in which nothing matters any more after so long, instead of five minutes.
    #[must_use]
    pub const fn closing_after(mut self, rest: Duration) -> Self {
        self.close_after = rest;
        self
    }

    /// Has the tasks that write journals started by `spawn`, which sees to it that none ends unnoticed.
    #[must_use]
    pub fn spawning(mut self, spawn: Spawn) -> Self {
        self.spawn = spawn;
        self
    }

    /// Has `timed` told of every commit.
    #[must_use]
    pub fn timing(mut self, timed: Timed) -> Self {
        self.timed = timed;
        self
    }

    /// The journal of `scope`; created with its first commit.
    pub fn of(&self, scope: &Scope) -> ScopeJournal {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        open.entry(scope.clone())
            .or_insert_with(|| {
                let store = Store::new(&self.cluster, &self.seal, scope.clone());
                let mut listed = self.listed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let listed = listed.as_mut().and_then(|found| found.take(scope));
                let index = Arc::clone(&self.index);
                let writer = Writer::new(
                    self.cluster.clone(),
                    store,
                    index,
                    self.close_after,
                    self.changed.clone(),
                    Arc::clone(&self.timed),
                );
                writer.start(listed, &self.spawn)
            })
            .clone()
    }

    /// Begins to list every journal that is there. What is listed is what [`Self::of`] begins with.
    pub fn begin_listing(&self) -> Listing {
        *self.listed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Found::default());
        Listing::default()
    }

    /// The next journals of a list; `None` where there are no more. Whoever opens them before asking on holds no more of
    /// them in memory than one answer has.
    ///
    /// # Errors
    /// Where they cannot be listed: then it begins anew.
    pub async fn next(&self, listing: &mut Listing) -> Result<Option<Vec<Entry>>, Error> {
        if listing.complete {
            return Ok(None);
        }
        let page = store::list_page(&self.cluster, listing.token.take()).await?;
        listing.token = page.metadata.continue_.filter(|token| !token.is_empty());
        let mut whole = Vec::new();
        for map in page.items {
            match store::part_of(&map) {
                None => listing.index.push(map),
                Some(of) if listing.held.0 == of => listing.held.1.push(map),
                // The names of a journal's parts begin with that of its head: they come one after the other.
                Some(of) => whole.push(std::mem::replace(&mut listing.held, (of, vec![map]))),
            }
        }
        listing.complete = listing.token.is_none();
        if listing.complete {
            whole.push(std::mem::take(&mut listing.held));
        }
        whole.retain(|(_, maps)| !maps.is_empty());
        let mut entries: Vec<Entry> = whole
            .into_iter()
            .map(|(name, maps)| self.found(listing, name, maps))
            .collect();
        if listing.complete {
            for scope in self.index.take(std::mem::take(&mut listing.index)).await {
                if !listing.seen.contains(&scope.journal_name()) {
                    self.note(|found| found.journals.insert(scope.journal_name(), Listed::Missing));
                    entries.push(Entry::Scope(scope));
                }
            }
            self.note(|found| found.complete = true);
        }
        Ok(Some(entries))
    }

    fn note<R>(&self, change: impl FnOnce(&mut Found) -> R) {
        let mut listed = self.listed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(listed.get_or_insert_default());
    }

    fn found(&self, listing: &mut Listing, name: String, maps: Vec<ConfigMap>) -> Entry {
        let scope = maps.iter().find_map(|map| store::scope_of(map, &name));
        let renamed = scope.as_ref().filter(|scope| {
            scope.kind == RateScope::Key && maps.iter().any(|map| store::is_of_another_key(map, &self.seal))
        });
        self.note(|found| {
            found.renamed.extend(renamed.map(|scope| Arc::clone(&scope.origin)));
            found.journals.insert(name.clone(), Listed::Parts(maps));
        });
        listing.seen.insert(name.clone());
        scope.map_or(Entry::Illegible(name), Entry::Scope)
    }

    /// The journal called `name`, where there is one.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn find(&self, name: &str) -> Result<Option<Entry>, Error> {
        let head = store::head(&self.cluster, name).await?;
        Ok(head.map(|map| store::scope_of(&map, name).map_or_else(|| Entry::Illegible(name.to_owned()), Entry::Scope)))
    }

    /// The scopes whose journals have another view than when this was asked last.
    #[must_use]
    pub fn take_changed(&self) -> HashSet<Scope> {
        std::mem::take(&mut self.changed.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Forgets the journal of `scope`, once nobody has a use for it: its task ends with the last [`ScopeJournal`].
    pub fn forget(&self, scope: &Scope) {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        open.remove(scope);
    }

    /// The scopes whose journals were opened.
    #[must_use]
    pub fn opened(&self) -> Vec<Scope> {
        let open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        open.keys().cloned().collect()
    }
}

/// Whose view is another one by now: noted by all writers, for whoever looks at all of them.
#[derive(Clone, Default)]
struct Changed(Arc<Mutex<HashSet<Scope>>>);

impl Changed {
    fn note(&self, scope: &Scope) {
        let mut changed = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !changed.contains(scope) {
            changed.insert(scope.clone());
        }
    }
}

/// A journal as it was listed.
enum Listed {
    /// Its head and pages.
    Parts(Vec<ConfigMap>),
    /// Something of it must have been there, and nothing is.
    Missing,
    /// There is none.
    Absent,
}

/// All that was listed, as far as it was not opened yet.
#[derive(Default)]
struct Found {
    journals: HashMap<String, Listed>,
    /// Where API keys were named by a seal key that is lost: what was spent by them is not known by their new names.
    renamed: HashSet<Arc<str>>,
    /// All were listed.
    complete: bool,
}

impl Found {
    /// How `scope` was listed; `None` where that may still come.
    fn take(&mut self, scope: &Scope) -> Option<Listed> {
        let renamed = scope.kind == RateScope::Key && self.renamed.contains(&scope.origin);
        let unlisted = if renamed { Listed::Missing } else { Listed::Absent };
        let listed = self.journals.remove(&scope.journal_name());
        listed.or_else(|| self.complete.then_some(unlisted))
    }
}

/// How far a list of all journals has come.
#[derive(Default)]
pub struct Listing {
    token: Option<String>,
    /// Of this journal more parts may come.
    held: (String, Vec<ConfigMap>),
    index: Vec<ConfigMap>,
    seen: HashSet<String>,
    complete: bool,
}

/// A journal that is there.
#[derive(Debug)]
pub enum Entry {
    /// Of this scope; whether all of it can be read is another question.
    Scope(Scope),
    /// It does not even tell of which: the name of its head.
    Illegible(String),
}

impl ScopeJournal {
    /// How much its parts take as they are stored.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether nothing matters in it, and nothing of it is stored.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.bytes() == 0 && matches!(&*self.view.borrow(), Some(Ok(journal)) if journal.is_blank())
    }

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
        self.ask(Ask::Now, decide).await
    }

    /// As [`Self::commit`], for the outcome of a claim: while others of the scope are open it waits for theirs, as long
    /// as a write takes now.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub async fn commit_together<R: Send + 'static>(
        &self,
        decide: impl FnMut(&mut Journal, Time) -> R + Send + 'static,
    ) -> Result<R, JournalError> {
        self.ask(Ask::Together, decide).await
    }

    /// What `question` says of the journal as the API server holds it now.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn fresh<R: Send + 'static>(
        &self,
        mut question: impl FnMut(&Journal) -> R + Send + 'static,
    ) -> Result<R, JournalError> {
        self.ask(Ask::Fresh, move |journal, _| question(journal)).await
    }

    async fn ask<R: Send + 'static>(
        &self,
        ask: Ask,
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
        let pending = Pending {
            decide,
            fresh: ask == Ask::Fresh,
            patient: ask == Ask::Together,
            done,
        };
        self.queue.send(pending).map_err(|_| stopping())?;
        committed.await.map_err(|_| stopping())??;
        result
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
            .ok_or_else(stopping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::journal::tests_support::scope;

    #[test]
    fn where_keys_were_named_by_a_lost_seal_key_what_was_spent_by_a_key_is_not_known() {
        let of_key = |origin: &str| Scope {
            kind: RateScope::Key,
            origin: origin.into(),
            ..scope()
        };
        let mut found = Found {
            renamed: [Arc::from("https://a")].into(),
            complete: true,
            ..Found::default()
        };
        found.journals.insert(scope().journal_name(), Listed::Parts(Vec::new()));
        assert!(matches!(found.take(&of_key("https://a")), Some(Listed::Missing)));
        assert!(matches!(found.take(&of_key("https://b")), Some(Listed::Absent)));
        assert!(matches!(found.take(&scope()), Some(Listed::Parts(_))));
        assert!(matches!(found.take(&scope()), Some(Listed::Absent)));
        found.complete = false;
        assert!(found.take(&scope()).is_none(), "it may still come");
    }
}
