//! The controllers: one file for each kind. `reconcile` has the steps that all kinds share, and
//! this file what those use.

mod converge;
mod external;
mod finish;
mod interrupted;
pub(crate) mod lifecycle_policy;
pub(crate) mod pull_secret;
mod reconcile;
pub(crate) mod registry;
pub(crate) mod repository;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config, Error as ControllerError};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt as _};

use interrupted::Interrupted;
use reconcile::Reconciler;

use super::context::Context;
use super::kind::{Kind, StatusFields};
use super::leader::Term;
use super::metrics::ResultLabel;
use super::policy_rule::PolicyRule;
use super::registry_client::{RegistryClient, Unavailable};
use super::status::{self, Cause, ConditionSet, ReadyState};
use super::stores::StoredKind as _;
use super::triggers::QueuedKind;
use super::watch::Change;
use wharfage_apply::error::named;
use wharfage_crd::conditions::{ConditionStatus, ConditionType};
use wharfage_crd::{Condition, Reason, Registry, condition};
use wharfage_domain::names::RepositoryName;
use wharfage_plan::model::{ApiError, ErrorKind, ObservedRepository, Refused};
use wharfage_plan::{Action as Effect, Desired, FieldChange, Object, Observed, Plan, Step, plan};

/// The delay after which a resource that waits for another one is reconciled again, if nothing
/// requeues it before.
pub(crate) const REQUEUE_WAITING: Duration = Duration::from_secs(60);

/// The first delay after an operation that fails in the registry.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// The delay after which an object is reconciled again whose last write has not come back through
/// the watch.
const REQUEUE_STALE: Duration = Duration::from_millis(100);

/// An error of the API server. Everything else ends in the resource's status.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Error(#[from] kube::Error);

/// The result of a reconcile, for the controller and the metrics.
#[derive(Debug)]
pub(crate) struct ReconcileResult {
    pub next: Action,
    pub outcome: ResultLabel,
}

impl ReconcileResult {
    /// The resource is in this state, and is reconciled again after this delay.
    pub fn of(state: &ReadyState, next: Duration) -> Self {
        let outcome = match state {
            ReadyState::Ready(_) => ResultLabel::ready,
            ReadyState::Reconciling(_) => ResultLabel::reconciling,
            ReadyState::Stalled(_) => ResultLabel::stalled,
        };
        Self { next: Action::requeue(next), outcome }
    }

    /// The object is reconciled again after this delay.
    pub fn requeued(delay: Duration) -> Self {
        Self { next: Action::requeue(delay), outcome: ResultLabel::reconciling }
    }

    /// The object is reconciled again when it changes.
    pub fn resting() -> Self {
        Self { next: Action::await_change(), outcome: ResultLabel::ready }
    }
}

/// A change of a namespace, of which only the metadata are watched.
pub(crate) type NamespaceChange = Change<PartialObjectMeta<Namespace>>;

/// The controller of one kind: the shared context, what it remembers itself, and its rules for
/// requeuing. [`Reconciler`] has the steps of its reconcile.
pub(crate) trait KindController: Send + Sync + Sized + 'static {
    type Kind: QueuedKind;
    /// The number of concurrent reconciles.
    const CONCURRENCY: u16;

    fn new(ctx: Arc<Context>) -> Self;

    /// Returns the context that all controllers share.
    fn context(&self) -> &Arc<Context>;

    /// Returns the permissions that the kind needs in the cluster.
    fn rules() -> Vec<PolicyRule>;

    /// Requeues what a change concerns, besides the object itself and the objects that refer to it.
    fn changed(&self, _change: &Change<Self::Kind>) {}

    /// Requeues what depends on a namespace that changed.
    fn namespace_changed(&self, _change: &NamespaceChange) {}
}

