//! What can go wrong between a client and ChittyConnect, on request.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use http::StatusCode;
use serde_json::{Value, json};

use super::answers::{Draft, Payload};
use super::matching::Route;

/// One thing that goes wrong. `...Before` means nothing was minted, `...After` that it was.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer, and nothing is minted.
    Answer(Canned),
    /// The upstream refuses with this status and text, which ChittyConnect passes on; nothing is minted, and the request
    /// is charged.
    Upstream(u16, String),
    /// A credential is minted, then an error with this status says otherwise. Its details repeat the
    /// secret.
    FailAfter(u16),
    /// Nothing happens for a while, then everything as usual.
    DelayBefore(Duration),
    /// Everything as usual, and the answer is late.
    DelayAfter(Duration),
    /// Accepted and never answered.
    HangBefore,
    /// Minted and never answered.
    HangAfter,
    /// The connection is closed instead of an answer.
    CutBefore,
    /// Minted, and the connection is closed instead of an answer.
    CutAfter,
    /// Minted, and the connection is closed in the middle of the answer.
    CutMidway,
    /// Minted, and the answer, complete by its length, is only half of the JSON.
    TruncatedJson,
    /// Not minted; the answer is JSON of 10 MB.
    HugeBody,
    /// Not minted; a 302 to this URL.
    Redirect(String),
    /// Not minted; a 200 that is a web page.
    Html,
    /// Not minted; a 200 that says `success: false`.
    Unsuccessful,
    /// Not minted; a 200 with fields of the wrong types.
    WrongTypes,
    /// Minted, and the answer lacks the secrets.
    NoValue,
    /// Minted, and the answer says this about its end.
    ExpiresAt(Expiry),
}

/// What an answer says about a credential's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Nothing.
    Missing,
    /// An hour ago.
    Past,
    /// No time at all.
    Unparsable,
    /// In a year.
    InAYear,
}

/// An answer that was ready before the question.
#[derive(Clone, Debug)]
pub struct Canned {
    status: u16,
    headers: Vec<(String, String)>,
    body: Option<(String, String)>,
}

impl Canned {
    /// This status with ChittyConnect's usual body for it.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: None,
        }
    }

    /// One more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// A JSON body.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    /// Any body.
    #[must_use]
    pub fn body(mut self, content_type: impl Into<String>, body: impl Into<String>) -> Self {
        self.body = Some((content_type.into(), body.into()));
        self
    }
}

impl From<Canned> for Fault {
    fn from(canned: Canned) -> Self {
        Self::Answer(canned)
    }
}

const HUGE: usize = 10 * 1024 * 1024;

impl Fault {
    /// The answer that stands in for all processing, if the fault is of that kind.
    pub(super) fn instead(&self, now: DateTime<Utc>) -> Option<Draft> {
        let draft = match self {
            Self::Answer(canned) => canned.draft(now),
            Self::HugeBody => Draft::json(200, json!({ "cloudflare_token": "x".repeat(HUGE) })),
            Self::Redirect(url) => Draft::text(302, "text/plain", "Found").header("location", url.clone()),
            Self::Html => Draft::text(
                200,
                "text/html; charset=utf-8",
                "<!DOCTYPE html><html><title>Just a moment...</title></html>",
            ),
            Self::Unsuccessful => Draft::json(200, json!({"success": false})),
            Self::WrongTypes => Draft::json(
                200,
                json!({
                    "success": "yes",
                    "credential": ["cloudflare_api_token"],
                    "cloudflare_token": 42,
                    "expires_at": {"in": "an hour"},
                }),
            ),
            _ => return None,
        };
        Some(draft)
    }

    /// What the fault makes of a proper answer. Refusals stay as they are.
    pub(super) fn spoil(&self, route: Route, mut draft: Draft, now: DateTime<Utc>) -> Draft {
        if draft.mint.is_none() {
            return draft;
        }
        match self {
            Self::FailAfter(status) => {
                let details = format!("Error: failed to record {}", draft.payload.text());
                let mint = draft.mint;
                draft = Draft::failure(*status, "Unexpected error", &details, now);
                draft.mint = mint;
            }
            Self::CutMidway => draft.cut_midway = true,
            Self::TruncatedJson => {
                let mut text = draft.payload.text();
                text.truncate(text.len() / 2);
                draft.payload = Payload::Text("application/json".into(), text);
            }
            Self::NoValue => {
                if let Some(object) = draft.fields(route) {
                    object.retain(|name, value| {
                        !value.is_string() || ["type", "account_id", "token_id", "expires_at"].contains(&name.as_str())
                    });
                }
            }
            Self::ExpiresAt(expiry) => {
                if let Some(object) = draft.fields(route) {
                    let text = match expiry {
                        Expiry::Missing => None,
                        Expiry::Past => Some((now - TimeDelta::hours(1)).to_rfc3339()),
                        Expiry::Unparsable => Some("soon".to_owned()),
                        Expiry::InAYear => Some((now + TimeDelta::days(365)).to_rfc3339()),
                    };
                    object.remove("expires_at");
                    if let Some(text) = text {
                        object.insert("expires_at".into(), text.into());
                    }
                }
            }
            _ => {}
        }
        draft
    }
}

impl Canned {
    fn draft(&self, now: DateTime<Utc>) -> Draft {
        let mut draft = match &self.body {
            Some((content_type, body)) => Draft::text(self.status, content_type, body),
            None => usual(self.status, now),
        };
        for (name, value) in &self.headers {
            draft = draft.header(name, value.clone());
        }
        draft
    }
}

fn usual(status: u16, now: DateTime<Utc>) -> Draft {
    match status {
        401 => Draft::json(401, json!({"error": "Invalid API key"})),
        404 => Draft::not_found(),
        429 => Draft::json(429, json!({"error": "Rate limit exceeded"})),
        _ => {
            let reason = StatusCode::from_u16(status)
                .ok()
                .and_then(|status| status.canonical_reason())
                .unwrap_or("Error");
            let message = match status {
                403 => "Credential request DENIED",
                503 => "Credential provisioning is not configured",
                _ => reason,
            };
            Draft::failure(status, message, &format!("Error: {message}"), now)
        }
    }
}
