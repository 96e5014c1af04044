//! The client of `ChittyChronicle`, the audit service.
//!
//! Delivery is at least once: an event has a stable id, so a repeat does no harm and a lost answer is
//! simply "not delivered". All this module tells apart is whose fault that is: the event's, or the
//! world's.

use chrono::TimeDelta;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::api::MANAGER;
use crate::broker::wire::{ConnectionReuse, Reply, TransportError, Wire};
use crate::broker::{BuildError, Endpoint, retry_after, server_time};
use crate::core::audit::{AuditEvent, EventType};

/// Longest `service` the events table of `ChittyConnect` takes, in characters.
const SERVICE_LIMIT: usize = 50;

/// Which way events go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Form {
    /// To `ChittyChronicle` itself: `POST /api/entries`.
    #[default]
    Entries,
    /// Through `ChittyConnect`: `POST /api/chittychronicle/events`, at most 60 a minute.
    ThroughConnect,
}

/// Why an event was not taken. Nothing the server wrote is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDelivered {
    /// This event is at fault: no later try will do better.
    #[error("ChittyChronicle refuses this event ({status})")]
    Refused {
        /// The answer's status.
        status: u16,
    },
    /// The event is fine, and may be delivered later.
    #[error("{message}")]
    Unavailable {
        /// What happened.
        message: String,
        /// How long the server asks to be left alone.
        retry_after: Option<TimeDelta>,
    },
}

impl NotDelivered {
    fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable {
            message: message.into(),
            retry_after: None,
        }
    }
}

/// A client of one `ChittyChronicle` with one token. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Chronicle {
    wire: Wire,
    form: Form,
}

impl Chronicle {
    /// A client of `endpoint`, whose key is the token. Nothing is sent yet.
    ///
    /// # Errors
    /// Where URL, token or certificates cannot be used; it says what to change.
    pub fn new(endpoint: &Endpoint, form: Form) -> Result<Self, BuildError> {
        // A dead connection costs a repeat here, and a new one for each of 2,000 events costs more.
        let wire = Wire::new(endpoint, ConnectionReuse::Kept)?;
        Ok(Self { wire, form })
    }

    /// Delivers one event.
    ///
    /// # Errors
    /// Whose fault it is that the event was not taken.
    pub async fn deliver(&self, event: &AuditEvent) -> Result<(), NotDelivered> {
        let (path, body) = match self.form {
            Form::Entries => ("/api/entries", event.entry()),
            Form::ThroughConnect => ("/api/chittychronicle/events", through_connect(event)),
        };
        let request = self.wire.request(Method::POST, path, &[]).json(&body);
        let reply = self.wire.exchange(request).await.map_err(unanswered)?;
        judge(&reply, self.form)
    }
}

/// The same event in the columns of `ChittyConnect`'s events table.
fn through_connect(event: &AuditEvent) -> Value {
    let mut entry = event.entry();
    let mut metadata = entry["data"].take();
    metadata["entityId"] = json!(event.request.service);
    metadata["entityType"] = json!("credential");
    let failed = matches!(
        event.event,
        EventType::Denied | EventType::RateLimited | EventType::Failed | EventType::OutcomeUnknown
    );
    let mut body = json!({
        "service": event.request.service.chars().take(SERVICE_LIMIT).collect::<String>(),
        "action": event.event.as_str(),
        "userId": MANAGER,
        "metadata": metadata,
        "status": if failed { "failed" } else { "success" },
    });
    if failed {
        body["errorMessage"] = json!(event.reason);
    }
    body
}

fn unanswered(lost: TransportError) -> NotDelivered {
    NotDelivered::unavailable(match lost {
        TransportError::Timeout | TransportError::Cut => format!("ChittyChronicle gave no answer: {}", lost.phrase()),
        _ => format!("ChittyChronicle cannot be reached: {}", lost.phrase()),
    })
}

