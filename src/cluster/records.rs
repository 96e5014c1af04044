//! What users read: status and Events.

use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::{Cluster, Error, bounded, truncate};
use crate::api::{
    ChittyConnection, ChittyConnectionStatus, EphemeralCredential, EphemeralCredentialStatus, MANAGER, Reason,
};

impl Cluster {
    /// Writes the status of a credential, if it still is the one that was looked at.
    ///
    /// # Errors
    /// Where the API server does not take it.
    pub async fn write_status(
        &self,
        of: &EphemeralCredential,
        status: &EphemeralCredentialStatus,
    ) -> Result<(), Error> {
        let namespace = of.namespace().unwrap_or_default();
        let api: Api<EphemeralCredential> = Api::namespaced(self.client.clone(), &namespace);
        let patch = json!({
            "apiVersion": EphemeralCredential::api_version(&()),
            "kind": EphemeralCredential::kind(&()),
            // The uid makes sure that a namesake is never written to.
            "metadata": {"name": of.name_any(), "uid": of.uid()},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        bounded(api.patch_status(&of.name_any(), &params, &Patch::Apply(patch))).await?;
        Ok(())
    }

    /// Writes the status of a connection.
    ///
    /// # Errors
    /// Where the API server does not take it.
    pub async fn write_connection_status(
        &self,
        of: &ChittyConnection,
        status: &ChittyConnectionStatus,
    ) -> Result<(), Error> {
        let api: Api<ChittyConnection> = Api::all(self.client.clone());
        let patch = json!({
            "apiVersion": ChittyConnection::api_version(&()),
            "kind": ChittyConnection::kind(&()),
            "metadata": {"name": of.name_any(), "uid": of.uid()},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        bounded(api.patch_status(&of.name_any(), &params, &Patch::Apply(patch))).await?;
        Ok(())
    }
}

/// Publishes Events.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events that name `instance` as their source.
    #[must_use]
    pub fn new(cluster: &Cluster, instance: &str) -> Self {
        Self(Recorder::new(
            cluster.client.clone(),
            Reporter {
                controller: MANAGER.to_owned(),
                instance: Some(instance.to_owned()),
            },
        ))
    }

    /// Publishes one, if that can be done: an Event that fails is logged and fails nothing else.
    pub async fn publish<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        warning: bool,
        reason: Reason,
        action: &str,
        note: &str,
    ) {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.as_str().to_owned(),
            note: Some(truncate(note, 1000)),
            action: action.to_owned(),
            secondary: None,
        };
        let about = about.object_ref(&());
        let call = self.0.publish(&event, &about);
        match tokio::time::timeout(super::CALL_TIMEOUT, call).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "failed to publish an Event"),
            Err(_) => tracing::debug!("failed to publish an Event in time"),
        }
    }
}
