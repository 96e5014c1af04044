//! How to reach the API server.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::USER_AGENT;
use http::{HeaderValue, Method, Request, Response};
use kube::client::ClientBuilder;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use tower::Service;
use tower::limit::ConcurrencyLimitLayer;

/// Calls to the API server that wait for its answer at the same time; a watch waits only until it begins. Its
/// priority and fairness queues refuse a service account that has some hundreds in flight (429), and every refused
/// call is a wait.
pub const MOST_CALLS: usize = 32;

/// How to reach it from the usual places: a kubeconfig, else the Pod's service account. `context` names
/// one of the kubeconfig.
///
/// # Errors
/// Where neither is there, or what is there cannot be used.
pub async fn config(context: Option<&str>) -> anyhow::Result<Config> {
    let mut config = match context {
        Some(name) => {
            Config::from_kubeconfig(&KubeConfigOptions {
                context: Some(name.to_owned()),
                ..KubeConfigOptions::default()
            })
            .await?
        }
        None => Config::infer().await?,
    };
    // Its retries repeat POSTs and wait for minutes; ours are decided where the deadline is known.
    config.default_retry = false;
    // A proxy in the environment is the way to ChittyConnect, and never to the API server.
    config.proxy_url = None;
    // What writes an object is told in its managed fields by this, too.
    let agent = HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    Ok(config)
}

/// A client that has no more than [`MOST_CALLS`] calls in flight; the others wait in the order they came. `called` is told
/// the verb and the status of each, 0 where there was no answer.
///
/// # Errors
/// Where `config` cannot be used.
pub fn client(config: Config, called: impl Fn(&str, u16) + Clone + Send + Sync + 'static) -> anyhow::Result<Client> {
    let limited = ClientBuilder::try_from(config)?.with_layer(&ConcurrencyLimitLayer::new(MOST_CALLS));
    let counted = limited.with_layer(&tower::layer::layer_fn(move |service| Counted {
        service,
        called: called.clone(),
    }));
    Ok(counted.build())
}

/// Tells what becomes of each call.
#[derive(Clone)]
struct Counted<S, F> {
    service: S,
    called: F,
}

impl<S, F, B, A> Service<Request<B>> for Counted<S, F>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
    F: Fn(&str, u16) + Clone + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let verb = verb(request.method(), request.uri().query().unwrap_or_default());
        let (answer, called) = (self.service.call(request), self.called.clone());
        async move {
            let answer = answer.await;
            called(&verb, answer.as_ref().map_or(0, |answer| answer.status().as_u16()));
            answer
        }
        .boxed()
    }
}

fn verb(method: &Method, query: &str) -> String {
    let watches = query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"));
    if watches {
        "watch".to_owned()
    } else {
        method.as_str().to_ascii_lowercase()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_told_from_a_read() {
        assert_eq!(verb(&Method::GET, "labelSelector=a&watch=true"), "watch");
        assert_eq!(verb(&Method::GET, "labelSelector=watch"), "get");
        assert_eq!(verb(&Method::PATCH, ""), "patch");
    }
}
