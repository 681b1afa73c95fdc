//! The errors of the OCI API: the envelope of distribution-spec 1.1 with Amazon ECR's statuses and
//! texts.

use std::fmt::Display;

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use super::action::ActionError;
use crate::auth::Denied;
use crate::config::PublicUrl;
use crate::message::RETRY_AFTER;
use crate::message::body::{Body, BodyError};
use crate::message::{Response, plain};
use crate::service::images::PutImageError;
use crate::service::manifest::InvalidManifest;
use crate::service::uploads::UploadFailure;
use wharfage_domain::names::{AccountId, Digest, RepositoryName};
use wharfage_process::budget::Exhausted;
use wharfage_store::StoreError;
use wharfage_store::images::DeleteImageError;
use wharfage_store::manifests::PutManifestError;

/// The text for a push to a full disk.
const FULL: &str = "The registry's disk is full, so it takes no pushes. Delete what is not needed, or ask its operator for space";

/// The codes of the distribution spec's table that this registry uses, and ECR's `TAG_INVALID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// A blob is not in the repository.
    BlobUnknown,
    /// The upload cannot continue with this request.
    BlobUploadInvalid,
    /// The upload does not exist.
    BlobUploadUnknown,
    /// A digest is not valid, or not that of the content.
    DigestInvalid,
    /// A manifest references missing content.
    ManifestBlobUnknown,
    /// A manifest is not valid.
    ManifestInvalid,
    /// A manifest is not in the repository.
    ManifestUnknown,
    /// A repository's name is not valid.
    NameInvalid,
    /// The repository does not exist.
    NameUnknown,
    /// A length differs from the stated one.
    SizeInvalid,
    /// A tag is not valid, or immutable.
    TagInvalid,
    /// The caller has no permission.
    Denied,
    /// The registry does not support the operation.
    Unsupported,
    /// There is no memory for more requests.
    TooManyRequests,
    /// The store does not answer in time.
    Unavailable,
    /// The registry failed.
    Unknown,
}

impl Code {
    fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::TagInvalid => "TAG_INVALID",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// An error response.
#[derive(Debug)]
pub(crate) struct OciError {
    status: StatusCode,
    code: Code,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The cause for the log, which the client does not see.
    cause: Option<String>,
}

impl OciError {
    /// Creates an error with this text.
    pub(crate) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new(), cause: None }
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// RepositoryNotFoundException.
    pub(crate) fn name_unknown(account: &AccountId, name: &RepositoryName) -> Self {
        let text = format!(
            "The repository with name '{name}' does not exist in the registry with id '{account}'"
        );
        Self::new(StatusCode::NOT_FOUND, Code::NameUnknown, text)
    }

