//! How to reach the API server.

use kube::client::ClientBuilder;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use tower::limit::ConcurrencyLimitLayer;

/// Calls to the API server that wait for its answer at the same time; a watch waits only until it begins. Its
/// priority and fairness queues refuse a service account that has some hundreds in flight (429), and every refused
/// call is a wait.
pub const MOST_CALLS: usize = 64;

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
    Ok(config)
}

/// A client that has no more than [`MOST_CALLS`] calls in flight; the others wait in the order they came.
///
/// # Errors
/// Where `config` cannot be used.
pub fn client(config: Config) -> anyhow::Result<Client> {
    let limited = ClientBuilder::try_from(config)?.with_layer(&ConcurrencyLimitLayer::new(MOST_CALLS));
    Ok(limited.build())
}
