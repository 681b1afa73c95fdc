//! Manifests and tags: what a push, a deletion and a change of storage class do.

use std::collections::BTreeSet;

use wharfage::store::images::{
    DeleteImageError, ImageDeleted, ImageDeletion, ImageFilter, ImageStatus, LastTag, ManifestId, PutManifestError,
    ReferrerFilter, SizeMismatch, Stale, StorageClass, StorageClassError, TagDeleted, TagEffect,
};
use wharfage::store::jobs::{FollowSubject, JobPayload as _};
use wharfage::store::repositories::{Mutability, NewRepository, RepositoryChange};

use super::*;

pub async fn a_manifest_is_found_by_digest_and_by_tag(store: Fixture) {
    let repository = store.repository_named("app").await;
    store.repository_named("other").await;
    let image = store.image(&repository, "image", &["v1", "latest"]).await;
    let by_digest = store.found(&repository, image.as_str()).await;
    let Lookup::Found(found) = &by_digest else { panic!("{by_digest:?}") };
    assert_eq!(
        (&found.digest, found.media_type.as_str(), found.payload.as_ref(), found.status, found.last_pulled_at),
        (&image, manifest("").media_type.as_str(), b"image".as_slice(), ImageStatus::Active, None)
    );
    assert_eq!(store.found(&repository, "v1").await, by_digest);
    assert_eq!(store.found(&repository, "latest").await, by_digest);
    assert_eq!(store.found(&repository, "v2").await, Lookup::Missing);
    assert_eq!(store.found(&repository, digest("other").as_str()).await, Lookup::Missing);
    let find = async |repository: &str, reference: &str| {
        store.find_manifest(&account(), &name(repository), &reference_to(reference)).await.unwrap()
    };
    assert_eq!(find("other", "v1").await, Lookup::Missing);
    assert_eq!(find("other", image.as_str()).await, Lookup::Missing);
    assert_eq!(find("nowhere", "v1").await, Lookup::NoRepository);
    assert_eq!(find("nowhere", image.as_str()).await, Lookup::NoRepository);
}

pub async fn a_manifest_survives_a_restart(mut store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let large = "x".repeat(4 * 1024 * 1024);
    let whole = NewManifest {
        artifact_type: Some("application/vnd.example+json".into()),
        config_media_type: Some("application/vnd.oci.empty.v1+json".into()),
        subject: Some(digest("subject")),
        annotations: BTreeMap::from([("a".into(), "\u{e9}\"\n".into())]),
        blobs: blobs(&[&layer]),
        ..manifest(&large)
    };
    store.put_manifest(PutManifest { now: at(7), ..put(&repository, whole.clone(), &["b", "a"]) }).await.unwrap();
    store.reopen().await;

    let Lookup::Found(found) = store.found(&repository, "a").await else { panic!("the manifest is found") };
    assert_eq!(found.payload, whole.payload);
    let TaggedImage { image, tags: its_tags } = store.image_of(&repository, &whole.digest).await.unwrap();
    assert_eq!(its_tags, tags(&["a", "b"]));
    assert_eq!(
        (image.id, &image.digest, &image.media_type, image.payload_size, image.image_size),
        (found.id, &whole.digest, &whole.media_type, large.len() as u64, 100)
    );
    assert_eq!(
        (&image.artifact_type, &image.config_media_type, &image.subject),
        (&whole.artifact_type, &whole.config_media_type, &whole.subject)
    );
    let everything = ReferrerFilter { artifact_types: Vec::new(), status: None };
    let referrers = store.referrers(repository.id, &digest("subject"), &everything, None, 10).await.unwrap();
    assert_eq!(referrers.iter().map(|image| &image.annotations).collect::<Vec<_>>(), [&whole.annotations]);
    assert!(image.annotations.is_empty(), "annotations are read for lists of referrers only");
    assert_eq!(
        (image.pushed_at, image.last_pulled_at, image.status, image.archived_at, image.activated_at),
        (at(7), None, ImageStatus::Active, None, None)
    );
}

pub async fn missing_blobs_and_children_are_named_and_nothing_is_written(store: Fixture) {
    let (repository, other) = (store.repository_named("app").await, store.repository_named("other").await);
    let here = store.blob(&repository, "here").await;
    let elsewhere = store.blob(&other, "elsewhere").await;
    let image = NewManifest { blobs: blobs(&[&elsewhere, &here, &digest("nowhere")]), ..manifest("image") };
    let refused = store.put_manifest(put(&repository, image, &["a"])).await;
    match refused {
        Err(PutManifestError::BlobsNotFound(missing)) => assert_eq!(missing, [elsewhere, digest("nowhere")]),
        other => panic!("{other:?}"),
    }
    let child = store.image(&repository, "child", &[]).await;
    let foreign = store.image(&other, "foreign", &[]).await;
    let children = store.references_to(&repository, &[&child, &foreign]).await;
    let index = NewManifest { children, ..manifest("index") };
    match store.put_manifest(put(&repository, index, &["a"])).await {
        Err(PutManifestError::ChildrenNotFound(missing)) => assert_eq!(missing, [foreign]),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.tags(repository.id, None, 10).await.unwrap(), []);
    assert_eq!(store.repository_usage(repository.id).await.unwrap().0, 1, "the child alone");
}

pub async fn sizes_are_the_sum_of_the_blobs_and_of_an_index_the_largest_child(store: Fixture) {
    let repository = store.repository_named("app").await;
    let (one, two) = (store.blob(&repository, "one").await, store.blob(&repository, "two").await);
    for (payload, needs) in [("small", vec![&one]), ("large", vec![&one, &two])] {
        let image = NewManifest { blobs: blobs(&needs), ..manifest(payload) };
        store.put_manifest(put(&repository, image, &[])).await.unwrap();
    }
    let index = store.index(&repository, &[&digest("small"), &digest("large")], &[]).await;
    let mut sizes = Vec::new();
    for image in [digest("small"), digest("large"), index] {
        sizes.push(store.image_of(&repository, &image).await.unwrap().image.image_size);
    }
    assert_eq!(sizes, [100, 200, 200]);
}

