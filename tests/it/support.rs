//! The world tests run in.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chittyconnect_operator::api::{ChittyConnection, EphemeralCredential};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use testbed::chittyconnect::{Builder, Scope};
use testbed::process::Process;
use testbed::{Binaries, ChittyConnect, Chronicle, ControlPlane, Options, Tool};
use tokio::sync::OnceCell;

/// The controller's namespace.
pub const SYSTEM: &str = "chittyconnect-system";
/// How long anything may take that has no deadline of its own.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many cases began in a world with Roles alone: each has a namespace of its own.
static CASES: AtomicUsize = AtomicUsize::new(0);
static SHARED: OnceCell<Arc<World>> = OnceCell::const_new();

/// A control plane with the CRDs, and a controller.
pub struct World {
    pub plane: ControlPlane,
    controller: Mutex<Option<Process>>,
    dir: PathBuf,
    identity: String,
    /// What of the cluster the installation serves; all of it where nothing is said.
    reach: Reach,
}

/// What the chart's `scope` says.
#[derive(Clone, Default)]
pub struct Reach {
    pub namespaces: &'static [&'static str],
    pub connections: &'static [&'static str],
    pub unread: bool,
    /// More values.
    pub more: &'static [&'static str],
}

impl Reach {
    /// Of the world that tests share: all of the cluster, or with `TEST_WITH_ROLES` set a namespace for each test, and
    /// no rights elsewhere.
    fn shared() -> Self {
        if std::env::var_os("TEST_WITH_ROLES").is_none() {
            return Self::default();
        }
        let names: Vec<&str> = (0..40).map(|n| &*format!("test-{n}").leak()).collect();
        let names = names.leak();
        Self {
            namespaces: names,
            connections: names,
            ..Self::default()
        }
    }

    fn values(&self) -> Vec<String> {
        let list = |name: &str, items: &[&str]| format!("--set=scope.{name}={{{}}}", items.join(","));
        let mut values = Vec::new();
        if !self.namespaces.is_empty() {
            values.push(list("namespaces", self.namespaces));
            values.push(list("connections", self.connections));
            values.push(format!("--set=scope.readNamespaces={}", !self.unread));
        }
        values
    }

    fn environment(&self) -> [String; 2] {
        [
            format!("WATCH_NAMESPACES={}", self.namespaces.join(",")),
            format!("CONNECTIONS={}", self.connections.join(",")),
        ]
    }
}

impl World {
    /// The one that tests share.
    pub async fn shared() -> Arc<Self> {
        SHARED
            .get_or_init(|| async {
                let world = Self::of_reach("shared", Reach::shared()).await;
                world.start_controller();
                world
            })
            .await
            .clone()
    }

    /// One of its own, with a running controller.
    pub async fn start(name: &str) -> Arc<Self> {
        let world = Self::without_controller(name).await;
        world.start_controller();
        world
    }

    /// One of its own, without a controller.
    pub async fn without_controller(name: &str) -> Arc<Self> {
        Self::of_reach(name, Reach::default()).await
    }

    /// One of its own, without a controller, whose installation serves a part of it.
    pub async fn of_reach(name: &str, reach: Reach) -> Arc<Self> {
        Self::of_options(name, Options::default(), reach).await
    }

    /// The same, on a control plane that is not as usual.
    pub async fn of_options(name: &str, options: Options, reach: Reach) -> Arc<Self> {
        testbed::install_crypto_provider();
        let plane = ControlPlane::start(options).await.expect("a control plane");
        let dir = plane.kubeconfig().parent().expect("a directory").to_path_buf();
        let world = Arc::new(Self {
            plane,
            controller: Mutex::new(None),
            dir,
            identity: format!("test-{name}"),
            reach,
        });
        world.install().await;
        world
    }

