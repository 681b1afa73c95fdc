//! Manifests: pulling and pushing them.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;

use super::jobs::NewJob;
use super::repositories::{RepositoryId, TagMutability};
use super::{Lookup, StoreError, StoreResult};
pub use wharfage_domain::lifecycle::ImageStatus;
use wharfage_domain::names::{AccountId, Digest, Reference, RepositoryName, Tag};

/// Stores manifests with their payloads.
#[async_trait::async_trait]
pub trait ManifestStore: Send + Sync {
    /// Finds the manifest of a reference, archived ones included: the hot path of a pull, one round
    /// trip.
    async fn find_manifest(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> StoreResult<Lookup<Manifest>>;
    /// Stores a manifest. An existing digest keeps its `pushed_at` and takes the push's media type.
    /// An archived one becomes active again, and so does every archived manifest below it, at any
    /// depth. Also writes PUSH events, and UPDATE_STORAGE_CLASS events of children. If nothing
    /// changes ([`PutOutcome::unchanged`]), neither events nor jobs are written; only the image's
    /// revision grows.
    async fn put_manifest(&self, put: PutManifest) -> Result<PutOutcome, PutManifestError>;
}

/// A manifest's row id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestId(pub i64);

/// A manifest with its payload, as a pull needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Row id.
    pub id: ManifestId,
    /// Digest of `payload`.
    pub digest: Digest,
    /// Media type.
    pub media_type: String,
    /// Exact bytes.
    pub payload: Bytes,
    /// Storage class; archived images cannot be pulled.
    pub status: ImageStatus,
    /// When a pull was last recorded.
    pub last_pulled_at: Option<Timestamp>,
}

/// A manifest to be stored, with the references that the caller has read from its payload.
#[derive(Debug, Clone)]
pub struct NewManifest {
    /// Digest of `payload`.
    pub digest: Digest,
    /// Media type.
    pub media_type: String,
    /// Exact bytes, at most 4 MiB.
    pub payload: Bytes,
    /// `artifactType`, if the manifest has one.
    pub artifact_type: Option<String>,
    /// Media type of the config descriptor, for image manifests.
    pub config_media_type: Option<String>,
    /// Digest of `subject`.
    pub subject: Option<Digest>,
    /// Annotations of a manifest that has a subject; empty otherwise.
    pub annotations: BTreeMap<String, String>,
    /// The config and every layer that is not foreign; the repository must have each. Unique
    /// digests.
    pub blobs: Vec<BlobReference>,
    /// Children of an index; the repository must have each. Unique digests.
    pub children: Vec<ChildReference>,
}

/// A blob that a new manifest needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobReference {
    /// Digest of the blob.
    pub digest: Digest,
    /// Media type that the manifest gives it.
    pub media_type: String,
    /// Size in bytes that the manifest states.
    pub size: u64,
}

/// A manifest that a new index holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildReference {
    /// Digest of the child.
    pub digest: Digest,
    /// Size in bytes that the index states.
    pub size: u64,
}

/// A reference whose stated size differs from the stored one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeMismatch {
    /// Digest of the blob or child.
    pub digest: Digest,
    /// Size in bytes that the manifest states.
    pub stated: u64,
    /// Stored size in bytes.
    pub actual: u64,
}

/// A manifest PUT. It is one transaction: it checks references under lock, and writes edges, tags,
/// events and jobs.
#[derive(Debug, Clone)]
pub struct PutManifest {
    /// Repository to store it in.
    pub repository: RepositoryId,
    /// The manifest.
    pub manifest: NewManifest,
    /// Tags to point at it; may be empty.
    pub tags: Vec<Tag>,
    /// Current time.
    pub now: Timestamp,
    /// Maximum number of images in the repository.
    pub max_images: u64,
    /// Maximum number of tags on one image.
    pub max_tags: u64,
    /// Follow-up jobs, written in the same transaction (outbox).
    pub jobs: Vec<NewJob>,
}

/// The effect of a PUT on one tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagEffect {
    /// The tag is new.
    Created,
    /// The tag already pointed at this digest.
    Unchanged,
    /// The tag moved from another digest.
    Moved,
    /// The tag exists and is immutable.
    Refused,
}

/// Decides the effect of putting `tag` on the digest `new` when it points at `current` now. An
/// immutable tag is refused even for the same digest; each protocol has its own response to
/// [`PutManifestError::TagAlreadyExists`].
pub(crate) fn tag_effect(
    mutability: &TagMutability,
    tag: &Tag,
    current: Option<&Digest>,
    new: &Digest,
) -> TagEffect {
    match current {
        None => TagEffect::Created,
        Some(_) if !mutability.allows_moving(tag) => TagEffect::Refused,
        Some(current) if current == new => TagEffect::Unchanged,
        Some(_) => TagEffect::Moved,
    }
}

/// The result of a manifest PUT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOutcome {
    /// The repository did not have the digest before.
    pub created: bool,
    /// The image was archived, and this push restored it.
    pub restored: bool,
    /// The image had another media type before this push.
    pub retyped: bool,
    /// Effect on each tag, in the order given.
    pub tags: Vec<(Tag, TagEffect)>,
}

impl PutOutcome {
    /// Returns true if the push changed nothing. ECR then answers ImageAlreadyExists, `/v2/` 201.
    pub fn unchanged(&self) -> bool {
        !self.created
            && !self.restored
            && !self.retyped
            && self.tags.iter().all(|(_, effect)| *effect == TagEffect::Unchanged)
    }
}

/// The reason why a manifest was not stored. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum PutManifestError {
    /// The repository does not exist.
    #[error("the repository does not exist")]
    NoRepository,
    /// The repository does not have these layers or configs.
    #[error("blobs are missing: {0:?}")]
    BlobsNotFound(Vec<Digest>),
    /// The repository does not have these children.
    #[error("children are missing: {0:?}")]
    ChildrenNotFound(Vec<Digest>),
    /// A reference states another size than the blob or child has.
    #[error("the manifest says that {} has {} bytes, it has {}", .0.digest, .0.stated, .0.actual)]
    SizeMismatch(SizeMismatch),
    /// The tag exists and is immutable.
    #[error("the tag {tag} exists and is immutable")]
    TagAlreadyExists {
        /// The tag.
        tag: Tag,
        /// Digest that it points at.
        current: Digest,
    },
    /// The repository has its maximum number of images.
    #[error("the repository has its {0} images")]
    TooManyImages(u64),
    /// The image has its maximum number of tags.
    #[error("the image has its {0} tags")]
    TooManyTags(u64),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
