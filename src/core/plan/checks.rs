//! Why no mint is made now: small checks, each with its reason, its message and its deadline.

use crate::api::Reason;
use crate::core::consumers::Users;
use crate::core::ids::Digest;
use crate::core::journal::{Failure, MintReason};
use crate::core::{Problem, Time, clock};

use super::{CONFLICT_POLL, Connection, CredentialState, LEFTOVER_POLL, Observed, SecretState};

/// Why no mint is made now.
pub(super) struct Blocked {
    pub(super) problem: Problem,
    pub(super) stalled: bool,
    /// It passes by itself, whatever its reason.
    pub(super) passes: bool,
    pub(super) until: Option<Time>,
    /// It only waits for its turn: the demand stands.
    pub(super) queued: bool,
}

impl Blocked {
    pub(super) fn new(problem: Problem) -> Self {
        Self {
            problem,
            stalled: false,
            passes: false,
            until: None,
            queued: false,
        }
    }
    pub(super) fn stalled(problem: Problem) -> Self {
        Self {
            stalled: true,
            ..Self::new(problem)
        }
    }
    fn passing(mut self) -> Self {
        self.passes = true;
        self
    }
    pub(super) fn until(mut self, at: Time) -> Self {
        self.until = Some(at);
        self
    }
}

pub(super) fn not_permitted(o: &Observed) -> Option<Blocked> {
    o.permitted.as_ref().err().cloned().map(Blocked::new)
}

/// Its tokens were revoked, and no rotation was asked for since.
pub(super) fn revoked(o: &Observed, now: Time) -> Option<Blocked> {
    let revoked = o.record.as_ref()?.revoked.as_deref()?;
    let rotate = o.asked.rotate;
    revoked
        .until
        .filter(|then| *then == rotate || rotate == Digest::default())?;
    let done = match revoked.outlives.filter(|end| *end > now) {
        None => "its tokens are revoked and its Secrets removed".to_owned(),
        Some(end) => format!(
            "its Secrets are removed, but its last tokens cannot be revoked, for ChittyConnect gave no id of them: a copy works \
             until {}",
            clock(end, now)
        ),
    };
    Some(Blocked::stalled(Problem::new(
        Reason::Revoked,
        format!(
            "as the annotation connect.chitty.cc/revoke asks, {done}; nothing is minted until the annotation \
             connect.chitty.cc/rotate has a new value"
        ),
    )))
}

/// It is on demand, and nobody may see for whom.
pub(super) fn unseen(o: &Observed) -> Option<Blocked> {
    match &o.users {
        Users::Unknown(Some(problem)) => Some(Blocked::new(problem.clone())),
        _ => None,
    }
}

pub(super) fn invalid(o: &Observed) -> Option<Blocked> {
    o.desired.as_ref().err().cloned().map(Blocked::new)
}

pub(super) fn suspended(o: &Observed) -> Option<Blocked> {
    o.suspended.then(|| {
        Blocked::new(Problem::new(
            Reason::Suspended,
            "spec.suspend is true: nothing is minted, and a token that is there is not renewed",
        ))
    })
}

pub(super) fn unusable(o: &Observed, credential_state: &CredentialState<'_>, now: Time) -> Option<Blocked> {
    match &o.connection {
        Connection::Ready { .. } => None,
        Connection::Unusable(problem) => Some(Blocked::new(problem.clone())),
        Connection::Unauthorized { probe_at, message } => {
            let mut blocked = Blocked::new(Problem::new(Reason::Unauthorized, message.clone()));
            if *probe_at > now {
                blocked = blocked.until(*probe_at);
            }
            // Whoever needs a token stays in line: one of them will be the probe.
            blocked.queued = credential_state.need.is_some() && failed(o, credential_state, now).is_none();
            Some(blocked)
        }
        Connection::Down { message, .. } => {
            credential_state.need?;
            // What happened to its own request says more.
            if failed(o, credential_state, now).is_some() {
                return None;
            }
            let mut blocked = Blocked::new(Problem::new(Reason::BrokerUnavailable, message.clone()));
            blocked.queued = true;
            Some(blocked)
        }
    }
}

