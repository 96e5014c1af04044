//! Credentials on demand, and the Pods that use them: bound to a node by hand, for there is none.

use std::time::{Duration, Instant};

use chittyconnect_operator::api::EphemeralCredential;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use testbed::process::Process;

use crate::NAMESPACES;
use crate::bench::Bench;
use crate::calls::{Calls, Usage, calls, of_controller};
use crate::setup::{create_all, namespace_of};

fn name_of(number: usize) -> String {
    format!("d{number:05}")
}

impl Bench<'_> {
    /// So many credentials on demand without a Pod; then all Pods at once, evenly over them; then none.
    pub(crate) async fn on_demand(&self, controller: &Process) -> anyhow::Result<Value> {
        let (credentials, pods) = (self.arguments.on_demand, self.arguments.pods);
        let mut figures = json!({"credentials": credentials, "pods": pods});
        let resident = |figures: &mut Value, name: &str| -> anyhow::Result<()> {
            figures[name] = json!(Usage::of(controller)?.resident_mib);
            Ok(())
        };
        resident(&mut figures, "residentMiBBefore")?;
        let (before, begun) = (calls(self.client).await?, Instant::now());
        create_all(credentials, |i| self.create_on_demand(i)).await?;
        self.until(credentials, "Idle").await?;
        figures["idleAfterSeconds"] = json!(begun.elapsed().as_secs_f64());
        note(&mut figures, "callsUntilIdle", &before, &calls(self.client).await?);
        resident(&mut figures, "residentMiBIdle")?;

        self.await_accounts().await?;
        let (before, begun, mints) = (calls(self.client).await?, Instant::now(), self.broker.minted());
        create_all(pods, |i| self.create_pod(i)).await?;
        figures["podsCreatedAfterSeconds"] = json!(begun.elapsed().as_secs_f64());
        self.until(credentials.min(pods), "Issued").await?;
        figures["issuedAfterSeconds"] = json!(begun.elapsed().as_secs_f64());
        figures["mints"] = json!(self.broker.minted() - mints);
        self.until_quiet().await?;
        note(&mut figures, "callsOfPods", &before, &calls(self.client).await?);
        resident(&mut figures, "residentMiBWithPods")?;

        let (before, from) = (calls(self.client).await?, Usage::of(controller)?);
        tokio::time::sleep(Duration::from_secs(self.arguments.idle)).await;
        let seconds = f64::from(u32::try_from(self.arguments.idle)?);
        let used = Usage::of(controller)?.cpu_seconds - from.cpu_seconds;
        figures["cpuPercentAtRest"] = json!(used / seconds * 100.0);
        note(&mut figures, "callsAtRest", &before, &calls(self.client).await?);

        let before = calls(self.client).await?;
        create_all(pods, |i| self.finish_pod(i)).await?;
        self.until(credentials, "Idle").await?;
        self.until_quiet().await?;
        note(&mut figures, "callsUntilUnused", &before, &calls(self.client).await?);
        figures["mintsInAll"] = json!(self.broker.minted() - mints);
        Usage::of(controller)?.note(&mut figures);
        Ok(figures)
    }

    async fn create_on_demand(&self, number: usize) -> kube::Result<()> {
        let api: Api<EphemeralCredential> = Api::namespaced(self.client.clone(), &namespace_of(number));
        let credential = json!({
            "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
            "metadata": {"name": name_of(number)},
            "spec": {
                "service": format!("d{}", number % self.arguments.services), "purpose": "worker-deploy",
                "repo": format!("CHITTYOS/{}", name_of(number)), "activation": "OnDemand",
            },
        });
        let credential = serde_json::from_value(credential).map_err(kube::Error::SerdeError)?;
        api.create(&PostParams::default(), &credential).await.map(|_| ())
    }

    /// Whose Secret the n-th Pod mounts, and where both are.
    fn pod(&self, number: usize) -> (Api<Pod>, String, String) {
        let credential = number % self.arguments.on_demand;
        let api = Api::namespaced(self.client.clone(), &namespace_of(credential));
        (api, format!("p{number:05}"), name_of(credential))
    }

    async fn create_pod(&self, number: usize) -> kube::Result<()> {
        let (api, name, secret) = self.pod(number);
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": "bench", "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": "none", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                "volumes": [{"name": "v", "secret": {"secretName": secret}}],
            },
        });
        let pod = serde_json::from_value(pod).map_err(kube::Error::SerdeError)?;
        api.create(&PostParams::default(), &pod).await.map(|_| ())
    }

    async fn finish_pod(&self, number: usize) -> kube::Result<()> {
        let (api, name, _) = self.pod(number);
        let done = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
        api.patch_status(&name, &PatchParams::default(), &done)
            .await
            .map(|_| ())
    }

    /// Pods need a node, or they are collected, and the service account of their namespace.
    async fn await_accounts(&self) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": "bench"}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        for namespace in (0..NAMESPACES).map(namespace_of) {
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &namespace);
            while accounts.get_opt("default").await?.is_none() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Waits until so many credentials on demand are ready for that reason.
    async fn until(&self, count: usize, reason: &str) -> anyhow::Result<()> {
        let api: Api<EphemeralCredential> = Api::all(self.client.clone());
        let (begun, timeout) = (Instant::now(), Duration::from_secs(self.arguments.phase_timeout));
        loop {
            let all = api.list(&ListParams::default()).await?;
            let so = |c: &&EphemeralCredential| {
                let conditions = c.status.iter().flat_map(|s| &s.conditions);
                let mut ready = conditions.filter(|c| c.type_ == "Ready");
                c.name_any().starts_with('d') && ready.any(|c| c.status == "True" && c.reason == reason)
            };
            let there = all.iter().filter(so).count();
            if there >= count {
                return Ok(());
            }
            anyhow::ensure!(begun.elapsed() < timeout, "{there} of {count} are {reason}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn note(figures: &mut Value, name: &str, before: &Calls, after: &Calls) {
    figures[name] = json!(of_controller(before, after));
}
