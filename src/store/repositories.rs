//! Repositories as the store keeps them, and what changes about them. Plain data and pure decisions.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::names::{AccountId, RepositoryName};
pub use crate::tag_mutability::{Mutability, TagMutability};

/// A repository's row id: what every other table refers to it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RepositoryId(pub i64);

/// ECR's `encryptionConfiguration`. KMS types are refused at the door until keys exist; the columns are there already.
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

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Its row id.
    pub id: RepositoryId,
    /// The registry that it is in.
    pub account: AccountId,
    /// Its name, unique in the registry.
    pub name: RepositoryName,
    /// When it was created.
    pub created_at: Timestamp,
    /// Which tags may move.
    pub tag_mutability: TagMutability,
    /// `imageScanningConfiguration.scanOnPush`.
    pub scan_on_push: bool,
    /// How its bytes are encrypted; fixed at creation.
    pub encryption: Encryption,
    /// The repository policy's text as it was put.
    pub policy: Option<String>,
    /// The lifecycle policy's text as it was put.
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
    /// The registry that it will be in.
    pub account: AccountId,
    /// Its name.
    pub name: RepositoryName,
    /// Now.
    pub created_at: Timestamp,
    /// Which tags may move.
    pub tag_mutability: TagMutability,
    /// Scan on push.
    pub scan_on_push: bool,
    /// How its bytes are encrypted.
    pub encryption: Encryption,
    /// Resource tags; unique keys.
    pub tags: Vec<ResourceTag>,
}

/// A resource tag (ECR's `Tag`, which has nothing to do with image tags).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceTag {
    /// Its key, 1 to 128 characters.
    pub key: String,
    /// Its value, 0 to 256 characters.
    pub value: String,
}

/// Why a repository was not created.
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

/// Why a repository was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteRepositoryError {
    /// It is not there (any more).
    #[error("the repository does not exist")]
    NotFound,
    /// It has images and the caller did not force.
    #[error("the repository has images")]
    NotEmpty,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why resource tags were not written.
#[derive(Debug, thiserror::Error)]
pub enum TagResourceError {
    /// The repository is not there (any more).
    #[error("the repository does not exist")]
    NotFound,
    /// It would have more than the limit.
    #[error("the repository would have more than {0} tags")]
    TooMany(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One change of a repository's settings; the others stay.
#[derive(Debug, Clone)]
pub enum RepositoryChange {
    /// PutImageTagMutability.
    TagMutability(TagMutability),
    /// PutImageScanningConfiguration.
    ScanOnPush(bool),
    /// SetRepositoryPolicy, or with `None` DeleteRepositoryPolicy.
    Policy(Option<String>),
    /// PutLifecyclePolicy, or with `None` DeleteLifecyclePolicy; both forget when the policy was last evaluated. A policy that
    /// is put is due at once.
    LifecyclePolicy(Option<String>),
    /// The lifecycle job ran.
    LifecycleEvaluated {
        /// When.
        at: Timestamp,
        /// When the policy is due again.
        due_at: Timestamp,
    },
}
