//! The deploy API, as documented.

use std::collections::BTreeMap;
use std::time::Instant;

use chrono::DurationRound;
use chrono::TimeDelta;
use serde_json::{Map, Value};

use super::answers::{Draft, seconds};
use super::call::Call;
use super::faults::Fault;
use super::outputs::{ACCOUNT_ID, secret};
use super::simulator::State;

pub(super) fn handle(state: &mut State, call: &Call, post: usize, fault: Option<&Fault>) -> Draft {
    let now = state.now();
    if !call.body.as_ref().is_some_and(Value::is_object) {
        return Draft::refusal("Unexpected end of JSON input", now);
    }
    let Some(service) = call.service.as_deref().filter(|service| !service.is_empty()) else {
        return Draft::refusal("service is required", now);
    };
    if call.purpose.as_deref().is_none_or(str::is_empty) {
        return Draft::refusal("purpose is required", now);
    }
    if let Some(limit) = state.settings.deploy_limit
        && !state.counters.deploy(limit, call, Instant::now())
    {
        let refusal = Draft::refusal(&format!("Rate limit exceeded for {service}"), now);
        return match state.settings.retry_after {
            Some(after) => refusal.header("retry-after", after.as_secs().to_string()),
            None => refusal,
        };
    }
    if let Some(denial) = state.denial(call) {
        return denial;
    }
    if let Some(Fault::Upstream(status, text)) = fault {
        return Draft::upstream(*status, text, now);
    }
    let outputs = state
        .outputs
        .get(service)
        .or_else(|| state.outputs.get("*"))
        .cloned()
        .unwrap_or_default();
    // The answer carries whole seconds, so the token ends on one.
    let end = now + state.settings.ttl;
    let end = end.duration_trunc(TimeDelta::seconds(1)).unwrap_or(end);
    let mut body = Map::new();
    let mut secrets = BTreeMap::new();
    for name in &outputs.names {
        if name == "account_id" {
            body.insert(name.clone(), ACCOUNT_ID.into());
            continue;
        }
        let value = secret(name);
        body.insert(name.clone(), value.clone().into());
        secrets.insert(name.clone(), value);
    }
    body.insert("expires_at".into(), seconds(end).into());
    let mint = state.mint(call, post, None, Some(end), secrets);
    Draft::json(200, body.into()).minted(mint)
}
