use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A request for short-lived tokens, and the Secrets they go to.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "connect.chitty.cc",
    version = "v1alpha1",
    kind = "EphemeralCredential",
    namespaced,
    shortname = "ec",
    category = "chitty",
    status = "EphemeralCredentialStatus",
    derive = "PartialEq",
    doc = "Short-lived tokens from ChittyConnect, kept fresh in Secrets of this namespace.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("the name of an EphemeralCredential has at most 63 characters"),
    selectable = ".spec.service",
    selectable = ".spec.connection",
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.service"),
    printcolumn(name = "Purpose", type_ = "string", json_path = ".spec.purpose"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt"),
    printcolumn(name = "Renews", type_ = "string", json_path = ".status.renewAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Connection", type_ = "string", json_path = ".spec.connection", priority = 1),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.from) || (has(self.service) && has(self.purpose))").message("spec.service and spec.purpose are required, unless spec.from names a credential to follow"),
    validation = Rule::new("!has(self.from) || !(has(self.service) || has(self.purpose) || has(self.repo) || has(self.runId) || has(self.type) || has(self.context) || has(self.sharedWith)) && (!has(self.connection) || self.connection == 'default') && (!has(self.activation) || self.activation == 'Always') && (!has(self.rotation) || !(has(self.rotation.renewBefore) || has(self.rotation.maxLifetime)))").message("spec.from follows another credential, which says all of this itself: remove connection, service, purpose, repo, runId, type, context, activation, rotation and sharedWith"),
    validation = Rule::new("has(self.from) == has(oldSelf.from)").message("a credential that follows another cannot come to ask for itself, nor the other way round: delete it, and make another"),
    validation = Rule::new("!has(self.sharedWith) || !has(self.secrets) || size(self.secrets) == 0 || self.secrets.exists(s, has(s.presets) && size(s.presets) > 0 ? 'outputs' in s.presets : !has(s.data) || size(s.data) == 0)").message("spec.sharedWith needs a Secret with the preset outputs: those who follow are given what is in it"),
)]
pub struct EphemeralCredentialSpec {
    /// Name of the `ChittyConnection` to ask. The default is "default".
    #[serde(default = "default_connection")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub connection: String,
    /// The service the tokens are for, as ChittyConnect knows it. Budgets are counted by service. Required, unless from
    /// is set.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(
        length(min = 1, max = 50),
        regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    pub service: String,
    /// What the tokens are for; ChittyConnect scopes them to it. Required, unless from is set.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    pub purpose: String,
    /// The repository the tokens are for, as owner/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 140), regex(pattern = "^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$"))]
    pub repo: Option<String>,
    /// The `run_id` sent to ChittyConnect. Without it every mint has its own, so that a row of
    /// ChittyConnect's audit can be traced to one mint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9._:/-]+$"))]
    pub run_id: Option<String>,
    /// The credential type, such as `cloudflare_workers_deploy`. For connections with api: Provision,
    /// and required there.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40), regex(pattern = "^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$"))]
    pub type_: Option<String>,
    /// What the type needs besides service, purpose, repo and run id, such as database, readonly
    /// ("true"), ttl (a number) or zones (with commas between). For connections with api: Provision.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "context_schema")]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^[a-z0-9_]{1,63}$') && !(k in ['service', 'purpose', 'repo', 'run_id', 'type']))").message("context keys consist of lower-case letters, digits and '_'; service, purpose, repo, run_id and type are set by the fields of the spec"))]
    pub context: BTreeMap<String, String>,
    /// When there are tokens: Always (the default), or OnDemand: only while a Pod uses them.
    #[serde(default)]
    pub activation: Activation,
    /// When tokens are replaced.
    #[serde(default)]
    pub rotation: Rotation,
    /// The Secrets one mint goes to: at most 8. Without any, one Secret named as the credential
    /// holds every output under its own name.
    #[serde(default)]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub secrets: Vec<SecretTemplate>,
    /// While true nothing is minted; a Secret that is there stays until its tokens end.
    #[serde(default)]
    pub suspend: bool,
    /// Who may follow this credential: credentials of other namespaces, with from, are given the same tokens. Nobody
    /// may without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SharedWith")]
    pub shared_with: Option<SharedWith>,
    /// The credential whose tokens this one is given, in Secrets of its own, instead of a request: it asks ChittyConnect
    /// for nothing and costs no budget. That one must share them with this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Source")]
    pub from: Option<Source>,
    /// How Pods that read the Secrets are looked after. With activation: OnDemand they always are; otherwise where this
    /// is set, if only to {}: then status.inUse counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumers: Option<Consumers>,
}

