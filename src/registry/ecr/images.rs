//! Images: put, read, deleted, moved between storage classes.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Call;
use super::error::{Error, Place};
use super::input::{self, Fault, ImageId, Selector, input, required};
use crate::message::memory;
use crate::service::images::{NewImage, PutImageError};
use crate::service::manifest::InvalidManifest;
use wharfage_domain::names::{Digest, Reference, Tag};
use wharfage_store::images::{
    DeleteImageError, ImageDeleted, ImageDeletion, ImageStatus, StorageClass, StorageClassError, TaggedImage,
};
use wharfage_store::manifests::{Manifest, PutManifestError};
use wharfage_store::repositories::Repository;
use wharfage_store::{Lookup, StoreError};

/// How much of manifests one BatchGetImage gives at most. A hundred of ordinary size are half a MiB.
const MAX_MANIFESTS: usize = 28 * 1024 * 1024;

input! {
    /// PutImage's.
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
pub(crate) async fn put(call: &Call, input: Put) -> Result<Value, Error> {
    let place = call.place(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let manifest = required("imageManifest", input.image_manifest)?;
    input::length("imageManifest", &manifest, 1..=4_194_304)?;
    let tag = input.image_tag.map(|tag| input::image_tag("imageTag", &tag)).transpose()?;
    let digest = match input.image_digest {
        None => None,
        Some(text) => match input::digest("imageDigest", &text)? {
            Some(digest) => Some(digest),
            // Of an algorithm that names no image here.
            None => {
                let actual = Digest::sha256(manifest.as_bytes());
                return Err(Error::ImageDigestDoesNotMatch { expected: text.into(), actual });
            }
        },
    };
    let repository = call.repository(&place).await?;

    let payload = Bytes::from(manifest);
    let image = NewImage {
        repository: repository.id,
        payload: payload.clone(),
        media_type: input.image_manifest_media_type.as_deref(),
        digest: digest.as_ref(),
        tags: tag.iter().cloned().collect(),
    };
    let refuse = |error| refused_put(error, &place, &payload, digest.as_ref());
    let put = call.registry.put_image(image, call.now).await.map_err(refuse)?;
    if put.outcome.unchanged() {
        return Err(Error::ImageAlreadyExists { digest: put.digest, tag: or_null(tag.as_ref()), place });
    }
    Ok(json!({ "image": image_shape(&place, &put.digest, tag.as_ref(), &payload, &put.media_type) }))
}

fn or_null<T: ToString>(value: Option<&T>) -> Cow<'static, str> {
    value.map_or(Cow::Borrowed("null"), |value| Cow::Owned(value.to_string()))
}

fn refused_put(error: PutImageError, place: &Place, payload: &[u8], expected: Option<&Digest>) -> Error {
    let place = place.clone();
    let put = match error {
        PutImageError::Manifest(error) => return Error::InvalidParameterText(error.to_string()),
        PutImageError::DigestMismatch { actual } => {
            return Error::ImageDigestDoesNotMatch { expected: or_null(expected), actual };
        }
        PutImageError::Put(put) => put,
    };
    match put {
        PutManifestError::NoRepository => Error::RepositoryNotFound(place),
        PutManifestError::BlobsNotFound(digests) => Error::LayersNotFound { digests, place },
        PutManifestError::ChildrenNotFound(digests) => Error::ReferencedImagesNotFound { digests, place },
        PutManifestError::SizeMismatch(mismatch) => {
            Error::InvalidParameterText(InvalidManifest::from(mismatch).to_string())
        }
        PutManifestError::TagAlreadyExists { tag, current } => {
            // The same image under the same immutable tag changes nothing, which is another thing than overwriting it.
            if current == Digest::of(current.algorithm(), payload) {
                let tag = Cow::Owned(tag.to_string());
                return Error::ImageAlreadyExists { digest: current, tag, place };
            }
            Error::ImageTagAlreadyExists { tag, repository: place.name }
        }
        PutManifestError::TooManyImages(limit) => {
            Error::LimitExceeded(format!("The repository with name '{}' has its {limit} images", place.name))
        }
        PutManifestError::TooManyTags(limit) => Error::LimitExceeded(format!("The image has its {limit} tags")),
        PutManifestError::Store(error) => error.into(),
    }
}

/// ECR's `Image`.
fn image_shape(place: &Place, digest: &Digest, tag: Option<&Tag>, payload: &[u8], media_type: &str) -> Value {
    json!({
        "registryId": place.account,
        "repositoryName": place.name,
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
    /// BatchGetImage's.
    BatchGet {
        registry_id: String,
        repository_name: String,
        image_ids: Vec<ImageId>,
        accepted_media_types: Vec<String>,
    }
}

/// BatchGetImage. `acceptedMediaTypes` is checked and otherwise let be: manifests are given as they are stored.
pub(crate) async fn batch_get(call: &Call, input: BatchGet) -> Result<Value, Error> {
    let place = call.place(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let ids = required("imageIds", input.image_ids)?;
    input::count("imageIds", &ids, 1..=100)?;
    if let Some(types) = &input.accepted_media_types {
        input::count("acceptedMediaTypes", types, 1..=100)?;
    }
    call.repository(&place).await?;
    let (mut images, mut failures, mut pulls, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let memory = memory::process();
    // The call's own account, which goes on to hold the answer.
    let mut account = call.account.lock().await;
    account.expect(2 * MAX_MANIFESTS);
    // A manifest is in memory twice: on its way into the answer, and in it.
    let size = |found: &Result<(Manifest, Option<Tag>), Fault>| {
        found.as_ref().map_or(0, |(manifest, _)| 2 * manifest.payload.len())
    };
    for id in &ids {
        let found = memory.read(&mut account, 2 * bytes, || Box::pin(find(call, &place, id)), size).await?;
        match found {
            Ok((mut manifest, tag)) => {
                let payload = std::mem::take(&mut manifest.payload);
                bytes += payload.len();
                if bytes > MAX_MANIFESTS {
                    return Err(Error::LimitExceeded(format!(
                        "The manifests have more than {MAX_MANIFESTS} bytes together: ask for fewer imageIds"
                    )));
                }
                let Manifest { digest, media_type, .. } = &manifest;
                images.push(image_shape(&place, digest, tag.as_ref(), &payload, media_type));
                pulls.push(manifest);
            }
            Err(fault) => failures.push(failure(id, fault.code(), fault.reason())),
        }
    }
    call.registry.pulls.record(&pulls, call.now).await?;
    Ok(json!({ "images": images, "failures": failures }))
}

/// The manifest that an identifier means, and the tag that it was asked for by.
async fn find(call: &Call, place: &Place, id: &ImageId) -> Result<Result<(Manifest, Option<Tag>), Fault>, Error> {
    let (reference, tag, digest) = match id.selector() {
        Ok(Selector::Tag(tag)) => (Reference::Tag(tag.clone()), Some(tag), None),
        Ok(Selector::Both(tag, digest)) => (Reference::Tag(tag.clone()), Some(tag), Some(digest)),
        Ok(Selector::Digest(digest)) => (Reference::Digest(digest), None, None),
        Err(fault) => return Ok(Err(fault)),
    };
    Ok(match call.registry.metadata.find_manifest(&place.account, &place.name, &reference).await? {
        Lookup::NoRepository => return Err(Error::RepositoryNotFound(place.clone())),
        Lookup::Missing => Err(Fault::ImageNotFound),
        Lookup::Found(manifest) if digest.is_some_and(|digest| digest != manifest.digest) => {
            Err(Fault::ImageTagDoesNotMatchDigest)
        }
        Lookup::Found(manifest) if manifest.status != ImageStatus::Active => Err(Fault::ImageInaccessible),
        Lookup::Found(manifest) => Ok((manifest, tag)),
    })
}

input! {
    /// BatchDeleteImage's.
    BatchDelete { registry_id: String, repository_name: String, image_ids: Vec<ImageId> }
}

/// BatchDeleteImage. A tag is removed, and with the last one its image; a digest takes its tags along.
pub(crate) async fn batch_delete(call: &Call, input: BatchDelete) -> Result<Value, Error> {
    let place = call.place(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let ids = required("imageIds", input.image_ids)?;
    input::count("imageIds", &ids, 1..=100)?;
    let repository = call.repository(&place).await?;
    let selectors: Vec<Result<Selector, Fault>> = ids.iter().map(ImageId::selector).collect();
    let deletions: Vec<ImageDeletion> = selectors.iter().flatten().map(deletion).collect();
    let outcomes = match deletions.as_slice() {
        [] => Vec::new(),
        deletions => call.registry.metadata.delete_images(repository.id, deletions, call.now).await?,
    };
    let (mut outcomes, mut deleted, mut failures) = (outcomes.into_iter(), Vec::new(), Vec::new());
    for (id, selector) in ids.iter().zip(selectors) {
        let outcome = match selector {
            Ok(_) => outcomes.next().map(|outcome| outcome.map_err(Undeleted::from)),
            Err(fault) => Some(Err(Undeleted::Fault(fault))),
        };
        match outcome {
            Some(Ok(ImageDeleted { digest, tags, .. })) => {
                let none = tags.is_empty().then(|| image_id(&digest, None));
                deleted.extend(tags.iter().map(|tag| image_id(&digest, Some(tag))).chain(none));
            }
            Some(Err(Undeleted::Fault(fault))) => failures.push(failure(id, fault.code(), fault.reason())),
            Some(Err(Undeleted::ReferencedBy(parents))) => {
                let parents: Vec<&str> = parents.iter().map(Digest::as_str).collect();
                let reason = format!("Requested image referenced by manifest list: [{}]", parents.join(", "));
                failures.push(failure(id, "ImageReferencedByManifestList", &reason));
            }
            Some(Err(Undeleted::Error(error))) => return Err(error),
            None => return Err(StoreError::Inconsistent("a deletion has no outcome".to_owned()).into()),
        }
    }
    Ok(json!({ "imageIds": deleted, "failures": failures }))
}

fn deletion(selector: &Selector) -> ImageDeletion {
    match selector {
        Selector::Digest(digest) => ImageDeletion::Image(digest.clone()),
        Selector::Tag(tag) => ImageDeletion::Tag { tag: tag.clone(), expected: None },
        Selector::Both(tag, digest) => ImageDeletion::Tag { tag: tag.clone(), expected: Some(digest.clone()) },
    }
}

/// Why an image of a batch was not deleted.
enum Undeleted {
    Fault(Fault),
    ReferencedBy(Vec<Digest>),
    Error(Error),
}

impl From<DeleteImageError> for Undeleted {
    fn from(error: DeleteImageError) -> Self {
        match error {
            DeleteImageError::NotFound => Self::Fault(Fault::ImageNotFound),
            DeleteImageError::TagPointsElsewhere(_) => Self::Fault(Fault::ImageTagDoesNotMatchDigest),
            // Only an expiry says what it was decided by.
            DeleteImageError::Stale(_) => Self::Fault(Fault::ImageNotFound),
            DeleteImageError::ReferencedBy(parents) => Self::ReferencedBy(parents),
            DeleteImageError::Store(error) => Self::Error(error.into()),
        }
    }
}

input! {
    /// UpdateImageStorageClass's.
    UpdateStorageClass {
        registry_id: String,
        repository_name: String,
        image_id: ImageId,
        target_storage_class: String,
    }
}

/// UpdateImageStorageClass.
pub(crate) async fn update_storage_class(call: &Call, input: UpdateStorageClass) -> Result<Value, Error> {
    let place = call.place(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let id = required("imageId", input.image_id)?;
    let selector = id.required_selector("imageId")?;
    let class = required("targetStorageClass", input.target_storage_class)?;
    let classes = [("STANDARD", StorageClass::Standard), ("ARCHIVE", StorageClass::Archive)];
    let class = input::one_of("targetStorageClass", &class, &classes)?;
    let repository = call.repository(&place).await?;
    let TaggedImage { image, .. } = one(call, &place, &repository, &id, selector).await?;

    let metadata = call.registry.metadata.as_ref();
    let changed = metadata.set_storage_class(repository.id, &image.digest, class, call.now).await;
    let status = changed.map_err(|error| match error {
        // Only a lifecycle policy's job says what it decided by.
        StorageClassError::NotFound | StorageClassError::Stale(_) => not_found(&place, &id),
        StorageClassError::Unchanged(status) => Error::StorageClassUpdateNotSupported(format!(
            "The image '{}' is {} already",
            image.digest,
            status.as_str()
        )),
        StorageClassError::ReferencedBy(parents) => {
            let parents: Vec<&str> = parents.iter().map(Digest::as_str).collect();
            Error::StorageClassUpdateNotSupported(format!(
                "Requested image referenced by manifest list: [{}]",
                parents.join(", ")
            ))
        }
        StorageClassError::Store(error) => error.into(),
    })?;
    let tag = id.image_tag.as_deref().and_then(|tag| tag.parse::<Tag>().ok());
    Ok(json!({
        "registryId": place.account,
        "repositoryName": place.name,
        "imageId": image_id(&image.digest, tag.as_ref()),
        "imageStatus": status.as_str(),
    }))
}

/// The error of an image that is not there.
pub(crate) fn not_found(place: &Place, id: &ImageId) -> Error {
    let (digest, tag) = (or_null(id.image_digest.as_ref()), or_null(id.image_tag.as_ref()));
    Error::ImageNotFound { digest, tag, place: place.clone() }
}

/// The one image that an operation is about.
pub(crate) async fn one(
    call: &Call,
    place: &Place,
    repository: &Repository,
    id: &ImageId,
    selector: Option<Selector>,
) -> Result<TaggedImage, Error> {
    let selector = selector.ok_or_else(|| not_found(place, id))?;
    let found = call.registry.metadata.find_images(repository.id, &[selector.reference()]).await?;
    let found = found.into_iter().next().flatten().filter(|found| selector.agrees(&found.image.digest));
    found.ok_or_else(|| not_found(place, id))
}

impl Selector {
    /// What to look the image up by.
    pub(crate) fn reference(&self) -> Reference {
        match self {
            Self::Tag(tag) | Self::Both(tag, _) => Reference::Tag(tag.clone()),
            Self::Digest(digest) => Reference::Digest(digest.clone()),
        }
    }

    /// Whether what the reference led to is what was asked for.
    pub(crate) fn agrees(&self, found: &Digest) -> bool {
        match self {
            Self::Both(_, digest) => digest == found,
            Self::Tag(_) | Self::Digest(_) => true,
        }
    }
}
