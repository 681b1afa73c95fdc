//! [`Metadata`] in one SQLite file: one writer that groups commits, readers on the callers' threads.
//!
//! This file opens the database and says which query answers which method; the queries are in the modules below, in
//! plain functions over a connection.

mod blobs;
mod db;
mod deletion;
mod images;
mod jobs;
mod listings;
mod manifests;
mod previews;
mod readers;
mod registries;
mod repositories;
mod storage_class;
mod uploads;
mod usage;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations};
use uuid::Uuid;

use self::db::Db;
use self::readers::Readers;
use self::writer::Writer;
use super::disk::Disk;
use super::images::{
    Blob, DeleteImageError, Image, ImageDeleted, ImageDeletion, ImageFilter, ImageIdentifier, ImageStatus, LastTag,
    Layer, LifecycleDecision, Manifest, ManifestId, MountBlob, PutManifest, PutManifestError, PutOutcome,
    ReferrerFilter, Referrers, StorageClass, StorageClassError, TagDeleted, TaggedImage, UnlinkBlob,
};
use super::jobs::{Event, Job, JobCount, JobEnd, JobFilter, LifecycleTurn, NewJob, Requeue, StoredJob};
use super::lifecycle::{Preview, PreviewResult, PreviewRun, PreviewState};
use super::lock::ProcessLock;
use super::registries::{RegistryChange, RegistrySettings};
use super::repositories::{
    CreateRepositoryError, DeleteRepositoryError, NewRepository, Repository, RepositoryChange, RepositoryId,
    ResourceTag, TagResourceError,
};
use super::uploads::{AdvanceUpload, CommitUpload, Committed, Upload, UploadClaim, UploadError};
use super::{Generation, Lookup, Metadata, StoreError, StoreResult};
use crate::names::{AccountId, Digest, Reference, RepositoryName, Tag};

/// The schema's versions. A version that was released is never edited: a change is one more.
const MIGRATIONS: &[M<'_>] = &[
    M::up(include_str!("0001_initial.sql")),
    M::up(include_str!("0002_registry.sql")),
    M::up(include_str!("0003_images.sql")).foreign_key_check(),
    M::up(include_str!("0004_upload_claims.sql")),
    M::up(include_str!("0005_jobs.sql")),
    M::up(include_str!("0015_pages.sql")),
    M::up(include_str!("0016_archived.sql")),
    M::up(include_str!("0017_preview_results.sql")),
];

/// What every connection is set to. With the write-ahead log, NORMAL would lose acknowledged commits in a power cut: FULL.
/// Pages are cached per connection and small, as the operating system caches the file too.
const SETTINGS: &str = "PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; \
                        PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;";
/// The writer's own: 8 MiB of cache; the log is copied back at 16 MiB, so that a burst of pushes is not interrupted often.
const WRITER_SETTINGS: &str = "PRAGMA cache_size = -8192; PRAGMA wal_autocheckpoint = 4096;";
/// The readers' own: 2 MiB of cache each.
const READER_SETTINGS: &str = "PRAGMA cache_size = -2048; PRAGMA query_only = ON;";
/// Prepared statements that a connection keeps: more than there are.
const STATEMENTS: usize = 128;

/// The metadata in an SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    // The order matters: the writer's connection closes last, which empties the log, and then the lock goes.
    readers: Readers,
    /// Reads for readiness, which queues behind nobody.
    probe: Arc<Mutex<Connection>>,
    writer: Writer,
    disk: Arc<Disk>,
    _lock: Option<ProcessLock>,
}

impl SqliteStore {
    /// Opens the database at `path`, which is created with its folder if it is not there, and brings its schema up to date.
    ///
    /// # Errors
    /// When another process has it open, when a newer version of this program wrote it, or when SQLite fails.
    pub fn open(path: &Path) -> StoreResult<Self> {
        let lock = lock(path)?;
        // Before the database is opened, which takes some space: so a start on a full disk serves what is there.
        let disk = Disk::with_reserve(folder_of(path));
        let flags = OpenFlags::default();
        let mut connection = connect(path, flags, WRITER_SETTINGS).map_err(|error| cannot_open(path, error))?;
        migrate(&mut connection, path)?;
        let db = db::Db(&connection);
        if let Err(error) = uploads::release_all(db).and_then(|()| jobs::release_all(db)) {
            // They run out by themselves.
            tracing::warn!(%error, "uploads and jobs that were under way can only be gone on with after a while");
        }
        sync_folder(path)?;
        Self::on(path, connection, Some(lock), disk)
    }

