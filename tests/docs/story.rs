//! A cluster in which the commands of the pages are run, one after the other.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command as Process, Output, Stdio};
use std::time::Duration;

use testbed::chittyconnect::{Denial, Match};
use testbed::{ChittyConnect, Chronicle};

use crate::pages::{Command, differs};
use crate::support::{Cluster, Controller, repository};
use crate::table::{Entry, Run};

const HOUR: Duration = Duration::from_secs(3600);

pub struct Story {
    pub cluster: Cluster,
    broker: ChittyConnect,
    chronicle: Chronicle,
    controller: Option<Controller>,
    /// A home without anything of this user's, and the plugin where kubectl finds it.
    home: tempfile::TempDir,
}

impl Story {
    pub fn begin() -> Self {
        let cluster = Cluster::start();
        // As the quickstart has it, without its haste; how much is minted is for the connection to say.
        let broker = ChittyConnect::builder()
            .ttl(HOUR)
            .without_limits()
            .start()
            .expect("a broker");
        broker.deny(Match::minting().purpose("account-admin"), Denial::Forbidden);
        let home = tempfile::tempdir().unwrap();
        let plugin = Path::new(env!("CARGO_BIN_EXE_kubectl-chitty"));
        symlink(plugin, home.path().join("kubectl-chitty")).unwrap();
        Self {
            cluster,
            broker,
            chronicle: Chronicle::start().unwrap(),
            controller: None,
            home,
        }
    }

    /// Pastes a script into a shell at the top of the repository.
    fn paste(&self, script: &str) -> Output {
        let path = format!(
            "{}:{}:{}",
            self.home.path().display(),
            Cluster::tools(),
            std::env::var("PATH").unwrap_or_default()
        );
        let host = |url: &str| url.split_once("://").map(|(_, host)| host.to_owned()).unwrap();
        let started = std::time::Instant::now();
        let output = Process::new("timeout")
            .args(["90", "bash", "-ec", script])
            .current_dir(repository(""))
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.home.path())
            .env("PLUGIN", env!("CARGO_BIN_EXE_kubectl-chitty"))
            .env("OPERATOR", env!("CARGO_BIN_EXE_chittyconnect-operator"))
            .env("METRICS_ADDR", "127.0.0.1:0")
            .env("HEALTH_ADDR", "127.0.0.1:0")
            .env("KUBECONFIG", self.cluster.plane.kubeconfig())
            .env("CONNECT", self.broker.url())
            .env("CONNECT_HOST", host(&self.broker.url()))
            .env("CHITTYCONNECT_API_KEY", self.broker.api_key())
            .env("CHRONICLE", self.chronicle.url())
            .env("CHRONICLE_HOST", host(&self.chronicle.url()))
            .env("CHRONICLE_TOKEN", self.chronicle.token())
            .stdin(Stdio::null())
            .output()
            .expect("timeout and bash");
        println!(
            "{:6.2} s  {}",
            started.elapsed().as_secs_f32(),
            script.lines().next().unwrap_or_default()
        );
        output
    }

    /// What kept a preparation from succeeding.
    pub fn prepare(&self, script: &str) -> Option<String> {
        let output = self.paste(script);
        (!output.status.success()).then(|| format!("{script}\n{}", text(&output)))
    }

    /// In place of another.
    pub fn start_controller(&mut self, namespace: &str) {
        self.controller = None;
        self.controller = Some(self.cluster.controller_in(namespace));
    }

    /// The end of what the controller complained of.
    pub fn log(&self) -> String {
        let log = self.controller.as_ref().map(Controller::log).unwrap_or_default();
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"))
            .collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// What is wrong with a command, as the pages `of` have it.
    pub fn run(&self, entry: &Entry, run: &Run, of: &[&Command]) -> Vec<String> {
        let Command { page, line, .. } = of[0];
        let at = format!("{page}:{line}: $ {}", entry.command);
        let mut script = of[0].script.clone();
        for (words, instead) in &run.with {
            if !script.contains(words) {
                return vec![format!("{at}: it has no {words:?}")];
            }
            script = script.replace(words, instead);
        }
        let output = self.paste(&script);
        let printed = text(&output);
        if output.status.code() != Some(run.status) {
            return vec![format!("{at}: ended with {:?}:\n{printed}", output.status.code())];
        }
        let mut wrong = Vec::new();
        // Such as a field that the API server does not know, and leaves out.
        let warnings = String::from_utf8_lossy(&output.stderr);
        wrong.extend(
            warnings
                .lines()
                .filter(|line| line.starts_with("Warning:"))
                .map(|line| format!("{at}: {line}")),
        );
        for Command { page, line, shown, .. } in of {
            let mut expected = shown.split_whitespace().collect::<Vec<_>>().join(" ");
            for (words, instead) in &run.shows {
                if !shown.is_empty() && !expected.contains(words) {
                    wrong.push(format!("{page}:{line}: does not show {words:?}"));
                }
                expected = expected.replace(words, instead);
            }
            if let Some(words) = differs(&expected, &printed) {
                wrong.push(format!(
                    "{page}:{line}: $ {}\nshows {words:?}, but it is\n{printed}",
                    entry.command
                ));
            }
        }
        if let Some(then) = &run.then {
            let output = self.paste(then);
            if !output.status.success() {
                wrong.push(format!("{at}: afterwards `{then}` fails: {}", text(&output)));
            }
        }
        wrong
    }
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes))
        .concat()
}
