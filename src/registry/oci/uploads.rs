//! Pushes of blobs: sessions, chunks, whole bodies and mounts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use tracing::Instrument as _;
use uuid::Uuid;

use super::action::UploadStart;
use super::conditions::chunk_range;
use super::error::{Code, OciError};
use super::{CONTENT_DIGEST, OciCall, UPLOAD_UUID, empty, value};
use crate::message::Response;
use crate::message::body::RequestBody;
use crate::message::memory::Caller;
use crate::service::Registry;
use crate::service::uploads::{FinishedUpload, LEASE, UploadFailure, UploadSession};
use wharfage_domain::names::{Digest, RepositoryName};
use wharfage_store::layers::MountOutcome;
use wharfage_store::repositories::{Repository, RepositoryId};
use wharfage_store::{Lookup, StoreError};

/// The interval of acknowledgments of a long body: its session must not look idle, and a crash
/// should not cost hours of sending.
const ACKNOWLEDGED_EVERY: Duration = Duration::from_secs(10 * 60);
/// The number of repositories that are tried as the source of a mount without `from`.
const SOURCES: usize = 16;

/// end-4 and end-11.
pub(super) async fn start(
    call: &OciCall,
    name: &RepositoryName,
    start: UploadStart,
    body: &mut RequestBody,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    let algorithm = match start {
        UploadStart::Session(algorithm) => algorithm,
        UploadStart::Mount { digest, from } => {
            if mount(call, &repository, &digest, from).await? {
                return created(name, &digest);
            }
            // The client continues with an upload of the same blob.
            digest.algorithm()
        }
        UploadStart::Whole(digest) => {
            let registry = &call.registry;
            let open = registry.begin_whole_upload(repository.id, digest.algorithm(), call.now);
            let session = open.await.map_err(|failure| gone(call, name, failure))?;
            let id = session.acknowledged().id;
            let expected = announced(&call.headers);
            if let Err(failure) = session.reserve(expected.unwrap_or(0)) {
                session.abandon().await;
                return Err(OciError::of_upload(failure, id));
            }
            let finished = complete(call, session, body, expected, digest).await?;
            return created(name, &finished.digest);
        }
    };
    let upload = call.registry.begin_upload(repository.id, algorithm, call.now).await;
    let upload = upload.map_err(|failure| gone(call, name, failure))?;
    progress(StatusCode::ACCEPTED, name, upload.id, 0)
}

/// Creates the error of a session that cannot begin: its repository was just deleted.
fn gone(call: &OciCall, name: &RepositoryName, failure: UploadFailure) -> OciError {
    match failure {
        UploadFailure::NotFound => call.name_unknown(name),
        failure => OciError::of_upload(failure, ""),
    }
}

/// Links a blob of another repository, if the account enables mounting and the caller may read the
/// blob there. Otherwise the client uploads it, as the specification requires.
async fn mount(
    call: &OciCall,
    to: &Repository,
    digest: &Digest,
    from: Option<RepositoryName>,
) -> Result<bool, OciError> {
    let (registry, account) = (&call.registry, &call.registry.config.account);
    let settings = registry.metadata.list_account_settings(account).await?;
    if settings.get("BLOB_MOUNTING").is_none_or(|value| value != "ENABLED") {
        return Ok(false);
    }
    let sources = match from {
        Some(from) => {
            let found = registry.metadata.find_repository(account, &from).await?;
            found.map(|repository| (repository.id, repository.name)).into_iter().collect()
        }
        None => registry.metadata.list_blob_sources(account, digest, SOURCES).await?,
    };
    let readable = |(_, name): &&(RepositoryId, RepositoryName)| {
        call.may("GetDownloadUrlForLayer", name).is_ok()
    };
    let lease_until = call.now.checked_add(LEASE).unwrap_or(Timestamp::MAX);
    for (from, _) in sources.iter().filter(readable) {
        // ECR requires that a manifest in the source references the blob; the specification only
        // requires the blob.
        let mounted = registry
            .metadata
            .mount_blob(*from, to.id, digest, false, call.now, lease_until)
            .await?;
        if mounted == MountOutcome::Mounted {
            // A lost or damaged blob is pushed instead, which repairs it.
            let found = registry.metadata.find_blob(account, &to.name, digest).await?;
            let Lookup::Found(blob) = found else { return Ok(false) };
            return Ok(registry.check_blob(&blob).await?);
        }
    }
    Ok(false)
}

