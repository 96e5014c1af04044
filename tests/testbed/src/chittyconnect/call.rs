//! A request, understood as far as matching and the ledger need it.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde_json::Value;

use super::keys::{Keys, Refusal};
use super::matching::Route;
use crate::server::Request;

pub(super) struct Call {
    pub(super) route: Route,
    pub(super) key: Option<String>,
    pub(super) key_owner: Option<String>,
    pub(super) refusal: Option<Refusal>,
    pub(super) service: Option<String>,
    pub(super) purpose: Option<String>,
    pub(super) repo: Option<String>,
    pub(super) run_id: Option<String>,
    pub(super) credential_type: Option<String>,
    pub(super) idempotency_key: Option<String>,
    pub(super) query: BTreeMap<String, String>,
    /// `None` where the body is no JSON.
    pub(super) body: Option<Value>,
}

impl Call {
    pub(super) fn read(request: &Request, keys: &Keys) -> Self {
        let route = Route::of(&request.method, request.uri.path());
        let key = key(&request.headers);
        let (key_owner, refusal) = match keys.check(key.as_deref()) {
            Ok(owner) => (Some(owner), None),
            Err(refusal) => (None, Some(refusal)),
        };
        let body: Option<Value> = serde_json::from_slice(&request.body).ok();
        let fields = match route {
            Route::Provision => body.as_ref().and_then(|body| body.get("context")),
            _ => body.as_ref(),
        };
        let field = |name: &str| Some(fields?.get(name)?.as_str()?.to_owned());
        Self {
            route,
            key,
            key_owner,
            refusal,
            service: field("service").or_else(|| field("source_service")),
            purpose: field("purpose"),
            repo: field("repo"),
            run_id: field("run_id"),
            credential_type: match route {
                Route::Provision => body
                    .as_ref()
                    .and_then(|body| Some(body.get("type")?.as_str()?.to_owned())),
                _ => None,
            },
            idempotency_key: header(&request.headers, "idempotency-key"),
            query: query(request.uri.query().unwrap_or_default()),
            body,
        }
    }
}

/// The key's own header goes before the bearer.
fn key(headers: &HeaderMap) -> Option<String> {
    header(headers, "x-chittyos-api-key").or_else(|| {
        let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, key) = value.split_once(' ')?;
        let key = key.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then(|| key.to_owned())
    })
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// Names and numbers are all that is asked for here, so nothing is unescaped.
fn query(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
