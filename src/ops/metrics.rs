//! `/metrics`, in the `OpenMetrics` text format. Labels are bounded: reasons and services, never names.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::api::Reason;
use crate::core::budget::Usage;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    event: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    ready: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BudgetLabels {
    budget: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: String,
}

/// All that is counted. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    outcomes: Family<OutcomeLabels, Counter>,
    credentials: Family<StateLabels, Gauge>,
    limit: Family<BudgetLabels, Gauge>,
    used: Family<BudgetLabels, Gauge>,
    kept: Family<BudgetLabels, Gauge>,
    waiting: Family<BudgetLabels, Gauge>,
    reconciles: Family<ResultLabels, Counter>,
    delivered: Counter,
    leads: Gauge,
    answers: Histogram,
}

impl Metrics {
    /// Everything at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("chittyconnect");
        let metrics = Self {
            registry: Arc::default(),
            outcomes: Family::default(),
            credentials: Family::default(),
            limit: Family::default(),
            used: Family::default(),
            kept: Family::default(),
            waiting: Family::default(),
            reconciles: Family::default(),
            delivered: Counter::default(),
            leads: Gauge::default(),
            answers: Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
        };
        registry.register(
            "outcomes",
            "Audit events committed, by event and reason",
            metrics.outcomes.clone(),
        );
        registry.register(
            "credentials",
            "EphemeralCredentials, by readiness and reason",
            metrics.credentials.clone(),
        );
        registry.register("budget_limit", "Provisions a window allows", metrics.limit.clone());
        registry.register("budget_used", "Provisions counted in the window", metrics.used.clone());
        registry.register("budget_kept", "Provisions kept for renewals", metrics.kept.clone());
        registry.register(
            "budget_waiting",
            "Credentials waiting for a slot",
            metrics.waiting.clone(),
        );
        registry.register(
            "reconciles",
            "Passes over a credential, by result",
            metrics.reconciles.clone(),
        );
        registry.register(
            "audit_delivered",
            "Audit events ChittyChronicle took",
            metrics.delivered.clone(),
        );
        registry.register(
            "broker_answer_seconds",
            "Time from POST to answer, or to giving up",
            metrics.answers.clone(),
        );
        *metrics.lock() = registry;
        metrics
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a committed audit event.
    pub fn outcome(&self, event: &str, reason: Reason) {
        let labels = OutcomeLabels {
            event: event.to_owned(),
            reason: reason.to_string(),
        };
        self.outcomes.get_or_create(&labels).inc();
    }

    /// Sets how many credentials are in which state.
    pub fn credentials(&self, counts: &HashMap<(bool, String), i64>) {
        self.credentials.clear();
        for ((ready, reason), count) in counts {
            let labels = StateLabels {
                ready: if *ready { "True" } else { "False" }.to_owned(),
                reason: reason.clone(),
            };
            self.credentials.get_or_create(&labels).set(*count);
        }
    }

    /// Sets how a budget stands.
    pub fn budget(&self, title: &str, usage: &Usage) {
        let labels = BudgetLabels {
            budget: title.to_owned(),
        };
        self.limit.get_or_create(&labels).set(i64::from(usage.limit));
        self.used.get_or_create(&labels).set(i64::from(usage.used));
        self.kept.get_or_create(&labels).set(i64::from(usage.kept));
        self.waiting.get_or_create(&labels).set(i64::from(usage.waiting));
    }

    /// Counts one pass over a credential.
    pub fn reconciled(&self, ok: bool) {
        let result = if ok { "ok" } else { "error" }.to_owned();
        self.reconciles.get_or_create(&ResultLabels { result }).inc();
    }

    /// Sets whether this process leads.
    pub fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    /// Counts one delivered audit event.
    pub fn delivered(&self) {
        self.delivered.inc();
    }

    /// Notes how long `ChittyConnect` took.
    pub fn answered(&self, after: Duration) {
        self.answers.observe(after.as_secs_f64());
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.lock());
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
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
