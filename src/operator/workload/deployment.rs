//! The Deployment of equal pods, or the StatefulSet of one pod with a volume.

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment, StatefulSet,
    StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Volume, WorkloadBuilder};

impl WorkloadBuilder<'_> {
    /// Returns the Deployment of pods that store nothing: a new one serves before an old one ends.
    pub(super) fn deployment(&self) -> Deployment {
        Deployment {
            metadata: self.metadata(self.names.workload()),
            spec: Some(DeploymentSpec {
                replicas: self.managed.replicas,
                selector: self.chosen_pods(),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".to_owned()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(IntOrString::Int(1)),
                        max_unavailable: Some(IntOrString::Int(0)),
                    }),
                }),
                template: self.pods(),
                ..DeploymentSpec::default()
            }),
            status: None,
        }
    }

    /// Returns the StatefulSet of one pod with a volume, which outlives the pod, the StatefulSet and the Registry.
    pub(super) fn stateful_set(&self, volume: &Volume) -> StatefulSet {
        StatefulSet {
            metadata: self.metadata(self.names.workload()),
            spec: Some(StatefulSetSpec {
                replicas: Some(self.managed.replicas.unwrap_or(1)),
                selector: self.chosen_pods(),
                service_name: Some(self.names.admin()),
                // In order, a pod that never became ready would block the change that repairs it.
                pod_management_policy: Some("Parallel".to_owned()),
                persistent_volume_claim_retention_policy: Some(
                    StatefulSetPersistentVolumeClaimRetentionPolicy {
                        when_deleted: Some("Retain".to_owned()),
                        when_scaled: Some("Retain".to_owned()),
                    },
                ),
                template: self.pods(),
                volume_claim_templates: Some(vec![volume.template(&self.names)]),
                ..StatefulSetSpec::default()
            }),
            status: None,
        }
    }

    /// Returns the selector of the pods, for every object that needs one.
    pub(super) fn chosen_pods(&self) -> LabelSelector {
        LabelSelector { match_labels: Some(self.names.selector()), ..LabelSelector::default() }
    }
}
