//! Applies, finds and deletes the objects of a workload.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::{Api, Resource, ResourceExt as _};
use serde_json::{Value, json};

use super::WorkloadReconcile;
use super::error::{ReconcileError, is_api, refused, unreadable};
use crate::status::FIELD_MANAGER;
use crate::workload::{self, Inputs, Pods, REGISTRY_LABEL, WorkloadObject, certificate_kind};
use wharfage_crd::Reason;

/// What was applied last: what is as it was then isn't applied again, so that a cluster at rest is only read.
#[derive(Default)]
pub(in crate::controllers) struct Applied(Mutex<HashMap<(String, String, String), LastApplied>>);

/// What was applied, and what the object became by it.
#[derive(PartialEq, Eq)]
pub(super) struct LastApplied {
    pub(super) body: u64,
    pub(super) resource_version: Option<String>,
}

impl Applied {
    pub(super) fn key(kind: &ApiResource, namespace: &str, name: &str) -> (String, String, String) {
        (kind.plural.clone(), namespace.to_owned(), name.to_owned())
    }

    pub(super) fn marks(&self) -> MutexGuard<'_, HashMap<(String, String, String), LastApplied>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fingerprint(body: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

/// An object of the workload as it was found.
pub(super) type FoundObject = PartialObjectMeta<DynamicObject>;

impl WorkloadReconcile<'_> {
    /// Makes the cluster hold what the Registry asks for; how the pods stand then.
    pub(super) async fn apply_all(&self) -> Result<Pods, ReconcileError> {
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

    pub(super) fn objects_of(&self, kind: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, kind)
    }

    /// What has the label of this registry's objects.
    pub(super) fn ours(&self) -> ListParams {
        ListParams::default().labels(&format!("{REGISTRY_LABEL}={}", self.names.workload()))
    }

    /// What is there of the workload, by its label.
    pub(super) async fn find(&self) -> Result<Vec<(ApiResource, FoundObject)>, ReconcileError> {
        let found = try_join_all(kinds().into_iter().map(async |kind| self.find_of(&kind).await)).await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What is there of the workload that is of this kind.
    pub(super) async fn find_of(&self, kind: &ApiResource) -> Result<Vec<(ApiResource, FoundObject)>, ReconcileError> {
        match self.objects_of(kind).list_metadata(&self.ours()).await {
            Ok(found) => Ok(found.items.into_iter().map(|object| (kind.clone(), object)).collect()),
            // A cluster without cert-manager has no such kind.
            Err(error) if *kind == certificate_kind() && is_api(&error, 404) => Ok(Vec::new()),
            Err(error) if *kind == ApiResource::erase::<Secret>(&()) => Err(unreadable(error, &self.namespace)),
            Err(error) => Err(error.into()),
        }
    }

    /// A registry that runs in another namespace is not started empty here: the operator's own namespace, which is the
    /// default, may have become another, and managed.namespace may be given at any time.
    pub(super) async fn check_namespace(&self, found: &[(ApiResource, FoundObject)]) -> Result<(), ReconcileError> {
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
    pub(super) async fn elsewhere(&self) -> Result<BTreeMap<String, String>, ReconcileError> {
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

    /// What somebody else made under a name that is needed here is not adopted.
    pub(super) async fn leave_others_alone(
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

    pub(super) async fn apply(
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
    pub(super) async fn delete_all(&self) -> Result<(), ReconcileError> {
        for (kind, object) in self.find().await?.iter().filter(|(kind, object)| self.may_go(kind, object)) {
            self.delete(kind, object).await?;
        }
        Ok(())
    }

    /// Takes the Registry from the owners of all that is there. Where the operator may not look, nothing is to be done by it.
    pub(super) async fn release(&self) -> Result<(), ReconcileError> {
        let elsewhere = if_allowed(self.elsewhere().await)?;
        for namespace in elsewhere.into_keys().chain([self.namespace.clone()]) {
            let there = Self { namespace, ..self.clone() };
            for kind in kinds() {
                if_allowed(there.disown_all(&kind).await)?;
            }
        }
        Ok(())
    }

    pub(super) async fn disown_all(&self, kind: &ApiResource) -> Result<(), ReconcileError> {
        for (kind, object) in self.find_of(kind).await?.iter().filter(|(kind, object)| self.may_go(kind, object)) {
            self.disown(kind, object).await?;
        }
        Ok(())
    }

    pub(super) async fn delete(&self, kind: &ApiResource, object: &FoundObject) -> Result<(), kube::Error> {
        self.applied.marks().remove(&Applied::key(kind, &self.namespace, &object.name_any()));
        match self.objects_of(kind).delete(&object.name_any(), &DeleteParams::background()).await {
            Err(error) if !is_api(&error, 404) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the Registry from an object's owners, so that the object outlives it.
    pub(super) async fn disown(&self, kind: &ApiResource, object: &FoundObject) -> Result<(), kube::Error> {
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
    pub(super) fn may_go(&self, kind: &ApiResource, object: &FoundObject) -> bool {
        let is_root_key = *kind == ApiResource::erase::<Secret>(&()) && object.name_any() == self.names.root_key();
        was_applied(object) && !is_root_key
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
