//! A reverse proxy that hands everything on, but for the call that something is to happen to.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::gate::{Fault, Gate, HELD_UP, Peer, Verdict, Weather};

/// How long a process that is killed right after an answer has to do something about it.
const A_MOMENT: Duration = Duration::from_millis(15);

/// The running proxy. Dropping it stops it, and cuts its connections.
pub struct FaultProxy {
    address: SocketAddr,
    _task: JoinSet<()>,
}

/// Where calls go.
#[derive(Clone)]
pub(super) struct Upstream {
    pub(super) peer: Peer,
    /// Scheme and authority.
    pub(super) url: String,
    pub(super) client: reqwest::Client,
}

type Reply = Response<BoxBody<Bytes, io::Error>>;

impl FaultProxy {
    /// On a port of loopback; with `tls` for clients that speak it.
    pub(super) async fn start(upstream: Upstream, gate: Gate, tls: Option<TlsAcceptor>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((crate::loopback(), 0))
            .await
            .context("failed to listen")?;
        let address = listener.local_addr()?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            // They go with this task.
            let mut connections = JoinSet::new();
            let upstream = Arc::new(upstream);
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        let _ = stream.set_nodelay(true);
                        let (upstream, gate, tls) = (Arc::clone(&upstream), gate.clone(), tls.clone());
                        connections.spawn(async move {
                            match tls {
                                None => serve(stream, upstream, gate).await,
                                Some(tls) => if let Ok(stream) = tls.accept(stream).await {
                                    serve(stream, upstream, gate).await;
                                }
                            }
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, _task: task })
    }

    /// Host and port.
    #[must_use]
    pub fn authority(&self) -> String {
        self.address.to_string()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, upstream: Arc<Upstream>, gate: Gate) {
    let service = service_fn(|request| {
        // A task of its own: hyper drops this future when the client leaves, and what was sent arrives all the same.
        let handled = tokio::spawn(handle(request, Arc::clone(&upstream), gate.clone()));
        async { handled.await.unwrap_or_else(|ended| Err(io::Error::other(ended))) }
    });
    // An error is a client that left, or a connection that was to be cut.
    let _ = hyper::server::conn::http1::Builder::new()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn handle(request: Request<Incoming>, upstream: Arc<Upstream>, gate: Gate) -> io::Result<Reply> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if matches!(parts.method, Method::GET | Method::HEAD) {
        let watched = watched(&parts.uri);
        if watched.is_some_and(|kind| gate.is_gone(kind)) {
            return Ok(refusal(upstream.peer, &parts.method, 410));
        }
        let watch = watched.map(|kind| (kind.to_owned(), gate.weather()));
        return forward(&upstream, &parts.method, &parts.uri, parts.headers, body, watch).await;
    }
    let described = describe(upstream.peer, &parts.method, &parts.uri, &body);
    let Verdict { call, fault, kill } = gate.arrives(described);
    let send = async || {
        let reply = forward(
            &upstream,
            &parts.method,
            &parts.uri,
            parts.headers.clone(),
            body.clone(),
            None,
        )
        .await;
        if let Ok(reply) = &reply {
            gate.answered(call, reply.status().as_u16());
        }
        reply
    };
    let Some(fault) = fault else { return send().await };
    let reply = match fault {
        Fault::Lost => {
            killed(kill).await;
            Err(io::Error::other("lost"))
        }
        Fault::AnswerLost => {
            let _ = send().await;
            killed(kill).await;
            Err(io::Error::other("answer lost"))
        }
        Fault::Status(_) | Fault::Down => {
            if kill.is_some() {
                tokio::spawn(async {
                    tokio::time::sleep(A_MOMENT).await;
                    killed(kill).await;
                });
            }
            let code = if let Fault::Status(code) = fault { code } else { 500 };
            Ok(refusal(upstream.peer, &parts.method, code))
        }
        Fault::Slow => {
            killed(kill).await;
            tokio::time::sleep(HELD_UP).await;
            send().await
        }
        // These are no calls.
        Fault::Stale | Fault::Cut | Fault::Gone | Fault::Unseen => send().await,
    };
    gate.over();
    reply
}

async fn killed(kill: Option<oneshot::Sender<oneshot::Sender<()>>>) {
    if let Some(kill) = kill {
        let (done, is_done) = oneshot::channel();
        if kill.send(done).is_ok() {
            let _ = is_done.await;
        }
    }
}

async fn forward(
    upstream: &Upstream,
    method: &Method,
    uri: &Uri,
    mut headers: HeaderMap,
    body: Bytes,
    watch: Option<(String, watch::Receiver<Weather>)>,
) -> io::Result<Reply> {
    for ours in [HOST, CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
        headers.remove(ours);
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let url = format!("{}{path}", upstream.url);
    let request = upstream.client.request(method.clone(), url).headers(headers).body(body);
    let mut answer = request.send().await.map_err(io::Error::other)?;
    let mut headers = std::mem::take(answer.headers_mut());
    for ours in [CONNECTION, TRANSFER_ENCODING] {
        headers.remove(ours);
    }
    let status = answer.status();
    let body = if headers.contains_key(CONTENT_LENGTH) {
        let whole = answer.bytes().await.map_err(io::Error::other)?;
        Full::new(whole).map_err(never).boxed()
    } else {
        // A watch, most likely: as it comes.
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut weather = Passing::of(watch);
            loop {
                let chunk = tokio::select! {
                    chunk = answer.chunk() => chunk,
                    () = sender.closed() => return,
                    () = weather.cut() => {
                        let _ = sender.send(Err(io::Error::other("cut"))).await;
                        return;
                    }
                };
                if !weather.calms().await {
                    let _ = sender.send(Err(io::Error::other("cut"))).await;
                    return;
                }
                let (frame, last) = match chunk {
                    Ok(Some(chunk)) => (Ok(Frame::data(chunk)), false),
                    Ok(None) => return,
                    Err(error) => (Err(io::Error::other(error)), true),
                };
                if sender.send(frame).await.is_err() || last {
                    return;
                }
            }
        });
        Streamed(receiver).boxed()
    };
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    Ok(reply)
}