pub async fn pushing_again_keeps_the_push_time_and_tells_what_changed(store: Fixture) {
    let repository = store.repository_named("app").await;
    let push = async |seconds: i64, names: &[&str]| {
        let again = put(&repository, manifest("image"), names);
        store.put_manifest(PutManifest { now: at(seconds), ..again }).await.unwrap()
    };
    let first = push(1, &["b", "a"]).await;
    assert!(first.created && !first.restored && !first.unchanged());
    assert_eq!(first.tags, [(tag("b"), TagEffect::Created), (tag("a"), TagEffect::Created)]);
    let second = push(2, &["a", "c"]).await;
    assert!(!second.created && !second.restored && !second.unchanged());
    assert_eq!(second.tags, [(tag("a"), TagEffect::Unchanged), (tag("c"), TagEffect::Created)]);
    assert!(push(3, &["a"]).await.unchanged());
    assert!(push(4, &[]).await.unchanged());
    let TaggedImage { image, tags: its_tags } = store.image_of(&repository, &digest("image")).await.unwrap();
    assert_eq!(image.pushed_at, at(1));
    assert_eq!(its_tags, tags(&["a", "b", "c"]));
}

pub async fn a_push_that_changes_nothing_writes_neither_event_nor_job(store: Fixture) {
    let repository = store.repository_named("app").await;
    store.image(&repository, "image", &["a"]).await;
    let jobs = vec![job("scan", "1", "{}", at(0))];
    let again = PutManifest { jobs, ..put(&repository, manifest("image"), &["a"]) };
    assert!(store.put_manifest(again).await.unwrap().unchanged());
    assert_eq!(store.told().await.len(), 1);
    assert_eq!(store.waiting("scan").await, 0);
}

pub async fn a_push_under_another_media_type_gives_the_image_that_type(store: Fixture) {
    let repository = store.repository_named("app").await;
    let push = async |media_type: &str| {
        let image = NewManifest { media_type: media_type.into(), ..manifest("silent about its type") };
        store.put_manifest(put(&repository, image, &["a"])).await.unwrap()
    };
    assert!(push("application/one").await.created);
    let again = push("application/two").await;
    assert!(again.retyped && !again.created && !again.unchanged());
    let Lookup::Found(found) = store.found(&repository, "a").await else { panic!("the image is there") };
    assert_eq!(found.media_type, "application/two");
    assert!(push("application/two").await.unchanged());
    assert_eq!(store.told().await.len(), 2);
}

