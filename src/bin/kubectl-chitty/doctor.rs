//! `kubectl chitty doctor`: whether all is there and well that credentials depend on.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chittyconnect_operator::api::{ChittyConnection, GROUP, VERSION};
use chittyconnect_operator::core::{Time, clock};
use chrono::TimeDelta;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use serde::Serialize;

use crate::facts::{Connections, Credential, Seen, budgets};
use crate::terminal::{Tone, length, wrap};

/// How far clocks may be apart before somebody is misled.
const SKEW: TimeDelta = TimeDelta::seconds(5);
/// What the API server refuses, in bytes; the controller keeps to a quarter of it.
const LARGEST_PART: usize = 256 * 1024;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Good,
    /// Whoever asks may not look.
    Hidden,
    /// It works, and should be seen to.
    Warning,
    Bad,
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub of: String,
    pub state: State,
    pub text: String,
}

impl Finding {
    fn new(of: impl Into<String>, state: State, text: impl Into<String>) -> Self {
        Self {
            of: of.into(),
            state,
            text: text.into(),
        }
    }
}

/// All that was looked at.
pub struct Examined {
    /// What the API server calls its version.
    pub server: String,
    /// This machine's clock when the API server told its own.
    pub here: Time,
    pub system: String,
    pub crds: Seen<Vec<CustomResourceDefinition>>,
    pub lease: Seen<Lease>,
    pub controllers: Seen<Vec<Pod>>,
    /// Whether the controller may do what it must, by what that is; nothing where nobody may ask that.
    pub rights: Seen<Vec<Right>>,
    pub connections: Seen<Connections>,
    pub credentials: Seen<Vec<Credential>>,
    /// Of each connection's host, how far this machine comes.
    pub routes: BTreeMap<String, Route>,
    /// All parts of all journals.
    pub journals: Seen<Vec<ConfigMap>>,
    pub dead_letters: Seen<ConfigMap>,
}

/// Something that the controller's service account may do, or may not.
#[derive(Clone, Debug, PartialEq)]
pub struct Right {
    /// Such as `create secrets`.
    pub what: String,
    pub namespace: String,
    pub may: bool,
}

/// How far a way to a host leads, from this machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// Its name does not resolve.
    NoName,
    /// All of its addresses turned this machine away at once.
    Refused,
    /// One of its addresses did not say anything.
    Silent,
    /// No TLS session came about.
    NoTls,
    /// HTTP was answered.
    Answered(u16),
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    pub fn of(seen: &Examined, now: Time) -> Self {
        let mut all = vec![clock_of(seen, now)];
        all.push(crds(seen));
        all.push(lease(seen, now));
        all.push(controllers(seen));
        all.extend(rights(seen));
        match &seen.connections {
            Seen::Found(found) if found.is_empty() => {
                all.push(Finding::new(
                    "connections",
                    State::Bad,
                    "there is no ChittyConnection: nobody can ask for anything",
                ));
            }
            Seen::Found(found) => all.extend(found.iter().flat_map(|(name, c)| connection(name, c, seen, now))),
            Seen::Forbidden(what) => all.push(Finding::new("connections", State::Hidden, what)),
            Seen::Missing => {}
        }
        all.extend(credentials(seen));
        all.extend(journals(seen));
        all.push(dead_letters(seen));
        Self(all)
    }

    /// Whether somebody must do something.
    pub fn is_bad(&self) -> bool {
        self.0.iter().any(|finding| finding.state == State::Bad)
    }

    /// For a person with so many columns.
    pub fn text(&self, width: usize) -> String {
        let names = self
            .0
            .iter()
            .map(|finding| finding.of.chars().count())
            .max()
            .unwrap_or_default()
            + 2;
        let mut text = String::new();
        for finding in &self.0 {
            let (sign, tone) = match finding.state {
                State::Good => ("ok  ", Tone::Good),
                State::Hidden => ("?   ", Tone::Faint),
                State::Warning => ("warn", Tone::Warn),
                State::Bad => ("BAD ", Tone::Bad),
            };
            let indent = names + 6;
            let wrapped = wrap(&finding.text, width.max(indent + 30), indent);
            let _ = writeln!(
                text,
                "{}  {:names$}{}",
                tone.paint(sign),
                finding.of,
                wrapped.trim_start()
            );
        }
        let bad = self.0.iter().filter(|finding| finding.state == State::Bad).count();
        let hidden = self.0.iter().filter(|finding| finding.state == State::Hidden).count();
        let verdict = match bad {
            0 if self.0.iter().any(|finding| finding.state == State::Warning) => {
                Tone::Good.paint("Nothing is wrong that could be seen but what is marked warn.")
            }
            0 => Tone::Good.paint("Nothing is wrong that could be seen."),
            1 => Tone::Bad.paint("One thing is wrong."),
            n => Tone::Bad.paint(&format!("{n} things are wrong.")),
        };
        let unseen = match hidden {
            0 => String::new(),
            1 => " One thing you may not see.".to_owned(),
            n => format!(" {n} things you may not see."),
        };
        let _ = writeln!(text, "\n{verdict}{unseen}");
        text
    }
}

