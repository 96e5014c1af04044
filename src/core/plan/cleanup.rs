//! What must go or be restored, whatever else is decided.

use crate::api::Reason;
use crate::core::Time;
use crate::core::journal::ActiveToken;

use super::{Action, Content, LEFTOVER_POLL, Observed, Plan, SecretState};

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
    let Some(live) = live else {
        if rebuildable(o, now) {
            plan.actions.push(Action::Rebuild);
            return None;
        }
        let known = o.record.as_ref().map_or(0, |r| r.revision);
        let later = |state: &SecretState| match state {
            SecretState::Ours { seal: Some(seal), .. } if seal.live.revision > known && seal.live.ends_at > now => {
                Some(seal.live.claim.clone())
            }
            _ => None,
        };
        plan.actions.extend(deletes(o, |state| later(state).is_none()));
        plan.actions.extend(o.secrets.iter().filter_map(|(name, state)| {
            Some(Action::DeleteUnknown {
                secret: name.clone(),
                claim: later(state)?,
            })
        }));
        return None;
    };
    let expired = live.ends_at <= now;
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
    plan.wake_at(live.ends_at);
    Some(live)
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
