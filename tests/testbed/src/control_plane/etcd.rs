//! Reading etcd behind the API server's back.

use anyhow::{Context, ensure};
use data_encoding::BASE64;
use serde_json::{Value, json};

/// Keys per request: gRPC limits how large one answer may be.
const PAGE: usize = 200;

/// Everything stored, oldest API objects and all, by key.
pub(super) async fn dump(url: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let http = client()?;
    let mut entries = Vec::new();
    // "\0" to "\0" is etcd's way to say: every key.
    let mut from = vec![0];
    loop {
        let body = json!({
            "key": BASE64.encode(&from),
            "range_end": BASE64.encode(&[0]),
            "limit": PAGE,
        });
        let page: Value = http
            .post(format!("{url}/v3/kv/range"))
            .json(&body)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .context("failed to read etcd")?
            .json()
            .await
            .context("failed to read etcd's answer")?;
        for pair in page["kvs"].as_array().into_iter().flatten() {
            let key = decode(&pair["key"])?;
            from = [key.as_slice(), &[0]].concat();
            entries.push((String::from_utf8_lossy(&key).into_owned(), decode(&pair["value"])?));
        }
        if page["more"].as_bool() != Some(true) {
            return Ok(entries);
        }
    }
}

/// Whether etcd serves requests.
pub(super) async fn check_health(url: &str) -> anyhow::Result<()> {
    let response = client()?.get(format!("{url}/health")).send().await?;
    ensure!(response.status().is_success(), "etcd is not healthy yet");
    Ok(())
}

fn client() -> anyhow::Result<reqwest::Client> {
    crate::install_crypto_provider();
    // No certificates: it only ever talks http to loopback, and a machine may have none.
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .context("failed to build an HTTP client")
}

fn decode(value: &Value) -> anyhow::Result<Vec<u8>> {
    // An empty value is left out of the answer.
    let text = value.as_str().unwrap_or_default();
    BASE64.decode(text.as_bytes()).context("failed to decode etcd's answer")
}
