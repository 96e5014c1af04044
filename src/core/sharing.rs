//! Who may follow whose tokens: only whom their owner chose, and who might ask for the same.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::ids::{Digest, ObjectName};
use super::journal::ActiveToken;
use super::spec::DesiredSecret;
use super::{Problem, access};
use crate::api::{AccessRule, EXPIRES_AT_KEY, EphemeralCredential, Preset, Reason, SharedWith, Source};

/// A namespace, as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels, where they may be read.
    pub labels: access::Labels<'a>,
}

/// Whether the credential `source`, which is in `here`, lets credentials of `there` follow it.
///
/// Its owner must have chosen that namespace, and the connection must allow both namespaces what `source` asks for.
///
/// # Errors
/// `NotShared` without a word of whether such a credential is there: that is its owner's to tell. `NotPermitted`, to whom it
/// is shared with.
pub fn may_follow(
    source: &EphemeralCredential,
    rules: &[AccessRule],
    own_namespace: &str,
    here: Place<'_>,
    there: Place<'_>,
) -> Result<(), Problem> {
    let name = ObjectName::new(here.name, source.metadata.name.as_deref().unwrap_or_default());
    is_shared(source, &name, own_namespace, there)?;
    let allowed =
        |place: Place<'_>| access::allowed(rules, own_namespace, place.name, place.labels, &source.spec).map(|_| ());
    allowed(here).map_err(|_| {
        Problem::new(
            Reason::NotPermitted,
            format!(
                "the connection does not allow EphemeralCredential {name} what it asks for, so that nobody follows it"
            ),
        )
    })?;
    allowed(there)
}

/// Whether the owner of `source` chose the namespace `there`. One that follows another has nothing to share.
///
/// # Errors
/// As [`may_follow`].
pub fn is_shared(
    source: &EphemeralCredential,
    name: &ObjectName,
    own_namespace: &str,
    there: Place<'_>,
) -> Result<(), Problem> {
    let shared = source.spec.shared_with.as_ref();
    if source.spec.from.is_none() && shared.is_some_and(|shared| chooses(shared, own_namespace, there)) {
        return Ok(());
    }
    Err(not_shared(name, there.name))
}

/// Names are names: there are no patterns. kube-system and the controller's own namespace are chosen by name alone.
fn chooses(shared: &SharedWith, own_namespace: &str, there: Place<'_>) -> bool {
    let named = shared.namespaces.iter().any(|name| name == there.name);
    let reserved = there.name == "kube-system" || there.name == own_namespace;
    match &shared.namespace_selector {
        None => named,
        Some(selector) => {
            // The API server refuses one that is empty, and would choose all.
            let says = |selector: &LabelSelector| {
                selector.match_labels.as_ref().is_some_and(|l| !l.is_empty())
                    || selector.match_expressions.as_ref().is_some_and(|e| !e.is_empty())
            };
            let unnamed = shared.namespaces.is_empty() && !reserved;
            (named || unnamed) && says(selector) && access::selects(selector, there.labels)
        }
    }
}

/// What whoever follows is told where there is no such credential, or none that shares with them: the same.
#[must_use]
pub fn not_shared(name: &ObjectName, there: &str) -> Problem {
    Problem::new(
        Reason::NotShared,
        format!(
            "no EphemeralCredential {name} shares its tokens with namespace {there}: none is there, or its spec.sharedWith \
             does not choose this namespace; its owner can change that"
        ),
    )
}

/// What whoever may know of it is told where the credential that they follow is not there.
#[must_use]
pub fn not_found(name: &ObjectName) -> Problem {
    Problem::new(
        Reason::SourceNotFound,
        format!("EphemeralCredential {name} is not there; its tokens are followed as soon as it is"),
    )
}

/// What a credential follows is called.
#[must_use]
pub fn name_of(source: &Source) -> ObjectName {
    ObjectName::new(&source.namespace, &source.name)
}

/// `follower` as if it asked for what `source` asks for, in Secrets of its own.
#[must_use]
pub fn in_place_of(follower: &EphemeralCredential, source: &EphemeralCredential) -> EphemeralCredential {
    let mut asks = follower.clone();
    asks.spec = source.spec.clone();
    asks.spec.shared_with = None;
    asks.spec.secrets.clone_from(&follower.spec.secrets);
    asks.spec.suspend = follower.spec.suspend;
    asks.spec.consumers.clone_from(&follower.spec.consumers);
    asks
}

