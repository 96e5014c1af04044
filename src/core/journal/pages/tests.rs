//! Whatever is committed, and wherever that stops, what is read back is what one big journal would hold.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::api::Reason;
use crate::core::audit::{EventType, Subject};
use crate::core::ids::SpecDigest;
use crate::core::journal::tests_support::{claim, live, scope};
use crate::core::journal::{Claim, Failure, MintReason, Minted, Outcome};
use crate::core::testing::{cases, s, t};

/// The objects of one journal, as an API server would keep them.
#[derive(Clone, Debug, Default)]
struct Objects {
    head: Option<String>,
    pages: BTreeMap<PageId, String>,
}

/// One write.
enum Write {
    Head(Head),
    Page(Page),
    Drop(PageId),
}

fn writes(flush: &Flush) -> Vec<Write> {
    let fresh = flush.fresh.iter().chain(&flush.pages).cloned().map(Write::Page);
    let head = flush.head.clone().map(Write::Head);
    let named = flush.named.iter().cloned().map(Write::Page);
    let dropped = flush.dropped.iter().cloned().map(Write::Drop);
    fresh.chain(head).chain(named).chain(dropped).collect()
}

impl Objects {
    fn write(&mut self, write: &Write) {
        match write {
            Write::Head(head) => self.head = Some(serde_json::to_string(head).unwrap()),
            Write::Page(page) => {
                let text = serde_json::to_string(page).unwrap();
                assert!(text.len() < 700 * 1024, "a page of {} bytes", text.len());
                self.pages.insert(page.page.clone(), text);
            }
            Write::Drop(id) => {
                self.pages.remove(id);
            }
        }
    }

    fn read(&self, now: Time) -> Stored {
        let head = self.head.as_ref().map(|text| serde_json::from_str(text).unwrap());
        let pages = self.pages.values().map(|text| serde_json::from_str(text).unwrap());
        Layout::read(&scope(), head, pages.collect(), now)
    }
}

/// What a journal holds of each credential: claim; record; undelivered events; what is owed.
type Parts = BTreeMap<String, Part>;

#[derive(Clone, Debug, Default, PartialEq)]
struct Part {
    claim: Option<String>,
    record: String,
    events: BTreeSet<u64>,
    owed: BTreeSet<String>,
}

fn parts(journal: &Journal) -> Parts {
    let uids: BTreeSet<&Uid> = journal
        .credentials
        .keys()
        .chain(journal.claims.keys())
        .chain(journal.audit.keys().map(|(uid, _)| uid))
        .chain(journal.revocations.keys().map(|(uid, _)| uid))
        .collect();
    uids.into_iter()
        .map(|uid| (uid.to_string(), part(journal, uid.as_str())))
        .collect()
}

fn part(journal: &Journal, uid: &str) -> Part {
    let record = journal.credentials.get(uid);
    let record = record.map(|r| {
        (
            r.revision,
            r.seq,
            r.live.as_ref().map(|l| &l.claim),
            r.failure.is_some(),
            r.gone,
            r.unpublished.as_ref().map(|c| &c.id),
        )
    });
    Part {
        claim: journal.claims.get(uid).map(|c| c.id.clone()),
        record: format!("{record:?}"),
        events: journal.events_of(uid).map(|e| e.seq).collect(),
        owed: journal.owed_of(uid).map(|r| r.token_id.clone()).collect(),
    }
}

/// What each credential may be found as: as it was before, or after any of the changes of one commit.
type Allowed = BTreeMap<String, Vec<Part>>;

/// Whether `found` is one of the states that a credential went through. A claim that is not committed yet may be
/// missing from a later one; one that ended may not be there.
fn is_one_of(found: &Part, states: &[Part]) -> bool {
    (0..states.len()).any(|late| {
        let claim_of = |early: usize| {
            let same = |state: &Part| state.claim == found.claim;
            same(&states[early]) && (found.claim.is_none() || states[early..=late].iter().all(same))
        };
        let at_that = Part {
            claim: found.claim.clone(),
            ..states[late].clone()
        };
        *found == at_that && (0..=late).any(claim_of)
    })
}

