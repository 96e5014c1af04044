//! A broker that does not answer: who tries next, and when.
//!
//! Where requests cannot even leave, asking for a connection costs nothing: it is asked for every few seconds, and
//! nothing is claimed meanwhile. Where they leave and are not answered, each costs a place in a budget: one credential
//! tries for all, another one after each failure, another namespace first, so that no request that fails for reasons of
//! its own is the one that tries for ever. Whoever has come to half of its runway then tries by itself.

use std::collections::{HashMap, VecDeque};

use chrono::TimeDelta;

use super::budget::Budget;
use super::ids::{ObjectName, Uid};
use super::{Time, clock};
use crate::api::Reason;
use crate::core::journal::Scope;

/// Failures in a row that make it known that requests are not answered: one alone may be the request's own.
const KNOWN_AFTER: u32 = 2;
/// The shortest wait between two tries for all, and the longest.
const FIRST_WAIT: TimeDelta = TimeDelta::seconds(10);
const LONGEST_WAIT: TimeDelta = TimeDelta::minutes(5);
/// How often a connection is asked for at first, and at last: half of the shortest runway has room for several.
const FIRST_CHECK: TimeDelta = TimeDelta::seconds(1);
const LAST_CHECK: TimeDelta = TimeDelta::seconds(5);
/// How much later those try who tried lately, whoever is of the last one's namespace, and newcomers.
const AFTER_OTHERS: TimeDelta = TimeDelta::seconds(1);
/// How many of those who tried are remembered.
const TRIED: usize = 32;

/// What a scope has to spare, and for how long it has to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// Tries that may fail.
    pub tries: u32,
    /// When the first live token comes to half of its runway.
    pub until: Option<Time>,
}

/// Somebody who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Of the credential.
    pub uid: &'a Uid,
    /// Its name.
    pub name: &'a ObjectName,
    /// The budget it asks in.
    pub scope: &'a Scope,
}

/// Until when a connection cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// By anybody else.
    pub until: Time,
    /// Who may ask all the same.
    pub but: But,
}

/// Who may ask all the same, from half of its runway on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum But {
    /// Nothing can be sent.
    Nobody,
    /// Whoever has yet to make the try that a slot is kept for.
    OwnTries,
    /// Whoever has come that far.
    Everybody,
}

impl Bar {
    /// Until when `uid` cannot ask.
    #[must_use]
    pub fn of(self, uid: &Uid, budget: &Budget) -> Time {
        let may = match self.but {
            But::Nobody => false,
            But::OwnTries => budget.owes_own_try(uid),
            But::Everybody => true,
        };
        let half = budget.half_of_runway(uid).filter(|_| may);
        half.map_or(self.until, |half| self.until.min(half))
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq)]
enum Trouble {
    /// Requests do not leave: what a person is told of it.
    Unreachable(String),
    /// A connection is there again; whether requests are answered is not known yet.
    Reached,
    /// So many requests in a row were not answered.
    Unanswered(u32),
}

/// Requests that fail, with no answer since.
#[derive(Clone, Debug, PartialEq)]
pub struct Outage {
    since: Time,
    trouble: Trouble,
    /// When a connection is asked for next, or a request is made for all.
    next_try: Time,
    wait: TimeDelta,
    tried: VecDeque<(Uid, ObjectName)>,
    /// When each budget can spare another try.
    spared: HashMap<Scope, Time>,
}

/// Whether the broker behind a connection answers.
#[derive(Debug, Default)]
pub struct Gate {
    outage: Option<Outage>,
    answered: bool,
}

/// Whether a failure says that the broker does not answer; anything else it says is an answer.
#[must_use]
pub fn is_no_answer(reason: Reason) -> bool {
    matches!(reason, Reason::BrokerUnavailable | Reason::OutcomeUnknown)
}

impl Gate {
    /// Whether the last request was answered; `None` where none was made yet.
    #[must_use]
    pub fn answers(&self) -> Option<bool> {
        if self.outage().is_some() {
            return Some(false);
        }
        self.answered.then_some(true)
    }

    /// The outage that is known of: one failed request alone is none.
    #[must_use]
    pub fn outage(&self) -> Option<&Outage> {
        self.outage.as_ref().filter(|outage| match outage.trouble {
            Trouble::Unreachable(_) => true,
            Trouble::Reached => false,
            Trouble::Unanswered(failures) => failures >= KNOWN_AFTER,
        })
    }

    /// Notes an answer, and returns the outage that it ends.
    pub fn answered(&mut self) -> Option<Outage> {
        let known = self.outage().cloned();
        self.outage = None;
        self.answered = true;
        known
    }

