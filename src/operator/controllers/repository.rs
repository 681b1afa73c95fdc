//! Repository: one repository of a registry is created, kept as its manifest says, and released.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::reflector::Store;
use kube::{Api, ResourceExt as _};

use super::converge::{
    Converge, Convergence, Correction, Drift, Ending, converge, corrected, failed, observed, uncorrected,
};
use super::finish::{KindObject as _, Outcome, finish, suspend};
use super::{
    Error, KindController, LastSync, REQUEUE_WAITING, ReconcileResult, Registered, is_outdated, jittered, next,
    plan_for, refusal, registered, show, step_for,
};
use crate::context::Context;
use crate::plan_input::PlanInput;
use crate::policy_rule::{PolicyRule, own_kind};
use crate::registry_client::{Freshness, LockedRepository, RegistryError};
use crate::status::{self, Cause, ConditionSet, ReadyState};
use crate::{finalizer, triggers};
use wharfage_apply::RepositoryNeeds;
use wharfage_crd::{AdoptionPolicy, Managed as _, ManagementPolicy, Reason, Registry, Repository, RepositoryStatus};
use wharfage_domain::names::RepositoryName;
use wharfage_plan::model::{ApiError, ErrorKind, ObservedRepository, Refused};
use wharfage_plan::ownership::Ownership;
use wharfage_plan::{
    Action, Desired, FieldChange, Object, Step, desired_in_cluster, differences, on_removal, unenforced,
};

pub(crate) const RULES: &[PolicyRule] = &own_kind(&["repositories"], &["repositories/status"]);

const KIND: &str = "Repository";

/// Reconciles Repositories.
pub(crate) struct RepositoryController {
    ctx: Arc<Context>,
}

impl RepositoryController {
    pub(crate) fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }
}

impl KindController for RepositoryController {
    type Object = Repository;
    const KIND: &'static str = KIND;
    const CONCURRENCY: u16 = 32;

    fn context(&self) -> &Context {
        &self.ctx
    }

    fn store(&self) -> Store<Repository> {
        self.ctx.stores.repositories.clone()
    }

    async fn reconcile(self: Arc<Self>, repository: Arc<Repository>) -> Result<ReconcileResult, Error> {
        let ctx = &*self.ctx;
        let api = Api::namespaced(ctx.client.clone(), &repository.namespace().unwrap_or_default());
        let reconcile = RepositoryReconcile { ctx, api, repository: &repository, object: object(&repository) };
        if repository.metadata.deletion_timestamp.is_some() {
            return reconcile.cleanup().await;
        }
        if repository.suspended() {
            return suspend(ctx, &reconcile.api, &*repository).await;
        }
        match reconcile.run().await? {
            Some(outcome) => finish_repository(&reconcile, outcome).await,
            None => Ok(ReconcileResult::outdated()),
        }
    }
}

fn object(repository: &Repository) -> Object {
    Object { kind: KIND, namespace: repository.namespace().unwrap_or_default(), name: repository.name_any() }
}

/// It has a Registry, and stands so.
fn outcome(state: ReadyState, next: Duration) -> Outcome<RepositoryStatus> {
    Outcome::new(ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) }, next)
}

/// One reconcile of a Repository.
struct RepositoryReconcile<'a> {
    ctx: &'a Context,
    api: Api<Repository>,
    repository: &'a Repository,
    object: Object,
}

