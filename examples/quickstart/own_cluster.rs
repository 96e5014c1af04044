//! Somebody's own cluster: looked at first, asked about, and left as it was found.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chittyconnect_operator::api::{ChittyConnection, EphemeralCredential, VERSION};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::manifests::{LABEL, Manifest, is_ours, read_crds};

/// How long a namespace or a CRD may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(90);
const OPERATOR: &str = "chittyconnect-operator";

/// What the quickstart would do to a cluster.
pub struct Survey {
    namespaces: Vec<String>,
    connections: Vec<String>,
    crds_to_create: Vec<String>,
    crds_to_keep: Vec<String>,
    leftovers: Vec<String>,
}

/// Looks at the cluster, and refuses one where the quickstart could do harm.
pub async fn survey(client: &Client, manifests: &[Manifest]) -> anyhow::Result<Survey> {
    let mut survey = Survey {
        namespaces: names(manifests, "Namespace"),
        connections: names(manifests, "ChittyConnection"),
        crds_to_create: Vec::new(),
        crds_to_keep: Vec::new(),
        leftovers: Vec::new(),
    };
    nobody_else_controls(client).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in read_crds()? {
        let name = crd.name_any();
        let Some(known) = crds.get_opt(&name).await? else {
            survey.crds_to_create.push(name);
            continue;
        };
        ensure!(
            known
                .spec
                .versions
                .iter()
                .any(|version| version.name == VERSION && version.served),
            "CRD {name} is there already and does not serve {VERSION}; the quickstart does not replace it"
        );
        if is_labelled(&known) {
            survey.leftovers.push(format!("CRD {name}"));
        } else {
            survey.crds_to_keep.push(name.clone());
        }
        // The controller looks after every object of these kinds, whoever made it.
        let strangers = if name.starts_with("ephemeralcredentials.") {
            strangers::<EphemeralCredential>(client).await?
        } else {
            strangers::<ChittyConnection>(client).await?
        };
        ensure!(
            strangers == 0,
            "this cluster has {} already ({strangers}), and the quickstart's controller would act on them; use another \
             cluster, or leave --context out",
            known.spec.names.plural
        );
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in &survey.namespaces {
        match namespaces.get_opt(name).await? {
            None => {}
            Some(known) if is_labelled(&known) => survey.leftovers.push(format!("namespace {name}")),
            Some(_) => bail!(
                "namespace {name} is there already; the quickstart removes its namespaces in the end, so it does not \
                 use this one: take another cluster, or leave --context out"
            ),
        }
    }
    Ok(survey)
}

/// Two controllers would work on the same credentials. A quickstart that was killed is none.
async fn nobody_else_controls(client: &Client) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let ours = namespaces.list_metadata(&labelled()).await?.items;
    let ours: BTreeSet<String> = ours.iter().map(ResourceExt::name_any).collect();
    let deployments: Api<Deployment> = Api::all(client.clone());
    let installed = ListParams::default().labels(&format!("app.kubernetes.io/name={OPERATOR}"));
    let leases: Api<Lease> = Api::all(client.clone());
    let lease = ListParams::default().fields(&format!("metadata.name={OPERATOR}"));
    let deployments = deployments.list_metadata(&installed).await?.items;
    let leases = leases.list_metadata(&lease).await?.items;
    let deployments = deployments.iter().filter_map(ResourceExt::namespace);
    let mut found: Vec<String> = deployments
        .chain(leases.iter().filter_map(ResourceExt::namespace))
        .collect();
    found.retain(|namespace| !ours.contains(namespace));
    match found.first() {
        None => Ok(()),
        Some(namespace) => bail!(
            "{OPERATOR} is installed already, in namespace {namespace}: two controllers would work on the same \
             credentials; apply examples/quickstart/*.yaml there instead, or leave --context out"
        ),
    }
}

fn names(manifests: &[Manifest], kind: &str) -> Vec<String> {
    let names: BTreeSet<String> = manifests.iter().flat_map(|manifest| manifest.names(kind)).collect();
    names.into_iter().collect()
}

fn is_labelled(object: &impl ResourceExt) -> bool {
    object.labels().get(LABEL.0).is_some_and(|value| value == LABEL.1)
}

fn labelled() -> ListParams {
    ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1))
}

/// How many objects of a kind the quickstart did not make.
async fn strangers<K>(client: &Client) -> anyhow::Result<usize>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let others = ListParams::default().labels(&format!("{}!={}", LABEL.0, LABEL.1));
    match api.list_metadata(&others).await {
        Ok(list) => Ok(list.items.len()),
        // The kind itself is gone.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(0),
        Err(error) => Err(error.into()),
    }
}

