//! What a credential asks for: the request, the layout, and their digests.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::Problem;
use super::render::{self, Layout};
use crate::api::{EphemeralCredential, Preset, ROTATE_ANNOTATION, Reason, SecretType};

/// A digest of parts, none of which can run into the next.
#[must_use]
pub fn digest<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    HEXLOWER.encode(&hash.finalize()[..16])
}

/// What a credential's spec asks for, checked and digested.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Name of the connection.
    pub connection: String,
    /// The service.
    pub service: String,
    /// The purpose.
    pub purpose: String,
    /// The repository.
    pub repo: Option<String>,
    /// The `run_id`, where the user sets it.
    pub run_id: Option<String>,
    /// Digest of all that changes which token comes back.
    pub request_hash: String,
    /// Digest of all that changes what the Secrets hold.
    pub layout_hash: String,
    /// Digest of the rotate annotation's value.
    pub rotate: String,
    /// The Secrets.
    pub secrets: Vec<WantedSecret>,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
    /// Longest use of a token.
    pub max_lifetime: Option<TimeDelta>,
}

/// One Secret as the spec asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedSecret {
    /// Its name.
    pub name: String,
    /// Its type.
    pub type_: SecretType,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// What goes into it.
    pub layout: Layout,
}

/// Reads what `credential` asks for.
///
/// # Errors
/// `InvalidSpec` or `InvalidTemplate`, with what to change.
pub fn wanted(credential: &EphemeralCredential) -> Result<Wanted, Problem> {
    let spec = &credential.spec;
    let name = credential.metadata.name.clone().unwrap_or_default();
    let secrets = secrets(credential, &name)?;
    let rotate = credential
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(ROTATE_ANNOTATION))
        .map(|value| digest([value]))
        .unwrap_or_default();
    Ok(Wanted {
        connection: spec.connection.clone(),
        service: spec.service.clone(),
        purpose: spec.purpose.clone(),
        repo: spec.repo.clone(),
        run_id: spec.run_id.clone(),
        request_hash: digest([
            "request",
            &spec.connection,
            &spec.service,
            &spec.purpose,
            spec.repo.as_deref().unwrap_or(""),
            spec.run_id.as_deref().unwrap_or(""),
        ]),
        layout_hash: layout_hash(&secrets),
        rotate,
        secrets,
        renew_before: delta(spec.rotation.renew_before.as_ref()),
        max_lifetime: delta(spec.rotation.max_lifetime.as_ref()),
    })
}

fn secrets(credential: &EphemeralCredential, name: &str) -> Result<Vec<WantedSecret>, Problem> {
    let templates = &credential.spec.secrets;
    if templates.is_empty() {
        return Ok(vec![WantedSecret {
            name: name.to_owned(),
            type_: SecretType::Opaque,
            labels: BTreeMap::new(),
            layout: Layout {
                presets: vec![Preset::Outputs],
                data: BTreeMap::new(),
            },
        }]);
    }
    templates
        .iter()
        .map(|template| {
            let mut presets = template.presets.clone();
            if presets.is_empty() && template.data.is_empty() {
                presets.push(Preset::Outputs);
            }
            presets.sort_unstable();
            let layout = Layout {
                presets,
                data: template.data.clone(),
            };
            render::check(&template.name, template.type_, &layout)?;
            Ok(WantedSecret {
                name: template.name.clone(),
                type_: template.type_,
                labels: template.labels.clone(),
                layout,
            })
        })
        .collect()
}

fn layout_hash(secrets: &[WantedSecret]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut sorted: Vec<_> = secrets.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for secret in sorted {
        parts.push(format!("secret {} {}", secret.name, secret.type_.as_str()));
        parts.extend(secret.layout.presets.iter().map(|p| format!("preset {p:?}")));
        for (key, template) in &secret.layout.data {
            parts.push(format!("key {key}"));
            parts.push(template.clone());
        }
    }
    digest(parts)
}

