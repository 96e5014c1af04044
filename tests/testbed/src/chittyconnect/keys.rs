//! API keys and who owns them.

use std::collections::BTreeMap;

/// Whether an API key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It may.
    Active,
    /// It is known but switched off.
    Inactive,
}

/// Why a request is answered 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Missing,
    Invalid,
    Inactive,
}

impl Refusal {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Missing => "Missing API key",
            Self::Invalid => "Invalid API key",
            Self::Inactive => "API key is inactive",
        }
    }
}

#[derive(Default)]
pub(super) struct Keys {
    keys: BTreeMap<String, (String, KeyState)>,
}

impl Keys {
    pub(super) fn add(&mut self, key: &str, owner: &str) {
        self.keys.insert(key.to_owned(), (owner.to_owned(), KeyState::Active));
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.keys.remove(key);
    }

    /// Whether there is such a key.
    pub(super) fn set_state(&mut self, key: &str, state: KeyState) -> bool {
        match self.keys.get_mut(key) {
            Some(entry) => {
                entry.1 = state;
                true
            }
            None => false,
        }
    }

    /// The key's owner, or why it is refused.
    pub(super) fn check(&self, key: Option<&str>) -> Result<String, Refusal> {
        let (owner, state) = self.keys.get(key.ok_or(Refusal::Missing)?).ok_or(Refusal::Invalid)?;
        match state {
            KeyState::Active => Ok(owner.clone()),
            KeyState::Inactive => Err(Refusal::Inactive),
        }
    }
}
