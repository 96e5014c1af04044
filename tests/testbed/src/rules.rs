//! "Do this to the next N requests that look like that."

/// Names a rule, to ask about it or to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(usize);

/// Rules in the order they were made; the first that applies is taken.
pub(crate) struct Rules<M, E> {
    rules: Vec<Rule<M, E>>,
    next: usize,
}

struct Rule<M, E> {
    id: RuleId,
    matcher: M,
    effect: E,
    skip: usize,
    left: Option<usize>,
    hits: usize,
}

impl<M, E> Default for Rules<M, E> {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            next: 0,
        }
    }
}

impl<M, E: Clone> Rules<M, E> {
    pub(crate) fn add(&mut self, matcher: M, skip: usize, times: Option<usize>, effect: E) -> RuleId {
        let id = RuleId(self.next);
        self.next += 1;
        self.rules.push(Rule {
            id,
            matcher,
            effect,
            skip,
            left: times,
            hits: 0,
        });
        id
    }

    /// The effect for this request, which counts as one of the rule's times.
    pub(crate) fn take(&mut self, matches: impl Fn(&M) -> bool) -> Option<E> {
        for rule in &mut self.rules {
            if rule.left == Some(0) || !matches(&rule.matcher) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.hits += 1;
            rule.left = rule.left.map(|left| left - 1);
            return Some(rule.effect.clone());
        }
        None
    }

    pub(crate) fn hits(&self, id: RuleId) -> usize {
        self.rules.iter().find(|rule| rule.id == id).map_or(0, |rule| rule.hits)
    }

    /// Ends one rule; what it hit stays on record.
    pub(crate) fn end(&mut self, id: RuleId) {
        for rule in self.rules.iter_mut().filter(|rule| rule.id == id) {
            rule.left = Some(0);
        }
    }

    pub(crate) fn end_all(&mut self) {
        for rule in &mut self.rules {
            rule.left = Some(0);
        }
    }
}
