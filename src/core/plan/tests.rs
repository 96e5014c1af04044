//! Tests of the plan: what each observation leads to, and a world that does its worst.

use chrono::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::core::Problem;
use crate::core::budget::{self, Demand, Limit, Waiting};
use crate::core::journal::tests_support::{claim as claim_at, endpoint, live as live_at, request, scope};
use crate::core::journal::{Ending, Failure, Journal, Record, Written};
use crate::core::schedule::{Bounds, CLAIM_FRESH, Try, retry_at};
use crate::core::seal::Seal;
use crate::core::spec::Wanted;
use crate::core::spec::{self, tests_support::credential};

const UID: &str = "uid-a";

fn t(seconds: i64) -> Time {
    chrono::Utc.timestamp_opt(1_700_000_000 + seconds, 0).unwrap()
}
fn s(seconds: i64) -> TimeDelta {
    TimeDelta::seconds(seconds)
}
fn wanted() -> Wanted {
    spec::wanted(&credential("a", "svc"), None).unwrap()
}

fn live() -> Live {
    let wanted = wanted();
    let mut live = live_at("claim-1", t(0), t(3600));
    live.request_hash = wanted.request_hash;
    live.layout_hash = wanted.layout_hash;
    let written = Written {
        keys: vec!["k".into()],
        fingerprint: "f".into(),
    };
    live.secrets.insert("a".into(), written);
    live
}

fn ours(content: Content) -> SecretState {
    SecretState::Ours {
        seal: Some(Box::new(Seal::new(UID, "runners-1", "a", &live()))),
        content,
        dressed: true,
    }
}

/// Nothing was ever minted, and everything may be.
fn fresh() -> Observed {
    Observed {
        uid: UID.into(),
        terminating: false,
        suspended: false,
        wanted: Ok(wanted()),
        permitted: Ok(()),
        connection: Connection::Ready { window: s(3600) },
        secrets: [("a".to_owned(), SecretState::Absent)].into(),
        record: None,
        claim: None,
        working: false,
        held_up: None,
        blind: false,
        holder: "me".into(),
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
    let w = wanted();
    Failure {
        reason,
        message: "it failed".into(),
        at: t(0),
        count: 1,
        retry_at,
        request_hash: w.request_hash,
        layout_hash: w.layout_hash,
        rotate: w.rotate,
    }
}

fn ready(plan: &Plan) -> (bool, Reason) {
    let v = plan.verdict.as_ref().expect("a verdict");
    (v.ready, v.reason)
}

#[test]
fn a_new_credential_asks_for_its_first_token_and_tells_nothing_yet() {
    let plan = plan(&fresh(), t(0));
    assert_eq!(plan.demand, Some(Kind::First));
    assert_eq!(plan.verdict, None);
    assert!(plan.actions.is_empty());
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
    assert_eq!(plan(&o, t(2400)).demand, Some(Kind::Renewal));
    let mut other = credential("a", "svc");
    other.spec.purpose = "other".into();
    o.wanted = Ok(spec::wanted(&other, None).unwrap());
    assert_eq!(plan(&o, t(10)).demand, Some(Kind::Change));
    assert_eq!(plan(&o, t(2400)).demand, Some(Kind::Renewal));
}

#[test]
fn a_changed_spec_is_not_ready_though_issued() {
    let mut o = issued();
    let mut other = credential("a", "svc");
    other.spec.purpose = "other".into();
    o.wanted = Ok(spec::wanted(&other, None).unwrap());
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
    assert_eq!(plan.demand, Some(Kind::Change), "who waits stays in line");
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
    o.claim = Some(claim_at(UID, "runners-1", Kind::Renewal, t(3599), 2));
    o.working = true;
    let actions = plan(&o, t(3600)).actions;
    assert_eq!(actions[0], Action::Delete { secret: "a".into() });
}

#[test]
fn lost_permission_takes_everything_and_stalls() {
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
    assert!(plan.verdict.unwrap().stalled);
    assert_eq!(plan.demand, None);
}

#[test]
fn a_changed_value_is_removed_and_healed_once_a_window() {
    let mut o = issued();
    o.secrets = [("a".to_owned(), ours(Content::Altered))].into();
    let first = plan(&o, t(10));
    assert_eq!(first.actions, [Action::DeleteTampered { secret: "a".into() }]);
    o.secrets = [("a".to_owned(), SecretState::Absent)].into();
    assert_eq!(plan(&o, t(10)).demand, Some(Kind::Heal));
    o.record.as_mut().unwrap().heals = vec![t(5)];
    let again = plan(&o, t(10));
    assert_eq!(again.demand, None);
    assert_eq!(ready(&again), (false, Reason::Tampered));
    assert_eq!(
        plan(&o, t(2400)).demand,
        Some(Kind::Renewal),
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
            dressed: false,
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
fn a_stray_secret_of_ours_is_removed_once_the_new_layout_is_live() {
    let mut o = issued();
    o.secrets.insert("old".into(), ours(Content::Altered));
    assert_eq!(plan(&o, t(10)).actions, [Action::Delete { secret: "old".into() }]);
}

#[test]
fn a_denial_stands_until_spec_or_annotation_change() {
    let mut o = fresh();
    o.record = Some(Record {
        failure: Some(failed_with(Reason::Denied, None)),
        ..Record::default()
    });
    let denied = plan(&o, t(1_000_000));
    assert_eq!((denied.demand, ready(&denied)), (None, (false, Reason::Denied)));
    let mut asked_again = credential("a", "svc");
    asked_again.metadata.annotations = Some([("connect.chitty.cc/rotate".into(), "1".into())].into());
    o.wanted = Ok(spec::wanted(&asked_again, None).unwrap());
    assert_eq!(plan(&o, t(0)).demand, Some(Kind::First));
}

#[test]
fn a_failure_waits_for_its_time_and_a_ready_token_stays_ready_meanwhile() {
    let mut o = issued();
    o.record.as_mut().unwrap().failure = Some(failed_with(Reason::BrokerUnavailable, Some(t(2500))));
    let waiting = plan(&o, t(2400));
    assert_eq!(
        (waiting.demand, ready(&waiting)),
        (None, (true, Reason::BrokerUnavailable))
    );
    assert_eq!(plan(&o, t(2500)).demand, Some(Kind::Renewal));
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
        (Some(Kind::First), (false, Reason::Unauthorized))
    );
}

#[test]
fn a_claim_of_another_process_is_judged_only_once_nobody_can_work_on_it() {
    let mut o = fresh();
    let mut claim = claim_at(UID, "runners-1", Kind::First, t(0), 1);
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
            dressed: true,
        },
    )]
    .into();
    assert_eq!(plan(&o, t(10)).actions, [Action::Delete { secret: "a".into() }]);
}

