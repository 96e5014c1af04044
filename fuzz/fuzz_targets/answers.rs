//! What a broker, or something in front of it, answers to a mint: lines for three headers, an empty one, and a body.
//! Nothing of it is repeated in any text.
#![no_main]

use chittyconnect_operator::broker::{Api, read};
use http::StatusCode;
use http::header::{DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use libfuzzer_sys::fuzz_target;

/// What no text may repeat.
const CANARY: &str = "cf_canary_0123456789";

fuzz_target!(|made: (u16, bool, &str)| {
    let (status, provision, text) = made;
    let Some((lines, body)) = text.split_once("\n\n") else {
        return;
    };
    let mut headers = HeaderMap::new();
    let names = [DATE, RETRY_AFTER, HeaderName::from_static("x-ratelimit-reset")];
    for (name, value) in names.into_iter().zip(lines.lines()) {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    // Half of them are 200: what is read then is longest.
    let status = if status % 2 == 0 { 200 } else { 100 + status % 500 };
    let status = StatusCode::from_u16(status).expect("three digits");
    let api = if provision { Api::Provision } else { Api::Deploy };
    let now = chrono::DateTime::from_timestamp(1_700_000_000, 0).expect("a time");
    let told = match read(api, status, headers, body.as_bytes().to_vec(), now) {
        Ok(answer) => {
            assert!((1..=64).contains(&answer.outputs.len()));
            format!("{answer:?}")
        }
        Err(refusal) => {
            assert!(refusal.message.len() < 300, "{refusal}");
            format!("{refusal} {refusal:?}")
        }
    };
    assert!(!told.contains(CANARY), "{told}");
});
