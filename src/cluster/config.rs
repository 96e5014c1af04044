//! How to reach the API server.

use kube::Config;
use kube::config::KubeConfigOptions;

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
    Ok(config)
}
