//! The context that all controllers share. State of only one controller belongs to that
//! controller.

use std::sync::Arc;

use kube::{Client, Resource};

use super::events::Events;
use super::leader::Term;
use super::metrics::OperatorMetrics;
use super::registry_client::RegistryClients;
use super::secrets::SecretWatches;
use super::settings::Settings;
use super::stale_cache::StaleCache;
use super::stores::Stores;
use super::triggers::Triggers;
use super::watch::Change;

/// The context that all controllers share.
pub(crate) struct Context {
    /// A client of the API server, which sends nothing after the term.
    pub client: Client,
    /// The operator's settings.
    pub settings: Settings,
    /// The watched objects.
    pub stores: Stores,
    /// The registries.
    pub registry_clients: RegistryClients,
    /// The watches of the Secrets that objects refer to.
    pub(crate) secret_watches: SecretWatches,
    /// The queues by which resources are requeued.
    pub triggers: Triggers,
    /// Emits Kubernetes events.
    pub events: Events,
    /// The operator's metrics.
    pub metrics: Arc<OperatorMetrics>,
    /// The leadership term in which the controllers run.
    pub term: Term,
    /// Objects whose last write has not come back through a watch yet.
    pub stale_cache: StaleCache,
}

impl Context {
    /// Forgets an object if the change says that it is gone.
    pub(super) fn forget_deleted<K: Resource>(&self, change: &Change<K>) {
        if let Some(uid) = change.deleted_uid() {
            self.stale_cache.forget(uid);
        }
    }
}
