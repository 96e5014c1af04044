//! Which Secrets a Pod reads, and how, of what the API server says of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use super::Ways;
use crate::core::Time;
use crate::core::ids::{ObjectName, Uid};
use crate::core::text::pooled;

/// How many Secrets of a Pod are kept: what a tenant writes costs bounded memory.
const MOST_READ: usize = 128;
/// Owners that tell whose run a Pod is.
const TELLING: [&str; 4] = ["EphemeralRunner", "Job", "Workflow", "TaskRun"];
/// The longest text that a consumer is told by.
const LONGEST_CONSUMER: usize = 80;

/// A Pod that is bound to a node and has not finished, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace and name.
    pub name: ObjectName,
    /// Its uid.
    pub uid: Uid,
    /// When it was bound to its node.
    pub bound: Time,
    /// Since when its containers run; unknown of one that has yet to start.
    pub started: Option<Time>,
    /// Not all of its containers have started.
    pub starting: bool,
    /// It is being deleted.
    pub leaving: bool,
    /// Whose run it is.
    pub consumer: Option<Consumer>,
    /// What controls it: kind and name.
    pub owner: Option<(Arc<str>, Arc<str>)>,
    /// The Secrets it reads, by name.
    pub reads: Box<[(Arc<str>, Ways)]>,
}

impl Pod {
    /// How it reads that Secret.
    #[must_use]
    pub fn way_of(&self, secret: &str) -> Option<Ways> {
        self.reads
            .iter()
            .find(|(name, _)| **name == *secret)
            .map(|(_, ways)| *ways)
    }
}

/// Whose run a Pod is, as audit tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Consumer(Arc<str>);

impl Consumer {
    /// What an owner tells.
    #[must_use]
    pub fn of(kind: &str, name: &str) -> Option<Self> {
        let text = format!("{kind}/{name}");
        TELLING.contains(&kind).then(|| {
            let end = text
                .char_indices()
                .nth(LONGEST_CONSUMER)
                .map_or(text.len(), |(at, _)| at);
            Self(text[..end].into())
        })
    }
}

