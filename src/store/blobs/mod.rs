//! The bytes: written once to their final place under a random generation, never under their digest, read by range.
//!
//! A backend knows nothing of digests, repositories or leases. What it has acknowledged is durable.

pub mod folder;
pub mod s3;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use uuid::Uuid;

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

/// What a backend needs to go on writing a generation after a restart; opaque to everyone else. Empty before the first
/// byte. Bounded: at most one multipart part and the list of the parts before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriterState(pub Vec<u8>);

/// A stream of a blob's bytes, in chunks of at most a few hundred KiB.
pub type BlobReader = BoxStream<'static, StoreResult<Bytes>>;

/// Where bytes are kept: a folder or S3.
#[async_trait::async_trait]
pub trait Blobs: Send + Sync + fmt::Debug {
    /// Opens a generation for writing at `offset`: 0 and an empty state for a new one, else what the last
    /// [`BlobWriter::checkpoint`] returned. Bytes beyond `offset` that a crash left are overwritten.
    ///
    /// # Errors
    /// `Inconsistent` when the bytes before `offset` are not there.
    async fn writer(
        &self,
        generation: Generation,
        offset: u64,
        state: &WriterState,
    ) -> StoreResult<Box<dyn BlobWriter>>;

    /// Reads `range` (bytes, not empty, within `size`) of a finished generation whose whole size is `size`.
    ///
    /// # Errors
    /// `Inconsistent` before the first byte when the object is missing or has another size: a half blob is never served.
    async fn read(&self, generation: Generation, size: u64, range: Range<u64>) -> StoreResult<BlobReader>;

    /// Deletes a generation, finished or half written (`state` is what the upload's row had last; empty when finished).
    /// Deleting what is not there is no error.
    async fn delete(&self, generation: Generation, state: &WriterState) -> StoreResult<()>;

    /// A URL from which a client that holds no credentials can GET the generation for `valid_for`, if the backend can
    /// make one.
    async fn presigned_url(&self, generation: Generation, valid_for: Duration) -> StoreResult<Option<String>>;

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

/// A generation that is being written, from front to back. Dropping it loses nothing that a checkpoint has acknowledged.
#[async_trait::async_trait]
pub trait BlobWriter: Send {
    /// Takes the next bytes. They may be buffered, in bounded memory.
    async fn write(&mut self, bytes: Bytes) -> StoreResult<()>;

    /// Makes everything written so far durable and returns what a later [`Blobs::writer`] needs to go on from here.
    async fn checkpoint(&mut self) -> StoreResult<WriterState>;

    /// Makes everything durable at its final place, cut to exactly what was written; it can be read from now on.
    /// Finishing again what a crash kept from being committed must succeed: `writer` with the last checkpoint, then
    /// `finish`.
    async fn finish(self: Box<Self>) -> StoreResult<()>;
}