#[test]
fn blind_it_does_nothing_at_all() {
    let problem = Problem::new(Reason::ConnectionNotReady, "the journal is broken");
    let o = Observed {
        blind: true,
        connection: Connection::Unusable(problem),
        ..issued()
    };
    let plan = plan(&o, t(9999));
    assert_eq!((plan.actions.len(), plan.demand), (0, None));
}

/// What the world may do to the controllers, and the controllers to each other.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// One of two controllers looks, perhaps with a journal as it was some commits ago.
    Look {
        who: usize,
        behind: usize,
    },
    /// One of the budget tasks admits.
    Admit {
        who: usize,
    },
    /// A request leaves, if its claim is fresh.
    Post,
    /// The answer comes.
    Answer(How),
    /// A process dies and comes back.
    Crash {
        who: usize,
    },
    Wait(i64),
    Tamper,
    DeleteSecret,
    Edit,
    Rotate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Issued,
    Denied,
    Broken,
    /// Minted, written, and the process dies before that is recorded.
    WrittenThenCrash,
    /// Minted, and the process dies before it is written.
    LostWithCrash,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..2, 0_usize..3).prop_map(|(who, behind)| Step::Look { who, behind }),
        4 => (0_usize..2).prop_map(|who| Step::Admit { who }),
        4 => Just(Step::Post),
        3 => Just(Step::Answer(How::Issued)),
        1 => prop_oneof![Just(How::Denied), Just(How::Broken), Just(How::WrittenThenCrash), Just(How::LostWithCrash)]
            .prop_map(Step::Answer),
        1 => (0_usize..2).prop_map(|who| Step::Crash { who }),
        4 => prop_oneof![Just(1_i64), Just(3), Just(12), Just(45), Just(300), Just(1300)].prop_map(Step::Wait),
        1 => Just(Step::Tamper),
        1 => Just(Step::DeleteSecret),
        1 => Just(Step::Edit),
        1 => Just(Step::Rotate),
    ]
}

