//! What stands in for ChittyOS' own action on a runner with a mount: run as the runner runs it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{TimeDelta, Utc};
use serde_yaml::Value;

use crate::mount::tools_are_there;

fn action() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("actions/getchitty-creds")
}

fn description() -> Value {
    serde_yaml::from_str(&fs::read_to_string(action().join("action.yml")).unwrap()).unwrap()
}

/// A mounted Secret, and what the runner gives a step.
struct Runner {
    dir: tempfile::TempDir,
}

/// How a step ended.
struct Step {
    succeeded: bool,
    /// What it printed: the runner reads commands from it.
    said: String,
    /// What it wrote for the runner, as the runner reads it.
    told: BTreeMap<String, String>,
}

impl Runner {
    fn new(files: &[(&str, &str)], left: TimeDelta) -> Self {
        let runner = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let revision = runner.creds().join("..1");
        fs::create_dir_all(&revision).unwrap();
        symlink("..1", runner.creds().join("..data")).unwrap();
        let end = (Utc::now() + left).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        for (name, value) in files.iter().copied().chain([("expires_at", end.as_str())]) {
            fs::write(revision.join(name), value).unwrap();
            symlink(Path::new("..data").join(name), runner.creds().join(name)).unwrap();
        }
        runner
    }

    fn creds(&self) -> PathBuf {
        self.dir.path().join("creds")
    }

    fn run(&self, script: &str, runway: &str) -> Step {
        let (file, told) = (self.dir.path().join("step.sh"), self.dir.path().join("told"));
        fs::write(&file, script).unwrap();
        fs::write(&told, "").unwrap();
        let output = Command::new("bash")
            .args(["--noprofile", "--norc", "-eo", "pipefail"])
            .arg(&file)
            .env("GITHUB_ACTION_PATH", action())
            .env("GITHUB_OUTPUT", &told)
            .env("GITHUB_ENV", &told)
            .env("CHITTY_CREDENTIALS_DIR", self.creds())
            .env("ASKED_RUNWAY", runway)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        Step {
            succeeded: output.status.success(),
            said: String::from_utf8(output.stdout).unwrap(),
            told: read(&fs::read_to_string(told).unwrap()),
        }
    }

    /// The first step of the action.
    fn step(&self, runway: &str) -> Step {
        let step = &description()["runs"]["steps"][0];
        assert_eq!(step["env"]["ASKED_RUNWAY"], "${{ inputs.runway }}");
        self.run(step["run"].as_str().unwrap(), runway)
    }

    fn hook(&self) -> Step {
        self.run(&fs::read_to_string(action().join("job-started.sh")).unwrap(), "")
    }
}

/// As the runner reads `GITHUB_OUTPUT` and `GITHUB_ENV`.
fn read(text: &str) -> BTreeMap<String, String> {
    let mut read = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some((name, mark)) = line.split_once("<<") {
            let value: Vec<&str> = lines.by_ref().take_while(|line| *line != mark).collect();
            read.insert(name.to_owned(), value.join("\n"));
        } else {
            let (name, value) = line.split_once('=').unwrap();
            read.insert(name.to_owned(), value.to_owned());
        }
    }
    read
}

