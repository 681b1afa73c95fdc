//! Below the API: bytes that are no HTTP, heads that are too large, paths with tricks, and clients that take their time.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::target::{Target, code, parts};
use crate::bed::{self};

/// The number of clients that are slow at once.
const SLOW: usize = 1_000;
/// The number of bytes that each of them sends while others are answered.
const ROUNDS: usize = 5;

#[tokio::test]
async fn bytes_that_are_no_request_are_400_or_the_end() {
    let target = Target::start().await;
    let noise: Vec<u8> =
        (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for bytes in [
        noise.as_slice(),
        tls_hello,
        b"\0\0\0\0",
        b"\r\n\r\n\r\n\r\nx\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v2/\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\n\r\n",
        b"G\0T /v2/ HTTP/1.1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nA: \0\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nA b: c\r\n\r\n",
        b"GET /v2/\xff HTTP/1.1\r\nnot: ended",
        b"PUT /v2/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v2/ HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"PUT /v2/ HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"PUT /v2/ HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let answer = target.cut_off(bytes).await;
        assert!(answer.is_empty() || matches!(parts(&answer).0, 400 | 401), "{shown:?}: {answer}");
    }
    target.assert_unharmed().await;
}

#[tokio::test]
async fn a_request_of_http_1_1_has_one_host() {
    let target = Target::start().await;
    for (hosts, status) in [("", 400), ("Host: a\r\nHost: b\r\n", 400), ("Host: a\r\n", 401)] {
        let request = format!("GET /v2/ HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        assert_eq!(parts(&target.raw(request.as_bytes()).await).0, status, "{hosts:?}");
    }
    assert_eq!(parts(&target.raw(b"GET /v2/ HTTP/1.0\r\n\r\n").await).0, 401);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let target = Target::start().await;
    let large = target.head(
        "GET",
        "/v2/",
        &format!("X: {}\r\nConnection: close\r\n", "x".repeat(1_000_000)),
    );
    let many = target.head("GET", "/v2/", &("X: x\r\n".repeat(5_000) + "Connection: close\r\n"));
    for head in [large, many] {
        assert_eq!(parts(&target.raw(head.as_bytes()).await).0, 431);
    }
    let path = format!("/v2/{}/tags/list", "a/".repeat(40_000));
    let status =
        parts(&target.raw(target.head("GET", &path, "Connection: close\r\n").as_bytes()).await).0;
    assert_eq!(status, 414);
    let path = format!("/v2/{}/tags/list", "a/".repeat(20_000));
    let answer = target.raw(target.head("GET", &path, "Connection: close\r\n").as_bytes()).await;
    let (status, body) = parts(&answer);
    assert_eq!((status, code(body).as_str()), (400, "NAME_INVALID"));
    assert!(body.len() < 2_000, "the error does not give it all back: {}", body.len());
    target.assert_unharmed().await;
}

#[tokio::test]
async fn a_path_with_tricks_names_nothing() {
    for launch in [bed::wharfage(), bed::wharfage().on_postgres_and_s3().await] {
        let target = Target::of(launch).await;
        let name = &target.repository.name;
        for (path, status, expected) in [
            ("/v2/../../etc/passwd".to_owned(), 404, "UNSUPPORTED"),
            ("/v2/..".to_owned(), 404, "UNSUPPORTED"),
            ("/v2/../manifests/latest".to_owned(), 400, "NAME_INVALID"),
            ("/v2/%2e%2e/manifests/latest".to_owned(), 400, "NAME_INVALID"),
            ("/v2/%252e%252e/manifests/latest".to_owned(), 400, "NAME_INVALID"),
            ("/v2/a%2F..%2F..%2Fb/manifests/latest".to_owned(), 400, "NAME_INVALID"),
            ("/v2/a/../b/manifests/latest".to_owned(), 400, "NAME_INVALID"),
            ("/v2//manifests/latest".to_owned(), 400, "NAME_INVALID"),
            ("/v2/%zz/manifests/latest".to_owned(), 400, "NAME_INVALID"),
            ("/v2/%ff/manifests/latest".to_owned(), 404, "UNSUPPORTED"),
            ("/v2/a%5C..%5Cb/tags/list".to_owned(), 400, "NAME_INVALID"),
            (format!("/v2/{name}%00/manifests/latest"), 400, "NAME_INVALID"),
            (format!("/v2/{name}/manifests/%00"), 404, "MANIFEST_UNKNOWN"),
            (format!("/v2/{name}/manifests/.."), 404, "MANIFEST_UNKNOWN"),
            (format!("/v2/{name}/manifests/%2e%2e%2f%2e%2e%2fmetadata.sqlite"), 404, "UNSUPPORTED"),
            (format!("/v2/{name}/manifests/sha256:%2e%2e"), 400, "DIGEST_INVALID"),
            (format!("/v2/{name}/blobs/sha256:..%2F..%2Fmetadata.sqlite"), 404, "UNSUPPORTED"),
            (format!("/v2/{name}/blobs/sha256:%00"), 400, "DIGEST_INVALID"),
            (format!("/v2/{name}/blobs/.."), 400, "DIGEST_INVALID"),
            (format!("/v2/{name}/blobs/uploads/.."), 404, "BLOB_UPLOAD_UNKNOWN"),
            (format!("/v2/{name}/blobs/uploads/%00"), 404, "BLOB_UPLOAD_UNKNOWN"),
            (format!("/v2/{name}/referrers/..%2Fx"), 404, "UNSUPPORTED"),
            (format!("/v2/{name}/tags/list?n=-1"), 405, "UNSUPPORTED"),
            (format!("/v2/{name}/tags/list?n=1;DROP"), 405, "UNSUPPORTED"),
            (format!("/v2/{name}/tags/list?last=%ff"), 405, "UNSUPPORTED"),
        ] {
            let answer =
                target.raw(target.head("GET", &path, "Connection: close\r\n").as_bytes()).await;
            let (found, body) = parts(&answer);
            assert_eq!((found, code(body).as_str()), (status, expected), "{path}: {body}");
        }
        // These are odd, and well answered.
        let referrers = format!("/v2/{name}/referrers/{}", wharfage::names::Digest::sha256(b""));
        for path in [
            format!("/v2/{name}/tags/list?last=%00'--"),
            format!("/v2/{name}/tags/list?n=99999999999999999999999"),
            "/v2/_catalog?last=%00".to_owned(),
            format!("{referrers}?artifactType=%00"),
            format!("{referrers}?last=%00"),
        ] {
            target.repository.get(&path).await.assert_status(200);
        }
        for path in ["//v2/", "/v1/_ping", "/%76%32/", "/v2x/"] {
            let answer =
                target.raw(target.head("GET", path, "Connection: close\r\n").as_bytes()).await;
            assert_eq!(parts(&answer).0, 404, "{path}");
        }
        target.assert_unharmed().await;
    }
}

#[tokio::test]
async fn a_thousand_slow_clients_do_not_keep_others_waiting() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let target = Target::start().await;
    let head = target.head("GET", "/v2/", "Connection: close\r\n");
    let mut slow = Vec::with_capacity(SLOW);
    for number in 0..SLOW {
        let mut stream = TcpStream::connect(target.server.authority()).await.unwrap();
        // Each one has come another way into its head, and none near its end.
        let at = number % (head.len() - 2 * ROUNDS);
        stream.write_all(&head.as_bytes()[..at]).await.unwrap();
        slow.push((stream, at));
    }
    // And these into their bodies.
    let location = target.repository.begin().await;
    let mut bodies = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(target.server.authority()).await.unwrap();
        let path = target.repository.uploads()
            + "?digest="
            + wharfage::names::Digest::sha256(b"").as_str();
        stream
            .write_all(target.head("POST", &path, "Content-Length: 100\r\n").as_bytes())
            .await
            .unwrap();
        stream.write_all(b"x").await.unwrap();
        bodies.push(stream);
    }
    // One more byte of each between any two of these calls; all of them come through.
    for round in 0..ROUNDS {
        for (stream, at) in &mut slow {
            // One whose time is up finds its connection closed.
            let _ = stream.write_all(&head.as_bytes()[*at..=*at]).await;
            *at += 1;
        }
        target.repository.get("/v2/").await.assert_status(200);
        target.repository.push_blob(format!("round {round}").as_bytes()).await;
    }
    target.repository.get(&location).await.assert_status(204);
    // A slow client is answered too, when it has said what it wants.
    let mut patient = TcpStream::connect(target.server.authority()).await.unwrap();
    for byte in head.as_bytes() {
        patient.write_all(&[*byte]).await.unwrap();
    }
    let mut answer = String::new();
    patient.read_to_string(&mut answer).await.unwrap();
    assert_eq!(parts(&answer).0, 200);
    drop((slow, bodies));
    target.assert_unharmed().await;
}
