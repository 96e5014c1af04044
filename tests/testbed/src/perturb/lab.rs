//! One control plane, and installations of the chart beside each other in it: each with namespaces, a connection and
//! rights of its own, and all that passes between its controller and the world goes through proxies.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use data_encoding::BASE64;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, ServiceAccount};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use super::gate::{Gate, Peer};
use super::proxy::{FaultProxy, Upstream};
use crate::binaries::{Binaries, Tool};
use crate::process::Process;
use crate::server::tls_acceptor;
use crate::{ChittyConnect, Chronicle, ControlPlane, Options};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const RELEASE: &str = "chittyconnect-operator";
/// How long anything takes at most that is not what is looked at.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much is shown of a log.
const SHOWN: usize = 6000;
/// What the control plane keeps in every namespace.
const ROOT_CA: &str = "kube-root-ca.crt";
/// Pods are bound to it by hand: there is no kubelet. It is there so that they are not collected.
const NODE: &str = "by-hand";

/// A control plane with the CRDs, and the controller's program.
pub struct Lab {
    plane: ControlPlane,
    program: PathBuf,
    helm: PathBuf,
    client: Client,
}

/// An installation of the chart.
pub struct Install {
    lab: Arc<Lab>,
    /// The namespace of the controller.
    pub system: String,
    /// The namespace of those who want credentials.
    pub team: String,
    /// The namespace of those who follow them.
    pub guests: String,
    /// The only connection it serves.
    pub connection: String,
    /// To the API server, as the chart's service account.
    upstream: reqwest::Client,
    tls: TlsAcceptor,
    dir: PathBuf,
    /// The chart's manifests.
    manifests: String,
}

/// One controller's world, for one run: simulators, proxies, processes.
pub struct Scene {
    pub install: Arc<Install>,
    pub gate: Gate,
    pub broker: ChittyConnect,
    pub chronicle: Chronicle,
    broker_proxy: FaultProxy,
    chronicle_proxy: FaultProxy,
    _api_proxy: FaultProxy,
    kubeconfig: PathBuf,
    log: PathBuf,
}

impl Lab {
    /// Starts the control plane; `program` is the controller's.
    pub async fn start(program: &Path) -> anyhow::Result<Arc<Self>> {
        ensure!(program.exists(), "there is no {}", program.display());
        let plane = ControlPlane::start(Options::default()).await?;
        let binaries = tokio::task::spawn_blocking(|| Binaries::find_or_build(&[Tool::Helm], |_| {})).await??;
        let lab = Self {
            client: plane.client().await?,
            plane,
            program: program.to_owned(),
            helm: binaries.path(Tool::Helm)?.to_owned(),
        };
        let crds = Path::new(REPOSITORY).join("crds");
        lab.kubectl(&["apply", "--server-side", "-f", &crds.display().to_string()], "")?;
        lab.kubectl(
            &["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"],
            "",
        )?;
        let nodes: Api<Node> = Api::all(lab.client.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": NODE}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        // The garbage collector learns of new kinds slowly; restarted it knows them at once.
        lab.plane.restart_controller_manager()?;
        Ok(Arc::new(lab))
    }

    pub(super) fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<()> {
        let mut child = self
            .plane
            .kubectl()?
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
        ensure!(child.wait()?.success(), "kubectl {arguments:?}");
        Ok(())
    }

    /// Installs the chart once more, confined to namespaces and a connection of its own.
    pub async fn install(self: &Arc<Self>, n: usize) -> anyhow::Result<Arc<Install>> {
        let [system, team, guests, connection] = ["system", "team", "guests", "conn"].map(|of| format!("{of}-{n}"));
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for name in [&system, &team, &guests] {
            let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            namespaces.create(&PostParams::default(), &namespace).await?;
        }
        let rendered = Command::new(&self.helm)
            .args(["template", RELEASE])
            .arg(Path::new(REPOSITORY).join("charts/chittyconnect-operator"))
            .args(["--namespace", &system, "--kube-version", "1.35.0"])
            .args(["--set", "crds.enabled=false"])
            .args([
                "--set",
                &format!("scope.namespaces={{{team},{guests}}},scope.connections={{{connection},{connection}-deploy}}"),
            ])
            // Its name is that of cluster-wide objects, too.
            .args(["--set", &format!("fullnameOverride={system}")])
            .args(["serviceaccount", "rbac", "admission"].map(|t| format!("--show-only=templates/{t}.yaml")))
            .output()?;
        ensure!(
            rendered.status.success(),
            "{}",
            String::from_utf8_lossy(&rendered.stderr)
        );
        let manifests = String::from_utf8(rendered.stdout)?;
        self.kubectl(&["apply", "-f", "-"], &manifests)?;

        let user = format!("system:serviceaccount:{system}:{system}");
        let groups = [
            format!("system:serviceaccounts:{system}"),
            "system:serviceaccounts".to_owned(),
        ];
        let authority = self.plane.authority();
        let identity = authority.client(&user, &[groups[0].as_str(), groups[1].as_str()])?;
        let upstream = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(self.plane.ca_pem().as_bytes())?])
            .identity(reqwest::Identity::from_pem(
                format!("{}{}", identity.cert, identity.key).as_bytes(),
            )?)
            .no_proxy()
            .build()?;
        let dir = self.plane.kubeconfig().parent().context("a directory")?.join(&system);
        fs::create_dir_all(&dir)?;
        let tls = tls_acceptor(&authority.server("proxy", &[crate::loopback().to_string()])?, None)?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &team);
        let began = Instant::now();
        while accounts.get_opt("default").await?.is_none() {
            ensure!(began.elapsed() < PATIENCE, "there is no account for Pods in {team}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Arc::new(Install {
            lab: Arc::clone(self),
            system,
            team,
            guests,
            connection,
            upstream,
            tls,
            dir,
            manifests,
        }))
    }
}

