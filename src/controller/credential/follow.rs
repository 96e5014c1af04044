//! A credential that follows another: the same passes, and no mint. The values are taken from a Secret of the other, as its
//! seal vouches for them, by each pass that needs them, and are kept by none.
//!
//! So whoever follows is nothing to the mint that it gets its token from: that one is published, told and recorded before
//! anybody here hears of it, and nobody's Secret that cannot be written holds it up.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use crate::api::{EphemeralCredential, Reason, Source};
use crate::cluster::journal::JournalError;
use crate::cluster::reach::labels;
use crate::cluster::secrets::{Owner, Write, WriteError, rfc3339};
use crate::cluster::{Error, bounded};
use crate::controller::mint::prepare::{NotPrepared, dry_run};
use crate::controller::mint::publish::metadata;
use crate::controller::state::context::{CachedInspection, Context, WATCH_BEHIND};
use crate::controller::state::credentials::Seen;
use crate::core::ids::ObjectName;
use crate::core::journal::{ActiveToken, MintReason, Record, Scope, Written, metadata_digest};
use crate::core::plan::{self, Action, Connection, Observed};
use crate::core::render::{MOST_RENDERED, check_outputs, fingerprint, render, size};
use crate::core::sharing::{self, Place};
use crate::core::spec::{self, Desired};
use crate::core::text::Text;
use crate::core::{Problem, outcome};

use crate::controller::credential::act::restore;
use crate::controller::credential::observe::{Snapshot, known, look};
use crate::controller::credential::reconcile::{BEHIND, LONGEST, ReconcileError, tell, wait_after};

/// How soon to look again at what is about to be otherwise.
const SOON: Duration = Duration::from_secs(1);
/// When to try again what could not be written, or not be read.
const RETRY: TimeDelta = TimeDelta::seconds(15);
/// When to try again what only another spec or another token mends.
const LATER: TimeDelta = TimeDelta::minutes(10);

/// What is followed: as its owner wrote it, and where its records are.
struct Followed {
    credential: EphemeralCredential,
    owner: Owner,
    scope: Scope,
    /// Its Secrets that hold its outputs as they came.
    legible: Vec<String>,
}

struct Following {
    snapshot: Snapshot,
    facts: Option<plan::Source>,
    followed: Option<Followed>,
}

/// Looks at a credential that follows `source`, and does what is due; returns how soon to look again.
pub(crate) async fn pass(seen: &Seen, source: &Source, context: &Arc<Context>) -> Result<Duration, ReconcileError> {
    let following = match observe(seen, source, context).await? {
        Ok(following) => following,
        Err(wait) => return Ok(wait),
    };
    let Following {
        snapshot,
        facts,
        followed,
    } = &following;
    let now = context.now();
    let plan = plan::follow(&snapshot.observed, facts.as_ref(), now);
    let mut again = false;
    for action in &plan.actions {
        again |= act(context, snapshot, action, &seen.credential).await?;
    }
    context.dequeue(&snapshot.owner.uid, None);
    if let (Some(why), Some(followed), Some(facts)) = (plan.demand, followed, facts) {
        match copy(context, snapshot, followed, facts, why, seen).await? {
            Copied::Yes => return Ok(Duration::ZERO),
            Copied::Changed => return Ok(SOON),
            Copied::No(problem, retry) => {
                let entry = (problem, context.now() + retry, seen.credential.metadata.generation);
                context.unprepared.lock().insert(snapshot.owner.uid.clone(), entry);
                return Ok(Duration::ZERO);
            }
        }
    }
    if again {
        return Ok(Duration::ZERO);
    }
    if !tell(context, seen, snapshot, &plan, now).await? {
        return Ok(BEHIND);
    }
    let wait = wait_after(context, &plan);
    Ok(if snapshot.unconfirmed {
        wait.min(WATCH_BEHIND)
    } else {
        wait
    })
}

