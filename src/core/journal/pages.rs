//! How a journal is spread over objects: a head, and pages of records.
//!
//! A commit is written as a [`Flush`], in this order: records that move to pages nobody reads yet; pages that
//! changed; the head, whose compare-and-swap is the fence; pages that the head has just named. Whatever step it
//! stops at, [`Layout::read`] finds of each credential either what was before or what is after:
//!
//! - What a page says of a claim that the head still shows open (`Closed`) is what holds, and the head
//!   follows with its next commit.
//! - A page is read only once the head names it; named with commit 0, it may be missing, and is empty then.
//! - Events and revocations that move to another page are in both until the head names it, and one again then.

mod draft;
#[cfg(test)]
mod model;
mod read;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::Serialize;

use super::Journal;
use crate::core::Time;
use crate::core::ids::{PageId, Uid};

use draft::Draft;
use stored::Closed;
pub use stored::{Head, Page};

/// The layout this code reads and writes.
pub const VERSION: u32 = 2;
/// An event or a revocation, within its credential.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Event(u64),
    Owed(Arc<str>),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct PageState {
    /// How often it was written; 0 where it is not there yet.
    commit: u64,
    /// The stored head names it.
    named: bool,
    /// What it takes as stored.
    bytes: usize,
    /// Whose records it holds.
    uids: OrdSet<Uid>,
    /// What it took over from other pages.
    taken_over: OrdSet<(Uid, Item)>,
    /// What is stored holds more than it should: it is written with the next commit.
    stale: bool,
}

impl PageState {
    fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.taken_over.is_empty()
    }
}

/// Where everything of a journal is. Cheap to clone, as a [`Journal`] is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    head_commit: u64,
    /// The stored head does not say what pages do.
    head_stale: bool,
    /// Nothing that is stored counts: all is written anew.
    anew: bool,
    pages: OrdMap<PageId, PageState>,
    /// The page of each record; those of others are in the head.
    home: OrdMap<Uid, PageId>,
    inline: OrdSet<Uid>,
    moved: OrdMap<(Uid, Item), PageId>,
    /// Outcomes that pages hold and the stored head does not.
    closed: BTreeMap<Uid, Closed>,
    /// Pages that no head names: nobody reads them.
    orphans: BTreeSet<PageId>,
}

/// What is to be written for one commit, in the order of the fields.
#[derive(Clone, Debug)]
pub struct Flush {
    /// Pages to create that nobody reads yet.
    pub fresh: Vec<Page>,
    /// Pages to replace; one with commit 1 is to be created.
    pub pages: Vec<Page>,
    /// The head to replace; one with commit 1 is to be created.
    pub head: Option<Head>,
    /// Pages to create that the head has just named.
    pub named: Vec<Page>,
    /// Pages to delete, which no head names any more.
    pub dropped: Vec<PageId>,
    /// Where everything is then.
    pub layout: Layout,
}

/// What was found of a journal.
#[derive(Debug)]
pub struct Stored {
    /// All that the head and its pages tell.
    pub journal: Journal,
    /// Where it is.
    pub layout: Layout,
    /// What is missing, for the log.
    pub lost: Vec<String>,
}

impl Layout {
    /// Has all written anew: what is stored has lost something that whoever wrote `last` still knows.
    pub fn store_anew(&mut self, last: &Self) {
        let found = self.pages.keys().chain(&self.orphans).cloned();
        *self = Self {
            head_commit: self.head_commit.max(last.head_commit),
            head_stale: true,
            anew: true,
            orphans: found.collect(),
            ..Self::default()
        };
    }

    /// Has the head written with the next commit, whatever that changes.
    pub const fn must_write_head(&mut self) {
        self.head_stale = true;
    }

    /// Whether nothing that is stored counts.
    #[must_use]
    pub const fn is_anew(&self) -> bool {
        self.anew
    }

    /// What is to be written so that `after` is stored where `before` is; `None` where nothing is. Records in pages
    /// that are written anyway are compacted, and new claims told their page. `fresh_id` gives names that were never
    /// used.
    pub fn flush(
        &self,
        before: &Journal,
        after: &mut Journal,
        now: Time,
        fresh_id: impl FnMut() -> PageId,
    ) -> Option<Flush> {
        Draft::new(self.clone(), before, after, fresh_id).flush(now)
    }
}

/// What something takes as stored.
fn size(what: &impl Serialize) -> usize {
    // Serialising these types cannot fail: no maps with keys other than strings, no fallible impls.
    serde_json::to_vec(what).map_or(0, |bytes| bytes.len())
}
