//! `kubectl chitty budget`: how budgets stand, who holds them and when slots free.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chittyconnect_operator::api::Reason;
use chittyconnect_operator::core::journal::pages::{Head, Layout};
use chittyconnect_operator::core::{Time, clock};
use chrono::TimeDelta;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use serde::Serialize;

use crate::facts::{Budget, Credential};
use crate::terminal::{Cell, Table, Tone, length, until, wrap};
use crate::why::{budget_line, decimal};

/// A budget and who holds it, as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    #[serde(flatten)]
    pub budget: Budget,
    /// Who counts in it, most mints first.
    pub holders: Vec<Holder>,
    /// Not all who count in it may be seen.
    pub partial: bool,
    /// When places in the window free, as the journal says; nothing where it may not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frees: Option<Vec<Free>>,
}

/// So many places of a window that free at one time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Free {
    pub at: Time,
    pub count: u32,
}

/// A credential in a budget.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    pub namespace: String,
    pub name: String,
    pub reason: String,
    pub issued: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// When its token was asked for: that request counts for a window from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Time>,
    /// How long from one mint to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_seconds: Option<i64>,
    /// Mints in a window, in thousandths.
    pub mints_per_window_thousandths: u64,
}

/// When the places of `budget`, at `url`, free, as the parts of journals tell.
pub fn frees(parts: &[ConfigMap], budget: &Budget, url: &str) -> Vec<Free> {
    let origin = url
        .parse()
        .map(|url: url::Url| url.origin().ascii_serialization())
        .unwrap_or_default();
    let title = match budget.service.as_str() {
        "*" => format!("this API key at {origin}"),
        service => format!("{service} at {origin}"),
    };
    let is_head = |part: &&ConfigMap| {
        let titled = part.annotations().get("connect.chitty.cc/budget-of") == Some(&title);
        titled
            && part
                .labels()
                .get("connect.chitty.cc/journal")
                .is_some_and(|role| role == "head")
    };
    let mut frees: BTreeMap<Time, u32> = BTreeMap::new();
    for head in parts.iter().filter(is_head) {
        let text = head.data.as_ref().and_then(|data| data.get("journal.json"));
        let Some(head) = text.and_then(|text| serde_json::from_str::<Head>(text).ok()) else {
            continue;
        };
        let scope = head.scope.clone();
        // Pages hold what credentials have, and no places.
        for (at, count) in Layout::read(&scope, Some(head), Vec::new(), Time::default())
            .journal
            .sent()
        {
            *frees.entry(at + budget.window()).or_default() += count;
        }
    }
    frees.into_iter().map(|(at, count)| Free { at, count }).collect()
}

/// Those who count in one budget, by what they need of it in a window of that length.
fn holders(counted: &[&Credential], window: TimeDelta) -> Vec<Holder> {
    let lives = counted.iter().filter_map(|c| c.pace(None)).map(|p| p.lifetime).max();
    let mut holders: Vec<Holder> = counted
        .iter()
        .map(|c| {
            let pace = c.pace(lives);
            Holder {
                namespace: c.namespace.clone(),
                name: c.name.clone(),
                reason: c.reason.clone(),
                issued: c.issued,
                expires_at: c.expires_at.filter(|_| c.issued),
                issued_at: c.issued_at,
                period_seconds: pace.map(|pace| pace.period().num_seconds()),
                mints_per_window_thousandths: pace.map_or(0, |pace| pace.mints(window)),
            }
        })
        .collect();
    holders.sort_by(|a, b| {
        let rank = |h: &Holder| (!h.issued, std::cmp::Reverse(h.mints_per_window_thousandths));
        rank(a)
            .cmp(&rank(b))
            .then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
    });
    holders
}

/// What the credentials of one namespace take of a budget that whoever asks may not see, as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    pub connection: String,
    pub service: String,
    /// Who counts in it, most mints in an hour first.
    pub holders: Vec<Holder>,
    /// What the controller says of the budget to one that waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
}

