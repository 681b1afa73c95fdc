//! Enforces a repository's lifecycle policy: loads the images, executes the evaluator's actions in
//! its order, and records them. Only the evaluator selects images.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::{JobContext, JobError, JobSettings};
use wharfage_domain::lifecycle::{Action, Cause, Evaluation, Image, Mark, Policy, evaluate};
use wharfage_domain::names::Digest;
use wharfage_store::StoreResult;
use wharfage_store::events::Event;
use wharfage_store::images::{
    self, DeleteImageError, ImageFilter, LifecycleDecision, ManifestId, Stale, StorageClassError,
};
use wharfage_store::repositories::{Repository, RepositoryChange, RepositoryId};

/// The number of rows per read.
const PAGE: usize = 1000;
/// The number of images that an event lists; it counts the others.
const NAMED: usize = 100;

/// The number of evaluations in a run. The next run does the rest.
const EVALUATIONS: usize = 5;
/// The number of a rule's kept images that are checked before an image beyond them is deleted or
/// archived. A rule that keeps more tolerates the few that may disappear during the run.
const KEPT_CHECKED: usize = 1000;

/// The result of a run.
#[derive(Default)]
struct RunResult {
    expired: Vec<Digest>,
    archived: Vec<Digest>,
    /// Images that were changed or deleted since the evaluation.
    changed: u64,
    /// Images that an index references.
    protected: u64,
}

/// An action of a policy, with its preconditions.
struct PlannedAction {
    digest: Digest,
    action: Action,
    decision: LifecycleDecision,
}

/// The actions of a policy in a repository.
struct LifecyclePlan {
    repository: Repository,
    /// The time of the evaluation.
    at: Timestamp,
    actions: Vec<PlannedAction>,
    protected: u64,
}

/// The end of a plan's execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExecutionEnd {
    /// All actions were executed.
    Complete,
    /// Kept images have changed or disappeared, so the policy must be evaluated again.
    Outdated,
    /// The policy was replaced or deleted.
    Replaced,
}

/// Evaluates and enforces the policy of this repository. A missing repository or policy is not an
/// error.
pub(super) async fn run(
    context: &JobContext,
    settings: &JobSettings,
    id: RepositoryId,
) -> Result<(), JobError> {
    let mut wanted = HashSet::new();
    for evaluation in 1..=EVALUATIONS {
        let Some(plan) = decide(context, id).await? else { return Ok(()) };
        let (repository, at, mut done) = (plan.repository.clone(), plan.at, RunResult::default());
        let ended = execute(context, plan, &mut wanted, &mut done).await;
        // Also after a failure, because the actions before it were executed.
        record(context, &repository, done).await?;
        match ended? {
            ExecutionEnd::Outdated if evaluation < EVALUATIONS => {}
            ExecutionEnd::Complete | ExecutionEnd::Outdated => {
                let (due_at, _) = settings.next_due_range(at);
                let evaluated = RepositoryChange::LifecycleEvaluated { at, due_at };
                context.metadata.change_repository(id, evaluated, Vec::new()).await?;
                break;
            }
            ExecutionEnd::Replaced => {
                tracing::info!(
                    repository = %repository.name,
                    "stopped: the lifecycle policy was replaced or deleted meanwhile"
                );
                break;
            }
        }
    }
    Ok(())
}

/// Evaluates the policy; `None` if there is none.
async fn decide(context: &JobContext, id: RepositoryId) -> Result<Option<LifecyclePlan>, JobError> {
    let Some(repository) = context.metadata.find_repository_by_id(id).await? else {
        return Ok(None);
    };
    let Some(policy) = repository.lifecycle_policy.clone() else { return Ok(None) };
    let parsed = Policy::parse(&policy).map_err(|error| {
        JobError::Permanent(format!(
            "the lifecycle policy of {} is not valid: {error}",
            repository.name
        ))
    })?;
    let at = Timestamp::now();
    let LoadedImages { images, states } = load(context, id).await?;
    let policy: Arc<str> = policy.into();
    let (actions, protected) = evaluated(parsed, images, at, move |evaluation| {
        (plan(evaluation, &policy, &states), evaluation.protected.len())
    })
    .await?;
    Ok(Some(LifecyclePlan { repository, at, actions, protected: protected as u64 }))
}

