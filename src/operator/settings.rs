//! The operator's settings, from its flags.

use super::managed_namespaces::ManagedNamespaces;
use super::policy_rule::Feature;

/// The operator's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The owner recorded on repositories. Resources of another cluster are never changed.
    pub cluster: String,
    /// The namespace that the operator runs in.
    pub namespace: String,
    /// This replica's name.
    pub identity: String,
    /// Disabled features. The operator has no permissions for them.
    pub without: Vec<Feature>,
    /// The namespaces in which registries may run.
    pub managed_namespaces: ManagedNamespaces,
    /// The image of managed registries that name none.
    pub registry_image: Option<String>,
}

impl Settings {
    /// Returns whether a feature is enabled, and thus permitted.
    pub fn has(&self, feature: Feature) -> bool {
        !self.without.contains(&feature)
    }
}
