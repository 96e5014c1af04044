//! What a credential asks for: the request, the layout, and their digests.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::Problem;
use super::ids::{Digest, SpecDigest};
use super::journal::RequestFacts;
use super::layout::{AnnotationPolicy, Layout, OwnMetadata};
use super::render;
use crate::api::{
    Activation, BrokerApi, EphemeralCredential, EphemeralCredentialSpec, Preset, REVOKE_ANNOTATION, ROTATE_ANNOTATION,
    Reason, SecretType,
};

/// A digest of parts, none of which can run into the next, as 32 hexadecimal digits.
#[must_use]
pub fn digest<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> String {
    Digest::of(parts).hex()
}

/// What a credential's spec asks for, checked and digested.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
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
    /// The credential type, with the Provision API.
    pub type_: Option<String>,
    /// What the type needs besides.
    pub context: BTreeMap<String, serde_json::Value>,
    /// Digest of all that a mint can be asked for because of.
    pub digest: SpecDigest,
    /// The Secrets.
    pub secrets: Vec<DesiredSecret>,
    /// Runway asked for.
    pub renew_before: Option<TimeDelta>,
    /// Longest use of a token.
    pub max_lifetime: Option<TimeDelta>,
    /// When there are tokens.
    pub activation: Activation,
    /// How long before its token ends a Pod is warned that has read it once; nothing where Pods are not looked after.
    pub warn_before: Option<TimeDelta>,
}

/// How long before its token ends a Pod is warned where the spec does not say.
const WARN_BEFORE: TimeDelta = TimeDelta::minutes(10);

/// Whether Pods that use the Secrets are to be known.
#[must_use]
pub fn looks_after_pods(spec: &EphemeralCredentialSpec) -> bool {
    spec.activation == Activation::OnDemand || spec.consumers.is_some()
}

/// The names of the Secrets that a spec asks for, where its credential has that `name`.
pub fn secret_names<'a>(spec: &'a EphemeralCredentialSpec, name: &'a str) -> impl Iterator<Item = &'a str> {
    let own = spec.secrets.is_empty().then_some(name);
    own.into_iter().chain(spec.secrets.iter().map(|s| s.name.as_str()))
}

impl Desired {
    /// Reads the templates: for what is permitted, before anything is minted.
    ///
    /// # Errors
    /// `InvalidTemplate`, naming Secret, key and place.
    pub fn check_templates(&self) -> Result<(), Problem> {
        render::check_templates(self.secrets.iter().map(|s| (s.name.as_str(), &s.layout)))
    }

    /// Whether `request` was made of the same connection for the same service: what replaces its token is
    /// its renewal, and has its place in the budget.
    #[must_use]
    pub fn is_served_by(&self, request: &RequestFacts) -> bool {
        request.connection == self.connection && request.service == self.service
    }
}

/// One Secret as the spec asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredSecret {
    /// Its name.
    pub name: String,
    /// Its type.
    pub type_: SecretType,
    /// Its labels and annotations.
    pub metadata: OwnMetadata,
    /// What goes into it.
    pub layout: Layout,
}

/// What annotations ask for, whatever the spec says: digests of their values, or the default where there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Another rotation.
    pub rotate: Digest,
    /// Another revocation.
    pub revoke: Digest,
}

/// What the annotations of `credential` ask for.
#[must_use]
pub fn asked(credential: &EphemeralCredential) -> Asked {
    let annotations = credential.metadata.annotations.as_ref();
    let digest = |key| annotations.and_then(|a| a.get(key)).map(|value| Digest::of([value]));
    Asked {
        rotate: digest(ROTATE_ANNOTATION).unwrap_or_default(),
        revoke: digest(REVOKE_ANNOTATION).unwrap_or_default(),
    }
}

