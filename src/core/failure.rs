//! What a request comes to that brought no token: its place in the budget, when to ask again, and what it teaches.

use chrono::TimeDelta;

use super::Time;
use super::budget::{self, Limit};
use super::journal::{Claim, Failure, Journal, Outcome, Unauthorized};
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
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Digest of the API key.
    pub key: String,
    /// The connection's limit.
    pub limits: Vec<Limit>,
    /// What bounds the next try.
    pub pace: Pace,
}

/// What bounds the next try, the live token apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The longest window of the budget.
    pub window: TimeDelta,
    /// How long an answer is waited for.
    pub timeout: TimeDelta,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
}

/// Ends `claim` of `uid` without a token, with all that follows for its scope. False where somebody else has ended it.
pub fn fail(journal: &mut Journal, uid: &str, claim: &Claim, refused: &Refused, asked: &Asked, now: Time) -> bool {
    if refused.reason == Reason::Unauthorized {
        journal.unauthorized = Some(Unauthorized {
            key: asked.key.clone(),
            probe_at: now + PROBE_EVERY,
        });
    }
    let failure = failure(journal, uid, claim, refused, asked.pace, now);
    let counted = refused.counted;
    if !journal.end(uid, &claim.id, Outcome::Failed { failure, counted }, now) {
        return false;
    }
    throttle(journal, refused, asked, now);
    true
}

/// What a record keeps of a failed try.
#[must_use]
pub fn failure(journal: &Journal, uid: &str, claim: &Claim, refused: &Refused, pace: Pace, now: Time) -> Failure {
    let count = journal.failures_in_a_row(uid, &claim.request_hash, &claim.rotate);
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
    let retry_at = match refused.reason {
        // The scope, or the connection, says when; the credential itself may ask as soon as they do.
        Reason::RateLimited | Reason::Unauthorized => Some(now),
        _ => retry_at(failed, bounds, uid, now),
    };
    Failure {
        reason: refused.reason,
        message: refused.message.clone(),
        at: now,
        asked_at: Some(claim.at),
        count,
        retry_at,
        request_hash: claim.request_hash.clone(),
        layout_hash: claim.layout_hash.clone(),
        rotate: claim.rotate.clone(),
    }
}

/// What a 429 does to its scope.
fn throttle(journal: &mut Journal, refused: &Refused, asked: &Asked, now: Time) {
    if refused.reason != Reason::RateLimited {
        return;
    }
    journal.throttle.count = journal.throttle.count.saturating_add(1);
    let advised = refused
        .retry_after
        .map(|wait| wait.clamp(TimeDelta::seconds(1), LONGEST_ADVICE));
    // An upstream's 429, or a limit by the minute, says nothing of how many the window has room for.
    if refused.own_limit {
        budget::learn(journal, &asked.limits, now);
    }
    let wait = advised.unwrap_or_else(|| unadvised_block(journal.throttle.count, asked.pace.window));
    let until = now + wait;
    journal.throttle.blocked_until = Some(journal.throttle.blocked_until.map_or(until, |at| at.max(until)));
}
