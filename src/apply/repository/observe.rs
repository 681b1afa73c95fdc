//! Observes repositories: one listing in bulk, then of each repository only what a plan needs.
//!
//! File mode observes all of them at once. The operator keeps listings and observes one repository at a time ([`list`],
//! [`observe_repository`]), so the number of its calls grows with the pages and not with the resources.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ecr::error::ProvideErrorMetadata as _;
use aws_sdk_ecr::types::{self, LifecyclePolicyPreviewStatus};
use futures::{StreamExt as _, stream};
use serde_json::Value;

use crate::client::{Ecr, api_error};
use crate::response::{document, unexpected};
use wharfage_domain::names::RepositoryName;
use wharfage_domain::tag_mutability::{Mutability, TagMutability};
use wharfage_plan::Desired;
use wharfage_plan::model::{
    ApiError, DesiredLifecyclePolicy, EnforcedBy, LifecycleMode, Observations, ObservedRepository,
};
use wharfage_plan::ownership::Ownership;

/// Repositories that are read concurrently.
const CONCURRENCY: usize = 8;
/// Repositories per page, ECR's maximum.
const PAGE: i32 = 1000;

/// Observes every repository.
///
/// # Errors
/// When the repositories cannot be listed. A single one that cannot be read is in [`Observations::unreadable`].
pub(crate) async fn observe(
    ecr: &Ecr,
    desired: &Desired,
) -> Result<Observations<RepositoryName, ObservedRepository>, ApiError> {
    let mut observed = Observations::default();
    let needs = Needs::of(desired);
    let listed = list(ecr).await?;
    let mut results = stream::iter(&listed)
        .map(|(name, listed)| {
            let needs = needs.of_repository(name);
            async move {
                let found = match listed {
                    Ok(listed) => observe_repository(ecr, name, listed, needs).await,
                    Err(error) => Err(error.clone()),
                };
                (name.clone(), found)
            }
        })
        .buffer_unordered(CONCURRENCY);
    while let Some((name, result)) = results.next().await {
        observed.insert(name, result);
    }
    drop(results);
    Ok(observed)
}

/// A repository in a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its ARN.
    pub arn: String,
    /// Its URI, the part of an image reference before the tag.
    pub uri: String,
    /// The account whose registry it is in.
    pub registry_id: String,
    /// Its tag mutability.
    pub tag_mutability: TagMutability,
    /// Its scanning configuration.
    pub scan_on_push: bool,
    /// Its encryption type and key.
    pub encryption: (String, Option<String>),
}

impl Listed {
    /// Reads the response of DescribeRepositories or CreateRepository.
    pub(crate) fn read(found: &types::Repository) -> Result<Self, ApiError> {
        Ok(Self {
            arn: found.repository_arn().ok_or_else(|| unexpected("repositoryArn", ""))?.to_owned(),
            uri: found.repository_uri().unwrap_or_default().to_owned(),
            registry_id: found.registry_id().unwrap_or_default().to_owned(),
            tag_mutability: tag_mutability(found)?,
            scan_on_push: found
                .image_scanning_configuration()
                .is_some_and(types::ImageScanningConfiguration::scan_on_push),
            encryption: match found.encryption_configuration() {
                Some(it) => {
                    (it.encryption_type().as_str().to_owned(), it.kms_key().map(str::to_owned))
                }
                None => ("AES256".to_owned(), None),
            },
        })
    }
}

/// The repositories of a registry; one whose description cannot be read is an error.
pub type Listing = BTreeMap<RepositoryName, Result<Listed, ApiError>>;

/// Lists every repository of the registry.
///
/// # Errors
/// When they cannot be listed.
pub async fn list(ecr: &Ecr) -> Result<Listing, ApiError> {
    let request = ecr.client.describe_repositories().set_registry_id(ecr.registry_id.clone());
    let mut pages = request.max_results(PAGE).into_paginator().send();
    let mut listed = Listing::new();
    while let Some(page) = pages.next().await {
        for found in page.map_err(|error| api_error(&error))?.repositories() {
            // A manifest cannot have a name that breaks ECR's own rule.
            if let Some(name) = found.repository_name().and_then(|name| name.parse().ok()) {
                listed.insert(name, Listed::read(found));
            }
        }
    }
    Ok(listed)
}

/// Finds one repository by name.
///
/// # Errors
/// When the registry rejects the request or is unreachable, or its response cannot be read.
pub async fn find(ecr: &Ecr, name: &RepositoryName) -> Result<Option<Listed>, ApiError> {
    let request = ecr.client.describe_repositories().set_registry_id(ecr.registry_id.clone());
    match request.repository_names(name.as_str()).send().await {
        Ok(answer) => answer.repositories().first().map(Listed::read).transpose(),
        Err(error) if error.code() == Some("RepositoryNotFoundException") => Ok(None),
        Err(error) => Err(api_error(&error)),
    }
}

/// The repositories whose policies a desired state needs.
struct Needs<'a> {
    policy: BTreeSet<&'a RepositoryName>,
    lifecycle_policy: BTreeSet<&'a RepositoryName>,
    preview: BTreeSet<&'a RepositoryName>,
}

