//! The one task that writes a journal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::SubsecRound;
use litemap::LiteMap;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::index::Index;
use super::store::{Listing, Step, Store};
use super::{Changed, JournalError, Listed, Pending, ScopeJournal, Spawn, Timed};
use crate::cluster::{Cluster, Error};
use crate::core::ids::PageId;
use crate::core::journal::Journal;
use crate::core::journal::pages::Layout;
use crate::core::spec::digest;
use crate::planted::{Bug, is_planted};

const TRIES: u32 = 6;
/// How long an outcome waits for others: as long as a write takes, within these.
const LEAST_PATIENCE: Duration = Duration::from_millis(5);
const MOST_PATIENCE: Duration = Duration::from_millis(100);

/// What this process last read or wrote.
struct Known {
    journal: Journal,
    layout: Layout,
    versions: Versions,
}

/// The resource version of each object; absent for those that are not there.
#[derive(Clone, Default)]
pub(super) struct Versions {
    pub(super) head: Option<String>,
    pub(super) pages: BTreeMap<PageId, String>,
}

pub(super) struct Writer {
    cluster: Cluster,
    store: Store,
    index: Arc<Index>,
    /// The index names this journal.
    named: bool,
    close_after: Duration,
    changed: Changed,
    known: Option<Known>,
    /// How many pauses of this process the journal has outlasted.
    suspensions_applied: usize,
    /// It was there and could not be used: if it goes, what it knew is lost.
    broken: bool,
    /// The last commit may have been written in part.
    unsure: bool,
    /// How long the last batch took to be written.
    took: Duration,
    /// How many commits were written.
    written: u64,
    timed: Timed,
    /// How much each part takes, by its page; none for the head.
    sizes: LiteMap<Option<PageId>, usize>,
    bytes: Arc<AtomicUsize>,
    view: watch::Sender<Option<Result<Arc<Journal>, JournalError>>>,
}

/// A commit that was decided, and how far it is written. As long as nobody else writes, an earlier try of a step may
/// still arrive, and must be the same.
pub(super) struct Commit {
    id: String,
    journal: Journal,
    layout: Layout,
    pub(super) steps: Vec<Step>,
    pub(super) versions: Versions,
    suspensions_applied: usize,
}

impl Writer {
    pub(super) fn new(
        cluster: Cluster,
        store: Store,
        index: Arc<Index>,
        close_after: Duration,
        changed: Changed,
        timed: Timed,
    ) -> Self {
        // Those before it was opened are of no concern: it was written by whoever led then.
        let suspensions_applied = cluster.now_and_pauses(0).1.len();
        Self {
            cluster,
            store,
            index,
            named: false,
            close_after,
            changed,
            known: None,
            suspensions_applied,
            broken: false,
            unsure: false,
            took: LEAST_PATIENCE,
            written: 0,
            timed,
            sizes: LiteMap::default(),
            bytes: Arc::default(),
            view: watch::Sender::new(None),
        }
    }

    /// Begins with what was `listed`, or reads what there is.
    pub(super) fn start(mut self, listed: Option<Listed>, spawn: &Spawn) -> ScopeJournal {
        let (queue, pending) = mpsc::unbounded_channel::<Pending>();
        let (view, bytes) = (self.view.subscribe(), Arc::clone(&self.bytes));
        self.broken = matches!(listed, Some(Listed::Missing));
        spawn(Box::pin(self.run(pending, listed)));
        ScopeJournal { queue, view, bytes }
    }

    /// There is one of these for each scope, and it mostly waits: what it does meanwhile is boxed, so that waiting takes
    /// little room.
    async fn run(mut self, mut pending: mpsc::UnboundedReceiver<Pending>, listed: Option<Listed>) {
        let mut read = match listed {
            Some(Listed::Parts(maps)) => {
                let listing = self.store.sort(maps);
                self.take(listing)
            }
            Some(Listed::Absent | Listed::Missing) => self.take(Ok(Listing::default())),
            None => Box::pin(self.read()).await,
        };
        self.publish(&read);
        loop {
            let first = if read.is_err() {
                // A journal that cannot be used is looked at again, so that mending it is enough.
                if let Ok(first) = tokio::time::timeout(Duration::from_secs(2), pending.recv()).await {
                    first
                } else {
                    read = Box::pin(self.read()).await;
                    self.publish(&read);
                    continue;
                }
            } else if self.may_be_blank() {
                if let Ok(first) = tokio::time::timeout(self.close_after, pending.recv()).await {
                    first
                } else {
                    Box::pin(self.close()).await;
                    continue;
                }
            } else {
                pending.recv().await
            };
            let Some(first) = first else { return };
            let mut batch = vec![first];
            self.gather(&mut batch, &mut pending).await;
            tracing::debug!(journal = %self.store.scope().journal_name(), decisions = batch.len(), "commit");
            let began = Instant::now();
            let before = self.written;
            read = Box::pin(self.write(&mut batch)).await;
            self.took = began.elapsed();
            if self.written > before || read.is_err() {
                (self.timed)(self.took, read.is_ok());
            }
            self.publish(&read);
            for waiting in batch {
                // Whoever asked may have gone.
                let _ = waiting.done.send(read.clone());
            }
        }
    }

