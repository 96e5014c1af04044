//! `/metrics`, in the `OpenMetrics` text format: what is counted, and where it is declared.
//!
//! Labels are bounded: reasons, connections, and the budgets of at most [`MOST_SCOPES`] scopes; credentials only where asked
//! for. What only
//! a leader knows is gone when it leads no more. `docs/metrics.md` is generated from the declarations below.

mod labels;
mod process;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};
use tokio_util::sync::CancellationToken;

use crate::api::Reason;
use crate::core::audit::EventType;
use labels::{
    ApiLabels, ConnectionLabels, CredentialLabels, EventLabels, MintLabels, Names, NoLabels, ResultLabels, StateLabels,
};
pub use labels::{MOST_SCOPES, ScopeLabels};

const PREFIX: &str = "chittyconnect";
/// Seconds: from a look that costs a millisecond to a call that times out.
const CALLS: [f64; 11] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Seconds: from a first token at once to one that waited for a budget's window.
const WAITS: [f64; 11] = [0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0];

/// One metric, as its declaration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name as it is scraped; of a histogram without `_bucket`, `_sum` and `_count`.
    pub name: String,
    /// Counter, gauge, histogram or info.
    pub kind: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
    /// Only a leader has it.
    pub leader: bool,
}

/// Declares metrics: what is registered is what is described.
struct Declare {
    registry: Registry,
    described: Vec<Described>,
}

impl Declare {
    fn metric<M: Metric + Clone>(
        &mut self,
        (kind, leader): (&'static str, bool),
        name: &str,
        labels: &'static [&'static str],
        help: &'static str,
        metric: M,
    ) -> M {
        let ours = self.registry.sub_registry_with_prefix(PREFIX);
        ours.register(name, help, metric.clone());
        let suffix = match kind {
            "counter" => "_total",
            _ => "",
        };
        self.described.push(Described {
            name: format!("{PREFIX}_{name}{suffix}"),
            kind,
            labels,
            help,
            leader,
        });
        metric
    }
}

const COUNTER: (&str, bool) = ("counter", false);
const GAUGE: (&str, bool) = ("gauge", false);
const HISTOGRAM: (&str, bool) = ("histogram", false);
/// Gone when the process leads no more.
const LEADERS: (&str, bool) = ("gauge", true);
const EACH: &[&str] = &["namespace", "name"];
const SCOPE: &[&str] = &["connection", "scope", "service"];

type PerScope = Family<ScopeLabels, Gauge>;
type Single = Family<NoLabels, Gauge>;

/// How a budget and its journal stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeFigures {
    /// The limit in force.
    pub limit: u32,
    /// Requests in its window.
    pub used: u32,
    /// Kept for renewals and retries.
    pub kept: u32,
    /// Newcomers in line.
    pub waiting: u32,
    /// Audit events that are not delivered.
    pub backlog: usize,
    /// How much of what may wait for delivery does, in percent.
    pub backlog_percent: usize,
    /// Tokens that are to be revoked and are not yet.
    pub owed: usize,
    /// How much its journal takes.
    pub journal_bytes: usize,
}

/// How one credential stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFigures {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it is Ready.
    pub ready: bool,
    /// When its token ends, in seconds since 1970.
    pub expires_at: Option<i64>,
}

/// What only a leader knows, as of now.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Credentials by readiness and reason.
    pub credentials: Vec<((bool, String), i64)>,
    /// When the first of all valid tokens ends, in seconds since 1970.
    pub nearest_expiry: Option<i64>,
    /// Credentials whose renewal is due for more than a minute.
    pub overdue: i64,
    /// Those of them that have less than half of their runway left.
    pub at_risk: i64,
    /// Requests that are under way.
    pub in_flight: i64,
    /// Budgets, in an order that does not change.
    pub scopes: Vec<(ScopeLabels, ScopeFigures)>,
    /// Connections, and whether they can be used.
    pub connections: Vec<(String, bool)>,
    /// Credentials that wait to be looked at.
    pub queued: i64,
    /// Each credential, where each has series of its own.
    pub each: Vec<CredentialFigures>,
}

