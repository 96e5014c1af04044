//! What a journal is made of: plain facts, as they are stored.

use std::sync::{Arc, Weak};

use chrono::TimeDelta;
use chrono::serde::ts_milliseconds;
use litemap::LiteMap;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize};

use super::bounds;
use crate::api::{BrokerApi, KeyRef, Reason};
use crate::core::Time;
use crate::core::audit::Subject;
use crate::core::ids::{Digest, PageId, SpecDigest};
use crate::core::layout::OwnMetadata;
use crate::core::schedule::CLAIM_FRESH;
use crate::core::spec::digest;
use crate::core::text::Text;

/// Why a mint is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MintReason {
    /// The first token of a credential, or one after its last has ended.
    First,
    /// A changed spec.
    Change,
    /// The rotate annotation.
    Rotate,
    /// A managed Secret was changed or removed.
    Heal,
    /// The live token nears its end.
    Renewal,
    /// It does so, and no renewal was kept for it: nobody read it by a volume for a while, and others took the room.
    Resume,
}

impl MintReason {
    /// Whether this mint competes for what renewals leave over.
    #[must_use]
    pub const fn is_newcomer(self) -> bool {
        !matches!(self, Self::Renewal)
    }
}

/// Requests that count against the budget and that nobody waits for any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it counts from: the answer, or the latest time one could have come.
    #[serde(
        rename = "t",
        serialize_with = "ts_milliseconds::serialize",
        deserialize_with = "bounds::moment"
    )]
    pub at: Time,
    /// How many, where many are counted together.
    #[serde(rename = "c", default = "one", skip_serializing_if = "is_one")]
    pub count: u32,
    /// Namespace of a newcomer: shares are counted by namespace.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
}

const fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
const fn is_one(count: &u32) -> bool {
    *count == 1
}

/// A request that is, or may be, under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Random; also the default `run_id` and the idempotency key.
    pub id: String,
    /// Namespace of the credential.
    pub namespace: String,
    /// Name of the credential.
    pub name: String,
    /// Revision the token will have.
    pub revision: u64,
    /// Number of the credential's last audit event when it was claimed, in whatever scope.
    #[serde(default)]
    pub seq: u64,
    /// The page that its outcome goes to; none where its scope keeps all in the head. A leader that was frozen and
    /// its successor contend for that one object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<PageId>,
    /// When it was committed.
    #[serde(serialize_with = "ts_milliseconds::serialize", deserialize_with = "bounds::moment")]
    pub at: Time,
    /// Identity of the process that holds it.
    pub holder: String,
    /// How long the holder waits for the answer, in seconds.
    #[serde(deserialize_with = "bounds::span")]
    pub timeout_seconds: i64,
    /// Why.
    pub kind: MintReason,
    /// What is asked for.
    pub request: RequestFacts,
    /// Where it is asked for.
    #[serde(deserialize_with = "shared_endpoint")]
    pub endpoint: Arc<EndpointRef>,
    /// What was asked for.
    pub digest: SpecDigest,
    /// Names of the Secrets it will be written to.
    pub secrets: Vec<String>,
    /// Runway asked for, in milliseconds.
    #[serde(
        default,
        deserialize_with = "bounds::maybe_span",
        skip_serializing_if = "Option::is_none"
    )]
    pub renew_before_ms: Option<i64>,
    /// When it counts from, where that was put off by a standstill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts_from: Option<Time>,
    /// Longest use of the token asked for, in milliseconds: until it is there, its renewals are planned by this.
    #[serde(
        default,
        deserialize_with = "bounds::maybe_span",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_lifetime_ms: Option<i64>,
    /// Time from one renewal to the next that it was admitted with, in milliseconds: it keeps that.
    #[serde(
        default,
        deserialize_with = "bounds::maybe_span",
        skip_serializing_if = "Option::is_none"
    )]
    pub period_ms: Option<i64>,
    /// What it brings is not renewed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub once: bool,
    /// Whose run waits for it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Set once the answer is in and only its Secrets remain to be written: what was minted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minted: Option<Minted>,
}

impl Claim {
    /// What an audit event about it is about, of the credential `uid`.
    #[must_use]
    pub fn subject<'a>(&'a self, uid: &'a str) -> Subject<'a> {
        Subject {
            uid,
            namespace: &self.namespace,
            name: &self.name,
            request: &self.request,
            revision: self.revision,
        }
    }

