//! The reasons for which a reconcile ends before its object is as the spec asks, and how each of
//! them ends it. No I/O.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{
    Error, REQUEUE_WAITING, ReconcileResult, jittered, next, refusal, refused_by_registry,
    registry_missing, registry_not_ready, unavailable,
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
            Self::RegistryMissing => {
                Ending::Conditions(registry_missing(registry), jittered(REQUEUE_WAITING))
            }
            Self::RegistryNotReady(registry) => {
                let state = registry_not_ready(&registry).state;
                Ending::Conditions(is(state), jittered(REQUEUE_WAITING))
            }
            Self::ReferenceMissing(cause) => {
                let state = ReadyState::Reconciling(cause.clone());
                let conditions =
                    ConditionSet { references: Some(Err(cause)), ..ConditionSet::of(state) };
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry_client::Unavailable;
    use wharfage_apply::error::named;
    use wharfage_crd::Reason;
    use wharfage_plan::Object;

    const INTERVAL: Duration = Duration::from_secs(600);

    /// Describes an ending: state, reason, whether the references are resolved, and the delay in
    /// seconds.
    fn ending(
        interrupted: Interrupted,
        missing_reference: Option<Cause>,
    ) -> (String, Option<bool>, Duration) {
        let now = Timestamp::now();
        let facts =
            Facts { registry: "home", before: &[], interval: INTERVAL, missing_reference, now };
        match interrupted.ending(facts).unwrap() {
            Ending::Conditions(ConditionSet { state, references, .. }, delay) => (
                format!("{} {}", state.as_str(), state.cause().reason),
                references.map(|it| it.is_ok()),
                delay,
            ),
            Ending::Unwritten(result) => (format!("{:?}", result.next), None, Duration::ZERO),
        }
    }

    fn cause(reason: Reason) -> Cause {
        Cause::new(reason, "why")
    }

    fn refused(reason: Reason) -> Interrupted {
        let object =
            Object { kind: "Repository", namespace: "shop".to_owned(), name: "api".to_owned() };
        Interrupted::Refused(Refused { object, reason, message: "why".to_owned() })
    }

    fn rejected(name: &str) -> Interrupted {
        RegistryError::Rejected(named(name, "no")).into()
    }

    #[test]
    fn every_interruption_has_its_ending() {
        let home = json!({ "metadata": { "name": "home" }, "spec": {} });
        let home: Arc<Registry> = Arc::new(serde_json::from_value(home).unwrap());
        let retry = Duration::from_secs(4);
        let unavailable =
            Unavailable { since: Timestamp::now(), message: "no route".to_owned(), retry };
        for (interrupted, expected, references, delay) in [
            (
                Interrupted::RegistryMissing,
                "reconciling ReferenceNotFound",
                Some(false),
                60.0..60.0,
            ),
            (
                Interrupted::RegistryNotReady(home),
                "reconciling RegistryNotReady",
                Some(true),
                60.0..60.0,
            ),
            (
                Interrupted::ReferenceMissing(cause(Reason::ReferenceNotFound)),
                "reconciling ReferenceNotFound",
                Some(false),
                60.0..60.0,
            ),
            (
                RegistryError::Unavailable(unavailable).into(),
                "reconciling RegistryUnavailable",
                Some(true),
                4.0..8.0,
            ),
            (
                rejected("RegistryUnavailable"),
                "reconciling RegistryUnavailable",
                Some(true),
                5.0..5.0,
            ),
            (
                rejected("LimitExceededException"),
                "stalled LimitExceededException",
                Some(true),
                600.0..600.0,
            ),
            (refused(Reason::NotAllowed), "stalled NotAllowed", Some(true), 600.0..600.0),
            (refused(Reason::NotFound), "reconciling NotFound", Some(true), 60.0..60.0),
            (
                Interrupted::Invalid(cause(Reason::InvalidParameterException)),
                "stalled InvalidParameterException",
                Some(true),
                600.0..600.0,
            ),
        ] {
            let described = format!("{interrupted:?}");
            let (state, resolved, waits) = ending(interrupted, None);
            assert_eq!((state.as_str(), resolved), (expected, references), "{described}");
            let jittered = delay.start * 0.9..=delay.end * 1.1;
            assert!(jittered.contains(&waits.as_secs_f64()), "{waits:?} after {described}");
        }
    }

    #[test]
    fn a_missing_reference_is_reported_beside_a_failing_registry() {
        let missing = Some(cause(Reason::ReferenceNotFound));
        let (state, resolved, _) = ending(rejected("ServerException"), missing);
        assert_eq!((state.as_str(), resolved), ("stalled ServerException", Some(false)));
    }

    #[test]
    fn the_conditions_of_a_kind_are_written_as_they_are() {
        let conditions = ConditionSet::of(ReadyState::Stalled(cause(Reason::ImageMissing)));
        let (state, resolved, delay) =
            ending(Interrupted::Conditions(Box::new(conditions), INTERVAL), None);
        assert_eq!((state.as_str(), resolved, delay), ("stalled ImageMissing", None, INTERVAL));
    }

    #[test]
    fn an_outdated_reconcile_writes_nothing_and_is_requeued() {
        let requeued = ReconcileResult::requeued(Duration::ZERO);
        assert_eq!(ending(Interrupted::OUTDATED, None).0, format!("{:?}", requeued.next));
        assert_eq!(
            ending(Interrupted::Gone, None).0,
            format!("{:?}", ReconcileResult::resting().next)
        );
    }

    #[test]
    fn an_error_of_the_api_server_is_no_ending() {
        let failure = kube::core::Status::failure("no", "Forbidden").boxed();
        let facts = Facts {
            registry: "home",
            before: &[],
            interval: INTERVAL,
            missing_reference: None,
            now: Timestamp::now(),
        };
        assert!(Interrupted::from(kube::Error::Api(failure)).ending(facts).is_err());
    }
}
