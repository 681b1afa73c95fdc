//! Retries and rate limits. Each registry has a separate rate limiter, which adapts to it.

use std::time::SystemTime;

use aws_sdk_ecr::config::Builder;
use aws_sdk_ecr::config::interceptors::InterceptorContext;
use aws_sdk_ecr::config::retry::{ClassifyRetry, ClientRateLimiter, RetryAction, RetryPartition};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

/// Gives a client its own rate limiter and retry quota. By default, the SDK shares them between all
/// clients of a region in the process, whatever their registries.
pub(super) fn isolated_rate_limiter(config: Builder) -> Builder {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let limiter = ClientRateLimiter::new(now.as_secs_f64());
    config
        .retry_partition(RetryPartition::custom("registry").client_rate_limiter(limiter).build())
        .retry_classifier(Throttling)
}

/// Corrects the SDK's classification of throttling. ECR's LimitExceededException is an exhausted quota, so neither retries nor a
/// lower rate help. A 429 without an error's name, as proxies send it, is throttling.
#[derive(Debug)]
struct Throttling;

impl ClassifyRetry for Throttling {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let Some(response) = context.response().filter(|_| context.is_failed()) else {
            return RetryAction::NoActionIndicated;
        };
        if error_name(response).as_deref() == Some("LimitExceededException") {
            RetryAction::RetryForbidden
        } else if response.status().as_u16() == 429 {
            RetryAction::throttling_error()
        } else {
            RetryAction::NoActionIndicated
        }
    }

    fn name(&self) -> &'static str {
        "Throttling"
    }
}

/// Returns the name of the registry's error, without its namespace.
pub(super) fn error_name(response: &HttpResponse) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(rename = "__type")]
        name: String,
    }
    let Answer { name } = serde_json::from_slice(response.body().bytes()?).ok()?;
    Some(name.rsplit('#').next().unwrap_or_default().to_owned())
}
