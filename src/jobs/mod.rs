//! Background work: jobs are claimed, run with a heartbeat, tried again with growing pauses, and parked where their kind says so
//! (`kinds`). What a job does is its own file's matter; each is idempotent, because a killed run is run again.

mod dispatch;
mod kinds;
mod lifecycle;
mod preview;
pub(crate) mod referrers;
mod schedule;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use self::kinds::{LIFECYCLE, PREVIEW, PRUNE_EVENTS};
use crate::registry::Registry;
use crate::registry::server::Stop;
use crate::store::jobs::{DeleteGeneration, DeleteRepository, FollowSubject, Job, NewJob};
use crate::store::repositories::RepositoryId;
use crate::store::{StoreError, StoreResult};

pub use self::kinds::names;

/// How jobs run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How often each lifecycle policy is evaluated.
    pub lifecycle_interval: Duration,
    /// How long an upload session may be idle before it is given up.
    pub upload_expiry: Duration,
    /// How often jobs are looked for while there are none.
    pub poll: Duration,
    /// How old an event becomes.
    pub events_age: Duration,
    /// How many events are kept at most, of all registries.
    pub events_kept: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lifecycle_interval: Duration::from_secs(3600),
            upload_expiry: Duration::from_secs(24 * 3600),
            poll: Duration::from_millis(250),
            events_age: Duration::from_secs(90 * 24 * 3600),
            events_kept: 100_000,
        }
    }
}

impl Settings {
    /// When a policy that is evaluated now is due again: from nine tenths of the interval to the whole of it.
    fn next_turn(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let interval = SignedDuration::try_from(self.lifecycle_interval).unwrap_or(SignedDuration::MAX);
        let after = |pause| now.checked_add(pause).unwrap_or(Timestamp::MAX);
        (after(interval - interval / 10), after(interval))
    }
}

/// The payload of a job about one repository.
#[derive(Debug, Serialize, Deserialize)]
struct AboutRepository {
    repository: i64,
}

/// The job that evaluates and carries out a repository's lifecycle policy.
pub fn lifecycle_job(repository: RepositoryId, run_at: Timestamp) -> NewJob {
    about_repository(LIFECYCLE, repository, run_at)
}

/// The job that evaluates the policy of a repository's preview.
pub fn preview_job(repository: RepositoryId, run_at: Timestamp) -> NewJob {
    about_repository(PREVIEW, repository, run_at)
}

fn about_repository(kind: &str, repository: RepositoryId, run_at: Timestamp) -> NewJob {
    let payload = serde_json::json!({ "repository": repository.0 }).to_string();
    NewJob { kind: kind.into(), key: repository.0.to_string(), payload, run_at }
}

/// Why a job did not get done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// Trying again may help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Trying again won't.
    #[error("{0}")]
    Hopeless(String),
}

/// Runs jobs, and what is due by the clock, until `stop`. A job that runs then is given back and runs again after the next
/// start, here or elsewhere.
pub async fn run(registry: Arc<Registry>, settings: Settings, stop: Stop) {
    let settings = Arc::new(settings);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(dispatch::run(Arc::clone(&registry), Arc::clone(&settings), stop.clone()));
    tasks.spawn(schedule::lifecycle(Arc::clone(&registry), Arc::clone(&settings), stop.clone()));
    tasks.spawn(schedule::fold_usage(Arc::clone(&registry), stop.clone()));
    tasks.spawn(schedule::upkeep(registry, settings, stop));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "background work failed");
        }
    }
}

/// Waits so long, or until the stop.
async fn pause(duration: Duration, stop: &mut Stop) {
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// What must not wait for a job that is parked: a preview could not be started again while it is in progress.
async fn give_up(registry: &Arc<Registry>, job: &Job) {
    let (PREVIEW, Ok(repository)) = (job.kind.as_str(), repository_of(job)) else { return };
    if let Err(error) = preview::fail(registry, repository).await {
        tracing::warn!(job = job.id, %error, "cannot record that a preview failed");
    }
}

async fn handle(registry: &Arc<Registry>, settings: &Settings, job: &Job) -> Result<(), JobError> {
    match job.kind.as_str() {
        LIFECYCLE => lifecycle::run(registry, settings, repository_of(job)?).await,
        PREVIEW => preview::run(registry, repository_of(job)?).await,
        FollowSubject::KIND => {
            let follow = FollowSubject::parse(&job.payload).map_err(unreadable)?;
            Ok(referrers::run(registry, &follow).await?)
        }
        PRUNE_EVENTS => schedule::prune_events(registry, settings).await,
        DeleteRepository::KIND => {
            let DeleteRepository { repository } = DeleteRepository::parse(&job.payload).map_err(unreadable)?;
            Ok(delete_repository(registry, repository).await?)
        }
        DeleteGeneration::KIND => {
            let DeleteGeneration { generation, writer } = DeleteGeneration::parse(&job.payload).map_err(unreadable)?;
            // A commit may have gone through whose answer was lost: then what was taken for left over is a blob.
            let named = registry.blobs.named(generation, &writer)?;
            let live = registry.metadata.live_generations(&named).await?;
            Ok(registry.blobs.delete(generation, &writer, &live).await?)
        }
        kind => Err(JobError::Hopeless(format!("there is no handler for jobs of kind {kind:?}"))),
    }
}

/// A payload that does not parse never will.
fn unreadable(error: StoreError) -> JobError {
    JobError::Hopeless(error.to_string())
}

fn repository_of(job: &Job) -> Result<RepositoryId, JobError> {
    match serde_json::from_str::<AboutRepository>(&job.payload) {
        Ok(AboutRepository { repository }) => Ok(RepositoryId(repository)),
        Err(error) => Err(JobError::Hopeless(format!("the payload {:?} does not parse: {error}", job.payload))),
    }
}

/// How many images of a deleted repository one transaction deletes. On SQLite, other writes wait for it.
const BATCH: usize = 25;

/// Empties a repository that was deleted, batch by batch. A run that is killed left nothing half done.
async fn delete_repository(registry: &Registry, repository: RepositoryId) -> StoreResult<()> {
    while !registry.metadata.empty_repository(repository, BATCH, Timestamp::now()).await? {}
    Ok(())
}
