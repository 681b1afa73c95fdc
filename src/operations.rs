//! The operations listener: `/healthz`, `/readyz` and `/metrics`, for the system that runs the process.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How long a client may take for the head of a request, which is also how long a kept connection may idle.
const HEAD_PATIENCE: Duration = Duration::from_secs(75);
/// How long a kernel-level failure to accept (no file descriptors, say) makes the listener wait.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 64;

/// A process, as those see it who run it.
#[async_trait]
pub trait Operated: Send + Sync + 'static {
    /// Whether it can go on living; if not, why it should be started anew.
    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether it can do its work now; if not, why.
    async fn ready(&self) -> Result<(), String>;

    /// Its metrics, in OpenMetrics' text format.
    async fn metrics(&self) -> anyhow::Result<String>;
}

/// Serves the listener until it is dropped, which ends its connections.
pub async fn serve(operated: Arc<dyn Operated>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&slots).acquire_owned().await else { break };
        let Ok((stream, _peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let operated = Arc::clone(&operated);
        let service = service_fn(move |request: http::Request<Incoming>| {
            let operated = Arc::clone(&operated);
            async move { Ok::<_, Infallible>(answer(&*operated, request.uri().path()).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an operations connection ended early");
            }
            drop(permit);
        });
    }
}

async fn answer(operated: &dyn Operated, path: &str) -> http::Response<Full<Bytes>> {
    match path {
        "/healthz" => verdict(operated.healthy()),
        "/readyz" => verdict(operated.ready().await),
        "/metrics" => match operated.metrics().await {
            Ok(metrics) => text(StatusCode::OK, metrics, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
            Err(error) => {
                tracing::warn!(%error, "cannot render the metrics");
                plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be rendered; the log says why\n".into())
            }
        },
        _ => plain(StatusCode::NOT_FOUND, "/healthz, /readyz and /metrics are here.\n".into()),
    }
}

fn verdict(verdict: Result<(), String>) -> http::Response<Full<Bytes>> {
    match verdict {
        Ok(()) => plain(StatusCode::OK, "ok\n".into()),
        Err(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn plain(status: StatusCode, body: String) -> http::Response<Full<Bytes>> {
    text(status, body, "text/plain; charset=utf-8")
}

fn text(status: StatusCode, body: String, kind: &'static str) -> http::Response<Full<Bytes>> {
    let mut response = http::Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