    /// Notes that nothing could be sent, as `what` tells a person. Says whether that is news.
    pub fn unreachable(&mut self, what: &str, now: Time) -> bool {
        let outage = self.begin(now);
        if matches!(outage.trouble, Trouble::Unreachable(_)) {
            return false;
        }
        outage.trouble = Trouble::Unreachable(what.to_owned());
        outage.wait = FIRST_CHECK;
        outage.next_try = now + FIRST_CHECK;
        true
    }

    /// Notes how asking for a connection went. Returns when to ask again, if ever.
    pub fn checked(&mut self, reached: bool, now: Time) -> Option<Time> {
        let outage = self.outage.as_mut()?;
        if !matches!(outage.trouble, Trouble::Unreachable(_)) {
            return None;
        }
        if reached {
            outage.trouble = Trouble::Reached;
            outage.next_try = now;
            return None;
        }
        outage.wait = (outage.wait * 2).min(LAST_CHECK);
        outage.next_try = now + outage.wait;
        Some(outage.next_try)
    }

    /// When a connection is asked for next; `None` where that is not needed.
    #[must_use]
    pub fn next_check(&self) -> Option<Time> {
        self.outage
            .as_ref()
            .filter(|_| self.is_unreachable())
            .map(|outage| outage.next_try)
    }

    /// Notes that a request was sent and not answered. A server may ask to be left alone until `rest_until`. Says whether
    /// an outage is known by that and was not before.
    pub fn unanswered(&mut self, asker: Asker<'_>, spare: Spare, rest_until: Option<Time>, now: Time) -> bool {
        let known = self.outage().is_some();
        let outage = self.begin(now);
        let failures = match outage.trouble {
            Trouble::Unanswered(failures) => failures.saturating_add(1),
            Trouble::Unreachable(_) | Trouble::Reached => KNOWN_AFTER,
        };
        outage.trouble = Trouble::Unanswered(failures);
        outage.tried.retain(|(uid, _)| uid != asker.uid);
        outage.tried.push_front((asker.uid.clone(), asker.name.clone()));
        outage.tried.truncate(TRIED);
        let wait = (FIRST_WAIT * (1_i32 << failures.saturating_sub(1).min(5))).min(LONGEST_WAIT);
        outage.next_try = rest_until.unwrap_or(now).max(now + wait);
        // Half of what is to spare, at least one, spread over the time in which nobody has to try.
        let may_go = i32::try_from((spare.tries / 2).max(1)).unwrap_or(i32::MAX - 1);
        let left = spare.until.map_or(TimeDelta::zero(), |at| at - now);
        let spread = left.max(TimeDelta::zero()) / (may_go + 1);
        outage.spared.insert(asker.scope.clone(), now + spread);
        !known && self.outage().is_some()
    }

    fn begin(&mut self, now: Time) -> &mut Outage {
        self.outage.get_or_insert_with(|| Outage {
            since: now,
            trouble: Trouble::Unanswered(0),
            next_try: now,
            wait: FIRST_CHECK,
            tried: VecDeque::new(),
            spared: HashMap::new(),
        })
    }

    /// Until when nobody of `scope` asks, but for some who have come to half of their runway; `None` while nothing is
    /// known against asking.
    #[must_use]
    pub fn bar(&self, scope: &Scope) -> Option<Bar> {
        let but = if self.is_unreachable() {
            But::Nobody
        } else {
            But::Everybody
        };
        let until = self.one_at_a_time()?.opens(scope);
        Some(Bar { until, but })
    }

    /// Whether half of a runway is no reason to ask: nothing can be sent.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(&self.outage, Some(outage) if matches!(outage.trouble, Trouble::Unreachable(_)))
    }

    fn one_at_a_time(&self) -> Option<&Outage> {
        self.outage.as_ref().filter(|outage| match outage.trouble {
            Trouble::Unanswered(failures) => failures >= KNOWN_AFTER,
            Trouble::Unreachable(_) | Trouble::Reached => true,
        })
    }

    /// Asks whether to ask now; where not, when. Whoever may, and has not come to half of its runway, tries for all:
    /// nobody else does before the answer is in, at most `timeout` later.
    ///
    /// # Errors
    /// When to come again.
    pub fn ask(
        &mut self,
        asker: Asker<'_>,
        (newcomer, past_half): (bool, bool),
        timeout: TimeDelta,
        now: Time,
    ) -> Result<(), Time> {
        let unreachable = self.is_unreachable();
        let Some(turn) = self.one_at_a_time().map(|outage| outage.turn(asker, newcomer)) else {
            return Ok(());
        };
        if unreachable {
            return Err(turn.max(now + FIRST_CHECK));
        }
        if past_half {
            return Ok(());
        }
        if turn > now {
            return Err(turn);
        }
        if let Some(outage) = &mut self.outage {
            outage.next_try = now + timeout + FIRST_WAIT;
        }
        Ok(())
    }
}

