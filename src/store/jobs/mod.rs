//! Background jobs: written in the transaction of their cause, claimed with a lease.

mod payloads;

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

pub(super) use self::payloads::late;
pub use self::payloads::{
    DeleteGeneration, DeleteRepository, EvaluateLifecycle, EvaluatePreview, FollowSubject,
    JobPayload, KINDS, PruneEvents,
};
use super::StoreResult;

/// Stores background jobs.
#[async_trait::async_trait]
pub trait JobStore: Send + Sync {
    /// Enqueues a job; see [`NewJob`] for how jobs coalesce.
    async fn enqueue_job(&self, job: NewJob) -> StoreResult<()>;
    /// Claims a job of these kinds that is due at `now`, for `lease` by the database's clock: one
    /// whose lease has expired, else the one longest overdue. Two jobs of the same kind and key
    /// never run at the same time. The queue of one kind does not slow claims of other kinds.
    async fn claim_job(
        &self,
        kinds: &[&str],
        now: Timestamp,
        lease: Duration,
    ) -> StoreResult<Option<Job>>;
    /// Renews a claim: `lease` begins again by the database's clock; false if the claim was lost.
    async fn heartbeat_job(&self, id: i64, attempts: u32, lease: Duration) -> StoreResult<bool>;
    /// Ends a claim; ignored if it was lost (`attempts` shows that). A job that is done also
    /// deletes a dead one of its kind and key, whose work it has done. A dead job replaces an older
    /// dead one.
    async fn end_job(&self, id: i64, attempts: u32, end: JobEnd) -> StoreResult<()>;
    /// Counts the jobs of these kinds by state, and the dead ones of every kind.
    async fn count_jobs(&self, kinds: &[&str]) -> StoreResult<Vec<JobCount>>;
    /// Lists jobs in the order of their row ids.
    async fn list_jobs(
        &self,
        filter: &JobFilter,
        after: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<StoredJob>>;
    /// Makes jobs wait again, due at `now` and without past attempts, and returns how many. A job
    /// of the same kind and key that already waits takes the place of a dead one.
    async fn requeue_jobs(&self, jobs: &Requeue, now: Timestamp) -> StoreResult<u64>;
}

/// A job to be enqueued.
///
/// It coalesces with a waiting job of the same `kind` and `key`: the waiting job keeps its id, and
/// takes the newer payload and the earlier of the two due times. A running job is not changed: the
/// newer one waits behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Kind, which selects the handler.
    pub kind: String,
    /// Deduplication key, unique among the waiting jobs of the kind.
    pub key: String,
    /// Payload for the handler, as JSON.
    pub payload: String,
    /// Earliest start.
    pub run_at: Timestamp,
}

/// A job that this process has claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Row id.
    pub id: i64,
    /// Kind, which selects the handler.
    pub kind: String,
    /// Deduplication key.
    pub key: String,
    /// Payload for the handler, as JSON.
    pub payload: String,
    /// Number of claims, this one included.
    pub attempts: u32,
}

/// The end of a claimed job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEnd {
    /// The job is done, and its row is deleted.
    Done,
    /// The job failed and is to be retried.
    Retry {
        /// Earliest start of the next attempt.
        at: Timestamp,
        /// Cause of the failure, without secrets.
        error: String,
    },
    /// The job failed for good and is kept for the administrator to see.
    Dead {
        /// Cause of the failure, without secrets.
        error: String,
    },
}

/// The number of jobs of a kind in one state, for the metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCount {
    /// Kind of the jobs.
    pub kind: String,
    /// `waiting`, `running` or `dead`.
    pub state: String,
    /// Number of jobs, [`JobCount::LIMIT`] at most.
    pub count: u64,
}

impl JobCount {
    /// The number up to which jobs are counted: a scrape must not cost more the longer a queue is.
    pub const LIMIT: u64 = 10_000;
}

/// The state of a job's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits until it is due and a worker is free.
    Waiting,
    /// A worker has claimed it.
    Running,
    /// It failed for good and waits to be requeued.
    Dead,
}

impl JobState {
    /// Returns the state as its column holds it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Dead => "dead",
        }
    }

    /// Parses the text of the column.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Waiting, Self::Running, Self::Dead].into_iter().find(|state| state.as_str() == text)
    }
}

/// A job's row, for a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredJob {
    /// Row id.
    pub id: i64,
    /// Kind, which selects the handler.
    pub kind: String,
    /// Deduplication key.
    pub key: String,
    /// Current state.
    pub state: JobState,
    /// Earliest start.
    pub run_at: Timestamp,
    /// Number of claims.
    pub attempts: u32,
    /// Cause of the last failure, without secrets.
    pub last_error: Option<String>,
}

/// The jobs that a listing shows; `None` for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Kind to show.
    pub kind: Option<String>,
    /// State to show.
    pub state: Option<JobState>,
}

/// The jobs to be requeued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requeue {
    /// The job with this row id, which is dead or waits for its next attempt.
    One(i64),
    /// Every dead job of this kind.
    Kind(String),
    /// Every dead job.
    Dead,
}