/// Returns the actions of an evaluation with their preconditions.
fn plan(
    evaluation: &Evaluation<'_>,
    policy: &Arc<str>,
    states: &HashMap<Digest, ImageState>,
) -> Vec<PlannedAction> {
    let kept = |images: &Vec<&Image>| -> Arc<[(ManifestId, u64)]> {
        let states = images.iter().take(KEPT_CHECKED).filter_map(|image| states.get(&image.digest));
        states.map(|state| (state.id, state.revision)).collect()
    };
    let kept: HashMap<u32, Arc<[(ManifestId, u64)]>> =
        evaluation.kept.iter().map(|(rule, images)| (*rule, kept(images))).collect();
    let planned = |mark: &Mark<'_>| {
        let follows_subject = mark.cause == Cause::FollowsSubject;
        let kept = if follows_subject { None } else { kept.get(&mark.rule_priority) };
        Some(PlannedAction {
            digest: mark.image.digest.clone(),
            action: mark.action,
            decision: LifecycleDecision {
                policy: Arc::clone(policy),
                revision: states.get(&mark.image.digest)?.revision,
                last_pulled_at: mark.image.last_pulled_at,
                follows_subject,
                kept: kept.map(Arc::clone).unwrap_or_default(),
            },
        })
    };
    evaluation.marks.iter().filter_map(planned).collect()
}

/// Executes a plan until the policy is replaced or deleted: the new policy has its own run. Images
/// that were pushed or pulled during the run are `wanted`: they are left to the next run.
async fn execute(
    context: &JobContext,
    plan: LifecyclePlan,
    wanted: &mut HashSet<Digest>,
    done: &mut RunResult,
) -> StoreResult<ExecutionEnd> {
    let mut ended = ExecutionEnd::Complete;
    done.protected = plan.protected;
    for PlannedAction { digest, action, decision } in plan.actions {
        if wanted.contains(&digest) {
            continue;
        }
        // Pulls that this process has served count. A pull that another replica serves at this
        // moment does not.
        context.pulls.flush().await?;
        let acted = match action {
            Action::Expire => expire(context, plan.repository.id, &digest, decision).await?,
            Action::Transition => archive(context, plan.repository.id, &digest, decision).await?,
        };
        match (acted, action) {
            (ActionResult::Done, Action::Expire) => done.expired.push(digest),
            (ActionResult::Done, Action::Transition) => done.archived.push(digest),
            (ActionResult::Protected, _) => done.protected += 1,
            (ActionResult::Stale(Stale::Image), _) => {
                wanted.insert(digest);
                done.changed += 1;
            }
            (ActionResult::Gone | ActionResult::Stale(Stale::Subject), _) => done.changed += 1,
            (ActionResult::Stale(Stale::Kept), _) => ended = ExecutionEnd::Outdated,
            (ActionResult::Stale(Stale::Policy), _) => return Ok(ExecutionEnd::Replaced),
        }
    }
    Ok(ended)
}

/// The result of one action.
enum ActionResult {
    Done,
    Protected,
    /// The image does not exist any more, or has this storage class already.
    Gone,
    /// A precondition has changed.
    Stale(Stale),
}

async fn expire(
    context: &JobContext,
    id: RepositoryId,
    digest: &Digest,
    decision: LifecycleDecision,
) -> StoreResult<ActionResult> {
    match context.metadata.expire_image(id, digest, decision, Timestamp::now()).await {
        Ok(()) => Ok(ActionResult::Done),
        Err(DeleteImageError::ReferencedBy(_)) => Ok(ActionResult::Protected),
        Err(DeleteImageError::NotFound | DeleteImageError::TagPointsElsewhere(_)) => {
            Ok(ActionResult::Gone)
        }
        Err(DeleteImageError::Stale(stale)) => Ok(ActionResult::Stale(stale)),
        Err(DeleteImageError::Store(error)) => Err(error),
    }
}

