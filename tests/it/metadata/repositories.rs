//! Repositories.

use wharfage::store::images::{DeleteImageError, ImageFilter, StorageClass};
use wharfage::store::jobs::{
    DeleteGeneration, DeleteRepository, EvaluateLifecycle, JobPayload as _,
};
use wharfage::store::layers::{MountOutcome, UnlinkOutcome};
use wharfage::store::manifests::PutManifestError;
use wharfage::store::repositories::{
    CreateRepositoryError, DeleteRepositoryError, Encryption, LifecycleSchedule, Mutability,
    NewRepository, RepositoryChange, ResourceTag, TagMutability, TagResourceError,
};
use wharfage::store::uploads::UploadError;

use super::*;

fn resource_tag(key: &str, value: &str) -> ResourceTag {
    ResourceTag { key: key.into(), value: value.into() }
}

pub async fn a_repository_is_found_as_it_was_created(mut store: Fixture) {
    let new = NewRepository {
        tag_mutability: TagMutability {
            mode: Mutability::ImmutableWithExclusion,
            exclusions: vec!["dev-*".into(), "latest".into()],
        },
        scan_on_push: true,
        encryption: Encryption {
            kind: "KMS".into(),
            kms_key: Some("arn:aws:kms:r:1:key/k".into()),
        },
        tags: vec![resource_tag("team", "a"), resource_tag("cost", "")],
        ..new_repository("team/app")
    };
    let created = store.create_repository(new.clone(), 10).await.unwrap();
    assert_eq!(
        (
            &created.account,
            &created.name,
            created.created_at,
            &created.tag_mutability,
            &created.encryption
        ),
        (&new.account, &new.name, new.created_at, &new.tag_mutability, &new.encryption)
    );
    assert!(created.scan_on_push);
    assert_eq!(
        (&created.policy, &created.lifecycle_policy, created.lifecycle_evaluated_at),
        (&None, &None, None)
    );

    store.reopen().await;
    assert_eq!(
        store.find_repository(&new.account, &new.name).await.unwrap(),
        Some(created.clone())
    );
    assert_eq!(store.find_repository_by_id(created.id).await.unwrap(), Some(created.clone()));
    assert_eq!(
        store.list_resource_tags(created.id).await.unwrap(),
        [resource_tag("cost", ""), resource_tag("team", "a")]
    );
    assert_eq!(store.find_repository(&other_account(), &new.name).await.unwrap(), None);
    assert_eq!(store.find_repository(&new.account, &name("team")).await.unwrap(), None);
}

pub async fn a_repository_name_is_taken_once_per_registry(store: Fixture) {
    store.repository_named("app").await;
    let again = store.create_repository(new_repository("app"), 10).await;
    assert!(matches!(again, Err(CreateRepositoryError::AlreadyExists)), "{again:?}");
    let elsewhere = NewRepository { account: other_account(), ..new_repository("app") };
    store.create_repository(elsewhere, 10).await.unwrap();
}

pub async fn a_registry_has_no_more_repositories_than_it_may(store: Fixture) {
    store.create_repository(new_repository("app1"), 2).await.unwrap();
    store.create_repository(new_repository("app2"), 2).await.unwrap();
    let third = store.create_repository(new_repository("app3"), 2).await;
    assert!(matches!(third, Err(CreateRepositoryError::LimitExceeded(2))), "{third:?}");
    assert_eq!(store.find_repository(&account(), &name("app3")).await.unwrap(), None);
    store
        .create_repository(NewRepository { account: other_account(), ..new_repository("app3") }, 2)
        .await
        .unwrap();
}

pub async fn repositories_are_listed_by_name_in_pages(store: Fixture) {
    for text in ["bb", "aa", "a-b", "a/b", "aa/c", "a_b"] {
        store.repository_named(text).await;
    }
    store
        .create_repository(NewRepository { account: other_account(), ..new_repository("zz") }, 10)
        .await
        .unwrap();
    let mut listed = Vec::new();
    loop {
        let after = listed.last().cloned();
        let page = store.list_repositories(&account(), after.as_deref(), 4).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 4);
        listed.extend(page.into_iter().map(|repository| String::from(repository.name)));
    }
    assert_eq!(listed, ["a-b", "a/b", "a_b", "aa", "aa/c", "bb"], "byte order");
    assert_eq!(
        store.list_repositories(&account(), Some("aa"), 1).await.unwrap()[0].name,
        name("aa/c")
    );
}