    /// ImageNotFoundException, also for archived images.
    pub(crate) fn manifest_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::ManifestUnknown, "Requested image not found")
    }

    /// A layer does not exist.
    pub(crate) fn blob_unknown(digest: &Digest) -> Self {
        let text = format!("The layer with digest '{digest}' does not exist in this repository");
        Self::new(StatusCode::NOT_FOUND, Code::BlobUnknown, text)
    }

    /// UploadNotFoundException.
    pub(crate) fn upload_unknown(id: impl Display) -> Self {
        let text = format!("The upload '{id}' does not exist or is complete already");
        Self::new(StatusCode::NOT_FOUND, Code::BlobUploadUnknown, text)
    }

    /// ImageDigestDoesNotMatch and InvalidLayer.
    pub(crate) fn digest_mismatch(actual: &Digest) -> Self {
        let text = format!("The digest given is not that of the content, which is '{actual}'");
        Self::new(StatusCode::BAD_REQUEST, Code::DigestInvalid, text)
    }

    /// InvalidParameterException, which ECR returns with status 405 here.
    pub(crate) fn invalid_parameter(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message)
    }

    /// Returns the cause for the log; the client does not see it.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Creates the error of a failed upload to repository `name`.
    pub(crate) fn of_upload(failure: UploadFailure, id: impl Display) -> Self {
        match failure {
            UploadFailure::NotFound => Self::upload_unknown(id),
            UploadFailure::Busy => {
                Self::new(StatusCode::CONFLICT, Code::BlobUploadInvalid, failure.to_string())
                    .with(header::RETRY_AFTER, HeaderValue::from_static("1"))
            }
            UploadFailure::TooLarge(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, failure.to_string())
            }
            UploadFailure::DigestMismatch { actual } => Self::digest_mismatch(&actual),
            UploadFailure::Store(error) => error.into(),
        }
    }

    /// Creates the error of a manifest that was refused in repository `name`.
    pub(crate) fn of_put(error: PutImageError, account: &AccountId, name: &RepositoryName) -> Self {
        let absent = |what: &str, digests: &[Digest]| {
            let text = format!(
                "{what} with digests '{}' required for pushing image into repository with name '{name}' in the registry with id '{account}' do not exist",
                list(digests)
            );
            Self::new(StatusCode::BAD_REQUEST, Code::ManifestBlobUnknown, text)
        };
        match error {
            PutImageError::Manifest(error @ InvalidManifest::TooLarge(_)) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::ManifestInvalid, error.to_string())
            }
            PutImageError::Manifest(error) => Self::invalid_parameter(error.to_string()),
            PutImageError::DigestMismatch { actual } => Self::digest_mismatch(&actual),
            PutImageError::Put(error) => match error {
                PutManifestError::NoRepository => Self::name_unknown(account, name),
                PutManifestError::BlobsNotFound(digests) => absent("Layers", &digests),
                PutManifestError::ChildrenNotFound(digests) => absent("Images", &digests),
                PutManifestError::SizeMismatch(mismatch) => {
                    Self::invalid_parameter(InvalidManifest::from(mismatch).to_string())
                }
                PutManifestError::TagAlreadyExists { tag, .. } => {
                    let text = format!(
                        "The image tag '{tag}' already exists in the '{name}' repository and cannot be overwritten because the repository is immutable."
                    );
                    Self::new(StatusCode::BAD_REQUEST, Code::TagInvalid, text)
                }
                PutManifestError::TooManyImages(limit) => {
                    let text = format!(
                        "The repository with name '{name}' has the {limit} images that it may have"
                    );
                    Self::new(StatusCode::FORBIDDEN, Code::Denied, text)
                }
                PutManifestError::TooManyTags(limit) => {
                    let text =
                        format!("The image would have more than the {limit} tags that it may have");
                    Self::new(StatusCode::FORBIDDEN, Code::Denied, text)
                }
                PutManifestError::Store(error) => error.into(),
            },
        }
    }

    /// Renders the response. hyper omits the body of a response to HEAD.
    pub(crate) fn into_response(self) -> Response {
        let envelope =
            Envelope { errors: [ErrorEntry { code: self.code.as_str(), message: &self.message }] };
        // Two strings always serialize.
        let body = serde_json::to_vec(&envelope).unwrap_or_default();
        let mut response = Response::new(Body::from(bytes::Bytes::from(body)));
        *response.status_mut() = self.status;
        response.headers_mut().extend(self.headers);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Formats `[a, b]`, as ECR writes lists in its texts.
fn list(digests: &[Digest]) -> String {
    const SHOWN: usize = 50;
    let shown: Vec<&str> = digests.iter().take(SHOWN).map(Digest::as_str).collect();
    let more = if digests.len() > SHOWN { ", …" } else { "" };
    format!("[{}{more}]", shown.join(", "))
}

#[derive(Serialize)]
struct Envelope<'a> {
    errors: [ErrorEntry<'a>; 1],
}

#[derive(Serialize)]
struct ErrorEntry<'a> {
    code: &'static str,
    message: &'a str,
}

impl From<ActionError> for OciError {
    fn from(error: ActionError) -> Self {
        let text = error.to_string();
        let (status, code) = match &error {
            ActionError::UnknownEndpoint => (StatusCode::NOT_FOUND, Code::Unsupported),
            ActionError::Method(allow) => {
                return Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, text)
                    .with(header::ALLOW, HeaderValue::from_static(allow));
            }
            ActionError::Name(_) => (StatusCode::BAD_REQUEST, Code::NameInvalid),
            ActionError::Digest(_) => (StatusCode::BAD_REQUEST, Code::DigestInvalid),
            ActionError::Tag(_) => (StatusCode::BAD_REQUEST, Code::TagInvalid),
            ActionError::NoSuchTag(_) => return Self::manifest_unknown(),
            ActionError::Upload(id) => return Self::upload_unknown(id),
            ActionError::Parameter { name: "digest", .. } => {
                (StatusCode::BAD_REQUEST, Code::DigestInvalid)
            }
            ActionError::Parameter { .. } => return Self::invalid_parameter(text),
            ActionError::TooManyTags => (StatusCode::URI_TOO_LONG, Code::Unsupported),
        };
        Self::new(status, code, text)
    }
}

