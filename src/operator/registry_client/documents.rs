//! The only writer of the documents that a registry has once, such as its account settings.
//!
//! A document has many authors, and ECR replaces it whole. So a reconcile locks the documents, reads them, merges its own
//! entries ([`wharfage_plan::document`]) and writes them, before any other reconcile reads them. Registries that are the same
//! registry share the locks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::cache::{LockedObject, ObjectCache};
use super::health::{RegistryError, is_unavailable};
use super::{RegistryClient, RegistryClients};
use wharfage_apply::{execute, observe_settings};
use wharfage_plan::{DesiredSettings, ObservedSettings, RegistryDocument, Step};

/// The locks of documents that are held or waited for, by the place and the account of their registry.
#[derive(Default)]
pub(super) struct DocumentLocks(Mutex<HashMap<RegistryIdentity, Weak<ObjectCache<()>>>>);

/// The place and the account of a registry.
type RegistryIdentity = (String, String);

impl std::fmt::Debug for DocumentLocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DocumentLocks").finish_non_exhaustive()
    }
}

impl DocumentLocks {
    fn of(&self, registry: &RegistryIdentity) -> Arc<ObjectCache<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = locks.get(registry).and_then(Weak::upgrade) {
            return found;
        }
        locks.retain(|_, it| it.strong_count() > 0);
        let new = Arc::default();
        locks.insert(registry.clone(), Arc::downgrade(&new));
        new
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
    pub async fn observe(
        &self,
        desired: &DesiredSettings,
    ) -> Result<ObservedSettings, RegistryError> {
        let mut observed = ObservedSettings::default();
        let result = self.registry_client.ask(async {
            observed = observe_settings(self.registry_client.ecr(), desired).await;
            observed
                .errors()
                .find(|it| is_unavailable(it))
                .map_or(Ok(()), |error| Err(error.clone()))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::FutureExt as _;
    use secrecy::SecretString;
    use serde_json::{Value, json};

    use super::*;
    use wharfage_apply::{Connection, Ecr};
    use wharfage_fake_ecr::{FakeEcr, fake_ecr};
    use wharfage_plan::{Desired, Observed, plan};

    const PLACE: &str = "https://registry.example.com";

    async fn client(endpoint: &str, account: &str) -> RegistryClient {
        let (region, key) = ("eu-home-1".parse().unwrap(), SecretString::from("secret"));
        let connection = Connection::with_key(endpoint.to_owned(), region, "AKIA".to_owned(), key);
        let client =
            RegistryClient::new("home", Ecr::new(connection, None).await.unwrap(), 1, || {});
        client.found(PLACE, account);
        client
    }

    #[tokio::test]
    async fn documents_of_one_registry_are_locked_for_all_its_registries() {
        let clients = RegistryClients::default();
        let (one, alias) =
            (client("http://127.0.0.1:9", "1").await, client("http://127.0.0.1:9", "1").await);
        let other = client("http://127.0.0.1:9", "2").await;
        let (policy, scanning) =
            (RegistryDocument::Policy, RegistryDocument::ScanningConfiguration);
        let locked = clients.lock_documents(&one, vec![policy, policy]).await;
        assert!(locked.is_some());
        let waits =
            |client, documents| clients.lock_documents(client, documents).now_or_never().is_none();
        assert!(waits(&alias, vec![scanning, policy]), "the policy is locked");
        assert!(!waits(&alias, vec![scanning]), "another document");
        assert!(!waits(&other, vec![policy]), "another account's");
        drop(locked);
        assert!(!waits(&alias, vec![scanning, policy]));
        assert!(!waits(&other, vec![policy]));
        assert_eq!(clients.documents.0.lock().unwrap().len(), 1, "locks that nobody holds go");
    }

    #[tokio::test]
    async fn a_registry_without_an_identity_gets_no_lock() {
        let connection = client("http://127.0.0.1:9", "1").await.ecr;
        let unknown = RegistryClient::new("home", connection, 1, || {});
        assert!(
            RegistryClients::default()
                .lock_documents(&unknown, vec![RegistryDocument::Policy])
                .await
                .is_none()
        );
    }

    /// A registry with the account settings A and B.
    async fn registry() -> FakeEcr {
        let settings = Mutex::new(BTreeMap::from([
            ("A".to_owned(), "0".to_owned()),
            ("B".to_owned(), "0".to_owned()),
        ]));
        fake_ecr(move |_, asked| {
            let body: Value = serde_json::from_str(&asked.body).unwrap();
            let name = body["name"].as_str().unwrap_or_default().to_owned();
            let mut settings = settings.lock().unwrap();
            match asked.operation.as_str() {
                "GetAccountSetting" => {}
                "PutAccountSetting" => {
                    settings.insert(name.clone(), body["value"].as_str().unwrap().to_owned());
                }
                other => panic!("{other} was called"),
            }
            (200, json!({ "name": name, "value": settings[&name] }).to_string())
        })
        .await
    }

    #[tokio::test]
    async fn writers_of_one_document_keep_each_others_entries() {
        let registry = registry().await;
        let clients = RegistryClients::default();
        let (one, alias) =
            (client(&registry.endpoint, "1").await, client(&registry.endpoint, "1").await);
        let write = async |client, name: &str| {
            let account_settings = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            let settings = DesiredSettings { account_settings, ..DesiredSettings::default() };
            let locked = clients.lock_documents(client, settings.documents()).await.unwrap();
            let observed = Observed {
                settings: locked.observe(&settings).await.unwrap(),
                ..Observed::default()
            };
            let steps = plan(&Desired { settings, ..Desired::default() }, &observed).steps;
            for step in &steps {
                locked.execute(step).await.unwrap();
            }
            steps.len()
        };
        assert_eq!(futures::join!(write(&one, "A"), write(&alias, "B")), (1, 1));
        assert_eq!(
            futures::join!(write(&one, "A"), write(&alias, "B")),
            (0, 0),
            "both entries are there"
        );
        assert_eq!(registry.count("PutAccountSetting"), 2);
    }
}
