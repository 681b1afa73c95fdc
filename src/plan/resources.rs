//! The resources that a plan is made from: borrowed from a folder of manifests or from a cluster's stores.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use kube::ResourceExt as _;

use super::Object;
use super::desired::{PlanMode, object};
use wharfage_crd::{LifecyclePolicy, Managed as _, PullSecret, Registry, Repository};
use wharfage_manifests::{Loaded, Manifests};

macro_rules! resources {
    ($($(#[$doc:meta])* $field:ident: $kind:ty,)*) => {
        /// Resources, each kind in the order of precedence.
        #[derive(Debug, Clone, Default)]
        pub struct Resources<'a> {
            /// The Registries.
            pub registries: Vec<&'a Registry>,
            /// Registries that are the same registry as the planned one: their resources have precedence by age there, too.
            pub aliases: Vec<&'a Registry>,
            /// Repositories of Registries of which it is not known yet whether they are the planned registry. They keep what
            /// the tags record as theirs.
            pub pending_owners: Vec<&'a Repository>,
            /// Labels of the known namespaces; see [`Self::namespace_labels`].
            pub namespaces: BTreeMap<&'a str, &'a BTreeMap<String, String>>,
            $($(#[$doc])* pub $field: Vec<&'a $kind>,)*
        }

        impl<'a> Resources<'a> {
            /// Returns every resource by name.
            pub(crate) fn declared(&self) -> BTreeSet<Object> {
                let mut declared: BTreeSet<Object> = self.registries.iter().map(|it| object(*it)).collect();
                $(declared.extend(self.$field.iter().map(|it| object(*it)));)*
                declared
            }

            /// Returns the name of every resource that refers to a Registry, and the Registry's name.
            pub(crate) fn references(&self) -> Vec<(Object, &'a str)> {
                let mut references = Vec::new();
                $(references.extend(self.$field.iter().map(|it| (object(*it), it.registry_ref().name.as_str())));)*
                references
            }
        }

        impl<'a> From<&'a Manifests> for Resources<'a> {
            fn from(manifests: &'a Manifests) -> Self {
                fn borrowed<K>(loaded: &[Loaded<K>]) -> Vec<&K> {
                    loaded.iter().map(|it| &it.resource).collect()
                }
                Self {
                    registries: borrowed(&manifests.registries),
                    namespaces: manifests.namespaces.iter().map(|(name, labels)| (name.as_str(), labels)).collect(),
                    $($field: borrowed(&manifests.$field),)*
                    ..Self::default()
                }
            }
        }
    };
}

resources! {
    /// The Repositories.
    repositories: Repository,
    /// The LifecyclePolicies.
    lifecycle_policies: LifecyclePolicy,
    /// The PullSecrets.
    pull_secrets: PullSecret,
}

impl Resources<'_> {
    /// Returns the labels of a namespace: the known ones, and the one that Kubernetes gives every namespace.
    pub fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let mut labels =
            self.namespaces.get(namespace).map(|labels| (*labels).clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
        labels
    }
}

/// The input from which the kinds read their desired state.
pub(crate) struct ManifestInput<'a> {
    pub(crate) resources: &'a Resources<'a>,
    pub(crate) registry: &'a Registry,
    pub(crate) mode: PlanMode,
}

impl ManifestInput<'_> {
    /// Returns the Registry of this name, if it is the planned one or an alias. A resource keeps within what its own Registry
    /// allows.
    pub(crate) fn registry_of(&self, name: &str) -> Option<&Registry> {
        let mut all = iter::once(self.registry).chain(self.resources.aliases.iter().copied());
        all.find(|it| it.name_any() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_has_its_name_as_a_label() {
        let labels = BTreeMap::from([("tier".to_owned(), "prod".to_owned())]);
        let resources =
            Resources { namespaces: BTreeMap::from([("team", &labels)]), ..Resources::default() };
        assert_eq!(resources.namespace_labels("team")["tier"], "prod");
        assert_eq!(resources.namespace_labels("team")["kubernetes.io/metadata.name"], "team");
        assert_eq!(resources.namespace_labels("other")["kubernetes.io/metadata.name"], "other");
    }
}
