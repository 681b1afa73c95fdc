//! S3 that is frozen, unreachable or refuses.

use futures::future::join_all;
use reqwest::Method;
use wharfage::names::Digest;

use super::{Watched, refused};
use crate::bed;
use crate::bed::proxy::{Fault, Proxy};
use crate::bed::s3::{S3, S3Server};
use crate::bed::wharfage::wharfage;
use crate::oci::client::{Repository, unique, with_parameter};

/// A server on a bucket behind a proxy.
struct Behind {
    proxy: Proxy,
    watched: Watched,
    repository: Repository,
    bytes: Vec<u8>,
    digest: Digest,
}

impl Behind {
    async fn start() -> Self {
        let proxy = Proxy::start(bed::s3().address()).await;
        let bucket = S3 { endpoint: proxy.url(), ..bed::s3().bucket().await };
        let watched = Watched::start(wharfage().on_s3(&bucket)).await;
        let repository = Repository::create(&watched.server).await;
        let bytes = unique(1000);
        let digest = repository.push_blob(&bytes).await;
        Self { proxy, watched, repository, bytes, digest }
    }

    /// Returns the results of a pull and of a push in one request.
    async fn pull_and_push(&self) -> (u16, u16) {
        let bytes = unique(1000);
        let target = with_parameter(&self.repository.uploads(), "digest", Digest::sha256(&bytes));
        let blob = self.repository.blob(&self.digest);
        let pull = refused(&self.repository, Method::GET, &blob, Vec::new());
        tokio::join!(pull, refused(&self.repository, Method::POST, &target, bytes))
    }

    async fn works_again(&self) {
        self.proxy.set(Fault::None).await;
        self.watched.recovered().await;
        let pulled = self.repository.get(&self.repository.blob(&self.digest)).await;
        assert_eq!(pulled.assert_status(200).body, self.bytes);
        self.repository.push_blob(&unique(1000)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_s3_fault_is_reported_as_temporary_and_passes() {
    let faults = [
        (Fault::Silence, "no answer within"),
        (Fault::Reset, ""),
        (Fault::Refuse(503, "SlowDown"), "SlowDown"),
        (Fault::Refuse(500, "InternalError"), "InternalError"),
        (Fault::Refuse(403, "AccessDenied"), "s3:GetObject"),
        (Fault::Refuse(403, "InvalidAccessKeyId"), "rejects the credentials (InvalidAccessKeyId)"),
        (Fault::Refuse(404, "NoSuchBucket"), "the bucket does not exist"),
    ];
    join_all(faults.map(async |(fault, log)| {
        let behind = Behind::start().await;
        behind.proxy.set(fault).await;
        assert_eq!(behind.watched.get("/readyz").await.0, 503, "{fault:?}");
        assert_eq!(
            behind.watched.sample("wharfage_store_up{store=\"blobs\"}").await,
            0.0,
            "{fault:?}"
        );
        assert_eq!(behind.pull_and_push().await, (503, 503), "{fault:?}");
        behind.watched.server.wait_for(|line| line.contains(log).then_some(()));
        behind.works_again().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_s3_fails_no_request() {
    let behind = Behind::start().await;
    for fault in [Fault::Reset, Fault::Refuse(503, "SlowDown")] {
        behind.proxy.set(fault).await;
        let heal = async {
            // The pull alone was sent six times.
            behind.proxy.refused(12).await;
            behind.proxy.set(Fault::None).await;
        };
        let (outcome, ()) = tokio::join!(behind.pull_and_push(), heal);
        assert_eq!(outcome, (200, 201), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_s3_blocks_no_client_and_recovers() {
    let server = S3Server::start();
    let watched = Watched::start(wharfage().on_s3(&server.bucket().await)).await;
    let repository = Repository::create(&watched.server).await;
    let bytes = unique(1000);
    let digest = repository.push_blob(&bytes).await;
    let blob = repository.blob(&digest);

    let frozen = server.freeze();
    assert_eq!(watched.get("/readyz").await.0, 503);
    // Includes a part, because the upload is larger than a single PUT.
    let large = unique(7 * 1024 * 1024);
    let target = with_parameter(&repository.uploads(), "digest", Digest::sha256(&large));
    let (pull, push) = tokio::join!(
        refused(&repository, Method::GET, &blob, Vec::new()),
        refused(&repository, Method::POST, &target, large.clone()),
    );
    assert_eq!((pull, push), (503, 503));

    drop(frozen);
    watched.recovered().await;
    assert_eq!(repository.get(&blob).await.assert_status(200).body, bytes);
    repository.push_blob(&large).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_the_bucket_aborted_is_unknown() {
    let bucket = bed::s3().bucket().await;
    let server = wharfage().on_s3(&bucket).start().await;
    let repository = Repository::create(&server).await;
    let bytes = unique(14 * 1024 * 1024);
    let (first, rest) = bytes.split_at(7 * 1024 * 1024);
    let digest = Digest::sha256(&bytes);
    for chunk in [true, false] {
        let location = repository.begin().await;
        let sent = repository.chunk(&location, Some(0), first).await;
        let location = sent.assert_status(202).header("Location").to_owned();
        bucket.abort_uploads().await;
        let answer = if chunk {
            repository.chunk(&location, Some(first.len()), rest).await
        } else {
            repository.finish(&location, &digest, rest).await
        };
        answer.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
        repository.get(&location).await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
    }

    let ecr = repository.ecr();
    let begun = ecr.initiate_layer_upload().repository_name(&repository.name).send().await.unwrap();
    let part = |first: usize, bytes: &[u8]| {
        let call = ecr
            .upload_layer_part()
            .repository_name(&repository.name)
            .upload_id(begun.upload_id().unwrap());
        let call =
            call.part_first_byte(first as i64).part_last_byte((first + bytes.len() - 1) as i64);
        call.layer_part_blob(aws_sdk_ecr::primitives::Blob::new(bytes)).send()
    };
    part(0, first).await.unwrap();
    bucket.abort_uploads().await;
    let error = part(first.len(), rest).await.unwrap_err().into_service_error();
    assert!(error.is_upload_not_found_exception(), "{error:?}");
}
