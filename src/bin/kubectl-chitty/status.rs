//! `kubectl chitty status`: how credentials stand.

use std::fmt::Write as _;

use chittyconnect_operator::api::InUse;
use chittyconnect_operator::core::{Time, clock};
use chrono::TimeDelta;
use serde::Serialize;

use crate::facts::{Budget, Connections, Consumer, Credential, Seen, budget_of};
use crate::terminal::{Cell, Table, Tone, bar, length, named, until};
use crate::why::budget_line;

/// What a table of credentials has besides them.
pub struct Listing<'a> {
    pub credentials: &'a [Credential],
    pub connections: &'a Seen<Connections>,
    /// They are of several namespaces.
    pub all_namespaces: bool,
    pub wide: bool,
}

impl Listing<'_> {
    /// As a table of so many columns.
    pub fn text(&self, room: Option<usize>, now: Time) -> String {
        let never = |spare: u8| if self.wide { 0 } else { spare };
        let mut columns = vec![
            ("NAME", 0),
            ("SERVICE", never(1)),
            ("READY", 0),
            ("REASON", 0),
            ("LEFT", 0),
            ("RENEWS", never(3)),
            ("IN USE", never(4)),
            ("FREE", never(2)),
        ];
        if self.all_namespaces {
            columns.insert(0, ("NAMESPACE", 0));
        }
        if self.wide {
            columns.extend([
                ("PURPOSE", 0),
                ("CONNECTION", 0),
                ("REV", 0),
                ("RUNWAY", 0),
                ("AGE", 0),
                ("USED BY", 0),
            ]);
        }
        let mut table = Table::new(&columns);
        for credential in self.credentials {
            table.row(self.row(credential, now));
        }
        table.render(room.filter(|_| !self.wide))
    }

    /// Who follows asks for none.
    fn service(&self, credential: &Credential) -> String {
        match &credential.follows {
            Some(of) if self.wide => format!("from {of}"),
            Some(_) => "(follows)".to_owned(),
            None => credential.service.clone(),
        }
    }

    fn row(&self, credential: &Credential, now: Time) -> Vec<Cell> {
        let budget = self
            .connections
            .found()
            .and_then(|all| budget_of(all.get(&credential.connection)?, &credential.service));
        let dash = || "-".to_owned();
        let tone = state(credential);
        let mut row = vec![
            Cell::from(&credential.name),
            self.service(credential).into(),
            Cell::new(
                match credential.ready {
                    Some(true) => "True",
                    Some(false) => "False",
                    None => "-",
                },
                tone,
            ),
            Cell::new(
                if credential.reason.is_empty() {
                    "-"
                } else {
                    &credential.reason
                },
                tone,
            ),
            left(credential, now),
            credential
                .renew_at
                .map_or_else(dash, |at| if at > now { until(at, now) } else { "due".to_owned() })
                .into(),
            credential
                .in_use
                .map_or("-", |used| if is_used(used) { "yes" } else { "no" })
                .into(),
            budget.as_ref().map_or_else(
                || Cell::from("-"),
                |b| {
                    let tone = if b.free == 0 { Tone::Warn } else { Tone::Plain };
                    Cell::new(format!("{}/{}", b.free, b.limit), tone)
                },
            ),
        ];
        if self.all_namespaces {
            row.insert(0, Cell::from(&credential.namespace));
        }
        if self.wide {
            row.extend([
                credential.purpose.clone().into(),
                credential.connection.clone().into(),
                credential
                    .revision
                    .map_or_else(dash, |revision| revision.to_string())
                    .into(),
                runway(credential),
                credential.created_at.map_or_else(dash, |at| length(now - at)).into(),
                Cell::from(credential.in_use.map_or_else(dash, used_by)),
            ]);
        }
        row
    }
}

/// Good, waiting for something, or standing still.
pub fn state(credential: &Credential) -> Tone {
    let good = credential.is_well();
    match credential.ready {
        Some(true) if good => Tone::Good,
        Some(false) if !credential.issued => Tone::Bad,
        _ => Tone::Warn,
    }
}

