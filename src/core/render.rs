//! From outputs to the data of a Secret.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Problem, Time};
use crate::api::{EXPIRES_AT_KEY, Preset, Reason, SecretType};

/// Work a template may do; a token and some text around it take a few dozen steps.
const FUEL: u64 = 20_000;
/// Most a Secret may hold; Kubernetes refuses more than 1 MiB.
const MAX_BYTES: usize = 512 * 1024;

/// The outputs of one mint, by name.
pub type Outputs = BTreeMap<String, SecretString>;
/// The data of one Secret.
pub type Data = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// What goes into one Secret.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Ready-made layouts.
    pub presets: Vec<Preset>,
    /// Templates by key.
    pub data: BTreeMap<String, String>,
}

fn environment<'source>() -> Environment<'source> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_fuel(Some(FUEL));
    // It prints every variable there is.
    env.remove_global("debug");
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        env.set_syntax(syntax);
    }
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env
}

/// Checks a layout as far as that is possible without outputs.
///
/// # Errors
/// `InvalidTemplate` for a template that does not compile, `InvalidSpec` for a key that is missing
/// or not allowed.
pub fn check(secret: &str, type_: SecretType, layout: &Layout) -> Result<(), Problem> {
    let env = environment();
    for (key, source) in &layout.data {
        if key == EXPIRES_AT_KEY {
            return Err(Problem::new(
                Reason::InvalidSpec,
                format!("Secret {secret}: the key {EXPIRES_AT_KEY} is reserved; name yours otherwise"),
            ));
        }
        env.template_from_str(source)
            .map_err(|e| Problem::new(Reason::InvalidTemplate, template_error(secret, key, &e)))?;
    }
    let needs: &[&str] = match type_ {
        SecretType::Opaque => return Ok(()),
        SecretType::DockerConfigJson => &[".dockerconfigjson"],
        SecretType::BasicAuth => &["username", "password"],
    };
    if needs.iter().any(|key| layout.data.contains_key(*key)) {
        return Ok(());
    }
    Err(Problem::new(
        Reason::InvalidSpec,
        format!(
            "Secret {secret} has type {} and needs the key {} in data",
            type_.as_str(),
            needs.join(" or ")
        ),
    ))
}

// minijinja's own messages quote the template, which is public, and never a value.
fn template_error(secret: &str, key: &str, error: &minijinja::Error) -> String {
    let line = error.line().map(|l| format!(", line {l}")).unwrap_or_default();
    format!("Secret {secret}, key {key}{line}: {}", error.kind())
}

/// Lays `outputs` out.
///
/// # Errors
/// `InvalidTemplate`, naming the outputs that are needed and those that are there.
pub fn render(
    secret: &str,
    type_: SecretType,
    layout: &Layout,
    outputs: &Outputs,
    ends_at: Time,
) -> Result<Data, Problem> {
    let mut data = Data::new();
    for preset in &layout.presets {
        match preset {
            Preset::Outputs => {
                for (name, value) in outputs {
                    data.insert(name.clone(), bytes(value.expose_secret()));
                }
            }
        }
    }
    let env = environment();
    let context: Value = outputs
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(value.expose_secret())))
        .collect::<BTreeMap<String, Value>>()
        .into();
    for (key, source) in &layout.data {
        let template = env
            .template_from_str(source)
            .map_err(|e| Problem::new(Reason::InvalidTemplate, template_error(secret, key, &e)))?;
        let missing: Vec<String> = {
            let mut needed: Vec<String> = template.undeclared_variables(false).into_iter().collect();
            needed.retain(|name| !outputs.contains_key(name) && !env.globals().any(|(g, _)| g == name));
            needed.sort();
            needed
        };
        let rendered = template.render(&context).map_err(|e| {
            let message = if missing.is_empty() {
                template_error(secret, key, &e)
            } else {
                format!(
                    "Secret {secret}, key {key} needs {}; ChittyConnect gave {}",
                    missing.join(", "),
                    names(outputs)
                )
            };
            Problem::new(Reason::InvalidTemplate, message)
        })?;
        data.insert(key.clone(), Zeroizing::new(rendered.into_bytes()));
    }
    if type_ == SecretType::DockerConfigJson
        && data
            .get(".dockerconfigjson")
            .is_none_or(|json| serde_json::from_slice::<serde::de::IgnoredAny>(json).is_err())
    {
        return Err(Problem::new(
            Reason::InvalidTemplate,
            format!("Secret {secret}, key .dockerconfigjson is not JSON once rendered"),
        ));
    }
    data.insert(
        EXPIRES_AT_KEY.to_owned(),
        bytes(&ends_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
    );
    if data.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > MAX_BYTES {
        return Err(Problem::new(
            Reason::InvalidTemplate,
            format!("Secret {secret} would be larger than {MAX_BYTES} bytes"),
        ));
    }
    Ok(data)
}

