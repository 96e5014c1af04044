//! What a Secret is given besides its data: labels and annotations, which have others act on it.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::core::Problem;

/// Labels and annotations that a Secret has because its spec says so. They change without a mint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnMetadata {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

impl OwnMetadata {
    /// The names of them, as noted on the Secret itself, so that what the spec does not say any more can be told from what
    /// others added. None where there are none.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let names = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>();
        (*self != Self::default())
            .then(|| json!({"labels": names(&self.labels), "annotations": names(&self.annotations)}).to_string())
    }

    /// The names of labels and of annotations that a note tells of.
    #[must_use]
    pub fn noted(note: &str) -> (Vec<String>, Vec<String>) {
        let note: Value = serde_json::from_str(note).unwrap_or_default();
        let names = |of: &str| {
            let list = note[of].as_array().into_iter().flatten();
            list.filter_map(|name| name.as_str().map(str::to_owned)).collect()
        };
        (names("labels"), names("annotations"))
    }
}

/// What users may annotate their Secrets with: keys that begin with one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationPolicy {
    prefixes: Vec<String>,
}

impl Default for AnnotationPolicy {
    fn default() -> Self {
        Self {
            prefixes: ["tekton.dev/", "reloader.stakater.com/"].map(str::to_owned).into(),
        }
    }
}

/// Whose annotations are never given, whatever is allowed: they have somebody copy the Secret into other namespaces
/// (reflector, replicator, config-syncer), write over it, or take it for their own.
const NEVER: [&str; 13] = [
    "k8s.io",
    "kubernetes.io",
    "argoproj.io",
    "fluxcd.io",
    "chitty.cc",
    "emberstack.com",
    "mittwald.de",
    "appscode.com",
    "clustersecret.io",
    "clustersecret.com",
    "helm.sh",
    "bitnami.com",
    "carvel.dev",
];

