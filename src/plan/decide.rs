//! The decisions of a plan: who may have what, what is asked for, and what nothing asks for any more.

use std::collections::{BTreeMap, BTreeSet};

use super::lifecycle_policy;
use super::model::{
    Desired, DesiredLifecyclePolicy, DesiredRepository, LifecycleMode, Management, Observed, ObservedRepository,
    Refused,
};
use super::ownership::{LifecycleOwner, OnRemoval, Owner, Ownership, is_owner_tag};
use super::{Action, Call, Object, Plan, Step, change};
use super::{identity, repository, settings};
use wharfage_crd::Reason;
use wharfage_domain::names::RepositoryName;

/// Says what would have to change in a registry for it to be as the manifests want it.
///
/// Steps come in the order in which they can be carried out: settings, repositories, lifecycle policies, then what is let
/// go of and what is deleted. Nothing is touched that the tags do not give to this identity, or to nobody.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut claims: BTreeMap<&RepositoryName, Vec<&DesiredRepository>> = BTreeMap::new();
    for wanted in &desired.repositories {
        claims.entry(&wanted.name).or_default().push(wanted);
    }
    let waiting = desired.refused.iter().map(|refused| &refused.object).collect();
    let mut policies: BTreeMap<&RepositoryName, Vec<&DesiredLifecyclePolicy>> = BTreeMap::new();
    for wanted in &desired.lifecycle_policies {
        for name in &wanted.repositories {
            policies.entry(name).or_default().push(wanted);
        }
    }
    let mut world = World { desired, observed, claims, policies, waiting, usable: BTreeSet::new() };
    let mut plan = Plan { refused: desired.refused.clone(), notes: desired.notes.clone(), ..Plan::default() };
    for decision in settings::decide(desired, observed) {
        plan.take(decision);
    }

    let mut usable = BTreeSet::new();
    for wanted in &desired.repositories {
        let claim = repository::claim(&world, wanted);
        if claim.usable {
            usable.insert((&wanted.name, wanted.object.namespace.as_str()));
        }
        plan.take(claim.decision);
    }
    world.usable = usable;
    for wanted in &desired.lifecycle_policies {
        for name in &wanted.repositories {
            let decision = lifecycle(&world, wanted, name);
            if let Ok(None) = decision {
                plan.reevaluations.extend(lifecycle_policy::reevaluation(wanted, name));
            }
            plan.take(decision);
        }
    }
    plan.steps.extend(world.released());
    plan
}

impl Plan {
    fn take(&mut self, decision: Result<Option<Step>, Refused>) {
        match decision {
            Ok(step) => self.steps.extend(step),
            Err(refused) => self.refused.push(refused),
        }
    }
}

/// Both sides of a plan, and what follows from them at once.
pub(super) struct World<'a> {
    pub(super) desired: &'a Desired,
    pub(super) observed: &'a Observed,
    /// Repositories by the name that they ask for, in their order.
    claims: BTreeMap<&'a RepositoryName, Vec<&'a DesiredRepository>>,
    /// Lifecycle policies by the repositories that they are for, in their order.
    policies: BTreeMap<&'a RepositoryName, Vec<&'a DesiredLifecyclePolicy>>,
    /// Resources that are refused: they keep what they have.
    waiting: BTreeSet<&'a Object>,
    /// Repositories that may have lifecycle policies, each with the namespace whose Repository has it: a policy is for the
    /// Repositories of its own namespace, and must not reach what another one has under the same name.
    usable: BTreeSet<(&'a RepositoryName, &'a str)>,
}

