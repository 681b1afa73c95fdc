//! Writing. Bytes are collected into parts, and each full part is sent by its own task while the
//! next one fills. A blob smaller than a part is a single PUT.
//!
//! At a checkpoint the bytes that do not fill a part become a separate object, which the next
//! writer reads back. Without any part, that object is already the whole blob.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::{ObjectStoreExt, PutPayload, PutPayloadMut};
use tokio::task::JoinSet;

use super::state::{self, MAX_PARTS, Multipart, ObjectProgress, PART};
use super::{Bucket, check_size, missing, part_memory, store_error};
use crate::blobs::inspect::{Inspect, Inspection};
use crate::{BlobWriter, Generation, Sealed, StoreError, StoreResult, WriterState};
use wharfage_process::budget::Account;

/// Maximum number of parts of one object in flight.
const IN_FLIGHT: usize = 3;

/// Size of the blocks of a part's buffer.
const BLOCK: usize = 64 * 1024;

/// Writes one object.
pub(super) struct S3Writer {
    bucket: Arc<Bucket>,
    inspection: Inspection,
    /// Generation to which only this writer writes.
    fresh: Generation,
    upload: Option<OpenMultipart>,
    tail: TailBuffer,
    /// Object that already has the tail's bytes, which need not be in memory until more arrive.
    saved: Option<SavedTail>,
    /// Objects that the row names as no longer needed, to be deleted before the next checkpoint.
    stale: Vec<Generation>,
    /// Objects that this writer has replaced since the last checkpoint.
    replaced: Vec<Generation>,
    /// Size of the multipart upload's object, if an earlier writer finished it and it did not
    /// become a blob.
    finished: Option<u64>,
    in_flight: JoinSet<(usize, object_store::Result<PartId>)>,
}

/// A multipart upload in progress.
struct OpenMultipart {
    generation: Generation,
    id: String,
    /// Entity tags of the parts; none for a part in flight.
    parts: Vec<Option<String>>,
    recovered: bool,
    /// Only this writer knows of it, so that nobody else would abort it.
    unrecorded: bool,
}

/// An object with the bytes of a tail.
#[derive(Clone, Copy)]
struct SavedTail {
    generation: Generation,
    len: u64,
}

/// The bytes that do not fill a part yet.
struct TailBuffer {
    bytes: PutPayloadMut,
    account: Option<Account>,
}

impl Default for TailBuffer {
    fn default() -> Self {
        Self { bytes: PutPayloadMut::new().with_block_size(BLOCK), account: None }
    }
}

impl TailBuffer {
    fn len(&self) -> u64 {
        self.bytes.content_length() as u64
    }
}

impl S3Writer {
    pub(super) async fn open(
        bucket: Arc<Bucket>,
        fresh: Generation,
        progress: ObjectProgress,
        inspect: Arc<dyn Inspect>,
    ) -> StoreResult<Self> {
        let ObjectProgress { multipart, tail, stale } = progress;
        let upload =
            multipart.map(|Multipart { generation, id, parts, recovered }| OpenMultipart {
                generation,
                id,
                parts: parts.into_iter().map(Some).collect(),
                recovered,
                unrecorded: false,
            });
        let mut writer = Self {
            bucket,
            inspection: Inspection::new(inspect),
            fresh,
            upload,
            tail: TailBuffer::default(),
            saved: None,
            stale,
            replaced: Vec::new(),
            finished: None,
            in_flight: JoinSet::new(),
        };
        match tail {
            None => {}
            Some(state::TailLocation::Saved { generation, len }) => {
                writer.saved = Some(SavedTail { generation, len })
            }
            Some(state::TailLocation::Inline(bytes)) => {
                writer.admit(bytes.len() as u64).await?;
                writer.tail.bytes.push(bytes.into());
            }
        }
        if let Some(upload) = &writer.upload {
            let path = writer.bucket.path(upload.generation);
            writer.finished = writer.bucket.head(&path).await?.map(|found| found.size);
            let held = upload.parts.len() as u64 * PART;
            if let Some(found) = writer.finished.filter(|found| *found < held) {
                let message =
                    format!("{path} has {found} bytes, of which {held} were acknowledged");
                return Err(StoreError::Inconsistent(message));
            }
        }
        Ok(writer)
    }

