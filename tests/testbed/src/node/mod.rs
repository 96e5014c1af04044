//! A real node: containerd, runc, CNI and the kubelet, in namespaces of their own. Needs root, and Debian's
//! `containerd`, `runc`, `containernetworking-plugins` and `busybox-static`.
//!
//! It runs in a PID and a mount namespace, so that killing one process ends all and unmounts all. What the
//! kernel does not tie to those (a bridge, control groups, a directory) has names of the node's own, and is
//! removed by a stop, by a janitor when this process dies, and at the next start if even the janitor did.

mod cleanup;
mod config;
mod identity;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;

use self::cleanup::Janitor;
use self::identity::Identity;
use crate::binaries::{Binaries, Tool};
use crate::control_plane::{ControlPlane, Options};
use crate::image::Image;
use crate::ports::free_port;
use crate::process::Process;

const BOOT: &str = include_str!("boot.sh");
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// What has to be there, and the Debian package that has it.
const NEEDED: [(&str, &str); 6] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/bin/busybox", "busybox-static"),
    ("/usr/bin/unshare", "util-linux"),
];

/// A node before it starts: its addresses are drawn, so that a control plane can be made for it.
#[derive(Debug)]
pub struct Plan {
    identity: Identity,
    lock: File,
    janitor: Janitor,
}

/// A running node. Dropping it stops it and removes everything of it.
#[derive(Debug)]
pub struct Node {
    identity: Identity,
    // Dropped in this order.
    process: Option<Process>,
    janitor: Janitor,
    _lock: File,
}

impl Plan {
    /// Draws a free network, after removing what crashed runs left.
    pub fn new() -> anyhow::Result<Self> {
        let missing: Vec<_> = NEEDED
            .iter()
            .filter(|(path, _)| !Path::new(path).exists())
            .map(|(_, p)| *p)
            .collect();
        ensure!(missing.is_empty(), "a node needs the packages {}", missing.join(", "));
        cleanup::reap(say);
        let identity = Identity::draw()?;
        let lock = cleanup::claim(&identity)?;
        let janitor = Janitor::hire(&identity)?;
        Ok(Self {
            identity,
            lock,
            janitor,
        })
    }

    /// The address at which Pods find this machine, and with it everything that listens on all addresses.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.identity.gateway()
    }

    /// A control plane that Pods of this node reach, with a scheduler.
    #[must_use]
    pub fn control_plane(&self) -> Options {
        Options::default()
            .bind_address(Ipv4Addr::UNSPECIFIED)
            .san_ip(self.gateway())
            // For `kubectl logs`: the node's name resolves nowhere.
            .apiserver_arg("--kubelet-preferred-address-types=InternalIP")
            .scheduler()
    }
}

impl Node {
    /// Starts the node and waits until the control plane calls it ready.
    pub async fn start(plan: Plan, plane: &ControlPlane) -> anyhow::Result<Self> {
        let Plan {
            identity,
            lock,
            janitor,
        } = plan;
        let mut node = Self {
            identity,
            process: None,
            janitor,
            _lock: lock,
        };
        let binaries = tokio::task::spawn_blocking(|| Binaries::find_or_build(&[Tool::Kubelet], say)).await??;
        node.launch(plane, binaries.path(Tool::Kubelet)?)?;
        node.until_ready(plane).await?;
        Ok(node)
    }

