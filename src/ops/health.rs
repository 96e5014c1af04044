//! `/livez`: the process runs. `/readyz`: it has read what it needs; until then it says what it waits for.
//! `/log-level`: what is logged, read and set by whoever is on this machine, such as `kubectl port-forward`.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit};
use axum::http::StatusCode;
use axum::routing::{MethodRouter, get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::telemetry::LogLevel;

/// No filter worth having is longer.
const MOST_DIRECTIVES: usize = 4096;
const ONLY_LOCAL: &str = "only from this machine: kubectl port-forward\n";

/// What readiness waits for, if anything. Cheap to clone.
#[derive(Clone)]
pub struct Health(Arc<Mutex<Option<String>>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some("the start".to_owned()))))
    }
}

impl Health {
    /// Not ready: says what for.
    pub fn waiting_for(&self, what: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_owned());
    }

    /// Ready.
    pub fn ready(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn state(&self) -> (StatusCode, String) {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {what}\n")),
        }
    }
}

/// What is logged, for those on this machine: RBAC's right to forward ports is what it takes to be one of them.
fn log_level(level: LogLevel) -> MethodRouter {
    let set = level.clone();
    let read = async move |ConnectInfo(from): ConnectInfo<SocketAddr>| {
        if is_local(from) {
            (StatusCode::OK, level.get() + "\n")
        } else {
            (StatusCode::FORBIDDEN, ONLY_LOCAL.to_owned())
        }
    };
    let write = async move |ConnectInfo(from): ConnectInfo<SocketAddr>, directives: String| {
        if !is_local(from) {
            return (StatusCode::FORBIDDEN, ONLY_LOCAL.to_owned());
        }
        match set.set(&directives) {
            Ok(()) => {
                tracing::info!(log = set.get(), "what is logged was changed");
                (StatusCode::OK, set.get() + "\n")
            }
            Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")),
        }
    };
    get(read).put(write).layer(DefaultBodyLimit::max(MOST_DIRECTIVES))
}

fn is_local(from: SocketAddr) -> bool {
    from.ip().to_canonical().is_loopback()
}

/// Serves all of them until `stop` fires.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn serve(
    addr: SocketAddr,
    health: Health,
    level: Option<LogLevel>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { health.state() }));
    if let Some(level) = level {
        router = router.route("/log-level", log_level(level));
    }
    listen(addr, router, stop, "--health-addr").await
}

/// `[::]` is every interface of both families; on a host without IPv6 it is every one there is.
async fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(addr).await {
        Err(error) if addr.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await
        }
        bound => bound,
    }
}

/// Serves `router` in the background until `stop` fires.
///
/// # Errors
/// Where the address cannot be listened on; names `flag`.
pub async fn listen(addr: SocketAddr, router: Router, stop: CancellationToken, flag: &str) -> anyhow::Result<()> {
    let listener = bind(addr)
        .await
        .with_context(|| format!("failed to listen on {addr}: choose another address with {flag}"))?;
    tokio::spawn(async move {
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let served = axum::serve(listener, service).with_graceful_shutdown(async move { stop.cancelled().await });
        if let Err(error) = served.await {
            tracing::error!(%error, %addr, "a server ended");
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: &Router, method: &str, from: &str, body: &str) -> StatusCode {
        let mut request = Request::builder().method(method).uri("/log-level");
        let from: SocketAddr = from.parse().unwrap();
        request.extensions_mut().unwrap().insert(ConnectInfo(from));
        let request = request.body(Body::from(body.to_owned())).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn only_who_is_on_this_machine_reads_or_changes_what_is_logged() {
        let level = LogLevel::detached("info");
        let router = Router::new().route("/log-level", log_level(level.clone()));
        for far in ["10.0.0.7:40000", "[::ffff:10.0.0.7]:40000", "[fd00::7]:40000"] {
            assert_eq!(ask(&router, "GET", far, "").await, StatusCode::FORBIDDEN, "{far}");
            assert_eq!(ask(&router, "PUT", far, "debug").await, StatusCode::FORBIDDEN, "{far}");
        }
        assert_eq!(level.get(), "info");
        for near in ["127.0.0.1:40000", "[::1]:40000", "[::ffff:127.0.0.1]:40000"] {
            assert_eq!(ask(&router, "GET", near, "").await, StatusCode::OK, "{near}");
        }
        assert_eq!(
            ask(&router, "PUT", "[::1]:1", "no=such=thing").await,
            StatusCode::BAD_REQUEST
        );
        assert_eq!(ask(&router, "PUT", "[::1]:1", "debug").await, StatusCode::OK);
        assert_eq!(level.get(), "debug");
        assert_eq!(
            ask(&router, "PUT", "[::1]:1", &"a".repeat(MOST_DIRECTIVES + 1)).await,
            StatusCode::PAYLOAD_TOO_LARGE
        );
    }

    #[tokio::test]
    async fn every_interface_includes_those_of_ipv4() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
    }
}
