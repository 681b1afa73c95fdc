//! The calls of the ECR API that steps consist of, grouped by the kind of object that they are about.

use std::collections::BTreeMap;

use wharfage_domain::scanning::ScanningConfiguration;
use wharfage_domain::tag_mutability::TagMutability;

/// One call of the ECR API. A step's calls run in order, and each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A call about the registry as a whole.
    Settings(SettingsCall),
    /// A call about one repository.
    Repository(RepositoryCall),
}

/// A call about the settings of a registry as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingsCall {
    /// PutAccountSetting.
    PutAccountSetting {
        /// The setting's name, such as `BLOB_MOUNTING`.
        name: String,
        /// The new value.
        value: String,
    },
    /// PutRegistryPolicy, with the document's text.
    PutRegistryPolicy(String),
    /// DeleteRegistryPolicy.
    DeleteRegistryPolicy,
    /// PutRegistryScanningConfiguration.
    PutRegistryScanningConfiguration(ScanningConfiguration),
}

/// A call about one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryCall {
    /// CreateRepository.
    CreateRepository {
        /// `imageTagMutability` with its filters.
        tag_mutability: TagMutability,
        /// `scanOnPush`.
        scan_on_push: bool,
        /// `encryptionType` and `kmsKey`; ECR's default if `None`.
        encryption: Option<(String, Option<String>)>,
        /// Resource tags.
        tags: BTreeMap<String, String>,
    },
    /// PutImageTagMutability.
    PutImageTagMutability(TagMutability),
    /// PutImageScanningConfiguration.
    PutImageScanningConfiguration {
        /// `scanOnPush`.
        scan_on_push: bool,
    },
    /// TagResource.
    TagResource(BTreeMap<String, String>),
    /// UntagResource.
    UntagResource(Vec<String>),
    /// SetRepositoryPolicy, with the document's text.
    SetRepositoryPolicy(String),
    /// DeleteRepositoryPolicy.
    DeleteRepositoryPolicy,
    /// PutLifecyclePolicy, with the document's text.
    PutLifecyclePolicy(String),
    /// DeleteLifecyclePolicy.
    DeleteLifecyclePolicy,
    /// StartLifecyclePolicyPreview, with the document's text.
    StartLifecyclePolicyPreview(String),
    /// DeleteRepository.
    DeleteRepository {
        /// Delete the images too.
        force: bool,
    },
}

impl From<SettingsCall> for Call {
    fn from(call: SettingsCall) -> Self {
        Self::Settings(call)
    }
}

impl From<RepositoryCall> for Call {
    fn from(call: RepositoryCall) -> Self {
        Self::Repository(call)
    }
}

impl Call {
    /// Returns the call about a repository, if it is one.
    pub fn repository(&self) -> Option<&RepositoryCall> {
        match self {
            Self::Repository(call) => Some(call),
            Self::Settings(_) => None,
        }
    }
}
