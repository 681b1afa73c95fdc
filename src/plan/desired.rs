//! Reads the desired state of one registry from manifests: references are resolved, and namespaces
//! keep within what their Registry allows. Settings that are not possible here are refused or
//! noted, and never dropped.

use std::borrow::Cow;

use kube::{Resource, ResourceExt as _};
use serde_json::Value;

use super::kinds;
use super::model::{Adoption, Management, Refused};
use super::resources::{ManifestInput, Resources};
use super::settings::desired_settings;
use super::unenforced::unenforced_settings;
use super::{Desired, Object};
use wharfage_crd::registry::{Aws, Endpoint, ManagedRegistry, Sqlite, Storage};
use wharfage_crd::{AdoptionPolicy, Managed, ManagementPolicy, Reason, Registry};
use wharfage_domain::policy::{self, Kind, Policy, Principal};
use wharfage_manifests::Manifests;

/// Returns the desired state of `registry` in file mode. `cluster` is recorded as the owner (a DNS label: at most 63
/// characters).
pub fn desired<'a>(
    resources: impl Into<Resources<'a>>,
    registry: &Registry,
    cluster: &str,
) -> Desired {
    read(&resources.into(), registry, cluster, PlanMode::File)
}

/// Returns the desired state of `registry` for the operator, which sees the images in use.
pub fn desired_in_cluster<'a>(
    resources: impl Into<Resources<'a>>,
    registry: &Registry,
    cluster: &str,
) -> Desired {
    read(&resources.into(), registry, cluster, PlanMode::Cluster)
}

/// The program that plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlanMode {
    File,
    Cluster,
}

fn read(resources: &Resources<'_>, registry: &Registry, cluster: &str, mode: PlanMode) -> Desired {
    let input = ManifestInput { resources, registry, mode };
    let mut desired = Desired {
        declared: resources.declared(),
        pending_owners: resources.pending_owners.iter().map(|it| object(*it)).collect(),
        ..desired_settings(registry, cluster)
    };
    if mode == PlanMode::File {
        for note in
            cluster_only(registry).into_iter().chain(unenforced_settings(registry, &desired))
        {
            desired.notes.push(format!("{}: {note}", object(registry)));
        }
    }
    kinds::read(&input, &mut desired);
    for resource in &resources.pull_secrets {
        if resource.registry_ref().name == desired.registry {
            desired.notes.push(format!("{} {CLUSTER_ONLY}", object(*resource)));
        }
    }
    desired
}

/// Checks that the registry accepts a policy. Amazon ECR may know more of the grammar than we do.
pub(crate) fn check_policy(
    registry: &Registry,
    kind: Kind,
    document: &Value,
) -> Result<(), String> {
    let (length, most) = (document.to_string().chars().count(), policy::MAX_LENGTH);
    if length > most {
        return Err(format!(
            "it has {length} characters without spaces, and may have {most}: shorten it"
        ));
    }
    let policy = match Policy::from_value(kind, document) {
        Ok(policy) => policy,
        Err(error) if registry.spec.aws.is_none() => return Err(error.reason()),
        Err(_) => return Ok(()),
    };
    // A registry that Wharfage runs is asked with its root key, which it then would not obey any more.
    let root = registry
        .registry_id()
        .filter(|_| registry.spec.managed.is_some() && kind == Kind::Repository);
    let root = root.map(|account| Principal::Account { partition: "aws".to_owned(), account });
    if root.is_some_and(|root| policy.locks_out(&root)) {
        return Err(
            "its Deny would keep the registry's own key from ever setting another one: leave ecr:SetRepositoryPolicy \
                    out of it"
                .to_owned(),
        );
    }
    Ok(())
}

/// Returns the resources whose Registry is not among the manifests: they wait for it.
pub fn unresolved(manifests: &Manifests) -> Vec<Refused> {
    let missing = |(object, registry): (Object, &str)| {
        let message =
            format!("Registry {registry:?} does not exist: declare it, or correct registryRef");
        manifests
            .registry(registry)
            .is_none()
            .then(|| Refused::new(&object, Reason::ReferenceNotFound, message))
    };
    Resources::from(manifests).references().into_iter().filter_map(missing).collect()
}

/// Returns the name of a resource in plans.
pub(crate) fn object<K: Resource<DynamicType = ()>>(resource: &K) -> Object {
    let Cow::Borrowed(kind) = K::kind(&()) else {
        unreachable!("the kinds' names are constants of their types")
    };
    Object { kind, namespace: resource.namespace().unwrap_or_default(), name: resource.name_any() }
}

