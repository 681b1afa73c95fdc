//! Two writers of one upload session and a cancellation, in every order of their steps, on both
//! databases and both backends. The writers are replicas: each has its own registry on the same
//! stores.
//!
//! A writer pauses where another could interleave: after it has claimed the session, before it
//! finishes the object, when that is finished and not committed, and when a chunk is durable and
//! not yet acknowledged. A writer that begins finds the previous claim expired, as if its holder
//! had stalled. So all later writes of the previous writer are late.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{Timestamp, ToSpan};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use uuid::Uuid;
use wharfage::names::{Algorithm, Digest};
use wharfage::registry::auth::Keyring;
use wharfage::registry::service::uploads::UploadFailure;
use wharfage::registry::{Config, Limits, PublicUrl, Registry};
use wharfage::store::jobs::{DeleteGeneration, JobEnd, JobPayload as _};
use wharfage::store::postgres::{PostgresOptions, PostgresStore};
use wharfage::store::repositories::Repository;
use wharfage::store::sqlite::SqliteStore;
use wharfage::store::{
    BlobKey, BlobReader, BlobWriter, Blobs, Generation, Handover, Inspect, Lookup, Metadata,
    Sealed, StoreResult, UploadKey, WriterState,
};

use super::{BackendFixture, content};
use crate::bed;
use crate::metadata::{account, new_repository};

const MIB: usize = 1024 * 1024;
/// Number of orders that run concurrently.
const AT_ONCE: usize = 16;

/// A point where a writer pauses until it is resumed.
#[derive(Debug)]
struct Gate {
    arrived: mpsc::UnboundedSender<()>,
    go: Semaphore,
}

impl Gate {
    async fn stop(&self) {
        // Nobody listens after the end of the order.
        let _ = self.arrived.send(());
        self.go.acquire().await.unwrap().forget();
    }
}

/// A backend whose writers pause.
#[derive(Debug)]
struct Gated {
    blobs: Arc<dyn Blobs>,
    gate: Arc<Gate>,
}

#[async_trait::async_trait]
impl Blobs for Gated {
    async fn writer(
        &self,
        key: &UploadKey,
        offset: u64,
        state: &WriterState,
        handover: Handover,
        inspect: Arc<dyn Inspect>,
    ) -> StoreResult<Box<dyn BlobWriter>> {
        self.gate.stop().await;
        let writer = self.blobs.writer(key, offset, state, handover, inspect).await?;
        Ok(Box::new(GatedWriter { writer, gate: Arc::clone(&self.gate) }))
    }
    async fn sealed(&self, size: u64, state: &WriterState) -> StoreResult<Option<Sealed>> {
        self.blobs.sealed(size, state).await
    }
    async fn read(&self, key: &BlobKey, range: Range<u64>) -> StoreResult<BlobReader> {
        self.blobs.read(key, range).await
    }
    async fn stored_size(&self, generation: Generation) -> StoreResult<Option<u64>> {
        self.blobs.stored_size(generation).await
    }
    fn generations_to_delete(
        &self,
        generation: Generation,
        state: &WriterState,
    ) -> StoreResult<Vec<Generation>> {
        self.blobs.generations_to_delete(generation, state)
    }
    async fn delete(
        &self,
        generation: Generation,
        state: &WriterState,
        live: &[Generation],
    ) -> StoreResult<()> {
        self.blobs.delete(generation, state, live).await
    }
    async fn presigned_url(
        &self,
        key: &BlobKey,
        valid_for: Duration,
    ) -> StoreResult<Option<String>> {
        self.blobs.presigned_url(key, valid_for).await
    }
    async fn ready(&self) -> StoreResult<()> {
        self.blobs.ready().await
    }
}

struct GatedWriter {
    writer: Box<dyn BlobWriter>,
    gate: Arc<Gate>,
}

