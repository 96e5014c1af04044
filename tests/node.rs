//! The whole of it on a real node: image, `helm install`, CI jobs that mount Secrets, rotation, upgrade, a
//! killed leader, uninstall. One story, because its parts take each other's ends as their beginnings.

#[path = "node/on_demand.rs"]
mod on_demand;
#[path = "chart/support.rs"]
#[allow(dead_code, reason = "shared with the chart's tests")]
mod support;

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use testbed::image::Image;
use testbed::node::{Node, Plan, traces};
use testbed::{ChittyConnect, ControlPlane, Proxy};

use support::{Cluster, RELEASE, SYSTEM, notes, read, repository, succeed, wait_for};

/// As a container runtime names what chart and examples call by their short names.
const OPERATOR: &str = concat!("docker.io/library/chittyconnect-operator:", env!("CARGO_PKG_VERSION"));
const BUSYBOX: &str = "docker.io/library/busybox:1.36";
const MEGABYTE: u64 = 1_000_000;

/// The program as the image has it: for release, and without a loader.
fn program() -> PathBuf {
    let target = if cfg!(target_arch = "aarch64") {
        "aarch64-unknown-linux-gnu"
    } else {
        "x86_64-unknown-linux-gnu"
    };
    // <target>/debug/deps/node-...
    let this = std::env::current_exe().unwrap();
    let dir = this.ancestors().nth(3).unwrap();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--bin",
            "chittyconnect-operator",
            "--target",
            target,
        ])
        .arg("--target-dir")
        .arg(dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    succeed(&mut build);
    dir.join(target).join("release/chittyconnect-operator")
}

#[test]
#[ignore = "builds for release: .ci/node"]
fn the_image_holds_the_program_and_certificates_in_less_than_15_megabytes() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::of_operator(OPERATOR, &program()).unwrap();
    let size = image.write(&dir.path().join("image.tar")).unwrap().unpacked;
    println!("the image has {size} bytes");
    assert!(size < 15 * MEGABYTE, "{size} bytes");
}

/// Something a token is good for: answers 200 to every token that is live, and remembers which those were.
struct Service {
    url: String,
    taken: Arc<Mutex<HashSet<String>>>,
}

impl Service {
    fn start(at: Ipv4Addr, broker: Arc<ChittyConnect>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let url = format!("http://{at}:{}", listener.local_addr().unwrap().port());
        let taken = Arc::<Mutex<HashSet<String>>>::default();
        let seen = Arc::clone(&taken);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that leaves in the middle has not used its token.
                let _ = answer(&stream, &broker, &seen);
            }
        });
        Self { url, taken }
    }

    fn took(&self, token: &str) -> bool {
        self.taken.lock().unwrap().contains(token)
    }
}

fn answer(mut stream: &TcpStream, broker: &ChittyConnect, seen: &Mutex<HashSet<String>>) -> std::io::Result<()> {
    let mut token = None;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("Authorization: Bearer ") {
            token = Some(value.to_owned());
        }
    }
    let token = token.unwrap_or_default();
    let live = broker
        .ledger()
        .mint_of(&token)
        .is_some_and(|mint| mint.is_live(broker.now()));
    let status = if live { "200 OK" } else { "401 Unauthorized" };
    if live {
        seen.lock().unwrap().insert(token);
    }
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

/// Everything a part of the story needs.
struct World {
    cluster: Cluster,
    node: Option<Node>,
    broker: Arc<ChittyConnect>,
    service: Service,
    connection: String,
    started: Instant,
}

