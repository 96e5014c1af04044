//! What each observation of a credential that follows another leads to.

use super::*;
use crate::core::ids::ObjectName;
use crate::core::text::Text;

const SOURCE: &str = "team-a/deploy";

/// What is followed, with that token.
fn source(live: Option<ActiveToken>) -> Source {
    Source {
        name: ObjectName::new("team-a", "deploy"),
        uid: "uid-source".into(),
        live,
        known: true,
        legible: true,
        renew_before: None,
        on_demand: false,
    }
}

/// The token as the one that follows holds it.
fn followed() -> ActiveToken {
    ActiveToken {
        source: Some(Text::from(SOURCE)),
        ..live()
    }
}

fn holding() -> Observed {
    let record = Record {
        revision: 1,
        live: Some(followed()),
        ..Record::default()
    };
    Observed {
        record: Some(record),
        ..issued()
    }
}

fn of(claim: &str, at: i64) -> ActiveToken {
    ActiveToken {
        claim: claim.into(),
        issued_at: t(at),
        ends_at: t(at + 3600),
        revision: 2,
        ..live()
    }
}

fn deletes(plan: &Plan) -> bool {
    plan.actions.contains(&Action::Delete { secret: "a".into() })
}

#[test]
fn whoever_has_nothing_and_may_have_it_is_given_the_token_that_is_there() {
    let plan = follow(&fresh(), Some(&source(Some(live()))), t(10));
    assert_eq!((plan.demand, plan.actions.len()), (Some(MintReason::First), 0));
    let plan = follow(&fresh(), Some(&source(None)), t(10));
    assert_eq!(plan.demand, None);
    assert_eq!(ready(&plan), (false, Reason::Issuing));
    let over = follow(&fresh(), Some(&source(Some(live()))), t(3600));
    assert_eq!(over.demand, None, "it has ended");
}

#[test]
fn what_is_as_it_should_be_is_left_alone_and_told() {
    let plan = follow(&holding(), Some(&source(Some(live()))), t(10));
    assert!(plan.actions.is_empty() && plan.demand.is_none());
    assert_eq!(ready(&plan), (true, Reason::Issued));
    assert_eq!(plan.wake, Some(t(3600)));
    let message = plan.verdict.unwrap().message;
    assert!(
        message.starts_with("revision 1 of EphemeralCredential team-a/deploy is valid until"),
        "{message}"
    );
}

#[test]
fn a_later_token_another_source_another_layout_and_somebodys_edit_ask_for_a_copy() {
    let asks = |o: &Observed, s: &Source| follow(o, Some(s), t(10)).demand;
    assert_eq!(
        asks(&holding(), &source(Some(of("claim-2", 5)))),
        Some(MintReason::Renewal)
    );
    let other = Source {
        name: ObjectName::new("team-b", "deploy"),
        ..source(Some(live()))
    };
    assert_eq!(asks(&holding(), &other), Some(MintReason::Change));
    let mut layout = holding();
    layout.desired.as_mut().unwrap().digest.layout = crate::core::ids::Digest::of(["another"]);
    assert_eq!(asks(&layout, &source(Some(live()))), Some(MintReason::Change));
    for state in [ours(Content::Altered), SecretState::Absent] {
        let mut edited = holding();
        edited.secrets.insert("a".into(), state);
        assert_eq!(asks(&edited, &source(Some(live()))), Some(MintReason::Heal));
    }
}

#[test]
fn whose_word_is_taken_back_loses_its_secrets_at_once_and_owes_nothing() {
    for reason in [Reason::NotShared, Reason::SourceNotFound, Reason::NotPermitted] {
        let o = Observed {
            permitted: Err(Problem::new(reason, "no")),
            ..holding()
        };
        let plan = follow(&o, None, t(10));
        assert!(deletes(&plan) && plan.actions.contains(&Action::Release { reason }));
        assert_eq!((ready(&plan), plan.demand), ((false, reason), None));
    }
}

