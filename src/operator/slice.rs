//! The part of the world that a decision about one repository name needs: all who ask for the name, the older first.
//!
//! Everything that a plan decides is decided by name, so that a plan of such a slice is the whole plan's part about it.

use std::cmp::Ordering;
use std::path::PathBuf;

use kube::ResourceExt as _;

use super::context::Stores;
use crate::crd::Registry;
use crate::manifests::{Loaded, Manifests, Source};
use crate::names::RepositoryName;

/// The Registry and the Repositories that ask for this name in it, without those that are being deleted.
pub fn slice(stores: &Stores, registry: &Registry, name: &RepositoryName) -> Manifests {
    let mut claims = stores.repositories_that_ask_for(&registry.name_any(), name);
    claims.retain(|it| it.metadata.deletion_timestamp.is_none());
    claims.sort_by(|a, b| older(&**a, &**b));
    let namespaces = claims.iter().filter_map(|it| it.namespace()).map(|it| labels(stores, it)).collect();
    Manifests {
        registries: vec![in_cluster(registry.clone())],
        repositories: claims.iter().map(|it| in_cluster((**it).clone())).collect(),
        lifecycle_policies: Vec::new(),
        namespaces,
        ..Manifests::default()
    }
}

/// The same, with the LifecyclePolicies of the Repositories in it.
pub fn slice_with_policies(stores: &Stores, registry: &Registry, name: &RepositoryName) -> Manifests {
    let slice = slice(stores, registry, name);
    let repositories: Vec<_> = slice.repositories.iter().map(|it| &it.resource).collect();
    let mut policies = stores.lifecycle_policies_about(&repositories);
    policies.retain(|it| it.metadata.deletion_timestamp.is_none());
    policies.sort_by(|a, b| older(&**a, &**b));
    Manifests { lifecycle_policies: policies.iter().map(|it| in_cluster((**it).clone())).collect(), ..slice }
}

/// Which of two resources has precedence: the older; of two of the same second the one that comes first by name.
pub fn older<K: kube::Resource>(a: &K, b: &K) -> Ordering {
    let key = |it: &K| (it.meta().creation_timestamp.clone().map(|it| it.0), it.namespace(), it.name_any());
    key(a).cmp(&key(b))
}

/// A namespace and its labels.
pub fn labels(stores: &Stores, namespace: String) -> (String, std::collections::BTreeMap<String, String>) {
    let labels = stores.namespace(&namespace).and_then(|it| it.metadata.labels.clone());
    (namespace, labels.unwrap_or_default())
}

/// A resource of the cluster has no place in a file.
pub fn in_cluster<T>(resource: T) -> Loaded<T> {
    Loaded { resource, source: Source { file: PathBuf::new(), document: 0, line: 0 } }
}
