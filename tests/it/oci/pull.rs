//! "Pull" of distribution-spec 1.1: manifests and blobs, GET and HEAD, ranges and conditions.

use reqwest::Method;
use reqwest::header::HeaderMap;
use wharfage::names::Digest;

use super::client::{Answer, Backend, unique};
use super::images;

on_both_backends!(
    a_manifest_is_read_by_tag_and_by_digest_in_its_exact_bytes,
    a_manifest_that_is_not_there_is_404,
    a_blob_is_read_by_its_digest,
    a_blob_that_is_not_there_is_404,
    a_repository_that_is_not_there_is_404,
    head_has_the_headers_of_get,
    part_of_a_blob_is_read_by_its_range,
    several_ranges_are_sent_as_parts,
    ranges_that_cannot_be_sent_as_parts_get_the_whole_blob,
    an_empty_blob_is_read_by_any_range,
    what_the_client_has_is_not_sent_again,
    a_digest_that_is_none_is_400,
);

async fn a_manifest_is_read_by_tag_and_by_digest_in_its_exact_bytes(backend: Backend) {
    let repository = backend.repository().await;
    let mut manifest = images::bytes(&images::image(&repository).await);
    manifest.extend_from_slice(b" \n\n ");
    let digest = repository.put_ok("latest", &manifest).await;
    for reference in ["latest", digest.as_str()] {
        let answer = repository.get(&repository.manifest(reference)).await;
        answer.assert_status(200);
        assert_eq!(answer.body, manifest);
        assert_eq!(answer.header("Content-Type"), images::IMAGE);
        assert_eq!(answer.header("Docker-Content-Digest"), digest.as_str());
        assert_eq!(answer.header("Content-Length"), manifest.len().to_string());
        assert_eq!(answer.header("ETag"), format!("\"{digest}\""));
        assert_eq!(answer.header("Docker-Distribution-Api-Version"), "registry/2.0");
    }
}

async fn a_manifest_that_is_not_there_is_404(backend: Backend) {
    let repository = backend.repository().await;
    for reference in ["missing", ".NO-TAG", Digest::sha256(b"missing").as_str()] {
        let answer = repository.get(&repository.manifest(reference)).await;
        assert_eq!(answer.assert_refused(404, "MANIFEST_UNKNOWN"), "Requested image not found");
        repository.head(&repository.manifest(reference)).await.assert_status(404);
    }
}

async fn a_blob_is_read_by_its_digest(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(100_000);
    let digest = repository.push_blob(&bytes).await;
    let answer = repository.get(&repository.blob(&digest)).await;
    answer.assert_status(200);
    assert_eq!(answer.body, bytes);
    assert_eq!(answer.header("Docker-Content-Digest"), digest.as_str());
    assert_eq!(answer.header("Content-Length"), "100000");
}

async fn a_blob_that_is_not_there_is_404(backend: Backend) {
    let repository = backend.repository().await;
    let elsewhere = repository.sibling().await.push_blob(&unique(10)).await;
    for digest in [Digest::sha256(b"missing"), elsewhere] {
        repository.get(&repository.blob(&digest)).await.assert_refused(404, "BLOB_UNKNOWN");
        repository.head(&repository.blob(&digest)).await.assert_status(404);
    }
}

async fn a_repository_that_is_not_there_is_404(backend: Backend) {
    let mut repository = backend.repository().await;
    repository.name = "no/such-repository".to_owned();
    let digest = Digest::sha256(b"");
    let referrers = format!("/v2/{}/referrers/{digest}", repository.name);
    let tags = format!("/v2/{}/tags/list", repository.name);
    for target in [
        repository.manifest("latest"),
        repository.manifest(&digest),
        repository.blob(&digest),
        tags,
        referrers,
    ] {
        let text = repository.get(&target).await.assert_refused(404, "NAME_UNKNOWN");
        assert!(text.starts_with(
            "The repository with name 'no/such-repository' does not exist in the registry"
        ));
        repository.head(&target).await.assert_status(404);
    }
    repository.post(&repository.uploads()).await.assert_refused(404, "NAME_UNKNOWN");
    repository.put("latest", b"{}").await.assert_refused(404, "NAME_UNKNOWN");
    let whole = format!("{}?digest={digest}", repository.uploads());
    let refused = repository.call(Method::POST, &whole).body(vec![0; 1_000_000]).send().await;
    refused.assert_refused(404, "NAME_UNKNOWN");
    repository.delete(&repository.blob(&digest)).await.assert_refused(404, "NAME_UNKNOWN");
    repository.delete(&repository.manifest("latest")).await.assert_refused(404, "NAME_UNKNOWN");
}

