//! Managed Secrets: only those we own are written or deleted, and only as they were when looked at.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use secrecy::SecretString;
use zeroize::Zeroize;

use super::{Cluster, Error, bounded};
use crate::api::{
    EXPIRES_AT_ANNOTATION, EphemeralCredential, MANAGED_BY_LABEL, MANAGER, OWN_METADATA_ANNOTATION, SEAL_ANNOTATION,
    SecretType,
};
use crate::core::audit::Subject;
use crate::core::ids::ObjectName;
use crate::core::journal::{ActiveToken, RequestFacts};
use crate::core::layout::OwnMetadata;
use crate::core::plan::{Content, SecretState};
use crate::core::render::{Data, Outputs, fingerprint};
use crate::core::seal::{Seal, SealKey};
use crate::core::sharing;
use crate::planted::{Bug, is_planted};

/// Whose Secrets they are.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Namespace of the credential.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Owner {
    /// That is this credential.
    #[must_use]
    pub fn of(credential: &EphemeralCredential) -> Self {
        Self {
            namespace: credential.namespace().unwrap_or_default(),
            name: credential.name_any(),
            uid: credential.uid().unwrap_or_default(),
        }
    }

    /// The one of that name and uid.
    #[must_use]
    pub fn named(name: &ObjectName, uid: impl Into<String>) -> Self {
        Self {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            uid: uid.into(),
        }
    }

    /// What it is called.
    #[must_use]
    pub fn object_name(&self) -> ObjectName {
        ObjectName::new(self.namespace.as_str(), self.name.as_str())
    }

    /// What an audit event about this request of it is about.
    #[must_use]
    pub fn subject<'a>(&'a self, request: &'a RequestFacts, revision: u64) -> Subject<'a> {
        Subject {
            uid: &self.uid,
            namespace: &self.namespace,
            name: &self.name,
            request,
            revision,
        }
    }
}

/// A Secret as the spec wants it dressed.
#[derive(Clone, Debug)]
pub struct SecretMetadata {
    /// Name of the Secret.
    pub name: String,
    /// Its type.
    pub type_: SecretType,
    /// The labels and annotations that the spec asks for.
    pub own: OwnMetadata,
    /// The seal annotation.
    pub seal: String,
    /// The expiry annotation.
    pub expires_at: String,
}

/// A Secret that was looked at: its state, and what guards a write to it.
#[derive(Clone, Debug)]
pub struct InspectedSecret {
    /// Its state.
    pub state: SecretState,
    /// Uid and resource version, where it exists.
    pub guard: Option<Preconditions>,
    /// Its data keys that are ours, where it is.
    pub keys: Vec<String>,
}

impl InspectedSecret {
    /// Of a Secret that is as it was written: nothing of it has to be read.
    #[must_use]
    pub fn settled(uid: &str, version: &str) -> Self {
        Self {
            state: SecretState::Ours {
                seal: None,
                content: Content::Intact,
                metadata_matches: true,
            },
            guard: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: Some(version.to_owned()),
            }),
            keys: Vec::new(),
        }
    }

    /// Whether it holds what was written, and nothing of it needs to be restored.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        matches!(
            self.state,
            SecretState::Ours {
                content: Content::Intact,
                metadata_matches: true,
                ..
            }
        )
    }

    /// Its resource version, where it is there.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.guard.as_ref()?.resource_version.as_deref()
    }

    /// Of a Secret that is not there.
    #[must_use]
    pub const fn absent() -> Self {
        Self {
            state: SecretState::Absent,
            guard: None,
            keys: Vec::new(),
        }
    }
}

/// What is known of a Secret that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The token whose values it gets; none for a dry run.
    pub live: Option<&'a ActiveToken>,
    /// Nothing of that name was seen.
    pub absent: bool,
}

