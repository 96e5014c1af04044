//! Who may ask for what: deny by default, any rule that matches allows.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use wildmatch::WildMatch;

use super::{Problem, spec};
use crate::api::Reason;
use crate::api::{AccessRule, EphemeralCredentialSpec};

/// The labels of a namespace; none where they may not be read: then no selector matches, not even one for what has no
/// labels.
pub type Labels<'a> = Option<&'a BTreeMap<String, String>>;

/// Whether `rules` allow what `spec` asks for, from `namespace`.
///
/// kube-system and the controller's own namespace are allowed only by name, never by a pattern or a
/// selector.
///
/// # Errors
/// `NotPermitted`, saying what would have to be allowed and by whom.
pub fn allowed(
    rules: &[AccessRule],
    own_namespace: &str,
    namespace: &str,
    labels: Labels<'_>,
    spec: &EphemeralCredentialSpec,
) -> Result<Option<u32>, Problem> {
    let reserved = namespace == "kube-system" || namespace == own_namespace;
    let mut admitting = rules
        .iter()
        .filter(|rule| admits(rule, reserved, namespace, labels, spec))
        .map(|rule| rule.max_mints_per_window);
    if let Some(first) = admitting.next() {
        // The roomiest: no limit is more than any.
        return Ok(first.and_then(|first| admitting.try_fold(first, |most, other| Some(most.max(other?)))));
    }
    let repo = spec
        .repo
        .as_deref()
        .map_or_else(|| "no repo".to_owned(), |repo| format!("repo {repo}"));
    Err(Problem::new(
        Reason::NotPermitted,
        format!(
            "no access rule of ChittyConnection {} lets namespace {namespace} ask for service {}, purpose {}, {repo}{}{}{}; \
             an administrator can add one to its spec.access",
            spec.connection,
            spec.service,
            spec.purpose,
            provision_text(spec),
            if reserved {
                " (this namespace must be named without a pattern)"
            } else {
                ""
            },
            if labels.is_none() && rules.iter().any(|rule| rule.namespace_selector.is_some()) {
                " (a namespaceSelector matches nothing, because the controller may not read the labels of this namespace)"
            } else {
                ""
            },
        ),
    ))
}

/// Whether any of `rules` could allow a request for `service` from somewhere.
#[must_use]
pub fn names_service(rules: &[AccessRule], service: &str) -> bool {
    rules.iter().any(|rule| any(&rule.services, service))
}

fn provision_text(spec: &EphemeralCredentialSpec) -> String {
    let type_ = spec.type_.as_ref().map(|t| format!(", type {t}")).unwrap_or_default();
    let keys: Vec<&str> = spec.context.keys().map(String::as_str).collect();
    if keys.is_empty() {
        type_
    } else {
        format!("{type_}, context {}", keys.join(", "))
    }
}

/// The rule must name the key, and each value must match one of its globs.
fn context_matches(rule: &AccessRule, key: &str, value: &str) -> bool {
    rule.context
        .get(key)
        .is_some_and(|globs| spec::items(key, value).all(|item| any(globs, item)))
}

fn admits(
    rule: &AccessRule,
    reserved: bool,
    namespace: &str,
    labels: Labels<'_>,
    spec: &EphemeralCredentialSpec,
) -> bool {
    namespace_matches(rule, reserved, namespace, labels)
        && any(&rule.services, &spec.service)
        && any(&rule.purposes, &spec.purpose)
        && match &spec.repo {
            Some(repo) => any(&rule.repos, repo),
            None => rule.repos.iter().any(|glob| glob == "*"),
        }
        && spec.type_.as_ref().is_none_or(|type_| any(&rule.types, type_))
        && spec
            .context
            .iter()
            .all(|(key, value)| context_matches(rule, key, value))
}

