//! The revoke annotation: all tokens go, and none comes before a rotation is asked for.

use super::*;
use crate::core::ids::Digest;
use crate::core::journal::{Journal, RevokedBy};

fn asked(revoke: &str, rotate: &str) -> Asked {
    let digest = |text: &str| match text {
        "" => Digest::default(),
        text => Digest::of([text]),
    };
    Asked {
        revoke: digest(revoke),
        rotate: digest(rotate),
    }
}

/// With annotations of these values.
fn annotated(o: Observed, revoke: &str, rotate: &str) -> Observed {
    let asked = asked(revoke, rotate);
    let desired = o.desired.map(|mut desired| {
        (desired.digest.revoke, desired.digest.rotate) = (asked.revoke, asked.rotate);
        desired
    });
    Observed { desired, asked, ..o }
}

/// Its tokens were revoked when the annotations had these values.
fn revoked(revoke: &str, rotate: &str) -> Observed {
    let asked = asked(revoke, rotate);
    let by = RevokedBy {
        revoke: asked.revoke,
        until: Some(asked.rotate),
        outlives: Some(t(3600)),
    };
    let record = Record {
        revision: 1,
        revoked: Some(Box::new(by)),
        ..Record::default()
    };
    Observed {
        record: Some(record),
        ..fresh()
    }
}

fn is_held_back(o: &Observed) -> bool {
    let plan = plan(o, t(10));
    plan.demand.is_none()
        && plan
            .verdict
            .is_some_and(|v| v.reason == Reason::Revoked && v.stalled && !v.ready)
}

#[test]
fn a_new_value_of_the_annotation_revokes_before_all_else_even_what_is_suspended_or_has_no_token() {
    let suspended = Observed {
        suspended: true,
        ..issued()
    };
    let unusable = Observed {
        desired: Err(Problem::new(Reason::InvalidSpec, "no")),
        ..issued()
    };
    for o in [issued(), suspended, unusable, fresh()] {
        let plan = plan(&annotated(o, "1", ""), t(10));
        assert_eq!(plan.actions, [Action::Revoke { asked: asked("1", "") }]);
        assert_eq!((plan.demand, plan.verdict), (None, None));
    }
}

#[test]
fn once_revoked_secrets_go_and_nothing_but_a_new_value_of_the_rotate_annotation_has_a_token_minted() {
    let o = annotated(revoked("1", "a"), "1", "a");
    assert!(is_held_back(&o));
    let left = Observed {
        secrets: [("a".to_owned(), ours(Content::Intact))].into(),
        ..o.clone()
    };
    assert_eq!(plan(&left, t(10)).actions, [Action::Delete { secret: "a".into() }]);

    let mut edited = o.clone();
    edited.desired.as_mut().unwrap().digest.request = Digest::of(["another"]);
    assert!(is_held_back(&edited));
    assert!(is_held_back(&annotated(o.clone(), "", "a")), "the annotation is gone");
    assert!(
        is_held_back(&annotated(o.clone(), "1", "")),
        "that of the rotation is gone"
    );
    assert_eq!(plan(&annotated(o, "1", "b"), t(10)).demand, Some(MintReason::First));
}

#[test]
fn what_could_not_be_revoked_is_told_until_it_ends() {
    let o = annotated(revoked("1", ""), "1", "");
    let told = |now| plan(&o, t(now)).verdict.unwrap().message;
    assert!(told(10).contains("a copy works until"), "{}", told(10));
    assert!(!told(3600).contains("a copy works"), "{}", told(3600));
}

#[test]
fn a_token_minted_since_is_not_revoked_again_and_another_value_revokes_it() {
    let mut o = annotated(issued(), "1", "b");
    let live = o.record.as_mut().unwrap().live.as_mut().unwrap();
    (live.digest.revoke, live.digest.rotate) = (asked("1", "b").revoke, asked("1", "b").rotate);
    assert_eq!(plan(&o, t(10)).actions, []);
    assert_eq!(ready(&plan(&o, t(10))), (true, Reason::Issued));
    assert_eq!(plan(&annotated(o.clone(), "", "b"), t(10)).actions, []);
    let again = plan(&annotated(o, "2", "b"), t(10));
    assert_eq!(again.actions, [Action::Revoke { asked: asked("2", "b") }]);
}

#[test]
fn a_view_that_is_behind_revokes_nothing_that_was_minted_since() {
    let mut journal = Journal::new(scope());
    let name = ("runners-1", "a");
    journal.adopt_lost(UID, name, live(), t(0));
    assert!(journal.revoke_as_asked(UID, name, asked("1", ""), t(1)));
    assert_eq!(journal.live_of(UID), None);
    let outlives = |j: &Journal| j.credentials.get(UID).unwrap().revoked.as_deref().unwrap().outlives;
    assert_eq!(
        outlives(&journal),
        Some(live().ends_at),
        "it has no id to be revoked by"
    );
    assert!(!journal.revoke_as_asked(UID, name, asked("1", ""), t(2)));

    let mut journal = Journal::new(scope());
    let mut since = live();
    since.digest.revoke = asked("1", "").revoke;
    journal.adopt_lost(UID, name, since, t(0));
    assert!(!journal.revoke_as_asked(UID, name, asked("1", ""), t(1)));
    assert!(journal.live_of(UID).is_some());
}
