//! From what `ChittyConnect` answered to what it means: the one place where statuses become reasons.
//!
//! Texts of the server are searched for phrases it is known to use and then dropped: they may repeat
//! a secret, so what a person reads is written here.

use chrono::{DateTime, TimeDelta, Timelike};
use http::header::{DATE, HeaderMap, RETRY_AFTER};
use http::{Method, StatusCode};
use secrecy::ExposeSecret;

use super::body::{InvalidBody, Member, Members};
use super::wire::{Sent, TransportError};
use super::{Reason, Refusal};
use crate::core::Time;

/// Longest wait a server can ask for: the longest window a budget can have.
const LONGEST_WAIT: TimeDelta = TimeDelta::hours(24);

/// The requests that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Deploy,
    Provision,
    Revoke,
    Health,
    Audit,
}

impl Call {
    pub(super) const fn method(self) -> Method {
        match self {
            Self::Deploy | Self::Provision => Method::POST,
            Self::Revoke => Method::DELETE,
            Self::Health | Self::Audit => Method::GET,
        }
    }

    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Deploy => "/credentials/deploy",
            Self::Provision => "/api/credentials/provision",
            Self::Revoke => "/api/credentials/revoke",
            Self::Health => "/api/health",
            Self::Audit => "/api/credentials/audit",
        }
    }

    const fn mints(self) -> bool {
        matches!(self, Self::Deploy | Self::Provision)
    }
}

/// What a refusal is known to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phrase {
    Denied,
    HourlyLimit,
    MissingKey,
    InactiveKey,
    Required,
    RequiredField(&'static str),
    UnknownType,
    NotConfigured,
    NoSuchToken,
    UpstreamRefusesBroker,
}

/// A refusal's body, without its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    /// Whether it was JSON of `ChittyConnect`'s shape, and not a page of something in between.
    json: bool,
    phrases: Vec<Phrase>,
}

/// Fields a refusal may name as missing.
const FIELDS: [&str; 14] = [
    "service",
    "purpose",
    "repo",
    "run_id",
    "type",
    "context",
    "repository",
    "bucket",
    "database",
    "readonly",
    "source_service",
    "target_service",
    "mode",
    "token_id",
];

impl ErrorBody {
    /// Reads a body; one that cannot be read says nothing.
    pub(super) fn in_body(body: Option<&[u8]>) -> Self {
        body.and_then(|body| Members::parse(body).ok())
            .map(|members| Self::in_members(&members))
            .unwrap_or_default()
    }

    pub(super) fn in_members(members: &Members) -> Self {
        let text = match members.get("error") {
            Some(Member::Text(text)) => Some(text),
            Some(Member::Object(error)) => error.text("message").or_else(|| error.text("code")),
            _ => members.text("message"),
        };
        Self {
            json: true,
            phrases: text.map(|text| phrases(text.expose_secret())).unwrap_or_default(),
        }
    }

    pub(super) fn says(&self, phrase: Phrase) -> bool {
        self.phrases.contains(&phrase)
    }

    fn required_field(&self) -> Option<&'static str> {
        self.phrases.iter().find_map(|phrase| match phrase {
            Phrase::RequiredField(field) => Some(*field),
            _ => None,
        })
    }
}

