//! Damaged blobs: a read that finds one marks it, and it is not offered until a push replaces its
//! bytes.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use super::Registry;
use wharfage_store::layers::Blob;
use wharfage_store::{BlobKey, BlobReader, StoreError, StoreResult};

impl Registry {
    /// Returns whether the object exists and has the right size.
    pub(crate) async fn is_intact(&self, bytes: &BlobKey) -> StoreResult<bool> {
        Ok(self.blobs.stored_size(bytes.generation).await? == Some(bytes.stored_size))
    }

    /// Returns whether a blob can be offered. A damaged one is checked again: its disk may be back.
    pub(crate) async fn is_usable(&self, blob: &Blob) -> StoreResult<bool> {
        if !blob.damaged {
            return Ok(true);
        }
        if !self.is_intact(&blob.bytes).await? {
            return Ok(false);
        }
        self.metadata.set_blob_damaged(blob.bytes.generation, None).await?;
        tracing::info!(digest = %blob.digest, "a damaged blob is intact again");
        Ok(true)
    }

    /// Checks that the object of a blob exists, and marks the blob as damaged otherwise.
    pub(crate) async fn check_blob(&self, blob: &Blob) -> StoreResult<bool> {
        let intact = self.is_intact(&blob.bytes).await?;
        if !intact {
            self.report_damage(blob, "its object is missing or has another size").await?;
        }
        Ok(intact)
    }

    /// Opens a blob for reading; `None` when it is damaged.
    pub(crate) async fn read_blob(
        self: &Arc<Self>,
        blob: &Blob,
        range: Range<u64>,
    ) -> StoreResult<Option<BlobReader>> {
        let reader = match self.blobs.read(&blob.bytes, range).await {
            Ok(reader) => reader,
            Err(StoreError::Inconsistent(reason)) => {
                self.report_damage(blob, &reason).await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // An error during the response breaks it, and is recorded for the next one.
        let (registry, blob) = (Arc::clone(self), blob.clone());
        let watched = reader.inspect_err(move |error| {
            if let StoreError::Inconsistent(reason) = error {
                let (registry, blob, reason) = (Arc::clone(&registry), blob.clone(), reason.clone());
                tokio::spawn(async move {
                    if let Err(error) = registry.report_damage(&blob, &reason).await {
                        tracing::error!(digest = %blob.digest, %error, "cannot record that a blob is damaged");
                    }
                });
            }
        });
        Ok(Some(watched.boxed()))
    }

    /// Returns a URL of the object store for a blob, if reads are redirected. Only the client would
    /// notice a damaged object, so it is checked first.
    pub(crate) async fn presigned_url(
        &self,
        blob: &Blob,
        valid_for: Duration,
    ) -> StoreResult<Option<String>> {
        if !self.config.redirect_blobs {
            return Ok(None);
        }
        let Some(url) = self.blobs.presigned_url(&blob.bytes, valid_for).await? else {
            return Ok(None);
        };
        if self.is_intact(&blob.bytes).await? {
            return Ok(Some(url));
        }
        Ok(None)
    }

    async fn report_damage(&self, blob: &Blob, reason: &str) -> StoreResult<()> {
        tracing::error!(
            digest = %blob.digest, reason,
            "a blob is damaged; it is reported as unknown until a push replaces it"
        );
        self.metadata.set_blob_damaged(blob.bytes.generation, Some(Timestamp::now())).await
    }
}
