//! From a verdict to the status a user reads.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::Time;
use super::journal::Record;
use super::plan::Verdict;
use super::schedule::renew_at;
use super::spec::Wanted;
use crate::api::{ConditionType, EphemeralCredentialStatus, condition};

/// The status of a credential whose plan came to `verdict`.
///
/// Times are whole seconds: the API server keeps no more, and a status that differs from what is
/// stored would be written for ever.
#[must_use]
pub fn status(
    verdict: &Verdict,
    record: Option<&Record>,
    wanted: Option<&Wanted>,
    uid: &str,
    generation: Option<i64>,
    previous: Option<&EphemeralCredentialStatus>,
    now: Time,
) -> EphemeralCredentialStatus {
    let known: &[Condition] = previous.map_or(&[], |s| &s.conditions);
    let make =
        |kind, status, message: &str| condition(kind, status, verdict.reason.as_str(), message, generation, known, now);
    let mut conditions = vec![
        make(ConditionType::Ready, verdict.ready, &verdict.message),
        make(
            ConditionType::Issued,
            verdict.issued,
            issued_message(verdict.issued, record),
        ),
    ];
    if verdict.stalled {
        conditions.push(make(ConditionType::Stalled, true, &verdict.message));
    } else if !verdict.ready && !verdict.issued {
        conditions.push(make(ConditionType::Reconciling, true, &verdict.message));
    }
    let live = record.and_then(|r| r.live.as_ref()).filter(|_| verdict.issued);
    let renews = live.map(|l| {
        let renew_before = wanted.map_or_else(|| l.renew_before(), |w| w.renew_before);
        renew_at(l.issued_at, l.ends_at, renew_before, uid)
    });
    let outputs: BTreeSet<String> = live.map(|l| l.outputs.iter().cloned().collect()).unwrap_or_default();
    EphemeralCredentialStatus {
        observed_generation: generation,
        conditions,
        outputs: outputs.into_iter().collect(),
        revision: record.map(|r| r.revision).filter(|r| *r > 0),
        issued_at: live.map(|l| whole(l.issued_at)),
        expires_at: live.map(|l| whole(l.ends_at)),
        renew_at: renews.map(whole),
        next_attempt_at: verdict.next_attempt.map(whole),
        orphans: record.map(|r| r.orphans.clone()).unwrap_or_default(),
    }
}

fn issued_message(issued: bool, record: Option<&Record>) -> &'static str {
    match record.and_then(|r| r.live.as_ref()) {
        _ if !issued => "no valid Secret is there",
        Some(live) if live.token_ids.is_empty() => {
            "a valid Secret is there; ChittyConnect gave no id to revoke its tokens by: they end by themselves"
        }
        _ => "a valid Secret is there",
    }
}

fn whole(at: Time) -> Time {
    use chrono::SubsecRound;
    at.trunc_subsecs(0)
}
