//! What users write and read: the two kinds, their conditions and their reasons.
//!
//! Everything named here is a contract with users; nothing here decides or performs anything.

mod condition;
mod connection;
mod credential;
mod reason;

pub use condition::{ConditionType, condition, unchanged_since};
pub use connection::{
    AccessRule, Audit, Auth, BrokerApi, ChittyConnection, ChittyConnectionSpec, ChittyConnectionStatus, Chronicle,
    HeldBy, KeyRef, NameRef, ProxySpec, RateLimit, RateScope, ScopeUsage, ThroughConnect,
};
pub use credential::{
    Activation, Consumers, DockerOptions, EphemeralCredential, EphemeralCredentialSpec, EphemeralCredentialStatus,
    GitOptions, InUse, NpmOptions, Preset, PresetOptions, Rotation, SecretTemplate, SecretType, SharedWith, Source,
};
pub use reason::Reason;

/// API group of both kinds.
pub const GROUP: &str = "connect.chitty.cc";
/// API version of both kinds.
pub const VERSION: &str = "v1alpha1";

/// Annotation on a credential: any new value asks for one rotation now.
pub const ROTATE_ANNOTATION: &str = "connect.chitty.cc/rotate";
/// Annotation on a credential: any new value has its tokens revoked and its Secrets deleted; nothing is minted until
/// [`ROTATE_ANNOTATION`] has a new value.
pub const REVOKE_ANNOTATION: &str = "connect.chitty.cc/revoke";
/// Annotation on a workload: "true" has it restarted before a token ends that its Pods have read once.
pub const RESTART_ANNOTATION: &str = "connect.chitty.cc/restart";
/// Annotation on the Pod template of a workload that was restarted: when the token would have ended (RFC 3339).
pub const RESTARTED_FOR_ANNOTATION: &str = "connect.chitty.cc/restarted-for";
/// Annotation on a managed Secret: when its tokens end (RFC 3339).
pub const EXPIRES_AT_ANNOTATION: &str = "connect.chitty.cc/expires-at";
/// Annotation on a managed Secret: claim, revision and fingerprint under an HMAC.
pub const SEAL_ANNOTATION: &str = "connect.chitty.cc/seal";
/// Annotation on a managed Secret: the keys of labels and annotations that its credential asks for.
pub const OWN_METADATA_ANNOTATION: &str = "connect.chitty.cc/own-metadata";
/// Annotation on an API key's Secret: the only host, other than [`DEFAULT_HOST`], the key may be sent to.
pub const HOST_ANNOTATION: &str = "connect.chitty.cc/host";
/// The host that an API key may always be sent to.
pub const DEFAULT_HOST: &str = "connect.chitty.cc";
/// Label on every object the controller writes.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGER: &str = "chittyconnect-operator";
/// The data key every managed Secret has: when its tokens end (RFC 3339).
pub const EXPIRES_AT_KEY: &str = "expires_at";

/// The `CustomResourceDefinition` of each kind, as YAML, by file name.
///
/// # Errors
/// None in practice: these types always serialise.
pub fn crd_files() -> Result<Vec<(&'static str, String)>, serde_yaml::Error> {
    use kube::CustomResourceExt;
    let yaml = |crd| {
        let mut crd = serde_yaml::to_value(crd)?;
        join_lines(&mut crd);
        start_unseen(&mut crd);
        serde_yaml::to_string(&crd)
    };
    Ok(vec![
        (
            "connect.chitty.cc_chittyconnections.yaml",
            yaml(ChittyConnection::crd())?,
        ),
        (
            "connect.chitty.cc_ephemeralcredentials.yaml",
            yaml(EphemeralCredential::crd())?,
        ),
    ])
}

/// An object that no controller has looked at has no conditions, and tools that go by kstatus (`helm --wait`, Flux, Argo CD)
/// would call it up to date. So it starts with a generation that says otherwise. The default stands on `status` itself:
/// the API server drops the status of a new object, and adds defaults when it reads the object back.
fn start_unseen(crd: &mut serde_yaml::Value) {
    let versions = crd.get_mut("spec").and_then(|spec| spec.get_mut("versions"));
    for version in versions
        .and_then(serde_yaml::Value::as_sequence_mut)
        .into_iter()
        .flatten()
    {
        let mut at = Some(version);
        for field in ["schema", "openAPIV3Schema", "properties", "status"] {
            at = at.and_then(|value| value.get_mut(field));
        }
        if let Some(status) = at.and_then(serde_yaml::Value::as_mapping_mut) {
            let unseen = [("observedGeneration".into(), (-1).into())];
            status.insert("default".into(), serde_yaml::Mapping::from_iter(unseen).into());
        }
    }
}

/// Doc comments break lines where source code does; `kubectl explain` breaks its own.
fn join_lines(value: &mut serde_yaml::Value) {
    match value {
        serde_yaml::Value::Mapping(map) => {
            for (key, value) in map {
                match value {
                    serde_yaml::Value::String(text) if key.as_str() == Some("description") => {
                        let paragraphs: Vec<String> = text.split("\n\n").map(|p| p.replace('\n', " ")).collect();
                        *text = paragraphs.join("\n\n");
                    }
                    other => join_lines(other),
                }
            }
        }
        serde_yaml::Value::Sequence(items) => items.iter_mut().for_each(join_lines),
        _ => {}
    }
}

/// All of them as one stream of documents, as `kubectl apply -f -` takes it.
///
/// # Errors
/// As [`crd_files`].
pub fn crds_yaml() -> Result<String, serde_yaml::Error> {
    let mut documents = String::new();
    for (_, yaml) in crd_files()? {
        documents.push_str("---\n");
        documents.push_str(&yaml);
    }
    Ok(documents)
}
