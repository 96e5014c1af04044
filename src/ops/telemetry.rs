//! Logs.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Directives that no setting overrides: kube's client logs whole responses it cannot read, Secrets included.
const ALWAYS: [&str; 2] = ["kube_client::client=off", "hyper=off"];

/// Sends logs to standard error. `filter` is as in `RUST_LOG`.
///
/// # Errors
/// Where `filter` cannot be read.
pub fn init(format: Format, filter: &str) -> anyhow::Result<()> {
    let mut filter = EnvFilter::builder().parse(filter)?;
    for directive in ALWAYS {
        filter = filter.add_directive(directive.parse()?);
    }
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(false),
            )
            .init(),
        Format::Json => registry
            .with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr))
            .init(),
    }
    Ok(())
}
