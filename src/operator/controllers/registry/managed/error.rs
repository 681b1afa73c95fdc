//! The errors that end a reconcile of a workload early, and their conditions.

use k8s_openapi::api::core::v1::Secret;
use kube::Resource as _;

use crate::apply_set::{ApplyError, ObjectId};
use crate::secrets::{SecretError, reference_not_found};
use crate::status::{Cause, ConditionSet, ReadyState};
use wharfage_crd::Reason;

/// An error that ends a reconcile early.
pub(super) enum ReconcileError {
    /// The Registry gets these conditions.
    Conditions(Box<ConditionSet>),
    /// The API server cannot be asked now.
    Api(kube::Error),
}

impl From<kube::Error> for ReconcileError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 403 => {
                let message =
                    format!("give the operator the permissions of its chart: {}", status.message);
                Self::stalled(Reason::Forbidden, message)
            }
            _ => Self::Api(error),
        }
    }
}

impl From<SecretError> for ReconcileError {
    fn from(error: SecretError) -> Self {
        match error.into_conditions() {
            Ok(conditions) => Self::Conditions(Box::new(conditions)),
            Err(error) => Self::Api(error),
        }
    }
}

impl From<ApplyError> for ReconcileError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Foreign(object) => {
                let message = format!(
                    "{object} is there and isn't this Registry's: remove it, or make a Registry of another name or in \
                     another namespace"
                );
                Self::stalled(Reason::OwnedByAnother, message)
            }
            ApplyError::NoSuchKind => Self::not_found(
                "there is no cert-manager in this cluster: install it, or give tls.secretName a certificate of your own",
            ),
            ApplyError::List { kind, namespace, error } if kind == Secret::kind(&()) => {
                SecretError::of_request(error, &namespace).into()
            }
            ApplyError::List { error, .. } | ApplyError::Api(error) => error.into(),
            ApplyError::Rejected(object, error) => rejected(error, &object),
        }
    }
}

impl ReconcileError {
    pub(super) fn waiting(reason: Reason, message: impl Into<String>) -> Self {
        Self::Conditions(Box::new(ConditionSet::of(ReadyState::Reconciling(Cause::new(
            reason, message,
        )))))
    }

    pub(super) fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self::Conditions(Box::new(ConditionSet::of(ReadyState::Stalled(Cause::new(
            reason, message,
        )))))
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::Conditions(Box::new(reference_not_found(message.into())))
    }

    /// Returns the conditions of the Registry.
    pub(super) fn into_conditions(self) -> Result<ConditionSet, kube::Error> {
        match self {
            Self::Conditions(conditions) => Ok(*conditions),
            Self::Api(error) => Err(error),
        }
    }
}

/// Interprets the API server's refusal of an object: whether a person must change something, or it ends by itself.
pub(super) fn rejected(error: kube::Error, object: &ObjectId) -> ReconcileError {
    let kube::Error::Api(status) = &error else { return ReconcileError::Api(error) };
    let message = || format!("{object}: {}", status.message);
    match status.code {
        404 => ReconcileError::not_found(format!(
            "Namespace {} does not exist: make it, or correct managed.namespace",
            object.namespace
        )),
        409 => ReconcileError::waiting(Reason::Progressing, message()),
        400 | 403 | 422 => ReconcileError::stalled(Reason::of_error(&status.reason), message()),
        _ => ReconcileError::Api(error),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ApiResource;

    use super::*;

    fn error(code: u16) -> kube::Error {
        let status = kube::core::Status { code, ..kube::core::Status::failure("no", "Invalid") };
        kube::Error::Api(Box::new(status))
    }

    fn message(error: ApplyError) -> Option<String> {
        let conditions = ReconcileError::from(error).into_conditions().ok()?;
        Some(format!("{}: {}", conditions.state.as_str(), conditions.state.cause().message))
    }

    #[test]
    fn a_refused_object_says_who_must_act() {
        let kind = ApiResource::erase::<Secret>(&());
        let object = || ObjectId::new(&kind, "one", "home");
        let rejected = |code| ApplyError::Rejected(Box::new(object()), error(code));
        for (error, expected) in [
            (rejected(422), Some("stalled: Secret one/home: no")),
            (rejected(409), Some("reconciling: Secret one/home: no")),
            (
                rejected(404),
                Some(
                    "reconciling: Namespace one does not exist: make it, or correct managed.namespace",
                ),
            ),
            (rejected(500), None),
            (ApplyError::Api(error(500)), None),
            (
                ApplyError::Api(error(403)),
                Some("stalled: give the operator the permissions of its chart: no"),
            ),
            (
                ApplyError::Foreign(object()),
                Some(
                    "stalled: Secret one/home is there and isn't this Registry's: remove it, or make a Registry of another \
                     name or in another namespace",
                ),
            ),
        ] {
            assert_eq!(message(error).as_deref(), expected);
        }
        let unreadable = |code| ApplyError::List {
            kind: kind.kind.clone(),
            namespace: "one".to_owned(),
            error: error(code),
        };
        assert!(
            message(unreadable(403)).unwrap().contains("may not read Secrets in namespace one")
        );
        assert_eq!(message(unreadable(500)), None);
    }
}