impl From<Denied> for OciError {
    fn from(denied: Denied) -> Self {
        Self::new(StatusCode::FORBIDDEN, Code::Denied, denied.to_string())
    }
}

impl From<StoreError> for OciError {
    fn from(error: StoreError) -> Self {
        let mut refusal = match error {
            StoreError::Unavailable(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                "The registry is not available right now",
            )
            .with(header::RETRY_AFTER, HeaderValue::from_static("1")),
            // Not 503: most clients retry on 503 at once, which does not help here. docker shows
            // only the status of a 5xx, so the status must explain the error.
            StoreError::Full(_) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, Code::Unavailable, FULL)
            }
            StoreError::Inconsistent(_) | StoreError::Backend(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Unknown, "The registry failed")
            }
        };
        refusal.cause = Some(match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        });
        refusal
    }
}

impl From<Exhausted> for OciError {
    fn from(_: Exhausted) -> Self {
        let text = "The registry has more requests than it has memory for. Try again later.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::TooManyRequests, text)
            .with(header::RETRY_AFTER, RETRY_AFTER)
    }
}

impl From<BodyError> for OciError {
    fn from(error: BodyError) -> Self {
        let status = match error {
            BodyError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            BodyError::Broken(_) => StatusCode::BAD_REQUEST,
            BodyError::Exhausted(exhausted) => return exhausted.into(),
        };
        Self::new(status, Code::SizeInvalid, error.to_string())
    }
}

impl From<DeleteImageError> for OciError {
    fn from(error: DeleteImageError) -> Self {
        match error {
            // The OCI API sends neither a digest beside a tag nor preconditions, so nothing can
            // disagree.
            DeleteImageError::NotFound
            | DeleteImageError::TagPointsElsewhere(_)
            | DeleteImageError::Stale(_) => Self::manifest_unknown(),
            DeleteImageError::ReferencedBy(indexes) => Self::invalid_parameter(format!(
                "Requested image referenced by manifest list: {}",
                list(&indexes)
            )),
            DeleteImageError::Store(error) => error.into(),
        }
    }
}

/// Creates the response to a request without a valid token.
pub(crate) fn unauthorized(public_url: &PublicUrl) -> Response {
    let mut response = plain(StatusCode::UNAUTHORIZED, "Not Authorized\n");
    let challenge = format!("Basic realm=\"{public_url}/\",service=\"ecr.amazonaws.com\"");
    // A URL parsed at the start is a valid header value; without the header, the status is still
    // 401.
    if let Ok(challenge) = HeaderValue::try_from(challenge) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn rendered(error: OciError) -> (StatusCode, serde_json::Value) {
        let response = error.into_response();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn an_error_has_the_envelope_of_the_specification() {
        let name = "team/app".parse().unwrap();
        let (status, body) =
            rendered(OciError::name_unknown(&"123456789012".parse().unwrap(), &name)).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(
            body,
            serde_json::json!({"errors": [{
                "code": "NAME_UNKNOWN",
                "message": "The repository with name 'team/app' does not exist in the registry with id '123456789012'",
            }]})
        );
    }

    #[tokio::test]
    async fn store_errors_are_only_in_the_log() {
        let error = OciError::from(StoreError::Inconsistent("row 7 of secrets".to_owned()));
        assert!(error.cause().unwrap().contains("row 7"));
        let (status, body) = rendered(error).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!body.to_string().contains("row 7"));
    }

    #[test]
    fn an_unavailable_store_has_a_retry_after() {
        let response =
            OciError::from(StoreError::Unavailable("timed out".to_owned())).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
    }

    #[tokio::test]
    async fn a_push_to_a_full_disk_is_refused_with_a_text() {
        let (status, body) =
            rendered(OciError::from(StoreError::Full("7 bytes are free in /srv".to_owned()))).await;
        assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
        assert!(
            body.to_string().contains("disk is full") && !body.to_string().contains("/srv"),
            "{body}"
        );
    }

    #[test]
    fn the_challenge_is_basic_and_names_the_public_host() {
        let url = PublicUrl {
            scheme: "https".to_owned(),
            authority: "registry.example.com:5000".to_owned(),
        };
        let response = unauthorized(&url);
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let challenge = &response.headers()[header::WWW_AUTHENTICATE];
        assert_eq!(
            challenge,
            "Basic realm=\"https://registry.example.com:5000/\",service=\"ecr.amazonaws.com\""
        );
    }
}
