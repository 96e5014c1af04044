//! What `docs/layouts.md` says of each preset.

use std::collections::BTreeMap;
use std::path::Path;

use chittyconnect_operator::api::{PresetOptions, SecretTemplate};
use chittyconnect_operator::core::layout::Layout;
use chittyconnect_operator::core::render::{Data, MOST_RENDERED, render};
use secrecy::SecretString;

/// The account of the docs.
pub const ACCOUNT: &str = "0bc21e3a5a9de1a4cc843be9c3e98121";

/// A preset as the docs have it.
#[derive(Clone)]
pub struct Section {
    pub name: String,
    template: SecretTemplate,
    shown: BTreeMap<String, String>,
    pub command: String,
}

/// Text of the blocks of a section, by how they are introduced: their language, or the key before them.
fn blocks(section: &str) -> BTreeMap<String, String> {
    let mut blocks = BTreeMap::new();
    let mut parts = section.split("```");
    let mut introduction = parts.next().unwrap();
    while let (Some(block), Some(after)) = (parts.next(), parts.next()) {
        let (info, text) = block.split_once('\n').unwrap();
        let name = match info.split(' ').next().unwrap_or_default() {
            "text" => introduction.trim().lines().last().unwrap(),
            other => other,
        };
        blocks.insert(name.to_owned(), text.to_owned());
        introduction = after;
    }
    blocks
}

pub fn sections() -> Vec<Section> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/layouts.md");
    let text = std::fs::read_to_string(path).unwrap();
    let sections = text.split("\n### `").skip(1);
    sections
        .map(|section| {
            let (name, rest) = section.split_once('`').unwrap();
            let mut blocks = blocks(rest);
            let item = format!("name: docs\n{}", blocks.remove("yaml").expect("what to write"));
            let command = blocks.remove("sh").unwrap_or_default();
            let shown = match blocks.remove("Keys:") {
                Some(keys) => keys
                    .lines()
                    .map(|line| line.split_once(": ").unwrap())
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
                None => blocks
                    .into_iter()
                    .map(|(at, text)| {
                        let key = at.strip_prefix("`/creds/").and_then(|at| at.strip_suffix("`:"));
                        (key.expect("the path of a file").to_owned(), text)
                    })
                    .collect(),
            };
            Section {
                name: name.to_owned(),
                template: serde_yaml::from_str(&item).unwrap_or_else(|e| panic!("{name}: {e}")),
                shown,
                command,
            }
        })
        .collect()
}

/// What the docs show, by key.
pub fn shown(section: &Section) -> BTreeMap<String, String> {
    section.shown.clone()
}

/// Outputs by name.
pub type Tokens = BTreeMap<&'static str, String>;

/// The outputs of the docs.
pub fn sample() -> Tokens {
    [
        ("account_id", ACCOUNT),
        ("cloudflare_token", "cf_1f0c"),
        ("github_token", "ghs_4d7a"),
        ("npm_token", "npm_9b2e"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into()
}

/// The outputs of one mint.
pub fn tokens(round: &str) -> Tokens {
    let token = |prefix: &str| format!("{prefix}_{round}_0123456789abcdefABCDEF0123456789abcd");
    [
        ("account_id", ACCOUNT.to_owned()),
        ("cloudflare_token", token("cf")),
        ("github_token", token("ghs")),
        ("npm_token", token("npm")),
    ]
    .into()
}

impl Section {
    pub fn named(name: &str) -> Self {
        let section = sections().into_iter().find(|s| s.name == name);
        section.unwrap_or_else(|| panic!("the docs have no {name}"))
    }

    /// With another text in its command: a local server instead of a public one.
    pub fn with(mut self, public: &str, local: &str) -> Self {
        self.command = self.command.replace(public, local);
        self
    }

    /// With other options.
    pub fn with_options(mut self, yaml: &str) -> Self {
        let options: PresetOptions = serde_yaml::from_str(yaml).unwrap();
        self.template.options = options;
        self
    }

    /// What its Secret holds.
    pub fn render(&self, tokens: &Tokens) -> Data {
        let layout = Layout {
            presets: self.template.presets.clone(),
            options: self.template.options.clone(),
            data: self.template.data.clone(),
        };
        layout.check_keys("docs", self.template.type_).unwrap();
        let outputs = tokens
            .iter()
            .map(|(name, value)| ((*name).to_owned(), SecretString::from(value.as_str())))
            .collect();
        let end = chrono::DateTime::from_timestamp(1_900_000_000, 0).unwrap();
        render("docs", self.template.type_, &layout, &outputs, end, MOST_RENDERED).unwrap()
    }
}
