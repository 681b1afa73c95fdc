//! Reconciles a policy in one repository: puts it there, previews it there, or enforces it there.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use serde_json::Value;

use super::outcome;
use super::result_cache::LastResult;
use crate::context::Context;
use crate::controllers::converge::{Converge, Converged, Convergence, Correction, converge};
use crate::controllers::{LastSync, is_outdated, plan_for, refusal, refused_by_registry, step_for};
use crate::in_use::references::Hosts;
use crate::in_use::run::{Failure, Run, RunReport, Shared};
use crate::in_use::workloads::{CannotTell, ImageScope};
use crate::plan_input::PlanInput;
use crate::registry_client::{
    Freshness, LockedRepository, RegistryClient, RegistryError, Unavailable,
};
use crate::status::{Cause, ReadyState};
use crate::workload::{self, Names};
use wharfage_apply::{PreviewedPolicy, RepositoryNeeds, preview};
use wharfage_crd::lifecycle_policy::{Mode, OutcomeState};
use wharfage_crd::{
    AdoptionPolicy, DeletionPolicy, LifecyclePolicy, Managed as _, ManagementPolicy, Reason,
    Registry,
};
use wharfage_domain::lifecycle::Policy;
use wharfage_domain::names::RepositoryName;
use wharfage_plan::model::{ApiError, ErrorKind, ObservedRepository, Refused};
use wharfage_plan::ownership::{LifecycleOwner, Ownership};
use wharfage_plan::{
    Action, Desired, FieldChange, Object, RepositoryCall, Step, desired_in_cluster,
    equivalent_policies,
};

/// The parts of a repository that a policy needs.
const NEEDS: RepositoryNeeds =
    RepositoryNeeds { policy: false, lifecycle_policy: true, preview: false };

/// The run of a policy in its registry.
pub(super) struct PolicyRun<'a> {
    pub(super) ctx: &'a Context,
    /// Caches of in-use protection.
    pub(super) in_use: &'a Shared,
    pub(super) policy: &'a LifecyclePolicy,
    pub(super) object: &'a Object,
    pub(super) registry: &'a Registry,
    pub(super) registry_client: &'a Arc<RegistryClient>,
    pub(super) document: Value,
    /// The parsed document; nothing if only the registry may understand it.
    pub(super) rules: Option<Policy>,
    pub(super) freshness: Freshness,
    /// The request to reconcile that is not handled yet.
    pub(super) requested: Option<String>,
    /// Decides whether a difference is drift.
    pub(super) past: LastSync,
}

/// The result of a policy in one repository.
pub(super) struct RepositoryResult {
    pub(super) kept: LastResult,
    /// The state of the policy, if the repository keeps it from being Ready.
    pub(super) not_ready: Option<ReadyState>,
    /// Drift: corrected, or only detected if the policy observes or `kept` differs.
    pub(super) drift: Vec<FieldChange>,
    /// The executed action.
    pub(super) done: Option<Action>,
    /// The images that the operator deleted or archived.
    pub(super) ran: Option<RunReport>,
}

impl RepositoryResult {
    fn of(kept: LastResult) -> Self {
        Self { kept, not_ready: None, drift: Vec::new(), done: None, ran: None }
    }

    fn failed(name: &RepositoryName, state: ReadyState) -> Self {
        let reported = match state {
            ReadyState::Reconciling(_) => OutcomeState::Pending,
            ReadyState::Stalled(_) | ReadyState::Ready(_) => OutcomeState::Failed,
        };
        Self { not_ready: Some(state), ..Self::of(LastResult::new(outcome::only(name, reported))) }
    }
}

/// The result of releasing a repository.
pub(super) enum Released {
    Repository,
    /// The repository is gone, or the policy does not govern it.
    Nothing,
    /// The policy changed since the reconcile began.
    Outdated,
}

