//! The client: how it reaches the bucket, what it signs with, and how long it goes on trying.

use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::S3Credentials;
use super::deadlines::Deadlines;
use crate::store::{StoreError, StoreResult};

/// How long to try for a connection, and how long a connection may stay silent. [`Deadlines`] is stricter where it can be.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_secs(600);
/// After how long a failed request is not sent again: long enough for a gateway's restart, short enough for a client.
const RETRY_BUDGET: Duration = Duration::from_secs(12);
/// The first pause before a request is sent again, and the longest. Each is jittered.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What credentials are read from when none are configured: the variables that a pod's service account, a task or a shell
/// has. Not the whole `AWS_*` environment: its endpoint may well be our own.
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

/// Failed requests are sent again, with growing pauses, within [`RETRY_BUDGET`].
pub(super) fn retries() -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 2.0 };
    // The time is the limit.
    RetryConfig { backoff, max_retries: 1000, retry_timeout: RETRY_BUDGET }
}

/// The first answer counts.
pub(super) fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..retries() }
}

/// A client of one bucket.
///
/// # Errors
/// When the endpoint is no URL or the environment's settings contradict each other.
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
        // A pull takes as long as its client does; only silence ends it.
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(SILENCE)
        .with_allow_http(plain);
    builder = builder
        .with_client_options(options)
        .with_http_connector(Deadlines)
        .with_retry(retries)
        .with_bucket_name(bucket)
        .with_region(region)
        // A dot in a bucket's name breaks the certificate's wildcard.
        .with_virtual_hosted_style_request(endpoint.is_none() && !bucket.contains('.'))
        // TLS protects the bytes already; hashing them once more for the signature would cost as much as our own hash.
        .with_unsigned_payload(!plain)
        // One DELETE per object: bulk deletes are another permission, and not every server has them.
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder.build().map_err(|e| StoreError::Backend(Box::new(e)))
}
