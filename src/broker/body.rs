//! What an answer's body holds, read so that secrets only ever live in types that wipe themselves.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::core::Time;
use crate::core::render::Outputs;

/// Most outputs one answer can have.
const MAX_OUTPUTS: usize = 64;
/// Objects that are read; all others are skipped unread.
const READ: [&str; 2] = ["credential", "error"];
/// Members that repeat secrets or hold stack traces, and are skipped unread.
const SKIPPED: [&str; 2] = ["details", "usage_instructions"];

/// Why no token can be taken from an answer that reports success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InvalidBody {
    TooLarge,
    Html,
    NotJson,
    Truncated,
    NotAnObject,
    SaysFailure,
    NoCredential,
    NoValue,
    NoOutputs,
    NoExpiry,
    BadExpiry,
    PastExpiry,
}

impl InvalidBody {
    pub(super) const fn phrase(self) -> &'static str {
        match self {
            Self::TooLarge => "the answer is larger than 256 KiB",
            Self::Html => "the answer is a web page, so check spec.url",
            Self::NotJson => "the answer is not JSON",
            Self::Truncated => "the answer ends in the middle",
            Self::NotAnObject => "the answer is not a JSON object",
            Self::SaysFailure => "the answer says that it failed",
            Self::NoCredential => "the answer holds no credential",
            Self::NoValue => "the credential in the answer has no value",
            Self::NoOutputs => "the answer holds no token",
            Self::NoExpiry => "the answer does not say when the token expires",
            Self::BadExpiry => "the answer's expires_at is not a time",
            Self::PastExpiry => "the answer's expires_at is in the past",
        }
    }
}

/// The members of a JSON object, in order. `null` counts as absent.
#[derive(Default)]
pub(super) struct Members(Vec<(String, Member)>);

pub(super) enum Member {
    Text(SecretString),
    Flag(bool),
    Object(Members),
    Other,
}

impl Members {
    pub(super) fn parse(body: &[u8]) -> Result<Self, InvalidBody> {
        if body.trim_ascii_start().starts_with(b"<") {
            return Err(InvalidBody::Html);
        }
        let mut json = serde_json::Deserializer::from_slice(body);
        Object { nested: true }
            .deserialize(&mut json)
            .and_then(|members| json.end().map(|()| members))
            .map_err(|error| {
                if error.is_eof() {
                    InvalidBody::Truncated
                } else if error.is_data() {
                    InvalidBody::NotAnObject
                } else {
                    InvalidBody::NotJson
                }
            })
    }

    pub(super) fn get(&self, name: &str) -> Option<&Member> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, member)| member)
    }

    pub(super) fn text(&self, name: &str) -> Option<&SecretString> {
        match self.get(name)? {
            Member::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn object(&self, name: &str) -> Option<&Self> {
        match self.get(name)? {
            Member::Object(members) => Some(members),
            _ => None,
        }
    }

    pub(super) fn says_failure(&self) -> bool {
        matches!(self.get("success"), Some(Member::Flag(false)))
    }

    /// `expires_at`, which must lie ahead of `now` where it is there.
    pub(super) fn expiry(&self, now: Time) -> Result<Option<Time>, InvalidBody> {
        let text = match self.get("expires_at") {
            None => return Ok(None),
            Some(Member::Text(text)) => text.expose_secret(),
            Some(_) => return Err(InvalidBody::BadExpiry),
        };
        let at = chrono::DateTime::parse_from_rfc3339(text)
            .map_err(|_| InvalidBody::BadExpiry)?
            .to_utc();
        if at <= now {
            return Err(InvalidBody::PastExpiry);
        }
        Ok(Some(at))
    }

    /// All texts but those called as in `except`.
    pub(super) fn into_outputs(self, except: &[&str]) -> Outputs {
        let mut outputs = Outputs::new();
        for (name, member) in self.0 {
            if let Member::Text(value) = member
                && !except.contains(&name.as_str())
            {
                insert(&mut outputs, &name, value);
            }
        }
        outputs
    }
}

/// Adds an output, if a Secret can hold it.
pub(super) fn insert(outputs: &mut Outputs, name: &str, value: SecretString) {
    let room = outputs.len() < MAX_OUTPUTS || outputs.contains_key(name);
    if room && is_key(name) && !value.expose_secret().is_empty() {
        outputs.insert(name.to_owned(), value);
    }
}

fn is_key(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    (1..=253).contains(&name.len()) && name != "." && !name.starts_with("..") && name.bytes().all(allowed)
}

struct Object {
    nested: bool,
}

impl<'de> DeserializeSeed<'de> for Object {
    type Value = Members;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Members, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if SKIPPED.contains(&name.as_str()) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let read = self.nested && READ.contains(&name.as_str());
            if let Some(member) = map.next_value_seed(One { read })? {
                members.push((name, member));
            }
        }
        Ok(Members(members))
    }
}

struct One {
    read: bool,
}