impl PolicyRun<'_> {
    /// Reconciles one repository. `before` is its last result. Returns nothing if the policy
    /// changed since the reconcile began.
    ///
    /// # Errors
    /// When the registry is unavailable: then no other repository can be reconciled either.
    pub(super) async fn run(
        &self,
        name: &RepositoryName,
        before: Option<&LastResult>,
    ) -> Result<Option<RepositoryResult>, Unavailable> {
        let mut held = self.registry_client.repository(name).await;
        match self.converge_repository(name, &mut held, before).await {
            Ok(Some(mut result)) => {
                if self.requested.is_some() {
                    result.kept.requested.clone_from(&self.requested);
                }
                Ok(Some(result))
            }
            Ok(None) => Ok(None),
            Err(RegistryError::Unavailable(unavailable)) => Err(unavailable),
            Err(RegistryError::Rejected(error)) => {
                Ok(Some(RepositoryResult::failed(name, refused(name, error))))
            }
        }
    }

    fn by_operator(&self) -> bool {
        self.policy.protects_in_use()
    }

    fn observes(&self) -> bool {
        self.policy.management_policy() == ManagementPolicy::Observe
    }

    async fn converge_repository(
        &self,
        name: &RepositoryName,
        held: &mut LockedRepository,
        before: Option<&LastResult>,
    ) -> Result<Option<RepositoryResult>, RegistryError> {
        let due = self.is_due(before);
        let mut observed = held.observe(NEEDS, self.freshness).await?;
        let governs = observed.as_ref().is_some_and(|it| self.governs(it));
        if !governs && self.policy.adoption_policy() != AdoptionPolicy::AdoptOrCreate {
            // The decision depends on whether a policy exists.
            observed = held.observe(NEEDS, Freshness { now: true, ..self.freshness }).await?;
        }
        let rules = RepositoryPolicy { policy_run: self, name, due };
        let Convergence { executed, found: observed, end } =
            converge(&rules, held, self.freshness, observed).await;
        match end {
            Converged::InSync => {}
            Converged::Outdated => return Ok(None),
            Converged::Refused(refused) => {
                return Ok(Some(RepositoryResult::failed(name, refusal(&refused))));
            }
            // Another preview is running.
            Converged::Failed(_, RegistryError::Rejected(error))
                if error.kind == ErrorKind::PreviewInProgress =>
            {
                return Ok(Some(RepositoryResult::of(LastResult::awaiting(name, before))));
            }
            Converged::Failed(
                Correction { step, is_drift: true },
                RegistryError::Rejected(error),
            ) => {
                let mut result = RepositoryResult::failed(name, refused(name, error));
                result.drift = step.changes;
                result.kept.differs = true;
                return Ok(Some(result));
            }
            Converged::Failed(_, error) | Converged::Unread(error) => return Err(error),
        }
        let (mut done, mut drift) = (None, Vec::new());
        if let Some(Correction { step, is_drift }) = executed.into_iter().next_back() {
            // A repeated preview is no news: an event for it would be a write for each policy and
            // interval.
            let again =
                step.action == Action::Preview && before.is_some_and(LastResult::is_evaluated);
            done = (!again).then_some(step.action);
            if is_drift {
                drift = step.changes;
            }
        }
        let result = if self.observes() {
            self.observe(name, held, observed.as_ref(), before, due).await?
        } else if self.by_operator() {
            self.evaluate(name, held, before, due).await?
        } else {
            Some(match self.policy.mode() {
                Mode::Enforce => RepositoryResult::of(LastResult::new(outcome::only(
                    name,
                    OutcomeState::Enforced,
                ))),
                Mode::Preview => self.previewed(name, before, due).await?,
            })
        };
        let Some(mut result) = result else { return Ok(None) };
        if !drift.is_empty() {
            result.drift = drift;
        }
        result.done = done;
        Ok(Some(result))
    }

    /// Returns whether the step corrects drift.
    fn is_drift(&self, step: &Step, observed: Option<&ObservedRepository>) -> bool {
        let governed = observed.is_some_and(|it| self.governs(it));
        self.past.is_drift() && governed && step.action != Action::Preview
    }

    /// Returns whether the repository's tags name this policy.
    fn governs(&self, found: &ObservedRepository) -> bool {
        let owner = LifecycleOwner::read(&found.tags);
        owner.is_some_and(|owner| owner.is(&self.ctx.settings.cluster, self.object))
    }

    /// Returns whether the policy must be evaluated again: it never was, it was requested, or the
    /// interval is over. In a registry with many repositories they are evaluated in rotation.
    fn is_due(&self, before: Option<&LastResult>) -> bool {
        let Some(before) = before.filter(|it| it.is_evaluated() || it.begun.is_some()) else {
            return true;
        };
        if before.begun.is_some() {
            return false;
        }
        let rest = self.freshness.interval.saturating_mul(self.registry_client.rotation());
        // This repository may have handled the request already, while others have not.
        let requested = self.requested.is_some() && self.requested != before.requested;
        requested || before.at.elapsed() >= rest
    }

    /// Others that read the tags of a repository of ours leave it unchanged. Any other repository
    /// is read once more before a change.
    fn may_be_old(&self, step: &Step, observed: Option<&ObservedRepository>) -> bool {
        let cluster = &self.ctx.settings.cluster;
        let owner = observed.and_then(|it| Ownership::read(&it.tags).owner);
        let ours = owner.is_some_and(|owner| owner.cluster == *cluster);
        !ours
            || step.calls.contains(&RepositoryCall::DeleteLifecyclePolicy.into())
            || step.action == Action::Adopt
    }

    /// Collects the resources that claim this name; nothing if the policy changed since the
    /// reconcile began.
    fn wanted(&self, name: &RepositoryName) -> Option<Desired> {
        let input = PlanInput::with_policies(
            &self.ctx.stores,
            &self.ctx.registry_clients,
            self.registry,
            name,
        );
        // Checked after the stores are read, so that a change of this policy that they show is
        // noticed.
        let outdated = is_outdated(&self.ctx.stores.lifecycle_policies, self.policy);
        (!outdated).then(|| desired_in_cluster(&input, self.registry, &self.ctx.settings.cluster))
    }

    /// Plans for this policy. Whether a preview is due is decided here, not by the plan.
    fn decide(
        &self,
        desired: &Desired,
        name: &RepositoryName,
        found: Option<ObservedRepository>,
        due: bool,
    ) -> Result<Option<Step>, Refused> {
        let preview = (!due).then(|| self.document.clone());
        let found = found.map(|found| ObservedRepository { preview, ..found });
        if found.is_none() && !self.observes() {
            // The controller of the Repository creates it.
            let message = format!("the repository {name} is not there yet in {}", desired.registry);
            return Err(Refused::new(self.object, Reason::ReferenceNotFound, message));
        }
        step_for(plan_for(desired, name, found), self.object)
    }

    /// Reads the registry's own preview.
    async fn previewed(
        &self,
        name: &RepositoryName,
        before: Option<&LastResult>,
        due: bool,
    ) -> Result<RepositoryResult, RegistryError> {
        if let Some(before) = before.filter(|it| !due && it.begun.is_none()) {
            return Ok(RepositoryResult::of(before.clone()));
        }
        match self.registry_client.ask(preview(self.registry_client.ecr(), name)).await {
            Ok(Some(PreviewedPolicy { document, previewed, bytes }))
                if equivalent_policies(&document, &self.document) =>
            {
                Ok(RepositoryResult::of(LastResult::new(outcome::previewed(
                    name,
                    &previewed,
                    bytes,
                    now(),
                ))))
            }
            // It is another policy's: ours is started when it is complete.
            Ok(Some(_)) => Ok(RepositoryResult::of(LastResult::new(outcome::only(
                name,
                OutcomeState::Pending,
            )))),
            Ok(None) => Ok(RepositoryResult::of(LastResult::awaiting(name, before))),
            Err(RegistryError::Rejected(error)) => {
                Ok(RepositoryResult::failed(name, refused(name, error)))
            }
            Err(unavailable) => Err(unavailable),
        }
    }

    /// Enforces or previews the policy with in-use protection.
    async fn evaluate(
        &self,
        name: &RepositoryName,
        held: &mut LockedRepository,
        before: Option<&LastResult>,
        due: bool,
    ) -> Result<Option<RepositoryResult>, RegistryError> {
        if let Some(before) = before.filter(|it| !due && it.is_evaluated()) {
            return Ok(Some(RepositoryResult::of(before.clone())));
        }
        let Some(rules) = &self.rules else {
            let message = "the operator cannot evaluate these rules: remove inUseProtection to let the registry evaluate them";
            return Ok(Some(RepositoryResult::failed(
                name,
                ReadyState::Stalled(Cause::new(Reason::InvalidParameterException, message)),
            )));
        };
        let (hosts, scope) = (self.hosts(held), scope(self.policy));
        let run = Run {
            registry_client: self.registry_client,
            name,
            hosts: &hosts,
            policy: rules,
            client: &self.ctx.client,
            scope: &scope,
            shared: self.in_use,
            is_requested: self.requested.is_some() || !before.is_some_and(LastResult::is_evaluated),
        };
        let decision = match run.preview().await {
            Ok(decision) => decision,
            Err(failure) => return spared(name, failure).map(Some),
        };
        let acts =
            self.policy.mode() == Mode::Enforce && !self.observes() && !decision.acts.is_empty();
        if !acts {
            let state = match self.policy.mode() {
                Mode::Enforce if !self.observes() => OutcomeState::Enforced,
                _ => OutcomeState::Previewed,
            };
            let reported = outcome::acted(name, state, &decision.acts, decision.protected, now());
            return Ok(Some(RepositoryResult::of(LastResult::new(reported))));
        }
        // Images are deleted only if this policy still governs the repository.
        let observed = held.refresh_before_write(NEEDS).await?;
        let Some(desired) = self.wanted(name) else { return Ok(None) };
        match self.decide(&desired, name, observed, false) {
            Err(refused) => return Ok(Some(RepositoryResult::failed(name, refusal(&refused)))),
            // The registry got a policy meanwhile: the next reconcile deletes it first.
            Ok(Some(_)) => {
                return Ok(Some(RepositoryResult::of(LastResult::new(outcome::only(
                    name,
                    OutcomeState::Pending,
                )))));
            }
            Ok(None) => {}
        }
        match run.enforce().await {
            Ok(done) => {
                let reported =
                    outcome::acted(name, OutcomeState::Enforced, &done.acts, done.protected, now());
                let mut result = RepositoryResult::of(LastResult::new(reported));
                if let Some(ApiError { name: reason, message, .. }) = done.failures.first() {
                    result.kept.outcome.state = OutcomeState::Failed;
                    let message = format!("{name}: {message}");
                    result.not_ready =
                        Some(ReadyState::Stalled(Cause::new(Reason::of_error(reason), message)));
                }
                result.ran = Some(done);
                Ok(Some(result))
            }
            Err(failure) => spared(name, failure).map(Some),
        }
    }

    /// Compares, and changes nothing.
    async fn observe(
        &self,
        name: &RepositoryName,
        held: &mut LockedRepository,
        observed: Option<&ObservedRepository>,
        before: Option<&LastResult>,
        due: bool,
    ) -> Result<Option<RepositoryResult>, RegistryError> {
        let Some(found) = observed else {
            let message =
                format!("the repository {name} is not there, and managementPolicy is Observe");
            return Ok(Some(RepositoryResult::failed(
                name,
                ReadyState::Reconciling(Cause::new(Reason::ReferenceNotFound, message)),
            )));
        };
        if self.by_operator() {
            return self.evaluate(name, held, before, due).await;
        }
        let put = found.lifecycle_policy.as_ref();
        let is_put = put.is_some_and(|put| equivalent_policies(put, &self.document));
        let state = if is_put { OutcomeState::Enforced } else { OutcomeState::Pending };
        let mut result = RepositoryResult::of(LastResult::new(outcome::only(name, state)));
        if !is_put && self.policy.mode() == Mode::Enforce {
            let field = format!("lifecyclePolicy of {name}");
            let from = put.map(|_| "another one".to_owned());
            result.drift.push(FieldChange { field, from, to: Some("this one".to_owned()) });
        }
        Ok(Some(result))
    }

    /// Returns the hosts by which a Pod may name this registry.
    fn hosts(&self, held: &LockedRepository) -> Hosts {
        let listed = held.as_listed();
        let reported = listed.as_ref().map(|it| (it.registry_id.as_str(), it.uri.as_str()));
        hosts(self.registry, &self.ctx.settings.namespace, reported)
    }

    /// Releases a repository that the policy no longer selects.
    ///
    /// # Errors
    /// When the registry is unavailable, or rejects a request.
    pub(super) async fn release_repository(
        &self,
        name: &RepositoryName,
    ) -> Result<Released, RegistryError> {
        let mut held = self.registry_client.repository(name).await;
        let Some(mut found) = held.refresh_before_write(NEEDS).await? else {
            return Ok(Released::Nothing);
        };
        let lifecycle = LifecycleOwner::read(&found.tags);
        let Some(mut owner) = lifecycle.filter(|_| self.governs(&found)) else {
            return Ok(Released::Nothing);
        };
        // The current spec counts, not the one of the last apply, which the tag records.
        owner.delete = self.policy.deletion_policy() == DeletionPolicy::Delete;
        found.tags.extend(Ownership { lifecycle: Some(owner), ..Ownership::default() }.tags());
        let Some(desired) = self.wanted(name) else { return Ok(Released::Outdated) };
        let plan = plan_for(&desired, name, Some(found));
        // A tag cannot hold every name, so the object of the step may have another name.
        let lets_go = |it: &Step| {
            it.object.kind == self.object.kind
                && matches!(it.action, Action::Retain | Action::Delete)
        };
        let Some(step) = plan.steps.into_iter().find(lets_go) else { return Ok(Released::Nothing) };
        match held.execute(&step).await {
            Ok(()) => Ok(Released::Repository),
            Err(RegistryError::Rejected(error)) if error.kind == ErrorKind::RepositoryNotFound => {
                Ok(Released::Nothing)
            }
            Err(error) => Err(error),
        }
    }
}

