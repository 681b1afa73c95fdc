//! The claim on an upload session, and its heartbeat.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::service::Registry;
use wharfage_store::Handover;
use wharfage_store::uploads::UploadError;

/// The duration of a claim without a heartbeat: a client whose replica has died waits as long.
pub(super) const CLAIM_DURATION: Duration = Duration::from_secs(30);
/// The time between two renewals of a claim.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// A claim of this process, renewed until it is dropped.
pub(super) struct HeldClaim {
    pub(super) handover: Handover,
    pub(super) renewed: Arc<LastRenewal>,
    heartbeat: JoinHandle<()>,
}

impl HeldClaim {
    /// Holds a claim that was granted just now, and starts its heartbeat.
    pub(super) fn new(registry: Arc<Registry>, id: Uuid, version: i64, handover: Handover) -> Self {
        let renewed = Arc::new(LastRenewal(Mutex::new(Some(Instant::now()))));
        let heartbeat = tokio::spawn(renew_until_lost(registry, id, version, Arc::clone(&renewed)));
        Self { handover, renewed, heartbeat }
    }
}

impl Drop for HeldClaim {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// The time of a claim's last renewal; `None` once the claim is known to be lost.
pub(super) struct LastRenewal(Mutex<Option<Instant>>);

impl LastRenewal {
    pub(super) fn set(&self, renewed: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
    }

    /// Returns whether the claim lasts long enough to begin a request to the object store.
    pub(super) fn is_fresh(&self) -> bool {
        let renewed = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.is_some_and(|at| at.elapsed() < HEARTBEAT_INTERVAL * 2)
    }
}

/// Renews a claim at every heartbeat, until it is lost.
async fn renew_until_lost(
    registry: Arc<Registry>,
    id: Uuid,
    version: i64,
    renewed: Arc<LastRenewal>,
) {
    loop {
        tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        let asked = Instant::now();
        match registry.metadata.renew_upload(id, version, Timestamp::now(), CLAIM_DURATION).await {
            Ok(()) => renewed.set(Some(asked)),
            Err(UploadError::Store(error)) => {
                tracing::warn!(upload = %id, %error, "cannot renew the claim on an upload; trying again");
            }
            Err(_) => return renewed.set(None),
        }
    }
}
