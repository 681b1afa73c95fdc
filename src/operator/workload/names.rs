//! The names and the labels of the objects of a managed Registry.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// The label of everything that belongs to a managed Registry; its value is [`Names::workload`].
pub(crate) const REGISTRY_LABEL: &str = "wharfage.dev/registry";
/// The value of `app.kubernetes.io/component` on everything that belongs to a managed Registry.
pub(crate) const COMPONENT: &str = "registry";

/// The longest name: a StatefulSet's revisions and our own suffixes must fit into the 63 characters of a label with it.
const LONGEST: usize = 52;

/// The names of a managed Registry's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names(String);

impl Names {
    /// Returns the names for a Registry. Most names are used as they are. One that cannot name a Service (dots, a digit first,
    /// too long) is shortened, and a hash makes it unique.
    pub fn of(registry: &str) -> Self {
        let fits = registry.len() <= LONGEST
            && registry.starts_with(|first: char| first.is_ascii_lowercase())
            && !registry.contains('.');
        if fits {
            return Self(registry.to_owned());
        }
        let hash = hex::encode(&Sha256::digest(registry)[..4]);
        let plain: String =
            registry.chars().map(|it| if it == '.' { '-' } else { it }).take(40).collect();
        Self(format!("r-{}-{hash}", plain.trim_end_matches('-')))
    }

    /// The Deployment or StatefulSet, the Service, the PodDisruptionBudget, the NetworkPolicy and the Certificate.
    pub fn workload(&self) -> String {
        self.0.clone()
    }

    /// The headless Service for health and metrics.
    pub fn admin(&self) -> String {
        format!("{}-admin", self.0)
    }

    /// The ConfigMap.
    pub fn config(&self) -> String {
        format!("{}-config", self.0)
    }

    /// The Secret with the credentials of database and bucket.
    pub fn backends(&self) -> String {
        format!("{}-backends", self.0)
    }

    /// The Secret with the root key.
    pub fn root_key(&self) -> String {
        format!("{}-root-key", self.0)
    }

    /// The Secret that cert-manager writes, where the Registry names none.
    pub fn tls(&self) -> String {
        format!("{}-tls", self.0)
    }

    /// The claim that a StatefulSet makes for its only pod.
    pub fn claim(&self) -> String {
        format!("{}-{}-0", super::volume_claim::TEMPLATE, self.0)
    }

    /// The labels of every object.
    pub fn labels(&self) -> BTreeMap<String, String> {
        labels([
            ("app.kubernetes.io/name", "wharfage"),
            ("app.kubernetes.io/instance", &self.0),
            ("app.kubernetes.io/component", COMPONENT),
            ("app.kubernetes.io/part-of", "wharfage"),
            ("app.kubernetes.io/managed-by", "wharfage"),
            (REGISTRY_LABEL, &self.0),
        ])
    }

    /// The labels that select the pods. They must never change: the selector of a workload is immutable.
    pub fn selector(&self) -> BTreeMap<String, String> {
        labels([("app.kubernetes.io/component", COMPONENT), (REGISTRY_LABEL, &self.0)])
    }
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
