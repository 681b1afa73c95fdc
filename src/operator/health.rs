//! The answers of the operator's admin server. It is healthy unless its work continues long after
//! its term. It is ready while it is a standby, and when it leads and its stores are complete.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::leader::Term;
use super::metrics::{self, OperatorMetrics};
use wharfage_process::admin::{HealthEndpoints, OK};

/// The time that work may outlast its term. It is dropped at the end of the term, so work that
/// still runs hangs.
const OVERTIME: Duration = Duration::from_secs(30);

/// The health of the operator.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<OperatorMetrics>,
    term: Mutex<Option<Term>>,
    stopping: AtomicBool,
}

impl Health {
    /// Starts as a standby.
    pub fn new(metrics: Arc<OperatorMetrics>) -> Self {
        Self { metrics, term: Mutex::default(), stopping: AtomicBool::default() }
    }

    /// Records that this replica leads, until the result is dropped.
    #[must_use]
    pub fn leading(self: &Arc<Self>, term: &Term) -> Leading {
        self.set_term(Some(term.clone()));
        Leading { health: Arc::clone(self), _metrics: self.metrics.leading() }
    }

    /// Records that the process is stopping.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn set_term(&self, term: Option<Term>) {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = term;
    }

    fn term(&self) -> Option<Term> {
        self.term.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A term in which this replica works.
#[derive(Debug)]
pub struct Leading {
    health: Arc<Health>,
    _metrics: metrics::Leading,
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.health.set_term(None);
    }
}

#[async_trait]
impl HealthEndpoints for Health {
    fn healthy(&self) -> Result<(), String> {
        match self.term().and_then(|term| term.over_for()) {
            Some(overtime) if overtime > OVERTIME => Err(format!(
                "not leading any more, and the work has not ended for {} s",
                overtime.as_secs()
            )),
            _ => Ok(()),
        }
    }

    async fn ready(&self) -> Result<Cow<'static, str>, String> {
        if self.stopping.load(Ordering::Relaxed) {
            Err("stopping".into())
        } else if self.term().is_some() && !self.metrics.knows_state() {
            Err("leading, and reading what there is".into())
        } else {
            Ok(OK)
        }
    }

    async fn metrics(&self) -> anyhow::Result<String> {
        Ok(self.metrics.encode()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{Resources, StateSource, TokenEnd};
    use super::*;

    struct Nothing;

    impl StateSource for Nothing {
        fn resources(&self) -> Vec<Resources> {
            Vec::new()
        }

        fn tokens(&self) -> Vec<TokenEnd> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn standbys_and_leaders_with_complete_stores_are_ready() {
        let metrics = Arc::new(OperatorMetrics::new());
        let health = Arc::new(Health::new(metrics.clone()));
        assert_eq!(health.ready().await, Ok(OK));
        let leading = health.leading(&Term::unlimited());
        assert_eq!(health.ready().await.unwrap_err(), "leading, and reading what there is");
        let source: Arc<dyn StateSource> = Arc::new(Nothing);
        metrics.observe_state(Arc::downgrade(&source));
        assert_eq!(health.ready().await, Ok(OK));
        drop(leading);
        assert_eq!(health.ready().await, Ok(OK));
        health.stopping();
        assert_eq!(health.ready().await.unwrap_err(), "stopping");
    }

    #[test]
    fn work_that_outlasts_its_term_is_not_healthy() {
        let health = Arc::new(Health::new(Arc::new(OperatorMetrics::new())));
        let now = tokio::time::Instant::now();
        let leading = health.leading(&Term::ended_at(now));
        assert_eq!(health.healthy(), Ok(()));
        drop(leading);
        let leading = health.leading(&Term::ended_at(now - OVERTIME - Duration::from_secs(1)));
        assert!(health.healthy().unwrap_err().contains("has not ended for"));
        drop(leading);
        assert_eq!(health.healthy(), Ok(()));
    }
}
