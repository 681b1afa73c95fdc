//! Background work as the store keeps it: written in the transaction of its cause, claimed with a lease. Plain data.

use jiff::Timestamp;

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

/// How many jobs of a kind stand how, for the metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCount {
    /// The kind.
    pub kind: String,
    /// `waiting`, `running` or `dead`.
    pub state: String,
    /// How many.
    pub count: u64,
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
