//! What is watched: connections, keys, namespaces, and managed Secrets by name alone.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{ListParams, ObjectMeta};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{Error as WatchError, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::api::{ChittyConnection, EphemeralCredential};
use crate::cluster::keys::managed_selector;
use crate::cluster::pods::{IN_USE, WatchedPod};
use crate::cluster::reach::Part;
use crate::cluster::{Cluster, Error, bounded};
use crate::controller::background::clock::Term;
use crate::controller::state::caches::{Caches, Writers};
use crate::controller::state::changes::{Changes, name_of};
use crate::controller::state::context::Context;
use crate::controller::state::credentials::trim;
use crate::controller::state::secret_index::{Listed, OwnedBy};
use crate::controller::state::{parts, poll};
use crate::controller::supervisor::Supervisor;
use crate::core::ids::ObjectName;

/// How long Pods are still watched that matter to nobody any more.
const PODS_LINGER: Duration = Duration::from_secs(10);
/// How long a start waits for them.
const PODS_WITHIN: Duration = Duration::from_secs(10);
/// How many objects one answer to a list has: while it is read, it takes ten times its length.
const LISTED_AT_ONCE: u32 = 100;

/// A watch that one malformed object cannot stall: it is skipped, and said so.
pub fn tolerant<K>(
    events: impl Stream<Item = Result<Event<DeserializeGuard<K>>, WatchError>> + Send,
) -> impl Stream<Item = Result<Event<K>, WatchError>> + Send
where
    K: Resource<DynamicType = ()> + Clone + Send,
{
    events.try_filter_map(|event| async move {
        Ok(match event {
            Event::Apply(guard) => read(guard).map(Event::Apply),
            Event::Delete(guard) => read(guard).map(Event::Delete),
            Event::InitApply(guard) => read(guard).map(Event::InitApply),
            Event::Init => Some(Event::Init),
            Event::InitDone => Some(Event::InitDone),
        })
    })
}

fn read<K: Resource<DynamicType = ()>>(guard: DeserializeGuard<K>) -> Option<K> {
    let (namespace, name) = (guard.namespace(), guard.name_any());
    match guard.0 {
        Ok(object) => Some(object),
        Err(error) => {
            let kind = K::kind(&());
            tracing::error!(%kind, namespace, name, error = %error.error, "an object cannot be read and is left out: mend or delete it");
            None
        }
    }
}

