//! What is perturbed: a scene, and one thing that is done in it.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::gate::Target;
use super::lab::Scene;
use crate::ChittyConnect;
use crate::chittyconnect::{Denial, Match, Scope};

/// How many large records a head has room for, and how many it has not.
const INLINE: usize = 8;
const PAGED: usize = 11;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// A first token, from the first start of the controller on.
    Issue,
    /// The same, by the API that knows no revocation.
    IssueDeploy,
    /// A new token by the annotation.
    Rotate,
    /// The same, by the API that knows no revocation.
    RotateDeploy,
    /// A token comes of age, where the budget has room for three requests in a window.
    Renew,
    /// A Secret that somebody changed.
    Heal,
    /// ChittyConnect says no.
    Deny,
    /// The connection does not allow it any more.
    Revoke,
    /// The credential is deleted.
    Delete,
    /// What the head of the journal holds becomes too much for it.
    Overflow,
    /// A new token, where the journal has pages.
    Paged,
    /// The credential is deleted and made anew before anybody has looked.
    Recreate,
    /// A Pod comes that uses a credential on demand.
    OnDemand,
    /// The token that a credential of another namespace follows is replaced.
    Follow,
    /// A new token is wanted while the leader stops and a standby takes over.
    HandOver,
    /// Another request, and another Secret in the place of one.
    Edit,
    /// The annotation that gives all tokens back.
    GiveBack,
}

/// Who is killed when something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kill {
    /// Nobody.
    No,
    /// The controller, which is started again at once.
    Restart,
    /// The leader; a standby goes on.
    Takeover,
    /// The leader is frozen, a standby goes on, and then it wakes.
    Freeze,
}

impl Kill {
    pub const ALL: [Self; 4] = [Self::No, Self::Restart, Self::Takeover, Self::Freeze];

    /// Whether there is a standby.
    #[must_use]
    pub const fn has_standby(self) -> bool {
        matches!(self, Self::Takeover | Self::Freeze)
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "nobody",
            Self::Restart => "restart",
            Self::Takeover => "takeover",
            Self::Freeze => "freeze",
        })
    }
}

