//! Client connections: TLS, HTTP/1.1 and HTTP/2 within limits. Gives each request an id, a log line
//! and metrics, and stops without breaking transfers. The router selects the protocol.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, Version, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::{cors, router, tls};
use crate::message::body::{Body, RequestBody};
use crate::message::memory;
use crate::message::{OperationName, RETRY_AFTER, RequestId, Response, plain};
use crate::service::Registry;
use wharfage_process::listener::{self, Activity, Admission, ConnectionLimits, Exchange, Socket};
use wharfage_process::shutdown::Stop;
use wharfage_store::StoreError;

/// The time limit of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest read buffer of a connection: large reads make pushes cheap, and the buffer limits
/// the head of a request.
const BUFFER: usize = 256 * 1024;

/// HTTP/2: the concurrent requests of one connection.
const STREAMS: u32 = 64;
/// HTTP/2: the bytes that a client may send ahead on one stream, and on all streams of a
/// connection.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The number of connections with these windows; further ones have the smallest that the RFC
/// allows.
const LARGE_WINDOWS: usize = 64;
const SMALL_WINDOW: u32 = 65_535;
/// HTTP/2: the response bytes that wait for the client on one stream.
const SEND_BUFFER: usize = 64 * 1024;
/// HTTP/2: the bytes of a request's head. A path with a thousand ranges or tags needs this many.
const HEADER_LIST: u32 = 64 * 1024;
/// HTTP/2: the streams that a client has reset before they were accepted, and that this side has
/// reset for an error, before the connection is closed: more are an attack.
const PENDING_RESETS: usize = 64;
const LOCAL_RESETS: usize = 256;
/// HTTP/2: the interval of pings, and the time limit of the response to one.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The value of the `Server` header: the product and its version.
const SERVER: HeaderValue =
    HeaderValue::from_static(concat!("wharfage/", env!("CARGO_PKG_VERSION")));

/// The limits of a server.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections, and concurrent requests on all of them.
    pub connections: usize,
    /// Connections of one peer; three quarters of all by default.
    pub connections_per_peer: Option<usize>,
    /// The time that running transfers have after the stop.
    pub grace: Duration,
    /// The origins that may call the registry from a browser.
    pub cors: Vec<cors::Origin>,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_peer: None,
            grace: Duration::from_secs(60),
            cors: Vec::new(),
        }
    }
}

impl ServerLimits {
    fn connection_limits(&self) -> ConnectionLimits {
        /// Open files beside the connections: blobs, databases, buckets.
        const RESERVED_FILES: usize = 256;
        let connections = listener::connections_that_fit(self.connections, RESERVED_FILES);
        if connections < self.connections {
            let wanted = self.connections;
            tracing::warn!(
                connections,
                wanted,
                "fewer connections than asked for: the limit of open files is too low"
            );
        }
        let per_peer = self.connections_per_peer.unwrap_or(connections.div_ceil(4) * 3);
        ConnectionLimits { connections, per_peer }
    }
}

/// The state that the connections of a listener share.
struct Server {
    registry: Arc<Registry>,
    tls: Option<TlsAcceptor>,
    cors: Option<cors::Cors>,
    /// Concurrent requests, in total and per peer: one HTTP/2 connection has many.
    requests: Arc<Semaphore>,
    requests_per_peer: usize,
    large_windows: Arc<Semaphore>,
}

