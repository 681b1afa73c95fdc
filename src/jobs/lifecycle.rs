//! Carries out a repository's lifecycle policy. What it selects is the evaluator's decision alone; this file loads, acts in
//! the evaluator's order, and tells what it did.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::JobError;
use crate::lifecycle::{Action, Cause, Evaluation, Image, Mark, Policy, evaluate};
use crate::names::Digest;
use crate::registry::Registry;
use crate::store::StoreResult;
use crate::store::images::{self, DeleteImageError, ImageFilter, StorageClass, StorageClassError};
use crate::store::jobs::Event;
use crate::store::repositories::{Repository, RepositoryChange, RepositoryId};

/// How many rows one read takes.
const PAGE: usize = 1000;
/// How many images an event names; the others are counted.
const NAMED: usize = 100;

/// What a run did.
#[derive(Default)]
struct Done {
    expired: Vec<Digest>,
    archived: Vec<Digest>,
    /// Images that were not what they had been when the policy was evaluated, or were gone.
    changed: u64,
    /// Images that an index holds.
    protected: u64,
}

/// Evaluates the policy of this repository and carries it out. A repository or a policy that is gone is no failure.
pub(super) async fn run(registry: &Arc<Registry>, id: RepositoryId) -> Result<(), JobError> {
    let Some(repository) = registry.metadata.repository_by_id(id).await? else { return Ok(()) };
    let Some(text) = &repository.lifecycle_policy else { return Ok(()) };
    let policy = Policy::parse(text).map_err(|error| {
        JobError::Hopeless(format!("the lifecycle policy of {} is not valid: {error}", repository.name))
    })?;
    let now = Timestamp::now();
    let images = load(registry, id).await?;
    let (actions, protected) = evaluated(policy, images, now, |evaluation| {
        let owned = |mark: &Mark<'_>| (mark.image.clone(), mark.action, mark.cause);
        (evaluation.marks.iter().map(owned).collect::<Vec<_>>(), evaluation.protected.len() as u64)
    })
    .await?;

    let mut done = Done { protected, ..Done::default() };
    // A referrer follows its subject only where that has gone.
    let mut kept: HashSet<Digest> = HashSet::new();
    for (image, action, cause) in actions {
        let stays =
            cause == Cause::FollowsSubject && image.subject.as_ref().is_some_and(|subject| kept.contains(subject));
        let acted = match action {
            _ if stays => Acted::Changed,
            Action::Expire => expire(registry, id, &image).await?,
            Action::Transition => archive(registry, id, &image.digest).await?,
        };
        if !matches!(acted, Acted::Done) {
            kept.insert(image.digest.clone());
        }
        match (acted, action) {
            (Acted::Done, Action::Expire) => done.expired.push(image.digest),
            (Acted::Done, Action::Transition) => done.archived.push(image.digest),
            (Acted::Protected, _) => done.protected += 1,
            (Acted::Changed, _) => done.changed += 1,
        }
    }
    tell(registry, &repository, done).await?;
    registry.metadata.change_repository(id, RepositoryChange::LifecycleEvaluated(now), Vec::new()).await?;
    Ok(())
}

/// What became of one action.
enum Acted {
    Done,
    Protected,
    Changed,
}

/// Expires an image, unless its tags are not those that the policy was evaluated with: a tag that was pushed since then was
/// acknowledged, and the next run will see it.
async fn expire(registry: &Registry, id: RepositoryId, image: &Image) -> StoreResult<Acted> {
    match registry.metadata.expire_image(id, &image.digest, &image.tags, Timestamp::now()).await {
        Ok(()) => Ok(Acted::Done),
        Err(DeleteImageError::ReferencedBy(_)) => Ok(Acted::Protected),
        Err(DeleteImageError::NotFound | DeleteImageError::TagPointsElsewhere(_) | DeleteImageError::TagsChanged) => {
            Ok(Acted::Changed)
        }
        Err(DeleteImageError::Store(error)) => Err(error),
    }
}

async fn archive(registry: &Registry, id: RepositoryId, digest: &Digest) -> StoreResult<Acted> {
    match registry.metadata.set_storage_class(id, digest, StorageClass::Archive, Timestamp::now()).await {
        Ok(_status) => Ok(Acted::Done),
        Err(StorageClassError::ReferencedBy(_)) => Ok(Acted::Protected),
        Err(StorageClassError::NotFound | StorageClassError::Unchanged(_)) => Ok(Acted::Changed),
        Err(StorageClassError::Store(error)) => Err(error),
    }
}

/// Keeps an event row and a log line of what a run did; a run that did nothing is no event.
async fn tell(registry: &Registry, repository: &Repository, done: Done) -> StoreResult<()> {
    let Done { expired, archived, changed, protected } = done;
    tracing::info!(
        repository = %repository.name,
        expired = expired.len(),
        archived = archived.len(),
        changed,
        protected,
        "carried out a lifecycle policy"
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
    registry.metadata.record_event(event).await
}

/// Evaluates away from the threads that answer requests: 100,000 images take a good part of a second.
pub(super) async fn evaluated<T: Send + 'static>(
    policy: Policy,
    images: Vec<Image>,
    now: Timestamp,
    read: impl FnOnce(&Evaluation<'_>) -> T + Send + 'static,
) -> Result<T, JobError> {
    tokio::task::spawn_blocking(move || read(&evaluate(&policy, &images, now)))
        .await
        .map_err(|error| JobError::Hopeless(format!("the evaluation failed: {error}")))
}

/// Every image of a repository as the evaluator wants it.
pub(super) async fn load(registry: &Registry, id: RepositoryId) -> StoreResult<Vec<Image>> {
    let mut parents: HashMap<Digest, Vec<Digest>> = HashMap::new();
    let mut last_edge = None;
    loop {
        let page = registry.metadata.index_edges(id, last_edge.as_ref(), PAGE).await?;
        let Some(last) = page.last().cloned() else { break };
        for (parent, child) in page {
            parents.entry(child).or_default().push(parent);
        }
        last_edge = Some(last);
    }
    let mut images = Vec::new();
    let mut last_digest: Option<Digest> = None;
    loop {
        let page = registry.metadata.list_images(id, ImageFilter::EVERYTHING, last_digest.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        last_digest = Some(last.image.digest.clone());
        images.extend(page.into_iter().map(|found| {
            let parents = parents.remove(&found.image.digest).unwrap_or_default();
            to_image(found, parents)
        }));
    }
    Ok(images)
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
