//! Lifecycle policies and their previews: stored and reported here, enforced by jobs.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::error::{EcrError, RepositoryRef};
use super::input::{self, ImageId, Selector, input, required};
use super::listings::tag_status;
use super::page::{ResultPage, Sizes, invalid_token};
use super::repositories::no_paging;
use super::{EcrCall, shapes};
use wharfage_domain::lifecycle::{self, InvalidPolicy, Policy};
use wharfage_domain::names::{Digest, Reference};
use wharfage_store::images::{TagStatusFilter, TaggedImage};
use wharfage_store::jobs::{EvaluateLifecycle, EvaluatePreview, JobPayload as _};
use wharfage_store::previews::{Preview, PreviewResult, PreviewState};
use wharfage_store::repositories::{Repository, RepositoryChange};

/// The validity of a preview's results.
const PREVIEW_LIFETIME: SignedDuration = SignedDuration::from_hours(24);
const PREVIEW: Sizes = Sizes { max: 100, default: 100 };

impl From<InvalidPolicy> for EcrError {
    fn from(error: InvalidPolicy) -> Self {
        Self::InvalidParameterText(error.to_string())
    }
}

/// Checks the text of a policy.
fn check(text: String) -> Result<String, EcrError> {
    lifecycle::check_length(&text)?;
    Policy::parse(&text)?;
    Ok(text)
}

input! {
    /// The input of PutLifecyclePolicy.
    PutPolicy { registry_id: String, repository_name: String, lifecycle_policy_text: String }
}

/// PutLifecyclePolicy. The policy is enforced at once, by a job written in the same transaction.
pub(crate) async fn put_policy(call: &EcrCall, input: PutPolicy) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let text = check(required("lifecyclePolicyText", input.lifecycle_policy_text)?)?;
    let repository = call.repository(&repository_ref).await?;
    let change = RepositoryChange::LifecyclePolicy(Some(text.clone()));
    let job = EvaluateLifecycle { repository: repository.id }.job(call.now);
    if !call.registry.metadata.change_repository(repository.id, change, vec![job]).await? {
        return Err(EcrError::RepositoryNotFound(repository_ref));
    }
    Ok(policy_output(&repository_ref, &text))
}

fn policy_output(repository_ref: &RepositoryRef, text: &str) -> Value {
    json!({ "registryId": repository_ref.account, "repositoryName": repository_ref.name, "lifecyclePolicyText": text })
}

input! {
    /// The input of GetLifecyclePolicy and DeleteLifecyclePolicy.
    Which { registry_id: String, repository_name: String }
}

/// Renders the policy with the time of its last evaluation, which is the epoch before the first
/// one.
fn evaluated_output(repository_ref: &RepositoryRef, repository: &Repository, text: &str) -> Value {
    let mut output = policy_output(repository_ref, text);
    output["lastEvaluatedAt"] =
        shapes::time(repository.lifecycle_evaluated_at.unwrap_or(Timestamp::UNIX_EPOCH));
    output
}

/// GetLifecyclePolicy.
pub(crate) async fn get_policy(call: &EcrCall, input: Which) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let repository = call.repository(&repository_ref).await?;
    match &repository.lifecycle_policy {
        Some(text) => Ok(evaluated_output(&repository_ref, &repository, text)),
        None => Err(EcrError::LifecyclePolicyNotFound(repository_ref)),
    }
}

/// DeleteLifecyclePolicy.
pub(crate) async fn delete_policy(call: &EcrCall, input: Which) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let repository = call.repository(&repository_ref).await?;
    let Some(text) = &repository.lifecycle_policy else {
        return Err(EcrError::LifecyclePolicyNotFound(repository_ref));
    };
    super::repositories::change(
        call,
        &repository_ref,
        repository.id,
        RepositoryChange::LifecyclePolicy(None),
    )
    .await?;
    Ok(evaluated_output(&repository_ref, &repository, text))
}

input! {
    /// The input of StartLifecyclePolicyPreview.
    StartPreview { registry_id: String, repository_name: String, lifecycle_policy_text: String }
}

