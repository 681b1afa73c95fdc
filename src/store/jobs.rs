//! Background work as the store keeps it: written in the transaction of its cause, claimed with a lease. Plain data.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::repositories::RepositoryId;
use super::uploads::LATE_WRITE;
use super::{Generation, StoreError, StoreResult, WriterState};
use crate::names::Digest;

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
    /// Makes a repository's job.
    pub job: fn(RepositoryId, Timestamp) -> NewJob,
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

/// What a `delete-generation` job has to delete: bytes that no row refers to any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteGeneration {
    /// The bytes.
    pub generation: Generation,
    /// What the upload's row had last, so that the backend can give up what was half written; empty when finished.
    pub writer: WriterState,
}

/// The wire form of [`DeleteGeneration`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteGenerationPayload {
    generation: String,
    /// Base64.
    writer: String,
}

impl DeleteGeneration {
    /// The kind of the jobs that carry it.
    pub const KIND: &str = "delete-generation";

    /// The deletion of a generation that was finished, or of which nothing else is known.
    pub fn of(generation: Generation) -> Self {
        Self { generation, writer: WriterState::default() }
    }

    /// The deletion of what a session that is removed at `now` leaves, and from when on it may run: a claim that has not ended
    /// cleanly may still write, until it ends and somewhat longer.
    pub(super) fn of_session(
        generation: Generation,
        writer: WriterState,
        claimed_until: Option<Timestamp>,
        now: Timestamp,
    ) -> NewJob {
        let due = claimed_until.map_or(now, |until| late(until.max(now)));
        Self { generation, writer }.job(due)
    }

    /// The job that deletes it, due at `run_at`. Its key is the generation.
    pub fn job(&self, run_at: Timestamp) -> NewJob {
        let generation = self.generation.to_string();
        let payload = json!({ "generation": generation, "writer": BASE64_STANDARD.encode(&self.writer.0) });
        NewJob { kind: Self::KIND.into(), key: generation, payload: payload.to_string(), run_at }
    }

    /// The job that deletes a generation which a writer left that lost its claim. It has a key of its own: coalesced with the
    /// job of the session that was removed, it would take the place of that one's payload.
    pub fn late_job(generation: Generation, run_at: Timestamp) -> NewJob {
        let job = Self::of(generation).job(run_at);
        NewJob { key: format!("{}/late", job.key), ..job }
    }

    /// Reads a job's payload.
    ///
    /// # Errors
    /// `Inconsistent` when it is not what [`DeleteGeneration::job`] wrote.
    pub fn parse(payload: &str) -> StoreResult<Self> {
        let inconsistent = |error: &dyn std::fmt::Display| {
            StoreError::Inconsistent(format!("the payload of a {} job does not parse: {error}", Self::KIND))
        };
        let DeleteGenerationPayload { generation, writer } =
            serde_json::from_str(payload).map_err(|error| inconsistent(&error))?;
        let writer = BASE64_STANDARD.decode(writer).map_err(|error| inconsistent(&error))?;
        Ok(Self { generation: generation.parse()?, writer: WriterState(writer) })
    }
}

/// What a `referrers` job is about: a subject that was deleted, archived or restored, which its referrers are to follow.
/// Amazon ECR promises that within a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowSubject {
    /// The row id of the repository.
    repository: i64,
    /// The subject.
    pub subject: Digest,
}

impl FollowSubject {
    /// The kind of the jobs that carry it.
    pub const KIND: &str = "referrers";

    /// How long a subject that went may come back before its referrers go: a push that is tried again pushes it again.
    const DELAY: SignedDuration = SignedDuration::from_mins(5);

    /// About this subject.
    pub fn new(repository: RepositoryId, subject: Digest) -> Self {
        Self { repository: repository.0, subject }
    }

    /// The subject's repository.
    pub fn repository(&self) -> RepositoryId {
        RepositoryId(self.repository)
    }

