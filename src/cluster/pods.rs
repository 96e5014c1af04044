//! Pods: no more of them than which Secrets they read, and how.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{ListParams, ObjectMeta};
use kube::{Api, Resource, ResourceExt};
use serde::Deserialize;

use super::{Cluster, Error, bounded};
use crate::core::Time;
use crate::core::consumers::{About, Pod, PodSpec, PodStatus};
use crate::core::ids::ObjectName;

/// Those that can use a Secret: bound to a node, and not finished.
pub const IN_USE: &str = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";
/// How many Pods one answer to a list has.
const LISTED_AT_ONCE: u32 = 250;

/// A Pod as it is read: all else in it is passed over.
#[derive(Clone, Debug, Deserialize)]
pub struct WatchedPod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

impl Resource for WatchedPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl WatchedPod {
    /// It as it is kept; nothing where it reads no Secret now.
    #[must_use]
    pub fn trimmed(&self) -> Option<Pod> {
        let meta = &self.metadata;
        let created = meta.creation_timestamp.as_ref();
        let mut owners = meta.owner_references.iter().flatten();
        let about = About {
            name: ObjectName::new(self.namespace().unwrap_or_default(), self.name_any()),
            uid: meta.uid.as_deref().unwrap_or_default(),
            created: created.and_then(|t| Time::from_timestamp(t.0.as_second(), 0)),
            leaving: meta.deletion_timestamp.is_some(),
            owner: owners
                .find(|owner| owner.controller == Some(true))
                .map(|owner| (owner.kind.as_str(), owner.name.as_str())),
        };
        Pod::of(about, &self.spec, &self.status)
    }
}

impl Cluster {
    /// Whether a Pod reads one of these Secrets, asked of the API server itself.
    ///
    /// # Errors
    /// Where it does not say.
    pub async fn are_read(&self, secrets: &[ObjectName]) -> Result<bool, Error> {
        let mut namespaces: Vec<&str> = secrets.iter().map(|at| &*at.namespace).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        for namespace in namespaces {
            let api: Api<WatchedPod> = Api::namespaced(self.client.clone(), namespace);
            let mut page = ListParams::default().fields(IN_USE).limit(LISTED_AT_ONCE);
            loop {
                let pods = bounded(api.list(&page)).await?;
                let reads = |pod: Pod| {
                    let mut here = secrets.iter().filter(|at| *at.namespace == *namespace);
                    here.any(|at| pod.way_of(&at.name).is_some())
                };
                if pods.items.iter().filter_map(WatchedPod::trimmed).any(reads) {
                    return Ok(true);
                }
                match pods.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => page = page.continue_token(&token),
                    None => break,
                }
            }
        }
        Ok(false)
    }
}