fn delta(duration: Option<&kube::core::Duration>) -> Option<TimeDelta> {
    duration.and_then(|d| TimeDelta::from_std((*d).into()).ok())
}

impl Wanted {
    /// A problem with this spec.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Problem {
        Problem::new(Reason::InvalidSpec, message)
    }
}

/// Credentials as tests of the core use them.
#[cfg(test)]
pub mod tests_support {
    use crate::api::{EphemeralCredential, EphemeralCredentialSpec, Rotation};

    /// A credential `name` for `service` with everything else as a user would leave it.
    #[must_use]
    pub fn credential(name: &str, service: &str) -> EphemeralCredential {
        let mut ec = EphemeralCredential::new(
            name,
            EphemeralCredentialSpec {
                connection: "default".into(),
                service: service.into(),
                purpose: "worker-deploy".into(),
                repo: Some("CHITTYOS/chittyid".into()),
                run_id: None,
                rotation: Rotation::default(),
                secrets: Vec::new(),
                suspend: false,
            },
        );
        ec.metadata.namespace = Some("runners-1".into());
        ec.metadata.uid = Some(format!("uid-{name}"));
        ec.metadata.generation = Some(1);
        ec
    }
}

#[cfg(test)]
mod tests {
    use super::tests_support::credential;
    use super::*;
    use crate::api::SecretTemplate;

    fn template(name: &str, data: &[(&str, &str)]) -> SecretTemplate {
        SecretTemplate {
            name: name.into(),
            type_: SecretType::Opaque,
            labels: BTreeMap::new(),
            presets: Vec::new(),
            data: data.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        }
    }

    #[test]
    fn labels_annotations_rotation_and_the_order_of_secrets_change_no_digest() {
        let mut base = credential("a", "chittyid");
        base.spec.secrets = vec![template("x", &[("k", "{{ v }}")]), template("y", &[])];
        let mut edited = base.clone();
        edited.metadata.labels = Some([("a".into(), "b".into())].into());
        edited.metadata.annotations = Some([("a".into(), "b".into())].into());
        edited.spec.secrets.reverse();
        edited.spec.secrets[0].labels.insert("l".into(), "v".into());
        edited.spec.rotation.renew_before = Some(std::time::Duration::from_secs(60).into());
        let (a, b) = (wanted(&base).unwrap(), wanted(&edited).unwrap());
        assert_eq!(
            (a.request_hash, a.layout_hash, a.rotate),
            (b.request_hash, b.layout_hash, b.rotate)
        );
    }

    #[test]
    fn every_part_of_the_request_changes_its_digest() {
        let base = wanted(&credential("a", "chittyid")).unwrap().request_hash;
        let edits: [fn(&mut EphemeralCredential); 5] = [
            |ec| ec.spec.connection = "x".into(),
            |ec| ec.spec.service = "x".into(),
            |ec| ec.spec.purpose = "x".into(),
            |ec| ec.spec.repo = None,
            |ec| ec.spec.run_id = Some("x".into()),
        ];
        for edit in edits {
            let mut ec = credential("a", "chittyid");
            edit(&mut ec);
            assert_ne!(wanted(&ec).unwrap().request_hash, base);
        }
    }

    #[test]
    fn a_secret_without_presets_and_data_gets_the_outputs() {
        let mut ec = credential("a", "chittyid");
        ec.spec.secrets = vec![template("x", &[])];
        assert_eq!(wanted(&ec).unwrap().secrets[0].layout.presets, [Preset::Outputs]);
        ec.spec.secrets = vec![template("x", &[("k", "v")])];
        assert!(wanted(&ec).unwrap().secrets[0].layout.presets.is_empty());
    }

    #[test]
    fn without_secrets_there_is_one_named_as_the_credential() {
        let secrets = wanted(&credential("a", "chittyid")).unwrap().secrets;
        assert_eq!(secrets.len(), 1);
        assert_eq!(secrets[0].name, "a");
    }
}
