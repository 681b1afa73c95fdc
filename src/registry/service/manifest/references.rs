//! The references of a manifest: config and layers of an image, children of an index.

use std::collections::HashMap;

use super::error::{content, missing};
use super::wire::WireManifest;
use super::{InvalidManifest, MAX_REFERENCES};
use wharfage_domain::names::Digest;
use wharfage_store::manifests::{BlobReference, ChildReference};

/// The references of a manifest.
#[derive(Default)]
pub(super) struct References {
    pub(super) config_media_type: Option<String>,
    pub(super) blobs: Vec<BlobReference>,
    pub(super) foreign: Vec<BlobReference>,
    pub(super) children: Vec<ChildReference>,
}

/// The digests of a manifest's descriptors with their sizes: each digest has one reference and one
/// size.
#[derive(Default)]
struct SeenDigests(HashMap<Digest, u64>);

impl SeenDigests {
    /// Returns whether a descriptor is the first of its digest.
    fn is_first(
        &mut self,
        member: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<bool, InvalidManifest> {
        match self.0.insert(digest.clone(), size) {
            None => Ok(true),
            Some(before) if before == size => Ok(false),
            Some(before) => Err(content(format!(
                "{member}: size is {size}, but another descriptor of {digest} says {before}"
            ))),
        }
    }
}

/// Reads the references of an image manifest.
pub(super) fn of_image(wire: &WireManifest<'_>) -> Result<References, InvalidManifest> {
    schema_version(wire, 2)?;
    // A document that could be read as either kind would be scanned as one and run as the other
    // (CVE-2021-41190).
    if wire.manifests.is_some() {
        return Err(content("An image manifest must not have the member manifests".to_owned()));
    }
    let config = wire.config.as_ref().ok_or_else(|| missing("config"))?;
    let layers = wire.layers.as_deref().ok_or_else(|| missing("layers"))?;
    limit_references("layers", layers.len())?;

    let config_media_type = config.media_type("config")?;
    let mut seen = SeenDigests::default();
    let mut read = References::default();
    let (digest, size) = config.check("config")?;
    seen.is_first("config", &digest, size)?;
    read.blobs.push(BlobReference { digest, media_type: config_media_type.clone(), size });
    for (position, layer) in layers.iter().enumerate() {
        let member = format!("layers[{position}]");
        let (digest, size) = layer.check(&member)?;
        let foreign = layer.is_foreign(&member)?;
        if seen.is_first(&member, &digest, size)? {
            let reference = BlobReference { digest, media_type: layer.media_type(&member)?, size };
            if foreign { read.foreign.push(reference) } else { read.blobs.push(reference) }
        }
    }
    read.config_media_type = Some(config_media_type).filter(|text| !text.is_empty());
    Ok(read)
}

/// Reads the references of an index.
pub(super) fn of_index(wire: &WireManifest<'_>) -> Result<References, InvalidManifest> {
    schema_version(wire, 2)?;
    if wire.layers.is_some() || wire.config.is_some() {
        return Err(content("An index must not have the members config and layers".to_owned()));
    }
    let manifests = wire.manifests.as_deref().ok_or_else(|| missing("manifests"))?;
    limit_references("manifests", manifests.len())?;
    let mut seen = SeenDigests::default();
    let mut read = References::default();
    for (position, child) in manifests.iter().enumerate() {
        let member = format!("manifests[{position}]");
        let (digest, size) = child.check(&member)?;
        let media_type = child.media_type(&member)?;
        if is_blob(&media_type) {
            return Err(content(format!(
                "{member}: an index refers to manifests, and {media_type} is a blob's media type. Put blobs into an image \
                 manifest's layers (BuildKit's cache export has image-manifest=true for that)"
            )));
        }
        if seen.is_first(&member, &digest, size)? {
            read.children.push(ChildReference { digest, size });
        }
    }
    Ok(read)
}

/// Returns whether a media type is that of a layer or config, which an index cannot hold.
fn is_blob(media_type: &str) -> bool {
    const BLOBS: [&str; 5] = [
        "application/vnd.oci.image.layer.",
        "application/vnd.oci.image.config.",
        "application/vnd.docker.image.rootfs.",
        "application/vnd.docker.container.image.",
        "application/vnd.buildkit.cacheconfig.",
    ];
    BLOBS.iter().any(|blob| media_type.starts_with(blob))
}

fn schema_version(wire: &WireManifest<'_>, expected: i64) -> Result<(), InvalidManifest> {
    match wire.schema_version {
        Some(version) if version == expected => Ok(()),
        Some(version) => Err(content(format!("schemaVersion must be {expected}, not {version}"))),
        None => Err(missing("schemaVersion")),
    }
}

fn limit_references(member: &str, count: usize) -> Result<(), InvalidManifest> {
    if count > MAX_REFERENCES {
        return Err(content(format!(
            "{member} must have at most {MAX_REFERENCES} entries, not {count}"
        )));
    }
    Ok(())
}
