//! The watched objects, and the keys by which they are found, so that the cost of a reconcile does
//! not depend on their number.

use std::ops::Deref;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store, store, store::Writer};

use super::index::{Index, IndexedWriter, indexed_store};
use super::kind::{Kind, ObjectName, Reference, ReferenceKey, for_each_kind};
use super::policy_rule::Feature;
use super::pull_secrets::accounts::WatchedServiceAccount;
use super::secrets::WatchedSecret;
use super::settings::Settings;
use super::status::Cause;
use wharfage_crd::{LifecyclePolicy, Registry, Repository};

/// A key by which the objects of a kind are found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum IndexKey {
    Namespace(String),
    Reference(ReferenceKey),
    /// The name in a registry that the object claims, in any Registry.
    ClaimedName(String),
}

impl IndexKey {
    /// Returns all keys of an object.
    fn of<K: Kind>(object: &K) -> Vec<Self> {
        let references = object.references().into_iter().map(|it| Self::Reference(it.key()));
        let others =
            [object.namespace().map(Self::Namespace), object.claimed_name().map(Self::ClaimedName)];
        references.chain(others.into_iter().flatten()).collect()
    }
}

/// The objects of a kind, by name and by their keys.
#[derive(Clone)]
pub(crate) struct KindStore<K: Kind> {
    store: Store<K>,
    index: Index<K, IndexKey>,
}

impl<K: Kind> Deref for KindStore<K> {
    type Target = Store<K>;

    fn deref(&self) -> &Store<K> {
        &self.store
    }
}

impl<K: Kind> KindStore<K> {
    fn new() -> (Self, IndexedWriter<K, IndexKey>) {
        let (store, index, writer) = indexed_store(IndexKey::of);
        (Self { store, index }, writer)
    }

    /// Returns the object that a reference names, unless it is being deleted.
    fn find(&self, name: ObjectName<'_>, reference: &Reference) -> Option<Arc<K>> {
        let (namespace, name) = name;
        let object = ObjectRef::new(name);
        let object = self.get(&match namespace {
            Some(namespace) => object.within(namespace),
            None => object,
        })?;
        (object.meta().deletion_timestamp.is_none() && reference.matches(&*object))
            .then_some(object)
    }

    /// Returns the objects of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.index.with(IndexKey::Namespace(namespace.to_owned()))
    }

    /// Returns the objects that refer to a Registry.
    pub(crate) fn in_registry(&self, registry: &str) -> Vec<Arc<K>> {
        self.index.with(IndexKey::Reference(ReferenceKey::to_registry(registry)))
    }

    /// Returns the objects that claim a name, in any Registry: several Registries may be the same
    /// registry.
    pub(crate) fn claiming(&self, name: &str) -> Vec<Arc<K>> {
        self.index.with(IndexKey::ClaimedName(name.to_owned()))
    }

    /// Returns the objects that refer to one of these, each once.
    pub(crate) fn referring_to<T: Kind>(&self, targets: &[&T]) -> Vec<Arc<K>> {
        let keys: Vec<_> =
            targets.iter().flat_map(|it| ReferenceKey::to(*it)).map(IndexKey::Reference).collect();
        let mut referring = self.index.any_of(&keys);
        referring.retain(|it| targets.iter().any(|target| it.refers_to(*target)));
        referring
    }
}

/// A kind with a store.
pub(crate) trait StoredKind: Kind {
    fn store(stores: &Stores) -> &KindStore<Self>;
}

