//! The Pods that read a credential's Secrets: what they ask for, and what they are told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;

use crate::api::{Activation, EphemeralCredential, EphemeralCredentialStatus, InUse, Reason};
use crate::cluster::secrets::rfc3339;
use crate::controller::credential::observe::Snapshot;
use crate::controller::state::context::Context;
use crate::controller::state::pods::Unseen;
use crate::core::consumers::{Pod, Users, Uses, Ways, end_of_token_read_at};
use crate::core::ids::{ObjectName, Uid};
use crate::core::plan::Verdict;
use crate::core::spec::{self, digest};
use crate::core::status::Told;
use crate::core::{Problem, Time, clock};

/// A Pod, and how it reads.
pub(crate) type Reader = (Arc<Pod>, Ways);

/// All of them; or why they are not known, if they need to be.
pub(crate) type Readers = Result<Vec<Reader>, Option<Unseen>>;

/// How many Pods are told something in one pass.
const TOLD_AT_ONCE: usize = 16;
/// How soon others are.
const TELL_ON: Duration = Duration::from_secs(1);

/// The Secrets whose readers count for a credential.
pub(crate) fn secrets(credential: &EphemeralCredential) -> Vec<ObjectName> {
    let (namespace, name) = (credential.namespace().unwrap_or_default(), credential.name_any());
    let names = spec::secret_names(&credential.spec, &name);
    names.map(|name| ObjectName::new(&namespace, name)).collect()
}

/// The Pods that read them, or what whoever follows is given, each once.
///
/// # Errors
/// Where they are not known; nothing where they need not be.
pub(crate) fn readers(context: &Context, credential: &EphemeralCredential) -> Readers {
    if !spec::looks_after_pods(&credential.spec) {
        return Err(None);
    }
    let pods = &context.caches.pods;
    let mut all: Vec<Reader> = Vec::new();
    let mut places: HashMap<Uid, usize> = HashMap::new();
    let own = secrets(credential);
    let followers = context.followers_of(credential).into_iter();
    let theirs = followers.flat_map(|(namespace, secrets)| {
        let at = move |secret: &Arc<str>| ObjectName::new(&namespace, secret);
        secrets.iter().map(at).collect::<Vec<_>>()
    });
    let here = own.len();
    for (n, secret) in own.into_iter().chain(theirs).enumerate() {
        let seen = pods.seen(&secret.namespace);
        // Elsewhere nobody who may not be seen counts; here nothing would be known.
        if seen == Err(Unseen::Refused) && n >= here {
            continue;
        }
        seen.map_err(Some)?;
        for (pod, ways) in pods.readers(&secret) {
            if let Some(place) = places.get(&pod.uid) {
                all[*place].1 |= ways;
            } else {
                places.insert(pod.uid.clone(), all.len());
                all.push((pod, ways));
            }
        }
    }
    Ok(all)
}

/// Who uses its tokens.
pub(crate) fn users(credential: &EphemeralCredential, readers: &Readers) -> Users {
    if credential.spec.activation == Activation::Always {
        return Users::Anybody;
    }
    match readers {
        Ok(readers) => Users::Pods(uses(readers)),
        Err(Some(Unseen::Refused)) => {
            let namespace = credential.namespace().unwrap_or_default();
            Users::Unknown(Some(Problem::new(
                Reason::NotPermitted,
                format!(
                    "activation: OnDemand goes by the Pods that use its Secrets, and the controller may not watch the Pods of \
                     namespace {namespace}: an administrator sets rbac.pods in the values of the chart; until then nothing \
                     is minted"
                ),
            )))
        }
        Err(_) => Users::Unknown(None),
    }
}

/// What they come to.
pub(crate) fn uses(readers: &[Reader]) -> Uses {
    let mut uses = Uses::default();
    for (pod, ways) in readers {
        uses.add(pod, *ways);
    }
    uses
}

/// Says that it is not known who reads what is issued all the same.
pub(crate) fn tell_unseen(readers: &Readers, users: &Users, verdict: &mut Verdict) {
    if *users == Users::Anybody && *readers == Err(Some(Unseen::Refused)) {
        verdict.message += "; which Pods read it is not known, for the controller may not watch Pods (rbac.pods in the values \
                            of the chart)";
    }
}

/// How many read the Secrets, for the status; what was told last while they are not known for a moment.
pub(crate) fn in_use(readers: &Readers, told: &Told) -> Option<InUse> {
    match readers {
        Ok(readers) => Some(uses(readers).counts),
        Err(Some(Unseen::Unlisted)) => told.in_use,
        Err(_) => None,
    }
}