/// Reads what `credential` asks for, of a connection that speaks `api` (where it is known), with annotations that `policy`
/// allows.
///
/// # Errors
/// `InvalidSpec`, with what to change. Templates are not read: see [`Desired::check_templates`].
pub fn desired(
    credential: &EphemeralCredential,
    api: Option<BrokerApi>,
    policy: &AnnotationPolicy,
) -> Result<Desired, Problem> {
    let spec = &credential.spec;
    fits(spec, api)?;
    let name = credential.metadata.name.clone().unwrap_or_default();
    let secrets = secrets(credential, &name, policy)?;
    let Asked { rotate, revoke } = asked(credential);
    Ok(Desired {
        connection: spec.connection.clone(),
        service: spec.service.clone(),
        purpose: spec.purpose.clone(),
        repo: spec.repo.clone(),
        run_id: spec.run_id.clone(),
        type_: spec.type_.clone(),
        context: spec
            .context
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), context_value(key, value).ok()?)))
            .collect(),
        digest: SpecDigest {
            request: Digest::of([
                "request",
                &spec.connection,
                &spec.service,
                &spec.purpose,
                spec.repo.as_deref().unwrap_or(""),
                spec.run_id.as_deref().unwrap_or(""),
                &provision_text(spec),
            ]),
            layout: layout_digest(&secrets),
            rotate,
            revoke,
        },
        secrets,
        renew_before: delta(spec.rotation.renew_before.as_ref()),
        max_lifetime: delta(spec.rotation.max_lifetime.as_ref())
            .or_else(|| (api == Some(BrokerApi::Provision)).then_some(PROVISION_LIFETIME)),
        activation: spec.activation,
        warn_before: looks_after_pods(spec).then(|| {
            let asked = spec.consumers.as_ref().and_then(|c| c.warn_before.as_ref());
            delta(asked).unwrap_or(WARN_BEFORE)
        }),
    })
}

/// The items of a context value: zones are a list.
pub fn items<'a>(key: &str, value: &'a str) -> impl Iterator<Item = &'a str> {
    let separator = if key == "zones" { ',' } else { '\0' };
    value.split(separator).map(str::trim)
}

/// A context value as `ChittyConnect` takes it: most are text.
fn context_value(key: &str, value: &str) -> Result<serde_json::Value, Problem> {
    let must = |what: &str| Problem::new(Reason::InvalidSpec, format!("spec.context.{key} must be {what}"));
    Ok(match key {
        "readonly" => value.parse::<bool>().map_err(|_| must("true or false"))?.into(),
        "ttl" => value.parse::<u64>().map_err(|_| must("a whole number"))?.into(),
        "zones" => items(key, value).collect::<Vec<_>>().into(),
        _ => value.into(),
    })
}

/// What Deploy's requests have nothing of; empty for them, so that their digests stay.
fn provision_text(spec: &EphemeralCredentialSpec) -> String {
    match &spec.type_ {
        None => String::new(),
        // Maps are in order, and serialising plain JSON cannot fail.
        Some(type_) => format!("{type_} {}", serde_json::to_string(&spec.context).unwrap_or_default()),
    }
}

/// How long a Provision credential is used where the spec does not say: the broker makes it for months.
const PROVISION_LIFETIME: TimeDelta = TimeDelta::hours(1);

/// Context that `ChittyConnect`'s types cannot do without.
const NEEDS: [(&str, &[&str]); 5] = [
    ("cloudflare_r2_access", &["bucket"]),
    ("cloudflare_d1_access", &["database"]),
    ("github_deploy_token", &["repository"]),
    ("chittyos_service_token", &["source_service", "target_service"]),
    ("neon_database_connection", &["database", "readonly"]),
];

