//! The bytes of blobs: written once, to their final location under a random generation, never under
//! their digest, and read by range.
//!
//! A backend knows nothing of digests, repositories or leases. Acknowledged bytes are durable.
//!
//! **A finished object never changes.** Each claim of an upload session has its own generation,
//! which the session's row names before a byte is written. A backend begins new objects only there,
//! so a late write of a request that lost its claim reaches bytes that no row needs. An unfinished
//! file or multipart upload passes to the next writer only after the previous one has ended; where
//! that is not certain, see [`Handover::Takeover`].

pub mod folder;
mod inspect;
pub mod s3;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use uuid::Uuid;

pub use self::inspect::Inspect;
use super::{StoreError, StoreResult};

/// The physical key of a blob's bytes. It is random, so that a late delete can only hit a
/// generation that is no longer needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(Uuid);

impl Generation {
    /// Creates a random generation.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Returns the object's path below the store's root: `blobs/ab/abcdef…`. Every backend uses it.
    pub fn path(&self) -> String {
        let hex = self.0.simple().to_string();
        format!("blobs/{}/{hex}", &hex[..2])
    }

    /// Returns the related generation for the bytes that do not fill a part of a multipart upload
    /// yet. It never equals a random one, because the UUID's version differs.
    pub(crate) fn tail(&self) -> Self {
        let mut bytes = *self.0.as_bytes();
        bytes[6] = 0x80 | (bytes[6] & 0x0f);
        Self(Uuid::from_bytes(bytes))
    }

    /// Returns true if it is the [`Generation::tail`] of another.
    pub(crate) fn is_tail(&self) -> bool {
        self.0.as_bytes()[6] >> 4 == 8
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for Generation {
    type Err = StoreError;
    fn from_str(s: &str) -> Result<Self, StoreError> {
        Uuid::try_parse(s)
            .map(Self)
            .map_err(|_| StoreError::Inconsistent(format!("{s:?} is no generation")))
    }
}

/// A reference to the key that encrypts bytes: the key itself, wrapped by a key that is stored
/// elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReference {
    /// Id of the wrapping key.
    pub id: String,
    /// The wrapped data key.
    pub wrapped: Vec<u8>,
}

/// The location and form of a finished blob's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobKey {
    /// Generation that holds them.
    pub generation: Generation,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Size of the stored object in bytes, which encryption makes larger.
    pub stored_size: u64,
    /// Key that encrypts it; `None` if it is not encrypted.
    pub key: Option<KeyReference>,
}

impl BlobKey {
    /// Creates the key of bytes that are stored unencrypted.
    pub fn plain(generation: Generation, size: u64) -> Self {
        Self { generation, size, stored_size: size, key: None }
    }

    /// Returns the generation, if its bytes can be used as they are stored.
    fn as_stored(&self) -> StoreResult<Generation> {
        match &self.key {
            None => Ok(self.generation),
            Some(key) => Err(StoreError::Backend(
                format!(
                    "{} is encrypted with {}, which this version cannot read",
                    self.generation.path(),
                    key.id
                )
                .into(),
            )),
        }
    }
}

/// The location to which a claim of an upload session writes new objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadKey {
    /// Generation for new objects. Only this claim writes there, and nothing exists there yet.
    pub generation: Generation,
    /// Key to encrypt the upload with; `None` without encryption.
    pub key: Option<KeyReference>,
}

impl UploadKey {
    /// Creates the key of an upload that is stored unencrypted.
    pub fn plain(generation: Generation) -> Self {
        Self { generation, key: None }
    }

    fn as_stored(&self) -> StoreResult<Generation> {
        match &self.key {
            None => Ok(self.generation),
            Some(key) => Err(StoreError::Backend(
                format!("uploads cannot be encrypted with {} yet", key.id).into(),
            )),
        }
    }
}

/// The state that a backend needs to continue writing; opaque to all others. Empty before the first
/// byte. Its size is bounded, and it holds no byte of the blob: only where the durable bytes are,
/// and which objects are no longer needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriterState(pub Vec<u8>);

/// The way in which the previous writer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// With a checkpoint; none of its writes is in flight.
    Clean,
    /// Unknown: it crashed, or it is still running without its claim and may write at any moment.
    /// Objects that it can still write to are read up to the offset, and not continued.
    Takeover,
}

/// A finished object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Generation that holds it.
    pub generation: Generation,
    /// Stored size in bytes.
    pub stored_size: u64,
    /// Intermediate objects that are no longer needed.
    pub leftover: Vec<Generation>,
    /// Some of its bytes were found and not written by this writer, so the digest has to be
    /// computed from the stored bytes.
    pub recovered: bool,
}

