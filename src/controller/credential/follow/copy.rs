//! From the Secrets of the credential that is followed to those of the one that follows.

use std::future::ready;
use std::sync::Arc;
use std::time::Instant;

use chrono::TimeDelta;

use crate::api::Reason;
use crate::cluster::Error;
use crate::cluster::secrets::{Owner, Write, WriteError, rfc3339};
use crate::controller::mint::prepare::{NotPrepared, dry_run};
use crate::controller::mint::publish::metadata;
use crate::controller::state::context::{CachedInspection, Context};
use crate::controller::state::credentials::Seen;
use crate::core::ids::{ObjectName, SpecDigest};
use crate::core::journal::{ActiveToken, MintReason, Written, metadata_digest};
use crate::core::plan;
use crate::core::render::{MOST_RENDERED, Outputs, check_outputs, fingerprint, render, size};
use crate::core::sharing;
use crate::core::spec::Desired;
use crate::core::text::Text;
use crate::core::{Problem, outcome};

use crate::controller::credential::followers::place;
use crate::controller::credential::observe::Snapshot;
use crate::controller::credential::reconcile::ReconcileError;

use super::observe::{Followed, read_anew};

/// When to try again what could not be written, or not be read.
const RETRY: TimeDelta = TimeDelta::seconds(15);
/// When to try again what only another spec or another token mends.
const LATER: TimeDelta = TimeDelta::minutes(10);

/// Why nothing was copied.
pub(super) enum Stopped {
    /// Something is not what it was: it is looked at anew.
    Changed,
    /// Not now: why, and when to try again.
    No(Problem, TimeDelta),
    /// The API server, or the journal.
    Failed(ReconcileError),
}

impl<E: Into<ReconcileError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Takes the token of the credential that is followed from its Secret, and writes it to this one's.
pub(super) async fn copy(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    followed: &Followed,
    facts: &plan::Source,
    why: MintReason,
    seen: &Seen,
) -> Result<(), Stopped> {
    let owner = &snapshot.owner;
    let (Some(live), Ok(desired)) = (&facts.live, &snapshot.observed.desired) else {
        return Err(Stopped::Changed);
    };
    if why == MintReason::Heal && !context.may_restore(&owner.object_name()) {
        let message = "a managed Secret is changed or removed again and again; it is written anew once in a while: find out \
                       who changes it";
        return Err(Stopped::No(Problem::new(Reason::Tampered, message), RETRY));
    }
    // What is given away cannot be taken back: both sides are asked for their word once more.
    if !still_may(context, owner, followed, &facts.name).await? {
        return Err(Stopped::Changed);
    }
    let mut token = ActiveToken {
        digest: SpecDigest {
            layout: desired.digest.layout,
            ..live.digest
        },
        // They are the other's to revoke.
        token_ids: Vec::new(),
        source: Some(Text::from(&facts.name.to_string())),
        secrets: desired
            .secrets
            .iter()
            .map(|s| (s.name.clone(), Written::default()))
            .collect(),
        ..live.clone()
    };
    let before = snapshot.observed.record.as_ref().and_then(|r| r.live.as_ref());
    prepare(context, snapshot, followed, before, &token, seen).await?;
    let outputs = read(context, followed, live, &facts.name).await?;
    let layouts = desired.secrets.iter().map(|s| (s.name.as_str(), &s.layout));
    check_outputs(layouts, &outputs).map_err(|problem| Stopped::No(problem, LATER))?;
    write(context, owner, desired, &mut token, &outputs).await?;
    drop(outputs);
    let (revision, ends_at) = (token.revision, token.ends_at);
    note(context, followed, owner, token).await?;
    context.unprepared.lock().remove(&owner.uid);
    tracing::info!(
        namespace = %owner.namespace, name = %owner.name, source = %facts.name, revision, ?why,
        "a token was given to a credential that follows another"
    );
    if before.is_none_or(|before| before.claim != live.claim) {
        let note = format!(
            "revision {revision} of EphemeralCredential {} is in this credential's Secrets, and valid until {}",
            facts.name,
            rfc3339(ends_at)
        );
        let (events, reason) = (&context.events, outcome::published(revision));
        events.publish(&seen.credential, false, reason, "Follow", &note).await;
    }
    Ok(())
}

/// Sees to it that the Secrets can be written, where they were not before, and that the journal knows of them before they
/// are: whatever becomes of this process, none is forgotten.
async fn prepare(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    followed: &Followed,
    before: Option<&ActiveToken>,
    token: &ActiveToken,
    seen: &Seen,
) -> Result<(), Stopped> {
    let (owner, Ok(desired)) = (&snapshot.owner, &snapshot.observed.desired) else {
        return Err(Stopped::Changed);
    };
    let refused = snapshot.observed.unprepared.is_some();
    if refused || before.is_none_or(|before| before.digest.layout != token.digest.layout) {
        let asked = dry_run(context, owner, desired, seen.credential.metadata.generation).await;
        asked.map_err(|error| match error {
            NotPrepared::Problem(problem, _) => Stopped::No(problem, RETRY),
            NotPrepared::Changed | NotPrepared::Later(_) => Stopped::Changed,
        })?;
    }
    let mut known = before.unwrap_or(token).clone();
    let unknown = token
        .secrets
        .iter()
        .filter(|(name, _)| before.is_none_or(|b| !b.secrets.contains_key(*name)));
    let unknown: Vec<_> = unknown.collect();
    if unknown.is_empty() {
        return Ok(());
    }
    for (name, written) in unknown {
        known.secrets.insert(name.clone(), written.clone());
    }
    note(context, followed, owner, known).await
}

