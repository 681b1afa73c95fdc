//! The reconcile of every kind: suspended, being deleted, or dereferenced, applied and reported. A
//! kind supplies the steps.

use jiff::Timestamp;
use kube::core::object::HasStatus;
use kube::{Api, Resource as _, ResourceExt as _};

use super::converge::Drift;
use super::finish::{Outcome, finish, suspend};
use super::interrupted::{Ending, Facts, Interrupted};
use super::{Error, KindController, LastSync, ReconcileResult, is_outdated};
use crate::context::Context;
use crate::finalizer;
use crate::kind::{Kind, StatusFields as _, api_of};
use crate::registry_client::Freshness;
use crate::status::{self, Cause, ReadyState};
use crate::stores::StoredKind;
use wharfage_plan::Object;

/// The status of a controller's kind.
pub(super) type Status<C> = <<C as KindController>::Kind as HasStatus>::Status;

/// The steps that a kind supplies.
pub(crate) trait Reconciler: KindController {
    /// The referenced objects that the other steps need, such as the client of the registry.
    type Inputs: Send;

    /// Looks up the referenced objects, and reads the spec.
    fn dereference(
        &self,
        reconcile: &Reconcile<'_, Self::Kind>,
    ) -> Result<Self::Inputs, Interrupted>;

    /// Returns whether the object needs the finalizer, which is added before [`Self::apply`].
    fn needs_finalizer(&self, object: &Self::Kind) -> bool;

    /// Makes what the object represents match the spec, and reports the result.
    fn apply(
        &self,
        reconcile: &Reconcile<'_, Self::Kind>,
        inputs: Self::Inputs,
    ) -> impl Future<Output = Result<Outcome<Status<Self>>, Interrupted>> + Send;

    /// Releases or deletes what the object represents, because the object is being deleted.
    fn release(
        &self,
        reconcile: &Reconcile<'_, Self::Kind>,
    ) -> impl Future<Output = Result<(), Interrupted>> + Send;

    /// Returns whether the finalizer stays until the release succeeds. Otherwise a failing release
    /// does not block the deletion.
    fn must_release(&self, object: &Self::Kind) -> bool;

    /// Returns the cause if a referenced object, other than the Registry, does not exist.
    fn missing_reference(&self, object: &Self::Kind) -> Option<Cause> {
        self.context().stores.missing_reference(object)
    }

    /// Sets the fields that every status of the kind has, whatever the result.
    fn complete_status(&self, _status: &mut Status<Self>) {}
}

/// One reconcile of an object.
pub(crate) struct Reconcile<'a, K: Kind> {
    pub(super) ctx: &'a Context,
    pub(super) api: Api<K>,
    pub(super) object: &'a K,
    /// The object as plans and tags name it.
    pub(super) id: Object,
}

impl<'a, K: Kind> Reconcile<'a, K> {
    pub(super) fn new(ctx: &'a Context, object: &'a K) -> Self {
        let id = Object {
            kind: K::NAME,
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
        };
        Self { ctx, api: api_of(&ctx.client, object), object, id }
    }

    pub(super) fn registry_name(&self) -> &'a str {
        self.object.registry_name()
    }

    pub(super) fn last_sync(&self) -> LastSync {
        LastSync::of_object(self.object)
    }

    pub(super) fn freshness(&self) -> Freshness {
        Freshness { interval: self.object.sync_interval(), now: self.object.requested().is_some() }
    }

    pub(super) fn drift(&self) -> Drift<'a> {
        Drift { ctx: self.ctx, kind: K::NAME, registry: self.registry_name() }
    }
}

impl<K: StoredKind> Reconcile<'_, K> {
    /// Returns whether the object changed since the reconcile began. Ask it after reading the
    /// stores: a change that they already show is then noticed.
    pub(super) fn is_outdated(&self) -> bool {
        is_outdated(K::store(&self.ctx.stores), self.object)
    }
}

/// Decides how an interrupted reconcile ends.
pub(super) fn ending<C: Reconciler>(
    controller: &C,
    object: &C::Kind,
    interrupted: Interrupted,
) -> Result<Ending, Error> {
    interrupted.ending(Facts {
        registry: object.registry_name(),
        before: object.conditions(),
        interval: object.sync_interval(),
        missing_reference: controller.missing_reference(object),
        now: Timestamp::now(),
    })
}

