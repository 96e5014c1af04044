//! Tests of the plan: what each observation leads to.

mod follow;
mod on_demand;
mod revoke;
mod world;

use std::collections::BTreeMap;

use super::*;
use crate::core::Problem;
use crate::core::budget::Waiting;
use crate::core::journal::tests_support::{claim as claim_at, endpoint, live as live_at, request, scope};
use crate::core::journal::{Failure, Record, Written};
use crate::core::layout::AnnotationPolicy;
use crate::core::schedule::CLAIM_GRACE;
use crate::core::seal::Seal;
use crate::core::spec::{self, tests_support::credential};
use crate::core::spec::{Asked, Desired};
use crate::core::testing::{s, t};
const UID: &str = "uid-a";

fn desired() -> Desired {
    spec::desired(&credential("a", "svc"), None, &AnnotationPolicy::default()).unwrap()
}

fn live() -> ActiveToken {
    let desired = desired();
    let mut live = live_at("claim-1", t(0), t(3600));
    live.request.connection = desired.connection.as_str().into();
    live.request.service = desired.service.as_str().into();
    live.digest.request = desired.digest.request;
    live.digest.layout = desired.digest.layout;
    let written = Written {
        keys: vec!["k".into()],
        fingerprint: "f".into(),
        ..Written::default()
    };
    live.secrets.insert("a".into(), written);
    live
}

fn ours(content: Content) -> SecretState {
    SecretState::Ours {
        seal: Some(Box::new(Seal::new(UID, "runners-1", "a", &live()))),
        content,
        metadata_matches: true,
    }
}

/// Nothing was ever minted, and everything may be.
fn fresh() -> Observed {
    Observed {
        uid: UID.into(),
        terminating: false,
        suspended: false,
        desired: Ok(desired()),
        asked: Asked::default(),
        users: Users::Anybody,
        kept: true,
        permitted: Ok(()),
        connection: Connection::Ready { window: s(3600) },
        secrets: [("a".to_owned(), SecretState::Absent)].into(),
        record: None,
        claim: None,
        working: false,
        held_up: None,
        journal_unavailable: false,
        told: None,
        holder: "me".into(),
        claim_grace: CLAIM_GRACE,
        waiting: None,
        unprepared: None,
    }
}

/// A token is live and its Secret as it should be.
fn issued() -> Observed {
    let record = Record {
        revision: 1,
        live: Some(live()),
        ..Record::default()
    };
    Observed {
        record: Some(record),
        secrets: [("a".to_owned(), ours(Content::Intact))].into(),
        ..fresh()
    }
}

fn failed_with(reason: Reason, retry_at: Option<Time>) -> Failure {
    let w = desired();
    Failure {
        reason,
        message: "it failed".into(),
        at: t(0),
        asked_at: None,
        count: 1,
        retry_at,
        digest: w.digest,
    }
}

fn ready(plan: &Plan) -> (bool, Reason) {
    let v = plan.verdict.as_ref().expect("a verdict");
    (v.ready, v.reason)
}

fn stalled_after(o: &Observed, told: Option<Reason>, seconds: i64) -> (bool, Option<Time>) {
    let told = told.map(|reason| (reason, t(0)));
    let plan = plan(&Observed { told, ..o.clone() }, t(seconds));
    (plan.verdict.expect("a verdict").stalled, plan.wake)
}

#[test]
fn what_only_a_change_of_the_spec_can_end_is_stalled_at_once() {
    let refused = |reason| Observed {
        desired: Err(Problem::new(reason, "no")),
        ..fresh()
    };
    let held = SecretState::Terminating { held: true };
    let conflict = Observed {
        secrets: [("a".to_owned(), held)].into(),
        ..fresh()
    };
    for o in [refused(Reason::InvalidSpec), refused(Reason::InvalidTemplate), conflict] {
        assert!(stalled_after(&o, None, 0).0);
    }
}

#[test]
fn a_template_that_failed_once_is_stalled_though_it_is_tried_again() {
    let mut o = fresh();
    let failure = failed_with(Reason::InvalidTemplate, Some(t(600)));
    o.record = Some(Record {
        failure: Some(Box::new(failure)),
        ..Record::default()
    });
    assert_eq!(stalled_after(&o, None, 1), (true, Some(t(600))));
}

