use super::*;
use chrono::TimeZone;
use http::HeaderValue;

type Lines<'a> = &'a [(&'static str, &'a str)];

fn now() -> Time {
    chrono::Utc.with_ymd_and_hms(2026, 1, 6, 11, 20, 30).unwrap()
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| {
            (
                http::HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        })
        .collect()
}

fn meant_with(status: u16, lines: &[(&'static str, &str)], body: &str, call: Call) -> Refusal {
    let said = ErrorBody::in_body(Some(body.as_bytes()));
    classify(
        StatusCode::from_u16(status).unwrap(),
        &headers(lines),
        &said,
        call,
        now(),
    )
}

fn meant(status: u16, body: &str, call: Call) -> Refusal {
    meant_with(status, &[], body, call)
}

fn failed(message: &str) -> String {
    format!(r#"{{"success":false,"error":{{"code":"PROVISION_FAILED","message":"{message}","details":"at x.js:1"}}}}"#)
}

#[test]
fn every_answer_that_is_no_success_has_one_meaning() {
    use Reason::{BrokerRejected, BrokerUnavailable, Denied, InvalidResponse, RateLimited, Unauthorized};
    for (status, body, reason) in [
        (401, r#"{"error":"Missing API key"}"#.to_owned(), Unauthorized),
        (401, r#"{"error":"risk"}"#.to_owned(), Unauthorized),
        (401, String::new(), Unauthorized),
        (403, failed("Credential request DENIED: risk level critical"), Denied),
        (403, failed("Forbidden"), Denied),
        (403, "<html>blocked</html>".to_owned(), Denied),
        (400, failed("service is required"), BrokerRejected),
        (400, failed("Credential request DENIED: risk level critical"), Denied),
        (400, failed("request DENIED: type required"), BrokerRejected),
        (
            500,
            failed("Cloudflare: ACCESS_DENIED, account at risk"),
            BrokerUnavailable,
        ),
        (400, "gibberish".to_owned(), BrokerRejected),
        (402, String::new(), BrokerRejected),
        (404, "404 Not Found".to_owned(), BrokerRejected),
        (404, failed("repository not found"), BrokerRejected),
        (405, String::new(), BrokerRejected),
        (408, String::new(), BrokerUnavailable),
        (413, String::new(), BrokerRejected),
        (422, failed("x"), BrokerRejected),
        (429, failed("Rate limit exceeded for chittyid"), RateLimited),
        (429, r#"{"error":"Rate limit exceeded"}"#.to_owned(), RateLimited),
        (429, "<html>slow down</html>".to_owned(), RateLimited),
        (
            500,
            failed("Context validation failed: Risk score too high: 80"),
            Denied,
        ),
        (500, r#"{"error":"Risk score too high: 80"}"#.to_owned(), Denied),
        (500, failed("an asterisk is not a verdict"), BrokerUnavailable),
        (500, failed("Cloudflare: permission denied"), BrokerUnavailable),
        (500, failed("Unexpected end of JSON input"), BrokerUnavailable),
        (500, String::new(), BrokerUnavailable),
        (502, "<html>bad gateway</html>".to_owned(), BrokerUnavailable),
        (503, failed("CLOUDFLARE_MAKE_API_KEY not configured"), BrokerUnavailable),
        (524, String::new(), BrokerUnavailable),
        (599, String::new(), BrokerUnavailable),
        (300, String::new(), InvalidResponse),
        (302, String::new(), InvalidResponse),
        (304, String::new(), InvalidResponse),
        (308, String::new(), InvalidResponse),
    ] {
        for call in [Call::Deploy, Call::Provision] {
            let refusal = meant(status, &body, call);
            assert_eq!((refusal.reason, refusal.sent), (reason, Sent::Yes), "{status} {body}");
        }
    }
}

#[test]
fn messages_are_sentences_for_a_person() {
    for (status, body, message) in [
        (
            401,
            r#"{"error":"API key is inactive"}"#.to_owned(),
            "ChittyConnect does not accept the API key (401): it is inactive",
        ),
        (
            401,
            r#"{"error":"Missing API key"}"#.to_owned(),
            "ChittyConnect does not accept the API key (401): it did not arrive",
        ),
        (
            401,
            r#"{"error":"Invalid API key"}"#.to_owned(),
            "ChittyConnect does not accept the API key (401): it is not known there",
        ),
        (
            403,
            failed("DENIED"),
            "ChittyConnect judged this request too risky and denied it",
        ),
        (
            403,
            "no".to_owned(),
            "ChittyConnect, or something in front of it, denied the request (403)",
        ),
        (
            400,
            failed("bucket is required"),
            "ChittyConnect rejected the request (400): bucket is required",
        ),
        (
            400,
            failed("source_service is required"),
            "ChittyConnect rejected the request (400): source_service is required",
        ),
        (
            400,
            failed("database and readonly required"),
            "ChittyConnect rejected the request (400): a required field is missing",
        ),
        (
            400,
            failed("Unknown credential type: ghs_leak"),
            "ChittyConnect rejected the request (400): it does not know the credential type",
        ),
        (
            400,
            failed("ghs_leak"),
            "ChittyConnect rejected the request (400): it gave no reason that is known here",
        ),
        (
            400,
            failed("Authentication required"),
            "ChittyConnect rejected the request (400): an upstream does not accept ChittyConnect's own credential; whoever runs ChittyConnect has to renew it",
        ),
        (
            404,
            "404 Not Found".to_owned(),
            "ChittyConnect does not serve POST /credentials/deploy at this URL (404): check spec.url and spec.api of the connection",
        ),
        (
            404,
            failed("x"),
            "ChittyConnect rejected the request (404): it did not find what the request names",
        ),
        (
            429,
            failed("Rate limit exceeded for s"),
            "ChittyConnect takes no more requests for now (429)",
        ),
        (
            500,
            failed("boom"),
            "ChittyConnect failed to answer the request (500); whether a token was made is unknown",
        ),
        (
            503,
            failed("X not configured"),
            "ChittyConnect is not set up for this request yet (503: not configured)",
        ),
        (
            302,
            String::new(),
            "ChittyConnect answered with a redirect (302), which is never followed: check spec.url",
        ),
    ] {
        assert_eq!(meant(status, &body, Call::Deploy).message, message);
    }
    let hourly = meant(429, &failed("Rate limit exceeded for s"), Call::Provision);
    assert_eq!(
        hourly.message,
        "ChittyConnect takes no more requests before the next full hour (429)"
    );
}

#[test]
fn the_wait_is_what_the_limiter_that_refused_asks_for() {
    let hourly = failed("Rate limit exceeded for chittyid");
    let plain = r#"{"error":"Rate limit exceeded"}"#.to_owned();
    let reset = (now() + TimeDelta::seconds(90)).timestamp_millis().to_string();
    let reset = ("x-ratelimit-reset", reset.as_str());
    let date = ("date", "Tue, 06 Jan 2026 10:59:50 GMT");
    let s = |seconds| Some(TimeDelta::seconds(seconds));
    let cases: [(Lines<'_>, &String, Call, Option<TimeDelta>); 15] = [
        (&[("retry-after", "60"), reset], &plain, Call::Deploy, s(60)),
        (&[("retry-after", " 7 ")], &hourly, Call::Provision, s(7)),
        (&[("retry-after", "0")], &plain, Call::Deploy, s(1)),
        (&[("retry-after", "4000000000")], &plain, Call::Deploy, s(86_400)),
        (
            &[("retry-after", "Tue, 06 Jan 2026 11:21:00 GMT")],
            &plain,
            Call::Deploy,
            s(30),
        ),
        (
            &[("retry-after", "Tue, 06 Jan 2026 11:00:00 GMT"), date],
            &plain,
            Call::Deploy,
            s(10),
        ),
        (
            &[("retry-after", "Tue, 06 Jan 2026 01:00:00 GMT")],
            &plain,
            Call::Deploy,
            s(1),
        ),
        (&[("retry-after", "soon"), reset], &plain, Call::Deploy, s(90)),
        (&[("retry-after", "soon")], &plain, Call::Deploy, None),
        (&[reset], &plain, Call::Deploy, None),
        (&[reset], &hourly, Call::Provision, s(39 * 60 + 30)),
        (&[date], &hourly, Call::Provision, s(10)),
        (&[], &hourly, Call::Deploy, None),
        (&[], &plain, Call::Provision, None),
        (&[("retry-after", "-5")], &plain, Call::Deploy, None),
    ];
    for (lines, body, call, wait) in cases {
        let refusal = meant_with(429, lines, body, call);
        assert_eq!(
            (refusal.reason, refusal.retry_after),
            (Reason::RateLimited, wait),
            "{lines:?} {body}"
        );
    }
}

#[test]
fn a_wait_is_heard_from_an_overloaded_server_and_from_nobody_else() {
    let after = [("retry-after", "20")];
    assert_eq!(
        meant_with(503, &after, "", Call::Deploy).retry_after,
        Some(TimeDelta::seconds(20))
    );
    for status in [301, 400, 401, 403, 404] {
        assert_eq!(
            meant_with(status, &after, "", Call::Deploy).retry_after,
            None,
            "{status}"
        );
    }
}

#[test]
fn only_a_429_that_speaks_of_the_brokers_own_limit_tells_of_it() {
    let own = |status, text| meant(status, &failed(text), Call::Provision).own_limit;
    assert!(own(429, "Rate limit exceeded for chittyid"));
    assert!(!own(429, "Rate limit exceeded"), "as Cloudflare's comes through");
    assert!(!own(500, "Rate limit exceeded for chittyid"));
}

#[test]
fn nothing_the_server_wrote_reaches_a_refusal() {
    let secret = "cf_ephemeral_canary";
    for status in (300..=308).chain(400..=431).chain(500..=530) {
        for text in [
            "",
            "DENIED ",
            "risk ",
            "required ",
            "Unknown credential type: ",
            "not configured ",
            "Rate limit exceeded for ",
        ] {
            for body in [
                failed(&format!("{text}{secret}")),
                format!(r#"{{"error":"{text}{secret}"}}"#),
                format!(r#"{{"message":"{text}{secret}"}}"#),
                format!("{text}{secret}"),
            ] {
                let refusal = meant(status, &body, Call::Provision);
                assert!(
                    !format!("{refusal} {refusal:?}").contains(secret),
                    "{status} {refusal:?}"
                );
            }
        }
    }
}

#[test]
fn what_was_never_sent_is_told_apart_from_what_was_never_answered() {
    let timeout = TimeDelta::seconds(10);
    for cause in [
        TransportError::Unresolved,
        TransportError::NotConnected,
        TransportError::Untrusted,
        TransportError::ConnectTimeout,
    ] {
        let refusal = lost(cause, timeout, Call::Deploy);
        assert_eq!((refusal.reason, refusal.sent), (Reason::BrokerUnavailable, Sent::No));
        assert!(refusal.message.ends_with("; nothing was sent"), "{refusal}");
    }
    let late = lost(TransportError::Timeout, timeout, Call::Deploy);
    assert_eq!((late.reason, late.sent), (Reason::OutcomeUnknown, Sent::Unknown));
    assert_eq!(
        late.message,
        "ChittyConnect did not answer within 10 s; whether a token was made is unknown"
    );
    let cut = lost(TransportError::Cut, timeout, Call::Revoke);
    assert_eq!(
        cut.message,
        "The connection to ChittyConnect ended before its answer did; whether it was done is unknown"
    );
}
