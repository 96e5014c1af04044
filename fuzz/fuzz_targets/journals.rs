//! What is stored of a journal: a head and its pages, a line each, as somebody else might have written them. Whatever
//! they say, they are read, decided on and written again.
#![no_main]

use std::sync::Arc;

use chittyconnect_operator::api::RateScope;
use chittyconnect_operator::core::budget::{Demand, Follower, Limit, Terms};
use chittyconnect_operator::core::ids::{ObjectName, PageId};
use chittyconnect_operator::core::journal::pages::{Head, Layout, Page};
use chittyconnect_operator::core::journal::{Journal, MintReason, Scope};
use chrono::{DateTime, TimeDelta};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let scope = Scope {
        origin: "https://connect.chitty.cc".into(),
        kind: RateScope::Service,
        of: "svc".into(),
    };
    let mut lines = text.lines();
    let Some(Ok(head)) = lines.next().map(serde_json::from_str::<Option<Head>>) else {
        return;
    };
    let pages: Vec<Page> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    let at = |seconds: i64| DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time");
    let stored = Layout::read(&scope, head, pages, at(2400));
    let mut journal = stored.journal;
    journal.compact(at(2400));
    journal.compact_record("a", at(2400));
    let mut follower = Follower::new("svc");
    let limit = Limit {
        limit: 10,
        window: TimeDelta::seconds(3600),
    };
    let terms = Terms {
        limits: vec![limit],
        newcomers: true,
    };
    for uid in ["a", "b", "c"] {
        follower.budget.enqueue(Demand {
            uid: uid.into(),
            name: ObjectName::new("n", uid),
            reason: if uid == "a" {
                MintReason::Renewal
            } else {
                MintReason::First
            },
            since: at(0),
            renew_before: None,
            max_lifetime: None,
            pod_waits: false,
            most: None,
        });
    }
    let mut written = journal.clone();
    let journal = Arc::new(journal);
    follower.decide(&journal, &terms, at(2400));
    follower.decide(&journal, &terms, at(9000));
    let mut number = 0;
    let fresh = || {
        number += 1;
        PageId::from(format!("fresh-{number}"))
    };
    Layout::default().flush(&Journal::new(scope), &mut written, at(2400), fresh);
});
