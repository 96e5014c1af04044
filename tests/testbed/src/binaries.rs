//! Where the control plane's programs come from: a folder somebody names, this user's cache, or the
//! Go modules pinned in `go/` and `go-helm/`.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// A program that [`Binaries`] can find or build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tool {
    /// `etcd`
    Etcd,
    /// `kube-apiserver`
    KubeApiserver,
    /// `kube-controller-manager`
    KubeControllerManager,
    /// `kube-scheduler`
    KubeScheduler,
    /// `kubelet`
    Kubelet,
    /// `kubectl`
    Kubectl,
    /// `helm`
    Helm,
}

/// What one Go module builds, and at which version: a folder of the cache.
struct Source {
    module: &'static str,
    package: &'static str,
    name: &'static str,
    version: &'static str,
}

// Each also stands in a go.mod; a test holds them together.
const KUBERNETES: (&str, &str) = ("kubernetes", "v1.35.4");
const ETCD: (&str, &str) = ("etcd", "v3.6.8");
const HELM: (&str, &str) = ("helm", "v4.3.1");

const MODULE_ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SAY_SO_EVERY: Duration = Duration::from_secs(30);

impl Tool {
    /// The program's file name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
        }
    }

    fn source(self) -> Source {
        let (module, package, (name, version)) = match self {
            Self::Etcd => ("go", "go.etcd.io/etcd/server/v3", ETCD),
            Self::KubeApiserver => ("go", "k8s.io/kubernetes/cmd/kube-apiserver", KUBERNETES),
            Self::KubeControllerManager => ("go", "k8s.io/kubernetes/cmd/kube-controller-manager", KUBERNETES),
            Self::KubeScheduler => ("go", "k8s.io/kubernetes/cmd/kube-scheduler", KUBERNETES),
            Self::Kubelet => ("go", "k8s.io/kubernetes/cmd/kubelet", KUBERNETES),
            Self::Kubectl => ("go", "k8s.io/kubernetes/cmd/kubectl", KUBERNETES),
            Self::Helm => ("go-helm", "helm.sh/helm/v4/cmd/helm", HELM),
        };
        Source {
            module,
            package,
            name,
            version,
        }
    }
}

/// Where each program is.
#[derive(Clone, Debug)]
pub struct Binaries {
    paths: BTreeMap<Tool, PathBuf>,
}

impl Binaries {
    /// Finds `tools` in the folder that `KUBEBUILDER_ASSETS` names, else in this user's cache, else
    /// builds them there with Go, which takes minutes once. `progress` is told before and during.
    ///
    /// Blocks: call it off the runtime's threads.
    pub fn find_or_build(tools: &[Tool], progress: impl Fn(&str)) -> anyhow::Result<Self> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let cache = cache_dir();
        let mut paths = BTreeMap::new();
        let mut missing = Vec::new();
        for &tool in tools {
            let found = assets
                .iter()
                .map(|dir| dir.join(tool.name()))
                .chain(cache.iter().map(|dir| cached(dir, tool)))
                .find(|path| path.is_file());
            match found {
                Some(path) => _ = paths.insert(tool, path),
                None => missing.push(tool),
            }
        }
        if !missing.is_empty() {
            let names: Vec<_> = missing.iter().map(|tool| tool.name()).collect();
            let names = names.join(", ");
            let Some(cache) = cache else {
                bail!("cannot cache {names}: neither XDG_CACHE_HOME nor HOME is set");
            };
            ensure!(
                go_is_there(),
                "{names} not found, and no Go to build with: install Go 1.26 or newer from \
                 https://go.dev/dl, or let KUBEBUILDER_ASSETS name a folder that has them (`setup-envtest \
                 use -p path` prints one, without kube-controller-manager)"
            );
            for tool in missing {
                paths.insert(tool, build(&cache, tool, &progress)?);
            }
        }
        Ok(Self { paths })
    }

    /// Where `tool` is, if it was asked for.
    pub fn path(&self, tool: Tool) -> anyhow::Result<&Path> {
        self.paths
            .get(&tool)
            .map(PathBuf::as_path)
            .with_context(|| format!("{} was not asked for", tool.name()))
    }
}