/// end-5.
pub(super) async fn patch(
    call: &OciCall,
    name: &RepositoryName,
    id: Uuid,
    body: &mut RequestBody,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    let (session, expected) = open(call, name, repository.id, id).await?;
    let (body, caller, registry) = (body.take(), call.caller.clone(), Arc::clone(&call.registry));
    let offset = detached(async move {
        let session = append(session, body, caller, expected, registry).await?;
        session
            .pause(None, Timestamp::now())
            .await
            .map_err(|failure| OciError::of_upload(failure, id))
    })
    .await?;
    progress(StatusCode::ACCEPTED, name, id, offset)
}

/// end-6.
pub(super) async fn put(
    call: &OciCall,
    name: &RepositoryName,
    id: Uuid,
    digest: Digest,
    body: &mut RequestBody,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    let (mut session, expected) = open(call, name, repository.id, id).await?;
    session.use_algorithm(digest.algorithm());
    let finished = complete(call, session, body, expected, digest).await?;
    created(name, &finished.digest)
}

/// end-13.
pub(super) async fn status(
    call: &OciCall,
    name: &RepositoryName,
    id: Uuid,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    let upload = call.registry.metadata.find_upload(repository.id, id).await?;
    let upload = upload.ok_or_else(|| OciError::upload_unknown(id))?;
    progress(StatusCode::NO_CONTENT, name, id, upload.progress.offset)
}

/// end-14.
pub(super) async fn cancel(
    call: &OciCall,
    name: &RepositoryName,
    id: Uuid,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    if call.registry.metadata.cancel_upload(repository.id, id, None, call.now).await? {
        Ok(empty(StatusCode::NO_CONTENT))
    } else {
        Err(OciError::upload_unknown(id))
    }
}

/// Opens the session and checks that the request's chunk comes next. Returns the chunk's length if
/// the request states it.
async fn open(
    call: &OciCall,
    name: &RepositoryName,
    repository: RepositoryId,
    id: Uuid,
) -> Result<(UploadSession, Option<u64>), OciError> {
    let session = Registry::open_upload(&call.registry, repository, id).await;
    let session = session.map_err(|failure| OciError::of_upload(failure, id))?;
    let mut expected = announced(&call.headers);
    if let Some(range) = call.headers.get(header::CONTENT_RANGE) {
        let (first, length) = range.to_str().ok().and_then(chunk_range).ok_or_else(|| {
            let text =
                format!("Content-Range {range:?} is not valid: it must be FIRST-LAST, both in bytes and included");
            OciError::new(StatusCode::BAD_REQUEST, Code::BlobUploadInvalid, text)
        })?;
        let offset = session.offset();
        if first != offset {
            let text = format!(
                "The upload has {offset} bytes, so its next chunk begins at {offset} and not at {first}"
            );
            return Err(OciError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                Code::BlobUploadInvalid,
                text,
            )
            .with(header::LOCATION, value(location(name, id))?)
            .with(header::RANGE, so_far(offset)?));
        }
        if expected.is_some_and(|announced| announced != length) {
            let text = format!(
                "Content-Range {range:?} holds {length} bytes, which is not the Content-Length"
            );
            return Err(OciError::new(StatusCode::BAD_REQUEST, Code::SizeInvalid, text));
        }
        expected = Some(length);
    }
    if let Some(length) = expected {
        session.reserve(length).map_err(|failure| OciError::of_upload(failure, id))?;
    }
    Ok((session, expected))
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Runs the work on a body in its own task: a client that disconnects ends the connection's task,
/// but the bytes that have arrived are still acknowledged, so that the upload can continue after
/// them.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, OciError>> + Send + 'static,
) -> Result<T, OciError> {
    let ended = tokio::spawn(work.in_current_span()).await;
    ended.map_err(|error| StoreError::Backend(error.into()))?
}

