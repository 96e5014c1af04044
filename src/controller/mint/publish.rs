//! From an answer to Secrets: retried until the token ends, and never minted again instead.

use std::future::ready;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use litemap::LiteMap;

use crate::api::{EphemeralCredential, Reason};
use crate::broker::Answer;
use crate::cluster::journal::ScopeJournal;
use crate::cluster::reach::labels;
use crate::cluster::secrets::{Owner, SecretMetadata, Write, WriteError, rfc3339};
use crate::cluster::{Error, bounded};
use crate::controller::state::context::{CachedInspection, Context};
use crate::core::ids::ObjectName;
use crate::core::journal::{ActiveToken, Claim, Minted, Written, metadata_digest};
use crate::core::render::{Data, MOST_RENDERED, check_outputs, fingerprint, placeholder, render, size};
use crate::core::seal::Seal;
use crate::core::spec::{Desired, DesiredSecret};
use crate::core::text::Text;
use crate::core::{Problem, Time, access};

/// How far clocks may differ and still count as telling the same time.
const SAME_CLOCK: TimeDelta = TimeDelta::seconds(2);

/// How long it rests after a write that failed: at first, and at most.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// How publishing ended.
pub enum Published {
    /// All Secrets are written.
    Yes(Box<ActiveToken>),
    /// They cannot be; the token is lost.
    No(Problem),
    /// The claim was closed by somebody else, or the credential is gone.
    Dropped,
}

/// When the tokens of an answer that came at `now` end for us, and how long they would live where `max`
/// ends them earlier.
///
/// The server's own clock decides: `lifetime` is measured by it. Where both clocks agree, its word
/// for the end is taken; otherwise the end is placed on ours, a second early, for its clock tells
/// whole seconds.
#[must_use]
pub fn end(
    expires_at: Option<Time>,
    lifetime: Option<TimeDelta>,
    max: Option<TimeDelta>,
    now: Time,
) -> Option<(Time, Option<TimeDelta>)> {
    let by_broker = match (expires_at, lifetime) {
        (Some(at), Some(lifetime)) if (at - lifetime - now).abs() <= SAME_CLOCK => Some(at),
        (_, Some(lifetime)) => Some(now + lifetime - TimeDelta::seconds(1)),
        (at, None) => at,
    };
    let by_us = max.map(|max| now + max);
    match (by_broker, by_us) {
        (Some(theirs), Some(ours)) => Some((theirs.min(ours), (ours < theirs).then_some(theirs - now))),
        (Some(theirs), None) => Some((theirs, None)),
        (None, ours) => ours.map(|at| (at, None)),
    }
}

/// A Secret that can be rendered, and how long it is then.
struct Ready<'a> {
    desired: &'a DesiredSecret,
    metadata: SecretMetadata,
    size: usize,
}

impl Ready<'_> {
    fn render(&self, answer: &Answer, ends_at: Time) -> Result<Data, Problem> {
        let DesiredSecret {
            name, type_, layout, ..
        } = self.desired;
        render(name, *type_, layout, &answer.outputs, ends_at, MOST_RENDERED)
    }
}

