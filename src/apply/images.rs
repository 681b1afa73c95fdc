//! The images of one repository through the ECR API, for the operator when it enforces a lifecycle policy itself.

use std::collections::HashMap;

use aws_sdk_ecr::error::ProvideErrorMetadata as _;
use aws_sdk_ecr::primitives::DateTime;
use aws_sdk_ecr::types::{
    DescribeImagesFilter, ImageDetail, ImageIdentifier, ImageStatusFilter, TagStatus,
    TargetStorageClass,
};
use jiff::Timestamp;
use serde::Deserialize;

use super::client::{Ecr, api_error};
use super::response::unexpected;
use wharfage_domain::lifecycle::{Image, ImageStatus};
use wharfage_domain::names::{Digest, RepositoryName, Tag};
use wharfage_plan::model::ApiError;

/// Images per page, ECR's maximum.
const PAGE: i32 = 1000;
/// The most images that one request may name.
pub const MAX_IMAGE_IDS: usize = 100;
/// Manifests per request, of at most 4 MiB each.
const MANIFESTS: usize = 8;
/// The media types of indexes.
const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// An image as DescribeImages returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// The input of a lifecycle policy. DescribeImages does not return `parents`, so they are empty.
    pub image: Image,
    /// `imageSizeInBytes`. For an index, ECR returns the size of its largest child.
    pub bytes: u64,
    /// It is an index.
    pub is_index: bool,
}

/// Returns every image of a repository, including archived ones.
///
/// # Errors
/// When the registry rejects the request or is unreachable, or any image cannot be read: an incomplete list would be wrong.
pub async fn images(ecr: &Ecr, name: &RepositoryName) -> Result<Vec<StoredImage>, ApiError> {
    let filter = DescribeImagesFilter::builder()
        .tag_status(TagStatus::Any)
        .image_status(ImageStatusFilter::Any)
        .build();
    let request = ecr.client.describe_images().set_registry_id(ecr.registry_id.clone());
    let mut pages = request
        .repository_name(name.as_str())
        .filter(filter)
        .max_results(PAGE)
        .into_paginator()
        .send();
    let mut images = Vec::new();
    while let Some(page) = pages.next().await {
        for detail in page.map_err(|error| api_error(&error))?.image_details() {
            images.push(stored_image(detail)?);
        }
    }
    Ok(images)
}

/// Reads these images again, without those that were deleted.
///
/// # Errors
/// As for [`images`].
pub async fn reread_images(
    ecr: &Ecr,
    name: &RepositoryName,
    digests: &[&Digest],
) -> Result<HashMap<Digest, StoredImage>, ApiError> {
    let mut found = HashMap::new();
    for digests in digests.chunks(MAX_IMAGE_IDS) {
        let ids = digests.iter().map(|digest| image_id(digest, None)).collect();
        let request = ecr.client.describe_images().set_registry_id(ecr.registry_id.clone());
        match request.repository_name(name.as_str()).set_image_ids(Some(ids)).send().await {
            Ok(answer) => {
                for detail in answer.image_details() {
                    let stored = stored_image(detail)?;
                    found.insert(stored.image.digest.clone(), stored);
                }
            }
            // One deleted image fails the whole call, and the error does not name it.
            Err(error) if error.code() == Some("ImageNotFoundException") => {
                let all = images(ecr, name).await?;
                let asked =
                    all.into_iter().filter(|stored| digests.contains(&&stored.image.digest));
                found.extend(asked.map(|stored| (stored.image.digest.clone(), stored)));
            }
            Err(error) => return Err(api_error(&error)),
        }
    }
    Ok(found)
}

