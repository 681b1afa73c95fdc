//! The metadata contract: every method is one transaction, and what it acknowledges is durable.
//!
//! Times come in as arguments: an implementation reads no clock, with one exception. The lease of a job is a duration, and its
//! begin and end are by the database's clock: replicas whose clocks differ must agree on who holds a job. Lists are keyset
//! pages: they come in the order of their key and start behind `after`, at most `limit` long.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

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
use super::{Generation, Lookup, StoreResult};
use crate::names::{AccountId, Digest, Reference, RepositoryName, Tag};

/// What the registry knows, in SQLite or PostgreSQL.
#[async_trait::async_trait]
pub trait Metadata: Send + Sync + std::fmt::Debug {
    /// Whether the database answers and takes writes, for readiness: waits for nobody's work.
    ///
    /// # Errors
    /// `Full` when all but what takes space works.
    async fn ready(&self) -> StoreResult<()>;

    // Registries.

    /// A registry's settings: the defaults when nothing was ever put.
    async fn registry_settings(&self, account: &AccountId) -> StoreResult<RegistrySettings>;
    /// Changes one of them, and returns what they were.
    async fn change_registry(&self, account: &AccountId, change: RegistryChange) -> StoreResult<RegistrySettings>;

    /// The account settings that were ever put; the caller knows the defaults.
    async fn account_settings(&self, account: &AccountId) -> StoreResult<BTreeMap<String, String>>;
    /// Puts one account setting.
    async fn put_account_setting(&self, account: &AccountId, name: &str, value: &str) -> StoreResult<()>;

    // Repositories.