    async fn install(&self) {
        let client = self.client().await;
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for (_, yaml) in chittyconnect_operator::api::crd_files().unwrap() {
            let crd: CustomResourceDefinition = serde_yaml::from_str(&yaml).unwrap();
            crds.create(&PostParams::default(), &crd).await.unwrap();
        }
        wait_for("the CRDs to be established", || async {
            let list = crds.list(&ListParams::default()).await.ok()?;
            let established = |c: &CustomResourceDefinition| {
                let conditions = c.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
                conditions
                    .iter()
                    .any(|c| c.type_ == "Established" && c.status == "True")
            };
            (list.items.len() >= 2 && list.items.iter().all(established)).then_some(())
        })
        .await;
        // It learns of new kinds slowly; restarted it knows them at once.
        self.plane.restart_controller_manager().unwrap();
        create_namespace(&client, SYSTEM, &json!({})).await;
        for namespace in self.reach.namespaces {
            create_namespace(&client, namespace, &json!({"purpose": "test"})).await;
        }
        self.grant(self.reach.more);
    }

    /// The chart's service account, RBAC and admission policy: the controller runs under exactly these.
    pub fn grant(&self, more: &[&str]) {
        let binaries = Binaries::find_or_build(&[Tool::Helm], |_| {}).expect("helm");
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/chittyconnect-operator");
        let rendered = Command::new(binaries.path(Tool::Helm).unwrap())
            .args(["template", "chittyconnect-operator"])
            .arg(chart)
            .args([
                "--namespace",
                SYSTEM,
                "--set",
                "crds.enabled=false",
                "--kube-version",
                "1.35.0",
            ])
            .args(self.reach.values())
            .args(more)
            .args(
                [
                    "templates/serviceaccount.yaml",
                    "templates/rbac.yaml",
                    "templates/rbac-users.yaml",
                    "templates/admission.yaml",
                ]
                .map(|t| format!("--show-only={t}")),
            )
            .output()
            .unwrap();
        assert!(
            rendered.status.success(),
            "{}",
            String::from_utf8_lossy(&rendered.stderr)
        );
        self.kubectl(&["apply", "-f", "-"], &String::from_utf8(rendered.stdout).unwrap());
    }

