//! One HTTP exchange: sent once, read up to a cap, and told apart by what its end proves.
//!
//! This module knows no API. What it must never do is replay a request, follow a redirect, or let a
//! body out of the buffers that wipe themselves.

use std::error::Error as _;
use std::{fmt, io};

use chrono::TimeDelta;
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, StatusCode};
use reqwest::{Certificate, Client, ClientBuilder, Identity, RequestBuilder, Response, redirect, retry};
use secrecy::{ExposeSecret, SecretString};
use url::Url;
use zeroize::Zeroizing;

use super::proxy::Proxy;

/// Most of a body that is read: an answer is a kilobyte or two.
pub(crate) const BODY_LIMIT: usize = 256 * 1024;
/// Room for a body of which the server does not tell how long it is: all of it is wiped.
const BODY_USUAL: usize = 4 * 1024;

/// How to reach a service: where, with which key, whom to trust, how long to wait.
pub struct Endpoint {
    /// Base URL.
    pub url: Url,
    /// The bearer key. White space around it is dropped: files end in line breaks.
    pub key: SecretString,
    /// PEM certificates to trust instead of the system's.
    pub ca_bundle: Option<Vec<u8>>,
    /// PEM certificate and private key to show who asks.
    pub identity: Option<Zeroizing<Vec<u8>>>,
    /// The proxy to go through, where it is for this host.
    pub proxy: Option<Proxy>,
    /// How long to wait for a whole answer. Half of it may pass before there is a connection.
    pub timeout: TimeDelta,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("origin", &origin(&self.url))
            .field("own_ca_bundle", &self.ca_bundle.is_some())
            .field("own_identity", &self.identity.is_some())
            .field("proxy", &self.proxy)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Why a client could not be set up. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Not a base URL.
    #[error("the URL must be an http or https URL without user, query and fragment")]
    Url,
    /// Not a key.
    #[error("the key is empty, or holds characters that no HTTP header can carry: check its Secret")]
    Key,
    /// No certificates in the bundle.
    #[error("the CA bundle holds no PEM certificate that can be read: check caBundleRef")]
    CaBundle,
    /// No certificate to show, or not its key.
    #[error(
        "the client certificate cannot be used: check tls.crt and tls.key of the Secret in auth.clientCertSecretRef"
    )]
    Identity,
    /// Not a proxy.
    #[error("the proxy's URL must be http://host:port or https://host:port: check spec.proxy, or HTTPS_PROXY")]
    Proxy,
    /// No certificates on the system.
    #[error("no trusted CA certificates are installed here: set caBundleRef, or add them to the image")]
    NoRoots,
    /// No cryptography.
    #[error("no TLS provider is installed in this process")]
    NoProvider,
    /// Something else.
    #[error("the HTTP client could not be set up")]
    Client,
}

/// Whether a request may have had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sent {
    /// It provably never left: there was no connection.
    No,
    /// It was answered.
    Yes,
    /// It may have arrived, and no whole answer came.
    Unknown,
}

/// Why no whole answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransportError {
    Unresolved,
    NotConnected,
    Untrusted,
    ConnectTimeout,
    /// The server wants to know who asks, and does not take the certificate it was shown, if any.
    Unproven,
    Proxy(ProxyLost),
    Unbuilt,
    Timeout,
    Cut,
}

/// What is wrong with the way through a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyLost {
    Unresolved,
    NotConnected,
    Timeout,
    Unauthorized,
    Refused,
}

impl TransportError {
    pub(crate) const fn sent(self) -> Sent {
        match self {
            Self::Timeout | Self::Cut => Sent::Unknown,
            _ => Sent::No,
        }
    }

    /// A clause for a person, after "cannot be reached: " where nothing was sent.
    pub(crate) const fn phrase(self) -> &'static str {
        match self {
            Self::Unresolved => "its host name does not resolve",
            Self::NotConnected => "no connection came about",
            Self::Untrusted => "no TLS session came about, so check its certificate and caBundleRef",
            Self::ConnectTimeout => "no connection came about in time",
            Self::Unproven => {
                "it does not accept the client certificate, or asks for one: check auth.clientCertSecretRef"
            }
            Self::Proxy(ProxyLost::Unresolved) => "the host name of the proxy does not resolve",
            Self::Proxy(ProxyLost::NotConnected) => "no connection to the proxy came about",
            Self::Proxy(ProxyLost::Timeout) => "the proxy opened no way to it in time",
            Self::Proxy(ProxyLost::Unauthorized) => "the proxy asks for other credentials (407)",
            Self::Proxy(ProxyLost::Refused) => "the proxy opens no way to it",
            Self::Unbuilt => "the request cannot be written as HTTP",
            Self::Timeout => "no answer came in time",
            Self::Cut => "the connection ended before the answer did",
        }
    }
}

