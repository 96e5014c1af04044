//! Clusters as tests look at them: a credential for each reason, with what the controller says of it.

use chittyconnect_operator::api::{ChittyConnection, EphemeralCredential, Reason};
use chittyconnect_operator::core::Time;
use serde_json::{Value, json};

use crate::facts::{Connections, Consumer, Credential, Seen};
use crate::why::{Observed, Peers};

/// Noon and some.
pub fn now() -> Time {
    Time::from_timestamp(1_795_263_730, 0).unwrap()
}

/// So many seconds from now.
fn at(seconds: i64) -> String {
    (now() + chrono::TimeDelta::seconds(seconds)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

pub fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// A credential that is as `over` says, and otherwise as most are.
pub fn credential(name: &str, over: Value) -> EphemeralCredential {
    let mut object = json!({
        "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "EphemeralCredential",
        "metadata": {"name": name, "namespace": "demo-web", "uid": name, "generation": 1, "creationTimestamp": at(-90_000)},
        "spec": {"service": "chittyid", "purpose": "worker-deploy", "repo": "CHITTYOS/chittyid"},
    });
    merge(&mut object, over);
    serde_json::from_value(object).unwrap()
}

/// A status with a token that was issued so many seconds ago and lives an hour.
fn token(ago: i64) -> Value {
    json!({
        "observedGeneration": 1, "revision": 7, "secrets": ["site-deploy"],
        "outputs": ["account_id", "cloudflare_token", "github_token", "npm_token"],
        "issuedAt": at(-ago), "expiresAt": at(3600 - ago), "renewAt": at(2370 - ago),
    })
}

fn conditions(ready: bool, issued: bool, stalled: bool, reason: &str, message: &str) -> Value {
    let condition = |kind: &str, status: bool| {
        json!({
            "type": kind, "status": if status { "True" } else { "False" }, "reason": reason, "message": message,
            "lastTransitionTime": at(-200),
        })
    };
    let mut all = vec![condition("Ready", ready), condition("Issued", issued)];
    all.extend(stalled.then(|| condition("Stalled", true)));
    json!({"conditions": all, "observedGeneration": 1})
}

/// With a live token of that age, ready or about to be.
fn with_token(reason: Reason, message: &str, ago: i64) -> Value {
    let mut status = token(ago);
    merge(&mut status, conditions(true, true, false, reason.as_str(), message));
    json!({"status": status})
}

/// Without one.
fn without(reason: Reason, message: &str, stalled: bool) -> Value {
    json!({"status": conditions(false, false, stalled, reason.as_str(), message)})
}

/// What a credential with this reason looks like, in the words of the controller.
pub fn example(reason: Reason) -> EphemeralCredential {
    let over = match reason {
        Reason::Issuing => without(reason, "waiting for ChittyConnect's answer since 12:22:06Z", false),
        Reason::Issued | Reason::Rotated => with_token(
            reason,
            "revision 7 is valid until 13:02:10Z and renewed at 12:41:40Z; a job starting until then has at least 20 \
             min",
            1200,
        ),
        Reason::Idle => {
            let message =
                "on demand, and no Pod waits for it: there is a token as soon as a Pod that uses it is bound to a node";
            let mut over =
                json!({"spec": {"activation": "OnDemand"}, "status": conditions(true, false, false, "Idle", message)});
            merge(&mut over, json!({"status": {"inUse": {}}}));
            over
        }
        Reason::Suspended => {
            let mut over = with_token(
                reason,
                "spec.suspend is true: nothing is minted, and a token that is there is not renewed",
                2900,
            );
            merge(&mut over, json!({"spec": {"suspend": true}}));
            over
        }
        Reason::Revoked => without(
            reason,
            "as the annotation connect.chitty.cc/revoke asks, its Secrets are removed, but its last tokens cannot be \
             revoked, for ChittyConnect gave no id of them: a copy works until 13:02:10Z; nothing is minted until the \
             annotation connect.chitty.cc/rotate has a new value",
            true,
        ),
        Reason::InvalidSpec => without(
            reason,
            "ChittyConnection default speaks the Provision API, so spec.type is required: for instance \
             cloudflare_workers_deploy",
            true,
        ),
        Reason::NotPermitted => without(
            reason,
            "no access rule of ChittyConnection default lets namespace demo-web ask for service chittyid, purpose \
             worker-deploy, repo CHITTYOS/chittyid; an administrator can add one to its spec.access",
            true,
        ),
        Reason::SourceNotFound | Reason::NotShared => {
            let message = if reason == Reason::NotShared {
                "no EphemeralCredential platform/shared-deploy shares its tokens with namespace demo-web: none is \
                 there, or its \
                 spec.sharedWith does not choose this namespace; its owner can change that"
            } else {
                "EphemeralCredential platform/shared-deploy is not there; its tokens are followed as soon as it is"
            };
            let mut over = without(reason, message, true);
            merge(
                &mut over,
                json!({"spec": {"service": "", "purpose": "", "from": {"namespace": "platform", "name": "shared-deploy"}}}),
            );
            over
        }
        Reason::Denied => without(
            reason,
            "ChittyConnect judged this request too risky and denied it; not asked again by itself: change the spec, \
             or set the annotation \
             connect.chitty.cc/rotate to a new value",
            true,
        ),
        Reason::RateLimited => without(
            reason,
            "chittyid may mint 10 times in an hour: 3 used, 7 kept for renewals; next slot 12:34:10Z, position 2; 9 \
             credentials \
             of chittyid have about 1.5 renewals in an hour each: together they need 14 of its 10, so that not all can be live at once",
            false,
        ),
        Reason::BrokerUnavailable => with_token(
            reason,
            "ChittyConnect cannot be reached: no connection came about; nothing was sent; tried every few seconds \
             since \
                 12:18:50Z",
            2500,
        ),
        Reason::BrokerRejected => {
            let mut over = without(
                reason,
                "ChittyConnect rejected the request (404): it did not find what the request names; asked again at \
                 13:22:10Z",
                false,
            );
            merge(&mut over, json!({"status": {"nextAttemptAt": at(3600)}}));
            over
        }
        Reason::Unauthorized => {
            let mut over = with_token(
                reason,
                "ChittyConnect refuses the API key of ChittyConnection default; nothing is asked until the key \
                 changes, except \
                 once at 12:34:00Z",
                2900,
            );
            merge(&mut over, json!({"status": {"nextAttemptAt": at(710)}}));
            over
        }
        Reason::InvalidResponse => {
            let mut over = without(
                reason,
                "ChittyConnect answered 200, but the answer is a web page, so check spec.url; a token it made is \
                 held by nobody; asked again at 12:22:31Z",
                false,
            );
            merge(&mut over, json!({"status": {"nextAttemptAt": at(21)}}));
            over
        }
        Reason::InvalidTemplate => without(
            reason,
            "Secret site-deploy, key deploy.json needs neon_token; ChittyConnect gave account_id, cloudflare_token, \
             github_token, npm_token",
            true,
        ),
        Reason::SecretConflict => without(
            reason,
            "Secret site-deploy exists and is not this credential's; it is left alone: delete it, or name another in \
             spec.secrets",
            true,
        ),
        Reason::SecretRefused => {
            let mut over = without(
                reason,
                "Secret site-deploy cannot be written, so nothing is minted: secrets \"site-deploy\" is forbidden: \
                 exceeded quota: \
                 few, requested: count/secrets=1, used: count/secrets=10, limited: count/secrets=10",
                false,
            );
            merge(&mut over, json!({"status": {"nextAttemptAt": at(15)}}));
            over
        }
        Reason::ConnectionNotFound => {
            let mut over = without(
                reason,
                "ChittyConnection prod does not exist; minting starts as soon as it does",
                true,
            );
            merge(&mut over, json!({"spec": {"connection": "prod"}}));
            over
        }
        Reason::ConnectionNotReady => without(
            reason,
            "ChittyConnection default cannot be used: Secret chittyconnect-api-key does not exist in namespace \
             chittyconnect-system: create it with the key api-key",
            false,
        ),
        Reason::Tampered => {
            let mut over = without(
                reason,
                "a managed Secret was changed or removed again; healing costs a mint and is done once a window: next \
                 at \
                 13:10:00Z. Find out who changes it",
                true,
            );
            merge(
                &mut over,
                json!({"status": {"nextAttemptAt": at(2870), "secrets": ["site-deploy"]}}),
            );
            over
        }
        Reason::Expired => {
            let mut over = without(
                reason,
                "spec.suspend is true: nothing is minted, and a token that is there is not renewed",
                false,
            );
            merge(&mut over, json!({"spec": {"suspend": true}}));
            over
        }
        Reason::OutcomeUnknown => {
            let mut over = without(
                reason,
                "ChittyConnect did not answer within 10 s; whether a token was made is unknown; asked again at \
                 12:22:21Z",
                false,
            );
            merge(
                &mut over,
                json!({"status": {"nextAttemptAt": at(11), "orphans": ["3f1c9a5e-0d4b"]}}),
            );
            over
        }
        Reason::AuditBacklog => without(
            reason,
            "too many audit events wait for ChittyChronicle; minting goes on once they are delivered",
            false,
        ),
        Reason::Deleted => json!({}),
    };
    credential("site-deploy", over)
}

/// The connections of a cluster in which `reason` came about.
pub fn connections(reason: Reason) -> Connections {
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "False", "reason": reason, "message": message, "lastTransitionTime": at(-200)});
    let conditions = match reason {
        Reason::BrokerUnavailable => vec![condition(
            "Available",
            "BrokerUnavailable",
            "ChittyConnect cannot be reached: no connection came about; nothing was sent. Since 12:18:50Z; a \
             connection is tried \
             every few seconds, and nothing is spent on that",
        )],
        Reason::Unauthorized => vec![condition(
            "Ready",
            "Unauthorized",
            "ChittyConnect refuses the API key; nothing is asked until it changes, except once at 12:34:00Z",
        )],
        Reason::ConnectionNotReady => vec![condition(
            "Ready",
            "ConnectionNotReady",
            "Secret chittyconnect-api-key does not exist in namespace chittyconnect-system: create it with the key \
             api-key",
        )],
        _ => vec![],
    };
    let connection: ChittyConnection = serde_json::from_value(json!({
        "apiVersion": "connect.chitty.cc/v1alpha1", "kind": "ChittyConnection",
        "metadata": {"name": "default"},
        "spec": {"access": [
            {"namespaces": ["runners-*"], "services": ["*"], "purposes": ["*"], "repos": ["CHITTYOS/*"]},
            {"namespaces": ["demo-*"], "services": ["chittyscore"], "purposes": ["npm-publish"], "repos": ["*"]},
        ]},
        "status": {
            "conditions": conditions, "used": "3/10",
            "scopes": {"chittyid": {"limit": 10, "used": 3, "keptForRenewals": 7, "waiting": 2, "nextSlot": at(720)}},
        },
    }))
    .unwrap();
    [("default".to_owned(), connection)].into()
}

/// All that is seen where `reason` came about, by somebody who may see it.
pub fn observed(reason: Reason) -> Observed {
    let waits = matches!(
        reason,
        Reason::RateLimited | Reason::NotPermitted | Reason::BrokerRejected
    );
    let consumer = Consumer {
        pod: "deploy-x7k2p".to_owned(),
        owner: Some("Job/deploy".to_owned()),
        secret: "site-deploy".to_owned(),
        reads: vec!["volume"],
        starting: true,
        waits: true,
        started_at: None,
        frozen: false,
    };
    let peers = (0..9).map(|i| {
        let over = if i < 6 {
            with_token(Reason::Issued, "", 600)
        } else {
            without(Reason::RateLimited, "", false)
        };
        Credential::from(&credential(&format!("c{i}"), over))
    });
    Observed {
        object: example(reason),
        connections: Seen::Found(connections(reason)),
        consumers: Seen::Found(if waits { vec![consumer] } else { vec![] }),
        peers: Peers {
            credentials: if reason == Reason::RateLimited {
                peers.collect()
            } else {
                vec![]
            },
            all: true,
        },
    }
}
