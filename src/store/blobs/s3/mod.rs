//! Blobs in an S3 bucket: one object per generation, written by one PUT or as a multipart upload, read by range.
//!
//! Parts of a multipart upload that a crash orphaned before anything remembered it stay until the bucket's own lifecycle
//! rule (AbortIncompleteMultipartUpload) removes them: a bucket wants one, of a week or longer than uploads may last.

mod admission;
mod state;
mod write;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http::{Method, StatusCode};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig};

use self::admission::Admission;
use self::state::Progress;
use super::{BlobReader, BlobWriter, Blobs, Generation, WriterState};
use crate::store::{StoreError, StoreResult};

/// How long to try for a connection, and how long a connection may stay silent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(60);
/// How long the bucket may take to answer whether it is there.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Where the bucket is and how to reach it.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// The bucket's name.
    pub bucket: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The server's URL where it isn't AWS; buckets are the first segment of its paths. `http://` is taken at its word.
    pub endpoint: Option<String>,
    /// An access key; without one, what the environment has (web identity, container, instance or plain variables).
    pub credentials: Option<S3Credentials>,
    /// What the keys of all objects begin with; empty for none.
    pub prefix: String,
    /// Whether clients may be sent to the bucket by presigned URLs instead of reading through this server.
    pub redirect: bool,
}

/// A static access key.
#[derive(Clone)]
pub struct S3Credentials {
    /// The key's id.
    pub access_key: String,
    /// The key's secret.
    pub secret_key: String,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// Blobs in an S3 bucket.
#[derive(Clone)]
pub struct S3Blobs(Arc<Bucket>);

/// The bucket, which readers and writers share.
struct Bucket {
    client: AmazonS3,
    name: String,
    prefix: String,
    redirect: bool,
    admission: Admission,
}

impl S3Blobs {
    /// Prepares a client. Asks the bucket nothing yet: [`Blobs::ready`] does.
    ///
    /// # Errors
    /// When the configuration does not name a bucket or its endpoint is no URL.
    pub fn new(config: S3Config) -> StoreResult<Self> {
        let S3Config { bucket, region, endpoint, credentials, prefix, redirect } = config;
        if bucket.is_empty() {
            return Err(StoreError::Backend("the S3 bucket has no name".into()));
        }
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
        let plain = endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
        let options = ClientOptions::new()
            // A pull takes as long as its client does; only silence ends it.
            .with_timeout_disabled()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_read_timeout(SILENCE)
            .with_allow_http(plain);
        builder = builder
            .with_client_options(options)
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: 4,
                retry_timeout: Duration::from_secs(60),
            })
            .with_bucket_name(&bucket)
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
        let client = builder.build().map_err(|e| StoreError::Backend(Box::new(e)))?;
        Ok(Self(Arc::new(Bucket { client, name: bucket, prefix, redirect, admission: Admission::default() })))
    }
}

impl fmt::Debug for S3Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Blobs").field("bucket", &self.0.name).field("prefix", &self.0.prefix).finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Blobs for S3Blobs {
    async fn writer(
        &self,
        generation: Generation,
        offset: u64,
        state: &WriterState,
    ) -> StoreResult<Box<dyn BlobWriter>> {
        let progress = Progress::decode(state, offset)?;
        let path = self.0.path(generation);
        Ok(Box::new(write::S3Writer::open(Arc::clone(&self.0), path, progress).await?))
    }

    async fn read(&self, generation: Generation, size: u64, range: Range<u64>) -> StoreResult<BlobReader> {
        if range.start > range.end || range.end > size {
            return Err(StoreError::Backend(format!("range {range:?} is not within {size} bytes").into()));
        }
        let path = self.0.path(generation);
        if range.is_empty() {
            self.0.expect(&path, size).await?;
            return Ok(futures::stream::empty().boxed());
        }
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let found = match self.0.client.get_opts(&path, options).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Err(missing(&path)),
            // The object ends before the range begins; the client has no error of its own for that.
            Err(e) if e.to_string().contains(StatusCode::RANGE_NOT_SATISFIABLE.as_str()) => {
                self.0.expect(&path, size).await?;
                return Err(failed(e));
            }
            Err(e) => return Err(failed(e)),
        };
        sized(&path, found.meta.size, size)?;
        Ok(found.into_stream().map_err(failed).boxed())
    }

    async fn delete(&self, generation: Generation, state: &WriterState) -> StoreResult<()> {
        let path = self.0.path(generation);
        if let Some(id) = Progress::multipart_id(state) {
            absent_is_fine(self.0.client.abort_multipart(&path, &id).await)?;
        }
        absent_is_fine(self.0.client.delete(&path).await)
    }

    async fn presigned_url(&self, generation: Generation, valid_for: Duration) -> StoreResult<Option<String>> {
        if !self.0.redirect {
            return Ok(None);
        }
        let url = self.0.client.signed_url(Method::GET, &self.0.path(generation), valid_for).await.map_err(failed)?;
        Ok(Some(url.into()))
    }

    async fn ready(&self) -> StoreResult<()> {
        // Below this prefix there never is anything: the answer is short.
        let nothing = self.0.at("ready");
        let mut listed = self.0.client.list(Some(&nothing));
        match tokio::time::timeout(READY_TIMEOUT, listed.try_next()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(StoreError::Unavailable(format!("the bucket {} does not answer: {e}", self.0.name))),
            Err(_) => Err(StoreError::Unavailable(format!("the bucket {} does not answer", self.0.name))),
        }
    }
}

impl Bucket {
    fn path(&self, generation: Generation) -> Path {
        self.at(&generation.path())
    }

    fn at(&self, key: &str) -> Path {
        Path::from(format!("{}/{key}", self.prefix))
    }

    /// That the object is there and has `size` bytes.
    async fn expect(&self, path: &Path, size: u64) -> StoreResult<()> {
        match self.client.head(path).await {
            Ok(found) => sized(path, found.size, size),
            Err(object_store::Error::NotFound { .. }) => Err(missing(path)),
            Err(e) => Err(failed(e)),
        }
    }
}

fn sized(path: &Path, found: u64, expected: u64) -> StoreResult<()> {
    if found == expected {
        return Ok(());
    }
    Err(StoreError::Inconsistent(format!("{path} has {found} bytes instead of {expected}")))
}

fn missing(path: &Path) -> StoreError {
    StoreError::Inconsistent(format!("{path} is missing"))
}

fn absent_is_fine(outcome: object_store::Result<()>) -> StoreResult<()> {
    match outcome {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// What a request's failure means, after the client has retried it. The client's messages hold no secrets: it names the
/// object and repeats the server's answer.
fn failed(error: object_store::Error) -> StoreError {
    match error {
        // No connection, silence, SlowDown, a 5xx: the client doesn't tell them apart, and all of them pass.
        object_store::Error::Generic { .. } => StoreError::Unavailable(error.to_string()),
        other => StoreError::Backend(Box::new(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let config = S3Config {
            bucket: "b".into(),
            region: "eu-central-1".into(),
            endpoint: Some("http://127.0.0.1:1".into()),
            credentials: Some(S3Credentials { access_key: "AKIAEXAMPLE".into(), secret_key: "wonderland".into() }),
            prefix: "p".into(),
            redirect: false,
        };
        assert!(!format!("{config:?}").contains("wonderland"));
        assert!(!format!("{:?}", S3Blobs::new(config).unwrap()).contains("wonderland"));
    }
}
