//! The input of a plan about one repository name: every resource that claims the name, the older
//! first.
//!
//! A plan decides per name, so a plan of this input equals the part about the name of a plan of
//! everything.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;

use super::registry_client::RegistryClients;
use super::stores::Stores;
use wharfage_crd::common::older;
use wharfage_crd::{LifecyclePolicy, Registry, Repository};
use wharfage_domain::names::RepositoryName;
use wharfage_plan::Resources;

/// The resources that claim a repository name in a registry.
pub(crate) struct PlanInput<'a> {
    registry: &'a Registry,
    /// Registries that point to the same registry.
    aliases: Vec<Arc<Registry>>,
    /// Repositories of Registries that may point to the same registry: that is not known yet.
    pending_owners: Vec<Arc<Repository>>,
    repositories: Vec<Arc<Repository>>,
    lifecycle_policies: Vec<Arc<LifecyclePolicy>>,
    namespaces: Vec<Arc<PartialObjectMeta<Namespace>>>,
}

impl<'a> PlanInput<'a> {
    /// Collects the Repositories that claim this name in the Registry, or in another Registry that
    /// points to the same registry, without those that are being deleted.
    pub(crate) fn new(
        stores: &Stores,
        registry_clients: &RegistryClients,
        registry: &'a Registry,
        name: &RepositoryName,
    ) -> Self {
        let own = registry.name_any();
        let (mut aliases, mut pending_owners, mut repositories) =
            (BTreeMap::new(), Vec::new(), Vec::new());
        for repository in staying(stores.repositories.claiming(name.as_ref())) {
            let other = &repository.spec.registry_ref.name;
            if *other == own {
                repositories.push(repository);
                continue;
            }
            match (registry_clients.same_registry(&own, other), stores.registry(other)) {
                (Some(false), _) => {}
                (Some(true), Some(registry)) => {
                    aliases.insert(other.clone(), registry);
                    repositories.push(repository);
                }
                (Some(true), None) | (None, _) => pending_owners.push(repository),
            }
        }
        let namespaces =
            repositories.iter().filter_map(|it| stores.namespace(&it.namespace()?)).collect();
        let aliases = aliases.into_values().collect();
        Self {
            registry,
            aliases,
            pending_owners,
            repositories,
            lifecycle_policies: Vec::new(),
            namespaces,
        }
    }

    /// Collects them with the LifecyclePolicies of the Repositories.
    pub(crate) fn with_policies(
        stores: &Stores,
        registry_clients: &RegistryClients,
        registry: &'a Registry,
        name: &RepositoryName,
    ) -> Self {
        let input = Self::new(stores, registry_clients, registry, name);
        let repositories: Vec<_> = input.repositories.iter().map(|it| &**it).collect();
        let lifecycle_policies = staying(stores.lifecycle_policies.referring_to(&repositories));
        Self { lifecycle_policies, ..input }
    }
}

impl<'a> From<&'a PlanInput<'_>> for Resources<'a> {
    fn from(input: &'a PlanInput<'_>) -> Self {
        let labels = |it: &'a Arc<PartialObjectMeta<Namespace>>| {
            Some((it.metadata.name.as_deref()?, it.metadata.labels.as_ref()?))
        };
        Self {
            registries: vec![input.registry],
            aliases: input.aliases.iter().map(|it| &**it).collect(),
            pending_owners: input.pending_owners.iter().map(|it| &**it).collect(),
            repositories: input.repositories.iter().map(|it| &**it).collect(),
            lifecycle_policies: input.lifecycle_policies.iter().map(|it| &**it).collect(),
            pull_secrets: Vec::new(),
            namespaces: input.namespaces.iter().filter_map(labels).collect(),
        }
    }
}

/// Returns the objects that are not being deleted, the older first.
fn staying<K: kube::Resource>(mut objects: Vec<Arc<K>>) -> Vec<Arc<K>> {
    objects.retain(|it| it.meta().deletion_timestamp.is_none());
    objects.sort_by(|a, b| older(&**a, &**b));
    objects
}
