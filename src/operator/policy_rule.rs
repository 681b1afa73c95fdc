//! The permissions of the operator in the cluster. Each module lists its own; the chart's RBAC is
//! generated from these lists, and the tests run the operator with nothing more.

use serde::Serialize;

/// The scope in which a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum RuleScope {
    /// Every namespace, and objects without a namespace.
    Cluster,
    /// The namespaces in which registries may run.
    ManagedNamespaces,
    /// The operator's own namespace.
    OwnNamespace,
}

/// The feature that needs a rule. A feature that is disabled in the chart has no rules there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
pub enum Feature {
    /// Always enabled.
    #[value(skip)]
    Core,
    /// Registries that run in the cluster.
    ManagedRegistries,
    /// PullSecrets.
    PullSecrets,
    /// Lifecycle policies that keep the images in use.
    InUseProtection,
}

/// Returns the rules that the controller of a kind needs for the kind itself: its objects and their
/// status.
pub const fn own_kind(
    objects: &'static [&'static str],
    status: &'static [&'static str],
) -> [PolicyRule; 2] {
    const fn of(
        resources: &'static [&'static str],
        verbs: &'static [&'static str],
        reason: &'static str,
    ) -> PolicyRule {
        PolicyRule {
            group: "wharfage.dev",
            resources,
            verbs,
            scope: RuleScope::Cluster,
            feature: Feature::Core,
            reason,
        }
    }
    [
        of(objects, &["get", "list", "watch", "patch"], "watched; patched for the finalizer only"),
        of(status, &["patch"], "status"),
    ]
}

/// A permission, with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PolicyRule {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The resources and subresources.
    pub resources: &'static [&'static str],
    /// The verbs.
    pub verbs: &'static [&'static str],
    /// The scope.
    pub scope: RuleScope,
    /// The feature.
    pub feature: Feature,
    /// One line, which the generated file has beside the rule.
    pub reason: &'static str,
}
