//! Which credential is looked at next: each by one pass at a time, in the order in which they came to be due.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

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
    ready: VecDeque<ObjectName>,
}

impl WorkQueue {
    /// Has `name` looked at as soon as it is its turn.
    pub fn trigger(&mut self, name: ObjectName) {
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
                    self.enter(name);
                }
            }
        } else {
            self.enter(name);
        }
    }

    fn enter(&mut self, name: ObjectName) {
        self.stages.insert(name.clone(), Stage::Ready);
        self.ready.push_back(name);
    }

    /// The next to look at; [`Self::done`] has to follow.
    pub fn next(&mut self, now: Instant) -> Option<ObjectName> {
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, name)) = self.due.pop_first() {
                self.enter(name);
            }
        }
        let name = self.ready.pop_front()?;
        self.stages.insert(name.clone(), Stage::Running { again: false });
        Some(name)
    }

    /// When the next comes to be due that is not in line.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// `name` was looked at, and is looked at again at `next`; it is forgotten where there is no such time.
    pub fn done(&mut self, name: &ObjectName, next: Option<Instant>) {
        let Some((name, stage)) = self.stages.remove_entry(name) else {
            return;
        };
        if stage == (Stage::Running { again: true }) {
            self.enter(name);
        } else if let Some(at) = next {
            self.due.insert((at, name.clone()));
            self.stages.insert(name, Stage::Rests(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("n", name)
    }

    fn drain(queue: &mut WorkQueue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.next(now))
            .map(|n| n.name.to_string())
            .collect()
    }

    #[test]
    fn who_is_asked_for_twice_is_looked_at_once_and_in_order() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        for who in ["a", "b", "a", "c"] {
            queue.trigger(name(who));
        }
        assert_eq!(drain(&mut queue, now), ["a", "b", "c"]);
    }

    #[test]
    fn who_is_asked_for_while_looked_at_is_looked_at_once_more_when_that_is_done() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.trigger(name("a"));
        assert_eq!(drain(&mut queue, now), ["a"]);
        queue.trigger(name("a"));
        assert!(drain(&mut queue, now).is_empty(), "one pass at a time");
        queue.done(&name("a"), Some(now + Duration::from_secs(9)));
        assert_eq!(drain(&mut queue, now), ["a"]);
        queue.done(&name("a"), Some(now + Duration::from_secs(9)));
        assert!(drain(&mut queue, now).is_empty());
    }

    #[test]
    fn who_rests_is_due_in_time_or_when_asked_for() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        let later = |s| now + Duration::from_secs(s);
        for (who, s) in [("a", 3), ("b", 2)] {
            queue.trigger(name(who));
            queue.next(now);
            queue.done(&name(who), Some(later(s)));
        }
        assert_eq!(queue.next_due(), Some(later(2)));
        assert_eq!(drain(&mut queue, later(1)), [""; 0]);
        queue.trigger(name("a"));
        assert_eq!(drain(&mut queue, later(2)), ["a", "b"]);
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.trigger(name("a"));
        queue.next(now);
        queue.done(&name("a"), None);
        assert!(queue.stages.is_empty() && queue.due.is_empty());
    }
}
