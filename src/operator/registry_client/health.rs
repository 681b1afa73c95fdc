//! The circuit breaker of a registry: while the registry is unavailable, it lets one request through at a time.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::RegistryClient;
use wharfage_apply::ping;
use wharfage_plan::model::{ApiError, ErrorKind};

/// The first pause after a failure. Each further one is twice as long.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// An error of a call to a registry.
#[derive(Debug, Clone)]
pub enum RegistryError {
    /// The registry is down, slow or throttling, or its response is not one of an ECR API.
    Unavailable(Unavailable),
    /// The registry rejects this request.
    Rejected(ApiError),
}

/// The outage of a registry.
#[derive(Debug, Clone)]
pub struct Unavailable {
    /// The time of the first failure.
    pub since: Timestamp,
    /// The first error's text.
    pub message: String,
    /// The time until the next try.
    pub retry: Duration,
}

impl Unavailable {
    /// Returns the message of a condition. It does not change during the outage, so that it is written once.
    pub fn message(&self, registry: &str) -> String {
        let Self { since, message, retry: _ } = self;
        let since = since.strftime("%H:%M:%SZ on %F");
        let most = LONGEST_PAUSE.as_secs();
        format!(
            "Registry {registry} has been unreachable since {since}: {message}; tried again every {most} s or sooner"
        )
    }
}

/// Returns whether the error means that the registry is unavailable or throttling.
pub fn is_unavailable(error: &ApiError) -> bool {
    error.kind.is_server_fault() || error.kind == ErrorKind::Throttled
}

/// The state of a circuit breaker.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    pub(super) down: Option<Outage>,
}

#[derive(Debug)]
pub(super) struct Outage {
    pub(super) since: Timestamp,
    pub(super) failures: u32,
    pub(super) next: Instant,
    /// A request was let through since the last counted failure.
    pub(super) probed: bool,
    pub(super) message: String,
}

impl Outage {
    pub(super) fn unavailable(&self, now: Instant) -> Unavailable {
        Unavailable {
            since: self.since,
            message: self.message.clone(),
            retry: self.next.saturating_duration_since(now),
        }
    }
}

impl CircuitBreaker {
    /// Admits a request. During an outage it admits one after each pause as a probe, and returns true for it.
    pub(super) fn admit(&mut self, now: Instant) -> Result<bool, Unavailable> {
        let Some(down) = &mut self.down else { return Ok(false) };
        if now >= down.next {
            down.next = now + pause(down.failures);
            down.probed = true;
            return Ok(true);
        }
        Err(down.unavailable(now))
    }

    /// Records a failure. Of concurrent requests only the first failure counts.
    pub(super) fn failed(&mut self, now: Instant, at: Timestamp, message: String) -> Unavailable {
        let down = self.down.get_or_insert(Outage {
            since: at,
            failures: 0,
            next: now,
            probed: true,
            message: String::new(),
        });
        if down.probed {
            down.failures = down.failures.saturating_add(1);
            down.next = now + pause(down.failures);
            down.probed = false;
            // The first message stays, so that conditions do not change with each failure.
            if down.message.is_empty() {
                down.message = message;
            }
        }
        down.unavailable(now)
    }

    /// Records a success, and returns whether it ends an outage.
    pub(super) fn answered(&mut self) -> bool {
        self.down.take().is_some()
    }
}

pub(super) fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST_PAUSE)
}

impl RegistryClient {
    /// Calls the registry, unless it is unavailable. A request that always fails while the registry answers others is rejected with
    /// the error's name.
    ///
    /// # Errors
    /// When the registry is unavailable or rejects the request.
    pub async fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, RegistryError> {
        let is_probe = self.health().admit(Instant::now()).map_err(RegistryError::Unavailable)?;
        if is_probe {
            // The request may be one that always fails, so it is not the probe itself.
            self.ping().await?;
        }
        match request.await {
            Err(error) if error.kind.is_server_fault() && is_probe => {
                self.answered();
                Err(RegistryError::Rejected(error))
            }
            Err(error) if error.kind.is_server_fault() && self.answers_otherwise().await => {
                Err(RegistryError::Rejected(error))
            }
            answer => self.note(answer),
        }
    }

    /// Returns whether the registry answers another request. One caller finds out for all that wait.
    pub(super) async fn answers_otherwise(&self) -> bool {
        let _prober = self.doubting.lock().await;
        let down = self.health().down.is_some();
        !down && self.ping().await.is_ok()
    }

    /// Checks that the registry answers. A rejection is an answer, too.
    pub(super) async fn ping(&self) -> Result<(), RegistryError> {
        match ping(&self.ecr).await {
            Err(error) if is_unavailable(&error) => self.note(Err(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Records from a response whether the registry is available.
    pub(super) fn note<T>(&self, answer: Result<T, ApiError>) -> Result<T, RegistryError> {
        match answer {
            Err(error) if is_unavailable(&error) => {
                let message = match error.kind {
                    ErrorKind::Unavailable | ErrorKind::CredentialsUnavailable => error.message,
                    _ => error.to_string(),
                };
                tracing::debug!(registry = self.name, message, "registry unavailable");
                Err(RegistryError::Unavailable(self.health().failed(
                    Instant::now(),
                    Timestamp::now(),
                    message,
                )))
            }
            answer => {
                self.answered();
                answer.map_err(RegistryError::Rejected)
            }
        }
    }

    pub(super) fn answered(&self) {
        if self.health().answered() {
            tracing::info!(registry = self.name, "registry reachable again");
            (self.recovered)();
        }
    }

    pub(super) fn health(&self) -> MutexGuard<'_, CircuitBreaker> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