#[test]
fn what_somebody_may_be_about_to_allow_or_to_create_is_stalled_after_two_minutes() {
    let not_permitted = Observed {
        permitted: Err(Problem::new(Reason::NotPermitted, "no")),
        ..fresh()
    };
    let not_found = Observed {
        connection: Connection::Unusable(Problem::new(Reason::ConnectionNotFound, "no")),
        ..fresh()
    };
    for (o, reason) in [
        (not_permitted, Reason::NotPermitted),
        (not_found, Reason::ConnectionNotFound),
    ] {
        assert_eq!(stalled_after(&o, None, 500), (false, Some(t(620))));
        assert_eq!(stalled_after(&o, Some(reason), 119), (false, Some(t(120))));
        assert_eq!(stalled_after(&o, Some(reason), 120), (true, None));
        // Another reason before: this wait has only begun.
        assert_eq!(stalled_after(&o, Some(Reason::RateLimited), 500), (false, Some(t(620))));
    }
}

#[test]
fn a_credential_with_a_valid_secret_is_never_stalled() {
    let o = Observed {
        connection: Connection::Unusable(Problem::new(Reason::ConnectionNotFound, "no")),
        ..issued()
    };
    assert!(!stalled_after(&o, Some(Reason::ConnectionNotFound), 500).0);
}

#[test]
fn a_new_credential_asks_for_its_first_token_and_tells_nothing_yet() {
    let plan = plan(&fresh(), t(0));
    assert_eq!(plan.demand, Some(MintReason::First));
    assert_eq!(plan.verdict, None);
    assert!(plan.actions.is_empty());
}

/// Each status would be written once more, and all of them in a moment.
#[test]
fn at_midnight_nothing_else_is_said_of_a_token() {
    let mut o = issued();
    let live = o.record.as_mut().and_then(|record| record.live.as_mut()).unwrap();
    // From 23:53:20 on.
    (live.issued_at, live.ends_at) = (t(6000), t(9600));
    let said = |at| plan(&o, at).verdict.unwrap().message;
    assert!(
        said(t(6100)).contains("valid until 2023-11-15T00:53:20Z"),
        "{}",
        said(t(6100))
    );
    assert_eq!(said(t(6100)), said(t(6500)));
}

#[test]
fn a_valid_token_asks_for_nothing_and_wakes_for_its_renewal() {
    let plan = plan(&issued(), t(10));
    assert_eq!((plan.demand, plan.actions.len()), (None, 0));
    assert_eq!(ready(&plan), (true, Reason::Issued));
    assert_eq!(plan.wake, Some(renew_at(t(0), t(3600), None, UID)));
}

#[test]
fn a_due_token_asks_for_its_renewal_whatever_else_is_pending() {
    let mut o = issued();
    assert_eq!(plan(&o, t(2400)).demand, Some(MintReason::Renewal));
    let mut other = credential("a", "svc");
    other.spec.purpose = "other".into();
    o.desired = Ok(spec::desired(&other, None, &AnnotationPolicy::default()).unwrap());
    assert_eq!(plan(&o, t(10)).demand, Some(MintReason::Change));
    assert_eq!(plan(&o, t(2400)).demand, Some(MintReason::Renewal));
}

#[test]
fn a_changed_spec_is_not_ready_though_issued() {
    let mut o = issued();
    let mut other = credential("a", "svc");
    other.spec.purpose = "other".into();
    o.desired = Ok(spec::desired(&other, None, &AnnotationPolicy::default()).unwrap());
    o.waiting = Some(Waiting {
        reason: Reason::RateLimited,
        position: 1,
        next_slot: Some(t(99)),
        message: "wait".into(),
    });
    let plan = plan(&o, t(10));
    let verdict = plan.verdict.unwrap();
    assert_eq!(
        (verdict.ready, verdict.issued, verdict.reason),
        (false, true, Reason::RateLimited)
    );
    assert_eq!(verdict.next_attempt, Some(t(99)));
    assert_eq!(plan.demand, Some(MintReason::Change), "who waits stays in line");
}

#[test]
fn a_token_past_its_end_goes_before_anything_else() {
    for connection in [
        Connection::Ready { window: s(3600) },
        Connection::Unusable(Problem::new(Reason::ConnectionNotFound, "gone")),
    ] {
        let plan = plan(&Observed { connection, ..issued() }, t(3600));
        assert_eq!(plan.actions[0], Action::Delete { secret: "a".into() });
        assert_eq!(
            plan.actions[1],
            Action::Release {
                reason: Reason::Expired
            }
        );
    }
}

