//! The status of a workload, as its Registry reports it.

use std::collections::BTreeMap;

use super::image::Migration;
use crate::workload::Pods;
use wharfage_crd::RegistryStatus;

/// The status of an existing workload.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadStatus {
    /// The URL for clients.
    pub endpoint: String,
    pub namespace: String,
    /// The labels of its pods.
    pub selector: BTreeMap<String, String>,
    pub pods: Pods,
}

impl WorkloadStatus {
    /// Sets the fields of a Registry's status.
    pub(crate) fn set(self, status: &mut RegistryStatus) {
        let labels = self.selector.iter().map(|(key, value)| format!("{key}={value}"));
        status.endpoint = Some(self.endpoint);
        status.namespace = Some(self.namespace);
        status.selector = Some(labels.collect::<Vec<_>>().join(","));
        status.replicas = Some(self.pods.total);
        if self.pods.image.is_some() {
            status.image = self.pods.image;
        }
    }
}

/// Sets the condition about a change of the image, if that is known.
pub(crate) fn set_migration(
    migration: Option<Migration>,
    status: &mut RegistryStatus,
    generation: Option<i64>,
) {
    if let (Some(migration), Some(image)) = (migration, status.image.clone()) {
        migration.set_condition(&mut status.conditions, &image, generation);
    }
}
