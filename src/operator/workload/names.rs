//! What the objects of a managed Registry are called, and the labels by which they are found again.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// The label of everything that belongs to a managed Registry; its value is [`Names::workload`].
pub const REGISTRY_LABEL: &str = "wharfage.dev/registry";
/// What `app.kubernetes.io/component` says of everything that belongs to a managed Registry.
pub const COMPONENT: &str = "registry";

/// The longest name: a StatefulSet's revisions and our own suffixes must fit into the 63 characters of a label with it.
const LONGEST: usize = 52;

/// The names of a managed Registry's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(String);

impl Names {
    /// The names for a Registry of this name. Most Registries' names are used as they are; one that can't name a Service
    /// (dots, a digit first, too long) is shortened and told apart by a hash.
    pub fn of(registry: &str) -> Self {
        let fits = registry.len() <= LONGEST
            && registry.starts_with(|first: char| first.is_ascii_lowercase())
            && !registry.contains('.');
        if fits {
            return Self(registry.to_owned());
        }
        let hash = hex::encode(&Sha256::digest(registry)[..4]);
        let plain: String = registry.chars().map(|it| if it == '.' { '-' } else { it }).take(40).collect();
        Self(format!("r-{}-{hash}", plain.trim_end_matches('-')))
    }

    /// Of the Deployment or StatefulSet, the Service, the PodDisruptionBudget, the NetworkPolicy and the Certificate.
    pub fn workload(&self) -> String {
        self.0.clone()
    }

    /// Of the headless Service for health and metrics.
    pub fn admin(&self) -> String {
        format!("{}-admin", self.0)
    }

    /// Of the ConfigMap.
    pub fn config(&self) -> String {
        format!("{}-config", self.0)
    }

    /// Of the Secret that lets the pods into database and bucket.
    pub fn backends(&self) -> String {
        format!("{}-backends", self.0)
    }

    /// Of the Secret with the root key.
    pub fn root_key(&self) -> String {
        format!("{}-root-key", self.0)
    }

    /// Of the Secret that cert-manager writes, where the Registry names none.
    pub fn tls(&self) -> String {
        format!("{}-tls", self.0)
    }

    /// Of the claim that a StatefulSet makes for its only pod.
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

    /// The labels that choose the pods. Fixed for good: a workload's selector can't be changed.
    pub fn selector(&self) -> BTreeMap<String, String> {
        labels([("app.kubernetes.io/component", COMPONENT), (REGISTRY_LABEL, &self.0)])
    }
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
