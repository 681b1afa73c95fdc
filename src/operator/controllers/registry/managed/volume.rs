//! The volume of a workload: grown or classified where it can be, and otherwise kept.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::ApiResource;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::WorkloadReconcile;
use super::apply::Applied;
use super::error::{ReconcileError, is_api, refused};
use crate::workload::{self, VolumeChange, WorkloadObject};
use wharfage_crd::Reason;

impl WorkloadReconcile<'_> {
    /// Has the volume become what is asked for, as far as it can, and the StatefulSet with it. The inner error is told once
    /// everything else is done.
    pub(super) async fn keep_volume(
        &self,
        wanted: &mut [WorkloadObject],
    ) -> Result<Result<(), ReconcileError>, ReconcileError> {
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
    /// applied again: else a claim that somebody deletes would come back as it was.
    pub(super) async fn keep_templates(
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
}
