//! From manifests to what is wanted of one registry: references are resolved, borders of namespaces hold, and what cannot
//! be had here is refused or noted, never dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use kube::{Resource, ResourceExt as _};
use serde_json::Value;

use super::Object;
use super::model::{
    Adoption, CarriedOutBy, Desired, DesiredLifecyclePolicy, DesiredRepository, LifecycleMode, Management, Refused,
};
use super::ownership::OnRemoval;
use super::resources::Resources;
use super::unenforced::{unenforced, unenforced_settings};
use wharfage_crd::common::selects;
use wharfage_crd::lifecycle_policy::Mode;
use wharfage_crd::registry::{self, Aws, Endpoint, ManagedRegistry, RegistrySpec, Sqlite, Storage};
use wharfage_crd::repository::{EncryptionType, Visibility};
use wharfage_crd::{
    AdoptionPolicy, DeletionPolicy, LifecyclePolicy, Managed, ManagementPolicy, Reason, Registry, Repository,
};
use wharfage_domain::lifecycle;
use wharfage_domain::policy::{self, Kind, Policy, Principal};
use wharfage_domain::scanning::{ScanFrequency, ScanningConfiguration, ScanningRule};
use wharfage_domain::tag_mutability::TagMutability;
use wharfage_manifests::Manifests;

/// What the resources want of `registry`. `cluster` stands on everything that is owned (a DNS label: at most 63 characters).
pub fn desired<'a>(resources: impl Into<Resources<'a>>, registry: &Registry, cluster: &str) -> Desired {
    wanted(&resources.into(), registry, cluster, Place::Folder)
}

/// The same where the operator plans: it sees which images run.
pub fn desired_in_cluster<'a>(resources: impl Into<Resources<'a>>, registry: &Registry, cluster: &str) -> Desired {
    wanted(&resources.into(), registry, cluster, Place::Cluster)
}

/// Where a plan is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Folder,
    Cluster,
}

fn wanted(resources: &Resources<'_>, registry: &Registry, cluster: &str, place: Place) -> Desired {
    let holders = resources.holders.iter().map(|it| object(*it)).collect();
    let mut desired = Desired { declared: declared(resources), holders, ..desired_settings(registry, cluster) };
    // Each resource is held to what its own Registry says.
    let one_of = |name: &str| {
        let mut all = iter::once(registry).chain(resources.same.iter().copied());
        all.find(|it| it.name_any() == name)
    };
    if place == Place::Folder {
        for note in elsewhere(registry).into_iter().chain(unenforced_settings(registry, &desired)) {
            desired.notes.push(format!("{}: {note}", object(registry)));
        }
    }
    for resource in &resources.repositories {
        if let Some(registry) = one_of(&resource.registry_ref().name) {
            match repository(resources, registry, resource) {
                Ok(wanted) => {
                    let notes = unenforced(registry, &wanted);
                    desired.notes.extend(notes.iter().map(|note| format!("{}: {note}", wanted.object)));
                    desired.repositories.push(wanted);
                }
                Err(refused) => desired.refused.push(refused),
            }
        }
    }
    let named = Named::new(&resources.repositories);
    for resource in &resources.lifecycle_policies {
        if let Some(registry) = one_of(&resource.registry_ref().name) {
            desired.lifecycle_policy(&named, registry, resource, place);
        }
    }
    for resource in &resources.pull_secrets {
        if resource.registry_ref().name == desired.registry {
            desired.notes.push(format!("{} {WORKLOAD}", object(*resource)));
        }
    }
    desired
}

/// What a Registry says of its registry as a whole: its settings, and nothing that is in it.
pub fn desired_settings(registry: &Registry, cluster: &str) -> Desired {
    let mut desired = Desired { cluster: cluster.to_owned(), registry: registry.name_any(), ..Desired::default() };
    let RegistrySpec { account_settings, scanning_configuration, policy, .. } = &registry.spec;
    let given = account_settings.clone().unwrap_or_default().given();
    desired.account_settings = given.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    desired.scanning_configuration = scanning_configuration.as_ref().map(scanning);
    match policy.as_ref().map(|document| document.to_value()) {
        // A document without members is no policy, and says that there shall be none.
        Some(document) if document.as_object().is_some_and(serde_json::Map::is_empty) => desired.policy = Some(None),
        Some(document) => match check_policy(registry, Kind::Registry, &document) {
            Ok(()) => desired.policy = Some(Some(document)),
            Err(fault) => {
                let message = format!("policy is not valid: {fault}");
                desired.refused.push(Refused::new(&object(registry), Reason::InvalidParameterException, message));
            }
        },
        None => {}
    }
    desired
}

