//! A world that does its worst: two controllers that both think they lead, one journal, and whatever may
//! happen to them. The oracle is the list of requests that left.

use proptest::prelude::*;

use super::*;
use crate::core::audit::{AuditEvent, EventType, Subject};
use crate::core::ids::{Digest, SpecDigest};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use crate::core::budget::{Demand, Follower, Limit, Terms, is_untouched};
use crate::core::ids::ObjectName;
use crate::core::journal::{Journal, Outcome};
use crate::core::schedule::{Bounds, CLAIM_FRESH, Try, retry_at};
use crate::core::testing::cases;

/// What the world may do to the controllers, and the controllers to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    Relabel,
    DeleteSecret,
    /// The journal is deleted; its loss is noticed.
    Lose,
    Edit,
    Rotate,
    Revoke,
    /// The connection's rules change: they allow it no more, or again.
    Permit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
        1 => Just(Step::Revoke),
        1 => Just(Step::Permit),
    ]
}

/// A journal as it was committed.
#[derive(Clone)]
struct View {
    journal: Arc<Journal>,
    /// It stands for the journal: states are told apart by it.
    digest: u64,
}

impl View {
    fn new(journal: Journal) -> Self {
        let mut hasher = DefaultHasher::new();
        format!("{journal:?}").hash(&mut hasher);
        Self {
            journal: Arc::new(journal),
            digest: hasher.finish(),
        }
    }
}

impl Deref for View {
    type Target = Journal;

    fn deref(&self) -> &Journal {
        &self.journal
    }
}

impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.digest.fmt(f)
    }
}

/// A Secret in the world.
#[derive(Clone, Debug)]
struct Stored {
    live: ActiveToken,
    altered: bool,
    relabelled: bool,
}

impl Stored {
    const fn new(live: ActiveToken) -> Self {
        Self {
            live,
            altered: false,
            relabelled: false,
        }
    }
}

/// A demand, and what it was decided on.
#[derive(Clone, Debug)]
struct Wish {
    demand: Demand,
    asks: SpecDigest,
    permitted: bool,
    seq: u64,
    /// The view.
    journal: View,
}

#[derive(Clone, Debug)]
struct Flight {
    who: usize,
    claim: Claim,
    posted: bool,
}

/// One credential, two controllers that both think they lead, one journal.
#[derive(Debug)]
struct World {
    limit: Limit,
    now: Time,
    /// By how much the clock was put back: what left is held against the time that went by.
    back: TimeDelta,
    journal: View,
    history: Vec<View>,
    secret: Option<Stored>,
    desired: Desired,
    edits: u32,
    permitted: bool,
    demands: [Option<Wish>; 2],
    /// Of each controller: it follows the journal as that controller sees it.
    budgets: [Follower; 2],
    flights: Vec<Flight>,
    posts: Vec<(Time, String)>,
    /// Tokens that were recorded, and when they end.
    tokens: BTreeMap<String, Time>,
    /// Claims of healing, and when they were made.
    heals: Vec<(Time, String)>,
    damages: usize,
    /// How many commits there were.
    commits: usize,
    /// The journal was lost.
    lost: bool,
    /// What was done that must not be.
    wrong: Option<String>,
    /// Revoked, and nothing rotated since.
    barred: bool,
}

/// How far behind a view may be.
const OLDEST: usize = 2;

const LIMIT: Limit = Limit {
    limit: 5,
    window: TimeDelta::seconds(3600),
};
const NAMES: [&str; 2] = ["one", "two"];

impl World {
    fn new() -> Self {
        Self {
            limit: LIMIT,
            now: t(0),
            back: TimeDelta::zero(),
            journal: View::new(Journal::new(scope())),
            history: Vec::new(),
            secret: None,
            desired: desired(),
            edits: 0,
            permitted: true,
            demands: [None, None],
            budgets: [Follower::new("svc"), Follower::new("svc")],
            flights: Vec::new(),
            posts: Vec::new(),
            tokens: BTreeMap::new(),
            heals: Vec::new(),
            damages: 0,
            commits: 0,
            lost: false,
            wrong: None,
            barred: false,
        }
    }

