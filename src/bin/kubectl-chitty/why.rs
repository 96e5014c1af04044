//! `kubectl chitty why`: what a credential waits for, the arithmetic of it, and what to do.

use std::fmt::Write as _;

use chittyconnect_operator::api::{AccessRule, ChittyConnection, EphemeralCredential, EphemeralCredentialSpec, Reason};
use chittyconnect_operator::core::access::allowed;
use chittyconnect_operator::core::schedule::half_of_runway;
use chittyconnect_operator::core::{Time, clock};
use chrono::TimeDelta;
use serde::Serialize;

use crate::advice::{Step, advice};
use crate::facts::{Budget, Connections, Consumer, Credential, Pace, Seen, budget_of};
use crate::terminal::{Tone, bar, length, until, wrap};

/// All that an answer is made of.
pub struct Observed {
    pub object: EphemeralCredential,
    pub connections: Seen<Connections>,
    pub consumers: Seen<Vec<Consumer>>,
    /// Who else is counted in its budget.
    pub peers: Peers,
}

/// Credentials of one budget.
#[derive(Default)]
pub struct Peers {
    pub credentials: Vec<Credential>,
    /// They are those of the whole cluster.
    pub all: bool,
}

/// The answer, as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    pub credential: Credential,
    /// What the reason means.
    pub means: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
    pub arithmetic: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Pods that wait for its Secrets.
    pub waiting_pods: Vec<String>,
    pub todo: Vec<Step>,
    /// The access rule that would allow the request, as YAML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What could not be looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
}

/// Whether the answer for `reason` counts those who share the budget.
pub fn counts_peers(reason: Option<Reason>) -> bool {
    reason == Some(Reason::RateLimited)
}

pub fn why(observed: &Observed, now: Time) -> Why {
    let credential = Credential::from(&observed.object);
    let connection = observed
        .connections
        .found()
        .and_then(|all| all.get(&credential.connection));
    let hidden = [observed.connections.forbidden(), observed.consumers.forbidden()];
    let mut why = Why {
        means: String::new(),
        waits_for: String::new(),
        arithmetic: life(&credential, now),
        budget: None,
        waiting_pods: waiting(&observed.consumers),
        todo: Vec::new(),
        rule: None,
        hidden: hidden.into_iter().flatten().map(str::to_owned).collect(),
        credential,
    };
    let credential = &why.credential;
    if credential.ready.is_none() {
        "The controller has not looked at it.".clone_into(&mut why.means);
        "the controller, which needs a moment. Where nothing changes, it does not run, or it serves neither this \
         namespace \
         nor this connection"
            .clone_into(&mut why.waits_for);
        why.todo = vec![Step {
            text: "See whether the controller runs".to_owned(),
            command: Some("kubectl chitty doctor".to_owned()),
        }];
        return why;
    }
    let Some(reason) = credential.known_reason() else {
        why.means = format!(
            "This version of kubectl chitty does not know the reason {}.",
            credential.reason
        );
        return why;
    };
    let known = advice(reason, credential);
    known.means.clone_into(&mut why.means);
    why.waits_for = known.waits_for;
    why.todo = known.todo;
    let budget = connection.and_then(|c| budget_of(c, &credential.service));
    match reason {
        Reason::RateLimited => {
            let more = arithmetic(credential, budget.as_ref(), &observed.peers);
            why.arithmetic.extend(more);
            why.budget = budget;
        }
        Reason::NotPermitted => {
            why.arithmetic.extend(
                connection
                    .into_iter()
                    .flat_map(|c| rules(c, credential, &observed.object.spec)),
            );
            why.rule = Some(rule(credential, &observed.object.spec));
        }
        Reason::ConnectionNotFound => why.arithmetic.extend(observed.connections.found().map(|all| {
            let names: Vec<&str> = all.keys().map(String::as_str).collect();
            match names[..] {
                [] => "There is no ChittyConnection at all.".to_owned(),
                _ => format!("There are: {}.", names.join(", ")),
            }
        })),
        Reason::ConnectionNotReady | Reason::Unauthorized | Reason::BrokerUnavailable => {
            why.arithmetic.extend(connection.into_iter().flat_map(said));
        }
        _ => {}
    }
    why
}

