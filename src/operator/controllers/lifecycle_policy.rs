//! LifecyclePolicy: put to the repositories that it chooses, previewed there, or, where images that run are to be kept, carried
//! out by the operator itself.

mod outcome;
mod per_repository;
mod result_cache;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::reflector::Store;
use kube::{Api, ResourceExt as _};

use super::converge::{Drift, corrected, failed, observed, uncorrected};
use super::finish::{KindObject as _, Outcome, finish, suspend};
use super::{
    Error, KindController, LastSync, REQUEUE_WAITING, ReconcileResult, Registered, jittered, refused_by_registry,
    registered, show,
};
use crate::context::Context;
use crate::events::LONGEST_NOTE;
use crate::policy_rule::{PolicyRule, own_kind};
use crate::registry_client::{Freshness, RegistryClient, RegistryError, Unavailable};
use crate::status::{Cause, ConditionSet, ReadyState};
use crate::watch::Change;
use crate::{finalizer, in_use};
use outcome::{Went, counted, enforced, names, only, told};
use per_repository::{PolicyRun, Released, RepositoryResult};
use result_cache::{LastResult, LastResults, ResultCache};
use wharfage_crd::lifecycle_policy::{Mode, OutcomeState, RepositoryOutcome};
use wharfage_crd::{
    Condition, DeletionPolicy, LifecyclePolicy, LifecyclePolicyStatus, Managed as _, ManagementPolicy, Reason, Registry,
};
use wharfage_domain::lifecycle::Policy;
use wharfage_domain::names::RepositoryName;
use wharfage_plan::{Action, FieldChange, Object};

pub(crate) const RULES: &[PolicyRule] = &own_kind(&["lifecyclepolicies"], &["lifecyclepolicies/status"]);

const KIND: &str = "LifecyclePolicy";

/// How soon a preview that goes on is reconciled again, and how late at most.
const PREVIEW_POLL_INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Reconciles LifecyclePolicies.
pub(crate) struct LifecyclePolicyController {
    ctx: Arc<Context>,
    /// The last results in the repositories of each policy.
    results: ResultCache,
    /// Caches of in-use protection.
    in_use: in_use::run::Shared,
}

impl LifecyclePolicyController {
    pub(crate) fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, results: ResultCache::default(), in_use: in_use::run::Shared::default() }
    }

    /// Forgets a policy that is gone.
    pub(crate) fn changed(&self, change: &Change<LifecyclePolicy>) {
        if let Some(uid) = change.deleted_uid() {
            self.results.forget(uid);
        }
    }
}

impl KindController for LifecyclePolicyController {
    type Object = LifecyclePolicy;
    const KIND: &'static str = KIND;
    const CONCURRENCY: u16 = 8;

    fn context(&self) -> &Context {
        &self.ctx
    }

    fn store(&self) -> Store<LifecyclePolicy> {
        self.ctx.stores.lifecycle_policies.clone()
    }

    async fn reconcile(self: Arc<Self>, policy: Arc<LifecyclePolicy>) -> Result<ReconcileResult, Error> {
        let namespace = policy.namespace().unwrap_or_default();
        let api = Api::namespaced(self.ctx.client.clone(), &namespace);
        let object = Object { kind: KIND, namespace, name: policy.name_any() };
        let (ctx, results, in_use) = (&*self.ctx, &self.results, &self.in_use);
        let reconcile = PolicyReconcile { ctx, results, in_use, api, policy: &policy, object };
        if policy.metadata.deletion_timestamp.is_some() {
            return reconcile.cleanup().await;
        }
        if policy.suspended() {
            return suspend(ctx, &reconcile.api, &*policy).await;
        }
        match reconcile.run().await? {
            Some(outcome) => finish(ctx, &reconcile.api, &*policy, outcome).await,
            None => Ok(ReconcileResult::outdated()),
        }
    }
}

