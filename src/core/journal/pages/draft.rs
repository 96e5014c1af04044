//! From two views of a journal to what is to be written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use imbl::ordmap::DiffItem;

use super::stored::{Closed, Slot};
use super::{Flush, Head, Item, Layout, Page, PageState, VERSION, size};
use crate::core::Time;
use crate::core::ids::{PageId, Uid};
use crate::core::journal::{Claim, Journal};

/// Records are in the head as long as they take no more bytes than this.
const INLINE: usize = 32 * 1024;
/// A page takes in new records while it is smaller.
const FILLED: usize = 64 * 1024;
/// Records that leave the head are spread over pages of this size.
const MOVED: usize = 48 * 1024;
/// A page larger than this gives events and revocations away,
const FULL: usize = 192 * 1024;
/// until what remains takes no more than this.
const RELIEVED: usize = 96 * 1024;

/// What changed: whose record, and which events and revocations.
struct Touched {
    records: BTreeSet<Uid>,
    items: BTreeSet<(Uid, Item)>,
}

fn touched(before: &Journal, after: &Journal) -> Touched {
    fn key<K: Clone, V>(change: &DiffItem<'_, '_, K, V>) -> K {
        let (DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. }) = change;
        (*key).clone()
    }
    let records = before.credentials.diff(&after.credentials).map(|c| key(&c)).collect();
    let events = before.audit.diff(&after.audit).map(|c| key(&c));
    let owed = before.revocations.diff(&after.revocations).map(|c| key(&c));
    let items = events
        .map(|(uid, seq)| (uid, Item::Event(seq)))
        .chain(owed.map(|(uid, id)| (uid, Item::Owed(id))));
    Touched {
        records,
        items: items.collect(),
    }
}

/// A flush in the making.
pub(super) struct Draft<'a, F> {
    layout: Layout,
    before: &'a Journal,
    after: &'a mut Journal,
    /// Pages to write.
    dirty: BTreeSet<PageId>,
    /// Whether the head is to be written.
    head: bool,
    fresh: Vec<Page>,
    fresh_id: F,
}

impl<'a, F: FnMut() -> PageId> Draft<'a, F> {
    pub(super) fn new(layout: Layout, before: &'a Journal, after: &'a mut Journal, fresh_id: F) -> Self {
        Self {
            head: layout.head_stale,
            layout,
            before,
            after,
            dirty: BTreeSet::new(),
            fresh: Vec::new(),
            fresh_id,
        }
    }

    pub(super) fn flush(mut self, now: Time) -> Option<Flush> {
        let touched = &touched(self.before, self.after);
        let stale = self.layout.pages.iter().filter(|(_, page)| page.stale);
        self.dirty = stale.map(|(id, _)| id.clone()).collect();
        self.head |= self.head_changed();
        self.layout.anew = false;
        self.place(touched);
        self.note_outcomes(touched, now);
        self.compact(now);
        self.place_claims();
        self.forget_empty();
        self.move_out_of_head();
        if self.dirty.is_empty() && !self.head {
            return None;
        }
        let pages = self.write_pages();
        self.head |= !self.fresh.is_empty();
        Some(self.finish(pages))
    }

    /// Finds the place of all that changed.
    fn place(&mut self, touched: &Touched) {
        let uids: BTreeSet<&Uid> = touched
            .records
            .iter()
            .chain(touched.items.iter().map(|(uid, _)| uid))
            .collect();
        for uid in uids {
            if self.layout.home.contains_key(uid) || self.layout.inline.contains(uid) {
                continue;
            }
            let claimed = [&*self.after, self.before].into_iter().find_map(|j| j.claims.get(uid));
            let bytes = size(&self.slot(uid, None));
            let named = claimed.and_then(|claim| claim.page.clone());
            let named = named.filter(|id| self.layout.pages.contains_key(id));
            match named.or_else(|| self.page_with_room(bytes)) {
                Some(id) => self.settle_in(uid, &id),
                None => {
                    self.layout.inline.insert(uid.clone());
                }
            }
        }
        for uid in &touched.records {
            self.touch_home(uid);
        }
        for (uid, item) in &touched.items {
            match self.layout.moved.get(&(uid.clone(), item.clone())) {
                Some(id) => {
                    self.dirty.insert(id.clone());
                    self.forget_moved(uid, item);
                }
                None => self.touch_home(uid),
            }
        }
    }

    fn settle_in(&mut self, uid: &Uid, id: &PageId) {
        self.layout.home.insert(uid.clone(), id.clone());
        self.layout
            .pages
            .entry(id.clone())
            .or_default()
            .uids
            .insert(uid.clone());
    }

