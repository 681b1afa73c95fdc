//! Waits for started previews and reads their results.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_ecr::operation::get_lifecycle_policy_preview::GetLifecyclePolicyPreviewOutput;
use aws_sdk_ecr::types::{
    ImageActionType, LifecyclePolicyPreviewResult, LifecyclePolicyPreviewStatus,
};
use backon::{ExponentialBuilder, Retryable as _};
use futures::{StreamExt as _, stream};
use serde_json::Value;
use tokio::time::timeout;

use super::client::{Ecr, api_error};
use super::images::{MAX_IMAGE_IDS, images, reread_images};
use super::report::{Previewed, PreviewedImage};
use wharfage_domain::names::{Digest, RepositoryName};
use wharfage_plan::model::{ApiError, ErrorKind};

/// Previews that are awaited concurrently.
const CONCURRENCY: usize = 8;
/// The most images of a preview that are named.
const SAMPLE: usize = 10;
/// Results per page, ECR's maximum.
const PAGE: i32 = 100;
/// The number of images above which reading all of a repository takes fewer calls than naming them.
const FEW: usize = 5 * MAX_IMAGE_IDS;

/// Returns the results of these repositories' previews. Previews that do not end within `time_limit` are left out.
pub(super) async fn results(
    ecr: &Ecr,
    repositories: Vec<RepositoryName>,
    time_limit: Duration,
) -> HashMap<RepositoryName, Result<Previewed, ApiError>> {
    let mut results = HashMap::new();
    let waiting = stream::iter(repositories)
        .map(|name| async move { (result(ecr, &name).await, name) })
        .buffer_unordered(CONCURRENCY)
        .for_each(|(result, name)| {
            results.insert(name, result);
            std::future::ready(())
        });
    let _ = timeout(time_limit, waiting).await;
    results
}

enum Wait {
    Running,
    Failed(ApiError),
}

async fn result(ecr: &Ecr, name: &RepositoryName) -> Result<Previewed, ApiError> {
    let attempt = || async {
        match page(ecr, name, None).await.map_err(Wait::Failed)? {
            Some(answer) => Ok(previewed(&answer)),
            None => Err(Wait::Running),
        }
    };
    let backoff = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times();
    match attempt.retry(backoff).when(|wait| matches!(wait, Wait::Running)).await {
        Ok(previewed) => Ok(previewed),
        Err(Wait::Failed(error)) => Err(error),
        Err(Wait::Running) => Err(failed(name, "still running")),
    }
}

fn failed(name: &RepositoryName, status: &str) -> ApiError {
    ApiError::new(ErrorKind::Other, "PreviewFailed", format!("the preview of {name} is {status}"))
}

/// Returns a page of a preview's results; `None` while it is in progress.
async fn page(
    ecr: &Ecr,
    name: &RepositoryName,
    token: Option<String>,
) -> Result<Option<GetLifecyclePolicyPreviewOutput>, ApiError> {
    let request =
        ecr.client.get_lifecycle_policy_preview().set_registry_id(ecr.registry_id.clone());
    let answer =
        request.repository_name(name.as_str()).max_results(PAGE).set_next_token(token).send().await;
    let answer = answer.map_err(|error| api_error(&error))?;
    match answer.status() {
        Some(LifecyclePolicyPreviewStatus::Complete) => Ok(Some(answer)),
        Some(LifecyclePolicyPreviewStatus::InProgress) => Ok(None),
        status => Err(failed(name, status.map_or("missing", LifecyclePolicyPreviewStatus::as_str))),
    }
}

/// A complete preview.
#[derive(Debug, Clone, PartialEq)]
pub struct PreviewedPolicy {
    /// The evaluated document.
    pub document: Value,
    /// The result.
    pub previewed: Previewed,
    /// The bytes of the images that would expire, as ECR counts them. Indexes count as 0.
    pub bytes: u64,
}

/// Reads a repository's preview once; `None` while it is in progress.
///
/// # Errors
/// When there is no preview, when it failed or expired, and when the registry rejects the request or is unreachable.
pub async fn preview(
    ecr: &Ecr,
    name: &RepositoryName,
) -> Result<Option<PreviewedPolicy>, ApiError> {
    let Some(mut answer) = page(ecr, name, None).await? else { return Ok(None) };
    let (document, previewed) =
        (answer.lifecycle_policy_text().unwrap_or_default(), previewed(&answer));
    let document =
        serde_json::from_str(document).map_err(|_| failed(name, "of a policy that is none"))?;
    let mut expiring = Vec::new();
    loop {
        let expires = answer
            .preview_results()
            .iter()
            .filter(|it| action(it) == ImageActionType::Expire.as_str());
        expiring.extend(expires.filter_map(|it| it.image_digest()?.parse::<Digest>().ok()));
        let Some(token) = answer.next_token().map(str::to_owned) else { break };
        // Another preview was started meanwhile.
        let Some(next) = page(ecr, name, Some(token)).await? else { return Ok(None) };
        answer = next;
    }
    let bytes = bytes(ecr, name, &expiring).await?;
    Ok(Some(PreviewedPolicy { document, previewed, bytes }))
}

async fn bytes(ecr: &Ecr, name: &RepositoryName, digests: &[Digest]) -> Result<u64, ApiError> {
    let digests: std::collections::HashSet<&Digest> = digests.iter().collect();
    let stored = if digests.len() > FEW {
        images(ecr, name).await?
    } else {
        reread_images(ecr, name, &digests.iter().copied().collect::<Vec<_>>())
            .await?
            .into_values()
            .collect()
    };
    let expires = stored.iter().filter(|it| !it.is_index && digests.contains(&it.image.digest));
    Ok(expires.map(|it| it.bytes).sum())
}

fn action(result: &LifecyclePolicyPreviewResult) -> &str {
    result.action().and_then(|it| it.r#type()).map_or("EXPIRE", ImageActionType::as_str)
}

fn previewed(answer: &GetLifecyclePolicyPreviewOutput) -> Previewed {
    let count = |count: Option<i32>| u64::try_from(count.unwrap_or_default()).unwrap_or_default();
    let summary = answer.summary();
    let transitions = summary.into_iter().flat_map(|it| it.transitioning_image_total_counts());
    let image = |it: &LifecyclePolicyPreviewResult| PreviewedImage {
        digest: it.image_digest().unwrap_or_default().to_owned(),
        tags: it.image_tags().to_vec(),
        action: action(it).to_owned(),
        rule_priority: it.applied_rule_priority().unwrap_or_default(),
    };
    Previewed {
        expiring: count(summary.and_then(|it| it.expiring_image_total_count())),
        transitioning: transitions.map(|it| count(it.image_total_count())).sum(),
        sample: answer.preview_results().iter().take(SAMPLE).map(image).collect(),
    }
}