/// What a watch passes through; nothing else is held up or cut.
struct Passing {
    watch: Option<(String, watch::Receiver<Weather>)>,
    cuts: usize,
}

impl Passing {
    fn of(watch: Option<(String, watch::Receiver<Weather>)>) -> Self {
        let cuts = watch.as_ref().map_or(0, |(kind, weather)| weather.borrow().cuts(kind));
        Self { watch, cuts }
    }

    async fn cut(&mut self) {
        if let Some((kind, weather)) = &mut self.watch
            && weather.wait_for(|weather| weather.cuts(kind) > self.cuts).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Waits until it is held back no more; false where it is cut then.
    async fn calms(&mut self) -> bool {
        let Some((kind, weather)) = &mut self.watch else {
            return true;
        };
        let after = weather.wait_for(|weather| !weather.holds(kind)).await;
        after.is_ok_and(|weather| weather.cuts(kind) == self.cuts)
    }
}

fn never(impossible: Infallible) -> io::Error {
    match impossible {}
}

struct Streamed(mpsc::Receiver<io::Result<Frame<Bytes>>>);

impl hyper::body::Body for Streamed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context)
    }
}

/// An answer in the words of whom the call was for.
fn refusal(peer: Peer, method: &Method, code: u16) -> Reply {
    let body = match peer {
        Peer::ApiServer => {
            let reason = match code {
                409 if *method == Method::POST => "AlreadyExists",
                409 => "Conflict",
                410 => "Expired",
                429 => "TooManyRequests",
                _ => "InternalError",
            };
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "perturbed", "reason": reason, "code": code,
            })
        }
        Peer::Connect => json!({"success": false, "error": {"code": "PERTURBED", "message": "perturbed"}}),
        Peer::Chronicle => json!({"error": "perturbed"}),
    };
    let mut reply = Response::new(Full::new(Bytes::from(body.to_string())).map_err(never).boxed());
    *reply.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(CONTENT_TYPE, json);
    reply
}

/// What a call watches, if it does.
fn watched(uri: &Uri) -> Option<&str> {
    let mut pairs = uri.query()?.split('&');
    pairs.find(|pair| matches!(*pair, "watch=true" | "watch=1"))?;
    uri.path().rsplit('/').next()
}

/// A call without what differs from run to run.
fn describe(peer: Peer, method: &Method, uri: &Uri, body: &[u8]) -> String {
    if peer != Peer::ApiServer {
        return format!("{peer} {method} {}", uri.path());
    }
    let segments: Vec<&str> = uri.path().split('/').filter(|s| !s.is_empty()).collect();
    let rest = match segments.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        other => other,
    };
    let (kind, name, under) = match rest {
        ["namespaces", _, kind, rest @ ..] | [kind, rest @ ..] => (*kind, rest.first().copied(), rest.get(1).copied()),
        [] => ("", None, None),
    };
    let name = name.map(str::to_owned).or_else(|| {
        let body: Value = serde_json::from_slice(body).ok()?;
        Some(body["metadata"]["name"].as_str()?.to_owned())
    });
    let name = name.as_deref().map(|name| plain(kind, name)).unwrap_or_default();
    let under = under.map(|under| format!("/{under}")).unwrap_or_default();
    let dry = uri.query().is_some_and(|query| query.contains("dryRun"));
    format!(
        "{peer} {method} {kind}/{name}{under}{}",
        if dry { " (dry run)" } else { "" }
    )
}

fn plain<'a>(kind: &str, name: &'a str) -> &'a str {
    if kind == "events" || kind == "chittyconnections" {
        return "";
    }
    let name = name.trim_start_matches("long");
    match name.strip_prefix("chitty-journal-") {
        Some(rest) if rest.starts_with("index-") => "index",
        Some(rest) if rest.contains('-') => "page",
        Some(_) => "head",
        None => name,
    }
}
