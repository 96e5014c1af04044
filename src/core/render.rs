//! From outputs to the data of a Secret.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::layout::{self, Layout, Unwritable};
use super::template::{RenderError, Template};
use super::{Problem, Time};
use crate::api::{EXPIRES_AT_KEY, Preset, Reason, SecretType};

/// What all templates of a credential may hold together, in bytes.
pub const MOST_TEMPLATES: usize = 64 * 1024;
/// What all Secrets of a credential may hold together once rendered, in bytes.
pub const MOST_RENDERED: usize = 256 * 1024;

/// The outputs of one mint, by name.
pub type Outputs = BTreeMap<String, SecretString>;
/// The data of one Secret.
pub type Data = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// Checks the templates of a credential's layouts, by Secret name. Takes time in proportion to their length,
/// which is bounded.
///
/// # Errors
/// `InvalidTemplate`, naming Secret, key and place.
pub fn check_templates<'a>(layouts: impl Iterator<Item = (&'a str, &'a Layout)> + Clone) -> Result<(), Problem> {
    let templates = layouts.flat_map(|(secret, layout)| layout.data.iter().map(move |(key, text)| (secret, key, text)));
    let together: usize = templates.clone().map(|(_, _, text)| text.len()).sum();
    if together > MOST_TEMPLATES {
        return Err(Problem::new(
            Reason::InvalidTemplate,
            format!(
                "the templates of one credential hold at most {MOST_TEMPLATES} bytes together; these hold {together}"
            ),
        ));
    }
    for (secret, key, text) in templates {
        parse(secret, key, text)?;
    }
    Ok(())
}

// The error quotes nothing of the template but what is public anyway, and never a value.
fn parse<'a>(secret: &str, key: &str, text: &'a str) -> Result<Template<'a>, Problem> {
    Template::parse(text)
        .map_err(|error| Problem::new(Reason::InvalidTemplate, format!("Secret {secret}, key {key}, {error}")))
}

/// So many of what is missing are named.
const MOST_NAMED: usize = 8;

