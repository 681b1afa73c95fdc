//! Uploads that break off: what has arrived is kept, and the upload continues from there.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wharfage::names::Digest;

use super::client::{Backend, Repository, unique};
use crate::bed::service::STARTUP;

on_both_backends!(
    an_upload_goes_on_after_the_program_was_killed,
    what_arrived_of_a_broken_chunk_is_kept,
    nothing_of_a_broken_put_is_visible,
    a_body_that_is_announced_too_long_is_refused_before_it_comes,
);

async fn an_upload_goes_on_after_the_program_was_killed(backend: Backend) {
    let mut server = backend.own_server().await;
    let repository = Repository::create(&server).await;
    let bytes = unique(20_000);
    let location = repository.begin().await;
    repository.chunk(&location, Some(0), &bytes[..12_345]).await.assert_status(202);
    server.kill9().await;
    server.start_again().await;
    let status = repository.get(&location).await;
    assert_eq!(status.assert_status(204).header("Range"), "0-12344");
    repository.chunk(&location, Some(12_345), &bytes[12_345..]).await.assert_status(202);
    let digest = Digest::sha256(&bytes);
    repository.finish(&location, &digest, b"").await.assert_status(201);
    assert_eq!(repository.get(&repository.blob(&digest)).await.assert_status(200).body, bytes);
}

/// Sends a request's head and only part of its body, and closes the connection.
async fn break_off(
    repository: &Repository,
    method: &str,
    target: &str,
    announced: usize,
    sent: &[u8],
) {
    let authority = repository.base().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(authority).await.unwrap();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: {}\r\nContent-Length: {announced}\r\n\r\n",
        repository.authorization()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(sent).await.unwrap();
    stream.shutdown().await.unwrap();
    // Wait until the server has closed its side, too; whether it says something first is its own matter.
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// Waits until the upload is known to hold the first `length` bytes.
async fn until_kept(repository: &Repository, location: &str, length: usize) {
    let deadline = Instant::now() + STARTUP;
    loop {
        let status = repository.get(location).await;
        let range = status.assert_status(204).header("Range");
        if range == format!("0-{}", length - 1) {
            return;
        }
        assert!(Instant::now() < deadline, "{range} is kept of {length} bytes");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn what_arrived_of_a_broken_chunk_is_kept(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(50_000);
    let location = repository.begin().await;
    break_off(&repository, "PATCH", &location, bytes.len(), &bytes[..30_000]).await;
    until_kept(&repository, &location, 30_000).await;
    let refused = repository.chunk(&location, Some(50_000), b"too far").await;
    refused.assert_refused(416, "BLOB_UPLOAD_INVALID");
    assert_eq!(refused.header("Range"), "0-29999");
    repository.chunk(&location, Some(30_000), &bytes[30_000..]).await.assert_status(202);
    repository.finish(&location, Digest::sha256(&bytes), b"").await.assert_status(201);
}

async fn nothing_of_a_broken_put_is_visible(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(50_000);
    let part = Digest::sha256(&bytes[..30_000]);
    let location = repository.begin().await;
    break_off(
        &repository,
        "PUT",
        &format!("{location}?digest={part}"),
        bytes.len(),
        &bytes[..30_000],
    )
    .await;
    until_kept(&repository, &location, 30_000).await;
    let refused = repository.chunk(&location, Some(50_000), b"too far").await;
    assert_eq!(refused.assert_status(416).header("Range"), "0-29999");
    repository.get(&repository.blob(&part)).await.assert_status(404);
    let digest = Digest::sha256(&bytes);
    repository.finish(&location, &digest, &bytes[30_000..]).await.assert_status(201);
    assert_eq!(repository.get(&repository.blob(&digest)).await.assert_status(200).body, bytes);
}

async fn a_body_that_is_announced_too_long_is_refused_before_it_comes(backend: Backend) {
    let repository = backend.repository().await;
    let authority = repository.base().strip_prefix("http://").unwrap();
    let location = repository.begin().await;
    for (method, target, length) in [
        ("PATCH", location, 52_000_u64 * 1024 * 1024 + 1),
        ("PUT", repository.manifest("latest"), 4_194_305),
    ] {
        let mut stream = TcpStream::connect(authority).await.unwrap();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: {}\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n",
            repository.authorization()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 413", "{method}");
    }
}
