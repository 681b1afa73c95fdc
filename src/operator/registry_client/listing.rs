//! The listing of a registry, which all its resources share: read by one for all, at most once per interval.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::RegistryClient;
use super::cache::CacheEntry;
use super::health::{RegistryError, pause};
use wharfage_apply::{Listing, list};
use wharfage_plan::model::ApiError;

/// Repositories whose tags and policies are read again in an interval, when nothing else asks for it.
pub const LOOKS_PER_INTERVAL: usize = 100;

pub(super) struct Snapshot {
    pub(super) at: Instant,
    pub(super) repositories: Listing,
}

/// What was listed last, and what came of it when that was tried since.
#[derive(Default)]
pub(super) struct Listings {
    pub(super) last: Option<Arc<Snapshot>>,
    pub(super) refused: Option<NotListed>,
}

/// A registry that answers, but does not list its repositories.
#[derive(Debug, Clone)]
pub(super) struct NotListed {
    pub(super) at: Instant,
    /// Consecutive failures.
    pub(super) times: u32,
    pub(super) error: ApiError,
}

impl Listings {
    /// What serves somebody who asked then, for a listing at most this old: one that began since, too. A refusal serves those
    /// that waited for it, and for a while everybody but who wants it now: each try may take as long as a registry is waited for.
    pub(super) fn serve(&self, asked: Instant, max_age: Duration) -> Option<Result<Arc<Snapshot>, RegistryError>> {
        let now = Instant::now();
        if let Some(last) = self.last.as_ref().filter(|it| it.at >= asked || now.duration_since(it.at) < max_age) {
            return Some(Ok(Arc::clone(last)));
        }
        let NotListed { at, times, error } = self.refused.as_ref()?;
        let rest = if max_age.is_zero() { Duration::ZERO } else { pause(*times) };
        (asked < *at + rest).then(|| Err(RegistryError::Rejected(error.clone())))
    }
}

impl RegistryClient {
    /// The listing, at most this old: read again by one for all.
    pub(super) async fn listing(&self, max_age: Duration) -> Result<Arc<Snapshot>, RegistryError> {
        let asked = Instant::now();
        if let Some(served) = self.listings().serve(asked, max_age) {
            return served;
        }
        let _one_lists = match self.listing.try_lock() {
            Ok(free) => free,
            Err(_) => {
                // What was refused before is tried again by one: nobody else stands and waits for that.
                let refused = self.listings().refused.clone().filter(|_| !max_age.is_zero());
                if let Some(NotListed { error, .. }) = refused {
                    return Err(RegistryError::Rejected(error));
                }
                self.listing.lock().await
            }
        };
        if let Some(served) = self.listings().serve(asked, max_age) {
            return served;
        }
        // A repository made while the listing goes on may be missing in it, so its time is that of its beginning.
        let at = Instant::now();
        match self.ask(list(&self.ecr)).await {
            Ok(repositories) => {
                self.forget_what_is_gone(&repositories, at);
                let new = Arc::new(Snapshot { at, repositories });
                let before =
                    std::mem::replace(&mut *self.listings(), Listings { last: Some(Arc::clone(&new)), refused: None });
                if before.refused.is_some() {
                    tracing::info!(registry = self.name, "the registry lists its repositories again");
                    (self.recovered)();
                }
                Ok(new)
            }
            Err(RegistryError::Rejected(error)) => {
                let mut listings = self.listings();
                let times = listings.refused.as_ref().map_or(0, |it| it.times).saturating_add(1);
                listings.refused = Some(NotListed { at: Instant::now(), times, error: error.clone() });
                Err(RegistryError::Rejected(error))
            }
            // All learn of that from its health.
            Err(RegistryError::Unavailable(unavailable)) => Err(RegistryError::Unavailable(unavailable)),
        }
    }

    pub(super) fn listings(&self) -> MutexGuard<'_, Listings> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn last_listing(&self) -> Option<Arc<Snapshot>> {
        self.listings().last.clone()
    }

    /// What was known of repositories that are listed no more, and that nobody is busy with.
    pub(super) fn forget_what_is_gone(&self, listed: &Listing, at: Instant) {
        self.places().retain(|name, CacheEntry { known, .. }| {
            let busy = || known.try_lock().map_or(true, |it| it.listed.as_ref().is_some_and(|(when, _)| *when >= at));
            listed.contains_key(name) || busy()
        });
    }

    /// In how many intervals each repository is looked at once.
    pub fn rotation(&self) -> u32 {
        let repositories = self.last_listing().map_or(0, |it| it.repositories.len());
        u32::try_from(repositories.div_ceil(LOOKS_PER_INTERVAL)).unwrap_or(u32::MAX).max(1)
    }
}
