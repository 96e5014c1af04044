//! For git, and whoever else logs in at a git host with a user name and a token.

use super::{Files, Text, Unwritable, copied, output, plain};
use crate::api::PresetOptions;
use crate::core::render::Outputs;
use crate::core::template::url_encoded;

pub(super) const NETRC: &str = ".netrc";
pub(super) const CREDENTIALS: &str = ".git-credentials";
pub(super) const CONFIG: &str = ".gitconfig";
pub(super) const TOKEN: &str = "github_token";
/// Any name will do with a GitHub token; this is the one that its documentation uses.
pub(super) const USERNAME: &str = "x-access-token";

pub(super) fn hosts(options: &PresetOptions) -> impl Iterator<Item = &str> {
    let asked = options.git.iter().flat_map(|git| &git.hosts).map(String::as_str);
    let none = options.git.as_ref().is_none_or(|git| git.hosts.is_empty());
    asked.chain(none.then_some("github.com"))
}

pub(super) fn username(options: &PresetOptions) -> &str {
    let asked = options.git.as_ref().and_then(|git| git.username.as_deref());
    asked.unwrap_or(USERNAME)
}

fn without_port(host: &str) -> &str {
    host.split_once(':').map_or(host, |(name, _)| name)
}

/// Knows no ports: hosts that differ by theirs are one.
pub(super) fn netrc(options: &PresetOptions, outputs: &Outputs, room: usize) -> Result<Files, Unwritable> {
    let token = plain(outputs, TOKEN)?;
    let mut file = Text::new(room);
    let mut machines: Vec<&str> = Vec::new();
    for machine in hosts(options).map(without_port) {
        if machines.contains(&machine) {
            continue;
        }
        machines.push(machine);
        file.push([
            "machine ",
            machine,
            " login ",
            username(options),
            " password ",
            token,
            "\n",
        ])?;
    }
    Ok(file.file(NETRC))
}

pub(super) fn credentials(options: &PresetOptions, outputs: &Outputs, room: usize) -> Result<Files, Unwritable> {
    let token = zeroize::Zeroizing::new(url_encoded(output(outputs, TOKEN)?));
    let user = url_encoded(username(options));
    let mut file = Text::new(room);
    for host in hosts(options) {
        file.push(["https://", &user, ":", &token, "@", host, "\n"])?;
    }
    Ok(file.file(CREDENTIALS))
}

/// A helper that only gives: it finds the token in the configuration that it stands in, wherever that is mounted, so the
/// token is in no process' arguments, and the next command finds the next token. Addresses for ssh are asked for by https.
pub(super) fn config(options: &PresetOptions, outputs: &Outputs, room: usize) -> Result<Files, Unwritable> {
    let token = plain(outputs, TOKEN)?;
    let user = username(options);
    let mut file = Text::new(room);
    for host in hosts(options) {
        let name = without_port(host);
        file.push(["[chitty \"https://", host, "\"]\n\ttoken = ", token, "\n"])?
            .push([
                "[credential \"https://",
                host,
                "\"]\n\thelper = \"!f() { test \\\"$1\\\" != get || ",
            ])?
            .push(["printf 'username=%s\\\\npassword=%s\\\\n' ", user])?
            .push([" \\\"$(git config --get chitty.https://", host, ".token)\\\"; }; f\"\n"])?
            .push(["[url \"https://", host, "/\"]\n\tinsteadOf = git@", name])?
            .push([":\n\tinsteadOf = ssh://git@", name, "/\n"])?;
    }
    Ok(file.file(CONFIG))
}

pub(super) fn basic_auth(options: &PresetOptions, outputs: &Outputs, room: usize) -> Result<Files, Unwritable> {
    let values = [("username", username(options)), ("password", output(outputs, TOKEN)?)];
    values
        .into_iter()
        .map(|(key, value)| Ok((key.to_owned(), copied(value, room)?)))
        .collect()
}
