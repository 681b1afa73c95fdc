//! Ends every reconcile alike: writes the status, emits the event and counts.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;

use super::{Error, ReconcileResult};
use crate::context::Context;
use crate::kind::{Kind, StatusFields};
use crate::status::{self, ConditionSet, ReadyState};
use wharfage_crd::conditions::ConditionType;
use wharfage_crd::{Condition, Reason, condition};

/// Sets fields of a status.
pub(super) type Update<S> = Box<dyn FnOnce(&mut S) + Send>;

/// The result of a reconcile, as the status reports it.
pub(crate) struct Outcome<S> {
    pub(super) findings: ConditionSet,
    /// The delay after which the object is reconciled again, if nothing requeues it before.
    pub(super) next: Duration,
    /// True if it handles a request to reconcile. A reconciling object handles none in any case.
    pub(super) answers: bool,
    /// Set the kind's own fields.
    updates: Vec<Update<S>>,
}

impl<S> Outcome<S> {
    /// Sets only conditions.
    pub(super) fn new(findings: ConditionSet, next: Duration) -> Self {
        Self { findings, next, answers: true, updates: Vec::new() }
    }

    /// Adds the kind's own fields.
    pub(super) fn with_status(mut self, update: impl FnOnce(&mut S) + Send + 'static) -> Self {
        self.updates.push(Box::new(update));
        self
    }
}

/// Ends a reconcile. `complete` sets the fields that every status of the kind has.
pub(super) async fn finish<K: Kind>(
    ctx: &Context,
    api: &Api<K>,
    object: &K,
    outcome: Outcome<K::Status>,
    complete: impl FnOnce(&mut K::Status) + Send,
) -> Result<ReconcileResult, Error> {
    let Outcome { mut findings, next, answers, updates } = outcome;
    let before = object.status_or_default();
    let (generation, now) = (object.meta().generation, Time(Timestamp::now()));
    let mut after = before.clone();
    for update in updates {
        update(&mut after);
    }
    complete(&mut after);
    findings.state = status::with_reference_timeout(findings.state, before.conditions(), &now);
    after.set(generation, status::conditions(after.conditions(), generation, &findings, &now));
    let waits = matches!(findings.state, ReadyState::Reconciling(_));
    if let Some(request) = object.requested().filter(|_| answers && !waits) {
        after.set_last_handled(request);
    }
    if after != before {
        // A reconcile without news writes nothing. Otherwise each object would be written in each
        // interval.
        after.set_last_sync(now);
    }
    // The event comes first, so that a client that waits for the status finds it.
    announce(ctx, object, before.conditions(), &findings.state).await;
    status::write(&ctx.stale_cache, api, object, object.status(), &after).await?;
    if !matches!(findings.state, ReadyState::Ready(_)) {
        ctx.metrics.failed(K::NAME, &findings.state.cause().reason);
    }
    Ok(ReconcileResult::of(&findings.state, next))
}

/// Emits an event if Ready has a new reason or message.
async fn announce<K: Kind>(ctx: &Context, object: &K, before: &[Condition], state: &ReadyState) {
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

/// Ends the reconcile of a suspended object.
pub(super) async fn suspend<K: Kind>(
    ctx: &Context,
    api: &Api<K>,
    object: &K,
) -> Result<ReconcileResult, Error> {
    let before = object.status_or_default();
    let (generation, now) = (object.meta().generation, Time(Timestamp::now()));
    let conditions = status::suspended(before.conditions(), generation, &now);
    let is_new = condition(before.conditions(), ConditionType::Suspended).is_none();
    let mut after = before.clone();
    // The generation stays that of the spec that was applied: clients read a newer one as not reconciled yet.
    after.set(before.observed_generation(), conditions);
    if is_new {
        ctx.events.normal(object, Reason::Suspended, status::SUSPENDED).await;
    }
    status::write(&ctx.stale_cache, api, object, object.status(), &after).await?;
    Ok(ReconcileResult::resting())
}
