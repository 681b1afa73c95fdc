//! What a registry's calls tell the operator: counts for its metrics, and what the registry says it is. No call is sent after the term.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::leader::Term;
use super::metrics::OperatorMetrics;
use crate::apply::CallObserver;

/// The calls of one registry.
#[derive(Debug)]
pub struct Calls {
    registry: String,
    metrics: Arc<OperatorMetrics>,
    term: Term,
    server: Mutex<Option<String>>,
}

impl Calls {
    /// Those of the Registry with this name, within a term.
    pub fn new(registry: &str, metrics: Arc<OperatorMetrics>, term: Term) -> Self {
        metrics.know_registry(registry);
        Self { registry: registry.to_owned(), metrics, term, server: Mutex::default() }
    }

    /// What its answers' `Server` header said last.
    pub fn server(&self) -> Option<String> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CallObserver for Calls {
    fn allows(&self) -> bool {
        self.term.lasts()
    }

    fn called(&self, operation: &str, code: &str, throttled: bool, took: Duration) {
        self.metrics.called(&self.registry, operation, code, throttled, took);
    }

    fn server(&self, header: &str) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if server.as_deref() != Some(header) {
            *server = Some(header.to_owned());
        }
    }
}
