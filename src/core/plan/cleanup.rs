//! What must go or be restored, whatever else is decided.

use crate::api::Reason;
use crate::core::Time;
use crate::core::consumers::Users;
use crate::core::ids::Digest;
use crate::core::journal::ActiveToken;
use crate::core::schedule::latest_safe;

use super::{Action, Content, LEFTOVER_POLL, Observed, Plan, SecretState, is_intact};

/// Collects what must go or be restored whatever else is decided; returns what is live after that.
pub(super) fn cleanup<'a>(o: &'a Observed, now: Time, plan: &mut Plan) -> Option<&'a ActiveToken> {
    let live = o.record.as_ref().and_then(|r| r.live.as_ref());
    if o.permitted.is_err() {
        plan.actions.extend(deletes(o, |_| true));
        if live.is_some() {
            plan.actions.push(Action::Release {
                reason: Reason::NotPermitted,
            });
        }
        return None;
    }
    if live.is_none() && rebuildable(o, now) {
        plan.actions.push(Action::Rebuild);
        return None;
    }
    if is_to_revoke(o) {
        // The journal as it is must be asked first: what this view does not know may have been minted since. Secrets go once
        // that is noted.
        plan.actions.push(Action::Revoke { asked: o.asked });
        return None;
    }
    let Some(live) = live else {
        plan.actions.extend(leftovers(o, now));
        return None;
    };
    let expired = live.ends_at <= now;
    let unneeded = is_unneeded(o, live, now);
    for (name, state) in &o.secrets {
        let written = live.secrets.contains_key(name);
        let SecretState::Ours {
            content,
            metadata_matches,
            seal,
        } = state
        else {
            if is_held(state) && (expired || !written) {
                plan.actions.push(Action::Delete { secret: name.clone() });
            }
            continue;
        };
        // Sealed with a later revision: this view is behind, or a mint was given up halfway. Neither is
        // somebody's edit, and what is still valid is not removed for it.
        if seal
            .as_ref()
            .is_some_and(|s| s.live.revision > live.revision && s.live.ends_at > now)
        {
            plan.wake_at(now + LEFTOVER_POLL);
            continue;
        }
        if expired || !written {
            plan.actions.push(Action::Delete { secret: name.clone() });
        } else if *content == Content::Altered {
            plan.actions.push(Action::DeleteTampered { secret: name.clone() });
        } else if unneeded {
            plan.actions.push(Action::Delete { secret: name.clone() });
        } else if *content == Content::Extra || !metadata_matches {
            plan.actions.push(Action::Restore { secret: name.clone() });
        }
    }
    if expired {
        plan.actions.push(Action::Release {
            reason: Reason::Expired,
        });
        return None;
    }
    if unneeded {
        plan.actions.push(Action::Release { reason: Reason::Idle });
        return None;
    }
    plan.wake_at(live.ends_at);
    Some(live)
}

/// What there is without a token: what may belong to one that this view does not know yet is asked for first.
fn leftovers(o: &Observed, now: Time) -> impl Iterator<Item = Action> {
    let known = o.record.as_ref().map_or(0, |r| r.revision);
    let later = move |state: &SecretState| match state {
        SecretState::Ours { seal: Some(seal), .. } if seal.live.revision > known && seal.live.ends_at > now => {
            Some(seal.live.claim.clone())
        }
        _ => None,
    };
    let unknown = o.secrets.iter().filter_map(move |(name, state)| {
        Some(Action::DeleteUnknown {
            secret: name.clone(),
            claim: later(state)?,
        })
    });
    deletes(o, move |state| later(state).is_none()).chain(unknown)
}

/// The revoke annotation has a value that nothing was done about: neither was a token minted since, nor are tokens known to
/// have been revoked for it.
fn is_to_revoke(o: &Observed) -> bool {
    let revoke = o.asked.revoke;
    let heeded = o.record.as_ref().is_some_and(|r| r.heeds(revoke));
    revoke != Digest::default() && !heeded
}

/// Nobody needs it longer than it has its runway: whoever comes finds a new one. Nor, where nobody asks for another, if it
/// is not what the spec asks for, or not as it was written.
fn is_unneeded(o: &Observed, live: &ActiveToken, now: Time) -> bool {
    let Users::Pods(uses) = &o.users else { return false };
    if uses.renews() {
        return false;
    }
    let desired = o.desired.as_ref().ok();
    let renew_before = desired.map_or_else(|| live.renew_before(), |desired| desired.renew_before);
    if latest_safe(live.issued_at, live.ends_at, renew_before) <= now {
        return true;
    }
    let last = o.record.as_ref().and_then(|r| r.let_go.as_deref());
    let stale = desired.is_some_and(|desired| {
        !desired.digest.same_content(&live.digest) || desired.digest.rotate != live.digest.rotate
    });
    (stale || !is_intact(o, live)) && !uses.asks(last)
}

/// The removal of those Secrets of ours that `which` picks.
pub(super) fn deletes<'a>(
    o: &'a Observed,
    which: impl Fn(&SecretState) -> bool + 'a,
) -> impl Iterator<Item = Action> + 'a {
    let ours = |state: &SecretState| matches!(state, SecretState::Ours { .. }) || is_held(state);
    let picked = o.secrets.iter().filter(move |(_, state)| ours(state) && which(state));
    picked.map(|(name, _)| Action::Delete { secret: name.clone() })
}

/// It can only be emptied.
pub(super) fn is_held(state: &SecretState) -> bool {
    matches!(state, SecretState::Terminating { held: true })
}

/// The journal was lost: sealed Secrets of one claim, all there and not past their end, say it all.
fn rebuildable(o: &Observed, now: Time) -> bool {
    let Ok(desired) = &o.desired else { return false };
    if o.record.is_some() {
        return false;
    }
    let claims: Vec<Option<&str>> = desired
        .secrets
        .iter()
        .map(|s| match o.secrets.get(&s.name) {
            Some(SecretState::Ours { seal: Some(seal), .. })
                if seal.live.ends_at > now && seal.live.source.is_none() =>
            {
                Some(seal.live.claim.as_str())
            }
            _ => None,
        })
        .collect();
    claims.first().is_some_and(Option::is_some) && claims.iter().all(|c| *c == claims[0])
}
