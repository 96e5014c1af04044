//! From a verdict to the status a user reads.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::Time;
use super::journal::Record;
use super::plan::Verdict;
use super::schedule::renew_at;
use super::spec::Desired;
use crate::api::{ConditionType, EphemeralCredentialStatus, InUse, Reason, condition};

/// All that is looked at again of a status that was read or written: tens of thousands are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    digest: u64,
    conditions: Box<[ToldCondition]>,
    /// When the token is due for renewal.
    pub renew_at: Option<Time>,
    /// When it ends.
    pub expires_at: Option<Time>,
    /// How many Pods read its Secrets.
    pub in_use: Option<InUse>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct ToldCondition {
    kind: ConditionType,
    status: bool,
    /// Unknown where somebody else wrote it.
    reason: Option<Reason>,
    since: Time,
}

impl Told {
    /// What `status` tells.
    #[must_use]
    pub fn of(status: Option<&EphemeralCredentialStatus>) -> Self {
        let Some(status) = status else { return Self::default() };
        let conditions = status.conditions.iter().filter_map(|c| {
            Some(ToldCondition {
                kind: ConditionType::ALL.into_iter().find(|kind| kind.as_str() == c.type_)?,
                status: c.status == "True",
                reason: Reason::ALL.into_iter().find(|reason| reason.as_str() == c.reason),
                since: Time::from_timestamp(c.last_transition_time.0.as_second(), 0)?,
            })
        });
        Self {
            digest: digest(status),
            conditions: conditions.collect(),
            renew_at: status.renew_at,
            expires_at: status.expires_at,
            in_use: status.in_use,
        }
    }

    /// Whether that is what `status` tells, word by word.
    #[must_use]
    pub fn tells(&self, status: &EphemeralCredentialStatus) -> bool {
        self.digest == digest(status)
    }

    /// Whether that is what `status` tells, but for how many Pods read its Secrets.
    #[must_use]
    pub fn tells_but_in_use(&self, status: &EphemeralCredentialStatus) -> bool {
        let mut status = status.clone();
        status.in_use = self.in_use;
        self.tells(&status)
    }

    /// Whether it was Ready, and why; nothing where it was not looked at yet.
    #[must_use]
    pub fn ready(&self) -> Option<(bool, Option<Reason>)> {
        self.condition(ConditionType::Ready).map(|c| (c.status, c.reason))
    }

    /// What a credential that is not ready was last told to wait for, and since when: a process that has just started
    /// knows no better. For how a wait is shown, and for nothing else.
    #[must_use]
    pub fn waits(&self) -> Option<(Reason, Time)> {
        let ready = self.condition(ConditionType::Ready).filter(|c| !c.status)?;
        Some((ready.reason?, ready.since))
    }

    fn condition(&self, kind: ConditionType) -> Option<&ToldCondition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    fn unchanged_since(&self, kind: ConditionType, status: bool) -> Option<Time> {
        self.condition(kind).filter(|c| c.status == status).map(|c| c.since)
    }
}

fn digest(status: &EphemeralCredentialStatus) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Serialising plain text and numbers cannot fail.
    serde_json::to_vec(status).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

/// When the live token of a `record` is renewed, as `desired` says, or as what it was made for did; spread by `uid`.
#[must_use]
pub fn renewal(record: Option<&Record>, desired: Option<&Desired>, uid: &str) -> Option<Time> {
    let live = record?.live.as_ref()?;
    let renew_before = desired.map_or_else(|| live.renew_before(), |w| w.renew_before);
    Some(renew_at(live.issued_at, live.ends_at, renew_before, uid))
}

/// The status of a credential whose plan came to `verdict`, and whose token is to be replaced at its `renewal`.
///
/// Times are whole seconds: the API server keeps no more, and a status that differs from what is
/// stored would be written for ever.
#[must_use]
pub fn status(
    verdict: &Verdict,
    record: Option<&Record>,
    renewal: Option<Time>,
    generation: Option<i64>,
    previous: &Told,
    now: Time,
) -> EphemeralCredentialStatus {
    let make = |kind, status, message: &str| {
        let since = previous.unchanged_since(kind, status);
        condition(kind, status, verdict.reason.as_str(), message, generation, since, now)
    };
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
    let outputs: BTreeSet<String> = live
        .map(|l| l.outputs.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    EphemeralCredentialStatus {
        observed_generation: generation,
        conditions,
        outputs: outputs.into_iter().collect(),
        secrets: live.map(|l| l.secrets.keys().cloned().collect()).unwrap_or_default(),
        revision: record.map(|r| r.revision).filter(|r| *r > 0),
        issued_at: live.map(|l| whole(l.issued_at)),
        expires_at: live.map(|l| whole(l.ends_at)),
        renew_at: renewal.filter(|_| live.is_some()).map(whole),
        next_attempt_at: verdict.next_attempt.map(whole),
        in_use: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::t;

    fn status(ready: bool, reason: &str) -> EphemeralCredentialStatus {
        EphemeralCredentialStatus {
            conditions: vec![condition(ConditionType::Ready, ready, reason, "", None, None, t(7))],
            ..EphemeralCredentialStatus::default()
        }
    }

    fn waits(ready: bool, reason: &str) -> Option<(Reason, Time)> {
        Told::of(Some(&status(ready, reason))).waits()
    }

    #[test]
    fn a_status_tells_what_an_unready_credential_waits_for_and_since_when() {
        assert_eq!(waits(false, "NotPermitted"), Some((Reason::NotPermitted, t(7))));
        assert_eq!(waits(true, "NotPermitted"), None);
        assert_eq!(waits(false, "EditedByHand"), None);
        assert_eq!(Told::of(None).waits(), None);
    }

    #[test]
    fn a_status_that_differs_in_a_word_is_not_what_was_told() {
        let told = Told::of(Some(&status(true, "Issued")));
        assert!(told.tells(&status(true, "Issued")));
        let edited = EphemeralCredentialStatus {
            revision: Some(9),
            ..status(true, "Issued")
        };
        assert!(!told.tells(&edited) && !Told::of(None).tells(&EphemeralCredentialStatus::default()));
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_does() {
        let told = Told::of(Some(&status(false, "RateLimited")));
        assert_eq!(told.unchanged_since(ConditionType::Ready, false), Some(t(7)));
        assert_eq!(told.unchanged_since(ConditionType::Ready, true), None);
        assert_eq!(told.unchanged_since(ConditionType::Issued, false), None);
    }
}
