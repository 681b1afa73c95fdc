//! What is known of each repository, and when it is due to be read again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;

use wharfage_apply::{ImageUsage, Listed, RepositoryNeeds};
use wharfage_plan::model::ObservedRepository;
use wharfage_plan::ownership::LifecycleOwner;

/// How new what is known must be.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// The resource's interval: what is older is read again.
    pub interval: Duration,
    /// Everything is read again now.
    pub now: bool,
}

/// The entry of one repository in the cache.
#[derive(Debug, Clone, Default)]
pub(super) struct CacheEntry {
    pub(super) known: Arc<AsyncMutex<CachedRepository>>,
    pub(super) summary: Summary,
}

/// A summary that is read without the repository's lock, as of the last time the lock was released.
#[derive(Debug, Clone, Default)]
pub(super) struct Summary {
    pub(super) lifecycle: Option<LifecycleOwner>,
    pub(super) usage: Option<(RefreshDue, ImageUsage)>,
}

impl Summary {
    pub(super) fn of(known: &CachedRepository) -> Self {
        let tags = known.read.as_ref().map(|read| &read.observed.tags);
        Self { lifecycle: tags.and_then(LifecycleOwner::read), usage: known.usage.clone() }
    }
}

/// What was read of one repository. Only the holder of its lock changes it.
#[derive(Debug, Default)]
pub(super) struct CachedRepository {
    /// What anybody asked for: read together, so that those who ask for different things do not read in turns.
    pub(super) asked: RepositoryNeeds,
    /// From an answer about it alone; a newer listing replaces it.
    pub(super) listed: Option<(Instant, Option<Listed>)>,
    /// A change of it failed, and nobody knows how far that came: what a listing says of it does not do until it was asked for.
    pub(super) needs_refresh: bool,
    pub(super) read: Option<Read>,
    pub(super) usage: Option<(RefreshDue, ImageUsage)>,
}

/// When a value was read, and when it is due again: after 50 % to 100 % of a rotation, jittered so that reads spread out.
#[derive(Debug, Clone, Copy)]
pub(super) struct RefreshDue {
    pub(super) at: Instant,
    pub(super) part: f64,
}

impl RefreshDue {
    pub(super) fn of(at: Instant) -> Self {
        Self { at, part: 0.5 + 0.5 * fastrand::f64() }
    }

    /// Whether it is to be read again; never before an interval is over.
    pub(super) fn is_over(self, now: Instant, interval: Duration, rotation: u32) -> bool {
        let intervals = (f64::from(rotation) * self.part).max(1.0);
        now.duration_since(self.at) >= interval.mul_f64(intervals)
    }
}

#[derive(Debug)]
pub(super) struct Read {
    pub(super) turn: RefreshDue,
    pub(super) needs: RepositoryNeeds,
    pub(super) observed: ObservedRepository,
}
