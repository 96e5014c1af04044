//! Owed revocations: a durable list, kept until each is done, whatever becomes of its credential.

use std::sync::Arc;

use super::entries::PendingRevocation;
use super::{ActiveToken, Claim, Journal, LetGo, Revocation, RevokedBy};
use crate::api::Reason;
use crate::core::Time;
use crate::core::spec::Asked;

impl Journal {
    /// Owes the revocation of tokens that nobody will hold.
    pub fn revoke_unpublished(&mut self, uid: &str, claim: &Claim, token_ids: &[String], now: Time) {
        // Recorded after all: by an earlier try of the same commit, or by a successor that adopted it.
        if self.live_of(uid).is_some_and(|l| l.claim == claim.id) {
            return;
        }
        self.enqueue_revocation(&claim.pending_revocation(uid, token_ids), now, Reason::SecretRefused);
    }

    /// A revocation is done, or can never be: it is not owed any more. Returns what it was.
    pub fn revoked(&mut self, uid: &str, token_id: &str) -> Option<Arc<Revocation>> {
        self.revocations.remove(&(uid.into(), token_id.into()))
    }

    /// Notes that a revocation cannot be done for now. True the first time.
    pub fn told_of(&mut self, uid: &str, token_id: &str) -> bool {
        let owed = self.revocations.get_mut(&(uid.into(), token_id.into()));
        owed.is_some_and(|owed| !std::mem::replace(&mut Arc::make_mut(owed).told, true))
    }

    /// The token in another scope took over: what this one holds lives to its end unrenewed, and once
    /// that is revoked nothing remains here. True where nothing does already.
    pub fn supersede(&mut self, uid: &str) -> bool {
        if let Some(end) = self.live_of(uid).map(|l| l.ends_at) {
            self.release(uid, end, Reason::Rotated);
        }
        if self.pending(uid).is_some() {
            return false;
        }
        self.mark_gone(uid);
        self.prune(uid)
    }

    fn mark_gone(&mut self, uid: &str) {
        if self
            .credentials
            .get(uid)
            .is_some_and(|r| !r.gone || r.failure.is_some())
        {
            self.edit(uid, |record| {
                record.gone = true;
                record.failure = None;
            });
        }
    }

    /// Forgets a deleted credential that owes nothing. True where nothing of it remains.
    pub fn prune(&mut self, uid: &str) -> bool {
        let Some(record) = self.credentials.get(uid) else {
            return true;
        };
        let done = record.gone && self.owed_of(uid).next().is_none();
        if done {
            self.credentials.remove(uid);
        }
        done
    }

    /// Forgets the live token of `uid` and owes its revocation from `due` on; `why` is what its audit event will say.
    pub fn release(&mut self, uid: &str, due: Time, why: Reason) -> Option<ActiveToken> {
        self.live_of(uid)?;
        let live = self.edit(uid, |record| record.live.take())??;
        self.enqueue_revocation(&live.pending_revocation(uid), due, why);
        Some(live)
    }

    /// Lets go of the live token of `uid`, which nobody needs any longer: it is revoked at once, with all older ones; where
    /// somebody still has what was `read` of it, it lives to its end.
    pub fn let_go(&mut self, uid: &str, read: bool, now: Time) {
        let Some(live) = self.live_of(uid) else { return };
        let (issued_at, ends_at) = (live.issued_at, live.ends_at);
        if read {
            self.release(uid, ends_at, Reason::Idle);
        } else {
            self.revoke_all(uid, now, Reason::Idle);
        }
        self.edit(uid, |record| {
            record.let_go = Some(Box::new(LetGo {
                at: now,
                issued_at,
                ends_at,
            }));
        });
    }

    /// Revokes all tokens of `uid` at once, older ones that still had their time too.
    pub fn revoke_all(&mut self, uid: &str, now: Time, why: Reason) {
        self.release(uid, now, why);
        let later: Vec<Arc<str>> = self
            .owed_of(uid)
            .filter(|owed| owed.due > now)
            .map(|owed| owed.token_id.as_str().into())
            .collect();
        for id in later {
            if let Some(owed) = self.revocations.get_mut(&(uid.into(), id)) {
                let owed = Arc::make_mut(owed);
                (owed.due, owed.why) = (now, why);
            }
        }
    }

    /// Revokes all tokens of `uid` at once because somebody asked for that, and notes by what. False where that is done.
    pub fn revoke_as_asked(&mut self, uid: &str, (namespace, name): (&str, &str), asked: Asked, now: Time) -> bool {
        if self
            .credentials
            .get(uid)
            .is_some_and(|record| record.heeds(asked.revoke))
        {
            return false;
        }
        let unnamed = self.live_of(uid).filter(|live| live.token_ids.is_empty());
        let outlives = unnamed.map(|live| live.ends_at);
        self.revoke_all(uid, now, Reason::Revoked);
        let record = self.record(uid, namespace, name);
        let before = record.revoked.as_deref().and_then(|by| by.outlives);
        record.failure = None;
        record.revoked = Some(Box::new(RevokedBy {
            revoke: asked.revoke,
            until: Some(asked.rotate),
            outlives: outlives.max(before),
        }));
        true
    }

    /// A credential is deleted; what it holds is revoked at once. True where nothing of it remains.
    pub fn forget(&mut self, uid: &str, now: Time) -> bool {
        self.revoke_all(uid, now, Reason::Deleted);
        self.mark_gone(uid);
        self.prune(uid)
    }

    pub(super) fn enqueue_revocation(&mut self, pending_revocation: &PendingRevocation<'_>, due: Time, why: Reason) {
        for id in pending_revocation.token_ids {
            let key = (pending_revocation.uid.into(), Arc::from(id.as_str()));
            match self.revocations.get_mut(&key) {
                Some(known) if known.due > due => {
                    let known = Arc::make_mut(known);
                    (known.due, known.why) = (due, why);
                }
                Some(_) => {}
                None => {
                    let owed = Revocation {
                        token_id: id.clone(),
                        due,
                        uid: pending_revocation.uid.to_owned(),
                        request: pending_revocation.request.clone(),
                        endpoint: pending_revocation.endpoint.clone(),
                        revision: pending_revocation.revision,
                        why,
                        told: false,
                    };
                    self.revocations.insert(key, Arc::new(owed));
                }
            }
        }
    }
}
