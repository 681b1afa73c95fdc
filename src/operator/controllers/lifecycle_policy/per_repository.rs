//! One repository's turn: the policy is put there, previewed there, or carried out there by the operator.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use serde_json::Value;

use super::outcome;
use super::result_cache::LastResult;
use crate::context::Context;
use crate::controllers::converge::{Converge, Convergence, Correction, Ending, converge};
use crate::controllers::{LastSync, is_outdated, plan_for, refusal, refused_by_registry, step_for};
use crate::in_use::references::Hosts;
use crate::in_use::run::{Failure, Run, RunReport, Shared};
use crate::in_use::workloads::{CannotTell, ImageScope};
use crate::plan_input::PlanInput;
use crate::registry_client::{Freshness, LockedRepository, RegistryClient, RegistryError, Unavailable};
use crate::status::{Cause, ReadyState};
use crate::workload::{self, Names};
use wharfage_apply::{PreviewedPolicy, RepositoryNeeds, preview};
use wharfage_crd::lifecycle_policy::{Mode, OutcomeState};
use wharfage_crd::{AdoptionPolicy, DeletionPolicy, LifecyclePolicy, Managed as _, ManagementPolicy, Reason, Registry};
use wharfage_domain::lifecycle::Policy;
use wharfage_domain::names::RepositoryName;
use wharfage_plan::model::{ApiError, ErrorKind, ObservedRepository, Refused};
use wharfage_plan::ownership::{LifecycleOwner, Ownership};
use wharfage_plan::{
    Action, Desired, FieldChange, Object, RepositoryCall, Step, desired_in_cluster, equivalent_policies,
};

/// What is known of a repository's lifecycle policy and tags.
const NEEDS: RepositoryNeeds = RepositoryNeeds { policy: false, lifecycle_policy: true, preview: false };

/// A policy in its registry.
pub(super) struct PolicyRun<'a> {
    pub(super) ctx: &'a Context,
    /// Caches of in-use protection.
    pub(super) in_use: &'a Shared,
    pub(super) policy: &'a LifecyclePolicy,
    pub(super) object: &'a Object,
    pub(super) registry: &'a Registry,
    pub(super) registry_client: &'a Arc<RegistryClient>,
    /// The policy's document.
    pub(super) document: Value,
    /// The same, read. What the registry may understand and we don't is nothing.
    pub(super) rules: Option<Policy>,
    pub(super) freshness: Freshness,
    /// The request for a look that is not answered yet.
    pub(super) asked: Option<String>,
    /// Whether what is not in line now somebody else changed.
    pub(super) past: LastSync,
}

/// What became of a repository's turn.
pub(super) struct RepositoryResult {
    pub(super) kept: LastResult,
    /// Why the policy is not ready because of it.
    pub(super) trouble: Option<ReadyState>,
    /// What somebody else had changed: corrected, or found where only looked, or where `kept` differs.
    pub(super) drift: Vec<FieldChange>,
    /// What was done to the repository's policy.
    pub(super) done: Option<Action>,
    /// What the operator let go.
    pub(super) ran: Option<RunReport>,
}

impl RepositoryResult {
    fn of(kept: LastResult) -> Self {
        Self { kept, trouble: None, drift: Vec::new(), done: None, ran: None }
    }

    fn failed(name: &RepositoryName, state: ReadyState) -> Self {
        let told = match state {
            ReadyState::Reconciling(_) => OutcomeState::Pending,
            ReadyState::Stalled(_) | ReadyState::Ready(_) => OutcomeState::Failed,
        };
        Self { trouble: Some(state), ..Self::of(LastResult::new(outcome::only(name, told))) }
    }
}

/// What became of a repository that the policy is for no more.
pub(super) enum Released {
    /// It was released.
    Repository,
    /// It is gone, or not the policy's.
    Nothing,
    /// The policy is another one by now, and may say something else of it.
    Outdated,
}

