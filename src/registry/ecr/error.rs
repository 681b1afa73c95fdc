//! The errors of the ECR API: their names, their texts (which clients search for words), and how they look on the wire.

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
    /// The registry.
    pub(crate) account: AccountId,
    /// The repository's name.
    pub(crate) name: RepositoryName,
}

impl std::fmt::Display for RepositoryRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the repository with name '{}' in the registry with id '{}'", self.name, self.account)
    }
}

/// Why a call failed. The texts are Amazon ECR's where it has been seen to give one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EcrError {
    /// The store failed.
    #[error("The registry could not carry out the request. Try again; its log says what failed.")]
    Server(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store does not answer, or not in time: AWS's common error of this name and its text.
    #[error("The request has failed due to a temporary failure of the server.")]
    Unavailable(#[source] StoreError),
    /// The disk is full.
    #[error(
        "The registry's disk is full, so it takes no pushes. Delete what is not needed, or ask its operator for space."
    )]
    Full(#[source] StoreError),
    /// The request is not signed by somebody we know.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The caller may not do this.
    #[error(transparent)]
    AccessDenied(#[from] Denied),
    /// There is no such operation.
    #[error("{0}")]
    UnknownOperation(String),
    /// The body is no JSON object, or a member has the wrong JSON type.
    #[error("{0}")]
    Serialization(String),
    /// The body did not arrive whole.
    #[error("{0}")]
    Body(BodyError),
    /// There is no memory for the request or its answer now.
    #[error("Rate exceeded")]
    Throttling,

    /// An input member breaks its constraint.
    #[error("Invalid parameter at '{member}' failed to satisfy constraint: '{reason}'")]
    InvalidParameter {
        /// The member.
        member: ErrorText,
        /// What it should have been.
        reason: ErrorText,
    },
    /// The same, by a pure validator whose text is whole already.
    #[error("{0}")]
    InvalidParameterText(String),
    /// The request contradicts a setting or a state.
    #[error("{0}")]
    Validation(String),
    /// A quota is used up.
    #[error("{0}")]
    LimitExceeded(String),
    /// The key that encrypts, or should, cannot be used.
    #[error("{message}")]
    Kms {
        /// What is wrong.
        message: &'static str,
        /// KMS's own name of it.
        kms_error: &'static str,
    },

    /// There is no such repository.
    #[error("The repository with name '{}' does not exist in the registry with id '{}'", .0.name, .0.account)]
    RepositoryNotFound(RepositoryRef),
    /// The name is taken.
    #[error("The repository with name '{}' already exists in the registry with id '{}'", .0.name, .0.account)]
    RepositoryAlreadyExists(RepositoryRef),
    /// The repository has images.
    #[error("The repository with name '{}' in registry with id '{}' cannot be deleted because it still contains images", .0.name, .0.account)]
    RepositoryNotEmpty(RepositoryRef),
    /// A resource tag is not valid.
    #[error("Invalid parameter at '{member}' failed to satisfy constraint: '{reason}'")]
    InvalidTagParameter {
        /// Where it is.
        member: ErrorText,
        /// What it should have been.
        reason: ErrorText,
    },
    /// A repository has as many resource tags as it may have.
    #[error("A repository can have at most {0} tags")]
    TooManyTags(usize),
    /// The repository has no policy.
    #[error("Repository policy does not exist for {0}")]
    RepositoryPolicyNotFound(RepositoryRef),
    /// The registry has no policy.
    #[error("Registry policy does not exist in the registry with id '{0}'")]
    RegistryPolicyNotFound(AccountId),

    /// There is no such image.
    #[error("The image with imageId {{imageDigest:'{digest}', imageTag:'{tag}'}} does not exist within the repository with name '{}' in the registry with id '{}'", .repository_ref.name, .repository_ref.account)]
    ImageNotFound {
        /// The digest that was asked for, or `null`.
        digest: ErrorText,
        /// The tag that was asked for, or `null`.
        tag: ErrorText,
        /// Where.
        repository_ref: RepositoryRef,
    },
    /// The push changes nothing.
    #[error("Image with digest '{digest}' and tag '{tag}' already exists in the repository with name '{}' in registry with id '{}'", .repository_ref.name, .repository_ref.account)]
    ImageAlreadyExists {
        /// Its digest.
        digest: Digest,
        /// The tag, or `null`.
        tag: ErrorText,
        /// Where.
        repository_ref: RepositoryRef,
    },
    /// The tag exists and is immutable.
    #[error(
        "The image tag '{tag}' already exists in the '{repository}' repository and cannot be overwritten because the repository is immutable."
    )]
    ImageTagAlreadyExists {
        /// The tag.
        tag: Tag,
        /// The repository.
        repository: RepositoryName,
    },
    /// The manifest has another digest than the request says.
    #[error("The image digest '{expected}' does not match the digest '{actual}' of the manifest")]
    ImageDigestDoesNotMatch {
        /// What the request says.
        expected: ErrorText,
        /// What the manifest has.
        actual: Digest,
    },
    /// Blobs that a manifest needs are missing.
    #[error("Layers with digests '{}' required for pushing image into repository with name '{}' in the registry with id '{}' do not exist", digest_list(.digests), .repository_ref.name, .repository_ref.account)]
    LayersNotFound {
        /// The missing ones.
        digests: Vec<Digest>,
        /// Where.
        repository_ref: RepositoryRef,
    },
    /// A layer that was asked for is missing.
    #[error("The layer with digest '{digest}' does not exist in {repository_ref}")]
    LayerNotFound {
        /// The digest.
        digest: ErrorText,
        /// Where.
        repository_ref: RepositoryRef,
    },
    /// A layer exists, but no image that may be pulled has it.
    #[error("The layer with digest '{digest}' is not associated with an available image in {repository_ref}")]
    LayerInaccessible {
        /// The digest.
        digest: Digest,
        /// Where.
        repository_ref: RepositoryRef,
    },
    /// Images that an index needs are missing.
    #[error("Images with digests '{}' required for pushing image into repository with name '{}' in the registry with id '{}' do not exist", digest_list(.digests), .repository_ref.name, .repository_ref.account)]
    ReferencedImagesNotFound {
        /// The missing ones.
        digests: Vec<Digest>,
        /// Where.
        repository_ref: RepositoryRef,
    },
    /// The image cannot go to that storage class.
    #[error("{0}")]
    StorageClassUpdateNotSupported(String),

    /// There is no such upload.
    #[error("The upload '{id}' does not exist in {repository_ref}")]
    UploadNotFound {
        /// The upload's id.
        id: ErrorText,
        /// Where.
        repository_ref: RepositoryRef,
    },
    /// A part does not begin where the one before ended, or is not as long as it says.
    #[error("{message}")]
    InvalidLayerPart {
        /// What is wrong.
        message: String,
        /// Where.
        repository_ref: RepositoryRef,
        /// The upload.
        id: Uuid,
        /// The last byte that was accepted, if any was.
        last_valid_byte: Option<u64>,
    },
    /// The bytes have none of the digests.
    #[error(
        "The layer digest calculation performed upon receipt of the image layer does not match the digest specified: {0}"
    )]
    InvalidLayer(String),
    /// A part other than the last is too small.
    #[error("All layer parts except the last part should be at least 5MB")]
    LayerPartTooSmall,
    /// The repository has the layer.
    #[error("Layer with digest '{digest}' already exists in {repository_ref}")]
    LayerAlreadyExists {
        /// The digest.
        digest: Digest,
        /// Where.
        repository_ref: RepositoryRef,
    },
    /// The upload has no part.
    #[error("The upload '{0}' has no parts: upload at least one before completing it")]
    EmptyUpload(Uuid),

    /// The repository has no lifecycle policy.
    #[error("Lifecycle policy does not exist for {0}")]
    LifecyclePolicyNotFound(RepositoryRef),
    /// A preview runs.
    #[error("A lifecycle policy preview for {0} is in progress. Wait until it has completed and try again.")]
    LifecyclePolicyPreviewInProgress(RepositoryRef),
    /// There has been no preview.
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
    /// The error's name.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Server(_) | Self::Full(_) => "ServerException",
            Self::Unavailable(_) => "ServiceUnavailable",
            Self::Auth(AuthError::MissingAuthenticationToken) => "MissingAuthenticationTokenException",
            Self::Auth(AuthError::IncompleteSignature(_)) => "IncompleteSignatureException",
            Self::Auth(AuthError::UnrecognizedClient) => "UnrecognizedClientException",
            Self::Auth(AuthError::InvalidSignature(_)) => "InvalidSignatureException",
            Self::AccessDenied(_) => "AccessDeniedException",
            Self::UnknownOperation(_) => "UnknownOperationException",
            Self::Serialization(_) => "SerializationException",
            Self::Body(BodyError::TooLarge(_)) => "RequestEntityTooLargeException",
            Self::Body(_) => "RequestTimeoutException",
            Self::Throttling => "ThrottlingException",
            Self::InvalidParameter { .. } | Self::InvalidParameterText(_) => "InvalidParameterException",
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
            Self::StorageClassUpdateNotSupported(_) => "ImageStorageClassUpdateNotSupportedException",
            Self::UploadNotFound { .. } => "UploadNotFoundException",
            Self::InvalidLayerPart { .. } => "InvalidLayerPartException",
            Self::InvalidLayer(_) => "InvalidLayerException",
            Self::LayerPartTooSmall => "LayerPartTooSmallException",
            Self::LayerAlreadyExists { .. } => "LayerAlreadyExistsException",
            Self::EmptyUpload(_) => "EmptyUploadException",
            Self::LifecyclePolicyNotFound(_) => "LifecyclePolicyNotFoundException",
            Self::LifecyclePolicyPreviewInProgress(_) => "LifecyclePolicyPreviewInProgressException",
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

    /// Why the registry could not do it, for the log: the client is not told. None where it is the caller's doing.
    pub(crate) fn cause(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Server(cause) => Some(&**cause),
            Self::Unavailable(cause) | Self::Full(cause) => Some(cause),
            _ => None,
        }
    }

    /// The members that some errors have beside their message.
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
            Value::Object(members) => members.into_iter().filter(|(_, value)| !value.is_null()).collect(),
            _ => Map::new(),
        }
    }

    /// The error as its caller gets it.
    pub(crate) fn into_response(self) -> Response {
        let mut body =
            Map::from_iter([("__type".into(), self.code().into()), ("message".into(), self.to_string().into())]);
        body.extend(self.details());
        let mut response = super::json_response(self.status(), Body::from(Value::Object(body).to_string()));
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
mod tests {
    use super::*;

    /// What Amazon ECR has been seen to say: clients and scripts search for these words.
    #[test]
    fn texts_are_amazon_ecrs() {
        let repository_ref =
            || RepositoryRef { account: "123456789012".parse().unwrap(), name: "team/app".parse().unwrap() };
        let (digest, other) = (Digest::sha256(b"one"), Digest::sha256(b"two"));
        let named = "with name 'team/app' in the registry with id '123456789012'";
        let found = "with name 'team/app' does not exist in the registry with id '123456789012'";
        let required = format!("required for pushing image into repository {named} do not exist");
        let table = [
            (EcrError::RepositoryNotFound(repository_ref()), format!("The repository {found}")),
            (EcrError::RepositoryAlreadyExists(repository_ref()), format!("The repository {}", found.replace("does not exist", "already exists"))),
            (
                EcrError::RepositoryNotEmpty(repository_ref()),
                "The repository with name 'team/app' in registry with id '123456789012' cannot be deleted because it still \
                 contains images"
                    .to_owned(),
            ),
            (
                EcrError::ImageNotFound { digest: "null".into(), tag: "v1".into(), repository_ref: repository_ref() },
                format!("The image with imageId {{imageDigest:'null', imageTag:'v1'}} does not exist within the repository {named}"),
            ),
            (
                EcrError::ImageAlreadyExists { digest: digest.clone(), tag: "v1".into(), repository_ref: repository_ref() },
                format!(
                    "Image with digest '{digest}' and tag 'v1' already exists in the repository with name 'team/app' in \
                     registry with id '123456789012'"
                ),
            ),
            (
                EcrError::ImageTagAlreadyExists { tag: "v1".parse().unwrap(), repository: repository_ref().name },
                "The image tag 'v1' already exists in the 'team/app' repository and cannot be overwritten because the \
                 repository is immutable."
                    .to_owned(),
            ),
            (
                EcrError::LayersNotFound { digests: vec![digest.clone(), other.clone()], repository_ref: repository_ref() },
                format!("Layers with digests '[{digest}, {other}]' {required}"),
            ),
            (
                EcrError::ReferencedImagesNotFound { digests: vec![digest.clone()], repository_ref: repository_ref() },
                format!("Images with digests '[{digest}]' {required}"),
            ),
            (EcrError::LayerPartTooSmall, "All layer parts except the last part should be at least 5MB".to_owned()),
            (EcrError::RepositoryPolicyNotFound(repository_ref()), format!("Repository policy does not exist for the repository {named}")),
            (EcrError::LifecyclePolicyNotFound(repository_ref()), format!("Lifecycle policy does not exist for the repository {named}")),
            (
                EcrError::RegistryPolicyNotFound(repository_ref().account),
                "Registry policy does not exist in the registry with id '123456789012'".to_owned(),
            ),
            (AuthError::MissingAuthenticationToken.into(), "Missing Authentication Token".to_owned()),
            (AuthError::UnrecognizedClient.into(), "The security token included in the request is invalid.".to_owned()),
        ];
        for (error, text) in table {
            assert_eq!(error.to_string(), text);
        }
    }
}
