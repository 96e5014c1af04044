//! Who wants to mint, in the order in which they are considered.
//!
//! Newcomers stand in lanes: one for those whose Pods wait and one for the others in each namespace. In
//! a lane those who will ask the same of the budget stand together, so that all of them can be passed
//! over at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use litemap::LiteMap;

use crate::core::ids::Uid;

use super::demand::{CredentialState, Demand, Group, Key, LaneId, Place};
use super::shares::Shares;

/// There are many with one or two in them, and few with many groups: no trees, whose nodes have room for eleven.
#[derive(Clone, Debug, Default)]
pub(super) struct Lane {
    pub(super) groups: LiteMap<Group, BTreeSet<Place>>,
    pub(super) heads: Heads,
    /// How the lane stands in the index.
    key: Option<Key>,
}

/// The first of each group, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Heads(Vec<(Place, Group)>);

impl Heads {
    pub(super) fn first(&self) -> Option<&(Place, Group)> {
        self.0.first()
    }

    pub(super) fn after(&self, head: &(Place, Group)) -> Option<&(Place, Group)> {
        self.0.get(self.0.partition_point(|other| other <= head))
    }

    fn add(&mut self, head: (Place, Group)) {
        if let Err(at) = self.0.binary_search(&head) {
            self.0.insert(at, head);
        }
    }

    /// Says whether it was one.
    fn remove(&mut self, head: &(Place, Group)) -> bool {
        let found = self.0.binary_search(head);
        if let Ok(at) = found {
            self.0.remove(at);
        }
        found.is_ok()
    }
}

impl Lane {
    fn enter(&mut self, place: Place, group: Group) {
        let Some(others) = self.groups.get_mut(&group) else {
            self.heads.add((place.clone(), group));
            self.groups.insert(group, BTreeSet::from([place]));
            return;
        };
        if let Some(first) = others.first().filter(|first| place < **first) {
            self.heads.remove(&(first.clone(), group));
            self.heads.add((place.clone(), group));
        }
        others.insert(place);
    }

