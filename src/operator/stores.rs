//! The watched objects, and the keys by which they are found, so that a reconcile costs the same however many objects there are.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store, store, store::Writer};

use super::index::{Index, IndexedWriter, indexed_store};
use super::policy_rule::Feature;
use super::pull_secrets::accounts::WatchedServiceAccount;
use super::secrets::WatchedSecret;
use super::settings::Settings;
use wharfage_crd::{LifecyclePolicy, PullSecret, Registry, Repository};
use wharfage_domain::names::RepositoryName;

/// The watched objects. Controllers start when the first list of every kind is complete.
#[derive(Clone)]
pub struct Stores {
    /// Registries.
    pub registries: Store<Registry>,
    /// Repositories.
    pub repositories: Store<Repository>,
    /// Repositories by their keys.
    repositories_by: Index<Repository, RepositoryKey>,
    /// Lifecycle policies.
    pub lifecycle_policies: Store<LifecyclePolicy>,
    /// Lifecycle policies by their keys.
    lifecycle_policies_by: Index<LifecyclePolicy, LifecyclePolicyKey>,
    /// Pull secrets.
    pub pull_secrets: Store<PullSecret>,
    /// Secrets that pull secrets made.
    pub pulled: Store<WatchedSecret>,
    /// Service accounts.
    pub service_accounts: Store<WatchedServiceAccount>,
    /// Namespaces: their labels are all that is needed.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
}

/// The writing ends of the stores.
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

    /// Waits for the first complete list of every watched kind.
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

    /// The Repositories of a Registry.
    pub fn repositories_in(&self, registry: &str) -> Vec<Arc<Repository>> {
        self.repositories_by.with(RepositoryKey::Registry(registry.to_owned()))
    }

    /// The Repositories of a namespace.
    pub fn repositories_of(&self, namespace: &str) -> Vec<Arc<Repository>> {
        self.repositories_by.with(RepositoryKey::Namespace(namespace.to_owned()))
    }

    /// The Repositories that ask for a name, in whatever Registry: several Registries may be the same registry.
    pub fn repositories_that_ask_for(&self, name: &RepositoryName) -> Vec<Arc<Repository>> {
        self.repositories_by.with(RepositoryKey::Asks(name.clone()))
    }

    /// The Repositories that a LifecyclePolicy is about.
    pub fn repositories_chosen_by(&self, policy: &LifecyclePolicy) -> Vec<Arc<Repository>> {
        let namespace = policy.namespace().unwrap_or_default();
        let mut chosen = match &policy.spec.repository_ref {
            Some(reference) => {
                self.repositories.get(&ObjectRef::new(&reference.name).within(&namespace)).into_iter().collect()
            }
            None => self.repositories_of(&namespace),
        };
        chosen.retain(|it| policy.applies_to(it));
        chosen
    }

    /// The LifecyclePolicies of a Registry.
    pub fn lifecycle_policies_in(&self, registry: &str) -> Vec<Arc<LifecyclePolicy>> {
        self.lifecycle_policies_by.with(LifecyclePolicyKey::Registry(registry.to_owned()))
    }

    /// The LifecyclePolicies of a namespace.
    pub fn lifecycle_policies_of(&self, namespace: &str) -> Vec<Arc<LifecyclePolicy>> {
        self.lifecycle_policies_by.with(LifecyclePolicyKey::Namespace(namespace.to_owned()))
    }

    /// The LifecyclePolicies that are about one of these Repositories, each once.
    pub fn lifecycle_policies_about(&self, repositories: &[&Repository]) -> Vec<Arc<LifecyclePolicy>> {
        let keys: Vec<_> = repositories.iter().flat_map(|it| LifecyclePolicyKey::about(it)).collect();
        let mut about = self.lifecycle_policies_by.any_of(&keys);
        about.retain(|policy| repositories.iter().any(|it| policy.applies_to(it)));
        about
    }
}

/// Index keys of a Repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RepositoryKey {
    /// The Registry that it is in.
    Registry(String),
    /// Its namespace.
    Namespace(String),
    /// The name that it asks for, in whatever Registry.
    Asks(RepositoryName),
}

impl RepositoryKey {
    /// All keys of a Repository.
    pub fn of(repository: &Repository) -> Vec<Self> {
        let registry = &repository.spec.registry_ref.name;
        let asks = repository.repository_name().map(Self::Asks);
        let is_in = [Self::Registry(registry.clone()), Self::Namespace(repository.namespace().unwrap_or_default())];
        is_in.into_iter().chain(asks).collect()
    }
}

/// Index keys of a LifecyclePolicy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LifecyclePolicyKey {
    /// The Registry whose repositories it is for.
    Registry(String),
    /// Its namespace.
    Namespace(String),
    /// Whom it may be about.
    MayApplyTo {
        /// Its namespace.
        namespace: String,
        /// Its Registry.
        registry: String,
        /// The Repository that it names; nothing if it chooses by labels.
        repository: Option<String>,
    },
}

impl LifecyclePolicyKey {
    /// All keys of a LifecyclePolicy.
    pub fn of(policy: &LifecyclePolicy) -> Vec<Self> {
        let (namespace, registry) = (policy.namespace().unwrap_or_default(), policy.spec.registry_ref.name.clone());
        let repository = policy.spec.repository_ref.as_ref().map(|it| it.name.clone());
        vec![
            Self::Registry(registry.clone()),
            Self::Namespace(namespace.clone()),
            Self::MayApplyTo { namespace, registry, repository },
        ]
    }

