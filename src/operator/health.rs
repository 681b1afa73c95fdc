//! What the operator's admin server says: it lives unless it goes on working long after its term; it is ready when it stands by,
//! or leads and knows everything that is there.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::leader::Term;
use super::metrics::{self, OperatorMetrics};
use wharfage_process::admin::{HealthEndpoints, OK};

/// How long work may outlast its term: it is dropped at the term's end, so that work which is still there hangs.
const OVERTIME: Duration = Duration::from_secs(30);

/// How the operator is doing.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<OperatorMetrics>,
    term: Mutex<Option<Term>>,
    stopping: AtomicBool,
}

impl Health {
    /// Standing by.
    pub fn new(metrics: Arc<OperatorMetrics>) -> Self {
        Self { metrics, term: Mutex::default(), stopping: AtomicBool::default() }
    }

    /// Says that this replica leads, until the answer is dropped.
    #[must_use]
    pub fn leading(self: &Arc<Self>, term: &Term) -> Leading {
        self.set_term(Some(term.clone()));
        Leading { health: Arc::clone(self), _metrics: self.metrics.leading() }
    }

    /// Says that the process ends.
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

/// Work that is under way.
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
            Some(overtime) if overtime > OVERTIME => {
                Err(format!("not leading any more, and the work has not ended for {} s", overtime.as_secs()))
            }
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
    async fn a_replica_is_ready_while_it_stands_by_and_when_it_leads_and_knows_everything() {
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
