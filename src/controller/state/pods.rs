//! The Pods that read Secrets, as far as the watch tells. It runs while a credential needs to know them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::core::consumers::{Pod, Ways};
use crate::core::ids::ObjectName;

/// Why the Pods of a namespace are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// They were not listed yet.
    Unlisted,
    /// They may not be watched.
    Refused,
}

/// The Pods that read Secrets.
#[derive(Default)]
pub struct Pods(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    all: HashMap<ObjectName, Arc<Pod>>,
    /// The names of those that read a Secret.
    readers: HashMap<ObjectName, BTreeSet<Arc<str>>>,
    /// What is watched: each namespace, or all of them by an empty name.
    parts: HashMap<String, Part>,
}

#[derive(Default)]
struct Part {
    seen: Option<Result<(), Unseen>>,
    /// Known before the list that is being read, and not in it so far.
    stale: HashSet<ObjectName>,
}

impl Pods {
    /// What is told of from now on: these namespaces, or all of them by an empty name.
    pub fn begin(&self, parts: impl IntoIterator<Item = String>) {
        let mut inner = self.0.lock();
        *inner = Inner::default();
        inner.parts = parts.into_iter().map(|part| (part, Part::default())).collect();
    }

    /// Forgets everything: nobody needs to know any more.
    pub fn clear(&self) {
        *self.0.lock() = Inner::default();
    }

    /// Whether all Pods of `namespace` are known that read Secrets; where not, why.
    ///
    /// # Errors
    /// Where they are not.
    pub fn seen(&self, namespace: &str) -> Result<(), Unseen> {
        let inner = self.0.lock();
        let part = inner.parts.get(namespace).or_else(|| inner.parts.get(""));
        part.and_then(|part| part.seen).unwrap_or(Err(Unseen::Unlisted))
    }

    /// Whether every part was listed, or may not be.
    #[must_use]
    pub fn settled(&self) -> bool {
        let inner = self.0.lock();
        !inner.parts.is_empty() && inner.parts.values().all(|part| part.seen.is_some())
    }

    /// A list of `part` begins.
    pub fn list(&self, part: &str) {
        let mut inner = self.0.lock();
        let all = inner.all.keys();
        let stale = all
            .filter(|at| part.is_empty() || *at.namespace == *part)
            .cloned()
            .collect();
        if let Some(part) = inner.parts.get_mut(part) {
            part.stale = stale;
        }
    }

    /// That list is complete; returns the Secrets that lost a reader by it. And whether that ends what was not known.
    pub fn listed(&self, part: &str) -> (Vec<ObjectName>, bool) {
        let mut inner = self.0.lock();
        let Some(part) = inner.parts.get_mut(part) else {
            return (Vec::new(), false);
        };
        let news = part.seen.replace(Ok(())) != Some(Ok(()));
        let gone = std::mem::take(&mut part.stale);
        (gone.iter().flat_map(|at| inner.remove(at)).collect(), news)
    }

    /// It may not be watched; says whether that is news.
    pub fn refused(&self, part: &str) -> bool {
        let mut inner = self.0.lock();
        let Some(part) = inner.parts.get_mut(part) else {
            return false;
        };
        part.seen.replace(Err(Unseen::Refused)) != Some(Err(Unseen::Refused))
    }

    /// Notes a Pod of `part` as it is, or that the one of that name reads nothing any more; returns the Secrets for which
    /// that is news.
    pub fn put(&self, part: &str, at: &ObjectName, pod: Option<Pod>) -> Vec<ObjectName> {
        let mut inner = self.0.lock();
        if let Some(part) = inner.parts.get_mut(part) {
            part.stale.remove(at);
        }
        let Some(pod) = pod else { return inner.remove(at) };
        if inner.all.get(at).is_some_and(|known| **known == pod) {
            return Vec::new();
        }
        let mut touched = inner.remove(at);
        for (secret, _) in &pod.reads {
            let secret = ObjectName::new(Arc::clone(&at.namespace), Arc::clone(secret));
            let readers = inner.readers.entry(secret.clone()).or_default();
            readers.insert(Arc::clone(&at.name));
            touched.push(secret);
        }
        touched.sort_unstable();
        touched.dedup();
        inner.all.insert(at.clone(), Arc::new(pod));
        touched
    }

    /// Who reads a Secret, and how, in the order of their names.
    #[must_use]
    pub fn readers(&self, secret: &ObjectName) -> Vec<(Arc<Pod>, Ways)> {
        let inner = self.0.lock();
        let names = inner.readers.get(secret).into_iter().flatten();
        let pods = names.filter_map(|name| {
            let at = ObjectName::new(Arc::clone(&secret.namespace), Arc::clone(name));
            let pod = inner.all.get(&at)?;
            Some((Arc::clone(pod), pod.way_of(&secret.name)?))
        });
        pods.collect()
    }
}

impl Inner {
    fn remove(&mut self, at: &ObjectName) -> Vec<ObjectName> {
        let Some(pod) = self.all.remove(at) else {
            return Vec::new();
        };
        let mut touched = Vec::new();
        for (secret, _) in &pod.reads {
            let secret = ObjectName::new(Arc::clone(&at.namespace), Arc::clone(secret));
            if let Some(readers) = self.readers.get_mut(&secret) {
                readers.remove(&at.name);
                if readers.is_empty() {
                    self.readers.remove(&secret);
                }
            }
            touched.push(secret);
        }
        touched
    }
}
