//! Waits for started previews, and says what they would do.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_ecr::operation::get_lifecycle_policy_preview::GetLifecyclePolicyPreviewOutput;
use aws_sdk_ecr::types::{ImageActionType, LifecyclePolicyPreviewStatus};
use backon::{ExponentialBuilder, Retryable as _};
use futures::{StreamExt as _, stream};
use tokio::time::timeout;

use super::client::{Ecr, api_error};
use super::report::{Previewed, PreviewedImage};
use crate::names::RepositoryName;
use crate::plan::model::ApiError;

/// Previews that are waited for at once.
const CONCURRENCY: usize = 8;
/// Images that are named of those that a preview would act on.
const SAMPLE: usize = 10;

/// The results of these repositories' previews. One that has none within `patience` is left out: it goes on.
pub(super) async fn results(
    ecr: &Ecr,
    repositories: Vec<RepositoryName>,
    patience: Duration,
) -> HashMap<RepositoryName, Result<Previewed, ApiError>> {
    let mut results = HashMap::new();
    let waiting = stream::iter(repositories)
        .map(|name| async move { (result(ecr, &name).await, name) })
        .buffer_unordered(CONCURRENCY)
        .for_each(|(result, name)| {
            results.insert(name, result);
            std::future::ready(())
        });
    let _ = timeout(patience, waiting).await;
    results
}

enum Wait {
    Running,
    Failed(ApiError),
}

async fn result(ecr: &Ecr, name: &RepositoryName) -> Result<Previewed, ApiError> {
    let look = || async {
        let request = ecr.client.get_lifecycle_policy_preview().set_registry_id(ecr.registry_id.clone());
        let answer = request.repository_name(name.as_str()).max_results(100).send().await;
        let answer = answer.map_err(|error| Wait::Failed(api_error(&error)))?;
        match answer.status() {
            Some(LifecyclePolicyPreviewStatus::Complete) => Ok(previewed(&answer)),
            Some(LifecyclePolicyPreviewStatus::InProgress) => Err(Wait::Running),
            status => {
                let status = status.map_or("missing", LifecyclePolicyPreviewStatus::as_str);
                let message = format!("the preview of {name} is {status}");
                Err(Wait::Failed(ApiError { name: "PreviewFailed".to_owned(), message }))
            }
        }
    };
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times();
    match look.retry(patience).when(|wait| matches!(wait, Wait::Running)).await {
        Ok(previewed) => Ok(previewed),
        Err(Wait::Failed(error)) => Err(error),
        Err(Wait::Running) => {
            let message = format!("the preview of {name} is still running");
            Err(ApiError { name: "PreviewFailed".to_owned(), message })
        }
    }
}

fn previewed(answer: &GetLifecyclePolicyPreviewOutput) -> Previewed {
    let count = |count: Option<i32>| u64::try_from(count.unwrap_or_default()).unwrap_or_default();
    let summary = answer.summary();
    let transitions = summary.into_iter().flat_map(|it| it.transitioning_image_total_counts());
    let image = |it: &aws_sdk_ecr::types::LifecyclePolicyPreviewResult| PreviewedImage {
        digest: it.image_digest().unwrap_or_default().to_owned(),
        tags: it.image_tags().to_vec(),
        action: it.action().and_then(|it| it.r#type()).map_or("EXPIRE", ImageActionType::as_str).to_owned(),
        rule_priority: it.applied_rule_priority().unwrap_or_default(),
    };
    Previewed {
        expiring: count(summary.and_then(|it| it.expiring_image_total_count())),
        transitioning: transitions.map(|it| count(it.image_total_count())).sum(),
        sample: answer.preview_results().iter().take(SAMPLE).map(image).collect(),
    }
}
