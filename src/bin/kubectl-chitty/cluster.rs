//! The cluster as whoever asks may see it.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use chittyconnect_operator::api::{ChittyConnection, EphemeralCredential, GROUP, crd_files};
use chittyconnect_operator::cluster::lease::LEASE;
use chittyconnect_operator::cluster::pods::{IN_USE, WatchedPod};
use chittyconnect_operator::core::Time;
use chittyconnect_operator::core::consumers::Pod;
use http::Request;
use http::header::DATE;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::{Common, Name};
use crate::doctor::{Right, Route};
use crate::facts::{Connections, Seen};

/// As the controller calls them.
const PART_LABEL: &str = "connect.chitty.cc/journal";
const OF_LABEL: &str = "connect.chitty.cc/journal-of";
const TITLE_ANNOTATION: &str = "connect.chitty.cc/budget-of";
const DEAD_LETTERS: &str = "chittyconnect-audit-dead-letters";

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many objects one answer to a list has.
const LISTED_AT_ONCE: u32 = 500;

/// A cluster, and where to look in it.
pub struct Cluster {
    pub client: Client,
    /// The namespace that was asked for, or that of the context.
    pub namespace: String,
    /// That of the controller.
    pub system: String,
}

impl Cluster {
    /// Connects to what the kubeconfig names.
    ///
    /// # Errors
    /// Where there is none, or it cannot be used.
    pub async fn connect(common: &Common) -> anyhow::Result<Self> {
        let options = KubeConfigOptions {
            context: common.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match &common.kubeconfig {
            Some(file) => {
                let read = Kubeconfig::read_from(file).context("the kubeconfig cannot be read")?;
                Config::from_custom_kubeconfig(read, &options).await?
            }
            None if common.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await.context("no kubeconfig can be used")?,
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        config.default_retry = false;
        // What kube was built with can use none.
        config.proxy_url = None;
        let namespace = common
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self {
            client: Client::try_from(config)?,
            namespace,
            system: common.system_namespace.clone(),
        })
    }

    /// The same, looked at where `name` is.
    pub fn of(&self, name: &Name) -> Self {
        Self {
            client: self.client.clone(),
            namespace: name.namespace.clone().unwrap_or_else(|| self.namespace.clone()),
            system: self.system.clone(),
        }
    }

    /// The API server's time, by which all times in a cluster go; this machine's where that does not tell.
    pub async fn now(&self) -> Time {
        self.server_time().await.unwrap_or_else(wall)
    }

    async fn server_time(&self) -> Option<Time> {
        let request = Request::get("/version").body(Body::empty()).ok()?;
        let answer = within(self.client.send(request)).await.ok()?;
        let date = answer.headers().get(DATE)?.to_str().ok()?;
        Some(chrono::DateTime::parse_from_rfc2822(date).ok()?.to_utc())
    }

    fn credentials_in(&self, namespace: Option<&str>) -> Api<EphemeralCredential> {
        match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// One credential.
    ///
    /// # Errors
    /// Where it is not there, or may not be seen.
    pub async fn credential(&self, name: &str) -> anyhow::Result<EphemeralCredential> {
        let namespace = &self.namespace;
        let what = format!("EphemeralCredential {name} in namespace {namespace}");
        match seen(within(self.credentials_in(Some(namespace)).get(name)).await, &what)? {
            Seen::Found(found) => Ok(found),
            Seen::Missing => bail!("there is no {what}"),
            Seen::Forbidden(what) => bail!("{what}"),
        }
    }

    /// Those of one namespace, or of all, that the API server picks by `fields`.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn credentials(
        &self,
        namespace: Option<&str>,
        fields: Option<&str>,
    ) -> anyhow::Result<Seen<Vec<EphemeralCredential>>> {
        let what = match namespace {
            Some(namespace) => format!("the EphemeralCredentials of namespace {namespace}"),
            None => "the EphemeralCredentials of all namespaces".to_owned(),
        };
        let params = ListParams {
            field_selector: fields.map(str::to_owned),
            ..ListParams::default()
        };
        list(&self.credentials_in(namespace), params, &what).await
    }

    /// All connections.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn connections(&self) -> anyhow::Result<Seen<Connections>> {
        let api: Api<ChittyConnection> = Api::all(self.client.clone());
        let all = list(&api, ListParams::default(), "ChittyConnections, and so no budgets").await?;
        Ok(all.map(|all| all.into_iter().map(|c| (c.name_any(), c)).collect()))
    }

