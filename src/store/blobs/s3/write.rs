//! Writing: bytes gather into parts; full parts are uploaded by tasks of their own while the next one fills. What never
//! fills a part is a single PUT.
//!
//! At a checkpoint the bytes that do not fill a part become an object of their own, which the next writer reads back. If
//! there is no part yet, that object is already the whole blob.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::{ObjectStoreExt, PutPayload, PutPayloadMut};
use tokio::task::JoinSet;

use super::state::{self, MOST_PARTS, Multipart, PART, Progress};
use super::{Bucket, admission, failed, missing, sized};
use crate::budget::Account;
use crate::store::blobs::inspect::{Inspect, Inspection};
use crate::store::{BlobWriter, Generation, Sealed, StoreError, StoreResult, WriterState};

/// Parts of one object that are on their way at once.
const IN_FLIGHT: usize = 3;

/// A part's bytes are gathered in blocks of this size.
const BLOCK: usize = 64 * 1024;

/// Writes one object.
pub(super) struct S3Writer {
    bucket: Arc<Bucket>,
    inspection: Inspection,
    /// Where nobody but this writer writes.
    fresh: Generation,
    upload: Option<Upload>,
    tail: Tail,
    /// The object that has the tail's bytes already: they need not be in memory until more come.
    saved: Option<Saved>,
    /// What the row names as not needed any more: gone before the next checkpoint.
    stale: Vec<Generation>,
    /// What this writer has replaced since.
    replaced: Vec<Generation>,
    /// The size of the multipart upload's object, when an earlier writer has finished it, which never became a blob.
    finished: Option<u64>,
    flights: JoinSet<(usize, object_store::Result<PartId>)>,
}

/// A multipart upload under way.
struct Upload {
    generation: Generation,
    id: String,
    /// The parts' entity tags; none for a part that is on its way.
    parts: Vec<Option<String>>,
    recovered: bool,
    /// Whether nobody but this writer knows of it, so that nobody else would ever abort it.
    untold: bool,
}

/// An object with the bytes of a tail.
#[derive(Clone, Copy)]
struct Saved {
    generation: Generation,
    len: u64,
}

/// The bytes that do not fill a part yet.
struct Tail {
    bytes: PutPayloadMut,
    account: Option<Account>,
}

impl Default for Tail {
    fn default() -> Self {
        Self { bytes: PutPayloadMut::new().with_block_size(BLOCK), account: None }
    }
}

impl Tail {
    fn len(&self) -> u64 {
        self.bytes.content_length() as u64
    }
}