/// Serves the registry's APIs until `stop`, then waits for running requests within the limits'
/// grace period.
// Boxed, so that this crate compiles it: an `async fn` is compiled with the crate that awaits it.
pub fn serve(
    registry: Arc<Registry>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: ServerLimits,
    mut stop: Stop,
) -> BoxFuture<'static, ()> {
    async move {
        let connections = limits.connection_limits();
        let server = Arc::new(Server {
            registry,
            tls,
            cors: cors::Cors::new(&limits.cors),
            requests: Arc::new(Semaphore::new(connections.connections)),
            requests_per_peer: connections.per_peer,
            large_windows: Arc::new(Semaphore::new(LARGE_WINDOWS)),
        });
        let graceful = GracefulShutdown::new();
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let scarce = || memory::process().is_scarce();
        let mut open = listener::accept(listener, connections, scarce, stopped, |socket, admission| {
            let (server, watcher) = (Arc::clone(&server), graceful.watcher());
            tokio::spawn(async move {
                let (metrics, activity) = (Arc::clone(&server.registry.metrics), Arc::clone(socket.activity()));
                metrics.connections.inc();
                if admission == Admission::Refuse {
                    metrics.connection_refused();
                }
                let served = server.connection(socket, admission, watcher);
                let served = tokio::select! {
                    served = served => served,
                    () = activity.cancelled() => Ok(()),
                };
                if let Err(error) = served {
                    tracing::debug!(%error, "a connection ended early");
                }
                if let Some(why) = activity.ended() {
                    metrics.connection_ended(why.as_str());
                }
                metrics.connections.dec();
            });
        })
        .await;
        let ended = tokio::time::timeout(limits.grace, graceful.shutdown());
        tokio::select! {
            ended = ended => {
                if ended.is_err() {
                    tracing::warn!(grace_seconds = limits.grace.as_secs(), "ended with transfers still running");
                }
            }
            never = open.check() => match never {},
        }
    }
    .boxed()
}

impl Server {
    /// Serves one connection, with or without TLS.
    async fn connection(
        self: Arc<Self>,
        socket: Socket,
        admission: Admission,
        watcher: Watcher,
    ) -> anyhow::Result<()> {
        let activity = Arc::clone(socket.activity());
        let Some(acceptor) = self.tls.clone() else {
            return self.http1(socket, activity, admission, watcher).await;
        };
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await??;
        if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2) {
            self.http2(stream, activity, admission, watcher).await
        } else {
            self.http1(stream, activity, admission, watcher).await
        }
    }

    async fn http1(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        activity: Arc<Activity>,
        admission: Admission,
        watcher: Watcher,
    ) -> anyhow::Result<()> {
        let service = service_fn(move |request| {
            Arc::clone(&self).answer(request, Arc::clone(&activity), admission)
        });
        // The listener limits the time of a head, and closes the connection.
        let connection = hyper::server::conn::http1::Builder::new()
            .max_buf_size(BUFFER)
            .title_case_headers(true)
            .keep_alive(admission == Admission::Serve)
            .header_read_timeout(None::<Duration>)
            .serve_connection(TokioIo::new(stream), service);
        until_closed(watcher, connection).await
    }

    async fn http2(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        activity: Arc<Activity>,
        admission: Admission,
        watcher: Watcher,
    ) -> anyhow::Result<()> {
        activity.bound_by_windows();
        let large = Arc::clone(&self.large_windows).try_acquire_owned().ok();
        let (stream_window, connection_window) = match &large {
            Some(_) => (STREAM_WINDOW, CONNECTION_WINDOW),
            None => (SMALL_WINDOW, SMALL_WINDOW),
        };
        let service = service_fn(move |request| {
            Arc::clone(&self).answer(request, Arc::clone(&activity), admission)
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(LOCAL_RESETS)
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEADER_LIST)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let served = until_closed(watcher, connection).await;
        drop(large);
        served
    }

    /// Answers one request: id, handler, metrics, log.
    async fn answer(
        self: Arc<Self>,
        request: http::Request<Incoming>,
        activity: Arc<Activity>,
        admission: Admission,
    ) -> Result<http::Response<CountedBody>, Infallible> {
        let started = Instant::now();
        let mut exchange = activity.begin();
        let id = uuid::Uuid::new_v4();
        let version = request.version();
        let waits = request.headers().contains_key(header::EXPECT);
        let mut request = request.map(|body| RequestBody::new(body, Arc::clone(&activity), waits));
        request.extensions_mut().insert(RequestId(id));
        let (method, metrics) = (request.method().clone(), Arc::clone(&self.registry.metrics));
        let path = tracing::enabled!(tracing::Level::INFO).then(|| shown(request.uri().path()));

        let running = match admission {
            Admission::Serve if exchange.running_of_peer() <= self.requests_per_peer => {
                Arc::clone(&self.requests).try_acquire_owned().ok()
            }
            Admission::Serve | Admission::Refuse => None,
        };
        let mut response = if running.is_some() {
            // A panic is a defect in one request: it must not stop the connection or the process.
            let handled = AssertUnwindSafe(self.handle(request)).catch_unwind().await;
            handled.unwrap_or_else(|_panic| {
                let text = format!("The registry failed; its log says why, under {id}.\n");
                plain(StatusCode::INTERNAL_SERVER_ERROR, text)
            })
        } else {
            drop(request);
            exchange.turn_away();
            busy()
        };

        response.headers_mut().insert(header::SERVER, SERVER);
        if version < Version::HTTP_2 && activity.has_unread_body() {
            // The client learns that the connection cannot be used again before it finds it closed.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let mut text = uuid::Uuid::encode_buffer();
        if let Ok(value) = HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)) {
            response.headers_mut().insert("x-amzn-requestid", value);
        }
        let operation =
            response.extensions().get::<OperationName>().map_or("other", |operation| operation.0);
        let status = response.status();
        let took = started.elapsed();
        metrics.request(operation, status.as_u16(), took);
        let path = path.as_deref().unwrap_or_default();
        let micros = took.as_micros() as u64;
        let reads = matches!(method, Method::GET | Method::HEAD);
        if status.is_server_error() {
            tracing::warn!(request_id = %id, %method, path, operation, status = status.as_u16(), micros, "request failed");
        } else if reads && status != StatusCode::FORBIDDEN {
            tracing::debug!(request_id = %id, %method, path, operation, status = status.as_u16(), micros, "request");
        } else {
            tracing::info!(request_id = %id, %method, path, operation, status = status.as_u16(), micros, "request");
        }
        let reads_ahead = version >= Version::HTTP_2;
        if !reads_ahead || method == Method::HEAD {
            // Such a response cannot be canceled without its connection, or it has no body.
            exchange.answered();
        }
        Ok(response.map(|body| CountedBody { body, reads_ahead, exchange, _running: running }))
    }

    async fn handle(&self, mut request: http::Request<RequestBody>) -> Response {
        if request.version() == Version::HTTP_11
            && request.headers().get_all(header::HOST).iter().count() != 1
        {
            // RFC 9112 §3.2: a proxy may have used another one than we would.
            return plain(StatusCode::BAD_REQUEST, "A request has one Host header.\n");
        }
        if request.version() >= Version::HTTP_2 && !request.headers().contains_key(header::HOST) {
            // HTTP/2 sends the host in the target, but signatures cover the header.
            let host = request
                .uri()
                .authority()
                .and_then(|host| HeaderValue::from_str(host.as_str()).ok());
            if let Some(host) = host {
                request.headers_mut().insert(header::HOST, host);
            }
        }
        let Some(cors) = &self.cors else {
            return router::route(Arc::clone(&self.registry), request).await;
        };
        let allowed = cors.allowed(request.headers());
        let (parts, body) = request.into_parts();
        let mut response = match cors.preflight(&parts) {
            Some(response) => response,
            None => {
                router::route(Arc::clone(&self.registry), http::Request::from_parts(parts, body))
                    .await
            }
        };
        cors.mark(allowed, &mut response);
        response
    }
}

