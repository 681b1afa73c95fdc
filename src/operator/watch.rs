//! Watches the objects of one kind: keeps a store of them, and reports each change that a predicate
//! lets through.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use futures::{StreamExt as _, pin_mut};
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt as _, reflector::Lookup};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// An object before and after a change.
#[derive(Debug, Clone)]
pub struct Change<K> {
    /// Nothing if the object is new.
    pub old: Option<Arc<K>>,
    /// Nothing if the object is gone.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// Returns the object as it is, or was.
    pub fn either(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

impl<K: Resource> Change<K> {
    /// Returns whether the object is gone or is being deleted.
    pub(crate) fn leaves(&self) -> bool {
        self.new.as_ref().is_none_or(|it| it.meta().deletion_timestamp.is_some())
    }

    /// Returns the UID of the object, if it is gone.
    pub fn deleted_uid(&self) -> Option<&str> {
        match self {
            Self { old: Some(old), new: None } => old.meta().uid.as_deref(),
            _ => None,
        }
    }
}

/// Stores watched objects for readers. Only [`watch_kind`] writes to it.
pub trait Keeper<K>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    /// Returns the reading end.
    fn store(&self) -> Store<K>;

    /// Applies an event. When it returns, all readers see the result.
    fn apply(&mut self, event: &Event<K>);
}

impl<K> Keeper<K> for Writer<K>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    fn store(&self) -> Store<K> {
        self.as_reader()
    }

    fn apply(&mut self, event: &Event<K>) {
        self.apply_watcher_event(event);
    }
}

/// Watches a kind until it is dropped. A watch that fails is restarted with backoff; objects
/// deleted meanwhile are reported, too.
///
/// `predicate` hashes the part of an object that matters: a change of the rest (mostly the status)
/// is stored, but not reported.
pub async fn watch_kind<K>(
    api: Api<K>,
    selection: watcher::Config,
    mut keeper: impl Keeper<K>,
    predicate: fn(&K) -> u64,
    mut on_change: impl FnMut(Change<K>),
) where
    K: Resource<DynamicType = ()>
        + Lookup<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    let reader = keeper.store();
    let events = watcher(api, selection)
        .modify(|object: &mut K| {
            object.managed_fields_mut().clear();
            // kubectl's copy of the whole object, which nothing here reads.
            object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
        })
        .default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(kind = %<K as Resource>::kind(&()), %error, "watch failed; restarting it");
                continue;
            }
        };
        match event {
            Event::Init | Event::InitApply(_) => keeper.apply(&event),
            Event::InitDone => {
                let before: HashMap<ObjectRef<K>, Arc<K>> =
                    reader.state().into_iter().map(|it| (ObjectRef::from_obj(&*it), it)).collect();
                keeper.apply(&event);
                let mut there = HashSet::with_capacity(reader.len());
                for new in reader.state() {
                    let key = ObjectRef::from_obj(&*new);
                    let old = before.get(&key).cloned();
                    there.insert(key);
                    if old.as_ref().is_none_or(|old| predicate(old) != predicate(&new)) {
                        on_change(Change { old, new: Some(new) });
                    }
                }
                for (_, old) in before.into_iter().filter(|(key, _)| !there.contains(key)) {
                    on_change(Change { old: Some(old), new: None });
                }
            }
            Event::Apply(ref object) => {
                let key = ObjectRef::from_obj(object);
                let old = reader.get(&key);
                keeper.apply(&event);
                let new = reader.get(&key);
                if old.as_ref().map(|it| predicate(it)) != new.as_ref().map(|it| predicate(it)) {
                    on_change(Change { old, new });
                }
            }
            Event::Delete(ref object) => {
                let old = reader.get(&ObjectRef::from_obj(object));
                keeper.apply(&event);
                on_change(Change { old, new: None });
            }
        }
    }
}

/// Hashes an object without its status and its finalizers, which its controller writes itself.
pub fn spec_or_metadata<K: ResourceExt>(object: &K) -> u64 {
    let meta = object.meta();
    let mut hasher = DefaultHasher::new();
    meta.uid.hash(&mut hasher);
    meta.generation.hash(&mut hasher);
    meta.labels.hash(&mut hasher);
    meta.annotations.hash(&mut hasher);
    meta.deletion_timestamp.is_some().hash(&mut hasher);
    hasher.finish()
}

/// Hashes the version of an object, so that every change matters.
pub fn any_change<K: ResourceExt>(object: &K) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.uid().hash(&mut hasher);
    object.resource_version().hash(&mut hasher);
    hasher.finish()
}
