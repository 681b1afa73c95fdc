//! Reads errors of the API server.

use kube::Error;

/// Returns whether the API server forbids the request.
pub(crate) fn is_forbidden(error: &Error) -> bool {
    has_code(error, 403)
}

/// Returns whether the object, its namespace or its kind does not exist.
pub(crate) fn is_not_found(error: &Error) -> bool {
    has_code(error, 404)
}

fn has_code(error: &Error, code: u16) -> bool {
    matches!(error, Error::Api(status) if status.code == code)
}

/// Accepts that the object does not exist any more.
pub(crate) fn ignore_not_found<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if is_not_found(&error) => Ok(()),
        result => result.map(drop),
    }
}

/// Returns false if the object is gone or changed at the same moment, so that nothing was written. The next reconcile reads it
/// and decides again.
pub(crate) fn unless_changed<T>(result: Result<T, Error>) -> Result<bool, Error> {
    match result {
        Err(error) if has_code(&error, 404) || has_code(&error, 409) => Ok(false),
        result => result.map(|_| true),
    }
}
