//! Layers: lookups, mounts, links and leases of blobs.

use wharfage::store::images::StorageClass;
use wharfage::store::layers::{MountOutcome, UnlinkOutcome};
use wharfage::store::manifests::PutManifestError;
use wharfage::store::repositories::{Encryption, NewRepository};

use super::*;

pub async fn a_lookup_distinguishes_missing_blobs_and_repositories(store: Fixture) {
    let (with, without) =
        (store.repository_named("with").await, store.repository_named("without").await);
    let layer = store.blob(&with, "layer").await;
    let find = async |repository: &str| {
        store.find_blob(&account(), &name(repository), &layer).await.unwrap()
    };
    let Lookup::Found(blob) = find("with").await else { panic!("the blob is found") };
    assert_eq!((&blob.digest, blob.bytes.size, blob.damaged), (&layer, 100, false));
    assert_eq!(find("without").await, Lookup::Missing);
    assert_eq!(find("nowhere").await, Lookup::NoRepository);
    assert_eq!(store.layer(with.id, &layer).await.unwrap().unwrap().blob, blob);
    assert_eq!(store.layer(without.id, &layer).await.unwrap(), None);
}

pub async fn a_layer_has_a_media_type_if_a_manifest_references_it(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let found = store.layer(repository.id, &layer).await.unwrap().unwrap();
    assert_eq!((found.media_type, found.referenced, found.archived), (None, false, false));

    let image = NewManifest { blobs: blobs(&[&layer]), ..manifest("image") };
    let media_type = image.blobs[0].media_type.clone();
    store.put_manifest(put(&repository, image, &[])).await.unwrap();
    let found = store.layer(repository.id, &layer).await.unwrap().unwrap();
    assert_eq!(
        (found.media_type, found.referenced, found.archived),
        (Some(media_type), true, false)
    );
}

pub async fn layers_are_found_in_the_order_given(store: Fixture) {
    let repository = store.repository_named("app").await;
    let (one, two) = (store.blob(&repository, "one").await, store.blob(&repository, "two").await);
    let asked = [two.clone(), digest("nothing"), one.clone(), two.clone()];
    let found = store.find_layers(repository.id, &asked).await.unwrap();
    let found: Vec<_> =
        found.into_iter().map(|layer| layer.map(|layer| layer.blob.digest)).collect();
    assert_eq!(found, [Some(two.clone()), None, Some(one), Some(two)]);
    assert_eq!(store.find_layers(repository.id, &[]).await.unwrap(), []);
}

pub async fn a_layer_is_archived_when_every_image_with_it_is(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    for payload in ["one", "two"] {
        let image = NewManifest { blobs: blobs(&[&layer]), ..manifest(payload) };
        store.put_manifest(put(&repository, image, &[])).await.unwrap();
    }
    let archived = async || store.layer(repository.id, &layer).await.unwrap().unwrap().archived;
    store
        .set_storage_class(repository.id, &digest("one"), StorageClass::Archive, at(1))
        .await
        .unwrap();
    assert!(!archived().await);
    store
        .set_storage_class(repository.id, &digest("two"), StorageClass::Archive, at(1))
        .await
        .unwrap();
    assert!(archived().await);
    store
        .set_storage_class(repository.id, &digest("one"), StorageClass::Standard, at(2))
        .await
        .unwrap();
    assert!(!archived().await);
}

pub async fn a_layer_of_archived_images_is_missing_until_pushed_again(store: Fixture) {
    let repository = store.repository_named("app").await;
    let (shared, own, config) = (
        store.blob(&repository, "shared").await,
        store.blob(&repository, "own").await,
        store.blob(&repository, "new").await,
    );
    let push = async |payload: &str, needs: &[&Digest], seconds: i64| {
        let image = NewManifest { blobs: blobs(needs), ..manifest(payload) };
        store
            .put_manifest(PutManifest { now: at(seconds), ..put(&repository, image, &[]) })
            .await
            .unwrap()
    };
    push("one", &[&shared, &own], 1).await;
    push("two", &[&shared], 1).await;
    let archive = async |payload: &str, seconds: i64| {
        let class = StorageClass::Archive;
        store.set_storage_class(repository.id, &digest(payload), class, at(seconds)).await.unwrap();
    };
    let has = async |digest: &Digest| store.has_blob(&repository, digest).await;
    archive("one", 2).await;
    assert!(has(&shared).await, "an active image has it");
    assert!(!has(&own).await);
    assert!(has(&config).await, "no image has it yet");
    archive("two", 3).await;
    assert!(!has(&shared).await);
    assert!(store.layer(repository.id, &shared).await.unwrap().unwrap().archived);

    // A client that pushes the blob again checks that it exists before it pushes the manifest.
    let upload = new_upload(&repository);
    let again = CommitUpload { now: at(4), ..commit(&upload, &shared) };
    assert!(store.create_upload(upload, None).await.unwrap());
    assert_eq!(store.commit_intact(again).await.unwrap(), CommitOutcome::AlreadyInRepository);
    assert!(has(&shared).await && !has(&own).await);
    assert!(!store.layer(repository.id, &shared).await.unwrap().unwrap().archived);
    push("three", &[&shared], 5).await;
    archive("three", 6).await;
    assert!(!has(&shared).await);
    push("one", &[&shared, &own], 7).await;
    assert!(has(&shared).await && has(&own).await, "a push restores the image");

    archive("one", 8).await;
    store.delete_image(repository.id, &digest("one"), Referrers::Stay, at(9)).await.unwrap();
    assert!(has(&own).await, "nothing has it any more");
}

