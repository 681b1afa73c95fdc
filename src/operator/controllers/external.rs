//! The steps of kinds that stand for one object in a registry: plan, converge, observe, release. A
//! kind supplies the object's name, its lock, and the pure decision.

use std::fmt::Display;
use std::sync::Arc;

use jiff::Timestamp;

use super::converge::{
    Converge, Converged, Convergence, Correction, LockedObject, converge, corrected, failed,
    observed, uncorrected,
};
use super::finish::{Outcome, Update};
use super::interrupted::Interrupted;
use super::reconcile::{Reconcile, Reconciler, Status};
use super::{KindController, LastSync, next, registered, show, step_for};
use crate::kind::Kind;
use crate::registry_client::{Freshness, RegistryClient, RegistryError};
use crate::status::{Cause, ConditionSet, ReadyState};
use wharfage_crd::{AdoptionPolicy, DeletionPolicy, Managed, ManagementPolicy, Reason, Registry};
use wharfage_plan::model::{ApiError, Refused};
use wharfage_plan::{Action, Desired, FieldChange, Object, Plan, Step};

type Needs<C> = <<C as ExternalKind>::Locked as LockedObject>::Needs;
type Observed<C> = <<C as ExternalKind>::Locked as LockedObject>::Observed;

/// The controller of a kind that represents one object in a registry.
pub(crate) trait ExternalKind: KindController<Kind: Managed> {
    /// The name of the object in the registry.
    type Name: Display + Clone + Send + Sync;
    /// The object, locked for one reconcile.
    type Locked: LockedObject + Sync;

    /// Reads the object's name from the spec.
    fn name(object: &Self::Kind) -> Result<Self::Name, Cause>;

    fn lock(
        client: &Arc<RegistryClient>,
        name: &Self::Name,
    ) -> impl Future<Output = Self::Locked> + Send;

    /// Returns the parts of the object that must be read.
    fn needs(object: &Self::Kind) -> Needs<Self>;

    /// Collects the resources that claim this name, from the stores.
    fn desired(&self, registry: &Registry, name: &Self::Name) -> Desired;

    /// Decides, without I/O.
    fn plan(desired: &Desired, name: &Self::Name, found: Option<Observed<Self>>) -> Plan;

    /// Returns the differences between the object and a resource that only observes it.
    fn differences(
        desired: &Desired,
        resource: &Object,
        found: Option<&Observed<Self>>,
    ) -> Vec<FieldChange>;

    /// Returns what of the spec this registry does not enforce.
    fn notes(_registry: &Registry, _desired: &Desired, _resource: &Object) -> Vec<String> {
        Vec::new()
    }

    /// Returns whether an error means that the listing was stale.
    fn is_stale(error: &ApiError) -> bool;

    /// Sets the removal policy of the spec in an object that is about to be released: its tags have
    /// that of the last apply.
    fn prepare_release(_object: &Self::Kind, _found: &mut Observed<Self>) {}

    /// Returns whether the object is deleted with its resource.
    fn deletes(object: &Self::Kind) -> bool {
        object.deletion_policy() == DeletionPolicy::Delete
    }

    /// Reads the kind's own status fields, after the object is as the spec asks.
    fn read_status(
        locked: &mut Self::Locked,
        freshness: Freshness,
    ) -> impl Future<Output = Result<Update<Status<Self>>, RegistryError>> + Send;
}

/// The referenced objects of a kind that represents one object in a registry.
pub(crate) struct ExternalInputs<N> {
    registry: Arc<Registry>,
    client: Arc<RegistryClient>,
    name: N,
}

impl<C: ExternalKind> Reconciler for C {
    type Inputs = ExternalInputs<C::Name>;

    fn dereference(&self, reconcile: &Reconcile<'_, C::Kind>) -> Result<Self::Inputs, Interrupted> {
        let (registry, client) = registered(self.context(), reconcile.registry_name())?;
        let name = C::name(reconcile.object).map_err(Interrupted::Invalid)?;
        Ok(ExternalInputs { registry, client, name })
    }

    fn needs_finalizer(&self, object: &C::Kind) -> bool {
        object.management_policy() != ManagementPolicy::Observe
    }

