//! Lifecycle previews as the store keeps them. Plain data.

use jiff::Timestamp;

use super::images::ImageStatus;
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
