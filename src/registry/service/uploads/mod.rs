//! Upload sessions, for both APIs: bytes are hashed and written as they arrive, and become a blob
//! when their digest is right.
//!
//! A session is a row in the store, so any replica can continue it. An [`UploadSession`] is one
//! request's access to it. It claims the session before it writes a byte, so there is one writer at
//! a time in all replicas. The store refuses writes under a lost claim, and their bytes are
//! deleted. Nothing is visible before [`UploadSession::finish`].

mod claim;
mod finish;
mod hasher;
mod locks;
mod session;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use self::claim::CLAIM_DURATION;
pub use self::finish::FinishedUpload;
pub(super) use self::locks::SessionLocks;
pub use self::session::UploadSession;
use super::Registry;
use wharfage_domain::names::{Algorithm, Digest};
use wharfage_store::repositories::RepositoryId;
use wharfage_store::uploads::{Upload, UploadClaim, UploadError, UploadProgress};
use wharfage_store::{Generation, StoreError, WriterState};

/// The time that a blob without references is kept after a push, a mount or a response that
/// reports it as present. It is longer than any push takes from its first layer to its manifest.
pub(crate) const LEASE: SignedDuration = SignedDuration::from_hours(24);

/// Returns the end of the lease of a blob that is reported as present at `now`. The lease lasts at
/// least three quarters of [`LEASE`] and ends at a multiple of its fourth, so that frequent
/// requests for a blob write its lease only a few times a day.
pub(crate) fn lease_of_present(now: Timestamp) -> Timestamp {
    let step = LEASE.as_secs() / 4;
    let steps = (now.as_second() + 3 * step).div_euclid(step) + 1;
    Timestamp::from_second(steps * step).unwrap_or(Timestamp::MAX)
}

/// The time that a request waits for another request to release the session. A client that lost
/// its connection often returns before this side has noticed.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two checks of whether another replica has released the session.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The reason why an upload failed.
#[derive(Debug, thiserror::Error)]
pub enum UploadFailure {
    /// The session does not exist, or does not exist any more.
    #[error("the upload does not exist")]
    NotFound,
    /// Another request is writing to the session.
    #[error("another request is writing to this upload")]
    Busy,
    /// The blob would be longer than the limit, in bytes. The bytes of this request are discarded.
    #[error("a blob may have at most {0} bytes")]
    TooLarge(u64),
    /// The bytes have another digest; the session is deleted.
    #[error("the content has digest {actual}")]
    DigestMismatch {
        /// The digest of the bytes.
        actual: Digest,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<UploadError> for UploadFailure {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::NotFound => Self::NotFound,
            // A commit checks a blob again only while others replace it.
            UploadError::Conflict | UploadError::Unchecked(_) => Self::Busy,
            UploadError::Store(error) => Self::Store(error),
        }
    }
}

impl Registry {
    /// Begins an upload to a repository. The right algorithm saves hashing everything again at the
    /// end.
    ///
    /// # Errors
    /// `NotFound` when the repository does not exist.
    pub async fn begin_upload(
        &self,
        repository: RepositoryId,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<Upload, UploadFailure> {
        let upload = new_upload(repository, algorithm, true, now);
        let created = self.metadata.create_upload(upload.clone(), None).await?;
        if created { Ok(upload) } else { Err(UploadFailure::NotFound) }
    }

    /// Opens a session, to write to it or to end it.
    ///
    /// # Errors
    /// `NotFound`, or `Busy` when another request holds it and does not release it soon.
    pub async fn open_upload(
        self: &Arc<Self>,
        repository: RepositoryId,
        id: Uuid,
    ) -> Result<UploadSession, UploadFailure> {
        let deadline = tokio::time::Instant::now() + BUSY_TIMEOUT;
        let lock = tokio::time::timeout_at(deadline, self.uploads.lock(id))
            .await
            .map_err(|_| UploadFailure::Busy)?;
        loop {
            let upload =
                self.metadata.find_upload(repository, id).await?.ok_or(UploadFailure::NotFound)?;
            // The store grants claims by its own clock; this clock only decides how long to wait.
            if upload.claimed_until.is_none_or(|until| until <= Timestamp::now()) {
                return UploadSession::new(Arc::clone(self), upload, lock);
            }
            if tokio::time::Instant::now() + POLL_INTERVAL > deadline {
                return Err(UploadFailure::Busy);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Begins an upload that ends with this request: no client knows its session, which is deleted
    /// with it.
    ///
    /// # Errors
    /// `NotFound` when the repository does not exist.
    pub(crate) async fn begin_whole_upload(
        self: &Arc<Self>,
        repository: RepositoryId,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<UploadSession, UploadFailure> {
        let upload = new_upload(repository, algorithm, false, now);
        let lock = self.uploads.lock(upload.id).await;
        if !self.metadata.create_upload(upload.clone(), Some(CLAIM_DURATION)).await? {
            return Err(UploadFailure::NotFound);
        }
        let claim =
            UploadClaim { version: upload.version, generation: upload.generation, takeover: false };
        let mut session = UploadSession::new(Arc::clone(self), upload, lock)?;
        session.keep_claim(claim);
        Ok(session)
    }
}

fn new_upload(
    repository: RepositoryId,
    algorithm: Algorithm,
    announced: bool,
    now: Timestamp,
) -> Upload {
    Upload {
        id: Uuid::new_v4(),
        repository,
        generation: Generation::random(),
        key: None,
        algorithm,
        started_at: now,
        announced,
        version: 0,
        claimed_until: None,
        progress: UploadProgress {
            offset: 0,
            hash_state: Vec::new(),
            writer: WriterState::default(),
            protocol_state: Vec::new(),
            updated_at: now,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_lease_of_a_present_blob_is_bounded(second in 0_i64..4_000_000_000) {
            let now = Timestamp::from_second(second).unwrap();
            let kept = lease_of_present(now).duration_since(now);
            prop_assert!(kept > LEASE * 3 / 4 && kept <= LEASE);
        }
    }
}