    /// Runs kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str], input: &str) {
        let mut child = self
            .plane
            .kubectl()
            .unwrap()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "kubectl {arguments:?}");
    }

    /// The controller's own identity, as in a Pod: it has what the chart grants and no more.
    pub fn controller_kubeconfig(&self) -> PathBuf {
        let user = format!("system:serviceaccount:{SYSTEM}:chittyconnect-operator");
        let group = format!("system:serviceaccounts:{SYSTEM}");
        self.plane
            .kubeconfig_as(&user, &["system:serviceaccounts", &group])
            .unwrap()
    }

    pub async fn client(&self) -> Client {
        self.plane.client().await.expect("a client")
    }

    /// Starts the controller; panics if it runs.
    pub fn start_controller(&self) {
        let mut controller = self.controller.lock().unwrap();
        assert!(controller.is_none(), "the controller runs already");
        *controller = Some(self.spawn_controller(&self.identity, &self.controller_kubeconfig()));
    }

    /// A controller beside the one that [`World::start_controller`] started.
    pub fn spawn_controller(&self, identity: &str, kubeconfig: &Path) -> Process {
        self.spawn_with(&[], identity, kubeconfig)
    }

    /// The same, with more environment variables.
    pub fn spawn_with(&self, environment: &[String], identity: &str, kubeconfig: &Path) -> Process {
        let arguments = [
            format!("KUBECONFIG={}", kubeconfig.display()),
            env!("CARGO_BIN_EXE_chittyconnect-operator").to_owned(),
            "--identity".to_owned(),
            identity.to_owned(),
            "--namespace".to_owned(),
            SYSTEM.to_owned(),
            "--log".to_owned(),
            "trace,h2=info,rustls=info".to_owned(),
        ];
        let any = SocketAddr::new(testbed::loopback(), 0);
        let defaults = [format!("METRICS_ADDR={any}"), format!("HEALTH_ADDR={any}")];
        let arguments = [&defaults, &self.reach.environment(), environment, &arguments].concat();
        Process::spawn(Path::new("/usr/bin/env"), &arguments, &self.log_file()).expect("the controller")
    }

    /// SIGKILL.
    pub fn kill_controller(&self) {
        drop(self.controller.lock().unwrap().take());
    }

    /// What the controller has resident, in KiB.
    pub fn controller_memory(&self) -> u64 {
        let pid = self.controller.lock().unwrap().as_ref().expect("a controller").pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("a Linux");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// How many Secrets were read one by one so far, by whomever.
    pub async fn secrets_read(&self) -> u64 {
        let labels = ["resource=\"secrets\"", "verb=\"GET\""];
        self.requests(|line| labels.iter().all(|l| line.contains(l))).await
    }

    /// How many requests the API server counted so far under labels that `which` picks.
    pub async fn requests(&self, which: impl Fn(&str) -> bool) -> u64 {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let metrics = self.client().await.request_text(request).await.unwrap();
        let picked = |line: &&str| line.starts_with("apiserver_request_total{") && which(line);
        let counts = metrics.lines().filter(picked).filter_map(|l| l.rsplit_once(' '));
        counts.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
    }

    /// How many watches of a resource go on.
    pub async fn watches_of(&self, resource: &str) -> u64 {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let metrics = self.client().await.request_text(request).await.unwrap();
        let labels = [format!("resource=\"{resource}\""), "verb=\"WATCH\"".to_owned()];
        let counts = metrics
            .lines()
            .filter(|l| {
                l.starts_with("apiserver_longrunning_requests{") && labels.iter().all(|label| l.contains(label))
            })
            .filter_map(|l| l.rsplit_once(' '));
        counts.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
    }

    /// A file that goes with this world.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn log_file(&self) -> PathBuf {
        self.file("controller.log")
    }

    /// The end of what was logged about a namespace.
    pub fn log_of(&self, namespace: &str) -> String {
        let log = self.log();
        let lines: Vec<&str> = log
            .lines()
            .filter(|l| l.contains(namespace) && !l.contains("kube_client::client"))
            .collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Everything the controllers of this world ever logged, at the most talkative level.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

/// One test: a namespace, a broker and a connection of its own.
pub struct Case {
    pub world: Arc<World>,
    pub client: Client,
    pub namespace: String,
    pub connection: String,
    pub broker: ChittyConnect,
}

/// What a test that fails leaves to understand it by; the whole log where `TEST_LOGS` names a directory for it.
impl Drop for Case {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("log:\n{}", self.world.log_of(&self.namespace));
        if let Some(directory) = std::env::var_os("TEST_LOGS") {
            let kept = Path::new(&directory).join(format!("{}.log", self.namespace));
            if let Err(error) = std::fs::write(&kept, self.world.log()) {
                eprintln!("failed to keep {}: {error}", kept.display());
            }
        }
    }
}

/// What a test may set before its connection is made.
pub struct Setup {
    pub world: Arc<World>,
    pub broker: ChittyConnect,
    pub spec: Value,
}

impl Setup {
    /// In the shared world, with a broker that has no limits.
    pub async fn new(builder: Builder) -> Self {
        Self::within(World::shared().await, builder)
    }

    pub fn within(world: Arc<World>, builder: Builder) -> Self {
        let broker = builder.start().expect("a broker");
        Self {
            world,
            broker,
            spec: json!({}),
        }
    }

    /// Merged over the spec of the connection.
    pub fn connection(mut self, spec: Value) -> Self {
        self.spec = spec;
        self
    }

    pub async fn case(self) -> Case {
        let served = self.world.reach.namespaces;
        if !served.is_empty() {
            let id = served
                .get(CASES.fetch_add(1, Relaxed))
                .expect("a namespace for each test");
            return self.case_in((*id).to_owned()).await;
        }
        let client = self.world.client().await;
        let id = format!("t{:08x}", rand::random::<u32>());
        create_namespace(&client, &id, &json!({"purpose": "test"})).await;
        self.case_in(id).await
    }