fn cache_dir() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("chittyconnect-operator").join("testbed"))
}

fn cached(cache: &Path, tool: Tool) -> PathBuf {
    let source = tool.source();
    cache
        .join(format!("{}-{}", source.name, source.version))
        .join("bin")
        .join(tool.name())
}

fn go_is_there() -> bool {
    Command::new("go")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn build(cache: &Path, tool: Tool, progress: &impl Fn(&str)) -> anyhow::Result<PathBuf> {
    let target = cached(cache, tool);
    let name = tool.name();
    if let Some(dir) = target.parent() {
        fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    }
    let lock_path = cache.join("build.lock");
    let lock = File::create(&lock_path).with_context(|| format!("failed to create {}", lock_path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress(&format!("waiting for {name}: another process is building with Go"));
            lock.lock()?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).context("failed to lock the cache");
        }
    }
    if target.is_file() {
        return Ok(target);
    }
    let Source {
        module,
        package,
        version,
        ..
    } = tool.source();
    progress(&format!(
        "building {name} {version} with Go, once: this takes a few minutes"
    ));
    let unfinished = target.with_extension("unfinished");
    let mut go = Command::new("go");
    go.args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false"])
        .args(["-ldflags", &linker_flags(version)])
        .arg("-o")
        .arg(&unfinished)
        .arg(package)
        .current_dir(Path::new(MODULE_ROOT).join(module))
        // No C compiler needed, and the programs run on any libc.
        .env("CGO_ENABLED", "0")
        .env_remove("GOFLAGS")
        .env("GOWORK", "off");
    run(go, name, progress)?;
    fs::rename(&unfinished, &target).with_context(|| format!("failed to name {}", target.display()))?;
    Ok(target)
}

/// Kubernetes programs report this version to each other and to clients; unset, it reads v0.0.0.
fn linker_flags(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let mut number = || numbers.next().unwrap_or_default();
    let package = "k8s.io/component-base/version";
    format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={} -X {package}.gitMinor={}",
        number(),
        number(),
    )
}

fn run(mut go: Command, name: &str, progress: &impl Fn(&str)) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut said = started;
    let errors = tempfile::tempfile()?;
    let mut child = go
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.try_clone()?)
        .spawn()
        .context("failed to start go")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if said.elapsed() > SAY_SO_EVERY {
            said = Instant::now();
            progress(&format!("still building {name}: {} s", started.elapsed().as_secs()));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        let mut errors = errors;
        std::io::Seek::rewind(&mut errors)?;
        let text = std::io::read_to_string(errors)?;
        let tail: Vec<_> = text.lines().rev().take(20).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        bail!("failed to build {name} with Go:\n{}", tail.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_versions_are_those_of_the_go_modules() {
        for (module, dependency, version) in [
            ("go", "k8s.io/kubernetes", KUBERNETES.1),
            ("go", "go.etcd.io/etcd/server/v3", ETCD.1),
            ("go-helm", "helm.sh/helm/v4", HELM.1),
        ] {
            let path = Path::new(MODULE_ROOT).join(module).join("go.mod");
            let text = fs::read_to_string(&path).expect("go.mod is there");
            assert!(
                text.contains(&format!("{dependency} {version} ")),
                "{} does not pin {dependency} {version}",
                path.display()
            );
        }
    }

    #[test]
    fn kubernetes_programs_learn_their_version_from_the_linker() {
        let flags = linker_flags("v1.35.4");
        assert!(flags.contains("gitVersion=v1.35.4"));
        assert!(flags.contains("gitMajor=1"));
        assert!(flags.contains("gitMinor=35"));
    }
}
