//! The metrics of a registry.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry as MetricsRegistry, Unit};

use wharfage_store::jobs::JobCount;

/// The labels of a request: each from a closed set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    /// The operation's name.
    pub(crate) operation: &'static str,
    /// The HTTP status.
    pub(crate) status: u16,
}

/// The label of a metric per operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OperationLabel {
    /// The operation's name.
    pub(crate) operation: &'static str,
}

/// The labels of the gauge of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    /// The job's kind.
    kind: String,
    /// `waiting`, `running` or `dead`.
    state: String,
}

/// The label of a connection that this side closed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct EndedLabel {
    pub(crate) reason: &'static str,
}

/// The label of a share of the memory for bodies.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ShareLabel {
    /// `verified` or `unverified`: whether the callers have authenticated.
    pub(crate) share: &'static str,
}

/// The label of a metric per store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StoreLabel {
    /// `metadata` or `blobs`.
    pub(crate) store: &'static str,
}

/// The metrics of a registry.
#[derive(Debug)]
pub struct Metrics {
    registry: MetricsRegistry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<OperationLabel, Histogram, fn() -> Histogram>,
    /// Bytes of blobs and manifests that clients have sent.
    pub(crate) received: Counter,
    /// Bytes of blobs and manifests that were sent to clients.
    pub(crate) sent: Counter,
    /// Connections that are open.
    pub(crate) connections: Gauge,
    /// Upload sessions that are open; set when the metrics are read.
    pub(crate) uploads_open: Gauge,
    /// Jobs by kind and state; set when the metrics are read.
    jobs: Family<JobLabels, Gauge>,
    connections_ended: Family<EndedLabel, Counter>,
    connections_refused: Counter,
    /// The time at which a connection was last refused.
    refused_at: Mutex<Option<Instant>>,
    memory_size: Family<ShareLabel, Gauge>,
    memory_used: Family<ShareLabel, Gauge>,
    memory_refused: Family<ShareLabel, Counter>,
    store_up: Family<StoreLabel, Gauge>,
    store_full: Family<StoreLabel, Gauge>,
    /// Empty when no data are on a disk.
    disk_free: Family<[(&'static str, &'static str); 0], Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::register(MetricsRegistry::with_prefix("wharfage"))
    }
}

impl Metrics {
    /// Creates metrics that start at zero, exported together with the metrics in `registry`.
    pub fn register(mut registry: MetricsRegistry) -> Self {
        fn seconds() -> Histogram {
            // 100 µs to 54 minutes: a pull of a manifest and the push of a large layer both fall
            // inside.
            Histogram::new(exponential_buckets(0.0001, 4.0, 13))
        }
        let requests = Family::default();
        let durations: Family<OperationLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(seconds);
        let (received, sent) = (Counter::default(), Counter::default());
        let (connections, uploads_open) = (Gauge::default(), Gauge::default());
        let jobs = Family::default();
        let (connections_ended, connections_refused, refused_at) = Default::default();
        let (memory_size, memory_used, memory_refused) = Default::default();

        registry.register("http_requests", "Requests answered", Family::clone(&requests));
        registry.register_with_unit(
            "http_request_duration",
            "Time until a request's answer began",
            Unit::Seconds,
            Family::clone(&durations),
        );
        registry.register_with_unit(
            "received",
            "Content received from clients",
            Unit::Bytes,
            received.clone(),
        );
        registry.register_with_unit("sent", "Content sent to clients", Unit::Bytes, sent.clone());
        registry.register("connections", "Open connections", connections.clone());
        registry.register("uploads_open", "Open upload sessions", uploads_open.clone());
        registry.register("jobs", "Waiting, running and dead jobs", Family::clone(&jobs));
        registry.register(
            "connections_ended",
            "Connections that the server closed",
            Family::clone(&connections_ended),
        );
        registry.register(
            "connections_refused",
            "Connections refused with 503 because all others were busy",
            Counter::clone(&connections_refused),
        );
        registry.register_with_unit(
            "body_memory_limit",
            "Memory that request and response bodies may hold",
            Unit::Bytes,
            Family::clone(&memory_size),
        );
        registry.register_with_unit(
            "body_memory",
            "Memory that request and response bodies hold",
            Unit::Bytes,
            Family::clone(&memory_used),
        );
        registry.register(
            "body_memory_refusals",
            "Requests refused because there was no memory for their bodies",
            Family::clone(&memory_refused),
        );
        let (store_up, store_full, disk_free) =
            (Family::default(), Family::default(), Family::default());
        registry.register("store_up", "Whether the store answers", Family::clone(&store_up));
        registry.register(
            "store_full",
            "Whether pushes are refused because the store is full",
            Family::clone(&store_full),
        );
        let free = "Free space of the data folder's file system";
        registry.register_with_unit("disk_free", free, Unit::Bytes, Family::clone(&disk_free));
        Self {
            registry,
            requests,
            durations,
            received,
            sent,
            connections,
            uploads_open,
            jobs,
            connections_ended,
            connections_refused,
            refused_at,
            memory_size,
            memory_used,
            memory_refused,
            store_up,
            store_full,
            disk_free,
        }
    }

    /// Counts a request that was answered.
    pub fn request(&self, operation: &'static str, status: u16, took: Duration) {
        self.requests.get_or_create(&RequestLabels { operation, status }).inc();
        self.durations.get_or_create(&OperationLabel { operation }).observe(took.as_secs_f64());
    }

    /// Counts a connection that this side closed.
    pub fn connection_ended(&self, reason: &'static str) {
        self.connections_ended.get_or_create(&EndedLabel { reason }).inc();
    }

    /// Counts a connection that was refused because all others were busy.
    pub(crate) fn connection_refused(&self) {
        self.connections_refused.inc();
        *self.refused_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns the time since a connection was last refused, if one was.
    pub(crate) fn since_refusal(&self) -> Option<Duration> {
        self.refused_at.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// Sets the use of a share of the memory for bodies: its size and the bytes held, and the
    /// refusals so far.
    pub fn set_memory(&self, share: &'static str, size: usize, used: usize, refused: u64) {
        let label = ShareLabel { share };
        self.memory_size.get_or_create(&label).set(i64::try_from(size).unwrap_or(i64::MAX));
        self.memory_used.get_or_create(&label).set(i64::try_from(used).unwrap_or(i64::MAX));
        let counted = self.memory_refused.get_or_create(&label);
        counted.inc_by(refused.saturating_sub(counted.get()));
    }

    /// Sets the gauges that are read from the store.
    pub fn set_gauges(&self, uploads_open: u64, jobs: &[JobCount]) {
        self.uploads_open.set(i64::try_from(uploads_open).unwrap_or(i64::MAX));
        self.jobs.clear();
        for JobCount { kind, state, count } in jobs {
            let labels = JobLabels { kind: kind.clone(), state: state.clone() };
            self.jobs.get_or_create(&labels).inc_by(i64::try_from(*count).unwrap_or(i64::MAX));
        }
    }

    /// Sets the state of a store (`metadata` or `blobs`).
    pub fn set_store(&self, store: &'static str, up: bool, full: bool) {
        self.store_up.get_or_create(&StoreLabel { store }).set(i64::from(up));
        self.store_full.get_or_create(&StoreLabel { store }).set(i64::from(full));
    }

    /// Sets the free bytes of the data folder's file system.
    pub fn set_disk_free(&self, bytes: u64) {
        self.disk_free.get_or_create(&[]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Returns the metrics in OpenMetrics text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
