//! In-use protection: the operator carries a lifecycle policy out itself, by the registry's own evaluator, and lets nothing go
//! that a Pod or a workload uses.
//!
//! [`workloads`] lists what is used, [`references`] says which images those names mean, [`protect`] what hangs together with
//! them, [`decision`] what then goes, and [`run`] does it. It fails closed: where it can't be told what is used, nothing goes.

use super::policy_rule::{Feature, PolicyRule, RuleScope};

/// What telling what runs takes. Nothing of it is watched: it is listed when something is about to go.
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
        resources: &["deployments", "statefulsets", "daemonsets", "replicasets", "controllerrevisions"],
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
