//! Traces: where the time of one mint goes, from the watch that woke its credential to the commit of its outcome.
//!
//! Sent as OTLP over HTTP, in its JSON encoding, to where `--otlp-endpoint` says; without it nothing of this is kept. The
//! stages of a mint are few and known, so they are noted one by one, and no span has what nobody put there: an SDK that
//! gathers whatever is instrumented would be one more way for a value to leave.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use reqwest::{Client, redirect, retry};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::core::Time;
use crate::core::ids::ObjectName;
use crate::core::journal::RequestFacts;

/// Traces that wait to be sent; more are dropped.
const MOST_WAITING: usize = 1024;
/// How many go in one request.
const MOST_AT_ONCE: usize = 64;
/// How long one waits for others.
const TOGETHER: Duration = Duration::from_secs(2);
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Stages that one trace holds at most: a mint that is prepared over and over is not told of each time.
const MOST_STAGES: usize = 32;

/// A part of a mint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the news, or when it was due, to the pass that looks at the credential.
    Queue,
    /// That pass: all is read, and a mint is decided on.
    Reconcile,
    /// Until the budget and its turn let it begin.
    Wait,
    /// Fresh reads, and a dry run of the Secrets.
    Prepare,
    /// The claim is committed.
    Claim,
    /// The request to `ChittyConnect`.
    Request,
    /// The Secrets are written.
    Publish,
    /// The outcome is committed.
    Outcome,
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Reconcile => "reconcile",
            Self::Wait => "wait for the budget",
            Self::Prepare => "prepare",
            Self::Claim => "commit the claim",
            Self::Request => "ask ChittyConnect",
            Self::Publish => "write the Secrets",
            Self::Outcome => "commit the outcome",
        }
    }

    /// As OTLP numbers them: a client's request, or work of our own.
    const fn kind(self) -> u8 {
        match self {
            Self::Request => 3,
            _ => 1,
        }
    }
}

#[derive(Clone, Debug)]
struct Span {
    stage: Stage,
    from: Time,
    to: Time,
    failed: Option<String>,
}

/// A mint that is under way.
#[derive(Debug)]
struct Open {
    began: Time,
    /// When it was put in line.
    wanted: Time,
    spans: Vec<Span>,
}

/// A mint that ended.
struct Trace {
    open: Open,
    ended: Time,
    name: ObjectName,
    request: RequestFacts,
    revision: u64,
    /// What became of it; a reason where it failed.
    outcome: Result<(), String>,
}

/// All mints that are traced. Cheap to clone; does nothing where traces are off.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Sink>>);

struct Sink {
    open: Mutex<HashMap<String, Open>>,
    out: mpsc::Sender<Trace>,
}

impl Traces {
    /// Sends traces to the collector at `endpoint`, whose path gets `/v1/traces`, until `stop` fires. `instance` is this
    /// process.
    ///
    /// # Errors
    /// Where no client can be built.
    pub fn start(endpoint: &Url, instance: &str, stop: CancellationToken) -> anyhow::Result<Self> {
        let (out, traces) = mpsc::channel(MOST_WAITING);
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .timeout(TIMEOUT)
            .build()?;
        let exporter = Exporter {
            client,
            url: format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/')),
            resource: resource(instance),
            failed: false,
        };
        tokio::spawn(exporter.run(traces, stop));
        Ok(Self(Some(Arc::new(Sink {
            open: Mutex::default(),
            out,
        }))))
    }

    /// A pass that `began` after the credential had `waited` so long for its turn, and ends now, put a mint in line.
    pub fn wanted(&self, uid: &str, waited: Duration, began: Time, now: Time) {
        let Some(sink) = &self.0 else { return };
        let waited = chrono::TimeDelta::from_std(waited).unwrap_or_default();
        sink.open.lock().entry(uid.to_owned()).or_insert_with(|| {
            let span = |stage, from, to| Span {
                stage,
                from,
                to,
                failed: None,
            };
            let woken = began - waited;
            Open {
                began: woken,
                wanted: now,
                spans: vec![span(Stage::Queue, woken, began), span(Stage::Reconcile, began, now)],
            }
        });
    }

    /// The mint is wanted no more.
    pub fn forget(&self, uid: &str) {
        if let Some(sink) = &self.0 {
            sink.open.lock().remove(uid);
        }
    }

