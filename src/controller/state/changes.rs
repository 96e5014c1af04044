//! Which objects changed in what matters, from the events of a watch.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

use crate::core::ids::ObjectName;

/// Tells which objects changed in what matters; a new list tells which did so while nobody watched, and which are gone.
#[derive(Default)]
pub struct Changes {
    /// A digest of what matters of each object, its uid included.
    known: HashMap<ObjectName, u64>,
    /// What a list that is not complete has shown so far.
    listed: HashSet<ObjectName>,
    changed: Vec<ObjectName>,
}

impl Changes {
    /// The objects whose uid, deletion or `matters` changed with this event. Those that a list shows are told of when it
    /// is complete: only then does a store know them.
    pub fn after<K: Resource, M: Hash>(&mut self, event: &Event<K>, matters: impl Fn(&K) -> M) -> Vec<ObjectName> {
        match event {
            Event::Init => {
                // What a list that broke off showed to have changed is still to be told.
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                let at = name_of(object);
                if self.note(&at, digest(object, matters(object))) {
                    self.changed.push(at.clone());
                }
                self.listed.insert(at);
                Vec::new()
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let mut changed = std::mem::take(&mut self.changed);
                changed.extend(self.known.keys().filter(|at| !listed.contains(*at)).cloned());
                self.known.retain(|at, _| listed.contains(at));
                changed
            }
            Event::Apply(object) => {
                let at = name_of(object);
                let differs = self.note(&at, digest(object, matters(object)));
                differs.then_some(at).into_iter().collect()
            }
            Event::Delete(object) => {
                let at = name_of(object);
                self.known.remove(&at);
                vec![at]
            }
        }
    }

    fn note(&mut self, at: &ObjectName, digest: u64) -> bool {
        self.known.insert(at.clone(), digest) != Some(digest)
    }
}

/// What an object is called.
pub fn name_of<K: Resource>(object: &K) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

fn digest<K: Resource>(object: &K, matters: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    let meta = object.meta();
    (&meta.uid, meta.deletion_timestamp.is_some(), matters).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::api::ObjectMeta;

    use super::*;

    fn named(name: &str, uid: &str, label: &str) -> Namespace {
        Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                uid: Some(uid.to_owned()),
                labels: Some([("team".to_owned(), label.to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        }
    }

    fn after(changes: &mut Changes, event: &Event<Namespace>) -> Vec<String> {
        let told = changes.after(event, |n| n.metadata.labels.clone());
        told.into_iter().map(|at| at.name.to_string()).collect()
    }

    fn list(changes: &mut Changes, objects: Vec<Namespace>) -> Vec<String> {
        assert!(after(changes, &Event::Init).is_empty());
        for object in objects {
            assert!(after(changes, &Event::InitApply(object)).is_empty());
        }
        let mut told = after(changes, &Event::InitDone);
        told.sort();
        told
    }

    #[test]
    fn a_list_tells_what_changed_while_nobody_watched_and_what_is_gone() {
        let mut changes = Changes::default();
        let three = ["a", "b", "c"].map(|n| named(n, "1", "x"));
        assert_eq!(list(&mut changes, three.to_vec()), ["a", "b", "c"]);
        assert!(list(&mut changes, three.to_vec()).is_empty());
        let later = vec![named("a", "1", "x"), named("b", "1", "y")];
        assert_eq!(list(&mut changes, later), ["b", "c"]);
    }

    #[test]
    fn what_does_not_matter_is_no_change_and_a_namesake_is() {
        let mut changes = Changes::default();
        assert_eq!(after(&mut changes, &Event::Apply(named("a", "1", "x"))), ["a"]);
        assert!(after(&mut changes, &Event::Apply(named("a", "1", "x"))).is_empty());
        assert_eq!(after(&mut changes, &Event::Apply(named("a", "2", "x"))), ["a"]);
        assert_eq!(after(&mut changes, &Event::Delete(named("a", "2", "x"))), ["a"]);
    }

    #[test]
    fn a_list_that_broke_off_is_made_up_for_by_the_next() {
        let mut changes = Changes::default();
        list(&mut changes, vec![named("a", "1", "x")]);
        after(&mut changes, &Event::Init);
        after(&mut changes, &Event::InitApply(named("a", "1", "y")));
        assert_eq!(list(&mut changes, vec![named("a", "1", "y")]), ["a"]);
    }
}