    /// Takes what else waits; and where all of it are outcomes while other claims are open, what comes while a write
    /// would take.
    async fn gather(&self, batch: &mut Vec<Pending>, pending: &mut mpsc::UnboundedReceiver<Pending>) {
        let open = self.known.as_ref().map_or(0, |known| known.journal.claims.len());
        let until = Instant::now() + (4 * self.took).clamp(LEAST_PATIENCE, MOST_PATIENCE);
        loop {
            while let Ok(more) = pending.try_recv() {
                batch.push(more);
            }
            if batch.len() >= open || batch.iter().any(|p| !p.patient) {
                return;
            }
            match tokio::time::timeout_at(until, pending.recv()).await {
                Ok(Some(more)) => batch.push(more),
                Ok(None) | Err(_) => return,
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
        self.changed.note(self.store.scope());
    }

    async fn read(&mut self) -> Result<(), JournalError> {
        let listing = self.store.list().await;
        listing.and_then(|listing| self.take(listing))
    }

    /// Takes over what was listed.
    fn take(&mut self, listing: Result<Listing, JournalError>) -> Result<(), JournalError> {
        self.broken |= listing.is_err();
        let Listing { head, pages } = listing?;
        let sizes = head.iter().map(|stored| (None, stored.bytes));
        let of_pages = pages
            .iter()
            .map(|stored| (Some(stored.document.page.clone()), stored.bytes));
        self.sizes = sizes.chain(of_pages).collect();
        self.count();
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
                    layout.must_write_head();
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
            if is_planted(Bug::MintBeforeClaim)
                && let Some(known) = &mut self.known
                && decided.journal.claims.len() > known.journal.claims.len()
            {
                known.journal = decided.journal;
                return Ok(());
            }
            let written = match self.store.carry_out(&mut decided).await {
                Ok(()) => self.name().await,
                failed => failed,
            };
            match written {
                Ok(()) => {
                    self.written += 1;
                    for step in &decided.steps {
                        let (page, bytes) = step.size();
                        match bytes {
                            Some(bytes) => self.sizes.insert(page, bytes),
                            None => self.sizes.remove(&page),
                        };
                    }
                    self.count();
                    self.suspensions_applied = decided.suspensions_applied;
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

    fn count(&self) {
        self.bytes.store(self.sizes.values().sum(), Ordering::Relaxed);
    }

    /// Has the index name this journal before anybody acts on what was written: a head that goes missing after that is
    /// missed at the next start, and before it no request of its claims has left.
    async fn name(&mut self) -> Result<(), Error> {
        if !self.named {
            self.index.add(self.store.scope()).await?;
            self.named = true;
        }
        Ok(())
    }

    fn may_be_blank(&self) -> bool {
        self.known.as_ref().is_some_and(|known| {
            let journal = &known.journal;
            known.versions.head.is_some() && journal.credentials.is_empty() && journal.claims.is_empty()
        })
    }

    /// Lets go of a journal in which nothing matters any more.
    async fn close(&mut self) {
        let (now, pauses) = self.cluster.now_and_pauses(self.suspensions_applied);
        let Some(known) = &self.known else { return };
        let (_, journal) = known.journal.begin(&pauses, now);
        let Some(version) = known.versions.head.clone().filter(|_| journal.is_blank()) else {
            return;
        };
        self.named = false;
        if self.index.remove(self.store.scope()).await.is_ok() && self.store.delete_head(&version).await.is_ok() {
            self.known = Some(Known {
                journal: Journal::new(self.store.scope().clone()),
                layout: Layout::default(),
                versions: Versions::default(),
            });
            self.sizes = LiteMap::default();
            self.count();
            self.publish(&Ok(()));
        } else {
            self.unsure = true;
        }
    }

    /// Applies all decisions to what is known; `None` where that changes nothing.
    fn decide(&mut self, batch: &mut [Pending]) -> Option<Commit> {
        let known = self.known.as_ref()?;
        let (now, pauses) = self.cluster.now_and_pauses(self.suspensions_applied);
        let now = now.trunc_subsecs(3);
        let suspensions_applied = self.suspensions_applied + pauses.len();
        let (before, mut journal) = known.journal.begin(&pauses, now);
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
            self.suspensions_applied = suspensions_applied;
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
            suspensions_applied,
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
