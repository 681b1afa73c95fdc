//! The bytes: written once to their final place under a random generation, never under their digest, read by range.
//!
//! A backend knows nothing of digests, repositories or leases. What it has acknowledged is durable.
//!
//! **A finished object never changes.** Each claim of an upload session has a generation of its own, which the session's row
//! names before a byte is written. What a backend begins, it begins there, so a late write of a request that lost its claim
//! reaches bytes that no row needs. What is gone on with (a file, a multipart upload) changes hands only after its last
//! writer has ended; where that is not certain, see [`Handover::Takeover`].

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

/// The physical key of a blob's bytes: random, so that a late delete can only ever hit a dead generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(Uuid);

impl Generation {
    /// A new one.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The object's path below the store's root: `blobs/ab/abcdef…`. Every backend builds it here.
    pub fn path(&self) -> String {
        let hex = self.0.simple().to_string();
        format!("blobs/{}/{hex}", &hex[..2])
    }

    /// The generation beside this one for the bytes that do not fill a part of a multipart upload yet. No random one is equal
    /// to it: the UUID's version differs.
    pub(crate) fn tail(&self) -> Self {
        let mut bytes = *self.0.as_bytes();
        bytes[6] = 0x80 | (bytes[6] & 0x0f);
        Self(Uuid::from_bytes(bytes))
    }

    /// Whether it is the [`Generation::tail`] of another.
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
        Uuid::try_parse(s).map(Self).map_err(|_| StoreError::Inconsistent(format!("{s:?} is no generation")))
    }
}

/// The key that bytes are encrypted with, by reference: itself wrapped by a key that is kept elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReference {
    /// The wrapping key's id.
    pub id: String,
    /// The data key, wrapped.
    pub wrapped: Vec<u8>,
}

/// A finished blob's bytes: where they are and how they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobKey {
    /// Where.
    pub generation: Generation,
    /// The blob's size in bytes.
    pub size: u64,
    /// The stored object's size in bytes, which encryption makes larger.
    pub stored_size: u64,
    /// What it is encrypted with; `None` when it is not.
    pub key: Option<KeyReference>,
}

impl BlobKey {
    /// The key of bytes that are stored as they are.
    pub fn plain(generation: Generation, size: u64) -> Self {
        Self { generation, size, stored_size: size, key: None }
    }

    /// The generation, if its bytes can be used as they are stored.
    fn as_stored(&self) -> StoreResult<Generation> {
        match &self.key {
            None => Ok(self.generation),
            Some(key) => Err(StoreError::Backend(
                format!("{} is encrypted with {}, which this version cannot read", self.generation.path(), key.id)
                    .into(),
            )),
        }
    }
}

/// Where a claim of an upload session writes what it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadKey {
    /// Where. Only this claim writes there, and nothing is there yet.
    pub generation: Generation,
    /// What the upload is to be encrypted with; `None` when it is not.
    pub key: Option<KeyReference>,
}

impl UploadKey {
    /// The key of an upload that is stored as it comes.
    pub fn plain(generation: Generation) -> Self {
        Self { generation, key: None }
    }

    fn as_stored(&self) -> StoreResult<Generation> {
        match &self.key {
            None => Ok(self.generation),
            Some(key) => Err(StoreError::Backend(format!("uploads cannot be encrypted with {} yet", key.id).into())),
        }
    }
}

/// What a backend needs to go on writing; opaque to everyone else. Empty before the first byte. Bounded, and without a byte
/// of the blob: where those are that are durable, and which of them are not needed any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriterState(pub Vec<u8>);

/// How the writer before ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// By a checkpoint; nothing of it is on its way any more.
    Clean,
    /// Nobody knows: it crashed, or it lives on without its claim and may write at any moment. What it can still write to is
    /// read up to the offset and not built upon.
    Takeover,
}

/// A finished object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Where it is.
    pub generation: Generation,
    /// Its size as it is stored, in bytes.
    pub stored_size: u64,
    /// What was written on the way and is not needed any more.
    pub leftover: Vec<Generation>,
    /// Bytes of it were found instead of written: their digest has to be computed from what is stored.
    pub recovered: bool,
}

/// A stream of a blob's bytes, in chunks of at most a few hundred KiB.
pub type BlobReader = BoxStream<'static, StoreResult<Bytes>>;

