//! `commands.yaml`: how each command is tried.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

use crate::manifests;
use crate::pages::{Block, Command};
use crate::support::{read, repository};

/// A line of the story.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Step {
    Command(Entry),
    /// What has to be there for what follows.
    Sh {
        sh: String,
    },
    /// A controller with the rights of the release in that namespace.
    Controller {
        controller: String,
    },
    /// The manifests of all pages.
    Manifests {
        #[serde(rename = "manifests")]
        _manifests: (),
    },
}

/// What becomes of one command, wherever it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub command: String,
    /// On that page alone.
    pub page: Option<String>,
    run: Option<Run>,
    tested: Option<String>,
    #[serde(rename = "not run")]
    not_run: Option<String>,
}

/// It is run in the story's cluster.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Other words in the command: of a placeholder, or of what is not there.
    #[serde(default)]
    pub with: BTreeMap<String, String>,
    /// Other words in what the page shows: what is in this cluster for what was in that of the page.
    #[serde(default)]
    pub shows: BTreeMap<String, String>,
    /// What holds afterwards, as a command.
    pub then: Option<String>,
    /// With what it ends.
    #[serde(default)]
    pub status: i32,
}

/// What becomes of a command.
pub enum How<'a> {
    Run(&'a Run),
    /// In that file, in these words.
    Tested(&'a str),
    NotRun(&'a str),
}

impl Step {
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Command(entry) => Some(entry),
            _ => None,
        }
    }
}

impl Entry {
    pub fn is_of(&self, command: &Command) -> bool {
        self.command == command.text && self.page.as_ref().is_none_or(|page| *page == command.page)
    }

    pub fn how(&self) -> How<'_> {
        match (&self.run, &self.tested, &self.not_run) {
            (Some(run), None, None) => How::Run(run),
            (None, Some(elsewhere), None) => How::Tested(elsewhere),
            (None, None, Some(why)) => How::NotRun(why),
            _ => panic!("{}: one of run, tested and not run", self.command),
        }
    }
}

pub fn steps() -> Vec<Step> {
    let text = read(&repository("tests/docs/commands.yaml"));
    let values: Vec<serde_yaml::Value> = serde_yaml::from_str(&text).expect("commands.yaml");
    let step = |value: serde_yaml::Value| {
        let told = format!("{value:?}");
        serde_yaml::from_value(value).unwrap_or_else(|_| panic!("commands.yaml: no step is like {told}"))
    };
    values.into_iter().map(step).collect()
}

/// What is wrong with `FILE: WORDS OF IT`.
pub fn missing(elsewhere: &str) -> Option<String> {
    let Some((file, words)) = elsewhere.split_once(": ") else {
        return Some(format!("{elsewhere} is not FILE: WORDS OF IT"));
    };
    let text = std::fs::read_to_string(repository(file)).unwrap_or_default();
    (!text.contains(words)).then(|| format!("{file} does not say {words:?}"))
}

/// `docs/tested.md`.
pub fn told(entries: &[&Entry], commands: &[Command], blocks: &[Block]) -> String {
    let mut text = String::from(
        "# What is tried of what these pages say\n\n\
        Every manifest on these pages is taken by a real API server in a dry run, and every command is run against a running\n\
        controller by `cargo test --test docs`, and shows what the page shows, but for those in these tables. The tests compare the\n\
        tables with the pages: `UPDATE_EXPECT=1 cargo test --test docs` writes them.\n",
    );
    let mut table = |title: &str, head: [&str; 2], rows: Vec<(&Entry, &str)>| {
        let _ = write!(
            text,
            "\n## {title}\n\n| {} | On | {} |\n| --- | --- | --- |\n",
            head[0], head[1]
        );
        for (entry, why) in rows {
            let mut pages: Vec<&str> = commands
                .iter()
                .filter(|c| entry.is_of(c))
                .map(|c| c.page.as_str())
                .collect();
            pages.dedup();
            let command = entry.command.replace('|', "\\|");
            let _ = writeln!(text, "| `{command}` | {} | {why} |", pages.join(", "));
        }
    };
    let not_run = |entry: &&Entry| match entry.how() {
        How::NotRun(why) => Some(why.to_owned()),
        _ => None,
    };
    let tested = |entry: &&Entry| match entry.how() {
        How::Tested(elsewhere) => elsewhere
            .split_once(": ")
            .map(|(file, words)| format!("{file}, `{words}`")),
        _ => None,
    };
    let rows = |why: &dyn Fn(&&Entry) -> Option<String>| {
        entries.iter().filter_map(|e| Some((*e, why(e)?))).collect::<Vec<_>>()
    };
    let (left_out, elsewhere) = (rows(&not_run), rows(&tested));
    table(
        "Not run",
        ["Command", "Because"],
        left_out.iter().map(|(e, why)| (*e, why.as_str())).collect(),
    );
    table(
        "Run by other tests",
        ["Command", "By"],
        elsewhere.iter().map(|(e, why)| (*e, why.as_str())).collect(),
    );
    let parsed: Vec<String> = manifests::only_parsed(blocks).collect();
    if !parsed.is_empty() {
        let _ = write!(
            text,
            "\n## Only parsed\n\nYAML that is neither a manifest nor part of one:\n\n"
        );
        for place in parsed {
            let _ = writeln!(text, "- {place}");
        }
    }
    text
}
