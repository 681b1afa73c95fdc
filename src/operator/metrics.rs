//! The operator's metrics: reconciles, drift, calls of registries and of the Kubernetes API,
//! leadership.
//!
//! No label has unbounded values. Kinds and outcomes are closed sets. The series of a deleted
//! registry are dropped. Names of errors, which a faulty registry could invent, are limited to
//! [`NAMES`].

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry as MetricsRegistry, Unit};

use wharfage_crd::Reason;
use wharfage_plan::model::ErrorKind;

/// The number of distinct names of errors; further ones are counted as [`OTHER`].
const NAMES: usize = 100;
/// The label of all further names.
const OTHER: &str = "Other";

/// The result of a reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
pub enum ResultLabel {
    /// The resource is as its spec asks.
    ready,
    /// The resource waits, and no one needs to act.
    reconciling,
    /// Someone must change the resource or the registry.
    stalled,
    /// The reconcile failed and is retried.
    failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    kind: &'static str,
    outcome: ResultLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    kind: &'static str,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DriftLabels {
    kind: &'static str,
    registry: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    registry: String,
    operation: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegistryLabel {
    registry: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KubernetesLabels {
    method: String,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    kind: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    namespace: String,
    name: String,
}

/// The series of one registry.
#[derive(Debug, Default)]
struct OfRegistry {
    calls: HashSet<CallLabels>,
    drift: HashSet<DriftLabels>,
}

/// The number of resources of a kind in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    pub kind: &'static str,
    /// `ready`, `reconciling` or `stalled`.
    pub state: &'static str,
    pub count: usize,
}

/// The expiry of the tokens that a PullSecret wrote to Secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEnd {
    pub namespace: String,
    pub name: String,
    /// The expiry of the first token.
    pub ends: Timestamp,
}

/// The source of metrics that are computed when they are read.
pub trait StateSource: Send + Sync {
    /// Counts all resources by kind and state.
    fn resources(&self) -> Vec<Resources>;
    /// Returns the expiry of the tokens of all PullSecrets.
    fn tokens(&self) -> Vec<TokenEnd>;
}

/// All metrics of the operator.
#[derive(Debug)]
pub struct OperatorMetrics {
    metrics: MetricsRegistry,
    reconciles: Family<ReconcileLabels, Counter>,
    durations: Family<KindLabel, Histogram, fn() -> Histogram>,
    errors: Family<ErrorLabels, Counter>,
    drift_detected: Family<DriftLabels, Counter>,
    drift_corrected: Family<DriftLabels, Counter>,
    queued: Family<KindLabel, Gauge>,
    calls: Family<CallLabels, Counter>,
    call_durations: Family<RegistryLabel, Histogram, fn() -> Histogram>,
    throttles: Family<RegistryLabel, Counter>,
    up: Family<RegistryLabel, Gauge>,
    leader: Gauge,
    terms: Counter,
    kubernetes_requests: Family<KubernetesLabels, Counter>,
    source: Arc<StateCollector>,
    /// The labels of each existing registry, which are dropped with it.
    registries: Mutex<HashMap<String, OfRegistry>>,
    names: Mutex<HashSet<String>>,
}

