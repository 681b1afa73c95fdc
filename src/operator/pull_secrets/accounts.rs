//! The imagePullSecrets of a service account: a list with entries of ours and of other parties, which are left unchanged.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::{LocalObjectReference, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

/// A service account as it is watched.
#[derive(Debug, Clone, PartialEq, Resource, Deserialize)]
#[resource(inherit = ServiceAccount)]
#[serde(rename_all = "camelCase")]
pub struct WatchedServiceAccount {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// The Secrets that its Pods pull with.
    #[serde(default)]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// Hashes the Secrets that a service account names: other changes of it do not matter.
pub(crate) fn meaning(account: &WatchedServiceAccount) -> u64 {
    let mut hasher = DefaultHasher::new();
    account.metadata.uid.hash(&mut hasher);
    account.image_pull_secrets.iter().for_each(|entry| entry.name.hash(&mut hasher));
    hasher.finish()
}

impl WatchedServiceAccount {
    pub fn names(&self, secret: &str) -> bool {
        self.image_pull_secrets.iter().any(|entry| entry.name == secret)
    }

    /// Returns the list with the Secret's name, or without it; nothing if that is no change.
    pub fn with(&self, secret: &str, named: bool) -> Option<Vec<LocalObjectReference>> {
        if self.names(secret) == named {
            return None;
        }
        let others = self.image_pull_secrets.iter().filter(|entry| entry.name != secret).cloned();
        let own = named.then(|| LocalObjectReference { name: secret.to_owned() });
        Some(others.chain(own).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(names: &[&str]) -> WatchedServiceAccount {
        let entry = |name: &&str| LocalObjectReference { name: (*name).to_owned() };
        let image_pull_secrets = names.iter().map(entry).collect();
        WatchedServiceAccount { metadata: ObjectMeta::default(), image_pull_secrets }
    }

    #[test]
    fn only_our_entry_is_added_and_removed() {
        let two = account(&["theirs", "pull"]);
        assert_eq!(account(&["theirs"]).with("pull", true), Some(two.image_pull_secrets.clone()));
        assert_eq!(two.with("pull", true), None);
        assert_eq!(two.with("pull", false), Some(account(&["theirs"]).image_pull_secrets));
        assert_eq!(account(&["theirs"]).with("pull", false), None);
        assert_eq!(account(&["pull"]).with("pull", false), Some(Vec::new()));
    }
}
