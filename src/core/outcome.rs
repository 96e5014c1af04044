//! What a request comes to, with the audit event that tells of it; and where it brought no token, its place in the budget,
//! when to ask again, and what it teaches.

use chrono::TimeDelta;

use super::Time;
use super::audit::{AuditEvent, EventType, Subject};
use super::budget::{self, Limit};
use super::journal::{ActiveToken, Claim, Failure, Journal, Outcome, Unauthorized};
use super::schedule::{Bounds, Try, retry_at, runway, unadvised_block};
use crate::api::Reason;

/// How often a refused key is tried again.
pub const PROBE_EVERY: TimeDelta = TimeDelta::minutes(15);
/// The longest wait a server can ask for: more is no advice.
const LONGEST_ADVICE: TimeDelta = TimeDelta::days(1);

/// What came back instead of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// A known phrase; never the server's text.
    pub message: String,
    /// Whether the request may have reached the server, and so counts.
    pub counted: bool,
    /// How long the server asks to be left alone, from its answer on.
    pub retry_after: Option<TimeDelta>,
    /// The server says that its own limit for this service is reached.
    pub own_limit: bool,
}

/// What was asked, and by which connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// Digest of the API key.
    pub key: String,
    /// The connection's limit.
    pub limits: Vec<Limit>,
    /// What bounds the next try.
    pub pace: Pace,
}

/// What bounds the next try, the live token apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// The longest window of the budget.
    pub window: TimeDelta,
    /// How long an answer is waited for.
    pub timeout: TimeDelta,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
}

/// Why a token of this revision was published.
#[must_use]
pub const fn published(revision: u64) -> Reason {
    if revision > 1 { Reason::Rotated } else { Reason::Issued }
}

/// Ends the claim that made `live`, with the audit event that tells of it; `None` where somebody else has ended it.
/// `deliver` says whether it has a destination.
pub fn succeed(
    journal: &mut Journal,
    subject: &Subject<'_>,
    live: &ActiveToken,
    deliver: bool,
    now: Time,
) -> Option<AuditEvent> {
    let claim = journal.pending(subject.uid).filter(|claim| claim.id == live.claim);
    let consumer = claim.and_then(|claim| claim.consumer.clone());
    if !journal.end(
        subject.uid,
        &live.claim,
        Outcome::Published(Box::new(live.clone())),
        now,
    ) {
        return None;
    }
    let reason = published(live.revision);
    let kind = match reason {
        Reason::Rotated => EventType::Rotated,
        _ => EventType::Provisioned,
    };
    let event = AuditEvent::new(kind, reason, subject, now, deliver).token(live.ends_at, &live.token_ids);
    let event = event.consumer(consumer.as_ref());
    Some(journal.record_event(subject.uid, event))
}

/// Ends `claim` without a token, with all that follows for its scope and the audit event that tells of it; `None` where
/// somebody else has ended it.
pub fn fail(
    journal: &mut Journal,
    subject: &Subject<'_>,
    claim: &Claim,
    refused: &Refused,
    asked: &Asked,
    deliver: bool,
    now: Time,
) -> Option<AuditEvent> {
    let uid = subject.uid;
    if refused.reason == Reason::Unauthorized {
        journal.unauthorized = Some(Unauthorized {
            key: asked.key.clone(),
            probe_at: now + PROBE_EVERY,
        });
    }
    let failure = failure(journal, uid, claim, refused, asked.pace, now);
    let counted = refused.counted;
    if !journal.end(uid, &claim.id, Outcome::Failed { failure, counted }, now) {
        return None;
    }
    throttle(journal, refused, asked, now);
    let event = AuditEvent::new(
        EventType::of_failure(refused.reason),
        refused.reason,
        subject,
        now,
        deliver,
    );
    let event = event.consumer(claim.consumer.as_ref());
    Some(journal.record_event(uid, event))
}

/// What a record keeps of a failed try.
#[must_use]
pub fn failure(journal: &Journal, uid: &str, claim: &Claim, refused: &Refused, pace: Pace, now: Time) -> Failure {
    let count = journal.failures_in_a_row(uid, &claim.digest);
    let live = journal
        .live_of(uid)
        .filter(|l| l.ends_at > now)
        .map(|l| (l.ends_at, runway(l.ends_at - l.issued_at, pace.renew_before)));
    let failed = Try {
        reason: refused.reason,
        count,
        counted: refused.counted,
    };
    let bounds = Bounds {
        window: pace.window,
        timeout: pace.timeout,
        live,
    };
    let half = live.map(|(ends_at, runway)| ends_at - runway / 2);
    let is_past_half = half.is_some_and(|half| half <= now);
    // What a server asks for ends at half of the runway.
    let asked = refused.retry_after.filter(|_| !is_past_half).map(|wait| {
        let until = now + wait.min(LONGEST_ADVICE);
        half.map_or(until, |half| until.min(half))
    });
    let retry_at = match refused.reason {
        // The scope, or the connection, says when; the credential itself may ask as soon as they do.
        Reason::Unauthorized => Some(now),
        Reason::RateLimited if !is_past_half => Some(now),
        _ => retry_at(failed, bounds, uid, now).map(|paced| paced.max(asked.unwrap_or(paced))),
    };
    Failure {
        reason: refused.reason,
        message: refused.message.clone(),
        at: now,
        asked_at: Some(claim.at),
        count,
        retry_at,
        digest: claim.digest,
    }
}

