//! A short form of what `benches/budget` runs for hours.

use super::simulation::broker::{Broker, Trouble};
use super::simulation::oracle::{Excuse, History, How, Loss, Request, Terms, Token};
use super::simulation::{FAULTS, Fault, Faults, Settings, simulate};

fn holds(settings: Settings) {
    let report = simulate(settings);
    let (seed, hours) = (report.seed, report.hours);
    assert_eq!(report.broken(), 0, "seed {seed}, {hours} h: {report:#?}");
    assert!(report.live > 0 && report.mints > 0, "{report:#?}");
}

/// Invariant 3.
#[test]
fn where_nothing_fails_no_live_credential_is_lost_late_or_starved() {
    for (limit, hours) in [(5, 24), (10, 24), (30, 6)] {
        holds(Settings {
            faults: Faults::Never,
            ..Settings::full(limit, hours, 1)
        });
    }
}

/// Invariants 2, 15 and 16.
#[test]
fn outages_of_every_kind_restarts_and_edits_break_no_promise() {
    for (limit, hours) in [(5, 48), (10, 48), (30, 12)] {
        holds(Settings::full(limit, hours, 1));
    }
}

/// Invariant 16.
#[test]
fn one_outage_after_the_other_of_each_kind_breaks_no_promise() {
    for (i, fault) in FAULTS.into_iter().enumerate() {
        holds(Settings {
            faults: Faults::Sweep(fault, i % 2 == 1),
            ..Settings::full(10, 13, 1)
        });
    }
}

// The oracle itself.

const TERMS: Terms = Terms {
    limit: 10,
    counts_for: 3_605_000,
    timeout: 10_000,
};

/// One that lives from 0 to 3600 s, with a runway from 2400 s on: half of that is at 3000 s.
fn token(who: usize, later: i64) -> Token {
    Token {
        who,
        issued: later * 1000,
        ends: (3600 + later) * 1000,
        own_latest: (2400 + later) * 1000,
        latest: (2400 + later) * 1000,
        until: i64::MAX,
        newcomer: false,
        lost: false,
    }
}

fn failed(who: usize, at: i64) -> Request {
    Request {
        number: 0,
        who,
        sent: at * 1000,
        at: at * 1000,
        how: How::Failed,
        newcomer: false,
    }
}

fn down(from: i64, until: i64) -> Broker {
    let trouble = Trouble {
        from: from * 1000,
        until: until * 1000,
        fault: Fault::ServerError,
        flaps: None,
    };
    Broker::new(3_600_000, vec![trouble])
}

fn judged(history: &History, broker: &Broker, terms: Terms) -> Loss {
    history.judge(&history.tokens[0], broker, terms)
}

fn with(requests: Vec<Request>) -> History {
    History {
        tokens: vec![token(0, 0)],
        requests,
        ..History::default()
    }
}

#[test]
fn who_is_not_asked_for_while_the_broker_answers_was_promised_not_to_be_lost() {
    let never = Broker::new(3_600_000, Vec::new());
    assert_eq!(judged(&with(Vec::new()), &never, TERMS), Loss::Promised);
    // Whatever was spent in vain before.
    let tries = (2400..2950).step_by(30).map(|at| failed(0, at)).collect();
    assert_eq!(judged(&with(tries), &down(2300, 2990), TERMS), Loss::Promised);
}

#[test]
fn who_could_have_been_kept_once_the_broker_answered_again_was_missed() {
    let own = || with(vec![failed(0, 3000)]);
    assert_eq!(judged(&own(), &down(2300, 3200), TERMS), Loss::Missed);
    let unanswered = Loss::Excused(Excuse::Unanswered);
    assert_eq!(judged(&own(), &down(2300, 3600), TERMS), unanswered);
    let mut restarted = with(Vec::new());
    restarted.downs = vec![(3_100_000, 3_103_000)];
    assert_eq!(judged(&restarted, &down(0, 1), TERMS), Loss::Missed);
    restarted.downs = vec![(2_900_000, 3_600_000)];
    assert_eq!(judged(&restarted, &down(0, 1), TERMS), unanswered);
}

#[test]
fn a_wait_that_was_asked_for_excuses_only_whoever_tried_since_half_of_its_runway() {
    let waits = vec![(2_500_000, 3_600_000)];
    let told = |requests| History {
        waits: waits.clone(),
        ..with(requests)
    };
    assert_eq!(judged(&told(Vec::new()), &down(2300, 2600), TERMS), Loss::Promised);
    let after = Loss::Excused(Excuse::ToldToWait);
    assert_eq!(judged(&told(vec![failed(0, 3000)]), &down(2300, 3100), TERMS), after);
    let mut shorter = told(vec![failed(0, 3000)]);
    shorter.waits = vec![(2_500_000, 3_200_000)];
    assert_eq!(judged(&shorter, &down(2300, 3100), TERMS), Loss::Missed);
}

#[test]
fn what_newcomers_took_since_the_broker_answers_is_no_excuse() {
    let newcomer = Request {
        how: How::Answered,
        newcomer: true,
        ..failed(3, 3150)
    };
    let two = Terms { limit: 2, ..TERMS };
    let overtaken = with(vec![failed(0, 3000), newcomer]);
    assert_eq!(judged(&overtaken, &down(2300, 3100), two), Loss::Missed);
}

