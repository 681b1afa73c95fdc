//! Storage failures: a full disk, a frozen or unreachable database, an S3 that refuses, disconnects
//! or is silent. No request hangs, clients get a temporary error, and everything recovers by
//! itself.

mod database;
mod full_disk;
mod s3;

use std::time::Duration;

use reqwest::{Client, Method};

use crate::bed::wharfage::{Launch, Wharfage};
use crate::observability;
use crate::oci::client::Repository;

/// Client timeout: several times the registry's own timeouts.
const TIMEOUT: Duration = Duration::from_secs(45);

/// A running server and a client of its health endpoints.
struct Watched {
    server: Wharfage,
    admin: String,
    http: Client,
}

impl Watched {
    async fn start(launch: Launch) -> Self {
        let (server, admin) = observability::start(launch).await;
        let http = Client::builder().no_proxy().timeout(TIMEOUT).build().unwrap();
        Self { server, admin, http }
    }

    /// Starts the server again on its data, after it has stopped.
    async fn start_again(&mut self) {
        self.server.start_again().await;
        self.admin = observability::admin_of(&self.server);
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.http.get(format!("{}{path}", self.admin)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn is_ready(&self) -> bool {
        self.get("/readyz").await.0 == 200
    }

    async fn sample(&self, name: &str) -> f64 {
        let (status, metrics) = self.get("/metrics").await;
        assert_eq!(status, 200, "{metrics}");
        observability::sample(&metrics, name)
    }

    /// Waits until `/readyz` reports that it is ready.
    async fn recovered(&self) {
        while !self.is_ready().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Expects a response with a temporary error, and returns its status.
async fn refused(repository: &Repository, method: Method, target: &str, body: Vec<u8>) -> u16 {
    let call = repository.call(method.clone(), target).body(body).send();
    let answer = tokio::time::timeout(TIMEOUT, call)
        .await
        .unwrap_or_else(|_| panic!("{method} {target} hangs"));
    if answer.status == 503 {
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
        answer.assert_refused(503, "UNAVAILABLE");
    }
    answer.status.as_u16()
}

/// Expects a temporary error of the ECR API, and returns its status and code.
async fn api_refused(repository: &Repository) -> (u16, String) {
    let config = repository.ecr().config().to_builder();
    let config = config.retry_config(aws_sdk_ecr::config::retry::RetryConfig::disabled()).build();
    let call = aws_sdk_ecr::Client::from_conf(config).describe_repositories().send();
    let error = tokio::time::timeout(TIMEOUT, call).await.expect("the call hangs").unwrap_err();
    let answer = error.raw_response().unwrap_or_else(|| panic!("{error:?}"));
    assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
    let name = answer.headers().get("x-amzn-errortype").unwrap().to_owned();
    (answer.status().as_u16(), name)
}
