//! Logs: how lines are written, and what is logged, which may be changed while the process runs.

use std::fmt::{self, Debug};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, with the names that OpenTelemetry's data model for logs has.
    Json,
}

/// Directives that no setting overrides: kube's client logs whole responses it cannot read, Secrets included.
const ALWAYS: [&str; 2] = ["kube_client::client=off", "hyper=off"];

/// What is logged now. Cheap to clone.
#[derive(Clone)]
pub struct LogLevel(Arc<Inner>);

struct Inner {
    filter: reload::Handle<EnvFilter, Registry>,
    said: Mutex<String>,
}

impl Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogLevel({})", self.get())
    }
}

impl LogLevel {
    /// As it was said last.
    #[must_use]
    pub fn get(&self) -> String {
        self.0.said.lock().clone()
    }

    /// Logs this from now on, until it is set again or the process is started anew. As in `RUST_LOG`.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn set(&self, directives: &str) -> anyhow::Result<()> {
        let directives = directives.trim();
        anyhow::ensure!(
            !directives.is_empty(),
            "say what to log, such as info or chittyconnect_operator=debug,info"
        );
        self.0.filter.reload(filter(directives)?)?;
        directives.clone_into(&mut self.0.said.lock());
        Ok(())
    }
}

/// Sends logs to standard error. `directives` are as in `RUST_LOG`; `instance` is this process.
///
/// # Errors
/// Where `directives` cannot be read.
pub fn init(format: Format, directives: &str, instance: &str) -> anyhow::Result<LogLevel> {
    let (filter, handle) = reload::Layer::new(filter(directives)?);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(false),
            )
            .init(),
        Format::Json => registry.with(json_layer(instance, std::io::stderr)).init(),
    }
    Ok(LogLevel(Arc::new(Inner {
        filter: handle,
        said: Mutex::new(directives.to_owned()),
    })))
}

fn filter(directives: &str) -> anyhow::Result<EnvFilter> {
    let mut filter = EnvFilter::builder().parse(directives)?;
    for directive in ALWAYS {
        filter = filter.add_directive(directive.parse()?);
    }
    Ok(filter)
}

fn json_layer<S, W>(instance: &str, writer: W) -> impl tracing_subscriber::Layer<S> + use<S, W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let resource = json!({
        "service.name": env!("CARGO_PKG_NAME"),
        "service.version": env!("CARGO_PKG_VERSION"),
        "service.instance.id": instance,
    });
    tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .event_format(DataModel { resource })
}

/// Lines as OpenTelemetry's data model for logs names their parts.
struct DataModel {
    resource: Value,
}

impl<S, N> FormatEvent<S, N> for DataModel
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let (level, number) = severity(*metadata.level());
        let mut at = String::new();
        SystemTime.format_time(&mut Writer::new(&mut at))?;
        let line = json!({
            "timestamp": at,
            "severity_text": level,
            "severity_number": number,
            "body": fields.body,
            "attributes": fields.attributes,
            "scope": fields.scope.as_deref().unwrap_or(metadata.target()),
            "resource": self.resource,
        });
        writeln!(out, "{line}")
    }
}

fn severity(level: Level) -> (&'static str, u8) {
    match level {
        Level::ERROR => ("ERROR", 17),
        Level::WARN => ("WARN", 13),
        Level::INFO => ("INFO", 9),
        Level::DEBUG => ("DEBUG", 5),
        Level::TRACE => ("TRACE", 1),
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    body: String,
    attributes: Map<String, Value>,
    /// Whom a line came from that another library logged.
    scope: Option<String>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.body = text(value),
            "log.target" => self.scope = Some(text(value)),
            name if name.starts_with("log.") => {}
            name => {
                self.attributes.insert(attribute(name), value);
            }
        }
    }
}

fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The name that the semantic conventions have for a field; what is ours alone is under our name.
fn attribute(field: &str) -> String {
    match field {
        "error" => "error.message".to_owned(),
        "namespace" => "k8s.namespace.name".to_owned(),
        "event" => "event.name".to_owned(),
        other => format!("chittyconnect.{other}"),
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, json!(format!("{value:?}")));
    }
}

#[cfg(test)]
impl LogLevel {
    /// One that nobody logs by; reloading needs its layer to be there.
    pub(crate) fn detached(directives: &str) -> Self {
        let (layer, handle) = reload::Layer::new(filter(directives).unwrap());
        Box::leak(Box::new(layer));
        Self(Arc::new(Inner {
            filter: handle,
            said: Mutex::new(directives.to_owned()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn lines(&self) -> Vec<Value> {
            let text = String::from_utf8(self.0.lock().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    fn logging(directives: &str, log: impl FnOnce(&LogLevel)) -> Vec<Value> {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let (filter, handle) = reload::Layer::new(filter(directives).unwrap());
        let layer = json_layer("pod-1", move || writer.clone());
        let level = LogLevel(Arc::new(Inner {
            filter: handle,
            said: Mutex::new(directives.to_owned()),
        }));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(filter).with(layer), || log(&level));
        buffer.lines()
    }

    #[test]
    fn a_json_line_has_the_names_of_the_opentelemetry_data_model() {
        let lines = logging("info", |_| {
            tracing::warn!(target: "audit", namespace = "team-a", error = %"no \"answer\"", revision = 3_u64, "failed\nto do it");
        });
        let line = &lines[0];
        assert_eq!(line["severity_text"], "WARN");
        assert_eq!(line["severity_number"], 13);
        assert_eq!(line["body"], "failed\nto do it");
        assert_eq!(line["scope"], "audit");
        assert_eq!(
            line["attributes"],
            json!({"k8s.namespace.name": "team-a", "error.message": "no \"answer\"", "chittyconnect.revision": 3})
        );
        assert_eq!(line["resource"]["service.name"], "chittyconnect-operator");
        assert_eq!(line["resource"]["service.instance.id"], "pod-1");
        let at = line["timestamp"].as_str().unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(at).is_ok(), "{at}");
    }

    #[test]
    fn the_level_may_be_changed_while_it_runs_and_what_must_never_be_logged_is_not() {
        let lines = logging("info", |level| {
            tracing::debug!("one");
            level.set(" debug,kube_client::client=trace ").unwrap();
            assert_eq!(level.get(), "debug,kube_client::client=trace");
            tracing::debug!("two");
            tracing::warn!(target: "kube_client::client", "a whole Secret");
            assert!(level.set("=").is_err() && level.set("").is_err());
            tracing::debug!("three");
            level.set("warn").unwrap();
            tracing::info!("four");
        });
        let bodies: Vec<_> = lines.iter().map(|line| line["body"].as_str().unwrap()).collect();
        assert_eq!(bodies, ["two", "three"]);
    }
}
