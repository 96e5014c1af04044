//! Where links lead. The book has the files where the repository has them (`.ci/book`), so what holds here holds there.
//! Of links into the web only the form is looked at: what a change must pass needs no network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a page has and where it leads.
#[derive(Default)]
struct Page {
    anchors: BTreeSet<String>,
    links: Vec<String>,
}

/// The name that GitHub and mdBook give to a heading.
fn slug(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

fn page(text: &str) -> Page {
    let mut page = Page::default();
    let mut counts = BTreeMap::<String, u32>::new();
    let mut heading = None::<String>;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let name = slug(&heading.take().unwrap_or_default());
                let count = counts.entry(name.clone()).or_default();
                page.anchors.insert(if *count == 0 {
                    name.clone()
                } else {
                    format!("{name}-{count}")
                });
                *count += 1;
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                page.links.push(dest_url.into_string());
            }
            _ => {}
        }
    }
    page
}

/// A path without `.` and `..`; nothing where it leads out of the repository.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::ParentDir => {
                if !plain.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

/// Every page that people read, by its path in the repository.
fn pages() -> BTreeMap<PathBuf, Page> {
    let mut found = BTreeMap::new();
    let mut left: Vec<PathBuf> = ["docs", "actions", "charts", "examples"].map(PathBuf::from).into();
    let top = fs::read_dir(root())
        .unwrap()
        .map(|entry| PathBuf::from(entry.unwrap().file_name()));
    left.extend(top.filter(|path| path.extension().is_some_and(|e| e == "md")));
    while let Some(path) = left.pop() {
        let full = root().join(&path);
        if full.is_dir() {
            left.extend(
                fs::read_dir(full)
                    .unwrap()
                    .map(|entry| path.join(entry.unwrap().file_name())),
            );
        } else if path.extension().is_some_and(|e| e == "md") {
            let text = fs::read_to_string(full).unwrap();
            found.insert(path, page(&text));
        }
    }
    found
}

/// What is wrong with a link of the page at this path.
fn fault(pages: &BTreeMap<PathBuf, Page>, at: &Path, link: &str) -> Option<&'static str> {
    if link.starts_with("mailto:") {
        return None;
    }
    if link.contains("://") {
        return match url::Url::parse(link) {
            Ok(url) if url.scheme() == "https" && url.has_host() => None,
            _ => Some("not a URL by https"),
        };
    }
    let (path, anchor) = link
        .split_once('#')
        .map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = if path.is_empty() {
        at.to_owned()
    } else {
        match plain(&at.parent().unwrap().join(path)) {
            Some(target) => target,
            None => return Some("leads out of the repository"),
        }
    };
    match (pages.get(&target), anchor) {
        (Some(page), Some(anchor)) if !page.anchors.contains(anchor) => Some("has no such heading"),
        (None, _) if root().join(&target).is_dir() => Some("is a directory, and of those the book has no pages"),
        (None, _) if !root().join(&target).is_file() => Some("is not there"),
        (None, Some(_)) => Some("is not a page, and has no headings"),
        (Some(_), _) | (None, None) => None,
    }
}

#[test]
fn every_link_leads_to_what_is_there() {
    let pages = pages();
    let mut count = 0;
    let mut faults = Vec::new();
    for (at, page) in &pages {
        for link in &page.links {
            count += 1;
            if let Some(fault) = fault(&pages, at, link) {
                faults.push(format!("{}: {link}: {fault}", at.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(pages.len() > 40 && count > 100, "{} pages, {count} links", pages.len());
}

#[test]
fn links_that_lead_nowhere_are_found() {
    let pages = BTreeMap::from([
        (
            PathBuf::from("README.md"),
            page("# The top\n\n## A `b`, c!\n\n## A b c\n"),
        ),
        (PathBuf::from("docs/a.md"), Page::default()),
    ]);
    let fault = |link| fault(&pages, Path::new("docs/a.md"), link);
    for good in [
        "../README.md",
        "../README.md#a-b-c-1",
        "a.md",
        "../Cargo.toml",
        "https://example.com/a#b",
    ] {
        assert_eq!(fault(good), None, "{good}");
    }
    for bad in [
        "b.md",
        "README.md",
        "../../README.md",
        "/README.md",
        "#top",
        "../README.md#the-bottom",
        "../examples",
        "../Cargo.toml#package",
        "http://example.com",
        "https://",
    ] {
        assert!(fault(bad).is_some(), "{bad}");
    }
}

#[test]
fn the_table_of_contents_has_every_page_once_and_the_book_has_every_file_that_is_linked() {
    let pages = pages();
    let contents = PathBuf::from("docs/SUMMARY.md");
    let listed: Vec<PathBuf> = pages[&contents]
        .links
        .iter()
        .map(|link| plain(&Path::new("docs").join(link)).unwrap())
        .collect();
    let mut sorted: Vec<&PathBuf> = listed.iter().collect();
    sorted.sort();
    let all: Vec<&PathBuf> = pages.keys().filter(|path| **path != contents).collect();
    assert_eq!(sorted, all);

    // What .ci/book takes along besides pages.
    let script = fs::read_to_string(root().join(".ci/book")).unwrap();
    let (_, taken) = script.split_once("\ncp -R ./*.md ").unwrap();
    let taken: BTreeSet<&str> = taken.lines().next().unwrap().split_whitespace().collect();
    for (at, page) in &pages {
        for link in page
            .links
            .iter()
            .filter(|link| !link.contains("://") && !link.starts_with('#'))
        {
            let path = link.split('#').next().unwrap();
            let target = plain(&at.parent().unwrap().join(path)).unwrap();
            let first = target.components().next().unwrap().as_os_str().to_str().unwrap();
            let there = taken.contains(first) || pages.contains_key(&target);
            assert!(there, "{}: {link} is not in the book", at.display());
        }
    }
}
