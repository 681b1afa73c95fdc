//! The kinds of an ECR API's errors. Only this module derives them from names; all other code branches on the kind.

use wharfage_plan::model::{ApiError, ErrorKind};

/// The error's name if the registry is unreachable.
pub const UNAVAILABLE: &str = "RegistryUnavailable";
/// The error's name if no credentials are available at the moment.
pub const CREDENTIALS_UNAVAILABLE: &str = "CredentialsUnavailable";
/// The error's name if a response is not one of an ECR API.
pub const UNEXPECTED_RESPONSE: &str = "UnexpectedResponse";
/// The error's name if the request was not sent.
pub const CLIENT_ERROR: &str = "ClientError";

/// Returns the kind of an error with this name, or of a response with this HTTP status if it has no name.
pub fn kind_of(name: &str) -> ErrorKind {
    match name {
        UNAVAILABLE => ErrorKind::Unavailable,
        CREDENTIALS_UNAVAILABLE => ErrorKind::CredentialsUnavailable,
        UNEXPECTED_RESPONSE => ErrorKind::UnexpectedResponse,
        CLIENT_ERROR => ErrorKind::Client,
        "ServerException" | "InternalFailure" | "InternalServerError" => ErrorKind::ServerFault,
        "ServiceUnavailable" | "ServiceUnavailableException" => ErrorKind::ServiceUnavailable,
        "429" | "TooManyRequestsException" | "RequestLimitExceeded" | "SlowDown" => {
            ErrorKind::Throttled
        }
        // Registries use many names for operations that they do not have.
        "UnknownOperationException"
        | "UnknownOperation"
        | "UnsupportedOperationException"
        | "NotImplemented"
        | "InvalidAction" => ErrorKind::UnsupportedOperation,
        "RepositoryNotFoundException" => ErrorKind::RepositoryNotFound,
        "RepositoryAlreadyExistsException" => ErrorKind::RepositoryAlreadyExists,
        "LifecyclePolicyPreviewInProgressException" => ErrorKind::PreviewInProgress,
        "ImageNotFoundException" | "ImageNotFound" => ErrorKind::ImageNotFound,
        "ImageTagDoesNotMatchDigest" => ErrorKind::ImageTagMoved,
        "ImageReferencedByManifestList" => ErrorKind::ImageReferenced,
        "ImageStorageClassUpdateNotSupportedException" => ErrorKind::StorageClassNotSupported,
        name if name.starts_with("Throttl") => ErrorKind::Throttled,
        name if name.starts_with('5') => ErrorKind::UnexpectedResponse,
        _ => ErrorKind::Other,
    }
}

/// Creates an error from the registry's name for it.
pub fn named(name: impl Into<String>, message: impl Into<String>) -> ApiError {
    let name = name.into();
    ApiError::new(kind_of(&name), name, message)
}

/// Creates the error about an unreachable registry.
pub(super) fn unavailable(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Unavailable, UNAVAILABLE, message)
}

/// Creates the error about a response that is not one of an ECR API.
pub(super) fn unexpected_response(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::UnexpectedResponse, UNEXPECTED_RESPONSE, message)
}

/// Creates the error about a request that was not sent.
pub(super) fn client_error(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Client, CLIENT_ERROR, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_from_names_and_statuses() {
        for (name, kind) in [
            ("RegistryUnavailable", ErrorKind::Unavailable),
            ("CredentialsUnavailable", ErrorKind::CredentialsUnavailable),
            ("503", ErrorKind::UnexpectedResponse),
            ("429", ErrorKind::Throttled),
            ("ThrottlingException", ErrorKind::Throttled),
            ("Throttled", ErrorKind::Throttled),
            ("ServerException", ErrorKind::ServerFault),
            ("InvalidAction", ErrorKind::UnsupportedOperation),
            ("RepositoryNotFoundException", ErrorKind::RepositoryNotFound),
            // An exhausted quota: a lower rate does not help.
            ("LimitExceededException", ErrorKind::Other),
            ("404", ErrorKind::Other),
        ] {
            assert_eq!(kind_of(name), kind, "{name}");
        }
    }
}