    fn touch_home(&mut self, uid: &Uid) {
        match self.layout.home.get(uid) {
            Some(id) => {
                self.dirty.insert(id.clone());
            }
            None => self.head = true,
        }
    }

    fn forget_moved(&mut self, uid: &Uid, item: &Item) {
        let gone = match item {
            Item::Event(seq) => !self.after.audit.contains_key(&(uid.clone(), *seq)),
            Item::Owed(id) => !self.after.revocations.contains_key(&(uid.clone(), Arc::clone(id))),
        };
        let key = (uid.clone(), item.clone());
        if gone
            && let Some(id) = self.layout.moved.remove(&key)
            && let Some(page) = self.layout.pages.get_mut(&id)
        {
            page.taken_over.remove(&key);
        }
    }

    /// A page that takes in a record of so many bytes; a new one where all are filled, none while the head has room.
    fn page_with_room(&mut self, bytes: usize) -> Option<PageId> {
        if self.layout.pages.is_empty() {
            return None;
        }
        let reserved = self.reserved();
        let room =
            |(id, page): &(&PageId, &PageState)| page.bytes + reserved.get(*id).copied().unwrap_or(0) + bytes <= FILLED;
        let fullest = self.layout.pages.iter().filter(room).max_by_key(|(_, page)| page.bytes);
        Some(match fullest {
            Some((id, _)) => id.clone(),
            None => self.new_page(),
        })
    }

    fn new_page(&mut self) -> PageId {
        let id = (self.fresh_id)();
        self.layout.pages.insert(id.clone(), PageState::default());
        self.head = true;
        id
    }

    /// What claims will add to pages that have no record of them yet.
    fn reserved(&self) -> HashMap<PageId, usize> {
        let mut reserved = HashMap::new();
        for (uid, claim) in &self.after.claims {
            if let Some(id) = claim.page.as_ref().filter(|_| !self.layout.home.contains_key(uid)) {
                *reserved.entry(id.clone()).or_default() += expected(claim);
            }
        }
        reserved
    }

    /// Tells new claims where their outcomes go.
    fn place_claims(&mut self) {
        let new: Vec<Uid> = self
            .before
            .claims
            .diff(&self.after.claims)
            .filter_map(|change| match change {
                DiffItem::Add(uid, _) => Some(uid.clone()),
                DiffItem::Update { old, new } if old.1.id != new.1.id => Some(new.0.clone()),
                _ => None,
            })
            .collect();
        for uid in new {
            let Some(bytes) = self.after.claims.get(&uid).map(|claim| expected(claim)) else {
                continue;
            };
            let page = match self.layout.home.get(&uid) {
                Some(id) => Some(id.clone()),
                None if self.layout.inline.contains(&uid) => None,
                None => self.page_with_room(bytes),
            };
            if let Some(claim) = self.after.claims.get_mut(&uid).filter(|c| c.page != page) {
                Arc::make_mut(claim).page = page;
            }
        }
    }

    /// Compacts the records of pages that are written, and forgets who has nothing there any more.
    fn compact(&mut self, now: Time) {
        let dirty: Vec<(Option<PageId>, Vec<Uid>)> = self
            .dirty
            .iter()
            .map(|id| {
                let uids = self
                    .layout
                    .pages
                    .get(id)
                    .map(|page| page.uids.iter().cloned().collect());
                (Some(id.clone()), uids.unwrap_or_default())
            })
            .chain(self.head.then(|| (None, self.layout.inline.iter().cloned().collect())))
            .collect();
        for (id, uids) in dirty {
            for uid in uids {
                self.after.compact_record(uid.as_str(), now);
                if !self.slot(&uid, id.as_ref()).is_empty() {
                    continue;
                }
                if let Some(id) = &id {
                    self.layout.home.remove(&uid);
                    if let Some(page) = self.layout.pages.get_mut(id) {
                        page.uids.remove(&uid);
                    }
                } else {
                    self.layout.inline.remove(&uid);
                }
            }
        }
    }

    /// Notes in pages which claims their records close, until the head says so itself.
    fn note_outcomes(&mut self, touched: &Touched, now: Time) {
        for change in self.before.claims.diff(&self.after.claims) {
            let (uid, claim) = match change {
                DiffItem::Remove(uid, claim) => (uid, claim),
                DiffItem::Update { old, new } if old.1.id != new.1.id => old,
                _ => continue,
            };
            // A claim that was only withdrawn left nothing in its page.
            let told = touched.records.contains(uid) || touched.items.iter().any(|(of, _)| of == uid);
            if !told || self.layout.inline.contains(uid) {
                continue;
            }
            let attempt = self.after.ended.get(uid).cloned().flatten();
            self.layout.closed.insert(
                uid.clone(),
                Closed {
                    claim: claim.id.clone(),
                    at: now,
                    attempt,
                    throttle: self.after.throttle.clone(),
                    unauthorized: self.after.unauthorized.clone(),
                    typical_lifetime: self.after.typical_lifetime,
                },
            );
        }
    }