    fn written(&self) -> u64 {
        let tail = match &self.saved {
            Some(saved) => saved.len,
            None => self.tail.len(),
        };
        self.upload.as_ref().map_or(0, |upload| upload.parts.len() as u64) * PART + tail
    }

    /// Waits for memory for `more` bytes in the tail.
    async fn admit(&mut self, more: u64) -> StoreResult<()> {
        let bytes = self.tail.len() + more;
        let account = self.tail.account.get_or_insert_with(|| self.bucket.part_memory.open());
        part_memory::admit(account, bytes).await
    }

    /// Reads a saved tail back, so that bytes can be appended.
    async fn load(&mut self) -> StoreResult<()> {
        let Some(SavedTail { generation, len }) = self.saved else { return Ok(()) };
        if self.tail.len() == 0 {
            self.admit(len).await?;
            let path = self.bucket.path(generation);
            let found = match self.bucket.client.get(&path).await {
                Ok(found) => found,
                // A missing bucket does not mean a lost tail.
                Err(error) => {
                    return Err(self
                        .bucket
                        .ok_if_missing(error)
                        .await
                        .err()
                        .unwrap_or_else(|| missing(&path)));
                }
            };
            check_size(&path, found.meta.size, len)?;
            let mut chunks = found.into_stream();
            while let Some(chunk) = chunks.try_next().await.map_err(store_error)? {
                self.tail.bytes.extend_from_slice(&chunk);
            }
            if self.tail.len() != len {
                return Err(StoreError::Inconsistent(format!("{path} ended while it was read")));
            }
        }
        Ok(())
    }

    /// Returns the multipart upload, and begins one if there is none.
    async fn upload(&mut self) -> StoreResult<&mut OpenMultipart> {
        if self.upload.is_none() {
            self.upload = Some(self.begin(0, false).await?);
        }
        self.upload
            .as_mut()
            .ok_or_else(|| StoreError::Backend("a multipart upload vanished".into()))
    }

    /// Begins a multipart upload with `parts` parts to come.
    async fn begin(&self, parts: usize, recovered: bool) -> StoreResult<OpenMultipart> {
        let path = self.bucket.path(self.fresh);
        let id = self.bucket.client.create_multipart(&path).await.map_err(store_error)?;
        Ok(OpenMultipart {
            generation: self.fresh,
            id,
            parts: vec![None; parts],
            recovered,
            unrecorded: true,
        })
    }

    /// Sends the tail as the next part.
    async fn send_part(&mut self) -> StoreResult<()> {
        self.wait_for_parts(IN_FLIGHT - 1).await?;
        let upload = self.upload().await?;
        let (generation, id, index) = (upload.generation, upload.id.clone(), upload.parts.len());
        if index == MAX_PARTS {
            let max = PART * MAX_PARTS as u64;
            return Err(StoreError::Backend(
                format!("{} would be larger than {max} bytes", generation.path()).into(),
            ));
        }
        upload.parts.push(None);
        let TailBuffer { bytes, account } = std::mem::take(&mut self.tail);
        let (bucket, path) = (Arc::clone(&self.bucket), self.bucket.path(generation));
        self.in_flight.spawn(async move {
            let part = bucket.client.put_part(&path, &id, index, bytes.freeze()).await;
            drop(account);
            (index, part)
        });
        Ok(())
    }

    /// Waits until at most `max` parts are in flight.
    async fn wait_for_parts(&mut self, max: usize) -> StoreResult<()> {
        while self.in_flight.len() > max {
            let Some(sent) = self.in_flight.join_next().await else { break };
            let (index, part) = sent.map_err(|e| StoreError::Backend(Box::new(e)))?;
            let part = match part {
                Ok(part) => part,
                Err(error) => return Err(self.multipart_error(error).await),
            };
            if let Some(slot) = self.upload.as_mut().and_then(|upload| upload.parts.get_mut(index))
            {
                *slot = Some(part.content_id);
            }
        }
        Ok(())
    }