/// How a write ended that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A Secret of that name is somebody else's.
    #[error("a Secret of that name is somebody else's")]
    NotOurs,
    /// It may not be written any more.
    #[error("it may not be written any more")]
    Withheld,
    /// The API server said no, or nothing. Where values were to be written its words are left out: a
    /// webhook may have repeated one.
    #[error("{0}")]
    Api(#[from] Error),
}

/// Secrets hold values: they are wiped as soon as they were looked at.
struct Wiped(Secret);

impl Drop for Wiped {
    fn drop(&mut self) {
        for ByteString(bytes) in self.0.data.iter_mut().flat_map(BTreeMap::values_mut) {
            bytes.zeroize();
        }
    }
}

/// Being deleted, and something keeps it with its values.
fn is_held(secret: &Secret) -> bool {
    let values = secret.data.iter().flatten();
    secret.metadata.deletion_timestamp.is_some()
        && values
            .into_iter()
            .any(|(key, ByteString(value))| *value != nothing(key))
}

/// What an emptied key holds: some types of Secrets must have theirs, and this one must be JSON.
fn nothing(key: &str) -> Vec<u8> {
    let text = if key == ".dockerconfigjson" { "{}" } else { "" };
    text.as_bytes().to_vec()
}

impl Cluster {
    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Looks at a Secret.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn look(
        &self,
        owner: &Owner,
        name: &str,
        live: Option<&ActiveToken>,
        own: Option<&OwnMetadata>,
        seal: &SealKey,
    ) -> Result<InspectedSecret, Error> {
        let secret = bounded(self.secrets(&owner.namespace).get_opt(name)).await?.map(Wiped);
        Ok(match secret {
            None => InspectedSecret::absent(),
            Some(secret) => seen(&secret.0, owner, live, own, seal),
        })
    }

