//! A client without a mind of its own: it says what came back.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use testbed::ChittyConnect;

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn message(&self) -> String {
        let body = self.json();
        let error = &body["error"];
        let message = error.as_str().or_else(|| error["message"].as_str());
        message.unwrap_or_default().to_owned()
    }
}

pub fn http(ca: Option<&str>) -> Result<reqwest::Client> {
    testbed::install_crypto_provider();
    let roots = ca
        .map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()))
        .transpose()?;
    Ok(reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(5))
        .tls_certs_only(roots)
        .build()?)
}

pub async fn read(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    Ok(Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await?,
    })
}

pub fn deploy_body(service: &str) -> Value {
    json!({
        "purpose": "worker-deploy",
        "service": service,
        "repo": "CHITTYOS/chittyid",
        "run_id": "12345",
    })
}

pub async fn post(sim: &ChittyConnect, path: &str, body: &Value) -> Result<Answer> {
    let request = http(sim.ca_pem())?
        .post(format!("{}{path}", sim.url()))
        .bearer_auth(sim.api_key())
        .json(body);
    Ok(read(request).await?)
}

pub async fn deploy(sim: &ChittyConnect, service: &str) -> Result<Answer> {
    post(sim, "/credentials/deploy", &deploy_body(service)).await
}

#[allow(clippy::needless_pass_by_value, reason = "callers write json!() in place")]
pub async fn provision(sim: &ChittyConnect, kind: &str, context: Value) -> Result<Answer> {
    let body = json!({"type": kind, "context": context});
    post(sim, "/api/credentials/provision", &body).await
}

pub async fn get(sim: &ChittyConnect, path: &str) -> Result<Answer> {
    let request = http(sim.ca_pem())?
        .get(format!("{}{path}", sim.url()))
        .bearer_auth(sim.api_key());
    Ok(read(request).await?)
}

pub async fn revoke(sim: &ChittyConnect, body: &Value) -> Result<Answer> {
    let request = http(sim.ca_pem())?
        .delete(format!("{}/api/credentials/revoke", sim.url()))
        .bearer_auth(sim.api_key())
        .json(body);
    Ok(read(request).await?)
}

pub fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().and_then(|text| text.parse().ok()).expect("a time")
}