fn default_connection() -> String {
    "default".to_owned()
}

/// Whom a credential shares its tokens with. Where both are given, both must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.namespaces) && size(self.namespaces) > 0) || has(self.namespaceSelector)").message("name namespaces, a namespaceSelector, or both"),
    validation = Rule::new("!has(self.namespaceSelector) || (has(self.namespaceSelector.matchLabels) && size(self.namespaceSelector.matchLabels) > 0) || (has(self.namespaceSelector.matchExpressions) && size(self.namespaceSelector.matchExpressions) > 0)").message("an empty namespaceSelector would choose every namespace: name a label that it is to have"),
)]
pub struct SharedWith {
    /// Names of namespaces: no patterns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub namespaces: Vec<String>,
    /// Labels of namespaces: as good as the right to label a namespace is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector_schema")]
    pub namespace_selector: Option<LabelSelector>,
}

/// A credential to follow.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// When there are tokens.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    /// As long as the credential is there.
    #[default]
    Always,
    /// From when a Pod that uses a Secret of it is bound to a node. Renewed while one reads it by a volume; unused, the
    /// Secret is removed once less than its runway is left.
    OnDemand,
}

/// How Pods that read the Secrets are looked after.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Consumers {
    /// A running Pod that reads a token once (as an environment variable or by a subPath) gets a Warning Event so long
    /// before that token ends: 0s to 24h. The default is 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('24h')").message("warnBefore must be between 0s and 24h"))]
    pub warn_before: Option<Duration>,
}

/// When tokens are replaced.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.renewBefore) || !has(self.maxLifetime) || duration(self.renewBefore) < duration(self.maxLifetime)").message("renewBefore must be shorter than maxLifetime"))]
pub struct Rotation {
    /// The runway: the least life a Pod finds in a token while ChittyConnect answers. 1s to 24h;
    /// a third of the lifetime where unset; more than two thirds of it count as two thirds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("renewBefore must be between 1s and 24h"))]
    pub renew_before: Option<Duration>,
    /// The longest a token is used, however long ChittyConnect makes it live: 5s to 24h. Applies
    /// from the next token on. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('5s') && duration(self) <= duration('24h')").message("maxLifetime must be between 5s and 24h"))]
    pub max_lifetime: Option<Duration>,
}

/// One Secret, and how the outputs of a mint are laid out in it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type == oldSelf.type").message("type is immutable: remove the item, or give the Secret another name"),
    validation = Rule::new("!has(self.data) || self.data.all(k, k.matches('^[-._a-zA-Z0-9]{1,253}$') && !k.startsWith('..') && k != '.' && k != 'expires_at')").message("keys of data consist of letters, digits, '-', '_' and '.'; expires_at is reserved"),
    validation = Rule::new("!has(self.labels) || self.labels.all(k, k.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$') && !k.matches('^([^/]*[.])?(k8s|kubernetes|argoproj|fluxcd)[.]io/'))").message("keys of labels are names such as example.com/team; those under k8s.io, kubernetes.io, argoproj.io and fluxcd.io make other controllers act and are not allowed"),
    validation = Rule::new("!has(self.annotations) || self.annotations.all(k, k.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$') && !k.matches('^([^/]*[.])?(k8s|kubernetes|argoproj|fluxcd)[.]io/'))").message("keys of annotations are names with a prefix, such as tekton.dev/git-0; those under k8s.io, kubernetes.io, argoproj.io and fluxcd.io make other controllers act and are not allowed"),
)]
pub struct SecretTemplate {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Type of the Secret. Immutable.
    #[serde(default, rename = "type")]
    pub type_: SecretType,
    /// Labels of the Secret; none under k8s.io, kubernetes.io, argoproj.io or fluxcd.io.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the Secret, under the prefixes that the controller allows: tekton.dev/ and reloader.stakater.com/
    /// unless it is told otherwise. Never one that has somebody copy the Secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations_schema")]
    pub annotations: BTreeMap<String, String>,
    /// Ready-made layouts, each the keys or the file that a tool wants. The default is outputs, where data is empty
    /// too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "set"))]
    pub presets: Vec<Preset>,
    /// What the presets take.
    #[serde(default, skip_serializing_if = "PresetOptions::is_default")]
    pub options: PresetOptions,
    /// Further keys, each a template over the outputs: "{{ `cloudflare_token` }}".
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "data_schema")]
    pub data: BTreeMap<String, String>,
}

