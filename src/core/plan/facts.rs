//! What a plan is made from, and what it is made of.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use crate::api::Reason;
use crate::core::budget::Waiting;
use crate::core::consumers::Users;
use crate::core::ids::ObjectName;
use crate::core::journal::{ActiveToken, Claim, MintReason, Record};
use crate::core::seal::Seal;
use crate::core::spec::{Asked, Desired};
use crate::core::{Problem, Time};

/// All that a decision about one credential depends on.
#[expect(clippy::struct_excessive_bools, reason = "facts, independent of each other")]
#[derive(Clone, Debug)]
pub struct Observed {
    /// Its uid.
    pub uid: String,
    /// It, or its namespace, is being deleted.
    pub terminating: bool,
    /// `spec.suspend`.
    pub suspended: bool,
    /// What the spec asks for.
    pub desired: Result<Desired, Problem>,
    /// What annotations ask for.
    pub asked: Asked,
    /// Who uses its tokens.
    pub users: Users,
    /// The budget keeps the renewals of its live token.
    pub kept: bool,
    /// What its connection allows.
    pub permitted: Result<(), Problem>,
    /// How its connection is.
    pub connection: Connection,
    /// Every Secret that the spec or the journal names, or that the credential owns.
    pub secrets: BTreeMap<String, SecretState>,
    /// What the journal knows.
    pub record: Option<Record>,
    /// A request that is, or may be, under way.
    pub claim: Option<Claim>,
    /// A task of this process works on that claim.
    pub working: bool,
    /// What holds the publication of that claim's token up.
    pub held_up: Option<Problem>,
    /// The journal cannot be read: nothing is known, and so nothing is done.
    pub journal_unavailable: bool,
    /// What it was last told to wait for, and since when it waits for that.
    pub told: Option<(Reason, Time)>,
    /// This process's identity, as claims name it.
    pub holder: String,
    /// How long past its timeout a claim of another process is left alone.
    pub claim_grace: TimeDelta,
    /// What the budget said last.
    pub waiting: Option<Waiting>,
    /// Why the last attempt to prepare a mint was given up, and when to try again.
    pub unprepared: Option<(Problem, Time)>,
}

/// How a connection is.
#[derive(Clone, Debug, PartialEq)]
pub enum Connection {
    /// Ready to mint.
    Ready {
        /// The longest window of its budget.
        window: TimeDelta,
    },
    /// Not there, or not usable; why. Looked at again when it changes.
    Unusable(Problem),
    /// Nothing is answered there; whoever needs a token stays in line for when there is.
    Down {
        /// The longest window of its budget.
        window: TimeDelta,
        /// For a person.
        message: String,
    },
    /// The key was refused; one request may test it again at this time.
    Unauthorized {
        /// When.
        probe_at: Time,
        /// For a person.
        message: String,
    },
}

/// A credential that is followed, as whoever follows it may know it.
#[derive(Clone, Debug)]
pub struct Source {
    /// What it is called.
    pub name: ObjectName,
    /// Its uid.
    pub uid: String,
    /// Its token.
    pub live: Option<ActiveToken>,
    /// The journal knows of it: where it has no token then, it let go of the last.
    pub known: bool,
    /// Its Secrets, as they were written, hold its outputs as they came.
    pub legible: bool,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
    /// It has a token only while Pods use it, those of whoever follows among them.
    pub on_demand: bool,
}

/// A Secret as it is.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretState {
    /// Not there.
    Absent,
    /// Somebody else's.
    Foreign,
    /// That of a deleted credential of the same name; garbage collection will take it.
    Leftover,
    /// Ours, and being deleted: something holds it (a finalizer), and it can neither be used nor removed.
    Terminating {
        /// Its values are still in it.
        held: bool,
    },
    /// Ours.
    Ours {
        /// The seal, where it is valid, its fingerprint fits the data, and it is not that of the live token, which the
        /// journal knows as well.
        seal: Option<Box<Seal>>,
        /// Its data, against what the journal says was written.
        content: Content,
        /// Labels, annotations and owner are as we set them.
        metadata_matches: bool,
    },
}

/// The data of a Secret, against what the journal says was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Exactly that.
    Intact,
    /// That, and more keys.
    Extra,
    /// Not that.
    Altered,
}

/// Something to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Delete a Secret of ours.
    Delete {
        /// Its name.
        secret: String,
    },
    /// Delete a Secret of ours whose token this view of the journal does not know. Either its mint was given
    /// up, or the view is behind and the token is live by now: the journal as it is must be asked first.
    DeleteUnknown {
        /// Its name.
        secret: String,
        /// The claim that it is sealed with.
        claim: String,
    },
    /// Delete a Secret that somebody changed, and say so.
    DeleteTampered {
        /// Its name.
        secret: String,
    },
    /// Restore labels, annotations and owner; remove keys that are not ours. Values stay.
    Restore {
        /// Its name.
        secret: String,
    },
    /// The live token is no more: forget it, owe its revocation.
    Release {
        /// `Expired`, `NotPermitted`, or `Idle`: nobody needs it any longer.
        reason: Reason,
    },
    /// Revoke all its tokens, and note what that was asked by: nothing is minted until a rotation is asked for anew.
    Revoke {
        /// What the annotations ask for.
        asked: Asked,
    },
    /// The claim's Secrets were all written: record that.
    Adopt,
    /// Nobody knows what became of the claim: record that.
    GiveUp,
    /// The journal knows nothing of a token that is in sealed Secrets: take it from them.
    Rebuild,
}

/// What a user should read.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// A valid Secret for the current spec is there.
    pub ready: bool,
    /// A valid Secret is there.
    pub issued: bool,
    /// Nothing will happen until somebody changes something.
    pub stalled: bool,
    /// Why.
    pub reason: Reason,
    /// For a person.
    pub message: String,
    /// When `ChittyConnect` is asked next.
    pub next_attempt: Option<Time>,
}

/// What to do about one credential.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To do now, in order.
    pub actions: Vec<Action>,
    /// A mint is wanted: the budget decides when. Of one that follows: its Secrets are to be written.
    pub demand: Option<MintReason>,
    /// What to tell; nothing where it would change again at once.
    pub verdict: Option<Verdict>,
    /// When to look again.
    pub wake: Option<Time>,
}

impl Plan {
    pub(super) fn wake_at(&mut self, at: Time) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}
