//! The metadata contract on PostgreSQL, for a registry of several replicas.
//!
//! Every operation is a function that makes one attempt in one transaction at READ COMMITTED, with the locks that its
//! answer rests on; `migrations/0003_images.sql` tells the order in which they are taken. An attempt that another
//! transaction got in the way of is repeated a few times. Nothing here reads a clock or knows a door.
//!
//! (A new migration is seen when this file is compiled again: touch it.)

mod blobs;
mod deletion;
mod doubt;
mod failure;
mod image_batches;
mod images;
mod jobs;
mod listings;
mod manifests;
mod previews;
mod probe;
mod registries;
mod repositories;
mod rows;
mod schema;
mod storage_class;
mod uploads;
mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use jiff::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor, PgPool};
use uuid::Uuid;

use self::doubt::{Doubt, after_release, ping};
use self::failure::{Attempt, Failure, store_error};
use self::probe::Probe;
use super::images::{
    Blob, DeleteImageError, Image, ImageDeleted, ImageDeletion, ImageFilter, ImageIdentifier, ImageStatus, LastTag,
    Layer, LifecycleDecision, Manifest, ManifestId, MountBlob, PutManifest, PutManifestError, PutOutcome,
    ReferrerFilter, Referrers, StorageClass, StorageClassError, TagDeleted, TaggedImage, UnlinkBlob,
};
use super::jobs::{Event, Job, JobCount, JobEnd, JobFilter, LifecycleTurn, NewJob, Requeue, StoredJob};
use super::lifecycle::{Preview, PreviewResult, PreviewRun, PreviewState};
use super::registries::{RegistryChange, RegistrySettings};
use super::repositories::{
    CreateRepositoryError, DeleteRepositoryError, NewRepository, Repository, RepositoryChange, RepositoryId,
    ResourceTag, TagResourceError,
};
use super::uploads::{AdvanceUpload, CommitUpload, Committed, Upload, UploadClaim, UploadError};
use super::{Generation, Lookup, Metadata, StoreError, StoreResult};
use crate::names::{AccountId, Digest, Reference, RepositoryName, Tag};

/// How long a connection may have been idle and still be trusted without asking the server: a pull is one round trip.
const TRUSTED_IDLE: Duration = Duration::from_secs(5);

/// How a [`PostgresStore`] uses its database.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Connections that this replica opens at most.
    pub max_connections: u32,
    /// How long to wait for a connection: one of the pool's that is free, or a new one.
    pub acquire_timeout: Duration,
    /// How long the server may work on one statement, or wait for a lock in it.
    pub statement_timeout: Duration,
    /// How long an operation may take in all, whatever the network does.
    pub deadline: Duration,
    /// Brings the schema to this version's. Otherwise it has to be of this version: for tools beside what serves.
    pub migrate: bool,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            max_connections: 16,
            acquire_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(8),
            deadline: Duration::from_secs(10),
            migrate: true,
        }
    }
}