    /// The job that has the referrers follow.
    pub fn job(&self, now: Timestamp) -> NewJob {
        let Self { repository, subject } = self;
        let payload = json!({ "repository": repository, "subject": subject });
        let run_at = now.checked_add(Self::DELAY).unwrap_or(now);
        NewJob { kind: Self::KIND.into(), key: format!("{repository}/{subject}"), payload: payload.to_string(), run_at }
    }

    /// Reads a job's payload.
    ///
    /// # Errors
    /// `Inconsistent` when it is not what [`FollowSubject::job`] wrote.
    pub fn parse(payload: &str) -> StoreResult<Self> {
        serde_json::from_str(payload).map_err(|error| {
            StoreError::Inconsistent(format!("the payload of a {} job does not parse: {error}", Self::KIND))
        })
    }
}

/// What a `delete-repository` job has to delete: all that a repository held which was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeleteRepository {
    /// The repository, which nobody sees any more.
    pub repository: RepositoryId,
}

impl DeleteRepository {
    /// The kind of the jobs that carry it.
    pub const KIND: &str = "delete-repository";

    /// The job that deletes it, due at once.
    pub fn job(&self, now: Timestamp) -> NewJob {
        let id = self.repository.0;
        NewJob {
            kind: Self::KIND.into(),
            key: id.to_string(),
            payload: json!({ "repository": id }).to_string(),
            run_at: now,
        }
    }

    /// Reads a job's payload.
    ///
    /// # Errors
    /// `Inconsistent` when it is not what [`DeleteRepository::job`] wrote.
    pub fn parse(payload: &str) -> StoreResult<Self> {
        #[derive(Deserialize)]
        struct Payload {
            repository: i64,
        }
        let parsed: Payload = serde_json::from_str(payload).map_err(|error| {
            StoreError::Inconsistent(format!("the payload of a {} job does not parse: {error}", Self::KIND))
        })?;
        Ok(Self { repository: RepositoryId(parsed.repository) })
    }
}

/// When nothing that was sent before `end` is on its way to the object store any more.
pub(super) fn late(end: Timestamp) -> Timestamp {
    end.checked_add(LATE_WRITE).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_referrers_job_carries_the_subject_and_waits_for_it_to_come_back() {
        let follow = FollowSubject::new(RepositoryId(7), Digest::sha256(b"subject"));
        let job = follow.job(Timestamp::UNIX_EPOCH);
        assert!(job.run_at > Timestamp::UNIX_EPOCH);
        assert_eq!((job.kind.as_str(), FollowSubject::parse(&job.payload).unwrap()), (FollowSubject::KIND, follow));
        assert!(matches!(FollowSubject::parse("{}"), Err(StoreError::Inconsistent(_))));
    }

    #[test]
    fn what_a_claim_may_still_write_is_deleted_after_its_end() {
        let (now, generation) = (Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1), Generation::random());
        let due = |claimed| DeleteGeneration::of_session(generation, WriterState::default(), claimed, now).run_at;
        assert_eq!(due(None), now);
        assert_eq!(due(Some(Timestamp::UNIX_EPOCH)), now + LATE_WRITE);
        assert_eq!(due(Some(now + LATE_WRITE)), now + LATE_WRITE + LATE_WRITE);
    }

    #[test]
    fn a_delete_generation_job_carries_the_generation_and_the_writers_state() {
        let deletion = DeleteGeneration { generation: Generation::random(), writer: WriterState(vec![0, 255, 7]) };
        let job = deletion.job(Timestamp::UNIX_EPOCH);
        assert_eq!((job.kind.as_str(), job.key), (DeleteGeneration::KIND, deletion.generation.to_string()));
        assert_eq!(DeleteGeneration::parse(&job.payload).unwrap(), deletion);
        for bad in ["", "{}", r#"{"generation":"x","writer":""}"#] {
            assert!(matches!(DeleteGeneration::parse(bad), Err(StoreError::Inconsistent(_))), "{bad:?} is refused");
        }
    }
}
