//! In-use protection: the operator enforces a lifecycle policy itself, with the registry's
//! evaluator, and keeps the images that Pods and workloads use.
//!
//! [`workloads`] lists the images in use, [`references`] resolves their names, [`protect`] finds
//! the images that belong to them, [`decision`] selects the images that expire, and [`run`] acts.
//! It fails closed: if the images in use are unknown, it deletes nothing.

use super::policy_rule::{Feature, PolicyRule, RuleScope};

/// Permissions to list the images in use. None of these objects is watched: they are listed before
/// a deletion.
pub(super) const RULES: &[PolicyRule] = &[
    PolicyRule {
        group: "",
        resources: &["pods"],
        verbs: &["list"],
        scope: RuleScope::Cluster,
        feature: Feature::InUseProtection,
        reason: "images that run",
    },
    PolicyRule {
        group: "apps",
        resources: &[
            "deployments",
            "statefulsets",
            "daemonsets",
            "replicasets",
            "controllerrevisions",
        ],
        verbs: &["list"],
        scope: RuleScope::Cluster,
        feature: Feature::InUseProtection,
        reason: "images that will run, or ran before",
    },
    PolicyRule {
        group: "batch",
        resources: &["jobs", "cronjobs"],
        verbs: &["list"],
        scope: RuleScope::Cluster,
        feature: Feature::InUseProtection,
        reason: "images that will run",
    },
];

pub mod decision;
pub mod protect;
pub mod references;
pub mod run;
pub mod workloads;
