//! Layers: uploads in parts by ECR's rules, availability, and signed download URLs.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::EcrCall;
use super::error::{EcrError, RepositoryRef};
use super::input::{self, input, invalid, required};
use crate::auth::download;
use crate::auth::sigv4::AuthError;
use crate::service::uploads::{UploadFailure, UploadSession, lease_of_present};
use wharfage_domain::names::{Algorithm, Digest};
use wharfage_store::layers::Layer;
use wharfage_store::uploads::CommitOutcome;

/// The part size that clients are asked to send.
const PART_SIZE: u64 = 10_485_760;
/// The largest accepted part.
const MAX_PART: usize = 20_971_520;
/// The smallest part, except for the last one.
const MIN_PART: u64 = 5_242_880;
const MAX_PARTS: u32 = 4_200;
/// The number of bytes of a part that are hashed at once.
const PIECE: usize = 256 * 1024;
/// The validity of a download URL.
const URL_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

input! {
    /// The input of InitiateLayerUpload.
    InitiateUpload { registry_id: String, repository_name: String }
}

/// InitiateLayerUpload.
pub(crate) async fn initiate_upload(
    call: &EcrCall,
    input: InitiateUpload,
) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let repository = call.repository(&repository_ref).await?;
    let begun = call.registry.begin_upload(repository.id, Algorithm::Sha256, call.now).await;
    let upload = begun.map_err(|failure| match failure {
        UploadFailure::NotFound => EcrError::RepositoryNotFound(repository_ref.clone()),
        other => refused_upload(other, &repository_ref, Uuid::nil()),
    })?;
    Ok(json!({ "uploadId": upload.id, "partSize": PART_SIZE }))
}

/// The ECR API's state of an upload's parts, stored in the upload's row (`protocol_state`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Parts {
    count: u32,
    /// A part before the last one is too small.
    too_small: bool,
    last: Option<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    first: u64,
    last: u64,
    digest: Digest,
}

/// The position of a part in its upload.
#[derive(Debug, PartialEq, Eq)]
enum PartPosition {
    /// The next part.
    Append(Parts),
    /// The last part, repeated.
    Replay,
    /// A part that does not begin where the last one ended.
    OutOfSequence,
    /// A part beyond the maximum.
    TooMany,
}

impl Parts {
    fn parse(protocol_state: &[u8]) -> Self {
        // An upload that began at the OCI API has no state of this API.
        serde_json::from_slice(protocol_state).unwrap_or_default()
    }

    /// Returns the position of a part after `offset` acknowledged bytes.
    fn position(&self, offset: u64, part: Part) -> PartPosition {
        if self.last.as_ref() == Some(&part) && offset == part.last + 1 {
            return PartPosition::Replay;
        }
        if part.first != offset {
            return PartPosition::OutOfSequence;
        }
        if self.count >= MAX_PARTS {
            return PartPosition::TooMany;
        }
        let before = self.last.as_ref();
        let too_small = self.too_small
            || before.is_some_and(|before| before.last - before.first + 1 < MIN_PART);
        PartPosition::Append(Self { count: self.count + 1, too_small, last: Some(part) })
    }
}

/// The input of UploadLayerPart.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct UploadPart {
    registry_id: Option<String>,
    repository_name: Option<String>,
    upload_id: Option<String>,
    part_first_byte: Option<i64>,
    part_last_byte: Option<i64>,
    layer_part_blob: Option<PartBytes>,
    #[serde(flatten)]
    _object: (),
}

/// Decodes a member from base64 while it is read, so that the text is not kept.
struct PartBytes(Bytes);

impl std::fmt::Debug for PartBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PartBytes({} bytes)", self.0.len())
    }
}

