//! Manifests and tags: GET, HEAD, PUT, DELETE.

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};

use super::conditions::{ContentHeaders, Precondition, precondition};
use super::error::OciError;
use super::{CONTENT_DIGEST, OCI_SUBJECT, OCI_TAG, OciCall, empty, value};
use crate::message::Response;
use crate::message::body::{Body, BodyError, RequestBody};
use crate::message::memory;
use crate::service::images;
use crate::service::images::NewImage;
use crate::service::manifest::{InvalidManifest, ManifestKind};
use wharfage_domain::names::{Digest, Reference, RepositoryName, Tag};
use wharfage_store::images::{ImageStatus, LastTag, Referrers};
use wharfage_store::manifests::Manifest;
use wharfage_store::{Lookup, StoreError};

/// The number of tags in one `OCI-Tag` header: clients limit the length and the number of headers.
const TAGS_PER_HEADER: usize = 20;

/// end-3. Returns the stored bytes whatever the client accepts: nothing is converted.
pub(super) async fn read(
    call: &OciCall,
    name: &RepositoryName,
    reference: &Reference,
    head: bool,
) -> Result<Response, OciError> {
    let registry = &call.registry;
    let mut account = memory::process().open(&call.caller, 0);
    let find = || -> BoxFuture<'_, Result<_, OciError>> {
        Box::pin(async move {
            Ok(registry.metadata.find_manifest(&registry.config.account, name, reference).await?)
        })
    };
    let size = |found: &Lookup<Manifest>| match found {
        Lookup::Found(manifest) if !head => manifest.payload.len(),
        _ => 0,
    };
    let manifest = match memory::process().read(&mut account, 0, find, size).await? {
        Lookup::Found(manifest) if manifest.status == ImageStatus::Active => manifest,
        Lookup::Found(_) | Lookup::Missing => return Err(OciError::manifest_unknown()),
        Lookup::NoRepository => return Err(call.name_unknown(name)),
    };
    let named = named(&manifest.digest)?;
    let mut response = match precondition(&call.headers, &named.etag) {
        Precondition::Failed => return Ok(empty(StatusCode::PRECONDITION_FAILED)),
        Precondition::NotModified => empty(StatusCode::NOT_MODIFIED),
        Precondition::Met => {
            if !head {
                registry.pulls.note(&manifest, call.now);
                registry.metrics.sent.inc_by(manifest.payload.len() as u64);
            }
            let length = manifest.payload.len() as u64;
            let payload = if head { Bytes::new() } else { memory::held(manifest.payload, account) };
            let mut response = Response::new(Body::from(payload));
            response.headers_mut().insert(header::CONTENT_TYPE, media_type(&manifest.media_type)?);
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            response
        }
    };
    response.headers_mut().insert(CONTENT_DIGEST, named.digest);
    response.headers_mut().insert(header::ETAG, named.etag);
    Ok(response)
}

fn named(digest: &Digest) -> Result<ContentHeaders, OciError> {
    ContentHeaders::new(digest)
        .ok_or_else(|| StoreError::Inconsistent(format!("{digest} is no header's value")).into())
}

fn media_type(stored: &str) -> Result<HeaderValue, OciError> {
    let known = ManifestKind::MEDIA_TYPES.iter().find(|(known, _)| *known == stored);
    known.map_or_else(|| value(stored), |(known, _)| Ok(HeaderValue::from_static(known)))
}

/// end-7.
pub(super) async fn put(
    call: &OciCall,
    name: &RepositoryName,
    digest: Option<Digest>,
    tags: Vec<Tag>,
    body: &mut RequestBody,
) -> Result<Response, OciError> {
    let registry = &call.registry;
    let repository = call.repository(name).await?;
    let refused = |error| OciError::of_put(error, &registry.config.account, name);
    let read = body.read_up_to(registry.config.limits.manifest_bytes, &call.caller).await;
    let (payload, mut account) = read.map_err(|error| match error {
        BodyError::TooLarge(limit) => refused(InvalidManifest::TooLarge(limit).into()),
        error => error.into(),
    })?;
    // The parsed manifest takes about as much memory again.
    account.hold(2 * payload.len(), memory::TIMEOUT).await?;
    registry.metrics.received.inc_by(payload.len() as u64);
    let by_digest = digest.is_some();
    let image = NewImage {
        repository: repository.id,
        payload,
        media_type: call.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()),
        digest: digest.as_ref(),
        tags,
    };
    let images::PutImage { digest, subject, outcome, .. } =
        registry.put_image(image, call.now).await.map_err(refused)?;
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(format!("/v2/{name}/manifests/{digest}"))?);
    headers.insert(CONTENT_DIGEST, value(&digest)?);
    if let Some(subject) = subject {
        headers.insert(OCI_SUBJECT, value(subject)?);
    }
    if by_digest {
        let tags: Vec<&str> = outcome.tags.iter().map(|(tag, _)| tag.as_str()).collect();
        for tags in tags.chunks(TAGS_PER_HEADER) {
            headers.append(OCI_TAG, value(tags.join(", "))?);
        }
    }
    Ok(response)
}

/// end-9 by digest. Deletes the image with all its tags, unless a stored index references it.
pub(super) async fn delete(
    call: &OciCall,
    name: &RepositoryName,
    digest: &Digest,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    call.registry.metadata.delete_image(repository.id, digest, Referrers::Stay, call.now).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

/// end-9 by tag. The image stays, as the distribution spec requires.
pub(super) async fn delete_tag(
    call: &OciCall,
    name: &RepositoryName,
    tag: &Tag,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    call.registry
        .metadata
        .delete_tag(repository.id, tag, None, LastTag::KeepsImage, call.now)
        .await?;
    Ok(empty(StatusCode::ACCEPTED))
}