impl World {
    fn start() -> Self {
        let started = Instant::now();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let plan = Plan::new().unwrap();
        let gateway = plan.gateway();
        let plane = runtime.block_on(ControlPlane::start(plan.control_plane())).unwrap();
        let node = runtime.block_on(Node::start(plan, &plane)).unwrap();
        let broker = ChittyConnect::builder()
            .bind((Ipv4Addr::UNSPECIFIED, 0))
            .tls([gateway.to_string()]);
        let broker = Arc::new(broker.start().unwrap());
        let spec = json!({
            "url": broker.url(),
            "caBundleRef": {"name": "private-ca", "key": "ca.crt"},
            "access": [{"namespaces": ["runners-*"], "services": ["*"], "purposes": ["worker-deploy"], "repos": ["*"]}],
        });
        let world = Self {
            service: Service::start(gateway, Arc::clone(&broker)),
            cluster: Cluster::around(plane),
            node: Some(node),
            broker,
            connection: spec.to_string(),
            started,
        };
        world.tell("the node is ready");
        world
    }

    fn tell(&self, what: &str) {
        println!("{:6.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        succeed(&mut self.cluster.kubectl(arguments))
    }

    fn import(&self, image: &Image) {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        image.write(&archive).unwrap();
        self.node.as_ref().unwrap().import(&archive).unwrap();
    }

    /// Where Pods find this machine, and the API server on it: no kube-proxy runs here.
    fn gateway(&self) -> String {
        let authority = self.service.url.trim_start_matches("http://");
        authority.split(':').next().unwrap().to_owned()
    }

    /// Where the controller finds the API server, as its environment.
    fn api_server(&self) -> String {
        let env = json!([
            {"name": "KUBERNETES_SERVICE_HOST", "value": self.gateway()},
            {"name": "KUBERNETES_SERVICE_PORT", "value": self.cluster.plane.port().to_string()},
        ]);
        env.to_string()
    }

    /// `helm install` or `helm upgrade`, and waits until every replica is ready.
    fn release(&self, verb: &str, arguments: &[&str]) -> String {
        let (env, connection) = (
            format!("--set-json=extraEnv={}", self.api_server()),
            format!("--set-json=connection.spec={}", self.connection),
        );
        let mut command = self
            .cluster
            .release(verb, &[&env, &connection, "--set=connection.create=true"]);
        succeed(command.args(["--wait", "--timeout=120s"]).args(arguments))
    }

    /// The administrator's part: the namespace, the private authority, the API key, as NOTES.txt says.
    fn install(&self) {
        self.cluster.apply(
            &json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": SYSTEM, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
            })
            .to_string(),
        );
        self.cluster.apply(
            &json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "private-ca", "namespace": SYSTEM},
                "data": {"ca.crt": self.broker.ca_pem().unwrap()},
            })
            .to_string(),
        );
        let printed = self.release("install", &[]);
        for command in &notes(&printed)[..2] {
            self.cluster.paste(command, self.broker.api_key());
        }
    }

    fn credential(&self, namespace: &str, name: &str) {
        self.cluster.apply(
            &json!({
                "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"service": name, "purpose": "worker-deploy"},
            })
            .to_string(),
        );
    }

    fn until_ready(&self, namespace: &str, name: &str) {
        let what = format!("ephemeralcredential/{name}");
        self.kubectl(&[
            "wait",
            &what,
            "--namespace",
            namespace,
            "--for=condition=Ready",
            "--timeout=60s",
        ]);
    }

    fn token(&self, namespace: &str, secret: &str) -> Option<String> {
        let secret = self.cluster.get(&["secret", secret, "--namespace", namespace])?;
        let encoded = secret["data"]["cloudflare_token"].as_str()?;
        Some(String::from_utf8(data_encoding::BASE64.decode(encoded.as_bytes()).unwrap()).unwrap())
    }

    fn until_taken(&self, token: &str) {
        wait_for("a Pod to use the token", || self.service.took(token).then_some(()));
    }

    /// What a Pod runs that uses the token of the mounted directory.
    fn call(&self) -> String {
        format!(
            "wget -q -O /dev/null --header \"Authorization: Bearer $token\" {}",
            self.service.url
        )
    }

    /// A Pod that uses every token it ever finds in its mounted Secret.
    fn user(&self, namespace: &str, name: &str, secret: &str) {
        let script = format!(
            "last=; while sleep 0.2; do token=$(cat /creds/cloudflare_token); \
             if [ \"$token\" != \"$last\" ]; then {} && last=$token; fi; done",
            self.call()
        );
        self.cluster.apply(
            &json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 0,
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 1001, "fsGroup": 1001,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "c", "image": BUSYBOX, "command": ["sh", "-euc", script],
                        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                        "volumeMounts": [{"name": "creds", "mountPath": "/creds", "readOnly": true}],
                    }],
                    "volumes": [{"name": "creds", "secret": {"secretName": secret, "defaultMode": 0o440}}],
                },
            })
            .to_string(),
        );
    }

    /// The requests that the broker saw, by service.
    fn posts(&self, service: &str) -> usize {
        self.broker.ledger().posts_for(service).len()
    }

    fn controllers(&self) -> Vec<String> {
        let selector = "app.kubernetes.io/name=chittyconnect-operator";
        let names = self.kubectl(&[
            "get",
            "pods",
            "--namespace",
            SYSTEM,
            "--selector",
            selector,
            "--output=name",
        ]);
        names.lines().map(str::to_owned).collect()
    }

    /// All Pods that run or wait, by uid and with how often each was restarted.
    fn pods(&self) -> Vec<String> {
        let columns = "--output=jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.metadata.uid} \
                       {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
        let printed = self.kubectl(&["get", "pods", "--all-namespaces", columns]);
        printed.lines().map(str::to_owned).collect()
    }

    /// Waits until other replicas run than those `before`.
    fn until_replaced(&self, before: &[String]) {
        wait_for("the old replicas to end", || {
            let now = self.controllers();
            (now.len() == 2 && !now.iter().any(|pod| before.contains(pod))).then_some(())
        });
    }

    /// The leader, as its Lease names it.
    fn leader(&self) -> String {
        wait_for("a leader", || {
            let lease = self
                .cluster
                .get(&["lease", "chittyconnect-operator", "--namespace", SYSTEM])?;
            let holder = lease["spec"]["holderIdentity"].as_str()?;
            self.controllers()
                .into_iter()
                .find(|pod| *pod == format!("pod/{holder}"))
        })
    }

    /// What the controllers log tells no token, and of no right they lack.
    fn check_logs(&self) {
        let secrets = self.broker.ledger().secret_values();
        for pod in self.controllers() {
            let log = self.kubectl(&["logs", &pod, "--namespace", SYSTEM]);
            assert!(!log.contains("forbidden"), "{log}");
            assert!(!secrets.iter().any(|secret| log.contains(secret)), "{pod} logs a token");
        }
    }

    fn uninstall(&self) {
        succeed(
            &mut self
                .cluster
                .helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout=60s"]),
        );
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [
                &["get", "pods,events,leases", "--all-namespaces", "--output=wide"][..],
                &[
                    "logs",
                    "--namespace",
                    SYSTEM,
                    "--selector=app.kubernetes.io/name=chittyconnect-operator",
                    "--prefix",
                ],
            ] {
                let output = self.cluster.kubectl(arguments).output().unwrap();
                eprintln!("{}", String::from_utf8_lossy(&output.stdout));
            }
            eprintln!("{}", self.node.as_ref().map(Node::logs).unwrap_or_default());
        }
    }
}