    async fn apply(
        &self,
        reconcile: &Reconcile<'_, C::Kind>,
        inputs: Self::Inputs,
    ) -> Result<Outcome<Status<C>>, Interrupted> {
        let ExternalInputs { registry, client, name } = inputs;
        let object = reconcile.object;
        let mut locked = C::lock(&client, &name).await;
        let external = External { controller: self, reconcile, registry: &registry, name: &name };
        let mut findings = match object.management_policy() {
            ManagementPolicy::Observe => external.observe(&mut locked).await?,
            ManagementPolicy::Full => external.manage(&mut locked).await?,
        };
        findings.references = Some(Ok(()));
        let delay =
            next(&findings.state, object.conditions(), object.sync_interval(), Timestamp::now());
        let is_stalled = matches!(findings.state, ReadyState::Stalled(_));
        let outcome = Outcome::new(findings, delay);
        if is_stalled {
            return Ok(outcome);
        }
        Ok(outcome.with_status(C::read_status(&mut locked, reconcile.freshness()).await?))
    }

    async fn release(&self, reconcile: &Reconcile<'_, C::Kind>) -> Result<(), Interrupted> {
        let object = reconcile.object;
        if object.management_policy() == ManagementPolicy::Observe || object.is_suspended() {
            return Ok(());
        }
        let (registry, client) = registered(self.context(), reconcile.registry_name())?;
        let Ok(name) = C::name(object) else { return Ok(()) };
        let mut locked = C::lock(&client, &name).await;
        let external = External { controller: self, reconcile, registry: &registry, name: &name };
        let freshness = Freshness { now: true, ..reconcile.freshness() };
        let mut found = locked.observe(Needs::<C>::default(), freshness).await?;
        if let Some(found) = &mut found {
            C::prepare_release(object, found);
        }
        let Some(mut desired) = external.desired() else { return Err(Interrupted::OUTDATED) };
        desired.declared.remove(&reconcile.id);
        let steps = C::plan(&desired, &name, found).steps;
        for step in steps.into_iter().filter(|it| it.object == reconcile.id) {
            locked.execute(&step).await?;
            external.emit_event(&step, None).await;
        }
        Ok(())
    }

    fn must_release(&self, object: &C::Kind) -> bool {
        C::deletes(object)
    }
}

/// One resource and its object in a registry.
struct External<'a, C: ExternalKind> {
    controller: &'a C,
    reconcile: &'a Reconcile<'a, C::Kind>,
    registry: &'a Registry,
    name: &'a C::Name,
}

