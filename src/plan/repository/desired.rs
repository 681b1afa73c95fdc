//! Reads the desired state of one repository from its Repository.

use std::collections::BTreeMap;

use kube::ResourceExt as _;

use crate::Object;
use crate::desired::{adoption, check_policy, management, object};
use crate::model::{DesiredRepository, Refused};
use crate::ownership::OnRemoval;
use crate::resources::Resources;
use wharfage_crd::common::selects;
use wharfage_crd::repository::{EncryptionType, Visibility};
use wharfage_crd::{DeletionPolicy, Managed as _, Reason, Registry, Repository};
use wharfage_domain::policy::Kind;
use wharfage_domain::tag_mutability::TagMutability;

/// Reads the desired repository, or why the Registry does not allow or support it.
pub(super) fn read(
    resources: &Resources<'_>,
    registry: &Registry,
    resource: &Repository,
) -> Result<DesiredRepository, Refused> {
    let object = object(resource);
    let name = resource.repository_name().map_err(|error| {
        Refused::new(
            &object,
            Reason::InvalidParameterException,
            format!("{error}: set repositoryName"),
        )
    })?;
    let labels = resources.namespace_labels(&object.namespace);
    if !registry.allows(Some(&labels), name.as_str()) {
        return Err(Refused::new(
            &object,
            Reason::NotAllowed,
            not_allowed(registry, &object, &labels, name.as_str()),
        ));
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
    if let Some(Err(fault)) =
        policy.as_ref().map(|document| check_policy(registry, Kind::Repository, document))
    {
        let message = format!("repositoryPolicy is not valid: {fault}");
        return Err(Refused::new(&object, Reason::InvalidParameterException, message));
    }
    let tag_mutability = spec.image_tag_mutability.map(|mode| TagMutability {
        mode,
        exclusions: spec
            .image_tag_mutability_exclusion_filters
            .iter()
            .map(|it| it.filter.clone())
            .collect(),
    });
    Ok(DesiredRepository {
        name,
        tag_mutability,
        scan_on_push: spec
            .image_scanning_configuration
            .map(|it| it.scan_on_push.unwrap_or_default()),
        encryption: encryption
            .map(|it| (it.encryption_type.as_str().to_owned(), it.kms_key.clone())),
        policy,
        tags: spec.tags.clone(),
        management: management(resource),
        adoption: adoption(resource),
        on_removal: on_removal(resource),
        object,
    })
}

/// Returns what the manifest says about its own removal.
pub fn on_removal(resource: &Repository) -> OnRemoval {
    match resource.deletion_policy() {
        _ if resource.deletion_protection() => OnRemoval::Protected,
        DeletionPolicy::Retain => OnRemoval::Retain,
        DeletionPolicy::Delete if resource.empty_on_delete() => OnRemoval::DeleteWithImages,
        DeletionPolicy::Delete => OnRemoval::Delete,
    }
}

/// Returns a sentence that names the allowed prefixes of the namespace.
fn not_allowed(
    registry: &Registry,
    object: &Object,
    labels: &BTreeMap<String, String>,
    name: &str,
) -> String {
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
    format!(
        "namespace {namespace} may use {} in Registry {registry}, not {name}",
        prefixes.join(", ")
    )
}