#[test]
#[ignore = "needs root, containerd, runc and CNI plugins: .ci/node"]
fn ci_jobs_on_a_real_node_have_live_tokens_and_nothing_mints_more_than_it_must() {
    let program = program();
    let mut world = World::start();
    world.import(&Image::of_operator(OPERATOR, &program).unwrap());
    world.import(&Image::of_busybox(BUSYBOX).unwrap());
    world.install();
    assert_eq!(world.controllers().len(), 2);
    world.tell("two replicas run, and the connection with a private authority is ready");

    a_job_uses_its_token(&world);
    a_rotation_reaches_a_running_pod(&world);
    a_pod_waits_for_its_secret(&world);
    an_upgrade_mints_nothing(&world);
    a_killed_leader_costs_nothing(&world);
    a_key_is_turned_under_running_pods(&world);
    a_second_install_is_refused(&world);
    a_proxy_is_the_only_way(&world);
    roles_are_enough(&world);
    release_first_then_namespaces(&world);
    namespaces_first_then_release(&world);

    world.node.take().unwrap().stop().unwrap();
    wait_for("everything of the node to be gone", || {
        traces().is_empty().then_some(())
    });
    world.tell("nothing is left");
}

#[test]
#[ignore = "needs root, containerd, runc and CNI plugins: .ci/node"]
fn on_demand_a_pod_has_its_token_as_soon_as_the_kubelet_asks_again() {
    let program = program();
    let mut world = World::start();
    world.import(&Image::of_operator(OPERATOR, &program).unwrap());
    world.import(&Image::of_busybox(BUSYBOX).unwrap());
    world.install();
    world.kubectl(&["create", "namespace", "runners-1"]);

    on_demand::jobs_are_served_as_they_are_scheduled(&world);
    world.check_logs();

    world.node.take().unwrap().stop().unwrap();
    wait_for("everything of the node to be gone", || {
        traces().is_empty().then_some(())
    });
}