#[test]
fn an_open_claim_does_not_keep_an_expired_secret() {
    let mut o = issued();
    o.claim = Some(claim_at(UID, "runners-1", MintReason::Renewal, t(3599), 2));
    o.working = true;
    let actions = plan(&o, t(3600)).actions;
    assert_eq!(actions[0], Action::Delete { secret: "a".into() });
}

#[test]
fn lost_permission_takes_everything() {
    let o = Observed {
        permitted: Err(Problem::new(Reason::NotPermitted, "no rule")),
        ..issued()
    };
    let plan = plan(&o, t(10));
    assert_eq!(
        plan.actions,
        [
            Action::Delete { secret: "a".into() },
            Action::Release {
                reason: Reason::NotPermitted
            }
        ]
    );
    assert_eq!(ready(&plan), (false, Reason::NotPermitted));
    assert_eq!(plan.demand, None);
}

/// Invariant 6.
#[test]
fn a_changed_value_is_removed_and_healed_once_a_window() {
    let mut o = issued();
    o.secrets = [("a".to_owned(), ours(Content::Altered))].into();
    let first = plan(&o, t(10));
    assert_eq!(first.actions, [Action::DeleteTampered { secret: "a".into() }]);
    o.secrets = [("a".to_owned(), SecretState::Absent)].into();
    assert_eq!(plan(&o, t(10)).demand, Some(MintReason::Heal));
    o.record.as_mut().unwrap().heals = vec![t(5)];
    let again = plan(&o, t(10));
    assert_eq!(again.demand, None);
    assert_eq!(ready(&again), (false, Reason::Tampered));
    assert_eq!(
        plan(&o, t(2400)).demand,
        Some(MintReason::Renewal),
        "its renewal has a slot of its own"
    );
}

#[test]
fn extra_keys_and_undressed_secrets_are_restored_without_a_mint() {
    for state in [
        ours(Content::Extra),
        SecretState::Ours {
            seal: None,
            content: Content::Intact,
            metadata_matches: false,
        },
    ] {
        let o = Observed {
            secrets: [("a".to_owned(), state)].into(),
            ..issued()
        };
        let plan = plan(&o, t(10));
        assert_eq!(plan.actions, [Action::Restore { secret: "a".into() }]);
        assert_eq!((plan.demand, ready(&plan).0), (None, true));
    }
}

#[test]
fn somebody_elses_secret_stops_the_mint_and_is_not_touched() {
    for (state, stalled) in [(SecretState::Foreign, true), (SecretState::Leftover, false)] {
        let o = Observed {
            secrets: [("a".to_owned(), state)].into(),
            ..fresh()
        };
        let plan = plan(&o, t(0));
        assert_eq!((plan.demand, plan.actions.len()), (None, 0));
        let verdict = plan.verdict.unwrap();
        assert_eq!((verdict.reason, verdict.stalled), (Reason::SecretConflict, stalled));
    }
}

#[test]
fn a_secret_that_a_finalizer_holds_is_emptied_once_its_token_ended_or_is_not_allowed() {
    let held = |held| BTreeMap::from([("a".to_owned(), SecretState::Terminating { held })]);
    let mut o = issued();
    o.secrets = held(true);
    let empties = |o: &Observed, now| plan(o, now).actions.contains(&Action::Delete { secret: "a".into() });
    assert!(!empties(&o, t(10)), "it has life left");
    assert!(empties(&o, t(3600)));
    o.claim = Some(claim_at(UID, "runners-1", MintReason::Renewal, t(3599), 2));
    assert!(empties(&o, t(3600)), "a request under way keeps nothing");
    o.claim = None;
    o.permitted = Err(Problem::new(Reason::NotPermitted, "no"));
    assert!(empties(&o, t(10)));
    o.secrets = held(false);
    assert!(!empties(&o, t(3600)), "it is empty");
}

