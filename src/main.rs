//! Arguments -> settings -> run.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use chittyconnect_operator::cluster::reach::Reach;
use chittyconnect_operator::controller::{self, Settings};
use chittyconnect_operator::core::layout::AnnotationPolicy;
use chittyconnect_operator::ops::telemetry::{self, Format};
use chittyconnect_operator::{api, cluster};
use chrono::TimeDelta;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Gives every workload short-lived credentials from ChittyConnect, and leaves no long-lived secret anywhere.
#[derive(Parser)]
// The last of several wins, so that the chart's extraArgs can override what the chart sets.
#[command(version, args_conflicts_with_subcommands = true, args_override_self = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller (the default).
    Run(Box<RunArguments>),
    /// Print the `CustomResourceDefinitions` as YAML.
    Crd,
}

#[derive(Args)]
struct RunArguments {
    /// Namespace of the controller itself: API keys and journals live there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "chittyconnect-system")]
    namespace: String,
    /// Context of the kubeconfig to use. In a Pod its service account is used.
    #[arg(long)]
    context: Option<String>,
    /// Name of this process in claims and Events. Two running processes must not share it.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// Where /metrics is served.
    #[arg(long, env = "METRICS_ADDR", default_value = ":8080", value_parser = address)]
    metrics_addr: SocketAddr,
    /// Where /livez and /readyz are served.
    #[arg(long, env = "HEALTH_ADDR", default_value = ":8081", value_parser = address)]
    health_addr: SocketAddr,
    /// How long a Lease lasts: so long nobody leads where a leader dies. It is renewed five times in that time.
    #[arg(long, env = "LEASE_DURATION", default_value = "10s", value_parser = lease_duration)]
    lease_duration: Duration,
    /// How long past its timeout the request of a process that is gone is waited for. For tests: a process that was
    /// frozen may still write what it was answered.
    #[arg(long, env = "CLAIM_GRACE", default_value = "15s", value_parser = claim_grace, hide = true)]
    claim_grace: TimeDelta,
    /// What users may annotate their Secrets with: prefixes, with commas between.
    #[arg(
        long,
        env = "ANNOTATION_PREFIXES",
        default_value = "tekton.dev/,reloader.stakater.com/"
    )]
    annotation_prefixes: AnnotationPolicy,
    /// Namespaces to serve, with commas between; all of them where none is named. Then nothing is watched cluster-wide
    /// but connections, and Roles in these namespaces are all it takes.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// Connections to serve, with commas between; all of them where none is named. Credentials that name another are
    /// left alone.
    #[arg(long, env = "CONNECTIONS", value_delimiter = ',')]
    connections: Vec<String>,
    /// Restart Deployments, StatefulSets and DaemonSets with the annotation connect.chitty.cc/restart: "true" before a
    /// token ends that their Pods have read once.
    #[arg(long, env = "RESTART_WORKLOADS")]
    restart_workloads: bool,
    /// Give each credential series of its own, named by its namespace and name.
    #[arg(long, env = "CREDENTIAL_METRICS")]
    credential_metrics: bool,
    /// Send a trace of each mint to the OpenTelemetry collector there, by OTLP over HTTP in JSON. Such as
    /// <http://collector.monitoring:4318>.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_parser = endpoint)]
    otlp_endpoint: Option<Url>,
    /// How log lines are written.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t)]
    log_format: Format,
    /// What is logged, as in `RUST_LOG`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
    /// How many credentials are looked at at once.
    #[arg(long, env = "CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Seconds after which a budget is let go of in which nothing matters any more.
    #[arg(long, env = "CLOSE_IDLE_AFTER", default_value_t = 300, hide = true, value_parser = clap::value_parser!(u64).range(1..=3600))]
    close_idle_after: u64,
}

/// An address to listen on; `:8080` is every interface, IPv4 and IPv6, as usual in Kubernetes.
fn address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') {
        format!("[::]{text}")
    } else {
        text.to_owned()
    };
    full.parse()
        .map_err(|_| "expected an address such as :8080 or 127.0.0.1:8080".to_owned())
}

/// Where a collector is: http, or https.
fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(Url::has_host);
    url.filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| "expected a URL such as http://collector.monitoring:4318".to_owned())
}

