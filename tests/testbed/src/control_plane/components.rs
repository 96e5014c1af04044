//! How each program is called.

use std::net::SocketAddr;

use super::files::{Files, services};
use super::{Options, Ports};

pub(super) fn etcd(files: &Files, ports: Ports) -> Vec<String> {
    let client = local_url(ports.etcd);
    let peer = local_url(ports.etcd_peer);
    vec![
        "--name=testbed".into(),
        format!("--data-dir={}", files.arg("etcd")),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=testbed={peer}"),
        // Nothing here has to survive a power cut, and fsync is most of what a write costs.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

pub(super) fn apiserver(options: &Options, files: &Files, ports: Ports) -> Vec<String> {
    let mut args = vec![
        format!("--etcd-servers={}", local_url(ports.etcd)),
        format!("--bind-address={}", options.bind_address),
        format!("--secure-port={}", ports.apiserver),
        // Left alone it looks for a default route, which a container may not have. Loopback cannot be
        // published in an EndpointSlice, hence no reconciler.
        format!("--advertise-address={}", crate::loopback()),
        "--endpoint-reconciler-type=none".into(),
        format!("--tls-cert-file={}", files.arg("apiserver.crt")),
        format!("--tls-private-key-file={}", files.arg("apiserver.key")),
        format!("--client-ca-file={}", files.arg("ca.crt")),
        format!("--kubelet-client-certificate={}", files.arg("kubelet-client.crt")),
        format!("--kubelet-client-key={}", files.arg("kubelet-client.key")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", files.arg("sa.pub")),
        format!("--service-account-signing-key-file={}", files.arg("sa.key")),
        format!("--service-cluster-ip-range={}", services().0),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        "--profiling=false".into(),
    ];
    args.extend(options.apiserver_args.iter().cloned());
    args
}

pub(super) fn controller_manager(options: &Options, files: &Files) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", files.arg("kube-controller-manager.kubeconfig")),
        format!("--controllers={}", options.controllers),
        format!("--service-account-private-key-file={}", files.arg("sa.key")),
        format!("--root-ca-file={}", files.arg("ca.crt")),
        "--leader-elect=false".into(),
        "--secure-port=0".into(),
        // Its default of 20 a second would be the bottleneck wherever a test deletes many objects.
        "--kube-api-qps=500".into(),
        "--kube-api-burst=1000".into(),
        "--profiling=false".into(),
    ]
}

pub(super) fn scheduler(files: &Files) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", files.arg("kube-scheduler.kubeconfig")),
        "--leader-elect=false".into(),
        "--secure-port=0".into(),
    ]
}

/// Where our own clients find the API server.
pub(super) fn apiserver_url(options: &Options, ports: Ports) -> String {
    let ip = if options.bind_address.is_unspecified() {
        crate::loopback()
    } else {
        options.bind_address
    };
    format!("https://{}", SocketAddr::new(ip, ports.apiserver))
}

pub(super) fn local_url(port: u16) -> String {
    format!("http://{}", SocketAddr::new(crate::loopback(), port))
}