/// A budget's window may not be seen where the budget may not.
const HOUR: TimeDelta = TimeDelta::hours(1);

impl Share {
    /// Those of all budgets in which `credentials` count, by service and connection.
    pub fn all(credentials: &[Credential]) -> Vec<Self> {
        let mut of: BTreeMap<(&str, &str), Vec<&Credential>> = BTreeMap::new();
        for credential in credentials.iter().filter(|c| c.counts()) {
            let key = (credential.service.as_str(), credential.connection.as_str());
            of.entry(key).or_default().push(credential);
        }
        let share = |((service, connection), counted): ((&str, &str), Vec<&Credential>)| Self {
            connection: connection.to_owned(),
            service: service.to_owned(),
            holders: holders(&counted, HOUR),
            said: counted
                .iter()
                .find(|c| c.known_reason() == Some(Reason::RateLimited) && !c.message.is_empty())
                .map(|c| c.message.clone()),
        };
        of.into_iter().map(share).collect()
    }

    /// For a person with so many columns.
    pub fn text(&self, room: Option<usize>, width: usize, now: Time) -> String {
        let live = self.holders.iter().filter(|holder| holder.issued);
        let needed = decimal(live.clone().map(|h| h.mints_per_window_thousandths).sum());
        let mut text = format!(
            "{} by ChittyConnection {}\n",
            Tone::Strong.paint(&self.service),
            self.connection
        );
        let sums = format!(
            "Of your own, {} with a token need {needed} mints in 1h; who else shares the budget may not be seen.",
            live.count()
        );
        let _ = writeln!(text, "{}", wrap(&sums, width, 2));
        if let Some(said) = &self.said {
            let _ = writeln!(text, "{}", wrap(&format!("The controller says: {said}"), width, 2));
        }
        text.push('\n');
        text.push_str(&table(&self.holders, room, now));
        text
    }
}

/// So many holders of a budget are told to a person.
const MOST_TOLD: usize = 15;

impl Held {
    /// Who of `credentials` counts in `budget`, by what they need of it.
    pub fn new(budget: Budget, credentials: &[Credential], partial: bool, frees: Option<Vec<Free>>) -> Self {
        let counted = |c: &&Credential| {
            c.connection == budget.connection && c.counts() && (budget.service == "*" || c.service == budget.service)
        };
        let counted: Vec<&Credential> = credentials.iter().filter(counted).collect();
        let holders = holders(&counted, budget.window());
        Self {
            budget,
            holders,
            partial,
            frees,
        }
    }

    /// For a person with so many columns.
    pub fn text(&self, room: Option<usize>, width: usize, now: Time) -> String {
        let budget = &self.budget;
        let mut text = format!(
            "{} by ChittyConnection {}\n{}",
            Tone::Strong.paint(&budget.title()),
            budget.connection,
            budget_line(budget, now)
        );
        if let Some(frees) = &self.frees {
            let _ = writeln!(text, "{}", wrap(&frees_text(frees, budget.window(), now), width, 2));
        }
        match budget.waiting {
            0 => {}
            1 => text.push_str("  One waits for a slot.\n"),
            many => {
                let _ = writeln!(text, "  {many} wait for a slot.");
            }
        }
        let (live, waiting): (Vec<&Holder>, Vec<&Holder>) = self.holders.iter().partition(|holder| holder.issued);
        let needed = |holders: &[&Holder]| decimal(holders.iter().map(|h| h.mints_per_window_thousandths).sum());
        if !self.holders.is_empty() {
            let who = if self.partial { " that you may see" } else { "" };
            let mut sums = format!(
                "{} with a token{who} need {} mints in {}",
                live.len(),
                needed(&live),
                length(budget.window())
            );
            if !waiting.is_empty() {
                let _ = write!(sums, "; {} without need {} more", waiting.len(), needed(&waiting));
            }
            sums.push('.');
            let _ = writeln!(text, "{}\n", wrap(&sums, width, 2));
            text.push_str(&table(&self.holders, room, now));
            self.by_namespace(&mut text);
        }
        text
    }

