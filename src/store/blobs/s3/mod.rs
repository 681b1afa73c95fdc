//! Blobs in an S3 bucket: one object per generation, written by one PUT or as a multipart upload,
//! read by range.
//!
//! Every object is written once: by one PUT of the claim that has its generation, or by one
//! multipart upload, which names its own parts by their entity tags on completion. So nothing here
//! needs conditional writes, which not every server supports.
//!
//! If a crash comes before a row names a multipart upload, its parts are kept until the bucket's
//! own lifecycle rule (AbortIncompleteMultipartUpload) removes them. A bucket needs such a rule, of
//! at least a week and longer than uploads may last.

mod client;
mod deadlines;
mod failure;
mod part_memory;
mod state;
mod write;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http::{Method, StatusCode};
use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};

use self::failure::{Missing, store_error};
use self::part_memory::PartMemory;
use self::state::{ObjectProgress, TailLocation};
use super::{
    BlobKey, BlobReader, BlobWriter, Blobs, Generation, Handover, Inspect, Sealed, UploadKey,
    WriterState,
};
use crate::{StoreError, StoreResult};

/// The timeout of the readiness check.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// Memory of the HTTP client for a response that is not read: the last chunk and the buffer for the
/// next one.
const READER_MEMORY: usize = 512 * 1024;

/// The configuration of a bucket.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// Name of the bucket.
    pub bucket: String,
    /// Region that requests are signed for.
    pub region: String,
    /// URL of a server other than AWS. The bucket is the first segment of its paths. `http://` is
    /// used without TLS.
    pub endpoint: Option<String>,
    /// Access key; without one the credentials of the environment (web identity, container,
    /// instance or plain variables).
    pub credentials: Option<S3Credentials>,
    /// Prefix of all object keys; may be empty.
    pub prefix: String,
    /// Redirects clients to presigned URLs of the bucket instead of serving the bytes.
    pub redirect: bool,
}

/// A static access key.
#[derive(Clone)]
pub struct S3Credentials {
    /// Id of the key.
    pub access_key: String,
    /// Secret of the key.
    pub secret_key: String,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

/// Blobs in an S3 bucket.
#[derive(Clone)]
pub struct S3Blobs(Arc<Bucket>);

/// The bucket, shared by readers and writers.
struct Bucket {
    client: AmazonS3,
    /// Client of the readiness check.
    probe: AmazonS3,
    name: String,
    prefix: String,
    redirect: bool,
    part_memory: PartMemory,
}

impl S3Blobs {
    /// Creates a client. Sends no request yet: [`Blobs::ready`] does.
    ///
    /// # Errors
    /// When the configuration does not name a bucket, or its endpoint is not a URL.
    pub fn new(config: S3Config) -> StoreResult<Self> {
        let S3Config { bucket, region, endpoint, credentials, prefix, redirect } = config;
        if bucket.is_empty() {
            return Err(StoreError::Backend("the S3 bucket has no name".into()));
        }
        let client = client::build(
            &bucket,
            &region,
            endpoint.as_deref(),
            credentials.as_ref(),
            client::retries(),
        )?;
        // A separate client shares neither connections nor retries with other operations.
        let probe = client::build(
            &bucket,
            &region,
            endpoint.as_deref(),
            credentials.as_ref(),
            client::no_retries(),
        )?;
        Ok(Self(Arc::new(Bucket {
            client,
            probe,
            name: bucket,
            prefix,
            redirect,
            part_memory: PartMemory::default(),
        })))
    }
}

impl fmt::Debug for S3Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Blobs")
            .field("bucket", &self.0.name)
            .field("prefix", &self.0.prefix)
            .finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Blobs for S3Blobs {
    async fn writer(
        &self,
        key: &UploadKey,
        offset: u64,
        state: &WriterState,
        _handover: Handover,
        inspect: Arc<dyn Inspect>,
    ) -> StoreResult<Box<dyn BlobWriter>> {
        let fresh = key.as_stored()?;
        let progress = ObjectProgress::decode(state, fresh)?;
        if progress.len() != offset {
            let held = progress.len();
            let message = format!(
                "an upload's state holds {held} bytes, of which {offset} were acknowledged"
            );
            return Err(StoreError::Inconsistent(message));
        }
        Ok(Box::new(write::S3Writer::open(Arc::clone(&self.0), fresh, progress, inspect).await?))
    }

    async fn sealed(&self, size: u64, state: &WriterState) -> StoreResult<Option<Sealed>> {
        let Ok(progress) = ObjectProgress::decode(state, Generation::random()) else {
            return Ok(None);
        };
        let ObjectProgress {
            multipart: None,
            tail: Some(TailLocation::Saved { generation, len }),
            stale,
        } = progress
        else {
            return Ok(None);
        };
        if len != size || self.stored_size(generation).await? != Some(size) {
            return Ok(None);
        }
        Ok(Some(Sealed { generation, stored_size: size, leftover: stale, recovered: false }))
    }

    async fn read(&self, key: &BlobKey, range: Range<u64>) -> StoreResult<BlobReader> {
        let (generation, size) = (key.as_stored()?, key.size);
        if range.start > range.end || range.end > size {
            return Err(StoreError::Backend(
                format!("range {range:?} is not within {size} bytes").into(),
            ));
        }
        let path = self.0.path(generation);
        if range.is_empty() {
            self.0.check_object(&path, size).await?;
            return Ok(futures::stream::empty().boxed());
        }
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let found = match self.0.client.get_opts(&path, options).await {
            Ok(found) => found,
            Err(error @ object_store::Error::NotFound { .. }) => {
                self.0.ok_if_missing(error).await?;
                return Err(missing(&path));
            }
            // The object ends before the range begins, for which the client has no error of its
            // own.
            Err(e) if e.to_string().contains(StatusCode::RANGE_NOT_SATISFIABLE.as_str()) => {
                self.0.check_object(&path, size).await?;
                return Err(store_error(e));
            }
            Err(e) => return Err(store_error(e)),
        };
        check_size(&path, found.meta.size, size)?;
        Ok(found.into_stream().map_err(store_error).boxed())
    }

    fn reader_memory(&self) -> usize {
        READER_MEMORY
    }

    async fn stored_size(&self, generation: Generation) -> StoreResult<Option<u64>> {
        Ok(self.0.head(&self.0.path(generation)).await?.map(|found| found.size))
    }

    fn generations_to_delete(
        &self,
        generation: Generation,
        state: &WriterState,
    ) -> StoreResult<Vec<Generation>> {
        let ObjectProgress { multipart, tail, stale } = ObjectProgress::decode(state, generation)?;
        let tail = match tail {
            Some(TailLocation::Saved { generation, .. }) => Some(generation),
            Some(TailLocation::Inline(_)) | None => None,
        };
        let own_tail = (!generation.is_tail()).then(|| generation.tail());
        let multipart = multipart.map(|multipart| multipart.generation);
        Ok(stale
            .into_iter()
            .chain([generation])
            .chain(own_tail)
            .chain(multipart)
            .chain(tail)
            .collect())
    }

    async fn delete(
        &self,
        generation: Generation,
        state: &WriterState,
        live: &[Generation],
    ) -> StoreResult<()> {
        if let Some(multipart) = ObjectProgress::decode(state, generation)?.multipart {
            let path = self.0.path(multipart.generation);
            self.0
                .ignore_missing(self.0.client.abort_multipart(&path, &multipart.id).await)
                .await?;
        }
        for generation in self.generations_to_delete(generation, state)? {
            if !live.contains(&generation) {
                self.0.delete(generation).await?;
            }
        }
        Ok(())
    }

    async fn presigned_url(
        &self,
        key: &BlobKey,
        valid_for: Duration,
    ) -> StoreResult<Option<String>> {
        if !self.0.redirect || key.key.is_some() {
            return Ok(None);
        }
        let path = self.0.path(key.generation);
        let url =
            self.0.client.signed_url(Method::GET, &path, valid_for).await.map_err(store_error)?;
        Ok(Some(url.into()))
    }

    async fn ready(&self) -> StoreResult<()> {
        self.0.ready().await
    }
}

impl Bucket {
    fn path(&self, generation: Generation) -> Path {
        self.at(&generation.path())
    }

