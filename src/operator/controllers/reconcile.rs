//! The reconcile of every kind: suspended, being deleted, or dereferenced, applied and reported. A kind supplies the steps.

use jiff::Timestamp;
use kube::core::object::HasStatus;
use kube::{Api, Resource as _, ResourceExt as _};

use super::converge::Drift;
use super::finish::{Outcome, finish, suspend};
use super::interrupted::{Ending, Facts, Interrupted};
use super::{Error, KindController, LastSync, ReconcileResult, is_outdated};
use crate::context::Context;
use crate::finalizer;
use crate::kind::{Kind, StatusFields as _, api_of};
use crate::registry_client::Freshness;
use crate::status::{self, Cause, ReadyState};
use crate::stores::StoredKind;
use wharfage_plan::Object;

/// The status of a controller's kind.
pub(super) type Status<C> = <<C as KindController>::Kind as HasStatus>::Status;

/// The steps that a kind supplies.
pub(crate) trait Reconciler: KindController {
    /// The referenced objects that the other steps need, such as the client of the registry.
    type Inputs: Send;

    /// Looks up the referenced objects, and reads the spec.
    fn dereference(&self, reconcile: &Reconcile<'_, Self::Kind>) -> Result<Self::Inputs, Interrupted>;

    /// Returns whether the object needs the finalizer, which is added before [`Self::apply`].
    fn needs_finalizer(&self, object: &Self::Kind) -> bool;

    /// Makes what the object stands for as the spec asks, and reports the result.
    fn apply(
        &self,
        reconcile: &Reconcile<'_, Self::Kind>,
        inputs: Self::Inputs,
    ) -> impl Future<Output = Result<Outcome<Status<Self>>, Interrupted>> + Send;

    /// Releases or deletes what the object stands for, because the object is being deleted.
    fn release(&self, reconcile: &Reconcile<'_, Self::Kind>) -> impl Future<Output = Result<(), Interrupted>> + Send;

    /// Returns whether the finalizer stays until the release succeeds. Otherwise a failing release does not block the deletion.
    fn must_release(&self, object: &Self::Kind) -> bool;

    /// Returns the cause if a referenced object, other than the Registry, does not exist.
    fn missing_reference(&self, object: &Self::Kind) -> Option<Cause> {
        self.context().stores.missing_reference(object)
    }

    /// Sets the fields that every status of the kind has, whatever the result.
    fn complete_status(&self, _status: &mut Status<Self>) {}
}

/// One reconcile of an object.
pub(crate) struct Reconcile<'a, K: Kind> {
    pub(super) ctx: &'a Context,
    pub(super) api: Api<K>,
    pub(super) object: &'a K,
    /// The object as plans and tags name it.
    pub(super) id: Object,
}

impl<'a, K: Kind> Reconcile<'a, K> {
    pub(super) fn new(ctx: &'a Context, object: &'a K) -> Self {
        let id = Object { kind: K::NAME, namespace: object.namespace().unwrap_or_default(), name: object.name_any() };
        Self { ctx, api: api_of(&ctx.client, object), object, id }
    }

    pub(super) fn registry_name(&self) -> &'a str {
        self.object.registry_name()
    }

    pub(super) fn last_sync(&self) -> LastSync {
        LastSync::of_object(self.object)
    }

    pub(super) fn freshness(&self) -> Freshness {
        Freshness { interval: self.object.sync_interval(), now: self.object.requested().is_some() }
    }

    pub(super) fn drift(&self) -> Drift<'a> {
        Drift { ctx: self.ctx, kind: K::NAME, registry: self.registry_name() }
    }
}

impl<K: StoredKind> Reconcile<'_, K> {
    /// Returns whether the object changed since the reconcile began. Ask it after reading the stores: a change that they already
    /// show is then noticed.
    pub(super) fn is_outdated(&self) -> bool {
        is_outdated(K::store(&self.ctx.stores), self.object)
    }
}

/// Decides how an interrupted reconcile ends.
pub(super) fn ending<C: Reconciler>(
    controller: &C,
    object: &C::Kind,
    interrupted: Interrupted,
) -> Result<Ending, Error> {
    interrupted.ending(Facts {
        registry: object.registry_name(),
        before: object.conditions(),
        interval: object.sync_interval(),
        missing_reference: controller.missing_reference(object),
        now: Timestamp::now(),
    })
}

