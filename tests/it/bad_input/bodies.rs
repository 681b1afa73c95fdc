//! Bodies that are too long, shorter than they say, not what their digest says, or out of their range.

use futures::stream;
use reqwest::{Body, Method};
use wharfage::names::Digest;

use super::target::{Target, assert_named, code, parts};
use crate::oci::client::{unique, with_parameter};
use crate::oci::images;

const MIB: usize = 1024 * 1024;

/// A body that does not say how long it is.
fn chunked(bytes: Vec<u8>) -> Body {
    let pieces: Vec<_> =
        bytes.chunks(64 * 1024).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    Body::wrap_stream(stream::iter(pieces))
}

#[tokio::test]
async fn an_api_body_beyond_its_limit_is_refused_whether_announced_or_not() {
    let target = Target::start().await;
    let body = format!("{{\"repositoryName\":\"a/b\",\"x\":\"{}\"}}", "x".repeat(5 * MIB));
    for announced in [true, false] {
        let call = target.api("CreateRepository", body.as_str()).signed(target.server.authority());
        let request = target.repository.anonymous(Method::POST, "/");
        let request =
            call.headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        let bytes = body.clone().into_bytes();
        let request = if announced { request.body(bytes) } else { request.body(chunked(bytes)) };
        assert_named(&request.send().await, 413, "RequestEntityTooLargeException");
    }
    let small = target.call("Nope", vec![b' '; 300_000]).await;
    assert_named(&small, 413, "RequestEntityTooLargeException");
    target.assert_unharmed().await;
}

#[tokio::test]
async fn a_manifest_beyond_its_limit_is_refused_whether_announced_or_not() {
    let target = Target::start().await;
    let repository = &target.repository;
    let mut manifest = images::image(repository).await.to_string().into_bytes();
    manifest.resize(4 * MIB + 1, b' ');
    for announced in [true, false] {
        let call = repository
            .call(Method::PUT, &repository.manifest("big"))
            .header("Content-Type", images::IMAGE);
        let call = if announced {
            call.body(manifest.clone())
        } else {
            call.body(chunked(manifest.clone()))
        };
        call.send().await.assert_refused(413, "MANIFEST_INVALID");
    }
    target.assert_unharmed().await;
    manifest.pop();
    repository.put_ok("largest", &manifest).await;
}

#[tokio::test]
async fn a_length_that_no_blob_may_have_is_refused_before_a_byte_is_sent() {
    let target = Target::start().await;
    let location = target.repository.begin().await;
    let digest = Digest::sha256(b"x");
    for (method, path) in [
        ("PATCH", location.clone()),
        ("PUT", with_parameter(&location, "digest", &digest)),
        ("POST", with_parameter(&target.repository.uploads(), "digest", &digest)),
    ] {
        let headers =
            "Expect: 100-continue\r\nContent-Length: 1000000000000000\r\nConnection: close\r\n";
        let answer = target.raw(target.head(method, &path, headers).as_bytes()).await;
        let (status, body) = parts(&answer);
        assert_eq!((status, code(body).as_str()), (413, "SIZE_INVALID"), "{method}: {answer}");
    }
    target.assert_unharmed().await;
}

#[tokio::test]
async fn content_without_its_digest_is_not_stored() {
    let target = Target::start().await;
    let repository = &target.repository;
    let (bytes, other) = (unique(5_000), Digest::sha256(b"other"));
    let location = repository.begin().await;
    repository.finish(&location, &other, &bytes).await.assert_refused(400, "DIGEST_INVALID");
    let whole = with_parameter(&repository.uploads(), "digest", &other);
    repository
        .call(Method::POST, &whole)
        .body(bytes.clone())
        .send()
        .await
        .assert_refused(400, "DIGEST_INVALID");
    for digest in [&other, &Digest::sha256(&bytes)] {
        repository.head(&repository.blob(digest)).await.assert_status(404);
    }
    let manifest = images::image(repository).await.to_string();
    repository.put(&other, manifest.as_bytes()).await.assert_refused(400, "DIGEST_INVALID");
    target.assert_unharmed().await;
}

