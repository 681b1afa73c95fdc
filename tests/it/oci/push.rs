//! "Pushing blobs" of distribution-spec 1.1: whole, in chunks, cancelled, mounted, by either algorithm.

use futures::stream;
use reqwest::{Body, Method};
use wharfage::names::{Algorithm, Digest};

use super::client::{Backend, Repository, digests, unique, with_parameter};

on_both_backends!(
    a_blob_is_pushed_by_post_and_put,
    a_blob_is_pushed_by_a_single_post,
    a_blob_is_streamed_without_its_length,
    a_blob_is_pushed_in_chunks,
    the_last_chunk_may_come_with_the_put,
    a_chunk_out_of_order_is_416_and_the_session_goes_on,
    an_empty_blob_is_a_blob,
    a_blob_is_pushed_by_sha512_however,
    content_with_another_digest_is_refused_however_it_comes,
    a_digest_that_is_invalid_or_unsupported_is_400,
    a_blob_that_is_there_may_be_pushed_again,
    an_upload_is_cancelled,
    an_upload_that_is_not_there_is_404,
    a_chunk_that_is_not_what_it_says_is_refused_and_not_kept,
    a_blob_is_mounted_once_the_account_lets_blobs_be_mounted,
);

async fn assert_pulls(repository: &Repository, digest: &Digest, bytes: &[u8]) {
    let pulled = repository.get(&repository.blob(digest)).await;
    assert_eq!(pulled.assert_status(200).body, bytes);
    assert_eq!(pulled.header("Docker-Content-Digest"), digest.as_str());
}

async fn a_blob_is_pushed_by_post_and_put(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(5000);
    let digest = Digest::sha256(&bytes);
    let begun = repository.post(&repository.uploads()).await;
    begun.assert_status(202);
    let location = begun.header("Location");
    assert!(location.contains(begun.header("Docker-Upload-UUID")), "{location}");
    let pushed = repository.finish(location, &digest, &bytes).await;
    pushed.assert_status(201);
    assert_eq!(pushed.header("Docker-Content-Digest"), digest.as_str());
    assert_eq!(pushed.header("Location"), repository.blob(&digest));
    assert_pulls(&repository, &digest, &bytes).await;
    repository.get(location).await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
}

async fn a_blob_is_pushed_by_a_single_post(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(5000);
    let digest = Digest::sha256(&bytes);
    let target = format!("{}?digest={digest}", repository.uploads());
    let pushed = repository.call(Method::POST, &target).body(bytes.clone()).send().await;
    pushed.assert_status(201);
    assert_eq!(pushed.header("Location"), repository.blob(&digest));
    assert_pulls(&repository, &digest, &bytes).await;
}

async fn a_blob_is_streamed_without_its_length(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(300_000);
    let digest = Digest::sha256(&bytes);
    let location = repository.begin().await;
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> =
        bytes.chunks(7000).map(|piece| Ok(piece.to_vec())).collect();
    let body = Body::wrap_stream(stream::iter(pieces));
    let patched = repository.call(Method::PATCH, &location).body(body).send().await;
    patched.assert_status(202);
    assert_eq!(patched.header("Range"), "0-299999");
    repository.finish(patched.header("Location"), &digest, b"").await.assert_status(201);
    assert_pulls(&repository, &digest, &bytes).await;
}

async fn a_blob_is_pushed_in_chunks(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(3000);
    let mut location = repository.begin().await;
    for (number, chunk) in bytes.chunks(1024).enumerate() {
        let first = number * 1024;
        let patched = repository.chunk(&location, Some(first), chunk).await;
        patched.assert_status(202);
        let so_far = format!("0-{}", first + chunk.len() - 1);
        assert_eq!(patched.header("Range"), so_far);
        location = patched.header("Location").to_owned();
        let status = repository.get(&location).await;
        status.assert_status(204);
        assert_eq!(status.header("Range"), so_far);
        location = status.header("Location").to_owned();
    }
    let digest = Digest::sha256(&bytes);
    repository.get(&repository.blob(&digest)).await.assert_status(404);
    repository.finish(&location, &digest, b"").await.assert_status(201);
    assert_pulls(&repository, &digest, &bytes).await;
}

async fn the_last_chunk_may_come_with_the_put(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(2000);
    let digest = Digest::sha256(&bytes);
    let location = repository.begin().await;
    repository.chunk(&location, Some(0), &bytes[..1024]).await.assert_status(202);
    let last = |first: usize| {
        let target = with_parameter(&location, "digest", &digest);
        let range = format!("{first}-{}", first + 975);
        let call = repository
            .call(Method::PUT, &target)
            .header("Content-Range", &range)
            .body(bytes[1024..].to_vec());
        async move { call.send().await }
    };
    last(1025).await.assert_refused(416, "BLOB_UPLOAD_INVALID");
    last(1024).await.assert_status(201);
    assert_pulls(&repository, &digest, &bytes).await;
}