    fn at(&self, key: &str) -> Path {
        Path::from(format!("{}/{key}", self.prefix))
    }

    /// Checks that the object exists and has `size` bytes.
    async fn check_object(&self, path: &Path, size: u64) -> StoreResult<()> {
        match self.head(path).await? {
            Some(found) => check_size(path, found.size, size),
            None => Err(missing(path)),
        }
    }

    /// Returns the object's size and dates; none if it does not exist.
    async fn head(&self, path: &Path) -> StoreResult<Option<ObjectMeta>> {
        match self.client.head(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) => self.ok_if_missing(error).await.map(|()| None),
        }
    }

    /// Checks that the bucket answers and may be listed.
    async fn ready(&self) -> StoreResult<()> {
        // No object has this prefix, so the response is short.
        let nothing = self.at("ready");
        let mut listed = self.probe.list(Some(&nothing));
        let unavailable = |why: String| {
            StoreError::Unavailable(format!("the bucket {} is not ready: {why}", self.name))
        };
        match tokio::time::timeout(READY_TIMEOUT, listed.try_next()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(unavailable(store_error(error).to_string())),
            Err(_) => Err(unavailable(format!("no answer within {} s", READY_TIMEOUT.as_secs()))),
        }
    }

    /// Converts the result of a deletion, which succeeds if nothing existed.
    async fn ignore_missing(&self, outcome: object_store::Result<()>) -> StoreResult<()> {
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => self.ok_if_missing(error).await,
        }
    }

    /// Succeeds if an error says that an object or a multipart upload does not exist, in a bucket
    /// that does.
    ///
    /// # Errors
    /// Any other meaning of the error. A 404 alone proves nothing: a missing bucket, or a proxy on
    /// the way, answers the same, and the response to a HEAD does not distinguish them.
    async fn ok_if_missing(&self, error: object_store::Error) -> StoreResult<()> {
        match failure::missing(&error) {
            Missing::Object | Missing::Upload => Ok(()),
            Missing::Unknown => self.ready().await,
            Missing::None => Err(store_error(error)),
        }
    }

    async fn delete(&self, generation: Generation) -> StoreResult<()> {
        self.ignore_missing(self.client.delete(&self.path(generation)).await).await
    }
}

fn check_size(path: &Path, found: u64, expected: u64) -> StoreResult<()> {
    if found == expected {
        return Ok(());
    }
    Err(StoreError::Inconsistent(format!("{path} has {found} bytes instead of {expected}")))
}

fn missing(path: &Path) -> StoreError {
    StoreError::Inconsistent(format!("{path} is missing"))
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
            credentials: Some(S3Credentials {
                access_key: "AKIAEXAMPLE".into(),
                secret_key: "wonderland".into(),
            }),
            prefix: "p".into(),
            redirect: false,
        };
        assert!(!format!("{config:?}").contains("wonderland"));
        assert!(!format!("{:?}", S3Blobs::new(config).unwrap()).contains("wonderland"));
    }
}