impl Default for OperatorMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl OperatorMetrics {
    pub fn new() -> Self {
        fn seconds() -> Histogram {
            // 1 ms to 65 s: from a read of memory to a slow registry.
            Histogram::new(exponential_buckets(0.001, 4.0, 9))
        }
        let durations: Family<KindLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(seconds);
        let call_durations: Family<RegistryLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(seconds);
        let this = Self {
            metrics: MetricsRegistry::default(),
            reconciles: Family::default(),
            durations,
            errors: Family::default(),
            drift_detected: Family::default(),
            drift_corrected: Family::default(),
            queued: Family::default(),
            calls: Family::default(),
            call_durations,
            throttles: Family::default(),
            up: Family::default(),
            leader: Gauge::default(),
            terms: Counter::default(),
            kubernetes_requests: Family::default(),
            source: Arc::default(),
            registries: Mutex::default(),
            names: Mutex::default(),
        };

        let mut metrics = MetricsRegistry::with_prefix("wharfage_operator");
        metrics.register("reconciles", "Reconciles that ended", this.reconciles.clone());
        let help = "Time that a reconcile took";
        metrics.register_with_unit(
            "reconcile_duration",
            help,
            Unit::Seconds,
            this.durations.clone(),
        );
        metrics.register(
            "errors",
            "Reconciles that did not end Ready, by condition reason",
            this.errors.clone(),
        );
        metrics.register(
            "drift_detected",
            "Properties found to differ from their resource",
            this.drift_detected.clone(),
        );
        metrics.register("drift_corrected", "Properties corrected", this.drift_corrected.clone());
        metrics.register(
            "queue_depth",
            "Resources that wait for their reconcile",
            this.queued.clone(),
        );
        metrics.register(
            "api_calls",
            "CallMetrics of a registry's API, each attempt",
            this.calls.clone(),
        );
        let help = "Time that an attempt to call a registry's API took";
        metrics.register_with_unit(
            "api_call_duration",
            help,
            Unit::Seconds,
            this.call_durations.clone(),
        );
        metrics.register(
            "api_throttles",
            "CallMetrics that a registry refused for coming too fast",
            this.throttles.clone(),
        );
        let help = "Whether the registry answered last (1), or did not or could not be asked (0)";
        metrics.register("registry_up", help, this.up.clone());
        metrics.register(
            "leader",
            "Whether this replica leads (1) or stands by (0)",
            this.leader.clone(),
        );
        metrics.register("leader_terms", "How often this replica came to lead", this.terms.clone());
        let help = "Requests to the Kubernetes API that were answered";
        metrics.register("kubernetes_requests", help, this.kubernetes_requests.clone());
        metrics.register_collector(Box::new(Arc::clone(&this.source)));
        Self { metrics, ..this }
    }

    pub fn reconciled(&self, kind: &'static str, outcome: ResultLabel, took: Duration) {
        self.reconciles.get_or_create(&ReconcileLabels { kind, outcome }).inc();
        self.durations.get_or_create(&KindLabel { kind }).observe(took.as_secs_f64());
    }

    /// Counts a reconcile that did not end Ready, by the reason of its condition.
    pub fn failed(&self, kind: &'static str, reason: &Reason) {
        self.errors.get_or_create(&ErrorLabels { kind, reason: self.name(reason.as_str()) }).inc();
    }

    /// Counts properties that differ from the spec.
    pub fn drift_detected(&self, kind: &'static str, registry: &str, properties: u64) {
        self.drift(&self.drift_detected, kind, registry, properties);
    }

    /// Counts corrected properties.
    pub fn drift_corrected(&self, kind: &'static str, registry: &str, properties: u64) {
        self.drift(&self.drift_corrected, kind, registry, properties);
    }

    fn drift(
        &self,
        family: &Family<DriftLabels, Counter>,
        kind: &'static str,
        registry: &str,
        properties: u64,
    ) {
        let mut registries = self.registries();
        let Some(of_registry) = registries.get_mut(registry) else { return };
        let labels = DriftLabels { kind, registry: registry.to_owned() };
        family.get_or_create(&labels).inc_by(properties);
        of_registry.drift.insert(labels);
    }

    /// Makes the empty queue of a kind.
    pub fn queue<T: Eq + Hash>(&self, kind: &'static str) -> Queue<T> {
        let depth = self.queued.get_or_create_owned(&KindLabel { kind });
        depth.set(0);
        Queue { depth, waiting: Mutex::default() }
    }

    /// Starts counting for a registry. Nothing is counted for others: the last call of a deleted
    /// registry may end later.
    pub fn know_registry(&self, registry: &str) {
        self.registries().entry(registry.to_owned()).or_default();
    }

    /// Counts one attempt to call a registry's API.
    pub fn called(
        &self,
        registry: &str,
        operation: &str,
        code: &str,
        kind: Option<ErrorKind>,
        took: Duration,
    ) {
        let mut registries = self.registries();
        let Some(of_registry) = registries.get_mut(registry) else { return };
        let labels = CallLabels {
            registry: registry.to_owned(),
            operation: operation.to_owned(),
            code: self.name(code),
        };
        self.calls.get_or_create(&labels).inc();
        of_registry.calls.insert(labels);
        let label = RegistryLabel { registry: registry.to_owned() };
        self.call_durations.get_or_create(&label).observe(took.as_secs_f64());
        if kind == Some(ErrorKind::Throttled) {
            self.throttles.get_or_create(&label).inc();
        }
        let away = matches!(kind, Some(ErrorKind::Unavailable | ErrorKind::UnexpectedResponse));
        self.up.get_or_create(&label).set(i64::from(!away));
    }

