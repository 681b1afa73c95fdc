//! Blobs in an S3 bucket: one object per generation, written by one PUT or as a multipart upload, read by range.
//!
//! Every object is written once: one PUT by the claim that has its generation, or one multipart upload, which names its own
//! parts by their entity tags when it ends. So nothing here relies on conditional writes, which not every server has.
//!
//! Parts of a multipart upload that a crash orphaned before anything remembered it stay until the bucket's own lifecycle
//! rule (AbortIncompleteMultipartUpload) removes them: a bucket wants one, of a week or longer than uploads may last.

mod admission;
mod client;
mod deadlines;
mod failure;
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

use self::admission::Admission;
use self::failure::{Missing, failed};
use self::state::{Progress, Tail};
use super::{BlobKey, BlobReader, BlobWriter, Blobs, Generation, Handover, Inspect, Sealed, UploadKey, WriterState};
use crate::store::{StoreError, StoreResult};

/// How long the bucket may take to answer whether it is there.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// What the HTTP client has of an answer that is not read on: the chunk that was read and the buffer for the next one.
const READER_MEMORY: usize = 512 * 1024;

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
    /// For questions whether the bucket answers.
    probe: AmazonS3,
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
        let client = client::build(&bucket, &region, endpoint.as_deref(), credentials.as_ref(), client::retries())?;
        // A client of its own shares neither connections nor retries with the work.
        let probe = client::build(&bucket, &region, endpoint.as_deref(), credentials.as_ref(), client::no_retries())?;
        Ok(Self(Arc::new(Bucket { client, probe, name: bucket, prefix, redirect, admission: Admission::default() })))
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
        key: &UploadKey,
        offset: u64,
        state: &WriterState,
        _handover: Handover,
        inspect: Arc<dyn Inspect>,
    ) -> StoreResult<Box<dyn BlobWriter>> {
        let fresh = key.as_stored()?;
        let progress = Progress::decode(state, fresh)?;
        if progress.len() != offset {
            let held = progress.len();
            let told = format!("an upload's state holds {held} bytes, of which {offset} were acknowledged");
            return Err(StoreError::Inconsistent(told));
        }
        Ok(Box::new(write::S3Writer::open(Arc::clone(&self.0), fresh, progress, inspect).await?))
    }

    async fn sealed(&self, size: u64, state: &WriterState) -> StoreResult<Option<Sealed>> {
        let Ok(progress) = Progress::decode(state, Generation::random()) else { return Ok(None) };
        let Progress { multipart: None, tail: Some(Tail::Saved { generation, len }), stale } = progress else {
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
            Err(error @ object_store::Error::NotFound { .. }) => {
                self.0.absent(error).await?;
                return Err(missing(&path));
            }
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

    fn reader_memory(&self) -> usize {
        READER_MEMORY
    }

    async fn stored_size(&self, generation: Generation) -> StoreResult<Option<u64>> {
        Ok(self.0.look(&self.0.path(generation)).await?.map(|found| found.size))
    }

    fn named(&self, generation: Generation, state: &WriterState) -> StoreResult<Vec<Generation>> {
        let Progress { multipart, tail, stale } = Progress::decode(state, generation)?;
        let tail = match tail {
            Some(Tail::Saved { generation, .. }) => Some(generation),
            Some(Tail::Inline(_)) | None => None,
        };
        let own_tail = (!generation.is_tail()).then(|| generation.tail());
        let multipart = multipart.map(|multipart| multipart.generation);
        Ok(stale.into_iter().chain([generation]).chain(own_tail).chain(multipart).chain(tail).collect())
    }

    async fn delete(&self, generation: Generation, state: &WriterState, live: &[Generation]) -> StoreResult<()> {
        if let Some(multipart) = Progress::decode(state, generation)?.multipart {
            let path = self.0.path(multipart.generation);
            self.0.gone(self.0.client.abort_multipart(&path, &multipart.id).await).await?;
        }
        for doomed in self.named(generation, state)? {
            if !live.contains(&doomed) {
                self.0.delete(doomed).await?;
            }
        }
        Ok(())
    }

    async fn presigned_url(&self, key: &BlobKey, valid_for: Duration) -> StoreResult<Option<String>> {
        if !self.0.redirect || key.key.is_some() {
            return Ok(None);
        }
        let path = self.0.path(key.generation);
        let url = self.0.client.signed_url(Method::GET, &path, valid_for).await.map_err(failed)?;
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

    /// That the object is there and has `size` bytes.
    async fn expect(&self, path: &Path, size: u64) -> StoreResult<()> {
        match self.look(path).await? {
            Some(found) => sized(path, found.size, size),
            None => Err(missing(path)),
        }
    }

    /// The object's size and dates; none when it is not there.
    async fn look(&self, path: &Path) -> StoreResult<Option<ObjectMeta>> {
        match self.client.head(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) => self.absent(error).await.map(|()| None),
        }
    }

    /// Whether the bucket answers and may be listed.
    async fn ready(&self) -> StoreResult<()> {
        // Below this prefix there never is anything: the answer is short.
        let nothing = self.at("ready");
        let mut listed = self.probe.list(Some(&nothing));
        let unavailable =
            |why: String| StoreError::Unavailable(format!("the bucket {} is not ready: {why}", self.name));
        match tokio::time::timeout(READY_TIMEOUT, listed.try_next()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(unavailable(failed(error).to_string())),
            Err(_) => Err(unavailable(format!("no answer within {} s", READY_TIMEOUT.as_secs()))),
        }
    }

    /// The outcome of a deletion, for which nothing needs to have been there.
    async fn gone(&self, outcome: object_store::Result<()>) -> StoreResult<()> {
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => self.absent(error).await,
        }
    }

    /// That an error says that an object or a multipart upload is not there, in a bucket that is.
    ///
    /// # Errors
    /// What else the error means. A 404 alone proves nothing: a bucket that is gone, or something between here and the
    /// bucket, answers so, too, and the answer to a HEAD does not say which it is.
    async fn absent(&self, error: object_store::Error) -> StoreResult<()> {
        match failure::missing(&error) {
            Missing::Object | Missing::Upload => Ok(()),
            Missing::Something => self.ready().await,
            Missing::Nothing => Err(failed(error)),
        }
    }

    async fn delete(&self, generation: Generation) -> StoreResult<()> {
        self.gone(self.client.delete(&self.path(generation)).await).await
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
