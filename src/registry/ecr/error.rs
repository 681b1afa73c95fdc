//! The errors of the ECR API: names, texts (which clients search), and wire format.

use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::input::ErrorText;
use crate::auth::Denied;
use crate::auth::sigv4::AuthError;
use crate::message::RETRY_AFTER;
use crate::message::Response;
use crate::message::body::{Body, BodyError};
use wharfage_domain::access_key::NoRandomness;
use wharfage_domain::names::{AccountId, Digest, RepositoryName, Tag};
use wharfage_process::budget::Exhausted;
use wharfage_store::StoreError;

/// A repository as error texts name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepositoryRef {
    pub(crate) account: AccountId,
    pub(crate) name: RepositoryName,
}

impl std::fmt::Display for RepositoryRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the repository with name '{}' in the registry with id '{}'",
            self.name, self.account
        )
    }
}

/// The reason why a call failed. The texts are Amazon ECR's where they are known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EcrError {
    /// The store failed.
    #[error("The registry could not handle the request. Try again; its log says what failed.")]
    Server(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store does not answer in time: AWS's common error of this name and text.
    #[error("The request has failed due to a temporary failure of the server.")]
    Unavailable(#[source] StoreError),
    /// The disk is full.
    #[error(
        "The registry's disk is full, so it takes no pushes. Delete what is not needed, or ask its operator for space."
    )]
    Full(#[source] StoreError),
    /// The signature is missing or not accepted.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The caller has no permission.
    #[error(transparent)]
    AccessDenied(#[from] Denied),
    /// The operation does not exist.
    #[error("{0}")]
    UnknownOperation(String),
    /// The body is not a JSON object, or a member has the wrong JSON type.
    #[error("{0}")]
    Serialization(String),
    /// The body did not arrive completely.
    #[error("{0}")]
    Body(BodyError),
    /// There is no memory for the request or its response.
    #[error("Rate exceeded")]
    Throttling,

    /// An input member breaks its constraint.
    #[error("Invalid parameter at '{member}' failed to satisfy constraint: '{reason}'")]
    InvalidParameter {
        member: ErrorText,
        /// The constraint.
        reason: ErrorText,
    },
    /// An input member breaks a constraint; a validator wrote the whole text.
    #[error("{0}")]
    InvalidParameterText(String),
    /// The request contradicts a setting or a state.
    #[error("{0}")]
    Validation(String),
    /// A quota is reached.
    #[error("{0}")]
    LimitExceeded(String),
    /// The encryption key cannot be used.
    #[error("{message}")]
    Kms {
        message: &'static str,
        /// KMS's name of the error.
        kms_error: &'static str,
    },

    /// The repository does not exist.
    #[error("The repository with name '{}' does not exist in the registry with id '{}'", .0.name, .0.account)]
    RepositoryNotFound(RepositoryRef),
    /// The repository exists already.
    #[error("The repository with name '{}' already exists in the registry with id '{}'", .0.name, .0.account)]
    RepositoryAlreadyExists(RepositoryRef),
    /// The repository has images.
    #[error("The repository with name '{}' in registry with id '{}' cannot be deleted because it still contains images", .0.name, .0.account)]
    RepositoryNotEmpty(RepositoryRef),
    /// A resource tag is not valid.
    #[error("Invalid parameter at '{member}' failed to satisfy constraint: '{reason}'")]
    InvalidTagParameter {
        member: ErrorText,
        /// The constraint.
        reason: ErrorText,
    },
    /// The repository has the maximum number of resource tags.
    #[error("A repository can have at most {0} tags")]
    TooManyTags(usize),
    /// The repository has no policy.
    #[error("Repository policy does not exist for {0}")]
    RepositoryPolicyNotFound(RepositoryRef),
    /// The registry has no policy.
    #[error("Registry policy does not exist in the registry with id '{0}'")]
    RegistryPolicyNotFound(AccountId),

    /// The image does not exist.
    #[error("The image with imageId {{imageDigest:'{digest}', imageTag:'{tag}'}} does not exist within the repository with name '{}' in the registry with id '{}'", .repository_ref.name, .repository_ref.account)]
    ImageNotFound {
        /// The requested digest, or `null`.
        digest: ErrorText,
        /// The requested tag, or `null`.
        tag: ErrorText,
        repository_ref: RepositoryRef,
    },
    /// The push changes nothing.
    #[error("Image with digest '{digest}' and tag '{tag}' already exists in the repository with name '{}' in registry with id '{}'", .repository_ref.name, .repository_ref.account)]
    ImageAlreadyExists {
        digest: Digest,
        /// The tag, or `null`.
        tag: ErrorText,
        repository_ref: RepositoryRef,
    },
    /// The tag exists and is immutable.
    #[error(
        "The image tag '{tag}' already exists in the '{repository}' repository and cannot be overwritten because the repository is immutable."
    )]
    ImageTagAlreadyExists { tag: Tag, repository: RepositoryName },
    /// The manifest has another digest than the request.
    #[error("The image digest '{expected}' does not match the digest '{actual}' of the manifest")]
    ImageDigestDoesNotMatch {
        /// The digest in the request.
        expected: ErrorText,
        /// The digest of the manifest.
        actual: Digest,
    },
    /// Blobs that a manifest needs are missing.
    #[error("Layers with digests '{}' required for pushing image into repository with name '{}' in the registry with id '{}' do not exist", digest_list(.digests), .repository_ref.name, .repository_ref.account)]
    LayersNotFound { digests: Vec<Digest>, repository_ref: RepositoryRef },
    /// A requested layer is missing.
    #[error("The layer with digest '{digest}' does not exist in {repository_ref}")]
    LayerNotFound { digest: ErrorText, repository_ref: RepositoryRef },
    /// The layer exists, but no image that can be pulled has it.
    #[error(
        "The layer with digest '{digest}' is not associated with an available image in {repository_ref}"
    )]
    LayerInaccessible { digest: Digest, repository_ref: RepositoryRef },
    /// Images that an index needs are missing.
    #[error("Images with digests '{}' required for pushing image into repository with name '{}' in the registry with id '{}' do not exist", digest_list(.digests), .repository_ref.name, .repository_ref.account)]
    ReferencedImagesNotFound { digests: Vec<Digest>, repository_ref: RepositoryRef },
    /// The image cannot change to this storage class.
    #[error("{0}")]
    StorageClassUpdateNotSupported(String),

    /// The upload does not exist.
    #[error("The upload '{id}' does not exist in {repository_ref}")]
    UploadNotFound { id: ErrorText, repository_ref: RepositoryRef },
    /// A part does not begin after the previous one, or has another length than stated.
    #[error("{message}")]
    InvalidLayerPart {
        message: String,
        repository_ref: RepositoryRef,
        id: Uuid,
        /// The last acknowledged byte, if any.
        last_valid_byte: Option<u64>,
    },
    /// The bytes match none of the digests.
    #[error(
        "The layer digest calculation performed upon receipt of the image layer does not match the digest specified: {0}"
    )]
    InvalidLayer(String),
    /// A part other than the last one is too small.
    #[error("All layer parts except the last part should be at least 5MB")]
    LayerPartTooSmall,
    /// The repository has the layer already.
    #[error("Layer with digest '{digest}' already exists in {repository_ref}")]
    LayerAlreadyExists { digest: Digest, repository_ref: RepositoryRef },
    /// The upload has no parts.
    #[error("The upload '{0}' has no parts: upload at least one before completing it")]
    EmptyUpload(Uuid),

    /// The repository has no lifecycle policy.
    #[error("Lifecycle policy does not exist for {0}")]
    LifecyclePolicyNotFound(RepositoryRef),
    /// A preview is in progress.
    #[error(
        "A lifecycle policy preview for {0} is in progress. Wait until it has completed and try again."
    )]
    LifecyclePolicyPreviewInProgress(RepositoryRef),
    /// No preview was started.
    #[error("Lifecycle policy preview does not exist for {0}")]
    LifecyclePolicyPreviewNotFound(RepositoryRef),
}