    /// A stage of the mint of `uid` took from then to now, and failed for that reason.
    pub fn stage(&self, uid: &str, stage: Stage, from: Time, now: Time, failed: Option<&str>) {
        let Some(sink) = &self.0 else { return };
        let mut open = sink.open.lock();
        let Some(mint) = open.get_mut(uid).filter(|mint| mint.spans.len() < MOST_STAGES) else {
            return;
        };
        if stage == Stage::Prepare && !mint.spans.iter().any(|span| span.stage == Stage::Wait) {
            let wanted = mint.wanted;
            mint.spans.push(Span {
                stage: Stage::Wait,
                from: wanted,
                to: from,
                failed: None,
            });
        }
        mint.spans.push(Span {
            stage,
            from,
            to: now,
            failed: failed.map(str::to_owned),
        });
    }

    /// The mint of `uid` ended, with this for its outcome.
    pub fn end(
        &self,
        uid: &str,
        name: ObjectName,
        request: &RequestFacts,
        revision: u64,
        outcome: Result<(), String>,
        now: Time,
    ) {
        let Some(sink) = &self.0 else { return };
        let Some(open) = sink.open.lock().remove(uid) else {
            return;
        };
        let trace = Trace {
            open,
            ended: now,
            name,
            request: request.clone(),
            revision,
            outcome,
        };
        // A collector that does not keep up loses traces; nobody waits for it.
        let _ = sink.out.try_send(trace);
    }
}

struct Exporter {
    client: Client,
    url: String,
    resource: Value,
    /// That it cannot be sent to was told.
    failed: bool,
}

impl Exporter {
    async fn run(mut self, mut traces: mpsc::Receiver<Trace>, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                first = traces.recv() => first,
                () = stop.cancelled() => traces.try_recv().ok(),
            };
            let Some(first) = first else { return };
            let mut batch = vec![first];
            let until = tokio::time::Instant::now() + TOGETHER;
            while batch.len() < MOST_AT_ONCE {
                let next = tokio::select! {
                    next = tokio::time::timeout_at(until, traces.recv()) => next.ok().flatten(),
                    () = stop.cancelled() => traces.try_recv().ok(),
                };
                let Some(next) = next else { break };
                batch.push(next);
            }
            self.send(&batch).await;
        }
    }

    async fn send(&mut self, batch: &[Trace]) {
        let spans: Vec<Value> = batch.iter().flat_map(spans).collect();
        let scope = json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")});
        let body = json!({"resourceSpans": [{
            "resource": {"attributes": self.resource},
            "scopeSpans": [{"scope": scope, "spans": spans}],
        }]});
        let sent = self.client.post(&self.url).json(&body).send().await;
        let problem = match sent.map(|answer| answer.status()) {
            Ok(status) if status.is_success() => None,
            Ok(status) => Some(format!("it answers {status}")),
            Err(error) => Some(error.without_url().to_string()),
        };
        match problem {
            None => self.failed = false,
            Some(problem) if !self.failed => {
                self.failed = true;
                tracing::warn!(collector = %self.url, "traces cannot be sent and are dropped until they can be: {problem}");
            }
            Some(_) => {}
        }
    }
}

fn resource(instance: &str) -> Value {
    attributes(&[
        ("service.name", env!("CARGO_PKG_NAME")),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance),
    ])
}

fn attributes(pairs: &[(&str, &str)]) -> Value {
    let pairs = pairs.iter().filter(|(_, value)| !value.is_empty());
    pairs
        .map(|(key, value)| json!({"key": key, "value": {"stringValue": value}}))
        .collect()
}

