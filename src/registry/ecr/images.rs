//! Images: PutImage, BatchGetImage, BatchDeleteImage and UpdateImageStorageClass.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Value, json};

use super::EcrCall;
use super::error::{EcrError, RepositoryRef};
use super::input::{self, ImageFault, ImageId, Selector, input, required};
use crate::message::memory;
use crate::service::images::{NewImage, PutImageError};
use crate::service::manifest::InvalidManifest;
use wharfage_domain::names::{Digest, Reference, Tag};
use wharfage_store::images::{
    DeleteImageError, ImageDeleted, ImageDeletion, ImageStatus, StorageClass, StorageClassError,
    TaggedImage,
};
use wharfage_store::manifests::{Manifest, PutManifestError};
use wharfage_store::repositories::Repository;
use wharfage_store::{Lookup, StoreError};

/// The limit of manifests in one BatchGetImage, in bytes. A hundred of ordinary size have half a
/// MiB.
const MAX_MANIFESTS: usize = 28 * 1024 * 1024;

input! {
    /// The input of PutImage.
    Put {
        registry_id: String,
        repository_name: String,
        image_manifest: String,
        image_manifest_media_type: String,
        image_tag: String,
        image_digest: String,
    }
}

/// PutImage.
pub(crate) async fn put(call: &EcrCall, input: Put) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let manifest = required("imageManifest", input.image_manifest)?;
    input::length("imageManifest", &manifest, 1..=4_194_304)?;
    let tag = input.image_tag.map(|tag| input::image_tag("imageTag", &tag)).transpose()?;
    let digest = match input.image_digest {
        None => None,
        Some(text) => match input::digest("imageDigest", &text)? {
            Some(digest) => Some(digest),
            // The digest is of an algorithm that no image here has.
            None => {
                let actual = Digest::sha256(manifest.as_bytes());
                return Err(EcrError::ImageDigestDoesNotMatch { expected: text.into(), actual });
            }
        },
    };
    let repository = call.repository(&repository_ref).await?;

    let payload = Bytes::from(manifest);
    let image = NewImage {
        repository: repository.id,
        payload: payload.clone(),
        media_type: input.image_manifest_media_type.as_deref(),
        digest: digest.as_ref(),
        tags: tag.iter().cloned().collect(),
    };
    let refuse = |error| refused_put(error, &repository_ref, &payload, digest.as_ref());
    let put = call.registry.put_image(image, call.now).await.map_err(refuse)?;
    if put.outcome.unchanged() {
        return Err(EcrError::ImageAlreadyExists {
            digest: put.digest,
            tag: or_null(tag.as_ref()),
            repository_ref,
        });
    }
    Ok(
        json!({ "image": image_shape(&repository_ref, &put.digest, tag.as_ref(), &payload, &put.media_type) }),
    )
}

fn or_null<T: ToString>(value: Option<&T>) -> Cow<'static, str> {
    value.map_or(Cow::Borrowed("null"), |value| Cow::Owned(value.to_string()))
}

fn refused_put(
    error: PutImageError,
    repository_ref: &RepositoryRef,
    payload: &[u8],
    expected: Option<&Digest>,
) -> EcrError {
    let repository_ref = repository_ref.clone();
    let put = match error {
        PutImageError::Manifest(error) => return EcrError::InvalidParameterText(error.to_string()),
        PutImageError::DigestMismatch { actual } => {
            return EcrError::ImageDigestDoesNotMatch { expected: or_null(expected), actual };
        }
        PutImageError::Put(put) => put,
    };
    match put {
        PutManifestError::NoRepository => EcrError::RepositoryNotFound(repository_ref),
        PutManifestError::BlobsNotFound(digests) => {
            EcrError::LayersNotFound { digests, repository_ref }
        }
        PutManifestError::ChildrenNotFound(digests) => {
            EcrError::ReferencedImagesNotFound { digests, repository_ref }
        }
        PutManifestError::SizeMismatch(mismatch) => {
            EcrError::InvalidParameterText(InvalidManifest::from(mismatch).to_string())
        }
        PutManifestError::TagAlreadyExists { tag, current } => {
            // The same image under the same immutable tag is reported differently from an attempt
            // to overwrite it.
            if current == Digest::of(current.algorithm(), payload) {
                let tag = Cow::Owned(tag.to_string());
                return EcrError::ImageAlreadyExists { digest: current, tag, repository_ref };
            }
            EcrError::ImageTagAlreadyExists { tag, repository: repository_ref.name }
        }
        PutManifestError::TooManyImages(limit) => EcrError::LimitExceeded(format!(
            "The repository with name '{}' has its {limit} images",
            repository_ref.name
        )),
        PutManifestError::TooManyTags(limit) => {
            EcrError::LimitExceeded(format!("The image has its {limit} tags"))
        }
        PutManifestError::Store(error) => error.into(),
    }
}

