//! The contract on S3, and tests of S3 alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::ObjectStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wharfage::store::blobs::s3::{S3Blobs, S3Config, S3Credentials};
use wharfage::store::{BlobKey, Blobs, Generation, Handover, StoreError, UploadKey, WriterState};

use super::{BackendFixture, begin, checkpoint, content, on, put, resume, write};
use crate::bed;
use crate::bed::s3::S3;
use crate::bed::service::STARTUP;

const MIB: usize = 1024 * 1024;

pub(super) async fn bucket() -> S3 {
    bed::s3().bucket().await
}

fn config(bucket: &S3) -> S3Config {
    S3Config {
        bucket: bucket.bucket.clone(),
        region: bucket.region.clone(),
        endpoint: Some(bucket.endpoint.clone()),
        credentials: Some(S3Credentials {
            access_key: bucket.access_key.clone(),
            secret_key: bucket.secret_key.clone(),
        }),
        prefix: "registry/one".to_owned(),
        redirect: false,
    }
}

#[async_trait::async_trait]
impl BackendFixture for S3 {
    async fn open(&self) -> Arc<dyn Blobs> {
        Arc::new(S3Blobs::new(config(self)).unwrap())
    }

    async fn objects(&self) -> Vec<String> {
        keys(self)
            .await
            .iter()
            .map(|key| key.strip_prefix("registry/one/").unwrap().to_owned())
            .collect()
    }
}

on!(bucket);

/// Sends a GET without credentials to the bucket's server.
async fn get(bucket: &S3, url: &str) -> String {
    let target = url.strip_prefix(&bucket.endpoint).unwrap();
    let host = bucket.endpoint.strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(host).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer
}

async fn keys(bucket: &S3) -> Vec<String> {
    let mut keys: Vec<_> = bucket
        .client()
        .list(None)
        .map_ok(|object| object.location.to_string())
        .try_collect()
        .await
        .unwrap();
    keys.sort();
    keys
}

#[tokio::test]
async fn a_blob_is_one_object_below_the_prefix() {
    let bucket = bucket().await;
    let blobs = bucket.open().await;
    let mut expected = Vec::new();
    for size in [10, 7 * MIB] {
        expected.push(format!(
            "registry/one/{}",
            put(blobs.as_ref(), &content(1, size)).await.generation.path()
        ));
    }
    expected.sort();
    assert_eq!(keys(&bucket).await, expected);
}

#[tokio::test]
async fn an_empty_prefix_is_none() {
    let bucket = bucket().await;
    let blobs = S3Blobs::new(S3Config { prefix: String::new(), ..config(&bucket) }).unwrap();
    let blob = put(&blobs, &content(1, 10)).await;
    assert_eq!(keys(&bucket).await, [blob.generation.path()]);
}

/// Counts the open multipart uploads of the bucket.
async fn open_uploads(bucket: &S3) -> usize {
    bucket.open_uploads().await.len()
}

#[tokio::test]
async fn deleting_an_unfinished_blob_aborts_its_multipart_upload() {
    let bucket = bucket().await;
    let blobs = bucket.open().await;
    let mut writer = begin(blobs.as_ref()).await;
    write(writer.as_mut(), &content(5, 7 * MIB), MIB).await;
    let state = checkpoint(writer.as_mut()).await;
    drop(writer);
    assert_eq!(open_uploads(&bucket).await, 1, "a checkpoint keeps it");
    blobs.delete(Generation::random(), &state, &[]).await.unwrap();
    assert_eq!(open_uploads(&bucket).await, 0);
}

#[tokio::test]
async fn a_writer_abandoned_before_a_checkpoint_leaves_no_upload() {
    let bucket = bucket().await;
    let blobs = bucket.open().await;
    let mut writer = begin(blobs.as_ref()).await;
    write(writer.as_mut(), &content(6, 7 * MIB), MIB).await;
    assert_eq!(open_uploads(&bucket).await, 1);
    drop(writer);
    // The abort runs in the background.
    let deadline = Instant::now() + STARTUP;
    while open_uploads(&bucket).await > 0 {
        assert!(Instant::now() < deadline, "the multipart upload is still open");
    }
}

