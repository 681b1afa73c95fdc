//! Manifests, tags and layers as the store keeps them. Plain data and pure decisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::jobs::NewJob;
use super::repositories::{RepositoryId, TagMutability};
use super::{BlobKey, StoreError};
pub use crate::lifecycle::ImageStatus;
use crate::names::{Digest, Tag};

/// A manifest's row id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestId(pub i64);

/// What is known of a manifest without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its row id.
    pub id: ManifestId,
    /// The digest of its exact bytes.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// The manifest's `artifactType`, if it has one.
    pub artifact_type: Option<String>,
    /// The config descriptor's media type, for image manifests.
    pub config_media_type: Option<String>,
    /// Bytes of the payload.
    pub payload_size: u64,
    /// `imageSizeInBytes`: the sum of its blobs' sizes; for an index the largest child's.
    pub image_size: u64,
    /// The manifest that it refers to (OCI `subject`), which need not exist.
    pub subject: Option<Digest>,
    /// The manifest's annotations; read only where referrers are listed, and empty elsewhere.
    pub annotations: BTreeMap<String, String>,
    /// When this digest was first pushed to the repository.
    pub pushed_at: Timestamp,
    /// `lastRecordedPullTime`.
    pub last_pulled_at: Option<Timestamp>,
    /// Its storage class, in effect.
    pub status: ImageStatus,
    /// When it was last archived.
    pub archived_at: Option<Timestamp>,
    /// When it was last restored from the archive.
    pub activated_at: Option<Timestamp>,
    /// Grows with every push of the image, one that changes nothing included, and with every change of its tags or
    /// storage class. A recorded pull shows in `last_pulled_at`.
    pub revision: u64,
}

/// A manifest with its payload: what a pull needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its row id.
    pub id: ManifestId,
    /// The digest of `payload`.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its exact bytes.
    pub payload: Bytes,
    /// Archived images are not pulled.
    pub status: ImageStatus,
    /// When a pull was last recorded.
    pub last_pulled_at: Option<Timestamp>,
}

/// An image with the tags that point at it, in lexical order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedImage {
    /// The image.
    pub image: Image,
    /// Its tags, sorted.
    pub tags: Vec<Tag>,
}

/// A blob that a manifest to be stored needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobReference {
    /// Its digest.
    pub digest: Digest,
    /// The media type that the manifest gives it.
    pub media_type: String,
    /// Its size in bytes, as the manifest says it.
    pub size: u64,
}

/// A manifest that an index to be stored holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildReference {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes, as the index says it.
    pub size: u64,
}

/// A reference whose size is not that of what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeMismatch {
    /// The blob or manifest.
    pub digest: Digest,
    /// Its size in bytes, as the manifest says it.
    pub stated: u64,
    /// Its size in bytes.
    pub actual: u64,
}

/// A manifest to be stored, its references read out of its payload by the caller.
#[derive(Debug, Clone)]
pub struct NewManifest {
    /// The digest of `payload`.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its exact bytes, at most 4 MiB.
    pub payload: Bytes,
    /// `artifactType`, if the manifest has one.
    pub artifact_type: Option<String>,
    /// The config descriptor's media type, for image manifests.
    pub config_media_type: Option<String>,
    /// `subject`'s digest.
    pub subject: Option<Digest>,
    /// The manifest's annotations, where it has a subject; empty otherwise.
    pub annotations: BTreeMap<String, String>,
    /// The config and every layer that is not foreign: each must be in the repository. Unique digests.
    pub blobs: Vec<BlobReference>,
    /// An index's children: each must be in the repository. Unique digests.
    pub children: Vec<ChildReference>,
}

/// A manifest PUT, which is one transaction: references checked under lock, edges, tags, event and jobs written.
#[derive(Debug, Clone)]
pub struct PutManifest {
    /// Where to.
    pub repository: RepositoryId,
    /// What.
    pub manifest: NewManifest,
    /// The tags to point at it; may be empty.
    pub tags: Vec<Tag>,
    /// Now.
    pub now: Timestamp,
    /// Images that the repository may have.
    pub max_images: u64,
    /// Tags that one image may have.
    pub max_tags: u64,
    /// What has to follow; written in the same transaction (the outbox).
    pub jobs: Vec<NewJob>,
}

/// What a tag's PUT does to the tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagEffect {
    /// The tag is new.
    Created,
    /// The tag pointed at this digest already.
    Unchanged,
    /// The tag pointed at another digest and moved.
    Moved,
    /// The tag exists and the repository does not let it be pushed again.
    Refused,
}