    /// Asks for a token that is renewed as often as `live`, which it replaces, and no more often.
    pub fn keep_rate_of(&mut self, live: &ActiveToken) {
        self.renew_before_ms = live.renew_before_ms;
        // Ends are told in whole seconds.
        let seconds = ((live.ends_at - live.issued_at).num_milliseconds() + 999).div_euclid(1000);
        self.max_lifetime_ms = live.full_lifetime.map(|_| seconds * 1000);
    }

    pub(super) fn pending_revocation<'a>(&'a self, uid: &'a str, token_ids: &'a [String]) -> PendingRevocation<'a> {
        PendingRevocation {
            uid,
            token_ids,
            request: &self.request,
            endpoint: &self.endpoint,
            revision: self.revision,
        }
    }

    /// The record of a credential of which nothing else is known.
    #[must_use]
    pub fn new_record(&self) -> Record {
        Record {
            namespace: Text::from(&self.namespace),
            name: Text::from(&self.name),
            ..Record::default()
        }
    }

    /// The time from which nobody can be waiting for this claim's answer any more.
    #[must_use]
    pub fn answered_by(&self) -> Time {
        self.at + CLAIM_FRESH + TimeDelta::seconds(self.timeout_seconds)
    }

    /// When its request counts from while it is open: from when it must have been answered, unless a pause put that off.
    #[must_use]
    pub fn counted_from(&self) -> Time {
        self.counts_from.unwrap_or_else(|| self.answered_by())
    }
}

/// What came back, without the values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Minted {
    /// When the answer came.
    pub issued_at: Time,
    /// When the tokens end for us.
    pub ends_at: Time,
    /// Ids under which the tokens can be revoked.
    #[serde(default)]
    pub token_ids: Vec<String>,
}

/// What was asked for, as audit events tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestFacts {
    /// Name of the connection.
    pub connection: Text,
    /// The service.
    pub service: Text,
    /// The purpose.
    pub purpose: Text,
    /// The repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// The `run_id` as it was sent.
    pub run_id: String,
    /// The credential type, with the Provision API.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
}

/// Of the few endpoints that there are, each is in memory once.
fn shared_endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<EndpointRef>, D::Error> {
    EndpointRef::deserialize(deserializer).map(EndpointRef::shared)
}

/// Nearly always there is one: no room is kept for more.
fn tight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LiteMap<String, Written>, D::Error> {
    let mut all = LiteMap::deserialize(deserializer)?.into_tuple_vec();
    all.shrink_to_fit();
    Ok(all.into_iter().collect())
}

/// How to reach the `ChittyConnect` that made a token, once its connection may be gone: references,
/// no keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRef {
    /// Its base URL.
    pub url: String,
    /// The API it was asked by.
    pub api: BrokerApi,
    /// Where the API key is.
    pub key: KeyRef,
    /// Where the certificates to trust are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<KeyRef>,
}

/// What the journal knows of one credential.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub name: Text,
    /// How many tokens were published: the next has this plus one.
    pub revision: u64,
    /// Number of the last audit event: the milliseconds of its time, or one more than the last.
    pub seq: u64,
    /// A claim whose token was made and waits for its Secrets: it takes up none of the places for open claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpublished: Option<Arc<Claim>>,
    /// The token in its Secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<ActiveToken>,
    /// The last try, where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Box<Failure>>,
    /// When healing cost a mint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heals: Vec<Time>,
    /// Ids of tokens that nobody holds, made by requests whose answers were lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<String>,
    /// The credential is deleted; this remains until its tokens are revoked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// The claim of the token whose Secrets somebody changed, once that is recorded: nobody fills the
    /// audit by doing so again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tampered: Option<String>,
    /// The last token ended before it could be renewed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
    /// Another credential's token, which this one follows, as it is in this one's Secrets. It is that one's to renew and
    /// to revoke: no budget counts it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed: Option<Box<ActiveToken>>,
    /// The credential that was followed last, as namespace/name: whoever was given its tokens may know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Text>,
    /// The last token that was let go because nobody needed it any longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub let_go: Option<Box<LetGo>>,
    /// The last revocation that somebody asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Box<RevokedBy>>,
    /// Tokens that were replaced and have not ended: whoever has read one still has it.
    #[serde(default, rename = "o", skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<Span>,
}

/// So many that were replaced are remembered: no token has more successors in its life.
const MOST_OLDER: usize = 3;

/// A token by the time in which it is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, i64)", into = "(i64, i64)")]
pub struct Span {
    /// When it was issued.
    pub issued_at: Time,
    /// When it ends.
    pub ends_at: Time,
}

