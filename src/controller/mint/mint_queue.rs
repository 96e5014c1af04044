//! Who waits for a mint of one scope: what they want, and what they were told.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::core::Time;
use crate::core::budget::{Budget, Demand, Follower, Held, Renews, Waiting};
use crate::core::ids::{ObjectName, SpecDigest, Uid};
use crate::core::outage::Bar;

/// How often whoever waits is told how the line moved.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How many of those behind the front are told at once: each is a write, and there may be thousands.
const TELL_AT_ONCE: usize = 200;

/// Somebody in line.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueEntry {
    /// What the budget is asked for.
    pub demand: Demand,
    /// [`Desired::digest`](crate::core::spec::Desired::digest) of the spec that this was decided on.
    pub asks: SpecDigest,
    /// Number of the credential's last audit event in this journal when this was decided: where there is
    /// a later one, something has happened since, and it is to be decided anew.
    pub seq: u64,
    /// Name of the connection.
    pub connection: String,
    /// Whose run waits for it, where that is known.
    pub consumer: Option<String>,
}

#[derive(Debug)]
struct Place {
    entry: QueueEntry,
    told: Option<(Waiting, Instant)>,
    /// As the budget was told.
    barred: Option<Time>,
}

/// Those who ask by one connection.
#[derive(Debug, Default)]
struct Line {
    uids: HashSet<Uid>,
    barred: Option<Bar>,
}

/// Everybody in line, and what the budget is still to be told of them.
#[derive(Debug, Default)]
pub(crate) struct MintQueue {
    entries: HashMap<Uid, Place>,
    lines: HashMap<String, Line>,
    /// Tokens of other scopes' journals that are renewed here.
    reserved: HashMap<Uid, (ObjectName, Held)>,
    /// Whether tokens are renewed, of those on demand,
    renews: HashMap<Uid, Renews>,
    /// and for whom that is news.
    renewed: HashSet<Uid>,
    /// Whose wishes or reservations have changed; and whether they left the line in between.
    changed: HashMap<Uid, bool>,
    front: Vec<Uid>,
    /// What those behind the front were told last: renewals, and newcomers.
    behind: [Option<Waiting>; 2],
    /// Who may not know that yet.
    untold: VecDeque<Uid>,
}

/// What comes of telling somebody.
enum News {
    None,
    /// There is nothing to tell yet, or it was told less than a minute ago.
    Later,
    Told(ObjectName),
}

impl MintQueue {
    pub(crate) fn get(&self, uid: &str) -> Option<&QueueEntry> {
        self.entries.get(uid).map(|e| &e.entry)
    }