/// The mint and its stages, as OTLP has them.
fn spans(trace: &Trace) -> Vec<Value> {
    let trace_id = HEXLOWER.encode(&rand::random::<[u8; 16]>());
    let id = || HEXLOWER.encode(&rand::random::<[u8; 8]>());
    let span = |id: &str, parent: &str, name: &str, kind: u8, (from, to): (Time, Time), failed: Option<&str>| {
        // 1 is well, 2 is failed.
        let status = failed.map_or(json!({"code": 1}), |why| json!({"code": 2, "message": why}));
        json!({
            "traceId": trace_id, "spanId": id, "parentSpanId": parent, "name": name, "kind": kind,
            "startTimeUnixNano": nanos(from), "endTimeUnixNano": nanos(to.max(from)), "status": status,
        })
    };
    let Trace { open, request, .. } = trace;
    let root = id();
    let failed = trace.outcome.as_ref().err().map(String::as_str);
    let mut whole = span(&root, "", "mint", 1, (open.began, trace.ended), failed);
    whole["attributes"] = attributes(&[
        ("k8s.namespace.name", &trace.name.namespace),
        ("chittyconnect.credential", &trace.name.name),
        ("chittyconnect.connection", &request.connection),
        ("chittyconnect.service", &request.service),
        ("chittyconnect.purpose", &request.purpose),
        ("chittyconnect.run_id", &request.run_id),
        ("chittyconnect.revision", &trace.revision.to_string()),
        ("chittyconnect.outcome", failed.unwrap_or("Published")),
    ]);
    let stages = open.spans.iter().map(|s| {
        let failed = s.failed.as_deref();
        span(&id(), &root, s.stage.name(), s.stage.kind(), (s.from, s.to), failed)
    });
    std::iter::once(whole).chain(stages).collect()
}

/// OTLP's JSON has 64-bit numbers as text.
fn nanos(at: Time) -> String {
    at.timestamp_nanos_opt().unwrap_or_default().max(0).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::t;

    fn sink() -> (Traces, mpsc::Receiver<Trace>) {
        let (out, traces) = mpsc::channel(4);
        let open = Mutex::default();
        (Traces(Some(Arc::new(Sink { open, out }))), traces)
    }

    fn facts() -> RequestFacts {
        RequestFacts {
            connection: "default".into(),
            service: "chittyid".into(),
            purpose: "worker-deploy".into(),
            repo: None,
            run_id: "1".to_owned(),
            type_: None,
        }
    }

    #[test]
    fn a_mint_is_one_trace_of_its_stages_and_failed_ones_say_so() {
        let (traces, mut out) = sink();
        traces.wanted("u", Duration::from_secs(1), t(10), t(11));
        // Looked at again meanwhile: it is in line since the first time.
        traces.wanted("u", Duration::ZERO, t(12), t(13));
        traces.stage("u", Stage::Prepare, t(20), t(21), None);
        traces.stage("u", Stage::Request, t(22), t(23), Some("Denied"));
        let name = ObjectName::new("n", "a");
        traces.end("u", name, &facts(), 3, Err("Denied".to_owned()), t(24));
        let spans = spans(&out.try_recv().unwrap());
        let told: Vec<_> = spans.iter().map(|s| s["name"].as_str().unwrap()).collect();
        assert_eq!(
            told,
            [
                "mint",
                "queue",
                "reconcile",
                "wait for the budget",
                "prepare",
                "ask ChittyConnect"
            ]
        );
        assert_eq!(spans[0]["startTimeUnixNano"], nanos(t(9)));
        assert_eq!(spans[3]["startTimeUnixNano"], nanos(t(11)));
        assert_eq!(spans[3]["endTimeUnixNano"], nanos(t(20)));
        assert_eq!(spans[5]["status"]["message"], "Denied");
        assert_eq!((&spans[5]["kind"], &spans[4]["kind"]), (&json!(3), &json!(1)));
        assert!(spans[1..].iter().all(|s| s["parentSpanId"] == spans[0]["spanId"]));
        assert!(spans.iter().all(|s| s["traceId"] == spans[0]["traceId"]));
    }

    #[test]
    fn what_is_wanted_no_more_is_no_trace_and_one_mint_does_not_grow_without_end() {
        let (traces, mut out) = sink();
        traces.wanted("u", Duration::ZERO, t(0), t(0));
        traces.forget("u");
        traces.end("u", ObjectName::new("n", "a"), &facts(), 1, Ok(()), t(1));
        assert!(out.try_recv().is_err());
        traces.wanted("u", Duration::ZERO, t(0), t(0));
        for i in 0..100 {
            traces.stage("u", Stage::Prepare, t(i), t(i), None);
        }
        traces.end("u", ObjectName::new("n", "a"), &facts(), 1, Ok(()), t(1));
        assert!(out.try_recv().unwrap().open.spans.len() <= MOST_STAGES + 1);
    }
}
