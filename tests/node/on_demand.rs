//! Tokens on demand, with a kubelet that waits for them.

use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::{BUSYBOX, World, wait_for};

const NAMESPACE: &str = "runners-1";
/// For how many Secrets it is measured.
const JOBS: usize = 7;

/// How a Job reads its Secret.
#[derive(Clone, Copy)]
enum Way {
    Volume,
    Env,
}

impl World {
    fn on_demand(&self, name: &str, over: &Value) {
        let mut spec = json!({"service": name, "purpose": "worker-deploy", "activation": "OnDemand"});
        spec.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
        let credential = json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
        });
        self.cluster.apply(&credential.to_string());
        self.until_idle(name);
    }

    fn until_idle(&self, name: &str) {
        let idle = "--for=jsonpath={.status.conditions[?(@.type=='Ready')].reason}=Idle";
        let what = format!("ephemeralcredential/{name}");
        self.kubectl(&["wait", &what, "--namespace", NAMESPACE, idle, "--timeout=60s"]);
    }

    /// A Job that uses the token of `secret`, and ends.
    fn job(&self, name: &str, secret: &str, way: Way) {
        let mut container = json!({
            "name": "c", "image": BUSYBOX,
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        });
        let mut spec = json!({
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1001, "fsGroup": 1001, "seccompProfile": {"type": "RuntimeDefault"},
            },
        });
        let call = self.call();
        match way {
            Way::Volume => {
                let script = format!("token=$(cat /creds/cloudflare_token); {call}; sleep 1");
                container["command"] = json!(["sh", "-euc", script]);
                container["volumeMounts"] = json!([{"name": "creds", "mountPath": "/creds", "readOnly": true}]);
                spec["volumes"] = json!([{"name": "creds", "secret": {"secretName": secret, "defaultMode": 0o440}}]);
            }
            Way::Env => {
                container["command"] = json!(["sh", "-euc", format!("token=$cloudflare_token; {call}; sleep 1")]);
                container["envFrom"] = json!([{"secretRef": {"name": secret}}]);
            }
        }
        spec["containers"] = json!([container]);
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"backoffLimit": 0, "template": {"spec": spec}},
        });
        self.cluster.apply(&job.to_string());
    }

    fn until_complete(&self, job: &str) {
        let what = format!("job/{job}");
        let complete = ["--for=condition=Complete", "--timeout=90s"];
        self.kubectl(&[&["wait", &what, "--namespace", NAMESPACE][..], &complete].concat());
    }
}

/// How long it takes from when a Job's Pod is bound to its node until it runs.
async fn scheduled_until_running(client: Client, job: String) -> Duration {
    let api: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let config = watcher::Config::default().labels(&format!("job-name={job}"));
    let mut pods = watcher(api, config).default_backoff().applied_objects().boxed();
    let mut bound = None;
    while let Some(pod) = pods.next().await {
        let Ok(pod) = pod else { continue };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        bound = bound.or_else(|| node.map(|_| Instant::now()));
        let status = pod.status.clone().unwrap_or_default();
        let ran = matches!(status.phase.as_deref(), Some("Running" | "Succeeded"));
        if let Some(bound) = bound.filter(|_| ran) {
            return bound.elapsed();
        }
        assert_ne!(status.phase.as_deref(), Some("Failed"), "{}", pod.name_any());
    }
    unreachable!("a watch does not end")
}

/// How long Jobs took to run, sorted: those whose Secrets were not there, and the next ones, whose were.
struct Measured {
    missing: Vec<Duration>,
    there: Vec<Duration>,
}

/// Measures two Jobs of each Secret, one after the other.
fn measure(world: &World, way: Way, prefix: &str, secrets: usize) -> Measured {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(world.cluster.plane.client()).unwrap();
    let run = |job: String, secret: &str| {
        let watching = runtime.spawn(scheduled_until_running(client.clone(), job.clone()));
        world.job(&job, secret, way);
        let limit = Duration::from_secs(60);
        let ran = runtime.block_on(async { tokio::time::timeout(limit, watching).await });
        world.until_complete(&job);
        ran.expect("it runs within a minute").unwrap()
    };
    let (mut missing, mut there) = (Vec::new(), Vec::new());
    for i in 0..secrets {
        let secret = format!("{prefix}-{i}");
        world.on_demand(&secret, &json!({}));
        missing.push(run(format!("{secret}-first"), &secret));
        there.push(run(format!("{secret}-next"), &secret));
        world.until_idle(&secret);
        assert_eq!(world.posts(&secret), 1, "the next one has what is there");
    }
    missing.sort();
    there.sort();
    Measured { missing, there }
}

