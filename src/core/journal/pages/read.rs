//! From what is stored to a journal, wherever the last commit stopped.

use std::collections::BTreeMap;

use super::stored::{Closed, Slot};
use super::{Head, Item, Layout, Page, PageState, Stored, size};
use crate::core::Time;
use crate::core::ids::{PageId, Uid};
use crate::core::journal::{Journal, Scope};

impl Layout {
    /// Puts together what is stored. Without a head, every page counts, and what the head knew is lost; a page that
    /// the head has seen and that is missing, or older than then, is lost.
    #[must_use]
    pub fn read(scope: &Scope, head: Option<Head>, pages: Vec<Page>, now: Time) -> Stored {
        let mut journal = Journal::new(scope.clone());
        let mut layout = Self::default();
        let mut lost = Vec::new();
        let mut found: BTreeMap<PageId, Page> = pages.into_iter().map(|p| (p.page.clone(), p)).collect();
        let named = if let Some(head) = head {
            layout.head_commit = head.commit;
            if found.values().any(|page| page.head > head.commit) {
                lost.push("the head is older than its pages".to_owned());
            }
            journal.window_seconds = head.window_seconds;
            journal.attempts = head.attempts;
            journal.claims = head.claims.into_iter().collect();
            journal.throttle = head.throttle;
            journal.unauthorized = head.unauthorized;
            journal.typical_lifetime = head.typical_lifetime;
            journal.lost_at = head.lost_at;
            for (uid, slot) in head.slots {
                layout.inline.insert(uid.clone());
                take_in(&mut journal, &uid, slot);
            }
            head.pages
        } else {
            if !found.is_empty() {
                lost.push("the head is missing".to_owned());
                layout.head_stale = true;
            }
            found.keys().map(|id| (id.clone(), 0)).collect()
        };
        let (mut copies, mut outcomes) = (Vec::new(), BTreeMap::new());
        for (id, commit) in named {
            match found.remove(&id) {
                Some(page) if page.commit >= commit => {
                    let named = layout.head_commit > 0;
                    layout.take_in(&mut journal, page, named, &mut copies, &mut outcomes);
                }
                None if commit == 0 => {
                    let named = true;
                    layout.pages.insert(
                        id,
                        PageState {
                            named,
                            ..PageState::default()
                        },
                    );
                }
                Some(page) => {
                    lost.push(format!("page {id} is older than the head knows it"));
                    layout.head_stale = true;
                    layout.orphans.insert(page.page);
                }
                None => {
                    lost.push(format!("page {id} is missing"));
                    layout.head_stale = true;
                }
            }
        }
        layout.settle(copies);
        layout.orphans.extend(found.into_keys());
        layout.learn_outcomes(&mut journal, &outcomes);
        if !lost.is_empty() {
            journal.lost_at = Some(now);
            layout.head_stale = true;
        }
        Stored { journal, layout, lost }
    }

    /// Takes in one page; events and revocations whose record is elsewhere are noted in `copies`, and where it tells
    /// of whose claim that it is closed in `outcomes`.
    fn take_in(
        &mut self,
        journal: &mut Journal,
        mut page: Page,
        named: bool,
        copies: &mut Vec<(Uid, Item, PageId)>,
        outcomes: &mut BTreeMap<Uid, PageId>,
    ) {
        let id = page.page.clone();
        let mut state = PageState {
            commit: page.commit,
            named,
            bytes: size(&page),
            ..PageState::default()
        };
        for (uid, mut slot) in std::mem::take(&mut page.slots) {
            if let Some(closed) = slot.closed.take() {
                self.closed.insert(uid.clone(), closed);
                outcomes.insert(uid.clone(), id.clone());
            }
            let holds = slot.record.as_ref().map(|r| (r.revision, r.seq));
            let known = journal.credentials.get(&uid).map(|r| (r.revision, r.seq));
            if holds.is_some() && known.is_some() {
                // Two pages tell of one credential: what is older is dropped with the next commit.
                if holds < known {
                    slot.record = None;
                    state.stale = true;
                } else if let Some(other) = self.home.remove(&uid).and_then(|other| self.pages.get_mut(&other)) {
                    other.uids.remove(&uid);
                    other.stale = true;
                } else {
                    self.inline.remove(&uid);
                    self.head_stale = true;
                }
            }
            let events = slot.events.iter().map(|e| Item::Event(e.seq));
            let owed = slot.owed.iter().map(|r| Item::Owed(r.token_id.as_str().into()));
            copies.extend(events.chain(owed).map(|item| (uid.clone(), item, id.clone())));
            if slot.record.is_some() {
                state.uids.insert(uid.clone());
                self.home.insert(uid.clone(), id.clone());
            }
            take_in(journal, &uid, slot);
        }
        self.pages.insert(id, state);
    }

