//! Intercepts each attempt of a call to a registry's API, for metrics and to block calls.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_ecr::config::interceptors::{
    BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef, InterceptorContext,
};
use aws_sdk_ecr::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_ecr::error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_types::config_bag::{Storable, StoreReplace};

use super::client::Ecr;
use super::error::{CLIENT_ERROR, UNAVAILABLE, UNEXPECTED_RESPONSE, kind_of};
use super::retry::error_name;
use wharfage_plan::model::ErrorKind;

/// An observer of a client's calls.
pub trait CallObserver: Debug + Send + Sync {
    /// Returns whether a call may be sent now.
    fn allows(&self) -> bool {
        true
    }

    /// Records the end of an attempt. `code` is the HTTP status, the name of the registry's error, or one of the names in
    /// [`error`](super::error); `kind` is the error's, and absent after success.
    fn called(&self, operation: &str, code: &str, kind: Option<ErrorKind>, took: Duration);
}

impl Ecr {
    /// Adds an observer. The client keeps its rate limit.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn CallObserver>) -> Self {
        let config =
            self.client.config().to_builder().interceptor(CallInterceptor(observer)).build();
        self.client = aws_sdk_ecr::Client::from_conf(config);
        self
    }
}

/// The observer blocked the call.
#[derive(Debug, thiserror::Error)]
#[error("held back: it may not be sent any more")]
struct HeldBack;

/// The time at which the attempt was sent.
#[derive(Debug)]
struct Sent(Option<Instant>);

impl Storable for Sent {
    type Storer = StoreReplace<Self>;
}

/// Reports each attempt to an observer.
#[derive(Debug)]
struct CallInterceptor(Arc<dyn CallObserver>);

impl Intercept for CallInterceptor {
    fn name(&self) -> &'static str {
        "CallInterceptor"
    }

    fn read_before_transmit(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if !self.0.allows() {
            return Err(HeldBack.into());
        }
        cfg.interceptor_state().store_put(Sent(Some(Instant::now())));
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Some(sent) = cfg.load::<Sent>().and_then(|sent| sent.0) else { return Ok(()) };
        let operation = cfg.load::<Metadata>().map_or("Unknown", Metadata::name);
        let code = code(context.inner());
        let failed = matches!(context.inner().output_or_error(), Some(Err(_)));
        self.0.called(operation, &code, failed.then(|| kind_of(&code)), sent.elapsed());
        // The next attempt may end before it is sent.
        cfg.interceptor_state().store_put(Sent(None));
        Ok(())
    }
}

