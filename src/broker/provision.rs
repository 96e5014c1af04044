//! The provision API, as the public worker serves it: one credential of a type, mapped onto the names
//! that deploy uses, so that layouts work with both.

use std::collections::BTreeMap;

use chrono::{NaiveDateTime, TimeDelta};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::body::{InvalidBody, Members, insert};
use super::classify::{Call, ErrorBody, Phrase, flawed, server_time};
use super::{Answer, Broker, MintRequest, Probe, Reason, Refusal, Reply, Revoked, Sent, accepted, is_token_id};
use crate::core::Time;
use crate::core::render::Outputs;

/// Audit rows to look at: many times what a scope can mint while an answer is awaited.
const AUDIT_ROWS: &str = "100";

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    type_: &'a str,
    context: BTreeMap<&'a str, Value>,
}

pub(super) async fn mint(broker: &Broker, request: &MintRequest, now: Time) -> Result<Answer, Refusal> {
    let body = body(request)?;
    let call = Call::Provision;
    let reply = broker
        .call(call, &[], Some(&body), Some(&request.idempotency_key))
        .await?;
    read(&reply, now)
}

pub(super) fn read(reply: &Reply, now: Time) -> Result<Answer, Refusal> {
    let call = Call::Provision;
    let members = accepted(reply, call, now)?;
    answer(&members, server_time(&reply.headers).unwrap_or(now)).map_err(|(flaw, token_ids)| Refusal {
        token_ids,
        ..flawed(flaw, reply.status, call)
    })
}

fn body(request: &MintRequest) -> Result<Body<'_>, Refusal> {
    let Some(provision) = &request.provision else {
        let message = "The connection speaks the Provision API, which needs a type: set spec.type; nothing was sent";
        return Err(Refusal::new(Reason::InvalidSpec, message, Sent::No));
    };
    let mut context: BTreeMap<&str, Value> = provision
        .context
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    // What access rules were asked about is what is sent, whatever the context says.
    context.remove("repo");
    context.extend([
        ("service", json!(request.service)),
        ("purpose", json!(request.purpose)),
        ("run_id", json!(request.run_id)),
    ]);
    if let Some(repo) = &request.repo {
        context.insert("repo", json!(repo));
    }
    Ok(Body {
        type_: &provision.type_,
        context,
    })
}

/// A flaw comes with the ids of tokens that were made all the same.
fn answer(members: &Members, now: Time) -> Result<Answer, (InvalidBody, Vec<String>)> {
    let credential = members
        .object("credential")
        .ok_or((InvalidBody::NoCredential, Vec::new()))?;
    let outputs = outputs(credential);
    let token_ids: Vec<String> = credential
        .text("token_id")
        .map(|id| id.expose_secret().to_owned())
        .filter(|id| is_token_id(id, &outputs))
        .into_iter()
        .collect();
    if outputs.is_empty() {
        return Err((InvalidBody::NoValue, token_ids));
    }
    match credential.expiry(now) {
        Ok(expires_at) => Ok(Answer {
            outputs,
            expires_at,
            lifetime: expires_at.map(|at| at - now),
            token_ids,
        }),
        Err(flaw) => Err((flaw, token_ids)),
    }
}

fn outputs(credential: &Members) -> Outputs {
    let mut outputs = Outputs::new();
    let type_ = credential.text("type").map_or("", |text| text.expose_secret());
    if let Some(value) = credential.text("value") {
        insert(&mut outputs, output_name(type_), value.clone());
    }
    if let Some(account) = credential.text("account_id")
        && !outputs.is_empty()
    {
        insert(&mut outputs, "account_id", account.clone());
    }
    outputs
}

/// What deploy calls a credential of this type; types it does not know keep their own name.
fn output_name(type_: &str) -> &str {
    match type_ {
        "cloudflare_api_token" => "cloudflare_token",
        "database_connection" => "neon_database_url",
        _ if type_.starts_with("neon_") && type_.ends_with("_api_key") => "neon_token",
        // Secrets keep these names for themselves.
        "expires_at" | "account_id" => "",
        _ => type_,
    }
}

pub(super) async fn revoke(broker: &Broker, token_id: &str, now: Time) -> Result<Revoked, Refusal> {
    let body = json!({"token_id": token_id});
    let reply = broker.call(Call::Revoke, &[], Some(&body), None).await?;
    match accepted(&reply, Call::Revoke, now) {
        Ok(_) => Ok(Revoked::Now),
        Err(refusal) => {
            let said = ErrorBody::in_body(reply.body.as_deref().map(Vec::as_slice));
            // The worker wraps Cloudflare's 404 for a token that is gone in a 500 of its own.
            if reply.status.as_u16() == 500 && said.says(Phrase::NoSuchToken) {
                Ok(Revoked::Already)
            } else {
                Err(refusal)
            }
        }
    }
}

pub(super) async fn probe(broker: &Broker, now: Time) -> Result<Probe, Refusal> {
    let reply = broker.call(Call::Health, &[], None::<&()>, None).await?;
    match accepted(&reply, Call::Health, now) {
        Ok(_) => Ok(Probe::Accepted),
        Err(refusal) if refusal.reason == Reason::Unauthorized => Ok(Probe::Refused),
        Err(refusal) => Err(refusal),
    }
}

#[derive(Deserialize)]
struct Audit {
    provisions: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    #[serde(rename = "type")]
    type_: Option<String>,
    service: Option<String>,
    purpose: Option<String>,
    token_id: Option<String>,
    created_at: Option<String>,
}

pub(super) async fn candidates(
    broker: &Broker,
    request: &MintRequest,
    since: Time,
    now: Time,
) -> Result<Vec<String>, Refusal> {
    let type_ = request.provision.as_ref().map_or("", |provision| &provision.type_);
    let query = [
        ("service", request.service.as_str()),
        ("type", type_),
        ("limit", AUDIT_ROWS),
    ];
    let reply = broker.call(Call::Audit, &query, None::<&()>, None).await?;
    accepted(&reply, Call::Audit, now)?;
    let body = reply.body.as_deref().map(Vec::as_slice).unwrap_or_default();
    let audit: Audit =
        serde_json::from_slice(body).map_err(|_| flawed(InvalidBody::NotAnObject, reply.status, Call::Audit))?;
    Ok(found(audit, request, type_, since))
}

fn found(audit: Audit, request: &MintRequest, type_: &str, since: Time) -> Vec<String> {
    // Rows carry whole seconds.
    let since = since - TimeDelta::seconds(1);
    let matches = |row: &Row| {
        row.type_.as_deref() == Some(type_)
            && row.service.as_deref() == Some(&request.service)
            && row.purpose.as_deref() == Some(&request.purpose)
            && row.created_at.as_deref().and_then(created).is_some_and(|at| at > since)
    };
    let rows = audit.provisions.into_iter().filter(matches);
    let none = Outputs::new();
    rows.filter_map(|row| row.token_id)
        .filter(|id| is_token_id(id, &none))
        .collect()
}

fn created(text: &str) -> Option<Time> {
    let sql = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").map(|at| at.and_utc());
    sql.or_else(|_| text.parse()).ok()
}

#[cfg(test)]
mod tests;
