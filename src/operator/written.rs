//! What was written of an object, and has not come back by its watch yet.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kube::{Resource, ResourceExt as _};

/// The newest version of objects that their status was written to, until it is seen. Who decides about an older one would take
/// a status that is no longer there for the one that is, and leave it so.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<String, u64>>);

impl Written {
    /// An object came out of a write.
    pub fn wrote<K: Resource>(&self, object: &K) {
        if let (Some(uid), Some(version)) = (object.uid(), version(object)) {
            self.versions().insert(uid, version);
        }
    }

    /// Whether this is older than what was written.
    pub fn is_ahead_of<K: Resource>(&self, object: &K) -> bool {
        let (Some(uid), Some(version)) = (object.uid(), version(object)) else { return false };
        let mut versions = self.versions();
        let ahead = versions.get(&uid).is_some_and(|written| version < *written);
        if !ahead {
            versions.remove(&uid);
        }
        ahead
    }

    /// An object that is gone is not written to again.
    pub fn forget(&self, uid: &str) {
        self.versions().remove(uid);
    }

    fn versions(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Versions of one resource are numbers that grow.
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
    fn what_was_read_before_the_write_is_old_until_the_write_is_seen() {
        let written = Written::default();
        assert!(!written.is_ahead_of(&object("a", "9")));
        written.wrote(&object("a", "10"));
        assert!(written.is_ahead_of(&object("a", "9")));
        assert!(!written.is_ahead_of(&object("b", "9")));
        assert!(!written.is_ahead_of(&object("a", "10")));
        assert!(written.versions().is_empty());
        written.wrote(&object("a", "11"));
        written.forget("a");
        assert!(written.versions().is_empty());
    }
}