fn stored_image(detail: &ImageDetail) -> Result<StoredImage, ApiError> {
    let digest = detail.image_digest().unwrap_or_default();
    let digest: Digest = digest.parse().map_err(|_| unexpected("imageDigest", digest))?;
    let tags = detail
        .image_tags()
        .iter()
        .map(|tag| tag.parse::<Tag>().map_err(|_| unexpected("imageTags", tag)));
    let status =
        detail.image_status().map_or(ImageStatus::Active.as_str(), |status| status.as_str());
    let pushed_at = detail.image_pushed_at().ok_or_else(|| unexpected("imagePushedAt", ""))?;
    let time = |field, at: Option<&DateTime>| at.map(|at| time(field, at)).transpose();
    let subject = detail.subject_manifest_digest();
    Ok(StoredImage {
        image: Image {
            digest,
            tags: tags.collect::<Result<_, _>>()?,
            pushed_at: self::time("imagePushedAt", pushed_at)?,
            last_pulled_at: time("lastRecordedPullTime", detail.last_recorded_pull_time())?,
            status: ImageStatus::parse(status).ok_or_else(|| unexpected("imageStatus", status))?,
            archived_at: time("lastArchivedAt", detail.last_archived_at())?,
            activated_at: time("lastActivatedAt", detail.last_activated_at())?,
            subject: subject
                .map(|it| it.parse().map_err(|_| unexpected("subjectManifestDigest", it)))
                .transpose()?,
            parents: Vec::new(),
        },
        bytes: detail
            .image_size_in_bytes()
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or_default(),
        is_index: detail.image_manifest_media_type().is_some_and(|it| INDEXES.contains(&it)),
    })
}

fn time(field: &str, at: &DateTime) -> Result<Timestamp, ApiError> {
    let nanosecond = i32::try_from(at.subsec_nanos()).unwrap_or_default();
    Timestamp::new(at.secs(), nanosecond)
        .map_err(|_| unexpected(field, &format!("{} s", at.secs())))
}

fn image_id(digest: &Digest, tag: Option<&Tag>) -> ImageIdentifier {
    ImageIdentifier::builder()
        .image_digest(digest.as_str())
        .set_image_tag(tag.map(ToString::to_string))
        .build()
}

/// The children of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Children {
    /// The listed manifests, stored or not.
    Listed(Vec<Digest>),
    /// The index cannot be read, for example because it is archived.
    Unreadable,
}

/// Reads the children of these indexes, without indexes that were deleted. The read counts as a pull, because ECR has no other
/// operation for it.
///
/// # Errors
/// When the registry rejects the request or is unreachable, or returns something that is not an index.
pub async fn children(
    ecr: &Ecr,
    name: &RepositoryName,
    indexes: &[&Digest],
) -> Result<HashMap<Digest, Children>, ApiError> {
    let mut found = HashMap::new();
    for indexes in indexes.chunks(MANIFESTS) {
        let ids = indexes.iter().map(|digest| image_id(digest, None)).collect();
        let mut request = ecr.client.batch_get_image().set_registry_id(ecr.registry_id.clone());
        request = request.repository_name(name.as_str()).set_image_ids(Some(ids));
        for media_type in INDEXES {
            request = request.accepted_media_types(media_type);
        }
        let answer = request.send().await.map_err(|error| api_error(&error))?;
        for image in answer.images() {
            let digest = image.image_id().and_then(|id| id.image_digest()).unwrap_or_default();
            let digest: Digest = digest.parse().map_err(|_| unexpected("imageDigest", digest))?;
            let listed = read_index(image.image_manifest().unwrap_or_default())
                .ok_or_else(|| unexpected("imageManifest", &format!("no index, at {digest}")))?;
            found.insert(digest, Children::Listed(listed));
        }
        for failure in answer.failures() {
            let digest = failure.image_id().and_then(|id| id.image_digest()).unwrap_or_default();
            let digest: Digest = digest.parse().map_err(|_| unexpected("imageDigest", digest))?;
            if failure.failure_code().is_none_or(|code| code.as_str() != "ImageNotFound") {
                found.insert(digest, Children::Unreadable);
            }
        }
    }
    Ok(found)
}

/// Returns the digests that an index lists, without those of algorithms that ECR does not have.
fn read_index(manifest: &str) -> Option<Vec<Digest>> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Descriptor>,
    }
    #[derive(Deserialize)]
    struct Descriptor {
        digest: String,
    }
    let index: Index = serde_json::from_str(manifest).ok()?;
    Some(index.manifests.into_iter().filter_map(|it| it.digest.parse().ok()).collect())
}

/// An image, or one of its tags, that a registry did not delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undeleted {
    /// The image.
    pub digest: Digest,
    /// `failureCode`.
    pub code: String,
    /// `failureReason`.
    pub reason: String,
}

