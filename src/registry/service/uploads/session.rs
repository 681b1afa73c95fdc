//! One request's access to an upload session: claims it, appends bytes, acknowledges them and
//! releases it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;

use super::UploadFailure;
use super::claim::{CLAIM_DURATION, HeldClaim};
use super::hasher::{Hasher, Hashing};
use super::locks::SessionLock;
use crate::service::Registry;
use wharfage_domain::names::Algorithm;
use wharfage_store::jobs::DeleteGeneration;
use wharfage_store::uploads::{AdvanceUpload, Upload, UploadClaim, UploadError, UploadProgress};
use wharfage_store::{BlobWriter, Generation, Handover, StoreError, UploadKey};

/// One request's access to an upload session.
/// Dropping it releases the claim, and deletes a session that no client knows.
pub struct UploadSession {
    pub(super) registry: Arc<Registry>,
    pub(super) upload: Upload,
    pub(super) hasher: Arc<Hashing>,
    pub(super) claim: Option<HeldClaim>,
    pub(super) writer: Option<Box<dyn BlobWriter>>,
    pub(super) received: u64,
    /// Bytes may have been written that no checkpoint has acknowledged.
    dirty: bool,
    /// The session is committed or removed.
    pub(super) ended: bool,
    lock: Option<SessionLock>,
}

impl std::fmt::Debug for UploadSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadSession")
            .field("id", &self.upload.id)
            .field("offset", &self.offset())
            .finish_non_exhaustive()
    }
}

impl UploadSession {
    pub(super) fn new(
        registry: Arc<Registry>,
        upload: Upload,
        lock: SessionLock,
    ) -> Result<Self, UploadFailure> {
        let hasher =
            Hasher::restore(upload.algorithm, &upload.progress.hash_state).ok_or_else(|| {
                StoreError::Inconsistent(format!(
                    "the hash state of upload {} cannot be read",
                    upload.id
                ))
            })?;
        Ok(Self {
            registry,
            upload,
            hasher: Arc::new(Hashing::new(hasher)),
            claim: None,
            writer: None,
            received: 0,
            dirty: false,
            ended: false,
            lock: Some(lock),
        })
    }

    /// Returns the row of the session: the acknowledged state.
    pub(crate) fn acknowledged(&self) -> &Upload {
        &self.upload
    }

    /// Returns the number of bytes received, including unacknowledged ones.
    pub(crate) fn offset(&self) -> u64 {
        self.upload.progress.offset + self.received
    }

    /// Hashes with `algorithm` from now on, unless bytes were hashed with another one already.
    pub(crate) fn use_algorithm(&mut self, algorithm: Algorithm) {
        if self.offset() == 0 {
            *self.hasher.lock() = Hasher::new(algorithm);
        }
    }

    /// Checks that `more` bytes fit into a blob and into the store.
    ///
    /// # Errors
    /// `TooLarge`, or the store's `Full`.
    pub(crate) fn reserve(&self, more: u64) -> Result<(), UploadFailure> {
        self.check_size(more)?;
        Ok(self.registry.blobs.admit(more)?)
    }

    /// Checks that `more` bytes fit into a blob.
    fn check_size(&self, more: u64) -> Result<(), UploadFailure> {
        let limit = self.registry.config.limits.blob_bytes;
        let fits = self.offset().checked_add(more).is_some_and(|size| size <= limit);
        if fits { Ok(()) } else { Err(UploadFailure::TooLarge(limit)) }
    }

