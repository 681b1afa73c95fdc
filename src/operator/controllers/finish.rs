//! Ends every reconcile alike: writes the status, emits the event, counts, and says when to reconcile again.

use std::fmt::Debug;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::object::HasStatus;
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, LastSync, REQUESTED_AT, ReconcileResult};
use crate::context::Context;
use crate::status::{self, ConditionSet, ReadyState};
use wharfage_crd::conditions::ConditionType;
use wharfage_crd::{
    Condition, LifecyclePolicyStatus, PullSecretStatus, Reason, RegistryStatus, RepositoryStatus, condition,
};

/// The fields that the statuses of all kinds have.
pub(crate) trait StatusFields: Clone + Default + PartialEq + Serialize + Send + Sync {
    /// Whether an event tells of each new reason of Ready. Otherwise only of what is stalled: when a registry fails, its
    /// Registry says so, and not each of its resources.
    const EVENT_ON_NEW_REASON: bool;

    /// The conditions.
    fn conditions(&self) -> &[Condition];
    /// The generation that the status is about.
    fn observed_generation(&self) -> Option<i64>;
    /// The last request to reconcile that was answered.
    fn last_handled(&self) -> Option<&String>;
    /// Sets the fields that all kinds have.
    fn set(&mut self, generation: Option<i64>, conditions: Vec<Condition>);
    /// Sets the request to reconcile that is answered.
    fn set_last_handled(&mut self, request: String);
    /// Sets when the status last changed, where the kind has such a field.
    fn set_last_sync(&mut self, now: Time);
}

/// Implements [`StatusFields`] for a kind's status.
macro_rules! status_fields {
    ($status:ty, events: $events:literal, last_sync: |$self:ident, $now:ident| $set:expr) => {
        impl StatusFields for $status {
            const EVENT_ON_NEW_REASON: bool = $events;

            fn conditions(&self) -> &[Condition] {
                &self.conditions
            }

            fn observed_generation(&self) -> Option<i64> {
                self.observed_generation
            }

            fn last_handled(&self) -> Option<&String> {
                self.last_handled_reconcile_at.as_ref()
            }

            fn set(&mut self, generation: Option<i64>, conditions: Vec<Condition>) {
                self.observed_generation = generation;
                self.conditions = conditions;
            }

            fn set_last_handled(&mut self, request: String) {
                self.last_handled_reconcile_at = Some(request);
            }

            fn set_last_sync(&mut $self, $now: Time) {
                $set
            }
        }
    };
}
status_fields!(RegistryStatus, events: true, last_sync: |self, _now| {});
status_fields!(RepositoryStatus, events: false, last_sync: |self, now| self.last_sync_time = Some(now));
status_fields!(LifecyclePolicyStatus, events: false, last_sync: |self, now| self.last_sync_time = Some(now));
status_fields!(PullSecretStatus, events: false, last_sync: |self, _now| {});

/// An object whose status has the fields of all kinds.
pub(crate) trait KindObject:
    Resource<DynamicType = ()> + HasStatus<Status: StatusFields> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
    /// The status, empty if there is none yet.
    fn status_or_default(&self) -> Self::Status {
        self.status().cloned().unwrap_or_default()
    }

    /// The conditions of the status.
    fn conditions(&self) -> &[Condition] {
        self.status().map(StatusFields::conditions).unwrap_or_default()
    }

    /// The request to reconcile now, if it was not answered yet.
    fn requested(&self) -> Option<String> {
        let asked = self.meta().annotations.as_ref()?.get(REQUESTED_AT)?;
        (Some(asked) != self.status().and_then(StatusFields::last_handled)).then(|| asked.clone())
    }

    /// What is known of the object from its last reconcile.
    fn past(&self) -> LastSync {
        let observed = self.status().and_then(StatusFields::observed_generation);
        LastSync::of(self.meta().generation, observed, self.conditions())
    }
}

impl<K> KindObject for K where
    K: Resource<DynamicType = ()>
        + HasStatus<Status: StatusFields>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// Sets fields of a status.
type Update<S> = Box<dyn FnOnce(&mut S) + Send>;