/// Writes what was minted.
pub async fn publish(
    context: &Context,
    journal: &ScopeJournal,
    owner: &Owner,
    desired: &Desired,
    claim: &Claim,
    answer: &Answer,
) -> Published {
    let issued_at = context.now();
    let max_lifetime = claim.max_lifetime_ms.map(TimeDelta::milliseconds);
    let Some((ends_at, full)) = end(answer.expires_at, answer.lifetime, max_lifetime, issued_at) else {
        return Published::No(Problem::new(
            Reason::InvalidResponse,
            "the token has no end, and spec.rotation.maxLifetime sets none",
        ));
    };
    let mut live = ActiveToken {
        claim: claim.id.clone(),
        revision: claim.revision,
        request: claim.request.clone(),
        endpoint: claim.endpoint.clone(),
        digest: claim.digest,
        issued_at,
        ends_at,
        full_lifetime: full.map(|life| life.num_seconds()),
        renew_before_ms: claim.renew_before_ms,
        period_ms: claim.period_ms,
        token_ids: answer.token_ids.clone(),
        outputs: answer.outputs.keys().map(Text::from).collect(),
        source: None,
        secrets: LiteMap::new(),
    };
    let laid_out = match lay_out(desired, answer, &mut live) {
        Ok(laid_out) => laid_out,
        Err(problem) => return Published::No(problem),
    };
    let mut publication = Publication {
        context,
        journal,
        owner,
        claim,
        answer,
        live: &live,
        noted: false,
        wait: FIRST_WAIT,
    };
    let mut stamped = Vec::new();
    for (secret, size) in laid_out {
        let ready = Ready {
            desired: secret,
            metadata: metadata(context, owner, secret, &live),
            size,
        };
        match publication.write(&ready).await {
            Ok(stamp) => stamped.extend(stamp),
            Err(stopped) => return stopped,
        }
    }
    for (name, version, metadata) in stamped {
        if let Some(written) = live.secrets.get_mut(&name) {
            written.stamp(version, metadata);
        }
    }
    Published::Yes(Box::new(live))
}

/// Renders all Secrets once, and notes in `live` what they hold; returns how long each is. What was rendered is not kept:
/// each write renders anew, when it has room for that.
fn lay_out<'a>(
    desired: &'a Desired,
    answer: &Answer,
    live: &mut ActiveToken,
) -> Result<Vec<(&'a DesiredSecret, usize)>, Problem> {
    let layouts = desired.secrets.iter().map(|s| (s.name.as_str(), &s.layout));
    check_outputs(layouts, &answer.outputs)?;
    let mut laid_out = Vec::new();
    let mut room = MOST_RENDERED;
    for secret in &desired.secrets {
        let DesiredSecret {
            name, type_, layout, ..
        } = secret;
        let data = render(name, *type_, layout, &answer.outputs, live.ends_at, room)?;
        room = room.saturating_sub(size(&data));
        let values = data.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        let written = Written {
            keys: data.keys().cloned().collect(),
            fingerprint: fingerprint(&live.claim, values),
            ..Written::default()
        };
        live.secrets.insert(name.clone(), written);
        laid_out.push((secret, size(&data)));
    }
    Ok(laid_out)
}

/// How a Secret of `live` is dressed.
pub fn metadata(context: &Context, owner: &Owner, secret: &DesiredSecret, live: &ActiveToken) -> SecretMetadata {
    let seal = Seal::new(&owner.uid, &owner.namespace, &secret.name, live);
    SecretMetadata {
        name: secret.name.clone(),
        type_: secret.type_,
        own: secret.metadata.clone(),
        seal: context.seal.sign(&seal),
        expires_at: rfc3339(live.ends_at),
    }
}

/// A Secret that is exactly as it was written: its name, its version and the digest of its metadata.
type Stamped = (String, String, String);

/// What came of one try to write a Secret.
enum Tried {
    Written(Option<Stamped>),
    /// The claim is to be asked first.
    Withheld,
    /// For the status.
    Failed(Problem),
}

/// The Secrets of one mint, while they are written.
struct Publication<'a> {
    context: &'a Context,
    journal: &'a ScopeJournal,
    owner: &'a Owner,
    claim: &'a Claim,
    answer: &'a Answer,
    live: &'a ActiveToken,
    /// Whether the journal has the ids of what was minted.
    noted: bool,
    /// How long it rests before it writes again.
    wait: Duration,
}

