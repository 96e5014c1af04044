//! `kubectl chitty audit`: what became of a credential, as far as the cluster still knows.

use chittyconnect_operator::core::audit::AuditEvent;
use chittyconnect_operator::core::{Time, clock};
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use serde::Serialize;

use crate::facts::{Credential, Seen};
use crate::terminal::{Cell, Table, Tone, length, wrap};

/// What is known of a credential's past, as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    #[serde(skip)]
    pub credential: Credential,
    /// What happened, oldest first.
    pub entries: Vec<Entry>,
    /// Audit events that ChittyChronicle has not acknowledged; nothing where the journals may not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undelivered: Option<usize>,
    /// What could not be looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub at: Time,
    /// Where that is told: an Event, or a journal.
    pub told_by: &'static str,
    pub what: String,
    pub note: String,
    /// How often.
    pub count: i32,
    /// It is a warning, or not delivered.
    pub warning: bool,
}

impl Audit {
    /// Of what was found: Events, and the parts of journals.
    pub fn new(credential: Credential, uid: &str, events: &Seen<Vec<Event>>, journals: &Seen<Vec<ConfigMap>>) -> Self {
        let hidden = [events.forbidden(), journals.forbidden()];
        let hidden = hidden.into_iter().flatten().map(str::to_owned).collect();
        let told = events.found().into_iter().flatten().filter_map(of_event);
        let owed = journals
            .found()
            .map(|all| all.iter().flat_map(|part| undelivered(part, uid)).collect::<Vec<_>>());
        let count = owed.as_ref().map(Vec::len);
        let mut entries: Vec<Entry> = told.chain(owed.into_iter().flatten()).collect();
        entries.sort_by(|a, b| (a.at, a.told_by).cmp(&(b.at, b.told_by)));
        Self {
            credential,
            entries,
            undelivered: count,
            hidden,
        }
    }

    /// For a person with so many columns.
    pub fn text(&self, room: Option<usize>, width: usize, now: Time) -> String {
        let mut text = String::new();
        if self.entries.is_empty() {
            text.push_str("Nothing is known here.\n");
        } else {
            let mut table = Table::new(&[("WHEN", 0), ("AGO", 2), ("TOLD BY", 1), ("WHAT", 0), ("N", 3)]);
            for entry in &self.entries {
                let tone = if entry.warning { Tone::Warn } else { Tone::Plain };
                table.row(vec![
                    clock(entry.at, now).into(),
                    length(now - entry.at).into(),
                    entry.told_by.into(),
                    Cell::new(&entry.what, tone),
                    if entry.count > 1 {
                        entry.count.to_string()
                    } else {
                        String::new()
                    }
                    .into(),
                ]);
            }
            // A note stands below its line: it is longer than a column.
            let lines = table.render(room);
            let mut lines = lines.lines();
            text.extend(lines.next().map(|titles| format!("{titles}\n")));
            for (line, entry) in lines.zip(&self.entries) {
                text.push_str(line);
                text.push('\n');
                if !entry.note.is_empty() {
                    text.push_str(&Tone::Faint.paint(&wrap(&entry.note, width, 4)));
                    text.push('\n');
                }
            }
        }
        let undelivered = match self.undelivered {
            None => String::new(),
            Some(0) => "All audit events of it were delivered. ".to_owned(),
            Some(1) => "1 audit event of it waits for ChittyChronicle. ".to_owned(),
            Some(n) => format!("{n} audit events of it wait for ChittyChronicle. "),
        };
        let rest = format!(
            "{undelivered}Kubernetes keeps Events for an hour: ChittyChronicle has the rest, under entityId {}.",
            self.credential.service
        );
        text.push('\n');
        text.push_str(&wrap(&rest, width, 0));
        text.push('\n');
        for hidden in &self.hidden {
            text.push_str(&Tone::Faint.paint(&format!("Not shown: {hidden}.")));
            text.push('\n');
        }
        text
    }
}

