//! Namespaces that may not be watched: an installation with a few of them reads each now and then.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;

use crate::cluster::Cluster;
use crate::cluster::reach::labels;

/// How often. What is decided on before a mint is read anew all the same.
const EVERY: Duration = Duration::from_secs(60);
/// A first answer is waited for: nothing begins without it.
const AGAIN: Duration = Duration::from_secs(1);

type Seen = PartialObjectMeta<Namespace>;

/// The namespaces in reach, as a watch would tell of them.
pub fn namespaces(cluster: Cluster) -> impl Stream<Item = Event<Seen>> + Send {
    let rounds = stream::unfold(None, move |known| {
        let cluster = cluster.clone();
        async move {
            let mut known: Option<BTreeMap<String, Seen>> = known;
            let events = round(&cluster, &mut known).await;
            Some((events, known))
        }
    });
    rounds.flat_map(stream::iter)
}

async fn round(cluster: &Cluster, known: &mut Option<BTreeMap<String, Seen>>) -> Vec<Event<Seen>> {
    let Some(known) = known else {
        let mut first = BTreeMap::new();
        for name in cluster.reach.namespaces() {
            if let Some(seen) = answer(cluster, name).await {
                first.insert(name.clone(), seen);
            }
        }
        let listed = first.values().cloned().map(Event::InitApply);
        let events = std::iter::once(Event::Init)
            .chain(listed)
            .chain([Event::InitDone])
            .collect();
        *known = Some(first);
        return events;
    };
    tokio::time::sleep(EVERY).await;
    let mut events = Vec::new();
    for name in cluster.reach.namespaces() {
        match cluster.namespace(name).await {
            Ok(Some(seen)) => {
                known.insert(name.clone(), seen.clone());
                events.push(Event::Apply(seen));
            }
            Ok(None) => events.extend(known.remove(name).map(Event::Delete)),
            Err(error) => tracing::debug!(namespace = name, error = %error.brief(), "failed to read a namespace"),
        }
    }
    events
}

async fn answer(cluster: &Cluster, name: &str) -> Option<Seen> {
    loop {
        match cluster.namespace(name).await {
            Ok(seen) => {
                if seen.as_ref().is_some_and(|seen| labels(&seen.metadata).is_none()) {
                    tracing::warn!(
                        namespace = name,
                        "its labels may not be read: an access rule with a namespaceSelector does not match it"
                    );
                }
                return seen;
            }
            Err(error) => {
                tracing::warn!(namespace = name, error = %error.brief(), "failed to read a namespace; trying again");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
