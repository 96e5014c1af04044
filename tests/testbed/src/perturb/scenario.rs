//! What is perturbed: a scene, and one thing that is done in it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::lab::Scene;
use crate::ChittyConnect;
use crate::chittyconnect::{Denial, Match, Scope};

/// The window of the budgets here: what is tried once a window is tried soon.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Requests that a window allows.
pub const LIMIT: u32 = 5;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// A first token, from the first start of the controller on.
    Issue,
    /// The same, by the API that knows no revocation.
    IssueDeploy,
    /// A new token by the annotation.
    Rotate,
    /// A Secret that somebody changed.
    Heal,
    /// ChittyConnect says no.
    Deny,
    /// The connection does not allow it any more.
    Revoke,
    /// The credential is deleted.
    Delete,
}

/// Who is killed when something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kill {
    /// Nobody.
    No,
    /// The controller, which is started again at once.
    Restart,
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "-",
            Self::Restart => "kill",
        })
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Issue => "issue",
            Self::IssueDeploy => "issue-deploy",
            Self::Rotate => "rotate",
            Self::Heal => "heal",
            Self::Deny => "deny",
            Self::Revoke => "revoke",
            Self::Delete => "delete",
        })
    }
}

impl FromStr for Scenario {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|scenario| scenario.to_string() == text);
        found.ok_or_else(|| anyhow::anyhow!("no scenario: {text}"))
    }
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Issue,
        Self::IssueDeploy,
        Self::Rotate,
        Self::Heal,
        Self::Deny,
        Self::Revoke,
        Self::Delete,
    ];

    /// Who is killed, in turn.
    #[must_use]
    pub const fn kills(self) -> &'static [Kill] {
        &[Kill::No, Kill::Restart]
    }

    /// Whether tokens have ids by which they can be revoked.
    #[must_use]
    pub const fn revocable(self) -> bool {
        !matches!(self, Self::IssueDeploy)
    }

    pub(super) fn broker(self) -> anyhow::Result<ChittyConnect> {
        ChittyConnect::builder()
            .provision_limit(None)
            .limit(LIMIT, WINDOW, Scope::Service)
            .start()
    }

    fn connection(self, scene: &Scene) -> Value {
        let api = if self.revocable() { "Provision" } else { "Deploy" };
        let mut rule = json!({"namespaces": [scene.install.team], "services": ["*"], "purposes": ["*"], "repos": ["*"]});
        if self.revocable() {
            rule["types"] = json!(["*"]);
        }
        json!({
            "api": api,
            "rateLimit": {"limit": LIMIT, "window": format!("{}s", WINDOW.as_secs())},
            "access": [rule],
        })
    }

    fn credential(self, scene: &Scene) -> Value {
        let mut spec = json!({
            "connection": scene.install.connection,
            "service": "chittyid", "purpose": "deploy", "repo": "CHITTYOS/chittyid",
            "secrets": [{"name": "one"}, {"name": "two", "presets": ["dotenv"]}],
        });
        if self.revocable() {
            spec["type"] = json!("cloudflare_workers_deploy");
        }
        spec
    }

    /// Whether the controller runs before the scene is set; without, its first start is part of what is perturbed.
    pub(super) const fn begins_running(self) -> bool {
        !matches!(self, Self::Issue | Self::IssueDeploy)
    }

    /// What is there before.
    pub(super) async fn set(self, scene: &Scene) -> anyhow::Result<()> {
        scene.connect(&self.connection(scene)).await?;
        match self {
            Self::Issue | Self::IssueDeploy => scene.apply("a", &self.credential(scene)).await,
            Self::Deny => {
                scene.broker.deny(Match::any(), Denial::Forbidden);
                scene
                    .until("the connection", async || {
                        let now = scene.install.connections().get(&scene.install.connection).await?;
                        Ok(now.data["status"]["heldBy"].is_object())
                    })
                    .await
            }
            Self::Rotate | Self::Heal | Self::Revoke | Self::Delete => {
                scene.apply("a", &self.credential(scene)).await?;
                scene
                    .until("a first token", async || {
                        let now = scene.install.credentials().get("a").await?;
                        let conditions = now.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
                        Ok(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
                    })
                    .await
            }
        }
    }

    /// What is done, once calls are counted.
    pub(super) async fn act(self, scene: &Scene) -> anyhow::Result<()> {
        let merge = PatchParams::default();
        match self {
            Self::Issue | Self::IssueDeploy => {}
            Self::Deny => scene.apply("a", &self.credential(scene)).await?,
            Self::Rotate => {
                let patch = json!({"metadata": {"annotations": {"connect.chitty.cc/rotate": "1"}}});
                let credentials = scene.install.credentials();
                credentials.patch("a", &merge, &Patch::Merge(patch)).await?;
            }
            Self::Heal => {
                let patch = json!({"stringData": {"cloudflare_token": "forged"}});
                let secrets = scene.install.of_team::<Secret>();
                secrets.patch("one", &merge, &Patch::Merge(patch)).await?;
            }
            Self::Revoke => {
                let mut connection = self.connection(scene);
                connection["access"][0]["services"] = json!(["others"]);
                scene.connect(&connection).await?;
            }
            Self::Delete => {
                scene.install.credentials().delete("a", &DeleteParams::default()).await?;
            }
        }
        Ok(())
    }
}
