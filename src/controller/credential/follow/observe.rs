//! What is looked at before a decision about a credential that follows another.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use crate::api::{Activation, EphemeralCredential, Reason, Source};
use crate::cluster::journal::JournalError;
use crate::cluster::reach::labels;
use crate::cluster::secrets::Owner;
use crate::cluster::{Error, bounded};
use crate::controller::state::connections::Resolved;
use crate::controller::state::context::Context;
use crate::controller::state::credentials::Seen;
use crate::core::Problem;
use crate::core::consumers::Users;
use crate::core::ids::ObjectName;
use crate::core::journal::{Record, Scope};
use crate::core::plan::{self, Connection, Observed};
use crate::core::sharing::{self, Place};
use crate::core::spec::{self, Asked, Desired};

use crate::controller::credential::consumers;
use crate::controller::credential::followers::place;
use crate::controller::credential::observe::{Snapshot, known, look};
use crate::controller::credential::reconcile::{LONGEST, ReconcileError};

use super::SOON;

/// What is followed: as its owner wrote it, and where its records are.
pub(super) struct Followed {
    pub(super) owner: Owner,
    pub(super) scope: Scope,
    /// Its Secrets that hold its outputs as they came.
    pub(super) legible: Vec<String>,
}

/// What was observed.
pub(super) struct Following {
    pub(super) snapshot: Snapshot,
    pub(super) facts: Option<plan::Source>,
    pub(super) followed: Option<Followed>,
}

/// The credential to follow, as it was found, and whether it may be.
struct Found {
    source: Option<EphemeralCredential>,
    resolved: Option<Resolved>,
    permitted: Result<(), Problem>,
}

/// Looks at a credential that follows `source`; or tells how soon to look again, where there is nothing to decide.
pub(super) async fn observe(
    seen: &Seen,
    source: &Source,
    context: &Arc<Context>,
) -> Result<Result<Following, Duration>, ReconcileError> {
    let credential = &seen.credential;
    let owner = Owner::of(credential);
    let Some(namespace) = context.caches.namespaces.get(&ObjectRef::new(&owner.namespace)) else {
        return Ok(Err(SOON));
    };
    let (record, mut broken) = match held(context, &owner.uid).await {
        Ok(record) => (record, None),
        Err(error @ JournalError::Broken { .. }) => (None, Some(error)),
        Err(error) => return Err(error.into()),
    };
    let name = sharing::name_of(source);
    let there = place(&owner.namespace, &namespace.metadata);
    let found = look_up(context, &name, there, record.as_ref()).await?;
    if let Some(source) = &found.source {
        let ours = context.cluster.reach.serves(&source.spec.connection)
            && found.resolved.as_ref().is_none_or(|resolved| resolved.held.is_ok());
        if !ours {
            // Another installation's: not even its status is ours.
            return Ok(Err(LONGEST));
        }
    }
    let holds = record.as_ref().is_some_and(|r| r.live.is_some());
    if found.source.is_none() && holds && read_anew(context, &name).await?.is_some() {
        // Only the API server's own word takes a token away.
        return Ok(Err(SOON));
    }
    let desired = asked(context, credential, &found);
    let mut connection = Connection::Ready {
        window: TimeDelta::hours(1),
    };
    let (mut facts, mut followed) = (None, None);
    match (&found.permitted, &found.source, &found.resolved) {
        (Ok(()), Some(source), None) => {
            let message = format!(
                "ChittyConnection {}, by which {name} asks, does not exist",
                source.spec.connection
            );
            connection = Connection::Unusable(Problem::new(Reason::ConnectionNotFound, message));
        }
        (Ok(()), Some(source), Some(resolved)) => match known_of(context, &name, source, resolved).await {
            Ok(known) => (facts, followed) = known,
            Err(error @ JournalError::Broken { .. }) => broken = Some(error),
            Err(error) => return Err(error.into()),
        },
        _ => {}
    }
    if let Some(error) = &broken {
        connection = Connection::Unusable(Problem::new(Reason::ConnectionNotReady, error.to_string()));
    }
    let (secrets, unconfirmed) = look(context, &owner, desired.as_ref().ok(), record.as_ref(), None).await?;
    let readers = consumers::readers(context, credential);
    let observed = Observed {
        uid: owner.uid.clone(),
        terminating: credential.metadata.deletion_timestamp.is_some()
            || namespace.metadata.deletion_timestamp.is_some(),
        suspended: credential.spec.suspend,
        desired,
        // What it is given is another's to rotate and to revoke.
        asked: Asked::default(),
        permitted: found.permitted,
        connection,
        secrets: secrets
            .iter()
            .map(|(name, s)| (name.clone(), s.state.clone()))
            .collect(),
        record,
        users: Users::Anybody,
        kept: true,
        claim: None,
        held_up: None,
        working: false,
        journal_unavailable: broken.is_some(),
        told: context.told_of(&owner, &seen.told),
        holder: context.identity.clone(),
        claim_grace: context.claim_grace,
        waiting: None,
        unprepared: context.unprepared_of(&owner.uid, credential.metadata.generation),
    };
    let snapshot = Snapshot {
        observed,
        owner,
        seen: secrets,
        unconfirmed,
        scope: None,
        owning_scope: None,
        live_scope: None,
        seq: 0,
        window: TimeDelta::hours(1),
        most: None,
        timeout: TimeDelta::seconds(10),
        deliver: false,
        readers,
        source: found.source.as_ref().and_then(ResourceExt::uid),
    };
    Ok(Ok(Following {
        snapshot,
        facts,
        followed,
    }))
}