    fn launch(&mut self, plane: &ControlPlane, kubelet: &Path) -> anyhow::Result<()> {
        let (identity, dir) = (&self.identity, self.dir());
        self.create_bridge()?;
        self.create_control_groups()?;
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
        };
        fs::create_dir(dir.join("cni"))?;
        fs::create_dir(dir.join("pod-logs"))?;
        write("containerd.toml", &config::containerd(&dir))?;
        write("cni/10-testbed.conflist", &config::network(identity, &dir).to_string())?;
        let port = free_port(Ipv4Addr::UNSPECIFIED.into())?;
        write("kubelet.json", &config::kubelet(identity, &dir, port).to_string())?;
        write("ca.crt", &plane.ca_pem())?;
        let user = format!("system:node:{}", config::NAME);
        let kubeconfig = plane.kubeconfig_as(&user, &["system:nodes"])?;
        fs::copy(kubeconfig, dir.join("kubelet.kubeconfig"))?;
        let sandbox = dir.join("sandbox.tar");
        Image::of_busybox(config::SANDBOX_IMAGE)?.write(&sandbox)?;
        let mut arguments: Vec<String> = [
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation=private",
            "--",
            "sh",
            "-c",
            BOOT,
            "sh",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.push(dir.display().to_string());
        arguments.push(identity.mark());
        arguments.push(kubelet.display().to_string());
        arguments.extend(config::kubelet_arguments(identity, &dir));
        self.process = Some(Process::spawn(
            Path::new("/usr/bin/unshare"),
            &arguments,
            &dir.join("boot.log"),
        )?);
        let deadline = Instant::now() + START_TIMEOUT;
        // The socket is there before the services behind it are.
        while let Err(error) = self.import(&sandbox) {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("containerd did not get ready:\n{}", self.logs()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The kubelet wants its address to be one of this machine's before it starts, and before CNI would make it.
    fn create_bridge(&self) -> anyhow::Result<()> {
        let (bridge, address) = (self.identity.bridge(), format!("{}/24", self.identity.gateway()));
        for command in [
            &["link", "add", "name", &bridge, "type", "bridge"][..],
            &["address", "add", &address, "dev", &bridge],
            &["link", "set", "dev", &bridge, "up"],
        ] {
            run(Command::new("/bin/busybox").arg("ip").args(command))?;
        }
        Ok(())
    }

    /// The kubelet wants its root group to exist.
    fn create_control_groups(&self) -> anyhow::Result<()> {
        for root in cleanup::control_groups() {
            let group = root.join(self.identity.mark());
            fs::create_dir_all(&group).with_context(|| format!("failed to create {}", group.display()))?;
            // A new cpuset is empty, and takes no process until it is filled.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = fs::read_to_string(root.join(file)) {
                    fs::write(group.join(file), all)?;
                }
            }
        }
        Ok(())
    }

    async fn until_ready(&self, plane: &ControlPlane) -> anyhow::Result<()> {
        let nodes: Api<NodeObject> = Api::all(plane.client().await?);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let node = nodes.get_opt(config::NAME).await?;
            let conditions = node.and_then(|n| n.status?.conditions).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the node did not get ready:\n{}", self.logs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Its name in the cluster.
    #[must_use]
    pub fn name(&self) -> &'static str {
        config::NAME
    }

    /// Brings in an image that [`Image::write`] wrote.
    pub fn import(&self, archive: &Path) -> anyhow::Result<()> {
        run(Command::new("/usr/bin/ctr")
            .arg("--address")
            .arg(self.dir().join("containerd.sock"))
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(archive))
    }

    /// Stops what runs with this environment variable in its tracks, a Pod's process: it neither works nor
    /// says good-bye when its Pod is deleted. (Were it killed, the kubelet might start it anew before that.)
    pub fn freeze(&self, variable: &str) -> anyhow::Result<()> {
        let mut frozen = false;
        for process in fs::read_dir("/proc")?.flatten() {
            let environment = fs::read(process.path().join("environ")).unwrap_or_default();
            if environment
                .split(|byte| *byte == 0)
                .any(|set| set == variable.as_bytes())
            {
                run(Command::new("/bin/busybox")
                    .args(["kill", "-STOP"])
                    .arg(process.file_name()))?;
                frozen = true;
            }
        }
        ensure!(frozen, "nothing runs with {variable}");
        Ok(())
    }

    /// The ends of what containerd and the kubelet wrote.
    #[must_use]
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = fs::read(self.dir().join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            format!("{name}:\n{}\n", lines[lines.len().saturating_sub(30)..].join("\n"))
        };
        ["boot.log", "containerd.log", "kubelet.log"].map(tail).concat()
    }

    /// Stops it and removes everything of it; an error says that something could not be removed.
    pub fn stop(mut self) -> anyhow::Result<()> {
        drop(self.process.take());
        self.janitor.finish()
    }

    fn dir(&self) -> PathBuf {
        self.identity.dir()
    }
}

/// What is on this machine that only nodes of this kind have: processes, mounts, links, control groups and
/// directories. Empty when none runs and none left anything.
#[must_use]
pub fn traces() -> Vec<String> {
    let mut traces = Vec::new();
    let mut look = |dir: &Path, prefix: &str| {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                traces.push(entry.path().display().to_string());
            }
        }
    };
    look(&std::env::temp_dir(), identity::PREFIX);
    look(Path::new("/sys/class/net"), "chitty");
    for root in cleanup::control_groups() {
        look(&root, identity::PREFIX);
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        if mounts.contains(identity::PREFIX) {
            traces.push(process.path().display().to_string());
        }
    }
    traces
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("failed to start {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command.get_program().display(),
        said.trim()
    );
    Ok(())
}

/// Past the test harness, which captures `eprintln!` but not this.
fn say(message: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "testbed: {message}");
}
