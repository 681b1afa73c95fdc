//! The kinds of an ECR API's errors, told from their names here and nowhere else. Everybody else branches on the kind.

use wharfage_plan::model::{ApiError, ErrorKind};

/// The name of an error where the registry cannot be reached.
pub const UNAVAILABLE: &str = "RegistryUnavailable";
/// The name of an error where nobody gives credentials, and that may get better by itself.
pub const CREDENTIALS_UNAVAILABLE: &str = "CredentialsUnavailable";
/// The name of an error where an answer is none of an ECR API's.
pub const UNEXPECTED_RESPONSE: &str = "UnexpectedResponse";
/// The name of an error where the request was not sent.
pub const CLIENT_ERROR: &str = "ClientError";

/// Returns the kind of an error with this name, or of an answer with this HTTP status where it has no name.
pub fn kind_of(name: &str) -> ErrorKind {
    match name {
        UNAVAILABLE => ErrorKind::Unavailable,
        CREDENTIALS_UNAVAILABLE => ErrorKind::CredentialsUnavailable,
        UNEXPECTED_RESPONSE => ErrorKind::UnexpectedResponse,
        CLIENT_ERROR => ErrorKind::Client,
        "ServerException" | "InternalFailure" | "InternalServerError" => ErrorKind::ServerFault,
        "ServiceUnavailable" | "ServiceUnavailableException" => ErrorKind::ServiceUnavailable,
        "429" | "TooManyRequestsException" | "RequestLimitExceeded" | "SlowDown" => ErrorKind::Throttled,
        // Registries give many names to operations that they do not have.
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

/// An error of a registry's, by the name that it has there.
pub fn named(name: impl Into<String>, message: impl Into<String>) -> ApiError {
    let name = name.into();
    ApiError::new(kind_of(&name), name, message)
}

/// The registry cannot be reached.
pub(super) fn unavailable(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Unavailable, UNAVAILABLE, message)
}

/// The answer is none of an ECR API's.
pub(super) fn unexpected_response(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::UnexpectedResponse, UNEXPECTED_RESPONSE, message)
}

/// The request was not sent.
pub(super) fn client_error(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Client, CLIENT_ERROR, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_from_names_and_statuses() {
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
            // A quota that is used up: asking more slowly does not help.
            ("LimitExceededException", ErrorKind::Other),
            ("404", ErrorKind::Other),
        ] {
            assert_eq!(kind_of(name), kind, "{name}");
        }
    }
}
