//! Tests of what HTTP/2 makes possible: many requests on one connection, and taking them back.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::siege::{MIB, Siege, from_elsewhere};
use crate::bad_input::target::parts;
use crate::bed::tls::Certificate;
use crate::bed::{self};
use crate::oci::images;

async fn start() -> (Siege, Arc<Certificate>) {
    let certificate = Arc::new(Certificate::new());
    (Siege::start(bed::wharfage().tls(&certificate)).await, certificate)
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// A header that is added to no table (RFC 7541 §6.2.2), its name a number of the static table.
fn literal(name: u8, value: &str) -> Vec<u8> {
    assert!(name < 15);
    let mut bytes = vec![name];
    match value.len() {
        short @ 0..127 => bytes.push(short as u8),
        long => {
            bytes.push(127);
            let mut rest = long - 127;
            while rest >= 128 {
                bytes.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
    }
    bytes.extend(value.as_bytes());
    bytes
}

/// The head of a push of a manifest whose body is still to come, as HPACK has it.
fn push_head(siege: &Siege) -> Vec<u8> {
    let mut block = literal(2, "PUT");
    block.push(0x87);
    block.extend(literal(4, &siege.repository().manifest("never")));
    block.extend(literal(1, "localhost"));
    // `authorization` is number 23 of the table: beyond what the prefix holds.
    block.extend([15, 23 - 15]);
    block.extend(&literal(0, &siege.repository().authorization())[1..]);
    block
}

/// A connection that has said hello.
async fn connect(siege: &Siege, certificate: &Certificate) -> TlsStream<TcpStream> {
    let mut stream = certificate.connect(siege.target.server.tls_authority(), &["h2"]).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// The next frame's kind, or `None` when the connection has ended.
async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Option<u8> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(head[3])
}

#[tokio::test]
async fn a_connection_that_takes_all_its_requests_back_is_ended() {
    const NAME: &str = "requests that are taken back when they have begun";
    const MOST: u32 = 1_000;
    let (siege, certificate) = start().await;
    let others = siege.others();
    let block = push_head(&siege);
    let mut stream = connect(&siege, &certificate).await;
    let mut sent = 0;
    'connection: for number in 0..MOST {
        // The answer to the ping says that the request before it was seen.
        let begun =
            [frame(HEADERS, END_HEADERS, 2 * number + 1, &block), frame(PING, 0, 0, &[0; 8])]
                .concat();
        if stream.write_all(&begun).await.is_err() {
            break;
        }
        loop {
            match next(&mut stream).await {
                Some(PING) => break,
                Some(_) => {}
                None => break 'connection,
            }
        }
        if stream.write_all(&frame(RST_STREAM, 0, 2 * number + 1, &CANCEL)).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!((100..MOST).contains(&sent), "{sent} requests were taken back");
    siege.wait_for_sum("wharfage_connections_ended_total{reason=\"idling\"", 1.0).await;
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

/// The bytes of a flood that are sent as the request of this number.
type Piece<'a> = Box<dyn Fn(u32) -> Vec<u8> + 'a>;

#[tokio::test]
async fn a_connection_that_sends_what_asks_for_nothing_is_ended() {
    const NAME: &str = "floods of frames that ask for nothing";
    /// More than the buffers on the way hold together with the allowed bytes.
    const MOST: usize = 64 * MIB as usize;
    let (siege, certificate) = start().await;
    let others = siege.others();
    let block = push_head(&siege);
    let head = |number: u32| frame(HEADERS, END_HEADERS, number, &block);
    let reset = |number: u32| [head(number), frame(RST_STREAM, 0, number, &CANCEL)].concat();
    let floods: [(&str, Vec<u8>, Piece<'_>); 5] = [
        ("pings", Vec::new(), Box::new(|_| frame(PING, 0, 0, &[0; 8]))),
        ("pings beside a request", head(1), Box::new(|_| frame(PING, 0, 0, &[0; 8]))),
        ("settings", Vec::new(), Box::new(|_| frame(SETTINGS, 0, 0, &[]))),
        (
            "continuations",
            frame(HEADERS, 0, 1, &block),
            Box::new(|_| frame(CONTINUATION, 0, 1, &[])),
        ),
        ("resets at once", Vec::new(), Box::new(move |number| reset(2 * number + 1))),
    ];
    for (flood, first, more) in floods {
        let mut stream = connect(&siege, &certificate).await;
        stream.write_all(&first).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        // The responses have to be read, or the flood would stop by itself.
        let reading = tokio::spawn(async move { while next(&mut read).await.is_some() {} });
        let (mut sent, mut number) = (0, 0);
        while sent < MOST {
            let mut piece = Vec::new();
            while piece.len() < 16 * 1024 {
                piece.extend(more(number));
                number += 1;
            }
            if write.write_all(&piece).await.is_err() {
                break;
            }
            sent += piece.len();
        }
        assert!(sent < MOST, "{flood}: {sent} bytes were taken");
        reading.await.unwrap();
    }
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn a_peer_with_many_streams_leaves_requests_to_others() {
    let certificate = Arc::new(Certificate::new());
    let siege =
        Siege::start(bed::wharfage().tls(&certificate).arg("--max-connections").arg("16")).await;
    let authority = siege.target.server.tls_authority();
    let target = format!("https://{authority}{}", siege.repository().manifest("half"));
    let mut client = certificate.connect_http2(authority).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        let request =
            Request::put(&target).header("authorization", siege.repository().authorization());
        let request = request.header("content-length", 4 * MIB).body(()).unwrap();
        client = client.ready().await.unwrap();
        streams.push(client.send_request(request, false).unwrap());
    }
    // Twelve are the share of one address; the others are asked to come back.
    siege
        .wait_for_sum("wharfage_http_requests_total{operation=\"other\",status=\"503\"", 52.0)
        .await;
    let elsewhere = from_elsewhere(authority, [127, 0, 0, 2]).await;
    let mut stream = certificate.over(elsewhere, &["http/1.1"]).await;
    let head = siege.target.head("GET", "/v2/", "Connection: close\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(parts(&answer).0, 200, "{answer}");
    // One was the image that others pull.
    assert_eq!(
        siege.sum("wharfage_http_requests_total{operation=\"PUT manifest\"").await,
        1.0,
        "twelve run on"
    );
}

#[tokio::test]
async fn manifests_on_many_streams_take_no_more_than_their_share() {
    const NAME: &str = "16 connections with 64 half-sent manifests each";
    let (siege, certificate) = start().await;
    let others = siege.others();
    let authority = siege.target.server.tls_authority();
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let mut client = certificate.connect_http2(authority).await;
        let target = format!("https://{authority}{}", siege.repository().manifest("half"));
        let token = siege.repository().authorization();
        connections.spawn(async move {
            let mut streams = tokio::task::JoinSet::new();
            for _ in 0..64 {
                let request = Request::put(&target)
                    .header("authorization", &token)
                    .header("content-type", images::IMAGE);
                let request = request.header("content-length", 4 * MIB).body(()).unwrap();
                client = client.ready().await.unwrap();
                let (answer, mut stream) = client.send_request(request, false).unwrap();
                streams.spawn(async move {
                    let piece = Bytes::from(vec![b' '; 64 * 1024]);
                    for _ in 0..63 {
                        stream.reserve_capacity(piece.len());
                        let ready = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                        if !matches!(ready, Some(Ok(_)))
                            || stream.send_data(piece.clone(), false).is_err()
                        {
                            break;
                        }
                    }
                    answer.await.map(|answer| answer.status().as_u16()).unwrap_or_default()
                });
            }
            while streams.join_next().await.is_some() {}
        });
    }
    siege
        .wait_for_sum("wharfage_http_requests_total{operation=\"PUT manifest\",status=\"503\"", 1.0)
        .await;
    connections.shutdown().await;
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}