/// How many are not well, and why: that may be as somebody wants it, and is for `why` to tell.
fn credentials(seen: &Examined) -> Option<Finding> {
    let of = "credentials";
    let all = match &seen.credentials {
        Seen::Missing => return None,
        Seen::Forbidden(what) => return Some(Finding::new(of, State::Hidden, what)),
        Seen::Found(all) => all,
    };
    let mut reasons: BTreeMap<&str, Vec<&Credential>> = BTreeMap::new();
    for credential in all.iter().filter(|c| !c.is_well()) {
        reasons.entry(&credential.reason).or_default().push(credential);
    }
    let unwell: usize = reasons.values().map(Vec::len).sum();
    let mut reasons: Vec<(&str, Vec<&Credential>)> = reasons.into_iter().collect();
    // Of one that nobody has looked at `why` has nothing to tell.
    reasons.sort_by_key(|(reason, of_it)| (reason.is_empty(), std::cmp::Reverse(of_it.len())));
    let told: Vec<String> = reasons
        .iter()
        .enumerate()
        .map(|(place, (reason, of_it))| {
            let reason = if reason.is_empty() { "not looked at" } else { reason };
            let count = of_it.len();
            match of_it.first().filter(|_| place == 0) {
                Some(one) => format!("{reason} {count} (kubectl chitty why {})", one.id()),
                None => format!("{reason} {count}"),
            }
        })
        .collect();
    if told.is_empty() {
        return Some(Finding::new(of, State::Good, format!("{}, all well", all.len())));
    }
    let text = format!("{unwell} of {} are not well: {}", all.len(), told.join(", "));
    Some(Finding::new(of, State::Warning, text))
}

fn clock_of(seen: &Examined, now: Time) -> Finding {
    let (off, server) = (seen.here - now, &seen.server);
    if off.abs() <= SKEW {
        return Finding::new(
            "API server",
            State::Good,
            format!("{server}; its clock and this machine's agree"),
        );
    }
    let way = if off > TimeDelta::zero() { "ahead of" } else { "behind" };
    Finding::new(
        "API server",
        State::Warning,
        format!(
            "{server}; this machine's clock is {} {way} its, by which all times here are told",
            length(off.abs())
        ),
    )
}

/// Whether an installed CRD says what this version's does, descriptions apart.
fn crds(seen: &Examined) -> Finding {
    let found = match &seen.crds {
        Seen::Found(found) => found,
        Seen::Forbidden(what) => return Finding::new("CRDs", State::Hidden, what),
        Seen::Missing => {
            return Finding::new(
                "CRDs",
                State::Bad,
                "they are not installed: install the chart, or kubectl apply -f crds/",
            );
        }
    };
    let wanted = ["chittyconnections", "ephemeralcredentials"];
    let mut amiss = Vec::new();
    for plural in wanted {
        let name = format!("{plural}.{GROUP}");
        let Some(crd) = found.iter().find(|crd| crd.name_any() == name) else {
            amiss.push(format!("{name} is not installed"));
            continue;
        };
        let conditions = crd
            .status
            .as_ref()
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        if !conditions
            .iter()
            .any(|c| c.type_ == "Established" && c.status == "True")
        {
            amiss.push(format!("{name} is not established"));
        }
        if !crd.spec.versions.iter().any(|v| v.name == VERSION && v.served) {
            amiss.push(format!("{name} does not serve {VERSION}"));
        }
    }
    if amiss.is_empty() {
        Finding::new("CRDs", State::Good, format!("both kinds are served as {VERSION}"))
    } else {
        Finding::new("CRDs", State::Bad, amiss.join("; "))
    }
}