async fn a_chunk_out_of_order_is_416_and_the_session_goes_on(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(2048);
    let location = repository.begin().await;
    repository
        .chunk(&location, Some(1024), &bytes[1024..])
        .await
        .assert_refused(416, "BLOB_UPLOAD_INVALID");
    repository.chunk(&location, Some(0), &bytes[..1024]).await.assert_status(202);
    let again = repository.chunk(&location, Some(0), &bytes[..1024]).await;
    again.assert_refused(416, "BLOB_UPLOAD_INVALID");
    assert_eq!(again.header("Range"), "0-1023");
    assert_eq!(again.header("Location"), location);
    let status = repository.get(&location).await;
    assert_eq!(status.assert_status(204).header("Range"), "0-1023");
    repository.chunk(&location, Some(1024), &bytes[1024..]).await.assert_status(202);
    let digest = Digest::sha256(&bytes);
    repository.finish(&location, &digest, b"").await.assert_status(201);
    assert_pulls(&repository, &digest, &bytes).await;
}

async fn an_empty_blob_is_a_blob(backend: Backend) {
    let repository = backend.repository().await;
    for digest in digests(b"") {
        let location = repository.begin().await;
        repository.finish(&location, &digest, b"").await.assert_status(201);
        assert_pulls(&repository, &digest, b"").await;
    }
    let sibling = repository.sibling().await;
    let location = sibling.begin().await;
    assert_eq!(sibling.chunk(&location, None, b"").await.assert_status(202).header("Range"), "0-0");
    sibling.finish(&location, Digest::sha256(b""), b"").await.assert_status(201);
}

async fn a_blob_is_pushed_by_sha512_however(backend: Backend) {
    let repository = backend.repository().await;
    let digest = |bytes: &[u8]| Digest::of(Algorithm::Sha512, bytes);

    let bytes = unique(3000);
    let location = repository.begin().await;
    repository.finish(&location, digest(&bytes), &bytes).await.assert_status(201);
    assert_pulls(&repository, &digest(&bytes), &bytes).await;

    let bytes = unique(3000);
    let target = format!("{}?digest={}", repository.uploads(), digest(&bytes));
    repository.call(Method::POST, &target).body(bytes.clone()).send().await.assert_status(201);
    assert_pulls(&repository, &digest(&bytes), &bytes).await;

    for begin in ["", "?digest-algorithm=sha512"] {
        let bytes = unique(3000);
        let begun = repository.post(&format!("{}{begin}", repository.uploads())).await;
        let location = begun.assert_status(202).header("Location").to_owned();
        repository.chunk(&location, Some(0), &bytes[..2000]).await.assert_status(202);
        repository.chunk(&location, Some(2000), &bytes[2000..]).await.assert_status(202);
        let finished = repository.finish(&location, digest(&bytes), b"").await;
        assert_eq!(
            finished.assert_status(201).header("Docker-Content-Digest"),
            digest(&bytes).as_str()
        );
        assert_pulls(&repository, &digest(&bytes), &bytes).await;
    }
}

async fn content_with_another_digest_is_refused_however_it_comes(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(3000);
    for wrong in digests(&unique(3000)) {
        let location = repository.begin().await;
        repository.finish(&location, &wrong, &bytes).await.assert_refused(400, "DIGEST_INVALID");
        repository.get(&location).await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");

        let target = format!("{}?digest={wrong}", repository.uploads());
        let refused = repository.call(Method::POST, &target).body(bytes.clone()).send().await;
        refused.assert_refused(400, "DIGEST_INVALID");

        let location = repository.begin().await;
        repository.chunk(&location, Some(0), &bytes).await.assert_status(202);
        repository.finish(&location, &wrong, b"").await.assert_refused(400, "DIGEST_INVALID");

        repository.get(&repository.blob(&wrong)).await.assert_status(404);
    }
    for digest in digests(&bytes) {
        repository.get(&repository.blob(&digest)).await.assert_status(404);
    }
}

async fn a_digest_that_is_invalid_or_unsupported_is_400(backend: Backend) {
    let repository = backend.repository().await;
    for bad in ["sha256:baddigest", "md5:d41d8cd98f00b204e9800998ecf8427e", "latest", ""] {
        let location = repository.begin().await;
        repository.finish(&location, bad, b"bytes").await.assert_refused(400, "DIGEST_INVALID");
        let target = format!("{}?digest={bad}", repository.uploads());
        repository.post(&target).await.assert_refused(400, "DIGEST_INVALID");
    }
    let target = format!("{}?digest-algorithm=md5", repository.uploads());
    repository.post(&target).await.assert_refused(400, "DIGEST_INVALID");
    let location = repository.begin().await;
    let without = repository.call(Method::PUT, &location).body("bytes").send().await;
    without.assert_refused(400, "DIGEST_INVALID");
}