impl<'de> Deserialize<'de> for PartBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = PartBytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("base64")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PartBytes, E> {
                BASE64.decode(text).map(|bytes| PartBytes(bytes.into())).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// UploadLayerPart.
pub(crate) async fn upload_part(call: &EcrCall, input: UploadPart) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let id = upload_id(input.upload_id.as_deref())?;
    let first = not_negative("partFirstByte", input.part_first_byte)?;
    let last = not_negative("partLastByte", input.part_last_byte)?;
    let PartBytes(blob) = required("layerPartBlob", input.layer_part_blob)?;
    if blob.len() > MAX_PART {
        return Err(invalid(
            "layerPartBlob",
            format!("Member must have length less than or equal to {MAX_PART}"),
        ));
    }
    let repository = call.repository(&repository_ref).await?;
    let refused = |failure| refused_upload(failure, &repository_ref, id);
    let session = call.registry.open_upload(repository.id, id).await.map_err(refused)?;
    let offset = session.offset();
    let invalid_part = |message| EcrError::InvalidLayerPart {
        message,
        repository_ref: repository_ref.clone(),
        id,
        last_valid_byte: offset.checked_sub(1),
    };
    if last.checked_sub(first).is_none_or(|length| length + 1 != blob.len() as u64) {
        return Err(invalid_part(format!(
            "The part claims the bytes {first} to {last} but has {} bytes",
            blob.len()
        )));
    }
    let hashed = blob.clone();
    let digest = tokio::task::spawn_blocking(move || Digest::sha256(&hashed)).await;
    let part =
        Part { first, last, digest: digest.map_err(|error| EcrError::Server(error.into()))? };
    match Parts::parse(&session.acknowledged().progress.protocol_state).position(offset, part) {
        PartPosition::Replay => {}
        PartPosition::OutOfSequence => {
            return Err(invalid_part(format!(
                "The part begins at byte {first}, but byte {offset} is the next one"
            )));
        }
        PartPosition::TooMany => {
            return Err(EcrError::LimitExceeded(format!(
                "A layer may have at most {MAX_PARTS} parts"
            )));
        }
        PartPosition::Append(parts) => {
            append(call, session, blob, &parts).await.map_err(refused)?
        }
    }
    Ok(json!({
        "registryId": repository_ref.account,
        "repositoryName": repository_ref.name,
        "uploadId": id,
        "lastByteReceived": last,
    }))
}

async fn append(
    call: &EcrCall,
    mut session: UploadSession,
    blob: Bytes,
    parts: &Parts,
) -> Result<(), UploadFailure> {
    // Numbers and a digest always serialize.
    let protocol_state = serde_json::to_vec(parts).unwrap_or_default();
    let length = blob.len() as u64;
    let mut rest = blob;
    while !rest.is_empty() {
        // Hashed piece by piece: a whole part would block other requests.
        if let Err(failure) = session.append(rest.split_to(rest.len().min(PIECE))).await {
            session.abandon().await;
            return Err(failure);
        }
        tokio::task::yield_now().await;
    }
    session.pause(Some(protocol_state), call.now).await?;
    call.registry.metrics.received.inc_by(length);
    Ok(())
}

fn upload_id(text: Option<&str>) -> Result<Uuid, EcrError> {
    const RULE: &str =
        "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}";
    let text = required("uploadId", text)?;
    let fault = || invalid("uploadId", format!("must satisfy regular expression '{RULE}'"));
    // A UUID has several spellings; clients received this one.
    if text.len() == 36 { Uuid::try_parse(text).map_err(|_| fault()) } else { Err(fault()) }
}

fn not_negative(member: &'static str, value: Option<i64>) -> Result<u64, EcrError> {
    let value = required(member, value)?;
    input::range(member, value, 0..=i64::MAX)?;
    Ok(value.unsigned_abs())
}

fn refused_upload(failure: UploadFailure, repository_ref: &RepositoryRef, id: Uuid) -> EcrError {
    match failure {
        UploadFailure::NotFound => EcrError::UploadNotFound {
            id: id.to_string().into(),
            repository_ref: repository_ref.clone(),
        },
        UploadFailure::Busy => EcrError::Validation(format!(
            "Another request is writing to the upload '{id}'. Try again."
        )),
        UploadFailure::TooLarge(limit) => {
            EcrError::LimitExceeded(format!("A layer may have at most {limit} bytes"))
        }
        UploadFailure::DigestMismatch { actual } => {
            EcrError::InvalidLayer(format!("the content has the digest '{actual}'"))
        }
        UploadFailure::Store(error) => error.into(),
    }
}

input! {
    /// The input of CompleteLayerUpload.
    CompleteUpload {
        registry_id: String,
        repository_name: String,
        upload_id: String,
        layer_digests: Vec<String>,
    }
}

/// CompleteLayerUpload. The digests are alternatives for the same content.
pub(crate) async fn complete_upload(
    call: &EcrCall,
    input: CompleteUpload,
) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let id = upload_id(input.upload_id.as_deref())?;
    let digests = required("layerDigests", input.layer_digests)?;
    input::count("layerDigests", &digests, 1..=100)?;
    let mut expected = Vec::with_capacity(digests.len());
    for text in &digests {
        expected.extend(input::digest("layerDigests", text)?);
    }
    let repository = call.repository(&repository_ref).await?;
    let refused = |failure| refused_upload(failure, &repository_ref, id);
    let session = call.registry.open_upload(repository.id, id).await.map_err(refused)?;
    if session.offset() == 0 {
        return Err(EcrError::EmptyUpload(id));
    }
    if Parts::parse(&session.acknowledged().progress.protocol_state).too_small {
        return Err(EcrError::LayerPartTooSmall);
    }
    let finished = session.finish(&expected, call.now).await.map_err(refused)?;
    if finished.committed == CommitOutcome::AlreadyInRepository {
        return Err(EcrError::LayerAlreadyExists { digest: finished.digest, repository_ref });
    }
    Ok(json!({
        "registryId": repository_ref.account,
        "repositoryName": repository_ref.name,
        "uploadId": id,
        "layerDigest": finished.digest,
    }))
}

