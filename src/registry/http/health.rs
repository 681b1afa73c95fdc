//! The health and the metrics of the registries of a process, for the admin server. Each check
//! has its own time limit and waits for no other work, so the response comes whatever the state of
//! the stores.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join, join_all};

use crate::message::memory;
use crate::service::Registry;
use wharfage_process::admin::{HealthEndpoints, OK};
use wharfage_process::shutdown::Stop;
use wharfage_store::jobs;
use wharfage_store::{StoreError, StoreResult};

/// The time limit of a store's readiness check. The stores' own limits are shorter; this one always
/// holds.
const READY_TIMEOUT: Duration = Duration::from_millis(2500);
/// The time for which readiness reports that a connection was refused because all others were busy.
const BUSY_FOR: Duration = Duration::from_secs(10);
/// The time limit for counting uploads and jobs in the database.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

/// The registries of a process, as the admin server shows them. After `stopping`, `/readyz`
/// reports it: load balancers must learn it while the last transfers still run.
pub struct Registries {
    /// The registries; they share one set of metrics.
    pub registries: Vec<Arc<Registry>>,
    /// Becomes true when the process stops.
    pub stopping: Stop,
}

/// The health of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
enum StoreHealth {
    Ready,
    /// Reads and deletions work; pushes do not, because the disk is full.
    Full(String),
    /// The store does not work.
    Down(String),
}

impl StoreHealth {
    async fn of(ready: impl Future<Output = StoreResult<()>>) -> Self {
        match tokio::time::timeout(READY_TIMEOUT, ready).await {
            Ok(Ok(())) => Self::Ready,
            Ok(Err(StoreError::Full(why))) => Self::Full(why),
            Ok(Err(error)) => Self::Down(error.to_string()),
            Err(_) => Self::Down(format!("no answer within {} ms", READY_TIMEOUT.as_millis())),
        }
    }
}

impl Registries {
    /// Checks all stores at the same time: database and blobs of each registry.
    async fn stores(&self) -> Vec<(&'static str, StoreHealth)> {
        let asked = self.registries.iter().map(async |registry| {
            let (metadata, blobs) = join(
                StoreHealth::of(registry.metadata.ready()),
                StoreHealth::of(registry.blobs.ready()),
            )
            .await;
            [("metadata", metadata), ("blobs", blobs)]
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Sets the gauges of uploads and jobs, summed over the registries. A database that does not
    /// answer in time is left out.
    async fn count(&self) {
        let counted = self.registries.iter().map(async |registry| {
            let counts = async {
                StoreResult::Ok((
                    registry.metadata.count_uploads().await?,
                    registry.metadata.count_jobs(&jobs::KINDS).await?,
                ))
            };
            let silent = |_| {
                StoreError::Unavailable(format!("no answer within {} s", COUNT_TIMEOUT.as_secs()))
            };
            tokio::time::timeout(COUNT_TIMEOUT, counts).await.map_err(silent)?
        });
        let (mut open, mut jobs) = (0, Vec::new());
        for counted in join_all(counted).await {
            match counted {
                Ok((uploads, counts)) => {
                    open += uploads;
                    jobs.extend(counts);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot count uploads and jobs; their metrics are not updated")
                }
            }
        }
        if let Some(registry) = self.registries.first() {
            registry.metrics.set_gauges(open, &jobs);
        }
    }
}

#[async_trait]
impl HealthEndpoints for Registries {
    async fn ready(&self) -> Result<Cow<'static, str>, String> {
        if *self.stopping.borrow() {
            return Err("stopping".into());
        }
        let busy =
            self.registries.iter().filter_map(|registry| registry.metrics.since_refusal()).min();
        // The process stays ready: otherwise clients of the busy connections would go to the other
        // replicas.
        let mut said = match busy {
            Some(since) if since < BUSY_FOR => {
                Cow::Borrowed("ok, but all connections are busy: new ones are refused")
            }
            _ => OK,
        };
        for (store, health) in self.stores().await {
            match health {
                StoreHealth::Ready => {}
                StoreHealth::Full(why) => {
                    tracing::warn!(store, error = why, "the store is full; pushes are refused");
                    said = Cow::Borrowed(
                        "ok, but the disk is full: pulls and deletions are served, pushes are refused",
                    );
                }
                StoreHealth::Down(why) => {
                    tracing::warn!(store, error = why, "not ready");
                    return Err(format!("{store}: the store does not answer; the log says why"));
                }
            }
        }
        Ok(said)
    }

    async fn metrics(&self) -> anyhow::Result<String> {
        let Some(registry) = self.registries.first() else { return Ok(String::new()) };
        let (stores, ()) = join(self.stores(), self.count()).await;
        for name in ["metadata", "blobs"] {
            let of_kind =
                || stores.iter().filter(move |(store, _)| *store == name).map(|(_, health)| health);
            let up = !of_kind().any(|health| matches!(health, StoreHealth::Down(_)));
            let full = of_kind().any(|health| matches!(health, StoreHealth::Full(_)));
            registry.metrics.set_store(name, up, full);
        }
        for (name, share) in memory::process().shares() {
            registry.metrics.set_memory(name, share.size(), share.used(), share.refused());
        }
        let free = self.registries.iter().filter_map(|registry| registry.disk.as_ref()?.free());
        if let Some(free) = free.min() {
            registry.metrics.set_disk_free(free);
        }
        Ok(registry.metrics.encode()?)
    }
}