/// Invariant 7.
#[test]
fn what_has_ended_or_was_let_go_of_by_its_source_is_removed() {
    let ended = follow(&holding(), Some(&source(Some(live()))), t(3600));
    assert!(deletes(&ended));
    let gone = follow(&holding(), Some(&source(None)), t(10));
    assert!(
        deletes(&gone)
            && gone.actions.contains(&Action::Release {
                reason: Reason::Expired
            })
    );
    // A journal that knows nothing of the source says nothing of its token.
    let unknown = Source {
        known: false,
        ..source(None)
    };
    let kept = follow(&holding(), Some(&unknown), t(10));
    assert!(kept.actions.is_empty());
    assert_eq!(ready(&kept), (true, Reason::Issued));
    // Nor does the end of what was followed before end what is followed now.
    let before = Source {
        name: ObjectName::new("team-b", "deploy"),
        ..source(None)
    };
    assert!(follow(&holding(), Some(&before), t(10)).actions.is_empty());
}

#[test]
fn what_is_issued_on_demand_and_let_go_leaves_an_idle_follower() {
    let idle = Source {
        on_demand: true,
        ..source(None)
    };
    let plan = follow(&holding(), Some(&idle), t(10));
    assert!(deletes(&plan) && plan.actions.contains(&Action::Release { reason: Reason::Idle }));
    let plan = follow(&fresh(), Some(&idle), t(10));
    assert_eq!((ready(&plan), plan.demand), ((true, Reason::Idle), None));
    assert!(!plan.verdict.unwrap().issued);
}

#[test]
fn of_a_journal_that_was_lost_the_secrets_stay_and_are_written_anew() {
    let o = Observed {
        record: None,
        ..holding()
    };
    let plan = follow(&o, Some(&source(Some(live()))), t(10));
    assert_eq!((plan.actions.len(), plan.demand), (0, Some(MintReason::First)));
    let waits = Source {
        known: false,
        ..source(None)
    };
    assert!(follow(&o, Some(&waits), t(10)).actions.is_empty());
    assert!(deletes(&follow(&o, Some(&waits), t(3600))), "past its end");
    assert!(deletes(&follow(&o, Some(&source(None)), t(10))), "it was let go of");
}

#[test]
fn what_stands_in_the_way_leaves_a_good_token_and_keeps_a_new_one_out() {
    let newer = source(Some(of("claim-2", 5)));
    let suspended = Observed {
        suspended: true,
        ..holding()
    };
    let foreign = Observed {
        secrets: [("a".to_owned(), SecretState::Foreign)].into(),
        ..fresh()
    };
    let refused = Observed {
        unprepared: Some((Problem::new(Reason::SecretRefused, "quota"), t(20))),
        ..holding()
    };
    let illegible = Source {
        legible: false,
        ..newer.clone()
    };
    for (o, source, expected) in [
        (&suspended, &newer, (true, Reason::Suspended)),
        (&foreign, &newer, (false, Reason::SecretConflict)),
        (&refused, &newer, (true, Reason::SecretRefused)),
        (&holding(), &illegible, (true, Reason::Issuing)),
    ] {
        let plan = follow(o, Some(source), t(10));
        assert_eq!((plan.demand, ready(&plan)), (None, expected));
        assert!(!deletes(&plan));
    }
    assert_eq!(follow(&refused, Some(&newer), t(20)).demand, Some(MintReason::Renewal));
}

#[test]
fn what_somebody_changed_and_cannot_be_written_anew_is_removed() {
    let mut o = holding();
    o.suspended = true;
    o.secrets.insert("a".into(), ours(Content::Altered));
    assert!(deletes(&follow(&o, Some(&source(Some(live()))), t(10))));
    // A copy that a crash kept from being recorded is no edit.
    let seal = Seal::new(UID, "runners-1", "a", &of("claim-2", 5));
    let later = SecretState::Ours {
        seal: Some(Box::new(seal)),
        content: Content::Altered,
        metadata_matches: true,
    };
    o.secrets.insert("a".into(), later);
    assert!(follow(&o, Some(&source(Some(live()))), t(10)).actions.is_empty());
}

/// Invariant 13.
#[test]
fn a_followers_seal_makes_nobody_a_holder_of_the_token() {
    let seal = Seal::new(UID, "runners-1", "a", &followed());
    let sealed = SecretState::Ours {
        seal: Some(Box::new(seal)),
        content: Content::Altered,
        metadata_matches: true,
    };
    let o = Observed {
        secrets: [("a".to_owned(), sealed)].into(),
        ..fresh()
    };
    assert!(!plan(&o, t(10)).actions.contains(&Action::Rebuild));
}