async fn observe(
    seen: &Seen,
    source: &Source,
    context: &Arc<Context>,
) -> Result<Result<Following, Duration>, ReconcileError> {
    let credential = &seen.credential;
    let owner = Owner {
        namespace: credential.namespace().unwrap_or_default(),
        name: credential.name_any(),
        uid: credential.uid().unwrap_or_default(),
    };
    let Some(namespace) = context.caches.namespaces.get(&ObjectRef::new(&owner.namespace)) else {
        return Ok(Err(SOON));
    };
    let leaving = credential.metadata.deletion_timestamp.is_some() || namespace.metadata.deletion_timestamp.is_some();
    let (record, mut journal_unavailable) = match held(context, &owner.uid).await {
        Ok(record) => (record, None),
        Err(error @ JournalError::Broken { .. }) => (None, Some(error)),
        Err(error) => return Err(error.into()),
    };
    let name = sharing::name_of(source);
    let there = Place {
        name: &owner.namespace,
        labels: labels(&namespace.metadata),
    };
    let found = find(context, &name).await?;
    let resolved = found
        .as_ref()
        .and_then(|source| context.caches.connections.get(&source.spec.connection));
    if let Some(source) = &found {
        let ours = context.cluster.reach.serves(&source.spec.connection)
            && resolved.as_ref().is_none_or(|resolved| resolved.held.is_ok());
        if !ours {
            // Another installation's: not even its status is ours.
            return Ok(Err(LONGEST));
        }
    }
    let own_namespace = &context.cluster.namespace;
    let permitted = match &found {
        None => Err(absent(record.as_ref(), &name, &owner.namespace)),
        Some(source) => match &resolved {
            None => sharing::is_shared(source, &name, own_namespace, there),
            Some(resolved) => {
                let here = context.caches.namespaces.get(&ObjectRef::new(&name.namespace));
                let here = Place {
                    name: &name.namespace,
                    labels: here.as_ref().and_then(|here| labels(&here.metadata)),
                };
                let rules = &resolved.connection.spec.access;
                sharing::may_follow(source, rules, own_namespace, here, there)
            }
        },
    };
    let holds = record.as_ref().is_some_and(|r| r.live.is_some());
    if found.is_none() && holds && read_anew(context, &name).await?.is_some() {
        // Only the API server's own word takes a token away.
        return Ok(Err(SOON));
    }
    let mut connection = Connection::Ready {
        window: TimeDelta::hours(1),
    };
    let (mut facts, mut followed) = (None, None);
    let mut asks = credential.clone();
    if let (Ok(()), Some(source)) = (&permitted, &found) {
        asks = sharing::in_place_of(credential, source);
        match &resolved {
            None => {
                connection = Connection::Unusable(Problem::new(
                    Reason::ConnectionNotFound,
                    format!(
                        "ChittyConnection {}, by which {name} asks, does not exist",
                        source.spec.connection
                    ),
                ));
            }
            Some(resolved) => match follow(context, &name, source, resolved).await {
                Ok(known) => (facts, followed) = known,
                Err(error @ JournalError::Broken { .. }) => journal_unavailable = Some(error),
                Err(error) => return Err(error.into()),
            },
        }
    }
    if let Some(error) = &journal_unavailable {
        connection = Connection::Unusable(Problem::new(Reason::ConnectionNotReady, error.to_string()));
    }
    let api = resolved.as_ref().map(|r| r.connection.spec.api);
    let desired = spec::desired(&asks, api, &context.annotations);
    // Who may not follow makes nobody read templates.
    let desired = match desired {
        Ok(desired) if permitted.is_ok() => desired.check_templates().map(|()| desired),
        desired => desired,
    };
    let (secrets, unconfirmed) = look(context, &owner, desired.as_ref().ok(), record.as_ref(), None).await?;
    let unprepared = {
        let mut all = context.unprepared.lock();
        // A changed spec deserves another try at once.
        if all
            .get(&owner.uid)
            .is_some_and(|(_, _, g)| *g != credential.metadata.generation)
        {
            all.remove(&owner.uid);
        }
        all.get(&owner.uid).map(|(problem, until, _)| (problem.clone(), *until))
    };
    let observed = Observed {
        uid: owner.uid.clone(),
        terminating: leaving,
        suspended: credential.spec.suspend,
        desired,
        permitted,
        connection,
        secrets: secrets
            .iter()
            .map(|(name, s)| (name.clone(), s.state.clone()))
            .collect(),
        record,
        claim: None,
        held_up: None,
        working: false,
        journal_unavailable: journal_unavailable.is_some(),
        told: context.told_of(&owner, &seen.told),
        holder: context.identity.clone(),
        waiting: None,
        unprepared,
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
        source: found.as_ref().and_then(ResourceExt::uid),
    };
    Ok(Ok(Following {
        snapshot,
        facts,
        followed,
    }))
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
async fn read_anew(context: &Context, name: &ObjectName) -> Result<Option<Arc<EphemeralCredential>>, Error> {
    let api: Api<EphemeralCredential> = Api::namespaced(context.cluster.client.clone(), &name.namespace);
    let read = async {
        match bounded(api.get_opt(&name.name)).await {
            Ok(found) => Ok(found.map(Arc::new)),
            // The right to look went with the namespace.
            Err(error) if error.code() == Some(403) && context.cluster.namespace_is_gone(&name.namespace).await => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    };
    let found = context.fresh_sources.get(&name.to_string(), read).await?;
    let namespace = async { Ok::<_, Error>(context.cluster.namespace(&name.namespace).await?.map(|n| n.metadata)) };
    let namespace = context.fresh_namespaces.get(&name.namespace, namespace).await?;
    let stays = namespace.is_some_and(|namespace| namespace.deletion_timestamp.is_none());
    Ok(found.filter(|source| stays && source.metadata.deletion_timestamp.is_none()))
}

/// What is to be known of the credential that is followed.
async fn follow(
    context: &Arc<Context>,
    name: &ObjectName,
    source: &EphemeralCredential,
    resolved: &crate::controller::state::connections::Resolved,
) -> Result<(Option<plan::Source>, Option<Followed>), JournalError> {
    let owner = Owner {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        uid: source.uid().unwrap_or_default(),
    };
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
        live,
    };
    let scope = known.live_scope.or(scope);
    let followed = scope.map(|scope| Followed {
        credential: source.clone(),
        owner,
        scope,
        legible,
    });
    Ok((Some(facts), followed))
}

/// Does one thing; true where the credential should be looked at anew at once.
async fn act(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    action: &Action,
    credential: &EphemeralCredential,
) -> Result<bool, ReconcileError> {
    let owner = &snapshot.owner;
    match action {
        Action::Delete { secret } => {
            let guard = snapshot.seen.get(secret).and_then(|s| s.guard.clone());
            context.cluster.delete_secret(&owner.namespace, secret, guard).await?;
            context.caches.inspection_cache.lock().remove(&owner.uid);
            Ok(false)
        }
        Action::Restore { secret } => {
            let at = ObjectName::new(owner.namespace.as_str(), secret.as_str());
            if !context.may_restore(&at) {
                return Ok(false);
            }
            restore(context, snapshot, secret).await?;
            context.caches.inspection_cache.lock().remove(&owner.uid);
            Ok(true)
        }
        Action::Release { reason } => {
            let mut held = false;
            let scopes = context.index.lock().records_of(&owner.uid);
            for scope in scopes {
                let (uid, why) = (owner.uid.clone(), *reason);
                let journal = &context.scheduler(&scope).journal;
                held |= journal.commit(move |journal, _| journal.unfollow(&uid, why)).await?;
            }
            if held {
                let note = match reason {
                    Reason::Expired => {
                        "the token that was followed is no more; it is removed from this credential's Secrets"
                    }
                    _ => "this credential does not follow any more; its Secrets are removed",
                };
                context.events.publish(credential, true, *reason, "Release", note).await;
            }
            Ok(held)
        }
        // What a plan for one that follows has nothing of.
        _ => Ok(false),
    }
}

/// How a copy ended.
enum Copied {
    Yes,
    /// Something is not what it was: it is looked at anew.
    Changed,
    /// Not now: why, and when to try again.
    No(Problem, TimeDelta),
}

/// Takes the token of the credential that is followed from its Secret, and writes it to this one's.
async fn copy(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    followed: &Followed,
    facts: &plan::Source,
    why: MintReason,
    seen: &Seen,
) -> Result<Copied, ReconcileError> {
    let owner = &snapshot.owner;
    let (Some(live), Ok(desired)) = (&facts.live, &snapshot.observed.desired) else {
        return Ok(Copied::Changed);
    };
    if why == MintReason::Heal {
        let at = owner.object_name();
        tracing::warn!(namespace = %at.namespace, name = %at.name, "a Secret of a credential that follows another was changed by somebody else");
        if !context.may_restore(&at) {
            let message = "a managed Secret is changed or removed again and again; it is written anew once in a while: find \
                           out who changes it";
            return Ok(Copied::No(Problem::new(Reason::Tampered, message), RETRY));
        }
    }
    // What is given away cannot be taken back: both sides are asked for their word once more.
    if !still_may(context, owner, followed, &facts.name).await? {
        return Ok(Copied::Changed);
    }
    let record = snapshot.observed.record.as_ref();
    let before = record.and_then(|record| record.live.as_ref());
    let layout = desired.digest.layout;
    let unwritten = snapshot.observed.unprepared.is_some();
    if unwritten || before.is_none_or(|before| before.digest.layout != layout) {
        match dry_run(context, owner, desired, seen.credential.metadata.generation).await {
            Ok(()) => {}
            Err(NotPrepared::Problem(problem, _)) => return Ok(Copied::No(problem, RETRY)),
            Err(NotPrepared::Changed | NotPrepared::Later(_)) => return Ok(Copied::Changed),
        }
    }
    let mut token = ActiveToken {
        digest: crate::core::ids::SpecDigest { layout, ..live.digest },
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
    // Before a Secret is written the journal knows of it: whatever becomes of this process, it is not forgotten.
    if before.is_none_or(|before| desired.secrets.iter().any(|s| !before.secrets.contains_key(&s.name))) {
        let mut intent = before.unwrap_or(&token).clone();
        for (name, written) in token.secrets.iter() {
            if !intent.secrets.contains_key(name) {
                intent.secrets.insert(name.clone(), written.clone());
            }
        }
        if !note(context, followed, owner, intent).await? {
            return Ok(Copied::Changed);
        }
    }
    let mut outputs = None;
    for secret in &followed.legible {
        outputs = context
            .cluster
            .read_outputs(&followed.owner, secret, live, &context.seal)
            .await?;
        if outputs.is_some() {
            break;
        }
    }
    let Some(outputs) = outputs else {
        let message = format!(
            "no Secret of EphemeralCredential {} is as it was written; this one is given the token once one is, or the next",
            facts.name
        );
        return Ok(Copied::No(Problem::new(Reason::Issuing, message), RETRY));
    };
    let layouts = desired.secrets.iter().map(|s| (s.name.as_str(), &s.layout));
    if let Err(problem) = check_outputs(layouts, &outputs) {
        return Ok(Copied::No(problem, LATER));
    }
    match write(context, owner, desired, &mut token, &outputs).await {
        Ok(()) => {}
        Err(Stopped::Changed) => return Ok(Copied::Changed),
        Err(Stopped::No(problem, retry)) => return Ok(Copied::No(problem, retry)),
    }
    drop(outputs);
    let (revision, ends_at) = (token.revision, token.ends_at);
    if !note(context, followed, owner, token).await? {
        return Ok(Copied::Changed);
    }
    context.unprepared.lock().remove(&owner.uid);
    tracing::info!(namespace = %owner.namespace, name = %owner.name, source = %facts.name, revision, "a token was given to a credential that follows another");
    if before.is_none_or(|before| before.claim != live.claim) {
        let note = format!(
            "revision {revision} of EphemeralCredential {} is in this credential's Secrets, and valid until {}",
            facts.name,
            rfc3339(ends_at)
        );
        let reason = outcome::published(revision);
        context
            .events
            .publish(&seen.credential, false, reason, "Follow", &note)
            .await;
    }
    Ok(Copied::Yes)
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
    let [here, there] = [0, 1].map(|i: usize| Place {
        name: places[i].0,
        labels: labels(&places[i].1),
    });
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
    Ok(may.is_ok() && source.metadata.uid == followed.credential.metadata.uid)
}

/// Notes in the journal what is held; false where it is known to hold something later.
async fn note(
    context: &Arc<Context>,
    followed: &Followed,
    owner: &Owner,
    token: ActiveToken,
) -> Result<bool, ReconcileError> {
    let scope = &followed.scope;
    let of = owner.clone();
    let journal = &context.scheduler(scope).journal;
    let noted = journal
        .commit(move |journal, _| journal.follow(&of.uid, (&of.namespace, &of.name), token.clone()))
        .await?;
    if noted {
        context.index.lock().add_record(&owner.uid, &owner.object_name(), scope);
        context.supersede(&owner.uid, scope).await;
    }
    Ok(noted)
}

/// Why nothing was written.
enum Stopped {
    Changed,
    No(Problem, TimeDelta),
}

/// Writes all Secrets, and notes in `token` what was written.
async fn write(
    context: &Context,
    owner: &Owner,
    desired: &Desired,
    token: &mut ActiveToken,
    outputs: &crate::core::render::Outputs,
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
        let written = context
            .cluster
            .write_secret(owner, &metadata, &data, &context.seal, known)
            .await;
        let seen = match written {
            Ok(seen) => seen,
            Err(WriteError::NotOurs) => {
                context.caches.unlisted.lock().insert(at);
                return Err(Stopped::Changed);
            }
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

/// Has those who follow a credential looked at, where something is other that they go by: `now` is as it was just seen,
/// nothing where it is gone.
pub(crate) fn tell_followers(context: &Context, name: &ObjectName, now: Option<(&EphemeralCredential, &Snapshot)>) {
    if !context.caches.credentials.is_followed(name) {
        context.offers.lock().remove(name);
        return;
    }
    let offer = now.map(|(source, snapshot)| {
        let mut hasher = DefaultHasher::new();
        let record = snapshot.observed.record.as_ref();
        let connection = context.caches.connections.get(&source.spec.connection);
        let connection = connection.map(|c| {
            let metadata = &c.connection.metadata;
            (metadata.uid.clone(), metadata.generation, c.held.is_ok())
        });
        (
            &source.metadata.uid,
            source.metadata.generation,
            snapshot.observed.terminating,
            snapshot.observed.permitted.is_ok(),
            snapshot.observed.journal_unavailable,
            record.map(|record| record.live.as_ref().map(|live| &live.claim)),
            connection,
        )
            .hash(&mut hasher);
        hasher.finish()
    });
    let mut offers = context.offers.lock();
    let before = match offer {
        Some(offer) => offers.insert(name.clone(), offer),
        None => offers.remove(name),
    };
    drop(offers);
    if offer.is_none() || before != offer {
        for (follower, _) in context.caches.credentials.followers(name) {
            // What kept it from the last token may not keep it from the next.
            if let Some(facts) = context.caches.credentials.facts(&follower) {
                context.unprepared.lock().remove(facts.uid.as_str());
            }
            context.trigger(&follower);
        }
    }
}

#[expect(dead_code, reason = "what an OnDemand source counts demand by")]
impl Context {
    /// Where the tokens of the credential `source` go besides its own namespace: of each that may follow it, the namespace
    /// and the names of its Secrets. Whoever only says to follow it is not among them.
    ///
    /// # Errors
    /// Where the source is too long to be kept, and cannot be read now.
    pub async fn followers_of(&self, source: &ObjectName) -> Result<Vec<(Arc<str>, Vec<Arc<str>>)>, Error> {
        if !self.caches.credentials.is_followed(source) {
            return Ok(Vec::new());
        }
        let Some(credential) = find(self, source).await? else {
            return Ok(Vec::new());
        };
        let namespaces = &self.caches.namespaces;
        let (Some(resolved), Some(here)) = (
            self.caches.connections.get(&credential.spec.connection),
            namespaces.get(&ObjectRef::new(&source.namespace)),
        ) else {
            return Ok(Vec::new());
        };
        let here = Place {
            name: &source.namespace,
            labels: labels(&here.metadata),
        };
        let may = |namespace: &str| {
            let Some(there) = namespaces.get(&ObjectRef::new(namespace)) else {
                return false;
            };
            let there = Place {
                name: namespace,
                labels: labels(&there.metadata),
            };
            let rules = &resolved.connection.spec.access;
            sharing::may_follow(&credential, rules, &self.cluster.namespace, here, there).is_ok()
        };
        let all = self.caches.credentials.followers(source);
        let allowed = all.into_iter().filter(|(follower, _)| may(&follower.namespace));
        Ok(allowed
            .map(|(follower, follows)| (follower.namespace, follows.secrets.to_vec()))
            .collect())
    }
}
