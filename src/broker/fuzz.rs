//! Whatever a broker, or something in front of it, answers: nothing panics, nothing it says is repeated.

use http::StatusCode;
use http::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use proptest::prelude::*;

use super::classify::{retry_after, server_time};
use super::{Api, read};
use crate::core::testing::{cases, s, t};

/// What no text may repeat.
const CANARY: &str = "cf_canary_0123456789";

/// JSON with the canary in it, as deep as it likes, then cut or changed somewhere.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just("cloudflare_token"),
        Just("expires_at"),
        Just("error"),
        Just("message"),
        Just("code"),
        Just("credential"),
        Just("value"),
        Just("type"),
        Just("success"),
        Just("details"),
        Just("usage_instructions"),
        Just("account_id"),
    ];
    let leaf = prop_oneof![
        Just(format!("\"{CANARY}\"")),
        Just(format!("\"Risk score too high: {CANARY}\"")),
        Just(format!(
            "\"Rate limit exceeded for {CANARY}; service is required, not configured\""
        )),
        Just("\"2023-11-14T23:13:20Z\"".to_owned()),
        Just("\"9999-12-31T23:59:60Z\"".to_owned()),
        Just("\"+262142-12-31T23:59:59Z\"".to_owned()),
        Just("\"0000-01-01T00:00:00-23:59\"".to_owned()),
        Just("false".to_owned()),
        Just("null".to_owned()),
        Just("1e999".to_owned()),
        Just("[[[1]]]".to_owned()),
    ];
    let json = leaf.prop_recursive(4, 24, 6, move |inner| {
        prop::collection::vec((name.clone(), inner), 0..6).prop_map(|members| {
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("\"{name}\":{value}"))
                .collect();
            format!("{{{}}}", members.join(","))
        })
    });
    let changed = (json, any::<prop::sample::Index>(), any::<Option<u8>>()).prop_map(|(json, place, byte)| {
        let mut bytes = json.into_bytes();
        if let Some(byte) = byte.filter(|byte| byte % 4 == 0) {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        } else if byte.is_some_and(|byte| byte % 4 == 1) {
            bytes.truncate(place.index(bytes.len()));
        }
        bytes
    });
    prop_oneof![
        6 => changed,
        1 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (1_usize..3000).prop_map(|depth| "[".repeat(depth).into_bytes()),
        1 => (1_usize..3000).prop_map(|depth| "{\"error\":".repeat(depth).into_bytes()),
    ]
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    let value = || {
        prop_oneof![
            Just("Tue, 14 Nov 2023 22:13:20 GMT".to_owned()),
            Just("Fri, 31 Dec 9999 23:59:59 GMT".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            "[ -~]{0,20}",
        ]
    };
    (
        prop::option::of(value()),
        prop::option::of(value()),
        prop::option::of(value()),
    )
        .prop_map(|(date, after, reset)| {
            let mut headers = HeaderMap::new();
            let names = [DATE, RETRY_AFTER, http::HeaderName::from_static("x-ratelimit-reset")];
            for (name, value) in names.into_iter().zip([date, after, reset]) {
                if let Some(value) = value.and_then(|v| HeaderValue::from_str(&v).ok()) {
                    headers.insert(name, value);
                }
            }
            headers
        })
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn no_answer_makes_it_panic_or_is_repeated(
        status in 100_u16..600,
        fine in any::<bool>(),
        headers in headers(),
        body in bodies(),
        provision in any::<bool>(),
    ) {
        let status = if fine { StatusCode::OK } else { StatusCode::from_u16(status).unwrap() };
        let wait = retry_after(&headers, server_time(&headers));
        prop_assert!(wait.is_none_or(|wait| wait >= s(1) && wait <= s(86_400)), "{wait:?}");
        let api = if provision { Api::Provision } else { Api::Deploy };
        let told = match read(api, status, headers, body, t(0)) {
            Ok(answer) => {
                prop_assert!(answer.outputs.len() <= 64 && !answer.outputs.is_empty());
                format!("{answer:?}")
            }
            Err(refusal) => {
                prop_assert!(refusal.message.len() < 300, "{refusal}");
                format!("{refusal} {refusal:?}")
            }
        };
        prop_assert!(!told.contains(CANARY), "{told}");
    }
}
