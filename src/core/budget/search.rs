//! When somebody can be admitted: found with bounded work, and remembered while nothing changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::core::ids::Uid;

use super::projection::Projection;
use super::series::Series;
use super::slots::Slot;

/// Searches for a slot in one pass,
const SEARCHES: usize = 32;
/// and of those, for one namespace.
const SEARCHES_EACH: usize = 8;
/// Once no search is left: how many are still asked whether they fit right now,
const TESTS: usize = 2000;
/// and of those, for one namespace.
const TESTS_EACH: usize = 8;
/// Ranges of the timelines that the searches of one pass look at, and the tests: some milliseconds.
pub(super) const WORK: usize = 200_000;

/// What was found out about periods, or about those who hold something, since the facts last changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Memo {
    slots: HashMap<(i64, Option<Uid>), Slot>,
    /// Since when.
    since: i64,
}

impl Memo {
    pub(super) fn clear(&mut self) {
        self.slots.clear();
    }

    /// Forgets what is older than `age`: the horizon has moved on.
    pub(super) fn move_to(&mut self, now: i64, age: i64) {
        if self.slots.is_empty() {
            self.since = now;
        } else if now < self.since || now - self.since > age {
            self.clear();
            self.since = now;
        }
    }
}

/// The search for slots in one pass.
pub(super) struct Search<'a> {
    pub(super) projection: &'a mut Projection,
    memo: &'a mut Memo,
    now: i64,
    /// Somebody is tried out: what is found now does not hold without them.
    tried: bool,
    /// Periods for which there is no slot with those that are tried out.
    never: HashSet<i64>,
    searches: usize,
    work: usize,
    tests: usize,
    test_work: usize,
    /// Searches and tests for each namespace.
    by_namespace: HashMap<Arc<str>, (usize, usize)>,
    /// What was planned before for those who are tried out.
    pub(super) undo: Vec<(Uid, Option<Series>)>,
}

impl<'a> Search<'a> {
    pub(super) fn new(projection: &'a mut Projection, memo: &'a mut Memo, now: i64) -> Self {
        Self {
            projection,
            memo,
            now,
            tried: false,
            never: HashSet::new(),
            searches: SEARCHES,
            work: WORK,
            tests: TESTS,
            test_work: WORK,
            by_namespace: HashMap::new(),
            undo: Vec::new(),
        }
    }

    /// Plans as if `uid` were admitted now.
    pub(super) fn admit(&mut self, uid: &Uid, namespace: &Arc<str>, period: i64) {
        self.tried = true;
        let series = Series {
            namespace: Arc::clone(namespace),
            first: self.now.saturating_add(period),
            period,
            keeps: period,
            ends: None,
        };
        let before = self.projection.try_out(uid, series);
        self.undo.push((uid.clone(), before));
    }

    /// Whether `uid`, which holds a token, may renew it now, before it has to; or more often than before, and so with
    /// no more room than newcomers have.
    pub(super) fn may_renew(&mut self, uid: &Uid, period: i64, renewal: bool) -> bool {
        let mut work = WORK;
        self.without(uid, |projection| projection.fits_now(period, renewal, &mut work))
    }

    /// Looks at the projection as it is without what is planned for `uid`.
    fn without<T>(&mut self, uid: &Uid, look: impl FnOnce(&mut Projection) -> T) -> T {
        let own = self.projection.take(uid.as_str());
        let found = look(self.projection);
        if let Some(own) = own {
            self.projection.put(uid, own);
        }
        found
    }

    /// Whether no work is left.
    pub(super) fn is_spent(&self) -> bool {
        self.tests == 0 || self.test_work == 0
    }

    /// Whether it is known that nobody of this period who holds nothing gets a slot.
    pub(super) fn is_hopeless(&self, period: i64) -> bool {
        self.never.contains(&period)
            || self.memo.slots.get(&(period, None)) == Some(&Slot::Never)
            || self.projection.is_too_dense(period)
    }

    /// When a newcomer gets a slot.
    pub(super) fn slot(&mut self, uid: &Uid, namespace: &Arc<str>, period: i64, holds: bool) -> Slot {
        if !holds && self.is_hopeless(period) {
            return Slot::Never;
        }
        let key = (period, holds.then(|| uid.clone()));
        match self.memo.slots.get(&key) {
            Some(Slot::Never) => return Slot::Never,
            Some(Slot::At(at)) if !self.tried && *at > self.now => return Slot::At(*at),
            _ => {}
        }
        let slot = if self.may_search(namespace) {
            self.search(uid, period)
        } else {
            Slot::Unknown
        };
        match slot {
            Slot::Unknown => return self.test(uid, namespace, period),
            Slot::Never if self.tried && !holds => drop(self.never.insert(period)),
            _ if self.tried => {}
            _ => drop(self.memo.slots.insert(key, slot)),
        }
        slot
    }

    fn may_search(&mut self, namespace: &Arc<str>) -> bool {
        let (searched, _) = self.by_namespace.entry(Arc::clone(namespace)).or_default();
        if self.searches == 0 || self.work == 0 || *searched >= SEARCHES_EACH {
            return false;
        }
        *searched += 1;
        self.searches -= 1;
        true
    }

    fn search(&mut self, uid: &Uid, period: i64) -> Slot {
        let mut work = self.work;
        let slot = self.without(uid, |projection| projection.slot(period, &mut work));
        self.work = work;
        slot
    }

    /// Whether a newcomer fits right now, once no search is left: it need not wait for those before it.
    fn test(&mut self, uid: &Uid, namespace: &Arc<str>, period: i64) -> Slot {
        let spent = self.is_spent();
        let (_, tested) = self.by_namespace.entry(Arc::clone(namespace)).or_default();
        if spent || *tested >= TESTS_EACH {
            return Slot::Unknown;
        }
        *tested += 1;
        self.tests -= 1;
        let mut work = self.test_work;
        let fits = self.without(uid, |projection| projection.fits_now(period, false, &mut work));
        self.test_work = work;
        if fits { Slot::At(self.now) } else { Slot::Unknown }
    }
}