/// All that is counted. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// Held while the leader's gauges change, and while all is read.
    registry: Arc<Mutex<Registry>>,
    described: Arc<Vec<Described>>,
    names: Arc<Mutex<Names>>,
    leading: Arc<Mutex<bool>>,
    events: Family<EventLabels, Counter>,
    mints: Family<MintLabels, Counter>,
    first_tokens: Histogram,
    rotations: Histogram,
    credentials: Family<StateLabels, Gauge>,
    nearest_expiry: Single,
    overdue: Single,
    at_risk: Single,
    in_flight: Single,
    limit: PerScope,
    used: PerScope,
    kept: PerScope,
    waiting: PerScope,
    backlog: PerScope,
    backlog_ratio: Single,
    owed: PerScope,
    journal_bytes: PerScope,
    commits: Family<ResultLabels, Histogram>,
    queued: Single,
    queue_waits: Histogram,
    each_ready: Family<CredentialLabels, Gauge>,
    each_expiry: Family<CredentialLabels, Gauge>,
    connections: Family<ConnectionLabels, Gauge>,
    broker_up: Family<ConnectionLabels, Gauge>,
    broker_answers: Family<ResultLabels, Histogram>,
    delivered: Counter,
    undelivered: Counter,
    dead_letters: Counter,
    reconciles: Family<ResultLabels, Histogram>,
    calls: Family<ApiLabels, Counter>,
    leader: Gauge,
    terms: Counter,
}