/// The API key is turned as people turn it: the new one into its Secret, then the old one is no good any more.
fn a_key_is_turned_under_running_pods(world: &World) {
    const NEW: &str = "the-next-api-key";
    let (posts, pods) = (world.broker.ledger().posts(), world.pods());
    assert!(
        pods.iter().any(|pod| pod.starts_with("runners-1/long ")) && pods.len() > 3,
        "{pods:?}"
    );
    world.broker.add_key(NEW, "node");
    let data = format!("{{\"stringData\":{{\"api-key\":\"{NEW}\"}}}}");
    let secret = ["patch", "secret", "chittyconnect-api-key", "--namespace", SYSTEM];
    world.kubectl(&[&secret[..], &["--patch", &data]].concat());
    // Whoever still sends the old one is told 401 and stops.
    world.broker.remove_key(world.broker.api_key());
    world.credential("runners-1", "turned");
    world.until_ready("runners-1", "turned");
    assert_eq!((world.posts("turned"), world.broker.ledger().posts()), (1, posts + 1));
    assert_eq!(
        world.pods(),
        pods,
        "neither a controller nor who uses its tokens was restarted"
    );
    world.tell("the API key was turned, and no Pod restarted");
}

/// The same chart once more, in another namespace, with a name and a key of its own: as somebody does who does not know
/// of the first.
fn a_second_install_is_refused(world: &World) {
    const SECOND: &str = "second-system";
    let posts = world.broker.ledger().posts();
    let path = support::chart();
    let install = ["install", "second", path.to_str().unwrap(), "--namespace", SECOND];
    let mut with_kinds = world.cluster.helm(&install);
    let refused = support::fail(with_kinds.arg("--create-namespace"));
    assert!(refused.contains("exists and cannot be imported"), "{refused}");

    let env = format!("--set-json=extraEnv={}", world.api_server());
    let values = [
        env.as_str(),
        "--set=crds.enabled=false,replicaCount=1",
        "--wait",
        "--timeout=120s",
    ];
    let mut without = world.cluster.helm(&[&install[..], &values].concat());
    succeed(without.arg("--create-namespace"));
    // All it needs is there: nothing else keeps it from minting.
    for what in [["secret", "chittyconnect-api-key"], ["configmap", "private-ca"]] {
        let mut copy = world.cluster.get(&[what[0], what[1], "--namespace", SYSTEM]).unwrap();
        let annotations = copy["metadata"]["annotations"].take();
        copy["metadata"] = json!({"name": what[1], "namespace": SECOND, "annotations": annotations});
        world.cluster.apply(&copy.to_string());
    }
    let log = || {
        world.kubectl(&[
            "logs",
            "deployment/second-chittyconnect-operator",
            "--namespace",
            SECOND,
        ])
    };
    let why = format!("is served by the installation in namespace {SYSTEM}, so this one leaves it alone");
    wait_for("the second install to say why", || log().contains(&why).then_some(()));
    // What comes now is the first one's, and once.
    world.credential("runners-1", "contested");
    world.until_ready("runners-1", "contested");
    let log = log();
    assert!(
        log.contains("leading") && !log.contains("credential.provisioned"),
        "{log}"
    );
    assert_eq!(
        (world.posts("contested"), world.broker.ledger().posts()),
        (1, posts + 1)
    );
    let connection = world.cluster.get(&["chittyconnection", "default"]).unwrap();
    assert_eq!(connection["status"]["heldBy"]["namespace"], SYSTEM);
    succeed(
        &mut world
            .cluster
            .helm(&["uninstall", "second", "--namespace", SECOND, "--wait", "--timeout=60s"]),
    );
    world.kubectl(&["delete", "namespace", SECOND, "--timeout=60s"]);
    world.tell("a second install was refused and minted nothing");
}

