//! A full disk under SQLite and a folder: pushes are refused with the reason, pulls succeed, and
//! deletions free space.

use std::time::Duration;

use aws_sdk_ecr::error::ProvideErrorMetadata;
use aws_sdk_ecr::types::ImageIdentifier;
use futures::stream;
use reqwest::{Body, Method};
use wharfage::names::Digest;

use super::Watched;
use crate::bed::wharfage::wharfage;
use crate::oci::client::{Answer, Repository, unique, with_parameter};
use crate::oci::images;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

#[track_caller]
fn assert_full(answer: &Answer) {
    let message = answer.assert_refused(507, "UNAVAILABLE");
    assert!(message.contains("disk is full"), "{message}");
}

/// Pushes a small blob in one request.
async fn push_whole(repository: &Repository) -> Answer {
    let bytes = unique(100);
    let target = with_parameter(&repository.uploads(), "digest", Digest::sha256(&bytes));
    repository.call(Method::POST, &target).body(bytes).send().await
}

/// Starts a server on a small disk.
async fn start() -> (Watched, Repository) {
    let watched = Watched::start(wharfage().on_small_disk(24)).await;
    let repository = Repository::create(&watched.server).await;
    (watched, repository)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_pushes_and_is_freed_by_deletions() {
    let (mut watched, repository) = start().await;
    let (manifest, digest) = images::pushed(&repository).await;
    for tag in ["a", "b"] {
        repository.put_ok(tag, &manifest).await;
    }
    let (_, other) = images::pushed(&repository).await;
    let another = images::bytes(&images::image(&repository).await);
    let held = repository.begin().await;
    let held = repository
        .chunk(&held, Some(0), &unique(4 * MIB))
        .await
        .assert_status(202)
        .header("Location")
        .to_owned();
    let open = repository.begin().await;
    assert_eq!(watched.get("/readyz").await, (200, "ok\n".to_owned()));
    assert_eq!(watched.sample("wharfage_store_full{store=\"blobs\"}").await, 0.0);
    assert!(watched.sample("wharfage_disk_free_bytes{}").await > (4 * MIB) as f64);

    watched.server.disk().fill();
    // The second round follows a restart on the full disk.
    for restarted in [false, true] {
        if restarted {
            watched.server.kill9().await;
            watched.start_again().await;
        }
        let (status, text) = watched.get("/readyz").await;
        assert!(status == 200 && text.contains("disk is full"), "{status} {text}");
        assert_eq!(watched.sample("wharfage_store_full{store=\"metadata\"}").await, 1.0);
        assert_eq!(watched.sample("wharfage_store_full{store=\"blobs\"}").await, 1.0);
        assert_full(&repository.post(&repository.uploads()).await);
        assert_full(&push_whole(&repository).await);
        assert_full(&repository.chunk(&open, Some(0), &unique(100)).await);
        assert_full(&repository.put("another", &another).await);
        let begun = repository
            .ecr()
            .initiate_layer_upload()
            .repository_name(&repository.name)
            .send()
            .await
            .unwrap_err();
        assert_eq!(begun.raw_response().unwrap().status().as_u16(), 507);
        assert!(
            begun.code() == Some("ServerException")
                && begun.message().unwrap().contains("disk is full")
        );
        assert_eq!(
            repository.get(&repository.manifest("a")).await.assert_status(200).body,
            manifest
        );
        if restarted {
            let gone = ImageIdentifier::builder().image_digest(other.as_str()).build();
            let deletion = repository
                .ecr()
                .batch_delete_image()
                .repository_name(&repository.name)
                .image_ids(gone);
            assert_eq!(deletion.send().await.unwrap().failures(), []);
        } else {
            repository.delete(&repository.manifest("b")).await.assert_status(202);
        }
    }
    repository.delete(&repository.manifest(&digest)).await.assert_status(202);

    // Four MiB of an abandoned upload.
    repository.delete(&held).await.assert_status(204);
    while push_whole(&repository).await.status == 507 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    repository.put_ok("another", &another).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lifecycle_policy_expires_images_on_a_full_disk() {
    let (watched, repository) = start().await;
    let (_, expired) = images::pushed(&repository).await;
    let (_, kept) = images::pushed(&repository).await;
    watched.server.disk().fill();
    let policy = serde_json::json!({"rules": [{"rulePriority": 1, "description": "only one image stays in here",
        "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 1},
        "action": {"type": "expire"}}]});
    let put = repository.ecr().put_lifecycle_policy().repository_name(&repository.name);
    put.lifecycle_policy_text(policy.to_string()).send().await.unwrap();
    while repository.get(&repository.manifest(&expired)).await.status != 404 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    repository.get(&repository.manifest(&kept)).await.assert_status(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_does_not_fit_is_refused_before_it_fills_the_disk() {
    let (watched, repository) = start().await;
    let location = repository.begin().await;
    let (manifest, digest) = images::pushed(&repository).await;
    watched.server.disk().fill_but(6 * MIB as u64);
    let bytes = unique(16 * MIB);

    // With a stated length, the push is refused before a byte is stored.
    let target = with_parameter(&repository.uploads(), "digest", Digest::sha256(&bytes));
    assert_full(&repository.call(Method::POST, &target).body(bytes.clone()).send().await);
    let free = watched.sample("wharfage_disk_free_bytes{}").await;
    assert!(free > (5 * MIB) as f64, "{free}");

    // Without a stated length, it is refused before the reserve is used.
    let pieces: Vec<_> =
        bytes.chunks(256 * KIB).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let body = Body::wrap_stream(stream::iter(pieces));
    assert_full(&repository.call(Method::PATCH, &location).body(body).send().await);
    let free = watched.sample("wharfage_disk_free_bytes{}").await;
    assert!(free > 0.0, "the reserve is there still");
    assert_eq!(
        repository.get(&repository.manifest(&digest)).await.assert_status(200).body,
        manifest
    );
    repository.delete(&location).await.assert_status(204);
    while push_whole(&repository).await.status == 507 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_serves_existing_images() {
    let (mut watched, repository) = start().await;
    let (manifest, digest) = images::pushed(&repository).await;
    // With the reserve of a process that stopped before the disk was full, and without any.
    for emptied in [false, true] {
        let (status, output) = watched.server.stop("TERM").await;
        assert!(status.success(), "{output}");
        watched.server.disk().fill();
        watched.start_again().await;
        assert_eq!(
            repository.get(&repository.manifest(&digest)).await.assert_status(200).body,
            manifest
        );
        assert_full(&push_whole(&repository).await);
        let (status, text) = watched.get("/readyz").await;
        assert!(status == 200 && text.contains("disk is full"), "{emptied} {status} {text}");
    }
    watched.server.disk().clear();
    watched.recovered().await;
    while push_whole(&repository).await.status == 507 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
