//! An ECR API for unit tests: it answers over HTTP what a test says, and records the requests.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A running server; it stops when this is dropped.
pub struct FakeEcr {
    /// Its URL.
    pub endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _task: JoinSet<()>,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The operation of `X-Amz-Target`, without its service.
    pub operation: String,
    /// The JSON of the input.
    pub body: String,
}

/// Answers the nth request, from 0, with a status and a body.
pub async fn fake_ecr(
    answer: impl Fn(usize, &Asked) -> (u16, String) + Send + Sync + 'static,
) -> FakeEcr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (asked, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
    let mut task = JoinSet::new();
    let all = Arc::clone(&asked);
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (all, answer) = (Arc::clone(&all), Arc::clone(&answer));
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (all, answer) = (Arc::clone(&all), Arc::clone(&answer));
                async move {
                    let target = request.headers()["x-amz-target"].to_str().unwrap().to_owned();
                    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let asked =
                        Asked { operation, body: String::from_utf8(body.to_vec()).unwrap() };
                    let nth = {
                        let mut all = all.lock().unwrap();
                        all.push(asked.clone());
                        all.len() - 1
                    };
                    let (status, body) = answer(nth, &asked);
                    let response = http::Response::builder()
                        .status(status)
                        .header("content-type", "application/x-amz-json-1.1")
                        .body(Full::new(bytes::Bytes::from(body)));
                    Ok::<_, Infallible>(response.unwrap())
                }
            });
            connections.spawn(async move {
                let server = hyper::server::conn::http1::Builder::new();
                let _ended_by_the_client =
                    server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    FakeEcr { endpoint, asked, _task: task }
}

impl FakeEcr {
    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Counts the requests for an operation.
    pub fn count(&self, operation: &str) -> usize {
        self.asked().iter().filter(|it| it.operation == operation).count()
    }
}