impl S3Writer {
    pub(super) async fn open(
        bucket: Arc<Bucket>,
        fresh: Generation,
        progress: Progress,
        inspect: Arc<dyn Inspect>,
    ) -> StoreResult<Self> {
        let Progress { multipart, tail, stale } = progress;
        let upload = multipart.map(|Multipart { generation, id, parts, recovered }| Upload {
            generation,
            id,
            parts: parts.into_iter().map(Some).collect(),
            recovered,
            untold: false,
        });
        let mut writer = Self {
            bucket,
            inspection: Inspection::new(inspect),
            fresh,
            upload,
            tail: Tail::default(),
            saved: None,
            stale,
            replaced: Vec::new(),
            finished: None,
            flights: JoinSet::new(),
        };
        match tail {
            None => {}
            Some(state::Tail::Saved { generation, len }) => writer.saved = Some(Saved { generation, len }),
            Some(state::Tail::Inline(bytes)) => {
                writer.admit(bytes.len() as u64).await?;
                writer.tail.bytes.push(bytes.into());
            }
        }
        if let Some(upload) = &writer.upload {
            let path = writer.bucket.path(upload.generation);
            writer.finished = writer.bucket.look(&path).await?.map(|found| found.size);
            let held = upload.parts.len() as u64 * PART;
            if let Some(found) = writer.finished.filter(|found| *found < held) {
                let told = format!("{path} has {found} bytes, of which {held} were acknowledged");
                return Err(StoreError::Inconsistent(told));
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

    /// Asks for room for `more` bytes in the tail.
    async fn admit(&mut self, more: u64) -> StoreResult<()> {
        let bytes = self.tail.len() + more;
        let account = self.tail.account.get_or_insert_with(|| self.bucket.admission.open());
        admission::admit(account, bytes).await
    }

    /// Reads a saved tail back, so that bytes can follow it.
    async fn load(&mut self) -> StoreResult<()> {
        let Some(Saved { generation, len }) = self.saved else { return Ok(()) };
        if self.tail.len() == 0 {
            self.admit(len).await?;
            let path = self.bucket.path(generation);
            let found = match self.bucket.client.get(&path).await {
                Ok(found) => found,
                // A bucket that is away is not a tail that is lost.
                Err(error) => return Err(self.bucket.absent(error).await.err().unwrap_or_else(|| missing(&path))),
            };
            sized(&path, found.meta.size, len)?;
            let mut chunks = found.into_stream();
            while let Some(chunk) = chunks.try_next().await.map_err(failed)? {
                self.tail.bytes.extend_from_slice(&chunk);
            }
            if self.tail.len() != len {
                return Err(StoreError::Inconsistent(format!("{path} ended while it was read")));
            }
        }
        Ok(())
    }

    /// The multipart upload, begun when there is none.
    async fn upload(&mut self) -> StoreResult<&mut Upload> {
        if self.upload.is_none() {
            self.upload = Some(self.begin(0, false).await?);
        }
        self.upload.as_mut().ok_or_else(|| StoreError::Backend("a multipart upload vanished".into()))
    }

    /// A new multipart upload with room for `parts`.
    async fn begin(&self, parts: usize, recovered: bool) -> StoreResult<Upload> {
        let path = self.bucket.path(self.fresh);
        let id = self.bucket.client.create_multipart(&path).await.map_err(failed)?;
        Ok(Upload { generation: self.fresh, id, parts: vec![None; parts], recovered, untold: true })
    }

    /// Sends the tail off as the next part.
    async fn send_part(&mut self) -> StoreResult<()> {
        self.land(IN_FLIGHT - 1).await?;
        let upload = self.upload().await?;
        let (generation, id, index) = (upload.generation, upload.id.clone(), upload.parts.len());
        if index == MOST_PARTS {
            let most = PART * MOST_PARTS as u64;
            return Err(StoreError::Backend(format!("{} would be larger than {most} bytes", generation.path()).into()));
        }
        upload.parts.push(None);
        let Tail { bytes, account } = std::mem::take(&mut self.tail);
        let (bucket, path) = (Arc::clone(&self.bucket), self.bucket.path(generation));
        self.flights.spawn(async move {
            let part = bucket.client.put_part(&path, &id, index, bytes.freeze()).await;
            drop(account);
            (index, part)
        });
        Ok(())
    }

    /// Waits until no more than `most` parts are on their way.
    async fn land(&mut self, most: usize) -> StoreResult<()> {
        while self.flights.len() > most {
            let Some(landed) = self.flights.join_next().await else { break };
            let (index, part) = landed.map_err(|e| StoreError::Backend(Box::new(e)))?;
            let part = match part {
                Ok(part) => part,
                Err(error) => return Err(self.refused(error).await),
            };
            if let Some(place) = self.upload.as_mut().and_then(|upload| upload.parts.get_mut(index)) {
                *place = Some(part.content_id);
            }
        }
        Ok(())
    }

    /// What it means that the multipart upload takes no part or does not end.
    async fn refused(&self, error: object_store::Error) -> StoreError {
        let text = error.to_string();
        let gone = match &error {
            // A bucket that is missing is another matter.
            object_store::Error::NotFound { .. } => !text.contains("NoSuchBucket"),
            // Another writer has overwritten a part, or the server lost it.
            _ => text.contains("InvalidPart"),
        };
        let Some(upload) = self.upload.as_ref().filter(|_| gone) else { return failed(error) };
        let path = self.bucket.path(upload.generation);
        match self.bucket.look(&path).await {
            // Who comes next finds it and goes on from there.
            Ok(Some(_)) => {
                StoreError::Unavailable(format!("another request has finished the multipart upload of {path}"))
            }
            Ok(None) => StoreError::Inconsistent(format!("the multipart upload of {path} is gone: {text}")),
            Err(error) => error,
        }
    }

    /// All parts' entity tags, once none is on its way. A part that failed leaves a gap for good.
    fn parts(&self) -> StoreResult<Vec<String>> {
        let parts = self.upload.iter().flat_map(|upload| &upload.parts).cloned().collect::<Option<_>>();
        parts.ok_or_else(|| StoreError::Backend(format!("a part at {} was not written", self.fresh.path()).into()))
    }

    /// Goes on in a new multipart upload when an earlier writer has finished the old one. Its first parts are copied, since
    /// what followed them may now be other bytes.
    async fn begin_again(&mut self) -> StoreResult<()> {
        let Some((old, acknowledged)) = self.upload.as_ref().map(|upload| (upload.generation, upload.parts.len()))
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
            // One part beyond what was admitted, for something so rare.
            let bytes = client.get_range(&from, start..start + PART).await.map_err(failed)?;
            let copied = client.put_part(&to, &upload.id, index, bytes.into()).await.map_err(failed)?;
            *part = Some(copied.content_id);
        }
        self.replaced.push(old);
        Ok(())
    }

    /// Turns the parts into the object of `stored_size` bytes, the last part being the one that may be short.
    async fn complete(&mut self, stored_size: u64) -> StoreResult<Sealed> {
        let parts = self.parts()?.into_iter().map(|content_id| PartId { content_id }).collect();
        let upload = self.upload().await?;
        let (generation, id, mut recovered) = (upload.generation, upload.id.clone(), upload.recovered);
        let path = self.bucket.path(generation);
        match self.bucket.client.complete_multipart(&path, &id, parts).await {
            Ok(_) => {}
            // An answer was lost and the request was sent again, or another writer was faster: the digest tells.
            Err(gone @ object_store::Error::NotFound { .. }) => {
                if self.bucket.look(&path).await?.is_none_or(|found| found.size != stored_size) {
                    return Err(self.refused(gone).await);
                }
                recovered = true;
            }
            Err(e) => return Err(self.refused(e).await),
        }
        self.upload().await?.untold = false;
        Ok(Sealed { generation, stored_size, leftover: self.leftover(), recovered })
    }

    /// What is not needed any more once the object is there.
    fn leftover(&mut self) -> Vec<Generation> {
        let saved = self.saved.take().map(|saved| saved.generation);
        self.stale.drain(..).chain(self.replaced.drain(..)).chain(saved).collect()
    }

    /// The tail as a request's payload; it stays in memory, too.
    fn payload(&mut self) -> PutPayload {
        let payload = std::mem::take(&mut self.tail.bytes).freeze();
        self.tail.bytes = PutPayloadMut::new().with_block_size(BLOCK);
        for block in payload.clone() {
            self.tail.bytes.push(block);
        }
        payload
    }

    /// Aborts a multipart upload that nobody else knows of.
    async fn abort_untold(bucket: &Bucket, upload: Option<Upload>) {
        let Some(Upload { generation, id, untold: true, .. }) = upload else { return };
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
        self.begin_again().await?;
        self.load().await?;
        self.replaced.extend(self.saved.take().map(|saved| saved.generation));
        while !bytes.is_empty() {
            let room = usize::try_from(PART.saturating_sub(self.tail.len())).unwrap_or(usize::MAX);
            let next = bytes.split_to(room.min(bytes.len()));
            self.admit(next.len() as u64).await?;
            // Copied, because a part gathers for long and a frame keeps the whole receive buffer that it is a slice of.
            self.tail.bytes.extend_from_slice(&next);
            if self.tail.len() >= PART {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    async fn inspected(&mut self) -> StoreResult<()> {
        self.inspection.settle().await
    }

    async fn checkpoint(&mut self, next: Generation) -> StoreResult<WriterState> {
        self.inspected().await?;
        self.land(0).await?;
        let parts = self.parts()?;
        for stale in self.stale.drain(..) {
            self.bucket.delete(stale).await?;
        }
        let len = self.tail.len();
        if self.saved.is_none() && len > 0 {
            // The multipart upload may have begun at this very generation.
            let taken = self.upload.as_ref().is_some_and(|upload| upload.generation == self.fresh);
            let generation = if taken { self.fresh.tail() } else { self.fresh };
            let payload = self.payload();
            self.bucket.client.put(&self.bucket.path(generation), payload).await.map_err(failed)?;
            self.saved = Some(Saved { generation, len });
        }
        self.stale = std::mem::take(&mut self.replaced);
        let multipart = self.upload.as_ref().map(|Upload { generation, id, recovered, .. }| Multipart {
            generation: *generation,
            id: id.clone(),
            parts,
            recovered: *recovered,
        });
        let tail = self.saved.map(|Saved { generation, len }| state::Tail::Saved { generation, len });
        let state = Progress { multipart, tail, stale: self.stale.clone() }.encode()?;
        if let Some(upload) = &mut self.upload {
            upload.untold = false;
        }
        self.fresh = next;
        Ok(state)
    }

    async fn finish(mut self: Box<Self>) -> StoreResult<Sealed> {
        self.land(0).await?;
        let stored_size = self.written();
        if let (Some(upload), Some(finished)) = (&self.upload, self.finished)
            && finished == stored_size
        {
            let generation = upload.generation;
            return Ok(Sealed { generation, stored_size, leftover: self.leftover(), recovered: true });
        }
        self.begin_again().await?;
        if self.upload.is_none() {
            if let Some(Saved { generation, .. }) = self.saved.take() {
                let leftover = self.leftover();
                return Ok(Sealed { generation, stored_size, leftover, recovered: false });
            }
            let whole: PutPayload = std::mem::take(&mut self.tail.bytes).freeze();
            self.bucket.client.put(&self.bucket.path(self.fresh), whole).await.map_err(failed)?;
            let leftover = self.leftover();
            return Ok(Sealed { generation: self.fresh, stored_size, leftover, recovered: false });
        }
        self.load().await?;
        self.replaced.extend(self.saved.take().map(|saved| saved.generation));
        if self.tail.len() > 0 {
            self.send_part().await?;
        }
        self.land(0).await?;
        self.complete(stored_size).await
    }

    async fn abandon(mut self: Box<Self>) {
        while self.flights.join_next().await.is_some() {}
        Self::abort_untold(&self.bucket, self.upload.take()).await;
    }
}

impl Drop for S3Writer {
    /// An abandoned upload that nobody else knows of is aborted, as far as that can be done from here.
    fn drop(&mut self) {
        self.flights.abort_all();
        let Some(upload) = self.upload.take().filter(|upload| upload.untold) else { return };
        let bucket = Arc::clone(&self.bucket);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { Self::abort_untold(&bucket, Some(upload)).await });
        }
    }
}
