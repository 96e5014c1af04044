//! The seal on a managed Secret: which claim filled it, under an HMAC that tenants cannot make.
//!
//! After a crash between writing a Secret and recording it, the seal is what lets the write be
//! adopted instead of repeated.

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::journal::{ActiveToken, Written};

/// The key of all seals; created once, kept in the controller's namespace.
#[derive(Clone)]
pub struct SealKey(SecretSlice<u8>);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

/// What a seal vouches for: that this Secret holds this token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seal {
    /// Uid of the credential.
    pub uid: String,
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub name: String,
    /// The token, with what was written to this Secret alone.
    pub live: ActiveToken,
}

impl Seal {
    /// The seal on one Secret of `live`.
    #[must_use]
    pub fn new(uid: &str, namespace: &str, name: &str, live: &ActiveToken) -> Self {
        let mut live = live.clone();
        live.secrets.retain(|secret, _| secret == name);
        for (_, written) in live.secrets.iter_mut() {
            (written.version, written.metadata) = (None, None);
        }
        Self {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            live,
        }
    }

    /// What was written to this Secret.
    #[must_use]
    pub fn written(&self) -> Option<&Written> {
        self.live.secrets.get(&self.name)
    }
}

/// The token that sealed Secrets of one claim tell of, all together.
#[must_use]
pub fn live_of(seals: &[&Seal]) -> Option<ActiveToken> {
    let mut live = seals.first()?.live.clone();
    for seal in seals {
        live.secrets.extend(seal.live.secrets.clone());
    }
    Some(live)
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

    /// What tells this key from another.
    #[must_use]
    pub fn id(&self) -> String {
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
        let mut live = crate::core::journal::tests_support::live("c", at, at);
        for name in ["s", "other"] {
            let written = Written {
                keys: vec!["k".into()],
                fingerprint: name.into(),
                ..Written::default()
            };
            live.secrets.insert(name.into(), written);
        }
        Seal::new("u", "ns", "s", &live)
    }

    #[test]
    fn a_seal_tells_of_its_own_secret_and_all_together_of_the_token() {
        let one = seal();
        assert_eq!(one.live.secrets.len(), 1);
        let mut other = one.clone();
        other.live.secrets = [("other".to_owned(), one.written().unwrap().clone())]
            .into_iter()
            .collect();
        assert_eq!(live_of(&[&one, &other]).unwrap().secrets.len(), 2);
        assert_eq!(live_of(&[]), None);
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
