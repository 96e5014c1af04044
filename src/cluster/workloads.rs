//! Workloads that ask to be restarted before a token ends that their Pods have read once.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::{Metadata, NamespaceResourceScope};
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Cluster, Error, bounded};
use crate::api::{MANAGER, RESTART_ANNOTATION, RESTARTED_FOR_ANNOTATION};

impl Cluster {
    /// Restarts what controls a Pod, by `kind` and `name`, before a token ends at `end`: if it is a workload that asks for
    /// that. Says whether it is.
    ///
    /// # Errors
    /// Where the API server does not say, or does not take it.
    pub async fn restart_workload(&self, namespace: &str, kind: &str, name: &str, end: &str) -> Result<bool, Error> {
        match kind {
            "StatefulSet" => self.restart::<StatefulSet>(namespace, name, end).await,
            "DaemonSet" => self.restart::<DaemonSet>(namespace, name, end).await,
            "ReplicaSet" => {
                let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), namespace);
                let set = bounded(api.get_metadata_opt(name)).await?;
                let owners = set.map(|set| set.owner_references().to_vec()).unwrap_or_default();
                let deployment = owners
                    .iter()
                    .find(|o| o.controller == Some(true) && o.kind == "Deployment");
                match deployment {
                    Some(owner) => self.restart::<Deployment>(namespace, &owner.name, end).await,
                    None => Ok(false),
                }
            }
            _ => Ok(false),
        }
    }

    async fn restart<K>(&self, namespace: &str, name: &str, end: &str) -> Result<bool, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Metadata<Ty = ObjectMeta>,
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let found = bounded(api.get_metadata_opt(name)).await?;
        let asks = |meta: &ObjectMeta| {
            let annotations = meta.annotations.as_ref();
            annotations
                .and_then(|a| a.get(RESTART_ANNOTATION))
                .is_some_and(|value| value == "true")
        };
        if !found.is_some_and(|workload| asks(&workload.metadata)) {
            return Ok(false);
        }
        // Written twice, it restarts nothing twice.
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED_FOR_ANNOTATION: end}}}}});
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        // Of its answer the rest is not read: what decodes whole workloads would be a twelfth of the binary.
        bounded(api.patch_metadata(name, &params, &Patch::Merge(patch))).await?;
        Ok(true)
    }
}