impl FromStr for Kill {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|kill| kill.to_string() == text);
        found.ok_or_else(|| anyhow::anyhow!("nobody to kill: {text}"))
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Issue => "issue",
            Self::IssueDeploy => "issue-deploy",
            Self::Rotate => "rotate",
            Self::RotateDeploy => "rotate-deploy",
            Self::Renew => "renew",
            Self::Heal => "heal",
            Self::Deny => "deny",
            Self::Revoke => "revoke",
            Self::Delete => "delete",
            Self::Overflow => "overflow",
            Self::Paged => "paged",
            Self::Recreate => "recreate",
            Self::OnDemand => "on-demand",
            Self::Follow => "follow",
            Self::HandOver => "hand-over",
            Self::Edit => "edit",
            Self::GiveBack => "give-back",
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
    pub const ALL: [Self; 17] = [
        Self::Issue,
        Self::IssueDeploy,
        Self::Rotate,
        Self::RotateDeploy,
        Self::Renew,
        Self::Heal,
        Self::Deny,
        Self::Revoke,
        Self::Delete,
        Self::Overflow,
        Self::Paged,
        Self::Recreate,
        Self::OnDemand,
        Self::Follow,
        Self::HandOver,
        Self::Edit,
        Self::GiveBack,
    ];

    /// Who may be killed: a standby is of interest where something is going on already, and elsewhere makes things slow.
    #[must_use]
    pub const fn kills(self) -> &'static [Kill] {
        match self {
            Self::Issue | Self::IssueDeploy | Self::RotateDeploy | Self::Overflow => &[Kill::No, Kill::Restart],
            // Its leader goes anyway.
            Self::HandOver => &[Kill::No, Kill::Restart],
            _ => &Kill::ALL,
        }
    }

    /// Whether the leader stops by itself when it begins, and a standby takes over.
    #[must_use]
    pub(super) const fn hands_over(self) -> bool {
        matches!(self, Self::HandOver)
    }

    /// Whether several credentials hold tokens of their own.
    #[must_use]
    pub(super) const fn has_many_tokens(self) -> bool {
        matches!(self, Self::Overflow | Self::Paged)
    }

    /// What is watched while it runs.
    #[must_use]
    pub(super) const fn watches(self) -> &'static [&'static str] {
        match self {
            Self::Issue | Self::IssueDeploy => &[],
            Self::OnDemand => &["secrets", "ephemeralcredentials", "chittyconnections", "pods"],
            _ => &["secrets", "ephemeralcredentials", "chittyconnections"],
        }
    }

    /// Where there are credentials.
    pub(super) fn namespaces(self, scene: &Scene) -> Vec<&str> {
        let (team, guests) = (scene.install.team.as_str(), scene.install.guests.as_str());
        if self == Self::Follow {
            vec![team, guests]
        } else {
            vec![team]
        }
    }

    /// Whether tokens have ids by which they can be revoked.
    #[must_use]
    pub const fn revocable(self) -> bool {
        !matches!(self, Self::IssueDeploy | Self::RotateDeploy)
    }

    /// How many requests a window allows, and how long that is.
    #[must_use]
    pub const fn budget(self) -> (u32, Duration) {
        match self {
            Self::Renew => (3, Duration::from_secs(10)),
            Self::Overflow | Self::Paged => (60, Duration::from_secs(10)),
            _ => (5, Duration::from_secs(10)),
        }
    }

    pub(super) fn broker(self) -> anyhow::Result<ChittyConnect> {
        ChittyConnect::builder()
            .provision_limit(None)
            .limit(self.budget().0, self.budget().1, Scope::Service)
            .start()
    }

    fn connection(self, scene: &Scene) -> Value {
        let (limit, window) = self.budget();
        let api = if self.revocable() { "Provision" } else { "Deploy" };
        let mut rule =
            json!({"namespaces": self.namespaces(scene), "services": ["*"], "purposes": ["*"], "repos": ["*"]});
        if self.revocable() {
            rule["types"] = json!(["*"]);
        }
        json!({
            "api": api,
            "rateLimit": {"limit": limit, "window": format!("{}s", window.as_secs())},
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
        if self == Self::Renew {
            spec["rotation"] = json!({"maxLifetime": "24s", "renewBefore": "16s"});
        }
        if self == Self::OnDemand {
            spec["activation"] = json!("OnDemand");
        }
        if self == Self::Follow {
            spec["sharedWith"] = json!({"namespaces": [scene.install.guests]});
        }
        spec
    }

    /// Credentials whose records take much room.
    async fn apply_large(self, scene: &Scene, range: Range<usize>) -> anyhow::Result<()> {
        for n in range {
            let mut spec = self.credential(scene);
            let name = |i| format!("{}-{n}-{i}", "long".repeat(50));
            spec["secrets"] = (0..8).map(|i| json!({"name": name(i)})).collect();
            scene.apply(&format!("a{n}"), &spec).await?;
        }
        Ok(())
    }

    /// Whether the controller runs before the scene is set; without, its first start is part of what is perturbed.
    pub(super) const fn begins_running(self) -> bool {
        !matches!(self, Self::Issue | Self::IssueDeploy)
    }

    /// Whether a call of it is of interest: dozens of Secrets are there for the room that their names take.
    pub(super) fn perturbs(self, target: &Target) -> bool {
        !matches!(self, Self::Overflow | Self::Paged) || !target.call.contains("secrets/")
    }

    /// How long nothing is written once the scene is set: acknowledgements take a second.
    pub(super) const fn rests_for(self) -> Duration {
        Duration::from_millis(1250)
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
            Self::Rotate
            | Self::RotateDeploy
            | Self::Renew
            | Self::Heal
            | Self::Revoke
            | Self::Delete
            | Self::Recreate
            | Self::OnDemand
            | Self::HandOver
            | Self::Edit
            | Self::GiveBack => {
                scene.apply("a", &self.credential(scene)).await?;
                until_ready(scene, 1).await
            }
            Self::Follow => {
                scene.apply("a", &self.credential(scene)).await?;
                until_ready(scene, 1).await?;
                let guests = &scene.install.guests;
                let follows = json!({
                    "from": {"namespace": scene.install.team, "name": "a"},
                    "secrets": [{"name": "three"}, {"name": "four", "presets": ["dotenv"]}],
                });
                scene.apply_in(guests, "f", &follows).await?;
                until_ready_in(scene, guests, 1).await
            }
            Self::Overflow => {
                self.apply_large(scene, 0..INLINE).await?;
                until_ready(scene, INLINE).await
            }
            Self::Paged => {
                self.apply_large(scene, 0..PAGED).await?;
                until_ready(scene, PAGED).await
            }
        }
    }

    /// What is done, once calls are counted.
    pub(super) async fn act(self, scene: &Scene) -> anyhow::Result<()> {
        let (merge, credentials) = (PatchParams::default(), scene.install.credentials());
        let rotate = json!({"metadata": {"annotations": {"connect.chitty.cc/rotate": "1"}}});
        match self {
            Self::Issue | Self::IssueDeploy => {}
            Self::Deny => scene.apply("a", &self.credential(scene)).await?,
            Self::Rotate | Self::RotateDeploy | Self::Follow | Self::HandOver => {
                credentials.patch("a", &merge, &Patch::Merge(rotate)).await?;
            }
            Self::Paged => {
                credentials.patch("a0", &merge, &Patch::Merge(rotate)).await?;
            }
            Self::Renew => {
                scene
                    .until("a second token", async || {
                        let now = credentials.get("a").await?;
                        Ok(now.data["status"]["revision"].as_u64() >= Some(2))
                    })
                    .await?;
                // No third one.
                let patch = json!({"spec": {"suspend": true}});
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
                credentials.delete("a", &DeleteParams::default()).await?;
            }
            Self::Recreate => {
                credentials.delete("a", &DeleteParams::default()).await?;
                scene.apply("a", &self.credential(scene)).await?;
            }
            Self::OnDemand => scene.mount("p", "one").await?,
            Self::Edit => {
                let mut spec = self.credential(scene);
                spec["purpose"] = json!("publish");
                spec["secrets"] = json!([{"name": "one"}, {"name": "three", "presets": ["env"]}]);
                scene.apply("a", &spec).await?;
            }
            Self::GiveBack => {
                let patch = json!({"metadata": {"annotations": {"connect.chitty.cc/revoke": "1"}}});
                credentials.patch("a", &merge, &Patch::Merge(patch)).await?;
            }
            Self::Overflow => self.apply_large(scene, INLINE..PAGED).await?,
        }
        Ok(())
    }
}

async fn until_ready(scene: &Scene, many: usize) -> anyhow::Result<()> {
    until_ready_in(scene, &scene.install.team, many).await
}

async fn until_ready_in(scene: &Scene, namespace: &str, many: usize) -> anyhow::Result<()> {
    scene
        .until("first tokens", async || {
            let all = scene
                .install
                .credentials_of(namespace)
                .list(&ListParams::default())
                .await?;
            let ready = all.items.iter().filter(|credential| {
                let conditions = credential.data["status"]["conditions"].as_array();
                let mut conditions = conditions.into_iter().flatten();
                conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
            });
            Ok(ready.count() == many)
        })
        .await
}
