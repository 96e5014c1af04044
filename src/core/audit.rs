//! Audit events: one for every outcome, at most 1 KiB, with a stable id, in order per credential.

use chrono::SubsecRound;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Time;
use super::journal::RequestFacts;
use crate::api::Reason;

/// How many bytes `ChittyChronicle` takes of one event.
const LARGEST_ENTRY: usize = 1024;

/// What happened, as `ChittyChronicle` knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A first token was published.
    Provisioned,
    /// A token was replaced.
    Rotated,
    /// The broker judged the request too risky.
    Denied,
    /// The broker said 429.
    RateLimited,
    /// A request failed otherwise.
    Failed,
    /// A request was sent and its answer never came.
    OutcomeUnknown,
    /// A token was revoked.
    Revoked,
    /// A token ended without a successor.
    Expired,
    /// A credential, or its permission, is gone.
    Released,
    /// A managed Secret was changed by somebody else.
    Tampered,
}

impl EventType {
    /// Whether it is the outcome of a request for tokens.
    #[must_use]
    pub const fn ends_mint(self) -> bool {
        matches!(
            self,
            Self::Provisioned | Self::Rotated | Self::Denied | Self::RateLimited | Self::Failed | Self::OutcomeUnknown
        )
    }

    /// As in `ChittyChronicle`'s `eventType`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioned => "credential.provisioned",
            Self::Rotated => "credential.rotated",
            Self::Denied => "credential.denied",
            Self::RateLimited => "credential.rate_limited",
            Self::Failed => "credential.failed",
            Self::OutcomeUnknown => "credential.outcome_unknown",
            Self::Revoked => "credential.revoked",
            Self::Expired => "credential.expired",
            Self::Released => "credential.released",
            Self::Tampered => "credential.tampered",
        }
    }

    /// The event that tells of a failure for `reason`.
    #[must_use]
    pub const fn of_failure(reason: Reason) -> Self {
        match reason {
            Reason::Denied => Self::Denied,
            Reason::RateLimited => Self::RateLimited,
            Reason::OutcomeUnknown => Self::OutcomeUnknown,
            _ => Self::Failed,
        }
    }
}

/// One audit event, schema `connect.chitty.cc/v1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// Unique and stable: a repeated delivery has the same.
    pub id: String,
    /// Number within the credential, ever growing.
    pub seq: u64,
    /// What happened.
    pub event: EventType,
    /// When.
    pub at: Time,
    /// Namespace of the credential.
    pub namespace: String,
    /// Name of the credential.
    pub name: String,
    /// Uid of the credential.
    pub uid: String,
    /// The request.
    pub request: RequestFacts,
    /// Revision of the token.
    pub revision: u64,
    /// Why.
    pub reason: Reason,
    /// When the token ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Ids of the tokens; never their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_ids: Vec<String>,
    /// Whose run a mint was made for, where that is known: kind and name of what its Pod belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Whether the connection sends events anywhere; others are logged alone.
    #[serde(skip, default = "yes")]
    pub deliver: bool,
}

const fn yes() -> bool {
    true
}

/// What an event is about.
pub struct Subject<'a> {
    /// Uid of the credential.
    pub uid: &'a str,
    /// Namespace of the credential.
    pub namespace: &'a str,
    /// Name of the credential.
    pub name: &'a str,
    /// The request.
    pub request: &'a RequestFacts,
    /// Revision of the token.
    pub revision: u64,
}

impl AuditEvent {
    /// An event, to be numbered by the journal. Its times are in whole milliseconds.
    #[must_use]
    pub fn new(event: EventType, reason: Reason, subject: &Subject<'_>, at: Time, deliver: bool) -> Self {
        Self {
            id: String::new(),
            seq: 0,
            event,
            at: at.trunc_subsecs(3),
            namespace: subject.namespace.to_owned(),
            name: subject.name.to_owned(),
            uid: subject.uid.to_owned(),
            request: subject.request.clone(),
            revision: subject.revision,
            reason,
            expires_at: None,
            token_ids: Vec::new(),
            consumer: None,
            deliver,
        }
    }

    /// With whose run it was for.
    #[must_use]
    pub fn consumer(mut self, consumer: Option<&String>) -> Self {
        self.consumer = consumer.cloned();
        self
    }

