//! What was called and used.

use std::collections::BTreeMap;

use kube::Client;
use serde_json::{Value, json};
use testbed::process::Process;

pub(crate) fn is_write(call: &str) -> bool {
    let verb = ["POST ", "PUT ", "APPLY ", "PATCH ", "DELETE "];
    verb.iter().any(|v| call.starts_with(v)) && !call.ends_with("(dry run)")
}

/// What the process has used so far.
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_mib: f64,
    /// Of what is resident, what is not a page of the binary.
    anonymous_mib: f64,
    peak_mib: f64,
}

impl Usage {
    pub(crate) fn of(process: &Process) -> anyhow::Result<Self> {
        Self::of_pid(process.pid())
    }

    pub(crate) fn of_pid(pid: u32) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // utime and stime, in hundredths of a second.
        let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
            let kib = line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
            kib.unwrap_or_default() / 1024.0
        };
        Ok(Self {
            cpu_seconds: (ticks(11) + ticks(12)) / 100.0,
            resident_mib: mib("VmRSS:"),
            anonymous_mib: mib("RssAnon:"),
            peak_mib: mib("VmHWM:"),
        })
    }

    pub(crate) fn note(&self, figures: &mut Value) {
        figures["cpuSeconds"] = json!(self.cpu_seconds);
        figures["residentMiB"] = json!(self.resident_mib);
        figures["anonymousMiB"] = json!(self.anonymous_mib);
        figures["peakMiB"] = json!(self.peak_mib);
    }
}

/// Calls the API server answered, by verb and resource.
pub(crate) type Calls = BTreeMap<String, u64>;

pub(crate) async fn calls(client: &Client) -> anyhow::Result<Calls> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(request).await?;
    let mut calls = Calls::new();
    for line in text.lines() {
        let Some((labels, count)) = line
            .strip_prefix("apiserver_request_total{")
            .and_then(|rest| rest.rsplit_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value).filter(|v| !v.is_empty())
        };
        let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else {
            continue;
        };
        let part = label("subresource").map(|s| format!("/{s}")).unwrap_or_default();
        let dry = label("dry_run").map_or("", |_| " (dry run)");
        *calls.entry(format!("{verb} {resource}{part}{dry}")).or_default() += count.parse::<u64>()?;
    }
    Ok(calls)
}

/// What was called between the two, without the Lease, watches and what the control plane itself asks for.
pub(crate) fn of_controller(before: &Calls, after: &Calls) -> Calls {
    const RESOURCES: [&str; 6] = [
        "configmaps",
        "ephemeralcredentials",
        "chittyconnections",
        "secrets",
        "events",
        "namespaces",
    ];
    let mut made = Calls::new();
    for (call, count) in after {
        let resource = call.split([' ', '/']).nth(1).unwrap_or_default();
        let more = count.saturating_sub(before.get(call).copied().unwrap_or(0));
        if more > 0 && RESOURCES.contains(&resource) && !call.starts_with("WATCH") {
            made.insert(call.clone(), more);
        }
    }
    made
}