pub async fn a_layer_of_archived_images_is_not_mounted(store: Fixture) {
    let (from, to) = (store.repository_named("from").await, store.repository_named("to").await);
    let layer = store.blob(&from, "layer").await;
    let image = NewManifest { blobs: blobs(&[&layer]), ..manifest("image") };
    store.put_manifest(put(&from, image, &[])).await.unwrap();
    for (class, seconds, mounted) in [
        (StorageClass::Archive, 2, MountOutcome::NotMountable),
        (StorageClass::Standard, 3, MountOutcome::Mounted),
    ] {
        store.set_storage_class(from.id, &digest("image"), class, at(seconds)).await.unwrap();
        for referenced in [true, false] {
            assert_eq!(mount(&store, &from, &to, &layer, referenced).await, mounted);
        }
    }
}

async fn mount(
    store: &Fixture,
    from: &Repository,
    to: &Repository,
    digest: &Digest,
    referenced: bool,
) -> MountOutcome {
    store.mount_blob(from.id, to.id, digest, referenced, at(1), at(60)).await.unwrap()
}

pub async fn a_mount_shares_the_bytes(store: Fixture) {
    let (from, to) = (store.repository_named("from").await, store.repository_named("to").await);
    let layer = store.blob(&from, "layer").await;
    assert_eq!(
        mount(&store, &from, &to, &digest("other"), false).await,
        MountOutcome::NotMountable
    );
    assert_eq!(mount(&store, &from, &to, &layer, false).await, MountOutcome::Mounted);
    assert_eq!(
        mount(&store, &from, &to, &layer, true).await,
        MountOutcome::Mounted,
        "it is there already"
    );
    assert_eq!(store.bytes_of(&from, &layer).await, store.bytes_of(&to, &layer).await);
    assert_eq!(store.unlink_blob(from.id, &layer).await.unwrap(), UnlinkOutcome::Unlinked);
    assert!(store.has_blob(&to, &layer).await);

    store.delete_repository(to.id, false, at(2)).await.unwrap();
    assert_eq!(
        mount(&store, &from, &to, &layer, false).await,
        MountOutcome::NotMountable,
        "the target is gone"
    );
}

pub async fn a_mount_can_ask_for_a_committed_manifest(store: Fixture) {
    let (from, to) = (store.repository_named("from").await, store.repository_named("to").await);
    let layer = store.blob(&from, "layer").await;
    assert_eq!(mount(&store, &from, &to, &layer, true).await, MountOutcome::NotMountable);
    let image = NewManifest { blobs: blobs(&[&layer]), ..manifest("image") };
    store.put_manifest(put(&from, image, &[])).await.unwrap();
    assert_eq!(mount(&store, &from, &to, &layer, true).await, MountOutcome::Mounted);
    assert!(store.has_blob(&to, &layer).await);
}

pub async fn blob_sources_are_the_repositories_of_the_registry_with_it(store: Fixture) {
    let (one, two) = (store.repository_named("one").await, store.repository_named("two").await);
    store.repository_named("none").await;
    let layer = store.blob(&two, "layer").await;
    mount(&store, &two, &one, &layer, false).await;
    let foreign =
        NewRepository { account: "210987654321".parse().unwrap(), ..new_repository("foreign") };
    let foreign = store.create_repository(foreign, 10).await.unwrap();
    store.blob(&foreign, "layer").await;
    let sources = async |digest: &Digest, limit| {
        store.list_blob_sources(&account(), digest, limit).await.unwrap()
    };
    assert_eq!(sources(&layer, 10).await, [(two.id, two.name.clone()), (one.id, one.name.clone())]);
    assert_eq!(sources(&layer, 1).await.len(), 1);
    assert!(sources(&digest("other"), 10).await.is_empty());
    store.unlink_blob(one.id, &layer).await.unwrap();
    assert_eq!(sources(&layer, 10).await.len(), 1);
}

