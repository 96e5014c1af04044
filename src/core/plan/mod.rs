//! What to do about one credential: an ordered chain of checks on what was observed.
//!
//! The first check that objects decides what a user reads; what must be done whatever the verdict
//! (Secrets past their end, settled claims) is collected on the way.

mod checks;
mod cleanup;
mod facts;
mod follow;
mod stall;
#[cfg(test)]
mod tests;

use chrono::TimeDelta;

use crate::api::Reason;
use crate::core::consumers::Users;
use crate::core::journal::{ActiveToken, Claim, MintReason};
use crate::core::schedule::{latest_safe, renew_at, runway};
use crate::core::{Time, clock};

use checks::{
    Blocked, conflict, failed, healed_already, invalid, not_permitted, revoked, suspended, unprepared, unseen,
    unusable, waits,
};
use cleanup::{cleanup, deletes, is_held};
pub use facts::{Action, Connection, Content, Observed, Plan, SecretState, Source, Verdict};
pub use follow::follow;
use stall::stalls_at;

/// How soon to look again at a Secret that is not ours and that nothing tells us about.
const CONFLICT_POLL: TimeDelta = TimeDelta::seconds(15);
/// How soon to look again for a predecessor's Secret to be collected.
const LEFTOVER_POLL: TimeDelta = TimeDelta::seconds(1);
/// Ends are told in whole seconds: what differs by less is the same.
const A_MOMENT: TimeDelta = TimeDelta::seconds(2);
/// A request that takes longer than this is worth telling about.
const WORTH_TELLING: TimeDelta = TimeDelta::seconds(1);

/// Decides.
#[must_use]
pub fn plan(o: &Observed, now: Time) -> Plan {
    if let Some(plan) = undecidable(o, now) {
        return plan;
    }
    let mut plan = Plan::default();
    if let Some(claim) = &o.claim {
        under_way(o, claim, now, &mut plan);
        return plan;
    }
    let live = cleanup(o, now, &mut plan);
    let credential_state = CredentialState::of(o, live, now);
    if plan
        .actions
        .iter()
        .any(|a| matches!(a, Action::Rebuild | Action::Revoke { .. }))
    {
        return plan;
    }
    if let Some(at) = credential_state.renews(o).filter(|at| *at > now) {
        plan.wake_at(at);
    }
    if o.users == Users::Unknown(None) {
        // A moment: nothing is said that would be something else then.
        return plan;
    }
    let blocked = invalid(o)
        .or_else(|| not_permitted(o))
        .or_else(|| revoked(o, now))
        .or_else(|| unseen(o))
        .or_else(|| suspended(o))
        .or_else(|| unusable(o, &credential_state, now))
        .or_else(|| conflict(o, now))
        .or_else(|| unprepared(o, &credential_state, now))
        .or_else(|| failed(o, &credential_state, now))
        .or_else(|| healed_already(o, &credential_state, now))
        .or_else(|| waits(o, &credential_state, now));
    if blocked.as_ref().is_none_or(|blocked| blocked.queued) {
        plan.demand = credential_state.need;
    }
    if let Some(at) = blocked.as_ref().and_then(|blocked| blocked.until) {
        plan.wake_at(at);
    }
    let stalls = blocked
        .as_ref()
        .filter(|_| !credential_state.ready())
        .and_then(|x| stalls(o, x, now));
    if let Some(at) = stalls.filter(|at| *at > now) {
        plan.wake_at(at);
    }
    let stalled = stalls.is_some_and(|at| at <= now);
    plan.verdict = verdict(o, &credential_state, blocked, stalled);
    plan
}

/// All there is to do about what is going, or of which nothing is known but what Secrets tell themselves.
fn undecidable(o: &Observed, now: Time) -> Option<Plan> {
    let mut plan = Plan::default();
    if o.terminating {
        plan.actions = deletes(o, |_| true).collect();
        return Some(plan);
    }
    if !o.journal_unavailable {
        return None;
    }
    let Connection::Unusable(problem) = &o.connection else {
        return Some(plan);
    };
    // What a Secret's own seal says of its end holds without the journal.
    let end = |state: &SecretState| match state {
        SecretState::Ours { seal: Some(seal), .. } => Some(seal.live.ends_at),
        _ => None,
    };
    plan.actions = deletes(o, |state| end(state).is_some_and(|at| at <= now)).collect();
    for at in o.secrets.values().filter_map(end).filter(|at| *at > now) {
        plan.wake_at(at);
    }
    plan.verdict = Some(Verdict {
        ready: false,
        issued: o.secrets.values().any(|s| matches!(s, SecretState::Ours { .. })),
        stalled: true,
        reason: problem.reason,
        message: problem.message.clone(),
        next_attempt: None,
    });
    plan.wake_at(now + CONFLICT_POLL);
    Some(plan)
}

/// Where a credential stands once Secrets past their end are out of the way.
struct CredentialState<'a> {
    /// The token that is not past its end.
    live: Option<&'a ActiveToken>,
    /// Its Secrets are all as they were written.
    intact: bool,
    /// It is what the current spec asks for.
    current: bool,
    /// Which mint is needed, if any.
    need: Option<MintReason>,
}

