//! The kinds: one list, and what the operator must know of each. It knows no controller and no
//! store.
//!
//! Stores, queues, watches, controllers, metrics and access rules are made from [`for_each_kind`],
//! so a new kind is one line there.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::core::object::HasStatus;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::status::Cause;
use super::watch::Change;
use wharfage_crd::common::selects;
use wharfage_crd::{Condition, Reason};

/// Calls a macro with the list of all kinds: the name of the kind's store and queue, its type, and
/// its controller.
macro_rules! for_each_kind {
    ($macro:ident) => {
        $macro! {
            registries: wharfage_crd::Registry => controllers::registry::RegistryController;
            repositories: wharfage_crd::Repository => controllers::repository::RepositoryController;
            lifecycle_policies: wharfage_crd::LifecyclePolicy => controllers::lifecycle_policy::LifecyclePolicyController;
            pull_secrets: wharfage_crd::PullSecret => controllers::pull_secret::PullSecretController;
        }
    };
}
pub(crate) use for_each_kind;

/// The annotation by which people request a reconcile: each new value requests one.
pub(crate) const REQUESTED_AT: &str = "reconcile.wharfage.dev/requestedAt";

/// A kind that the operator reconciles.
pub(crate) trait Kind:
    Resource<DynamicType = (), Scope: ApiScope<Self>>
    + HasStatus<Status: StatusFields>
    + Clone
    + DeserializeOwned
    + Debug
    + Send
    + Sync
    + 'static
{
    const NAME: &'static str;

    /// True if objects that refer to this kind are requeued when an object becomes Ready.
    const READY_REQUEUES_REFERRERS: bool = true;

    /// Returns the name of the Registry that the object is in; a Registry's is its own.
    fn registry_name(&self) -> &str;

    /// Returns whether `spec.suspend` is set.
    fn is_suspended(&self) -> bool {
        false
    }

    /// Returns the time between two reconciles of an object at rest.
    fn sync_interval(&self) -> Duration;

    /// Returns the objects of our kinds that the spec refers to.
    fn references(&self) -> Vec<Reference> {
        vec![Reference::registry(self.registry_name())]
    }

    /// Returns the name in the registry that the object claims, by which others that claim it are
    /// found.
    fn claimed_name(&self) -> Option<String> {
        None
    }

    /// Returns whether objects that refer to this one are requeued by a change. The default is what
    /// selectors read.
    fn affects_referrers(change: &Change<Self>) -> bool {
        let labels =
            |it: &Option<std::sync::Arc<Self>>| it.as_ref().map(|it| it.meta().labels.clone());
        change.leaves() || labels(&change.old) != labels(&change.new)
    }

    /// Returns the status, empty if there is none yet.
    fn status_or_default(&self) -> Self::Status {
        self.status().cloned().unwrap_or_default()
    }

    /// Returns the conditions of the status.
    fn conditions(&self) -> &[Condition] {
        self.status().map(StatusFields::conditions).unwrap_or_default()
    }

    /// Returns the request to reconcile now, if it was not handled yet.
    fn requested(&self) -> Option<String> {
        let requested = self.meta().annotations.as_ref()?.get(REQUESTED_AT)?;
        (Some(requested) != self.status().and_then(StatusFields::last_handled))
            .then(|| requested.clone())
    }

    /// Returns whether this object refers to that one.
    fn refers_to<T: Kind>(&self, target: &T) -> bool {
        self.references().iter().any(|it| it.matches(target))
    }
}

/// Makes a client for the objects of a scope.
pub(crate) trait ApiScope<K> {
    fn api(client: Client, namespace: &str) -> Api<K>;
}

impl<K: Resource<Scope = Self, DynamicType = ()>> ApiScope<K> for ClusterResourceScope {
    fn api(client: Client, _namespace: &str) -> Api<K> {
        Api::all(client)
    }
}

impl<K: Resource<Scope = Self, DynamicType = ()>> ApiScope<K> for NamespaceResourceScope {
    fn api(client: Client, namespace: &str) -> Api<K> {
        Api::namespaced(client, namespace)
    }
}

/// Returns a client for the object and its neighbors.
pub(crate) fn api_of<K: Kind>(client: &Client, object: &K) -> Api<K> {
    K::Scope::api(client.clone(), &object.namespace().unwrap_or_default())
}

/// The fields that the statuses of all kinds have. [`status_fields`] implements it.
pub(crate) trait StatusFields:
    Clone + Default + PartialEq + Serialize + Send + Sync
{
    /// True if an event reports each new reason of Ready. Otherwise events report only Stalled:
    /// when a registry fails, its Registry reports that, and not each of its resources.
    const EVENT_ON_NEW_REASON: bool;

    fn conditions(&self) -> &[Condition];
    fn observed_generation(&self) -> Option<i64>;
    /// Returns the last handled request to reconcile.
    fn last_handled(&self) -> Option<&String>;
    fn set(&mut self, generation: Option<i64>, conditions: Vec<Condition>);
    fn set_last_handled(&mut self, request: String);
    /// Sets the time of the last change of the status, where the kind has such a field.
    fn set_last_sync(&mut self, now: Time);
    /// Sets the number of objects that refer to this one, where the kind has such a field. `count`
    /// is called only then.
    fn set_users(&mut self, _count: impl FnOnce() -> usize) {}
}

