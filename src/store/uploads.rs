//! Upload sessions as the store keeps them: everything that another replica, or the same one after a restart, needs in
//! order to go on where the last acknowledged chunk ended. Plain data.
//!
//! **Claims.** Who wants to write to a session claims it first, by a compare-and-swap on its version. The claim's version is
//! its fence: what advances, commits or prolongs the session names it, and is refused when another claim came since. A claim
//! ends cleanly when its writer has ended, too; one that its holder no longer prolongs runs out and may be taken over. Then
//! the holder may still write, but only to what the session does not need any more: see [`super::blobs`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::repositories::RepositoryId;
use super::{BlobKey, Generation, KeyReference, Sealed, StoreError, WriterState};
use crate::names::{Algorithm, Digest};

/// The number up to which open sessions are counted: reading the metrics must not cost more the more there are.
pub(super) const MOST_COUNTED: u64 = 10_000;

/// How long after the end of its claim a writer's last request may still reach the object store: longer than any request to
/// it is waited for. What such a writer could leave behind is deleted only then.
pub const LATE_WRITE: SignedDuration = SignedDuration::from_mins(5);

/// An upload session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The session's id, which clients see.
    pub id: Uuid,
    /// Where the blob will be.
    pub repository: RepositoryId,
    /// Where its claim writes what it begins.
    pub generation: Generation,
    /// What its bytes are encrypted with.
    pub key: Option<KeyReference>,
    /// The algorithm of `hash_state`.
    pub algorithm: Algorithm,
    /// When it began.
    pub started_at: Timestamp,
    /// A client knows its id. Of one that nobody knows, nobody can go on with it.
    pub announced: bool,
    /// The version of its claim, or of the last one.
    pub version: i64,
    /// Until when it is claimed, by the store's clock; `None` when its last claim ended cleanly.
    pub claimed_until: Option<Timestamp>,
    /// What the last acknowledged chunk left.
    pub progress: UploadProgress,
}

/// The part of an upload that each chunk replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadProgress {
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

/// A claim that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadClaim {
    /// Its fence, which is the session's version now.
    pub version: i64,
    /// Where it writes what it begins.
    pub generation: Generation,
    /// The claim before did not end cleanly.
    pub takeover: bool,
}

/// What a chunk made of a session.
#[derive(Debug, Clone)]
pub struct AdvanceUpload {
    /// The session.
    pub id: Uuid,
    /// The claim.
    pub version: i64,
    /// What it left.
    pub progress: UploadProgress,
    /// Where is written what begins after it.
    pub generation: Generation,
    /// For how long the claim holds on; `None` ends it.
    pub hold: Option<Duration>,
    /// Now.
    pub now: Timestamp,
}

/// An upload whose bytes are durable and whose digest has been verified, to become a blob.
#[derive(Debug, Clone)]
pub struct CommitUpload {
    /// The session.
    pub id: Uuid,
    /// The claim, or the version that was read of a session that nobody claims.
    pub version: i64,
    /// The verified digest.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size: u64,
    /// Its bytes.
    pub sealed: Sealed,
    /// What the caller has found of the blob that the registry has of this digest.
    pub known: Option<KnownBlob>,
    /// Now.
    pub now: Timestamp,
    /// Until when the blob may not be collected though nothing references it yet.
    pub lease_until: Timestamp,
}

/// A blob of the same digest that the caller has looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownBlob {
    /// Where its bytes were looked for.
    pub generation: Generation,
    /// They are there, and as many as they should be.
    pub intact: bool,
}

/// What committing an upload did. The session is gone in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// The bytes are the registry's first of this digest.
    New,
    /// The bytes replace those of the registry's blob, which were damaged: for every repository that has it.
    Healed,
    /// Another repository had the same bytes: they are shared, and a job deletes what was just written.
    Shared,
    /// The repository had the blob already; a job deletes what was just written.
    AlreadyInRepository,
}

/// Why an upload was not claimed, advanced or committed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The session is not there (any more).
    #[error("the upload does not exist")]
    NotFound,
    /// Another request has it, or had it meanwhile.
    #[error("another request writes to the upload")]
    Conflict,
    /// The registry has a blob of this digest that the caller has not looked at.
    #[error("the registry's blob of this digest has to be looked at first")]
    Unchecked(BlobKey),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