pub async fn a_mount_needs_the_same_encryption_and_registry(store: Fixture) {
    let from = store.repository_named("from").await;
    let layer = store.blob(&from, "layer").await;
    let kms = Encryption { kind: "KMS".into(), kms_key: Some("arn:aws:kms:r:1:key/k".into()) };
    let encrypted = NewRepository { encryption: kms, ..new_repository("encrypted") };
    let encrypted = store.create_repository(encrypted, 10).await.unwrap();
    assert_eq!(mount(&store, &from, &encrypted, &layer, false).await, MountOutcome::NotMountable);
    let foreign =
        NewRepository { account: "210987654321".parse().unwrap(), ..new_repository("foreign") };
    let foreign = store.create_repository(foreign, 10).await.unwrap();
    assert_eq!(mount(&store, &from, &foreign, &layer, false).await, MountOutcome::NotMountable);
}

pub async fn a_blob_that_a_manifest_needs_cannot_be_unlinked(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let image = NewManifest { blobs: blobs(&[&layer]), ..manifest("image") };
    store.put_manifest(put(&repository, image, &[])).await.unwrap();
    assert_eq!(
        store.unlink_blob(repository.id, &digest("other")).await.unwrap(),
        UnlinkOutcome::NotFound
    );
    assert_eq!(store.unlink_blob(repository.id, &layer).await.unwrap(), UnlinkOutcome::InUse);
    assert!(store.has_blob(&repository, &layer).await);

    store.delete_image(repository.id, &digest("image"), Referrers::Stay, at(1)).await.unwrap();
    assert!(store.has_blob(&repository, &layer).await, "the link outlives the manifest");
    assert_eq!(store.unlink_blob(repository.id, &layer).await.unwrap(), UnlinkOutcome::Unlinked);
    assert_eq!(store.unlink_blob(repository.id, &layer).await.unwrap(), UnlinkOutcome::NotFound);
    assert!(!store.has_blob(&repository, &layer).await);
}

pub async fn extending_a_lease_needs_no_blob(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    for (what, until) in [(&layer, at(100)), (&layer, at(50)), (&digest("other"), at(100))] {
        store.extend_lease(repository.id, what, until).await.unwrap();
    }
    assert!(store.has_blob(&repository, &layer).await);
}

pub async fn a_blob_is_reported_as_damaged_until_it_is_intact(mut store: Fixture) {
    let repository = store.repository_named("app").await;
    let (layer, other) =
        (store.blob(&repository, "layer").await, store.blob(&repository, "other").await);
    let (bytes, _) = store.bytes_of(&repository, &layer).await;
    store.set_blob_damaged(bytes.generation, Some(at(1))).await.unwrap();
    store.reopen().await;
    assert!(store.bytes_of(&repository, &layer).await.1);
    assert!(store.layer(repository.id, &layer).await.unwrap().unwrap().blob.damaged);
    assert!(!store.bytes_of(&repository, &other).await.1);
    store.set_blob_damaged(bytes.generation, None).await.unwrap();
    assert_eq!(store.bytes_of(&repository, &layer).await, (bytes, false));
}

pub async fn a_damaged_blob_is_neither_mounted_nor_used_by_a_manifest(store: Fixture) {
    let (from, to) = (store.repository_named("from").await, store.repository_named("to").await);
    let layer = store.blob(&from, "layer").await;
    let (bytes, _) = store.bytes_of(&from, &layer).await;
    store.set_blob_damaged(bytes.generation, Some(at(1))).await.unwrap();
    assert_eq!(mount(&store, &from, &to, &layer, false).await, MountOutcome::NotMountable);
    assert_eq!(
        mount(&store, &to, &from, &layer, false).await,
        MountOutcome::NotMountable,
        "it has to be pushed again"
    );
    assert!(store.list_blob_sources(&account(), &layer, 10).await.unwrap().is_empty());
    let image = NewManifest { blobs: blobs(&[&layer]), ..manifest("image") };
    let refused = store.put_manifest(put(&from, image.clone(), &[])).await;
    assert!(matches!(refused, Err(PutManifestError::BlobsNotFound(missing)) if missing == [layer]));
    store.set_blob_damaged(bytes.generation, None).await.unwrap();
    store.put_manifest(put(&from, image, &[])).await.unwrap();
}
