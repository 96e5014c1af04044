//! What lives in the controller's namespace beside the journals: API keys, certificates, the seal key.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use rand::Rng;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{Cluster, Error, bounded};
use crate::api::{HOST_ANNOTATION, KeyRef, MANAGED_BY_LABEL, MANAGER};
use crate::core::seal::SealKey;

/// Name of the Secret with the seal key.
pub const SEAL_SECRET: &str = "chittyconnect-operator-seal";
const SEAL_KEY: &str = "key";

/// A key to authenticate with, and where it may go.
pub struct ApiKey {
    /// The key.
    pub key: SecretString,
    /// The host it may be sent to besides the default one.
    pub host: Option<String>,
}

/// Why a key or bundle cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No such object.
    #[error("{kind} {name} does not exist in namespace {namespace}: create it with the key {key}")]
    Missing {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The controller's namespace.
        namespace: String,
        /// The key wanted.
        key: String,
    },
    /// No such key in it, or not text.
    #[error("{kind} {name} in namespace {namespace} has no usable key {key}")]
    NoKey {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The controller's namespace.
        namespace: String,
        /// The key wanted.
        key: String,
    },
    /// The API server said no.
    #[error("failed to read {kind} {name}: {source}")]
    Read {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Why.
        source: Error,
    },
}