fn kind(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("connect.chitty.cc", "v1alpha1", kind))
}

impl Install {
    /// The other connection that it may serve.
    #[must_use]
    pub fn deploys(&self) -> String {
        format!("{}-deploy", self.connection)
    }

    /// Makes a namespace that was deleted anew, with the rights of the controller there.
    pub(super) async fn restore(&self, namespace: &str) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.lab.client.clone());
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let params = PatchParams::apply("perturb").force();
        namespaces.patch(namespace, &params, &Patch::Apply(&object)).await?;
        self.lab.kubectl(&["apply", "-f", "-"], &self.manifests)
    }

    #[must_use]
    pub fn credentials(&self) -> Api<DynamicObject> {
        self.credentials_of(&self.team)
    }

    #[must_use]
    pub fn credentials_of(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.lab.client.clone(), namespace, &kind("EphemeralCredential"))
    }

    #[must_use]
    pub fn connections(&self) -> Api<DynamicObject> {
        Api::all_with(self.lab.client.clone(), &kind("ChittyConnection"))
    }

    /// What is there of a kind in the controller's namespace.
    #[must_use]
    pub fn of_system<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.lab.client.clone(), &self.system)
    }

    /// What is there of a kind where credentials are wanted.
    #[must_use]
    pub fn of_team<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        self.of(&self.team)
    }

    /// What is there of a kind in a namespace.
    #[must_use]
    pub fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.lab.client.clone(), namespace)
    }

    /// As if it had just been installed.
    async fn clear(&self) -> anyhow::Result<()> {
        let (now, all) = (DeleteParams::default(), ListParams::default());
        let own = ListParams::default().fields(&format!("metadata.name!={ROOT_CA}"));
        match self.connections().delete(&self.connection, &now).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            done => drop(done?),
        }
        let at_once = DeleteParams::default().grace_period(0);
        self.of_team::<Pod>().delete_collection(&at_once, &all).await?;
        for namespace in [&self.team, &self.guests] {
            self.credentials_of(namespace).delete_collection(&now, &all).await?;
            self.of::<Secret>(namespace).delete_collection(&now, &all).await?;
            self.of::<Event>(namespace).delete_collection(&now, &all).await?;
        }
        self.of_system::<ConfigMap>().delete_collection(&now, &own).await?;
        self.of_system::<Secret>().delete_collection(&now, &all).await?;
        self.of_system::<Lease>().delete_collection(&now, &all).await?;
        let began = Instant::now();
        while !self.credentials().list_metadata(&all).await?.items.is_empty() {
            ensure!(began.elapsed() < PATIENCE, "credentials of {} do not go", self.team);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Clears it and sets up what a run happens in; no controller is started.
    pub async fn scene(self: &Arc<Self>, broker: ChittyConnect) -> anyhow::Result<Scene> {
        self.clear().await?;
        let gate = Gate::default();
        let chronicle = Chronicle::start()?;
        let plain = reqwest::Client::builder()
            .tls_certs_only([])
            .pool_max_idle_per_host(0)
            .no_proxy()
            .build()?;
        let proxy = |peer, url, client, tls| FaultProxy::start(Upstream { peer, url, client }, gate.clone(), tls);
        let api_url = self.lab.plane.url();
        let api = proxy(Peer::ApiServer, api_url, self.upstream.clone(), Some(self.tls.clone())).await?;
        let broker_proxy = proxy(Peer::Connect, broker.url(), plain.clone(), None).await?;
        let chronicle_proxy = proxy(Peer::Chronicle, chronicle.url(), plain, None).await?;
        let kubeconfig = self.dir.join("kubeconfig");
        let log = self.dir.join("controller.log");
        let ca = BASE64.encode(self.lab.plane.ca_pem().as_bytes());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{}", api.authority()), "certificate-authority-data": ca,
            }}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        fs::write(&kubeconfig, config.to_string())?;
        fs::write(&log, "")?;
        let scene = Scene {
            install: Arc::clone(self),
            gate,
            broker,
            chronicle,
            broker_proxy,
            chronicle_proxy,
            _api_proxy: api,
            kubeconfig,
            log,
        };
        let (key, token) = (scene.broker.api_key(), scene.chronicle.token());
        scene
            .write_key("key", "api-key", key, &scene.broker_proxy.authority())
            .await?;
        scene
            .write_key("chronicle", "token", token, &scene.chronicle_proxy.authority())
            .await?;
        Ok(scene)
    }
}

