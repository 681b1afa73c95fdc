//! Both sides of a plan, and the indexes that its kinds share.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{DesiredLifecyclePolicy, DesiredRepository, LifecycleMode, Management};
use super::ownership::{LifecycleOwner, Owner};
use super::{Desired, Object, Observed};
use wharfage_domain::names::RepositoryName;

/// The input of a plan with its indexes.
pub(crate) struct PlanContext<'a> {
    pub(crate) desired: &'a Desired,
    pub(crate) observed: &'a Observed,
    /// Repositories by the name that they claim, in the order of precedence.
    claims: BTreeMap<&'a RepositoryName, Vec<&'a DesiredRepository>>,
    /// Lifecycle policies by the repositories that they are for, in the order of precedence.
    policies: BTreeMap<&'a RepositoryName, Vec<&'a DesiredLifecyclePolicy>>,
    /// Refused resources: they keep what they own.
    refused: BTreeSet<&'a Object>,
    /// Repositories that may have lifecycle policies, each with the namespace of its Repository. A policy is for the
    /// Repositories of its own namespace only, so it must not reach another namespace's repository of the same name.
    pub(crate) usable: BTreeSet<(&'a RepositoryName, &'a str)>,
}

impl<'a> PlanContext<'a> {
    pub(crate) fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        let mut claims: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for wanted in &desired.repositories {
            claims.entry(&wanted.name).or_default().push(wanted);
        }
        let mut policies: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for wanted in &desired.lifecycle_policies {
            for name in &wanted.repositories {
                policies.entry(name).or_default().push(wanted);
            }
        }
        let refused = desired.refused.iter().map(|refused| &refused.object).collect();
        Self { desired, observed, claims, policies, refused, usable: BTreeSet::new() }
    }

    /// Returns the Repositories that claim this name, in the order of precedence.
    pub(crate) fn claims(&self, name: &RepositoryName) -> &[&'a DesiredRepository] {
        self.claims.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the refused resources, which keep what they own.
    pub(crate) fn refused(&self) -> &BTreeSet<&'a Object> {
        &self.refused
    }

    /// Returns whether this owner is a resource of ours that keeps the repository of this name.
    pub(crate) fn keeps(&self, owner: &Owner, name: &RepositoryName) -> bool {
        let object = owner.object();
        let declared = || self.claims(name).iter().any(|it| it.object == object);
        let pending =
            || self.refused.contains(&object) || self.desired.pending_owners.contains(&object);
        self.desired.is_ours(&owner.cluster) && (pending() || declared())
    }

    /// Returns whether a Repository of this LifecyclePolicy's namespace has the repository of this name, or gets it.
    pub(crate) fn may_govern(
        &self,
        policy: &DesiredLifecyclePolicy,
        name: &RepositoryName,
    ) -> bool {
        self.usable.contains(&(name, policy.object.namespace.as_str()))
    }

    /// Returns the LifecyclePolicies that are for this repository, in the order of precedence.
    pub(crate) fn policies(&self, name: &RepositoryName) -> &[&'a DesiredLifecyclePolicy] {
        self.policies.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the LifecyclePolicy of this mode that the repository gets: its current one, or else the first. A repository has
    /// one, and keeps it when a file is renamed.
    pub(crate) fn governor(&self, name: &RepositoryName, mode: LifecycleMode) -> Option<&Object> {
        let owner = self
            .observed
            .repositories
            .get(name)
            .and_then(|found| LifecycleOwner::read(&found.tags));
        let is_current = |it: &&&DesiredLifecyclePolicy| {
            owner.as_ref().is_some_and(|owner| self.desired.is_our_policy(owner, &it.object))
        };
        let candidates: Vec<&DesiredLifecyclePolicy> = {
            let all = self.policies(name).iter().copied();
            all.filter(|it| it.mode == mode && self.may_govern(it, name)).collect()
        };
        let first = || candidates.iter().find(|it| it.management == Management::Full);
        candidates.iter().find(is_current).or_else(first).map(|it| &it.object)
    }
}