/// How long a status is put off in which nothing else is news.
pub(crate) fn put_off(
    context: &Context,
    snapshot: &Snapshot,
    told: &Told,
    next: &EphemeralCredentialStatus,
) -> Option<Duration> {
    if told.in_use == next.in_use {
        return None;
    }
    let put_off = context.pods_told.lock().put_off(&snapshot.owner.uid, Instant::now());
    put_off.filter(|_| told.tells_but_in_use(next))
}

/// Tells Pods what they wait for, and when what they have read ends; returns how soon there is more to tell.
pub(crate) async fn look_after(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    verdict: Option<&Verdict>,
) -> Option<Duration> {
    let readers = snapshot.readers.as_ref().ok()?;
    let mut soon = Vec::new();
    if let Some(verdict) = verdict.filter(|v| !v.issued && v.reason != Reason::Idle) {
        soon.extend(tell_who_waits(context, snapshot, readers, verdict).await);
    }
    soon.extend(warn(context, snapshot, readers).await);
    soon.into_iter().min()
}

async fn tell_who_waits(
    context: &Context,
    snapshot: &Snapshot,
    readers: &[Reader],
    verdict: &Verdict,
) -> Option<Duration> {
    let now = Instant::now();
    let mut told = 0;
    for (pod, ways) in readers {
        if pod.leaving || !pod.starting || ways.has(Ways::OPTIONAL) && !ways.has(Ways::LACKS) {
            continue;
        }
        if told == TOLD_AT_ONCE {
            return Some(TELL_ON);
        }
        if !context.pods_told.lock().waits(&pod.uid, verdict.reason, now) {
            continue;
        }
        told += 1;
        let name = &snapshot.owner.name;
        let note = format!("waits for the token of EphemeralCredential {name}: {}", verdict.message);
        let events = &context.events;
        events
            .publish_about(reference(pod), rand::random(), true, verdict.reason, "Wait", &note)
            .await;
    }
    None
}

/// Warns Pods that have read once what ends soon, and restarts their workloads where these ask for it.
async fn warn(context: &Arc<Context>, snapshot: &Snapshot, readers: &[Reader]) -> Option<Duration> {
    let before = snapshot.observed.desired.as_ref().ok()?.warn_before?;
    let frozen: Vec<(&Arc<Pod>, Time)> = readers
        .iter()
        // Those of a follower are its own to warn.
        .filter(|(pod, _)| *pod.name.namespace == *snapshot.owner.namespace)
        .filter(|(pod, ways)| ways.is_frozen() && !pod.leaving)
        .filter_map(|(pod, _)| Some((pod, pod.started?)))
        .collect();
    if frozen.is_empty() {
        return None;
    }
    let (record, now) = (snapshot.observed.record.as_ref()?, context.now());
    let (mut next, mut told): (Option<Time>, usize) = (None, 0);
    let mut restarted: Vec<&(Arc<str>, Arc<str>)> = Vec::new();
    for (pod, started) in frozen {
        // It is told in whole seconds.
        let read_at = started + TimeDelta::seconds(1);
        let Some(end) = end_of_token_read_at(read_at, record.tokens()).filter(|end| *end > now) else {
            continue;
        };
        if end - before > now {
            next = next.into_iter().chain([end - before]).min();
            continue;
        }
        if told == TOLD_AT_ONCE {
            return Some(TELL_ON);
        }
        let uid = &snapshot.owner.uid;
        if !context.pods_told.lock().ends(uid, &pod.uid, end, now) {
            continue;
        }
        told += 1;
        let mut note = format!(
            "the token of EphemeralCredential {} that this Pod has read ends at {}: what is read by environment variables or \
             by a subPath is not replaced; a volume is",
            snapshot.owner.name,
            clock(end, now)
        );
        if let Some(owner) = pod.owner.as_ref().filter(|_| context.restart_workloads) {
            if !restarted.contains(&owner) && restart(context, snapshot, owner, end).await {
                restarted.push(owner);
            }
            if restarted.contains(&owner) {
                note += "; its workload asks to be restarted for that, and is";
            }
        }
        let unique = u64::from_str_radix(&digest([uid, pod.uid.as_str(), &rfc3339(end)])[..16], 16).unwrap_or_default();
        let events = &context.events;
        events
            .publish_about(reference(pod), unique, true, Reason::Expired, "Warn", &note)
            .await;
    }
    next.map(|at| (at - now).to_std().unwrap_or_default())
}

async fn restart(context: &Context, snapshot: &Snapshot, (kind, name): &(Arc<str>, Arc<str>), end: Time) -> bool {
    let namespace = &snapshot.owner.namespace;
    let restarted = context
        .cluster
        .restart_workload(namespace, kind, name, &rfc3339(end))
        .await;
    restarted.unwrap_or_else(|error| {
        tracing::warn!(%namespace, %kind, %name, error = %error.brief(), "failed to restart a workload that asks for it");
        false
    })
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.name.namespace.to_string()),
        name: Some(pod.name.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}
