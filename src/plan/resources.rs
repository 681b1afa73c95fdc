//! The resources that a plan is made from: borrowed, whether they are in files or in a cluster.

use std::collections::BTreeMap;

use wharfage_crd::{LifecyclePolicy, PullSecret, Registry, Repository};
use wharfage_manifests::{Loaded, Manifests};

/// Resources, each kind in the order in which they have precedence.
#[derive(Debug, Clone, Default)]
pub struct Resources<'a> {
    /// The registries.
    pub registries: Vec<&'a Registry>,
    /// Registries that are known to be the same registry as the one that is planned for: what is in them has its place in the
    /// order of precedence there.
    pub same: Vec<&'a Registry>,
    /// Repositories of Registries of which nobody knows yet whether they are that registry: what its tags say is theirs is
    /// theirs.
    pub holders: Vec<&'a Repository>,
    /// The repositories.
    pub repositories: Vec<&'a Repository>,
    /// The lifecycle policies.
    pub lifecycle_policies: Vec<&'a LifecyclePolicy>,
    /// The pull secrets.
    pub pull_secrets: Vec<&'a PullSecret>,
    /// Labels of the namespaces that are known; see [`Self::namespace_labels`].
    pub namespaces: BTreeMap<&'a str, &'a BTreeMap<String, String>>,
}

impl Resources<'_> {
    /// The labels of a namespace: those that are known, and the one that Kubernetes gives every namespace.
    pub fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let mut labels = self.namespaces.get(namespace).map(|labels| (*labels).clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
        labels
    }
}

impl<'a> From<&'a Manifests> for Resources<'a> {
    fn from(manifests: &'a Manifests) -> Self {
        fn borrowed<K>(loaded: &[Loaded<K>]) -> Vec<&K> {
            loaded.iter().map(|it| &it.resource).collect()
        }
        Self {
            registries: borrowed(&manifests.registries),
            same: Vec::new(),
            holders: Vec::new(),
            repositories: borrowed(&manifests.repositories),
            lifecycle_policies: borrowed(&manifests.lifecycle_policies),
            pull_secrets: borrowed(&manifests.pull_secrets),
            namespaces: manifests.namespaces.iter().map(|(name, labels)| (name.as_str(), labels)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_has_its_name_as_a_label() {
        let labels = BTreeMap::from([("tier".to_owned(), "prod".to_owned())]);
        let resources = Resources { namespaces: BTreeMap::from([("team", &labels)]), ..Resources::default() };
        assert_eq!(resources.namespace_labels("team")["tier"], "prod");
        assert_eq!(resources.namespace_labels("team")["kubernetes.io/metadata.name"], "team");
        assert_eq!(resources.namespace_labels("other")["kubernetes.io/metadata.name"], "other");
    }
}
