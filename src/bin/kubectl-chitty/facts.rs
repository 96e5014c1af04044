//! What was observed, and what follows from it: plain functions.

use std::collections::BTreeMap;

use chittyconnect_operator::api::{
    Activation, ChittyConnection, ConditionType, EphemeralCredential, InUse, RateScope, Reason, ScopeUsage,
};
use chittyconnect_operator::core::Time;
use chittyconnect_operator::core::consumers::{Pod, Ways};
use chittyconnect_operator::core::schedule::runway;
use chrono::TimeDelta;
use kube::ResourceExt;
use serde::Serialize;

/// Something that was looked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Seen<T> {
    Found(T),
    /// It is not there.
    Missing,
    /// Whoever asks may not see it; what it is.
    Forbidden(String),
}

impl<T> Seen<T> {
    pub const fn found(&self) -> Option<&T> {
        match self {
            Self::Found(found) => Some(found),
            _ => None,
        }
    }

    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Self::Found(found) => Seen::Found(change(found)),
            Self::Missing => Seen::Missing,
            Self::Forbidden(what) => Seen::Forbidden(what),
        }
    }

    pub fn forbidden(&self) -> Option<&str> {
        match self {
            Self::Forbidden(what) => Some(what),
            _ => None,
        }
    }
}

/// A credential, as programs read it: fields may be added, and none goes.
#[expect(clippy::struct_excessive_bools, reason = "facts, independent of each other")]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    pub namespace: String,
    pub name: String,
    /// Nothing of what follows another.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub purpose: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    pub connection: String,
    /// Whose tokens it is given, as namespace/name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follows: Option<String>,
    pub on_demand: bool,
    pub suspended: bool,
    /// Whether the controller has seen the spec as it is.
    pub seen: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when it is ready, or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// A valid Secret is there.
    pub issued: bool,
    /// Nothing will happen until somebody changes something.
    pub stalled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Time>,
    /// The least life that a Pod finds in a token while the broker answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runway_seconds: Option<i64>,
    /// What `rotation.renewBefore` asks for where the token's life allows no more than the runway is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runway_asked_seconds: Option<i64>,
    pub secrets: Vec<String>,
    pub outputs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_use: Option<InUse>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    #[serde(skip)]
    asked: Asked,
}

/// What a spec asks for of a token's life.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Asked {
    renew_before: Option<TimeDelta>,
    max_lifetime: Option<TimeDelta>,
}

/// How often a token is replaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    pub lifetime: TimeDelta,
    pub runway: TimeDelta,
}

impl Pace {
    pub fn period(&self) -> TimeDelta {
        (self.lifetime - self.runway).max(TimeDelta::seconds(1))
    }

    /// Mints in a `window`, in thousandths.
    pub fn mints(&self, window: TimeDelta) -> u64 {
        let mints = window.num_milliseconds() * 1000 / self.period().num_milliseconds().max(1);
        u64::try_from(mints).unwrap_or_default()
    }
}

impl From<&EphemeralCredential> for Credential {
    fn from(object: &EphemeralCredential) -> Self {
        let (spec, status) = (&object.spec, object.status.clone().unwrap_or_default());
        let condition = |kind: ConditionType| status.conditions.iter().find(|c| c.type_ == kind.as_str());
        let is = |kind| condition(kind).map(|c| c.status == "True");
        let ready = condition(ConditionType::Ready);
        let delta = |d: Option<&kube::core::Duration>| d.and_then(|d| TimeDelta::from_std((*d).into()).ok());
        let asked = Asked {
            renew_before: delta(spec.rotation.renew_before.as_ref()),
            max_lifetime: delta(spec.rotation.max_lifetime.as_ref()),
        };
        let lifetime = status.expires_at.zip(status.issued_at).map(|(end, from)| end - from);
        let granted = lifetime.map(|life| runway(life, asked.renew_before));
        let cut = asked
            .renew_before
            .zip(granted)
            .filter(|(asked, granted)| asked > granted);
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            service: spec.service.clone(),
            purpose: spec.purpose.clone(),
            repo: spec.repo.clone(),
            r#type: spec.type_.clone(),
            connection: spec.connection.clone(),
            follows: spec
                .from
                .as_ref()
                .map(|from| format!("{}/{}", from.namespace, from.name)),
            on_demand: spec.activation == Activation::OnDemand,
            suspended: spec.suspend,
            seen: status.observed_generation == object.metadata.generation,
            ready: is(ConditionType::Ready),
            reason: ready.map(|c| c.reason.clone()).unwrap_or_default(),
            message: ready.map(|c| c.message.clone()).unwrap_or_default(),
            since: ready.and_then(|c| Time::from_timestamp(c.last_transition_time.0.as_second(), 0)),
            issued: is(ConditionType::Issued) == Some(true),
            stalled: is(ConditionType::Stalled) == Some(true),
            revision: status.revision,
            issued_at: status.issued_at,
            expires_at: status.expires_at,
            renew_at: status.renew_at,
            next_attempt_at: status.next_attempt_at,
            runway_seconds: granted.map(|runway| runway.num_seconds()),
            runway_asked_seconds: cut.map(|(asked, _)| asked.num_seconds()),
            secrets: status.secrets,
            outputs: status.outputs,
            in_use: status.in_use,
            orphans: status.orphans,
            created_at: object
                .metadata
                .creation_timestamp
                .as_ref()
                .and_then(|at| Time::from_timestamp(at.0.as_second(), 0)),
            asked,
        }
    }
}