/// Returns the code of an attempt.
fn code(context: &InterceptorContext) -> String {
    let response = context.response();
    let status =
        response.map(|response| response.status().as_u16().to_string()).unwrap_or_default();
    match context.output_or_error() {
        Some(Err(error)) if error.is_operation_error() => {
            let success = response.is_some_and(|response| response.status().is_success());
            let unnamed = if success { UNEXPECTED_RESPONSE.to_owned() } else { status };
            response.and_then(error_name).unwrap_or(unnamed)
        }
        Some(Err(error)) if error.is_response_error() => UNEXPECTED_RESPONSE.to_owned(),
        Some(Err(error)) => {
            let connector = error.as_connector_error();
            let away = error.is_timeout_error()
                || connector.is_some_and(|error| error.is_io() || error.is_timeout());
            if away { UNAVAILABLE.to_owned() } else { CLIENT_ERROR.to_owned() }
        }
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use aws_smithy_async::rt::sleep::{AsyncSleep, Sleep, TokioSleep};
    use tokio::net::TcpSocket;

    use secrecy::SecretString;
    use wharfage_fake_ecr::FakeEcr;

    use super::*;
    use crate::Connection;

    const LISTING: &str = r#"{"repositories":[]}"#;
    const THROTTLED: &str = r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#;

    /// Answers the nth request, from 0, with a status and a body.
    async fn fake_ecr(
        answer: impl Fn(usize) -> (u16, &'static str) + Send + Sync + 'static,
    ) -> FakeEcr {
        wharfage_fake_ecr::fake_ecr(move |nth, _| {
            let (status, body) = answer(nth);
            (status, body.to_owned())
        })
        .await
    }

    /// A client of the ECR API at this URL.
    async fn client(endpoint: &str) -> Ecr {
        let region = "eu-home-1".parse().unwrap();
        let connection = Connection::with_key(
            endpoint.to_owned(),
            region,
            "AKIA".to_owned(),
            SecretString::from("secret"),
        );
        Ecr::new(connection, None).await.unwrap()
    }

    async fn list(ecr: &Ecr) -> bool {
        ecr.client.describe_repositories().send().await.is_ok()
    }

    /// Records what it observes.
    #[derive(Debug, Default)]
    struct Notes {
        calls: Mutex<Vec<(String, String, bool)>>,
        blocks: bool,
    }

    impl CallObserver for Notes {
        fn allows(&self) -> bool {
            !self.blocks
        }

        fn called(&self, operation: &str, code: &str, kind: Option<ErrorKind>, _took: Duration) {
            let throttled = kind == Some(ErrorKind::Throttled);
            self.calls.lock().unwrap().push((operation.to_owned(), code.to_owned(), throttled));
        }
    }

    impl Notes {
        fn codes(&self) -> Vec<(String, bool)> {
            self.calls
                .lock()
                .unwrap()
                .iter()
                .map(|(_, code, throttled)| (code.clone(), *throttled))
                .collect()
        }
    }

    #[tokio::test]
    async fn each_attempt_is_reported_with_its_operation_and_code() {
        let registry = fake_ecr(|nth| match nth {
            0 => (503, "<html>"),
            1 => (200, LISTING),
            2 => (400, r#"{"__type":"com.amazonaws#InvalidParameterException","message":"no"}"#),
            _ => (200, "{"),
        });
        let (registry, notes) = (registry.await, Arc::new(Notes::default()));
        let ecr = client(&registry.endpoint).await.observed_by(notes.clone());
        assert!(list(&ecr).await);
        assert!(!list(&ecr).await);
        assert!(!list(&ecr).await);
        let expected = ["503", "200", "InvalidParameterException", "UnexpectedResponse"];
        let observed: Vec<_> = notes.calls.lock().unwrap().clone();
        let expected =
            expected.map(|code| ("DescribeRepositories".to_owned(), code.to_owned(), false));
        assert_eq!(observed, expected);
    }

    #[tokio::test]
    async fn an_unreachable_registry_is_reported_as_unavailable() {
        // A reserved port without a listener.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = format!("http://{}", socket.local_addr().unwrap());
        let notes = Arc::new(Notes::default());
        assert!(!list(&client(&endpoint).await.observed_by(notes.clone())).await);
        assert!(
            notes
                .codes()
                .iter()
                .all(|observed| *observed == ("RegistryUnavailable".to_owned(), false))
        );
        assert!(!notes.codes().is_empty());
        drop(socket);
    }

    #[tokio::test]
    async fn a_blocked_call_is_not_sent() {
        let registry = fake_ecr(|_| (200, LISTING)).await;
        let notes = Arc::new(Notes { blocks: true, ..Notes::default() });
        assert!(!list(&client(&registry.endpoint).await.observed_by(notes.clone())).await);
        assert_eq!((registry.asked().len(), notes.codes().len()), (0, 0));
    }

    #[tokio::test]
    async fn a_quota_that_is_used_up_is_no_throttling() {
        let registry = fake_ecr(|nth| match nth {
            0 => (400, r#"{"__type":"LimitExceededException","message":"too many"}"#),
            _ => (200, LISTING),
        });
        let (registry, notes) = (registry.await, Arc::new(Notes::default()));
        let ecr = client(&registry.endpoint).await.observed_by(notes.clone());
        let refused =
            ecr.client.create_repository().repository_name("shop/api").send().await.unwrap_err();
        assert!(refused.as_service_error().unwrap().is_limit_exceeded_exception());
        assert!(list(&ecr).await);
        assert_eq!(
            notes.codes(),
            [("LimitExceededException".to_owned(), false), ("200".to_owned(), false)]
        );
    }

    /// Sleeps, and records the durations.
    #[derive(Debug, Clone, Default)]
    struct Sleeps(Arc<Mutex<Vec<Duration>>>);

    impl AsyncSleep for Sleeps {
        fn sleep(&self, duration: Duration) -> Sleep {
            self.0.lock().unwrap().push(duration);
            TokioSleep::new().sleep(duration)
        }
    }

    impl Sleeps {
        /// Returns the sleeps of a rate limiter. The SDK's other sleeps, its timeouts, are whole milliseconds.
        fn waits(&self) -> usize {
            self.0
                .lock()
                .unwrap()
                .iter()
                .filter(|duration| duration.subsec_nanos() % 1_000_000 != 0)
                .count()
        }

        fn of(&self, ecr: &Ecr) -> Ecr {
            let mut ecr = ecr.clone();
            let config = ecr.client.config().to_builder().sleep_impl(self.clone()).build();
            ecr.client = aws_sdk_ecr::Client::from_conf(config);
            ecr
        }
    }

    /// Of two registries in one region, one throttles. Its client and the client's clones slow down, and the other does not.
    #[tokio::test]
    async fn each_registry_has_a_limiter_of_its_own() {
        let throttling =
            fake_ecr(|nth| if nth == 0 { (400, THROTTLED) } else { (200, LISTING) }).await;
        let willing = fake_ecr(|_| (200, LISTING)).await;
        let slowed = client(&throttling.endpoint).await;
        assert!(list(&slowed).await);
        assert_eq!(throttling.asked().len(), 2);

        let (clones, others) = (Sleeps::default(), Sleeps::default());
        let (clone, free) =
            (clones.of(&slowed.clone()), others.of(&client(&willing.endpoint).await));
        for _ in 0..3 {
            assert!(list(&clone).await);
            assert!(list(&free).await);
        }
        assert!(clones.waits() > 0, "{clones:?}");
        assert_eq!(others.waits(), 0, "{others:?}");
    }

    #[tokio::test]
    async fn a_429_without_a_name_slows_down_too() {
        let registry =
            fake_ecr(|nth| if nth == 0 { (429, "slow down") } else { (200, LISTING) }).await;
        let notes = Arc::new(Notes::default());
        assert!(list(&client(&registry.endpoint).await.observed_by(notes.clone())).await);
        assert_eq!(notes.codes(), [("429".to_owned(), true), ("200".to_owned(), false)]);
    }
}
