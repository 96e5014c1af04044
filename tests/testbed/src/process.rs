//! Child processes that never outlive this one, however it ends.
//!
//! `PR_SET_PDEATHSIG` would need unsafe code, and `Drop` does not run on SIGKILL, nor for statics.
//! So a small `sh` stands between: its standard input is a pipe whose other end is ours alone.
//! When we are gone the kernel closes it, and what waits for that kills the child.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The shell stays the child's parent and reaps it: a container's first process often reaps nobody.
/// Signals are ignored only once the child is started, because it would inherit that.
const LEASH: &str = r#"
exec 3<&0 </dev/null
"$@" >&2 3<&- &
child=$!
trap "" HUP INT TERM
echo "$child"
exec >&-
( read -r _ <&3; kill -9 "$child" ) 2>/dev/null &
watcher=$!
exec 3<&-
wait "$child"
code=$?
kill -9 "$watcher" 2>/dev/null
wait "$watcher" 2>/dev/null
exit "$code"
"#;

const JANITOR: &str = r#"
trap "" HUP INT TERM
read -r _ && exit 0
sleep 1
rm -rf -- "$1"
"#;

/// SIGKILL takes effect at once; only a process stuck in the kernel takes longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    shell: Child,
    pid: u32,
    started: Instant,
}

impl Process {
    /// Starts `program`, its output appended to `log`.
    pub fn spawn(program: &Path, args: &[String], log: &Path) -> anyhow::Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("failed to open {}", log.display()))?;
        let mut shell = Command::new("sh")
            .args(["-c", LEASH, "sh"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C goes to the terminal's whole foreground group: ours may die of it, the leash
            // must not.
            .process_group(0)
            .spawn()
            .context("failed to start sh")?;
        let mut line = String::new();
        if let Some(stdout) = shell.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let Ok(pid) = line.trim().parse() else {
            bail!("failed to start {}", program.display());
        };
        Ok(Self {
            shell,
            pid,
            started: Instant::now(),
        })
    }

    /// How long ago it was started.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The child's own process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the child has ended, and how.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.shell.try_wait().ok().flatten()
    }

    /// SIGKILL, and waits until the child is gone.
    pub fn kill(&mut self) {
        drop(self.shell.stdin.take());
        let deadline = Instant::now() + KILL_TIMEOUT;
        while self.exited().is_none() {
            if Instant::now() > deadline {
                let _ = self.shell.kill();
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Removes a directory if this process ends without having done so.
#[derive(Debug)]
pub(crate) struct Janitor {
    shell: Child,
    leash: Option<ChildStdin>,
}

impl Janitor {
    pub fn watch(dir: &Path) -> anyhow::Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", JANITOR, "sh"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .process_group(0)
            .spawn()
            .context("failed to start sh")?;
        let leash = shell.stdin.take();
        Ok(Self { shell, leash })
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        if let Some(mut leash) = self.leash.take() {
            let _ = leash.write_all(b"done\n");
        }
        let _ = self.shell.wait();
    }
}