    /// The time as it goes by.
    fn true_time(&self) -> Time {
        self.now + self.back
    }

    fn commit(&mut self, change: impl FnOnce(&mut Journal, Time)) {
        if self.history.len() == OLDEST {
            self.history.remove(0);
        }
        let mut journal = Journal::clone(&self.journal);
        journal.compact(self.now);
        change(&mut journal, self.now);
        if let Some(live) = journal.live_of(UID) {
            let ids = live.token_ids.iter();
            self.tokens.extend(ids.map(|id| (id.clone(), live.ends_at)));
        }
        self.history
            .push(std::mem::replace(&mut self.journal, View::new(journal)));
        self.commits += 1;
    }

    /// An outcome, with its audit event.
    fn tell(&mut self, change: impl FnOnce(&mut Journal, Time) -> bool) -> bool {
        let mut done = false;
        self.commit(|journal, now| {
            done = change(journal, now);
            if done {
                let request = request();
                let subject = Subject {
                    uid: UID,
                    namespace: "runners-1",
                    name: "a",
                    request: &request,
                    revision: 1,
                };
                let event = AuditEvent::new(EventType::Failed, Reason::Issued, &subject, now, false);
                journal.record_event(UID, event);
            }
        });
        done
    }

    fn observe(&self, who: usize, journal: &Journal) -> Observed {
        let claim = journal.claims.get(UID).map(|c| Claim::clone(c));
        let record = journal.credentials.get(UID).map(|r| Record::clone(r));
        let record = record.or_else(|| claim.as_ref().map(Claim::new_record));
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
                metadata_matches: !stored.relabelled,
            }
        });
        Observed {
            users: Users::Anybody,
            kept: true,
            desired: Ok(self.desired.clone()),
            asked: Asked {
                rotate: self.desired.digest.rotate,
                revoke: self.desired.digest.revoke,
            },
            secrets: [("a".to_owned(), state)].into(),
            claim,
            working: self.flights.iter().any(|f| f.who == who),
            connection: Connection::Ready {
                window: self.limit.window,
            },
            permitted: if self.permitted {
                Ok(())
            } else {
                Err(Problem::new(Reason::NotPermitted, "no rule allows it"))
            },
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
                Action::Delete { .. } => {
                    // What goes with its permission is made anew once that is back.
                    self.damages += usize::from(!self.permitted && self.secret.is_some());
                    self.secret = None;
                }
                Action::DeleteUnknown { claim, .. } => {
                    if !self.journal.knows(UID, claim) {
                        self.secret = None;
                    }
                }
                Action::DeleteTampered { .. } => {
                    let seen = observed
                        .record
                        .as_ref()
                        .and_then(|r| r.live.as_ref())
                        .map(|l| l.claim.clone());
                    // Recorded first: a view that is behind is found out by that, and deletes nothing.
                    if self.tell(|j, _| j.live_of(UID).map(|l| &l.claim) == seen.as_ref()) {
                        self.secret = None;
                    }
                }
                Action::Restore { .. } => {
                    if let Some(stored) = &mut self.secret {
                        stored.relabelled = false;
                    }
                }
                // Commits are decided on the state they are committed to.
                Action::Release { reason } => {
                    let reason = *reason;
                    let seen = observed.record.as_ref().and_then(|r| r.live.clone());
                    if reason == Reason::Expired && seen.as_ref().is_some_and(|l| l.ends_at > self.now) {
                        self.wrong = Some("let go before its end".to_owned());
                    }
                    let seen = seen.map(|l| l.claim);
                    self.tell(|j, now| {
                        let live = j.live_of(UID).map(|l| &l.claim);
                        let as_seen = live.is_some() && live == seen.as_ref();
                        match reason {
                            _ if !as_seen => {}
                            Reason::NotPermitted => j.revoke_all(UID, now, reason),
                            _ => drop(j.release(UID, now, reason)),
                        }
                        as_seen
                    });
                }
                Action::Revoke { asked } => {
                    let seen = observed.record.as_ref().and_then(|r| r.live.as_ref());
                    let seen = seen.map(|l| l.claim.clone());
                    self.tell(|j, now| {
                        let as_seen = seen.is_none() || j.live_of(UID).map(|l| &l.claim) == seen.as_ref();
                        as_seen && j.revoke_as_asked(UID, ("runners-1", "a"), *asked, now)
                    });
                }
                Action::Adopt => {
                    let (Some(claim), Some(stored)) = (observed.claim.clone(), self.secret.clone()) else {
                        continue;
                    };
                    self.tell(|j, now| j.end(UID, &claim.id, Outcome::Published(Box::new(stored.live)), now));
                }
                Action::GiveUp => {
                    let Some(claim) = observed.claim.clone() else { continue };
                    let window = self.limit.window;
                    self.tell(|j, now| {
                        let failure = failure_of(j, &claim, Reason::OutcomeUnknown, window, now);
                        j.end(UID, &claim.id, Outcome::Failed { failure, counted: true }, now)
                    });
                }
                Action::Rebuild => {
                    let Some(stored) = self.secret.clone() else { continue };
                    self.commit(|j, now| j.adopt_lost(UID, ("runners-1", "a"), stored.live, now));
                }
            }
        }
        if behind == 0 && plan.actions.is_empty() {
            self.check_end(&plan);
        }
        self.demands[who] = plan.demand.map(|reason| Wish {
            demand: Demand {
                uid: UID.into(),
                name: ObjectName::new("runners-1", "a"),
                reason,
                since: self.now,
                renew_before: None,
                max_lifetime: None,
                pod_waits: false,
                renews: true,
                most: None,
            },
            asks: self.desired.digest,
            permitted: self.permitted,
            seq: observed.record.as_ref().map_or(0, |r| r.seq),
            journal,
        });
        plan
    }

    /// Whoever sees all and has nothing to do leaves no Secret past the end of its token, and looks again at that time.
    fn check_end(&mut self, plan: &Plan) {
        let Some(end) = self.secret.as_ref().map(|stored| stored.live.ends_at) else {
            return;
        };
        if end <= self.now {
            self.wrong = Some("a Secret outlives its token".to_owned());
        } else if plan.wake.is_none_or(|at| at > end) {
            self.wrong = Some("nobody looks again when the token of a Secret ends".to_owned());
        }
    }

    /// Decides on the view, and once more where the journal is another when that is committed.
    fn decides(&mut self, who: usize, wish: Wish) -> bool {
        let (now, budget) = (self.now, &mut self.budgets[who]);
        let terms = Terms {
            limits: vec![self.limit],
            newcomers: true,
        };
        let uid = wish.demand.uid.clone();
        budget.budget.enqueue(wish.demand);
        let (mut decision, _) = budget.decide(&wish.journal.journal, &terms, now);
        if !budget.stands(&decision, &self.journal, now) {
            budget.decide_anew(&mut decision, &self.journal, now);
        }
        budget.budget.dequeue(&uid);
        decision.admitted == [uid] && is_untouched(&self.journal, UID, wish.seq)
    }

    fn admit(&mut self, who: usize) {
        if self.flights.iter().any(|f| f.who == who) {
            return;
        }
        // Decided whenever that was, perhaps on a view that was behind: it is prepared on a fresh read of the
        // spec and of the rules, and committed to the journal as it is.
        let (asks, permitted) = (self.desired.digest, self.permitted);
        let Some(wish) = self.demands[who].take_if(|w| w.asks == asks && w.permitted == permitted) else {
            return;
        };
        let (now, kind) = (self.now, wish.demand.reason);
        if !self.decides(who, wish) {
            return;
        }
        // By the time that went by: a clock that jumps back unsays no decision.
        let truth = plan(&self.observe(who, &self.journal), self.true_time());
        // A rotation that was asked for is one, though the plan would wait for the pace of healing by now.
        let live = self.journal.live_of(UID);
        let rotates = kind == MintReason::Rotate && live.is_some_and(|l| l.digest.rotate != asks.rotate);
        if truth.demand.is_none() && !rotates {
            self.wrong = Some(format!("minted without need as {kind:?}: {:?}", self.journal.journal));
        }
        if !self.permitted {
            self.wrong = Some("minted without permission".to_owned());
        }
        if self.barred {
            self.wrong = Some("minted between a revocation and the next rotation".to_owned());
        }
        let mut claim = claim_at(UID, "runners-1", kind, now, self.posts.len() + self.commits);
        claim.holder = NAMES[who].into();
        claim.revision = self.journal.credentials.get(UID).map_or(0, |r| r.revision) + 1;
        claim.digest = self.desired.digest;
        claim.secrets = vec!["a".into()];
        if kind == MintReason::Heal {
            self.heals.push((self.true_time(), claim.id.clone()));
        }
        let (committed, window) = (claim.clone(), self.limit.window);
        self.commit(|j, _| j.claim(UID, committed, window));
        self.flights.push(Flight {
            who,
            claim,
            posted: false,
        });
    }

    fn post(&mut self) {
        let now = self.now;
        let Some(index) = self.flights.iter().position(|f| !f.posted) else {
            return;
        };
        if now - self.flights[index].claim.at >= CLAIM_FRESH {
            let flight = self.flights.remove(index);
            self.commit(|j, _| j.withdraw(UID, &flight.claim.id));
            // It never left, and so healed nothing.
            if flight.claim.kind == MintReason::Heal {
                self.heals.pop();
            }
            return;
        }
        self.flights[index].posted = true;
        self.posts
            .push((self.true_time(), self.flights[index].claim.id.clone()));
    }

    fn answer(&mut self, how: How) {
        let Some(index) = self.flights.iter().position(|f| f.posted) else {
            return;
        };
        let flight = self.flights.remove(index);
        let (id, window) = (flight.claim.id.clone(), self.limit.window);
        // A client gives up on its timeout; what comes later is not taken.
        if self.now > flight.claim.answered_by() {
            self.tell(|j, now| {
                let failure = failure_of(j, &flight.claim, Reason::OutcomeUnknown, window, now);
                j.end(UID, &id, Outcome::Failed { failure, counted: true }, now)
            });
            return;
        }
        let mut live = live_at(&id, self.now, self.now + s(1800));
        live.digest = flight.claim.digest;
        live.token_ids = vec![format!("token-of-{id}")];
        live.revision = flight.claim.revision;
        live.request = request();
        live.request.connection = self.desired.connection.as_str().into();
        live.request.service = self.desired.service.as_str().into();
        live.endpoint = endpoint();
        let written = Written {
            keys: vec!["k".into()],
            fingerprint: id.clone(),
            ..Written::default()
        };
        live.secrets.insert("a".into(), written);
        match how {
            How::Issued => {
                self.secret = Some(Stored::new(live.clone()));
                self.tell(|j, now| {
                    let ended = j.end(UID, &id, Outcome::Published(Box::new(live.clone())), now);
                    if !ended {
                        j.revoke_unpublished(UID, &flight.claim, &live.token_ids, now);
                    }
                    ended
                });
            }
            How::WrittenThenCrash => self.secret = Some(Stored::new(live)),
            How::LostWithCrash => {}
            How::Denied | How::Broken => {
                let reason = if how == How::Denied {
                    Reason::Denied
                } else {
                    Reason::BrokerUnavailable
                };
                self.tell(|j, now| {
                    let failure = failure_of(j, &flight.claim, reason, window, now);
                    j.end(UID, &id, Outcome::Failed { failure, counted: true }, now)
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
            Step::Wait(seconds) => {
                self.now += s(seconds);
                self.back -= s(seconds.min(0));
            }
            Step::Tamper => {
                if let Some(stored) = &mut self.secret {
                    stored.altered = true;
                    self.damages += 1;
                }
            }
            Step::Relabel => {
                if let Some(stored) = &mut self.secret {
                    stored.relabelled = true;
                }
            }
            Step::Lose => {
                let mut journal = Journal::new(scope());
                journal.lost_at = Some(self.now);
                self.journal = View::new(journal);
                self.tokens.clear();
                self.lost = true;
                self.history.clear();
                // Nobody's claim is open any more.
                self.flights.clear();
            }
            Step::DeleteSecret => {
                self.secret = None;
                self.damages += 1;
            }
            Step::Edit => {
                self.edits += 1;
                let mut edited = credential("a", "svc");
                edited.spec.purpose = format!("purpose-{}", self.edits);
                let before = self.desired.digest;
                self.desired = spec::desired(&edited, None, &AnnotationPolicy::default()).unwrap();
                (self.desired.digest.rotate, self.desired.digest.revoke) = (before.rotate, before.revoke);
            }
            Step::Rotate => {
                self.edits += 1;
                self.desired.digest.rotate = Digest::of([format!("rotate-{}", self.edits)]);
                self.barred = false;
            }
            Step::Revoke => {
                self.edits += 1;
                self.desired.digest.revoke = Digest::of([format!("revoke-{}", self.edits)]);
                self.barred = true;
            }
            Step::Permit => self.permitted = !self.permitted,
        }
    }

    /// What does not hold.
    fn broken(&self) -> Option<String> {
        if self.wrong.is_some() {
            return self.wrong.clone();
        }
        let Limit { limit, window } = self.limit;
        let most = |times: &[Time]| {
            let within = |from: &Time| times.iter().filter(|at| *at >= from && **at < *from + window).count();
            times.iter().map(within).max().unwrap_or(0)
        };
        let sent = most(&self.posts.iter().map(|(at, _)| *at).collect::<Vec<_>>());
        let heals = most(&self.heals.iter().map(|(at, _)| *at).collect::<Vec<_>>());
        // One that brought nothing is tried again, a window later.
        let brought = |(_, id): &&(Time, String)| self.tokens.contains_key(&format!("token-of-{id}"));
        let healed = self.heals.iter().filter(brought).count();
        let mut ids: Vec<&String> = self.posts.iter().map(|(_, id)| id).collect();
        ids.sort();
        ids.dedup();
        let recent = |at: Time| at + window > self.now;
        let left = self.posts.iter().filter(|(at, _)| recent(*at - self.back)).count();
        let counted: u32 = self
            .journal
            .sent()
            .into_iter()
            .filter(|(at, _)| recent(*at))
            .map(|(_, n)| n)
            .sum();
        let owed = |id: &String| self.journal.owed_of(UID).find(|owed| owed.token_id == *id);
        let live = |id: &String| self.journal.live_of(UID).is_some_and(|l| l.token_ids.contains(id));
        let known = |id: &String| live(id) || owed(id).is_some();
        let early = |(id, end): (&String, &Time)| owed(id).is_some_and(|o| o.why == Reason::Rotated && o.due < *end);
        let broken = [
            (sent > limit as usize, format!("{sent} requests in a window")),
            (ids.len() < self.posts.len(), "a claim was posted twice".to_owned()),
            (
                left > counted as usize && !self.lost,
                "a request that left is not counted".to_owned(),
            ),
            (heals > 1, format!("{heals} heals in a window")),
            (healed > self.damages, "healed what nobody had damaged".to_owned()),
            (!self.tokens.keys().all(known), "a token is forgotten".to_owned()),
            (
                self.tokens.iter().any(early),
                "a token that was replaced is revoked before its end".to_owned(),
            ),
            (
                self.journal.lost_at.is_some() && !self.lost,
                "taken for lost".to_owned(),
            ),
        ];
        broken.into_iter().find_map(|(is, what)| is.then_some(what))
    }

    fn check(&self) {
        assert_eq!(self.broken(), None);
    }

    /// As [`World::comes_to_rest`], and it does.
    fn settle(&mut self) {
        assert_eq!(self.comes_to_rest(), Ok(()));
    }

    /// No more faults: the first controller alone, until nothing changes.
    fn comes_to_rest(&mut self) -> Result<(), String> {
        self.flights.clear();
        for _ in 0..400 {
            let before = (self.journal.clone(), self.posts.len());
            let plan = self.look(0, 0);
            self.admit(0);
            self.post();
            self.answer(How::Issued);
            if let Some(broken) = self.broken() {
                return Err(broken);
            }
            let quiet = plan.actions.is_empty() && plan.demand.is_none() && before.0 == self.journal;
            if quiet
                && plan.verdict.as_ref().is_some_and(|v| {
                    v.ready || matches!(v.reason, Reason::Denied | Reason::Revoked | Reason::NotPermitted)
                })
            {
                let revoked = self.secret.is_none() && self.journal.live_of(UID).is_none();
                // Of both the rules are told of first.
                let told = plan.verdict.is_some_and(|v| v.reason == Reason::Revoked) || !self.permitted;
                if self.barred && !(revoked && told) {
                    return Err("revoked, and yet there is a token".to_owned());
                }
                let due = self.journal.owed_of(UID).all(|owed| owed.due <= self.true_time());
                let cleared = revoked && due;
                if !(self.permitted || cleared) {
                    return Err("not permitted, and yet there is a token".to_owned());
                }
                return self.stays_at_rest();
            }
            self.now += s(30);
        }
        Err(format!("it does not come to rest: {:#?}", self.look(0, 0)))
    }

    /// At rest nothing is written and nothing minted, however often it is looked at.
    fn stays_at_rest(&mut self) -> Result<(), String> {
        let (posts, journal) = (self.posts.len(), self.journal.clone());
        for who in [0, 1, 0] {
            let plan = self.look(who, 0);
            self.admit(who);
            let idle = plan.actions.is_empty() && plan.demand.is_none();
            if !idle || self.posts.len() != posts || self.journal != journal {
                return Err(format!("it does not stay at rest: {plan:?}"));
            }
        }
        Ok(())
    }
}

fn failure_of(journal: &Journal, claim: &Claim, reason: Reason, window: TimeDelta, now: Time) -> Failure {
    let count = journal.failures_in_a_row(UID, &claim.digest);
    let live = journal.credentials.get(UID).and_then(|r| r.live.as_ref());
    let bounds = Bounds {
        window,
        timeout: s(10),
        live: live
            .filter(|l| l.ends_at > now)
            .map(|l| (l.ends_at, (l.ends_at - l.issued_at) / 3)),
    };
    Failure {
        reason,
        message: "it failed".into(),
        at: now,
        asked_at: Some(claim.at),
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
        digest: claim.digest,
    }
}

#[test]
fn a_view_from_before_a_claim_does_not_remove_what_that_claim_wrote() {
    let behind = |behind| Step::Look { who: 0, behind };
    let mint = [behind(0), Step::Admit { who: 0 }, Step::Post];
    let mut world = World::new();
    for step in mint.into_iter().chain([Step::Answer(How::Broken), Step::Wait(45)]) {
        world.take(step);
    }
    for step in mint
        .into_iter()
        .chain([Step::Answer(How::Issued), behind(2), behind(0)])
    {
        world.take(step);
    }
    assert!(world.secret.is_some());
    world.settle();
    assert_eq!(world.posts.len(), 2);
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn whatever_happens_no_rule_is_broken_and_afterwards_it_comes_to_rest(
        script in prop::collection::vec(steps(), 0..60),
    ) {
        let mut world = World::new();
        for step in script {
            world.take(step);
            world.check();
        }
        world.settle();
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
            world.check();
        }
        prop_assert_eq!(world.posts.len(), 1);
    }
}

mod model;