    /// In a namespace that is there, by a connection of its name.
    pub async fn case_in(self, id: String) -> Case {
        let client = self.world.client().await;
        let case = Case {
            world: self.world,
            client,
            namespace: id.clone(),
            connection: id,
            broker: self.broker,
        };
        case.write_key(case.broker.api_key()).await;
        case.connect(self.spec).await;
        case
    }
}

/// A broker whose limits stay out of the way.
pub fn generous() -> Builder {
    ChittyConnect::builder().ttl(Duration::from_secs(3600)).without_limits()
}

impl Case {
    /// In the shared world.
    pub async fn new() -> Self {
        Setup::new(generous()).await.case().await
    }

    /// In the shared world, with tokens that live so long.
    pub async fn with_ttl(ttl: Duration) -> Self {
        Setup::new(generous().ttl(ttl)).await.case().await
    }

    pub fn credentials(&self) -> Api<EphemeralCredential> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn connections(&self) -> Api<ChittyConnection> {
        Api::all(self.client.clone())
    }

    pub fn keys(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), SYSTEM)
    }

    /// Writes this case's API key.
    pub async fn write_key(&self, key: &str) {
        let host = self.broker.authority();
        apply(
            &self.keys(),
            &json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": self.connection, "annotations": {"connect.chitty.cc/host": host}},
                "stringData": {"api-key": key},
            }),
        )
        .await;
    }

    /// Writes this case's connection: everything allowed in its namespace, `over` merged over that.
    pub async fn connect(&self, over: Value) {
        let mut spec = json!({
            "url": self.broker.url(),
            "allowInsecure": self.broker.url().starts_with("http://"),
            "auth": {"apiKeySecretRef": {"name": self.connection, "key": "api-key"}},
            "timeout": "2s",
            "rateLimit": {"limit": 10000, "window": "1h"},
            "access": [{"namespaces": [self.namespace], "services": ["*"], "purposes": ["*"], "repos": ["*"]}],
        });
        merge(&mut spec, over);
        apply(
            &self.connections(),
            &json!({
                "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "ChittyConnection",
                "metadata": {"name": self.connection}, "spec": spec,
            }),
        )
        .await;
    }

    /// Changes this case's connection, and waits until the controller goes by it.
    pub async fn patch_connection(&self, patch: Value) {
        self.connections()
            .patch(&self.connection, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        self.until_connection_seen().await;
    }

    /// As [`Case::connect`], and waits until the controller goes by it.
    pub async fn connect_seen(&self, over: Value) {
        self.connect(over).await;
        self.until_connection_seen().await;
    }

    async fn until_connection_seen(&self) {
        wait_for("the controller to see the connection", || async {
            let connection = self.connections().get(&self.connection).await.ok()?;
            let seen = connection.status?.observed_generation;
            (seen == connection.metadata.generation).then_some(())
        })
        .await;
    }

    /// Waits until the connection's `Ready` is so.
    pub async fn until_connection_is(&self, status: &str, reason: &str) {
        wait_for("the connection's Ready", || async {
            let connection = self.connections().get(&self.connection).await.ok()?;
            let conditions = connection.status?.conditions;
            let ready = conditions.iter().find(|c| c.type_ == "Ready")?;
            (ready.status == status && ready.reason == reason).then_some(())
        })
        .await;
    }

    /// A credential of this case, `over` merged over its spec.
    pub fn manifest(&self, name: &str, over: Value) -> Value {
        let mut spec = json!({
            "connection": self.connection,
            "service": "chittyid",
            "purpose": "worker-deploy",
            "repo": "CHITTYOS/chittyid",
        });
        merge(&mut spec, over);
        json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
        })
    }

    pub async fn apply(&self, name: &str, over: Value) -> EphemeralCredential {
        apply(&self.credentials(), &self.manifest(name, over)).await
    }

    /// Applied, and ready.
    pub async fn issued(&self, name: &str, over: Value) -> EphemeralCredential {
        self.apply(name, over).await;
        self.until(name, |c| condition(c, "Ready").0 == "True").await
    }

    /// Waits until `holds` of the credential.
    pub async fn until(&self, name: &str, holds: impl Fn(&EphemeralCredential) -> bool) -> EphemeralCredential {
        let api = self.credentials();
        let started = Instant::now();
        loop {
            let now = api.get_opt(name).await.unwrap();
            if let Some(credential) = now.as_ref().filter(|c| holds(c)) {
                return credential.clone();
            }
            assert!(
                started.elapsed() < PATIENCE,
                "waited in vain for {name}; it is {:#?}\nposts: {:#?}",
                now.and_then(|c| c.status),
                self.broker.ledger().posts,
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until that many tokens were published.
    pub async fn until_revision(&self, name: &str, revision: u64) -> EphemeralCredential {
        self.until(name, |c| c.status.as_ref().and_then(|s| s.revision) == Some(revision))
            .await
    }

    /// Sets the rotate annotation.
    pub async fn rotate(&self, name: &str, value: &str) {
        self.patch(
            name,
            json!({"metadata": {"annotations": {"connect.chitty.cc/rotate": value}}}),
        )
        .await;
    }

    /// Waits until Ready has this status and reason, for the current spec.
    pub async fn until_ready_is(&self, name: &str, status: &str, reason: &str) -> EphemeralCredential {
        self.until(name, |c| {
            let (is, why, _) = condition(c, "Ready");
            let observed = c.status.as_ref().and_then(|s| s.observed_generation);
            is == status && why == reason && observed == c.metadata.generation
        })
        .await
    }

    /// Waits until any credential of this case is not ready for that reason.
    pub async fn until_any(&self, reason: &str) -> EphemeralCredential {
        wait_for(reason, || async {
            let all = self.credentials().list(&ListParams::default()).await.ok()?;
            all.items.into_iter().find(|c| {
                let (status, why, _) = condition(c, "Ready");
                status == "False" && why == reason
            })
        })
        .await
    }

    pub async fn patch(&self, name: &str, patch: Value) {
        self.credentials()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    pub async fn delete(&self, name: &str) {
        self.credentials().delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub async fn secret(&self, name: &str) -> Option<Secret> {
        self.secrets().get_opt(name).await.unwrap()
    }

    /// The value of one key, as text.
    pub async fn value(&self, secret: &str, key: &str) -> Option<String> {
        let secret = self.secret(secret).await?;
        secret.data?.get(key).map(|v| String::from_utf8(v.0.clone()).unwrap())
    }

    pub fn posts(&self) -> usize {
        self.broker.ledger().posts()
    }

    /// Waits until no reconcile could still be on its way: an unrelated credential is issued and gone.
    pub async fn settle(&self) {
        self.settle_as(json!({})).await;
    }

    /// The same, with what such a credential needs besides.
    pub async fn settle_as(&self, over: Value) {
        // Two full rounds of the controller over this namespace: whatever was due has been done.
        let probe = format!("probe-{:08x}", rand::random::<u32>());
        let mut spec = json!({"service": "probe"});
        merge(&mut spec, over);
        self.issued(&probe, spec).await;
        self.delete(&probe).await;
        wait_for("the probe's Secret to go", || async {
            self.secret(&probe).await.is_none().then_some(())
        })
        .await;
    }

    /// As [`Case::settle`], with a purpose of its own.
    pub async fn settle_with(&self, purpose: &str) {
        let probe = format!("probe-{:08x}", rand::random::<u32>());
        self.issued(&probe, json!({"service": "probe", "purpose": purpose}))
            .await;
    }

    /// Has the API server hold every Secret that is written in this namespace against a validation, from some moment on.
    pub fn judge_secrets(&self, validation: &str) {
        let name = &self.namespace;
        let policy = format!(
            r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: {name}}}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}
    resourceRules: [{{apiGroups: [""], apiVersions: [v1], operations: [UPDATE, CREATE], resources: [secrets]}}]
  validations: [{validation}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: {name}}}
spec: {{policyName: {name}, validationActions: [Deny]}}
"#
        );
        self.world.kubectl(&["apply", "-f", "-"], &policy);
    }

    /// From now on the API server takes every dry run of a Secret of this namespace and refuses the
    /// write itself, in words that repeat what was to be written.
    pub async fn refuse_secrets(&self) {
        self.judge_secrets(
            r#"{expression: "has(request.dryRun) && request.dryRun",
                messageExpression: "'I saw ' + string(object.data['npm_token'])"}"#,
        );
        let canary = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "canary"},
            "stringData": {"npm_token": "a-canary"},
        });
        wait_for("the policy to be in force", || async {
            let params = PatchParams::apply("tests").force();
            match self.secrets().patch("canary", &params, &Patch::Apply(&canary)).await {
                Err(kube::Error::Api(refused)) => {
                    let said = [refused.message.clone(), format!("{:?}", refused.details)].concat();
                    let repeated = said.contains("a-canary") || said.contains(&base64("a-canary"));
                    assert!(repeated, "the policy does not repeat what it refuses: {said}");
                    Some(())
                }
                _ => None,
            }
        })
        .await;
    }

    /// The API server takes Secrets of this namespace again.
    pub fn take_secrets(&self) {
        let name = &self.namespace;
        self.world.kubectl(
            &[
                "delete",
                "validatingadmissionpolicybinding,validatingadmissionpolicy",
                name,
            ],
            "",
        );
    }

    /// Lets this case's key go to another host.
    pub async fn write_key_for(&self, host: &str) {
        let annotate = json!({"metadata": {"annotations": {"connect.chitty.cc/host": host}}});
        self.keys()
            .patch(&self.connection, &PatchParams::default(), &Patch::Merge(annotate))
            .await
            .unwrap();
    }

    /// Requests for the service that tests use, leaving out what [`Case::settle`] asked for.
    pub fn posts_for(&self, service: &str) -> usize {
        self.broker.ledger().posts_for(service).len()
    }

    /// The notes of the Events about a credential, by reason.
    pub async fn events(&self, name: &str) -> Vec<(String, String)> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let all = api.list(&ListParams::default()).await.unwrap();
        all.items
            .into_iter()
            .filter(|e| e.involved_object.name.as_deref() == Some(name))
            .map(|e| (e.reason.unwrap_or_default(), e.message.unwrap_or_default()))
            .collect()
    }

    /// What the journal of the service that tests use says, all its parts together.
    pub async fn journal_facts(&self) -> JournalFacts {
        let parts = self.journal_parts("chittyid").await;
        assert!(!parts.is_empty(), "no journal");
        let mut facts = JournalFacts::default();
        for part in parts {
            let value: Value = serde_json::from_str(&part.data.unwrap()["journal.json"]).unwrap();
            let attempts = value["attempts"].as_array().into_iter().flatten();
            facts.sent += attempts.map(|a| a["c"].as_u64().unwrap_or(1)).sum::<u64>();
            facts.sent += value["claims"].as_object().map_or(0, |claims| claims.len() as u64);
            for (uid, slot) in value["slots"].as_object().into_iter().flatten() {
                facts.events += slot["events"].as_array().map_or(0, Vec::len);
                if slot["record"].is_object() {
                    facts.uids.push(uid.clone());
                }
            }
        }
        facts
    }

    /// The head of the journal of a service.
    pub async fn journal(&self, service: &str) -> Option<ConfigMap> {
        let parts = self.journal_parts(service).await;
        parts.into_iter().find(|m| {
            m.labels()
                .get("connect.chitty.cc/journal")
                .is_some_and(|part| part == "head")
        })
    }

    /// Head and pages of the journal of a service.
    pub async fn journal_parts(&self, service: &str) -> Vec<ConfigMap> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
        let all = api
            .list(&ListParams::default().labels("connect.chitty.cc/journal"))
            .await
            .unwrap();
        let title = format!("{service} at {}", self.broker.url());
        all.items
            .into_iter()
            .filter(|m| m.annotations().get("connect.chitty.cc/budget-of") == Some(&title))
            .collect()
    }
}

