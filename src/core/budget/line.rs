//! The newcomers one after the other, fairly: whoever is placed raises the share of their namespace.

use std::cmp::Reverse;
use std::collections::btree_set::Iter;
use std::collections::{BinaryHeap, HashMap};
use std::iter::Peekable;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use crate::core::ids::Uid;

use super::demand::{Group, Key, Place};
use super::queue::Queue;
use super::shares::Shares;

/// What follows somebody in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// The first of another group of the same lane.
    Head(Group),
    /// Another one of the same group.
    Member(Group),
}

/// Somebody whose turn it is.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    key: Key,
    pub(super) group: Group,
}

impl Candidate {
    pub(super) fn uid(&self) -> &Uid {
        &self.key.uid
    }

    pub(super) fn namespace(&self) -> &Arc<str> {
        &self.key.namespace
    }
}

/// A walk along the line that looks only at those whose turn comes.
pub(super) struct Line<'a> {
    queue: &'a Queue,
    shares: &'a Shares,
    lanes: Peekable<Iter<'a, Key>>,
    others: BinaryHeap<Reverse<(Key, Next)>>,
    /// What each namespace was given on the way: rate in thousandths, and requests.
    given: HashMap<Arc<str>, (u64, u64)>,
}

impl<'a> Line<'a> {
    pub(super) fn new(queue: &'a Queue, shares: &'a Shares) -> Self {
        Self {
            queue,
            shares,
            lanes: queue.index.iter().peekable(),
            others: BinaryHeap::new(),
            given: HashMap::new(),
        }
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<Candidate> {
        loop {
            let lane_is_next = match (self.lanes.peek(), self.others.peek()) {
                (Some(lane), Some(Reverse((other, _)))) => *lane < other,
                (lane, _) => lane.is_some(),
            };
            if lane_is_next {
                self.enter_lane();
                continue;
            }
            let Reverse((mut key, next)) = self.others.pop()?;
            let share = self.share(&key.namespace);
            if share > key.share {
                key.share = share;
                self.others.push(Reverse((key, next)));
                continue;
            }
            let group = match next {
                Next::Head(group) => {
                    self.push_head(&key, group);
                    group
                }
                Next::Member(group) => group,
            };
            return Some(Candidate { key, group });
        }
    }

    /// The share of the candidate's namespace, in thousandths of a mint a window, and what it were with so much more.
    pub(super) fn share_with(&self, candidate: &Candidate, rate: u64) -> (u64, u64) {
        let (given, spent) = self.given.get(candidate.namespace()).copied().unwrap_or_default();
        let with = |rate, spent| self.shares.with(candidate.namespace(), rate, spent);
        (with(given, spent), with(given.saturating_add(rate), spent + 1))
    }

    fn share(&self, namespace: &str) -> u64 {
        let (rate, spent) = self.given.get(namespace).copied().unwrap_or_default();
        self.shares.with(namespace, rate, spent)
    }

    fn enter_lane(&mut self) {
        let Some(key) = self.lanes.next() else { return };
        let lane = self.queue.lanes.get(&key.lane());
        if let Some((_, group)) = lane.and_then(|l| l.heads.first()) {
            self.others.push(Reverse((key.clone(), Next::Head(*group))));
        }
    }

    /// The group of the lane whose first comes after that of `group`.
    fn push_head(&mut self, key: &Key, group: Group) {
        let Some(lane) = self.queue.lanes.get(&key.lane()) else {
            return;
        };
        if let Some((place, group)) = lane.heads.after(&(key.place(), group)) {
            self.push(key, place, Next::Head(*group));
        }
    }

    fn push(&mut self, key: &Key, place: &Place, next: Next) {
        self.others
            .push(Reverse((Key::new(&key.lane(), key.share, place), next)));
    }

    /// The candidate was given, or waits for, a place: this raises the share of its namespace by a rate,
    /// in thousandths, and a request.
    pub(super) fn placed(&mut self, candidate: &Candidate, rate: u64) {
        let namespace = Arc::clone(candidate.namespace());
        let given = self.given.entry(namespace).or_default();
        given.0 = given.0.saturating_add(rate);
        given.1 += 1;
        self.go_on(candidate);
    }

    /// Others of the candidate's group are looked at too. Unless this is called, they are passed over.
    pub(super) fn go_on(&mut self, candidate: &Candidate) {
        let Candidate { key, group } = candidate;
        let Some(lane) = self.queue.lanes.get(&key.lane()) else {
            return;
        };
        let Some(members) = lane.groups.get(group) else { return };
        if let Some(place) = members.range((Excluded(key.place()), Unbounded)).next() {
            self.push(key, place, Next::Member(*group));
        }
    }
}