impl PolicyRun<'_> {
    /// Brings one repository in line. `before` is what its last turn came to. Nothing if the policy is another one by now.
    ///
    /// # Errors
    /// When the registry is unavailable: then no other repository's turn would come to more.
    pub(super) async fn run(
        &self,
        name: &RepositoryName,
        before: Option<&LastResult>,
    ) -> Result<Option<RepositoryResult>, Unavailable> {
        let mut held = self.registry_client.repository(name).await;
        match self.converge_repository(name, &mut held, before).await {
            Ok(Some(mut turn)) => {
                if self.asked.is_some() {
                    turn.kept.asked.clone_from(&self.asked);
                }
                Ok(Some(turn))
            }
            Ok(None) => Ok(None),
            Err(RegistryError::Unavailable(unavailable)) => Err(unavailable),
            Err(RegistryError::Rejected(error)) => Ok(Some(RepositoryResult::failed(name, refused(name, error)))),
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
        let mut looked = held.observe(NEEDS, self.freshness).await?;
        let governs = looked.as_ref().is_some_and(|it| self.governs(it));
        if !governs && self.policy.adoption_policy() != AdoptionPolicy::AdoptOrCreate {
            // Whether a policy is there decides.
            looked = held.observe(NEEDS, Freshness { now: true, ..self.freshness }).await?;
        }
        let rules = RepositoryPolicy { policy_run: self, name, due };
        let Convergence { executed, found: looked, ending } = converge(&rules, held, self.freshness, looked).await;
        match ending {
            Ending::InSync => {}
            Ending::Outdated => return Ok(None),
            Ending::Refused(refused) => return Ok(Some(RepositoryResult::failed(name, refusal(&refused)))),
            // Somebody's preview goes on.
            Ending::Failed(_, RegistryError::Rejected(error)) if error.kind == ErrorKind::PreviewInProgress => {
                return Ok(Some(RepositoryResult::of(LastResult::awaiting(name, before))));
            }
            Ending::Failed(Correction { step, is_drift: true }, RegistryError::Rejected(error)) => {
                let mut turn = RepositoryResult::failed(name, refused(name, error));
                turn.drift = step.changes;
                turn.kept.differs = true;
                return Ok(Some(turn));
            }
            Ending::Failed(_, trouble) | Ending::Unread(trouble) => return Err(trouble),
        }
        let (mut done, mut drift) = (None, Vec::new());
        if let Some(Correction { step, is_drift }) = executed.into_iter().next_back() {
            // That it is previewed again after an interval is no news: telling it would be a write for each policy and interval.
            let again = step.action == Action::Preview && before.is_some_and(LastResult::is_evaluated);
            done = (!again).then_some(step.action);
            if is_drift {
                drift = step.changes;
            }
        }
        let turn = if self.observes() {
            self.observe(name, held, looked.as_ref(), before, due).await?
        } else if self.by_operator() {
            self.evaluate(name, held, before, due).await?
        } else {
            Some(match self.policy.mode() {
                Mode::Enforce => RepositoryResult::of(LastResult::new(outcome::only(name, OutcomeState::Enforced))),
                Mode::Preview => self.previewed(name, before, due).await?,
            })
        };
        let Some(mut turn) = turn else { return Ok(None) };
        if !drift.is_empty() {
            turn.drift = drift;
        }
        turn.done = done;
        Ok(Some(turn))
    }

    /// Whether the step puts back what somebody else changed.
    fn is_drift(&self, step: &Step, looked: Option<&ObservedRepository>) -> bool {
        let governed = looked.is_some_and(|it| self.governs(it));
        self.past.is_drift() && governed && step.action != Action::Preview
    }

    /// Whether the repository's tags say that it has this policy.
    fn governs(&self, found: &ObservedRepository) -> bool {
        let owner = LifecycleOwner::read(&found.tags);
        owner.is_some_and(|owner| owner.is(&self.ctx.settings.cluster, self.object))
    }

    /// Whether it is to be evaluated again: it never was, it was asked for, or that is an interval ago. In a registry with many
    /// repositories they take turns.
    fn is_due(&self, before: Option<&LastResult>) -> bool {
        let Some(before) = before.filter(|it| it.is_evaluated() || it.begun.is_some()) else { return true };
        if before.begun.is_some() {
            return false;
        }
        let rest = self.freshness.interval.saturating_mul(self.registry_client.rotation());
        // One repository may have its answer while the request waits for another's.
        let asked = self.asked.is_some() && self.asked != before.asked;
        asked || before.at.elapsed() >= rest
    }

    /// A repository that is ours by its tags is left alone by everybody who asks its tags. All else is read once more before it
    /// is changed.
    fn may_be_old(&self, step: &Step, looked: Option<&ObservedRepository>) -> bool {
        let cluster = &self.ctx.settings.cluster;
        let owner = looked.and_then(|it| Ownership::read(&it.tags).owner);
        let ours = owner.is_some_and(|owner| owner.cluster == *cluster);
        !ours || step.calls.contains(&RepositoryCall::DeleteLifecyclePolicy.into()) || step.action == Action::Adopt
    }

    /// What is wanted of this name, by whoever asks for it; nothing if this policy is another one by now.
    fn wanted(&self, name: &RepositoryName) -> Option<Desired> {
        let input = PlanInput::with_policies(&self.ctx.stores, &self.ctx.registry_clients, self.registry, name);
        // Whatever the input was made of, a change of this policy that is in it is seen here.
        let outdated = is_outdated(&self.ctx.stores.lifecycle_policies, self.policy);
        (!outdated).then(|| desired_in_cluster(&input, self.registry, &self.ctx.settings.cluster))
    }

    /// What the plan says for this policy. Whether a preview is to be started is known better here than there.
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
            // The Repository's own controller makes it.
            let message = format!("the repository {name} is not there yet in {}", desired.registry);
            return Err(Refused::new(self.object, Reason::ReferenceNotFound, message));
        }
        step_for(plan_for(desired, name, found), self.object)
    }

    /// What the registry's own preview says.
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
                Ok(RepositoryResult::of(LastResult::new(outcome::previewed(name, &previewed, bytes, now()))))
            }
            // Somebody else's: ours is started when that one is over.
            Ok(Some(_)) => Ok(RepositoryResult::of(LastResult::new(outcome::only(name, OutcomeState::Pending)))),
            Ok(None) => Ok(RepositoryResult::of(LastResult::awaiting(name, before))),
            Err(RegistryError::Rejected(error)) => Ok(RepositoryResult::failed(name, refused(name, error))),
            Err(unavailable) => Err(unavailable),
        }
    }

    /// What the operator does, or would do, itself.
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
            let message =
                "the operator cannot evaluate these rules: remove inUseProtection to let the registry evaluate them";
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
            anew: self.asked.is_some() || !before.is_some_and(LastResult::is_evaluated),
        };
        let decision = match run.preview().await {
            Ok(decision) => decision,
            Err(failure) => return spared(name, failure).map(Some),
        };
        let acts = self.policy.mode() == Mode::Enforce && !self.observes() && !decision.acts.is_empty();
        if !acts {
            let state = match self.policy.mode() {
                Mode::Enforce if !self.observes() => OutcomeState::Enforced,
                _ => OutcomeState::Previewed,
            };
            let told = outcome::acted(name, state, &decision.acts, decision.protected, now());
            return Ok(Some(RepositoryResult::of(LastResult::new(told))));
        }
        // Only images of a repository that this policy still governs are deleted.
        let looked = held.refresh_before_write(NEEDS).await?;
        let Some(desired) = self.wanted(name) else { return Ok(None) };
        match self.decide(&desired, name, looked, false) {
            Err(refused) => return Ok(Some(RepositoryResult::failed(name, refusal(&refused)))),
            // The registry has got a policy meanwhile: the next turn takes it away first.
            Ok(Some(_)) => {
                return Ok(Some(RepositoryResult::of(LastResult::new(outcome::only(name, OutcomeState::Pending)))));
            }
            Ok(None) => {}
        }
        match run.enforce().await {
            Ok(done) => {
                let told = outcome::acted(name, OutcomeState::Enforced, &done.acts, done.protected, now());
                let mut turn = RepositoryResult::of(LastResult::new(told));
                if let Some(ApiError { name: reason, message, .. }) = done.failures.first() {
                    turn.kept.outcome.state = OutcomeState::Failed;
                    let message = format!("{name}: {message}");
                    turn.trouble = Some(ReadyState::Stalled(Cause::new(Reason::of_error(reason), message)));
                }
                turn.ran = Some(done);
                Ok(Some(turn))
            }
            Err(failure) => spared(name, failure).map(Some),
        }
    }

    /// Looks, and changes nothing.
    async fn observe(
        &self,
        name: &RepositoryName,
        held: &mut LockedRepository,
        looked: Option<&ObservedRepository>,
        before: Option<&LastResult>,
        due: bool,
    ) -> Result<Option<RepositoryResult>, RegistryError> {
        let Some(found) = looked else {
            let message = format!("the repository {name} is not there, and managementPolicy is Observe");
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
        let mut turn = RepositoryResult::of(LastResult::new(outcome::only(name, state)));
        if !is_put && self.policy.mode() == Mode::Enforce {
            let field = format!("lifecyclePolicy of {name}");
            let from = put.map(|_| "another one".to_owned());
            turn.drift.push(FieldChange { field, from, to: Some("this one".to_owned()) });
        }
        Ok(Some(turn))
    }

    /// The hosts by which a Pod may name this registry.
    fn hosts(&self, held: &LockedRepository) -> Hosts {
        let listed = held.as_listed();
        let told = listed.as_ref().map(|it| (it.registry_id.as_str(), it.uri.as_str()));
        hosts(self.registry, &self.ctx.settings.namespace, told)
    }

    /// Releases a repository that the policy is for no more.
    ///
    /// # Errors
    /// When the registry is unavailable, or refuses.
    pub(super) async fn release_repository(&self, name: &RepositoryName) -> Result<Released, RegistryError> {
        let mut held = self.registry_client.repository(name).await;
        let Some(mut found) = held.refresh_before_write(NEEDS).await? else { return Ok(Released::Nothing) };
        let lifecycle = LifecycleOwner::read(&found.tags);
        let Some(mut owner) = lifecycle.filter(|_| self.governs(&found)) else { return Ok(Released::Nothing) };
        // What the resource says now holds, whatever it said when the tag was written.
        owner.delete = self.policy.deletion_policy() == DeletionPolicy::Delete;
        found.tags.extend(Ownership { lifecycle: Some(owner), ..Ownership::default() }.tags());
        let Some(desired) = self.wanted(name) else { return Ok(Released::Outdated) };
        let plan = plan_for(&desired, name, Some(found));
        // A tag has not room for every name, so that the step's object may have another.
        let lets_go =
            |it: &Step| it.object.kind == self.object.kind && matches!(it.action, Action::Retain | Action::Delete);
        let Some(step) = plan.steps.into_iter().find(lets_go) else { return Ok(Released::Nothing) };
        match held.execute(&step).await {
            Ok(()) => Ok(Released::Repository),
            Err(RegistryError::Rejected(error)) if error.kind == ErrorKind::RepositoryNotFound => Ok(Released::Nothing),
            Err(trouble) => Err(trouble),
        }
    }
}