/// A Secret in the world.
#[derive(Clone, Debug)]
struct Stored {
    live: Live,
    altered: bool,
}

#[derive(Clone, Debug)]
struct Flight {
    who: usize,
    claim: Claim,
    posted: bool,
}

/// One credential, two controllers that both think they lead, one journal.
struct World {
    now: Time,
    journal: Journal,
    history: Vec<Journal>,
    secret: Option<Stored>,
    wanted: Wanted,
    edits: u32,
    demands: [Option<Kind>; 2],
    flights: Vec<Flight>,
    posts: Vec<(Time, String)>,
    causes: usize,
    heals: usize,
}

const LIMIT: Limit = Limit {
    limit: 5,
    window: TimeDelta::seconds(3600),
};
const NAMES: [&str; 2] = ["one", "two"];

impl World {
    fn new() -> Self {
        Self {
            now: t(0),
            journal: Journal::new(scope()),
            history: Vec::new(),
            secret: None,
            wanted: wanted(),
            edits: 0,
            demands: [None, None],
            flights: Vec::new(),
            posts: Vec::new(),
            causes: 1,
            heals: 0,
        }
    }

    fn commit(&mut self, change: impl FnOnce(&mut Journal, Time)) {
        self.history.push(self.journal.clone());
        self.journal.compact(self.now);
        change(&mut self.journal, self.now);
    }

    fn observe(&self, who: usize, journal: &Journal) -> Observed {
        let record = journal.credentials.get(UID).cloned();
        let live = record.as_ref().and_then(|r| r.live.as_ref());
        let state = self.secret.as_ref().map_or(SecretState::Absent, |stored| {
            let known = live.is_some_and(|l| l.claim == stored.live.claim);
            SecretState::Ours {
                seal: (!stored.altered).then(|| Box::new(Seal::new(UID, "runners-1", "a", &stored.live))),
                content: if known && !stored.altered {
                    Content::Intact
                } else {
                    Content::Altered
                },
                dressed: true,
            }
        });
        Observed {
            wanted: Ok(self.wanted.clone()),
            secrets: [("a".to_owned(), state)].into(),
            claim: journal.claims.get(UID).cloned(),
            working: self.flights.iter().any(|f| f.who == who),
            holder: NAMES[who].into(),
            record,
            ..fresh()
        }
    }

    fn look(&mut self, who: usize, behind: usize) -> Plan {
        let journal = match behind {
            0 => self.journal.clone(),
            n => self.history.iter().rev().nth(n - 1).unwrap_or(&self.journal).clone(),
        };
        let observed = self.observe(who, &journal);
        let plan = plan(&observed, self.now);
        for action in &plan.actions {
            match action {
                // Deletes carry the version that was looked at: it is the current one here.
                Action::Delete { .. } | Action::DeleteTampered { .. } => self.secret = None,
                Action::Restore { .. } => {}
                // Commits are decided on the state they are committed to.
                Action::Release { reason } => {
                    let reason = *reason;
                    self.commit(|j, now| {
                        let due = j.credentials.get(UID).and_then(|r| r.live.as_ref()).map(|l| l.ends_at);
                        if reason != Reason::Expired || due.is_some_and(|at| at <= now) {
                            j.release(UID, now);
                        }
                    });
                }
                Action::Adopt => {
                    let (Some(claim), Some(stored)) = (observed.claim.clone(), self.secret.clone()) else {
                        continue;
                    };
                    self.commit(|j, now| {
                        j.end(UID, &claim.id, Ending::Published(Box::new(stored.live)), now);
                    });
                }
                Action::GiveUp => {
                    let Some(claim) = observed.claim.clone() else { continue };
                    self.commit(|j, now| {
                        let failure = failure_of(j, &claim, Reason::OutcomeUnknown, now);
                        j.end(UID, &claim.id, Ending::Failed { failure, counted: true }, now);
                    });
                }
                Action::Rebuild => {
                    let Some(stored) = self.secret.clone() else { continue };
                    self.commit(|j, now| j.adopt_lost(UID, ("runners-1", "a"), stored.live, now + LIMIT.window));
                }
            }
        }
        self.demands[who] = plan.demand;
        plan
    }

