//! The client of one registry, shared by all resources in it: its listing, the cached state of its objects, and a circuit
//! breaker.
//!
//! The number of calls in steady state grows with the pages of the listing, not with the resources. The listing is read once
//! per interval. ECR returns tags and policies for one repository at a time: they are read before a change, on request, and
//! otherwise in rotation, about [`READS_PER_INTERVAL`] repositories per interval.
//!
//! Locks, caches and rotations are keyed by [`wharfage_plan::ObjectKey`], and so serve objects of any kind.

mod cache;
mod documents;
mod health;
mod listing;
mod locked;
mod rotation;
mod usage;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::Mutex as AsyncMutex;

use cache::ObjectCache;
use documents::DocumentLocks;
use health::CircuitBreaker;
use listing::SharedListing;
use locked::CachedRepository;
use wharfage_apply::{Ecr, Listing, registry_id};
use wharfage_domain::names::RepositoryName;
use wharfage_plan::ObjectKey;
use wharfage_plan::ownership::LifecycleOwner;

pub use documents::LockedDocuments;
pub use health::{RegistryError, Unavailable, is_unavailable};
pub use locked::LockedRepository;
pub use rotation::{Freshness, READS_PER_INTERVAL};
pub use usage::Totals;

/// The client of one registry.
pub struct RegistryClient {
    name: String,
    ecr: Ecr,
    /// The fingerprint of the client's settings. A Registry with other settings gets a new client.
    fingerprint: u64,
    listing: SharedListing<Listing>,
    repositories: Arc<ObjectCache<CachedRepository>>,
    health: Mutex<CircuitBreaker>,
    /// The place and the account of the registry, once it reported them.
    registry: OnceLock<(String, String)>,
    /// When images of repositories without a resource were last counted.
    counting: Mutex<Option<Instant>>,
    /// Held by the caller that finds out whether the registry fails, or one operation.
    doubting: AsyncMutex<()>,
    recovered: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryClient").field("name", &self.name).finish_non_exhaustive()
    }
}

impl RegistryClient {
    /// Creates a client without calling the registry. `recovered` is called when an unreachable registry answers again.
    pub fn new(
        name: &str,
        ecr: Ecr,
        fingerprint: u64,
        recovered: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            ecr,
            fingerprint,
            listing: SharedListing::default(),
            repositories: Arc::default(),
            health: Mutex::default(),
            registry: OnceLock::new(),
            counting: Mutex::default(),
            doubting: AsyncMutex::default(),
            recovered: Box::new(recovered),
        }
    }

    /// Returns the fingerprint of the client's settings.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Records the account and the place that the registry reported. They never change for a client.
    pub fn found(&self, place: &str, account: &str) {
        self.registry.get_or_init(|| (place.to_owned(), account.to_owned()));
    }

    /// Returns the place and the account of the registry, once they are known.
    pub fn registry(&self) -> Option<&(String, String)> {
        self.registry.get()
    }

    /// Returns the ECR client. Calls with it go through [`Self::ask`].
    pub fn ecr(&self) -> &Ecr {
        &self.ecr
    }

    /// Returns the cached repositories whose lifecycle policy has such an owner.
    pub fn governed_by(&self, owner: impl Fn(&LifecycleOwner) -> bool) -> Vec<RepositoryName> {
        let entries = self.repositories.entries();
        let governed =
            entries.iter().filter(|(_, it)| it.summary.lifecycle.as_ref().is_some_and(&owner));
        governed.filter_map(|(key, _)| key.repository().cloned()).collect()
    }

    /// Waits for the lock of a repository. Resources that claim the same repository are reconciled one after the other.
    pub async fn repository(self: &Arc<Self>, name: &RepositoryName) -> LockedRepository {
        let known = self.repositories.lock(&name.clone().into()).await;
        LockedRepository { registry_client: Arc::clone(self), name: name.clone(), known }
    }

    /// Locks a repository, unless it is locked already.
    fn idle_repository(self: &Arc<Self>, key: &ObjectKey) -> Option<LockedRepository> {
        let (name, known) = (key.repository()?.clone(), self.repositories.try_lock(key)?);
        Some(LockedRepository { registry_client: Arc::clone(self), name, known })
    }

    /// Takes over the cached repositories of another client, if the registry reports the same account and place for both. The
    /// listing is read again, because it shows which repositories still exist.
    pub async fn take_over(&self, other: &Self, place: &str) {
        let Some((its_place, account)) = other.registry() else { return };
        if its_place == place
            && self.ask(registry_id(&self.ecr)).await.is_ok_and(|answered| answered == *account)
        {
            self.repositories.share(&other.repositories);
        }
    }
}

/// The clients of all registries, by the names of their Registry resources.
#[derive(Debug, Default)]
pub struct RegistryClients {
    clients: RwLock<HashMap<String, LastClient>>,
    documents: DocumentLocks,
}

/// A Registry's last client.
#[derive(Debug)]
struct LastClient {
    registry_client: Arc<RegistryClient>,
    is_current: bool,
}

impl RegistryClients {
    /// Returns the client of a Registry, if it has one.
    pub fn get(&self, registry: &str) -> Option<Arc<RegistryClient>> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.get(registry).filter(|it| it.is_current).map(|it| Arc::clone(&it.registry_client))
    }

    /// Returns the current or the previous client of a Registry, whose cache serves the next one.
    pub fn last(&self, registry: &str) -> Option<Arc<RegistryClient>> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.get(registry).map(|it| Arc::clone(&it.registry_client))
    }

    /// Returns whether two Registries are the same registry; `None` if one of them has not answered yet, or has no client.
    pub fn same_registry(&self, one: &str, other: &str) -> Option<bool> {
        let (one, other) = (self.get(one)?, self.get(other)?);
        Some(one.registry()? == other.registry()?)
    }

    /// Sets the client of a Registry.
    pub fn put(&self, registry: &str, registry_client: Arc<RegistryClient>) {
        self.write().insert(registry.to_owned(), LastClient { registry_client, is_current: true });
    }

    /// Removes the client of a Registry, and returns whether it had one.
    pub fn remove(&self, registry: &str) -> bool {
        self.write().get_mut(registry).is_some_and(|it| std::mem::take(&mut it.is_current))
    }

    /// Forgets a deleted Registry.
    pub fn forget(&self, registry: &str) {
        self.write().remove(registry);
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, LastClient>> {
        self.clients.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