pub async fn a_size_that_contradicts_what_is_stored_is_refused(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let child = store.image(&repository, "child", &[]).await;
    let mut image = NewManifest { blobs: blobs(&[&layer]), ..manifest("image") };
    image.blobs[0].size = 99;
    let mut children = store.references_to(&repository, &[&child]).await;
    children[0].size += 1;
    let index = NewManifest { children, ..manifest("index") };
    for (refused, digest, stated, actual) in [(image, layer, 99, 100), (index, child, 6, 5)] {
        match store.put_manifest(put(&repository, refused, &["a"])).await {
            Err(PutManifestError::SizeMismatch(mismatch)) => {
                assert_eq!(mismatch, SizeMismatch { digest, stated, actual });
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.repository_usage(repository.id).await.unwrap().0, 1, "the child alone");
}

pub async fn jobs_are_written_with_the_manifest_or_not_at_all(store: Fixture) {
    let repository = store.repository_named("app").await;
    let jobs = vec![job("scan", "1", "{}", at(0)), job("replicate", "1", "{}", at(0))];
    let children = store.references_to(&repository, &[&digest("nowhere")]).await;
    let refused = NewManifest { children, ..manifest("index") };
    let refused = PutManifest { jobs: jobs.clone(), ..put(&repository, refused, &[]) };
    store.put_manifest(refused).await.unwrap_err();
    assert_eq!((store.waiting("scan").await, store.waiting("replicate").await), (0, 0));
    assert_eq!(store.told().await, []);
    store.put_manifest(PutManifest { jobs, ..put(&repository, manifest("image"), &[]) }).await.unwrap();
    assert_eq!((store.waiting("scan").await, store.waiting("replicate").await), (1, 1));
}

pub async fn a_push_moves_a_tag(store: Fixture) {
    let repository = store.repository_named("app").await;
    let old = store.image(&repository, "old", &["latest"]).await;
    let moved = store.put_manifest(put(&repository, manifest("new"), &["latest"])).await.unwrap();
    assert_eq!(moved.tags, [(tag("latest"), TagEffect::Moved)]);
    assert_eq!(store.tagged(&repository, "latest").await, Some(digest("new")));
    assert_eq!(store.image_of(&repository, &old).await.unwrap().tags, [], "the old image stays, untagged");
}

pub async fn an_immutable_tag_is_set_once(store: Fixture) {
    let immutable = TagMutability { mode: Mutability::Immutable, exclusions: Vec::new() };
    let new = NewRepository { tag_mutability: immutable, ..new_repository("app") };
    let repository = store.create_repository(new, 10).await.unwrap();
    let first = store.image(&repository, "first", &["v1"]).await;
    for payload in ["second", "first"] {
        match store.put_manifest(put(&repository, manifest(payload), &["v2", "v1"])).await {
            Err(PutManifestError::TagAlreadyExists { tag: refused, current }) => {
                assert_eq!((refused, current), (tag("v1"), first.clone()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.tagged(&repository, "v2").await, None, "nothing of a refused push is written");
    assert_eq!(store.found(&repository, digest("second").as_str()).await, Lookup::Missing);
    assert!(store.put_manifest(put(&repository, manifest("first"), &[])).await.unwrap().unchanged());

    let mutable = RepositoryChange::TagMutability(TagMutability::MUTABLE);
    store.change_repository(repository.id, mutable, Vec::new()).await.unwrap();
    store.image(&repository, "second", &["v1"]).await;
    assert_eq!(store.tagged(&repository, "v1").await, Some(digest("second")));
}

pub async fn an_excluded_tag_follows_its_own_rule(store: Fixture) {
    let mode = Mutability::ImmutableWithExclusion;
    let tag_mutability = TagMutability { mode, exclusions: vec!["dev-*".into()] };
    let new = NewRepository { tag_mutability, ..new_repository("app") };
    let repository = store.create_repository(new, 10).await.unwrap();
    store.image(&repository, "first", &["v1", "dev-1"]).await;
    store.image(&repository, "second", &["dev-1"]).await;
    assert_eq!(store.tagged(&repository, "dev-1").await, Some(digest("second")));
    let refused = store.put_manifest(put(&repository, manifest("second"), &["v1"])).await;
    assert!(matches!(refused, Err(PutManifestError::TagAlreadyExists { .. })), "{refused:?}");
}

pub async fn a_repository_has_no_more_images_than_it_may(store: Fixture) {
    let repository = store.repository_named("app").await;
    let push = async |payload: &str, tag: &str| {
        let put = PutManifest { max_images: 2, ..put(&repository, manifest(payload), &[tag]) };
        store.put_manifest(put).await
    };
    push("one", "a").await.unwrap();
    push("two", "b").await.unwrap();
    let third = push("three", "a").await;
    assert!(matches!(third, Err(PutManifestError::TooManyImages(2))), "{third:?}");
    assert_eq!(store.tagged(&repository, "a").await, Some(digest("one")));
    push("two", "a").await.unwrap();
    assert_eq!(store.tagged(&repository, "a").await, Some(digest("two")), "a known image is no new one");
    store.delete_image(repository.id, &digest("one"), Referrers::Stay, at(1)).await.unwrap();
    push("three", "c").await.unwrap();
}

pub async fn an_image_has_no_more_tags_than_it_may(store: Fixture) {
    let repository = store.repository_named("app").await;
    let push = async |names: &[&str]| {
        store.put_manifest(PutManifest { max_tags: 2, ..put(&repository, manifest("image"), names) }).await
    };
    push(&["a"]).await.unwrap();
    let both = push(&["b", "c"]).await;
    assert!(matches!(both, Err(PutManifestError::TooManyTags(2))), "{both:?}");
    assert_eq!(store.tags(repository.id, None, 10).await.unwrap(), tags(&["a"]));
    push(&["b"]).await.unwrap();
    push(&["a", "b"]).await.unwrap();
    let third = push(&["a", "c"]).await;
    assert!(matches!(third, Err(PutManifestError::TooManyTags(2))), "{third:?}");
}

pub async fn a_push_into_a_repository_that_is_gone_is_refused(store: Fixture) {
    let repository = store.repository_named("app").await;
    store.delete_repository(repository.id, false, at(1)).await.unwrap();
    let refused = store.put_manifest(put(&repository, manifest("image"), &["a"])).await;
    assert!(matches!(refused, Err(PutManifestError::NoRepository)), "{refused:?}");
}

pub async fn pushing_an_archived_image_restores_it(store: Fixture) {
    let repository = store.repository_named("app").await;
    let image = store.image(&repository, "image", &["a"]).await;
    store.set_storage_class(repository.id, &image, StorageClass::Archive, at(1)).await.unwrap();
    let again = PutManifest { now: at(2), ..put(&repository, manifest("image"), &["a"]) };
    let outcome = store.put_manifest(again).await.unwrap();
    assert!(outcome.restored && !outcome.created && !outcome.unchanged());
    let found = store.image_of(&repository, &image).await.unwrap().image;
    assert_eq!(
        (found.status, found.pushed_at, found.archived_at, found.activated_at),
        (ImageStatus::Active, at(0), Some(at(1)), Some(at(2)))
    );
}

async fn archive(store: &Fixture, repository: &Repository, digest: &Digest) {
    store.set_storage_class(repository.id, digest, StorageClass::Archive, at(1)).await.unwrap();
}

async fn status_of(store: &Fixture, repository: &Repository, digest: &Digest) -> Option<ImageStatus> {
    store.image_of(repository, digest).await.map(|found| found.image.status)
}

pub async fn an_index_restores_what_it_holds_at_any_depth(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let leaf = NewManifest { blobs: blobs(&[&layer]), ..manifest("leaf") };
    store.put_manifest(put(&repository, leaf, &[])).await.unwrap();
    let signature = NewManifest { subject: Some(digest("leaf")), ..manifest("signature of the leaf") };
    store.put_manifest(put(&repository, signature, &[])).await.unwrap();
    let (leaf, other) = (digest("leaf"), store.image(&repository, "other", &[]).await);
    let inner = store.index_of(&repository, "inner", &[&leaf], &[]).await;
    let all = [&inner, &leaf, &other];
    let statuses = async || {
        let mut statuses = Vec::new();
        for image in all {
            statuses.push(status_of(&store, &repository, image).await.unwrap());
        }
        statuses
    };
    let archive_all = async || {
        for image in all {
            archive(&store, &repository, image).await;
        }
        assert_eq!(statuses().await, [ImageStatus::Archived; 3]);
        assert!(!store.has_blob(&repository, &layer).await);
    };
    archive_all().await;
    let told = store.told().await.len();
    let waiting = store.waiting(FollowSubject::KIND).await;

    // A new index over archived children.
    let outer = store.index_of(&repository, "outer", &[&inner, &other], &[]).await;
    assert_eq!(statuses().await, [ImageStatus::Active; 3]);
    assert!(store.has_blob(&repository, &layer).await);
    let restored = store.image_of(&repository, &leaf).await.unwrap().image;
    assert_eq!((restored.archived_at, restored.activated_at), (Some(at(1)), Some(at(0))));
    let mut acts: Vec<_> = store.told().await.into_iter().skip(told).map(|(_, act, _)| act).collect();
    acts.sort();
    assert_eq!(acts, ["PUSH", "UPDATE_STORAGE_CLASS", "UPDATE_STORAGE_CLASS", "UPDATE_STORAGE_CLASS"]);
    assert_eq!(waiting, 1, "the signature follows its subject into the archive and back");
    assert_eq!(store.waiting(FollowSubject::KIND).await, 1);

    // The same index again, archived meanwhile, and then restored without a push.
    for again in ["push", "restore"] {
        archive(&store, &repository, &outer).await;
        archive_all().await;
        match again {
            "push" => drop(store.index_of(&repository, "outer", &[&inner, &other], &[]).await),
            _ => drop(store.set_storage_class(repository.id, &outer, StorageClass::Standard, at(2)).await.unwrap()),
        }
        assert_eq!(statuses().await, [ImageStatus::Active; 3], "{again}");
        assert_eq!(status_of(&store, &repository, &outer).await, Some(ImageStatus::Active));
        assert!(store.has_blob(&repository, &layer).await);
    }
}

pub async fn one_tag_pushed_at_once_points_at_one_of_the_images(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let pushes = (0..32).map(|turn| {
        let image = NewManifest { blobs: blobs(&[&layer]), ..manifest(&format!("image {}", turn % 16)) };
        let (store, put) = (store.handle(), put(&repository, image, &["latest", &format!("t{turn}")]));
        tokio::spawn(async move { store.put_manifest(put).await.unwrap() })
    });
    let outcomes: Vec<_> = futures::future::join_all(pushes).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.created).count(), 16, "each image is created once");
    let first = |outcome: &&wharfage::store::images::PutOutcome| outcome.tags[0].1 == TagEffect::Created;
    assert_eq!(outcomes.iter().filter(first).count(), 1, "the tag is created once");
    let images =
        store.list_images(repository.id, wharfage::store::images::ImageFilter::EVERYTHING, None, 100).await.unwrap();
    assert_eq!(images.len(), 16);
    let with_latest = images.iter().filter(|image| image.tags.contains(&tag("latest")));
    assert_eq!(with_latest.count(), 1);
    assert_eq!(store.tags(repository.id, None, 100).await.unwrap().len(), 33);
    assert_eq!(store.repository_usage(repository.id).await.unwrap(), (16, 1600));
}

pub async fn deleting_an_image_takes_its_tags_and_frees_its_blobs(mut store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let image = NewManifest { blobs: blobs(&[&layer]), ..manifest("image") };
    store.put_manifest(put(&repository, image, &["b", "a"])).await.unwrap();
    let absent = store.delete_image(repository.id, &digest("absent"), Referrers::Stay, at(1)).await;
    assert!(matches!(absent, Err(DeleteImageError::NotFound)), "{absent:?}");
    assert_eq!(
        store.delete_image(repository.id, &digest("image"), Referrers::Stay, at(1)).await.unwrap(),
        tags(&["a", "b"])
    );
    store.reopen().await;
    assert_eq!(store.found(&repository, "a").await, Lookup::Missing);
    assert_eq!(store.found(&repository, digest("image").as_str()).await, Lookup::Missing);
    assert!(!store.layer(repository.id, &layer).await.unwrap().unwrap().referenced);
}

async fn set_policy(store: &Fixture, repository: &Repository, policy: Option<&str>) {
    let change = RepositoryChange::LifecyclePolicy(policy.map(str::to_owned));
    assert!(store.change_repository(repository.id, change, Vec::new()).await.unwrap());
}

fn stale<T: std::fmt::Debug>(outcome: Result<T, DeleteImageError>) -> Stale {
    match outcome {
        Err(DeleteImageError::Stale(stale)) => stale,
        other => panic!("{other:?}"),
    }
}

pub async fn an_image_that_changed_since_the_decision_is_not_acted_on(store: Fixture) {
    let repository = store.repository_named("app").await;
    set_policy(&store, &repository, Some("policy")).await;
    let changes = [
        "a push that changes nothing",
        "a tag",
        "a tag that moved",
        "a tag that went",
        "a pull",
        "archived",
        "restored",
    ];
    for change in changes {
        let (kept, moves) = (format!("{change} kept").replace(' ', "-"), format!("{change} moves").replace(' ', "-"));
        let image = store.image(&repository, change, &[&kept, &moves]).await;
        if change == "restored" {
            archive(&store, &repository, &image).await;
        }
        let decision = store.decision(&repository, &image, "policy").await;
        match change {
            "a tag" => drop(store.image(&repository, change, &["new"]).await),
            "a tag that moved" => drop(store.image(&repository, "another image", &[&moves]).await),
            "a tag that went" => {
                let gone = store.delete_tag(repository.id, &tag(&moves), None, LastTag::KeepsImage, at(1)).await;
                gone.unwrap();
            }
            "a pull" => {
                let id = store.image_of(&repository, &image).await.unwrap().image.id;
                store.record_pulls(&[(id, at(5))]).await.unwrap();
            }
            "archived" => archive(&store, &repository, &image).await,
            "restored" => {
                store.set_storage_class(repository.id, &image, StorageClass::Standard, at(2)).await.unwrap();
            }
            _ => drop(store.image(&repository, change, &[&kept]).await),
        }
        let before = store.image_of(&repository, &image).await;
        let told = store.told().await.len();
        assert_eq!(
            stale(store.expire_image(repository.id, &image, decision.clone(), at(9)).await),
            Stale::Image,
            "{change}"
        );
        let archived = store.archive_image(repository.id, &image, decision, at(9)).await;
        assert!(matches!(archived, Err(StorageClassError::Stale(Stale::Image))), "{change}: {archived:?}");
        assert_eq!(store.image_of(&repository, &image).await, before, "{change}");
        assert_eq!(store.told().await.len(), told, "{change}");

        let decision = store.decision(&repository, &image, "policy").await;
        store.expire_image(repository.id, &image, decision.clone(), at(9)).await.unwrap();
        let gone = store.expire_image(repository.id, &image, decision, at(9)).await;
        assert!(matches!(gone, Err(DeleteImageError::NotFound)), "{gone:?}");
    }
}

pub async fn an_image_that_is_too_many_stays_where_those_beside_it_changed(store: Fixture) {
    let repository = store.repository_named("app").await;
    set_policy(&store, &repository, Some("policy")).await;
    let old = store.image(&repository, "old", &["old"]).await;
    let mut kept: Vec<(ManifestId, u64)> = Vec::new();
    for payload in ["one", "two"] {
        let image = store.image(&repository, payload, &[payload]).await;
        let image = store.image_of(&repository, &image).await.unwrap().image;
        kept.push((image.id, image.revision));
    }
    let decision = async |kept: &[(ManifestId, u64)]| LifecycleDecision {
        kept: kept.into(),
        ..store.decision(&repository, &old, "policy").await
    };
    let seen = decision(&kept).await;
    store.record_pulls(&[(kept[0].0, at(3))]).await.unwrap();
    store.image(&repository, "three", &["three"]).await;
    store.image(&repository, "four", &["two"]).await;
    assert_eq!(
        stale(store.expire_image(repository.id, &old, seen.clone(), at(4)).await),
        Stale::Kept,
        "it lost its tag"
    );
    store.delete_image(repository.id, &digest("two"), Referrers::Stay, at(4)).await.unwrap();
    assert_eq!(stale(store.expire_image(repository.id, &old, seen.clone(), at(4)).await), Stale::Kept, "it is gone");
    let archived = store.archive_image(repository.id, &old, seen, at(4)).await;
    assert!(matches!(archived, Err(StorageClassError::Stale(Stale::Kept))), "{archived:?}");
    // One that was only pulled stays what it was, and so does one that nobody touched.
    store.expire_image(repository.id, &old, decision(&kept[..1]).await, at(4)).await.unwrap();
}

pub async fn a_referrer_is_not_acted_on_while_its_subject_is_there(store: Fixture) {
    let repository = store.repository_named("app").await;
    set_policy(&store, &repository, Some("policy")).await;
    let subject = store.image(&repository, "subject", &["a"]).await;
    let signature = NewManifest { subject: Some(subject.clone()), ..manifest("signature") };
    store.put_manifest(put(&repository, signature, &[])).await.unwrap();
    let signature = digest("signature");
    let decision =
        async || LifecycleDecision { follows_subject: true, ..store.decision(&repository, &signature, "policy").await };
    let expire = async || store.expire_image(repository.id, &signature, decision().await, at(2)).await;
    assert_eq!(stale(expire().await), Stale::Subject);
    let archived = store.archive_image(repository.id, &signature, decision().await, at(2)).await;
    assert!(matches!(archived, Err(StorageClassError::Stale(Stale::Subject))), "{archived:?}");

    archive(&store, &repository, &subject).await;
    assert_eq!(stale(expire().await), Stale::Subject, "it follows into the archive, not out of the repository");
    store.archive_image(repository.id, &signature, decision().await, at(2)).await.unwrap();
    store.delete_image(repository.id, &subject, Referrers::Stay, at(2)).await.unwrap();
    expire().await.unwrap();
}

pub async fn a_lifecycle_policy_that_is_no_longer_the_repositorys_acts_on_nothing(store: Fixture) {
    let repository = store.repository_named("app").await;
    let image = store.image(&repository, "image", &["a"]).await;
    let expire = async |policy| {
        let decision = store.decision(&repository, &image, policy).await;
        store.expire_image(repository.id, &image, decision, at(1)).await
    };
    let archive = async |policy| {
        let decision = store.decision(&repository, &image, policy).await;
        store.archive_image(repository.id, &image, decision, at(1)).await
    };
    for now in [Some("new"), None] {
        set_policy(&store, &repository, now).await;
        let refused = (expire("old").await, archive("old").await);
        assert!(
            matches!(
                &refused,
                (Err(DeleteImageError::Stale(Stale::Policy)), Err(StorageClassError::Stale(Stale::Policy)))
            ),
            "{refused:?}"
        );
        let Lookup::Found(found) = store.found(&repository, "a").await else { panic!("the image is there") };
        assert_eq!(found.status, ImageStatus::Active);
    }
    set_policy(&store, &repository, Some("new")).await;
    archive("new").await.unwrap();
    let again = archive("new").await;
    assert!(matches!(again, Err(StorageClassError::Unchanged(ImageStatus::Archived))), "{again:?}");
    let last = store.decision(&repository, &image, "new").await;
    expire("new").await.unwrap();
    let gone = store.archive_image(repository.id, &image, last, at(1)).await;
    assert!(matches!(gone, Err(StorageClassError::NotFound)), "{gone:?}");
}

pub async fn an_image_that_an_index_holds_is_not_deleted(store: Fixture) {
    let repository = store.repository_named("app").await;
    let child = store.image(&repository, "child", &["a"]).await;
    let index = store.index(&repository, &[&child], &[]).await;
    // An archived index still holds its children.
    store.set_storage_class(repository.id, &index, StorageClass::Archive, at(1)).await.unwrap();
    match store.delete_image(repository.id, &child, Referrers::Stay, at(2)).await {
        Err(DeleteImageError::ReferencedBy(by)) => assert_eq!(by, std::slice::from_ref(&index)),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.tagged(&repository, "a").await, Some(child.clone()));
    store.delete_image(repository.id, &index, Referrers::Stay, at(3)).await.unwrap();
    store.delete_image(repository.id, &child, Referrers::Stay, at(3)).await.unwrap();
}

pub async fn a_refusal_names_no_more_indexes_than_a_hundred(store: Fixture) {
    let repository = store.repository_named("app").await;
    let child = store.image(&repository, "child", &[]).await;
    let mut indexes = Vec::new();
    for number in 0..103 {
        indexes.push(store.index_of(&repository, &format!("index {number}"), &[&child], &[]).await);
    }
    for index in &indexes[..2] {
        store.set_storage_class(repository.id, index, StorageClass::Archive, at(1)).await.unwrap();
    }
    // Those that can be pulled come first, the oldest of them before the others.
    match store.delete_image(repository.id, &child, Referrers::Stay, at(2)).await {
        Err(DeleteImageError::ReferencedBy(by)) => assert_eq!(by, indexes[2..102]),
        other => panic!("{other:?}"),
    }
    match store.set_storage_class(repository.id, &child, StorageClass::Archive, at(2)).await {
        Err(StorageClassError::ReferencedBy(by)) => assert_eq!(by, indexes[2..102]),
        other => panic!("{other:?}"),
    }
    for index in &indexes[2..] {
        store.set_storage_class(repository.id, index, StorageClass::Archive, at(3)).await.unwrap();
    }
    match store.delete_image(repository.id, &child, Referrers::Stay, at(4)).await {
        Err(DeleteImageError::ReferencedBy(by)) => assert_eq!(by.len(), 100),
        other => panic!("{other:?}"),
    }
    store.set_storage_class(repository.id, &child, StorageClass::Archive, at(4)).await.unwrap();
    // One that is restored holds what it restored.
    store.set_storage_class(repository.id, &indexes[7], StorageClass::Standard, at(5)).await.unwrap();
    match store.set_storage_class(repository.id, &child, StorageClass::Archive, at(6)).await {
        Err(StorageClassError::ReferencedBy(by)) => assert_eq!(by, indexes[7..8]),
        other => panic!("{other:?}"),
    }
}

pub async fn a_deleted_tag_leaves_the_image_or_takes_it_along(store: Fixture) {
    let repository = store.repository_named("app").await;
    let image = store.image(&repository, "image", &["a", "b"]).await;
    let delete = async |name: &str, last: LastTag| store.delete_tag(repository.id, &tag(name), None, last, at(1)).await;
    let stays = TagDeleted { digest: image.clone(), image_deleted: false };
    assert_eq!(delete("a", LastTag::DeletesImage).await.unwrap(), stays, "another tag is left");
    assert_eq!(delete("b", LastTag::KeepsImage).await.unwrap(), stays);
    assert_eq!(store.image_of(&repository, &image).await.unwrap().tags, []);
    let absent = delete("b", LastTag::KeepsImage).await;
    assert!(matches!(absent, Err(DeleteImageError::NotFound)), "{absent:?}");

    store.image(&repository, "image", &["c"]).await;
    let goes = TagDeleted { digest: image.clone(), image_deleted: true };
    assert_eq!(delete("c", LastTag::DeletesImage).await.unwrap(), goes);
    assert_eq!(store.image_of(&repository, &image).await, None);
}

pub async fn a_tag_is_deleted_only_where_it_is_expected(store: Fixture) {
    let repository = store.repository_named("app").await;
    let image = store.image(&repository, "image", &["a"]).await;
    let delete = async |expected: &Digest| {
        store.delete_tag(repository.id, &tag("a"), Some(expected), LastTag::KeepsImage, at(1)).await
    };
    match delete(&digest("other")).await {
        Err(DeleteImageError::TagPointsElsewhere(actual)) => assert_eq!(actual, image),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.tagged(&repository, "a").await, Some(image.clone()));
    delete(&image).await.unwrap();
    assert_eq!(store.tagged(&repository, "a").await, None);
}

pub async fn a_batch_deletes_as_one_deletion_after_the_other_would(store: Fixture) {
    let repository = store.repository_named("app").await;
    let one = store.image(&repository, "one", &["a", "b"]).await;
    let two = store.image(&repository, "two", &["c"]).await;
    let three = store.image(&repository, "three", &["d"]).await;
    let (held, free) = (store.image(&repository, "held", &["e"]).await, store.image(&repository, "free", &[]).await);
    let index = store.index(&repository, &[&held, &free], &[]).await;
    let signature = NewManifest { subject: Some(two.clone()), ..manifest("signature") };
    store.put_manifest(put(&repository, signature, &[])).await.unwrap();
    let before = store.told().await.len();

    let untag =
        |name: &str, expected: Option<&Digest>| ImageDeletion::Tag { tag: tag(name), expected: expected.cloned() };
    let image = |digest: &Digest| ImageDeletion::Image(digest.clone());
    let deletions = [
        untag("a", Some(&one)),
        untag("a", None),
        untag("d", Some(&one)),
        untag("c", None),
        image(&two),
        image(&held),
        untag("e", None),
        image(&index),
        image(&held),
        image(&digest("none")),
        untag("none", None),
        untag("b", None),
        image(&free),
    ];
    let outcomes = store.delete_images(repository.id, &deletions, at(1)).await.unwrap();
    let told = |outcome: &Result<ImageDeleted, DeleteImageError>| match outcome {
        Ok(ImageDeleted { digest, tags, image_deleted }) => {
            let tags: Vec<&str> = tags.iter().map(Tag::as_str).collect();
            format!("{digest} {tags:?} {image_deleted}")
        }
        Err(error) => error.to_string(),
    };
    let absent = DeleteImageError::NotFound.to_string();
    let by_index = DeleteImageError::ReferencedBy(vec![index.clone()]).to_string();
    let expected = [
        format!(r#"{one} ["a"] false"#),
        absent.clone(),
        DeleteImageError::TagPointsElsewhere(three.clone()).to_string(),
        format!(r#"{two} ["c"] true"#),
        absent.clone(),
        by_index.clone(),
        by_index,
        format!("{index} [] true"),
        format!(r#"{held} ["e"] true"#),
        absent.clone(),
        absent,
        format!(r#"{one} ["b"] true"#),
        format!("{free} [] true"),
    ];
    assert_eq!(outcomes.iter().map(told).collect::<Vec<_>>(), expected);
    let left = store.list_image_ids(repository.id, ImageFilter::EVERYTHING, None, 10).await.unwrap();
    let left: BTreeSet<_> = left.into_iter().map(|id| (id.digest, id.tag)).collect();
    assert_eq!(left, BTreeSet::from([(three, Some(tag("d"))), (digest("signature"), None)]));
    let deleted: Vec<_> =
        store.told().await.split_off(before).into_iter().map(|(_, action, tag)| (action, tag)).collect();
    let tags = [Some("a"), Some("c"), None, Some("e"), Some("b"), None];
    assert_eq!(deleted, tags.map(|tag| ("DELETE".to_owned(), tag.map(str::to_owned))));
    assert_eq!(store.waiting(FollowSubject::KIND).await, 1, "the signature follows what it signed");
    assert_eq!(store.delete_images(repository.id, &[], at(2)).await.unwrap().len(), 0);
}

pub async fn the_last_tag_of_a_held_image_is_kept_with_it(store: Fixture) {
    let repository = store.repository_named("app").await;
    let child = store.image(&repository, "child", &["a"]).await;
    let index = store.index(&repository, &[&child], &[]).await;
    let delete = async |last: LastTag| store.delete_tag(repository.id, &tag("a"), None, last, at(1)).await;
    match delete(LastTag::DeletesImage).await {
        Err(DeleteImageError::ReferencedBy(by)) => assert_eq!(by, [index]),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.tagged(&repository, "a").await, Some(child.clone()));
    delete(LastTag::KeepsImage).await.unwrap();
    assert!(store.image_of(&repository, &child).await.is_some());
}

pub async fn an_image_moves_between_storage_classes(store: Fixture) {
    let repository = store.repository_named("app").await;
    let image = store.image(&repository, "image", &["a"]).await;
    let set = async |digest: &Digest, class: StorageClass, seconds: i64| {
        store.set_storage_class(repository.id, digest, class, at(seconds)).await
    };
    let absent = set(&digest("absent"), StorageClass::Archive, 1).await;
    assert!(matches!(absent, Err(StorageClassError::NotFound)), "{absent:?}");
    let same = set(&image, StorageClass::Standard, 1).await;
    assert!(matches!(same, Err(StorageClassError::Unchanged(ImageStatus::Active))), "{same:?}");

    assert_eq!(set(&image, StorageClass::Archive, 2).await.unwrap(), ImageStatus::Archived);
    let same = set(&image, StorageClass::Archive, 3).await;
    assert!(matches!(same, Err(StorageClassError::Unchanged(ImageStatus::Archived))), "{same:?}");
    let Lookup::Found(found) = store.found(&repository, "a").await else { panic!("archived images are found") };
    assert_eq!(found.status, ImageStatus::Archived);

    assert_eq!(set(&image, StorageClass::Standard, 4).await.unwrap(), ImageStatus::Active);
    let found = store.image_of(&repository, &image).await.unwrap().image;
    assert_eq!((found.status, found.archived_at, found.activated_at), (ImageStatus::Active, Some(at(2)), Some(at(4))));
    let told: Vec<_> = store.told().await.into_iter().map(|(_, action, _)| action).collect();
    assert_eq!(told, ["PUSH", "UPDATE_STORAGE_CLASS", "UPDATE_STORAGE_CLASS"]);
}

pub async fn an_image_that_an_active_index_holds_is_not_archived(store: Fixture) {
    let repository = store.repository_named("app").await;
    let child = store.image(&repository, "child", &[]).await;
    let index = store.index(&repository, &[&child], &[]).await;
    let archive =
        async |digest: &Digest| store.set_storage_class(repository.id, digest, StorageClass::Archive, at(1)).await;
    match archive(&child).await {
        Err(StorageClassError::ReferencedBy(by)) => assert_eq!(by, std::slice::from_ref(&index)),
        other => panic!("{other:?}"),
    }
    archive(&index).await.unwrap();
    archive(&child).await.unwrap();
}

pub async fn a_recorded_pull_never_goes_back(store: Fixture) {
    let repository = store.repository_named("app").await;
    let (one, two) = (store.image(&repository, "one", &[]).await, store.image(&repository, "two", &[]).await);
    let id = async |digest: &Digest| store.image_of(&repository, digest).await.unwrap().image.id;
    let (first, second) = (id(&one).await, id(&two).await);
    store.record_pulls(&[(first, at(20)), (second, at(5))]).await.unwrap();
    store.record_pulls(&[(first, at(10)), (second, at(6)), (second, at(4))]).await.unwrap();
    store.delete_image(repository.id, &two, Referrers::Stay, at(30)).await.unwrap();
    store.record_pulls(&[(second, at(40))]).await.unwrap();
    assert_eq!(store.image_of(&repository, &one).await.unwrap().image.last_pulled_at, Some(at(20)));
    let Lookup::Found(found) = store.found(&repository, one.as_str()).await else { panic!("the manifest is found") };
    assert_eq!(found.last_pulled_at, Some(at(20)));
}

pub async fn pushes_and_deletions_are_told(store: Fixture) {
    let repository = store.repository_named("app").await;
    store.image(&repository, "image", &["a", "b"]).await;
    store.image(&repository, "untagged", &[]).await;
    let referrer = NewManifest { subject: Some(digest("image")), ..manifest("referrer") };
    store.put_manifest(put(&repository, referrer, &[])).await.unwrap();
    store.delete_tag(repository.id, &tag("a"), None, LastTag::KeepsImage, at(1)).await.unwrap();
    store.delete_image(repository.id, &digest("image"), Referrers::Stay, at(1)).await.unwrap();
    store.delete_image(repository.id, &digest("untagged"), Referrers::Stay, at(1)).await.unwrap();
    let told = store.told().await;
    let told: Vec<_> = told.iter().map(|(kind, act, tag)| (kind.as_str(), act.as_str(), tag.as_deref())).collect();
    assert_eq!(
        told,
        [
            ("ECR Image Action", "PUSH", Some("a")),
            ("ECR Image Action", "PUSH", Some("b")),
            ("ECR Image Action", "PUSH", None),
            ("ECR Referrer Action", "PUSH", None),
            ("ECR Image Action", "DELETE", Some("a")),
            ("ECR Image Action", "DELETE", Some("b")),
            ("ECR Image Action", "DELETE", None),
        ]
    );
}

pub async fn the_job_for_the_referrers_is_written_with_its_cause_or_not_at_all(store: Fixture) {
    let repository = store.repository_named("app").await;
    set_policy(&store, &repository, Some("policy")).await;
    let waiting = async || store.waiting(FollowSubject::KIND).await;
    // A subject with a signature, held by an index if asked so, and one that nothing refers to.
    let subject = async |payload: &str, held: bool| {
        let subject = store.image(&repository, payload, &[payload]).await;
        let signature = NewManifest { subject: Some(subject.clone()), ..manifest(&format!("signature of {payload}")) };
        store.put_manifest(put(&repository, signature, &[])).await.unwrap();
        if held {
            store.index_of(&repository, &format!("index of {payload}"), &[&subject], &[]).await;
        }
        subject
    };
    let delete_tag =
        async |name: &str| store.delete_tag(repository.id, &tag(name), None, LastTag::DeletesImage, at(1)).await;

    let held = subject("held", true).await;
    store.delete_image(repository.id, &held, Referrers::Follow, at(1)).await.unwrap_err();
    delete_tag("held").await.unwrap_err();
    store.set_storage_class(repository.id, &held, StorageClass::Archive, at(1)).await.unwrap_err();
    let decision = store.decision(&repository, &held, "policy").await;
    store.expire_image(repository.id, &held, decision, at(1)).await.unwrap_err();
    let alone = store.image(&repository, "alone", &[]).await;
    store.delete_image(repository.id, &alone, Referrers::Follow, at(1)).await.unwrap();
    let kept = subject("kept", false).await;
    store.delete_image(repository.id, &kept, Referrers::Stay, at(1)).await.unwrap();
    assert_eq!(waiting().await, 0);

    for (before, cause) in
        ["delete", "delete the last tag", "archive", "expire", "archive by policy"].iter().enumerate()
    {
        let name = cause.replace(' ', "-");
        let subject = subject(&name, false).await;
        assert_eq!(waiting().await, before as u64);
        let decision = store.decision(&repository, &subject, "policy").await;
        match *cause {
            "delete" => drop(store.delete_image(repository.id, &subject, Referrers::Follow, at(1)).await.unwrap()),
            "delete the last tag" => assert!(delete_tag(&name).await.unwrap().image_deleted),
            "archive" => archive(&store, &repository, &subject).await,
            "expire" => store.expire_image(repository.id, &subject, decision, at(1)).await.unwrap(),
            _ => store.archive_image(repository.id, &subject, decision, at(1)).await.unwrap(),
        }
        assert_eq!(waiting().await, before as u64 + 1, "{cause}");
    }
}

pub async fn a_referrer_becomes_what_its_subject_is_at_that_moment(store: Fixture) {
    let repository = store.repository_named("app").await;
    let subject = store.image(&repository, "subject", &["a"]).await;
    let refer = async |payload: &str, subject: &Digest| {
        let referrer = NewManifest { subject: Some(subject.clone()), ..manifest(payload) };
        store.put_manifest(put(&repository, referrer, &[payload])).await.unwrap();
        digest(payload)
    };
    let signature = refer("signature", &subject).await;
    let attestation = refer("attestation", &signature).await;
    let follow = async |referrer: &Digest| store.follow_subject(repository.id, referrer, at(5)).await.unwrap();
    let status = async |image: &Digest| status_of(&store, &repository, image).await;

    assert!(!follow(&signature).await, "the subject is as it is");
    assert!(!follow(&subject).await && !follow(&digest("absent")).await, "neither is a referrer");
    archive(&store, &repository, &subject).await;
    assert!(follow(&signature).await && !follow(&signature).await);
    assert_eq!(status(&signature).await, Some(ImageStatus::Archived));
    // Pushed again, so it is active again.
    store.image(&repository, "subject", &["a"]).await;
    assert!(follow(&signature).await);
    assert_eq!(status(&signature).await, Some(ImageStatus::Active));

    store.delete_image(repository.id, &subject, Referrers::Follow, at(6)).await.unwrap();
    store.image(&repository, "subject", &["a"]).await;
    assert!(!follow(&signature).await, "the subject is back");
    store.delete_image(repository.id, &subject, Referrers::Follow, at(7)).await.unwrap();
    let index = store.index_of(&repository, "index", &[&signature], &[]).await;
    assert!(!follow(&signature).await, "an index holds it");
    store.delete_image(repository.id, &index, Referrers::Stay, at(7)).await.unwrap();
    assert!(follow(&signature).await);
    assert_eq!((status(&signature).await, status(&attestation).await), (None, Some(ImageStatus::Active)));
    // What refers to it follows by a job of its own, one beside the subject's.
    assert_eq!(store.waiting(FollowSubject::KIND).await, 2);
    assert!(follow(&attestation).await);
    assert_eq!(store.tagged(&repository, "attestation").await, None);
}