    /// Lets go of pages that hold nothing and that no claim needs.
    fn forget_empty(&mut self) {
        let needed: BTreeSet<&PageId> = self.after.claims.values().filter_map(|c| c.page.as_ref()).collect();
        let empty: Vec<PageId> = self
            .layout
            .pages
            .iter()
            .filter(|(id, page)| page.is_empty() && !needed.contains(id))
            .map(|(id, _)| id.clone())
            .collect();
        for id in empty {
            self.layout.pages.remove(&id);
            self.dirty.remove(&id);
            self.layout.orphans.insert(id);
            self.head = true;
        }
    }

    fn head_changed(&self) -> bool {
        let (a, b) = (self.before, &*self.after);
        a.window_seconds != b.window_seconds
            || a.attempts != b.attempts
            || a.claims != b.claims
            || a.throttle != b.throttle
            || a.unauthorized != b.unauthorized
            || a.typical_lifetime != b.typical_lifetime
            || a.lost_at != b.lost_at
    }

    /// Moves all records out of a head that has grown too large.
    fn move_out_of_head(&mut self) {
        if !self.head {
            return;
        }
        let slots: Vec<(Uid, usize)> = self
            .layout
            .inline
            .iter()
            .map(|uid| (uid.clone(), size(&self.slot(uid, None))))
            .collect();
        if slots.iter().map(|(_, bytes)| bytes).sum::<usize>() <= INLINE {
            return;
        }
        self.layout.inline.clear();
        let mut page: Option<(PageId, usize)> = None;
        let mut fresh = Vec::new();
        for (uid, bytes) in slots {
            let id = match &page {
                Some((id, filled)) if filled + bytes <= MOVED => id.clone(),
                _ => {
                    let id = self.new_page();
                    fresh.push(id.clone());
                    page = Some((id.clone(), 0));
                    id
                }
            };
            if let Some((_, filled)) = &mut page {
                *filled += bytes;
            }
            self.settle_in(&uid, &id);
        }
        for id in fresh {
            let page = self.page(&id);
            self.fresh.push(page);
        }
    }

    /// The pages to write, relieved of what is too much for them.
    fn write_pages(&mut self) -> Vec<Page> {
        let mut pages = Vec::new();
        for id in std::mem::take(&mut self.dirty) {
            let page = self.page(&id);
            let bytes = self.layout.pages.get(&id).map_or(0, |p| p.bytes);
            if bytes > FULL {
                self.relieve(&id, bytes);
            }
            pages.push(page);
        }
        pages
    }

    /// Gives the oldest events and revocations of a page to pages of their own. They are in both until the head names
    /// those.
    fn relieve(&mut self, id: &PageId, mut bytes: usize) {
        let Some(state) = self.layout.pages.get(id) else { return };
        let mut items: Vec<(Time, Uid, Item, usize)> = Vec::new();
        for uid in &state.uids {
            let events = self.after.events_of(uid.as_str());
            items.extend(events.map(|e| (e.at, uid.clone(), Item::Event(e.seq), size(e))));
            let owed = self.after.owed_of(uid.as_str());
            items.extend(owed.map(|r| (r.due, uid.clone(), Item::Owed(r.token_id.as_str().into()), size(r))));
        }
        items.retain(|(_, uid, item, _)| !self.layout.moved.contains_key(&(uid.clone(), item.clone())));
        items.sort();
        let mut page: Option<(PageId, usize)> = None;
        let mut fresh = Vec::new();
        for (_, uid, item, size) in items {
            if bytes <= RELIEVED {
                break;
            }
            bytes = bytes.saturating_sub(size);
            let to = match &page {
                Some((to, filled)) if filled + size <= FULL / 2 => to.clone(),
                _ => {
                    let to = self.new_page();
                    fresh.push(to.clone());
                    page = Some((to.clone(), 0));
                    to
                }
            };
            if let Some((_, filled)) = &mut page {
                *filled += size;
            }
            let key = (uid, item);
            if let Some(state) = self.layout.pages.get_mut(&to) {
                state.taken_over.insert(key.clone());
            }
            self.layout.moved.insert(key, to);
        }
        if !fresh.is_empty()
            && let Some(state) = self.layout.pages.get_mut(id)
        {
            state.stale = true;
        }
        for to in fresh {
            let page = self.page(&to);
            self.fresh.push(page);
        }
    }

