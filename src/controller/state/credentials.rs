//! The credentials as the watch tells of them. There may be tens of thousands, and each is looked at now and then: what
//! a look needs is kept as text, and read again when it comes to that.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use kube::ResourceExt;
use kube::api::ObjectMeta;
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio::sync::watch;

use crate::api::EphemeralCredential;
use crate::controller::state::changes::name_of;
use crate::core::ids::{ObjectName, Uid};
use crate::core::sharing::name_of as name_of_source;
use crate::core::spec;
use crate::core::status::Told;
use crate::core::text::pooled;

/// Of a longer spec only what tells it from others is kept: whoever looks at it reads it anew.
const LONGEST_KEPT: usize = 8 * 1024;

/// A credential as it was last read, without its status, and what that told.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The object.
    pub credential: EphemeralCredential,
    /// Its status.
    pub told: Told,
}

impl From<EphemeralCredential> for Seen {
    fn from(mut credential: EphemeralCredential) -> Self {
        let told = Told::of(credential.status.take().as_ref());
        trim(&mut credential.metadata);
        Self { credential, told }
    }
}

/// What is known of a credential without reading its text.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its uid.
    pub uid: Uid,
    /// The connection it names.
    pub connection: Arc<str>,
    /// It is being deleted.
    pub leaving: bool,
    /// The Secrets whose readers matter to it.
    pub looks_after: Box<[Arc<str>]>,
    /// What its status told.
    pub told: Told,
    /// What it follows, if it does that.
    pub follows: Option<Arc<Follows>>,
}

/// What a credential follows, and where it has that written.
#[derive(Debug)]
pub struct Follows {
    /// The credential whose tokens it is given.
    pub source: ObjectName,
    /// Names of its own Secrets.
    pub secrets: Box<[Arc<str>]>,
}

struct Kept {
    facts: Facts,
    version: Box<str>,
    /// Of all that a plan depends on.
    digest: u64,
    /// The object as JSON, without its status; none where that is too long to be kept.
    text: Option<Box<[u8]>>,
}

/// What there is under a name.
pub enum Look {
    /// The object.
    There(Box<Seen>),
    /// It is there, and so long that it has to be read.
    TooLong,
    /// Nothing.
    Gone,
}

/// All credentials.
pub struct Credentials {
    all: RwLock<All>,
    /// By Secret, the credentials to which its readers matter: nearly always one.
    looked_after: Mutex<HashMap<ObjectName, Vec<Arc<str>>>>,
    /// Whether there is any.
    looks_after: watch::Sender<bool>,
    synced: watch::Sender<bool>,
}

#[derive(Default)]
struct All {
    by_name: HashMap<ObjectName, Box<Kept>>,
    /// Who follows whom.
    followers: HashMap<ObjectName, HashSet<ObjectName>>,
    /// By Secret, what it is given the tokens of: nearly always one.
    sources: HashMap<ObjectName, Vec<ObjectName>>,
}

impl All {
    /// Notes what `name` follows.
    fn follow(&mut self, name: &ObjectName, follows: &Follows) {
        let followers = self.followers.entry(follows.source.clone()).or_default();
        followers.insert(name.clone());
        for secret in &follows.secrets {
            let at = ObjectName::new(&name.namespace, secret);
            let sources = self.sources.entry(at).or_default();
            sources.reserve_exact(1);
            sources.push(follows.source.clone());
        }
    }

    /// Notes that `name` does not follow any more what it did.
    fn unfollow(&mut self, name: &ObjectName, before: &Kept) {
        let Some(follows) = &before.facts.follows else { return };
        if let Some(all) = self.followers.get_mut(&follows.source) {
            all.remove(name);
            if all.is_empty() {
                self.followers.remove(&follows.source);
            }
        }
        for secret in &follows.secrets {
            let at = ObjectName::new(&name.namespace, secret);
            if let Some(sources) = self.sources.get_mut(&at) {
                if let Some(place) = sources.iter().position(|source| *source == follows.source) {
                    sources.swap_remove(place);
                }
                if sources.is_empty() {
                    self.sources.remove(&at);
                }
            }
        }
    }
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            all: RwLock::default(),
            looked_after: Mutex::default(),
            looks_after: watch::Sender::new(false),
            synced: watch::Sender::new(false),
        }
    }
}