/// Checks that every output came which the layouts of a credential, by Secret name, cannot do without: all of them at once,
/// for finding out costs a mint.
///
/// # Errors
/// `InvalidTemplate`, naming the outputs that are needed and those that are there.
pub fn check_outputs<'a>(
    layouts: impl Iterator<Item = (&'a str, &'a Layout)> + Clone,
    outputs: &Outputs,
) -> Result<(), Problem> {
    let mut missing = layout::missing(layouts.clone(), outputs);
    for (secret, layout) in layouts {
        for (key, text) in &layout.data {
            let names = parse(secret, key, text)?.missing(outputs);
            if !names.is_empty() {
                let names = names.into_iter().collect::<Vec<_>>().join(", ");
                missing.insert(format!("Secret {secret}, key {key} needs {names}"));
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let more = missing.len().saturating_sub(MOST_NAMED);
    let mut told: Vec<String> = missing.into_iter().take(MOST_NAMED).collect();
    if more > 0 {
        told.push(format!("{more} more"));
    }
    Err(Problem::new(
        Reason::InvalidTemplate,
        format!("{}; ChittyConnect gave {}", told.join("; "), names(outputs)),
    ))
}

/// Lays `outputs` out, into at most `room` bytes.
///
/// # Errors
/// `InvalidTemplate`, naming the outputs that are needed and those that are there.
pub fn render(
    secret: &str,
    type_: SecretType,
    layout: &Layout,
    outputs: &Outputs,
    ends_at: Time,
    room: usize,
) -> Result<Data, Problem> {
    let mut rendered = Rendered {
        secret,
        room,
        data: Data::new(),
    };
    // In their order: what writes whatever came goes first, and a file, or a key of data, takes the place of such a key.
    for preset in &layout.presets {
        let files = layout
            .write(*preset, type_, outputs, room)
            .map_err(|error| rendered.unwritable(*preset, error, outputs))?;
        rendered.add(files.into_iter().map(|(key, text)| (key, bytes(&text))))?;
    }
    for (key, source) in &layout.data {
        let text = parse(secret, key, source)?
            .render(outputs, room)
            .map_err(|error| rendered.unrendered(key, error, outputs))?;
        rendered.add([(key.clone(), bytes(&text))])?;
    }
    if type_ == SecretType::DockerConfigJson && !rendered.is_json(".dockerconfigjson") {
        return Err(invalid(format!(
            "Secret {secret}, key .dockerconfigjson is not JSON once rendered"
        )));
    }
    let ends_at = ends_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    rendered.add([(EXPIRES_AT_KEY.to_owned(), bytes(&ends_at))])?;
    Ok(rendered.data)
}

fn invalid(message: String) -> Problem {
    Problem::new(Reason::InvalidTemplate, message)
}

/// What of a Secret is laid out.
struct Rendered<'a> {
    secret: &'a str,
    /// How many bytes it may have.
    room: usize,
    data: Data,
}

impl Rendered<'_> {
    fn add(&mut self, more: impl IntoIterator<Item = (String, Zeroizing<Vec<u8>>)>) -> Result<(), Problem> {
        self.data.extend(more);
        if size(&self.data) > self.room {
            return Err(self.too_long());
        }
        Ok(())
    }

    fn is_json(&self, key: &str) -> bool {
        let json = self.data.get(key);
        json.is_some_and(|json| serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok())
    }

    fn too_long(&self) -> Problem {
        invalid(format!(
            "the Secrets of one credential hold at most {MOST_RENDERED} bytes together; with Secret {} they would hold more",
            self.secret
        ))
    }

    fn unwritable(&self, preset: Preset, error: Unwritable, outputs: &Outputs) -> Problem {
        let (secret, preset) = (self.secret, preset.as_str());
        match error {
            Unwritable::TooLong => self.too_long(),
            Unwritable::Missing(output) => invalid(format!(
                "Secret {secret}, preset {preset} needs {output}; ChittyConnect gave {}",
                names(outputs)
            )),
            Unwritable::Unfit(output) => invalid(format!(
                "Secret {secret}, preset {preset}: the output {output} has characters that cannot be written there"
            )),
        }
    }

    fn unrendered(&self, key: &str, error: RenderError, outputs: &Outputs) -> Problem {
        match error {
            RenderError::TooLong => self.too_long(),
            RenderError::Missing(missing) => invalid(format!(
                "Secret {}, key {key} needs {}; ChittyConnect gave {}",
                self.secret,
                missing.join(", "),
                names(outputs)
            )),
        }
    }
}

/// Bytes of keys and values.
#[must_use]
pub fn size(data: &Data) -> usize {
    data.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// Data of the same shape without any output, to ask the API server whether it would take it.
#[must_use]
pub fn placeholder(type_: SecretType, layout: &Layout) -> Data {
    // Text that is JSON, too: one type wants that.
    let keys = layout.static_keys(type_).map(|key| (key.to_owned(), bytes("{}")));
    let mut data: Data = keys.collect();
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
    use crate::api::Preset;
    use chrono::TimeZone;

    fn outputs() -> Outputs {
        [("cloudflare_token", "cf_1"), ("account_id", "acc")]
            .map(|(k, v)| (k.to_owned(), SecretString::from(v)))
            .into()
    }
    fn layout(presets: &[Preset], data: &[(&str, &str)]) -> Layout {
        Layout {
            presets: presets.to_vec(),
            options: crate::api::PresetOptions::default(),
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
            MOST_RENDERED,
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
            MOST_RENDERED,
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
            MOST_RENDERED,
        )
        .unwrap_err();
        assert_eq!(error.reason, Reason::InvalidTemplate);
        assert_eq!(
            error.message,
            "Secret s, key x needs npm_token; ChittyConnect gave account_id, cloudflare_token"
        );
    }

    #[test]
    fn whatever_is_missing_is_named_at_once_up_to_a_limit() {
        let needs = layout(
            &[Preset::Npmrc, Preset::Outputs],
            &[("x", "{{ a }}{{ b | default(\"\") }}")],
        );
        let told = check_outputs([("s", &needs)].into_iter(), &outputs()).unwrap_err();
        assert_eq!(
            told.message,
            "Secret s, key x needs a; Secret s, preset npmrc needs npm_token; \
             ChittyConnect gave account_id, cloudflare_token"
        );
        let keys: Vec<String> = (10..30).map(|n| format!("k{n}")).collect();
        let many: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "{{ a }}")).collect();
        let told = check_outputs([("s", &layout(&[], &many))].into_iter(), &outputs()).unwrap_err();
        assert!(told.message.contains("key k17 needs a; 12 more; "), "{}", told.message);
        let had = layout(&[Preset::Env, Preset::Jenkins], &[("x", "{{ account_id }}")]);
        assert!(check_outputs([("s", &had)].into_iter(), &outputs()).is_ok());
    }

    #[test]
    fn a_file_and_a_key_of_data_take_the_place_of_what_came_under_their_name() {
        let came = Outputs::from([
            ("npm_token".to_owned(), SecretString::from("npm_1")),
            (".npmrc".to_owned(), SecretString::from("came")),
            ("GH_TOKEN".to_owned(), SecretString::from("came")),
            ("expires_at".to_owned(), SecretString::from("came")),
        ]);
        let layout = layout(
            &[Preset::Outputs, Preset::Env, Preset::Npmrc],
            &[("npm_token", "mine"), ("NPM_TOKEN", "{{ npm_token | upper }}")],
        );
        let data = render("s", SecretType::Opaque, &layout, &came, end(), MOST_RENDERED).unwrap();
        assert_eq!(text(&data, ".npmrc"), "//registry.npmjs.org/:_authToken=npm_1\n");
        assert_eq!(text(&data, "npm_token"), "mine");
        assert_eq!(text(&data, "NPM_TOKEN"), "NPM_1");
        assert_eq!(text(&data, "NODE_AUTH_TOKEN"), "npm_1");
        assert_eq!(text(&data, "expires_at"), "2023-11-14T22:13:20Z");
    }

    #[test]
    fn a_placeholder_has_every_key_that_will_be_there_whatever_comes() {
        let typed = layout(&[Preset::DockerConfig, Preset::Npmrc], &[("x", "y")]);
        let data = placeholder(SecretType::DockerConfigJson, &typed);
        assert_eq!(
            data.keys().collect::<Vec<_>>(),
            [".dockerconfigjson", ".npmrc", "expires_at", "x"]
        );
        assert_eq!(text(&data, ".dockerconfigjson"), "{}");
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
                MOST_RENDERED,
            );
            let error = result.expect_err(source);
            assert!(!error.message.contains("cf_1"), "{}", error.message);
        }
    }

    /// Invariant 5.
    #[test]
    fn a_broken_template_is_found_before_anything_is_minted() {
        let broken = layout(&[], &[("x", "{{ a")]);
        let problem = check_templates([("s", &broken)].into_iter()).unwrap_err();
        assert_eq!(problem.reason, Reason::InvalidTemplate);
        assert!(
            problem.message.starts_with("Secret s, key x, line 1, column 5: "),
            "{}",
            problem.message
        );
    }

    #[test]
    fn templates_and_what_they_render_to_are_bounded_together() {
        let half = layout(&[], &[("x", &"a".repeat(MOST_TEMPLATES / 2))]);
        let more = layout(&[], &[("x", &"a".repeat(MOST_TEMPLATES / 2 + 1))]);
        assert!(check_templates([("s", &half), ("t", &half)].into_iter()).is_ok());
        assert!(check_templates([("s", &half), ("t", &more)].into_iter()).is_err());
        let rendered = render("s", SecretType::Opaque, &half, &outputs(), end(), 100);
        assert_eq!(rendered.unwrap_err().reason, Reason::InvalidTemplate);
    }

    #[test]
    fn fingerprints_differ_where_claim_key_or_value_does() {
        let base = fingerprint("c", [("k", b"v".as_slice())]);
        assert_ne!(base, fingerprint("d", [("k", b"v".as_slice())]));
        assert_ne!(base, fingerprint("c", [("kv", b"".as_slice())]));
        assert_eq!(base, fingerprint("c", [("k", b"v".as_slice())]));
    }
}
