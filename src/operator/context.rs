//! What all controllers share.

use std::sync::Arc;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store, store, store::Writer};

use super::Settings;
use super::access::Feature;
use super::controllers::lifecycle_policy::Memory as Turns;
use super::controllers::registry::Applied;
use super::events::Events;
use super::in_use;
use super::index::{Index, IndexedWriter, indexed_store};
use super::leader::Term;
use super::lookup::{LifecyclePolicyKey, RepositoryKey};
use super::metrics::OperatorMetrics;
use super::pull_secrets::accounts::WatchedServiceAccount;
use super::pull_secrets::marks::WatchedSecret;
use super::pull_secrets::tokens::Tokens;
use super::secrets::SecretWatches;
use super::session::Sessions;
use super::written::Written;
use crate::crd::{LifecyclePolicy, PullSecret, Registry, Repository};

/// What all controllers share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What the operator was told.
    pub settings: Settings,
    /// The objects that are followed.
    pub stores: Stores,
    /// The registries.
    pub sessions: Sessions,
    /// Makes resources reconcile now.
    pub wake: Wake,
    /// Tells people what happens.
    pub events: Events,
    /// Tells programs what happens.
    pub metrics: Arc<OperatorMetrics>,
    /// The term that it reconciles in.
    pub term: Term,
    /// Secrets that Registries name.
    pub secrets: SecretWatches,
    /// What managed Registries were made of last.
    pub(super) applied: Applied,
    /// What lifecycle policies came to in their repositories.
    pub turns: Turns,
    /// What lifecycle runs of the operator share.
    pub in_use: in_use::run::Shared,
    /// The tokens that PullSecrets put into Secrets.
    pub tokens: Tokens,
    /// What has not come back by a watch yet.
    pub written: Written,
}

/// The objects that are followed. All of a kind are known before any resource is decided about.
#[derive(Clone)]
pub struct Stores {
    /// Registries.
    pub registries: Store<Registry>,
    /// Repositories.
    pub repositories: Store<Repository>,
    /// The same by what they are looked up by.
    pub(super) repositories_by: Index<Repository, RepositoryKey>,
    /// Lifecycle policies.
    pub lifecycle_policies: Store<LifecyclePolicy>,
    /// The same by what they are looked up by.
    pub(super) lifecycle_policies_by: Index<LifecyclePolicy, LifecyclePolicyKey>,
    /// Pull secrets.
    pub pull_secrets: Store<PullSecret>,
    /// Secrets that pull secrets made.
    pub pulled: Store<WatchedSecret>,
    /// Service accounts.
    pub service_accounts: Store<WatchedServiceAccount>,
    /// Namespaces: their labels are all that is needed.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
}

/// The other ends of the stores.
pub(super) struct Writers {
    pub(super) registries: Writer<Registry>,
    pub(super) repositories: IndexedWriter<Repository, RepositoryKey>,
    pub(super) lifecycle_policies: IndexedWriter<LifecyclePolicy, LifecyclePolicyKey>,
    pub(super) pull_secrets: Writer<PullSecret>,
    pub(super) pulled: Writer<WatchedSecret>,
    pub(super) service_accounts: Writer<WatchedServiceAccount>,
    pub(super) namespaces: Writer<PartialObjectMeta<Namespace>>,
}

impl Stores {
    pub(super) fn new() -> (Self, Writers) {
        let (registries, registries_writer) = store();
        let (repositories, repositories_by, repositories_writer) = indexed_store(RepositoryKey::of);
        let (lifecycle_policies, lifecycle_policies_by, lifecycle_policies_writer) =
            indexed_store(LifecyclePolicyKey::of);
        let (pull_secrets, pull_secrets_writer) = store();
        let (pulled, pulled_writer) = store();
        let (service_accounts, service_accounts_writer) = store();
        let (namespaces, namespaces_writer) = store();
        (
            Self {
                registries,
                repositories,
                repositories_by,
                lifecycle_policies,
                lifecycle_policies_by,
                pull_secrets,
                pulled,
                service_accounts,
                namespaces,
            },
            Writers {
                registries: registries_writer,
                repositories: repositories_writer,
                lifecycle_policies: lifecycle_policies_writer,
                pull_secrets: pull_secrets_writer,
                pulled: pulled_writer,
                service_accounts: service_accounts_writer,
                namespaces: namespaces_writer,
            },
        )
    }

    /// Waits until all that is there, and is followed, is known.
    pub(super) async fn ready(&self, settings: &Settings) -> anyhow::Result<()> {
        self.registries.wait_until_ready().await?;
        self.repositories.wait_until_ready().await?;
        self.lifecycle_policies.wait_until_ready().await?;
        self.namespaces.wait_until_ready().await?;
        self.pull_secrets.wait_until_ready().await?;
        if settings.has(Feature::PullSecrets) {
            self.pulled.wait_until_ready().await?;
            self.service_accounts.wait_until_ready().await?;
        }
        Ok(())
    }

    /// A Registry by its name.
    pub fn registry(&self, name: &str) -> Option<Arc<Registry>> {
        self.registries.get(&ObjectRef::new(name))
    }

    /// A namespace by its name.
    pub fn namespace(&self, name: &str) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        self.namespaces.get(&ObjectRef::new(name))
    }
}

/// The queues that make resources reconcile now. Waking one that is gone does nothing.
#[derive(Clone)]
pub struct Wake {
    registries: UnboundedSender<ObjectRef<Registry>>,
    repositories: UnboundedSender<ObjectRef<Repository>>,
    lifecycle_policies: UnboundedSender<ObjectRef<LifecyclePolicy>>,
    pull_secrets: UnboundedSender<ObjectRef<PullSecret>>,
}

/// The other ends of the queues.
pub(super) struct Woken {
    pub(super) registries: UnboundedReceiver<ObjectRef<Registry>>,
    pub(super) repositories: UnboundedReceiver<ObjectRef<Repository>>,
    pub(super) lifecycle_policies: UnboundedReceiver<ObjectRef<LifecyclePolicy>>,
    pub(super) pull_secrets: UnboundedReceiver<ObjectRef<PullSecret>>,
}

impl Wake {
    pub(super) fn new() -> (Self, Woken) {
        let (registries, registries_woken) = unbounded();
        let (repositories, repositories_woken) = unbounded();
        let (lifecycle_policies, lifecycle_policies_woken) = unbounded();
        let (pull_secrets, pull_secrets_woken) = unbounded();
        (
            Self { registries, repositories, lifecycle_policies, pull_secrets },
            Woken {
                registries: registries_woken,
                repositories: repositories_woken,
                lifecycle_policies: lifecycle_policies_woken,
                pull_secrets: pull_secrets_woken,
            },
        )
    }

    // A queue whose controller has ended needs no waking.

    /// Wakes a Registry.
    pub fn registry(&self, object: ObjectRef<Registry>) {
        let _ = self.registries.unbounded_send(object);
    }

    /// Wakes a Repository.
    pub fn repository(&self, object: ObjectRef<Repository>) {
        let _ = self.repositories.unbounded_send(object);
    }

    /// Wakes a PullSecret.
    pub fn pull_secret(&self, object: ObjectRef<PullSecret>) {
        let _ = self.pull_secrets.unbounded_send(object);
    }

    /// Wakes a LifecyclePolicy.
    pub fn lifecycle_policy(&self, object: ObjectRef<LifecyclePolicy>) {
        let _ = self.lifecycle_policies.unbounded_send(object);
    }
}