fn judge(reply: &Reply, form: Form) -> Result<(), NotDelivered> {
    let status = reply.status;
    let code = status.as_u16();
    let body = reply.body.as_deref().map(Vec::as_slice).unwrap_or_default();
    if status.is_success() {
        // A web page that answers 200 to everything would otherwise swallow the audit trail.
        return if is_acknowledgement(body) {
            Ok(())
        } else {
            let message = format!("ChittyChronicle answered {code} with something that acknowledges no event");
            Err(NotDelivered::unavailable(message))
        };
    }
    let blames_event = match code {
        // Token, URL or patience is at fault: the same for every event.
        401 | 403..=405 | 407 | 408 | 421 | 425 | 429 => false,
        400..=499 => true,
        // The database's refusal of one row comes through as a 500.
        500 => form == Form::ThroughConnect && refuses_row(body),
        _ => false,
    };
    if blames_event {
        return Err(NotDelivered::Refused { status: code });
    }
    Err(NotDelivered::Unavailable {
        message: unavailable(status),
        retry_after: retry_after(&reply.headers, server_time(&reply.headers)),
    })
}

fn is_acknowledgement(body: &[u8]) -> bool {
    if body.trim_ascii().is_empty() {
        return true;
    }
    let body: Option<Value> = serde_json::from_slice(body).ok();
    body.is_some_and(|body| body.is_object() && body["success"] != json!(false))
}

fn refuses_row(body: &[u8]) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = body["error"].as_str().unwrap_or_default();
    ["value too long", "violates", "invalid input syntax"]
        .iter()
        .any(|words| error.contains(words))
}