fn scanning(wanted: &registry::ScanningConfiguration) -> ScanningConfiguration {
    let rules = wanted.rules.iter().map(|rule| ScanningRule {
        scan_frequency: match rule.scan_frequency {
            registry::ScanFrequency::ScanOnPush => ScanFrequency::ScanOnPush,
            registry::ScanFrequency::ContinuousScan => ScanFrequency::ContinuousScan,
        },
        filters: rule.repository_filters.iter().map(|it| it.filter.clone()).collect(),
    });
    let scan_type = wanted.scan_type.unwrap_or_default();
    ScanningConfiguration { scan_type, rules: rules.collect() }
}

/// Whether a policy is one that the registry takes; Amazon ECR may know more of the grammar than we do.
fn check_policy(registry: &Registry, kind: Kind, document: &Value) -> Result<(), String> {
    let (length, most) = (document.to_string().chars().count(), policy::MAX_LENGTH);
    if length > most {
        return Err(format!("it has {length} characters without spaces, and may have {most}: shorten it"));
    }
    let policy = match Policy::from_value(kind, document) {
        Ok(policy) => policy,
        Err(error) if registry.spec.aws.is_none() => return Err(error.reason()),
        Err(_) => return Ok(()),
    };
    // A registry that Wharfage runs is asked with its root key, which it then would not obey any more.
    let root = registry.registry_id().filter(|_| registry.spec.managed.is_some() && kind == Kind::Repository);
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

/// Whether the rules of a lifecycle policy are together what a registry takes.
fn check_lifecycle_policy(document: &Value) -> Result<(), String> {
    let (length, most) = (document.to_string().chars().count(), lifecycle::MAX_LENGTH);
    if length > most {
        return Err(format!(
            "they have {length} characters as JSON, and may have {most}: shorten descriptions or lists"
        ));
    }
    lifecycle::check_length(&document.to_string()).map_err(|error| error.reason().to_owned())?;
    lifecycle::Policy::from_value(document).map(drop).map_err(|error| error.reason().to_owned())
}

/// Resources whose Registry is not among the manifests: they wait for it.
pub fn unresolved(manifests: &Manifests) -> Vec<Refused> {
    let missing = |object: Object, registry: &str| {
        let message = format!("Registry {registry:?} does not exist: declare it, or correct registryRef");
        manifests.registry(registry).is_none().then(|| Refused::new(&object, Reason::ReferenceNotFound, message))
    };
    let repositories = manifests.repositories.iter().map(|it| (object(&it.resource), it.resource.registry_ref()));
    let policies = manifests.lifecycle_policies.iter().map(|it| (object(&it.resource), it.resource.registry_ref()));
    let pull_secrets = manifests.pull_secrets.iter().map(|it| (object(&it.resource), it.resource.registry_ref()));
    let resources = repositories.chain(policies).chain(pull_secrets);
    resources.filter_map(|(object, registry)| missing(object, &registry.name)).collect()
}

/// What a resource is called in plans.
fn object<K: Resource<DynamicType = ()>>(resource: &K) -> Object {
    // The kinds' names are constants of their types, but kube hands them out as text.
    let kind = match K::kind(&()).as_ref() {
        "Repository" => "Repository",
        "LifecyclePolicy" => "LifecyclePolicy",
        "PullSecret" => "PullSecret",
        _ => "Registry",
    };
    Object { kind, namespace: resource.namespace().unwrap_or_default(), name: resource.name_any() }
}

/// Repositories by namespace and name, so that a policy which names one does not look at all.
struct Named<'a>(BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Repository>>>);

impl<'a> Named<'a> {
    fn new(repositories: &[&'a Repository]) -> Self {
        let mut named = BTreeMap::<_, BTreeMap<_, Vec<_>>>::new();
        for repository in repositories {
            let metadata = &repository.metadata;
            let namespace = named.entry(metadata.namespace.as_deref().unwrap_or_default()).or_default();
            namespace.entry(metadata.name.as_deref().unwrap_or_default()).or_default().push(*repository);
        }
        Self(named)
    }

    /// The Repositories that a policy may be about: the one that it names, or all of its namespace.
    fn candidates(&self, policy: &LifecyclePolicy) -> impl Iterator<Item = &'a Repository> {
        let namespace = self.0.get(policy.metadata.namespace.as_deref().unwrap_or_default());
        let name = policy.spec.repository_ref.as_ref().map(|reference| reference.name.as_str());
        let fitting: Vec<&Vec<&'a Repository>> = match (namespace, name) {
            (None, _) => Vec::new(),
            (Some(namespace), Some(name)) => namespace.get(name).into_iter().collect(),
            (Some(namespace), None) => namespace.values().collect(),
        };
        fitting.into_iter().flatten().copied().collect::<Vec<_>>().into_iter()
    }
}