pub async fn each_setting_changes_alone(store: Fixture) {
    let before = store.repository_named("app").await;
    let immutable =
        TagMutability { mode: Mutability::MutableWithExclusion, exclusions: vec!["v*".into()] };
    for change in [
        RepositoryChange::TagMutability(immutable.clone()),
        RepositoryChange::ScanOnPush(true),
        RepositoryChange::Policy(Some("{ \"a\": 1 }".into())),
        RepositoryChange::LifecyclePolicy(Some("{}".into())),
        RepositoryChange::LifecycleEvaluated { at: at(9), due_at: at(99) },
    ] {
        assert!(store.change_repository(before.id, change, Vec::new()).await.unwrap());
    }
    let after = store.find_repository_by_id(before.id).await.unwrap().unwrap();
    let expected = Repository {
        tag_mutability: immutable,
        scan_on_push: true,
        policy: Some("{ \"a\": 1 }".into()),
        lifecycle_policy: Some("{}".into()),
        lifecycle_evaluated_at: Some(at(9)),
        version: before.version + 5,
        policy_version: before.policy_version + 1,
        ..before.clone()
    };
    assert_eq!(after, expected);

    for change in [RepositoryChange::Policy(None), RepositoryChange::LifecyclePolicy(None)] {
        assert!(store.change_repository(before.id, change, Vec::new()).await.unwrap());
    }
    let after = store.find_repository_by_id(before.id).await.unwrap().unwrap();
    assert_eq!(
        (after.policy, after.lifecycle_policy, after.lifecycle_evaluated_at),
        (None, None, None)
    );

    store.delete_repository(before.id, false, at(10)).await.unwrap();
    let jobs = vec![job("lifecycle", "1", "{}", at(0))];
    let change = RepositoryChange::LifecyclePolicy(Some("{}".into()));
    assert!(!store.change_repository(before.id, change, jobs).await.unwrap());
    assert_eq!(store.waiting("lifecycle").await, 0, "nothing follows a change that did not happen");
}

pub async fn a_repositorys_version_grows_with_every_change(store: Fixture) {
    let repository = store.repository_named("app").await;
    let other = store.repository_named("other").await;
    let versions = async |repository: &Repository| {
        let found = store.find_repository_by_id(repository.id).await.unwrap().unwrap();
        (found.version, found.policy_version)
    };
    assert_eq!(versions(&repository).await, (repository.version, repository.policy_version));
    let mut before = versions(&repository).await;
    let tag = ResourceTag { key: "team".into(), value: "a".into() };
    for step in ["tag", "untag", "scan", "policy", "no policy"] {
        match step {
            "tag" => store.tag_resource(repository.id, vec![tag.clone()], 50).await.unwrap(),
            "untag" => store.untag_resource(repository.id, &["team".into()]).await.unwrap(),
            step => {
                let change = match step {
                    "scan" => RepositoryChange::ScanOnPush(true),
                    "policy" => RepositoryChange::Policy(Some("{}".into())),
                    _ => RepositoryChange::Policy(None),
                };
                assert!(store.change_repository(repository.id, change, Vec::new()).await.unwrap());
            }
        }
        let after = versions(&repository).await;
        assert!(after.0 > before.0, "{step}: {before:?}, then {after:?}");
        assert_eq!(
            after.1 > before.1,
            step.ends_with("policy"),
            "{step}: {before:?}, then {after:?}"
        );
        before = after;
    }
    assert_eq!(versions(&other).await, (other.version, other.policy_version));
}

