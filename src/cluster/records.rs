//! What users read: status and Events.

use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::{Cluster, Error, bounded, truncate};
use crate::api::{
    ChittyConnection, ChittyConnectionStatus, EphemeralCredential, EphemeralCredentialStatus, HeldBy, MANAGER, Reason,
};

impl Cluster {
    /// Writes the status of a credential, if it is as it was looked at; returns what is there then.
    ///
    /// It is replaced as a whole: a projection has no other writers, and applying it instead costs the API server twice
    /// the time.
    ///
    /// # Errors
    /// Where the API server does not take it.
    pub async fn write_status(
        &self,
        of: &EphemeralCredential,
        status: &EphemeralCredentialStatus,
    ) -> Result<EphemeralCredential, Error> {
        let name = of.name_any();
        let namespace = of.namespace().unwrap_or_default();
        // Of the rest the API server takes what it has.
        let replacement = json!({
            "apiVersion": EphemeralCredential::api_version(&()),
            "kind": EphemeralCredential::kind(&()),
            "metadata": {
                "name": name, "namespace": namespace, "uid": of.uid(), "resourceVersion": of.resource_version(),
            },
            "status": status,
        });
        let body = serde_json::to_vec(&replacement).map_err(kube::Error::SerdeError)?;
        let url = EphemeralCredential::url_path(&(), Some(&namespace));
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let request = Request::new(url)
            .replace_subresource("status", &name, &params, body)
            .map_err(kube::Error::BuildRequest)?;
        bounded(self.client.request(request)).await
    }

    /// Writes the status of a connection, if it is as it was looked at: whoever holds it by now is not written over.
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
            "metadata": {"name": of.name_any(), "uid": of.uid(), "resourceVersion": of.resource_version()},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        bounded(api.patch_status(&of.name_any(), &params, &Patch::Apply(patch))).await?;
        Ok(())
    }
}

impl Cluster {
    /// This installation, as connections name their holder.
    ///
    /// # Errors
    /// Where its namespace cannot be read.
    pub async fn installation(&self) -> Result<HeldBy, Error> {
        let uid = self.namespace_uid(&self.namespace).await?;
        Ok(HeldBy {
            namespace: self.namespace.clone(),
            uid: uid.unwrap_or_default(),
        })
    }

    /// The uid of a namespace, where it is there.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn namespace_uid(&self, name: &str) -> Result<Option<String>, Error> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = bounded(api.get_metadata_opt(name)).await?;
        Ok(found.and_then(|namespace| namespace.metadata.uid))
    }

    /// A connection as it is now.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn connection(&self, name: &str) -> Result<Option<ChittyConnection>, Error> {
        let api: Api<ChittyConnection> = Api::all(self.client.clone());
        bounded(api.get_opt(name)).await
    }
}

/// Publishes Events: each is one call, and nothing is kept of it.
#[derive(Clone)]
pub struct Events {
    cluster: Cluster,
    instance: String,
}

impl Events {
    /// Events that name `instance` as their source.
    #[must_use]
    pub fn new(cluster: &Cluster, instance: &str) -> Self {
        Self {
            cluster: cluster.clone(),
            // What the API server takes at most.
            instance: instance.chars().take(128).collect(),
        }
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
        self.publish_about(about.object_ref(&()), rand::random(), warning, reason, action, note)
            .await;
    }

    /// Publishes one about an object that is not at hand; where one of that `unique` number is there, nothing.
    pub async fn publish_about(
        &self,
        about: ObjectReference,
        unique: u64,
        warning: bool,
        reason: Reason,
        action: &str,
        note: &str,
    ) {
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.cluster.client.clone(), &namespace);
        let now = Timestamp::from_microsecond(self.cluster.now().timestamp_micros()).unwrap_or_default();
        let event = Event {
            metadata: ObjectMeta {
                name: Some(event_name(about.name.as_deref().unwrap_or_default(), unique)),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            action: Some(action.to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(truncate(note, 1000)),
            reason: Some(reason.as_str().to_owned()),
            regarding: Some(about),
            reporting_controller: Some(MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        };
        if let Err(error) = bounded(api.create(&PostParams::default(), &event)).await
            && !error.is_conflict()
        {
            tracing::debug!(%error, "failed to publish an Event");
        }
    }
}

/// A name for an Event about the object called `about`: unlike any other's, and no longer than names may be.
fn event_name(about: &str, unique: u64) -> String {
    let about: String = about.chars().take(230).collect();
    let about = about.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    format!("{about}.{unique:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_event_is_a_valid_one_however_long_that_of_its_object_is() {
        assert_eq!(event_name("a", 10), "a.000000000000000a");
        let name = event_name(&format!("{}.{}", "a".repeat(229), "b".repeat(20)), u64::MAX);
        assert_eq!(name, format!("{}.ffffffffffffffff", "a".repeat(229)));
    }
}