/// What a LifecyclePolicy asks of one repository.
struct RepositoryPolicy<'a> {
    policy_run: &'a PolicyRun<'a>,
    name: &'a RepositoryName,
    due: bool,
}

impl Converge for RepositoryPolicy<'_> {
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

/// Whose images are in use.
fn scope(policy: &LifecyclePolicy) -> ImageScope {
    let protection = policy.spec.in_use_protection.as_ref();
    ImageScope {
        namespaces: protection.and_then(|it| it.namespace_selector.clone()),
        keep_previous: protection.and_then(|it| usize::try_from(it.keep_previous?).ok()).unwrap_or_default(),
    }
}

/// Nothing was let go.
fn spared(name: &RepositoryName, failure: Failure) -> Result<RepositoryResult, RegistryError> {
    const REASON: Reason = Reason::InUseUnknown;
    let state = match failure {
        Failure::Registry(trouble) => return Err(trouble),
        Failure::CannotTell(error @ CannotTell::Unlisted { .. }) => {
            ReadyState::Reconciling(Cause::new(REASON, format!("nothing of {name} is deleted: {error}")))
        }
        Failure::CannotTell(error) => {
            ReadyState::Stalled(Cause::new(REASON, format!("nothing of {name} is deleted: {error}")))
        }
        Failure::Index(error) => {
            ReadyState::Stalled(Cause::new(REASON, format!("nothing of {name} is deleted: {error}")))
        }
    };
    Ok(RepositoryResult::failed(name, state))
}

