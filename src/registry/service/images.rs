//! Pushes of images, for both APIs.

use bytes::Bytes;
use jiff::Timestamp;

use super::Registry;
use super::manifest::{self, CheckedManifest, InvalidManifest};
use wharfage_domain::names::{Algorithm, Digest, Tag};
use wharfage_store::StoreError;
use wharfage_store::manifests::{PutManifest, PutManifestError, PutOutcome};
use wharfage_store::repositories::RepositoryId;

/// A manifest to store, as an API received it.
#[derive(Debug, Clone)]
pub(crate) struct NewImage<'a> {
    pub(crate) repository: RepositoryId,
    /// The exact bytes of the manifest.
    pub(crate) payload: Bytes,
    /// The media type in the request, with or without parameters.
    pub(crate) media_type: Option<&'a str>,
    /// The digest in the request.
    pub(crate) digest: Option<&'a Digest>,
    /// The tags to set.
    pub(crate) tags: Vec<Tag>,
}

/// A stored image.
#[derive(Debug, Clone)]
pub(crate) struct PutImage {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    /// The subject, if the image is a referrer.
    pub(crate) subject: Option<Digest>,
    /// The effect of the push.
    pub(crate) outcome: PutOutcome,
}

/// The reason why an image was not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutImageError {
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
    /// The manifest has another digest than the request.
    #[error("the manifest has digest {actual}")]
    DigestMismatch {
        /// The digest of the manifest.
        actual: Digest,
    },
    /// The store refused the manifest.
    #[error(transparent)]
    Put(#[from] PutManifestError),
}

impl From<StoreError> for PutImageError {
    fn from(error: StoreError) -> Self {
        Self::Put(error.into())
    }
}

impl Registry {
    /// Checks a manifest and stores it with its tags: ECR's PutImage and the OCI API's PUT.
    ///
    /// # Errors
    /// The first check that fails, in ECR's order: the manifest, its digest, its references, its
    /// tags, the quotas.
    pub(crate) async fn put_image(
        &self,
        image: NewImage<'_>,
        now: Timestamp,
    ) -> Result<PutImage, PutImageError> {
        let limits = &self.config.limits;
        let algorithm = image.digest.map_or(Algorithm::Sha256, Digest::algorithm);
        let checked =
            check(image.payload, image.media_type, algorithm, limits.manifest_bytes).await?;
        let mut manifest = checked.manifest;
        if image.digest.is_some_and(|expected| *expected != manifest.digest) {
            return Err(PutImageError::DigestMismatch { actual: manifest.digest });
        }
        if !checked.foreign.is_empty() {
            let digests: Vec<Digest> =
                checked.foreign.iter().map(|foreign| foreign.digest.clone()).collect();
            let kept = self.metadata.find_layers(image.repository, &digests).await?;
            // A client that pushed a foreign layer nevertheless wants it kept.
            let kept = checked
                .foreign
                .into_iter()
                .zip(kept)
                .filter_map(|(foreign, layer)| layer.map(|_| foreign));
            manifest.blobs.extend(kept);
        }
        let (digest, media_type) = (manifest.digest.clone(), manifest.media_type.clone());
        let subject = manifest.subject.clone();
        let put = PutManifest {
            repository: image.repository,
            manifest,
            tags: image.tags,
            now,
            max_images: limits.images,
            max_tags: limits.tags_per_image,
            jobs: Vec::new(),
        };
        let outcome = self.metadata.put_manifest(put).await?;
        Ok(PutImage { digest, media_type, subject, outcome })
    }
}

/// Manifests up to this size are hashed and read in place; larger ones would block other requests.
const QUICK_MANIFEST: usize = 128 * 1024;

/// Checks a manifest; a large one on a blocking thread.
async fn check(
    payload: Bytes,
    declared: Option<&str>,
    algorithm: Algorithm,
    max_bytes: usize,
) -> Result<CheckedManifest, PutImageError> {
    if payload.len() <= QUICK_MANIFEST {
        return Ok(manifest::check(payload, declared, algorithm, max_bytes)?);
    }
    let declared = declared.map(str::to_owned);
    let checked = tokio::task::spawn_blocking(move || {
        manifest::check(payload, declared.as_deref(), algorithm, max_bytes)
    });
    Ok(checked.await.map_err(|error| StoreError::Backend(error.into()))??)
}
