//! An HTTP/1 server on a thread and a runtime of its own, which can go away and come back, cut
//! connections, and does not stop working on a request because the client has left.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::pki::{Authority, Identity};
use crate::ports::free_port;

/// A request, read to its end.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What becomes of a request.
pub(crate) enum Reply {
    Answer(Answer),
    /// The connection is closed without a word.
    Cut,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Closes the connection in the middle of the body.
    pub(crate) cut_midway: bool,
    /// Set once the whole answer went out to a client that was still there.
    pub(crate) delivered: Arc<AtomicBool>,
}

pub(crate) type Reaction = Pin<Box<dyn Future<Output = Reply> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Request) -> Reaction + Send + Sync>;

/// Where a server listens and how it proves who it is.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) bind: SocketAddr,
    /// The names and addresses of its certificate; plain HTTP without.
    pub(crate) tls: Option<Vec<String>>,
    /// With TLS: clients show a certificate by the server's own authority.
    pub(crate) client_certificates: bool,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            bind: SocketAddr::new(crate::loopback(), 0),
            tls: None,
            client_certificates: false,
        }
    }
}

/// The running server. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    host: String,
    ca_pem: Option<String>,
    client: Option<Identity>,
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

struct Command {
    listen: bool,
    done: std::sync::mpsc::Sender<io::Result<()>>,
}

impl Server {
    pub(crate) fn start(name: &str, endpoint: &Endpoint, handler: Handler) -> anyhow::Result<Self> {
        let (listener, address) = bind(endpoint.bind)?;
        let ip = endpoint.bind.ip();
        let mut host = if ip.is_unspecified() {
            crate::loopback().to_string()
        } else {
            ip.to_string()
        };
        let mut ca_pem = None;
        let mut acceptor = None;
        let mut client = None;
        if let Some(sans) = &endpoint.tls {
            let ca = Authority::new(&format!("{name} simulator"))?;
            let mut sans = sans.clone();
            if !sans.contains(&host) {
                if ip.is_unspecified() && !sans.is_empty() {
                    host.clone_from(&sans[0]);
                } else {
                    sans.push(host.clone());
                }
            }
            let clients = endpoint.client_certificates.then(|| ca.pem());
            acceptor = Some(tls_acceptor(&ca.server(name, &sans)?, clients.as_deref())?);
            if endpoint.client_certificates {
                client = Some(ca.client("a client", &[])?);
            }
            ca_pem = Some(ca.pem());
        }
        let (commands, inbox) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name(format!("{name}-simulator"))
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime needs nothing that could be missing");
                runtime.block_on(run(listener, address, acceptor, handler, inbox));
            })?;
        Ok(Self {
            address,
            host,
            ca_pem,
            client,
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.ca_pem.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, self.port()).to_string(),
            Err(_) => format!("{}:{}", self.host, self.port()),
        }
    }

    pub(crate) fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// A certificate that it accepts, and its key, where it asks for one.
    pub(crate) fn client(&self) -> Option<(&str, &str)> {
        self.client
            .as_ref()
            .map(|client| (client.cert.as_str(), client.key.as_str()))
    }

    /// Stops listening and closes every connection, or listens again on the same port. Requests
    /// that are being worked on are worked on to their end.
    pub(crate) fn listen(&self, listen: bool) -> anyhow::Result<()> {
        let (done, outcome) = std::sync::mpsc::channel();
        if let Some(commands) = &self.commands {
            commands.send(Command { listen, done })?;
        }
        outcome
            .recv()
            .context("the simulator's thread is gone")?
            .with_context(|| format!("failed to listen on {}", self.address))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bind(wanted: SocketAddr) -> anyhow::Result<(std::net::TcpListener, SocketAddr)> {
    for _ in 0..5 {
        let mut address = wanted;
        if wanted.port() == 0 {
            address.set_port(free_port(wanted.ip())?);
        }
        match std::net::TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok((listener, address));
            }
            // Somebody was faster; only a drawn port can be drawn again.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && wanted.port() == 0 => {}
            Err(error) => {
                return Err(error).with_context(|| format!("failed to listen on {address}"));
            }
        }
    }
    bail!("failed to find a free port on {}", wanted.ip())
}

pub(crate) fn tls_acceptor(identity: &Identity, clients: Option<&str>) -> anyhow::Result<TlsAcceptor> {
    let certs = vec![CertificateDer::from_pem_slice(identity.cert.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(certs, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn run(
    listener: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    handler: Handler,
    mut inbox: mpsc::UnboundedReceiver<Command>,
) {
    let mut listener = TcpListener::from_std(listener).ok();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            command = inbox.recv() => {
                let Some(Command { listen, done }) = command else { return };
                let mut outcome = Ok(());
                if !listen {
                    listener = None;
                    connections.shutdown().await;
                } else if listener.is_none() {
                    match TcpListener::bind(address).await {
                        Ok(bound) => listener = Some(bound),
                        Err(error) => outcome = Err(error),
                    }
                }
                let _ = done.send(outcome);
            }
            stream = accept(listener.as_ref()) => {
                connections.spawn(connection(stream, tls.clone(), handler.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Out of file descriptors, most likely: some may come back.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, handler: Handler) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, handler).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, handler).await;
            }
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, handler: Handler) {
    let service = service_fn(|request| respond(request, handler.clone()));
    // An error is a client that left or an answer that was to be cut.
    let _ = hyper::server::conn::http1::Builder::new()
        // The simulators have a clock of their own.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(request: hyper::Request<Incoming>, handler: Handler) -> io::Result<Response<AnswerBody>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let request = Request {
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        body,
    };
    // A task of its own: hyper drops this future when the client leaves, and a mint goes on then.
    let reply = tokio::spawn(handler(request)).await;
    let Ok(Reply::Answer(answer)) = reply else {
        return Err(io::Error::other("cut"));
    };
    let mut response = Response::new(AnswerBody {
        length: answer.body.len() as u64,
        rest: answer.body,
        cut_midway: answer.cut_midway,
        delivered: answer.delivered,
    });
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

struct AnswerBody {
    length: u64,
    rest: Bytes,
    cut_midway: bool,
    delivered: Arc<AtomicBool>,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.cut_midway {
            if self.rest.len() as u64 == self.length {
                let half = self.rest.len() / 2;
                return Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(half)))));
            }
            return Poll::Ready(Some(Err(io::Error::other("cut"))));
        }
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        self.delivered.store(true, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