    fn admit(&mut self, who: usize) {
        let Some(kind) = self.demands[who] else { return };
        if self.flights.iter().any(|f| f.who == who) {
            return;
        }
        // Prepared on fresh reads: the demand is decided anew.
        let plan = plan(&self.observe(who, &self.journal), self.now);
        if plan.demand != Some(kind) || !plan.actions.is_empty() {
            self.demands[who] = None;
            return;
        }
        let demand = Demand {
            uid: UID.into(),
            namespace: "runners-1".into(),
            name: "a".into(),
            kind,
            since: self.now,
            renew_before: None,
            max_lifetime: None,
            pod_waits: false,
        };
        let now = self.now;
        if self.journal.claims.contains_key(UID)
            || budget::select(&self.journal, &[demand], &[LIMIT], now)
                .admitted
                .is_empty()
        {
            return;
        }
        let mut claim = claim_at(UID, "runners-1", kind, now, self.posts.len() + self.history.len());
        claim.holder = NAMES[who].into();
        claim.request_hash = self.wanted.request_hash.clone();
        claim.layout_hash = self.wanted.layout_hash.clone();
        claim.rotate = self.wanted.rotate.clone();
        claim.secrets = vec!["a".into()];
        if kind == Kind::Heal {
            self.heals += 1;
        }
        let committed = claim.clone();
        self.commit(|j, _| j.claim(UID, committed, LIMIT.window));
        self.flights.push(Flight {
            who,
            claim,
            posted: false,
        });
        self.demands[who] = None;
    }

    fn post(&mut self) {
        let now = self.now;
        let Some(index) = self.flights.iter().position(|f| !f.posted) else {
            return;
        };
        if now - self.flights[index].claim.at >= CLAIM_FRESH {
            let flight = self.flights.remove(index);
            self.commit(|j, _| j.withdraw(UID, &flight.claim.id));
            return;
        }
        self.flights[index].posted = true;
        self.posts.push((now, self.flights[index].claim.id.clone()));
    }

    fn answer(&mut self, how: How) {
        let Some(index) = self.flights.iter().position(|f| f.posted) else {
            return;
        };
        let flight = self.flights.remove(index);
        let id = flight.claim.id.clone();
        // A client gives up on its timeout; what comes later is not taken.
        if self.now > flight.claim.answered_by() {
            self.commit(|j, now| {
                let failure = failure_of(j, &flight.claim, Reason::OutcomeUnknown, now);
                j.end(UID, &id, Ending::Failed { failure, counted: true }, now);
            });
            return;
        }
        let mut live = live_at(&id, self.now, self.now + s(1800));
        live.request_hash = flight.claim.request_hash.clone();
        live.layout_hash = flight.claim.layout_hash.clone();
        live.rotate = flight.claim.rotate.clone();
        live.revision = flight.claim.revision;
        live.request = request();
        live.endpoint = endpoint();
        let written = Written {
            keys: vec!["k".into()],
            fingerprint: id.clone(),
        };
        live.secrets.insert("a".into(), written);
        match how {
            How::Issued => {
                self.secret = Some(Stored {
                    live: live.clone(),
                    altered: false,
                });
                self.commit(|j, now| {
                    j.end(UID, &id, Ending::Published(Box::new(live)), now);
                });
            }
            How::WrittenThenCrash => self.secret = Some(Stored { live, altered: false }),
            How::LostWithCrash => {}
            How::Denied | How::Broken => {
                let reason = if how == How::Denied {
                    Reason::Denied
                } else {
                    Reason::BrokerUnavailable
                };
                self.causes += 1;
                self.commit(|j, now| {
                    let failure = failure_of(j, &flight.claim, reason, now);
                    j.end(UID, &id, Ending::Failed { failure, counted: true }, now);
                });
            }
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Look { who, behind } => {
                self.look(who, behind);
            }
            Step::Admit { who } => self.admit(who),
            Step::Post => self.post(),
            Step::Answer(how) => self.answer(how),
            Step::Crash { who } => {
                self.flights.retain(|f| f.who != who);
                self.demands[who] = None;
            }
            Step::Wait(seconds) => self.now += s(seconds),
            Step::Tamper => {
                if let Some(stored) = &mut self.secret {
                    stored.altered = true;
                }
            }
            Step::DeleteSecret => self.secret = None,
            Step::Edit => {
                self.edits += 1;
                self.causes += 1;
                let mut edited = credential("a", "svc");
                edited.spec.purpose = format!("purpose-{}", self.edits);
                self.wanted = spec::wanted(&edited, None).unwrap();
            }
            Step::Rotate => {
                self.edits += 1;
                self.causes += 1;
                self.wanted.rotate = format!("rotate-{}", self.edits);
            }
        }
        self.check();
    }

