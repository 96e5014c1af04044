//! What a test may want different from the default control plane.

use std::net::IpAddr;
use std::path::PathBuf;

/// How to start a [`ControlPlane`](super::ControlPlane). The default suits most tests.
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) bind_address: IpAddr,
    pub(super) san_ips: Vec<IpAddr>,
    pub(super) apiserver_args: Vec<String>,
    pub(super) controllers: String,
    pub(super) scheduler: bool,
    pub(super) keep_dir: Option<PathBuf>,
}

/// What the tests need and a node needs. Every other controller costs memory, watches and start-up
/// time on each run.
const CONTROLLERS: &[&str] = &[
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
    "resourcequota-controller",
    "deployment-controller",
    "replicaset-controller",
    "statefulset-controller",
    "daemonset-controller",
    "job-controller",
    "cronjob-controller",
    "endpointslice-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "disruption-controller",
];

impl Default for Options {
    fn default() -> Self {
        Self {
            bind_address: crate::loopback(),
            san_ips: Vec::new(),
            apiserver_args: Vec::new(),
            controllers: CONTROLLERS.join(","),
            scheduler: false,
            keep_dir: None,
        }
    }
}

impl Options {
    /// Where the API server listens, `0.0.0.0` for instance when Pods have to reach it. The
    /// kubeconfigs keep using loopback when it is reachable there.
    #[must_use]
    pub fn bind_address(mut self, ip: impl Into<IpAddr>) -> Self {
        self.bind_address = ip.into();
        self
    }

    /// One more address the API server's certificate is valid for.
    #[must_use]
    pub fn san_ip(mut self, ip: impl Into<IpAddr>) -> Self {
        self.san_ips.push(ip.into());
        self
    }

    /// One more argument for kube-apiserver, after ours, so that it wins.
    #[must_use]
    pub fn apiserver_arg(mut self, arg: impl Into<String>) -> Self {
        self.apiserver_args.push(arg.into());
        self
    }

    /// The controllers to run, as `--controllers` takes them; `*` for all that are on by default.
    #[must_use]
    pub fn controllers(mut self, list: impl Into<String>) -> Self {
        self.controllers = list.into();
        self
    }

    /// Runs kube-scheduler too. Without it, Pods run where their `nodeName` says, or not at all.
    #[must_use]
    pub fn scheduler(mut self) -> Self {
        self.scheduler = true;
        self
    }

    /// Uses this directory and leaves it behind, for looking into it afterwards.
    #[must_use]
    pub fn keep_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.keep_dir = Some(dir.into());
        self
    }
}