/// Operations that the registry doesn't have are told as that.
fn refused(name: &RepositoryName, error: ApiError) -> ReadyState {
    if error.kind == ErrorKind::UnsupportedOperation {
        let message = format!("{name}: this registry has no such operation ({error})");
        return ReadyState::Stalled(Cause::new(Reason::UnsupportedByRegistry, message));
    }
    refused_by_registry(error.with_prefix(name))
}

/// The hosts by which a Pod may name a registry, as its Registry has them, and its listing: the account and a `repositoryUri`.
fn hosts(registry: &Registry, operator: &str, listed: Option<(&str, &str)>) -> Hosts {
    let account = registry.registry_id().or_else(|| listed.and_then(|(account, _)| account.parse().ok()));
    let mut hosts = Hosts::new(account, registry.region());
    if let Some(managed) = &registry.spec.managed {
        let (names, namespace) = (Names::of(&registry.name_any()), workload::namespace(managed, operator));
        hosts.add(&workload::public_url(managed, &names, namespace));
        hosts.add(&workload::cluster_url(managed, &names, namespace));
    }
    let endpoint = registry.spec.endpoint.as_ref().map(|it| it.url.as_str());
    let told = registry.status.as_ref().and_then(|it| it.endpoint.as_deref());
    let uri = listed.map(|(_, uri)| uri);
    [endpoint, told, uri].into_iter().flatten().for_each(|url| hosts.add(url));
    hosts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_managed_registry_is_known_by_every_way_to_it() {
        let mut registry: Registry = serde_json::from_value(json!({
            "metadata": { "name": "home" },
            "spec": { "managed": { "publicUrl": "https://registry.example.com" } },
            "status": { "endpoint": "https://former.example.com" },
        }))
        .unwrap();
        let listed = Some(("000000000000", "told.example.com:8443/team/api"));
        let all = ["registry.example.com", "home.wharfage.svc", "former.example.com", "told.example.com:8443"];
        let known = hosts(&registry, "wharfage", listed);
        assert_eq!(all.map(|host| known.contains(host)), [true; 4]);
        assert!(!known.contains("home.other.svc"));

        registry.spec.managed.as_mut().unwrap().namespace = Some("other".to_owned());
        assert!(hosts(&registry, "wharfage", None).contains("home.other.svc"));
    }
}
