//! Storage in trouble: a full disk, a database that is frozen or away, an S3 that refuses, hangs up or says nothing. No request
//! hangs, who asks hears that it passes, and everything recovers by itself.

mod database;
mod full_disk;
mod s3;

use std::time::Duration;

use reqwest::{Client, Method};

use crate::bed::wharfage::{Launch, Wharfage};
use crate::observability;
use crate::oci::client::Repository;

/// How long a client waits, and with it a test for an answer: several times the registry's own limits.
const PATIENCE: Duration = Duration::from_secs(45);

/// A running program, and whoever watches it.
struct Watched {
    server: Wharfage,
    operations: String,
    http: Client,
}

impl Watched {
    async fn start(launch: Launch) -> Self {
        let (server, operations) = observability::start(launch).await;
        let http = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { server, operations, http }
    }

    /// Starts the program again on its data, after its end.
    async fn start_again(&mut self) {
        self.server.start_again().await;
        self.operations = observability::operations_of(&self.server);
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.http.get(format!("{}{path}", self.operations)).send().await.unwrap();
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

    /// Waits until `/readyz` says that it is ready.
    async fn recovered(&self) {
        while !self.is_ready().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// An answer that says: not now. Its status.
async fn refused(repository: &Repository, method: Method, target: &str, body: Vec<u8>) -> u16 {
    let call = repository.call(method.clone(), target).body(body).send();
    let answer = tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(|_| panic!("{method} {target} hangs"));
    if answer.status == 503 {
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
        answer.assert_refused(503, "UNAVAILABLE");
    }
    answer.status.as_u16()
}

/// The status and the error's name of a call of the ECR API that is refused for now.
async fn api_refused(repository: &Repository) -> (u16, String) {
    let config = repository.ecr().config().to_builder();
    let config = config.retry_config(aws_sdk_ecr::config::retry::RetryConfig::disabled()).build();
    let call = aws_sdk_ecr::Client::from_conf(config).describe_repositories().send();
    let error = tokio::time::timeout(PATIENCE, call).await.expect("the call hangs").unwrap_err();
    let answer = error.raw_response().unwrap_or_else(|| panic!("{error:?}"));
    assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
    let name = answer.headers().get("x-amzn-errortype").unwrap().to_owned();
    (answer.status().as_u16(), name)
}