    /// Decides where each event and revocation is: those with a copy outside of their record's page have moved there.
    fn settle(&mut self, copies: Vec<(Uid, Item, PageId)>) {
        let mut places: BTreeMap<(Uid, Item), Vec<PageId>> = BTreeMap::new();
        for (uid, item, id) in copies {
            places.entry((uid, item)).or_default().push(id);
        }
        for ((uid, item), ids) in places {
            let home = self.home.get(&uid).cloned();
            let inline = self.inline.contains(&uid);
            let Some(place) = ids.iter().find(|id| Some(*id) != home.as_ref()).cloned() else {
                continue;
            };
            if home.is_none() && !inline {
                // Nothing else is known of this credential: this page is its home.
                self.home.insert(uid.clone(), place.clone());
                if let Some(page) = self.pages.get_mut(&place) {
                    page.uids.insert(uid.clone());
                }
                self.make_stale(ids.iter().filter(|id| **id != place));
                continue;
            }
            self.make_stale(ids.iter().filter(|id| **id != place));
            if let Some(page) = self.pages.get_mut(&place) {
                page.taken_over.insert((uid.clone(), item.clone()));
            }
            self.moved.insert((uid, item), place);
        }
    }

    fn make_stale<'a>(&mut self, ids: impl Iterator<Item = &'a PageId>) {
        for id in ids {
            if let Some(page) = self.pages.get_mut(id) {
                page.stale = true;
            }
        }
    }

    /// Ends the claims whose outcomes pages hold. A page that holds nothing else of a credential is its home until the
    /// head says so itself: it must go on telling.
    fn learn_outcomes(&mut self, journal: &mut Journal, outcomes: &BTreeMap<Uid, PageId>) {
        let claims = &journal.claims;
        self.closed
            .retain(|uid, closed| claims.get(uid).is_some_and(|c| c.id == closed.claim));
        for (uid, id) in outcomes {
            if self.closed.contains_key(uid)
                && !self.home.contains_key(uid)
                && let Some(page) = self.pages.get_mut(id)
            {
                page.uids.insert(uid.clone());
                self.home.insert(uid.clone(), id.clone());
            }
        }
        let mut closed: Vec<(&Uid, &Closed)> = self.closed.iter().collect();
        closed.sort_by_key(|(_, closed)| closed.at);
        for (uid, closed) in closed {
            journal.claims.remove(uid);
            journal.attempts.extend(closed.attempt.clone());
            journal.throttle = closed.throttle.clone();
            journal.unauthorized.clone_from(&closed.unauthorized);
            journal.typical_lifetime = closed.typical_lifetime;
            self.head_stale = true;
        }
        journal.attempts.sort_by_key(|a| a.at);
    }
}

fn take_in(journal: &mut Journal, uid: &Uid, slot: Slot) {
    if let Some(record) = slot.record {
        journal.credentials.insert(uid.clone(), record);
    }
    for event in slot.events {
        journal.audit.insert((uid.clone(), event.seq), event);
    }
    for owed in slot.owed {
        journal
            .revocations
            .insert((uid.clone(), owed.token_id.as_str().into()), owed);
    }
}
