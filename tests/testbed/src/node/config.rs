//! What containerd, CNI and the kubelet are told.

use std::path::Path;

use serde_json::{Value, json};

use super::identity::Identity;

/// The image that holds a Pod's namespaces open.
pub(super) const SANDBOX_IMAGE: &str = "docker.io/library/testbed-sandbox:1";
pub(super) const NAME: &str = "node1";
const CNI_PLUGINS: &str = "/usr/lib/cni";

pub(super) fn containerd(dir: &Path) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    // TOML strings in double quotes are JSON strings.
    let quoted = |name: &str| Value::from(path(name)).to_string();
    format!(
        r#"version = 2
root = {root}
state = {state}
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = {socket}
[ttrpc]
address = {ttrpc}
[plugins."io.containerd.internal.v1.opt"]
path = {opt}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{SANDBOX_IMAGE}"
# A kubelet without CAP_SYS_RESOURCE asks for what the kernel refuses, and runc dies of it.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = {cni}
"#,
        root = quoted("containerd"),
        state = quoted("containerd-state"),
        socket = quoted("containerd.sock"),
        ttrpc = quoted("containerd.ttrpc.sock"),
        opt = quoted("containerd-opt"),
        cni = quoted("cni"),
    )
}

/// Pods and this machine share a bridge, and nothing leads out of it.
pub(super) fn network(identity: &Identity, dir: &Path) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": identity.mark(),
        "plugins": [{
            "type": "bridge",
            "bridge": identity.bridge(),
            "isGateway": true,
            "isDefaultGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("cni-addresses"),
                "ranges": [[{"subnet": identity.subnet(), "gateway": identity.gateway()}]],
            },
        }],
    })
}

pub(super) fn kubelet(identity: &Identity, dir: &Path, port: u16) -> Value {
    let seconds = |n: u32| format!("{n}s");
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "port": port,
        "healthzPort": 0,
        "readOnlyPort": 0,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": dir.join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": format!("unix://{}", dir.join("containerd.sock").display()),
        "podLogsDir": dir.join("pod-logs"),
        "volumePluginDir": dir.join("volume-plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", identity.mark()),
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": false,
        "localStorageCapacityIsolation": false,
        "imageGCHighThresholdPercent": 100,
        // A developer's disk is often nearly full, and no Pod of a test fills it.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        // How soon a changed Secret reaches mounted files: a minute by default.
        "syncFrequency": seconds(1),
        "nodeStatusUpdateFrequency": seconds(2),
        "maxPods": 30,
        "clusterDomain": "cluster.local",
    })
}

pub(super) fn kubelet_arguments(identity: &Identity, dir: &Path) -> Vec<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--config={}", path("kubelet.json")),
        format!("--kubeconfig={}", path("kubelet.kubeconfig")),
        format!("--root-dir={}", path("kubelet")),
        format!("--cert-dir={}", path("kubelet-pki")),
        format!("--hostname-override={NAME}"),
        format!("--node-ip={}", identity.gateway()),
        "--v=2".to_owned(),
    ]
}