/// What a 429 does to its scope. Where the server names no time the wait doubles each time that the one before was in vain;
/// what it answers to requests that were made while one was on is no news.
fn throttle(journal: &mut Journal, refused: &Refused, asked: &Asked, now: Time) {
    if refused.reason != Reason::RateLimited {
        return;
    }
    let advised = refused
        .retry_after
        .map(|wait| wait.clamp(TimeDelta::seconds(1), LONGEST_ADVICE));
    // An upstream's 429, or a limit by the minute, says nothing of how many the window has room for.
    if refused.own_limit {
        budget::learn(journal, &asked.limits, now);
    }
    let throttle = &mut journal.throttle;
    let on = throttle.blocked_until.filter(|at| *at > now);
    if on.is_none() {
        throttle.count = throttle.count.saturating_add(1);
    }
    let until = match advised {
        Some(wait) => on.filter(|_| !throttle.guessed).max(Some(now + wait)),
        None => on.or_else(|| Some(now + unadvised_block(throttle.count, asked.pace.window))),
    };
    throttle.guessed = advised.is_none() && (on.is_none() || throttle.guessed);
    throttle.blocked_until = until;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::journal::MintReason;
    use crate::core::journal::tests_support::{claim, live, scope};
    use crate::core::testing::{s, t};

    fn limited(retry_after: Option<i64>) -> Refused {
        Refused {
            reason: Reason::RateLimited,
            message: String::new(),
            counted: true,
            retry_after: retry_after.map(s),
            own_limit: false,
        }
    }

    fn asked() -> Asked {
        Asked {
            key: String::new(),
            limits: Vec::new(),
            pace: Pace {
                window: s(3600),
                timeout: s(10),
                renew_before: None,
            },
        }
    }

    #[test]
    fn a_token_is_told_of_once_and_not_where_somebody_else_has_ended_its_claim() {
        let mut journal = Journal::new(scope());
        let claim = claim("a", "n", MintReason::First, t(0), 1);
        journal.claim("a", claim.clone(), s(3600));
        let mut token = live(&claim.id, t(1), t(3600));
        token.revision = 2;
        let told = succeed(&mut journal, &claim.subject("a"), &token, true, t(1)).unwrap();
        assert_eq!((told.event, told.reason), (EventType::Rotated, Reason::Rotated));
        assert!(succeed(&mut journal, &claim.subject("a"), &token, true, t(2)).is_none());
        assert_eq!(journal.events_of("a").count(), 1);
    }

    /// One request of `uid` at `at`, refused a second later.
    fn refuse(journal: &mut Journal, uid: &str, at: i64, retry_after: Option<i64>) {
        let claim = claim(uid, "n", MintReason::Renewal, t(at), usize::try_from(at).unwrap());
        journal.compact(t(at));
        journal.claim(uid, claim.clone(), s(3600));
        assert!(
            fail(
                journal,
                &claim.subject(uid),
                &claim,
                &limited(retry_after),
                &asked(),
                false,
                t(at + 1)
            )
            .is_some()
        );
    }

    #[test]
    fn a_wait_that_nobody_asked_for_doubles_once_each_time_it_was_in_vain_however_many_were_refused_at_once() {
        let mut journal = Journal::new(scope());
        for uid in ["a", "b", "c"] {
            refuse(&mut journal, uid, 0, None);
        }
        assert_eq!(journal.throttle.blocked_until, Some(t(61)));
        refuse(&mut journal, "d", 30, None);
        assert_eq!(
            journal.throttle.blocked_until,
            Some(t(61)),
            "asked for its own try meanwhile"
        );
        refuse(&mut journal, "a", 61, None);
        assert_eq!(journal.throttle.blocked_until, Some(t(62 + 120)));
        assert!(journal.throttle.guessed);
    }

    #[test]
    fn a_wait_that_is_over_is_forgotten_and_a_token_ends_the_doubling() {
        let mut journal = Journal::new(scope());
        refuse(&mut journal, "a", 0, None);
        refuse(&mut journal, "a", 61, None);
        journal.compact(t(182));
        assert_eq!(
            (journal.throttle.blocked_until, journal.throttle.guessed),
            (None, false)
        );
        assert_eq!(journal.throttle.count, 2, "one still tries for all");
        let claim = claim("b", "n", MintReason::First, t(182), 182);
        journal.claim("b", claim.clone(), s(3600));
        let token = live(&claim.id, t(183), t(3783));
        assert!(succeed(&mut journal, &claim.subject("b"), &token, false, t(183)).is_some());
        assert_eq!(journal.throttle.count, 0);
        refuse(&mut journal, "a", 200, None);
        assert_eq!(journal.throttle.blocked_until, Some(t(261)));
    }

    #[test]
    fn a_refused_key_is_tried_again_after_a_quarter_of_an_hour_and_a_token_says_that_it_is_accepted() {
        let mut journal = Journal::new(scope());
        let claim = |at, n| claim("a", "n", MintReason::First, t(at), n);
        let (first, second) = (claim(0, 1), claim(900, 2));
        journal.claim("a", first.clone(), s(3600));
        let refused = Refused {
            reason: Reason::Unauthorized,
            ..limited(None)
        };
        let asked = Asked {
            key: "digest".to_owned(),
            ..asked()
        };
        fail(&mut journal, &first.subject("a"), &first, &refused, &asked, false, t(1));
        let noted = journal.unauthorized.clone().unwrap();
        assert_eq!((noted.key.as_str(), noted.probe_at), ("digest", t(901)));
        journal.claim("a", second.clone(), s(3600));
        let token = live(&second.id, t(901), t(4501));
        assert!(succeed(&mut journal, &second.subject("a"), &token, false, t(901)).is_some());
        assert!(journal.unauthorized.is_none());
    }

    #[test]
    fn what_the_server_asks_for_is_gone_by_and_told_apart_from_a_guess() {
        let mut journal = Journal::new(scope());
        refuse(&mut journal, "a", 0, None);
        refuse(&mut journal, "b", 1, Some(10));
        assert_eq!(journal.throttle.blocked_until, Some(t(12)));
        assert!(!journal.throttle.guessed);
        refuse(&mut journal, "c", 2, None);
        assert_eq!(journal.throttle.blocked_until, Some(t(12)));
        assert!(!journal.throttle.guessed);
    }

    #[test]
    fn past_half_of_its_runway_a_credential_paces_itself_whoever_was_limited() {
        let mut journal = Journal::new(scope());
        let first = claim("a", "n", MintReason::First, t(0), 0);
        journal.claim("a", first, s(3600));
        let token = Outcome::Published(Box::new(live("claim-0", t(0), t(3600))));
        assert!(journal.end("a", "claim-0", token, t(0)));
        let retry_at = |journal: &Journal| journal.credentials["a"].failure.as_ref().unwrap().retry_at;
        refuse(&mut journal, "a", 2500, None);
        assert_eq!(retry_at(&journal), Some(t(2501)), "when the scope goes on");
        refuse(&mut journal, "a", 3000, None);
        assert!(retry_at(&journal) >= Some(t(3011)), "{:?}", retry_at(&journal));
    }

    #[test]
    fn half_of_a_runway_is_that_of_the_runway_asked_for_and_not_of_the_life() {
        let mut journal = Journal::new(scope());
        let first = claim("a", "n", MintReason::First, t(0), 0);
        journal.claim("a", first.clone(), s(3600));
        let token = Outcome::Published(Box::new(live("claim-0", t(0), t(3600))));
        assert!(journal.end("a", "claim-0", token, t(0)));
        let retry_at = |at, renew_before| {
            let pace = Pace {
                renew_before: Some(s(renew_before)),
                ..asked().pace
            };
            failure(&journal, "a", &first, &limited(None), pace, t(at)).retry_at
        };
        assert_eq!(retry_at(3449, 300), Some(t(3449)));
        assert!(retry_at(3450, 300) > Some(t(3450)));
        assert!(retry_at(3001, 1200) > Some(t(3001)));
    }

    #[test]
    fn what_an_overloaded_server_asks_for_is_gone_by_at_once_and_up_to_half_of_the_runway() {
        let mut journal = Journal::new(scope());
        let first = claim("a", "n", MintReason::First, t(0), 0);
        let retry_at = |journal: &Journal, at, wait: i64| {
            let refused = Refused {
                reason: Reason::BrokerUnavailable,
                ..limited(Some(wait))
            };
            failure(journal, "a", &first, &refused, asked().pace, t(at)).retry_at
        };
        assert_eq!(retry_at(&journal, 0, 600), Some(t(600)), "who has no token yet");
        assert!(retry_at(&journal, 0, 1) >= Some(t(10)), "no sooner than without");
        journal.claim("a", first.clone(), s(3600));
        let token = Outcome::Published(Box::new(live("claim-0", t(0), t(3600))));
        assert!(journal.end("a", "claim-0", token, t(0)));
        assert_eq!(retry_at(&journal, 2500, 120), Some(t(2620)));
        assert_eq!(retry_at(&journal, 2500, 1800), Some(t(3000)));
        assert!(
            retry_at(&journal, 3000, 1800) < Some(t(3100)),
            "past half it paces itself"
        );
    }
}
