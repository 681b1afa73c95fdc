//! Repositories: their settings, their resource tags, their deletion, and when their lifecycle
//! policies are due.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::jobs::NewJob;
use super::{StoreError, StoreResult};
use wharfage_domain::names::{AccountId, RepositoryName};
pub use wharfage_domain::tag_mutability::{Mutability, TagMutability};

/// Stores repositories.
#[async_trait::async_trait]
pub trait RepositoryStore: Send + Sync {
    /// Creates a repository, unless its name is taken or the registry has `max` already. Well below
    /// `max`, repositories that are being created at the same time are not counted; near it they
    /// are.
    async fn create_repository(
        &self,
        new: NewRepository,
        max: u64,
    ) -> Result<Repository, CreateRepositoryError>;
    /// Finds a repository by its name.
    async fn find_repository(
        &self,
        account: &AccountId,
        name: &RepositoryName,
    ) -> StoreResult<Option<Repository>>;
    /// Finds a repository by its row id.
    async fn find_repository_by_id(&self, id: RepositoryId) -> StoreResult<Option<Repository>>;
    /// Lists repositories in the order of their names.
    async fn list_repositories(
        &self,
        account: &AccountId,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<Repository>>;
    /// Changes one setting; false if the repository does not exist. With `LifecyclePolicy(Some(_))`
    /// the `jobs` are enqueued in the same transaction.
    async fn change_repository(
        &self,
        id: RepositoryId,
        change: RepositoryChange,
        jobs: Vec<NewJob>,
    ) -> StoreResult<bool>;
    /// Deletes a repository with everything in it; without `force` only if it has no image. From
    /// then on no lookup finds it or its contents, its name is free and its uploads are gone. A
    /// `delete-repository` job deletes the rows.
    async fn delete_repository(
        &self,
        id: RepositoryId,
        force: bool,
        now: Timestamp,
    ) -> Result<(), DeleteRepositoryError>;
    /// Deletes at most `limit` rows of one kind that a deleted repository still has, in one short
    /// transaction; true when none is left, its own row included. Hands the generations of its
    /// uploads to `delete-generation` jobs. Removes the links to its blobs, which await the
    /// collector.
    async fn empty_repository(
        &self,
        id: RepositoryId,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// Enqueues the lifecycle jobs that are due, of every account, the longest overdue first, and
    /// sets when each is due again. A policy whose job is running is not enqueued. Returns how many
    /// policies were due; replicas that call this at the same time share them.
    async fn schedule_lifecycle(&self, schedule: LifecycleSchedule) -> StoreResult<usize>;
    /// Lists a repository's resource tags in the order of their keys.
    async fn list_resource_tags(&self, id: RepositoryId) -> StoreResult<Vec<ResourceTag>>;
    /// Adds resource tags, and replaces the values of keys that exist. All or nothing.
    async fn tag_resource(
        &self,
        id: RepositoryId,
        tags: Vec<ResourceTag>,
        max: usize,
    ) -> Result<(), TagResourceError>;
    /// Removes resource tags; keys that do not exist are ignored.
    async fn untag_resource(&self, id: RepositoryId, keys: &[String]) -> StoreResult<()>;
}

/// A repository's row id, by which every other table refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RepositoryId(pub i64);

/// ECR's `encryptionConfiguration`. Both APIs refuse KMS types until keys exist; the columns exist
/// already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// `AES256`, `KMS` or `KMS_DSSE`.
    pub kind: String,
    /// The key's full ARN, with the KMS types.
    pub kms_key: Option<String>,
}

impl Default for Encryption {
    fn default() -> Self {
        Self { kind: "AES256".into(), kms_key: None }
    }
}

/// A repository with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Row id.
    pub id: RepositoryId,
    /// Registry that holds it.
    pub account: AccountId,
    /// Name, unique in the registry.
    pub name: RepositoryName,
    /// Creation time.
    pub created_at: Timestamp,
    /// The tags that may be moved to another image.
    pub tag_mutability: TagMutability,
    /// `imageScanningConfiguration.scanOnPush`.
    pub scan_on_push: bool,
    /// Encryption of its blobs, fixed at creation.
    pub encryption: Encryption,
    /// Text of the repository policy, byte for byte as it was put.
    pub policy: Option<String>,
    /// Text of the lifecycle policy, byte for byte as it was put.
    pub lifecycle_policy: Option<String>,
    /// When the lifecycle job last evaluated the policy.
    pub lifecycle_evaluated_at: Option<Timestamp>,
    /// Grows with every change of the repository or of its resource tags.
    pub version: u64,
    /// Grows with every change of the repository policy.
    pub policy_version: u64,
}

/// A repository to be created.
#[derive(Debug, Clone)]
pub struct NewRepository {
    /// Registry to create it in.
    pub account: AccountId,
    /// Name.
    pub name: RepositoryName,
    /// Current time.
    pub created_at: Timestamp,
    /// The tags that may be moved to another image.
    pub tag_mutability: TagMutability,
    /// `imageScanningConfiguration.scanOnPush`.
    pub scan_on_push: bool,
    /// Encryption of its blobs.
    pub encryption: Encryption,
    /// Resource tags with unique keys.
    pub tags: Vec<ResourceTag>,
}

/// A resource tag (ECR's `Tag`, unrelated to image tags).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceTag {
    /// Key, 1 to 128 characters.
    pub key: String,
    /// Value, 0 to 256 characters.
    pub value: String,
}

/// The reason why a repository was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateRepositoryError {
    /// The name is taken.
    #[error("the repository exists")]
    AlreadyExists,
    /// The registry has as many as it may have.
    #[error("the registry has its {0} repositories")]
    LimitExceeded(u64),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The reason why a repository was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteRepositoryError {
    /// It does not exist.
    #[error("the repository does not exist")]
    NotFound,
    /// It has images and the caller did not force the deletion.
    #[error("the repository has images")]
    NotEmpty,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The reason why resource tags were not written.
#[derive(Debug, thiserror::Error)]
pub enum TagResourceError {
    /// The repository does not exist.
    #[error("the repository does not exist")]
    NotFound,
    /// The repository would have more tags than the limit.
    #[error("the repository would have more than {0} tags")]
    TooMany(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One change of a repository's settings; the others keep their values.
#[derive(Debug, Clone)]
pub enum RepositoryChange {
    /// PutImageTagMutability.
    TagMutability(TagMutability),
    /// PutImageScanningConfiguration.
    ScanOnPush(bool),
    /// SetRepositoryPolicy, or with `None` DeleteRepositoryPolicy.
    Policy(Option<String>),
    /// PutLifecyclePolicy, or with `None` DeleteLifecyclePolicy. Both clear the time of the last
    /// evaluation. A policy that is put is due at once.
    LifecyclePolicy(Option<String>),
    /// The lifecycle job ran.
    LifecycleEvaluated {
        /// Time of the evaluation.
        at: Timestamp,
        /// When the policy is due again.
        due_at: Timestamp,
    },
}

/// The arguments of [`RepositoryStore::schedule_lifecycle`].
#[derive(Debug, Clone)]
pub struct LifecycleSchedule {
    /// Policies that are due at this time are enqueued.
    pub now: Timestamp,
    /// Earliest and latest next due time. Each policy gets a random time between them, so that
    /// policies spread over the interval.
    pub next_due: (Timestamp, Timestamp),
    /// Maximum number of policies.
    pub limit: usize,
}
