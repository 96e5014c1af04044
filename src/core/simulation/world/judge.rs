//! Whether what happened keeps the promises.

use super::super::Faults;
use super::super::oracle::{self, Loss};
use super::{Credential, Entry, LATE, LIFETIME, TIMEOUT, WINDOW, World, instant, ms_of, number_of};
use crate::core::clock;
use crate::core::journal::MintReason;
use crate::core::schedule::latest_safe;
use crate::core::spec::Desired;
use chrono::TimeDelta;
use std::collections::BTreeMap;

impl World {
    /// The last token of a credential is no longer its own; `unreplaced` where it was lost.
    pub(super) fn ends(&mut self, who: usize, unreplaced: bool) {
        let now = self.now;
        let Some(place) = self
            .history
            .tokens
            .iter()
            .rposition(|t| t.who == who && t.until == i64::MAX)
        else {
            return;
        };
        let token = self.history.tokens[place];
        if unreplaced {
            let loss = self.history.judge(&token, &self.broker, self.oracle_terms());
            match loss {
                Loss::Promised => self.report.lost += 1,
                Loss::Missed => self.report.missed += 1,
                Loss::Excused(excuse) => *self.report.beyond.entry(excuse).or_default() += 1,
            }
            if !matches!(loss, Loss::Excused(_)) {
                let at = |ms: i64| clock(instant(ms), instant(ms));
                self.report.stories.push(format!(
                    "{} (#{who}) lost at {now}, {loss:?}: issued {}, half {}, end {}\n{}",
                    self.credentials[who].name,
                    at(token.issued),
                    at(token.half()),
                    at(token.ends),
                    self.history.story(who, token.ends, &self.broker),
                ));
            }
        }
        self.history.tokens[place].until = now;
        self.history.tokens[place].lost = unreplaced;
    }

    pub(super) fn oracle_terms(&self) -> oracle::Terms {
        let limit = self.limit();
        oracle::Terms {
            limit: usize::try_from(limit.limit).unwrap_or(0),
            counts_for: limit.counts_for().num_milliseconds(),
            timeout: TIMEOUT * 1000,
        }
    }

    /// Its runway is the shorter one of what its token was minted with and what is asked for now.
    pub(super) fn asked_anew(&mut self, who: usize) {
        let before = self.credentials[who].desired.renew_before;
        let mut tokens = self.history.tokens.iter_mut().rev();
        if let Some(token) = tokens.find(|t| t.who == who && t.until == i64::MAX) {
            let asked = latest_safe(instant(token.issued), instant(token.ends), before);
            token.latest = token.own_latest.max(ms_of(asked));
        }
    }

    /// Whether processes die, too.
    pub(super) fn dies(&self) -> bool {
        self.settings.faults == Faults::Mixed
    }

    /// Whether everything goes as it should.
    fn is_calm(&self) -> bool {
        self.settings.faults == Faults::Never
    }

    /// Time from one renewal to the next, for `desired`, in milliseconds.
    pub(super) fn period(desired: &Desired) -> i64 {
        let full = TimeDelta::seconds(LIFETIME);
        let lifetime = desired.max_lifetime.map_or(full, |max| max.min(full));
        (lifetime - crate::core::schedule::runway(lifetime, desired.renew_before))
            .num_milliseconds()
            .max(1)
    }

    /// What each namespace has, in thousandths of a mint a window: what its live tokens and claims need, or what its
    /// newcomers spent.
    pub(super) fn shares(&self) -> BTreeMap<&str, i64> {
        let mut rates: BTreeMap<&str, i64> = BTreeMap::new();
        let mut spent: BTreeMap<&str, i64> = BTreeMap::new();
        for credential in self.credentials.iter().filter(|c| !c.gone) {
            let record = self.journal.credentials.get(credential.uid.as_str());
            let live = record.and_then(|r| r.live.as_ref());
            let period = live.map(|l| {
                let latest = latest_safe(l.issued_at, l.ends_at, l.renew_before());
                (latest - l.issued_at).num_milliseconds().max(1)
            });
            let open = self.journal.claims.contains_key(credential.uid.as_str());
            if let Some(period) = period.or_else(|| open.then(|| Self::period(&credential.desired))) {
                *rates.entry(&credential.name.namespace).or_default() += WINDOW * 1000 / period;
            }
        }
        let after = self.time() - self.limit().window;
        for (_, namespace) in self.journal.newcomers().filter(|(at, _)| *at > after) {
            *spent.entry(namespace).or_default() += 1000;
        }
        for (namespace, count) in spent {
            let rate = rates.entry(namespace).or_default();
            *rate = (*rate).max(count);
        }
        rates
    }