/// One reconcile of a LifecyclePolicy.
struct PolicyReconcile<'a> {
    ctx: &'a Context,
    results: &'a ResultCache,
    in_use: &'a in_use::run::Shared,
    api: Api<LifecyclePolicy>,
    policy: &'a LifecyclePolicy,
    object: Object,
}

impl PolicyReconcile<'_> {
    fn generation(&self) -> Option<i64> {
        self.policy.metadata.generation
    }

    fn uid(&self) -> &str {
        self.policy.metadata.uid.as_deref().unwrap_or_default()
    }

    fn registry_name(&self) -> &str {
        &self.policy.spec.registry_ref.name
    }

    /// The Registry and its client, or why there is none.
    fn registry(&self) -> Result<Registered, Box<ConditionSet>> {
        registered(self.ctx, self.registry_name()).map_err(|mut findings| {
            // A Registry that is there need not be ready to tell whether the Repository is.
            findings.references = findings.references.map(|it| it.and_then(|()| self.references(&self.chosen())));
            findings
        })
    }

    /// The repositories that it is for, as its namespace has them now.
    fn chosen(&self) -> BTreeSet<RepositoryName> {
        let chosen = self.ctx.stores.repositories_chosen_by(self.policy);
        let stay = chosen.iter().filter(|it| it.metadata.deletion_timestamp.is_none());
        stay.filter_map(|it| it.repository_name().ok()).collect()
    }

    /// The repositories that it has, or may have had, and is for no more.
    fn left(&self, registry_client: &RegistryClient, chosen: &BTreeSet<RepositoryName>) -> BTreeSet<RepositoryName> {
        let told = self
            .policy
            .status_or_default()
            .repositories
            .into_iter()
            .filter_map(|it| it.name.parse().ok())
            .collect::<Vec<_>>();
        let cluster = &self.ctx.settings.cluster;
        let tagged = registry_client.governed_by(|owner| owner.is(cluster, &self.object));
        let had = told.into_iter().chain(self.results.had(self.uid())).chain(tagged);
        had.filter(|name| !chosen.contains(name)).collect()
    }

    fn policy_run<'a>(&'a self, registry: &'a Registry, registry_client: &'a Arc<RegistryClient>) -> PolicyRun<'a> {
        let document = self.policy.document();
        let asked = self.policy.requested();
        PolicyRun {
            ctx: self.ctx,
            in_use: self.in_use,
            policy: self.policy,
            object: &self.object,
            registry,
            registry_client,
            rules: Policy::from_value(&document).ok(),
            document,
            freshness: Freshness { interval: self.policy.interval(), now: asked.is_some() },
            asked,
            past: self.policy.past(),
        }
    }

    /// Nothing if the policy is another one by now.
    async fn run(&self) -> Result<Option<Outcome<LifecyclePolicyStatus>>, Error> {
        let (registry, registry_client) = match self.registry() {
            Ok(found) => found,
            Err(findings) => return Ok(Some(Outcome::new(*findings, jittered(REQUEUE_WAITING)))),
        };
        if self.policy.management_policy() == ManagementPolicy::Full {
            finalizer::add(&self.api, self.policy).await?;
        }
        let policy_run = self.policy_run(&registry, &registry_client);
        let chosen = self.chosen();
        let mut summary = RunSummary::default();
        if self.policy.management_policy() == ManagementPolicy::Full {
            for name in self.left(&registry_client, &chosen) {
                match policy_run.release_repository(&name).await {
                    Ok(Released::Repository) => summary.released.push(name),
                    Ok(Released::Nothing) => {}
                    Ok(Released::Outdated) => return self.outdated(&summary).await,
                    Err(RegistryError::Unavailable(unavailable)) => return Ok(Some(self.unavailable(&unavailable))),
                    Err(RegistryError::Rejected(error)) => {
                        let error = error.with_prefix(format_args!("{name} cannot be released"));
                        summary.troubles.push(refused_by_registry(error));
                    }
                }
            }
        }
        if let Some(missing) = self.missing(&chosen) {
            let findings = ConditionSet {
                references: Some(Err(missing.clone())),
                ..ConditionSet::of(ReadyState::Reconciling(missing))
            };
            self.results.remember(self.uid(), self.generation(), LastResults::new());
            return Ok(Some(
                Outcome::new(findings, jittered(REQUEUE_WAITING)).with_status(|status| tell(status, Vec::new())),
            ));
        }
        let before = self.results.recall(self.uid(), self.generation(), &self.policy.status_or_default());
        for name in &chosen {
            match policy_run.run(name, before.get(name)).await {
                Ok(Some(turn)) => summary.take(name, turn, before.get(name)),
                Ok(None) => return self.outdated(&summary).await,
                Err(unavailable) => {
                    // What is known of the others stays.
                    for name in chosen.iter().filter(|name| !summary.results.contains_key(*name)).collect::<Vec<_>>() {
                        let known = before.get(name).cloned();
                        let kept = known.unwrap_or_else(|| LastResult::new(only(name, OutcomeState::Pending)));
                        summary.results.insert(name.clone(), kept);
                    }
                    self.emit_events(&summary).await;
                    let outcomes = summary.outcomes();
                    self.results.remember(self.uid(), self.generation(), summary.results);
                    let outcome = self.unavailable(&unavailable);
                    return Ok(Some(outcome.with_status(|status| tell(status, outcomes))));
                }
            }
        }
        self.emit_events(&summary).await;
        let outcome = self.summarize(&summary, policy_run.past);
        self.results.remember(self.uid(), self.generation(), summary.results);
        Ok(Some(outcome))
    }

    /// The policy is another one by now: what was done for it until then is told, as the next look finds it done.
    async fn outdated(&self, summary: &RunSummary) -> Result<Option<Outcome<LifecyclePolicyStatus>>, Error> {
        self.emit_events(summary).await;
        Ok(None)
    }

    /// What `repositoryRef` names, if it isn't there.
    fn missing(&self, chosen: &BTreeSet<RepositoryName>) -> Option<Cause> {
        let reference = self.policy.spec.repository_ref.as_ref().filter(|_| chosen.is_empty())?;
        let message = format!(
            "Repository {}/{} does not exist in Registry {}: make it, or correct repositoryRef",
            self.object.namespace,
            reference.name,
            self.registry_name()
        );
        Some(Cause::new(Reason::ReferenceNotFound, message))
    }

    /// Whether all that it names is there, once its Registry is.
    fn references(&self, chosen: &BTreeSet<RepositoryName>) -> Result<(), Cause> {
        self.missing(chosen).map_or(Ok(()), Err)
    }

    /// The registry is unavailable.
    fn unavailable(&self, unavailable: &Unavailable) -> Outcome<LifecyclePolicyStatus> {
        let (state, next) = super::unavailable(unavailable, self.registry_name());
        let findings = ConditionSet { references: Some(self.references(&self.chosen())), ..ConditionSet::of(state) };
        Outcome::new(findings, next)
    }

    /// How the policy stands when all its repositories had their turn.
    fn summarize(&self, summary: &RunSummary, past: LastSync) -> Outcome<LifecyclePolicyStatus> {
        let state = summary.worst(&self.policy.spec.registry_ref.name).unwrap_or_else(|| {
            let pending = summary.results.values().filter(|it| it.outcome.state == OutcomeState::Pending).count();
            if pending > 0 && self.policy.management_policy() == ManagementPolicy::Full {
                let all = counted(summary.results.len(), "repository", "repositories");
                let message = format!("the registry still evaluates the policy for {pending} of {all}");
                return ReadyState::Reconciling(Cause::new(Reason::Previewing, message));
            }
            ReadyState::Ready(Cause::new(self.reason(), self.in_words(summary)))
        });
        let mut findings = ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) };
        findings.drifted = self.drifted(summary, past);
        let begun = summary.results.values().filter_map(|it| it.begun).map(|begun| begun.elapsed()).max();
        let next = next(begun, &findings.state, self.policy.conditions(), self.policy.interval());
        let outcomes = summary.outcomes();
        let mut outcome = Outcome::new(findings, next).with_status(|status| tell(status, outcomes));
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
            (ManagementPolicy::Observe, ..) => format!("observed in {repositories}, and never changed"),
            (_, Mode::Preview, _) => format!("previewed in {repositories}: nothing is deleted"),
            (_, Mode::Enforce, false) => format!("put to {repositories}"),
            (_, Mode::Enforce, true) => {
                format!("enforced by the operator in {repositories}; what runs in other clusters is not seen")
            }
        }
    }

    fn drifted(&self, summary: &RunSummary, past: LastSync) -> Option<(bool, Cause)> {
        let RunSummary { drift, uncorrected_drift, troubles, .. } = summary;
        if self.policy.management_policy() == ManagementPolicy::Observe {
            return Some(observed(drift));
        }
        if !uncorrected_drift.is_empty() {
            return Some(uncorrected(uncorrected_drift));
        }
        if drift.is_empty() && past == LastSync::Drifted && !troubles.is_empty() {
            // Whether it is corrected by now could not be read.
            return None;
        }
        Some(corrected(past, self.policy.conditions(), drift))
    }

    /// Emits one event for each sort of thing that was done, however many repositories.
    async fn emit_events(&self, summary: &RunSummary) {
        let events = &self.ctx.events;
        if self.policy.management_policy() == ManagementPolicy::Full {
            let drift = Drift { ctx: self.ctx, kind: KIND, registry: self.registry_name() };
            drift.detected(summary.found);
            if !summary.drift.is_empty() {
                // Detected above, together with what could not be corrected.
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
            events.normal(self.policy, reason, format!("{done} {}", names(repositories.iter()))).await;
        }
        if !summary.released.is_empty() {
            let note = format!("no longer applies to {}", names(summary.released.iter()));
            events.normal(self.policy, Reason::Released, note).await;
        }
        if !summary.ran.is_empty() {
            events.normal(self.policy, Reason::Enforced, enforced(&summary.ran, LONGEST_NOTE)).await;
        }
    }

    /// The resource is being deleted: its repositories are released, and lose the policy if it says so.
    async fn cleanup(&self) -> Result<ReconcileResult, Error> {
        if !finalizer::has(self.policy) {
            return Ok(ReconcileResult::resting());
        }
        let deletes = self.policy.deletion_policy() == DeletionPolicy::Delete && !self.policy.suspended();
        match self.release().await {
            Ok(true) => {}
            Ok(false) => return Ok(ReconcileResult::outdated()),
            Err(outcome) if deletes => return finish(self.ctx, &self.api, self.policy, outcome).await,
            Err(outcome) => {
                // What stays in the registry needs no word from it: a tag of a policy that is gone holds nobody up.
                let why = &outcome.findings.state.cause().message;
                tracing::info!(object = %self.object, why, "released without the registry");
            }
        }
        finalizer::remove(&self.api, self.policy).await?;
        Ok(ReconcileResult::resting())
    }

    /// Releases its repositories; false if what the policy says changed meanwhile, and not all were released.
    async fn release(&self) -> Result<bool, Outcome<LifecyclePolicyStatus>> {
        if self.policy.management_policy() == ManagementPolicy::Observe || self.policy.suspended() {
            return Ok(true);
        }
        let (registry, registry_client) =
            self.registry().map_err(|findings| Outcome::new(*findings, jittered(REQUEUE_WAITING)))?;
        let policy_run = self.policy_run(&registry, &registry_client);
        let all = self.chosen();
        for name in self.left(&registry_client, &all).into_iter().chain(all) {
            match policy_run.release_repository(&name).await {
                Ok(Released::Repository | Released::Nothing) => {}
                Ok(Released::Outdated) => return Ok(false),
                Err(RegistryError::Unavailable(unavailable)) => return Err(self.unavailable(&unavailable)),
                Err(RegistryError::Rejected(error)) => {
                    let trouble = RegistryError::Rejected(error.with_prefix(format_args!("{name} cannot be released")));
                    let (conditions, interval) = (self.policy.conditions(), self.policy.interval());
                    let (state, next) = failed(&trouble, self.registry_name(), conditions, interval);
                    return Err(Outcome::new(ConditionSet::of(state), next));
                }
            }
        }
        Ok(true)
    }
}

