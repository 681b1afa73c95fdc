//! Images: listing them with their tags, deleting them, their storage class, and when they were
//! pulled. An image is a manifest without its payload.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

pub use wharfage_domain::lifecycle::StorageClass;

pub use super::manifests::{ImageStatus, ManifestId};
use super::repositories::RepositoryId;
use super::{StoreError, StoreResult};
use wharfage_domain::names::{Digest, Reference, Tag};

/// Stores images and their tags.
#[async_trait::async_trait]
pub trait ImageStore: Send + Sync {
    /// Finds images by reference, in the order given; `None` for each that does not exist.
    async fn find_images(
        &self,
        repository: RepositoryId,
        references: &[Reference],
    ) -> StoreResult<Vec<Option<TaggedImage>>>;
    /// Lists images with their tags, in the order of their digests.
    async fn list_images(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<TaggedImage>>;
    /// Lists the entries of ListImages in the order of (digest, tag). The entry of an untagged
    /// image has no tag.
    async fn list_image_ids(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&ImageIdentifier>,
        limit: usize,
    ) -> StoreResult<Vec<ImageIdentifier>>;
    /// Lists tags in byte order, without those of archived images and those longer than `/v2/` can
    /// name ([`Tag::MAX_OCI`]).
    async fn list_tags(
        &self,
        repository: RepositoryId,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<Tag>>;
    /// Lists the edges from stored indexes to stored children as (parent, child), in that order.
    async fn list_index_edges(
        &self,
        repository: RepositoryId,
        after: Option<&(Digest, Digest)>,
        limit: usize,
    ) -> StoreResult<Vec<(Digest, Digest)>>;
    /// Lists the manifests whose subject is `subject`, in the order of their digests.
    async fn list_referrers(
        &self,
        repository: RepositoryId,
        subject: &Digest,
        filter: &ReferrerFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<Image>>;
    /// Deletes an image with all its tags, and returns them, sorted. Refused while a stored index
    /// holds it. Also writes DELETE events, as [`ImageStore::delete_tag`] does.
    async fn delete_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        referrers: Referrers,
        now: Timestamp,
    ) -> Result<Vec<Tag>, DeleteImageError>;
    /// Deletes a tag. If the caller gives the digest `expected`, the tag must point at it. If it is
    /// the last tag and `last` deletes the image, the rules of [`ImageStore::delete_image`] hold,
    /// and referrers follow.
    async fn delete_tag(
        &self,
        repository: RepositoryId,
        tag: &Tag,
        expected: Option<&Digest>,
        last: LastTag,
        now: Timestamp,
    ) -> Result<TagDeleted, DeleteImageError>;
    /// Deletes images and tags in one transaction, as [`ImageStore::delete_image`] and
    /// [`ImageStore::delete_tag`] would one after another. A refused deletion does not affect the
    /// others. Last tags delete their images, and referrers follow.
    async fn delete_images(
        &self,
        repository: RepositoryId,
        deletions: &[ImageDeletion],
        now: Timestamp,
    ) -> StoreResult<Vec<Result<ImageDeleted, DeleteImageError>>>;
    /// Deletes an image like [`ImageStore::delete_image`], its referrers following, unless a
    /// condition of the decision no longer holds ([`DeleteImageError::Stale`]).
    async fn expire_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), DeleteImageError>;
    /// Moves an image to a storage class and returns its new status. A restored image is active at
    /// once, and so is every archived manifest below it. Archiving is refused while an active index
    /// holds the image. Also writes UPDATE_STORAGE_CLASS events, and jobs for referrers to follow.
    async fn set_storage_class(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        class: StorageClass,
        now: Timestamp,
    ) -> Result<ImageStatus, StorageClassError>;
    /// Archives an image like [`ImageStore::set_storage_class`], unless a condition of the decision
    /// no longer holds ([`StorageClassError::Stale`]).
    async fn archive_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), StorageClassError>;
    /// Gives a referrer the state that its subject has now: deleted, archived or active. Returns
    /// true if that changed it. A referrer that does not exist, has no subject or is held by an
    /// index is left unchanged. Its own referrers follow in turn.
    async fn follow_subject(
        &self,
        repository: RepositoryId,
        referrer: &Digest,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// Records pulls, in bulk; an earlier time never replaces a later one.
    async fn record_pulls(&self, pulls: &[(ManifestId, Timestamp)]) -> StoreResult<()>;
}

/// A manifest without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Row id of the manifest.
    pub id: ManifestId,
    /// Digest of the payload.
    pub digest: Digest,
    /// Media type.
    pub media_type: String,
    /// `artifactType`, if the manifest has one.
    pub artifact_type: Option<String>,
    /// Media type of the config descriptor, for image manifests.
    pub config_media_type: Option<String>,
    /// Size of the payload in bytes.
    pub payload_size: u64,
    /// `imageSizeInBytes`: the sum of its blobs' sizes; for an index the largest child's.
    pub image_size: u64,
    /// OCI `subject`: the manifest that it refers to, which need not exist.
    pub subject: Option<Digest>,
    /// Annotations; read only by [`ImageStore::list_referrers`] and empty elsewhere.
    pub annotations: BTreeMap<String, String>,
    /// When this digest was first pushed to the repository.
    pub pushed_at: Timestamp,
    /// `lastRecordedPullTime`.
    pub last_pulled_at: Option<Timestamp>,
    /// Storage class in effect.
    pub status: ImageStatus,
    /// When it was last archived.
    pub archived_at: Option<Timestamp>,
    /// When it was last restored from the archive.
    pub activated_at: Option<Timestamp>,
    /// Grows with every push of the image, even one that changes nothing, and with every change of
    /// its tags or storage class. A recorded pull shows in `last_pulled_at`.
    pub revision: u64,
}

