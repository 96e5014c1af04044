//! Credentials that are gone: there are no finalizers, so what the journal knows is compared with
//! what exists.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;

use crate::api::{EphemeralCredential, Reason};
use crate::cluster::journal::JournalError;
use crate::cluster::secrets::Owner;
use crate::cluster::{Error, bounded};
use crate::controller::mint::budget_scheduler::BudgetScheduler;
use crate::controller::state::context::Context;
use crate::core::Time;
use crate::core::audit::{AuditEvent, EventType, Subject};
use crate::core::ids::ObjectName;
use crate::core::journal::{Journal, Record, RequestFacts, Scope};
use crate::core::plan::SecretState;

/// How often everything known is compared with everything there.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

impl Context {
    /// The records of `uid`, in every scope that has one.
    ///
    /// # Errors
    /// Where a journal cannot be read.
    pub async fn records(self: &Arc<Self>, uid: &str) -> Result<Vec<(Scope, Record)>, JournalError> {
        let scopes = self.index.lock().records_of(uid);
        let mut records = Vec::new();
        for owning_scope in scopes {
            let journal = self.scheduler(&owning_scope).journal.view().await?;
            if let Some(record) = journal.credentials.get(uid) {
                records.push((owning_scope, Record::clone(record)));
            }
        }
        Ok(records)
    }

    /// A token was published in `scope`: what other scopes hold of `uid` lives to its end unrenewed.
    pub async fn supersede(self: &Arc<Self>, uid: &str, scope: &Scope) {
        let scopes = self.index.lock().records_of(uid);
        for owning_scope in scopes.into_iter().filter(|h| h != scope) {
            let gone = uid.to_owned();
            let done = self
                .scheduler(&owning_scope)
                .journal
                .commit(move |journal, _| journal.supersede(&gone))
                .await;
            if matches!(done, Ok(true)) {
                self.index.lock().remove_record(uid, &owning_scope);
            }
        }
    }

    /// Permission went: what other scopes still hold or owe for `uid` is revoked at once too.
    pub async fn revoke_elsewhere(self: &Arc<Self>, uid: &str, owning_scope: Option<&Scope>, why: Reason) {
        let scopes = self.index.lock().records_of(uid);
        for other in scopes.into_iter().filter(|h| Some(h) != owning_scope) {
            let gone = uid.to_owned();
            let revoked = self
                .scheduler(&other)
                .journal
                .commit(move |j, now| j.revoke_all(&gone, now, why))
                .await;
            if let Err(error) = revoked {
                tracing::warn!(%error, "failed to bring revocations forward");
            }
        }
    }

    /// Lets go of every credential of that name that is not there any more.
    pub async fn sweep_name(self: &Arc<Self>, name: &ObjectName) {
        let uids = self.index.lock().uids_of(name);
        for uid in uids {
            self.sweep_one(uid.as_str(), name).await;
        }
        if self.caches.credentials.facts(name).is_none() {
            // Whatever else has such a mark in that namespace is found once more.
            let mut unlisted = self.caches.unlisted.lock();
            unlisted.retain(|other| other.namespace != name.namespace);
            drop(unlisted);
            self.caches
                .inspection_cache
                .lock()
                .retain(|uid, _| self.index.lock().has(uid));
        }
    }

    async fn sweep_one(self: &Arc<Self>, uid: &str, name: &ObjectName) {
        // Deleted is deleted, whatever finalizer of somebody's keeps the object.
        let is_there = |of: &ObjectMeta| of.uid.as_deref() == Some(uid) && of.deletion_timestamp.is_none();
        let known = self.caches.credentials.facts(name);
        if known.is_some_and(|facts| facts.uid.as_str() == uid && !facts.leaving) {
            return;
        }
        // The store may be behind: only the API server's own word ends a credential.
        let api: Api<EphemeralCredential> = Api::namespaced(self.cluster.client.clone(), &name.namespace);
        match bounded(api.get_metadata_opt(&name.name)).await {
            Ok(found) if found.as_ref().is_some_and(|c| is_there(&c.metadata)) => return,
            Ok(_) => {}
            // The right to look went with the namespace.
            Err(error) if error.code() == Some(403) && self.cluster.namespace_is_gone(&name.namespace).await => {}
            Err(error) => {
                tracing::debug!(namespace = %name.namespace, name = %name.name, %error, "failed to make sure that a credential is gone");
                return;
            }
        }
        self.dequeue(uid, None);
        self.traces.forget(uid);
        let scopes = self.index.lock().records_of(uid);
        for owning_scope in scopes {
            let scheduler = self.scheduler(&owning_scope);
            if self.working.lock().contains_key(uid) {
                continue;
            }
            self.clear_secrets(&scheduler, uid, name).await;
            let (gone, me, grace) = (uid.to_owned(), self.identity.clone(), self.claim_grace);
            let (deliver, working) = (self.delivers(&owning_scope), Arc::clone(&self.working));
            let committed = scheduler
                .journal
                .commit(move |journal, now| {
                    // What was prepared before the deletion may have been claimed meanwhile.
                    if working.lock().contains_key(&gone) {
                        return Released::Waits;
                    }
                    release(journal, &gone, (&me, grace), deliver, now)
                })
                .await;
            match committed {
                Ok(Released::Waits) => {}
                Ok(Released::Gone(events)) => {
                    self.index.lock().remove_record(uid, &owning_scope);
                    self.unprepared.lock().remove(uid);
                    self.caches.inspection_cache.lock().remove(uid);
                    for event in &events {
                        self.log_event(event);
                    }
                }
                Err(error) => {
                    tracing::warn!(namespace = %name.namespace, name = %name.name, %error, "failed to let go of a deleted credential");
                }
            }
        }
    }

