//! The volume of a workload: it grows or gets its class where that is possible, and otherwise stays as it is.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::WorkloadReconcile;
use super::error::{ReconcileError, rejected};
use crate::apply_set::{DesiredObject, ObjectId};
use crate::workload::{self, VolumeChange};
use wharfage_crd::Reason;

impl WorkloadReconcile<'_> {
    /// Changes the volume as wanted, as far as that is possible, and the StatefulSet with it. The inner error is reported after
    /// everything else is done.
    pub(super) async fn keep_volume(
        &self,
        desired: &mut [DesiredObject],
    ) -> Result<Result<(), ReconcileError>, ReconcileError> {
        let Some(volume) = workload::volume(self.managed) else { return Ok(Ok(())) };
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &self.namespace);
        let claim = claims.get_opt(&self.names.claim()).await?;
        self.keep_templates(desired, claim.as_ref()).await?;
        let Some(current) = claim else { return Ok(Ok(())) };
        let change = match workload::claim(&volume, &current) {
            VolumeChange::Keep => return Ok(Ok(())),
            VolumeChange::Refuse(why) => {
                return Ok(Err(ReconcileError::stalled(Reason::VolumeUnchangeable, why)));
            }
            VolumeChange::Grow(size) => json!({ "resources": { "requests": { "storage": size } } }),
            VolumeChange::Classify(class) => json!({ "storageClassName": class }),
        };
        let (name, patch) = (current.name_any(), json!({ "spec": change }));
        match claims.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(Ok(())),
            Err(error) => {
                let kind = ApiResource::erase::<PersistentVolumeClaim>(&());
                match rejected(error, &ObjectId::new(&kind, &self.namespace, &name)) {
                    error @ ReconcileError::Conditions(_) => Ok(Err(error)),
                    error @ ReconcileError::Api(_) => Err(error),
                }
            }
        }
    }

    /// Keeps the templates of an existing StatefulSet, which are immutable. While there is no volume the StatefulSet is deleted
    /// instead, to be applied again: otherwise a claim that a person deletes would be created again as it was.
    async fn keep_templates(
        &self,
        desired: &mut [DesiredObject],
        claim: Option<&PersistentVolumeClaim>,
    ) -> Result<(), ReconcileError> {
        let kind = ApiResource::erase::<StatefulSet>(&());
        let Some(desired) = desired.iter_mut().find(|it| it.kind == kind) else { return Ok(()) };
        // With our label or without: a foreign one has been refused, and somebody may have removed ours.
        let Some(current) = self.set.api(&kind).get_opt(&desired.name).await? else {
            return Ok(());
        };
        let is_replaceable = !claim.is_some_and(workload::has_volume);
        if is_replaceable && workload::claims_otherwise(&desired.body, &current.data) {
            // While finalizers keep it, its templates cannot be changed.
            if self.set.delete_to_replace(&kind, &desired.name, current.uid()).await? {
                return Ok(());
            }
        }
        workload::keep_templates(&mut desired.body, &current.data);
        Ok(())
    }
}
