//! One credential at a time: observe -> plan -> act -> record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use kube::ResourceExt;
use kube::runtime::controller::Action as Requeue;
use kube::runtime::reflector::ObjectRef;

use super::context::{Context, Look, Name};
use super::minter::look_for_orphans;
use super::publish::dress;
use crate::api::{EphemeralCredential, Reason};
use crate::cluster::Error;
use crate::cluster::journal::JournalError;
use crate::cluster::secrets::{Owner, Seen, WriteError};
use crate::core::audit::{AuditEvent, EventType, Subject};
use crate::core::budget::Demand;
use crate::core::journal::{Claim, Ending, Failure, Kind, Live, Record, Scope};
use crate::core::plan::{self, Action, Connection, Observed, SecretState};
use crate::core::schedule::{Bounds, Try, retry_at};
use crate::core::seal::{Seal, live_of};
use crate::core::spec::{self, Wanted};
use crate::core::{Problem, Time, access, clock, status};

/// Deadlines are looked at again at least this often: a requeue runs on another clock than the wall's.
const LONGEST: Duration = Duration::from_secs(600);

/// Why a pass over one credential came to nothing; it is repeated.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server.
    #[error("{0}")]
    Api(#[from] Error),
    /// A managed Secret.
    #[error("failed to write a Secret: {0}")]
    Secret(#[from] WriteError),
    /// The journal.
    #[error("{0}")]
    Journal(#[from] JournalError),
}

/// What was observed, and what acting on it needs besides.
struct Scene {
    observed: Observed,
    owner: Owner,
    seen: BTreeMap<String, Seen>,
    /// The scope the current spec counts in.
    scope: Option<Scope>,
    /// The scope with the record that holds the live token or claim.
    home: Option<Scope>,
    window: TimeDelta,
    timeout: TimeDelta,
    deliver: bool,
}

/// Looks at one credential and does what is due.
///
/// # Errors
/// Where it could not be seen through; nothing was minted then.
pub async fn reconcile(credential: Arc<EphemeralCredential>, context: Arc<Context>) -> Result<Requeue, ReconcileError> {
    let name: Name = (credential.namespace().unwrap_or_default(), credential.name_any());
    let outcome = pass(&credential, &context).await;
    context.seen(&name);
    outcome
}

async fn pass(credential: &EphemeralCredential, context: &Arc<Context>) -> Result<Requeue, ReconcileError> {
    if !context.leading() {
        return Ok(Requeue::await_change());
    }
    let Some(scene) = observe(credential, context).await? else {
        return Ok(Requeue::requeue(Duration::from_secs(1)));
    };
    let holds = scene.home == scene.scope && scene.observed.record.as_ref().is_some_and(|r| r.live.is_some());
    if let (Some(home), None, true) = (&scene.home, &scene.observed.claim, holds) {
        // What a crash kept from being superseded is so now.
        context.supersede(&scene.owner.uid, home).await;
    }
    let now = context.now();
    let plan = plan::plan(&scene.observed, now);
    let mut again = false;
    for action in &plan.actions {
        again |= act(context, &scene, action, credential).await?;
    }
    queue(context, &scene, plan.demand, credential);
    if again {
        return Ok(Requeue::requeue(Duration::from_millis(1)));
    }
    if let Some(verdict) = &plan.verdict {
        let wanted = scene.observed.wanted.as_ref().ok();
        let next = status::status(
            verdict,
            scene.observed.record.as_ref(),
            wanted,
            &scene.owner.uid,
            credential.metadata.generation,
            credential.status.as_ref(),
            now,
        );
        if credential.status.as_ref() != Some(&next) {
            match context.cluster.write_status(credential, &next).await {
                Ok(()) => tell_of_change(context, credential, verdict).await,
                // It is gone, or another of that name is there.
                Err(e) if e.is_not_found() || e.is_conflict() => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    let now = context.now();
    let mut wait = plan.wake.map_or(LONGEST, |at| (at - now).to_std().unwrap_or_default());
    if plan.actions.iter().any(|a| matches!(a, Action::Restore { .. })) {
        // A restoration that was put off is due when the rest is over.
        wait = wait.min(Duration::from_secs(30));
    }
    // Due already, and yet nothing was done: not again at once.
    let least = if wait.is_zero() {
        Duration::from_millis(500)
    } else {
        Duration::from_millis(20)
    };
    Ok(Requeue::requeue(wait.clamp(least, LONGEST)))
}

/// An Event for each new objection; outcomes of mints have Events of their own.
async fn tell_of_change(context: &Context, credential: &EphemeralCredential, verdict: &plan::Verdict) {
    use Reason::{
        AuditBacklog, ConnectionNotFound, ConnectionNotReady, InvalidSpec, InvalidTemplate, NotPermitted, RateLimited,
        SecretConflict, SecretRefused, Suspended, Tampered,
    };
    let told = matches!(
        verdict.reason,
        AuditBacklog
            | ConnectionNotFound
            | ConnectionNotReady
            | InvalidSpec
            | InvalidTemplate
            | NotPermitted
            | RateLimited
            | SecretConflict
            | SecretRefused
            | Suspended
            | Tampered
    );
    let before = credential
        .status
        .as_ref()
        .and_then(|s| s.conditions.iter().find(|c| c.type_ == "Ready"))
        .map(|c| c.reason.as_str());
    if told && before != Some(verdict.reason.as_str()) {
        let warning = verdict.reason != Suspended;
        context
            .events
            .publish(credential, warning, verdict.reason, "Plan", &verdict.message)
            .await;
    }
}

async fn observe(credential: &EphemeralCredential, context: &Arc<Context>) -> Result<Option<Scene>, ReconcileError> {
    let owner = Owner {
        namespace: credential.namespace().unwrap_or_default(),
        name: credential.name_any(),
        uid: credential.uid().unwrap_or_default(),
    };
    let Some(namespace) = context.namespaces.get(&ObjectRef::new(&owner.namespace)) else {
        return Ok(None);
    };
    let resolved = context.connections.get(&credential.spec.connection);
    let wanted = spec::wanted(credential, resolved.as_ref().map(|r| r.connection.spec.api));
    let scope = resolved.as_ref().and_then(|r| r.scope(&credential.spec.service));
    if let Some(scope) = &scope {
        // Opened now, so that it is there when a mint is wanted.
        context.runner(scope);
    }
    let permitted = resolved.as_ref().map_or(Ok(()), |r| {
        let empty = BTreeMap::new();
        let labels = namespace.metadata.labels.as_ref().unwrap_or(&empty);
        let rules = &r.connection.spec.access;
        access::allowed(
            rules,
            &context.cluster.namespace,
            &owner.namespace,
            labels,
            &credential.spec,
        )
    });
    let mut connection = connection_state(context, credential, resolved.as_ref());
    let mut blind = false;
    let (home, record, claim) = match known(context, &owner.uid, scope.as_ref()).await {
        Ok(known) => known,
        Err(error @ JournalError::Broken { .. }) => {
            connection = Connection::Unusable(Problem::new(Reason::ConnectionNotReady, error.to_string()));
            blind = true;
            (None, None, None)
        }
        Err(error) => return Err(error.into()),
    };
    let seen = look(context, &owner, wanted.as_ref().ok(), record.as_ref()).await?;
    let working = context.working.lock().get(&owner.uid).cloned();
    let waiting = scope.as_ref().and_then(|s| context.runner(s).verdict(&owner.uid));
    let unprepared = {
        let mut all = context.unprepared.lock();
        // A changed spec deserves another try at once.
        if all
            .get(&owner.uid)
            .is_some_and(|(_, _, g)| g.is_some() && *g != credential.metadata.generation)
        {
            all.remove(&owner.uid);
        }
        all.get(&owner.uid).map(|(problem, until, _)| (problem.clone(), *until))
    };
    let observed = Observed {
        uid: owner.uid.clone(),
        terminating: credential.metadata.deletion_timestamp.is_some()
            || namespace.metadata.deletion_timestamp.is_some(),
        suspended: credential.spec.suspend,
        wanted,
        permitted,
        connection,
        secrets: seen.iter().map(|(name, s)| (name.clone(), s.state.clone())).collect(),
        record,
        claim,
        held_up: working.clone().flatten(),
        working: working.is_some(),
        blind,
        holder: context.identity.clone(),
        waiting,
        unprepared,
    };
    let usable = resolved.as_ref().and_then(|r| r.usable.as_ref().ok());
    Ok(Some(Scene {
        observed,
        owner,
        seen,
        scope,
        home,
        window: resolved.as_ref().map_or(TimeDelta::hours(1), |r| r.limit.window),
        timeout: usable.map_or(TimeDelta::seconds(10), |u| u.timeout),
        deliver: usable.is_some_and(|u| u.chronicle.is_some()),
    }))
}

fn connection_state(
    context: &Context,
    credential: &EphemeralCredential,
    resolved: Option<&super::connections::Resolved>,
) -> Connection {
    let name = &credential.spec.connection;
    let Some(resolved) = resolved else {
        return Connection::Unusable(Problem::new(
            Reason::ConnectionNotFound,
            format!("ChittyConnection {name} does not exist; minting starts as soon as it does"),
        ));
    };
    let usable = match &resolved.usable {
        Ok(usable) => usable,
        Err(problem) => {
            return Connection::Unusable(Problem::new(
                Reason::ConnectionNotReady,
                format!("ChittyConnection {name} cannot be used: {}", problem.message),
            ));
        }
    };
    let probe_at = context.unauthorized.lock().get(&usable.key_digest).copied();
    match probe_at {
        Some(probe_at) => Connection::Unauthorized {
            probe_at,
            message: format!(
                "ChittyConnect refuses the API key of ChittyConnection {name}; nothing is asked until the key changes, \
                 except once at {}",
                clock(probe_at, context.now())
            ),
        },
        None => Connection::Ready {
            window: resolved.limit.window,
        },
    }
}

/// The scope, record and claim that count: those with a claim, else with the newest live token,
/// else those of the current scope.
async fn known(
    context: &Arc<Context>,
    uid: &str,
    scope: Option<&Scope>,
) -> Result<(Option<Scope>, Option<Record>, Option<Claim>), JournalError> {
    let mut homes = context.homes.lock().of(uid);
    if let Some(scope) = scope
        && !homes.contains(scope)
    {
        homes.push(scope.clone());
    }
    let mut best: Option<(Scope, Record, Option<Claim>)> = None;
    for home in homes {
        let journal = context.runner(&home).journal.view().await?;
        let claim = journal.claims.get(uid).cloned();
        let Some(record) = journal.credentials.get(uid).cloned() else {
            continue;
        };
        let rank = |claim: Option<&Claim>, record: &Record, home: &Scope| {
            (
                claim.is_some(),
                record.live.as_ref().map(|l| l.issued_at),
                Some(home) == scope,
            )
        };
        let better = best
            .as_ref()
            .is_none_or(|(h, r, c)| rank(claim.as_ref(), &record, &home) > rank(c.as_ref(), r, h));
        if better {
            best = Some((home, record, claim));
        }
    }
    let Some((home, mut record, claim)) = best else {
        return Ok((scope.cloned(), None, None));
    };
    // Failures count where the current spec does.
    if let Some(scope) = scope.filter(|s| **s != home) {
        let journal = context.runner(scope).journal.view().await?;
        let here = journal.credentials.get(uid);
        record.failure = here.and_then(|r| r.failure.clone());
        record.heals = here.map(|r| r.heals.clone()).unwrap_or_default();
        // A claim's other half: what it will replace is live elsewhere.
        if record.live.is_none() {
            record.live = here.and_then(|r| r.live.clone());
        }
    }
    Ok((Some(home), Some(record), claim))
}

/// Looks at every Secret that matters; again only where it changed since.
async fn look(
    context: &Arc<Context>,
    owner: &Owner,
    wanted: Option<&Wanted>,
    record: Option<&Record>,
) -> Result<BTreeMap<String, Seen>, Error> {
    let live = record.and_then(|r| r.live.as_ref());
    let listed = context.secrets.lock().of(&owner.uid);
    let mut names: Vec<&String> = listed.keys().collect();
    names.extend(wanted.iter().flat_map(|w| w.secrets.iter().map(|s| &s.name)));
    names.extend(live.iter().flat_map(|l| l.secrets.keys()));
    names.sort();
    names.dedup();
    let mut seen = BTreeMap::new();
    let mut looks = context.looked_at.lock().remove(&owner.uid).unwrap_or_default();
    let mut kept = BTreeMap::new();
    for name in names {
        let labels = wanted
            .and_then(|w| w.secrets.iter().find(|s| s.name == *name))
            .map(|s| &s.labels);
        let against = format!("{} {labels:?}", live.map_or("", |l| l.claim.as_str()));
        let look = match looks.remove(name) {
            Some(look) if listed.get(name) == Some(&look.resource_version) && look.against == against => look,
            _ => {
                let seen = context.cluster.look(owner, name, live, labels, &context.seal).await?;
                let version = seen.guard.as_ref().and_then(|g| g.resource_version.clone());
                Look {
                    resource_version: version.unwrap_or_default(),
                    against,
                    seen,
                }
            }
        };
        seen.insert(name.clone(), look.seen.clone());
        kept.insert(name.clone(), look);
    }
    context.looked_at.lock().insert(owner.uid.clone(), kept);
    Ok(seen)
}

fn queue(context: &Arc<Context>, scene: &Scene, demand: Option<Kind>, credential: &EphemeralCredential) {
    let homes = context.homes.lock().of(&scene.owner.uid);
    for other in homes.iter().filter(|s| Some(*s) != scene.scope.as_ref()) {
        context.runner(other).forget(&scene.owner.uid);
    }
    let Some(scope) = &scene.scope else { return };
    let runner = context.runner(scope);
    let (Some(kind), Ok(wanted)) = (demand, &scene.observed.wanted) else {
        runner.forget(&scene.owner.uid);
        return;
    };
    // A credential that never had a token waits since it was created, restarts or not.
    let since = match kind {
        Kind::First => credential
            .creation_timestamp()
            .and_then(|t| chrono::DateTime::from_timestamp(t.0.as_second(), 0))
            .unwrap_or_else(|| context.now()),
        _ => context.now(),
    };
    let demand = Demand {
        uid: scene.owner.uid.clone(),
        namespace: scene.owner.namespace.clone(),
        name: scene.owner.name.clone(),
        kind,
        since,
        renew_before: wanted.renew_before,
        max_lifetime: wanted.max_lifetime,
        pod_waits: false,
    };
    runner.want(demand, &wanted.connection);
}

/// Does one thing; true where the credential should be looked at anew at once.
async fn act(
    context: &Arc<Context>,
    scene: &Scene,
    action: &Action,
    credential: &EphemeralCredential,
) -> Result<bool, ReconcileError> {
    let owner = &scene.owner;
    let guard = |secret: &str| scene.seen.get(secret).and_then(|s| s.guard.clone());
    match action {
        Action::Delete { secret } => {
            context
                .cluster
                .delete_secret(&owner.namespace, secret, guard(secret))
                .await?;
            context.looked_at.lock().remove(&owner.uid);
            Ok(false)
        }
        Action::DeleteTampered { secret } => {
            // Recorded first: a view that is behind is found out by that, and deletes nothing.
            if !record(context, scene, EventType::Tampered, Reason::Tampered, |_, _, _| true).await? {
                return Ok(true);
            }
            context
                .cluster
                .delete_secret(&owner.namespace, secret, guard(secret))
                .await?;
            context.looked_at.lock().remove(&owner.uid);
            let note = format!("Secret {secret} was changed by somebody else; it is removed and made anew");
            context
                .events
                .publish(credential, true, Reason::Tampered, "Heal", &note)
                .await;
            Ok(true)
        }
        Action::Restore { secret } => {
            let at = (owner.namespace.clone(), secret.clone());
            if !context.may_restore(&at) {
                tracing::warn!(namespace = %at.0, secret = %at.1, "somebody undoes what is restored on a managed Secret");
                return Ok(false);
            }
            restore(context, scene, secret).await?;
            context.looked_at.lock().remove(&owner.uid);
            Ok(true)
        }
        Action::Release { reason } => {
            let event = if *reason == Reason::Expired {
                EventType::Expired
            } else {
                EventType::Released
            };
            let (uid, why) = (owner.uid.clone(), *reason);
            let released = record(context, scene, event, *reason, move |journal, _, now| {
                // An expired token has no life left to revoke, but its broker may not agree.
                let released = journal.credentials.get(&uid).is_some_and(|r| r.live.is_some());
                if why == Reason::NotPermitted {
                    journal.revoke_all(&uid, now);
                } else {
                    journal.release(&uid, now);
                }
                if let Some(record) = journal.credentials.get_mut(&uid) {
                    record.expired = why == Reason::Expired;
                }
                released
            })
            .await?;
            if *reason == Reason::NotPermitted {
                context.revoke_elsewhere(&owner.uid, scene.home.as_ref()).await;
            }
            if !released {
                return Ok(false);
            }
            let note = match reason {
                Reason::Expired => "the token reached its end without a successor; its Secrets are removed",
                _ => "the connection does not allow this request any more; its Secrets are removed",
            };
            context.events.publish(credential, true, *reason, "Release", note).await;
            Ok(true)
        }
        Action::Adopt => adopt(context, scene).await,
        Action::GiveUp => give_up(context, scene, credential).await,
        Action::Rebuild => rebuild(context, scene).await,
    }
}

/// Commits `change` with an audit event about the live token, if `change` says that it did something.
async fn record(
    context: &Arc<Context>,
    scene: &Scene,
    event: EventType,
    reason: Reason,
    mut change: impl FnMut(&mut crate::core::journal::Journal, &Live, Time) -> bool + Send + 'static,
) -> Result<bool, ReconcileError> {
    let live = scene.observed.record.as_ref().and_then(|r| r.live.clone());
    let (Some(live), Some(home)) = (live, &scene.home) else {
        return Ok(false);
    };
    let (owner, deliver) = (scene.owner.clone(), scene.deliver);
    let committed = context
        .runner(home)
        .journal
        .commit(move |journal, now| {
            // Another token by now: this was decided on a view that is behind.
            let now_live = journal.credentials.get(&owner.uid).and_then(|r| r.live.as_ref());
            if now_live.is_none_or(|l| l.claim != live.claim) || !change(journal, &live, now) {
                return None;
            }
            let subject = Subject {
                uid: &owner.uid,
                namespace: &owner.namespace,
                name: &owner.name,
                request: &live.request,
                revision: live.revision,
            };
            let event = AuditEvent::new(event, reason, &subject, now, deliver).token(live.ends_at, &live.token_ids);
            Some(journal.record_event(&owner.uid, event))
        })
        .await?;
    if let Some(event) = &committed {
        context.log_event(event);
    }
    Ok(committed.is_some())
}

async fn restore(context: &Arc<Context>, scene: &Scene, secret: &str) -> Result<(), ReconcileError> {
    let live = scene.observed.record.as_ref().and_then(|r| r.live.as_ref());
    let wanted = scene.observed.wanted.as_ref().ok();
    let (Some(live), Some(wanted)) = (live, wanted) else {
        return Ok(());
    };
    let template = wanted.secrets.iter().find(|s| s.name == secret);
    let (Some(template), Some(written)) = (template, live.secrets.get(secret)) else {
        return Ok(());
    };
    let dress = dress(context, &scene.owner, template, live);
    match context
        .cluster
        .restore_secret(&scene.owner, &dress, &written.keys, &context.seal)
        .await
    {
        // Changed since: the next look decides.
        Err(WriteError::Api(e)) if e.is_conflict() => Ok(()),
        other => Ok(other?),
    }
}

fn seals<'a>(scene: &'a Scene, claim: Option<&str>) -> Vec<&'a Seal> {
    scene
        .observed
        .secrets
        .values()
        .filter_map(|state| match state {
            SecretState::Ours { seal: Some(seal), .. } if claim.is_none_or(|c| seal.live.claim == c) => Some(&**seal),
            _ => None,
        })
        .collect()
}

async fn adopt(context: &Arc<Context>, scene: &Scene) -> Result<bool, ReconcileError> {
    let (Some(claim), Some(home)) = (&scene.observed.claim, &scene.home) else {
        return Ok(false);
    };
    let Some(live) = live_of(&seals(scene, Some(&claim.id))) else {
        return Ok(false);
    };
    let (owner, id, deliver) = (scene.owner.clone(), claim.id.clone(), scene.deliver);
    let reason = if live.revision > 1 {
        Reason::Rotated
    } else {
        Reason::Issued
    };
    let event = context
        .runner(home)
        .journal
        .commit(move |journal, now| {
            // The claim's own place in the budget stays where the answer was: it is known to have come.
            if !journal.end(&owner.uid, &id, Ending::Published(Box::new(live.clone())), now) {
                return None;
            }
            let subject = Subject {
                uid: &owner.uid,
                namespace: &owner.namespace,
                name: &owner.name,
                request: &live.request,
                revision: live.revision,
            };
            let kind = if reason == Reason::Issued {
                EventType::Provisioned
            } else {
                EventType::Rotated
            };
            let event = AuditEvent::new(kind, reason, &subject, now, deliver).token(live.ends_at, &live.token_ids);
            Some(journal.record_event(&owner.uid, event))
        })
        .await?;
    if let Some(event) = event {
        tracing::info!(namespace = %scene.owner.namespace, name = %scene.owner.name, "adopted a finished mint");
        context.log_event(&event);
        context.supersede(&scene.owner.uid, home).await;
    }
    Ok(true)
}

async fn give_up(
    context: &Arc<Context>,
    scene: &Scene,
    credential: &EphemeralCredential,
) -> Result<bool, ReconcileError> {
    let (Some(claim), Some(home)) = (&scene.observed.claim, &scene.home) else {
        return Ok(false);
    };
    let (owner, deliver) = (scene.owner.clone(), scene.deliver);
    let message =
        "a request was sent and its answer never came: a token may have been made that nobody holds; it stays counted";
    // Written to some of its Secrets, a token has ids that are known.
    let sealed = seals(scene, Some(&claim.id));
    let written: Vec<String> = sealed.iter().flat_map(|s| s.live.token_ids.clone()).collect();
    let (claim, window, timeout) = (claim.clone(), scene.window, scene.timeout);
    let event = context
        .runner(home)
        .journal
        .commit(move |journal, now| {
            let count = journal.failures_in_a_row(&owner.uid, &claim.request_hash, &claim.rotate);
            let failed = Try {
                reason: Reason::OutcomeUnknown,
                count,
                counted: true,
            };
            let live = journal.credentials.get(&owner.uid).and_then(|r| r.live.as_ref());
            let live = live
                .filter(|l| l.ends_at > now)
                .map(|l| (l.ends_at, l.ends_at - l.issued_at));
            let failure = Failure {
                reason: Reason::OutcomeUnknown,
                message: message.to_owned(),
                at: now,
                count,
                retry_at: retry_at(failed, Bounds { window, timeout, live }, &owner.uid, now),
                request_hash: claim.request_hash.clone(),
                layout_hash: claim.layout_hash.clone(),
                rotate: claim.rotate.clone(),
            };
            if !journal.end(&owner.uid, &claim.id, Ending::Failed { failure, counted: true }, now) {
                return None;
            }
            journal.disown(&owner.uid, &claim, &written, now);
            let subject = Subject {
                uid: &owner.uid,
                namespace: &owner.namespace,
                name: &owner.name,
                request: &claim.request,
                revision: claim.revision,
            };
            let event = AuditEvent::new(
                EventType::OutcomeUnknown,
                Reason::OutcomeUnknown,
                &subject,
                now,
                deliver,
            );
            Some(journal.record_event(&owner.uid, event))
        })
        .await?;
    let usable = context
        .connections
        .get(&credential.spec.connection)
        .and_then(|r| r.usable.ok());
    if let (Some(usable), Ok(wanted), Some(claim)) = (usable, &scene.observed.wanted, &scene.observed.claim) {
        look_for_orphans(
            context,
            &context.runner(home).journal,
            &usable,
            &scene.owner.uid,
            wanted,
            claim,
        )
        .await;
    }
    if let Some(event) = event {
        context.log_event(&event);
        context
            .events
            .publish(credential, true, Reason::OutcomeUnknown, "Mint", message)
            .await;
    }
    Ok(true)
}

async fn rebuild(context: &Arc<Context>, scene: &Scene) -> Result<bool, ReconcileError> {
    let Some(scope) = &scene.scope else { return Ok(false) };
    let seals = seals(scene, None);
    let Some(live) = live_of(&seals) else { return Ok(false) };
    let (owner, window) = (scene.owner.clone(), scene.window);
    context
        .runner(scope)
        .journal
        .commit(move |journal, now| {
            let name = (owner.namespace.as_str(), owner.name.as_str());
            journal.adopt_lost(&owner.uid, name, live.clone(), now + window);
        })
        .await?;
    let name = (scene.owner.namespace.clone(), scene.owner.name.clone());
    context.homes.lock().add(&scene.owner.uid, name, scope);
    tracing::warn!(
        namespace = %scene.owner.namespace,
        name = %scene.owner.name,
        scope = scope.title(),
        "the journal knew nothing of a live token; it was rebuilt from the sealed Secrets"
    );
    Ok(true)
}