/// Data of the same shape without any output, to ask the API server whether it would take it.
#[must_use]
pub fn placeholder(type_: SecretType, layout: &Layout) -> Data {
    let mut data: Data = layout.data.keys().map(|key| (key.clone(), bytes("{}"))).collect();
    if type_ == SecretType::DockerConfigJson {
        data.insert(".dockerconfigjson".to_owned(), bytes("{\"auths\":{}}"));
    }
    data.insert(EXPIRES_AT_KEY.to_owned(), bytes(""));
    data
}

fn bytes(text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

fn names(outputs: &Outputs) -> String {
    outputs.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// A digest of claim, keys and values; the values cannot be had back from it.
#[must_use]
pub fn fingerprint<'a>(claim: &str, data: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(claim.as_bytes());
    for (key, value) in data {
        part(key.as_bytes());
        part(value);
    }
    HEXLOWER.encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    fn outputs() -> Outputs {
        [("cloudflare_token", "cf_1"), ("account_id", "acc")]
            .map(|(k, v)| (k.to_owned(), SecretString::from(v)))
            .into()
    }
    fn layout(presets: &[Preset], data: &[(&str, &str)]) -> Layout {
        Layout {
            presets: presets.to_vec(),
            data: data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }
    fn end() -> Time {
        chrono::Utc.timestamp_opt(1_700_000_000, 0).unwrap()
    }
    fn text(data: &Data, key: &str) -> String {
        String::from_utf8(data[key].to_vec()).unwrap()
    }

    #[test]
    fn the_outputs_preset_keeps_every_name_and_adds_the_expiry() {
        let data = render(
            "s",
            SecretType::Opaque,
            &layout(&[Preset::Outputs], &[]),
            &outputs(),
            end(),
        )
        .unwrap();
        assert_eq!(
            data.keys().collect::<Vec<_>>(),
            ["account_id", "cloudflare_token", "expires_at"]
        );
        assert_eq!(text(&data, "expires_at"), "2023-11-14T22:13:20Z");
    }

    #[test]
    fn a_template_lays_out_outputs_without_escaping() {
        let outputs = Outputs::from([("t".to_owned(), SecretString::from("<a&b>"))]);
        let data = render(
            "s",
            SecretType::Opaque,
            &layout(&[], &[("x", "v={{ t }}\n")]),
            &outputs,
            end(),
        )
        .unwrap();
        assert_eq!(text(&data, "x"), "v=<a&b>\n");
    }

    #[test]
    fn a_template_that_needs_a_missing_output_names_both_lists() {
        let error = render(
            "s",
            SecretType::Opaque,
            &layout(&[], &[("x", "{{ npm_token }}")]),
            &outputs(),
            end(),
        )
        .unwrap_err();
        assert_eq!(error.reason, Reason::InvalidTemplate);
        assert_eq!(
            error.message,
            "Secret s, key x needs npm_token; ChittyConnect gave account_id, cloudflare_token"
        );
    }

    #[test]
    fn a_template_cannot_dump_the_context_or_run_for_ever() {
        for source in ["{{ debug() }}", "{% for i in range(100000) %}x{% endfor %}"] {
            let result = render(
                "s",
                SecretType::Opaque,
                &layout(&[], &[("x", source)]),
                &outputs(),
                end(),
            );
            let error = result.expect_err(source);
            assert!(!error.message.contains("cf_1"), "{}", error.message);
        }
    }

    #[test]
    fn a_broken_template_and_a_reserved_key_are_found_before_anything_is_minted() {
        let broken = check("s", SecretType::Opaque, &layout(&[], &[("x", "{{ a")]));
        assert_eq!(broken.unwrap_err().reason, Reason::InvalidTemplate);
        let reserved = check("s", SecretType::Opaque, &layout(&[], &[("expires_at", "x")]));
        assert_eq!(reserved.unwrap_err().reason, Reason::InvalidSpec);
        let untyped = check("s", SecretType::DockerConfigJson, &layout(&[Preset::Outputs], &[]));
        assert_eq!(untyped.unwrap_err().reason, Reason::InvalidSpec);
    }

    #[test]
    fn fingerprints_differ_where_claim_key_or_value_does() {
        let base = fingerprint("c", [("k", b"v".as_slice())]);
        assert_ne!(base, fingerprint("d", [("k", b"v".as_slice())]));
        assert_ne!(base, fingerprint("c", [("kv", b"".as_slice())]));
        assert_eq!(base, fingerprint("c", [("k", b"v".as_slice())]));
    }
}
