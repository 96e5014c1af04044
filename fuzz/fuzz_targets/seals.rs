//! Annotations of Secrets: none passes for a seal that this key did not sign, and whatever it did sign is read as it was.
#![no_main]

use chittyconnect_operator::core::seal::{Seal, SealKey, live_of};
use libfuzzer_sys::fuzz_target;

fn key(byte: u8) -> SealKey {
    SealKey::new(vec![byte; SealKey::LENGTH]).expect("a key")
}

fuzz_target!(|text: &str| {
    assert_eq!(key(7).verify(text), None);
    assert!(!key(7).verify_text("text", text).unwrap_or(false));
    let Ok(seal) = serde_json::from_str::<Seal>(text) else {
        return;
    };
    let signed = key(7).sign(&seal);
    let read = key(7).verify(&signed).expect("a seal");
    assert_eq!(read, seal);
    assert_eq!(key(8).verify(&signed), None);
    assert_eq!(key(7).verify(&signed[..signed.len() - 1]), None);
    live_of(&[&seal, &read]);
});
