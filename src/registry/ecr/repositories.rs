//! Repositories: creation, listing, deletion and settings.

use serde_json::{Value, json};

use super::error::{EcrError, RepositoryRef};
use super::input::{self, input, invalid, required};
use super::page::{self, ResultPage};
use super::{EcrCall, resource_tags, shapes};
use wharfage_store::repositories::{
    CreateRepositoryError, DeleteRepositoryError, Encryption, Mutability, NewRepository,
    RepositoryChange, TagMutability,
};

input! {
    /// The input of CreateRepository.
    Create {
        registry_id: String,
        repository_name: String,
        tags: Vec<resource_tags::Tag>,
        image_tag_mutability: String,
        image_tag_mutability_exclusion_filters: Vec<ExclusionFilter>,
        image_scanning_configuration: ScanningConfiguration,
        encryption_configuration: EncryptionConfiguration,
    }
}

input! {
    /// ECR's `ImageTagMutabilityExclusionFilter`.
    ExclusionFilter { filter_type: String, filter: String }
}

input! {
    /// ECR's `ImageScanningConfiguration`.
    ScanningConfiguration { scan_on_push: bool }
}

input! {
    /// ECR's `EncryptionConfiguration`.
    EncryptionConfiguration { encryption_type: String, kms_key: String }
}

/// CreateRepository.
pub(crate) async fn create(call: &EcrCall, input: Create) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let mutability = input.image_tag_mutability.as_deref().unwrap_or(Mutability::Mutable.as_str());
    let tag_mutability = tag_mutability(mutability, input.image_tag_mutability_exclusion_filters)?;
    let scan_on_push = input
        .image_scanning_configuration
        .and_then(|scanning| scanning.scan_on_push)
        .unwrap_or(false);
    let encryption = encryption(input.encryption_configuration)?;
    let tags = resource_tags::check(input.tags.unwrap_or_default())?;
    call.authorize(&repository_ref)?;
    if !tags.is_empty() {
        call.authorize_action("TagResource", &repository_ref)?;
    }

    let max = call.registry.config.limits.repositories;
    let RepositoryRef { account, name } = repository_ref.clone();
    let new = NewRepository {
        account,
        name,
        created_at: call.now,
        tag_mutability,
        scan_on_push,
        encryption,
        tags,
    };
    let created =
        call.registry.metadata.create_repository(new, max).await.map_err(|error| match error {
            CreateRepositoryError::AlreadyExists => {
                EcrError::RepositoryAlreadyExists(repository_ref)
            }
            CreateRepositoryError::LimitExceeded(limit) => EcrError::LimitExceeded(format!(
                "The registry has its {limit} repositories: delete one before creating another"
            )),
            CreateRepositoryError::Store(error) => error.into(),
        })?;
    Ok(json!({ "repository": shapes::repository(call, &created) }))
}

/// Parses `imageTagMutability` with its filters.
fn tag_mutability(
    mode: &str,
    filters: Option<Vec<ExclusionFilter>>,
) -> Result<TagMutability, EcrError> {
    const MEMBER: &str = "imageTagMutabilityExclusionFilters";
    let mode = input::one_of(
        "imageTagMutability",
        mode,
        &Mutability::ALL.map(|mode| (mode.as_str(), mode)),
    )?;
    let Some(filters) = filters else {
        return if mode.has_exclusions() {
            Err(invalid(
                MEMBER,
                format!("Member must not be null when imageTagMutability is {}", mode.as_str()),
            ))
        } else {
            Ok(TagMutability { mode, exclusions: Vec::new() })
        };
    };
    input::count(MEMBER, &filters, 1..=5)?;
    if !mode.has_exclusions() {
        return Err(invalid(
            MEMBER,
            format!("Member must be null when imageTagMutability is {}", mode.as_str()),
        ));
    }
    let exclusions: Result<_, _> = filters.into_iter().map(exclusion_filter).collect();
    Ok(TagMutability { mode, exclusions: exclusions? })
}

fn exclusion_filter(filter: ExclusionFilter) -> Result<String, EcrError> {
    const MEMBER: &str = "imageTagMutabilityExclusionFilters.filter";
    const TYPE: &str = "imageTagMutabilityExclusionFilters.filterType";
    input::one_of(TYPE, &required(TYPE, filter.filter_type)?, &[("WILDCARD", ())])?;
    let filter = required(MEMBER, filter.filter)?;
    input::length(MEMBER, &filter, 1..=128)?;
    if !filter.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'*' | b'-'))
    {
        return Err(invalid(MEMBER, "must satisfy regular expression '^[0-9a-zA-Z._*-]{1,128}$'"));
    }
    if filter.matches('*').count() > 2 {
        return Err(invalid(MEMBER, "Member must have at most two wildcards (*)"));
    }
    Ok(filter)
}

