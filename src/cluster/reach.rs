//! How far this installation reaches: the whole cluster, or some namespaces and connections of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::{Api, Resource};

use super::{Cluster, Error, bounded};
use crate::core::access::Labels;

/// What an installation serves. Whatever is not in it belongs to others and is left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    namespaces: Vec<String>,
    connections: Vec<String>,
}

/// One watch of several that are one to whoever reads them: a namespace, the object of a name, or everything.
pub struct Part<K> {
    /// The namespace or the name; empty for everything.
    pub name: String,
    /// Where to ask.
    pub api: Api<K>,
    /// What to ask for there.
    pub fields: Option<String>,
}

impl Reach {
    /// These namespaces and these connections; all of them where none is named.
    #[must_use]
    pub fn new(namespaces: Vec<String>, connections: Vec<String>) -> Self {
        let tidy = |names: Vec<String>| {
            let mut names: Vec<String> = names.into_iter().map(|name| name.trim().to_owned()).collect();
            names.retain(|name| !name.is_empty());
            names.sort_unstable();
            names.dedup();
            names
        };
        Self {
            namespaces: tidy(namespaces),
            connections: tidy(connections),
        }
    }

    /// The namespaces it is confined to; none where it serves all.
    #[must_use]
    pub fn namespaces(&self) -> &[String] {
        &self.namespaces
    }

    /// Whether it serves credentials that name this connection.
    #[must_use]
    pub fn serves(&self, connection: &str) -> bool {
        self.connections.is_empty() || self.connections.iter().any(|name| name == connection)
    }
}

impl Cluster {
    /// Where objects of a namespaced kind are watched.
    #[must_use]
    pub fn parts_by_namespace<K>(&self) -> Vec<Part<K>>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let all = || Part {
            name: String::new(),
            api: Api::all(self.client.clone()),
            fields: None,
        };
        let one = |namespace: &String| Part {
            name: namespace.clone(),
            api: Api::namespaced(self.client.clone(), namespace),
            fields: None,
        };
        parts(&self.reach.namespaces, all, one)
    }

    /// Where connections are watched: RBAC lets somebody list and watch those that it names one by one.
    #[must_use]
    pub fn parts_by_connection<K: Resource<DynamicType = ()>>(&self) -> Vec<Part<K>> {
        let part = |name: &str, fields| Part {
            name: name.to_owned(),
            api: Api::all(self.client.clone()),
            fields,
        };
        let one = |name: &String| part(name, Some(format!("metadata.name={name}")));
        parts(&self.reach.connections, || part("", None), one)
    }

    /// A namespace as it is. One that an installation with a few namespaces may not read is taken to be there, with
    /// labels that nobody knows.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn namespace(&self, name: &str) -> Result<Option<PartialObjectMeta<Namespace>>, Error> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        match bounded(api.get_metadata_opt(name)).await {
            Err(error) if error.code() == Some(403) && !self.reach.namespaces.is_empty() => Ok(Some(unread(name))),
            found => found,
        }
    }

    /// Whether it is certain that there is no such namespace any more. Whoever's rights went with it can be told only so.
    pub async fn namespace_is_gone(&self, name: &str) -> bool {
        matches!(self.namespace(name).await, Ok(None))
    }
}

fn parts<T>(names: &[String], all: impl FnOnce() -> T, one: impl Fn(&String) -> T) -> Vec<T> {
    if names.is_empty() {
        vec![all()]
    } else {
        names.iter().map(one).collect()
    }
}

/// The API server gives every object a uid: without one it was not read.
fn unread(name: &str) -> PartialObjectMeta<Namespace> {
    PartialObjectMeta {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..PartialObjectMeta::default()
    }
}

/// The labels of a namespace, where they may be read.
#[must_use]
pub fn labels(namespace: &ObjectMeta) -> Labels<'_> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let read = namespace.uid.is_some();
    read.then(|| namespace.labels.as_ref().unwrap_or(&NONE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_once_each_and_none_means_all() {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let reach = Reach::new(own(&["b", " a", "", "b"]), own(&[""]));
        assert_eq!(reach.namespaces(), ["a", "b"]);
        assert!(reach.serves("any"));
        let reach = Reach::new(Vec::new(), own(&["team"]));
        assert!(reach.serves("team") && !reach.serves("default"));
        assert!(reach.namespaces().is_empty());
    }

    #[test]
    fn labels_of_a_namespace_that_was_not_read_are_not_the_same_as_none() {
        assert_eq!(labels(&unread("a").metadata), None);
        let read = ObjectMeta {
            uid: Some("1".to_owned()),
            ..ObjectMeta::default()
        };
        assert_eq!(labels(&read), Some(&BTreeMap::new()));
    }
}
