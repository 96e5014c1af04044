//! Connections, resolved: keys read, clients built, problems found.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use chrono::TimeDelta;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::runtime::reflector::Store;
use secrecy::ExposeSecret;
use tokio::sync::{Mutex, OnceCell};
use url::Url;
use zeroize::Zeroizing;

use crate::api::{
    BrokerApi, ChittyConnection, ChittyConnectionStatus, ConditionType, DEFAULT_HOST, HeldBy, KeyRef, NameRef,
    ProxySpec, RateScope, Reason, condition, unchanged_since,
};
use crate::broker::{Api, Broker, Endpoint, Proxy};
use crate::chronicle::{Chronicle, Form};
use crate::cluster::{Cluster, Error};
use crate::core::budget::Limit;
use crate::core::hold::{Hold, hold};
use crate::core::journal::{EndpointRef, Scope};
use crate::core::outage::Gate;
use crate::core::seal::SealKey;
use crate::core::{Problem, Time, access, clock};

/// Where audit events may go without an annotation on the token's Secret.
const DEFAULT_CHRONICLE_HOST: &str = "chronicle.chitty.cc";

/// A connection that can be used.
#[derive(Debug)]
pub struct Usable {
    /// The client.
    pub broker: Broker,
    /// Digest of the API key.
    pub key_digest: String,
    /// How long an answer is waited for.
    pub timeout: TimeDelta,
    /// Where audit events go.
    pub chronicle: Option<Chronicle>,
    /// Whether it answers. Another client knows nothing of that yet.
    pub gate: parking_lot::Mutex<Gate>,
}

/// A connection as it stands.
#[derive(Clone)]
pub struct Resolved {
    /// The object.
    pub connection: Arc<ChittyConnection>,
    /// Scheme, host and port.
    pub origin: String,
    /// Its limit.
    pub limit: Limit,
    /// Whether this installation serves it, or why not: then it and its credentials are left alone.
    pub held: Result<(), String>,
    /// The client, or why there is none.
    pub usable: Result<Arc<Usable>, Problem>,
    /// Digest of its key; of the last one where it cannot be read now.
    key_digest: Option<String>,
    /// What it was built from: equal means nothing to do.
    fingerprint: String,
}

impl Resolved {
    /// The budget that requests for `service` count in; unknown where it is the key's and that was never read.
    #[must_use]
    pub fn scope(&self, service: &str) -> Option<Scope> {
        let kind = self.connection.spec.rate_limit.scope;
        let of = match kind {
            RateScope::Service => service.into(),
            RateScope::Key => self.key_digest.as_deref()?.into(),
        };
        Some(Scope {
            origin: self.origin.as_str().into(),
            kind,
            of,
        })
    }

    /// How its `ChittyConnect` is reached, by reference.
    #[must_use]
    pub fn endpoint(&self) -> Arc<EndpointRef> {
        let spec = &self.connection.spec;
        let endpoint = EndpointRef {
            url: spec.url.clone(),
            api: spec.api,
            key: spec.auth.api_key_secret_ref.clone(),
            ca: spec.ca_bundle_ref.clone(),
        };
        endpoint.shared()
    }

    /// The conditions that tell of it: whether it can be used, and whether it answers. The latter stays as it was until
    /// there is news. Where its key is refused, `probe_at` is when it is tried all the same.
    #[must_use]
    pub fn conditions(&self, previous: &[Condition], probe_at: Option<Time>, now: Time) -> Vec<Condition> {
        let available = self.available(previous, now);
        let before = || {
            previous
                .iter()
                .find(|c| c.type_ == ConditionType::Available.as_str())
                .cloned()
        };
        let mut conditions = vec![self.ready(previous, probe_at, now)];
        conditions.extend(available.or_else(before));
        conditions
    }

    fn available(&self, previous: &[Condition], now: Time) -> Option<Condition> {
        let gate = self.usable.as_ref().ok()?.gate.lock();
        let (reason, message) = match gate.outage() {
            Some(outage) => (Reason::BrokerUnavailable.as_str(), outage.next(now)),
            None => ("Answering", "ChittyConnect answered the last request".to_owned()),
        };
        let (kind, generation) = (ConditionType::Available, self.connection.metadata.generation);
        let answers = gate.answers()?;
        let since = unchanged_since(previous, kind, answers);
        Some(condition(kind, answers, reason, &message, generation, since, now))
    }

