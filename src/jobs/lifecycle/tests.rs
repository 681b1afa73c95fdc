//! Runs of a lifecycle policy while images, tags and the policy change.

use jiff::SignedDuration;
use serde_json::json;

use super::*;
use crate::JobMetrics;
use wharfage_domain::names::{Reference, Tag};
use wharfage_store::blobs::folder::FolderBlobs;
use wharfage_store::images::{ImageStatus, Referrers};
use wharfage_store::manifests::{NewManifest, PutManifest};
use wharfage_store::pull_recorder::PullRecorder;
use wharfage_store::repositories::{Encryption, NewRepository, TagMutability};
use wharfage_store::sqlite::SqliteStore;
use wharfage_store::{Lookup, Metadata};

/// Creates a job context with a repository of four images.
pub(crate) async fn bed() -> (tempfile::TempDir, JobContext, RepositoryId) {
    let folder = tempfile::tempdir().unwrap();
    let account = "123456789012".parse().unwrap();
    let metadata: Arc<dyn Metadata> =
        Arc::new(SqliteStore::open(&folder.path().join("metadata.sqlite")).unwrap());
    let context = JobContext {
        metadata: Arc::clone(&metadata),
        blobs: Arc::new(FolderBlobs::open(&folder.path().join("blobs")).unwrap()),
        pulls: Arc::new(PullRecorder::new(metadata)),
        metrics: JobMetrics::default(),
    };
    let new = NewRepository {
        account,
        name: "app".parse().unwrap(),
        created_at: Timestamp::now(),
        tag_mutability: TagMutability::MUTABLE,
        scan_on_push: false,
        encryption: Encryption::default(),
        tags: Vec::new(),
    };
    let repository = context.metadata.create_repository(new, 1).await.unwrap().id;
    for text in ["a", "b", "c", "d"] {
        push(&context, repository, text).await;
    }
    (folder, context, repository)
}

/// Pushes an image with the payload and tag `text`. Images with later letters are younger.
async fn push(context: &JobContext, repository: RepositoryId, text: &'static str) {
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
    let age = i64::from(b'z' - text.as_bytes()[0]);
    let (tags, now) =
        (vec![text.parse().unwrap()], Timestamp::now() - SignedDuration::from_secs(age));
    let put = PutManifest {
        repository,
        manifest,
        tags,
        now,
        max_images: 9,
        max_tags: 9,
        jobs: Vec::new(),
    };
    context.metadata.put_manifest(put).await.unwrap();
}

async fn set_policy(context: &JobContext, id: RepositoryId, policy: Option<String>) {
    let change = RepositoryChange::LifecyclePolicy(policy);
    assert!(context.metadata.change_repository(id, change, Vec::new()).await.unwrap());
}

/// A policy that keeps this many images, and expires or archives the others.
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

/// Returns the tags of the active images.
async fn active(context: &JobContext, id: RepositoryId) -> String {
    let filter = ImageFilter { status: Some(ImageStatus::Active), ..ImageFilter::EVERYTHING };
    let images = context.metadata.list_images(id, filter, None, 10).await.unwrap();
    let mut tags: Vec<&str> = images.iter().flat_map(|it| &it.tags).map(Tag::as_str).collect();
    tags.sort_unstable();
    tags.join(" ")
}

async fn was_evaluated(context: &JobContext, id: RepositoryId) -> bool {
    context
        .metadata
        .find_repository_by_id(id)
        .await
        .unwrap()
        .unwrap()
        .lifecycle_evaluated_at
        .is_some()
}

async fn planned(context: &JobContext, id: RepositoryId) -> LifecyclePlan {
    decide(context, id).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_run_stops_when_its_policy_is_replaced_or_deleted() {
    for action in ["expire", "transition"] {
        for replacement in [None, Some(keep(4, action))] {
            let (_folder, context, id) = bed().await;
            set_policy(&context, id, Some(keep(1, action))).await;
            let mut plan = planned(&context, id).await;
            assert_eq!(plan.actions.len(), 3);

            // The first action is executed before the policy changes, the others after it.
            let first = plan.actions.remove(0);
            let begun =
                LifecyclePlan { repository: plan.repository.clone(), actions: vec![first], ..plan };
            let rest = LifecyclePlan {
                repository: begun.repository.clone(),
                actions: plan.actions,
                ..begun
            };
            let (mut wanted, mut done) = (HashSet::new(), RunResult::default());
            assert_eq!(
                execute(&context, begun, &mut wanted, &mut done).await.unwrap(),
                ExecutionEnd::Complete
            );
            assert_eq!(active(&context, id).await, "b c d");

            set_policy(&context, id, replacement.clone()).await;
            assert_eq!(
                execute(&context, rest, &mut wanted, &mut done).await.unwrap(),
                ExecutionEnd::Replaced
            );
            assert_eq!(active(&context, id).await, "b c d", "{action}, then {replacement:?}");
            assert_eq!(done.expired.len() + done.archived.len(), 1);
            assert!(!was_evaluated(&context, id).await);
        }
    }
}

#[tokio::test]
async fn an_image_used_during_a_run_is_left_to_the_next() {
    for action in ["expire", "transition"] {
        for wanted in ["pushed", "pulled"] {
            let (_folder, context, id) = bed().await;
            set_policy(&context, id, Some(keep(1, action))).await;
            let plan = planned(&context, id).await;
            match wanted {
                "pushed" => push(&context, id, "a").await,
                _ => {
                    let (account, name) = (&plan.repository.account, &plan.repository.name);
                    let tag = Reference::Tag("a".parse().unwrap());
                    let found = context.metadata.find_manifest(account, name, &tag).await.unwrap();
                    let Lookup::Found(manifest) = found else { panic!("the image is there") };
                    context.pulls.note(&manifest, Timestamp::now());
                }
            }
            let (mut left, mut done) = (HashSet::new(), RunResult::default());
            execute(&context, plan, &mut left, &mut done).await.unwrap();
            assert_eq!(active(&context, id).await, "a d", "{action}, {wanted}");
            let again = planned(&context, id).await;
            assert_eq!(again.actions.len(), 1, "the policy would still act on it");
            execute(&context, again, &mut left, &mut done).await.unwrap();
            assert_eq!(active(&context, id).await, "a d", "{action}, {wanted}");

            run(&context, &JobSettings::default(), id).await.unwrap();
            assert_eq!(active(&context, id).await, "d");
            assert!(was_evaluated(&context, id).await);
        }
    }
}

#[tokio::test]
async fn a_policy_is_evaluated_again_when_kept_images_go() {
    for action in ["expire", "transition"] {
        let (_folder, context, id) = bed().await;
        set_policy(&context, id, Some(keep(2, action))).await;
        let plan = planned(&context, id).await;
        assert_eq!(plan.actions.len(), 2);
        let newest = Digest::sha256(b"d");
        context
            .metadata
            .delete_image(id, &newest, Referrers::Stay, Timestamp::now())
            .await
            .unwrap();
        let (mut wanted, mut done) = (HashSet::new(), RunResult::default());
        assert_eq!(
            execute(&context, plan, &mut wanted, &mut done).await.unwrap(),
            ExecutionEnd::Outdated
        );
        assert_eq!(active(&context, id).await, "a b c");
        run(&context, &JobSettings::default(), id).await.unwrap();
        assert_eq!(active(&context, id).await, "b c");
    }
}
