//! Listeners and connections: accepts within limits, gives each request its id, its log line and its place in the
//! metrics, and ends without cutting transfers. What a request means is the registry's matter.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use futures::FutureExt as _;
use http::{HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::{Operation, Registry, RequestId, Response, plain};
use crate::jobs;
use crate::operations::Operated;

/// How long a client may take for the head of a request, which is also how long a kept connection may idle.
const HEAD_PATIENCE: Duration = Duration::from_secs(75);
/// How long a TLS handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what is being sent to it.
const SEND_PATIENCE: Duration = Duration::from_secs(120);
/// How long a kernel-level failure to accept (no file descriptors, say) makes the listener wait.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The read buffer that one connection may grow to: large reads make pushes cheap, and it bounds the head of a request.
const BUFFER: usize = 256 * 1024;

/// What every answer's `Server` header says: what speaks, and which version of it.
const SERVER: HeaderValue = HeaderValue::from_static(concat!("wharfage/", env!("CARGO_PKG_VERSION")));

/// Tells listeners and jobs when to end: true means stop.
pub type Stop = watch::Receiver<bool>;

/// What a listener keeps to.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// How long running transfers may go on after the stop.
    pub grace: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { connections: 4096, grace: Duration::from_secs(60) }
    }
}

/// Binds a listener; the error names the address and says what to do. Every address (`[::]`) is every IPv4 address on a
/// machine without IPv6.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && without_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("cannot listen on {address}: choose another address with --listen"))
}

fn without_ipv6(error: &std::io::Error) -> bool {
    let error = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(error, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
}

/// Serves the registry's doors until `stop`, then lets running requests end within the limits' grace.
pub async fn serve(
    registry: Arc<Registry>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: ServerLimits,
    stop: Stop,
) {
    let connections = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut stopped = stop.clone();
    // The stop is asked for first each time: after it nothing new is accepted, however much waits.
    loop {
        let permit = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => break,
            permit = Arc::clone(&connections).acquire_owned() => permit,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _peer)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (registry, tls, watcher) = (Arc::clone(&registry), tls.clone(), graceful.watcher());
        tokio::spawn(async move {
            registry.metrics.connections.inc();
            if let Err(error) = connection(Arc::clone(&registry), stream, tls, watcher).await {
                tracing::debug!(%error, "a connection ended early");
            }
            registry.metrics.connections.dec();
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace_seconds = limits.grace.as_secs(), "ended with transfers still running");
    }
}

/// Serves one connection, whatever it is wrapped in.
async fn connection(
    registry: Arc<Registry>,
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    watcher: hyper_util::server::graceful::Watcher,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, SEND_PATIENCE.as_millis() as u32)?;
    match tls {
        None => requests(registry, stream, watcher).await,
        Some(tls) => {
            let stream = tokio::time::timeout(HANDSHAKE_PATIENCE, tls.accept(stream)).await??;
            requests(registry, stream, watcher).await
        }
    }
}

async fn requests(
    registry: Arc<Registry>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    watcher: hyper_util::server::graceful::Watcher,
) -> anyhow::Result<()> {
    let service = service_fn(move |request| {
        let registry = Arc::clone(&registry);
        async move { Ok::<_, Infallible>(answer(registry, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    watcher.watch(connection).await?;
    Ok(())
}

/// Answers one request: id, handler, metrics, log.
async fn answer(registry: Arc<Registry>, mut request: http::Request<Incoming>) -> Response {
    let started = Instant::now();
    let id = uuid::Uuid::new_v4();
    request.extensions_mut().insert(RequestId(id));
    let (method, metrics) = (request.method().clone(), Arc::clone(&registry.metrics));
    let path = tracing::enabled!(tracing::Level::INFO).then(|| request.uri().path().to_owned());

    // A panic is a defect, but one request's: it must not take the connection or the process along.
    let handled = AssertUnwindSafe(registry.handle(request)).catch_unwind().await;
    let mut response = handled.unwrap_or_else(|_panic| {
        plain(StatusCode::INTERNAL_SERVER_ERROR, format!("The registry failed; its log says why, under {id}.\n"))
    });

    response.headers_mut().insert(header::SERVER, SERVER);
    let mut text = uuid::Uuid::encode_buffer();
    if let Ok(value) = HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)) {
        response.headers_mut().insert("x-amzn-requestid", value);
    }
    let operation = response.extensions().get::<Operation>().map_or("other", |operation| operation.0);
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
    response
}

/// The registries of a process, as the operations listener shows them. From `stopping` on `/readyz` says so: who routes traffic by
/// it has to hear that while the last transfers still run.
pub struct Registries {
    /// The registries; they share one set of metrics.
    pub registries: Vec<Arc<Registry>>,
    /// Whether the process ends.
    pub stopping: Stop,
}

#[async_trait]
impl Operated for Registries {
    async fn ready(&self) -> Result<(), String> {
        if *self.stopping.borrow() {
            return Err("stopping".into());
        }
        for registry in &self.registries {
            let stores = async {
                registry.metadata.ready().await?;
                registry.blobs.ready().await
            };
            stores.await.map_err(|error| {
                tracing::warn!(%error, "not ready");
                "the store does not answer; the log says why".to_owned()
            })?;
        }
        Ok(())
    }

    /// What stands is summed over the registries.
    async fn metrics(&self) -> anyhow::Result<String> {
        let (mut open, mut counts) = (0, Vec::new());
        for registry in &self.registries {
            open += registry.metadata.open_uploads().await?;
            counts.extend(registry.metadata.job_counts(&jobs::names()).await?);
        }
        let Some(registry) = self.registries.first() else { return Ok(String::new()) };
        registry.metrics.set_gauges(open, &counts);
        Ok(registry.metrics.encode()?)
    }
}
