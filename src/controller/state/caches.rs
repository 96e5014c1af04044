//! What the watches tell. It belongs to the process and not to a term: a standby is warm, and to lead costs no list.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Store};
use parking_lot::Mutex;

use crate::api::ChittyConnection;
use crate::cluster::Cluster;
use crate::controller::state::connections::Connections;
use crate::controller::state::context::CachedInspection;
use crate::controller::state::credentials::Credentials;
use crate::controller::state::pods::Pods;
use crate::controller::state::secret_index::SecretIndex;
use crate::core::ids::ObjectName;
use crate::core::seal::SealKey;

/// What the watches tell, and what was found out about it.
pub struct Caches {
    /// The API server.
    pub cluster: Cluster,
    /// The seal key.
    pub seal: SealKey,
    /// The connections, resolved.
    pub connections: Connections,
    /// The credentials.
    pub credentials: Credentials,
    /// The connections as they were written.
    pub connection_store: Store<ChittyConnection>,
    /// The namespaces.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    /// The Pods that read Secrets, while a credential needs to know them.
    pub pods: Pods,
    /// The managed Secrets.
    pub secrets: Mutex<SecretIndex>,
    /// Secrets that are not as they were written, or of which the watch has yet to tell, as last looked at: by uid and
    /// name, with the resource version and the claim that held then.
    pub inspection_cache: Mutex<HashMap<String, BTreeMap<String, CachedInspection>>>,
    /// Secrets that no watch tells of and that are there all the same: somebody else's, or without our label.
    pub unlisted: Mutex<HashSet<ObjectName>>,
}

/// What fills the stores.
pub struct Writers {
    /// The connections.
    pub connections: Writer<ChittyConnection>,
    /// The namespaces.
    pub namespaces: Writer<PartialObjectMeta<Namespace>>,
}

impl Caches {
    /// Empty ones, and what fills them.
    #[must_use]
    pub fn new(cluster: Cluster, seal: SealKey) -> (Arc<Self>, Writers) {
        let (connection_store, connection_writer) = reflector::store();
        let (namespaces, namespace_writer) = reflector::store();
        let caches = Self {
            cluster,
            seal,
            connections: Connections::default(),
            credentials: Credentials::default(),
            connection_store,
            namespaces,
            pods: Pods::default(),
            secrets: Mutex::default(),
            inspection_cache: Mutex::default(),
            unlisted: Mutex::default(),
        };
        let writers = Writers {
            connections: connection_writer,
            namespaces: namespace_writer,
        };
        (Arc::new(caches), writers)
    }

    /// Whether nothing of that name is there, as far as the watch tells and nobody found otherwise.
    pub fn is_absent(&self, at: &ObjectName) -> bool {
        let secrets = self.secrets.lock();
        secrets.synced() && !secrets.has(at) && !self.unlisted.lock().contains(at)
    }
}
