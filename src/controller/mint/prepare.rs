//! What precedes a claim: fresh reads, and a dry run of the Secrets. Nothing is minted that cannot be
//! published.

use std::future::ready;
use std::sync::Arc;

use chrono::TimeDelta;
use data_encoding::BASE32_NOPAD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt};

use crate::api::{EphemeralCredential, Reason};
use crate::cluster::bounded;
use crate::cluster::reach::labels;
use crate::cluster::secrets::{Owner, SecretMetadata, Write, WriteError};
use crate::controller::mint::mint_queue::QueueEntry;
use crate::controller::state::connections::Usable;
use crate::controller::state::context::Context;
use crate::core::ids::ObjectName;
use crate::core::journal::{Claim, EndpointRef, MintReason, RequestFacts, Scope};
use crate::core::spec::{Desired, desired};
use crate::core::text::Text;
use crate::core::{Problem, Time, access, render};

/// A mint that needs only its claim.
pub(crate) struct Prepared {
    pub(crate) credential: EphemeralCredential,
    pub(crate) owner: Owner,
    pub(crate) desired: Desired,
    pub(crate) usable: Arc<Usable>,
    pub(crate) endpoint: Arc<EndpointRef>,
    pub(crate) kind: MintReason,
    pub(crate) window: TimeDelta,
    /// Revision and audit number so far, wherever they were counted.
    pub(crate) minimum: (u64, u64),
}

pub(crate) enum NotPrepared {
    /// The credential is not what it was: it is looked at anew.
    Changed,
    /// The API server could not be asked now; the credential keeps its place.
    Later(crate::cluster::Error),
    /// It cannot be published now.
    Problem(Problem, Option<i64>),
}

impl NotPrepared {
    /// Why, for a trace.
    pub(crate) const fn brief(&self) -> &'static str {
        match self {
            Self::Changed => "it is not what it was",
            Self::Later(_) => "the API server does not answer now",
            Self::Problem(problem, _) => problem.reason.as_str(),
        }
    }
}

/// Fresh reads of credential and namespace, and a dry run of the Secrets where it is the first time
/// or the last write was refused: nothing is minted that cannot be published.
pub(crate) async fn prepare(
    context: &Arc<Context>,
    scope: &Scope,
    entry: &QueueEntry,
    window: TimeDelta,
) -> Result<Prepared, NotPrepared> {
    let owner = Owner::named(&entry.demand.name, entry.demand.uid.to_string());
    let (credential, namespace) = read_anew(context, &owner).await?;
    let connection = &credential.spec.connection;
    let resolved = context.caches.connections.get(connection);
    let resolved = resolved.ok_or(NotPrepared::Changed)?;
    let ours = context.caches.connections.still_holds(&context.cluster, connection);
    if !context.fresh_holds.get(connection, ours).await.map_err(unreachable)? {
        return Err(NotPrepared::Changed);
    }
    let desired = desired(&credential, Some(resolved.connection.spec.api), &context.annotations)
        .map_err(|_| NotPrepared::Changed)?;
    let allowed = access::allowed(
        &resolved.connection.spec.access,
        &context.cluster.namespace,
        &owner.namespace,
        labels(&namespace),
        &credential.spec,
    );
    let suspended = credential.spec.suspend || resolved.connection.spec.suspend;
    let is_as_asked = desired.digest == entry.asks && resolved.scope(&desired.service).as_ref() == Some(scope);
    if suspended || !is_as_asked || allowed.is_err() {
        return Err(NotPrepared::Changed);
    }
    desired
        .check_templates()
        .map_err(|problem| NotPrepared::Problem(problem, credential.metadata.generation))?;
    let endpoint = resolved.endpoint();
    let usable = resolved.usable.map_err(|_| NotPrepared::Changed)?;
    let records = context.records(&owner.uid).await.map_err(|_| NotPrepared::Changed)?;
    let proven = records.iter().any(|(_, record)| {
        let refused = record.failure.as_ref().map(|f| f.reason) == Some(Reason::SecretRefused);
        let live = record.live.as_ref();
        !refused && live.is_some_and(|live| live.digest.layout == desired.digest.layout)
    });
    if !proven {
        dry_run(context, &owner, &desired, credential.metadata.generation).await?;
    }
    let minimum = records.iter().fold((0, 0), |(revision, seq), (_, r)| {
        (r.revision.max(revision), r.seq.max(seq))
    });
    Ok(Prepared {
        credential,
        owner,
        desired,
        usable,
        endpoint,
        kind: entry.demand.reason,
        window,
        minimum,
    })
}

