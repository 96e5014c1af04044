//! A real Kubernetes control plane, alone in a directory of its own.

mod components;
mod etcd;
mod files;
mod options;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

pub use self::options::Options;

use self::files::Files;
use crate::binaries::{Binaries, Tool};
use crate::pki::Authority;
use crate::ports::free_port;
use crate::process::Process;

/// Longer than a loaded two-core machine ever took; a control plane that fails says so at once.
const START_TIMEOUT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(25);
/// How often ports are drawn again when another process was faster.
const PORT_DRAWS: usize = 5;

/// etcd, kube-apiserver and kube-controller-manager, stopped on drop and when this process ends in
/// any other way.
///
/// All methods take `&self`, so one control plane can serve many tests from a `static`. The async
/// ones need a tokio runtime, and any will do: nothing keeps a hold on the one that started it.
#[derive(Debug)]
pub struct ControlPlane {
    running: Mutex<Running>,
    binaries: Binaries,
    options: Options,
    ports: Ports,
    kubeconfig: PathBuf,
    // Last, so that it goes when nobody writes into it any more.
    files: Files,
}

#[derive(Debug, Default)]
struct Running {
    scheduler: Option<Process>,
    controller_manager: Option<Process>,
    apiserver: Option<Process>,
    etcd: Option<Process>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    etcd: u16,
    etcd_peer: u16,
    apiserver: u16,
}

impl Ports {
    fn draw(options: &Options) -> anyhow::Result<Self> {
        let loopback = crate::loopback();
        Ok(Self {
            etcd: free_port(loopback)?,
            etcd_peer: free_port(loopback)?,
            apiserver: free_port(options.bind_address)?,
        })
    }
}

