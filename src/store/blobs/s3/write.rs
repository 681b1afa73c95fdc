//! Writing: bytes gather into parts; full parts are uploaded by tasks of their own while the next one fills. What never
//! fills a part is a single PUT.

use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt, PutPayload, PutPayloadMut};
use tokio::task::JoinSet;

use super::state::{MOST_PARTS, Multipart, PART, Progress};
use super::{Bucket, admission, failed};
use crate::budget::Account;
use crate::store::{BlobWriter, StoreError, StoreResult, WriterState};

/// Parts of one object that are on their way at once.
const IN_FLIGHT: usize = 3;

/// A part's bytes are gathered in blocks of this size.
const BLOCK: usize = 64 * 1024;

/// Writes one object.
pub(super) struct S3Writer {
    bucket: Arc<Bucket>,
    path: Path,
    upload: Option<Upload>,
    tail: Tail,
    /// The object, when a crash came between its completion and the commit.
    finished: Option<ObjectMeta>,
    flights: JoinSet<(usize, object_store::Result<PartId>)>,
}

/// A multipart upload under way.
struct Upload {
    id: String,
    /// The parts' entity tags; none for a part that is on its way.
    parts: Vec<Option<String>>,
    replaces: Option<String>,
    /// Whether nobody but this writer knows of it, so that nobody else would ever abort it.
    untold: bool,
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
    pub(super) async fn open(bucket: Arc<Bucket>, path: Path, progress: Progress) -> StoreResult<Self> {
        let Progress { multipart, tail } = progress;
        let finished = match &multipart {
            // Without a multipart upload everything is in hand, and finishing again is one more PUT.
            None => None,
            Some(multipart) => bucket.look(&path).await?.filter(|found| Some(mark(found)) != multipart.replaces),
        };
        let upload = multipart.map(|Multipart { id, parts, replaces }| Upload {
            id,
            parts: parts.into_iter().map(Some).collect(),
            replaces,
            untold: false,
        });
        let mut writer = Self { bucket, path, upload, tail: Tail::default(), finished, flights: JoinSet::new() };
        writer.admit(tail.len() as u64).await?;
        if !tail.is_empty() {
            writer.tail.bytes.push(tail.into());
        }
        if let Some(finished) = &writer.finished
            && finished.size < writer.written()
        {
            let (path, found, written) = (&writer.path, finished.size, writer.written());
            let told = format!("{path} has {found} bytes, of which {written} were acknowledged");
            return Err(StoreError::Inconsistent(told));
        }
        Ok(writer)
    }

    fn written(&self) -> u64 {
        self.upload.as_ref().map_or(0, |upload| upload.parts.len() as u64) * PART + self.tail.len()
    }

    /// Asks for room for `more` bytes in the tail.
    async fn admit(&mut self, more: u64) -> StoreResult<()> {
        let bytes = self.tail.len() + more;
        let account = self.tail.account.get_or_insert_with(|| self.bucket.admission.open());
        admission::admit(account, bytes).await
    }

    /// The multipart upload, begun when there is none.
    async fn upload(&mut self) -> StoreResult<&mut Upload> {
        if self.upload.is_none() {
            let id = self.bucket.client.create_multipart(&self.path).await.map_err(failed)?;
            self.upload = Some(Upload { id, parts: Vec::new(), replaces: None, untold: true });
        }
        self.upload.as_mut().ok_or_else(|| StoreError::Backend("a multipart upload vanished".into()))
    }

