//! Blobs: GET with ranges, HEAD, DELETE.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};

use super::conditions::{Condition, Named, Wanted, condition, wanted};
use super::error::{Code, OciError};
use super::{CONTENT_DIGEST, Call, empty, value};
use crate::names::{Digest, RepositoryName};
use crate::registry::Response;
use crate::registry::body::Body;
use crate::registry::uploads::lease_of_present;
use crate::store::images::UnlinkBlob;
use crate::store::{Lookup, StoreError};

/// How long a redirect's URL is good for: as long as one download may take to begin, retries included.
const REDIRECT_VALID_FOR: Duration = Duration::from_secs(20 * 60);

/// end-2. HEAD is answered here always: a presigned URL is for GET only.
pub(super) async fn read(
    call: &Call,
    name: &RepositoryName,
    digest: &Digest,
    head: bool,
) -> Result<Response, OciError> {
    let registry = &call.registry;
    let blob = match registry.metadata.find_blob(&registry.config.account, name, digest).await? {
        Lookup::Found(blob) => blob,
        Lookup::Missing => return Err(OciError::blob_unknown(digest)),
        Lookup::NoRepository => return Err(call.name_unknown(name)),
    };
    let named = Named::new(&blob.digest)
        .ok_or_else(|| StoreError::Inconsistent(format!("{} is no header's value", blob.digest)))?;
    let mut response = match condition(&call.headers, &named.etag) {
        Condition::Failed => return Ok(empty(StatusCode::PRECONDITION_FAILED)),
        Condition::NotModified => empty(StatusCode::NOT_MODIFIED),
        Condition::Met if head => {
            // A client that is told that a blob is here does not push it, so it stays until the manifest may have come.
            let repository = call.repository(name).await?;
            registry
                .metadata
                .extend_leases(repository.id, std::slice::from_ref(digest), lease_of_present(call.now))
                .await?;
            content(StatusCode::OK, blob.size, Body::empty())
        }
        Condition::Met => {
            if registry.config.redirect_blobs
                && let Some(url) = registry.blobs.presigned_url(blob.generation, REDIRECT_VALID_FOR).await?
            {
                let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
                response.headers_mut().insert(header::LOCATION, value(url)?);
                response.headers_mut().insert(CONTENT_DIGEST, named.digest);
                return Ok(response);
            }
            let (status, range) = match wanted(&call.headers, &named.etag, blob.size) {
                Wanted::Whole => (StatusCode::OK, 0..blob.size),
                Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
                Wanted::Unsatisfiable => return Err(unsatisfiable(blob.size)?),
            };
            let length = range.end - range.start;
            let body = if length == 0 {
                Body::empty()
            } else {
                let reader = registry.blobs.read(blob.generation, blob.size, range.clone()).await?;
                Body::Blob { reader, remaining: length }
            };
            registry.metrics.sent.inc_by(length);
            let mut response = content(status, length, body);
            if status == StatusCode::PARTIAL_CONTENT {
                let text = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.size);
                response.headers_mut().insert(header::CONTENT_RANGE, value(text)?);
            }
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_DIGEST, named.digest);
    headers.insert(header::ETAG, named.etag);
    Ok(response)
}

fn content(status: StatusCode, length: u64, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

fn unsatisfiable(size: u64) -> Result<OciError, OciError> {
    let text = format!("The blob has {size} bytes; the range asks for none of them");
    let range = value(format!("bytes */{size}"))?;
    let error = OciError::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::Unsupported, text);
    Ok(error.with(header::CONTENT_RANGE, range))
}

/// end-10, while no manifest needs it.
pub(super) async fn delete(call: &Call, name: &RepositoryName, digest: &Digest) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    match call.registry.metadata.unlink_blob(repository.id, digest).await? {
        UnlinkBlob::Unlinked => Ok(empty(StatusCode::ACCEPTED)),
        UnlinkBlob::NotFound => Err(OciError::blob_unknown(digest)),
        UnlinkBlob::InUse => {
            let text = format!("The layer with digest '{digest}' is referenced by an image of this repository");
            Err(OciError::invalid_parameter(text))
        }
    }
}
