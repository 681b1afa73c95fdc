//! The reasons for which a reconcile ends before its object is as the spec asks, and how each of them ends it. No I/O.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{
    Error, REQUEUE_WAITING, ReconcileResult, jittered, next, refusal, refused_by_registry, registry_missing,
    registry_not_ready, unavailable,
};
use crate::registry_client::RegistryError;
use crate::status::{Cause, ConditionSet, ReadyState};
use wharfage_crd::{Condition, Registry};
use wharfage_plan::model::Refused;

/// A reason for which a reconcile ends early.
#[derive(Debug)]
pub(crate) enum Interrupted {
    /// The API server cannot be asked, or refuses a request.
    Api(kube::Error),
    /// The Registry that the object is in does not exist.
    RegistryMissing,
    /// The Registry that the object is in has no client.
    RegistryNotReady(Arc<Registry>),
    /// Another referenced object does not exist.
    ReferenceMissing(Cause),
    /// The registry does not answer, or rejects a request.
    Registry(RegistryError),
    /// The plan refuses the object.
    Refused(Refused),
    /// A value of the spec is invalid.
    Invalid(Cause),
    /// The kind's own conditions, and the delay after which the object is reconciled again.
    Conditions(Box<ConditionSet>, Duration),
    /// The object is reconciled again after this delay, and its status stays.
    Requeue(Duration),
    /// The object is gone.
    Gone,
}

impl Interrupted {
    /// The object changed since the reconcile began.
    pub(super) const OUTDATED: Self = Self::Requeue(Duration::ZERO);
}

impl From<kube::Error> for Interrupted {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

impl From<Error> for Interrupted {
    fn from(Error(error): Error) -> Self {
        Self::Api(error)
    }
}

impl From<RegistryError> for Interrupted {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

/// The facts about an object on which an ending depends.
pub(super) struct Facts<'a> {
    /// The name of the Registry that the object is in.
    pub(super) registry: &'a str,
    /// The conditions before the reconcile.
    pub(super) before: &'a [Condition],
    pub(super) interval: Duration,
    /// A referenced object, other than the Registry, that does not exist.
    pub(super) missing_reference: Option<Cause>,
    pub(super) now: Timestamp,
}

/// The ending of an interrupted reconcile.
#[derive(Debug)]
pub(super) enum Ending {
    /// These conditions are written, and the object is reconciled again after this delay.
    Conditions(ConditionSet, Duration),
    /// Nothing is written.
    Unwritten(ReconcileResult),
}

impl Interrupted {
    /// Decides how the reconcile ends.
    ///
    /// # Errors
    /// Of the API server.
    pub(super) fn ending(self, facts: Facts<'_>) -> Result<Ending, Error> {
        let Facts { registry, before, interval, missing_reference, now } = facts;
        let references = Some(missing_reference.map_or(Ok(()), Err));
        let is = |state| ConditionSet { references: references.clone(), ..ConditionSet::of(state) };
        let by_state = |state: ReadyState| {
            let delay = next(&state, before, interval, now);
            Ending::Conditions(is(state), delay)
        };
        Ok(match self {
            Self::Api(error) => return Err(Error(error)),
            Self::RegistryMissing => Ending::Conditions(registry_missing(registry), jittered(REQUEUE_WAITING)),
            Self::RegistryNotReady(registry) => {
                let state = registry_not_ready(&registry).state;
                Ending::Conditions(is(state), jittered(REQUEUE_WAITING))
            }
            Self::ReferenceMissing(cause) => {
                let state = ReadyState::Reconciling(cause.clone());
                let conditions = ConditionSet { references: Some(Err(cause)), ..ConditionSet::of(state) };
                Ending::Conditions(conditions, jittered(REQUEUE_WAITING))
            }
            Self::Registry(RegistryError::Unavailable(error)) => {
                let (state, delay) = unavailable(&error, registry);
                Ending::Conditions(is(state), delay)
            }
            Self::Registry(RegistryError::Rejected(error)) => by_state(refused_by_registry(error)),
            Self::Refused(refused) => by_state(refusal(&refused)),
            Self::Invalid(cause) => by_state(ReadyState::Stalled(cause)),
            Self::Conditions(conditions, delay) => Ending::Conditions(*conditions, delay),
            Self::Requeue(delay) => Ending::Unwritten(ReconcileResult::requeued(delay)),
            Self::Gone => Ending::Unwritten(ReconcileResult::resting()),
        })
    }
}