fn declared(resources: &Resources<'_>) -> BTreeSet<Object> {
    let registries = resources.registries.iter().map(|it| object(*it));
    let repositories = resources.repositories.iter().map(|it| object(*it));
    let policies = resources.lifecycle_policies.iter().map(|it| object(*it));
    registries.chain(repositories).chain(policies).collect()
}

impl Desired {
    fn lifecycle_policy(&mut self, named: &Named<'_>, registry: &Registry, policy: &LifecyclePolicy, place: Place) {
        let object = object(policy);
        let chosen = named.candidates(policy).filter(|it| policy.applies_to(it));
        let repositories = chosen.filter_map(|it| it.repository_name().ok()).collect::<BTreeSet<_>>();
        if let (Some(reference), true) = (&policy.spec.repository_ref, repositories.is_empty()) {
            let message = format!(
                "Repository {}/{} does not exist in Registry {}: declare it, or correct repositoryRef",
                object.namespace,
                reference.name,
                registry.name_any()
            );
            self.refused.push(Refused::new(&object, Reason::ReferenceNotFound, message));
            return;
        }
        if repositories.is_empty() {
            self.notes.push(format!("{object}: its repositorySelector chooses no Repository of its namespace yet"));
        }
        let document = policy.document();
        if let Err(fault) = check_lifecycle_policy(&document) {
            let message = format!("the rules together are not valid: {fault}");
            self.refused.push(Refused::new(&object, Reason::InvalidParameterException, message));
            return;
        }
        let mut mode = match policy.mode() {
            Mode::Preview => LifecycleMode::Preview,
            Mode::Enforce => LifecycleMode::Enforce,
        };
        let by = match place {
            Place::Cluster if policy.protects_in_use() => CarriedOutBy::Operator,
            Place::Cluster | Place::Folder => CarriedOutBy::Registry,
        };
        if place == Place::Folder && mode == LifecycleMode::Enforce && policy.protects_in_use() {
            // Only the operator sees Pods. Without it nobody can tell which images run, so none is let go.
            if registry.spec.managed.is_none() {
                const MESSAGE: &str = "inUseProtection needs Wharfage's operator, which sees the Pods: leave inUseProtection out, \
                                       or set mode to Preview";
                self.refused.push(Refused::new(&object, Reason::UnsupportedByRegistry, MESSAGE.to_owned()));
                return;
            }
            mode = LifecycleMode::Preview;
            self.notes.push(format!(
                "{object}: inUseProtection needs a cluster whose Pods can be seen, so the policy is previewed, not enforced"
            ));
        }
        self.lifecycle_policies.push(DesiredLifecyclePolicy {
            object,
            repositories,
            mode,
            by,
            document,
            management: management(policy),
            adoption: adoption(policy),
            delete_on_removal: policy.deletion_policy() == DeletionPolicy::Delete,
        });
    }
}

fn repository(
    resources: &Resources<'_>,
    registry: &Registry,
    resource: &Repository,
) -> Result<DesiredRepository, Refused> {
    let object = object(resource);
    let name = resource.repository_name().map_err(|error| {
        Refused::new(&object, Reason::InvalidParameterException, format!("{error}: set repositoryName"))
    })?;
    let labels = resources.namespace_labels(&object.namespace);
    if !registry.allows(Some(&labels), name.as_str()) {
        return Err(Refused::new(&object, Reason::NotAllowed, not_allowed(registry, &object, &labels, name.as_str())));
    }
    let spec = &resource.spec;
    if resource.visibility() == Visibility::Public {
        const MESSAGE: &str = "visibility Public is not possible on this registry yet: set it to Private, and let others pull by \
                               repositoryPolicy";
        return Err(Refused::new(&object, Reason::UnsupportedByRegistry, MESSAGE.to_owned()));
    }
    let encryption = spec.encryption_configuration.as_ref();
    if let Some(encryption) = encryption.filter(|it| it.encryption_type != EncryptionType::Aes256)
        && registry.spec.managed.is_some()
    {
        let message = format!(
            "encryptionType {} needs a key service, which a managed registry does not have yet: set it to AES256",
            encryption.encryption_type.as_str()
        );
        return Err(Refused::new(&object, Reason::UnsupportedByRegistry, message));
    }
    let policy = spec.repository_policy.as_ref().map(|document| document.to_value());
    if let Some(Err(fault)) = policy.as_ref().map(|document| check_policy(registry, Kind::Repository, document)) {
        let message = format!("repositoryPolicy is not valid: {fault}");
        return Err(Refused::new(&object, Reason::InvalidParameterException, message));
    }
    let tag_mutability = spec.image_tag_mutability.map(|mode| TagMutability {
        mode,
        exclusions: spec.image_tag_mutability_exclusion_filters.iter().map(|it| it.filter.clone()).collect(),
    });
    Ok(DesiredRepository {
        name,
        tag_mutability,
        scan_on_push: spec.image_scanning_configuration.map(|it| it.scan_on_push.unwrap_or_default()),
        encryption: encryption.map(|it| (it.encryption_type.as_str().to_owned(), it.kms_key.clone())),
        policy,
        tags: spec.tags.clone(),
        management: management(resource),
        adoption: adoption(resource),
        on_removal: on_removal(resource),
        object,
    })
}

