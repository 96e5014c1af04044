//! On demand: what the Pods that use a credential's Secrets ask for.

use super::*;
use crate::core::consumers::{About, Pod, Uses, Ways};
use crate::core::ids::ObjectName;
use crate::core::journal::LetGo;

fn pod(starting: bool) -> Pod {
    let about = About {
        name: ObjectName::new("runners-1", "p"),
        uid: "p",
        created: Some(t(5)),
        leaving: false,
        owner: None,
    };
    let env = serde_json::json!({
        "nodeName": "node",
        "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "a"}}]}],
    });
    let spec = serde_json::from_value(env).unwrap();
    let mut pod = Pod::of(about, &spec, &crate::core::consumers::PodStatus::default()).unwrap();
    pod.starting = starting;
    pod
}

fn used(pods: &[(bool, Ways)]) -> Users {
    let mut uses = Uses::default();
    for (starting, ways) in pods {
        uses.add(&pod(*starting), *ways);
    }
    Users::Pods(uses)
}

fn with(users: Users, o: Observed) -> Observed {
    Observed { users, ..o }
}

fn told(plan: &Plan) -> (bool, bool, Reason) {
    let verdict = plan.verdict.as_ref().expect("a verdict");
    (verdict.ready, verdict.issued, verdict.reason)
}

fn let_go() -> Vec<Action> {
    vec![
        Action::Delete { secret: "a".into() },
        Action::Release { reason: Reason::Idle },
    ]
}

#[test]
fn where_nobody_uses_it_there_is_no_token_and_all_is_well() {
    let idle = plan(&with(used(&[]), fresh()), t(0));
    assert_eq!((idle.demand, told(&idle)), (None, (true, false, Reason::Idle)));
    // Once a Pod does, there is, and once there was, who goes on with what it read asks for no other.
    for ways in [Ways::VOLUME, Ways::ENV, Ways::SUB_PATH, Ways::IMAGE_PULL] {
        let wanted = plan(&with(used(&[(true, ways)]), fresh()), t(10));
        assert_eq!(
            (wanted.demand, wanted.verdict),
            (Some(MintReason::First), None),
            "{ways:?}"
        );
        let runs = plan(&with(used(&[(false, ways)]), fresh()), t(10));
        let first = (ways == Ways::VOLUME).then_some(MintReason::First);
        assert_eq!(runs.demand, first, "{ways:?}");
    }
}

#[test]
fn what_keeps_an_unused_credential_from_being_issued_is_told_before_it_is_needed() {
    let refused = Observed {
        permitted: Err(Problem::new(Reason::NotPermitted, "no")),
        ..with(used(&[]), fresh())
    };
    assert_eq!(told(&plan(&refused, t(0))), (false, false, Reason::NotPermitted));
    let conflict = Observed {
        secrets: [("a".to_owned(), SecretState::Foreign)].into(),
        ..with(used(&[]), fresh())
    };
    assert_eq!(told(&plan(&conflict, t(0))), (false, false, Reason::SecretConflict));
}

#[test]
fn a_token_that_nobody_uses_stays_for_the_next_while_it_has_its_runway_and_is_then_let_go() {
    let o = with(used(&[]), issued());
    let before = plan(&o, t(2399));
    assert_eq!((before.demand, told(&before)), (None, (true, true, Reason::Idle)));
    assert!(before.actions.is_empty());
    assert_eq!(before.wake, Some(t(2400)));
    let after = plan(&o, t(2400));
    assert_eq!((after.actions.clone(), after.demand), (let_go(), None));
    assert_eq!(told(&after), (true, false, Reason::Idle));
}

#[test]
fn it_is_renewed_while_a_pod_reads_it_by_a_volume_and_for_no_other() {
    let renewed = plan(
        &with(used(&[(false, Ways::VOLUME), (true, Ways::ENV)]), issued()),
        t(2400),
    );
    assert_eq!((renewed.demand, renewed.actions.len()), (Some(MintReason::Renewal), 0));
    for once in [Ways::ENV, Ways::SUB_PATH, Ways::IMAGE_PULL] {
        let o = with(used(&[(false, once)]), issued());
        let before = plan(&o, t(2399));
        assert_eq!((before.demand, told(&before)), (None, (true, true, Reason::Issued)));
        let after = plan(&o, t(2400));
        assert_eq!((after.actions, after.demand), (let_go(), None), "{once:?}");
    }
}