/// Whether `found` lost nothing that was there all the time, and has nothing that never was. What has moved to other
/// pages is written by itself.
fn is_between(found: &Part, states: &[Part]) -> bool {
    fn between<T: Ord>(found: &BTreeSet<T>, all: &[&BTreeSet<T>]) -> bool {
        found.iter().all(|x| all.iter().any(|set| set.contains(x)))
            && all[0]
                .iter()
                .all(|x| found.contains(x) || !all.iter().all(|set| set.contains(x)))
    }
    states.iter().any(|s| s.record == found.record)
        && states.iter().any(|s| s.claim == found.claim)
        && between(&found.events, &states.iter().map(|s| &s.events).collect::<Vec<_>>())
        && between(&found.owed, &states.iter().map(|s| &s.owed).collect::<Vec<_>>())
}

/// Something a controller commits.
#[derive(Clone, Debug)]
enum Op {
    Claim(usize),
    Mint(usize),
    Publish(usize),
    Fail(usize),
    Withdraw(usize),
    Event(usize),
    Acknowledge(usize),
    Release(usize),
    Forget(usize),
    Revoked(usize),
}

impl Op {
    fn who(&self) -> usize {
        match self {
            Self::Claim(who)
            | Self::Mint(who)
            | Self::Publish(who)
            | Self::Fail(who)
            | Self::Withdraw(who)
            | Self::Event(who)
            | Self::Acknowledge(who)
            | Self::Release(who)
            | Self::Forget(who)
            | Self::Revoked(who) => *who,
        }
    }
}

fn op(most: usize) -> impl Strategy<Value = Op> {
    let who = 0..most;
    prop_oneof![
        4 => who.clone().prop_map(Op::Claim),
        1 => who.clone().prop_map(Op::Mint),
        4 => who.clone().prop_map(Op::Publish),
        1 => who.clone().prop_map(Op::Fail),
        1 => who.clone().prop_map(Op::Withdraw),
        2 => who.clone().prop_map(Op::Event),
        2 => who.clone().prop_map(Op::Acknowledge),
        1 => who.clone().prop_map(Op::Release),
        1 => who.clone().prop_map(Op::Forget),
        1 => who.prop_map(Op::Revoked),
    ]
}

fn uid(who: usize) -> String {
    format!("u{who:04}")
}

/// A record of a kilobyte or two.
fn outcome(claim: &Claim, now: Time) -> Outcome {
    let mut live = live(&claim.id, now, now + s(3600));
    live.revision = claim.revision;
    live.outputs = (0..8)
        .map(|i| format!("{i}-{}", "output".repeat(16)).as_str().into())
        .collect();
    live.token_ids = vec![format!("token-of-{}", claim.id)];
    Outcome::Published(Box::new(live))
}

fn failure(now: Time) -> Failure {
    Failure {
        reason: Reason::BrokerUnavailable,
        message: "it failed".into(),
        at: now,
        asked_at: None,
        count: 1,
        retry_at: Some(now + s(60)),
        digest: SpecDigest::default(),
    }
}

fn event(journal: &mut Journal, uid: &str, now: Time) {
    let request = crate::core::journal::tests_support::request();
    let subject = Subject {
        uid,
        namespace: "n",
        name: uid,
        request: &request,
        revision: 1,
    };
    let event = crate::core::audit::AuditEvent::new(EventType::Rotated, Reason::Rotated, &subject, now, true);
    journal.record_event(uid, event);
}