/// Pods that wait for a Secret.
fn waiting(consumers: &Seen<Vec<Consumer>>) -> Vec<String> {
    let waits = consumers.found().into_iter().flatten().filter(|c| c.waits);
    let mut pods: Vec<String> = waits.map(|c| c.pod.clone()).collect();
    pods.dedup();
    pods
}

/// Whether what stands in the way of its renewal passes by itself: then it is tried at half of its runway at the latest.
fn is_retried(credential: &Credential) -> bool {
    matches!(
        credential.known_reason(),
        Some(
            Reason::RateLimited
                | Reason::BrokerUnavailable
                | Reason::Unauthorized
                | Reason::InvalidResponse
                | Reason::OutcomeUnknown
        )
    )
}

/// How long its token goes on, and when it is tried to replace it.
fn life(credential: &Credential, now: Time) -> Vec<String> {
    let mut lines = Vec::new();
    let token = credential.issued_at.zip(credential.expires_at);
    if let Some((from, end)) = token.filter(|(_, end)| *end > now) {
        let runway = credential.runway_seconds.map(TimeDelta::seconds);
        lines.push(format!(
            "Its token lives {}, until {} ({}){}.",
            length(end - from),
            clock(end, now),
            until(end, now),
            if credential.ready == Some(true) || credential.issued {
                "; then its Secrets are removed, and new Pods wait, unless there is a successor"
            } else {
                ""
            }
        ));
        if let (Some(runway), Some(asked)) = (runway, credential.runway_asked_seconds.map(TimeDelta::seconds)) {
            lines.push(format!(
                "renewBefore asks for a runway of {}, and it is {}: two thirds of a token's life at most, or it would be \
                 renewed without end.",
                length(asked),
                length(runway),
            ));
        }
        match credential.renew_at {
            Some(at) if at > now => lines.push(format!(
                "It is renewed from {} ({}) on, with {} left: so much a job finds that starts at the last moment.",
                clock(at, now),
                until(at, now),
                length(end - at),
            )),
            Some(at) if credential.follows.is_none() && credential.known_reason() != Some(Reason::Suspended) => {
                let half = Some(half_of_runway(from, end, runway)).filter(|half| *half > now && is_retried(credential));
                let last = half.map_or_else(String::new, |half| {
                    format!(
                        "; at the latest at {} ({}) it is tried, whoever else waits",
                        clock(half, now),
                        until(half, now)
                    )
                });
                lines.push(format!("Its renewal has been due since {}{last}.", clock(at, now)));
            }
            _ => {}
        }
    }
    if let Some(at) = credential.next_attempt_at.filter(|at| *at > now) {
        lines.push(format!("The next try is at {} ({}).", clock(at, now), until(at, now)));
    }
    lines
}

/// Thousandths, for a person.
pub fn decimal(thousandths: u64) -> String {
    match (thousandths / 1000, thousandths % 1000 / 100) {
        (whole, 0) => whole.to_string(),
        (whole, tenth) => format!("{whole}.{tenth}"),
    }
}