#[tokio::test]
async fn an_upload_aborted_elsewhere_fails_without_a_blob() {
    let bucket = bucket().await;
    let blobs = bucket.open().await;
    let mut writer = begin(blobs.as_ref()).await;
    write(writer.as_mut(), &content(3, 12 * MIB), MIB).await;
    let state = checkpoint(writer.as_mut()).await;
    drop(writer);
    blobs.delete(Generation::random(), &state, &[]).await.unwrap();
    let writer = resume(blobs.as_ref(), 12 * MIB, &state, Handover::Clean).await.unwrap();
    super::inconsistent(writer.finish().await);
    let mut writer = resume(blobs.as_ref(), 12 * MIB, &state, Handover::Clean).await.unwrap();
    write(writer.as_mut(), &content(3, 6 * MIB), MIB).await;
    super::inconsistent(writer.checkpoint(Generation::random()).await);
    assert_eq!(keys(&bucket).await, [""; 0]);
}

#[tokio::test]
async fn a_presigned_url_reads_a_blob_without_credentials() {
    let bucket = bucket().await;
    let blobs = S3Blobs::new(S3Config { redirect: true, ..config(&bucket) }).unwrap();
    let bytes = content(4, 1000);
    let blob = put(&blobs, &bytes).await;
    let url = blobs.presigned_url(&blob, Duration::from_secs(60)).await.unwrap().unwrap();
    assert!(!url.contains(&bucket.secret_key));

    assert!(get(&bucket, &url).await.ends_with(&*String::from_utf8_lossy(&bytes)));

    let proxied = bucket.open().await;
    assert_eq!(proxied.presigned_url(&blob, Duration::from_secs(60)).await.unwrap(), None);
}

#[tokio::test]
async fn a_bucket_that_is_missing_or_refuses_the_key_is_not_ready() {
    let bucket = bucket().await;
    let missing =
        S3Blobs::new(S3Config { bucket: "missing".to_owned(), ..config(&bucket) }).unwrap();
    assert!(matches!(missing.ready().await, Err(StoreError::Unavailable(_))));

    let credentials = S3Credentials {
        access_key: bucket.access_key.clone(),
        secret_key: "wonderland".to_owned(),
    };
    let refused =
        S3Blobs::new(S3Config { credentials: Some(credentials), ..config(&bucket) }).unwrap();
    let error = refused.ready().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)));
    assert!(!format!("{error} {error:?}").contains("wonderland"));
}

#[tokio::test]
async fn an_unreachable_server_is_unavailable() {
    let endpoint = Some("http://127.0.0.1:1".to_owned());
    let bucket = bucket().await;
    let blobs = S3Blobs::new(S3Config { endpoint, ..config(&bucket) }).unwrap();
    assert!(matches!(
        blobs.read(&BlobKey::plain(Generation::random(), 10), 0..10).await,
        Err(StoreError::Unavailable(_))
    ));
}

#[tokio::test]
async fn in_a_missing_bucket_nothing_is_deleted_or_missing() {
    let bucket = bucket().await;
    let blobs = bucket.open().await;
    let blob = put(blobs.as_ref(), &content(7, 1000)).await;
    let half = Generation::random();
    let key = UploadKey::plain(half);
    let mut writer = blobs
        .writer(&key, 0, &WriterState::default(), Handover::Clean, Arc::new(()))
        .await
        .unwrap();
    write(writer.as_mut(), &content(8, 7 * MIB), MIB).await;
    let half_state = checkpoint(writer.as_mut()).await;
    drop(writer);
    let before = keys(&bucket).await;

    let folder = bed::s3().folder(&bucket);
    let away = folder.with_extension("away");
    std::fs::rename(&folder, &away).unwrap();
    let unavailable = |outcome: Result<(), StoreError>| match outcome {
        Err(StoreError::Unavailable(_)) => {}
        other => panic!("{other:?}"),
    };
    unavailable(blobs.delete(blob.generation, &WriterState::default(), &[]).await);
    unavailable(blobs.delete(half, &half_state, &[]).await);
    unavailable(blobs.read(&blob, 0..1000).await.map(drop));
    unavailable(blobs.read(&blob, 5..5).await.map(drop));
    unavailable(blobs.stored_size(blob.generation).await.map(drop));
    std::fs::rename(&away, &folder).unwrap();

    assert_eq!(keys(&bucket).await, before);
    blobs.delete(blob.generation, &WriterState::default(), &[]).await.unwrap();
    blobs.delete(half, &half_state, &[]).await.unwrap();
    assert_eq!(keys(&bucket).await, [""; 0]);
    assert_eq!(open_uploads(&bucket).await, 0);
}