fn phrases(text: &str) -> Vec<Phrase> {
    let word = |desired: &str| {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|word| word.eq_ignore_ascii_case(desired))
    };
    let field = FIELDS
        .into_iter()
        .find(|field| text.contains(&format!("{field} is required")) && word(field));
    // The broker's own words: an upstream's are passed through, and "ACCESS_DENIED" or "at risk" is its bad day.
    [
        (text.contains("Risk score too high") || text.contains("DENIED: risk")).then_some(Phrase::Denied),
        text.contains("Rate limit exceeded for ").then_some(Phrase::HourlyLimit),
        text.contains("Missing API key").then_some(Phrase::MissingKey),
        text.contains("API key is inactive").then_some(Phrase::InactiveKey),
        word("required").then_some(Phrase::Required),
        field.map(Phrase::RequiredField),
        text.contains("Unknown credential type").then_some(Phrase::UnknownType),
        text.contains("not configured").then_some(Phrase::NotConfigured),
        is_upstream_404(text).then_some(Phrase::NoSuchToken),
        text.contains("Authentication required")
            .then_some(Phrase::UpstreamRefusesBroker),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether the broker reports that its upstream answered a revocation with 404. A 404 anywhere else in the text,
/// such as in the id of a failed request, does not say that the token is gone.
fn is_upstream_404(text: &str) -> bool {
    text.strip_prefix("Failed to revoke token: 404")
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
}

/// What an answer that is no success means.
pub(super) fn classify(status: StatusCode, headers: &HeaderMap, said: &ErrorBody, call: Call, now: Time) -> Refusal {
    let code = status.as_u16();
    let reason = match code {
        401 => Reason::Unauthorized,
        429 => Reason::RateLimited,
        403 => Reason::Denied,
        _ if said.says(Phrase::Denied) => Reason::Denied,
        408 | 425 | 500.. => Reason::BrokerUnavailable,
        400..=499 => Reason::BrokerRejected,
        _ => Reason::InvalidResponse,
    };
    let message = match reason {
        Reason::Unauthorized => unauthorized(said),
        Reason::RateLimited => rate_limited(said, call),
        Reason::Denied if !said.json => {
            format!("ChittyConnect, or something in front of it, denied the request ({code})")
        }
        Reason::Denied if call.mints() => "ChittyConnect judged this request too risky and denied it".to_owned(),
        Reason::Denied => format!(
            "ChittyConnect does not allow {} {} ({code})",
            call.method(),
            call.path()
        ),
        Reason::BrokerRejected => rejected(code, said, call),
        Reason::BrokerUnavailable => unavailable(code, said, call),
        _ if status.is_redirection() => {
            format!("ChittyConnect answered with a redirect ({code}), which is never followed: check spec.url")
        }
        _ => format!("ChittyConnect answered with a status that means nothing here ({code})"),
    };
    let asked = matches!(reason, Reason::RateLimited | Reason::BrokerUnavailable);
    let server_now = server_time(headers).unwrap_or(now);
    Refusal {
        own_limit: code == 429 && said.says(Phrase::HourlyLimit),
        retry_after: asked
            .then(|| retry_after(headers, Some(server_now)).or_else(|| next_hour(said, call, code, server_now)))
            .flatten(),
        ..Refusal::new(reason, message, Sent::Yes)
    }
}

fn unauthorized(said: &ErrorBody) -> String {
    let why = if said.says(Phrase::InactiveKey) {
        "it is inactive"
    } else if said.says(Phrase::MissingKey) {
        "it did not arrive"
    } else {
        "it is not known there"
    };
    format!("ChittyConnect does not accept the API key (401): {why}")
}

fn rate_limited(said: &ErrorBody, call: Call) -> String {
    let until = if call == Call::Provision && said.says(Phrase::HourlyLimit) {
        " before the next full hour"
    } else {
        " for now"
    };
    format!("ChittyConnect takes no more requests{until} (429)")
}

fn rejected(code: u16, said: &ErrorBody, call: Call) -> String {
    if code == 404 && !said.json {
        return format!(
            "ChittyConnect does not serve {} {} at this URL (404): check spec.url and spec.api of the connection",
            call.method(),
            call.path()
        );
    }
    let why = if said.says(Phrase::UpstreamRefusesBroker) {
        "an upstream does not accept ChittyConnect's own credential; whoever runs ChittyConnect has to renew it"
            .to_owned()
    } else if let Some(field) = said.required_field() {
        format!("{field} is required")
    } else {
        let known = if said.says(Phrase::Required) {
            "a required field is missing"
        } else if said.says(Phrase::UnknownType) {
            "it does not know the credential type"
        } else if code == 404 {
            "it did not find what the request names"
        } else {
            "it gave no reason that is known here"
        };
        known.to_owned()
    };
    format!("ChittyConnect rejected the request ({code}): {why}")
}

fn unavailable(code: u16, said: &ErrorBody, call: Call) -> String {
    let unsure = if call.mints() {
        "; whether a token was made is unknown"
    } else {
        ""
    };
    if said.says(Phrase::NotConfigured) {
        return format!("ChittyConnect is not set up for this request yet ({code}: not configured)");
    }
    format!("ChittyConnect failed to answer the request ({code}){unsure}")
}

/// What it means that no whole answer came.
pub(super) fn lost(lost: TransportError, timeout: TimeDelta, call: Call) -> Refusal {
    if lost == TransportError::Unbuilt {
        return Refusal::new(
            Reason::InvalidSpec,
            "The request cannot be written as HTTP; nothing was sent",
            Sent::No,
        );
    }
    let unsure = if call.mints() {
        "whether a token was made"
    } else {
        "whether it was done"
    };
    match lost.sent() {
        Sent::No => Refusal::new(
            Reason::BrokerUnavailable,
            format!("ChittyConnect cannot be reached: {}; nothing was sent", lost.phrase()),
            Sent::No,
        ),
        sent => {
            let what = match lost {
                TransportError::Timeout => format!("ChittyConnect did not answer within {}", seconds(timeout)),
                _ => "The connection to ChittyConnect ended before its answer did".to_owned(),
            };
            Refusal::new(Reason::OutcomeUnknown, format!("{what}; {unsure} is unknown"), sent)
        }
    }
}

/// What it means that an answer reports success and lacks what success brings.
pub(super) fn flawed(flaw: InvalidBody, status: StatusCode, call: Call) -> Refusal {
    let so = if call.mints() {
        "; a token it made is held by nobody"
    } else {
        ""
    };
    Refusal::new(
        Reason::InvalidResponse,
        format!("ChittyConnect answered {}, but {}{so}", status.as_u16(), flaw.phrase()),
        Sent::Yes,
    )
}

fn seconds(time: TimeDelta) -> String {
    match time.num_milliseconds() {
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}

/// The server's own clock.
pub(crate) fn server_time(headers: &HeaderMap) -> Option<Time> {
    http_date(headers.get(DATE)?.to_str().ok()?)
}

fn http_date(text: &str) -> Option<Time> {
    DateTime::parse_from_rfc2822(text).ok().map(|at| at.to_utc())
}

/// How long the server asks to be left alone.
///
/// `X-RateLimit-Reset` counts only beside a `Retry-After`: on other answers it belongs to a limiter
/// that did not refuse anything.
pub(crate) fn retry_after(headers: &HeaderMap, server_now: Option<Time>) -> Option<TimeDelta> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = text
        .parse::<u32>()
        .ok()
        .map(|seconds| TimeDelta::seconds(seconds.into()))
        .or_else(|| Some(http_date(text)? - server_now?))
        .or_else(|| {
            let reset = headers.get("x-ratelimit-reset")?.to_str().ok()?.trim().parse().ok()?;
            Some(DateTime::from_timestamp_millis(reset)? - server_now?)
        })?;
    Some(wait.clamp(TimeDelta::seconds(1), LONGEST_WAIT))
}

/// The provision API counts by UTC clock hours and does not say so in a header.
fn next_hour(said: &ErrorBody, call: Call, code: u16, server_now: Time) -> Option<TimeDelta> {
    let counted = code == 429 && call == Call::Provision && said.says(Phrase::HourlyLimit);
    counted.then(|| TimeDelta::hours(1) - TimeDelta::seconds((server_now.minute() * 60 + server_now.second()).into()))
}

#[cfg(test)]
mod tests;
