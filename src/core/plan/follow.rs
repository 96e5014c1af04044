//! What to do about a credential that follows another: the same checks, and no mint. Its token is in that one's Secrets.

use crate::api::Reason;
use crate::core::journal::{ActiveToken, MintReason};
use crate::core::schedule::renew_at;
use crate::core::seal::Seal;
use crate::core::{Problem, Time, clock};

use super::checks::{Blocked, conflict, invalid, not_permitted, suspended, unprepared, unusable};
use super::cleanup::{deletes, is_held};
use super::{
    Action, Content, CredentialState, LEFTOVER_POLL, Observed, Plan, SecretState, Source, Verdict, is_intact, lapsed,
    length_text, stalls, undecidable,
};

/// Decides. The live token of `o` is what it holds of another's; `source` is that one, as far as this one may know it. The
/// plan's demand is for a copy.
#[must_use]
pub fn follow(o: &Observed, source: Option<&Source>, now: Time) -> Plan {
    if let Some(plan) = undecidable(o, now) {
        return plan;
    }
    let mut plan = Plan::default();
    let token = source.and_then(|s| s.live.as_ref()).filter(|l| l.ends_at > now);
    let live = held(o, source, now, &mut plan);
    let state = state(o, source, live, token);
    let blocked = invalid(o)
        .or_else(|| not_permitted(o))
        .or_else(|| suspended(o))
        .or_else(|| unusable(o, &state, now))
        .or_else(|| conflict(o, now))
        .or_else(|| nothing_to_follow(source, &state, token))
        .or_else(|| unprepared(o, &state, now));
    if blocked.is_none() {
        plan.demand = state.need;
    }
    if plan.demand.is_none() {
        plan.actions.extend(altered(o, live, now));
    }
    if let Some(at) = blocked.as_ref().and_then(|blocked| blocked.until) {
        plan.wake_at(at);
    }
    let unready = blocked.as_ref().filter(|_| !state.ready());
    let stalls = unready.and_then(|x| stalls(o, x, now));
    if let Some(at) = stalls.filter(|at| *at > now) {
        plan.wake_at(at);
    }
    let rested = live.filter(|_| state.ready());
    plan.verdict = match (blocked, rested, source) {
        // Nothing is to be done, and the token is good: trouble elsewhere is no news.
        (Some(x), Some(live), Some(source)) if state.need.is_none() && x.problem.reason != Reason::Suspended => {
            Some(good(live, source, now))
        }
        (Some(x), ..) => Some(Verdict {
            // Whoever is idle has all that it is to have.
            ready: state.ready() || x.problem.reason == Reason::Idle,
            issued: state.intact,
            stalled: stalls.is_some_and(|at| at <= now),
            reason: lapsed(o, &state, x.problem.reason),
            message: x.problem.message,
            next_attempt: None,
        }),
        (None, Some(live), Some(source)) if state.need.is_none() => Some(good(live, source, now)),
        _ => None,
    };
    plan
}

/// Collects what must go, or be restored, whatever else is decided; returns what is held after that.
fn held<'a>(o: &'a Observed, source: Option<&Source>, now: Time, plan: &mut Plan) -> Option<&'a ActiveToken> {
    let live = o.record.as_ref().and_then(|r| r.live.as_ref());
    let mut let_go = |reason| {
        plan.actions.extend(deletes(o, |_| true));
        plan.actions.extend(live.map(|_| Action::Release { reason }));
    };
    if let Err(problem) = &o.permitted {
        let_go(problem.reason);
        return None;
    }
    let Some(live) = live else {
        // Of a journal that was lost, what was written stays until it is written anew.
        let stays = |name: &str, state: &SecretState| {
            let desired = o.desired.as_ref().ok().map(|d| &d.secrets);
            let wanted = desired.is_none_or(|secrets| secrets.iter().any(|s| s.name == name));
            let valid = matches!(state, SecretState::Ours { seal: Some(seal), .. } if seal.live.ends_at > now);
            o.record.is_none() && !is_over(source) && wanted && valid
        };
        let ours = |state: &SecretState| matches!(state, SecretState::Ours { .. }) || is_held(state);
        let stale = o
            .secrets
            .iter()
            .filter(|(name, state)| ours(state) && !stays(name, state));
        plan.actions
            .extend(stale.map(|(name, _)| Action::Delete { secret: name.clone() }));
        return None;
    };
    let followed = source.is_some_and(|s| live.source.as_ref().is_some_and(|name| **name == *s.name.to_string()));
    if live.ends_at <= now || followed && is_over(source) {
        let idle = live.ends_at > now && source.is_some_and(|source| source.on_demand);
        let_go(if idle { Reason::Idle } else { Reason::Expired });
        return None;
    }
    for (name, state) in &o.secrets {
        let written = live.secrets.contains_key(name);
        match state {
            SecretState::Ours { seal: Some(seal), .. } if is_later(seal, live, now) => {
                // It is made once more.
                plan.wake_at(now + LEFTOVER_POLL);
            }
            SecretState::Ours { .. } if !written => plan.actions.push(Action::Delete { secret: name.clone() }),
            SecretState::Ours {
                content,
                metadata_matches,
                ..
            } if *content == Content::Extra || *content == Content::Intact && !metadata_matches => {
                plan.actions.push(Action::Restore { secret: name.clone() });
            }
            state if is_held(state) && !written => plan.actions.push(Action::Delete { secret: name.clone() }),
            _ => {}
        }
    }
    plan.wake_at(live.ends_at);
    Some(live)
}

