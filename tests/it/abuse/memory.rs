//! Bodies that would take all memory, in both directions.

use aws_sdk_ecr::primitives::Blob;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use wharfage::names::Digest;

use super::siege::{MIB, Siege, deaf, large_manifest};
use crate::bad_input::target::{ApiCall, parts};
use crate::bed::{self};
use crate::oci::client::{unique, with_parameter};
use crate::oci::images;

/// A call of the API as it goes over the wire, without its body.
fn head(call: &ApiCall, authority: &str, length: usize) -> String {
    let headers: String = call.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("POST / HTTP/1.1\r\nHost: {authority}\r\n{headers}Content-Length: {length}\r\n\r\n")
}

#[tokio::test]
async fn batches_that_nobody_reads_take_no_more_than_their_share() {
    const NAME: &str = "64 batches of images that are not read";
    let siege = Siege::start(bed::wharfage()).await;
    let mut ids = Vec::new();
    for _ in 0..7 {
        let manifest = large_manifest(siege.repository()).await;
        let digest = siege.repository().put_ok(Digest::sha256(&manifest), &manifest).await;
        ids.push(serde_json::json!({"imageDigest": digest}));
    }
    let body = serde_json::json!({"repositoryName": siege.repository().name, "imageIds": ids}).to_string();
    let authority = siege.target.server.authority();
    let call = siege.target.api("BatchGetImage", body.as_str()).signed(authority);
    let request = head(&call, authority, body.len()) + &body;
    let others = siege.others();
    let mut deaf_ones = Vec::new();
    for _ in 0..64 {
        let mut stream = deaf(&siege).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        deaf_ones.push(stream);
    }
    siege.wait_for_sum("wharfage_http_requests_total{operation=\"BatchGetImage\"", 64.0).await;
    let answered =
        |status: u16| format!("wharfage_http_requests_total{{operation=\"BatchGetImage\",status=\"{status}\"");
    assert!(siege.sum(&answered(200)).await >= 1.0);
    assert!(siege.sum(&answered(400)).await >= 1.0);
    assert!(siege.sum("wharfage_body_memory_refusals_total{").await >= 1.0);
    assert!(siege.held().await <= siege.sum("wharfage_body_memory_limit_bytes{").await);
    let mut refused = 0;
    for stream in &mut deaf_ones {
        let mut begin = [0; 12];
        if stream.read_exact(&mut begin).await.is_err() {
            // It took nothing for too long.
            continue;
        }
        if begin == *b"HTTP/1.1 400" {
            let mut rest = [0; 1024];
            let read = stream.read(&mut rest).await.unwrap();
            let rest = String::from_utf8_lossy(&rest[..read]).into_owned();
            assert!(rest.contains("ThrottlingException") && rest.contains("Retry-After"), "{rest}");
            refused += 1;
        }
    }
    assert!(refused > 0);
    drop(deaf_ones);
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn manifests_that_are_half_sent_or_not_read_take_no_more_than_their_share() {
    const NAME: &str = "256 manifests of 4 MiB that are not read, then half sent";
    let siege = Siege::start(bed::wharfage()).await;
    let manifest = large_manifest(siege.repository()).await;
    siege.repository().put_ok("large", &manifest).await;
    let get = siege.target.head("GET", &siege.repository().manifest("large"), "");
    let others = siege.others();
    let mut deaf_ones = Vec::new();
    for _ in 0..256 {
        let mut stream = deaf(&siege).await;
        stream.write_all(get.as_bytes()).await.unwrap();
        deaf_ones.push(stream);
    }
    siege.wait_for_sum("wharfage_http_requests_total{operation=\"GET manifest\",status=\"503\"", 1.0).await;
    let mut refusals = 0;
    for stream in &mut deaf_ones {
        let mut begin = [0; 12];
        if stream.read_exact(&mut begin).await.is_err() {
            // It took nothing for too long.
            continue;
        }
        assert!(begin == *b"HTTP/1.1 200" || begin == *b"HTTP/1.1 503", "{begin:?}");
        refusals += usize::from(begin == *b"HTTP/1.1 503");
    }
    assert!(refusals < 256, "{refusals}");
    drop(deaf_ones);

    let headers = format!("Content-Type: {}\r\nContent-Length: {}\r\n", images::IMAGE, 4 * MIB);
    let put = siege.target.head("PUT", &siege.repository().manifest("half"), &headers);
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..256 {
        let (address, put) = (siege.target.server.authority().to_owned(), put.clone());
        senders.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(put.as_bytes()).await.unwrap();
            // Where there is no memory for more, it is not taken; who is refused may find the connection closed.
            let _ = stream.write_all(&vec![b' '; 4 * MIB as usize - 1]).await;
            stream
        });
    }
    siege.wait_for_sum("wharfage_http_requests_total{operation=\"PUT manifest\",status=\"503\"", 1.0).await;
    // A small one is taken all the same.
    siege.repository().put_ok("other", images::image(siege.repository()).await.to_string().as_bytes()).await;
    senders.shutdown().await;
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn unsigned_bodies_hold_nothing_back_from_signed_ones() {
    const NAME: &str = "unsigned parts of layers, of one byte and of 31 MiB";
    let siege = Siege::start(bed::wharfage()).await;
    let authority = siege.target.server.authority();
    let others = siege.others();
    let unsigned = siege.target.api("UploadLayerPart", "{").signed(authority).bent("authorization", |value| {
        let (before, _) = value.split_once("Signature=").unwrap();
        format!("{before}Signature={}", "0".repeat(64))
    });
    let head = head(&unsigned, authority, 32 * MIB as usize);
    let mut senders = tokio::task::JoinSet::new();
    for number in 0..32 {
        let (address, head) = (authority.to_owned(), head.clone());
        let sent = if number < 24 { 1 } else { 31 * MIB as usize };
        senders.spawn(async move {
            // From elsewhere: what has signed from here is known.
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let _ = stream.write_all(&vec![b' '; sent]).await;
            std::future::pending::<()>().await;
            drop(stream);
        });
    }
    siege.wait_for_sum("wharfage_body_memory_refusals_total{share=\"unverified\"", 1.0).await;
    let (ecr, name) = (siege.repository().ecr(), &siege.repository().name);
    let part = unique(5 * MIB as usize);
    let upload = ecr.initiate_layer_upload().repository_name(name).send().await.unwrap();
    let sent = ecr.upload_layer_part().repository_name(name).upload_id(upload.upload_id().unwrap());
    let sent = sent.part_first_byte(0).part_last_byte(part.len() as i64 - 1).layer_part_blob(Blob::new(part));
    assert_eq!(sent.send().await.unwrap().last_byte_received(), Some(5 * MIB as i64 - 1));
    senders.shutdown().await;
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn slow_pushes_to_s3_do_not_hold_up_fast_ones() {
    const NAME: &str = "48 pushes to S3 that stop half-way";
    let siege = Siege::start(bed::wharfage().on_postgres_and_s3().await).await;
    let others = siege.others();
    let received = siege.sum("wharfage_received_bytes_total").await;
    let mut slow = Vec::new();
    for _ in 0..48 {
        let location = siege.repository().begin().await;
        let target = with_parameter(&location, "digest", Digest::sha256(b"never"));
        let mut stream = TcpStream::connect(siege.target.server.authority()).await.unwrap();
        let head = siege.target.head("PUT", &target, &format!("Content-Length: {}\r\n", 64 * MIB));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![0; 400 * 1024]).await.unwrap();
        slow.push(stream);
    }
    siege.wait_for_sum("wharfage_received_bytes_total", received + 48.0 * 400.0 * 1024.0).await;
    for _ in 0..3 {
        siege.repository().push_blob(&unique(20 * MIB as usize)).await;
    }
    drop(slow);
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn pulls_that_nobody_reads_take_little_each() {
    const NAME: &str = "1,000 pulls of a layer that are not read";
    let siege = Siege::start(bed::wharfage()).await;
    let digest = siege.repository().push_blob(&unique(24 * MIB as usize)).await;
    let get = siege.target.head("GET", &siege.repository().blob(&digest), "");
    let others = siege.others();
    let mut deaf_ones = Vec::new();
    for _ in 0..1_000 {
        let mut stream = deaf(&siege).await;
        stream.write_all(get.as_bytes()).await.unwrap();
        deaf_ones.push(stream);
    }
    for stream in &mut deaf_ones {
        let mut begin = [0; 12];
        // One that took nothing for too long is cut off.
        if stream.read_exact(&mut begin).await.is_ok() {
            assert_eq!(begin, *b"HTTP/1.1 200");
        }
    }
    drop(deaf_ones);
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn who_is_too_slow_is_cut_off() {
    let siege = Siege::start(bed::wharfage()).await;
    let location = siege.repository().begin().await;
    let authority = siege.target.server.authority();
    let put = siege.target.head("PUT", &siege.repository().manifest("slow"), "Content-Length: 1000\r\n");
    let patch = siege.target.head("PATCH", &location, "Content-Length: 1000\r\n");
    let (mut head, mut manifest, mut chunk) = (
        TcpStream::connect(authority).await.unwrap(),
        TcpStream::connect(authority).await.unwrap(),
        TcpStream::connect(authority).await.unwrap(),
    );
    head.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    manifest.write_all(format!("{put}{{").as_bytes()).await.unwrap();
    chunk.write_all(format!("{patch}xy").as_bytes()).await.unwrap();
    let mut answer = String::new();
    head.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "");
    for stream in [&mut manifest, &mut chunk] {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(parts(&answer).0, 408, "{answer}");
    }
    // What came of the chunk is kept.
    assert_eq!(siege.repository().get(&location).await.header("Range"), "0-1");
    assert!(siege.sum("wharfage_connections_ended_total{reason=\"no_request\"").await >= 1.0);
}