fn unavailable(status: StatusCode) -> String {
    let code = status.as_u16();
    match code {
        401 | 403 => format!("ChittyChronicle does not accept the token ({code})"),
        404 | 405 => format!("ChittyChronicle is not served at this URL ({code}): check it"),
        429 => "ChittyChronicle takes no more events for now (429)".to_owned(),
        300..=399 => {
            format!("ChittyChronicle answered with a redirect ({code}), which is never followed: check its URL")
        }
        _ => format!("ChittyChronicle failed to take the event ({code})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;
    use crate::broker::testing::{Canned, IMPATIENCE, Server, endpoint};
    use crate::core::audit::Subject;
    use crate::core::journal::RequestFacts;
    use chrono::TimeZone;

    const TOKEN: &str = "chronicle-token-canary";

    fn event(kind: EventType, reason: Reason, service: &str) -> AuditEvent {
        let request = RequestFacts {
            connection: "default".into(),
            service: service.into(),
            purpose: "worker-deploy".into(),
            repo: None,
            run_id: "r".into(),
            type_: None,
        };
        let subject = Subject {
            uid: "u",
            namespace: "ns",
            name: "a",
            request: &request,
            revision: 2,
        };
        let at = chrono::Utc.timestamp_opt(1_700_000_000, 0).unwrap();
        AuditEvent::new(kind, reason, &subject, at, true)
    }

    async fn deliver(form: Form, canned: Canned) -> (Result<(), NotDelivered>, String) {
        let hangs = canned.hangs();
        let server = Server::start(canned);
        let mut endpoint = endpoint(&server.url, TOKEN);
        if hangs {
            endpoint.timeout = IMPATIENCE;
        }
        let chronicle = Chronicle::new(&endpoint, form).unwrap();
        let result = chronicle
            .deliver(&event(EventType::Rotated, Reason::Rotated, "chittyid"))
            .await;
        (result, server.requests().concat())
    }

    #[tokio::test]
    async fn an_entry_is_posted_with_the_token_and_acknowledged() {
        let (result, request) = deliver(Form::Entries, Canned::json(200, r#"{"success":true,"id":"e"}"#)).await;
        assert_eq!(result, Ok(()));
        assert!(request.starts_with("POST /base/api/entries HTTP/1.1\r\n"), "{request}");
        assert!(
            request.contains("authorization: Bearer chronicle-token-canary\r\n"),
            "{request}"
        );
        let body: Value = serde_json::from_str(request.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body, event(EventType::Rotated, Reason::Rotated, "chittyid").entry());
    }

    #[tokio::test]
    async fn through_connect_an_event_goes_to_the_events_table() {
        let (result, request) = deliver(Form::ThroughConnect, Canned::json(200, r#"{"id":"e","timestamp":"t"}"#)).await;
        assert_eq!(result, Ok(()));
        assert!(
            request.starts_with("POST /base/api/chittychronicle/events HTTP/1.1\r\n"),
            "{request}"
        );
    }

    #[test]
    fn through_connect_every_field_keeps_within_its_column() {
        let long = "ä".repeat(60);
        let body = through_connect(&event(EventType::Denied, Reason::Denied, &long));
        assert_eq!(body["service"].as_str().unwrap().chars().count(), 50);
        assert_eq!(body["action"], "credential.denied");
        assert_eq!(
            (&body["status"], &body["errorMessage"]),
            (&json!("failed"), &json!("Denied"))
        );
        assert_eq!(body["userId"], "chittyconnect-operator");
        assert_eq!(
            (&body["metadata"]["entityId"], &body["metadata"]["entityType"]),
            (&json!(long), &json!("credential"))
        );
        assert_eq!(body["metadata"]["namespace"], "ns");
        let body = through_connect(&event(EventType::Revoked, Reason::Rotated, "chittyid"));
        assert_eq!(body["status"], "success");
        assert!(body.get("errorMessage").is_none());
    }

    #[tokio::test]
    async fn only_what_this_event_is_to_blame_for_is_refused() {
        for status in [400, 409, 413, 422] {
            let (result, _) = deliver(Form::Entries, Canned::json(status, "{}")).await;
            assert_eq!(result, Err(NotDelivered::Refused { status }));
        }
        for status in [302, 401, 403, 404, 405, 408, 429, 500, 502, 503] {
            let (result, _) = deliver(Form::Entries, Canned::json(status, "{}")).await;
            assert!(
                matches!(result, Err(NotDelivered::Unavailable { retry_after: None, .. })),
                "{status} {result:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_row_the_database_refuses_is_the_events_fault_although_it_is_a_500() {
        let body = r#"{"error":"value too long for type character varying(50)"}"#;
        let (result, _) = deliver(Form::ThroughConnect, Canned::json(500, body)).await;
        assert_eq!(result, Err(NotDelivered::Refused { status: 500 }));
        let (result, _) = deliver(
            Form::ThroughConnect,
            Canned::json(500, r#"{"error":"connection refused"}"#),
        )
        .await;
        assert!(matches!(result, Err(NotDelivered::Unavailable { .. })), "{result:?}");
    }

    #[tokio::test]
    async fn a_server_that_asks_to_wait_is_heard() {
        let busy = Canned::json(429, "{}").header("Retry-After: 30");
        let (result, _) = deliver(Form::Entries, busy).await;
        let Err(NotDelivered::Unavailable { retry_after, .. }) = result else {
            panic!("{result:?}")
        };
        assert_eq!(retry_after, Some(TimeDelta::seconds(30)));
    }

    #[tokio::test]
    async fn a_web_page_or_a_failure_with_status_200_delivers_nothing_and_an_empty_answer_does() {
        for body in ["<html>welcome</html>", r#"{"success":false}"#, "[]", "ok"] {
            let (result, _) = deliver(Form::Entries, Canned::json(200, body)).await;
            assert!(matches!(result, Err(NotDelivered::Unavailable { .. })), "{body}");
        }
        assert_eq!(deliver(Form::Entries, Canned::json(201, "")).await.0, Ok(()));
        assert_eq!(deliver(Form::Entries, Canned::json(204, "")).await.0, Ok(()));
    }

    #[tokio::test]
    async fn no_answer_is_no_delivery_and_no_message_repeats_the_server_or_the_token() {
        let leak = format!(r#"{{"error":"bad token {TOKEN}"}}"#);
        for canned in [
            Canned::Hang,
            Canned::Cut,
            Canned::json(401, &leak),
            Canned::json(400, &leak),
        ] {
            let (result, _) = deliver(Form::Entries, canned).await;
            let error = result.unwrap_err();
            assert!(!format!("{error} {error:?}").contains(TOKEN), "{error:?}");
        }
        let server = Server::start(Canned::Hang);
        let endpoint = endpoint(&server.url, TOKEN);
        let chronicle = Chronicle::new(&endpoint, Form::Entries).unwrap();
        assert!(!format!("{endpoint:?} {chronicle:?}").contains(TOKEN));
    }
}
