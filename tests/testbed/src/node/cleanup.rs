//! Nothing of a node stays: not after a stop, nor a panic, nor a SIGKILL, nor when even that went wrong.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, ensure};

use super::identity::Identity;

const CLEANUP: &str = include_str!("cleanup.sh");
/// Held for as long as the node's process lives: whoever can take it may clean up.
const LOCK: &str = "lock";

/// Creates a node's directory, locked by this process.
pub(super) fn claim(identity: &Identity) -> anyhow::Result<File> {
    let dir = identity.dir();
    fs::create_dir(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    let lock = File::create(dir.join(LOCK))?;
    lock.lock()?;
    Ok(lock)
}

/// Removes what is left of a node.
pub(super) fn clean(identity: &Identity) -> anyhow::Result<()> {
    let status = Command::new("sh")
        .args(["-c", CLEANUP, "sh"])
        .args(arguments(identity))
        .stdin(Stdio::null())
        .current_dir("/")
        .status()
        .context("failed to start sh")?;
    ensure!(status.success(), "failed to remove all of {}", identity.mark());
    Ok(())
}

fn arguments(identity: &Identity) -> [String; 4] {
    [
        identity.dir().display().to_string(),
        identity.mark(),
        identity.bridge(),
        identity.mark(),
    ]
}

/// Removes what crashed runs left, as far as nobody uses it. Says what it removed.
pub(super) fn reap(say: impl Fn(&str)) {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    };
    let mut marks = names(&std::env::temp_dir());
    // A directory may be gone while its bridge or its control groups are still there.
    let bridges = names(Path::new("/sys/class/net"));
    marks.extend(
        bridges
            .iter()
            .filter_map(|b| Some(format!("{}{}", super::identity::PREFIX, b.strip_prefix("chitty")?))),
    );
    marks.extend(control_groups().iter().flat_map(|root| names(root)));
    marks.sort();
    marks.dedup();
    for identity in marks.iter().filter_map(|mark| Identity::of_mark(mark)) {
        let lock = File::open(identity.dir().join(LOCK));
        if lock.is_ok_and(|lock| lock.try_lock().is_err()) {
            continue;
        }
        say(&format!("removing what a crashed run left of {}", identity.mark()));
        if let Err(error) = clean(&identity) {
            say(&format!("{error:#}"));
        }
    }
}

/// The roots of all hierarchies of control groups.
pub(super) fn control_groups() -> Vec<std::path::PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind) = (fields.next()?, fields.next()?);
            matches!(kind, "cgroup" | "cgroup2").then(|| place.into())
        })
        .collect()
}

/// Cleans up when told to, and when this process ends without that: by a pipe that the kernel closes then.
#[derive(Debug)]
pub(super) struct Janitor {
    shell: Child,
    leash: Option<ChildStdin>,
}

impl Janitor {
    pub(super) fn hire(identity: &Identity) -> anyhow::Result<Self> {
        let script = format!("trap '' HUP INT TERM\nread -r _\n{CLEANUP}");
        let mut shell = Command::new("sh")
            .args(["-c", &script, "sh"])
            .args(arguments(identity))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // Ctrl-C goes to the terminal's whole foreground group.
            .process_group(0)
            .spawn()
            .context("failed to start sh")?;
        let leash = shell.stdin.take();
        Ok(Self { shell, leash })
    }

    /// Has it clean up, and waits.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        drop(self.leash.take());
        let status = self.shell.wait()?;
        ensure!(
            status.success(),
            "something of a node could not be removed; the next start tries again"
        );
        Ok(())
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // Who wants to know has asked before.
        let _ = self.finish();
    }
}
