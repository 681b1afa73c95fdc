//! Connections that only take up place.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::siege::Siege;
use crate::bad_input::target::parts;
use crate::bed::{self};

async fn fresh(siege: &Siege, request: &str) -> String {
    siege.target.raw(request.as_bytes()).await
}

#[tokio::test]
async fn idle_connections_make_place_for_others() {
    const NAME: &str = "4,096 connections that say nothing more";
    let siege = Siege::start(bed::wharfage()).await;
    let others = siege.others();
    let mut idle = Vec::new();
    for _ in 0..4096 {
        let mut stream = TcpStream::connect(siege.target.server.authority()).await.unwrap();
        stream.write_all(b"GET /").await.unwrap();
        idle.push(stream);
    }
    let request = siege.target.head("GET", "/v2/", "Connection: close\r\n");
    for _ in 0..20 {
        assert_eq!(parts(&fresh(&siege, &request).await).0, 200);
    }
    assert_eq!(siege.ask("/readyz").await.0, 200);
    // Those beyond one address's share made place, or had their time.
    siege.wait_for_sum("wharfage_connections_ended_total{", 4096.0 - 3072.0).await;
    drop(idle);
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}

#[tokio::test]
async fn when_all_connections_are_busy_others_are_told_to_come_back() {
    let siege = Siege::start(bed::wharfage().arg("--max-connections").arg("16")).await;
    // Twelve of them are the share of one address.
    let mut busy = Vec::new();
    for _ in 0..12 {
        let location = siege.repository().begin().await;
        let received = siege.sum("wharfage_received_bytes_total").await;
        let mut stream = TcpStream::connect(siege.target.server.authority()).await.unwrap();
        let head = siege.target.head("PATCH", &location, "Content-Length: 100000000\r\n");
        stream.write_all(format!("{head}xyz").as_bytes()).await.unwrap();
        // Fast enough to be allowed to continue.
        busy.push(tokio::spawn(async move {
            while stream.write_all(&[0; 4096]).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }));
        siege.wait_for_sum("wharfage_received_bytes_total", received + 3.0).await;
    }
    let request = siege.target.head("GET", "/v2/", "Connection: close\r\n");
    let answer = fresh(&siege, &request).await;
    assert_eq!(parts(&answer).0, 503, "{answer}");
    assert!(
        answer.contains("\r\nRetry-After: 1\r\n") && answer.contains("\r\nConnection: close\r\n"),
        "{answer}"
    );
    let (status, said) = siege.ask("/readyz").await;
    assert!(status == 200 && said.contains("all connections are busy"), "{status} {said}");
    assert!(siege.sum("wharfage_connections_refused_total").await >= 1.0);
    // One that ends makes place.
    busy[0].abort();
    while parts(&fresh(&siege, &request).await).0 != 200 {}
}

#[tokio::test]
async fn the_second_listener_holds_to_the_same() {
    let siege = Siege::start(bed::wharfage()).await;
    let address = siege.admin().to_owned();
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /").await.unwrap();
        idle.push(stream);
    }
    for _ in 0..20 {
        assert_eq!(siege.ask("/readyz").await.0, 200);
        assert_eq!(siege.ask("/healthz").await.0, 200);
    }
    // Each of the first ones was closed without an answer. Where the server had not read yet what had come, the system resets
    // the connection instead of ending it.
    let mut answer = String::new();
    if let Err(error) = idle[0].read_to_string(&mut answer).await {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(answer, "");
}