fn apply(journal: &mut Journal, op: &Op, number: usize, now: Time) {
    match op {
        Op::Claim(who) => {
            if journal.pending(&uid(*who)).is_none() {
                let mut claim = claim(&uid(*who), "n", MintReason::First, now, number);
                claim.revision = journal
                    .credentials
                    .get(uid(*who).as_str())
                    .map_or(1, |r| r.revision + 1);
                journal.claim(&uid(*who), claim, s(3600));
            }
        }
        Op::Mint(who) => {
            if let Some(claim) = journal.claims.get(uid(*who).as_str()).cloned() {
                let minted = Minted {
                    issued_at: now,
                    ends_at: now + s(3600),
                    token_ids: vec![format!("token-of-{}", claim.id)],
                };
                assert!(journal.minted(&uid(*who), &claim.id, &minted, now));
            }
        }
        Op::Publish(who) => end(journal, &uid(*who), now, |claim| outcome(claim, now)),
        Op::Fail(who) => end(journal, &uid(*who), now, |_| Outcome::Failed {
            failure: failure(now),
            counted: who % 2 == 0,
        }),
        Op::Withdraw(who) => {
            if let Some(claim) = journal.claims.get(uid(*who).as_str()).cloned() {
                journal.withdraw(&uid(*who), &claim.id);
            }
        }
        Op::Event(who) => {
            if journal.credentials.contains_key(uid(*who).as_str()) {
                event(journal, &uid(*who), now);
            }
        }
        Op::Acknowledge(who) => {
            let all: Vec<_> = journal.events_of(&uid(*who)).cloned().collect();
            for event in all {
                journal.audit.remove(&(uid(*who).as_str().into(), event.seq));
            }
        }
        Op::Release(who) => {
            journal.release(&uid(*who), now, Reason::Expired);
        }
        Op::Forget(who) => {
            journal.give_up(&uid(*who), now);
            journal.forget(&uid(*who), now);
        }
        Op::Revoked(who) => {
            let all: Vec<_> = journal.owed_of(&uid(*who)).cloned().collect();
            for owed in all {
                journal.revoked(&owed.uid, &owed.token_id);
            }
            journal.prune(&uid(*who));
        }
    }
}

fn end(journal: &mut Journal, uid: &str, now: Time, ending: impl Fn(&Claim) -> Outcome) {
    if let Some(claim) = journal.pending(uid).cloned() {
        assert!(journal.end(uid, &claim.id, ending(&claim), now));
        event(journal, uid, now);
    }
}

struct World {
    objects: Objects,
    journal: Journal,
    layout: Layout,
    now: Time,
    number: usize,
}

impl World {
    fn new() -> Self {
        Self {
            objects: Objects::default(),
            journal: Journal::new(scope()),
            layout: Layout::default(),
            now: t(0),
            number: 0,
        }
    }

    /// Commits `ops`; at each write, what a crash there would leave is looked at. Stops for good after `crash` writes.
    fn commit(&mut self, ops: &[Op], crash: Option<usize>) {
        self.now += TimeDelta::milliseconds(7);
        let mut before = self.journal.clone();
        before.compact(self.now);
        let mut after = before.clone();
        let mut allowed = Allowed::new();
        for (uid, part) in parts(&before) {
            allowed.entry(uid).or_default().push(part);
        }
        for op in ops {
            self.number += 1;
            let uid = uid(op.who());
            allowed.entry(uid.clone()).or_default().push(part(&after, &uid));
            apply(&mut after, op, self.number, self.now);
            allowed.entry(uid.clone()).or_default().push(part(&after, &uid));
        }
        let mut ids = self.number * 1000;
        let fresh_id = || {
            ids += 1;
            PageId::from(format!("page-{ids}"))
        };
        let Some(flush) = self.layout.flush(&before, &mut after, self.now, fresh_id) else {
            assert_eq!(parts(&before), parts(&after));
            return;
        };
        let new = parts(&after);
        for (done, write) in writes(&flush).iter().enumerate() {
            if crash == Some(done) {
                break;
            }
            self.objects.write(write);
            self.check(&allowed, &flush.layout, (&before, &after));
        }
        if crash.is_some() {
            let stored = self.objects.read(self.now);
            (self.journal, self.layout) = (stored.journal, stored.layout);
        } else {
            let stored = self.objects.read(self.now);
            assert_eq!(parts(&stored.journal), new, "what is stored is what was committed");
            assert_eq!(stored.journal.sent(), after.sent());
            (self.journal, self.layout) = (after, flush.layout);
        }
    }