/// The journal knows that it let go of its last token: whatever it was, nobody is to hold it any more.
fn is_over(source: Option<&Source>) -> bool {
    source.is_some_and(|source| source.known && source.live.is_none())
}

/// What somebody changed and what is not written over now.
fn altered<'a>(o: &'a Observed, live: Option<&'a ActiveToken>, now: Time) -> impl Iterator<Item = Action> + 'a {
    let changed = move |live: &ActiveToken, state: &SecretState| match state {
        SecretState::Ours {
            content: Content::Altered,
            seal,
            ..
        } => !seal.as_ref().is_some_and(|seal| is_later(seal, live, now)),
        _ => false,
    };
    let all = o
        .secrets
        .iter()
        .filter(move |(name, state)| live.is_some_and(|live| live.secrets.contains_key(*name) && changed(live, state)));
    all.map(|(name, _)| Action::Delete { secret: name.clone() })
}

/// A copy that was made and not recorded.
fn is_later(seal: &Seal, live: &ActiveToken, now: Time) -> bool {
    seal.live.issued_at > live.issued_at && seal.live.ends_at > now
}

fn state<'a>(
    o: &Observed,
    source: Option<&Source>,
    live: Option<&'a ActiveToken>,
    token: Option<&ActiveToken>,
) -> CredentialState<'a> {
    let intact = live.is_some_and(|l| is_intact(o, l));
    let desired = o.desired.as_ref().ok();
    let current = live.zip(desired).zip(source).is_some_and(|((live, desired), source)| {
        live.digest.layout == desired.digest.layout
            && live
                .source
                .as_ref()
                .is_some_and(|name| **name == *source.name.to_string())
    });
    let need = token.and_then(|token| match live {
        None => Some(MintReason::First),
        Some(live) if live.claim != token.claim => Some(MintReason::Renewal),
        Some(_) if !current => Some(MintReason::Change),
        Some(_) if !intact => Some(MintReason::Heal),
        Some(_) => None,
    });
    CredentialState {
        live,
        intact,
        current,
        need,
    }
}

/// There is no token, or none that can be had.
fn nothing_to_follow(
    source: Option<&Source>,
    state: &CredentialState<'_>,
    token: Option<&ActiveToken>,
) -> Option<Blocked> {
    let source = source?;
    let waits = |message| Some(Blocked::new(Problem::new(Reason::Issuing, message)));
    if token.is_none() && source.on_demand {
        return Some(Blocked::new(Problem::new(
            Reason::Idle,
            format!(
                "EphemeralCredential {} has no token while nobody uses it; it asks for one as soon as a Pod uses a Secret of it, \
                 or of this one",
                source.name
            ),
        )));
    }
    if token.is_none() {
        return waits(format!(
            "EphemeralCredential {} has no token now; this one is given the next",
            source.name
        ));
    }
    if state.need.is_some() && !source.legible {
        return waits(format!(
            "the Secrets of EphemeralCredential {} do not hold its outputs as they came; this one is given the next token, once \
             one of them has the preset outputs",
            source.name
        ));
    }
    None
}

fn good(live: &ActiveToken, source: &Source, now: Time) -> Verdict {
    let renews = renew_at(live.issued_at, live.ends_at, source.renew_before, &source.uid);
    let newest = source.live.as_ref().is_none_or(|token| token.claim == live.claim);
    let next = if newest && renews > now {
        format!(
            " and renewed at {}; a job starting until then has at least {}",
            clock(renews, live.issued_at),
            length_text(live.ends_at - renews)
        )
    } else {
        "; this credential is given the next token, too".to_owned()
    };
    Verdict {
        ready: true,
        issued: true,
        stalled: false,
        reason: if live.revision > 1 {
            Reason::Rotated
        } else {
            Reason::Issued
        },
        message: format!(
            "revision {} of EphemeralCredential {} is valid until {}{next}",
            live.revision,
            source.name,
            clock(live.ends_at, live.issued_at),
        ),
        next_attempt: None,
    }
}
