//! A job: a Secret mounted as the kubelet mounts it, and a shell of somebody who is not root.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use chittyconnect_operator::core::render::Data;

/// The job's user, as in GitHub's runner image, and its `fsGroup`.
const USER: u32 = 1001;
const GROUP: u32 = 2001;

/// Installed by `.ci/tools`.
fn tools() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("tools")
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.push(tools().join("node_modules/.bin"));
    dirs.iter().any(|dir| dir.join(tool).exists())
}

/// Whether a test can run; where it must and cannot, it fails.
pub fn tools_are_there(wanted: &[&str]) -> bool {
    let mut missing: Vec<&str> = wanted
        .iter()
        .chain(&["unshare", "setpriv", "timeout"])
        .filter(|t| !is_there(t))
        .copied()
        .collect();
    if !is_root() {
        missing.push("root, to mount and to become somebody else");
    }
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(std::env::var_os("REQUIRE_TOOLS").is_none(), "missing: {missing}");
    eprintln!("left out, for want of {missing}: .ci/run installs what is missing");
    false
}

pub struct Job {
    dir: tempfile::TempDir,
    revision: Cell<u32>,
    env: RefCell<Vec<(String, String)>>,
}

impl Job {
    pub fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix(&format!("tools-{name}-"))
            .tempdir()
            .unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for part in ["volume", "creds", "tools", "home", "work"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        if is_root() {
            for part in ["home", "work"] {
                chown(dir.path().join(part), Some(USER), Some(USER)).unwrap();
            }
        }
        Self {
            dir,
            revision: Cell::new(0),
            env: RefCell::default(),
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// A variable of the job.
    pub fn env(&self, name: &str, value: &str) {
        self.env.borrow_mut().push((name.to_owned(), value.to_owned()));
    }

    /// A file of the job's own.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        chown(path.parent().unwrap(), Some(USER), Some(USER)).unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
        path
    }

    pub fn remove(&self, name: &str) {
        let _ = fs::remove_dir_all(self.work().join(name));
    }

    /// Puts a Secret's data in place, or another's in its place, as the kubelet does: a directory of its own, and one
    /// rename of the symbolic link that all keys go through.
    pub fn mount(&self, data: &Data) {
        let volume = self.dir.path().join("volume");
        let revision = format!("..2026_11_26_{}", self.revision.replace(self.revision.get() + 1));
        let dir = volume.join(&revision);
        fs::create_dir(&dir).unwrap();
        for (key, value) in data {
            let file = dir.join(key);
            fs::write(&file, value.as_slice()).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).unwrap();
            chown(&file, Some(0), Some(GROUP)).unwrap();
        }
        let (next, current) = (volume.join("..data_tmp"), volume.join("..data"));
        symlink(&revision, &next).unwrap();
        let before = fs::read_link(&current).ok();
        fs::rename(&next, &current).unwrap();
        for key in data.keys() {
            let link = volume.join(key);
            if link.symlink_metadata().is_err() {
                symlink(Path::new("..data").join(key), link).unwrap();
            }
        }
        if let Some(before) = before {
            fs::remove_dir_all(volume.join(before)).unwrap();
        }
    }

    fn shell(&self, script: &str) -> Command {
        let part = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        // The mounts are this command's own, and go with it. A tool that waits for ever is a failure.
        let enter = r#"
            mount --bind "$1" "$2" && mount -o remount,bind,ro "$2"
            if [ -d "$3" ]; then mount --bind "$3" "$4"; fi
            cd "$5"; shift 5
            exec setpriv --reuid=1001 --regid=1001 --groups=2001 --inh-caps=-all --no-new-privs -- "$@""#;
        let path = format!(
            "{0}/node_modules/.bin:{1}",
            part("tools"),
            std::env::var("PATH").unwrap()
        );
        let mut command = Command::new("timeout");
        command
            .args([
                "60",
                "unshare",
                "--mount",
                "--",
                "sh",
                "-euc",
                enter,
                "enter",
                &part("volume"),
                &part("creds"),
            ])
            .arg(tools())
            .args([&part("tools"), &part("work"), "env", "-i"])
            .args([
                format!("PATH={path}"),
                format!("HOME={}", part("home")),
                "CI=true".to_owned(),
            ]);
        command.args(self.env.borrow().iter().map(|(name, value)| format!("{name}={value}")));
        command.args(["sh", "-euc", &script.replace("/creds", &part("creds"))]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs commands of the job, and gives all that they say.
    pub fn run(&self, script: &str) -> String {
        assert!(!script.is_empty());
        let output = self.shell(script).output().unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{script}\n{said}");
        said
    }

    /// Starts a command that reads a line before it goes on.
    pub fn start(&self, script: &str) -> Running {
        Running(self.shell(script).stdin(Stdio::piped()).spawn().unwrap())
    }
}

pub struct Running(Child);

impl Running {
    /// Waits for its first line, does something, has it go on, and gives all that it said.
    pub fn after_first_line(mut self, act: impl FnOnce()) -> String {
        let mut out = BufReader::new(self.0.stdout.take().unwrap());
        let mut said = String::new();
        out.read_line(&mut said).unwrap();
        act();
        self.0.stdin.take().unwrap().write_all(b"on\n").unwrap();
        out.read_to_string(&mut said).unwrap();
        self.0.wait().unwrap();
        said
    }
}