#[test]
fn who_comes_when_less_than_the_runway_is_left_waits_for_a_new_one() {
    let late = plan(&with(used(&[(true, Ways::ENV)]), issued()), t(2400));
    assert_eq!((late.actions, late.demand), (let_go(), Some(MintReason::First)));
}

#[test]
fn who_had_its_chance_and_reads_once_is_not_waited_for_again() {
    let mut o = with(used(&[(true, Ways::ENV)]), fresh());
    let gone = LetGo {
        at: t(2400),
        issued_at: t(0),
        ends_at: t(3600),
    };
    o.record = Some(Record {
        revision: 1,
        let_go: Some(Box::new(gone)),
        ..Record::default()
    });
    let rests = plan(&o, t(2500));
    assert_eq!((rests.demand, told(&rests)), (None, (true, false, Reason::Idle)));
    o.users = used(&[(true, Ways::ENV), (true, Ways::VOLUME)]);
    assert_eq!(plan(&o, t(2500)).demand, Some(MintReason::First));
}

#[test]
fn a_changed_spec_a_rotate_annotation_and_a_missing_secret_cost_nothing_until_somebody_comes() {
    let changed = |users| {
        let mut o = with(users, issued());
        if let Ok(desired) = &mut o.desired {
            desired.digest.request = crate::core::ids::Digest::of(["other"]);
        }
        o
    };
    let rotated = |users| {
        let mut o = with(users, issued());
        if let Ok(desired) = &mut o.desired {
            desired.digest.rotate = crate::core::ids::Digest::of(["now"]);
        }
        o
    };
    let removed = |users| Observed {
        secrets: [("a".to_owned(), SecretState::Absent)].into(),
        ..with(users, issued())
    };
    let cases: [(&dyn Fn(Users) -> Observed, MintReason); 3] = [
        (&changed, MintReason::Change),
        (&rotated, MintReason::Rotate),
        (&removed, MintReason::Heal),
    ];
    for (edit, reason) in cases {
        let idle = plan(&edit(used(&[])), t(10));
        assert!(
            idle.actions.contains(&Action::Release { reason: Reason::Idle }),
            "{reason:?}"
        );
        assert_eq!(idle.demand, None, "{reason:?}");
        let needed = plan(&edit(used(&[(false, Ways::VOLUME)])), t(10));
        assert_eq!((needed.demand, needed.actions.len()), (Some(reason), 0));
    }
}

#[test]
fn as_long_as_it_is_not_known_who_uses_it_nothing_is_minted_and_nothing_let_go() {
    for at in [10, 2400, 3000] {
        let unknown = plan(&with(Users::Unknown(None), issued()), t(at));
        assert_eq!(
            (unknown.actions.len(), unknown.demand, unknown.verdict),
            (0, None, None)
        );
    }
    let problem = Problem::new(Reason::NotPermitted, "the controller may not watch Pods");
    let refused = Users::Unknown(Some(problem));
    let live = plan(&with(refused.clone(), issued()), t(2400));
    assert_eq!((live.actions.len(), live.demand), (0, None));
    assert_eq!(told(&live), (true, true, Reason::NotPermitted));
    assert_eq!(
        told(&plan(&with(refused.clone(), fresh()), t(0))),
        (false, false, Reason::NotPermitted)
    );
    // Its end is its end, all the same.
    let ended = plan(&with(refused, issued()), t(3600));
    assert!(ended.actions.contains(&Action::Release {
        reason: Reason::Expired
    }));
}

