//! What is looked at before a decision about one credential.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::TimeDelta;
use kube::runtime::reflector::ObjectRef;

use crate::api::{EphemeralCredential, Reason};
use crate::cluster::Error;
use crate::cluster::journal::JournalError;
use crate::cluster::reach::labels;
use crate::cluster::secrets::{InspectedSecret, Owner};
use crate::controller::state::context::{CachedInspection, Context};
use crate::controller::state::credentials::Seen;
use crate::core::ids::ObjectName;
use crate::core::journal::{ActiveToken, Claim, Record, Scope, metadata_digest};
use crate::core::layout::OwnMetadata;
use crate::core::plan::{Connection, Observed, SecretState};
use crate::core::spec::{self, Desired};
use crate::core::{Problem, Time, access, clock};

use crate::controller::credential::consumers::{self, Readers};
use crate::controller::credential::reconcile::ReconcileError;

/// A request whose outcome is not told by then is told of itself.
const TOLD_WITHIN: TimeDelta = TimeDelta::seconds(1);

/// What was observed, and what acting on it needs besides.
pub(crate) struct Snapshot {
    pub(crate) observed: Observed,
    pub(crate) owner: Owner,
    pub(crate) seen: BTreeMap<String, InspectedSecret>,
    /// The watch has yet to tell of a Secret that was just written.
    pub(crate) unconfirmed: bool,
    /// The scope the current spec counts in.
    pub(crate) scope: Option<Scope>,
    /// The scope with the record that holds the claim, or else the live token.
    pub(crate) owning_scope: Option<Scope>,
    /// The scope with the record that holds the live token.
    pub(crate) live_scope: Option<Scope>,
    /// Number of the last audit event in the journal of `scope`.
    pub(crate) seq: u64,
    pub(crate) window: TimeDelta,
    /// Mints a window that the access rules allow its namespace.
    pub(crate) most: Option<u32>,
    pub(crate) timeout: TimeDelta,
    pub(crate) deliver: bool,
    /// Who reads its Secrets.
    pub(crate) readers: Readers,
    /// Uid of the credential that this one follows.
    pub(crate) source: Option<String>,
}

impl Snapshot {
    /// The credential whose turn it is to have the token renewed.
    pub(crate) fn renewed_by(&self) -> &str {
        self.source.as_deref().unwrap_or(&self.owner.uid)
    }
}

pub(crate) async fn observe(seen: &Seen, context: &Arc<Context>) -> Result<Option<Snapshot>, ReconcileError> {
    let credential = &seen.credential;
    let owner = Owner::of(credential);
    let Some(namespace) = context.caches.namespaces.get(&ObjectRef::new(&owner.namespace)) else {
        return Ok(None);
    };
    let leaving = credential.metadata.deletion_timestamp.is_some() || namespace.metadata.deletion_timestamp.is_some();
    let resolved = context.caches.connections.get(&credential.spec.connection);
    let desired = spec::desired(
        credential,
        resolved.as_ref().map(|r| r.connection.spec.api),
        &context.annotations,
    );
    let permitted = resolved.as_ref().map_or(Ok(None), |r| {
        let rules = &r.connection.spec.access;
        access::allowed(
            rules,
            &context.cluster.namespace,
            &owner.namespace,
            labels(&namespace.metadata),
            &credential.spec,
        )
    });
    // Who may not ask opens no budget.
    let scope = resolved
        .as_ref()
        .filter(|_| permitted.is_ok())
        .and_then(|r| r.scope(&credential.spec.service));
    if let Some(scope) = &scope {
        // Opened now, so that it is there when a mint is wanted.
        context.scheduler(scope);
    }
    // Who may not ask makes nobody read templates.
    let desired = match (desired, resolved.is_some() && permitted.is_ok()) {
        (Ok(desired), true) => desired.check_templates().map(|()| desired),
        (desired, _) => desired,
    };
    let mut connection = connection_state(context, credential, resolved.as_ref());
    let mut journal_unavailable = false;
    let Known {
        owning_scope,
        live_scope,
        record,
        claim,
        seq,
    } = match known(context, &owner.uid, scope.as_ref()).await {
        Ok(known) => known,
        Err(error @ JournalError::Broken { .. }) => {
            connection = Connection::Unusable(Problem::new(Reason::ConnectionNotReady, error.to_string()));
            journal_unavailable = true;
            Known::default()
        }
        Err(error) => return Err(error.into()),
    };
    let working = context.working.lock().get(&owner.uid).cloned();
    if !leaving
        && let (Some(claim), Some(None)) = (&claim, &working)
        && told_soon(claim, record.as_ref(), context.now())
    {
        return Ok(None);
    }
    let (secrets, unconfirmed) = look(context, &owner, desired.as_ref().ok(), record.as_ref(), claim.as_ref()).await?;
    let waiting = scope.as_ref().and_then(|s| context.scheduler(s).verdict(&owner.uid));
    let unprepared = context.unprepared_of(&owner.uid, credential.metadata.generation);
    let readers = consumers::readers(context, credential);
    let users = consumers::users(credential, &readers);
    let most = permitted.as_ref().ok().copied().flatten();
    let permitted = permitted.map(|_| ());
    let observed = Observed {
        uid: owner.uid.clone(),
        terminating: leaving,
        suspended: credential.spec.suspend,
        desired,
        asked: spec::asked(credential),
        users,
        kept: scope
            .as_ref()
            .is_none_or(|scope| context.scheduler(scope).keeps(&owner.uid)),
        permitted,
        connection,
        secrets: secrets
            .iter()
            .map(|(name, s)| (name.clone(), s.state.clone()))
            .collect(),
        record,
        claim,
        held_up: working.clone().flatten(),
        working: working.is_some(),
        journal_unavailable,
        told: context.told_of(&owner, &seen.told),
        holder: context.identity.clone(),
        claim_grace: context.claim_grace,
        waiting,
        unprepared,
    };
    let usable = resolved.as_ref().and_then(|r| r.usable.as_ref().ok());
    Ok(Some(Snapshot {
        observed,
        owner,
        seen: secrets,
        unconfirmed,
        scope,
        owning_scope,
        live_scope,
        seq,
        window: resolved.as_ref().map_or(TimeDelta::hours(1), |r| r.limit.window),
        most,
        timeout: usable.map_or(TimeDelta::seconds(10), |u| u.timeout),
        deliver: usable.is_some_and(|u| u.chronicle.is_some()),
        source: None,
        readers,
    }))
}

