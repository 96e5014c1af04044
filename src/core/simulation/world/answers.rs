//! What comes back, and what is noted of it.

use super::super::broker::Fault;
use super::super::oracle::{How, Request, Token};
use super::{Event, KEY, LIFETIME, TIMEOUT, World, ms_of};
use crate::api::Reason;
use crate::core::Time;
use crate::core::journal::{ActiveToken, Claim, Written};
use crate::core::outage::{Asker, is_no_answer};
use crate::core::outcome::{Asked, PROBE_EVERY, Pace, Refused, fail, succeed};
use crate::core::schedule::latest_safe;
use chrono::{DateTime, TimeDelta};

impl World {
    pub(super) fn answer(&mut self, i: usize, id: &str) {
        let Some((claim, fault)) = self.process.as_mut().and_then(|p| p.working.remove(&i)) else {
            return;
        };
        if self.credentials[i].gone {
            self.note(i, None, None);
            self.came_of(id, How::Failed);
            let uid = self.credentials[i].uid.clone();
            self.commit(uid.as_str(), |j, now| j.give_up(uid.as_str(), now));
            return;
        }
        let refused = match fault {
            None => self.credentials[i].poison.map(|reason| (reason, None)),
            Some(Fault::ServerError | Fault::Refused) => Some((Reason::BrokerUnavailable, None)),
            Some(Fault::Hang) => Some((Reason::OutcomeUnknown, None)),
            Some(Fault::Limited(s)) => Some((Reason::RateLimited, s.map(TimeDelta::seconds))),
            Some(Fault::Unauthorized) => Some((Reason::Unauthorized, None)),
            Some(Fault::Unavailable(s)) => Some((Reason::BrokerUnavailable, Some(TimeDelta::seconds(s)))),
        };
        self.note(i, fault, refused);
        match refused {
            Some(_) if fault == Some(Fault::Refused) => {
                let uid = self.credentials[i].uid.clone();
                self.commit(uid.as_str(), |j, _| j.withdraw(uid.as_str(), id));
                self.came_of(id, How::Refused);
            }
            Some((reason, retry_after)) => self.refuse(i, &claim, reason, retry_after),
            None => {
                let token = token_of(&claim, self.time());
                self.credentials[i].secret = Some(token.clone());
                if self.dies() && self.random.below(400) == 0 {
                    // Written, and not recorded.
                    self.crash();
                    return;
                }
                self.publish(i, id, &token);
            }
        }
        self.look(i);
        self.wake_pass(self.now);
    }

    /// Notes whether the broker answers, as the shell does after each request.
    pub(super) fn note(&mut self, i: usize, fault: Option<Fault>, refused: Option<(Reason, Option<TimeDelta>)>) {
        let (now, scope) = (self.time(), self.journal.scope.clone());
        let credential = &self.credentials[i];
        let Some(process) = &mut self.process else { return };
        let asker = Asker {
            uid: &credential.uid,
            name: &credential.name,
            scope: &scope,
        };
        let news = match refused.filter(|(reason, _)| is_no_answer(*reason)) {
            None => process.gate.answered().is_some(),
            Some(_) if fault == Some(Fault::Refused) => {
                let news = process.gate.unreachable("refused", now);
                if let Some(at) = process.gate.next_check().filter(|_| news) {
                    let at = self.when(at);
                    self.at(at, Event::Reach);
                }
                news
            }
            Some((_, retry_after)) => {
                let spare = process.follower.budget.spare(now);
                let rest = retry_after.map(|wait| now + wait);
                process.gate.unanswered(asker, spare, rest, now)
            }
        };
        if news {
            self.tell_line();
        }
    }

    pub(super) fn tell_line(&mut self) {
        let line: Vec<usize> = self.process.iter().flat_map(|p| p.entries.keys().copied()).collect();
        for i in line {
            self.look(i);
        }
        self.wake_pass(self.now);
    }

    pub(super) fn reach(&mut self) {
        let (now, reached) = (self.time(), self.broker.fault(self.now) != Some(Fault::Refused));
        let Some(process) = &mut self.process else { return };
        match process.gate.checked(reached, now) {
            Some(at) => {
                let at = self.when(at);
                self.at(at, Event::Reach);
            }
            None => self.tell_line(),
        }
    }

