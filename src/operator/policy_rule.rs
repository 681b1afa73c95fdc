//! What the operator may do in the cluster. Each room says what it watches and writes; the chart's RBAC is generated from
//! that, and the tests run the operator with nothing more.

use serde::Serialize;

/// Where a rule holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum RuleScope {
    /// In every namespace, and for what has none.
    Cluster,
    /// In the operator's own namespace.
    OwnNamespace,
}

/// What a rule is for: what is switched off in the chart takes its rules with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
pub enum Feature {
    /// Always there.
    #[value(skip)]
    Core,
    /// Registries that run in the cluster.
    ManagedRegistries,
    /// PullSecrets.
    PullSecrets,
    /// Lifecycle policies that spare what runs.
    InUseProtection,
}

/// What the controller of a kind of ours takes for that kind: its resource, and the status of it.
pub const fn own_kind(objects: &'static [&'static str], status: &'static [&'static str]) -> [PolicyRule; 2] {
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

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PolicyRule {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The resources, subresources included.
    pub resources: &'static [&'static str],
    /// The verbs.
    pub verbs: &'static [&'static str],
    /// Where.
    pub scope: RuleScope,
    /// What for.
    pub feature: Feature,
    /// Why, as one line beside the rule.
    pub reason: &'static str,
}