/// An image with its tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedImage {
    /// The image.
    pub image: Image,
    /// Tags that point at it, sorted.
    pub tags: Vec<Tag>,
}

/// ECR's `filter.tagStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TagStatusFilter {
    /// Tagged and untagged images.
    #[default]
    Any,
    /// Images with a tag.
    Tagged,
    /// Images without a tag.
    Untagged,
}

/// The images that a listing shows. `status: None` is ECR's `ANY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFilter {
    /// Filter by tags.
    pub tag_status: TagStatusFilter,
    /// Filter by storage class.
    pub status: Option<ImageStatus>,
}

/// The images of one status that have a tag, or those that have none: a contiguous range of an
/// index that is in the order of digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageRange {
    pub(super) status: ImageStatus,
    pub(super) tagged: bool,
}

impl ImageFilter {
    /// Matches every image.
    pub const EVERYTHING: Self = Self { tag_status: TagStatusFilter::Any, status: None };

    /// Returns the ranges that hold the matching images. Returns none if the filter matches
    /// everything, for which there is another index.
    pub(super) fn ranges(self) -> Vec<ImageRange> {
        if self == Self::EVERYTHING {
            return Vec::new();
        }
        let tagged: &[bool] = match self.tag_status {
            TagStatusFilter::Any => &[true, false],
            TagStatusFilter::Tagged => &[true],
            TagStatusFilter::Untagged => &[false],
        };
        let ranges =
            |status| tagged.iter().map(move |tagged| ImageRange { status, tagged: *tagged });
        statuses(self.status).into_iter().flat_map(ranges).collect()
    }
}

/// All statuses of images.
const STATUSES: [ImageStatus; 3] =
    [ImageStatus::Active, ImageStatus::Archived, ImageStatus::Activating];

/// Returns the statuses that a filter matches.
pub(super) fn statuses(filter: Option<ImageStatus>) -> Vec<ImageStatus> {
    filter.map_or(STATUSES.to_vec(), |status| vec![status])
}

/// One entry of ListImages: one for each tag, or one without a tag for an untagged image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageIdentifier {
    /// Digest of the image.
    pub digest: Digest,
    /// The tag.
    pub tag: Option<Tag>,
}

