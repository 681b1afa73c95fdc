//! The objects of a set: those that the owner wants, those that exist, and the label that joins them.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, OwnerReference};
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde_json::Value;

use crate::status::FIELD_MANAGER;
use wharfage_crd::DeletionPolicy;

/// An object that the owner of a set wants.
#[derive(Clone, PartialEq)]
pub(crate) struct DesiredObject {
    pub kind: ApiResource,
    pub name: String,
    /// All of it, as it is applied.
    pub body: Value,
}

// The body of a Secret is secret.
impl fmt::Debug for DesiredObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DesiredObject")
            .field("kind", &self.kind.kind)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl DesiredObject {
    /// Erases the type of an object.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no object here does.
    pub fn of<K: Resource<DynamicType = ()> + Serialize>(typed: K) -> serde_json::Result<Self> {
        let name = typed.name_any();
        Ok(Self { kind: ApiResource::erase::<K>(&()), name, body: serde_json::to_value(typed)? })
    }
}

/// The metadata of an existing object.
pub(crate) type Metadata = PartialObjectMeta<DynamicObject>;

/// An object that exists, by its metadata.
#[derive(Debug, Clone)]
pub(crate) struct FoundObject {
    pub kind: ApiResource,
    pub object: Metadata,
}

impl FoundObject {
    pub(super) fn is(&self, kind: &ApiResource, name: &str) -> bool {
        self.kind == *kind && self.object.name_any() == name
    }

    pub fn id(&self) -> ObjectId {
        ObjectId::new(
            &self.kind,
            &self.object.namespace().unwrap_or_default(),
            &self.object.name_any(),
        )
    }

    /// Returns the owners without the one of this UID; nothing if it is none of them.
    pub(super) fn owners_without(&self, uid: &str) -> Option<Vec<OwnerReference>> {
        let owners = self.object.owner_references();
        let others: Vec<_> = owners.iter().filter(|it| it.uid != uid).cloned().collect();
        (others.len() < owners.len()).then_some(others)
    }
}

/// Names an object for people: its kind, its namespace and its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectId {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl ObjectId {
    pub fn new(kind: &ApiResource, namespace: &str, name: &str) -> Self {
        Self { kind: kind.kind.clone(), namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// The label of every object of a set. Its value names the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetLabel {
    pub key: &'static str,
    pub value: String,
}

impl SetLabel {
    pub fn selector(&self) -> String {
        format!("{}={}", self.key, self.value)
    }

    fn is_on(&self, object: &Metadata) -> bool {
        object.labels().get(self.key) == Some(&self.value)
    }

    /// Returns whether the set may apply to an existing object: it has the label, or we applied it and somebody removed the
    /// label. An object with the label of another owner is that owner's.
    pub(super) fn may_apply(&self, object: &Metadata) -> bool {
        self.is_on(object) || !object.labels().contains_key(self.key) && is_applied(object)
    }

    /// Returns whether an object is the set's to delete or to release. A copy that somebody made has the label, too, but we
    /// did not apply it.
    pub(super) fn may_prune(&self, object: &Metadata) -> bool {
        self.is_on(object) && is_applied(object)
    }
}

/// Returns whether the operator applied an object.
pub(super) fn is_applied(object: &Metadata) -> bool {
    let is_ours = |it: &ManagedFieldsEntry| {
        it.manager.as_deref() == Some(FIELD_MANAGER) && it.operation.as_deref() == Some("Apply")
    };
    object.managed_fields().iter().any(is_ours)
}

/// Returns the owner reference for the objects of `owner`: only where they go with it. A foreground deletion removes owned
/// objects before any finalizer runs, so that those that stay must not have one.
pub(crate) fn owner_reference<K>(owner: &K, policy: DeletionPolicy) -> Option<OwnerReference>
where
    K: Resource<DynamicType = ()>,
{
    match policy {
        DeletionPolicy::Delete => owner.controller_owner_ref(&()),
        DeletionPolicy::Retain => None,
    }
}
