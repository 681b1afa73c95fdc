//! Listings of images: identifiers, descriptions, referrers.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::error::{EcrError, RepositoryRef};
use super::images::{image_id, not_found};
use super::input::{self, ImageId, Selector, input, required};
use super::page::{self, ResultPage, Sizes, invalid_token};
use super::repositories::no_paging;
use super::{EcrCall, shapes};
use wharfage_domain::names::{Digest, Reference};
use wharfage_store::images::{
    ImageFilter, ImageIdentifier, ImageStatus, ReferrerFilter, TagStatusFilter, TaggedImage,
};
use wharfage_store::repositories::Repository;

/// The page sizes of ListImageReferrers, which are smaller than those of the others.
const REFERRERS: Sizes = Sizes { max: 50, default: 20 };

/// The values of `imageStatus` in filters; `ANY` means no filter.
const STATUSES: [(&str, Option<ImageStatus>); 4] = [
    ("ACTIVE", Some(ImageStatus::Active)),
    ("ARCHIVED", Some(ImageStatus::Archived)),
    ("ACTIVATING", Some(ImageStatus::Activating)),
    ("ANY", None),
];

input! {
    /// ECR's `ListImagesFilter` and `DescribeImagesFilter`.
    Filter { tag_status: String, image_status: String }
}

/// Parses `tagStatus` in filters.
pub(crate) fn tag_status(
    member: &'static str,
    text: Option<&str>,
) -> Result<TagStatusFilter, EcrError> {
    const ALL: [(&str, TagStatusFilter); 3] = [
        ("TAGGED", TagStatusFilter::Tagged),
        ("UNTAGGED", TagStatusFilter::Untagged),
        ("ANY", TagStatusFilter::Any),
    ];
    text.map_or(Ok(TagStatusFilter::Any), |text| input::one_of(member, text, &ALL))
}

fn status(member: &'static str, text: Option<&str>) -> Result<Option<ImageStatus>, EcrError> {
    text.map_or(Ok(Some(ImageStatus::Active)), |text| input::one_of(member, text, &STATUSES))
}

impl Filter {
    fn check(filter: Option<Self>) -> Result<ImageFilter, EcrError> {
        let filter = filter.unwrap_or_default();
        Ok(ImageFilter {
            tag_status: tag_status("filter.tagStatus", filter.tag_status.as_deref())?,
            status: status("filter.imageStatus", filter.image_status.as_deref())?,
        })
    }
}

/// Returns the identity of a listing, which distinguishes it from others of the same operation.
fn question(repository_ref: &RepositoryRef, filter: &ImageFilter) -> (String, String) {
    (repository_ref.name.to_string(), format!("{filter:?}"))
}

input! {
    /// The input of ListImages.
    ListImages {
        registry_id: String,
        repository_name: String,
        next_token: String,
        max_results: i64,
        filter: Filter,
    }
}

/// ListImages.
pub(crate) async fn list_images(call: &EcrCall, input: ListImages) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let filter = Filter::check(input.filter)?;
    let (token, size) = (input.next_token.as_deref(), input.max_results);
    let page = ResultPage::new(
        call,
        &repository_ref.account,
        question(&repository_ref, &filter),
        token,
        size,
        page::USUAL,
    )?;
    let after =
        page.after.as_deref().map(|key| parse_key(key).ok_or_else(invalid_token)).transpose()?;
    let repository = call.repository(&repository_ref).await?;
    let metadata = call.registry.metadata.as_ref();
    let found =
        metadata.list_image_ids(repository.id, filter, after.as_ref(), page.fetch()).await?;
    let (found, next_token) = page.cut(found, key);
    let ids: Vec<Value> = found.iter().map(|id| image_id(&id.digest, id.tag.as_ref())).collect();
    Ok(json!({ "imageIds": ids, "nextToken": next_token }))
}

/// Returns the key of an identifier in the listing. A digest contains no space.
fn key(id: &ImageIdentifier) -> String {
    match &id.tag {
        Some(tag) => format!("{} {tag}", id.digest),
        None => id.digest.to_string(),
    }
}

fn parse_key(key: &str) -> Option<ImageIdentifier> {
    let (digest, tag) =
        key.split_once(' ').map_or((key, None), |(digest, tag)| (digest, Some(tag)));
    Some(ImageIdentifier {
        digest: digest.parse().ok()?,
        tag: tag.map(str::parse).transpose().ok()?,
    })
}

