//! Each call of a plan as a call of aws-sdk-ecr.

use std::collections::BTreeMap;

use aws_sdk_ecr::error::ProvideErrorMetadata as _;
use aws_sdk_ecr::types::{
    EncryptionConfiguration, EncryptionType, ImageScanningConfiguration, ImageTagMutability,
    ImageTagMutabilityExclusionFilter, ImageTagMutabilityExclusionFilterType, Tag,
};

use super::client::{Ecr, api_error};
use super::error::client_error;
use super::observe::Listed;
use super::settings;
use wharfage_domain::names::RepositoryName;
use wharfage_domain::tag_mutability::TagMutability;
use wharfage_plan::model::ApiError;
use wharfage_plan::{Call, Step};

/// Makes a step's calls in order, up to the first that fails. `arn` is that of the step's repository, where it is not in the
/// step itself. `done` is told of each call that succeeded, and of the repository that it made.
///
/// # Errors
/// What the registry said to the first call that failed.
pub async fn execute(
    ecr: &Ecr,
    step: &Step,
    arn: Option<&str>,
    mut done: impl FnMut(&Call, Option<Listed>),
) -> Result<(), ApiError> {
    let mut arn = step.arn.clone().or_else(|| arn.map(str::to_owned));
    for call in &step.calls {
        if settings::put(ecr, call).await? {
            done(call, None);
            continue;
        }
        let name = step.repository.as_ref().ok_or_else(|| client_error("the step names no repository".to_owned()))?;
        if let Call::CreateRepository { .. } = call {
            let made = create(ecr, name, call).await?;
            arn = Some(made.arn.clone());
            done(call, Some(made));
            continue;
        }
        repository_call(ecr, name, arn.as_deref(), call).await?;
        done(call, None);
    }
    Ok(())
}

async fn create(ecr: &Ecr, name: &RepositoryName, call: &Call) -> Result<Listed, ApiError> {
    let Call::CreateRepository { tag_mutability, scan_on_push, encryption, tags: wanted } = call else {
        return Err(client_error(format!("{name} was to be created")));
    };
    let mut request = ecr
        .client
        .create_repository()
        .set_registry_id(ecr.registry_id.clone())
        .repository_name(name.as_str())
        .image_tag_mutability(mutability(tag_mutability))
        .set_image_tag_mutability_exclusion_filters(filters(tag_mutability)?)
        .image_scanning_configuration(scanning(*scan_on_push))
        .set_tags(Some(tags(wanted)?));
    if let Some((kind, key)) = encryption {
        let configuration = EncryptionConfiguration::builder()
            .encryption_type(EncryptionType::from(kind.as_str()))
            .set_kms_key(key.clone())
            .build();
        request = request.encryption_configuration(configuration.map_err(|error| client_error(error.to_string()))?);
    }
    let answer = request.send().await.map_err(|error| api_error(&error))?;
    Listed::read(
        answer.repository().ok_or_else(|| client_error(format!("the registry did not say what {name} became")))?,
    )
}

async fn repository_call(ecr: &Ecr, name: &RepositoryName, arn: Option<&str>, call: &Call) -> Result<(), ApiError> {
    let (client, registry, repository) = (&ecr.client, ecr.registry_id.clone(), name.as_str());
    let arn = || arn.ok_or_else(|| client_error(format!("the ARN of {name} is not known")));
    /// What is gone already needs no deleting.
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
        Call::PutImageTagMutability(to) => send!(
            client
                .put_image_tag_mutability()
                .set_registry_id(registry)
                .repository_name(repository)
                .image_tag_mutability(mutability(to))
                .set_image_tag_mutability_exclusion_filters(filters(to)?)
        ),
        Call::PutImageScanningConfiguration { scan_on_push } => send!(
            client
                .put_image_scanning_configuration()
                .set_registry_id(registry)
                .repository_name(repository)
                .image_scanning_configuration(scanning(*scan_on_push))
        ),
        Call::TagResource(wanted) => send!(client.tag_resource().resource_arn(arn()?).set_tags(Some(tags(wanted)?))),
        Call::UntagResource(keys) => {
            send!(client.untag_resource().resource_arn(arn()?).set_tag_keys(Some(keys.clone())))
        }
        Call::SetRepositoryPolicy(text) => send!(
            client.set_repository_policy().set_registry_id(registry).repository_name(repository).policy_text(text)
        ),
        Call::DeleteRepositoryPolicy => send!(
            client.delete_repository_policy().set_registry_id(registry).repository_name(repository),
            gone: "RepositoryPolicyNotFoundException"
        ),
        Call::PutLifecyclePolicy(text) => send!(
            client
                .put_lifecycle_policy()
                .set_registry_id(registry)
                .repository_name(repository)
                .lifecycle_policy_text(text)
        ),
        Call::DeleteLifecyclePolicy => send!(
            client.delete_lifecycle_policy().set_registry_id(registry).repository_name(repository),
            gone: "LifecyclePolicyNotFoundException"
        ),
        Call::StartLifecyclePolicyPreview(text) => send!(
            client
                .start_lifecycle_policy_preview()
                .set_registry_id(registry)
                .repository_name(repository)
                .lifecycle_policy_text(text)
        ),
        Call::DeleteRepository { force } => send!(
            client.delete_repository().set_registry_id(registry).repository_name(repository).force(*force),
            gone: "RepositoryNotFoundException"
        ),
        Call::CreateRepository { .. }
        | Call::PutAccountSetting { .. }
        | Call::PutRegistryPolicy(_)
        | Call::DeleteRegistryPolicy
        | Call::PutRegistryScanningConfiguration(_) => {
            Err(client_error(format!("{call:?} is no call about a repository that is there")))
        }
    }
}

fn mutability(wanted: &TagMutability) -> ImageTagMutability {
    ImageTagMutability::from(wanted.mode.as_str())
}

fn filters(wanted: &TagMutability) -> Result<Option<Vec<ImageTagMutabilityExclusionFilter>>, ApiError> {
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
    wanted.iter().map(tag).collect::<Result<_, _>>().map_err(|error| client_error(error.to_string()))
}
