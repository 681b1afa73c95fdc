//! LifecyclePolicy: puts a policy to the repositories that it selects, previews it there, or, with
//! in-use protection, enforces it itself.

mod outcome;
mod per_repository;
mod result_cache;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::converge::{Drift, corrected, observed, uncorrected};
use super::finish::Outcome;
use super::interrupted::Interrupted;
use super::reconcile::{Reconcile, Reconciler, outcome_of};
use super::{KindController, LastSync, Registered, refused_by_registry, registered, show};
use crate::context::Context;
use crate::events::LONGEST_NOTE;
use crate::in_use;
use crate::kind::{Kind, Reference, status_fields};
use crate::policy_rule::{PolicyRule, own_kind};
use crate::registry_client::{Freshness, RegistryClient, RegistryError};
use crate::status::{Cause, ConditionSet, ReadyState, is_ready};
use crate::stores::Stores;
use crate::watch::Change;
use outcome::{RunTotals, counted, enforced, names, only, report};
use per_repository::{PolicyRun, Released, RepositoryResult};
use result_cache::{LastResult, LastResults, ResultCache};
use wharfage_crd::lifecycle_policy::{Mode, OutcomeState, RepositoryOutcome};
use wharfage_crd::{
    Condition, DeletionPolicy, LifecyclePolicy, LifecyclePolicyStatus, Managed as _,
    ManagementPolicy, Reason, Registry, Repository,
};
use wharfage_domain::lifecycle::Policy;
use wharfage_domain::names::RepositoryName;
use wharfage_plan::{Action, FieldChange, Object};

impl Kind for LifecyclePolicy {
    const NAME: &'static str = "LifecyclePolicy";

    fn registry_name(&self) -> &str {
        &self.spec.registry_ref.name
    }

    fn is_suspended(&self) -> bool {
        self.suspended()
    }

    fn sync_interval(&self) -> Duration {
        self.interval()
    }

    fn references(&self) -> Vec<Reference> {
        let (spec, namespace) = (&self.spec, self.namespace());
        let repositories = match (&spec.repository_ref, &spec.repository_selector) {
            (Some(it), _) => {
                Some(Reference::named::<Repository>("repositoryRef", namespace, &it.name))
            }
            (None, Some(it)) => {
                Some(Reference::selected::<Repository>("repositorySelector", namespace, it.clone()))
            }
            (None, None) => None,
        };
        let registry = self.registry_name();
        [Reference::registry(registry)]
            .into_iter()
            .chain(repositories.map(|it| it.in_registry(registry)))
            .collect()
    }
}

status_fields!(LifecyclePolicyStatus, events: false, last_sync: |self, now| self.last_sync_time = Some(now));

/// The shortest and the longest delay after which a running preview is read again.
const PREVIEW_POLL_INTERVAL: (Duration, Duration) =
    (Duration::from_millis(500), Duration::from_secs(30));

/// Reconciles LifecyclePolicies.
pub(crate) struct LifecyclePolicyController {
    ctx: Arc<Context>,
    /// The last results in the repositories of each policy.
    results: ResultCache,
    /// Caches of in-use protection.
    in_use: in_use::run::Shared,
}

impl KindController for LifecyclePolicyController {
    type Kind = LifecyclePolicy;
    const CONCURRENCY: u16 = 8;

    fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, results: ResultCache::default(), in_use: in_use::run::Shared::default() }
    }

    fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    fn rules() -> Vec<PolicyRule> {
        [&own_kind(&["lifecyclepolicies"], &["lifecyclepolicies/status"]), in_use::RULES].concat()
    }

    /// Requeues the policies of the namespace that are not Ready when one is deleted or its spec
    /// changed: they may adopt its repositories.
    fn changed(&self, change: &Change<LifecyclePolicy>) {
        if let Some(uid) = change.deleted_uid() {
            self.results.forget(uid);
        }
        let Some(policy) = change.either() else { return };
        let makes_way = match (&change.old, &change.new) {
            (Some(old), Some(new)) => {
                new.metadata.deletion_timestamp.is_some() || old.spec != new.spec
            }
            (old, _) => old.is_some(),
        };
        if !makes_way {
            return;
        }
        let neighbors = self
            .ctx
            .stores
            .lifecycle_policies
            .in_namespace(&policy.namespace().unwrap_or_default());
        let waiting =
            neighbors.iter().filter(|it| it.uid() != policy.uid() && !is_ready(it.conditions()));
        self.ctx.triggers.requeue_all(waiting.map(|it| &**it));
    }
}

