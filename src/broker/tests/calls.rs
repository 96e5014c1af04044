//! The requests that mint nothing, the provision API, and endpoints that cannot work.

use super::*;

#[tokio::test]
async fn revoking_a_token_that_is_gone_is_done() {
    let gone = r#"{"success":false,"error":{"code":"REVOKE_FAILED","message":"Failed to revoke token: 404 - {}"}}"#;
    for (canned, outcome) in [
        (
            Canned::json(200, r#"{"success":true,"token_id":"id1"}"#),
            Ok(Revoked::Now),
        ),
        (Canned::json(500, gone), Ok(Revoked::Already)),
        (
            Canned::json(503, r#"{"success":false,"error":"not configured"}"#),
            Err(Reason::BrokerUnavailable),
        ),
        (Canned::json(404, "404 Not Found"), Err(Reason::BrokerRejected)),
        (
            Canned::json(400, r#"{"success":false,"error":"token_id is required"}"#),
            Err(Reason::BrokerRejected),
        ),
        (
            Canned::json(401, r#"{"error":"Invalid API key"}"#),
            Err(Reason::Unauthorized),
        ),
        (Canned::json(200, "<html>"), Err(Reason::InvalidResponse)),
        (Canned::Hang, Err(Reason::OutcomeUnknown)),
    ] {
        let server = Server::start(canned);
        let result = impatient(&server.url, Api::Provision).revoke("id1", now()).await;
        assert_eq!(result.map_err(|refusal| refusal.reason), outcome);
        let request = server.requests().concat();
        assert!(
            request.starts_with("DELETE /base/api/credentials/revoke HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.ends_with(r#"{"token_id":"id1"}"#), "{request}");
    }
    let unasked = Server::start(Canned::json(200, "{}"));
    let refusal = broker(&unasked.url, Api::Deploy)
        .revoke("id1", now())
        .await
        .unwrap_err();
    assert_eq!((refusal.sent, unasked.requests().len()), (Sent::No, 0));
}

#[tokio::test]
async fn a_token_counts_as_revoked_only_where_its_upstreams_own_404_is_reported() {
    for (status, message, revoked) in [
        (500, "Failed to revoke token: 404 - {}", true),
        (500, "Failed to revoke token: 404", true),
        (500, "Failed to revoke token: 4040", false),
        (500, "Failed to revoke token: 403 - 40404", false),
        (500, "Failed to revoke token: 500 - see ray 404 x", false),
        (500, "Failed to revoke token: 500 - Failed to revoke token: 404", false),
        (500, "404 - Not Found", false),
        (502, "Failed to revoke token: 404 - {}", false),
        (404, "Failed to revoke token: 404 - {}", false),
    ] {
        let body = format!(r#"{{"success":false,"error":{{"code":"REVOKE_FAILED","message":"{message}"}}}}"#);
        let server = Server::start(Canned::json(status, &body));
        let result = impatient(&server.url, Api::Provision).revoke("id1", now()).await;
        assert_eq!(
            result == Ok(Revoked::Already),
            revoked,
            "{status} {message}: {result:?}"
        );
        assert!(revoked || result.is_err(), "{status} {message}");
    }
}

#[tokio::test]
async fn a_probe_asks_about_the_key_and_mints_nothing() {
    for (canned, outcome) in [
        (Canned::json(200, r#"{"status":"healthy"}"#), Ok(Probe::Accepted)),
        (
            Canned::json(401, r#"{"error":"API key is inactive"}"#),
            Ok(Probe::Refused),
        ),
        (Canned::json(500, "{}"), Err(Reason::BrokerUnavailable)),
        (Canned::json(200, "<html>"), Err(Reason::InvalidResponse)),
    ] {
        let server = Server::start(canned);
        let result = broker(&server.url, Api::Provision).probe(now()).await;
        assert_eq!(result.map_err(|refusal| refusal.reason), outcome);
        assert!(
            server
                .requests()
                .concat()
                .starts_with("GET /base/api/health HTTP/1.1\r\n")
        );
    }
    let unasked = Server::start(Canned::json(200, "{}"));
    assert_eq!(
        broker(&unasked.url, Api::Deploy).probe(now()).await,
        Ok(Probe::Unsupported)
    );
    assert!(unasked.requests().is_empty());
}

#[tokio::test]
async fn provision_mints_and_finds_what_an_answer_that_was_lost_may_have_made() {
    let body = r#"{"success":true,"credential":{"type":"cloudflare_api_token","value":"cf_ephemeral_canary","token_id":"id1"}}"#;
    let server = Server::start(Canned::json(200, body));
    let answer = broker(&server.url, Api::Provision)
        .mint(&request(), now())
        .await
        .unwrap();
    assert_eq!((answer.token_ids, answer.expires_at), (vec!["id1".to_owned()], None));
    let sent = server.requests().concat();
    assert!(
        sent.starts_with("POST /base/api/credentials/provision HTTP/1.1\r\n"),
        "{sent}"
    );

    let rows = r#"{"success":true,"provisions":[{"type":"cloudflare_workers_deploy","service":"chittyid",
        "purpose":"worker-deploy","token_id":"id2","created_at":"2026-01-06 11:00:00"}]}"#;
    let server = Server::start(Canned::json(200, rows));
    let found = broker(&server.url, Api::Provision)
        .candidates(&request(), now(), now())
        .await;
    assert_eq!(found, Ok(vec!["id2".to_owned()]));
    let sent = server.requests().concat();
    let line = "GET /base/api/credentials/audit?service=chittyid&type=cloudflare_workers_deploy&limit=100 HTTP/1.1\r\n";
    assert!(sent.starts_with(line), "{sent}");
}

#[test]
fn an_endpoint_that_cannot_work_says_what_to_change() {
    let build = |url: &str, key: &str, ca: Option<&str>| {
        let mut endpoint = endpoint(url, key);
        endpoint.ca_bundle = ca.map(|text| text.as_bytes().to_vec());
        Broker::new(&endpoint, Api::Deploy).err()
    };
    for url in [
        "ftp://h",
        "unix:/run/x",
        "https://u@h",
        "https://u:p@h",
        "https://h?q=1",
        "https://h#f",
    ] {
        assert_eq!(build(url, KEY, None), Some(BuildError::Url), "{url}");
    }
    for key in ["", " \n", "two\nlines", "nul\0"] {
        assert_eq!(build("https://h", key, None), Some(BuildError::Key), "{key:?}");
    }
    let not_der = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    for ca in [
        "",
        "no PEM at all",
        not_der,
        "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----",
    ] {
        assert_eq!(build("https://h", KEY, Some(ca)), Some(BuildError::CaBundle), "{ca}");
    }
    assert_eq!(build("https://h/", " key\n", None), None);
}