impl Publication<'_> {
    /// Writes one of them, as often as it takes.
    async fn write(&mut self, secret: &Ready<'_>) -> Result<Option<Stamped>, Published> {
        let context = self.context;
        let mut withheld = false;
        loop {
            if withheld || self.is_late() {
                match is_closed(self.journal, self.owner, self.claim).await {
                    Some(false) => {}
                    // Unread, nobody can have closed it either; the token may end meanwhile.
                    None if context.now() < self.live.ends_at => {
                        tokio::time::sleep(self.wait).await;
                        continue;
                    }
                    Some(true) | None => return Err(Published::Dropped),
                }
            }
            let problem = match self.try_write(secret).await? {
                Tried::Written(stamp) => return Ok(stamp),
                Tried::Withheld => {
                    withheld = true;
                    continue;
                }
                Tried::Failed(problem) => problem,
            };
            if !self.noted {
                self.noted = self.note().await;
            }
            if context.now() >= self.live.ends_at {
                return Err(Published::No(problem));
            }
            if is_gone(context, self.owner).await {
                return Err(Published::Dropped);
            }
            if let Some(blocked) = is_forbidden(context, self.owner).await {
                return Err(Published::No(blocked));
            }
            notify(context, self.owner, problem);
            tokio::time::sleep(self.wait).await;
            self.wait = (self.wait * 2).min(LONGEST_WAIT);
        }
    }

    /// A task that comes late, or again, might overwrite what a successor wrote: the claim is to be asked.
    fn is_late(&self) -> bool {
        self.noted || !self.context.leading() || self.context.now() >= self.claim.answered_by()
    }

    /// Whether it may write over what it has just read. Where somebody else has written meanwhile, that may be a successor.
    async fn may_write(&self, contended: bool) -> bool {
        is_to_write(
            contended || self.is_late(),
            is_closed(self.journal, self.owner, self.claim),
        )
        .await
    }

    /// Writes it once. What keeps it from that may pass.
    async fn try_write(&self, secret: &Ready<'_>) -> Result<Tried, Published> {
        let (context, name) = (self.context, &secret.metadata.name);
        let at = ObjectName::new(self.owner.namespace.as_str(), name.as_str());
        let known = Write {
            live: Some(self.live),
            absent: context.caches.is_absent(&at),
        };
        let written = {
            let _room = context.rendering.room_for(secret.size).await;
            let data = secret.render(self.answer, self.live.ends_at).map_err(Published::No)?;
            let (cluster, metadata) = (&context.cluster, &secret.metadata);
            let may = |contended| self.may_write(contended);
            cluster
                .write_secret(self.owner, metadata, &data, &context.seal, known, may)
                .await
        };
        let seen = match written {
            Ok(seen) => seen,
            Err(WriteError::Withheld) => return Ok(Tried::Withheld),
            Err(WriteError::NotOurs) => {
                return Ok(Tried::Failed(Problem::new(
                    Reason::SecretConflict,
                    format!("Secret {name} came to be somebody else's; the new token cannot be written"),
                )));
            }
            Err(WriteError::Api(error)) => {
                let why = why(context, self.owner, secret, &error).await;
                return Ok(Tried::Failed(Problem::new(
                    Reason::SecretRefused,
                    format!("a token was made, but Secret {name} cannot be written: {why}"),
                )));
            }
        };
        let own = &secret.metadata.own;
        let version = seen.version().filter(|_| seen.is_settled());
        let stamp = version.map(|version| {
            let metadata = metadata_digest(&context.seal.id(), own);
            (name.clone(), version.to_owned(), metadata)
        });
        let look = CachedInspection::new(seen, Some(self.live), Some(own), Some(Instant::now()));
        let mut looks = context.caches.inspection_cache.lock();
        looks
            .entry(self.owner.uid.clone())
            .or_default()
            .insert(name.clone(), look);
        Ok(Tried::Written(stamp))
    }

    /// Has the journal remember the ids: whatever becomes of this process, they can be revoked.
    async fn note(&self) -> bool {
        let (uid, id) = (self.owner.uid.clone(), self.claim.id.clone());
        let minted = Minted {
            issued_at: self.live.issued_at,
            ends_at: self.live.ends_at,
            token_ids: self.answer.token_ids.clone(),
        };
        let noted = self.journal.commit(move |j, now| j.minted(&uid, &id, &minted, now));
        noted.await.is_ok()
    }
}