    /// Sends the tail off as the next part.
    async fn send_part(&mut self) -> StoreResult<()> {
        self.land(IN_FLIGHT - 1).await?;
        let upload = self.upload().await?;
        let (id, index) = (upload.id.clone(), upload.parts.len());
        if index == MOST_PARTS {
            let most = PART * MOST_PARTS as u64;
            return Err(StoreError::Backend(format!("{} would be larger than {most} bytes", self.path).into()));
        }
        upload.parts.push(None);
        let Tail { bytes, account } = std::mem::take(&mut self.tail);
        let (bucket, path) = (Arc::clone(&self.bucket), self.path.clone());
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
            let part = part.map_err(failed)?;
            if let Some(place) = self.upload.as_mut().and_then(|upload| upload.parts.get_mut(index)) {
                *place = Some(part.content_id);
            }
        }
        Ok(())
    }

    /// All parts' entity tags, once none is on its way. A part that failed leaves a gap for good.
    fn parts(&self) -> StoreResult<Vec<String>> {
        let parts = self.upload.iter().flat_map(|upload| &upload.parts).cloned().collect::<Option<_>>();
        parts.ok_or_else(|| StoreError::Backend(format!("a part of {} was not written", self.path).into()))
    }

    /// Goes on in a new multipart upload when an earlier writer has finished the old one, which never became a blob. Its
    /// first parts are what was acknowledged; they are copied, since what followed them may now be other bytes.
    async fn begin_again(&mut self) -> StoreResult<()> {
        let (Some(finished), Some(old)) = (self.finished.take(), &self.upload) else { return Ok(()) };
        let acknowledged = old.parts.len();
        let client = &self.bucket.client;
        let id = client.create_multipart(&self.path).await.map_err(failed)?;
        let parts = vec![None; acknowledged];
        let upload = self.upload.insert(Upload { id, parts, replaces: Some(mark(&finished)), untold: true });
        for (index, part) in upload.parts.iter_mut().enumerate() {
            let start = index as u64 * PART;
            // One part beyond what was admitted, for something so rare.
            let bytes = client.get_range(&self.path, start..start + PART).await.map_err(failed)?;
            let copied = client.put_part(&self.path, &upload.id, index, bytes.into()).await.map_err(failed)?;
            *part = Some(copied.content_id);
        }
        Ok(())
    }

    /// Turns the parts into the object.
    async fn complete(&mut self) -> StoreResult<()> {
        let parts = self.parts()?.into_iter().map(|content_id| PartId { content_id }).collect();
        let size = self.written();
        let Some(upload) = &mut self.upload else { return Ok(()) };
        match self.bucket.client.complete_multipart(&self.path, &upload.id, parts).await {
            Ok(_) => {}
            // An answer was lost and the request was sent again: then the object is there, and no older one.
            Err(gone @ object_store::Error::NotFound { .. }) => {
                let found = self.bucket.look(&self.path).await?;
                let done = found.is_some_and(|found| found.size == size && Some(mark(&found)) != upload.replaces);
                if !done {
                    return Err(failed(gone));
                }
            }
            Err(e) => return Err(failed(e)),
        }
        upload.untold = false;
        Ok(())
    }
}

#[async_trait::async_trait]
impl BlobWriter for S3Writer {
    async fn write(&mut self, mut bytes: Bytes) -> StoreResult<()> {
        if !bytes.is_empty() {
            self.begin_again().await?;
        }
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

    async fn checkpoint(&mut self) -> StoreResult<WriterState> {
        self.land(0).await?;
        let parts = self.parts()?;
        let multipart = self.upload.as_ref().map(|upload| Multipart {
            id: upload.id.clone(),
            parts,
            replaces: upload.replaces.clone(),
        });
        let gathered = std::mem::take(&mut self.tail.bytes).freeze();
        self.tail.bytes = PutPayloadMut::new().with_block_size(BLOCK);
        let mut tail = Vec::with_capacity(gathered.content_length());
        for block in gathered {
            tail.extend_from_slice(&block);
            self.tail.bytes.push(block);
        }
        let state = Progress { multipart, tail }.encode()?;
        if let Some(upload) = &mut self.upload {
            upload.untold = false;
        }
        Ok(state)
    }

    async fn finish(mut self: Box<Self>) -> StoreResult<()> {
        if self.finished.as_ref().is_some_and(|finished| finished.size == self.written()) {
            return Ok(());
        }
        self.begin_again().await?;
        if self.upload.is_none() {
            let whole: PutPayload = std::mem::take(&mut self.tail.bytes).freeze();
            self.bucket.client.put(&self.path, whole).await.map_err(failed)?;
            return Ok(());
        }
        if self.tail.len() > 0 {
            self.send_part().await?;
        }
        self.land(0).await?;
        self.complete().await
    }
}

impl Drop for S3Writer {
    /// An abandoned upload that nobody else knows of is aborted, as far as that can be done from here.
    fn drop(&mut self) {
        self.flights.abort_all();
        let Some(Upload { id, untold: true, .. }) = self.upload.take() else { return };
        let (bucket, path) = (Arc::clone(&self.bucket), self.path.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = bucket.client.abort_multipart(&path, &id).await {
                    tracing::warn!(%path, %error, "an abandoned multipart upload was not aborted; the bucket's own rule must");
                }
            });
        }
    }
}

/// What tells an object from the one that replaces it. The entity tag alone is the same for the same bytes.
fn mark(object: &ObjectMeta) -> String {
    format!("{} of {}", object.e_tag.as_deref().unwrap_or_default(), object.last_modified)
}
