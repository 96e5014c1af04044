//! Container images written without a container engine: a docker-archive that any runtime imports.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};
use data_encoding::HEXLOWER;
use serde_json::json;
use sha2::{Digest, Sha256};

/// What is in an image, and how it runs. One layer, and nothing of the machine it is written on.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    entries: BTreeMap<String, Entry>,
    user: String,
    entrypoint: Vec<String>,
    env: Vec<String>,
}

#[derive(Clone, Debug)]
enum Entry {
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

/// An image as it was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// What the files take on a node, in bytes.
    pub unpacked: u64,
}

impl Image {
    /// Nothing, under a name in full, as a container runtime has it: host, path and tag.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            entries: BTreeMap::new(),
            user: "0:0".to_owned(),
            entrypoint: Vec::new(),
            env: Vec::new(),
        }
    }

    /// The controller's image: the program and the certificate authorities it trusts, as `Dockerfile` makes it.
    pub fn of_operator(name: impl Into<String>, program: &Path) -> anyhow::Result<Self> {
        ensure!(
            is_static(program)?,
            "{} needs a dynamic loader, and the image has none: build it with \
             RUSTFLAGS='-C target-feature=+crt-static' and --target",
            program.display()
        );
        Self::new(name)
            .user("65532:65532")
            .entrypoint(["/chittyconnect-operator"])
            .copy("chittyconnect-operator", 0o755, program)?
            .copy(
                "etc/ssl/certs/ca-certificates.crt",
                0o644,
                Path::new("/etc/ssl/certs/ca-certificates.crt"),
            )
    }

    /// A shell and its tools, for Pods of tests.
    pub fn of_busybox(name: impl Into<String>) -> anyhow::Result<Self> {
        const BUSYBOX: &str = "/bin/busybox";
        ensure!(
            is_static(Path::new(BUSYBOX))?,
            "{BUSYBOX} is not static: install busybox-static"
        );
        let list = std::process::Command::new(BUSYBOX).arg("--list").output()?;
        let mut image = Self::new(name).copy("bin/busybox", 0o755, Path::new(BUSYBOX))?;
        for tool in String::from_utf8(list.stdout)?
            .lines()
            .filter(|tool| *tool != "busybox")
        {
            image = image.link(&format!("bin/{tool}"), BUSYBOX);
        }
        image.env.push("PATH=/bin".to_owned());
        // Also what holds a Pod's namespaces open, with nothing to do but to be there.
        Ok(image.entrypoint([BUSYBOX, "sleep", "2147483647"]))
    }

    /// Who it runs as.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// What it runs.
    #[must_use]
    pub fn entrypoint<const N: usize>(mut self, command: [&str; N]) -> Self {
        self.entrypoint = command.map(str::to_owned).to_vec();
        self
    }

    /// One more file: a path without a leading slash, and what is there on this machine.
    pub fn copy(mut self, path: &str, mode: u32, from: &Path) -> anyhow::Result<Self> {
        let content = std::fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
        self.entries.insert(path.to_owned(), Entry::File { mode, content });
        Ok(self)
    }

    /// One more symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        let target = target.to_owned();
        self.entries.insert(path.to_owned(), Entry::Link { target });
        self
    }

    /// Writes it as `docker save` would.
    pub fn write(&self, to: &Path) -> anyhow::Result<Written> {
        let layer = self.layer()?;
        let config = serde_json::to_vec(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"User": self.user, "Entrypoint": self.entrypoint, "Env": self.env, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
            "history": [{"created_by": "testbed"}],
        }))?;
        let config_name = format!("{}.json", digest(&config));
        let manifest = serde_json::to_vec(&json!([{
            "Config": config_name, "RepoTags": [self.name], "Layers": ["layer.tar"],
        }]))?;
        let file = File::create(to).with_context(|| format!("failed to create {}", to.display()))?;
        let mut archive = tar::Builder::new(file);
        for (name, content) in [
            ("layer.tar", &layer),
            (config_name.as_str(), &config),
            ("manifest.json", &manifest),
        ] {
            append(&mut archive, name, 0o644, content)?;
        }
        archive.into_inner()?.sync_all()?;
        Ok(Written {
            unpacked: self.entries.values().map(Entry::size).sum(),
        })
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            match entry {
                Entry::File { mode, content } => append(&mut layer, path, *mode, content)?,
                Entry::Link { target } => {
                    let mut header = header(0o777, 0);
                    header.set_entry_type(tar::EntryType::Symlink);
                    layer.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(layer.into_inner()?)
    }
}

impl Entry {
    fn size(&self) -> u64 {
        match self {
            Self::File { content, .. } => content.len() as u64,
            Self::Link { .. } => 0,
        }
    }
}

/// Root's, and as old as time: the same content always gives the same digest.
fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn append<W: std::io::Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    archive.append_data(&mut header(mode, content.len() as u64), path, content)
}

fn digest(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// Whether an ELF program needs no loader: it has no segment that names one.
fn is_static(program: &Path) -> anyhow::Result<bool> {
    const INTERPRETER: u32 = 3;
    let mut head = Vec::new();
    let file = File::open(program).with_context(|| format!("failed to open {}", program.display()))?;
    file.take(4096).read_to_end(&mut head)?;
    ensure!(
        head.starts_with(b"\x7fELF\x02\x01") && head.len() > 64,
        "{} is no 64-bit program of this machine",
        program.display()
    );
    let short = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
    // Where the program headers start (they always follow the ELF header), how long each is and how many there are.
    let (start, length, count) = (64, short(54), short(56));
    Ok(!(0..count)
        .filter_map(|i| head.get(start + i * length..)?.first_chunk())
        .any(|kind| u32::from_le_bytes(*kind) == INTERPRETER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_image_with_what_runs_and_as_whom() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, "#!").unwrap();
        let image = Image::new("docker.io/library/x:1")
            .user("1:2")
            .entrypoint(["/a"])
            .copy("a", 0o755, &program)
            .unwrap()
            .link("b/c", "/a");
        let (first, second) = (dir.path().join("1.tar"), dir.path().join("2.tar"));
        assert_eq!(image.write(&first).unwrap().unpacked, 2);
        image.write(&second).unwrap();
        let bytes = std::fs::read(&first).unwrap();
        assert!(bytes == std::fs::read(&second).unwrap());
        let text = String::from_utf8_lossy(&bytes);
        for part in [
            r#""RepoTags":["docker.io/library/x:1"]"#,
            r#""User":"1:2""#,
            r#""Entrypoint":["/a"]"#,
        ] {
            assert!(text.contains(part), "{part}");
        }
    }

    #[test]
    fn a_program_that_needs_a_loader_is_no_image() {
        let error = Image::of_operator("x", &std::env::current_exe().unwrap()).unwrap_err();
        assert!(error.to_string().contains("crt-static"), "{error}");
    }
}