/// Decides what putting `tag` on `new` does, given where it points now. An immutable tag is refused even for the same
/// digest: which answer that gives is the door's matter, see [`PutManifestError::TagAlreadyExists`].
pub fn tag_effect(mutability: &TagMutability, tag: &Tag, current: Option<&Digest>, new: &Digest) -> TagEffect {
    match current {
        None => TagEffect::Created,
        Some(_) if !mutability.allows_moving(tag) => TagEffect::Refused,
        Some(current) if current == new => TagEffect::Unchanged,
        Some(_) => TagEffect::Moved,
    }
}

/// What a manifest PUT did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOutcome {
    /// The digest was not in the repository before.
    pub created: bool,
    /// The digest was archived, and this push restored it.
    pub restored: bool,
    /// The digest was there under another media type, and has this push's now.
    pub retyped: bool,
    /// What happened to each tag, in the order given.
    pub tags: Vec<(Tag, TagEffect)>,
}

impl PutOutcome {
    /// Whether everything was there already, just so: the API answers ImageAlreadyExists, `/v2/` answers 201.
    pub fn unchanged(&self) -> bool {
        !self.created
            && !self.restored
            && !self.retyped
            && self.tags.iter().all(|(_, effect)| *effect == TagEffect::Unchanged)
    }
}

/// Why a manifest was not stored. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum PutManifestError {
    /// The repository is gone.
    #[error("the repository does not exist")]
    NoRepository,
    /// These layers or configs are not in the repository.
    #[error("blobs are missing: {0:?}")]
    BlobsNotFound(Vec<Digest>),
    /// These children are not in the repository.
    #[error("children are missing: {0:?}")]
    ChildrenNotFound(Vec<Digest>),
    /// This reference says another size than the blob or child has.
    #[error("the manifest says that {} has {} bytes, it has {}", .0.digest, .0.stated, .0.actual)]
    SizeMismatch(SizeMismatch),
    /// The tag exists and is immutable.
    #[error("the tag {tag} exists and is immutable")]
    TagAlreadyExists {
        /// The tag.
        tag: Tag,
        /// The digest that it points at.
        current: Digest,
    },
    /// The repository has as many images as it may have.
    #[error("the repository has its {0} images")]
    TooManyImages(u64),
    /// The image has as many tags as it may have.
    #[error("the image has its {0} tags")]
    TooManyTags(u64),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What happens to an image whose last tag is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastTag {
    /// The image stays, untagged (`/v2/`).
    KeepsImage,
    /// The image goes with it (BatchDeleteImage).
    DeletesImage,
}

/// What deleting a tag did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagDeleted {
    /// What the tag pointed at.
    pub digest: Digest,
    /// The image went too.
    pub image_deleted: bool,
}

/// What one entry of a batch deletes (BatchDeleteImage).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageDeletion {
    /// An image with all its tags.
    Image(Digest),
    /// A tag, and with the last one its image.
    Tag {
        /// The tag.
        tag: Tag,
        /// The digest that it must point at, if the caller said one.
        expected: Option<Digest>,
    },
}

/// What an entry of a batch deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDeleted {
    /// The image.
    pub digest: Digest,
    /// The tags of it that are gone, sorted.
    pub tags: Vec<Tag>,
    /// The image is gone, too.
    pub image_deleted: bool,
}

/// How many of the indexes that hold an image a refusal names at most. An image may be held by all others.
pub(super) const NAMED_HOLDERS: usize = 100;

/// Why an image or a tag was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteImageError {
    /// There is no such image or tag.
    #[error("the image does not exist")]
    NotFound,
    /// The tag points at another digest than the caller said.
    #[error("the tag points at {0}")]
    TagPointsElsewhere(Digest),
    /// Stored indexes hold it, of which up to a hundred are named.
    #[error("the image is referenced by {0:?}")]
    ReferencedBy(Vec<Digest>),
    /// What the lifecycle policy's decision rested on no longer holds.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What becomes of the referrers of an image that is deleted. (Where an image changes its storage class, they follow.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Referrers {
    /// A [`super::jobs::FollowSubject`] job is written along with the deletion (the API, lifecycle policies).
    Follow,
    /// They stay, as the distribution spec allows (`/v2/`).
    Stay,
}

/// What a lifecycle policy's decision about one image rests on. The store acts on the image while all of it holds.
#[derive(Debug, Clone)]
pub struct LifecycleDecision {
    /// The text of the policy, which is the repository's.
    pub policy: Arc<str>,
    /// The image's [`Image::revision`].
    pub revision: u64,
    /// The image's [`Image::last_pulled_at`].
    pub last_pulled_at: Option<Timestamp>,
    /// The image only follows its subject, so that one must have gone, or be archived where the image is to be archived.
    pub follows_subject: bool,
    /// The images that made this one too many, with their revisions (`imageCountMoreThan`): each is still there.
    pub kept: Arc<[(ManifestId, u64)]>,
}