/// Whether `key` has a prefix that is `domain`, or below it.
fn is_of(key: &str, domain: &str) -> bool {
    key.split_once('/')
        .and_then(|(prefix, _)| prefix.strip_suffix(domain))
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn never(key: &str) -> bool {
    NEVER.iter().any(|domain| is_of(key, domain))
}

impl FromStr for AnnotationPolicy {
    type Err = String;

    /// Prefixes with commas between; none at all: nothing is allowed.
    fn from_str(text: &str) -> Result<Self, String> {
        let prefixes = text.split(',').map(str::trim).filter(|prefix| !prefix.is_empty());
        let checked = prefixes.map(|prefix| {
            if never(prefix) {
                Err(format!("annotations under {prefix} are never given to Secrets"))
            } else if prefix.split_once('/').is_none_or(|(domain, _)| domain.is_empty()) {
                Err(format!("expected prefixes such as tekton.dev/, not {prefix}"))
            } else {
                Ok(prefix.to_owned())
            }
        });
        Ok(Self {
            prefixes: checked.collect::<Result<_, _>>()?,
        })
    }
}

impl AnnotationPolicy {
    /// Checks the labels and annotations that a spec asks for on one of its Secrets.
    ///
    /// # Errors
    /// `InvalidSpec`, naming what is not allowed and what is.
    pub fn check(
        &self,
        secret: &str,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<(), Problem> {
        let invalid = |message: String| Err(Problem::new(crate::api::Reason::InvalidSpec, message));
        if let Some(label) = labels.keys().find(|key| never(key)) {
            return invalid(format!(
                "Secret {secret}: the label {label} is not allowed: it makes other controllers act on the Secret"
            ));
        }
        let allowed = |key: &&String| !never(key) && self.prefixes.iter().any(|prefix| key.starts_with(prefix));
        match annotations.keys().find(|key| !allowed(key)) {
            None => Ok(()),
            Some(key) if never(key) => invalid(format!(
                "Secret {secret}: the annotation {key} is never allowed: it has others copy the Secret or write over it"
            )),
            Some(key) => invalid(format!(
                "Secret {secret}: the annotation {key} is not allowed; allowed are those that begin with {}",
                if self.prefixes.is_empty() {
                    "nothing at all".to_owned()
                } else {
                    self.prefixes.join(" or ")
                }
            )),
        }
    }
}

/// The label by which Jenkins' credentials provider takes a Secret for one of its credentials, where it has the
/// keys.
pub(super) fn jenkins_type(has: impl Fn(&str) -> bool) -> Option<(String, String)> {
    let kind = if has("text") {
        "secretText"
    } else if has("username") && has("password") {
        "usernamePassword"
    } else {
        return None;
    };
    Some(("jenkins.io/credentials-type".to_owned(), kind.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(key: &str) -> BTreeMap<String, String> {
        [(key.to_owned(), "v".to_owned())].into()
    }

    #[test]
    fn annotations_are_given_under_the_allowed_prefixes_alone() {
        let policy = AnnotationPolicy::default();
        let check = |key| policy.check("s", &BTreeMap::new(), &map(key)).map_err(|p| p.message);
        assert_eq!(check("tekton.dev/git-0"), Ok(()));
        assert_eq!(check("reloader.stakater.com/match"), Ok(()));
        let told = "Secret s: the annotation example.com/a is not allowed; allowed are those that begin with tekton.dev/ or reloader.stakater.com/";
        assert_eq!(check("example.com/a"), Err(told.to_owned()));
        for key in ["tekton.dev.example.com/a", "x.tekton.dev/a", "tekton", "a"] {
            assert!(check(key).is_err(), "{key}");
        }
    }

    #[test]
    fn what_has_others_copy_a_secret_is_never_given_to_it() {
        for key in [
            "reflector.v1.k8s.emberstack.com/reflection-allowed",
            "replicator.v1.mittwald.de/replicate-to",
            "kubed.appscode.com/sync",
            "kubernetes.io/service-account.name",
            "kubectl.kubernetes.io/x",
            "meta.helm.sh/release-name",
            "connect.chitty.cc/seal",
        ] {
            assert!(AnnotationPolicy::from_str(key).is_err(), "{key}");
            // Even where a prefix that is allowed covers it.
            let wide = AnnotationPolicy {
                prefixes: vec![key[..3].to_owned()],
            };
            assert!(wide.check("s", &BTreeMap::new(), &map(key)).is_err(), "{key}");
            assert!(wide.check("s", &map(key), &BTreeMap::new()).is_err(), "{key}");
        }
        let wide = AnnotationPolicy::from_str("notk8s.io/").unwrap();
        assert!(wide.check("s", &BTreeMap::new(), &map("notk8s.io/a")).is_ok());
    }

    #[test]
    fn prefixes_are_read_as_a_list_and_a_bare_word_is_none() {
        let policy: AnnotationPolicy = "tekton.dev/, example.com/team-".parse().unwrap();
        assert!(policy.check("s", &BTreeMap::new(), &map("example.com/team-a")).is_ok());
        assert!("tekton.dev".parse::<AnnotationPolicy>().is_err());
        let none: AnnotationPolicy = "".parse().unwrap();
        let told = none.check("s", &BTreeMap::new(), &map("tekton.dev/git-0")).unwrap_err();
        assert!(told.message.ends_with("begin with nothing at all"), "{}", told.message);
    }

    #[test]
    fn a_note_tells_the_names_and_somebody_elses_text_tells_none() {
        let own = OwnMetadata {
            labels: map("team"),
            annotations: map("tekton.dev/git-0"),
        };
        let note = own.note().unwrap();
        assert_eq!(note, r#"{"annotations":["tekton.dev/git-0"],"labels":["team"]}"#);
        assert_eq!(
            OwnMetadata::noted(&note),
            (vec!["team".into()], vec!["tekton.dev/git-0".into()])
        );
        assert_eq!(OwnMetadata::noted("forged"), (vec![], vec![]));
        assert_eq!(OwnMetadata::default().note(), None);
    }
}
