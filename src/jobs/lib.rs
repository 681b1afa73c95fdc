//! Background work: jobs are claimed, run with a heartbeat, tried again with growing pauses, and parked where their kind says so
//! (`kinds`). What a job does is its own file's matter; each is idempotent, because a killed run is run again.

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
    DeleteGeneration, DeleteRepository, EvaluateLifecycle, EvaluatePreview, FollowSubject, Job, JobPayload, PruneEvents,
};
use wharfage_store::pull_recorder::PullRecorder;
use wharfage_store::{Blobs, Metadata, StoreError, StoreResult};

pub use self::metrics::JobMetrics;

/// What every job gets.
#[derive(Debug)]
pub struct JobContext {
    /// Repositories, images and the jobs themselves.
    pub metadata: Arc<dyn Metadata>,
    /// The bytes.
    pub blobs: Arc<dyn Blobs>,
    /// The pulls that this process has served: a lifecycle policy counts them.
    pub pulls: Arc<PullRecorder>,
    /// What the jobs count.
    pub metrics: JobMetrics,
}

/// How jobs run.
#[derive(Debug, Clone)]
pub struct JobSettings {
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
    /// When a policy that is evaluated now is due again: from nine tenths of the interval to the whole of it.
    fn next_due_range(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let interval = SignedDuration::try_from(self.lifecycle_interval).unwrap_or(SignedDuration::MAX);
        let after = |pause| now.checked_add(pause).unwrap_or(Timestamp::MAX);
        (after(interval - interval / 10), after(interval))
    }
}

/// Why a job did not get done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// Trying again may help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Trying again won't.
    #[error("{0}")]
    Permanent(String),
}

/// Runs jobs, and what is due by the clock, until `stop`. A job that runs then is given back and runs again after the next
/// start, here or elsewhere.
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

/// Waits so long, or until the stop.
async fn pause(duration: Duration, stop: &mut Stop) {
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Ends what must not wait for a dead job: a preview could not be started again while it is in progress.
async fn on_dead_job(context: &JobContext, job: &Job) {
    let (EvaluatePreview::KIND, Ok(preview)) = (job.kind.as_str(), EvaluatePreview::parse(&job.payload)) else {
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

/// A payload that does not parse never will.
fn payload<T: JobPayload>(job: &Job) -> Result<T, JobError> {
    T::parse(&job.payload).map_err(|error| JobError::Permanent(error.to_string()))
}

async fn delete_generation(context: &JobContext, deletion: DeleteGeneration) -> StoreResult<()> {
    let DeleteGeneration { generation, writer } = deletion;
    // The answer to a commit may have been lost: then a supposed leftover is a blob.
    let generations = context.blobs.generations_to_delete(generation, &writer)?;
    let live = context.metadata.find_live_generations(&generations).await?;
    context.blobs.delete(generation, &writer, &live).await
}

/// How many images of a deleted repository one transaction deletes. On SQLite, other writes wait for it.
const BATCH: usize = 25;

/// Empties a repository that was deleted, batch by batch. A run that is killed left nothing half done.
async fn delete_repository(context: &JobContext, deletion: DeleteRepository) -> StoreResult<()> {
    let DeleteRepository { repository } = deletion;
    while !context.metadata.empty_repository(repository, BATCH, Timestamp::now()).await? {}
    Ok(())
}
