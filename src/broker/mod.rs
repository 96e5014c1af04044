//! The client of `ChittyConnect`, the broker that mints short-lived tokens.
//!
//! A mint is like a payment: it is sent at most once, and whatever happens, the caller learns whether
//! it provably never left, was answered, or may have been made without anybody holding the token. This
//! module decides nothing else: no retries, no budget, no clock. Nothing the server says reaches a
//! message, a log or a `Debug`; values travel in types that redact and wipe themselves.

mod body;
mod classify;
mod deploy;
mod provision;
mod proxy;
pub(crate) mod wire;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use chrono::TimeDelta;
use http::StatusCode;
use secrecy::ExposeSecret;
use serde::Serialize;

use crate::api::Reason;
use crate::core::Time;
use crate::core::render::Outputs;
use classify::{Call, ErrorBody};
pub(crate) use classify::{retry_after, server_time};
pub use proxy::Proxy;
pub use wire::{BuildError, Endpoint, Sent};
use wire::{ConnectionReuse, Reply, Wire};

/// The API to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Api {
    /// `POST /credentials/deploy`: tokens for a purpose. They cannot be revoked, only expire.
    #[default]
    Deploy,
    /// `POST /api/credentials/provision`: one credential of a type. Some can be revoked.
    Provision,
}

/// What to mint.
#[derive(Clone, Debug, PartialEq)]
pub struct MintRequest {
    /// The service.
    pub service: String,
    /// The purpose.
    pub purpose: String,
    /// The repository; left out where unset.
    pub repo: Option<String>,
    /// What an audit row is found by.
    pub run_id: String,
    /// Sent as `Idempotency-Key`: ignored today, and useful the day it is honoured.
    pub idempotency_key: String,
    /// What [`Api::Provision`] needs besides; ignored by [`Api::Deploy`].
    pub provision: Option<Provision>,
}

/// What the provision API needs besides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provision {
    /// The credential type.
    pub type_: String,
    /// More context; it cannot replace service, purpose, repo or `run_id`.
    pub context: BTreeMap<String, serde_json::Value>,
}

/// What was minted.
#[derive(Debug)]
pub struct Answer {
    /// The tokens and what belongs to them; at least one.
    pub outputs: Outputs,
    /// When they end, as the server says. Always there with [`Api::Deploy`].
    pub expires_at: Option<Time>,
    /// How long that is by the server's own clock, where it told; otherwise by the caller's.
    pub lifetime: Option<TimeDelta>,
    /// Ids they can be revoked by.
    pub token_ids: Vec<String>,
}

/// Why there is nothing, written for a person and free of anything the server wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// What happened and what it means.
    pub message: String,
    /// Whether the request may have had an effect.
    pub sent: Sent,
    /// How long the server asks to be left alone, from its answer on.
    pub retry_after: Option<TimeDelta>,
    /// The server says that its own limit for this service is reached: an upstream's 429 does not.
    pub own_limit: bool,
    /// Tokens the answer named though nothing can be published: to be revoked.
    pub token_ids: Vec<String>,
}

impl Refusal {
    /// A refusal before anything was sent.
    #[must_use]
    pub fn from_problem(problem: &crate::core::Problem) -> Self {
        Self::new(problem.reason, problem.message.clone(), Sent::No)
    }

    fn new(reason: Reason, message: impl Into<String>, sent: Sent) -> Self {
        Self {
            reason,
            message: message.into(),
            sent,
            retry_after: None,
            own_limit: false,
            token_ids: Vec::new(),
        }
    }
}

/// How a revocation ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// The token was valid until now.
    Now,
    /// There was no such token any more.
    Already,
}

/// What a request that mints nothing says about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The key is accepted.
    Accepted,
    /// The key is refused.
    Refused,
    /// This API can only be asked by minting.
    Unsupported,
}

/// A client of one `ChittyConnect` with one key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    wire: Wire,
    api: Api,
}

impl Broker {
    /// A client of `endpoint`. Nothing is sent yet.
    ///
    /// # Errors
    /// Where URL, key or certificates cannot be used; it says what to change.
    pub fn new(endpoint: &Endpoint, api: Api) -> Result<Self, BuildError> {
        let wire = Wire::new(endpoint, ConnectionReuse::OneRequestEach)?;
        Ok(Self { wire, api })
    }

    /// The API it speaks.
    #[must_use]
    pub const fn api(&self) -> Api {
        self.api
    }