/// Those of `secrets`, which belong to the credential that is followed, each of which holds all outputs of `live` as they
/// came; none where they are not what `live` was written to. `layout` is that of `secrets`.
pub fn legible<'a>(
    secrets: &'a [DesiredSecret],
    layout: Digest,
    live: &'a ActiveToken,
) -> impl Iterator<Item = &'a DesiredSecret> {
    let as_written = layout == live.digest.layout;
    let all = |secret: &DesiredSecret| outputs(live).all(|name| holds_as_it_came(secret, name));
    secrets
        .iter()
        .filter(move |secret| as_written && live.secrets.contains_key(&secret.name) && all(secret))
}

/// The outputs of `live` that a Secret can hold.
pub fn outputs(live: &ActiveToken) -> impl Iterator<Item = &str> {
    live.outputs
        .iter()
        .map(|name| &**name)
        .filter(|name| *name != EXPIRES_AT_KEY)
}

/// Whether `secret` holds the output `name` as it came, under its own name: nothing else is taken for it.
#[must_use]
pub fn holds_as_it_came(secret: &DesiredSecret, name: &str) -> bool {
    let layout = &secret.layout;
    // What the preset env writes are names of variables.
    let variable =
        |name: &str| layout.presets.contains(&Preset::Env) && !name.bytes().any(|byte| byte.is_ascii_lowercase());
    layout.presets.contains(&Preset::Outputs)
        && !variable(name)
        && layout.static_keys(secret.type_).all(|key| key != name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::{SecretTemplate, SecretType};
    use crate::core::layout::AnnotationPolicy;
    use crate::core::spec::{desired, tests_support::credential};

    fn shared(namespaces: &[&str], labels: Option<&[(&str, &str)]>) -> SharedWith {
        let text = |text: &str| text.to_owned();
        SharedWith {
            namespaces: namespaces.iter().copied().map(text).collect(),
            namespace_selector: labels.map(|labels| LabelSelector {
                match_labels: Some(labels.iter().map(|(k, v)| (text(k), text(v))).collect()),
                match_expressions: None,
            }),
        }
    }

    fn rule(namespaces: &[&str]) -> AccessRule {
        serde_json::from_value(serde_json::json!({
            "namespaces": namespaces, "services": ["*"], "purposes": ["*"], "repos": ["*"],
        }))
        .unwrap()
    }

    fn asked(with: Option<SharedWith>, rules: &[AccessRule], there: &str, labels: &[(&str, &str)]) -> Option<Reason> {
        let mut source = credential("a", "chittyid");
        source.spec.shared_with = with;
        let none = BTreeMap::new();
        let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let here = Place {
            name: "runners-1",
            labels: Some(&none),
        };
        let there = Place {
            name: there,
            labels: Some(&labels),
        };
        may_follow(&source, rules, "sys", here, there).err().map(|p| p.reason)
    }

    #[test]
    fn nobody_follows_whom_the_owner_did_not_choose_and_no_name_is_a_pattern() {
        let any = [rule(&["*"])];
        assert_eq!(asked(None, &any, "b", &[]), Some(Reason::NotShared));
        assert_eq!(asked(Some(shared(&["b"], None)), &any, "b", &[]), None);
        for not in ["c", "bb", "B", ""] {
            assert_eq!(
                asked(Some(shared(&["b"], None)), &any, not, &[]),
                Some(Reason::NotShared),
                "{not}"
            );
        }
        for pattern in ["*", "b*", "?", ""] {
            assert_eq!(
                asked(Some(shared(&[pattern], None)), &any, "b", &[]),
                Some(Reason::NotShared),
                "{pattern}"
            );
        }
        // Not even one's own namespace is chosen by itself.
        assert_eq!(
            asked(Some(shared(&["b"], None)), &any, "runners-1", &[]),
            Some(Reason::NotShared)
        );
    }

    #[test]
    fn a_selector_chooses_by_labels_and_with_names_both_must_hold() {
        let any = [rule(&["*"])];
        let team: &[(&str, &str)] = &[("team", "x")];
        let selected =
            |names: &[&str], there: &str, labels| asked(Some(shared(names, Some(team))), &any, there, labels);
        assert_eq!(selected(&[], "b", team), None);
        assert_eq!(selected(&[], "b", &[]), Some(Reason::NotShared));
        assert_eq!(selected(&["b"], "b", team), None);
        assert_eq!(selected(&["b"], "b", &[]), Some(Reason::NotShared));
        assert_eq!(selected(&["b"], "c", team), Some(Reason::NotShared));
        assert_eq!(
            asked(Some(shared(&[], Some(&[]))), &any, "b", team),
            Some(Reason::NotShared),
            "an empty one chooses nobody"
        );
        for reserved in ["kube-system", "sys"] {
            let named = [rule(&[reserved]), rule(&["*"])];
            let ask = |names: &[&str]| asked(Some(shared(names, Some(team))), &named, reserved, team);
            assert_eq!(ask(&[]), Some(Reason::NotShared));
            assert_eq!(ask(&[reserved]), None);
        }
    }

    #[test]
    fn the_connection_must_allow_both_namespaces_the_same_request() {
        let with = || Some(shared(&["b"], None));
        assert_eq!(
            asked(with(), &[rule(&["runners-1"])], "b", &[]),
            Some(Reason::NotPermitted)
        );
        assert_eq!(asked(with(), &[rule(&["b"])], "b", &[]), Some(Reason::NotPermitted));
        assert_eq!(asked(with(), &[rule(&["b"]), rule(&["runners-1"])], "b", &[]), None);
        let mut narrow = rule(&["b"]);
        narrow.services = vec!["another".into()];
        assert_eq!(
            asked(with(), &[narrow, rule(&["runners-1"])], "b", &[]),
            Some(Reason::NotPermitted)
        );
    }

    #[test]
    fn whoever_follows_has_nothing_to_share_even_with_itself() {
        let mut source = credential("a", "chittyid");
        source.spec.shared_with = Some(shared(&["b", "runners-1"], None));
        source.spec.from = Some(Source {
            namespace: "runners-1".into(),
            name: "a".into(),
        });
        let none = BTreeMap::new();
        let place = |name| Place {
            name,
            labels: Some(&none),
        };
        for there in ["b", "runners-1"] {
            let told = may_follow(&source, &[rule(&["*"])], "sys", place("runners-1"), place(there));
            assert_eq!(told.unwrap_err(), not_shared(&ObjectName::new("runners-1", "a"), there));
        }
    }

    #[test]
    fn whoever_follows_asks_for_the_same_in_secrets_of_its_own() {
        let source = credential("a", "chittyid");
        let mut follower = credential("b", "");
        follower.spec.suspend = true;
        follower.spec.secrets = vec![serde_json::from_value(serde_json::json!({"name": "s"})).unwrap()];
        let asks = in_place_of(&follower, &source);
        let digest = |credential| desired(credential, None, &AnnotationPolicy::default()).unwrap().digest;
        assert_eq!(digest(&asks).request, digest(&source).request);
        assert_eq!((asks.spec.secrets[0].name.as_str(), asks.spec.suspend), ("s", true));
        assert_eq!(asks.metadata, follower.metadata);
    }

    #[test]
    fn an_output_is_taken_only_from_where_it_was_written_as_it_came() {
        let holds = |template: serde_json::Value, output| {
            let template: SecretTemplate = serde_json::from_value(template).unwrap();
            assert_eq!(template.type_, SecretType::Opaque);
            let mut credential = credential("a", "chittyid");
            credential.spec.secrets = vec![template];
            let desired = desired(&credential, None, &AnnotationPolicy::default()).unwrap();
            holds_as_it_came(&desired.secrets[0], output)
        };
        let json = |presets: &[&str]| serde_json::json!({"name": "s", "presets": presets, "data": {"npm_token": "{{ account_id }}"}});
        assert!(holds(serde_json::json!({"name": "s"}), "npm_token"));
        assert!(holds(json(&["outputs", "dotenv"]), "github_token"));
        assert!(!holds(json(&["outputs"]), "npm_token"), "a key of data took its place");
        assert!(!holds(json(&["outputs", "npmrc"]), ".npmrc"));
        assert!(!holds(json(&["outputs", "env"]), "GH_TOKEN"));
        assert!(!holds(json(&["env"]), "github_token"));
    }
}