    fn check(&self) {
        let most = self
            .posts
            .iter()
            .map(|(from, _)| {
                self.posts
                    .iter()
                    .filter(|(p, _)| p >= from && *p < *from + LIMIT.window)
                    .count()
            })
            .max()
            .unwrap_or(0);
        assert!(most <= LIMIT.limit as usize, "{most} requests in a window");
        let mut ids: Vec<&String> = self.posts.iter().map(|(_, id)| id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), self.posts.len(), "a claim was posted twice");
        for (at, id) in &self.posts {
            let counted = self.journal.attempts.iter().any(|a| a.claim == *id);
            assert!(
                counted || *at + LIMIT.window <= self.now,
                "a request that left is not counted"
            );
        }
        let record = self.journal.credentials.get(UID);
        let heals = record.map_or(0, |r| {
            r.heals.iter().filter(|at| **at + LIMIT.window > self.now).count()
        });
        assert!(heals <= 1, "{heals} heals in a window");
    }

    /// No more faults: the first controller alone, until nothing changes.
    fn settle(&mut self) {
        self.flights.clear();
        for _ in 0..400 {
            let before = (self.journal.clone(), self.posts.len());
            let plan = self.look(0, 0);
            self.admit(0);
            self.post();
            self.answer(How::Issued);
            self.check();
            let quiet = plan.actions.is_empty() && plan.demand.is_none() && before.0 == self.journal;
            if quiet
                && plan
                    .verdict
                    .as_ref()
                    .is_some_and(|v| v.ready || v.reason == Reason::Denied)
            {
                return;
            }
            self.now += s(30);
        }
        panic!("it does not come to rest: {:#?}", self.look(0, 0));
    }
}

fn failure_of(journal: &Journal, claim: &Claim, reason: Reason, now: Time) -> Failure {
    let count = journal.failures_in_a_row(UID, &claim.request_hash, &claim.rotate);
    let live = journal.credentials.get(UID).and_then(|r| r.live.as_ref());
    let bounds = Bounds {
        window: LIMIT.window,
        timeout: s(10),
        live: live
            .filter(|l| l.ends_at > now)
            .map(|l| (l.ends_at, (l.ends_at - l.issued_at) / 3)),
    };
    Failure {
        reason,
        message: "it failed".into(),
        at: now,
        count,
        retry_at: retry_at(
            Try {
                reason,
                count,
                counted: true,
            },
            bounds,
            UID,
            now,
        ),
        request_hash: claim.request_hash.clone(),
        layout_hash: claim.layout_hash.clone(),
        rotate: claim.rotate.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn whatever_happens_no_rule_is_broken_and_afterwards_it_comes_to_rest(
        script in prop::collection::vec(steps(), 0..60),
    ) {
        let mut world = World::new();
        for step in script {
            world.take(step);
        }
        world.settle();
        // At rest nothing is written and nothing minted, however often it is looked at.
        let (posts, journal) = (world.posts.len(), world.journal.clone());
        for who in [0, 1, 0] {
            let plan = world.look(who, 0);
            world.admit(who);
            prop_assert!(plan.actions.is_empty() && plan.demand.is_none(), "{:?}", plan);
        }
        prop_assert_eq!(world.posts.len(), posts);
        prop_assert_eq!(&world.journal, &journal);
    }

    #[test]
    fn without_a_cause_nothing_is_minted_however_often_processes_die(
        crashes in prop::collection::vec((0_usize..2, 0_usize..3, 0_i64..20), 1..40),
    ) {
        let mut world = World::new();
        world.settle();
        prop_assert_eq!(world.posts.len(), 1);
        let end = world.journal.credentials[UID].live.as_ref().unwrap().ends_at;
        for (who, behind, wait) in crashes {
            if world.now + s(wait) >= end - s(720) {
                break;
            }
            world.take(Step::Wait(wait));
            world.take(Step::Crash { who });
            world.take(Step::Look { who, behind });
            world.take(Step::Admit { who });
            world.take(Step::Post);
        }
        prop_assert_eq!(world.posts.len(), 1);
    }
}