    fn leave(&mut self, place: Place, group: Group) {
        let Some(others) = self.groups.get_mut(&group) else {
            return;
        };
        others.remove(&place);
        let next = others.first().cloned();
        if next.is_none() {
            self.groups.remove(&group);
        }
        if self.heads.remove(&(place, group))
            && let Some(next) = next
        {
            self.heads.add((next, group));
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    demand: Demand,
    credential_state: CredentialState,
    /// Not considered before this, in nanoseconds.
    rests_until: Option<i64>,
}

/// Everybody who wants to mint.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    entries: HashMap<Uid, Entry>,
    pub(super) lanes: HashMap<LaneId, Lane>,
    /// The first of each lane.
    pub(super) index: BTreeSet<Key>,
    /// How many newcomers each group has.
    pub(super) groups: HashMap<Group, usize>,
    newcomers: usize,
    /// Renewals whose latest safe time has come, by end.
    pub(super) due: BTreeSet<(i64, Uid)>,
    /// The other renewals, by end
    pub(super) early: BTreeSet<(i64, Uid)>,
    /// and by latest safe time.
    by_latest: BTreeSet<(i64, Uid)>,
    resting: BTreeSet<(i64, Uid)>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Newcomers in line.
    pub(super) fn newcomers(&self) -> usize {
        self.newcomers
    }

    /// What somebody in line wants; `None` for those who rest.
    pub(super) fn in_line(&self, uid: &str) -> Option<&Demand> {
        let entry = self.entries.get(uid).filter(|e| e.rests_until.is_none())?;
        Some(&entry.demand)
    }

    pub(super) fn credential_state(&self, uid: &str) -> CredentialState {
        self.entries
            .get(uid)
            .map_or_else(CredentialState::default, |e| e.credential_state)
    }

    /// Puts somebody in line, or updates their place: who stays a newcomer, or a renewal, has waited since
    /// they first asked. Says whether anything changed.
    pub(super) fn put(&mut self, mut demand: Demand, credential_state: CredentialState, shares: &Shares) -> bool {
        let mut rests_until = None;
        if let Some(old) = self.entries.get(demand.uid.as_str()) {
            if old.demand.reason.is_newcomer() == demand.reason.is_newcomer() {
                demand.since = old.demand.since;
            }
            if old.demand == demand && old.credential_state == credential_state {
                return false;
            }
            rests_until = old.rests_until;
        }
        self.take(demand.uid.clone().as_str(), shares);
        let entry = Entry {
            demand,
            credential_state,
            rests_until,
        };
        self.enter(&entry, shares);
        self.entries.insert(entry.demand.uid.clone(), entry);
        true
    }

    /// Takes somebody out of the line. Says whether they were in it.
    pub(super) fn take(&mut self, uid: &str, shares: &Shares) -> bool {
        let Some(entry) = self.entries.remove(uid) else {
            return false;
        };
        self.leave(&entry, shares);
        true
    }

    /// Does not consider somebody before `until`.
    pub(super) fn rest(&mut self, uid: &str, until: Option<i64>, shares: &Shares) {
        if let Some(mut entry) = self.entries.remove(uid) {
            self.leave(&entry, shares);
            entry.rests_until = until;
            self.enter(&entry, shares);
            self.entries.insert(entry.demand.uid.clone(), entry);
        }
    }

    /// Notes what somebody holds now.
    pub(super) fn set_standing(&mut self, uid: &str, credential_state: CredentialState, shares: &Shares) {
        if let Some(entry) = self.entries.get(uid).filter(|e| e.credential_state != credential_state) {
            let demand = entry.demand.clone();
            self.put(demand, credential_state, shares);
        }
    }

    /// Lets those go on who have rested, and finds the renewals that have become due.
    pub(super) fn move_to(&mut self, now: i64, shares: &Shares) {
        while let Some((_, uid)) = self.resting.first().filter(|(at, _)| *at <= now).cloned() {
            self.rest(uid.as_str(), None, shares);
        }
        while let Some((_, uid)) = self.by_latest.first().filter(|(at, _)| *at <= now).cloned() {
            self.by_latest.pop_first();
            let end = self.credential_state(uid.as_str()).end;
            self.early.remove(&(end, uid.clone()));
            self.due.insert((end, uid));
        }
    }

    /// When somebody has rested.
    pub(super) fn next_rested(&self) -> Option<i64> {
        self.resting.first().map(|(at, _)| *at)
    }

    /// When another renewal becomes due.
    pub(super) fn next_due(&self) -> Option<i64> {
        self.by_latest.first().map(|(at, _)| *at)
    }

    fn enter(&mut self, entry: &Entry, shares: &Shares) {
        let (demand, credential_state) = (&entry.demand, entry.credential_state);
        if let Some(until) = entry.rests_until {
            self.resting.insert((until, demand.uid.clone()));
        } else if !demand.reason.is_newcomer() {
            self.early.insert((credential_state.end, demand.uid.clone()));
            self.by_latest.insert((credential_state.latest, demand.uid.clone()));
        } else {
            self.newcomers += 1;
            let (id, place, group) = (demand.lane(), demand.place(), demand.group(credential_state));
            *self.groups.entry(group).or_default() += 1;
            self.lanes.entry(id.clone()).or_default().enter(place, group);
            self.index_lane(&id, shares);
        }
    }

    fn leave(&mut self, entry: &Entry, shares: &Shares) {
        let (demand, credential_state) = (&entry.demand, entry.credential_state);
        if let Some(until) = entry.rests_until {
            self.resting.remove(&(until, demand.uid.clone()));
        } else if !demand.reason.is_newcomer() {
            self.early.remove(&(credential_state.end, demand.uid.clone()));
            self.due.remove(&(credential_state.end, demand.uid.clone()));
            self.by_latest.remove(&(credential_state.latest, demand.uid.clone()));
        } else {
            self.newcomers -= 1;
            let (id, place, group) = (demand.lane(), demand.place(), demand.group(credential_state));
            if let Some(count) = self.groups.get_mut(&group) {
                *count -= 1;
                if *count == 0 {
                    self.groups.remove(&group);
                }
            }
            let Some(lane) = self.lanes.get_mut(&id) else { return };
            lane.leave(place, group);
            self.index_lane(&id, shares);
        }
    }

    /// Notes where a lane stands, once its first or its share has changed.
    fn index_lane(&mut self, id: &LaneId, shares: &Shares) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        let share = shares.of(&id.namespace);
        let key = lane.heads.first().map(|(place, _)| Key::new(id, share, place));
        if key != lane.key {
            if let Some(old) = lane.key.take() {
                self.index.remove(&old);
            }
            if let Some(new) = &key {
                self.index.insert(new.clone());
            }
            lane.key = key;
        }
        if lane.key.is_none() {
            self.lanes.remove(id);
        }
    }

    /// Notes that the share of a namespace has changed.
    pub(super) fn share_changed(&mut self, namespace: &Arc<str>, shares: &Shares) {
        for no_pod in [false, true] {
            let namespace = Arc::clone(namespace);
            self.index_lane(&LaneId { no_pod, namespace }, shares);
        }
    }

    /// Notes that all shares have changed.
    pub(super) fn all_shares_changed(&mut self, shares: &Shares) {
        for id in self.lanes.keys().cloned().collect::<Vec<_>>() {
            self.index_lane(&id, shares);
        }
    }
}