impl<'a> CredentialState<'a> {
    fn of(o: &Observed, live: Option<&'a ActiveToken>, now: Time) -> Self {
        let intact = live.is_some_and(|l| is_intact(o, l));
        let Ok(desired) = &o.desired else {
            return Self {
                live,
                intact,
                current: false,
                need: None,
            };
        };
        let current = live
            .is_some_and(|l| l.digest.request == desired.digest.request && l.digest.layout == desired.digest.layout);
        let due = |l: &ActiveToken| renew_at(l.issued_at, l.ends_at, desired.renew_before, &o.uid) <= now;
        let need = match live {
            None => Some(MintReason::First),
            Some(l) if desired.is_served_by(&l.request) && due(l) && o.users.renew() == Some(true) => Some(if o.kept {
                MintReason::Renewal
            } else {
                MintReason::Resume
            }),
            Some(_) if !current => Some(MintReason::Change),
            Some(_) if !intact => Some(MintReason::Heal),
            Some(l) if l.digest.rotate != desired.digest.rotate => Some(MintReason::Rotate),
            Some(_) => None,
        };
        let last = o.record.as_ref().and_then(|r| r.let_go.as_deref());
        Self {
            live,
            intact,
            current,
            need: need.filter(|reason| o.users.ask(*reason, last)),
        }
    }

    /// When the live token is due to be renewed, or to be let go.
    fn renews(&self, o: &Observed) -> Option<Time> {
        let (live, desired) = (self.live?, o.desired.as_ref().ok()?);
        Some(if o.users.renew()? {
            renew_at(live.issued_at, live.ends_at, desired.renew_before, &o.uid)
        } else {
            latest_safe(live.issued_at, live.ends_at, desired.renew_before)
        })
    }

    /// There is no token, and nobody needs one.
    fn rests(&self, o: &Observed) -> bool {
        self.live.is_none() && self.need.is_none() && matches!(o.users, Users::Pods(_)) && o.desired.is_ok()
    }

    /// A valid Secret for the current spec is there.
    fn ready(&self) -> bool {
        self.intact && self.current
    }
}

fn is_intact(o: &Observed, live: &ActiveToken) -> bool {
    live.secrets.keys().all(|name| {
        matches!(
            o.secrets.get(name),
            Some(SecretState::Ours {
                content: Content::Intact | Content::Extra,
                ..
            })
        )
    })
}

/// A claim is open: nothing is begun; it is settled once nobody can be working on it.
fn under_way(o: &Observed, claim: &Claim, now: Time, plan: &mut Plan) {
    // Past its end the old token goes, whatever becomes of the new one.
    if let Some(live) = o.record.as_ref().and_then(|r| r.live.as_ref()) {
        if live.ends_at <= now {
            for name in live.secrets.keys() {
                let goes = match o.secrets.get(name) {
                    Some(SecretState::Ours { seal, .. }) => seal.as_ref().is_none_or(|s| s.live.claim != claim.id),
                    state => state.is_some_and(is_held),
                };
                if goes {
                    plan.actions.push(Action::Delete { secret: name.clone() });
                }
            }
            plan.actions.push(Action::Release {
                reason: Reason::Expired,
            });
        } else {
            plan.wake_at(live.ends_at);
        }
    }
    if !o.working {
        let judge_at = if claim.holder == o.holder {
            claim.at
        } else {
            claim.answered_by() + o.claim_grace
        };
        if judge_at > now {
            plan.wake_at(judge_at);
        } else if !claim.secrets.is_empty() && claim.secrets.iter().all(|name| sealed_by(o, name, &claim.id)) {
            plan.actions.push(Action::Adopt);
        } else {
            plan.actions.push(Action::GiveUp);
        }
        return;
    }
    // The task may be one of an earlier term, which wakes nobody here.
    plan.wake_at(now + TimeDelta::seconds(2));
    let tell_at = claim.at + WORTH_TELLING;
    if tell_at > now && o.held_up.is_none() {
        plan.wake_at(tell_at);
        return;
    }
    let credential_state = CredentialState::of(
        o,
        o.record
            .as_ref()
            .and_then(|r| r.live.as_ref())
            .filter(|l| l.ends_at > now),
        now,
    );
    let (reason, message) = match &o.held_up {
        Some(problem) => (problem.reason, problem.message.clone()),
        None => (
            Reason::Issuing,
            format!("waiting for ChittyConnect's answer since {}", clock(claim.at, now)),
        ),
    };
    plan.verdict = Some(Verdict {
        ready: credential_state.ready(),
        issued: credential_state.intact,
        stalled: false,
        reason,
        message,
        next_attempt: None,
    });
}

fn sealed_by(o: &Observed, name: &str, claim: &str) -> bool {
    matches!(o.secrets.get(name), Some(SecretState::Ours { seal: Some(seal), .. }) if seal.live.claim == claim)
}

