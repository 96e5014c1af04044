//! The journal of one budget scope: the only durable truth about mints.
//!
//! A journal says which requests were sent and count against the budget, which are under way, what
//! every credential holds, what is owed (revocations, audit) and what was refused. It is committed
//! by compare-and-swap; whoever commits decides on the state it commits to.

mod bounds;
mod entries;
pub mod pages;
mod revocations;
mod suspension;
#[cfg(test)]
pub mod tests_support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::TimeDelta;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::api::{RateScope, Reason};
use crate::core::Time;
use crate::core::audit::AuditEvent;
use crate::core::ids::{Digest, SpecDigest, Uid};
use crate::core::spec::digest;
use crate::planted::{Bug, is_planted};

pub use entries::{
    ActiveToken, Attempt, Claim, EndpointRef, Failure, LetGo, MintReason, Minted, Record, RequestFacts, Revocation,
    RevokedBy, Span, Throttle, Unauthorized, Written, metadata_digest,
};

/// What a request counts beyond its window at most.
pub const MARGIN: TimeDelta = TimeDelta::seconds(5);
/// Undelivered audit events that stop minting in a scope; one with many credentials may hold four for each.
pub const AUDIT_CAPACITY: usize = 2000;
/// Requests that are kept one by one; older ones are counted together, in buckets of the window's
/// [`ATTEMPTS_KEPT`]th part.
pub const ATTEMPTS_KEPT: usize = 512;
/// How long after a loss that is remembered: longer than any window.
const LOSS_REMEMBERED: TimeDelta = TimeDelta::days(2);
/// How long a process that was taken for dead with a claim open is reckoned with.
const OPEN_FOR: TimeDelta = TimeDelta::hours(1);
/// How long where none is open, but a request was answered or given up lately: shorter, since after each change of leader
/// nearly all of these are read in vain.
const CLOSED_FOR: TimeDelta = TimeDelta::minutes(10);
/// How lately.
const CLOSED_LATELY: TimeDelta = TimeDelta::minutes(5);

/// What a budget is counted for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    /// Scheme, host and port of `ChittyConnect`.
    pub origin: Arc<str>,
    /// What `of` names.
    pub kind: RateScope,
    /// The service, or an HMAC of the API key.
    pub of: Arc<str>,
}

impl Scope {
    /// Name of the ConfigMap that holds this scope's journal.
    #[must_use]
    pub fn journal_name(&self) -> String {
        let kind = match self.kind {
            RateScope::Service => "service",
            RateScope::Key => "key",
        };
        let hash = digest([&*self.origin, kind, &*self.of]);
        format!("chitty-journal-{}", &hash[..16])
    }

    /// What a person calls this budget.
    #[must_use]
    pub fn title(&self) -> &str {
        match self.kind {
            RateScope::Service => &self.of,
            RateScope::Key => "this API key",
        }
    }
}

/// The durable state of one scope, as decisions see it: how it is spread over objects is [`pages`]' concern.
/// Cheap to clone: a clone shares all that does not change.
#[derive(Clone, Debug, PartialEq)]
pub struct Journal {
    /// What this journal is of; never changes.
    pub scope: Scope,
    /// The longest window any connection ever counted in, in seconds: how long attempts are kept.
    pub window_seconds: i64,
    /// The requests that count and were answered or given up, oldest first. Those under way are `claims`.
    pub attempts: Vec<Attempt>,
    /// Requests under way, by credential.
    pub claims: OrdMap<Uid, Arc<Claim>>,
    /// What each credential holds.
    pub credentials: OrdMap<Uid, Arc<Record>>,
    /// Tokens to revoke, by credential and token id.
    pub revocations: OrdMap<(Uid, Arc<str>), Arc<Revocation>>,
    /// Audit events not yet acknowledged, by credential and number.
    pub audit: OrdMap<(Uid, u64), Arc<AuditEvent>>,
    /// What the server's 429s taught.
    pub throttle: Throttle,
    /// Set when the server refused a key with 401.
    pub unauthorized: Option<Unauthorized>,
    /// The lifetime the last answer gave, in seconds: what a newcomer is expected to need.
    pub typical_lifetime: Option<i64>,
    /// When part of the journal was lost: what was spent before is not known, and no newcomer is admitted for a
    /// window.
    pub lost_at: Option<Time>,
    /// Claims that ended since the last commit, and their places in the budget.
    ended: BTreeMap<Uid, Option<Attempt>>,
}

