//! The workload of a managed Registry: which objects a cluster holds for it, and what each of them says.
//!
//! Everything here is pure: a Registry and what was read for it go in, objects come out, and what a cluster says about
//! them is judged. Reading, applying and removing them is the controller's part.
//!
//! | Storage and database | Pods come from | A change of the pods |
//! |---|---|---|
//! | `s3` and `postgres` | a Deployment of any number of replicas | starts a new pod before it ends an old one |
//! | anything else | a StatefulSet of one replica with a volume | ends the pod before it starts the new one |

mod certificate;
mod config_map;
pub mod connection;
mod deployment;
mod names;
mod network_policy;
mod pod_template;
mod rollout;
mod secrets;
mod service;
mod volume_claim;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::ApiResource;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde_json::Value;

use wharfage_crd::registry::{DEFAULT_REGISTRY_ID, ManagedRegistry, NetworkPolicyMode};
use wharfage_crd::{DeletionPolicy, Registry};

pub use certificate::{certificate_kind, certificate_trouble};
pub use names::{COMPONENT, Names, REGISTRY_LABEL};
pub use rollout::{Pods, Rollout, rollout};
pub use secrets::{Backends, InvalidSecret, KeyPair, connection, key_pair, root_key_secret};
pub use volume_claim::{Volume, VolumeChange, claim, claims_otherwise, has_volume, keep_templates};

/// The port of the pods that clients reach through the Service.
pub const REGISTRY_PORT: u16 = 5000;
/// The port of the pods for health, readiness and metrics.
pub const ADMIN_PORT: u16 = 8080;

/// What a workload is built from, beside its Registry.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The operator's own namespace: where a Registry's workload is that names none.
    pub operator_namespace: String,
    /// The image of the pods.
    pub image: String,
    /// The registry's root key.
    pub root_key: KeyPair,
    /// What lets the pods into their database and their bucket.
    pub backends: Backends,
}

/// An object that a cluster should hold.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkloadObject {
    /// Its kind.
    pub kind: ApiResource,
    /// Its name.
    pub name: String,
    /// All of it, as it is applied.
    pub body: Value,
}

/// What of a managed Registry everything else here is derived from.
struct WorkloadBuilder<'a> {
    registry: &'a Registry,
    managed: &'a ManagedRegistry,
    names: Names,
    namespace: String,
    inputs: &'a Inputs,
}

/// How the pods of a registry come to be.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    /// Any number, all alike: whatever they keep is elsewhere.
    Replicated,
    /// One, with a volume that nobody else uses.
    Single(Volume),
}

/// The namespace of a managed registry's workload.
pub fn namespace<'a>(managed: &'a ManagedRegistry, operator: &'a str) -> &'a str {
    managed.namespace.as_deref().unwrap_or(operator)
}

/// The URL that a managed registry tells its clients.
pub fn public_url(managed: &ManagedRegistry, names: &Names, namespace: &str) -> String {
    let given = managed.public_url.as_deref().map(|url| url.trim_end_matches('/').to_owned());
    given.unwrap_or_else(|| service::url(managed, names, namespace))
}

/// The URL that clients of a Registry are told, where that is for its resource to say: of one that is managed.
pub fn told_url(registry: &Registry, operator: &str) -> Option<String> {
    let managed = registry.spec.managed.as_ref()?;
    Some(public_url(managed, &Names::of(&registry.name_any()), namespace(managed, operator)))
}

/// The URL by which a managed registry is reached within its cluster.
pub fn cluster_url(managed: &ManagedRegistry, names: &Names, namespace: &str) -> String {
    service::url(managed, names, namespace)
}

/// The Secret with the certificate of a managed registry, if it serves with one.
pub fn tls_secret(managed: &ManagedRegistry, names: &Names) -> Option<String> {
    let tls = managed.tls.as_ref()?;
    Some(tls.secret_name.clone().unwrap_or_else(|| names.tls()))
}