/// Runs a controller until the term is asked to stop, then until its running reconciles have ended.
/// Only its queue triggers it.
pub(super) async fn run<C: Reconciler>(
    controller: Arc<C>,
    queue: impl Stream<Item = ObjectRef<C::Kind>> + Send + 'static,
    term: &Term,
) {
    let kind = C::Kind::NAME;
    let depth = Arc::new(controller.context().metrics.queue(kind));
    let (queued, begun, gone) = (Arc::clone(&depth), Arc::clone(&depth), depth);
    let measured = move |object: Arc<C::Kind>, controller: Arc<C>| {
        begun.taken(&(object.namespace(), object.name_any()));
        let began = Instant::now();
        async move {
            if controller.context().stale_cache.is_stale(&*object) {
                return Ok(Action::requeue(REQUEUE_STALE));
            }
            let done = reconcile::reconcile(&*controller, &*object).await;
            let outcome = done.as_ref().map_or(ResultLabel::failed, |done| done.outcome);
            controller.context().metrics.reconciled(kind, outcome, began.elapsed());
            done.map(|done| done.next)
        }
    };
    let stopping = term.clone();
    let store = C::Kind::store(&controller.context().stores);
    Controller::for_shared_stream(stream::pending(), (**store).clone())
        .with_config(Config::default().concurrency(C::CONCURRENCY))
        .reconcile_on(queue.inspect(move |object| {
            queued.requeued((object.namespace.clone(), object.name.clone()))
        }))
        .graceful_shutdown_on(async move { stopping.stopping().await })
        .run(measured, error_policy, controller)
        .for_each(|outcome| {
            match outcome {
                Ok(_) => {}
                Err(ControllerError::ObjectNotFound(object)) => {
                    gone.taken(&(object.namespace, object.name))
                }
                Err(error) => tracing::debug!(kind, %error, "reconcile failed"),
            }
            std::future::ready(())
        })
        .await;
}

/// Requeues an object after an error of the API server.
fn error_policy<C: KindController>(object: Arc<C::Kind>, error: &Error, _: Arc<C>) -> Action {
    let kind = C::Kind::NAME;
    tracing::warn!(kind, namespace = object.namespace(), name = object.name_any(), %error, "the API server refused");
    Action::requeue(jittered(Duration::from_secs(5)))
}

/// Changes a delay by up to a tenth, so that reconciles that began together do not recur together.
pub(super) fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// Returns the conditions of a resource whose Registry does not exist.
pub(super) fn registry_missing(name: &str) -> ConditionSet {
    let message = format!("Registry {name:?} does not exist: make it, or correct registryRef");
    let cause = Cause::new(Reason::ReferenceNotFound, message);
    ConditionSet {
        references: Some(Err(cause.clone())),
        ..ConditionSet::of(ReadyState::Reconciling(cause))
    }
}

/// A Registry and its client.
type Registered = (Arc<Registry>, Arc<RegistryClient>);

/// Returns the Registry of this name and its client.
pub(super) fn registered(ctx: &Context, name: &str) -> Result<Registered, Interrupted> {
    let registry = ctx.stores.registry(name).ok_or(Interrupted::RegistryMissing)?;
    match ctx.registry_clients.get(name) {
        Some(client) => Ok((registry, client)),
        None => Err(Interrupted::RegistryNotReady(registry)),
    }
}

/// Returns the conditions of a resource whose Registry has no client.
pub(super) fn registry_not_ready(registry: &Registry) -> ConditionSet {
    let conditions =
        registry.status.as_ref().map(|it| it.conditions.as_slice()).unwrap_or_default();
    let why = condition(conditions, ConditionType::Ready).map(|it| it.message.as_str());
    let message = format!(
        "Registry {} is not ready: {}",
        registry.name_any(),
        why.unwrap_or("it was not reconciled yet")
    );
    let state = ReadyState::Reconciling(Cause::new(Reason::RegistryNotReady, message));
    ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) }
}

/// Returns the state of a resource whose registry is unavailable, and the jittered delay of the
/// next attempt.
pub(super) fn unavailable(unavailable: &Unavailable, registry: &str) -> (ReadyState, Duration) {
    let cause = Cause::new(Reason::RegistryUnavailable, unavailable.message(registry));
    (ReadyState::Reconciling(cause), unavailable.retry.mul_f64(1.0 + fastrand::f64()))
}

