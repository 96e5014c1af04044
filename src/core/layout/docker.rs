//! Docker's configuration, for pulling images.

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::git::{TOKEN, USERNAME};
use super::{Files, Text, Unwritable, output};
use crate::api::{PresetOptions, SecretType};
use crate::core::render::Outputs;

/// The key that Docker looks for in a directory.
pub(super) const KEY: &str = "config.json";
/// The key that the Secret's type prescribes, and that the kubelet pulls with.
pub(super) const TYPED_KEY: &str = ".dockerconfigjson";

fn registries(options: &PresetOptions) -> impl Iterator<Item = &str> {
    let asked = options.docker.iter().flat_map(|docker| &docker.registries);
    let none = options
        .docker
        .as_ref()
        .is_none_or(|docker| docker.registries.is_empty());
    asked.map(String::as_str).chain(none.then_some("ghcr.io"))
}

fn username(options: &PresetOptions) -> &str {
    let asked = options.docker.as_ref().and_then(|docker| docker.username.as_deref());
    asked.unwrap_or(USERNAME)
}

pub(super) fn digest_parts(options: &PresetOptions) -> impl Iterator<Item = String> {
    let user = format!("user {}", username(options));
    std::iter::once(user).chain(registries(options).map(|registry| format!("registry {registry}")))
}

/// As `docker login` and `kubectl create secret docker-registry` write it: some tools read `auth` alone.
pub(super) fn config(
    options: &PresetOptions,
    type_: SecretType,
    outputs: &Outputs,
    room: usize,
) -> Result<Files, Unwritable> {
    let token = output(outputs, TOKEN)?;
    if token.len() > room {
        return Err(Unwritable::TooLong);
    }
    let user = username(options);
    let password = Zeroizing::new(serde_json::Value::from(token).to_string());
    let both = Zeroizing::new(format!("{user}:{token}"));
    let auth = Zeroizing::new(BASE64.encode(both.as_bytes()));
    let mut file = Text::new(room);
    file.push(["{\"auths\":{"])?;
    // Registries and user names have nothing in them that JSON escapes: the schema sees to it.
    for (at, registry) in registries(options).enumerate() {
        file.push([
            if at > 0 { "," } else { "" },
            "\"",
            registry,
            "\":{\"username\":\"",
            user,
        ])?
        .push(["\",\"password\":", &password, ",\"auth\":\"", &auth, "\"}"])?;
    }
    file.push(["}}\n"])?;
    Ok(file.file(if type_ == SecretType::DockerConfigJson {
        TYPED_KEY
    } else {
        KEY
    }))
}