fn digest_list(digests: &[Digest]) -> String {
    let digests: Vec<&str> = digests.iter().map(Digest::as_str).collect();
    format!("[{}]", digests.join(", "))
}

impl From<StoreError> for EcrError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable(error),
            StoreError::Full(_) => Self::Full(error),
            StoreError::Inconsistent(_) | StoreError::Backend(_) => Self::Server(Box::new(error)),
        }
    }
}

impl From<NoRandomness> for EcrError {
    fn from(error: NoRandomness) -> Self {
        Self::Server(Box::new(error))
    }
}

impl From<BodyError> for EcrError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Exhausted(exhausted) => exhausted.into(),
            error => Self::Body(error),
        }
    }
}

impl From<Exhausted> for EcrError {
    fn from(_: Exhausted) -> Self {
        Self::Throttling
    }
}

impl EcrError {
    /// Returns the name of the error.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Server(_) | Self::Full(_) => "ServerException",
            Self::Unavailable(_) => "ServiceUnavailable",
            Self::Auth(AuthError::MissingAuthenticationToken) => {
                "MissingAuthenticationTokenException"
            }
            Self::Auth(AuthError::IncompleteSignature(_)) => "IncompleteSignatureException",
            Self::Auth(AuthError::UnrecognizedClient) => "UnrecognizedClientException",
            Self::Auth(AuthError::InvalidSignature(_)) => "InvalidSignatureException",
            Self::AccessDenied(_) => "AccessDeniedException",
            Self::UnknownOperation(_) => "UnknownOperationException",
            Self::Serialization(_) => "SerializationException",
            Self::Body(BodyError::TooLarge(_)) => "RequestEntityTooLargeException",
            Self::Body(_) => "RequestTimeoutException",
            Self::Throttling => "ThrottlingException",
            Self::InvalidParameter { .. } | Self::InvalidParameterText(_) => {
                "InvalidParameterException"
            }
            Self::Validation(_) => "ValidationException",
            Self::LimitExceeded(_) => "LimitExceededException",
            Self::Kms { .. } => "KmsException",
            Self::RepositoryNotFound(_) => "RepositoryNotFoundException",
            Self::RepositoryAlreadyExists(_) => "RepositoryAlreadyExistsException",
            Self::RepositoryNotEmpty(_) => "RepositoryNotEmptyException",
            Self::InvalidTagParameter { .. } => "InvalidTagParameterException",
            Self::TooManyTags(_) => "TooManyTagsException",
            Self::RepositoryPolicyNotFound(_) => "RepositoryPolicyNotFoundException",
            Self::RegistryPolicyNotFound(_) => "RegistryPolicyNotFoundException",
            Self::ImageNotFound { .. } => "ImageNotFoundException",
            Self::ImageAlreadyExists { .. } => "ImageAlreadyExistsException",
            Self::ImageTagAlreadyExists { .. } => "ImageTagAlreadyExistsException",
            Self::ImageDigestDoesNotMatch { .. } => "ImageDigestDoesNotMatchException",
            Self::LayersNotFound { .. } | Self::LayerNotFound { .. } => "LayersNotFoundException",
            Self::LayerInaccessible { .. } => "LayerInaccessibleException",
            Self::ReferencedImagesNotFound { .. } => "ReferencedImagesNotFoundException",
            Self::StorageClassUpdateNotSupported(_) => {
                "ImageStorageClassUpdateNotSupportedException"
            }
            Self::UploadNotFound { .. } => "UploadNotFoundException",
            Self::InvalidLayerPart { .. } => "InvalidLayerPartException",
            Self::InvalidLayer(_) => "InvalidLayerException",
            Self::LayerPartTooSmall => "LayerPartTooSmallException",
            Self::LayerAlreadyExists { .. } => "LayerAlreadyExistsException",
            Self::EmptyUpload(_) => "EmptyUploadException",
            Self::LifecyclePolicyNotFound(_) => "LifecyclePolicyNotFoundException",
            Self::LifecyclePolicyPreviewInProgress(_) => {
                "LifecyclePolicyPreviewInProgressException"
            }
            Self::LifecyclePolicyPreviewNotFound(_) => "LifecyclePolicyPreviewNotFoundException",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Server(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Body(BodyError::TooLarge(_)) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(_) => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Returns the cause of a server error for the log; the client does not see it. `None` for
    /// errors of the caller.
    pub(crate) fn cause(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Server(cause) => Some(&**cause),
            Self::Unavailable(cause) | Self::Full(cause) => Some(cause),
            _ => None,
        }
    }

    /// Returns the members that some errors have beside their message.
    fn details(&self) -> Map<String, Value> {
        let details = match self {
            Self::Kms { kms_error, .. } => json!({ "kmsError": kms_error }),
            Self::InvalidLayerPart { repository_ref, id, last_valid_byte, .. } => json!({
                "registryId": repository_ref.account, "repositoryName": repository_ref.name, "uploadId": id,
                "lastValidByteReceived": last_valid_byte,
            }),
            _ => Value::Null,
        };
        match details {
            Value::Object(members) => {
                members.into_iter().filter(|(_, value)| !value.is_null()).collect()
            }
            _ => Map::new(),
        }
    }

    /// Renders the error.
    pub(crate) fn into_response(self) -> Response {
        let mut body = Map::from_iter([
            ("__type".into(), self.code().into()),
            ("message".into(), self.to_string().into()),
        ]);
        body.extend(self.details());
        let mut response =
            super::json_response(self.status(), Body::from(Value::Object(body).to_string()));
        if let Self::Unavailable(_) = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.headers_mut().insert("x-amzn-errortype", HeaderValue::from_static(self.code()));
        if matches!(self, Self::Throttling) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

#[cfg(test)]
mod tests;
