//! Credentials written around the schema: refused or laid out, within what may be, and no text shows a value.
#![no_main]

use chittyconnect_operator::api::{BrokerApi, EphemeralCredential};
use chittyconnect_operator::core::layout::AnnotationPolicy;
use chittyconnect_operator::core::render::{MOST_RENDERED, Outputs, render, size};
use chittyconnect_operator::core::spec::desired;
use libfuzzer_sys::fuzz_target;
use secrecy::SecretString;

/// What no text may repeat.
const CANARY: &str = "cf_canary_0123456789";

fuzz_target!(|made: (bool, &str)| {
    let (provision, json) = made;
    if json.contains(CANARY) {
        return;
    }
    let Ok(object) = serde_json::from_str::<EphemeralCredential>(json) else {
        return;
    };
    let api = if provision {
        BrokerApi::Provision
    } else {
        BrokerApi::Deploy
    };
    let desired = match desired(&object, Some(api), &AnnotationPolicy::default()) {
        Ok(desired) => desired,
        Err(problem) => return assert!(problem.message.len() < 2000, "{}", problem.message),
    };
    let checked = desired.check_templates();
    let outputs: Outputs = ["cloudflare_token", "npm_token"]
        .map(|name| (name.to_owned(), SecretString::from(CANARY)))
        .into();
    let ends_at = chrono::DateTime::from_timestamp(1_700_003_600, 0).expect("a time");
    let mut room = MOST_RENDERED;
    for secret in &desired.secrets {
        match render(&secret.name, secret.type_, &secret.layout, &outputs, ends_at, room) {
            Ok(data) => {
                assert!(size(&data) <= room);
                room -= size(&data);
            }
            Err(problem) => assert!(!problem.message.contains(CANARY), "{}", problem.message),
        }
    }
    drop(checked);
});
