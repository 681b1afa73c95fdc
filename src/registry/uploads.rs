//! Upload sessions, for both doors: bytes are hashed and written as they come, and become a blob when their digest is right.
//!
//! A session lives in the store, so any replica can go on with it. What is in flight lives in a [`Session`], of which there is
//! one at a time in this process; a writer elsewhere is found out by the row's version. Nothing is visible before
//! [`Session::finish`].

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use sha2::Digest as _;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Sha256, Sha512};
use tokio::sync::Notify;
use uuid::Uuid;

use super::Registry;
use crate::names::{Algorithm, Digest};
use crate::store::repositories::RepositoryId;
use crate::store::uploads::{CommitUpload, Committed, Upload, UploadError, UploadProgress};
use crate::store::{BlobWriter, Generation, StoreError, WriterState};

/// How long a blob that nothing references is kept after it was pushed, mounted or reported as present: longer than any
/// push takes from its first layer to its manifest.
pub const LEASE: SignedDuration = SignedDuration::from_hours(24);

/// Until when a blob is kept at least that is reported as present at `now`: three quarters of [`LEASE`] and more, in steps
/// of the fourth, so that a blob that is asked for again and again has its lease written a few times a day.
pub fn lease_of_present(now: Timestamp) -> Timestamp {
    let step = LEASE.as_secs() / 4;
    let steps = (now.as_second() + 3 * step).div_euclid(step) + 1;
    Timestamp::from_second(steps * step).unwrap_or(Timestamp::MAX)
}

/// How long a request waits for the one before it to let go of the session. A client that lost its connection is often back
/// before this side has noticed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why an upload did not go on.
#[derive(Debug, thiserror::Error)]
pub enum UploadFailure {
    /// There is no such session (any more).
    #[error("the upload does not exist")]
    NotFound,
    /// Another request is writing to the session.
    #[error("another request is writing to this upload")]
    Busy,
    /// The blob would be longer than the limit, in bytes. Nothing of this request was kept.
    #[error("a blob may have at most {0} bytes")]
    TooLarge(u64),
    /// The bytes have another digest; the session is gone.
    #[error("the content has digest {actual}")]
    DigestMismatch {
        /// The digest that they have.
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
            UploadError::Conflict => Self::Busy,
            UploadError::Store(error) => Self::Store(error),
        }
    }
}

/// A finished upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The verified digest.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size: u64,
    /// What became of it.
    pub committed: Committed,
}

/// The sessions that this process is writing to, so that each has one writer.
#[derive(Debug, Default)]
pub struct Sessions {
    writing: Mutex<HashSet<Uuid>>,
    released: Notify,
}

impl Sessions {
    async fn claim(self: &Arc<Self>, id: Uuid, patience: Duration) -> Result<Claim, UploadFailure> {
        let claim = async {
            loop {
                let released = self.released.notified();
                if self.lock().insert(id) {
                    return Claim { sessions: Arc::clone(self), id };
                }
                released.await;
            }
        };
        tokio::time::timeout(patience, claim).await.map_err(|_| UploadFailure::Busy)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Uuid>> {
        // A set of ids cannot be half changed, so a panic elsewhere leaves nothing to fear in it.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to write to a session, given back when dropped.
#[derive(Debug)]
struct Claim {
    sessions: Arc<Sessions>,
    id: Uuid,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.id);
        self.sessions.released.notify_waiters();
    }
}

/// A session that this task writes to.
pub struct Session {
    registry: Arc<Registry>,
    upload: Upload,
    hasher: Hasher,
    writer: Option<Box<dyn BlobWriter>>,
    received: u64,
    _claim: Claim,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.upload.id).field("offset", &self.offset()).finish_non_exhaustive()
    }
}

