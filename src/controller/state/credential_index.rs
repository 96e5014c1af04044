//! What is known of each credential besides its object: where its records are, and where it is in line.

use std::collections::HashMap;

use crate::core::ids::{ObjectName, Uid};
use crate::core::journal::Scope;

/// In which scopes each credential has records or claims, and in whose line it is: by uid, and by name.
#[derive(Default)]
pub struct CredentialIndex {
    by_uid: HashMap<Uid, Entry>,
    // Nearly always one: an object of the same name may follow one that is not forgotten yet.
    by_name: HashMap<ObjectName, Vec<Uid>>,
}

struct Entry {
    name: ObjectName,
    /// A changed service or connection leaves a record behind.
    records: Vec<Scope>,
    line: Option<Scope>,
}

impl CredentialIndex {
    /// Notes that `scope` has a record or claim of `uid`.
    pub fn add_record(&mut self, uid: &str, name: &ObjectName, scope: &Scope) {
        let records = &mut self.entry(uid, name).records;
        if !records.contains(scope) {
            records.reserve_exact(1);
            records.push(scope.clone());
            records.sort();
        }
    }

    /// Forgets the record that `scope` had of `uid`.
    pub fn remove_record(&mut self, uid: &str, scope: &Scope) {
        if let Some(entry) = self.by_uid.get_mut(uid) {
            entry.records.retain(|other| other != scope);
        }
        self.forget_if_empty(uid);
    }

    /// The scopes with a record of `uid`, in order.
    #[must_use]
    pub fn records_of(&self, uid: &str) -> Vec<Scope> {
        self.by_uid.get(uid).map(|e| e.records.clone()).unwrap_or_default()
    }

    /// Notes in whose line `uid` is, if in any; returns in whose it was.
    pub fn set_queue(&mut self, uid: &str, line: Option<(&Scope, &ObjectName)>) -> Option<Scope> {
        let Some((scope, name)) = line else {
            let before = self.by_uid.get_mut(uid)?.line.take();
            self.forget_if_empty(uid);
            return before;
        };
        let entry = self.entry(uid, name);
        if entry.line.as_ref() == Some(scope) {
            return entry.line.clone();
        }
        entry.line.replace(scope.clone())
    }

    /// Every uid a credential of that name ever had and that is not forgotten.
    #[must_use]
    pub fn uids_of(&self, name: &ObjectName) -> Vec<Uid> {
        self.by_name.get(name).cloned().unwrap_or_default()
    }

    /// Whether anything is known of `uid`.
    #[must_use]
    pub fn has(&self, uid: &str) -> bool {
        self.by_uid.contains_key(uid)
    }

    /// Every uid, with its name.
    #[must_use]
    pub fn all(&self) -> Vec<(Uid, ObjectName)> {
        let all = self.by_uid.iter();
        all.map(|(uid, entry)| (uid.clone(), entry.name.clone())).collect()
    }

    fn entry(&mut self, uid: &str, name: &ObjectName) -> &mut Entry {
        let known = self.by_uid.get_key_value(uid).map(|(uid, _)| uid.clone());
        let uid = known.unwrap_or_else(|| {
            let uid = Uid::from(uid);
            let uids = self.by_name.entry(name.clone()).or_default();
            uids.reserve_exact(1);
            uids.push(uid.clone());
            uid
        });
        self.by_uid.entry(uid).or_insert_with(|| Entry {
            name: name.clone(),
            records: Vec::new(),
            line: None,
        })
    }

    fn forget_if_empty(&mut self, uid: &str) {
        if self
            .by_uid
            .get(uid)
            .is_none_or(|e| !e.records.is_empty() || e.line.is_some())
        {
            return;
        }
        let Some(entry) = self.by_uid.remove(uid) else { return };
        if let Some(uids) = self.by_name.get_mut(&entry.name) {
            uids.retain(|other| other.as_str() != uid);
            if uids.is_empty() {
                self.by_name.remove(&entry.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::journal::tests_support::scope;

    #[test]
    fn a_credential_is_known_as_long_as_a_scope_has_a_record_of_it_or_it_is_in_line() {
        let (one, mut other) = (scope(), scope());
        other.of = "other".into();
        let name = ObjectName::new("n", "a");
        let mut index = CredentialIndex::default();
        for scope in [&one, &other, &one] {
            index.add_record("u", &name, scope);
        }
        assert_eq!(index.set_queue("v", Some((&one, &name))), None);
        assert_eq!(index.records_of("u").len(), 2);
        assert_eq!(index.uids_of(&name), ["u".into(), "v".into()]);
        index.remove_record("u", &one);
        assert!(index.has("u"));
        index.remove_record("u", &other);
        assert!(!index.has("u"));
        assert_eq!(index.set_queue("v", Some((&other, &name))), Some(one));
        assert_eq!(index.all(), [("v".into(), name.clone())]);
        assert_eq!(index.set_queue("v", None), Some(other));
        assert_eq!(index.set_queue("v", None), None);
        assert!(index.uids_of(&name).is_empty() && index.all().is_empty());
    }
}