/// `ChittyConnect` is where no Pod can go, and a proxy can.
fn a_proxy_is_the_only_way(world: &World) {
    const HOST: &str = "broker.test";
    let hidden = ChittyConnect::builder().tls([HOST]).start().unwrap();
    let way = (
        format!("{HOST}:443"),
        SocketAddr::from((Ipv4Addr::LOCALHOST, hidden.port())),
    );
    let gateway = world.gateway();
    let proxy = Proxy::start_on(gateway.parse().unwrap(), [way], None).unwrap();
    let (api_version, metadata) = ("connect.chitty.cc/v1alpha1", json!({"name": "hidden"}));
    for manifest in [
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "hidden", "namespace": SYSTEM, "annotations": {"connect.chitty.cc/host": HOST}},
            "stringData": {"api-key": hidden.api_key()},
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hidden-ca", "namespace": SYSTEM},
            "data": {"ca.crt": hidden.ca_pem().unwrap()},
        }),
        json!({"apiVersion": api_version, "kind": "ChittyConnection", "metadata": metadata, "spec": {
            "url": format!("https://{HOST}"),
            "auth": {"apiKeySecretRef": {"name": "hidden", "key": "api-key"}},
            "caBundleRef": {"name": "hidden-ca", "key": "ca.crt"},
            "access": [{"namespaces": ["runners-*"], "services": ["*"], "purposes": ["*"], "repos": ["*"]}],
        }}),
        json!({
            "apiVersion": api_version, "kind": "EphemeralCredential",
            "metadata": {"name": "hidden", "namespace": "runners-1"},
            "spec": {"connection": "hidden", "service": "hidden", "purpose": "worker-deploy"},
        }),
    ] {
        world.cluster.apply(&manifest.to_string());
    }
    let without = "--for=jsonpath={.status.conditions[?(@.type=='Ready')].status}=False";
    let credential = ["ephemeralcredential/hidden", "--namespace=runners-1", "--timeout=60s"];
    world.kubectl(&[&["wait", without][..], &credential].concat());
    assert_eq!(hidden.ledger().posts(), 0);

    let posts = world.broker.ledger().posts();
    let through = format!("--set=proxy.httpsProxy={},proxy.noProxy={gateway}", proxy.url());
    world.release("upgrade", &[&through]);
    world.until_ready("runners-1", "hidden");
    assert_eq!(hidden.ledger().posts(), 1);
    assert!(proxy.asked().iter().all(|asked| *asked == format!("{HOST}:443")));
    assert_eq!(world.broker.ledger().posts(), posts, "an upgrade mints nothing");
    world.kubectl(&["delete", credential[0], credential[1]]);
    world.kubectl(&["delete", "chittyconnection/hidden"]);
    world.release("upgrade", &[]);
    world.tell("a proxy was the only way to ChittyConnect");
}