    /// Opens a database that another process may have open: for a few short transactions, not for serving. SQLite's own locks
    /// order the two processes' transactions. Nothing is created, and the schema has to be of this version.
    ///
    /// # Errors
    /// When there is no database, when its schema is another one, or when SQLite fails.
    pub fn open_beside(path: &Path) -> StoreResult<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let connection = connect(path, flags, WRITER_SETTINGS).map_err(|error| cannot_open(path, error))?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let known = MIGRATIONS.len() as i64;
        if version != known {
            return Err(StoreError::Unavailable(format!(
                "the database {} has schema {version}, this program knows {known}: use the program that serves it",
                path.display()
            )));
        }
        Self::on(path, connection, None, Disk::new(folder_of(path)))
    }

    fn on(path: &Path, connection: Connection, lock: Option<ProcessLock>, disk: Disk) -> StoreResult<Self> {
        let disk = Arc::new(disk);
        let tended = Arc::clone(&disk);
        let writer = Writer::start(connection, move || tended.tend())?;
        // A reader for each core, on which a request's thread runs, and one for what else may read; as many for pages.
        let readers = std::thread::available_parallelism().map_or(2, |cores| cores.get().min(8)) + 1;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let reader = |_| connect(path, flags, READER_SETTINGS).map_err(|error| cannot_open(path, error));
        let connections = || (0..readers).map(reader).collect::<StoreResult<Vec<Connection>>>();
        let probe = Arc::new(Mutex::new(reader(0)?));
        Ok(Self { readers: Readers::new(connections()?, connections()?), probe, writer, disk, _lock: lock })
    }

    /// The disk that the database lies on, with its reserve.
    pub fn disk(&self) -> Arc<Disk> {
        Arc::clone(&self.disk)
    }

    /// Runs an operation that takes `bytes` of space and more: see [`Disk::admit`].
    async fn grow<T, E>(
        &self,
        bytes: usize,
        operation: impl FnOnce(Db<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.disk.admit(bytes as u64)?;
        self.writer.write(operation).await
    }
}

fn cannot_open(path: &Path, error: StoreError) -> StoreError {
    StoreError::Backend(format!("the database {} cannot be opened: {error}", path.display()).into())
}

/// Takes the lock that keeps a second process out: two writers would only wait for each other, and two job runners would
/// both believe that they are alone.
fn lock(path: &Path) -> StoreResult<ProcessLock> {
    let database = format!("the database {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|error| StoreError::Unavailable(format!("{database}: its folder cannot be made: {error}")))?;
    }
    let mut lock = PathBuf::from(path).into_os_string();
    lock.push(".lock");
    ProcessLock::take(&PathBuf::from(lock), &database, "wharfage")
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the file's name as durable as its contents.
fn sync_folder(path: &Path) -> StoreResult<()> {
    let folder = folder_of(path);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced
        .map_err(|error| StoreError::Unavailable(format!("the folder {} cannot be synced: {error}", folder.display())))
}

fn connect(path: &Path, flags: OpenFlags, settings: &str) -> StoreResult<Connection> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.execute_batch(SETTINGS)?;
    connection.execute_batch(settings)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> StoreResult<()> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = MIGRATIONS.len() as i64;
    if version > known {
        return Err(StoreError::Unavailable(format!(
            "the database {} was written by a newer version of this program: its schema is {version}, this program \
             knows {known}; start the newer version again, or restore a backup",
            path.display()
        )));
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A table that is made again is dropped in between, which would delete all rows that refer to it.
    connection.pragma_update(None, "foreign_keys", false)?;
    let migrated = Migrations::from_slice(MIGRATIONS).to_latest(connection);
    connection.pragma_update(None, "foreign_keys", true)?;
    migrated.map_err(|error| StoreError::Backend(Box::new(error)))
}

/// An empty database for the tests of single statements.
#[cfg(test)]
fn in_memory() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    migrate(&mut connection, Path::new(":memory:")).unwrap();
    connection
}