/// Appends a body to a session. `expected` is the announced length.
async fn append(
    mut session: UploadSession,
    mut body: RequestBody,
    caller: Caller,
    expected: Option<u64>,
    registry: Arc<Registry>,
) -> Result<UploadSession, OciError> {
    let id = session.acknowledged().id;
    let begin = session.offset();
    let mut acknowledged = Instant::now();
    loop {
        match body.next(&caller).await {
            Ok(Some(chunk)) => {
                registry.metrics.received.inc_by(chunk.len() as u64);
                let mut appended = session.append(chunk).await;
                if appended.is_ok() && acknowledged.elapsed() > ACKNOWLEDGED_EVERY {
                    appended = session.acknowledge(None, Timestamp::now()).await.map(drop);
                    acknowledged = Instant::now();
                }
                if let Err(failure) = appended {
                    session.abandon().await;
                    body.drain().await;
                    return Err(OciError::of_upload(failure, id));
                }
            }
            Ok(None) => break,
            Err(broken) => {
                if let Err(failure) = session.pause(None, Timestamp::now()).await {
                    tracing::warn!(upload = %id, error = %failure, "cannot acknowledge the received part of a broken upload");
                }
                return Err(broken.into());
            }
        }
    }
    let received = session.offset() - begin;
    match expected {
        Some(expected) if expected != received => {
            session.abandon().await;
            let text = format!("The request announced {expected} bytes and sent {received}");
            Err(OciError::new(StatusCode::BAD_REQUEST, Code::SizeInvalid, text))
        }
        _ => Ok(session),
    }
}

/// Appends the rest of a blob and finishes its session.
async fn complete(
    call: &OciCall,
    session: UploadSession,
    body: &mut RequestBody,
    expected: Option<u64>,
    digest: Digest,
) -> Result<FinishedUpload, OciError> {
    let (body, caller, registry) = (body.take(), call.caller.clone(), Arc::clone(&call.registry));
    detached(async move {
        let id = session.acknowledged().id;
        let session = append(session, body, caller, expected, registry).await?;
        session
            .finish(&[digest], Timestamp::now())
            .await
            .map_err(|failure| OciError::of_upload(failure, id))
    })
    .await
}

/// Creates a 201 response with the blob's location.
fn created(name: &RepositoryName, digest: &Digest) -> Result<Response, OciError> {
    let mut response = empty(StatusCode::CREATED);
    response.headers_mut().insert(header::LOCATION, value(format!("/v2/{name}/blobs/{digest}"))?);
    response.headers_mut().insert(CONTENT_DIGEST, value(digest)?);
    Ok(response)
}

/// Creates a response with the session's location and offset.
fn progress(
    status: StatusCode,
    name: &RepositoryName,
    id: Uuid,
    offset: u64,
) -> Result<Response, OciError> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(location(name, id))?);
    headers.insert(header::RANGE, so_far(offset)?);
    headers.insert(UPLOAD_UUID, value(id.to_string())?);
    Ok(response)
}

fn location(name: &RepositoryName, id: Uuid) -> String {
    format!("/v2/{name}/blobs/uploads/{id}")
}

/// Formats `0-LAST`. An upload without bytes is `0-0`, as in every registry: the format has no
/// empty range.
fn so_far(offset: u64) -> Result<HeaderValue, OciError> {
    value(format!("0-{}", offset.saturating_sub(1)))
}
