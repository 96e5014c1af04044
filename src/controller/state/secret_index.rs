//! Which managed Secrets there are: names, uids and resource versions, never what is in them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use litemap::LiteMap;

use crate::core::ids::{ObjectName, Uid};

/// A managed Secret as the watch tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its uid.
    pub uid: Box<str>,
    /// Its resource version.
    pub version: Box<str>,
}

/// The credential that a Secret names as its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedBy {
    /// Its uid.
    pub uid: Uid,
    /// Its name.
    pub name: Arc<str>,
}

/// The managed Secrets of all credentials.
#[derive(Default)]
pub struct SecretIndex {
    // Nearly always one.
    by_owner: HashMap<Uid, LiteMap<Arc<str>, Listed>>,
    owners: HashMap<ObjectName, OwnedBy>,
    synced: bool,
}

impl SecretIndex {
    /// Whether every Secret was listed once.
    #[must_use]
    pub const fn synced(&self) -> bool {
        self.synced
    }

    /// Notes that every Secret was listed.
    pub const fn mark_synced(&mut self) {
        self.synced = true;
    }

    /// Whether a managed Secret of that name is there, whoever owns it.
    #[must_use]
    pub fn has(&self, at: &ObjectName) -> bool {
        self.owners.contains_key(at)
    }

    /// The uid of a managed Secret's owner.
    #[must_use]
    pub fn owner(&self, at: &ObjectName) -> Option<Uid> {
        self.owners.get(at).map(|owner| owner.uid.clone())
    }

    /// The Secrets of a credential.
    #[must_use]
    pub fn of(&self, uid: &str) -> LiteMap<Arc<str>, Listed> {
        self.by_owner.get(uid).cloned().unwrap_or_default()
    }

    /// Notes a Secret; returns the name of its owner, and the former one's where that changed.
    pub fn insert(&mut self, at: ObjectName, owner: Option<OwnedBy>, listed: Listed) -> Vec<Arc<str>> {
        let mut touched = self.remove(&at);
        if let Some(owner) = owner {
            let secrets = self
                .by_owner
                .entry(owner.uid.clone())
                .or_insert_with(|| LiteMap::with_capacity(1));
            secrets.insert(Arc::clone(&at.name), listed);
            touched.push(Arc::clone(&owner.name));
            self.owners.insert(at, owner);
        }
        touched.dedup();
        touched
    }

    /// Forgets a Secret; returns the name of its owner.
    pub fn remove(&mut self, at: &ObjectName) -> Vec<Arc<str>> {
        let Some(OwnedBy { uid, name }) = self.owners.remove(at) else {
            return Vec::new();
        };
        if let Some(secrets) = self.by_owner.get_mut(&uid) {
            secrets.remove(&at.name);
            if secrets.is_empty() {
                self.by_owner.remove(&uid);
            }
        }
        vec![name]
    }

    /// Every Secret known, to be compared with a fresh list.
    #[must_use]
    pub fn names(&self) -> HashSet<ObjectName> {
        self.owners.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_changes_hands_wakes_both_owners() {
        let listed = |version: &str| Listed {
            uid: "s".into(),
            version: version.into(),
        };
        let by = |name: &str| {
            Some(OwnedBy {
                uid: name.into(),
                name: name.into(),
            })
        };
        let (mut index, at) = (SecretIndex::default(), ObjectName::new("n", "secret"));
        assert_eq!(index.insert(at.clone(), by("a"), listed("1")), ["a".into()]);
        assert_eq!(index.insert(at.clone(), by("a"), listed("2")), ["a".into()]);
        assert_eq!(index.of("a").get("secret").map(|l| &*l.version), Some("2"));
        assert_eq!(index.insert(at.clone(), by("b"), listed("3")), ["a".into(), "b".into()]);
        assert!(index.of("a").is_empty() && index.has(&at));
        assert_eq!(index.insert(at.clone(), None, listed("4")), ["b".into()]);
        assert!(!index.has(&at) && index.owner(&at).is_none());
    }
}