pub async fn a_new_policy_enqueues_its_job_and_clears_its_evaluation(store: Fixture) {
    let repository = store.repository_named("app").await;
    let policy = |text: &str| RepositoryChange::LifecyclePolicy(Some(text.into()));
    let jobs = vec![job("lifecycle", "1", "{}", at(5))];
    assert!(store.change_repository(repository.id, policy("a"), jobs).await.unwrap());
    assert_eq!(store.waiting("lifecycle").await, 1);
    let evaluated = RepositoryChange::LifecycleEvaluated { at: at(6), due_at: at(96) };
    assert!(store.change_repository(repository.id, evaluated, Vec::new()).await.unwrap());
    assert!(store.change_repository(repository.id, policy("b"), Vec::new()).await.unwrap());
    let after = store.find_repository_by_id(repository.id).await.unwrap().unwrap();
    assert_eq!(
        (after.lifecycle_policy.as_deref(), after.lifecycle_evaluated_at),
        (Some("b"), None)
    );
}

/// Enqueues the due policies; each is due again at `again`.
async fn turn(store: &Fixture, now: i64, again: i64, limit: usize) -> usize {
    let schedule = LifecycleSchedule { now: at(now), next_due: (at(again), at(again)), limit };
    store.schedule_lifecycle(schedule).await.unwrap()
}

/// Runs every waiting lifecycle job, in order, and returns their repositories.
async fn lifecycle_runs(store: &Fixture, now: i64) -> Vec<i64> {
    let mut keys = Vec::new();
    while let Some(job) = store.claim_job(&["lifecycle"], at(now), MINUTE).await.unwrap() {
        store.end_job(job.id, job.attempts, wharfage::store::jobs::JobEnd::Done).await.unwrap();
        keys.push(job.key.parse().unwrap());
    }
    keys
}

async fn put_policy(store: &Fixture, id: RepositoryId) {
    let policy = RepositoryChange::LifecyclePolicy(Some("{}".into()));
    assert!(store.change_repository(id, policy, Vec::new()).await.unwrap());
}

async fn evaluated(store: &Fixture, id: RepositoryId, seconds: i64, due: i64) {
    let evaluated = RepositoryChange::LifecycleEvaluated { at: at(seconds), due_at: at(due) };
    assert!(store.change_repository(id, evaluated, Vec::new()).await.unwrap());
}

pub async fn the_longest_overdue_policy_is_enqueued_first(store: Fixture) {
    let mut ids = Vec::new();
    for (text, due) in [("just-now", Some(20)), ("long-ago", Some(10)), ("never", None)] {
        let new = NewRepository {
            account: if text == "never" { other_account() } else { account() },
            ..new_repository(text)
        };
        let id = store.create_repository(new, 10).await.unwrap().id;
        put_policy(&store, id).await;
        if let Some(due) = due {
            evaluated(&store, id, 0, due).await;
        }
        ids.push(id);
    }
    store.repository_named("without-policy").await;
    let [just_now, long_ago, never] = ids[..] else { panic!("three") };
    assert_eq!(turn(&store, 19, 100, 1).await, 1);
    assert_eq!(lifecycle_runs(&store, 19).await, [never.0], "a policy that was put is due at once");
    assert_eq!(turn(&store, 20, 100, 1).await, 1);
    assert_eq!(lifecycle_runs(&store, 20).await, [long_ago.0]);
    assert_eq!(turn(&store, 20, 100, 10).await, 1);
    assert_eq!(lifecycle_runs(&store, 20).await, [just_now.0]);
    assert_eq!(turn(&store, 99, 200, 10).await, 0, "each is due again when the turn said");
    assert_eq!(turn(&store, 100, 200, 10).await, 3);
    assert_eq!(store.waiting("lifecycle").await, 3);
}

pub async fn a_policy_whose_job_waits_or_runs_is_not_enqueued_twice(store: Fixture) {
    let (runs, waits) =
        (store.repository_named("runs").await.id, store.repository_named("waits").await.id);
    for id in [runs, waits] {
        put_policy(&store, id).await;
    }
    store.enqueue_job(EvaluateLifecycle { repository: runs }.job(at(0))).await.unwrap();
    let running = store.claim_job(&["lifecycle"], at(0), MINUTE).await.unwrap().unwrap();
    store.enqueue_job(EvaluateLifecycle { repository: waits }.job(at(0))).await.unwrap();
    assert_eq!(turn(&store, 1, 100, 10).await, 2);
    assert_eq!(store.waiting("lifecycle").await, 1);
    store.end_job(running.id, running.attempts, wharfage::store::jobs::JobEnd::Done).await.unwrap();
    assert_eq!(lifecycle_runs(&store, 1).await, [waits.0]);
}