/// StartLifecyclePolicyPreview: of the given text, or of the stored policy.
pub(crate) async fn start_preview(call: &EcrCall, input: StartPreview) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let given = input.lifecycle_policy_text.map(check).transpose()?;
    let repository = call.repository(&repository_ref).await?;
    let Some(text) = given.or(repository.lifecycle_policy) else {
        return Err(EcrError::LifecyclePolicyNotFound(repository_ref));
    };
    let job = EvaluatePreview { repository: repository.id }.job(call.now);
    if !call.registry.metadata.start_preview(repository.id, &text, call.now, job).await? {
        return Err(EcrError::LifecyclePolicyPreviewInProgress(repository_ref));
    }
    let mut output = policy_output(&repository_ref, &text);
    output["status"] = "IN_PROGRESS".into();
    Ok(output)
}

input! {
    /// ECR's `LifecyclePolicyPreviewFilter`.
    PreviewFilter { tag_status: String }
}

input! {
    /// The input of GetLifecyclePolicyPreview.
    GetPreview {
        registry_id: String,
        repository_name: String,
        image_ids: Vec<ImageId>,
        next_token: String,
        max_results: i64,
        filter: PreviewFilter,
    }
}

/// GetLifecyclePolicyPreview. Filters narrow the results, not the summary.
pub(crate) async fn get_preview(call: &EcrCall, input: GetPreview) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let (token, size) = (input.next_token.as_deref(), input.max_results);
    let wanted = match &input.image_ids {
        None => None,
        Some(ids) => {
            input::count("imageIds", ids, 1..=100)?;
            no_paging("imageIds", token, size)?;
            let selectors: Result<Vec<_>, _> =
                ids.iter().map(|id| id.required_selector("imageIds")).collect();
            Some(selectors?.into_iter().flatten().collect::<Vec<Selector>>())
        }
    };
    let tag_status = tag_status(
        "filter.tagStatus",
        input.filter.and_then(|filter| filter.tag_status).as_deref(),
    )?;
    let question = (repository_ref.name.to_string(), format!("{tag_status:?}"));
    let page = ResultPage::new(call, &repository_ref.account, question, token, size, PREVIEW)?;
    let after = page.after.as_deref().map(parse_key).transpose()?;
    let repository = call.repository(&repository_ref).await?;
    let metadata = call.registry.metadata.as_ref();
    let Some(preview) = metadata.find_preview(repository.id).await? else {
        return Err(EcrError::LifecyclePolicyPreviewNotFound(repository_ref));
    };
    if after.is_some_and(|(started, _)| started != preview.started_at.as_nanosecond()) {
        // Another preview was started since; its results have other positions.
        return Err(invalid_token());
    }

    let (status, summary) = state(&preview, call.now);
    let tagged = match tag_status {
        TagStatusFilter::Any => None,
        TagStatusFilter::Tagged => Some(true),
        TagStatusFilter::Untagged => Some(false),
    };
    let (results, next_token) = match &wanted {
        _ if status != "COMPLETE" => (Vec::new(), None),
        Some(wanted) => {
            let mut found = results_of(call, &repository, wanted).await?;
            found
                .retain(|(_, result)| tagged.is_none_or(|tagged| tagged != result.tags.is_empty()));
            (found, None)
        }
        None => {
            let after = after.map(|(_, position)| position);
            let found =
                metadata.list_preview_results(repository.id, tagged, after, page.fetch()).await?;
            page.cut(found, |(position, _)| key(preview.started_at, *position))
        }
    };
    let mut output = policy_output(&repository_ref, &preview.policy);
    output["status"] = status.into();
    output["previewResults"] = results.iter().map(|(_, result)| result_shape(result)).collect();
    output["summary"] = summary;
    output["nextToken"] = next_token.into();
    Ok(output)
}

/// Returns a preview's status and summary at `now`.
fn state(preview: &Preview, now: Timestamp) -> (&'static str, Value) {
    match &preview.state {
        PreviewState::InProgress => ("IN_PROGRESS", Value::Null),
        PreviewState::Failed => ("FAILED", Value::Null),
        PreviewState::Complete { completed_at, .. }
            if now.duration_since(*completed_at) > PREVIEW_LIFETIME =>
        {
            ("EXPIRED", Value::Null)
        }
        PreviewState::Complete { summary, .. } => {
            ("COMPLETE", serde_json::from_str(summary).unwrap_or(Value::Null))
        }
    }
}

