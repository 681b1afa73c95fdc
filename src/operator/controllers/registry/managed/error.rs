//! What ends a reconcile of a workload before its end.

use super::super::{kept_away, missing};
use crate::status::{Cause, ConditionSet, ReadyState};
use crate::workload;
use wharfage_crd::Reason;

/// What ends a reconcile before its end.
pub(super) enum ReconcileError {
    /// It stands so.
    Stands(Box<ConditionSet>),
    /// The API server can't be asked, or not now.
    Api(kube::Error),
}

impl From<kube::Error> for ReconcileError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 403 => {
                let message = format!("give the operator the permissions of its chart: {}", status.message);
                Self::stalled(Reason::Forbidden, message)
            }
            _ => Self::Api(error),
        }
    }
}

impl ReconcileError {
    pub(super) fn waiting(reason: Reason, message: impl Into<String>) -> Self {
        Self::Stands(Box::new(ConditionSet::of(ReadyState::Reconciling(Cause::new(reason, message)))))
    }

    pub(super) fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self::Stands(Box::new(ConditionSet::of(ReadyState::Stalled(Cause::new(reason, message)))))
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::Stands(missing(message.into()))
    }

    /// What is to be told of it.
    pub(super) fn told(self) -> Result<ConditionSet, kube::Error> {
        match self {
            Self::Stands(findings) => Ok(*findings),
            Self::Api(error) => Err(error),
        }
    }
}

/// Why Secrets of a namespace can't be read.
pub(super) fn unreadable(error: kube::Error, namespace: &str) -> ReconcileError {
    match &error {
        kube::Error::Api(status) if status.code == 403 => ReconcileError::Stands(kept_away(namespace, &status.message)),
        _ => ReconcileError::Api(error),
    }
}

pub(super) fn unusable(error: workload::InvalidSecret) -> ReconcileError {
    ReconcileError::not_found(error.to_string())
}

pub(super) fn is_api(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// What the API server's refusal of an object means: what a person must change, what comes by itself, or nothing in
/// particular.
pub(super) fn refused(error: kube::Error, kind: &str, namespace: &str, name: &str) -> ReconcileError {
    let kube::Error::Api(status) = &error else { return ReconcileError::Api(error) };
    let message = || format!("{kind} {namespace}/{name}: {}", status.message);
    match status.code {
        404 => ReconcileError::not_found(format!(
            "Namespace {namespace} does not exist: make it, or correct managed.namespace"
        )),
        409 => ReconcileError::waiting(Reason::Progressing, message()),
        400 | 403 | 422 => ReconcileError::stalled(Reason::of_error(&status.reason), message()),
        _ => ReconcileError::Api(error),
    }
}