/// What the API server says of the same Secret without its values: those words can be shown.
async fn why(context: &Context, owner: &Owner, secret: &Ready<'_>, error: &Error) -> String {
    if error.code().is_none() {
        return error.brief();
    }
    let harmless = placeholder(secret.desired.type_, &secret.desired.layout);
    // As if it were not there: words about what is replaced may repeat it, and could not be shown.
    let dry = Write {
        live: None,
        absent: true,
    };
    let cluster = &context.cluster;
    let asked = cluster.write_secret(owner, &secret.metadata, &harmless, &context.seal, dry, |_| ready(true));
    match asked.await {
        Err(WriteError::Api(said)) if said.code() == error.code() => said.brief(),
        _ => error.brief(),
    }
}

/// Permission that was withdrawn while the publication was held up: the token is not to be had any more.
async fn is_forbidden(context: &Context, owner: &Owner) -> Option<Problem> {
    let credential = context.credential(&owner.object_name()).await.ok()??.credential;
    let namespace = context.caches.namespaces.get(&ObjectRef::new(&owner.namespace))?;
    let resolved = context.caches.connections.get(&credential.spec.connection)?;
    access::allowed(
        &resolved.connection.spec.access,
        &context.cluster.namespace,
        &owner.namespace,
        labels(&namespace.metadata),
        &credential.spec,
    )
    .err()
}

/// What holds the publication up, for the status.
fn notify(context: &Context, owner: &Owner, problem: Problem) {
    if let Some(entry) = context.working.lock().get_mut(&owner.uid) {
        *entry = Some(problem);
    }
    context.trigger(&owner.object_name());
}

async fn is_gone(context: &Context, owner: &Owner) -> bool {
    let api: Api<EphemeralCredential> = Api::namespaced(context.cluster.client.clone(), &owner.namespace);
    match bounded(api.get_metadata_opt(&owner.name)).await {
        Ok(found) => found.is_none_or(|c| c.uid().as_deref() != Some(&owner.uid)),
        Err(_) => false,
    }
}

/// Whether a Secret is written: unasked, or where the claim is known not to be closed.
async fn is_to_write(ask: bool, is_closed: impl Future<Output = Option<bool>>) -> bool {
    !ask || is_closed.await == Some(false)
}

/// Whether somebody closed the claim, where that can be told.
async fn is_closed(journal: &ScopeJournal, owner: &Owner, claim: &Claim) -> Option<bool> {
    let (uid, id) = (owner.uid.clone(), claim.id.clone());
    journal
        .fresh(move |j| j.pending(&uid).is_none_or(|c| c.id != id))
        .await
        .ok()
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt;

    use super::*;
    use crate::core::testing::{s, t};

    #[test]
    fn a_server_whose_clock_agrees_is_taken_at_its_word() {
        assert_eq!(end(Some(t(3600)), Some(s(3600)), None, t(1)), Some((t(3600), None)));
    }

    #[test]
    fn a_server_an_hour_ahead_or_behind_changes_nothing_but_the_words() {
        for skew in [-3600, 3600] {
            assert_eq!(
                end(Some(t(3600 + skew)), Some(s(3600)), None, t(0)),
                Some((t(3599), None))
            );
        }
    }

    #[test]
    fn max_lifetime_ends_a_token_early_and_gives_one_without_end_its_end() {
        assert_eq!(
            end(Some(t(3600)), Some(s(3600)), Some(s(60)), t(0)),
            Some((t(60), Some(s(3600))))
        );
        assert_eq!(end(None, None, Some(s(60)), t(0)), Some((t(60), None)));
        assert_eq!(end(None, None, None, t(0)), None);
    }

    /// Invariant 5.
    #[test]
    fn whoever_comes_late_or_after_somebody_else_writes_only_where_the_claim_is_known_to_be_open() {
        let asking = |closed| is_to_write(true, ready(closed)).now_or_never();
        assert_eq!(asking(Some(false)), Some(true));
        assert_eq!(asking(Some(true)), Some(false));
        assert_eq!(asking(None), Some(false), "it cannot be told");
        assert_eq!(
            is_to_write(false, pending()).now_or_never(),
            Some(true),
            "nobody is asked"
        );
    }
}