    /// Whether somebody was admitted while others of a poorer namespace wait for the same; and how long they waited.
    pub(super) fn judge_admission(&mut self, i: usize, entry: &Entry) {
        let credential = &self.credentials[i];
        if !entry.demand.reason.is_newcomer() {
            let token = self.history.tokens.iter().rfind(|t| t.who == i && t.until == i64::MAX);
            if let Some(token) = token.filter(|t| self.now - t.latest > LATE && self.is_calm()) {
                // It may have to wait for something to spare, up to half of its runway.
                let late = (self.now - token.half()) / 1000;
                self.report.put_off += 1;
                self.report.late += usize::from(late * 1000 > LATE);
                if late * 1000 > LATE || self.report.put_off == 1 {
                    let story = self.history.story(i, token.ends, &self.broker);
                    let name = &credential.name;
                    self.report.stories.push(format!(
                        "{name} (#{i}) renewed {late} s after half of its runway at {}\n{story}",
                        self.now
                    ));
                }
            }
            return;
        }
        self.last_admission = self.now;
        if self.is_calm() {
            self.report.longest_wait = self.report.longest_wait.max(self.now - entry.since);
        }
        if entry.demand.pod_waits || entry.demand.reason != MintReason::First {
            return;
        }
        let (shares, own) = (self.shares(), &credential.name.namespace);
        let of = |namespace: &str| shares.get(namespace).copied().unwrap_or(0);
        let period = Self::period(&credential.desired);
        let needs = WINDOW * 1000 / period;
        let richer = |other: &&Entry| {
            let d = &other.demand;
            d.reason == MintReason::First
                && d.name.namespace != *own
                && (d.renew_before, d.max_lifetime) == (entry.demand.renew_before, entry.demand.max_lifetime)
                && other.barred.is_none()
                && other.since + 1_000 < self.now
                && of(own) > of(&d.name.namespace) + needs.max(1000)
        };
        let starved = self.process.iter().flat_map(|p| p.entries.values()).find(richer);
        let story = starved.map(|other| {
            let (rich, poor) = (of(own), of(&other.demand.name.namespace));
            let (name, before) = (&credential.name, &other.demand.name);
            let told = self
                .process
                .as_ref()
                .and_then(|p| p.follower.budget.waiting(&other.demand.uid));
            let told = told.map_or_else(|| "which rests".to_owned(), |w| w.message);
            format!("{name} ({rich}) before {before} ({poor}), {told}; at {}", self.now)
        });
        self.report.starved += usize::from(story.is_some());
        self.report.stories.extend(story);
    }

    /// Whoever fits whatever the phases of all renewals is admitted within a window: by then all that was sent before
    /// has left it.
    pub(super) fn arithmetic(&mut self) {
        if !self.is_calm() {
            return;
        }
        let Some(process) = &self.process else { return };
        let counts_for = self.limit().counts_for().num_milliseconds();
        let most = |period: i64| (counts_for + period - 1) / period;
        let planned: i64 = self
            .credentials
            .iter()
            .filter(|c| {
                !c.gone
                    && (self.journal.live_of(c.uid.as_str()).is_some()
                        || self.journal.pending(c.uid.as_str()).is_some())
            })
            .map(|c| most(Self::period(&c.desired)))
            .sum();
        let cap = i64::from(self.limit().for_newcomers());
        let fits = |e: &Entry| {
            e.demand.reason == MintReason::First && planned + most(Self::period(&self.credentials_of(e).desired)) <= cap
        };
        if !process.entries.values().any(fits) {
            self.fits_since = None;
            return;
        }
        let since = *self.fits_since.get_or_insert(self.now);
        if self.now - since.max(self.last_admission) > counts_for + LATE {
            self.report.waited += 1;
            self.report
                .stories
                .push(format!("somebody who fits waits since {since} at {}", self.now));
            self.fits_since = None;
        }
    }

    pub(super) fn credentials_of(&self, entry: &Entry) -> &Credential {
        &self.credentials[number_of(&entry.demand.uid)]
    }
}