/// The number of images that DescribeImages reads at once. A page also ends after this many bytes
/// of tags, because an image may have a thousand tags.
const DESCRIBED_AT_ONCE: usize = 100;
/// See [`DESCRIBED_AT_ONCE`].
const MAX_TAG_BYTES: usize = 1024 * 1024;

input! {
    /// The input of DescribeImages.
    DescribeImages {
        registry_id: String,
        repository_name: String,
        image_ids: Vec<ImageId>,
        next_token: String,
        max_results: i64,
        filter: Filter,
    }
}

/// DescribeImages.
pub(crate) async fn describe_images(
    call: &EcrCall,
    input: DescribeImages,
) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let filter = Filter::check(input.filter)?;
    let (token, size) = (input.next_token.as_deref(), input.max_results);
    if let Some(ids) = input.image_ids {
        input::count("imageIds", &ids, 1..=100)?;
        no_paging("imageIds", token, size)?;
        let mut selectors = Vec::with_capacity(ids.len());
        for id in &ids {
            selectors.push(id.required_selector("imageIds")?);
        }
        let repository = call.repository(&repository_ref).await?;
        return describe_these(call, &repository_ref, &repository, &ids, &selectors).await;
    }
    let page = ResultPage::new(
        call,
        &repository_ref.account,
        question(&repository_ref, &filter),
        token,
        size,
        page::USUAL,
    )?;
    let after = parse_digest(&page)?;
    let repository = call.repository(&repository_ref).await?;
    let metadata = call.registry.metadata.as_ref();
    let key = |tagged: &TaggedImage| tagged.image.digest.to_string();
    let (mut found, mut after, mut bytes) = (Vec::new(), after, 0);
    let (found, next_token) = loop {
        let wanted = (page.fetch() - found.len()).min(DESCRIBED_AT_ONCE);
        let batch = metadata.list_images(repository.id, filter, after.as_ref(), wanted).await?;
        let last = batch.len() < wanted;
        bytes += batch
            .iter()
            .flat_map(|tagged| &tagged.tags)
            .map(|tag| tag.as_str().len())
            .sum::<usize>();
        found.extend(batch);
        after = found.last().map(|tagged: &TaggedImage| tagged.image.digest.clone());
        if last || found.len() == page.fetch() {
            break page.cut(found, key);
        }
        if bytes > MAX_TAG_BYTES {
            break page.end(found, key);
        }
    };
    let details: Vec<Value> =
        found.iter().map(|tagged| shapes::image_detail(&repository_ref, tagged)).collect();
    Ok(json!({ "imageDetails": details, "nextToken": next_token }))
}

/// Parses the digest after which a listing continues.
fn parse_digest(page: &ResultPage) -> Result<Option<Digest>, EcrError> {
    page.after.as_deref().map(|key| key.parse().map_err(|_| invalid_token())).transpose()
}

/// Describes requested images: all of them, including archived ones, or an error.
async fn describe_these(
    call: &EcrCall,
    repository_ref: &RepositoryRef,
    repository: &Repository,
    ids: &[ImageId],
    selectors: &[Option<Selector>],
) -> Result<Value, EcrError> {
    let mut references: Vec<Reference> = Vec::with_capacity(ids.len());
    for (id, selector) in ids.iter().zip(selectors) {
        references
            .push(selector.as_ref().ok_or_else(|| not_found(repository_ref, id))?.reference());
    }
    let found = call.registry.metadata.find_images(repository.id, &references).await?;
    let (mut details, mut seen) = (Vec::new(), HashSet::new());
    for ((id, selector), found) in ids.iter().zip(selectors).zip(&found) {
        let agreeing = found.as_ref().filter(|found| {
            selector.as_ref().is_some_and(|selector| selector.agrees(&found.image.digest))
        });
        let tagged = agreeing.ok_or_else(|| not_found(repository_ref, id))?;
        if seen.insert(&tagged.image.digest) {
            details.push(shapes::image_detail(repository_ref, tagged));
        }
    }
    Ok(json!({ "imageDetails": details }))
}

input! {
    /// ECR's `SubjectIdentifier`.
    SubjectId { image_digest: String }
}

input! {
    /// ECR's `ListImageReferrersFilter`.
    ReferrersFilter { artifact_types: Vec<String>, artifact_status: String }
}