/// What neither schema nor CEL can see: whether the fields fit the connection's API and the type.
fn fits(spec: &EphemeralCredentialSpec, api: Option<BrokerApi>) -> Result<(), Problem> {
    let invalid = |message: String| Err(Problem::new(Reason::InvalidSpec, message));
    // The schema sees to that, where it is not written around.
    if spec.from.is_none() && (spec.service.is_empty() || spec.purpose.is_empty()) {
        return invalid("spec.service and spec.purpose are required".to_owned());
    }
    if let Some(problem) = spec
        .context
        .iter()
        .find_map(|(key, value)| context_value(key, value).err())
    {
        return Err(problem);
    }
    match (api, &spec.type_) {
        (Some(BrokerApi::Provision), None) => invalid(format!(
            "ChittyConnection {} speaks the Provision API, so spec.type is required: for instance cloudflare_workers_deploy",
            spec.connection
        )),
        (Some(BrokerApi::Deploy), Some(_)) => invalid(format!(
            "spec.type is for connections with api: Provision, and ChittyConnection {} speaks the Deploy API: remove it, or name another connection",
            spec.connection
        )),
        (Some(BrokerApi::Deploy), None) if !spec.context.is_empty() => {
            invalid("spec.context is for connections with api: Provision: remove it".to_owned())
        }
        (_, Some(type_)) => {
            let needs = NEEDS
                .iter()
                .find(|(known, _)| known == type_)
                .map_or(&[][..], |(_, keys)| keys);
            let missing: Vec<&str> = needs
                .iter()
                .filter(|k| !spec.context.contains_key(**k))
                .copied()
                .collect();
            if missing.is_empty() {
                Ok(())
            } else {
                invalid(format!("type {type_} needs {} in spec.context", missing.join(" and ")))
            }
        }
        _ => Ok(()),
    }
}

fn secrets(
    credential: &EphemeralCredential,
    name: &str,
    policy: &AnnotationPolicy,
) -> Result<Vec<DesiredSecret>, Problem> {
    let templates = &credential.spec.secrets;
    if templates.is_empty() {
        return Ok(vec![DesiredSecret {
            name: name.to_owned(),
            type_: SecretType::Opaque,
            metadata: OwnMetadata::default(),
            layout: Layout {
                presets: vec![Preset::Outputs],
                ..Layout::default()
            },
        }]);
    }
    templates
        .iter()
        .map(|template| {
            policy.check(&template.name, &template.labels, &template.annotations)?;
            let mut presets = template.presets.clone();
            if presets.is_empty() && template.data.is_empty() {
                presets.push(Preset::Outputs);
            }
            presets.sort_unstable();
            presets.dedup();
            let layout = Layout {
                presets,
                options: template.options.clone(),
                data: template.data.clone(),
            };
            layout.check_keys(&template.name, template.type_)?;
            Ok(DesiredSecret {
                name: template.name.clone(),
                type_: template.type_,
                metadata: layout.metadata(template.type_, &template.labels, &template.annotations),
                layout,
            })
        })
        .collect()
}

fn layout_digest(secrets: &[DesiredSecret]) -> Digest {
    let mut parts: Vec<String> = Vec::new();
    let mut sorted: Vec<_> = secrets.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for secret in sorted {
        parts.push(format!("secret {} {}", secret.name, secret.type_.as_str()));
        parts.extend(secret.layout.digest_parts());
    }
    Digest::of(parts)
}

fn delta(duration: Option<&kube::core::Duration>) -> Option<TimeDelta> {
    duration.and_then(|d| TimeDelta::from_std((*d).into()).ok())
}

impl Desired {
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
                type_: None,
                context: std::collections::BTreeMap::new(),
                activation: crate::api::Activation::default(),
                rotation: Rotation::default(),
                secrets: Vec::new(),
                suspend: false,
                shared_with: None,
                from: None,
                consumers: None,
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
    use crate::api::{NpmOptions, PresetOptions, SecretTemplate};

    fn desired(credential: &EphemeralCredential, api: Option<BrokerApi>) -> Result<Desired, Problem> {
        super::desired(credential, api, &AnnotationPolicy::default())
    }

    fn template(name: &str, data: &[(&str, &str)]) -> SecretTemplate {
        SecretTemplate {
            name: name.into(),
            type_: SecretType::Opaque,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            presets: Vec::new(),
            options: PresetOptions::default(),
            data: data.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        }
    }