/// What a budget has, and what all who share it need.
fn arithmetic(credential: &Credential, budget: Option<&Budget>, peers: &Peers) -> Vec<String> {
    let mut lines = Vec::new();
    let lifetime = peers
        .credentials
        .iter()
        .filter_map(|c| c.pace(None))
        .map(|p| p.lifetime)
        .max();
    let window = budget.map(Budget::window);
    // Without it nothing is known of the window.
    if let (Some(pace), Some(window)) = (credential.pace(lifetime), window) {
        lines.push(format!(
            "A token that lives {} with a runway of {} is renewed every {}: {} mints in {}.",
            length(pace.lifetime),
            length(pace.runway),
            length(pace.period()),
            decimal(pace.mints(window)),
            length(window),
        ));
    }
    let counted = peers.credentials.iter().filter(|c| c.counts());
    let paces: Vec<Pace> = counted.filter_map(|c| c.pace(lifetime)).collect();
    let live = peers.credentials.iter().filter(|c| c.issued).count();
    if let Some(budget) = budget {
        let window = budget.window();
        if paces.len() > 1 {
            let needed: u64 = paces.iter().map(|pace| pace.mints(window)).sum();
            let fits = u64::from(budget.limit) * 1000 >= needed;
            lines.push(format!(
                "{} {} credentials count in it, {live} of them with a token: together they need {} mints in {}, and \
                 may have {}{}.",
                if peers.all { "In all" } else { "In this namespace alone" },
                paces.len(),
                decimal(needed),
                length(window),
                budget.limit,
                if fits { "" } else { ": not all can be live at once" },
            ));
        }
        if budget.waiting > 1 {
            lines.push(format!("{} wait for a slot of it.", budget.waiting));
        }
    }
    lines
}

/// What the connection says of itself.
fn said(connection: &ChittyConnection) -> Vec<String> {
    let conditions = connection.status.iter().flat_map(|status| &status.conditions);
    let bad = conditions.filter(|c| c.status != "True");
    bad.map(|c| {
        let name = connection.metadata.name.as_deref().unwrap_or_default();
        format!(
            "ChittyConnection {name} says {}={}, {}: {}",
            c.type_, c.status, c.reason, c.message
        )
    })
    .collect()
}

/// For each rule what of the request it does not match.
fn rules(connection: &ChittyConnection, credential: &Credential, spec: &EphemeralCredentialSpec) -> Vec<String> {
    let any = || vec!["*".to_owned()];
    // Allows whatever is asked for; each part of a rule is tried in its place.
    let open = AccessRule {
        namespaces: vec![credential.namespace.clone()],
        services: any(),
        purposes: any(),
        repos: any(),
        types: any(),
        context: spec.context.keys().map(|key| (key.clone(), any())).collect(),
        ..AccessRule::default()
    };
    let refuses = |rule: AccessRule| allowed(&[rule], "", &credential.namespace, None, spec).is_err();
    let amiss = |rule: &AccessRule| {
        let with = |change: &dyn Fn(&mut AccessRule)| {
            let mut narrowed = open.clone();
            change(&mut narrowed);
            narrowed
        };
        let asked = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
        let parts = [
            (
                "service",
                spec.service.clone(),
                &rule.services,
                with(&|r| r.services.clone_from(&rule.services)),
            ),
            (
                "purpose",
                spec.purpose.clone(),
                &rule.purposes,
                with(&|r| r.purposes.clone_from(&rule.purposes)),
            ),
            (
                "repo",
                asked(&spec.repo),
                &rule.repos,
                with(&|r| r.repos.clone_from(&rule.repos)),
            ),
            (
                "type",
                asked(&spec.type_),
                &rule.types,
                with(&|r| r.types.clone_from(&rule.types)),
            ),
        ];
        let mut amiss = Vec::new();
        // Labels of namespaces are for the controller to know.
        if rule.namespaces.is_empty() {
            amiss.push("its namespaceSelector must choose this namespace".to_owned());
        } else if refuses(with(&|r| r.namespaces.clone_from(&rule.namespaces))) {
            let names = rule.namespaces.join(", ");
            amiss.push(format!("namespace {} is not in {names}", credential.namespace));
        }
        let unmatched = parts.into_iter().filter(|part| refuses(part.3.clone()));
        amiss.extend(unmatched.map(|(name, value, globs, _)| format!("{name} {value} is not in {}", globs.join(", "))));
        if refuses(with(&|r| r.context.clone_from(&rule.context))) {
            amiss.push("its context does not allow what spec.context asks for".to_owned());
        }
        amiss
    };
    let all = &connection.spec.access;
    if all.is_empty() {
        return vec!["The connection has no rules: it allows nothing.".to_owned()];
    }
    let numbered = all.iter().map(amiss).zip(1..).filter(|(amiss, _)| !amiss.is_empty());
    numbered
        .map(|(amiss, number)| format!("Rule {number}: {}.", amiss.join("; ")))
        .collect()
}

