//! The S3 client: endpoint, credentials and retries.

use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::S3Credentials;
use super::deadlines::Deadlines;
use crate::{StoreError, StoreResult};

/// Timeouts of connecting and of reading. [`Deadlines`] is stricter where possible.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(600);
/// The time for which a failed request is retried: long enough for a gateway's restart, short
/// enough for a client.
const RETRY_BUDGET: Duration = Duration::from_secs(12);
/// First and longest pause before a retry, both jittered.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The variables from which credentials are read if none are configured: those of a pod's service
/// account, a task or a shell. Not all of `AWS_*`: its endpoint may be this server.
const AMBIENT: [&str; 10] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
];

/// Retries failed requests with growing pauses, within [`RETRY_BUDGET`].
pub(super) fn retries() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 2.0 };
    // The time is the limit.
    RetryConfig { backoff, max_retries: 1000, retry_timeout: RETRY_BUDGET }
}

/// Does not retry.
pub(super) fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..retries() }
}

/// Builds a client of one bucket.
///
/// # Errors
/// When the endpoint is not a URL, or the environment's settings contradict each other.
pub(super) fn build(
    bucket: &str,
    region: &str,
    endpoint: Option<&str>,
    credentials: Option<&S3Credentials>,
    retries: RetryConfig,
) -> StoreResult<AmazonS3> {
    let mut builder = AmazonS3Builder::new();
    match credentials {
        Some(S3Credentials { access_key, secret_key }) => {
            builder = builder.with_access_key_id(access_key).with_secret_access_key(secret_key);
        }
        None => {
            for name in AMBIENT {
                let key = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>();
                if let (Ok(key), Ok(value)) = (key, std::env::var(name)) {
                    builder = builder.with_config(key, value);
                }
            }
        }
    }
    let plain = endpoint.is_some_and(|url| url.starts_with("http://"));
    let options = ClientOptions::new()
        // A pull takes as long as its client needs; only silence ends it.
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_allow_http(plain);
    builder = builder
        .with_client_options(options)
        .with_http_connector(Deadlines)
        .with_retry(retries)
        .with_bucket_name(bucket)
        .with_region(region)
        // The certificate's wildcard does not match a bucket's name with a dot.
        .with_virtual_hosted_style_request(endpoint.is_none() && !bucket.contains('.'))
        // TLS protects the bytes already, and another hash for the signature would cost as much as
        // our own.
        .with_unsigned_payload(!plain)
        // One DELETE per object: bulk deletes need another permission, and not every server
        // supports them.
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder.build().map_err(|e| StoreError::Backend(Box::new(e)))
}
