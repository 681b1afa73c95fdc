//! Upload sessions as the store keeps them: everything that another replica, or the same one after a restart, needs in
//! order to go on where the last acknowledged chunk ended. Plain data.

use jiff::Timestamp;
use uuid::Uuid;

use super::repositories::RepositoryId;
use super::{Generation, StoreError, WriterState};
use crate::names::{Algorithm, Digest};

/// The number up to which open sessions are counted: reading the metrics must not cost more the more there are.
pub(super) const MOST_COUNTED: u64 = 10_000;

/// An upload session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The session's id, which clients see.
    pub id: Uuid,
    /// Where the blob will be.
    pub repository: RepositoryId,
    /// Where its bytes are being written: their final place.
    pub generation: Generation,
    /// The algorithm of `hash_state`.
    pub algorithm: Algorithm,
    /// When it began.
    pub started_at: Timestamp,
    /// What the last acknowledged chunk left.
    pub progress: UploadProgress,
}

/// The part of an upload that each chunk replaces, as one compare-and-swap on `version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadProgress {
    /// Grows by one with each chunk.
    pub version: i64,
    /// Bytes that are durable, which is also where the next chunk begins.
    pub offset: u64,
    /// The hash's state over those bytes, serialised by the hash's own library.
    pub hash_state: Vec<u8>,
    /// What the blob backend needs to go on writing.
    pub writer: WriterState,
    /// What the door remembers of the parts (ECR's part rules); opaque here, may be empty.
    pub door: Vec<u8>,
    /// When the last chunk came.
    pub updated_at: Timestamp,
}

/// An upload whose bytes are durable at their final place and whose digest has been verified, to become a blob.
#[derive(Debug, Clone)]
pub struct CommitUpload {
    /// The session.
    pub id: Uuid,
    /// The version that the committing request read, so that two commits cannot both win.
    pub version: i64,
    /// The verified digest.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size: u64,
    /// Now.
    pub now: Timestamp,
    /// Until when the blob may not be collected though nothing references it yet.
    pub lease_until: Timestamp,
}

/// What committing an upload did. The session is gone in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// The bytes are the registry's first of this digest.
    New,
    /// Another repository had the same bytes: they are shared, and a job deletes what was just written.
    Shared,
    /// The repository had the blob already; a job deletes what was just written.
    AlreadyInRepository,
}

/// Why an upload was not advanced or committed.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The session is not there (any more).
    #[error("the upload does not exist")]
    NotFound,
    /// Another request advanced it first.
    #[error("another request advanced the upload")]
    Conflict,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