/// One namespace is served, with rights there and nowhere else.
fn roles_are_enough(world: &World) {
    let (posts, pods) = (world.broker.ledger().posts(), world.controllers());
    world.release(
        "upgrade",
        &["--set=scope.namespaces={runners-1},scope.connections={default}"],
    );
    let may = |namespace: &str| {
        let account = format!("--as=system:serviceaccount:{SYSTEM}:{RELEASE}");
        let mut ask = world
            .cluster
            .kubectl(&["auth", "can-i", "get", "secrets", "--namespace", namespace, &account]);
        ask.output().unwrap().status.success()
    };
    world.until_replaced(&pods);
    assert!(may("runners-1") && !may("default") && !may("kube-system"));
    world.credential("runners-1", "scoped");
    world.until_ready("runners-1", "scoped");
    assert_eq!((world.posts("scoped"), world.broker.ledger().posts()), (1, posts + 1));
    world.check_logs();
    let scoped = world.controllers();
    world.release("upgrade", &[]);
    world.until_replaced(&scoped);
    assert!(may("default"));
    world.tell("Roles were enough, and to change to them and back minted nothing");
}

/// The example that users copy, with a deployment that can be checked.
fn a_job_uses_its_token(world: &World) {
    world.kubectl(&["create", "namespace", "runners-1"]);
    let example = read(&repository("examples/job.yaml"));
    let (step, here) = (
        "CLOUDFLARE_API_TOKEN=\"$(cat /var/run/chitty/cloudflare_token)\" ./deploy.sh",
        world.call(),
    );
    assert!(example.contains(step));
    let step_here = format!(
        "id -u; ls -lL /var/run/chitty/cloudflare_token; token=\"$(cat /var/run/chitty/cloudflare_token)\"; {here}"
    );
    let manifest = example.replace(step, &step_here);
    let mut apply = world.cluster.kubectl(&["apply", "--namespace=runners-1", "-f", "-"]);
    let output = Cluster::with_input(&mut apply, &manifest);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Both at once: the Pod waits until its Secret is there.
    world.kubectl(&[
        "wait",
        "job/chittyid-deploy",
        "--namespace=runners-1",
        "--for=condition=Complete",
        "--timeout=90s",
    ]);
    let printed = world.kubectl(&["logs", "job/chittyid-deploy", "--namespace=runners-1"]);
    assert!(
        printed.contains("tokens end at 20") && printed.contains("\n1001\n"),
        "{printed}"
    );
    // root's file, readable by the group alone.
    assert!(
        printed.contains("-r--r-----") && printed.contains(" 1001 "),
        "{printed}"
    );
    world.until_taken(&world.token("runners-1", "chittyid-deploy").unwrap());
    assert_eq!((world.posts("chittyid"), world.broker.ledger().posts()), (1, 1));
    world.tell("a Job as user 1001 used its token");
}

