//! What HTTP/2 makes possible: many requests on one connection, and taking them back.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;

use super::siege::{MIB, Siege};
use crate::bed::tls::Certificate;
use crate::bed::{self};
use crate::oci::images;

async fn start() -> (Siege, Arc<Certificate>) {
    let certificate = Arc::new(Certificate::new());
    (Siege::start(bed::wharfage().tls(&certificate)).await, certificate)
}

#[tokio::test]
async fn streams_that_are_reset_at_once_harm_nobody() {
    const NAME: &str = "20,000 streams that are reset at once";
    let (siege, certificate) = start().await;
    let others = siege.others();
    for _ in 0..4 {
        let authority = siege.target.server.tls_authority();
        let mut client = certificate.connect_http2(authority).await;
        for _ in 0..5_000 {
            let request = Request::get(format!("https://{authority}/v2/")).body(()).unwrap();
            // The server may end a connection that resets more than it can accept.
            let Ok(ready) = client.ready().await else { break };
            client = ready;
            if let Ok((_, mut stream)) = client.send_request(request, true) {
                stream.send_reset(h2::Reason::CANCEL);
            }
        }
    }
    others.end(NAME).await;
    siege.assert_over(NAME).await;
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
                let request =
                    Request::put(&target).header("authorization", &token).header("content-type", images::IMAGE);
                let request = request.header("content-length", 4 * MIB).body(()).unwrap();
                client = client.ready().await.unwrap();
                let (answer, mut stream) = client.send_request(request, false).unwrap();
                streams.spawn(async move {
                    let piece = Bytes::from(vec![b' '; 64 * 1024]);
                    for _ in 0..63 {
                        stream.reserve_capacity(piece.len());
                        let ready = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                        if !matches!(ready, Some(Ok(_))) || stream.send_data(piece.clone(), false).is_err() {
                            break;
                        }
                    }
                    answer.await.map(|answer| answer.status().as_u16()).unwrap_or_default()
                });
            }
            while streams.join_next().await.is_some() {}
        });
    }
    siege.wait_for_sum("wharfage_http_requests_total{operation=\"PUT manifest\",status=\"503\"", 1.0).await;
    connections.shutdown().await;
    others.end(NAME).await;
    siege.assert_over(NAME).await;
}
