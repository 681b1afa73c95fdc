//! Credentials that are not available: STS rejects a role, or their provider is unreachable. Neither is the registry's fault.

use std::error::Error;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_smithy_types::error::ErrorMetadata;

use super::error::{CREDENTIALS_UNAVAILABLE, kind_of};
use wharfage_plan::model::{ApiError, ErrorKind};

/// The timeout for credentials. The SDK's cache gives up after five seconds, with an error that does not name the cause.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Provides credentials, or an error that says why there are none, within the timeout.
#[derive(Debug)]
pub(super) struct CredentialsWithTimeout {
    provider: SharedCredentialsProvider,
    timeout: Duration,
}

impl CredentialsWithTimeout {
    pub(super) fn new(provider: SharedCredentialsProvider) -> Self {
        Self { provider, timeout: TIMEOUT }
    }
}

impl ProvideCredentials for CredentialsWithTimeout {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let answer =
                tokio::time::timeout(self.timeout, self.provider.provide_credentials()).await;
            let late = || CredentialsError::provider_timed_out(self.timeout);
            answer.unwrap_or_else(|_| self.fallback_on_interrupt().ok_or_else(late))
        })
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.provider.fallback_on_interrupt()
    }
}

/// An error response of STS.
struct Answer {
    status: u16,
    code: Option<String>,
    message: String,
}

