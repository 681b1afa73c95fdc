//! Pulls and pushes of manifests.

use wharfage::store::images::{ImageStatus, ReferrerFilter};
use wharfage::store::manifests::{PutManifestError, SizeMismatch, TagEffect};
use wharfage::store::repositories::{Mutability, NewRepository, RepositoryChange};

use super::*;

pub async fn a_manifest_is_found_by_digest_and_by_tag(store: Fixture) {
    let repository = store.repository_named("app").await;
    store.repository_named("other").await;
    let image = store.image(&repository, "image", &["v1", "latest"]).await;
    let by_digest = store.found(&repository, image.as_str()).await;
    let Lookup::Found(found) = &by_digest else { panic!("{by_digest:?}") };
    assert_eq!(
        (
            &found.digest,
            found.media_type.as_str(),
            found.payload.as_ref(),
            found.status,
            found.last_pulled_at
        ),
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
    store
        .put_manifest(PutManifest { now: at(7), ..put(&repository, whole.clone(), &["b", "a"]) })
        .await
        .unwrap();
    store.reopen().await;

    let Lookup::Found(found) = store.found(&repository, "a").await else {
        panic!("the manifest is found")
    };
    assert_eq!(found.payload, whole.payload);
    let TaggedImage { image, tags: its_tags } =
        store.image_of(&repository, &whole.digest).await.unwrap();
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
    let referrers = store
        .list_referrers(repository.id, &digest("subject"), &everything, None, 10)
        .await
        .unwrap();
    assert_eq!(
        referrers.iter().map(|image| &image.annotations).collect::<Vec<_>>(),
        [&whole.annotations]
    );
    assert!(image.annotations.is_empty(), "annotations are read for lists of referrers only");
    assert_eq!(
        (
            image.pushed_at,
            image.last_pulled_at,
            image.status,
            image.archived_at,
            image.activated_at
        ),
        (at(7), None, ImageStatus::Active, None, None)
    );
}

pub async fn missing_blobs_and_children_are_named_and_nothing_is_written(store: Fixture) {
    let (repository, other) =
        (store.repository_named("app").await, store.repository_named("other").await);
    let here = store.blob(&repository, "here").await;
    let elsewhere = store.blob(&other, "elsewhere").await;
    let image =
        NewManifest { blobs: blobs(&[&elsewhere, &here, &digest("nowhere")]), ..manifest("image") };
    let refused = store.put_manifest(put(&repository, image, &["a"])).await;
    match refused {
        Err(PutManifestError::BlobsNotFound(missing)) => {
            assert_eq!(missing, [elsewhere, digest("nowhere")])
        }
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
    assert_eq!(store.list_tags(repository.id, None, 10).await.unwrap(), []);
    assert_eq!(store.repository_usage(repository.id).await.unwrap().0, 1, "the child alone");
}

pub async fn image_size_is_the_sum_of_blobs_or_the_largest_child(store: Fixture) {
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

pub async fn pushing_again_keeps_the_push_time_and_reports_changes(store: Fixture) {
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
    let TaggedImage { image, tags: its_tags } =
        store.image_of(&repository, &digest("image")).await.unwrap();
    assert_eq!(image.pushed_at, at(1));
    assert_eq!(its_tags, tags(&["a", "b", "c"]));
}

pub async fn a_push_that_changes_nothing_writes_neither_event_nor_job(store: Fixture) {
    let repository = store.repository_named("app").await;
    store.image(&repository, "image", &["a"]).await;
    let jobs = vec![job("scan", "1", "{}", at(0))];
    let again = PutManifest { jobs, ..put(&repository, manifest("image"), &["a"]) };
    assert!(store.put_manifest(again).await.unwrap().unchanged());
    assert_eq!(store.recorded().await.len(), 1);
    assert_eq!(store.waiting("scan").await, 0);
}

pub async fn a_push_with_another_media_type_changes_the_images_type(store: Fixture) {
    let repository = store.repository_named("app").await;
    let push = async |media_type: &str| {
        let image =
            NewManifest { media_type: media_type.into(), ..manifest("silent about its type") };
        store.put_manifest(put(&repository, image, &["a"])).await.unwrap()
    };
    assert!(push("application/one").await.created);
    let again = push("application/two").await;
    assert!(again.retyped && !again.created && !again.unchanged());
    let Lookup::Found(found) = store.found(&repository, "a").await else {
        panic!("the image is there")
    };
    assert_eq!(found.media_type, "application/two");
    assert!(push("application/two").await.unchanged());
    assert_eq!(store.recorded().await.len(), 2);
}

pub async fn a_stated_size_that_differs_from_the_stored_is_refused(store: Fixture) {
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
    assert_eq!(store.recorded().await, []);
    store
        .put_manifest(PutManifest { jobs, ..put(&repository, manifest("image"), &[]) })
        .await
        .unwrap();
    assert_eq!((store.waiting("scan").await, store.waiting("replicate").await), (1, 1));
}

pub async fn a_push_moves_a_tag(store: Fixture) {
    let repository = store.repository_named("app").await;
    let old = store.image(&repository, "old", &["latest"]).await;
    let moved = store.put_manifest(put(&repository, manifest("new"), &["latest"])).await.unwrap();
    assert_eq!(moved.tags, [(tag("latest"), TagEffect::Moved)]);
    assert_eq!(store.tagged(&repository, "latest").await, Some(digest("new")));
    assert_eq!(
        store.image_of(&repository, &old).await.unwrap().tags,
        [],
        "the old image stays, untagged"
    );
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
    assert!(
        store.put_manifest(put(&repository, manifest("first"), &[])).await.unwrap().unchanged()
    );

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
    assert_eq!(
        store.tagged(&repository, "a").await,
        Some(digest("two")),
        "a known image is no new one"
    );
    store.delete_image(repository.id, &digest("one"), Referrers::Stay, at(1)).await.unwrap();
    push("three", "c").await.unwrap();
}

pub async fn an_image_has_no_more_tags_than_it_may(store: Fixture) {
    let repository = store.repository_named("app").await;
    let push = async |names: &[&str]| {
        store
            .put_manifest(PutManifest { max_tags: 2, ..put(&repository, manifest("image"), names) })
            .await
    };
    push(&["a"]).await.unwrap();
    let both = push(&["b", "c"]).await;
    assert!(matches!(both, Err(PutManifestError::TooManyTags(2))), "{both:?}");
    assert_eq!(store.list_tags(repository.id, None, 10).await.unwrap(), tags(&["a"]));
    push(&["b"]).await.unwrap();
    push(&["a", "b"]).await.unwrap();
    let third = push(&["a", "c"]).await;
    assert!(matches!(third, Err(PutManifestError::TooManyTags(2))), "{third:?}");
}

pub async fn a_push_into_a_deleted_repository_is_refused(store: Fixture) {
    let repository = store.repository_named("app").await;
    store.delete_repository(repository.id, false, at(1)).await.unwrap();
    let refused = store.put_manifest(put(&repository, manifest("image"), &["a"])).await;
    assert!(matches!(refused, Err(PutManifestError::NoRepository)), "{refused:?}");
}

pub async fn concurrent_pushes_of_one_tag_leave_one_image_tagged(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let pushes = (0..32).map(|turn| {
        let image =
            NewManifest { blobs: blobs(&[&layer]), ..manifest(&format!("image {}", turn % 16)) };
        let (store, put) =
            (store.handle(), put(&repository, image, &["latest", &format!("t{turn}")]));
        tokio::spawn(async move { store.put_manifest(put).await.unwrap() })
    });
    let outcomes: Vec<_> =
        futures::future::join_all(pushes).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(
        outcomes.iter().filter(|outcome| outcome.created).count(),
        16,
        "each image is created once"
    );
    let first =
        |outcome: &&wharfage::store::manifests::PutOutcome| outcome.tags[0].1 == TagEffect::Created;
    assert_eq!(outcomes.iter().filter(first).count(), 1, "the tag is created once");
    let images = store
        .list_images(repository.id, wharfage::store::images::ImageFilter::EVERYTHING, None, 100)
        .await
        .unwrap();
    assert_eq!(images.len(), 16);
    let with_latest = images.iter().filter(|image| image.tags.contains(&tag("latest")));
    assert_eq!(with_latest.count(), 1);
    assert_eq!(store.list_tags(repository.id, None, 100).await.unwrap().len(), 33);
    assert_eq!(store.repository_usage(repository.id).await.unwrap(), (16, 1600));
}
