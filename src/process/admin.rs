//! The admin server: `/healthz`, `/readyz` and `/metrics`, for the system that runs the process.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::listener::{self, Admission, ConnectionLimits, Socket};

/// Maximum number of connections. One peer may have nearly all of them: it may be a proxy or a
/// node that asks for everybody.
const LIMITS: ConnectionLimits = ConnectionLimits { connections: 64, per_peer: 56 };

/// Body of a response that reports no problem.
pub const OK: Cow<'static, str> = Cow::Borrowed("ok");

/// Health and metrics of a process.
#[async_trait]
pub trait HealthEndpoints: Send + Sync + 'static {
    /// Returns why the process must be restarted, if it must.
    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }

    /// Returns the body of a positive `/readyz`, or why the process is not ready.
    async fn ready(&self) -> Result<Cow<'static, str>, String>;

    /// Renders the metrics in OpenMetrics' text format.
    async fn metrics(&self) -> anyhow::Result<String>;
}

/// Serves `listener` until the future is dropped, which ends the connections.
// Boxed, so that this crate compiles it: an `async fn` is compiled with the crate that awaits it.
pub fn serve(endpoints: Arc<dyn HealthEndpoints>, listener: TcpListener) -> BoxFuture<'static, ()> {
    async move {
        let mut connections = JoinSet::new();
        let never = std::future::pending();
        listener::accept(
            listener,
            LIMITS,
            || false,
            never,
            |socket, admission| {
                while connections.try_join_next().is_some() {}
                let (endpoints, activity) = (Arc::clone(&endpoints), Arc::clone(socket.activity()));
                connections.spawn(async move {
                    tokio::select! {
                        served = connection(endpoints, socket, admission) => {
                            if let Err(error) = served {
                                tracing::debug!(%error, "an admin connection ended early");
                            }
                        }
                        () = activity.cancelled() => {}
                    }
                });
            },
        )
        .await;
    }
    .boxed()
}

async fn connection(
    endpoints: Arc<dyn HealthEndpoints>,
    socket: Socket,
    admission: Admission,
) -> hyper::Result<()> {
    let activity = Arc::clone(socket.activity());
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (endpoints, mut exchange) = (Arc::clone(&endpoints), activity.begin());
        async move {
            if !request.body().is_end_stream() {
                // Nothing here takes a body.
                exchange.activity().leave_unread();
            }
            let answer = match admission {
                Admission::Serve => answer(&*endpoints, request.uri().path()).await,
                Admission::Refuse => {
                    plain(StatusCode::SERVICE_UNAVAILABLE, "too many connections\n".into())
                }
            };
            exchange.answered();
            Ok::<_, Infallible>(answer)
        }
    });
    hyper::server::conn::http1::Builder::new()
        .keep_alive(admission == Admission::Serve)
        .header_read_timeout(None::<std::time::Duration>)
        .serve_connection(TokioIo::new(socket), service)
        .await
}

async fn answer(endpoints: &dyn HealthEndpoints, path: &str) -> http::Response<Full<Bytes>> {
    match path {
        "/healthz" => verdict(endpoints.healthy().map(|()| OK)),
        "/readyz" => verdict(endpoints.ready().await),
        "/metrics" => match endpoints.metrics().await {
            Ok(metrics) => text(
                StatusCode::OK,
                metrics,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ),
            Err(error) => {
                tracing::warn!(%error, "cannot render the metrics");
                plain(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the metrics cannot be rendered; the log says why\n".into(),
                )
            }
        },
        _ => plain(StatusCode::NOT_FOUND, "/healthz, /readyz and /metrics are here.\n".into()),
    }
}

fn verdict(verdict: Result<Cow<'static, str>, String>) -> http::Response<Full<Bytes>> {
    match verdict {
        Ok(text) => plain(StatusCode::OK, format!("{text}\n")),
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
