//! Upload sessions: everything that another replica, or this one after a restart, needs to continue
//! after the last acknowledged chunk.
//!
//! **Claims.** A writer first claims a session, by a compare-and-swap on its version. The claim's
//! version is its fencing token: whatever advances, commits or renews the session names it, and is
//! refused if another claim has been granted since. A claim ends cleanly once its writer has ended.
//! A claim that its holder stops renewing expires and can be taken over. The old holder may still
//! write after that, but only to bytes that the session no longer needs: see [`super::blobs`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::repositories::RepositoryId;
use super::{BlobKey, Generation, KeyReference, Sealed, StoreError, StoreResult, WriterState};
use wharfage_domain::names::{Algorithm, Digest};

/// Stores upload sessions. A claim ends by the store's clock: the database's clock where replicas
/// share it, `now` where one process owns the database.
#[async_trait::async_trait]
pub trait UploadStore: Send + Sync {
    /// Stores a new session, claimed for the duration `claim` if given; false if the repository
    /// does not exist.
    async fn create_upload(&self, upload: Upload, claim: Option<Duration>) -> StoreResult<bool>;
    /// Finds a session of this repository.
    async fn find_upload(&self, repository: RepositoryId, id: Uuid) -> StoreResult<Option<Upload>>;
    /// Claims a session for `lease`. Refused while another claim holds, and if the session was
    /// claimed or advanced since it was `read` (its version and generation show that). A claim that
    /// follows one that did not end cleanly is a takeover: the session gets the generation `fresh`,
    /// and a `delete-generation` job gets the old one.
    async fn claim_upload(
        &self,
        read: &Upload,
        fresh: Generation,
        now: Timestamp,
        lease: Duration,
    ) -> Result<UploadClaim, UploadError>;
    /// Renews a claim that has not been taken over, even if it has expired.
    async fn renew_upload(
        &self,
        id: Uuid,
        version: i64,
        now: Timestamp,
        lease: Duration,
    ) -> Result<(), UploadError>;
    /// Ends a claim, if it is still the last one. `clean` means that its writer ended with a
    /// checkpoint or never began.
    async fn release_upload(&self, id: Uuid, version: i64, clean: bool) -> StoreResult<()>;
    /// Replaces the session's progress, if the claim is still the last one.
    async fn advance_upload(&self, advance: AdvanceUpload) -> Result<(), UploadError>;
    /// Turns a session into a live blob of its repository, if the claim is still the last one. If
    /// the account has a live blob of this digest with the same encryption, an intact one is linked
    /// instead and a damaged one gets the new bytes. Bytes that are not needed after that are
    /// handed to `delete-generation` jobs.
    async fn commit_upload(&self, commit: CommitUpload) -> Result<CommitOutcome, UploadError>;
    /// Removes a session and hands its bytes to a `delete-generation` job; false if it did not
    /// exist. With a `version`, the caller is the claim's holder and none of its writes is in
    /// flight; false also if another claim has been granted since. Without one, the job waits until
    /// the claim can no longer write.
    async fn cancel_upload(
        &self,
        repository: RepositoryId,
        id: Uuid,
        version: Option<i64>,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// Cancels unclaimed sessions as [`UploadStore::cancel_upload`] does: those without a chunk
    /// since `before`, and those that no client knows and whose claim ended some minutes ago. At
    /// most `limit` of each; returns how many.
    async fn cancel_stale_uploads(
        &self,
        before: Timestamp,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<u64>;
    /// Counts the open sessions, up to 10,000, for the metrics.
    async fn count_uploads(&self) -> StoreResult<u64>;
}

/// The number up to which open sessions are counted: a scrape must not cost more the more there
/// are.
pub(super) const COUNT_LIMIT: u64 = 10_000;

/// The time after the end of a claim within which its writer's last request may still reach the
/// object store. It exceeds every request timeout there. Only after it is deleted what such a
/// writer may have left.
pub const LATE_WRITE: SignedDuration = SignedDuration::from_mins(5);

/// An upload session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Id of the session, which clients see.
    pub id: Uuid,
    /// Repository that the blob will be in.
    pub repository: RepositoryId,
    /// Generation to which the claim writes new objects.
    pub generation: Generation,
    /// Key that encrypts its bytes.
    pub key: Option<KeyReference>,
    /// Algorithm of `hash_state`.
    pub algorithm: Algorithm,
    /// Creation time.
    pub started_at: Timestamp,
    /// A client knows the id. Without that, no client can continue the session.
    pub announced: bool,
    /// Version of its claim, or of the last one.
    pub version: i64,
    /// End of its claim by the store's clock; `None` if the last claim ended cleanly.
    pub claimed_until: Option<Timestamp>,
    /// State after the last acknowledged chunk.
    pub progress: UploadProgress,
}

/// The part of an upload that each chunk replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadProgress {
    /// Number of durable bytes, which is also the offset of the next chunk.
    pub offset: u64,
    /// State of the hash over those bytes, serialized by the hash's own library.
    pub hash_state: Vec<u8>,
    /// State that the blob backend needs to continue writing.
    pub writer: WriterState,
    /// State of the protocol between chunks (ECR's part rules); opaque here, may be empty.
    pub protocol_state: Vec<u8>,
    /// When the last chunk was received.
    pub updated_at: Timestamp,
}

/// A granted claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadClaim {
    /// Fencing token: the session's version from now on.
    pub version: i64,
    /// Generation to which it writes new objects.
    pub generation: Generation,
    /// The previous claim did not end cleanly.
    pub takeover: bool,
}

/// The progress of a session after a chunk.
#[derive(Debug, Clone)]
pub struct AdvanceUpload {
    /// Id of the session.
    pub id: Uuid,
    /// Version of the claim.
    pub version: i64,
    /// New progress.
    pub progress: UploadProgress,
    /// Generation for objects that are begun after this chunk.
    pub generation: Generation,
    /// The time for which the claim continues; `None` ends it.
    pub hold: Option<Duration>,
    /// Current time.
    pub now: Timestamp,
}

/// An upload to become a blob: its bytes are durable and its digest has been verified.
#[derive(Debug, Clone)]
pub struct CommitUpload {
    /// Id of the session.
    pub id: Uuid,
    /// Version of the claim, or the version that was read of an unclaimed session.
    pub version: i64,
    /// Verified digest.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// The finished object.
    pub sealed: Sealed,
    /// The caller's check of the blob that the registry already has of this digest.
    pub known: Option<KnownBlob>,
    /// Current time.
    pub now: Timestamp,
    /// Until when the blob may not be collected although nothing references it yet.
    pub lease_until: Timestamp,
}

/// A blob of the same digest that the caller has checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownBlob {
    /// Generation at which the bytes were checked.
    pub generation: Generation,
    /// The bytes exist and have the right size.
    pub intact: bool,
}

/// The result of committing an upload. The session is gone in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The registry had no blob of this digest.
    New,
    /// The bytes replace those of the registry's damaged blob, for every repository that has it.
    Healed,
    /// Another repository has the same bytes. They are shared, and a job deletes the new ones.
    Shared,
    /// The repository already had the blob, and a job deletes the new bytes.
    AlreadyInRepository,
}

/// The reason why an upload was not claimed, advanced or committed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The session does not exist.
    #[error("the upload does not exist")]
    NotFound,
    /// Another request has the claim, or had one in between.
    #[error("another request writes to the upload")]
    Conflict,
    /// The registry has a blob of this digest that the caller has not checked.
    #[error("the stored blob of this digest must be checked first")]
    Unchecked(BlobKey),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
