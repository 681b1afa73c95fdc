//! Listing of the manifests that reference a subject.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::action::MAX_PAGE;
use super::error::OciError;
use super::{OCI_FILTERS_APPLIED, OciCall, encoded, json, next_page};
use crate::message::Response;
use wharfage_domain::names::{Digest, RepositoryName};
use wharfage_store::StoreError;
use wharfage_store::images::{Image, ImageStatus, ReferrerFilter};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A page is an image index, and clients read indexes up to the size limit of manifests.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// The number of referrers read at once. Each may have annotations of nearly 4 MiB, so this limits
/// the memory of a request.
const BATCH: usize = 16;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReferrerDescriptor<'a> {
    media_type: &'a str,
    size: u64,
    digest: &'a Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a Image> for ReferrerDescriptor<'a> {
    fn from(image: &'a Image) -> Self {
        Self {
            media_type: &image.media_type,
            size: image.payload_size,
            digest: &image.digest,
            // An index has no config, so one without an artifactType has none.
            artifact_type: image.artifact_type.as_deref().or(image.config_media_type.as_deref()),
            annotations: &image.annotations,
        }
    }
}

/// end-12. Never 404 for a missing subject.
pub(super) async fn list(
    call: &OciCall,
    name: &RepositoryName,
    subject: &Digest,
    artifact_type: Option<String>,
    mut after: Option<Digest>,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    let filter = ReferrerFilter {
        artifact_types: artifact_type.iter().cloned().collect(),
        status: Some(ImageStatus::Active),
    };
    let mut body =
        format!("{{\"schemaVersion\":2,\"mediaType\":\"{INDEX}\",\"manifests\":[").into_bytes();
    let mut entries = 0;
    let mut more = false;
    'page: loop {
        let metadata = &call.registry.metadata;
        let found =
            metadata.list_referrers(repository.id, subject, &filter, after.as_ref(), BATCH).await?;
        for image in &found {
            let entry = serde_json::to_vec(&ReferrerDescriptor::from(image)).map_err(|error| {
                StoreError::Inconsistent(format!("a descriptor does not serialize: {error}"))
            })?;
            if entries > 0 && (entries == MAX_PAGE || body.len() + entry.len() + 3 > MAX_BYTES) {
                more = true;
                break 'page;
            }
            if entries > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&entry);
            entries += 1;
            after = Some(image.digest.clone());
        }
        if found.len() < BATCH {
            break;
        }
    }
    body.extend_from_slice(b"]}");
    let mut response = json(StatusCode::OK, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(INDEX));
    if artifact_type.is_some() {
        response
            .headers_mut()
            .insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(after) = after.filter(|_| more) {
        let mut target = format!("/v2/{name}/referrers/{subject}?last={after}");
        if let Some(artifact_type) = artifact_type {
            // Writing to a string cannot fail.
            let _ = write!(target, "&artifactType={}", encoded(&artifact_type));
        }
        next_page(&mut response, &target)?;
    }
    Ok(response)
}
