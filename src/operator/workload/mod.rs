//! The workload of a managed Registry: the objects that a cluster should hold for it, and the state of its pods.
//!
//! No I/O: the input is a Registry and the content of its Secrets, the output is a set of objects. The controller reads the
//! Secrets, applies the objects with [`crate::apply_set`], and reads the pods.
//!
//! | Storage and database | Pods come from | A change of the pods |
//! |---|---|---|
//! | `s3` and `postgres` | a Deployment of any number of replicas | starts a new pod before it ends an old one |
//! | anything else | a StatefulSet of one replica with a volume | ends the pod before it starts the new one |

mod certificate;
mod config_map;
pub(crate) mod connection;
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
use kube::ResourceExt as _;

use crate::apply_set::{DesiredObject, owner_reference};
use crate::secrets::KeyPair;
use wharfage_crd::Registry;
use wharfage_crd::registry::{DEFAULT_REGISTRY_ID, ManagedRegistry, NetworkPolicyMode};

pub(crate) use certificate::{certificate_kind, certificate_trouble};
pub(crate) use names::{Names, REGISTRY_LABEL};
pub(crate) use rollout::{Pods, Rollout, rollout};
pub(crate) use secrets::{Backends, root_key_secret};
pub(crate) use volume_claim::{
    Volume, VolumeChange, claim, claims_otherwise, has_volume, keep_templates,
};

/// The port of the pods that clients reach through the Service.
const REGISTRY_PORT: u16 = 5000;
/// The port of the pods for health, readiness and metrics.
const ADMIN_PORT: u16 = 8080;

/// The values that a workload is built from, besides its Registry.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    /// The operator's own namespace, where the workload of a Registry is that names none.
    pub operator_namespace: String,
    /// The image of the pods.
    pub image: String,
    pub root_key: KeyPair,
    pub backends: Backends,
}

/// Builds the objects of a managed Registry.
struct WorkloadBuilder<'a> {
    registry: &'a Registry,
    managed: &'a ManagedRegistry,
    names: Names,
    namespace: String,
    inputs: &'a Inputs,
}

/// The shape of a workload.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    /// Any number of equal pods, which store nothing.
    Replicated,
    /// One pod with its own volume.
    Single(Volume),
}

/// Returns the namespace of a managed registry's workload.
pub(crate) fn namespace<'a>(managed: &'a ManagedRegistry, operator: &'a str) -> &'a str {
    managed.namespace.as_deref().unwrap_or(operator)
}

/// Returns the URL that a managed registry reports to its clients.
pub(crate) fn public_url(managed: &ManagedRegistry, names: &Names, namespace: &str) -> String {
    let given = managed.public_url.as_deref().map(|url| url.trim_end_matches('/').to_owned());
    given.unwrap_or_else(|| service::url(managed, names, namespace))
}

/// Returns the URL that clients of a Registry use, if its resource decides that: of a managed one.
pub(crate) fn told_url(registry: &Registry, operator: &str) -> Option<String> {
    let managed = registry.spec.managed.as_ref()?;
    Some(public_url(managed, &Names::of(&registry.name_any()), namespace(managed, operator)))
}

/// Returns the URL of a managed registry within its cluster.
pub(crate) fn cluster_url(managed: &ManagedRegistry, names: &Names, namespace: &str) -> String {
    service::url(managed, names, namespace)
}

/// Returns the name of the Secret with the certificate of a managed registry, if it has one.
pub(crate) fn tls_secret(managed: &ManagedRegistry, names: &Names) -> Option<String> {
    let tls = managed.tls.as_ref()?;
    Some(tls.secret_name.clone().unwrap_or_else(|| names.tls()))
}

/// Builds the objects of a managed Registry, in the order in which they are applied. The Secret of the root key is none of
/// them: [`root_key_secret`] makes it once, and it is never applied again.
///
/// # Errors
/// When an object cannot be written as JSON, which no object here does.
pub(crate) fn objects(
    registry: &Registry,
    managed: &ManagedRegistry,
    inputs: &Inputs,
) -> serde_json::Result<Vec<DesiredObject>> {
    let builder = WorkloadBuilder {
        registry,
        managed,
        names: Names::of(&registry.name_any()),
        namespace: namespace(managed, &inputs.operator_namespace).to_owned(),
        inputs,
    };
    let mut objects = vec![DesiredObject::of(builder.config())?];
    if let Some(backends) = builder.backends() {
        objects.push(DesiredObject::of(backends)?);
    }
    if let Some(certificate) = builder.certificate() {
        objects.push(certificate);
    }
    objects.push(DesiredObject::of(builder.service())?);
    objects.push(DesiredObject::of(builder.operations_service())?);
    if managed.network_policy.unwrap_or_default() == NetworkPolicyMode::Enabled {
        objects.push(DesiredObject::of(builder.network_policy())?);
    }
    if builder.may_have_replicas() {
        objects.push(DesiredObject::of(builder.disruption_budget())?);
    }
    objects.push(match builder.shape() {
        Shape::Replicated => DesiredObject::of(builder.deployment())?,
        Shape::Single(volume) => DesiredObject::of(builder.stateful_set(&volume))?,
    });
    Ok(objects)
}

/// Returns the volume of a managed registry, if it has one.
pub(crate) fn volume(managed: &ManagedRegistry) -> Option<Volume> {
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
            Shape::Single(Volume::new(
                sqlite.size,
                volume_claim::DATABASE_SIZE,
                sqlite.storage_class_name,
            ))
        }
        (false, _) => {
            let folder = storage.and_then(|storage| storage.filesystem.clone()).unwrap_or_default();
            Shape::Single(Volume::new(
                folder.size,
                volume_claim::IMAGES_SIZE,
                folder.storage_class_name,
            ))
        }
    }
}

impl WorkloadBuilder<'_> {
    /// Returns whether there may be more than one pod: an absent number is the autoscaler's.
    fn may_have_replicas(&self) -> bool {
        matches!(self.shape(), Shape::Replicated) && self.managed.replicas.is_none_or(|it| it > 1)
    }

    fn shape(&self) -> Shape {
        shape(self.managed)
    }

    fn registry_id(&self) -> String {
        self.registry
            .registry_id()
            .map_or_else(|| DEFAULT_REGISTRY_ID.to_owned(), |id| id.to_string())
    }

    /// Returns the metadata of one of the objects.
    fn metadata(&self, name: String) -> ObjectMeta {
        let owner = owner_reference(self.registry, self.registry.deletion_policy());
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.names.labels()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }
}

/// Returns nothing instead of an empty map: an API server distinguishes the two.
fn given<K, V>(map: &BTreeMap<K, V>) -> Option<BTreeMap<K, V>>
where
    BTreeMap<K, V>: Clone,
{
    (!map.is_empty()).then(|| map.clone())
}

/// Returns nothing instead of an empty list.
fn listed<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}
