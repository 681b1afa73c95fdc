//! The parts of the desired and the observed state. Plain data.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Object;
use super::ownership::OnRemoval;
use wharfage_crd::Reason;
use wharfage_domain::names::RepositoryName;
use wharfage_domain::tag_mutability::TagMutability;

/// A resource that the plan does nothing for, with a stable reason and a sentence that names the object, the value and what to do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// The resource.
    pub object: Object,
    /// The reason of the condition.
    pub reason: Reason,
    /// The message of the condition.
    pub message: String,
}

impl Refused {
    /// Refuses a resource.
    pub fn new(object: &Object, reason: Reason, message: String) -> Self {
        Self { object: object.clone(), reason, message }
    }
}

/// Permission of a plan to change anything for a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Management {
    /// It may.
    #[default]
    Full,
    /// It may not: managementPolicy is Observe.
    Observe,
    /// It may not: suspend is true.
    Suspended,
}

/// The adoption policy of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Adoption {
    /// Adopt the object, or create it.
    #[default]
    AdoptOrCreate,
    /// Adopt the object; never create it.
    Adopt,
    /// Create the object; never adopt an existing one.
    Create,
}

/// The desired state of one repository.
#[derive(Debug, Clone)]
pub struct DesiredRepository {
    /// The resource.
    pub object: Object,
    /// The repository's name.
    pub name: RepositoryName,
    /// `None` leaves it unchanged, or at ECR's default when the repository is created.
    pub tag_mutability: Option<TagMutability>,
    /// `None` leaves it unchanged.
    pub scan_on_push: Option<bool>,
    /// `encryptionType` and `kmsKey`; immutable.
    pub encryption: Option<(String, Option<String>)>,
    /// The repository policy's document. `None` leaves it unchanged, unless this resource set it before.
    pub policy: Option<Value>,
    /// Resource tags.
    pub tags: BTreeMap<String, String>,
    /// The permission to change it.
    pub management: Management,
    /// The permission to adopt it.
    pub adoption: Adoption,
    /// The action when the manifest is deleted.
    pub on_removal: OnRemoval,
}

/// The mode of a LifecyclePolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifecycleMode {
    /// The result is shown, and nothing is done.
    Preview,
    /// The policy is enforced.
    Enforce,
}

/// The party that evaluates and enforces a LifecyclePolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EnforcedBy {
    /// The registry, which stores the policy.
    #[default]
    Registry,
    /// The operator, which sees the images in use. The registry must then have no policy.
    Operator,
}

/// The desired state of one LifecyclePolicy.
#[derive(Debug, Clone)]
pub struct DesiredLifecyclePolicy {
    /// The resource.
    pub object: Object,
    /// The chosen repositories.
    pub repositories: BTreeSet<RepositoryName>,
    /// Preview or Enforce.
    pub mode: LifecycleMode,
    /// The enforcing party.
    pub by: EnforcedBy,
    /// ECR's document: `{"rules": […]}`.
    pub document: Value,
    /// The permission to change it.
    pub management: Management,
    /// The permission to replace a policy without an owner.
    pub adoption: Adoption,
    /// The policy is deleted with the manifest (deletionPolicy Delete).
    pub delete_on_removal: bool,
}

/// The observed objects of one kind, by key.
#[derive(Debug, Clone, PartialEq)]
pub struct Observations<K, T> {
    /// The objects that exist.
    pub found: BTreeMap<K, T>,
    /// Objects that exist but could not be read.
    pub unreadable: BTreeMap<K, ApiError>,
}

impl<K, T> Default for Observations<K, T> {
    fn default() -> Self {
        Self { found: BTreeMap::new(), unreadable: BTreeMap::new() }
    }
}

impl<K: Ord, T> Observations<K, T> {
    /// Returns an object that exists.
    pub fn get(&self, key: &K) -> Option<&T> {
        self.found.get(key)
    }

    /// Adds the result of reading one object; `Ok(None)` if it does not exist.
    pub fn insert(&mut self, key: K, result: Result<Option<T>, ApiError>) {
        match result {
            Ok(Some(found)) => {
                self.found.insert(key, found);
            }
            Ok(None) => {}
            Err(error) => {
                self.unreadable.insert(key, error);
            }
        }
    }
}

impl<K: Ord, T> FromIterator<(K, T)> for Observations<K, T> {
    fn from_iter<I: IntoIterator<Item = (K, T)>>(found: I) -> Self {
        Self { found: found.into_iter().collect(), unreadable: BTreeMap::new() }
    }
}

/// An error of a registry's API.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, thiserror::Error)]
#[error("{name}: {message}")]
pub struct ApiError {
    /// The error's kind, which callers branch on.
    #[serde(skip)]
    pub kind: ErrorKind,
    /// The error's name, such as `LimitExceededException`.
    pub name: String,
    /// The error's text.
    pub message: String,
}

/// The kind of an error of a registry's API. Only `apply::error` derives it from an error's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The registry is unreachable, or did not answer in time.
    Unavailable,
    /// The response is not one of an ECR API.
    UnexpectedResponse,
    /// The registry reports that it is unavailable.
    ServiceUnavailable,
    /// The registry failed with an internal error.
    ServerFault,
    /// No credentials are available at the moment.
    CredentialsUnavailable,
    /// Too many requests.
    Throttled,
    /// The client could not send the request.
    Client,
    /// The registry does not have the operation.
    UnsupportedOperation,
    /// The repository does not exist.
    RepositoryNotFound,
    /// The repository exists already.
    RepositoryAlreadyExists,
    /// A preview of a lifecycle policy is in progress in the repository.
    PreviewInProgress,
    /// The image does not exist.
    ImageNotFound,
    /// The tag belongs to another image by now.
    ImageTagMoved,
    /// An image index references the image.
    ImageReferenced,
    /// The image's storage class cannot be changed.
    StorageClassNotSupported,
    /// Any other error: the registry rejects the request.
    Other,
}

impl ErrorKind {
    /// Returns whether the error is independent of the request: the registry is at fault, or cannot be called.
    pub fn is_server_fault(self) -> bool {
        use ErrorKind::{
            CredentialsUnavailable, ServerFault, ServiceUnavailable, Unavailable,
            UnexpectedResponse,
        };
        matches!(
            self,
            Unavailable
                | UnexpectedResponse
                | ServiceUnavailable
                | ServerFault
                | CredentialsUnavailable
        )
    }
}

impl ApiError {
    /// Creates an error of a known kind.
    pub fn new(kind: ErrorKind, name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, name: name.into(), message: message.into() }
    }

    /// Adds text before the message.
    #[must_use]
    pub fn with_prefix(self, prefix: impl std::fmt::Display) -> Self {
        Self { message: format!("{prefix}: {}", self.message), ..self }
    }
}

/// The observed state of one repository.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedRepository {
    /// Its ARN, which is opaque here.
    pub arn: String,
    /// Its tag mutability.
    pub tag_mutability: TagMutability,
    /// Its scanning configuration.
    pub scan_on_push: bool,
    /// Its encryption type and key.
    pub encryption: (String, Option<String>),
    /// Its resource tags.
    pub tags: BTreeMap<String, String>,
    /// Its repository policy's document, if the desired state or the tags have one.
    pub policy: Option<Value>,
    /// Its lifecycle policy's document, if the desired state or the tags have one.
    pub lifecycle_policy: Option<Value>,
    /// The document of its latest preview that is complete or in progress, if the desired state has one.
    pub preview: Option<Value>,
}
