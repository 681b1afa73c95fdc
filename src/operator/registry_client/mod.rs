//! A registry as the operator knows it: one client, one listing that all resources share, what was read of each repository,
//! and whether the registry answers at all.
//!
//! What is asked of a registry in steady state grows with the pages of its listing, not with the resources in it: the listing
//! is read once per interval; tags and policies, which ECR gives for one repository at a time, are read before anything is
//! changed, when somebody asks, and otherwise in rotation, about [`LOOKS_PER_INTERVAL`] repositories in an interval.

mod cache;
mod health;
mod listing;
mod locked;
mod usage;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::Mutex as AsyncMutex;

use cache::{CacheEntry, CachedRepository};
use health::CircuitBreaker;
use listing::Listings;
use wharfage_apply::{Ecr, registry_id};
use wharfage_domain::names::RepositoryName;
use wharfage_plan::ownership::LifecycleOwner;

pub use cache::Freshness;
pub use health::{RegistryError, Unavailable, is_unavailable};
pub use listing::LOOKS_PER_INTERVAL;
pub use locked::LockedRepository;
pub use usage::Totals;

/// The client of one registry.
pub struct RegistryClient {
    name: String,
    ecr: Ecr,
    /// Of what it was made: a Registry that asks for something else gets another client.
    fingerprint: u64,
    listings: Mutex<Listings>,
    /// Held by whoever lists, for all.
    listing: AsyncMutex<()>,
    repositories: Mutex<HashMap<RepositoryName, CacheEntry>>,
    health: Mutex<CircuitBreaker>,
    /// Where it is and which account's, once it answered that.
    registry: OnceLock<(String, String)>,
    /// When images were counted last that nobody else counts.
    counting: Mutex<Option<Instant>>,
    /// Held by whoever finds out whether it is the registry that fails, or one operation.
    doubting: AsyncMutex<()>,
    recovered: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryClient").field("name", &self.name).finish_non_exhaustive()
    }
}

impl RegistryClient {
    /// A client; nothing is sent yet. `recovered` is called when the registry answers again after it did not.
    pub fn new(name: &str, ecr: Ecr, fingerprint: u64, recovered: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            name: name.to_owned(),
            ecr,
            fingerprint,
            listings: Mutex::default(),
            listing: AsyncMutex::default(),
            repositories: Mutex::default(),
            health: Mutex::default(),
            registry: OnceLock::new(),
            counting: Mutex::default(),
            doubting: AsyncMutex::default(),
            recovered: Box::new(recovered),
        }
    }

    /// Of what it was made.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// It answered that it is the registry of this account, at this place. A client never becomes another registry's.
    pub fn found(&self, place: &str, account: &str) {
        self.registry.get_or_init(|| (place.to_owned(), account.to_owned()));
    }

    /// Where it is and which account's, once that is known.
    pub fn registry(&self) -> Option<&(String, String)> {
        self.registry.get()
    }

    /// The client. What is asked with it goes through [`Self::ask`].
    pub fn ecr(&self) -> &Ecr {
        &self.ecr
    }

    /// The repositories that are known to have a lifecycle policy of such an owner.
    pub fn governed_by(&self, owner: impl Fn(&LifecycleOwner) -> bool) -> Vec<RepositoryName> {
        let places = self.places();
        let governed = places.iter().filter(|(_, it)| it.summary.lifecycle.as_ref().is_some_and(&owner));
        governed.map(|(name, _)| name.clone()).collect()
    }

    /// One repository, for oneself: two resources that mean the same one come one after the other.
    pub async fn repository(self: &Arc<Self>, name: &RepositoryName) -> LockedRepository {
        let known = self.known(name);
        LockedRepository { registry_client: Arc::clone(self), name: name.clone(), known: known.lock_owned().await }
    }

    /// The same, unless somebody else is busy with it.
    fn idle_repository(self: &Arc<Self>, name: &RepositoryName) -> Option<LockedRepository> {
        let known = self.known(name).try_lock_owned().ok()?;
        Some(LockedRepository { registry_client: Arc::clone(self), name: name.clone(), known })
    }

    fn known(&self, name: &RepositoryName) -> Arc<AsyncMutex<CachedRepository>> {
        Arc::clone(&self.places().entry(name.clone()).or_default().known)
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<RepositoryName, CacheEntry>> {
        self.repositories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what another client knows of repositories, if both are of the same registry by what it answers. The listing
    /// it makes again: that tells what is there still.
    pub async fn take_over(&self, other: &Self, place: &str) {
        let Some((its_place, account)) = other.registry() else { return };
        if its_place == place && self.ask(registry_id(&self.ecr)).await.is_ok_and(|answered| answered == *account) {
            let known = other.places().clone();
            *self.places() = known;
        }
    }
}

/// The clients of all registries, by the names of their Registry resources.
#[derive(Debug, Default)]
pub struct RegistryClients(RwLock<HashMap<String, Last>>);

/// A Registry's last client, and whether it goes on.
#[derive(Debug)]
struct Last {
    registry_client: Arc<RegistryClient>,
    goes_on: bool,
}

impl RegistryClients {
    /// The client of a Registry, if it has one.
    pub fn get(&self, registry: &str) -> Option<Arc<RegistryClient>> {
        let registry_clients = self.0.read().unwrap_or_else(PoisonError::into_inner);
        registry_clients.get(registry).filter(|it| it.goes_on).map(|it| Arc::clone(&it.registry_client))
    }

    /// The client that a Registry has or had: what it knows serves the next one.
    pub fn last(&self, registry: &str) -> Option<Arc<RegistryClient>> {
        let registry_clients = self.0.read().unwrap_or_else(PoisonError::into_inner);
        registry_clients.get(registry).map(|it| Arc::clone(&it.registry_client))
    }

    /// Whether two Registries are the same registry; nothing if one of them did not answer yet, or has no client.
    pub fn same_registry(&self, one: &str, other: &str) -> Option<bool> {
        let (one, other) = (self.get(one)?, self.get(other)?);
        Some(one.registry()? == other.registry()?)
    }

    /// Gives a Registry its client.
    pub fn put(&self, registry: &str, registry_client: Arc<RegistryClient>) {
        self.write().insert(registry.to_owned(), Last { registry_client, goes_on: true });
    }

    /// Takes a Registry's client away; says whether it had one.
    pub fn remove(&self, registry: &str) -> bool {
        self.write().get_mut(registry).is_some_and(|it| std::mem::take(&mut it.goes_on))
    }

    /// Forgets a Registry that is gone.
    pub fn forget(&self, registry: &str) {
        self.write().remove(registry);
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Last>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
