//! The journal of one budget scope: the only durable truth about mints.
//!
//! A journal says which requests were sent and count against the budget, which are under way, what
//! every credential holds, what is owed (revocations, audit) and what was refused. It is committed
//! by compare-and-swap; whoever commits decides on the state it commits to.

mod debts;
mod entries;
mod outlast;
#[cfg(test)]
pub mod tests_support;

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use crate::api::RateScope;
use crate::core::Time;
use crate::core::audit::AuditEvent;
use crate::core::spec::digest;

pub use entries::{
    Attempt, Claim, EndpointRef, Failure, Kind, Live, Minted, Record, RequestFacts, Revocation, Throttle, Unauthorized,
    Written,
};

/// The layout this code reads and writes.
pub const VERSION: u32 = 1;
/// A journal that takes this many bytes as it is stored lets in no credential it has no record of: a ConfigMap holds
/// at most 1 MiB, and outcomes, renewals and undelivered audit events must always fit.
pub const SIZE_LIMIT: usize = 448 * 1024;
/// What a request counts beyond its window at most.
pub const MARGIN: TimeDelta = TimeDelta::seconds(5);
/// Undelivered audit events a scope holds at most,
pub const AUDIT_CAPACITY: usize = 2000;
/// and the bytes they may take.
pub const AUDIT_BYTES: usize = 448 * 1024;
/// How long after a loss that is remembered: longer than any window.
const LOSS_REMEMBERED: TimeDelta = TimeDelta::days(2);

/// What a budget is counted for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    /// Scheme, host and port of `ChittyConnect`.
    pub origin: String,
    /// What `of` names.
    pub kind: RateScope,
    /// The service, or an HMAC of the API key.
    pub of: String,
}