impl<'a> Needs<'a> {
    fn of(desired: &'a Desired) -> Self {
        let policies = desired.lifecycle_policies.iter();
        let previewed = |it: &&DesiredLifecyclePolicy| {
            it.mode == LifecycleMode::Preview && it.by == EnforcedBy::Registry
        };
        let previews = policies.clone().filter(previewed);
        let with_policy = desired.repositories.iter().filter(|it| it.policy.is_some());
        Self {
            policy: with_policy.map(|it| &it.name).collect(),
            lifecycle_policy: policies.flat_map(|it| &it.repositories).collect(),
            preview: previews.flat_map(|it| &it.repositories).collect(),
        }
    }

    fn of_repository(&self, name: &RepositoryName) -> RepositoryNeeds {
        RepositoryNeeds {
            policy: self.policy.contains(name),
            lifecycle_policy: self.lifecycle_policy.contains(name),
            preview: self.preview.contains(name),
        }
    }
}

/// The parts of one repository that a plan needs beyond its listing and its tags. Parts that the tags record as managed are
/// read in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepositoryNeeds {
    /// Its repository policy.
    pub policy: bool,
    /// Its lifecycle policy.
    pub lifecycle_policy: bool,
    /// The document of its latest preview.
    pub preview: bool,
}

impl RepositoryNeeds {
    /// Returns whether a read for `self` is enough for `other`.
    pub fn covers(self, other: Self) -> bool {
        (self.policy || !other.policy)
            && (self.lifecycle_policy || !other.lifecycle_policy)
            && (self.preview || !other.preview)
    }

    /// Returns the parts that either needs.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            policy: self.policy || other.policy,
            lifecycle_policy: self.lifecycle_policy || other.lifecycle_policy,
            preview: self.preview || other.preview,
        }
    }
}

/// Reads one repository; `None` if it was deleted since it was listed.
///
/// # Errors
/// When the registry rejects the request or is unreachable.
pub async fn observe_repository(
    ecr: &Ecr,
    name: &RepositoryName,
    listed: &Listed,
    needs: RepositoryNeeds,
) -> Result<Option<ObservedRepository>, ApiError> {
    let Some(tags) = tags(ecr, &listed.arn).await? else { return Ok(None) };
    let ownership = Ownership::read(&tags);
    let policy =
        if needs.policy || ownership.manages.policy { policy(ecr, name).await? } else { None };
    let governed = needs.lifecycle_policy || ownership.lifecycle.is_some();
    let lifecycle_policy = if governed { lifecycle_policy(ecr, name).await? } else { None };
    let preview = if needs.preview { preview(ecr, name).await } else { None };
    let Listed { arn, uri: _, registry_id: _, tag_mutability, scan_on_push, encryption } =
        listed.clone();
    Ok(Some(ObservedRepository {
        arn,
        tag_mutability,
        scan_on_push,
        encryption,
        tags,
        policy,
        lifecycle_policy,
        preview,
    }))
}

/// Counts the images of a repository and their bytes, as their manifests declare them.
///
/// # Errors
/// When the registry rejects the request or is unreachable.
pub async fn usage(ecr: &Ecr, name: &RepositoryName) -> Result<ImageUsage, ApiError> {
    let request = ecr
        .client
        .describe_images()
        .set_registry_id(ecr.registry_id.clone())
        .repository_name(name.as_str());
    let mut pages = request.max_results(PAGE).into_paginator().send();
    let mut usage = ImageUsage::default();
    while let Some(page) = pages.next().await {
        for image in page.map_err(|error| api_error(&error))?.image_details() {
            usage.images += 1;
            usage.bytes += image.image_size_in_bytes().unwrap_or_default();
            let findings =
                image.image_scan_findings_summary().and_then(|it| it.finding_severity_counts());
            for (severity, count) in findings.into_iter().flatten() {
                *usage.findings.entry(severity.as_str().to_owned()).or_default() +=
                    i64::from(*count);
            }
        }
    }
    Ok(usage)
}

/// The images of one or more repositories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageUsage {
    /// The number of images.
    pub images: i64,
    /// Their size in bytes.
    pub bytes: i64,
    /// The number of findings of their last scans, by severity.
    pub findings: BTreeMap<String, i64>,
}

impl ImageUsage {
    /// Adds both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.images += other.images;
        self.bytes += other.bytes;
        for (severity, count) in other.findings {
            *self.findings.entry(severity).or_default() += count;
        }
        self
    }
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
            let tags =
                answer.tags().iter().map(|tag| (tag.key().to_owned(), tag.value().to_owned()));
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

/// Returns the document of the latest preview. One that cannot be read counts as none, and starting one then reports why.
async fn preview(ecr: &Ecr, name: &RepositoryName) -> Option<Value> {
    let request =
        ecr.client.get_lifecycle_policy_preview().set_registry_id(ecr.registry_id.clone());
    let answer = request.repository_name(name.as_str()).max_results(1).send().await.ok()?;
    let holds = matches!(
        answer.status(),
        Some(LifecyclePolicyPreviewStatus::Complete | LifecyclePolicyPreviewStatus::InProgress)
    );
    if holds { document("lifecyclePolicyText", answer.lifecycle_policy_text()).ok()? } else { None }
}

fn is_absent(code: Option<&str>) -> bool {
    const ABSENT: [&str; 3] = [
        "RepositoryPolicyNotFoundException",
        "LifecyclePolicyNotFoundException",
        "RepositoryNotFoundException",
    ];
    code.is_some_and(|code| ABSENT.contains(&code))
}
