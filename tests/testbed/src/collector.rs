//! A collector of traces: it takes OTLP over HTTP in JSON, decodes it with OpenTelemetry's own types, and keeps it.

use std::sync::{Arc, Mutex, PoisonError};

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
pub use opentelemetry_proto::tonic::common::v1::AnyValue as Value;
use opentelemetry_proto::tonic::common::v1::any_value;
pub use opentelemetry_proto::tonic::trace::v1::Span;

use crate::server::{Answer, Endpoint, Handler, Reply, Request, Server};

/// A running collector. It lives on its own thread and stops when dropped.
pub struct Collector {
    server: Server,
    taken: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    /// On loopback, over plain HTTP.
    pub fn start() -> anyhow::Result<Self> {
        let taken = Arc::<Mutex<Vec<_>>>::default();
        let shared = Arc::clone(&taken);
        let handler: Handler = Arc::new(move |request| {
            let status = take(&request, &shared);
            Box::pin(async move {
                Reply::Answer(Answer {
                    status,
                    headers: HeaderMap::new(),
                    body: "{}".into(),
                    cut_midway: false,
                    delivered: Arc::default(),
                })
            })
        });
        let server = Server::start("collector", &Endpoint::default(), handler)?;
        Ok(Self { server, taken })
    }

    /// What `--otlp-endpoint` is to say.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Every request that was taken.
    #[must_use]
    pub fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every span that was taken.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        let resources = self.requests().into_iter().flat_map(|r| r.resource_spans);
        let scopes = resources.flat_map(|r| r.scope_spans);
        scopes.flat_map(|s| s.spans).collect()
    }
}

/// The text that an attribute holds, where it holds one.
#[must_use]
pub fn text(value: &Value) -> Option<String> {
    match &value.value {
        Some(any_value::Value::StringValue(text)) => Some(text.clone()),
        _ => None,
    }
}

fn take(request: &Request, taken: &Mutex<Vec<ExportTraceServiceRequest>>) -> StatusCode {
    if request.method != Method::POST || request.uri.path() != "/v1/traces" {
        return StatusCode::NOT_FOUND;
    }
    if request
        .headers
        .get(CONTENT_TYPE)
        .is_none_or(|kind| kind != "application/json")
    {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE;
    }
    match serde_json::from_slice(&request.body) {
        Ok(decoded) => {
            taken.lock().unwrap_or_else(PoisonError::into_inner).push(decoded);
            StatusCode::OK
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}
