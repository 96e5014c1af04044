//! `kubectl chitty template`: a credential's Secrets, rendered from made-up values.

use std::collections::BTreeMap;

use chittyconnect_operator::api::{EXPIRES_AT_ANNOTATION, EphemeralCredential};
use chittyconnect_operator::core::layout::AnnotationPolicy;
use chittyconnect_operator::core::render::{MOST_RENDERED, Outputs, check_outputs, render, size};
use chittyconnect_operator::core::spec::desired;
use chittyconnect_operator::core::{Problem, Time};
use serde::{Deserialize, Serialize};

/// What ChittyConnect may give, made up.
const MADE_UP: [(&str, &str); 8] = [
    ("account_id", "made-up-account-id"),
    ("cloudflare_token", "made-up-cloudflare-token"),
    ("github_token", "made-up-github-token"),
    ("neon_database_url", "postgres://made-up:made-up@db.example.com/made-up"),
    ("neon_token", "made-up-neon-token"),
    ("npm_token", "made-up-npm-token"),
    ("register_token", "made-up-register-token"),
    ("service_token", "made-up-service-token"),
];

/// A Secret, as it is applied.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rendered {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    r#type: &'static str,
    string_data: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Metadata {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// Made-up outputs: those that are `given` take the place of others, and those `without` a value are left out.
pub fn outputs(given: &[(String, String)], without: &[String]) -> Outputs {
    let usual = MADE_UP
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let all: BTreeMap<String, String> = usual.chain(given.iter().cloned()).collect();
    let kept = all.into_iter().filter(|(name, _)| !without.contains(name));
    kept.map(|(name, value)| (name, value.into())).collect()
}

/// The credentials in `text`, which may hold other documents, too.
///
/// # Errors
/// Where it is no YAML, or a credential in it is none.
pub fn credentials(text: &str) -> anyhow::Result<Vec<EphemeralCredential>> {
    let mut found = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = serde_yaml::Value::deserialize(document)?;
        if value.get("kind").and_then(serde_yaml::Value::as_str) == Some("EphemeralCredential") {
            found.push(serde_yaml::from_value(value)?);
        }
    }
    anyhow::ensure!(!found.is_empty(), "there is no EphemeralCredential in it");
    Ok(found)
}

/// The Secrets that `credential` lays `outputs` out in, as if they ended at `ends_at`.
///
/// # Errors
/// What the controller would say of it: `InvalidSpec` or `InvalidTemplate`.
pub fn secrets(
    credential: &EphemeralCredential,
    policy: &AnnotationPolicy,
    outputs: &Outputs,
    ends_at: Time,
) -> Result<Vec<Rendered>, Problem> {
    let desired = desired(credential, None, policy)?;
    desired.check_templates()?;
    check_outputs(desired.secrets.iter().map(|s| (s.name.as_str(), &s.layout)), outputs)?;
    let mut room = MOST_RENDERED;
    let rendered = desired.secrets.iter().map(|secret| {
        let data = render(&secret.name, secret.type_, &secret.layout, outputs, ends_at, room)?;
        room = room.saturating_sub(size(&data));
        let end = ends_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let mut annotations = secret.metadata.annotations.clone();
        annotations.insert(EXPIRES_AT_ANNOTATION.to_owned(), end);
        Ok(Rendered {
            api_version: "v1",
            kind: "Secret",
            metadata: Metadata {
                name: secret.name.clone(),
                namespace: credential.metadata.namespace.clone().unwrap_or_default(),
                labels: secret.metadata.labels.clone(),
                annotations,
            },
            r#type: secret.type_.as_str(),
            string_data: data
                .iter()
                .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()))
                .collect(),
        })
    });
    rendered.collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;
    use crate::examples::{credential, now};

    fn rendered(spec: &serde_json::Value, without: &[&str]) -> Result<String, Problem> {
        let credential = credential("site-deploy", json!({"spec": {"secrets": spec}}));
        let without: Vec<String> = without.iter().map(|name| (*name).to_owned()).collect();
        let outputs = outputs(&[("npm_token".to_owned(), "mine".to_owned())], &without);
        let all = secrets(&credential, &AnnotationPolicy::default(), &outputs, now())?;
        Ok(all
            .iter()
            .map(|s| serde_yaml::to_string(s).unwrap())
            .collect::<Vec<_>>()
            .join("---\n"))
    }

    #[test]
    fn secrets_are_rendered_as_the_controller_writes_them() {
        let spec = json!([
            {"name": "files", "presets": ["npmrc", "dotenv"]},
            {"name": "own", "data": {"deploy.json": "{\"account\": {{ account_id | tojson }}}"}},
        ]);
        expect![[r#"
            apiVersion: v1
            kind: Secret
            metadata:
              name: files
              namespace: demo-web
              annotations:
                connect.chitty.cc/expires-at: 2026-11-21T12:22:10Z
            type: Opaque
            stringData:
              .env: |
                export CLOUDFLARE_ACCOUNT_ID='made-up-account-id'
                export CLOUDFLARE_API_TOKEN='made-up-cloudflare-token'
                export GH_TOKEN='made-up-github-token'
                export NODE_AUTH_TOKEN='mine'
                export NPM_CONFIG_TOKEN='mine'
                export NPM_TOKEN='mine'
                export REGISTER_TOKEN='made-up-register-token'
                export SERVICE_TOKEN='made-up-service-token'
                export YARN_NPM_AUTH_TOKEN='mine'
              .npmrc: |
                //registry.npmjs.org/:_authToken=mine
              expires_at: 2026-11-21T12:22:10Z
            ---
            apiVersion: v1
            kind: Secret
            metadata:
              name: own
              namespace: demo-web
              annotations:
                connect.chitty.cc/expires-at: 2026-11-21T12:22:10Z
            type: Opaque
            stringData:
              deploy.json: '{"account": "made-up-account-id"}'
              expires_at: 2026-11-21T12:22:10Z
        "#]]
        .assert_eq(&rendered(&spec, &["neon_token", "neon_database_url"]).unwrap());
    }

    #[test]
    fn what_cannot_be_rendered_is_refused_in_the_words_of_the_controller() {
        let spec = json!([{"name": "own", "data": {"k": "{{ npm_token }}{{ account_id }}"}}]);
        let refused = rendered(&spec, &["account_id"]).unwrap_err();
        assert!(
            refused
                .message
                .starts_with("Secret own, key k needs account_id; ChittyConnect gave "),
            "{}",
            refused.message
        );
        let spec = json!([{"name": "own", "data": {"k": "{{ npm_token | rot13 }}"}}]);
        let refused = rendered(&spec, &[]).unwrap_err();
        assert!(
            refused.message.starts_with("Secret own, key k, "),
            "{}",
            refused.message
        );
    }

    #[test]
    fn other_documents_beside_a_credential_are_passed_over() {
        let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n---\napiVersion: connect.chitty.cc/v1alpha1\n\
                    kind: EphemeralCredential\nmetadata: {name: b}\nspec: {service: s, purpose: p}\n";
        let found = credentials(text).unwrap();
        assert_eq!(found[0].metadata.name.as_deref(), Some("b"));
        assert!(credentials("kind: Secret").is_err());
    }
}