    /// Records that a registry cannot be called: no replica serves, or its key is missing.
    pub fn registry_down(&self, registry: &str) {
        let mut registries = self.registries();
        registries.entry(registry.to_owned()).or_default();
        self.up.get_or_create(&RegistryLabel { registry: registry.to_owned() }).set(0);
    }

    /// Records that a registry has no replicas on purpose: it is neither up nor down.
    pub fn registry_stopped(&self, registry: &str) {
        self.up.remove(&RegistryLabel { registry: registry.to_owned() });
    }

    /// Drops the series of a registry that was deleted.
    pub fn forget_registry(&self, registry: &str) {
        let mut registries = self.registries();
        let OfRegistry { calls, drift } = registries.remove(registry).unwrap_or_default();
        for labels in calls {
            self.calls.remove(&labels);
        }
        for labels in drift {
            self.drift_detected.remove(&labels);
            self.drift_corrected.remove(&labels);
        }
        let label = RegistryLabel { registry: registry.to_owned() };
        self.call_durations.remove(&label);
        self.throttles.remove(&label);
        self.up.remove(&label);
    }

    fn registries(&self) -> MutexGuard<'_, HashMap<String, OfRegistry>> {
        self.registries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn kubernetes_answered(&self, method: &http::Method, code: http::StatusCode) {
        let labels = KubernetesLabels { method: method.as_str().to_owned(), code: code.as_u16() };
        self.kubernetes_requests.get_or_create(&labels).inc();
    }

    /// Records that this replica leads, until the result is dropped.
    #[must_use]
    pub fn leading(self: &Arc<Self>) -> Leading {
        self.leader.set(1);
        self.terms.inc();
        Leading { metrics: Arc::clone(self) }
    }

    /// Sets the source of computed metrics: from when the stores are complete until the term ends.
    pub fn observe_state(&self, source: Weak<dyn StateSource>) {
        self.source.set(Some(source));
    }

    /// Returns whether the stores are complete.
    pub fn knows_state(&self) -> bool {
        self.source.get().is_some()
    }

    /// Returns the metrics in the text format of OpenMetrics.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics)?;
        Ok(text)
    }

    /// Returns the name of an error, or [`OTHER`] if there are too many, or if it does not look
    /// like a name.
    fn name(&self, name: &str) -> String {
        let plain =
            (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let known = plain
            && (names.contains(name) || (names.len() < NAMES && names.insert(name.to_owned())));
        if known { name.to_owned() } else { OTHER.to_owned() }
    }
}

/// The requeued resources of a kind whose reconcile has not begun.
#[derive(Debug)]
pub struct Queue<T> {
    depth: Gauge,
    waiting: Mutex<HashSet<T>>,
}

impl<T: Eq + Hash> Queue<T> {
    /// Records a requeued resource. A resource that waits already counts once.
    pub fn requeued(&self, resource: T) {
        self.change(|waiting| {
            waiting.insert(resource);
        });
    }

    /// Records that the reconcile of a resource begins, or that the resource is gone.
    pub fn taken(&self, resource: &T) {
        self.change(|waiting| {
            waiting.remove(resource);
        });
    }

    fn change(&self, change: impl FnOnce(&mut HashSet<T>)) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut waiting);
        self.depth.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
    }
}

/// A term of this replica.
#[derive(Debug)]
pub struct Leading {
    metrics: Arc<OperatorMetrics>,
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.metrics.leader.set(0);
        self.metrics.source.set(None);
        // A queue ends with its term.
        self.metrics.queued.clear();
    }
}

/// Collects from the source when the metrics are read. A standby has none.
#[derive(Default)]
struct StateCollector(Mutex<Option<Weak<dyn StateSource>>>);

impl StateCollector {
    fn set(&self, source: Option<Weak<dyn StateSource>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = source;
    }

    fn get(&self) -> Option<Arc<dyn StateSource>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Weak::upgrade)
    }
}

impl Debug for StateCollector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StateCollector").finish_non_exhaustive()
    }
}

