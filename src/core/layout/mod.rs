//! Layouts: what goes into a Secret. Its presets, each of them the keys or the file that a tool wants, and its own
//! templates.
//!
//! Whatever can be told from a spec alone is told before anything is minted: keys that a type needs, and keys that two of
//! its parts would write. Which outputs a mint brings, its answer says.

mod docker;
mod git;
mod metadata;
mod npm;
mod variables;

use std::collections::{BTreeMap, BTreeSet};

use secrecy::ExposeSecret;
use zeroize::Zeroizing;

pub use metadata::{AnnotationPolicy, OwnMetadata};

use super::Problem;
use super::render::Outputs;
use super::template::append;
use crate::api::{EXPIRES_AT_KEY, Preset, PresetOptions, Reason, SecretType};

/// What goes into one Secret.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// Ready-made layouts, in order and each once.
    pub presets: Vec<Preset>,
    /// What they take.
    pub options: PresetOptions,
    /// Templates by key.
    pub data: BTreeMap<String, String>,
}

/// Files, or values, by key.
pub(super) type Files = BTreeMap<String, Zeroizing<String>>;

/// Why a preset cannot be written with the outputs that came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unwritable {
    /// It needs this output.
    Missing(&'static str),
    /// This output has characters that the file cannot hold.
    Unfit(String),
    /// It would be longer than there is room.
    TooLong,
}

impl Layout {
    /// Checks the layout as far as its keys and its Secret's type go; its templates are not read.
    ///
    /// # Errors
    /// `InvalidSpec` for a key that is missing, not allowed, or written twice.
    pub fn check_keys(&self, secret: &str, type_: SecretType) -> Result<(), Problem> {
        let invalid = |message: String| Err(Problem::new(Reason::InvalidSpec, format!("Secret {secret}{message}")));
        if self.data.contains_key(EXPIRES_AT_KEY) {
            return invalid(format!(": the key {EXPIRES_AT_KEY} is reserved; name yours otherwise"));
        }
        let mut written: BTreeMap<&str, &str> = self.data.keys().map(|key| (key.as_str(), "data")).collect();
        for preset in &self.presets {
            for key in keys(*preset, type_) {
                if let Some(other) = written.insert(key, preset.as_str()) {
                    return invalid(format!(
                        ": preset {} writes the key {key}, and so does {other}; put one of them into another Secret",
                        preset.as_str()
                    ));
                }
            }
        }
        let has = |key: &str| written.contains_key(key);
        let (enough, needs) = match type_ {
            SecretType::Opaque => (true, ""),
            SecretType::DockerConfigJson => (
                has(docker::TYPED_KEY),
                "the key .dockerconfigjson in data, or the preset dockerConfig",
            ),
            SecretType::BasicAuth => (
                has("username") || has("password"),
                "the key username or password in data, or the preset basicAuth",
            ),
            SecretType::Tls => (has("tls.crt") && has("tls.key"), "the keys tls.crt and tls.key in data"),
            SecretType::SshAuth => (has("ssh-privatekey"), "the key ssh-privatekey in data"),
        };
        if !enough {
            return invalid(format!(" has type {} and needs {needs}", type_.as_str()));
        }
        if self.presets.contains(&Preset::Jenkins) && metadata::jenkins_type(has).is_none() {
            return invalid(
                ": Jenkins wants the key text, or username and password: write them in data, or add the preset basicAuth"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// What is given to the Secret besides its data.
    #[must_use]
    pub fn metadata(
        &self,
        type_: SecretType,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
    ) -> OwnMetadata {
        let mut own = OwnMetadata::default();
        if self.presets.contains(&Preset::Jenkins) {
            let has = |key: &str| self.static_keys(type_).any(|written| written == key);
            own.labels.extend(metadata::jenkins_type(has));
        }
        own.labels.extend(labels.clone());
        own.annotations.extend(annotations.clone());
        own
    }

    /// The keys that it writes whatever comes.
    pub fn static_keys(&self, type_: SecretType) -> impl Iterator<Item = &str> {
        let presets = self.presets.iter().flat_map(move |preset| keys(*preset, type_));
        presets.copied().chain(self.data.keys().map(String::as_str))
    }

    /// The outputs its presets cannot do without, each with the preset.
    pub(super) fn needs(&self) -> impl Iterator<Item = (Preset, &'static str)> {
        self.presets.iter().filter_map(|preset| Some((*preset, need(*preset)?)))
    }

    /// What changes its digest: everything that changes the data. Names are as written in a spec.
    #[must_use]
    pub fn digest_parts(&self) -> Vec<String> {
        let mut parts = Vec::new();
        for preset in self.presets.iter().filter(|preset| **preset != Preset::Jenkins) {
            parts.push(format!("preset {}", preset.as_str()));
            match preset {
                Preset::Npmrc => parts.extend(npm::digest_parts(&self.options)),
                Preset::Netrc | Preset::GitCredentials | Preset::Gitconfig => {
                    parts.extend(git::hosts(&self.options).map(|host| format!("host {host}")));
                    parts.push(format!("user {}", git::username(&self.options)));
                }
                Preset::BasicAuth => parts.push(format!("user {}", git::username(&self.options))),
                Preset::DockerConfig => parts.extend(docker::digest_parts(&self.options)),
                Preset::Outputs | Preset::Env | Preset::Dotenv | Preset::Jenkins => {}
            }
        }
        for (key, template) in &self.data {
            parts.push(format!("key {key}"));
            parts.push(template.clone());
        }
        parts
    }

    /// Writes one of its presets, in at most `room` bytes.
    pub(super) fn write(
        &self,
        preset: Preset,
        type_: SecretType,
        outputs: &Outputs,
        room: usize,
    ) -> Result<Files, Unwritable> {
        match preset {
            Preset::Outputs => outputs
                .iter()
                .map(|(name, value)| Ok((name.clone(), copied(value.expose_secret(), room)?)))
                .collect(),
            Preset::Env => variables::env(outputs, room),
            Preset::Dotenv => variables::dotenv(outputs, room),
            Preset::Npmrc => npm::npmrc(&self.options, outputs, room),
            Preset::Netrc => git::netrc(&self.options, outputs, room),
            Preset::GitCredentials => git::credentials(&self.options, outputs, room),
            Preset::Gitconfig => git::config(&self.options, outputs, room),
            Preset::BasicAuth => git::basic_auth(&self.options, outputs, room),
            Preset::DockerConfig => docker::config(&self.options, type_, outputs, room),
            Preset::Jenkins => Ok(Files::new()),
        }
    }
}

/// The keys a preset writes whatever comes.
fn keys(preset: Preset, type_: SecretType) -> &'static [&'static str] {
    match preset {
        Preset::Outputs | Preset::Env | Preset::Jenkins => &[],
        Preset::Dotenv => &[variables::DOTENV],
        Preset::Npmrc => &[npm::KEY],
        Preset::Netrc => &[git::NETRC],
        Preset::GitCredentials => &[git::CREDENTIALS],
        Preset::Gitconfig => &[git::CONFIG],
        Preset::BasicAuth => &["username", "password"],
        Preset::DockerConfig if type_ == SecretType::DockerConfigJson => &[docker::TYPED_KEY],
        Preset::DockerConfig => &[docker::KEY],
    }
}

/// The output a preset cannot do without.
fn need(preset: Preset) -> Option<&'static str> {
    match preset {
        Preset::Outputs | Preset::Env | Preset::Dotenv | Preset::Jenkins => None,
        Preset::Npmrc => Some(npm::TOKEN),
        Preset::Netrc | Preset::GitCredentials | Preset::Gitconfig | Preset::BasicAuth | Preset::DockerConfig => {
            Some(git::TOKEN)
        }
    }
}

/// The outputs that layouts need and that did not come, as sentences.
pub(super) fn missing<'a>(layouts: impl Iterator<Item = (&'a str, &'a Layout)>, outputs: &Outputs) -> BTreeSet<String> {
    let needed = layouts.flat_map(|(secret, layout)| layout.needs().map(move |need| (secret, need)));
    needed
        .filter(|(_, (_, output))| !outputs.contains_key(*output))
        .map(|(secret, (preset, output))| format!("Secret {secret}, preset {} needs {output}", preset.as_str()))
        .collect()
}