/// Looks for the credential of that name, and whether its owner and its connection let `there` follow it.
async fn look_up(
    context: &Context,
    name: &ObjectName,
    there: Place<'_>,
    record: Option<&Record>,
) -> Result<Found, Error> {
    let Some(source) = find(context, name).await? else {
        return Ok(Found {
            source: None,
            resolved: None,
            permitted: Err(absent(record, name, there.name)),
        });
    };
    let resolved = context.caches.connections.get(&source.spec.connection);
    let own_namespace = &context.cluster.namespace;
    let permitted = match &resolved {
        None => sharing::is_shared(&source, name, own_namespace, there),
        Some(resolved) => {
            let here = context.caches.namespaces.get(&ObjectRef::new(&name.namespace));
            let here = Place {
                name: &name.namespace,
                labels: here.as_ref().and_then(|here| labels(&here.metadata)),
            };
            sharing::may_follow(&source, &resolved.connection.spec.access, own_namespace, here, there)
        }
    };
    Ok(Found {
        source: Some(source),
        resolved,
        permitted,
    })
}

/// What it asks for: what the credential asks for that it follows, in Secrets of its own.
fn asked(context: &Context, credential: &EphemeralCredential, found: &Found) -> Result<Desired, Problem> {
    let source = found.source.as_ref().filter(|_| found.permitted.is_ok());
    let api = found.resolved.as_ref().map(|r| r.connection.spec.api);
    let Some(source) = source else {
        // Who may not follow makes nobody read templates.
        return spec::desired(credential, None, &context.annotations);
    };
    let desired = spec::desired(&sharing::in_place_of(credential, source), api, &context.annotations)?;
    desired.check_templates().map(|()| desired)
}

/// What the journals say that this credential holds of another's, as its live token.
async fn held(context: &Arc<Context>, uid: &str) -> Result<Option<Record>, JournalError> {
    let records = context.records(uid).await?;
    let newest = records
        .into_iter()
        .map(|(_, record)| record)
        .max_by_key(|record| record.followed.as_ref().map(|followed| followed.issued_at));
    Ok(newest.map(|mut record| {
        record.live = record.followed.take().map(|followed| *followed);
        if let Some(live) = &record.live {
            record.revision = live.revision;
        }
        record
    }))
}

/// The credential of that name, where it is there to stay.
async fn find(context: &Context, name: &ObjectName) -> Result<Option<EphemeralCredential>, Error> {
    let namespace = context.caches.namespaces.get(&ObjectRef::new(&name.namespace));
    if namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Ok(None);
    }
    let found = context.credential(name).await?.map(|seen| seen.credential);
    Ok(found.filter(|source| source.metadata.deletion_timestamp.is_none()))
}

/// Why there is nothing to follow. Who was given its tokens, or is where it would be, may know whether there is such a
/// credential.
fn absent(record: Option<&Record>, name: &ObjectName, namespace: &str) -> Problem {
    let knew = record.and_then(|record| record.source.as_ref());
    if *name.namespace == *namespace || knew.is_some_and(|knew| **knew == *name.to_string()) {
        sharing::not_found(name)
    } else {
        sharing::not_shared(name, namespace)
    }
}

/// The credential of that name as the API server has it.
pub(super) async fn read_anew(context: &Context, name: &ObjectName) -> Result<Option<Arc<EphemeralCredential>>, Error> {
    let api: Api<EphemeralCredential> = Api::namespaced(context.cluster.client.clone(), &name.namespace);
    // An object of many fields: it is not carried about in all that waits for it.
    let read = Box::pin(async {
        match bounded(api.get_opt(&name.name)).await {
            Ok(found) => Ok(found.map(Arc::new)),
            // The right to look went with the namespace.
            Err(error) if error.code() == Some(403) && context.cluster.namespace_is_gone(&name.namespace).await => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    });
    let found = context.fresh_sources.get(&name.to_string(), read).await?;
    let namespace = async { Ok::<_, Error>(context.cluster.namespace(&name.namespace).await?.map(|n| n.metadata)) };
    let namespace = context.fresh_namespaces.get(&name.namespace, namespace).await?;
    let stays = namespace.is_some_and(|namespace| namespace.deletion_timestamp.is_none());
    Ok(found.filter(|source| stays && source.metadata.deletion_timestamp.is_none()))
}

/// What is to be known of the credential that is followed.
async fn known_of(
    context: &Arc<Context>,
    name: &ObjectName,
    source: &EphemeralCredential,
    resolved: &Resolved,
) -> Result<(Option<plan::Source>, Option<Followed>), JournalError> {
    let owner = Owner::of(source);
    let scope = resolved.scope(&source.spec.service);
    let known = known(context, &owner.uid, scope.as_ref()).await?;
    let live = known.record.as_ref().and_then(|record| record.live.clone());
    let desired = spec::desired(source, Some(resolved.connection.spec.api), &context.annotations).ok();
    let legible: Vec<String> = match (&desired, &live) {
        (Some(desired), Some(live)) => sharing::legible(&desired.secrets, desired.digest.layout, live)
            .map(|secret| secret.name.clone())
            .collect(),
        _ => Vec::new(),
    };
    let facts = plan::Source {
        name: name.clone(),
        uid: owner.uid.clone(),
        known: known.record.is_some(),
        legible: !legible.is_empty(),
        renew_before: desired.as_ref().and_then(|desired| desired.renew_before),
        on_demand: source.spec.activation == Activation::OnDemand,
        live,
    };
    let scope = known.live_scope.or(scope);
    let followed = scope.map(|scope| Followed { owner, scope, legible });
    Ok((Some(facts), followed))
}