    /// Creates a repository, unless its name is taken or the registry has `max` already. Well below `max` others that are being
    /// created at once are not counted; near it they are.
    async fn create_repository(&self, new: NewRepository, max: u64) -> Result<Repository, CreateRepositoryError>;
    /// The repository of this name.
    async fn repository(&self, account: &AccountId, name: &RepositoryName) -> StoreResult<Option<Repository>>;
    /// Repositories in the order of their names.
    async fn repositories(
        &self,
        account: &AccountId,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<Repository>>;
    /// The repository with this row id.
    async fn repository_by_id(&self, id: RepositoryId) -> StoreResult<Option<Repository>>;
    /// Enqueues the lifecycle jobs that are due, of every account, the longest overdue first, and says when each is due again: one
    /// transaction. A policy whose job runs just now is not enqueued. Returns how many policies were due; several replicas
    /// that do this at once share them.
    async fn schedule_lifecycle(&self, turn: LifecycleTurn) -> StoreResult<usize>;
    /// Changes one setting; false when the repository is gone. With `LifecyclePolicy(Some(_))` the `jobs` are enqueued in
    /// the same transaction.
    async fn change_repository(
        &self,
        id: RepositoryId,
        change: RepositoryChange,
        jobs: Vec<NewJob>,
    ) -> StoreResult<bool>;
    /// Deletes a repository with everything in it; without `force` only if it has no image. Nobody sees it or what is in it any
    /// more, its name is free, and its uploads are dead; a `delete-repository` job empties it.
    async fn delete_repository(
        &self,
        id: RepositoryId,
        force: bool,
        now: Timestamp,
    ) -> Result<(), DeleteRepositoryError>;
    /// Deletes at most `limit` rows of one sort of what is left in a repository that was deleted, in one short transaction; true
    /// when nothing is left, its own row neither. Its uploads' generations are handed to `delete-generation` jobs, its blobs' links
    /// go and the blobs await the collector.
    async fn empty_repository(&self, id: RepositoryId, limit: usize, now: Timestamp) -> StoreResult<bool>;
    /// Folds at most `limit` changes of usage, the oldest first, into what they change, and returns how many: otherwise counting
    /// would cost more with every change. Zero where the database counts in place.
    async fn fold_usage(&self, limit: usize) -> StoreResult<u64>;
    /// How many images a repository has, and the sum of their `imageSizeInBytes`.
    async fn repository_usage(&self, id: RepositoryId) -> StoreResult<(u64, u64)>;

    /// A repository's resource tags, in the order of their keys.
    async fn resource_tags(&self, id: RepositoryId) -> StoreResult<Vec<ResourceTag>>;
    /// Merges resource tags: an existing key takes the new value. All or nothing.
    async fn tag_resource(&self, id: RepositoryId, tags: Vec<ResourceTag>, max: usize) -> Result<(), TagResourceError>;
    /// Removes resource tags; keys that are not there are ignored.
    async fn untag_resource(&self, id: RepositoryId, keys: &[String]) -> StoreResult<()>;

    // Blobs.

    /// The live blob of this digest in the repository of this name: the hot path of a pull, one round trip. A blob that
    /// only archived images have is missing, unless it was pushed again since.
    async fn find_blob(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StoreResult<Lookup<Blob>>;
    /// What is known of layers: see [`Layer`]; `None` where there is none. In the order given.
    async fn layers(&self, repository: RepositoryId, digests: &[Digest]) -> StoreResult<Vec<Option<Layer>>>;
    /// Some repositories that have this blob live, the one that has had it longest first: where a mount that names no source may
    /// take it.
    async fn blob_sources(
        &self,
        account: &AccountId,
        digest: &Digest,
        limit: usize,
    ) -> StoreResult<Vec<(RepositoryId, RepositoryName)>>;
    /// Links a blob of `from` into `to`. With `referenced_only`, only if a manifest of `from` references it (ECR's rule).
    /// What `to` has already counts as mounted, and as pushed again; repositories of two registries do not share blobs, and
    /// what only archived images of `from` have is not mounted.
    async fn mount_blob(
        &self,
        from: RepositoryId,
        to: RepositoryId,
        digest: &Digest,
        referenced_only: bool,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> StoreResult<MountBlob>;
    /// Takes a blob out of a repository, unless a manifest needs it.
    async fn unlink_blob(&self, repository: RepositoryId, digest: &Digest) -> StoreResult<UnlinkBlob>;
    /// Moves the blobs' leases to `until` if that is later: they were reported as present, so it must stay true for a while.
    async fn extend_leases(&self, repository: RepositoryId, digests: &[Digest], until: Timestamp) -> StoreResult<()>;

    /// Remembers that the bytes at `generation` are damaged (with the time), or that they are not. Of a blob that is damaged
    /// mounts and manifests make no new use, and the next commit of its digest replaces its bytes.
    async fn set_blob_damaged(&self, generation: Generation, at: Option<Timestamp>) -> StoreResult<()>;
    /// Those of these generations that hold the bytes of a live blob.
    async fn live_generations(&self, generations: &[Generation]) -> StoreResult<Vec<Generation>>;

    // Uploads. A claim ends by the store's clock: the database's where replicas share it, `now` where one process has it.

    /// Stores a new session, which is claimed for so long if `claim` says so; false when the repository is gone.
    async fn create_upload(&self, upload: Upload, claim: Option<Duration>) -> StoreResult<bool>;
    /// The session, if it belongs to this repository.
    async fn upload(&self, repository: RepositoryId, id: Uuid) -> StoreResult<Option<Upload>>;
    /// Claims the session for `lease`, if nobody has claimed it or acknowledged bytes of it since it was `read` (its version
    /// and its generation tell) and nobody's claim holds. Taking over a claim that did not end cleanly gives it the generation
    /// `fresh`, and hands the one before to a `delete-generation` job.
    async fn claim_upload(
        &self,
        read: &Upload,
        fresh: Generation,
        now: Timestamp,
        lease: Duration,
    ) -> Result<UploadClaim, UploadError>;
    /// Prolongs a claim that nobody has taken over, even when it has run out.
    async fn prolong_upload(&self, id: Uuid, version: i64, now: Timestamp, lease: Duration) -> Result<(), UploadError>;
    /// Ends a claim, if it is still the last one; `clean` says that its writer has ended by a checkpoint or never began.
    async fn release_upload(&self, id: Uuid, version: i64, clean: bool) -> StoreResult<()>;
    /// Replaces the session's progress if the claim is still the last one.
    async fn advance_upload(&self, advance: AdvanceUpload) -> Result<(), UploadError>;
    /// Turns the session into a live blob of its repository, if the claim is still the last one. The digest's live blob, if
    /// the account has one with the same encryption and it is intact, is linked instead; if it is damaged, it gets the new
    /// bytes. What is not needed then is handed to `delete-generation` jobs.
    async fn commit_upload(&self, commit: CommitUpload) -> Result<Committed, UploadError>;
    /// Removes the session and hands its bytes to a `delete-generation` job; false when it was not there. With a `version` it
    /// is the claim's holder who asks, of whom nothing is on its way any more; false also when another claim came since.
    /// Anybody else's job runs when the claim can write no more.
    async fn cancel_upload(
        &self,
        repository: RepositoryId,
        id: Uuid,
        version: Option<i64>,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// Removes sessions that nobody claims, like [`Metadata::cancel_upload`]: those that no chunk came for since `before`, and
    /// those that no client knows of and whose claim ended some minutes ago. How many, at most `limit` of each.
    async fn cancel_stale_uploads(&self, before: Timestamp, now: Timestamp, limit: usize) -> StoreResult<u64>;
    /// How many sessions are open, for the metrics; more than 10,000 are counted as that many.
    async fn open_uploads(&self) -> StoreResult<u64>;

    // Manifests and tags.

    /// The manifest that a reference names, archived ones included: the hot path of a pull, one round trip.
    async fn find_manifest(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> StoreResult<Lookup<Manifest>>;
    /// Stores a manifest: see [`PutManifest`]. A known digest keeps its `pushed_at` and takes the push's media type; an
    /// archived one becomes active again, and so does everything archived that the manifest holds, at any depth. Also
    /// writes PUSH events, and UPDATE_STORAGE_CLASS events of children. When nothing changes ([`PutOutcome::unchanged`])
    /// neither events nor jobs are written; only the image's revision grows.
    async fn put_manifest(&self, put: PutManifest) -> Result<PutOutcome, PutManifestError>;
    /// Deletes an image with all its tags, and returns those, sorted. Refused while a stored index holds it. Also writes
    /// DELETE events, as [`Metadata::delete_tag`] does.
    async fn delete_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        referrers: Referrers,
        now: Timestamp,
    ) -> Result<Vec<Tag>, DeleteImageError>;
    /// Deletes an image like [`Metadata::delete_image`], its referrers following, unless something that the decision rests
    /// on no longer holds ([`DeleteImageError::Stale`]).
    async fn expire_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), DeleteImageError>;
    /// Deletes a tag; `expected` is the digest that it must point at, if the caller said one. If it was the last tag and
    /// takes the image along, the rules of [`Metadata::delete_image`] hold, and referrers follow.
    async fn delete_tag(
        &self,
        repository: RepositoryId,
        tag: &Tag,
        expected: Option<&Digest>,
        last: LastTag,
        now: Timestamp,
    ) -> Result<TagDeleted, DeleteImageError>;
    /// Deletes images and tags of a repository in one transaction, as [`Metadata::delete_image`] and [`Metadata::delete_tag`]
    /// would one after the other: what is refused leaves the others as they are. Last tags take their images along, and
    /// referrers follow.
    async fn delete_images(
        &self,
        repository: RepositoryId,
        deletions: &[ImageDeletion],
        now: Timestamp,
    ) -> StoreResult<Vec<Result<ImageDeleted, DeleteImageError>>>;
    /// Tags in byte order; tags of archived images are left out, and those that are longer than `/v2/` can name
    /// ([`Tag::MAX_OCI`]).
    async fn tags(&self, repository: RepositoryId, after: Option<&str>, limit: usize) -> StoreResult<Vec<Tag>>;
    /// The images that these references name; `None` where there is none. In the order given.
    async fn images(&self, repository: RepositoryId, references: &[Reference])
    -> StoreResult<Vec<Option<TaggedImage>>>;
    /// Images with their tags, in the order of their digests.
    async fn list_images(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<TaggedImage>>;
    /// ListImages' entries, in the order of (digest, tag), an untagged image's entry having no tag.
    async fn list_image_ids(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&ImageIdentifier>,
        limit: usize,
    ) -> StoreResult<Vec<ImageIdentifier>>;
    /// Every edge from a stored index to a stored child, as (parent, child), in that order.
    async fn index_edges(
        &self,
        repository: RepositoryId,
        after: Option<&(Digest, Digest)>,
        limit: usize,
    ) -> StoreResult<Vec<(Digest, Digest)>>;
    /// Manifests whose subject is `subject`, in the order of their digests.
    async fn referrers(
        &self,
        repository: RepositoryId,
        subject: &Digest,
        filter: &ReferrerFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<Image>>;
    /// Moves an image between storage classes and returns its new status; a restored image is active at once, and so is
    /// everything archived that it holds. To archive it, no active index may hold it. Also writes UPDATE_STORAGE_CLASS
    /// events, and jobs that have referrers follow.
    async fn set_storage_class(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        class: StorageClass,
        now: Timestamp,
    ) -> Result<ImageStatus, StorageClassError>;
    /// Archives an image like [`Metadata::set_storage_class`], unless something that the decision rests on no longer holds
    /// ([`StorageClassError::Stale`]).
    async fn archive_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), StorageClassError>;
    /// Makes a referrer what its subject is at this moment: gone, archived or active. True if that changed it: one that is
    /// gone, has no subject or is held by an index stays as it is. What refers to it follows in turn.
    async fn follow_subject(&self, repository: RepositoryId, referrer: &Digest, now: Timestamp) -> StoreResult<bool>;
    /// Records pulls, in bulk; an earlier time never replaces a later one.
    async fn record_pulls(&self, pulls: &[(ManifestId, Timestamp)]) -> StoreResult<()>;

    // Lifecycle previews.

    /// Starts a preview and enqueues its job; false when one is in progress already.
    async fn start_preview(
        &self,
        repository: RepositoryId,
        policy: &str,
        now: Timestamp,
        job: NewJob,
    ) -> StoreResult<bool>;
    /// The latest preview.
    async fn preview(&self, repository: RepositoryId) -> StoreResult<Option<Preview>>;
    /// Keeps results that a run has found, the first at `position`; false when its preview is not in progress. Nobody sees them
    /// before the preview has ended.
    async fn add_preview_results(
        &self,
        run: PreviewRun,
        position: u64,
        results: Vec<PreviewResult>,
    ) -> StoreResult<bool>;
    /// Ends the preview of a run, whose results are the preview's from then on. The end of one that is not in progress is
    /// ignored.
    async fn finish_preview(&self, run: PreviewRun, state: PreviewState) -> StoreResult<()>;
    /// The latest preview's results behind position `after`, in their order, with their positions: of images that had tags, of
    /// those that had none, or all.
    async fn preview_results(
        &self,
        repository: RepositoryId,
        tagged: Option<bool>,
        after: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, PreviewResult)>>;
    /// The latest preview's results of these images, in their order, with their positions.
    async fn preview_results_of(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
    ) -> StoreResult<Vec<(u64, PreviewResult)>>;
    /// Deletes results that other runs have found than this one, which has ended the latest preview, at most `limit`; true when
    /// none is left, or another preview has been started.
    async fn prune_preview_results(&self, run: PreviewRun, limit: usize) -> StoreResult<bool>;

    // Jobs and events.

    /// Enqueues a job: see [`NewJob`] for how it coalesces.
    async fn enqueue_job(&self, job: NewJob) -> StoreResult<()>;
    /// Claims a job of these kinds that is due by `now` and that nobody holds, for `lease` by the database's clock: one whose
    /// lease ran out, else the one that is due longest. No two jobs of the same kind and key run at once. The queue of one kind
    /// costs nothing where only others are asked for.
    async fn claim_job(&self, kinds: &[&str], now: Timestamp, lease: Duration) -> StoreResult<Option<Job>>;
    /// Prolongs a claim to `lease` from now by the database's clock; false when it was lost.
    async fn heartbeat_job(&self, id: i64, attempts: u32, lease: Duration) -> StoreResult<bool>;
    /// Ends a claim; ignored when it was lost (`attempts` tells). A job that is done takes along a dead one of its kind and key,
    /// whose work it did; a dead one replaces an older dead one.
    async fn end_job(&self, id: i64, attempts: u32, end: JobEnd) -> StoreResult<()>;
    /// Counts the jobs of these kinds by state, and the dead ones of every kind.
    async fn job_counts(&self, kinds: &[&str]) -> StoreResult<Vec<JobCount>>;
    /// Jobs in the order of their row ids.
    async fn list_jobs(&self, filter: &JobFilter, after: Option<i64>, limit: usize) -> StoreResult<Vec<StoredJob>>;
    /// Makes jobs wait and due by `now`, their attempts forgotten, and returns how many. One that waits already of the same kind
    /// and key takes the place of a dead one.
    async fn requeue_jobs(&self, jobs: &Requeue, now: Timestamp) -> StoreResult<u64>;
    /// Keeps an event.
    async fn record_event(&self, event: Event) -> StoreResult<()>;
    /// Deletes events that are older than `before`, and those that are not among the last `keep`: at most `limit` of the oldest.
    /// Returns how many went.
    async fn prune_events(&self, before: Timestamp, keep: u64, limit: usize) -> StoreResult<u64>;
    /// The newest events of a registry, newest first.
    async fn events(&self, account: &AccountId, limit: usize) -> StoreResult<Vec<Event>>;
}