/// When `objection` is one that only a change by somebody ends.
fn stalls(o: &Observed, blocked: &Blocked, now: Time) -> Option<Time> {
    if blocked.stalled {
        return Some(now);
    }
    let reason = blocked.problem.reason;
    let since = o
        .told
        .filter(|(told, _)| *told == reason)
        .map_or(now, |(_, since)| since);
    stalls_at(reason, since).filter(|_| !blocked.passes)
}

fn verdict(
    o: &Observed,
    credential_state: &CredentialState<'_>,
    blocked: Option<Blocked>,
    stalled: bool,
) -> Option<Verdict> {
    let next_attempt = blocked.as_ref().and_then(|x| x.until);
    let rested = credential_state.live.filter(|_| credential_state.ready());
    match blocked {
        Some(x) => {
            // Nothing is due and the token is good: a spent budget or a failure elsewhere is no news.
            if credential_state.need.is_none()
                && let Some(live) = rested
                && !matches!(o.users, Users::Unknown(_))
                && !matches!(
                    x.problem.reason,
                    Reason::Suspended | Reason::Unauthorized | Reason::ConnectionNotFound | Reason::ConnectionNotReady
                )
            {
                return Some(good(o, live));
            }
            let more = rested.and_then(|live| asks_for_more(o, live)).unwrap_or_default();
            Some(Verdict {
                ready: credential_state.ready(),
                issued: credential_state.intact,
                stalled,
                reason: lapsed(o, credential_state, x.problem.reason),
                message: format!("{}{more}", x.problem.message),
                next_attempt,
            })
        }
        // It is about to be minted; the outcome will be told.
        None if credential_state.need.is_some() => None,
        None if credential_state.rests(o) => Some(Verdict {
            ready: true,
            issued: false,
            stalled: false,
            reason: Reason::Idle,
            message:
                "on demand, and no Pod waits for it: there is a token as soon as a Pod that uses it is bound to a node"
                    .to_owned(),
            next_attempt: None,
        }),
        None => rested.map(|live| good(o, live)),
    }
}

/// A token that ran out unrenewed says so, unless a sharper reason is known.
fn lapsed(o: &Observed, credential_state: &CredentialState<'_>, reason: Reason) -> Reason {
    let expired = o.record.as_ref().is_some_and(|r| r.expired || r.live.is_some()) && credential_state.live.is_none();
    if expired && reason == Reason::Suspended {
        Reason::Expired
    } else {
        reason
    }
}

/// What is told of a token that is not renewed.
fn unrenewed(o: &Observed, live: &ActiveToken, used: bool) -> Verdict {
    let renew_before = o.desired.as_ref().ok().and_then(|w| w.renew_before);
    let until = clock(latest_safe(live.issued_at, live.ends_at, renew_before), live.issued_at);
    let why = if used {
        "it is not renewed, for no Pod reads it by a volume"
    } else {
        "no Pod uses it"
    };
    Verdict {
        ready: true,
        issued: true,
        stalled: false,
        reason: if used { reason_of(live) } else { Reason::Idle },
        message: format!(
            "revision {} is valid until {}; {why}: Pods find it until {until}, then its Secrets are removed",
            live.revision,
            clock(live.ends_at, live.issued_at),
        ),
        next_attempt: None,
    }
}

const fn reason_of(live: &ActiveToken) -> Reason {
    if live.revision > 1 {
        Reason::Rotated
    } else {
        Reason::Issued
    }
}

/// What is told of a token stays the same while it lives, whatever day it is read on: to tell it is a write.
fn good(o: &Observed, live: &ActiveToken) -> Verdict {
    if let Users::Pods(uses) = &o.users
        && !uses.renews()
    {
        return unrenewed(o, live, uses.pods > 0);
    }
    let renew = o.desired.as_ref().ok().and_then(|w| w.renew_before);
    let renews = renew_at(live.issued_at, live.ends_at, renew, &o.uid);
    Verdict {
        ready: true,
        issued: true,
        stalled: false,
        reason: reason_of(live),
        message: format!(
            "revision {} is valid until {} and renewed at {}; a job starting until then has at least {}{}",
            live.revision,
            clock(live.ends_at, live.issued_at),
            clock(renews, live.issued_at),
            length_text(live.ends_at - renews),
            asks_for_more(o, live).unwrap_or_default(),
        ),
        next_attempt: None,
    }
}

/// What is told where the spec asks for more mints than the live token was admitted with.
fn asks_for_more(o: &Observed, live: &ActiveToken) -> Option<String> {
    let desired = o.desired.as_ref().ok()?;
    let lifetime = live.ends_at - live.issued_at;
    let asked = desired.max_lifetime.map_or(lifetime, |max| max.min(lifetime));
    let before = lifetime - runway(lifetime, live.renew_before());
    let after = asked - runway(asked, desired.renew_before);
    (after + A_MOMENT < before).then(|| {
        format!(
            "; spec.rotation asks for a mint every {} instead of every {}: that begins with the first renewal for which \
             the budget has room, and until then the old pace goes on",
            length_text(after),
            length_text(before),
        )
    })
}

fn length_text(length: TimeDelta) -> String {
    if length < TimeDelta::minutes(2) {
        format!("{} s", length.num_seconds())
    } else {
        format!("{} min", length.num_minutes())
    }
}