impl Outage {
    fn opens(&self, scope: &Scope) -> Time {
        let spared = self.spared.get(scope).copied().unwrap_or(self.next_try);
        self.next_try.max(spared)
    }

    /// From when on somebody may try for all. One who tried, or another of the last one's namespace, lets others go
    /// before.
    fn turn(&self, asker: Asker<'_>, newcomer: bool) -> Time {
        let again = self.tried.iter().any(|(uid, _)| uid == asker.uid);
        let same = self
            .tried
            .front()
            .is_some_and(|(_, name)| name.namespace == asker.name.namespace);
        self.opens(asker.scope) + AFTER_OTHERS * (i32::from(same) + i32::from(again) + 4 * i32::from(newcomer))
    }

    /// Since when.
    #[must_use]
    pub fn since(&self) -> Time {
        self.since
    }

    /// What all who wait are told; the same for as long as it lasts.
    #[must_use]
    pub fn message(&self, connection: &str, now: Time) -> String {
        let since = clock(self.since, now);
        match &self.trouble {
            Trouble::Unreachable(what) => format!("{what}; tried every few seconds since {since}"),
            _ => format!(
                "ChittyConnect has answered nothing since {since}: one request tries for all, and ChittyConnection \
                 {connection} says when"
            ),
        }
    }