#[test]
fn a_renewal_that_no_budget_keeps_is_asked_for_like_a_first_token() {
    let mut o = with(used(&[(false, Ways::VOLUME)]), issued());
    assert_eq!(plan(&o, t(2400)).demand, Some(MintReason::Renewal));
    o.kept = false;
    let resumed = plan(&o, t(2400)).demand.unwrap();
    assert_eq!(resumed, MintReason::Resume);
    assert!(resumed.is_newcomer());
}

#[test]
fn suspended_an_unused_token_is_let_go_all_the_same() {
    let o = Observed {
        suspended: true,
        ..with(used(&[]), issued())
    };
    assert_eq!(plan(&o, t(2400)).actions, let_go());
}

/// The mints of a credential whose Pods each begin at one of `starts` and last so long, over a day; in seconds.
fn mints_of_a_day(starts: &[i64], lasts: i64, ways: Ways) -> Vec<i64> {
    const LIFE: i64 = 3600;
    let (mut o, mut mints) = (with(used(&[]), fresh()), Vec::new());
    for now in (0..86_400).step_by(5) {
        // For the first seconds a Pod has yet to start.
        let running = starts.iter().filter(|from| (**from..**from + lasts).contains(&now));
        let pods: Vec<Pod> = running
            .map(|from| Pod {
                bound: t(*from),
                ..pod(now < from + 5)
            })
            .collect();
        let mut uses = Uses::default();
        for pod in &pods {
            uses.add(pod, ways);
        }
        o.users = Users::Pods(uses);
        // What a plan asks for is done until it asks for nothing.
        loop {
            let plan = plan(&o, t(now));
            if plan.actions.contains(&Action::Release { reason: Reason::Idle }) {
                let record = o.record.as_mut().unwrap();
                let gone = record.live.take().unwrap();
                record.let_go = Some(Box::new(LetGo {
                    at: t(now),
                    issued_at: gone.issued_at,
                    ends_at: gone.ends_at,
                }));
                o.secrets.insert("a".to_owned(), SecretState::Absent);
                continue;
            }
            assert!(plan.actions.is_empty(), "{:?}", plan.actions);
            if plan.demand.is_none() {
                break;
            }
            mints.push(now);
            let mut token = live();
            (token.issued_at, token.ends_at) = (t(now), t(now + LIFE));
            let let_go = o.record.and_then(|record| record.let_go);
            o.record = Some(Record {
                live: Some(token),
                let_go,
                ..Record::default()
            });
            o.secrets.insert("a".to_owned(), ours(Content::Intact));
        }
        // Whoever runs has a token, and whoever begins has one with its runway.
        let left = o
            .record
            .as_ref()
            .and_then(|r| r.live.as_ref())
            .map_or(0, |l| (l.ends_at - t(now)).num_seconds());
        assert!(
            !pods.iter().any(|pod| pod.starting) || left > LIFE / 3 - 5,
            "{left} s at {now}"
        );
    }
    mints
}

#[test]
fn a_cron_job_every_ten_minutes_takes_two_mints_an_hour_at_most_and_a_nightly_one_takes_one_a_day() {
    for ways in [Ways::VOLUME, Ways::ENV] {
        for (phase, lasts) in [(0, 60), (35, 180), (295, 540), (400, 20)] {
            let starts: Vec<i64> = (0..144).map(|i| i * 600 + phase).collect();
            let mints = mints_of_a_day(&starts, lasts, ways);
            let in_an_hour = |from: &i64| mints.iter().filter(|at| (*from..from + 3600).contains(at)).count();
            let most = mints.iter().map(in_an_hour).max();
            assert_eq!(most, Some(2), "{ways:?} {phase} {lasts}: {mints:?}");
            assert!(mints.len() <= 38, "{}", mints.len());
        }
        assert_eq!(mints_of_a_day(&[11_820], 900, ways).len(), 1);
    }
    assert!(mints_of_a_day(&[], 0, Ways::VOLUME).is_empty());
    // One that runs all day by a volume takes what a service does.
    let service = mints_of_a_day(&[0], 86_400, Ways::VOLUME).len();
    assert!((36..=38).contains(&service), "{service}");
    assert_eq!(mints_of_a_day(&[0], 86_400, Ways::ENV).len(), 1);
}
