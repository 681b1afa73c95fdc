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
use crate::store::images::{self, DeleteImageError, ImageFilter, StorageClassError};
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

/// What a policy decided about a repository, to be carried out while the repository has that policy.
struct Decided {
    repository: Repository,
    policy: String,
    /// The moment that it was evaluated for.
    at: Timestamp,
    actions: Vec<(Image, Action, Cause)>,
    protected: u64,
}

/// Evaluates the policy of this repository and carries it out. A repository or a policy that is gone is no failure.
pub(super) async fn run(registry: &Arc<Registry>, id: RepositoryId) -> Result<(), JobError> {
    match decide(registry, id).await? {
        Some(decided) => Ok(carry_out(registry, decided).await?),
        None => Ok(()),
    }
}

/// Nothing if there is no policy.
async fn decide(registry: &Registry, id: RepositoryId) -> Result<Option<Decided>, JobError> {
    let Some(repository) = registry.metadata.repository_by_id(id).await? else { return Ok(None) };
    let Some(policy) = repository.lifecycle_policy.clone() else { return Ok(None) };
    let parsed = Policy::parse(&policy).map_err(|error| {
        JobError::Hopeless(format!("the lifecycle policy of {} is not valid: {error}", repository.name))
    })?;
    let at = Timestamp::now();
    let images = load(registry, id).await?;
    let (actions, protected) = evaluated(parsed, images, at, |evaluation| {
        let owned = |mark: &Mark<'_>| (mark.image.clone(), mark.action, mark.cause);
        (evaluation.marks.iter().map(owned).collect::<Vec<_>>(), evaluation.protected.len() as u64)
    })
    .await?;
    Ok(Some(Decided { repository, policy, at, actions, protected }))
}

/// Acts until the policy is another one or gone: from then on that one holds, and its own run, if there is a policy.
async fn carry_out(registry: &Registry, decided: Decided) -> StoreResult<()> {
    let Decided { repository, policy, at, actions, protected } = decided;
    let mut done = Done { protected, ..Done::default() };
    // A referrer follows its subject only where that has gone.
    let mut kept: HashSet<Digest> = HashSet::new();
    let mut replaced = false;
    for (image, action, cause) in actions {
        let stays =
            cause == Cause::FollowsSubject && image.subject.as_ref().is_some_and(|subject| kept.contains(subject));
        let acted = match action {
            _ if stays => Acted::Changed,
            Action::Expire => expire(registry, repository.id, &policy, &image).await?,
            Action::Transition => archive(registry, repository.id, &policy, &image.digest).await?,
        };
        if !matches!(acted, Acted::Done) {
            kept.insert(image.digest.clone());
        }
        match (acted, action) {
            (Acted::Done, Action::Expire) => done.expired.push(image.digest),
            (Acted::Done, Action::Transition) => done.archived.push(image.digest),
            (Acted::Protected, _) => done.protected += 1,
            (Acted::Changed, _) => done.changed += 1,
            (Acted::Replaced, _) => {
                replaced = true;
                break;
            }
        }
    }
    tell(registry, &repository, done).await?;
    if replaced {
        tracing::info!(repository = %repository.name, "stopped: the lifecycle policy was replaced or deleted meanwhile");
        return Ok(());
    }
    registry.metadata.change_repository(repository.id, RepositoryChange::LifecycleEvaluated(at), Vec::new()).await?;
    Ok(())
}

/// What became of one action.
enum Acted {
    Done,
    Protected,
    Changed,
    /// Nothing: the repository has another policy by now, or none.
    Replaced,
}

/// Expires an image, unless its tags are not those that the policy was evaluated with: a tag that was pushed since then was
/// acknowledged, and the next run will see it.
async fn expire(registry: &Registry, id: RepositoryId, policy: &str, image: &Image) -> StoreResult<Acted> {
    match registry.metadata.expire_image(id, &image.digest, policy, &image.tags, Timestamp::now()).await {
        Ok(()) => Ok(Acted::Done),
        Err(DeleteImageError::ReferencedBy(_)) => Ok(Acted::Protected),
        Err(DeleteImageError::NotFound | DeleteImageError::TagPointsElsewhere(_) | DeleteImageError::TagsChanged) => {
            Ok(Acted::Changed)
        }
        Err(DeleteImageError::PolicyChanged) => Ok(Acted::Replaced),
        Err(DeleteImageError::Store(error)) => Err(error),
    }
}

