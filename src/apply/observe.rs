//! Looks at a registry: one listing in bulk, then of each repository only what a plan needs to know.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ecr::error::ProvideErrorMetadata as _;
use aws_sdk_ecr::types::{self, LifecyclePolicyPreviewStatus};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;

use super::client::{Ecr, api_error, is_unknown_operation};
use crate::names::RepositoryName;
use crate::plan::model::{ApiError, Desired, LifecycleMode, Observed, ObservedRepository};
use crate::plan::ownership::Ownership;
use crate::tag_mutability::{Mutability, TagMutability};

/// Repositories that are looked at at once.
const CONCURRENCY: usize = 8;
/// Repositories in one page, the most that ECR gives.
const PAGE: i32 = 1000;

/// What is there of what `desired` speaks of.
///
/// # Errors
/// When the repositories cannot be listed. A single one that cannot be looked at is in [`Observed::unreadable`].
pub async fn observe(ecr: &Ecr, desired: &Desired) -> Result<Observed, ApiError> {
    let mut observed = Observed { account_settings: account_settings(ecr, desired).await, ..Observed::default() };
    let needs = Needs::of(desired);
    let mut pages = {
        let request = ecr.client.describe_repositories().set_registry_id(ecr.registry_id.clone());
        request.max_results(PAGE).into_paginator().send()
    };
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| api_error(&error))?;
        let named = page.repositories().iter().filter_map(|found| {
            // A name that is none by ECR's own rule can't be one that a manifest means.
            let name: RepositoryName = found.repository_name()?.parse().ok()?;
            Some((name, found))
        });
        let looked_at: Vec<_> = stream::iter(named)
            .map(|(name, found)| {
                let needs = &needs;
                async move {
                    let looked_at = repository(ecr, needs, &name, found).await;
                    (name, looked_at)
                }
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        for (name, looked_at) in looked_at {
            match looked_at {
                Ok(Some(found)) => {
                    observed.repositories.insert(name, found);
                }
                Ok(None) => {}
                Err(error) => {
                    observed.unreadable.insert(name, error);
                }
            }
        }
    }
    Ok(observed)
}

/// What a desired state needs to know of repositories beyond their listing and tags.
struct Needs<'a> {
    policy: BTreeSet<&'a RepositoryName>,
    lifecycle_policy: BTreeSet<&'a RepositoryName>,
    preview: BTreeSet<&'a RepositoryName>,
}

impl<'a> Needs<'a> {
    fn of(desired: &'a Desired) -> Self {
        let policies = desired.lifecycle_policies.iter();
        let previews = policies.clone().filter(|it| it.mode == LifecycleMode::Preview);
        let with_policy = desired.repositories.iter().filter(|it| it.policy.is_some());
        Self {
            policy: with_policy.map(|it| &it.name).collect(),
            lifecycle_policy: policies.flat_map(|it| &it.repositories).collect(),
            preview: previews.flat_map(|it| &it.repositories).collect(),
        }
    }
}

async fn account_settings(ecr: &Ecr, desired: &Desired) -> Result<BTreeMap<String, String>, ApiError> {
    let found = stream::iter(desired.account_settings.keys()).then(|name| async move {
        let answer = ecr.client.get_account_setting().name(name).send().await.map_err(|error| {
            let error = api_error(&error);
            if is_unknown_operation(&error) {
                let message = format!("this registry has no account settings ({error}): take them out of the manifest");
                return ApiError { name: "UnsupportedByRegistry".to_owned(), message };
            }
            error
        })?;
        Ok((name.clone(), answer.value().unwrap_or_default().to_owned()))
    });
    found.try_collect().await
}