impl Cluster {
    /// Reads an API key, and where it may go.
    ///
    /// # Errors
    /// Which Secret or key is missing, or why it cannot be read.
    pub async fn api_key(&self, at: &KeyRef) -> Result<ApiKey, KeyError> {
        let kind = "Secret";
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut secret = bounded(api.get(&at.name))
            .await
            .map_err(|e| self.unreadable(kind, at, e))?;
        let host = secret
            .metadata
            .annotations
            .as_mut()
            .and_then(|a| a.remove(HOST_ANNOTATION));
        let key = secret
            .data
            .as_mut()
            .and_then(|data| data.remove(&at.key))
            .and_then(|ByteString(bytes)| String::from_utf8(bytes).ok())
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()))
            .ok_or_else(|| self.no_key(kind, at))?;
        Ok(ApiKey { key: key.into(), host })
    }

    /// Reads a client certificate with its key, as one PEM, and the host it may be shown to.
    ///
    /// # Errors
    /// Which Secret or key is missing, or why it cannot be read.
    pub async fn identity(&self, name: &str) -> Result<(Zeroizing<Vec<u8>>, Option<String>), KeyError> {
        let (values, host) = self.secret(name, ["tls.crt", "tls.key"]).await?;
        let mut pem = Zeroizing::new(Vec::with_capacity(values[0].len() + values[1].len() + 2));
        for part in &values {
            pem.extend_from_slice(part);
            pem.push(b'\n');
        }
        Ok((pem, host))
    }

    /// Reads a user name and a password, and the host they may be sent to.
    ///
    /// # Errors
    /// Which Secret or key is missing, or why it cannot be read.
    pub async fn basic_auth(&self, name: &str) -> Result<((String, SecretString), Option<String>), KeyError> {
        let keys = ["username", "password"];
        let ([user, password], host) = self.secret(name, keys).await?;
        let text = |bytes: &[u8], key: &str| {
            let text = std::str::from_utf8(bytes)
                .ok()
                .map(|text| text.trim_end_matches(['\r', '\n']));
            let text = text.filter(|text| !text.chars().any(char::is_control));
            text.map(str::to_owned)
                .ok_or_else(|| self.no_key("Secret", &key_ref(name, key)))
        };
        Ok(((text(&user, keys[0])?, text(&password, keys[1])?.into()), host))
    }

    async fn secret<const N: usize>(
        &self,
        name: &str,
        keys: [&str; N],
    ) -> Result<([Zeroizing<Vec<u8>>; N], Option<String>), KeyError> {
        let kind = "Secret";
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut secret = bounded(api.get(name))
            .await
            .map_err(|e| self.unreadable(kind, &key_ref(name, keys[0]), e))?;
        let host = secret
            .metadata
            .annotations
            .as_mut()
            .and_then(|a| a.remove(HOST_ANNOTATION));
        let mut data = secret.data.unwrap_or_default();
        let mut values = [(); N].map(|()| Zeroizing::new(Vec::new()));
        for (value, key) in values.iter_mut().zip(keys) {
            let found = data
                .remove(key)
                .map(|ByteString(bytes)| bytes)
                .filter(|bytes| !bytes.is_empty());
            *value = Zeroizing::new(found.ok_or_else(|| self.no_key(kind, &key_ref(name, key)))?);
        }
        Ok((values, host))
    }

    /// Reads a bundle of certificates.
    ///
    /// # Errors
    /// Which `ConfigMap` or key is missing, or why it cannot be read.
    pub async fn ca_bundle(&self, at: &KeyRef) -> Result<Vec<u8>, KeyError> {
        let kind = "ConfigMap";
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let map = bounded(api.get(&at.name))
            .await
            .map_err(|e| self.unreadable(kind, at, e))?;
        map.data
            .and_then(|mut data| data.remove(&at.key))
            .map(String::into_bytes)
            .ok_or_else(|| self.no_key(kind, at))
    }

    /// The seal key; created where it is not there yet.
    ///
    /// # Errors
    /// Where it can neither be read nor created.
    pub async fn seal_key(&self) -> anyhow::Result<SealKey> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        for _ in 0..2 {
            match bounded(api.get_opt(SEAL_SECRET)).await? {
                Some(secret) => {
                    return secret
                        .data
                        .and_then(|mut data| data.remove(SEAL_KEY))
                        .and_then(|ByteString(bytes)| SealKey::new(bytes))
                        .ok_or_else(|| {
                            anyhow::anyhow!(
                                "Secret {SEAL_SECRET} in namespace {} has no key {SEAL_KEY} of at least {} bytes: \
                                 restore it, or delete it to have a new one made",
                                self.namespace,
                                SealKey::LENGTH
                            )
                        });
                }
                None => match bounded(api.create(&PostParams::default(), &new_seal())).await {
                    Ok(_) => {}
                    Err(e) if e.is_conflict() => {}
                    Err(e) if e.is_not_found() => {
                        anyhow::bail!(
                            "namespace {} does not exist: create it, or name another with --namespace",
                            self.namespace
                        )
                    }
                    Err(e) => return Err(e.into()),
                },
            }
        }
        anyhow::bail!("Secret {SEAL_SECRET} is deleted as soon as it is created")
    }

    fn unreadable(&self, kind: &'static str, at: &KeyRef, source: Error) -> KeyError {
        if source.is_not_found() {
            return KeyError::Missing {
                kind,
                name: at.name.clone(),
                namespace: self.namespace.clone(),
                key: at.key.clone(),
            };
        }
        KeyError::Read {
            kind,
            name: at.name.clone(),
            source,
        }
    }

    fn no_key(&self, kind: &'static str, at: &KeyRef) -> KeyError {
        KeyError::NoKey {
            kind,
            name: at.name.clone(),
            namespace: self.namespace.clone(),
            key: at.key.clone(),
        }
    }
}

fn key_ref(name: &str, key: &str) -> KeyRef {
    KeyRef {
        name: name.to_owned(),
        key: key.to_owned(),
    }
}

fn new_seal() -> Secret {
    let mut bytes = vec![0; SealKey::LENGTH];
    rand::rng().fill_bytes(&mut bytes);
    Secret {
        metadata: ObjectMeta {
            name: Some(SEAL_SECRET.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/part-of".to_owned(),
                MANAGER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(SEAL_KEY.to_owned(), ByteString(bytes))])),
        ..Secret::default()
    }
}

/// The label that managed Secrets are watched by.
#[must_use]
pub fn managed_selector() -> String {
    format!("{MANAGED_BY_LABEL}={MANAGER}")
}