    /// Converts an error of sending a part or of completing the multipart upload.
    async fn multipart_error(&self, error: object_store::Error) -> StoreError {
        let text = error.to_string();
        let missing_upload = match &error {
            // A missing bucket is another error.
            object_store::Error::NotFound { .. } => !text.contains("NoSuchBucket"),
            // Another writer has overwritten a part, or the server lost it.
            _ => text.contains("InvalidPart"),
        };
        let Some(upload) = self.upload.as_ref().filter(|_| missing_upload) else {
            return store_error(error);
        };
        let path = self.bucket.path(upload.generation);
        match self.bucket.head(&path).await {
            // The next writer finds it and continues from there.
            Ok(Some(_)) => StoreError::Unavailable(format!(
                "another request has finished the multipart upload of {path}"
            )),
            Ok(None) => {
                StoreError::Inconsistent(format!("the multipart upload of {path} is gone: {text}"))
            }
            Err(error) => error,
        }
    }

    /// Returns the entity tags of all parts, none of which is in flight. A failed part leaves a
    /// permanent gap.
    fn parts(&self) -> StoreResult<Vec<String>> {
        let parts =
            self.upload.iter().flat_map(|upload| &upload.parts).cloned().collect::<Option<_>>();
        parts.ok_or_else(|| {
            StoreError::Backend(format!("a part at {} was not written", self.fresh.path()).into())
        })
    }

    /// Continues in a new multipart upload if an earlier writer has finished the old one. Its
    /// acknowledged parts are copied, because other bytes may have followed them.
    async fn restart_multipart(&mut self) -> StoreResult<()> {
        let Some((old, acknowledged)) =
            self.upload.as_ref().map(|upload| (upload.generation, upload.parts.len()))
        else {
            return Ok(());
        };
        if self.finished.take().is_none() {
            return Ok(());
        }
        let (from, to) = (self.bucket.path(old), self.bucket.path(self.fresh));
        let begun = self.begin(acknowledged, true).await?;
        let upload = self.upload.insert(begun);
        let client = &self.bucket.client;
        for (index, part) in upload.parts.iter_mut().enumerate() {
            let start = index as u64 * PART;
            // One part more than was admitted, in a rare case.
            let bytes = client.get_range(&from, start..start + PART).await.map_err(store_error)?;
            let copied =
                client.put_part(&to, &upload.id, index, bytes.into()).await.map_err(store_error)?;
            *part = Some(copied.content_id);
        }
        self.replaced.push(old);
        Ok(())
    }

    /// Completes the object of `stored_size` bytes; only the last part may be short.
    async fn complete(&mut self, stored_size: u64) -> StoreResult<Sealed> {
        let parts = self.parts()?.into_iter().map(|content_id| PartId { content_id }).collect();
        let upload = self.upload().await?;
        let (generation, id, mut recovered) =
            (upload.generation, upload.id.clone(), upload.recovered);
        let path = self.bucket.path(generation);
        match self.bucket.client.complete_multipart(&path, &id, parts).await {
            Ok(_) => {}
            // A response was lost and the request retried, or another writer was faster: the digest
            // decides.
            Err(error @ object_store::Error::NotFound { .. }) => {
                if self.bucket.head(&path).await?.is_none_or(|found| found.size != stored_size) {
                    return Err(self.multipart_error(error).await);
                }
                recovered = true;
            }
            Err(e) => return Err(self.multipart_error(e).await),
        }
        self.upload().await?.unrecorded = false;
        Ok(Sealed { generation, stored_size, leftover: self.leftover(), recovered })
    }

    /// Returns the objects that are no longer needed once the object exists.
    fn leftover(&mut self) -> Vec<Generation> {
        let saved = self.saved.take().map(|saved| saved.generation);
        self.stale.drain(..).chain(self.replaced.drain(..)).chain(saved).collect()
    }

    /// Returns the tail as a request's payload, and keeps it in memory.
    fn payload(&mut self) -> PutPayload {
        let payload = std::mem::take(&mut self.tail.bytes).freeze();
        self.tail.bytes = PutPayloadMut::new().with_block_size(BLOCK);
        for block in payload.clone() {
            self.tail.bytes.push(block);
        }
        payload
    }

    /// Aborts a multipart upload that nobody else knows of.
    async fn abort_unrecorded(bucket: &Bucket, upload: Option<OpenMultipart>) {
        let Some(OpenMultipart { generation, id, unrecorded: true, .. }) = upload else { return };
        let path = bucket.path(generation);
        if let Err(error) = bucket.client.abort_multipart(&path, &id).await {
            tracing::warn!(%path, %error, "an abandoned multipart upload was not aborted; the bucket's own rule must");
        }
    }
}