impl ControlPlane {
    /// Starts a control plane and waits until it serves requests and Pods could be created.
    ///
    /// The programs are built first if need be; progress goes to standard error.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        crate::install_crypto_provider();
        let mut tools = vec![
            Tool::Etcd,
            Tool::KubeApiserver,
            Tool::KubeControllerManager,
            Tool::Kubectl,
        ];
        if options.scheduler {
            tools.push(Tool::KubeScheduler);
        }
        let binaries = tokio::task::spawn_blocking(move || Binaries::find_or_build(&tools, say)).await??;
        for _ in 1..PORT_DRAWS {
            let control_plane = Self::prepare(options.clone(), binaries.clone())?;
            match control_plane.launch().await {
                Ok(()) => return Ok(control_plane),
                Err(_) if control_plane.lost_a_port() => {}
                Err(error) => return Err(error),
            }
        }
        let control_plane = Self::prepare(options, binaries)?;
        control_plane.launch().await?;
        Ok(control_plane)
    }

    fn prepare(options: Options, binaries: Binaries) -> anyhow::Result<Self> {
        let files = Files::create(&options)?;
        let ports = Ports::draw(&options)?;
        let url = components::apiserver_url(&options, ports);
        let kubeconfig = files.admin_kubeconfig("admin", &url)?;
        files.admin_kubeconfig("kube-controller-manager", &url)?;
        files.admin_kubeconfig("kube-scheduler", &url)?;
        Ok(Self {
            running: Mutex::default(),
            binaries,
            options,
            ports,
            kubeconfig,
            files,
        })
    }

    async fn launch(&self) -> anyhow::Result<()> {
        let etcd = self.spawn(Tool::Etcd)?;
        self.running().etcd = Some(etcd);
        let url = components::local_url(self.ports.etcd);
        self.until(Tool::Etcd, || etcd::check_health(&url)).await?;
        self.start_apiserver().await?;
        let client = self.client().await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        self.until(Tool::KubeControllerManager, async || {
            accounts.get("default").await?;
            Ok(())
        })
        .await
    }

    /// The administrator's kubeconfig, readable by this user only.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A client that may do everything, for the current runtime.
    pub async fn client(&self) -> anyhow::Result<Client> {
        client_from(&self.kubeconfig).await
    }

    /// A kubeconfig for any user in any groups (two at most), by a certificate of our authority's.
    pub fn kubeconfig_as(&self, user: &str, groups: &[&str]) -> anyhow::Result<PathBuf> {
        self.files.user_kubeconfig(user, groups, &self.url())
    }

    /// A client for any user in any groups (two at most).
    pub async fn client_as(&self, user: &str, groups: &[&str]) -> anyhow::Result<Client> {
        client_from(&self.kubeconfig_as(user, groups)?).await
    }

    /// A kubeconfig for the bearer of `token`, a service account's for instance.
    pub fn kubeconfig_with_token(&self, token: &str) -> anyhow::Result<PathBuf> {
        self.files.token_kubeconfig(token, &self.url())
    }

    /// The API server's URL, as our own kubeconfigs have it.
    #[must_use]
    pub fn url(&self) -> String {
        components::apiserver_url(&self.options, self.ports)
    }

    /// The API server's port, for those who reach it at another address.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.apiserver
    }

    /// The certificate authority that signed the API server's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        self.files.ca_pem()
    }

    /// That authority itself, for whoever stands between the API server and a client.
    pub(crate) fn authority(&self) -> &Authority {
        self.files.authority()
    }

    /// kubectl as administrator; the caller adds arguments.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(self.binaries.path(Tool::Kubectl)?);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            // Discovery is cached per server, and ports come back with other servers behind them.
            .args(["--cache-dir", &self.files.arg("kubectl-cache")]);
        Ok(command)
    }

    /// SIGKILLs the API server. What it had accepted is in etcd.
    pub fn kill_apiserver(&self) {
        // Not while holding the lock: killing waits.
        let apiserver = self.running().apiserver.take();
        drop(apiserver);
    }

    /// SIGKILLs etcd. What it had answered is on its disk.
    pub fn kill_etcd(&self) {
        let etcd = self.running().etcd.take();
        drop(etcd);
    }

    /// Starts etcd again, on the same ports, and waits until it is ready.
    pub async fn start_etcd(&self) -> anyhow::Result<()> {
        if self.running().etcd.is_none() {
            let etcd = self.spawn(Tool::Etcd)?;
            self.running().etcd = Some(etcd);
        }
        let url = components::local_url(self.ports.etcd);
        self.until(Tool::Etcd, || etcd::check_health(&url)).await
    }

    /// Starts the API server again, on the same port, and waits until it is ready.
    pub async fn start_apiserver(&self) -> anyhow::Result<()> {
        if self.running().apiserver.is_none() {
            let apiserver = self.spawn(Tool::KubeApiserver)?;
            self.running().apiserver = Some(apiserver);
        }
        let client = self.client().await?;
        self.until(Tool::KubeApiserver, async || {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            client.request_text(request).await?;
            Ok(())
        })
        .await?;
        self.keep_controllers()
    }

    /// Starts the controllers over. The garbage collector learns of new kinds every 30 s, and at
    /// once when it starts: call this after installing CRDs whose objects own others.
    pub fn restart_controller_manager(&self) -> anyhow::Result<()> {
        let old = self.running().controller_manager.take();
        drop(old);
        self.keep_controllers()
    }

    /// Everything in etcd, by key. Built-in kinds are stored as protobuf, in which strings and
    /// Secret data stand as they are.
    pub async fn etcd_dump(&self) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        etcd::dump(&components::local_url(self.ports.etcd)).await
    }

    /// What `tool` wrote so far, restarts included.
    #[must_use]
    pub fn logs(&self, tool: Tool) -> String {
        let bytes = std::fs::read(self.log_path(tool)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The process id of `tool`, if it was started here.
    #[must_use]
    pub fn pid(&self, tool: Tool) -> Option<u32> {
        self.running().slot(tool)?.as_ref().map(Process::pid)
    }

    /// Stops everything, by SIGKILL: etcd can hang in a graceful stop.
    pub fn stop(&self) {
        let running = std::mem::take(&mut *self.running());
        drop(running);
    }

    /// The controllers give up when the API server stays away for long.
    fn keep_controllers(&self) -> anyhow::Result<()> {
        let mut tools = vec![Tool::KubeControllerManager];
        if self.options.scheduler {
            tools.push(Tool::KubeScheduler);
        }
        for tool in tools {
            let mut running = self.running();
            let Some(slot) = running.slot(tool) else {
                continue;
            };
            let gone = slot.as_mut().is_none_or(|p| p.exited().is_some());
            if gone {
                *slot = Some(self.spawn(tool)?);
            }
        }
        Ok(())
    }

    fn spawn(&self, tool: Tool) -> anyhow::Result<Process> {
        let args = match tool {
            Tool::Etcd => components::etcd(&self.files, self.ports),
            Tool::KubeApiserver => components::apiserver(&self.options, &self.files, self.ports),
            Tool::KubeControllerManager => components::controller_manager(&self.options, &self.files),
            Tool::KubeScheduler => components::scheduler(&self.files),
            Tool::Kubelet | Tool::Kubectl | Tool::Helm => {
                bail!("{} is not part of the control plane", tool.name())
            }
        };
        Process::spawn(self.binaries.path(tool)?, &args, &self.log_path(tool))
    }

    /// Tries until it works, `tool` ends or time is up.
    async fn until<F>(&self, tool: Tool, mut attempt: impl FnMut() -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let error = match tokio::time::timeout(START_TIMEOUT, attempt()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => anyhow!("no answer"),
            };
            if let Some(status) = self.ended(tool) {
                bail!("{} ended ({status}): {}", tool.name(), self.tail(tool));
            }
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("{} did not get ready: {}", tool.name(), self.tail(tool)));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn ended(&self, tool: Tool) -> Option<String> {
        let mut running = self.running();
        match running.slot(tool)? {
            Some(process) => process.exited().map(|status| status.to_string()),
            None => Some("stopped".into()),
        }
    }

    fn lost_a_port(&self) -> bool {
        [Tool::Etcd, Tool::KubeApiserver]
            .into_iter()
            .any(|tool| self.logs(tool).contains("address already in use"))
    }

    fn tail(&self, tool: Tool) -> String {
        let logs = self.logs(tool);
        let lines: Vec<_> = logs.lines().collect();
        let last = lines.len().saturating_sub(15);
        lines[last..].join("\n")
    }

    fn log_path(&self, tool: Tool) -> PathBuf {
        self.files.path(&format!("{}.log", tool.name()))
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn slot(&mut self, tool: Tool) -> Option<&mut Option<Process>> {
        match tool {
            Tool::Etcd => Some(&mut self.etcd),
            Tool::KubeApiserver => Some(&mut self.apiserver),
            Tool::KubeControllerManager => Some(&mut self.controller_manager),
            Tool::KubeScheduler => Some(&mut self.scheduler),
            Tool::Kubelet | Tool::Kubectl | Tool::Helm => None,
        }
    }
}

/// Past the test harness, which captures `eprintln!` but not this: nobody waits minutes in silence.
fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "testbed: {message}");
}

async fn client_from(kubeconfig: &Path) -> anyhow::Result<Client> {
    crate::install_crypto_provider();
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