async fn archive(registry: &Registry, id: RepositoryId, policy: &str, digest: &Digest) -> StoreResult<Acted> {
    match registry.metadata.archive_image(id, digest, policy, Timestamp::now()).await {
        Ok(()) => Ok(Acted::Done),
        Err(StorageClassError::ReferencedBy(_)) => Ok(Acted::Protected),
        Err(StorageClassError::NotFound | StorageClassError::Unchanged(_)) => Ok(Acted::Changed),
        Err(StorageClassError::PolicyChanged) => Ok(Acted::Replaced),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::auth::Keyring;
    use crate::registry::{Config, Limits, PublicUrl};
    use crate::store::blobs::folder::FolderBlobs;
    use crate::store::images::{NewManifest, PutManifest};
    use crate::store::repositories::{Encryption, NewRepository, TagMutability};
    use crate::store::sqlite::SqliteStore;
    use crate::telemetry::Metrics;

    /// A registry on a folder, with a repository of four images.
    async fn bed() -> (tempfile::TempDir, Registry, RepositoryId) {
        let folder = tempfile::tempdir().unwrap();
        let account: crate::names::AccountId = "123456789012".parse().unwrap();
        let config = Config {
            region: "local-1".parse().unwrap(),
            account: account.clone(),
            public_url: "http://localhost:5000".parse::<PublicUrl>().unwrap(),
            redirect_blobs: false,
            limits: Limits::default(),
        };
        let metadata = Arc::new(SqliteStore::open(&folder.path().join("metadata.sqlite")).unwrap());
        let blobs = Arc::new(FolderBlobs::open(&folder.path().join("blobs")).unwrap());
        let registry = Registry::new(config, metadata, blobs, Keyring::default(), Arc::new(Metrics::new()));
        let new = NewRepository {
            account,
            name: "app".parse().unwrap(),
            created_at: Timestamp::now(),
            tag_mutability: TagMutability::MUTABLE,
            scan_on_push: false,
            encryption: Encryption::default(),
            tags: Vec::new(),
        };
        let repository = registry.metadata.create_repository(new, 1).await.unwrap().id;
        for text in ["a", "b", "c", "d"] {
            let manifest = NewManifest {
                digest: Digest::sha256(text.as_bytes()),
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                payload: text.into(),
                artifact_type: None,
                config_media_type: None,
                subject: None,
                annotations: Default::default(),
                blobs: Vec::new(),
                children: Vec::new(),
            };
            let (tags, now) = (vec![text.parse().unwrap()], Timestamp::now());
            let put = PutManifest { repository, manifest, tags, now, max_images: 9, max_tags: 9, jobs: Vec::new() };
            registry.metadata.put_manifest(put).await.unwrap();
        }
        (folder, registry, repository)
    }

    async fn set_policy(registry: &Registry, id: RepositoryId, policy: Option<String>) {
        let change = RepositoryChange::LifecyclePolicy(policy);
        assert!(registry.metadata.change_repository(id, change, Vec::new()).await.unwrap());
    }

    /// Keeps so many images; the others expire or go to the archive.
    fn keep(images: u64, action: &str) -> String {
        let mut policy = json!({ "rules": [{
            "rulePriority": 1,
            "selection": { "tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": images },
            "action": { "type": action },
        }] });
        if action == "transition" {
            policy["rules"][0]["action"]["targetStorageClass"] = "archive".into();
        }
        policy.to_string()
    }

    /// How many images are active, and whether the policy counts as evaluated.
    async fn state(registry: &Registry, id: RepositoryId) -> (usize, bool) {
        let images = registry.metadata.list_images(id, ImageFilter::EVERYTHING, None, 10).await.unwrap();
        let active = images.iter().filter(|it| it.image.status == images::ImageStatus::Active).count();
        let evaluated_at = registry.metadata.repository_by_id(id).await.unwrap().unwrap().lifecycle_evaluated_at;
        (active, evaluated_at.is_some())
    }

    #[tokio::test]
    async fn a_run_that_has_begun_stops_where_its_policy_is_replaced_or_deleted() {
        for action in ["expire", "transition"] {
            for replacement in [None, Some(keep(4, action))] {
                let (_folder, registry, id) = bed().await;
                set_policy(&registry, id, Some(keep(1, action))).await;
                let mut decided = decide(&registry, id).await.unwrap().unwrap();
                assert_eq!(decided.actions.len(), 3);

                // The first action is done before the policy changes, the others come behind.
                let first = decided.actions.remove(0);
                let begun = Decided {
                    repository: decided.repository.clone(),
                    policy: decided.policy.clone(),
                    actions: vec![first],
                    ..decided
                };
                carry_out(&registry, begun).await.unwrap();
                assert_eq!(state(&registry, id).await, (3, true));

                set_policy(&registry, id, replacement.clone()).await;
                carry_out(&registry, decided).await.unwrap();
                assert_eq!(state(&registry, id).await, (3, false), "{action}, then {replacement:?}");
            }
        }
    }
}
