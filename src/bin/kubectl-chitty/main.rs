//! `kubectl chitty`: what is known of credentials, told to whoever waits for one, uses one or runs the controller.
//!
//! `cluster` reads what whoever asks may see; [`facts`], [`status`], [`why`] and [`advice`] are plain functions from
//! what was observed to what is told, with `now` passed in.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::needless_raw_string_hashes, reason = "so snapshots are written"))]

mod act;
mod advice;
mod args;
mod audit;
mod budget;
mod cluster;
mod consumers;
mod doctor;
#[cfg(test)]
mod examples;
mod facts;
mod status;
mod template;
mod terminal;
mod why;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chittyconnect_operator::api::EphemeralCredential;
use chittyconnect_operator::core::Time;
use chittyconnect_operator::core::consumers::Pod;
use chittyconnect_operator::core::spec::secret_names;
use clap::{CommandFactory, Parser};
use kube::ResourceExt;
use serde::Serialize;

use act::{Act, Progress};
use args::{Arguments, Command, Common, Output};
use audit::Audit;
use budget::{Held, Share};
use cluster::Cluster;
use consumers::Consumers;
use doctor::{Examined, Findings};
use facts::{Connections, Credential, Seen};
use status::{Listing, Status};
use why::{Observed, Peers};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = arguments.agree() {
        error.exit();
    }
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(anstream::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let common = &arguments.common;
    match &arguments.command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "kubectl-chitty", &mut script);
            say(&String::from_utf8_lossy(&script))?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Template(asked) if asked.file.is_some() => return render(None, common, asked).await,
        _ => {}
    }
    // An error says that somebody else installed one first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster = Cluster::connect(common).await?;
    match arguments.command {
        Command::Status(args::Status { name: Some(name), .. }) => {
            one_status(&cluster.of(&name), common, &name.name).await
        }
        Command::Status(asked) => all_status(&cluster, common, asked.all_namespaces).await,
        Command::Why(args::Named { name }) => tell_why(&cluster.of(&name), common, &name.name).await,
        Command::Rotate(asked) => ask(&cluster, Act::Rotate, &asked).await,
        Command::Revoke(asked) => ask(&cluster, Act::Revoke, &asked).await,
        Command::Suspend(asked) => ask(&cluster, Act::Suspend, &asked).await,
        Command::Resume(asked) => ask(&cluster, Act::Resume, &asked).await,
        Command::Consumers(args::Named { name }) => tell_consumers(&cluster.of(&name), common, &name.name).await,
        Command::Budget(asked) => tell_budgets(&cluster, common, asked.service.as_deref()).await,
        Command::Audit(args::Named { name }) => tell_audit(&cluster.of(&name), common, &name.name).await,
        Command::Template(ref asked) => render(Some(&cluster), common, asked).await,
        Command::Doctor => Box::pin(examine(&cluster, common)).await,
        Command::Completion { .. } => Ok(ExitCode::SUCCESS),
    }
}

/// What was waited for did not come about, or something is wrong.
const AMISS: u8 = 3;

/// Asks the controller for something, and waits for it.
async fn ask(cluster: &Cluster, act: Act, asked: &args::Acted) -> anyhow::Result<ExitCode> {
    let mut begun = Vec::new();
    for named in &asked.names {
        let cluster = cluster.of(named);
        let before = Credential::from(&cluster.credential(&named.name).await?);
        if let Some(objection) = act.objection(&before) {
            anyhow::bail!("{objection}");
        }
        cluster.patch(&named.name, &act.patch(cluster::wall())).await?;
        begun.push((cluster, before));
    }
    let mut code = ExitCode::SUCCESS;
    for (cluster, before) in begun {
        let id = before.id();
        if !asked.wait {
            say(&format!("{id}: {} is asked for\n", act.word()))?;
            continue;
        }
        match wait(&cluster, act, &before, asked.timeout).await? {
            Progress::Done(text) => say(&format!("{id}: {text}\n"))?,
            Progress::Failed(text) => {
                note(&format!("{id}: {text}"));
                code = ExitCode::from(AMISS);
            }
            Progress::Waits(text) => {
                note(&format!("{id}: not done in time, and still asked for; {text}"));
                code = ExitCode::from(AMISS);
            }
        }
    }
    Ok(code)
}

