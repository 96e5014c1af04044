//! A control plane, a ChittyConnect, and the controller between them, in a minute.
//!
//! `cargo run --example quickstart` starts a real Kubernetes API server of its own, simulators of
//! ChittyConnect and ChittyChronicle, and the controller; applies the manifests beside this file; and
//! shows what becomes of them. Time passes sixty times faster than in earnest: tokens live a minute
//! instead of an hour, and budgets count by the minute.

mod manifests;
mod own_cluster;
mod show;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chittyconnect_operator::cluster;
use clap::Parser;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use testbed::{Binaries, ControlPlane, Options, Tool};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use show::Show;

/// Shows credentials issued, rotated, denied and rate limited, on a real API server.
///
/// By default on a control plane of its own, which is gone afterwards. Ctrl-C ends it.
#[derive(Parser)]
#[command(name = "quickstart")]
struct Arguments {
    /// End after so many rotations of each healthy credential: exit status 0, or 1 if they do not come.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rotations: Option<u32>,
    /// Use your own cluster, through this context of your kubeconfig. Asks first; removes what it made.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// With --context: do not ask.
    #[arg(long, requires = "context")]
    yes: bool,
    /// Keep the controller's log in this file. Otherwise it is gone when the quickstart ends.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

/// How it ended.
enum Ending {
    /// As asked for.
    Done,
    /// By a signal, before what was asked for came.
    Interrupted,
    /// Somebody said no.
    Declined,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(130),
        Ok(Ending::Declined) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", tell(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes; of what the API server says, the message alone.
fn tell(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        if let Some(kube::Error::Api(status)) = cause.downcast_ref() {
            parts.push(status.message.clone());
            break;
        }
        parts.push(cause.to_string());
    }
    parts.join(": ")
}

fn start(arguments: &Arguments) -> anyhow::Result<Ending> {
    testbed::install_crypto_provider();
    if arguments.context.is_none() {
        find_binaries()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ending = runtime.block_on(async {
        let (stop, abort) = on_signals()?;
        match &arguments.context {
            None => on_a_control_plane_of_its_own(arguments, &stop).await,
            Some(context) => on_own_cluster(arguments, context, &stop, &abort).await,
        }
    });
    // A prompt that nobody answered is a thread that nobody can end.
    runtime.shutdown_background();
    ending
}

/// Before any signal is caught, so that Ctrl-C ends a build as it ends any other.
fn find_binaries() -> anyhow::Result<()> {
    let tools = [
        Tool::Etcd,
        Tool::KubeApiserver,
        Tool::KubeControllerManager,
        Tool::Kubectl,
    ];
    let term = console::Term::stderr();
    let (say, said) = std::sync::mpsc::channel::<String>();
    // Minutes pass between two messages: on a terminal the seconds are counted.
    let counting = std::thread::spawn(move || {
        let mut since = Instant::now();
        let mut counted = false;
        loop {
            let message = said.recv_timeout(Duration::from_secs(1));
            if counted {
                let _ = term.clear_last_lines(1);
                counted = false;
            }
            match message {
                Ok(message) if term.is_term() && message.starts_with("still") => {}
                Ok(message) => {
                    let _ = term.write_line(&message);
                    since = Instant::now();
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if term.is_term() => {
                    let _ = term.write_line(&format!("  {} s", since.elapsed().as_secs()));
                    counted = true;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    });
    let found = Binaries::find_or_build(&tools, |progress| {
        let _ = say.send(progress.to_owned());
    });
    drop(say);
    let _ = counting.join();
    found?;
    Ok(())
}

/// The first signal asks for an orderly end, the second for one at once.
fn on_signals() -> anyhow::Result<(CancellationToken, CancellationToken)> {
    let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
    let mut signals = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    let (first, second) = (stop.clone(), abort.clone());
    tokio::spawn(async move {
        for token in [first, second] {
            let [interrupt, terminate, hangup] = &mut signals;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            token.cancel();
        }
    });
    Ok((stop, abort))
}

async fn on_a_control_plane_of_its_own(arguments: &Arguments, stop: &CancellationToken) -> anyhow::Result<Ending> {
    let begun = Instant::now();
    let Some(control_plane) = stop.run_until_cancelled(ControlPlane::start(Options::default())).await else {
        return Ok(Ending::Interrupted);
    };
    let control_plane = control_plane.context("failed to start the control plane")?;
    done(
        "control plane",
        "etcd, kube-apiserver and kube-controller-manager",
        begun,
    );
    let kubeconfig = control_plane.kubeconfig().to_owned();
    // In the control plane's directory, it is gone when that is, however this process ends.
    let log = arguments
        .log_file
        .clone()
        .unwrap_or_else(|| kubeconfig.with_file_name("controller.log"));
    let kubectl = if is_on_path("kubectl") {
        "kubectl".to_owned()
    } else {
        control_plane.kubectl()?.get_program().to_string_lossy().into_owned()
    };
    let config = config_of(&kubeconfig).await?;
    let show = Show {
        client: Client::try_from(config.clone())?,
        config,
        look_around: look_around(Some(&kubeconfig), &kubectl),
        log,
        rotations: arguments.rotations,
    };
    let after_crds = || control_plane.restart_controller_manager();
    let ending = show.run(manifests::read()?, after_crds, stop).await;
    control_plane.stop();
    drop(control_plane);
    if ending.is_ok() {
        println!("stopped; nothing is left behind");
    }
    ending
}

/// As the controller's own: its retries repeat POSTs and wait for minutes.
async fn config_of(kubeconfig: &Path) -> anyhow::Result<Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(config)
}

async fn on_own_cluster(
    arguments: &Arguments,
    context: &str,
    stop: &CancellationToken,
    abort: &CancellationToken,
) -> anyhow::Result<Ending> {
    let server = server_of(context)?;
    let config = cluster::config::config(Some(context))
        .await
        .with_context(|| format!("failed to use context {context}"))?;
    let client = Client::try_from(config.clone())?;
    let manifests = manifests::read()?;
    let survey = own_cluster::survey(&client, &manifests)
        .await
        .with_context(|| format!("the quickstart does not run on {context}, and nothing was changed"))?;
    let (yes, name) = (arguments.yes, context.to_owned());
    let asking = tokio::task::spawn_blocking(move || (survey.consent(&name, &server, yes), survey));
    let Some(answer) = stop.run_until_cancelled(asking).await else {
        println!("\nnothing was changed");
        return Ok(Ending::Interrupted);
    };
    let (consent, survey) = answer?;
    if !consent? {
        println!("nothing was changed");
        return Ok(Ending::Declined);
    }
    let directory = tempfile::Builder::new().prefix("chitty-quickstart-").tempdir()?;
    let log = arguments
        .log_file
        .clone()
        .unwrap_or_else(|| directory.path().join("controller.log"));
    let show = Show {
        config,
        client: client.clone(),
        look_around: look_around(None, &format!("kubectl --context {context}")),
        log,
        rotations: arguments.rotations,
    };
    let ending = async {
        if survey.finds_leftovers() {
            let begun = Instant::now();
            survey.clean_up(&client).await?;
            done("leftovers", "removed", begun);
        }
        show.run(manifests, || Ok(()), stop).await
    }
    .await;
    let begun = Instant::now();
    println!("removing what the quickstart made (Ctrl-C leaves it there)");
    let cleaned = abort.run_until_cancelled(survey.clean_up(&client)).await;
    let by_hand = || {
        format!(
            "something is left on the cluster; remove it with\n  {}",
            own_cluster::by_hand(context)
        )
    };
    match cleaned {
        Some(Ok(())) => done("clean", "the cluster is as it was", begun),
        Some(Err(error)) => {
            eprintln!("error: {}", tell(&error));
            eprintln!("{}", by_hand());
            ending?;
            bail!("failed to clean up");
        }
        None => {
            ending?;
            bail!("interrupted: {}", by_hand());
        }
    }
    ending
}

fn server_of(context: &str) -> anyhow::Result<String> {
    let kubeconfig = Kubeconfig::read().context("failed to read your kubeconfig")?;
    let names: Vec<&str> = kubeconfig.contexts.iter().map(|c| c.name.as_str()).collect();
    let Some(found) = kubeconfig.contexts.iter().find(|c| c.name == context) else {
        bail!(
            "your kubeconfig has no context {context}; it has {}",
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        );
    };
    let cluster = found.context.as_ref().map(|c| c.cluster.as_str());
    let server = kubeconfig
        .clusters
        .iter()
        .find(|c| Some(c.name.as_str()) == cluster)
        .and_then(|c| c.cluster.as_ref()?.server.clone());
    server.with_context(|| format!("context {context} names no server"))
}

fn is_on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// What a person types in another terminal.
fn look_around(kubeconfig: Option<&Path>, kubectl: &str) -> Vec<String> {
    let mut lines = vec!["In another terminal:".to_owned()];
    if let Some(kubeconfig) = kubeconfig {
        lines.push(format!("  export KUBECONFIG={}", kubeconfig.display()));
    }
    let mut kubectl = kubectl;
    if kubectl.contains('/') {
        lines.push(format!("  alias kubectl={kubectl}"));
        kubectl = "kubectl";
    }
    let commands = [
        "get ec -A",
        "-n demo-web describe ec score-2",
        "-n demo-web get secret site-publish-env -o yaml",
        "-n demo-web annotate ec site-deploy connect.chitty.cc/rotate=1",
    ];
    lines.extend(commands.map(|command| format!("  {kubectl} {command}")));
    lines
}

fn done(what: &str, detail: &str, begun: Instant) {
    println!("{what:<14} {detail} ({:.1} s)", begun.elapsed().as_secs_f64());
}