    /// Changes a credential.
    ///
    /// # Errors
    /// Where it is not there, or whoever asks may not change it.
    pub async fn patch(&self, name: &str, patch: &Value) -> anyhow::Result<EphemeralCredential> {
        let namespace = &self.namespace;
        let api = self.credentials_in(Some(namespace));
        let what = format!("EphemeralCredential {name} in namespace {namespace}");
        match within(api.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await {
            Err(kube::Error::Api(status)) if status.code == 403 => bail!("you may not change {what}"),
            answer => match seen(answer, &what)? {
                Seen::Found(changed) => Ok(changed),
                Seen::Missing => bail!("there is no {what}"),
                Seen::Forbidden(what) => bail!("{what}"),
            },
        }
    }

    /// The Events about a credential.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn events(&self, name: &str) -> anyhow::Result<Seen<Vec<Event>>> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let of = format!("involvedObject.kind=EphemeralCredential,involvedObject.name={name}");
        let what = format!("the Events of namespace {}", self.namespace);
        list(&api, ListParams::default().fields(&of), &what).await
    }

    /// The parts of those journals whose budgets' titles `which` picks.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn journals(&self, which: impl Fn(&str) -> bool) -> anyhow::Result<Seen<Vec<ConfigMap>>> {
        let what = format!("the journals in namespace {}", self.system);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.system);
        let heads: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(self.client.clone(), &self.system);
        // Objects are large, and most are of no interest: which they are is told by their metadata.
        let named = metadata_of(&heads, &format!("{PART_LABEL}=head"), &what).await?;
        let Seen::Found(named) = named else {
            return Ok(named.map(|_| Vec::new()));
        };
        let mut all = Vec::new();
        for head in named {
            let title = head
                .annotations()
                .get(TITLE_ANNOTATION)
                .map(String::as_str)
                .unwrap_or_default();
            if !which(title) {
                continue;
            }
            let of = ListParams::default().labels(&format!("{OF_LABEL}={}", head.name_any()));
            match list(&api, of, &what).await? {
                Seen::Found(parts) => all.extend(parts),
                other => return Ok(other),
            }
        }
        Ok(Seen::Found(all))
    }

    /// Who leads.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn lease(&self) -> anyhow::Result<Seen<Lease>> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.system);
        seen(
            within(api.get(LEASE)).await,
            &format!("Leases in namespace {}", self.system),
        )
    }

    /// Where events are kept that could not be delivered.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn dead_letters(&self) -> anyhow::Result<Seen<ConfigMap>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.system);
        let what = format!("ConfigMaps in namespace {}", self.system);
        seen(within(api.get(DEAD_LETTERS)).await, &what)
    }

    /// The Pods of the controller.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn controllers(&self) -> anyhow::Result<Seen<Vec<k8s_openapi::api::core::v1::Pod>>> {
        let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(self.client.clone(), &self.system);
        let of = ListParams::default().labels("app.kubernetes.io/name=chittyconnect-operator");
        list(&api, of, &format!("the Pods of namespace {}", self.system)).await
    }

    /// The kinds this is all about.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn crds(&self) -> anyhow::Result<Seen<Vec<CustomResourceDefinition>>> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let mut found = Vec::new();
        for (name, _) in crd_files()? {
            let (_, plural) = name.trim_end_matches(".yaml").split_once('_').unwrap_or_default();
            match seen(
                within(api.get(&format!("{plural}.{GROUP}"))).await,
                "CustomResourceDefinitions",
            )? {
                Seen::Found(crd) => found.push(crd),
                Seen::Missing => {}
                Seen::Forbidden(what) => return Ok(Seen::Forbidden(what)),
            }
        }
        Ok(if found.is_empty() {
            Seen::Missing
        } else {
            Seen::Found(found)
        })
    }

    /// Whether the controller's service account may do what it must in `namespace`.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn rights(&self, namespace: &str) -> anyhow::Result<Seen<Vec<Right>>> {
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let user = format!("system:serviceaccount:{}:chittyconnect-operator", self.system);
        let asked = [
            ("get", "", "secrets", namespace),
            ("create", "", "secrets", namespace),
            ("update", "", "secrets", namespace),
            ("delete", "", "secrets", namespace),
            ("list", GROUP, "ephemeralcredentials", namespace),
            ("update", GROUP, "ephemeralcredentials/status", namespace),
            ("create", "events.k8s.io", "events", namespace),
            ("update", "", "configmaps", &self.system),
            ("create", "coordination.k8s.io", "leases", &self.system),
        ];
        let mut rights = Vec::new();
        for (verb, group, what, place) in asked {
            let (resource, part) = what.split_once('/').unwrap_or((what, ""));
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: Some(user.clone()),
                    groups: Some(vec![
                        "system:serviceaccounts".to_owned(),
                        format!("system:serviceaccounts:{}", self.system),
                        "system:authenticated".to_owned(),
                    ]),
                    resource_attributes: Some(ResourceAttributes {
                        verb: Some(verb.to_owned()),
                        group: Some(group.to_owned()),
                        resource: Some(resource.to_owned()),
                        subresource: Some(part.to_owned()).filter(|part| !part.is_empty()),
                        namespace: Some(place.to_owned()).filter(|place| !place.is_empty()),
                        ..ResourceAttributes::default()
                    }),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let answer = within(api.create(&PostParams::default(), &review)).await;
            match seen(answer, "what the controller may do")? {
                Seen::Found(review) => {
                    let may = review.status.is_some_and(|status| status.allowed);
                    rights.push(Right {
                        what: format!("{verb} {what}"),
                        namespace: place.to_owned(),
                        may,
                    });
                }
                other => return Ok(other.map(|_| Vec::new())),
            }
        }
        Ok(Seen::Found(rights))
    }

    /// What the API server calls its version.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn version(&self) -> anyhow::Result<String> {
        let info = within(self.client.apiserver_version())
            .await
            .context("the API server cannot be asked")?;
        Ok(info.git_version)
    }

    /// The Pods of a namespace that can use a Secret.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn pods(&self, namespace: &str) -> anyhow::Result<Seen<Vec<Pod>>> {
        let api: Api<WatchedPod> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("the Pods of namespace {namespace}");
        let all = list(&api, ListParams::default().fields(IN_USE), &what).await?;
        Ok(all.map(|all| all.iter().filter_map(WatchedPod::trimmed).collect()))
    }
}