impl Answer {
    fn of(cause: &(dyn Error + 'static)) -> Option<Self> {
        Self::read::<AssumeRoleError>(cause)
            .or_else(|| Self::read::<AssumeRoleWithWebIdentityError>(cause))
    }

    fn read<E: ProvideErrorMetadata + Error + 'static>(
        cause: &(dyn Error + 'static),
    ) -> Option<Self> {
        let SdkError::ServiceError(answer) = cause.downcast_ref::<SdkError<E>>()? else {
            return None;
        };
        // Further lines quote the request, which contains its time.
        let message =
            answer.err().message().and_then(|it| it.lines().next()).unwrap_or_default().to_owned();
        Some(Self {
            status: answer.raw().status().as_u16(),
            code: answer.err().code().map(str::to_owned),
            message,
        })
    }

    /// Returns the error's name, if only a change of the role, its trust policy or the credentials solves it.
    fn refusal(&self) -> Option<&str> {
        // STS called an identity provider, which did not answer.
        const OF_OTHERS: &str = "IDPCommunicationError";
        let refuses = |code: &&str| {
            self.status < 500 && kind_of(code) != ErrorKind::Throttled && *code != OF_OTHERS
        };
        self.code.as_deref().filter(refuses)
    }
}

/// Returns the error about the credentials, if it is why nothing was sent. The message is the same for each attempt: the
/// request's id in the response of STS is left out.
pub(super) fn credentials_error(error: &(dyn Error + 'static)) -> Option<ApiError> {
    let found = chain(error).find_map(|cause| cause.downcast_ref::<CredentialsError>())?;
    let answer = chain(error).find_map(Answer::of);
    if let Some(answer) = &answer
        && let Some(code) = answer.refusal()
    {
        let message = format!("STS refuses the credentials: {}", answer.message);
        // The timeout was the credentials', not the registry's.
        return Some(ApiError::new(ErrorKind::Other, code, message));
    }
    let why = match answer {
        Some(Answer { status, code, .. }) => {
            format!("STS answers {}", code.unwrap_or_else(|| format!("HTTP status {status}")))
        }
        // An invalid file does not become valid by itself, so this is an error of the client.
        None if matches!(found, CredentialsError::InvalidConfiguration(_)) => return None,
        None => chain(error).last().map(words).unwrap_or_default(),
    };
    let message = format!(
        "there are no credentials to ask it with, so are they configured, and is STS there? ({why})"
    );
    Some(ApiError::new(ErrorKind::CredentialsUnavailable, CREDENTIALS_UNAVAILABLE, message))
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// Returns an error's text without the request's id.
fn words(cause: &(dyn Error + 'static)) -> String {
    match cause.downcast_ref::<ErrorMetadata>() {
        Some(said) => {
            [said.code(), said.message()].into_iter().flatten().collect::<Vec<_>>().join(": ")
        }
        None => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_credential_types::credential_fn::provide_credentials_fn;
    use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
    use aws_smithy_runtime_api::client::result::ConnectorError;
    use aws_smithy_runtime_api::http::StatusCode;

    use super::*;
    use crate::{Connection, Ecr, list};
    use secrecy::SecretString;

    /// Returns the response of STS to the nth request, with a different request id each time.
    fn answers(nth: usize, status: u16, code: Option<&str>, message: &str) -> CredentialsError {
        let said =
            ErrorMetadata::builder().custom("aws_request_id", format!("id-{nth}")).message(message);
        let said = if let Some(code) = code { said.code(code) } else { said };
        let response = HttpResponse::new(StatusCode::try_from(status).unwrap(), "".into());
        CredentialsError::provider_error(SdkError::service_error(
            AssumeRoleError::generic(said.build()),
            response,
        ))
    }

    /// Returns the errors of two calls of a client with such credentials.
    async fn error_of(
        error: impl Fn(usize) -> CredentialsError + Send + Sync + 'static,
    ) -> ApiError {
        let (region, key) = ("eu-home-1".parse().unwrap(), SecretString::from("secret"));
        let connection =
            Connection::with_key("http://127.0.0.1:9".to_owned(), region, "AKIA".to_owned(), key);
        let mut ecr = Ecr::new(connection, None).await.unwrap();
        let asked = AtomicUsize::new(0);
        let provider = provide_credentials_fn(move || {
            let error = error(asked.fetch_add(1, Ordering::SeqCst));
            async { Err(error) }
        });
        let config = ecr.client.config().to_builder();
        let config = config.credentials_provider(CredentialsWithTimeout::new(
            SharedCredentialsProvider::new(provider),
        ));
        ecr.client = aws_sdk_ecr::Client::from_conf(config.build());
        let first = list(&ecr).await.unwrap_err();
        assert_eq!(list(&ecr).await.unwrap_err(), first, "each try would be a write");
        assert!(!first.message.contains("id-"), "{first}");
        first
    }

    #[tokio::test]
    async fn a_rejected_role_is_reported_in_the_words_of_sts() {
        let message = "User: arn:aws:iam::1:user/a is not authorized to perform: sts:AssumeRole";
        let refused = error_of(move |nth| answers(nth, 403, Some("AccessDenied"), message)).await;
        assert_eq!(refused.name, "AccessDenied");
        assert_eq!(refused.message, format!("STS refuses the credentials: {message}"));
        let signature = |nth| {
            answers(
                nth,
                403,
                Some("SignatureDoesNotMatch"),
                &format!("It does not match.\n\nid-{nth}"),
            )
        };
        assert_eq!(
            error_of(signature).await.message,
            "STS refuses the credentials: It does not match."
        );
    }

    #[tokio::test]
    async fn an_sts_that_does_not_answer_is_waited_for() {
        let refused_connect = |_| {
            let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            let failure: SdkError<AssumeRoleError> =
                SdkError::dispatch_failure(ConnectorError::io(error.into()));
            CredentialsError::provider_error(failure)
        };
        let waits = |error: ApiError, why: &str| {
            assert_eq!(error.name, CREDENTIALS_UNAVAILABLE);
            assert!(error.message.ends_with(&format!("({why})")), "{error}");
        };
        waits(error_of(refused_connect).await, "connection refused");
        waits(
            error_of(|nth| answers(nth, 400, Some("Throttling"), "Rate exceeded")).await,
            "STS answers Throttling",
        );
        waits(
            error_of(|nth| answers(nth, 503, Some("ServiceUnavailable"), "")).await,
            "STS answers ServiceUnavailable",
        );
        waits(error_of(|nth| answers(nth, 502, None, "")).await, "STS answers HTTP status 502");
        waits(error_of(|_| CredentialsError::not_loaded("no variable")).await, "no variable");
        let of_others = |nth| {
            let said = ErrorMetadata::builder()
                .code("Busy")
                .message("later")
                .custom("aws_request_id", format!("id-{nth}"));
            CredentialsError::provider_error(said.build())
        };
        waits(error_of(of_others).await, "Busy: later");
    }

    #[tokio::test]
    async fn a_configuration_without_sense_is_not_waited_for() {
        let error =
            error_of(|_| CredentialsError::invalid_configuration("the profile is a loop")).await;
        assert_eq!(error.name, "ClientError");
        assert!(error.message.contains("the profile is a loop"), "{error}");
    }

    #[tokio::test]
    async fn who_never_answers_is_given_up_in_time() {
        let provider = provide_credentials_fn(|| async {
            std::future::pending::<()>().await;
            Err(CredentialsError::not_loaded_no_source())
        });
        let provider = SharedCredentialsProvider::new(provider);
        let timely = CredentialsWithTimeout { provider, timeout: Duration::from_millis(10) };
        let late = timely.provide_credentials().await.unwrap_err();
        assert!(matches!(late, CredentialsError::ProviderTimedOut(_)), "{late}");
        assert_eq!(credentials_error(&late).unwrap().name, CREDENTIALS_UNAVAILABLE);
    }
}