impl Metrics {
    /// Everything at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut declare = Declare {
            registry: Registry::default(),
            described: Vec::new(),
        };
        let d = &mut declare;
        let calls = || Histogram::new(CALLS);
        let single = Single::default;
        let metrics = Self {
            registry: Arc::default(),
            described: Arc::default(),
            names: Arc::default(),
            leading: Arc::default(),
            mints: d.metric(COUNTER, "mints", &["connection", "scope", "service", "outcome"], "Requests to ChittyConnect that ended, by outcome: Issued, Rotated, or the reason of the failure", Family::default()),
            first_tokens: d.metric(HISTOGRAM, "first_token_seconds", &[], "Time from the creation of a credential to its first token, where there always is one", Histogram::new(WAITS)),
            rotations: d.metric(HISTOGRAM, "rotation_lateness_seconds", &[], "Time from when a renewal was due to its new token", Histogram::new(WAITS)),
            events: d.metric(COUNTER, "audit_events", &["event", "reason"], "Audit events, by event and reason", Family::default()),
            credentials: d.metric(LEADERS, "credentials", &["ready", "reason"], "EphemeralCredentials, by readiness and reason", Family::default()),
            nearest_expiry: d.metric(LEADERS, "nearest_expiry_timestamp_seconds", &[], "When the first of all valid tokens ends, since 1970; absent where there is none", single()),
            overdue: d.metric(LEADERS, "renewals_overdue", &[], "Credentials whose renewal is due for more than a minute", single()),
            at_risk: d.metric(LEADERS, "credentials_at_risk", &[], "Credentials that have used up half of their runway, the life kept for jobs and retries, without being renewed", single()),
            in_flight: d.metric(LEADERS, "mints_in_flight", &[], "Requests to ChittyConnect that are under way or being published", single()),
            limit: d.metric(LEADERS, "budget_limit", SCOPE, "Requests that the window of a budget allows", Family::default()),
            used: d.metric(LEADERS, "budget_used", SCOPE, "Requests that count in the window of a budget", Family::default()),
            kept: d.metric(LEADERS, "budget_kept", SCOPE, "Requests that are kept for renewals and retries", Family::default()),
            waiting: d.metric(LEADERS, "budget_waiting", SCOPE, "Newcomers that wait for a slot", Family::default()),
            backlog: d.metric(LEADERS, "audit_backlog_events", SCOPE, "Audit events that are not delivered yet", Family::default()),
            backlog_ratio: d.metric(LEADERS, "audit_backlog_percent", &[], "How full the fullest backlog of audit events is: newcomers wait from 80 on, renewals from 100", single()),
            owed: d.metric(LEADERS, "revocations_owed", SCOPE, "Tokens that are to be revoked by now and are not yet", Family::default()),
            journal_bytes: d.metric(LEADERS, "journal_bytes", SCOPE, "Size of the journal of a budget, all its parts together", Family::default()),
            commits: d.metric(HISTOGRAM, "journal_commit_duration_seconds", &["result"], "Time that a commit to a journal took, all its writes and tries together; result: ok or error", Family::new_with_constructor(calls as fn() -> Histogram)),
            queued: d.metric(LEADERS, "reconcile_queue_length", &[], "Credentials that are due to be looked at, and wait for their turn", single()),
            queue_waits: d.metric(HISTOGRAM, "reconcile_queue_duration_seconds", &[], "Time that a credential which is due to be looked at waits for its turn", calls()),
            each_ready: d.metric(LEADERS, "credential_ready", EACH, "Whether a credential is Ready; only with --credential-metrics", Family::default()),
            each_expiry: d.metric(LEADERS, "credential_expiry_timestamp_seconds", EACH, "When the token of a credential ends, since 1970; absent where it has none; only with --credential-metrics", Family::default()),
            delivered: d.metric(COUNTER, "audit_delivered", &[], "Audit events that ChittyChronicle took", Counter::default()),
            undelivered: d.metric(COUNTER, "audit_delivery_failures", &[], "Tries to deliver an audit event that failed", Counter::default()),
            dead_letters: d.metric(COUNTER, "audit_dead_letters", &[], "Audit events that were kept as dead letters", Counter::default()),
            connections: d.metric(LEADERS, "connection_ready", &["connection"], "Whether a ChittyConnection can be used; absent while it is suspended", Family::default()),
            broker_up: d.metric(LEADERS, "broker_up", &["connection"], "Whether ChittyConnect answered the last request of a connection with anything but 5xx", Family::default()),
            broker_answers: d.metric(HISTOGRAM, "broker_request_duration_seconds", &["result"], "Time from a request to ChittyConnect to its answer, or to giving up; result: ok, or the reason", Family::new_with_constructor(calls as fn() -> Histogram)),
            reconciles: d.metric(HISTOGRAM, "reconcile_duration_seconds", &["result"], "Time of one pass over one credential; result: ok or error", Family::new_with_constructor(calls as fn() -> Histogram)),
            calls: d.metric(COUNTER, "api_requests", &["verb", "code"], "Calls to the API server, by HTTP method (or watch) and status; code 0: no answer", Family::default()),
            leader: d.metric(GAUGE, "leader", &[], "Whether this process leads", Gauge::default()),
            terms: d.metric(COUNTER, "leader_terms", &[], "Times this process began to lead", Counter::default()),
        };
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let ours = d.registry.sub_registry_with_prefix(PREFIX);
        ours.register("build", "The version that runs", version);
        d.described.push(Described {
            name: format!("{PREFIX}_build_info"),
            kind: "info",
            labels: &["version"],
            help: "The version that runs",
            leader: false,
        });
        let Declare {
            mut registry,
            mut described,
        } = declare;
        registry.register_collector(Box::new(process::Process));
        described.extend(process::described());
        // What an alert counts is there from the start: an increase is one over what was there before.
        drop(metrics.events.get_or_create(&EventLabels {
            event: EventType::Expired.as_str().to_owned(),
            reason: Reason::Expired.to_string(),
        }));
        *locked(&metrics.registry) = registry;
        Self {
            described: Arc::new(described),
            ..metrics
        }
    }

    /// Every metric, in the order of their names.
    #[must_use]
    pub fn described(&self) -> Vec<Described> {
        let mut described = self.described.as_ref().clone();
        described.sort_by(|a, b| a.name.cmp(&b.name));
        described
    }

    /// Counts a committed audit event.
    pub fn event(&self, event: &str, reason: Reason) {
        let labels = EventLabels {
            event: event.to_owned(),
            reason: reason.to_string(),
        };
        self.events.get_or_create(&labels).inc();
    }

    /// Counts a request that ended.
    pub fn minted(&self, scope: ScopeLabels, outcome: Reason) {
        let ScopeLabels {
            connection,
            scope,
            service,
        } = locked(&self.names).named(scope);
        let labels = MintLabels {
            connection,
            scope,
            service,
            outcome: outcome.to_string(),
        };
        self.mints.get_or_create(&labels).inc();
    }

    /// Notes how long a credential waited for its first token.
    pub fn first_token(&self, after: Duration) {
        self.first_tokens.observe(after.as_secs_f64());
    }

    /// Notes how late a token was renewed.
    pub fn rotated(&self, late: Duration) {
        self.rotations.observe(late.as_secs_f64());
    }

    /// Notes how long `ChittyConnect` took to answer a connection, and what became of it; `up` where it answered at all.
    pub fn answered(&self, connection: &str, after: Duration, failed: Option<Reason>, up: bool) {
        let result = failed.map_or("ok".to_owned(), |reason| reason.to_string());
        self.broker_answers
            .get_or_create(&ResultLabels { result })
            .observe(after.as_secs_f64());
        let leading = locked(&self.leading);
        if *leading {
            let connection = connection.to_owned();
            self.broker_up
                .get_or_create(&ConnectionLabels { connection })
                .set(up.into());
        }
    }

    /// Notes one pass over a credential.
    pub fn reconciled(&self, ok: bool, after: Duration) {
        let result = if ok { "ok" } else { "error" }.to_owned();
        self.reconciles
            .get_or_create(&ResultLabels { result })
            .observe(after.as_secs_f64());
    }

    /// Notes how long a credential waited for its turn to be looked at.
    pub fn waited_in_queue(&self, waited: Duration) {
        self.queue_waits.observe(waited.as_secs_f64());
    }

    /// Notes how long a commit to a journal took.
    pub fn committed(&self, took: Duration, ok: bool) {
        let result = if ok { "ok" } else { "error" }.to_owned();
        self.commits
            .get_or_create(&ResultLabels { result })
            .observe(took.as_secs_f64());
    }

    /// Counts a call to the API server.
    pub fn called(&self, verb: &str, code: u16) {
        let labels = ApiLabels {
            verb: verb.to_owned(),
            code,
        };
        self.calls.get_or_create(&labels).inc();
    }

    /// Counts one delivered audit event.
    pub fn delivered(&self) {
        self.delivered.inc();
    }

    /// Counts one try that delivered nothing.
    pub fn undelivered(&self) {
        self.undelivered.inc();
    }

    /// Counts one dead letter.
    pub fn dead_letter(&self) {
        self.dead_letters.inc();
    }

    /// This process leads.
    pub fn begin_term(&self) {
        *locked(&self.leading) = true;
        self.leader.set(1);
        self.terms.inc();
    }

    /// It leads no more: what only a leader knows is not its to tell.
    pub fn end_term(&self) {
        let mut leading = locked(&self.leading);
        *leading = false;
        self.leader.set(0);
        let _reading = locked(&self.registry);
        self.credentials.clear();
        for gauge in [
            &self.nearest_expiry,
            &self.overdue,
            &self.at_risk,
            &self.in_flight,
            &self.backlog_ratio,
            &self.queued,
        ] {
            gauge.clear();
        }
        for family in self.per_scope() {
            family.clear();
        }
        self.each_ready.clear();
        self.each_expiry.clear();
        self.connections.clear();
        self.broker_up.clear();
    }

    fn per_scope(&self) -> [&PerScope; 7] {
        [
            &self.limit,
            &self.used,
            &self.kept,
            &self.waiting,
            &self.backlog,
            &self.owed,
            &self.journal_bytes,
        ]
    }

    /// Sets what only a leader knows; nothing where this process does not lead.
    pub fn observe(&self, snapshot: &Snapshot) {
        let leading = locked(&self.leading);
        if !*leading {
            return;
        }
        let mut names = locked(&self.names);
        let _reading = locked(&self.registry);
        self.credentials.clear();
        for ((ready, reason), count) in &snapshot.credentials {
            let labels = StateLabels {
                ready: if *ready { "True" } else { "False" }.to_owned(),
                reason: reason.clone(),
            };
            self.credentials.get_or_create(&labels).set(*count);
        }
        self.nearest_expiry.clear();
        if let Some(at) = snapshot.nearest_expiry {
            self.nearest_expiry.get_or_create(&NoLabels {}).set(at);
        }
        let fullest = snapshot.scopes.iter().map(|(_, figures)| figures.backlog_percent).max();
        for (gauge, value) in [
            (&self.overdue, snapshot.overdue),
            (&self.at_risk, snapshot.at_risk),
            (&self.in_flight, snapshot.in_flight),
            (&self.queued, snapshot.queued),
            (&self.backlog_ratio, whole(fullest.unwrap_or_default())),
        ] {
            gauge.get_or_create(&NoLabels {}).set(value);
        }
        for family in self.per_scope() {
            family.clear();
        }
        for (labels, figures) in &snapshot.scopes {
            let labels = names.named(labels.clone());
            let values = [
                i64::from(figures.limit),
                i64::from(figures.used),
                i64::from(figures.kept),
                i64::from(figures.waiting),
                whole(figures.backlog),
                whole(figures.owed),
                whole(figures.journal_bytes),
            ];
            for (family, value) in self.per_scope().into_iter().zip(values) {
                family.get_or_create(&labels).inc_by(value);
            }
        }
        self.each_ready.clear();
        self.each_expiry.clear();
        for credential in &snapshot.each {
            let labels = CredentialLabels {
                namespace: credential.namespace.clone(),
                name: credential.name.clone(),
            };
            self.each_ready.get_or_create(&labels).set(credential.ready.into());
            if let Some(at) = credential.expires_at {
                self.each_expiry.get_or_create(&labels).set(at);
            }
        }
        self.connections.clear();
        for (connection, ready) in &snapshot.connections {
            let connection = connection.clone();
            let labels = ConnectionLabels { connection };
            self.connections.get_or_create(&labels).set((*ready).into());
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &locked(&self.registry));
        text
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// `docs/metrics.md`.
#[must_use]
pub fn reference() -> String {
    let mut page = format!(
        "# Metrics\n\n\
         Generated from the code (`UPDATE_DOCS=1 cargo test --lib metrics`); edit nothing here.\n\n\
         `/metrics` on :8080 of every replica, in the OpenMetrics text format. What is marked **leader** is there on the replica\n\
         that leads, and gone when it leads no more: no query has to leave out stale replicas.\n\n\
         `connection`, `scope` and `service` name a budget: the ChittyConnection; what the limit is counted for, `Service` or `Key`;\n\
         and the service, `*` for the budget of a key. The first {MOST_SCOPES} budgets that a process sees have series of their own;\n\
         all others together are `other`. No label holds the name of a credential but where `--credential-metrics` is set (with the\n\
         chart `metrics.perCredential`).\n\n\
         | metric | type | labels | |\n| --- | --- | --- | --- |\n"
    );
    for metric in Metrics::new().described() {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let leader = if metric.leader { " **leader**" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {}{leader} |",
            metric.name,
            metric.kind,
            labels.join(", "),
            metric.help
        );
    }
    page
}

/// Serves `/metrics` until `stop` fires.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn serve(addr: SocketAddr, metrics: Metrics, stop: CancellationToken) -> anyhow::Result<()> {
    const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let router = Router::new().route(
        "/metrics",
        get(move || async move { ([(CONTENT_TYPE, FORMAT)], metrics.text()) }),
    );
    super::health::listen(addr, router, stop, "--metrics-addr").await
}