async fn a_blob_that_is_there_may_be_pushed_again(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(100);
    let digest = repository.push_blob(&bytes).await;
    assert_eq!(repository.push_blob(&bytes).await, digest);
    let sibling = repository.sibling().await;
    assert_eq!(sibling.push_blob(&bytes).await, digest);
    assert_pulls(&repository, &digest, &bytes).await;
    assert_pulls(&sibling, &digest, &bytes).await;
}

async fn an_upload_is_cancelled(backend: Backend) {
    let repository = backend.repository().await;
    let location = repository.begin().await;
    repository.chunk(&location, Some(0), &unique(100)).await.assert_status(202);
    repository.delete(&location).await.assert_status(204);
    repository.get(&location).await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
    repository.delete(&location).await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
}

async fn an_upload_that_is_not_there_is_404(backend: Backend) {
    let repository = backend.repository().await;
    let sibling = repository.sibling().await;
    let elsewhere = sibling.begin().await.replace(&sibling.name, &repository.name);
    let unknown = format!("{}{}", repository.uploads(), uuid::Uuid::new_v4());
    let malformed = format!("{}not-a-session", repository.uploads());
    for location in [elsewhere, unknown, malformed] {
        repository.get(&location).await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
        repository
            .chunk(&location, Some(0), b"bytes")
            .await
            .assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
        let finished = repository.finish(&location, Digest::sha256(b"bytes"), b"bytes").await;
        finished.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
        repository.delete(&location).await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
    }
}

async fn a_chunk_that_is_not_what_it_says_is_refused_and_not_kept(backend: Backend) {
    let repository = backend.repository().await;
    let location = repository.begin().await;
    let send = |range: &'static str, body: Body| {
        let call =
            repository.call(Method::PATCH, &location).header("Content-Range", range).body(body);
        async move { call.send().await }
    };
    let streamed = || Body::wrap_stream(stream::iter([Ok::<_, std::io::Error>(vec![1; 10])]));
    send("0-20", Body::from(vec![1; 10])).await.assert_refused(400, "SIZE_INVALID");
    send("0-20", streamed()).await.assert_refused(400, "SIZE_INVALID");
    send("0-4", streamed()).await.assert_refused(400, "SIZE_INVALID");
    for malformed in ["bytes 0-9/10", "9-0", "0", "a-b"] {
        send(malformed, Body::from(vec![1; 10])).await.assert_refused(400, "BLOB_UPLOAD_INVALID");
    }
    send("0-9", streamed()).await.assert_status(202);
    repository.finish(&location, Digest::sha256(&[1; 10]), b"").await.assert_status(201);
}

async fn a_blob_is_mounted_once_the_account_lets_blobs_be_mounted(backend: Backend) {
    // The setting is the whole account's.
    let server = backend.own_server().await;
    let source = Repository::create(&server).await;
    let target = source.sibling().await;
    let digest = source.push_blob(&unique(100)).await;
    let mount = |digest: &Digest, from: Option<&str>| {
        let mut location = format!("{}?mount={digest}", target.uploads());
        if let Some(from) = from {
            location = with_parameter(&location, "from", from);
        }
        let target = &target;
        async move { target.post(&location).await }
    };
    let falls_back = async |digest: &Digest, from: Option<&str>| {
        let answer = mount(digest, from).await;
        answer.assert_status(202);
        assert!(answer.header("Location").starts_with(&target.uploads()));
    };
    falls_back(&digest, Some(&source.name)).await;

    let setting = source.ecr().put_account_setting().name("BLOB_MOUNTING").value("ENABLED");
    setting.send().await.unwrap();
    falls_back(&Digest::sha256(b"missing"), Some(&source.name)).await;
    falls_back(&digest, Some("no/such-repository")).await;
    falls_back(&digest, Some("NO NAME")).await;
    for bad in ["", "sha256:short", "no digest", "sha256%3A"] {
        let answer =
            target.post(&format!("{}?mount={bad}&from={}", target.uploads(), source.name)).await;
        answer.assert_status(202);
        assert!(answer.header("Location").starts_with(&target.uploads()), "{bad:?}");
    }
    falls_back(&Digest::sha256(b"missing"), None).await;
    target.get(&target.blob(&digest)).await.assert_status(404);

    let mounted = mount(&digest, Some(&source.name)).await;
    mounted.assert_status(201);
    assert_eq!(mounted.header("Location"), target.blob(&digest));
    assert_eq!(mounted.header("Docker-Content-Digest"), digest.as_str());
    target.get(&target.blob(&digest)).await.assert_status(200);

    source.delete(&source.blob(&digest)).await.assert_status(202);
    target.get(&target.blob(&digest)).await.assert_status(200);

    let anywhere = source.push_blob(&unique(100)).await;
    mount(&anywhere, None).await.assert_status(201);
    target.get(&target.blob(&anywhere)).await.assert_status(200);
}