/// The objects of a managed Registry, in the order in which they are applied. The root key's Secret isn't among them: it is
/// made once, by [`root_key_secret`], and never applied again.
///
/// # Errors
/// When an object can't be written as JSON, which no object here does.
pub fn objects(
    registry: &Registry,
    managed: &ManagedRegistry,
    inputs: &Inputs,
) -> serde_json::Result<Vec<WorkloadObject>> {
    let plan = WorkloadBuilder {
        registry,
        managed,
        names: Names::of(&registry.name_any()),
        namespace: namespace(managed, &inputs.operator_namespace).to_owned(),
        inputs,
    };
    let mut objects = vec![object(plan.config())?];
    if let Some(backends) = plan.backends() {
        objects.push(object(backends)?);
    }
    if let Some(certificate) = plan.certificate() {
        objects.push(certificate);
    }
    objects.push(object(plan.service())?);
    objects.push(object(plan.operations_service())?);
    if managed.network_policy.unwrap_or_default() == NetworkPolicyMode::Enabled {
        objects.push(object(plan.network_policy())?);
    }
    if plan.replicas() > 1 {
        objects.push(object(plan.disruption_budget())?);
    }
    objects.push(match plan.shape() {
        Shape::Replicated => object(plan.deployment())?,
        Shape::Single(volume) => object(plan.stateful_set(&volume))?,
    });
    Ok(objects)
}

/// The volume of a managed registry, if it has one.
pub fn volume(managed: &ManagedRegistry) -> Option<Volume> {
    match shape(managed) {
        Shape::Replicated => None,
        Shape::Single(volume) => Some(volume),
    }
}

fn shape(managed: &ManagedRegistry) -> Shape {
    let (storage, database) = (managed.storage.as_ref(), managed.database.as_ref());
    let bucket = storage.is_some_and(|storage| storage.s3.is_some());
    match (bucket, database.is_some_and(|database| database.postgres.is_some())) {
        (true, true) => Shape::Replicated,
        (true, false) => {
            let sqlite = database.and_then(|database| database.sqlite.clone()).unwrap_or_default();
            Shape::Single(Volume::new(sqlite.size, volume_claim::DATABASE_SIZE, sqlite.storage_class_name))
        }
        (false, _) => {
            let folder = storage.and_then(|storage| storage.filesystem.clone()).unwrap_or_default();
            Shape::Single(Volume::new(folder.size, volume_claim::IMAGES_SIZE, folder.storage_class_name))
        }
    }
}

fn object<K: Resource<DynamicType = ()> + Serialize>(typed: K) -> serde_json::Result<WorkloadObject> {
    Ok(WorkloadObject {
        kind: ApiResource::erase::<K>(&()),
        name: typed.name_any(),
        body: serde_json::to_value(typed)?,
    })
}

impl WorkloadBuilder<'_> {
    fn replicas(&self) -> i32 {
        self.managed.replicas.unwrap_or(1)
    }

    fn shape(&self) -> Shape {
        shape(self.managed)
    }

    fn registry_id(&self) -> String {
        self.registry.registry_id().map_or_else(|| DEFAULT_REGISTRY_ID.to_owned(), |id| id.to_string())
    }

    /// The metadata of one of the objects. It has an owner only where it is to go with its owner: a cluster's garbage
    /// collector, asked to delete in the foreground, takes what is owned before any finalizer is heard.
    fn metadata(&self, name: String) -> ObjectMeta {
        let owner = (self.registry.deletion_policy() == DeletionPolicy::Delete)
            .then(|| self.registry.controller_owner_ref(&()))
            .flatten();
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.names.labels()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }
}

/// Absent instead of empty, which is how an API server tells them apart.
fn given<K, V>(map: &BTreeMap<K, V>) -> Option<BTreeMap<K, V>>
where
    BTreeMap<K, V>: Clone,
{
    (!map.is_empty()).then(|| map.clone())
}

/// Absent instead of empty, for lists.
fn listed<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}