#[test]
fn a_sealed_secret_that_the_journal_seems_not_to_know_is_removed_only_once_it_was_asked() {
    let mut o = issued();
    let record = o.record.as_mut().unwrap();
    (record.live, record.revision) = (None, 0);
    let unknown = Action::DeleteUnknown {
        secret: "a".into(),
        claim: "claim-1".into(),
    };
    assert_eq!(plan(&o, t(10)).actions, [unknown]);
    // What this view knows of is past, and so is what has ended.
    assert_eq!(plan(&o, t(3600)).actions, [Action::Delete { secret: "a".into() }]);
    o.record.as_mut().unwrap().revision = 1;
    assert_eq!(plan(&o, t(10)).actions, [Action::Delete { secret: "a".into() }]);
}

#[test]
fn a_stray_secret_of_ours_is_removed_once_the_new_layout_is_live() {
    let mut o = issued();
    o.secrets.insert("old".into(), ours(Content::Altered));
    assert_eq!(plan(&o, t(10)).actions, [Action::Delete { secret: "old".into() }]);
}

#[test]
fn a_denial_stands_until_spec_or_annotation_change() {
    let mut o = fresh();
    o.record = Some(Record {
        failure: Some(Box::new(failed_with(Reason::Denied, None))),
        ..Record::default()
    });
    let denied = plan(&o, t(1_000_000));
    assert_eq!((denied.demand, ready(&denied)), (None, (false, Reason::Denied)));
    let mut asked_again = credential("a", "svc");
    asked_again.metadata.annotations = Some([("connect.chitty.cc/rotate".into(), "1".into())].into());
    o.desired = Ok(spec::desired(&asked_again, None, &AnnotationPolicy::default()).unwrap());
    assert_eq!(plan(&o, t(0)).demand, Some(MintReason::First));
}

#[test]
fn a_failure_waits_for_its_time_and_a_ready_token_stays_ready_meanwhile() {
    let mut o = issued();
    o.record.as_mut().unwrap().failure = Some(Box::new(failed_with(Reason::BrokerUnavailable, Some(t(2500)))));
    let waiting = plan(&o, t(2400));
    assert_eq!(
        (waiting.demand, ready(&waiting)),
        (None, (true, Reason::BrokerUnavailable))
    );
    assert_eq!(plan(&o, t(2500)).demand, Some(MintReason::Renewal));
}

#[test]
fn suspended_a_token_stays_to_its_end_and_none_follows() {
    let o = Observed {
        suspended: true,
        ..issued()
    };
    assert_eq!(
        (plan(&o, t(2500)).demand, ready(&plan(&o, t(2500)))),
        (None, (true, Reason::Suspended))
    );
    assert_eq!(plan(&o, t(3600)).demand, None);
    assert_eq!(ready(&plan(&o, t(3600))), (false, Reason::Expired));
}

#[test]
fn a_refused_key_leaves_the_token_ready_and_its_users_in_line_for_the_probe() {
    let connection = Connection::Unauthorized {
        probe_at: t(900),
        message: "refused".into(),
    };
    let good = plan(
        &Observed {
            connection: connection.clone(),
            ..issued()
        },
        t(10),
    );
    assert_eq!((good.demand, ready(&good)), (None, (true, Reason::Unauthorized)));
    let new = plan(&Observed { connection, ..fresh() }, t(10));
    assert_eq!(
        (new.demand, ready(&new)),
        (Some(MintReason::First), (false, Reason::Unauthorized))
    );
}

#[test]
fn while_nothing_is_answered_whoever_needs_a_token_stays_in_line_and_what_happened_to_its_own_request_is_told() {
    let connection = Connection::Down {
        window: s(3600),
        message: "down".into(),
    };
    let mut o = Observed { connection, ..issued() };
    assert_eq!(ready(&plan(&o, t(10))), (true, Reason::Issued), "nothing is due");
    let due = plan(&o, t(2500));
    assert_eq!(
        (due.demand, ready(&due)),
        (Some(MintReason::Renewal), (true, Reason::BrokerUnavailable))
    );
    for (reason, retry_at) in [(Reason::Denied, None), (Reason::OutcomeUnknown, Some(t(2600)))] {
        o.record.as_mut().unwrap().failure = Some(Box::new(failed_with(reason, retry_at)));
        let failed = plan(&o, t(2500));
        assert_eq!((failed.demand, ready(&failed)), (None, (true, reason)));
    }
}