/// How an attempt ended that was under way.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Its Secrets are written.
    Published(Box<ActiveToken>),
    /// It failed; `counted` is false where the request provably never left.
    Failed {
        /// The failure, ready to be kept.
        failure: Failure,
        /// Whether the request may have reached the server.
        counted: bool,
    },
}

impl Journal {
    /// An empty journal of `scope`.
    #[must_use]
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            window_seconds: 0,
            attempts: Vec::new(),
            claims: OrdMap::new(),
            credentials: OrdMap::new(),
            revocations: OrdMap::new(),
            audit: OrdMap::new(),
            throttle: Throttle::default(),
            unauthorized: None,
            typical_lifetime: None,
            lost_at: None,
            ended: BTreeMap::new(),
        }
    }

    /// Begins a commit: drops what no decision needs any more, records apart.
    pub fn compact(&mut self, now: Time) {
        self.ended.clear();
        let window = TimeDelta::seconds(self.window_seconds);
        self.attempts.retain(|a| a.at + window + MARGIN > now);
        self.count_together(window);
        if self.throttle.blocked_until.is_some_and(|at| at <= now) {
            self.throttle.blocked_until = None;
            self.throttle.guessed = false;
        }
        if self.lost_at.is_some_and(|at| at + LOSS_REMEMBERED <= now) {
            self.lost_at = None;
        }
    }

    /// Keeps the last [`ATTEMPTS_KEPT`] requests as they are, and counts those before together: each as if it had
    /// been sent at the end of its bucket.
    fn count_together(&mut self, window: TimeDelta) {
        let bucket = (window.num_milliseconds() / 512).max(1);
        let singles = self.attempts.iter().filter(|a| a.count == 1).count();
        let mut surplus = singles.saturating_sub(ATTEMPTS_KEPT);
        if surplus == 0 {
            return;
        }
        let mut counted: Vec<Attempt> = Vec::with_capacity(self.attempts.len());
        for attempt in self.attempts.drain(..) {
            let keep = attempt.count == 1 && surplus == 0;
            surplus = surplus.saturating_sub(usize::from(attempt.count == 1));
            let end = (attempt.at.timestamp_millis() + bucket - 1).div_euclid(bucket) * bucket;
            let at = Time::from_timestamp_millis(end).unwrap_or(attempt.at);
            match counted.last_mut() {
                _ if keep => counted.push(attempt),
                Some(last) if last.at == at => last.count += attempt.count,
                _ => counted.push(Attempt {
                    at,
                    namespace: None,
                    ..attempt
                }),
            }
        }
        counted.sort_by_key(|a| a.at);
        self.attempts = counted;
    }

    /// Drops what no decision needs any more of the record of `uid`, which is about to be written; all of it, where
    /// nothing remains.
    pub fn compact_record(&mut self, uid: &str, now: Time) {
        let window = TimeDelta::seconds(self.window_seconds);
        let Some(record) = self.credentials.get(uid) else {
            return;
        };
        if record.heals.iter().any(|at| *at + window <= now) {
            self.edit(uid, |r| r.heals.retain(|at| *at + window > now));
        }
        let spent = self.credentials.get(uid).is_some_and(|r| r.is_spent(now));
        if spent && self.pending(uid).is_none() && self.owed_of(uid).next().is_none() {
            self.credentials.remove(uid);
        }
    }

    /// Whether it knows nothing that could ever matter again.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.attempts.is_empty()
            && self.claims.is_empty()
            && self.credentials.is_empty()
            && self.revocations.is_empty()
            && self.audit.is_empty()
            && self.throttle.blocked_until.is_none()
            && self.throttle.learnt.is_none()
            && self.unauthorized.is_none()
            && self.lost_at.is_none()
    }

    /// Every request that counts: when from, ascending, and how many. Those under way count from when they must have
    /// been answered.
    #[must_use]
    pub fn sent(&self) -> Vec<(Time, u32)> {
        let closed = self.attempts.iter().map(|a| (a.at, a.count));
        let mut sent: Vec<_> = closed
            .chain(self.claims.values().map(|c| (c.counted_from(), 1)))
            .collect();
        sent.sort_unstable();
        sent
    }

    /// Newcomers' requests, as far as they are not counted together yet: when from, and of which namespace.
    pub fn newcomers(&self) -> impl Iterator<Item = (Time, &str)> {
        let closed = self
            .attempts
            .iter()
            .filter_map(|a| Some((a.at, a.namespace.as_deref()?)));
        let open = self.claims.values().filter(|c| c.kind.is_newcomer());
        closed.chain(open.map(|c| (c.counted_from(), c.namespace.as_str())))
    }

    /// What is owed for `uid`.
    pub fn owed_of(&self, uid: &str) -> impl Iterator<Item = &Arc<Revocation>> {
        let uid = Uid::from(uid);
        let first = (uid.clone(), Arc::from(""));
        self.revocations
            .range(first..)
            .take_while(move |((of, _), _)| *of == uid)
            .map(|(_, owed)| owed)
    }

    /// Undelivered events of `uid`, in order.
    pub fn events_of(&self, uid: &str) -> impl Iterator<Item = &Arc<AuditEvent>> {
        let uid = Uid::from(uid);
        self.audit
            .range((uid.clone(), 0)..=(uid, u64::MAX))
            .map(|(_, event)| event)
    }

    /// Changes the record of `uid`, where there is one.
    pub fn edit<R>(&mut self, uid: &str, change: impl FnOnce(&mut Record) -> R) -> Option<R> {
        self.credentials
            .get_mut(uid)
            .map(|record| change(Arc::make_mut(record)))
    }

    /// Commits to one request: its claim, which is its place in the budget.
    pub fn claim(&mut self, uid: &str, claim: Claim, window: TimeDelta) {
        self.window_seconds = self.window_seconds.max(window.num_seconds());
        self.claims.insert(uid.into(), Arc::new(claim));
    }

    /// The claim of `uid` whose request is under way, or whose token waits for its Secrets.
    #[must_use]
    pub fn pending(&self, uid: &str) -> Option<&Arc<Claim>> {
        let unpublished = || self.credentials.get(uid)?.unpublished.as_ref();
        self.claims.get(uid).or_else(unpublished)
    }

    /// Until when a process other than `holder` may yet write here what it owes: frozen rather than dead, it does so when
    /// it wakes, whether its claim is open still or was closed by somebody meanwhile.
    #[must_use]
    pub fn others_may_write_until(&self, holder: &str, now: Time) -> Option<Time> {
        let unpublished = self.credentials.values().filter_map(|r| r.unpublished.as_ref());
        let mut claims = self.claims.values().chain(unpublished);
        let open = claims.any(|claim| claim.holder != holder);
        let closed = self.attempts.last().is_some_and(|last| last.at + CLOSED_LATELY > now);
        let wakes_within = if open { OPEN_FOR } else { CLOSED_FOR };
        (open || closed).then(|| now + wakes_within)
    }

    /// Notes what was minted before its Secrets are there, so that it can be revoked whatever happens. False where
    /// somebody has closed the claim.
    pub fn minted(&mut self, uid: &str, claim_id: &str, minted: &Minted, now: Time) -> bool {
        let Some((claim, counted)) = self.take_claim(uid, claim_id) else {
            return false;
        };
        if !counted {
            self.count(uid, &claim, now);
        }
        let claim = Arc::new(Claim {
            minted: Some(minted.clone()),
            page: None,
            ..Arc::unwrap_or_clone(claim)
        });
        let record = self.record_of_claim(uid, &claim);
        record.unpublished = Some(claim);
        true
    }

    /// Ends the claim `claim_id` of `uid`. False where somebody else has ended it already.
    pub fn end(&mut self, uid: &str, claim_id: &str, ending: Outcome, now: Time) -> bool {
        let Some((claim, counted)) = self.take_claim(uid, claim_id) else {
            return false;
        };
        if !counted && !matches!(ending, Outcome::Failed { counted: false, .. }) {
            self.count(uid, &claim, now);
        }
        let record = self.record_of_claim(uid, &claim);
        match ending {
            Outcome::Published(live) => {
                record.revision = live.revision;
                record.failure = None;
                record.expired = false;
                record.orphans.clear();
                // Wherever it was noted: what was asked for before this mint is heeded.
                let revoke = live.digest.revoke;
                record.revoked = (revoke != Digest::default()).then(|| {
                    Box::new(RevokedBy {
                        revoke,
                        until: None,
                        outlives: None,
                    })
                });
                let used_for = ((live.ends_at - live.issued_at).num_milliseconds() + 999).div_euclid(1000);
                let lifetime = live.full_lifetime.unwrap_or(used_for).max(1);
                let old = record.live.replace(live.for_record());
                if let Some(old) = &old {
                    record.remember(old, now);
                }
                self.typical_lifetime = Some(lifetime);
                self.throttle.count = 0;
                self.unauthorized = None;
                if let Some(old) = old.filter(|_| !is_planted(Bug::PreviousForgotten)) {
                    self.enqueue_revocation(&old.pending_revocation(uid), old.ends_at, Reason::Rotated);
                }
            }
            Outcome::Failed { failure, .. } => {
                record.failure = Some(Box::new(failure));
                if let Some(minted) = &claim.minted {
                    self.enqueue_revocation(
                        &claim.pending_revocation(uid, &minted.token_ids),
                        now,
                        Reason::SecretRefused,
                    );
                }
            }
        }
        true
    }

    /// Takes back a claim whose request never left this process: it costs neither a slot nor the window's one heal.
    pub fn withdraw(&mut self, uid: &str, claim_id: &str) {
        if self.claims.get(uid).is_some_and(|c| c.id == claim_id) {
            self.take_claim(uid, claim_id);
        }
    }

    /// Closes the claim of `uid` that nobody sees through; its request stays counted.
    pub fn give_up(&mut self, uid: &str, now: Time) -> Option<Arc<Claim>> {
        let id = self.pending(uid)?.id.clone();
        let (claim, counted) = self.take_claim(uid, &id)?;
        if !counted {
            self.count(uid, &claim, now);
        }
        self.record_of_claim(uid, &claim);
        Some(claim)
    }

    /// Takes out a claim; says also whether its request was counted already.
    fn take_claim(&mut self, uid: &str, claim_id: &str) -> Option<(Arc<Claim>, bool)> {
        if self.claims.get(uid).is_some_and(|c| c.id == claim_id) {
            self.ended.insert(uid.into(), None);
            return Some((self.claims.remove(uid)?, false));
        }
        let unpublished = self.credentials.get(uid)?.unpublished.as_ref();
        unpublished.filter(|c| c.id == claim_id)?;
        let claim = self.edit(uid, |record| record.unpublished.take())??;
        Some((claim, true))
    }

    /// A request counts from its answer on, or from when one could have come at the latest.
    fn count(&mut self, uid: &str, claim: &Claim, now: Time) {
        if claim.kind == MintReason::Heal {
            self.record_of_claim(uid, claim).heals.push(claim.at);
        }
        let attempt = Attempt {
            at: claim.counts_from.unwrap_or_else(|| claim.answered_by().min(now)),
            count: 1,
            namespace: claim.kind.is_newcomer().then(|| claim.namespace.as_str().into()),
        };
        self.ended.insert(uid.into(), Some(attempt.clone()));
        let place = self.attempts.partition_point(|a| a.at <= attempt.at);
        self.attempts.insert(place, attempt);
    }

    /// The record that the outcome of `claim` goes to. It counts on where other scopes left off.
    fn record_of_claim(&mut self, uid: &str, claim: &Claim) -> &mut Record {
        let record = self.record(uid, &claim.namespace, &claim.name);
        record.gone = false;
        record.revision = record.revision.max(claim.revision.saturating_sub(1));
        record.seq = record.seq.max(claim.seq);
        record
    }

    /// Takes in a live token that only its sealed Secrets tell of: the journal was lost, and with it
    /// the count of the window, so newcomers wait for one.
    pub fn adopt_lost(&mut self, uid: &str, (namespace, name): (&str, &str), live: ActiveToken, now: Time) {
        // Under way or recorded after all: the view that missed it was behind.
        if self.knows(uid, &live.claim) {
            return;
        }
        let record = self.record(uid, namespace, name);
        if record.live.is_none() {
            record.revision = record.revision.max(live.revision);
            record.live = Some(live.for_record());
            self.lost_at.get_or_insert(now);
        }
    }

    /// Whether the claim `id` of `uid` is under way, or its token live.
    #[must_use]
    pub fn knows(&self, uid: &str, id: &str) -> bool {
        self.pending(uid).is_some_and(|c| c.id == id) || self.live_of(uid).is_some_and(|l| l.claim == id)
    }

    /// The live token of `uid`.
    #[must_use]
    pub fn live_of(&self, uid: &str) -> Option<&ActiveToken> {
        self.credentials.get(uid)?.live.as_ref()
    }

    /// Notes which token of another credential `uid` follows, and what its Secrets hold of it. False where it holds a later
    /// one of the same credential: whoever says so is behind.
    pub fn follow(&mut self, uid: &str, (namespace, name): (&str, &str), token: ActiveToken) -> bool {
        let record = self.record(uid, namespace, name);
        let later = |held: &ActiveToken| held.source == token.source && held.issued_at > token.issued_at;
        if record.followed.as_deref().is_some_and(later) {
            return false;
        }
        (record.gone, record.expired) = (false, false);
        record.revision = record.revision.max(token.revision);
        record.source.clone_from(&token.source);
        record.followed = Some(Box::new(token.for_record()));
        true
    }

    /// `uid` holds nothing any more of what it followed. Nothing is owed for that: the tokens are another's. True where
    /// it held something.
    pub fn unfollow(&mut self, uid: &str, why: Reason) -> bool {
        let held = self.credentials.get(uid).is_some_and(|r| r.followed.is_some());
        held && self
            .edit(uid, |record| {
                record.followed = None;
                record.expired = why == Reason::Expired;
            })
            .is_some()
    }

    /// Notes tokens that a request whose answer was lost may have made.
    pub fn orphaned(&mut self, uid: &str, candidates: Vec<String>) {
        let held = self
            .credentials
            .values()
            .flat_map(|r| r.live.iter().flat_map(|l| &l.token_ids));
        let known: BTreeSet<&str> = held
            .map(String::as_str)
            .chain(self.revocations.values().map(|r| r.token_id.as_str()))
            .collect();
        let fresh: Vec<String> = candidates
            .into_iter()
            .filter(|id| !known.contains(id.as_str()))
            .take(20)
            .collect();
        self.edit(uid, |record| record.orphans = fresh);
    }

    /// How much of what a journal may hold of undelivered audit events it does, in percent.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.audit.len() * 100 / AUDIT_CAPACITY.max(4 * self.credentials.len())
    }

    /// The number of failures in a row for the same request, this one included.
    #[must_use]
    pub fn failures_in_a_row(&self, uid: &str, asked: &SpecDigest) -> u32 {
        self.credentials
            .get(uid)
            .and_then(|r| r.failure.as_ref())
            .filter(|f| f.digest.request == asked.request && f.digest.rotate == asked.rotate)
            .map_or(1, |f| f.count.saturating_add(1))
    }

    /// Appends an audit event of `uid`, numbered in order; the number and id are filled in.
    pub fn record_event(&mut self, uid: &str, mut event: AuditEvent) -> AuditEvent {
        let record = self.record(uid, &event.namespace, &event.name);
        // By the time, so that no number is used twice though the record was dropped, or the journal lost.
        let at = u64::try_from(event.at.timestamp_millis()).unwrap_or_default();
        record.seq = (record.seq + 1).max(at);
        event.seq = record.seq;
        event.id = format!("{uid}-{}", event.seq);
        if event.deliver {
            self.audit.insert((uid.into(), event.seq), Arc::new(event.clone()));
        }
        event
    }

    fn record(&mut self, uid: &str, namespace: &str, name: &str) -> &mut Record {
        let record = self.credentials.entry(uid.into()).or_insert_with(|| {
            Arc::new(Record {
                namespace: namespace.into(),
                name: name.into(),
                ..Record::default()
            })
        });
        Arc::make_mut(record)
    }
}