impl Survey {
    /// Says what would be done, and asks. `yes` was given on the command line.
    pub fn consent(&self, context: &str, server: &str, yes: bool) -> anyhow::Result<bool> {
        let mut out = std::io::stdout();
        let item = |verb: &str, what: &str, names: &[String]| {
            let mut lines = vec![format!("  {verb:<8} {what}")];
            lines.extend(names.iter().map(|name| format!("             {name}")));
            lines.join("\n")
        };
        let mut lines = vec![format!(
            "On your cluster, context {context} ({server}), the quickstart will"
        )];
        if !self.leftovers.is_empty() {
            lines.push(item(
                "remove",
                "what a quickstart that was killed left behind:",
                &self.leftovers,
            ));
        }
        let leftover_crds = self.leftovers.iter().filter_map(|name| name.strip_prefix("CRD "));
        let mut crds = self.crds_to_create.clone();
        crds.extend(leftover_crds.map(str::to_owned));
        if !crds.is_empty() {
            lines.push(item("install", "the CRDs", &crds));
        }
        if !self.crds_to_keep.is_empty() {
            lines.push(item("use", "the CRDs that are there, unchanged:", &self.crds_to_keep));
        }
        lines.push(item(
            "create",
            "the namespaces, with EphemeralCredentials in them,",
            &self.namespaces,
        ));
        lines.push(item("create", "the ChittyConnections", &self.connections));
        lines.push(item(
            "run",
            "in this process and on loopback, the controller and simulators of",
            &[],
        ));
        lines.push("           ChittyConnect and ChittyChronicle: no real token is made".to_owned());
        lines.push("and remove all it made when it ends. Nothing else is changed.".to_owned());
        writeln!(out, "{}", lines.join("\n"))?;
        if yes {
            return Ok(true);
        }
        ensure!(
            std::io::stdin().is_terminal(),
            "standard input is no terminal, so nobody can be asked: add --yes if that is what you want"
        );
        write!(out, "Go on? [y/N] ")?;
        out.flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// Whether a quickstart that was killed left something behind.
    pub fn finds_leftovers(&self) -> bool {
        !self.leftovers.is_empty()
    }

    /// Removes everything that carries the quickstart's label, and nothing else.
    pub async fn clean_up(&self, client: &Client) -> anyhow::Result<()> {
        let connections: Api<ChittyConnection> = Api::all(client.clone());
        match connections
            .delete_collection(&DeleteParams::default(), &labelled())
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error).context("failed to remove the connections"),
        }
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for name in &self.namespaces {
            remove(&namespaces, name).await?;
        }
        gone(&namespaces, &self.namespaces).await?;
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        let ours = crds.list(&labelled()).await?.items;
        let ours: Vec<String> = ours
            .iter()
            .filter(|crd| is_ours(crd))
            .map(ResourceExt::name_any)
            .collect();
        let strangers = strangers::<EphemeralCredential>(client).await? + strangers::<ChittyConnection>(client).await?;
        if strangers > 0 {
            println!(
                "objects that are not the quickstart's were made meanwhile ({strangers}); for their sake the CRDs stay"
            );
            return Ok(());
        }
        for name in &ours {
            remove(&crds, name).await?;
        }
        gone(&crds, &ours).await
    }
}

/// What a person would type to remove what is left.
pub fn by_hand(context: &str) -> String {
    format!(
        "kubectl --context {context} delete chittyconnections,namespaces,crds -l {}={}",
        LABEL.0, LABEL.1
    )
}

async fn remove<K>(api: &Api<K>, name: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let Some(object) = api.get_opt(name).await?.filter(is_labelled) else {
        return Ok(());
    };
    let parameters = DeleteParams {
        preconditions: Some(kube::api::Preconditions {
            uid: object.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to remove {} {name}", K::kind(&()))),
    }
}

async fn gone<K>(api: &Api<K>, names: &[String]) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let wait = async {
        for name in names {
            while api
                .get_metadata_opt(name)
                .await?
                .is_some_and(|object| is_labelled(&object))
            {
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(GONE_WITHIN, wait).await.with_context(|| {
        format!(
            "{} {} did not go within {} s",
            K::kind(&()),
            names.join(", "),
            GONE_WITHIN.as_secs()
        )
    })?
}
