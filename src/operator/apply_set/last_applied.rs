//! Remembers the last applied version of each object, so that a cluster at rest is only read.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::ResourceExt as _;
use kube::core::ApiResource;

use super::object::{DesiredObject, Metadata};

/// The last applied version of each object, in memory.
#[derive(Debug, Default)]
pub(crate) struct LastApplied(Mutex<HashMap<ObjectKey, AppliedVersion>>);

type ObjectKey = (ApiResource, String, String);

/// A hash of what was applied, and the version that it became.
type AppliedVersion = (u64, Option<String>);

impl LastApplied {
    /// Returns whether an object is as this body made it, and nobody changed it since.
    pub(super) fn is_current(
        &self,
        namespace: &str,
        desired: &DesiredObject,
        existing: &Metadata,
    ) -> bool {
        let version = (fingerprint(desired), existing.resource_version());
        self.lock().get(&key(&desired.kind, namespace, &desired.name)) == Some(&version)
    }

    pub(super) fn record(&self, namespace: &str, desired: &DesiredObject, applied: &Metadata) {
        let version = (fingerprint(desired), applied.resource_version());
        self.lock().insert(key(&desired.kind, namespace, &desired.name), version);
    }

    pub(super) fn forget(&self, kind: &ApiResource, namespace: &str, name: &str) {
        self.lock().remove(&key(kind, namespace, name));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, AppliedVersion>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(kind: &ApiResource, namespace: &str, name: &str) -> ObjectKey {
    (kind.clone(), namespace.to_owned(), name.to_owned())
}

fn fingerprint(desired: &DesiredObject) -> u64 {
    let mut hasher = DefaultHasher::new();
    desired.body.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_object_is_current_until_its_body_or_its_version_changes() {
        let last_applied = LastApplied::default();
        let desired = |body: Value| DesiredObject {
            kind: ApiResource::erase::<ConfigMap>(&()),
            name: "a".to_owned(),
            body,
        };
        let existing = |version: &str| -> Metadata {
            serde_json::from_value(json!({ "metadata": { "resourceVersion": version } })).unwrap()
        };
        let (one, other) = (desired(json!({ "data": 1 })), desired(json!({ "data": 2 })));
        assert!(!last_applied.is_current("n", &one, &existing("7")), "it was never applied");
        last_applied.record("n", &one, &existing("7"));
        assert!(last_applied.is_current("n", &one, &existing("7")));
        assert!(!last_applied.is_current("n", &one, &existing("8")), "somebody changed it");
        assert!(!last_applied.is_current("n", &other, &existing("7")), "something else is wanted");
        assert!(!last_applied.is_current("elsewhere", &one, &existing("7")));
        last_applied.forget(&one.kind, "n", "a");
        assert!(!last_applied.is_current("n", &one, &existing("7")));
    }
}