/// One repository; nothing if it has gone since it was listed.
async fn repository(
    ecr: &Ecr,
    needs: &Needs<'_>,
    name: &RepositoryName,
    listed: &types::Repository,
) -> Result<Option<ObservedRepository>, ApiError> {
    let arn = listed.repository_arn().ok_or_else(|| unexpected("repositoryArn", ""))?;
    let Some(tags) = tags(ecr, arn).await? else { return Ok(None) };
    let ownership = Ownership::read(&tags);
    let policy = if needs.policy.contains(name) || ownership.manages.policy { policy(ecr, name).await? } else { None };
    let governed = needs.lifecycle_policy.contains(name) || ownership.lifecycle.is_some();
    let lifecycle_policy = if governed { lifecycle_policy(ecr, name).await? } else { None };
    let preview = if needs.preview.contains(name) { preview(ecr, name).await } else { None };
    Ok(Some(ObservedRepository {
        arn: arn.to_owned(),
        tag_mutability: tag_mutability(listed)?,
        scan_on_push: listed
            .image_scanning_configuration()
            .is_some_and(types::ImageScanningConfiguration::scan_on_push),
        encryption: match listed.encryption_configuration() {
            Some(it) => (it.encryption_type().as_str().to_owned(), it.kms_key().map(str::to_owned)),
            None => ("AES256".to_owned(), None),
        },
        tags,
        policy,
        lifecycle_policy,
        preview,
    }))
}

fn tag_mutability(listed: &types::Repository) -> Result<TagMutability, ApiError> {
    let text = listed.image_tag_mutability().map_or("MUTABLE", types::ImageTagMutability::as_str);
    let mode = Mutability::parse(text).ok_or_else(|| unexpected("imageTagMutability", text))?;
    let filters = listed.image_tag_mutability_exclusion_filters().iter();
    Ok(TagMutability { mode, exclusions: filters.map(|it| it.filter().to_owned()).collect() })
}

async fn tags(ecr: &Ecr, arn: &str) -> Result<Option<BTreeMap<String, String>>, ApiError> {
    match ecr.client.list_tags_for_resource().resource_arn(arn).send().await {
        Ok(answer) => {
            let tags = answer.tags().iter().map(|tag| (tag.key().to_owned(), tag.value().to_owned()));
            Ok(Some(tags.collect()))
        }
        Err(error) if error.code() == Some("RepositoryNotFoundException") => Ok(None),
        Err(error) => Err(api_error(&error)),
    }
}

async fn policy(ecr: &Ecr, name: &RepositoryName) -> Result<Option<Value>, ApiError> {
    let request = ecr.client.get_repository_policy().set_registry_id(ecr.registry_id.clone());
    match request.repository_name(name.as_str()).send().await {
        Ok(answer) => document("policyText", answer.policy_text()),
        Err(error) if is_absent(error.code()) => Ok(None),
        Err(error) => Err(api_error(&error)),
    }
}

async fn lifecycle_policy(ecr: &Ecr, name: &RepositoryName) -> Result<Option<Value>, ApiError> {
    let request = ecr.client.get_lifecycle_policy().set_registry_id(ecr.registry_id.clone());
    match request.repository_name(name.as_str()).send().await {
        Ok(answer) => document("lifecyclePolicyText", answer.lifecycle_policy_text()),
        Err(error) if is_absent(error.code()) => Ok(None),
        Err(error) => Err(api_error(&error)),
    }
}

/// The document of the latest preview. One that cannot be looked at counts as none: starting one then says why.
async fn preview(ecr: &Ecr, name: &RepositoryName) -> Option<Value> {
    let request = ecr.client.get_lifecycle_policy_preview().set_registry_id(ecr.registry_id.clone());
    let answer = request.repository_name(name.as_str()).max_results(1).send().await.ok()?;
    let holds = matches!(
        answer.status(),
        Some(LifecyclePolicyPreviewStatus::Complete | LifecyclePolicyPreviewStatus::InProgress)
    );
    if holds { document("lifecyclePolicyText", answer.lifecycle_policy_text()).ok()? } else { None }
}

fn is_absent(code: Option<&str>) -> bool {
    const ABSENT: [&str; 3] =
        ["RepositoryPolicyNotFoundException", "LifecyclePolicyNotFoundException", "RepositoryNotFoundException"];
    code.is_some_and(|code| ABSENT.contains(&code))
}

fn document(field: &str, text: Option<&str>) -> Result<Option<Value>, ApiError> {
    text.map(|text| serde_json::from_str(text).map_err(|_| unexpected(field, text))).transpose()
}

fn unexpected(field: &str, value: &str) -> ApiError {
    let value: String = value.chars().take(100).collect();
    ApiError { name: "UnexpectedResponse".to_owned(), message: format!("the registry says {field} is {value:?}") }
}
