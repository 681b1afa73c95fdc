//! What is wanted of one registry, and what was found there. Plain data.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::ownership::{LifecycleOwner, OnRemoval};
use super::{Object, identity};
use wharfage_crd::Reason;
use wharfage_domain::names::RepositoryName;
use wharfage_domain::scanning::ScanningConfiguration;
use wharfage_domain::tag_mutability::TagMutability;

/// Everything that the manifests want of one registry.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Who plans: the cluster's name, or an identity of file mode. It is written on what is owned.
    pub cluster: String,
    /// Another owner whose repositories become ours where a manifest names them; what none names stays that owner's.
    pub adopt_from: Option<String>,
    /// The Registry resource's name.
    pub registry: String,
    /// ECR account settings, by name.
    pub account_settings: BTreeMap<String, String>,
    /// The registry's policy, or that there is none; absent leaves it be.
    pub policy: Option<Option<Value>>,
    /// How the registry's repositories are scanned; absent leaves it be.
    pub scanning_configuration: Option<ScanningConfiguration>,
    /// Repositories, in the order in which their resources have precedence.
    pub repositories: Vec<DesiredRepository>,
    /// Lifecycle policies, in the order in which their resources have precedence.
    pub lifecycle_policies: Vec<DesiredLifecyclePolicy>,
    /// Every resource of the manifests, those of other registries included: what any of them has is never an orphan.
    pub declared: BTreeSet<Object>,
    /// Repositories that keep what the tags say is theirs, though it isn't known whether they are for this registry.
    pub holders: BTreeSet<Object>,
    /// Resources that cannot be planned, and why. What they have already is let be.
    pub refused: Vec<Refused>,
    /// What holds only elsewhere and is let be here.
    pub notes: Vec<String>,
}

impl Desired {
    /// Whether this identity is the planning one, or the one whose repositories are taken over.
    pub(super) fn is_ours(&self, cluster: &str) -> bool {
        identity::same_owner(cluster, &self.cluster) || self.takes_over(cluster)
    }

    /// Whether what this identity owns is taken over from it.
    pub(super) fn takes_over(&self, cluster: &str) -> bool {
        self.adopt_from.as_deref().is_some_and(|from| identity::same_owner(cluster, from))
    }

    /// Whether `owner` is the LifecyclePolicy of this name, and ours.
    pub(super) fn is_our_policy(&self, owner: &LifecycleOwner, object: &Object) -> bool {
        self.is_ours(&owner.cluster) && owner.names(object)
    }

    /// Says how to get what another identity owns, where a flag of file mode does it.
    pub(super) fn adoption_hint(&self, cluster: &str) -> String {
        if identity::is_file_mode(&self.cluster) {
            format!(", or take it over with --adopt-from {}", identity::owner(cluster))
        } else {
            String::new()
        }
    }
}

/// Why a resource is not acted on: a stable reason, and a sentence that names the object, the value and what to do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// The resource.
    pub object: Object,
    /// The reason, as it will stand in a condition.
    pub reason: Reason,
    /// The sentence.
    pub message: String,
}

impl Refused {
    /// A refusal of an object.
    pub fn new(object: &Object, reason: Reason, message: String) -> Self {
        Self { object: object.clone(), reason, message }
    }
}

/// May a plan change things for this resource?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Management {
    /// Yes.
    #[default]
    Full,
    /// No: managementPolicy Observe.
    Observe,
    /// No: suspend.
    Suspended,
}

/// What to do about a repository that exists, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Adoption {
    /// Take it over, or make it.
    #[default]
    AdoptOrCreate,
    /// Take it over; never make it.
    Adopt,
    /// Make it; never take over what is there.
    Create,
}

/// One Repository.
#[derive(Debug, Clone)]
pub struct DesiredRepository {
    /// The resource.
    pub object: Object,
    /// The repository's name.
    pub name: RepositoryName,
    /// Wanted; `None` leaves it be (and ECR's default when created).
    pub tag_mutability: Option<TagMutability>,
    /// Wanted; `None` leaves it be.
    pub scan_on_push: Option<bool>,
    /// `encryptionType` and `kmsKey`; only ever used when created.
    pub encryption: Option<(String, Option<String>)>,
    /// The repository policy's document; `None` leaves it be, unless this resource had set it.
    pub policy: Option<Value>,
    /// Resource tags.
    pub tags: BTreeMap<String, String>,
    /// May it be changed?
    pub management: Management,
    /// May it be taken over?
    pub adoption: Adoption,
    /// What happens when the manifest goes.
    pub on_removal: OnRemoval,
}

/// Whether a LifecyclePolicy is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifecycleMode {
    /// Shown, not done.
    Preview,
    /// Done.
    Enforce,
}

