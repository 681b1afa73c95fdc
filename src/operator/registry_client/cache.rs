//! A cache of objects of any kind, with one lock per object.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use wharfage_plan::ObjectKey;

/// A value that is cached per object. Only the holder of the object's lock reads or changes it.
pub(super) trait CachedObject: Default {
    /// The part that everybody may read without the lock, as of the last time the lock was released.
    type Summary: Clone + Default;

    /// Returns the summary of the current value.
    fn summary(&self) -> Self::Summary;
}

/// For objects that have a lock and no cached state.
impl CachedObject for () {
    type Summary = ();

    fn summary(&self) {}
}

/// The entry of one object.
pub(super) struct CacheEntry<T: CachedObject> {
    value: Arc<AsyncMutex<T>>,
    pub(super) summary: T::Summary,
}

impl<T: CachedObject> Default for CacheEntry<T> {
    fn default() -> Self {
        Self { value: Arc::default(), summary: T::Summary::default() }
    }
}

impl<T: CachedObject> CacheEntry<T> {
    /// Returns whether the object is locked, or its value meets the condition.
    pub(super) fn is_locked_or(&self, condition: impl FnOnce(&T) -> bool) -> bool {
        self.value.try_lock().map_or(true, |value| condition(&value))
    }
}

/// Cached objects by key.
pub(super) struct ObjectCache<T: CachedObject>(Mutex<HashMap<ObjectKey, CacheEntry<T>>>);

impl<T: CachedObject> Default for ObjectCache<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: CachedObject> ObjectCache<T> {
    /// Waits for the lock of an object.
    pub(super) async fn lock(self: &Arc<Self>, key: &ObjectKey) -> LockedObject<T> {
        let value = self.value(key).lock_owned().await;
        LockedObject { cache: Arc::clone(self), key: key.clone(), value }
    }

    /// Locks an object, unless it is locked already.
    pub(super) fn try_lock(self: &Arc<Self>, key: &ObjectKey) -> Option<LockedObject<T>> {
        let value = self.value(key).try_lock_owned().ok()?;
        Some(LockedObject { cache: Arc::clone(self), key: key.clone(), value })
    }

    /// Returns the entries, locked for a moment.
    pub(super) fn entries(&self) -> MutexGuard<'_, HashMap<ObjectKey, CacheEntry<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the entries by those of another cache, and shares their locks with it.
    pub(super) fn share(&self, other: &Self) {
        let theirs = other.entries();
        let entries = theirs.iter().map(|(key, it)| {
            (key.clone(), CacheEntry { value: Arc::clone(&it.value), summary: it.summary.clone() })
        });
        let entries = entries.collect();
        drop(theirs);
        *self.entries() = entries;
    }

    fn value(&self, key: &ObjectKey) -> Arc<AsyncMutex<T>> {
        Arc::clone(&self.entries().entry(key.clone()).or_default().value)
    }
}

/// A locked object. Its summary is updated when the lock is released.
pub(super) struct LockedObject<T: CachedObject> {
    cache: Arc<ObjectCache<T>>,
    key: ObjectKey,
    value: OwnedMutexGuard<T>,
}

impl<T: CachedObject> Drop for LockedObject<T> {
    fn drop(&mut self) {
        let summary = self.value.summary();
        if let Some(entry) = self.cache.entries().get_mut(&self.key) {
            entry.summary = summary;
        }
    }
}

impl<T: CachedObject> Deref for LockedObject<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: CachedObject> DerefMut for LockedObject<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharfage_plan::RegistryDocument;

    #[derive(Debug, Default)]
    struct Counter(usize);

    impl CachedObject for Counter {
        type Summary = usize;

        fn summary(&self) -> usize {
            self.0
        }
    }

    fn keys() -> Vec<ObjectKey> {
        let name = || "shop".to_owned();
        vec![
            ObjectKey::Repository("shop".parse().unwrap()),
            ObjectKey::PullThroughCacheRule(name()),
            ObjectKey::RepositoryCreationTemplate(name()),
            ObjectKey::User(name()),
            ObjectKey::Role(name()),
            ObjectKey::Document(RegistryDocument::ReplicationConfiguration),
            ObjectKey::Document(RegistryDocument::Policy),
        ]
    }

    #[tokio::test]
    async fn objects_of_every_kind_are_locked_and_cached_apart() {
        let cache: Arc<ObjectCache<Counter>> = Arc::default();
        let mut locked = Vec::new();
        for (index, key) in keys().iter().enumerate() {
            let mut object = cache.lock(key).await;
            object.0 += index + 1;
            assert!(cache.try_lock(key).is_none(), "{key:?}");
            locked.push(object);
        }
        assert!(cache.entries().values().all(|it| it.summary == 0), "not released yet");
        drop(locked);
        for (index, key) in keys().iter().enumerate() {
            assert_eq!(cache.entries()[key].summary, index + 1);
            assert_eq!(cache.try_lock(key).unwrap().0, index + 1);
        }
    }

    #[tokio::test]
    async fn a_shared_cache_shares_the_locks() {
        let (one, other): (Arc<ObjectCache<Counter>>, Arc<ObjectCache<Counter>>) =
            (Arc::default(), Arc::default());
        for key in &keys() {
            one.lock(key).await.0 = 7;
        }
        other.share(&one);
        for key in &keys() {
            let locked = one.lock(key).await;
            assert!(other.try_lock(key).is_none() && other.entries()[key].is_locked_or(|_| false));
            drop(locked);
            assert_eq!(other.lock(key).await.0, 7);
        }
    }
}
