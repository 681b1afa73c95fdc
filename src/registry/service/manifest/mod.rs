//! Checks of manifests: validates their bytes and reads their references. Pure: the store checks
//! that the references exist.

mod error;
mod media_type;
mod references;
mod wire;

use std::collections::BTreeMap;

use bytes::Bytes;

pub(crate) use self::error::InvalidManifest;
use self::error::content;
pub(crate) use self::media_type::ManifestKind;
use self::media_type::{limited_text, media_type};
use self::wire::WireManifest;
use crate::json::JsonShape;
use wharfage_domain::names::{Algorithm, Digest};
use wharfage_store::manifests::{BlobReference, NewManifest};

/// The nesting limit of a manifest's JSON. Real manifests need five levels.
pub(crate) const MAX_DEPTH: usize = 64;
/// The number of descriptors that a manifest may have: an image has at most a few hundred layers,
/// an index a few hundred children.
pub(crate) const MAX_REFERENCES: usize = 10_000;
/// The number of values that a manifest's JSON may have: ten for each descriptor.
const MAX_VALUES: usize = 10 * MAX_REFERENCES;
/// The number of annotations that a manifest with a subject may have.
/// Each list of the subject's referrers repeats them, with a hundred manifests per page.
const MAX_ANNOTATIONS: usize = 1_000;
/// The bytes of these annotations. See [`MAX_ANNOTATIONS`].
const MAX_ANNOTATION_BYTES: usize = 64 * 1024;
/// A valid manifest, with its foreign layers, which need not be in the repository.
#[derive(Debug, Clone)]
pub(crate) struct CheckedManifest {
    /// The manifest as it is stored.
    pub(crate) manifest: NewManifest,
    /// The foreign layers. When the repository has one of them nevertheless, the manifest
    /// references it.
    pub(crate) foreign: Vec<BlobReference>,
}

/// Checks a manifest of at most `max_bytes`. `declared` is the media type of the request,
/// `algorithm` that of the digest.
///
/// # Errors
/// The first check that fails.
pub(crate) fn check(
    payload: Bytes,
    declared: Option<&str>,
    algorithm: Algorithm,
    max_bytes: usize,
) -> Result<CheckedManifest, InvalidManifest> {
    if payload.len() > max_bytes {
        return Err(InvalidManifest::TooLarge(max_bytes));
    }
    // The parser does not check members that it skips, and the API returns manifests as text.
    if std::str::from_utf8(&payload).is_err() {
        return Err(InvalidManifest::Syntax);
    }
    // The parser does not limit the depth of skipped members, nor the number of values.
    let shape = JsonShape::of(&payload);
    if shape.depth > MAX_DEPTH {
        return Err(content(format!("JSON nests deeper than {MAX_DEPTH} levels")));
    }
    if shape.values > MAX_VALUES {
        return Err(content(format!("JSON has more than {MAX_VALUES} values")));
    }
    let wire: WireManifest<'_> =
        serde_json::from_slice(&payload).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => content(error.to_string()),
            _ => InvalidManifest::Syntax,
        })?;
    let (media_type, kind) = media_type(wire.media_type.as_deref(), declared)?;
    let read = match kind {
        ManifestKind::Image => references::of_image(&wire)?,
        ManifestKind::Index => references::of_index(&wire)?,
    };
    let subject = wire.subject.as_ref().map(|subject| subject.check("subject")).transpose()?;
    let subject = subject.map(|(digest, _size)| digest);
    let artifact_type = wire.artifact_type.as_deref().filter(|text| !text.is_empty());
    let manifest = NewManifest {
        digest: Digest::of(algorithm, &payload),
        media_type: media_type.to_owned(),
        artifact_type: artifact_type.map(|text| limited_text("artifactType", text)).transpose()?,
        config_media_type: read.config_media_type,
        annotations: match wire.annotations {
            Some(annotations) if subject.is_some() => limit_annotations(annotations)?,
            _ => BTreeMap::new(),
        },
        subject,
        blobs: read.blobs,
        children: read.children,
        payload,
    };
    Ok(CheckedManifest { manifest, foreign: read.foreign })
}

/// Checks the limits of the annotations of a manifest with a subject; lists of referrers repeat
/// them.
fn limit_annotations(
    annotations: BTreeMap<String, Option<String>>,
) -> Result<BTreeMap<String, String>, InvalidManifest> {
    let annotations: BTreeMap<String, String> =
        annotations.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect();
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if annotations.len() > MAX_ANNOTATIONS || bytes > MAX_ANNOTATION_BYTES {
        return Err(content(format!(
            "A manifest with a subject has at most {MAX_ANNOTATIONS} annotations of {MAX_ANNOTATION_BYTES} bytes together, not {} of {bytes}",
            annotations.len()
        )));
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests;
