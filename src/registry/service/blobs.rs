//! Whether a blob's bytes are there: what a read finds damaged is not offered any more until a push brings it again.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use super::Registry;
use wharfage_store::layers::Blob;
use wharfage_store::{BlobKey, BlobReader, StoreError, StoreResult};

impl Registry {
    /// Whether the bytes are there, and as many as there should be.
    pub(crate) async fn is_intact(&self, bytes: &BlobKey) -> StoreResult<bool> {
        Ok(self.blobs.stored_size(bytes.generation).await? == Some(bytes.stored_size))
    }

    /// Whether a blob can be offered. One that was found damaged is looked at again: its disk may be back.
    pub(crate) async fn is_usable(&self, blob: &Blob) -> StoreResult<bool> {
        if !blob.damaged {
            return Ok(true);
        }
        if !self.is_intact(&blob.bytes).await? {
            return Ok(false);
        }
        self.metadata.set_blob_damaged(blob.bytes.generation, None).await?;
        tracing::info!(digest = %blob.digest, "a damaged blob is whole again");
        Ok(true)
    }

    /// Whether the bytes of a blob are there now; it is remembered when they are not.
    pub(crate) async fn check_blob(&self, blob: &Blob) -> StoreResult<bool> {
        let intact = self.is_intact(&blob.bytes).await?;
        if !intact {
            self.report_damage(blob, "its bytes are gone or fewer").await?;
        }
        Ok(intact)
    }

    /// Opens a blob for reading; `None` when it is damaged.
    pub(crate) async fn read_blob(self: &Arc<Self>, blob: &Blob, range: Range<u64>) -> StoreResult<Option<BlobReader>> {
        let reader = match self.blobs.read(&blob.bytes, range).await {
            Ok(reader) => reader,
            Err(StoreError::Inconsistent(reason)) => {
                self.report_damage(blob, &reason).await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // What breaks under way breaks the answer, and is remembered for the next one.
        let (registry, blob) = (Arc::clone(self), blob.clone());
        let watched = reader.inspect_err(move |error| {
            if let StoreError::Inconsistent(reason) = error {
                let (registry, blob, reason) = (Arc::clone(&registry), blob.clone(), reason.clone());
                tokio::spawn(async move {
                    if let Err(error) = registry.report_damage(&blob, &reason).await {
                        tracing::error!(digest = %blob.digest, %error, "cannot remember that a blob is damaged");
                    }
                });
            }
        });
        Ok(Some(watched.boxed()))
    }

    /// A URL of the object store to read a blob from, where clients are sent there; `None` where they are not. What is
    /// damaged would only be found out by the client, so it is looked at first.
    pub(crate) async fn presigned_url(&self, blob: &Blob, valid_for: Duration) -> StoreResult<Option<String>> {
        if !self.config.redirect_blobs {
            return Ok(None);
        }
        let Some(url) = self.blobs.presigned_url(&blob.bytes, valid_for).await? else { return Ok(None) };
        if self.is_intact(&blob.bytes).await? {
            return Ok(Some(url));
        }
        Ok(None)
    }

    async fn report_damage(&self, blob: &Blob, reason: &str) -> StoreResult<()> {
        tracing::error!(
            digest = %blob.digest, reason,
            "a blob is damaged; it is answered as unknown until a push brings its bytes again"
        );
        self.metadata.set_blob_damaged(blob.bytes.generation, Some(Timestamp::now())).await
    }
}