/// Waits until both kinds are served and may be listed.
pub async fn await_kinds(cluster: &Cluster, stop: &CancellationToken) {
    let mut told = false;
    loop {
        let problem = match listable::<EphemeralCredential>(cluster.parts_by_namespace()).await {
            Ok(()) => listable::<ChittyConnection>(cluster.parts_by_connection()).await.err(),
            Err(error) => Some(error),
        };
        let Some(problem) = problem else { return };
        if !told {
            tracing::warn!(error = %problem.brief(), "the CRDs cannot be listed yet; waiting for them and for the right to list them");
            told = true;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Whether at least one of `parts` can be listed: a namespace that is gone, or may not be looked into, keeps nobody from
/// the others.
async fn listable<K>(parts: Vec<Part<PartialObjectMeta<K>>>) -> Result<(), Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut outcome = Ok(());
    for part in parts {
        let one = ListParams {
            field_selector: part.fields,
            ..ListParams::default().limit(1)
        };
        match bounded(part.api.list(&one)).await {
            Ok(_) => return Ok(()),
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}

/// Starts the watches. They go on as long as the process does; what is news is told to the term there is.
pub fn start(
    caches: &Arc<Caches>,
    writers: Writers,
    term: &Arc<Term>,
    supervisor: &Supervisor,
    stop: &CancellationToken,
) {
    let (news, changes) = mpsc::unbounded_channel();
    let feed = Feed {
        caches: Arc::clone(caches),
        term: Arc::clone(term),
    };
    supervisor.spawn("watch of credentials", stop, watch_credentials(feed.clone()));
    let connections = watch_connections(feed.clone(), writers.connections, news.clone());
    supervisor.spawn("watch of connections", stop, connections);
    supervisor.spawn("watch of keys", stop, watch_keys::<Secret>(feed.clone(), news.clone()));
    supervisor.spawn("watch of bundles", stop, watch_keys::<ConfigMap>(feed.clone(), news));
    supervisor.spawn("resolving connections", stop, refresh(feed.clone(), changes));
    supervisor.spawn(
        "watch of namespaces",
        stop,
        watch_namespaces(feed.clone(), writers.namespaces),
    );
    supervisor.spawn("watch of Pods", stop, watch_pods(feed.clone()));
    supervisor.spawn("watch of Secrets", stop, watch_secrets(feed));
}

/// Where the watches put what they learn.
#[derive(Clone)]
struct Feed {
    caches: Arc<Caches>,
    term: Arc<Term>,
}

impl Feed {
    /// Tells the term, if this process leads: a standby looks at everything when its term begins.
    fn tell(&self, what: impl FnOnce(&Context)) {
        let term = self.term.lock().clone();
        if let Some(context) = term {
            what(&context);
        }
    }
}

/// Waits until everything was listed once and the connections are resolved.
pub async fn await_synced(caches: &Caches) {
    // These fail only when the process ends.
    let _ = caches.connection_store.wait_until_ready().await;
    let _ = caches.namespaces.wait_until_ready().await;
    caches.credentials.wait_until_synced().await;
    while !caches.secrets.lock().synced() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pods = async {
        while *caches.credentials.looks_after().borrow() && !caches.pods.settled() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Whoever is on demand waits for them, and nobody else for long.
    let _ = tokio::time::timeout(PODS_WITHIN, pods).await;
    let all = &caches.connection_store;
    caches.connections.refresh(&caches.cluster, &caches.seal, all).await;
}

/// Pods that are bound to a node and have not finished, as long as it matters to a credential which Secrets they read.
async fn watch_pods(feed: Feed) {
    let mut matters = feed.caches.credentials.looks_after();
    // These fail only when the process ends.
    while matters.wait_for(|matters| *matters).await.is_ok() {
        let parts = feed.caches.cluster.parts_by_namespace::<DeserializeGuard<WatchedPod>>();
        feed.caches.pods.begin(parts.iter().map(|part| part.name.clone()));
        let watching = parts.into_iter().map(|part| watch_pods_of(feed.clone(), part));
        let watching = futures::future::join_all(watching);
        tokio::select! {
            _ = watching => {}
            () = rests(&mut matters) => {}
        }
        feed.caches.pods.clear();
    }
}

/// Waits until it has mattered to nobody for a while: a tenant who makes and removes a credential again and again has not
/// all Pods listed each time.
async fn rests(matters: &mut watch::Receiver<bool>) {
    loop {
        let _ = matters.wait_for(|matters| !*matters).await;
        if tokio::time::timeout(PODS_LINGER, matters.wait_for(|matters| *matters))
            .await
            .is_err()
        {
            return;
        }
    }
}

async fn watch_pods_of(feed: Feed, part: Part<DeserializeGuard<WatchedPod>>) {
    let config = watcher::Config::default().fields(IN_USE).page_size(LISTED_AT_ONCE);
    let mut events = Box::pin(tolerant(watcher::watcher(part.api, config).default_backoff()));
    let (name, pods) = (part.name.as_str(), &feed.caches.pods);
    let in_part = |at: &ObjectName| name.is_empty() || *at.namespace == *name;
    while let Some(event) = events.next().await {
        let mut touched = Vec::new();
        let mut news = false;
        match event {
            Ok(Event::Init) => pods.list(name),
            Ok(Event::InitApply(pod) | Event::Apply(pod)) => touched = pods.put(name, &name_of(&pod), pod.trimmed()),
            Ok(Event::InitDone) => (touched, news) = pods.listed(name),
            Ok(Event::Delete(pod)) => touched = pods.put(name, &name_of(&pod), None),
            Err(error) if parts::is_refusal(&error) => {
                news = pods.refused(name);
                if news {
                    tracing::warn!(%error, "Pods may not be watched: no credential with activation: OnDemand is issued");
                }
            }
            error @ Err(_) => note(&error, "Pods"),
        }
        let credentials = &feed.caches.credentials;
        feed.tell(|context| {
            for secret in &touched {
                let own = credentials.looking_after(secret).into_iter();
                for credential in own.chain(credentials.sources_of(secret)) {
                    context.trigger(&credential);
                }
            }
            if news {
                context.trigger_where(|at, facts| !facts.looks_after.is_empty() && in_part(at));
                credentials.for_each(|at, facts| {
                    if let Some(follows) = facts.follows.as_ref().filter(|_| in_part(at)) {
                        context.trigger(&follows.source);
                    }
                });
            }
        });
    }
}

async fn watch_credentials(feed: Feed) {
    let config = watcher::Config::default().page_size(LISTED_AT_ONCE);
    let caches = Arc::clone(&feed.caches);
    let told = move |namespace: &str| {
        let stubs = caches.credentials.stubs(namespace);
        stubs.into_iter().map(|stub| DeserializeGuard(Ok(stub))).collect()
    };
    let events = parts::watch(feed.caches.cluster.parts_by_namespace(), &config, told);
    let mut events = Box::pin(tolerant(events));
    let mut listed: HashSet<ObjectName> = HashSet::new();
    let known = &feed.caches.credentials;
    while let Some(event) = events.next().await {
        note(&event, "credentials");
        let Ok(event) = event else { continue };
        let changed: Vec<ObjectName> = match event {
            Event::Init => {
                listed.clear();
                Vec::new()
            }
            Event::InitApply(credential) => {
                listed.insert(name_of(&credential));
                known.put(credential).into_iter().collect()
            }
            Event::InitDone => known.retain(&std::mem::take(&mut listed)),
            Event::Apply(credential) => known.put(credential).into_iter().collect(),
            Event::Delete(credential) => {
                let name = name_of(&credential);
                known.remove(&name, credential.metadata.uid.as_deref().unwrap_or_default());
                vec![name]
            }
        };
        feed.tell(|context| {
            for name in &changed {
                context.trigger(name);
                // Who reads its Secrets counts for what it follows.
                if let Some(follows) = known.facts(name).and_then(|facts| facts.follows) {
                    context.trigger(&follows.source);
                }
            }
        });
    }
}

async fn watch_connections(feed: Feed, writer: Writer<ChittyConnection>, changed: mpsc::UnboundedSender<()>) {
    let store = writer.as_reader();
    let told = move |name: &str| {
        let found = store.get(&ObjectRef::new(name)).into_iter();
        found
            .map(|connection| DeserializeGuard(Ok(ChittyConnection::clone(&connection))))
            .collect()
    };
    let events = parts::watch(
        feed.caches.cluster.parts_by_connection(),
        &watcher::Config::default(),
        told,
    );
    let events = tolerant(events)
        .modify(|connection| trim(&mut connection.metadata))
        .reflect(writer);
    events
        .for_each(|event| {
            note(&event, "connections");
            if !matches!(event, Ok(Event::Init | Event::InitApply(_))) {
                let _ = changed.send(());
            }
            std::future::ready(())
        })
        .await;
}

/// Keys and bundles, by name alone: what they hold is read when a connection is resolved.
async fn watch_keys<K>(feed: Feed, changed: mpsc::UnboundedSender<()>)
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Send
        + 'static,
    K: serde::de::DeserializeOwned,
{
    let cluster = &feed.caches.cluster;
    let api: Api<PartialObjectMeta<K>> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    // Journals change with every mint and are no keys.
    let config = watcher::Config::default().labels("!connect.chitty.cc/journal");
    watcher::watcher(api, config)
        .default_backoff()
        .for_each(|event| {
            note(&event, "keys");
            if !matches!(event, Ok(Event::Init | Event::InitApply(_))) {
                let _ = changed.send(());
            }
            std::future::ready(())
        })
        .await;
}

/// Resolves connections anew whenever something they depend on has changed.
async fn refresh(feed: Feed, mut changes: mpsc::UnboundedReceiver<()>) {
    let caches = &feed.caches;
    // The first pass is not this task's: what it could not read is looked at again like all else.
    let mut unread = true;
    loop {
        // What could not be read for want of an answer has no event to wait for.
        if unread {
            let _ = tokio::time::timeout(Duration::from_secs(5), changes.recv()).await;
        } else if changes.recv().await.is_none() {
            return;
        }
        while changes.try_recv().is_ok() {}
        let all = &caches.connection_store;
        let renewed = caches.connections.refresh(&caches.cluster, &caches.seal, all).await;
        unread = caches
            .connections
            .all()
            .iter()
            .any(|r| r.usable.is_err() || r.held.is_err());
        if !renewed.is_empty() {
            feed.tell(|context| {
                context.trigger_where(|_, facts| renewed.iter().any(|name| **name == *facts.connection));
                for scheduler in context.scopes.lock().values() {
                    scheduler.wake();
                }
            });
        }
    }
}

async fn watch_namespaces(feed: Feed, writer: Writer<PartialObjectMeta<Namespace>>) {
    let cluster = &feed.caches.cluster;
    let events = if cluster.reach.namespaces().is_empty() {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(cluster.client.clone());
        watcher::watcher(api, watcher::Config::default())
            .default_backoff()
            .boxed()
    } else {
        poll::namespaces(cluster.clone()).map(Ok).boxed()
    };
    let mut known = Changes::default();
    events
        .modify(|namespace| {
            namespace.metadata.managed_fields = None;
            namespace.metadata.annotations = None;
        })
        .reflect(writer)
        .for_each(|event| {
            note(&event, "namespaces");
            if let Ok(event) = &event {
                // Labels decide who may ask for what.
                let changed = known.after(event, |n| n.metadata.labels.clone());
                let changed: HashSet<Arc<str>> = changed.into_iter().map(|at| at.name).collect();
                if !changed.is_empty() {
                    feed.tell(|context| {
                        context.trigger_where(|name, _| changed.contains(&name.namespace));
                    });
                }
            }
            std::future::ready(())
        })
        .await;
}

/// Managed Secrets: who owns them and in which version, never what is in them.
async fn watch_secrets(feed: Feed) {
    let config = watcher::Config::default()
        .labels(&managed_selector())
        .page_size(LISTED_AT_ONCE);
    let mut stale: HashSet<ObjectName> = HashSet::new();
    let caches = Arc::clone(&feed.caches);
    let told = move |namespace: &str| {
        let mut names = caches.secrets.lock().names();
        names.retain(|at| &*at.namespace == namespace);
        names.iter().map(named).collect()
    };
    let mut events = parts::watch(feed.caches.cluster.parts_by_namespace(), &config, told);
    while let Some(event) = events.next().await {
        note(&event, "Secrets");
        let Ok(event) = event else { continue };
        match event {
            Event::Init => stale = feed.caches.secrets.lock().names(),
            Event::InitApply(secret) => {
                stale.remove(&name_of(&secret));
                insert(&feed, &secret);
            }
            Event::InitDone => {
                for gone in stale.drain() {
                    remove(&feed, &gone);
                }
                feed.caches.secrets.lock().mark_synced();
            }
            Event::Apply(secret) => insert(&feed, &secret),
            Event::Delete(secret) => remove(&feed, &name_of(&secret)),
        }
    }
}

/// No more of a Secret than what it is called.
fn named(at: &ObjectName) -> PartialObjectMeta<Secret> {
    PartialObjectMeta {
        metadata: ObjectMeta {
            namespace: Some(at.namespace.to_string()),
            name: Some(at.name.to_string()),
            ..ObjectMeta::default()
        },
        ..PartialObjectMeta::default()
    }
}

fn insert(feed: &Feed, secret: &PartialObjectMeta<Secret>) {
    let owner = secret
        .owner_references()
        .iter()
        .find(|r| r.kind == EphemeralCredential::kind(&()) && r.api_version == EphemeralCredential::api_version(&()))
        .map(|r| OwnedBy {
            uid: r.uid.as_str().into(),
            name: r.name.as_str().into(),
        });
    let at = name_of(secret);
    let listed = Listed {
        uid: secret.uid().unwrap_or_default().into(),
        version: secret.resource_version().unwrap_or_default().into(),
    };
    let touched = feed.caches.secrets.lock().insert(at.clone(), owner, listed);
    feed.tell(|context| {
        for name in &touched {
            context.trigger(&ObjectName::new(Arc::clone(&at.namespace), Arc::clone(name)));
        }
    });
}

fn remove(feed: &Feed, at: &ObjectName) {
    let (owner, touched) = {
        let mut secrets = feed.caches.secrets.lock();
        (secrets.owner(at), secrets.remove(at))
    };
    if let Some(uid) = owner
        && let Some(looks) = feed.caches.inspection_cache.lock().get_mut(uid.as_str())
    {
        looks.remove(&*at.name);
    }
    feed.tell(|context| {
        for name in &touched {
            context.trigger(&ObjectName::new(Arc::clone(&at.namespace), Arc::clone(name)));
        }
    });
}

fn note<T>(event: &Result<T, WatchError>, what: &str) {
    if let Err(error) = event {
        tracing::warn!(%error, "failed to watch {what}; the watch is tried again");
    }
}
