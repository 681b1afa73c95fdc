//! How the registries of a process are doing, for the admin server. Every question has a time limit of its own and
//! waits behind nobody's work, so that the answer comes whatever the stores do.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join, join_all};

use super::Registry;
use super::http::memory;
use wharfage_process::admin::{HealthEndpoints, OK};
use wharfage_process::shutdown::Stop;
use wharfage_store::jobs;
use wharfage_store::{StoreError, StoreResult};

/// How long a store may take to say that it is ready. Its own limits are shorter; this one holds whatever they do.
const READY_TIMEOUT: Duration = Duration::from_millis(2500);
/// For how long readiness tells that a connection was refused because all others were busy.
const BUSY_FOR: Duration = Duration::from_secs(10);
/// How long the database may take to count what stands, for the metrics.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

/// The registries of a process, as the admin server shows them. From `stopping` on `/readyz` says so: who routes traffic by
/// it has to hear that while the last transfers still run.
pub struct Registries {
    /// The registries; they share one set of metrics.
    pub registries: Vec<Arc<Registry>>,
    /// Whether the process ends.
    pub stopping: Stop,
}

/// What a store says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    Ready,
    /// Reads and deletions are served, pushes are not: there is no room for them.
    Full(String),
    /// Nothing can be relied on.
    Down(String),
}

impl Health {
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
    /// Asks every store at once: of each registry its database and its blobs.
    async fn stores(&self) -> Vec<(&'static str, Health)> {
        let asked = self.registries.iter().map(async |registry| {
            let (metadata, blobs) =
                join(Health::of(registry.metadata.ready()), Health::of(registry.blobs.ready())).await;
            [("metadata", metadata), ("blobs", blobs)]
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Sets the gauges of what stands, summed over the registries; nothing of a database that does not count in time.
    async fn count(&self) {
        let counted = self.registries.iter().map(async |registry| {
            let counts = async {
                StoreResult::Ok((
                    registry.metadata.count_uploads().await?,
                    registry.metadata.count_jobs(&jobs::KINDS).await?,
                ))
            };
            let silent = |_| StoreError::Unavailable(format!("no answer within {} s", COUNT_TIMEOUT.as_secs()));
            tokio::time::timeout(COUNT_TIMEOUT, counts).await.map_err(silent)?
        });
        let (mut open, mut jobs) = (0, Vec::new());
        for counted in join_all(counted).await {
            match counted {
                Ok((uploads, counts)) => {
                    open += uploads;
                    jobs.extend(counts);
                }
                Err(error) => tracing::warn!(%error, "the metrics say nothing of uploads and jobs"),
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
        let busy = self.registries.iter().filter_map(|registry| registry.metrics.since_refusal()).min();
        // Not a reason to send nobody here any more: the connections that are busy would go where others are.
        let mut said = match busy {
            Some(since) if since < BUSY_FOR => Cow::Borrowed("ok, but all connections are busy: new ones are refused"),
            _ => OK,
        };
        for (store, health) in self.stores().await {
            match health {
                Health::Ready => {}
                Health::Full(why) => {
                    tracing::warn!(store, error = why, "no pushes are taken");
                    said =
                        Cow::Borrowed("ok, but the disk is full: pulls and deletions are served, pushes are refused");
                }
                Health::Down(why) => {
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
            let of_kind = || stores.iter().filter(move |(store, _)| *store == name).map(|(_, health)| health);
            let up = !of_kind().any(|health| matches!(health, Health::Down(_)));
            let full = of_kind().any(|health| matches!(health, Health::Full(_)));
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