input! {
    /// The input of BatchCheckLayerAvailability.
    BatchCheck { registry_id: String, repository_name: String, layer_digests: Vec<String> }
}

/// BatchCheckLayerAvailability. A layer that it reports as available is kept for the time of a
/// lease.
pub(crate) async fn batch_check_availability(
    call: &EcrCall,
    input: BatchCheck,
) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let digests = required("layerDigests", input.layer_digests)?;
    input::count("layerDigests", &digests, 1..=100)?;
    for digest in &digests {
        input::length("layerDigests", digest, 0..=1000)?;
    }
    let repository = call.repository(&repository_ref).await?;
    let metadata = call.registry.metadata.as_ref();
    let mut failures = Vec::new();
    let mut asked: Vec<(&str, Option<Digest>)> = Vec::new();
    for text in &digests {
        let failure = |code: &str, reason: Cow<'_, str>| json!({ "layerDigest": text, "failureCode": code, "failureReason": reason });
        if text.is_empty() {
            failures.push(failure("MissingLayerDigest", "The layer digest is missing".into()));
        } else if !input::is_digest_like(text) {
            let reason =
                format!("The layer digest should satisfy the regex '{}'", input::DIGEST_EXPRESSION);
            failures.push(failure("InvalidLayerDigest", reason.into()));
        } else {
            asked.push((text, text.parse().ok()));
        }
    }
    // The store is asked once, for each digest once.
    let wanted: BTreeSet<Digest> = asked.iter().filter_map(|(_, digest)| digest.clone()).collect();
    let wanted: Vec<Digest> = wanted.into_iter().collect();
    let found = metadata.find_layers(repository.id, &wanted).await?;
    let mut usable: HashMap<Digest, Layer> = HashMap::new();
    for layer in found.into_iter().flatten() {
        if call.registry.is_usable(&layer.blob).await? {
            usable.insert(layer.blob.digest.clone(), layer);
        }
    }
    let found = usable;
    let present: Vec<Digest> = found.keys().cloned().collect();
    metadata.extend_leases(repository.id, &present, lease_of_present(call.now)).await?;
    let availability = |(text, digest): (&str, Option<Digest>)| match digest
        .and_then(|digest| found.get(&digest))
    {
        None => json!({ "layerDigest": text, "layerAvailability": "UNAVAILABLE" }),
        Some(layer) => json!({
            "layerDigest": layer.blob.digest,
            "layerAvailability": if layer.archived { "ARCHIVED" } else { "AVAILABLE" },
            "layerSize": layer.blob.bytes.size,
            "mediaType": layer.media_type,
        }),
    };
    let layers: Vec<Value> = asked.into_iter().map(availability).collect();
    Ok(json!({ "layers": layers, "failures": failures }))
}

input! {
    /// The input of GetDownloadUrlForLayer.
    GetDownloadUrl { registry_id: String, repository_name: String, layer_digest: String }
}

/// GetDownloadUrlForLayer.
pub(crate) async fn get_download_url(
    call: &EcrCall,
    input: GetDownloadUrl,
) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let text = required("layerDigest", input.layer_digest)?;
    let digest = input::digest("layerDigest", &text)?;
    let repository = call.repository(&repository_ref).await?;
    let metadata = call.registry.metadata.as_ref();
    let layer = match &digest {
        Some(digest) => {
            metadata.find_layers(repository.id, std::slice::from_ref(digest)).await?.pop().flatten()
        }
        None => None,
    };
    let Some(layer) = layer else {
        return Err(EcrError::LayerNotFound { digest: text.into(), repository_ref });
    };
    let digest = layer.blob.digest.clone();
    if !call.registry.is_usable(&layer.blob).await? {
        return Err(EcrError::LayerNotFound { digest: text.into(), repository_ref });
    }
    if !layer.referenced || layer.archived {
        return Err(EcrError::LayerInaccessible { digest, repository_ref });
    }

    let valid_for = std::time::Duration::from_secs(URL_LIFETIME.as_secs().unsigned_abs());
    let url = match call.registry.presigned_url(&layer.blob, valid_for).await? {
        Some(url) => url,
        None => {
            let key = call
                .registry
                .keys
                .get(&call.principal.access_key_id)
                .ok_or(AuthError::UnrecognizedClient)?;
            let expires = call.now.checked_add(URL_LIFETIME).unwrap_or(Timestamp::MAX);
            let query = download::sign(key, &repository_ref.name, &digest, expires);
            format!(
                "{}/v2/{}/blobs/{digest}?{query}",
                call.registry.config.public_url, repository_ref.name
            )
        }
    };
    Ok(json!({ "downloadUrl": url, "layerDigest": digest }))
}

#[cfg(test)]
mod tests;
