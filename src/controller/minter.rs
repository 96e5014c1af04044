//! One budget at a time: who wants a mint, who gets one, and seeing it through.
//!
//! Claim (compare-and-swap) -> POST -> Secrets -> outcome (compare-and-swap) -> status. The claim is
//! committed only for what was prepared on fresh reads; the POST leaves only while the claim is fresh.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use data_encoding::BASE32_NOPAD;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt};
use tokio::sync::Notify;

use super::context::{Context, Locked, Name};
use super::publish::{Published, publish};
use crate::api::{EphemeralCredential, Reason};
use crate::broker::{Api as BrokerApi, MintRequest, Probe, Provision, Refusal, Sent};
use crate::cluster::bounded;
use crate::cluster::journal::ScopeJournal;
use crate::cluster::secrets::{Dress, Owner, WriteError, rfc3339};
use crate::controller::connections::Usable;
use crate::core::audit::{AuditEvent, EventType, Subject};
use crate::core::budget::{self, Demand, Limit, Usage, Waiting};
use crate::core::journal::{Claim, Ending, EndpointRef, Failure, Journal, Kind, RequestFacts, Scope, Unauthorized};
use crate::core::schedule::{Bounds, CLAIM_FRESH, Try, retry_at, runway, unadvised_block};
use crate::core::spec::{Wanted, wanted};
use crate::core::{Problem, Time, access, render};

/// How often a refused key is tried again.
const PROBE_EVERY: TimeDelta = TimeDelta::minutes(15);
/// How often whoever waits is told how the line moved.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How long a credential rests whose preparation was overtaken.
const REST: TimeDelta = TimeDelta::milliseconds(300);
/// How many mints of a scope are prepared at once.
const PREPARE: usize = 16;

/// Somebody in line.
#[derive(Clone)]
struct Wish {
    demand: Demand,
    connection: String,
    verdict: Option<Waiting>,
    told: Option<Instant>,
}

/// The budget task of one scope.
pub struct ScopeRunner {
    /// What it is of.
    pub scope: Scope,
    /// Its journal.
    pub journal: ScopeJournal,
    wishes: Locked<HashMap<String, Wish>>,
    /// Who is not considered before when: what was prepared for them turned out to have changed.
    rests: Locked<HashMap<String, Time>>,
    usage: Locked<Usage>,
    notify: Notify,
}

/// A mint that needs only its claim.
struct Prepared {
    credential: EphemeralCredential,
    owner: Owner,
    wanted: Wanted,
    usable: Arc<Usable>,
    endpoint: EndpointRef,
    kind: Kind,
    window: TimeDelta,
    /// Revision and audit number so far, wherever they were counted.
    floor: (u64, u64),
}

impl ScopeRunner {
    /// Starts the task.
    pub fn start(context: &Arc<Context>, scope: Scope) -> Arc<Self> {
        let runner = Arc::new(Self {
            journal: context.journals.of(&scope),
            scope,
            wishes: Locked::default(),
            rests: Locked::default(),
            usage: Locked::default(),
            notify: Notify::new(),
        });
        let (task, context) = (Arc::clone(&runner), Arc::clone(context));
        tokio::spawn(async move {
            let stop = context.stop.clone();
            stop.run_until_cancelled(task.run(&context)).await;
        });
        runner
    }

    /// Looks at the line anew.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    /// Puts a credential in line, or updates its place.
    pub fn want(&self, demand: Demand, connection: &str) {
        let mut wishes = self.wishes.lock();
        if let Some(wish) = wishes.get_mut(&demand.uid) {
            let since = wish.demand.since;
            let same_line = wish.demand.kind.is_newcomer() == demand.kind.is_newcomer();
            let next = Demand {
                since: if same_line { since } else { demand.since },
                ..demand
            };
            if wish.demand == next && wish.connection == connection {
                return;
            }
            wish.demand = next;
            connection.clone_into(&mut wish.connection);
        } else {
            wishes.insert(
                demand.uid.clone(),
                Wish {
                    demand,
                    connection: connection.to_owned(),
                    verdict: None,
                    told: None,
                },
            );
        }
        drop(wishes);
        self.notify.notify_one();
    }