impl RepositoryReconcile<'_> {
    fn registry_name(&self) -> &str {
        &self.repository.spec.registry_ref.name
    }

    fn drift(&self) -> Drift<'_> {
        Drift { ctx: self.ctx, kind: KIND, registry: self.registry_name() }
    }

    /// The Registry and its client, or why there is none.
    fn registry(&self) -> Result<Registered, Box<Outcome<RepositoryStatus>>> {
        registered(self.ctx, self.registry_name())
            .map_err(|findings| Box::new(Outcome::new(*findings, jittered(REQUEUE_WAITING))))
    }

    /// Nothing if the resource is another one by now.
    async fn run(&self) -> Result<Option<Outcome<RepositoryStatus>>, Error> {
        let (registry, registry_client) = match self.registry() {
            Ok(found) => found,
            Err(outcome) => return Ok(Some(*outcome)),
        };
        let interval = self.repository.interval();
        let name = match self.repository.repository_name() {
            Ok(name) => name,
            Err(error) => {
                let cause = Cause::new(Reason::InvalidParameterException, format!("{error}: set repositoryName"));
                return Ok(Some(outcome(ReadyState::Stalled(cause), jittered(interval))));
            }
        };
        let observe = self.repository.management_policy() == ManagementPolicy::Observe;
        if !observe {
            finalizer::add(&self.api, self.repository).await?;
        }
        let mut held = registry_client.repository(&name).await;
        let freshness = Freshness { interval, now: self.repository.requested().is_some() };
        let looked = if observe {
            self.observe(&registry, &name, &mut held, freshness).await
        } else {
            self.manage(&registry, &name, &mut held, freshness).await
        };
        let mut findings = match looked {
            Ok(Some(findings)) => findings,
            Ok(None) => return Ok(None),
            Err(trouble) => return Ok(Some(self.failed(&trouble))),
        };
        findings.references = Some(Ok(()));
        let (mut listed, mut images) = (None, None);
        if !matches!(findings.state, ReadyState::Stalled(_)) {
            listed = held.as_listed();
            if listed.is_some() {
                match held.usage(freshness).await {
                    Ok(usage) => images = Some(usage),
                    Err(trouble @ RegistryError::Unavailable(_)) => return Ok(Some(self.failed(&trouble))),
                    // Counting images takes a permission of its own: a registry that does not give it is not counted.
                    Err(RegistryError::Rejected(error)) => tracing::debug!(%name, %error, "images cannot be counted"),
                }
            }
        }
        let next = next(&findings.state, self.repository.conditions(), interval, Timestamp::now());
        let update = move |status: &mut RepositoryStatus| {
            if let Some(listed) = listed {
                status.repository_arn = Some(listed.arn);
                status.repository_uri = Some(listed.uri);
                status.registry_id = Some(listed.registry_id);
            }
            if let Some(images) = images {
                status.image_count = Some(images.images);
                status.image_size_bytes = Some(images.bytes);
                status.finding_severity_counts = images.findings;
            }
        };
        Ok(Some(Outcome::new(findings, next).with_status(update)))
    }

    /// The registry did not do what was asked.
    fn failed(&self, trouble: &RegistryError) -> Outcome<RepositoryStatus> {
        let (state, next) =
            failed(trouble, self.registry_name(), self.repository.conditions(), self.repository.interval());
        outcome(state, next)
    }

    /// What is wanted of this name, by whoever asks for it; nothing if this resource is another one by now.
    fn wanted(&self, registry: &Registry, name: &RepositoryName) -> Option<Desired> {
        let input = PlanInput::new(&self.ctx.stores, &self.ctx.registry_clients, registry, name);
        // Whatever the input was made of, a change of this resource that is in it is seen here.
        let outdated = is_outdated(&self.ctx.stores.repositories, self.repository);
        (!outdated).then(|| desired_in_cluster(&input, registry, &self.ctx.settings.cluster))
    }

    fn needs(&self) -> RepositoryNeeds {
        RepositoryNeeds { policy: self.repository.spec.repository_policy.is_some(), ..RepositoryNeeds::default() }
    }

    /// What is there. Where nothing is made that is not there, a listing that is a while old does not do.
    async fn observe_repository(
        &self,
        held: &mut LockedRepository,
        freshness: Freshness,
    ) -> Result<Option<ObservedRepository>, RegistryError> {
        let found = held.observe(self.needs(), freshness).await?;
        let makes = self.repository.management_policy() == ManagementPolicy::Full
            && self.repository.adoption_policy() != AdoptionPolicy::Adopt;
        match found {
            None if !makes => held.observe(self.needs(), Freshness { now: true, ..freshness }).await,
            found => Ok(found),
        }
    }

    async fn manage(
        &self,
        registry: &Registry,
        name: &RepositoryName,
        held: &mut LockedRepository,
        freshness: Freshness,
    ) -> Result<Option<ConditionSet>, RegistryError> {
        let past = self.repository.past();
        let found = self.observe_repository(held, freshness).await?;
        let rules = ManagedRepository { reconcile: self, registry, name, past };
        let Convergence { executed, ending, .. } = converge(&rules, held, freshness, found).await;
        for Correction { step, is_drift } in &executed {
            self.emit_events(step, is_drift.then_some(past)).await;
        }
        match ending {
            Ending::InSync => {}
            Ending::Outdated => return Ok(None),
            Ending::Refused(refused) => return Ok(Some(ConditionSet::of(refusal(&refused)))),
            Ending::Failed(Correction { step, is_drift: true }, trouble) => {
                return Ok(Some(self.uncorrected(&trouble, &step, past)));
            }
            Ending::Failed(_, trouble) | Ending::Unread(trouble) => return Err(trouble),
        }
        let Some(desired) = self.wanted(registry, name) else { return Ok(None) };
        let wanted = desired.repositories.iter().find(|it| it.object == self.object);
        let notes = wanted.map(|wanted| unenforced(registry, wanted)).unwrap_or_default();
        let message = format!("{name} in {} is as this resource says", registry.name_any());
        let mut findings = ConditionSet::of(ReadyState::Ready(Cause::new(Reason::InSync, message)).with_notes(&notes));
        let drift = executed.iter().rfind(|it| it.is_drift).map(|it| drifted(&it.step)).unwrap_or_default();
        findings.drifted = Some(corrected(past, self.repository.conditions(), &drift));
        Ok(Some(findings))
    }

    /// Somebody else changed the repository, and the step failed to correct it.
    fn uncorrected(&self, trouble: &RegistryError, step: &Step, past: LastSync) -> ConditionSet {
        if past == LastSync::InSync {
            self.drift().detected(drifted(step).len());
        }
        let interval = self.repository.interval();
        let (state, _) = failed(trouble, self.registry_name(), self.repository.conditions(), interval);
        ConditionSet { drifted: Some(uncorrected(&drifted(step))), ..ConditionSet::of(state) }
    }

    async fn observe(
        &self,
        registry: &Registry,
        name: &RepositoryName,
        held: &mut LockedRepository,
        freshness: Freshness,
    ) -> Result<Option<ConditionSet>, RegistryError> {
        let found = self.observe_repository(held, freshness).await?;
        let Some(desired) = self.wanted(registry, name) else { return Ok(None) };
        if let Err(refused) = step_for(plan_for(&desired, name, found.clone()), &self.object) {
            return Ok(Some(ConditionSet::of(refusal(&refused))));
        }
        let wanted = desired.repositories.iter().find(|it| it.object == self.object);
        let changes = match (wanted, found) {
            (Some(wanted), Some(found)) => differences(wanted, &found),
            _ => Vec::new(),
        };
        let message = format!("{name} in {} is observed, and never changed", registry.name_any());
        let findings = ConditionSet::of(ReadyState::Ready(Cause::new(Reason::Observed, message)));
        Ok(Some(ConditionSet { drifted: Some(observed(&changes)), ..findings }))
    }

    /// Emits the event of an executed step. `drift` is what was known before of a resource whose drift the step corrected.
    async fn emit_events(&self, step: &Step, drift: Option<LastSync>) {
        let events = &self.ctx.events;
        let name = step.key.name().map(str::to_owned).unwrap_or_default();
        let changes = if step.changes.is_empty() { String::new() } else { format!(": {}", show(&step.changes)) };
        if let Some(past) = drift {
            self.drift().corrected(past, drifted(step).len());
            let note = format!("drift of {name} was corrected{changes}");
            events.warning(self.repository, Reason::DriftCorrected, note).await;
            return;
        }
        let (reason, done) = match step.action {
            Action::Create => (Reason::Created, "created"),
            Action::Adopt => (Reason::Adopted, "adopted"),
            Action::Delete => (Reason::Deleted, "deleted"),
            Action::Retain => (Reason::Retained, "released, and stays in the registry"),
            Action::Update | Action::Preview => (Reason::Updated, "updated"),
        };
        events.normal(self.repository, reason, format!("{name} was {done}{changes}")).await;
    }

    /// The resource is being deleted: its repository is released, or deleted if it says so.
    async fn cleanup(&self) -> Result<ReconcileResult, Error> {
        if !finalizer::has(self.repository) {
            return Ok(ReconcileResult::resting());
        }
        let deletes = self.repository.deletes() && !self.repository.suspended();
        match self.release().await {
            Ok(true) => {}
            Ok(false) => return Ok(ReconcileResult::outdated()),
            Err(outcome) if deletes => return finish_repository(self, *outcome).await,
            Err(outcome) => {
                // What stays in the registry needs no word from it: what could not be untagged there is nobody's all the same,
                // once this resource is gone.
                let why = &outcome.findings.state.cause().message;
                tracing::info!(object = %self.object, why, "released without the registry");
            }
        }
        finalizer::remove(&self.api, self.repository).await?;
        Ok(ReconcileResult::resting())
    }

    /// Releases its repository, or deletes it; false if what the resource says changed meanwhile, and nothing was done.
    async fn release(&self) -> Result<bool, Box<Outcome<RepositoryStatus>>> {
        if self.repository.management_policy() == ManagementPolicy::Observe || self.repository.suspended() {
            return Ok(true);
        }
        let (registry, registry_client) = self.registry()?;
        let Ok(name) = self.repository.repository_name() else { return Ok(true) };
        let mut held = registry_client.repository(&name).await;
        let freshness = Freshness { interval: self.repository.interval(), now: true };
        let looked = held.observe(RepositoryNeeds::default(), freshness).await;
        let mut found = looked.map_err(|trouble| Box::new(self.failed(&trouble)))?;
        if let Some(found) = &mut found {
            // The tags say what the manifest said of its removal when it was last applied; it may have been changed since.
            let mut ownership = Ownership::read(&found.tags);
            ownership.manages.on_removal = on_removal(self.repository);
            found.tags.extend(ownership.tags());
        }
        // It is among those that are wanted no more, as it is being deleted.
        let Some(mut desired) = self.wanted(&registry, &name) else { return Ok(false) };
        desired.declared.remove(&self.object);
        let steps = plan_for(&desired, &name, found).steps;
        for step in steps.into_iter().filter(|it| it.object == self.object) {
            held.execute(&step).await.map_err(|trouble| Box::new(self.failed(&trouble)))?;
            self.emit_events(&step, None).await;
        }
        Ok(true)
    }
}