/// Sets what the policy came to in its repositories.
fn tell(status: &mut LifecyclePolicyStatus, outcomes: Vec<RepositoryOutcome>) {
    let (repositories, totals) = told(outcomes, &status.repositories);
    status.repositories = repositories;
    status.totals = Some(totals);
}

/// When to look again, `begun` ago the oldest preview that goes on was started.
fn next(begun: Option<Duration>, state: &ReadyState, before: &[Condition], interval: Duration) -> Duration {
    match begun {
        Some(elapsed) => elapsed.clamp(PREVIEW_POLL_INTERVAL.0, PREVIEW_POLL_INTERVAL.1),
        None => super::next(state, before, interval, Timestamp::now()),
    }
}

/// The results of one reconcile in all repositories.
#[derive(Default)]
struct RunSummary {
    results: LastResults,
    troubles: Vec<ReadyState>,
    /// What somebody else had changed, and what is corrected.
    drift: Vec<FieldChange>,
    /// What somebody else had changed, and what could not be corrected.
    uncorrected_drift: Vec<FieldChange>,
    /// How much of both was not known before.
    found: usize,
    done: BTreeMap<Action, Vec<RepositoryName>>,
    ran: Vec<(RepositoryName, Went)>,
    released: Vec<RepositoryName>,
}

