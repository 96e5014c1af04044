use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where to ask for credentials, with which key, and who may ask for what.
///
/// For cluster administrators alone: whoever can edit a connection decides who gets tokens.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "connect.chitty.cc",
    version = "v1alpha1",
    kind = "ChittyConnection",
    shortname = "cconn",
    category = "chitty",
    status = "ChittyConnectionStatus",
    derive = "PartialEq",
    doc = "Where to ask ChittyConnect for credentials, with which key, and who may ask for what.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("the name of a ChittyConnection has at most 63 characters"),
    printcolumn(name = "API", type_ = "string", json_path = ".spec.api"),
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.url"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("isURL(self.url) && url(self.url).getScheme() in ['https', 'http'] && !self.url.contains('@') && !self.url.contains('?') && !self.url.contains('#')")
        .message("url must be an https URL without user, query or fragment, such as https://connect.chitty.cc"),
    validation = Rule::new("!self.url.startsWith('http://') || (self.allowInsecure && (self.url.matches('^http://(localhost|127[.][0-9]+[.][0-9]+[.][0-9]+|[[]::1[]])(:[0-9]+)?(/.*)?$') || self.url.matches('^http://[a-z0-9.-]+[.]svc([.]cluster[.]local)?(:[0-9]+)?(/.*)?$')))")
        .message("http is for loopback and cluster-local (*.svc) hosts alone, and only with allowInsecure: true; use https"),
)]
pub struct ChittyConnectionSpec {
    /// Base URL of ChittyConnect. https; http only for loopback or cluster-local hosts, and only
    /// with allowInsecure. Redirects are never followed.
    #[serde(default = "default_url")]
    #[schemars(length(min = 1, max = 253))]
    pub url: String,
    /// The API to speak: Deploy (the default) mints a set of tokens for a purpose, which cannot be
    /// revoked; Provision mints one credential of a type, some of which can.
    #[serde(default)]
    pub api: BrokerApi,
    /// Allows an http URL for a loopback or cluster-local host.
    #[serde(default)]
    pub allow_insecure: bool,
    /// How to authenticate.
    #[serde(default)]
    pub auth: Auth,
    /// Key of a ConfigMap in the controller's namespace with the PEM certificates to trust instead
    /// of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<KeyRef>,
    /// How long to wait for an answer: 1s to 1m. The default is 10s.
    #[serde(default = "default_timeout")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1m')").message("timeout must be between 1s and 1m"))]
    pub timeout: Duration,
    /// How many provisions ChittyConnect allows.
    #[serde(default)]
    pub rate_limit: RateLimit,
    /// Who may ask for what. Nothing is allowed unless a rule allows it; any rule that matches does.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub access: Vec<AccessRule>,
    /// The proxy to go through, for ChittyConnect and ChittyChronicle. Without it the controller's environment says so
    /// (`HTTPS_PROXY`, `NO_PROXY`). Loopback and http hosts are always connected to directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxySpec>,
    /// True: nothing is minted by this connection; tokens that are there are not renewed.
    #[serde(default)]
    pub suspend: bool,
    /// Where audit events go. Without it they go to the controller's log and to Kubernetes Events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
}

fn default_url() -> String {
    "https://connect.chitty.cc".to_owned()
}

fn default_timeout() -> Duration {
    std::time::Duration::from_secs(10).into()
}

/// How to authenticate at ChittyConnect.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// Key of a Secret in the controller's namespace with the API key. The key is sent to
    /// connect.chitty.cc alone, unless the Secret's annotation connect.chitty.cc/host names another
    /// host. A changed key is picked up at once.
    #[serde(default = "default_key_ref")]
    pub api_key_secret_ref: KeyRef,
    /// A Secret of type kubernetes.io/tls in the controller's namespace, with the certificate to show to ChittyConnect. It
    /// is bound to a host as the API key is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_secret_ref: Option<NameRef>,
}

