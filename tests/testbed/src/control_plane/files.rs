//! The control plane's directory: certificates, keys, kubeconfigs, logs, etcd's data.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use data_encoding::BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Options;
use crate::pki::{self, Authority, Identity};
use crate::process::Janitor;

/// The group that may do everything, before any RBAC.
const ADMINS: &str = "system:masters";

#[derive(Debug)]
pub(super) struct Files {
    ca: Authority,
    dir: PathBuf,
    kubeconfigs: AtomicUsize,
    // Dropped in this order: the janitor has nothing to do once the directory is gone.
    _temp: Option<TempDir>,
    _janitor: Option<Janitor>,
}

impl Files {
    pub(super) fn create(options: &Options) -> anyhow::Result<Self> {
        let (dir, temp, janitor) = if let Some(dir) = &options.keep_dir {
            fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
            (dir.clone(), None, None)
        } else {
            let temp = tempfile::Builder::new()
                .prefix("chitty-testbed-")
                .tempdir()
                .context("failed to create a temporary directory")?;
            let janitor = Janitor::watch(temp.path())?;
            (temp.path().to_owned(), Some(temp), Some(janitor))
        };
        let files = Self {
            ca: Authority::new("testbed")?,
            dir,
            kubeconfigs: AtomicUsize::new(0),
            _temp: temp,
            _janitor: janitor,
        };
        files.write("ca.crt", &files.ca.pem())?;
        let (private, public) = pki::signing_keys()?;
        files.write("sa.key", &private)?;
        files.write("sa.pub", &public)?;
        files.write_identity("apiserver", &files.ca.server("kube-apiserver", &sans(options))?)?;
        let kubelet_client = files.ca.client("kube-apiserver", &[ADMINS])?;
        files.write_identity("kubelet-client", &kubelet_client)?;
        Ok(files)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The path as an argument value.
    pub(super) fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.ca
    }

    pub(super) fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    pub(super) fn admin_kubeconfig(&self, name: &str, url: &str) -> anyhow::Result<PathBuf> {
        let user = certificate_user(&self.ca.client(name, &[ADMINS])?);
        self.write_kubeconfig(name, url, &user)
    }

    pub(super) fn user_kubeconfig(&self, user: &str, groups: &[&str], url: &str) -> anyhow::Result<PathBuf> {
        let user = certificate_user(&self.ca.client(user, groups)?);
        self.write_kubeconfig(&self.fresh_name(), url, &user)
    }

    pub(super) fn token_kubeconfig(&self, token: &str, url: &str) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig(&self.fresh_name(), url, &json!({ "token": token }))
    }

    fn fresh_name(&self) -> String {
        format!("user-{}", self.kubeconfigs.fetch_add(1, Ordering::Relaxed))
    }

    fn write_kubeconfig(&self, name: &str, url: &str, user: &Value) -> anyhow::Result<PathBuf> {
        let ca = BASE64.encode(self.ca.pem().as_bytes());
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "testbed",
            "clusters": [{"name": "testbed", "cluster": {"server": url, "certificate-authority-data": ca}}],
            "users": [{"name": "testbed", "user": user}],
            "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "testbed"}}],
        });
        // JSON is YAML, so every client reads it.
        self.write(&format!("{name}.kubeconfig"), &config.to_string())
    }

    fn write_identity(&self, name: &str, identity: &Identity) -> anyhow::Result<()> {
        self.write(&format!("{name}.crt"), &identity.cert)?;
        self.write(&format!("{name}.key"), &identity.key)?;
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        write_private(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }
}

/// Where Services are, and the first of them, which is the API server's.
pub(super) fn services() -> (&'static str, &'static str) {
    if crate::loopback().is_ipv4() {
        ("10.0.0.0/24", "10.0.0.1")
    } else {
        ("fd00:10::/112", "fd00:10::1")
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}

fn certificate_user(identity: &Identity) -> Value {
    json!({
        "client-certificate-data": BASE64.encode(identity.cert.as_bytes()),
        "client-key-data": BASE64.encode(identity.key.as_bytes()),
    })
}

fn sans(options: &Options) -> Vec<String> {
    let mut sans: Vec<_> = [
        "127.0.0.1",
        "::1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        services().1,
    ]
    .map(String::from)
    .to_vec();
    let mut add = |ip: String| {
        if !sans.contains(&ip) {
            sans.push(ip);
        }
    };
    add(options.bind_address.to_string());
    options.san_ips.iter().for_each(|ip| add(ip.to_string()));
    sans
}
