//! Many credentials on a real control plane: how long, how many calls, how much memory.
//!
//! ```console
//! $ cargo bench --bench scale -- --objects 1000 --services 125
//! $ cargo bench --bench scale -- --objects 10000 --services 1250 --json after.json
//! $ cargo bench --bench scale -- --objects 1000 --binary target/before/chittyconnect-operator
//! ```
//!
//! etcd, the API server and the controller share this machine, and a simulated ChittyConnect answers at once, so
//! what is measured is the controller against what the API server can take. Phases, in order:
//!
//! - **api**: Secrets the API server creates a second, 32 in flight: the limit of everything that follows.
//! - **bulk**: from the controller's start, with all credentials there, until every one is Ready.
//! - **idle**: what it costs to have them.
//! - **scrape**: how many series `/metrics` has then, how many bytes, and how long that takes.
//! - **restart**: killed and started again with everything valid, until it makes no more calls.
//! - **takeover**: a second replica stands by; the first is killed, and one credential is asked to rotate.
//! - **rotate** (`--rotate --ttl 1000`): after **bulk** and instead of all else: until every token was renewed once, and
//!   how late.
//! - **onDemand** (`--on-demand 1000 --pods 5000`): so many more credentials, on demand, and Pods that come and end at once.
//! - **outage** (`--outage SECONDS`): the broker refuses connections while every credential is asked to rotate.
//!
//! Calls are counted by the API server itself; the bench's own are made outside of what is measured, but for
//! one watch. Reads of credentials include the garbage collector's, about ten a second. These machines are noisy: compare
//! two builds side by side, and quote ratios.

mod bench;
mod calls;
mod on_demand;
mod setup;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use testbed::{ChittyConnect, ControlPlane, Options};

use bench::Bench;
use setup::{api_limit, connect, create, install};

const SYSTEM: &str = "chittyconnect-system";
const NAMESPACES: usize = 20;
const IN_FLIGHT: usize = 32;

/// Measures the controller with many credentials.
#[derive(Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
struct Arguments {
    /// Credentials.
    #[arg(long, default_value_t = 1000)]
    objects: usize,
    /// Services they are spread over: each has a budget of its own.
    #[arg(long, default_value_t = 125)]
    services: usize,
    /// Provisions a window allows.
    #[arg(long, default_value_t = 10_000)]
    limit: u32,
    /// That window. Tokens minted together are renewed together, and need two slots of a long one: for thousands in
    /// one service name a short one, such as 10s.
    #[arg(long, default_value = "1h")]
    window: String,
    /// How long a phase may take, in seconds; what was reached by then is told.
    #[arg(long, default_value_t = 300)]
    phase_timeout: u64,
    /// How long it is watched idling, in seconds.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Keeps one core busy while all are issued.
    #[arg(long)]
    busy_core: bool,
    /// How long a token lives, in seconds.
    #[arg(long, default_value_t = 3600)]
    ttl: u64,
    /// Waits until every token was renewed once. Without `--one-age` their runways differ so that they come due evenly
    /// over six tenths of their life: with `--ttl 1000` within ten minutes.
    #[arg(long)]
    rotate: bool,
    /// With `--rotate`: all come due as far apart as they were issued, and a twentieth of their life more.
    #[arg(long)]
    one_age: bool,
    /// Credentials on demand, besides those,
    #[arg(long, default_value_t = 0)]
    on_demand: usize,
    /// and the Pods that use them.
    #[arg(long, default_value_t = 0)]
    pods: usize,
    /// For how long the broker refuses connections at the end, in seconds.
    #[arg(long, default_value_t = 0)]
    outage: u64,
    /// Another build to measure.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_chittyconnect-operator"))]
    binary: PathBuf,
    /// Where the figures are written, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// The runway that the n-th credential asks for.
    fn runway(&self, number: usize) -> Option<Duration> {
        let share = f64::from(u32::try_from(number).ok()?) / f64::from(u32::try_from(self.objects).ok()?);
        // Evenly over all services, whose credentials are numbered one after the other.
        let part = 0.06 + 0.6 * (share * 7919.0).fract();
        (self.rotate && !self.one_age)
            .then(|| Duration::from_secs_f64(Duration::from_secs(self.ttl).as_secs_f64() * part))
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tokio::runtime::Runtime::new()?.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let client = plane.client().await?;
    install(&plane, &client).await?;
    let broker = ChittyConnect::builder()
        .ttl(Duration::from_secs(arguments.ttl))
        .without_limits()
        .start()?;
    connect(&client, &broker, arguments).await?;
    let mut report = Report::default();
    let binary = std::fs::metadata(&arguments.binary)?.len();
    report.note("binary", json!({"bytes": binary}));
    report.note("api", api_limit(&client).await?);
    create(&client, arguments).await?;
    let bench = Bench {
        arguments,
        plane: &plane,
        client: &client,
        broker: &broker,
        metrics: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?,
    };
    let busy = arguments
        .busy_core
        .then(|| Command::new("sh").args(["-c", "while :; do :; done"]).spawn())
        .transpose()?;
    let (mut controller, bulk) = bench.bulk().await?;
    report.note("bulk", bulk);
    if let Some(mut busy) = busy {
        busy.kill()?;
        busy.wait()?;
    }
    if arguments.rotate {
        // After that something is due all the time: it is never quiet again.
        report.note("rotate", bench.rotate(&controller).await?);
    } else {
        bench.until_quiet().await?;
        report.note("idle", bench.idle(&controller).await?);
        report.note("scrape", bench.scrape().await?);
        controller.kill();
        let (controller, restart) = bench.restart().await?;
        report.note("restart", restart);
        let (controller, takeover) = bench.takeover(controller).await?;
        report.note("takeover", takeover);
        if arguments.on_demand > 0 {
            report.note("onDemand", bench.on_demand(&controller).await?);
        }
        if arguments.outage > 0 {
            report.note("outage", bench.outage(&controller).await?);
        }
    }
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_string_pretty(&report.0)?)?;
    }
    plane.stop();
    Ok(())
}

/// The figures of each phase, which are printed as they come.
#[derive(Default)]
struct Report(BTreeMap<&'static str, Value>);

impl Report {
    fn note(&mut self, phase: &'static str, figures: Value) {
        print(phase, &figures);
        self.0.insert(phase, figures);
    }
}

fn print(phase: &str, figures: &Value) {
    println!("\n{phase}");
    for (name, value) in figures.as_object().into_iter().flatten() {
        match value {
            Value::Object(calls) => {
                println!("  {name}");
                for (call, count) in calls {
                    println!("    {count:>8}  {call}");
                }
            }
            Value::Number(n) if n.is_f64() => println!("  {name:<22}{:>10.2}", n.as_f64().unwrap_or_default()),
            other => println!("  {name:<22}{other:>10}"),
        }
    }
}
