//! `.npmrc`: a literal token for one registry, and which packages come from there.

use super::{Files, Text, Unwritable, plain};
use crate::api::PresetOptions;
use crate::core::render::Outputs;

pub(super) const KEY: &str = ".npmrc";
pub(super) const TOKEN: &str = "npm_token";
const NPMJS: &str = "https://registry.npmjs.org/";

/// With one slash at its end: npm looks tokens up by the whole path.
fn registry(options: &PresetOptions) -> String {
    let asked = options.npm.as_ref().and_then(|npm| npm.registry.as_deref());
    format!("{}/", asked.unwrap_or(NPMJS).trim_end_matches('/'))
}

fn scopes(options: &PresetOptions) -> impl Iterator<Item = &str> {
    let scopes = options.npm.iter().flat_map(|npm| &npm.scopes);
    scopes.map(|scope| scope.trim_start_matches('@'))
}

pub(super) fn digest_parts(options: &PresetOptions) -> impl Iterator<Item = String> {
    let registry = format!("registry {}", registry(options));
    std::iter::once(registry).chain(scopes(options).map(|scope| format!("scope {scope}")))
}

pub(super) fn npmrc(options: &PresetOptions, outputs: &Outputs, room: usize) -> Result<Files, Unwritable> {
    let token = plain(outputs, TOKEN)?;
    let registry = registry(options);
    let mut file = Text::new(room);
    if scopes(options).next().is_none() && registry != NPMJS {
        file.push(["registry=", &registry, "\n"])?;
    }
    for scope in scopes(options) {
        file.push(["@", scope, ":registry=", &registry, "\n"])?;
    }
    let (_, place) = registry.split_once(':').unwrap_or_default();
    file.push([place, ":_authToken=", token, "\n"])?;
    Ok(file.file(KEY))
}
