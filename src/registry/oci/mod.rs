//! The OCI API: distribution-spec 1.1 under `/v2/`, as Amazon ECR offers it.
//!
//! A request is parsed into an [`OciAction`], authenticated, authorized and passed to its handler.
//! An unauthenticated client learns nothing else. Handlers know HTTP and the store; pure modules
//! decide about bytes and names.

pub(crate) mod action;
mod blobs;
mod catalog;
pub(crate) mod conditions;
pub(crate) mod error;
mod manifests;
mod referrers;
mod tags;
mod uploads;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;

use crate::auth::download;
use crate::auth::token::{self, TokenError};
use crate::auth::{Principal, Resource, authorize};
use crate::message::body::{Body, RequestBody};
use crate::message::memory::Caller;
use crate::message::{OperationName, Request, RequestId, Response};
use crate::service::Registry;
use action::{OciAction, RepositoryAction, UploadStart};
use error::{Code, OciError};
use wharfage_domain::names::{AccountId, RepositoryName};
use wharfage_store::repositories::Repository;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The longest accepted `AWS:TOKEN` in the Authorization header, in base64.
const MAX_CREDENTIAL: usize = 8 * 1024;

/// The context of a request.
struct OciCall {
    registry: Arc<Registry>,
    headers: HeaderMap,
    principal: Principal,
    /// The owner of the bodies' memory.
    caller: Caller,
    /// The account that the request addresses. Authorization refuses any account except ours.
    account: AccountId,
    now: Timestamp,
}