#[test]
fn a_denied_credential_is_not_the_one_that_tries_a_refused_key() {
    let mut o = issued();
    o.connection = Connection::Unauthorized {
        probe_at: t(900),
        message: "refused".into(),
    };
    o.record.as_mut().unwrap().failure = Some(Box::new(failed_with(Reason::Denied, None)));
    assert_eq!(plan(&o, t(2500)).demand, None);
}

/// Invariant 15.
#[test]
fn a_spec_that_asks_for_more_mints_is_told_when_that_begins() {
    let mut o = issued();
    let message = |o: &Observed, at: i64| plan(o, t(at)).verdict.unwrap().message;
    assert!(!message(&o, 10).contains("instead"));
    o.desired.as_mut().unwrap().max_lifetime = Some(s(600));
    let told = message(&o, 10);
    assert!(told.contains("every 6 min instead of every 40 min"), "{told}");
    o.desired.as_mut().unwrap().max_lifetime = None;
    o.desired.as_mut().unwrap().renew_before = Some(s(2400));
    let told = message(&o, 10);
    assert!(told.contains("every 20 min instead of every 40 min"), "{told}");
}

#[test]
fn a_claim_of_another_process_is_judged_only_once_nobody_can_work_on_it() {
    let mut o = fresh();
    let mut claim = claim_at(UID, "runners-1", MintReason::First, t(0), 1);
    claim.holder = "other".into();
    claim.secrets = vec!["a".into()];
    o.claim = Some(claim.clone());
    let judged = claim.answered_by() + CLAIM_GRACE;
    assert_eq!(judged, t(30));
    let early = plan(&o, t(29));
    assert_eq!((early.actions.len(), early.wake, early.demand), (0, Some(judged), None));
    assert_eq!(plan(&o, t(30)).actions, [Action::GiveUp]);
    claim.holder = "me".into();
    o.claim = Some(claim);
    assert_eq!(
        plan(&o, t(0)).actions,
        [Action::GiveUp],
        "the same identity has nobody to wait for"
    );
    o.secrets = [("a".to_owned(), ours(Content::Altered))].into();
    assert_eq!(
        plan(&o, t(0)).actions,
        [Action::Adopt],
        "sealed with that claim, the write was finished"
    );
}

#[test]
fn a_lost_record_is_rebuilt_from_seals_and_never_from_anything_else() {
    let mut o = fresh();
    o.secrets = [("a".to_owned(), ours(Content::Altered))].into();
    assert_eq!(plan(&o, t(10)).actions, [Action::Rebuild]);
    assert_eq!(plan(&o, t(3600)).actions, [Action::Delete { secret: "a".into() }]);
    o.secrets = [(
        "a".to_owned(),
        SecretState::Ours {
            seal: None,
            content: Content::Altered,
            metadata_matches: true,
        },
    )]
    .into();
    assert_eq!(plan(&o, t(10)).actions, [Action::Delete { secret: "a".into() }]);
}

#[test]
fn blind_it_only_removes_what_its_own_seal_says_has_ended() {
    let problem = Problem::new(Reason::ConnectionNotReady, "the journal is broken");
    let o = Observed {
        journal_unavailable: true,
        connection: Connection::Unusable(problem),
        ..issued()
    };
    let before = plan(&o, t(3590));
    assert_eq!((before.actions, before.demand), (vec![], None));
    assert_eq!(before.wake, Some(t(3600)));
    let after = plan(&o, t(3600));
    assert_eq!(
        (after.actions, after.demand),
        (vec![Action::Delete { secret: "a".into() }], None)
    );
}

#[test]
fn a_request_moved_to_another_service_or_connection_is_a_newcomer_there_though_its_token_is_due() {
    for (connection, service) in [("other", "svc"), ("default", "other")] {
        let mut o = issued();
        let live = o.record.as_mut().unwrap().live.as_mut().unwrap();
        live.request.connection = connection.into();
        live.request.service = service.into();
        live.digest.request = crate::core::ids::Digest::of(["that"]);
        assert_eq!(
            plan(&o, t(3000)).demand,
            Some(MintReason::Change),
            "{connection} {service}"
        );
    }
}

#[test]
fn a_deleted_credential_that_a_finalizer_keeps_loses_its_secrets_and_asks_for_nothing() {
    let o = Observed {
        terminating: true,
        ..issued()
    };
    let plan = plan(&o, t(3000));
    assert_eq!(
        (plan.actions, plan.demand),
        (vec![Action::Delete { secret: "a".into() }], None)
    );
}
