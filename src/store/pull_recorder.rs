//! Records when images were last pulled: many pulls in one write, outside of their requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use super::manifests::{Manifest, ManifestId};
use super::{Metadata, StoreResult};
use wharfage_process::shutdown::Stop;

/// Minimum age of a recorded pull before another one replaces it. ECR promises a precision of a
/// day.
const PRECISION: SignedDuration = SignedDuration::from_hours(6);

/// Returns true if a pull of this manifest is to be recorded.
fn is_due(manifest: &Manifest, now: Timestamp) -> bool {
    manifest.last_pulled_at.is_none_or(|last| now.duration_since(last) >= PRECISION)
}

/// Pause before failed writes are retried.
const RETRY: Duration = Duration::from_secs(1);

/// Maximum number of noted manifests. A pull beyond it is dropped; the manifest's next pull may be
/// noted.
const MAX_PENDING: usize = 100_000;

/// Pulls that have been noted and not yet written. A busy manifest is noted a few times a day, so
/// the hot path only compares times.
#[derive(Debug)]
pub struct PullRecorder {
    metadata: Arc<dyn Metadata>,
    pending: Mutex<HashMap<ManifestId, Timestamp>>,
    /// Held during a write.
    writing: tokio::sync::Mutex<()>,
    noted: Notify,
}

impl PullRecorder {
    /// Creates a recorder for this store.
    pub fn new(metadata: Arc<dyn Metadata>) -> Self {
        let (pending, writing, noted) = Default::default();
        Self { metadata, pending, writing, noted }
    }

    /// Notes that a manifest was pulled. [`PullRecorder::run`] writes it, together with others.
    pub fn note(&self, manifest: &Manifest, now: Timestamp) {
        if !is_due(manifest, now) {
            return;
        }
        let mut pending = self.pending();
        if pending.len() < MAX_PENDING {
            pending.insert(manifest.id, now);
            drop(pending);
            self.noted.notify_one();
        }
    }

    /// Records immediately those pulls that are to be recorded, so that the next request sees them.
    ///
    /// # Errors
    /// The store's.
    pub async fn record(&self, manifests: &[Manifest], now: Timestamp) -> StoreResult<()> {
        let due = manifests.iter().filter(|manifest| is_due(manifest, now));
        let pulls: Vec<(ManifestId, Timestamp)> = due.map(|manifest| (manifest.id, now)).collect();
        if pulls.is_empty() { Ok(()) } else { self.metadata.record_pulls(&pulls).await }
    }

    /// Writes noted pulls until `stop`, and then the rest.
    // Boxed, so that this crate compiles it: an `async fn` is compiled with the crate that awaits
    // it.
    pub fn run(self: Arc<Self>, mut stop: Stop) -> BoxFuture<'static, ()> {
        async move {
            loop {
                let ended = tokio::select! {
                    () = self.noted.notified() => false,
                    _ = stop.wait_for(|stop| *stop) => true,
                };
                if let Err(error) = self.flush().await {
                    tracing::warn!(%error, "cannot record pulls; trying again in {} s", RETRY.as_secs());
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => self.noted.notify_one(),
                        _ = stop.wait_for(|stop| *stop) => {}
                    }
                }
                if ended {
                    return;
                }
            }
        }
        .boxed()
    }

    /// Writes the noted pulls, and waits for those being written. After that every pull noted
    /// before the call is recorded. Pulls noted during the write are left to the next call.
    ///
    /// # Errors
    /// The store's; the pulls remain noted.
    pub async fn flush(&self) -> StoreResult<()> {
        let _writing = self.writing.lock().await;
        let pulls: Vec<(ManifestId, Timestamp)> =
            self.pending().iter().map(|(id, at)| (*id, *at)).collect();
        if pulls.is_empty() {
            return Ok(());
        }
        self.metadata.record_pulls(&pulls).await?;
        let mut pending = self.pending();
        for (id, at) in pulls {
            // A later pull of the same manifest is still to be written.
            if pending.get(&id) == Some(&at) {
                pending.remove(&id);
            }
        }
        Ok(())
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<ManifestId, Timestamp>> {
        // A map of times cannot be half changed, so it is valid after a panic.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::images::ImageStatus;
    use crate::sqlite::SqliteStore;
    use wharfage_domain::names::Digest;

    fn manifest(last_pulled_at: Option<Timestamp>) -> Manifest {
        Manifest {
            id: ManifestId(7),
            digest: Digest::sha256(b"{}"),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            payload: Bytes::from_static(b"{}"),
            status: ImageStatus::Active,
            last_pulled_at,
        }
    }

    fn noted(last_pulled_at: Option<Timestamp>, now: Timestamp) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("metadata.sqlite")).unwrap();
        let recorder = PullRecorder::new(Arc::new(store));
        recorder.note(&manifest(last_pulled_at), now);
        !recorder.pending.lock().unwrap().is_empty()
    }

    #[test]
    fn a_pull_is_recorded_hours_after_the_last_one() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        assert!(noted(None, now), "the first pull is noted");
        assert!(noted(Some(now - SignedDuration::from_hours(7)), now));
        assert!(!noted(Some(now - SignedDuration::from_hours(5)), now));
        assert!(
            !noted(Some(now + SignedDuration::from_hours(1)), now),
            "a clock that went back changes nothing"
        );
    }
}