/// What a journal holds, as it is stored.
#[derive(Debug, Default)]
pub struct JournalFacts {
    /// Requests that count.
    pub sent: u64,
    /// Undelivered audit events.
    pub events: usize,
    /// Uids with a record.
    pub uids: Vec<String>,
}

/// As Secrets hold it, without padding.
pub fn base64(text: &str) -> String {
    data_encoding::BASE64_NOPAD.encode(text.as_bytes())
}

/// Twelve credentials of one service, for eight requests in twelve seconds.
pub struct Storm {
    case: Case,
    window: Duration,
}

impl Storm {
    /// With a broker that counts in `window`.
    pub async fn within(world: Arc<World>, window: Duration) -> Self {
        let builder = generous().ttl(Duration::from_secs(18)).limit(8, window, Scope::Service);
        let case = Setup::within(world, builder)
            .connection(json!({"rateLimit": {"limit": 8, "window": "12s"}}))
            .case()
            .await;
        for i in 0..12 {
            case.apply(&format!("c{i:02}"), json!({})).await;
        }
        Self { case, window }
    }

    /// Whatever happened: the limit was kept, at least so many were minted, and every Secret's token lives.
    pub async fn assert_weathered(&self, mints: usize) {
        let (ledger, now) = (self.case.broker.ledger(), self.case.broker.now());
        let most = ledger.max_posts_in_any_window(self.window, Scope::Service);
        assert!(most <= 8, "{most} requests in a window");
        let refused = ledger.posts.iter().filter(|p| p.status == Some(429)).count();
        assert_eq!(refused, 0, "the broker had to refuse");
        assert!(ledger.mints.len() >= mints, "only {} were minted", ledger.mints.len());
        let secrets = self.case.secrets().list(&ListParams::default()).await.unwrap();
        let held = secrets.items.iter().filter_map(|s| {
            let token = &s.data.as_ref()?.get("npm_token")?.0;
            // What was minted after the ledger was read is live.
            Some(ledger.mint_of(std::str::from_utf8(token).ok()?)?.is_live(now))
        });
        let held: Vec<bool> = held.collect();
        assert!(!held.is_empty() && held.iter().all(|live| *live), "{held:?}");
    }
}