impl Reconciler for LifecyclePolicyController {
    type Inputs = Registered;

    fn dereference(
        &self,
        reconcile: &Reconcile<'_, LifecyclePolicy>,
    ) -> Result<Registered, Interrupted> {
        registered(&self.ctx, reconcile.registry_name())
    }

    fn needs_finalizer(&self, policy: &LifecyclePolicy) -> bool {
        policy.management_policy() == ManagementPolicy::Full
    }

    async fn apply(
        &self,
        reconcile: &Reconcile<'_, LifecyclePolicy>,
        (registry, registry_client): Registered,
    ) -> Result<Outcome<LifecyclePolicyStatus>, Interrupted> {
        PolicyReconcile::new(self, reconcile).run(&registry, &registry_client).await
    }

    async fn release(&self, reconcile: &Reconcile<'_, LifecyclePolicy>) -> Result<(), Interrupted> {
        PolicyReconcile::new(self, reconcile).release().await
    }

    fn must_release(&self, policy: &LifecyclePolicy) -> bool {
        policy.deletion_policy() == DeletionPolicy::Delete
    }

    /// Returns the cause if `repositoryRef` names no Repository with a valid name.
    fn missing_reference(&self, policy: &LifecyclePolicy) -> Option<Cause> {
        missing_repository(policy, &chosen(&self.ctx.stores, policy))
    }
}

/// Returns the repositories that a policy is for, by the Repositories of its namespace.
fn chosen(stores: &Stores, policy: &LifecyclePolicy) -> BTreeSet<RepositoryName> {
    let chosen = stores.repositories_chosen_by(policy);
    let stay = chosen.iter().filter(|it| it.metadata.deletion_timestamp.is_none());
    stay.filter_map(|it| it.repository_name().ok()).collect()
}

/// Returns the cause if `repositoryRef` finds none of these repositories.
fn missing_repository(
    policy: &LifecyclePolicy,
    chosen: &BTreeSet<RepositoryName>,
) -> Option<Cause> {
    let references = policy.references();
    let named = references.iter().find(|it| it.is_to::<Repository>() && it.name().is_some());
    named.filter(|_| chosen.is_empty()).map(Reference::not_found)
}

/// One reconcile of a LifecyclePolicy.
struct PolicyReconcile<'a> {
    controller: &'a LifecyclePolicyController,
    ctx: &'a Context,
    results: &'a ResultCache,
    policy: &'a LifecyclePolicy,
    object: &'a Object,
}

impl<'a> PolicyReconcile<'a> {
    fn new(
        controller: &'a LifecyclePolicyController,
        reconcile: &'a Reconcile<'a, LifecyclePolicy>,
    ) -> Self {
        let (ctx, results) = (&*controller.ctx, &controller.results);
        Self { controller, ctx, results, policy: reconcile.object, object: &reconcile.id }
    }

    fn generation(&self) -> Option<i64> {
        self.policy.metadata.generation
    }

    fn uid(&self) -> &str {
        self.policy.metadata.uid.as_deref().unwrap_or_default()
    }

    fn registry_name(&self) -> &str {
        &self.policy.spec.registry_ref.name
    }

    /// Returns the repositories that it governs, or may have governed, and no longer selects.
    fn left(
        &self,
        registry_client: &RegistryClient,
        chosen: &BTreeSet<RepositoryName>,
    ) -> BTreeSet<RepositoryName> {
        let reported = self
            .policy
            .status_or_default()
            .repositories
            .into_iter()
            .filter_map(|it| it.name.parse().ok())
            .collect::<Vec<_>>();
        let cluster = &self.ctx.settings.cluster;
        let tagged = registry_client.governed_by(|owner| owner.is(cluster, self.object));
        let had = reported.into_iter().chain(self.results.had(self.uid())).chain(tagged);
        had.filter(|name| !chosen.contains(name)).collect()
    }