/// An answer. Deliberately without `Debug`: the body may hold a token.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// `None` where it is larger than [`BODY_LIMIT`].
    pub(crate) body: Option<Zeroizing<Vec<u8>>>,
}

/// Whether connections are kept for the next request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionReuse {
    /// A kept connection may be dead, and then nobody can say whether the request left.
    OneRequestEach,
    Kept,
}

/// A client of one endpoint.
#[derive(Clone)]
pub(crate) struct Wire {
    client: Client,
    base: Url,
    bearer: SecretString,
    proxied: bool,
    pub(crate) timeout: TimeDelta,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&origin(&self.base))
    }
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

impl Wire {
    pub(crate) fn new(endpoint: &Endpoint, connections: ConnectionReuse) -> Result<Self, BuildError> {
        let url = &endpoint.url;
        let plain = match url.scheme() {
            "http" => true,
            "https" => false,
            _ => return Err(BuildError::Url),
        };
        let extras = url.query().or(url.fragment()).is_some();
        if extras || !url.username().is_empty() || url.password().is_some() || !url.has_host() {
            return Err(BuildError::Url);
        }
        let key = endpoint.key.expose_secret().trim();
        let bearer = SecretString::from(format!("Bearer {key}"));
        if key.is_empty() || HeaderValue::from_str(bearer.expose_secret()).is_err() {
            return Err(BuildError::Key);
        }
        // Without this check reqwest panics.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(BuildError::NoProvider);
        }
        let own_roots = endpoint.ca_bundle.as_deref();
        let total = endpoint.timeout.to_std().unwrap_or_default();
        let builder = Client::builder()
            .https_only(!plain)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .http1_only()
            // The process' environment is not reqwest's to read: loopback goes through no proxy.
            .no_proxy()
            // Shorter than the whole, so that "no connection" and "no answer" can be told apart.
            .connect_timeout(total / 2)
            .timeout(total);
        let builder = match connections {
            ConnectionReuse::OneRequestEach => builder.pool_max_idle_per_host(0),
            ConnectionReuse::Kept => builder.pool_max_idle_per_host(1),
        };
        let proxy = match &endpoint.proxy {
            Some(proxy) => proxy.between(url).map_err(|_| BuildError::Proxy)?,
            None => None,
        };
        let proxied = proxy.is_some();
        let builder = match proxy {
            Some(proxy) => builder.proxy(proxy),
            None => builder,
        };
        let builder = match &endpoint.identity {
            Some(pem) => builder.identity(Identity::from_pem(pem).map_err(|_| BuildError::Identity)?),
            None => builder,
        };
        let client = trusting(builder, own_roots, plain)?
            .build()
            .map_err(|error| match own_roots {
                // Its key was read: it is not this certificate's.
                _ if is_key_mismatch(&error) => BuildError::Identity,
                Some(_) => BuildError::CaBundle,
                None if lacks_roots(&error) => BuildError::NoRoots,
                None => BuildError::Client,
            })?;
        Ok(Self {
            client,
            base: url.clone(),
            bearer,
            proxied,
            timeout: endpoint.timeout,
        })
    }

    /// A request to `path` below the base URL.
    pub(crate) fn request(&self, method: Method, path: &str, query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments
                .pop_if_empty()
                .extend(path.split('/').filter(|part| !part.is_empty()));
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self
            .client
            .request(method, url)
            .header(
                USER_AGENT,
                concat!("chittyconnect-operator/", env!("CARGO_PKG_VERSION")),
            )
            .header(ACCEPT, "application/json");
        match HeaderValue::from_str(self.bearer.expose_secret()) {
            Ok(mut bearer) => {
                bearer.set_sensitive(true);
                request.header(AUTHORIZATION, bearer)
            }
            // Checked when this client was built.
            Err(_) => request,
        }
    }

    /// Sends a request once and reads its answer.
    pub(crate) async fn exchange(&self, request: RequestBuilder) -> Result<Reply, TransportError> {
        let lost = |error: &reqwest::Error| lost(error, self.proxied);
        let mut response = request.send().await.map_err(|error| lost(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match read(&mut response).await {
            Ok(body) => body,
            // Whatever a refusal goes on to say, its status has said it.
            Err(_) if !status.is_success() => Some(Zeroizing::default()),
            Err(error) => return Err(lost(&error)),
        };
        Ok(Reply { status, headers, body })
    }
}

fn trusting(builder: ClientBuilder, own_roots: Option<&[u8]>, plain: bool) -> Result<ClientBuilder, BuildError> {
    match own_roots {
        Some(pem) => {
            let roots = Certificate::from_pem_bundle(pem).map_err(|_| BuildError::CaBundle)?;
            if roots.is_empty() {
                return Err(BuildError::CaBundle);
            }
            Ok(builder.tls_certs_only(roots))
        }
        // Plain http trusts nobody and must work in an image without certificates.
        None if plain => Ok(builder.tls_certs_only([])),
        None => Ok(builder),
    }
}

async fn read(response: &mut Response) -> reqwest::Result<Option<Zeroizing<Vec<u8>>>> {
    let told = response.content_length().and_then(|n| usize::try_from(n).ok());
    let mut body = Zeroizing::new(Vec::with_capacity(told.unwrap_or(BODY_USUAL).min(BODY_LIMIT)));
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Ok(None);
        }
        append(&mut body, &chunk);
    }
    Ok(Some(body))
}