/// Reads the outputs, from whichever Secret of the credential that is followed holds them as they came.
async fn read(
    context: &Context,
    followed: &Followed,
    live: &ActiveToken,
    name: &ObjectName,
) -> Result<Outputs, Stopped> {
    for secret in &followed.legible {
        let cluster = &context.cluster;
        let read = cluster
            .read_outputs(&followed.owner, secret, live, &context.seal)
            .await?;
        if let Some(outputs) = read {
            return Ok(outputs);
        }
    }
    let message = format!(
        "no Secret of EphemeralCredential {name} is as it was written; this one is given the token once one is, or the next"
    );
    Err(Stopped::No(Problem::new(Reason::Issuing, message), RETRY))
}

/// Whether both sides still say so, read anew: the credential that is followed, both namespaces, and the connection.
async fn still_may(
    context: &Arc<Context>,
    owner: &Owner,
    followed: &Followed,
    name: &ObjectName,
) -> Result<bool, ReconcileError> {
    if !context.leading() {
        return Ok(false);
    }
    let Some(source) = read_anew(context, name).await? else {
        return Ok(false);
    };
    let mut places = Vec::new();
    for namespace in [&*name.namespace, owner.namespace.as_str()] {
        let read = async { Ok::<_, Error>(context.cluster.namespace(namespace).await?.map(|n| n.metadata)) };
        let read = context.fresh_namespaces.get(namespace, read).await?;
        let Some(metadata) = read.filter(|n| n.deletion_timestamp.is_none()) else {
            return Ok(false);
        };
        places.push((namespace, metadata));
    }
    let [here, there] = [0, 1].map(|i: usize| place(places[i].0, &places[i].1));
    let connection = &source.spec.connection;
    let Some(resolved) = context.caches.connections.get(connection) else {
        return Ok(false);
    };
    let ours = context.caches.connections.still_holds(&context.cluster, connection);
    if !context.fresh_holds.get(connection, ours).await? {
        return Ok(false);
    }
    let rules = &resolved.connection.spec.access;
    let may = sharing::may_follow(&source, rules, &context.cluster.namespace, here, there);
    // Of what else its owner may have changed meanwhile, the journal tells.
    Ok(may.is_ok() && source.metadata.uid.as_ref() == Some(&followed.owner.uid))
}

/// Notes in the journal what is held.
async fn note(context: &Arc<Context>, followed: &Followed, owner: &Owner, token: ActiveToken) -> Result<(), Stopped> {
    let scope = &followed.scope;
    let of = owner.clone();
    let journal = &context.scheduler(scope).journal;
    let noted = journal
        .commit(move |journal, _| journal.follow(&of.uid, (&of.namespace, &of.name), token.clone()))
        .await?;
    if !noted {
        // It is known to hold something later.
        return Err(Stopped::Changed);
    }
    context.index.lock().add_record(&owner.uid, &owner.object_name(), scope);
    context.supersede(&owner.uid, scope).await;
    Ok(())
}

/// Writes all Secrets, and notes in `token` what was written.
async fn write(
    context: &Context,
    owner: &Owner,
    desired: &Desired,
    token: &mut ActiveToken,
    outputs: &Outputs,
) -> Result<(), Stopped> {
    let mut room = MOST_RENDERED;
    let mut rendered = Vec::new();
    for secret in &desired.secrets {
        let data = render(&secret.name, secret.type_, &secret.layout, outputs, token.ends_at, room)
            .map_err(|problem| Stopped::No(problem, LATER))?;
        room = room.saturating_sub(size(&data));
        let written = Written {
            keys: data.keys().cloned().collect(),
            fingerprint: fingerprint(&token.claim, data.iter().map(|(k, v)| (k.as_str(), v.as_slice()))),
            ..Written::default()
        };
        token.secrets.insert(secret.name.clone(), written);
        rendered.push((secret, data));
    }
    for (secret, data) in rendered {
        if !context.leading() || context.now() >= token.ends_at {
            return Err(Stopped::Changed);
        }
        let metadata = metadata(context, owner, secret, token);
        let at = ObjectName::new(owner.namespace.as_str(), secret.name.as_str());
        let known = Write {
            live: Some(token),
            absent: context.caches.is_absent(&at),
        };
        // Where somebody else has written since, it is looked at anew: a successor may know of a later token.
        let may = |contended: bool| ready(!contended && context.leading() && context.now() < token.ends_at);
        let written = context
            .cluster
            .write_secret(owner, &metadata, &data, &context.seal, known, may)
            .await;
        let seen = match written {
            Ok(seen) => seen,
            Err(WriteError::NotOurs) => {
                context.caches.unlisted.lock().insert(at);
                return Err(Stopped::Changed);
            }
            Err(WriteError::Withheld) => return Err(Stopped::Changed),
            Err(WriteError::Api(error)) => {
                let problem = Problem::new(
                    Reason::SecretRefused,
                    format!("Secret {} cannot be written: {}", secret.name, error.brief()),
                );
                return Err(Stopped::No(problem, RETRY));
            }
        };
        if let (true, Some(version)) = (seen.is_settled(), seen.version())
            && let Some(written) = token.secrets.get_mut(&secret.name)
        {
            let digest = metadata_digest(&context.seal.id(), &secret.metadata);
            written.stamp(version.to_owned(), digest);
        }
        let look = CachedInspection::new(seen, Some(token), Some(&secret.metadata), Some(Instant::now()));
        let mut looks = context.caches.inspection_cache.lock();
        let looks = looks.entry(owner.uid.clone()).or_default();
        looks.insert(secret.name.clone(), look);
    }
    Ok(())
}
