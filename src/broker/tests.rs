//! The client against real sockets.

mod calls;

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};

use chrono::TimeZone;
use serde_json::{Value, json};

use super::testing::{Canned, IMPATIENCE, Server, endpoint};
use super::*;

const KEY: &str = "api-key-canary";
const TOKEN: &str = "cf_ephemeral_canary";
const GOOD: &str = r#"{"cloudflare_token":"cf_ephemeral_canary","expires_at":"2026-01-06T12:00:00Z"}"#;

fn now() -> Time {
    chrono::Utc.with_ymd_and_hms(2026, 1, 6, 11, 0, 0).unwrap()
}

fn request() -> MintRequest {
    MintRequest {
        service: "chittyid".into(),
        purpose: "worker-deploy".into(),
        repo: None,
        run_id: "12345".into(),
        idempotency_key: "claim-1".into(),
        provision: Some(Provision {
            type_: "cloudflare_workers_deploy".into(),
            context: BTreeMap::new(),
        }),
    }
}

fn broker(url: &str, api: Api) -> Broker {
    Broker::new(&endpoint(url, KEY), api).unwrap()
}

fn impatient(url: &str, api: Api) -> Broker {
    let endpoint = Endpoint {
        timeout: IMPATIENCE,
        ..endpoint(url, KEY)
    };
    Broker::new(&endpoint, api).unwrap()
}

async fn mint(canned: Canned) -> (Result<Answer, Refusal>, Vec<String>) {
    let hangs = canned.hangs();
    let server = Server::start(canned);
    let broker = if hangs { impatient } else { broker }(&server.url, Api::Deploy);
    let result = broker.mint(&request(), now()).await;
    (result, server.requests())
}

async fn refusal(canned: Canned) -> Refusal {
    let (result, requests) = mint(canned).await;
    assert_eq!(requests.len(), 1, "a mint is sent once");
    let refusal = result.unwrap_err();
    assert!(!format!("{refusal} {refusal:?}").contains("canary"), "{refusal:?}");
    refusal
}

async fn refused_by(url: &str) -> Refusal {
    impatient(url, Api::Deploy).mint(&request(), now()).await.unwrap_err()
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn never_sent(refusal: &Refusal, phrase: &str) {
    assert_eq!(
        (refusal.reason, refusal.sent),
        (Reason::BrokerUnavailable, Sent::No),
        "{refusal:?}"
    );
    assert!(refusal.message.contains(phrase), "{refusal}");
}

#[tokio::test]
async fn deploy_is_asked_as_documented_once() {
    let (result, requests) = mint(Canned::json(200, GOOD)).await;
    assert_eq!(result.unwrap().outputs["cloudflare_token"].expose_secret(), TOKEN);
    assert_eq!(requests.len(), 1);
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /base/credentials/deploy HTTP/1.1\r\n"), "{head}");
    for line in [
        "authorization: Bearer api-key-canary",
        "content-type: application/json",
        "idempotency-key: claim-1",
        concat!("user-agent: chittyconnect-operator/", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(head.contains(line), "{line} is not in {head}");
    }
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        body,
        json!({"purpose": "worker-deploy", "service": "chittyid", "run_id": "12345"})
    );
}

#[tokio::test]
async fn a_lifetime_is_told_by_the_servers_clock_where_it_has_one() {
    let answer = mint(Canned::json(200, GOOD)).await.0.unwrap();
    assert_eq!(answer.lifetime, Some(TimeDelta::hours(1)));
    let ahead = Canned::json(200, GOOD).header("Date: Tue, 06 Jan 2026 11:50:00 GMT");
    assert_eq!(mint(ahead).await.0.unwrap().lifetime, Some(TimeDelta::minutes(10)));
    let past = Canned::json(200, GOOD).header("Date: Tue, 06 Jan 2026 12:00:00 GMT");
    assert_eq!(refusal(past).await.reason, Reason::InvalidResponse);
}

#[tokio::test]
async fn a_closed_port_means_nothing_was_sent() {
    let (listener, address) = listener();
    drop(listener);
    never_sent(
        &refused_by(&format!("http://{address}")).await,
        "no connection came about;",
    );
}

#[tokio::test]
async fn a_name_that_does_not_resolve_means_nothing_was_sent() {
    never_sent(&refused_by("http://nowhere.invalid").await, "nothing was sent");
}

#[tokio::test]
async fn tls_to_a_port_that_speaks_none_means_nothing_was_sent() {
    let (listener, address) = listener();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        std::thread::sleep(IMPATIENCE.to_std().unwrap());
    });
    never_sent(
        &refused_by(&format!("https://{address}")).await,
        "no TLS session came about",
    );
}

#[tokio::test]
async fn a_tls_handshake_that_hangs_means_nothing_was_sent() {
    let (_listener, address) = listener();
    never_sent(
        &refused_by(&format!("https://{address}")).await,
        "no connection came about in time",
    );
}