fn context_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "description": "What the type needs besides service, purpose, repo and run id, such as database, readonly (\"true\"), ttl (a number) or zones (with commas between). For connections with api: Provision.",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "minLength": 1, "maxLength": 253},
    })
}

/// A selector of bounded length: any tenant may write one.
fn selector_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "description": "Labels of namespaces: as good as the right to label a namespace is kept.",
        "properties": {
            "matchLabels": {
                "type": "object",
                "description": "Labels that a namespace must have.",
                "maxProperties": 16,
                "additionalProperties": {"type": "string", "maxLength": 63},
            },
            "matchExpressions": {
                "type": "array",
                "description": "What else must hold of its labels.",
                "maxItems": 16,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string", "description": "Key of the label.", "minLength": 1, "maxLength": 317},
                        "operator": {
                            "type": "string",
                            "description": "In, NotIn, Exists or DoesNotExist.",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "type": "array",
                            "description": "With In and NotIn: the values.",
                            "maxItems": 16,
                            "items": {"type": "string", "maxLength": 63},
                        },
                    },
                },
            },
        },
    })
}

fn labels_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "description": "Labels of the Secret; none under k8s.io, kubernetes.io, argoproj.io or fluxcd.io.",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 63, "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"},
    })
}

fn annotations_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "description": "Annotations of the Secret, under the prefixes that the controller allows: tekton.dev/ and reloader.stakater.com/ unless it is told otherwise. Never one that has somebody copy the Secret.",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 1024},
    })
}

fn data_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "description": "Further keys, each a template: text, and outputs in braces such as \"{{ cloudflare_token }}\", with filters where need be: b64encode, tojson, urlencode, trim, upper, lower, default(\"...\"). All templates of a credential hold at most 64 KiB together.",
        "maxProperties": 32,
        // No statements and no comments: the language has neither.
        "additionalProperties": {"type": "string", "maxLength": 8192, "pattern": "^([^{]|[{]+[^{%#])*[{]*$"},
    })
}

/// Types of Secrets that make nothing but their reader act.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum SecretType {
    /// Any keys.
    #[default]
    Opaque,
    /// Needs the key .dockerconfigjson.
    #[serde(rename = "kubernetes.io/dockerconfigjson")]
    DockerConfigJson,
    /// Needs the key username or password.
    #[serde(rename = "kubernetes.io/basic-auth")]
    BasicAuth,
    /// Needs the keys tls.crt and tls.key.
    #[serde(rename = "kubernetes.io/tls")]
    Tls,
    /// Needs the key ssh-privatekey.
    #[serde(rename = "kubernetes.io/ssh-auth")]
    SshAuth,
}

impl SecretType {
    /// As in a Secret's `type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opaque => "Opaque",
            Self::DockerConfigJson => "kubernetes.io/dockerconfigjson",
            Self::BasicAuth => "kubernetes.io/basic-auth",
            Self::Tls => "kubernetes.io/tls",
            Self::SshAuth => "kubernetes.io/ssh-auth",
        }
    }
}