fn left(credential: &Credential, now: Time) -> Cell {
    let Some(left) = credential.left(now).filter(|_| credential.issued) else {
        return "-".into();
    };
    let runway = TimeDelta::seconds(credential.runway_seconds.unwrap_or_default());
    let tone = match left {
        _ if left < runway / 2 => Tone::Bad,
        // A moment for the renewal itself.
        _ if left + TimeDelta::seconds(30) < runway => Tone::Warn,
        _ => Tone::Plain,
    };
    Cell::new(length(left), tone)
}

/// What a job finds at least, and what was asked for where that is more.
fn runway(credential: &Credential) -> Cell {
    let told = |seconds: i64| length(TimeDelta::seconds(seconds));
    match (credential.runway_seconds, credential.runway_asked_seconds) {
        (Some(runway), Some(asked)) => Cell::new(format!("{} of {}", told(runway), told(asked)), Tone::Warn),
        (Some(runway), None) => told(runway).into(),
        (None, _) => "-".into(),
    }
}

const fn is_used(used: InUse) -> bool {
    used.volume + used.env + used.sub_path + used.image_pull > 0
}

/// How Pods read, and how many do so in each way.
fn used_by(used: InUse) -> String {
    let ways = [
        (used.volume, "volume"),
        (used.env, "env"),
        (used.sub_path, "subPath"),
        (used.image_pull, "image pull"),
    ];
    let ways: Vec<String> = ways
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, way)| format!("{n} {way}"))
        .collect();
    if ways.is_empty() {
        "nobody".to_owned()
    } else {
        ways.join(", ")
    }
}

/// One credential in full, as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    #[serde(flatten)]
    pub credential: Credential,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    pub consumers: Seen<Vec<Consumer>>,
    /// What could not be looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
}

impl Status {
    pub fn new(credential: Credential, connections: &Seen<Connections>, consumers: Seen<Vec<Consumer>>) -> Self {
        let all = connections.found();
        let budget = all.and_then(|all| budget_of(all.get(&credential.connection)?, &credential.service));
        let hidden = [connections.forbidden(), consumers.forbidden()];
        Self {
            budget: budget.filter(|_| credential.follows.is_none()),
            hidden: hidden.into_iter().flatten().map(str::to_owned).collect(),
            credential,
            consumers,
        }
    }

    /// For a person with so many columns.
    pub fn text(&self, columns: usize, now: Time) -> String {
        let c = &self.credential;
        let mut text = String::new();
        let mut line = |name: &str, value: &str| text.push_str(&named(name, value, columns));
        line("Name", &c.id());
        match &c.follows {
            Some(of) => line("Follows", of),
            None => line("Asks for", &asks_for(c)),
        }
        let ready = match c.ready {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not looked at yet",
        };
        let since = c
            .since
            .map_or_else(String::new, |at| format!(", for {}", length(now - at)));
        let reason = if c.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", c.reason)
        };
        line("Ready", &state(c).paint(&format!("{ready}{reason}{since}")));
        if !c.message.is_empty() {
            line("", &c.message);
        }
        if let Some((from, end)) = c.issued_at.zip(c.expires_at) {
            let revision = c.revision.map_or_else(String::new, |n| format!("revision {n}, "));
            line(
                "Token",
                &format!(
                    "{revision}issued {}, ends {} ({})",
                    clock(from, now),
                    clock(end, now),
                    until(end, now)
                ),
            );
            line("Life", &life(c, from, end, now));
        }
        if !c.secrets.is_empty() {
            line("Secrets", &c.secrets.join(", "));
        }
        if !c.outputs.is_empty() {
            line("Outputs", &c.outputs.join(", "));
        }
        for consumer in used(c, &self.consumers) {
            line("Used by", &consumer);
        }
        if let Some(budget) = &self.budget {
            line(
                "Budget",
                &format!("{} by ChittyConnection {}", budget.title(), budget.connection),
            );
            for part in budget_line(budget, now).lines() {
                let _ = writeln!(text, "{:12}{}", "", part.trim_start());
            }
        }
        for hidden in &self.hidden {
            let _ = writeln!(text, "{}", Tone::Faint.paint(&format!("Not shown: {hidden}.")));
        }
        text
    }
}