/// ECR's `Image`.
fn image_shape(
    repository_ref: &RepositoryRef,
    digest: &Digest,
    tag: Option<&Tag>,
    payload: &[u8],
    media_type: &str,
) -> Value {
    json!({
        "registryId": repository_ref.account,
        "repositoryName": repository_ref.name,
        "imageId": image_id(digest, tag),
        "imageManifest": String::from_utf8_lossy(payload),
        "imageManifestMediaType": media_type,
    })
}

/// ECR's `ImageIdentifier`.
pub(crate) fn image_id(digest: &Digest, tag: Option<&Tag>) -> Value {
    json!({ "imageDigest": digest, "imageTag": tag })
}

/// An entry of `failures`.
fn failure(id: &ImageId, code: &str, reason: &str) -> Value {
    json!({
        "imageId": { "imageDigest": id.image_digest, "imageTag": id.image_tag },
        "failureCode": code,
        "failureReason": reason,
    })
}

input! {
    /// The input of BatchGetImage.
    BatchGet {
        registry_id: String,
        repository_name: String,
        image_ids: Vec<ImageId>,
        accepted_media_types: Vec<String>,
    }
}

/// BatchGetImage. `acceptedMediaTypes` is checked and otherwise ignored: manifests are returned as
/// they are stored.
pub(crate) async fn batch_get(call: &EcrCall, input: BatchGet) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let ids = required("imageIds", input.image_ids)?;
    input::count("imageIds", &ids, 1..=100)?;
    if let Some(types) = &input.accepted_media_types {
        input::count("acceptedMediaTypes", types, 1..=100)?;
    }
    call.repository(&repository_ref).await?;
    let (mut images, mut failures, mut pulls, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let memory = memory::process();
    // The account of the call, which later holds the response.
    let mut account = call.account.lock().await;
    account.expect(2 * MAX_MANIFESTS);
    // A manifest is in memory twice: on its way into the response, and in it.
    let size = |found: &Result<(Manifest, Option<Tag>), ImageFault>| {
        found.as_ref().map_or(0, |(manifest, _)| 2 * manifest.payload.len())
    };
    for id in &ids {
        let found = memory
            .read(&mut account, 2 * bytes, || Box::pin(find(call, &repository_ref, id)), size)
            .await?;
        match found {
            Ok((mut manifest, tag)) => {
                let payload = std::mem::take(&mut manifest.payload);
                bytes += payload.len();
                if bytes > MAX_MANIFESTS {
                    return Err(EcrError::LimitExceeded(format!(
                        "The manifests have more than {MAX_MANIFESTS} bytes together: ask for fewer imageIds"
                    )));
                }
                let Manifest { digest, media_type, .. } = &manifest;
                images.push(image_shape(
                    &repository_ref,
                    digest,
                    tag.as_ref(),
                    &payload,
                    media_type,
                ));
                pulls.push(manifest);
            }
            Err(fault) => failures.push(failure(id, fault.code(), fault.reason())),
        }
    }
    call.registry.pulls.record(&pulls, call.now).await?;
    Ok(json!({ "images": images, "failures": failures }))
}