    /// Appends the next bytes.
    ///
    /// # Errors
    /// `TooLarge`, `Busy` or `NotFound` when the claim is lost, or an error of the store. The
    /// acknowledged part of the session is unchanged then, and this access to it cannot be used
    /// again.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), UploadFailure> {
        let length = bytes.len() as u64;
        // The writer asks the store for space, for many bytes at once.
        self.check_size(length)?;
        self.writer().await?;
        self.confirm_claim().await?;
        let Some(writer) = self.writer.as_mut() else { return Err(UploadFailure::NotFound) };
        if let Err(error) = writer.write(bytes).await {
            return Err(self.on_blob_error(error).await);
        }
        self.received += length;
        Ok(())
    }

    /// Opens the writer, under a claim.
    pub(super) async fn writer(&mut self) -> Result<(), UploadFailure> {
        if self.writer.is_some() {
            return Ok(());
        }
        let handover = match &self.claim {
            Some(claim) => claim.handover,
            None => self.claim().await?,
        };
        self.dirty = true;
        let key = UploadKey { generation: self.upload.generation, key: self.upload.key.clone() };
        let progress = &self.upload.progress;
        let inspect = self.hasher.clone();
        match self
            .registry
            .blobs
            .writer(&key, progress.offset, &progress.writer, handover, inspect)
            .await
        {
            Ok(writer) => self.writer = Some(writer),
            Err(error) => return Err(self.on_blob_error(error).await),
        }
        Ok(())
    }

    /// Claims the session as it was read.
    async fn claim(&mut self) -> Result<Handover, UploadFailure> {
        let (fresh, now) = (Generation::random(), Timestamp::now());
        let claimed =
            self.registry.metadata.claim_upload(&self.upload, fresh, now, CLAIM_DURATION).await?;
        Ok(self.keep_claim(claimed))
    }

    /// Holds a claim that was granted just now.
    pub(super) fn keep_claim(&mut self, claimed: UploadClaim) -> Handover {
        let UploadClaim { version, generation, takeover } = claimed;
        self.upload.version = version;
        self.upload.generation = generation;
        let handover = if takeover { Handover::Takeover } else { Handover::Clean };
        self.claim =
            Some(HeldClaim::new(Arc::clone(&self.registry), self.upload.id, version, handover));
        handover
    }

    /// Ensures that the claim lasts long enough for a request to the object store.
    pub(super) async fn confirm_claim(&mut self) -> Result<(), UploadFailure> {
        let Some(claim) = &self.claim else { return Err(UploadFailure::NotFound) };
        if claim.renewed.is_fresh() {
            return Ok(());
        }
        let asked = Instant::now();
        let (id, version) = (self.upload.id, self.upload.version);
        match self
            .registry
            .metadata
            .renew_upload(id, version, Timestamp::now(), CLAIM_DURATION)
            .await
        {
            Ok(()) => {
                claim.renewed.set(Some(asked));
                Ok(())
            }
            Err(error) => Err(self.on_metadata_error(error).await),
        }
    }

    /// Makes the received bytes durable and records them, with the protocol's own state (`None`
    /// keeps the last one). Returns the offset. Does nothing when no bytes were received.
    ///
    /// # Errors
    /// `Busy` when another process has continued the session meanwhile.
    pub(crate) async fn acknowledge(
        &mut self,
        protocol_state: Option<Vec<u8>>,
        now: Timestamp,
    ) -> Result<u64, UploadFailure> {
        self.checkpoint(protocol_state, Some(CLAIM_DURATION), now).await
    }

    /// Acknowledges like [`UploadSession::acknowledge`] and releases the session. A session that no
    /// client knows is deleted.
    ///
    /// # Errors
    /// As [`UploadSession::acknowledge`]'s.
    pub async fn pause(
        mut self,
        protocol_state: Option<Vec<u8>>,
        now: Timestamp,
    ) -> Result<u64, UploadFailure> {
        let paused = match self.upload.announced {
            true => self.checkpoint(protocol_state, None, now).await,
            false => Ok(self.offset()),
        };
        self.close().await;
        paused
    }

    async fn checkpoint(
        &mut self,
        protocol_state: Option<Vec<u8>>,
        hold: Option<Duration>,
        now: Timestamp,
    ) -> Result<u64, UploadFailure> {
        if self.received == 0 {
            return Ok(self.offset());
        }
        self.confirm_claim().await?;
        let next = Generation::random();
        let Some(writer) = self.writer.as_mut() else { return Err(UploadFailure::NotFound) };
        let state = match writer.checkpoint(next).await {
            Ok(state) => state,
            Err(error) => return Err(self.on_blob_error(error).await),
        };
        let progress = UploadProgress {
            offset: self.offset(),
            hash_state: self.hasher.lock().save(),
            writer: state,
            protocol_state: protocol_state
                .unwrap_or_else(|| self.upload.progress.protocol_state.clone()),
            updated_at: now,
        };
        let advance = AdvanceUpload {
            id: self.upload.id,
            version: self.upload.version,
            progress: progress.clone(),
            generation: next,
            hold,
            now: Timestamp::now(),
        };
        if let Err(error) = self.registry.metadata.advance_upload(advance).await {
            return Err(self.on_metadata_error(error).await);
        }
        self.upload.progress = progress;
        self.upload.generation = next;
        self.received = 0;
        if hold.is_none() {
            self.claim = None;
            self.writer = None;
            self.dirty = false;
        }
        Ok(self.offset())
    }

    /// Handles an error of the blob store. A loss of acknowledged bytes ends the session.
    pub(super) async fn on_blob_error(&mut self, error: StoreError) -> UploadFailure {
        let StoreError::Inconsistent(reason) = &error else { return error.into() };
        tracing::error!(upload = %self.upload.id, reason, "an upload cannot continue; it is deleted");
        match self.remove().await {
            Ok(()) => UploadFailure::NotFound,
            Err(error) => error.into(),
        }
    }

    /// Handles an error of the metadata store. When the claim is lost, the bytes written under it
    /// are deleted.
    pub(super) async fn on_metadata_error(&mut self, error: UploadError) -> UploadFailure {
        if matches!(error, UploadError::NotFound | UploadError::Conflict) {
            self.discard_written().await;
        }
        error.into()
    }

    /// Deletes the bytes written under a lost claim. The acknowledged bytes belong to the new
    /// claimant.
    async fn discard_written(&mut self) {
        self.ended = true;
        self.abandon_writer().await;
        if self.dirty {
            let job = DeleteGeneration::late_job(self.upload.generation, Timestamp::now());
            if let Err(error) = self.registry.metadata.enqueue_job(job).await {
                tracing::warn!(upload = %self.upload.id, %error, "the bytes written under a lost claim are not deleted");
            }
        }
    }

    /// Drops the claim and waits until the writer has stopped.
    async fn abandon_writer(&mut self) {
        self.claim = None;
        if let Some(writer) = self.writer.take() {
            writer.abandon().await;
        }
    }

    /// Deletes the session with its bytes, unless another writer has claimed it meanwhile.
    pub(super) async fn remove(&mut self) -> Result<(), StoreError> {
        self.abandon_writer().await;
        let (repository, id) = (self.upload.repository, self.upload.id);
        let version = Some(self.upload.version);
        if self.registry.metadata.cancel_upload(repository, id, version, Timestamp::now()).await? {
            self.ended = true;
        } else {
            self.discard_written().await;
        }
        Ok(())
    }

    /// Releases the session: an announced one can be continued from its acknowledged bytes, any
    /// other is deleted.
    pub(crate) async fn abandon(mut self) {
        self.close().await;
    }

    pub(super) async fn close(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.release().await;
        }
        self.lock = None;
    }

    async fn release(&mut self) {
        if !self.upload.announced {
            if let Err(error) = self.remove().await {
                tracing::warn!(upload = %self.upload.id, %error, "cannot delete a failed upload; a job deletes it later");
            }
        } else if self.claim.is_some() {
            self.abandon_writer().await;
            let (id, version, clean) = (self.upload.id, self.upload.version, !self.dirty);
            if let Err(error) = self.registry.metadata.release_upload(id, version, clean).await {
                tracing::warn!(upload = %id, %error, "cannot release the claim on an upload; it expires");
            }
        }
    }
}

impl Drop for UploadSession {
    /// Releases the session of a request that broke off.
    fn drop(&mut self) {
        if self.ended || self.claim.is_none() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut left = Self {
            registry: Arc::clone(&self.registry),
            upload: self.upload.clone(),
            hasher: Arc::clone(&self.hasher),
            claim: self.claim.take(),
            writer: self.writer.take(),
            received: self.received,
            dirty: self.dirty,
            // When the runtime ends first, the claim expires.
            ended: true,
            lock: self.lock.take(),
        };
        runtime.spawn(async move { left.release().await });
    }
}