impl Scope {
    /// Name of the ConfigMap that holds this scope's journal.
    #[must_use]
    pub fn journal_name(&self) -> String {
        let kind = match self.kind {
            RateScope::Service => "service",
            RateScope::Key => "key",
        };
        let hash = digest([self.origin.as_str(), kind, self.of.as_str()]);
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

/// The durable state of one scope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Journal {
    /// Layout version, [`VERSION`].
    pub version: u32,
    /// What this journal is of; never changes.
    pub scope: Scope,
    /// The longest window any connection ever counted in, in seconds: how long attempts are kept.
    pub window_seconds: i64,
    /// Every request that counts, oldest first.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// Requests under way, by credential uid.
    #[serde(default)]
    pub claims: BTreeMap<String, Claim>,
    /// What each credential holds, by uid.
    #[serde(default)]
    pub credentials: BTreeMap<String, Record>,
    /// Tokens to revoke.
    #[serde(default)]
    pub revocations: Vec<Revocation>,
    /// What the server's 429s taught.
    #[serde(default)]
    pub throttle: Throttle,
    /// Set when the server refused a key with 401.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unauthorized: Option<Unauthorized>,
    /// The lifetime the last answer gave, in seconds: what a newcomer is expected to need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typical_lifetime: Option<i64>,
    /// Audit events not yet acknowledged, oldest first.
    #[serde(default)]
    pub audit: Vec<AuditEvent>,
    /// When the journal had to be begun anew: what was spent before is not known, and no newcomer is admitted
    /// for a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_at: Option<Time>,
    /// How many bytes it took when it was last read or written.
    #[serde(skip)]
    pub stored: usize,
}

/// How an attempt ended that was under way.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// Its Secrets are written.
    Published(Box<Live>),
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
            version: VERSION,
            scope,
            window_seconds: 0,
            attempts: Vec::new(),
            claims: BTreeMap::new(),
            credentials: BTreeMap::new(),
            revocations: Vec::new(),
            throttle: Throttle::default(),
            unauthorized: None,
            typical_lifetime: None,
            audit: Vec::new(),
            lost_at: None,
            stored: 0,
        }
    }

    /// Whether it has no room for credentials that it has no record of.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.stored >= SIZE_LIMIT
    }

    /// Reads a journal, and refuses what this code did not write.
    ///
    /// # Errors
    /// Says what is wrong with the text; the caller says how to mend it.
    pub fn parse(text: &str, scope: &Scope) -> Result<Self, String> {
        let mut journal: Self = serde_json::from_str(text).map_err(|e| format!("it cannot be read: {e}"))?;
        if journal.version != VERSION {
            return Err(format!(
                "it has version {}, and this controller reads version {VERSION}",
                journal.version
            ));
        }
        if journal.scope != *scope {
            return Err("it is the journal of another scope".to_owned());
        }
        journal.stored = text.len();
        Ok(journal)
    }

    /// Drops what no decision needs any more.
    pub fn compact(&mut self, now: Time) {
        let window = TimeDelta::seconds(self.window_seconds);
        self.attempts.retain(|a| a.at + window + MARGIN > now);
        if self.throttle.blocked_until.is_some_and(|at| at <= now) {
            self.throttle.blocked_until = None;
        }
        if self.lost_at.is_some_and(|at| at + LOSS_REMEMBERED <= now) {
            self.lost_at = None;
        }
        for record in self.credentials.values_mut() {
            record.heals.retain(|at| *at + window > now);
        }
        let owing: BTreeSet<&str> = self.revocations.iter().map(|r| r.uid.as_str()).collect();
        let claims = &self.claims;
        self.credentials
            .retain(|uid, r| !r.is_spent(now) || owing.contains(uid.as_str()) || claims.contains_key(uid));
    }

    /// Commits to one request: its claim, and its place in the budget.
    pub fn claim(&mut self, uid: &str, claim: Claim, window: TimeDelta) {
        self.window_seconds = self.window_seconds.max(window.num_seconds());
        let record = self.record(uid, &claim.namespace, &claim.name);
        record.gone = false;
        if claim.kind == Kind::Heal {
            record.heals.push(claim.at);
        }
        self.attempts.push(Attempt {
            claim: claim.id.clone(),
            uid: uid.to_owned(),
            namespace: claim.namespace.clone(),
            kind: claim.kind,
            at: claim.answered_by(),
        });
        self.claims.insert(uid.to_owned(), claim);
    }

    /// Notes what was minted before its Secrets are there, so that it can be revoked whatever happens.
    pub fn minted(&mut self, uid: &str, claim_id: &str, minted: Minted) -> bool {
        match self.claims.get_mut(uid).filter(|c| c.id == claim_id) {
            Some(claim) => {
                claim.minted = Some(minted);
                true
            }
            None => false,
        }
    }

    /// Ends the claim `claim_id` of `uid`. False where somebody else has ended it already.
    pub fn end(&mut self, uid: &str, claim_id: &str, ending: Ending, now: Time) -> bool {
        if self.claims.get(uid).is_none_or(|c| c.id != claim_id) {
            return false;
        }
        let Some(claim) = self.claims.remove(uid) else {
            return false;
        };
        self.count_from(&claim.id, now);
        match ending {
            Ending::Published(live) => {
                let used_for = ((live.ends_at - live.issued_at).num_milliseconds() + 999).div_euclid(1000);
                self.typical_lifetime = Some(live.full_lifetime.unwrap_or(used_for).max(1));
                self.throttle.count = 0;
                self.unauthorized = None;
                let record = self.record(uid, &claim.namespace, &claim.name);
                record.revision = live.revision;
                record.failure = None;
                record.expired = false;
                record.orphans.clear();
                if let Some(old) = record.live.replace(*live) {
                    self.owe(&old.debt(uid), old.ends_at);
                }
            }
            Ending::Failed { failure, counted } => {
                if !counted {
                    self.refund(uid, &claim);
                }
                if let Some(minted) = &claim.minted {
                    self.owe(&claim.debt(uid, &minted.token_ids), now);
                }
                self.record(uid, &claim.namespace, &claim.name).failure = Some(failure);
            }
        }
        true
    }

    /// Takes back a claim whose request never left this process.
    pub fn withdraw(&mut self, uid: &str, claim_id: &str) {
        if self.claims.get(uid).is_some_and(|c| c.id == claim_id)
            && let Some(claim) = self.claims.remove(uid)
        {
            self.refund(uid, &claim);
        }
    }

    /// A request that never left costs neither a slot nor the window's one heal.
    fn refund(&mut self, uid: &str, claim: &Claim) {
        self.attempts.retain(|a| a.claim != claim.id);
        if let Some(record) = self.credentials.get_mut(uid) {
            record.heals.retain(|at| *at != claim.at);
        }
    }

    /// Takes in a live token that only its sealed Secrets tell of: the journal was lost, and with it
    /// the count of the window, so newcomers wait for one.
    pub fn adopt_lost(&mut self, uid: &str, (namespace, name): (&str, &str), live: Live, now: Time) {
        // Under way or recorded after all: the view that missed it was behind.
        if self.knows(&live.claim) {
            return;
        }
        let record = self.record(uid, namespace, name);
        if record.live.is_none() {
            record.revision = record.revision.max(live.revision);
            record.live = Some(live);
            self.lost_at.get_or_insert(now);
        }
    }

    /// Whether the claim `id` is under way, or its token live.
    #[must_use]
    pub fn knows(&self, id: &str) -> bool {
        let live = self.credentials.values().filter_map(|r| r.live.as_ref());
        self.claims.values().any(|c| c.id == id) || live.into_iter().any(|l| l.claim == id)
    }

    /// Notes tokens that a request whose answer was lost may have made.
    pub fn orphaned(&mut self, uid: &str, candidates: Vec<String>) {
        let known: BTreeSet<&String> = self
            .credentials
            .values()
            .flat_map(|r| r.live.iter().flat_map(|l| &l.token_ids))
            .chain(self.revocations.iter().map(|r| &r.token_id))
            .collect();
        let fresh: Vec<String> = candidates
            .into_iter()
            .filter(|id| !known.contains(id))
            .take(20)
            .collect();
        if let Some(record) = self.credentials.get_mut(uid) {
            record.orphans = fresh;
        }
    }

    /// How much of what a journal may hold of undelivered audit events it does, in percent.
    #[must_use]
    pub fn backlog(&self) -> usize {
        let bytes: usize = self.audit.iter().map(AuditEvent::weight).sum();
        (self.audit.len() * 100 / AUDIT_CAPACITY).max(bytes * 100 / AUDIT_BYTES)
    }

    /// Goes on counting revisions and audit events where another scope's journal left off.
    pub fn raise(&mut self, uid: &str, (revision, seq): (u64, u64)) {
        if let Some(record) = self.credentials.get_mut(uid) {
            record.revision = record.revision.max(revision);
            record.seq = record.seq.max(seq);
        }
    }

    /// The number of failures in a row for the same request, this one included.
    #[must_use]
    pub fn failures_in_a_row(&self, uid: &str, request_hash: &str, rotate: &str) -> u32 {
        self.credentials
            .get(uid)
            .and_then(|r| r.failure.as_ref())
            .filter(|f| f.request_hash == request_hash && f.rotate == rotate)
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
            self.audit.push(event.clone());
        }
        event
    }

    fn record(&mut self, uid: &str, namespace: &str, name: &str) -> &mut Record {
        self.credentials.entry(uid.to_owned()).or_insert_with(|| Record {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Record::default()
        })
    }

    /// An answered request counts from its answer on.
    fn count_from(&mut self, claim_id: &str, now: Time) {
        if let Some(attempt) = self.attempts.iter_mut().find(|a| a.claim == claim_id) {
            attempt.at = attempt.at.min(now);
        }
    }
}