fn lease(seen: &Examined, now: Time) -> Finding {
    let lease = match &seen.lease {
        Seen::Found(lease) => lease,
        Seen::Forbidden(what) => return Finding::new("leader", State::Hidden, what),
        Seen::Missing => {
            let text = format!(
                "no controller has ever led in namespace {}: is that where it is installed (--system-namespace)?",
                seen.system
            );
            return Finding::new("leader", State::Bad, text);
        }
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.filter(|name| !name.is_empty());
    let renewed = spec.renew_time.and_then(|at| Time::from_timestamp(at.0.as_second(), 0));
    let lasts = TimeDelta::seconds(spec.lease_duration_seconds.unwrap_or(10).into());
    match (holder, renewed) {
        // Lease times are the holder's own clock's: a little grace.
        (Some(holder), Some(at)) if now - at <= lasts + SKEW => Finding::new(
            "leader",
            State::Good,
            format!("{holder}, renewed {} ago", length(now - at)),
        ),
        (Some(holder), Some(at)) => Finding::new(
            "leader",
            State::Bad,
            format!(
                "{holder} has not renewed its Lease for {}: no controller runs, or its clock is wrong",
                length(now - at)
            ),
        ),
        _ => Finding::new("leader", State::Bad, "nobody leads: no controller runs"),
    }
}

fn controllers(seen: &Examined) -> Finding {
    let pods = match &seen.controllers {
        Seen::Found(pods) => pods,
        Seen::Forbidden(what) => return Finding::new("controller", State::Hidden, what),
        Seen::Missing => return Finding::new("controller", State::Hidden, "its Pods cannot be listed"),
    };
    if pods.is_empty() {
        // It may run elsewhere: the Lease tells whether it does.
        return Finding::new(
            "controller",
            State::Warning,
            format!(
                "no Pod of it is in namespace {}: it runs elsewhere, or not at all",
                seen.system
            ),
        );
    }
    let ready = |pod: &&Pod| {
        let conditions = pod
            .status
            .as_ref()
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let images = pods
        .iter()
        .flat_map(|p| p.spec.iter())
        .flat_map(|s| &s.containers)
        .filter_map(|c| c.image.clone());
    let mut images: Vec<String> = images.collect();
    images.sort();
    images.dedup();
    let up = pods.iter().filter(ready).count();
    let unready: Vec<String> = pods
        .iter()
        .filter(|pod| !ready(pod))
        .map(ResourceExt::name_any)
        .collect();
    let text = format!("{up} of {} Pods are ready, of {}", pods.len(), images.join(" and "));
    match unready.as_slice() {
        [] if images.len() > 1 => {
            Finding::new("controller", State::Warning, format!("{text}: an upgrade is under way"))
        }
        [] => Finding::new("controller", State::Good, text),
        unready => Finding::new(
            "controller",
            if up == 0 { State::Bad } else { State::Warning },
            format!(
                "{text}; not ready: {}. Their /readyz says what they wait for",
                unready.join(", ")
            ),
        ),
    }
}

fn rights(seen: &Examined) -> Option<Finding> {
    let rights = match &seen.rights {
        Seen::Found(rights) => rights,
        Seen::Forbidden(what) => return Some(Finding::new("rights", State::Hidden, what)),
        Seen::Missing => return None,
    };
    let mut refused: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for right in rights.iter().filter(|right| !right.may) {
        refused.entry(&right.namespace).or_default().push(&right.what);
    }
    if refused.is_empty() {
        return Some(Finding::new(
            "rights",
            State::Good,
            "the controller may do what it must",
        ));
    }
    if rights.iter().all(|right| !right.may) {
        let text =
            "the service account chittyconnect-operator may do nothing here: the controller runs as somebody else";
        return Some(Finding::new("rights", State::Warning, text));
    }
    let all = |namespace: &str| rights.iter().filter(|right| right.namespace == namespace).count();
    let unserved =
        |(namespace, refused): (&&str, &Vec<&str>)| **namespace != seen.system && refused.len() == all(namespace);
    let (state, hint) = if refused.iter().all(unserved) {
        (
            State::Warning,
            ": it does not serve that namespace, or its service account has another name",
        )
    } else {
        (State::Bad, "")
    };
    let told = refused
        .iter()
        .map(|(namespace, what)| format!("{} in namespace {namespace}", what.join(", ")));
    let told: Vec<String> = told.collect();
    Some(Finding::new(
        "rights",
        state,
        format!("the controller may not {}{hint}", told.join(", nor ")),
    ))
}

fn connection(name: &str, connection: &ChittyConnection, seen: &Examined, now: Time) -> Vec<Finding> {
    let of = format!("connection {name}");
    let status = connection.status.clone().unwrap_or_default();
    let mut all = Vec::new();
    if connection.spec.suspend {
        all.push(Finding::new(
            &of,
            State::Warning,
            "it is suspended: nothing is minted by it",
        ));
    }
    if status.conditions.is_empty() {
        all.push(Finding::new(&of, State::Bad, "no controller has looked at it"));
    }
    for c in status.conditions.iter().filter(|c| c.status != "True") {
        all.push(Finding::new(&of, State::Bad, format!("{}: {}", c.reason, c.message)));
    }
    if let Some(held) = status.held_by.as_ref().filter(|held| held.namespace != seen.system) {
        all.push(Finding::new(
            &of,
            State::Warning,
            format!("another installation serves it, in namespace {}", held.namespace),
        ));
    }
    let blocked = budgets(connection).filter_map(|b| Some((b.blocked_until.filter(|at| *at > now)?, b)));
    for (until, budget) in blocked {
        let text = format!(
            "ChittyConnect asked to leave {} alone until {}",
            budget.title(),
            clock(until, now)
        );
        all.push(Finding::new(&of, State::Warning, text));
    }
    if all.is_empty() {
        let used = status
            .used
            .map_or_else(String::new, |used| format!(", {used} of its fullest budget used"));
        all.push(Finding::new(
            &of,
            State::Good,
            format!("the controller reaches {}{used}", connection.spec.url),
        ));
    }
    if let Some(route) = seen.routes.get(name) {
        all.push(way(&of, &connection.spec.url, route));
    }
    all
}

/// What this machine finds: a hint, for the controller may have another way.
fn way(of: &str, url: &str, route: &Route) -> Finding {
    let of = format!("{of}, from here");
    let (state, text) = match route {
        Route::NoName => (State::Warning, format!("name: the host of {url} does not resolve")),
        Route::Refused => (
            State::Warning,
            format!("name ok; route: {url} refuses connections: nothing listens there, or a firewall rejects them"),
        ),
        Route::Silent => (
            State::Warning,
            format!("name ok; route: nothing comes back from {url}: packets to it are dropped"),
        ),
        Route::NoTls => (
            State::Warning,
            format!("name ok, route ok; TLS: no session came about with {url}, by what this machine trusts"),
        ),
        Route::Answered(status) => {
            let tls = if url.starts_with("https:") { "TLS ok" } else { "no TLS" };
            (
                State::Good,
                format!("name ok, route ok, {tls}; HTTP was answered with {status}"),
            )
        }
    };
    Finding::new(of, state, text)
}

fn journals(seen: &Examined) -> Vec<Finding> {
    let parts = match &seen.journals {
        Seen::Found(parts) => parts,
        Seen::Forbidden(what) => return vec![Finding::new("journals", State::Hidden, what)],
        Seen::Missing => return vec![],
    };
    let (mut heads, mut pages, mut largest, mut waiting) = (0, 0, 0, 0);
    let mut all = Vec::new();
    for part in parts {
        let name = part.name_any();
        let text = part
            .data
            .as_ref()
            .and_then(|data| data.get("journal.json"))
            .map(String::as_str)
            .unwrap_or_default();
        let role = part.labels().get("connect.chitty.cc/journal").map(String::as_str);
        match role {
            Some("head") => heads += 1,
            Some("page") => pages += 1,
            _ => continue,
        }
        largest = largest.max(text.len());
        let Ok(document) = serde_json::from_str::<serde_json::Value>(text) else {
            all.push(Finding::new(
                "journals",
                State::Bad,
                format!("ConfigMap {name} is not as the controller wrote it"),
            ));
            continue;
        };
        if !part.annotations().contains_key("connect.chitty.cc/signature") {
            all.push(Finding::new(
                "journals",
                State::Bad,
                format!("ConfigMap {name} carries no signature"),
            ));
        }
        if let Some(at) = document.get("lostAt").and_then(serde_json::Value::as_str) {
            let title = part
                .annotations()
                .get("connect.chitty.cc/budget-of")
                .map_or(name.as_str(), String::as_str);
            let text = format!("part of that of {title} was lost at {at}: newcomers wait for a window");
            all.push(Finding::new("journals", State::Warning, text));
        }
        let slots = document.get("slots").and_then(serde_json::Value::as_object);
        let events = slots
            .into_iter()
            .flatten()
            .filter_map(|(_, slot)| Some(slot.get("events")?.as_array()?.len()));
        waiting += events.sum::<usize>();
    }
    let state = if largest > LARGEST_PART {
        State::Bad
    } else {
        State::Good
    };
    all.insert(
        0,
        Finding::new(
            "journals",
            state,
            format!(
                "{heads} with {pages} pages; the largest object has {} KiB of at most 256",
                largest.div_ceil(1024)
            ),
        ),
    );
    // Newcomers stop at 1,600 in one journal.
    let state = if waiting >= 1000 { State::Warning } else { State::Good };
    all.push(Finding::new(
        "audit",
        state,
        format!("{waiting} events wait for ChittyChronicle"),
    ));
    all
}

fn dead_letters(seen: &Examined) -> Finding {
    match &seen.dead_letters {
        Seen::Missing => Finding::new("dead letters", State::Good, "none"),
        Seen::Forbidden(what) => Finding::new("dead letters", State::Hidden, what),
        Seen::Found(map) => {
            let count = map.data.as_ref().map_or(0, BTreeMap::len);
            let text = format!(
                "{count} audit events were not taken by ChittyChronicle: kubectl get configmap {} -n {} -o yaml",
                map.name_any(),
                seen.system
            );
            Finding::new(
                "dead letters",
                if count == 0 { State::Good } else { State::Warning },
                text,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use chittyconnect_operator::api::{Reason, crd_files};
    use expect_test::expect;
    use serde_json::json;

    use super::*;
    use crate::examples::{connections, example, now};

    fn parsed<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn well() -> Examined {
        let crds = crd_files().unwrap().into_iter().map(|(_, yaml)| {
            let mut crd: CustomResourceDefinition = serde_yaml::from_str(&yaml).unwrap();
            let established = json!({"type": "Established", "status": "True"});
            crd.status = Some(parsed(json!({"conditions": [established]})));
            crd
        });
        let mut all = connections(Reason::Issued);
        let good = json!({
            "type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-11-21T12:00:00Z",
        });
        let default = all.get_mut("default").unwrap();
        default.status.as_mut().unwrap().conditions = vec![parsed(good)];
        Examined {
            server: "v1.35.4".to_owned(),
            here: now(),
            system: "chittyconnect-system".to_owned(),
            credentials: Seen::Found(vec![Credential::from(&example(Reason::Issued))]),
            crds: Seen::Found(crds.collect()),
            lease: Seen::Found(parsed(json!({"spec": {
                "holderIdentity": "chittyconnect-operator-0", "leaseDurationSeconds": 10,
                "renewTime": "2026-11-21T12:22:09.000000Z",
            }}))),
            controllers: Seen::Found(vec![parsed(json!({
                "metadata": {"name": "chittyconnect-operator-0"},
                "spec": {"containers": [{"name": "controller", "image": "ghcr.io/chittyos/chittyconnect-operator:0.1.0"}]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }))]),
            rights: Seen::Found(vec![]),
            connections: Seen::Found(all),
            routes: [("default".to_owned(), Route::Answered(200))].into(),
            journals: Seen::Found(vec![parsed(json!({
                "metadata": {
                    "name": "chitty-journal-1", "labels": {"connect.chitty.cc/journal": "head"},
                    "annotations": {"connect.chitty.cc/signature": "s"},
                },
                "data": {"journal.json": "{}"},
            }))]),
            dead_letters: Seen::Missing,
        }
    }

    fn told(seen: &Examined) -> (bool, String) {
        let findings = Findings::of(seen, now());
        let text = findings.text(100);
        (findings.is_bad(), anstream::adapter::strip_str(&text).to_string())
    }

    #[test]
    fn where_all_is_well_nothing_is_wrong() {
        let (bad, text) = told(&well());
        assert!(!bad, "{text}");
        expect![[r#"
            ok    API server                     v1.35.4; its clock and this machine's agree
            ok    CRDs                           both kinds are served as v1alpha1
            ok    leader                         chittyconnect-operator-0, renewed 1s ago
            ok    controller                     1 of 1 Pods are ready, of
                                                 ghcr.io/chittyos/chittyconnect-operator:0.1.0
            ok    rights                         the controller may do what it must
            ok    connection default             the controller reaches https://connect.chitty.cc, 3/10 of its
                                                 fullest budget used
            ok    connection default, from here  name ok, route ok, TLS ok; HTTP was answered with 200
            ok    credentials                    1, all well
            ok    journals                       1 with 0 pages; the largest object has 1 KiB of at most 256
            ok    audit                          0 events wait for ChittyChronicle
            ok    dead letters                   none

            Nothing is wrong that could be seen.
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn each_thing_that_is_wrong_is_told_with_what_it_means() {
        let right = |what: &str, namespace: &str, may| Right {
            what: what.to_owned(),
            namespace: namespace.to_owned(),
            may,
        };
        let seen = Examined {
            here: now() + TimeDelta::seconds(90),
            crds: Seen::Missing,
            lease: Seen::Found(parsed(json!({"spec": {
                "holderIdentity": "chittyconnect-operator-0", "leaseDurationSeconds": 10,
                "renewTime": "2026-11-21T12:12:09.000000Z",
            }}))),
            controllers: Seen::Found(vec![]),
            rights: Seen::Found(vec![
                right("get secrets", "demo-web", true),
                right("create secrets", "demo-web", false),
            ]),
            connections: Seen::Found(connections(Reason::Unauthorized)),
            credentials: Seen::Found(
                [
                    Reason::Issued,
                    Reason::Denied,
                    Reason::SecretRefused,
                    Reason::SecretRefused,
                ]
                .map(|r| Credential::from(&example(r)))
                .into(),
            ),
            routes: [("default".to_owned(), Route::NoTls)].into(),
            journals: Seen::Found(vec![parsed(json!({
                "metadata": {"name": "chitty-journal-1", "labels": {"connect.chitty.cc/journal": "head"}},
                "data": {"journal.json": "{\"lostAt\": \"2026-11-21T12:10:00Z\"}"},
            }))]),
            dead_letters: Seen::Found(parsed(json!({
                "metadata": {"name": "chittyconnect-audit-dead-letters"}, "data": {"a": "{}"},
            }))),
            ..well()
        };
        let (bad, text) = told(&seen);
        assert!(bad);
        expect![[r#"
            warn  API server                     v1.35.4; this machine's clock is 90s ahead of its, by which all
                                                 times here are told
            BAD   CRDs                           they are not installed: install the chart, or kubectl apply -f
                                                 crds/
            BAD   leader                         chittyconnect-operator-0 has not renewed its Lease for 10m: no
                                                 controller runs, or its clock is wrong
            warn  controller                     no Pod of it is in namespace chittyconnect-system: it runs
                                                 elsewhere, or not at all
            BAD   rights                         the controller may not create secrets in namespace demo-web
            BAD   connection default             Unauthorized: ChittyConnect refuses the API key; nothing is
                                                 asked until it changes, except once at 12:34:00Z
            warn  connection default, from here  name ok, route ok; TLS: no session came about with
                                                 https://connect.chitty.cc, by what this machine trusts
            warn  credentials                    3 of 4 are not well: SecretRefused 2 (kubectl chitty why
                                                 demo-web/site-deploy), Denied 1
            ok    journals                       1 with 0 pages; the largest object has 1 KiB of at most 256
            BAD   journals                       ConfigMap chitty-journal-1 carries no signature
            warn  journals                       part of that of chitty-journal-1 was lost at
                                                 2026-11-21T12:10:00Z: newcomers wait for a window
            ok    audit                          0 events wait for ChittyChronicle
            warn  dead letters                   1 audit events were not taken by ChittyChronicle: kubectl get
                                                 configmap chittyconnect-audit-dead-letters -n
                                                 chittyconnect-system -o yaml

            5 things are wrong.
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn of_credentials_that_are_not_well_one_of_the_commonest_reason_is_named_and_none_that_nobody_looked_at() {
        let named = |name: &str, reason: &str| {
            let mut credential = Credential::from(&example(Reason::Denied));
            (credential.name, credential.reason) = (name.to_owned(), reason.to_owned());
            credential
        };
        let told = |all: &[Credential]| {
            let seen = Examined {
                credentials: Seen::Found(all.to_vec()),
                ..well()
            };
            credentials(&seen).unwrap().text
        };
        let new = ["a", "b", "c"].map(|name| named(name, ""));
        let mut all = new.to_vec();
        all.extend([
            named("d", "Denied"),
            named("e", "SecretRefused"),
            named("f", "SecretRefused"),
        ]);
        assert_eq!(
            told(&all),
            "6 of 6 are not well: SecretRefused 2 (kubectl chitty why demo-web/e), Denied 1, not looked at 3"
        );
        assert_eq!(
            told(&new),
            "3 of 3 are not well: not looked at 3 (kubectl chitty why demo-web/a)"
        );
    }

    #[test]
    fn what_may_not_be_seen_is_not_bad() {
        let hidden = |what: &str| format!("you may not read {what}");
        let seen = Examined {
            crds: Seen::Forbidden(hidden("CustomResourceDefinitions")),
            lease: Seen::Forbidden(hidden("Leases")),
            controllers: Seen::Forbidden(hidden("Pods")),
            rights: Seen::Forbidden(hidden("rights")),
            connections: Seen::Forbidden(hidden("ChittyConnections")),
            routes: BTreeMap::new(),
            journals: Seen::Forbidden(hidden("journals")),
            dead_letters: Seen::Forbidden(hidden("ConfigMaps")),
            ..well()
        };
        let (bad, text) = told(&seen);
        assert!(!bad && text.contains("7 things you may not see"), "{text}");
    }

    #[test]
    fn a_route_that_is_refused_is_told_from_one_that_swallows_all() {
        let told = |route: Route| way("connection default", "https://connect.chitty.cc", &route);
        for (route, text) in [
            (Route::Refused, "refuses connections"),
            (Route::Silent, "packets to it are dropped"),
        ] {
            let found = told(route);
            assert!(found.state == State::Warning && found.text.contains(text), "{found:?}");
        }
    }

    #[test]
    fn a_namespace_that_is_not_served_is_told_from_a_right_that_is_missing() {
        let right = |what: &str, may| Right {
            what: what.to_owned(),
            namespace: "demo-web".to_owned(),
            may,
        };
        let seen = Examined {
            rights: Seen::Found(vec![
                right("get secrets", false),
                Right {
                    namespace: "chittyconnect-system".to_owned(),
                    ..right("update configmaps", true)
                },
            ]),
            ..well()
        };
        let (bad, text) = told(&seen);
        assert!(!bad && text.contains("does not serve that namespace"), "{text}");
    }
}