    /// The outputs of `live`, from a Secret of its credential that holds them as they came. None where it is not there, or
    /// not exactly what was written: as the journal says, and as its seal does.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn read_outputs(
        &self,
        owner: &Owner,
        name: &str,
        live: &ActiveToken,
        seal: &SealKey,
    ) -> Result<Option<Outputs>, Error> {
        let secret = bounded(self.secrets(&owner.namespace).get_opt(name)).await?.map(Wiped);
        Ok(secret.and_then(|secret| outputs_in(&secret.0, owner, live, seal)))
    }

    /// Writes a Secret that is ours or absent, and tells how it is now: what a look would find, without one. Of one
    /// that is `absent` as far as is known nothing is read first; where it is there all the same, the API server says so.
    /// `live` is the token that `data` was made from; a `dry_run` has none, and asks the API server without storing anything.
    /// Whether it `may` be written is asked before each try, once it is known what is there: whatever is written after that,
    /// by a successor of this process maybe, is not written over. It learns whether somebody else has written since.
    ///
    /// # Errors
    /// Where a Secret of that name is not ours, the API server does not take it, or it may not be written.
    pub async fn write_secret<M: Future<Output = bool>>(
        &self,
        owner: &Owner,
        metadata: &SecretMetadata,
        data: &Data,
        seal: &SealKey,
        write: Write<'_>,
        may: impl Fn(bool) -> M,
    ) -> Result<InspectedSecret, WriteError> {
        let dry_run = write.live.is_none();
        let api = self.secrets(&owner.namespace);
        let post = PostParams {
            dry_run,
            ..PostParams::default()
        };
        let desired = Wiped(desired(owner, metadata, data));
        // A Secret cannot change its type, and somebody may be faster: look, write, look again.
        for attempt in 0..4 {
            let existing = if write.absent && attempt == 0 {
                None
            } else {
                bounded(api.get_opt(&metadata.name)).await?.map(Wiped)
            };
            if !may(attempt > 0).await {
                return Err(WriteError::Withheld);
            }
            // A webhook sees what is replaced, too.
            let speaks = dry_run && existing.is_none();
            let outcome = match existing {
                None => bounded(api.create(&post, &desired.0)).await,
                Some(existing) => {
                    if !is_ours(&existing.0, owner, seal) {
                        return Err(WriteError::NotOurs);
                    }
                    if existing.0.type_.as_deref() != Some(metadata.type_.as_str()) {
                        if dry_run {
                            return Ok(seen(&existing.0, owner, None, None, seal));
                        }
                        self.delete_secret(&owner.namespace, &metadata.name, Some(guard(&existing.0)))
                            .await?;
                        continue;
                    }
                    let replacement = Wiped(over(&existing.0, &desired.0));
                    bounded(api.replace(&metadata.name, &post, &replacement.0)).await
                }
            };
            match outcome {
                Ok(written) => {
                    return Ok(seen(&Wiped(written).0, owner, write.live, Some(&metadata.own), seal));
                }
                Err(e) if e.is_conflict() => {}
                Err(e) if speaks => return Err(e.into()),
                Err(e) => return Err(e.redacted().into()),
            }
        }
        Err(WriteError::Api(Error::Timeout))
    }

    /// Restores what of a Secret is not its values, and removes keys that are not ours.
    ///
    /// # Errors
    /// As [`Cluster::write_secret`].
    pub async fn restore_secret(
        &self,
        owner: &Owner,
        metadata: &SecretMetadata,
        keys: &[String],
        seal: &SealKey,
    ) -> Result<(), WriteError> {
        let api = self.secrets(&owner.namespace);
        let Some(existing) = bounded(api.get_opt(&metadata.name)).await?.map(Wiped) else {
            return Ok(());
        };
        if !is_ours(&existing.0, owner, seal) {
            return Err(WriteError::NotOurs);
        }
        let mut replacement = Wiped(over(&existing.0, &desired(owner, metadata, &Data::new())));
        let mut data = existing.0.data.clone().unwrap_or_default();
        data.retain(|key, ByteString(bytes)| {
            let ours = keys.contains(key);
            if !ours {
                bytes.zeroize();
            }
            ours
        });
        replacement.0.data = Some(data);
        let written = bounded(api.replace(&metadata.name, &PostParams::default(), &replacement.0)).await;
        drop(Wiped(written.map_err(Error::redacted)?));
        Ok(())
    }

    /// Deletes a Secret as it was when looked at; one that is gone is as good, and one that a finalizer
    /// holds is emptied.
    ///
    /// # Errors
    /// Where the API server does not.
    pub async fn delete_secret(&self, namespace: &str, name: &str, guard: Option<Preconditions>) -> Result<(), Error> {
        let api = self.secrets(namespace);
        let params = DeleteParams {
            preconditions: guard.filter(|_| !is_planted(Bug::DeleteUnguarded)),
            ..DeleteParams::default()
        };
        let held = match bounded(api.delete(name, &params)).await {
            Ok(deleted) => deleted.left().map(Wiped).filter(|s| is_held(&s.0)),
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e.redacted()),
        };
        if let Some(held) = held {
            let keys = held.0.data.iter().flat_map(BTreeMap::keys);
            let empty = Secret {
                metadata: held.0.metadata.clone(),
                type_: held.0.type_.clone(),
                data: Some(keys.map(|key| (key.clone(), ByteString(nothing(key)))).collect()),
                ..Secret::default()
            };
            // One that its user made immutable cannot be; it is tried again with the next look.
            if let Err(error) = bounded(api.replace(name, &PostParams::default(), &empty)).await {
                tracing::warn!(namespace, secret = name, error = %error.redacted(), "failed to empty a Secret that a finalizer holds");
            }
        }
        Ok(())
    }
}

fn seen(
    secret: &Secret,
    owner: &Owner,
    live: Option<&ActiveToken>,
    own: Option<&OwnMetadata>,
    seal: &SealKey,
) -> InspectedSecret {
    let (state, keys) = inspect(secret, owner, live, own, seal);
    InspectedSecret {
        guard: Some(guard(secret)),
        state,
        keys,
    }
}

fn guard(secret: &Secret) -> Preconditions {
    Preconditions {
        uid: secret.metadata.uid.clone(),
        resource_version: secret.metadata.resource_version.clone(),
    }
}

