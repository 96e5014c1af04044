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

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, secrets: &[&str]) -> Pod {
        Pod {
            name: ObjectName::new(namespace, name),
            uid: format!("{namespace}-{name}").as_str().into(),
            bound: crate::core::testing::t(0),
            started: None,
            starting: true,
            leaving: false,
            consumer: None,
            owner: None,
            reads: secrets.iter().map(|s| ((*s).into(), Ways::VOLUME)).collect(),
        }
    }

    fn put(pods: &Pods, part: &str, pod: Pod) -> Vec<String> {
        let at = pod.name.clone();
        let touched = pods.put(part, &at, Some(pod));
        touched.iter().map(ToString::to_string).collect()
    }

    fn readers(pods: &Pods, namespace: &str, secret: &str) -> Vec<String> {
        let readers = pods.readers(&ObjectName::new(namespace, secret));
        readers.iter().map(|(pod, _)| pod.name.name.to_string()).collect()
    }

    #[test]
    fn a_pod_is_news_for_the_secrets_it_reads_and_those_that_it_read_before() {
        let pods = Pods::default();
        pods.begin([String::new()]);
        assert_eq!(put(&pods, "", pod("n", "p", &["a", "b"])), ["n/a", "n/b"]);
        assert!(put(&pods, "", pod("n", "p", &["a", "b"])).is_empty(), "no news");
        assert_eq!(put(&pods, "", pod("n", "p", &["b", "c"])), ["n/a", "n/b", "n/c"]);
        put(&pods, "", pod("n", "q", &["b"]));
        assert_eq!(readers(&pods, "n", "b"), ["p", "q"]);
        assert!(readers(&pods, "n", "a").is_empty() && readers(&pods, "other", "b").is_empty());
        pods.put("", &ObjectName::new("n", "p"), None);
        assert_eq!(readers(&pods, "n", "b"), ["q"]);
    }

    #[test]
    fn a_namespace_is_known_once_it_was_listed_and_not_while_it_may_not_be() {
        let pods = Pods::default();
        assert_eq!(pods.seen("a"), Err(Unseen::Unlisted));
        pods.begin(["a".to_owned(), "b".to_owned()]);
        assert!(pods.listed("a").1 && pods.refused("b"));
        assert_eq!((pods.seen("a"), pods.seen("b")), (Ok(()), Err(Unseen::Refused)));
        assert!(!pods.listed("a").1 && !pods.refused("b"), "no news");
        assert!(pods.settled());
        assert!(pods.listed("b").1);
        assert_eq!(pods.seen("b"), Ok(()));
        pods.clear();
        assert_eq!(pods.seen("a"), Err(Unseen::Unlisted));
    }

    #[test]
    fn what_a_new_list_lacks_is_gone_and_other_namespaces_are_left_alone() {
        let pods = Pods::default();
        pods.begin(["a".to_owned(), "b".to_owned()]);
        for (part, name) in [("a", "stays"), ("a", "goes"), ("b", "other")] {
            put(&pods, part, pod(part, name, &["s"]));
        }
        pods.list("a");
        put(&pods, "a", pod("a", "stays", &["s"]));
        let (touched, _) = pods.listed("a");
        assert_eq!(touched, [ObjectName::new("a", "s")]);
        assert_eq!(readers(&pods, "a", "s"), ["stays"]);
        assert_eq!(readers(&pods, "b", "s"), ["other"]);
    }
}
