//! A refusal reaches clients that are still sending the refused bytes, and those that only listen
//! when they have sent it all.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wharfage::names::Digest;

use super::target::{Target, parts};
use crate::bed::tls::Certificate;
use crate::bed::{self};
use crate::oci::client::with_parameter;

/// The length of the refused body, in bytes: more than all buffers on the way hold together.
const LENGTH: usize = 64 * 1024 * 1024;
/// The number of tries of each client.
const TRIES: usize = 5;

/// The requests that are refused before their body was read, by method, target and headers.
async fn refused(target: &Target) -> Vec<(u16, String)> {
    let repository = &target.repository;
    let digest = Digest::sha256(b"never");
    let whole = with_parameter(&repository.uploads(), "digest", &digest);
    let elsewhere = "/v2/no/such-repository/manifests/latest";
    let location = repository.begin().await;
    repository.chunk(&location, Some(0), b"12345").await.assert_status(202);
    let host = target.server.authority();
    vec![
        (401, format!("POST {whole} HTTP/1.1\r\nHost: {host}\r\n")),
        (
            404,
            target
                .head("PUT", elsewhere, "Content-Type: application/json\r\n")
                .trim_end()
                .to_owned()
                + "\r\n",
        ),
        (
            416,
            target.head("PATCH", &location, "Content-Range: 9-67108872\r\n").trim_end().to_owned()
                + "\r\n",
        ),
        (413, target.head("PUT", &repository.manifest("big"), "").trim_end().to_owned() + "\r\n"),
        (400, format!("POST / HTTP/1.1\r\nHost: {host}\r\n")),
        (404, format!("POST /nothing HTTP/1.1\r\nHost: {host}\r\n")),
    ]
}

/// Sends all of the request before it listens.
async fn sends_all_first(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    head: &str,
    chunked: bool,
) -> String {
    let length = if chunked {
        "Transfer-Encoding: chunked\r\n".to_owned()
    } else {
        format!("Content-Length: {LENGTH}\r\n")
    };
    stream.write_all(format!("{head}{length}\r\n").as_bytes()).await.unwrap();
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..LENGTH / piece.len() {
        if chunked {
            stream.write_all(b"10000\r\n").await.unwrap();
        }
        stream.write_all(&piece).await.unwrap();
        if chunked {
            stream.write_all(b"\r\n").await.unwrap();
        }
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    }
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// Listens while it sends, and ends with the answer, as Go's client does.
async fn listens_meanwhile(stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> String {
    let (mut read, mut write) = tokio::io::split(stream);
    let request = format!("{head}Content-Length: {LENGTH}\r\n\r\n");
    let sending = async {
        write.write_all(request.as_bytes()).await?;
        let piece = vec![b'x'; 64 * 1024];
        for _ in 0..LENGTH / piece.len() {
            write.write_all(&piece).await?;
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let listening = async {
        let mut answer = Vec::new();
        read.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    tokio::select! {
        answer = listening => answer,
        failed = sending => panic!("the connection broke: {failed:?}"),
    }
}

#[tokio::test]
async fn a_refusal_reaches_who_goes_on_sending() {
    let target = Target::start().await;
    for (status, head) in refused(&target).await {
        for try_ in 0..TRIES {
            let connect = || TcpStream::connect(target.server.authority());
            let listened = listens_meanwhile(connect().await.unwrap(), &head).await;
            assert_eq!(parts(&listened).0, status, "{head}");
            let sent = sends_all_first(connect().await.unwrap(), &head, try_ == 0).await;
            assert_eq!(parts(&sent).0, status, "{head}");
            assert!(sent.contains("\r\nConnection: close\r\n"), "{sent}");
        }
    }
}

#[tokio::test]
async fn a_refusal_reaches_who_goes_on_sending_by_tls() {
    let certificate = Arc::new(Certificate::new());
    let target = Target::of(bed::wharfage().tls(&certificate)).await;
    for (status, head) in refused(&target).await.into_iter().take(3) {
        for try_ in 0..TRIES {
            let authority = target.server.tls_authority();
            let connect = || certificate.connect(authority, &["http/1.1"]);
            let listened = listens_meanwhile(connect().await, &head).await;
            assert_eq!(parts(&listened).0, status, "{head}");
            let sent = sends_all_first(connect().await, &head, try_ == 0).await;
            assert_eq!(parts(&sent).0, status, "{head}");
        }
    }
}

#[tokio::test]
async fn who_waits_to_be_asked_for_a_body_is_refused_without_it() {
    let target = Target::start().await;
    for (status, head) in refused(&target).await {
        let mut stream = TcpStream::connect(target.server.authority()).await.unwrap();
        let head = format!("{head}Expect: 100-continue\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(parts(&answer).0, status, "{answer}");
    }
}

#[tokio::test]
async fn a_small_refused_body_does_not_end_the_connection() {
    let target = Target::start().await;
    let path = with_parameter(&target.repository.uploads(), "digest", Digest::sha256(b"never"));
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n{}",
        "x".repeat(10_000)
    );
    let last = target.head("GET", "/v2/", "Connection: close\r\n");
    let answers = target.raw(format!("{request}{request}{last}").as_bytes()).await;
    let statuses: Vec<_> =
        answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["401", "401", "200"], "{answers}");
}