impl From<(i64, i64)> for Span {
    fn from((issued_at, ends_at): (i64, i64)) -> Self {
        let at = |ms| Time::from_timestamp_millis(ms).unwrap_or_default();
        Self {
            issued_at: at(issued_at),
            ends_at: at(ends_at),
        }
    }
}

impl From<Span> for (i64, i64) {
    fn from(span: Span) -> Self {
        (span.issued_at.timestamp_millis(), span.ends_at.timestamp_millis())
    }
}

/// A revocation that an annotation asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokedBy {
    /// Its value.
    pub revoke: Digest,
    /// What the rotate annotation was then: nothing is minted while it is that. None once something was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Digest>,
    /// When tokens end that could not be revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlives: Option<Time>,
}

/// A token that was let go with life left in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LetGo {
    /// When.
    #[serde(serialize_with = "ts_milliseconds::serialize", deserialize_with = "bounds::moment")]
    pub at: Time,
    /// When it was issued.
    #[serde(serialize_with = "ts_milliseconds::serialize", deserialize_with = "bounds::moment")]
    pub issued_at: Time,
    /// When it ends for who has read it.
    #[serde(serialize_with = "ts_milliseconds::serialize", deserialize_with = "bounds::moment")]
    pub ends_at: Time,
}

/// How long a failure is remembered that only delays, once its delay is over: longer than any delay, so that
/// delays go on growing while it fails.
const FAILURE_REMEMBERED: TimeDelta = TimeDelta::minutes(15);

static ENDPOINTS: Mutex<Vec<Weak<EndpointRef>>> = Mutex::new(Vec::new());

impl EndpointRef {
    /// This, or what is equal and known already.
    #[must_use]
    pub fn shared(self) -> Arc<Self> {
        let mut known = ENDPOINTS.lock();
        known.retain(|at| at.strong_count() > 0);
        if let Some(same) = known.iter().filter_map(Weak::upgrade).find(|at| **at == self) {
            return same;
        }
        let shared = Arc::new(self);
        known.push(Arc::downgrade(&shared));
        shared
    }
}

impl Record {
    /// Remembers the token that was replaced at `now`.
    pub(super) fn remember(&mut self, old: &ActiveToken, now: Time) {
        self.older.retain(|token| token.ends_at > now);
        if self.older.len() >= MOST_OLDER {
            self.older.remove(0);
        }
        self.older.push(old.span());
    }

    /// Whether all was done that a revoke annotation of this value asks for.
    #[must_use]
    pub fn heeds(&self, revoke: Digest) -> bool {
        let noted = self.revoked.as_deref().is_some_and(|by| by.revoke == revoke);
        noted || self.live.as_ref().is_some_and(|live| live.digest.revoke == revoke)
    }

    /// The tokens that somebody may still have who has read one.
    pub fn tokens(&self) -> impl Iterator<Item = Span> {
        let live = self.live.as_ref().map(ActiveToken::span);
        let let_go = self.let_go.as_deref().map(|gone| Span {
            issued_at: gone.issued_at,
            ends_at: gone.ends_at,
        });
        self.older.iter().copied().chain(let_go).chain(live)
    }

    /// Nothing in it decides anything any more: it never held a token, and the delay after its failure is long over.
    /// One that did is kept as long as its credential: revisions are counted on.
    #[must_use]
    pub fn is_spent(&self, now: Time) -> bool {
        let over = self
            .failure
            .as_ref()
            .is_none_or(|f| f.retry_at.is_some_and(|at| at + FAILURE_REMEMBERED <= now));
        over && self.revision == 0
            && self.live.is_none()
            && self.unpublished.is_none()
            && self.heals.is_empty()
            && self.orphans.is_empty()
            && !self.gone
            && !self.expired
            && self.followed.is_none()
            && self.let_go.is_none()
            && self.revoked.is_none()
    }
}

/// A published token, without its values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveToken {
    /// The claim that made it.
    pub claim: String,
    /// Its revision.
    pub revision: u64,
    /// What was asked for.
    pub request: RequestFacts,
    /// Where it was asked for.
    #[serde(deserialize_with = "shared_endpoint")]
    pub endpoint: Arc<EndpointRef>,
    /// What was asked for.
    pub digest: SpecDigest,
    /// When it was issued.
    pub issued_at: Time,
    /// When it ends for us.
    pub ends_at: Time,
    /// How long `ChittyConnect` made it live, in seconds, where `maxLifetime` ends it earlier.
    #[serde(
        default,
        deserialize_with = "bounds::maybe_span",
        skip_serializing_if = "Option::is_none"
    )]
    pub full_lifetime: Option<i64>,
    /// Runway, in milliseconds, as the spec asks for it.
    #[serde(
        default,
        deserialize_with = "bounds::maybe_span",
        skip_serializing_if = "Option::is_none"
    )]
    pub renew_before_ms: Option<i64>,
    /// Time from one renewal to the next that it was admitted with, in milliseconds.
    #[serde(
        default,
        deserialize_with = "bounds::maybe_span",
        skip_serializing_if = "Option::is_none"
    )]
    pub period_ms: Option<i64>,
    /// Ids under which it can be revoked.
    #[serde(default)]
    pub token_ids: Vec<String>,
    /// Names of its outputs.
    #[serde(default)]
    pub outputs: Box<[Text]>,
    /// The credential that it was made for, as namespace/name, where this one follows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Text>,
    /// What was written, by Secret name.
    #[serde(deserialize_with = "tight")]
    pub secrets: LiteMap<String, Written>,
}