    /// With what the token was.
    #[must_use]
    pub fn token(mut self, expires_at: Time, ids: &[String]) -> Self {
        self.expires_at = Some(expires_at.trunc_subsecs(3));
        self.token_ids = ids.to_vec();
        self
    }

    /// About how many bytes it takes in a journal, generously.
    #[must_use]
    pub fn weight(&self) -> usize {
        // Names of fields, times, numbers, the id.
        const REST: usize = 420;
        let r = &self.request;
        let texts: [&str; 8] = [
            &self.namespace,
            &self.name,
            &self.uid,
            &self.uid,
            &r.connection,
            &r.service,
            &r.purpose,
            &r.run_id,
        ];
        let more = r
            .repo
            .iter()
            .chain(&r.type_)
            .chain(&self.token_ids)
            .chain(&self.consumer);
        let more = more.map(String::as_str);
        REST + texts.into_iter().chain(more).map(|text| text.len() + 3).sum::<usize>()
    }

    /// The body of `POST /api/entries`.
    #[must_use]
    pub fn entry(&self) -> Value {
        let mut data = json!({
            "schema": "connect.chitty.cc/v1",
            "id": self.id,
            "seq": self.seq,
            "at": self.at,
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "connection": self.request.connection,
            "purpose": self.request.purpose,
            "runId": self.request.run_id,
            "revision": self.revision,
            "reason": self.reason,
        });
        if let Some(fields) = data.as_object_mut() {
            if let Some(repo) = &self.request.repo {
                fields.insert("repo".to_owned(), json!(repo));
            }
            if let Some(type_) = &self.request.type_ {
                fields.insert("type".to_owned(), json!(type_));
            }
            if let Some(at) = self.expires_at {
                fields.insert("expiresAt".to_owned(), json!(at));
            }
            if !self.token_ids.is_empty() {
                fields.insert("tokenIds".to_owned(), json!(self.token_ids));
            }
        }
        let mut entry = json!({"eventType": self.event.as_str(), "entityId": self.request.service, "data": data});
        if let Some(consumer) = &self.consumer {
            entry["data"]["consumer"] = json!(consumer);
            // Names that long are nobody's: what the event is about comes first.
            if entry.to_string().len() > LARGEST_ENTRY
                && let Some(fields) = entry["data"].as_object_mut()
            {
                fields.remove("consumer");
            }
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn the_largest_event_fits_a_kilobyte() {
        let request = RequestFacts {
            connection: "c".repeat(63).as_str().into(),
            service: "s".repeat(50).as_str().into(),
            purpose: "p".repeat(63).as_str().into(),
            repo: Some("r".repeat(140)),
            run_id: "i".repeat(64),
            type_: Some("t".repeat(40)),
        };
        let uid = "0".repeat(36);
        let (namespace, name) = ("n".repeat(63), "m".repeat(63));
        let subject = Subject {
            uid: &uid,
            namespace: &namespace,
            name: &name,
            request: &request,
            revision: 1 << 40,
        };
        let at = chrono::Utc.timestamp_opt(1_700_000_000, 999_999_999).unwrap();
        let mut event = AuditEvent::new(EventType::OutcomeUnknown, Reason::OutcomeUnknown, &subject, at, true)
            .token(at, &["0".repeat(32)])
            .consumer(Some(&"c".repeat(80)));
        event.id = format!("{uid}-1234567-{}", at.timestamp_millis());
        let size = event.entry().to_string().len();
        assert!(size <= 1024, "{size}");
        let stored = serde_json::to_string(&event).unwrap().len();
        assert!(stored <= event.weight(), "{stored} > {}", event.weight());
    }

    #[test]
    fn an_entry_says_what_happened_to_whom() {
        let request = RequestFacts {
            connection: "default".into(),
            service: "chittyid".into(),
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
        let event = AuditEvent::new(EventType::Rotated, Reason::Rotated, &subject, at, true);
        assert_eq!(event.entry()["data"].get("consumer"), None);
        let entry = event.consumer(Some(&"Job/nightly".to_owned())).entry();
        assert_eq!(entry["data"]["consumer"], "Job/nightly");
        assert_eq!(entry["eventType"], "credential.rotated");
        assert_eq!(entry["entityId"], "chittyid");
        assert_eq!(entry["data"]["reason"], "Rotated");
        assert_eq!(entry["data"]["at"], "2023-11-14T22:13:20Z");
    }
}
