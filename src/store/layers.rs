//! Layers: the blobs that repositories link to, configs included (ECR's word for both). The bytes
//! themselves are in [`super::blobs`].

use jiff::Timestamp;

use super::repositories::RepositoryId;
use super::{BlobKey, Generation, Lookup, StoreResult};
use wharfage_domain::names::{AccountId, Digest, RepositoryName};

/// Stores which blobs a repository has. A blob is one row per account, digest and encryption, which
/// the repositories that have it link to.
#[async_trait::async_trait]
pub trait LayerStore: Send + Sync {
    /// Finds the live blob of a digest in a repository: the hot path of a pull, one round trip. A
    /// blob that only archived images have is missing, unless it was pushed again since.
    async fn find_blob(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StoreResult<Lookup<Blob>>;
    /// Finds layers, in the order given; `None` for each that the repository does not have.
    async fn find_layers(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
    ) -> StoreResult<Vec<Option<Layer>>>;
    /// Lists some repositories that have this blob, live and intact; the one that has had it
    /// longest first. A mount that names no source may use any of them.
    async fn list_blob_sources(
        &self,
        account: &AccountId,
        digest: &Digest,
        limit: usize,
    ) -> StoreResult<Vec<(RepositoryId, RepositoryName)>>;
    /// Links a blob of `from` into `to`. With `referenced_only`, only if a manifest of `from`
    /// references it (ECR's rule). A blob that `to` already has counts as mounted, and as pushed
    /// again. Repositories of two registries do not share blobs. A blob that only archived images
    /// of `from` have is not mounted.
    async fn mount_blob(
        &self,
        from: RepositoryId,
        to: RepositoryId,
        digest: &Digest,
        referenced_only: bool,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> StoreResult<MountOutcome>;
    /// Removes a blob from a repository, unless a manifest needs it.
    async fn unlink_blob(
        &self,
        repository: RepositoryId,
        digest: &Digest,
    ) -> StoreResult<UnlinkOutcome>;
    /// Extends the leases of blobs to `until`, and never shortens one. A blob that was reported as
    /// present has to stay so for a while.
    async fn extend_leases(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
        until: Timestamp,
    ) -> StoreResult<()>;
    /// Marks the bytes at `generation` as damaged since `at`, or as intact. A damaged blob is
    /// neither mounted nor used by new manifests, and the next commit of its digest replaces its
    /// bytes.
    async fn set_blob_damaged(
        &self,
        generation: Generation,
        at: Option<Timestamp>,
    ) -> StoreResult<()>;
    /// Returns those of the generations that hold the bytes of a live blob.
    async fn find_live_generations(
        &self,
        generations: &[Generation],
    ) -> StoreResult<Vec<Generation>>;
}

/// A live blob of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Location and size of the bytes.
    pub bytes: BlobKey,
    /// A read has found the bytes missing or of another size.
    pub damaged: bool,
}

/// A blob as BatchCheckLayerAvailability and GetDownloadUrlForLayer need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub blob: Blob,
    /// Media type that a manifest gives it, if any does.
    pub media_type: Option<String>,
    /// Some image of the repository references it.
    pub referenced: bool,
    /// Images reference it, all of them are archived, and the layer has not been pushed since.
    pub archived: bool,
}

/// The result of deleting a blob through `/v2/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnlinkOutcome {
    /// The repository no longer has it.
    Unlinked,
    /// The repository did not have it.
    NotFound,
    /// A manifest needs it.
    InUse,
}

/// The result of mounting a blob from another repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountOutcome {
    /// The destination has it now, or had it before.
    Mounted,
    /// The source repository does not have it in a committed manifest, the two repositories are
    /// encrypted differently, or it is damaged.
    NotMountable,
}