    fn ready(&self, previous: &[Condition], probe_at: Option<Time>, now: Time) -> Condition {
        let (ready, reason, message) = match (&self.usable, probe_at) {
            (Ok(_), _) if self.connection.spec.suspend => (
                false,
                Reason::Suspended.as_str(),
                "spec.suspend is true: nothing is minted by this connection, and tokens that are there are not renewed"
                    .to_owned(),
            ),
            (Ok(_), Some(at)) => {
                let probe = clock(at, now);
                let message = format!(
                    "ChittyConnect refuses the API key; nothing is asked until the key changes, except once at {probe}"
                );
                (false, Reason::Unauthorized.as_str(), message)
            }
            (Ok(_), None) => (
                true,
                "Ready",
                "the API key is there, and the connection can be used".to_owned(),
            ),
            (Err(problem), _) => (false, problem.reason.as_str(), problem.message.clone()),
        };
        let generation = self.connection.metadata.generation;
        let since = unchanged_since(previous, ConditionType::Ready, ready);
        condition(ConditionType::Ready, ready, reason, &message, generation, since, now)
    }
}

/// Why this installation does not serve a connection.
#[derive(Debug, thiserror::Error)]
enum NotHeld {
    #[error(
        "ChittyConnection {connection} is served by the installation in namespace {namespace}, so this one leaves it alone \
         and mints nothing for it: uninstall one of the two, or clear its status.heldBy once that one has stopped"
    )]
    Theirs { connection: String, namespace: String },
    #[error("it is not known yet which installation serves it: {}", .0.brief())]
    Unsure(#[from] Error),
}

/// All connections.
#[derive(Default)]
pub struct Connections {
    resolved: RwLock<BTreeMap<String, Resolved>>,
    /// One pass at a time: an older one must not write over what a newer one found.
    refreshing: Mutex<()>,
    /// This installation; it does not change while it runs.
    own: OnceCell<HeldBy>,
}

impl Connections {
    /// The connection of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Resolved> {
        self.read().get(name).cloned()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Resolved> {
        self.read().values().cloned().collect()
    }