/// Seconds, such as `15s`.
fn claim_grace(text: &str) -> Result<TimeDelta, String> {
    let seconds = text.strip_suffix('s').and_then(|number| number.parse().ok());
    seconds
        .filter(|seconds| (1..=60).contains(seconds))
        .map(TimeDelta::seconds)
        .ok_or_else(|| "expected 1s to 60s".to_owned())
}

/// Seconds, such as `10s`: shorter than 5 s no API server answers reliably, and longer than 2 min nobody waits.
fn lease_duration(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').and_then(|number| number.parse::<u64>().ok());
    seconds
        .filter(|seconds| (5..=120).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "expected 5s to 120s".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Command::Crd) => print_crds(),
        Some(Command::Run(run)) => start(*run),
        None => start(arguments.run),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_crds() -> anyhow::Result<()> {
    print!("{}", api::crds_yaml()?);
    Ok(())
}

fn start(arguments: RunArguments) -> anyhow::Result<()> {
    let RunArguments {
        namespace,
        context,
        identity,
        metrics_addr,
        health_addr,
        lease_duration,
        claim_grace,
        annotation_prefixes,
        watch_namespaces,
        connections,
        restart_workloads,
        credential_metrics,
        otlp_endpoint,
        log_format,
        log,
        concurrency,
        close_idle_after,
    } = arguments;
    let identity = identity.unwrap_or_else(host_name);
    let log = telemetry::init(log_format, &log, &identity)?;
    // Both kube and reqwest ask rustls for the process' provider.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let settings = Settings {
        namespace,
        identity,
        concurrency,
        metrics_addr,
        health_addr,
        lease_duration,
        claim_grace,
        annotations: annotation_prefixes,
        credential_metrics,
        restart_workloads,
        log: Some(log),
        otlp_endpoint,
        reach: Reach::new(watch_namespaces, connections),
        close_idle_after: Duration::from_secs(close_idle_after),
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let stop = CancellationToken::new();
            let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            let on_signal = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                tracing::info!("stopping");
                on_signal.cancel();
            });
            let config = cluster::config::config(context.as_deref()).await?;
            tracing::info!(version = env!("CARGO_PKG_VERSION"), namespace = %settings.namespace, identity = %settings.identity, "starting");
            Box::pin(controller::run(config, settings, stop)).await
        })
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "chittyconnect-operator".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> RunArguments {
        let all = ["chittyconnect-operator"].iter().chain(arguments);
        let parsed = Arguments::try_parse_from(all).unwrap();
        match parsed.command {
            Some(Command::Run(run)) => *run,
            _ => parsed.run,
        }
    }

    #[test]
    fn an_argument_given_twice_has_its_last_value() {
        let twice = [
            "run",
            "--concurrency=32",
            "--log=info",
            "--concurrency=64",
            "--log=debug",
        ];
        let arguments = run(&twice);
        assert_eq!((arguments.concurrency, arguments.log.as_str()), (64, "debug"));
        assert_eq!(run(&twice[1..]).concurrency, 64);
    }

    #[test]
    fn a_lease_lasts_from_five_seconds_to_two_minutes() {
        assert_eq!(run(&[]).lease_duration, Duration::from_secs(10));
        assert_eq!(run(&["--lease-duration=60s"]).lease_duration, Duration::from_secs(60));
        for bad in ["4s", "121s", "10", "1m", "-5s", ""] {
            assert!(lease_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn claims_of_others_are_left_alone_for_as_long_as_the_core_says() {
        use chittyconnect_operator::core::schedule::CLAIM_GRACE;
        assert_eq!(run(&[]).claim_grace, CLAIM_GRACE);
        assert_eq!(run(&["--claim-grace=1s"]).claim_grace, TimeDelta::seconds(1));
        for bad in ["0s", "61s", "1m", "15"] {
            assert!(claim_grace(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_alone_is_every_interface_of_both_families() {
        let every = run(&["--metrics-addr=:9090"]).metrics_addr;
        assert_eq!(every, "[::]:9090".parse().unwrap());
        let one = run(&["--metrics-addr=127.0.0.1:9090"]).metrics_addr;
        assert_eq!(one, "127.0.0.1:9090".parse().unwrap());
        assert!(address("9090").is_err());
    }
}
