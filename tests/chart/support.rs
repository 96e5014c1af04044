//! Helm and kubectl, as users call them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use testbed::process::Process;
use testbed::{Binaries, ControlPlane, Options, Tool};

/// Namespace and name of the release.
pub const SYSTEM: &str = "chittyconnect-system";
pub const RELEASE: &str = "chittyconnect-operator";
/// How long anything may take that has no deadline of its own.
const PATIENCE: Duration = Duration::from_secs(60);

static BINARIES: LazyLock<Binaries> = LazyLock::new(|| {
    Binaries::find_or_build(&[Tool::Helm, Tool::Kubectl], |message| eprintln!("{message}")).expect("helm and kubectl")
});

/// A file of this repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub fn chart() -> PathBuf {
    repository("charts/chittyconnect-operator")
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Helm with these arguments; it knows no cluster.
pub fn helm(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARIES.path(Tool::Helm).unwrap());
    command.args(arguments).env_remove("KUBECONFIG").stdin(Stdio::null());
    // Nothing of this user's: no plugins, no repositories, no cluster.
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(name, concat!(env!("CARGO_TARGET_TMPDIR"), "/helm-home"));
    }
    command
}

/// Runs it, and gives what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?} failed: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it, and gives what it complained of.
pub fn fail(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(!output.status.success(), "{command:?} succeeded: {}", text(&output));
    text(&output)
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// What the chart renders with these values.
pub fn render(arguments: &[&str]) -> Vec<Value> {
    let path = chart();
    let mut command = helm(&["template", RELEASE, path.to_str().unwrap(), "--namespace", SYSTEM]);
    documents(&succeed(command.args(arguments)))
}

/// The documents of a YAML stream.
pub fn documents(yaml: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).expect("YAML"))
        .filter(|document| !document.is_null())
        .collect()
}

/// The documents of that kind.
pub fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|d| d["kind"] == kind).collect()
}

/// Kinds of other projects that examples and docs use: group, version, kind and plural.
const FOREIGN: [[&str; 4]; 8] = [
    ["argoproj.io", "v1alpha1", "Application", "applications"],
    ["argoproj.io", "v1alpha1", "Workflow", "workflows"],
    ["external-secrets.io", "v1", "ExternalSecret", "externalsecrets"],
    ["kustomize.toolkit.fluxcd.io", "v1", "Kustomization", "kustomizations"],
    ["monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules"],
    [
        "secrets.hashicorp.com",
        "v1beta1",
        "VaultDynamicSecret",
        "vaultdynamicsecrets",
    ],
    [
        "secrets.hashicorp.com",
        "v1beta1",
        "VaultStaticSecret",
        "vaultstaticsecrets",
    ],
    ["tekton.dev", "v1", "TaskRun", "taskruns"],
];

/// A kind that takes whatever is written.
fn permissive([group, version, kind, plural]: [&str; 4]) -> Value {
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural},
            "versions": [{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema": any}}],
        },
    })
}

/// A cluster without nodes.
pub struct Cluster {
    pub plane: ControlPlane,
}