#[async_trait::async_trait]
impl BlobWriter for GatedWriter {
    async fn write(&mut self, bytes: Bytes) -> StoreResult<()> {
        self.writer.write(bytes).await
    }
    async fn inspected(&mut self) -> StoreResult<()> {
        self.writer.inspected().await
    }
    async fn checkpoint(&mut self, next: Generation) -> StoreResult<WriterState> {
        let state = self.writer.checkpoint(next).await?;
        self.gate.stop().await;
        Ok(state)
    }
    async fn finish(self: Box<Self>) -> StoreResult<Sealed> {
        self.gate.stop().await;
        let sealed = self.writer.finish().await?;
        self.gate.stop().await;
        Ok(sealed)
    }
    async fn abandon(self: Box<Self>) {
        self.writer.abandon().await;
    }
}

/// The actor of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Actor {
    First,
    Second,
    Canceler,
}

/// The action of a writer with its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Acknowledges them as a chunk: three steps.
    Patch,
    /// Ends the session with them: four steps.
    Put,
}

impl Does {
    fn steps(self) -> usize {
        match self {
            Self::Patch => 3,
            Self::Put => 4,
        }
    }
}

/// Returns every order in which the actors can take their steps.
fn orders(first: usize, second: usize, canceler: usize) -> Vec<Vec<Actor>> {
    if first + second + canceler == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (actor, left) in
        [(Actor::First, first), (Actor::Second, second), (Actor::Canceler, canceler)]
    {
        if left > 0 {
            let less = |of: Actor, steps: usize| steps - usize::from(of == actor);
            let rest = orders(
                less(Actor::First, first),
                less(Actor::Second, second),
                less(Actor::Canceler, canceler),
            );
            all.extend(rest.into_iter().map(|rest| [vec![actor], rest].concat()));
        }
    }
    all
}

/// The stores under test.
#[derive(Clone)]
struct TestBed {
    metadata: Arc<dyn Metadata>,
    blobs: Arc<dyn Blobs>,
    repository: Repository,
}

/// A blob that a writer has acknowledged.
type Acknowledged = (Digest, u64);

impl TestBed {
    fn registry(&self, blobs: Arc<dyn Blobs>) -> Arc<Registry> {
        let config = Config {
            region: "local-1".parse().unwrap(),
            account: account(),
            public_url: PublicUrl { scheme: "http".into(), authority: "localhost".into() },
            redirect_blobs: false,
            limits: Limits::default(),
        };
        let metadata = Arc::clone(&self.metadata);
        Arc::new(Registry::new(config, metadata, blobs, Keyring::default(), Arc::default()))
    }

    /// Begins a session that already has `bytes`.
    async fn session(&self, bytes: &Bytes) -> Uuid {
        let registry = self.registry(Arc::clone(&self.blobs));
        let now = Timestamp::now();
        let upload =
            registry.begin_upload(self.repository.id, Algorithm::Sha256, now).await.unwrap();
        if !bytes.is_empty() {
            let mut session = registry.open_upload(self.repository.id, upload.id).await.unwrap();
            session.append(bytes.clone()).await.unwrap();
            session.pause(None, now).await.unwrap();
        }
        upload.id
    }

    /// Expires the claim of a session.
    async fn lapse(&self, id: Uuid) {
        if let Some(upload) = self.metadata.find_upload(self.repository.id, id).await.unwrap()
            && upload.claimed_until.is_some()
        {
            self.metadata.release_upload(id, upload.version, false).await.unwrap();
        }
    }

    /// Asserts that the bytes of a blob have its digest.
    async fn assert_whole(&self, (digest, size): &Acknowledged, order: &(impl fmt::Debug + Sync)) {
        let found =
            self.metadata.find_blob(&account(), &self.repository.name, digest).await.unwrap();
        let Lookup::Found(blob) = found else { panic!("{order:?}: {digest} is not there") };
        assert_eq!(blob.bytes.size, *size, "{order:?}");
        let read = async {
            let chunks: Vec<Bytes> =
                self.blobs.read(&blob.bytes, 0..*size).await?.try_collect().await?;
            StoreResult::Ok(chunks.concat())
        };
        let bytes = read.await.unwrap_or_else(|error| panic!("{order:?}: {error}"));
        assert_eq!(
            Digest::sha256(&bytes),
            *digest,
            "{order:?}: other bytes than were acknowledged"
        );
    }