/// A Secret in the controller's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct NameRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// A forward proxy.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("isURL(self.httpsProxy) && url(self.httpsProxy).getScheme() in ['https', 'http'] && !self.httpsProxy.contains('@') && !self.httpsProxy.contains('?') && !self.httpsProxy.contains('#')")
        .message("httpsProxy must be an http or https URL without user, query or fragment, such as http://proxy.example.com:3128; credentials go into a Secret")
)]
pub struct ProxySpec {
    /// URL of the proxy that is asked to connect to https hosts.
    #[schemars(length(min = 1, max = 253))]
    pub https_proxy: String,
    /// A Secret of type kubernetes.io/basic-auth in the controller's namespace with the proxy's user name and password.
    /// Its annotation connect.chitty.cc/host must name the proxy's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<NameRef>,
    /// What to connect to directly: host names, domains with all below them, addresses and networks such as 10.0.0.0/8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253), regex(pattern = "^[^,\\s]+$")))]
    pub no_proxy: Vec<String>,
}

fn default_key_ref() -> KeyRef {
    KeyRef {
        name: "chittyconnect-api-key".to_owned(),
        key: "api-key".to_owned(),
    }
}

/// One key of a Secret or ConfigMap in the controller's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

impl Default for KeyRef {
    fn default() -> Self {
        default_key_ref()
    }
}

/// How many provisions ChittyConnect allows.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Provisions in a window: 1 to 10000. The default is 10.
    #[serde(default = "default_limit")]
    #[schemars(range(min = 1, max = 10_000))]
    pub limit: u32,
    /// The sliding window: 1s to 24h. The default is 1h.
    #[serde(default = "default_window")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("window must be between 1s and 24h"))]
    pub window: Duration,
    /// What the limit is counted for: each service, or the API key as a whole. The default is Service.
    #[serde(default)]
    pub scope: RateScope,
}

fn default_limit() -> u32 {
    10
}

fn default_window() -> Duration {
    std::time::Duration::from_secs(3600).into()
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            limit: default_limit(),
            window: default_window(),
            scope: RateScope::default(),
        }
    }
}

/// What a rate limit is counted for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub enum RateScope {
    /// Each service of a ChittyConnect has a budget of its own.
    #[default]
    Service,
    /// All services that share an API key share a budget.
    Key,
}

/// Allows requests that match every field given.
///
/// Patterns are globs: `*` matches any characters, `/` too. `*` alone must be written out.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("size(self.namespaces) > 0 || has(self.namespaceSelector)").message("name namespaces, a namespaceSelector, or both; \"*\" allows every namespace"))]
pub struct AccessRule {
    /// Globs of namespace names.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub namespaces: Vec<String>,
    /// Labels of namespaces. Where names are given too, both must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Globs of services.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 63)))]
    pub services: Vec<String>,
    /// Globs of purposes.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 63)))]
    pub purposes: Vec<String>,
    /// Globs of repositories (owner/name). A request without one matches only "*".
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 140)))]
    pub repos: Vec<String>,
    /// Globs of credential types. For connections with api: Provision, and required there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub types: Vec<String>,
    /// Context keys that requests may set (none by default), each with globs of its values. For
    /// connections with api: Provision.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "context_rules_schema")]
    pub context: BTreeMap<String, Vec<String>>,
    /// How many mints of a budget's window each namespace that this rule admits may take: what its live credentials are
    /// renewed in a window, and new ones. Where several rules admit a request, the roomiest counts. Default: no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_mints_per_window: Option<u32>,
}

fn context_rules_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "description": "Context keys that requests may set (none by default), each with globs of its values. For connections with api: Provision.",
        "maxProperties": 16,
        "additionalProperties": {"type": "array", "minItems": 1, "maxItems": 64, "items": {"type": "string", "minLength": 1, "maxLength": 253}},
    })
}

/// The API to speak with ChittyConnect.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub enum BrokerApi {
    /// POST /credentials/deploy.
    #[default]
    Deploy,
    /// POST /api/credentials/provision.
    Provision,
}

