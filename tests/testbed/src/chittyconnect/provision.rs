//! The provision API, as the public worker serves it.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde_json::{Map, Value, json};

use super::answers::{Draft, millis};
use super::call::Call;
use super::faults::Fault;
use super::outputs::{ACCOUNT_ID, secret, token_id};
use super::simulator::State;

/// What one requested type needs, and what it comes back as.
struct Kind {
    needs: &'static [&'static str],
    comes_as: &'static str,
    /// The output whose kind of value it holds.
    output: &'static str,
    days: Option<i64>,
    revocable: bool,
    scopes: &'static [&'static str],
}

const API_KEYS: [&str; 6] = [
    "neon_api_key",
    "openai_api_key",
    "github_api_key",
    "stripe_api_key",
    "anthropic_api_key",
    "notion_api_key",
];

impl Kind {
    fn of(requested: &str) -> Option<Self> {
        let cloudflare = |needs, days, scopes| Self {
            needs,
            comes_as: "cloudflare_api_token",
            output: "cloudflare_token",
            days: Some(days),
            revocable: true,
            scopes,
        };
        let kind = match requested {
            "cloudflare_workers_deploy" => {
                cloudflare(&["service"], 365, &["Workers Scripts Write", "Account Settings Read"])
            }
            "cloudflare_workers_read" => {
                cloudflare(&["service"], 90, &["Workers Scripts Read", "Account Settings Read"])
            }
            "cloudflare_r2_access" => cloudflare(&["service", "bucket"], 180, &["Workers R2 Storage Write"]),
            "cloudflare_d1_access" => cloudflare(&["service", "database"], 180, &["D1 Database Write"]),
            "github_deploy_token" => Self {
                needs: &["repository"],
                comes_as: "github_token",
                output: "github_token",
                days: Some(90),
                revocable: false,
                scopes: &["contents:write", "deployments:write"],
            },
            "chittyos_service_token" => Self {
                needs: &["source_service", "target_service"],
                comes_as: "service_token",
                output: "service_token",
                days: Some(30),
                revocable: false,
                scopes: &[],
            },
            "neon_database_connection" => Self {
                needs: &["database", "readonly"],
                comes_as: "database_connection",
                output: "neon_database_url",
                days: None,
                revocable: false,
                scopes: &[],
            },
            other => {
                let name = API_KEYS.into_iter().find(|name| *name == other)?;
                Self {
                    needs: &["purpose"],
                    comes_as: name,
                    output: name,
                    days: None,
                    revocable: false,
                    scopes: &[],
                }
            }
        };
        Some(kind)
    }
}

/// Refuses whom the limit has no room for, and what is not complete: neither is charged. Others are, whatever becomes of
/// them: at once, unless the count is racy.
pub(super) fn check(state: &mut State, call: &Call) -> Result<(), Draft> {
    let now = state.now();
    if let (Some(limit), Some(owner)) = (state.settings.provision_limit, &call.key_owner)
        && !state.counters.provision_has_room(limit, owner, now)
    {
        return Err(Draft::refusal(&format!("Rate limit exceeded for {owner}"), now));
    }
    if let Some(missing) = missing(call) {
        return Err(Draft::refusal(&missing, now));
    }
    if !state.settings.provision_limit.is_some_and(|limit| limit.racy) {
        charge(state, call);
    }
    Ok(())
}

/// What a request lacks. One of an unknown type lacks nothing.
fn missing(call: &Call) -> Option<String> {
    let Some(body) = call.body.as_ref().filter(|body| body.is_object()) else {
        return Some("Unexpected end of JSON input".to_owned());
    };
    let Some(requested) = call.credential_type.as_deref() else {
        return Some("type is required".to_owned());
    };
    let no_context = Value::Null;
    let context = body.get("context").unwrap_or(&no_context);
    let needs = Kind::of(requested)?.needs;
    let field = needs.iter().find(|field| is_missing(&context[**field]))?;
    Some(format!("{field} is required"))
}

pub(super) fn charge(state: &mut State, call: &Call) {
    if let (Some(limit), Some(owner)) = (state.settings.provision_limit, &call.key_owner) {
        let now = state.now();
        state.counters.charge_provision(limit, owner, now);
    }
}

pub(super) fn handle(state: &mut State, call: &Call, post: usize, fault: Option<&Fault>) -> Draft {
    let now = state.now();
    let requested = call.credential_type.as_deref().unwrap_or_default();
    let Some(kind) = Kind::of(requested) else {
        return Draft::refusal(&format!("Unknown credential type: {requested}"), now);
    };
    if let Some(denial) = state.denial(call) {
        return denial;
    }
    if let Some(Fault::Upstream(status, text)) = fault {
        return Draft::upstream(*status, text, now);
    }
    let context = call.body.as_ref().and_then(|body| body.get("context"));
    let ttl = context
        .and_then(|context| context.get("ttl")?.as_i64())
        .filter(|_| requested == "chittyos_service_token")
        .map(TimeDelta::seconds)
        .or_else(|| kind.days.map(TimeDelta::days));
    let end = ttl.map(|ttl| now + ttl);
    let id = kind.revocable.then(token_id);
    let value = secret(kind.output);

    let mut credential = Map::new();
    let mut set = |name: &str, value: Value| credential.insert(name.to_owned(), value);
    set("type", kind.comes_as.into());
    set("value", value.clone().into());
    if let Some(end) = end {
        set("expires_at", millis(end).into());
    }
    if !kind.scopes.is_empty() {
        set("scopes", kind.scopes.into());
    }
    if let Some(id) = &id {
        set("account_id", ACCOUNT_ID.into());
        set("token_id", id.clone().into());
    }
    let answer = json!({
        "success": true,
        "credential": credential,
        "usage_instructions": {
            "environment_variable": kind.output.to_uppercase(),
            "command": format!("echo {value} | gh secret set {}", kind.output.to_uppercase()),
        },
        "metadata": {"timestamp": millis(now), "requested_type": requested},
    });
    let secrets = BTreeMap::from([("value".to_owned(), value)]);
    let mint = state.mint(call, post, id, end, secrets);
    Draft::json(200, answer).minted(mint)
}

/// What JavaScript calls falsy is missing to the real one: `readonly: false` too.
fn is_missing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(_) | Value::Object(_) => false,
    }
}
