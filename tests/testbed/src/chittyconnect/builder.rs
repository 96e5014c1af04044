//! How a simulator is set up before it starts.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;

use super::ChittyConnect;
use super::limits::{DeployLimit, KeyLimit, ProvisionLimit, Scope};
use super::matching::Route;
use super::outputs::random;
use super::simulator::{Settings, Simulator};
use crate::server::{Endpoint, Handler, Server};

const HOUR: Duration = Duration::from_secs(3600);

/// Sets a [`ChittyConnect`] up. The default is the documented one, over plain HTTP on loopback.
#[derive(Clone, Debug)]
pub struct Builder {
    endpoint: Endpoint,
    ttl: Duration,
    deploy_limit: Option<DeployLimit>,
    provision_limit: Option<ProvisionLimit>,
    key_limit: Option<KeyLimit>,
    retry_after: Option<Duration>,
    undated: bool,
    unserved: BTreeSet<Route>,
    key: Option<(String, String)>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            endpoint: Endpoint::default(),
            ttl: HOUR,
            deploy_limit: Some(DeployLimit {
                limit: 10,
                window: HOUR,
                scope: Scope::Service,
            }),
            provision_limit: Some(ProvisionLimit::default()),
            key_limit: None,
            retry_after: None,
            undated: false,
            unserved: BTreeSet::new(),
            key: None,
        }
    }
}

impl Builder {
    /// How long the deploy API's tokens live.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The deploy API's limit, in any window of that length; `None` for no limit.
    #[must_use]
    pub fn limit(mut self, limit: impl Into<Option<u32>>, window: Duration, scope: Scope) -> Self {
        self.deploy_limit = limit.into().map(|limit| DeployLimit { limit, window, scope });
        self
    }

    /// The deploy API's 429 names this time. By default it names none.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The provision API's accounting; `None` for no limit.
    #[must_use]
    pub fn provision_limit(mut self, limit: impl Into<Option<ProvisionLimit>>) -> Self {
        self.provision_limit = limit.into();
        self
    }

    /// Turns on the limiter per key, which answers with `Retry-After: 60` and says its standing in
    /// `X-RateLimit-*` headers on every answer.
    #[must_use]
    pub fn key_limit(mut self, limit: u32, window: Duration) -> Self {
        self.key_limit = Some(KeyLimit { limit, window });
        self
    }

    /// Counts as a real one was seen to, and answers without a `Date` header as that does.
    #[must_use]
    pub fn as_observed(mut self) -> Self {
        self.undated = true;
        self.provision_limit(ProvisionLimit::observed())
    }

    /// No rate limit at all.
    #[must_use]
    pub fn without_limits(mut self) -> Self {
        self.deploy_limit = None;
        self.provision_limit = None;
        self.key_limit = None;
        self
    }

    /// Speaks TLS, with a certificate for these names and addresses (and the one it listens on) by
    /// an authority of its own.
    #[must_use]
    pub fn tls<S: Into<String>>(mut self, sans: impl IntoIterator<Item = S>) -> Self {
        self.endpoint.tls = Some(sans.into_iter().map(Into::into).collect());
        self
    }

    /// With TLS: answers only those who show the certificate of [`ChittyConnect::client_certificate`].
    #[must_use]
    pub fn client_certificates(mut self) -> Self {
        self.endpoint.client_certificates = true;
        self
    }

    /// Speaks plain HTTP.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.endpoint.tls = None;
        self
    }

    /// Where to listen; port 0 draws one.
    #[must_use]
    pub fn bind(mut self, address: impl Into<SocketAddr>) -> Self {
        self.endpoint.bind = address.into();
        self
    }

    /// Answers 404 there, as a server that does not have that API.
    #[must_use]
    pub fn without(mut self, route: Route) -> Self {
        self.unserved.insert(route);
        self
    }

    /// The first API key and its owner, instead of a random one of `testbed`'s.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>, owner: impl Into<String>) -> Self {
        self.key = Some((key.into(), owner.into()));
        self
    }

    /// Starts it.
    pub fn start(self) -> anyhow::Result<ChittyConnect> {
        let simulator = Arc::new(Simulator::new(Settings {
            ttl: TimeDelta::from_std(self.ttl)?,
            deploy_limit: self.deploy_limit,
            provision_limit: self.provision_limit,
            key_limit: self.key_limit,
            retry_after: self.retry_after,
            undated: self.undated,
            unserved: self.unserved,
        }));
        let (api_key, owner) = self
            .key
            .unwrap_or_else(|| (format!("chitty_test_{}", random(32)), "testbed".to_owned()));
        simulator.state().keys.add(&api_key, &owner);
        let handler: Handler = {
            let simulator = Arc::clone(&simulator);
            Arc::new(move |request| Box::pin(Arc::clone(&simulator).handle(request)))
        };
        Ok(ChittyConnect {
            server: Server::start("chittyconnect", &self.endpoint, handler)?,
            simulator,
            api_key,
        })
    }
}