/// What no longer holds of a [`LifecycleDecision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// The repository has another policy, or none.
    #[error("the repository's lifecycle policy has changed")]
    Policy,
    /// The image was pushed, pulled, tagged, untagged, archived or restored.
    #[error("the image has changed")]
    Image,
    /// The image's subject is there, or active again.
    #[error("the image's subject is there")]
    Subject,
    /// Images that were to be kept have changed or gone, so this one may have to be kept.
    #[error("the images that were to be kept have changed")]
    Kept,
}

/// ECR's `filter.tagStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TagStatusFilter {
    /// Both.
    #[default]
    Any,
    /// Images with a tag.
    Tagged,
    /// Images without one.
    Untagged,
}

/// Which images a listing shows. `status: None` is ECR's `ANY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFilter {
    /// By tags.
    pub tag_status: TagStatusFilter,
    /// By storage class.
    pub status: Option<ImageStatus>,
}

impl ImageFilter {
    /// Every image there is.
    pub const EVERYTHING: Self = Self { tag_status: TagStatusFilter::Any, status: None };
}

/// A part of a listing that an index has in one piece, in the order of digests: the images of one status that have a tag, or those
/// that have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageRange {
    pub(super) status: ImageStatus,
    pub(super) tagged: bool,
}

/// Every status that an image may have.
const STATUSES: [ImageStatus; 3] = [ImageStatus::Active, ImageStatus::Archived, ImageStatus::Activating];

/// The statuses that a filter shows.
pub(super) fn statuses(filter: Option<ImageStatus>) -> Vec<ImageStatus> {
    filter.map_or(STATUSES.to_vec(), |status| vec![status])
}

impl ImageFilter {
    /// The ranges that hold what the filter shows; none where it shows everything, of which there is an index of its own.
    pub(super) fn ranges(self) -> Vec<ImageRange> {
        if self == Self::EVERYTHING {
            return Vec::new();
        }
        let tagged: &[bool] = match self.tag_status {
            TagStatusFilter::Any => &[true, false],
            TagStatusFilter::Tagged => &[true],
            TagStatusFilter::Untagged => &[false],
        };
        let ranges = |status| tagged.iter().map(move |tagged| ImageRange { status, tagged: *tagged });
        statuses(self.status).into_iter().flat_map(ranges).collect()
    }
}

/// One entry of ListImages: one for each tag, or one without a tag for an untagged image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageIdentifier {
    /// The image's digest.
    pub digest: Digest,
    /// The tag.
    pub tag: Option<Tag>,
}

/// Which referrers a listing shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferrerFilter {
    /// These artifact types only; empty for all. A referrer's type is its `artifactType`, else its config's media type.
    pub artifact_types: Vec<String>,
    /// This status only; `None` for all.
    pub status: Option<ImageStatus>,
}

/// A live blob of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes, and how many they are.
    pub bytes: BlobKey,
    /// A read has found its bytes missing or of another size.
    pub damaged: bool,
}

/// What BatchCheckLayerAvailability and GetDownloadUrlForLayer need to know of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub blob: Blob,
    /// The media type that a manifest gives it, if any does.
    pub media_type: Option<String>,
    /// Some image of the repository references it.
    pub referenced: bool,
    /// Images reference it, every one of them is archived, and nobody has pushed the layer since.
    pub archived: bool,
}

/// What deleting a blob at `/v2/` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnlinkBlob {
    /// It is no longer in the repository.
    Unlinked,
    /// It was not there.
    NotFound,
    /// A manifest needs it.
    InUse,
}

/// What mounting a blob from another repository did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountBlob {
    /// It is in the target now, or was already.
    Mounted,
    /// The source repository does not have it in a committed manifest, the two are encrypted differently, or it is damaged.
    NotMountable,
}

/// The storage class to move an image to (ECR's `targetStorageClass`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageClass {
    /// `STANDARD`.
    Standard,
    /// `ARCHIVE`.
    Archive,
}

/// Why an image's storage class did not change.
#[derive(Debug, thiserror::Error)]
pub enum StorageClassError {
    /// There is no such image.
    #[error("the image does not exist")]
    NotFound,
    /// It is in that class already.
    #[error("the image is {} already", .0.as_str())]
    Unchanged(ImageStatus),
    /// Active indexes hold it, of which up to a hundred are named, so it may not be archived.
    #[error("the image is referenced by {0:?}")]
    ReferencedBy(Vec<Digest>),
    /// What the lifecycle policy's decision rested on no longer holds.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