    fn policy_run<'r>(
        &'r self,
        registry: &'r Registry,
        registry_client: &'r Arc<RegistryClient>,
    ) -> PolicyRun<'r> {
        let document = self.policy.document();
        let requested = self.policy.requested();
        PolicyRun {
            ctx: self.ctx,
            in_use: &self.controller.in_use,
            policy: self.policy,
            object: self.object,
            registry,
            registry_client,
            rules: Policy::from_value(&document).ok(),
            document,
            freshness: Freshness { interval: self.policy.interval(), now: requested.is_some() },
            requested,
            past: LastSync::of_object(self.policy),
        }
    }

    async fn run(
        &self,
        registry: &Registry,
        registry_client: &Arc<RegistryClient>,
    ) -> Result<Outcome<LifecyclePolicyStatus>, Interrupted> {
        let policy_run = self.policy_run(registry, registry_client);
        let chosen = chosen(&self.ctx.stores, self.policy);
        let mut summary = RunSummary::default();
        if self.policy.management_policy() == ManagementPolicy::Full {
            for name in self.left(registry_client, &chosen) {
                match policy_run.release_repository(&name).await {
                    Ok(Released::Repository) => summary.released.push(name),
                    Ok(Released::Nothing) => {}
                    Ok(Released::Outdated) => return Err(self.outdated(&summary).await),
                    Err(error @ RegistryError::Unavailable(_)) => return Err(error.into()),
                    Err(RegistryError::Rejected(error)) => {
                        let error = error.with_prefix(format_args!("{name} cannot be released"));
                        summary.not_ready.push(refused_by_registry(error));
                    }
                }
            }
        }
        if let Some(cause) = missing_repository(self.policy, &chosen) {
            self.results.remember(self.uid(), self.generation(), LastResults::new());
            let outcome =
                outcome_of(self.controller, self.policy, Interrupted::ReferenceMissing(cause))?;
            return Ok(outcome.with_status(|status| set_outcomes(status, Vec::new())));
        }
        let before =
            self.results.recall(self.uid(), self.generation(), &self.policy.status_or_default());
        for name in &chosen {
            match policy_run.run(name, before.get(name)).await {
                Ok(Some(result)) => summary.take(name, result, before.get(name)),
                Ok(None) => return Err(self.outdated(&summary).await),
                Err(unavailable) => {
                    // The last results of the others stay.
                    for name in chosen
                        .iter()
                        .filter(|name| !summary.results.contains_key(*name))
                        .collect::<Vec<_>>()
                    {
                        let known = before.get(name).cloned();
                        let kept = known
                            .unwrap_or_else(|| LastResult::new(only(name, OutcomeState::Pending)));
                        summary.results.insert(name.clone(), kept);
                    }
                    self.emit_events(&summary).await;
                    let outcomes = summary.outcomes();
                    self.results.remember(self.uid(), self.generation(), summary.results);
                    let interrupted = RegistryError::Unavailable(unavailable).into();
                    let outcome = outcome_of(self.controller, self.policy, interrupted)?;
                    return Ok(outcome.with_status(|status| set_outcomes(status, outcomes)));
                }
            }
        }
        self.emit_events(&summary).await;
        let outcome = self.summarize(&summary, policy_run.past);
        self.results.remember(self.uid(), self.generation(), summary.results);
        Ok(outcome)
    }

    /// Reports what was done until the policy changed: the next reconcile finds it done.
    async fn outdated(&self, summary: &RunSummary) -> Interrupted {
        self.emit_events(summary).await;
        Interrupted::OUTDATED
    }

    /// Summarizes the results of all repositories.
    fn summarize(&self, summary: &RunSummary, past: LastSync) -> Outcome<LifecyclePolicyStatus> {
        let state = summary.worst(&self.policy.spec.registry_ref.name).unwrap_or_else(|| {
            let pending = summary
                .results
                .values()
                .filter(|it| it.outcome.state == OutcomeState::Pending)
                .count();
            if pending > 0 && self.policy.management_policy() == ManagementPolicy::Full {
                let all = counted(summary.results.len(), "repository", "repositories");
                let message =
                    format!("the registry still evaluates the policy for {pending} of {all}");
                return ReadyState::Reconciling(Cause::new(Reason::Previewing, message));
            }
            ReadyState::Ready(Cause::new(self.reason(), self.in_words(summary)))
        });
        let mut findings = ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) };
        findings.drifted = self.drifted(summary, past);
        let begun =
            summary.results.values().filter_map(|it| it.begun).map(|begun| begun.elapsed()).max();
        let next = next(begun, &findings.state, self.policy.conditions(), self.policy.interval());
        let outcomes = summary.outcomes();
        let mut outcome =
            Outcome::new(findings, next).with_status(|status| set_outcomes(status, outcomes));
        outcome.answers = begun.is_none();
        outcome
    }

    fn reason(&self) -> Reason {
        match (self.policy.management_policy(), self.policy.mode()) {
            (ManagementPolicy::Observe, _) => Reason::Observed,
            (ManagementPolicy::Full, Mode::Preview) => Reason::Previewed,
            (ManagementPolicy::Full, Mode::Enforce) => Reason::InSync,
        }
    }

    fn in_words(&self, summary: &RunSummary) -> String {
        let repositories = counted(summary.results.len(), "repository", "repositories");
        if summary.results.is_empty() {
            return "repositorySelector chooses no Repository of this namespace yet".to_owned();
        }
        match (self.policy.management_policy(), self.policy.mode(), self.policy.protects_in_use()) {
            (ManagementPolicy::Observe, ..) => {
                format!("observed in {repositories}, and never changed")
            }
            (_, Mode::Preview, _) => format!("previewed in {repositories}: nothing is deleted"),
            (_, Mode::Enforce, false) => format!("put to {repositories}"),
            (_, Mode::Enforce, true) => {
                format!(
                    "enforced by the operator in {repositories}; what runs in other clusters is not seen"
                )
            }
        }
    }

    fn drifted(&self, summary: &RunSummary, past: LastSync) -> Option<(bool, Cause)> {
        let RunSummary { drift, uncorrected_drift, not_ready, .. } = summary;
        if self.policy.management_policy() == ManagementPolicy::Observe {
            return Some(observed(drift));
        }
        if !uncorrected_drift.is_empty() {
            return Some(uncorrected(uncorrected_drift));
        }
        if drift.is_empty() && past == LastSync::Drifted && !not_ready.is_empty() {
            // It is unknown whether the drift is corrected.
            return None;
        }
        Some(corrected(past, self.policy.conditions(), drift))
    }

    /// Emits one event for each kind of change, for all repositories together.
    async fn emit_events(&self, summary: &RunSummary) {
        let events = &self.ctx.events;
        if self.policy.management_policy() == ManagementPolicy::Full {
            let drift = Drift {
                ctx: self.ctx,
                kind: LifecyclePolicy::NAME,
                registry: self.registry_name(),
            };
            drift.detected(summary.found);
            if !summary.drift.is_empty() {
                // Counted as detected above, together with what could not be corrected.
                drift.corrected(LastSync::Drifted, summary.drift.len());
                let note = format!("drift was corrected: {}", show(&summary.drift));
                events.warning(self.policy, Reason::DriftCorrected, note).await;
            }
        }
        for (action, repositories) in &summary.done {
            let (reason, done) = match action {
                Action::Create => (Reason::Created, "now governs"),
                Action::Adopt => (Reason::Adopted, "adopted"),
                Action::Update => (Reason::Updated, "changed its policy in"),
                Action::Preview => (Reason::PreviewStarted, "is previewed in"),
                Action::Retain | Action::Delete => continue,
            };
            events
                .normal(self.policy, reason, format!("{done} {}", names(repositories.iter())))
                .await;
        }
        if !summary.released.is_empty() {
            let note = format!("no longer applies to {}", names(summary.released.iter()));
            events.normal(self.policy, Reason::Released, note).await;
        }
        if !summary.ran.is_empty() {
            events
                .normal(self.policy, Reason::Enforced, enforced(&summary.ran, LONGEST_NOTE))
                .await;
        }
    }

    /// Releases its repositories, or deletes the policy there if the spec says so.
    async fn release(&self) -> Result<(), Interrupted> {
        if self.policy.management_policy() == ManagementPolicy::Observe || self.policy.suspended() {
            return Ok(());
        }
        let (registry, registry_client) = registered(self.ctx, self.registry_name())?;
        let policy_run = self.policy_run(&registry, &registry_client);
        let all = chosen(&self.ctx.stores, self.policy);
        for name in self.left(&registry_client, &all).into_iter().chain(all) {
            match policy_run.release_repository(&name).await {
                Ok(Released::Repository | Released::Nothing) => {}
                Ok(Released::Outdated) => return Err(Interrupted::OUTDATED),
                Err(error @ RegistryError::Unavailable(_)) => return Err(error.into()),
                Err(RegistryError::Rejected(error)) => {
                    let error = error.with_prefix(format_args!("{name} cannot be released"));
                    return Err(RegistryError::Rejected(error).into());
                }
            }
        }
        Ok(())
    }
}