/// Where bytes are kept: a folder or S3.
#[async_trait::async_trait]
pub trait Blobs: Send + Sync + fmt::Debug {
    /// Opens an upload for writing at `offset`: 0 and an empty state for a new one, else what the last
    /// [`BlobWriter::checkpoint`] returned. Bytes beyond `offset` that a crash left are no part of it. `inspect` is shown
    /// every byte that the writer takes, in their order, off the async threads where they are many.
    ///
    /// # Errors
    /// `Inconsistent` when the bytes before `offset` are not there; the writer reports the same when they vanish later.
    async fn writer(
        &self,
        key: &UploadKey,
        offset: u64,
        state: &WriterState,
        handover: Handover,
        inspect: Arc<dyn Inspect>,
    ) -> StoreResult<Box<dyn BlobWriter>>;

    /// The finished object of `size` bytes, if a checkpoint after a clean end left one that needs no more writing.
    async fn sealed(&self, size: u64, state: &WriterState) -> StoreResult<Option<Sealed>>;

    /// Reads `range` (bytes, not empty, within the blob's size) of a finished blob.
    ///
    /// # Errors
    /// `Inconsistent` before the first byte when the object is missing or has another size: a half blob is never served.
    async fn read(&self, key: &BlobKey, range: Range<u64>) -> StoreResult<BlobReader>;

    /// Memory that a [`BlobReader`] takes of its own while nobody reads it, in bytes; 0 where the backend bounds that of all
    /// readers together.
    fn reader_memory(&self) -> usize {
        0
    }

    /// The size of a finished object as it is stored, in bytes; `None` when it is not there.
    async fn stored_size(&self, generation: Generation) -> StoreResult<Option<u64>>;

    /// What [`Blobs::delete`] would delete: a generation, and what `state` names.
    fn named(&self, generation: Generation, state: &WriterState) -> StoreResult<Vec<Generation>>;

    /// Deletes a generation, finished or half written, and what `state` names (what the upload's row had last; empty when
    /// there is no such row), but none that is `live`. Deleting what is not there is no error.
    async fn delete(&self, generation: Generation, state: &WriterState, live: &[Generation]) -> StoreResult<()>;

    /// A URL from which a client that holds no credentials can GET the blob for `valid_for`, if the backend can make one.
    async fn presigned_url(&self, key: &BlobKey, valid_for: Duration) -> StoreResult<Option<String>>;

    /// Whether `bytes` more may be written. What is admitted may still be refused later: nothing is set aside.
    ///
    /// # Errors
    /// `Full`.
    fn admit(&self, bytes: u64) -> StoreResult<()> {
        let _ = bytes;
        Ok(())
    }

    /// Whether the backend answers, for readiness: writes nothing, and waits for nobody's work.
    ///
    /// # Errors
    /// `Full` when all but writing works.
    async fn ready(&self) -> StoreResult<()>;
}

/// An upload that is being written, from front to back. Dropping it loses nothing that a checkpoint has acknowledged.
#[async_trait::async_trait]
pub trait BlobWriter: Send {
    /// Takes the next bytes. They may be buffered, in bounded memory.
    async fn write(&mut self, bytes: Bytes) -> StoreResult<()>;

    /// Waits until every byte taken so far has been inspected, which all are after [`BlobWriter::checkpoint`], too.
    async fn inspected(&mut self) -> StoreResult<()>;

    /// Makes everything written so far durable and returns what a later [`Blobs::writer`] needs to go on from here. What this
    /// writer begins afterwards it begins at `next`, which the caller has the upload's row name together with the state.
    async fn checkpoint(&mut self, next: Generation) -> StoreResult<WriterState>;

    /// Makes everything durable, cut to exactly what was written; it can be read from now on. Finishing again what a crash
    /// kept from being committed succeeds: `writer` with the last checkpoint, then `finish`.
    async fn finish(self: Box<Self>) -> StoreResult<Sealed>;

    /// Gives up what was written since the last checkpoint; nothing of it is on its way when this returns.
    async fn abandon(self: Box<Self>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_no_random_generation_and_has_one_owner() {
        let generation = Generation::random();
        assert!(!generation.is_tail() && generation.tail().is_tail());
        assert_eq!(generation.tail().tail(), generation.tail());
        assert_ne!(generation.tail(), Generation::random().tail());
        assert_eq!(generation.tail().to_string().parse::<Generation>().unwrap(), generation.tail());
    }
}