input! {
    /// The input of ListImageReferrers.
    ListReferrers {
        registry_id: String,
        repository_name: String,
        subject_id: SubjectId,
        filter: ReferrersFilter,
        next_token: String,
        max_results: i64,
    }
}

/// ListImageReferrers. A missing subject has no referrers.
pub(crate) async fn list_referrers(
    call: &EcrCall,
    input: ListReferrers,
) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let subject = required("subjectId", input.subject_id)?;
    let subject = required("subjectId.imageDigest", subject.image_digest)?;
    let digest = input::digest("subjectId.imageDigest", &subject)?;
    let filter = check_referrers_filter(input.filter.unwrap_or_default())?;
    let question = (repository_ref.name.to_string(), &subject, format!("{filter:?}"));
    let (token, size) = (input.next_token.as_deref(), input.max_results);
    let page = ResultPage::new(call, &repository_ref.account, question, token, size, REFERRERS)?;
    let after = parse_digest(&page)?;
    let repository = call.repository(&repository_ref).await?;
    let found = match digest {
        Some(digest) => {
            let metadata = call.registry.metadata.as_ref();
            metadata
                .list_referrers(repository.id, &digest, &filter, after.as_ref(), page.fetch())
                .await?
        }
        None => Vec::new(),
    };
    let (found, next_token) = page.cut(found, |image| image.digest.to_string());
    let referrers: Vec<Value> = found
        .iter()
        .map(|image| {
            json!({
                "digest": image.digest,
                "mediaType": image.media_type,
                "artifactType": image.artifact_type.as_ref().or(image.config_media_type.as_ref()),
                "size": image.payload_size,
                "annotations": if image.annotations.is_empty() { Value::Null } else { json!(image.annotations) },
                "artifactStatus": image.status.as_str(),
            })
        })
        .collect();
    Ok(json!({ "referrers": referrers, "nextToken": next_token }))
}

fn check_referrers_filter(filter: ReferrersFilter) -> Result<ReferrerFilter, EcrError> {
    let artifact_types = filter.artifact_types.unwrap_or_default();
    input::count("filter.artifactTypes", &artifact_types, 0..=5)?;
    for artifact_type in &artifact_types {
        input::length("filter.artifactTypes", artifact_type, 1..=255)?;
    }
    Ok(ReferrerFilter {
        artifact_types,
        status: status("filter.artifactStatus", filter.artifact_status.as_deref())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lists_key_is_read_back() {
        let digest = Digest::sha256(b"");
        for tag in [None, Some("v1".parse().unwrap())] {
            let id = ImageIdentifier { digest: digest.clone(), tag };
            assert_eq!(parse_key(&key(&id)), Some(id));
        }
        assert_eq!(parse_key("sha256:nonsense v1"), None);
    }

    #[test]
    fn lists_show_active_images_by_default() {
        let check = |tag_status: Option<&str>, image_status: Option<&str>| {
            let (tag_status, image_status) =
                (tag_status.map(str::to_owned), image_status.map(str::to_owned));
            Filter::check(Some(Filter { tag_status, image_status, ..Default::default() }))
        };
        let usual =
            ImageFilter { tag_status: TagStatusFilter::Any, status: Some(ImageStatus::Active) };
        assert_eq!(Filter::check(None).unwrap(), usual);
        assert_eq!(check(Some("ANY"), Some("ANY")).unwrap(), ImageFilter::EVERYTHING);
        assert_eq!(check(Some("UNTAGGED"), None).unwrap().tag_status, TagStatusFilter::Untagged);
        let refused = check(Some("tagged"), None).unwrap_err().to_string();
        assert!(refused.contains("[TAGGED, UNTAGGED, ANY]"), "{refused}");
        let refused = check(None, Some("GONE")).unwrap_err().to_string();
        assert!(refused.contains("[ACTIVE, ARCHIVED, ACTIVATING, ANY]"), "{refused}");
    }

    #[test]
    fn a_filter_of_referrers_has_up_to_five_types() {
        let check = |types: &[&str]| {
            let artifact_types = Some(types.iter().map(|&text| text.to_owned()).collect());
            check_referrers_filter(ReferrersFilter { artifact_types, ..Default::default() })
        };
        assert!(check(&["a"; 5]).is_ok());
        assert!(check(&["a"; 6]).is_err());
        assert!(check(&[""]).is_err());
        assert!(check(&[&"a".repeat(256)]).is_err());
    }
}