/// A stream of a blob's bytes, in chunks of at most a few hundred KiB.
pub type BlobReader = BoxStream<'static, StoreResult<Bytes>>;

/// A backend for bytes: a folder or S3.
#[async_trait::async_trait]
pub trait Blobs: Send + Sync + fmt::Debug {
    /// Opens an upload for writing at `offset`: 0 and an empty state for a new one, else the offset
    /// and state of the last [`BlobWriter::checkpoint`]. Bytes beyond `offset` that a crash left
    /// are discarded. `inspect` receives every byte that the writer takes, in order; large amounts
    /// on a blocking thread.
    ///
    /// # Errors
    /// `Inconsistent` when the bytes before `offset` are missing; the writer reports the same if
    /// they disappear later.
    async fn writer(
        &self,
        key: &UploadKey,
        offset: u64,
        state: &WriterState,
        handover: Handover,
        inspect: Arc<dyn Inspect>,
    ) -> StoreResult<Box<dyn BlobWriter>>;

    /// Returns the finished object of `size` bytes, if a checkpoint of a writer that ended cleanly
    /// left one that is already complete.
    async fn sealed(&self, size: u64, state: &WriterState) -> StoreResult<Option<Sealed>>;

    /// Reads `range` (bytes, not empty, within the blob's size) of a finished blob.
    ///
    /// # Errors
    /// `Inconsistent` before the first byte when the object is missing or has another size: an
    /// incomplete blob is never served.
    async fn read(&self, key: &BlobKey, range: Range<u64>) -> StoreResult<BlobReader>;

    /// Returns the memory in bytes that a [`BlobReader`] holds while it is not read; 0 if the
    /// backend bounds the memory of all readers together.
    fn reader_memory(&self) -> usize {
        0
    }

    /// Returns the stored size of a finished object in bytes; `None` if it does not exist.
    async fn stored_size(&self, generation: Generation) -> StoreResult<Option<u64>>;

    /// Returns the generations that [`Blobs::delete`] would delete: this one and those that `state`
    /// names.
    fn generations_to_delete(
        &self,
        generation: Generation,
        state: &WriterState,
    ) -> StoreResult<Vec<Generation>>;

    /// Deletes a generation, finished or not, and those that `state` names (the upload's last one;
    /// empty if there is none), except those that are `live`. Deleting what does not exist
    /// succeeds.
    async fn delete(
        &self,
        generation: Generation,
        state: &WriterState,
        live: &[Generation],
    ) -> StoreResult<()>;

    /// Returns a URL from which a client without credentials can GET the blob for `valid_for`, if
    /// the backend supports it.
    async fn presigned_url(
        &self,
        key: &BlobKey,
        valid_for: Duration,
    ) -> StoreResult<Option<String>>;

    /// Checks that `bytes` more may be written. Reserves nothing, so the write may still fail.
    ///
    /// # Errors
    /// `Full`.
    fn admit(&self, bytes: u64) -> StoreResult<()> {
        let _ = bytes;
        Ok(())
    }

    /// Checks that the backend answers, for readiness. Writes nothing and does not wait for other
    /// operations.
    ///
    /// # Errors
    /// `Full` when everything but writing works.
    async fn ready(&self) -> StoreResult<()>;
}

/// A sequential writer of an upload. A drop loses nothing that a checkpoint has acknowledged.
#[async_trait::async_trait]
pub trait BlobWriter: Send {
    /// Takes the next bytes. They may be buffered, in bounded memory.
    async fn write(&mut self, bytes: Bytes) -> StoreResult<()>;

    /// Waits until every byte taken so far has been inspected. [`BlobWriter::checkpoint`] waits for
    /// that too.
    async fn inspected(&mut self) -> StoreResult<()>;

    /// Makes everything written so far durable, and returns the state with which a later
    /// [`Blobs::writer`] can continue. After that this writer begins new objects at `next`, which
    /// the caller stores in the upload's row together with the state.
    async fn checkpoint(&mut self, next: Generation) -> StoreResult<WriterState>;

    /// Makes everything durable, truncated to exactly what was written, and readable. If a crash
    /// prevents the commit, `writer` with the last checkpoint and `finish` succeed again.
    async fn finish(self: Box<Self>) -> StoreResult<Sealed>;

    /// Discards what was written since the last checkpoint. None of its writes is in flight when
    /// this returns.
    async fn abandon(self: Box<Self>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_never_equals_a_random_generation() {
        let generation = Generation::random();
        assert!(!generation.is_tail() && generation.tail().is_tail());
        assert_eq!(generation.tail().tail(), generation.tail());
        assert_ne!(generation.tail(), Generation::random().tail());
        assert_eq!(generation.tail().to_string().parse::<Generation>().unwrap(), generation.tail());
    }
}