impl<'a> World<'a> {
    /// The Repositories that ask for this name, in their order.
    pub(super) fn claims(&self, name: &RepositoryName) -> &[&'a DesiredRepository] {
        self.claims.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether this owner is a resource of ours whose repository of this name is neither to be taken from it nor let go.
    pub(super) fn holds(&self, owner: &Owner, name: &RepositoryName) -> bool {
        let object = owner.object();
        let declared = || self.claims(name).iter().any(|it| it.object == object);
        let keeps = || self.waiting.contains(&object) || self.desired.holders.contains(&object);
        self.desired.is_ours(&owner.cluster) && (keeps() || declared())
    }

    /// Whether this LifecyclePolicy's namespace has the repository of this name, or gets it.
    fn may_govern(&self, policy: &DesiredLifecyclePolicy, name: &RepositoryName) -> bool {
        self.usable.contains(&(name, policy.object.namespace.as_str()))
    }

    /// The LifecyclePolicies that are for this repository, in their order.
    fn policies(&self, name: &RepositoryName) -> &[&'a DesiredLifecyclePolicy] {
        self.policies.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The LifecyclePolicy of this mode that a repository gets: the one that has it already, or else the first. No
    /// repository has two, and none changes hands because a file was renamed.
    fn governor(&self, name: &RepositoryName, mode: LifecycleMode) -> Option<&Object> {
        let owner = self.observed.repositories.get(name).and_then(|found| LifecycleOwner::read(&found.tags));
        let has = |it: &&&DesiredLifecyclePolicy| {
            owner.as_ref().is_some_and(|owner| self.desired.is_our_policy(owner, &it.object))
        };
        let candidates: Vec<&DesiredLifecyclePolicy> = {
            let all = self.policies(name).iter().copied();
            all.filter(|it| it.mode == mode && self.may_govern(it, name)).collect()
        };
        let first = || candidates.iter().find(|it| it.management == Management::Full);
        candidates.iter().find(has).or_else(first).map(|it| &it.object)
    }

    /// What no manifest asks for any more: first what is let go of, then what is deleted.
    fn released(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (name, found) in &self.observed.repositories {
            let ownership = Ownership::read(&found.tags);
            let step = ownership.owner.as_ref().and_then(|owner| self.release(name, found, owner, &ownership));
            let deleted = step.as_ref().is_some_and(|step| step.action == Action::Delete);
            let lifecycle = ownership.lifecycle.as_ref().filter(|_| !deleted);
            steps.extend(lifecycle.and_then(|owner| self.release_lifecycle(name, found, owner)));
            steps.extend(step);
        }
        steps.sort_by_key(|step| step.action);
        steps
    }

    /// Lets go of a repository whose manifest is gone, or deletes it if the manifest had said so.
    fn release(
        &self,
        name: &RepositoryName,
        found: &ObservedRepository,
        owner: &Owner,
        ownership: &Ownership,
    ) -> Option<Step> {
        // A repository that some manifest of ours names is that manifest's matter, whoever had it before.
        let claimed = self.claims.contains_key(name);
        if !identity::releases(&self.desired.cluster, &owner.cluster) || claimed || self.holds(owner, name) {
            return None;
        }
        let object = owner.object();
        // The manifest may have moved to another name or registry: that is no wish to delete this one.
        let on_removal =
            if self.desired.declared.contains(&object) { OnRemoval::Retain } else { ownership.manages.on_removal };
        let (action, call) = match on_removal {
            OnRemoval::Retain | OnRemoval::Protected => {
                let keys = found.tags.keys().filter(|key| is_owner_tag(key)).cloned().collect();
                (Action::Retain, Call::UntagResource(keys))
            }
            OnRemoval::Delete => (Action::Delete, Call::DeleteRepository { force: false }),
            OnRemoval::DeleteWithImages => (Action::Delete, Call::DeleteRepository { force: true }),
        };
        let changes = match on_removal {
            OnRemoval::DeleteWithImages => vec![change("images", None, Some("deleted too (emptyOnDelete)".into()))],
            _ => Vec::new(),
        };
        Some(Step {
            action,
            object,
            repository: Some(name.clone()),
            arn: Some(found.arn.clone()),
            changes,
            calls: vec![call],
        })
    }

    /// Lets go of a lifecycle policy whose manifest is gone, or deletes it if the manifest had said so.
    fn release_lifecycle(
        &self,
        name: &RepositoryName,
        found: &ObservedRepository,
        owner: &LifecycleOwner,
    ) -> Option<Step> {
        let cluster = &self.desired.cluster;
        let kept = self.waiting.iter().any(|object| object.kind == "LifecyclePolicy" && owner.is(cluster, object))
            || self.policies(name).iter().any(|it| owner.is(cluster, &it.object))
            || self.governor(name, LifecycleMode::Enforce).is_some();
        if !identity::releases(cluster, &owner.cluster) || kept {
            return None;
        }
        let mut calls = Vec::new();
        if owner.delete && found.lifecycle_policy.is_some() {
            calls.push(Call::DeleteLifecyclePolicy);
        }
        calls.push(lifecycle_policy::untag(found));
        Some(Step {
            action: if owner.delete { Action::Delete } else { Action::Retain },
            object: owner.object(),
            repository: Some(name.clone()),
            arn: Some(found.arn.clone()),
            changes: Vec::new(),
            calls,
        })
    }
}

fn lifecycle(world: &World, wanted: &DesiredLifecyclePolicy, name: &RepositoryName) -> Result<Option<Step>, Refused> {
    if wanted.management == Management::Suspended {
        return Ok(None);
    }
    let registry = &world.desired.registry;
    // Also where nothing is changed: what a policy would do tells of the images.
    if !world.may_govern(wanted, name) {
        let namespace = &wanted.object.namespace;
        let message = format!(
            "the repository {name} is not there in {registry}, or no Repository of namespace {namespace} has it: see the status of \
             the Repository"
        );
        return Err(Refused::new(&wanted.object, Reason::ReferenceNotFound, message));
    }
    if wanted.management != Management::Full {
        return Ok(None);
    }
    if let Some(governor) = world.governor(name, wanted.mode).filter(|governor| **governor != wanted.object) {
        let message = format!(
            "{name} in {registry} has its lifecycle policy from {governor}: a repository has one, so join the rules, or choose \
             other repositories"
        );
        return Err(Refused::new(&wanted.object, Reason::OwnedByAnother, message));
    }
    let taken_over = world.governor(name, LifecycleMode::Enforce).is_some();
    lifecycle_policy::decide(world.desired, wanted, name, world.observed.repositories.get(name), taken_over)
}