/// What a reconcile found out.
pub(super) struct Outcome<S> {
    /// How the resource stands.
    pub(super) findings: ConditionSet,
    /// When to reconcile again, if nothing requeues the resource before.
    pub(super) next: Duration,
    /// Whether a request to reconcile is answered by it. What is waited for answers none in any case.
    pub(super) answers: bool,
    /// Set the fields of the kind.
    updates: Vec<Update<S>>,
}

impl<S> Outcome<S> {
    /// Only how the resource stands.
    pub(super) fn new(findings: ConditionSet, next: Duration) -> Self {
        Self { findings, next, answers: true, updates: Vec::new() }
    }

    /// The same, with fields of the kind's own.
    pub(super) fn with_status(mut self, update: impl FnOnce(&mut S) + Send + 'static) -> Self {
        self.updates.push(Box::new(update));
        self
    }
}

/// Ends a reconcile.
pub(super) async fn finish<K: KindObject>(
    ctx: &Context,
    api: &Api<K>,
    object: &K,
    outcome: Outcome<K::Status>,
) -> Result<ReconcileResult, Error> {
    let Outcome { findings, next, answers, updates } = outcome;
    let before = object.status_or_default();
    let (generation, now) = (object.meta().generation, Time(Timestamp::now()));
    let mut after = before.clone();
    for update in updates {
        update(&mut after);
    }
    after.set(generation, status::conditions(before.conditions(), generation, &findings, &now));
    let waits = matches!(findings.state, ReadyState::Reconciling(_));
    if let Some(request) = object.requested().filter(|_| answers && !waits) {
        after.set_last_handled(request);
    }
    if after != before {
        // A reconcile that finds nothing new writes nothing: else each resource would be written in each interval.
        after.set_last_sync(now);
    }
    // The event comes first, so that whoever waited for the status finds it.
    announce(ctx, object, before.conditions(), &findings.state).await;
    status::write(&ctx.stale_cache, api, object, object.status(), &after).await?;
    if !matches!(findings.state, ReadyState::Ready(_)) {
        ctx.metrics.failed(kind::<K>(), &findings.state.cause().reason);
    }
    Ok(ReconcileResult::of(&findings.state, next))
}

/// Emits an event if a condition says something new.
async fn announce<K: KindObject>(ctx: &Context, object: &K, before: &[Condition], state: &ReadyState) {
    let (was, cause) = (condition(before, ConditionType::Ready), state.cause());
    let new_reason = was.is_none_or(|was| !was.has_reason(&cause.reason));
    let new_message = new_reason || was.is_some_and(|was| was.message != cause.message);
    match state {
        ReadyState::Stalled(_) if new_message => {
            ctx.events.warning(object, cause.reason.clone(), &cause.message).await;
        }
        ReadyState::Reconciling(_) if new_reason && K::Status::EVENT_ON_NEW_REASON => {
            ctx.events.warning(object, cause.reason.clone(), &cause.message).await;
        }
        ReadyState::Ready(_) if new_reason && K::Status::EVENT_ON_NEW_REASON => {
            ctx.events.normal(object, cause.reason.clone(), &cause.message).await;
        }
        _ => {}
    }
}

/// Ends the reconcile of a suspended resource: nothing is done for it.
pub(super) async fn suspend<K: KindObject>(ctx: &Context, api: &Api<K>, object: &K) -> Result<ReconcileResult, Error> {
    let before = object.status_or_default();
    let mut after = before.clone();
    after.set(object.meta().generation, status::suspended(before.conditions()));
    if object.status() != Some(&after) {
        ctx.events.normal(object, Reason::Suspended, "reconciliation is suspended").await;
    }
    status::write(&ctx.stale_cache, api, object, object.status(), &after).await?;
    Ok(ReconcileResult::resting())
}

/// The name of a kind, which is a constant for all kinds of ours.
fn kind<K: KindObject>() -> &'static str {
    match K::kind(&()) {
        std::borrow::Cow::Borrowed(kind) => kind,
        std::borrow::Cow::Owned(_) => "Other",
    }
}