/// Answers a request to `/v2` or below `/v2/`.
pub(crate) async fn handle(registry: Arc<Registry>, request: Request) -> Response {
    let (parts, mut body) = request.into_parts();
    let query = parts.uri.query();
    let action = OciAction::parse(&parts.method, parts.uri.path(), query);
    let operation = action.as_ref().map_or("v2 other", OciAction::operation);
    let request_id = parts.extensions.get::<RequestId>().map(|id| id.0);
    let now = Timestamp::now();
    let answered = match authenticate(&registry, &parts.headers, action.as_ref().ok(), query, now) {
        Err(refused) => Err(refused.into_response(&registry)),
        Ok(principal) => {
            let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
            let account = registry.config.account_of(host.or(parts.uri.host()));
            let caller = Caller::Verified(body.peer(), Arc::clone(&principal.access_key_id));
            let call =
                OciCall { registry, headers: parts.headers, principal, caller, account, now };
            let answered = match action {
                Ok(action) => call.dispatch(action, &mut body).await,
                Err(error) => Err(error.into()),
            };
            answered.map_err(|error| {
                if let Some(cause) = error.cause() {
                    tracing::error!(?request_id, operation, cause, "the request failed");
                }
                error.into_response()
            })
        }
    };
    let mut response = match answered {
        Ok(response) => response,
        Err(refusal) => {
            body.drain().await;
            refusal
        }
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response.extensions_mut().insert(OperationName(operation));
    response
}

/// Authenticates a request by a token, as docker sends it, or by a signed URL of one blob.
fn authenticate(
    registry: &Registry,
    headers: &HeaderMap,
    action: Option<&OciAction>,
    query: Option<&str>,
    now: Timestamp,
) -> Result<Principal, AuthenticationError> {
    if let Some(OciAction::Repository(name, RepositoryAction::ReadBlob { digest, head: false })) =
        action
        && let Some(query) = query.filter(|query| download::is_signed(query))
    {
        return download::verify(&registry.keys, name, digest, query, now)
            .map_err(|error| AuthenticationError::Refused(error.to_string()));
    }
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(basic_token)
        .ok_or(AuthenticationError::Unknown)?;
    token::verify(&registry.keys, &token, now).map_err(|error| match error {
        TokenError::Invalid => AuthenticationError::Unknown,
        TokenError::Expired => AuthenticationError::Refused(error.to_string()),
    })
}

/// The reason why a request is not authenticated.
enum AuthenticationError {
    /// There is no valid credential: 401.
    Unknown,
    /// The credential has expired, or it is for something else: 403.
    Refused(String),
}

impl AuthenticationError {
    fn into_response(self, registry: &Registry) -> Response {
        match self {
            Self::Unknown => error::unauthorized(&registry.config.public_url),
            Self::Refused(text) => {
                OciError::new(StatusCode::FORBIDDEN, Code::Denied, text).into_response()
            }
        }
    }
}

/// Returns the password of `Basic AWS:password`.
fn basic_token(value: &HeaderValue) -> Option<String> {
    let (scheme, credential) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || credential.len() > MAX_CREDENTIAL {
        return None;
    }
    let mut decoded = String::from_utf8(BASE64.decode(credential.trim()).ok()?).ok()?;
    decoded.starts_with("AWS:").then(|| decoded.split_off(4))
}

impl OciCall {
    async fn dispatch(
        self,
        action: OciAction,
        body: &mut RequestBody,
    ) -> Result<Response, OciError> {
        let (name, act) = match action {
            OciAction::Ping => return Ok(json(StatusCode::OK, "{}")),
            OciAction::Catalog(page) => {
                self.allow("DescribeRepositories", Resource::Registry(&self.account))?;
                return catalog::list(&self, page).await;
            }
            OciAction::Repository(name, act) => (name, act),
        };
        self.authorize(&name, &act, body.is_empty())?;
        match act {
            RepositoryAction::ReadManifest { reference, head } => {
                manifests::read(&self, &name, &reference, head).await
            }
            RepositoryAction::PutManifest { digest, tags } => {
                manifests::put(&self, &name, digest, tags, body).await
            }
            RepositoryAction::DeleteManifest(digest) => {
                manifests::delete(&self, &name, &digest).await
            }
            RepositoryAction::DeleteTag(tag) => manifests::delete_tag(&self, &name, &tag).await,
            RepositoryAction::ReadBlob { digest, head } => {
                blobs::read(&self, &name, &digest, head).await
            }
            RepositoryAction::DeleteBlob(digest) => blobs::delete(&self, &name, &digest).await,
            RepositoryAction::StartUpload(start) => uploads::start(&self, &name, start, body).await,
            RepositoryAction::PatchUpload(id) => uploads::patch(&self, &name, id, body).await,
            RepositoryAction::PutUpload(id, digest) => {
                uploads::put(&self, &name, id, digest, body).await
            }
            RepositoryAction::UploadStatus(id) => uploads::status(&self, &name, id).await,
            RepositoryAction::CancelUpload(id) => uploads::cancel(&self, &name, id).await,
            RepositoryAction::ListTags(page) => tags::list(&self, &name, page).await,
            RepositoryAction::ListReferrers { digest, artifact_type, after } => {
                referrers::list(&self, &name, &digest, artifact_type, after).await
            }
        }
    }

    /// Checks the IAM actions that ECR requires for an endpoint. A mount's source is checked when
    /// it is known.
    fn authorize(
        &self,
        name: &RepositoryName,
        act: &RepositoryAction,
        empty: bool,
    ) -> Result<(), OciError> {
        let needed: &[&'static str] = match act {
            RepositoryAction::ReadManifest { .. } | RepositoryAction::ListReferrers { .. } => {
                &["BatchGetImage"]
            }
            RepositoryAction::PutManifest { .. } => &["PutImage"],
            RepositoryAction::DeleteManifest(_)
            | RepositoryAction::DeleteTag(_)
            | RepositoryAction::DeleteBlob(_) => &["BatchDeleteImage"],
            RepositoryAction::ReadBlob { head: false, .. } => &["GetDownloadUrlForLayer"],
            RepositoryAction::ReadBlob { head: true, .. } => {
                // The permission to pull a layer includes checking its presence.
                if self.may("GetDownloadUrlForLayer", name).is_ok() {
                    return Ok(());
                }
                &["BatchCheckLayerAvailability"]
            }
            RepositoryAction::StartUpload(UploadStart::Whole(_)) => {
                &["InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload"]
            }
            RepositoryAction::StartUpload(_) => &["InitiateLayerUpload"],
            RepositoryAction::PatchUpload(_)
            | RepositoryAction::UploadStatus(_)
            | RepositoryAction::CancelUpload(_) => &["UploadLayerPart"],
            RepositoryAction::PutUpload(..) if empty => &["CompleteLayerUpload"],
            RepositoryAction::PutUpload(..) => &["CompleteLayerUpload", "UploadLayerPart"],
            RepositoryAction::ListTags(_) => &["ListImages"],
        };
        needed.iter().try_for_each(|action| self.may(action, name))
    }

    /// Checks the permission for an action on a repository, which need not exist.
    fn may(&self, action: &'static str, name: &RepositoryName) -> Result<(), OciError> {
        self.allow(action, Resource::Repository(&self.registry.config.region, &self.account, name))
    }

    fn allow(&self, action: &'static str, resource: Resource<'_>) -> Result<(), OciError> {
        Ok(authorize(&self.principal, action, resource)?)
    }

    async fn repository(&self, name: &RepositoryName) -> Result<Repository, OciError> {
        let found =
            self.registry.metadata.find_repository(&self.registry.config.account, name).await?;
        found.ok_or_else(|| self.name_unknown(name))
    }

    fn name_unknown(&self, name: &RepositoryName) -> OciError {
        OciError::name_unknown(&self.registry.config.account, name)
    }
}

/// Creates a response without a body.
fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Creates a JSON response.
fn json(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Creates a header value from text of this registry.
fn value(text: impl AsRef<str>) -> Result<HeaderValue, OciError> {
    HeaderValue::from_str(text.as_ref()).map_err(|_| {
        wharfage_store::StoreError::Inconsistent(format!(
            "{:?} is no header's value",
            text.as_ref()
        ))
        .into()
    })
}

/// Adds `Link: <target>; rel="next"`.
fn next_page(response: &mut Response, target: &str) -> Result<(), OciError> {
    response.headers_mut().insert(header::LINK, value(format!("<{target}>; rel=\"next\""))?);
    Ok(())
}

/// Percent-encodes the value of a query parameter.
fn encoded(text: &str) -> percent_encoding::PercentEncode<'_> {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
}
