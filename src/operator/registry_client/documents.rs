//! The only writer of the documents that a registry has once, such as its account settings.
//!
//! A document has many authors, and ECR replaces it whole. So a reconcile locks the documents, reads them, merges its own
//! entries ([`wharfage_plan::document`]) and writes them, before any other reconcile reads them. Registries that are the same
//! registry share the locks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::{LockedObject, ObjectCache};
use super::health::{RegistryError, is_unavailable};
use super::{RegistryClient, RegistryClients};
use wharfage_apply::{execute, observe_settings};
use wharfage_plan::{DesiredSettings, ObservedSettings, RegistryDocument, Step};

/// The locks of documents, by the place and the account of their registry.
#[derive(Default)]
pub(super) struct DocumentLocks(Mutex<HashMap<(String, String), Arc<ObjectCache<()>>>>);

impl std::fmt::Debug for DocumentLocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DocumentLocks").finish_non_exhaustive()
    }
}

impl DocumentLocks {
    fn of(&self, registry: &(String, String)) -> Arc<ObjectCache<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(registry.clone()).or_default())
    }
}

/// Locked documents of one registry.
pub struct LockedDocuments<'a> {
    registry_client: &'a RegistryClient,
    _locks: Vec<LockedObject<()>>,
}

impl RegistryClients {
    /// Waits for the locks of documents of a registry; `None` if the registry has not reported its identity yet.
    pub async fn lock_documents<'a>(
        &self,
        registry_client: &'a RegistryClient,
        mut documents: Vec<RegistryDocument>,
    ) -> Option<LockedDocuments<'a>> {
        // One order for all callers, so that no two wait for each other.
        documents.sort_unstable();
        documents.dedup();
        let cache = self.documents.of(registry_client.registry()?);
        let mut locks = Vec::with_capacity(documents.len());
        for document in documents {
            locks.push(cache.lock(&document.into()).await);
        }
        Some(LockedDocuments { registry_client, _locks: locks })
    }
}

impl LockedDocuments<'_> {
    /// Reads the settings that `desired` has. A setting that cannot be read is an error in the result, which the plan refuses.
    ///
    /// # Errors
    /// When the registry is unavailable.
    pub async fn observe(&self, desired: &DesiredSettings) -> Result<ObservedSettings, RegistryError> {
        let mut observed = ObservedSettings::default();
        let result = self.registry_client.ask(async {
            observed = observe_settings(self.registry_client.ecr(), desired).await;
            observed.errors().find(|it| is_unavailable(it)).map_or(Ok(()), |error| Err(error.clone()))
        });
        match result.await {
            Err(error @ RegistryError::Unavailable(_)) => Err(error),
            // The registry answers otherwise: only this request always fails.
            Ok(()) | Err(RegistryError::Rejected(_)) => Ok(observed),
        }
    }

    /// Executes a step of the plan.
    ///
    /// # Errors
    /// When the registry is unavailable or rejects a call.
    pub async fn execute(&self, step: &Step) -> Result<(), RegistryError> {
        self.registry_client.ask(execute(self.registry_client.ecr(), step, None, |_, _| {})).await
    }
}
