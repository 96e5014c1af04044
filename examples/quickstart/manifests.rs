//! The manifests beside this file: read, turned towards the simulators, applied.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use chittyconnect_operator::api::{DEFAULT_HOST, GROUP, HOST_ANNOTATION};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

/// An hour of the manifests is a minute here: tokens live a minute, and budgets count by the minute.
pub const FASTER: u32 = 60;
/// What the quickstart made carries this label, so that it can be told from what was there before.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "chittyconnect-quickstart");
/// The order they are told in; others come last.
const FILES: [&str; 6] = [
    "connection.yaml",
    "worker-deploy.yaml",
    "files-for-tools.yaml",
    "rate-limited.yaml",
    "denied.yaml",
    "not-permitted.yaml",
];
const FIELD_MANAGER: &str = "chittyconnect-quickstart";

/// One file.
pub struct Manifest {
    /// Its name.
    pub file: String,
    /// Its documents.
    pub objects: Vec<Value>,
}

/// Where the simulators are, and what they want to see.
pub struct Simulators {
    pub connect_url: String,
    pub api_key: String,
    pub chronicle_url: String,
    pub chronicle_token: String,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Every manifest beside this file, in the order of [`FILES`].
pub fn read() -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = read_folder(&folder("examples/quickstart"))?;
    let place = |file: &str| FILES.iter().position(|known| *known == file).unwrap_or(FILES.len());
    manifests.sort_by_key(|manifest| (place(&manifest.file), manifest.file.clone()));
    Ok(manifests)
}

/// The CRDs as they are installed anywhere: from `crds/`.
pub fn read_crds() -> anyhow::Result<Vec<CustomResourceDefinition>> {
    read_folder(&folder("crds"))?
        .into_iter()
        .flat_map(|manifest| manifest.objects)
        .map(|object| serde_json::from_value(object).context("crds/ holds something that is no CRD"))
        .collect()
}

fn read_folder(folder: &Path) -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let objects = serde_yaml::Deserializer::from_str(&text)
            .map(Value::deserialize)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("{} is not YAML", path.display()))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        manifests.push(Manifest { file, objects });
    }
    Ok(manifests)
}

impl Manifest {
    /// Points every object at the simulators and lets its time pass faster. All else stays as written.
    pub fn adapt(&mut self, simulators: &Simulators) -> anyhow::Result<()> {
        for object in &mut self.objects {
            object["metadata"]["labels"][LABEL.0] = json!(LABEL.1);
            match object["kind"].as_str() {
                Some("Secret") => adapt_secret(object, simulators)?,
                Some("ChittyConnection") => {
                    let spec = &mut object["spec"];
                    spec["url"] = json!(simulators.connect_url);
                    spec["allowInsecure"] = json!(true);
                    if let Some(chronicle) = spec.pointer_mut("/audit/chronicle") {
                        chronicle["url"] = json!(simulators.chronicle_url);
                    }
                    hasten(spec, "/rateLimit/window")?;
                }
                Some("EphemeralCredential") => {
                    hasten(&mut object["spec"], "/rotation/renewBefore")?;
                    hasten(&mut object["spec"], "/rotation/maxLifetime")?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The names of its objects of that kind.
    pub fn names(&self, kind: &str) -> impl Iterator<Item = String> {
        self.objects
            .iter()
            .filter(move |object| object["kind"] == kind)
            .filter_map(|object| Some(object["metadata"]["name"].as_str()?.to_owned()))
    }
}

/// A key for the real service becomes a key for its simulator, and may go there.
fn adapt_secret(secret: &mut Value, simulators: &Simulators) -> anyhow::Result<()> {
    let host = &mut secret["metadata"]["annotations"][HOST_ANNOTATION];
    let (url, key) = if *host == DEFAULT_HOST {
        (&simulators.connect_url, &simulators.api_key)
    } else {
        (&simulators.chronicle_url, &simulators.chronicle_token)
    };
    *host = json!(Url::parse(url)?.host_str());
    for value in secret["stringData"].as_object_mut().into_iter().flatten() {
        *value.1 = json!(key);
    }
    Ok(())
}

fn hasten(spec: &mut Value, pointer: &str) -> anyhow::Result<()> {
    let Some(value) = spec.pointer_mut(pointer) else {
        return Ok(());
    };
    let duration: Duration = kube::core::Duration::deserialize(&*value)
        .with_context(|| format!("{pointer} is no duration"))?
        .into();
    *value = serde_json::to_value(kube::core::Duration::from(duration / FASTER))?;
    Ok(())
}

/// What `kubectl apply --server-side` does.
pub async fn apply(client: &Client, object: &Value) -> anyhow::Result<()> {
    let object: DynamicObject = serde_json::from_value(object.clone()).context("a manifest holds no object")?;
    let Some(types) = &object.types else {
        bail!("a manifest names no kind");
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types)?);
    let api: Api<DynamicObject> = match object.metadata.namespace.as_deref() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let (kind, name) = (&types.kind, object.name_any());
    api.patch(
        &name,
        &PatchParams::apply(FIELD_MANAGER).force(),
        &Patch::Apply(&object),
    )
    .await
    .with_context(|| format!("failed to apply {kind} {name}"))?;
    Ok(())
}

/// Creates those CRDs that are not there yet, and waits until all of them are served. Those that
/// are there stay as they are.
pub async fn install_crds(client: &Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for mut crd in read_crds()? {
        let name = crd.name_any();
        crd.labels_mut().insert(LABEL.0.to_owned(), LABEL.1.to_owned());
        match api.create(&PostParams::default(), &crd).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error).with_context(|| format!("failed to install {name}")),
        }
        loop {
            let conditions = api.get(&name).await?.status.and_then(|status| status.conditions);
            let established = |c: &_| {
                let c: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionCondition = c;
                c.type_ == "Established" && c.status == "True"
            };
            if conditions.is_some_and(|conditions| conditions.iter().any(established)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Whether a name is that of one of our CRDs.
pub fn is_ours(crd: &CustomResourceDefinition) -> bool {
    crd.spec.group == GROUP
}