fn encryption(configuration: Option<EncryptionConfiguration>) -> Result<Encryption, EcrError> {
    const TYPE: &str = "encryptionConfiguration.encryptionType";
    const KEY: &str = "encryptionConfiguration.kmsKey";
    let Some(configuration) = configuration else { return Ok(Encryption::default()) };
    let kind = required(TYPE, configuration.encryption_type)?;
    let needs_key =
        input::one_of(TYPE, &kind, &[("AES256", false), ("KMS", true), ("KMS_DSSE", true)])?;
    if let Some(key) = &configuration.kms_key {
        input::length(KEY, key, 1..=2048)?;
    }
    if needs_key {
        // Never stored unencrypted under the name of a key.
        return Err(EcrError::Kms {
            message: "This registry has no KMS keys yet: use the encryptionType AES256",
            kms_error: "NotFoundException",
        });
    }
    if configuration.kms_key.is_some() {
        return Err(invalid(KEY, "Member must be null when encryptionType is AES256"));
    }
    Ok(Encryption::default())
}

input! {
    /// The input of DescribeRepositories.
    Describe {
        registry_id: String,
        repository_names: Vec<String>,
        next_token: String,
        max_results: i64,
    }
}

/// DescribeRepositories.
pub(crate) async fn describe(call: &EcrCall, input: Describe) -> Result<Value, EcrError> {
    let account = call.account(input.registry_id.as_deref())?;
    let Some(names) = input.repository_names else {
        let page = ResultPage::new(
            call,
            &account,
            (),
            input.next_token.as_deref(),
            input.max_results,
            page::USUAL,
        )?;
        call.authorize_registry(&account)?;
        let found = call
            .registry
            .metadata
            .list_repositories(&account, page.after.as_deref(), page.fetch())
            .await?;
        let (found, next_token) = page.cut(found, |repository| repository.name.to_string());
        let found: Vec<Value> =
            found.iter().map(|repository| shapes::repository(call, repository)).collect();
        return Ok(json!({ "repositories": found, "nextToken": next_token }));
    };
    input::count("repositoryNames", &names, 1..=100)?;
    no_paging("repositoryNames", input.next_token.as_deref(), input.max_results)?;
    let mut places = Vec::with_capacity(names.len());
    for name in &names {
        places
            .push(RepositoryRef::new(&account, &input::repository_name("repositoryNames", name)?));
    }
    let mut found = Vec::with_capacity(places.len());
    for repository_ref in &places {
        found.push(shapes::repository(call, &call.repository(repository_ref).await?));
    }
    Ok(json!({ "repositories": found }))
}

/// Refuses paging members in a request by name.
pub(crate) fn no_paging(
    with: &str,
    next_token: Option<&str>,
    max_results: Option<i64>,
) -> Result<(), EcrError> {
    match (next_token, max_results) {
        (None, None) => Ok(()),
        (Some(_), _) => {
            Err(invalid("nextToken", format!("Member must be null when {with} is given")))
        }
        (None, Some(_)) => {
            Err(invalid("maxResults", format!("Member must be null when {with} is given")))
        }
    }
}

input! {
    /// The input of DeleteRepository.
    Delete { registry_id: String, repository_name: String, force: bool }
}

/// DeleteRepository.
pub(crate) async fn delete(call: &EcrCall, input: Delete) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let repository = call.repository(&repository_ref).await?;
    let force = input.force.unwrap_or(false);
    call.registry.metadata.delete_repository(repository.id, force, call.now).await.map_err(
        |error| match error {
            DeleteRepositoryError::NotFound => EcrError::RepositoryNotFound(repository_ref),
            DeleteRepositoryError::NotEmpty => EcrError::RepositoryNotEmpty(repository_ref),
            DeleteRepositoryError::Store(error) => error.into(),
        },
    )?;
    Ok(json!({ "repository": shapes::repository(call, &repository) }))
}

input! {
    /// The input of PutImageTagMutability.
    PutTagMutability {
        registry_id: String,
        repository_name: String,
        image_tag_mutability: String,
        image_tag_mutability_exclusion_filters: Vec<ExclusionFilter>,
    }
}

/// PutImageTagMutability.
pub(crate) async fn put_tag_mutability(
    call: &EcrCall,
    input: PutTagMutability,
) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let mode = required("imageTagMutability", input.image_tag_mutability)?;
    let tag_mutability = tag_mutability(&mode, input.image_tag_mutability_exclusion_filters)?;
    let mut repository = call.repository(&repository_ref).await?;
    repository.tag_mutability = tag_mutability.clone();
    change(call, &repository_ref, repository.id, RepositoryChange::TagMutability(tag_mutability))
        .await?;
    Ok(json!({
        "registryId": repository_ref.account,
        "repositoryName": repository_ref.name,
        "imageTagMutability": repository.tag_mutability.mode.as_str(),
        "imageTagMutabilityExclusionFilters": shapes::exclusion_filters(&repository),
    }))
}

input! {
    /// The input of PutImageScanningConfiguration.
    PutScanningConfiguration {
        registry_id: String,
        repository_name: String,
        image_scanning_configuration: ScanningConfiguration,
    }
}

