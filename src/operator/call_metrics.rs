//! Counts the calls of a registry's API. Refuses calls after the term.

use std::sync::Arc;
use std::time::Duration;

use super::leader::Term;
use super::metrics::OperatorMetrics;
use wharfage_apply::CallObserver;
use wharfage_plan::model::ErrorKind;

/// The observer of the calls of one registry.
#[derive(Debug)]
pub struct CallMetrics {
    registry: String,
    metrics: Arc<OperatorMetrics>,
    term: Term,
}

impl CallMetrics {
    /// Observes the calls of the Registry with this name, within a term.
    pub fn new(registry: &str, metrics: Arc<OperatorMetrics>, term: Term) -> Self {
        metrics.know_registry(registry);
        Self { registry: registry.to_owned(), metrics, term }
    }
}

impl CallObserver for CallMetrics {
    fn allows(&self) -> bool {
        self.term.lasts()
    }

    fn called(&self, operation: &str, code: &str, kind: Option<ErrorKind>, took: Duration) {
        self.metrics.called(&self.registry, operation, code, kind, took);
    }
}
