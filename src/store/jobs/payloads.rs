//! The payload of each kind of job: what its handler needs, and the key that coalesces jobs about the same thing.
//!
//! The store enqueues jobs in the transaction of their cause, handlers in `jobs` run them; both know them from here.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::NewJob;
use crate::names::Digest;
use crate::store::repositories::RepositoryId;
use crate::store::uploads::LATE_WRITE;
use crate::store::{Generation, StoreError, StoreResult, WriterState};

/// The kinds of jobs, as their rows name them.
pub const KINDS: [&str; 6] = [
    EvaluateLifecycle::KIND,
    EvaluatePreview::KIND,
    FollowSubject::KIND,
    DeleteGeneration::KIND,
    DeleteRepository::KIND,
    PruneEvents::KIND,
];

/// What a job of one kind carries.
pub trait JobPayload: Serialize + DeserializeOwned {
    /// The kind, as its jobs' rows name it.
    const KIND: &str;

    /// The deduplication key: unique among the waiting jobs of the kind.
    fn key(&self) -> String;

    /// The job, due at `run_at`.
    fn job(&self, run_at: Timestamp) -> NewJob {
        // A struct of strings and numbers always serializes; a payload that does not parse makes its job a dead one.
        let payload = serde_json::to_string(self).unwrap_or_default();
        NewJob { kind: Self::KIND.into(), key: self.key(), payload, run_at }
    }

    /// Reads a job's payload.
    ///
    /// # Errors
    /// `Inconsistent` when it is not what [`JobPayload::job`] wrote.
    fn parse(payload: &str) -> StoreResult<Self> {
        serde_json::from_str(payload).map_err(|error| {
            let kind = Self::KIND;
            StoreError::Inconsistent(format!("the payload {payload:?} of a {kind} job does not parse: {error}"))
        })
    }
}

/// Evaluates a repository's lifecycle policy and enforces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluateLifecycle {
    /// The repository.
    pub repository: RepositoryId,
}

impl JobPayload for EvaluateLifecycle {
    const KIND: &str = "lifecycle";

    fn key(&self) -> String {
        self.repository.0.to_string()
    }
}

/// Evaluates the policy of a repository's lifecycle policy preview and keeps what it would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluatePreview {
    /// The repository.
    pub repository: RepositoryId,
}

impl JobPayload for EvaluatePreview {
    const KIND: &str = "lifecycle-preview";

    fn key(&self) -> String {
        self.repository.0.to_string()
    }
}

/// Has the referrers of a subject follow it that was deleted, archived or restored. Amazon ECR promises that within a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowSubject {
    /// The subject's repository.
    pub repository: RepositoryId,
    /// The subject.
    pub subject: Digest,
}

impl JobPayload for FollowSubject {
    const KIND: &str = "referrers";

    fn key(&self) -> String {
        format!("{}/{}", self.repository.0, self.subject)
    }
}

impl FollowSubject {
    /// How long a deleted subject may come back before its referrers are deleted: a retried push pushes it again.
    const DELAY: SignedDuration = SignedDuration::from_mins(5);

    /// The job for a subject that changed at `now`.
    pub(in crate::store) fn after(&self, now: Timestamp) -> NewJob {
        self.job(now.checked_add(Self::DELAY).unwrap_or(now))
    }
}

/// Deletes bytes that no row refers to any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "DeleteGenerationPayload", try_from = "DeleteGenerationPayload")]
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

impl From<DeleteGeneration> for DeleteGenerationPayload {
    fn from(DeleteGeneration { generation, writer }: DeleteGeneration) -> Self {
        Self { generation: generation.to_string(), writer: BASE64_STANDARD.encode(writer.0) }
    }
}

impl TryFrom<DeleteGenerationPayload> for DeleteGeneration {
    type Error = StoreError;

    fn try_from(DeleteGenerationPayload { generation, writer }: DeleteGenerationPayload) -> StoreResult<Self> {
        let writer = BASE64_STANDARD.decode(writer).map_err(|error| StoreError::Inconsistent(error.to_string()))?;
        Ok(Self { generation: generation.parse()?, writer: WriterState(writer) })
    }
}

impl JobPayload for DeleteGeneration {
    const KIND: &str = "delete-generation";

    fn key(&self) -> String {
        self.generation.to_string()
    }
}

impl DeleteGeneration {
    /// The deletion of a generation that was finished, or of which nothing else is known.
    pub fn of(generation: Generation) -> Self {
        Self { generation, writer: WriterState::default() }
    }

    /// The deletion of what a session that is removed at `now` leaves, and from when on it may run: a claim that has not ended
    /// cleanly may still write, until it ends and somewhat longer.
    pub(in crate::store) fn of_session(
        generation: Generation,
        writer: WriterState,
        claimed_until: Option<Timestamp>,
        now: Timestamp,
    ) -> NewJob {
        let due = claimed_until.map_or(now, |until| late(until.max(now)));
        Self { generation, writer }.job(due)
    }

    /// The job that deletes a generation which a writer left that lost its claim. It has a key of its own: coalesced with the
    /// job of the session that was removed, it would take the place of that one's payload.
    pub fn late_job(generation: Generation, run_at: Timestamp) -> NewJob {
        let job = Self::of(generation).job(run_at);
        NewJob { key: format!("{}/late", job.key), ..job }
    }
}

/// Deletes all that a deleted repository held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRepository {
    /// The repository, which nobody sees any more.
    pub repository: RepositoryId,
}

impl JobPayload for DeleteRepository {
    const KIND: &str = "delete-repository";

    fn key(&self) -> String {
        self.repository.0.to_string()
    }
}

/// Deletes old events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneEvents {}

impl JobPayload for PruneEvents {
    const KIND: &str = "prune-events";

    fn key(&self) -> String {
        String::new()
    }
}

/// When nothing that was sent before `end` is on its way to the object store any more.
pub(in crate::store) fn late(end: Timestamp) -> Timestamp {
    end.checked_add(LATE_WRITE).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_referrers_job_carries_the_subject_and_waits_for_it_to_come_back() {
        let follow = FollowSubject { repository: RepositoryId(7), subject: Digest::sha256(b"subject") };
        let job = follow.after(Timestamp::UNIX_EPOCH);
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