fn asks_for(c: &Credential) -> String {
    let mut text = format!("service {}, purpose {}", c.service, c.purpose);
    for (name, value) in [("repo", &c.repo), ("type", &c.r#type)] {
        if let Some(value) = value {
            let _ = write!(text, ", {name} {value}");
        }
    }
    let _ = write!(text, ", of ChittyConnection {}", c.connection);
    if c.on_demand {
        text.push_str(", while Pods use it");
    }
    if c.suspended {
        text.push_str("; suspended");
    }
    text
}

/// A token's life as a bar: what is over, what is left until it is renewed, and its runway.
fn life(c: &Credential, from: Time, end: Time, now: Time) -> String {
    let seconds = |length: TimeDelta| u32::try_from(length.num_seconds().max(0)).unwrap_or(u32::MAX);
    let (whole, over) = (end - from, (now - from).clamp(TimeDelta::zero(), end - from));
    let runway = TimeDelta::seconds(c.runway_seconds.unwrap_or_default());
    let ahead = (whole - runway - over).max(TimeDelta::zero());
    let drawn = bar(
        &[
            (seconds(over), '#', Tone::Faint),
            (seconds(ahead), '-', Tone::Good),
            (seconds(whole - over - ahead), '=', Tone::Warn),
        ],
        seconds(whole),
        20,
    );
    let left = (end - now).max(TimeDelta::zero());
    let renews = match c.renew_at {
        Some(at) if at > now => format!(", renewed {}", until(at, now)),
        Some(_) => ", renewal is due".to_owned(),
        None => String::new(),
    };
    let cut = c.runway_asked_seconds.map_or_else(String::new, |asked| {
        let asked = length(TimeDelta::seconds(asked));
        format!(", two thirds of its life: renewBefore asks for {asked}")
    });
    format!(
        "{drawn} {} left{renews}; runway {} ={cut}",
        length(left),
        length(runway)
    )
}

/// Who uses it, a line each.
fn used(c: &Credential, consumers: &Seen<Vec<Consumer>>) -> Vec<String> {
    /// More are for `consumers` to tell.
    const MOST: usize = 5;
    match consumers {
        Seen::Found(all) if all.is_empty() => vec!["no Pod".to_owned()],
        Seen::Found(all) => {
            let told = all.iter().take(MOST).map(|consumer| {
                let waits = if consumer.waits { ", waits for it" } else { "" };
                format!(
                    "Pod {} by {} of {}{waits}",
                    consumer.pod,
                    consumer.reads.join(" and "),
                    consumer.secret
                )
            });
            let more = all.len().saturating_sub(MOST);
            let rest =
                (more > 0).then(|| format!("{more} more: kubectl chitty consumers {} -n {}", c.name, c.namespace));
            told.chain(rest).collect()
        }
        _ => c.in_use.map(used_by).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use chittyconnect_operator::api::Reason;
    use expect_test::expect;

    use super::*;
    use crate::examples::{connections, example, now, observed};

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn listed(wide: bool, all_namespaces: bool, room: Option<usize>) -> String {
        let reasons = [
            Reason::Rotated,
            Reason::RateLimited,
            Reason::BrokerUnavailable,
            Reason::Idle,
            Reason::NotShared,
        ];
        let credentials = reasons.map(|reason| Credential::from(&example(reason)));
        let listing = Listing {
            credentials: &credentials,
            connections: &Seen::Found(connections(Reason::Issued)),
            all_namespaces,
            wide,
        };
        plain(&listing.text(room, now()))
    }

    #[test]
    fn a_table_of_credentials_fits_eighty_columns() {
        expect![[r#"
            NAME          SERVICE     READY   REASON              LEFT   RENEWS   FREE
            site-deploy   chittyid    True    Rotated             40m    in 19m   0/10
            site-deploy   chittyid    False   RateLimited         -      -        0/10
            site-deploy   chittyid    True    BrokerUnavailable   18m    due      0/10
            site-deploy   chittyid    True    Idle                -      -        0/10
            site-deploy   (follows)   False   NotShared           -      -        -
        "#]]
        .assert_eq(&listed(false, false, Some(80)));
        for line in listed(false, true, Some(80)).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn a_wide_table_has_everything() {
        expect![[r#"
            NAMESPACE   NAME          SERVICE                       READY   REASON              LEFT   RENEWS   IN USE   FREE   PURPOSE         CONNECTION   REV   RUNWAY   AGE   USED BY
            demo-web    site-deploy   chittyid                      True    Rotated             40m    in 19m   -        0/10   worker-deploy   default      7     20m      25h   -
            demo-web    site-deploy   chittyid                      False   RateLimited         -      -        -        0/10   worker-deploy   default      -     -        25h   -
            demo-web    site-deploy   chittyid                      True    BrokerUnavailable   18m    due      -        0/10   worker-deploy   default      7     20m      25h   -
            demo-web    site-deploy   chittyid                      True    Idle                -      -        no       0/10   worker-deploy   default      -     -        25h   nobody
            demo-web    site-deploy   from platform/shared-deploy   False   NotShared           -      -        -        -                      default      -     -        25h   -
        "#]].assert_eq(&listed(true, true, Some(80)));
    }

    #[test]
    fn a_runway_that_was_cut_short_is_told() {
        let mut object = example(Reason::Rotated);
        object.spec.rotation.renew_before = Some("55m".parse().unwrap());
        let credential = Credential::from(&object);
        assert_eq!(credential.runway_asked_seconds, Some(3300));
        let connections = Seen::Found(connections(Reason::Issued));
        let listing = Listing {
            credentials: std::slice::from_ref(&credential),
            connections: &connections,
            all_namespaces: false,
            wide: true,
        };
        let table = plain(&listing.text(None, now()));
        assert!(table.contains("40m of 55m"), "{table}");
        let told = plain(&Status::new(credential, &connections, Seen::Found(vec![])).text(160, now()));
        assert!(
            told.contains("runway 40m =, two thirds of its life: renewBefore asks for 55m"),
            "{told}"
        );
        // Two thirds are allowed, and are not cut.
        object.spec.rotation.renew_before = Some("40m".parse().unwrap());
        assert_eq!(Credential::from(&object).runway_asked_seconds, None);
    }

    #[test]
    fn one_credential_is_told_in_full() {
        let observed = observed(Reason::Rotated);
        let status = Status::new(
            Credential::from(&observed.object),
            &observed.connections,
            Seen::Found(vec![]),
        );
        expect![[r#"
            Name        demo-web/site-deploy
            Asks for    service chittyid, purpose worker-deploy, repo CHITTYOS/chittyid, of
                        ChittyConnection default
            Ready       yes: Rotated, for 3m20s
                        revision 7 is valid until 13:02:10Z and renewed at 12:41:40Z; a job
                        starting until then has at least 20 min
            Token       revision 7, issued 12:02:10Z, ends 13:02:10Z (in 40m)
            Life        [#######------=======] 40m left, renewed in 19m; runway 20m =
            Secrets     site-deploy
            Outputs     account_id, cloudflare_token, github_token, npm_token
            Used by     no Pod
            Budget      chittyid by ChittyConnection default
                        [#####===========] 3 used #, 7 for renewals =, 0 free of 10 in 1h
                        The next newcomer has its turn at 12:34:10Z (in 12m).
        "#]]
        .assert_eq(&plain(&status.text(80, now())));
    }
}
