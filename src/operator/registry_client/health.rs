//! Whether a registry answers: a circuit breaker, which lets one request through at a time while the registry is unavailable.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::RegistryClient;
use wharfage_apply::ping;
use wharfage_plan::model::{ApiError, ErrorKind};

/// The first pause after a registry did not answer; each further one is twice as long.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a registry was not read or changed.
#[derive(Debug, Clone)]
pub enum RegistryError {
    /// The registry is down, slow, throttling, or answers what makes no sense.
    Unavailable(Unavailable),
    /// The registry answers, and refuses this request.
    Rejected(ApiError),
}

/// A registry that does not answer.
#[derive(Debug, Clone)]
pub struct Unavailable {
    /// Since when.
    pub since: Timestamp,
    /// What happened.
    pub message: String,
    /// How long until it is tried again.
    pub retry: Duration,
}

impl Unavailable {
    /// The sentence for a condition. It stays the same while the registry is unavailable, so that it is written once.
    pub fn message(&self, registry: &str) -> String {
        let Self { since, message, retry: _ } = self;
        let since = since.strftime("%H:%M:%SZ on %F");
        let most = LONGEST_PAUSE.as_secs();
        format!(
            "Registry {registry} has been unreachable since {since}: {message}; tried again every {most} s or sooner"
        )
    }
}

/// Whether it is not well, or wants to be left alone for a while.
pub fn is_unavailable(error: &ApiError) -> bool {
    error.kind.is_server_fault() || error.kind == ErrorKind::Throttled
}

/// Whether the registry answers.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    pub(super) down: Option<Outage>,
}

#[derive(Debug)]
pub(super) struct Outage {
    pub(super) since: Timestamp,
    pub(super) failures: u32,
    pub(super) next: Instant,
    /// Whether one request was let through since the last failure that counted.
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
    /// May it be asked? While it is down one is let through when a pause is over, to find out: true for that one.
    pub(super) fn admit(&mut self, now: Instant) -> Result<bool, Unavailable> {
        let Some(down) = &mut self.down else { return Ok(false) };
        if now >= down.next {
            down.next = now + pause(down.failures);
            down.probed = true;
            return Ok(true);
        }
        Err(down.unavailable(now))
    }

    /// Of requests that were under way together only the first that fails counts.
    pub(super) fn failed(&mut self, now: Instant, at: Timestamp, message: String) -> Unavailable {
        let down =
            self.down.get_or_insert(Outage { since: at, failures: 0, next: now, probed: true, message: String::new() });
        if down.probed {
            down.failures = down.failures.saturating_add(1);
            down.next = now + pause(down.failures);
            down.probed = false;
            // The first message stays, so that conditions do not change with each.
            if down.message.is_empty() {
                down.message = message;
            }
        }
        down.unavailable(now)
    }

    /// Whether this is news.
    pub(super) fn answered(&mut self) -> bool {
        self.down.take().is_some()
    }
}

pub(super) fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST_PAUSE)
}

impl RegistryClient {
    /// Asks the registry something, unless it is known to be unavailable. What it never gets right, while it answers otherwise, is
    /// refused with the error's name.
    ///
    /// # Errors
    /// When it is unavailable, or refuses.
    pub async fn ask<T>(&self, question: impl Future<Output = Result<T, ApiError>>) -> Result<T, RegistryError> {
        let finds_out = self.health().admit(Instant::now()).map_err(RegistryError::Unavailable)?;
        if finds_out {
            // The question may be the very one that never works, so that it is not what finds out.
            self.ping().await?;
        }
        match question.await {
            Err(error) if error.kind.is_server_fault() && finds_out => {
                self.answered();
                Err(RegistryError::Rejected(error))
            }
            Err(error) if error.kind.is_server_fault() && self.answers_otherwise().await => {
                Err(RegistryError::Rejected(error))
            }
            answer => self.note(answer),
        }
    }

    /// Whether the registry gets something else right. One finds out for all: those that wait for it learn of it.
    pub(super) async fn answers_otherwise(&self) -> bool {
        let _one_asks = self.doubting.lock().await;
        let down = self.health().down.is_some();
        !down && self.ping().await.is_ok()
    }

    /// Whether it answers at all. That it refuses to say who it is is an answer, too.
    pub(super) async fn ping(&self) -> Result<(), RegistryError> {
        match ping(&self.ecr).await {
            Err(error) if is_unavailable(&error) => self.note(Err(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Remembers from an answer whether the registry is there.
    pub(super) fn note<T>(&self, answer: Result<T, ApiError>) -> Result<T, RegistryError> {
        match answer {
            Err(error) if is_unavailable(&error) => {
                let message = match error.kind {
                    ErrorKind::Unavailable | ErrorKind::CredentialsUnavailable => error.message,
                    _ => error.to_string(),
                };
                tracing::debug!(registry = self.name, message, "registry unavailable");
                Err(RegistryError::Unavailable(self.health().failed(Instant::now(), Timestamp::now(), message)))
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