/// Returns the manifest of an identifier, and the requested tag.
async fn find(
    call: &EcrCall,
    repository_ref: &RepositoryRef,
    id: &ImageId,
) -> Result<Result<(Manifest, Option<Tag>), ImageFault>, EcrError> {
    let (reference, tag, digest) = match id.selector() {
        Ok(Selector::Tag(tag)) => (Reference::Tag(tag.clone()), Some(tag), None),
        Ok(Selector::Both(tag, digest)) => (Reference::Tag(tag.clone()), Some(tag), Some(digest)),
        Ok(Selector::Digest(digest)) => (Reference::Digest(digest), None, None),
        Err(fault) => return Ok(Err(fault)),
    };
    Ok(
        match call
            .registry
            .metadata
            .find_manifest(&repository_ref.account, &repository_ref.name, &reference)
            .await?
        {
            Lookup::NoRepository => {
                return Err(EcrError::RepositoryNotFound(repository_ref.clone()));
            }
            Lookup::Missing => Err(ImageFault::ImageNotFound),
            Lookup::Found(manifest) if digest.is_some_and(|digest| digest != manifest.digest) => {
                Err(ImageFault::ImageTagDoesNotMatchDigest)
            }
            Lookup::Found(manifest) if manifest.status != ImageStatus::Active => {
                Err(ImageFault::ImageInaccessible)
            }
            Lookup::Found(manifest) => Ok((manifest, tag)),
        },
    )
}

input! {
    /// The input of BatchDeleteImage.
    BatchDelete { registry_id: String, repository_name: String, image_ids: Vec<ImageId> }
}

/// BatchDeleteImage. A tag is removed, and with the last tag its image; a digest is deleted with
/// its tags.
pub(crate) async fn batch_delete(call: &EcrCall, input: BatchDelete) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let ids = required("imageIds", input.image_ids)?;
    input::count("imageIds", &ids, 1..=100)?;
    let repository = call.repository(&repository_ref).await?;
    let selectors: Vec<Result<Selector, ImageFault>> = ids.iter().map(ImageId::selector).collect();
    let deletions: Vec<ImageDeletion> = selectors.iter().flatten().map(deletion).collect();
    let outcomes = match deletions.as_slice() {
        [] => Vec::new(),
        deletions => {
            call.registry.metadata.delete_images(repository.id, deletions, call.now).await?
        }
    };
    let (mut outcomes, mut deleted, mut failures) = (outcomes.into_iter(), Vec::new(), Vec::new());
    for (id, selector) in ids.iter().zip(selectors) {
        let outcome = match selector {
            Ok(_) => outcomes.next().map(|outcome| outcome.map_err(DeletionFailure::from)),
            Err(fault) => Some(Err(DeletionFailure::ImageFault(fault))),
        };
        match outcome {
            Some(Ok(ImageDeleted { digest, tags, .. })) => {
                let none = tags.is_empty().then(|| image_id(&digest, None));
                deleted.extend(tags.iter().map(|tag| image_id(&digest, Some(tag))).chain(none));
            }
            Some(Err(DeletionFailure::ImageFault(fault))) => {
                failures.push(failure(id, fault.code(), fault.reason()))
            }
            Some(Err(DeletionFailure::ReferencedBy(parents))) => {
                let parents: Vec<&str> = parents.iter().map(Digest::as_str).collect();
                let reason = format!(
                    "Requested image referenced by manifest list: [{}]",
                    parents.join(", ")
                );
                failures.push(failure(id, "ImageReferencedByManifestList", &reason));
            }
            Some(Err(DeletionFailure::Other(error))) => return Err(error),
            None => {
                return Err(StoreError::Inconsistent("a deletion has no outcome".to_owned()).into());
            }
        }
    }
    Ok(json!({ "imageIds": deleted, "failures": failures }))
}

fn deletion(selector: &Selector) -> ImageDeletion {
    match selector {
        Selector::Digest(digest) => ImageDeletion::Image(digest.clone()),
        Selector::Tag(tag) => ImageDeletion::Tag { tag: tag.clone(), expected: None },
        Selector::Both(tag, digest) => {
            ImageDeletion::Tag { tag: tag.clone(), expected: Some(digest.clone()) }
        }
    }
}

/// The reason why an image of a batch was not deleted.
enum DeletionFailure {
    ImageFault(ImageFault),
    ReferencedBy(Vec<Digest>),
    Other(EcrError),
}

