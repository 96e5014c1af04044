//! Who is admitted, claims and asks: what the shell's budget task does.

use super::super::broker::Fault;
use super::super::oracle::{How, Request};
use super::{Credential, Event, LOOK, MOST_IN_A_PASS, Process, TIMEOUT, WINDOW, World, number_of, scope};
use crate::api::{BrokerApi, KeyRef};
use crate::core::Time;
use crate::core::budget::{Limit, Rate, Terms, is_untouched};
use crate::core::ids::Uid;
use crate::core::journal::{Claim, EndpointRef, RequestFacts};
use crate::core::outage::{Asker, Bar, But};
use crate::core::outcome::PROBE_EVERY;
use chrono::TimeDelta;
use std::sync::Arc;

impl World {
    pub(super) fn terms(&self) -> Terms {
        Terms {
            limits: vec![self.limit()],
            newcomers: self.process.as_ref().is_some_and(|p| p.synced),
        }
    }

    pub(super) fn limit(&self) -> Limit {
        Limit {
            limit: self.settings.limit,
            window: TimeDelta::milliseconds(WINDOW),
        }
    }

    pub(super) fn pass(&mut self) {
        let (now, terms, journal) = (self.time(), self.terms(), Arc::clone(&self.journal));
        let Some(process) = &mut self.process else { return };
        process.follower.follow(&journal, &terms.limits, now);
        process.tell_budget(&self.credentials, now);
        let (decision, selection) = process.follower.decide(&journal, &terms, now);
        let mut fit = Vec::new();
        for uid in decision.admitted.iter().take(MOST_IN_A_PASS) {
            let i = number_of(uid);
            let Some(entry) = process.entries.get(&i) else { continue };
            if process.working.contains_key(&i) || !is_untouched(&journal, uid.as_str(), entry.seq) {
                let until = now + TimeDelta::milliseconds(300);
                process.follower.budget.set_aside(uid, until);
                continue;
            }
            let past_half = process
                .follower
                .budget
                .half_of_runway(uid)
                .is_some_and(|half| half <= now);
            let scope = &journal.scope;
            let name = &entry.demand.name;
            let asker = Asker { uid, name, scope };
            let how = (entry.demand.reason.is_newcomer(), past_half);
            match process.gate.ask(asker, how, TimeDelta::seconds(TIMEOUT), now) {
                Ok(()) if process.may_probe(uid, now) => fit.push(i),
                Ok(()) => {}
                Err(turn) => process.follower.budget.set_aside(uid, turn),
            }
        }
        let wake = if decision.admitted.is_empty() {
            selection
                .wake
                .map_or(self.now + LOOK, |at| self.when(at).min(self.now + LOOK))
        } else {
            self.now
        };
        if !fit.is_empty() {
            self.claim(&fit, &terms);
        }
        self.wake_pass(wake);
    }

