//! A listing of a registry that all its resources share: one caller lists for all, at most once per interval.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;

use super::RegistryClient;
use super::health::{RegistryError, pause};
use super::rotation::rotation;
use wharfage_apply::{Listing, list};
use wharfage_plan::ObjectKey;
use wharfage_plan::model::ApiError;

/// A listing and when it began.
pub(super) struct Snapshot<L> {
    pub(super) at: Instant,
    pub(super) objects: L,
}

/// The last listing, and the failures since.
pub(super) struct Listings<L> {
    pub(super) last: Option<Arc<Snapshot<L>>>,
    pub(super) refused: Option<NotListed>,
}

impl<L> Default for Listings<L> {
    fn default() -> Self {
        Self { last: None, refused: None }
    }
}

/// A listing that the registry rejected, although it answers.
#[derive(Debug, Clone)]
pub(super) struct NotListed {
    pub(super) at: Instant,
    /// Consecutive failures.
    pub(super) times: u32,
    pub(super) error: ApiError,
}

impl<L> Listings<L> {
    /// Returns the listing or the rejection that serves a caller who asked at `asked`, for a listing at most this old or one that
    /// began since. A rejection serves the callers that waited for it and, for a pause, everybody who does not want a new one
    /// now, because each attempt may take as long as the timeout.
    pub(super) fn serve(
        &self,
        asked: Instant,
        max_age: Duration,
    ) -> Option<Result<Arc<Snapshot<L>>, RegistryError>> {
        let now = Instant::now();
        if let Some(last) =
            self.last.as_ref().filter(|it| it.at >= asked || now.duration_since(it.at) < max_age)
        {
            return Some(Ok(Arc::clone(last)));
        }
        let NotListed { at, times, error } = self.refused.as_ref()?;
        let rest = if max_age.is_zero() { Duration::ZERO } else { pause(*times) };
        (asked < *at + rest).then(|| Err(RegistryError::Rejected(error.clone())))
    }
}

/// A listing of one kind of object, shared by all callers.
pub(super) struct SharedListing<L> {
    listings: Mutex<Listings<L>>,
    /// Held by the caller that lists.
    lister: AsyncMutex<()>,
}

impl<L> Default for SharedListing<L> {
    fn default() -> Self {
        Self { listings: Mutex::default(), lister: AsyncMutex::default() }
    }
}

impl<L> SharedListing<L> {
    /// Returns a listing at most this old; `list` is awaited if a new one is needed.
    pub(super) async fn get(
        &self,
        registry_client: &RegistryClient,
        max_age: Duration,
        list: impl Future<Output = Result<L, ApiError>>,
    ) -> Result<Arc<Snapshot<L>>, RegistryError> {
        let asked = Instant::now();
        if let Some(served) = self.listings().serve(asked, max_age) {
            return served;
        }
        let _lister = match self.lister.try_lock() {
            Ok(free) => free,
            Err(_) => {
                // One caller tries again after a rejection; the others do not wait for it.
                let refused = self.listings().refused.clone().filter(|_| !max_age.is_zero());
                if let Some(NotListed { error, .. }) = refused {
                    return Err(RegistryError::Rejected(error));
                }
                self.lister.lock().await
            }
        };
        if let Some(served) = self.listings().serve(asked, max_age) {
            return served;
        }
        // An object created during the listing may be missing in it, so the listing counts from its beginning.
        let at = Instant::now();
        match registry_client.ask(list).await {
            Ok(objects) => {
                let new = Arc::new(Snapshot { at, objects });
                let before = std::mem::replace(
                    &mut *self.listings(),
                    Listings { last: Some(Arc::clone(&new)), refused: None },
                );
                if before.refused.is_some() {
                    tracing::info!(
                        registry = registry_client.name,
                        "the registry lists its repositories again"
                    );
                    (registry_client.recovered)();
                }
                Ok(new)
            }
            Err(RegistryError::Rejected(error)) => {
                let mut listings = self.listings();
                let times = listings.refused.as_ref().map_or(0, |it| it.times).saturating_add(1);
                listings.refused =
                    Some(NotListed { at: Instant::now(), times, error: error.clone() });
                Err(RegistryError::Rejected(error))
            }
            // The other callers learn of that from the circuit breaker.
            Err(RegistryError::Unavailable(unavailable)) => {
                Err(RegistryError::Unavailable(unavailable))
            }
        }
    }

    /// Returns the last listing, without calling the registry.
    pub(super) fn last(&self) -> Option<Arc<Snapshot<L>>> {
        self.listings().last.clone()
    }

    fn listings(&self) -> MutexGuard<'_, Listings<L>> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegistryClient {
    /// Returns a listing of the repositories that is at most this old.
    pub(super) async fn listing(
        &self,
        max_age: Duration,
    ) -> Result<Arc<Snapshot<Listing>>, RegistryError> {
        let list = async {
            let at = Instant::now();
            let listed = list(&self.ecr).await?;
            self.forget_deleted(&listed, at);
            Ok(listed)
        };
        self.listing.get(self, max_age, list).await
    }

    pub(super) fn last_listing(&self) -> Option<Arc<Snapshot<Listing>>> {
        self.listing.last()
    }

    /// Removes repositories from the cache that are no longer listed and not locked.
    fn forget_deleted(&self, listed: &Listing, at: Instant) {
        let is_listed =
            |key: &ObjectKey| key.repository().is_some_and(|name| listed.contains_key(name));
        self.repositories.entries().retain(|key, entry| {
            let is_newer =
                || entry.is_locked_or(|it| it.listed.as_ref().is_some_and(|(when, _)| *when >= at));
            is_listed(key) || is_newer()
        });
    }

    /// Returns the number of intervals in which each repository is read once.
    pub fn rotation(&self) -> u32 {
        rotation(self.last_listing().map_or(0, |it| it.objects.len()))
    }
}