/// PutImageScanningConfiguration.
pub(crate) async fn put_scanning_configuration(
    call: &EcrCall,
    input: PutScanningConfiguration,
) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let configuration = required("imageScanningConfiguration", input.image_scanning_configuration)?;
    let scan_on_push = configuration.scan_on_push.unwrap_or(false);
    let repository = call.repository(&repository_ref).await?;
    change(call, &repository_ref, repository.id, RepositoryChange::ScanOnPush(scan_on_push))
        .await?;
    if scan_on_push {
        let RepositoryRef { account, name } = &repository_ref;
        tracing::info!(%account, repository = %name, "scanOnPush was set; it is stored, and no image is scanned yet");
    }
    Ok(json!({
        "registryId": repository_ref.account,
        "repositoryName": repository_ref.name,
        "imageScanningConfiguration": { "scanOnPush": scan_on_push },
    }))
}

/// Changes a setting of a repository, which may have been deleted since it was read.
pub(crate) async fn change(
    call: &EcrCall,
    repository_ref: &RepositoryRef,
    id: wharfage_store::repositories::RepositoryId,
    change: RepositoryChange,
) -> Result<(), EcrError> {
    let changed = call.registry.metadata.change_repository(id, change, Vec::new()).await?;
    if changed { Ok(()) } else { Err(EcrError::RepositoryNotFound(repository_ref.clone())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(filters: &[&str]) -> Option<Vec<ExclusionFilter>> {
        let filter = |text: &&str| ExclusionFilter {
            filter_type: Some("WILDCARD".into()),
            filter: Some((*text).into()),
            ..Default::default()
        };
        Some(filters.iter().map(filter).collect())
    }

    fn refusal(mode: &str, filters: Option<Vec<ExclusionFilter>>) -> String {
        tag_mutability(mode, filters).unwrap_err().to_string()
    }

    #[test]
    fn filters_and_the_modes_that_take_them_go_together() {
        assert_eq!(tag_mutability("MUTABLE", None).unwrap(), TagMutability::MUTABLE);
        let excluding =
            tag_mutability("IMMUTABLE_WITH_EXCLUSION", filters(&["latest", "dev-*"])).unwrap();
        assert_eq!(excluding.exclusions, ["latest", "dev-*"]);
        assert!(refusal("MUTABLE_WITH_EXCLUSION", None).contains("must not be null"));
        assert!(refusal("IMMUTABLE", filters(&["a"])).contains("must be null"));
        assert!(refusal("immutable", None).contains(
            "enum value set: [MUTABLE, IMMUTABLE, IMMUTABLE_WITH_EXCLUSION, MUTABLE_WITH_EXCLUSION]"
        ));
    }

    #[test]
    fn filters_keep_their_constraints() {
        let long = "a".repeat(129);
        for (given, expected) in [
            (&[][..], "length greater than or equal to 1"),
            (&["a", "b", "c", "d", "e", "f"], "length less than or equal to 5"),
            (&[""], "length greater than or equal to 1"),
            (&[&long], "length less than or equal to 128"),
            (&["a b"], "regular expression"),
            (&["*a*b*"], "at most two wildcards"),
        ] {
            let text = refusal("MUTABLE_WITH_EXCLUSION", filters(given));
            assert!(text.contains(expected), "{given:?}: {text}");
        }
        let other = ExclusionFilter {
            filter_type: Some("REGEX".into()),
            filter: Some("a".into()),
            ..Default::default()
        };
        assert!(refusal("MUTABLE_WITH_EXCLUSION", Some(vec![other])).contains("[WILDCARD]"));
    }

    #[test]
    fn encryption_keys_are_refused() {
        let configuration = |kind: &str, key: Option<&str>| {
            encryption(Some(EncryptionConfiguration {
                encryption_type: Some(kind.into()),
                kms_key: key.map(str::to_owned),
                ..Default::default()
            }))
        };
        assert_eq!(encryption(None).unwrap(), Encryption::default());
        assert_eq!(configuration("AES256", None).unwrap(), Encryption::default());
        assert_eq!(configuration("KMS", None).unwrap_err().code(), "KmsException");
        assert_eq!(
            configuration("KMS_DSSE", Some("alias/key")).unwrap_err().code(),
            "KmsException"
        );
        assert_eq!(
            configuration("AES256", Some("alias/key")).unwrap_err().code(),
            "InvalidParameterException"
        );
        assert_eq!(configuration("AES128", None).unwrap_err().code(), "InvalidParameterException");
        assert_eq!(configuration("KMS", Some("")).unwrap_err().code(), "InvalidParameterException");
    }

    #[test]
    fn requests_by_name_refuse_paging() {
        assert!(no_paging("imageIds", None, None).is_ok());
        assert!(no_paging("imageIds", Some("t"), None).is_err());
        assert!(no_paging("imageIds", None, Some(1)).is_err());
    }
}
