//! The metrics of the jobs.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// The labels of ended jobs, from closed sets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    kind: String,
    /// `done`, `failed` or `dead`.
    state: &'static str,
}

/// Counts ended jobs. Clones share their counts.
#[derive(Debug, Clone, Default)]
pub struct JobMetrics {
    ended: Family<EndLabels, Counter>,
}

impl JobMetrics {
    /// Creates metrics that start at zero, exported with `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("jobs_ended", "Jobs that ended", Family::clone(&metrics.ended));
        metrics
    }

    /// Counts an attempt that ended `done`, `failed` or `dead`.
    pub fn ended(&self, kind: &str, state: &'static str) {
        self.ended.get_or_create(&EndLabels { kind: kind.to_owned(), state }).inc();
    }
}