#[test]
fn who_tries_again_with_what_another_is_to_have_for_its_own_try_wastes_it() {
    let mut history = with(vec![failed(2, 400), failed(0, 3000), failed(0, 3050)]);
    history.tokens.push(token(1, 700));
    let is_waste = |i: usize, limit| history.is_waste(&history.requests[i], Terms { limit, ..TERMS });
    assert!(is_waste(2, 3) && !is_waste(2, 4));
    assert!(!is_waste(1, 2), "its own try");
}

#[test]
fn a_slot_that_frees_when_another_is_to_have_it_by_one_clock_or_the_other_is_not_wasted() {
    // The other is to have one by 3300 s, and the first frees at 3301 s, or at 3303 s.
    for (at, wastes) in [(-304, false), (-302, true)] {
        let mut history = with(vec![failed(9, at), failed(9, 0), failed(0, 3000), failed(0, 3050)]);
        history.tokens.push(token(1, 300));
        let four = Terms { limit: 4, ..TERMS };
        assert_eq!(history.is_waste(&history.requests[3], four), wastes);
    }
}

#[test]
fn a_slot_is_not_wasted_that_one_who_is_due_leaves_to_one_whose_half_comes_first() {
    let before = [-355, 2000, 2400].map(|at| failed(9, at));
    let mut history = with([before.as_slice(), &[failed(0, 3000), failed(0, 3050)]].concat());
    // Due from 2700 s on, and to have a slot by 3300 s: one frees at 3250 s.
    history.tokens.push(token(1, 300));
    // Due from 3100 s on, and to have one by 3150 s.
    history.tokens.push(Token {
        ends: 3_200_000,
        own_latest: 3_100_000,
        latest: 3_100_000,
        ..token(2, 0)
    });
    let is_waste = |limit| history.is_waste(&history.requests[4], Terms { limit, ..TERMS });
    assert!(
        !is_waste(6),
        "the slot that is left is for the one, and that which frees for the other"
    );
    assert!(is_waste(5), "none is left");
}

#[test]
fn slots_that_are_gone_or_kept_for_others_excuse() {
    let terms = Terms { limit: 2, ..TERMS };
    let spent = || with(vec![failed(0, 2500), failed(0, 3000)]);
    // Two failed tries are all there is; who had known would have made neither.
    let foresight = Loss::Excused(Excuse::Foresight);
    assert_eq!(judged(&spent(), &down(2300, 3100), terms), foresight);
    let full = History {
        requests: vec![failed(1, 100), failed(2, 200), failed(0, 3000)],
        ..with(Vec::new())
    };
    let one = Terms { limit: 1, ..TERMS };
    assert_eq!(judged(&full, &down(2300, 3100), one), Loss::Excused(Excuse::NoRoom));
    // One slot is left, and the next frees after half of the other's runway.
    let mut two = with(vec![failed(2, 400), failed(0, 3000)]);
    two.tokens.push(token(1, 700));
    let three = Terms { limit: 3, ..TERMS };
    assert_eq!(judged(&two, &down(2300, 3100), three), Loss::Excused(Excuse::Kept));
    let four = Terms { limit: 4, ..TERMS };
    assert_eq!(judged(&two, &down(2300, 3100), four), Loss::Missed);
}

#[test]
fn renewing_as_late_as_can_be_asks_for_the_fewest_slots_and_no_fewer_excuse() {
    let mut history = with(vec![failed(0, 3000)]);
    // Renewed when due it would be asked for three times in the hour, as late as can be twice.
    history.tokens.push(Token {
        issued: 2_500_000,
        ends: 4_500_000,
        own_latest: 3_500_000,
        latest: 3_500_000,
        ..token(1, 0)
    });
    let with_limit = |limit| judged(&history, &down(2300, 3100), Terms { limit, ..TERMS });
    assert_eq!(with_limit(3), Loss::Excused(Excuse::Foresight));
    assert_eq!(with_limit(4), Loss::Excused(Excuse::Kept));
    assert_eq!(with_limit(5), Loss::Missed);
}

#[test]
fn of_two_where_one_could_be_kept_the_second_that_is_lost_was_missed() {
    let mut history = with(vec![failed(0, 3000), failed(1, 3000)]);
    history.tokens.push(token(1, -150));
    let three = Terms { limit: 3, ..TERMS };
    let judged = |history: &History| judged(history, &down(2300, 3100), three);
    assert_eq!(judged(&history), Loss::Excused(Excuse::NoRoom));
    history.tokens[1].lost = true;
    history.tokens[1].until = history.tokens[1].ends;
    assert_eq!(judged(&history), Loss::Missed);
}

#[test]
fn what_a_deleted_credential_leaves_could_have_kept_another() {
    let mut history = with(vec![failed(2, 400), failed(0, 3000)]);
    history.tokens.push(token(1, 700));
    let three = Terms { limit: 3, ..TERMS };
    let judged = |history: &History| judged(history, &down(2300, 3100), three);
    assert_eq!(judged(&history), Loss::Excused(Excuse::Kept));
    history.tokens[1].until = 3_300_000;
    assert_eq!(judged(&history), Loss::Missed);
    // Too late to be noticed.
    history.tokens[1].until = 3_580_000;
    assert_eq!(judged(&history), Loss::Excused(Excuse::Kept));
}