#[async_trait::async_trait]
impl Metadata for SqliteStore {
    async fn ready(&self) -> StoreResult<()> {
        let probe = Arc::clone(&self.probe);
        let read = move || -> StoreResult<()> {
            let connection = probe.lock().unwrap_or_else(PoisonError::into_inner);
            // From the file, not from nowhere.
            Db(&connection).exists("SELECT 1 FROM sqlite_schema", []).map(drop)
        };
        let disk = Arc::clone(&self.disk);
        tokio::task::spawn_blocking(move || read().map(|()| disk.tend()))
            .await
            .map_err(|error| StoreError::Backend(Box::new(error)))??;
        // A database that takes no writes says so; one that is busy is ready.
        self.writer.healthy().await?;
        self.disk.admit(0)
    }

    async fn registry_settings(&self, account: &AccountId) -> StoreResult<RegistrySettings> {
        self.readers.read(|db| registries::settings(db, account))
    }

    async fn change_registry(&self, account: &AccountId, change: RegistryChange) -> StoreResult<RegistrySettings> {
        let account = account.clone();
        self.writer.write(move |db| registries::change(db, &account, &change)).await
    }

    async fn account_settings(&self, account: &AccountId) -> StoreResult<BTreeMap<String, String>> {
        self.readers.read(|db| registries::account_settings(db, account))
    }

    async fn put_account_setting(&self, account: &AccountId, name: &str, value: &str) -> StoreResult<()> {
        let (account, name, value) = (account.clone(), name.to_owned(), value.to_owned());
        self.writer.write(move |db| registries::put_account_setting(db, &account, &name, &value)).await
    }

    async fn create_repository(&self, new: NewRepository, max: u64) -> Result<Repository, CreateRepositoryError> {
        self.grow(0, move |db| repositories::create(db, &new, max)).await
    }

    async fn repository(&self, account: &AccountId, name: &RepositoryName) -> StoreResult<Option<Repository>> {
        self.readers.read(|db| repositories::by_name(db, account, name))
    }

