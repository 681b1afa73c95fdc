//! Finds the objects of a store by keys, without reading all of them.
//!
//! The index holds the store's own objects, and changes with it under one lock. So a reader that
//! has an object from one of them finds the same or a newer version in the other.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use kube::Resource;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{Lookup, ObjectRef, Store};
use kube::runtime::watcher::Event;

use super::watch::Keeper;

/// The objects of a store by their keys.
pub struct Index<K, Q>(Arc<RwLock<Keyed<K, Q>>>);

impl<K, Q> Clone for Index<K, Q> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, Q: Eq + Hash> Index<K, Q> {
    /// Returns the objects that have one of these keys, each once, in no order.
    pub fn any_of(&self, keys: &[Q]) -> Vec<Arc<K>> {
        let keyed = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match keys {
            [key] => keyed.0.get(key).into_iter().flat_map(HashMap::values).cloned().collect(),
            keys => {
                let found = keys.iter().filter_map(|key| keyed.0.get(key)).flatten();
                found.collect::<HashMap<_, _>>().into_values().cloned().collect()
            }
        }
    }

    /// Returns the objects that have this key, in no order.
    pub fn with(&self, key: Q) -> Vec<Arc<K>> {
        self.any_of(&[key])
    }
}

/// Objects by key. Objects of one key are identified by their address, so that one of many is
/// removed without a search, and no name is stored twice.
struct Keyed<K, Q>(HashMap<Q, HashMap<usize, Arc<K>>>);

impl<K, Q: Eq + Hash> Keyed<K, Q> {
    fn new(objects: Vec<Arc<K>>, keys: fn(&K) -> Vec<Q>) -> Self {
        let mut keyed = Self(HashMap::new());
        for object in objects {
            keyed.insert(&object, keys);
        }
        keyed
    }

    fn insert(&mut self, object: &Arc<K>, keys: fn(&K) -> Vec<Q>) {
        for key in keys(object) {
            self.0.entry(key).or_default().insert(Arc::as_ptr(object).addr(), Arc::clone(object));
        }
    }

    fn remove(&mut self, object: &Arc<K>, keys: fn(&K) -> Vec<Q>) {
        for key in keys(object) {
            let Some(objects) = self.0.get_mut(&key) else { continue };
            objects.remove(&Arc::as_ptr(object).addr());
            if objects.is_empty() {
                self.0.remove(&key);
            }
        }
    }
}

/// The writing end of a store and its index, which nothing else writes.
pub struct IndexedWriter<K, Q>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    writer: Writer<K>,
    store: Store<K>,
    index: Index<K, Q>,
    keys: fn(&K) -> Vec<Q>,
}

impl<K, Q> Keeper<K> for IndexedWriter<K, Q>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
    Q: Eq + Hash,
{
    fn store(&self) -> Store<K> {
        self.store.clone()
    }

    fn apply(&mut self, event: &Event<K>) {
        match event {
            // A list becomes visible only when it is complete.
            Event::Init | Event::InitApply(_) => self.writer.apply_watcher_event(event),
            Event::InitDone => {
                let mut keyed = self.index.0.write().unwrap_or_else(PoisonError::into_inner);
                self.writer.apply_watcher_event(event);
                *keyed = Keyed::new(self.store.state(), self.keys);
            }
            Event::Apply(object) | Event::Delete(object) => {
                let name = ObjectRef::from_obj(object);
                let mut keyed = self.index.0.write().unwrap_or_else(PoisonError::into_inner);
                let old = self.store.get(&name);
                self.writer.apply_watcher_event(event);
                if let Some(old) = old {
                    keyed.remove(&old, self.keys);
                }
                if let Some(new) = self.store.get(&name) {
                    keyed.insert(&new, self.keys);
                }
            }
        }
    }
}