#[async_trait::async_trait]
impl BlobWriter for S3Writer {
    async fn write(&mut self, mut bytes: Bytes) -> StoreResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.inspection.take(vec![bytes.clone()]).await?;
        self.restart_multipart().await?;
        self.load().await?;
        self.replaced.extend(self.saved.take().map(|saved| saved.generation));
        while !bytes.is_empty() {
            let missing =
                usize::try_from(PART.saturating_sub(self.tail.len())).unwrap_or(usize::MAX);
            let next = bytes.split_to(missing.min(bytes.len()));
            self.admit(next.len() as u64).await?;
            // Copied, because a part may take long to fill, and a frame keeps alive the receive
            // buffer of which it is a slice.
            self.tail.bytes.extend_from_slice(&next);
            if self.tail.len() >= PART {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    async fn inspected(&mut self) -> StoreResult<()> {
        self.inspection.wait().await
    }

    async fn checkpoint(&mut self, next: Generation) -> StoreResult<WriterState> {
        self.inspected().await?;
        self.wait_for_parts(0).await?;
        let parts = self.parts()?;
        for stale in self.stale.drain(..) {
            self.bucket.delete(stale).await?;
        }
        let len = self.tail.len();
        if self.saved.is_none() && len > 0 {
            // The multipart upload may have begun at this generation.
            let taken = self.upload.as_ref().is_some_and(|upload| upload.generation == self.fresh);
            let generation = if taken { self.fresh.tail() } else { self.fresh };
            let payload = self.payload();
            self.bucket
                .client
                .put(&self.bucket.path(generation), payload)
                .await
                .map_err(store_error)?;
            self.saved = Some(SavedTail { generation, len });
        }
        self.stale = std::mem::take(&mut self.replaced);
        let multipart =
            self.upload.as_ref().map(|OpenMultipart { generation, id, recovered, .. }| Multipart {
                generation: *generation,
                id: id.clone(),
                parts,
                recovered: *recovered,
            });
        let tail = self
            .saved
            .map(|SavedTail { generation, len }| state::TailLocation::Saved { generation, len });
        let state = ObjectProgress { multipart, tail, stale: self.stale.clone() }.encode()?;
        if let Some(upload) = &mut self.upload {
            upload.unrecorded = false;
        }
        self.fresh = next;
        Ok(state)
    }

    async fn finish(mut self: Box<Self>) -> StoreResult<Sealed> {
        self.wait_for_parts(0).await?;
        let stored_size = self.written();
        if let (Some(upload), Some(finished)) = (&self.upload, self.finished)
            && finished == stored_size
        {
            let generation = upload.generation;
            return Ok(Sealed {
                generation,
                stored_size,
                leftover: self.leftover(),
                recovered: true,
            });
        }
        self.restart_multipart().await?;
        if self.upload.is_none() {
            if let Some(SavedTail { generation, .. }) = self.saved.take() {
                let leftover = self.leftover();
                return Ok(Sealed { generation, stored_size, leftover, recovered: false });
            }
            let whole: PutPayload = std::mem::take(&mut self.tail.bytes).freeze();
            self.bucket
                .client
                .put(&self.bucket.path(self.fresh), whole)
                .await
                .map_err(store_error)?;
            let leftover = self.leftover();
            return Ok(Sealed { generation: self.fresh, stored_size, leftover, recovered: false });
        }
        self.load().await?;
        self.replaced.extend(self.saved.take().map(|saved| saved.generation));
        if self.tail.len() > 0 {
            self.send_part().await?;
        }
        self.wait_for_parts(0).await?;
        self.complete(stored_size).await
    }

    async fn abandon(mut self: Box<Self>) {
        while self.in_flight.join_next().await.is_some() {}
        Self::abort_unrecorded(&self.bucket, self.upload.take()).await;
    }
}

impl Drop for S3Writer {
    /// Aborts an abandoned upload that nobody else knows of, if a runtime is there to do so.
    fn drop(&mut self) {
        self.in_flight.abort_all();
        let Some(upload) = self.upload.take().filter(|upload| upload.unrecorded) else { return };
        let bucket = Arc::clone(&self.bucket);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { Self::abort_unrecorded(&bucket, Some(upload)).await });
        }
    }
}
