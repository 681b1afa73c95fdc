//! A managed Registry's workload: applied, repaired, what is wanted no more taken away, and its rollout reported. What its objects say is
//! [`workload`]'s part.

use secrecy::ExposeSecret as _;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::reflector::store;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::super::Error;
use super::{RegistryController, kept_away, missing};
use crate::access_key::AccessKey;
use crate::crd::registry::ManagedRegistry;
use crate::crd::{DeletionPolicy, Reason, Registry};
use crate::operator::context::Context;
use crate::operator::policy_rule::{Feature, PolicyRule, RuleScope};
use crate::operator::secrets::SecretName;
use crate::operator::status::{Cause, ConditionSet, FIELD_MANAGER, ReadyState};
use crate::operator::workload::{
    self, Backends, Inputs, KeyPair, Names, Pods, REGISTRY_LABEL, Rollout, VolumeChange, WorkloadObject,
    certificate_kind, connection,
};
use crate::operator::{triggers, watch};

/// The verbs that what is applied, found again and taken away takes.
const KEEP: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

pub(in crate::operator) const RULES: &[PolicyRule] = &[
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
pub(in crate::operator) fn watch_workloads(ctx: &Arc<Context>, watches: &mut JoinSet<()>) {
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

/// How the operator reaches a managed registry.
#[derive(Hash)]
pub(super) struct ManagedConnection {
    /// Its URL, with the name that its certificate is for.
    pub url: String,
    /// Where to connect to, if the URL's host isn't that.
    pub host: Option<String>,
    /// Certificates to trust, in PEM.
    pub ca_bundle: Option<String>,
    /// The root key's id.
    pub id: String,
    /// The root key's secret.
    pub secret: String,
}

/// The Secrets that a managed Registry names, and those that it has.
pub(super) fn secrets(registry: &Registry, managed: &ManagedRegistry, operator: &str) -> BTreeSet<SecretName> {
    let names = Names::of(&registry.name_any());
    let own = workload::namespace(managed, operator);
    let tls = workload::tls_secret(managed, &names);
    let inside = [Some(names.root_key()), Some(names.backends()), tls].into_iter().flatten();
    let s3 = managed.storage.as_ref().and_then(|it| it.s3.as_ref()?.credentials_secret_ref.as_ref());
    let postgres = managed.database.as_ref().and_then(|it| it.postgres.as_ref());
    let postgres = postgres.map(|it| &it.connection_secret_ref);
    inside
        .map(|name| (own.to_owned(), name))
        .chain(s3.map(|it| (it.namespace.clone(), it.name.clone())))
        .chain(postgres.map(|it| (it.namespace.clone(), it.name.clone())))
        .collect()
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

/// What was applied last: what is as it was then isn't applied again, so that a cluster at rest is only read.
#[derive(Default)]
pub(super) struct Applied(Mutex<HashMap<(String, String, String), LastApplied>>);

/// What was applied, and what the object became by it.
#[derive(PartialEq, Eq)]
struct LastApplied {
    body: u64,
    resource_version: Option<String>,
}

impl Applied {
    fn key(kind: &ApiResource, namespace: &str, name: &str) -> (String, String, String) {
        (kind.plural.clone(), namespace.to_owned(), name.to_owned())
    }

    fn marks(&self) -> MutexGuard<'_, HashMap<(String, String, String), LastApplied>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fingerprint(body: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

/// What ends a reconcile before its end.
enum ReconcileError {
    /// It stands so.
    Stands(Box<ConditionSet>),
    /// The API server can't be asked, or not now.
    Api(kube::Error),
}

impl From<kube::Error> for ReconcileError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 403 => {
                let message = format!("give the operator the permissions of its chart: {}", status.message);
                Self::stalled(Reason::Forbidden, message)
            }
            _ => Self::Api(error),
        }
    }
}

impl ReconcileError {
    fn waiting(reason: Reason, message: impl Into<String>) -> Self {
        Self::Stands(Box::new(ConditionSet::of(ReadyState::Reconciling(Cause::new(reason, message)))))
    }

    fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self::Stands(Box::new(ConditionSet::of(ReadyState::Stalled(Cause::new(reason, message)))))
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::Stands(missing(message.into()))
    }

    /// What is to be told of it.
    fn told(self) -> Result<ConditionSet, kube::Error> {
        match self {
            Self::Stands(findings) => Ok(*findings),
            Self::Api(error) => Err(error),
        }
    }
}

