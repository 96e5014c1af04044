//! What users read and copy: every command of README and docs is run here, tested elsewhere, or listed as not run, and
//! every manifest is taken by the API server. `commands.yaml` says which command is which, in the order they are run.

#[path = "../chart/support.rs"]
#[allow(dead_code, reason = "shared with the chart's tests")]
mod support;

mod manifests;
mod pages;
mod story;
mod table;

use std::collections::BTreeSet;

use pages::Block;
use story::Story;
use table::{Entry, How, Step};

#[test]
fn what_users_copy_works_or_is_listed_as_untried() {
    let blocks = pages::blocks();
    let commands = pages::commands(&blocks);
    assert!(commands.len() > 40, "only {} commands were found", commands.len());
    let steps = table::steps();

    let entries: Vec<&Entry> = steps.iter().filter_map(Step::entry).collect();
    let mut wrong = Vec::new();
    for command in &commands {
        match entries.iter().filter(|entry| entry.is_of(command)).count() {
            1 => {}
            0 => wrong.push(format!(
                "{}:{}: tests/docs/commands.yaml has nothing on\n  - command: {}\n    run: {{}}, or tested: FILE: WORDS OF IT, or not run: WHY",
                command.page, command.line, command.text
            )),
            n => wrong.push(format!("{n} entries are for {:?}", command.text)),
        }
    }
    for entry in &entries {
        if !commands.iter().any(|command| entry.is_of(command)) {
            wrong.push(format!(
                "no page has the command of this entry, take it out: {:?}",
                entry.command
            ));
        }
        if let How::Tested(elsewhere) = entry.how() {
            wrong.extend(table::missing(elsewhere).map(|why| format!("{:?}: {why}", entry.command)));
        }
    }
    wrong.extend(manifests::unmarked(&blocks));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let told = table::told(&entries, &commands, &blocks);
    println!("{told}");
    expect_test::expect_file!["../../docs/tested.md"].assert_eq(&told);

    let mut story = Story::begin();
    for step in &steps {
        match step {
            Step::Command(entry) => {
                if let How::Run(run) = entry.how() {
                    let of: Vec<_> = commands.iter().filter(|c| entry.is_of(c)).collect();
                    wrong.extend(story.run(entry, run, &of));
                }
            }
            Step::Sh { sh } => {
                if let Some(why) = story.prepare(sh) {
                    wrong.push(why);
                    break; // nothing that follows can be right
                }
            }
            Step::Controller { controller } => story.start_controller(controller),
            Step::Manifests { .. } => wrong.extend(manifests::refused(&story, &blocks)),
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n\n"), story.log());
}

#[test]
fn every_page_that_users_read_is_looked_at() {
    let pages: BTreeSet<String> = pages::blocks().into_iter().map(|block: Block| block.page).collect();
    for page in [
        "README.md",
        "CONTRIBUTING.md",
        "charts/chittyconnect-operator/README.md",
    ] {
        assert!(pages.contains(page), "{page}");
    }
    assert!(pages.iter().filter(|page| page.starts_with("docs/")).count() > 5);
}