    /// Whatever a crash leaves now, each credential is as it was or as it was to be, and nothing is uncounted. What
    /// has moved to a page of its own may be so by itself.
    fn check(&self, allowed: &Allowed, layout: &Layout, (before, after): (&Journal, &Journal)) {
        let stored = self.objects.read(self.now);
        assert_eq!(stored.lost, Vec::<String>::new());
        let nothing = part(&Journal::new(scope()), "");
        for (uid, allowed) in allowed {
            let found = part(&stored.journal, uid);
            let moved = |layout: &Layout| layout.moved.keys().any(|(of, _)| of.as_str() == uid);
            let empty = |part: &Part| part.events.is_empty() && part.owed.is_empty();
            let compacted = found == nothing && allowed.iter().any(empty);
            let fits = if moved(layout) || moved(&self.layout) {
                is_between(&found, allowed)
            } else {
                is_one_of(&found, allowed) || compacted
            };
            assert!(fits, "{uid}: {found:?} is none of {allowed:?}");
        }
        let count = |journal: &Journal| journal.sent().iter().map(|(_, n)| n).sum::<u32>();
        let refunded = after.ended.values().filter(|attempt| attempt.is_none()).count();
        let least = (count(before).min(count(after)) as usize).saturating_sub(refunded);
        assert!(count(&stored.journal) as usize >= least, "a request is not counted");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..cases(24) })]

    // Invariants 2, 4 and 8.
    #[test]
    fn a_crash_after_any_write_leaves_each_credential_as_it_was_or_as_it_was_to_be(
        commits in proptest::collection::vec(
            (proptest::collection::vec(op(60), 1..40), proptest::option::weighted(0.2, 0_usize..6)),
            1..40,
        ),
    ) {
        let mut world = World::new();
        for (ops, crash) in commits {
            world.commit(&ops, crash);
        }
    }
}

/// A page that only tells that a claim is closed goes on telling so until the head does.
#[test]
fn a_claim_whose_record_went_with_it_stays_closed_through_two_crashes() {
    let mut world = settled(60);
    world.commit(&[Op::Claim(7)], None);
    world.commit(&[Op::Forget(7), Op::Acknowledge(7), Op::Revoked(7)], Some(1));
    assert_eq!(part(&world.journal, &uid(7)), part(&Journal::new(scope()), ""));
    world.commit(&[Op::Event(8), Op::Withdraw(7)], None);
}

/// Everybody of `many` holds a token.
fn settled(many: usize) -> World {
    let mut world = World::new();
    for chunk in (0..many).collect::<Vec<_>>().chunks(48) {
        let claims: Vec<_> = chunk.iter().map(|who| Op::Claim(*who)).collect();
        world.commit(&claims, None);
        let outcomes: Vec<_> = chunk.iter().map(|who| Op::Publish(*who)).collect();
        world.commit(&outcomes, None);
    }
    world
}

/// Invariant 14.
#[test]
fn a_few_credentials_need_one_object_and_ten_thousand_none_that_is_large() {
    let world = settled(8);
    assert!(world.objects.pages.is_empty());
    let world = settled(1000);
    let largest = world.objects.pages.values().map(String::len).max().unwrap();
    assert!(largest < 160 * 1024, "{largest}");
    let head = world.objects.head.as_ref().unwrap().len();
    assert!(head < 128 * 1024, "{head}");
    assert!(world.objects.pages.len() > 10);
}

/// Invariant 14.
#[test]
fn nine_thousand_requests_in_an_hour_are_counted_in_a_head_of_bounded_size() {
    let mut world = settled(1);
    for n in 0..9_998 {
        world.journal.compact(world.now);
        world.now += TimeDelta::milliseconds(300);
        let mut claim = claim("u0000", "a-namespace", MintReason::First, world.now, 100_000 + n);
        claim.timeout_seconds = 10;
        let id = claim.id.clone();
        world.journal.claim("u0000", claim, s(3600));
        let failure = failure(world.now);
        assert!(
            world
                .journal
                .end("u0000", &id, Outcome::Failed { failure, counted: true }, world.now)
        );
    }
    world.commit(&[Op::Event(0)], None);
    let sent: u32 = world.journal.sent().iter().map(|(_, n)| n).sum();
    assert_eq!(sent, 9_999);
    let head = world.objects.head.as_ref().unwrap().len();
    assert!(head < 128 * 1024, "{head}");
    // Each counts until its own window has passed, or a little longer, and never less.
    world.journal.compact(t(3700));
    let left: u32 = world.journal.sent().iter().map(|(_, n)| n).sum();
    assert!((9_660..=9_720).contains(&left), "{left}");
}

#[test]
fn a_page_that_fills_with_events_gives_them_away_and_none_is_lost() {
    let mut world = settled(60);
    for round in 0..40 {
        let events: Vec<_> = (0..60).map(Op::Event).collect();
        world.commit(&events, (round % 7 == 3).then_some(round % 5));
    }
    let largest = world.objects.pages.values().map(String::len).max().unwrap();
    assert!(largest < 256 * 1024, "{largest}");
    let all: Vec<_> = (0..60).map(Op::Acknowledge).collect();
    world.commit(&all, None);
    world.commit(&[Op::Event(1)], None);
    assert_eq!(world.objects.read(world.now).journal.audit.len(), 1);
    assert!(
        world.objects.pages.len() < 10,
        "empty pages go: {:?}",
        world.objects.pages.keys()
    );
}