    pub(super) fn claim(&mut self, fit: &[usize], terms: &Terms) {
        let (now, journal) = (self.time(), Arc::clone(&self.journal));
        let Some(process) = &mut self.process else { return };
        let (decision, _) = process.follower.decide(&journal, terms, now);
        for i in fit {
            let uid = self.credentials[*i].uid.clone();
            let Some(admitted) = decision.rates.get(&uid).copied() else {
                continue;
            };
            let Some(entry) = self.process.as_mut().and_then(|p| p.entries.remove(i)) else {
                continue;
            };
            self.judge_admission(*i, &entry);
            let credential = &self.credentials[*i];
            let desired = &credential.desired;
            self.minted += 1;
            let id = format!("claim-{}", self.minted);
            let mut claim = Claim {
                namespace: credential.name.namespace.to_string(),
                name: credential.name.name.to_string(),
                revision: journal.credentials.get(uid.as_str()).map_or(0, |r| r.revision) + 1,
                seq: entry.seq,
                page: None,
                at: now,
                holder: self.process.as_ref().map(|p| p.holder.clone()).unwrap_or_default(),
                timeout_seconds: TIMEOUT,
                kind: entry.demand.reason,
                request: RequestFacts {
                    connection: desired.connection.as_str().into(),
                    service: desired.service.as_str().into(),
                    purpose: desired.purpose.as_str().into(),
                    repo: None,
                    run_id: id.clone(),
                    type_: None,
                },
                endpoint: EndpointRef {
                    url: "https://connect.chitty.cc".into(),
                    api: BrokerApi::Deploy,
                    key: KeyRef::default(),
                    ca: None,
                }
                .shared(),
                digest: desired.digest,
                secrets: vec![credential.name.name.to_string()],
                renew_before_ms: desired.renew_before.map(|d| d.num_milliseconds()),
                counts_from: None,
                max_lifetime_ms: desired.max_lifetime.map(|d| d.num_milliseconds()),
                period_ms: admitted.period.map(|p| p.num_milliseconds()),
                once: !entry.demand.renews,
                consumer: None,
                minted: None,
                id: id.clone(),
            };
            if let (Rate::AsBefore, Some(live)) = (admitted.rate, journal.live_of(uid.as_str())) {
                claim.keep_rate_of(live);
            }
            let (committed, window) = (claim.clone(), self.limit().window);
            self.commit(uid.as_str(), |j, _| j.claim(uid.as_str(), committed, window));
            self.post(*i, claim);
        }
    }

    pub(super) fn post(&mut self, i: usize, claim: Claim) {
        let fault = self.broker.fault(self.now);
        let wait = match fault {
            Some(Fault::Hang) => TIMEOUT * 1000,
            Some(_) => self.random.between(5, 300),
            None if self.random.below(30) == 0 => self.random.between(1_000, 5_000),
            None => self.random.between(10, 300),
        };
        if fault != Some(Fault::Refused) {
            self.broker.arrives(self.now);
        }
        self.history.requests.push(Request {
            number: self.minted,
            who: i,
            sent: self.now,
            at: self.now,
            how: How::Failed,
            newcomer: claim.kind.is_newcomer(),
        });
        let id = claim.id.clone();
        if let Some(process) = &mut self.process {
            process.changed.insert(i, true);
            process.working.insert(i, (claim, fault));
        }
        self.at(self.now + wait, Event::Answer(i, id, self.epoch));
    }
}

impl Process {
    /// Tells the budget who is in line, and who may not ask.
    pub(super) fn tell_budget(&mut self, credentials: &[Credential], now: Time) {
        let refused = self.refused_until.filter(|at| *at > now).map(|until| Bar {
            until,
            but: But::OwnTries,
        });
        let bar = refused.or_else(|| self.gate.bar(&scope()));
        if bar != self.bar {
            self.bar = bar;
            for i in self.entries.keys() {
                self.changed.entry(*i).or_default();
            }
        }
        for (i, left) in std::mem::take(&mut self.changed) {
            if left {
                self.follower.budget.dequeue(&credentials[i].uid);
            }
            let Some(entry) = self.entries.get_mut(&i) else {
                continue;
            };
            self.follower.budget.enqueue(entry.demand.clone());
            let until = bar.map(|bar| bar.of(&entry.demand.uid, &self.follower.budget));
            if left || entry.barred != until {
                entry.barred = until;
                self.follower.budget.set_aside(&entry.demand.uid, until.unwrap_or(now));
            }
        }
    }

    /// Of those who would ask with a refused key one tries it, and whoever owes its own try.
    pub(super) fn may_probe(&mut self, uid: &Uid, now: Time) -> bool {
        match &mut self.refused_until {
            None => true,
            Some(at) if *at <= now => {
                *at = now + PROBE_EVERY;
                true
            }
            Some(_) => {
                let budget = &self.follower.budget;
                budget.owes_own_try(uid) && budget.half_of_runway(uid).is_some_and(|half| half <= now)
            }
        }
    }
}
