//! Which credential is looked at next: each by one pass at a time, in the order in which they came to be due.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::core::ids::ObjectName;

/// What is to be done about one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing before this.
    Rests(Instant),
    /// It is in line.
    Ready,
    /// A pass looks at it; `again` where it was asked for meanwhile.
    Running { again: bool },
}

/// Names that are looked at now and then.
#[derive(Debug, Default)]
pub struct WorkQueue {
    stages: HashMap<ObjectName, Stage>,
    due: BTreeSet<(Instant, ObjectName)>,
    /// In line, and since when.
    ready: VecDeque<(ObjectName, Instant)>,
}

impl WorkQueue {
    /// Has `name` looked at as soon as it is its turn.
    pub fn trigger(&mut self, name: ObjectName, now: Instant) {
        if let Some((name, stage)) = self
            .stages
            .get_key_value(&name)
            .map(|(name, stage)| (name.clone(), *stage))
        {
            match stage {
                Stage::Ready => {}
                Stage::Running { .. } => {
                    self.stages.insert(name, Stage::Running { again: true });
                }
                Stage::Rests(at) => {
                    self.due.remove(&(at, name.clone()));
                    self.enter(name, now);
                }
            }
        } else {
            self.enter(name, now);
        }
    }

    fn enter(&mut self, name: ObjectName, since: Instant) {
        self.stages.insert(name.clone(), Stage::Ready);
        self.ready.push_back((name, since));
    }

    /// The next to look at, and how long it has waited for that; [`Self::done`] has to follow.
    pub fn next(&mut self, now: Instant) -> Option<(ObjectName, Duration)> {
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((at, name)) = self.due.pop_first() {
                self.enter(name, at);
            }
        }
        let (name, since) = self.ready.pop_front()?;
        self.stages.insert(name.clone(), Stage::Running { again: false });
        Some((name, now.saturating_duration_since(since)))
    }

    /// How many are in line.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// When the next comes to be due that is not in line.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// `name` was looked at, and is looked at again at `next`; it is forgotten where there is no such time.
    pub fn done(&mut self, name: &ObjectName, next: Option<Instant>, now: Instant) {
        let Some((name, stage)) = self.stages.remove_entry(name) else {
            return;
        };
        if stage == (Stage::Running { again: true }) {
            self.enter(name, now);
        } else if let Some(at) = next {
            self.due.insert((at, name.clone()));
            self.stages.insert(name, Stage::Rests(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("n", name)
    }

    fn drain(queue: &mut WorkQueue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.next(now))
            .map(|(n, _)| n.name.to_string())
            .collect()
    }

    #[test]
    fn who_is_asked_for_twice_is_looked_at_once_and_in_order() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        for who in ["a", "b", "a", "c"] {
            queue.trigger(name(who), now);
        }
        assert_eq!(drain(&mut queue, now), ["a", "b", "c"]);
    }

    #[test]
    fn who_is_asked_for_while_looked_at_is_looked_at_once_more_when_that_is_done() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.trigger(name("a"), now);
        assert_eq!(drain(&mut queue, now), ["a"]);
        queue.trigger(name("a"), now);
        assert!(drain(&mut queue, now).is_empty(), "one pass at a time");
        queue.done(&name("a"), Some(now + Duration::from_secs(9)), now);
        assert_eq!(drain(&mut queue, now), ["a"]);
        queue.done(&name("a"), Some(now + Duration::from_secs(9)), now);
        assert!(drain(&mut queue, now).is_empty());
    }

    #[test]
    fn who_rests_is_due_in_time_or_when_asked_for() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        let later = |s| now + Duration::from_secs(s);
        for (who, s) in [("a", 3), ("b", 2)] {
            queue.trigger(name(who), now);
            queue.next(now);
            queue.done(&name(who), Some(later(s)), now);
        }
        assert_eq!(queue.next_due(), Some(later(2)));
        assert_eq!(drain(&mut queue, later(1)), [""; 0]);
        queue.trigger(name("a"), now);
        assert_eq!(drain(&mut queue, later(2)), ["a", "b"]);
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn who_is_in_line_waits_since_it_was_asked_for_or_due() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        let later = |s| now + Duration::from_secs(s);
        queue.trigger(name("a"), now);
        queue.trigger(name("a"), later(1));
        assert_eq!(queue.waiting(), 1);
        assert_eq!(queue.next(later(3)), Some((name("a"), Duration::from_secs(3))));
        queue.done(&name("a"), Some(later(5)), later(3));
        assert_eq!(queue.waiting(), 0);
        assert_eq!(queue.next(later(9)), Some((name("a"), Duration::from_secs(4))));
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.trigger(name("a"), now);
        queue.next(now);
        queue.done(&name("a"), None, now);
        assert!(queue.stages.is_empty() && queue.due.is_empty());
    }
}