/// Returns the state of a resource that a plan refuses. A missing object is awaited.
pub(super) fn refusal(refused: &Refused) -> ReadyState {
    let Refused { reason, message, .. } = refused;
    match reason {
        Reason::ReferenceNotFound | Reason::NotFound => {
            ReadyState::Reconciling(Cause::new(reason.clone(), message))
        }
        // It may be the name of an error with which the registry answered a read.
        _ => refused_by_registry(named(reason.as_str(), message)),
    }
}

/// Returns the state of a resource whose request failed. An unavailable registry is awaited; any
/// other error needs someone to change something.
pub(super) fn refused_by_registry(ApiError { kind, name, message }: ApiError) -> ReadyState {
    match kind {
        ErrorKind::Unavailable
        | ErrorKind::CredentialsUnavailable
        | ErrorKind::UnexpectedResponse
        | ErrorKind::ServiceUnavailable => {
            ReadyState::Reconciling(Cause::new(Reason::RegistryUnavailable, message))
        }
        _ => ReadyState::Stalled(Cause::new(Reason::of_error(&name), message)),
    }
}

/// Returns the delay after which a resource in this state is reconciled again: its interval, or
/// less while it waits. `before` are its last conditions. A failing operation is retried with
/// exponential backoff: the next delay equals the time it has been failing.
pub(super) fn next(
    state: &ReadyState,
    before: &[Condition],
    interval: Duration,
    now: Timestamp,
) -> Duration {
    match state {
        ReadyState::Ready(_) | ReadyState::Stalled(_) => jittered(interval),
        ReadyState::Reconciling(cause) if cause.reason == Reason::RegistryUnavailable => {
            let waiting = condition(before, ConditionType::Ready)
                .filter(|it| it.has_reason(&Reason::RegistryUnavailable));
            let since = waiting.map(|it| now.duration_since(it.last_transition_time.0));
            let waited = since.and_then(|it| Duration::try_from(it).ok()).unwrap_or_default();
            jittered(waited.clamp(FIRST_RETRY, REQUEUE_WAITING))
        }
        ReadyState::Reconciling(_) => jittered(interval.min(REQUEUE_WAITING)),
    }
}

/// Shows changes in one line.
pub(super) fn show(changes: &[FieldChange]) -> String {
    let none = || "(none)".to_owned();
    let show = |change: &FieldChange| match change.sides() {
        (None, None) => change.field.clone(),
        (from, to) => format!(
            "{}: {} -> {}",
            change.field,
            from.unwrap_or_else(none),
            to.unwrap_or_else(none)
        ),
    };
    changes.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// Returns whether a resource changed since its reconcile began: another spec, being deleted, or
/// gone. A plan from the stores is then not about the version that this reconcile has. Once true,
/// it stays true.
pub(super) fn is_outdated<K>(store: &Store<K>, object: &K) -> bool
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let whose = |it: &K| {
        let meta = it.meta();
        (meta.uid.clone(), meta.generation, meta.deletion_timestamp.clone())
    };
    store.get(&ObjectRef::from_obj(object)).is_none_or(|it| whose(&it) != whose(object))
}

/// Returns a plan's step for a resource that is not being deleted. Never returns a Retain or Delete
/// step: the removal policy stored in tags may be stale, and only the resource being deleted knows
/// the current one.
pub(super) fn step_for(plan: Plan, object: &Object) -> Result<Option<Step>, Refused> {
    let stays =
        |it: &Step| it.object == *object && !matches!(it.action, Effect::Retain | Effect::Delete);
    match plan.refused.into_iter().find(|it| it.object == *object) {
        Some(refused) => Err(refused),
        None => Ok(plan.steps.into_iter().find(stays)),
    }
}

/// Plans for one repository.
pub(super) fn plan_for(
    desired: &Desired,
    name: &RepositoryName,
    found: Option<ObservedRepository>,
) -> Plan {
    let repositories = found.into_iter().map(|found| (name.clone(), found)).collect();
    plan(desired, &Observed { repositories, ..Observed::default() })
}

