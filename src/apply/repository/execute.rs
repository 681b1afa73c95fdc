//! Executes the calls about one repository.

use std::collections::BTreeMap;

use aws_sdk_ecr::error::ProvideErrorMetadata as _;
use aws_sdk_ecr::types::{
    EncryptionConfiguration, EncryptionType, ImageScanningConfiguration, ImageTagMutability,
    ImageTagMutabilityExclusionFilter, ImageTagMutabilityExclusionFilterType, Tag,
};

use super::Listed;
use crate::client::{Ecr, api_error};
use crate::error::client_error;
use wharfage_domain::names::RepositoryName;
use wharfage_domain::tag_mutability::TagMutability;
use wharfage_plan::model::ApiError;
use wharfage_plan::{ObjectKey, RepositoryCall};

/// Executes one call about a repository, and returns the repository that it created.
pub(crate) async fn execute(
    ecr: &Ecr,
    key: &ObjectKey,
    arn: Option<&str>,
    call: &RepositoryCall,
) -> Result<Option<Listed>, ApiError> {
    let name =
        key.repository().ok_or_else(|| client_error("the step names no repository".to_owned()))?;
    if let RepositoryCall::CreateRepository { tag_mutability, scan_on_push, encryption, tags } =
        call
    {
        return create(ecr, name, tag_mutability, *scan_on_push, encryption.as_ref(), tags)
            .await
            .map(Some);
    }
    change(ecr, name, arn, call).await.map(|()| None)
}

async fn create(
    ecr: &Ecr,
    name: &RepositoryName,
    tag_mutability: &TagMutability,
    scan_on_push: bool,
    encryption: Option<&(String, Option<String>)>,
    wanted: &BTreeMap<String, String>,
) -> Result<Listed, ApiError> {
    let mut request = ecr
        .client
        .create_repository()
        .set_registry_id(ecr.registry_id.clone())
        .repository_name(name.as_str())
        .image_tag_mutability(mutability(tag_mutability))
        .set_image_tag_mutability_exclusion_filters(filters(tag_mutability)?)
        .image_scanning_configuration(scanning(scan_on_push))
        .set_tags(Some(tags(wanted)?));
    if let Some((kind, key)) = encryption {
        let configuration = EncryptionConfiguration::builder()
            .encryption_type(EncryptionType::from(kind.as_str()))
            .set_kms_key(key.clone())
            .build();
        request = request.encryption_configuration(
            configuration.map_err(|error| client_error(error.to_string()))?,
        );
    }
    let answer = request.send().await.map_err(|error| api_error(&error))?;
    Listed::read(
        answer
            .repository()
            .ok_or_else(|| client_error(format!("the registry did not say what {name} became")))?,
    )
}

async fn change(
    ecr: &Ecr,
    name: &RepositoryName,
    arn: Option<&str>,
    call: &RepositoryCall,
) -> Result<(), ApiError> {
    let (client, registry, repository) = (&ecr.client, ecr.registry_id.clone(), name.as_str());
    let arn = || arn.ok_or_else(|| client_error(format!("the ARN of {name} is not known")));
    /// Sends a request. `gone` is the error's code if there is nothing to delete any more, which is a success.
    macro_rules! send {
        ($request:expr) => {
            $request.send().await.map(drop).map_err(|error| api_error(&error))
        };
        ($request:expr, gone: $gone:literal) => {
            match $request.send().await {
                Err(error) if error.code() != Some($gone) => Err(api_error(&error)),
                _ => Ok(()),
            }
        };
    }
    match call {
        RepositoryCall::PutImageTagMutability(to) => send!(
            client
                .put_image_tag_mutability()
                .set_registry_id(registry)
                .repository_name(repository)
                .image_tag_mutability(mutability(to))
                .set_image_tag_mutability_exclusion_filters(filters(to)?)
        ),
        RepositoryCall::PutImageScanningConfiguration { scan_on_push } => send!(
            client
                .put_image_scanning_configuration()
                .set_registry_id(registry)
                .repository_name(repository)
                .image_scanning_configuration(scanning(*scan_on_push))
        ),
        RepositoryCall::TagResource(wanted) => {
            send!(client.tag_resource().resource_arn(arn()?).set_tags(Some(tags(wanted)?)))
        }
        RepositoryCall::UntagResource(keys) => {
            send!(client.untag_resource().resource_arn(arn()?).set_tag_keys(Some(keys.clone())))
        }
        RepositoryCall::SetRepositoryPolicy(text) => send!(
            client
                .set_repository_policy()
                .set_registry_id(registry)
                .repository_name(repository)
                .policy_text(text)
        ),
        RepositoryCall::DeleteRepositoryPolicy => send!(
            client.delete_repository_policy().set_registry_id(registry).repository_name(repository),
            gone: "RepositoryPolicyNotFoundException"
        ),
        RepositoryCall::PutLifecyclePolicy(text) => send!(
            client
                .put_lifecycle_policy()
                .set_registry_id(registry)
                .repository_name(repository)
                .lifecycle_policy_text(text)
        ),
        RepositoryCall::DeleteLifecyclePolicy => send!(
            client.delete_lifecycle_policy().set_registry_id(registry).repository_name(repository),
            gone: "LifecyclePolicyNotFoundException"
        ),
        RepositoryCall::StartLifecyclePolicyPreview(text) => send!(
            client
                .start_lifecycle_policy_preview()
                .set_registry_id(registry)
                .repository_name(repository)
                .lifecycle_policy_text(text)
        ),
        RepositoryCall::DeleteRepository { force } => send!(
            client.delete_repository().set_registry_id(registry).repository_name(repository).force(*force),
            gone: "RepositoryNotFoundException"
        ),
        RepositoryCall::CreateRepository { .. } => {
            Err(client_error(format!("{name} exists already")))
        }
    }
}

fn mutability(wanted: &TagMutability) -> ImageTagMutability {
    ImageTagMutability::from(wanted.mode.as_str())
}

fn filters(
    wanted: &TagMutability,
) -> Result<Option<Vec<ImageTagMutabilityExclusionFilter>>, ApiError> {
    if wanted.exclusions.is_empty() {
        return Ok(None);
    }
    let filters = wanted.exclusions.iter().map(|filter| {
        ImageTagMutabilityExclusionFilter::builder()
            .filter_type(ImageTagMutabilityExclusionFilterType::Wildcard)
            .filter(filter)
            .build()
            .map_err(|error| client_error(error.to_string()))
    });
    filters.collect::<Result<Vec<_>, _>>().map(Some)
}

fn scanning(scan_on_push: bool) -> ImageScanningConfiguration {
    ImageScanningConfiguration::builder().scan_on_push(scan_on_push).build()
}

fn tags(wanted: &BTreeMap<String, String>) -> Result<Vec<Tag>, ApiError> {
    let tag = |(key, value): (&String, &String)| Tag::builder().key(key).value(value).build();
    wanted
        .iter()
        .map(tag)
        .collect::<Result<_, _>>()
        .map_err(|error| client_error(error.to_string()))
}
