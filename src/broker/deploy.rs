//! The deploy API, as documented: one request for all the tokens a purpose needs.

use http::StatusCode;
use serde::Serialize;

use super::body::{InvalidBody, Members};
use super::classify::{Call, flawed, server_time};
use super::{Answer, Broker, MintRequest, Refusal, Reply, accepted};
use crate::core::Time;

/// Members of an answer that describe it and are no outputs.
const ABOUT: [&str; 14] = [
    "expires_at",
    "issued_at",
    "created_at",
    "timestamp",
    "status",
    "success",
    "message",
    "error",
    "metadata",
    "request_id",
    "service",
    "purpose",
    "repo",
    "run_id",
];

#[derive(Serialize)]
struct Body<'a> {
    purpose: &'a str,
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    repo: Option<&'a str>,
    run_id: &'a str,
}

pub(super) async fn mint(broker: &Broker, request: &MintRequest, now: Time) -> Result<Answer, Refusal> {
    let body = Body {
        purpose: &request.purpose,
        service: &request.service,
        repo: request.repo.as_deref(),
        run_id: &request.run_id,
    };
    let reply = broker
        .call(Call::Deploy, &[], Some(&body), Some(&request.idempotency_key))
        .await?;
    read(&reply, now)
}

pub(super) fn read(reply: &Reply, now: Time) -> Result<Answer, Refusal> {
    let members = accepted(reply, Call::Deploy, now)?;
    answer(members, server_time(&reply.headers).unwrap_or(now))
        .map_err(|flaw| flawed(flaw, StatusCode::OK, Call::Deploy))
}

fn answer(members: Members, now: Time) -> Result<Answer, InvalidBody> {
    let expires_at = members.expiry(now)?;
    let outputs = members.into_outputs(&ABOUT);
    if outputs.is_empty() {
        return Err(InvalidBody::NoOutputs);
    }
    let expires_at = expires_at.ok_or(InvalidBody::NoExpiry)?;
    Ok(Answer {
        outputs,
        expires_at: Some(expires_at),
        lifetime: Some(expires_at - now),
        token_ids: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{TimeDelta, TimeZone};
    use secrecy::ExposeSecret;

    fn now() -> Time {
        chrono::Utc.with_ymd_and_hms(2026, 1, 6, 11, 0, 0).unwrap()
    }
    fn read(body: &str) -> Result<Answer, InvalidBody> {
        answer(Members::parse(body.as_bytes())?, now())
    }

    #[test]
    fn the_documented_answer_gives_its_tokens_and_their_end() {
        let answer = read(
            r#"{"cloudflare_token":"cf_ephemeral_1","npm_token":"npm_1","github_token":"ghs_1",
                "account_id":"0bc21e3a5a9de1a4cc843be9c3e98121","expires_at":"2026-01-06T12:00:00Z"}"#,
        )
        .unwrap();
        let names: Vec<_> = answer.outputs.keys().collect();
        assert_eq!(names, ["account_id", "cloudflare_token", "github_token", "npm_token"]);
        assert_eq!(answer.outputs["npm_token"].expose_secret(), "npm_1");
        assert_eq!(answer.expires_at, Some(now() + TimeDelta::hours(1)));
        assert_eq!(answer.lifetime, Some(TimeDelta::hours(1)));
        assert!(answer.token_ids.is_empty());
    }

    #[test]
    fn an_output_nobody_has_heard_of_is_passed_through_and_an_echo_of_the_request_is_not() {
        let answer = read(
            r#"{"sentry_token":"s","service":"chittyid","run_id":"1","message":"ok","expires_at":"2026-01-06T12:00:00Z"}"#,
        );
        assert_eq!(answer.unwrap().outputs.keys().collect::<Vec<_>>(), ["sentry_token"]);
    }

    #[test]
    fn an_answer_without_tokens_or_without_an_end_ahead_is_none() {
        for (body, flaw) in [
            (r"{}", InvalidBody::NoOutputs),
            (r#"{"expires_at":"2026-01-06T12:00:00Z"}"#, InvalidBody::NoOutputs),
            (
                r#"{"npm_token":"","expires_at":"2026-01-06T12:00:00Z"}"#,
                InvalidBody::NoOutputs,
            ),
            (
                r#"{"npm_token":12,"expires_at":"2026-01-06T12:00:00Z"}"#,
                InvalidBody::NoOutputs,
            ),
            (r#"{"npm_token":"t"}"#, InvalidBody::NoExpiry),
            (r#"{"npm_token":"t","expires_at":null}"#, InvalidBody::NoExpiry),
            (r#"{"npm_token":"t","expires_at":1767700800}"#, InvalidBody::BadExpiry),
            (r#"{"npm_token":"t","expires_at":"later"}"#, InvalidBody::BadExpiry),
            (
                r#"{"npm_token":"t","expires_at":"2026-01-06T10:59:59Z"}"#,
                InvalidBody::PastExpiry,
            ),
        ] {
            assert_eq!(read(body).err(), Some(flaw), "{body}");
        }
    }
}