/// Makes the stores of all kinds.
macro_rules! kind_stores {
    ($($field:ident: $kind:ty => $controller:path;)*) => {
        /// The watched objects. Controllers start when the first list of every kind is complete.
        #[derive(Clone)]
        pub(crate) struct Stores {
            $(pub(crate) $field: KindStore<$kind>,)*
            /// Secrets of PullSecrets.
            pub(crate) pulled: Store<WatchedSecret>,
            pub(crate) service_accounts: Store<WatchedServiceAccount>,
            /// The metadata of namespaces.
            pub(crate) namespaces: Store<PartialObjectMeta<Namespace>>,
        }

        /// The writing ends of the kinds' stores.
        pub(super) struct KindWriters {
            $(pub(super) $field: IndexedWriter<$kind, IndexKey>,)*
        }

        impl Stores {
            pub(super) fn new() -> (Self, Writers) {
                $(let $field = KindStore::new();)*
                let (pulled, service_accounts, namespaces) = (store(), store(), store());
                let stores = Self {
                    $($field: $field.0,)*
                    pulled: pulled.0,
                    service_accounts: service_accounts.0,
                    namespaces: namespaces.0,
                };
                let writers = Writers {
                    kinds: KindWriters { $($field: $field.1,)* },
                    pulled: pulled.1,
                    service_accounts: service_accounts.1,
                    namespaces: namespaces.1,
                };
                (stores, writers)
            }

            /// Waits for the first complete list of every watched kind.
            pub(super) async fn ready(&self, settings: &Settings) -> anyhow::Result<()> {
                $(self.$field.wait_until_ready().await?;)*
                self.namespaces.wait_until_ready().await?;
                if settings.has(Feature::PullSecrets) {
                    self.pulled.wait_until_ready().await?;
                    self.service_accounts.wait_until_ready().await?;
                }
                Ok(())
            }

            /// Returns the cause if an object that this one refers to by name does not exist,
            /// except its Registry.
            pub(crate) fn missing_reference<K: Kind>(&self, object: &K) -> Option<Cause> {
                object.references().iter().filter(|it| !it.is_to_registry()).find_map(|reference| {
                    let found = match reference.name() {
                        None => true,
                        $(Some(name) if reference.is_to::<$kind>() => self.$field.find(name, reference).is_some(),)*
                        Some(_) => false,
                    };
                    (!found).then(|| reference.not_found())
                })
            }

            /// Counts the objects of all kinds that refer to this one.
            pub(crate) fn count_referrers<T: Kind>(&self, target: &T) -> usize {
                [$(self.$field.referring_to(&[target]).len()),*].into_iter().sum()
            }
        }

        $(impl StoredKind for $kind {
            fn store(stores: &Stores) -> &KindStore<Self> {
                &stores.$field
            }
        })*
    };
}
for_each_kind!(kind_stores);

/// The writing ends of the stores.
pub(super) struct Writers {
    pub(super) kinds: KindWriters,
    pub(super) pulled: Writer<WatchedSecret>,
    pub(super) service_accounts: Writer<WatchedServiceAccount>,
    pub(super) namespaces: Writer<PartialObjectMeta<Namespace>>,
}

impl Stores {
    /// Returns a Registry by its name.
    pub(crate) fn registry(&self, name: &str) -> Option<Arc<Registry>> {
        self.registries.get(&ObjectRef::new(name))
    }

