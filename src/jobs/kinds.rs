//! The table of job kinds: lane, attempts and pauses. Pure.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use wharfage_store::jobs::{
    DeleteGeneration, DeleteRepository, EvaluateLifecycle, EvaluatePreview, FollowSubject,
    JobPayload as _, PruneEvents,
};

/// A group of kinds with its own workers: jobs of one lane never wait for those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Lifecycle policies: long runs.
    Lifecycle,
    /// Previews, for which a client waits.
    Interactive,
    /// Deletion of bytes.
    Bytes,
    /// Referrers that follow their subject.
    Images,
    /// Deletion of repositories.
    Repositories,
    /// Housekeeping.
    Upkeep,
}

impl Lane {
    /// Every lane.
    pub(super) const ALL: [Self; 6] = [
        Self::Lifecycle,
        Self::Interactive,
        Self::Bytes,
        Self::Images,
        Self::Repositories,
        Self::Upkeep,
    ];

    /// Returns the number of the lane's jobs that this process runs at once.
    pub(super) fn workers(self) -> usize {
        match self {
            Self::Lifecycle | Self::Interactive => 2,
            Self::Bytes => 4,
            Self::Images | Self::Repositories | Self::Upkeep => 1,
        }
    }
}

/// The number of attempts of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempts {
    /// After this many attempts, the job is dead.
    Limited(u32),
    /// The job is retried until it succeeds: bytes to delete must not stay because of failures.
    Forever,
}

/// A kind of jobs.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobKind {
    /// The name of the kind in the rows of its jobs.
    pub(super) name: &'static str,
    /// The lane whose workers run it.
    pub(super) lane: Lane,
    /// The number of attempts.
    pub(super) attempts: Attempts,
    /// The longest pause between two attempts.
    pub(super) longest_pause: Duration,
}

/// The kinds that this version runs.
pub(super) const KINDS: [JobKind; 6] = [
    JobKind {
        name: EvaluateLifecycle::KIND,
        lane: Lane::Lifecycle,
        attempts: Attempts::Limited(10),
        longest_pause: Duration::from_secs(600),
    },
    // A client waits for the result, and starts another preview after a failure.
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
    // The job is enqueued repeatedly.
    JobKind {
        name: PruneEvents::KIND,
        lane: Lane::Upkeep,
        attempts: Attempts::Limited(3),
        longest_pause: Duration::from_secs(60),
    },
];

/// Finds the kind of this name, if this version runs it.
pub(super) fn kind(name: &str) -> Option<&'static JobKind> {
    KINDS.iter().find(|kind| kind.name == name)
}

impl JobKind {
    /// Returns the jittered pause after this many attempts; `None` after the last one.
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
        // The pauses have reached the longest long before.
        let turn = attempts.saturating_sub(1).min(32) as usize;
        Some(pauses.nth(turn).unwrap_or(self.longest_pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_are_retried_forever_with_limited_pauses() {
        for name in [DeleteGeneration::KIND, DeleteRepository::KIND, FollowSubject::KIND] {
            let kind = kind(name).unwrap();
            for attempts in [1, 10, 1_000, u32::MAX] {
                let pause = kind.pause(attempts).expect("there is another attempt");
                // The jitter adds at most the shortest pause.
                assert!(pause <= kind.longest_pause * 2, "{name} after {attempts}: {pause:?}");
            }
        }
    }

    #[test]
    fn every_kind_of_the_store_has_an_entry() {
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
    fn previews_have_a_lane_without_long_jobs() {
        let lane = kind(EvaluatePreview::KIND).unwrap().lane;
        assert!(KINDS.iter().all(|kind| kind.lane != lane || kind.name == EvaluatePreview::KIND));
        assert!(
            Lane::ALL
                .iter()
                .all(|lane| lane.workers() > 0 && KINDS.iter().any(|kind| kind.lane == *lane))
        );
    }
}