fn of_event(event: &Event) -> Option<Entry> {
    let seconds = |at: &k8s_openapi::jiff::Timestamp| Time::from_timestamp(at.as_second(), 0);
    let series = event.series.as_ref();
    let at = series
        .and_then(|s| seconds(&s.last_observed_time.as_ref()?.0))
        .or_else(|| seconds(&event.last_timestamp.as_ref()?.0))
        .or_else(|| seconds(&event.event_time.as_ref()?.0))
        .or_else(|| seconds(&event.metadata.creation_timestamp.as_ref()?.0))?;
    Some(Entry {
        at,
        told_by: "Event",
        what: event.reason.clone().unwrap_or_default(),
        note: event.message.clone().unwrap_or_default(),
        count: series.and_then(|s| s.count).or(event.count).unwrap_or(1),
        warning: event.type_.as_deref() == Some("Warning"),
    })
}

/// The events of `uid` in a part of a journal: those that nobody has acknowledged.
fn undelivered(part: &ConfigMap, uid: &str) -> Vec<Entry> {
    let text = part.data.as_ref().and_then(|data| data.get("journal.json"));
    let document: Option<serde_json::Value> = text.and_then(|text| serde_json::from_str(text).ok());
    let events = document
        .as_ref()
        .and_then(|d| d.get("slots")?.get(uid)?.get("events")?.as_array());
    let events = events.into_iter().flatten();
    events
        .filter_map(|event| serde_json::from_value::<AuditEvent>(event.clone()).ok())
        .map(|event| Entry {
            at: event.at,
            told_by: "journal",
            what: event.event.as_str().to_owned(),
            note: format!(
                "revision {}, reason {}, run {}: not delivered yet",
                event.revision, event.reason, event.request.run_id
            ),
            count: 1,
            warning: true,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use chittyconnect_operator::api::Reason;
    use expect_test::expect;
    use serde_json::json;

    use super::*;
    use crate::examples::{example, now};

    #[test]
    fn a_past_is_told_in_its_order_and_so_is_what_nobody_has_acknowledged() {
        let event = |reason: &str, kind: &str, at: &str, count: i32| -> Event {
            serde_json::from_value(json!({
                "metadata": {"name": reason}, "involvedObject": {}, "reason": reason, "type": kind,
                "message": "something happened, and this is what it means for whoever waits for the token of this credential",
                "lastTimestamp": at, "count": count,
            }))
            .unwrap()
        };
        let events = vec![
            event("RateLimited", "Warning", "2026-11-21T12:01:00Z", 3),
            event("Issued", "Normal", "2026-11-21T12:02:10Z", 1),
        ];
        let owed = json!({
            "id": "site-deploy-9", "seq": 9, "event": "provisioned", "at": "2026-11-21T12:02:09Z",
            "namespace": "demo-web", "name": "site-deploy", "uid": "site-deploy", "revision": 1, "reason": "Issued",
            "request": {"connection": "default", "service": "chittyid", "purpose": "worker-deploy", "runId": "r1"},
        });
        let part: ConfigMap = serde_json::from_value(json!({
            "data": {"journal.json": json!({"slots": {"site-deploy": {"events": [owed]}}, "other": 1}).to_string()},
        }))
        .unwrap();
        let credential = Credential::from(&example(Reason::Issued));
        let audit = Audit::new(
            credential,
            "site-deploy",
            &Seen::Found(events),
            &Seen::Found(vec![part]),
        );
        let told = audit.text(Some(80), 80, now());
        expect![[r#"
            WHEN        AGO   TOLD BY   WHAT                     N
            12:01:00Z   21m   Event     RateLimited              3
                something happened, and this is what it means for whoever waits for the
                token of this credential
            12:02:09Z   20m   journal   credential.provisioned
                revision 1, reason Issued, run r1: not delivered yet
            12:02:10Z   20m   Event     Issued
                something happened, and this is what it means for whoever waits for the
                token of this credential

            1 audit event of it waits for ChittyChronicle. Kubernetes keeps Events for an
            hour: ChittyChronicle has the rest, under entityId chittyid.
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&told).to_string());
    }
}