/// The rule that allows this request and no other.
fn rule(credential: &Credential, spec: &EphemeralCredentialSpec) -> String {
    let list = |items: &[&str]| {
        items
            .iter()
            .map(|item| format!("\"{item}\""))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut text = format!(
        "- namespaces: [{}]\n  services: [{}]\n  purposes: [{}]\n  repos: [{}]\n",
        list(&[&credential.namespace]),
        list(&[&spec.service]),
        list(&[&spec.purpose]),
        list(&[spec.repo.as_deref().unwrap_or("*")]),
    );
    if let Some(type_) = &spec.type_ {
        let _ = writeln!(text, "  types: [{}]", list(&[type_]));
    }
    if !spec.context.is_empty() {
        let keys = spec
            .context
            .iter()
            .map(|(key, value)| format!("{key}: [{}]", list(&[value])));
        let _ = writeln!(text, "  context: {{{}}}", keys.collect::<Vec<_>>().join(", "));
    }
    text
}

impl Why {
    /// For a person with so many columns.
    pub fn text(&self, columns: usize, now: Time) -> String {
        let credential = &self.credential;
        let mut text = headline(credential, now);
        text.push_str("\n\n");
        let mut section = |title: &str, body: String| {
            let _ = write!(text, "{}\n{body}\n", Tone::Strong.paint(title));
        };
        let paragraph = |line: &str| format!("{}\n", wrap(line, columns, 2));
        section("It means", paragraph(&self.means));
        if !credential.message.is_empty() {
            section("The controller says", paragraph(&credential.message));
        }
        if !self.waits_for.is_empty() {
            section("It waits for", paragraph(&format!("{}.", self.waits_for)));
        }
        if !self.waiting_pods.is_empty() {
            section("Pods that wait for it", paragraph(&self.waiting_pods.join(", ")));
        }
        let mut sums: String = self.budget.iter().map(|budget| budget_line(budget, now)).collect();
        sums.extend(self.arithmetic.iter().map(|line| paragraph(line)));
        if !sums.is_empty() {
            section("The arithmetic", sums);
        }
        let mut steps = String::new();
        for (number, step) in self.todo.iter().enumerate() {
            let line = wrap(&step.text, columns, 5);
            let _ = writeln!(steps, "  {}. {}", number + 1, line.trim_start());
            if let Some(command) = &step.command {
                let _ = writeln!(steps, "     {}", Tone::Good.paint(&format!("$ {command}")));
            }
            if let Some(rule) = self.rule.as_ref().filter(|_| number == 0) {
                for line in rule.lines() {
                    let _ = writeln!(steps, "     {}", Tone::Good.paint(line));
                }
            }
        }
        if steps.is_empty() {
            "  Nothing.\n".clone_into(&mut steps);
        }
        section("What to do", steps);
        for hidden in &self.hidden {
            let _ = writeln!(text, "{}", Tone::Faint.paint(&format!("Not shown: {hidden}.")));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }
}

/// How it stands, in one line.
fn headline(credential: &Credential, now: Time) -> String {
    let since = credential.since.filter(|at| *at <= now);
    let since = since.map_or_else(String::new, |at| format!(", for {}", length(now - at)));
    let reason = &credential.reason;
    let good = credential.is_well();
    let (state, tone) = match credential.ready {
        None => ("has not been looked at".to_owned(), Tone::Warn),
        Some(true) if good => (format!("is ready{since}: {reason}"), Tone::Good),
        Some(true) => (
            format!("is ready{since}; what its next token waits for: {reason}"),
            Tone::Warn,
        ),
        Some(false) if credential.issued => (
            format!("is not ready{since}: {reason} (the Secret of its earlier spec is there)"),
            Tone::Warn,
        ),
        Some(false) if credential.stalled => (
            format!("is not ready{since}: {reason}, and will not be until somebody changes something"),
            Tone::Bad,
        ),
        Some(false) => (format!("is not ready{since}: {reason}"), Tone::Bad),
    };
    format!("{} {}", Tone::Strong.paint(&credential.id()), tone.paint(&state))
}

/// A budget as a bar, and in figures.
pub fn budget_line(budget: &Budget, now: Time) -> String {
    let parts = [
        (budget.used, '#', Tone::Warn),
        (budget.kept_for_renewals, '=', Tone::Plain),
    ];
    let mut text = format!(
        "  {} {} used #, {} for renewals =, {} free of {} in {}\n",
        bar(&parts, budget.limit, 16),
        budget.used,
        budget.kept_for_renewals,
        budget.free,
        budget.limit,
        length(budget.window()),
    );
    if let Some(at) = budget.blocked_until.filter(|at| *at > now) {
        let _ = writeln!(
            text,
            "  ChittyConnect asked to leave it alone until {} ({}).",
            clock(at, now),
            until(at, now)
        );
    }
    if let Some(at) = budget.next_slot.filter(|at| *at > now) {
        let _ = writeln!(
            text,
            "  The next newcomer has its turn at {} ({}).",
            clock(at, now),
            until(at, now)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use expect_test::expect;

    use super::*;
    use crate::examples::{credential, example, now, observed};
    use crate::facts::Connections;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn told(observed: &Observed) -> String {
        plain(&why(observed, now()).text(100, now()))
    }

    /// The page of a reason, with what is told of it where the page has that.
    fn page(reason: Reason) -> (PathBuf, String, String) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/reasons/{reason}.md"));
        let found = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Nothing says that of a credential.
        if reason == Reason::Deleted {
            return (path, found.clone(), found);
        }
        let marker = "<!-- written by `UPDATE_DOCS=1 cargo test --bin kubectl-chitty` -->\n```text\n";
        let (before, rest) = found.split_once(marker).expect("where the example begins");
        let (_, after) = rest.split_once("```\n").expect("where the example ends");
        let desired = [before, marker, &told(&observed(reason)), "```\n", after].concat();
        (path, found, desired)
    }

    #[test]
    fn every_reason_has_a_page_with_what_is_told_of_it_and_no_page_is_left_over() {
        for reason in Reason::ALL {
            let (path, found, desired) = page(reason);
            if std::env::var_os("UPDATE_DOCS").is_some() {
                fs::write(&path, &desired).unwrap();
            } else {
                assert!(
                    found == desired,
                    "{} is out of date: UPDATE_DOCS=1 cargo test --bin kubectl-chitty",
                    path.display()
                );
            }
            assert!(desired.starts_with(&format!("# {reason}\n")), "{reason}");
            for heading in ["\n## What it means\n", "\n## What to do\n"] {
                assert!(desired.contains(heading), "{reason}: {heading}");
            }
        }
        let pages = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reasons")).unwrap();
        assert_eq!(pages.count(), Reason::ALL.len());
    }

    #[test]
    fn troubleshooting_has_a_row_for_every_reason() {
        let text = include_str!("../../../docs/troubleshooting.md");
        for reason in Reason::ALL {
            assert!(
                text.contains(&format!("\n| [{reason}](reasons/{reason}.md) |")),
                "{reason}"
            );
        }
    }

    #[test]
    fn every_reason_that_nobody_has_to_act_on_says_so_and_every_other_has_a_way_out() {
        for reason in Reason::ALL {
            let known = advice(reason, &Credential::from(&example(reason)));
            let idle = matches!(
                reason,
                Reason::Issuing | Reason::Issued | Reason::Rotated | Reason::Deleted
            );
            assert_eq!(known.todo.is_empty(), idle, "{reason}");
            assert!(
                known.means.ends_with('.') && !known.waits_for.ends_with('.'),
                "{reason}"
            );
        }
    }

    #[test]
    fn what_nobody_has_looked_at_waits_for_the_controller() {
        let observed = Observed {
            object: credential("new", serde_json::json!({"status": {"observedGeneration": -1}})),
            connections: Seen::Found(Connections::new()),
            consumers: Seen::Found(vec![]),
            peers: Peers::default(),
        };
        let told = told(&observed);
        assert!(
            told.contains("demo-web/new has not been looked at") && told.contains("kubectl chitty doctor"),
            "{told}"
        );
    }

    #[test]
    fn a_runway_that_the_tokens_life_does_not_allow_is_reckoned() {
        let mut observed = observed(Reason::Issued);
        assert!(!told(&observed).contains("renewBefore asks"));
        observed.object.spec.rotation.renew_before = Some("55m".parse().unwrap());
        let told = told(&observed);
        assert!(
            told.contains("renewBefore asks for a runway of 55m, and it is 40m"),
            "{told}"
        );
    }

    #[test]
    fn a_reason_of_a_later_controller_is_not_guessed_at() {
        let condition = serde_json::json!({
            "type": "Ready", "status": "False", "reason": "Novel", "message": "It is new.",
            "lastTransitionTime": "2026-11-21T12:00:00Z",
        });
        let mut observed = observed(Reason::Issued);
        observed.object = credential("new", serde_json::json!({"status": {"conditions": [condition]}}));
        let told = told(&observed);
        assert!(
            told.contains("does not know the reason Novel") && told.contains("It is new."),
            "{told}"
        );
    }

    #[test]
    fn whoever_may_see_no_connections_and_no_pods_is_told_the_rest_and_what_is_missing() {
        let hidden = |what: &str| format!("you may not read {what}");
        let observed = Observed {
            connections: Seen::Forbidden(hidden("ChittyConnections, and so no budgets")),
            consumers: Seen::Forbidden(hidden("the Pods of namespace demo-web")),
            peers: Peers::default(),
            ..observed(Reason::RateLimited)
        };
        expect![[r#"
            demo-web/site-deploy is not ready, for 3m20s: RateLimited

            It means
              The budget is spent, or what is left of it is kept for renewals: nobody who has a token loses it
              to somebody who has none.

            The controller says
              chittyid may mint 10 times in an hour: 3 used, 7 kept for renewals; next slot 12:34:10Z, position
              2; 9 credentials of chittyid have about 1.5 renewals in an hour each: together they need 14 of its
              10, so that not all can be live at once

            It waits for
              a slot in the budget's window.

            What to do
              1. Share one credential: any number of Pods may mount its Secret, spec.secrets lays one mint out
                 in up to eight Secrets, and other namespaces may follow it with spec.from
              2. Have it renewed less often: a shorter rotation.renewBefore, a longer rotation.maxLifetime, or
                 activation: OnDemand
                 $ kubectl edit ec site-deploy -n demo-web
              3. See who holds the budget
                 $ kubectl chitty budget chittyid

            Not shown: you may not read ChittyConnections, and so no budgets.
            Not shown: you may not read the Pods of namespace demo-web.
        "#]]
        .assert_eq(&told(&observed));
    }

    #[test]
    fn for_each_rule_that_refuses_it_is_told_in_what() {
        let observed = observed(Reason::NotPermitted);
        let why = why(&observed, now());
        let rules: Vec<&String> = why.arithmetic.iter().filter(|line| line.starts_with("Rule")).collect();
        expect![[r#"
            [
                "Rule 1: namespace demo-web is not in runners-*.",
                "Rule 2: service chittyid is not in chittyscore; purpose worker-deploy is not in npm-publish.",
            ]
        "#]]
        .assert_debug_eq(&rules);
    }

    #[test]
    fn the_rule_that_would_allow_it_does() {
        let mut observed = observed(Reason::NotPermitted);
        observed.object.spec.type_ = Some("cloudflare_d1_access".to_owned());
        observed.object.spec.context = [("database".to_owned(), "users".to_owned())].into();
        let rule = why(&observed, now()).rule.unwrap();
        let rules: Vec<AccessRule> = serde_yaml::from_str(&rule).unwrap();
        assert!(
            allowed(&rules, "", "demo-web", None, &observed.object.spec).is_ok(),
            "{rule}"
        );
        assert!(allowed(&rules, "", "demo-other", None, &observed.object.spec).is_err());
    }
}
