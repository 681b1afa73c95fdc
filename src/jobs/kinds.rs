//! The kinds of jobs, and how each is run: one table. Pure.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use wharfage_store::jobs::{
    DeleteGeneration, DeleteRepository, EvaluateLifecycle, EvaluatePreview, FollowSubject, JobPayload as _, PruneEvents,
};

/// Workers of their own: jobs of one lane never wait for those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Lifecycle policies: long runs.
    Lifecycle,
    /// What somebody waits for: previews.
    Interactive,
    /// Bytes that are to be deleted.
    Bytes,
    /// Images that follow another one.
    Images,
    /// Repositories that were deleted.
    Repositories,
    /// Housekeeping.
    Upkeep,
}

impl Lane {
    /// Every lane.
    pub(super) const ALL: [Self; 6] =
        [Self::Lifecycle, Self::Interactive, Self::Bytes, Self::Images, Self::Repositories, Self::Upkeep];

    /// How many of the lane's jobs this process runs at once.
    pub(super) fn workers(self) -> usize {
        match self {
            Self::Lifecycle | Self::Interactive => 2,
            Self::Bytes => 4,
            Self::Images | Self::Repositories | Self::Upkeep => 1,
        }
    }
}

/// How often a job is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempts {
    /// So often; then it is dead.
    Limited(u32),
    /// Until it is done: what is to be deleted must not stay for want of an attempt.
    Forever,
}

/// How the jobs of a kind are run.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobKind {
    /// The kind, as its jobs' rows say it.
    pub(super) name: &'static str,
    /// Where they run.
    pub(super) lane: Lane,
    /// How often each is tried.
    pub(super) attempts: Attempts,
    /// The longest pause between two attempts.
    pub(super) longest_pause: Duration,
}

/// Every kind that this version runs.
pub(super) const KINDS: [JobKind; 6] = [
    JobKind {
        name: EvaluateLifecycle::KIND,
        lane: Lane::Lifecycle,
        attempts: Attempts::Limited(10),
        longest_pause: Duration::from_secs(600),
    },
    // Somebody waits for the result, and asks again where it failed.
    JobKind {
        name: EvaluatePreview::KIND,
        lane: Lane::Interactive,
        attempts: Attempts::Limited(6),
        longest_pause: Duration::from_secs(10),
    },
    JobKind {
        name: FollowSubject::KIND,
        lane: Lane::Images,
        attempts: Attempts::Forever,
        longest_pause: Duration::from_secs(600),
    },
    JobKind {
        name: DeleteGeneration::KIND,
        lane: Lane::Bytes,
        attempts: Attempts::Forever,
        longest_pause: Duration::from_secs(600),
    },
    JobKind {
        name: DeleteRepository::KIND,
        lane: Lane::Repositories,
        attempts: Attempts::Forever,
        longest_pause: Duration::from_secs(600),
    },
    // It is enqueued again and again.
    JobKind {
        name: PruneEvents::KIND,
        lane: Lane::Upkeep,
        attempts: Attempts::Limited(3),
        longest_pause: Duration::from_secs(60),
    },
];

/// The kind of this name, if this version runs it.
pub(super) fn kind(name: &str) -> Option<&'static JobKind> {
    KINDS.iter().find(|kind| kind.name == name)
}

impl JobKind {
    /// The pause after so many attempts, jittered; `None` when it was the last one.
    pub(super) fn pause(&self, attempts: u32) -> Option<Duration> {
        if matches!(self.attempts, Attempts::Limited(most) if attempts >= most) {
            return None;
        }
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_secs(1))
            .with_max_delay(self.longest_pause)
            .without_max_times()
            .with_jitter()
            .build();
        // Long before, the pauses have reached the longest.
        let turn = attempts.saturating_sub(1).min(32) as usize;
        Some(pauses.nth(turn).unwrap_or(self.longest_pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_are_tried_for_ever_with_pauses_that_are_bounded() {
        for name in [DeleteGeneration::KIND, DeleteRepository::KIND, FollowSubject::KIND] {
            let kind = kind(name).unwrap();
            for attempts in [1, 10, 1_000, u32::MAX] {
                let pause = kind.pause(attempts).expect("there is another attempt");
                // The jitter adds up to the shortest pause.
                assert!(pause <= kind.longest_pause * 2, "{name} after {attempts}: {pause:?}");
            }
        }
    }

    #[test]
    fn every_kind_of_the_store_is_run() {
        assert_eq!(KINDS.map(|kind| kind.name), wharfage_store::jobs::KINDS);
    }

    #[test]
    fn a_limited_kind_ends_after_its_attempts() {
        let preview = kind(EvaluatePreview::KIND).unwrap();
        assert!(preview.pause(5).is_some());
        assert_eq!(preview.pause(6), None);
        assert!(kind("of another version").is_none());
    }

    #[test]
    fn a_preview_shares_its_workers_with_nothing_long() {
        let lane = kind(EvaluatePreview::KIND).unwrap().lane;
        assert!(KINDS.iter().all(|kind| kind.lane != lane || kind.name == EvaluatePreview::KIND));
        assert!(Lane::ALL.iter().all(|lane| lane.workers() > 0 && KINDS.iter().any(|kind| kind.lane == *lane)));
    }
}