impl Credentials {
    /// Waits until all were listed once.
    pub async fn wait_until_synced(&self) {
        // Fails only where the sender is gone, which is `self`'s.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Notes that all were listed, and forgets all others; returns those.
    pub fn retain(&self, listed: &HashSet<ObjectName>) -> Vec<ObjectName> {
        let mut all = self.all.write();
        let mut gone: Vec<ObjectName> = all.by_name.keys().cloned().collect();
        gone.retain(|name| !listed.contains(name));
        for name in &gone {
            if let Some(kept) = all.by_name.remove(name) {
                self.look_after(name, &kept.facts.looks_after, &[]);
                all.unfollow(name, &kept);
            }
        }
        drop(all);
        self.synced.send_replace(true);
        gone
    }

    /// Notes `credential` as the watch tells of it, unless something later is known. Returns its name where something
    /// changed that a plan depends on: our own status writes are no news, a new rotate annotation is.
    pub fn put(&self, credential: EphemeralCredential) -> Option<ObjectName> {
        self.note(credential, false)
    }

    /// The same, of what a write was answered, which the watch may be ahead of: what it does not know of, or not any more,
    /// is none of the credentials.
    pub fn put_answer(&self, credential: EphemeralCredential) -> Option<ObjectName> {
        self.note(credential, true)
    }

    fn note(&self, credential: EphemeralCredential, if_known: bool) -> Option<ObjectName> {
        let name = name_of(&credential);
        let kept = Box::new(Kept::new(credential));
        let mut all = self.all.write();
        let known = all.by_name.get(&name);
        if if_known && known.is_none_or(|known| kept.facts.uid != known.facts.uid) {
            return None;
        }
        if known.is_some_and(|known| kept.facts.uid == known.facts.uid && kept.is_before(known)) {
            return None;
        }
        let digest = kept.digest;
        let read = known.map(|known| &*known.facts.looks_after).unwrap_or_default();
        self.look_after(&name, read, &kept.facts.looks_after);
        let follows = kept.facts.follows.clone();
        let before = all.by_name.insert(name.clone(), kept);
        if let Some(before) = &before {
            all.unfollow(&name, before);
        }
        if let Some(follows) = follows {
            all.follow(&name, &follows);
        }
        before.is_none_or(|before| before.digest != digest).then_some(name)
    }

    /// Whether anybody follows the credential of that name.
    #[must_use]
    pub fn is_followed(&self, name: &ObjectName) -> bool {
        self.all.read().followers.contains_key(name)
    }

    /// What a Secret of that name is given the tokens of, as whoever follows says.
    #[must_use]
    pub fn sources_of(&self, secret: &ObjectName) -> Vec<ObjectName> {
        self.all.read().sources.get(secret).cloned().unwrap_or_default()
    }

    /// Who says to follow the credential of that name, and what: whether they may is another matter.
    #[must_use]
    pub fn followers(&self, name: &ObjectName) -> Vec<(ObjectName, Arc<Follows>)> {
        let all = self.all.read();
        let named = all.followers.get(name).into_iter().flatten();
        let named = named.filter_map(|name| Some((name.clone(), all.by_name.get(name)?.facts.follows.clone()?)));
        named.collect()
    }

    /// Forgets the credential of that name, if it still is the one with this uid.
    pub fn remove(&self, name: &ObjectName, uid: &str) {
        let mut all = self.all.write();
        if all.by_name.get(name).is_some_and(|kept| kept.facts.uid.as_str() == uid)
            && let Some(kept) = all.by_name.remove(name)
        {
            self.look_after(name, &kept.facts.looks_after, &[]);
            all.unfollow(name, &kept);
        }
    }

    /// Notes to which Secrets' readers it matters to a credential.
    fn look_after(&self, name: &ObjectName, before: &[Arc<str>], after: &[Arc<str>]) {
        if before == after {
            return;
        }
        let mut all = self.looked_after.lock();
        let at = |secret: &Arc<str>| ObjectName::new(Arc::clone(&name.namespace), Arc::clone(secret));
        for secret in before {
            if let Entry::Occupied(mut credentials) = all.entry(at(secret)) {
                credentials.get_mut().retain(|other| *other != name.name);
                if credentials.get().is_empty() {
                    credentials.remove();
                }
            }
        }
        for secret in after {
            let credentials = all.entry(at(secret)).or_default();
            credentials.reserve_exact(1);
            credentials.push(Arc::clone(&name.name));
        }
        let any = !all.is_empty();
        drop(all);
        self.looks_after
            .send_if_modified(|now| std::mem::replace(now, any) != any);
    }

    /// To which credentials it matters who reads that Secret.
    #[must_use]
    pub fn looking_after(&self, secret: &ObjectName) -> Vec<ObjectName> {
        let all = self.looked_after.lock();
        all.get(secret)
            .into_iter()
            .flatten()
            .map(|name| ObjectName::new(Arc::clone(&secret.namespace), Arc::clone(name)))
            .collect()
    }

    /// Whether it matters to any credential who reads its Secrets.
    #[must_use]
    pub fn looks_after(&self) -> watch::Receiver<bool> {
        self.looks_after.subscribe()
    }

    /// What there is under that name.
    #[must_use]
    pub fn look(&self, name: &ObjectName) -> Look {
        let all = self.all.read();
        let Some(kept) = all.by_name.get(name) else {
            return Look::Gone;
        };
        let text = kept.text.as_deref();
        // It was written from an object, and reads as one.
        match text.and_then(|text| serde_json::from_slice(text).ok()) {
            Some(credential) => Look::There(Box::new(Seen {
                credential,
                told: kept.facts.told.clone(),
            })),
            None => Look::TooLong,
        }
    }

    /// What is known of the credential of that name.
    #[must_use]
    pub fn facts(&self, name: &ObjectName) -> Option<Facts> {
        self.all.read().by_name.get(name).map(|kept| kept.facts.clone())
    }

    /// The names of those that `which` picks.
    #[must_use]
    pub fn names_where(&self, which: impl Fn(&ObjectName, &Facts) -> bool) -> Vec<ObjectName> {
        let all = self.all.read();
        let picked = all.by_name.iter().filter(|(name, kept)| which(name, &kept.facts));
        picked.map(|(name, _)| name.clone()).collect()
    }

    /// No more of the credentials of `namespace` than what tells which they are.
    #[must_use]
    pub fn stubs(&self, namespace: &str) -> Vec<EphemeralCredential> {
        let all = self.all.read();
        let here = all.by_name.iter().filter(|(name, _)| &*name.namespace == namespace);
        let stubs = here.filter_map(|(name, kept)| {
            let spec = serde_json::from_value(json!({"service": "", "purpose": ""})).ok()?;
            let mut stub = EphemeralCredential::new(&name.name, spec);
            stub.metadata.namespace = Some(name.namespace.to_string());
            stub.metadata.uid = Some(kept.facts.uid.to_string());
            Some(stub)
        });
        stubs.collect()
    }

    /// Looks at what is known of each.
    pub fn for_each(&self, mut look: impl FnMut(&ObjectName, &Facts)) {
        for (name, kept) in &self.all.read().by_name {
            look(name, &kept.facts);
        }
    }
}

impl Kept {
    fn new(credential: EphemeralCredential) -> Self {
        let Seen { credential, told } = credential.into();
        let meta = &credential.metadata;
        let mut hasher = DefaultHasher::new();
        (
            &meta.uid,
            meta.generation,
            &meta.annotations,
            meta.deletion_timestamp.is_some(),
        )
            .hash(&mut hasher);
        // Serialising plain text, numbers and maps cannot fail.
        let text = serde_json::to_vec(&credential).unwrap_or_default();
        let follows = credential.spec.from.as_ref().map(|source| {
            let name = credential.name_any();
            Arc::new(Follows {
                source: name_of_source(source),
                secrets: spec::secret_names(&credential.spec, &name).map(pooled).collect(),
            })
        });
        Self {
            facts: Facts {
                follows,
                uid: credential.uid().unwrap_or_default().into(),
                connection: pooled(&credential.spec.connection),
                leaving: meta.deletion_timestamp.is_some(),
                looks_after: looked_after(&credential),
                told,
            },
            version: credential.resource_version().unwrap_or_default().into(),
            digest: hasher.finish(),
            text: (text.len() <= LONGEST_KEPT).then(|| text.into_boxed_slice()),
        }
    }