fn told(took: &[Duration]) -> String {
    let all: Vec<String> = took.iter().map(|d| format!("{:.1}", d.as_secs_f64())).collect();
    all.join(", ")
}

pub fn jobs_are_served_as_they_are_scheduled(world: &World) {
    let Measured { missing, there } = measure(world, Way::Volume, "by-volume", JOBS);
    world.tell(&format!(
        "Jobs that mount a missing Secret ran {} s after they were scheduled, and where it is there {} s",
        told(&missing),
        told(&there)
    ));
    // A machine with much else to do takes its time to start any container: what counts is what the wait adds to that.
    let (usual, slow) = (there[JOBS / 2], Duration::from_secs(1));
    assert!(
        missing[JOBS / 2] <= (usual + slow).max(Duration::from_secs(2)),
        "{missing:?} {there:?}"
    );
    assert!(
        missing[JOBS - 1] <= (there[JOBS - 1] + 2 * slow).max(Duration::from_secs(4)),
        "{missing:?} {there:?}"
    );
    let Measured { missing, .. } = measure(world, Way::Env, "by-env", 3);
    world.tell(&format!("those that import one, {} s", told(&missing)));
    assert!(missing[2] <= Duration::from_secs(20), "{missing:?}");
}

/// The Warning that a Pod got, as `kubectl describe` has it.
fn warning(world: &World, pod: &str) -> Option<String> {
    let described = world.kubectl(&["describe", "pod", pod, "--namespace", NAMESPACE]);
    let mut lines = described.lines();
    let warning = lines.find(|line| line.contains("Warning") && line.contains("Expired"))?;
    Some(warning.trim().to_owned())
}

pub fn each_way_of_reading_gets_what_it_can_use_though_the_leader_is_killed(world: &World) {
    // What is renewed each minute takes more than ten mints an hour.
    let roomy = format!("{{\"spec\":{{\"rateLimit\":{{\"limit\":{}}}}}}}", super::MANY);
    let connection = ["patch", "chittyconnection/default", "--type=merge", "--patch", &roomy];
    world.kubectl(&connection);
    // Renewed each minute, and no Pod starts on less than a minute.
    let short = json!({
        "rotation": {"maxLifetime": "120s", "renewBefore": "60s"},
        "consumers": {"warnBefore": "50s"},
    });
    for name in ["lasting", "frozen"] {
        world.on_demand(name, &short);
    }
    world.on_demand("waiting", &json!({}));
    world.user(NAMESPACE, "lasting", "lasting");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "frozen", "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": BUSYBOX, "command": ["sleep", "600"],
                "envFrom": [{"secretRef": {"name": "frozen"}}],
            }],
        },
    });
    world.cluster.apply(&pod.to_string());
    let first = wait_for("the Secret", || world.token(NAMESPACE, "lasting"));
    world.until_taken(&first);
    let frozen = ["pod/frozen", "--namespace", NAMESPACE];
    world.kubectl(&[&["wait"][..], &frozen, &["--for=condition=Ready", "--timeout=60s"]].concat());

    let leader = world.kill_leader();
    world.job("waiting", "waiting", Way::Volume);
    world.until_complete("waiting");
    assert_ne!(world.leader(), leader);
    world.tell("a Job that was there before the next leader was served by it");

    let second = wait_for("a renewal", || {
        world.token(NAMESPACE, "lasting").filter(|t| *t != first)
    });
    world.until_taken(&second);
    world.tell("a long Pod used the renewed token");
    let line = wait_for("the Warning", || warning(world, "frozen"));
    assert!(line.contains("ends at"), "{line}");
    world.tell(&format!("a Pod that has read its token once was told: {line}"));
    let posts = |name| world.posts(name);
    assert_eq!((posts("waiting"), posts("lasting"), posts("frozen")), (1, 2, 1));

    world.kubectl(&[
        "delete",
        "pod/lasting",
        frozen[0],
        "--namespace",
        NAMESPACE,
        "--timeout=60s",
    ]);
    for name in ["lasting", "frozen"] {
        let what = format!("secret/{name}");
        world.kubectl(&[
            "wait",
            &what,
            "--namespace",
            NAMESPACE,
            "--for=delete",
            "--timeout=120s",
        ]);
        world.until_idle(name);
    }
    assert_eq!((posts("lasting"), posts("frozen")), (2, 1));
    world.tell("after the last Pod nothing was renewed, and the Secrets went");
}