/// Who evaluates a LifecyclePolicy, and carries it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CarriedOutBy {
    /// The registry, to which the policy is put.
    #[default]
    Registry,
    /// Wharfage's operator, which alone sees the images that run: the registry must then have no policy of its own.
    Operator,
}

/// One LifecyclePolicy.
#[derive(Debug, Clone)]
pub struct DesiredLifecyclePolicy {
    /// The resource.
    pub object: Object,
    /// The repositories that it is for.
    pub repositories: BTreeSet<RepositoryName>,
    /// Preview or enforce.
    pub mode: LifecycleMode,
    /// Who does that.
    pub by: CarriedOutBy,
    /// ECR's document: `{"rules": […]}`.
    pub document: Value,
    /// May it be changed?
    pub management: Management,
    /// May it replace a policy that nobody of ours put?
    pub adoption: Adoption,
    /// The policy goes with the manifest (deletionPolicy Delete).
    pub delete_on_removal: bool,
}

/// What was found in one registry.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The account settings that the desired state speaks of, or why they cannot be had.
    pub account_settings: Result<BTreeMap<String, String>, ApiError>,
    /// The registry policy's document, if the desired state speaks of it and there is one, or why it cannot be had.
    pub policy: Result<Option<Value>, ApiError>,
    /// How its repositories are scanned, if the desired state speaks of that, or why it cannot be had.
    pub scanning_configuration: Result<ScanningConfiguration, ApiError>,
    /// Its repositories.
    pub repositories: BTreeMap<RepositoryName, ObservedRepository>,
    /// Repositories that are there but could not be looked at.
    pub unreadable: BTreeMap<RepositoryName, ApiError>,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            account_settings: Ok(BTreeMap::new()),
            policy: Ok(None),
            scanning_configuration: Ok(ScanningConfiguration::default()),
            repositories: BTreeMap::new(),
            unreadable: BTreeMap::new(),
        }
    }
}

/// What a registry's API said instead of doing what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, thiserror::Error)]
#[error("{name}: {message}")]
pub struct ApiError {
    /// The error's kind, which callers branch on.
    #[serde(skip)]
    pub kind: ErrorKind,
    /// The error's own name.
    pub name: String,
    /// What it says.
    pub message: String,
}

/// The kind of an error of a registry's API. `apply::error` is the one place that tells it from an error's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The registry cannot be reached, or did not answer in time.
    Unavailable,
    /// The answer is none of an ECR API's.
    UnexpectedResponse,
    /// The registry answers that it is unavailable.
    ServiceUnavailable,
    /// The registry failed to do what it was asked to.
    ServerFault,
    /// Nobody gives credentials for now.
    CredentialsUnavailable,
    /// Requests come too fast.
    Throttled,
    /// The request was not sent, for a reason of the client's.
    Client,
    /// The registry does not have the operation.
    UnsupportedOperation,
    /// There is no such repository.
    RepositoryNotFound,
    /// There is such a repository already.
    RepositoryAlreadyExists,
    /// A preview of a lifecycle policy goes on in the repository.
    PreviewInProgress,
    /// There is no such image.
    ImageNotFound,
    /// The image's tag belongs to another image by now.
    ImageTagMoved,
    /// An index holds the image.
    ImageReferenced,
    /// The image's storage class cannot be changed.
    StorageClassNotSupported,
    /// Anything else: the registry refuses the request.
    Other,
}

impl ErrorKind {
    /// Returns whether the error says nothing about the request: the registry is at fault, or nobody can ask it.
    pub fn is_server_fault(self) -> bool {
        use ErrorKind::{CredentialsUnavailable, ServerFault, ServiceUnavailable, Unavailable, UnexpectedResponse};
        matches!(self, Unavailable | UnexpectedResponse | ServiceUnavailable | ServerFault | CredentialsUnavailable)
    }
}

impl ApiError {
    /// An error of a known kind.
    pub fn new(kind: ErrorKind, name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, name: name.into(), message: message.into() }
    }

    /// The same error with text before its message.
    #[must_use]
    pub fn with_prefix(self, prefix: impl std::fmt::Display) -> Self {
        Self { message: format!("{prefix}: {}", self.message), ..self }
    }
}

/// One repository that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedRepository {
    /// Its ARN, only ever handed back.
    pub arn: String,
    /// Its tag mutability.
    pub tag_mutability: TagMutability,
    /// Its scanning configuration.
    pub scan_on_push: bool,
    /// Its encryption type and key.
    pub encryption: (String, Option<String>),
    /// Its resource tags.
    pub tags: BTreeMap<String, String>,
    /// Its repository policy's document, where the desired state or the tags speak of one.
    pub policy: Option<Value>,
    /// Its lifecycle policy's document, where the desired state or the tags speak of one.
    pub lifecycle_policy: Option<Value>,
    /// The document of its latest preview that is complete or in progress, where the desired state speaks of one.
    pub preview: Option<Value>,
}
