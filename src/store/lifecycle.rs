//! Lifecycle previews as the store keeps them. Plain data.

use jiff::Timestamp;
use uuid::Uuid;

use super::images::ImageStatus;
use super::repositories::RepositoryId;
use crate::names::{Digest, Tag};

/// How a preview stands (ECR's `LifecyclePolicyPreviewStatus`; `EXPIRED` is derived from `completed_at`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreviewState {
    /// The job has not finished.
    InProgress,
    /// Its results are there.
    Complete {
        /// Since when.
        completed_at: Timestamp,
        /// ECR's `summary`, as JSON.
        summary: String,
    },
    /// The job failed.
    Failed,
}

/// A repository's latest preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// The policy's text that it was started with.
    pub policy: String,
    /// When it was started, which also tells one preview from the next.
    pub started_at: Timestamp,
    /// How it stands.
    pub state: PreviewState,
}

/// A run of the job that finds a preview's results. One that is run again after it was killed finds its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviewRun {
    /// The repository.
    pub repository: RepositoryId,
    /// The preview's [`Preview::started_at`].
    pub started_at: Timestamp,
    /// Tells this run from every other; not negative.
    pub number: i64,
}

impl PreviewRun {
    /// A run with a number of its own.
    pub fn new(repository: RepositoryId, started_at: Timestamp) -> Self {
        let (random, _) = Uuid::new_v4().as_u64_pair();
        Self { repository, started_at, number: (random >> 1) as i64 }
    }
}

/// One image that the previewed policy would act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewResult {
    /// The image.
    pub digest: Digest,
    /// Its tags, sorted.
    pub tags: Vec<Tag>,
    /// When it was pushed.
    pub pushed_at: Timestamp,
    /// `EXPIRE` or `TRANSITION`.
    pub action: String,
    /// The rule that acts.
    pub rule_priority: u32,
    /// Its storage class when it was evaluated.
    pub status: ImageStatus,
}