impl ActiveToken {
    fn span(&self) -> Span {
        Span {
            issued_at: self.issued_at,
            ends_at: self.ends_at,
        }
    }

    pub(super) fn pending_revocation<'a>(&'a self, uid: &'a str) -> PendingRevocation<'a> {
        PendingRevocation {
            uid,
            token_ids: &self.token_ids,
            request: &self.request,
            endpoint: &self.endpoint,
            revision: self.revision,
        }
    }

    /// The runway asked for.
    #[must_use]
    pub fn renew_before(&self) -> Option<TimeDelta> {
        self.renew_before_ms.map(TimeDelta::milliseconds)
    }

    /// As a record holds it: without what its Secrets tell themselves.
    #[must_use]
    pub(super) fn for_record(mut self) -> Self {
        for (_, written) in self.secrets.iter_mut() {
            written.keys = Vec::new();
        }
        self
    }
}

/// What was written to one Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// Its data keys: the seal on the Secret tells them, the journal does not, for their names may be long.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Digest of claim, keys and values.
    pub fingerprint: String,
    /// Its resource version then: while that is the one there is, nothing of it has changed and nobody reads it.
    #[serde(default, rename = "v", skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Digest of what it was given besides its values: see [`metadata_digest`].
    #[serde(default, rename = "m", skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

impl Written {
    /// Notes the version that the Secret has as it was written.
    pub fn stamp(&mut self, version: String, metadata: String) {
        self.version = Some(version);
        self.metadata = Some(metadata);
    }

    /// Whether a Secret of this version is as it was written, with the metadata that is wanted now, if any is.
    #[must_use]
    pub fn stands(&self, version: &str, metadata: Option<&str>) -> bool {
        self.version.as_deref() == Some(version) && (metadata.is_none() || metadata == self.metadata.as_deref())
    }
}

/// Digest of what a Secret is given besides its values and can change without a mint: labels, annotations, and the key
/// that its seal is made with.
#[must_use]
pub fn metadata_digest(seal_key: &str, own: &OwnMetadata) -> String {
    let count = own.labels.len().to_string();
    let pairs = own.labels.iter().chain(&own.annotations);
    let pairs = pairs.flat_map(|(key, value)| [key.as_str(), value.as_str()]);
    digest([seal_key, &count].into_iter().chain(pairs))[..16].to_owned()
}

/// A failed try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// A known phrase; never the server's text.
    pub message: String,
    /// When.
    pub at: Time,
    /// When it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<Time>,
    /// How many in a row.
    pub count: u32,
    /// When to try again; never by itself where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// What was asked for.
    pub digest: SpecDigest,
}

/// A token to revoke. It says all that is needed once credential and connection are gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// The token's id.
    pub token_id: String,
    /// Not before this.
    pub due: Time,
    /// The credential it was made for.
    pub uid: String,
    /// What was asked for.
    pub request: RequestFacts,
    /// Where it was asked for.
    #[serde(deserialize_with = "shared_endpoint")]
    pub endpoint: Arc<EndpointRef>,
    /// Revision of the token.
    pub revision: u64,
    /// Why it is to be revoked: `Rotated`, `Expired`, `Deleted`, `NotPermitted`, `Revoked`, or `SecretRefused` where it was never in a
    /// Secret.
    pub why: Reason,
    /// That it cannot be done has been recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told: bool,
}

/// Whose tokens are owed, and how to revoke them.
pub(super) struct PendingRevocation<'a> {
    pub(super) uid: &'a str,
    pub(super) token_ids: &'a [String],
    pub(super) request: &'a RequestFacts,
    pub(super) endpoint: &'a Arc<EndpointRef>,
    pub(super) revision: u64,
}