pub(super) fn conflict(o: &Observed, now: Time) -> Option<Blocked> {
    let desired = o.desired.as_ref().ok()?;
    for secret in &desired.secrets {
        match o.secrets.get(&secret.name) {
            Some(SecretState::Foreign) => {
                return Some(
                    Blocked::new(Problem::new(
                        Reason::SecretConflict,
                        format!(
                            "Secret {} exists and is not this credential's; it is left alone: delete it, or name another in spec.secrets",
                            secret.name
                        ),
                    ))
                    .until(now + CONFLICT_POLL),
                );
            }
            Some(SecretState::Terminating { .. }) => {
                return Some(
                    Blocked::new(Problem::new(
                        Reason::SecretConflict,
                        format!(
                            "Secret {} is being deleted, and something holds it: remove its finalizers",
                            secret.name
                        ),
                    ))
                    .until(now + CONFLICT_POLL),
                );
            }
            Some(SecretState::Leftover) => {
                let blocked = Blocked::new(Problem::new(
                    Reason::SecretConflict,
                    format!(
                        "Secret {} still is that of a deleted credential; waiting for it to be collected",
                        secret.name
                    ),
                ));
                return Some(blocked.passing().until(now + LEFTOVER_POLL));
            }
            _ => {}
        }
    }
    None
}

pub(super) fn unprepared(o: &Observed, credential_state: &CredentialState<'_>, now: Time) -> Option<Blocked> {
    credential_state.need?;
    let (problem, until) = o.unprepared.as_ref()?;
    (*until > now).then(|| Blocked::new(problem.clone()).until(*until))
}

pub(super) fn failed(o: &Observed, credential_state: &CredentialState<'_>, now: Time) -> Option<Blocked> {
    credential_state.need?;
    let failure = failure(o)?;
    match failure.retry_at {
        Some(at) if at <= now => None,
        Some(at) => {
            let problem = Problem::new(
                failure.reason,
                format!("{}; asked again at {}", failure.message, clock(at, now)),
            );
            Some(Blocked::new(problem).until(at))
        }
        None => Some(Blocked::stalled(Problem::new(
            failure.reason,
            format!(
                "{}; not asked again by itself: change the spec, or set the annotation connect.chitty.cc/rotate to a new value",
                failure.message
            ),
        ))),
    }
}

/// The failure that is about the current spec.
pub(super) fn failure(o: &Observed) -> Option<&Failure> {
    let desired = o.desired.as_ref().ok()?;
    let failure = o.record.as_ref()?.failure.as_ref()?;
    (failure.digest.request == desired.digest.request
        && failure.digest.layout == desired.digest.layout
        && failure.digest.rotate == desired.digest.rotate)
        .then_some(failure)
}

pub(super) fn healed_already(o: &Observed, credential_state: &CredentialState<'_>, now: Time) -> Option<Blocked> {
    if credential_state.need != Some(MintReason::Heal) {
        return None;
    }
    let (Connection::Ready { window } | Connection::Down { window, .. }) = o.connection else {
        return None;
    };
    let until = o
        .record
        .as_ref()?
        .heals
        .iter()
        .map(|at| *at + window)
        .max()
        .filter(|at| *at > now)?;
    Some(
        Blocked::stalled(Problem::new(
            Reason::Tampered,
            format!(
                "a managed Secret was changed or removed again; healing costs a mint and is done once a window: next at {}. \
                 Find out who changes it",
                clock(until, now)
            ),
        ))
        .until(until),
    )
}

pub(super) fn waits(o: &Observed, credential_state: &CredentialState<'_>, now: Time) -> Option<Blocked> {
    credential_state.need?;
    let waiting = o.waiting.as_ref()?;
    let mut blocked = Blocked::new(Problem::new(waiting.reason, waiting.message.clone()));
    blocked.queued = true;
    blocked.until = waiting.next_slot.filter(|at| *at > now);
    Some(blocked)
}