impl RunSummary {
    fn take(&mut self, name: &RepositoryName, turn: RepositoryResult, before: Option<&LastResult>) {
        let RepositoryResult { kept, trouble, drift, done, ran } = turn;
        let differs = kept.differs;
        self.results.insert(name.clone(), kept);
        self.troubles.extend(trouble);
        if !before.is_some_and(|it| it.differs) {
            self.found += drift.len();
        }
        if let (Some(action), true) = (done, drift.is_empty()) {
            self.done.entry(action).or_default().push(name.clone());
        }
        if differs { &mut self.uncorrected_drift } else { &mut self.drift }.extend(drift);
        // What only found that nothing is to go is no event.
        self.ran.extend(ran.filter(|ran| !ran.acts.is_empty()).map(|ran| (name.clone(), Went::of(&ran))));
    }

    fn outcomes(&self) -> Vec<RepositoryOutcome> {
        self.results.values().map(|kept| kept.outcome.clone()).collect()
    }

    /// The trouble that needs somebody most, and how many others there are.
    fn worst(&self, registry: &str) -> Option<ReadyState> {
        let stalled = self.troubles.iter().find(|it| matches!(it, ReadyState::Stalled(_)));
        let worst = stalled.or(self.troubles.first())?;
        let more = self.troubles.len() - 1;
        let cause = worst.cause();
        let message = match more {
            0 => cause.message.clone(),
            more => {
                let others = counted(more, "more repository", "more repositories");
                format!("{}; {others} of {registry} in trouble, see status.repositories", cause.message)
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
    fn what_is_refused_is_tried_once_in_an_interval_and_a_preview_is_looked_at_sooner() {
        let stalled = ReadyState::Stalled(Cause::new(Reason::of_error("LimitExceededException"), "no"));
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
            assert!((expected * 0.89..expected * 1.11).contains(&pause), "{pause} s, not {expected} s: {state:?}");
        }
    }
}