async fn head_has_the_headers_of_get(backend: Backend) {
    fn kept(mut headers: HeaderMap) -> HeaderMap {
        for own in ["date", "x-request-id", "x-amzn-requestid"] {
            headers.remove(own);
        }
        headers
    }
    let repository = backend.repository().await;
    let (_, manifest) = images::pushed(&repository).await;
    let full = repository.push_blob(&unique(5000)).await;
    let empty = repository.push_blob(b"").await;
    for target in [repository.manifest(&manifest), repository.blob(&full), repository.blob(&empty)]
    {
        let (get, head) = (repository.get(&target).await, repository.head(&target).await);
        head.assert_status(200);
        assert!(head.body.is_empty());
        assert_eq!(kept(get.headers), kept(head.headers), "{target}");
    }
}

async fn part_of_a_blob_is_read_by_its_range(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(2048);
    let digest = repository.push_blob(&bytes).await;
    let read = |range: &'static str| {
        let call = repository.call(Method::GET, &repository.blob(&digest)).header("Range", range);
        async move { call.send().await }
    };
    for (range, expected) in [
        ("bytes=500-1499", 500..1500),
        ("bytes=500-", 500..2048),
        ("bytes=-500", 1548..2048),
        ("bytes=2000-5000", 2000..2048),
        ("bytes=0-0", 0..1),
    ] {
        let answer = read(range).await;
        answer.assert_status(206);
        assert_eq!(answer.body, &bytes[expected.clone()], "{range}");
        assert_eq!(answer.header("Content-Length"), expected.len().to_string());
        let content_range = format!("bytes {}-{}/2048", expected.start, expected.end - 1);
        assert_eq!(answer.header("Content-Range"), content_range);
    }
    for range in ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0"] {
        let answer = read(range).await;
        assert_eq!(answer.assert_status(416).header("Content-Range"), "bytes */2048", "{range}");
    }
}

/// The parts of a `multipart/byteranges` answer: what each says of itself, and its bytes.
fn parts(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let (_, boundary) =
        answer.header("Content-Type").split_once("multipart/byteranges; boundary=").unwrap();
    let delimiter = format!("\r\n--{boundary}");
    let mut parts = Vec::new();
    let mut rest = answer.body.strip_prefix(delimiter.as_bytes()).unwrap();
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let end = part
            .windows(delimiter.len())
            .position(|window| window == delimiter.as_bytes())
            .unwrap();
        let (part, following) = (&part[..end], &part[end + delimiter.len()..]);
        let head = part.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        parts.push((String::from_utf8(part[..head].to_vec()).unwrap(), part[head + 4..].to_vec()));
        rest = following;
    }
    assert_eq!(rest, b"--\r\n");
    parts
}