    /// What each namespace takes, where there are several.
    fn by_namespace(&self, text: &mut String) {
        let mut shares: BTreeMap<&str, u64> = BTreeMap::new();
        for holder in self.holders.iter().filter(|holder| holder.issued) {
            *shares.entry(&holder.namespace).or_default() += holder.mints_per_window_thousandths;
        }
        if shares.len() < 2 {
            return;
        }
        let mut shares: Vec<(&str, u64)> = shares.into_iter().collect();
        shares.sort_by_key(|(name, share)| (std::cmp::Reverse(*share), *name));
        let told: Vec<String> = shares
            .iter()
            .take(5)
            .map(|(name, share)| format!("{name} {}", decimal(*share)))
            .collect();
        let _ = writeln!(text, "\n  Live, by namespace: {}", told.join(", "));
    }
}

/// Holders, as a table of so many columns.
fn table(holders: &[Holder], room: Option<usize>, now: Time) -> String {
    let columns = [
        ("  NAMESPACE", 0),
        ("NAME", 0),
        ("REASON", 0),
        ("MINTED", 1),
        ("LEFT", 2),
        ("EVERY", 3),
        ("MINTS", 0),
    ];
    let dash = || "-".to_owned();
    let mut table = Table::new(&columns);
    for holder in holders.iter().take(MOST_TOLD) {
        let tone = if holder.issued { Tone::Plain } else { Tone::Warn };
        let period = holder.period_seconds.map(TimeDelta::seconds);
        table.row(vec![
            format!("  {}", holder.namespace).into(),
            Cell::from(&holder.name),
            Cell::new(if holder.reason.is_empty() { "-" } else { &holder.reason }, tone),
            holder
                .issued_at
                .map_or_else(dash, |at| format!("{} ago", length(now - at)))
                .into(),
            holder.expires_at.map_or_else(dash, |end| length(end - now)).into(),
            period.map_or_else(dash, length).into(),
            decimal(holder.mints_per_window_thousandths).into(),
        ]);
    }
    let mut text = table.render(room);
    let more = holders.len().saturating_sub(MOST_TOLD);
    if more > 0 {
        let _ = writeln!(text, "  {more} more: -o json has them all.");
    }
    text
}