/// Text that does not grow beyond its room, and is wiped.
struct Text {
    text: Zeroizing<String>,
    room: usize,
}

impl Text {
    fn new(room: usize) -> Self {
        Self {
            text: Zeroizing::new(String::new()),
            room,
        }
    }

    fn push<'a>(&mut self, parts: impl IntoIterator<Item = &'a str>) -> Result<&mut Self, Unwritable> {
        for part in parts {
            append(&mut self.text, part, self.room).map_err(|_| Unwritable::TooLong)?;
        }
        Ok(self)
    }

    fn file(self, key: &str) -> Files {
        [(key.to_owned(), self.text)].into()
    }
}

fn copied(text: &str, room: usize) -> Result<Zeroizing<String>, Unwritable> {
    let mut copy = Text::new(room);
    copy.push([text])?;
    Ok(copy.text)
}

fn output<'a>(outputs: &'a Outputs, name: &'static str) -> Result<&'a str, Unwritable> {
    let value = outputs.get(name).ok_or(Unwritable::Missing(name))?;
    Ok(value.expose_secret())
}

/// An output that means the same in each of the files: no blanks, quotes, comments or expansions.
fn plain<'a>(outputs: &'a Outputs, name: &'static str) -> Result<&'a str, Unwritable> {
    let value = output(outputs, name)?;
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"\"'`\\#;$".contains(&byte);
    if value.bytes().all(fits) {
        Ok(value)
    } else {
        Err(Unwritable::Unfit(name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