pub(crate) fn connection_state(
    context: &Context,
    credential: &EphemeralCredential,
    resolved: Option<&crate::controller::state::connections::Resolved>,
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
    if resolved.connection.spec.suspend {
        return Connection::Unusable(Problem::new(
            Reason::Suspended,
            format!(
                "ChittyConnection {name} is suspended: nothing is minted by it, and a token that is there is not renewed"
            ),
        ));
    }
    let probe_at = context.unauthorized.lock().get(&usable.key_digest).copied();
    if let Some(probe_at) = probe_at {
        return Connection::Unauthorized {
            probe_at,
            message: format!(
                "ChittyConnect refuses the API key of ChittyConnection {name}; nothing is asked until the key changes, \
                 except once at {}",
                clock(probe_at, context.now())
            ),
        };
    }
    let window = resolved.limit.window;
    let down = usable.gate.lock().outage().map(|o| o.message(name, context.now()));
    down.map_or(Connection::Ready { window }, |message| Connection::Down {
        window,
        message,
    })
}

/// What the journals say of one credential.
#[derive(Default)]
pub(crate) struct Known {
    owning_scope: Option<Scope>,
    pub(crate) live_scope: Option<Scope>,
    pub(crate) record: Option<Record>,
    claim: Option<Claim>,
    /// As in [`Snapshot`].
    seq: u64,
}

/// The scope, record and claim that count: those with a claim, else with the newest live token,
/// else those of the current scope.
pub(crate) async fn known(context: &Arc<Context>, uid: &str, scope: Option<&Scope>) -> Result<Known, JournalError> {
    let mut scopes = context.index.lock().records_of(uid);
    if let Some(scope) = scope
        && !scopes.contains(scope)
    {
        scopes.push(scope.clone());
    }
    let mut best: Option<(Scope, Record, Option<Claim>)> = None;
    // A claim's other half: what it will replace may be live elsewhere.
    let mut newest: Option<(Scope, ActiveToken)> = None;
    let mut seq = 0;
    let mut revoked = None;
    for owning_scope in scopes {
        let journal = context.scheduler(&owning_scope).journal.view().await?;
        let claim = journal.pending(uid).map(|claim| Claim::clone(claim));
        let record = journal.credentials.get(uid).map(|record| Record::clone(record));
        // Before its first outcome, all that is known of a credential is its claim.
        let Some(record) = record.or_else(|| claim.as_ref().map(Claim::new_record)) else {
            continue;
        };
        if Some(&owning_scope) == scope {
            seq = record.seq;
        }
        if revoked.is_none() {
            revoked.clone_from(&record.revoked);
        }
        if let Some(live) = &record.live
            && newest.as_ref().is_none_or(|(_, l)| l.issued_at < live.issued_at)
        {
            newest = Some((owning_scope.clone(), live.clone()));
        }
        let rank = |claim: Option<&Claim>, record: &Record, owning_scope: &Scope| {
            (
                claim.is_some(),
                record.live.as_ref().map(|l| l.issued_at),
                Some(owning_scope) == scope,
            )
        };
        let better = best
            .as_ref()
            .is_none_or(|(h, r, c)| rank(claim.as_ref(), &record, &owning_scope) > rank(c.as_ref(), r, h));
        if better {
            best = Some((owning_scope, record, claim));
        }
    }
    let Some((owning_scope, mut record, claim)) = best else {
        return Ok(Known {
            owning_scope: scope.cloned(),
            ..Known::default()
        });
    };
    // Failures count where the current spec does.
    if let Some(scope) = scope.filter(|s| **s != owning_scope) {
        let journal = context.scheduler(scope).journal.view().await?;
        let here = journal.credentials.get(uid);
        record.failure = here.and_then(|r| r.failure.clone());
        record.heals = here.map(|r| r.heals.clone()).unwrap_or_default();
    }
    let live_scope = if let (None, Some((scope, live))) = (&record.live, newest) {
        record.live = Some(live);
        Some(scope)
    } else {
        Some(owning_scope.clone())
    };
    if record.live.is_none() && record.revoked.is_none() {
        // A spec that counts elsewhere by now does not undo it.
        record.revoked = revoked;
    }
    Ok(Known {
        owning_scope: Some(owning_scope),
        live_scope,
        record: Some(record),
        claim,
        seq,
    })
}