#[test]
fn pages_that_hold_nothing_any_more_are_deleted() {
    let mut world = settled(500);
    for chunk in (0..500).collect::<Vec<_>>().chunks(50) {
        world.commit(&chunk.iter().map(|who| Op::Acknowledge(*who)).collect::<Vec<_>>(), None);
        world.commit(&chunk.iter().map(|who| Op::Forget(*who)).collect::<Vec<_>>(), None);
        world.commit(&chunk.iter().map(|who| Op::Revoked(*who)).collect::<Vec<_>>(), None);
    }
    assert_eq!(world.objects.pages.len(), 0);
    assert!(world.objects.read(world.now).journal.credentials.is_empty());
}

#[test]
fn a_lost_page_or_head_is_noticed_and_what_others_hold_stays() {
    let world = settled(300);
    let mut without_page = world.objects.clone();
    without_page.pages.pop_first();
    let stored = without_page.read(t(100));
    assert_eq!(stored.journal.lost_at, Some(t(100)));
    let left = stored.journal.credentials.len();
    assert!((200..300).contains(&left), "{left}");

    let mut rolled_back = world.objects.clone();
    let (id, text) = rolled_back.pages.pop_first().unwrap();
    let mut old: Page = serde_json::from_str(&text).unwrap();
    old.commit = 0;
    rolled_back.pages.insert(id, serde_json::to_string(&old).unwrap());
    assert_eq!(rolled_back.read(t(100)).journal.lost_at, Some(t(100)));

    let headless = Objects {
        head: None,
        ..world.objects.clone()
    };
    let stored = headless.read(t(100));
    assert_eq!(stored.journal.lost_at, Some(t(100)));
    assert_eq!(stored.journal.credentials.len(), 300);

    let early = settled(100);
    let gone_back = Objects {
        head: early.objects.head,
        pages: world.objects.pages,
    };
    assert_eq!(gone_back.read(t(100)).journal.lost_at, Some(t(100)));
}

#[test]
fn of_two_pages_with_one_credential_the_newer_record_counts_and_the_other_is_written_anew() {
    let mut world = settled(300);
    let (id, text) = world.objects.pages.last_key_value().unwrap();
    let (id, mut page): (PageId, Page) = (id.clone(), serde_json::from_str(text).unwrap());
    let (first, other) = world.objects.pages.first_key_value().unwrap();
    let other: Page = serde_json::from_str(other).unwrap();
    assert_ne!(*first, id);
    let (double, slot) = other.slots.first_key_value().unwrap();
    let mut slot = slot.clone();
    Arc::make_mut(slot.record.as_mut().unwrap()).revision = 9;
    page.slots.insert(double.clone(), slot);
    world.objects.pages.insert(id, serde_json::to_string(&page).unwrap());
    let stored = world.objects.read(world.now);
    assert_eq!(stored.journal.credentials.get(double).unwrap().revision, 9);
    (world.journal, world.layout) = (stored.journal, stored.layout);
    world.commit(&[Op::Event(299)], None);
    let pages = world
        .objects
        .pages
        .values()
        .map(|text| serde_json::from_str::<Page>(text).unwrap());
    let holding = pages.filter(|page| page.slots.get(double).is_some_and(|slot| slot.record.is_some()));
    assert_eq!(holding.count(), 1);
}

#[test]
fn what_is_lost_while_it_is_held_is_written_anew() {
    let mut world = settled(300);
    world.objects = Objects::default();
    let mut layout = world.objects.read(world.now).layout;
    layout.store_anew(&world.layout);
    let mut after = world.journal.clone();
    let mut ids = 0;
    let flush = layout
        .flush(&Journal::new(scope()), &mut after, world.now, || {
            ids += 1;
            PageId::from(format!("new-{ids}"))
        })
        .unwrap();
    for write in writes(&flush) {
        world.objects.write(&write);
    }
    let stored = world.objects.read(world.now);
    assert_eq!(stored.lost, Vec::<String>::new());
    assert_eq!(parts(&stored.journal), parts(&world.journal));
}
