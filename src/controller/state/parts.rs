//! Several watches as one: an installation that may not watch the whole cluster watches its namespaces, or the connections
//! that it names, one by one.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;

use futures::stream::{self, BoxStream, StreamExt};
use kube::runtime::watcher::{Config, Error as WatchError, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Error as KubeError, Resource};
use serde::de::DeserializeOwned;

use super::changes::name_of;
use crate::cluster::reach::Part;

type Events<K> = BoxStream<'static, Result<Event<K>, WatchError>>;

/// Watches all of `parts` for ever. What comes of it is as of one watch: a list of everything once every part was listed,
/// and then what changes. A part that may not be watched is one with nothing in it until it may.
///
/// `known` tells the objects of a part that whoever reads this has been told of: a list that is read anew may lack some.
pub fn watch<K>(parts: Vec<Part<K>>, config: &Config, known: impl Fn(&str) -> Vec<K> + Send + 'static) -> Events<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut names = Vec::new();
    let mut watches: Vec<Events<K>> = Vec::new();
    for part in parts {
        let config = match &part.fields {
            Some(fields) => config.clone().fields(fields),
            None => config.clone(),
        };
        watches.push(watcher::watcher(part.api, config).default_backoff().boxed());
        names.push(part.name);
    }
    if watches.len() == 1 && names[0].is_empty() {
        return watches.remove(0);
    }
    merge(names.into_iter().zip(watches), known)
}

fn merge<K>(
    watches: impl IntoIterator<Item = (String, Events<K>)>,
    known: impl Fn(&str) -> Vec<K> + Send + 'static,
) -> Events<K>
where
    K: Resource<DynamicType = ()> + Send + 'static,
{
    let mut merged = Merged::default();
    let mut tagged = Vec::new();
    for (name, events) in watches {
        merged.parts.insert(name.clone(), Progress::default());
        tagged.push(events.map(move |event| (name.clone(), event)).boxed());
    }
    stream::select_all(tagged)
        .flat_map(move |(name, event)| stream::iter(merged.after(&name, event, &known)))
        .boxed()
}

/// How far the watch of a part has come.
struct Progress<K> {
    /// The list that is being read.
    listing: Vec<K>,
    /// What is told as soon as every part was listed: its list, and what happened since.
    held: Option<(Vec<K>, Vec<Event<K>>)>,
    /// That it may not be watched was told.
    refused: bool,
}

impl<K> Default for Progress<K> {
    fn default() -> Self {
        Self {
            listing: Vec::new(),
            held: None,
            refused: false,
        }
    }
}

struct Merged<K> {
    parts: BTreeMap<String, Progress<K>>,
    /// Every part was listed, and all of it was told.
    listed: bool,
}

impl<K> Default for Merged<K> {
    fn default() -> Self {
        Self {
            parts: BTreeMap::new(),
            listed: false,
        }
    }
}

impl<K: Resource<DynamicType = ()>> Merged<K> {
    fn after(
        &mut self,
        name: &str,
        event: Result<Event<K>, WatchError>,
        known: impl Fn(&str) -> Vec<K>,
    ) -> Vec<Result<Event<K>, WatchError>> {
        let Some(part) = self.parts.get_mut(name) else {
            return Vec::new();
        };
        let event = match event {
            Ok(event) => event,
            Err(error) if is_refusal(&error) => {
                let told = std::mem::replace(&mut part.refused, true);
                if part.held.is_none() {
                    part.held = Some((Vec::new(), Vec::new()));
                }
                let mut news = self.begin();
                if !told {
                    news.push(Err(error));
                }
                return news;
            }
            Err(error) => return vec![Err(error)],
        };
        match event {
            Event::Init => part.listing.clear(),
            Event::InitApply(object) => part.listing.push(object),
            Event::InitDone => {
                part.refused = false;
                let list = std::mem::take(&mut part.listing);
                if self.listed {
                    return relisted(list, known(name)).map(Ok).collect();
                }
                part.held = Some((list, Vec::new()));
                return self.begin();
            }
            event if self.listed => return vec![Ok(event)],
            event => {
                if let Some((_, since)) = &mut part.held {
                    since.push(event);
                }
            }
        }
        Vec::new()
    }

    /// Tells everything, as soon as there is everything to tell.
    fn begin(&mut self) -> Vec<Result<Event<K>, WatchError>> {
        if self.listed || self.parts.values().any(|part| part.held.is_none()) {
            return Vec::new();
        }
        self.listed = true;
        let held = self.parts.values_mut().filter_map(|part| part.held.take());
        let (lists, since): (Vec<_>, Vec<_>) = held.unzip();
        let lists = lists.into_iter().flatten().map(Event::InitApply);
        let all = std::iter::once(Event::Init).chain(lists).chain([Event::InitDone]);
        all.chain(since.into_iter().flatten()).map(Ok).collect()
    }
}

/// What a list that was read anew says, after what was known before.
fn relisted<K: Resource<DynamicType = ()>>(list: Vec<K>, known: Vec<K>) -> impl Iterator<Item = Event<K>> {
    let there: HashSet<_> = list.iter().map(name_of).collect();
    let gone: Vec<K> = known
        .into_iter()
        .filter(|object| !there.contains(&name_of(object)))
        .collect();
    let gone = gone.into_iter().map(Event::Delete);
    gone.chain(list.into_iter().map(Event::Apply))
}