    async fn repositories(
        &self,
        account: &AccountId,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<Repository>> {
        let (account, after) = (account.clone(), after.map(str::to_owned));
        self.readers.page(move |db| repositories::list(db, &account, after.as_deref(), limit)).await
    }

    async fn repository_by_id(&self, id: RepositoryId) -> StoreResult<Option<Repository>> {
        self.readers.read(|db| repositories::by_id(db, id))
    }

    async fn schedule_lifecycle(&self, turn: LifecycleTurn) -> StoreResult<usize> {
        self.writer.write(move |db| repositories::schedule_lifecycle(db, &turn)).await
    }

    async fn change_repository(
        &self,
        id: RepositoryId,
        change: RepositoryChange,
        jobs: Vec<NewJob>,
    ) -> StoreResult<bool> {
        self.writer.write(move |db| repositories::change(db, id, &change, &jobs)).await
    }

    async fn delete_repository(
        &self,
        id: RepositoryId,
        force: bool,
        now: Timestamp,
    ) -> Result<(), DeleteRepositoryError> {
        self.writer.write(move |db| deletion::mark(db, id, force, now)).await
    }

    async fn empty_repository(&self, id: RepositoryId, limit: usize, now: Timestamp) -> StoreResult<bool> {
        self.writer.write(move |db| deletion::empty(db, id, limit, now)).await
    }

    async fn fold_usage(&self, _limit: usize) -> StoreResult<u64> {
        // The one writer counts in place.
        Ok(0)
    }

    async fn repository_usage(&self, id: RepositoryId) -> StoreResult<(u64, u64)> {
        self.readers.read(|db| repositories::usage(db, id))
    }

    async fn resource_tags(&self, id: RepositoryId) -> StoreResult<Vec<ResourceTag>> {
        self.readers.read(|db| repositories::resource_tags(db, id))
    }

    async fn tag_resource(&self, id: RepositoryId, tags: Vec<ResourceTag>, max: usize) -> Result<(), TagResourceError> {
        self.writer.write(move |db| repositories::tag_resource(db, id, &tags, max)).await
    }

    async fn untag_resource(&self, id: RepositoryId, keys: &[String]) -> StoreResult<()> {
        let keys = keys.to_vec();
        self.writer.write(move |db| repositories::untag_resource(db, id, &keys)).await
    }

    async fn find_blob(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StoreResult<Lookup<Blob>> {
        self.readers.read(|db| blobs::find(db, account, repository, digest))
    }

    async fn layers(&self, repository: RepositoryId, digests: &[Digest]) -> StoreResult<Vec<Option<Layer>>> {
        let digests = digests.to_vec();
        self.readers.page(move |db| blobs::layers(db, repository, &digests)).await
    }

    async fn blob_sources(
        &self,
        account: &AccountId,
        digest: &Digest,
        limit: usize,
    ) -> StoreResult<Vec<(RepositoryId, RepositoryName)>> {
        self.readers.read(|db| blobs::sources(db, account, digest, limit))
    }

    async fn mount_blob(
        &self,
        from: RepositoryId,
        to: RepositoryId,
        digest: &Digest,
        referenced_only: bool,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> StoreResult<MountBlob> {
        let digest = digest.clone();
        self.grow(0, move |db| blobs::mount(db, from, to, &digest, referenced_only, now, lease_until)).await
    }

    async fn unlink_blob(&self, repository: RepositoryId, digest: &Digest) -> StoreResult<UnlinkBlob> {
        let digest = digest.clone();
        self.writer.write(move |db| blobs::unlink(db, repository, &digest)).await
    }

    async fn extend_leases(&self, repository: RepositoryId, digests: &[Digest], until: Timestamp) -> StoreResult<()> {
        // Most often the leases are long enough, and then nothing has to queue.
        let short = self.readers.read(|db| blobs::short_leases(db, repository, digests, until))?;
        if !short.is_empty() {
            self.writer.write(move |db| blobs::extend_leases(db, repository, &short, until)).await?;
        }
        Ok(())
    }

    async fn set_blob_damaged(&self, generation: Generation, at: Option<Timestamp>) -> StoreResult<()> {
        self.writer.write(move |db| blobs::set_damaged(db, generation, at)).await
    }
    async fn live_generations(&self, generations: &[Generation]) -> StoreResult<Vec<Generation>> {
        self.readers.read(|db| blobs::live_generations(db, generations))
    }

    async fn create_upload(&self, upload: Upload, claim: Option<Duration>) -> StoreResult<bool> {
        self.grow(0, move |db| uploads::create(db, &upload, claim)).await
    }

    async fn upload(&self, repository: RepositoryId, id: Uuid) -> StoreResult<Option<Upload>> {
        self.readers.read(|db| uploads::find(db, repository, id))
    }

    async fn claim_upload(
        &self,
        read: &Upload,
        fresh: Generation,
        now: Timestamp,
        lease: Duration,
    ) -> Result<UploadClaim, UploadError> {
        let (id, read) = (read.id, (read.version, read.generation));
        self.writer.write(move |db| uploads::claim(db, id, read, fresh, now, lease)).await
    }

    async fn prolong_upload(&self, id: Uuid, version: i64, now: Timestamp, lease: Duration) -> Result<(), UploadError> {
        self.writer.write(move |db| uploads::prolong(db, id, version, now, lease)).await
    }

    async fn release_upload(&self, id: Uuid, version: i64, clean: bool) -> StoreResult<()> {
        self.writer.write(move |db| uploads::release(db, id, version, clean)).await
    }

    async fn advance_upload(&self, advance: AdvanceUpload) -> Result<(), UploadError> {
        self.writer.write(move |db| uploads::advance(db, &advance)).await
    }

    async fn commit_upload(&self, commit: CommitUpload) -> Result<Committed, UploadError> {
        self.writer.write(move |db| uploads::commit(db, &commit)).await
    }

    async fn cancel_upload(
        &self,
        repository: RepositoryId,
        id: Uuid,
        version: Option<i64>,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.writer.write(move |db| uploads::cancel(db, repository, id, version, now)).await
    }

    async fn cancel_stale_uploads(&self, before: Timestamp, now: Timestamp, limit: usize) -> StoreResult<u64> {
        self.writer.write(move |db| uploads::cancel_stale(db, before, now, limit)).await
    }

    async fn open_uploads(&self) -> StoreResult<u64> {
        self.readers.read(uploads::count)
    }

    async fn find_manifest(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> StoreResult<Lookup<Manifest>> {
        self.readers.read(|db| listings::find_manifest(db, account, repository, reference))
    }

    async fn put_manifest(&self, put: PutManifest) -> Result<PutOutcome, PutManifestError> {
        self.grow(put.manifest.payload.len(), move |db| manifests::put(db, &put)).await
    }

    async fn delete_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        referrers: Referrers,
        now: Timestamp,
    ) -> Result<Vec<Tag>, DeleteImageError> {
        let digest = digest.clone();
        self.writer.write(move |db| images::delete(db, repository, &digest, referrers, now)).await
    }

    async fn expire_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), DeleteImageError> {
        let digest = digest.clone();
        self.writer.write(move |db| images::expire(db, repository, &digest, &decision, now)).await
    }

    async fn delete_tag(
        &self,
        repository: RepositoryId,
        tag: &Tag,
        expected: Option<&Digest>,
        last: LastTag,
        now: Timestamp,
    ) -> Result<TagDeleted, DeleteImageError> {
        let (tag, expected) = (tag.clone(), expected.cloned());
        self.writer.write(move |db| images::delete_tag(db, repository, &tag, expected.as_ref(), last, now)).await
    }

    async fn delete_images(
        &self,
        repository: RepositoryId,
        deletions: &[ImageDeletion],
        now: Timestamp,
    ) -> StoreResult<Vec<Result<ImageDeleted, DeleteImageError>>> {
        let deletions = deletions.to_vec();
        self.writer.write(move |db| images::delete_all(db, repository, &deletions, now)).await
    }

    async fn tags(&self, repository: RepositoryId, after: Option<&str>, limit: usize) -> StoreResult<Vec<Tag>> {
        let after = after.map(str::to_owned);
        self.readers.page(move |db| listings::tags(db, repository, after.as_deref(), limit)).await
    }

    async fn images(
        &self,
        repository: RepositoryId,
        references: &[Reference],
    ) -> StoreResult<Vec<Option<TaggedImage>>> {
        let references = references.to_vec();
        self.readers.page(move |db| listings::images(db, repository, &references)).await
    }

    async fn list_images(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<TaggedImage>> {
        let after = after.cloned();
        self.readers.page(move |db| listings::list_images(db, repository, filter, after.as_ref(), limit)).await
    }

    async fn list_image_ids(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&ImageIdentifier>,
        limit: usize,
    ) -> StoreResult<Vec<ImageIdentifier>> {
        let after = after.cloned();
        self.readers.page(move |db| listings::list_image_ids(db, repository, filter, after.as_ref(), limit)).await
    }

    async fn index_edges(
        &self,
        repository: RepositoryId,
        after: Option<&(Digest, Digest)>,
        limit: usize,
    ) -> StoreResult<Vec<(Digest, Digest)>> {
        let after = after.cloned();
        self.readers.page(move |db| listings::index_edges(db, repository, after.as_ref(), limit)).await
    }

    async fn referrers(
        &self,
        repository: RepositoryId,
        subject: &Digest,
        filter: &ReferrerFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<Image>> {
        let (subject, filter, after) = (subject.clone(), filter.clone(), after.cloned());
        self.readers.page(move |db| listings::referrers(db, repository, &subject, &filter, after.as_ref(), limit)).await
    }

    async fn set_storage_class(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        class: StorageClass,
        now: Timestamp,
    ) -> Result<ImageStatus, StorageClassError> {
        let digest = digest.clone();
        self.writer.write(move |db| storage_class::set(db, repository, &digest, class, now)).await
    }

    async fn archive_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), StorageClassError> {
        let digest = digest.clone();
        self.writer.write(move |db| storage_class::archive(db, repository, &digest, &decision, now)).await
    }

    async fn follow_subject(&self, repository: RepositoryId, referrer: &Digest, now: Timestamp) -> StoreResult<bool> {
        let referrer = referrer.clone();
        self.writer.write(move |db| images::follow_subject(db, repository, &referrer, now)).await
    }

    async fn record_pulls(&self, pulls: &[(ManifestId, Timestamp)]) -> StoreResult<()> {
        let pulls = pulls.to_vec();
        self.writer.write(move |db| images::record_pulls(db, &pulls)).await
    }

    async fn start_preview(
        &self,
        repository: RepositoryId,
        policy: &str,
        now: Timestamp,
        job: NewJob,
    ) -> StoreResult<bool> {
        let policy = policy.to_owned();
        self.writer.write(move |db| previews::start(db, repository, &policy, now, &job)).await
    }

    async fn preview(&self, repository: RepositoryId) -> StoreResult<Option<Preview>> {
        self.readers.read(|db| previews::latest(db, repository))
    }

    async fn add_preview_results(
        &self,
        run: PreviewRun,
        position: u64,
        results: Vec<PreviewResult>,
    ) -> StoreResult<bool> {
        self.writer.write(move |db| previews::add_results(db, run, position, &results)).await
    }

    async fn finish_preview(&self, run: PreviewRun, state: PreviewState) -> StoreResult<()> {
        self.writer.write(move |db| previews::finish(db, run, &state)).await
    }

    async fn preview_results(
        &self,
        repository: RepositoryId,
        tagged: Option<bool>,
        after: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, PreviewResult)>> {
        self.readers.page(move |db| previews::results(db, repository, tagged, after, limit)).await
    }

    async fn preview_results_of(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
    ) -> StoreResult<Vec<(u64, PreviewResult)>> {
        let digests = digests.to_vec();
        self.readers.page(move |db| previews::results_of(db, repository, &digests)).await
    }

    async fn prune_preview_results(&self, run: PreviewRun, limit: usize) -> StoreResult<bool> {
        self.writer.write(move |db| previews::prune_results(db, run, limit)).await
    }

    async fn enqueue_job(&self, job: NewJob) -> StoreResult<()> {
        self.writer.write(move |db| jobs::enqueue(db, &job)).await
    }

    async fn claim_job(&self, kinds: &[&str], now: Timestamp, lease: Duration) -> StoreResult<Option<Job>> {
        let kinds = super::rows::json(kinds)?;
        // Workers ask often and mostly in vain: that is only read. One process has the database, so its clock is the database's.
        if self.readers.read(|db| jobs::next(db, &kinds, now, Timestamp::now()))?.is_none() {
            return Ok(None);
        }
        self.writer.write(move |db| jobs::claim(db, &kinds, now, Timestamp::now(), lease)).await
    }

    async fn heartbeat_job(&self, id: i64, attempts: u32, lease: Duration) -> StoreResult<bool> {
        self.writer.write(move |db| jobs::heartbeat(db, id, attempts, Timestamp::now(), lease)).await
    }

    async fn end_job(&self, id: i64, attempts: u32, end: JobEnd) -> StoreResult<()> {
        self.writer.write(move |db| jobs::end(db, id, attempts, &end)).await
    }

    async fn job_counts(&self, kinds: &[&str]) -> StoreResult<Vec<JobCount>> {
        let kinds = super::rows::json(kinds)?;
        self.readers.page(move |db| jobs::counts(db, &kinds)).await
    }

    async fn list_jobs(&self, filter: &JobFilter, after: Option<i64>, limit: usize) -> StoreResult<Vec<StoredJob>> {
        let filter = filter.clone();
        self.readers.page(move |db| jobs::list(db, &filter, after, limit)).await
    }

    async fn requeue_jobs(&self, jobs: &Requeue, now: Timestamp) -> StoreResult<u64> {
        let chosen = jobs.clone();
        self.writer.write(move |db| jobs::requeue(db, &chosen, now)).await
    }

    async fn record_event(&self, event: Event) -> StoreResult<()> {
        self.writer.write(move |db| jobs::record(db, &event)).await
    }

    async fn prune_events(&self, before: Timestamp, keep: u64, limit: usize) -> StoreResult<u64> {
        self.writer.write(move |db| jobs::prune_events(db, before, keep, limit)).await
    }

    async fn events(&self, account: &AccountId, limit: usize) -> StoreResult<Vec<Event>> {
        let account = account.clone();
        self.readers.page(move |db| jobs::events(db, &account, limit)).await
    }
}