/// A request was sent a moment ago, and its outcome will be told: until then there is nothing to decide.
fn told_soon(claim: &Claim, record: Option<&Record>, now: Time) -> bool {
    let ends = record.and_then(|r| r.live.as_ref()).map(|l| l.ends_at);
    claim.at + TOLD_WITHIN > now && ends.is_none_or(|at| at > now + TOLD_WITHIN)
}

/// Looks at every Secret that matters; at one that was written in the version there is, or was looked at since, not
/// again. One that neither the watch nor the journal
/// tells of is absent: whoever has that name all the same is found by the dry run. Says also whether the watch has yet
/// to tell of what was just written.
pub(crate) async fn look(
    context: &Arc<Context>,
    owner: &Owner,
    desired: Option<&Desired>,
    record: Option<&Record>,
    claim: Option<&Claim>,
) -> Result<(BTreeMap<String, InspectedSecret>, bool), Error> {
    let live = record.and_then(|r| r.live.as_ref());
    let listed = context.caches.secrets.lock().of(&owner.uid);
    let mut names: Vec<&str> = listed.keys().map(|name| &**name).collect();
    names.extend(desired.iter().flat_map(|w| w.secrets.iter().map(|s| s.name.as_str())));
    names.extend(live.iter().flat_map(|l| l.secrets.keys().map(String::as_str)));
    names.sort_unstable();
    names.dedup();
    let mut seen = BTreeMap::new();
    let mut looks = context
        .caches
        .inspection_cache
        .lock()
        .remove(&owner.uid)
        .unwrap_or_default();
    let mut kept = BTreeMap::new();
    let key = context.seal.id();
    let metadata = |own: Option<&OwnMetadata>| own.map(|own| metadata_digest(&key, own));
    for name in names {
        let own = desired
            .and_then(|w| w.secrets.iter().find(|s| s.name == name))
            .map(|s| &s.metadata);
        let at = ObjectName::new(owner.namespace.as_str(), name);
        let written = live.and_then(|l| l.secrets.get(name));
        let there = listed.get(name);
        if let (Some(there), Some(written)) = (there, written)
            && written.stands(&there.version, metadata(own).as_deref())
        {
            seen.insert(name.to_owned(), InspectedSecret::settled(&there.uid, &there.version));
            continue;
        }
        let version = there.map(|l| &*l.version);
        let expected = written.is_some() || claim.is_some_and(|c| c.secrets.iter().any(|s| s == name));
        let look = match looks.remove(name) {
            Some(mut look) if look.holds(version, &CachedInspection::against(live, own)) => {
                if version == Some(&look.resource_version) {
                    look.written = None;
                }
                look
            }
            _ if !expected && context.caches.is_absent(&at) => {
                seen.insert(name.to_owned(), InspectedSecret::absent());
                continue;
            }
            _ => {
                let seen = context.cluster.look(owner, name, live, own, &context.seal).await?;
                if seen.state == SecretState::Absent || there.is_some() {
                    context.caches.unlisted.lock().remove(&at);
                }
                CachedInspection::new(seen, live, own, None)
            }
        };
        seen.insert(name.to_owned(), look.seen.clone());
        kept.insert(name.to_owned(), look);
    }
    let unconfirmed = kept.values().any(|look| look.written.is_some());
    if !kept.is_empty() {
        context.caches.inspection_cache.lock().insert(owner.uid.clone(), kept);
    }
    Ok((seen, unconfirmed))
}
