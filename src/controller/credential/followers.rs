//! Those who follow a credential: told of it when there is news, and counted by it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::reflector::ObjectRef;

use crate::api::EphemeralCredential;
use crate::cluster::reach::labels;
use crate::controller::state::changes::name_of;
use crate::controller::state::context::Context;
use crate::core::ids::ObjectName;
use crate::core::sharing::{self, Place};

use crate::controller::credential::observe::Snapshot;

/// A namespace, as rules see it.
pub(crate) fn place<'a>(name: &'a str, metadata: &'a ObjectMeta) -> Place<'a> {
    Place {
        name,
        labels: labels(metadata),
    }
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

impl Context {
    /// Where the tokens of `source` go besides its own namespace: of each that may follow it, the namespace and the names of
    /// its Secrets. Whoever only says to follow it is not among them.
    pub fn followers_of(&self, source: &EphemeralCredential) -> Vec<(Arc<str>, Vec<Arc<str>>)> {
        let followers = self.caches.credentials.followers(&name_of(source));
        let resolved = self.caches.connections.get(&source.spec.connection);
        let namespace = |name: &str| self.caches.namespaces.get(&ObjectRef::new(name));
        let here = source.metadata.namespace.as_deref().unwrap_or_default();
        let (Some(resolved), Some(home), false) = (resolved, namespace(here), followers.is_empty()) else {
            return Vec::new();
        };
        let (rules, own) = (&resolved.connection.spec.access, &self.cluster.namespace);
        let may = |name: &str| {
            namespace(name).is_some_and(|there| {
                let (home, there) = (place(here, &home.metadata), place(name, &there.metadata));
                sharing::may_follow(source, rules, own, home, there).is_ok()
            })
        };
        let allowed = followers.into_iter().filter(|(follower, _)| may(&follower.namespace));
        allowed
            .map(|(follower, follows)| (follower.namespace, follows.secrets.to_vec()))
            .collect()
    }
}