/// What a manifest says of its own removal.
pub fn on_removal(resource: &Repository) -> OnRemoval {
    match resource.deletion_policy() {
        _ if resource.deletion_protection() => OnRemoval::Protected,
        DeletionPolicy::Retain => OnRemoval::Retain,
        DeletionPolicy::Delete if resource.empty_on_delete() => OnRemoval::DeleteWithImages,
        DeletionPolicy::Delete => OnRemoval::Delete,
    }
}

/// Which names the namespace may use, and that this is none of them.
fn not_allowed(registry: &Registry, object: &Object, labels: &BTreeMap<String, String>, name: &str) -> String {
    let entries = registry.spec.allowed_namespaces.iter().flatten();
    let prefixes: Vec<&str> = entries
        .filter(|entry| selects(&entry.selector, Some(labels)))
        .flat_map(|entry| entry.repository_prefixes.iter().map(String::as_str))
        .collect();
    let (namespace, registry) = (&object.namespace, registry.name_any());
    if prefixes.is_empty() {
        return format!(
            "namespace {namespace} may not use Registry {registry}: none of its allowedNamespaces selects the namespace's labels"
        );
    }
    format!("namespace {namespace} may use {} in Registry {registry}, not {name}", prefixes.join(", "))
}

fn management(resource: &impl Managed) -> Management {
    match resource.management_policy() {
        _ if resource.suspended() => Management::Suspended,
        ManagementPolicy::Full => Management::Full,
        ManagementPolicy::Observe => Management::Observe,
    }
}

fn adoption(resource: &impl Managed) -> Adoption {
    match resource.adoption_policy() {
        AdoptionPolicy::AdoptOrCreate => Adoption::AdoptOrCreate,
        AdoptionPolicy::Adopt => Adoption::Adopt,
        AdoptionPolicy::Create => Adoption::Create,
    }
}

/// What is said of something that holds in a cluster only.
const WORKLOAD: &str = "is for a cluster, and let be here";

/// What a Registry says that holds in a cluster only.
fn elsewhere(registry: &Registry) -> Vec<String> {
    let mut notes = Vec::new();
    let mut workload = |given: bool, field: &str| {
        if given {
            notes.push(format!("{field} {WORKLOAD}"));
        }
    };
    workload(registry.spec.deletion_policy.is_some(), "deletionPolicy");
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
        workload(replicas.is_some(), "managed.replicas");
        workload(service.is_some(), "managed.service");
        workload(namespace.is_some(), "managed.namespace");
        workload(resources.is_some(), "managed.resources");
        workload(image.is_some(), "managed.image");
        workload(pod.is_some(), "managed.pod");
        workload(network_policy.is_some(), "managed.networkPolicy");
        if tls.is_some() {
            notes.push("managed.tls: Secrets are read in a cluster only, so plain HTTP is served here".to_owned());
        }
        if let Some(Storage { filesystem, s3 }) = storage {
            if filesystem.as_ref().is_some_and(|it| it.size.is_some() || it.storage_class_name.is_some()) {
                notes.push(format!("managed.storage.filesystem's size and storageClassName: each {WORKLOAD}"));
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
        if sqlite.is_some_and(|Sqlite { size, storage_class_name }| size.is_some() || storage_class_name.is_some()) {
            notes.push(format!("managed.database.sqlite's size and storageClassName: each {WORKLOAD}"));
        }
        if database.as_ref().is_some_and(|database| database.postgres.is_some()) {
            notes.push(
                "managed.database.postgres.connectionSecretRef: Secrets are read in a cluster only, so \
                 WHARFAGE_DATABASE_URL holds here"
                    .to_owned(),
            );
        }
    }
    const AMBIENT: &str = "Secrets are read in a cluster only, so the environment's AWS configuration holds here";
    if let Some(Endpoint { url: _, ca_bundle_secret_ref, credentials_secret_ref }) = &registry.spec.endpoint {
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