/// Makes the outcome of an interrupted reconcile, to which the kind adds fields of its status.
pub(super) fn outcome_of<C: Reconciler>(
    controller: &C,
    object: &C::Kind,
    interrupted: Interrupted,
) -> Result<Outcome<Status<C>>, Interrupted> {
    if matches!(interrupted, Interrupted::Requeue(_) | Interrupted::Gone) {
        return Err(interrupted);
    }
    match ending(controller, object, interrupted)? {
        Ending::Conditions(conditions, next) => Ok(Outcome::new(conditions, next)),
        Ending::Unwritten(_) => Err(Interrupted::Gone),
    }
}

/// Reconciles one object.
pub(super) async fn reconcile<C: Reconciler>(
    controller: &C,
    object: &C::Kind,
) -> Result<ReconcileResult, Error> {
    let ctx = controller.context();
    let reconcile = Reconcile::new(ctx, object);
    if object.meta().deletion_timestamp.is_some() {
        return cleanup(controller, &reconcile).await;
    }
    if object.is_suspended() {
        return suspend(ctx, &reconcile.api, object).await;
    }
    let result = match controller.dereference(&reconcile) {
        Ok(inputs) => {
            if controller.needs_finalizer(object) {
                finalizer::add(&reconcile.api, object).await?;
            }
            controller.apply(&reconcile, inputs).await
        }
        Err(interrupted) => Err(interrupted),
    };
    end(controller, &reconcile, result).await
}

/// Writes the result of a reconcile to the status.
async fn end<C: Reconciler>(
    controller: &C,
    reconcile: &Reconcile<'_, C::Kind>,
    result: Result<Outcome<Status<C>>, Interrupted>,
) -> Result<ReconcileResult, Error> {
    match result {
        Ok(outcome) => report(controller, reconcile, outcome).await,
        Err(interrupted) => match ending(controller, reconcile.object, interrupted)? {
            Ending::Conditions(conditions, next) => {
                report(controller, reconcile, Outcome::new(conditions, next)).await
            }
            Ending::Unwritten(result) => Ok(result),
        },
    }
}

/// Writes the status, and requeues the objects that waited for this one to become Ready.
async fn report<C: Reconciler>(
    controller: &C,
    reconcile: &Reconcile<'_, C::Kind>,
    outcome: Outcome<Status<C>>,
) -> Result<ReconcileResult, Error> {
    let Reconcile { ctx, api, object, .. } = reconcile;
    let is_ready = matches!(outcome.findings.state, ReadyState::Ready(_));
    let complete = |status: &mut Status<C>| {
        controller.complete_status(status);
        status.set_users(|| ctx.stores.count_referrers(*object));
    };
    let result = finish(ctx, api, *object, outcome, complete).await?;
    if is_ready && !status::is_ready(object.conditions()) && C::Kind::READY_REQUEUES_REFERRERS {
        ctx.triggers.requeue_referrers(&ctx.stores, &[*object]);
    }
    Ok(result)
}

