//! Lifecycle policy previews and their results.

use jiff::Timestamp;
use uuid::Uuid;

use super::StoreResult;
use super::images::ImageStatus;
use super::jobs::NewJob;
use super::repositories::RepositoryId;
use wharfage_domain::names::{Digest, Tag};

/// Stores the latest lifecycle policy preview of each repository.
#[async_trait::async_trait]
pub trait PreviewStore: Send + Sync {
    /// Starts a preview and enqueues its job; false if one is in progress already.
    async fn start_preview(
        &self,
        repository: RepositoryId,
        policy: &str,
        now: Timestamp,
        job: NewJob,
    ) -> StoreResult<bool>;
    /// Finds the latest preview.
    async fn find_preview(&self, repository: RepositoryId) -> StoreResult<Option<Preview>>;
    /// Adds results of a run, the first at `position`; false if its preview is not in progress.
    /// They are invisible until the preview ends.
    async fn add_preview_results(
        &self,
        run: PreviewRun,
        position: u64,
        results: Vec<PreviewResult>,
    ) -> StoreResult<bool>;
    /// Ends the preview of a run, and makes the run's results those of the preview. Ignored if that
    /// preview is not in progress.
    async fn finish_preview(&self, run: PreviewRun, state: PreviewState) -> StoreResult<()>;
    /// Lists the latest preview's results after the position `after`, with their positions: those
    /// of images that had tags, of images that had none, or all.
    async fn list_preview_results(
        &self,
        repository: RepositoryId,
        tagged: Option<bool>,
        after: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, PreviewResult)>>;
    /// Finds the latest preview's results of these images, ordered by position, with their
    /// positions.
    async fn find_preview_results(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
    ) -> StoreResult<Vec<(u64, PreviewResult)>>;
    /// Deletes at most `limit` results of other runs than this one, which has ended the latest
    /// preview. True if none is left, or if another preview has been started.
    async fn prune_preview_results(&self, run: PreviewRun, limit: usize) -> StoreResult<bool>;
}

/// The state of a preview (ECR's `LifecyclePolicyPreviewStatus`; `EXPIRED` is derived from
/// `completed_at`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreviewState {
    /// The job has not finished.
    InProgress,
    /// The results are complete.
    Complete {
        /// Time of completion.
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
    /// Text of the policy that is previewed.
    pub policy: String,
    /// When it was started, which also distinguishes it from the next preview.
    pub started_at: Timestamp,
    /// Current state.
    pub state: PreviewState,
}

/// A run of the job that finds a preview's results. A job that is run again after it was killed has
/// its own results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviewRun {
    /// Repository of the preview.
    pub repository: RepositoryId,
    /// The preview's [`Preview::started_at`].
    pub started_at: Timestamp,
    /// Random number of the run; not negative.
    pub number: i64,
}

impl PreviewRun {
    /// Creates a run with a random number.
    pub fn new(repository: RepositoryId, started_at: Timestamp) -> Self {
        let (random, _) = Uuid::new_v4().as_u64_pair();
        Self { repository, started_at, number: (random >> 1) as i64 }
    }
}

/// One image that the previewed policy would act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewResult {
    /// Digest of the image.
    pub digest: Digest,
    /// Tags of the image, sorted.
    pub tags: Vec<Tag>,
    /// When it was pushed.
    pub pushed_at: Timestamp,
    /// `EXPIRE` or `TRANSITION`.
    pub action: String,
    /// Priority of the rule that acts.
    pub rule_priority: u32,
    /// Storage class of the image when it was evaluated.
    pub status: ImageStatus,
}