pub(crate) fn management(resource: &impl Managed) -> Management {
    match resource.management_policy() {
        _ if resource.suspended() => Management::Suspended,
        ManagementPolicy::Full => Management::Full,
        ManagementPolicy::Observe => Management::Observe,
    }
}

pub(crate) fn adoption(resource: &impl Managed) -> Adoption {
    match resource.adoption_policy() {
        AdoptionPolicy::AdoptOrCreate => Adoption::AdoptOrCreate,
        AdoptionPolicy::Adopt => Adoption::Adopt,
        AdoptionPolicy::Create => Adoption::Create,
    }
}

/// The end of a note about something that has an effect in a cluster only.
const CLUSTER_ONLY: &str = "has an effect in a cluster only";

/// Returns notes about the fields of a Registry that have an effect in a cluster only.
fn cluster_only(registry: &Registry) -> Vec<String> {
    let mut notes = Vec::new();
    let mut only = |given: bool, field: &str| {
        if given {
            notes.push(format!("{field} {CLUSTER_ONLY}"));
        }
    };
    only(registry.spec.deletion_policy.is_some(), "deletionPolicy");
    if let Some(managed) = &registry.spec.managed {
        let ManagedRegistry {
            replicas,
            public_url: _,
            storage,
            database,
            tls,
            service,
            namespace,
            resources,
            image,
            pod,
            network_policy,
        } = managed;
        only(replicas.is_some(), "managed.replicas");
        only(service.is_some(), "managed.service");
        only(namespace.is_some(), "managed.namespace");
        only(resources.is_some(), "managed.resources");
        only(image.is_some(), "managed.image");
        only(pod.is_some(), "managed.pod");
        only(network_policy.is_some(), "managed.networkPolicy");
        if tls.is_some() {
            notes.push(
                "managed.tls: Secrets are read in a cluster only, so plain HTTP is served here"
                    .to_owned(),
            );
        }
        if let Some(Storage { filesystem, s3 }) = storage {
            if filesystem
                .as_ref()
                .is_some_and(|it| it.size.is_some() || it.storage_class_name.is_some())
            {
                notes.push(format!(
                    "managed.storage.filesystem's size and storageClassName: each {CLUSTER_ONLY}"
                ));
            }
            if s3.as_ref().is_some_and(|s3| s3.credentials_secret_ref.is_some()) {
                notes.push(
                    "managed.storage.s3.credentialsSecretRef: Secrets are read in a cluster only, so \
                     WHARFAGE_S3_ACCESS_KEY_ID and WHARFAGE_S3_SECRET_ACCESS_KEY hold here, or the machine's own identity"
                        .to_owned(),
                );
            }
        }
        let sqlite = database.as_ref().and_then(|database| database.sqlite.as_ref());
        if sqlite.is_some_and(|Sqlite { size, storage_class_name }| {
            size.is_some() || storage_class_name.is_some()
        }) {
            notes.push(format!(
                "managed.database.sqlite's size and storageClassName: each {CLUSTER_ONLY}"
            ));
        }
        if database.as_ref().is_some_and(|database| database.postgres.is_some()) {
            notes.push(
                "managed.database.postgres.connectionSecretRef: Secrets are read in a cluster only, so \
                 WHARFAGE_DATABASE_URL holds here"
                    .to_owned(),
            );
        }
    }
    const AMBIENT: &str =
        "Secrets are read in a cluster only, so the environment's AWS configuration holds here";
    if let Some(Endpoint { url: _, ca_bundle_secret_ref, credentials_secret_ref }) =
        &registry.spec.endpoint
    {
        if ca_bundle_secret_ref.is_some() {
            notes.push(
                "endpoint.caBundleSecretRef: Secrets are read in a cluster only, so the system's certificates hold here"
                    .to_owned(),
            );
        }
        if credentials_secret_ref.is_some() {
            notes.push(format!("endpoint.credentialsSecretRef: {AMBIENT}"));
        }
    }
    if let Some(Aws { role_arn: _, credentials_secret_ref: Some(_) }) = &registry.spec.aws {
        notes.push(format!("aws.credentialsSecretRef: {AMBIENT}"));
    }
    notes
}

#[cfg(test)]
mod tests;