fn sealed(secret: &Secret, owner: &Owner, seal: &SealKey) -> Option<Seal> {
    let annotation = secret.metadata.annotations.as_ref()?.get(SEAL_ANNOTATION)?;
    seal.verify(annotation).filter(|s| {
        s.uid == owner.uid && s.namespace == owner.namespace && Some(&s.name) == secret.metadata.name.as_ref()
    })
}

fn owner_of(secret: &Secret) -> Option<&OwnerReference> {
    secret
        .metadata
        .owner_references
        .as_ref()?
        .iter()
        .find(|r| r.kind == EphemeralCredential::kind(&()) && r.api_version == EphemeralCredential::api_version(&()))
}

/// Ours by owner, or by a seal that only we can make: a tenant who drops the one cannot forge the other.
fn is_ours(secret: &Secret, owner: &Owner, seal: &SealKey) -> bool {
    owner_of(secret).is_some_and(|r| r.uid == owner.uid) || sealed(secret, owner, seal).is_some()
}

fn inspect(
    secret: &Secret,
    owner: &Owner,
    live: Option<&ActiveToken>,
    own: Option<&OwnMetadata>,
    key: &SealKey,
) -> (SecretState, Vec<String>) {
    if !is_ours(secret, owner, key) {
        let state = match owner_of(secret) {
            Some(other) if other.name == owner.name => SecretState::Leftover,
            _ => SecretState::Foreign,
        };
        return (state, Vec::new());
    }
    if secret.metadata.deletion_timestamp.is_some() {
        return (SecretState::Terminating { held: is_held(secret) }, Vec::new());
    }
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let print = |claim: &str, keys: &[String]| {
        let ours = data.iter().filter(|(k, _)| keys.contains(k));
        fingerprint(claim, ours.map(|(k, ByteString(v))| (k.as_str(), v.as_slice())))
    };
    let seal = sealed(secret, owner, key).filter(|s| {
        s.written()
            .is_some_and(|w| print(&s.live.claim, &w.keys) == w.fingerprint)
    });
    // The seal says which keys are ours; without one, that of the live token, all must be.
    let said = seal.as_ref().filter(|s| live.is_some_and(|l| l.claim == s.live.claim));
    let keys = said.and_then(Seal::written).map(|written| written.keys.clone());
    let keys = keys.unwrap_or_else(|| data.keys().cloned().collect());
    let content = match live.and_then(|l| l.secrets.get(name).map(|w| (l, w))) {
        Some((live, written)) if print(&live.claim, &keys) == written.fingerprint => {
            if data.len() > keys.len() {
                Content::Extra
            } else {
                Content::Intact
            }
        }
        _ => Content::Altered,
    };
    let metadata_matches = metadata_matches(secret, owner, live, seal.as_ref(), own);
    let other = seal.filter(|s| live.is_none_or(|l| l.claim != s.live.claim));
    let state = SecretState::Ours {
        seal: other.map(Box::new),
        content,
        metadata_matches,
    };
    (state, keys)
}

fn outputs_in(secret: &Secret, owner: &Owner, live: &ActiveToken, key: &SealKey) -> Option<Outputs> {
    let seal = sealed(secret, owner, key).filter(|seal| seal.live.claim == live.claim)?;
    let (state, keys) = inspect(secret, owner, Some(live), None, key);
    let SecretState::Ours {
        content: Content::Intact | Content::Extra,
        ..
    } = state
    else {
        return None;
    };
    let keys = seal.written().map_or(keys, |written| written.keys.clone());
    let data = secret.data.as_ref()?;
    let value = |name: &str| {
        let ByteString(bytes) = data.get(name).filter(|_| keys.iter().any(|key| key == name))?;
        std::str::from_utf8(bytes).ok().map(SecretString::from)
    };
    let outputs = sharing::outputs(live).map(|name| Some((name.to_owned(), value(name)?)));
    outputs.collect()
}