/// A buffer that grows by itself leaves copies behind that nobody wipes.
fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if body.capacity() - body.len() < chunk.len() {
        let mut grown = Zeroizing::new(Vec::with_capacity((body.len() + chunk.len()) * 2));
        grown.extend_from_slice(body);
        *body = grown;
    }
    body.extend_from_slice(chunk);
}

fn lost(error: &reqwest::Error, proxied: bool) -> TransportError {
    if error.is_builder() {
        TransportError::Unbuilt
    } else if is_unproven(error) {
        // The handshake is over for us and not for the server: it has read nothing of the request.
        TransportError::Unproven
    } else if error.is_connect() {
        let untrusted = tls(error).is_some();
        match (proxied, error.is_timeout(), error.is_dns()) {
            (false, true, _) => TransportError::ConnectTimeout,
            (false, _, true) => TransportError::Unresolved,
            (_, false, _) if untrusted => TransportError::Untrusted,
            (false, ..) => TransportError::NotConnected,
            (true, true, _) => TransportError::Proxy(ProxyLost::Timeout),
            (true, _, true) => TransportError::Proxy(ProxyLost::Unresolved),
            (true, ..) => TransportError::Proxy(lost_proxy(error)),
        }
    } else if error.is_timeout() {
        TransportError::Timeout
    } else {
        TransportError::Cut
    }
}

/// Where the way through a proxy ended. The errors of hyper's tunnel are not public but for their texts; those that a
/// later version words otherwise are the proxy's refusal.
fn lost_proxy(error: &reqwest::Error) -> ProxyLost {
    let mut next = error.source();
    while let Some(error) = next {
        match error.to_string().as_str() {
            "tunnel error: proxy authorization required" => return ProxyLost::Unauthorized,
            "tunnel error: failed to create underlying connection" | "tcp connect error" => {
                return ProxyLost::NotConnected;
            }
            _ => next = error.source(),
        }
    }
    ProxyLost::Refused
}

/// Whether the server ended the handshake for want of a client certificate it takes.
fn is_unproven(error: &reqwest::Error) -> bool {
    use rustls::AlertDescription::{
        BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown, UnknownCA,
        UnsupportedCertificate,
    };
    let Some(rustls::Error::AlertReceived(alert)) = tls(error) else {
        return false;
    };
    matches!(
        alert,
        BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | UnknownCA
            | UnsupportedCertificate
    )
}

fn is_key_mismatch(error: &reqwest::Error) -> bool {
    matches!(tls(error), Some(rustls::Error::InconsistentKeys(_)))
}

fn lacks_roots(error: &reqwest::Error) -> bool {
    // rustls' platform verifier has no variant of its own for this.
    matches!(tls(error), Some(rustls::Error::General(_)))
}

/// The TLS error at the bottom of this one. An `io::Error` hides the error it wraps from `source()`.
fn tls(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