/// Sets the results in the repositories.
fn set_outcomes(status: &mut LifecyclePolicyStatus, outcomes: Vec<RepositoryOutcome>) {
    let (repositories, totals) = report(outcomes, &status.repositories);
    status.repositories = repositories;
    status.totals = Some(totals);
}

/// Returns the delay of the next reconcile. The oldest running preview was started `begun` ago.
fn next(
    begun: Option<Duration>,
    state: &ReadyState,
    before: &[Condition],
    interval: Duration,
) -> Duration {
    match begun {
        Some(elapsed) => elapsed.clamp(PREVIEW_POLL_INTERVAL.0, PREVIEW_POLL_INTERVAL.1),
        None => super::next(state, before, interval, Timestamp::now()),
    }
}

/// The results of one reconcile in all repositories.
#[derive(Default)]
struct RunSummary {
    results: LastResults,
    not_ready: Vec<ReadyState>,
    /// Corrected drift.
    drift: Vec<FieldChange>,
    /// Drift that could not be corrected.
    uncorrected_drift: Vec<FieldChange>,
    /// The number of drifted properties that were not known before.
    found: usize,
    done: BTreeMap<Action, Vec<RepositoryName>>,
    ran: Vec<(RepositoryName, RunTotals)>,
    released: Vec<RepositoryName>,
}