/// Ready-made layouts of a Secret.
// They are written in this order.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "camelCase")]
pub enum Preset {
    /// Every output under its own name: `cloudflare_token`, `account_id`, `npm_token`, `github_token`, ...
    Outputs,
    /// Every output under the names of the variables that tools read, such as `CLOUDFLARE_API_TOKEN`: for envFrom.
    Env,
    /// `.env`: the same variables as a file for a shell to read.
    Dotenv,
    /// `.npmrc`, for npm and pnpm.
    Npmrc,
    /// `.netrc`, for curl, Go, pip and git.
    Netrc,
    /// `.git-credentials`, for git's credential-store.
    GitCredentials,
    /// `.gitconfig`, with a helper that knows the token.
    Gitconfig,
    /// `username` and `password`, as Tekton, Argo and Flux read them.
    BasicAuth,
    /// `config.json`, or `.dockerconfigjson` where the Secret has that type.
    DockerConfig,
    /// What makes Jenkins take the Secret for one of its credentials: labels, for the key text or username and password.
    Jenkins,
}

impl Preset {
    /// As written in a spec.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outputs => "outputs",
            Self::Env => "env",
            Self::Dotenv => "dotenv",
            Self::Npmrc => "npmrc",
            Self::Netrc => "netrc",
            Self::GitCredentials => "gitCredentials",
            Self::Gitconfig => "gitconfig",
            Self::BasicAuth => "basicAuth",
            Self::DockerConfig => "dockerConfig",
            Self::Jenkins => "jenkins",
        }
    }
}

/// What presets take.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PresetOptions {
    /// For npmrc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub npm: Option<NpmOptions>,
    /// For gitconfig, gitCredentials, netrc and basicAuth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitOptions>,
    /// For dockerConfig.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<DockerOptions>,
}

impl PresetOptions {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where npm packages are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct NpmOptions {
    /// URL of the registry that the token is for: https; http for loopback and cluster-local hosts alone. The default is
    /// `https://registry.npmjs.org/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(
            pattern = r"^(https://[a-z0-9]([-a-z0-9.]*[a-z0-9])?|http://(localhost|127[.]0[.]0[.]1|[a-z0-9]([-a-z0-9.]*[a-z0-9])?[.]svc([.]cluster[.]local)?))(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?$"
        )
    )]
    pub registry: Option<String>,
    /// Scopes whose packages come from this registry, such as chittyos for @chittyos/...; all others from npm's own.
    /// Without any, all packages come from this registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 64), regex(pattern = "^@?[a-z0-9][a-z0-9._-]*$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub scopes: Vec<String>,
}

/// Where repositories are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct GitOptions {
    /// Hosts that the token is for, each with a port where it has its own. The default is github.com.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub hosts: Vec<String>,
    /// User name that goes with the token. The default is x-access-token, as GitHub wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9._@+-]+$"))]
    pub username: Option<String>,
}

/// Where images are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct DockerOptions {
    /// Registries that the token is for. The default is ghcr.io.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 253), regex(pattern = "^(https://)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9._-]+)*/?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub registries: Vec<String>,
    /// User name that goes with the token. The default is x-access-token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9._@+-]+$"))]
    pub username: Option<String>,
}

/// What the controller last saw of a credential: a projection, never read back.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralCredentialStatus {
    /// Generation of the spec this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready and Issued; Reconciling and Stalled while true.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Names of the outputs of the current token; never their values.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// Names of the Secrets that hold the current token.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// How many tokens were published for this credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// When the current token was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<DateTime<Utc>>,
    /// When the current token, and its Secret, end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// When the current token is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_at: Option<DateTime<Utc>>,
    /// When ChittyConnect is asked next, where an earlier try failed or must wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// How many Pods read the Secrets now, and how; where they are looked after. At most 30 s old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use: Option<InUse>,
    /// Ids of tokens that requests whose answers were lost may have made: nobody holds them, and they
    /// may be revoked by hand. Known with api: Provision only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub orphans: Vec<String>,
}

/// How many Pods that are bound to a node and have not finished read a Secret, by how they do: one that does so in several
/// ways is counted in each.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct InUse {
    /// By a volume: they see each new token.
    #[serde(default)]
    pub volume: u32,
    /// By environment variables: what they have read ends with its token.
    #[serde(default)]
    pub env: u32,
    /// By a subPath of a volume: they never see a new token.
    #[serde(default)]
    pub sub_path: u32,
    /// As something that need not be there: they may have started without.
    #[serde(default)]
    pub optional: u32,
    /// To pull their images.
    #[serde(default)]
    pub image_pull: u32,
}