async fn archive(
    context: &JobContext,
    id: RepositoryId,
    digest: &Digest,
    decision: LifecycleDecision,
) -> StoreResult<ActionResult> {
    match context.metadata.archive_image(id, digest, decision, Timestamp::now()).await {
        Ok(()) => Ok(ActionResult::Done),
        Err(StorageClassError::ReferencedBy(_)) => Ok(ActionResult::Protected),
        Err(StorageClassError::NotFound | StorageClassError::Unchanged(_)) => {
            Ok(ActionResult::Gone)
        }
        Err(StorageClassError::Stale(stale)) => Ok(ActionResult::Stale(stale)),
        Err(StorageClassError::Store(error)) => Err(error),
    }
}

/// Records the result of a run in the log, and in an event if it changed anything.
async fn record(context: &JobContext, repository: &Repository, done: RunResult) -> StoreResult<()> {
    let RunResult { expired, archived, changed, protected } = done;
    tracing::info!(
        repository = %repository.name,
        expired = expired.len(),
        archived = archived.len(),
        changed,
        protected,
        "executed a lifecycle policy"
    );
    if expired.is_empty() && archived.is_empty() {
        return Ok(());
    }
    let detail = serde_json::json!({
        "repository-name": repository.name,
        "expired-count": expired.len(),
        "expired": &expired[..expired.len().min(NAMED)],
        "archived-count": archived.len(),
        "archived": &archived[..archived.len().min(NAMED)],
        "changed-count": changed,
        "protected-count": protected,
    });
    let event = Event {
        at: Timestamp::now(),
        account: repository.account.clone(),
        repository: Some(repository.name.clone()),
        kind: "ECR Lifecycle Policy Execution".into(),
        detail: detail.to_string(),
    };
    context.metadata.record_event(event).await
}

/// Evaluates on a blocking thread: 100,000 images take a good part of a second.
pub(super) async fn evaluated<T: Send + 'static>(
    policy: Policy,
    images: Vec<Image>,
    now: Timestamp,
    read: impl FnOnce(&Evaluation<'_>) -> T + Send + 'static,
) -> Result<T, JobError> {
    tokio::task::spawn_blocking(move || read(&evaluate(&policy, &images, now)))
        .await
        .map_err(|error| JobError::Permanent(format!("the evaluation failed: {error}")))
}

/// The row of an image and its revision when it was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageState {
    id: ManifestId,
    revision: u64,
}

/// The images of a repository, as the evaluator needs them.
pub(super) struct LoadedImages {
    pub(super) images: Vec<Image>,
    states: HashMap<Digest, ImageState>,
}

pub(super) async fn load(context: &JobContext, id: RepositoryId) -> StoreResult<LoadedImages> {
    // Pulls that this process has served count.
    context.pulls.flush().await?;
    let mut parents: HashMap<Digest, Vec<Digest>> = HashMap::new();
    let mut last_edge = None;
    loop {
        let page = context.metadata.list_index_edges(id, last_edge.as_ref(), PAGE).await?;
        let Some(last) = page.last().cloned() else { break };
        for (parent, child) in page {
            parents.entry(child).or_default().push(parent);
        }
        last_edge = Some(last);
    }
    let (mut images, mut states) = (Vec::new(), HashMap::new());
    let mut last_digest: Option<Digest> = None;
    loop {
        let page = context
            .metadata
            .list_images(id, ImageFilter::EVERYTHING, last_digest.as_ref(), PAGE)
            .await?;
        let Some(last) = page.last() else { break };
        last_digest = Some(last.image.digest.clone());
        images.extend(page.into_iter().map(|found| {
            let images::Image { id, revision, ref digest, .. } = found.image;
            states.insert(digest.clone(), ImageState { id, revision });
            let parents = parents.remove(digest).unwrap_or_default();
            to_image(found, parents)
        }));
    }
    Ok(LoadedImages { images, states })
}

fn to_image(found: images::TaggedImage, parents: Vec<Digest>) -> Image {
    let images::TaggedImage { image, tags } = found;
    Image {
        digest: image.digest,
        tags,
        pushed_at: image.pushed_at,
        last_pulled_at: image.last_pulled_at,
        status: image.status,
        archived_at: image.archived_at,
        activated_at: image.activated_at,
        subject: image.subject,
        parents,
    }
}

#[cfg(test)]
pub(super) mod tests;
