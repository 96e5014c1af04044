//! A simulator of ChittyChronicle: it keeps the entries it is sent, and has bad days on request.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use rand::distr::{Alphanumeric, SampleString};
use serde_json::{Value, json};

use crate::rules::{RuleId, Rules};
use crate::server::{Answer, Endpoint, Handler, Reply, Request, Server};

/// A running ChittyChronicle. It lives on its own thread and stops when dropped.
pub struct Chronicle {
    server: Server,
    shared: Arc<Shared>,
    token: String,
}

/// Sets a [`Chronicle`] up. The default is plain HTTP on loopback, with a random token.
#[derive(Clone, Default)]
pub struct Builder {
    endpoint: Endpoint,
    token: Option<String>,
}

/// An entry it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// `eventType`
    pub event_type: String,
    /// `entityId`
    pub entity_id: String,
    /// `data`
    pub data: Value,
    /// When it arrived.
    pub received_at: DateTime<Utc>,
}

/// One thing that goes wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Refused with this status, not stored.
    Status(u16),
    /// Not stored, and the connection is closed instead of an answer.
    Cut,
    /// Stored, and the connection is closed instead of an answer.
    AnswerLost,
    /// Not stored and never answered.
    Hang,
}

/// Trouble in the making: [`Chronicle::on`].
#[must_use = "nothing goes wrong until `trouble` says what"]
pub struct TroubleBuilder<'a> {
    shared: &'a Shared,
    matcher: Matcher,
    skip: usize,
    times: Option<usize>,
}

type Matcher = Arc<dyn Fn(&Entry) -> bool + Send + Sync>;

struct Shared {
    token: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    requests: usize,
    latency: Duration,
    rules: Rules<Matcher, Trouble>,
}

impl Builder {
    /// The bearer token it takes.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Speaks TLS, with a certificate for these names and addresses (and the one it listens on).
    #[must_use]
    pub fn tls<S: Into<String>>(mut self, sans: impl IntoIterator<Item = S>) -> Self {
        self.endpoint.tls = Some(sans.into_iter().map(Into::into).collect());
        self
    }

    /// Where to listen; port 0 draws one.
    #[must_use]
    pub fn bind(mut self, address: impl Into<SocketAddr>) -> Self {
        self.endpoint.bind = address.into();
        self
    }

    /// Starts it.
    pub fn start(self) -> anyhow::Result<Chronicle> {
        let token = self.token.unwrap_or_else(|| format!("chronicle_{}", random(32)));
        let shared = Arc::new(Shared {
            token: token.clone(),
            state: Mutex::default(),
        });
        let handler: Handler = {
            let shared = Arc::clone(&shared);
            Arc::new(move |request| Box::pin(Arc::clone(&shared).handle(request)))
        };
        Ok(Chronicle {
            server: Server::start("chittychronicle", &self.endpoint, handler)?,
            shared,
            token,
        })
    }
}

impl Chronicle {
    /// Plain HTTP on loopback.
    pub fn start() -> anyhow::Result<Self> {
        Self::builder().start()
    }

    /// Anything else.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The authority that signed its certificate, where it speaks TLS.
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        self.server.ca_pem()
    }

    /// The bearer token it takes.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// What it stored, in the order of arrival, repeats included.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.shared.state().entries.clone()
    }

    /// How many requests arrived, whatever became of them.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.shared.state().requests
    }

    /// How long every answer takes from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.state().latency = latency;
    }

    /// Begins trouble for these entries: `chronicle.on(|_| true).times(3).trouble(...)`. An entry
    /// meets the first that applies, and only that.
    pub fn on(&self, matcher: impl Fn(&Entry) -> bool + Send + Sync + 'static) -> TroubleBuilder<'_> {
        TroubleBuilder {
            shared: &self.shared,
            matcher: Arc::new(matcher),
            skip: 0,
            times: None,
        }
    }

    /// How many entries met that trouble.
    #[must_use]
    pub fn hits(&self, trouble: RuleId) -> usize {
        self.shared.state().rules.hits(trouble)
    }

    /// Ends all trouble.
    pub fn clear_trouble(&self) {
        self.shared.state().rules.end_all();
    }

    /// Stops listening: connections are refused, and open ones closed.
    pub fn go_down(&self) -> anyhow::Result<()> {
        self.server.listen(false)
    }

    /// Listens again, on the same port.
    pub fn come_back(&self) -> anyhow::Result<()> {
        self.server.listen(true)
    }
}

impl fmt::Debug for Chronicle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chronicle")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

impl TroubleBuilder<'_> {
    /// Only so many entries, then no more. Without this: until cleared.
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    /// Not the first so many.
    pub fn skip(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// What goes wrong, from now on.
    #[allow(clippy::must_use_candidate, reason = "the id is for those who count")]
    pub fn trouble(self, trouble: Trouble) -> RuleId {
        let mut state = self.shared.state();
        state.rules.add(self.matcher, self.skip, self.times, trouble)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(self: Arc<Self>, request: Request) -> Reply {
        let latency = {
            let mut state = self.state();
            state.requests += 1;
            state.latency
        };
        tokio::time::sleep(latency).await;
        if request.method != Method::POST || request.uri.path() != "/api/entries" {
            return answer(404, &json!({"error": "Not found"}));
        }
        let authorization = request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        if authorization.and_then(|value| value.strip_prefix("Bearer ")) != Some(&self.token) {
            return answer(401, &json!({"error": "Unauthorized"}));
        }
        let Some(entry) = read(&request.body) else {
            return answer(400, &json!({"error": "eventType and entityId are required"}));
        };
        let trouble = self.state().rules.take(|matches| matches(&entry));
        match trouble {
            None => {
                self.state().entries.push(entry);
                let timestamp = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
                let id = format!("entry_{}", random(16));
                answer(200, &json!({"success": true, "id": id, "timestamp": timestamp}))
            }
            Some(Trouble::Status(status)) => answer(status, &json!({"error": "Not today"})),
            Some(Trouble::Cut) => Reply::Cut,
            Some(Trouble::AnswerLost) => {
                self.state().entries.push(entry);
                Reply::Cut
            }
            Some(Trouble::Hang) => std::future::pending().await,
        }
    }
}

fn read(body: &[u8]) -> Option<Entry> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let text = |name: &str| Some(body.get(name)?.as_str()?.to_owned());
    Some(Entry {
        event_type: text("eventType")?,
        entity_id: text("entityId")?,
        data: body.get("data").cloned().unwrap_or_default(),
        received_at: Utc::now(),
    })
}

fn answer(status: u16, body: &Value) -> Reply {
    let mut headers = HeaderMap::new();
    let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(date) = HeaderValue::try_from(date) {
        headers.insert(DATE, date);
    }
    Reply::Answer(Answer {
        status: StatusCode::from_u16(status).expect("tests set valid statuses"),
        headers,
        body: body.to_string().into(),
        cut_midway: false,
        delivered: Arc::default(),
    })
}

fn random(length: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), length)
}