pub async fn create_namespace(client: &Client, name: &str, labels: &Value) {
    let api: Api<Namespace> = Api::all(client.clone());
    apply(
        &api,
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
    )
    .await;
}

pub async fn apply<K>(api: &Api<K>, manifest: &Value) -> K
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let name = manifest["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("tests").force();
    api.patch(name, &params, &Patch::Apply(manifest)).await.unwrap()
}

/// Status, reason and message of a condition; empty where it is not there.
pub fn condition(credential: &EphemeralCredential, kind: &str) -> (String, String, String) {
    credential
        .status
        .as_ref()
        .and_then(|s| s.conditions.iter().find(|c| c.type_ == kind))
        .map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()))
        .unwrap_or_default()
}

/// Asks until there is an answer.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, over) => *base = over,
    }
}

/// A ChittyChronicle, and the connection field that sends events to it.
pub async fn chronicle(case: &Case) -> (Chronicle, Value) {
    let chronicle = Chronicle::start().unwrap();
    let field = events_to(case, &chronicle).await;
    (chronicle, field)
}

/// The connection field that sends events to `chronicle`, with a token in a Secret that is bound to it.
pub async fn events_to(case: &Case, chronicle: &Chronicle) -> Value {
    let name = format!("{}-chronicle", case.connection);
    let url = chronicle.url();
    let (_, host) = url.split_once("://").unwrap();
    apply(
        &case.keys(),
        &json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "annotations": {"connect.chitty.cc/host": host}},
            "stringData": {"token": chronicle.token()},
        }),
    )
    .await;
    json!({"audit": {"chronicle": {"url": url, "tokenSecretRef": {"name": name, "key": "token"}}}})
}