fn metadata_matches(
    secret: &Secret,
    owner: &Owner,
    live: Option<&ActiveToken>,
    seal: Option<&Seal>,
    own: Option<&OwnMetadata>,
) -> bool {
    let empty = BTreeMap::new();
    let labels = secret.metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = secret.metadata.annotations.as_ref().unwrap_or(&empty);
    let all = |wanted: &BTreeMap<_, _>, have: &BTreeMap<_, _>| wanted.iter().all(|(k, v)| have.get(k) == Some(v));
    owner_of(secret).is_some_and(|r| r.uid == owner.uid)
        && labels.get(MANAGED_BY_LABEL).is_some_and(|v| v == MANAGER)
        && own.is_none_or(|own| {
            all(&own.labels, labels)
                && all(&own.annotations, annotations)
                && annotations.get(OWN_METADATA_ANNOTATION) == own.note().as_ref()
        })
        && live.is_none_or(|l| {
            let end = annotations.get(EXPIRES_AT_ANNOTATION);
            seal.is_some_and(|s| s.live.claim == l.claim) && end.is_some_and(|end| *end == rfc3339(l.ends_at))
        })
}

/// As in annotations and data: whole seconds, UTC.
#[must_use]
pub fn rfc3339(at: crate::core::Time) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

fn desired(owner: &Owner, metadata: &SecretMetadata, data: &Data) -> Secret {
    let OwnMetadata {
        mut labels,
        mut annotations,
    } = metadata.own.clone();
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGER.to_owned());
    annotations.insert(SEAL_ANNOTATION.to_owned(), metadata.seal.clone());
    annotations.insert(EXPIRES_AT_ANNOTATION.to_owned(), metadata.expires_at.clone());
    annotations.extend(
        metadata
            .own
            .note()
            .map(|note| (OWN_METADATA_ANNOTATION.to_owned(), note)),
    );
    Secret {
        metadata: ObjectMeta {
            name: Some(metadata.name.clone()),
            namespace: Some(owner.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: EphemeralCredential::api_version(&()).into_owned(),
                kind: EphemeralCredential::kind(&()).into_owned(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
                controller: Some(true),
                // Left unset: it would need `update` on finalizers where that admission is on.
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        type_: Some(metadata.type_.as_str().to_owned()),
        data: Some(data.iter().map(|(k, v)| (k.clone(), ByteString(v.to_vec()))).collect()),
        ..Secret::default()
    }
}

/// `desired` in the place of `existing`: other people's labels, annotations and finalizers stay, and those that the spec
/// once asked for go.
fn over(existing: &Secret, desired: &Secret) -> Secret {
    let mut next = desired.clone();
    let note = existing
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(OWN_METADATA_ANNOTATION));
    let (labels, mut annotations) = note.map(|note| OwnMetadata::noted(note)).unwrap_or_default();
    annotations.push(OWN_METADATA_ANNOTATION.to_owned());
    let merge = |old: &Option<BTreeMap<String, String>>, ours: &[String], new: Option<BTreeMap<String, String>>| {
        let mut merged = old.clone().unwrap_or_default();
        merged.retain(|key, _| !ours.contains(key));
        merged.extend(new.unwrap_or_default());
        Some(merged)
    };
    next.metadata.labels = merge(&existing.metadata.labels, &labels, next.metadata.labels.take());
    next.metadata.annotations = merge(
        &existing.metadata.annotations,
        &annotations,
        next.metadata.annotations.take(),
    );
    next.metadata.finalizers.clone_from(&existing.metadata.finalizers);
    next.metadata.uid.clone_from(&existing.metadata.uid);
    next.metadata
        .resource_version
        .clone_from(&existing.metadata.resource_version);
    next
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use zeroize::Zeroizing;

    use super::*;
    use crate::core::journal::Written;
    use crate::core::journal::tests_support::live as live_at;
    use crate::core::testing::t;

    fn owner() -> Owner {
        Owner {
            namespace: "team-a".into(),
            name: "deploy".into(),
            uid: "uid-a".into(),
        }
    }

    fn key(byte: u8) -> SealKey {
        SealKey::new(vec![byte; SealKey::LENGTH]).unwrap()
    }

    fn data() -> Data {
        let pairs = [("npm_token", "npm_1"), ("expires_at", "soon")];
        pairs
            .map(|(k, v)| (k.to_owned(), Zeroizing::new(v.as_bytes().to_vec())))
            .into()
    }

    /// The token of `claim`, as it was written to the Secret `deploy`.
    fn live(claim: &str) -> ActiveToken {
        let mut live = live_at(claim, t(0), t(3600));
        live.outputs = ["npm_token".into()].into();
        let data = data();
        let written = Written {
            keys: data.keys().cloned().collect(),
            fingerprint: fingerprint(claim, data.iter().map(|(k, v)| (k.as_str(), v.as_slice()))),
            ..Written::default()
        };
        live.secrets.insert("deploy".into(), written);
        live
    }

    fn secret(seal: &Seal, key: &SealKey) -> Secret {
        let metadata = SecretMetadata {
            name: "deploy".into(),
            type_: SecretType::Opaque,
            own: OwnMetadata::default(),
            seal: key.sign(seal),
            expires_at: String::new(),
        };
        desired(&owner(), &metadata, &data())
    }

    fn written(claim: &str) -> Secret {
        secret(&Seal::new("uid-a", "team-a", "deploy", &live(claim)), &key(1))
    }

    fn read(secret: &Secret, live: &ActiveToken) -> Option<String> {
        let outputs = outputs_in(secret, &owner(), live, &key(1))?;
        assert_eq!(outputs.len(), 1);
        Some(outputs["npm_token"].expose_secret().to_owned())
    }

    #[test]
    fn values_are_read_from_what_was_written_and_from_nothing_else() {
        assert_eq!(read(&written("c"), &live("c")).as_deref(), Some("npm_1"));
        let edited = |edit: fn(&mut Secret)| {
            let mut secret = written("c");
            edit(&mut secret);
            read(&secret, &live("c"))
        };
        // A key that is nobody's is left out, and one that is changed or gone spoils all.
        let insert: fn(&mut Secret) = |s| {
            s.data
                .as_mut()
                .unwrap()
                .insert("more".into(), ByteString(b"x".to_vec()));
        };
        assert_eq!(edited(insert).as_deref(), Some("npm_1"));
        let edits: [fn(&mut Secret); 5] = [
            |s| {
                s.data
                    .as_mut()
                    .unwrap()
                    .insert("npm_token".into(), ByteString(b"forged".to_vec()));
            },
            |s| {
                s.data.as_mut().unwrap().remove("npm_token");
            },
            |s| s.data = None,
            |s| {
                s.metadata.annotations.as_mut().unwrap().remove(SEAL_ANNOTATION);
            },
            |s| {
                s.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
                ));
            },
        ];
        for (n, edit) in edits.into_iter().enumerate() {
            assert_eq!(edited(edit), None, "edit {n}");
        }
    }

    #[test]
    fn a_seal_of_another_time_of_another_secret_or_of_nobody_gives_no_values() {
        // What was sealed before, put back as it was.
        assert_eq!(read(&written("c-old"), &live("c")), None);
        let live = live("c");
        for forged in [
            secret(&Seal::new("uid-b", "team-a", "deploy", &live), &key(1)),
            secret(&Seal::new("uid-a", "team-b", "deploy", &live), &key(1)),
            secret(&Seal::new("uid-a", "team-a", "another", &live), &key(1)),
            secret(&Seal::new("uid-a", "team-a", "deploy", &live), &key(2)),
        ] {
            assert_eq!(read(&forged, &live), None);
        }
        // Sealed by us, and not what the journal knows to have been written.
        let mut known = live.clone();
        for (_, written) in known.secrets.iter_mut() {
            written.fingerprint = "another".into();
        }
        assert_eq!(read(&written("c"), &known), None);
    }
}