/// Makes the outcome of an interrupted reconcile, to which the kind adds fields of its status.
pub(super) fn outcome_of<C: Reconciler>(
    controller: &C,
    object: &C::Kind,
    interrupted: Interrupted,
) -> Result<Outcome<Status<C>>, Interrupted> {
    if matches!(interrupted, Interrupted::Requeue(_) | Interrupted::Gone) {
        return Err(interrupted);
    }
    match ending(controller, object, interrupted)? {
        Ending::Conditions(conditions, next) => Ok(Outcome::new(conditions, next)),
        Ending::Unwritten(_) => Err(Interrupted::Gone),
    }
}

/// Reconciles one object.
pub(super) async fn reconcile<C: Reconciler>(controller: &C, object: &C::Kind) -> Result<ReconcileResult, Error> {
    let ctx = controller.context();
    let reconcile = Reconcile::new(ctx, object);
    if object.meta().deletion_timestamp.is_some() {
        return cleanup(controller, &reconcile).await;
    }
    if object.is_suspended() {
        return suspend(ctx, &reconcile.api, object).await;
    }
    let result = match controller.dereference(&reconcile) {
        Ok(inputs) => {
            if controller.needs_finalizer(object) {
                finalizer::add(&reconcile.api, object).await?;
            }
            controller.apply(&reconcile, inputs).await
        }
        Err(interrupted) => Err(interrupted),
    };
    end(controller, &reconcile, result).await
}

/// Writes the result of a reconcile to the status.
async fn end<C: Reconciler>(
    controller: &C,
    reconcile: &Reconcile<'_, C::Kind>,
    result: Result<Outcome<Status<C>>, Interrupted>,
) -> Result<ReconcileResult, Error> {
    match result {
        Ok(outcome) => report(controller, reconcile, outcome).await,
        Err(interrupted) => match ending(controller, reconcile.object, interrupted)? {
            Ending::Conditions(conditions, next) => report(controller, reconcile, Outcome::new(conditions, next)).await,
            Ending::Unwritten(result) => Ok(result),
        },
    }
}

/// Writes the status, and requeues the objects that waited for this one to become Ready.
async fn report<C: Reconciler>(
    controller: &C,
    reconcile: &Reconcile<'_, C::Kind>,
    outcome: Outcome<Status<C>>,
) -> Result<ReconcileResult, Error> {
    let Reconcile { ctx, api, object, .. } = reconcile;
    let is_ready = matches!(outcome.findings.state, ReadyState::Ready(_));
    let complete = |status: &mut Status<C>| {
        controller.complete_status(status);
        status.set_users(|| ctx.stores.count_referrers(*object));
    };
    let result = finish(ctx, api, *object, outcome, complete).await?;
    if is_ready && !status::is_ready(object.conditions()) && C::Kind::READY_REQUEUES_REFERRERS {
        ctx.triggers.requeue_referrers(&ctx.stores, &[*object]);
    }
    Ok(result)
}

/// Releases what the object stands for, and removes the finalizer.
async fn cleanup<C: Reconciler>(controller: &C, reconcile: &Reconcile<'_, C::Kind>) -> Result<ReconcileResult, Error> {
    let object = reconcile.object;
    if !finalizer::has(object) {
        return Ok(ReconcileResult::resting());
    }
    if let Err(interrupted) = controller.release(reconcile).await {
        match ending(controller, object, interrupted)? {
            Ending::Unwritten(result) => return Ok(result),
            Ending::Conditions(conditions, next) if controller.must_release(object) => {
                return report(controller, reconcile, Outcome::new(conditions, next)).await;
            }
            Ending::Conditions(conditions, _) => {
                // What stays in the registry has no owner once the object is gone, even if its tags still name one.
                let why = &conditions.state.cause().message;
                tracing::info!(object = %reconcile.id, why, "released without the registry");
            }
        }
    }
    finalizer::remove(&reconcile.api, object).await?;
    Ok(ReconcileResult::resting())
}
