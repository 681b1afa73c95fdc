//! Pushing an image, for both APIs.

use bytes::Bytes;
use jiff::Timestamp;

use super::Registry;
use super::manifest::{self, CheckedManifest, InvalidManifest};
use wharfage_domain::names::{Algorithm, Digest, Tag};
use wharfage_store::StoreError;
use wharfage_store::manifests::{PutManifest, PutManifestError, PutOutcome};
use wharfage_store::repositories::RepositoryId;

/// A manifest to be put, as an API received it.
#[derive(Debug, Clone)]
pub(crate) struct NewImage<'a> {
    /// Where to.
    pub(crate) repository: RepositoryId,
    /// Its exact bytes.
    pub(crate) payload: Bytes,
    /// The media type that the request declares, with parameters or without.
    pub(crate) media_type: Option<&'a str>,
    /// The digest that the request says it has.
    pub(crate) digest: Option<&'a Digest>,
    /// The tags to point at it.
    pub(crate) tags: Vec<Tag>,
}

/// An image that was put.
#[derive(Debug, Clone)]
pub(crate) struct PutImage {
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its media type.
    pub(crate) media_type: String,
    /// What it refers to, if it is a referrer.
    pub(crate) subject: Option<Digest>,
    /// What the store did.
    pub(crate) outcome: PutOutcome,
}

/// Why an image was not put. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutImageError {
    /// The manifest is not valid.
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
    /// The manifest has another digest than the request says.
    #[error("the manifest has digest {actual}")]
    DigestMismatch {
        /// The digest that it has.
        actual: Digest,
    },
    /// The store refused it.
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
    /// The first check that fails, in ECR's order: the manifest, its digest, its references, its tags, the quotas.
    pub(crate) async fn put_image(&self, image: NewImage<'_>, now: Timestamp) -> Result<PutImage, PutImageError> {
        let limits = &self.config.limits;
        let algorithm = image.digest.map_or(Algorithm::Sha256, Digest::algorithm);
        let checked = check(image.payload, image.media_type, algorithm, limits.manifest_bytes).await?;
        let mut manifest = checked.manifest;
        if image.digest.is_some_and(|expected| *expected != manifest.digest) {
            return Err(PutImageError::DigestMismatch { actual: manifest.digest });
        }
        if !checked.foreign.is_empty() {
            let digests: Vec<Digest> = checked.foreign.iter().map(|foreign| foreign.digest.clone()).collect();
            let kept = self.metadata.find_layers(image.repository, &digests).await?;
            // Whoever pushed a foreign layer all the same wants it kept.
            let kept = checked.foreign.into_iter().zip(kept).filter_map(|(foreign, layer)| layer.map(|_| foreign));
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

/// Manifests up to this size are hashed and read on the spot; larger ones would keep other requests waiting.
const QUICK_MANIFEST: usize = 128 * 1024;

/// Checks a manifest, and one that takes long on a thread where nobody waits for it.
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
    let checked =
        tokio::task::spawn_blocking(move || manifest::check(payload, declared.as_deref(), algorithm, max_bytes));
    Ok(checked.await.map_err(|error| StoreError::Backend(error.into()))??)
}
