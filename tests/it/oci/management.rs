//! "Content management" of distribution-spec 1.1: deleting tags, manifests and blobs.

use serde_json::json;
use wharfage::names::Digest;

use super::client::{Backend, unique};
use super::images::{self, IMAGE, descriptor};

on_both_backends!(
    a_deleted_tag_leaves_its_manifest,
    a_deleted_manifest_takes_its_tags_along,
    what_is_not_there_cannot_be_deleted,
    a_child_is_kept_until_its_index_goes,
    a_subject_may_go_before_its_referrers,
    a_blob_is_deleted_while_no_manifest_needs_it,
);

async fn a_deleted_tag_leaves_its_manifest(backend: Backend) {
    let repository = backend.repository().await;
    let manifest = images::bytes(&images::image(&repository).await);
    let digest = repository.put_ok("one", &manifest).await;
    repository.put_ok("two", &manifest).await;
    repository.delete(&repository.manifest("one")).await.assert_status(202);
    repository.get(&repository.manifest("one")).await.assert_refused(404, "MANIFEST_UNKNOWN");
    repository.get(&repository.manifest("two")).await.assert_status(200);
    repository.delete(&repository.manifest("two")).await.assert_status(202);
    repository.get(&repository.manifest(&digest)).await.assert_status(200);
}

async fn a_deleted_manifest_takes_its_tags_along(backend: Backend) {
    let repository = backend.repository().await;
    let manifest = images::bytes(&images::image(&repository).await);
    let digest = repository.put_ok("one", &manifest).await;
    repository.put_ok("two", &manifest).await;
    repository.delete(&repository.manifest(&digest)).await.assert_status(202);
    for reference in ["one", "two", digest.as_str()] {
        repository
            .get(&repository.manifest(reference))
            .await
            .assert_refused(404, "MANIFEST_UNKNOWN");
    }
    let tags = repository.get(&format!("/v2/{}/tags/list", repository.name)).await;
    assert_eq!(tags.json()["tags"], json!([]));
    repository.put_ok("one", &manifest).await;
}

async fn what_is_not_there_cannot_be_deleted(backend: Backend) {
    let repository = backend.repository().await;
    let digest = Digest::sha256(b"missing");
    repository
        .delete(&repository.manifest("missing"))
        .await
        .assert_refused(404, "MANIFEST_UNKNOWN");
    repository.delete(&repository.manifest(&digest)).await.assert_refused(404, "MANIFEST_UNKNOWN");
    repository.delete(&repository.blob(&digest)).await.assert_refused(404, "BLOB_UNKNOWN");
}

async fn a_child_is_kept_until_its_index_goes(backend: Backend) {
    let repository = backend.repository().await;
    let (bytes, child) = images::pushed(&repository).await;
    let index =
        repository.put_ok("index", &images::bytes(&images::index(&[(&bytes, &child)]))).await;
    let text =
        repository.delete(&repository.manifest(&child)).await.assert_refused(405, "UNSUPPORTED");
    assert_eq!(text, format!("Requested image referenced by manifest list: [{index}]"));
    repository.delete(&repository.manifest(&index)).await.assert_status(202);
    repository.get(&repository.manifest(&child)).await.assert_status(200);
    repository.delete(&repository.manifest(&child)).await.assert_status(202);
}

async fn a_subject_may_go_before_its_referrers(backend: Backend) {
    let repository = backend.repository().await;
    let (_, subject) = images::pushed(&repository).await;
    let mut artifact = images::image(&repository).await;
    artifact["subject"] = descriptor(IMAGE, &subject, 5);
    let referrer = repository.put_ok("sbom", &images::bytes(&artifact)).await;
    repository.delete(&repository.manifest(&subject)).await.assert_status(202);
    repository.get(&repository.manifest(&referrer)).await.assert_status(200);
}

async fn a_blob_is_deleted_while_no_manifest_needs_it(backend: Backend) {
    let repository = backend.repository().await;
    let blob = repository.push_blob(&unique(77)).await;
    repository.delete(&repository.blob(&blob)).await.assert_status(202);
    repository.get(&repository.blob(&blob)).await.assert_refused(404, "BLOB_UNKNOWN");
    repository.head(&repository.blob(&blob)).await.assert_status(404);

    let manifest = images::image(&repository).await;
    let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let digest = repository.put_ok("latest", &images::bytes(&manifest)).await;
    let text = repository.delete(&repository.blob(&layer)).await.assert_refused(405, "UNSUPPORTED");
    assert!(text.contains(layer.as_str()));
    repository.get(&repository.blob(&layer)).await.assert_status(200);
    repository.delete(&repository.manifest(&digest)).await.assert_status(202);
    repository.delete(&repository.blob(&layer)).await.assert_status(202);
    repository.get(&repository.blob(&layer)).await.assert_status(404);
}