/// The credential and its namespace as they are now, where they are to stay.
async fn read_anew(context: &Context, owner: &Owner) -> Result<(EphemeralCredential, ObjectMeta), NotPrepared> {
    let api: Api<EphemeralCredential> = Api::namespaced(context.cluster.client.clone(), &owner.namespace);
    let credential = bounded(api.get_opt(&owner.name)).await.map_err(unreachable)?;
    let credential = credential
        .filter(|c| c.uid().as_deref() == Some(&owner.uid) && c.metadata.deletion_timestamp.is_none())
        .ok_or(NotPrepared::Changed)?;
    let read = async { Ok(context.cluster.namespace(&owner.namespace).await?.map(|n| n.metadata)) };
    let namespace = context.fresh_namespaces.get(&owner.namespace, read).await;
    let namespace = namespace
        .map_err(unreachable)?
        .filter(|n| n.deletion_timestamp.is_none())
        .ok_or(NotPrepared::Changed)?;
    Ok((credential, namespace))
}

fn unreachable(error: crate::cluster::Error) -> NotPrepared {
    if error.is_passing() {
        return NotPrepared::Later(error);
    }
    let message = format!("not asked yet: {}", error.brief());
    NotPrepared::Problem(Problem::new(Reason::SecretRefused, message), None)
}

pub(crate) async fn dry_run(
    context: &Context,
    owner: &Owner,
    desired: &Desired,
    generation: Option<i64>,
) -> Result<(), NotPrepared> {
    for secret in &desired.secrets {
        let metadata = SecretMetadata {
            name: secret.name.clone(),
            type_: secret.type_,
            own: secret.metadata.clone(),
            seal: String::new(),
            expires_at: String::new(),
        };
        let data = render::placeholder(secret.type_, &secret.layout);
        let at = ObjectName::new(owner.namespace.as_str(), secret.name.as_str());
        let write = Write {
            live: None,
            absent: context.caches.is_absent(&at),
        };
        let problem = match context
            .cluster
            .write_secret(owner, &metadata, &data, &context.seal, write, |_| ready(true))
            .await
        {
            Ok(_) => continue,
            Err(WriteError::NotOurs) => {
                // The next look finds out whose.
                context.caches.unlisted.lock().insert(at);
                return Err(NotPrepared::Changed);
            }
            Err(WriteError::Withheld) => return Err(NotPrepared::Changed),
            Err(WriteError::Api(e)) if e.code() == Some(429) => return Err(NotPrepared::Later(e)),
            Err(WriteError::Api(e)) => Problem::new(
                Reason::SecretRefused,
                format!(
                    "Secret {} cannot be written, so nothing is minted: {}",
                    secret.name,
                    e.brief()
                ),
            ),
        };
        return Err(NotPrepared::Problem(problem, generation));
    }
    Ok(())
}

pub(crate) fn new_claim(p: &Prepared, identity: &str) -> Claim {
    let id = BASE32_NOPAD.encode(&rand::random::<[u8; 16]>()).to_lowercase();
    Claim {
        namespace: p.owner.namespace.clone(),
        name: p.owner.name.clone(),
        revision: p.minimum.0 + 1,
        seq: p.minimum.1,
        page: None,
        at: Time::default(),
        holder: identity.to_owned(),
        timeout_seconds: p.usable.timeout.num_seconds(),
        kind: p.kind,
        request: RequestFacts {
            connection: Text::from(&p.desired.connection),
            service: Text::from(&p.desired.service),
            purpose: Text::from(&p.desired.purpose),
            repo: p.desired.repo.clone(),
            run_id: p.desired.run_id.clone().unwrap_or_else(|| id.clone()),
            type_: p.desired.type_.clone(),
        },
        endpoint: p.endpoint.clone(),
        digest: p.desired.digest,
        secrets: p.desired.secrets.iter().map(|s| s.name.clone()).collect(),
        renew_before_ms: p.desired.renew_before.map(|d| d.num_milliseconds()),
        counts_from: None,
        max_lifetime_ms: p.desired.max_lifetime.map(|d| d.num_milliseconds()),
        period_ms: None,
        once: false,
        consumer: None,
        minted: None,
        id,
    }
}