/// Metadata in PostgreSQL (15 or newer).
pub struct PostgresStore {
    pool: PgPool,
    deadline: Duration,
    /// Host and database, for messages: neither user nor password.
    place: String,
    probe: Probe,
    doubt: Arc<Doubt>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("place", &self.place).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects, and brings the schema to this version's: of several replicas that start at once one does, the others wait.
    ///
    /// `url` is `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with libpq's parameters such as `sslmode=verify-full` and
    /// `sslrootcert=FILE`; behind a pooler that shares connections between transactions it needs
    /// `statement-cache-capacity=0`. What it does not say is taken from the `PG…` variables of the environment.
    ///
    /// # Errors
    /// `Unavailable` when the database does not answer or refuses the user; `Backend` when the URL does not parse, or when
    /// the schema is newer than this version or was changed by hand. None of them tells the password.
    pub async fn connect(url: &str, options: PostgresOptions) -> StoreResult<Self> {
        let connect_options = connect_options(url)?;
        let place = place(&connect_options);
        let here = |error| at_place(&place, error);
        let within = |error: tokio::time::error::Elapsed| {
            StoreError::Unavailable(format!("PostgreSQL at {place} did not answer: {error}"))
        };

        // A connection of its own: a migration may take longer than any statement of the pool's connections.
        let connecting = sqlx::PgConnection::connect_with(&connect_options);
        let mut connection = tokio::time::timeout(options.acquire_timeout, connecting)
            .await
            .map_err(within)?
            .map_err(store_error)
            .map_err(here)?;
        if options.migrate {
            schema::migrate(&mut connection).await.map_err(here)?;
        } else {
            schema::check(&mut connection).await.map_err(here)?;
        }
        // What is left of it would be closed anyway.
        let _ = connection.close().await;

        let settings = session_settings(options.statement_timeout);
        let doubt = Arc::new(Doubt::default());
        let probe = Probe::new(connect_options.clone(), Arc::clone(&doubt));
        let acquired = Arc::clone(&doubt);
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(options.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(move |connection, idle| {
                let doubted = idle.idle_for > TRUSTED_IDLE || acquired.reaches(idle.idle_for);
                Box::pin(async move {
                    if doubted {
                        ping(connection).await?;
                    }
                    Ok(true)
                })
            })
            .after_release(after_release(Arc::clone(&doubt)))
            .after_connect(move |connection, _| {
                let settings = sqlx::AssertSqlSafe(settings.clone());
                Box::pin(async move { connection.execute(sqlx::raw_sql(settings)).await.map(|_| ()) })
            })
            .connect_lazy_with(connect_options);
        let store = Self { pool, deadline: options.deadline, place: place.clone(), probe, doubt };
        store
            .run(|| async { Ok(sqlx::query("SELECT 1").execute(&store.pool).await.map(drop)?) })
            .await
            .map_err(here)?;
        Ok(store)
    }

    /// Closes every connection; operations that run come to their end first.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Makes attempts until one is not in another transaction's way, within the deadline.
    async fn run<T, E, A>(&self, attempt: impl FnMut() -> A) -> Result<T, E>
    where
        A: Future<Output = Attempt<T, E>>,
        E: From<StoreError>,
    {
        let attempts = attempt.retry(
            ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(2))
                .with_max_delay(Duration::from_millis(500))
                .with_jitter()
                .with_max_times(12),
        );
        let mut attempts = std::pin::pin!(attempts.when(Failure::passes).into_future());
        match tokio::time::timeout(self.deadline, &mut attempts).await {
            Ok(outcome) => outcome.map_err(|failure| {
                if failure.is_connection() {
                    self.doubt.lost();
                }
                failure.into_error()
            }),
            Err(_) => {
                // Before the attempt is dropped, which releases its connection.
                self.doubt.abandoned();
                let after = self.deadline.as_secs();
                Err(StoreError::Unavailable(format!("PostgreSQL at {} did not answer within {after} s", self.place))
                    .into())
            }
        }
    }
}

/// Parses the URL; an error names the mistake and never what stands in the URL.
fn connect_options(url: &str) -> StoreResult<PgConnectOptions> {
    let invalid = |why: String| StoreError::Backend(format!("the PostgreSQL URL is not valid: {why}").into());
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(invalid("it must begin with postgres://".to_owned()));
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| invalid(error.to_string()))?;
    Ok(if options.get_application_name().is_some() { options } else { options.application_name("wharfage") })
}

fn place(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    format!("{host}/{}", options.get_database().unwrap_or(options.get_username()))
}

fn at_place(place: &str, error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(why) => StoreError::Unavailable(format!("PostgreSQL at {place}: {why}")),
        other => other,
    }
}

/// What every connection of the pool is set to. A transaction that a dead replica left open must not keep its locks. Compiling a
/// plan takes longer than any statement here.
fn session_settings(statement_timeout: Duration) -> String {
    let millis = statement_timeout.as_millis();
    format!(
        "SET default_transaction_isolation = 'read committed'; SET statement_timeout = {millis}; \
         SET idle_in_transaction_session_timeout = {millis}; SET jit = off"
    )
}

#[async_trait::async_trait]
impl Metadata for PostgresStore {
    async fn ready(&self) -> StoreResult<()> {
        self.probe.ready().await.map_err(|error| at_place(&self.place, error))
    }

    async fn registry_settings(&self, account: &AccountId) -> StoreResult<RegistrySettings> {
        self.run(|| registries::settings(&self.pool, account)).await
    }
    async fn change_registry(&self, account: &AccountId, change: RegistryChange) -> StoreResult<RegistrySettings> {
        self.run(|| registries::change(&self.pool, account, &change)).await
    }
    async fn account_settings(&self, account: &AccountId) -> StoreResult<BTreeMap<String, String>> {
        self.run(|| registries::account_settings(&self.pool, account)).await
    }
    async fn put_account_setting(&self, account: &AccountId, name: &str, value: &str) -> StoreResult<()> {
        self.run(|| registries::put_account_setting(&self.pool, account, name, value)).await
    }