/// Deletes images, and returns those that were not deleted. An image with tags is deleted tag by tag: it stays if it got another
/// tag, or lost one to another image, since its tags were read.
///
/// # Errors
/// When the registry rejects the whole request or is unreachable.
pub async fn delete(
    ecr: &Ecr,
    name: &RepositoryName,
    images: &[(&Digest, &[Tag])],
) -> Result<Vec<Undeleted>, ApiError> {
    let ids: Vec<ImageIdentifier> = images
        .iter()
        .flat_map(|(digest, tags)| {
            let untagged = tags.is_empty().then(|| image_id(digest, None));
            tags.iter().map(|tag| image_id(digest, Some(tag))).chain(untagged)
        })
        .collect();
    let mut undeleted = Vec::new();
    for ids in ids.chunks(MAX_IMAGE_IDS) {
        let request = ecr.client.batch_delete_image().set_registry_id(ecr.registry_id.clone());
        let answer =
            request.repository_name(name.as_str()).set_image_ids(Some(ids.to_vec())).send().await;
        for failure in answer.map_err(|error| api_error(&error))?.failures() {
            let digest = failure.image_id().and_then(|id| id.image_digest()).unwrap_or_default();
            undeleted.push(Undeleted {
                digest: digest.parse().map_err(|_| unexpected("imageDigest", digest))?,
                code: failure
                    .failure_code()
                    .map(|code| code.as_str().to_owned())
                    .unwrap_or_default(),
                reason: failure.failure_reason().unwrap_or_default().to_owned(),
            });
        }
    }
    Ok(undeleted)
}

/// Moves an image to the archive.
///
/// # Errors
/// When the registry rejects the request or is unreachable.
pub async fn archive(ecr: &Ecr, name: &RepositoryName, digest: &Digest) -> Result<(), ApiError> {
    let request = ecr.client.update_image_storage_class().set_registry_id(ecr.registry_id.clone());
    let request = request.repository_name(name.as_str()).image_id(image_id(digest, None));
    let answer = request.target_storage_class(TargetStorageClass::Archive).send().await;
    answer.map(drop).map_err(|error| api_error(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_lists_its_children_and_nothing_else_is_one() {
        let (one, other) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [
            { "digest": one, "size": 1 }, { "digest": "md5:abc" }, { "digest": other, "platform": { "os": "linux" } },
        ] });
        assert_eq!(read_index(&index.to_string()), Some(vec![one, other]));
        for text in ["", "[]", r#"{"layers": []}"#, r#"{"manifests": {}}"#] {
            assert_eq!(read_index(text), None, "{text}");
        }
    }

    #[test]
    fn what_describe_images_leaves_out_has_ecrs_meaning() {
        let digest = Digest::sha256(b"x");
        let detail = ImageDetail::builder()
            .image_digest(digest.as_str())
            .image_pushed_at(DateTime::from_secs_and_nanos(7, 123_000_000))
            .build();
        let stored = stored_image(&detail).unwrap();
        assert_eq!(stored.image.status, ImageStatus::Active);
        assert_eq!(stored.image.pushed_at, Timestamp::new(7, 123_000_000).unwrap());
        assert!(stored.image.tags.is_empty() && stored.image.subject.is_none() && !stored.is_index);
    }

    #[test]
    fn an_image_that_makes_no_sense_is_an_error_and_not_left_out() {
        let good = || {
            let builder = ImageDetail::builder().image_digest(Digest::sha256(b"x").as_str());
            builder.image_pushed_at(DateTime::from_secs(7))
        };
        assert!(stored_image(&good().build()).is_ok());
        for (field, bad) in [
            ("imageDigest", good().image_digest("sha256:x")),
            ("imageTags", good().image_tags("not a tag")),
            ("imageStatus", good().image_status("FROZEN".into())),
            ("imagePushedAt", good().set_image_pushed_at(None)),
            ("subjectManifestDigest", good().subject_manifest_digest("x")),
        ] {
            let error = stored_image(&bad.build()).unwrap_err();
            assert_eq!(error.name, "UnexpectedValue");
            assert!(error.message.contains(field), "{error}");
        }
    }
}
