//! The routes that mint nothing.

use std::time::Instant;

use serde_json::{Value, json};

use super::answers::{Draft, millis};
use super::call::Call;
use super::ledger::{AuditEvent, Mint, Revocation};
use super::matching::Route;
use super::outputs::random;
use super::simulator::State;

pub(super) fn handle(state: &mut State, call: &Call) -> Draft {
    match call.route {
        Route::Revoke => revoke(state, call),
        Route::Audit => audit(state, call),
        Route::Events => event(state, call),
        Route::ApiHealth | Route::CredentialsHealth | Route::Health => health(state, "healthy"),
        Route::Status => health(state, "ok"),
        Route::Deploy | Route::Provision | Route::Unknown => Draft::not_found(),
    }
}

fn health(state: &State, status: &str) -> Draft {
    Draft::json(
        200,
        json!({
            "status": status,
            "service": "chittyconnect",
            "version": "2.2.0",
            "timestamp": millis(state.now()),
        }),
    )
}

fn revoke(state: &mut State, call: &Call) -> Draft {
    let now = state.now();
    let token_id = call
        .body
        .as_ref()
        .and_then(|body| Some(body.get("token_id")?.as_str()?.to_owned()));
    let failure = |message: &str| {
        Draft::json(
            500,
            json!({"success": false, "error": {"code": "REVOKE_FAILED", "message": message}}),
        )
    };
    let draft = match (&call.body, &token_id) {
        (None, _) => failure("Unexpected end of JSON input"),
        (Some(_), None) => Draft::json(400, json!({"success": false, "error": "token_id is required"})),
        (Some(_), Some(id)) => {
            let live = |mint: &&mut Mint| mint.token_id.as_deref() == Some(id) && mint.revoked_at.is_none();
            match state.ledger.mints.iter_mut().find(live) {
                Some(mint) => {
                    mint.revoked_at = Some(now);
                    Draft::json(
                        200,
                        json!({
                            "success": true,
                            "message": "Token revoked successfully",
                            "token_id": id,
                            "timestamp": millis(now),
                        }),
                    )
                }
                None => failure(
                    "Failed to revoke token: 404 - {\"success\":false,\"errors\":[{\"code\":1003,\"message\":\"Invalid or missing token\"}]}",
                ),
            }
        }
    };
    state.ledger.revocations.push(Revocation {
        at: now,
        token_id,
        status: draft.status,
    });
    draft
}

fn audit(state: &State, call: &Call) -> Draft {
    let number = |name: &str| call.query.get(name).and_then(|text| text.parse().ok());
    let limit = number("limit").unwrap_or(50_usize).min(500);
    let offset = number("offset").unwrap_or(0);
    let rows: Vec<_> = state
        .ledger
        .mints
        .iter()
        .enumerate()
        .filter(|(_, mint)| mint.route == Route::Provision)
        .map(|(index, mint)| row(index + 1, mint))
        .filter(|row| {
            ["service", "type"].into_iter().all(|name| {
                let wanted = call.query.get(name);
                wanted.is_none_or(|wanted| row[name] == wanted.as_str())
            })
        })
        .rev()
        .collect();
    let total = rows.len();
    let page: Vec<_> = rows.into_iter().skip(offset).take(limit).collect();
    Draft::json(
        200,
        json!({
            "success": true,
            "provisions": page,
            "pagination": {"total": total, "limit": limit, "offset": offset},
            "metadata": {"timestamp": millis(state.now())},
        }),
    )
}

/// Neither repo nor run id is stored there, and what was revoked looks like what was not.
fn row(id: usize, mint: &Mint) -> Value {
    let kind = mint.credential_type.as_deref().unwrap_or_default();
    let service = match &mint.service {
        Some(service) if !kind.ends_with("_api_key") => service,
        _ => "N/A",
    };
    json!({
        "id": id,
        "type": kind,
        "service": service,
        "purpose": mint.purpose,
        "requesting_service": mint.key_owner,
        "token_id": mint.token_id,
        "expires_at": mint.expires_at.map(millis),
        "created_at": mint.issued_at.format("%Y-%m-%d %H:%M:%S").to_string(),
    })
}

/// Longest values the events table takes.
const EVENT_FIELDS: [(&str, usize); 3] = [("service", 50), ("action", 100), ("status", 20)];

fn event(state: &mut State, call: &Call) -> Draft {
    if !state.counters.events(call, Instant::now()) {
        return Draft::json(429, json!({"error": "Rate limit exceeded"}));
    }
    let Some(body) = call.body.as_ref().filter(|body| body.is_object()) else {
        return Draft::json(500, json!({"error": "Unexpected end of JSON input"}));
    };
    for (name, longest) in EVENT_FIELDS {
        match body.get(name).and_then(Value::as_str) {
            None => {
                let error = format!("null value in column \"{name}\" violates not-null constraint");
                return Draft::json(500, json!({"error": error}));
            }
            Some(text) if text.chars().count() > longest => {
                let error = format!("value too long for type character varying({longest})");
                return Draft::json(500, json!({"error": error}));
            }
            Some(_) => {}
        }
    }
    let at = state.now();
    state.ledger.events.push(AuditEvent {
        at,
        key_owner: call.key_owner.clone().unwrap_or_default(),
        body: body.clone(),
    });
    Draft::json(
        200,
        json!({"id": format!("evt_{}", random(16)), "timestamp": millis(at)}),
    )
}
