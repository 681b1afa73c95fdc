//! Bodies that would take all memory, in both directions.

use aws_sdk_ecr::primitives::Blob;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wharfage::names::Digest;

use super::siege::{MIB, Siege, deaf_ones, from_elsewhere, large_manifest};
use crate::bad_input::target::{ApiCall, parts};
use crate::bed::{self};
use crate::oci::client::{unique, with_parameter};
use crate::oci::images;

/// A call of the API as sent over the wire, without its body.
fn head(call: &ApiCall, authority: &str, length: usize) -> String {
    let headers: String =
        call.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
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
    let body =
        serde_json::json!({"repositoryName": siege.repository().name, "imageIds": ids}).to_string();
    let authority = siege.target.server.authority();
    let call = siege.target.api("BatchGetImage", body.as_str()).signed(authority);
    let request = head(&call, authority, body.len()) + &body;
    let others = siege.others();
    let mut clients = deaf_ones(&siege, 64, &request).await;
    siege.wait_for_sum("wharfage_http_requests_total{operation=\"BatchGetImage\"", 64.0).await;
    let answered = |status: u16| {
        format!("wharfage_http_requests_total{{operation=\"BatchGetImage\",status=\"{status}\"")
    };
    assert!(siege.sum(&answered(200)).await >= 1.0);
    assert!(siege.sum(&answered(400)).await >= 1.0);
    assert!(siege.sum("wharfage_body_memory_refusals_total{").await >= 1.0);
    assert!(siege.held().await <= siege.sum("wharfage_body_memory_limit_bytes{").await);
    let mut refused = 0;
    for (stream, begin) in &mut clients {
        if *begin == *b"HTTP/1.1 400" {
            let mut rest = [0; 1024];
            let read = stream.read(&mut rest).await.unwrap();
            let rest = String::from_utf8_lossy(&rest[..read]).into_owned();
            assert!(rest.contains("ThrottlingException") && rest.contains("Retry-After"), "{rest}");
            refused += 1;
        } else {
            assert_eq!(*begin, *b"HTTP/1.1 200");
        }
    }
    assert!(refused > 0);
    drop(clients);
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
    let clients = deaf_ones(&siege, 256, &get).await;
    let begun = |status: &[u8; 12]| clients.iter().filter(|(_, begin)| begin == status).count();
    let (served, refused) = (begun(b"HTTP/1.1 200"), begun(b"HTTP/1.1 503"));
    assert_eq!(served + refused, 256);
    assert!(served > 0 && refused > 0, "{served} of 256 were served");
    drop(clients);

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
    siege
        .wait_for_sum("wharfage_http_requests_total{operation=\"PUT manifest\",status=\"503\"", 1.0)
        .await;
    // A small one is taken all the same.
    siege
        .repository()
        .put_ok("other", images::image(siege.repository()).await.to_string().as_bytes())
        .await;
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
    let unsigned =
        siege.target.api("UploadLayerPart", "{").signed(authority).bent("authorization", |value| {
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
            let mut stream = from_elsewhere(&address, [127, 0, 0, 2]).await;
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
    let sent = sent
        .part_first_byte(0)
        .part_last_byte(part.len() as i64 - 1)
        .layer_part_blob(Blob::new(part));
    assert_eq!(sent.send().await.unwrap().last_byte_received(), Some(5 * MIB as i64 - 1));
    // Nor from a client that is not known yet and comes from another address.
    let body = "{}".to_owned() + &" ".repeat(MIB as usize);
    let first = siege
        .target
        .api("DescribeRegistry", body.as_str())
        .header("connection", "close")
        .signed(authority);
    let mut stream = from_elsewhere(authority, [127, 0, 0, 3]).await;
    stream.write_all((self::head(&first, authority, body.len()) + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(parts(&answer).0, 200, "{answer}");
    senders.shutdown().await;
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn one_caller_leaves_memory_to_another() {
    const NAME: &str = "256 half-sent manifests from one address";
    let siege = Siege::start(bed::wharfage()).await;
    let manifest = large_manifest(siege.repository()).await;
    let headers = format!("Content-Type: {}\r\nContent-Length: {}\r\n", images::IMAGE, 4 * MIB);
    let put = siege.target.head("PUT", &siege.repository().manifest("half"), &headers);
    let others = siege.others();
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..256 {
        let (address, put) = (siege.target.server.authority().to_owned(), put.clone());
        senders.spawn(async move {
            let mut stream = from_elsewhere(&address, [127, 0, 0, 2]).await;
            stream.write_all(put.as_bytes()).await.unwrap();
            let _ = stream.write_all(&vec![b' '; 4 * MIB as usize - 1]).await;
            stream
        });
    }
    siege
        .wait_for_sum("wharfage_http_requests_total{operation=\"PUT manifest\",status=\"503\"", 1.0)
        .await;
    // A large one: it needs more than the memory that is free for everybody.
    siege.repository().put_ok("large", &manifest).await;
    siege.repository().get(&siege.repository().manifest("large")).await.assert_status(200);
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
    let clients = deaf_ones(&siege, 1_000, &get).await;
    assert!(clients.iter().all(|(_, begin)| begin == b"HTTP/1.1 200"));
    drop(clients);
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn pulls_through_s3_that_nobody_reads_have_a_share_too() {
    const NAME: &str = "300 pulls through S3 that are not read";
    let siege = Siege::start(bed::wharfage().on_postgres_and_s3().await).await;
    let digest = siege.repository().push_blob(&unique(24 * MIB as usize)).await;
    let get = siege.target.head("GET", &siege.repository().blob(&digest), "");
    let others = siege.others();
    let clients = deaf_ones(&siege, 300, &get).await;
    let begun = |status: &[u8; 12]| clients.iter().filter(|(_, begin)| begin == status).count();
    let (served, refused) = (begun(b"HTTP/1.1 200"), begun(b"HTTP/1.1 503"));
    assert_eq!(served + refused, 300);
    assert!(served > 0 && refused > 0, "{served} of 300 were served");
    drop(clients);
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn who_is_too_slow_is_cut_off() {
    let siege = Siege::start(bed::wharfage()).await;
    let location = siege.repository().begin().await;
    let authority = siege.target.server.authority();
    let put =
        siege.target.head("PUT", &siege.repository().manifest("slow"), "Content-Length: 1000\r\n");
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
    // The received part of the chunk is kept.
    assert_eq!(siege.repository().get(&location).await.header("Range"), "0-1");
    assert!(siege.sum("wharfage_connections_ended_total{reason=\"no_request\"").await >= 1.0);
}