fn namespace_matches(rule: &AccessRule, reserved: bool, namespace: &str, labels: Labels<'_>) -> bool {
    if reserved {
        return rule.namespaces.iter().any(|name| name == namespace)
            && rule.namespace_selector.as_ref().is_none_or(|s| selects(s, labels));
    }
    match (&rule.namespaces[..], &rule.namespace_selector) {
        ([], None) => false,
        ([], Some(selector)) => selects(selector, labels),
        (globs, None) => any(globs, namespace),
        (globs, Some(selector)) => any(globs, namespace) && selects(selector, labels),
    }
}

pub(super) fn selects(selector: &LabelSelector, labels: Labels<'_>) -> bool {
    // A selector that cannot be read selects nothing, nor does one of labels that cannot be: deny by default.
    labels.is_some_and(|labels| Selector::try_from(selector.clone()).is_ok_and(|s| s.matches(labels)))
}

fn any(globs: &[String], value: &str) -> bool {
    globs.iter().any(|glob| WildMatch::new(glob).matches(value))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;
    use crate::core::spec::tests_support::credential;

    fn rule(namespaces: &[&str], services: &[&str], purposes: &[&str], repos: &[&str]) -> AccessRule {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        AccessRule {
            namespaces: own(namespaces),
            namespace_selector: None,
            services: own(services),
            purposes: own(purposes),
            repos: own(repos),
            types: Vec::new(),
            context: BTreeMap::new(),
            max_mints_per_window: None,
        }
    }

    #[test]
    fn of_several_rules_that_admit_a_request_the_roomiest_says_how_much_a_namespace_may_take() {
        let limited = |most, service: &str| AccessRule {
            max_mints_per_window: most,
            ..rule(&["n"], &[service], &["*"], &["*"])
        };
        let most = |rules: &[AccessRule]| {
            let ec = credential("a", "chittyid");
            allowed(rules, "chittyconnect-system", "n", Some(&BTreeMap::new()), &ec.spec).unwrap()
        };
        assert_eq!(most(&[limited(Some(2), "chittyid")]), Some(2));
        assert_eq!(most(&[limited(Some(2), "chittyid"), limited(Some(4), "*")]), Some(4));
        assert_eq!(
            most(&[limited(Some(2), "chittyid"), limited(Some(4), "another")]),
            Some(2)
        );
        assert_eq!(most(&[limited(Some(2), "chittyid"), limited(None, "*")]), None);
        assert_eq!(most(&[limited(None, "*"), limited(Some(2), "chittyid")]), None);
    }

    fn ask(rules: &[AccessRule], namespace: &str, labels: &[(&str, &str)], repo: Option<&str>) -> bool {
        let mut ec = credential("a", "chittyid");
        ec.spec.repo = repo.map(str::to_owned);
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        allowed(rules, "chittyconnect-system", namespace, Some(&labels), &ec.spec).is_ok()
    }

    #[test]
    fn nothing_is_allowed_without_a_rule() {
        assert!(!ask(&[], "runners-1", &[], Some("O/r")));
    }

    #[test]
    fn every_field_of_a_rule_must_match_and_any_rule_will_do() {
        let good = rule(&["runners-*"], &["chittyid"], &["worker-deploy"], &["CHITTYOS/*"]);
        assert!(ask(
            std::slice::from_ref(&good),
            "runners-1",
            &[],
            Some("CHITTYOS/chittyid")
        ));
        assert!(!ask(
            std::slice::from_ref(&good),
            "default",
            &[],
            Some("CHITTYOS/chittyid")
        ));
        assert!(!ask(
            std::slice::from_ref(&good),
            "runners-1",
            &[],
            Some("EVIL/chittyid")
        ));
        for bad in [
            AccessRule {
                services: vec!["other".into()],
                ..good.clone()
            },
            AccessRule {
                purposes: vec!["other".into()],
                ..good.clone()
            },
        ] {
            assert!(!ask(
                std::slice::from_ref(&bad),
                "runners-1",
                &[],
                Some("CHITTYOS/chittyid")
            ));
            assert!(ask(&[bad, good.clone()], "runners-1", &[], Some("CHITTYOS/chittyid")));
        }
    }

    #[test]
    fn a_request_without_repo_needs_a_rule_for_any_repo() {
        assert!(!ask(
            &[rule(&["*"], &["*"], &["*"], &["CHITTYOS/*", "**"])],
            "a",
            &[],
            None
        ));
        assert!(ask(&[rule(&["*"], &["*"], &["*"], &["*"])], "a", &[], None));
    }

    #[test]
    fn names_and_selector_must_both_hold() {
        let mut both = rule(&["team-*"], &["*"], &["*"], &["*"]);
        both.namespace_selector = Some(LabelSelector {
            match_labels: Some([("tier".to_owned(), "ci".to_owned())].into()),
            match_expressions: None,
        });
        assert!(ask(
            std::slice::from_ref(&both),
            "team-a",
            &[("tier", "ci")],
            Some("O/r")
        ));
        assert!(!ask(std::slice::from_ref(&both), "team-a", &[], Some("O/r")));
        assert!(!ask(
            std::slice::from_ref(&both),
            "other",
            &[("tier", "ci")],
            Some("O/r")
        ));
        both.namespaces.clear();
        assert!(ask(
            std::slice::from_ref(&both),
            "other",
            &[("tier", "ci")],
            Some("O/r")
        ));
    }

    #[test]
    fn a_selector_matches_no_labels_that_may_not_be_read_and_the_message_says_so() {
        let mut unlabelled = rule(&[], &["*"], &["*"], &["*"]);
        unlabelled.namespace_selector = Some(LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "locked".to_owned(),
                operator: "DoesNotExist".to_owned(),
                values: None,
            }]),
        });
        let rules = std::slice::from_ref(&unlabelled);
        let ec = credential("a", "chittyid");
        let with = |labels: Labels<'_>| allowed(rules, "sys", "a", labels, &ec.spec);
        assert!(with(Some(&BTreeMap::new())).is_ok());
        let refused = with(None).unwrap_err().message;
        assert!(refused.contains("may not read the labels"), "{refused}");
        let named = rule(&["a"], &["*"], &["*"], &["*"]);
        assert!(allowed(&[named, unlabelled], "sys", "a", None, &ec.spec).is_ok());
    }

    #[test]
    fn a_rule_that_names_no_namespace_allows_none() {
        assert!(!ask(&[rule(&[], &["*"], &["*"], &["*"])], "a", &[], Some("O/r")));
    }

    #[test]
    fn types_and_context_are_denied_unless_named() {
        let mut ec = credential("a", "chittyid");
        let ask = |rule: &AccessRule, ec: &crate::api::EphemeralCredential| {
            allowed(std::slice::from_ref(rule), "sys", "a", Some(&BTreeMap::new()), &ec.spec).is_ok()
        };
        let mut any = rule(&["*"], &["*"], &["*"], &["*"]);
        ec.spec.type_ = Some("cloudflare_d1_access".into());
        assert!(!ask(&any, &ec));
        any.types = vec!["cloudflare_*".into()];
        assert!(ask(&any, &ec));
        ec.spec.context.insert("database".into(), "users".into());
        assert!(!ask(&any, &ec));
        any.context.insert("database".into(), vec!["user?".into()]);
        assert!(ask(&any, &ec));
        any.context.insert("zones".into(), vec!["*.example".into()]);
        ec.spec.context.insert("zones".into(), "a.example,b.example".into());
        assert!(ask(&any, &ec));
        ec.spec.context.insert("zones".into(), "a.example,chitty.cc".into());
        assert!(!ask(&any, &ec));
    }

    #[test]
    fn system_namespaces_must_be_named_without_a_pattern() {
        let any = rule(&["*"], &["*"], &["*"], &["*"]);
        assert!(!ask(std::slice::from_ref(&any), "kube-system", &[], Some("O/r")));
        assert!(!ask(
            std::slice::from_ref(&any),
            "chittyconnect-system",
            &[],
            Some("O/r")
        ));
        let named = rule(&["kube-system"], &["*"], &["*"], &["*"]);
        assert!(ask(&[named], "kube-system", &[], Some("O/r")));
    }
}
