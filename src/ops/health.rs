//! `/livez`: the process runs. `/readyz`: it has read what it needs; until then it says what it waits for.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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

/// Serves both until `stop` fires.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn serve(addr: SocketAddr, health: Health, stop: CancellationToken) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { health.state() }));
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
        let served = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
        if let Err(error) = served.await {
            tracing::error!(%error, %addr, "a server ended");
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_interface_includes_those_of_ipv4() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
    }
}