/// Looks again and again until it is done or the time is over, and says what is waited for whenever that is news.
async fn wait(cluster: &Cluster, act: Act, before: &Credential, timeout: Duration) -> anyhow::Result<Progress> {
    let started = Instant::now();
    let mut told = String::new();
    loop {
        let credential = Credential::from(&cluster.credential(&before.name).await?);
        let progress = act.progress(before, &credential, cluster.now().await);
        match &progress {
            Progress::Waits(what) if started.elapsed() < timeout => {
                if *what != told {
                    note(&format!("{}: waiting; {what}", before.id()));
                    told.clone_from(what);
                }
            }
            _ => return Ok(progress),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn tell_consumers(cluster: &Cluster, common: &Common, name: &str) -> anyhow::Result<ExitCode> {
    // Who follows asks for no service itself.
    let (object, pods, followers, now) = tokio::join!(
        cluster.credential(name),
        cluster.pods(&cluster.namespace),
        cluster.credentials(None, Some("spec.service=")),
        cluster.now()
    );
    let object = object?;
    let pods = match consumers_of(&object, pods?) {
        Seen::Found(pods) => pods,
        Seen::Missing => Vec::new(),
        Seen::Forbidden(what) => anyhow::bail!("{what}"),
    };
    let id = Credential::from(&object).id();
    let follows = |all: Vec<EphemeralCredential>| {
        let all = all.iter().map(Credential::from);
        all.filter(|c| c.follows.as_ref() == Some(&id))
            .map(|c| c.id())
            .collect()
    };
    let consumers = Consumers {
        pods,
        followers: followers?.map(follows),
        credential: Credential::from(&object),
    };
    print(common, &consumers, || consumers.text(terminal::columns(), now))?;
    Ok(ExitCode::SUCCESS)
}

async fn tell_budgets(cluster: &Cluster, common: &Common, service: Option<&str>) -> anyhow::Result<ExitCode> {
    let (connections, now) = tokio::join!(cluster.connections(), cluster.now());
    let connections = match connections? {
        Seen::Found(found) => found,
        Seen::Missing => Connections::new(),
        Seen::Forbidden(what) => return tell_shares(cluster, common, service, &what).await,
    };
    let asked =
        |budget: &facts::Budget| service.is_none_or(|service| budget.service == service || budget.service == "*");
    let mut budgets: Vec<facts::Budget> = connections.values().flat_map(facts::budgets).filter(asked).collect();
    budgets.sort_by(|a, b| (&a.service, &a.connection).cmp(&(&b.service, &b.connection)));
    if budgets.is_empty() && matches!(common.output, Output::Table | Output::Wide) {
        let of = service.map_or_else(String::new, |service| format!(" of {service}"));
        note(&format!(
            "There is no budget{of}: one is there once somebody who may asks for something."
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let fields = service.map(|service| format!("spec.service={service}"));
    let title = |title: &str| service.is_none_or(|service| title.starts_with(&format!("{service} at ")));
    let (everywhere, journals) = tokio::join!(cluster.credentials(None, fields.as_deref()), cluster.journals(title));
    let (credentials, partial) = match everywhere? {
        Seen::Found(all) => (all, false),
        _ => match cluster.credentials(Some(&cluster.namespace), fields.as_deref()).await? {
            Seen::Found(here) => (here, true),
            _ => (Vec::new(), true),
        },
    };
    let credentials: Vec<Credential> = credentials.iter().map(Credential::from).collect();
    let journals = journals?;
    let held = budgets.into_iter().map(|budget| {
        let url = &connections[&budget.connection].spec.url;
        let frees = journals.found().map(|parts| budget::frees(parts, &budget, url));
        Held::new(budget, &credentials, partial, frees)
    });
    let held: Vec<Held> = held.collect();
    print(common, &held, || {
        let columns = terminal::columns();
        let texts: Vec<String> = held
            .iter()
            .map(|held| held.text(columns, terminal::prose(columns), now))
            .collect();
        texts.join("\n")
    })?;
    if let Some(what) = journals.forbidden() {
        note(&format!("Not shown: {what}, and so not when slots free."));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the namespace's own credentials take of budgets that may not be seen.
async fn tell_shares(
    cluster: &Cluster,
    common: &Common,
    service: Option<&str>,
    hidden: &str,
) -> anyhow::Result<ExitCode> {
    let fields = service.map(|service| format!("spec.service={service}"));
    let (found, now) = tokio::join!(
        cluster.credentials(Some(&cluster.namespace), fields.as_deref()),
        cluster.now()
    );
    let credentials: Vec<Credential> = match found? {
        Seen::Found(all) => all.iter().map(Credential::from).collect(),
        Seen::Missing => Vec::new(),
        Seen::Forbidden(what) => anyhow::bail!("{what}"),
    };
    let shares = Share::all(&credentials);
    print(common, &shares, || {
        let columns = terminal::columns();
        let texts: Vec<String> = shares
            .iter()
            .map(|share| share.text(columns, terminal::prose(columns), now))
            .collect();
        texts.join("\n")
    })?;
    if shares.is_empty() {
        note(&format!(
            "No credential of namespace {} counts in a budget.",
            cluster.namespace
        ));
    }
    note(&format!(
        "Not shown: {hidden}; an administrator can give you the ClusterRole that ends in -connections-view."
    ));
    Ok(ExitCode::SUCCESS)
}

async fn tell_audit(cluster: &Cluster, common: &Common, name: &str) -> anyhow::Result<ExitCode> {
    let object = cluster.credential(name).await?;
    let service = object.spec.service.clone();
    let of = |title: &str| {
        service.is_empty() || title.starts_with(&format!("{service} at ")) || title.starts_with("this API key")
    };
    let (events, journals, now) = tokio::join!(cluster.events(name), cluster.journals(of), cluster.now());
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let audit = Audit::new(Credential::from(&object), &uid, &events?, &journals?);
    print(common, &audit, || {
        let columns = terminal::columns();
        audit.text(columns, terminal::prose(columns), now)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Renders with made-up values, of a file or of a credential in the cluster.
async fn render(cluster: Option<&Cluster>, common: &Common, asked: &args::Template) -> anyhow::Result<ExitCode> {
    let credentials = match (&asked.file, &asked.name, cluster) {
        (Some(file), ..) => {
            let text = if file.as_os_str() == "-" {
                std::io::read_to_string(std::io::stdin())?
            } else {
                std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?
            };
            template::credentials(&text)?
        }
        (None, Some(name), Some(cluster)) => vec![cluster.of(name).credential(&name.name).await?],
        _ => anyhow::bail!("name a credential, or a file"),
    };
    let outputs = template::outputs(&asked.set, &asked.without);
    let ends_at = cluster::wall() + chrono::TimeDelta::hours(1);
    let mut all = Vec::new();
    for credential in &credentials {
        let rendered = template::secrets(credential, &asked.annotation_prefixes, &outputs, ends_at);
        all.extend(rendered.map_err(|problem| {
            anyhow::anyhow!("{}: {}: {}", credential.name_any(), problem.reason, problem.message)
        })?);
    }
    if common.output == Output::Json {
        say(&(serde_json::to_string_pretty(&all)? + "\n"))?;
    } else {
        for secret in &all {
            say(&format!("---\n{}", serde_yaml::to_string(secret)?))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn examine(cluster: &Cluster, common: &Common) -> anyhow::Result<ExitCode> {
    // Without an API server there is nothing to look at.
    let server = cluster.version().await?;
    let clocks = async { (cluster.now().await, cluster::wall()) };
    let (crds, lease, controllers, rights, connections, credentials, journals, dead_letters, clocks) = tokio::join!(
        cluster.crds(),
        cluster.lease(),
        cluster.controllers(),
        cluster.rights(&cluster.namespace),
        cluster.connections(),
        cluster.credentials(None, None),
        cluster.journals(|_| true),
        cluster.dead_letters(),
        clocks
    );
    let (now, here) = clocks;
    let crds = crds?;
    // Without the kinds nothing can be said of their objects.
    let (connections, credentials) = if crds == Seen::Missing {
        (Seen::Missing, Seen::Missing)
    } else {
        (
            connections?,
            credentials?.map(|all| all.iter().map(Credential::from).collect()),
        )
    };
    let mut routes = BTreeMap::new();
    for (name, connection) in connections.found().into_iter().flatten() {
        if let Ok(url) = connection.spec.url.parse() {
            routes.insert(name.clone(), cluster::route(&url).await);
        }
    }
    let examined = Examined {
        server,
        here,
        system: cluster.system.clone(),
        crds,
        lease: lease?,
        controllers: controllers?,
        rights: rights?,
        connections,
        credentials,
        routes,
        journals: journals?,
        dead_letters: dead_letters?,
    };
    let findings = Findings::of(&examined, now);
    print(common, &findings.0, || {
        findings.text(terminal::prose(terminal::columns()))
    })?;
    Ok(if findings.is_bad() {
        ExitCode::from(AMISS)
    } else {
        ExitCode::SUCCESS
    })
}

async fn all_status(cluster: &Cluster, common: &Common, all_namespaces: bool) -> anyhow::Result<ExitCode> {
    let namespace = (!all_namespaces).then_some(cluster.namespace.as_str());
    let (found, connections, now) = tokio::join!(
        cluster.credentials(namespace, None),
        cluster.connections(),
        cluster.now()
    );
    let (found, connections) = (found?, connections?);
    let objects = match found {
        Seen::Found(objects) => objects,
        Seen::Missing => Vec::new(),
        Seen::Forbidden(what) => anyhow::bail!("{what}"),
    };
    let mut credentials: Vec<Credential> = objects.iter().map(Credential::from).collect();
    credentials.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let listing = Listing {
        credentials: &credentials,
        connections: &connections,
        all_namespaces,
        wide: common.output == Output::Wide,
    };
    if credentials.is_empty() && matches!(common.output, Output::Table | Output::Wide) {
        let place = namespace.map_or_else(|| "any namespace".to_owned(), |name| format!("namespace {name}"));
        note(&format!("There are no EphemeralCredentials in {place}."));
        return Ok(ExitCode::SUCCESS);
    }
    print(common, &credentials, || listing.text(terminal::columns(), now))?;
    if let Some(what) = connections.forbidden() {
        note(&format!("Not shown: {what}."));
    }
    Ok(ExitCode::SUCCESS)
}

/// One credential, and what an answer about it needs besides.
struct Look {
    object: EphemeralCredential,
    connections: Seen<Connections>,
    consumers: Seen<Vec<facts::Consumer>>,
    now: Time,
}

async fn look(cluster: &Cluster, name: &str) -> anyhow::Result<Look> {
    let (object, connections, pods, now) = tokio::join!(
        cluster.credential(name),
        cluster.connections(),
        cluster.pods(&cluster.namespace),
        cluster.now()
    );
    let object = object?;
    Ok(Look {
        consumers: consumers_of(&object, pods?),
        connections: connections?,
        object,
        now,
    })
}

async fn one_status(cluster: &Cluster, common: &Common, name: &str) -> anyhow::Result<ExitCode> {
    let Look {
        object,
        connections,
        consumers,
        now,
    } = look(cluster, name).await?;
    let status = Status::new(Credential::from(&object), &connections, consumers);
    print(common, &status, || {
        status.text(terminal::prose(terminal::columns()), now)
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn tell_why(cluster: &Cluster, common: &Common, name: &str) -> anyhow::Result<ExitCode> {
    let Look {
        object,
        connections,
        consumers,
        now,
    } = look(cluster, name).await?;
    let peers = if why::counts_peers(Credential::from(&object).known_reason()) {
        peers(cluster, &object).await?
    } else {
        Peers::default()
    };
    let observed = Observed {
        object,
        connections,
        consumers,
        peers,
    };
    let why = why::why(&observed, now);
    print(common, &why, || why.text(terminal::prose(terminal::columns()), now))?;
    Ok(ExitCode::SUCCESS)
}

/// Who else asks for the same service by the same connection, as far as whoever asks may see them.
async fn peers(cluster: &Cluster, object: &EphemeralCredential) -> anyhow::Result<Peers> {
    let spec = &object.spec;
    let fields = format!("spec.service={},spec.connection={}", spec.service, spec.connection);
    let read = |all: Vec<EphemeralCredential>| all.iter().map(Credential::from).collect();
    if let Seen::Found(all) = cluster.credentials(None, Some(&fields)).await? {
        return Ok(Peers {
            credentials: read(all),
            all: true,
        });
    }
    let here = cluster.credentials(Some(&cluster.namespace), Some(&fields)).await?;
    Ok(Peers {
        credentials: match here {
            Seen::Found(all) => read(all),
            _ => Vec::new(),
        },
        all: false,
    })
}

/// Who of `pods` uses the Secrets that a credential asks for.
fn consumers_of(object: &EphemeralCredential, pods: Seen<Vec<Pod>>) -> Seen<Vec<facts::Consumer>> {
    let name = object.name_any();
    let secrets: Vec<String> = secret_names(&object.spec, &name).map(str::to_owned).collect();
    pods.map(|pods| facts::consumers(&pods, &secrets))
}

/// Prints what is asked for: `data` for a program, or what `text` says to a person.
fn print(common: &Common, data: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    match common.output {
        Output::Json => say(&(serde_json::to_string_pretty(data)? + "\n")),
        Output::Yaml => say(&serde_yaml::to_string(data)?),
        Output::Table | Output::Wide => say(&text()),
    }
}

/// Writes to standard output. Whoever stopped reading wants no more.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Says something beside what was asked for.
fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}
