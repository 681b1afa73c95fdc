//! Blobs: GET with ranges, HEAD, DELETE.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderValue, StatusCode, header};
use uuid::Uuid;

use super::conditions::{ContentHeaders, Precondition, WantedRange, precondition, wanted_range};
use super::error::{Code, OciError};
use super::{CONTENT_DIGEST, OciCall, empty, value};
use crate::message::Response;
use crate::message::body::Body;
use crate::message::memory::{self, Caller};
use crate::service::Registry;
use crate::service::uploads::lease_of_present;
use wharfage_domain::names::{Digest, RepositoryName};
use wharfage_process::budget::Account;
use wharfage_store::layers::{Blob, UnlinkOutcome};
use wharfage_store::{BlobReader, Lookup, StoreError, StoreResult};

const OCTETS: &str = "application/octet-stream";

/// The validity of a redirect's URL: the time that one download may take to begin, including
/// retries.
const REDIRECT_VALID_FOR: Duration = Duration::from_secs(20 * 60);

/// end-2. HEAD is always answered here: a presigned URL is for GET only.
pub(super) async fn read(
    call: &OciCall,
    name: &RepositoryName,
    digest: &Digest,
    head: bool,
) -> Result<Response, OciError> {
    let registry = &call.registry;
    let blob = match registry.metadata.find_blob(&registry.config.account, name, digest).await? {
        Lookup::Found(blob) if registry.is_usable(&blob).await? => blob,
        Lookup::Found(_) | Lookup::Missing => return Err(OciError::blob_unknown(digest)),
        Lookup::NoRepository => return Err(call.name_unknown(name)),
    };
    let named = ContentHeaders::new(&blob.digest)
        .ok_or_else(|| StoreError::Inconsistent(format!("{} is no header's value", blob.digest)))?;
    let mut response = match precondition(&call.headers, &named.etag) {
        Precondition::Failed => return Ok(empty(StatusCode::PRECONDITION_FAILED)),
        Precondition::NotModified => empty(StatusCode::NOT_MODIFIED),
        Precondition::Met if head => {
            // A client does not push a blob that is reported as present, so it is kept until the
            // manifest can have arrived.
            let repository = call.repository(name).await?;
            registry
                .metadata
                .extend_leases(
                    repository.id,
                    std::slice::from_ref(digest),
                    lease_of_present(call.now),
                )
                .await?;
            content(StatusCode::OK, blob.bytes.size, Body::empty())
        }
        Precondition::Met => {
            if let Some(url) = registry.presigned_url(&blob, REDIRECT_VALID_FOR).await? {
                let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
                response.headers_mut().insert(header::LOCATION, value(url)?);
                response.headers_mut().insert(CONTENT_DIGEST, named.digest);
                return Ok(response);
            }
            let source = BlobSource {
                registry: Arc::clone(registry),
                blob: blob.clone(),
                caller: call.caller.clone(),
            };
            let size = blob.bytes.size;
            let (response, sent) = match wanted_range(&call.headers, &named.etag, size) {
                WantedRange::Whole => {
                    (content(StatusCode::OK, size, source.body(0..size).await?), size)
                }
                WantedRange::Part(range) => {
                    let length = range.end - range.start;
                    let body = source.body(range.clone()).await?;
                    let mut response = content(StatusCode::PARTIAL_CONTENT, length, body);
                    let headers = response.headers_mut();
                    headers.insert(header::CONTENT_RANGE, value(content_range(&range, size))?);
                    (response, length)
                }
                WantedRange::Parts(ranges) => source.parts(ranges).await?,
                WantedRange::Unsatisfiable => return Err(unsatisfiable(size)?),
            };
            registry.metrics.sent.inc_by(sent);
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_DIGEST, named.digest);
    headers.insert(header::ETAG, named.etag);
    Ok(response)
}

/// The source of a blob's bytes.
#[derive(Clone)]
struct BlobSource {
    registry: Arc<Registry>,
    blob: Blob,
    caller: Caller,
}

impl BlobSource {
    /// Reserves the memory of a reader.
    async fn memory(&self) -> Result<Account, OciError> {
        let bytes = self.registry.blobs.reader_memory();
        let mut account = memory::process().open(&self.caller, bytes);
        account.hold(bytes, memory::TIMEOUT).await?;
        Ok(account)
    }

    /// Opens a range for reading; a damaged blob is unknown.
    async fn read(&self, range: Range<u64>) -> Result<BlobReader, OciError> {
        let reader = self.registry.read_blob(&self.blob, range).await?;
        reader.ok_or_else(|| OciError::blob_unknown(&self.blob.digest))
    }

    /// Opens a further range, after the response has begun.
    async fn read_on(self, range: Range<u64>) -> StoreResult<BlobReader> {
        let damaged = || {
            StoreError::Inconsistent(format!(
                "{} was found damaged while it was read",
                self.blob.digest
            ))
        };
        self.registry.read_blob(&self.blob, range).await?.ok_or_else(damaged)
    }

    /// Creates a body of one range.
    async fn body(&self, range: Range<u64>) -> Result<Body, OciError> {
        let remaining = range.end - range.start;
        if remaining == 0 {
            return Ok(Body::empty());
        }
        let memory = self.memory().await?;
        Ok(Body::Blob { reader: self.read(range).await?, remaining, _memory: memory })
    }

    /// Creates a body of several ranges as `multipart/byteranges` (RFC 9110 §14.6), read one after
    /// the other. Also returns the number of the blob's bytes in it.
    async fn parts(self, ranges: Vec<Range<u64>>) -> Result<(Response, u64), OciError> {
        let boundary = Uuid::new_v4().simple().to_string();
        let head = |range: &Range<u64>| {
            let range = content_range(range, self.blob.bytes.size);
            format!("\r\n--{boundary}\r\nContent-Type: {OCTETS}\r\nContent-Range: {range}\r\n\r\n")
        };
        let heads: Vec<String> = ranges.iter().map(head).collect();
        let end = format!("\r\n--{boundary}--\r\n");
        let sent: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let length = sent + (heads.iter().map(String::len).sum::<usize>() + end.len()) as u64;

        // Only one reader is open at a time.
        let memory = self.memory().await?;
        // The first range is opened before the response begins, so that an unreadable blob is an
        // error.
        let mut first = match ranges.first() {
            Some(range) => Some(self.read(range.clone()).await?),
            None => None,
        };
        let parts =
            futures::stream::iter(ranges.into_iter().zip(heads)).flat_map(move |(range, head)| {
                let (source, opened) = (self.clone(), first.take());
                let read = async move {
                    match opened {
                        Some(reader) => Ok(reader),
                        None => source.read_on(range).await,
                    }
                };
                let head = futures::stream::once(std::future::ready(Ok(Bytes::from(head))));
                head.chain(futures::stream::once(read).try_flatten())
            });
        let end = futures::stream::once(std::future::ready(Ok(Bytes::from(end))));
        let body =
            Body::Blob { reader: parts.chain(end).boxed(), remaining: length, _memory: memory };
        let mut response = content(StatusCode::PARTIAL_CONTENT, length, body);
        let media_type = value(format!("multipart/byteranges; boundary={boundary}"))?;
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        Ok((response, sent))
    }
}

/// Formats `bytes FIRST-LAST/SIZE`, both inclusive.
fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

fn content(status: StatusCode, length: u64, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(OCTETS));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

fn unsatisfiable(size: u64) -> Result<OciError, OciError> {
    let text = format!("The blob has {size} bytes; the range asks for none of them");
    let range = value(format!("bytes */{size}"))?;
    let error = OciError::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::Unsupported, text);
    Ok(error.with(header::CONTENT_RANGE, range))
}

/// end-10. Fails while a manifest needs the blob.
pub(super) async fn delete(
    call: &OciCall,
    name: &RepositoryName,
    digest: &Digest,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    match call.registry.metadata.unlink_blob(repository.id, digest).await? {
        UnlinkOutcome::Unlinked => Ok(empty(StatusCode::ACCEPTED)),
        UnlinkOutcome::NotFound => Err(OciError::blob_unknown(digest)),
        UnlinkOutcome::InUse => {
            let text = format!(
                "The layer with digest '{digest}' is referenced by an image of this repository"
            );
            Err(OciError::invalid_parameter(text))
        }
    }
}