fn a_rotation_reaches_a_running_pod(world: &World) {
    world.user("runners-1", "long", "chittyid-deploy");
    let first = world.token("runners-1", "chittyid-deploy").unwrap();
    let rotate = |value: &str| {
        let annotation = format!("connect.chitty.cc/rotate={value}");
        let what = "ephemeralcredential/chittyid-deploy";
        world.kubectl(&["annotate", "--overwrite", what, &annotation, "--namespace=runners-1"]);
    };
    world.kubectl(&[
        "wait",
        "pod/long",
        "--namespace=runners-1",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);
    rotate("now");
    let second = wait_for("the rotation", || {
        world.token("runners-1", "chittyid-deploy").filter(|t| *t != first)
    });
    let rotated = Instant::now();
    world.until_taken(&second);
    world.tell(&format!(
        "a running Pod used the new token {:.1} s after its rotation",
        rotated.elapsed().as_secs_f64()
    ));
    let ledger = world.broker.ledger();
    // What a job has read before stays good to its own end.
    assert!(ledger.mint_of(&first).unwrap().is_live(world.broker.now()));
    assert_eq!(ledger.posts(), 2);
}

fn a_pod_waits_for_its_secret(world: &World) {
    world.user("runners-1", "early", "late");
    wait_for("the kubelet to miss the Secret", || {
        let events = world.kubectl(&["events", "--namespace=runners-1", "--for=pod/early"]);
        events.contains("secret \"late\" not found").then_some(())
    });
    world.credential("runners-1", "late");
    let token = wait_for("the Secret", || world.token("runners-1", "late"));
    let there = Instant::now();
    world.until_taken(&token);
    world.tell(&format!(
        "a waiting Pod used its token {:.1} s after its Secret came",
        there.elapsed().as_secs_f64()
    ));
    assert_eq!(world.posts("late"), 1);
}

fn an_upgrade_mints_nothing(world: &World) {
    let (before, pods) = (world.broker.ledger().posts(), world.controllers());
    let live = || ["chittyid-deploy", "late"].map(|name| world.token("runners-1", name).unwrap());
    let tokens = live();
    world.check_logs();
    world.release("upgrade", &["--set=concurrency=64,log.level=debug"]);
    world.until_replaced(&pods);
    // Something new is seen to, so everything old has been looked at.
    world.credential("runners-1", "upgraded");
    world.until_ready("runners-1", "upgraded");
    assert_eq!(
        (world.posts("upgraded"), world.broker.ledger().posts()),
        (1, before + 1)
    );
    assert_eq!(live(), tokens);
    world.tell("an upgrade to other values minted nothing");
}

fn a_killed_leader_costs_nothing(world: &World) {
    let (before, leader) = (world.broker.ledger().posts(), world.leader());
    world.check_logs();
    // It says not a word to anybody: the Lease has to run out.
    let node = world.node.as_ref().unwrap();
    node.freeze(&leader.replace("pod/", "POD_NAME=")).unwrap();
    world.kubectl(&["delete", &leader, "--namespace", SYSTEM, "--grace-period=0", "--force"]);
    let killed = Instant::now();
    world.credential("runners-1", "killed");
    world.until_ready("runners-1", "killed");
    let gap = killed.elapsed();
    assert!(gap < Duration::from_secs(45), "{gap:?}");
    assert_ne!(world.leader(), leader);
    assert_eq!((world.posts("killed"), world.broker.ledger().posts()), (1, before + 1));
    let deployment = format!("deployment/{RELEASE}");
    world.kubectl(&["rollout", "status", &deployment, "--namespace", SYSTEM, "--timeout=60s"]);
    world.tell(&format!(
        "{:.1} s after the leader was killed, a new credential was ready",
        gap.as_secs_f64()
    ));
}

fn release_first_then_namespaces(world: &World) {
    let before = world.broker.ledger().posts();
    world.check_logs();
    world.uninstall();
    // Nobody renews now, but what is there stays until the controller is back.
    assert!(world.token("runners-1", "late").is_some());
    world.kubectl(&["delete", "namespace", "runners-1", "--timeout=60s"]);
    assert_eq!(world.broker.ledger().posts(), before);
    world.tell("release, then namespace: nothing hung");
}

fn namespaces_first_then_release(world: &World) {
    world.release("install", &[]);
    world.kubectl(&["create", "namespace", "runners-2"]);
    world.credential("runners-2", "second");
    world.until_ready("runners-2", "second");
    let before = world.broker.ledger().posts();
    world.kubectl(&["delete", "namespace", "runners-2", "--timeout=60s"]);
    world.check_logs();
    world.uninstall();
    for what in [
        &[
            "delete",
            "crd",
            "ephemeralcredentials.connect.chitty.cc",
            "chittyconnections.connect.chitty.cc",
        ][..],
        &["delete", "namespace", SYSTEM],
    ] {
        succeed(world.cluster.kubectl(what).arg("--timeout=60s"));
    }
    assert_eq!((world.posts("second"), world.broker.ledger().posts()), (1, before));
    world.tell("namespace, then release: nothing hung");
}
