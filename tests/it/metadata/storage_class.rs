//! Archiving and restoring images.

use wharfage::store::images::{ImageStatus, StorageClass, StorageClassError};
use wharfage::store::jobs::{FollowSubject, JobPayload as _};

use super::*;

pub async fn archive(store: &Fixture, repository: &Repository, digest: &Digest) {
    store.set_storage_class(repository.id, digest, StorageClass::Archive, at(1)).await.unwrap();
}

pub async fn status_of(
    store: &Fixture,
    repository: &Repository,
    digest: &Digest,
) -> Option<ImageStatus> {
    store.image_of(repository, digest).await.map(|found| found.image.status)
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
    let Lookup::Found(found) = store.found(&repository, "a").await else {
        panic!("archived images are found")
    };
    assert_eq!(found.status, ImageStatus::Archived);

    assert_eq!(set(&image, StorageClass::Standard, 4).await.unwrap(), ImageStatus::Active);
    let found = store.image_of(&repository, &image).await.unwrap().image;
    assert_eq!(
        (found.status, found.archived_at, found.activated_at),
        (ImageStatus::Active, Some(at(2)), Some(at(4)))
    );
    let recorded: Vec<_> =
        store.recorded().await.into_iter().map(|(_, action, _)| action).collect();
    assert_eq!(recorded, ["PUSH", "UPDATE_STORAGE_CLASS", "UPDATE_STORAGE_CLASS"]);
}

pub async fn an_image_held_by_an_active_index_is_not_archived(store: Fixture) {
    let repository = store.repository_named("app").await;
    let child = store.image(&repository, "child", &[]).await;
    let index = store.index(&repository, &[&child], &[]).await;
    let archive = async |digest: &Digest| {
        store.set_storage_class(repository.id, digest, StorageClass::Archive, at(1)).await
    };
    match archive(&child).await {
        Err(StorageClassError::ReferencedBy(by)) => assert_eq!(by, std::slice::from_ref(&index)),
        other => panic!("{other:?}"),
    }
    archive(&index).await.unwrap();
    archive(&child).await.unwrap();
}

pub async fn an_index_restores_its_children_at_any_depth(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let leaf = NewManifest { blobs: blobs(&[&layer]), ..manifest("leaf") };
    store.put_manifest(put(&repository, leaf, &[])).await.unwrap();
    let signature =
        NewManifest { subject: Some(digest("leaf")), ..manifest("signature of the leaf") };
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
    let recorded = store.recorded().await.len();
    let waiting = store.waiting(FollowSubject::KIND).await;

    // A new index over archived children.
    let outer = store.index_of(&repository, "outer", &[&inner, &other], &[]).await;
    assert_eq!(statuses().await, [ImageStatus::Active; 3]);
    assert!(store.has_blob(&repository, &layer).await);
    let restored = store.image_of(&repository, &leaf).await.unwrap().image;
    assert_eq!((restored.archived_at, restored.activated_at), (Some(at(1)), Some(at(0))));
    let mut acts: Vec<_> =
        store.recorded().await.into_iter().skip(recorded).map(|(_, act, _)| act).collect();
    acts.sort();
    assert_eq!(
        acts,
        ["PUSH", "UPDATE_STORAGE_CLASS", "UPDATE_STORAGE_CLASS", "UPDATE_STORAGE_CLASS"]
    );
    assert_eq!(waiting, 1, "the signature follows its subject into the archive and back");
    assert_eq!(store.waiting(FollowSubject::KIND).await, 1);

    // The same index is archived and pushed again, then archived and restored without a push.
    for again in ["push", "restore"] {
        archive(&store, &repository, &outer).await;
        archive_all().await;
        match again {
            "push" => drop(store.index_of(&repository, "outer", &[&inner, &other], &[]).await),
            _ => drop(
                store
                    .set_storage_class(repository.id, &outer, StorageClass::Standard, at(2))
                    .await
                    .unwrap(),
            ),
        }
        assert_eq!(statuses().await, [ImageStatus::Active; 3], "{again}");
        assert_eq!(status_of(&store, &repository, &outer).await, Some(ImageStatus::Active));
        assert!(store.has_blob(&repository, &layer).await);
    }
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
