//! Applies, finds and deletes the objects of a workload.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::ApiResource;
use kube::{Resource, ResourceExt as _};

use super::WorkloadReconcile;
use super::error::ReconcileError;
use super::image::ImageDecision;
use crate::apply_set::{ChangeSet, FoundObject, SetKind, if_allowed};
use crate::workload::{self, Inputs, Pods, certificate_kind};
use wharfage_crd::Reason;

impl WorkloadReconcile<'_> {
    /// Applies the objects that the Registry wants. Returns the numbers of its pods.
    pub(super) async fn apply_all(
        &self,
        image: Option<&ImageDecision>,
    ) -> Result<Pods, ReconcileError> {
        let image = image.ok_or_else(|| {
            let message =
                "it is not known what the pods are to run: set managed.image, or the operator's --registry-image";
            ReconcileError::stalled(Reason::ImageMissing, message)
        })?;
        let found = self.set.find().await?;
        self.check_namespace(&found).await?;
        let inputs = Inputs {
            operator_namespace: self.operator_namespace.to_owned(),
            image: image.image.clone(),
            backends: self.backends().await?,
            root_key: self.root_key().await?,
        };
        let mut desired = workload::objects(self.registry, self.managed, &inputs)
            .map_err(|error| ReconcileError::Api(kube::Error::SerdeError(error)))?;
        self.set.check_foreign(&desired, &found).await?;
        let volume = self.keep_volume(&mut desired).await?;
        self.log(&self.set.apply(&desired, &found).await?);
        // Reported last: a volume that cannot be changed blocks no other change.
        volume?;
        Ok(self.pods().await?.unwrap_or_default())
    }

    /// Refuses to start a registry empty that runs in another namespace: the operator's own namespace, which is the default,
    /// may have changed, and managed.namespace may be set at any time.
    async fn check_namespace(&self, found: &[FoundObject]) -> Result<(), ReconcileError> {
        let kinds = kinds_with_pods();
        if found.iter().any(|it| kinds.contains(&it.kind)) {
            return Ok(());
        }
        let elsewhere = self.set.find_elsewhere(&kinds).await?;
        let object =
            elsewhere.iter().map(FoundObject::id).min_by(|a, b| a.namespace.cmp(&b.namespace));
        // The operator may see no objects there any more.
        let before = self.registry.status.as_ref().and_then(|it| it.namespace.as_ref());
        let (object, elsewhere) = match (object, before) {
            (Some(object), _) => (object.to_string(), object.namespace),
            (None, Some(before)) if *before != self.namespace => {
                (format!("the workload in namespace {before}"), before.clone())
            }
            _ => return Ok(()),
        };
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

    /// Deletes the workload with its Registry.
    pub(super) async fn delete_all(&self) -> Result<(), ReconcileError> {
        self.log(&self.set.delete_all().await?);
        Ok(())
    }

    /// Removes the Registry from the owners of its workload, in every namespace.
    pub(super) async fn release(&self) -> Result<(), ReconcileError> {
        let elsewhere = if_allowed(self.set.find_elsewhere(&kinds_with_pods()).await)?;
        let namespaces: BTreeSet<_> =
            elsewhere.iter().filter_map(|it| it.object.namespace()).collect();
        let uid = self.registry.uid().unwrap_or_default();
        self.log(&self.set.release(&uid, namespaces).await?);
        Ok(())
    }

    fn log(&self, changes: &ChangeSet) {
        if !changes.is_empty() {
            tracing::info!(registry = self.registry.name_any(), %changes, "changed the workload");
        }
    }
}

/// Returns the kinds that create a registry's pods.
fn kinds_with_pods() -> [ApiResource; 2] {
    [ApiResource::erase::<Deployment>(&()), ApiResource::erase::<StatefulSet>(&())]
}

/// Returns the kinds of a workload's objects.
pub(super) fn kinds() -> [SetKind; 8] {
    fn of<K: Resource<DynamicType = ()>>() -> SetKind {
        SetKind { kind: ApiResource::erase::<K>(&()), is_optional: false }
    }
    [
        of::<ConfigMap>(),
        of::<Secret>(),
        of::<Service>(),
        of::<NetworkPolicy>(),
        of::<PodDisruptionBudget>(),
        of::<Deployment>(),
        of::<StatefulSet>(),
        SetKind { kind: certificate_kind(), is_optional: true },
    ]
}