async fn several_ranges_are_sent_as_parts(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(300_000);
    let digest = repository.push_blob(&bytes).await;
    let size = bytes.len();
    for (range, expected) in [
        ("bytes=0-1,5-6", vec![0..2, 5..7]),
        ("bytes=250000-, 10-200009, 3-3", vec![250_000..size, 10..200_010, 3..4]),
        ("bytes=0-9,10-19,400000-", vec![0..10, 10..20]),
    ] {
        let answer = repository
            .call(Method::GET, &repository.blob(&digest))
            .header("Range", range)
            .send()
            .await;
        answer.assert_status(206);
        assert_eq!(answer.header("Content-Length"), answer.body.len().to_string(), "{range}");
        assert_eq!(answer.header("Docker-Content-Digest"), digest.as_str());
        let expected: Vec<_> = expected
            .into_iter()
            .map(|part| {
                let (first, last) = (part.start, part.end - 1);
                let type_ = "Content-Type: application/octet-stream";
                (
                    format!("{type_}\r\nContent-Range: bytes {first}-{last}/{size}"),
                    bytes[part].to_vec(),
                )
            })
            .collect();
        assert!(parts(&answer) == expected, "{range}");
    }
    let chunks: Vec<String> = (0..1_000).map(|n| format!("{}-{}", 200 * n, 200 * n + 9)).collect();
    let range = format!("bytes={}", chunks.join(","));
    let answer = repository
        .call(Method::GET, &repository.blob(&digest))
        .header("Range", &range)
        .send()
        .await;
    let parts = parts(answer.assert_status(206));
    assert_eq!(parts.len(), 1_000);
    assert!(parts.iter().zip(0..).all(|((_, part), n)| *part == bytes[200 * n..200 * n + 10]));
}

async fn ranges_that_cannot_be_sent_as_parts_get_the_whole_blob(backend: Backend) {
    let repository = backend.repository().await;
    let bytes = unique(2048);
    let digest = repository.push_blob(&bytes).await;
    for range in
        ["lines=0-1", "bytes=x", "bytes=0-1,x", "bytes=0-2047,0-2047", "bytes=0-,1-,2-,3-,4-,5-"]
    {
        let answer = repository
            .call(Method::GET, &repository.blob(&digest))
            .header("Range", range)
            .send()
            .await;
        assert_eq!(answer.assert_status(200).body, bytes, "{range}");
    }
    let nowhere = repository
        .call(Method::GET, &repository.blob(&digest))
        .header("Range", "bytes=3000-,4000-5000");
    assert_eq!(nowhere.send().await.assert_status(416).header("Content-Range"), "bytes */2048");
}

async fn an_empty_blob_is_read_by_any_range(backend: Backend) {
    let repository = backend.repository().await;
    let digest = repository.push_blob(b"").await;
    for range in ["bytes=0-", "bytes=-1", "bytes=0-0,5-"] {
        let answer = repository
            .call(Method::GET, &repository.blob(&digest))
            .header("Range", range)
            .send()
            .await;
        assert_eq!(answer.assert_status(200).body, b"", "{range}");
    }
}

async fn what_the_client_has_is_not_sent_again(backend: Backend) {
    let repository = backend.repository().await;
    let (_, manifest) = images::pushed(&repository).await;
    let blob = repository.push_blob(&unique(2048)).await;
    for (target, digest) in
        [(repository.manifest(&manifest), &manifest), (repository.blob(&blob), &blob)]
    {
        let read = |name: &'static str, value: String| {
            let call = repository.call(Method::GET, &target).header(name, &value);
            async move { call.send().await }
        };
        let same = read("If-None-Match", format!("\"{digest}\"")).await;
        same.assert_status(304);
        assert!(same.body.is_empty());
        assert_eq!(same.header("ETag"), format!("\"{digest}\""));
        read("If-None-Match", "\"other\"".to_owned()).await.assert_status(200);
        read("If-Match", format!("\"{digest}\"")).await.assert_status(200);
        read("If-Match", "\"other\"".to_owned()).await.assert_status(412);
    }
    let part = |condition: String| {
        let call =
            repository.call(Method::GET, &repository.blob(&blob)).header("Range", "bytes=0-9");
        let call = call.header("If-Range", &condition);
        async move { call.send().await }
    };
    part(format!("\"{blob}\"")).await.assert_status(206);
    part("\"other\"".to_owned()).await.assert_status(200);
}

async fn a_digest_that_is_none_is_400(backend: Backend) {
    let repository = backend.repository().await;
    let manifest = repository.manifest("sha256:totallywrong");
    repository.get(&manifest).await.assert_refused(400, "DIGEST_INVALID");
    let blob = format!("/v2/{}/blobs/sha256:totallywrong", repository.name);
    repository.get(&blob).await.assert_refused(400, "DIGEST_INVALID");
}