    /// What is tried next, and when.
    #[must_use]
    pub fn next(&self, now: Time) -> String {
        let since = clock(self.since, now);
        match &self.trouble {
            Trouble::Unreachable(what) => {
                format!("{what}. Since {since}; a connection is tried every few seconds, and nothing is spent on that")
            }
            _ => format!(
                "ChittyConnect has answered nothing since {since}. One request tries for all at {}; whoever has come to \
                 half of its runway tries by itself",
                clock(self.next_try.max(now), now)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::budget::Held;
    use crate::core::journal::tests_support::scope;
    use crate::core::testing::{s, t};

    const PLENTY: Spare = Spare {
        tries: 100,
        until: None,
    };
    const RENEWAL: (bool, bool) = (false, false);

    /// What happens to the gate, told by `namespace/uid`.
    struct Story {
        gate: Gate,
        scope: Scope,
    }

    impl Story {
        fn new() -> Self {
            Self {
                gate: Gate::default(),
                scope: scope(),
            }
        }

        fn with<R>(&mut self, who: &str, act: impl FnOnce(&mut Gate, Asker<'_>) -> R) -> R {
            let (namespace, uid) = who.split_once('/').unwrap();
            let (uid, name) = (Uid::from(uid), ObjectName::new(namespace, uid));
            let asker = Asker {
                uid: &uid,
                name: &name,
                scope: &self.scope,
            };
            act(&mut self.gate, asker)
        }

        fn fails(&mut self, who: &str, spare: Spare, now: Time) -> bool {
            self.with(who, |gate, asker| gate.unanswered(asker, spare, None, now))
        }

        fn asks(&mut self, who: &str, how: (bool, bool), now: Time) -> Result<(), Time> {
            self.with(who, |gate, asker| gate.ask(asker, how, s(10), now))
        }
    }

    #[test]
    fn one_failure_is_no_outage_two_are_and_an_answer_ends_it() {
        let mut story = Story::new();
        assert!(!story.fails("n/a", PLENTY, t(0)));
        assert_eq!(story.asks("n/b", RENEWAL, t(1)), Ok(()));
        assert!(story.fails("n/b", PLENTY, t(1)));
        assert!(!story.fails("n/c", PLENTY, t(2)), "no news");
        assert!(story.asks("m/d", RENEWAL, t(3)).is_err());
        assert_eq!(story.gate.answered().map(|outage| outage.since()), Some(t(0)));
        assert_eq!(story.asks("m/d", RENEWAL, t(3)), Ok(()));
        assert_eq!(story.gate.answered(), None);
    }

    #[test]
    fn after_each_failure_another_one_tries_of_another_namespace_first() {
        let mut story = Story::new();
        story.fails("n/a", PLENTY, t(0));
        story.fails("n/b", PLENTY, t(10));
        let at = story.gate.bar(&story.scope).unwrap().until;
        assert_eq!(at, t(30), "doubled");
        let mut turn = |who: &str, how| story.asks(who, how, t(11)).unwrap_err();
        let turns = ["m/x", "n/c", "n/a"].map(|who| turn(who, RENEWAL));
        assert_eq!(turns, [t(30), t(31), t(32)]);
        assert_eq!(turn("m/y", (true, false)), t(34), "newcomers come last");
    }

    #[test]
    fn nobody_else_tries_before_the_one_who_does_is_answered_but_who_is_past_half_of_its_runway() {
        let mut story = Story::new();
        story.fails("n/a", PLENTY, t(0));
        story.fails("n/b", PLENTY, t(0));
        assert_eq!(story.asks("m/c", RENEWAL, t(20)), Ok(()));
        assert_eq!(story.asks("m/d", RENEWAL, t(20)), Err(t(40)));
        assert_eq!(story.asks("m/e", (false, true), t(20)), Ok(()));
    }

    #[test]
    fn little_to_spare_is_spread_over_the_time_in_which_nobody_of_that_scope_has_to_try() {
        let mut story = Story::new();
        let spare = Spare {
            tries: 2,
            until: Some(t(400)),
        };
        story.fails("n/a", spare, t(0));
        story.fails("n/b", spare, t(0));
        assert_eq!(story.gate.bar(&story.scope).map(|bar| bar.until), Some(t(200)));
        let another = Scope {
            of: "another".into(),
            ..story.scope.clone()
        };
        assert_eq!(story.gate.bar(&another).map(|bar| bar.until), Some(t(20)));
    }

    #[test]
    fn a_server_that_asks_to_be_left_alone_is_but_for_those_past_half_of_their_runway() {
        let mut story = Story::new();
        for _ in 0..2 {
            story.with("n/a", |gate, asker| gate.unanswered(asker, PLENTY, Some(t(900)), t(0)));
        }
        assert_eq!(story.asks("m/b", RENEWAL, t(100)), Err(t(900)));
        assert_eq!(story.asks("m/b", (false, true), t(100)), Ok(()));
    }

    #[test]
    fn what_cannot_be_reached_is_checked_for_nothing_every_few_seconds_and_then_one_tries_for_all() {
        let mut story = Story::new();
        assert!(story.gate.unreachable("refused", t(0)));
        assert!(!story.gate.unreachable("refused", t(0)), "no news");
        assert!(story.asks("n/a", (false, true), t(3)).is_err());
        let mut at = t(1);
        for after in [2, 4, 5, 5] {
            let next = story.gate.checked(false, at).unwrap();
            assert_eq!(next - at, s(after));
            at = next;
        }
        let told = story.gate.outage().unwrap().message("c", at);
        assert_eq!(told, story.gate.outage().unwrap().message("c", at + s(7)), "no news");
        assert_eq!(story.gate.checked(true, at), None);
        assert_eq!(story.gate.outage(), None);
        assert_eq!(story.asks("n/a", RENEWAL, at), Ok(()));
        assert!(story.asks("m/b", RENEWAL, at).is_err(), "its answer tells");
        story.gate.answered();
        assert_eq!(story.asks("m/b", RENEWAL, at), Ok(()));
    }

    #[test]
    fn what_is_reached_and_does_not_answer_is_an_outage_at_once() {
        let mut story = Story::new();
        story.gate.unreachable("refused", t(0));
        story.gate.checked(true, t(5));
        assert!(story.fails("n/a", PLENTY, t(6)));
    }

    /// Invariant 16.
    #[test]
    fn a_bar_ends_at_half_of_the_runway_for_whoever_may_ask_then_and_for_nobody_else() {
        let mut budget = Budget::new("svc");
        for (uid, tried_at) in [("owes", None), ("tried", Some(t(3001)))] {
            let held = Held {
                namespace: "n".into(),
                issued_at: t(0),
                ends_at: t(3600),
                renew_before: None,
                tried_at,
                admitted: None,
            };
            budget.hold(&uid.into(), &held);
        }
        let until = |but| {
            let bar = Bar { until: t(9000), but };
            ["owes", "tried", "new"].map(|uid| bar.of(&uid.into(), &budget))
        };
        assert_eq!(until(But::Nobody), [t(9000); 3]);
        assert_eq!(until(But::OwnTries), [t(3000), t(9000), t(9000)]);
        assert_eq!(until(But::Everybody), [t(3000), t(3000), t(9000)]);
    }

    #[test]
    fn thousands_who_tried_are_not_all_remembered() {
        let mut story = Story::new();
        for i in 0..1000 {
            story.fails(&format!("n/{i}"), PLENTY, t(i));
        }
        assert_eq!(story.gate.outage().unwrap().tried.len(), TRIED);
    }
}