    /// Runs one order of steps, and returns the acknowledged blobs.
    async fn run(&self, before: Bytes, does: [Does; 2], order: Vec<Actor>) -> Vec<Acknowledged> {
        let id = self.session(&before).await;
        let seed = u64::from_be_bytes(id.as_bytes()[..8].try_into().unwrap());
        let mut writers = [None, None];
        let mut acknowledged = Vec::new();
        let rest = [Actor::First, Actor::Second].repeat(4);
        for (n, actor) in order.iter().copied().chain(rest).enumerate() {
            let index = match actor {
                Actor::First => 0,
                Actor::Second => 1,
                Actor::Canceler => {
                    self.metadata
                        .cancel_upload(self.repository.id, id, None, Timestamp::now())
                        .await
                        .unwrap();
                    continue;
                }
            };
            if writers[index].is_none() && n < order.len() {
                self.lapse(id).await;
                let bytes = content(seed.wrapping_add(index as u64), 1000);
                writers[index] = Some(Writer::start(self, id, before.clone(), bytes, does[index]));
            }
            if let Some(writer) = &mut writers[index]
                && let Some(blob) = writer.step().await
            {
                self.assert_whole(&blob, &order).await;
                acknowledged.push(blob);
            }
        }
        assert!(
            writers.iter().flatten().all(|writer| writer.task.is_none()),
            "{order:?}: a writer is not through"
        );
        for blob in &acknowledged {
            self.assert_whole(blob, &order).await;
        }
        acknowledged
    }

    /// Runs every order, and asserts that only acknowledged objects are left.
    async fn run_all(
        &self,
        fixture: &dyn BackendFixture,
        before: &Bytes,
        does: [Does; 2],
        cancels: usize,
    ) {
        let orders = orders(does[0].steps(), does[1].steps(), cancels);
        let runs =
            stream::iter(orders).map(|order| {
                let (bed, before) = (self.clone(), before.clone());
                async move {
                    tokio::spawn(async move { bed.run(before, does, order).await }).await.unwrap()
                }
            });
        let acknowledged: Vec<_> = runs.buffer_unordered(AT_ONCE).concat().await;
        assert!(!acknowledged.is_empty());

        let later = Timestamp::now() + 24.hours();
        self.metadata.cancel_stale_uploads(later, later, 100_000).await.unwrap();
        assert_eq!(self.metadata.count_uploads().await.unwrap(), 0);
        // The deletion of an uncleanly ended session's bytes waits for late writes.
        let due = later + 1.hour();
        let kinds = [DeleteGeneration::KIND];
        while let Some(job) =
            self.metadata.claim_job(&kinds, due, Duration::from_secs(60)).await.unwrap()
        {
            let DeleteGeneration { generation, writer } =
                DeleteGeneration::parse(&job.payload).unwrap();
            self.blobs.delete(generation, &writer, &[]).await.unwrap();
            self.metadata.end_job(job.id, job.attempts, JobEnd::Done).await.unwrap();
        }
        let mut expected = BTreeSet::new();
        for blob in &acknowledged {
            self.assert_whole(blob, &"after all deletions").await;
            match self.metadata.find_blob(&account(), &self.repository.name, &blob.0).await.unwrap()
            {
                Lookup::Found(blob) => expected.insert(blob.bytes.generation.path()),
                other => panic!("{other:?}"),
            };
        }
        let there: BTreeSet<_> = fixture.objects().await.into_iter().collect();
        assert_eq!(there, expected, "objects that no row names, or rows without an object");
        for blob in &acknowledged {
            self.metadata.unlink_blob(self.repository.id, &blob.0).await.unwrap();
        }
        for path in there {
            let generation: Generation = path.rsplit('/').next().unwrap().parse().unwrap();
            self.blobs.delete(generation, &WriterState::default(), &[]).await.unwrap();
        }
    }
}