pub async fn deletion_or_early_evaluation_makes_no_policy_due_sooner(store: Fixture) {
    let (gone, early) =
        (store.repository_named("gone").await.id, store.repository_named("early").await.id);
    for id in [gone, early] {
        put_policy(&store, id).await;
    }
    assert!(
        store
            .change_repository(gone, RepositoryChange::LifecyclePolicy(None), Vec::new())
            .await
            .unwrap()
    );
    evaluated(&store, gone, 1, 1).await;
    assert_eq!(turn(&store, 5, 100, 10).await, 1);
    evaluated(&store, early, 6, 50).await;
    assert_eq!(turn(&store, 99, 200, 10).await, 0);
    assert_eq!(turn(&store, 100, 200, 10).await, 1);
}

pub async fn resource_tags_merge_up_to_their_limit(store: Fixture) {
    let repository = store.repository_named("app").await.id;
    store
        .tag_resource(repository, vec![resource_tag("a", "1"), resource_tag("b", "2")], 3)
        .await
        .unwrap();
    store
        .tag_resource(repository, vec![resource_tag("b", "3"), resource_tag("c", "4")], 3)
        .await
        .unwrap();
    let expected = [resource_tag("a", "1"), resource_tag("b", "3"), resource_tag("c", "4")];
    assert_eq!(store.list_resource_tags(repository).await.unwrap(), expected);

    let refused = store
        .tag_resource(repository, vec![resource_tag("a", "9"), resource_tag("d", "5")], 3)
        .await;
    assert!(matches!(refused, Err(TagResourceError::TooMany(3))), "{refused:?}");
    assert_eq!(store.list_resource_tags(repository).await.unwrap(), expected, "all or nothing");

    store.untag_resource(repository, &["a".into(), "nothing".into()]).await.unwrap();
    assert_eq!(store.list_resource_tags(repository).await.unwrap(), expected[1..]);

    store.delete_repository(repository, false, at(1)).await.unwrap();
    let gone = store.tag_resource(repository, vec![resource_tag("a", "1")], 3).await;
    assert!(matches!(gone, Err(TagResourceError::NotFound)), "{gone:?}");
}

pub async fn a_repository_with_images_is_deleted_by_force_only(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let with_layer = NewManifest { blobs: blobs(&[&layer]), ..manifest("child") };
    store.put_manifest(put(&repository, with_layer, &["a"])).await.unwrap();
    store.index(&repository, &[&digest("child")], &["b"]).await;
    let archived = store.image(&repository, "archived", &[]).await;
    store.set_storage_class(repository.id, &archived, StorageClass::Archive, at(1)).await.unwrap();

    let refused = store.delete_repository(repository.id, false, at(2)).await;
    assert!(matches!(refused, Err(DeleteRepositoryError::NotEmpty)), "{refused:?}");
    assert_eq!(store.tagged(&repository, "b").await, Some(digest("an index")));

    store.delete_repository(repository.id, true, at(2)).await.unwrap();
    assert_eq!(store.find_repository(&account(), &name("app")).await.unwrap(), None);
    assert_eq!(store.found(&repository, "a").await, Lookup::NoRepository);
    let again = store.delete_repository(repository.id, true, at(2)).await;
    assert!(matches!(again, Err(DeleteRepositoryError::NotFound)), "{again:?}");
}

pub async fn deleting_a_repository_cancels_uploads_and_keeps_shared_blobs(store: Fixture) {
    let (going, staying) =
        (store.repository_named("going").await, store.repository_named("staying").await);
    let layer = store.blob(&going, "layer").await;
    assert_eq!(store.commit(&staying, &layer, at(0)).await, CommitOutcome::Shared);
    while let Some(job) = store.claim_job(&[DeleteGeneration::KIND], at(9), MINUTE).await.unwrap() {
        store.end_job(job.id, job.attempts, wharfage::store::jobs::JobEnd::Done).await.unwrap();
    }
    let upload = new_upload(&going);
    assert!(store.create_upload(upload.clone(), None).await.unwrap());

    store.delete_repository(going.id, false, at(3)).await.unwrap();
    empty(&store).await;

    assert!(store.has_blob(&staying, &layer).await);
    let claimed =
        store.claim_job(&[DeleteGeneration::KIND], at(1_000), MINUTE).await.unwrap().unwrap();
    let expected =
        DeleteGeneration { generation: upload.generation, writer: upload.progress.writer };
    assert_eq!(DeleteGeneration::parse(&claimed.payload).unwrap(), expected);
    assert_eq!(store.waiting(DeleteGeneration::KIND).await, 0);
    assert_eq!(store.count_uploads().await.unwrap(), 0);
    let late = store.advance_upload(advance(upload.id, 0, 5)).await;
    assert!(matches!(late, Err(UploadError::NotFound)), "{late:?}");
}