    /// All that the page `at`, or the head, holds of a credential.
    fn slot(&self, uid: &Uid, at: Option<&PageId>) -> Slot {
        let here = |item: Item| !self.layout.moved.contains_key(&(uid.clone(), item));
        let events = self.after.events_of(uid.as_str());
        let owed = self.after.owed_of(uid.as_str());
        Slot {
            record: self.after.credentials.get(uid).cloned(),
            events: events.filter(|e| here(Item::Event(e.seq))).cloned().collect(),
            owed: owed
                .filter(|r| here(Item::Owed(r.token_id.as_str().into())))
                .cloned()
                .collect(),
            closed: at.and_then(|_| self.layout.closed.get(uid).cloned()),
        }
    }

    /// The page `id` as it is to be written now.
    fn page(&mut self, id: &PageId) -> Page {
        let state = self.layout.pages.get(id).cloned().unwrap_or_default();
        let mut slots: BTreeMap<Uid, Slot> = BTreeMap::new();
        for uid in &state.uids {
            slots.insert(uid.clone(), self.slot(uid, Some(id)));
        }
        for (uid, item) in &state.taken_over {
            let slot = slots.entry(uid.clone()).or_default();
            match item {
                Item::Event(seq) => slot.events.extend(self.after.audit.get(&(uid.clone(), *seq)).cloned()),
                Item::Owed(token) => {
                    let owed = self.after.revocations.get(&(uid.clone(), Arc::clone(token)));
                    slot.owed.extend(owed.cloned());
                }
            }
        }
        slots.retain(|_, slot| !slot.is_empty());
        let page = Page {
            version: VERSION,
            scope: self.after.scope.clone(),
            page: id.clone(),
            commit: state.commit + 1,
            head: self.layout.head_commit,
            slots,
        };
        if let Some(state) = self.layout.pages.get_mut(id) {
            state.commit = page.commit;
            state.bytes = size(&page);
            state.stale = false;
        }
        page
    }

    fn finish(mut self, pages: Vec<Page>) -> Flush {
        // What nobody reads before the head names it comes first; what the head has just named is created after it.
        let (pages, unnamed): (Vec<Page>, Vec<Page>) = pages
            .into_iter()
            .partition(|page| self.layout.pages.get(&page.page).is_some_and(|state| state.named));
        let fresh: Vec<Page> = self.fresh.drain(..).chain(unnamed).collect();
        let missing: Vec<PageId> = self
            .layout
            .pages
            .iter()
            .filter(|(_, state)| state.commit == 0)
            .map(|(id, _)| id.clone())
            .collect();
        let mut head = None;
        let mut dropped = Vec::new();
        if self.head {
            self.layout.head_commit += 1;
            self.layout.head_stale = false;
            head = Some(self.head());
            dropped = std::mem::take(&mut self.layout.orphans).into_iter().collect();
            self.forget_closed();
            let unnamed = self.layout.pages.iter().filter(|(_, state)| !state.named);
            for id in unnamed.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
                if let Some(state) = self.layout.pages.get_mut(&id) {
                    state.named = true;
                }
            }
        }
        let named = missing.iter().map(|id| self.page(id)).collect();
        Flush {
            fresh,
            pages,
            head,
            named,
            dropped,
            layout: self.layout,
        }
    }

    fn head(&self) -> Head {
        let journal = &*self.after;
        let slots = self.layout.inline.iter().map(|uid| (uid.clone(), self.slot(uid, None)));
        Head {
            version: VERSION,
            scope: journal.scope.clone(),
            commit: self.layout.head_commit,
            window_seconds: journal.window_seconds,
            attempts: journal.attempts.clone(),
            claims: journal.claims.iter().map(|(u, c)| (u.clone(), Arc::clone(c))).collect(),
            throttle: journal.throttle.clone(),
            unauthorized: journal.unauthorized.clone(),
            typical_lifetime: journal.typical_lifetime,
            lost_at: journal.lost_at,
            pages: self.layout.pages.iter().map(|(id, p)| (id.clone(), p.commit)).collect(),
            slots: slots.collect(),
        }
    }

    /// The head says itself that those claims are closed. A page that held nothing else of a credential has to be
    /// written once more.
    fn forget_closed(&mut self) {
        for (uid, _) in std::mem::take(&mut self.layout.closed) {
            if let Some(id) = self.layout.home.get(&uid).cloned()
                && self.slot(&uid, Some(&id)).is_empty()
                && let Some(page) = self.layout.pages.get_mut(&id)
            {
                page.stale = true;
            }
        }
    }
}

/// What the outcome of a claim is expected to take in a page.
fn expected(claim: &Claim) -> usize {
    size(claim) + 1024 + 256 * claim.secrets.len()
}