/// When the next places free, and how old the requests are that take them.
fn frees_text(frees: &[Free], window: TimeDelta, now: Time) -> String {
    let ahead: Vec<&Free> = frees.iter().filter(|free| free.at > now).collect();
    let Some(first) = ahead.first() else {
        return "No place of the window is taken.".to_owned();
    };
    let sent = |free: &Free| {
        let ago = length(now - (free.at - window));
        match free.count {
            1 => format!("sent {ago} ago"),
            many => format!("{many}, sent {ago} ago"),
        }
    };
    let mut told = format!(
        "Places free at {} ({}; {})",
        clock(first.at, now),
        until(first.at, now),
        sent(first)
    );
    for free in ahead.iter().skip(1).take(4) {
        let _ = write!(told, ", {} ({})", clock(free.at, now), sent(free));
    }
    let more = ahead.len().saturating_sub(5);
    if more > 0 {
        let _ = write!(told, ", and {more} later");
    }
    told + "; renewals that are due may take them."
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::examples::{connections, example, now, observed};
    use crate::facts::budgets;

    #[test]
    fn a_budget_is_told_with_who_holds_it_and_when_places_free() {
        let peers = observed(Reason::RateLimited).peers.credentials;
        let budget = budgets(&connections(Reason::Issued)["default"]).next().unwrap();
        let at = |minutes| now() + TimeDelta::minutes(minutes);
        let frees = vec![
            Free { at: at(-5), count: 1 },
            Free { at: at(12), count: 2 },
            Free { at: at(30), count: 1 },
        ];
        let held = Held::new(budget, &peers, false, Some(frees));
        let told = held.text(Some(80), 80, now());
        expect![[r#"
            chittyid by ChittyConnection default
              [#####===========] 3 used #, 7 for renewals =, 0 free of 10 in 1h
              The next newcomer has its turn at 12:34:10Z (in 12m).
              Places free at 12:34:10Z (in 12m; 2, sent 48m ago), 12:52:10Z (sent 30m ago);
              renewals that are due may take them.
              2 wait for a slot.
              6 with a token need 9 mints in 1h; 3 without need 4.5 more.

              NAMESPACE   NAME   REASON        MINTED    LEFT   EVERY   MINTS
              demo-web    c0     Issued        10m ago   50m    40m     1.5
              demo-web    c1     Issued        10m ago   50m    40m     1.5
              demo-web    c2     Issued        10m ago   50m    40m     1.5
              demo-web    c3     Issued        10m ago   50m    40m     1.5
              demo-web    c4     Issued        10m ago   50m    40m     1.5
              demo-web    c5     Issued        10m ago   50m    40m     1.5
              demo-web    c6     RateLimited   -         -      40m     1.5
              demo-web    c7     RateLimited   -         -      40m     1.5
              demo-web    c8     RateLimited   -         -      40m     1.5
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&told).to_string());
    }

    #[test]
    fn whoever_may_see_no_budget_is_told_what_its_own_credentials_take() {
        let mut own = observed(Reason::RateLimited).peers.credentials.split_off(5);
        own.push(Credential::from(&example(Reason::RateLimited)));
        // Who follows takes nothing.
        own.push(Credential::from(&example(Reason::NotShared)));
        let shares = Share::all(&own);
        let told: Vec<String> = shares.iter().map(|share| share.text(Some(80), 80, now())).collect();
        expect![[r#"
            chittyid by ChittyConnection default
              Of your own, 1 with a token need 1.5 mints in 1h; who else shares the budget
              may not be seen.
              The controller says: chittyid may mint 10 times in an hour: 3 used, 7 kept for
              renewals; next slot 12:34:10Z, position 2; 9 credentials of chittyid have
              about 1.5 renewals in an hour each: together they need 14 of its 10, so that
              not all can be live at once

              NAMESPACE   NAME          REASON        MINTED    LEFT   EVERY   MINTS
              demo-web    c5            Issued        10m ago   50m    40m     1.5
              demo-web    c6            RateLimited   -         -      40m     1.5
              demo-web    c7            RateLimited   -         -      40m     1.5
              demo-web    c8            RateLimited   -         -      40m     1.5
              demo-web    site-deploy   RateLimited   -         -      40m     1.5
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&told.join("\n")).to_string());
    }

    #[test]
    fn places_are_read_from_the_head_of_the_journal_of_that_budget_and_of_no_other() {
        let head = |title: &str, sent: i64| -> ConfigMap {
            let journal = serde_json::json!({
                "version": 2, "scope": {"origin": "https://connect.chitty.cc", "kind": "Service", "of": "chittyid"},
                "commit": 4, "windowSeconds": 3600, "attempts": [{"t": sent}, {"t": sent, "c": 2}],
            });
            serde_json::from_value(serde_json::json!({
                "metadata": {
                    "name": "chitty-journal-1", "labels": {"connect.chitty.cc/journal": "head"},
                    "annotations": {"connect.chitty.cc/budget-of": title},
                },
                "data": {"journal.json": journal.to_string()},
            }))
            .unwrap()
        };
        let parts = [
            head("chittyid at https://connect.chitty.cc", 1_000_000),
            head("chittyid at https://other.example.com", 2_000_000),
        ];
        let budget = budgets(&connections(Reason::Issued)["default"]).next().unwrap();
        let found = frees(&parts, &budget, "https://connect.chitty.cc/base");
        let at = Time::from_timestamp_millis(1_000_000).unwrap() + TimeDelta::hours(1);
        assert_eq!(found, [Free { at, count: 3 }]);
    }
}