fn told(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

const HOUR: TimeDelta = TimeDelta::hours(1);

#[test]
fn every_script_passes_shellcheck() {
    if !tools_are_there(&["shellcheck"]) {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scripts = [
        "actions/getchitty-creds/mounted.sh",
        "actions/getchitty-creds/job-started.sh",
        ".ci/run",
        ".ci/node",
        ".ci/tools",
    ];
    let output = Command::new("shellcheck")
        .args(scripts)
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn what_is_mounted_is_masked_before_it_is_put_out_under_the_names_of_the_other_action() {
    let files = [
        ("account_id", "acc"),
        ("cloudflare_token", "cf_1"),
        ("github_token", "ghs_1"),
        ("neon_database_url", "postgres://a:b%40@c/d"),
        ("npm_token", "two\nlines=<<x"),
        (".npmrc", "no output"),
    ];
    let runner = Runner::new(&files, HOUR);
    let step = runner.step("");
    assert!(step.succeeded);
    let mut expected = told(&files[..5]);
    expected.insert("found".into(), "true".into());
    expected.insert("neon_token".into(), "postgres://a:b%40@c/d".into());
    assert_eq!(step.told, expected);
    let mut said: Vec<&str> = step.said.lines().collect();
    said.sort_unstable();
    said.dedup();
    assert_eq!(
        said,
        [
            "::add-mask::cf_1",
            "::add-mask::ghs_1",
            "::add-mask::lines=<<x",
            "::add-mask::postgres://a:b%2540@c/d",
            "::add-mask::two"
        ]
    );
    let variables = Runner::new(&[("CLOUDFLARE_API_TOKEN", "cf_1"), ("GH_TOKEN", "ghs_1")], HOUR).step("");
    let expected = [
        ("cloudflare_token", "cf_1"),
        ("found", "true"),
        ("github_token", "ghs_1"),
    ];
    assert_eq!(variables.told, told(&expected));
}

#[test]
fn a_short_runway_is_warned_of_and_tokens_that_have_ended_are_an_error() {
    let runner = Runner::new(&[("npm_token", "npm_1")], TimeDelta::seconds(630));
    assert!(!runner.step("").said.contains("::warning"));
    assert!(!runner.step("9m").said.contains("::warning"));
    let warned = runner.step("1h");
    assert!(
        warned.succeeded
            && warned
                .said
                .contains("::warning title=Short runway::These tokens end in 10 min"),
        "{}",
        warned.said
    );
    assert_eq!(warned.told["npm_token"], "npm_1");
    for unreadable in ["soon", "2m3s", "-1m", "m", "$(id)"] {
        let refused = runner.step(unreadable);
        assert!(
            !refused.succeeded && refused.said.contains("::error title=Bad runway"),
            "{unreadable}"
        );
    }
    let ended = Runner::new(&[("npm_token", "npm_1")], -HOUR).step("");
    assert!(!ended.succeeded && ended.told.is_empty());
    assert!(ended.said.contains("::error title=Tokens have ended"), "{}", ended.said);
}

#[test]
fn without_a_mount_the_other_action_is_asked_with_the_same_inputs() {
    let runner = Runner::new(&[("x.txt", "no token")], HOUR);
    assert_eq!(runner.step("").told, told(&[("found", "false")]));
    fs::remove_dir_all(runner.creds()).unwrap();
    assert_eq!(runner.step("").told, told(&[("found", "false")]));
    let action = description();
    let steps = &action["runs"]["steps"];
    assert_eq!(steps[1]["if"], "steps.mounted.outputs.found != 'true'");
    let (name, revision) = steps[1]["uses"].as_str().unwrap().split_once('@').unwrap();
    assert_eq!(name, "chittyos/chittyops/.github/actions/getchitty-creds");
    assert!(revision.len() == 40, "a revision, which nobody can move");
    let names = |of: &Value| -> Vec<String> {
        let names = of.as_mapping().unwrap().keys();
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let mut inputs = names(&action["inputs"]);
    inputs.retain(|input| input != "runway");
    assert_eq!(names(&steps[1]["with"]), inputs);
    for input in inputs {
        assert_eq!(steps[1]["with"][&*input], format!("${{{{ inputs.{input} }}}}").as_str());
    }
    for output in names(&action["outputs"]) {
        let value = format!("${{{{ steps.mounted.outputs.{output} || steps.asked.outputs.{output} }}}}");
        assert_eq!(action["outputs"][&*output]["value"], value.as_str());
    }
}

#[test]
fn the_hook_masks_and_exports_variables_and_nothing_else() {
    let files = [
        ("CLOUDFLARE_ACCOUNT_ID", "acc"),
        ("CLOUDFLARE_API_TOKEN", "cf_1"),
        ("NPM_TOKEN", "two\nlines"),
        (".env", "no variable"),
        ("npm_token", "no variable"),
    ];
    let runner = Runner::new(&files, HOUR);
    let hook = runner.hook();
    assert!(hook.succeeded);
    assert_eq!(hook.told, told(&files[..3]));
    assert_eq!(hook.said, "::add-mask::cf_1\n::add-mask::two\n::add-mask::lines\n");
    let ended = Runner::new(&[("NPM_TOKEN", "npm_1")], -HOUR).hook();
    assert!(ended.succeeded && ended.said.contains("::warning title=Tokens have ended"));
    fs::remove_dir_all(runner.creds()).unwrap();
    let nowhere = runner.hook();
    assert!(nowhere.succeeded && nowhere.told.is_empty() && nowhere.said.is_empty());
}
