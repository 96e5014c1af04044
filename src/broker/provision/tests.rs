use super::*;
use crate::broker::Provision;
use chrono::TimeZone;

fn now() -> Time {
    chrono::Utc.with_ymd_and_hms(2026, 1, 6, 11, 0, 0).unwrap()
}

fn read(body: &str) -> Result<Answer, (InvalidBody, Vec<String>)> {
    answer(&Members::parse(body.as_bytes()).unwrap(), now())
}

fn request(context: &[(&str, Value)]) -> MintRequest {
    MintRequest {
        service: "chittyid".into(),
        purpose: "worker-deploy".into(),
        repo: Some("CHITTYOS/chittyid".into()),
        run_id: "r1".into(),
        idempotency_key: "k1".into(),
        provision: Some(Provision {
            type_: "cloudflare_workers_deploy".into(),
            context: context
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        }),
    }
}

#[test]
fn a_credential_gets_the_name_deploy_has_for_it() {
    for (type_, name) in [
        ("cloudflare_api_token", "cloudflare_token"),
        ("github_token", "github_token"),
        ("service_token", "service_token"),
        ("database_connection", "neon_database_url"),
        ("neon_api_key", "neon_token"),
        ("neon_branch_api_key", "neon_token"),
        ("openai_api_key", "openai_api_key"),
        ("npm_token", "npm_token"),
    ] {
        let answer = read(&format!(
            r#"{{"success":true,"credential":{{"type":"{type_}","value":"v"}}}}"#
        ))
        .unwrap();
        assert_eq!(answer.outputs.keys().collect::<Vec<_>>(), [name]);
        assert_eq!((answer.expires_at, answer.lifetime), (None, None));
    }
}

#[test]
fn a_cloudflare_token_comes_with_its_account_its_id_and_its_distant_end() {
    let answer = read(
        r#"{"success":true,"usage_instructions":{"command":"echo cf_1"},"metadata":{},
            "credential":{"type":"cloudflare_api_token","value":"cf_1","account_id":"acc",
            "token_id":"ed17574386854bf78a67040be0a770b0","expires_at":"2027-01-06T11:00:00.000Z","scopes":["a"]}}"#,
    )
    .unwrap();
    assert_eq!(
        answer.outputs.keys().collect::<Vec<_>>(),
        ["account_id", "cloudflare_token"]
    );
    assert_eq!(answer.token_ids, ["ed17574386854bf78a67040be0a770b0"]);
    assert_eq!(answer.lifetime, Some(TimeDelta::days(365)));
}

#[test]
fn a_token_that_cannot_be_published_can_still_be_revoked() {
    let credential = |more: &str| {
        read(&format!(
            r#"{{"credential":{{"type":"cloudflare_api_token","token_id":"id1"{more}}}}}"#
        ))
    };
    let id = vec!["id1".to_owned()];
    for (more, flaw) in [
        ("", InvalidBody::NoValue),
        (r#","value":"""#, InvalidBody::NoValue),
        (r#","value":5,"account_id":"acc""#, InvalidBody::NoValue),
        (
            r#","value":"v","expires_at":"2026-01-06T10:00:00Z""#,
            InvalidBody::PastExpiry,
        ),
        (r#","value":"v","expires_at":"whenever""#, InvalidBody::BadExpiry),
    ] {
        assert_eq!(credential(more).err(), Some((flaw, id.clone())), "{more}");
    }
}

#[test]
fn an_answer_without_a_credential_holds_nothing() {
    for body in [
        "{}",
        r#"{"credential":null}"#,
        r#"{"credential":"cf_1"}"#,
        r#"{"credential":[{"value":"x"}]}"#,
    ] {
        assert_eq!(
            read(body).err(),
            Some((InvalidBody::NoCredential, Vec::new())),
            "{body}"
        );
    }
    for type_ in ["", "expires_at", "account_id", "a type"] {
        let body = format!(r#"{{"credential":{{"type":"{type_}","value":"v"}}}}"#);
        assert_eq!(read(&body).err(), Some((InvalidBody::NoValue, Vec::new())), "{type_}");
    }
}

#[test]
fn a_token_id_that_is_part_of_the_token_or_no_plain_word_is_dropped() {
    for id in ["cf_secret", "secret", "a b", "<id>", "", &"x".repeat(65)] {
        let body =
            format!(r#"{{"credential":{{"type":"cloudflare_api_token","value":"cf_secret","token_id":"{id}"}}}}"#);
        assert_eq!(read(&body).unwrap().token_ids, Vec::<String>::new(), "{id}");
    }
}

#[test]
fn the_context_cannot_replace_what_access_rules_were_asked_about() {
    let mut request = request(&[
        ("service", json!("other")),
        ("repo", json!("evil/repo")),
        ("zones", json!(["z"])),
    ]);
    let sent = serde_json::to_value(body(&request).unwrap()).unwrap();
    assert_eq!(
        sent,
        json!({"type": "cloudflare_workers_deploy", "context": {"service": "chittyid", "purpose": "worker-deploy",
            "repo": "CHITTYOS/chittyid", "run_id": "r1", "zones": ["z"]}})
    );
    request.repo = None;
    let sent = serde_json::to_value(body(&request).unwrap()).unwrap();
    assert!(sent["context"].get("repo").is_none());
}

#[test]
fn without_a_type_nothing_is_sent() {
    let mut request = request(&[]);
    request.provision = None;
    let refusal = body(&request).err().unwrap();
    assert_eq!((refusal.reason, refusal.sent), (Reason::InvalidSpec, Sent::No));
}

#[test]
fn candidates_are_the_tokens_of_this_request_made_since() {
    let row = |id: &str, service: &str, purpose: &str, type_: &str, at: &str| json!({"id": 1, "type": type_, "service": service, "purpose": purpose, "token_id": id, "created_at": at});
    let (service, purpose, type_) = ("chittyid", "worker-deploy", "cloudflare_workers_deploy");
    let rows = json!({"success": true, "provisions": [
        row("new", service, purpose, type_, "2026-01-06 11:00:09"),
        row("iso", service, purpose, type_, "2026-01-06T11:00:05Z"),
        row("same-second", service, purpose, type_, "2026-01-06 11:00:05"),
        row("old", service, purpose, type_, "2026-01-06 11:00:04"),
        row("undated", service, purpose, type_, "recently"),
        row("not a word", service, purpose, type_, "2026-01-06 11:00:09"),
        row("other-service", "N/A", purpose, type_, "2026-01-06 11:00:09"),
        row("other-purpose", service, "read", type_, "2026-01-06 11:00:09"),
        row("other-type", service, purpose, "cloudflare_workers_read", "2026-01-06 11:00:09"),
        {"id": 2, "type": type_, "service": service, "purpose": purpose, "token_id": null, "created_at": "2026-01-06 11:00:09"},
    ]});
    let audit: Audit = serde_json::from_value(rows).unwrap();
    let since = now() + TimeDelta::milliseconds(5400);
    assert_eq!(found(audit, &request(&[]), type_, since), ["new", "iso", "same-second"]);
}
