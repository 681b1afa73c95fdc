//! The workload of a managed Registry: applies its objects, and reports its rollout. [`workload`] builds the objects.

mod apply;
mod dereference;
mod error;
mod image;
mod status;
mod volume;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::reflector::store;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use tokio::task::JoinSet;

use super::super::Error;
use super::RegistryController;
use crate::apply_set::{ApplySet, SetKind, SetLabel};
use crate::context::Context;
use crate::policy_rule::{Feature, PolicyRule, RuleScope};
use crate::status::{Cause, ConditionSet, ReadyState};
use crate::watch;
use crate::workload::{self, Names, Pods, REGISTRY_LABEL, Rollout};
use error::ReconcileError;
use image::{ImageDecision, Migration};
pub(super) use status::{WorkloadStatus, set_migration};
use wharfage_crd::registry::ManagedRegistry;
use wharfage_crd::{DeletionPolicy, Reason, Registry};

pub(super) use dereference::{ManagedConnection, secret_references};

/// The verbs for objects that are applied, found again and deleted.
const KEEP: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

pub(crate) const RULES: &[PolicyRule] = &[
    rule("apps", &["deployments", "statefulsets"], KEEP, "the pods of managed registries"),
    rule(
        "",
        &["services", "configmaps"],
        KEEP,
        "the way to managed registries, and their settings",
    ),
    // Read by the rule for the Secrets that Registries name.
    rule(
        "",
        &["secrets"],
        &["create", "patch", "delete"],
        "root keys of managed registries, and what opens their stores",
    ),
    rule("networking.k8s.io", &["networkpolicies"], KEEP, "who may reach managed registries"),
    // Some clusters require this of a client that sets an owner reference which blocks deletion.
    PolicyRule {
        scope: RuleScope::Cluster,
        ..rule(
            "wharfage.dev",
            &["registries/finalizers"],
            &["update"],
            "the owner of the objects of a managed Registry",
        )
    },
    rule("policy", &["poddisruptionbudgets"], KEEP, "how many replicas a drain may take"),
    rule(
        "",
        &["persistentvolumeclaims"],
        &["get", "patch"],
        "volumes that grow, or want a StorageClass",
    ),
    rule("", &["pods"], &["list"], "why a replica doesn't serve"),
    rule(
        "cert-manager.io",
        &["certificates"],
        &["get", "list", "create", "patch", "delete"],
        "certificates of managed registries",
    ),
];

const fn rule(
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    reason: &'static str,
) -> PolicyRule {
    PolicyRule {
        group,
        resources,
        verbs,
        scope: RuleScope::ManagedNamespaces,
        feature: Feature::ManagedRegistries,
        reason,
    }
}

/// Watches the objects of managed registries, so that a change by another party is corrected at once. Their Secrets are watched
/// by name, like those that a Registry refers to.
pub(crate) fn watch_workloads(ctx: &Arc<Context>, watches: &mut JoinSet<()>) {
    macro_rules! watch {
        ($($kind:ty),*) => {$(for api in ctx.settings.managed_namespaces.apis::<PartialObjectMeta<$kind>>(&ctx.client) {
            let follower = Arc::clone(ctx);
            let (_reader, writer) = store();
            let ours = watcher::Config::default().labels(REGISTRY_LABEL);
            watches.spawn(watch::watch_kind(api, ours, writer, watch::any_change, move |change| {
                if let Some(object) = change.either() {
                    super::workload_changed(&follower, object.labels());
                }
            }));
        })*};
    }
    watch!(Deployment, StatefulSet, Service, ConfigMap, NetworkPolicy, PodDisruptionBudget);
}

/// The state of a managed registry.
pub(super) struct ManagedState {
    /// The state of its workload alone: its client finds out whether it answers.
    pub state: ConditionSet,
    /// The workload, once there is one.
    pub workload: Option<WorkloadStatus>,
    /// The change to another image, if that is known.
    pub migration: Option<Migration>,
    /// The connection of the operator, once a replica serves.
    pub connection: Option<ManagedConnection>,
}

/// Applies the workload of a managed Registry, and returns its state.
pub(super) async fn reconcile(
    controller: &RegistryController,
    registry: &Registry,
    managed: &ManagedRegistry,
) -> Result<ManagedState, Error> {
    let kinds = apply::kinds();
    let work = WorkloadReconcile::new(controller, registry, managed, &kinds);
    let allowed = &controller.ctx.settings.managed_namespaces;
    if let Some(message) = allowed.refusal(&work.namespace) {
        let state = not_allowed(message);
        return Ok(ManagedState { state, workload: None, migration: None, connection: None });
    }
    let decided = work.decide_image(&controller.ctx).await?;
    let mut migration = None;
    let (pods, mut state) = match work.apply_all(decided.as_ref()).await {
        Ok(pods) => {
            let state =
                work.rollout_status(&pods).await.or_else(ReconcileError::into_conditions)?;
            let is_settled =
                matches!(state.state.cause().reason, Reason::Serving | Reason::Stopped);
            migration = decided.map(|it| it.migration.after_rollout(is_settled));
            (Some(pods), state)
        }
        // Running pods continue, and are reached as before.
        Err(error) => (work.pods().await?, error.into_conditions()?),
    };
    let mut connection = None;
    if pods.as_ref().is_some_and(|pods| pods.ready > 0) {
        match work.connection().await {
            Ok(found) => connection = Some(found),
            Err(error) => {
                let why = error.into_conditions()?;
                // Without a connection nothing in it is reconciled, however many replicas serve.
                if matches!(state.state, ReadyState::Ready(_)) {
                    state = why;
                }
            }
        }
    }
    let workload = pods.map(|pods| WorkloadStatus {
        endpoint: workload::public_url(managed, &work.names, &work.namespace),
        namespace: work.namespace.clone(),
        selector: work.names.selector(),
        pods,
    });
    Ok(ManagedState { state, workload, migration, connection })
}

