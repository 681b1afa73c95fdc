//! Pushing an image and recording pulls, for both doors.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};

use super::Registry;
use super::manifests::{self, Checked, InvalidManifest};
use crate::names::{Algorithm, Digest, Tag};
use crate::store::images::{Manifest, ManifestId, PutManifest, PutManifestError, PutOutcome};
use crate::store::repositories::RepositoryId;
use crate::store::{Metadata, StoreError, StoreResult};

/// A manifest to be put, as a door received it.
#[derive(Debug, Clone)]
pub struct NewImage<'a> {
    /// Where to.
    pub repository: RepositoryId,
    /// Its exact bytes.
    pub payload: Bytes,
    /// The media type that the request declares, with parameters or without.
    pub media_type: Option<&'a str>,
    /// The digest that the request says it has.
    pub digest: Option<&'a Digest>,
    /// The tags to point at it.
    pub tags: Vec<Tag>,
}

/// An image that was put.
#[derive(Debug, Clone)]
pub struct PutImage {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// What it refers to, if it is a referrer.
    pub subject: Option<Digest>,
    /// What the store did.
    pub outcome: PutOutcome,
}

/// Why an image was not put. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum PutImageError {
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
    /// Checks a manifest and stores it with its tags: ECR's PutImage and the OCI door's PUT.
    ///
    /// # Errors
    /// The first check that fails, in ECR's order: the manifest, its digest, its references, its tags, the quotas.
    pub async fn put_image(&self, image: NewImage<'_>, now: Timestamp) -> Result<PutImage, PutImageError> {
        let limits = &self.config.limits;
        let algorithm = image.digest.map_or(Algorithm::Sha256, Digest::algorithm);
        let checked = check(image.payload, image.media_type, algorithm, limits.manifest_bytes).await?;
        let mut manifest = checked.manifest;
        if image.digest.is_some_and(|expected| *expected != manifest.digest) {
            return Err(PutImageError::DigestMismatch { actual: manifest.digest });
        }
        if !checked.foreign.is_empty() {
            let digests: Vec<Digest> = checked.foreign.iter().map(|foreign| foreign.digest.clone()).collect();
            let kept = self.metadata.layers(image.repository, &digests).await?;
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

    /// Notes that a manifest was pulled. Writes nothing: [`Registry::record_pulls`] does, for many pulls at once.
    pub fn note_pull(&self, manifest: &Manifest, now: Timestamp) {
        self.pulls.note(manifest, now);
    }

    /// Records pulls at once, those that need recording: whoever asks next sees them.
    pub async fn record_pulls_now(&self, manifests: &[Manifest], now: Timestamp) -> Result<(), StoreError> {
        let due = manifests.iter().filter(|manifest| is_due(manifest, now));
        let pulls: Vec<(ManifestId, Timestamp)> = due.map(|manifest| (manifest.id, now)).collect();
        if pulls.is_empty() { Ok(()) } else { self.metadata.record_pulls(&pulls).await }
    }

    /// Writes noted pulls until `stopped` says true, and what is left then.
    pub async fn record_pulls(self: Arc<Self>, mut stopped: watch::Receiver<bool>) {
        loop {
            let ended = tokio::select! {
                () = self.pulls.noted.notified() => false,
                _ = stopped.wait_for(|stopped| *stopped) => true,
            };
            if let Err(error) = self.flush_pulls().await {
                tracing::warn!(%error, "cannot record pulls; trying again in {} s", RETRY.as_secs());
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => self.pulls.noted.notify_one(),
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            }
            if ended {
                return;
            }
        }
    }

    /// Writes the pulls that are noted, and waits for those that are being written: afterwards every pull that this process
    /// has noted before is recorded.
    ///
    /// # Errors
    /// The store's; the pulls stay noted.
    pub async fn flush_pulls(&self) -> StoreResult<()> {
        self.pulls.flush(self.metadata.as_ref()).await
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
) -> Result<Checked, PutImageError> {
    if payload.len() <= QUICK_MANIFEST {
        return Ok(manifests::check(payload, declared, algorithm, max_bytes)?);
    }
    let declared = declared.map(str::to_owned);
    let checked =
        tokio::task::spawn_blocking(move || manifests::check(payload, declared.as_deref(), algorithm, max_bytes));
    Ok(checked.await.map_err(|error| StoreError::Backend(error.into()))??)
}

/// How old a recorded pull has to be before another one replaces it: ECR promises a day.
const PRECISION: SignedDuration = SignedDuration::from_hours(6);
/// Whether a pull of this manifest is worth recording.
fn is_due(manifest: &Manifest, now: Timestamp) -> bool {
    manifest.last_pulled_at.is_none_or(|last| now.duration_since(last) >= PRECISION)
}

/// When pulls that could not be recorded are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How many manifests may wait; what is pulled beyond that is noted at its next pull.
const MAX_PENDING: usize = 100_000;

/// Pulls that are not written yet. A busy manifest is noted a few times a day, so the hot path costs a comparison of times.
#[derive(Debug, Default)]
pub(super) struct PullRecorder {
    pending: Mutex<HashMap<ManifestId, Timestamp>>,
    /// Held while pulls are written.
    writing: tokio::sync::Mutex<()>,
    noted: Notify,
}

impl PullRecorder {
    fn note(&self, manifest: &Manifest, now: Timestamp) {
        if !is_due(manifest, now) {
            return;
        }
        let mut pending = self.pending();
        if pending.len() < MAX_PENDING {
            pending.insert(manifest.id, now);
            drop(pending);
            self.noted.notify_one();
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<ManifestId, Timestamp>> {
        // A map of times cannot be half changed, so a panic elsewhere leaves nothing to fear in it.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is noted while this writes is written together by the next call.
    async fn flush(&self, metadata: &dyn Metadata) -> StoreResult<()> {
        let _writing = self.writing.lock().await;
        let pulls: Vec<(ManifestId, Timestamp)> = self.pending().iter().map(|(id, at)| (*id, *at)).collect();
        if pulls.is_empty() {
            return Ok(());
        }
        metadata.record_pulls(&pulls).await?;
        let mut pending = self.pending();
        for (id, at) in pulls {
            // One that was noted since is still to be written.
            if pending.get(&id) == Some(&at) {
                pending.remove(&id);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::images::ImageStatus;

    fn manifest(last_pulled_at: Option<Timestamp>) -> Manifest {
        Manifest {
            id: ManifestId(7),
            digest: Digest::sha256(b"{}"),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            payload: Bytes::from_static(b"{}"),
            status: ImageStatus::Active,
            last_pulled_at,
        }
    }

    fn noted(last_pulled_at: Option<Timestamp>, now: Timestamp) -> bool {
        let recorder = PullRecorder::default();
        recorder.note(&manifest(last_pulled_at), now);
        !recorder.pending.lock().unwrap().is_empty()
    }

    #[test]
    fn a_pull_is_noted_when_none_was_for_hours() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        assert!(noted(None, now), "the first pull is noted");
        assert!(noted(Some(now - SignedDuration::from_hours(7)), now));
        assert!(!noted(Some(now - SignedDuration::from_hours(5)), now));
        assert!(!noted(Some(now + SignedDuration::from_hours(1)), now), "a clock that went back changes nothing");
    }
}
