//! Reads the desired lifecycle policies from LifecyclePolicies.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use serde_json::Value;

use crate::Desired;
use crate::desired::{PlanMode, adoption, management, object};
use crate::model::{DesiredLifecyclePolicy, EnforcedBy, LifecycleMode, Refused};
use wharfage_crd::lifecycle_policy::Mode;
use wharfage_crd::{DeletionPolicy, LifecyclePolicy, Managed as _, Reason, Registry, Repository};
use wharfage_domain::lifecycle;

/// Repositories by namespace and name, so that a policy that names one does not search all of them.
pub(super) struct RepositoryIndex<'a>(BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Repository>>>);

impl<'a> RepositoryIndex<'a> {
    pub(super) fn new(repositories: &[&'a Repository]) -> Self {
        let mut named = BTreeMap::<_, BTreeMap<_, Vec<_>>>::new();
        for repository in repositories {
            let metadata = &repository.metadata;
            let namespace =
                named.entry(metadata.namespace.as_deref().unwrap_or_default()).or_default();
            namespace
                .entry(metadata.name.as_deref().unwrap_or_default())
                .or_default()
                .push(*repository);
        }
        Self(named)
    }

    /// Returns the Repositories that a policy may be for: the one that it names, or all of its namespace.
    fn candidates(&self, policy: &LifecyclePolicy) -> impl Iterator<Item = &'a Repository> {
        let namespace = self.0.get(policy.metadata.namespace.as_deref().unwrap_or_default());
        let name = policy.spec.repository_ref.as_ref().map(|reference| reference.name.as_str());
        let fitting: Vec<&Vec<&'a Repository>> = match (namespace, name) {
            (None, _) => Vec::new(),
            (Some(namespace), Some(name)) => namespace.get(name).into_iter().collect(),
            (Some(namespace), None) => namespace.values().collect(),
        };
        fitting.into_iter().flatten().copied().collect::<Vec<_>>().into_iter()
    }
}

/// Adds one LifecyclePolicy to the desired state, or its refusal.
pub(super) fn read(
    desired: &mut Desired,
    index: &RepositoryIndex<'_>,
    registry: &Registry,
    policy: &LifecyclePolicy,
    plan_mode: PlanMode,
) {
    let object = object(policy);
    let chosen = index.candidates(policy).filter(|it| policy.applies_to(it));
    let repositories = chosen.filter_map(|it| it.repository_name().ok()).collect::<BTreeSet<_>>();
    if let (Some(reference), true) = (&policy.spec.repository_ref, repositories.is_empty()) {
        let message = format!(
            "Repository {}/{} does not exist in Registry {}: declare it, or correct repositoryRef",
            object.namespace,
            reference.name,
            registry.name_any()
        );
        desired.refused.push(Refused::new(&object, Reason::ReferenceNotFound, message));
        return;
    }
    if repositories.is_empty() {
        desired.notes.push(format!(
            "{object}: its repositorySelector chooses no Repository of its namespace yet"
        ));
    }
    let document = policy.document();
    if let Err(fault) = check_lifecycle_policy(&document) {
        let message = format!("the rules together are not valid: {fault}");
        desired.refused.push(Refused::new(&object, Reason::InvalidParameterException, message));
        return;
    }
    let mut mode = match policy.mode() {
        Mode::Preview => LifecycleMode::Preview,
        Mode::Enforce => LifecycleMode::Enforce,
    };
    let by = match plan_mode {
        PlanMode::Cluster if policy.protects_in_use() => EnforcedBy::Operator,
        PlanMode::Cluster | PlanMode::File => EnforcedBy::Registry,
    };
    if plan_mode == PlanMode::File && mode == LifecycleMode::Enforce && policy.protects_in_use() {
        // Only the operator sees Pods. Without it the images in use are unknown, so none is deleted.
        if registry.spec.managed.is_none() {
            const MESSAGE: &str = "inUseProtection needs Wharfage's operator, which sees the Pods: leave inUseProtection out, \
                                   or set mode to Preview";
            desired.refused.push(Refused::new(
                &object,
                Reason::UnsupportedByRegistry,
                MESSAGE.to_owned(),
            ));
            return;
        }
        mode = LifecycleMode::Preview;
        desired.notes.push(format!(
            "{object}: inUseProtection needs a cluster whose Pods can be seen, so the policy is previewed, not enforced"
        ));
    }
    desired.lifecycle_policies.push(DesiredLifecyclePolicy {
        object,
        repositories,
        mode,
        by,
        document,
        management: management(policy),
        adoption: adoption(policy),
        delete_on_removal: policy.deletion_policy() == DeletionPolicy::Delete,
    });
}

/// Checks that the rules together are a policy that a registry accepts.
fn check_lifecycle_policy(document: &Value) -> Result<(), String> {
    let (length, most) = (document.to_string().chars().count(), lifecycle::MAX_LENGTH);
    if length > most {
        return Err(format!(
            "they have {length} characters as JSON, and may have {most}: shorten descriptions or lists"
        ));
    }
    lifecycle::check_length(&document.to_string()).map_err(|error| error.reason().to_owned())?;
    lifecycle::Policy::from_value(document).map(drop).map_err(|error| error.reason().to_owned())
}
