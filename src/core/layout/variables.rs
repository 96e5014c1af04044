//! Variables: as keys for `envFrom`, and as a file for a shell.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;

use super::{Files, Text, Unwritable, copied};
use crate::core::render::Outputs;

pub(super) const DOTENV: &str = ".env";

/// What tools call the outputs.
const NAMES: [(&str, &[&str]); 5] = [
    ("cloudflare_token", &["CLOUDFLARE_API_TOKEN"]),
    ("account_id", &["CLOUDFLARE_ACCOUNT_ID"]),
    ("github_token", &["GH_TOKEN"]),
    (
        "npm_token",
        &[
            "NPM_TOKEN",
            "NODE_AUTH_TOKEN",
            "NPM_CONFIG_TOKEN",
            "YARN_NPM_AUTH_TOKEN",
        ],
    ),
    ("neon_token", &["NEON_API_KEY"]),
];

/// How the name of any other output must end. None that shells, linkers and interpreters go by does, such as `LD_PRELOAD`,
/// `PATH` or `NODE_OPTIONS`: what ChittyConnect calls an output must not become code.
const ENDINGS: [&str; 6] = ["_token", "_key", "_id", "_url", "_secret", "_password"];

fn variables(outputs: &Outputs) -> Result<BTreeMap<String, &str>, Unwritable> {
    let mut variables = BTreeMap::new();
    let tools = |output: &str| NAMES.iter().find(|(name, _)| *name == output);
    // First those that nobody knows: none takes the place of one that a tool reads.
    let (known, others): (Vec<_>, Vec<_>) = outputs.iter().partition(|(name, _)| tools(name).is_some());
    for (name, value) in others.into_iter().chain(known) {
        let value = value.expose_secret();
        if value.contains('\0') {
            return Err(Unwritable::Unfit(name.clone()));
        }
        match tools(name) {
            Some((_, names)) => variables.extend(names.iter().map(|name| ((*name).to_owned(), value))),
            None if is_variable(name) => {
                variables.insert(name.to_ascii_uppercase(), value);
            }
            None => {}
        }
    }
    Ok(variables)
}

fn is_variable(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    name.bytes().all(word)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && ENDINGS.iter().any(|ending| name.ends_with(ending))
}

pub(super) fn env(outputs: &Outputs, room: usize) -> Result<Files, Unwritable> {
    let variables = variables(outputs)?.into_iter();
    variables
        .map(|(name, value)| Ok((name, copied(value, room)?)))
        .collect()
}

/// In single quotes, which a shell takes literally but for the quote itself.
pub(super) fn dotenv(outputs: &Outputs, room: usize) -> Result<Files, Unwritable> {
    let mut file = Text::new(room);
    for (name, value) in variables(outputs)? {
        file.push(["export ", &name, "='"])?;
        for (at, part) in value.split('\'').enumerate() {
            file.push([if at > 0 { r"'\''" } else { "" }, part])?;
        }
        file.push(["'\n"])?;
    }
    Ok(file.file(DOTENV))
}