#[tokio::test]
async fn a_chunk_out_of_its_range_is_refused_and_the_upload_goes_on() {
    let target = Target::start().await;
    let repository = &target.repository;
    let location = repository.begin().await;
    repository.chunk(&location, Some(0), b"01234").await.assert_status(202);
    for (range, status, code) in [
        ("0-4", 416, "BLOB_UPLOAD_INVALID"),
        ("6-10", 416, "BLOB_UPLOAD_INVALID"),
        ("18446744073709551611-18446744073709551615", 416, "BLOB_UPLOAD_INVALID"),
        ("5-8", 400, "SIZE_INVALID"),
        ("5-10", 400, "SIZE_INVALID"),
        ("0-18446744073709551615", 400, "BLOB_UPLOAD_INVALID"),
        ("9-5", 400, "BLOB_UPLOAD_INVALID"),
        ("bytes 5-9/10", 400, "BLOB_UPLOAD_INVALID"),
        ("-5", 400, "BLOB_UPLOAD_INVALID"),
        ("5-", 400, "BLOB_UPLOAD_INVALID"),
        ("+5-9", 400, "BLOB_UPLOAD_INVALID"),
        ("5-9-9", 400, "BLOB_UPLOAD_INVALID"),
        ("", 400, "BLOB_UPLOAD_INVALID"),
    ] {
        let call =
            repository.call(Method::PATCH, &location).header("Content-Range", range).body("56789");
        let answer = call.send().await;
        let found = (
            answer.status.as_u16(),
            answer.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned(),
        );
        assert_eq!(found, (status, code.to_owned()), "{range:?}: {}", answer.json());
        assert_eq!(repository.get(&location).await.header("Range"), "0-4", "{range:?}");
    }
    repository.finish(&location, Digest::sha256(b"0123456789"), b"56789").await.assert_status(201);
    target.assert_unharmed().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing_to_be_seen() {
    let target = Target::start().await;
    let repository = &target.repository;
    let manifest = images::image(repository).await.to_string();
    let bytes = unique(1_000);
    let digest = Digest::sha256(&bytes);
    let location = repository.begin().await;
    let put = with_parameter(&location, "digest", &digest);
    let post = with_parameter(&repository.uploads(), "digest", &digest);
    let half = |all: &[u8]| all[..all.len() / 2].to_vec();
    let length = |all: &[u8]| format!("Content-Length: {}\r\n", all.len());
    let chunk = |all: &[u8]| [format!("{:x}\r\n", all.len()).as_bytes(), all, b"\r\n"].concat();
    let typed = format!("Content-Type: {}\r\n", images::IMAGE);
    let by_tag = repository.manifest("broken");
    let chunks = "Transfer-Encoding: chunked\r\n";
    let call = target
        .api("CreateRepository", "{\"repositoryName\":\"a/b\"}")
        .signed(target.server.authority());
    let signed: String =
        call.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let api = format!("POST / HTTP/1.1\r\nHost: {}\r\n{signed}", target.server.authority());
    for (what, head, body) in [
        (
            "manifest",
            target.head("PUT", &by_tag, &(typed.clone() + &length(manifest.as_bytes()))),
            half(manifest.as_bytes()),
        ),
        // All of it is there but for the last chunk, which would say so.
        (
            "chunked manifest",
            target.head("PUT", &by_tag, &(typed + chunks)),
            chunk(manifest.as_bytes()),
        ),
        ("whole blob", target.head("POST", &post, &length(&bytes)), half(&bytes)),
        ("chunked blob", target.head("POST", &post, chunks), chunk(&bytes)),
        ("last chunk", target.head("PUT", &put, chunks), chunk(&bytes)),
        ("API call", format!("{api}{}\r\n", length(&call.body)), half(&call.body)),
        ("chunked API call", format!("{api}{chunks}\r\n"), chunk(&call.body)),
        ("no body at all", target.head("PUT", &by_tag, "Content-Length: 10\r\n"), Vec::new()),
        ("chunk that is no chunk", target.head("PUT", &by_tag, chunks), b"zz\r\nxx\r\n".to_vec()),
        (
            "chunk of a length beyond all",
            target.head("PUT", &by_tag, chunks),
            b"fffffffffffffffff\r\nx".to_vec(),
        ),
    ] {
        let answer = target.cut_off(&[head.as_bytes(), &body].concat()).await;
        assert!(answer.is_empty() || matches!(parts(&answer).0, 400..=499), "{what}: {answer}");
        repository.head(&repository.blob(&digest)).await.assert_status(404);
        target.assert_unharmed().await;
    }
}