/// What the server's 429s taught.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttle {
    /// Nothing is asked before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<Time>,
    /// The server named no time: so long is waited without having been asked to, and not past half of a runway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guessed: bool,
    /// Waits in a row that ended with a 429.
    #[serde(default)]
    pub count: u32,
    /// A limit smaller than the configured one, and when it was learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learnt: Option<(u32, Time)>,
}

/// A key the server refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unauthorized {
    /// Digest of the key under the seal key: another key is tried at once.
    pub key: String,
    /// When one request may test the same key again.
    pub probe_at: Time,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::journal::Journal;
    use crate::core::journal::tests_support::{claim, live, scope};
    use crate::core::testing::t;

    #[test]
    fn what_is_followed_is_neither_held_nor_owed_and_is_remembered_as_long_as_whoever_follows() {
        let of = |claim: &str, at: i64| ActiveToken {
            source: Some("n/source".into()),
            token_ids: vec!["id".into()],
            ..live(claim, t(at), t(at + 3600))
        };
        let mut journal = Journal::new(scope());
        assert!(journal.follow("f", ("n", "f"), of("claim-1", 10)));
        assert!(
            !journal.follow("f", ("n", "f"), of("claim-0", 0)),
            "whoever says so is behind"
        );
        journal.compact_record("f", t(100_000));
        let held = journal.credentials["f"].followed.as_ref().map(|l| l.claim.as_str());
        assert_eq!((held, journal.live_of("f")), (Some("claim-1"), None));
        let another = ActiveToken {
            source: Some("n/another".into()),
            ..of("claim-a", 0)
        };
        assert!(
            journal.follow("f", ("n", "f"), another),
            "of another credential any will do"
        );
        assert!(journal.unfollow("f", Reason::Expired) && !journal.unfollow("f", Reason::Expired));
        assert_eq!(journal.credentials["f"].source.as_deref(), Some("n/another"));
        assert!(journal.follow("f", ("n", "f"), of("claim-1", 10)));
        assert!(journal.forget("f", t(20)), "nothing remains");
        assert!(journal.revocations.is_empty() && journal.is_blank());
    }

    #[test]
    fn a_claim_is_its_holders_until_it_is_closed_though_its_token_is_known_by_then() {
        let mut journal = Journal::new(scope());
        let claim = claim("u", "n", MintReason::First, t(0), 1);
        let id = claim.id.clone();
        journal.claim("u", claim, TimeDelta::hours(1));
        let until = |journal: &Journal, now| {
            let of = |holder| {
                journal
                    .others_may_write_until(holder, t(now))
                    .map(|at| (at - t(now)).num_minutes())
            };
            (of("me"), of("successor"))
        };
        assert_eq!(until(&journal, 0), (None, Some(60)));
        let minted = Minted {
            issued_at: t(1),
            ends_at: t(3600),
            token_ids: vec!["id".into()],
        };
        assert!(journal.minted("u", &id, &minted, t(1)));
        assert_eq!(until(&journal, 400), (None, Some(60)));
        assert!(journal.give_up("u", t(2)).is_some());
        assert_eq!(
            until(&journal, 2),
            (Some(10), Some(10)),
            "who had it may not know that it is closed"
        );
        assert_eq!(until(&journal, 400), (None, None));
    }

    #[test]
    fn a_secret_stands_in_the_version_that_was_written_with_the_metadata_that_is_wanted() {
        let pair = |value: &str| [("example.com/team".to_owned(), value.to_owned())].into();
        let metadata = |key: &str, value: &str| {
            let labels = pair(value);
            metadata_digest(
                key,
                &OwnMetadata {
                    labels,
                    ..OwnMetadata::default()
                },
            )
        };
        let annotations = pair("a");
        let annotated = metadata_digest(
            "key",
            &OwnMetadata {
                annotations,
                ..OwnMetadata::default()
            },
        );
        assert_ne!(annotated, metadata("key", "a"), "an annotation is no label");
        assert_ne!(annotated, metadata_digest("key", &OwnMetadata::default()));
        let mut written = Written::default();
        assert!(!written.stands("7", None), "nothing is known of its version");
        written.stamp("7".to_owned(), metadata("key", "a"));
        assert!(written.stands("7", Some(&metadata("key", "a"))) && written.stands("7", None));
        assert!(
            !written.stands("8", Some(&metadata("key", "a"))),
            "somebody wrote it since"
        );
        assert!(
            !written.stands("7", Some(&metadata("key", "b"))),
            "another label is wanted"
        );
        assert!(
            !written.stands("7", Some(&metadata("new", "a"))),
            "its seal is to be made anew"
        );
    }
}