impl Registry {
    /// Begins an upload to a repository. The client's word on the algorithm saves hashing everything again at the end.
    ///
    /// # Errors
    /// `NotFound` when the repository is gone.
    pub async fn begin_upload(
        &self,
        repository: RepositoryId,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<Upload, UploadFailure> {
        let upload = Upload {
            id: Uuid::new_v4(),
            repository,
            generation: Generation::random(),
            algorithm,
            started_at: now,
            progress: UploadProgress {
                version: 0,
                offset: 0,
                hash_state: Vec::new(),
                writer: WriterState::default(),
                door: Vec::new(),
                updated_at: now,
            },
        };
        let created = self.metadata.create_upload(upload.clone()).await?;
        if created { Ok(upload) } else { Err(UploadFailure::NotFound) }
    }

    /// Takes hold of a session, to write to it.
    ///
    /// # Errors
    /// `NotFound`, or `Busy` when another request holds it and does not let go soon.
    pub async fn open_upload(self: &Arc<Self>, repository: RepositoryId, id: Uuid) -> Result<Session, UploadFailure> {
        let claim = self.uploads.claim(id, PATIENCE).await?;
        let upload = self.metadata.upload(repository, id).await?.ok_or(UploadFailure::NotFound)?;
        Session::new(Arc::clone(self), upload, claim)
    }

    /// Begins an upload and takes hold of it at once.
    ///
    /// # Errors
    /// `NotFound` when the repository is gone.
    pub async fn begin_and_open_upload(
        self: &Arc<Self>,
        repository: RepositoryId,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<Session, UploadFailure> {
        let upload = self.begin_upload(repository, algorithm, now).await?;
        let claim = self.uploads.claim(upload.id, PATIENCE).await?;
        Session::new(Arc::clone(self), upload, claim)
    }
}

impl Session {
    fn new(registry: Arc<Registry>, upload: Upload, claim: Claim) -> Result<Self, UploadFailure> {
        let hasher = Hasher::restore(upload.algorithm, &upload.progress.hash_state).ok_or_else(|| {
            StoreError::Inconsistent(format!("the hash state of upload {} cannot be read", upload.id))
        })?;
        Ok(Self { registry, upload, hasher, writer: None, received: 0, _claim: claim })
    }

    /// The session as its row has it: what was acknowledged.
    pub fn acknowledged(&self) -> &Upload {
        &self.upload
    }

    /// Bytes so far, those that are not yet acknowledged included.
    pub fn offset(&self) -> u64 {
        self.upload.progress.offset + self.received
    }

    /// Hashes with `algorithm` from here on, if there is nothing to be hashed again.
    pub fn expect(&mut self, algorithm: Algorithm) {
        if self.offset() == 0 && self.hasher.algorithm() != algorithm {
            self.hasher = Hasher::new(algorithm);
        }
    }

    /// Whether `more` bytes still fit: into a blob, and into the store.
    ///
    /// # Errors
    /// `TooLarge`, or the store's `Full`.
    pub fn reserve(&self, more: u64) -> Result<(), UploadFailure> {
        let limit = self.registry.config.limits.blob_bytes;
        let fits = self.offset().checked_add(more).is_some_and(|size| size <= limit);
        if fits { Ok(self.registry.blobs.admit(more)?) } else { Err(UploadFailure::TooLarge(limit)) }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `TooLarge`, or what the store reports; the session is then of no more use, its acknowledged part is untouched.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), UploadFailure> {
        let length = bytes.len() as u64;
        self.reserve(length)?;
        // The bytes are handed over first: a writer that works on a thread of its own does so while this one hashes.
        let hashed = bytes.clone();
        let written = match self.writer().await {
            Ok(writer) => writer.write(bytes).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            return Err(self.broken(error).await);
        }
        self.hasher.update(&hashed);
        self.received += length;
        Ok(())
    }

    async fn writer(&mut self) -> Result<&mut Box<dyn BlobWriter>, StoreError> {
        if self.writer.is_none() {
            let progress = &self.upload.progress;
            let opened = self.registry.blobs.writer(self.upload.generation, progress.offset, &progress.writer).await?;
            return Ok(self.writer.insert(opened));
        }
        self.writer.as_mut().ok_or_else(|| StoreError::Inconsistent("the upload has no writer".to_owned()))
    }

    /// Makes what came so far durable and remembers it, with the door's own notes (`None` keeps the last ones); returns the
    /// offset. Costs nothing if nothing came and no notes are given.
    ///
    /// # Errors
    /// `Busy` when another process went on with the session meanwhile.
    pub async fn acknowledge(&mut self, door: Option<Vec<u8>>, now: Timestamp) -> Result<u64, UploadFailure> {
        if self.received == 0 && door.is_none() {
            return Ok(self.offset());
        }
        let saved = match &mut self.writer {
            Some(writer) => writer.checkpoint().await,
            None => Ok(self.upload.progress.writer.clone()),
        };
        let writer = match saved {
            Ok(writer) => writer,
            Err(error) => return Err(self.broken(error).await),
        };
        let progress = UploadProgress {
            version: self.upload.progress.version + 1,
            offset: self.offset(),
            hash_state: self.hasher.save(),
            writer,
            door: door.unwrap_or_else(|| self.upload.progress.door.clone()),
            updated_at: now,
        };
        self.registry.metadata.advance_upload(self.upload.id, progress.clone()).await?;
        self.upload.progress = progress;
        self.received = 0;
        Ok(self.offset())
    }

    /// Ends the session with a blob: its bytes become durable, then visible. One of the `expected` digests has to be theirs.
    ///
    /// # Errors
    /// `DigestMismatch` when none is; the session is gone then.
    pub async fn finish(mut self, expected: &[Digest], now: Timestamp) -> Result<Finished, UploadFailure> {
        let hashed = self.hasher.digest();
        if expected.contains(&hashed) {
            if let Err(error) = self.seal().await {
                return Err(self.broken(error).await);
            }
            return self.commit(hashed, now).await;
        }
        let other = expected.iter().map(Digest::algorithm).find(|algorithm| *algorithm != hashed.algorithm());
        let Some(algorithm) = other else { return Err(self.reject(hashed, now).await) };
        if let Err(error) = self.seal().await {
            return Err(self.broken(error).await);
        }
        let again = self.hash_again(algorithm).await?;
        if expected.contains(&again) { self.commit(again, now).await } else { Err(self.reject(again, now).await) }
    }

    /// Makes the bytes durable at their final place. A blob of no bytes gets its place here, too.
    async fn seal(&mut self) -> Result<(), StoreError> {
        self.writer().await?;
        match self.writer.take() {
            Some(writer) => writer.finish().await,
            None => Ok(()),
        }
    }

    async fn commit(self, digest: Digest, now: Timestamp) -> Result<Finished, UploadFailure> {
        let size = self.offset();
        let commit = CommitUpload {
            id: self.upload.id,
            version: self.upload.progress.version,
            digest: digest.clone(),
            size,
            now,
            lease_until: now.checked_add(LEASE).unwrap_or(Timestamp::MAX),
        };
        let committed = self.registry.metadata.commit_upload(commit).await?;
        Ok(Finished { digest, size, committed })
    }

    /// Says what a failure of the blob store comes to. Acknowledged bytes that are not there any more end the session: the
    /// bucket's own rule has aborted the multipart upload, say.
    async fn broken(&mut self, error: StoreError) -> UploadFailure {
        let StoreError::Inconsistent(reason) = &error else { return error.into() };
        tracing::error!(upload = %self.upload.id, reason, "an upload cannot be gone on with; it is removed");
        self.writer = None;
        match self.registry.metadata.cancel_upload(self.upload.repository, self.upload.id, Timestamp::now()).await {
            Ok(_) => UploadFailure::NotFound,
            Err(error) => error.into(),
        }
    }

    /// Removes a session whose bytes are not what the client says they are: going on with it could never succeed.
    async fn reject(&mut self, actual: Digest, now: Timestamp) -> UploadFailure {
        self.writer = None;
        match self.registry.metadata.cancel_upload(self.upload.repository, self.upload.id, now).await {
            Ok(_) => UploadFailure::DigestMismatch { actual },
            Err(error) => error.into(),
        }
    }

    /// Reads the finished bytes back to hash them by an algorithm that the client named only at the end.
    async fn hash_again(&mut self, algorithm: Algorithm) -> Result<Digest, UploadFailure> {
        let size = self.offset();
        let mut hasher = Hasher::new(algorithm);
        if size > 0 {
            let mut reader = self.registry.blobs.read(self.upload.generation, size, 0..size).await?;
            while let Some(chunk) = reader.next().await {
                hasher.update(&chunk?);
            }
        }
        Ok(hasher.digest())
    }
}

/// A hash whose state outlives the process.
#[derive(Clone)]
enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Goes on from what [`Hasher::save`] returned; from nothing, it starts with `algorithm`. The two states differ in
    /// length, which tells them apart: a session may turn out to need another algorithm than it began with.
    fn restore(algorithm: Algorithm, state: &[u8]) -> Option<Self> {
        if state.is_empty() {
            return Some(Self::new(algorithm));
        }
        if let Ok(state) = <&SerializedState<Sha256>>::try_from(state) {
            return Sha256::deserialize(state).ok().map(Self::Sha256);
        }
        let state = <&SerializedState<Sha512>>::try_from(state).ok()?;
        Sha512::deserialize(state).ok().map(Self::Sha512)
    }

    fn save(&self) -> Vec<u8> {
        match self {
            Self::Sha256(hash) => hash.serialize().to_vec(),
            Self::Sha512(hash) => hash.serialize().to_vec(),
        }
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    fn digest(&self) -> Digest {
        match self.clone() {
            Self::Sha256(hash) => Digest::from_hash(Algorithm::Sha256, &hash.finalize()),
            Self::Sha512(hash) => Digest::from_hash(Algorithm::Sha512, &hash.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_hash_that_was_saved_and_restored_ends_the_same(
            head in prop::collection::vec(any::<u8>(), 0..300),
            tail in prop::collection::vec(any::<u8>(), 0..300),
            algorithm in prop::sample::select(vec![Algorithm::Sha256, Algorithm::Sha512]),
        ) {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(&head);
            let mut restored = Hasher::restore(Algorithm::Sha256, &hasher.save()).unwrap();
            restored.update(&tail);
            prop_assert_eq!(restored.digest(), Digest::of(algorithm, &[head, tail].concat()));
        }

        #[test]
        fn a_state_that_is_none_is_refused(state in prop::collection::vec(any::<u8>(), 1..40)) {
            prop_assert!(Hasher::restore(Algorithm::Sha256, &state).is_none());
        }
    }

    proptest! {
        #[test]
        fn a_present_blob_is_kept_for_hours_and_no_longer_than_a_pushed_one(second in 0_i64..4_000_000_000) {
            let now = Timestamp::from_second(second).unwrap();
            let kept = lease_of_present(now).duration_since(now);
            prop_assert!(kept > LEASE * 3 / 4 && kept <= LEASE);
        }
    }

    #[tokio::test]
    async fn a_session_has_one_writer_at_a_time() {
        let sessions = Arc::new(Sessions::default());
        let id = Uuid::new_v4();
        let hour = Duration::from_secs(3600);
        let first = sessions.claim(id, hour).await.unwrap();
        let waiting = tokio::spawn({
            let sessions = Arc::clone(&sessions);
            async move { sessions.claim(id, hour).await.is_ok() }
        });
        assert!(sessions.claim(Uuid::new_v4(), hour).await.is_ok(), "another session is not held up");
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn who_waits_too_long_for_a_session_is_told() {
        let sessions = Arc::new(Sessions::default());
        let id = Uuid::new_v4();
        let _held = sessions.claim(id, PATIENCE).await.unwrap();
        assert!(matches!(sessions.claim(id, Duration::ZERO).await, Err(UploadFailure::Busy)));
    }
}