/// An object of the workload as it was found.
type FoundObject = PartialObjectMeta<DynamicObject>;

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

    /// Makes the cluster hold what the Registry asks for; how the pods stand then.
    async fn apply_all(&self) -> Result<Pods, ReconcileError> {
        let image = self.image.ok_or_else(|| {
            let message =
                "it is not known what the pods are to run: set managed.image, or the operator's --registry-image";
            ReconcileError::stalled(Reason::ImageMissing, message)
        })?;
        let found = self.find().await?;
        self.check_namespace(&found).await?;
        let inputs = Inputs {
            operator_namespace: self.operator_namespace.to_owned(),
            image: image.to_owned(),
            backends: self.backends().await?,
            root_key: self.root_key().await?,
        };
        let mut wanted = workload::objects(self.registry, self.managed, &inputs)
            .map_err(|error| ReconcileError::Api(kube::Error::SerdeError(error)))?;
        self.leave_others_alone(&wanted, &found).await?;
        let volume = self.keep_volume(&mut wanted).await?;
        for object in &wanted {
            let there = found.iter().find(|(of, it)| *of == object.kind && it.name_any() == object.name);
            self.apply(object, there.map(|(_, it)| it)).await?;
        }
        for (kind, object) in &found {
            let keep = wanted.iter().any(|it| it.kind == *kind && it.name == object.name_any());
            if !keep && self.may_go(kind, object) {
                self.delete(kind, object).await?;
            }
        }
        // Told last: a volume that can't become what is asked for keeps nothing else from it.
        volume?;
        Ok(self.pods().await?.unwrap_or_default())
    }

    /// What opens database and bucket, from where the Registry says.
    async fn backends(&self) -> Result<Backends, ReconcileError> {
        let postgres = self.managed.database.as_ref().and_then(|it| it.postgres.as_ref());
        let s3 = self.managed.storage.as_ref().and_then(|it| it.s3.as_ref()?.credentials_secret_ref.as_ref());
        let mut backends = Backends::default();
        if let Some(reference) = postgres.map(|it| &it.connection_secret_ref) {
            let secret = self.named_secret(&reference.namespace, &reference.name).await?;
            backends.database = Some(workload::connection(&secret, reference).map_err(unusable)?);
        }
        if let Some(reference) = s3 {
            let secret = self.named_secret(&reference.namespace, &reference.name).await?;
            backends.bucket = Some(workload::key_pair(&secret).map_err(unusable)?);
        }
        Ok(backends)
    }

    async fn named_secret(&self, namespace: &str, name: &str) -> Result<Secret, ReconcileError> {
        self.secret(namespace, name).await?.ok_or_else(|| {
            ReconcileError::not_found(format!(
                "Secret {namespace}/{name} does not exist: make it, or correct the reference"
            ))
        })
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ReconcileError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        secrets.get_opt(name).await.map_err(|error| unreadable(error, namespace))
    }

    /// The root key: the one that is there, or a new one. It is never written over.
    async fn root_key(&self) -> Result<KeyPair, ReconcileError> {
        let name = self.names.root_key();
        let secret = match self.secret(&self.namespace, &name).await? {
            Some(secret) => secret,
            None => {
                let account = self.registry.registry_id().ok_or_else(|| {
                    ReconcileError::stalled(Reason::InvalidParameterException, "a managed registry needs a registryId")
                })?;
                let key = AccessKey::generate(account)
                    .map_err(|error| ReconcileError::waiting(Reason::Progressing, format!("no root key: {error}")))?;
                let made = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                let new = workload::root_key_secret(&self.names, &self.namespace, &key);
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
                match secrets.create(&made, &new).await {
                    Ok(secret) => secret,
                    Err(error) => return Err(refused(error, "Secret", &self.namespace, &name)),
                }
            }
        };
        workload::key_pair(&secret).map_err(unusable)
    }

    fn objects_of(&self, kind: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, kind)
    }

    /// What has the label of this registry's objects.
    fn ours(&self) -> ListParams {
        ListParams::default().labels(&format!("{REGISTRY_LABEL}={}", self.names.workload()))
    }

    /// What is there of the workload, by its label.
    async fn find(&self) -> Result<Vec<(ApiResource, FoundObject)>, ReconcileError> {
        let found = try_join_all(kinds().into_iter().map(async |kind| self.find_of(&kind).await)).await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What is there of the workload that is of this kind.
    async fn find_of(&self, kind: &ApiResource) -> Result<Vec<(ApiResource, FoundObject)>, ReconcileError> {
        match self.objects_of(kind).list_metadata(&self.ours()).await {
            Ok(found) => Ok(found.items.into_iter().map(|object| (kind.clone(), object)).collect()),
            // A cluster without cert-manager has no such kind.
            Err(error) if *kind == certificate_kind() && is_api(&error, 404) => Ok(Vec::new()),
            Err(error) if *kind == ApiResource::erase::<Secret>(&()) => Err(unreadable(error, &self.namespace)),
            Err(error) => Err(error.into()),
        }
    }

    /// A registry that runs in another namespace isn't begun here anew, and empty: the operator's own namespace, which is the
    /// default, may have become another, and managed.namespace may be given at any time.
    async fn check_namespace(&self, found: &[(ApiResource, FoundObject)]) -> Result<(), ReconcileError> {
        let makers = makers_of_pods();
        if found.iter().any(|(kind, _)| makers.contains(kind)) {
            return Ok(());
        }
        let Some((elsewhere, object)) = self.elsewhere().await?.pop_first() else { return Ok(()) };
        let way_out = match self.managed.namespace {
            None => format!("set managed.namespace to {elsewhere}"),
            Some(_) => format!(
                "delete this Registry with deletionPolicy Retain, and create it again with managed.namespace {elsewhere}"
            ),
        };
        let message = format!(
            "{object} is this registry, which would begin empty in namespace {}: {way_out}; or delete {object} first",
            self.namespace
        );
        Err(ReconcileError::stalled(Reason::WorkloadElsewhere, message))
    }

    /// What makes pods of this registry in other namespaces, by their names. Only what we applied counts.
    async fn elsewhere(&self) -> Result<BTreeMap<String, String>, ReconcileError> {
        let mut elsewhere = BTreeMap::new();
        for kind in makers_of_pods() {
            let everywhere: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
            for object in everywhere.list_metadata(&self.ours()).await?.items.iter().filter(|it| was_applied(it)) {
                if let Some(namespace) = object.namespace().filter(|it| *it != self.namespace) {
                    let named = format!("{} {namespace}/{}", kind.kind, object.name_any());
                    elsewhere.insert(namespace, named);
                }
            }
        }
        Ok(elsewhere)
    }

    /// What somebody else made under a name that is needed here is not taken over.
    async fn leave_others_alone(
        &self,
        wanted: &[WorkloadObject],
        found: &[(ApiResource, FoundObject)],
    ) -> Result<(), ReconcileError> {
        for WorkloadObject { kind, name, .. } in wanted {
            if found.iter().any(|(of, object)| of == kind && object.name_any() == *name) {
                continue;
            }
            let there = match self.objects_of(kind).get_metadata_opt(name).await {
                // Its kind is missing too, which applying it will tell.
                Err(error) if is_api(&error, 404) => None,
                there => there?,
            };
            if there.is_some_and(|it| !was_ours(&it)) {
                return Err(ReconcileError::stalled(
                    Reason::OwnedByAnother,
                    format!(
                        "{} {}/{name} is there and isn't this Registry's: remove it, or make a Registry of another name \
                         or in another namespace",
                        kind.kind, self.namespace
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Has the volume become what is asked for, as far as it can, and the StatefulSet with it. The inner error is told once
    /// everything else is done.
    async fn keep_volume(&self, wanted: &mut [WorkloadObject]) -> Result<Result<(), ReconcileError>, ReconcileError> {
        let Some(volume) = workload::volume(self.managed) else { return Ok(Ok(())) };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        let claim = claims.get_opt(&self.names.claim()).await?;
        self.keep_templates(wanted, claim.as_ref()).await?;
        let Some(current) = claim else { return Ok(Ok(())) };
        let change = match workload::claim(&volume, &current) {
            VolumeChange::Keep => return Ok(Ok(())),
            VolumeChange::Refuse(why) => return Ok(Err(ReconcileError::stalled(Reason::VolumeUnchangeable, why))),
            VolumeChange::Grow(size) => json!({ "resources": { "requests": { "storage": size } } }),
            VolumeChange::Classify(class) => json!({ "storageClassName": class }),
        };
        let (name, patch) = (current.name_any(), json!({ "spec": change }));
        match claims.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(Ok(())),
            Err(error) => match refused(error, "PersistentVolumeClaim", &self.namespace, &name) {
                ReconcileError::Stands(findings) => Ok(Err(ReconcileError::Stands(findings))),
                error @ ReconcileError::Api(_) => Err(error),
            },
        }
    }

    /// Has the StatefulSet keep the templates that it can't change. As long as there is no volume it is deleted instead, to be
    /// applied anew: else a claim that somebody deletes would come back as it was.
    async fn keep_templates(
        &self,
        wanted: &mut [WorkloadObject],
        claim: Option<&PersistentVolumeClaim>,
    ) -> Result<(), ReconcileError> {
        let kind = ApiResource::erase::<StatefulSet>(&());
        let Some(set) = wanted.iter_mut().find(|it| it.kind == kind) else { return Ok(()) };
        let sets = self.objects_of(&kind);
        // With our label or without: others' have been refused, and of ours somebody may have taken it away.
        let Some(current) = sets.get_opt(&set.name).await? else { return Ok(()) };
        if !claim.is_some_and(workload::has_volume) && workload::claims_otherwise(&set.body, &current.data) {
            self.applied.marks().remove(&Applied::key(&kind, &self.namespace, &set.name));
            let this = Preconditions { uid: current.uid(), resource_version: None };
            match sets.delete(&set.name, &DeleteParams::background().preconditions(this)).await {
                Ok(answer) if answer.is_right() => return Ok(()),
                // It is there until its finalizers are done, and can't be changed.
                Ok(_) => {}
                Err(error) if is_api(&error, 404) => return Ok(()),
                Err(error) => return Err(refused(error, &kind.kind, &self.namespace, &set.name)),
            }
        }
        workload::keep_templates(&mut set.body, &current.data);
        Ok(())
    }

    async fn apply(
        &self,
        WorkloadObject { kind, name, body }: &WorkloadObject,
        there: Option<&FoundObject>,
    ) -> Result<(), ReconcileError> {
        let key = Applied::key(kind, &self.namespace, name);
        let body_now = fingerprint(body);
        let as_it_was = there.map(|it| LastApplied { body: body_now, resource_version: it.resource_version() });
        if as_it_was.is_some() && self.applied.marks().get(&key) == as_it_was.as_ref() {
            return Ok(());
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match self.objects_of(kind).patch_metadata(name, &params, &Patch::Apply(body)).await {
            Ok(applied) => {
                let mark = LastApplied { body: body_now, resource_version: applied.resource_version() };
                self.applied.marks().insert(key, mark);
                Ok(())
            }
            Err(error) if *kind == certificate_kind() && is_api(&error, 404) => Err(ReconcileError::not_found(
                "there is no cert-manager in this cluster: install it, or give tls.secretName a certificate of your own",
            )),
            Err(error) => Err(refused(error, &kind.kind, &self.namespace, name)),
        }
    }

    /// Deletes all that goes with the Registry.
    async fn delete_all(&self) -> Result<(), ReconcileError> {
        for (kind, object) in self.find().await?.iter().filter(|(kind, object)| self.may_go(kind, object)) {
            self.delete(kind, object).await?;
        }
        Ok(())
    }

    /// Takes the Registry from the owners of all that is there. Where the operator may not look, nothing is to be done by it.
    async fn release(&self) -> Result<(), ReconcileError> {
        let elsewhere = if_allowed(self.elsewhere().await)?;
        for namespace in elsewhere.into_keys().chain([self.namespace.clone()]) {
            let there = Self { namespace, ..self.clone() };
            for kind in kinds() {
                if_allowed(there.disown_all(&kind).await)?;
            }
        }
        Ok(())
    }

    async fn disown_all(&self, kind: &ApiResource) -> Result<(), ReconcileError> {
        for (kind, object) in self.find_of(kind).await?.iter().filter(|(kind, object)| self.may_go(kind, object)) {
            self.disown(kind, object).await?;
        }
        Ok(())
    }

    async fn delete(&self, kind: &ApiResource, object: &FoundObject) -> Result<(), kube::Error> {
        self.applied.marks().remove(&Applied::key(kind, &self.namespace, &object.name_any()));
        match self.objects_of(kind).delete(&object.name_any(), &DeleteParams::background()).await {
            Err(error) if !is_api(&error, 404) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the Registry from an object's owners, so that the object outlives it.
    async fn disown(&self, kind: &ApiResource, object: &FoundObject) -> Result<(), kube::Error> {
        let owners = object.owner_references();
        let others: Vec<_> = owners.iter().filter(|it| Some(&it.uid) != self.registry.metadata.uid.as_ref()).collect();
        if others.len() == owners.len() {
            return Ok(());
        }
        let patch = json!({ "metadata": { "ownerReferences": others, "resourceVersion": object.resource_version() } });
        let patched = self
            .objects_of(kind)
            .patch_metadata(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        match patched {
            Err(error) if !is_api(&error, 404) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether an object with our label goes once it isn't wanted. A copy that somebody made has the label, too, but we didn't
    /// apply it; and the root key stays whatever goes.
    fn may_go(&self, kind: &ApiResource, object: &FoundObject) -> bool {
        let is_root_key = *kind == ApiResource::erase::<Secret>(&()) && object.name_any() == self.names.root_key();
        was_applied(object) && !is_root_key
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

    /// The Secret with the certificate that the registry serves with, if it serves with one; or why it isn't there.
    async fn certificate(&self) -> Result<Option<Secret>, ReconcileError> {
        let Some(name) = workload::tls_secret(self.managed, &self.names) else { return Ok(None) };
        if let Some(secret) = self.secret(&self.namespace, &name).await? {
            return Ok(Some(secret));
        }
        let issued = self.managed.tls.as_ref().is_some_and(|tls| tls.cert_manager.is_some());
        if !issued {
            return Err(ReconcileError::not_found(format!(
                "Secret {}/{name} does not exist: put a certificate of type kubernetes.io/tls there, or correct \
                 tls.secretName",
                self.namespace
            )));
        }
        let certificate = self.objects_of(&certificate_kind()).get_opt(&self.names.workload()).await?;
        let why = certificate.and_then(|it| workload::certificate_trouble(&it.data));
        let why = why.unwrap_or_else(|| "cert-manager has said nothing yet".to_owned());
        let named = format!("Certificate {}/{}", self.namespace, self.names.workload());
        Err(ReconcileError::not_found(format!("{named} is not issued: {why}")))
    }

    /// How the registry is reached from here, or why it isn't: one of its Secrets is missing.
    async fn connection(&self) -> Result<ManagedConnection, ReconcileError> {
        let root_key = self.named_secret(&self.namespace, &self.names.root_key()).await?;
        let key = workload::key_pair(&root_key).map_err(unusable)?;
        let certificate = self.certificate().await?;
        let connection::Address { url, host, ca_bundle } =
            connection::address(self.managed, &self.names, &self.namespace, certificate.as_ref());
        Ok(ManagedConnection { url, host, ca_bundle, id: key.id, secret: key.secret.expose_secret().to_owned() })
    }
}

/// The kinds of which one makes a registry's pods.
fn makers_of_pods() -> [ApiResource; 2] {
    [ApiResource::erase::<Deployment>(&()), ApiResource::erase::<StatefulSet>(&())]
}

/// The kinds of a workload's objects.
fn kinds() -> [ApiResource; 8] {
    fn of<K: Resource<DynamicType = ()>>() -> ApiResource {
        ApiResource::erase::<K>(&())
    }
    [
        of::<ConfigMap>(),
        of::<Secret>(),
        of::<Service>(),
        of::<NetworkPolicy>(),
        of::<PodDisruptionBudget>(),
        of::<Deployment>(),
        of::<StatefulSet>(),
        certificate_kind(),
    ]
}

/// Whether we applied an object.
fn was_applied(object: &FoundObject) -> bool {
    let applied = |it: &ManagedFieldsEntry| {
        it.manager.as_deref() == Some(FIELD_MANAGER) && it.operation.as_deref() == Some("Apply")
    };
    object.managed_fields().iter().any(applied)
}

/// Whether an object without our label was applied by us all the same: then somebody took the label away.
fn was_ours(object: &FoundObject) -> bool {
    !object.labels().contains_key(REGISTRY_LABEL) && was_applied(object)
}

/// What the operator may not see or do stands in nobody's way.
fn if_allowed<T: Default>(done: Result<T, ReconcileError>) -> Result<T, ReconcileError> {
    match done {
        Err(ReconcileError::Stands(_)) => Ok(T::default()),
        done => done,
    }
}

/// Why Secrets of a namespace can't be read.
fn unreadable(error: kube::Error, namespace: &str) -> ReconcileError {
    match &error {
        kube::Error::Api(status) if status.code == 403 => ReconcileError::Stands(kept_away(namespace, &status.message)),
        _ => ReconcileError::Api(error),
    }
}

fn unusable(error: workload::InvalidSecret) -> ReconcileError {
    ReconcileError::not_found(error.to_string())
}

fn is_api(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// What the API server's refusal of an object means: what a person must change, what comes by itself, or nothing in
/// particular.
fn refused(error: kube::Error, kind: &str, namespace: &str, name: &str) -> ReconcileError {
    let kube::Error::Api(status) = &error else { return ReconcileError::Api(error) };
    let message = || format!("{kind} {namespace}/{name}: {}", status.message);
    match status.code {
        404 => ReconcileError::not_found(format!(
            "Namespace {namespace} does not exist: make it, or correct managed.namespace"
        )),
        409 => ReconcileError::waiting(Reason::Progressing, message()),
        400 | 403 | 422 => ReconcileError::stalled(Reason::of_error(&status.reason), message()),
        _ => ReconcileError::Api(error),
    }
}