pub async fn a_recreated_repository_is_empty(store: Fixture) {
    let old = store.repository_named("app").await;
    let layer = store.blob(&old, "layer").await;
    let image = store.image(&old, "image", &["a"]).await;
    store.delete_repository(old.id, true, at(1)).await.unwrap();

    let new = store.repository_named("app").await;
    assert_ne!(old.id, new.id, "a row id is never given twice");
    assert!(!store.has_blob(&new, &layer).await);
    assert_eq!(store.found(&new, image.as_str()).await, Lookup::Missing);
    assert_eq!(store.list_tags(new.id, None, 10).await.unwrap(), []);
    assert_eq!(store.unlink_blob(new.id, &layer).await.unwrap(), UnlinkOutcome::NotFound);
    assert_eq!(
        store.commit(&new, &layer, at(0)).await,
        CommitOutcome::Shared,
        "the bytes await the collector"
    );
}

/// Runs the jobs that empty deleted repositories.
async fn empty(store: &Fixture) {
    while let Some(job) =
        store.claim_job(&[DeleteRepository::KIND], at(1_000), MINUTE).await.unwrap()
    {
        let DeleteRepository { repository } = DeleteRepository::parse(&job.payload).unwrap();
        while !store.empty_repository(repository, 2, at(1_000)).await.unwrap() {}
        store.end_job(job.id, job.attempts, wharfage::store::jobs::JobEnd::Done).await.unwrap();
    }
}

/// Creates a repository with images, an index, a referrer, tags, an upload, a preview, a policy and
/// resource tags.
async fn full(store: &Fixture, text: &str) -> (Repository, Digest) {
    let repository = store.repository_named(text).await;
    let layer = store.blob(&repository, "layer").await;
    for (number, names) in [(1, &["a", "b"][..]), (2, &[]), (3, &["c"])] {
        let image = NewManifest { blobs: blobs(&[&layer]), ..manifest(&format!("image {number}")) };
        store.put_manifest(put(&repository, image, names)).await.unwrap();
    }
    store.index(&repository, &[&digest("image 1"), &digest("image 2")], &["index"]).await;
    let referrer = NewManifest { subject: Some(digest("image 3")), ..manifest("referrer") };
    store.put_manifest(put(&repository, referrer, &[])).await.unwrap();
    assert!(store.create_upload(new_upload(&repository), None).await.unwrap());
    let preview = job("lifecycle-preview", "1", "{}", at(0));
    assert!(store.start_preview(repository.id, "{}", at(0), preview).await.unwrap());
    put_policy(store, repository.id).await;
    store.tag_resource(repository.id, vec![resource_tag("team", "a")], 9).await.unwrap();
    (repository, layer)
}

