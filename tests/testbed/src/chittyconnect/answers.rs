//! Answers in ChittyConnect's shapes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chrono::{DateTime, SecondsFormat, Utc};
use http::StatusCode;
use http::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use super::matching::Route;
use crate::server::Answer;

/// An answer that can still be spoilt.
pub(super) struct Draft {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) payload: Payload,
    pub(super) cut_midway: bool,
    /// The credential it carries, by its place in the ledger.
    pub(super) mint: Option<usize>,
}

pub(super) enum Payload {
    Json(Value),
    Text(String, String),
}

impl Payload {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Json(value) => value.to_string(),
            Self::Text(_, text) => text.clone(),
        }
    }
}

impl Draft {
    pub(super) fn json(status: u16, body: Value) -> Self {
        Self::new(status, Payload::Json(body))
    }

    pub(super) fn text(status: u16, content_type: &str, body: &str) -> Self {
        Self::new(status, Payload::Text(content_type.into(), body.into()))
    }

    pub(super) fn not_found() -> Self {
        Self::text(404, "text/plain; charset=UTF-8", "404 Not Found")
    }

    /// `details` is a stack trace in real life, and says more than it should.
    pub(super) fn failure(status: u16, message: &str, details: &str, now: DateTime<Utc>) -> Self {
        let stack = format!("{details}\n    at CredentialProvisioner.provision (worker.js:4711:13)");
        Self::json(
            status,
            json!({
                "success": false,
                "error": {"code": "PROVISION_FAILED", "message": message, "details": stack},
                "metadata": {"timestamp": millis(now)},
            }),
        )
    }

    /// A refusal whose status is picked by words in its message, as the real one does it.
    pub(super) fn refusal(message: &str, now: DateTime<Utc>) -> Self {
        let says = |words: &str| message.contains(words);
        let status = if says("Rate limit exceeded") {
            429
        } else if says("DENIED") {
            403
        } else if says("required") || says("Unknown credential type") {
            400
        } else if says("not configured") {
            503
        } else {
            500
        };
        Self::failure(status, message, &format!("Error: {message}"), now)
    }

    fn new(status: u16, payload: Payload) -> Self {
        Self {
            status,
            headers: Vec::new(),
            payload,
            cut_midway: false,
            mint: None,
        }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn minted(mut self, mint: usize) -> Self {
        self.mint = Some(mint);
        self
    }

    /// The object that describes the credential.
    pub(super) fn fields(&mut self, route: Route) -> Option<&mut Map<String, Value>> {
        let Payload::Json(body) = &mut self.payload else {
            return None;
        };
        match route {
            Route::Provision => body.get_mut("credential")?.as_object_mut(),
            _ => body.as_object_mut(),
        }
    }

    /// What becomes of an upstream's refusal: its status and text shine through.
    pub(super) fn upstream(status: u16, text: &str, now: DateTime<Utc>) -> Self {
        let message = match status {
            401 => "Authentication required".to_owned(),
            429 => "Rate limit exceeded".to_owned(),
            _ => format!("Failed to create token: {status} - {text}"),
        };
        Self::refusal(&message, now)
    }

    /// `now` goes into the `Date` header, where there is to be one.
    pub(super) fn finish(self, delivered: Arc<AtomicBool>, now: Option<DateTime<Utc>>) -> Answer {
        let mut headers = HeaderMap::new();
        let (content_type, body) = match self.payload {
            Payload::Json(body) => ("application/json".to_owned(), body.to_string()),
            Payload::Text(content_type, body) => (content_type, body),
        };
        let date = now.map(|now| now.format("%a, %d %b %Y %H:%M:%S GMT").to_string());
        let ours = [
            Some((CONTENT_TYPE.as_str().to_owned(), content_type)),
            date.map(|date| (DATE.as_str().to_owned(), date)),
        ];
        for (name, value) in ours.into_iter().flatten().chain(self.headers) {
            let name = HeaderName::try_from(name).expect("tests set valid header names");
            let value = HeaderValue::try_from(value).expect("tests set valid header values");
            headers.insert(name, value);
        }
        Answer {
            status: StatusCode::from_u16(self.status).expect("tests set valid statuses"),
            headers,
            body: body.into(),
            cut_midway: self.cut_midway,
            delivered,
        }
    }
}

/// As JavaScript writes a time.
pub(super) fn millis(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// As the deploy API's documentation writes a time.
pub(super) fn seconds(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