/// A writer that takes its steps one by one.
struct Writer {
    gate: Arc<Gate>,
    arrivals: mpsc::UnboundedReceiver<()>,
    begun: bool,
    task: Option<JoinHandle<Result<Option<Acknowledged>, UploadFailure>>>,
}

impl Writer {
    fn start(bed: &TestBed, id: Uuid, before: Bytes, bytes: Bytes, does: Does) -> Self {
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let gate = Arc::new(Gate { arrived, go: Semaphore::new(0) });
        let registry = bed
            .registry(Arc::new(Gated { blobs: Arc::clone(&bed.blobs), gate: Arc::clone(&gate) }));
        let repository = bed.repository.id;
        let task = tokio::spawn(async move {
            let mut session = registry.open_upload(repository, id).await?;
            session.append(bytes.clone()).await?;
            match does {
                Does::Patch => session.pause(None, Timestamp::now()).await.map(|_| None),
                Does::Put => {
                    let digest = Digest::sha256(&[before, bytes].concat());
                    let finished = session.finish(&[digest], Timestamp::now()).await?;
                    Ok(Some((finished.digest, finished.size)))
                }
            }
        });
        Self { gate, arrivals, begun: false, task: Some(task) }
    }

    /// Runs the writer to its next pause or its end, and returns the blob that was acknowledged.
    async fn step(&mut self) -> Option<Acknowledged> {
        let task = self.task.as_mut()?;
        if std::mem::replace(&mut self.begun, true) {
            self.gate.go.add_permits(1);
        }
        let ended = tokio::select! {
            biased;
            Some(()) = self.arrivals.recv() => return None,
            ended = task => ended.unwrap(),
        };
        self.task = None;
        // The second writer is refused. Any other error would mean that the session is broken.
        match ended {
            Ok(acknowledged) => acknowledged,
            Err(
                UploadFailure::NotFound
                | UploadFailure::Busy
                | UploadFailure::DigestMismatch { .. },
            ) => None,
            Err(UploadFailure::Store(wharfage::store::StoreError::Unavailable(_))) => None,
            Err(error) => panic!("a writer failed: {error}"),
        }
    }
}

async fn every_order(metadata: Arc<dyn Metadata>, fixture: &dyn BackendFixture, large: bool) {
    let repository = metadata.create_repository(new_repository("app"), 10).await.unwrap();
    let bed = TestBed { metadata, blobs: fixture.open().await, repository };
    if large {
        // The session has a part and a tail, so both writers continue the same multipart upload.
        bed.run_all(fixture, &content(1, 6 * MIB + 10), [Does::Put, Does::Put], 0).await;
        bed.run_all(fixture, &content(1, 6 * MIB + 10), [Does::Patch, Does::Put], 0).await;
    }
    for before in [content(1, 0), content(1, 10)] {
        bed.run_all(fixture, &before, [Does::Put, Does::Put], 1).await;
        bed.run_all(fixture, &before, [Does::Patch, Does::Put], 1).await;
    }
}

async fn sqlite() -> (Arc<dyn Metadata>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Arc::new(SqliteStore::open(&folder.path().join("metadata.sqlite")).unwrap()), folder)
}

async fn postgres() -> Arc<dyn Metadata> {
    let url = bed::postgres().database().await;
    Arc::new(PostgresStore::connect(&url, PostgresOptions::default()).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_on_sqlite_and_a_folder() {
    let (metadata, _folder) = sqlite().await;
    every_order(metadata, &super::folder::folder().await, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_on_postgres_and_a_folder() {
    every_order(postgres().await, &super::folder::folder().await, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_on_sqlite_and_s3() {
    let (metadata, _folder) = sqlite().await;
    every_order(metadata, &super::s3::bucket().await, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_on_postgres_and_s3() {
    every_order(postgres().await, &super::s3::bucket().await, true).await;
}