impl fmt::Display for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What of a Pod's spec is looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node it is bound to.
    pub node_name: Option<String>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
    volumes: Vec<Volume>,
    image_pull_secrets: Vec<Named>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    restart_policy: Option<String>,
    env: Vec<Variable>,
    env_from: Vec<Source>,
    volume_mounts: Vec<Mount>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Variable {
    value_from: Option<ValueFrom>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ValueFrom {
    secret_key_ref: Option<Named>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    secret_ref: Option<Named>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    name: String,
    sub_path: String,
    sub_path_expr: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    name: String,
    secret: Option<SecretVolume>,
    projected: Option<Projected>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretVolume {
    secret_name: String,
    optional: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Projected {
    sources: Vec<ProjectedSource>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProjectedSource {
    secret: Option<Named>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    name: String,
    optional: Option<bool>,
}

/// What of a Pod's status is looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: Option<String>,
    start_time: Option<Time>,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    r#type: String,
    status: String,
    last_transition_time: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    state: State,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    waiting: Option<Waiting>,
    running: Option<Running>,
    terminated: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Waiting {
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Running {
    started_at: Option<Time>,
}

impl PodStatus {
    /// It ran to its end, well or not.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Not all containers of it have started, those that were added since included: `ephemeral` are in its spec.
    fn is_starting(&self, ephemeral: usize) -> bool {
        let begun = |c: &&ContainerStatus| c.state.running.is_some() || c.state.terminated.is_some();
        let added = self.ephemeral_container_statuses.iter().filter(begun).count();
        self.phase.as_deref() != Some("Running") || added < ephemeral || self.is_set_up_again()
    }

    /// It ran, and all of it is set up again, mounts and init containers included: its node was restarted.
    fn is_set_up_again(&self) -> bool {
        let waits = |w: &Waiting| matches!(w.reason.as_deref(), Some("ContainerCreating" | "PodInitializing"));
        self.phase.as_deref() == Some("Running") && self.waits().any(waits)
    }

    /// Since when its containers run, the first of them.
    fn started(&self) -> Option<Time> {
        let running = self.container_statuses.iter().filter_map(|c| c.state.running.as_ref());
        running.filter_map(|r| r.started_at).min().or(self.start_time)
    }

    fn bound(&self) -> Option<Time> {
        let bound = self
            .conditions
            .iter()
            .find(|c| c.r#type == "PodScheduled" && c.status == "True");
        bound.and_then(|c| c.last_transition_time)
    }

    fn waits(&self) -> impl Iterator<Item = &Waiting> {
        let all = [
            &self.container_statuses,
            &self.init_container_statuses,
            &self.ephemeral_container_statuses,
        ];
        all.into_iter().flatten().filter_map(|c| c.state.waiting.as_ref())
    }

    /// Whether the kubelet says that it lacks that Secret, which is read in these ways.
    fn lacks(&self, secret: &str, ways: Ways) -> bool {
        self.waits().any(|w| match w.reason.as_deref() {
            Some("CreateContainerConfigError") => w
                .message
                .as_deref()
                .is_some_and(|said| said.contains(&format!("\"{secret}\"")) || said.contains(&format!("/{secret}"))),
            Some("ErrImagePull" | "ImagePullBackOff") => ways.has(Ways::IMAGE_PULL),
            _ => self.is_set_up_again(),
        })
    }
}

/// The Secrets that a Pod reads, and how. Init containers read while it starts; after that what they alone read is not in
/// use any more.
#[must_use]
pub fn reads(spec: &PodSpec, status: &PodStatus) -> Box<[(Arc<str>, Ways)]> {
    let starting = status.is_starting(spec.ephemeral_containers.len());
    let mut found: BTreeMap<&str, Ways> = BTreeMap::new();
    let mut add = |name, way, optional: Option<bool>| {
        let optional = if optional == Some(true) {
            Ways::OPTIONAL
        } else {
            Ways::default()
        };
        *found.entry(name).or_default() |= way | optional;
    };
    for secret in &spec.image_pull_secrets {
        add(secret.name.as_str(), Ways::IMAGE_PULL, None);
    }
    let sidecar = |c: &&Container| starting || c.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(&spec.ephemeral_containers);
    for container in containers.chain(spec.init_containers.iter().filter(sidecar)) {
        let keys = container
            .env
            .iter()
            .filter_map(|v| v.value_from.as_ref()?.secret_key_ref.as_ref());
        for secret in keys.chain(container.env_from.iter().filter_map(|s| s.secret_ref.as_ref())) {
            add(secret.name.as_str(), Ways::ENV, secret.optional);
        }
        // The kubelet sets up no volume that nobody mounts.
        for mount in &container.volume_mounts {
            let whole = mount.sub_path.is_empty() && mount.sub_path_expr.is_empty();
            let way = if whole { Ways::VOLUME } else { Ways::SUB_PATH };
            for volume in spec.volumes.iter().filter(|v| v.name == mount.name) {
                if let Some(secret) = &volume.secret {
                    add(secret.secret_name.as_str(), way, secret.optional);
                }
                let sources = volume.projected.iter().flat_map(|p| &p.sources);
                for secret in sources.filter_map(|s| s.secret.as_ref()) {
                    add(secret.name.as_str(), way, secret.optional);
                }
            }
        }
    }
    found.remove("");
    let read = found.into_iter().take(MOST_READ).map(|(name, mut ways)| {
        if status.lacks(name, ways) {
            ways |= Ways::LACKS;
        }
        (pooled(name), ways)
    });
    read.collect()
}

/// Of whom a Pod is: what the API server says besides spec and status.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// Its namespace and name.
    pub name: ObjectName,
    /// Its uid.
    pub uid: &'a str,
    /// When it was created.
    pub created: Option<Time>,
    /// It is being deleted.
    pub leaving: bool,
    /// Kind and name of what controls it.
    pub owner: Option<(&'a str, &'a str)>,
}

impl Pod {
    /// A Pod as it is kept; nothing where it uses no Secret, or not yet, or not any more.
    #[must_use]
    pub fn of(about: About<'_>, spec: &PodSpec, status: &PodStatus) -> Option<Self> {
        let bound = spec.node_name.as_deref().is_some_and(|node| !node.is_empty());
        if !bound || status.is_finished() {
            return None;
        }
        let reads = reads(spec, status);
        if reads.is_empty() {
            return None;
        }
        let starting = status.is_starting(spec.ephemeral_containers.len());
        let began = status.bound().or(about.created).unwrap_or_default();
        Some(Self {
            name: about.name,
            uid: about.uid.into(),
            bound: began,
            started: status.started().filter(|_| status.phase.as_deref() == Some("Running")),
            starting,
            leaving: about.leaving,
            consumer: about.owner.and_then(|(kind, name)| Consumer::of(kind, name)),
            owner: about.owner.map(|(kind, name)| (pooled(kind), name.into())),
            reads,
        })
    }
}
