//! The code blocks of what users read, and the commands in them.

use std::path::Path;

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

use crate::support::{read, repository};

/// Where pages are, besides the top folder.
const FOLDERS: [&str; 4] = ["docs", "charts", "actions", "examples"];

/// A fenced block.
pub struct Block {
    pub page: String,
    pub line: usize,
    /// What stands behind the fence, word by word.
    pub info: Vec<String>,
    pub text: String,
}

/// What a reader would type.
pub struct Command {
    pub page: String,
    pub line: usize,
    /// One line, without comments: what an entry is found by. Of a script its first line and `…`.
    pub text: String,
    /// As it is pasted.
    pub script: String,
    /// What the page says it prints; empty where it says nothing.
    pub shown: String,
}

fn find(folder: &Path, deep: bool, pages: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && deep {
            find(&path, deep, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            let path = path.strip_prefix(repository("")).unwrap();
            pages.push(path.to_str().unwrap().to_owned());
        }
    }
}

/// Every fenced block of every page.
pub fn blocks() -> Vec<Block> {
    let mut pages = Vec::new();
    find(&repository(""), false, &mut pages);
    for folder in FOLDERS {
        find(&repository(folder), true, &mut pages);
    }
    // What this very test writes names commands, and is no page to copy them from.
    pages.retain(|page| !page.ends_with("tested.md"));
    pages.sort();
    pages
        .iter()
        .flat_map(|page| of_page(page, &read(&repository(page))))
        .collect()
}

fn of_page(page: &str, markdown: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut inside = false;
    for (event, at) in Parser::new(markdown).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(kind)) => {
                inside = true;
                let info = match kind {
                    CodeBlockKind::Fenced(info) => info.split_whitespace().map(str::to_owned).collect(),
                    CodeBlockKind::Indented => Vec::new(),
                };
                let line = markdown[..at.start].lines().count() + 1;
                blocks.push(Block {
                    page: page.to_owned(),
                    line,
                    info,
                    text: String::new(),
                });
            }
            Event::Text(text) if inside => blocks.last_mut().expect("a block").text.push_str(&text),
            Event::End(TagEnd::CodeBlock) => inside = false,
            _ => {}
        }
    }
    blocks
}

impl Block {
    fn language(&self) -> &str {
        self.info.first().map_or("", String::as_str)
    }

    pub fn is_yaml(&self) -> bool {
        matches!(self.language(), "yaml" | "yml")
    }

    fn is_script(&self) -> bool {
        matches!(self.language(), "sh" | "bash" | "shell")
    }

    fn command(&self, line: usize, script: &str, shown: String) -> Command {
        Command {
            page: self.page.clone(),
            line: self.line + 1 + line,
            text: normal(script),
            script: script.to_owned(),
            shown,
        }
    }

    fn commands(&self) -> Vec<Command> {
        if self.is_script() && !self.text.starts_with("$ ") {
            let mut first = self.text.lines();
            let mut command = self.command(0, first.next().unwrap_or_default(), String::new());
            if first.next().is_some() {
                command.text.push_str(" …");
            }
            self.text.clone_into(&mut command.script);
            return vec![command];
        }
        let (mut commands, mut advised) = (Vec::<Command>::new(), Vec::new());
        let mut lines = self.text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let told = line.trim_start();
            if let Some(first) = line.strip_prefix("$ ") {
                let mut script = first.to_owned();
                let until = first
                    .split_once("<<")
                    .map(|(_, end)| end.trim_matches(['-', '\'', '"', ' ']));
                while script.ends_with(['\\', '|']) || until.is_some_and(|end| script.lines().last() != Some(end)) {
                    let (_, more) = lines
                        .next()
                        .unwrap_or_else(|| panic!("{}: {first} has no end", self.page));
                    script = format!("{script}\n{more}");
                }
                commands.push(self.command(number, &script, String::new()));
            } else {
                if let Some(last) = commands.last_mut() {
                    last.shown = format!("{}{line}\n", last.shown);
                }
                // What a program advises is copied as well.
                if told.starts_with("$ kubectl ") {
                    advised.push(self.command(number, &told[2..], String::new()));
                }
            }
        }
        commands.append(&mut advised);
        commands
    }
}

/// Every command of these blocks.
pub fn commands(blocks: &[Block]) -> Vec<Command> {
    blocks.iter().flat_map(Block::commands).collect()
}

fn normal(script: &str) -> String {
    let first = script.replace("\\\n", " ");
    // A comment is set off by two spaces at least: `#` may be part of a word.
    let line = first.split_once("  # ").map_or(&*first, |(command, _)| command);
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The words of a text between what depends on the moment: numbers, times, bars.
fn constant(text: &str) -> Vec<Vec<&str>> {
    let moment = |word: &str| {
        let bare = word.trim_start_matches(['(', '"']);
        let bar = bare.starts_with('[') && bare[1..].starts_with(['#', '-', '=', '·']);
        bare.starts_with(|c: char| c.is_ascii_digit()) || bar || word.contains('…') || word.starts_with("http://")
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    words
        .split(|word| moment(word))
        .filter(|run| !run.is_empty())
        .map(<[&str]>::to_vec)
        .collect()
}

/// The first words of `shown` that `printed` does not have where they belong.
pub fn differs(shown: &str, printed: &str) -> Option<String> {
    let printed: Vec<&str> = printed.split_whitespace().collect();
    let mut rest = &printed[..];
    for run in constant(shown) {
        let Some(at) = rest.windows(run.len()).position(|words| words == run) else {
            return Some(run.join(" "));
        };
        rest = &rest[at + run.len()..];
    }
    None
}