/// The rules by which a policy converges one repository.
struct RepositoryPolicy<'a> {
    policy_run: &'a PolicyRun<'a>,
    name: &'a RepositoryName,
    due: bool,
}

impl Converge for RepositoryPolicy<'_> {
    type Locked = LockedRepository;

    fn needs(&self) -> RepositoryNeeds {
        NEEDS
    }

    fn decide(&self, found: Option<ObservedRepository>) -> Option<Result<Option<Step>, Refused>> {
        let desired = self.policy_run.wanted(self.name)?;
        Some(self.policy_run.decide(&desired, self.name, found, self.due))
    }

    fn must_refresh(&self, step: &Step, found: Option<&ObservedRepository>) -> bool {
        self.policy_run.may_be_old(step, found)
    }

    fn is_stale(&self, error: &ApiError) -> bool {
        error.kind == ErrorKind::RepositoryNotFound
    }

    fn is_drift(&self, step: &Step, found: Option<&ObservedRepository>) -> bool {
        self.policy_run.is_drift(step, found)
    }

    fn must_verify(&self, _step: &Step) -> bool {
        false
    }
}

fn now() -> Time {
    Time(Timestamp::now())
}

/// Returns the workloads whose images count as in use.
fn scope(policy: &LifecyclePolicy) -> ImageScope {
    let protection = policy.spec.in_use_protection.as_ref();
    ImageScope {
        namespaces: protection.and_then(|it| it.namespace_selector.clone()),
        keep_previous: protection
            .and_then(|it| usize::try_from(it.keep_previous?).ok())
            .unwrap_or_default(),
    }
}