    /// Returns a namespace by its name.
    pub(crate) fn namespace(&self, name: &str) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        self.namespaces.get(&ObjectRef::new(name))
    }

    /// Returns the Repositories that a LifecyclePolicy refers to.
    pub(crate) fn repositories_chosen_by(&self, policy: &LifecyclePolicy) -> Vec<Arc<Repository>> {
        let namespace = policy.namespace().unwrap_or_default();
        let mut chosen = match &policy.spec.repository_ref {
            Some(reference) => self
                .repositories
                .get(&ObjectRef::new(&reference.name).within(&namespace))
                .into_iter()
                .collect(),
            None => self.repositories.in_namespace(&namespace),
        };
        chosen.retain(|it| policy.applies_to(it));
        chosen
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
        let name =
            |it: &Arc<K>| format!("{}/{}", it.namespace().unwrap_or_default(), it.name_any());
        let mut names: Vec<_> = found.iter().map(name).collect();
        names.sort_unstable();
        names
    }

    fn stores() -> Stores {
        let (stores, mut writers) = Stores::new();
        let (home, away) = (json!({ "name": "home" }), json!({ "name": "away" }));
        apply(
            &mut writers.kinds.repositories,
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
            &mut writers.kinds.lifecycle_policies,
            &[
                (
                    "shop/api",
                    json!({ "registryRef": home, "repositoryRef": { "name": "api" }, "rules": rules }),
                ),
                (
                    "shop/web",
                    json!({ "registryRef": home, "repositoryRef": { "name": "web" }, "rules": rules }),
                ),
                (
                    "shop/back",
                    json!({ "registryRef": home, "repositorySelector": back, "rules": rules }),
                ),
                (
                    "shop/away",
                    json!({ "registryRef": away, "repositoryRef": { "name": "api" }, "rules": rules }),
                ),
                (
                    "desk/all",
                    json!({ "registryRef": home, "repositorySelector": {}, "rules": rules }),
                ),
            ],
        );
        stores
    }

    #[test]
    fn repositories_are_found_by_registry_namespace_and_claimed_name() {
        let stores = stores();
        assert_eq!(names(stores.repositories.in_registry("away")), ["shop/elsewhere"]);
        assert_eq!(
            names(stores.repositories.in_registry("home")),
            ["desk/-", "desk/api", "desk/other", "shop/api", "shop/web"]
        );
        assert_eq!(
            names(stores.repositories.in_namespace("shop")),
            ["shop/api", "shop/elsewhere", "shop/web"]
        );
        let ask = |name: &str| names(stores.repositories.claiming(name));
        assert_eq!(ask("api"), ["desk/api", "desk/other", "shop/api", "shop/elsewhere"]);
        assert_eq!(ask("shop/web"), ["shop/web"]);
        assert!(ask("web").is_empty());
    }

    #[test]
    fn lifecycle_policies_are_found_by_registry_namespace_and_repository() {
        let stores = stores();
        assert_eq!(names(stores.lifecycle_policies.in_registry("away")), ["shop/away"]);
        assert_eq!(
            names(stores.lifecycle_policies.in_namespace("shop")),
            ["shop/api", "shop/away", "shop/back", "shop/web"]
        );
        let repositories = stores.repositories.state();
        for repository in &repositories {
            let about = stores.lifecycle_policies.state_filter(|it| it.applies_to(repository));
            assert_eq!(
                names(stores.lifecycle_policies.referring_to(&[&**repository])),
                names(about),
                "{}",
                repository.name_any()
            );
        }
        let all: Vec<_> = repositories.iter().map(|it| &**it).collect();
        assert_eq!(
            names(stores.lifecycle_policies.referring_to(&all)),
            ["desk/all", "shop/api", "shop/back", "shop/web"]
        );
    }

    #[test]
    fn a_lifecycle_policy_refers_to_the_repositories_that_it_applies_to() {
        let stores = stores();
        let chosen = |policy: &str| {
            let (namespace, name) = policy.split_once('/').unwrap();
            let policy =
                stores.lifecycle_policies.get(&ObjectRef::new(name).within(namespace)).unwrap();
            names(stores.repositories_chosen_by(&policy))
        };
        assert_eq!(chosen("shop/api"), ["shop/api"]);
        assert_eq!(chosen("shop/back"), ["shop/api"]);
        assert!(chosen("shop/away").is_empty(), "it is in another Registry");
        assert_eq!(chosen("desk/all"), ["desk/-", "desk/api", "desk/other"]);
    }

    #[test]
    fn a_missing_named_object_is_reported_with_its_field() {
        let stores = stores();
        let missing = |name: &str| {
            let policy =
                stores.lifecycle_policies.get(&ObjectRef::new(name).within("shop")).unwrap();
            stores.missing_reference(&*policy).map(|it| it.message)
        };
        assert_eq!(missing("api"), None);
        assert_eq!(missing("back"), None, "a selector may find nothing yet");
        let message = "Repository shop/api does not exist in Registry away: make it, or correct repositoryRef";
        assert_eq!(missing("away").as_deref(), Some(message));
    }

    #[test]
    fn referrers_of_all_kinds_are_counted() {
        let stores = stores();
        let api = stores.repositories.get(&ObjectRef::new("api").within("shop")).unwrap();
        assert_eq!(stores.count_referrers(&*api), 2);
        let home = json!({ "metadata": { "name": "home" }, "spec": {} });
        let home: Registry = serde_json::from_value(home).unwrap();
        assert_eq!(stores.count_referrers(&home), 5 + 4);
    }
}
