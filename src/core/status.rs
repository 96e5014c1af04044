//! From a verdict to the status a user reads.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::Time;
use super::journal::Record;
use super::plan::Verdict;
use super::schedule::renew_at;
use super::spec::Desired;
use crate::api::{ConditionType, EphemeralCredentialStatus, Reason, condition};

/// The status of a credential whose plan came to `verdict`.
///
/// Times are whole seconds: the API server keeps no more, and a status that differs from what is
/// stored would be written for ever.
#[must_use]
pub fn status(
    verdict: &Verdict,
    record: Option<&Record>,
    desired: Option<&Desired>,
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
        let renew_before = desired.map_or_else(|| l.renew_before(), |w| w.renew_before);
        renew_at(l.issued_at, l.ends_at, renew_before, uid)
    });
    let outputs: BTreeSet<String> = live.map(|l| l.outputs.iter().cloned().collect()).unwrap_or_default();
    EphemeralCredentialStatus {
        observed_generation: generation,
        conditions,
        outputs: outputs.into_iter().collect(),
        secrets: live.map(|l| l.secrets.keys().cloned().collect()).unwrap_or_default(),
        revision: record.map(|r| r.revision).filter(|r| *r > 0),
        issued_at: live.map(|l| whole(l.issued_at)),
        expires_at: live.map(|l| whole(l.ends_at)),
        renew_at: renews.map(whole),
        next_attempt_at: verdict.next_attempt.map(whole),
        orphans: record.map(|r| r.orphans.clone()).unwrap_or_default(),
    }
}

/// What a credential that is not ready was last told to wait for, and since when, as far as its status can say: a
/// process that has just started knows no better. For how a wait is shown, and for nothing else.
#[must_use]
pub fn told_before(status: Option<&EphemeralCredentialStatus>) -> Option<(Reason, Time)> {
    let ready = status?
        .conditions
        .iter()
        .find(|c| c.type_ == ConditionType::Ready.as_str())?;
    let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == ready.reason)?;
    let since = Time::from_timestamp(ready.last_transition_time.0.as_second(), 0)?;
    (ready.status == "False").then_some((reason, since))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::t;

    fn told(ready: bool, reason: &str) -> Option<(Reason, Time)> {
        let status = EphemeralCredentialStatus {
            conditions: vec![condition(ConditionType::Ready, ready, reason, "", None, &[], t(7))],
            ..EphemeralCredentialStatus::default()
        };
        told_before(Some(&status))
    }

    #[test]
    fn a_status_tells_what_an_unready_credential_waits_for_and_since_when() {
        assert_eq!(told(false, "NotPermitted"), Some((Reason::NotPermitted, t(7))));
        assert_eq!(told(true, "NotPermitted"), None);
        assert_eq!(told(false, "EditedByHand"), None);
        assert_eq!(told_before(None), None);
    }
}