/// The state of a resource after its last reconcile. It decides whether a difference found now is
/// drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastSync {
    /// The registry was as the resource asks.
    InSync,
    /// Drift was reported, and could not be corrected.
    Drifted,
    /// The registry was never as the current spec asks.
    NeverSynced,
}

impl LastSync {
    pub(super) fn of_object<K: Kind>(object: &K) -> Self {
        let observed = object.status().and_then(StatusFields::observed_generation);
        Self::of(object.meta().generation, observed, object.conditions())
    }

    /// Returns the state of an object of this generation, whose status observed the generation
    /// `observed` and has these conditions.
    pub(super) fn of(
        generation: Option<i64>,
        observed: Option<i64>,
        conditions: &[Condition],
    ) -> Self {
        let drifted = || {
            condition(conditions, ConditionType::Drifted)
                .filter(|it| it.status == ConditionStatus::True)
        };
        if observed != generation {
            Self::NeverSynced
        } else if status::is_ready(conditions) {
            Self::InSync
        } else if drifted().is_some_and(|it| it.observed_generation == generation) {
            Self::Drifted
        } else {
            Self::NeverSynced
        }
    }

    /// Returns whether a difference is drift.
    pub(super) fn is_drift(self) -> bool {
        self != Self::NeverSynced
    }