/// Where audit events go.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.chronicle) && has(self.throughConnect))").message("name chronicle or throughConnect, not both"))]
pub struct Audit {
    /// To ChittyChronicle itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chronicle: Option<Chronicle>,
    /// Through ChittyConnect, with this connection's key: at most 60 events a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through_connect: Option<ThroughConnect>,
}

/// Events go through ChittyConnect; there is nothing to set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ThroughConnect {}

/// A ChittyChronicle.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("isURL(self.url) && (self.url.startsWith('https://') || self.url.matches('^http://(localhost|127[.][0-9]+[.][0-9]+[.][0-9]+|[[]::1[]])(:[0-9]+)?(/.*)?$') || self.url.matches('^http://[a-z0-9.-]+[.]svc([.]cluster[.]local)?(:[0-9]+)?(/.*)?$'))")
        .message("url must be https; http is for loopback and cluster-local (*.svc) hosts alone")
)]
pub struct Chronicle {
    /// Base URL; entries go to its /api/entries.
    #[serde(default = "default_chronicle_url")]
    #[schemars(length(min = 1, max = 253))]
    pub url: String,
    /// Key of a Secret in the controller's namespace with the token. Like an API key it is sent to
    /// chronicle.chitty.cc alone, unless the Secret's annotation connect.chitty.cc/host names another.
    pub token_secret_ref: KeyRef,
    /// Key of a ConfigMap in the controller's namespace with the PEM certificates to trust for ChittyChronicle instead of
    /// the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<KeyRef>,
}

fn default_chronicle_url() -> String {
    "https://chronicle.chitty.cc".to_owned()
}

/// The installation that serves a connection: of several in a cluster, only one does.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct HeldBy {
    /// Its namespace.
    pub namespace: String,
    /// The uid of that namespace: one that was deleted and made anew is another.
    pub uid: String,
}

/// What the controller last saw of a connection: a projection, never read back but for heldBy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ChittyConnectionStatus {
    /// Generation of the spec this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, with its reason.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The installation that serves this connection. Another one takes over when its namespace is gone, or when this is
    /// cleared by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<HeldBy>,
    /// What the fullest of its budgets has used, of how many in a window: such as 7/10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// The budget of each scope, by service (or "*" for the whole key). At most 64 are listed.
    #[serde(default)]
    pub scopes: BTreeMap<String, ScopeUsage>,
}

impl ChittyConnectionStatus {
    /// The fullest budget of `scopes`, as `used` shows it: the one with the fewest requests left.
    #[must_use]
    pub fn fullest(scopes: &BTreeMap<String, ScopeUsage>) -> Option<String> {
        let left = |scope: &&ScopeUsage| i64::from(scope.limit) - i64::from(scope.used);
        let fullest = scopes.values().min_by_key(left)?;
        Some(format!("{}/{}", fullest.used, fullest.limit))
    }
}

/// How a budget stands.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ScopeUsage {
    /// Provisions allowed in a window: the configured limit, or a smaller one learnt from the server.
    pub limit: u32,
    /// Provisions counted in the window now.
    pub used: u32,
    /// Provisions kept for renewals of live credentials.
    pub kept_for_renewals: u32,
    /// Credentials waiting for a slot.
    pub waiting: u32,
    /// When the next newcomer can be admitted, where one waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_slot: Option<DateTime<Utc>>,
    /// Until when the server asked to be left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_budget_is_the_one_with_the_fewest_requests_left() {
        let scope = |limit, used| ScopeUsage {
            limit,
            used,
            ..ScopeUsage::default()
        };
        let scopes = [("a", scope(100, 60)), ("b", scope(10, 7)), ("c", scope(5, 0))];
        let scopes: BTreeMap<String, ScopeUsage> = scopes.map(|(name, scope)| (name.to_owned(), scope)).into();
        assert_eq!(ChittyConnectionStatus::fullest(&scopes).as_deref(), Some("7/10"));
        assert_eq!(ChittyConnectionStatus::fullest(&BTreeMap::new()), None);
    }
}
