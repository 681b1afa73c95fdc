//! The calls about one repository.

use std::collections::BTreeMap;

use wharfage_domain::tag_mutability::TagMutability;

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