    /// Invariant 9.
    #[test]
    fn labels_annotations_rotation_and_the_order_of_secrets_change_no_digest() {
        let mut base = credential("a", "chittyid");
        base.spec.secrets = vec![template("x", &[("k", "{{ v }}")]), template("y", &[])];
        let mut edited = base.clone();
        edited.metadata.labels = Some([("a".into(), "b".into())].into());
        edited.metadata.annotations = Some([("a".into(), "b".into())].into());
        edited.spec.secrets.reverse();
        edited.spec.secrets[0].labels.insert("l".into(), "v".into());
        edited.spec.secrets[0]
            .annotations
            .insert("tekton.dev/git-0".into(), "https://github.com".into());
        // What no preset takes changes nothing, either.
        edited.spec.secrets[0].options.npm = Some(NpmOptions::default());
        edited.spec.rotation.renew_before = Some(std::time::Duration::from_secs(60).into());
        let (a, b) = (desired(&base, None).unwrap(), desired(&edited, None).unwrap());
        assert_eq!(a.digest, b.digest);
    }

    #[test]
    fn every_part_of_the_request_changes_its_digest() {
        let base = desired(&credential("a", "chittyid"), None).unwrap().digest.request;
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
            assert_ne!(desired(&ec, None).unwrap().digest.request, base);
        }
    }

    #[test]
    fn a_secret_without_presets_and_data_gets_the_outputs() {
        let mut ec = credential("a", "chittyid");
        ec.spec.secrets = vec![template("x", &[])];
        assert_eq!(desired(&ec, None).unwrap().secrets[0].layout.presets, [Preset::Outputs]);
        ec.spec.secrets = vec![template("x", &[("k", "v")])];
        assert!(desired(&ec, None).unwrap().secrets[0].layout.presets.is_empty());
    }

    #[test]
    fn without_secrets_there_is_one_named_as_the_credential() {
        let secrets = desired(&credential("a", "chittyid"), None).unwrap().secrets;
        assert_eq!(secrets.len(), 1);
        assert_eq!(secrets[0].name, "a");
    }

    #[test]
    fn type_and_context_must_fit_the_connections_api() {
        let reason = |ec: &EphemeralCredential, api| desired(ec, Some(api)).map(|_| ()).map_err(|p| p.reason);
        let mut ec = credential("a", "chittyid");
        assert_eq!(reason(&ec, BrokerApi::Deploy), Ok(()));
        assert_eq!(reason(&ec, BrokerApi::Provision), Err(Reason::InvalidSpec));
        ec.spec.type_ = Some("neon_database_connection".into());
        assert_eq!(reason(&ec, BrokerApi::Deploy), Err(Reason::InvalidSpec));
        assert_eq!(reason(&ec, BrokerApi::Provision), Err(Reason::InvalidSpec));
        ec.spec.context.insert("database".into(), "main".into());
        ec.spec.context.insert("readonly".into(), "true".into());
        assert_eq!(reason(&ec, BrokerApi::Provision), Ok(()));
        ec.spec.context.insert("ttl".into(), "soon".into());
        assert_eq!(reason(&ec, BrokerApi::Provision), Err(Reason::InvalidSpec));
    }

    #[test]
    fn a_provisioned_credential_is_used_for_an_hour_unless_the_spec_says_otherwise() {
        let mut ec = credential("a", "chittyid");
        ec.spec.type_ = Some("cloudflare_workers_read".into());
        assert_eq!(
            desired(&ec, Some(BrokerApi::Provision)).unwrap().max_lifetime,
            Some(TimeDelta::hours(1))
        );
        ec.spec.rotation.max_lifetime = Some(std::time::Duration::from_secs(60).into());
        assert_eq!(
            desired(&ec, Some(BrokerApi::Provision)).unwrap().max_lifetime,
            Some(TimeDelta::minutes(1))
        );
    }
}