    async fn create_repository(&self, new: NewRepository, max: u64) -> Result<Repository, CreateRepositoryError> {
        self.run(|| repositories::create(&self.pool, &new, max)).await
    }
    async fn repository(&self, account: &AccountId, name: &RepositoryName) -> StoreResult<Option<Repository>> {
        self.run(|| repositories::by_name(&self.pool, account, name)).await
    }
    async fn repositories(
        &self,
        account: &AccountId,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<Repository>> {
        self.run(|| repositories::page(&self.pool, account, after, limit)).await
    }
    async fn repository_by_id(&self, id: RepositoryId) -> StoreResult<Option<Repository>> {
        self.run(|| repositories::by_id(&self.pool, id)).await
    }
    async fn schedule_lifecycle(&self, turn: LifecycleTurn) -> StoreResult<usize> {
        self.run(|| repositories::schedule_lifecycle(&self.pool, &turn)).await
    }
    async fn change_repository(
        &self,
        id: RepositoryId,
        change: RepositoryChange,
        jobs: Vec<NewJob>,
    ) -> StoreResult<bool> {
        self.run(|| repositories::change(&self.pool, id, &change, &jobs)).await
    }
    async fn delete_repository(
        &self,
        id: RepositoryId,
        force: bool,
        now: Timestamp,
    ) -> Result<(), DeleteRepositoryError> {
        self.run(|| deletion::mark(&self.pool, id, force, now)).await
    }
    async fn empty_repository(&self, id: RepositoryId, limit: usize, now: Timestamp) -> StoreResult<bool> {
        self.run(|| deletion::empty(&self.pool, id, limit, now)).await
    }
    async fn fold_usage(&self, limit: usize) -> StoreResult<u64> {
        self.run(|| usage::fold(&self.pool, limit)).await
    }
    async fn repository_usage(&self, id: RepositoryId) -> StoreResult<(u64, u64)> {
        self.run(|| repositories::usage(&self.pool, id)).await
    }
    async fn resource_tags(&self, id: RepositoryId) -> StoreResult<Vec<ResourceTag>> {
        self.run(|| repositories::resource_tags(&self.pool, id)).await
    }
    async fn tag_resource(&self, id: RepositoryId, tags: Vec<ResourceTag>, max: usize) -> Result<(), TagResourceError> {
        self.run(|| repositories::tag_resource(&self.pool, id, &tags, max)).await
    }
    async fn untag_resource(&self, id: RepositoryId, keys: &[String]) -> StoreResult<()> {
        self.run(|| repositories::untag_resource(&self.pool, id, keys)).await
    }

    async fn find_blob(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StoreResult<Lookup<Blob>> {
        self.run(|| blobs::find(&self.pool, account, repository, digest)).await
    }
    async fn layers(&self, repository: RepositoryId, digests: &[Digest]) -> StoreResult<Vec<Option<Layer>>> {
        self.run(|| blobs::layers(&self.pool, repository, digests)).await
    }
    async fn blob_sources(
        &self,
        account: &AccountId,
        digest: &Digest,
        limit: usize,
    ) -> StoreResult<Vec<(RepositoryId, RepositoryName)>> {
        self.run(|| blobs::sources(&self.pool, account, digest, limit)).await
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
        self.run(|| blobs::mount(&self.pool, from, to, digest, referenced_only, now, lease_until)).await
    }
    async fn unlink_blob(&self, repository: RepositoryId, digest: &Digest) -> StoreResult<UnlinkBlob> {
        self.run(|| blobs::unlink(&self.pool, repository, digest)).await
    }
    async fn extend_leases(&self, repository: RepositoryId, digests: &[Digest], until: Timestamp) -> StoreResult<()> {
        self.run(|| blobs::extend_leases(&self.pool, repository, digests, until)).await
    }

    async fn set_blob_damaged(&self, generation: Generation, at: Option<Timestamp>) -> StoreResult<()> {
        self.run(|| blobs::set_damaged(&self.pool, generation, at)).await
    }
    async fn live_generations(&self, generations: &[Generation]) -> StoreResult<Vec<Generation>> {
        self.run(|| blobs::live_generations(&self.pool, generations)).await
    }

    async fn create_upload(&self, upload: Upload, claim: Option<Duration>) -> StoreResult<bool> {
        self.run(|| uploads::create(&self.pool, &upload, claim)).await
    }
    async fn upload(&self, repository: RepositoryId, id: Uuid) -> StoreResult<Option<Upload>> {
        self.run(|| uploads::get_one(&self.pool, repository, id)).await
    }
    async fn claim_upload(
        &self,
        read: &Upload,
        fresh: Generation,
        _now: Timestamp,
        lease: Duration,
    ) -> Result<UploadClaim, UploadError> {
        self.run(|| uploads::claim(&self.pool, read, fresh, lease)).await
    }
    async fn prolong_upload(
        &self,
        id: Uuid,
        version: i64,
        _now: Timestamp,
        lease: Duration,
    ) -> Result<(), UploadError> {
        self.run(|| uploads::prolong(&self.pool, id, version, lease)).await
    }
    async fn release_upload(&self, id: Uuid, version: i64, clean: bool) -> StoreResult<()> {
        self.run(|| uploads::release(&self.pool, id, version, clean)).await
    }
    async fn advance_upload(&self, advance: AdvanceUpload) -> Result<(), UploadError> {
        self.run(|| uploads::advance(&self.pool, &advance)).await
    }
    async fn commit_upload(&self, commit: CommitUpload) -> Result<Committed, UploadError> {
        self.run(|| uploads::commit(&self.pool, &commit)).await
    }
    async fn cancel_upload(
        &self,
        repository: RepositoryId,
        id: Uuid,
        version: Option<i64>,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.run(|| uploads::cancel(&self.pool, repository, id, version, now)).await
    }
    async fn cancel_stale_uploads(&self, before: Timestamp, now: Timestamp, limit: usize) -> StoreResult<u64> {
        self.run(|| uploads::cancel_stale(&self.pool, before, now, limit)).await
    }
    async fn open_uploads(&self) -> StoreResult<u64> {
        self.run(|| uploads::open(&self.pool)).await
    }

    async fn find_manifest(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> StoreResult<Lookup<Manifest>> {
        self.run(|| manifests::find(&self.pool, account, repository, reference)).await
    }
    async fn put_manifest(&self, put: PutManifest) -> Result<PutOutcome, PutManifestError> {
        self.run(|| manifests::put(&self.pool, &put)).await
    }
    async fn delete_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        referrers: Referrers,
        now: Timestamp,
    ) -> Result<Vec<Tag>, DeleteImageError> {
        self.run(|| images::delete(&self.pool, repository, digest, referrers, now)).await
    }
    async fn expire_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), DeleteImageError> {
        self.run(|| images::expire(&self.pool, repository, digest, &decision, now)).await
    }
    async fn delete_tag(
        &self,
        repository: RepositoryId,
        tag: &Tag,
        expected: Option<&Digest>,
        last: LastTag,
        now: Timestamp,
    ) -> Result<TagDeleted, DeleteImageError> {
        self.run(|| images::delete_tag(&self.pool, repository, tag, expected, last, now)).await
    }
    async fn delete_images(
        &self,
        repository: RepositoryId,
        deletions: &[ImageDeletion],
        now: Timestamp,
    ) -> StoreResult<Vec<Result<ImageDeleted, DeleteImageError>>> {
        self.run(|| image_batches::delete_all(&self.pool, repository, deletions, now)).await
    }
    async fn tags(&self, repository: RepositoryId, after: Option<&str>, limit: usize) -> StoreResult<Vec<Tag>> {
        self.run(|| listings::tags(&self.pool, repository, after, limit)).await
    }
    async fn images(
        &self,
        repository: RepositoryId,
        references: &[Reference],
    ) -> StoreResult<Vec<Option<TaggedImage>>> {
        self.run(|| listings::images(&self.pool, repository, references)).await
    }
    async fn list_images(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<TaggedImage>> {
        self.run(|| listings::list_images(&self.pool, repository, filter, after, limit)).await
    }
    async fn list_image_ids(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&ImageIdentifier>,
        limit: usize,
    ) -> StoreResult<Vec<ImageIdentifier>> {
        self.run(|| listings::list_image_ids(&self.pool, repository, filter, after, limit)).await
    }
    async fn index_edges(
        &self,
        repository: RepositoryId,
        after: Option<&(Digest, Digest)>,
        limit: usize,
    ) -> StoreResult<Vec<(Digest, Digest)>> {
        self.run(|| listings::index_edges(&self.pool, repository, after, limit)).await
    }
    async fn referrers(
        &self,
        repository: RepositoryId,
        subject: &Digest,
        filter: &ReferrerFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<Image>> {
        self.run(|| listings::referrers(&self.pool, repository, subject, filter, after, limit)).await
    }
    async fn set_storage_class(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        class: StorageClass,
        now: Timestamp,
    ) -> Result<ImageStatus, StorageClassError> {
        self.run(|| storage_class::set(&self.pool, repository, digest, class, now)).await
    }
    async fn archive_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), StorageClassError> {
        self.run(|| storage_class::archive(&self.pool, repository, digest, &decision, now)).await
    }
    async fn follow_subject(&self, repository: RepositoryId, referrer: &Digest, now: Timestamp) -> StoreResult<bool> {
        self.run(|| images::follow_subject(&self.pool, repository, referrer, now)).await
    }
    async fn record_pulls(&self, pulls: &[(ManifestId, Timestamp)]) -> StoreResult<()> {
        self.run(|| images::record_pulls(&self.pool, pulls)).await
    }

    async fn start_preview(
        &self,
        repository: RepositoryId,
        policy: &str,
        now: Timestamp,
        job: NewJob,
    ) -> StoreResult<bool> {
        self.run(|| previews::start(&self.pool, repository, policy, now, &job)).await
    }
    async fn preview(&self, repository: RepositoryId) -> StoreResult<Option<Preview>> {
        self.run(|| previews::latest(&self.pool, repository)).await
    }
    async fn add_preview_results(
        &self,
        run: PreviewRun,
        position: u64,
        results: Vec<PreviewResult>,
    ) -> StoreResult<bool> {
        self.run(|| previews::add_results(&self.pool, run, position, &results)).await
    }
    async fn finish_preview(&self, run: PreviewRun, state: PreviewState) -> StoreResult<()> {
        self.run(|| previews::finish(&self.pool, run, &state)).await
    }
    async fn preview_results(
        &self,
        repository: RepositoryId,
        tagged: Option<bool>,
        after: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, PreviewResult)>> {
        self.run(|| previews::results(&self.pool, repository, tagged, after, limit)).await
    }
    async fn preview_results_of(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
    ) -> StoreResult<Vec<(u64, PreviewResult)>> {
        self.run(|| previews::results_of(&self.pool, repository, digests)).await
    }
    async fn prune_preview_results(&self, run: PreviewRun, limit: usize) -> StoreResult<bool> {
        self.run(|| previews::prune_results(&self.pool, run, limit)).await
    }

    async fn enqueue_job(&self, job: NewJob) -> StoreResult<()> {
        self.run(|| jobs::enqueue_one(&self.pool, &job)).await
    }
    async fn claim_job(&self, kinds: &[&str], now: Timestamp, lease: Duration) -> StoreResult<Option<Job>> {
        self.run(|| jobs::claim(&self.pool, kinds, now, lease)).await
    }
    async fn heartbeat_job(&self, id: i64, attempts: u32, lease: Duration) -> StoreResult<bool> {
        self.run(|| jobs::heartbeat(&self.pool, id, attempts, lease)).await
    }
    async fn end_job(&self, id: i64, attempts: u32, end: JobEnd) -> StoreResult<()> {
        self.run(|| jobs::end(&self.pool, id, attempts, &end)).await
    }
    async fn job_counts(&self, kinds: &[&str]) -> StoreResult<Vec<JobCount>> {
        self.run(|| jobs::counts(&self.pool, kinds)).await
    }
    async fn list_jobs(&self, filter: &JobFilter, after: Option<i64>, limit: usize) -> StoreResult<Vec<StoredJob>> {
        self.run(|| jobs::list(&self.pool, filter, after, limit)).await
    }
    async fn requeue_jobs(&self, jobs: &Requeue, now: Timestamp) -> StoreResult<u64> {
        self.run(|| jobs::requeue(&self.pool, jobs, now)).await
    }
    async fn record_event(&self, event: Event) -> StoreResult<()> {
        self.run(|| jobs::record(&self.pool, std::slice::from_ref(&event))).await
    }
    async fn prune_events(&self, before: Timestamp, keep: u64, limit: usize) -> StoreResult<u64> {
        self.run(|| jobs::prune_events(&self.pool, before, keep, limit)).await
    }
    async fn events(&self, account: &AccountId, limit: usize) -> StoreResult<Vec<Event>> {
        self.run(|| jobs::events(&self.pool, account, limit)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_errors_nor_debug_tell_the_password() {
        for bad in [
            "mysql://me:s3cret@db/registry",
            "postgres://me:s3cret@db:port/registry",
            "postgres://me:s3cret@db/registry?sslmode=s0me",
            "postgres://me:s3cret%ff@db/registry",
            "postgres://me:s3cret",
        ] {
            let error = connect_options(bad).map(|options| place(&options));
            let told = format!("{error:?}");
            assert!(!told.contains("s3cret"), "{told}");
        }
        let options = connect_options("postgres://me:s3cret@db:6432/registry?sslmode=require").unwrap();
        assert_eq!(place(&options), "db:6432/registry");
        let socket = connect_options("postgres://me@%2Frun%2Fpg/registry").unwrap();
        assert_eq!(place(&socket), "/run/pg/registry");
    }
}
