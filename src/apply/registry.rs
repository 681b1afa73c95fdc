//! The identity and the availability of a registry.

use std::time::Duration;

use aws_sdk_ecr::config::Config;
use aws_sdk_ecr::config::retry::RetryConfig;
use aws_sdk_ecr::config::timeout::TimeoutConfig;
use aws_sdk_ecr::error::SdkError;
use aws_sdk_ecr::operation::describe_registry::{DescribeRegistryError, DescribeRegistryOutput};

use super::client::{Ecr, api_error};
use super::error::unexpected_response;
use wharfage_plan::model::ApiError;

/// Returns the account whose registry answers.
///
/// # Errors
/// When the registry rejects the request or is unreachable.
pub async fn registry_id(ecr: &Ecr) -> Result<String, ApiError> {
    id_in(ecr.client.describe_registry().send().await)
}

fn id_in(
    answer: Result<DescribeRegistryOutput, SdkError<DescribeRegistryError>>,
) -> Result<String, ApiError> {
    let answer = answer.map_err(|error| api_error(&error))?;
    answer.registry_id().map(str::to_owned).ok_or_else(|| {
        let message =
            "DescribeRegistry was answered without a registryId: is this an ECR API?".to_owned();
        unexpected_response(message)
    })
}

/// The timeout of a [`ping`].
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks that the registry answers, without retries and with a short timeout.
///
/// # Errors
/// When the registry rejects the request or is unreachable.
pub async fn ping(ecr: &Ecr) -> Result<(), ApiError> {
    let timeout = TimeoutConfig::builder().operation_timeout(PING_TIMEOUT).build();
    let once = Config::builder().retry_config(RetryConfig::disabled()).timeout_config(timeout);
    id_in(ecr.client.describe_registry().customize().config_override(once).send().await).map(drop)
}
