//! The table of operations: one line per operation.

use bytes::Bytes;
use futures::future::BoxFuture;

use super::error::EcrError;
use super::{EcrCall, images, input, layers, lifecycle, listings, registry, registry_policies};
use super::{repositories, repository_policies, resource_tags, scanning, shapes};
use crate::message::memory;

/// The body limit, except for parts of a layer.
const BODY_LIMIT: usize = 5 * 1024 * 1024;
/// A manifest of 4 MiB as a JSON string, in which each quote and line break takes two bytes.
const MANIFEST_BODY_LIMIT: usize = 10 * 1024 * 1024;
/// A layer part of 20 MiB in base64, and the rest of the body.
const PART_BODY_LIMIT: usize = memory::LARGEST_BODY;

/// Runs an operation on its body.
type Handler = for<'a> fn(&'a EcrCall, Bytes) -> BoxFuture<'a, Result<String, EcrError>>;

/// An operation of the API.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// The IAM action that the caller needs, without `ecr:`.
    pub(crate) action: &'static str,
    /// The body limit in bytes.
    pub(crate) body_limit: usize,
    /// Reads the input, runs the handler and renders its result.
    pub(crate) run: Handler,
}

/// The type of the input is that of the handler's second argument.
macro_rules! operation {
    ($name:literal, $handler:path) => {
        operation!($name, $handler, action: $name)
    };
    ($name:literal, $handler:path, action: $action:literal) => {
        Operation {
            name: $name,
            action: $action,
            body_limit: BODY_LIMIT,
            run: |call, body| {
                Box::pin(async move {
                    let input = input::parse_body(body).await?;
                    Ok(shapes::render($handler(call, input).await?))
                })
            },
        }
    };
}

/// The private API's operations, sorted by name.
pub(super) static PRIVATE: &[Operation] = &[
    operation!("BatchCheckLayerAvailability", layers::batch_check_availability),
    operation!("BatchDeleteImage", images::batch_delete),
    operation!("BatchGetImage", images::batch_get),
    operation!("BatchGetRepositoryScanningConfiguration", scanning::batch_get),
    operation!("CompleteLayerUpload", layers::complete_upload),
    operation!("CreateRepository", repositories::create),
    operation!("DeleteLifecyclePolicy", lifecycle::delete_policy),
    operation!("DeleteRegistryPolicy", registry_policies::delete),
    operation!("DeleteRepository", repositories::delete),
    operation!("DeleteRepositoryPolicy", repository_policies::delete),
    operation!("DescribeImages", listings::describe_images),
    operation!("DescribeRegistry", registry::describe),
    operation!("DescribeRepositories", repositories::describe),
    operation!("GetAccountSetting", registry::get_account_setting),
    operation!("GetAuthorizationToken", registry::get_authorization_token),
    operation!("GetDownloadUrlForLayer", layers::get_download_url),
    operation!("GetLifecyclePolicy", lifecycle::get_policy),
    operation!("GetLifecyclePolicyPreview", lifecycle::get_preview),
    operation!("GetRegistryPolicy", registry_policies::get),
    operation!("GetRegistryScanningConfiguration", scanning::get),
    operation!("GetRepositoryPolicy", repository_policies::get),
    operation!("InitiateLayerUpload", layers::initiate_upload),
    operation!("ListImageReferrers", listings::list_referrers, action: "BatchGetImage"),
    operation!("ListImages", listings::list_images),
    operation!("ListTagsForResource", resource_tags::list),
    operation!("PutAccountSetting", registry::put_account_setting),
    Operation { body_limit: MANIFEST_BODY_LIMIT, ..operation!("PutImage", images::put) },
    operation!("PutImageScanningConfiguration", repositories::put_scanning_configuration),
    operation!("PutImageTagMutability", repositories::put_tag_mutability),
    operation!("PutLifecyclePolicy", lifecycle::put_policy),
    operation!("PutRegistryPolicy", registry_policies::put),
    operation!("PutRegistryScanningConfiguration", scanning::put),
    operation!("SetRepositoryPolicy", repository_policies::set),
    operation!("StartLifecyclePolicyPreview", lifecycle::start_preview),
    operation!("TagResource", resource_tags::tag),
    operation!("UntagResource", resource_tags::untag),
    operation!("UpdateImageStorageClass", images::update_storage_class),
    Operation { body_limit: PART_BODY_LIMIT, ..operation!("UploadLayerPart", layers::upload_part) },
];

/// The prefix of the private API's targets.
const PRIVATE_PREFIX: &[u8] = b"AmazonEC2ContainerRegistry_V20150921.";
/// The prefix of the public API's targets. None of its operations exists here.
const PUBLIC_PREFIX: &[u8] = b"SpencerFrontendService.";

/// Returns the service that a signature must name for this `X-Amz-Target`: each API accepts only
/// its own.
pub(crate) fn service(target: &[u8]) -> &'static str {
    if target.starts_with(PUBLIC_PREFIX) { "ecr-public" } else { "ecr" }
}

/// Finds the operation of an `X-Amz-Target`.
pub(crate) fn find(target: &[u8]) -> Option<&'static Operation> {
    let name = target.strip_prefix(PRIVATE_PREFIX)?;
    let at = PRIVATE.binary_search_by(|operation| operation.name.as_bytes().cmp(name)).ok()?;
    PRIVATE.get(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_found_by_its_name() {
        for operation in PRIVATE {
            let target = format!("AmazonEC2ContainerRegistry_V20150921.{}", operation.name);
            assert_eq!(find(target.as_bytes()).map(|found| found.name), Some(operation.name));
        }
    }

    #[test]
    fn a_signature_names_the_service_of_the_target() {
        for (target, expected) in [
            ("AmazonEC2ContainerRegistry_V20150921.PutImage", "ecr"),
            ("AmazonEC2ContainerRegistry_V20150921.Nope", "ecr"),
            ("", "ecr"),
            ("SpencerFrontendService.PutImage", "ecr-public"),
        ] {
            assert_eq!(service(target.as_bytes()), expected, "{target}");
        }
    }

    #[test]
    fn other_targets_name_nothing() {
        for target in [
            "",
            "CreateRepository",
            "AmazonEC2ContainerRegistry_V20150921.",
            "SpencerFrontendService.CreateRepository",
        ] {
            assert!(find(target.as_bytes()).is_none(), "{target}");
        }
        assert!(find(b"AmazonEC2ContainerRegistry_V20150921.\xff").is_none());
    }
}
