//! The seal on a managed Secret: which claim filled it, under an HMAC that tenants cannot make.
//!
//! After a crash between writing a Secret and recording it, the seal is what lets the write be
//! adopted instead of repeated.

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::Time;
use super::journal::{RequestFacts, Written};

/// The key of all seals; created once, kept in the controller's namespace.
#[derive(Clone)]
pub struct SealKey(SecretSlice<u8>);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

/// What a seal vouches for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seal {
    /// Uid of the credential.
    pub uid: String,
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub name: String,
    /// The claim whose tokens it holds.
    pub claim: String,
    /// Their revision.
    pub revision: u64,
    /// When they were issued.
    pub issued_at: Time,
    /// When they end.
    pub ends_at: Time,
    /// Ids to revoke them by.
    #[serde(default)]
    pub token_ids: Vec<String>,
    /// Names of the outputs.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// Keys and fingerprint of the data.
    pub written: Written,
    /// What was asked for.
    pub request: RequestFacts,
    /// Digest of the request.
    pub request_hash: String,
    /// Digest of the layout.
    pub layout_hash: String,
    /// Digest of the rotate annotation it served.
    pub rotate: String,
    /// Runway asked for, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_before_ms: Option<i64>,
}

impl SealKey {
    /// Length of a key in bytes.
    pub const LENGTH: usize = 32;

    /// Takes a key of at least [`Self::LENGTH`] bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() >= Self::LENGTH).then(|| Self(bytes.into()))
    }

    /// The annotation for `seal`.
    ///
    /// # Panics
    /// Never: a seal is always JSON.
    #[must_use]
    pub fn sign(&self, seal: &Seal) -> String {
        let json = serde_json::to_vec(seal).unwrap_or_default();
        let tag = self.mac(b"seal", &json);
        format!("v1.{}.{}", BASE64URL_NOPAD.encode(&json), BASE64URL_NOPAD.encode(&tag))
    }

    /// The seal in an annotation, if we made it.
    #[must_use]
    pub fn verify(&self, annotation: &str) -> Option<Seal> {
        let (json, tag) = annotation.strip_prefix("v1.")?.split_once('.')?;
        let json = BASE64URL_NOPAD.decode(json.as_bytes()).ok()?;
        let tag = BASE64URL_NOPAD.decode(tag.as_bytes()).ok()?;
        self.hmac(b"seal", &json).verify_slice(&tag).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// A signature of `text`, with the id of this key.
    #[must_use]
    pub fn sign_text(&self, text: &str) -> String {
        format!(
            "{}.{}",
            self.id(),
            BASE64URL_NOPAD.encode(&self.mac(b"text", text.as_bytes()))
        )
    }

    /// Whether `signature` is that of `text`; `None` where another key made it, or nobody.
    #[must_use]
    pub fn verify_text(&self, text: &str, signature: &str) -> Option<bool> {
        let tag = signature.strip_prefix(&self.id())?.strip_prefix('.')?;
        let tag = BASE64URL_NOPAD.decode(tag.as_bytes()).unwrap_or_default();
        Some(self.hmac(b"text", text.as_bytes()).verify_slice(&tag).is_ok())
    }

    fn id(&self) -> String {
        BASE64URL_NOPAD.encode(&self.mac(b"id", b"")[..9])
    }

    /// A digest of an API key that is of no use without this key.
    #[must_use]
    pub fn digest_of_key(&self, api_key: &str) -> String {
        BASE64URL_NOPAD.encode(&self.mac(b"api-key", api_key.as_bytes())[..16])
    }

    fn hmac(&self, domain: &[u8], message: &[u8]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(self.0.expose_secret())
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(domain);
        mac.update(&[0]);
        mac.update(message);
        mac
    }

    fn mac(&self, domain: &[u8], message: &[u8]) -> Vec<u8> {
        self.hmac(domain, message).finalize().into_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    fn seal() -> Seal {
        let at = chrono::Utc.timestamp_opt(1_700_000_000, 0).unwrap();
        Seal {
            uid: "u".into(),
            namespace: "ns".into(),
            name: "s".into(),
            claim: "c".into(),
            revision: 3,
            issued_at: at,
            ends_at: at,
            token_ids: vec!["t".into()],
            outputs: vec!["o".into()],
            written: Written {
                keys: vec!["k".into()],
                fingerprint: "f".into(),
            },
            request: RequestFacts {
                connection: "c".into(),
                service: "s".into(),
                purpose: "p".into(),
                repo: None,
                run_id: "r".into(),
            },
            request_hash: "q".into(),
            layout_hash: "l".into(),
            rotate: String::new(),
            renew_before_ms: None,
        }
    }
    fn key(byte: u8) -> SealKey {
        SealKey::new(vec![byte; SealKey::LENGTH]).unwrap()
    }

    #[test]
    fn a_seal_is_read_back_only_under_the_key_that_made_it() {
        let annotation = key(1).sign(&seal());
        assert_eq!(key(1).verify(&annotation), Some(seal()));
        assert_eq!(key(2).verify(&annotation), None);
    }

    #[test]
    fn an_edited_seal_is_no_seal() {
        let annotation = key(1).sign(&seal());
        let forged = Seal {
            uid: "v".into(),
            ..seal()
        };
        let (_, tag) = annotation.rsplit_once('.').unwrap();
        let body = BASE64URL_NOPAD.encode(&serde_json::to_vec(&forged).unwrap());
        assert_eq!(key(1).verify(&format!("v1.{body}.{tag}")), None);
        assert_eq!(key(1).verify(""), None);
        assert_eq!(key(1).verify("v1.."), None);
    }

    #[test]
    fn an_edited_text_is_told_from_one_that_another_key_signed() {
        let signature = key(1).sign_text("a");
        assert_eq!(key(1).verify_text("a", &signature), Some(true));
        assert_eq!(key(1).verify_text("b", &signature), Some(false));
        assert_eq!(key(2).verify_text("a", &signature), None);
    }

    #[test]
    fn a_short_key_is_refused_and_none_is_ever_printed() {
        assert!(SealKey::new(vec![0; 31]).is_none());
        assert_eq!(format!("{:?}", key(7)), "SealKey");
    }
}