impl<C: ExternalKind> External<'_, C> {
    /// Collects the resources that claim the name; nothing if this one changed since the reconcile
    /// began.
    fn desired(&self) -> Option<Desired> {
        let desired = self.controller.desired(self.registry, self.name);
        (!self.reconcile.is_outdated()).then_some(desired)
    }

    /// Reads the object. If the resource waits for an object that it does not create, an old
    /// listing is not enough.
    async fn read(&self, locked: &mut C::Locked) -> Result<Option<Observed<C>>, RegistryError> {
        let (object, freshness) = (self.reconcile.object, self.reconcile.freshness());
        let creates = object.management_policy() == ManagementPolicy::Full
            && object.adoption_policy() != AdoptionPolicy::Adopt;
        match locked.observe(C::needs(object), freshness).await? {
            None if !creates => {
                locked.observe(C::needs(object), Freshness { now: true, ..freshness }).await
            }
            found => Ok(found),
        }
    }

    async fn manage(&self, locked: &mut C::Locked) -> Result<ConditionSet, Interrupted> {
        let Reconcile { object, id, .. } = self.reconcile;
        let last_sync = self.reconcile.last_sync();
        let found = self.read(locked).await?;
        let rules = ManagedObject { external: self, last_sync };
        let Convergence { executed, end, .. } =
            converge(&rules, locked, self.reconcile.freshness(), found).await;
        for Correction { step, is_drift } in &executed {
            self.emit_event(step, is_drift.then_some(last_sync)).await;
        }
        match end {
            Converged::InSync => {}
            Converged::Outdated => return Err(Interrupted::OUTDATED),
            Converged::Refused(refused) => return Err(Interrupted::Refused(refused)),
            Converged::Failed(Correction { step, is_drift: true }, error) => {
                return Ok(self.uncorrected(&error, &step, last_sync));
            }
            Converged::Failed(_, error) | Converged::Unread(error) => return Err(error.into()),
        }
        let Some(desired) = self.desired() else { return Err(Interrupted::OUTDATED) };
        let message =
            format!("{} in {} is as this resource says", self.name, self.reconcile.registry_name());
        let state = ReadyState::Ready(Cause::new(Reason::InSync, message));
        let mut findings =
            ConditionSet::of(state.with_notes(&C::notes(self.registry, &desired, id)));
        let drift =
            executed.iter().rfind(|it| it.is_drift).map(|it| drifted(&it.step)).unwrap_or_default();
        findings.drifted = Some(corrected(last_sync, object.conditions(), &drift));
        Ok(findings)
    }

    /// Reports drift that a failed step did not correct.
    fn uncorrected(&self, error: &RegistryError, step: &Step, last_sync: LastSync) -> ConditionSet {
        let Reconcile { object, .. } = self.reconcile;
        let changes = drifted(step);
        if last_sync == LastSync::InSync {
            self.reconcile.drift().detected(changes.len());
        }
        let (state, _) = failed(
            error,
            self.reconcile.registry_name(),
            object.conditions(),
            object.sync_interval(),
        );
        ConditionSet { drifted: Some(uncorrected(&changes)), ..ConditionSet::of(state) }
    }

    async fn observe(&self, locked: &mut C::Locked) -> Result<ConditionSet, Interrupted> {
        let found = self.read(locked).await?;
        let Some(desired) = self.desired() else { return Err(Interrupted::OUTDATED) };
        let plan = C::plan(&desired, self.name, found.clone());
        step_for(plan, &self.reconcile.id).map_err(Interrupted::Refused)?;
        let differences = C::differences(&desired, &self.reconcile.id, found.as_ref());
        let message = format!(
            "{} in {} is observed, and never changed",
            self.name,
            self.reconcile.registry_name()
        );
        let findings = ConditionSet::of(ReadyState::Ready(Cause::new(Reason::Observed, message)));
        Ok(ConditionSet { drifted: Some(observed(&differences)), ..findings })
    }

    /// Emits the event of an executed step. `drift` is the last sync of a resource whose drift the
    /// step corrected.
    async fn emit_event(&self, step: &Step, drift: Option<LastSync>) {
        let Reconcile { ctx, object, .. } = self.reconcile;
        let name = self.name;
        let changes = if step.changes.is_empty() {
            String::new()
        } else {
            format!(": {}", show(&step.changes))
        };
        if let Some(last_sync) = drift {
            self.reconcile.drift().corrected(last_sync, drifted(step).len());
            let note = format!("drift of {name} was corrected{changes}");
            ctx.events.warning(*object, Reason::DriftCorrected, note).await;
            return;
        }
        let (reason, done) = match step.action {
            Action::Create => (Reason::Created, "created"),
            Action::Adopt => (Reason::Adopted, "adopted"),
            Action::Delete => (Reason::Deleted, "deleted"),
            Action::Retain => (Reason::Retained, "released, and stays in the registry"),
            Action::Update | Action::Preview => (Reason::Updated, "updated"),
        };
        ctx.events.normal(*object, reason, format!("{name} was {done}{changes}")).await;
    }
}

/// The rules by which an object is converged.
struct ManagedObject<'a, C: ExternalKind> {
    external: &'a External<'a, C>,
    last_sync: LastSync,
}

impl<C: ExternalKind> Converge for ManagedObject<'_, C> {
    type Locked = C::Locked;

    fn needs(&self) -> Needs<C> {
        C::needs(self.external.reconcile.object)
    }

    fn decide(&self, found: Option<Observed<C>>) -> Option<Result<Option<Step>, Refused>> {
        let desired = self.external.desired()?;
        Some(step_for(C::plan(&desired, self.external.name, found), &self.external.reconcile.id))
    }

    fn must_refresh(&self, step: &Step, _found: Option<&Observed<C>>) -> bool {
        step.action != Action::Create
    }

    fn is_stale(&self, error: &ApiError) -> bool {
        C::is_stale(error)
    }

    fn is_drift(&self, _step: &Step, _found: Option<&Observed<C>>) -> bool {
        self.last_sync.is_drift()
    }

    fn must_verify(&self, step: &Step) -> bool {
        // Two clusters may adopt it at the same moment: its tags name the one that owns it now.
        step.action == Action::Adopt
    }
}

/// Returns the drift that a step corrects.
fn drifted(step: &Step) -> Vec<FieldChange> {
    if step.changes.is_empty() {
        return vec![FieldChange { field: "ownership tags".to_owned(), from: None, to: None }];
    }
    step.changes.clone()
}