/// Releases what the object represents, and removes the finalizer.
async fn cleanup<C: Reconciler>(
    controller: &C,
    reconcile: &Reconcile<'_, C::Kind>,
) -> Result<ReconcileResult, Error> {
    let object = reconcile.object;
    if !finalizer::has(object) {
        return Ok(ReconcileResult::resting());
    }
    if let Err(interrupted) = controller.release(reconcile).await {
        match ending(controller, object, interrupted)? {
            Ending::Unwritten(result) => return Ok(result),
            Ending::Conditions(conditions, next) if controller.must_release(object) => {
                return report(controller, reconcile, Outcome::new(conditions, next)).await;
            }
            Ending::Conditions(conditions, _) => {
                // What stays in the registry has no owner once the object is gone, even if its tags
                // still name one.
                let why = &conditions.state.cause().message;
                tracing::info!(object = %reconcile.id, why, "released without the registry");
            }
        }
    }
    finalizer::remove(&reconcile.api, object).await?;
    Ok(ReconcileResult::resting())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::StreamExt as _;
    use kube::runtime::controller::Action;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::events::Events;
    use crate::fake_kubernetes::FakeKubernetes;
    use crate::leader::Term;
    use crate::managed_namespaces::ManagedNamespaces;
    use crate::metrics::OperatorMetrics;
    use crate::policy_rule::PolicyRule;
    use crate::registry_client::RegistryClients;
    use crate::secrets::SecretWatches;
    use crate::settings::Settings;
    use crate::stale_cache::StaleCache;
    use crate::status::ConditionSet;
    use crate::stores::{Stores, Writers};
    use crate::triggers::{Queues, Triggers};
    use crate::watch::Keeper as _;
    use wharfage_crd::{Reason, Repository};

    type Ending = Result<ReadyState, Interrupted>;

    /// A controller whose steps end as a test says, and that records them.
    struct Scripted {
        ctx: Arc<Context>,
        steps: Mutex<Vec<String>>,
        apply: Mutex<Option<Ending>>,
        release: Mutex<Option<Interrupted>>,
        must_release: bool,
    }

    impl KindController for Scripted {
        type Kind = Repository;
        const CONCURRENCY: u16 = 1;

        fn new(ctx: Arc<Context>) -> Self {
            let (steps, apply, release) = (Mutex::default(), Mutex::default(), Mutex::default());
            Self { ctx, steps, apply, release, must_release: false }
        }

        fn context(&self) -> &Arc<Context> {
            &self.ctx
        }

        fn rules() -> Vec<PolicyRule> {
            Vec::new()
        }
    }

    impl Reconciler for Scripted {
        type Inputs = ();

        fn dereference(&self, _reconcile: &Reconcile<'_, Repository>) -> Result<(), Interrupted> {
            self.steps.lock().unwrap().push("dereference".to_owned());
            Ok(())
        }

        fn needs_finalizer(&self, _object: &Repository) -> bool {
            true
        }

        async fn apply(
            &self,
            _reconcile: &Reconcile<'_, Repository>,
            (): (),
        ) -> Result<Outcome<Status<Self>>, Interrupted> {
            self.steps.lock().unwrap().push("apply".to_owned());
            let state = self.apply.lock().unwrap().take().unwrap()?;
            Ok(Outcome::new(ConditionSet::of(state), std::time::Duration::from_secs(600)))
        }

        async fn release(&self, _reconcile: &Reconcile<'_, Repository>) -> Result<(), Interrupted> {
            self.steps.lock().unwrap().push("release".to_owned());
            self.release.lock().unwrap().take().map_or(Ok(()), Err)
        }

        fn must_release(&self, _object: &Repository) -> bool {
            self.must_release
        }
    }

    struct Bench {
        cluster: FakeKubernetes,
        controller: Scripted,
        writers: Writers,
        queues: Queues,
    }

    impl Bench {
        fn new() -> Self {
            let cluster = FakeKubernetes::default();
            let ((stores, writers), (triggers, queues)) = (Stores::new(), Triggers::new());
            let settings = Settings {
                cluster: "local".to_owned(),
                namespace: "wharfage".to_owned(),
                identity: "one".to_owned(),
                without: Vec::new(),
                managed_namespaces: ManagedNamespaces::Every,
                registry_image: None,
            };
            let ctx = Arc::new(Context {
                client: cluster.client(),
                settings,
                stores,
                registry_clients: RegistryClients::default(),
                secret_watches: SecretWatches::default(),
                triggers,
                events: Events::new(cluster.client(), "one"),
                metrics: Arc::new(OperatorMetrics::new()),
                term: Term::unlimited(),
                stale_cache: StaleCache::default(),
            });
            Self { cluster, controller: Scripted::new(ctx), writers, queues }
        }

        /// Reconciles a Repository with this metadata and spec, and returns the next action.
        async fn reconcile(&self, metadata: Value, spec: Value) -> Action {
            let mut object = json!({
                "apiVersion": "wharfage.dev/v1alpha1",
                "kind": "Repository",
                "metadata": { "namespace": "shop", "name": "api", "uid": "1", "generation": 1 },
                "spec": { "registryRef": { "name": "home" } },
            });
            object["metadata"]
                .as_object_mut()
                .unwrap()
                .extend(metadata.as_object().unwrap().clone());
            object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            self.cluster.create("repositories", object.clone());
            let object: Repository = serde_json::from_value(object).unwrap();
            reconcile(&self.controller, &object).await.unwrap().next
        }

        fn steps(&self) -> Vec<String> {
            self.controller.steps.lock().unwrap().clone()
        }

        /// Returns the Repository as it is in the cluster.
        fn stored(&self) -> Repository {
            let stored = self.cluster.get("repositories", "shop", "api").unwrap();
            serde_json::from_value(stored).unwrap()
        }

        fn ready_reason(&self) -> Option<String> {
            self.stored().conditions().first().map(|it| it.reason.clone())
        }
    }

    fn ready() -> Ending {
        Ok(ReadyState::Ready(Cause::new(Reason::InSync, "as it should be")))
    }

    fn deleted() -> Value {
        json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer::FINALIZER] })
    }

    #[tokio::test]
    async fn a_reconcile_adds_the_finalizer_and_reports_the_result() {
        let bench = Bench::new();
        *bench.controller.apply.lock().unwrap() = Some(ready());
        bench.reconcile(json!({}), json!({})).await;
        assert_eq!(bench.steps(), ["dereference", "apply"]);
        assert!(finalizer::has(&bench.stored()));
        assert_eq!(bench.ready_reason().as_deref(), Some("InSync"));
    }

    #[tokio::test]
    async fn a_suspended_object_runs_no_step() {
        let bench = Bench::new();
        let next = bench.reconcile(json!({}), json!({ "suspend": true })).await;
        assert_eq!((bench.steps().len(), next), (0, Action::await_change()));
        assert!(!finalizer::has(&bench.stored()));
        assert_eq!(bench.cluster.names("events").len(), 1);
    }

    #[tokio::test]
    async fn an_outdated_reconcile_leaves_the_status() {
        let bench = Bench::new();
        *bench.controller.apply.lock().unwrap() = Some(Err(Interrupted::OUTDATED));
        let next = bench.reconcile(json!({}), json!({})).await;
        assert_eq!(
            (bench.ready_reason(), next),
            (None, Action::requeue(std::time::Duration::ZERO))
        );
    }

    #[tokio::test]
    async fn an_interrupted_reconcile_reports_why() {
        let bench = Bench::new();
        *bench.controller.apply.lock().unwrap() = Some(Err(Interrupted::RegistryMissing));
        bench.reconcile(json!({}), json!({})).await;
        assert_eq!(bench.ready_reason().as_deref(), Some("ReferenceNotFound"));
    }

    #[tokio::test]
    async fn becoming_ready_requeues_the_referrers() {
        let mut bench = Bench::new();
        let policy = |name: &str, repository: &str| {
            let spec = json!({
                "registryRef": { "name": "home" }, "repositoryRef": { "name": repository }, "rules": [],
            });
            let policy = json!({ "metadata": { "namespace": "shop", "name": name }, "spec": spec });
            Event::Apply(serde_json::from_value(policy).unwrap())
        };
        bench.writers.kinds.lifecycle_policies.apply(&policy("mine", "api"));
        bench.writers.kinds.lifecycle_policies.apply(&policy("other", "web"));
        *bench.controller.apply.lock().unwrap() = Some(ready());
        bench.reconcile(json!({}), json!({})).await;
        let requeued = bench.queues.lifecycle_policies.next().await.unwrap();
        assert_eq!(requeued.name, "mine");
        assert!(
            bench.queues.lifecycle_policies.try_recv().is_err(),
            "the other refers to another Repository"
        );
    }

    #[tokio::test]
    async fn a_deleted_object_is_released_and_loses_the_finalizer() {
        let bench = Bench::new();
        let next = bench.reconcile(deleted(), json!({})).await;
        assert_eq!((bench.steps(), next), (vec!["release".to_owned()], Action::await_change()));
        assert!(!finalizer::has(&bench.stored()));
    }

    #[tokio::test]
    async fn an_object_without_the_finalizer_is_not_released() {
        let bench = Bench::new();
        bench.reconcile(json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }), json!({})).await;
        assert!(bench.steps().is_empty());
    }

    #[tokio::test]
    async fn only_a_required_release_blocks_the_deletion() {
        for must_release in [false, true] {
            let mut bench = Bench::new();
            bench.controller.must_release = must_release;
            *bench.controller.release.lock().unwrap() = Some(Interrupted::RegistryMissing);
            bench.reconcile(deleted(), json!({})).await;
            assert_eq!(finalizer::has(&bench.stored()), must_release);
            assert_eq!(bench.ready_reason().is_some(), must_release);
        }
    }

    #[tokio::test]
    async fn an_outdated_release_is_tried_again() {
        let bench = Bench::new();
        *bench.controller.release.lock().unwrap() = Some(Interrupted::OUTDATED);
        let next = bench.reconcile(deleted(), json!({})).await;
        assert_eq!(next, Action::requeue(std::time::Duration::ZERO));
        assert!(finalizer::has(&bench.stored()));
    }
}
