//! The reasons why a manifest is refused.

use wharfage_store::manifests::SizeMismatch;

/// The reason why a manifest is refused, in the words of ECR's PutImage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidManifest {
    /// It is longer than the limit, in bytes.
    #[error(
        "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Member must have length less than or equal to {0}'"
    )]
    TooLarge(usize),
    /// It is not JSON, or neither it nor the request has a media type: ECR reports the same error
    /// for both.
    #[error(
        "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'"
    )]
    Syntax,
    /// It is JSON, but not of its media type.
    #[error("Invalid parameter at 'ImageManifest' failed to satisfy constraint: '{0}'")]
    Content(String),
    /// Its media type is contradictory or not supported.
    #[error("Invalid parameter at 'ImageManifestMediaType' failed to satisfy constraint: '{0}'")]
    MediaType(String),
}

impl From<SizeMismatch> for InvalidManifest {
    fn from(mismatch: SizeMismatch) -> Self {
        let SizeMismatch { digest, stated, actual } = mismatch;
        content(format!("The size of {digest} is {actual}, not {stated}"))
    }
}

/// Creates an error about the content.
pub(super) fn content(reason: String) -> InvalidManifest {
    InvalidManifest::Content(reason)
}

/// Creates an error about a missing member.
pub(super) fn missing(member: &str) -> InvalidManifest {
    content(format!("The member {member} is missing"))
}