/// Makes a store, its index by `keys`, and the writer of both.
pub fn indexed_store<K, Q>(keys: fn(&K) -> Vec<Q>) -> (Store<K>, Index<K, Q>, IndexedWriter<K, Q>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
    Q: Eq + Hash,
{
    let writer = Writer::default();
    let store = writer.as_reader();
    let index = Index(Arc::new(RwLock::new(Keyed(HashMap::new()))));
    (store.clone(), index.clone(), IndexedWriter { writer, store, index, keys })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread;

    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use kube::ResourceExt as _;
    use proptest::prelude::*;

    use super::*;

    fn keys(object: &ConfigMap) -> Vec<String> {
        object.labels().keys().cloned().collect()
    }

    fn object(name: &str, version: u32, keys: &[&str]) -> ConfigMap {
        let labels: BTreeMap<_, _> =
            keys.iter().map(|key| ((*key).to_owned(), String::new())).collect();
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("shop".to_owned()),
            resource_version: Some(version.to_string()),
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    fn sorted(mut objects: Vec<Arc<ConfigMap>>) -> Vec<Arc<ConfigMap>> {
        objects.sort_by_key(|it| it.name_any());
        objects
    }

    /// Returns whether these are the objects of the store, not equal copies.
    fn same(found: &[Arc<ConfigMap>], stored: &[Arc<ConfigMap>]) -> bool {
        found.len() == stored.len()
            && found.iter().zip(stored).all(|(one, other)| Arc::ptr_eq(one, other))
    }

    fn events() -> impl Strategy<Value = Vec<Event<ConfigMap>>> {
        let some =
            ("[abc]", any::<u32>(), proptest::sample::subsequence(vec!["x", "y", "z"], 0..=3));
        let some = some.prop_map(|(name, version, keys)| object(&name, version, &keys)).boxed();
        let apply = some.clone().prop_map(|it| vec![Event::Apply(it)]);
        let delete = some.clone().prop_map(|it| vec![Event::Delete(it)]);
        let list =
            (proptest::collection::vec(some, 0..4), any::<bool>()).prop_map(|(listed, whole)| {
                let listed = listed.into_iter().map(Event::InitApply);
                let end = whole.then_some(Event::InitDone);
                [Event::Init].into_iter().chain(listed).chain(end).collect()
            });
        proptest::collection::vec(prop_oneof![4 => apply, 2 => delete, 1 => list], 0..20)
            .prop_map(|it| it.concat())
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_a_scan_of_the_store(events in events()) {
            let (store, index, mut writer) = indexed_store(keys);
            for event in events {
                writer.apply(&event);
                for key in ["x", "y", "z"] {
                    let stored = sorted(store.state_filter(|it| it.labels().contains_key(key)));
                    let found = sorted(index.with(key.to_owned()));
                    prop_assert!(same(&found, &stored), "{key} after {event:?}: {found:?}, not {stored:?}");
                }
                let stored = sorted(store.state_filter(|it| ["x", "y"].iter().any(|key| it.labels().contains_key(*key))));
                let found = sorted(index.any_of(&["x".to_owned(), "y".to_owned()]));
                prop_assert!(same(&found, &stored), "either after {event:?}: {found:?}, not {stored:?}");
            }
        }
    }

    #[test]
    fn an_unused_key_is_removed() {
        let (_store, index, mut writer) = indexed_store(keys);
        let kept = || index.0.read().unwrap().0.len();
        writer.apply(&Event::Apply(object("a", 1, &["x", "y"])));
        assert_eq!(kept(), 2);
        writer.apply(&Event::Apply(object("a", 2, &["z"])));
        assert_eq!(kept(), 1);
        writer.apply(&Event::Delete(object("a", 2, &[])));
        assert_eq!(kept(), 0);
    }

    #[test]
    fn store_and_index_never_go_back_to_an_older_version() {
        const VERSIONS: u32 = 20_000;
        let (store, index, mut writer) = indexed_store(keys);
        writer.apply(&Event::Apply(object("a", 0, &["x"])));
        let version = |it: Option<Arc<ConfigMap>>| {
            it.unwrap().metadata.resource_version.as_ref().unwrap().parse::<u32>().unwrap()
        };
        let name = ObjectRef::from_obj(&object("a", 0, &[]));
        let stored = || version(store.get(&name));
        let found = || version(index.with("x".to_owned()).pop());
        let follows = |one: &dyn Fn() -> u32, other: &dyn Fn() -> u32| {
            let mut seen = 0;
            while seen < VERSIONS {
                seen = one();
                let then = other();
                assert!(then >= seen, "{then} after {seen}");
            }
        };
        thread::scope(|readers| {
            readers.spawn(|| follows(&stored, &found));
            readers.spawn(|| follows(&found, &stored));
            for version in 1..=VERSIONS {
                if version % 3 == 0 {
                    writer.apply(&Event::Init);
                    writer.apply(&Event::InitApply(object("a", version, &["x"])));
                    writer.apply(&Event::InitDone);
                } else {
                    writer.apply(&Event::Apply(object("a", version, &["x"])));
                }
            }
        });
    }
}