    /// The keys of those that may be about a Repository.
    fn about(repository: &Repository) -> [Self; 2] {
        let (namespace, registry) = (repository.namespace().unwrap_or_default(), &repository.spec.registry_ref.name);
        [Some(repository.name_any()), None].map(|repository| Self::MayApplyTo {
            namespace: namespace.clone(),
            registry: registry.clone(),
            repository,
        })
    }
}

#[cfg(test)]
mod tests {
    use kube::Resource;
    use kube::runtime::watcher::Event;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::watch::Keeper;

    fn apply<K>(keeper: &mut impl Keeper<K>, objects: &[(&str, Value)])
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
    {
        for (object, spec) in objects {
            let (namespace, name) = object.split_once('/').unwrap();
            let mut spec = spec.clone();
            let labels = spec.as_object_mut().unwrap().remove("labels").unwrap_or_default();
            let metadata = json!({ "namespace": namespace, "name": name, "labels": labels });
            let object = json!({ "metadata": metadata, "spec": spec });
            keeper.apply(&Event::Apply(serde_json::from_value(object).unwrap()));
        }
    }

    fn names<K: Resource>(found: Vec<Arc<K>>) -> Vec<String> {
        let name = |it: &Arc<K>| format!("{}/{}", it.namespace().unwrap_or_default(), it.name_any());
        let mut names: Vec<_> = found.iter().map(name).collect();
        names.sort_unstable();
        names
    }

    fn stores() -> Stores {
        let (stores, mut writers) = Stores::new();
        let (home, away) = (json!({ "name": "home" }), json!({ "name": "away" }));
        apply(
            &mut writers.repositories,
            &[
                ("shop/api", json!({ "registryRef": home, "labels": { "tier": "back" } })),
                ("shop/web", json!({ "registryRef": home, "repositoryName": "shop/web" })),
                (
                    "shop/elsewhere",
                    json!({ "registryRef": away, "repositoryName": "api", "labels": { "tier": "back" } }),
                ),
                ("desk/api", json!({ "registryRef": home, "labels": { "tier": "back" } })),
                ("desk/other", json!({ "registryRef": home, "repositoryName": "api" })),
                ("desk/-", json!({ "registryRef": home })),
            ],
        );
        let rules = json!([]);
        let back = json!({ "matchLabels": { "tier": "back" } });
        apply(
            &mut writers.lifecycle_policies,
            &[
                ("shop/api", json!({ "registryRef": home, "repositoryRef": { "name": "api" }, "rules": rules })),
                ("shop/web", json!({ "registryRef": home, "repositoryRef": { "name": "web" }, "rules": rules })),
                ("shop/back", json!({ "registryRef": home, "repositorySelector": back, "rules": rules })),
                ("shop/away", json!({ "registryRef": away, "repositoryRef": { "name": "api" }, "rules": rules })),
                ("desk/all", json!({ "registryRef": home, "repositorySelector": {}, "rules": rules })),
            ],
        );
        stores
    }

    #[test]
    fn repositories_are_found_by_registry_by_namespace_and_by_the_name_that_they_ask_for() {
        let stores = stores();
        assert_eq!(names(stores.repositories_in("away")), ["shop/elsewhere"]);
        assert_eq!(names(stores.repositories_in("home")), ["desk/-", "desk/api", "desk/other", "shop/api", "shop/web"]);
        assert_eq!(names(stores.repositories_of("shop")), ["shop/api", "shop/elsewhere", "shop/web"]);
        let ask = |name: &str| names(stores.repositories_that_ask_for(&name.parse().unwrap()));
        assert_eq!(ask("api"), ["desk/api", "desk/other", "shop/api", "shop/elsewhere"]);
        assert_eq!(ask("shop/web"), ["shop/web"]);
        assert!(ask("web").is_empty());
    }

    #[test]
    fn lifecycle_policies_are_found_by_registry_by_namespace_and_by_whom_they_are_about() {
        let stores = stores();
        assert_eq!(names(stores.lifecycle_policies_in("away")), ["shop/away"]);
        assert_eq!(names(stores.lifecycle_policies_of("shop")), ["shop/api", "shop/away", "shop/back", "shop/web"]);
        let repositories = stores.repositories.state();
        for repository in &repositories {
            let about = stores.lifecycle_policies.state_filter(|it| it.applies_to(repository));
            assert_eq!(
                names(stores.lifecycle_policies_about(&[repository])),
                names(about),
                "{}",
                repository.name_any()
            );
        }
        let all: Vec<_> = repositories.iter().map(|it| &**it).collect();
        assert_eq!(names(stores.lifecycle_policies_about(&all)), ["desk/all", "shop/api", "shop/back", "shop/web"]);
    }

    #[test]
    fn a_lifecycle_policy_chooses_those_that_it_applies_to() {
        let stores = stores();
        let chosen = |policy: &str| {
            let (namespace, name) = policy.split_once('/').unwrap();
            let policy = stores.lifecycle_policies.get(&ObjectRef::new(name).within(namespace)).unwrap();
            names(stores.repositories_chosen_by(&policy))
        };
        assert_eq!(chosen("shop/api"), ["shop/api"]);
        assert_eq!(chosen("shop/back"), ["shop/api"]);
        assert!(chosen("shop/away").is_empty(), "it is in another Registry");
        assert_eq!(chosen("desk/all"), ["desk/-", "desk/api", "desk/other"]);
    }
}