impl Collector for StateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let source = self.get();
        let resources = Family::<StateLabels, Gauge>::default();
        for Resources { kind, state, count } in source.iter().flat_map(|source| source.resources())
        {
            resources
                .get_or_create(&StateLabels { kind, state })
                .inc_by(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let help = "Resources, by state";
        resources.encode(encoder.encode_descriptor(
            "resources",
            help,
            None,
            resources.metric_type(),
        )?)?;

        let tokens = Family::<TokenLabels, Gauge>::default();
        let now = Timestamp::now();
        for TokenEnd { namespace, name, ends } in source.iter().flat_map(|source| source.tokens()) {
            tokens
                .get_or_create(&TokenLabels { namespace, name })
                .set(ends.duration_since(now).as_secs());
        }
        let help = "Time until the first of a PullSecret's tokens ends; negative when it has ended";
        let unit = Some(&Unit::Seconds);
        tokens.encode(encoder.encode_descriptor(
            "pull_secret_token_remaining",
            help,
            unit,
            tokens.metric_type(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharfage_apply::error::kind_of;

    const SECOND: Duration = Duration::from_secs(1);

    fn has(metrics: &OperatorMetrics, line: &str) -> bool {
        metrics.encode().unwrap().lines().any(|have| have == line)
    }

    struct Two;

    impl StateSource for Two {
        fn resources(&self) -> Vec<Resources> {
            vec![Resources { kind: "Repository", state: "ready", count: 2 }]
        }

        fn tokens(&self) -> Vec<TokenEnd> {
            vec![TokenEnd {
                namespace: "shop".into(),
                name: "home".into(),
                ends: Timestamp::UNIX_EPOCH,
            }]
        }
    }

    #[test]
    fn every_metric_is_in_the_documentation() {
        let metrics = Arc::new(OperatorMetrics::new());
        metrics.reconciled("Repository", ResultLabel::ready, SECOND);
        metrics.failed("Repository", &Reason::OwnedByAnother);
        metrics.know_registry("home");
        metrics.drift_detected("Repository", "home", 1);
        metrics.drift_corrected("Repository", "home", 1);
        metrics.called(
            "home",
            "ListImages",
            "ThrottlingException",
            Some(ErrorKind::Throttled),
            SECOND,
        );
        metrics.kubernetes_answered(&http::Method::GET, http::StatusCode::OK);
        metrics.queue::<&str>("Repository");
        let text = metrics.encode().unwrap();
        let encoded: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        // A family without a series is not encoded, so each must have one here. The source adds
        // two.
        let registered = format!("{:?}", metrics.metrics).matches("Descriptor {").count();
        assert_eq!(encoded.len(), registered + 2, "{text}");

        let documented = include_str!("../../docs/operations.md");
        for (name, kind) in encoded {
            let name = if kind == "counter" {
                format!("| `{name}_total` |")
            } else {
                format!("| `{name}` |")
            };
            assert!(documented.contains(&name), "docs/operations.md does not describe {name}");
        }
    }

    #[test]
    fn invented_names_are_bounded() {
        let metrics = OperatorMetrics::new();
        metrics.know_registry("home");
        metrics.called("home", "ListImages", "not a name\"", Some(ErrorKind::Other), SECOND);
        for number in 0..1000 {
            metrics.called(
                "home",
                "ListImages",
                &format!("Madeup{number}"),
                Some(ErrorKind::Other),
                SECOND,
            );
        }
        let text = metrics.encode().unwrap();
        let codes = text
            .lines()
            .filter(|line| line.starts_with("wharfage_operator_api_calls_total"))
            .count();
        assert_eq!(codes, NAMES + 1, "{text}");
        assert!(!text.contains("not a name"));
        // A name that was known before keeps its own series.
        metrics.called("home", "ListImages", "Madeup0", Some(ErrorKind::Other), SECOND);
        let line = r#"wharfage_operator_api_calls_total{registry="home",operation="ListImages",code="Madeup0"} 2"#;
        assert!(has(&metrics, line));
    }

    #[test]
    fn a_deleted_registry_leaves_no_series() {
        let metrics = OperatorMetrics::new();
        for registry in ["home", "away"] {
            metrics.know_registry(registry);
            metrics.called(
                registry,
                "ListImages",
                "ThrottlingException",
                Some(ErrorKind::Throttled),
                SECOND,
            );
            metrics.called(registry, "ListImages", "200", None, SECOND);
            metrics.drift_detected("Repository", registry, 3);
            metrics.drift_corrected("Repository", registry, 2);
        }
        assert!(has(&metrics, r#"wharfage_operator_api_throttles_total{registry="away"} 1"#));
        metrics.forget_registry("away");
        metrics.called("away", "ListImages", "200", None, SECOND);
        let text = metrics.encode().unwrap();
        assert!(!text.contains("away"), "{text}");
        assert!(has(
            &metrics,
            r#"wharfage_operator_drift_detected_total{kind="Repository",registry="home"} 3"#
        ));
    }

    #[test]
    fn only_the_leader_reports_resources_and_tokens() {
        let metrics = Arc::new(OperatorMetrics::new());
        let source: Arc<dyn StateSource> = Arc::new(Two);
        let resources = r#"wharfage_operator_resources{kind="Repository",state="ready"} 2"#;
        assert!(!has(&metrics, resources));
        let leading = metrics.leading();
        assert!(!metrics.knows_state());
        metrics.observe_state(Arc::downgrade(&source));
        assert!(metrics.knows_state());
        assert!(has(&metrics, resources));
        assert!(has(&metrics, "wharfage_operator_leader 1"));
        let text = metrics.encode().unwrap();
        let token = r#"wharfage_operator_pull_secret_token_remaining_seconds{namespace="shop",name="home"} -"#;
        assert!(text.contains(token), "{text}");
        drop(leading);
        assert!(!metrics.knows_state() && !has(&metrics, resources));
        assert!(has(&metrics, "wharfage_operator_leader 0"));
        assert!(has(&metrics, "wharfage_operator_leader_terms_total 1"));
    }

    #[test]
    fn a_resource_that_is_requeued_twice_waits_once() {
        let metrics = Arc::new(OperatorMetrics::new());
        let leading = metrics.leading();
        let queue = metrics.queue("Repository");
        for object in ["api", "web", "api"] {
            queue.requeued(object);
        }
        assert!(has(&metrics, r#"wharfage_operator_queue_depth{kind="Repository"} 2"#));
        queue.taken(&"api");
        assert!(has(&metrics, r#"wharfage_operator_queue_depth{kind="Repository"} 1"#));
        drop(leading);
        assert!(!metrics.encode().unwrap().contains("queue_depth{"));
    }

    #[test]
    fn a_registry_that_answers_is_up() {
        let metrics = OperatorMetrics::new();
        metrics.know_registry("home");
        for (code, up) in
            [("200", 1), ("RegistryUnavailable", 0), ("AccessDeniedException", 1), ("503", 0)]
        {
            metrics.called(
                "home",
                "ListImages",
                code,
                (code != "200").then(|| kind_of(code)),
                SECOND,
            );
            assert!(
                has(&metrics, &format!(r#"wharfage_operator_registry_up{{registry="home"}} {up}"#)),
                "{code}"
            );
        }
    }

    #[test]
    fn a_registry_without_replicas_is_down_unless_stopped() {
        let metrics = OperatorMetrics::new();
        let up = |up: u8| format!(r#"wharfage_operator_registry_up{{registry="home"}} {up}"#);
        metrics.registry_down("home");
        assert!(has(&metrics, &up(0)), "one that never served");
        metrics.called("home", "ListImages", "200", None, SECOND);
        assert!(has(&metrics, &up(1)));
        metrics.registry_down("home");
        assert!(has(&metrics, &up(0)), "one that served");
        metrics.registry_stopped("home");
        assert!(!has(&metrics, &up(0)) && !has(&metrics, &up(1)));
        metrics.registry_down("home");
        metrics.forget_registry("home");
        assert!(!metrics.encode().unwrap().contains("home"));
    }

    #[test]
    fn reconciles_are_counted_by_kind_and_outcome() {
        let metrics = OperatorMetrics::new();
        metrics.reconciled("Repository", ResultLabel::ready, SECOND);
        metrics.reconciled("Repository", ResultLabel::stalled, SECOND);
        metrics.failed("Repository", &Reason::OwnedByAnother);
        assert!(has(
            &metrics,
            r#"wharfage_operator_reconciles_total{kind="Repository",outcome="ready"} 1"#
        ));
        assert!(has(
            &metrics,
            r#"wharfage_operator_errors_total{kind="Repository",reason="OwnedByAnother"} 1"#
        ));
        assert!(has(
            &metrics,
            r#"wharfage_operator_reconcile_duration_seconds_count{kind="Repository"} 2"#
        ));
    }
}
