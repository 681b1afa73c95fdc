//! Records when images were last pulled: many pulls in one write, away from the requests that made them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use super::images::{Manifest, ManifestId};
use super::{Metadata, StoreResult};
use crate::shutdown::Stop;

/// How old a recorded pull has to be before another one replaces it: ECR promises a day.
const PRECISION: SignedDuration = SignedDuration::from_hours(6);
/// Whether a pull of this manifest is worth recording.
fn is_due(manifest: &Manifest, now: Timestamp) -> bool {
    manifest.last_pulled_at.is_none_or(|last| now.duration_since(last) >= PRECISION)
}

/// When pulls that could not be recorded are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How many manifests may wait; what is pulled beyond that is noted at its next pull.
const MAX_PENDING: usize = 100_000;

/// Pulls that are not written yet. A busy manifest is noted a few times a day, so the hot path costs a comparison of times.
#[derive(Debug)]
pub struct PullRecorder {
    metadata: Arc<dyn Metadata>,
    pending: Mutex<HashMap<ManifestId, Timestamp>>,
    /// Held while pulls are written.
    writing: tokio::sync::Mutex<()>,
    noted: Notify,
}

impl PullRecorder {
    /// Records pulls in this store.
    pub fn new(metadata: Arc<dyn Metadata>) -> Self {
        let (pending, writing, noted) = Default::default();
        Self { metadata, pending, writing, noted }
    }

    /// Notes that a manifest was pulled. Writes nothing: [`PullRecorder::run`] does, for many pulls at once.
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

    /// Records pulls at once, those that need recording: whoever asks next sees them.
    ///
    /// # Errors
    /// The store's.
    pub async fn record(&self, manifests: &[Manifest], now: Timestamp) -> StoreResult<()> {
        let due = manifests.iter().filter(|manifest| is_due(manifest, now));
        let pulls: Vec<(ManifestId, Timestamp)> = due.map(|manifest| (manifest.id, now)).collect();
        if pulls.is_empty() { Ok(()) } else { self.metadata.record_pulls(&pulls).await }
    }

    /// Writes noted pulls until `stop`, and what is left then.
    pub async fn run(self: Arc<Self>, mut stop: Stop) {
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

    /// Writes the pulls that are noted, and waits for those that are being written: afterwards every pull that this process
    /// has noted before is recorded. What is noted while this writes is written by the next call.
    ///
    /// # Errors
    /// The store's; the pulls stay noted.
    pub async fn flush(&self) -> StoreResult<()> {
        let _writing = self.writing.lock().await;
        let pulls: Vec<(ManifestId, Timestamp)> = self.pending().iter().map(|(id, at)| (*id, *at)).collect();
        if pulls.is_empty() {
            return Ok(());
        }
        self.metadata.record_pulls(&pulls).await?;
        let mut pending = self.pending();
        for (id, at) in pulls {
            // One that was noted since is still to be written.
            if pending.get(&id) == Some(&at) {
                pending.remove(&id);
            }
        }
        Ok(())
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<ManifestId, Timestamp>> {
        // A map of times cannot be half changed, so a panic elsewhere leaves nothing to fear in it.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::names::Digest;
    use crate::store::images::ImageStatus;
    use crate::store::sqlite::SqliteStore;

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
    fn a_pull_is_noted_when_none_was_for_hours() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        assert!(noted(None, now), "the first pull is noted");
        assert!(noted(Some(now - SignedDuration::from_hours(7)), now));
        assert!(!noted(Some(now - SignedDuration::from_hours(5)), now));
        assert!(!noted(Some(now + SignedDuration::from_hours(1)), now), "a clock that went back changes nothing");
    }
}