/// Makes the result of a run that did not delete anything.
fn spared(name: &RepositoryName, failure: Failure) -> Result<RepositoryResult, RegistryError> {
    const REASON: Reason = Reason::InUseUnknown;
    let state = match failure {
        Failure::Registry(error) => return Err(error),
        Failure::CannotTell(error @ CannotTell::Unlisted { .. }) => ReadyState::Reconciling(
            Cause::new(REASON, format!("nothing of {name} is deleted: {error}")),
        ),
        Failure::CannotTell(error) => ReadyState::Stalled(Cause::new(
            REASON,
            format!("nothing of {name} is deleted: {error}"),
        )),
        Failure::Index(error) => ReadyState::Stalled(Cause::new(
            REASON,
            format!("nothing of {name} is deleted: {error}"),
        )),
    };
    Ok(RepositoryResult::failed(name, state))
}

/// Returns the state after a rejected request. A missing operation has its own reason.
fn refused(name: &RepositoryName, error: ApiError) -> ReadyState {
    if error.kind == ErrorKind::UnsupportedOperation {
        let message = format!("{name}: this registry has no such operation ({error})");
        return ReadyState::Stalled(Cause::new(Reason::UnsupportedByRegistry, message));
    }
    refused_by_registry(error.with_prefix(name))
}