impl Credential {
    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its reason, where this version knows it.
    pub fn known_reason(&self) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.as_str() == self.reason)
    }

    /// Whether its reason tells of nothing that stands in the way.
    pub fn is_well(&self) -> bool {
        matches!(
            self.known_reason(),
            Some(Reason::Issued | Reason::Rotated | Reason::Idle)
        )
    }

    /// Whether it counts in its budget: it has a token, or is in line for one.
    pub fn counts(&self) -> bool {
        let in_line = matches!(
            self.known_reason(),
            Some(
                Reason::RateLimited
                    | Reason::Issuing
                    | Reason::BrokerUnavailable
                    | Reason::Unauthorized
                    | Reason::InvalidResponse
                    | Reason::OutcomeUnknown
                    | Reason::AuditBacklog
            )
        );
        self.follows.is_none() && (self.issued || in_line)
    }

    /// How much life its token has.
    pub fn left(&self, now: Time) -> Option<TimeDelta> {
        self.expires_at.map(|end| end - now)
    }

    /// How often its token is, or would be, replaced: by what its last one lived, or else by what others live.
    pub fn pace(&self, others_live: Option<TimeDelta>) -> Option<Pace> {
        if self.follows.is_some() {
            return None;
        }
        let own = self.expires_at.zip(self.issued_at).map(|(end, from)| end - from);
        let (others, most) = (others_live, self.asked.max_lifetime);
        let lifetime = own.or_else(|| others.map(|life| most.map_or(life, |most| life.min(most))).or(most))?;
        Some(Pace {
            lifetime,
            runway: runway(lifetime, self.asked.renew_before),
        })
    }
}

/// How a budget stands, as programs read it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    pub connection: String,
    /// The service; `*` where one budget counts for all that an API key asks for.
    pub service: String,
    pub limit: u32,
    pub window_seconds: i64,
    pub used: u32,
    pub kept_for_renewals: u32,
    pub free: u32,
    pub waiting: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_slot: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<Time>,
}

impl Budget {
    fn of(connection: &ChittyConnection, service: &str, scope: &ScopeUsage) -> Self {
        let window = TimeDelta::from_std(connection.spec.rate_limit.window.into()).unwrap_or_default();
        Self {
            connection: connection.name_any(),
            service: service.to_owned(),
            limit: scope.limit,
            window_seconds: window.num_seconds(),
            used: scope.used,
            kept_for_renewals: scope.kept_for_renewals,
            free: scope
                .limit
                .saturating_sub(scope.used.saturating_add(scope.kept_for_renewals)),
            waiting: scope.waiting,
            next_slot: scope.next_slot,
            blocked_until: scope.blocked_until,
        }
    }

    pub fn window(&self) -> TimeDelta {
        TimeDelta::seconds(self.window_seconds)
    }

    /// What a person calls it.
    pub fn title(&self) -> String {
        match self.service.as_str() {
            "*" => format!("the API key of {}", self.connection),
            service => service.to_owned(),
        }
    }
}

/// The budgets of a connection, as its status tells them.
pub fn budgets(connection: &ChittyConnection) -> impl Iterator<Item = Budget> {
    let scopes = connection.status.iter().flat_map(|status| &status.scopes);
    scopes.map(|(service, scope)| Budget::of(connection, service, scope))
}

/// The budget that a request for `service` by this connection counts in; nothing where the status does not tell.
pub fn budget_of(connection: &ChittyConnection, service: &str) -> Option<Budget> {
    let key = match connection.spec.rate_limit.scope {
        RateScope::Service => service,
        RateScope::Key => "*",
    };
    let scope = connection.status.as_ref()?.scopes.get(key)?;
    Some(Budget::of(connection, key, scope))
}

/// Connections by name.
pub type Connections = BTreeMap<String, ChittyConnection>;

/// A Pod that uses a credential's Secrets, as programs read it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Consumer {
    pub pod: String,
    /// What controls it, as Kind/name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    pub secret: String,
    /// By a volume, env, a subPath or to pull images.
    pub reads: Vec<&'static str>,
    /// Not all of its containers have started.
    pub starting: bool,
    /// The kubelet says that it lacks the Secret.
    pub waits: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// It has read its token once, and keeps that whatever comes.
    pub frozen: bool,
}

const WAYS: [(Ways, &str); 4] = [
    (Ways::VOLUME, "volume"),
    (Ways::ENV, "env"),
    (Ways::SUB_PATH, "subPath"),
    (Ways::IMAGE_PULL, "image pull"),
];

/// Who of `pods` uses which of `secrets`.
pub fn consumers(pods: &[Pod], secrets: &[String]) -> Vec<Consumer> {
    let uses = |pod: &Pod, secret: &String| {
        let ways = pod.way_of(secret)?;
        Some(Consumer {
            pod: pod.name.name.to_string(),
            owner: pod.owner.as_ref().map(|(kind, name)| format!("{kind}/{name}")),
            secret: secret.clone(),
            reads: WAYS
                .iter()
                .filter(|(way, _)| ways.has(*way))
                .map(|(_, word)| *word)
                .collect(),
            starting: pod.starting,
            waits: pod.starting && (ways.has(Ways::LACKS) || ways.has(Ways::VOLUME) && pod.started.is_none()),
            started_at: pod.started,
            frozen: ways.is_frozen(),
        })
    };
    let mut all: Vec<Consumer> = pods
        .iter()
        .flat_map(|pod| secrets.iter().filter_map(move |secret| uses(pod, secret)))
        .collect();
    all.sort_by(|a, b| (&a.pod, &a.secret).cmp(&(&b.pod, &b.secret)));
    all
}
