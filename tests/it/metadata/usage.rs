//! Usage of repositories.

use wharfage::store::manifests::PutManifestError;

use super::*;

pub async fn usage_follows_pushes_and_deletions(store: Fixture) {
    let repository = store.repository_named("app").await;
    assert_eq!(store.repository_usage(repository.id).await.unwrap(), (0, 0));
    let (one, two) = (store.blob(&repository, "one").await, store.blob(&repository, "two").await);
    let both = NewManifest { blobs: blobs(&[&one, &two]), ..manifest("both") };
    store.put_manifest(put(&repository, both.clone(), &["a"])).await.unwrap();
    store.put_manifest(put(&repository, both, &["b"])).await.unwrap();
    let single = NewManifest { blobs: blobs(&[&one]), ..manifest("single") };
    store.put_manifest(put(&repository, single, &[])).await.unwrap();
    assert_eq!(store.repository_usage(repository.id).await.unwrap(), (2, 300));
    store.delete_image(repository.id, &digest("both"), Referrers::Stay, at(1)).await.unwrap();
    assert_eq!(store.repository_usage(repository.id).await.unwrap(), (1, 100));
}

pub async fn folding_changes_no_usage(store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    for number in 0..5 {
        let image = NewManifest { blobs: blobs(&[&layer]), ..manifest(&format!("image {number}")) };
        store.put_manifest(put(&repository, image, &[])).await.unwrap();
        if number % 2 == 0 {
            while store.fold_usage(2).await.unwrap() == 2 {}
        }
        assert_eq!(
            store.repository_usage(repository.id).await.unwrap(),
            (number + 1, (number + 1) * 100)
        );
    }
    store.delete_image(repository.id, &digest("image 3"), Referrers::Stay, at(1)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.repository_usage(repository.id).await.unwrap(), (4, 400));
        while store.fold_usage(100).await.unwrap() == 100 {}
    }
    let full = PutManifest { max_images: 4, ..put(&repository, manifest("one more"), &[]) };
    let refused = store.put_manifest(full).await;
    assert!(matches!(refused, Err(PutManifestError::TooManyImages(4))), "{refused:?}");
}