/// What a Repository asks of its repository.
struct ManagedRepository<'a> {
    reconcile: &'a RepositoryReconcile<'a>,
    registry: &'a Registry,
    name: &'a RepositoryName,
    past: LastSync,
}

impl Converge for ManagedRepository<'_> {
    fn needs(&self) -> RepositoryNeeds {
        self.reconcile.needs()
    }

    fn decide(&self, found: Option<ObservedRepository>) -> Option<Result<Option<Step>, Refused>> {
        let desired = self.reconcile.wanted(self.registry, self.name)?;
        Some(step_for(plan_for(&desired, self.name, found), &self.reconcile.object))
    }

    fn must_refresh(&self, step: &Step, _found: Option<&ObservedRepository>) -> bool {
        step.action != Action::Create
    }

    fn is_stale(&self, error: &ApiError) -> bool {
        matches!(error.kind, ErrorKind::RepositoryAlreadyExists | ErrorKind::RepositoryNotFound)
    }

    fn is_drift(&self, _step: &Step, _found: Option<&ObservedRepository>) -> bool {
        self.past.is_drift()
    }

    fn must_verify(&self, step: &Step) -> bool {
        // Two clusters may adopt it at the same moment: the tags say who has it now.
        step.action == Action::Adopt
    }
}

/// Writes the status, and requeues the lifecycle policies that waited for the Repository.
async fn finish_repository(
    reconcile: &RepositoryReconcile<'_>,
    outcome: Outcome<RepositoryStatus>,
) -> Result<ReconcileResult, Error> {
    let RepositoryReconcile { ctx, api, repository, .. } = reconcile;
    let is_ready = matches!(outcome.findings.state, ReadyState::Ready(_));
    let done = finish(ctx, api, *repository, outcome).await?;
    if is_ready && !status::is_ready(repository.conditions()) {
        triggers::repository_ready(&ctx.stores, &ctx.triggers, repository);
    }
    Ok(done)
}

/// What somebody else had changed, if the step corrects drift.
fn drifted(step: &Step) -> Vec<FieldChange> {
    if step.changes.is_empty() {
        return vec![FieldChange { field: "ownership tags".to_owned(), from: None, to: None }];
    }
    step.changes.clone()
}
