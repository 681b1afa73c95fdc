//! The payload of each kind of job, and the key under which jobs of the kind coalesce.
//!
//! The store enqueues jobs in the transaction of their cause, and the handlers in `jobs` run them.
//! Both use these types.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::NewJob;
use crate::repositories::RepositoryId;
use crate::uploads::LATE_WRITE;
use crate::{Generation, StoreError, StoreResult, WriterState};
use wharfage_domain::names::Digest;

/// All kinds of jobs, as their rows name them.
pub const KINDS: [&str; 6] = [
    EvaluateLifecycle::KIND,
    EvaluatePreview::KIND,
    FollowSubject::KIND,
    DeleteGeneration::KIND,
    DeleteRepository::KIND,
    PruneEvents::KIND,
];

/// The payload of one kind of job.
pub trait JobPayload: Serialize + DeserializeOwned {
    /// The kind, as the rows name it.
    const KIND: &str;

    /// Returns the deduplication key, unique among the waiting jobs of the kind.
    fn key(&self) -> String;

    /// Builds the job, due at `run_at`.
    fn job(&self, run_at: Timestamp) -> NewJob {
        // A struct of strings and numbers always serializes. A payload that did not parse would
        // make its job dead.
        let payload = serde_json::to_string(self).unwrap_or_default();
        NewJob { kind: Self::KIND.into(), key: self.key(), payload, run_at }
    }

    /// Parses a job's payload.
    ///
    /// # Errors
    /// `Inconsistent` when [`JobPayload::job`] did not write it.
    fn parse(payload: &str) -> StoreResult<Self> {
        serde_json::from_str(payload).map_err(|error| {
            let kind = Self::KIND;
            StoreError::Inconsistent(format!(
                "the payload {payload:?} of a {kind} job does not parse: {error}"
            ))
        })
    }
}

/// Evaluates a repository's lifecycle policy and enforces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluateLifecycle {
    /// Repository to act on.
    pub repository: RepositoryId,
}

impl JobPayload for EvaluateLifecycle {
    const KIND: &str = "lifecycle";

    fn key(&self) -> String {
        self.repository.0.to_string()
    }
}

/// Evaluates the policy of a repository's lifecycle policy preview and stores its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluatePreview {
    /// Repository to act on.
    pub repository: RepositoryId,
}

impl JobPayload for EvaluatePreview {
    const KIND: &str = "lifecycle-preview";

    fn key(&self) -> String {
        self.repository.0.to_string()
    }
}

/// Makes the referrers of a deleted, archived or restored subject follow it. Amazon ECR promises
/// that within a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowSubject {
    /// Repository of the subject.
    pub repository: RepositoryId,
    /// Digest of the subject.
    pub subject: Digest,
}

impl JobPayload for FollowSubject {
    const KIND: &str = "referrers";

    fn key(&self) -> String {
        format!("{}/{}", self.repository.0, self.subject)
    }
}

impl FollowSubject {
    /// Delay before the referrers of a deleted subject are deleted, in which a retried push may
    /// push it again.
    const DELAY: SignedDuration = SignedDuration::from_mins(5);

    /// Builds the job for a subject that changed at `now`.
    pub(crate) fn after(&self, now: Timestamp) -> NewJob {
        self.job(now.checked_add(Self::DELAY).unwrap_or(now))
    }
}

/// Deletes bytes that no row references any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "DeleteGenerationPayload", try_from = "DeleteGenerationPayload")]
pub struct DeleteGeneration {
    /// Generation of the bytes.
    pub generation: Generation,
    /// Last writer state of the upload's row, by which the backend finds unfinished objects; empty
    /// for a finished one.
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

    fn try_from(
        DeleteGenerationPayload { generation, writer }: DeleteGenerationPayload,
    ) -> StoreResult<Self> {
        let writer = BASE64_STANDARD
            .decode(writer)
            .map_err(|error| StoreError::Inconsistent(error.to_string()))?;
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
    /// Deletes a generation that is finished, or of which nothing else is known.
    pub fn of(generation: Generation) -> Self {
        Self { generation, writer: WriterState::default() }
    }

    /// Builds the job that deletes the bytes of a session removed at `now`. A claim that has not
    /// ended cleanly may write until shortly after its end, so the job waits for that.
    pub(crate) fn of_session(
        generation: Generation,
        writer: WriterState,
        claimed_until: Option<Timestamp>,
        now: Timestamp,
    ) -> NewJob {
        let due = claimed_until.map_or(now, |until| late(until.max(now)));
        Self { generation, writer }.job(due)
    }

    /// Builds the job that deletes the generation of a writer that lost its claim. It has a key of
    /// its own: if it coalesced with the job of the removed session, it would replace that one's
    /// payload.
    pub fn late_job(generation: Generation, run_at: Timestamp) -> NewJob {
        let job = Self::of(generation).job(run_at);
        NewJob { key: format!("{}/late", job.key), ..job }
    }
}

/// Deletes the contents of a deleted repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRepository {
    /// Repository, which no lookup finds any more.
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

/// Returns when no request that was sent before `end` can reach the object store any more.
pub(crate) fn late(end: Timestamp) -> Timestamp {
    end.checked_add(LATE_WRITE).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_referrers_job_carries_its_subject_and_is_delayed() {
        let follow =
            FollowSubject { repository: RepositoryId(7), subject: Digest::sha256(b"subject") };
        let job = follow.after(Timestamp::UNIX_EPOCH);
        assert!(job.run_at > Timestamp::UNIX_EPOCH);
        assert_eq!(
            (job.kind.as_str(), FollowSubject::parse(&job.payload).unwrap()),
            (FollowSubject::KIND, follow)
        );
        assert!(matches!(FollowSubject::parse("{}"), Err(StoreError::Inconsistent(_))));
    }

    #[test]
    fn the_bytes_of_a_claim_are_deleted_after_its_end() {
        let (now, generation) =
            (Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1), Generation::random());
        let due = |claimed| {
            DeleteGeneration::of_session(generation, WriterState::default(), claimed, now).run_at
        };
        assert_eq!(due(None), now);
        assert_eq!(due(Some(Timestamp::UNIX_EPOCH)), now + LATE_WRITE);
        assert_eq!(due(Some(now + LATE_WRITE)), now + LATE_WRITE + LATE_WRITE);
    }

    #[test]
    fn a_delete_generation_job_carries_generation_and_state() {
        let deletion = DeleteGeneration {
            generation: Generation::random(),
            writer: WriterState(vec![0, 255, 7]),
        };
        let job = deletion.job(Timestamp::UNIX_EPOCH);
        assert_eq!(
            (job.kind.as_str(), job.key),
            (DeleteGeneration::KIND, deletion.generation.to_string())
        );
        assert_eq!(DeleteGeneration::parse(&job.payload).unwrap(), deletion);
        for bad in ["", "{}", r#"{"generation":"x","writer":""}"#] {
            assert!(
                matches!(DeleteGeneration::parse(bad), Err(StoreError::Inconsistent(_))),
                "{bad:?} is refused"
            );
        }
    }
}
