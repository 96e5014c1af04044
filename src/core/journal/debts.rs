//! Owed revocations: a durable list, kept until each is done, whatever becomes of its credential.

use std::collections::BTreeSet;

use super::entries::Debt;
use super::{Claim, Journal, Live, Revocation};
use crate::core::Time;

impl Journal {
    /// Owes the revocation of tokens that nobody will hold.
    pub fn disown(&mut self, uid: &str, claim: &Claim, token_ids: &[String], now: Time) {
        // Recorded after all: by an earlier try of the same commit, or by a successor that adopted it.
        if self
            .credentials
            .get(uid)
            .and_then(|r| r.live.as_ref())
            .is_some_and(|l| l.claim == claim.id)
        {
            return;
        }
        self.owe(&claim.debt(uid, token_ids), now);
    }

    /// A revocation is done, or can never be: it is not owed any more, and a deleted credential that
    /// owes nothing is forgotten. Returns what it was.
    pub fn revoked(&mut self, token_id: &str) -> Option<Revocation> {
        let index = self.revocations.iter().position(|r| r.token_id == token_id)?;
        Some(self.revocations.swap_remove(index))
    }

    /// The token in another scope took over: what this one holds lives to its end unrenewed, and once
    /// that is revoked nothing remains here. True where nothing does already.
    pub fn supersede(&mut self, uid: &str) -> bool {
        let end = self
            .credentials
            .get(uid)
            .and_then(|r| r.live.as_ref())
            .map(|l| l.ends_at);
        if let Some(end) = end {
            self.release(uid, end);
        }
        if self.claims.contains_key(uid) {
            return false;
        }
        if let Some(record) = self.credentials.get_mut(uid) {
            record.gone = true;
            record.failure = None;
        }
        self.bury();
        !self.credentials.contains_key(uid)
    }

    /// Forgets deleted credentials that owe nothing; returns their uids.
    pub fn bury(&mut self) -> Vec<String> {
        let owing: BTreeSet<&str> = self.revocations.iter().map(|r| r.uid.as_str()).collect();
        let done: Vec<String> = self
            .credentials
            .iter()
            .filter(|(uid, r)| r.gone && !owing.contains(uid.as_str()))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in &done {
            self.credentials.remove(uid);
        }
        done
    }

    /// Forgets the live token of `uid` and owes its revocation from `due` on.
    pub fn release(&mut self, uid: &str, due: Time) -> Option<Live> {
        let live = self.credentials.get_mut(uid)?.live.take()?;
        self.owe(&live.debt(uid), due);
        Some(live)
    }

    /// Revokes all tokens of `uid` at once, older ones that still had their time too.
    pub fn revoke_all(&mut self, uid: &str, now: Time) {
        self.release(uid, now);
        for owed in self.revocations.iter_mut().filter(|r| r.uid == uid) {
            owed.due = owed.due.min(now);
        }
    }

    /// A credential is deleted; what it holds is revoked at once, and once that is done it is forgotten.
    pub fn forget(&mut self, uid: &str, now: Time) {
        self.revoke_all(uid, now);
        if let Some(record) = self.credentials.get_mut(uid) {
            record.gone = true;
            record.failure = None;
        }
        self.bury();
    }

    pub(super) fn owe(&mut self, debt: &Debt<'_>, due: Time) {
        for id in debt.token_ids {
            match self.revocations.iter_mut().find(|r| r.token_id == *id) {
                Some(known) => known.due = known.due.min(due),
                None => self.revocations.push(Revocation {
                    token_id: id.clone(),
                    due,
                    uid: debt.uid.to_owned(),
                    request: debt.request.clone(),
                    endpoint: debt.endpoint.clone(),
                    revision: debt.revision,
                    tries: 0,
                    told: false,
                }),
            }
        }
    }
}
