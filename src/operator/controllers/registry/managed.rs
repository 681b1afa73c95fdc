//! A managed Registry's workload: applied, repaired, what is wanted no more removed, and its rollout reported. What its objects say is
//! [`workload`]'s part.

mod apply;
mod dereference;
mod error;
mod volume;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::store;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use tokio::task::JoinSet;

use super::super::Error;
use super::RegistryController;
use crate::context::Context;
use crate::policy_rule::{Feature, PolicyRule, RuleScope};
use crate::status::{Cause, ConditionSet, ReadyState};
use crate::workload::{self, Names, Pods, REGISTRY_LABEL, Rollout};
use crate::{triggers, watch};
use dereference::ManagedConnection;
use error::ReconcileError;
use wharfage_crd::registry::ManagedRegistry;
use wharfage_crd::{DeletionPolicy, Reason, Registry};

pub(super) use apply::Applied;
pub(super) use dereference::secrets;

/// The verbs that what is applied, found again and removed takes.
const KEEP: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

pub(crate) const RULES: &[PolicyRule] = &[
    rule("apps", &["deployments", "statefulsets"], KEEP, "the pods of managed registries"),
    rule("", &["services", "configmaps"], KEEP, "the way to managed registries, and their settings"),
    // Read by the rule for the Secrets that Registries name.
    rule(
        "",
        &["secrets"],
        &["create", "patch", "delete"],
        "root keys of managed registries, and what opens their stores",
    ),
    rule("networking.k8s.io", &["networkpolicies"], KEEP, "who may reach managed registries"),
    // Some clusters ask for this of whoever names an owner that is to wait for what it owns.
    rule("wharfage.dev", &["registries/finalizers"], &["update"], "the owner of what goes with a Registry"),
    rule("policy", &["poddisruptionbudgets"], KEEP, "how many replicas a drain may take"),
    rule("", &["persistentvolumeclaims"], &["get", "patch"], "volumes that grow, or want a StorageClass"),
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
    PolicyRule { group, resources, verbs, scope: RuleScope::Cluster, feature: Feature::ManagedRegistries, reason }
}

/// Follows what managed registries are made of, so that what somebody changes there is put right at once. Their Secrets are
/// followed by name, like those that a Registry names.
pub(crate) fn watch_workloads(ctx: &Arc<Context>, watches: &mut JoinSet<()>) {
    macro_rules! follow {
        ($($kind:ty),*) => {$({
            let (api, follower) = (Api::<PartialObjectMeta<$kind>>::all(ctx.client.clone()), Arc::clone(ctx));
            let (_reader, writer) = store();
            let ours = watcher::Config::default().labels(REGISTRY_LABEL);
            watches.spawn(watch::watch_kind(api, ours, writer, watch::any_change, move |change| {
                if let Some(object) = change.either() {
                    triggers::workload_changed(&follower.stores, &follower.triggers, object.labels());
                }
            }));
        })*};
    }
    follow!(Deployment, StatefulSet, Service, ConfigMap, NetworkPolicy, PodDisruptionBudget);
}

/// How a managed registry stands.
pub(super) struct ManagedState {
    /// By its workload alone: whether it answers is for its client to say.
    pub state: ConditionSet,
    /// Where clients reach it, once there is something to reach.
    pub endpoint: Option<String>,
    /// Where the operator reaches it, once a replica serves.
    pub way: Option<ManagedConnection>,
}

/// Brings a managed Registry's workload about, and says how it stands.
pub(super) async fn reconcile(
    controller: &RegistryController,
    registry: &Registry,
    managed: &ManagedRegistry,
) -> Result<ManagedState, Error> {
    let work = WorkloadReconcile::new(controller, registry, managed);
    let (pods, mut state) = match work.apply_all().await {
        Ok(pods) => {
            let state = work.rollout_status(&pods).await.or_else(ReconcileError::told)?;
            (Some(pods), state)
        }
        // What runs goes on, and is reached as before.
        Err(obstacle) => (work.pods().await?, obstacle.told()?),
    };
    let mut way = None;
    if pods.as_ref().is_some_and(|pods| pods.ready > 0) {
        match work.connection().await {
            Ok(found) => way = Some(found),
            Err(obstacle) => {
                let why = obstacle.told()?;
                // Nothing in it is seen to without a way to it, however many replicas serve.
                if matches!(state.state, ReadyState::Ready(_)) {
                    state = why;
                }
            }
        }
    }
    let endpoint = pods.is_some().then(|| workload::public_url(managed, &work.names, &work.namespace));
    Ok(ManagedState { state, endpoint, way })
}

/// The Registry goes: its workload goes with it, or is left alone, as its deletionPolicy says. Its root key, like its volume
/// and its bucket, stays in any case. What keeps it from going, if something does.
pub(super) async fn cleanup(
    controller: &RegistryController,
    registry: &Registry,
    managed: &ManagedRegistry,
) -> Result<Option<ConditionSet>, Error> {
    let work = WorkloadReconcile::new(controller, registry, managed);
    let done = match registry.deletion_policy() {
        DeletionPolicy::Delete => work.delete_all().await,
        DeletionPolicy::Retain => work.release().await,
    };
    match done {
        Ok(()) => Ok(None),
        Err(obstacle) => Ok(Some(obstacle.told()?)),
    }
}

#[derive(Clone)]
struct WorkloadReconcile<'a> {
    client: &'a Client,
    applied: &'a Applied,
    registry: &'a Registry,
    managed: &'a ManagedRegistry,
    operator_namespace: &'a str,
    image: Option<&'a str>,
    names: Names,
    namespace: String,
}

impl<'a> WorkloadReconcile<'a> {
    fn new(controller: &'a RegistryController, registry: &'a Registry, managed: &'a ManagedRegistry) -> Self {
        let ctx = &controller.ctx;
        Self {
            client: &ctx.client,
            applied: &controller.applied,
            registry,
            managed,
            operator_namespace: &ctx.settings.namespace,
            image: managed.image.as_deref().or(ctx.settings.registry_image.as_deref()),
            names: Names::of(&registry.name_any()),
            namespace: workload::namespace(managed, &ctx.settings.namespace).to_owned(),
        }
    }

    /// How the pods stand whose workload is there, whatever the Registry asks for now.
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

    /// How the registry stands by its pods.
    async fn rollout_status(&self, pods: &Pods) -> Result<ConditionSet, ReconcileError> {
        let stands = |state| ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) };
        match workload::rollout(pods, &[], None) {
            Rollout::Serving(message) => return Ok(stands(ReadyState::Ready(Cause::new(Reason::Serving, message)))),
            Rollout::Stopped(message) => {
                return Ok(stands(ReadyState::Reconciling(Cause::new(Reason::Stopped, message))));
            }
            Rollout::Progressing(_) => {}
        }
        // Pods can't start without their certificate.
        self.certificate().await?;
        let there: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        let (there, claim) = (there.list(&self.ours()).await?.items, claims.get_opt(&self.names.claim()).await?);
        let (Rollout::Serving(message) | Rollout::Stopped(message) | Rollout::Progressing(message)) =
            workload::rollout(pods, &there, claim.as_ref());
        Ok(stands(ReadyState::Reconciling(Cause::new(Reason::Progressing, message))))
    }
}
