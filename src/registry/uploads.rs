//! Upload sessions, for both APIs: bytes are hashed and written as they come, and become a blob when their digest is right.
//!
//! A session lives in the store, so any replica can go on with it. What is in flight lives in a [`Session`]. It claims the
//! session before it writes a byte, so that there is one writer at a time, wherever it runs; what a writer does that has lost
//! its claim is refused and cleared away. Nothing is visible before [`Session::finish`].

mod hasher;
mod sessions;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::hasher::{Hasher, Hashing};
pub(super) use self::sessions::Sessions;
use self::sessions::Turn;
use super::Registry;
use wharfage_domain::names::{Algorithm, Digest};
use wharfage_store::jobs::DeleteGeneration;
use wharfage_store::repositories::RepositoryId;
use wharfage_store::uploads::{
    AdvanceUpload, CommitOutcome, CommitUpload, KnownBlob, Upload, UploadClaim, UploadError, UploadProgress,
};
use wharfage_store::{BlobKey, BlobWriter, Generation, Handover, Sealed, StoreError, UploadKey, WriterState};

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
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it looks whether another replica has let go.
const POLL: Duration = Duration::from_millis(200);
/// How long a claim holds without a heartbeat: as long as a client waits whose replica has died.
const CLAIM: Duration = Duration::from_secs(30);
/// How often a claim is prolonged.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often a commit looks at the blob that is there already, which others may replace just then.
const LOOKS: usize = 8;

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
            // Who is told to look at a blob looks again and again only while others replace it.
            UploadError::Conflict | UploadError::Unchecked(_) => Self::Busy,
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
    pub committed: CommitOutcome,
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
        let upload = new_upload(repository, algorithm, true, now);
        let created = self.metadata.create_upload(upload.clone(), None).await?;
        if created { Ok(upload) } else { Err(UploadFailure::NotFound) }
    }

    /// Opens a session, to write to it or to end it.
    ///
    /// # Errors
    /// `NotFound`, or `Busy` when another request holds it and does not let go soon.
    pub async fn open_upload(self: &Arc<Self>, repository: RepositoryId, id: Uuid) -> Result<Session, UploadFailure> {
        let deadline = tokio::time::Instant::now() + BUSY_TIMEOUT;
        let turn = tokio::time::timeout_at(deadline, self.uploads.turn(id)).await.map_err(|_| UploadFailure::Busy)?;
        loop {
            let upload = self.metadata.find_upload(repository, id).await?.ok_or(UploadFailure::NotFound)?;
            // Claims are granted by the store's clock; by this one it is only decided how long to wait.
            if upload.claimed_until.is_none_or(|until| until <= Timestamp::now()) {
                return Session::new(Arc::clone(self), upload, turn);
            }
            if tokio::time::Instant::now() + POLL > deadline {
                return Err(UploadFailure::Busy);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Begins an upload that ends with this request: no client hears of its session, which is gone with it.
    ///
    /// # Errors
    /// `NotFound` when the repository is gone.
    pub async fn begin_whole_upload(
        self: &Arc<Self>,
        repository: RepositoryId,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<Session, UploadFailure> {
        let upload = new_upload(repository, algorithm, false, now);
        let turn = self.uploads.turn(upload.id).await;
        if !self.metadata.create_upload(upload.clone(), Some(CLAIM)).await? {
            return Err(UploadFailure::NotFound);
        }
        let claim = UploadClaim { version: upload.version, generation: upload.generation, takeover: false };
        let mut session = Session::new(Arc::clone(self), upload, turn)?;
        session.hold(claim);
        Ok(session)
    }
}

fn new_upload(repository: RepositoryId, algorithm: Algorithm, announced: bool, now: Timestamp) -> Upload {
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

/// A claim that this process holds: prolonged until it is dropped.
struct Claim {
    handover: Handover,
    hold: Arc<Hold>,
    heartbeat: JoinHandle<()>,
}

/// When a claim was last known to hold; `None` once it is known not to.
struct Hold(Mutex<Option<Instant>>);

impl Hold {
    fn set(&self, held: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Whether it holds for long enough that a request to the object store can begin.
    fn is_fresh(&self) -> bool {
        let held = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.is_some_and(|at| at.elapsed() < HEARTBEAT * 2)
    }
}

/// Prolongs a claim again and again, until it is lost.
async fn prolong(registry: Arc<Registry>, id: Uuid, version: i64, hold: Arc<Hold>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let asked = Instant::now();
        match registry.metadata.renew_upload(id, version, Timestamp::now(), CLAIM).await {
            Ok(()) => hold.set(Some(asked)),
            Err(UploadError::Store(error)) => {
                tracing::warn!(upload = %id, %error, "cannot prolong the claim on an upload; trying again");
            }
            Err(_) => return hold.set(None),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// A session that this task writes to. Dropping it lets go of the claim, and of a session that no client knows altogether.
pub struct Session {
    registry: Arc<Registry>,
    upload: Upload,
    hasher: Arc<Hashing>,
    claim: Option<Claim>,
    writer: Option<Box<dyn BlobWriter>>,
    received: u64,
    /// Bytes may have been written that no checkpoint has acknowledged.
    dirty: bool,
    /// The session is committed or removed.
    ended: bool,
    turn: Option<Turn>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.upload.id).field("offset", &self.offset()).finish_non_exhaustive()
    }
}

impl Session {
    fn new(registry: Arc<Registry>, upload: Upload, turn: Turn) -> Result<Self, UploadFailure> {
        let hasher = Hasher::restore(upload.algorithm, &upload.progress.hash_state).ok_or_else(|| {
            StoreError::Inconsistent(format!("the hash state of upload {} cannot be read", upload.id))
        })?;
        Ok(Self {
            registry,
            upload,
            hasher: Arc::new(Hashing::new(hasher)),
            claim: None,
            writer: None,
            received: 0,
            dirty: false,
            ended: false,
            turn: Some(turn),
        })
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
        if self.offset() == 0 {
            *self.hasher.lock() = Hasher::new(algorithm);
        }
    }

    /// Whether `more` bytes still fit: into a blob, and into the store.
    ///
    /// # Errors
    /// `TooLarge`, or the store's `Full`.
    pub fn reserve(&self, more: u64) -> Result<(), UploadFailure> {
        self.check_size(more)?;
        Ok(self.registry.blobs.admit(more)?)
    }

    /// Whether `more` bytes still fit into a blob.
    fn check_size(&self, more: u64) -> Result<(), UploadFailure> {
        let limit = self.registry.config.limits.blob_bytes;
        let fits = self.offset().checked_add(more).is_some_and(|size| size <= limit);
        if fits { Ok(()) } else { Err(UploadFailure::TooLarge(limit)) }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `TooLarge`, `Busy` or `NotFound` when the claim is lost, or what the store reports; the session is then of no more
    /// use, its acknowledged part is untouched.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), UploadFailure> {
        let length = bytes.len() as u64;
        // Whether the store takes them is for its writer to say, which asks for many at once.
        self.check_size(length)?;
        self.writer().await?;
        self.confirm_claim().await?;
        let Some(writer) = self.writer.as_mut() else { return Err(UploadFailure::NotFound) };
        if let Err(error) = writer.write(bytes).await {
            return Err(self.broken(error).await);
        }
        self.received += length;
        Ok(())
    }

    /// Opens the writer, under a claim.
    async fn writer(&mut self) -> Result<(), UploadFailure> {
        if self.writer.is_some() {
            return Ok(());
        }
        let handover = match &self.claim {
            Some(claim) => claim.handover,
            None => self.claim().await?,
        };
        self.dirty = true;
        let key = UploadKey { generation: self.upload.generation, key: self.upload.key.clone() };
        let progress = &self.upload.progress;
        let inspect = self.hasher.clone();
        match self.registry.blobs.writer(&key, progress.offset, &progress.writer, handover, inspect).await {
            Ok(writer) => self.writer = Some(writer),
            Err(error) => return Err(self.broken(error).await),
        }
        Ok(())
    }

    /// Claims the session as it was read.
    async fn claim(&mut self) -> Result<Handover, UploadFailure> {
        let (fresh, now) = (Generation::random(), Timestamp::now());
        let claimed = self.registry.metadata.claim_upload(&self.upload, fresh, now, CLAIM).await?;
        Ok(self.hold(claimed))
    }

    /// Keeps a claim that was granted just now.
    fn hold(&mut self, claimed: UploadClaim) -> Handover {
        let UploadClaim { version, generation, takeover } = claimed;
        self.upload.version = version;
        self.upload.generation = generation;
        let handover = if takeover { Handover::Takeover } else { Handover::Clean };
        let hold = Arc::new(Hold(Mutex::new(Some(Instant::now()))));
        let heartbeat = prolong(Arc::clone(&self.registry), self.upload.id, version, Arc::clone(&hold));
        self.claim = Some(Claim { handover, hold, heartbeat: tokio::spawn(heartbeat) });
        handover
    }

    /// Makes sure that the claim holds long enough for a request to the object store.
    async fn confirm_claim(&mut self) -> Result<(), UploadFailure> {
        let Some(claim) = &self.claim else { return Err(UploadFailure::NotFound) };
        if claim.hold.is_fresh() {
            return Ok(());
        }
        let asked = Instant::now();
        let (id, version) = (self.upload.id, self.upload.version);
        match self.registry.metadata.renew_upload(id, version, Timestamp::now(), CLAIM).await {
            Ok(()) => {
                claim.hold.set(Some(asked));
                Ok(())
            }
            Err(error) => Err(self.refused(error).await),
        }
    }

    /// Makes what came so far durable and remembers it, with the protocol's own state (`None` keeps the last one); returns the
    /// offset. Costs nothing if nothing came.
    ///
    /// # Errors
    /// `Busy` when another process went on with the session meanwhile.
    pub async fn acknowledge(&mut self, protocol_state: Option<Vec<u8>>, now: Timestamp) -> Result<u64, UploadFailure> {
        self.checkpoint(protocol_state, Some(CLAIM), now).await
    }

    /// Acknowledges like [`Session::acknowledge`] and lets go of the session. One that no client knows of is removed.
    ///
    /// # Errors
    /// As [`Session::acknowledge`]'s.
    pub async fn pause(mut self, protocol_state: Option<Vec<u8>>, now: Timestamp) -> Result<u64, UploadFailure> {
        let paused = match self.upload.announced {
            true => self.checkpoint(protocol_state, None, now).await,
            false => Ok(self.offset()),
        };
        self.let_go().await;
        paused
    }

    async fn checkpoint(
        &mut self,
        protocol_state: Option<Vec<u8>>,
        hold: Option<Duration>,
        now: Timestamp,
    ) -> Result<u64, UploadFailure> {
        if self.received == 0 {
            return Ok(self.offset());
        }
        self.confirm_claim().await?;
        let next = Generation::random();
        let Some(writer) = self.writer.as_mut() else { return Err(UploadFailure::NotFound) };
        let state = match writer.checkpoint(next).await {
            Ok(state) => state,
            Err(error) => return Err(self.broken(error).await),
        };
        let progress = UploadProgress {
            offset: self.offset(),
            hash_state: self.hasher.lock().save(),
            writer: state,
            protocol_state: protocol_state.unwrap_or_else(|| self.upload.progress.protocol_state.clone()),
            updated_at: now,
        };
        let advance = AdvanceUpload {
            id: self.upload.id,
            version: self.upload.version,
            progress: progress.clone(),
            generation: next,
            hold,
            now: Timestamp::now(),
        };
        if let Err(error) = self.registry.metadata.advance_upload(advance).await {
            return Err(self.refused(error).await);
        }
        self.upload.progress = progress;
        self.upload.generation = next;
        self.received = 0;
        if hold.is_none() {
            self.claim = None;
            self.writer = None;
            self.dirty = false;
        }
        Ok(self.offset())
    }

    /// Ends the session with a blob: its bytes become durable, then visible. One of the `expected` digests has to be theirs.
    ///
    /// # Errors
    /// `DigestMismatch` when none is; the session is gone then.
    pub async fn finish(mut self, expected: &[Digest], now: Timestamp) -> Result<Finished, UploadFailure> {
        let finished = self.try_finish(expected, now).await;
        self.let_go().await;
        finished
    }

    async fn try_finish(&mut self, expected: &[Digest], now: Timestamp) -> Result<Finished, UploadFailure> {
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.inspected().await
        {
            return Err(self.broken(error).await);
        }
        let hashed = self.hasher.lock().digest();
        let other = expected.iter().map(Digest::algorithm).find(|algorithm| *algorithm != hashed.algorithm());
        if !expected.contains(&hashed) && other.is_none() {
            return Err(self.reject(hashed).await);
        }
        let sealed = self.seal().await?;
        if sealed.recovered && self.hash_again(&sealed, hashed.algorithm()).await? != hashed {
            let told = format!("the bytes of upload {} are not the ones that were acknowledged", self.upload.id);
            return Err(self.broken(StoreError::Inconsistent(told)).await);
        }
        if expected.contains(&hashed) {
            return self.commit(sealed, hashed, now).await;
        }
        let Some(algorithm) = other else { return Err(self.reject(hashed).await) };
        let again = self.hash_again(&sealed, algorithm).await?;
        if expected.contains(&again) { self.commit(sealed, again, now).await } else { Err(self.reject(again).await) }
    }

    /// Makes the bytes durable at their final place. A blob of no bytes gets its place here, too.
    async fn seal(&mut self) -> Result<Sealed, UploadFailure> {
        let progress = &self.upload.progress;
        if self.received == 0 && self.claim.is_none() && self.upload.claimed_until.is_none() {
            // The last chunk may have left nothing to write; then nobody needs to be kept out.
            if let Some(sealed) = self.registry.blobs.sealed(progress.offset, &progress.writer).await? {
                return Ok(sealed);
            }
        }
        self.writer().await?;
        self.confirm_claim().await?;
        let Some(writer) = self.writer.take() else { return Err(UploadFailure::NotFound) };
        match writer.finish().await {
            Ok(sealed) => Ok(sealed),
            Err(error) => Err(self.broken(error).await),
        }
    }

    async fn commit(&mut self, sealed: Sealed, digest: Digest, now: Timestamp) -> Result<Finished, UploadFailure> {
        let size = self.offset();
        let mut commit = CommitUpload {
            id: self.upload.id,
            version: self.upload.version,
            digest: digest.clone(),
            size,
            sealed,
            known: None,
            now,
            lease_until: now.checked_add(LEASE).unwrap_or(Timestamp::MAX),
        };
        for _ in 0..LOOKS {
            match self.registry.metadata.commit_upload(commit.clone()).await {
                Ok(committed) => {
                    self.ended = true;
                    return Ok(Finished { digest, size, committed });
                }
                Err(UploadError::Unchecked(bytes)) => {
                    let intact = self.registry.is_intact(&bytes).await?;
                    if !intact {
                        tracing::warn!(%digest, "the registry's blob is damaged; it gets the bytes of this push");
                    }
                    commit.known = Some(KnownBlob { generation: bytes.generation, intact });
                }
                Err(error) => return Err(self.refused(error).await),
            }
        }
        Err(UploadFailure::Busy)
    }

    /// Removes a session whose bytes are not what the client says they are: going on with it could never succeed.
    async fn reject(&mut self, actual: Digest) -> UploadFailure {
        match self.remove().await {
            Ok(()) => UploadFailure::DigestMismatch { actual },
            Err(error) => error.into(),
        }
    }

    /// What a failure of the object store comes to. Acknowledged bytes that are not there any more end the session.
    async fn broken(&mut self, error: StoreError) -> UploadFailure {
        let StoreError::Inconsistent(reason) = &error else { return error.into() };
        tracing::error!(upload = %self.upload.id, reason, "an upload cannot be gone on with; it is removed");
        match self.remove().await {
            Ok(()) => UploadFailure::NotFound,
            Err(error) => error.into(),
        }
    }

    /// What it comes to that the store does not know this claim: what was written under it is cleared away.
    async fn refused(&mut self, error: UploadError) -> UploadFailure {
        if matches!(error, UploadError::NotFound | UploadError::Conflict) {
            self.clear_away().await;
        }
        error.into()
    }

    /// Has what was written under a lost claim deleted. The session's own bytes are somebody else's now.
    async fn clear_away(&mut self) {
        self.ended = true;
        self.settle().await;
        if self.dirty {
            let job = DeleteGeneration::late_job(self.upload.generation, Timestamp::now());
            if let Err(error) = self.registry.metadata.enqueue_job(job).await {
                tracing::warn!(upload = %self.upload.id, %error, "what a lost claim wrote is not deleted");
            }
        }
    }

    /// Waits until nothing of this session is on its way any more.
    async fn settle(&mut self) {
        self.claim = None;
        if let Some(writer) = self.writer.take() {
            writer.abandon().await;
        }
    }

    /// Removes the session with its bytes, unless somebody else has claimed it meanwhile.
    async fn remove(&mut self) -> Result<(), StoreError> {
        self.settle().await;
        let (repository, id) = (self.upload.repository, self.upload.id);
        let version = Some(self.upload.version);
        if self.registry.metadata.cancel_upload(repository, id, version, Timestamp::now()).await? {
            self.ended = true;
        } else {
            self.clear_away().await;
        }
        Ok(())
    }

    /// Lets go of the session: an announced one can be gone on with from what was acknowledged, any other is removed.
    pub async fn give_up(mut self) {
        self.let_go().await;
    }

    async fn let_go(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.release().await;
        }
        self.turn = None;
    }

    async fn release(&mut self) {
        if !self.upload.announced {
            if let Err(error) = self.remove().await {
                tracing::warn!(upload = %self.upload.id, %error, "an upload that failed is removed only later");
            }
        } else if self.claim.is_some() {
            self.settle().await;
            let (id, version, clean) = (self.upload.id, self.upload.version, !self.dirty);
            if let Err(error) = self.registry.metadata.release_upload(id, version, clean).await {
                tracing::warn!(upload = %id, %error, "the claim on an upload is not given back but runs out");
            }
        }
    }

    /// Reads the finished bytes back to hash them.
    async fn hash_again(&mut self, sealed: &Sealed, algorithm: Algorithm) -> Result<Digest, UploadFailure> {
        let size = self.offset();
        let mut hasher = Hasher::new(algorithm);
        if size > 0 {
            let bytes = BlobKey {
                generation: sealed.generation,
                size,
                stored_size: sealed.stored_size,
                key: self.upload.key.clone(),
            };
            let mut reader = self.registry.blobs.read(&bytes, 0..size).await?;
            while let Some(chunk) = reader.next().await {
                hasher.update(&chunk?);
            }
        }
        Ok(hasher.digest())
    }
}

impl Drop for Session {
    /// Lets go of what a request left that broke off.
    fn drop(&mut self) {
        if self.ended || self.claim.is_none() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut left = Self {
            registry: Arc::clone(&self.registry),
            upload: self.upload.clone(),
            hasher: Arc::clone(&self.hasher),
            claim: self.claim.take(),
            writer: self.writer.take(),
            received: self.received,
            dirty: self.dirty,
            // Where the runtime ends before this does, the claim runs out.
            ended: true,
            turn: self.turn.take(),
        };
        runtime.spawn(async move { left.release().await });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_present_blob_is_kept_for_hours_and_no_longer_than_a_pushed_one(second in 0_i64..4_000_000_000) {
            let now = Timestamp::from_second(second).unwrap();
            let kept = lease_of_present(now).duration_since(now);
            prop_assert!(kept > LEASE * 3 / 4 && kept <= LEASE);
        }
    }
}