/// The namespace is gone, and the rights in it too; or they were not given yet.
pub fn is_refusal(error: &WatchError) -> bool {
    let (WatchError::InitialListFailed(error) | WatchError::WatchStartFailed(error)) = error else {
        return false;
    };
    matches!(error, KubeError::Api(status) if matches!(status.code, 403 | 404))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;
    use kube::core::Status;

    use super::*;

    fn object(namespace: &str, name: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn refused() -> Result<Event<ConfigMap>, WatchError> {
        let status = Status {
            code: 403,
            ..Status::default()
        };
        Err(WatchError::InitialListFailed(KubeError::Api(Box::new(status))))
    }

    fn merged() -> Merged<ConfigMap> {
        Merged {
            parts: ["a", "b"].map(|n| (n.to_owned(), Progress::default())).into(),
            listed: false,
        }
    }

    fn text(events: &[Result<Event<ConfigMap>, WatchError>]) -> Vec<String> {
        let name = |object: &ConfigMap| name_of(object).to_string();
        let told = events.iter().map(|event| match event {
            Ok(Event::Init) => "init".to_owned(),
            Ok(Event::InitApply(o)) => format!("list {}", name(o)),
            Ok(Event::InitDone) => "done".to_owned(),
            Ok(Event::Apply(o)) => format!("apply {}", name(o)),
            Ok(Event::Delete(o)) => format!("delete {}", name(o)),
            Err(_) => "error".to_owned(),
        });
        told.collect()
    }

    /// Whoever reads has been told of `known`.
    fn tell(merged: &mut Merged<ConfigMap>, part: &str, known: &[&str], events: Vec<Event<ConfigMap>>) -> Vec<String> {
        let mut told = Vec::new();
        for event in events {
            let known = |part: &str| known.iter().map(|name| object(part, name)).collect();
            told.extend(text(&merged.after(part, Ok(event), known)));
        }
        told
    }

    fn list(part: &str, names: &[&str]) -> Vec<Event<ConfigMap>> {
        let objects = names.iter().map(|name| Event::InitApply(object(part, name)));
        let events = std::iter::once(Event::Init).chain(objects);
        events.chain([Event::InitDone]).collect()
    }

    #[test]
    fn nothing_is_told_before_every_part_was_listed_and_then_it_is_one_list() {
        let mut merged = merged();
        assert!(tell(&mut merged, "a", &[], list("a", &["1", "2"])).is_empty());
        // What happens meanwhile is told after it.
        let later = vec![Event::Apply(object("a", "3")), Event::Delete(object("a", "1"))];
        assert!(tell(&mut merged, "a", &[], later).is_empty());
        assert_eq!(
            tell(&mut merged, "b", &[], list("b", &["1"])),
            [
                "init",
                "list a/1",
                "list a/2",
                "list b/1",
                "done",
                "apply a/3",
                "delete a/1"
            ]
        );
        assert_eq!(
            tell(&mut merged, "a", &[], vec![Event::Apply(object("a", "4"))]),
            ["apply a/4"]
        );
    }

    #[test]
    fn a_list_that_broke_off_is_no_list() {
        let mut merged = merged();
        tell(
            &mut merged,
            "a",
            &[],
            vec![Event::Init, Event::InitApply(object("a", "1"))],
        );
        tell(&mut merged, "a", &[], list("a", &["2"]));
        assert_eq!(
            tell(&mut merged, "b", &[], list("b", &[])),
            ["init", "list a/2", "done"]
        );
    }

    #[test]
    fn a_part_that_is_listed_anew_touches_no_other_and_tells_what_is_gone() {
        let mut merged = merged();
        tell(&mut merged, "a", &[], list("a", &["1", "2"]));
        tell(&mut merged, "b", &[], list("b", &["1"]));
        assert_eq!(
            tell(&mut merged, "a", &["1", "2"], list("a", &["2", "3"])),
            ["delete a/1", "apply a/2", "apply a/3"]
        );
    }

    #[test]
    fn a_part_that_may_not_be_watched_holds_nobody_up_and_is_told_of_once() {
        let mut merged = merged();
        tell(&mut merged, "a", &[], list("a", &["1"]));
        let none = |_: &str| Vec::new();
        assert_eq!(
            text(&merged.after("b", refused(), none)),
            ["init", "list a/1", "done", "error"]
        );
        assert!(text(&merged.after("b", refused(), none)).is_empty());
        // The right to was given.
        assert_eq!(tell(&mut merged, "b", &[], list("b", &["1"])), ["apply b/1"]);
        // It was taken back: what is known stays, for nobody says that it is gone.
        assert_eq!(text(&merged.after("b", refused(), none)), ["error"]);
    }

    #[test]
    fn one_part_of_several_that_waits_keeps_no_other_from_being_told() {
        let waits = stream::pending().boxed();
        let goes_on = stream::iter(list("a", &["1"]).into_iter().chain([Event::Apply(object("a", "2"))]));
        let parts = [
            ("a".to_owned(), goes_on.map(Ok).chain(stream::pending()).boxed()),
            ("b".to_owned(), stream::iter([refused()]).chain(waits).boxed()),
        ];
        let mut events = merge(parts, |_| Vec::new());
        let mut told = Vec::new();
        while let Some(Some(event)) = events.next().now_or_never() {
            told.push(event);
        }
        told.retain(Result::is_ok);
        assert_eq!(text(&told), ["init", "list a/1", "done", "apply a/2"]);
    }
}