    /// Removes what garbage collection leaves: the Secrets of an orphaned or finalized credential. Nothing
    /// waits for that, least of all its revocations.
    async fn clear_secrets(self: &Arc<Self>, scheduler: &BudgetScheduler, uid: &str, name: &ObjectName) {
        let Ok(journal) = scheduler.journal.view().await else {
            return;
        };
        let live = journal.live_of(uid);
        let claim = journal.pending(uid);
        let record = journal.credentials.get(uid);
        let followed = record.and_then(|r| r.followed.as_deref());
        let held = live.into_iter().chain(followed);
        let mut names: BTreeSet<String> = held.flat_map(|l| l.secrets.keys().cloned()).collect();
        names.extend(claim.iter().flat_map(|c| c.secrets.iter().cloned()));
        let owner = Owner::named(name, uid);
        for secret in names {
            if let Err(error) = self.clear_secret(&owner, &secret).await {
                tracing::warn!(namespace = %name.namespace, %secret, %error, "failed to remove a deleted credential's Secret; it is tried again");
                let (context, owner) = (Arc::clone(self), owner.clone());
                self.spawn("removal of a Secret", async move {
                    while context.clear_secret(&owner, &secret).await.is_err() {
                        tokio::time::sleep(SWEEP_EVERY).await;
                    }
                });
            }
        }
    }

    async fn clear_secret(&self, owner: &Owner, secret: &str) -> Result<(), Error> {
        let mut tries = 3;
        loop {
            let seen = match self.cluster.look(owner, secret, None, None, &self.seal).await {
                Err(error) if error.code() == Some(403) && self.cluster.namespace_is_gone(&owner.namespace).await => {
                    return Ok(());
                }
                seen => seen?,
            };
            if !matches!(
                seen.state,
                SecretState::Ours { .. } | SecretState::Terminating { held: true }
            ) {
                return Ok(());
            }
            tries -= 1;
            match self.cluster.delete_secret(&owner.namespace, secret, seen.guard).await {
                Err(error) if error.is_conflict() && tries > 0 => {}
                done => return done,
            }
        }
    }

    /// Whether a connection that counts in `scope` sends audit events anywhere.
    fn delivers(&self, scope: &Scope) -> bool {
        self.caches.connections.all().iter().any(|r| {
            r.scope(&scope.of).as_ref() == Some(scope) && r.usable.as_ref().is_ok_and(|u| u.chronicle.is_some())
        })
    }

    /// Reads anew what a process that was taken for dead may have written to since.
    async fn read_outlived(self: &Arc<Self>) {
        let now = self.now();
        let scopes: Vec<Scope> = {
            let mut outlived = self.outlived.lock();
            outlived.retain(|_, until| *until > now);
            outlived.keys().cloned().collect()
        };
        for scope in scopes {
            if let Err(error) = self.scheduler(&scope).journal.fresh(|_| ()).await {
                tracing::debug!(scope = scope.title(), %error, "failed to read a journal anew");
            }
        }
    }

    /// Compares everything known with everything there, again and again.
    pub async fn sweep_for_ever(self: Arc<Self>) {
        loop {
            if self.leading() {
                self.read_outlived().await;
                let known = self.index.lock().all();
                for (uid, name) in known {
                    self.sweep_one(uid.as_str(), &name).await;
                }
            }
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    }
}

enum Released {
    Gone(Vec<AuditEvent>),
    /// A request may still be under way.
    Waits,
}

fn release(journal: &mut Journal, uid: &str, (me, grace): (&str, TimeDelta), deliver: bool, now: Time) -> Released {
    if let Some(claim) = journal.pending(uid)
        && claim.holder != me
        && claim.answered_by() + grace > now
    {
        return Released::Waits;
    }
    let lost = journal.give_up(uid, now);
    if let Some(claim) = &lost
        && let Some(minted) = &claim.minted
    {
        journal.revoke_unpublished(uid, claim, &minted.token_ids, now);
    }
    let Some(record) = journal.credentials.get(uid).map(Arc::clone) else {
        return Released::Gone(Vec::new());
    };
    if record.gone {
        journal.revoke_all(uid, now, Reason::Deleted);
        // What is left of it waits for its revocations.
        return if journal.prune(uid) {
            Released::Gone(Vec::new())
        } else {
            Released::Waits
        };
    }
    let event = |kind, reason, request: &RequestFacts, revision| {
        let subject = Subject {
            uid,
            namespace: &record.namespace,
            name: &record.name,
            request,
            revision,
        };
        AuditEvent::new(kind, reason, &subject, now, deliver)
    };
    let lost = lost.map(|claim| match &claim.minted {
        Some(minted) => event(
            EventType::Released,
            Reason::SecretRefused,
            &claim.request,
            claim.revision,
        )
        .token(minted.ends_at, &minted.token_ids),
        None => event(
            EventType::OutcomeUnknown,
            Reason::OutcomeUnknown,
            &claim.request,
            claim.revision,
        ),
    });
    let live = record.live.as_ref().map(|live| {
        event(EventType::Released, Reason::Deleted, &live.request, live.revision).token(live.ends_at, &live.token_ids)
    });
    let events = lost.into_iter().chain(live).collect::<Vec<_>>();
    let events = events.into_iter().map(|e| journal.record_event(uid, e)).collect();
    journal.forget(uid, now);
    Released::Gone(events)
}
