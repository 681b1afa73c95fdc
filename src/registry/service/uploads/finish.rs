//! The end of an upload session: checks the digest, makes the bytes durable and commits the blob.

use futures::StreamExt as _;
use jiff::Timestamp;

use super::hasher::Hasher;
use super::{LEASE, UploadFailure, UploadSession};
use wharfage_domain::names::{Algorithm, Digest};
use wharfage_store::uploads::{CommitOutcome, CommitUpload, KnownBlob, UploadError};
use wharfage_store::{BlobKey, Sealed, StoreError};

/// The number of times a commit checks an existing blob, which others may replace at the same
/// time.
const COMMIT_ATTEMPTS: usize = 8;

/// A finished upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedUpload {
    /// The verified digest.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size: u64,
    /// The effect of the commit.
    pub(crate) committed: CommitOutcome,
}

impl UploadSession {
    /// Ends the session with a blob: its bytes become durable, then visible. One of the `expected`
    /// digests must match them.
    ///
    /// # Errors
    /// `DigestMismatch` when none does; the session is deleted then.
    pub async fn finish(
        mut self,
        expected: &[Digest],
        now: Timestamp,
    ) -> Result<FinishedUpload, UploadFailure> {
        let finished = self.try_finish(expected, now).await;
        self.close().await;
        finished
    }

    async fn try_finish(
        &mut self,
        expected: &[Digest],
        now: Timestamp,
    ) -> Result<FinishedUpload, UploadFailure> {
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.inspected().await
        {
            return Err(self.on_blob_error(error).await);
        }
        let hashed = self.hasher.lock().digest();
        let other = expected
            .iter()
            .map(Digest::algorithm)
            .find(|algorithm| *algorithm != hashed.algorithm());
        if !expected.contains(&hashed) && other.is_none() {
            return Err(self.reject(hashed).await);
        }
        let sealed = self.seal().await?;
        if sealed.recovered && self.hash_again(&sealed, hashed.algorithm()).await? != hashed {
            let reason = format!(
                "the bytes of upload {} are not the ones that were acknowledged",
                self.upload.id
            );
            return Err(self.on_blob_error(StoreError::Inconsistent(reason)).await);
        }
        if expected.contains(&hashed) {
            return self.commit(sealed, hashed, now).await;
        }
        let Some(algorithm) = other else { return Err(self.reject(hashed).await) };
        let again = self.hash_again(&sealed, algorithm).await?;
        if expected.contains(&again) {
            self.commit(sealed, again, now).await
        } else {
            Err(self.reject(again).await)
        }
    }

    /// Makes the bytes durable at their final location, also for a blob of no bytes.
    async fn seal(&mut self) -> Result<Sealed, UploadFailure> {
        let progress = &self.upload.progress;
        if self.received == 0 && self.claim.is_none() && self.upload.claimed_until.is_none() {
            // When the last chunk left nothing to write, no other writer needs to be kept out.
            if let Some(sealed) =
                self.registry.blobs.sealed(progress.offset, &progress.writer).await?
            {
                return Ok(sealed);
            }
        }
        self.writer().await?;
        self.confirm_claim().await?;
        let Some(writer) = self.writer.take() else { return Err(UploadFailure::NotFound) };
        match writer.finish().await {
            Ok(sealed) => Ok(sealed),
            Err(error) => Err(self.on_blob_error(error).await),
        }
    }

    async fn commit(
        &mut self,
        sealed: Sealed,
        digest: Digest,
        now: Timestamp,
    ) -> Result<FinishedUpload, UploadFailure> {
        let size = self.offset();
        let mut commit = CommitUpload {
            id: self.upload.id,
            version: self.upload.version,
            digest: digest.clone(),
            size,
            sealed,
            known: None,
            now,
            lease_until: now.checked_add(LEASE).unwrap_or(Timestamp::MAX),
        };
        for _ in 0..COMMIT_ATTEMPTS {
            match self.registry.metadata.commit_upload(commit.clone()).await {
                Ok(committed) => {
                    self.ended = true;
                    return Ok(FinishedUpload { digest, size, committed });
                }
                Err(UploadError::Unchecked(bytes)) => {
                    let intact = self.registry.is_intact(&bytes).await?;
                    if !intact {
                        tracing::warn!(%digest, "the stored blob is damaged; this push replaces it");
                    }
                    commit.known = Some(KnownBlob { generation: bytes.generation, intact });
                }
                Err(error) => return Err(self.on_metadata_error(error).await),
            }
        }
        Err(UploadFailure::Busy)
    }

    /// Deletes a session whose bytes have another digest than the client says: it could never
    /// succeed.
    async fn reject(&mut self, actual: Digest) -> UploadFailure {
        match self.remove().await {
            Ok(()) => UploadFailure::DigestMismatch { actual },
            Err(error) => error.into(),
        }
    }

    /// Reads the stored bytes back to hash them.
    async fn hash_again(
        &mut self,
        sealed: &Sealed,
        algorithm: Algorithm,
    ) -> Result<Digest, UploadFailure> {
        let size = self.offset();
        let mut hasher = Hasher::new(algorithm);
        if size > 0 {
            let bytes = BlobKey {
                generation: sealed.generation,
                size,
                stored_size: sealed.stored_size,
                key: self.upload.key.clone(),
            };
            let mut reader = self.registry.blobs.read(&bytes, 0..size).await?;
            while let Some(chunk) = reader.next().await {
                hasher.update(&chunk?);
            }
        }
        Ok(hasher.digest())
    }
}