/// Implements [`StatusFields`] for a kind's status.
macro_rules! status_fields {
    ($status:ty, events: $events:literal, last_sync: |$self:ident, $now:ident| $set:expr) => {
        impl $crate::kind::StatusFields for $status {
            const EVENT_ON_NEW_REASON: bool = $events;

            fn conditions(&self) -> &[wharfage_crd::Condition] {
                &self.conditions
            }

            fn observed_generation(&self) -> Option<i64> {
                self.observed_generation
            }

            fn last_handled(&self) -> Option<&String> {
                self.last_handled_reconcile_at.as_ref()
            }

            fn set(&mut self, generation: Option<i64>, conditions: Vec<wharfage_crd::Condition>) {
                self.observed_generation = generation;
                self.conditions = conditions;
            }

            fn set_last_handled(&mut self, request: String) {
                self.last_handled_reconcile_at = Some(request);
            }

            fn set_last_sync(&mut $self, $now: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) {
                $set
            }
        }
    };
}
pub(crate) use status_fields;

/// A reference of an object to objects of our kinds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reference {
    kind: &'static str,
    namespace: Option<String>,
    target: Target,
    /// The Registry that the target must be in, if the reference says so.
    registry: Option<String>,
    /// The field of the spec.
    field: &'static str,
}

/// The namespace and name of an object.
pub(crate) type ObjectName<'a> = (Option<&'a str>, &'a str);

/// The way in which a reference finds its objects.
#[derive(Debug, Clone, PartialEq)]
enum Target {
    Named(String),
    Selected(LabelSelector),
}

impl Reference {
    /// Refers to a Registry, by name.
    pub(crate) fn registry(name: &str) -> Self {
        Self::named::<wharfage_crd::Registry>("registryRef", None, name)
    }

    /// Refers to one object, by name.
    pub(crate) fn named<K: Kind>(
        field: &'static str,
        namespace: Option<String>,
        name: &str,
    ) -> Self {
        Self {
            kind: K::NAME,
            namespace,
            target: Target::Named(name.to_owned()),
            registry: None,
            field,
        }
    }

    /// Refers to the objects of a namespace that a selector chooses.
    pub(crate) fn selected<K: Kind>(
        field: &'static str,
        namespace: Option<String>,
        selector: LabelSelector,
    ) -> Self {
        Self { kind: K::NAME, namespace, target: Target::Selected(selector), registry: None, field }
    }

    /// Refers only to objects in this Registry.
    pub(crate) fn in_registry(self, name: &str) -> Self {
        Self { registry: Some(name.to_owned()), ..self }
    }

    /// Returns the key by which objects with this reference are found.
    pub(crate) fn key(&self) -> ReferenceKey {
        let name = self.name().map(|(_, name)| name.to_owned());
        ReferenceKey { kind: self.kind, namespace: self.namespace.clone(), name }
    }

    pub(crate) fn is_to<K: Kind>(&self) -> bool {
        self.kind == K::NAME
    }

    pub(crate) fn is_to_registry(&self) -> bool {
        self.is_to::<wharfage_crd::Registry>()
    }

    /// Returns the name that the reference has; a selector has none.
    pub(crate) fn name(&self) -> Option<ObjectName<'_>> {
        match &self.target {
            Target::Named(name) => Some((self.namespace.as_deref(), name)),
            Target::Selected(_) => None,
        }
    }

    /// Returns the cause of a resource that waits for the referenced object.
    pub(crate) fn not_found(&self) -> Cause {
        let Self { kind, namespace, target, registry, field } = self;
        let namespace = namespace.as_ref().map(|it| format!("{it}/")).unwrap_or_default();
        let name = match target {
            Target::Named(name) => name,
            Target::Selected(_) => "",
        };
        let place = registry.as_ref().map(|it| format!(" in Registry {it}")).unwrap_or_default();
        let message =
            format!("{kind} {namespace}{name} does not exist{place}: make it, or correct {field}");
        Cause::new(Reason::ReferenceNotFound, message)
    }

    pub(crate) fn matches<K: Kind>(&self, object: &K) -> bool {
        let found = match &self.target {
            Target::Named(name) => object.meta().name.as_ref() == Some(name),
            Target::Selected(selector) => selects(selector, object.meta().labels.as_ref()),
        };
        let is_in = |registry: &String| object.registry_name() == registry;
        found
            && self.kind == K::NAME
            && self.namespace == object.namespace()
            && self.registry.as_ref().is_none_or(is_in)
    }
}

/// The key of a reference in an index; without a name it is a selector's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ReferenceKey {
    kind: &'static str,
    namespace: Option<String>,
    name: Option<String>,
}

impl ReferenceKey {
    /// Returns the keys of all references that may be to this object.
    pub(crate) fn to<K: Kind>(object: &K) -> [Self; 2] {
        [Some(object.name_any()), None].map(|name| Self {
            kind: K::NAME,
            namespace: object.namespace(),
            name,
        })
    }

    /// Returns the key of references to a Registry, which may not exist.
    pub(crate) fn to_registry(name: &str) -> Self {
        Reference::registry(name).key()
    }
}
