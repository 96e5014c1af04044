//! Text that tens of thousands of records repeat: each is in memory once.

use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name or an address. Equal ones share what they take.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Arc<str>);

static POOL: LazyLock<Mutex<Pool>> = LazyLock::new(Mutex::default);

/// Before that many it is not looked whether any can be let go.
const LEAST: usize = 1024;

#[derive(Default)]
struct Pool {
    known: HashSet<Arc<str>>,
    /// From so many on, those that nobody has any more are let go.
    full_at: usize,
}

impl Pool {
    fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.full_at.max(LEAST) {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.full_at = self.known.len() * 2;
        }
        let text: Arc<str> = Arc::from(text);
        self.known.insert(Arc::clone(&text));
        text
    }
}

/// `text`, or what is equal and known already.
#[must_use]
pub fn pooled(text: &str) -> Arc<str> {
    POOL.lock().get(text)
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(pooled(text))
    }
}

impl Default for Text {
    fn default() -> Self {
        Self(pooled(""))
    }
}

impl From<&String> for Text {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<String> for Text {
    fn eq(&self, other: &String) -> bool {
        *self.0 == **other
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::from(text.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_those_nobody_has_are_let_go() {
        let mut pool = Pool::default();
        let one = pool.get("npm_token");
        assert!(Arc::ptr_eq(&one, &pool.get("npm_token")));
        for n in 0..3 * LEAST {
            pool.get(&n.to_string());
        }
        assert!(pool.known.len() <= LEAST + 1);
        assert!(Arc::ptr_eq(&one, &pool.get("npm_token")));
    }
}