    /// Versions of one kind of object are numbers that grow.
    fn is_before(&self, other: &Self) -> bool {
        let version = |kept: &Self| kept.version.parse::<u64>().ok();
        version(self).zip(version(other)).is_some_and(|(a, b)| a < b)
    }
}

/// The Secrets whose readers matter to a credential.
fn looked_after(credential: &EphemeralCredential) -> Box<[Arc<str>]> {
    if !spec::looks_after_pods(&credential.spec) {
        return Box::default();
    }
    let name = credential.name_any();
    let mut secrets: Vec<Arc<str>> = spec::secret_names(&credential.spec, &name).map(pooled).collect();
    secrets.dedup();
    secrets.into()
}

/// Drops what takes room and is never read.
pub(super) fn trim(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

#[cfg(test)]
mod tests {
    use kube::Resource;

    use super::*;

    fn credential(version: &str, generation: i64, purpose: &str) -> EphemeralCredential {
        serde_json::from_value(json!({
            "apiVersion": EphemeralCredential::api_version(&()), "kind": EphemeralCredential::kind(&()),
            "metadata": {"namespace": "n", "name": "a", "uid": "u", "resourceVersion": version, "generation": generation},
            "spec": {"service": "s", "purpose": purpose, "secrets": [{"name": "a", "data": {"k": "{{ npm_token }}"}}]},
        }))
        .unwrap()
    }

    fn purpose(all: &Credentials) -> Option<String> {
        match all.look(&ObjectName::new("n", "a")) {
            Look::There(seen) => Some(seen.credential.spec.purpose),
            Look::TooLong | Look::Gone => None,
        }
    }

    #[test]
    fn a_credential_is_read_back_as_it_was_kept() {
        let (all, one) = (Credentials::default(), credential("5", 1, "deploy"));
        assert_eq!(all.put(one.clone()), Some(ObjectName::new("n", "a")));
        let Look::There(seen) = all.look(&ObjectName::new("n", "a")) else {
            panic!("it is there");
        };
        assert_eq!(seen.credential, one);
    }

    #[test]
    fn what_is_older_than_what_is_known_is_left_out() {
        let all = Credentials::default();
        all.put(credential("5", 2, "new"));
        assert_eq!(all.put(credential("4", 1, "old")), None);
        assert_eq!(purpose(&all).as_deref(), Some("new"));
        assert_eq!(all.put(credential("6", 2, "new")), None, "no news");
        assert!(all.put(credential("7", 3, "newer")).is_some());
    }

    #[test]
    fn a_namesake_is_not_what_was_deleted() {
        let (all, name) = (Credentials::default(), ObjectName::new("n", "a"));
        all.put(credential("5", 1, "deploy"));
        all.remove(&name, "another");
        assert!(all.facts(&name).is_some());
        all.remove(&name, "u");
        assert!(matches!(all.look(&name), Look::Gone));
    }

    #[test]
    fn what_a_write_is_answered_brings_nothing_back_that_was_deleted_meanwhile() {
        let (all, name) = (Credentials::default(), ObjectName::new("n", "a"));
        all.put(credential("5", 1, "deploy"));
        all.put_answer(credential("6", 1, "answered"));
        assert_eq!(purpose(&all).as_deref(), Some("answered"));
        all.remove(&name, "u");
        assert_eq!(all.put_answer(credential("7", 1, "late")), None);
        assert!(matches!(all.look(&name), Look::Gone));
        let mut namesake = credential("8", 1, "of another");
        namesake.metadata.uid = Some("v".to_owned());
        all.put(namesake);
        assert_eq!(all.put_answer(credential("7", 1, "late")), None);
        assert_eq!(purpose(&all).as_deref(), Some("of another"));
    }

    #[test]
    fn the_stubs_of_a_namespace_take_away_what_is_there_and_no_other() {
        let all = Credentials::default();
        all.put(credential("5", 1, "deploy"));
        assert!(all.stubs("another").is_empty());
        for stub in all.stubs("n") {
            all.remove(&name_of(&stub), stub.metadata.uid.as_deref().unwrap_or_default());
        }
        assert!(matches!(all.look(&ObjectName::new("n", "a")), Look::Gone));
    }

    #[test]
    fn a_list_that_leaves_one_out_tells_that_it_is_gone() {
        let (all, name) = (Credentials::default(), ObjectName::new("n", "a"));
        all.put(credential("5", 1, "deploy"));
        assert!(all.retain(&[name.clone()].into()).is_empty());
        assert_eq!(all.retain(&HashSet::new()), [name]);
    }

    #[test]
    fn it_is_known_who_follows_whom_and_what_a_followers_secret_is_given_the_tokens_of() {
        let (all, name) = (Credentials::default(), ObjectName::new("n", "a"));
        let follower = |version: &str, source: &str| {
            let mut follower = credential(version, version.parse().unwrap(), "");
            follower.spec.from = Some(crate::api::Source {
                namespace: "m".to_owned(),
                name: source.to_owned(),
            });
            follower
        };
        let (x, y, secret) = (
            ObjectName::new("m", "x"),
            ObjectName::new("m", "y"),
            ObjectName::new("n", "a"),
        );
        all.put(follower("5", "x"));
        assert_eq!(all.followers(&x)[0].0, name);
        assert_eq!(&all.followers(&x)[0].1.secrets[..], ["a".into()]);
        assert_eq!(all.sources_of(&secret), std::slice::from_ref(&x));
        all.put(follower("6", "y"));
        assert!(!all.is_followed(&x) && all.is_followed(&y));
        assert_eq!(all.sources_of(&secret), std::slice::from_ref(&y));
        all.put(follower("5", "x"));
        assert!(all.is_followed(&y), "that is older");
        all.remove(&name, "u");
        assert!(!all.is_followed(&y) && all.sources_of(&secret).is_empty());
        all.put(follower("7", "y"));
        all.retain(&HashSet::new());
        assert!(!all.is_followed(&y) && all.sources_of(&secret).is_empty());
    }

    #[test]
    fn it_is_known_to_which_credentials_it_matters_who_reads_a_secret() {
        let (all, secret) = (Credentials::default(), ObjectName::new("n", "a"));
        let (name, matters) = (ObjectName::new("n", "a"), all.looks_after());
        all.put(credential("5", 1, "deploy"));
        assert!(all.looking_after(&secret).is_empty() && !*matters.borrow());
        let mut on_demand = credential("6", 2, "deploy");
        on_demand.spec.activation = crate::api::Activation::OnDemand;
        all.put(on_demand.clone());
        assert_eq!(all.looking_after(&secret), std::slice::from_ref(&name));
        assert!(*matters.borrow());
        // The Secret has another name now.
        on_demand.spec.secrets[0].name = "b".to_owned();
        on_demand.metadata.resource_version = Some("7".to_owned());
        all.put(on_demand);
        assert!(all.looking_after(&secret).is_empty());
        assert_eq!(all.looking_after(&ObjectName::new("n", "b")), [name]);
        all.retain(&HashSet::new());
        assert!(!*matters.borrow());
    }

    /// Invariant 13.
    #[test]
    fn a_long_spec_is_not_kept() {
        let all = Credentials::default();
        all.put(credential("5", 1, &"x".repeat(LONGEST_KEPT)));
        assert!(matches!(all.look(&ObjectName::new("n", "a")), Look::TooLong));
    }
}