pub async fn a_deleted_repository_is_invisible_and_its_name_is_free(store: Fixture) {
    let (old, layer) = full(&store, "app").await;
    let other = store.repository_named("other").await;
    store.delete_repository(old.id, true, at(5)).await.unwrap();

    assert_eq!(store.find_repository(&account(), &old.name).await.unwrap(), None);
    assert_eq!(store.find_repository_by_id(old.id).await.unwrap(), None);
    let listed = store.list_repositories(&account(), None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|repository| repository.id).collect::<Vec<_>>(), [other.id]);
    assert_eq!(store.found(&old, "a").await, Lookup::NoRepository);
    assert_eq!(store.find_blob(&account(), &old.name, &layer).await.unwrap(), Lookup::NoRepository);
    assert_eq!(store.list_blob_sources(&account(), &layer, 10).await.unwrap(), []);
    assert_eq!(turn(&store, 10, 100, 10).await, 0, "its policy is due no more");

    let policy = RepositoryChange::LifecyclePolicy(Some("{}".into()));
    assert!(!store.change_repository(old.id, policy, Vec::new()).await.unwrap());
    let again = store.delete_repository(old.id, true, at(6)).await;
    assert!(matches!(again, Err(DeleteRepositoryError::NotFound)), "{again:?}");
    let tagged = store.tag_resource(old.id, vec![resource_tag("a", "1")], 9).await;
    assert!(matches!(tagged, Err(TagResourceError::NotFound)), "{tagged:?}");
    let pushed = store.put_manifest(put(&old, manifest("late"), &["late"])).await;
    assert!(matches!(pushed, Err(PutManifestError::NoRepository)), "{pushed:?}");
    let deleted = store.delete_image(old.id, &digest("image 3"), Referrers::Stay, at(6)).await;
    assert!(matches!(deleted, Err(DeleteImageError::NotFound)), "{deleted:?}");
    assert!(!store.create_upload(new_upload(&old), None).await.unwrap());
    let mounted = store.mount_blob(other.id, old.id, &layer, false, at(6), at(7)).await.unwrap();
    assert_eq!(mounted, MountOutcome::NotMountable);
    assert!(
        !store
            .start_preview(old.id, "{}", at(6), job("lifecycle-preview", "2", "{}", at(0)))
            .await
            .unwrap()
    );

    let new = store.repository_named("app").await;
    assert_eq!(store.image(&new, "image 1", &["a"]).await, digest("image 1"));
    empty(&store).await;
    assert_eq!(
        store.tagged(&new, "a").await,
        Some(digest("image 1")),
        "what has the name now stays"
    );
    assert_eq!(store.repository_usage(new.id).await.unwrap().0, 1);
}

pub async fn a_deleted_repository_is_emptied_in_batches(store: Fixture) {
    let (old, layer) = full(&store, "app").await;
    store.delete_repository(old.id, true, at(5)).await.unwrap();
    let everything = ImageFilter::EVERYTHING;
    let mut images = store.list_images(old.id, everything, None, 10).await.unwrap().len();
    assert_eq!(images, 5);
    let mut batches = 0;
    while !store.empty_repository(old.id, 2, at(6)).await.unwrap() {
        let left = store.list_images(old.id, everything, None, 10).await.unwrap().len();
        assert!(images - left <= 2, "a batch takes no more than asked");
        (images, batches) = (left, batches + 1);
    }
    assert!(images == 0 && batches >= 4, "{images} left after {batches}");
    assert_eq!(store.count_uploads().await.unwrap(), 0);
    assert!(store.waiting(DeleteGeneration::KIND).await > 0, "the upload's bytes go too");
    assert_eq!(store.repository_usage(old.id).await.unwrap(), (0, 0));
    assert!(store.empty_repository(old.id, 2, at(7)).await.unwrap(), "it is empty already");
    let other = store.repository_named("other").await;
    assert_eq!(
        store.commit(&other, &layer, at(0)).await,
        CommitOutcome::Shared,
        "the bytes await the collector"
    );
}

pub async fn a_repository_that_is_not_deleted_is_not_emptied(store: Fixture) {
    let (repository, _) = full(&store, "app").await;
    assert!(store.empty_repository(repository.id, 100, at(5)).await.unwrap());
    assert_eq!(store.tagged(&repository, "a").await, Some(digest("image 1")));
    assert_eq!(store.count_uploads().await.unwrap(), 1);
}

pub async fn deleting_a_repository_allows_another_one(store: Fixture) {
    let first = store.create_repository(new_repository("app1"), 2).await.unwrap();
    store.create_repository(new_repository("app2"), 2).await.unwrap();
    store.delete_repository(first.id, false, at(1)).await.unwrap();
    store.create_repository(new_repository("app3"), 2).await.unwrap();
    empty(&store).await;
    let refused = store.create_repository(new_repository("app4"), 2).await;
    assert!(matches!(refused, Err(CreateRepositoryError::LimitExceeded(2))), "{refused:?}");
}
