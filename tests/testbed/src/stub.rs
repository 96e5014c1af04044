//! A server that answers as a test says, and remembers what it was asked: for tools that talk to registries and git hosts.

use std::sync::{Arc, Mutex};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::server::{Answer, Endpoint, Handler, Reply, Server};

/// What was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    /// With the query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Asked {
    /// The text of a header; empty where it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Told {
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    #[must_use]
    pub fn json(value: &serde_json::Value) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: value.to_string().into_bytes(),
        }
    }
}

/// The running server. Dropping it stops it.
pub struct Stub {
    server: Server,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stub {
    /// On loopback; with TLS by an authority of its own.
    pub fn start(tls: bool, answer: impl Fn(&Asked) -> Told + Send + Sync + 'static) -> anyhow::Result<Self> {
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (seen, answer) = (Arc::clone(&asked), Arc::new(answer));
        let handler: Handler = Arc::new(move |request| {
            let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
            let request = Asked {
                method: request.method,
                path: path.to_owned(),
                headers: request.headers,
                body: request.body.to_vec(),
            };
            seen.lock()
                .expect("no test panics while it holds this")
                .push(request.clone());
            let answer = Arc::clone(&answer);
            // It may start a program and wait for it.
            let told = tokio::task::spawn_blocking(move || answer(&request));
            Box::pin(async move {
                match told.await {
                    Ok(told) => Reply::Answer(told.into()),
                    Err(_) => Reply::Cut,
                }
            })
        });
        let endpoint = Endpoint {
            tls: tls.then(Vec::new),
            ..Endpoint::default()
        };
        Ok(Self {
            server: Server::start("stub", &endpoint, handler)?,
            asked,
        })
    }

    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Address and port.
    #[must_use]
    pub fn authority(&self) -> String {
        self.server.authority()
    }

    /// The authority that signed its certificate, where it speaks TLS.
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        self.server.ca_pem()
    }

    /// Everything it was asked since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().expect("no test panics while it holds this"))
    }
}

impl From<Told> for Answer {
    fn from(told: Told) -> Self {
        let headers = told.headers.iter().filter_map(|(name, value)| {
            let name = HeaderName::try_from(name.as_str()).ok()?;
            Some((name, HeaderValue::try_from(value.as_str()).ok()?))
        });
        Self {
            status: StatusCode::from_u16(told.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: headers.collect(),
            body: told.body.into(),
            cut_midway: false,
            delivered: Arc::default(),
        }
    }
}