impl<'de> DeserializeSeed<'de> for One {
    type Value = Option<Member>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for One {
    type Value = Option<Member>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Member::Text(SecretString::from(text))))
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(Some(Member::Flag(flag)))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Some(Member::Other))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Some(Member::Other))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Some(Member::Other))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some(Member::Other))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        if self.read {
            return Object { nested: false }
                .visit_map(map)
                .map(|members| Some(Member::Object(members)));
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Some(Member::Other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    fn parse(body: &str) -> Members {
        Members::parse(body.as_bytes()).unwrap_or_else(|flaw| panic!("{body}: {flaw:?}"))
    }

    #[test]
    fn every_text_becomes_an_output_and_nothing_else_does() {
        let body = r#"{"cloudflare_token":"cf","n":1,"b":true,"x":null,"o":{"token":"no"},"l":["no"],
            "empty":"","new_token":"n\u0065w","expires_at":"soon"}"#;
        let outputs = parse(body).into_outputs(&["expires_at"]);
        assert_eq!(outputs.keys().collect::<Vec<_>>(), ["cloudflare_token", "new_token"]);
        assert_eq!(outputs["new_token"].expose_secret(), "new");
    }

    #[test]
    fn an_output_no_secret_could_hold_is_dropped() {
        let long = "n".repeat(254);
        for name in ["", ".", "..", "..x", "a b", "a/b", "ä", long.as_str()] {
            let mut outputs = Outputs::new();
            insert(&mut outputs, name, "v".into());
            assert!(outputs.is_empty(), "{name}");
        }
        let mut outputs = Outputs::new();
        for name in [".npmrc", "a..b", "A-1_b.c", &"n".repeat(253)] {
            insert(&mut outputs, name, "v".into());
        }
        assert_eq!(outputs.len(), 4);
    }

    #[test]
    fn the_first_64_outputs_are_kept_and_later_ones_dropped() {
        let members: Vec<String> = (0..70).map(|n| format!(r#""t{:02}":"v""#, 99 - n)).collect();
        let outputs = parse(&format!("{{{}}}", members.join(","))).into_outputs(&[]);
        assert_eq!(outputs.len(), 64);
        assert!(outputs.contains_key("t99") && outputs.contains_key("t36") && !outputs.contains_key("t35"));
    }

    #[test]
    fn details_and_instructions_are_not_even_kept_in_memory() {
        let body = parse(r#"{"usage_instructions":"x","error":{"message":"m","details":"stack","code":"C"}}"#);
        assert!(body.get("usage_instructions").is_none());
        let error = body.object("error").unwrap();
        assert!(error.get("details").is_none());
        assert_eq!(error.text("message").unwrap().expose_secret(), "m");
    }

    #[test]
    fn a_body_that_is_no_object_is_told_apart_by_what_it_is() {
        let deep = "[".repeat(100_000);
        for (body, flaw) in [
            (" \n<!doctype html><html>", InvalidBody::Html),
            ("", InvalidBody::Truncated),
            (r#"{"cloudflare_token":"cf_eph"#, InvalidBody::Truncated),
            (r#"{"a":"b"} trailing"#, InvalidBody::NotJson),
            ("Not Found", InvalidBody::NotJson),
            ("404 Not Found", InvalidBody::NotAnObject),
            ("{\"a\":\"\u{1}\"}", InvalidBody::NotJson),
            ("[1]", InvalidBody::NotAnObject),
            ("\"text\"", InvalidBody::NotAnObject),
            ("null", InvalidBody::NotAnObject),
            (deep.as_str(), InvalidBody::NotAnObject),
        ] {
            assert_eq!(Members::parse(body.as_bytes()).err(), Some(flaw), "{body:.40}");
        }
        assert_eq!(Members::parse(b"{\"a\":\"\xff\"}").err(), Some(InvalidBody::NotJson));
    }

    #[test]
    fn an_expiry_must_be_a_time_ahead_where_there_is_one() {
        let now = chrono::Utc.with_ymd_and_hms(2026, 1, 6, 11, 0, 0).unwrap();
        let expiry = |json: &str| parse(&format!(r#"{{"expires_at":{json}}}"#)).expiry(now);
        let noon = chrono::Utc.with_ymd_and_hms(2026, 1, 6, 12, 0, 0).unwrap();
        assert_eq!(expiry(r#""2026-01-06T12:00:00Z""#), Ok(Some(noon)));
        assert_eq!(expiry(r#""2026-01-06T13:00:00.000+01:00""#), Ok(Some(noon)));
        assert_eq!(expiry("null"), Ok(None));
        assert_eq!(expiry(r#""2026-01-06T11:00:00Z""#), Err(InvalidBody::PastExpiry));
        for text in [
            r#""tomorrow""#,
            r#""""#,
            r#""2026-01-06 12:00:00""#,
            "1767700800",
            "{}",
            "true",
        ] {
            assert_eq!(expiry(text), Err(InvalidBody::BadExpiry), "{text}");
        }
    }
}