    /// Returns the condition of an earlier correction, which stays until there is other news.
    pub(super) fn still_reported(self, conditions: &[Condition]) -> Option<(bool, Cause)> {
        let reported = condition(conditions, ConditionType::Drifted)
            .filter(|it| it.has_reason(&Reason::DriftCorrected));
        let reported = reported.filter(|_| self == Self::InSync)?;
        Some((false, Cause::new(Reason::DriftCorrected, &*reported.message)))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::runtime::reflector::store;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::finalizer::FINALIZER;
    use wharfage_crd::Repository;
    use wharfage_domain::tag_mutability::TagMutability;
    use wharfage_plan::ownership::{Manages, OnRemoval, Owner, Ownership};

    #[test]
    fn changed_deleted_and_missing_objects_are_outdated() {
        let repository = |change: Value| -> Repository {
            let mut metadata =
                json!({ "namespace": "shop", "name": "api", "uid": "1", "generation": 3 });
            metadata.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let spec = json!({ "registryRef": { "name": "home" } });
            serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
        };
        let begun_with = repository(json!({ "resourceVersion": "7" }));
        let outdated = |now: Option<Repository>| {
            let (store, mut writer) = store();
            if let Some(now) = now {
                writer.apply_watcher_event(&Event::Apply(now));
            }
            is_outdated(&store, &begun_with)
        };
        assert!(!outdated(Some(begun_with.clone())));
        let status =
            json!({ "resourceVersion": "8", "labels": { "a": "b" }, "finalizers": [FINALIZER] });
        assert!(!outdated(Some(repository(status))), "what it says is the same");
        for change in [
            json!({ "generation": 4 }),
            json!({ "uid": "2" }),
            json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }),
        ] {
            assert!(outdated(Some(repository(change.clone()))), "{change}");
        }
        assert!(outdated(None));
    }

    #[test]
    fn the_removal_policy_of_tags_is_never_planned() {
        let object =
            Object { kind: "Repository", namespace: "shop".to_owned(), name: "api".to_owned() };
        let desired = Desired {
            cluster: "local".to_owned(),
            registry: "home".to_owned(),
            ..Desired::default()
        };
        for on_removal in [OnRemoval::Retain, OnRemoval::Delete, OnRemoval::DeleteWithImages] {
            let manages = Manages { on_removal, ..Manages::default() };
            let owner = Some(Owner::new("local", &object));
            let found = ObservedRepository {
                arn: String::new(),
                tag_mutability: TagMutability::MUTABLE,
                scan_on_push: false,
                encryption: ("AES256".to_owned(), None),
                tags: Ownership { owner, manages, lifecycle: None }.tags(),
                policy: None,
                lifecycle_policy: None,
                preview: None,
            };
            // This is the plan when the resource is no longer among the others.
            let plan = plan_for(&desired, &"shop/api".parse().unwrap(), Some(found));
            assert_eq!(plan.steps[0].object, object);
            assert_eq!(step_for(plan, &object), Ok(None));
        }
    }

    fn error(name: &str) -> ApiError {
        named(name, "no")
    }

    #[test]
    fn unavailable_registries_are_awaited_and_other_errors_stall() {
        for name in [
            "RegistryUnavailable",
            "CredentialsUnavailable",
            "UnexpectedResponse",
            "ServiceUnavailableException",
        ] {
            assert_eq!(
                refused_by_registry(error(name)),
                ReadyState::Reconciling(Cause::new(Reason::RegistryUnavailable, "no"))
            );
        }
        for name in ["ServerException", "LimitExceededException", "AccessDeniedException"] {
            assert_eq!(
                refused_by_registry(error(name)),
                ReadyState::Stalled(Cause::new(Reason::of_error(name), "no"))
            );
        }
    }

    #[test]
    fn a_failing_operation_is_retried_with_backoff() {
        let now = Timestamp::now();
        let waits = refused_by_registry(error("RegistryUnavailable"));
        let next = |seconds: i64| {
            let since = Time(now - Duration::from_secs(seconds.unsigned_abs()));
            let before = status::conditions(&[], Some(1), &ConditionSet::of(waits.clone()), &since);
            next(&waits, &before, Duration::from_secs(600), now).as_secs_f64()
        };
        for (waited, expected) in [(0, 5.0), (3, 5.0), (20, 20.0), (3600, 60.0)] {
            let pause = next(waited);
            assert!(
                (expected * 0.9..expected * 1.1).contains(&pause),
                "{pause} s after {waited} s"
            );
        }
        let first = super::next(&waits, &[], Duration::from_secs(600), now).as_secs_f64();
        assert!((4.5..5.5).contains(&first), "{first}");
    }

    #[test]
    fn a_difference_is_drift_after_a_sync_of_this_generation() {
        let conditions = |generation, ready: bool, drifted| {
            let cause = Cause::new(Reason::of_error("Some"), "");
            let state = if ready { ReadyState::Ready(cause) } else { ReadyState::Stalled(cause) };
            let reported = Some((
                drifted,
                Cause::new(
                    if drifted { Reason::DriftDetected } else { Reason::DriftCorrected },
                    "mutability",
                ),
            ));
            let findings = ConditionSet { drifted: reported, ..ConditionSet::of(state) };
            status::conditions(&[], Some(generation), &findings, &Time(Timestamp::UNIX_EPOCH))
        };
        let past = |observed, conditions: &[Condition]| LastSync::of(Some(2), observed, conditions);
        assert_eq!(past(Some(2), &conditions(2, true, false)), LastSync::InSync);
        assert_eq!(past(Some(2), &conditions(2, false, true)), LastSync::Drifted);
        assert_eq!(
            past(Some(2), &conditions(2, false, false)),
            LastSync::NeverSynced,
            "it was never in line"
        );
        assert_eq!(
            past(Some(1), &conditions(1, true, false)),
            LastSync::NeverSynced,
            "another spec"
        );
        assert_eq!(
            past(Some(2), &conditions(1, false, true)),
            LastSync::NeverSynced,
            "what another spec's look had found"
        );
        assert_eq!(past(None, &[]), LastSync::NeverSynced);
        let corrected = conditions(2, true, false);
        assert_eq!(
            LastSync::InSync.still_reported(&corrected),
            Some((false, Cause::new(Reason::DriftCorrected, "mutability")))
        );
        assert_eq!(LastSync::Drifted.still_reported(&conditions(2, false, true)), None);
        assert_eq!(LastSync::NeverSynced.still_reported(&corrected), None);
    }

    #[test]
    fn a_waiting_object_is_reconciled_within_a_minute() {
        let waits = ReadyState::Reconciling(Cause::new(Reason::ReferenceNotFound, "no"));
        for (interval, expected) in [(1, 1.0), (600, 60.0)] {
            let pause =
                next(&waits, &[], Duration::from_secs(interval), Timestamp::now()).as_secs_f64();
            assert!((expected * 0.9..expected * 1.1).contains(&pause), "{pause}");
        }
    }
}