/// All objects, page by page.
async fn list<K>(api: &Api<K>, mut params: ListParams, what: &str) -> anyhow::Result<Seen<Vec<K>>>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    params.limit = Some(LISTED_AT_ONCE);
    let mut all = Vec::new();
    loop {
        let page = match seen(within(api.list(&params)).await, what)? {
            Seen::Found(page) => page,
            Seen::Missing => bail!("this cluster does not know {what}: are the CRDs installed?"),
            Seen::Forbidden(what) => return Ok(Seen::Forbidden(what)),
        };
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(Seen::Found(all)),
        }
    }
}

/// The metadata of all objects with that label.
async fn metadata_of<K>(
    api: &Api<PartialObjectMeta<K>>,
    labels: &str,
    what: &str,
) -> anyhow::Result<Seen<Vec<PartialObjectMeta<K>>>>
where
    K: Resource + Clone + std::fmt::Debug + 'static,
    K::DynamicType: Default,
{
    let mut params = ListParams::default().labels(labels).limit(LISTED_AT_ONCE);
    let mut all = Vec::new();
    loop {
        let page = match seen(within(api.list(&params)).await, what)? {
            Seen::Found(page) => page,
            other => return Ok(other.map(|_| Vec::new())),
        };
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(Seen::Found(all)),
        }
    }
}

/// How far this machine comes on the way to `url`, without a word of who asks.
pub async fn route(url: &url::Url) -> Route {
    const EACH: Duration = Duration::from_secs(5);
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Route::NoName;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::time::timeout(EACH, tokio::net::lookup_host((host, port))).await;
    let Ok(Ok(found)) = found else { return Route::NoName };
    let mut connected = false;
    let mut lost = Route::Refused;
    for address in found {
        match tokio::time::timeout(EACH, tokio::net::TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                connected = true;
                break;
            }
            Ok(Err(error)) if error.kind() != std::io::ErrorKind::TimedOut => {}
            _ => lost = Route::Silent,
        }
    }
    if !connected {
        return lost;
    }
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(EACH)
        .build();
    let Ok(client) = client else { return Route::NoTls };
    match client.get(url.clone()).send().await {
        Ok(answer) => Route::Answered(answer.status().as_u16()),
        Err(_) => Route::NoTls,
    }
}

/// What of an answer whoever asks can do something about.
fn seen<T>(answer: anyhow::Result<T, kube::Error>, what: &str) -> anyhow::Result<Seen<T>> {
    match answer {
        Ok(found) => Ok(Seen::Found(found)),
        Err(kube::Error::Api(status)) => match status.code {
            403 => Ok(Seen::Forbidden(format!("you may not read {what}"))),
            404 => Ok(Seen::Missing),
            401 => bail!("the API server does not know who you are: log in again"),
            code => bail!("the API server answered {code}: {}", status.message),
        },
        Err(error) => Err(anyhow!(error).context("the API server cannot be asked")),
    }
}

/// An answer, or that there was none in time.
async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let late = || kube::Error::Service("no answer within 30 s".into());
    tokio::time::timeout(PATIENCE, call)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// This machine's clock.
#[expect(clippy::disallowed_methods, reason = "the one place it is read")]
pub fn wall() -> Time {
    chrono::Utc::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_at_which_nobody_listens_refuses() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let url = format!("http://{address}").parse().unwrap();
        assert_eq!(route(&url).await, Route::Refused);
    }
}
