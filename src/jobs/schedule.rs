//! What is due by the clock: lifecycle policies that were not evaluated for an interval, uploads that nobody goes on with.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Settings, lifecycle_job, pause};
use crate::registry::Registry;
use crate::registry::server::Stop;
use crate::store::StoreResult;

/// How many rows one look takes.
const PAGE: usize = 500;

/// Looks for what is due, a few times an interval, until `stop`.
pub(super) async fn run(registry: Arc<Registry>, settings: Settings, mut stop: Stop) {
    let every = (settings.lifecycle_interval / 4).clamp(Duration::from_millis(250), Duration::from_secs(60));
    while !*stop.borrow() {
        if let Err(error) = look(&registry, &settings, Timestamp::now()).await {
            tracing::warn!(%error, "cannot look for what is due");
        }
        pause(every, &mut stop).await;
    }
}

async fn look(registry: &Registry, settings: &Settings, now: Timestamp) -> StoreResult<()> {
    let before = now - settings.lifecycle_interval;
    // Enqueued twice is enqueued once: jobs coalesce. What does not fit in one page comes with the next look, as what was
    // evaluated by then is no longer due.
    for repository in registry.metadata.repositories_due_for_lifecycle(before, PAGE).await? {
        registry.metadata.enqueue_job(lifecycle_job(repository.id, now)).await?;
    }
    let given_up = registry.metadata.cancel_stale_uploads(now - settings.upload_expiry, now, PAGE).await?;
    if given_up > 0 {
        tracing::info!(uploads = given_up, "gave up upload sessions that nobody went on with");
    }
    Ok(())
}