#[tokio::test]
async fn no_answer_or_half_of_one_leaves_the_outcome_unknown() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"cloudflare_token\":\"cf_ephemeral_canary";
    for (canned, message) in [
        (
            Canned::Hang,
            "ChittyConnect did not answer within 2 s; whether a token was made is unknown",
        ),
        (
            Canned::Stalled(head.into()),
            "ChittyConnect did not answer within 2 s; whether a token was made is unknown",
        ),
        (
            Canned::Cut,
            "The connection to ChittyConnect ended before its answer did; whether a token was made is unknown",
        ),
        (
            Canned::Partial(head.into()),
            "The connection to ChittyConnect ended before its answer did; whether a token was made is unknown",
        ),
        (
            Canned::Partial("220 smtp.example\r\n".into()),
            "The connection to ChittyConnect ended before its answer did; whether a token was made is unknown",
        ),
    ] {
        let refusal = refusal(canned).await;
        assert_eq!(
            (refusal.reason, refusal.sent),
            (Reason::OutcomeUnknown, Sent::Unknown),
            "{refusal:?}"
        );
        assert_eq!(refusal.message, message);
    }
}

#[tokio::test]
async fn a_refusal_counts_by_its_status_even_if_its_body_is_cut() {
    let cut = Canned::Partial("HTTP/1.1 401 Unauthorized\r\nContent-Length: 500\r\n\r\n{".into());
    assert_eq!(refusal(cut).await.reason, Reason::Unauthorized);
}

#[tokio::test]
async fn an_answer_of_any_size_is_read_no_further_than_the_cap() {
    let padding = "x".repeat(10 * 1024 * 1024);
    let huge = Canned::json(
        200,
        &format!(r#"{{"npm_token":"{padding}","expires_at":"2026-01-06T12:00:00Z"}}"#),
    );
    let endless =
        Canned::Endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nConnection: close\r\n\r\n{".into());
    for canned in [huge, endless] {
        let refusal = refusal(canned).await;
        assert_eq!((refusal.reason, refusal.sent), (Reason::InvalidResponse, Sent::Yes));
        assert!(refusal.message.contains("larger than 256 KiB"), "{refusal}");
    }
    let most = "x".repeat(200 * 1024);
    let (result, _) = mint(Canned::json(200, &GOOD.replace(TOKEN, &most))).await;
    assert!(result.is_ok());
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Server::start(Canned::json(200, GOOD));
    for status in [301, 302, 307, 308] {
        let redirect = Canned::json(status, "").header(&format!("Location: {}", elsewhere.url));
        assert_eq!(refusal(redirect).await.reason, Reason::InvalidResponse);
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn a_success_without_a_token_is_an_invalid_response() {
    for body in [
        "<!doctype html><title>cf_ephemeral_canary</title>",
        "",
        r#"{"cloudflare_token":"cf_ephemeral_canary"#,
        r#"{"success":false,"error":"cf_ephemeral_canary"}"#,
        r#"{"cloudflare_token":"cf_ephemeral_canary"}"#,
        r#"["cf_ephemeral_canary"]"#,
    ] {
        let refusal = refusal(Canned::json(200, body)).await;
        assert_eq!(
            (refusal.reason, refusal.sent),
            (Reason::InvalidResponse, Sent::Yes),
            "{body}"
        );
    }
    assert_eq!(refusal(Canned::json(204, "")).await.reason, Reason::InvalidResponse);
}

#[tokio::test]
async fn a_denial_with_status_200_is_a_denial() {
    let body = r#"{"success":false,"error":{"code":"PROVISION_FAILED","message":"Risk score too high: 80"}}"#;
    let refusal = refusal(Canned::json(200, body)).await;
    assert_eq!(refusal.reason, Reason::Denied);
    assert_eq!(
        refusal.message,
        "ChittyConnect judged this request too risky and denied it"
    );
}

#[test]
fn an_image_without_ca_certificates_is_an_error_and_no_panic() {
    const INSIDE: &str = "CHITTY_TEST_WITHOUT_ROOTS";
    if std::env::var_os(INSIDE).is_some() {
        let https = Broker::new(&endpoint("https://connect.chitty.cc", KEY), Api::Deploy);
        assert_eq!(https.err(), Some(BuildError::NoRoots));
        assert!(Broker::new(&endpoint("http://127.0.0.1:1", KEY), Api::Deploy).is_ok());
        return;
    }
    // Where certificates are looked for is a variable of the process: a process of its own.
    let name = std::thread::current().name().unwrap().to_owned();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name])
        .envs([
            (INSIDE, "1"),
            ("SSL_CERT_FILE", "/nonexistent"),
            ("SSL_CERT_DIR", "/nonexistent"),
        ])
        .status();
    assert!(status.unwrap().success());
}

/// Invariant 1.
#[tokio::test]
async fn no_debug_and_no_display_holds_a_key_or_a_token() {
    let server = Server::start(Canned::json(200, GOOD));
    let endpoint = endpoint(&server.url, KEY);
    let broker = Broker::new(&endpoint, Api::Deploy).unwrap();
    let answer = broker.mint(&request(), now()).await.unwrap();
    let texts = format!(
        "{endpoint:?} {broker:?} {answer:?} {:?} {:?}",
        request(),
        broker.clone()
    );
    assert!(!texts.contains("canary"), "{texts}");
    assert!(texts.contains("REDACTED"), "{texts}");
}