/// The referrers that a listing shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferrerFilter {
    /// Artifact types to show; empty for all. A referrer's type is its `artifactType`, else its
    /// config's media type.
    pub artifact_types: Vec<String>,
    /// Status to show; `None` for all.
    pub status: Option<ImageStatus>,
}

/// The action on an image when its last tag is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastTag {
    /// The image is kept, untagged (`/v2/`).
    KeepsImage,
    /// The image is deleted too (BatchDeleteImage).
    DeletesImage,
}

/// The result of deleting a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagDeleted {
    /// Digest that the tag pointed at.
    pub digest: Digest,
    /// The image was deleted too.
    pub image_deleted: bool,
}

/// One deletion of a batch (BatchDeleteImage).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageDeletion {
    /// Deletes an image with all its tags.
    Image(Digest),
    /// Deletes a tag, and with the last one its image.
    Tag {
        /// The tag.
        tag: Tag,
        /// Digest that the tag must point at, if the caller gave one.
        expected: Option<Digest>,
    },
}

/// The result of one deletion of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDeleted {
    /// Digest of the image.
    pub digest: Digest,
    /// Tags of the image that were deleted, sorted.
    pub tags: Vec<Tag>,
    /// The image was deleted too.
    pub image_deleted: bool,
}

/// The highest number of indexes that a refusal names of those that hold an image. An image may be
/// held by thousands.
pub(super) const MAX_NAMED_PARENTS: usize = 100;

/// The reason why an image or a tag was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteImageError {
    /// The image or tag does not exist.
    #[error("the image does not exist")]
    NotFound,
    /// The tag points at another digest than the caller gave.
    #[error("the tag points at {0}")]
    TagPointsElsewhere(Digest),
    /// Stored indexes hold it, of which up to a hundred are named.
    #[error("the image is referenced by {0:?}")]
    ReferencedBy(Vec<Digest>),
    /// A condition of the lifecycle policy's decision no longer holds.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The action on the referrers of a deleted image. (They always follow a change of storage class.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Referrers {
    /// A [`super::jobs::FollowSubject`] job is written with the deletion (the API, lifecycle
    /// policies).
    Follow,
    /// They are kept, as the distribution spec allows (`/v2/`).
    Stay,
}

/// The conditions under which a lifecycle policy decided about one image. The store acts on the
/// image only while all of them hold.
#[derive(Debug, Clone)]
pub struct LifecycleDecision {
    /// Text of the repository's lifecycle policy.
    pub policy: Arc<str>,
    /// The image's [`Image::revision`].
    pub revision: u64,
    /// The image's [`Image::last_pulled_at`].
    pub last_pulled_at: Option<Timestamp>,
    /// The image only follows its subject. Then the subject must not exist, or be archived if the
    /// image is to be archived.
    pub follows_subject: bool,
    /// The images that a counting rule keeps instead of this one (`imageCountMoreThan`), with their
    /// revisions. All of them must still exist.
    pub kept: Arc<[(ManifestId, u64)]>,
}

/// The condition of a [`LifecycleDecision`] that no longer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// The repository has another policy, or none.
    #[error("the repository's lifecycle policy has changed")]
    Policy,
    /// The image was pushed, pulled, tagged, untagged, archived or restored.
    #[error("the image has changed")]
    Image,
    /// The image's subject exists, or is active again.
    #[error("the image's subject is there")]
    Subject,
    /// Images to be kept have changed or were deleted, so this one may have to be kept.
    #[error("the images that were to be kept have changed")]
    Kept,
}

/// The reason why an image's storage class did not change.
#[derive(Debug, thiserror::Error)]
pub enum StorageClassError {
    /// The image does not exist.
    #[error("the image does not exist")]
    NotFound,
    /// The image already has that class.
    #[error("the image is {} already", .0.as_str())]
    Unchanged(ImageStatus),
    /// Active indexes hold the image, of which up to a hundred are named, so it may not be
    /// archived.
    #[error("the image is referenced by {0:?}")]
    ReferencedBy(Vec<Digest>),
    /// A condition of the lifecycle policy's decision no longer holds.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
