//! Remembers objects whose last write has not come back through their watch yet.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kube::{Resource, ResourceExt as _};

/// Guards reads against a stale watch cache: the last written version of each object, until a watch
/// reports it.
///
/// Reconciling an older version would compare against a status that has since been replaced, and
/// leave the wrong one in place.
#[derive(Debug, Default)]
pub struct StaleCache(Mutex<HashMap<String, u64>>);

impl StaleCache {
    /// Remembers the version that a write returned.
    pub fn record_write<K: Resource>(&self, object: &K) {
        if let (Some(uid), Some(version)) = (object.uid(), version(object)) {
            self.versions().insert(uid, version);
        }
    }

    /// Returns whether this version is older than the last written one.
    pub fn is_stale<K: Resource>(&self, object: &K) -> bool {
        let (Some(uid), Some(version)) = (object.uid(), version(object)) else { return false };
        let mut versions = self.versions();
        let ahead = versions.get(&uid).is_some_and(|written| version < *written);
        if !ahead {
            versions.remove(&uid);
        }
        ahead
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, uid: &str) {
        self.versions().remove(uid);
    }

    fn versions(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the version as a number. The versions of one resource are increasing numbers.
fn version<K: Resource>(object: &K) -> Option<u64> {
    object.resource_version()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    use super::*;

    fn object(uid: &str, version: &str) -> ConfigMap {
        let metadata = ObjectMeta {
            uid: Some(uid.to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    #[test]
    fn an_earlier_version_is_stale_until_the_write_is_seen() {
        let written = StaleCache::default();
        assert!(!written.is_stale(&object("a", "9")));
        written.record_write(&object("a", "10"));
        assert!(written.is_stale(&object("a", "9")));
        assert!(!written.is_stale(&object("b", "9")));
        assert!(!written.is_stale(&object("a", "10")));
        assert!(written.versions().is_empty());
        written.record_write(&object("a", "11"));
        written.forget("a");
        assert!(written.versions().is_empty());
    }
}
