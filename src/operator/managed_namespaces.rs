//! The namespaces in which registries may run: the operator has permissions for workloads there and nowhere else.

use std::collections::BTreeSet;

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource};

/// The word for every namespace.
const EVERY: &str = "*";

/// The namespaces in which registries may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagedNamespaces {
    /// Every namespace.
    Every,
    /// These only.
    Listed(BTreeSet<String>),
}

impl ManagedNamespaces {
    /// Returns the operator's own namespace and the listed ones, or every namespace if `*` is listed.
    pub fn new(own: &str, listed: impl IntoIterator<Item = String>) -> Self {
        let mut namespaces: BTreeSet<String> =
            listed.into_iter().filter(|it| !it.is_empty()).collect();
        if namespaces.contains(EVERY) {
            return Self::Every;
        }
        namespaces.insert(own.to_owned());
        Self::Listed(namespaces)
    }

    /// Returns the message about a namespace in which no registry may run, or nothing if one may.
    pub(crate) fn refusal(&self, namespace: &str) -> Option<String> {
        let Self::Listed(listed) = self else { return None };
        if listed.contains(namespace) {
            return None;
        }
        let allowed = listed.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        Some(format!(
            "registries may not run in namespace {namespace}, only in {allowed}: set managed.namespace to one of these, or add \
             {namespace} to the operator's managed namespaces (rbac.managedNamespaces of its chart)"
        ))
    }

    /// Returns the APIs that together reach the objects of a kind in these namespaces.
    pub(crate) fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self {
            Self::Every => vec![Api::all(client.clone())],
            Self::Listed(listed) => {
                listed.iter().map(|it| Api::namespaced(client.clone(), it)).collect()
            }
        }
    }

    /// Returns the APIs that together reach the objects of a kind that is known at run time.
    pub(crate) fn apis_with<K>(&self, client: &Client, kind: &K::DynamicType) -> Vec<Api<K>>
    where
        K: Resource<Scope = kube::core::DynamicResourceScope>,
    {
        match self {
            Self::Every => vec![Api::all_with(client.clone(), kind)],
            Self::Listed(listed) => {
                listed.iter().map(|it| Api::namespaced_with(client.clone(), it, kind)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespaces(listed: &[&str]) -> ManagedNamespaces {
        ManagedNamespaces::new("wharfage", listed.iter().map(|it| (*it).to_owned()))
    }

    #[test]
    fn the_operators_own_namespace_is_always_among_them() {
        assert_eq!(namespaces(&[]).refusal("wharfage"), None);
        assert_eq!(namespaces(&[""]), namespaces(&[]), "an empty variable");
        assert_eq!(namespaces(&["team"]).refusal("wharfage"), None);
    }

    #[test]
    fn another_namespace_is_refused_with_those_that_are_allowed() {
        let message = namespaces(&["team"]).refusal("shop").unwrap();
        assert!(message.contains("namespace shop, only in team, wharfage"), "{message}");
    }

    #[test]
    fn every_namespace_has_to_be_asked_for() {
        assert_eq!(namespaces(&["*"]).refusal("shop"), None);
        assert_eq!(namespaces(&["team", "*"]), ManagedNamespaces::Every);
    }
}
