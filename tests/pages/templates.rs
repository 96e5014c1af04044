//! `docs/templates.md`: the language is that of the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use chittyconnect_operator::api::crd_files;
use chittyconnect_operator::core::render::{MOST_RENDERED, MOST_TEMPLATES};
use chittyconnect_operator::core::template::Template;

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/templates.md")).unwrap()
}

/// The filters that the language says it has, when it is asked for one that it has not.
fn filters() -> BTreeSet<String> {
    let refused = Template::parse("{{ a | nope }}").unwrap_err().to_string();
    let (_, named) = refused.split_once("there are ").expect("what there is");
    let named = named.replace(" and ", ", ");
    named
        .split(", ")
        .map(|name| name.split('(').next().unwrap().to_owned())
        .collect()
}

/// What the page's table has in its first column.
fn shown() -> Vec<String> {
    let page = page();
    let (_, table) = page.split_once("| you write | you get |\n| --- | --- |\n").unwrap();
    let cells = table.lines().take_while(|line| line.starts_with('|'));
    cells
        .map(|line| line.split(" | ").next().unwrap()[2..].replace("\\|", "|"))
        .collect()
}

#[test]
fn the_page_has_every_filter_and_no_other() {
    let mut said = BTreeSet::new();
    for cell in shown() {
        for code in cell.split('`').skip(1).step_by(2) {
            let filter = code
                .split_once('|')
                .map_or(code, |(_, filter)| filter.trim_end_matches("}}").trim());
            let name = filter.split('(').next().unwrap();
            if name.chars().all(|c| c.is_ascii_alphanumeric()) {
                said.insert(name.to_owned());
            }
        }
    }
    assert_eq!(said, filters());
    assert!(said.len() >= 7);
}

#[test]
fn each_expression_on_the_page_can_be_read() {
    let mut count = 0;
    for cell in shown() {
        for code in cell.split('`').skip(1).step_by(2).filter(|code| code.starts_with("{{")) {
            assert!(Template::parse(code).is_ok(), "{code}");
            count += 1;
        }
    }
    assert!(count >= 9, "{count}");
}

#[test]
fn limits_are_those_that_are_held_to() {
    let page = page();
    let kib = |bytes: usize| format!(" {} KiB |", bytes / 1024);
    let row = |begins: &str| page.lines().find(|line| line.starts_with(begins)).unwrap().to_owned();
    assert!(row("| all templates of a credential").ends_with(&kib(MOST_TEMPLATES)));
    assert!(row("| what all Secrets of a credential").ends_with(&kib(MOST_RENDERED)));
    let (_, schema) = crd_files().unwrap().pop().unwrap();
    let (_, data) = schema
        .split_once("\n                    data:\n")
        .expect("spec.secrets[].data");
    let most = data.split_once("maxLength: ").unwrap().1.lines().next().unwrap();
    assert!(row("| one template").ends_with(&kib(most.parse().unwrap())));
    let in_a_row = ["{{ a", &" | trim".repeat(8), " }}"].concat();
    assert!(Template::parse(&in_a_row).is_ok() && page.contains("at most eight in a row"));
    assert!(Template::parse(&in_a_row.replace("a |", "a | trim |")).is_err());
}