impl RunSummary {
    fn take(
        &mut self,
        name: &RepositoryName,
        result: RepositoryResult,
        before: Option<&LastResult>,
    ) {
        let RepositoryResult { kept, not_ready, drift, done, ran } = result;
        let differs = kept.differs;
        self.results.insert(name.clone(), kept);
        self.not_ready.extend(not_ready);
        if !before.is_some_and(|it| it.differs) {
            self.found += drift.len();
        }
        if let (Some(action), true) = (done, drift.is_empty()) {
            self.done.entry(action).or_default().push(name.clone());
        }
        if differs { &mut self.uncorrected_drift } else { &mut self.drift }.extend(drift);
        // A run that deletes nothing is no event.
        self.ran.extend(
            ran.filter(|ran| !ran.acts.is_empty()).map(|ran| (name.clone(), RunTotals::of(&ran))),
        );
    }

    fn outcomes(&self) -> Vec<RepositoryOutcome> {
        self.results.values().map(|kept| kept.outcome.clone()).collect()
    }

    /// Returns the most severe state, with the number of the others.
    fn worst(&self, registry: &str) -> Option<ReadyState> {
        let stalled = self.not_ready.iter().find(|it| matches!(it, ReadyState::Stalled(_)));
        let worst = stalled.or(self.not_ready.first())?;
        let more = self.not_ready.len() - 1;
        let cause = worst.cause();
        let message = match more {
            0 => cause.message.clone(),
            more => {
                let others = counted(more, "more repository", "more repositories");
                format!(
                    "{}; {others} of {registry} in trouble, see status.repositories",
                    cause.message
                )
            }
        };
        let cause = Cause::new(cause.reason.clone(), message);
        Some(match worst {
            ReadyState::Stalled(_) => ReadyState::Stalled(cause),
            _ => ReadyState::Reconciling(cause),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_wait_an_interval_and_previews_less() {
        let stalled =
            ReadyState::Stalled(Cause::new(Reason::of_error("LimitExceededException"), "no"));
        let waits = ReadyState::Reconciling(Cause::new(Reason::ReferenceNotFound, "no"));
        let ready = ReadyState::Ready(Cause::new(Reason::InSync, "yes"));
        let hour = Duration::from_secs(3600);
        let going_on = |seconds| Some(Duration::from_secs(seconds));
        for (begun, state, interval, expected) in [
            (None, &stalled, hour, 3600.0),
            (None, &ready, hour, 3600.0),
            (None, &waits, hour, 60.0),
            (None, &waits, Duration::from_secs(5), 5.0),
            (going_on(0), &waits, hour, 0.5),
            (going_on(4), &stalled, hour, 4.0),
            (going_on(300), &ready, hour, 30.0),
        ] {
            let pause = next(begun, state, &[], interval).as_secs_f64();
            assert!(
                (expected * 0.89..expected * 1.11).contains(&pause),
                "{pause} s, not {expected} s: {state:?}"
            );
        }
    }
}
