//! A client of a registry's ECR API: which registry, whose credentials, how patient.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_ecr::Client;
use aws_sdk_ecr::config::Credentials;
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};

use crate::names::{AccountId, Region};
use crate::plan::model::ApiError;
use crate::registry::auth::Secret;

/// How a registry's API is reached.
#[derive(Debug, Clone)]
pub enum Access {
    /// With an access key of the registry's own.
    Key {
        /// Its URL.
        endpoint: String,
        /// The region that requests are signed for.
        region: Region,
        /// The access key's id.
        id: String,
        /// The access key's secret.
        secret: Secret,
    },
    /// With what the environment configures: variables, profiles, the machine's own identity.
    Ambient {
        /// Its URL; Amazon ECR's if there is none.
        endpoint: Option<String>,
        /// The region.
        region: Region,
        /// A role to assume.
        role: Option<String>,
    },
}

/// The ECR API of one registry.
#[derive(Debug, Clone)]
pub struct Ecr {
    pub(super) client: Client,
    /// The account whose registry is meant, if it is not the credentials' own.
    pub(super) registry_id: Option<String>,
}

impl Ecr {
    /// A client; nothing is sent yet. All its clones share one limit that adapts to throttling.
    pub async fn new(access: Access, registry_id: Option<&AccountId>) -> Self {
        let retries = RetryConfig::adaptive()
            .with_max_attempts(5)
            .with_initial_backoff(Duration::from_millis(200))
            .with_max_backoff(Duration::from_secs(5));
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .operation_attempt_timeout(Duration::from_secs(30))
            .build();
        let config = match access {
            Access::Key { endpoint, region, id, secret } => aws_sdk_ecr::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(aws_sdk_ecr::config::Region::new(region.to_string()))
                .endpoint_url(endpoint)
                .credentials_provider(Credentials::new(id, secret.expose(), None, None, "wharfage")),
            Access::Ambient { endpoint, region, role } => {
                let region = aws_sdk_ecr::config::Region::new(region.to_string());
                let ambient = aws_config::defaults(BehaviorVersion::latest()).region(region.clone()).load().await;
                let mut config = aws_sdk_ecr::config::Builder::from(&ambient);
                if let Some(endpoint) = endpoint {
                    config = config.endpoint_url(endpoint);
                }
                if let Some(role) = role {
                    let assumed =
                        AssumeRoleProvider::builder(role).session_name("wharfage").region(region).configure(&ambient);
                    config = config.credentials_provider(assumed.build().await);
                }
                config
            }
        };
        let config = config.retry_config(retries).timeout_config(timeouts).build();
        Self { client: Client::from_conf(config), registry_id: registry_id.map(ToString::to_string) }
    }
}

/// Names that registries give to operations which they do not have.
const UNKNOWN_OPERATION: [&str; 5] = [
    "UnknownOperationException",
    "UnknownOperation",
    "UnsupportedOperationException",
    "NotImplemented",
    "InvalidAction",
];

/// An error of the SDK as its name and message. What never reached the registry has a name of ours.
pub(super) fn api_error<E>(error: &SdkError<E>) -> ApiError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let (name, message) = match error {
        SdkError::ServiceError(refused) => {
            let Some(name) = refused.err().code() else {
                let message =
                    format!("HTTP status {} without an error's name: is this an ECR API?", refused.raw().status());
                return ApiError { name: "UnexpectedResponse".to_owned(), message };
            };
            let message = refused.err().message().map_or_else(|| refused.err().to_string(), str::to_owned);
            return ApiError { name: name.to_owned(), message };
        }
        SdkError::TimeoutError(_) => ("RegistryUnavailable", "it did not answer in time".to_owned()),
        SdkError::DispatchFailure(failure) if failure.is_io() || failure.is_timeout() => {
            ("RegistryUnavailable", format!("it does not answer, so is it running? ({})", cause(error)))
        }
        SdkError::ResponseError(_) => ("UnexpectedResponse", causes(error)),
        _ => ("ClientError", causes(error)),
    };
    ApiError { name: name.to_owned(), message }
}

/// An error's causes, from the outermost to the innermost.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The innermost cause of an error.
fn cause(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.last().map(ToString::to_string).unwrap_or_default()
}

/// Whether the registry has no such operation.
pub(super) fn is_unknown_operation(error: &ApiError) -> bool {
    UNKNOWN_OPERATION.contains(&error.name.as_str())
}