    /// Takes a credential out of the line.
    pub fn forget(&self, uid: &str) {
        if self.wishes.lock().remove(uid).is_some() {
            self.notify.notify_one();
        }
    }

    /// Takes a credential out of the line by its name.
    pub fn forget_name(&self, (namespace, name): &Name) {
        let mut wishes = self.wishes.lock();
        let before = wishes.len();
        wishes.retain(|_, w| w.demand.namespace != *namespace || w.demand.name != *name);
        if wishes.len() != before {
            self.notify.notify_one();
        }
    }

    /// Why a credential waits, as it was last told.
    #[must_use]
    pub fn verdict(&self, uid: &str) -> Option<Waiting> {
        self.wishes.lock().get(uid)?.verdict.clone()
    }

    /// How the budget stood when it was last looked at.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage.lock().clone()
    }

    async fn run(self: &Arc<Self>, context: &Arc<Context>) {
        loop {
            let wait = match self.pass(context).await {
                Some(at) => (at - context.now()).to_std().unwrap_or_default(),
                None => Duration::from_secs(30),
            };
            let wait = wait.clamp(Duration::from_millis(10), Duration::from_secs(30));
            tokio::select! {
                () = self.notify.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Admits whom the budget allows; returns when to look again.
    async fn pass(self: &Arc<Self>, context: &Arc<Context>) -> Option<Time> {
        let now = context.now();
        let Ok(journal) = self.journal.view().await else {
            return Some(now + TimeDelta::seconds(2));
        };
        let limits = context.connections.limits(&self.scope);
        if limits.is_empty() {
            return None;
        }
        let demands = self.admissible(context, now);
        let selection = budget::select(&journal, &demands, &limits, now);
        *self.usage.lock() = selection.usage.clone();
        self.tell(context, &selection.waiting, now);
        if selection.admitted.is_empty() || !context.leading() {
            let rested = self.rests.lock().values().min().copied();
            return selection.wake.into_iter().chain(rested).min();
        }
        let prepared = self.prepare(context, &selection.admitted, &limits).await;
        if !prepared.is_empty() {
            // Detached: a term that ends between claim and mint must not leave either unattended.
            let (runner, context) = (Arc::clone(self), Arc::clone(context));
            let claiming = tokio::spawn(async move { runner.claim(&context, prepared, demands, limits).await });
            if claiming.await.is_err() {
                tracing::error!(scope = self.scope.title(), "a claim ended in a panic");
            }
        }
        Some(now)
    }

    /// Who may be considered: nobody with a request under way, no newcomers before all are known
    /// who wait, and of a refused key's users only the one who tries it again.
    fn admissible(&self, context: &Arc<Context>, now: Time) -> Vec<Demand> {
        let wishes = self.wishes.lock();
        let working = context.working.lock();
        let warm = context.warm.load(Ordering::Acquire);
        let mut rests = self.rests.lock();
        rests.retain(|_, until| *until > now);
        let mut unauthorized = context.unauthorized.lock();
        let mut probes: Vec<String> = Vec::new();
        let mut demands: Vec<&Wish> = wishes
            .values()
            .filter(|w| !working.contains_key(&w.demand.uid) && !rests.contains_key(&w.demand.uid))
            .filter(|w| warm || !w.demand.kind.is_newcomer())
            .collect();
        demands.sort_by_key(|w| (w.demand.since, w.demand.uid.clone()));
        demands
            .into_iter()
            .filter(|w| {
                let usable = context.connections.get(&w.connection).and_then(|r| r.usable.ok());
                let Some(usable) = usable else {
                    return false;
                };
                let key = usable.key_digest.clone();
                match unauthorized.get_mut(&key) {
                    None => true,
                    Some(probe_at) if *probe_at <= now && usable.broker.api() == BrokerApi::Provision => {
                        // This API can be asked without a mint.
                        *probe_at = now + PROBE_EVERY;
                        tokio::spawn(probe(Arc::clone(context), usable, w.connection.clone()));
                        false
                    }
                    Some(probe_at) if *probe_at <= now && !probes.contains(&key) => {
                        probes.push(key);
                        true
                    }
                    Some(_) => false,
                }
            })
            .map(|w| w.demand.clone())
            .collect()
    }

    /// Keeps verdicts, and wakes those whose wait is news: at once the first time, later once a minute.
    fn tell(&self, context: &Context, waiting: &BTreeMap<String, Waiting>, now: Time) {
        let mut wishes = self.wishes.lock();
        for (uid, wish) in wishes.iter_mut() {
            let Some(verdict) = waiting.get(uid) else {
                continue;
            };
            let news = wish.verdict.as_ref().is_none_or(|old| {
                let passed = old.next_slot.is_some_and(|at| at <= now);
                let due = wish.told.is_none_or(|t| t.elapsed() >= TELL_EVERY);
                old.reason != verdict.reason || (old != verdict && (passed || due))
            });
            if news {
                wish.verdict = Some(verdict.clone());
                wish.told = Some(Instant::now());
                context.trigger(&wish.demand.namespace, &wish.demand.name);
            }
        }
    }

    async fn prepare(&self, context: &Arc<Context>, admitted: &[String], limits: &[Limit]) -> Vec<Prepared> {
        let window = limits.iter().map(|l| l.window).max().unwrap_or_default();
        let wishes: Vec<Wish> = {
            let all = self.wishes.lock();
            admitted.iter().filter_map(|uid| all.get(uid).cloned()).collect()
        };
        futures::stream::iter(wishes)
            .map(|wish| async move {
                let outcome = prepare(context, &self.scope, &wish.demand, window).await;
                (wish, outcome)
            })
            .buffered(PREPARE)
            .filter_map(|(wish, outcome)| async move {
                let uid = &wish.demand.uid;
                match outcome {
                    Ok(prepared) => return Some(prepared),
                    Err(NotPrepared::Changed) => {
                        // What is watched may be behind what was read: no faster than this.
                        self.rests.lock().insert(uid.clone(), context.now() + REST);
                    }
                    Err(NotPrepared::Problem(problem, generation)) => {
                        let until = context.now() + TimeDelta::seconds(15);
                        context
                            .unprepared
                            .lock()
                            .insert(uid.clone(), (problem, until, generation));
                    }
                }
                self.wishes.lock().remove(uid);
                context.trigger(&wish.demand.namespace, &wish.demand.name);
                None
            })
            .collect()
            .await
    }

    async fn claim(
        &self,
        context: &Arc<Context>,
        mut prepared: Vec<Prepared>,
        demands: Vec<Demand>,
        limits: Vec<Limit>,
    ) {
        let now = context.now();
        prepared.retain(|p| match context.unauthorized.lock().get_mut(&p.usable.key_digest) {
            None => true,
            // One request tries a refused key again, whatever the scope.
            Some(probe_at) if *probe_at <= now => {
                *probe_at = now + PROBE_EVERY;
                true
            }
            Some(_) => false,
        });
        {
            // Marked first: a claim in the journal that nobody works on would be judged lost.
            let mut working = context.working.lock();
            let mut homes = context.homes.lock();
            for p in &prepared {
                working.insert(p.owner.uid.clone(), None);
                let name: Name = (p.owner.namespace.clone(), p.owner.name.clone());
                homes.add(&p.owner.uid, name, &self.scope);
            }
        }
        let templates: Vec<(String, Claim, TimeDelta, (u64, u64))> = prepared
            .iter()
            .map(|p| (p.owner.uid.clone(), new_claim(p, &context.identity), p.window, p.floor))
            .collect();
        let committed = self
            .journal
            .commit(move |journal, now| {
                let selection = budget::select(journal, &demands, &limits, now);
                let mut claims = HashMap::new();
                for (uid, template, window, floor) in &templates {
                    if !selection.admitted.contains(uid) || journal.claims.contains_key(uid) {
                        continue;
                    }
                    let mut claim = template.clone();
                    claim.at = now;
                    journal.claim(uid, claim.clone(), *window);
                    journal.raise(uid, *floor);
                    claims.insert(uid.clone(), claim);
                }
                claims
            })
            .await;
        let mut claims = match committed {
            Ok(claims) => claims,
            Err(error) => {
                // Whether it was committed is unknown: unmarked, it is judged like any other claim.
                tracing::warn!(scope = self.scope.title(), %error, "failed to claim");
                HashMap::new()
            }
        };
        for p in prepared {
            let uid = p.owner.uid.clone();
            if let Some(claim) = claims.remove(&uid) {
                self.wishes.lock().remove(&uid);
                let (context, scope, journal) = (Arc::clone(context), self.scope.clone(), self.journal.clone());
                tokio::spawn(async move {
                    mint(&context, &journal, &scope, p, claim).await;
                });
            } else {
                context.working.lock().remove(&uid);
            }
        }
    }
}

/// Asks whether a refused key is accepted by now.
async fn probe(context: Arc<Context>, usable: Arc<Usable>, connection: String) {
    if matches!(usable.broker.probe(context.now()).await, Ok(Probe::Accepted)) {
        context.unauthorized.lock().remove(&usable.key_digest);
        context.trigger_where(|c| c.spec.connection == connection);
        for runner in context.scopes.lock().values() {
            runner.wake();
        }
    }
}

enum NotPrepared {
    /// The credential is not what it was: it is looked at anew.
    Changed,
    /// It cannot be published now.
    Problem(Problem, Option<i64>),
}

/// Fresh reads of credential and namespace, and a dry run of the Secrets where it is the first time
/// or the last write was refused: nothing is minted that cannot be published.
async fn prepare(
    context: &Arc<Context>,
    scope: &Scope,
    demand: &Demand,
    window: TimeDelta,
) -> Result<Prepared, NotPrepared> {
    let api: Api<EphemeralCredential> = Api::namespaced(context.cluster.client.clone(), &demand.namespace);
    let unreachable = |e: crate::cluster::Error| {
        NotPrepared::Problem(
            Problem::new(Reason::SecretRefused, format!("not asked yet: {}", e.brief())),
            None,
        )
    };
    let credential = bounded(api.get_opt(&demand.name)).await.map_err(unreachable)?;
    let credential = credential
        .filter(|c| c.uid().as_deref() == Some(&demand.uid) && c.metadata.deletion_timestamp.is_none())
        .ok_or(NotPrepared::Changed)?;
    let namespaces: Api<Namespace> = Api::all(context.cluster.client.clone());
    let namespace = bounded(namespaces.get_metadata_opt(&demand.namespace))
        .await
        .map_err(unreachable)?
        .filter(|n| n.metadata.deletion_timestamp.is_none())
        .ok_or(NotPrepared::Changed)?;

    let resolved = context
        .connections
        .get(&credential.spec.connection)
        .ok_or(NotPrepared::Changed)?;
    let wanted = wanted(&credential, Some(resolved.connection.spec.api)).map_err(|_| NotPrepared::Changed)?;
    let labels = namespace.metadata.labels.unwrap_or_default();
    let rules = &resolved.connection.spec.access;
    if credential.spec.suspend
        || resolved.scope(&wanted.service).as_ref() != Some(scope)
        || access::allowed(
            rules,
            &context.cluster.namespace,
            &demand.namespace,
            &labels,
            &credential.spec,
        )
        .is_err()
    {
        return Err(NotPrepared::Changed);
    }
    let endpoint = resolved.endpoint();
    let usable = resolved.usable.map_err(|_| NotPrepared::Changed)?;
    let owner = Owner {
        namespace: demand.namespace.clone(),
        name: demand.name.clone(),
        uid: demand.uid.clone(),
    };
    let records = context.records(&demand.uid).await.map_err(|_| NotPrepared::Changed)?;
    let proven = records.iter().any(|(_, r)| {
        let refused = r.failure.as_ref().is_some_and(|f| f.reason == Reason::SecretRefused);
        !refused && r.live.as_ref().is_some_and(|l| l.layout_hash == wanted.layout_hash)
    });
    if !proven {
        dry_run(context, &owner, &wanted, credential.metadata.generation).await?;
    }
    let floor = records.iter().fold((0, 0), |(revision, seq), (_, r)| {
        (r.revision.max(revision), r.seq.max(seq))
    });
    Ok(Prepared {
        credential,
        owner,
        wanted,
        usable,
        endpoint,
        kind: demand.kind,
        window,
        floor,
    })
}

async fn dry_run(
    context: &Context,
    owner: &Owner,
    wanted: &Wanted,
    generation: Option<i64>,
) -> Result<(), NotPrepared> {
    for secret in &wanted.secrets {
        let dress = Dress {
            name: secret.name.clone(),
            type_: secret.type_,
            labels: secret.labels.clone(),
            seal: String::new(),
            expires_at: String::new(),
        };
        let data = render::placeholder(secret.type_, &secret.layout);
        let problem = match context
            .cluster
            .write_secret(owner, &dress, &data, &context.seal, true)
            .await
        {
            Ok(()) => continue,
            Err(WriteError::NotOurs) => return Err(NotPrepared::Changed),
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

fn new_claim(p: &Prepared, identity: &str) -> Claim {
    let id = BASE32_NOPAD.encode(&rand::random::<[u8; 16]>()).to_lowercase();
    Claim {
        namespace: p.owner.namespace.clone(),
        name: p.owner.name.clone(),
        revision: p.floor.0 + 1,
        at: Time::default(),
        holder: identity.to_owned(),
        timeout_seconds: p.usable.timeout.num_seconds(),
        kind: p.kind,
        request: RequestFacts {
            connection: p.wanted.connection.clone(),
            service: p.wanted.service.clone(),
            purpose: p.wanted.purpose.clone(),
            repo: p.wanted.repo.clone(),
            run_id: p.wanted.run_id.clone().unwrap_or_else(|| id.clone()),
            type_: p.wanted.type_.clone(),
        },
        endpoint: p.endpoint.clone(),
        request_hash: p.wanted.request_hash.clone(),
        layout_hash: p.wanted.layout_hash.clone(),
        rotate: p.wanted.rotate.clone(),
        secrets: p.wanted.secrets.iter().map(|s| s.name.clone()).collect(),
        renew_before_ms: p.wanted.renew_before.map(|d| d.num_milliseconds()),
        minted: None,
        id,
    }
}

/// Sees one claim through.
async fn mint(context: &Arc<Context>, journal: &ScopeJournal, scope: &Scope, p: Prepared, claim: Claim) {
    let uid = p.owner.uid.clone();
    if context.now() - claim.at >= CLAIM_FRESH || !context.leading() {
        let id = claim.id.clone();
        let owner = uid.clone();
        settle(journal, move |journal, _| journal.withdraw(&owner, &id)).await;
    } else {
        post(context, journal, scope, &p, &claim).await;
    }
    context.working.lock().remove(&uid);
    context.trigger(&p.owner.namespace, &p.owner.name);
    context.runner(scope).wake();
}

async fn post(context: &Arc<Context>, journal: &ScopeJournal, scope: &Scope, p: &Prepared, claim: &Claim) {
    let request = request_of(claim, &p.wanted);
    let started = Instant::now();
    let answer = p.usable.broker.mint(&request, context.now()).await;
    context.metrics.answered(started.elapsed());
    match answer {
        Ok(answer) => match publish(context, journal, &p.owner, &p.wanted, claim, &answer).await {
            Published::Yes(live) => succeed(context, journal, scope, p, claim, *live).await,
            Published::No(problem) => {
                let refusal = Refusal {
                    reason: problem.reason,
                    message: problem.message,
                    sent: Sent::Yes,
                    retry_after: None,
                    token_ids: answer.token_ids,
                };
                fail(context, journal, p, claim, &refusal).await;
            }
            Published::Dropped => {
                let (uid, claim, ids) = (p.owner.uid.clone(), claim.clone(), answer.token_ids);
                settle(journal, move |journal, now| journal.disown(&uid, &claim, &ids, now)).await;
            }
        },
        Err(refusal) => {
            fail(context, journal, p, claim, &refusal).await;
            if refusal.reason == Reason::OutcomeUnknown {
                look_for_orphans(context, journal, &p.usable, &p.owner.uid, &p.wanted, claim).await;
            }
        }
    }
}

fn request_of(claim: &Claim, wanted: &Wanted) -> MintRequest {
    MintRequest {
        service: claim.request.service.clone(),
        purpose: claim.request.purpose.clone(),
        repo: claim.request.repo.clone(),
        run_id: claim.request.run_id.clone(),
        idempotency_key: claim.id.clone(),
        provision: claim.request.type_.clone().map(|type_| Provision {
            type_,
            context: wanted.context.clone(),
        }),
    }
}

/// Asks which tokens a request whose answer was lost may have made, and notes their ids.
pub async fn look_for_orphans(
    context: &Context,
    journal: &ScopeJournal,
    usable: &Usable,
    uid: &str,
    wanted: &Wanted,
    claim: &Claim,
) {
    // The server's clock may differ a little from ours.
    let since = claim.at - TimeDelta::seconds(5);
    let request = request_of(claim, wanted);
    if let Ok(candidates) = usable.broker.candidates(&request, since, context.now()).await
        && !candidates.is_empty()
    {
        let uid = uid.to_owned();
        if let Err(error) = journal
            .commit(move |journal, _| journal.orphaned(&uid, candidates.clone()))
            .await
        {
            tracing::warn!(%error, "candidates for a lost answer could not be noted");
        }
    }
}

async fn succeed(
    context: &Arc<Context>,
    journal: &ScopeJournal,
    scope: &Scope,
    p: &Prepared,
    claim: &Claim,
    live: crate::core::journal::Live,
) {
    let deliver = p.usable.chronicle.is_some();
    let (claimed, uid) = (claim.clone(), p.owner.uid.clone());
    let (namespace, name) = (p.owner.namespace.clone(), p.owner.name.clone());
    let reason = if live.revision > 1 {
        Reason::Rotated
    } else {
        Reason::Issued
    };
    let (ends_at, kind) = (live.ends_at, claim.kind);
    let key = p.usable.key_digest.clone();
    let committed = settle(journal, move |journal, now| {
        if !journal.end(&uid, &claimed.id, Ending::Published(Box::new(live.clone())), now) {
            journal.disown(&uid, &claimed, &live.token_ids, now);
            return None;
        }
        let subject = Subject {
            uid: &uid,
            namespace: &namespace,
            name: &name,
            request: &live.request,
            revision: live.revision,
        };
        let event = if reason == Reason::Issued {
            EventType::Provisioned
        } else {
            EventType::Rotated
        };
        let event = AuditEvent::new(event, reason, &subject, now, deliver).token(live.ends_at, &live.token_ids);
        Some(journal.record_event(&uid, event))
    })
    .await;
    context.unauthorized.lock().remove(&key);
    context.supersede(&p.owner.uid, scope).await;
    let Some(Some(event)) = committed else { return };
    context.log_event(&event);
    let note = format!(
        "revision {} ({kind:?}) is valid until {}; run_id {}",
        event.revision,
        rfc3339(ends_at),
        event.request.run_id
    );
    context
        .events
        .publish(&p.credential, false, reason, "Mint", &note)
        .await;
}

async fn fail(context: &Arc<Context>, journal: &ScopeJournal, p: &Prepared, claim: &Claim, refusal: &Refusal) {
    let counted = refusal.sent != Sent::No;
    let (owner, wanted, refused) = (p.owner.clone(), p.wanted.clone(), refusal.clone());
    let claimed = claim.clone();
    let deliver = p.usable.chronicle.is_some();
    let limits = context
        .connections
        .get(&p.wanted.connection)
        .map(|r| vec![r.limit])
        .unwrap_or_default();
    let (window, timeout, key) = (p.window, p.usable.timeout, p.usable.key_digest.clone());
    let event = settle(journal, move |journal, now| {
        if refused.reason == Reason::Unauthorized {
            journal.unauthorized = Some(Unauthorized {
                key: key.clone(),
                probe_at: now + PROBE_EVERY,
            });
        }
        let failure = failure(
            journal, &owner.uid, &claimed, &wanted, &refused, counted, window, timeout, now,
        );
        let ending = Ending::Failed { failure, counted };
        if !journal.end(&owner.uid, &claimed.id, ending, now) {
            journal.disown(&owner.uid, &claimed, &refused.token_ids, now);
            return None;
        }
        throttle(journal, &refused, &claimed, &limits, window, now);
        journal.disown(&owner.uid, &claimed, &refused.token_ids, now);
        let subject = Subject {
            uid: &owner.uid,
            namespace: &owner.namespace,
            name: &owner.name,
            request: &claimed.request,
            revision: claimed.revision,
        };
        let kind = EventType::of_failure(refused.reason);
        let event = AuditEvent::new(kind, refused.reason, &subject, now, deliver);
        Some(journal.record_event(&owner.uid, event))
    })
    .await;
    if refusal.reason == Reason::Unauthorized {
        let probe_at = context.now() + PROBE_EVERY;
        context
            .unauthorized
            .lock()
            .insert(p.usable.key_digest.clone(), probe_at);
        let connection = p.wanted.connection.clone();
        context.trigger_where(|c| c.spec.connection == connection);
    }
    if let Some(Some(event)) = event {
        context.log_event(&event);
        context
            .events
            .publish(&p.credential, true, refusal.reason, "Mint", &refusal.message)
            .await;
    }
}

/// What a 429 does to its scope.
fn throttle(journal: &mut Journal, refusal: &Refusal, claim: &Claim, limits: &[Limit], window: TimeDelta, now: Time) {
    if refusal.reason != Reason::RateLimited {
        return;
    }
    journal.throttle.count = journal.throttle.count.saturating_add(1);
    // An advice of more than a day is no advice.
    let advised = refusal
        .retry_after
        .map(|wait| wait.clamp(TimeDelta::seconds(1), TimeDelta::days(1)));
    let wait = advised.unwrap_or_else(|| {
        budget::learn(journal, limits, &claim.id, now);
        unadvised_block(journal.throttle.count, window)
    });
    let until = now + wait;
    journal.throttle.blocked_until = Some(journal.throttle.blocked_until.map_or(until, |at| at.max(until)));
}

#[expect(clippy::too_many_arguments, reason = "all of them are facts about one failure")]
fn failure(
    journal: &Journal,
    uid: &str,
    claim: &Claim,
    wanted: &Wanted,
    refusal: &Refusal,
    counted: bool,
    window: TimeDelta,
    timeout: TimeDelta,
    now: Time,
) -> Failure {
    let count = journal.failures_in_a_row(uid, &claim.request_hash, &claim.rotate);
    let live = journal
        .credentials
        .get(uid)
        .and_then(|r| r.live.as_ref())
        .filter(|l| l.ends_at > now)
        .map(|l| (l.ends_at, runway(l.ends_at - l.issued_at, wanted.renew_before)));
    let failed = Try {
        reason: refusal.reason,
        count,
        counted,
    };
    let bounds = Bounds { window, timeout, live };
    let retry_at = match refusal.reason {
        // The scope, or the connection, says when; the credential itself may ask as soon as they do.
        Reason::RateLimited | Reason::Unauthorized => Some(now),
        _ => retry_at(failed, bounds, uid, now),
    };
    Failure {
        reason: refusal.reason,
        message: refusal.message.clone(),
        at: now,
        count,
        retry_at,
        request_hash: claim.request_hash.clone(),
        layout_hash: claim.layout_hash.clone(),
        rotate: claim.rotate.clone(),
    }
}

/// Commits an outcome, however long that takes: it happened, and the journal must say so.
pub async fn settle<R: Send + 'static>(
    journal: &ScopeJournal,
    decide: impl FnMut(&mut Journal, Time) -> R + Send + Clone + 'static,
) -> Option<R> {
    let mut wait = Duration::from_millis(200);
    loop {
        match journal.commit(decide.clone()).await {
            Ok(outcome) => return Some(outcome),
            Err(error) => {
                tracing::warn!(%error, "an outcome waits to be committed");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(10));
            }
        }
    }
}