    /// The limits that connections set for `scope`: those that could ask for it. One whose key cannot
    /// be read now still counts.
    #[must_use]
    pub fn limits(&self, scope: &Scope) -> Vec<Limit> {
        self.read()
            .values()
            .filter(|r| r.scope(&scope.of).as_ref() == Some(scope))
            .filter(|r| scope.kind == RateScope::Key || access::names_service(&r.connection.spec.access, &scope.of))
            .map(|r| r.limit)
            .collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Resolved>> {
        self.resolved.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes a connection for this installation where nobody has it.
    async fn hold(&self, cluster: &Cluster, connection: &ChittyConnection) -> Result<(), String> {
        match self.try_hold(cluster, connection).await {
            // It is not what the watch told of: one more look, at what it is now.
            Err(NotHeld::Unsure(error)) if error.is_conflict() => {
                match cluster.connection(&connection.name_any()).await {
                    Ok(Some(now)) => self.try_hold(cluster, &now).await,
                    Ok(None) => Err(NotHeld::Unsure(error)),
                    Err(error) => Err(error.into()),
                }
            }
            held => held,
        }
        .map_err(|error| error.to_string())
    }

    async fn try_hold(&self, cluster: &Cluster, connection: &ChittyConnection) -> Result<(), NotHeld> {
        let own = self.own.get_or_try_init(|| cluster.installation()).await?;
        let status = connection.status.clone().unwrap_or_default();
        let holder = status.held_by.as_ref();
        let there = match holder.filter(|holder| *holder != own) {
            Some(holder) => match cluster.namespace_uid(&holder.namespace).await {
                // It is not certain that it is gone.
                Err(error) if error.code() == Some(403) => Some(holder.uid.clone()),
                uid => uid?,
            },
            None => None,
        };
        match hold(holder, own, there.as_deref()) {
            Hold::Ours => Ok(()),
            Hold::Take => {
                let next = ChittyConnectionStatus {
                    held_by: Some(own.clone()),
                    ..status
                };
                Ok(cluster.write_connection_status(connection, &next).await?)
            }
            Hold::Theirs => Err(NotHeld::Theirs {
                connection: connection.name_any(),
                namespace: holder.map(|holder| holder.namespace.clone()).unwrap_or_default(),
            }),
        }
    }

    /// Whether this installation serves the connection of that name as it is now, and not as it was last told of.
    ///
    /// # Errors
    /// Where the connection cannot be read.
    pub async fn still_holds(&self, cluster: &Cluster, name: &str) -> Result<bool, Error> {
        let now = cluster.connection(name).await?;
        let holder = now
            .and_then(|connection| connection.status)
            .and_then(|status| status.held_by);
        Ok(holder.is_some() && holder.as_ref() == self.own.get())
    }

    /// Resolves all connections anew and returns the names of those that changed, or are gone.
    pub async fn refresh(&self, cluster: &Cluster, seal: &SealKey, store: &Store<ChittyConnection>) -> Vec<String> {
        let _alone = self.refreshing.lock().await;
        let mut connections = store.state();
        connections.sort_by_key(|c| (c.creation_timestamp(), c.name_any()));
        let before = self.read().clone();
        let mut kinds: BTreeMap<String, (RateScope, String)> = BTreeMap::new();
        let mut after = BTreeMap::new();
        let mut changed: Vec<String> = Vec::new();
        for connection in connections {
            let name = connection.name_any();
            let held = self.hold(cluster, &connection).await;
            if let Err(why) = &held
                && before.get(&name).is_none_or(|b| b.held.as_ref() != Err(why))
            {
                tracing::warn!(connection = name, "{why}");
            }
            let resolved = resolve(cluster, seal, Arc::clone(&connection), &kinds, before.get(&name), held).await;
            kinds
                .entry(resolved.origin.clone())
                .or_insert((connection.spec.rate_limit.scope, name.clone()));
            if before.get(&name).is_none_or(|b| b.fingerprint != resolved.fingerprint) {
                changed.push(name.clone());
            }
            after.insert(name, resolved);
        }
        changed.extend(before.keys().filter(|name| !after.contains_key(*name)).cloned());
        *self.resolved.write().unwrap_or_else(std::sync::PoisonError::into_inner) = after;
        changed
    }
}

async fn resolve(
    cluster: &Cluster,
    seal: &SealKey,
    connection: Arc<ChittyConnection>,
    kinds: &BTreeMap<String, (RateScope, String)>,
    before: Option<&Resolved>,
    held: Result<(), String>,
) -> Resolved {
    let spec = &connection.spec;
    let delta = |d: kube::core::Duration| TimeDelta::from_std(d.into()).unwrap_or(TimeDelta::seconds(1));
    let limit = Limit {
        limit: spec.rate_limit.limit,
        window: delta(spec.rate_limit.window),
    };
    let (origin, built) = match Url::parse(&spec.url) {
        Ok(url) => {
            let origin = url.origin().ascii_serialization();
            let built = match kinds.get(&origin) {
                Some((kind, first)) if *kind != spec.rate_limit.scope => Err(Problem::new(
                    Reason::InvalidSpec,
                    format!(
                        "rateLimit.scope must be as in connection {first}, which asks the same ChittyConnect: \
                         one budget cannot be counted in two ways"
                    ),
                )),
                _ => build(cluster, seal, &connection, &url).await,
            };
            (origin, built)
        }
        Err(_) => (
            spec.url.clone(),
            Err(Problem::new(Reason::InvalidSpec, "url cannot be parsed")),
        ),
    };
    let (usable, materials) = match built {
        Ok((usable, materials)) => (Ok(Arc::new(usable)), materials),
        Err(problem) => {
            let text = format!("{}: {}", problem.reason, problem.message);
            (Err(problem), text)
        }
    };
    let fingerprint = format!(
        "{} {} {held:?} {materials}",
        connection.uid().unwrap_or_default(),
        connection.metadata.generation.unwrap_or_default()
    );
    // The old client goes on where nothing it was built from has changed.
    let usable = match before {
        Some(b) if b.fingerprint == fingerprint => b.usable.clone(),
        _ => usable,
    };
    let key_digest = match &usable {
        Ok(usable) => Some(usable.key_digest.clone()),
        // Its limit goes on counting for whoever else has that key.
        Err(_) => before.and_then(|b| b.key_digest.clone()),
    };
    Resolved {
        connection,
        origin,
        limit,
        held,
        usable,
        key_digest,
        fingerprint,
    }
}

async fn build(
    cluster: &Cluster,
    seal: &SealKey,
    connection: &ChittyConnection,
    url: &Url,
) -> Result<(Usable, String), Problem> {
    let spec = &connection.spec;
    let timeout = TimeDelta::from_std(spec.timeout.into()).unwrap_or(TimeDelta::seconds(10));
    let proxy = proxy(cluster, spec.proxy.as_ref()).await?;
    let target = Target {
        url,
        key: &spec.auth.api_key_secret_ref,
        ca: spec.ca_bundle_ref.as_ref(),
        identity: spec.auth.client_cert_secret_ref.as_ref(),
        default_host: DEFAULT_HOST,
    };
    let endpoint = endpoint(cluster, &target, proxy.clone(), timeout).await?;
    let key_digest = seal.digest_of_key(endpoint.key.expose_secret());
    let broker = Broker::new(&endpoint, speaks(spec.api)).map_err(|e| not_ready(e.to_string()))?;
    let mut materials = vec![key_digest.clone(), secrets_digest(seal, &endpoint)];
    let audit = spec.audit.clone().unwrap_or_default();
    let chronicle = match (audit.chronicle, audit.through_connect) {
        (Some(chronicle), _) => {
            let url = Url::parse(&chronicle.url)
                .map_err(|_| Problem::new(Reason::InvalidSpec, "audit.chronicle.url cannot be parsed"))?;
            let target = Target {
                url: &url,
                key: &chronicle.token_secret_ref,
                ca: chronicle.ca_bundle_ref.as_ref(),
                identity: None,
                default_host: DEFAULT_CHRONICLE_HOST,
            };
            let endpoint = self::endpoint(cluster, &target, proxy, timeout).await?;
            materials.push(seal.digest_of_key(endpoint.key.expose_secret()));
            materials.push(secrets_digest(seal, &endpoint));
            Some((endpoint, Form::Entries))
        }
        (None, Some(_)) => Some((endpoint, Form::ThroughConnect)),
        (None, None) => None,
    };
    let chronicle = match chronicle {
        Some((endpoint, form)) => Some(Chronicle::new(&endpoint, form).map_err(|e| not_ready(format!("audit: {e}")))?),
        None => None,
    };
    let usable = Usable {
        broker,
        key_digest,
        timeout,
        chronicle,
        gate: parking_lot::Mutex::default(),
    };
    Ok((usable, materials.join(" ")))
}

/// A digest of all that an endpoint is made from besides its key and the connection itself.
fn secrets_digest(seal: &SealKey, endpoint: &Endpoint) -> String {
    let proxy = endpoint.proxy.as_ref().and_then(|proxy| proxy.credentials.as_ref());
    let (user, password) = proxy.map_or(("", ""), |(user, password)| (user, password.expose_secret()));
    let identity = endpoint.identity.as_ref().map_or(&[][..], |pem| pem);
    let identity = Zeroizing::new(String::from_utf8_lossy(identity).into_owned());
    [
        crate::core::spec::digest(endpoint.ca_bundle.iter()),
        seal.digest_of_key(&identity),
        seal.digest_of_key(&Zeroizing::new(format!("{user}\n{password}"))),
    ]
    .join(" ")
}

fn not_ready(message: String) -> Problem {
    Problem::new(Reason::ConnectionNotReady, message)
}

const fn speaks(api: BrokerApi) -> Api {
    match api {
        BrokerApi::Deploy => Api::Deploy,
        BrokerApi::Provision => Api::Provision,
    }
}

/// What is asked, as a connection names it.
struct Target<'a> {
    url: &'a Url,
    key: &'a KeyRef,
    ca: Option<&'a KeyRef>,
    identity: Option<&'a NameRef>,
    default_host: &'a str,
}

/// Reads key and certificates for a target, if they may go there.
async fn endpoint(
    cluster: &Cluster,
    to: &Target<'_>,
    proxy: Option<Proxy>,
    timeout: TimeDelta,
) -> Result<Endpoint, Problem> {
    let read = cluster.api_key(to.key).await.map_err(|e| not_ready(e.to_string()))?;
    may_go(read.host.as_deref(), to.url, Some(to.default_host), &to.key.name)?;
    let identity = match to.identity {
        Some(at) => {
            let (identity, host) = cluster.identity(&at.name).await.map_err(|e| not_ready(e.to_string()))?;
            may_go(host.as_deref(), to.url, Some(to.default_host), &at.name)?;
            Some(identity)
        }
        None => None,
    };
    let ca_bundle = match to.ca {
        Some(at) => Some(cluster.ca_bundle(at).await.map_err(|e| not_ready(e.to_string()))?),
        None => None,
    };
    Ok(Endpoint {
        url: to.url.clone(),
        key: read.key,
        ca_bundle,
        identity,
        proxy,
        timeout,
    })
}

/// The proxy that a connection names, or else the environment does.
async fn proxy(cluster: &Cluster, spec: Option<&ProxySpec>) -> Result<Option<Proxy>, Problem> {
    let Some(spec) = spec else {
        return Ok(Proxy::of_environment(|name| std::env::var(name).ok()));
    };
    let url = Url::parse(&spec.https_proxy)
        .map_err(|_| Problem::new(Reason::InvalidSpec, "proxy.httpsProxy cannot be parsed"))?;
    let credentials = match &spec.credentials_secret_ref {
        Some(at) => {
            let (credentials, host) = cluster
                .basic_auth(&at.name)
                .await
                .map_err(|e| not_ready(e.to_string()))?;
            // No proxy is known beforehand, so this Secret always names its host.
            may_go(host.as_deref(), &url, None, &at.name)?;
            Some(credentials)
        }
        None => None,
    };
    Ok(Some(Proxy {
        url: spec.https_proxy.clone(),
        no_proxy: spec.no_proxy.join(","),
        credentials,
    }))
}

/// A client for what the journal remembers of a connection that may be gone.
///
/// # Errors
/// What is missing for it by now.
pub async fn remembered(cluster: &Cluster, at: &EndpointRef) -> Result<Broker, Problem> {
    let url = Url::parse(&at.url).map_err(|_| Problem::new(Reason::InvalidSpec, "url cannot be parsed"))?;
    let target = Target {
        url: &url,
        key: &at.key,
        ca: at.ca.as_ref(),
        identity: None,
        default_host: DEFAULT_HOST,
    };
    let proxy = proxy(cluster, None).await?;
    let endpoint = endpoint(cluster, &target, proxy, TimeDelta::seconds(10)).await?;
    Broker::new(&endpoint, speaks(at.api)).map_err(|e| not_ready(e.to_string()))
}

/// What a Secret holds goes to its default host alone, unless the Secret itself names another: whoever may edit a
/// connection cannot send it elsewhere.
fn may_go(bound_to: Option<&str>, url: &Url, default: Option<&str>, secret: &str) -> Result<(), Problem> {
    let host = url.host_str().unwrap_or_default();
    let with_port = url.port().map(|port| format!("{host}:{port}"));
    let named = |name: &str| name == host || with_port.as_deref() == Some(name);
    if (default == Some(host) && url.port().is_none()) || bound_to.is_some_and(named) {
        return Ok(());
    }
    let now = match default {
        _ if bound_to.is_some() => "is for another host, as its annotation says".to_owned(),
        Some(default) => format!("may be sent to {default} alone"),
        None => "names no host it may be sent to".to_owned(),
    };
    Err(Problem::new(
        Reason::NotPermitted,
        format!(
            "what Secret {secret} holds {now}; to send it to {host}, annotate that Secret with {}={host}",
            crate::api::HOST_ANNOTATION
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(url: &str, host: Option<&str>) -> bool {
        may_go(host, &Url::parse(url).unwrap(), Some(DEFAULT_HOST), "s").is_ok()
    }

    #[test]
    fn a_key_goes_to_the_default_host_or_to_the_one_its_own_secret_names() {
        assert!(may("https://connect.chitty.cc", None));
        assert!(!may("https://evil.example", None));
        assert!(!may("https://connect.chitty.cc.evil.example", None));
        assert!(!may("https://connect.chitty.cc:8443", None));
        assert!(may("https://broker.example", Some("broker.example")));
        assert!(may("http://127.0.0.1:8080", Some("127.0.0.1")));
        assert!(may("http://127.0.0.1:8080", Some("127.0.0.1:8080")));
        assert!(!may("http://127.0.0.1:8081", Some("127.0.0.1:8080")));
    }

    #[test]
    fn what_has_no_default_host_goes_where_its_own_secret_says_and_nowhere_else() {
        let proxy = Url::parse("http://proxy.example:3128").unwrap();
        assert!(may_go(Some("proxy.example"), &proxy, None, "s").is_ok());
        assert!(may_go(None, &proxy, None, "s").is_err());
        assert!(may_go(Some("other.example"), &proxy, None, "s").is_err());
    }
}