    pub(super) fn refuse(&mut self, i: usize, claim: &Claim, reason: Reason, retry_after: Option<TimeDelta>) {
        let refused = Refused {
            reason,
            message: String::new(),
            counted: true,
            retry_after,
            own_limit: false,
        };
        let credential = &self.credentials[i];
        let asked = Asked {
            key: KEY.to_owned(),
            limits: vec![self.limit()],
            pace: Pace {
                window: self.limit().window,
                timeout: TimeDelta::seconds(TIMEOUT),
                renew_before: credential.desired.renew_before,
            },
        };
        let uid = credential.uid.clone();
        self.commit(uid.as_str(), |j, now| {
            fail(j, &claim.subject(uid.as_str()), claim, &refused, &asked, false, now);
        });
        self.came_of(&claim.id, How::Failed);
        let throttle = &self.journal.throttle;
        if let (false, Reason::RateLimited, Some(until)) = (throttle.guessed, reason, throttle.blocked_until) {
            self.history.waits.push((self.now, ms_of(until)));
        }
        if reason == Reason::Unauthorized {
            let probe_at = self.time() + PROBE_EVERY;
            self.history.waits.push((self.now, ms_of(probe_at)));
            if let Some(process) = &mut self.process {
                process.refused_until = Some(probe_at);
            }
            for i in 0..self.credentials.len() {
                self.look(i);
            }
        }
    }

    pub(super) fn publish(&mut self, i: usize, id: &str, token: &ActiveToken) {
        let uid = self.credentials[i].uid.clone();
        let Some(claim) = self
            .journal
            .pending(uid.as_str())
            .filter(|c| c.id == id)
            .map(|c| (**c).clone())
        else {
            return;
        };
        self.commit(uid.as_str(), |j, now| {
            succeed(j, &claim.subject(uid.as_str()), token, false, now);
        });
        self.came_of(id, How::Answered);
        self.ends(i, false);
        self.history.tokens.push(Token {
            who: i,
            issued: ms_of(token.issued_at),
            ends: ms_of(token.ends_at),
            own_latest: ms_of(latest_safe(token.issued_at, token.ends_at, token.renew_before())),
            latest: 0,
            until: i64::MAX,
            newcomer: claim.kind.is_newcomer(),
            lost: false,
        });
        self.asked_anew(i);
        if let Some(process) = &mut self.process
            && process.refused_until.take().is_some()
        {
            self.tell_line();
        }
    }

    /// Notes what came of the request of claim `id`.
    fn came_of(&mut self, id: &str, how: How) {
        let now = self.now;
        let number = id.strip_prefix("claim-").and_then(|n| n.parse().ok());
        let mut requests = self.history.requests.iter_mut().rev();
        if let Some(request) = requests.find(|r| Some(r.number) == number) {
            // One that died with its process counts from when an answer could have come at the latest.
            request.at = now.min(request.sent + (TIMEOUT + 5) * 1000);
            request.how = how;
            let request = *request;
            if self.history.is_waste(&request, self.oracle_terms()) {
                self.report.wasted += 1;
                let Request { who, sent, .. } = request;
                let story = self.history.story(who, sent + 1, &self.broker);
                self.report
                    .stories
                    .push(format!("#{who} took what was kept at {sent}\n{story}"));
            }
        }
    }
}

fn token_of(claim: &Claim, now: Time) -> ActiveToken {
    // Ends are told in whole seconds.
    let end = now.timestamp() + LIFETIME;
    let full = DateTime::from_timestamp(end, 0).unwrap_or(now);
    let most = claim.max_lifetime_ms.map(|ms| now + TimeDelta::milliseconds(ms));
    ActiveToken {
        claim: claim.id.clone(),
        revision: claim.revision,
        request: claim.request.clone(),
        endpoint: claim.endpoint.clone(),
        digest: claim.digest,
        issued_at: now,
        ends_at: most.map_or(full, |at| at.min(full)),
        full_lifetime: most.filter(|at| *at < full).map(|_| LIFETIME),
        renew_before_ms: claim.renew_before_ms,
        period_ms: claim.period_ms,
        token_ids: Vec::new(),
        outputs: Box::default(),
        source: None,
        secrets: claim
            .secrets
            .iter()
            .map(|name| (name.clone(), Written::default()))
            .collect(),
    }
}