async fn until_closed<C: GracefulConnection<Error = hyper::Error>>(
    watcher: Watcher,
    connection: C,
) -> anyhow::Result<()> {
    Ok(watcher.watch(connection).await?)
}

/// Creates the response to too many connections or requests.
fn busy() -> Response {
    let mut response =
        plain(StatusCode::SERVICE_UNAVAILABLE, "The registry is busy. Try again later.\n");
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    response
}

/// The body of a response. Its request ends when it is dropped.
struct CountedBody {
    body: Body,
    /// More of the body is read before the client has taken the bytes sent so far.
    reads_ahead: bool,
    exchange: Exchange,
    _running: Option<OwnedSemaphorePermit>,
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        if http_body::Body::is_end_stream(&self.body) {
            self.exchange.answered();
        }
    }
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = StoreError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StoreError>>> {
        if !self.reads_ahead && self.exchange.activity().is_blocked() {
            // The connection polls again when the socket has taken bytes.
            return Poll::Pending;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Shortens a path for the log: clients choose its length.
fn shown(path: &str) -> String {
    const MOST: usize = 512;
    // Paths are ASCII, so this never cuts inside a character.
    match path.get(..MOST) {
        Some(begin) if path.len() > MOST => format!("{begin}…"),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_cut_in_the_log() {
        assert_eq!(shown("/v2/"), "/v2/");
        assert_eq!(shown(&"a".repeat(512)).len(), 512);
        assert_eq!(shown(&"a".repeat(65_000)), format!("{}…", "a".repeat(512)));
    }
}