/// Returns the hosts by which a Pod may name a registry: from its Registry, its account and a
/// `repositoryUri`.
fn hosts(registry: &Registry, operator: &str, listed: Option<(&str, &str)>) -> Hosts {
    let account =
        registry.registry_id().or_else(|| listed.and_then(|(account, _)| account.parse().ok()));
    let mut hosts = Hosts::new(account, registry.region());
    if let Some(managed) = &registry.spec.managed {
        let (names, namespace) =
            (Names::of(&registry.name_any()), workload::namespace(managed, operator));
        hosts.add(&workload::public_url(managed, &names, namespace));
        hosts.add(&workload::cluster_url(managed, &names, namespace));
    }
    let endpoint = registry.spec.endpoint.as_ref().map(|it| it.url.as_str());
    let reported = registry.status.as_ref().and_then(|it| it.endpoint.as_deref());
    let uri = listed.map(|(_, uri)| uri);
    [endpoint, reported, uri].into_iter().flatten().for_each(|url| hosts.add(url));
    hosts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_managed_registry_is_known_by_each_of_its_hosts() {
        let mut registry: Registry = serde_json::from_value(json!({
            "metadata": { "name": "home" },
            "spec": { "managed": { "publicUrl": "https://registry.example.com" } },
            "status": { "endpoint": "https://former.example.com" },
        }))
        .unwrap();
        let listed = Some(("000000000000", "reported.example.com:8443/team/api"));
        let all = [
            "registry.example.com",
            "home.wharfage.svc",
            "former.example.com",
            "reported.example.com:8443",
        ];
        let known = hosts(&registry, "wharfage", listed);
        assert_eq!(all.map(|host| known.contains(host)), [true; 4]);
        assert!(!known.contains("home.other.svc"));

        registry.spec.managed.as_mut().unwrap().namespace = Some("other".to_owned());
        assert!(hosts(&registry, "wharfage", None).contains("home.other.svc"));
    }
}