impl Cluster {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let plane = runtime
            .block_on(ControlPlane::start(Options::default()))
            .expect("a control plane");
        Self { plane }
    }

    /// The one that a node belongs to.
    #[allow(dead_code, reason = "the node's tests use it, and they share this file")]
    pub fn around(plane: ControlPlane) -> Self {
        Self { plane }
    }

    /// Helm, as administrator.
    pub fn helm(&self, arguments: &[&str]) -> Command {
        let mut command = helm(arguments);
        command.env("KUBECONFIG", self.plane.kubeconfig());
        command
    }

    /// `helm install` or `helm upgrade` of the chart.
    pub fn release(&self, verb: &str, arguments: &[&str]) -> Command {
        let path = chart();
        let mut command = self.helm(&[verb, RELEASE, path.to_str().unwrap(), "--namespace", SYSTEM]);
        if verb == "install" {
            command.arg("--create-namespace");
        }
        command.args(arguments);
        command
    }

    /// kubectl, as administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.plane.kubectl().unwrap();
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// kubectl, as somebody who is known by name alone.
    pub fn kubectl_as(&self, user: &str, arguments: &[&str]) -> Command {
        let mut command = self.kubectl(arguments);
        command.args(["--as", user, "--as-group", "system:authenticated"]);
        command
    }

    /// The manifest as the standard input of kubectl.
    pub fn with_input(command: &mut Command, manifest: &str) -> Output {
        use std::io::Write;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Applies a manifest, as administrator.
    pub fn apply(&self, manifest: &str) {
        let output = Self::with_input(&mut self.kubectl(&["apply", "-f", "-"]), manifest);
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Has the kinds of other projects served, and all that are there already.
    #[allow(dead_code, reason = "of the tests that share this file, some have no such kinds")]
    pub fn serve_foreign_kinds(&self) {
        for kind in FOREIGN {
            self.apply(&permissive(kind).to_string());
        }
        succeed(&mut self.kubectl(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]));
    }

    /// Applies a manifest as `user`: the answer, and whether it was taken.
    pub fn apply_as(&self, user: &str, manifest: &str) -> Result<String, String> {
        let output = Self::with_input(&mut self.kubectl_as(user, &["apply", "-f", "-"]), manifest);
        if output.status.success() {
            Ok(text(&output))
        } else {
            Err(text(&output))
        }
    }

    /// One object, as JSON; none where it is not there.
    pub fn get(&self, arguments: &[&str]) -> Option<Value> {
        let mut command = self.kubectl(&["get", "--output=json", "--ignore-not-found"]);
        let printed = succeed(command.args(arguments));
        (!printed.trim().is_empty()).then(|| serde_json::from_str(&printed).unwrap())
    }

    /// Folders with kubectl and helm, as PATH has them.
    #[allow(dead_code, reason = "of the tests that share this file, some paste nothing")]
    pub fn tools() -> String {
        let folders = [Tool::Kubectl, Tool::Helm].map(|tool| BINARIES.path(tool).unwrap().parent().unwrap().display());
        format!("{}:{}", folders[0], folders[1])
    }

    /// Pastes commands into a shell.
    pub fn paste(&self, commands: &str, api_key: &str) -> String {
        let tools = BINARIES.path(Tool::Kubectl).unwrap().parent().unwrap();
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
        succeed(
            Command::new("sh")
                .args(["-ec", commands])
                .env("PATH", path)
                .env("KUBECONFIG", self.plane.kubeconfig())
                .env("CHITTYCONNECT_API_KEY", api_key)
                .stdin(Stdio::null()),
        )
    }

    /// The controller, outside the cluster, but with the rights of the release's service account alone.
    pub fn controller(&self) -> Controller {
        self.controller_in(SYSTEM)
    }

    /// The same, of a release in that namespace.
    pub fn controller_in(&self, namespace: &str) -> Controller {
        let token =
            succeed(&mut self.kubectl(&["create", "token", RELEASE, "--namespace", namespace, "--duration=1h"]));
        let kubeconfig = self.plane.kubeconfig_with_token(token.trim()).unwrap();
        let log = kubeconfig.with_extension("log");
        let arguments = [
            format!("KUBECONFIG={}", kubeconfig.display()),
            env!("CARGO_BIN_EXE_chittyconnect-operator").to_owned(),
            "run".to_owned(),
            format!("--namespace={namespace}"),
            "--identity=chart-test".to_owned(),
            "--metrics-addr=127.0.0.1:0".to_owned(),
            "--health-addr=127.0.0.1:0".to_owned(),
            "--log=debug,tower=info".to_owned(),
        ];
        Controller {
            _process: Process::spawn(Path::new("/usr/bin/env"), &arguments, &log).expect("the controller"),
            log,
        }
    }
}

/// A running controller.
pub struct Controller {
    _process: Process,
    log: PathBuf,
}

impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!(
                "the controller's last words:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
    }
}

impl Controller {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut get = self.kubectl(&[
                "get",
                "chittyconnections,ephemeralcredentials",
                "--all-namespaces",
                "-o=yaml",
            ]);
            eprintln!("{}", get.output().map(|o| text(&o)).unwrap_or_default());
        }
    }
}

/// The commands that NOTES.txt gives, in their order.
pub fn notes(printed: &str) -> Vec<String> {
    let (_, notes) = printed.split_once("NOTES:").expect("notes");
    let mut commands = Vec::new();
    let mut lines = notes.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.starts_with("kubectl") {
            continue;
        }
        // A command ends where its paragraph does.
        let mut command = line.to_owned();
        while let Some(more) = lines.next_if(|l| !l.is_empty()) {
            command.push('\n');
            command.push_str(more);
        }
        commands.push(command);
    }
    commands
}

/// Asks until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
