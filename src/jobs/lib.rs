//! Background jobs: claimed from the database, run with a heartbeat, retried with backoff, and dead
//! after the last attempt of their kind (`kinds`). Each job is idempotent, because a killed run is
//! run again.

mod dispatch;
mod kinds;
mod lifecycle;
mod metrics;
mod preview;
pub mod referrers;
mod schedule;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};

use wharfage_process::shutdown::Stop;
use wharfage_store::jobs::{
    DeleteGeneration, DeleteRepository, EvaluateLifecycle, EvaluatePreview, FollowSubject, Job,
    JobPayload, PruneEvents,
};
use wharfage_store::pull_recorder::PullRecorder;
use wharfage_store::{Blobs, Metadata, StoreError, StoreResult};

pub use self::metrics::JobMetrics;

/// The context of all jobs.
#[derive(Debug)]
pub struct JobContext {
    /// The database.
    pub metadata: Arc<dyn Metadata>,
    /// The blob store.
    pub blobs: Arc<dyn Blobs>,
    /// The pulls that this process has served, which lifecycle policies count.
    pub pulls: Arc<PullRecorder>,
    /// The metrics of the jobs.
    pub metrics: JobMetrics,
}

/// The settings of the jobs.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// The interval of each lifecycle policy's evaluation.
    pub lifecycle_interval: Duration,
    /// The time after which an idle upload session is deleted.
    pub upload_expiry: Duration,
    /// The interval of polls while there are no jobs.
    pub poll: Duration,
    /// The time after which an event is deleted.
    pub events_age: Duration,
    /// The number of events to keep, of all registries.
    pub events_kept: u64,
}

impl Default for JobSettings {
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

impl JobSettings {
    /// Returns the range in which a policy evaluated now is due again: 90 % to 100 % of the
    /// interval.
    fn next_due_range(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let interval =
            SignedDuration::try_from(self.lifecycle_interval).unwrap_or(SignedDuration::MAX);
        let after = |pause| now.checked_add(pause).unwrap_or(Timestamp::MAX);
        (after(interval - interval / 10), after(interval))
    }
}

/// The reason why a job failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// A retry may help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A retry does not help.
    #[error("{0}")]
    Permanent(String),
}

/// Runs jobs and the periodic work until `stop`. Jobs that run then are released, and run again
/// after the next start of any replica.
// Boxed, so that this crate compiles it: an `async fn` is compiled with the crate that awaits it.
pub fn run(context: Arc<JobContext>, settings: JobSettings, stop: Stop) -> BoxFuture<'static, ()> {
    async move {
        let settings = Arc::new(settings);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(dispatch::run(Arc::clone(&context), Arc::clone(&settings), stop.clone()));
        tasks.spawn(schedule::lifecycle(Arc::clone(&context), Arc::clone(&settings), stop.clone()));
        tasks.spawn(schedule::fold_usage(Arc::clone(&context), stop.clone()));
        tasks.spawn(schedule::upkeep(context, settings, stop));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "background work failed");
            }
        }
    }
    .boxed()
}

/// Waits for this time, or until the stop.
async fn pause(duration: Duration, stop: &mut Stop) {
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Ends the work of a dead job that must not wait: while a preview is in progress, no other one can
/// be started.
async fn on_dead_job(context: &JobContext, job: &Job) {
    let (EvaluatePreview::KIND, Ok(preview)) =
        (job.kind.as_str(), EvaluatePreview::parse(&job.payload))
    else {
        return;
    };
    if let Err(error) = preview::fail(context, preview.repository).await {
        tracing::warn!(job = job.id, %error, "cannot record that a preview failed");
    }
}

async fn handle(context: &JobContext, settings: &JobSettings, job: &Job) -> Result<(), JobError> {
    match job.kind.as_str() {
        EvaluateLifecycle::KIND => {
            let EvaluateLifecycle { repository } = payload(job)?;
            lifecycle::run(context, settings, repository).await
        }
        EvaluatePreview::KIND => {
            let EvaluatePreview { repository } = payload(job)?;
            preview::run(context, repository).await
        }
        FollowSubject::KIND => Ok(referrers::run(context.metadata.as_ref(), &payload(job)?).await?),
        DeleteGeneration::KIND => Ok(delete_generation(context, payload(job)?).await?),
        DeleteRepository::KIND => Ok(delete_repository(context, payload(job)?).await?),
        PruneEvents::KIND => schedule::prune_events(context, settings).await,
        kind => Err(JobError::Permanent(format!("there is no handler for jobs of kind {kind:?}"))),
    }
}

/// Parses the payload; a retry does not help when it is not valid.
fn payload<T: JobPayload>(job: &Job) -> Result<T, JobError> {
    T::parse(&job.payload).map_err(|error| JobError::Permanent(error.to_string()))
}

async fn delete_generation(context: &JobContext, deletion: DeleteGeneration) -> StoreResult<()> {
    let DeleteGeneration { generation, writer } = deletion;
    // The response to a commit may have been lost: then one of the generations is that of a blob.
    let generations = context.blobs.generations_to_delete(generation, &writer)?;
    let live = context.metadata.find_live_generations(&generations).await?;
    context.blobs.delete(generation, &writer, &live).await
}

/// The number of images of a deleted repository that one transaction deletes. On SQLite, other
/// writes wait for it.
const BATCH: usize = 25;

/// Empties a deleted repository in batches. A killed run leaves no batch half done.
async fn delete_repository(context: &JobContext, deletion: DeleteRepository) -> StoreResult<()> {
    let DeleteRepository { repository } = deletion;
    while !context.metadata.empty_repository(repository, BATCH, Timestamp::now()).await? {}
    Ok(())
}