/// Deletes the workload of a Registry that is being deleted, or releases it, as its deletionPolicy says. Its root key, its volume
/// and its bucket always stay. Returns the conditions if something blocks that.
pub(super) async fn cleanup(
    controller: &RegistryController,
    registry: &Registry,
    managed: &ManagedRegistry,
) -> Result<Option<ConditionSet>, Error> {
    let kinds = apply::kinds();
    let work = WorkloadReconcile::new(controller, registry, managed, &kinds);
    if let Some(message) = controller.ctx.settings.managed_namespaces.refusal(&work.namespace) {
        let runs_there = registry.status.as_ref().and_then(|it| it.namespace.as_ref()).is_some();
        let must_delete = runs_there && registry.deletion_policy() == DeletionPolicy::Delete;
        return Ok(must_delete.then(|| not_allowed(message)));
    }
    let done = match registry.deletion_policy() {
        DeletionPolicy::Delete => work.delete_all().await,
        DeletionPolicy::Retain => work.release().await,
    };
    match done {
        Ok(()) => Ok(None),
        Err(error) => Ok(Some(error.into_conditions()?)),
    }
}

fn not_allowed(message: String) -> ConditionSet {
    ConditionSet::of(ReadyState::Stalled(Cause::new(Reason::NotAllowed, message)))
}

struct WorkloadReconcile<'a> {
    client: &'a Client,
    set: ApplySet<'a>,
    registry: &'a Registry,
    managed: &'a ManagedRegistry,
    operator_namespace: &'a str,
    names: Names,
    namespace: String,
}

impl<'a> WorkloadReconcile<'a> {
    fn new(
        controller: &'a RegistryController,
        registry: &'a Registry,
        managed: &'a ManagedRegistry,
        kinds: &'a [SetKind],
    ) -> Self {
        let ctx = &controller.ctx;
        let names = Names::of(&registry.name_any());
        let namespace = workload::namespace(managed, &ctx.settings.namespace).to_owned();
        let set = ApplySet {
            client: &ctx.client,
            last_applied: &controller.last_applied,
            namespace: namespace.clone(),
            namespaces: &ctx.settings.managed_namespaces,
            label: SetLabel { key: REGISTRY_LABEL, value: names.workload() },
            kinds,
            retained: vec![(ApiResource::erase::<Secret>(&()), names.root_key())],
        };
        Self {
            client: &ctx.client,
            set,
            registry,
            managed,
            operator_namespace: &ctx.settings.namespace,
            names,
            namespace,
        }
    }

    /// Decides which image the pods run. Returns nothing if no image is known.
    async fn decide_image(&self, ctx: &Context) -> Result<Option<ImageDecision>, kube::Error> {
        let is_pinned = self.registry.status.as_ref().is_some_and(|it| it.image.is_some());
        let running = if is_pinned { None } else { self.pods().await?.and_then(|it| it.image) };
        let (all, default) =
            (ctx.stores.registries.state(), ctx.settings.registry_image.as_deref());
        Ok(image::decide(self.registry, &all, running.as_deref(), default))
    }

    /// Reads the numbers of the existing pods, whatever the Registry wants now.
    async fn pods(&self) -> Result<Option<Pods>, kube::Error> {
        let name = self.names.workload();
        let mut pods: Option<Pods> = None;
        let ours = |labels: &BTreeMap<String, String>| labels.get(REGISTRY_LABEL) == Some(&name);
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        if let Some(it) = deployments.get_opt(&name).await?.filter(|it| ours(it.labels())) {
            pods = Some(Pods::from(&it));
        }
        let sets: Api<StatefulSet> = Api::namespaced(self.client.clone(), &self.namespace);
        if let Some(it) = sets.get_opt(&name).await?.filter(|it| ours(it.labels())) {
            pods = Some(Pods::from(&it));
        }
        Ok(pods)
    }

    /// Returns the state of the registry, by its pods.
    async fn rollout_status(&self, pods: &Pods) -> Result<ConditionSet, ReconcileError> {
        let with_references =
            |state| ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) };
        match workload::rollout(pods, &[], None) {
            Rollout::Serving(message) => {
                return Ok(with_references(ReadyState::Ready(Cause::new(
                    Reason::Serving,
                    message,
                ))));
            }
            Rollout::Stopped(message) => {
                return Ok(with_references(ReadyState::Ready(Cause::new(
                    Reason::Stopped,
                    message,
                ))));
            }
            Rollout::Progressing(_) => {}
        }
        // Pods cannot start without their certificate.
        self.certificate().await?;
        let there: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &self.namespace);
        let (there, claim) = (
            there.list(&self.set.list_params()).await?.items,
            claims.get_opt(&self.names.claim()).await?,
        );
        let (Rollout::Serving(message) | Rollout::Stopped(message) | Rollout::Progressing(message)) =
            workload::rollout(pods, &there, claim.as_ref());
        Ok(with_references(ReadyState::Reconciling(Cause::new(Reason::Progressing, message))))
    }
}