impl From<DeleteImageError> for DeletionFailure {
    fn from(error: DeleteImageError) -> Self {
        match error {
            DeleteImageError::NotFound => Self::ImageFault(ImageFault::ImageNotFound),
            DeleteImageError::TagPointsElsewhere(_) => {
                Self::ImageFault(ImageFault::ImageTagDoesNotMatchDigest)
            }
            // Only an expiry names its preconditions.
            DeleteImageError::Stale(_) => Self::ImageFault(ImageFault::ImageNotFound),
            DeleteImageError::ReferencedBy(parents) => Self::ReferencedBy(parents),
            DeleteImageError::Store(error) => Self::Other(error.into()),
        }
    }
}

input! {
    /// The input of UpdateImageStorageClass.
    UpdateStorageClass {
        registry_id: String,
        repository_name: String,
        image_id: ImageId,
        target_storage_class: String,
    }
}

/// UpdateImageStorageClass.
pub(crate) async fn update_storage_class(
    call: &EcrCall,
    input: UpdateStorageClass,
) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let id = required("imageId", input.image_id)?;
    let selector = id.required_selector("imageId")?;
    let class = required("targetStorageClass", input.target_storage_class)?;
    let classes = [("STANDARD", StorageClass::Standard), ("ARCHIVE", StorageClass::Archive)];
    let class = input::one_of("targetStorageClass", &class, &classes)?;
    let repository = call.repository(&repository_ref).await?;
    let TaggedImage { image, .. } = one(call, &repository_ref, &repository, &id, selector).await?;

    let metadata = call.registry.metadata.as_ref();
    let changed = metadata.set_storage_class(repository.id, &image.digest, class, call.now).await;
    let status =
        changed.map_err(|error| match error {
            // Only a lifecycle job names its preconditions.
            StorageClassError::NotFound | StorageClassError::Stale(_) => {
                not_found(&repository_ref, &id)
            }
            StorageClassError::Unchanged(status) => EcrError::StorageClassUpdateNotSupported(
                format!("The image '{}' is {} already", image.digest, status.as_str()),
            ),
            StorageClassError::ReferencedBy(parents) => {
                let parents: Vec<&str> = parents.iter().map(Digest::as_str).collect();
                EcrError::StorageClassUpdateNotSupported(format!(
                    "Requested image referenced by manifest list: [{}]",
                    parents.join(", ")
                ))
            }
            StorageClassError::Store(error) => error.into(),
        })?;
    let tag = id.image_tag.as_deref().and_then(|tag| tag.parse::<Tag>().ok());
    Ok(json!({
        "registryId": repository_ref.account,
        "repositoryName": repository_ref.name,
        "imageId": image_id(&image.digest, tag.as_ref()),
        "imageStatus": status.as_str(),
    }))
}

/// Creates the error of an image that does not exist.
pub(crate) fn not_found(repository_ref: &RepositoryRef, id: &ImageId) -> EcrError {
    let (digest, tag) = (or_null(id.image_digest.as_ref()), or_null(id.image_tag.as_ref()));
    EcrError::ImageNotFound { digest, tag, repository_ref: repository_ref.clone() }
}

/// The one image of an operation.
pub(crate) async fn one(
    call: &EcrCall,
    repository_ref: &RepositoryRef,
    repository: &Repository,
    id: &ImageId,
    selector: Option<Selector>,
) -> Result<TaggedImage, EcrError> {
    let selector = selector.ok_or_else(|| not_found(repository_ref, id))?;
    let found = call.registry.metadata.find_images(repository.id, &[selector.reference()]).await?;
    let found =
        found.into_iter().next().flatten().filter(|found| selector.agrees(&found.image.digest));
    found.ok_or_else(|| not_found(repository_ref, id))
}

impl Selector {
    /// Returns the reference by which the image is looked up.
    pub(crate) fn reference(&self) -> Reference {
        match self {
            Self::Tag(tag) | Self::Both(tag, _) => Reference::Tag(tag.clone()),
            Self::Digest(digest) => Reference::Digest(digest.clone()),
        }
    }

    /// Returns whether the found image matches the whole identifier.
    pub(crate) fn agrees(&self, found: &Digest) -> bool {
        match self {
            Self::Both(_, digest) => digest == found,
            Self::Tag(_) | Self::Digest(_) => true,
        }
    }
}
