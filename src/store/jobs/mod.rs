//! Background work as the store keeps it: written in the transaction of its cause, claimed with a lease. Plain data.

mod payloads;

use jiff::Timestamp;
use serde::Serialize;

pub(super) use self::payloads::late;
pub use self::payloads::{
    DeleteGeneration, DeleteRepository, EvaluateLifecycle, EvaluatePreview, FollowSubject, JobPayload, KINDS,
    PruneEvents,
};

/// A job to be enqueued.
///
/// While a job of the same `kind` and `key` waits, another one coalesces with it: the waiting job keeps its id, takes the
/// newer payload and the earlier of the two due times. A job that runs is not touched: the newer one waits behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Which handler runs it.
    pub kind: String,
    /// What it is about, unique among the waiting jobs of its kind.
    pub key: String,
    /// What the handler needs, as JSON.
    pub payload: String,
    /// Not before.
    pub run_at: Timestamp,
}

/// A job that this process has claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its row id.
    pub id: i64,
    /// Which handler runs it.
    pub kind: String,
    /// What it is about.
    pub key: String,
    /// What the handler needs, as JSON.
    pub payload: String,
    /// How often it was claimed, this time included.
    pub attempts: u32,
}

/// How a claimed job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEnd {
    /// It is done and its row goes.
    Done,
    /// It failed and is to be tried again.
    Retry {
        /// Not before.
        at: Timestamp,
        /// Why it failed, without secrets.
        error: String,
    },
    /// It failed for good and is kept where an operator of the system can see it.
    Dead {
        /// Why it failed, without secrets.
        error: String,
    },
}

/// The number of jobs of a kind in one state, for the metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCount {
    /// The kind.
    pub kind: String,
    /// `waiting`, `running` or `dead`.
    pub state: String,
    /// How many; more than [`JobCount::LIMIT`] are counted as that many.
    pub count: u64,
}

impl JobCount {
    /// The number up to which jobs are counted: reading the metrics must not cost more the longer a queue is.
    pub const LIMIT: u64 = 10_000;
}

/// The state of a job's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits until it is due and a worker is free.
    Waiting,
    /// A worker holds it.
    Running,
    /// It failed for good and waits for somebody to requeue it.
    Dead,
}

impl JobState {
    /// The state as its column holds it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Dead => "dead",
        }
    }

    /// The state of a column's text.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Waiting, Self::Running, Self::Dead].into_iter().find(|state| state.as_str() == text)
    }
}

/// A job's row, for a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredJob {
    /// Its row id.
    pub id: i64,
    /// Which handler runs it.
    pub kind: String,
    /// What it is about.
    pub key: String,
    /// Its state.
    pub state: JobState,
    /// Not before.
    pub run_at: Timestamp,
    /// How often it was claimed.
    pub attempts: u32,
    /// Why it failed last, without secrets.
    pub last_error: Option<String>,
}

/// The jobs that a listing shows; `None` for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Of this kind.
    pub kind: Option<String>,
    /// In this state.
    pub state: Option<JobState>,
}

/// The jobs to be requeued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requeue {
    /// The job with this row id, which is dead or waits for a later attempt.
    One(i64),
    /// Every dead job of this kind.
    Kind(String),
    /// Every dead job.
    Dead,
}

/// A turn of the lifecycle policies that are due: see [`crate::store::Metadata::schedule_lifecycle`].
#[derive(Debug, Clone)]
pub struct LifecycleTurn {
    /// Policies that were due by then are enqueued.
    pub now: Timestamp,
    /// Each of them is due again at a random time from the first to the second: policies spread over the interval.
    pub again: (Timestamp, Timestamp),
    /// How many at most.
    pub limit: usize,
}

/// Something that happened, kept as a row: what the lifecycle job did, what was pushed and deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// The registry that it happened in.
    pub account: crate::names::AccountId,
    /// The repository's name, which may be gone by the time the event is read.
    pub repository: Option<crate::names::RepositoryName>,
    /// ECR's detail-type, or the extension's own.
    pub kind: String,
    /// Its details, as JSON.
    pub detail: String,
}
