//! Evaluates the policy of a lifecycle preview, and stores the results.

use jiff::Timestamp;

use super::lifecycle::{evaluated, load};
use super::{JobContext, JobError};
use wharfage_domain::lifecycle::{Action, Evaluation, Policy};
use wharfage_store::StoreResult;
use wharfage_store::previews::{PreviewResult, PreviewRun, PreviewState};
use wharfage_store::repositories::RepositoryId;

/// The number of results that one transaction writes or deletes, which limits the wait of other
/// writes.
const BATCH: usize = 500;

/// Completes the preview in progress. A missing preview or repository is not an error.
pub(super) async fn run(context: &JobContext, id: RepositoryId) -> Result<(), JobError> {
    let Some(preview) = context.metadata.find_preview(id).await? else { return Ok(()) };
    if preview.state != PreviewState::InProgress {
        return Ok(());
    }
    let now = Timestamp::now();
    let (state, results) = match Policy::parse(&preview.policy) {
        Ok(policy) => {
            let images = load(context, id).await?.images;
            let (summary, results) =
                evaluated(policy, images, now, |it| (summary(it), results(it))).await?;
            (PreviewState::Complete { completed_at: Timestamp::now(), summary }, results)
        }
        Err(error) => {
            tracing::error!(repository = id.0, %error, "a previewed policy does not parse");
            (PreviewState::Failed, Vec::new())
        }
    };
    let run = PreviewRun::new(id, preview.started_at);
    for (batch, position) in results.chunks(BATCH).zip((0..).step_by(BATCH)) {
        if !context.metadata.add_preview_results(run, position, batch.to_vec()).await? {
            break;
        }
    }
    context.metadata.finish_preview(run, state).await?;
    // Results of the previous preview, and of runs that did not end.
    while !context.metadata.prune_preview_results(run, BATCH).await? {}
    Ok(())
}

/// Ends the preview in progress, if there is one, as failed.
pub(super) async fn fail(context: &JobContext, id: RepositoryId) -> StoreResult<()> {
    match context.metadata.find_preview(id).await? {
        Some(preview) if preview.state == PreviewState::InProgress => {
            context
                .metadata
                .finish_preview(PreviewRun::new(id, preview.started_at), PreviewState::Failed)
                .await
        }
        _ => Ok(()),
    }
}

/// Renders ECR's `summary`, with transitioning counts only if an image transitions.
fn summary(evaluation: &Evaluation<'_>) -> String {
    let counts = evaluation.summary();
    let mut summary = serde_json::json!({ "expiringImageTotalCount": counts.expiring });
    if counts.transitioning > 0 {
        summary["transitioningImageTotalCounts"] = serde_json::json!([{ "targetStorageClass": "ARCHIVE", "imageTotalCount": counts.transitioning }]);
    }
    summary.to_string()
}

fn results(evaluation: &Evaluation<'_>) -> Vec<PreviewResult> {
    evaluation
        .selected()
        .map(|mark| PreviewResult {
            digest: mark.image.digest.clone(),
            tags: mark.image.tags.clone(),
            pushed_at: mark.image.pushed_at,
            action: match mark.action {
                Action::Expire => "EXPIRE".into(),
                Action::Transition => "TRANSITION".into(),
            },
            rule_priority: mark.rule_priority,
            status: mark.image.status,
        })
        .collect()
}
