//! Background work: claims jobs, runs them with a heartbeat, tries failed ones again with growing pauses and parks those
//! that keep failing. What a job does is its own file's matter; each is idempotent, because a killed run is run again.

mod lifecycle;
mod preview;
pub(crate) mod referrers;
mod schedule;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::registry::Registry;
use crate::registry::server::Stop;
use crate::store::jobs::{DeleteGeneration, FollowSubject, Job, JobEnd, NewJob};
use crate::store::repositories::RepositoryId;
use crate::store::{StoreError, StoreResult};
use crate::telemetry::JobLabels;

/// Evaluates and carries out a repository's lifecycle policy.
const LIFECYCLE: &str = "lifecycle";
/// Evaluates a lifecycle policy and keeps what it would do.
const PREVIEW: &str = "lifecycle-preview";
/// Every kind that this process runs.
const KINDS: [&str; 4] = [LIFECYCLE, PREVIEW, FollowSubject::KIND, DeleteGeneration::KIND];

/// How long a claim holds without a heartbeat: as long as a job of a killed process has to wait.
const LEASE: Duration = Duration::from_secs(30);
/// How often a claim is prolonged.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// After so many failures a job is parked.
const MAX_ATTEMPTS: u32 = 10;

/// How jobs run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How often each lifecycle policy is evaluated.
    pub lifecycle_interval: Duration,
    /// How long an upload session may be idle before it is given up.
    pub upload_expiry: Duration,
    /// How often a worker without work looks for some.
    pub poll: Duration,
    /// How many jobs run at once.
    pub workers: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lifecycle_interval: Duration::from_secs(3600),
            upload_expiry: Duration::from_secs(24 * 3600),
            poll: Duration::from_millis(250),
            workers: 2,
        }
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
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..settings.workers.max(1) {
        tasks.spawn(work(Arc::clone(&registry), settings.poll, stop.clone()));
    }
    tasks.spawn(schedule::run(registry, settings, stop));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a worker failed");
        }
    }
}

/// One worker: claims, runs and ends jobs, one at a time.
async fn work(registry: Arc<Registry>, poll: Duration, mut stop: Stop) {
    while !*stop.borrow() {
        match registry.metadata.claim_job(&KINDS, Timestamp::now(), LEASE).await {
            Ok(Some(job)) => carry_out(&registry, job, &mut stop).await,
            Ok(None) => pause(poll, &mut stop).await,
            Err(error) => {
                tracing::warn!(%error, "cannot look for jobs");
                pause(LEASE, &mut stop).await;
            }
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

async fn carry_out(registry: &Arc<Registry>, job: Job, stop: &mut Stop) {
    let Job { id, kind, key, attempts, .. } = &job;
    let outcome = tokio::select! {
        outcome = handle(registry, &job) => outcome,
        () = hold(registry, *id, *attempts) => {
            tracing::warn!(job = id, kind, key, "lost the claim on a job: somebody else runs it");
            return;
        }
        _ = stop.wait_for(|stop| *stop) => Err(JobError::Store(StoreError::Unavailable("the process stops".into()))),
    };
    let now = Timestamp::now();
    let (end, state) = match outcome {
        Ok(()) => (JobEnd::Done, "done"),
        Err(JobError::Store(error)) if *attempts < MAX_ATTEMPTS || *stop.borrow() => {
            let wait = if *stop.borrow() { Duration::ZERO } else { backoff(*attempts) };
            tracing::warn!(job = id, kind, key, attempts, wait_seconds = wait.as_secs(), %error, "a job failed");
            (JobEnd::Retry { at: now + wait, error: error.to_string() }, "failed")
        }
        Err(error) => {
            tracing::error!(job = id, kind, key, attempts, %error, "a job failed for good and is parked");
            give_up(registry, &job).await;
            (JobEnd::Dead { error: error.to_string() }, "dead")
        }
    };
    registry.metrics.jobs_ended.get_or_create(&JobLabels { kind: kind.clone(), state: state.into() }).inc();
    if let Err(error) = registry.metadata.end_job(*id, *attempts, end).await {
        // Its lease runs out, and it runs again.
        tracing::warn!(job = id, kind, key, %error, "cannot record how a job ended");
    }
}

/// What must not wait for a job that is parked: a preview could not be started again while it is in progress.
async fn give_up(registry: &Arc<Registry>, job: &Job) {
    let (PREVIEW, Ok(repository)) = (job.kind.as_str(), repository_of(job)) else { return };
    if let Err(error) = preview::fail(registry, repository).await {
        tracing::warn!(job = job.id, %error, "cannot record that a preview failed");
    }
}

/// The pause after so many attempts: from a second to ten minutes, jittered.
fn backoff(attempts: u32) -> Duration {
    let mut delays = ExponentialBuilder::default()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(Duration::from_secs(600))
        .with_max_times(MAX_ATTEMPTS as usize)
        .with_jitter()
        .build();
    delays.nth(attempts.saturating_sub(1) as usize).unwrap_or(Duration::from_secs(600))
}

/// Prolongs the claim again and again; returns only when it is lost.
async fn hold(registry: &Registry, id: i64, attempts: u32) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        match registry.metadata.heartbeat_job(id, attempts, Timestamp::now() + LEASE).await {
            Ok(true) => {}
            Ok(false) => return,
            // The lease is three heartbeats long; if none gets through, somebody else takes the job, as it should be.
            Err(error) => tracing::warn!(job = id, %error, "cannot prolong the claim on a job"),
        }
    }
}

async fn handle(registry: &Arc<Registry>, job: &Job) -> Result<(), JobError> {
    match job.kind.as_str() {
        LIFECYCLE => lifecycle::run(registry, repository_of(job)?).await,
        PREVIEW => preview::run(registry, repository_of(job)?).await,
        FollowSubject::KIND => Ok(referrers::run(registry, &FollowSubject::parse(&job.payload)?).await?),
        DeleteGeneration::KIND => Ok(delete_generation(registry, job).await?),
        kind => Err(JobError::Hopeless(format!("there is no handler for jobs of kind {kind:?}"))),
    }
}

fn repository_of(job: &Job) -> Result<RepositoryId, JobError> {
    match serde_json::from_str::<AboutRepository>(&job.payload) {
        Ok(AboutRepository { repository }) => Ok(RepositoryId(repository)),
        Err(error) => Err(JobError::Hopeless(format!("the payload {:?} does not parse: {error}", job.payload))),
    }
}

/// Deletes bytes that no row names any more.
async fn delete_generation(registry: &Registry, job: &Job) -> StoreResult<()> {
    let DeleteGeneration { generation, writer } = DeleteGeneration::parse(&job.payload)?;
    registry.blobs.delete(generation, &writer).await
}