    /// Mints, once. `now` stands in for the server's clock where it does not tell.
    ///
    /// # Errors
    /// Why there is no token, and whether one may have been made.
    pub async fn mint(&self, request: &MintRequest, now: Time) -> Result<Answer, Refusal> {
        match self.api {
            Api::Deploy => deploy::mint(self, request, now).await,
            Api::Provision => provision::mint(self, request, now).await,
        }
    }

    /// Revokes a token. A token that is gone already is fine.
    ///
    /// # Errors
    /// Why it may still be valid. With [`Api::Deploy`] always: such tokens can only expire.
    pub async fn revoke(&self, token_id: &str, now: Time) -> Result<Revoked, Refusal> {
        match self.api {
            Api::Deploy => Err(Refusal::new(
                Reason::InvalidSpec,
                "Tokens of the Deploy API cannot be revoked; they can only expire",
                Sent::No,
            )),
            Api::Provision => provision::revoke(self, token_id, now).await,
        }
    }

    /// Asks whether the key is accepted, without minting.
    ///
    /// # Errors
    /// Where the answer says nothing about the key.
    pub async fn probe(&self, now: Time) -> Result<Probe, Refusal> {
        match self.api {
            Api::Deploy => Ok(Probe::Unsupported),
            Api::Provision => provision::probe(self, now).await,
        }
    }

    /// Whether a connection can be made, and so a request could be sent. What is answered says nothing more.
    pub async fn reach(&self) -> bool {
        let call = Call::Health;
        let request = self.wire.request(call.method(), call.path(), &[]);
        let lost = self.wire.exchange(request).await.err();
        lost.is_none_or(|lost| lost.sent() != Sent::No)
    }

    /// Ids of tokens that `request` may have made at `since` (by the server's clock) or later, newest
    /// first: where an answer was lost, one of them may be the token nobody holds.
    ///
    /// # Errors
    /// Where the audit log cannot be read. With [`Api::Deploy`] there is none, and no candidate.
    pub async fn candidates(&self, request: &MintRequest, since: Time, now: Time) -> Result<Vec<String>, Refusal> {
        match self.api {
            Api::Deploy => Ok(Vec::new()),
            Api::Provision => provision::candidates(self, request, since, now).await,
        }
    }

    async fn call<B: Serialize + Sync>(
        &self,
        call: Call,
        query: &[(&str, &str)],
        body: Option<&B>,
        idempotency_key: Option<&str>,
    ) -> Result<Reply, Refusal> {
        let mut request = self.wire.request(call.method(), call.path(), query);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let reply = self.wire.exchange(request).await;
        reply.map_err(|lost| classify::lost(lost, self.wire.timeout, call))
    }
}

/// The members of an answer that reports success; otherwise what the answer means.
fn accepted(reply: &Reply, call: Call, now: Time) -> Result<body::Members, Refusal> {
    let body = reply.body.as_deref().map(Vec::as_slice);
    let refused = |said: &ErrorBody| classify::classify(reply.status, &reply.headers, said, call, now);
    if !reply.status.is_success() {
        return Err(refused(&ErrorBody::in_body(body)));
    }
    let flawed = |flaw| classify::flawed(flaw, reply.status, call);
    let members = body::Members::parse(body.ok_or_else(|| flawed(body::InvalidBody::TooLarge))?).map_err(flawed)?;
    if members.says_failure() {
        let said = ErrorBody::in_members(&members);
        // A denial stays one whatever status it comes with.
        return Err(if said.says(classify::Phrase::Denied) {
            classify::classify(StatusCode::FORBIDDEN, &reply.headers, &said, call, now)
        } else {
            flawed(body::InvalidBody::SaysFailure)
        });
    }
    Ok(members)
}

/// What an answer to [`Broker::mint`] comes to, for those who make answers up.
///
/// # Errors
/// Why it brings no token.
#[cfg(any(test, fuzzing))]
pub fn read(
    api: Api,
    status: StatusCode,
    headers: http::HeaderMap,
    body: Vec<u8>,
    now: Time,
) -> Result<Answer, Refusal> {
    let body = Some(zeroize::Zeroizing::new(body));
    let reply = Reply { status, headers, body };
    match api {
        Api::Deploy => deploy::read(&reply, now),
        Api::Provision => provision::read(&reply, now),
    }
}

/// Whether `id` is fit to be kept and shown: it comes from an answer that also holds secrets.
fn is_token_id(id: &str, outputs: &Outputs) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    (1..=64).contains(&id.len())
        && id.bytes().all(allowed)
        && !outputs.values().any(|value| value.expose_secret().contains(id))
}