impl Scene {
    async fn write_key(&self, name: &str, key: &str, value: &str, host: &str) -> anyhow::Result<()> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "annotations": {"connect.chitty.cc/host": host}},
            "stringData": {key: value},
        });
        let params = PatchParams::apply("perturb").force();
        self.install
            .of_system::<Secret>()
            .patch(name, &params, &Patch::Apply(&secret))
            .await?;
        Ok(())
    }

    /// Writes the connection, with these rules.
    pub async fn connect(&self, spec: &Value) -> anyhow::Result<()> {
        self.connect_as(&self.install.connection, spec).await
    }

    pub(super) async fn connect_as(&self, name: &str, spec: &Value) -> anyhow::Result<()> {
        let mut all = json!({
            "url": format!("http://{}", self.broker_proxy.authority()),
            "allowInsecure": true,
            "auth": {"apiKeySecretRef": {"name": "key", "key": "api-key"}},
            "timeout": "1s",
            "audit": {"chronicle": {
                "url": format!("http://{}", self.chronicle_proxy.authority()),
                "tokenSecretRef": {"name": "chronicle", "key": "token"},
            }},
        });
        if let (Value::Object(all), Value::Object(spec)) = (&mut all, spec) {
            all.extend(spec.clone());
        }
        let object = json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "ChittyConnection",
            "metadata": {"name": name}, "spec": all,
        });
        let params = PatchParams::apply("perturb").force();
        self.install
            .connections()
            .patch(name, &params, &Patch::Apply(&object))
            .await?;
        Ok(())
    }

    /// Writes a credential.
    pub async fn apply(&self, name: &str, spec: &Value) -> anyhow::Result<()> {
        self.apply_in(&self.install.team, name, spec).await
    }

    pub async fn apply_in(&self, namespace: &str, name: &str, spec: &Value) -> anyhow::Result<()> {
        let object = json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
            "metadata": {"name": name}, "spec": spec,
        });
        let params = PatchParams::apply("perturb").force();
        self.install
            .credentials_of(namespace)
            .patch(name, &params, &Patch::Apply(&object))
            .await?;
        Ok(())
    }

    /// A Pod that reads a Secret as a volume, bound to a node.
    pub async fn mount(&self, name: &str, secret: &str) -> anyhow::Result<()> {
        let pods = self.install.of_team::<Pod>();
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "automountServiceAccountToken": false, "schedulerName": NODE,
                "containers": [{"name": "c", "image": "none", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                "volumes": [{"name": "v", "secret": {"secretName": secret}}],
            },
        }))?;
        pods.create(&PostParams::default(), &pod).await?;
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        });
        let _: Value = pods
            .create_subresource("binding", name, &PostParams::default(), &binding)
            .await?;
        Ok(())
    }

    /// Starts a controller.
    pub fn spawn(&self, identity: &str, environment: &[String]) -> anyhow::Result<Process> {
        let any = SocketAddr::new(crate::loopback(), 0);
        let own = [
            format!("KUBECONFIG={}", self.kubeconfig.display()),
            format!("METRICS_ADDR={any}"),
            format!("HEALTH_ADDR={any}"),
            format!("WATCH_NAMESPACES={},{}", self.install.team, self.install.guests),
            format!("CONNECTIONS={},{}", self.install.connection, self.install.deploys()),
            format!("POD_NAMESPACE={}", self.install.system),
            format!("POD_NAME={identity}"),
            "LOG_FORMAT=text".to_owned(),
            "RUST_LOG=info,chittyconnect_operator=trace".to_owned(),
            "TOKIO_WORKER_THREADS=2".to_owned(),
        ];
        let program = [self.install.lab.program.display().to_string()];
        let arguments = [own.as_slice(), environment, program.as_slice()].concat();
        Process::spawn(Path::new("/usr/bin/env"), &arguments, &self.log)
    }

    /// A file beside that log.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.install.dir.join(name)
    }

    /// What the controllers of this run logged.
    #[must_use]
    pub fn logged(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until `holds`.
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let began = Instant::now();
        while !holds().await? {
            if began.elapsed() > PATIENCE {
                let log = self.logged();
                let from = log.len().saturating_sub(SHOWN);
                let tail = log.get(from..).unwrap_or_default();
                bail!("waited in vain for {what}; the log ends so:\n{tail}");
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        Ok(())
    }
}