    /// Whether it is of no use to anybody.
    pub(crate) fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.reserved.is_empty() && self.changed.is_empty()
    }

    /// Why somebody waits, as they were told last.
    pub(crate) fn told(&self, uid: &str) -> Option<Waiting> {
        let (waiting, _) = self.entries.get(uid)?.told.as_ref()?;
        Some(waiting.clone())
    }

    /// Puts somebody in line, or updates their place. Says whether anything changed.
    pub(crate) fn put(&mut self, mut entry: QueueEntry) -> bool {
        let uid = entry.demand.uid.clone();
        let connection = entry.connection.clone();
        if let Some(place) = self.entries.get_mut(&uid) {
            let old = &place.entry;
            if old.demand.reason.is_newcomer() == entry.demand.reason.is_newcomer() {
                entry.demand.since = old.demand.since;
            }
            if *old == entry {
                return false;
            }
            let old = std::mem::replace(&mut place.entry, entry);
            self.leave(&uid, &old.connection);
        } else {
            let place = Place {
                entry,
                told: None,
                barred: None,
            };
            self.entries.insert(uid.clone(), place);
            self.untold.push_back(uid.clone());
        }
        self.lines.entry(connection).or_default().uids.insert(uid.clone());
        self.changed.entry(uid).or_default();
        true
    }

    fn leave(&mut self, uid: &Uid, connection: &str) {
        if let Some(line) = self.lines.get_mut(connection) {
            line.uids.remove(uid);
            if line.uids.is_empty() {
                self.lines.remove(connection);
            }
        }
    }

    /// Lets go of the room that the line took, once nobody is in it.
    pub(crate) fn shed(&mut self) {
        if self.entries.is_empty() && self.changed.is_empty() {
            self.entries = HashMap::new();
            self.changed = HashMap::new();
            self.lines = HashMap::new();
            self.front = Vec::new();
            self.untold = VecDeque::new();
        }
    }

    /// Takes somebody out of the line. Says whether they were in it.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        let Some((uid, place)) = self.entries.remove_entry(uid) else {
            return false;
        };
        self.leave(&uid, &place.entry.connection);
        self.changed.insert(uid, true);
        true
    }

    /// Notes that a token which another scope holds is renewed here; or that none is.
    pub(crate) fn reserve(&mut self, uid: &str, held: Option<(ObjectName, Held)>) {
        let uid = Uid::from(uid);
        if self.reserved.get(&uid) == held.as_ref() {
            return;
        }
        self.changed.entry(uid.clone()).or_default();
        match held {
            Some(held) => self.reserved.insert(uid, held),
            None => self.reserved.remove(&uid),
        };
    }

    /// Notes whether the tokens of `uid` are renewed, or forgets that. Says whether anything changed.
    pub(crate) fn renew(&mut self, uid: &str, renews: Option<Renews>) -> bool {
        let before = self.renews.get(uid).copied();
        // All tokens are, unless something else was said.
        if before == renews || before.is_none() && renews != Some(Renews::No) {
            return false;
        }
        let uid = Uid::from(uid);
        match renews {
            Some(renews) => self.renews.insert(uid.clone(), renews),
            None => self.renews.remove(&uid),
        };
        self.renewed.insert(uid)
    }

    /// Everybody who asks by `connection`.
    pub(crate) fn line(&self, connection: &str) -> Vec<ObjectName> {
        let line = self.lines.get(connection).into_iter().flat_map(|line| &line.uids);
        line.filter_map(|uid| self.entries.get(uid))
            .map(|place| place.entry.demand.name.clone())
            .collect()
    }

    /// Tells the budget what has changed. `barred` says until when a connection cannot be asked.
    pub(crate) fn update(&mut self, follower: &mut Follower, barred: impl Fn(&str) -> Option<Bar>, now: Time) {
        for (connection, line) in &mut self.lines {
            let until = barred(connection);
            if until != line.barred {
                line.barred = until;
                self.changed.extend(line.uids.iter().map(|uid| (uid.clone(), false)));
            }
        }
        self.reserved.retain(|_, (_, held)| held.ends_at > now);
        for uid in std::mem::take(&mut self.renewed) {
            match self.renews.get(&uid) {
                Some(renews) => follower.renew(&uid, *renews, now),
                None => follower.forget(&uid, now),
            }
        }
        for (uid, left) in std::mem::take(&mut self.changed) {
            follower.reserve(&uid, self.reserved.get(&uid).map(|(_, held)| held.clone()), now);
            if left {
                follower.budget.dequeue(&uid);
            }
            let Some(place) = self.entries.get_mut(&uid) else {
                continue;
            };
            follower.budget.enqueue(place.entry.demand.clone());
            let bar = self.lines.get(&place.entry.connection).and_then(|line| line.barred);
            let until = bar.map(|bar| bar.of(&uid, &follower.budget));
            if place.barred != until {
                place.barred = until;
                self.untold.push_back(uid.clone());
                follower.budget.set_aside(&uid, until.unwrap_or(now));
            }
        }
    }

    /// Tells those at the front, and some of all others, what the budget says; returns for whom that is news:
    /// at once the first time, later once a minute. And whether more are to be told soon.
    pub(crate) fn tell(&mut self, budget: &Budget, front: Vec<Uid>, now: Time) -> (Vec<ObjectName>, bool) {
        for newcomers in [false, true] {
            let text = budget.behind(newcomers);
            if text.is_some() && text != self.behind[usize::from(newcomers)].as_ref() {
                self.behind[usize::from(newcomers)] = text.cloned();
                self.untold = self.entries.keys().cloned().collect();
            }
        }
        let mut news = Vec::new();
        for uid in &front {
            if let News::Told(name) = self.tell_one(budget, uid, now) {
                news.push(name);
            }
        }
        let before = std::mem::replace(&mut self.front, front);
        let left = before.into_iter().filter(|uid| !self.front.contains(uid));
        self.untold.extend(left);
        let mut soon = self.untold.len() > TELL_AT_ONCE;
        for _ in 0..self.untold.len().min(TELL_AT_ONCE) {
            let Some(uid) = self.untold.pop_front() else { break };
            match self.tell_one(budget, &uid, now) {
                News::None => {}
                News::Told(name) => news.push(name),
                News::Later => {
                    self.untold.push_back(uid);
                    soon = true;
                }
            }
        }
        (news, soon)
    }

    fn tell_one(&mut self, budget: &Budget, uid: &Uid, now: Time) -> News {
        let Some(place) = self.entries.get_mut(uid).filter(|e| e.barred.is_none()) else {
            return News::None;
        };
        let Some(waiting) = budget.waiting(uid) else {
            // It may well be that they wait but for a moment.
            return News::Later;
        };
        if let Some((old, at)) = &place.told {
            let passed = old.next_slot.is_some_and(|at| at <= now);
            if *old == waiting {
                return News::None;
            }
            if old.reason == waiting.reason && !passed && at.elapsed() < TELL_EVERY {
                return News::Later;
            }
        }
        place.told = Some((waiting, Instant::now()));
        News::Told(place.entry.demand.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::budget::{FRONT, Limit, Terms};
    use crate::core::journal::tests_support::scope;
    use crate::core::journal::{Journal, MintReason};
    use crate::core::outage::But;
    use crate::core::testing::{s, t};

    fn entry(uid: &str, connection: &str) -> QueueEntry {
        QueueEntry {
            demand: Demand {
                uid: uid.into(),
                name: ObjectName::new("n", uid),
                reason: MintReason::First,
                since: t(0),
                renew_before: None,
                max_lifetime: None,
                pod_waits: false,
                renews: true,
                most: None,
            },
            asks: SpecDigest::default(),
            seq: 0,
            connection: connection.to_owned(),
            consumer: None,
        }
    }

    /// Whom a budget of ten an hour admits, and who is at its front.
    fn decide(follower: &mut Follower, limit: u32, now: Time) -> (Vec<String>, Vec<Uid>) {
        let mut journal = Journal::new(scope());
        journal.typical_lifetime = Some(3600);
        let limit = Limit { limit, window: s(3600) };
        let terms = Terms {
            limits: vec![limit],
            newcomers: true,
        };
        let (decision, selection) = follower.decide(&Arc::new(journal), &terms, now);
        (
            decision.admitted.iter().map(ToString::to_string).collect(),
            selection.front,
        )
    }

    #[test]
    fn those_of_a_connection_that_cannot_be_asked_wait_until_it_can() {
        let (mut queue, mut follower) = (MintQueue::default(), Follower::new("svc"));
        for uid in ["a", "b"] {
            assert!(queue.put(entry(uid, uid)));
            assert!(!queue.put(entry(uid, uid)));
        }
        let refused = |connection: &str| {
            (connection == "a").then(|| Bar {
                until: t(900),
                but: But::Nobody,
            })
        };
        queue.update(&mut follower, refused, t(1));
        assert_eq!(decide(&mut follower, 10, t(1)).0, ["b"]);
        queue.put(entry("c", "a"));
        queue.put(entry("b", "a"));
        queue.update(&mut follower, refused, t(2));
        assert!(decide(&mut follower, 10, t(2)).0.is_empty());
        // Another connection, another key: and who left and came back is not barred either.
        queue.put(entry("c", "b"));
        queue.remove("b");
        queue.put(entry("b", "b"));
        queue.update(&mut follower, refused, t(3));
        assert_eq!(decide(&mut follower, 10, t(3)).0, ["b", "c"]);
        queue.update(&mut follower, |_| None, t(4));
        assert_eq!(decide(&mut follower, 10, t(4)).0, ["a", "b", "c"]);
        assert!(queue.remove("a") && !queue.remove("a"));
        queue.update(&mut follower, |_| None, t(5));
        assert_eq!(decide(&mut follower, 10, t(5)).0, ["b", "c"]);
    }

    #[test]
    fn whose_tokens_are_not_renewed_is_remembered_when_the_line_is_empty() {
        let (mut queue, mut follower) = (MintQueue::default(), Follower::new("svc"));
        decide(&mut follower, 10, t(0));
        assert!(queue.renew("a", Some(Renews::No)));
        queue.shed();
        queue.update(&mut follower, |_| None, t(0));
        assert!(!follower.keeps("a"), "what was said between two looks is told");
        queue.shed();
        assert!(!queue.renew("a", Some(Renews::No)), "that is no news");
        assert!(queue.renew("a", Some(Renews::Yes(None))), "and this is");
        queue.shed();
        queue.update(&mut follower, |_| None, t(1));
        assert!(follower.keeps("a"));
    }

    #[test]
    fn a_line_that_everybody_left_takes_no_room_and_keeps_what_is_reserved() {
        let (mut queue, mut follower) = (MintQueue::default(), Follower::new("svc"));
        for uid in 0..100 {
            queue.put(entry(&uid.to_string(), "c"));
        }
        let held = Held {
            namespace: "n".into(),
            issued_at: t(0),
            ends_at: t(3600),
            renew_before: None,
            tried_at: None,
            admitted: None,
        };
        queue.reserve("other", Some((ObjectName::new("n", "other"), held)));
        queue.update(&mut follower, |_| None, t(0));
        decide(&mut follower, 10, t(0));
        for uid in 0..100 {
            queue.remove(&uid.to_string());
        }
        queue.shed();
        assert_eq!(queue.changed.len(), 100, "the budget is still to be told");
        queue.update(&mut follower, |_| None, t(1));
        queue.shed();
        assert_eq!(
            (
                queue.entries.capacity(),
                queue.changed.capacity(),
                queue.lines.capacity()
            ),
            (0, 0, 0)
        );
        assert!(!queue.is_idle());
    }

    #[test]
    fn of_thousands_who_wait_only_those_are_told_for_whom_it_is_news_and_few_at_once() {
        let (mut queue, mut follower) = (MintQueue::default(), Follower::new("svc"));
        for i in 0..1000 {
            queue.put(entry(&format!("u{i:04}"), "c"));
        }
        queue.update(&mut follower, |_| None, t(1));
        let (admitted, _) = decide(&mut follower, 10, t(1));
        for uid in &admitted {
            queue.remove(uid);
        }
        queue.update(&mut follower, |_| None, t(1));
        let (mut passes, mut told) = (0, Vec::new());
        while passes < 20 {
            // Nobody fits.
            let (_, front) = decide(&mut follower, 1, t(1));
            let (news, soon) = queue.tell(&follower.budget, front, t(1));
            assert!(news.len() <= TELL_AT_ONCE + FRONT);
            told.extend(news);
            passes += 1;
            if !soon {
                break;
            }
        }
        assert_eq!((passes, told.len()), (5, 1000 - admitted.len()), "each once");
        assert!(queue.told("u0999").is_some_and(|w| w.position == FRONT + 1));
    }
}