/// Reads the results of requested images. A tag means the image that it points at now.
async fn results_of(
    call: &EcrCall,
    repository: &Repository,
    wanted: &[Selector],
) -> Result<Vec<(u64, PreviewResult)>, EcrError> {
    let metadata = call.registry.metadata.as_ref();
    let references: Vec<Reference> = wanted.iter().map(Selector::reference).collect();
    let images = metadata.find_images(repository.id, &references).await?;
    let digest = |(reference, image): (Reference, Option<TaggedImage>)| match reference {
        // The image may have been deleted since.
        Reference::Digest(digest) => Some(digest),
        Reference::Tag(_) => image.map(|tagged| tagged.image.digest),
    };
    let digests: Vec<Digest> = references.into_iter().zip(images).filter_map(digest).collect();
    let mut found = metadata.find_preview_results(repository.id, &digests).await?;
    found.retain(|(_, result)| wanted.iter().any(|selector| means(selector, result)));
    Ok(found)
}

/// Returns the key of a page: the preview of the results and the position in it.
fn key(started_at: Timestamp, position: u64) -> String {
    format!("{} {position}", started_at.as_nanosecond())
}

fn parse_key(key: &str) -> Result<(i128, u64), EcrError> {
    let parsed = key
        .split_once(' ')
        .and_then(|(started, position)| Some((started.parse().ok()?, position.parse().ok()?)));
    parsed.ok_or_else(invalid_token)
}

fn means(selector: &Selector, result: &PreviewResult) -> bool {
    match selector {
        Selector::Tag(tag) => result.tags.contains(tag),
        Selector::Digest(digest) => result.digest == *digest,
        Selector::Both(tag, digest) => result.digest == *digest && result.tags.contains(tag),
    }
}

/// ECR's `LifecyclePolicyPreviewResult`.
fn result_shape(result: &PreviewResult) -> Value {
    use wharfage_store::images::ImageStatus;
    json!({
        "imageTags": if result.tags.is_empty() { Value::Null } else { json!(result.tags) },
        "imageDigest": result.digest,
        "imagePushedAt": shapes::time(result.pushed_at),
        "action": {
            "type": result.action,
            "targetStorageClass": (result.action == "TRANSITION").then_some("ARCHIVE"),
        },
        "appliedRulePriority": result.rule_priority,
        "storageClass": if result.status == ImageStatus::Archived { "ARCHIVE" } else { "STANDARD" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_checked_before_the_document() {
        let refused = check(r#"{"rules":[]}"#.to_owned()).unwrap_err();
        assert_eq!(refused.code(), "InvalidParameterException");
        assert_eq!(
            refused.to_string(),
            "Invalid parameter at 'lifecyclePolicyText' failed to satisfy constraint: 'Member must have length greater than or equal to 100'"
        );
        let refused = check("x".repeat(100)).unwrap_err();
        assert!(
            refused.to_string().contains("Could not map policyString into LifecyclePolicy."),
            "{refused}"
        );
    }

    #[test]
    fn a_preview_expires_a_day_after_its_completion() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let state_of = |state, now| {
            super::state(&Preview { policy: String::new(), started_at: at(0), state }, at(now)).0
        };
        let complete = PreviewState::Complete { completed_at: at(10), summary: "{}".into() };
        assert_eq!(state_of(PreviewState::InProgress, 1_000_000), "IN_PROGRESS");
        assert_eq!(state_of(PreviewState::Failed, 1), "FAILED");
        assert_eq!(state_of(complete.clone(), 86_410), "COMPLETE");
        assert_eq!(state_of(complete, 86_411), "EXPIRED");
    }

    #[test]
    fn a_results_key_is_read_back() {
        let started = Timestamp::from_second(7).unwrap();
        assert_eq!(parse_key(&key(started, 42)).unwrap(), (started.as_nanosecond(), 42));
        assert!(parse_key("x").is_err());
    }
}
