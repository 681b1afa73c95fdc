//! Lifecycle policies.

mod decide;
mod desired;

pub use decide::equivalent;
pub(crate) use decide::show_rule;

use super::context::PlanContext;
use super::kinds::ObjectKind;
use super::model::{
    DesiredLifecyclePolicy, LifecycleMode, Management, ObservedRepository, Refused,
};
use super::ownership::LifecycleOwner;
use super::resources::ManifestInput;
use super::{Action, Desired, Plan, RepositoryCall, Step, identity, repository};
use wharfage_crd::{Managed as _, Reason};
use wharfage_domain::names::RepositoryName;

/// The kind of the resources that own lifecycle policies.
pub(crate) const KIND: &str = "LifecyclePolicy";

pub(crate) struct LifecyclePolicyKind;

impl ObjectKind for LifecyclePolicyKind {
    fn read(input: &ManifestInput<'_>, desired: &mut Desired) {
        let index = desired::RepositoryIndex::new(&input.resources.repositories);
        for resource in &input.resources.lifecycle_policies {
            if let Some(registry) = input.registry_of(&resource.registry_ref().name) {
                desired::read(desired, &index, registry, resource, input.mode);
            }
        }
    }

    fn plan<'a>(context: &mut PlanContext<'a>, plan: &mut Plan) {
        for wanted in &context.desired.lifecycle_policies {
            for name in &wanted.repositories {
                let decision = plan_one(context, wanted, name);
                if let Ok(None) = decision {
                    plan.reevaluations.extend(decide::reevaluation(wanted, name));
                }
                plan.add(decision);
            }
        }
    }

    fn release(context: &PlanContext<'_>) -> Vec<Step> {
        let found = &context.observed.repositories.found;
        found.iter().filter_map(|(name, found)| release(context, name, found)).collect()
    }
}

/// Decides about one LifecyclePolicy in one repository.
fn plan_one(
    context: &PlanContext<'_>,
    wanted: &DesiredLifecyclePolicy,
    name: &RepositoryName,
) -> Result<Option<Step>, Refused> {
    if wanted.management == Management::Suspended {
        return Ok(None);
    }
    let registry = &context.desired.registry;
    // Also with managementPolicy Observe, because a policy's result reveals the images.
    if !context.may_govern(wanted, name) {
        let namespace = &wanted.object.namespace;
        let message = format!(
            "the repository {name} does not exist in {registry}, or no Repository of namespace {namespace} has it: see the status of \
             the Repository"
        );
        return Err(Refused::new(&wanted.object, Reason::ReferenceNotFound, message));
    }
    if wanted.management != Management::Full {
        return Ok(None);
    }
    if let Some(governor) =
        context.governor(name, wanted.mode).filter(|governor| **governor != wanted.object)
    {
        let message = format!(
            "{name} in {registry} has its lifecycle policy from {governor}: a repository has one, so join the rules, or choose \
             other repositories"
        );
        return Err(Refused::new(&wanted.object, Reason::OwnedByAnother, message));
    }
    let is_enforced = context.governor(name, LifecycleMode::Enforce).is_some();
    decide::decide(
        context.desired,
        wanted,
        name,
        context.observed.repositories.get(name),
        is_enforced,
    )
}

/// Returns the step that releases the lifecycle policy of a repository whose manifest is gone, or deletes it if the manifest
/// said so. A policy of a repository that is deleted needs no step.
fn release(
    context: &PlanContext<'_>,
    name: &RepositoryName,
    found: &ObservedRepository,
) -> Option<Step> {
    let owner = LifecycleOwner::read(&found.tags)?;
    let cluster = &context.desired.cluster;
    let is_kept =
        context.refused().iter().any(|object| object.kind == KIND && owner.is(cluster, object))
            || context.policies(name).iter().any(|it| owner.is(cluster, &it.object))
            || context.governor(name, LifecycleMode::Enforce).is_some();
    let is_deleted = || {
        repository::release(context, name, found).is_some_and(|step| step.action == Action::Delete)
    };
    if !identity::releases(cluster, &owner.cluster) || is_kept || is_deleted() {
        return None;
    }
    let mut calls = Vec::new();
    if owner.delete && found.lifecycle_policy.is_some() {
        calls.push(RepositoryCall::DeleteLifecyclePolicy.into());
    }
    calls.push(decide::untag(found).into());
    Some(Step {
        action: if owner.delete { Action::Delete } else { Action::Retain },
        object: owner.object(),
        key: name.clone().into(),
        arn: Some(found.arn.clone()),
        changes: Vec::new(),
        calls,
    })
}
